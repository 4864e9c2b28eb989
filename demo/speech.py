"""Which digit was spoken, in noise: a small recurrent network on padded batches of recordings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from training import Batch, History, Run, samples_a_second, train

import raggedstore as rs
from raggedstore.samples import Samples
from raggedstore.torch import LoaderDataset
from raggedstore.training import Bucketed, FixedSize, Loader, Rule, Shuffled

__all__ = ["SIZE", "Heard", "Learned", "learn", "loader_of", "spectrogram"]

SIZE = 8  # of a batch
NOISE = 50.0  # as loud as the voices
TRIES = 4  # times that each recording is heard in a test, each time in other noise
FRAME, HOP = 256, 80  # of the spectrogram: 32 ms every 10 ms at 8 kHz


class DigitModel(nn.Module):
    """Log spectrogram -> two convolutions -> recurrent layer -> which digit it was."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.BatchNorm1d(FRAME // 2 + 1),
            nn.Conv1d(FRAME // 2 + 1, 64, 5, padding=2),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Conv1d(64, 64, 5, padding=2),
            nn.ReLU(),
            nn.Dropout(0.3),
        )
        self.recurrent = nn.GRU(64, 64, batch_first=True, bidirectional=True)
        self.digits = nn.Linear(128, 10)

    def forward(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """(n, longest) waves and their (n,) lengths to (n, 10) scores."""
        frames = self.frames(spectrogram(waves)).transpose(1, 2)
        # Knowing the lengths, the recurrent layer stops where a recording does.
        packed = nn.utils.rnn.pack_padded_sequence(
            frames, lengths // HOP + 1, batch_first=True, enforce_sorted=False
        )
        _, state = self.recurrent(packed)
        return self.digits(torch.cat([state[0], state[1]], dim=1))


def spectrogram(waves: Tensor) -> Tensor:
    """(n, steps) waves to (n, frequencies, frames), in logarithms."""
    window = torch.hann_window(FRAME)
    spectra = torch.stft(waves / 256, FRAME, HOP, window=window, return_complex=True)
    return torch.log(spectra.abs() + 0.1)


def noisy(waves: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Integers to floats, with noise."""
    return waves + NOISE * torch.randn(waves.shape, generator=generator)


def digits_of(batch: Batch) -> Tensor:
    """(n,) the digits: the folders that the recordings lay in."""
    return torch.tensor([int(label) for label in batch["label"]])


def paths_of(batch: Batch) -> list[str]:
    """Which recordings are in a batch."""
    return list(batch["path"])


def loss_of(model: DigitModel, batch: Batch) -> Tensor:
    """How wrong the model is on a batch."""
    scores = model(noisy(batch["audio"]), batch["audio_lengths"])
    return nn.functional.cross_entropy(scores, digits_of(batch))


def loader_of(samples: Samples, rule: Rule) -> Loader:
    """Padded batches, shuffled."""
    # The window holds half of the samples. All of them, sorted by length, would make the same
    # batches in every epoch.
    order = Shuffled(seed=0, window="250kB")
    fields = ["audio", "label", "path"]
    return Loader(samples, fields=fields, order=order, batch=rule, collate="padded")


def accuracy(model: DigitModel, batches: Sequence[Batch]) -> float:
    """Which part of the recordings the model has right."""
    generator = torch.Generator().manual_seed(0)  # the same noise in every test
    right = []
    for batch in [*batches] * TRIES:
        scores = model(noisy(batch["audio"], generator), batch["audio_lengths"])
        right.append(scores.argmax(dim=1) == digits_of(batch))
    return float(torch.cat(right).float().mean())


@dataclass
class Heard:
    """A recording in noise, and what the model takes it for."""

    waves: Tensor
    digit: int
    guess: int


@dataclass
class Learned:
    """What came of it."""

    history: History
    sizes: dict[str, int]  # of the parts, in samples
    padding: dict[str, float]  # which part of the batches is padding, under two rules
    loaded: float  # samples a second, without the model
    heard: list[Heard]  # a recording of each digit, by a new voice


def learn(store: rs.Store, steps: int, checkpoint: Path) -> Learned:
    """Train on four fifths of day 1; test on the other, and on the new voices of day 2."""
    first_day = rs.open(store.path, version=store.versions()[-2])
    parts: dict[str, Samples] = {**first_day.split({"train": 0.8, "valid": 0.2}, by="label")}
    parts["new voices"] = store.select(slice(len(first_day), None))
    tests = {
        name: list(LoaderDataset(Loader(parts[name], batch=SIZE, collate="padded")))
        for name in ("valid", "new voices")
    }

    def loader(rule: Rule | None = None) -> Loader:
        return loader_of(parts["train"], rule or Bucketed("audio", SIZE))

    def make() -> Run:
        torch.manual_seed(0)
        return Run(DigitModel(), loader(), loss_of, paths_of, rate=2e-3, steps=steps)

    def test(model: DigitModel) -> dict[str, float]:
        return {name: accuracy(model, batches) for name, batches in tests.items()}

    model, history = train(make, test, checkpoint)
    return Learned(
        history,
        {name: len(part) for name, part in parts.items()},
        {"by length": padding(loader()), "as they come": padding(loader(FixedSize(SIZE)))},
        samples_a_second(loader(), paths_of),
        listen(model, tests["new voices"]),
    )


def padding(loader: Loader) -> float:
    """Which part of an epoch's batches is padding."""
    held = room = 0
    for batch in loader:
        held += int(batch["audio_lengths"].sum())
        room += batch["audio"].size
    return 1 - held / room


@torch.no_grad()
def listen(model: nn.Module, batches: Sequence[Batch]) -> list[Heard]:
    """A recording of each digit."""
    model.eval()
    generator = torch.Generator().manual_seed(1)
    heard: dict[int, Heard] = {}
    for batch in batches:
        waves = noisy(batch["audio"], generator)
        guesses = model(waves, batch["audio_lengths"]).argmax(dim=1).tolist()
        for row, digit in enumerate(digits_of(batch).tolist()):
            wave = waves[row, : batch["audio_lengths"][row]]
            heard.setdefault(digit, Heard(wave, digit, guesses[row]))
    return [heard[digit] for digit in sorted(heard)]

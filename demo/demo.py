"""Speech, text and images to stores, a second day appended, and a small model trained.

Everything goes to demo/out, which is made anew: three stores, the lengths of the utterances
(lengths.png) and the model's loss (loss.png).

    python demo/demo.py
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

import raggedstore as rs

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
OUT = ROOT / "demo" / "out"
KINDS = {"speech": "audio", "text": "text", "images": "image"}

EPOCHS = 20
MINIBATCH = 16
WINDOW, HOP = 256, 80  # of the spectrogram: 32 ms every 10 ms at 8 kHz


class DigitModel(nn.Module):
    """Log spectrogram -> two convolutions -> recurrent layer -> which word it was."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.BatchNorm1d(WINDOW // 2 + 1),
            nn.Conv1d(WINDOW // 2 + 1, 64, 5, padding=2),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Conv1d(64, 64, 5, padding=2),
            nn.ReLU(),
            nn.Dropout(0.3),
        )
        self.recurrent = nn.GRU(64, 64, batch_first=True, bidirectional=True)
        self.words = nn.Linear(128, words)

    def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """(n, longest) waves and their (n,) lengths to (n, words) scores."""
        window = torch.hann_window(WINDOW)
        waves = torch.stft(audio / 256, WINDOW, HOP, window=window, return_complex=True)
        frames = self.frames(torch.log(waves.abs() + 0.1)).transpose(1, 2)
        packed = nn.utils.rnn.pack_padded_sequence(
            frames, lengths // HOP + 1, batch_first=True, enforce_sorted=False
        )
        _, state = self.recurrent(packed)
        return self.words(torch.cat([state[0], state[1]], dim=1))


def raggedstore(*arguments: str | Path) -> None:
    """Run the command as a person would, and show it."""
    typed = [str(a.relative_to(ROOT)) if isinstance(a, Path) else a for a in arguments]
    print("\n$ raggedstore", *typed, flush=True)
    subprocess.run([sys.executable, "-m", "raggedstore", *typed], cwd=ROOT, check=True)


def build_stores() -> None:
    """One store for each kind of sample: day 1, then day 2 appended."""
    for name, kind in KINDS.items():
        raggedstore("import", SAMPLES / "day1" / name, OUT / name, "--kind", kind)
    print("\nA day later:")
    for name, kind in KINDS.items():
        raggedstore("import", SAMPLES / "day2" / name, OUT / name, "--kind", kind, "--append")
    for name in KINDS:
        raggedstore("info", OUT / name)
        raggedstore("log", OUT / name)
    raggedstore("stats", OUT / "speech", "--plot", OUT / "lengths.png")


def read(store: rs.Store, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The waves at `positions`, padded to the longest, and their lengths."""
    batch = store["audio"].batch(positions)
    return torch.from_numpy(batch.to_padded().astype("float32")), torch.from_numpy(batch.lengths)


def train(store: rs.Store, heard: int) -> list[float]:
    """Train on the first `heard` samples, test on the others; give the loss of each minibatch."""
    words, classes = np.unique(store["label"].batch(slice(None)), return_inverse=True)
    labels = torch.from_numpy(classes)
    unheard = np.arange(heard, len(store))

    torch.manual_seed(0)
    torch.set_num_threads(1)  # in so small a model, threads mostly wait for one another
    rng = np.random.default_rng(0)
    model = DigitModel(len(words))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)

    losses: list[float] = []
    for epoch in range(1, EPOCHS + 1):
        model.train()
        first = len(losses)
        order = rng.permutation(heard)  # shuffled anew each time round
        for start in range(0, heard, MINIBATCH):
            chosen = order[start : start + MINIBATCH]
            loss = nn.functional.cross_entropy(model(*read(store, chosen)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if epoch == 1 or epoch % 5 == 0:
            model.eval()
            with torch.no_grad():
                guesses = model(*read(store, unheard)).argmax(dim=1)
            right = int((guesses == labels[unheard]).sum())
            print(
                f"epoch {epoch:2}  loss {np.mean(losses[first:]):6.3f}  "
                f"new voices: {right} of {len(unheard)} right ({right / len(unheard):.0%})"
            )
    return losses


def plot(losses: list[float], path: Path) -> None:
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.plot(losses)
    ax.set(xlabel="minibatch", ylabel="loss", title="Spoken digits, read shuffled from the store")
    figure.savefig(path, dpi=100)


def main() -> None:
    if OUT.exists():
        shutil.rmtree(OUT)
    OUT.mkdir()
    build_stores()

    store = rs.open(OUT / "speech")
    heard = len(rs.open(OUT / "speech", version=store.versions()[-2]))
    print(f"\nTraining on the {heard} utterances of day 1; the {len(store) - heard} of day 2,")
    print("by voices that the model never heard, are the test.")
    began = time.perf_counter()
    losses = train(store, heard)
    print(f"{len(losses)} minibatches in {time.perf_counter() - began:.1f} s")
    plot(losses, OUT / "loss.png")
    print("\nPictures: demo/out/loss.png and demo/out/lengths.png")


if __name__ == "__main__":
    main()

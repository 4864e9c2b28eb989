"""Text byte by byte: a small transformer on rows that are packed full of sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from training import Batch, History, Run, samples_a_second, train

import raggedstore as rs
from raggedstore.samples import Samples
from raggedstore.torch import LoaderDataset
from raggedstore.training import Loader, Packed, Shuffled

__all__ = ["ROW", "ROWS", "ByteModel", "Learned", "learn", "loader_of", "nats_of"]

ROW, ROWS = 256, 4  # bytes in a row, rows in a batch
WIDTH, HEADS, LAYERS, SEEN = 96, 4, 2, 4
DROPOUT = 0.2


class Layer(nn.Module):
    """Attention, then two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.asked, self.told = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dense = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.asked(self.before(x)).unflatten(-1, (3, HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.dropout(self.told(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.dense(self.between(x)))


class ByteModel(nn.Module):
    """What each byte is, by those before it in its sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.ModuleList(nn.Embedding(256, WIDTH) for _ in range(SEEN))
        self.places = nn.Embedding(ROW, WIDTH)
        for embedding in (*self.bytes, self.places):
            nn.init.normal_(embedding.weight, std=0.1)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.last = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, text: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
        """(rows, length) bytes, and where they belong, to (rows, length, 256) scores."""
        x = self.places(positions)
        for back, embedding in enumerate(self.bytes, start=1):
            earlier = functional.pad(text.long(), (back, 0))[:, :-back]
            # Before a sequence there is nothing: 0, a byte that no text has.
            x = x + embedding(earlier.masked_fill(positions < back, 0))
        x = self.dropout(x)
        # Each place sees those before it, and itself, of its own sequence.
        mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
        for layer in self.layers:
            x = layer(x, mask)
        return self.last(x)


def nats_of(model: ByteModel, batch: Batch) -> Tensor:
    """(k,) what each byte of a batch costs the model."""
    segments = batch["text_segments"]
    scores = model(batch["text"], segments, batch["text_positions"])
    is_text = segments > 0  # and not what a row is filled up with
    wanted = batch["text"][is_text].long()
    return functional.cross_entropy(scores[is_text], wanted, reduction="none")


def loss_of(model: ByteModel, batch: Batch) -> Tensor:
    """What the bytes of a batch cost, on average."""
    return nats_of(model, batch).mean()


def loader_of(samples: Samples, *, shuffled: bool) -> Loader:
    """Batches of rows."""
    return Loader(
        samples,
        fields=["text", "path", "line"],
        order=Shuffled(seed=0) if shuffled else None,
        batch=Packed("text", ROW, rows=ROWS),
        collate="padded",  # beside the bytes come their segments and positions
    )


def names_of(batch: Batch) -> list[tuple[str, int]]:
    """Which lines are in a batch, row by row."""
    return list(zip(batch["path"], batch["line"].tolist(), strict=True))


@dataclass
class Learned:
    """What came of it."""

    history: History
    sizes: dict[str, int]  # of the parts, in samples
    padding: dict[str, float]  # which part of the batches is padding, packed and not
    loaded: float  # samples a second, without the model
    read: list[str]  # a few lines of the text
    written: list[str]  # and a few by the model


def learn(store: rs.Store, steps: int, checkpoint: Path) -> Learned:
    """Train on nine tenths of the lines; test on the others."""
    parts = store.split({"train": 0.9, "valid": 0.1})
    valid = list(LoaderDataset(loader_of(parts["valid"], shuffled=False)))

    def make() -> Run:
        torch.manual_seed(0)
        loader = loader_of(parts["train"], shuffled=True)
        return Run(ByteModel(), loader, loss_of, names_of, rate=4e-3, steps=steps)

    def test(model: ByteModel) -> dict[str, float]:
        return {"valid": float(torch.cat([nats_of(model, batch) for batch in valid]).mean())}

    model, history = train(make, test, checkpoint)
    assert isinstance(model, ByteModel)
    return Learned(
        history,
        {name: len(part) for name, part in parts.items()},
        padding(parts["train"]),
        samples_a_second(loader_of(parts["train"], shuffled=True), names_of),
        parts["valid"]["text"][:5],
        write(model, ["a ", "the ", "of ", "make ", "in a "]),
    )


def padding(samples: Samples) -> dict[str, float]:
    """Which part of an epoch's batches is padding: packed, and with a row for each line."""
    held = packed = padded = 0
    for batch in loader_of(samples, shuffled=True):
        held += int((batch["text_segments"] > 0).sum())
        packed += batch["text"].size
    for batch in Loader(samples, fields=["text"], order=Shuffled(seed=0), batch=12):
        padded += 12 * max(len(line.encode()) for line in batch["text"])
    return {"packed": 1 - held / packed, "a row a line": 1 - held / padded}


@torch.no_grad()
def write(model: ByteModel, beginnings: Sequence[str], length: int = 90) -> list[str]:
    """Go on from each beginning, byte by byte."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    written = []
    for beginning in beginnings:
        text = torch.tensor([list(beginning.encode())])
        while text.shape[1] < length:
            # The byte that is to come is not looked at.
            longer = functional.pad(text, (0, 1))
            places = torch.arange(longer.shape[1])[None]
            scores = model(longer, torch.ones_like(longer), places)[0, -1]
            chances = functional.softmax(scores / 0.7, dim=0)
            longer[0, -1] = torch.multinomial(chances, 1, generator=generator)
            text = longer
        written.append(bytes(text[0].tolist()).decode("utf-8", "replace"))
    return written

"""How much of a batch is padding: batching rules beside batches of a fixed size.

    python benchmarks/padding.py CORPUS.npz... [--size 64] [--json OUT.json]

Of each rule and order what a loop gets in an epoch: which part of the values is padding once every
batch is padded to its longest sample (in each dimension), how many batches there are, and how many
values the largest has. Shuffled is measured with its defaults, and with a window of an eighth of
the corpus. "at best" is what no batches of as many samples can be below: all samples sorted.

Packed has rows of the power of two that holds the longest sample, and rows of 2,048 values where
that is more. Below stand first fit, which puts each sample, as it comes in that order, into the
first row that has room for it, of all rows of an epoch; and next fit, which looks at the last row
alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import raggedstore as rs
from benchmarks.corpora import Corpus
from raggedstore.training import (
    Bucketed,
    FixedSize,
    Loader,
    Order,
    Packed,
    PackedRows,
    Permuted,
    Rule,
    Shuffled,
    TokenBudget,
)

Int64s = npt.NDArray[np.int64]

#: From one edge of a bucket to the next.
RATIO = 1.25


@dataclass(frozen=True)
class Padding:
    """One cell of the table."""

    corpus: str
    rule: str
    order: str
    padded: float  #: of all values
    batches: int
    largest: int  #: values of the largest batch, padded


def write(corpus: Corpus, folder: Path) -> rs.Store:
    """A store with the corpus, and the number of each sample."""
    ragged = 1 if corpus.shapes is None else 2
    tail = () if corpus.shapes is None else tuple(corpus.shapes[0, 2:].tolist())
    fields = {"x": rs.Field(corpus.dtype, (None,) * ragged + tail), "i": rs.Field("int64")}
    store = rs.create(folder / corpus.name, fields)
    batch = rs.RaggedBatch(corpus.values, corpus.offsets, corpus.shapes)
    with store.writer() as writer:
        writer.extend_batch({"x": batch, "i": np.arange(len(corpus))})
    return store


def sizes_of(corpus: Corpus) -> Int64s:
    """(n, r) the ragged dimensions of each sample."""
    if corpus.shapes is None:
        return np.diff(corpus.offsets)[:, None]
    return corpus.shapes[:, :2]


def rules_for(corpus: Corpus, size: int) -> dict[str, Rule]:
    """The rules by the names that they have in the table."""
    volumes = sizes_of(corpus).prod(axis=1)
    longest = int(volumes.max())
    budget = size * round(float(volumes.mean()))
    steps = math.ceil(math.log(max(longest, 2)) / math.log(RATIO))
    edges = sorted({int(RATIO**k) for k in range(1, steps + 1)})
    rules: dict[str, Rule] = {
        f"FixedSize({size})": FixedSize(size),
        f"Bucketed({size})": Bucketed("x", size),
        f"Bucketed({size}, quantiles=8)": Bucketed("x", size, quantiles=8),
        f"Bucketed({size}, quantiles=24)": Bucketed("x", size, quantiles=24),
        f"Bucketed({size}, edges {RATIO} apart)": Bucketed("x", size, edges=edges),
        f"Bucketed({size // 4})": Bucketed("x", size // 4),
        f"TokenBudget({budget:,})": TokenBudget("x", budget),
        f"TokenBudget({budget // 4:,})": TokenBudget("x", budget // 4),
    }
    if corpus.shapes is None:
        length = 1 << math.ceil(math.log2(longest))
        for steps in sorted({length, max(length, 2048)}):
            rules[f"Packed({steps:,})"] = Packed("x", steps)
    return rules


def epoch(store: rs.Store, rule: Rule, order: Order) -> tuple[float, int, int]:
    """Padded part, batches, and values of the largest batch."""
    values, padded = 0, []
    for batch in Loader(store, fields=["x"], batch=rule, order=order):
        x = batch["x"]
        if isinstance(x, PackedRows):
            values += int(x.lengths.sum())
            padded.append(math.prod(x.shape))
        else:
            sizes = x.shapes[:, :2] if x.ndim > 1 else x.shapes
            values += int(sizes.prod(axis=1).sum())
            padded.append(len(x) * int(sizes.max(axis=0).prod()))
    return 1 - values / sum(padded), len(padded), max(padded)


def measure(corpus: Corpus, store: rs.Store, size: int) -> Iterator[Padding]:
    """Every rule under every order."""
    eighth = max(1, corpus.nbytes // 8)
    orders = {
        "Shuffled()": Shuffled(),
        "Shuffled(an eighth)": Shuffled(window=eighth),
        "Permuted()": Permuted(),
    }
    for name, rule in rules_for(corpus, size).items():
        for how, order in orders.items():
            yield Padding(corpus.name, name, how, *epoch(store, rule, order))
            if isinstance(rule, Packed):
                (at_once,) = Loader(store, fields=["i"], batch=len(corpus), order=order)
                lengths = sizes_of(corpus)[at_once["i"], 0]
                for fit in (first_fit, next_fit):
                    rows = fit(lengths, rule.length)
                    yield Padding(
                        corpus.name,
                        f"{fit.__name__.replace('_', ' ')}({rule.length:,})",
                        how,
                        1 - int(lengths.sum()) / (rows * rule.length),
                        -(-rows // rule.rows),
                        rule.rows * rule.length,
                    )


def first_fit(lengths: Int64s, capacity: int) -> int:
    """Rows that sequences fill, each put into the first row that has room for it."""
    room = np.full(len(lengths) + 1, capacity, np.int64)
    rows = 0
    for length in lengths.tolist():
        row = int(np.argmax(room[: rows + 1] >= length))
        room[row] -= length
        rows = max(rows, row + 1)
    return rows


def next_fit(lengths: Int64s, capacity: int) -> int:
    """Rows that sequences fill, each put into the last row, or else a new one."""
    rows, room = 0, 0
    for length in lengths.tolist():
        if length > room:
            rows, room = rows + 1, capacity
        room -= length
    return rows


def at_best(corpus: Corpus, size: int) -> float:
    """Padding of batches of `size` of all samples sorted, the short one where that is best."""
    volumes = np.sort(sizes_of(corpus).prod(axis=1))
    short = len(volumes) % size
    fewest = math.inf
    for place in range(len(volumes) // size + 1 if short else 1):
        # Before the short batch as many whole ones as `place`.
        stops = np.arange(1, place + 1) * size
        rest = np.arange(place * size + short, len(volumes) + 1, size)
        longest = volumes[np.concatenate([stops, rest[rest > 0]]) - 1]
        counts = np.full(len(longest), size)
        if short:
            counts[place] = short
        fewest = min(fewest, float((longest * counts).sum()))
    return 1 - float(volumes.sum()) / fewest


def table(rows: list[Padding]) -> Iterator[str]:
    orders = list(dict.fromkeys(row.order for row in rows))
    yield f"{'padded, batches, largest':32}" + "".join(f"{order:>26}" for order in orders)
    for rule in dict.fromkeys(row.rule for row in rows):
        cells = [row for row in rows if row.rule == rule]
        yield f"{rule:32}" + "".join(
            f"{cell.padded:>8.1%}{cell.batches:>7,}{cell.largest:>11,}" for cell in cells
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    everything = []
    for path in options.corpora:
        corpus = Corpus.load(path)
        with tempfile.TemporaryDirectory() as folder, write(corpus, Path(folder)) as store:
            rows = list(measure(corpus, store, options.size))
        best = [f"{at_best(corpus, n):.1%} of {n}" for n in (options.size, options.size // 4)]
        print(f"{corpus.name}: {len(corpus):,} samples; at best {', '.join(best)}")
        print("\n".join(table(rows)), end="\n\n")
        everything += rows
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in everything], indent=1) + "\n")


if __name__ == "__main__":
    main()

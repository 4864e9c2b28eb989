"""How soon training goes on: from a loader's state in the middle of an epoch to the next batch.

    python benchmarks/resume.py [--samples 10000000] [--world-size 4] [--runs 12]
        [--only Permuted Packed] [--json OUT.json]

A store of byte strings, of 8 to 55 bytes each, is made in a temporary folder. For every order and
batching rule states are taken in the midst of an epoch, after one step and the next, and gone on
from in a new process each, by turns with `even="pad"` and "drop". Where a unit of the order ends
between two steps both it and the next one are planned, so that one state costs more than another.
Timed is what follows once the store is open: making the loader, loading the state, the first batch.
The files stay in the page cache.

    wall    milliseconds that are waited for: the least, the median and the most of the states
    work    processor time of all threads, likewise: other programs change it less
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import raggedstore as rs
from raggedstore.training import (
    Bucketed,
    FixedSize,
    Loader,
    Order,
    Packed,
    Permuted,
    Rule,
    Sequential,
    Shuffled,
    TokenBudget,
    Weighted,
    Windowed,
)

#: Each for a number of samples.
ORDERS: dict[str, Callable[[int], Order]] = {
    "Sequential": lambda samples: Sequential(),
    "Permuted": lambda samples: Permuted(1),
    "Shuffled": lambda samples: Shuffled(1),
    "Weighted": lambda samples: Weighted(1 + np.arange(samples) % 4, 1),
}
#: All with about 64 samples in a batch.
RULES: dict[str, Rule] = {
    "FixedSize": FixedSize(64),
    "Bucketed": Bucketed("x", 64),
    "Bucketed, quantiles": Bucketed("x", 64, quantiles=8),
    "TokenBudget": TokenBudget("x", 2048),
    "TokenBudget, unpadded": TokenBudget("x", 2048, padded=False),
    "Packed": Packed("x", 256),
    "Windowed": Windowed("x", 64),
}
EVEN = ("pad", "drop")
#: Samples written at a time.
AT_ONCE = 2**20


@dataclass(frozen=True)
class Resumed:
    """One cell of the table: milliseconds to the first batch, from each of some states."""

    rule: str
    order: str
    wall: list[float]
    work: list[float]


def make(folder: Path, samples: int) -> rs.Store:
    """The store."""
    rng = np.random.default_rng(0)
    store = rs.create(folder / "store", {"x": rs.Field("bytes")})
    with store.writer() as writer:
        for start in range(0, samples, AT_ONCE):
            lengths = rng.integers(8, 56, min(AT_ONCE, samples - start))
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            values = rng.integers(97, 113, int(offsets[-1]), np.uint8)
            writer.extend_batch({"x": rs.RaggedBatch(values, offsets)})
    return store


def resume(
    path: Path, rule: str, order: str, even: Any, world_size: int, state: dict[str, Any]
) -> tuple[float, float]:
    """Milliseconds to the first batch: waited, and worked by all threads."""
    with rs.open(path) as store:
        drawn = ORDERS[order](len(store))
        wall, work = time.perf_counter(), time.process_time()
        loader = Loader(
            store, order=drawn, batch=RULES[rule], rank=1, world_size=world_size, even=even
        )
        loader.load_state_dict(state)
        batches = iter(loader)
        next(batches)
        times = (time.perf_counter() - wall) * 1e3, (time.process_time() - work) * 1e3
        del batches
    return times


def measure(store: rs.Store, rule: str, order: str, world_size: int, runs: int) -> Resumed:
    """One rule under one order."""
    loader = Loader(
        store, order=ORDERS[order](len(store)), batch=RULES[rule], world_size=world_size
    )
    loader.load_state_dict(loader.state_after(len(store) // (2 * 64 * world_size)))
    states = [loader.state_dict() for _ in zip(range(runs), loader, strict=False)]
    spawn, times = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as fresh:
        for state, even in zip(states, itertools.cycle(EVEN), strict=False):
            done = fresh.submit(resume, store.path, rule, order, even, world_size, state)
            times.append(done.result())
    wall, work = zip(*times, strict=True)
    return Resumed(rule, order, list(wall), list(work))


def summary(milliseconds: list[float]) -> str:
    parts = min(milliseconds), statistics.median(milliseconds), max(milliseconds)
    return "".join(f"{part:>6.0f}" for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--world-size", type=int, default=4)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--only", nargs="+", default=[], help="words in the names")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{'':33}{'wall':>18}{'work':>20}")
    cells = []
    with tempfile.TemporaryDirectory() as folder, make(Path(folder), options.samples) as store:
        for order in ORDERS:
            for rule in RULES:
                if all(word in f"{rule} {order}" for word in options.only):
                    cell = measure(store, rule, order, options.world_size, options.runs)
                    print(f"{rule:22} {order:10}{summary(cell.wall)}  {summary(cell.work)}")
                    cells.append(cell)
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What many samples and many segments cost: opening, single samples, a commit.

    python benchmarks/scale.py [--samples 10000000] [--segments 1000] [--runs 5] [--json OUT.json]

Three stores of byte strings, of 8 to 55 bytes each, are made in a temporary folder: 100,000 samples
in one segment, as many as asked for in one, and as many segments as asked for of 100 samples, each
committed by itself. Each run is a new process for each store. The files stay in the page cache.

    open      milliseconds of `rs.open`
    first     and to the first sample
    memory    MB that the process has more once it is open, and has its first sample
    get       microseconds of a random sample once 20,000 others were got, the median of 2,000:
    held      in a budget in which no chunk is held, and in one in which all are
    commit    milliseconds to append 1,000 samples and commit them, and kB that were written
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import raggedstore as rs

#: Samples of the store that the others are held against, of a segment of many, and of a commit.
FEW, EACH, ADDED = 100_000, 100, 1_000
#: Samples written at a time, got one by one, and got before that.
AT_ONCE, GETS, BEFORE = 2**20, 2_000, 20_000


@dataclass(frozen=True)
class Costs:
    """What one store costs; medians."""

    open_ms: float
    first_ms: float
    open_mb: float
    first_mb: float
    get_us: float
    held_us: float
    commit_ms: float
    commit_kb: float


def strings(rng: np.random.Generator, count: int) -> rs.RaggedBatch:
    """So many byte strings."""
    offsets = np.concatenate([[0], np.cumsum(rng.integers(8, 56, count))])
    return rs.RaggedBatch(rng.integers(97, 113, int(offsets[-1]), np.uint8), offsets)


def parts(samples: int) -> Iterator[int]:
    """How many samples to write at a time."""
    for start in range(0, samples, AT_ONCE):
        yield min(AT_ONCE, samples - start)


def make(path: Path, commits: list[int]) -> None:
    """A store of so many samples each commit."""
    rng = np.random.default_rng(0)
    with rs.create(path, {"x": rs.Field("bytes")}) as store:
        for samples in commits:
            with store.writer() as writer:
                for count in parts(samples):
                    writer.extend_batch({"x": strings(rng, count)})


def resident() -> float:
    """MB of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def written() -> float:
    """kB that this process has written."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1]) / 1e3


def get(path: Path, budget: str, seed: int) -> float:
    """The median of single samples after others, in microseconds."""
    times = []
    with rs.open(path, budget=budget) as store:
        rng = np.random.default_rng(seed)
        for i in rng.integers(0, len(store), BEFORE + GETS).tolist():
            begin = time.perf_counter()
            store[i]
            times.append(time.perf_counter() - begin)
    return statistics.median(times[BEFORE:]) * 1e6


def measure(path: Path, other: Path, seed: int) -> Costs:
    """One store, after what happens only once in a process has happened to the `other`."""
    rng = np.random.default_rng(seed)
    with rs.open(other, "a") as store:
        store[0]
        with store.writer() as writer:
            writer.extend_batch({"x": strings(rng, 1)})
    before, begin = resident(), time.perf_counter()
    store = rs.open(path, "a")
    opened, open_mb = time.perf_counter(), resident()
    store[len(store) // 2]
    first, first_mb = time.perf_counter(), resident()
    added = strings(rng, ADDED)
    kb, start = written(), time.perf_counter()
    with store.writer() as writer:
        writer.extend_batch({"x": added})
    done = time.perf_counter()
    kb = written() - kb
    store.close()
    return Costs(
        (opened - begin) * 1e3,
        (first - begin) * 1e3,
        open_mb - before,
        first_mb - before,
        get(path, "1kB", seed),
        get(path, "4GB", seed),
        (done - start) * 1e3,
        kb,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--segments", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plans = {
        f"{FEW:,} samples": [FEW],
        f"{options.samples:,} samples": [options.samples],
        f"{options.segments:,} segments": [EACH] * options.segments,
    }
    found: dict[str, list[Costs]] = {name: [] for name in plans}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "other", [1])
        for name, commits in plans.items():
            make(Path(folder) / name, commits)
        with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as fresh:
            for run in range(options.runs):
                for name in plans:
                    job = Path(folder) / name, Path(folder) / "other", run
                    found[name].append(fresh.submit(measure, *job).result())
    cells = {
        name: Costs(
            *(statistics.median(getattr(run, each.name) for run in runs) for each in fields(Costs))
        )
        for name, runs in found.items()
    }
    print(f"{'':20}" + "".join(f"{each.name:>12}" for each in fields(Costs)))
    for name, cell in cells.items():
        print(f"{name:20}" + "".join(f"{value:12.1f}" for value in asdict(cell).values()))
    if options.json:
        shown = {name: asdict(cell) for name, cell in cells.items()}
        options.json.write_text(json.dumps(shown, indent=1) + "\n")


if __name__ == "__main__":
    main()

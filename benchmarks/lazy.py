"""Arrays on disk: `raggedstore.lazy` beside plain Dask over h5py, loops over h5py, and np.memmap.

    python benchmarks/lazy.py [--rows 1000] [--columns 100000] [--runs 5] [--json OUT.json]
                              [--only "contiguous;square"]

One float32 matrix, made at random, in files that stay in the page cache: as .npy, and as HDF5 in
one piece, in the chunks that h5py chooses, in square ones, and these compressed by Blosc2 and by
gzip. Of each file

    mean, std   of all values
    windows     twenty of 256 x 4096, one by one
    product     with a vector

by each way that there is, checked before it is timed, taking turns; medians of the runs. A ratio is
the time of the best other way by that of `lazy`: above 1 is better. Loops read a row at a time,
as they are mostly written; where one would take minutes, 1 / 20 of its rows are timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import hdf5plugin
import numpy as np
from rich.console import Console
from rich.table import Table

from raggedstore import lazy

WINDOW = (256, 4096)
WINDOWS = 20
SLOW = 20

Way = Callable[[], Any]


def layouts(rows: int, columns: int) -> dict[str, dict[str, Any]]:
    """What `create_dataset` is given for each of the files."""
    square = (min(100, rows), min(1000, columns))
    return {
        "contiguous": {},
        "chunks h5py chooses": {"chunks": True},
        "square": {"chunks": square},
        "square, blosc2": {"chunks": square, **hdf5plugin.Blosc2("lz4")},
        "square, gzip": {"chunks": square, "compression": "gzip", "shuffle": True},
        "rows, blosc2": {"chunks": (1, columns), **hdf5plugin.Blosc2("lz4")},
    }


def make(folder: Path, rows: int, columns: int, only: list[str]) -> dict[str, Path]:
    """The files; values are a random walk of 64ths along each row, which compresses to a half."""
    rng = np.random.default_rng(0)
    values = rng.integers(-99, 99, (rows, columns)).astype(np.float32) / 64
    np.cumsum(values, axis=1, out=values)
    np.save(folder / "memmap.npy", values)
    paths = {}
    for name, options in layouts(rows, columns).items():
        if not only or name in only:
            paths[name] = folder / f"{len(paths)}.h5"
            with h5py.File(paths[name], "w") as file:
                file.create_dataset("x", data=values, **options)
    return paths


def ways(x: Any, vector: np.ndarray, corners: list[tuple[int, int]]) -> dict[str, dict[str, Way]]:
    """For each question the ways to answer it; `x` is a dataset of h5py, or a memory map."""
    adapted, plain = lazy.adapt(x), da.from_array(x)
    windows = [np.s_[i : i + WINDOW[0], j : j + WINDOW[1]] for i, j in corners]

    def looped(every: int) -> tuple[float, float]:
        total = squares = 0.0
        for i in range(0, len(x), every):
            row = np.asarray(x[i], np.float64)
            total, squares = total + row.sum(), squares + (row * row).sum()
        count = len(x) // every * x.shape[1]
        return total / count, np.sqrt(squares / count - (total / count) ** 2)

    def multiplied(every: int) -> np.ndarray:
        out = np.zeros(len(x), np.float32)
        for i in range(0, len(x), every):
            out[i] = x[i] @ vector
        return out

    name = "np.memmap" if isinstance(x, np.memmap) else "h5py"
    return {
        "mean, std": {
            "lazy": lambda: lazy.compute([lazy.mean(adapted), lazy.std(adapted)]),
            "dask": lambda: da.compute(plain.mean(dtype="f8"), plain.std(dtype="f8")),
            f"{name}, rows": lambda every=1: looped(every),  # type: ignore[misc]
        },
        "windows": {
            "lazy": lambda: [adapted[key].compute() for key in windows],
            "dask": lambda: [plain[key].compute() for key in windows],
            name: lambda: [np.array(x[key]) for key in windows],
        },
        "product": {
            "lazy": lambda: lazy.matmul(x, vector).compute(),
            "dask": lambda: (plain @ vector).compute(),
            f"{name}, rows": lambda every=1: multiplied(every),  # type: ignore[misc]
        },
    }


def seconds(way: Way, **options: int) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    way(**options)
    return time.perf_counter() - start


def agree(answers: dict[str, Any]) -> None:
    """AssertionError unless all ways give the same."""
    first, *others = answers.values()
    for other in others:
        for a, b in zip(first, other, strict=True):
            scale = float(np.abs(np.asarray(a, "f8")).max())
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * scale)


def measured(x: Any, runs: int) -> dict[str, dict[str, float]]:
    """Median seconds for each question and way."""
    rng = np.random.default_rng(1)
    vector = rng.standard_normal(x.shape[1]).astype(np.float32)
    last = [max(n - size, 1) for n, size in zip(x.shape, WINDOW, strict=True)]
    corners = [(int(rng.integers(last[0])), int(rng.integers(last[1]))) for _ in range(WINDOWS)]
    results: dict[str, dict[str, float]] = {}
    for question, how in ways(x, vector, corners).items():
        slow = {n for n, way in how.items() if "rows" in n and seconds(way, every=SLOW) > 0.25}
        agree({name: way() for name, way in how.items() if name not in slow})
        times: dict[str, list[float]] = {name: [] for name in how}
        for _ in range(runs):
            for name, way in how.items():
                took = seconds(way, every=SLOW) * SLOW if name in slow else seconds(way)
                times[name].append(took)
        results[question] = {name: statistics.median(column) for name, column in times.items()}
    return results


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """A table of milliseconds."""
    table = Table("file", "question", "lazy", "dask", "a loop, NumPy", "ratio")
    for file, questions in results.items():
        for question, times in questions.items():
            mine, *others = times.values()
            cells = [f"{1000 * value:,.1f} ms" for value in times.values()]
            table.add_row(file, question, *cells, f"{min(others) / mine:.2f}")
        table.add_section()
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(";"), default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), options.rows, options.columns, options.only)
        results["npy"] = measured(np.load(Path(folder) / "memmap.npy", mmap_mode="r"), options.runs)
        for name, path in paths.items():
            with h5py.File(path, "r") as file:
                results[name] = measured(file["x"], options.runs)
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

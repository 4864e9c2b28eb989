"""How many token-sized samples a second a store takes: one at a time, and in bulk.

    python benchmarks/append.py [TOKENS.npz] [--runs 5] [--json OUT.json]

TOKENS.npz holds `values` and `offsets`; without it the lengths are drawn at random (geometric,
mean 15) and the values from a Zipf distribution, which is what word ids look like. One commit a
run; the figures are medians, without and with the commit.
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

import numpy as np

import raggedstore as rs
from raggedstore.batch import offsets_of


def corpus(path: Path | None) -> rs.RaggedBatch:
    """The tokens of a file, or random ones."""
    if path is not None:
        with np.load(path) as arrays:
            return rs.RaggedBatch(arrays["values"], arrays["offsets"])
    rng = np.random.default_rng(0)
    lengths = rng.geometric(1 / 15, 117_659)
    values = np.minimum(rng.zipf(1.3, int(lengths.sum())), 65_535).astype(np.uint16)
    return rs.RaggedBatch(values, offsets_of(lengths))


def seconds(tokens: rs.RaggedBatch, write: Callable[[Any], None]) -> tuple[float, float]:
    """Time of writing into a new store, without and with the commit."""
    with tempfile.TemporaryDirectory() as folder:
        store = rs.create(Path(folder) / "store", {"tokens": rs.Field(tokens.dtype, (None,))})
        with store.writer() as writer:
            start = time.perf_counter()
            write(writer)
            written = time.perf_counter() - start
            writer.commit()
            return written, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokens", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tokens = corpus(options.tokens)
    samples = tokens.to_list()

    def one_at_a_time(writer: Any) -> None:
        for sample in samples:
            writer.append({"tokens": sample})

    ways = {
        "append, one at a time": one_at_a_time,
        "extend, from an iterable": lambda w: w.extend({"tokens": s} for s in samples),
        "extend_batch": lambda w: w.extend_batch({"tokens": tokens}),
    }
    print(f"{len(tokens)} samples, {tokens.values.nbytes / 1e6:.1f} MB; samples a second")
    results = {}
    for name, write in ways.items():
        runs = [seconds(tokens, write) for _ in range(options.runs)]
        rates = [len(tokens) / statistics.median(column) for column in zip(*runs, strict=True)]
        results[name] = {"written": rates[0], "with_commit": rates[1]}
        print(f"{name:26} {rates[0]:>12,.0f}   with its commit {rates[1]:>12,.0f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

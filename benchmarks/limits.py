"""The limits beside the peers: how fast the same chunks decode from memory, and a plain copy.

Nobody who keeps data in these chunks reads it faster than Blosc2 decodes them with every core
busy, and nobody who gives a copy of the data is faster than `memcpy`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from benchmarks.corpora import Corpus
from raggedstore.segment.codec import decode_frame
from raggedstore.segment.table import SegmentTable, checksum

PROFILES = ("fast", "balanced", "small")
MEMCPY = "limit: memcpy"
#: Name of each limit, and the peer whose files it needs.
LIMITS: dict[str, str | None] = {MEMCPY: None}
for _profile in PROFILES:
    LIMITS[f"limit: decode {_profile}"] = f"raggedstore {_profile}"
    LIMITS[f"limit: decode {_profile}, checked"] = f"raggedstore {_profile}"


def measure(name: str, folder: Path, corpus: Corpus, least: float) -> dict[str, float]:
    """Bytes of values a second, as an epoch in order would count them; for `least` seconds."""
    run = _copy(corpus) if name == MEMCPY else _decode(folder, check=name.endswith("checked"))
    run()  # pages of the buffer, threads of the pool
    times = []
    while sum(times) < least or len(times) < 3:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return {"sequential": corpus.nbytes / float(np.median(times))}


def _copy(corpus: Corpus) -> Callable[[], None]:
    out = np.empty_like(corpus.values)
    return lambda: np.copyto(out, corpus.values)


def _decode(folder: Path, *, check: bool) -> Callable[[], None]:
    """Decodes every chunk of a store's segments, data and side columns, into one buffer."""
    blosc2.set_releasegil(True)
    chunks: list[tuple[memoryview, npt.NDArray[np.uint8], int]] = []
    frames: list[tuple[memoryview, int, int]] = []
    for path in sorted((folder / "store" / "segments").glob("*.h5")):
        data = memoryview(path.read_bytes())
        table = SegmentTable.loads(path.with_suffix(".idx").read_bytes(), file_bytes=len(data))
        for dataset in (d for field in table.datasets.values() for d in field.values()):
            size = dataset.chunk_rows * dataset.column.row_nbytes
            for entry in dataset.entries.tolist():
                offset, stored, digest = entry
                frames.append((data[offset : offset + stored], size, digest))
    out = np.empty(sum(size for _, size, _ in frames), np.uint8)
    at = 0
    for frame, size, digest in frames:
        chunks.append((frame, out[at : at + size], digest))
        at += size

    cores = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(cores)

    def work(ticket: Any) -> None:
        for i in ticket:
            if i >= len(chunks):
                return
            frame, place, digest = chunks[i]
            if check and checksum(frame) != digest:
                raise ValueError(f"chunk {i} is damaged")
            decode_frame(frame, place)

    def run() -> None:
        ticket = itertools.count()  # shared: whoever is free takes the next chunk
        for done in [pool.submit(work, ticket) for _ in range(cores)]:
            done.result()

    return run

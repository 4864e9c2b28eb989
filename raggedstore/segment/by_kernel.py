"""Gathering where there is the compiled kernel: two calls plan a batch, and one a thread reads it.

Chunks in the cache are copied from. Of all others blocks are decoded, whole chunks among them: a
group of blocks that fits the processor's cache is read, checked, decoded and copied from, and then
the next. A chunk of which that was asked so often that to hold it would have cost less is decoded
whole, and kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.errors import CorruptionError
from raggedstore.segment import compiled
from raggedstore.segment.source import TRIFLE, ChunkSource, Task

__all__ = ["tasks_of"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

#: Bytes to copy from chunks in the cache that make a task of their own.
_COPIES = 2**19


def tasks_of(
    starts: Int64s,
    stops: Int64s,
    places: Int64s,
    out: npt.NDArray[Any],
    source: ChunkSource,
    threads: int,
    otherwise: Task,
) -> list[Task]:
    """What puts the rows of ranges to their places in `out`, each task a part of it.

    Parameters
    ----------
    starts, stops, places, out, source
        As for `gather`, of a source that has blocks.
    threads
        How many will be at the tasks.
    otherwise
        Does it all without the kernel: where something is wrong, it says what, or makes do.
    """
    chunk_nbytes = source.chunk_rows * source.row_nbytes
    cut = compiled.cut(
        starts,
        stops,
        places,
        rows=source.rows,
        row=source.row_nbytes,
        chunk=chunk_nbytes,
        block=source.block_nbytes,
    )
    to = out.reshape(-1).view(np.uint8)
    held = source.held(cut.chunks)
    missing = [i for i, rows in enumerate(held) if rows is None]
    whole = cut.whole(chunk_nbytes) if chunk_nbytes > TRIFLE else [False] * len(held)
    most = chunk_nbytes // source.block_nbytes
    if source.is_side:
        most = 3 * most // 4
    by_blocks = [False] * len(held)
    tasks: list[Task] = []
    for i in missing:
        number = cut.chunks[i]
        if whole[i]:
            by_blocks[i] = source.has_blocks(number)
        elif cut.blocks[i] <= most:
            by_blocks[i] = source.rent(number, cut.blocks[i] * source.block_nbytes)
        if not by_blocks[i]:
            tasks.append(partial(_copy_fetched, cut, i, to, source, otherwise, keep=not whole[i]))
    if any(by_blocks):
        task, parts = source.decode_laid_out(cut, by_blocks, to, otherwise)
        tasks += [task] * min(parts, threads)
    if len(missing) == len(held):
        return tasks
    # Copies come first: what they copy from may be dropped from the cache by what follows.
    return [*_copies(cut, held, to), *tasks]


def _copies(cut: compiled.Cut, held: list[npt.NDArray[Any] | None], out: Bytes) -> Iterator[Task]:
    """Copy pieces of the runs whose chunks are `held`."""
    size, some, rows = 0, [], []
    sizes = cut.sizes()
    for i, chunk in enumerate(held):
        if chunk is not None:
            size += sizes[i]
            some.append(i)
            rows.append(chunk)
        if size >= _COPIES or (some and i == len(held) - 1):
            yield partial(_copy_runs, cut, some, rows, out)
            size, some, rows = 0, [], []


def _copy_runs(
    cut: compiled.Cut, runs: list[int], rows: list[npt.NDArray[Any]], out: Bytes
) -> None:
    edges, low, count, place = cut.of(runs)
    chunks = [chunk.reshape(-1).view(np.uint8) for chunk in rows]
    kernel.compiled().copy(chunks, 1, edges, low, count, place, out)


def _copy_fetched(
    cut: compiled.Cut, run: int, out: Bytes, source: ChunkSource, otherwise: Task, *, keep: bool
) -> None:
    """Decode a chunk whole, to `keep` it or not, and copy the pieces of a run from it."""
    try:
        if keep:
            _copy_runs(cut, [run], [source.fetch(cut.chunks[run])], out)
        else:
            *_, place = cut.of([run])
            nbytes = source.chunk_rows * source.row_nbytes
            source.decode_into(cut.chunks[run], out[int(place[0]) : int(place[0]) + nbytes])
    except CorruptionError:  # what is wanted may lie in blocks that are whole
        otherwise()

"""Rows from chunks into one buffer: plan a whole batch in NumPy, then one visit per chunk.

The caller asks for row ranges of one dataset, to lie one after another in `out`. Ranges that
continue one another are merged; each is cut at chunk borders into pieces; pieces are grouped by
chunk, in file order, and each chunk is decoded once. A chunk that is wanted whole goes straight
into place; any other is decoded apart, kept in the cache, and its pieces are copied (all tiny
pieces of a chunk in one fancy assignment, so that no Python work is done per sample).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import expand_ranges, offsets_of

__all__ = ["gather"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

#: Pieces shorter than this many rows on average are copied together by index.
_TINY = 64


def merge_ranges(starts: Int64s, stops: Int64s) -> tuple[Int64s, Int64s]:
    """The same rows in the same order as fewer ranges; empty ones are dropped."""
    full = stops > starts
    if not full.all():
        starts, stops = starts[full], stops[full]
    if len(starts) < 2:
        return starts, stops
    breaks = np.flatnonzero(starts[1:] != stops[:-1])
    return (
        starts[np.concatenate([[0], breaks + 1])],
        stops[np.concatenate([breaks, [len(stops) - 1]])],
    )


def cut_at_chunks(
    starts: Int64s, stops: Int64s, chunk_rows: int
) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Pieces, each within one chunk: (chunk number, first row in it, rows, place in the output)."""
    first, last = starts // chunk_rows, (stops - 1) // chunk_rows
    if (first == last).all():
        return first, starts - first * chunk_rows, stops - starts, offsets_of(stops - starts)[:-1]
    counts = last - first + 1
    chunks = expand_ranges(first, counts)
    low = np.maximum(np.repeat(starts, counts), chunks * chunk_rows)
    high = np.minimum(np.repeat(stops, counts), (chunks + 1) * chunk_rows)
    return chunks, low - chunks * chunk_rows, high - low, offsets_of(high - low)[:-1]


def gather(
    starts: Int64s,
    stops: Int64s,
    out: npt.NDArray[Any],
    *,
    rows: int,
    chunk_rows: int,
    fetch: Callable[[int], npt.NDArray[Any]],
    decode_into: Callable[[int, Bytes], None],
    pool: ThreadPoolExecutor | None,
) -> None:
    """Fill `out` with the rows of the ranges ``[starts, stops)``, one after another.

    Parameters
    ----------
    starts, stops
        (k,) int64, within ``[0, rows]``.
    out
        (total, ...) C-contiguous.
    rows, chunk_rows
        Length of the dataset and of its chunks.
    fetch
        The rows of a chunk, decoded, from the cache where it is there.
    decode_into
        Decode a chunk into raw bytes of exactly its size, past the cache.
    pool
        Threads to decode in, or None for the caller's own.
    """
    starts, stops = merge_ranges(starts, stops)
    if not len(starts):
        return
    chunks, low, count, place = cut_at_chunks(starts, stops, chunk_rows)
    if len(chunks) > 1 and (np.diff(chunks) < 0).any():
        order = np.argsort(chunks, kind="stable")
        chunks, low, count, place = chunks[order], low[order], count[order], place[order]
    edges = np.flatnonzero(np.diff(chunks)) + 1
    groups = np.concatenate([[0], edges, [len(chunks)]]).tolist()

    def visit(a: int, b: int) -> None:
        number = int(chunks[a])
        if b - a == 1:
            size, at = int(count[a]), int(place[a])
            if size == chunk_rows and out.nbytes:
                decode_into(number, out[at : at + size].reshape(-1).view(np.uint8))
                return
            first = int(low[a])
            out[at : at + size] = fetch(number)[first : first + size]
            return
        decoded = fetch(number)
        total = int(count[a:b].sum())
        if total < _TINY * (b - a):
            source = expand_ranges(low[a:b], count[a:b])
            out[expand_ranges(place[a:b], count[a:b])] = decoded[source]
            return
        pieces = zip(low[a:b].tolist(), count[a:b].tolist(), place[a:b].tolist(), strict=True)
        for first, size, at in pieces:
            out[at : at + size] = decoded[first : first + size]

    spans = list(itertools.pairwise(groups))
    if pool is None or len(spans) < 2:
        for span in spans:
            visit(*span)
        return
    for done in [pool.submit(visit, *span) for span in spans]:
        done.result()

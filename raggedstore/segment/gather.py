"""Rows from chunks into one buffer: a whole batch is planned, then read in as few calls as may be.

The caller asks for row ranges of one dataset, and says where each is to lie in `out`. Ranges that
continue one another are merged; each is cut at chunk borders into pieces; pieces are put in file
order. What then happens to a chunk depends on how much of it is wanted:

* whole: it is decoded straight into place
* it lies in the cache: its pieces are copied from there
* little of it: the blocks that hold the pieces are decoded, many chunks' blocks in one call, and
  the pieces are copied from them
* most of it, or, over time, as much as it holds or more: it is decoded whole and kept in the cache

Where the compiled kernel is, all that is its work (`by_kernel.py`). Here is what NumPy does where
it is not, where chunks have no blocks, or where something is wrong. All tiny pieces of a chunk are
copied in one fancy assignment, so that no Python work is done per sample where a batch holds
thousands.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.batch import copy_ranges, expand_ranges, offsets_of
from raggedstore.errors import CorruptionError
from raggedstore.indexing import stable_order
from raggedstore.segment.by_kernel import (
    copy_compact,
    copy_held,
    copy_whole,
    reach,
    tasks_of,
)
from raggedstore.segment.source import TRIFLE, ChunkSource
from raggedstore.segment.tasks import Task, run

__all__ = ["gather"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

#: Pieces shorter than this many rows on average are copied together by index.
_TINY = 64
#: Bytes of blocks that are decoded in one call: what Python does for each call is little beside
#: it then, and there are calls enough to share among threads.
_JOB = 2**21
#: Less than this to decode or copy is not worth another thread.
_THREADED = 2**17


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Runs of rows, each within one chunk, in file order."""

    chunk: Int64s
    low: Int64s  #: first row, within the chunk
    count: Int64s
    place: Int64s  #: first row, in the output


def merge_ranges(starts: Int64s, stops: Int64s, places: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """The same rows to the same places as fewer ranges; empty ones are dropped."""
    full = stops > starts
    if not full.all():
        starts, stops, places = starts[full], stops[full], places[full]
    if len(starts) < 2:
        return starts, stops, places
    # One that continues another lies as far from it as its rows do: neither goes back.
    apart = starts[1:] != stops[:-1]
    apart |= places[1:] - places[:-1] != starts[1:] - starts[:-1]
    breaks = np.flatnonzero(apart)
    firsts = np.concatenate([[0], breaks + 1])
    return starts[firsts], stops[np.concatenate([breaks, [len(stops) - 1]])], places[firsts]


def cut_at_chunks(starts: Int64s, stops: Int64s, places: Int64s, chunk_rows: int) -> _Pieces:
    """The pieces of ranges, in the order of the ranges."""
    first, last = starts // chunk_rows, (stops - 1) // chunk_rows
    if (first == last).all():
        return _Pieces(first, starts - first * chunk_rows, stops - starts, places)
    counts = last - first + 1
    chunks = expand_ranges(first, counts)
    low = np.maximum(np.repeat(starts, counts), chunks * chunk_rows)
    high = np.minimum(np.repeat(stops, counts), (chunks + 1) * chunk_rows)
    place = low + np.repeat(places - starts, counts)
    return _Pieces(chunks, low - chunks * chunk_rows, high - low, place)


def gather(
    starts: Int64s,
    stops: Int64s,
    out: npt.NDArray[Any],
    source: ChunkSource,
    pool: ThreadPoolExecutor | None,
    threads: int = 2,
    places: Int64s | None = None,
) -> int:
    """Put the rows of the ranges ``[starts, stops)`` into `out`, and say how many they are.

    Parameters
    ----------
    starts, stops
        (k,) int64, within the rows of `source`.
    out
        (n, ...) C-contiguous.
    pool, threads
        Where to decode besides the caller's own thread, or None; and in how many threads in all.
    places
        (k,) the row of `out` that each range begins at; one after another, and no row of it is
        left over, if not given.
    """
    side_by_side = places is None
    total = len(out) if side_by_side else int((stops - starts).sum())
    if not total:
        return 0
    numbers = reach(starts, stops, source) if source.block_nbytes else range(0)
    if copy_held(starts, stops, places, out, source, numbers):
        return total
    if places is None:
        places = offsets_of(stops - starts)[:-1]
    if kernel.is_there() and source.block_nbytes:
        if pool is None or _is_little(total, len(starts), source):
            pool, threads = None, 1

        def read(starts: Int64s, stops: Int64s, out: npt.NDArray[Any], places: Int64s) -> None:
            gather(starts, stops, out, source, pool, threads, places)

        what = (starts, stops, places, out, source, numbers, total)
        if copy_whole(*what, pool, threads) or copy_compact(*what, read):
            return total
        otherwise = partial(_gather, starts, stops, out, source, None, 1, places)
        tasks = tasks_of(starts, stops, places, out, source, threads, otherwise)
        run(tasks, pool, threads)
    else:
        _gather(starts, stops, out, source, pool, threads, places, side_by_side=side_by_side)
    return total


def _gather(
    starts: Int64s,
    stops: Int64s,
    out: npt.NDArray[Any],
    source: ChunkSource,
    pool: ThreadPoolExecutor | None,
    threads: int,
    places: Int64s,
    *,
    side_by_side: bool = False,
) -> None:
    """`gather` without the kernel; `side_by_side` says that places are where they must be."""
    starts, stops, places = merge_ranges(starts, stops, places)
    total = int((stops - starts).sum())
    if _is_little(total, len(starts), source):
        pool = None
    pieces = cut_at_chunks(starts, stops, places, source.chunk_rows)
    keys = pieces.chunk
    if source.block_nbytes:
        chunk_nbytes = source.chunk_rows * source.row_nbytes
        keys = (keys * chunk_nbytes + pieces.low * source.row_nbytes) // source.block_nbytes
    tiny = total < _TINY * len(keys)
    if (keys[1:] >= keys[:-1]).all() and (side_by_side or not tiny):
        run(_tasks(pieces, out, source), pool, threads)
        return
    order = stable_order(keys)
    count = pieces.count[order]
    offsets = offsets_of(count)
    # Tiny pieces: each chunk's are copied side by side, and put to where they belong at last.
    rows, place = out, pieces.place[order]
    if tiny:
        rows, place = np.empty((total, *out.shape[1:]), out.dtype), offsets[:-1]
    in_order = _Pieces(pieces.chunk[order], pieces.low[order], count, place)
    run(_tasks(in_order, rows, source), pool, threads)
    if tiny and side_by_side:
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        where = np.append(pieces.place, total)
        copy_ranges(rows, offsets[:-1][back], offsets[1:][back], where, out)
    elif tiny:
        out[expand_ranges(pieces.place[order], count)] = rows


def _is_little(rows: int, ranges: int, source: ChunkSource) -> bool:
    """Whether so many rows in so many ranges are not worth another thread."""
    return max(rows * source.row_nbytes, ranges * source.block_nbytes) <= _THREADED


def _tasks(pieces: _Pieces, out: npt.NDArray[Any], source: ChunkSource) -> list[Task]:
    """What is to be done, each part independent of the others."""
    chunk = pieces.chunk
    edges = [0, *(np.flatnonzero(chunk[1:] != chunk[:-1]) + 1).tolist(), len(chunk)]
    numbers = chunk[edges[:-1]].tolist()
    sizes = pieces.count[edges[:-1]].tolist()
    plan = _block_plan(pieces, source) if source.block_nbytes else None
    needed = None if plan is None else np.add.reduceat(plan.fresh, edges[:-1]).tolist()
    chunk_nbytes = source.chunk_rows * source.row_nbytes
    whole_blocks = 0 if plan is None else plan.per_chunk
    tasks: list[Task] = []
    job: list[tuple[int, int]] = []
    job_blocks = 0
    for i, number in enumerate(numbers):
        a, b = edges[i], edges[i + 1]
        decoded = source.cached(number)
        if decoded is not None:
            _copy(pieces, a, b, out, decoded, pieces.low)
        elif b - a == 1 and sizes[i] == source.chunk_rows and chunk_nbytes > TRIFLE:
            whole = _whole(source, number, out, int(pieces.place[a]), sizes[i])
            tasks.append(_or_blocks(whole, source, plan, pieces, a, b, out))
        elif (
            plan is not None
            and needed is not None
            and 4 * needed[i] <= 3 * whole_blocks
            and source.rent([number], [needed[i]])[0]
        ):
            _add(job, a, b)
            job_blocks += needed[i]
            if job_blocks * source.block_nbytes >= _JOB:
                tasks.append(_blocks(source, plan, pieces, job, out))
                job, job_blocks = [], 0
        else:
            fetched = _fetched(source, pieces, a, b, out)
            tasks.append(_or_blocks(fetched, source, plan, pieces, a, b, out))
    if job and plan is not None:
        tasks.append(_blocks(source, plan, pieces, job, out))
    return tasks


def _add(runs: list[tuple[int, int]], a: int, b: int) -> None:
    """Add the run from a to b, to the last where it continues that."""
    if runs and runs[-1][1] == a:
        runs[-1] = (runs[-1][0], b)
    else:
        runs.append((a, b))


def _or_blocks(
    task: Task,
    source: ChunkSource,
    plan: _BlockPlan | None,
    pieces: _Pieces,
    a: int,
    b: int,
    out: npt.NDArray[Any],
) -> Task:
    """Where a chunk is damaged, what is wanted of it may lie in blocks that are not."""
    if plan is None:
        return task
    blocks = _blocks(source, plan, pieces, [(a, b)], out)

    def either() -> None:
        try:
            task()
        except CorruptionError:
            blocks()

    return either


def _whole(source: ChunkSource, number: int, out: npt.NDArray[Any], at: int, rows: int) -> Task:
    return lambda: source.decode_into(number, out[at : at + rows].reshape(-1).view(np.uint8))


def _fetched(source: ChunkSource, pieces: _Pieces, a: int, b: int, out: npt.NDArray[Any]) -> Task:
    return lambda: _copy(pieces, a, b, out, source.fetch(int(pieces.chunk[a])), pieces.low)


def _which(runs: list[tuple[int, int]]) -> slice | Int64s:
    """What takes the elements of some runs out of an array, each from and to."""
    if all(b == a for (_, b), (a, _) in itertools.pairwise(runs)):
        return slice(runs[0][0], runs[-1][1])
    return np.concatenate([np.arange(a, b) for a, b in runs])


def _copy(
    pieces: _Pieces, a: int, b: int, out: npt.NDArray[Any], rows: npt.NDArray[Any], low: Int64s
) -> None:
    """Copy the pieces from a to b, each from `rows` beginning at its `low`."""
    count, place = pieces.count, pieces.place
    if b - a == 1:
        first, size, at = int(low[a]), int(count[a]), int(place[a])
        out[at : at + size] = rows[first : first + size]
        return
    begin, end = int(place[a]), int(place[b - 1]) + int(count[b - 1])
    low, count, place = low[a:b], count[a:b], place[a:b]
    if kernel.copy_rows(rows, low, count, place, out):
        return
    tiny = end - begin < _TINY * (b - a)
    if tiny and (place[1:] == place[:-1] + count[:-1]).all():
        copy_ranges(rows, low, low + count, np.append(place, end) - begin, out[begin:end])
        return
    for first, size, at in zip(low.tolist(), count.tolist(), place.tolist(), strict=True):
        out[at : at + size] = rows[first : first + size]


@dataclass(frozen=True, slots=True)
class _BlockPlan:
    """Which blocks each piece lies in, numbered through all chunks."""

    per_chunk: int
    first: Int64s  #: the block that a piece begins in
    fresh_first: Int64s  #: the first of its blocks that no piece before it needs
    fresh: Int64s  #: how many such there are


def _block_plan(pieces: _Pieces, source: ChunkSource) -> _BlockPlan:
    per_chunk = source.chunk_rows * source.row_nbytes // source.block_nbytes
    base = pieces.chunk * per_chunk
    start = pieces.low * source.row_nbytes
    first = base + start // source.block_nbytes
    last = base + (start + pieces.count * source.row_nbytes - 1) // source.block_nbytes
    # Pieces are in the order of their first blocks, so what was needed before reaches up to here.
    reached = np.empty(len(first), np.int64)
    reached[0] = -1
    np.maximum.accumulate(last[:-1], out=reached[1:])
    fresh_first = np.maximum(first, reached + 1)
    return _BlockPlan(per_chunk, first, fresh_first, np.maximum(last - fresh_first + 1, 0))


def _block_layout(
    source: ChunkSource, plan: _BlockPlan, pieces: _Pieces, take: slice | Int64s
) -> tuple[Int64s, Int64s]:
    """The blocks that some pieces need, and at which byte of all of them each piece begins."""
    blocks = expand_ranges(plan.fresh_first[take], plan.fresh[take])
    first = plan.first[take]
    base = pieces.chunk[take] * plan.per_chunk
    within = pieces.low[take] * source.row_nbytes - (first - base) * source.block_nbytes
    return blocks, np.searchsorted(blocks, first) * source.block_nbytes + within


def _blocks(
    source: ChunkSource,
    plan: _BlockPlan,
    pieces: _Pieces,
    job: list[tuple[int, int]],
    out: npt.NDArray[Any],
) -> Task:
    """Decode the blocks of some chunks' pieces together, and copy the pieces from them."""

    def task() -> None:
        take = _which(job)
        blocks, at = _block_layout(source, plan, pieces, take)
        decoded: npt.NDArray[Any] = source.scratch(len(blocks) * source.block_nbytes)
        source.decode_blocks(blocks, decoded)
        count, place = pieces.count[take], pieces.place[take]
        if source.block_nbytes % source.row_nbytes:  # then pieces are found by byte, not by row
            rows, target = decoded, out.reshape(-1).view(np.uint8)
            count, place = count * source.row_nbytes, place * source.row_nbytes
        else:
            rows, target = decoded.view(out.dtype).reshape(-1, *out.shape[1:]), out
            at //= source.row_nbytes
        local = _Pieces(pieces.chunk[take], at, count, place)
        done = 0
        for a, b in job:  # the pieces of each lie side by side
            _copy(local, done, done + b - a, target, rows, at)
            done += b - a

    return task

"""Gathering where there is the compiled kernel: two calls plan a batch, and one a thread reads it.

Chunks in the cache are copied from. Of all others blocks are decoded, whole chunks among them: a
group of blocks that fits the processor's cache is read, checked, decoded and copied from, and then
the next. A chunk of which that was asked so often that to hold it would have cost less is decoded
whole, and kept.

Where all chunks are at hand, or much of them or of some blocks is wanted in little pieces, nothing
is planned: pieces are copied in the order that they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.batch import expand_ranges
from raggedstore.errors import CorruptionError
from raggedstore.segment import compiled, memory
from raggedstore.segment.source import TRIFLE, ChunkSource
from raggedstore.segment.tasks import Task, run

__all__ = ["copy_compact", "copy_held", "copy_whole", "reach", "tasks_of"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

#: Bytes to copy from chunks in the cache that make a task of their own.
_COPIES = 2**19
#: One in so many of many ranges is looked at first.
_EVERY = 32
#: Ranges that have so small a part of a block, on average, are little, and so many are many.
_LITTLE, _MANY = 64, 4096
#: Blocks of so many times the bytes that are wanted of them are worth decoding side by side, and
#: what they decode to is held besides the cache: so little.
_SPARSE, _COMPACT = 3, 2**25
#: Of a side column's chunk, less than this part is rows here and there.
_HERE_AND_THERE = 1 / 16


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
    most = [chunk_nbytes // source.block_nbytes] * len(held)
    if source.is_side:
        # It will be asked again: where much of it is wanted it is decoded whole, and kept. Not so
        # where few rows lie in nearly all blocks: a random order over millions would hold it all.
        few = _HERE_AND_THERE * chunk_nbytes
        most = [m if size < few else 3 * m // 4 for m, size in zip(most, cut.sizes(), strict=True)]
    by_blocks = [False] * len(held)
    tasks: list[Task] = []
    partly = [i for i in missing if not whole[i] and cut.blocks[i] <= most[i]]
    rented = source.rent([cut.chunks[i] for i in partly], [cut.blocks[i] for i in partly])
    for i, rent in zip(partly, rented, strict=True):
        by_blocks[i] = rent
    for i in missing:
        if whole[i]:
            by_blocks[i] = source.has_blocks(cut.chunks[i])
        if not by_blocks[i]:
            tasks.append(partial(_copy_fetched, cut, i, to, source, otherwise, keep=not whole[i]))
    if any(by_blocks):
        task, parts = source.decode_laid_out(cut, by_blocks, to, otherwise)
        tasks += [task] * min(parts, threads)
    if len(missing) == len(held):
        return tasks
    # Copies come first: what they copy from may be dropped from the cache by what follows.
    return [*_copies(cut, held, to), *tasks]


def copy_held(
    starts: Int64s,
    stops: Int64s | None,
    places: Int64s | None,
    out: npt.NDArray[Any],
    source: ChunkSource,
    numbers: range,
) -> bool:
    """Copy ranges of rows where all chunks that they may lie in, `numbers`, are in the cache.

    False where they are not: then nothing was done. Without `stops` each has one row, without
    `places` they come one after another. Nothing is planned, nor sorted, which for a few tokens
    takes many times as long as to copy them.
    """
    held = source.held_every(numbers) if 0 < len(numbers) <= len(starts) else None
    if not held:
        return False
    kernel.copy_held(held, numbers.start, out, starts, stops, places)
    return True


def copy_whole(
    starts: Int64s,
    stops: Int64s,
    places: Int64s,
    out: npt.NDArray[Any],
    source: ChunkSource,
    numbers: range,
    total: int,
    pool: ThreadPoolExecutor | None,
    threads: int,
) -> bool:
    """As `copy_held`, after decoding the chunks, where so much of them is wanted in little pieces.

    Much of them would be decoded all the same, and of few it costs little. False where it is not
    so, the cache has no room for them, or a chunk is damaged. `total` is how many rows the ranges
    have.
    """
    whole_rows = len(numbers) * source.chunk_rows
    reached = whole_rows * source.row_nbytes
    if (
        not numbers
        or reached > source.room
        or reached > 2 * len(starts) * source.block_nbytes
        or (source.is_side and not source.is_small and 2 * total < whole_rows)
        or _LITTLE * total * source.row_nbytes > len(starts) * source.block_nbytes
        or 2 * np.count_nonzero(starts[1:] == stops[:-1]) > len(starts)
        or not _reach_all(starts, stops, numbers, source.chunk_rows)
    ):
        return False
    held: list[npt.NDArray[Any] | None] = source.held(list(numbers))

    def fetch(i: int) -> None:
        held[i] = source.fetch(numbers[i])

    try:
        run([partial(fetch, i) for i, rows in enumerate(held) if rows is None], pool, threads)
    except CorruptionError:
        return False
    chunks = [rows for rows in held if rows is not None]
    kernel.copy_held(chunks, numbers.start, out, starts, stops, places)
    return True


def copy_compact(
    starts: Int64s,
    stops: Int64s,
    places: Int64s,
    out: npt.NDArray[Any],
    source: ChunkSource,
    numbers: range,
    total: int,
    read: Callable[[Int64s, Int64s, npt.NDArray[Any], Int64s], None],
) -> bool:
    """As `copy_whole`, after `read` has put all blocks that they lie in side by side.

    So of many little ranges none is sorted, which takes longer than to copy it: blocks are marked.
    False where ranges are few or not little, or lie so far apart that blocks hold mostly others.
    """
    row, block = source.row_nbytes, source.block_nbytes
    if (
        not numbers
        or len(starts) < _MANY
        or _LITTLE * total * row > len(starts) * block
        or block % row
        or source.chunk_rows * row % block
    ):
        return False
    each = block // row
    most = min(_SPARSE * total * row, source.room, _COMPACT) // block
    if len(np.unique(starts[::_EVERY] // each)) > most:
        return False
    full = stops > starts
    if not full.all():
        starts, stops, places = starts[full], stops[full], places[full]
    first, last = starts // each, (stops - 1) // each
    wanted = np.zeros(-(-source.rows // each), np.bool_)
    wanted[first] = wanted[last] = True
    wide = last - first > 1
    if wide.any():
        wanted[expand_ranges(first[wide], (last - first)[wide])] = True
    blocks = np.flatnonzero(wanted)
    if len(blocks) > most:
        return False
    slots = np.arange(len(blocks), dtype=np.int64)
    # Neighbours in the file are neighbours here: a range that goes on in the next block does so.
    moved = np.zeros(len(wanted), np.int64)
    moved[blocks] = (slots - blocks) * each
    begins = np.flatnonzero(np.diff(blocks, prepend=-2) > 1)
    ends = np.append(begins[1:], len(blocks)) - 1
    compact = memory.empty((len(blocks) * each, *out.shape[1:]), out.dtype)
    upto = np.minimum((blocks[ends] + 1) * each, source.rows)
    read(blocks[begins] * each, upto, compact, slots[begins] * each)
    by = moved[first]
    kernel.copy_held([compact], 0, out, starts + by, stops + by, places)
    return True


def reach(starts: Int64s, stops: Int64s | None, source: ChunkSource) -> range:
    """The chunks from the first to the last that ranges lie in; none of no or wrong ranges."""
    if not (kernel.is_there() and len(starts) and source.row_nbytes):
        return range(0)
    low = int(starts.min())
    high = int(starts.max()) + 1 if stops is None else int(stops.max())
    if low < 0 or high > source.rows:
        return range(0)
    return range(low // source.chunk_rows, (high - 1) // source.chunk_rows + 1)


def _reach_all(starts: Int64s, stops: Int64s, chunks: range, rows: int) -> bool:
    """Whether some range begins or ends in each of the `chunks` of `rows` rows."""
    if len(starts) > _EVERY**2 and _reach_all(starts[::_EVERY], stops[::_EVERY], chunks, rows):
        return True
    full = stops > starts
    reached = np.zeros(len(chunks), np.bool_)
    reached[starts[full] // rows - chunks.start] = True
    reached[(stops[full] - 1) // rows - chunks.start] = True
    return bool(reached.all())


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

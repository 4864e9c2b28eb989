"""Reading one dataset of a segment: its chunks, whole and in part, checked as they are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.errors import CorruptionError
from raggedstore.layout import DATA
from raggedstore.segment import compiled, memory
from raggedstore.segment.blocks import HEADER as BLOCK_HEADER
from raggedstore.segment.blocks import (
    assemble,
    assemble_run,
    assembled_size,
    block_checksum,
    decode_assembled,
)
from raggedstore.segment.by_kernel import copy_held, reach
from raggedstore.segment.codec import decode_frame
from raggedstore.segment.context import ReadContext
from raggedstore.segment.file import FileBytes
from raggedstore.segment.gather import gather
from raggedstore.segment.table import DatasetTable, checksum
from raggedstore.segment.tasks import Task

__all__ = ["ColumnReader"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

#: One range of no more bytes is read without planning, though it is copied once more.
_LITTLE = 2**16
#: How many times as dear as decoding blocks with the kernel it is to hold their chunk: measured,
#: with permuted epochs of speech and images, 1.5 to 8 do about equally well.
_PATIENCE = 8
#: A sequential read of more than this decodes in parallel anyway, and reads ahead by itself; with
#: the kernel that is so of little ones too, and what is read ahead is copied once more.
_AHEAD_BELOW = 2**22
_AHEAD_SMALL = 2**17
#: What takes no more than one in so many bytes of the cache is small.
_SMALL = 8


class ColumnReader:
    """Rows of one dataset.

    Parameters
    ----------
    segment, field
        What errors call the segment and the field.
    dataset
        The dataset's part of the chunk table.
    data
        The HDF5 file.
    context
        Cache and threads, shared with other columns.
    checksums
        Whether the chunk table holds checksums.
    """

    def __init__(
        self,
        segment: str,
        field: str,
        dataset: DatasetTable,
        data: FileBytes,
        context: ReadContext,
        *,
        checksums: bool,
    ) -> None:
        self.dataset = dataset
        self.rows = dataset.rows
        self.chunk_rows = dataset.chunk_rows
        self.row_nbytes = dataset.column.row_nbytes
        blocks = dataset.blocks
        self.block_nbytes = blocks.nbytes if blocks is not None and self.row_nbytes else 0
        # Side columns are asked again and again, and cost more to decode than they are large.
        self.is_side = dataset.column.name != DATA
        self._per_chunk = 0 if blocks is None else blocks.checks.shape[1]
        self._known = None if blocks is None or blocks.known.all() else blocks.known
        self.dtype = dataset.column.dtype
        self._row_shape = dataset.column.row_shape
        self._where = f"segment {segment}, field {field!r}"
        self.key = (segment, field, dataset.column.name)
        self._data = data
        self._context = context
        self._check = context.checksums and checksums
        self._compiled_table: compiled.Table | None = None
        self._next = -1  # the row after the last that was read
        self._prepared = -1  # the last chunk that was read ahead

    # Chunks

    def decode_into(self, number: int, out: Bytes) -> None:
        """Decode a chunk into `out`, (chunk bytes,) uint8, its checksum verified."""
        with self._naming():
            self._decode(number, out)
        self._context.chunks_decoded += 1

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Have errors say which segment and field they are of."""
        try:
            yield
        except CorruptionError as error:
            raise CorruptionError(f"{self._where}: {error}") from None

    def _decode(self, number: int, out: Bytes) -> None:
        offset, size, digest = self.dataset.entries[number].tolist()
        stored = self._data.borrow(offset, size, self._stored)
        where = f"{self.dataset.column.name} chunk {number}"
        if self._check and checksum(stored) != digest:
            raise CorruptionError(f"{where}: the checksum does not hold")
        try:
            if self.dataset.source is None:
                decode_frame(stored, out)
            else:
                self.dataset.source(number, stored, out)
        except CorruptionError as error:
            raise CorruptionError(f"{where}: {error}") from None

    def _new_chunk(self) -> Bytes:
        return np.empty(self.chunk_rows * self.row_nbytes, np.uint8)

    @property
    def unit_rows(self) -> int:
        """Rows that are lost together where something is damaged: of a block, or of a chunk."""
        if self.block_nbytes and self.block_nbytes % self.row_nbytes == 0:
            return self.block_nbytes // self.row_nbytes
        return self.chunk_rows

    def damage_of(self, number: int) -> tuple[str | None, npt.NDArray[np.bool_]]:
        """What is wrong with a chunk, or None; and which of its runs of `unit_rows` don't read."""
        units = self.chunk_rows // self.unit_rows
        try:
            self._decode(number, self._new_chunk())
        except CorruptionError as error:
            lost = np.ones(units, bool)
            if units > 1:
                out = np.empty(self.block_nbytes, np.uint8)
                for i in range(units):
                    with suppress(CorruptionError):
                        self._decode_blocks(np.array([number * units + i]), out)
                        lost[i] = False
            return str(error), lost
        return None, np.zeros(units, bool)

    def _view(self, raw: Bytes) -> npt.NDArray[Any]:
        return raw.view(self.dtype).reshape(-1, *self._row_shape)

    @property
    def is_small(self) -> bool:
        """Whether all of it takes little of the cache."""
        return _SMALL * self.dataset.rows * self.row_nbytes <= self._context.budget

    @property
    def room(self) -> int:
        """Bytes of chunks that one read may have the cache hold: there may be another."""
        return self._context.budget // 2

    def cached(self, number: int) -> npt.NDArray[Any] | None:
        """The rows of a chunk, if they are in the cache or on their way there."""
        return self._context.cache.get((self.key, number))

    def held(self, numbers: list[int]) -> list[npt.NDArray[Any] | None]:
        """As `cached`, of several chunks."""
        return self._context.cache.get_all(self.key, numbers)

    def held_every(self, numbers: range) -> list[npt.NDArray[Any]] | None:
        """As `held`, where all of them are in the cache; else None."""
        return self._context.cache.get_every(self.key, numbers)

    def fetch(self, number: int) -> npt.NDArray[Any]:
        """The rows of a chunk, decoded whole and kept in the cache."""
        rows = self._decoded(number)
        self._context.cache.put((self.key, number), rows)
        return rows

    def _decoded(self, number: int) -> npt.NDArray[Any]:
        raw = self._new_chunk()
        self.decode_into(number, raw)
        return self._view(raw)

    def has_blocks(self, number: int) -> bool:
        """Whether the blocks of a chunk can be told apart."""
        return self._known is None or bool(self._known[number])

    def rent(self, numbers: list[int], blocks: list[int]) -> list[bool]:
        """Of each chunk, whether to decode so many of its blocks, and not the whole of it."""
        patient = kernel.is_there() and not self.is_side
        return self._rent(numbers, blocks, _PATIENCE if patient else 1)

    def _rent(self, numbers: list[int], blocks: list[int], patience: int) -> list[bool]:
        if self._known is not None and not all(map(self.has_blocks, numbers)):
            pairs = zip(numbers, blocks, strict=True)
            return [self.has_blocks(n) and self._rent([n], [b], patience)[0] for n, b in pairs]
        wanted = [
            ((self.key, number), count * self.block_nbytes)
            for number, count in zip(numbers, blocks, strict=True)
        ]
        whole = self.chunk_rows * self.row_nbytes
        # Of a side column that takes little of the cache, the next read will want what this does.
        first = self.is_side and not self.is_small
        return self._context.cache.rent(wanted, whole, first=first, patience=patience)

    def decode_blocks(self, blocks: Int64s, out: Bytes) -> None:
        """Decode blocks, numbered through all chunks and ascending, into `out`."""
        with self._naming():
            self._decode_blocks(blocks, out)
        self._context.blocks_decoded += len(blocks)

    def _decode_blocks(self, blocks: Int64s, out: Bytes) -> None:
        table = self.dataset.blocks
        assert table is not None
        chunk, block = np.divmod(blocks, self._per_chunk)
        if self._known is not None and not self._known[chunk].all():
            raise CorruptionError(f"{self.dataset.column.name}: a chunk that has no blocks")
        raw = table.is_raw(chunk)
        if not raw.any():
            self._decode_compressed(chunk, block, out)
        elif raw.all():
            self._read_blocks(chunk, block, out)
        else:
            each = out.reshape(-1, table.nbytes)
            for which in (raw, ~raw):
                part = np.empty(int(which.sum()) * table.nbytes, np.uint8)
                self._decode_blocks(blocks[which], part)
                each[which] = part.reshape(-1, table.nbytes)

    def _decode_compressed(self, chunk: Int64s, block: Int64s, out: Bytes) -> None:
        table = self.dataset.blocks
        assert table is not None
        sizes = table.end(chunk, block) - table.begin(chunk, block)
        assembled = assemble(
            table.header,
            table.nbytes,
            sizes,
            self._context.scratch("stored", assembled_size(sizes)),
        )
        self._read_blocks(chunk, block, assembled[len(assembled) - int(sizes.sum()) :])
        decode_assembled(assembled.data, out)

    def _read_blocks(self, chunk: Int64s, block: Int64s, out: Bytes) -> None:
        """The stored bytes of blocks, neighbours read together, their checksums verified."""
        table = self.dataset.blocks
        assert table is not None
        begin, end = table.begin(chunk, block), table.end(chunk, block)
        offset = self.dataset.entries["offset"][chunk].astype(np.int64)
        sizes = end - begin
        places = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=places[1:])
        breaks = np.flatnonzero((offset + begin)[1:] != (offset + end)[:-1]) + 1
        runs = [0, *breaks.tolist(), len(sizes)]
        into = out.data
        at = places.tolist()
        begins = (offset + begin)[runs[:-1]].tolist()
        for (a, b), first in zip(itertools.pairwise(runs), begins, strict=True):
            self._data.read_into(first, into[at[a] : at[b]])
        if self._check:
            expected = table.checks[chunk, block].tolist()
            for i, (a, b) in enumerate(itertools.pairwise(at)):
                if block_checksum(into[a:b]) != expected[i]:
                    raise _bad_block(self.dataset.column.name, int(chunk[i]), int(block[i]))

    @property
    def _table(self) -> compiled.Table:
        """Where blocks lie, for the kernel."""
        if self._compiled_table is None:
            table = self.dataset.blocks
            assert table is not None
            self._compiled_table = compiled.Table(
                table.header,
                table.nbytes,
                self.dataset.entries["offset"],
                table.edges,
                table.checks if self._check else None,
            )
        return self._compiled_table

    def decode_laid_out(
        self, cut: compiled.Cut, chosen: list[bool], out: Bytes, otherwise: Task
    ) -> tuple[Task, int]:
        """What decodes the blocks of the chosen runs and copies their pieces, by the kernel.

        As many threads may be at it at once as there are parts, the second. Where something is
        wrong, `otherwise` is done instead.
        """
        layout = compiled.lay_out(cut, bytes(chosen), self._table)
        counts = [n for n, wanted in zip(cut.blocks, chosen, strict=True) if wanted]
        whole = counts.count(self._per_chunk)
        self._context.chunks_decoded += whole
        self._context.blocks_decoded += sum(counts) - whole * self._per_chunk
        file, state = self._data.source, np.zeros(2, np.int64)

        def task() -> None:
            stored = self._context.scratch("stored", layout.stored)
            decoded = self._context.scratch("decoded", layout.decoded)
            if not compiled.decode(file, self._table, layout, out, state, stored, decoded):
                otherwise()

        return task, layout.groups

    def _decode_run(self, chunk: int, first: int, count: int, out: Bytes) -> None:
        """As `_decode_blocks`, of `count` blocks of one chunk from `first`, in plain numbers."""
        table = self.dataset.blocks
        assert table is not None
        edges = table.run(chunk, first, count)
        raw = table.is_raw(chunk)
        offset = int(self.dataset.entries["offset"][chunk]) + edges[0]
        size = edges[-1] - edges[0]
        if raw:
            whole = stored = out.data
        else:
            head = BLOCK_HEADER + 4 * count
            whole = self._stored(head + size)
            stored = whole[head:]
            assemble_run(table.header, table.nbytes, edges, whole)
        self._data.read_into(offset, stored)
        if self._check:
            expected = table.checks[chunk, first : first + count].tolist()
            for i, (a, b) in enumerate(itertools.pairwise(edges)):
                if block_checksum(stored[a - edges[0] : b - edges[0]]) != expected[i]:
                    raise _bad_block(self.dataset.column.name, chunk, first + i)
        if not raw:
            decode_assembled(whole, out)

    def _compiled_run(
        self, chunk: int, first: int, count: int, at: int, out: Bytes, decoded: Bytes
    ) -> bool:
        """Whether the kernel could fill `out` from byte `at` of `count` blocks of one chunk."""
        table = self.dataset.blocks
        if table is None or not kernel.is_there():
            return False
        offset, size, _ = self.dataset.entries[chunk].tolist()
        return compiled.decode_run(
            self._data.source,
            table.header,
            table.nbytes,
            table.edges[chunk],
            table.checks[chunk] if self._check else None,
            (offset, first, count, at),
            out,
            self._context.scratch("stored", BLOCK_HEADER + 4 * count + size),
            decoded,
        )

    def _stored(self, nbytes: int) -> memoryview:
        return self._context.scratch("stored", nbytes).data

    def scratch(self, nbytes: int) -> Bytes:
        """Memory of this thread's own to decode into, until it asks again."""
        return self._context.scratch("decoded", nbytes)

    # Rows

    def read(self, starts: Int64s, stops: Int64s) -> npt.NDArray[Any]:
        """The rows in ``[starts, stops)``, one range after another."""
        if _is_run(starts, stops):
            starts, stops = starts[:1], stops[-1:]
        total = int((stops - starts).sum())
        out = memory.empty((total, *self._row_shape), self.dtype)
        self._gather(starts, stops, out)
        return out

    def at(self, positions: Int64s) -> npt.NDArray[Any]:
        """The rows at (k,) `positions`."""
        out = memory.empty((len(positions), *self._row_shape), self.dtype)
        if copy_held(positions, None, None, out, self, reach(positions, None, self)):
            first, last = int(positions[0]), int(positions[-1])
            self.went_on(first if last - first == len(positions) - 1 else -2, last + 1)
            return out
        starts, stops = positions, positions + 1
        if _is_run(starts, stops):
            starts, stops = starts[:1], stops[-1:]
        self._gather(starts, stops, out)
        return out

    def read_into(
        self,
        starts: Int64s,
        stops: Int64s,
        out: npt.NDArray[Any],
        places: Int64s,
    ) -> None:
        """As `read`, each range to the rows of `out` that begin at its place."""
        if _is_run(starts, stops) and (places - places[0] == starts - starts[0]).all():
            starts, stops, places = starts[:1], stops[-1:], places[:1]
        if len(starts) == 1 and (stops[0] - starts[0]) * self.row_nbytes <= _LITTLE:
            start, stop, place = int(starts[0]), int(stops[0]), int(places[0])
            out[place : place + stop - start] = self.run(start, stop)
        else:
            self._gather(starts, stops, out, places)

    def _gather(
        self,
        starts: Int64s,
        stops: Int64s,
        out: npt.NDArray[Any],
        places: Int64s | None = None,
    ) -> None:
        context = self._context
        total = gather(starts, stops, out, self, context.pool, context.threads, places)
        if total:
            first, last = int(starts[0]), int(stops[-1])
            self.went_on(first if total == last - first else -2, last)

    def row(self, number: int) -> Any:
        """One row: an array, or a scalar where rows are scalars."""
        chunk, at = divmod(number, self.chunk_rows)
        rows = self.cached(chunk)
        if rows is None:
            return self._some(number, number + 1)[0]
        self.went_on(number, number + 1)
        return rows[at].copy()

    def run(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The rows from `start` to `stop`, in memory of their own."""
        chunk, low = divmod(start, self.chunk_rows)
        high = low + stop - start
        rows = self.cached(chunk) if high <= self.chunk_rows else None
        if rows is None:
            return self._some(start, stop)
        self.went_on(start, stop)
        copied: npt.NDArray[Any] = rows[low:high].copy()
        return copied

    def _some(self, start: int, stop: int) -> npt.NDArray[Any]:
        """As `read` of one range; what a few blocks of one chunk hold without its planning."""
        chunk, low = divmod(start, self.chunk_rows)
        first = low * self.row_nbytes // max(self.block_nbytes, 1)
        last = ((low + stop - start) * self.row_nbytes - 1) // max(self.block_nbytes, 1)
        count = last - first + 1
        if (
            self.block_nbytes
            and stop > start
            and 4 * count <= 3 * self._per_chunk
            and last < self._per_chunk
        ):
            if not self._rent([chunk], [count], 1)[0]:
                with suppress(CorruptionError):  # what is wanted may lie in blocks that are whole
                    rows = self.fetch(chunk)[low : low + stop - start].copy()
                    self.went_on(start, stop)
                    return rows
            at = low * self.row_nbytes - first * self.block_nbytes
            raw = np.empty((stop - start) * self.row_nbytes, np.uint8)
            decoded = self._context.scratch("decoded", count * self.block_nbytes)
            if not self._compiled_run(chunk, first, count, at, raw, decoded):
                with self._naming():
                    self._decode_run(chunk, first, count, decoded)
                raw[:] = decoded[at : at + len(raw)]
            self._context.blocks_decoded += count
            self.went_on(start, stop)
            return self._view(raw)
        # Of a chunk without blocks a part costs all of it; the whole goes straight to its place.
        if not self.block_nbytes and 0 < stop - start <= min(
            self.chunk_rows - low, self.chunk_rows - 1
        ):
            rows = self.fetch(chunk)[low : low + stop - start].copy()
            self.went_on(start, stop)
            return rows
        return self.read(np.array([start], np.int64), np.array([stop], np.int64))

    def went_on(self, start: int, stop: int) -> None:
        """Note where a reader has come to; a sequential one has more decoded in the background."""
        sequential = start == self._next
        self._next = stop
        if not sequential:
            self._prepared = -1
        elif (stop - start) * self.row_nbytes < (
            _AHEAD_SMALL if kernel.is_there() else _AHEAD_BELOW
        ):
            self._read_ahead(stop, stop - start)

    def _read_ahead(self, row: int, rows: int) -> None:
        """Have the chunks prepared that hold as many rows again after `row`, twice, or half one."""
        last = (row + max(2 * rows, self.chunk_rows // 2) - 1) // self.chunk_rows
        if last <= self._prepared:
            return
        context = self._context
        first = max(row // self.chunk_rows, self._prepared + 1)
        room = context.budget // 4 // max(self.chunk_rows * self.row_nbytes, 1)
        last = min(last, first + room - 1, len(self.dataset.entries) - 1)
        self._prepared = max(last, self._prepared)
        if context.pool is None:
            return
        for number in range(first, last + 1):
            context.cache.prepare((self.key, number), partial(self._ahead, number))

    def _ahead(self, number: int) -> Future[npt.NDArray[Any]] | None:
        pool = self._context.pool
        if pool is None:
            return None
        try:
            return pool.submit(self._decoded, number)
        except RuntimeError:  # at the interpreter's end, or where it has no more threads
            return None


def _is_run(starts: Int64s, stops: Int64s) -> bool:
    """Whether there are several ranges, and each goes on where the one before it ends."""
    return (
        len(starts) > 1
        and bool(starts[1] == stops[0])  # most that are none differ here
        and bool((starts[1:] == stops[:-1]).all())
    )


def _bad_block(column: str, chunk: int, block: int) -> CorruptionError:
    return CorruptionError(f"{column} chunk {chunk}: the checksum of block {block} does not hold")

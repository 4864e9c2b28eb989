"""Reading one segment: chunk table, pieces of the file, decode into place, without libhdf5.

A `SegmentReader` checks everything that a damaged file could lie about before it is used:
checksums as chunks are read, side columns as they are planned with. What it can't vouch for
it refuses, naming the segment, the field and the sample.
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import CorruptionError
from raggedstore.layout import DATA, SHAPE, SPAN
from raggedstore.schema import Field
from raggedstore.segment.cache import ChunkCache
from raggedstore.segment.codec import decode_frame
from raggedstore.segment.file import FileBytes, OpenFiles
from raggedstore.segment.gather import gather
from raggedstore.segment.table import DatasetTable, SegmentTable, checksum

__all__ = ["ReadContext", "SegmentReader"]

Int64s = npt.NDArray[np.int64]


@dataclass(eq=False)
class ReadContext:
    """What the segments of one reader share: the cache within the budget, and the threads."""

    budget: int
    check: bool = True  #: verify each chunk's checksum as it is read
    in_memory: bool = False  #: read files whole when they are opened
    cache: ChunkCache = field(init=False)
    files: OpenFiles = field(init=False, default_factory=OpenFiles)
    _pool: ThreadPoolExecutor | None = field(init=False, default=None)
    _pool_pid: int = field(init=False, default=0)
    lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.cache = ChunkCache(self.budget)
        _live.add(self)

    @property
    def pool(self) -> ThreadPoolExecutor | None:
        """Decoding threads of this process; None on one core. A forked child makes its own."""
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        if workers < 2:
            return None
        if self._pool_pid != os.getpid():
            with self.lock:
                if self._pool_pid != os.getpid():
                    self._pool = ThreadPoolExecutor(workers, thread_name_prefix="raggedstore")
                    self._pool_pid = os.getpid()
        return self._pool

    def after_fork(self) -> None:
        """Make the locks new: one may have been held by a thread that the child doesn't have."""
        self.lock = threading.Lock()
        self._pool, self._pool_pid = None, 0
        self.cache = ChunkCache(self.budget)
        self.files.after_fork()


# A forked child has none of its parent's threads, so what they held is made anew in it.
_live: weakref.WeakSet[ReadContext] = weakref.WeakSet()


def _after_fork() -> None:
    for context in list(_live):
        context.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class SegmentReader:
    """Reads samples of one segment.

    Parameters
    ----------
    name
        What errors call the segment.
    data
        The HDF5 file.
    table
        Its chunk table.
    context
        Cache and threads, shared with other segments.
    """

    def __init__(
        self,
        name: str,
        data: FileBytes,
        table: SegmentTable,
        context: ReadContext,
    ) -> None:
        if len(data) < table.file_bytes:
            raise CorruptionError(
                f"segment {name}: {len(data)} bytes where {table.file_bytes} were written"
            )
        self.name = name
        self.table = table
        self.context = context
        self._data = data

    def __len__(self) -> int:
        return self.table.samples

    def __repr__(self) -> str:
        return f"<SegmentReader {self.name}: {len(self)} samples>"

    @property
    def file(self) -> FileBytes:
        """The HDF5 file."""
        return self._data

    # Chunks

    def stored_chunk(self, dataset: DatasetTable, number: int) -> memoryview:
        """The stored bytes of a chunk, unchecked."""
        entry = dataset.entries[number]
        return self._data.read(int(entry["offset"]), int(entry["size"]))

    def decode_chunk(
        self, name: str, dataset: DatasetTable, number: int, out: npt.NDArray[np.uint8]
    ) -> None:
        """Decode a chunk into `out`, (chunk bytes,) uint8, its checksum verified."""
        try:
            self._decode(dataset, number, out)
        except CorruptionError as error:
            raise CorruptionError(f"segment {self.name}, field {name!r}: {error}") from None

    def _decode(self, dataset: DatasetTable, number: int, out: npt.NDArray[np.uint8]) -> None:
        stored = self.stored_chunk(dataset, number)
        where = f"{dataset.column.name} chunk {number}"
        if (
            self.context.check
            and self.table.checksums
            and checksum(stored) != int(dataset.entries[number]["xxh3"])
        ):
            raise CorruptionError(f"{where}: the checksum does not hold")
        try:
            if dataset.source is None:
                decode_frame(stored, out)
            else:
                dataset.source(number, stored, out)
        except CorruptionError as error:
            raise CorruptionError(f"{where}: {error}") from None

    def fault_of(self, dataset: DatasetTable, number: int) -> str | None:
        """What is wrong with a chunk, or None."""
        try:
            out = np.empty(dataset.chunk_rows * dataset.column.row_nbytes, np.uint8)
            self._decode(dataset, number, out)
        except CorruptionError as error:
            return str(error)
        return None

    def _fetch(self, name: str, dataset: DatasetTable, number: int) -> npt.NDArray[Any]:
        key = (self.name, name, dataset.column.name, number)
        raw = self.context.cache.get(key)
        if raw is None:
            raw = np.empty(dataset.chunk_rows * dataset.column.row_nbytes, np.uint8)
            self.decode_chunk(name, dataset, number, raw)
            self.context.cache.put(key, raw)
        return raw.view(dataset.column.dtype).reshape(-1, *dataset.column.row_shape)

    def rows(self, name: str, column: str, starts: Int64s, stops: Int64s) -> npt.NDArray[Any]:
        """The rows of a column in ``[starts, stops)``, one range after another."""
        dataset = self.table.datasets[name][column]
        total = int((stops - starts).sum())
        out = np.empty((total, *dataset.column.row_shape), dataset.column.dtype)
        self._rows_into(name, dataset, starts, stops, out)
        return out

    def _rows_into(
        self,
        name: str,
        dataset: DatasetTable,
        starts: Int64s,
        stops: Int64s,
        out: npt.NDArray[Any],
    ) -> None:
        gather(
            starts,
            stops,
            out,
            rows=dataset.rows,
            chunk_rows=dataset.chunk_rows,
            fetch=lambda number: self._fetch(name, dataset, number),
            decode_into=lambda number, raw: self.decode_chunk(name, dataset, number, raw),
            pool=self.context.pool,
        )

    # Samples

    def spans(self, name: str, positions: Int64s) -> tuple[Int64s, Int64s]:
        """(k, 2) start and stop in data, and (k, d) shape, of the samples at `positions`.

        Raises
        ------
        CorruptionError
            A span lies outside the data, or does not match its shape.
        """
        spec = self.table.schema[name]
        spans = self.rows(name, SPAN, positions, positions + 1).astype(np.int64, copy=False)
        shapes = self.rows(name, SHAPE, positions, positions + 1).astype(np.int64, copy=False)
        limit = self.table.datasets[name][DATA].rows
        bad = bad_spans(spec, spans, shapes, limit)
        if bad.any():
            i = int(np.argmax(bad))
            raise CorruptionError(
                f"segment {self.name}, field {name!r}, sample {int(positions[i])}: side columns "
                f"make no sense: start and stop {spans[i].tolist()}, shape {shapes[i].tolist()}, "
                f"{limit} values"
            )
        return spans, shapes

    def shapes(self, name: str, positions: Int64s) -> Int64s:
        """(k, d) shapes of the samples at `positions`, no data read."""
        spec = self.table.schema[name]
        if spec.is_ragged:
            return self.spans(name, positions)[1]
        return np.tile(np.array(spec.shape, np.int64), (len(positions), 1))

    def ragged(self, name: str, positions: Int64s) -> RaggedBatch:
        """The samples at `positions` of a ragged field."""
        spans, shapes = self.spans(name, positions)
        values = self.rows(name, DATA, spans[:, 0], spans[:, 1])
        return RaggedBatch.trusted(values, offsets_of(spans[:, 1] - spans[:, 0]), shapes)

    def windows(self, name: str, positions: Int64s, starts: Int64s, stops: Int64s) -> RaggedBatch:
        """Rows ``[start, stop)`` of the samples at `positions`, decoding only their chunks."""
        spans, shapes = self.spans(name, positions)
        row = shapes[:, 1:].prod(axis=1)
        low = np.minimum(starts, shapes[:, 0])
        high = np.clip(stops, low, shapes[:, 0])
        values = self.rows(name, DATA, spans[:, 0] + low * row, spans[:, 0] + high * row)
        shapes = np.concatenate([(high - low)[:, None], shapes[:, 1:]], axis=1)
        return RaggedBatch.trusted(values, offsets_of((high - low) * row), shapes)

    def dense(self, name: str, positions: Int64s) -> npt.NDArray[Any]:
        """(k, ...) the samples at `positions` of a field without ragged dimensions."""
        return self.rows(name, DATA, positions, positions + 1)


def bad_spans(spec: Field, spans: Int64s, shapes: Int64s, limit: int) -> npt.NDArray[np.bool_]:
    """(k,) True where start, stop and shape cannot be those of a sample of `spec`."""
    starts, stops = spans[:, 0], spans[:, 1]
    # Products of lying shapes may wrap around int64; as floats they can only be far off.
    approximate = shapes.astype(np.float64).prod(axis=1)
    bad: npt.NDArray[np.bool_] = (
        (starts < 0)
        | (stops < starts)
        | (stops > limit)
        | (shapes < 0).any(axis=1)
        | (approximate > 2.0**62)
        | (shapes.prod(axis=1) != stops - starts)
    )
    for axis, size in enumerate(spec.shape):
        if size is not None:
            bad |= shapes[:, axis] != size
    return bad

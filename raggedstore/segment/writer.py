"""Writing one segment: stage, encode in threads, put whole chunks, seal.

Values of a column are copied into a staging chunk (so a caller may reuse its arrays). A full
chunk goes to the encoding threads; its frame is put into the HDF5 file with PyTables' direct
chunk write, in order, so the file is ordinary and HDF5's filter pipeline stays idle. How much
is in flight is bounded, which bounds memory however much is streamed in.

A dataset is made when its first chunk is ready: a column that never fills one gets a chunk
just as long as itself, so a small segment is small.

libhdf5 and PyTables are not safe to use from several threads; every call goes under `hdf5_lock`.
A fork waits for it, so that the child finds them in order and the lock free. But the files that
are being written are open in the child as well, and HDF5 would write into them when it closes what
is open at the end: there they are made to lead nowhere, and closed.
"""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import offsets_of
from raggedstore.errors import CorruptionError, SchemaError, StorageError
from raggedstore.layout import (
    FORMAT_ATTRIBUTE,
    FORMAT_VERSION,
    SCHEMA_ATTRIBUTE,
    TABLE_ATTRIBUTE,
    Column,
    columns_of,
)
from raggedstore.schema import Field, Schema
from raggedstore.segment.appended import append_table
from raggedstore.segment.blocks import BlockTable, ChunkBlocks, block_checksums, blocks_of
from raggedstore.segment.codec import Compression, encode_frame, side_column_compression
from raggedstore.segment.empty import empty_file
from raggedstore.segment.parser import parse
from raggedstore.segment.profiles import ENOUGH, choose, profile
from raggedstore.segment.table import (
    ENTRY,
    EXPANSION,
    DatasetTable,
    SegmentTable,
    checksum,
    raw_bytes,
)
from raggedstore.segment.writeback import begin_writeback

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "SegmentWriter",
    "check_closed",
    "check_writable",
    "hdf5_errors",
    "hdf5_lock",
    "quiet_names",
]

hdf5_lock = threading.RLock()
_live: weakref.WeakSet[SegmentWriter] = weakref.WeakSet()

_FLUSH_SAMPLES = 4096
_FEW = 512  # chunks, of which HDF5 is asked one by one
_WRITTEN = 2**21  # bytes at a time that the disk begins with
_MOST_ROW = 511 * 2**20  # bytes: c-blosc2 has a little under 512 MiB in a block


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A chunk as it is stored, and what the chunk table keeps of it."""

    frame: bytes
    size: int
    digest: int
    blocks: ChunkBlocks | None
    checks: npt.NDArray[np.uint32]


def _encode(chunk: npt.NDArray[Any], column: Column, compression: Compression) -> _Encoded:
    frame = encode_frame(chunk, column.dtype.itemsize, column.row_nbytes, compression)
    view = memoryview(frame)
    blocks = blocks_of(view, len(view))
    checks = np.zeros(0, np.uint32) if blocks is None else block_checksums(view, blocks.edges)
    return _Encoded(frame, len(frame), checksum(frame), blocks, checks)


class _ColumnWriter:
    """One dataset being written, a chunk at a time."""

    def __init__(
        self,
        owner: SegmentWriter,
        group: str,
        column: Column,
        compression: Compression | str,
    ) -> None:
        self.column = column
        self.compression = compression  # the name of a profile until there is data to try it on
        self.rows = 0  # rows accepted so far
        self.stored = 0  # bytes of frames put into the file
        self._owner = owner
        self._group = group
        self._row = column.row_nbytes
        self._compression = (  # what chunks are encoded with
            profile(compression, column.dtype.itemsize)
            if isinstance(compression, str)
            else compression
        )
        self._chunk_rows, self._block_rows = self._compression.chunk_rows(
            self._row, column.dtype.itemsize
        )
        self._staged = 0  # rows in the staging chunk
        # Starts small: a store of many fields with few samples should not cost a chunk each.
        self._stage = self._empty(min(self._chunk_rows, 1024))
        self._pending: deque[Future[_Encoded]] = deque()
        self._put_chunks: list[_Encoded] = []  # without their frames
        self._leaf: Any = None

    @property
    def expected(self) -> int:
        """Bytes of frames that were put, and at the same ratio those of chunks in flight."""
        raw = len(self._put_chunks) * self._chunk_rows * self._row
        waiting = len(self._pending) * self._chunk_rows * self._row
        return self.stored + int(waiting * (self.stored / raw if raw else 1))

    def _empty(self, rows: int) -> npt.NDArray[Any]:
        return np.empty((rows, *self.column.row_shape), self.column.dtype)

    def write(self, rows: npt.NDArray[Any], *, given: bool = False) -> None:
        """Append rows; with `given` nobody changes them any more, and they need not be copied."""
        count = len(rows)
        staged = self._staged
        self.rows += count
        if staged + count < len(self._stage):  # the common case of small samples
            self._stage[staged : staged + count] = rows
            self._staged = staged + count
            return
        done, whole = 0, self._chunk_rows
        as_it_is = rows.dtype == self._stage.dtype and rows.flags.c_contiguous
        # The chunks before the last few will be encoded when this returns: no copy is needed.
        few = 0 if given else self._owner.in_flight
        while done < count:
            if as_it_is and not self._staged and count - done >= (few + 1) * whole:
                self._emit(rows[done : done + whole])
                done += whole
                continue
            if self._staged == len(self._stage):
                grown = self._empty(min(2 * len(self._stage), whole))
                grown[: self._staged] = self._stage
                self._stage = grown
            take = min(len(self._stage) - self._staged, count - done)
            self._stage[self._staged : self._staged + take] = rows[done : done + take]
            self._staged += take
            done += take
            if self._staged == whole:
                chunk, self._stage, self._staged = self._stage, self._empty(whole), 0
                self._emit(chunk)

    def _choose(self, rows: npt.NDArray[Any]) -> None:
        """Try the profile on the first chunk that is long enough, and no silence, to tell by."""
        if isinstance(self.compression, str) and rows.nbytes >= ENOUGH:
            itemsize, pool = self.column.dtype.itemsize, self._owner.pool
            chosen = choose(self.compression, rows, itemsize, self._row, pool.map)
            if chosen is not None:
                self.compression = self._compression = chosen

    def _submit(self, chunk: npt.NDArray[Any], rows: int | None = None) -> None:
        """Have a chunk encoded, whose first `rows` are data."""
        self._choose(chunk[:rows])
        self._pending.append(
            self._owner.pool.submit(_encode, chunk, self.column, self._compression)
        )

    def _emit(self, chunk: npt.NDArray[Any]) -> None:
        """Have a whole chunk encoded, and put what is."""
        self._submit(chunk)
        while len(self._pending) > self._owner.in_flight:
            self._put(self._pending.popleft().result())
        while self._pending and self._pending[0].done():
            self._put(self._pending.popleft().result())

    def _put(self, encoded: _Encoded) -> None:
        number, frame = len(self._put_chunks), encoded.frame
        with hdf5_lock, hdf5_errors(self._owner.path):
            if self._leaf is None:
                self._leaf = self._create()
            # Never past the true length: shrinking would make HDF5 encode the last chunk anew.
            self._leaf.truncate(min((number + 1) * self._chunk_rows, self.rows))
            start = (number * self._chunk_rows,) + (0,) * len(self.column.row_shape)
            self._leaf.write_chunk(start, frame)
            self._owner.has_put(len(frame))
        self._put_chunks.append(replace(encoded, frame=b""))
        self.stored += len(frame)

    def _create(self) -> Any:
        import tables

        column, compression = self.column, self._compression
        filters = tables.Filters(
            complevel=max(compression.level, 1), complib=f"blosc2:{compression.codec}",
            shuffle="shuffle" in compression.filters,
        )  # fmt: skip
        with quiet_names():
            return self._owner.file.create_earray(
                f"/{self._group}",
                column.name,
                atom=tables.Atom.from_dtype(_stored_dtype(column.dtype)),
                shape=(0, *column.row_shape),
                chunkshape=(self._chunk_rows, *column.row_shape),
                filters=filters,
                byteorder=_byteorder(column.dtype),
            )

    def emit_last(self) -> None:
        """Have what is left encoded: the last chunk, filled up with zeros.

        It is put by `finish`, so that datasets lie in their order, whichever is encoded first.
        """
        if self._staged:
            if not self._put_chunks and not self._pending:
                # The only chunk is as long as it need be: in whole blocks, if it has several.
                self._chunk_rows = self._staged
                if self._staged > self._block_rows:
                    self._chunk_rows = -(-self._staged // self._block_rows) * self._block_rows
            last = self._empty(self._chunk_rows)
            last[: self._staged] = self._stage[: self._staged]
            last[self._staged :] = 0
            staged, self._staged, self._stage = self._staged, 0, self._empty(0)
            self._submit(last, staged)

    def finish(self) -> None:
        """Put what is encoded, all of it."""
        while self._pending:
            self._put(self._pending.popleft().result())
        with hdf5_lock, hdf5_errors(self._owner.path):
            if self._leaf is None:
                self._chunk_rows = 1
                self._leaf = self._create()

    def table(self) -> DatasetTable:
        """Where the chunks now lie; call before the file is closed and after a flush."""
        entries = np.zeros(len(self._put_chunks), ENTRY)
        with hdf5_lock:
            for i, (chunk, (offset, size)) in enumerate(
                zip(self._put_chunks, self._stored(), strict=True)
            ):
                if size != chunk.size or offset is None:
                    raise CorruptionError(f"HDF5 stored {size} bytes of a chunk of {chunk.size}")
                entries[i] = (offset, chunk.size, chunk.digest)
        blocks = BlockTable.of(
            [(chunk.blocks, chunk.checks) for chunk in self._put_chunks],
            self._chunk_rows * self._row,
        )
        return DatasetTable(self.column, self.rows, self._chunk_rows, entries, blocks)

    def _stored(self) -> Iterator[tuple[int | None, int]]:
        """Where each chunk lies in the file, and of what size."""
        count, tail = len(self._put_chunks), (0,) * len(self.column.row_shape)
        places = ((i * self._chunk_rows, *tail) for i in range(count))
        if count <= _FEW:
            for place in places:
                info = self._leaf.chunk_info(place)
                yield info.offset, info.size
            return
        # To find one HDF5 goes through all before it.
        with self._owner.path.open("rb") as stream:
            index = parse(stream)[self._leaf._v_pathname].id.index
        for place in places:
            found = index.get(place)
            yield (None, 0) if found is None else (found.byte_offset, found.size)


class _FieldWriter:
    """One field being written: its data and, where it is ragged, its side columns."""

    def __init__(
        self, owner: SegmentWriter, name: str, field: Field, compression: Compression | str
    ) -> None:
        self.field = field
        columns = columns_of(field)
        chosen = compression
        if isinstance(chosen, str):
            chosen = profile(chosen, field.dtype.itemsize)
        side = side_column_compression(chosen.codec)
        self.columns = [
            _ColumnWriter(owner, name, column, compression if i == 0 else side)
            for i, column in enumerate(columns)
        ]
        self._data = self.columns[0]
        self._shapes: list[tuple[int, ...]] = []
        self._stop = 0  # values whose side columns are written

    def append(self, flat: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        """One checked sample: its flattened values and shape."""
        if not self.field.is_ragged:
            self._data.write(flat.reshape(1, *shape))
            return
        self._data.write(flat)
        self._shapes.append(shape)
        if len(self._shapes) >= _FLUSH_SAMPLES:
            self._flush_shapes()

    def extend(self, flat: npt.NDArray[Any], shapes: npt.NDArray[np.int64]) -> None:
        """Many checked samples: all values flattened, and (n, d) shapes."""
        if not self.field.is_ragged:
            self._data.write(flat.reshape(len(shapes), *self._data.column.row_shape))
            return
        self._flush_shapes()
        self._data.write(flat)
        self._write_side(shapes)

    def _flush_shapes(self) -> None:
        if self._shapes:
            shapes = np.array(self._shapes, np.int64).reshape(len(self._shapes), -1)
            self._shapes = []
            self._write_side(shapes)

    def _write_side(self, shapes: npt.NDArray[np.int64]) -> None:
        offsets = offsets_of(shapes.prod(axis=1)) + self._stop
        self._stop = int(offsets[-1])
        spans = np.empty((len(shapes), 2), np.int64)
        spans[:, 0], spans[:, 1] = offsets[:-1], offsets[1:]
        self.columns[1].write(spans, given=True)
        self.columns[2].write(shapes)

    def emit_last(self) -> None:
        """Have what is left of each column encoded."""
        self._flush_shapes()
        for column in self.columns:
            column.emit_last()


def check_writable(schema: Schema) -> None:
    """SchemaError where a field has larger rows than can be written, if read from elsewhere."""
    for name, field in schema.items():
        sizes = [size for size in field.shape if size is not None]
        if not field.is_ragged and math.prod(sizes) * field.dtype.itemsize > _MOST_ROW:
            raise SchemaError(
                f"field {name!r}: a fixed shape of over 511 MiB a sample, {field.shape}, cannot be "
                f"written: make it ragged"
            )


class SegmentWriter:
    """Writes one segment file; `seal` finishes it, `abort` removes it.

    Parameters
    ----------
    path
        The file to make; it must not exist.
    schema, compressions
        The fields, and how each is compressed: the name of a profile is tried on its first data.
    pool
        Threads that encode.
    in_flight
        Chunks of one column that may wait for encoding.
    alone
        Put the chunk table behind the file's end, for a file without an .idx beside it.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        compressions: Mapping[str, Compression | str],
        pool: ThreadPoolExecutor,
        *,
        in_flight: int = 4,
        alone: bool = False,
    ) -> None:
        self.path = path
        self._alone = alone
        self.schema = schema
        self.pool = pool
        self.in_flight = in_flight
        self.samples = 0
        self._put = 0  # bytes since the disk was last told to begin
        with hdf5_lock, hdf5_errors(path):
            file = open(path, "xb")  # noqa: SIM115  # where one is there already, it is not ours
            try:
                with file:
                    file.write(empty_file())
                self._begin()
            except BaseException:
                self.abort()
                raise
        self.fields = {
            name: _FieldWriter(self, name, field, compressions[name])
            for name, field in schema.items()
        }
        self._columns = [column for f in self.fields.values() for column in f.columns]

    def _begin(self) -> None:
        """Open the empty file, and make what does not depend on the samples."""
        import tables

        # Without PyTables' own attributes the file is smaller, and loses nothing.
        self.file: Any = tables.open_file(str(self.path), "a", pytables_sys_attrs=False)
        _live.add(self)
        with quiet_names():
            for name, field in self.schema.items():
                group = self.file.create_group("/", name)
                if field.kind != "array":
                    group._v_attrs.kind = np.bytes_(field.kind)
        attributes = self.file.root._v_attrs
        attributes[FORMAT_ATTRIBUTE] = np.int64(FORMAT_VERSION)
        attributes[SCHEMA_ATTRIBUTE] = np.bytes_(self.schema.dumps().encode())
        if self._alone:
            attributes[TABLE_ATTRIBUTE] = np.int64(1)

    @property
    def stored(self) -> int:
        """Bytes put into the file so far, and about as many as chunks still waiting will take."""
        return sum(column.expected for column in self._columns)

    @property
    def compressions(self) -> dict[str, Compression | str]:
        """How each field is compressed; the name of a profile where it had too little data yet."""
        return {name: field.columns[0].compression for name, field in self.fields.items()}

    def has_put(self, nbytes: int) -> None:
        """Note bytes put into the file, which the disk need not wait for the end to write."""
        self._put += nbytes
        if self._put >= _WRITTEN:
            self._put = 0
            begin_writeback(self.file.fileno())

    def append(self, parts: Sequence[tuple[npt.NDArray[Any], tuple[int, ...]]]) -> None:
        """One checked sample: for each field, in the schema's order, (flat values, shape)."""
        for writer, (flat, shape) in zip(self.fields.values(), parts, strict=True):
            writer.append(flat, shape)
        self.samples += 1

    def extend(
        self, parts: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[np.int64]]], count: int
    ) -> None:
        """`count` checked samples: for each field (flat values, (count, d) shapes)."""
        for name, (flat, shapes) in parts.items():
            self.fields[name].extend(flat, shapes)
        self.samples += count

    def seal(self) -> SegmentTable:
        """Finish the file and give its chunk table; making sure of the disk is the caller's."""
        for field in self.fields.values():
            field.emit_last()
        for column in self._columns:  # while others are encoded
            column.finish()
        with hdf5_lock, hdf5_errors(self.path):
            self.file.flush()
            datasets = {
                name: {column.column.name: column.table() for column in field.columns}
                for name, field in self.fields.items()
            }
            self.file.close()
            check_closed()
            described = [table for columns in datasets.values() for table in columns.values()]
            least = -(-raw_bytes(described) // EXPANSION)
            if least > os.path.getsize(self.path):  # zeros without end: what reads shall not
                os.truncate(self.path, least)  # take it for a bomb
            size = os.path.getsize(self.path)
            table = SegmentTable(self.schema, self.samples, size, datasets)
            if self._alone:
                append_table(self.path, table)
        return table

    def let_go(self) -> None:
        """In a forked child: close the file, and have all that HDF5 does to it come to nothing.

        HDF5 knows an open file by its inode, and would take another that comes to have it for this.
        """
        if self.file.isopen:
            with open(os.devnull, "r+b") as nothing:
                os.dup2(nothing.fileno(), self.file.fileno(), inheritable=False)
            with suppress(Exception):
                self.file.close()

    def abort(self) -> None:
        """Close and remove the file; what could not be closed is removed all the same."""
        with hdf5_lock, suppress(Exception):
            self.file.close()
        with suppress(OSError):
            self.path.unlink()


def _after_fork() -> None:
    hdf5_lock.release()
    for writer in list(_live):
        writer.let_go()


os.register_at_fork(
    before=hdf5_lock.acquire, after_in_parent=hdf5_lock.release, after_in_child=_after_fork
)


def check_closed() -> None:
    """HDF5ExtError where HDF5 could not write all that it still held of the file just closed.

    PyTables does not look at what HDF5 says of closing a file. But HDF5 remembers until its next
    call, and any error that is made takes up what it remembers.
    """
    import tables

    error = tables.HDF5ExtError("HDF5 could not finish the file", h5bt="VERBOSE")
    if error.h5backtrace:
        raise error


def _stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Bools are kept as uint8: HDF5 has no bool, and tools differ in what they take for one."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def _byteorder(dtype: np.dtype[Any]) -> str | None:
    if dtype.itemsize == 1:
        return None
    return "big" if dtype.str[0] == ">" else "little"


@contextmanager
def quiet_names() -> Iterator[None]:
    """PyTables warns of group names that are Python keywords; fields may be called so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def hdf5_errors(path: Path) -> Iterator[None]:
    """Turn PyTables' and the system's errors into one that names the file."""
    import tables

    try:
        yield
    except (tables.HDF5ExtError, OSError) as error:
        # HDF5's back trace runs over pages; of all that, the system's own word is what helps.
        told = re.search(r"error message = '([^']*)'", str(error))
        cause = told[1] if told else str(error).strip().rpartition("\n")[2]
        raise StorageError(f"{path}: could not be written: {cause}") from error

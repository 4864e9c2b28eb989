"""The chunk table of any HDF5 file that has none, by parsing the file in Python.

It serves segments whose .idx was lost, and single files from elsewhere. The parser is pyfive,
which is pure Python: no libhdf5, whose faults a stranger's file could reach, and no PyTables,
which unpickles what it finds in attributes. What the file says is then held to the same rules
as any .idx: every chunk inside the file, sizes bounded, ranks and types as they must be. Fields
must be in the file itself: links that lead elsewhere, external storage and virtual datasets are
refused. And a file that has the parser go round in circles is noticed by how much it reads.

Blosc, Blosc2 and unfiltered chunks are decoded by our own reader; deflate, shuffle and fletcher32
by `filters.py`, a run of rows at a time; any other filter by libhdf5, in a process of its own
(`foreign.py`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore import strictjson
from raggedstore.errors import CorruptionError, FormatError, RaggedStoreError
from raggedstore.layout import (
    DATA,
    SCHEMA_ATTRIBUTE,
    SHAPE,
    SPAN,
    TABLE_ATTRIBUTE,
    Column,
    columns_of,
)
from raggedstore.schema import MAX_DIMENSIONS, Field, Schema
from raggedstore.segment.appended import hdf5_size
from raggedstore.segment.blocks import BlockTable, block_checksums, blocks_of
from raggedstore.segment.boxes import box_of, decode_boxes
from raggedstore.segment.codec import decode_blosc, decode_frame
from raggedstore.segment.file import FileBytes
from raggedstore.segment.filters import PIPELINE, unfilter
from raggedstore.segment.foreign import ForeignDataset
from raggedstore.segment.parser import BITS, parse
from raggedstore.segment.table import (
    ENTRY,
    EXPANSION,
    DatasetTable,
    SegmentTable,
    check_bounds,
    check_together,
    checksum,
)

__all__ = ["is_snappy", "rebuild_table", "with_checksums"]

BLOSC, BLOSC2 = 32001, 32026
_SNAPPY = 3  # of Blosc's compressors, as its filter counts them
_HEAD_BYTES = 2**13  # where a chunk of up to some 2,000 blocks says where they lie
_RUN_BYTES = 2**20  # of rows that are read together from a dataset without chunks of its own
_PARTS_BYTES = 2**26  # of rows that are put together from chunks of parts of them
_RUNS = 2**20  # of them in a dataset at most
MAX_CHUNK_BYTES = 2**31 - 1
_READ_OVER = 8  # a file may be read so many times over while it is parsed,
_READ_MORE = 2**24  # and so many bytes besides


def rebuild_table(
    name: str, data: FileBytes, *, group: str = "/", ends_here: bool = False
) -> SegmentTable:
    """The chunk table of the fields in `group` of an HDF5 file.

    Parameters
    ----------
    name
        What errors call the file.
    data
        The file.
    group
        Where the fields' groups lie, or the three arrays of a single ragged field.
    ends_here
        No chunk table was found behind the end, so one that was there is damaged.

    Raises
    ------
    FormatError
        It holds nothing that raggedstore reads.
    CorruptionError
        It is damaged, or no HDF5 file.
    """
    try:
        stream = _Buffered(data, most=_READ_OVER * len(data) + _READ_MORE)
        root = parse(stream)
        if ends_here and TABLE_ATTRIBUTE in root.attrs and hdf5_size(data) != len(data):
            raise CorruptionError("cut short, or the chunk table at its end is damaged")
        node = root
        for part in group.split("/"):
            node = _child(node, part) if part else node
        if not hasattr(node, "keys"):
            raise FormatError(f"{group!r} is no group")
        nodes = _field_nodes(node)
        schema = _declared(node) or _field_of(_declared(root), group, nodes) or _inferred(nodes)
        table = _table(schema, nodes, data, root.userblock_size)
        stream.most = None
        return table
    except RaggedStoreError as error:
        raise type(error)(f"{name}: {error}") from None
    except MemoryError:
        raise
    except NotImplementedError as error:
        raise FormatError(f"{name}: holds what this parser cannot read: {error}") from None
    except Exception as error:  # the parser meets whatever a damaged file leads it to
        raise CorruptionError(
            f"{name}: not readable as HDF5: {type(error).__name__}: {error}"
        ) from error


def with_checksums(table: SegmentTable, data: FileBytes) -> SegmentTable:
    """A rebuilt table with the checksums of what the file holds now.

    Raises
    ------
    FormatError
        A dataset is not compressed as the writer does.
    """
    datasets = {
        name: {column: _checksummed(dataset, data) for column, dataset in columns.items()}
        for name, columns in table.datasets.items()
    }
    return replace(table, datasets=datasets, checksums=True)


def _checksummed(dataset: DatasetTable, data: FileBytes) -> DatasetTable:
    if dataset.source is not None:
        raise FormatError(f"{dataset.column.name} is not compressed as the writer does")
    entries, blocks = dataset.entries.copy(), dataset.blocks
    checks = None if blocks is None else np.zeros_like(blocks.checks)
    for i, (offset, size, _) in enumerate(entries.tolist()):
        stored = data.read(offset, size)
        entries["xxh3"][i] = checksum(stored)
        if blocks is not None and checks is not None and blocks.known[i]:
            edges = np.array(blocks.run(i, 0, checks.shape[1]), np.uint32)
            checks[i] = block_checksums(stored, edges)
    if blocks is not None and checks is not None:
        blocks = replace(blocks, checks=checks)
    return replace(dataset, entries=entries, blocks=blocks)


class _Stream(io.RawIOBase):
    """A file's bytes as the stream that pyfive takes."""

    def __init__(self, data: FileBytes) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = max(0, offset + (0, self._at, len(self._data))[whence])
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        size = max(min(len(buffer), len(self._data) - self._at), 0)
        buffer[:size] = self._data.read(self._at, size) if size else b""
        self._at += size
        return size


class _Buffered(io.BufferedReader):
    """A file's stream that makes room for no more than is in it, whatever is asked of it."""

    def __init__(self, data: FileBytes, *, most: int | None = None) -> None:
        super().__init__(_Stream(data))
        self._size = len(data)
        self.most = most  #: bytes that may still be read; None for any number

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self.tell(), 0)
        piece = super().read(left if size is None or size < 0 else min(size, left))
        if self.most is not None:
            self.most -= len(piece) + 1  # reading nothing, over and over, counts too
            if self.most < 0:
                raise CorruptionError("what it says of itself goes round in circles")
        return piece


def _child(node: Any, name: str) -> Any:
    """A group or dataset in the group `node`, which must be there itself and not by a soft link."""
    try:
        child = node[name]
    except KeyError:
        raise FormatError(f"no group {name!r} in it") from None
    # A link leads to something of another name, or to nothing.
    if getattr(child, "name", None) != f"{node.name.rstrip('/')}/{name}":
        raise FormatError(f"{name!r} in its group {node.name!r} is a link")
    return child


def _is_dataset(node: Any, name: str) -> bool:
    return name in node and hasattr(_child(node, name), "shape")


def _field_nodes(node: Any) -> dict[str, Any]:
    """The groups that hold fields: the subgroups with data, or the group itself as "data"."""
    if _is_dataset(node, DATA):
        return {DATA: node}
    nodes = {}
    for name in filter(partial(_may_be_group, node), node):
        child = _child(node, name)
        if hasattr(child, "keys") and _is_dataset(child, DATA):
            nodes[name] = child
    if not nodes:
        raise FormatError("no group in it holds data, data_start_and_stop and data_shape")
    return nodes


def _may_be_group(node: Any, name: str) -> bool:
    """Whether a name leads to a group, which is not followed to any other file or place.

    What else lies beside the fields need not be what the parser can read.
    """
    target = getattr(node, "_links", {}).get(name)
    if target is None or isinstance(target, str):
        return target is None
    try:
        objects = node.file._get_dataobjects(target)
        return not (objects.is_dataset or objects.is_datatype)
    except NotImplementedError:
        return False


def _shape_of(dataset: Any, name: str) -> tuple[int, ...]:
    """Its shape, of a dimension at least."""
    try:
        shape = tuple(int(size) for size in dataset.shape)
    except TypeError:  # of one that is said to have no values
        shape = ()
    if not shape:
        raise FormatError(f"{name!r} holds no rows: it is a single value, or none")
    return shape


def _declared(node: Any) -> Schema | None:
    """The schema that a segment's root carries."""
    text = node.attrs.get(SCHEMA_ATTRIBUTE)
    if text is None:
        return None
    try:
        return Schema.from_json(strictjson.loads(text if isinstance(text, bytes) else str(text)))
    except ValueError as error:
        raise FormatError(f"its attribute {SCHEMA_ATTRIBUTE} is no schema: {error}") from None


def _field_of(schema: Schema | None, group: str, nodes: dict[str, Any]) -> Schema | None:
    """The schema of one field's group, where the whole file's says what it is."""
    name = group.strip("/")
    if schema is None or name not in schema or list(nodes) != [DATA]:
        return None
    return Schema({DATA: schema[name]})


def _inferred(nodes: dict[str, Any]) -> Schema:
    """A schema from what lies in the groups: every dimension of a ragged field is ragged."""
    fields = {}
    for name, node in nodes.items():
        dataset = _child(node, DATA)
        rows = _shape_of(dataset, name)
        dtype = _dtype(dataset)
        if not isinstance(dtype, np.dtype) or dtype.kind not in "biufc":
            raise FormatError(
                f"{name!r} holds {dtype}, not plain numbers (a VLArray opens in PyTables "
                f"with RaggedVLArray.attach)"
            )
        if SPAN in node and SHAPE in node:
            shape = _shape_of(_child(node, SHAPE), name)
            if len(shape) != 2 or shape[1] > MAX_DIMENSIONS or len(rows) != 1:
                raise FormatError(f"{name!r}: data has rank {len(rows)}, shape {shape}")
            fields[name] = Field(dtype, (None,) * shape[1])
        elif SPAN in node:
            raise FormatError(f"{name!r} has {SPAN}, and no {SHAPE}")
        else:
            fields[name] = Field(dtype, rows[1:])
    return Schema(fields)


def _dtype(dataset: Any) -> Any:
    """Of a dataset's values; h5py keeps bools as an enumeration, and PyTables as bits."""
    dtype = dataset.dtype
    names = (getattr(dtype, "metadata", None) or {}).get("enum")
    if names == BITS and dataset.attrs.get("CLASS") not in (b"ARRAY", b"CARRAY", b"EARRAY"):
        raise FormatError(f"{dataset.name} holds bitfields, which stand for bools in PyTables only")
    if names == BITS or (names == {"FALSE": 0, "TRUE": 1} and dtype.itemsize == 1):
        return np.dtype(bool)
    return dtype


def _table(schema: Schema, nodes: dict[str, Any], data: FileBytes, userblock: int) -> SegmentTable:
    counts = set()
    datasets: dict[str, dict[str, DatasetTable]] = {}
    for name, field in schema.items():
        if name not in nodes:
            raise FormatError(f"field {name!r} of its schema is not in it")
        columns = columns_of(field)
        datasets[name] = {}
        for column in columns:
            if column.name not in nodes[name]:
                raise FormatError(f"field {name!r} has no {column.name}")
            node = _child(nodes[name], column.name)
            table = _dataset(node, column, name, data, userblock)
            datasets[name][column.name] = table
        counts.add(datasets[name][columns[-1].name].rows)
        if len({datasets[name][column.name].rows for column in columns[1:]}) > 1:
            raise FormatError(f"field {name!r}: its side columns differ in length")
    if len(counts) != 1:
        raise FormatError(f"its fields differ in length: {sorted(counts)}")
    return SegmentTable(schema, counts.pop(), len(data), datasets, checksums=False)


def _dataset(node: Any, column: Column, name: str, data: FileBytes, userblock: int) -> DatasetTable:
    """One dataset's chunks, and how to decode them."""
    where = f"field {name!r}, {column.name}"
    dtype, shape = _dtype(node), _shape_of(node, name)
    if dtype == np.dtype("uint8") and column.dtype == np.dtype(bool):
        dtype = column.dtype  # as segments keep bools
    side = column.name != DATA
    if shape[1:] != column.row_shape or not (
        dtype == column.dtype or (side and dtype.kind in "iu" and dtype.itemsize <= 8)
    ):
        raise FormatError(
            f"{where}: expected rows of {column.row_shape} {column.dtype}, got {shape} {dtype}"
        )
    column = Column(column.name, dtype, column.row_shape)
    if shape[0] > max(len(data), 1) * EXPANSION // max(column.row_nbytes, 1):
        raise CorruptionError(f"{where}: {shape[0]} rows in a file of {len(data)} bytes")
    storage = _STORAGE.get(node.id.layout_class)
    if storage is None:
        raise FormatError(f"{where}: its values lie in other files")
    table = storage(node, column, shape[0], data, userblock)
    check_bounds(table.entries, len(data), table.chunk_rows * max(column.row_nbytes, 1), name)
    check_together([table], len(data))
    return table


def _compact(node: Any, column: Column, rows: int, data: FileBytes, userblock: int) -> DatasetTable:
    """A dataset whose values lie in its own header."""
    if rows * column.row_nbytes >= _COMPACT:
        raise CorruptionError(f"{rows} rows of {column.name} in a header")
    raw = np.ascontiguousarray(node[...]).reshape(-1).view(np.uint8)
    source = partial(_copy_rows, raw)
    return DatasetTable(
        column, rows, max(rows, 1), np.zeros(int(rows > 0), ENTRY),
        source=lambda number, stored, out: source(out),
    )  # fmt: skip


def _contiguous(
    node: Any, column: Column, rows: int, data: FileBytes, userblock: int
) -> DatasetTable:
    """A dataset whose values lie one after another, here taken for chunks."""
    if rows and node.id.data_offset == _UNDEFINED:
        raise FormatError(f"the values of {column.name} were never written, or lie in other files")
    chunk_rows = _run_rows(column, rows, max(_RUN_BYTES // max(column.row_nbytes, 1), 1))
    entries = np.zeros(-(-rows // chunk_rows), ENTRY)
    starts = np.arange(len(entries)) * chunk_rows
    entries["size"] = (np.minimum(starts + chunk_rows, rows) - starts) * column.row_nbytes
    if rows:
        first = node.id.data_offset + userblock
        if first + rows * column.row_nbytes > len(data):
            raise CorruptionError(f"{rows} rows of {column.name} reach out of the file")
        entries["offset"] = starts * column.row_nbytes + first
    return DatasetTable(
        column, rows, chunk_rows, entries,
        source=lambda number, stored, out: _copy_rows(np.frombuffer(stored, np.uint8), out),
    )  # fmt: skip


def _chunked(node: Any, column: Column, rows: int, data: FileBytes, userblock: int) -> DatasetTable:
    """A dataset in chunks, of whole rows or not."""
    shape = tuple(int(size) for size in node.chunks)
    nbytes = math.prod(shape) * column.dtype.itemsize
    if len(shape) != 1 + len(column.row_shape) or not 1 <= nbytes <= MAX_CHUNK_BYTES:
        raise FormatError(f"chunks of {shape} values of {column.name} are not read")
    pipeline = node.id.filter_pipeline or []
    filters = [int(f["filter_id"]) for f in pipeline]
    found = _Chunks(node, shape, userblock) if rows else None
    decode = None if is_snappy(pipeline) else _DECODERS.get(tuple(filters))
    if decode is not None and shape[1:] == column.row_shape:
        ordered = found.in_order(-(-rows // shape[0])) if found is not None else _none()
        if ordered is not None:
            entries, skipped = ordered
            check_bounds(entries, len(data), nbytes, column.name)
            if filters == [BLOSC2]:
                decode = partial(decode_boxes, shape=shape, dtype=column.dtype)
                blocks, boxes = _blocks(entries, shape, nbytes, data)
                if not boxes and not skipped.any():
                    return DatasetTable(column, rows, shape[0], entries, blocks)
            stored = _stored(decode, skipped)
            return DatasetTable(column, rows, shape[0], entries, source=stored)
    chunk_rows = _run_rows(column, rows, shape[0], whole=shape[1:] == column.row_shape)
    entries = np.zeros(-(-rows // chunk_rows), ENTRY)
    source: Source | None = None
    if not PIPELINE.issuperset(filters):
        source = _by_libhdf5(ForeignDataset(data.path, node.name), column, rows, chunk_rows)
    elif found is not None:
        check_bounds(found.entries, len(data), nbytes, column.name)
        if len(found.entries) * nbytes > EXPANSION * len(data):
            raise CorruptionError(f"{len(found.entries)} chunks of {nbytes} bytes are too many")
        fill = np.asarray(node.fillvalue, column.dtype)
        source = _by_grid(found, column, rows, chunk_rows, filters, fill, data)
    return DatasetTable(column, rows, chunk_rows, entries, source=source)


_UNDEFINED = 2**64 - 1  # an address that HDF5 has not given out
_COMPACT = 2**16  # bytes of a header's message
_STORAGE = {0: _compact, 1: _contiguous, 2: _chunked}  #: by HDF5's classes of layout


def is_snappy(pipeline: Sequence[Any]) -> bool:
    """Whether a dataset's filter is Blosc with Snappy, which c-blosc2 comes without."""
    return any(
        int(filter["filter_id"]) == BLOSC and tuple(filter["client_data"][6:7]) == (_SNAPPY,)
        for filter in pipeline
    )


def _run_rows(column: Column, rows: int, chunk_rows: int, *, whole: bool = True) -> int:
    """How many rows are read together from a dataset whose chunks are not read one by one."""
    row_nbytes = max(column.row_nbytes, 1)
    # Of chunks that are parts of rows many are decoded for one of these.
    most = MAX_CHUNK_BYTES if whole else _PARTS_BYTES
    if chunk_rows * row_nbytes > most:
        chunk_rows = max(min(most, _RUN_BYTES if whole else most) // row_nbytes, 1)
    # A damaged file tells of any number of rows; what is kept for each run of them is bounded.
    chunk_rows *= max(-(-rows // (chunk_rows * _RUNS)), 1)
    if chunk_rows > MAX_CHUNK_BYTES // row_nbytes:
        raise FormatError(f"{rows} rows of {column.name} are too many")
    return chunk_rows


def _none() -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    return np.zeros(0, ENTRY), np.zeros(0, bool)


class _Chunks:
    """The chunks that a dataset has, in the order of their first rows.

    Raises
    ------
    CorruptionError
        One begins where none can.
    """

    def __init__(self, node: Any, shape: tuple[int, ...], userblock: int) -> None:
        index = node.id.index  # by the place of a chunk's first value
        places = sorted(index)
        self.shape = shape
        self.places = np.array(places, np.uint64).reshape(len(places), len(shape))
        if (self.places % np.array(shape, np.uint64)).any() or (self.places >= 2**62).any():
            raise CorruptionError("a chunk begins where none can")
        self.places = self.places.astype(np.int64)
        self.masks = np.array([index[place].filter_mask for place in places], np.int64)
        self.entries = np.zeros(len(places), ENTRY)
        self.entries["offset"] = [index[place].byte_offset + userblock for place in places]
        self.entries["size"] = [index[place].size for place in places]

    def in_order(self, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]] | None:
        """The first `count` chunks of whole rows, and whether each skips a filter; or None."""
        first = self.places[:count, 0]
        if len(first) < count or (first != np.arange(count) * self.shape[0]).any():
            return None  # HDF5 takes a chunk that is not there for one of fill values
        # It stores one as it is where an optional filter could make nothing of it.
        return self.entries[:count], self.masks[:count] & 1 != 0


def _blocks(
    entries: npt.NDArray[Any], shape: tuple[int, ...], chunk_nbytes: int, data: FileBytes
) -> tuple[BlockTable | None, bool]:
    """Where the blocks of Blosc2 chunks lie, from what each begins with; whether any has boxes."""
    found = []
    for offset, size in entries[["offset", "size"]].tolist():
        head = data.read(offset, min(size, _HEAD_BYTES))
        try:
            if box_of(head, shape) is not None:
                return None, True
        except CorruptionError:
            return None, True  # of that chunk alone, and said when it is read
        blocks = blocks_of(head, size)
        found.append((blocks, np.zeros(0 if blocks is None else len(blocks.edges) - 1, np.uint32)))
    return BlockTable.of(found, chunk_nbytes), False


Decoder = Callable[[memoryview, npt.NDArray[np.uint8]], None]
Source = Callable[[int, memoryview, npt.NDArray[np.uint8]], None]


def _stored(decode: Decoder, skipped: npt.NDArray[np.bool_]) -> Source:
    """A source that decodes a chunk, unless its only filter was skipped, from its stored bytes."""
    return lambda number, stored, out: (_copy if skipped[number] else decode)(stored, out)


def _copy(stored: memoryview, out: npt.NDArray[np.uint8]) -> None:
    if len(stored) != out.nbytes:
        raise CorruptionError(f"{len(stored)} stored bytes where {out.nbytes} belong")
    out[:] = np.frombuffer(stored, np.uint8)


#: Pipelines that are decoded here, each of one filter at most.
_DECODERS: dict[tuple[int, ...], Decoder] = {
    (): _copy,
    (BLOSC,): decode_blosc,
    (BLOSC2,): decode_frame,
}


def _copy_rows(raw: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Copy rows to where a whole run of them belongs, of which the last may have fewer."""
    if len(raw) > len(out):
        raise CorruptionError(f"{len(raw)} bytes where {len(out)} belong")
    out[: len(raw)] = raw
    out[len(raw) :] = 0


def _by_grid(
    found: _Chunks,
    column: Column,
    rows: int,
    chunk_rows: int,
    filters: Sequence[int],
    fill: npt.NDArray[Any],
    data: FileBytes,
) -> Source:
    """A source that puts a run of rows together from the chunks that it lies in."""
    firsts, shape, dtype = found.places[:, 0], found.shape, column.dtype
    nbytes = math.prod(shape) * dtype.itemsize

    def read(number: int, stored: memoryview, out: npt.NDArray[np.uint8]) -> None:
        start = number * chunk_rows
        stop = min(start + chunk_rows, rows)
        size = (stop - start) * column.row_nbytes
        out[size:] = 0
        target = out[:size].view(dtype).reshape(-1, *column.row_shape)
        target[...] = fill
        low, high = np.searchsorted(firsts, [start - shape[0] + 1, stop]).tolist()
        for i in range(low, high):
            at, chunk_bytes, _ = found.entries[i].tolist()
            raw = unfilter(
                data.read(at, chunk_bytes), filters, int(found.masks[i]), dtype.itemsize, nbytes
            )
            place = found.places[i].tolist()
            into, part = [], []
            for axis, (first, length) in enumerate(zip(place, shape, strict=True)):
                begin = start if axis == 0 else 0
                end = stop if axis == 0 else column.row_shape[axis - 1]
                a, b = max(first, begin), min(first + length, end)
                into.append(slice(a - begin, max(b, a) - begin))
                part.append(slice(a - first, max(b, a) - first))
            target[tuple(into)] = raw.view(dtype).reshape(shape)[tuple(part)]

    return read


def _by_libhdf5(dataset: ForeignDataset, column: Column, rows: int, chunk_rows: int) -> Source:
    """A source that has libhdf5 read a run of rows."""

    def read(number: int, stored: memoryview, out: npt.NDArray[np.uint8]) -> None:
        start = number * chunk_rows
        stop = min(start + chunk_rows, rows)
        size = (stop - start) * column.row_nbytes
        dataset.read_into(start, stop, out[:size])
        out[size:] = 0

    return read

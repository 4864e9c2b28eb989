"""The chunk table of any HDF5 file that has none, by parsing the file in Python.

It serves segments whose .idx was lost, and single files from elsewhere. The parser is pyfive,
which is pure Python: no libhdf5, whose faults a stranger's file could reach, and no PyTables,
which unpickles what it finds in attributes. What the file says is then held to the same rules
as any .idx: every chunk inside the file, sizes bounded, ranks and types as they must be.

Blosc, Blosc2 and unfiltered chunks are decoded by our own reader. Deflate, shuffle and fletcher32
are decoded by pyfive, a run of rows at a time; any other filter by libhdf5, in a process of its
own (`foreign.py`).
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError, FormatError, RaggedStoreError
from raggedstore.layout import DATA, SCHEMA_ATTRIBUTE, SHAPE, SPAN, Column, columns_of
from raggedstore.schema import MAX_DIMENSIONS, Field, Schema
from raggedstore.segment.blocks import BlockTable, blocks_of
from raggedstore.segment.codec import decode_blosc, decode_frame
from raggedstore.segment.file import FileBytes
from raggedstore.segment.foreign import ForeignDataset
from raggedstore.segment.table import ENTRY, DatasetTable, SegmentTable, check_bounds

__all__ = ["rebuild_table"]

BLOSC, BLOSC2 = 32001, 32026
_PARSED = frozenset({1, 2, 3})  # deflate, shuffle, fletcher32: what pyfive decodes by itself
_HEAD_BYTES = 2**13  # where a chunk of up to some 2,000 blocks says where they lie
_RUN_BYTES = 2**20  # of rows that are read together from a dataset without chunks of its own
_RUNS = 2**20  # of them in a dataset at most
MAX_CHUNK_BYTES = 2**31 - 1


def rebuild_table(name: str, data: FileBytes, *, group: str = "/") -> SegmentTable:
    """The chunk table of the fields in `group` of an HDF5 file.

    Parameters
    ----------
    name
        What errors call the file.
    data
        The file.
    group
        Where the fields' groups lie, or the three arrays of a single ragged field.

    Raises
    ------
    FormatError
        It holds nothing that raggedstore reads.
    CorruptionError
        It is damaged, or no HDF5 file.
    """
    import pyfive

    try:
        root = pyfive.File(_Buffered(data))
        try:
            node = root[group] if group.strip("/") else root
        except KeyError:
            raise FormatError(f"no group {group!r} in it") from None
        if not hasattr(node, "keys"):
            raise FormatError(f"{group!r} is no group")
        nodes = _field_nodes(node)
        schema = _declared(node) or _inferred(nodes)
        return _table(schema, nodes, data)
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

    def __init__(self, data: FileBytes) -> None:
        super().__init__(_Stream(data))
        self._size = len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _field_nodes(node: Any) -> dict[str, Any]:
    """The groups that hold fields: the subgroups with data, or the group itself as "data"."""
    if DATA in node and hasattr(node[DATA], "shape"):
        return {DATA: node}
    nodes = {}
    for name in node:
        child = node[name]
        if hasattr(child, "keys") and DATA in child and hasattr(child[DATA], "shape"):
            nodes[name] = child
    if not nodes:
        raise FormatError("no group in it holds data, data_start_and_stop and data_shape")
    return nodes


def _declared(node: Any) -> Schema | None:
    """The schema that a segment's root carries."""
    import json

    text = node.attrs.get(SCHEMA_ATTRIBUTE)
    if text is None:
        return None
    try:
        return Schema.from_json(json.loads(bytes(text) if isinstance(text, bytes) else str(text)))
    except ValueError as error:
        raise FormatError(f"its attribute {SCHEMA_ATTRIBUTE} is no schema: {error}") from None


def _inferred(nodes: dict[str, Any]) -> Schema:
    """A schema from what lies in the groups: every dimension of a ragged field is ragged."""
    fields = {}
    for name, node in nodes.items():
        dataset = node[DATA]
        if not isinstance(dataset.dtype, np.dtype) or dataset.dtype.kind not in "biufc":
            raise FormatError(
                f"{name!r} holds {dataset.dtype}, not plain numbers (a VLArray opens in PyTables "
                f"with RaggedVLArray.attach)"
            )
        if SPAN in node and SHAPE in node:
            shape = node[SHAPE].shape
            if len(shape) != 2 or shape[1] > MAX_DIMENSIONS or len(dataset.shape) != 1:
                raise FormatError(f"{name!r}: data has rank {len(dataset.shape)}, shape {shape}")
            fields[name] = Field(dataset.dtype, (None,) * shape[1])
        else:
            fields[name] = Field(dataset.dtype, tuple(dataset.shape[1:]))
    return Schema(fields)


def _table(schema: Schema, nodes: dict[str, Any], data: FileBytes) -> SegmentTable:
    counts = set()
    datasets: dict[str, dict[str, DatasetTable]] = {}
    lock = threading.Lock()  # pyfive seeks in one file
    for name, field in schema.items():
        if name not in nodes:
            raise FormatError(f"field {name!r} of its schema is not in it")
        columns = columns_of(field)
        datasets[name] = {}
        for column in columns:
            if column.name not in nodes[name]:
                raise FormatError(f"field {name!r} has no {column.name}")
            table = _dataset(nodes[name][column.name], column, name, data, lock)
            datasets[name][column.name] = table
        counts.add(datasets[name][columns[-1].name].rows)
        if len({datasets[name][column.name].rows for column in columns[1:]}) > 1:
            raise FormatError(f"field {name!r}: its side columns differ in length")
    if len(counts) != 1:
        raise FormatError(f"its fields differ in length: {sorted(counts)}")
    return SegmentTable(schema, counts.pop(), len(data), datasets, checksums=False)


def _dataset(
    node: Any, column: Column, name: str, data: FileBytes, lock: threading.Lock
) -> DatasetTable:
    """One dataset's chunks, and how to decode them."""
    where = f"field {name!r}, {column.name}"
    dtype, shape = node.dtype, tuple(int(size) for size in node.shape)
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
    rows, row_nbytes = shape[0], max(column.row_nbytes, 1)
    chunks = node.chunks
    if chunks is not None and tuple(chunks[1:]) == shape[1:]:
        chunk_rows = int(chunks[0])
        if not 1 <= chunk_rows <= MAX_CHUNK_BYTES // row_nbytes:
            raise FormatError(f"{where}: chunks of {chunk_rows} rows are too large")
        if rows > max(len(data), 1) * 2**16 // row_nbytes:
            raise CorruptionError(f"{where}: {rows} rows in a file of {len(data)} bytes")
        found = _chunk_entries(node, rows, chunk_rows)
        filters = [int(f["filter_id"]) for f in node.id.filter_pipeline or []]
        decode = _DECODERS.get(tuple(filters))
        if found is not None and decode is not None:
            entries, skipped = found
            check_bounds(entries, len(data), name)
            if filters == [BLOSC2] and not skipped.any():
                blocks = _blocks(entries, chunk_rows * row_nbytes, data)
                return DatasetTable(column, rows, chunk_rows, entries, blocks)
            source = _stored(decode, skipped)
            return DatasetTable(column, rows, chunk_rows, entries, source=source)
    elif rows > max(len(data), 1) * 2**16 // row_nbytes:
        raise CorruptionError(f"{where}: {rows} rows in a file of {len(data)} bytes")
    else:
        chunk_rows = max(_RUN_BYTES // row_nbytes, 1)
    # A damaged file tells of any number of rows; what is kept for each run of them is bounded.
    chunk_rows *= max(-(-rows // (chunk_rows * _RUNS)), 1)
    if chunk_rows > MAX_CHUNK_BYTES // row_nbytes:
        raise FormatError(f"{where}: {rows} rows are too many")
    entries = np.zeros(-(-rows // chunk_rows), ENTRY)
    filters = [int(f["filter_id"]) for f in node.id.filter_pipeline or []]
    if _PARSED.issuperset(filters):
        source = _by_parser(node, chunk_rows, lock)
    else:
        source = _by_libhdf5(ForeignDataset(data.path, node.name), rows, chunk_rows)
    return DatasetTable(column, rows, chunk_rows, entries, source=source)


def _chunk_entries(
    node: Any, rows: int, chunk_rows: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]] | None:
    """Where every chunk lies, and whether it skips a filter; None where one is not there."""
    count = -(-rows // chunk_rows)
    if node.id.get_num_chunks() < count:
        return None
    entries = np.zeros(count, ENTRY)
    found, skipped = np.zeros(count, bool), np.zeros(count, bool)
    for i in range(node.id.get_num_chunks()):
        info = node.id.get_chunk_info(i)
        number = int(info.chunk_offset[0]) // chunk_rows
        if number < count:
            # HDF5 stores a chunk as it is where an optional filter could make nothing of it.
            skipped[number] = bool(info.filter_mask)
            entries[number] = (info.byte_offset, info.size, 0)
            found[number] = True
    return (entries, skipped) if found.all() else None


def _blocks(entries: npt.NDArray[Any], chunk_nbytes: int, data: FileBytes) -> BlockTable | None:
    """Where the blocks of Blosc2 chunks lie, from what each chunk begins with."""
    found = []
    for offset, size in entries[["offset", "size"]].tolist():
        blocks = blocks_of(data.read(offset, min(size, _HEAD_BYTES)), size)
        found.append((blocks, np.zeros(0 if blocks is None else len(blocks.edges) - 1, np.uint32)))
    return BlockTable.of(found, chunk_nbytes)


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


def _by_parser(node: Any, chunk_rows: int, lock: threading.Lock) -> Source:
    """A source that has pyfive read a run of rows, whatever their filters and chunks."""

    def read(number: int, stored: memoryview, out: npt.NDArray[np.uint8]) -> None:
        start = number * chunk_rows
        try:
            with lock:
                rows = np.ascontiguousarray(node[start : start + chunk_rows])
        except Exception as error:  # as above: whatever a damaged file leads the parser to
            raise CorruptionError(f"not readable: {type(error).__name__}: {error}") from None
        raw = rows.reshape(-1).view(np.uint8)
        if raw.nbytes > out.nbytes:
            raise CorruptionError(f"{raw.nbytes} bytes where {out.nbytes} belong")
        out[: raw.nbytes] = raw
        out[raw.nbytes :] = 0

    return read


def _by_libhdf5(dataset: ForeignDataset, rows: int, chunk_rows: int) -> Source:
    """A source that has libhdf5 read a run of rows."""

    def read(number: int, stored: memoryview, out: npt.NDArray[np.uint8]) -> None:
        start = number * chunk_rows
        dataset.read_into(start, min(start + chunk_rows, rows), out)

    return read

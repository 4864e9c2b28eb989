"""The chunk table: where each chunk of a segment lies in its file, and its checksum.

It is made when a segment is sealed and kept beside it as ``.idx``, so that a reader needs no
libhdf5. On disk, little-endian:

    8 bytes   magic "RSIDX\\x00\\x00\\x02", the last byte the version
    8         H, length of the header
    H         header, JSON: see `SegmentTable`; padded with spaces to a multiple of 8
    24 each   entries, datasets one after another: offset u64, size u64, xxh3-64 u64
    4 each    of every dataset with blocks, chunk by chunk: k + 1 edges u32, then k checks u32
    8         xxh3-64 of all bytes before

The checksum shows damage, not malice: whoever makes a table can make it hold. So what a table
claims is refused when it is read unless it can be: chunks lie inside the file, none over another,
none much larger than what it holds; blocks lie inside their chunks; and all values together are
no more than `EXPANSION` times the file. Nothing later need ask.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from raggedstore import strictjson
from raggedstore.errors import CorruptionError, FormatError
from raggedstore.layout import Column, columns_of
from raggedstore.schema import Schema
from raggedstore.segment.blocks import HEADER as BLOCK_HEADER
from raggedstore.segment.blocks import BlockTable, check_header

__all__ = [
    "ENTRY",
    "EXPANSION",
    "MAX_BYTES",
    "DatasetTable",
    "SegmentTable",
    "check_bounds",
    "check_together",
    "checksum",
    "raw_bytes",
]

MAGIC = b"RSIDX\x00\x00\x02"
ENTRY = np.dtype([("offset", "<u8"), ("size", "<u8"), ("xxh3", "<u8")])
MAX_BYTES = 2**30  #: of an .idx
EXPANSION = 2**16  #: raw bytes for each byte of a file, at most: a small file is no bomb
_OVERHEAD = 2**16  # stored bytes of a chunk, beyond twice its raw ones
_MAX_HEADER = 2**24


def checksum(data: Any) -> int:
    """xxh3-64 of any buffer."""
    return xxhash.xxh3_64_intdigest(data)


@dataclass(frozen=True, slots=True)
class DatasetTable:
    """One dataset: its rows, its chunk length in rows, and its chunks in order."""

    column: Column
    rows: int
    chunk_rows: int
    entries: npt.NDArray[Any]  #: (n_chunks,) of dtype `ENTRY`
    blocks: BlockTable | None = None  #: where its chunks can be decoded in part
    #: Decodes chunk `number` from its stored bytes, where it is not a Blosc2 frame.
    source: Callable[[int, memoryview, npt.NDArray[np.uint8]], None] | None = None


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """All datasets of one segment: ``datasets[field][column name]``."""

    schema: Schema
    samples: int
    file_bytes: int  #: size of the segment file it describes
    datasets: dict[str, dict[str, DatasetTable]]
    checksums: bool = True  #: whether the entries' checksums are known

    def dumps(self) -> bytes:
        """The table as the bytes of an .idx file."""
        tables = [table for field in self.datasets.values() for table in field.values()]
        header = {
            "samples": self.samples,
            "bytes": self.file_bytes,
            "schema": self.schema.to_json(),
            "datasets": [
                [t.rows, t.chunk_rows, t.blocks.nbytes, t.blocks.header.hex()]
                if t.blocks is not None
                else [t.rows, t.chunk_rows, 0, ""]
                for t in tables
            ],
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        blocks = [t.blocks for t in tables if t.blocks is not None]
        body = b"".join(
            [
                MAGIC,
                struct.pack("<Q", len(text)),
                text,
                *(t.entries.tobytes() for t in tables),
                *(np.hstack([b.edges, b.checks]).astype("<u4").tobytes() for b in blocks),
            ]
        )
        return body + struct.pack("<Q", checksum(body))

    @classmethod
    def loads(cls, data: bytes | memoryview, *, file_bytes: int) -> SegmentTable:
        """The table in the bytes of an .idx file, for a segment file of `file_bytes` bytes.

        Raises
        ------
        CorruptionError
            The table is damaged, or belongs to another file.
        """
        if len(data) < 24 or data[:7] != MAGIC[:7]:
            raise CorruptionError("not a chunk table")
        if np.frombuffer(data, np.uint8).ctypes.data % 8:  # behind HDF5's bytes it lies anywhere
            data = bytes(data)  # and its columns are read as they lie
        if struct.unpack("<Q", data[-8:])[0] != checksum(memoryview(data)[:-8]):
            raise CorruptionError("a chunk table's checksum does not hold")
        if data[:8] != MAGIC:
            raise FormatError(
                f"a chunk table of version {data[7]}; this raggedstore reads {MAGIC[7]}"
            )
        (length,) = struct.unpack_from("<Q", data, 8)
        if length > min(len(data) - 24, _MAX_HEADER) or length % 8:
            raise CorruptionError("a chunk table's header is of no length that it can have")
        try:
            header = strictjson.loads(bytes(data[16 : 16 + length]))
            schema = Schema.from_json(header["schema"])
            samples, counts = int(header["samples"]), list(header["datasets"])
            described = int(header["bytes"])
            if described != file_bytes:
                raise CorruptionError(
                    f"the chunk table is for a file of {described} bytes, this one has {file_bytes}"
                )
            return cls(
                schema,
                samples,
                file_bytes,
                _datasets(schema, samples, counts, data, 16 + length, file_bytes),
            )
        except CorruptionError:
            raise
        except (KeyError, TypeError, ValueError) as error:  # a SchemaError among them
            raise CorruptionError(f"a chunk table's header makes no sense: {error}") from None


def _datasets(
    schema: Schema,
    samples: int,
    counts: list[Any],
    data: bytes | memoryview,
    at: int,
    file_bytes: int,
) -> dict[str, dict[str, DatasetTable]]:
    """Cut the entries into datasets, each bound checked."""
    datasets: dict[str, dict[str, DatasetTable]] = {}
    left = iter(counts)
    blocks: list[tuple[str, str, int, bytes]] = []
    for name, field in schema.items():
        datasets[name] = {}
        for column in columns_of(field):
            rows, chunk_rows, block, header = next(left, (-1, -1, 0, ""))
            rows, chunk_rows, block = int(rows), int(chunk_rows), int(block)
            if rows < 0 or chunk_rows < 1 or (column.name != "data" and rows != samples):
                raise CorruptionError(f"field {name!r}: {rows} rows for {samples} samples")
            if chunk_rows * max(column.row_nbytes, 1) >= 2**31:
                raise CorruptionError(f"field {name!r}: a chunk of {chunk_rows} rows is too large")
            n_chunks = -(-rows // chunk_rows)
            stop = at + n_chunks * ENTRY.itemsize
            if stop > len(data) - 8:
                raise CorruptionError(f"field {name!r}: the chunk table ends too early")
            entries = np.frombuffer(data, ENTRY, n_chunks, at)
            if not entries["size"].all():  # so that a file with holes is no large table
                raise CorruptionError(f"field {name!r}: a chunk of no bytes")
            check_bounds(entries, file_bytes, chunk_rows * column.row_nbytes, name)
            datasets[name][column.name] = DatasetTable(column, rows, chunk_rows, entries)
            if block:
                blocks.append((name, column.name, block, bytes.fromhex(header)))
            at = stop
        if not field.is_ragged and datasets[name]["data"].rows != samples:
            raise CorruptionError(f"field {name!r}: rows do not match {samples} samples")
    for name, column_name, block, head in blocks:
        table = datasets[name][column_name]
        found, at = _blocks(table, block, head, data, at)
        if found is None:
            raise CorruptionError(f"field {name!r}: its blocks make no sense")
        datasets[name][column_name] = replace(table, blocks=found)
    if at != len(data) - 8:
        raise CorruptionError("a chunk table is longer than its header says")
    check_together([t for columns in datasets.values() for t in columns.values()], file_bytes)
    return datasets


def check_together(tables: list[DatasetTable], file_bytes: int) -> None:
    """CorruptionError unless all chunks lie side by side and their values are not too many."""
    raw = raw_bytes(tables)
    if raw > EXPANSION * file_bytes:
        raise CorruptionError(f"{raw} bytes of values in a file of {file_bytes}")
    entries = np.concatenate([table.entries for table in tables])
    entries = entries[np.argsort(entries["offset"], kind="stable")]
    if (entries["offset"][:-1] + entries["size"][:-1] > entries["offset"][1:]).any():
        raise CorruptionError("a chunk lies over another")


def _blocks(
    table: DatasetTable, block: int, header: bytes, data: bytes | memoryview, at: int
) -> tuple[BlockTable | None, int]:
    """The blocks of a dataset from the bytes at `at`, and where they end; None for nonsense."""
    chunk_nbytes = table.chunk_rows * table.column.row_nbytes
    count, rest = divmod(chunk_nbytes, block) if block > 0 else (0, 1)
    n_chunks = len(table.entries)
    stop = at + n_chunks * (2 * count + 1) * 4
    if rest or count < 2 or len(header) != BLOCK_HEADER or header[31] or stop > len(data) - 8:
        return None, at
    cells = np.frombuffer(data, "<u4", n_chunks * (2 * count + 1), at).reshape(n_chunks, -1)
    check_header(header)
    blocks = BlockTable(header, block, cells[:, : count + 1], cells[:, count + 1 :])
    return (blocks if blocks.check_bounds(table.entries["size"]) else None), stop


def raw_bytes(tables: Iterable[DatasetTable]) -> int:
    """Bytes that all chunks come to, decoded."""
    return sum(len(t.entries) * t.chunk_rows * t.column.row_nbytes for t in tables)


def check_bounds(entries: npt.NDArray[Any], file_bytes: int, chunk_nbytes: int, name: str) -> None:
    """CorruptionError unless every entry lies inside the file and fits chunks of so many bytes."""
    size = np.uint64(file_bytes)
    if (entries["size"] > size).any() or (entries["offset"] > size - entries["size"]).any():
        raise CorruptionError(f"field {name!r}: a chunk lies outside the file")
    if (entries["size"] > np.uint64(2 * chunk_nbytes + _OVERHEAD)).any():
        raise CorruptionError(f"field {name!r}: a chunk of {chunk_nbytes} bytes is stored in more")

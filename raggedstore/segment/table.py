"""The chunk table: where each chunk of a segment lies in its file, and its checksum.

It is made when a segment is sealed and kept beside it as ``.idx``, so that a reader needs no
libhdf5. On disk, little-endian:

    8 bytes   magic "RSIDX\\x00\\x00\\x02", the last byte the version
    8         H, length of the header
    H         header, JSON: see `SegmentTable`; padded with spaces to a multiple of 8
    24 each   entries, datasets one after another: offset u64, size u64, xxh3-64 u64
    4 each    of every dataset with blocks, chunk by chunk: k + 1 edges u32, then k checks u32
    8         xxh3-64 of all bytes before

An offset or size that does not lie inside the segment is refused when the table is read, so
that nothing later need ask.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from raggedstore.errors import CorruptionError, FormatError, RaggedStoreError
from raggedstore.layout import Column, columns_of
from raggedstore.schema import Schema
from raggedstore.segment.blocks import HEADER as BLOCK_HEADER
from raggedstore.segment.blocks import BlockTable

__all__ = ["ENTRY", "DatasetTable", "SegmentTable", "checksum"]

MAGIC = b"RSIDX\x00\x00\x02"
ENTRY = np.dtype([("offset", "<u8"), ("size", "<u8"), ("xxh3", "<u8")])


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
    def loads(cls, data: bytes, *, file_bytes: int) -> SegmentTable:
        """The table in the bytes of an .idx file, for a segment file of `file_bytes` bytes.

        Raises
        ------
        CorruptionError
            The table is damaged, or belongs to another file.
        """
        if len(data) < 24 or data[:7] != MAGIC[:7]:
            raise CorruptionError("not a chunk table")
        if struct.unpack("<Q", data[-8:])[0] != checksum(memoryview(data)[:-8]):
            raise CorruptionError("a chunk table's checksum does not hold")
        if data[:8] != MAGIC:
            raise FormatError(
                f"a chunk table of version {data[7]}; this raggedstore reads {MAGIC[7]}"
            )
        (length,) = struct.unpack_from("<Q", data, 8)
        if length > len(data) - 24:
            raise CorruptionError("a chunk table's header is longer than its file")
        try:
            header = json.loads(data[16 : 16 + length])
            schema = Schema.from_json(header["schema"])
            samples, counts = int(header["samples"]), list(header["datasets"])
            if int(header["bytes"]) != file_bytes:
                raise CorruptionError(
                    f"the chunk table is for a file of {header['bytes']} bytes, "
                    f"this one has {file_bytes}"
                )
            return cls(
                schema,
                samples,
                file_bytes,
                _datasets(schema, samples, counts, data, 16 + length, file_bytes),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, RaggedStoreError):
                raise
            raise CorruptionError(f"a chunk table's header makes no sense: {error}") from None
        except RaggedStoreError as error:
            raise CorruptionError(f"a chunk table's header makes no sense: {error}") from None


def _datasets(
    schema: Schema, samples: int, counts: list[Any], data: bytes, at: int, file_bytes: int
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
            check_bounds(entries, file_bytes, name)
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
    return datasets


def _blocks(
    table: DatasetTable, block: int, header: bytes, data: bytes, at: int
) -> tuple[BlockTable | None, int]:
    """The blocks of a dataset from the bytes at `at`, and where they end; None for nonsense."""
    chunk_nbytes = table.chunk_rows * table.column.row_nbytes
    count, rest = divmod(chunk_nbytes, block) if block > 0 else (0, 1)
    n_chunks = len(table.entries)
    stop = at + n_chunks * (2 * count + 1) * 4
    if rest or count < 2 or len(header) != BLOCK_HEADER or stop > len(data) - 8:
        return None, at
    cells = np.frombuffer(data, "<u4", n_chunks * (2 * count + 1), at).reshape(n_chunks, -1)
    blocks = BlockTable(header, block, cells[:, : count + 1], cells[:, count + 1 :])
    return (blocks if blocks.check_bounds(table.entries["size"]) else None), stop


def check_bounds(entries: npt.NDArray[Any], file_bytes: int, name: str) -> None:
    """CorruptionError unless every entry lies inside a file of `file_bytes` bytes."""
    size = np.uint64(file_bytes)
    if len(entries) and (
        (entries["size"] > size).any() or (entries["offset"] > size - entries["size"]).any()
    ):
        raise CorruptionError(f"field {name!r}: a chunk lies outside the file")

"""A single HDF5 file: a segment by itself, opened with the same calls, and made from a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.batch import RaggedBatch
from raggedstore.errors import CorruptionError, FormatError, NotAStoreError
from raggedstore.indexing import Positions
from raggedstore.layout import DATA
from raggedstore.progress import track
from raggedstore.samples import Column, Samples
from raggedstore.schema import Schema
from raggedstore.segment.appended import appended_table
from raggedstore.segment.codec import Compression
from raggedstore.segment.context import ReadContext
from raggedstore.segment.file import FileBytes
from raggedstore.segment.reader import SegmentReader
from raggedstore.segment.rebuild import rebuild_table
from raggedstore.segment.table import SegmentTable
from raggedstore.segment.writer import SegmentWriter
from raggedstore.store import files
from raggedstore.store.verification import BUDGET, Report, verify_file
from raggedstore.store.writer import encoding_pool
from raggedstore.units import format_bytes, parse_bytes

__all__ = ["SingleFile", "export"]


class SingleFile(Samples):
    """The samples in one HDF5 file, read-only.

    Parameters
    ----------
    path
        The file: a segment, an exported store, or one in the layout of data,
        data_start_and_stop and data_shape.
    group
        The group in it where the fields, or that layout, lie.
    budget
        Bytes of decoded data to hold.
    in_memory
        Read the file whole into memory instead of piece by piece.
    checksums
        Check what is read against the checksums that `export` put into the file, if no other
        tool has opened it to write since. Not looked at with a `group`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        group: str = "/",
        budget: int | str = "256MB",
        in_memory: bool = False,
        checksums: bool = True,
    ) -> None:
        self._path = files.as_path(path).absolute()  # wherever the process goes
        if not self._path.is_file():
            raise NotAStoreError(f"{self._path}: no such file")
        self._options = {
            "group": group,
            "budget": budget,
            "in_memory": in_memory,
            "checksums": checksums,
        }
        context = ReadContext(parse_bytes(budget, what="budget"), in_memory=in_memory)
        self._reader = _reader(self._path, context, group=group, checksums=checksums)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the decoded data held, and of the file, which reading opens again."""
        self._reader.context.cache.clear()
        self._reader.context.files.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self._path), self._options)

    @property
    def schema(self) -> Schema:
        return self._reader.table.schema

    @property
    def concurrent(self) -> bool:
        return kernel.is_there()

    @property
    def nbytes_stored(self) -> int:
        """Bytes of the file."""
        return len(self._reader.file)

    def __len__(self) -> int:
        return len(self._reader)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {field!r}" for name, field in self.schema.items())
        size = format_bytes(self.nbytes_stored)
        return f"<SingleFile {self._path}: {len(self)} samples in {size}; {fields}>"

    def verify(self, *, progress: bool = False) -> Report:
        """Check every chunk, and every side column against its data.

        Against checksums, where `export` put them into the file and no other tool has opened it
        to write since (`Report.checksums`); of others, only what does not decode is found.
        """
        group = str(self._options["group"])
        # As it lies there now and with its checksums, however it was opened.
        reader = _reader(self._path, ReadContext(BUDGET), group=group, checksums=True)
        return verify_file(reader, progress=progress)

    @property
    def compression(self) -> dict[str, str]:
        """What each field's values were compressed with, as far as their chunks say so."""
        tables = {name: columns[DATA] for name, columns in self._reader.table.datasets.items()}
        return {name: str(table.blocks or "") for name, table in tables.items()}

    def read(self, name: str, positions: Positions) -> Column:
        field = self.schema[name]
        reader = self._reader
        return reader.ragged(name, positions) if field.is_ragged else reader.dense(name, positions)

    def read_one(self, name: str, position: int) -> Any:
        return self._reader.one(name, position)

    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        self.schema[name]
        return self._reader.shapes(name, positions)

    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        self.schema[name]
        return self._reader.ragged(name, positions, (starts, stops))


def _reader(path: Path, context: ReadContext, *, group: str, checksums: bool) -> SegmentReader:
    data = FileBytes(path, context.files, in_memory=context.in_memory)
    table = _table(str(path), data, group=group, checksums=checksums)
    return SegmentReader(str(path), data, table, context)


def _table(name: str, data: FileBytes, *, group: str, checksums: bool) -> SegmentTable:
    """A file's chunk table: that at its end, or one made by parsing it."""
    try:
        table = appended_table(data) if checksums else None
    except (CorruptionError, FormatError) as error:
        raise type(error)(f"{name}: {error}; checksums=False reads without it") from None
    if table is not None and not group.strip("/"):
        return table
    return rebuild_table(name, data, group=group, ends_here=checksums and table is None)


def _reopen(path: str, options: dict[str, Any]) -> SingleFile:
    return SingleFile(path, **options)


def export(
    samples: Samples,
    path: str | os.PathLike[str],
    compressions: Mapping[str, Compression | str],
    *,
    progress: bool = False,
) -> None:
    """Write `samples` into one HDF5 file, which appears whole or not at all.

    Raises
    ------
    ConflictError
        The file exists.
    """
    with files.appearing(files.as_path(path)) as temporary, encoding_pool() as pool:
        writer = SegmentWriter(temporary, samples.schema, compressions, pool, alone=True)
        try:
            _copy(samples, writer, progress=progress)
            writer.seal()
        except BaseException:
            writer.abort()
            raise
        files.sync_file(temporary)


def _copy(samples: Samples, writer: SegmentWriter, *, progress: bool) -> None:
    with track("exporting", len(samples), enabled=progress) as advance:
        for block in samples.blocks(range(len(samples))):
            parts = {}
            for name in samples.schema:
                column = samples.read(name, block)
                shapes = samples.read_shapes(name, block)
                flat = column.values if isinstance(column, RaggedBatch) else column.reshape(-1)
                parts[name] = (flat, shapes)
            writer.extend(parts, len(block))
            advance(len(block))

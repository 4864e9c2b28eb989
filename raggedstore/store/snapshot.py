"""What a reader opened: one version, its segments read as they are needed.

A snapshot holds a shared lock on its manifest for as long as it lives, so that vacuum, which
asks for the exclusive one, leaves alone what somebody is reading.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import CorruptionError, StorageError, VersionError
from raggedstore.indexing import Positions
from raggedstore.samples import Samples, read_parts, shapes_of_parts, windows_of_parts
from raggedstore.schema import Schema
from raggedstore.segment.file import Descriptor, FileBytes
from raggedstore.segment.reader import ReadContext, SegmentReader
from raggedstore.segment.rebuild import rebuild_table
from raggedstore.segment.table import SegmentTable
from raggedstore.store import files
from raggedstore.store.commit import digest_of, segments_folder
from raggedstore.store.manifest import Manifest, SegmentEntry, load, path_of

__all__ = ["Snapshot"]


class Snapshot(Samples):
    """The samples of one version of the store in the folder `root`."""

    def __init__(self, root: Path, version: int, context: ReadContext) -> None:
        self.root = root
        self.context = context
        self._pin = _pin(root, version)
        self.manifest: Manifest = load(root, version)
        self.starts = offsets_of([entry.samples for entry in self.manifest.segments])
        self._readers: list[SegmentReader | None] = [None] * len(self.manifest.segments)

    @property
    def schema(self) -> Schema:
        return self.manifest.schema

    def __len__(self) -> int:
        return int(self.starts[-1])

    def close(self) -> None:
        """Let go of the version and of decoded chunks."""
        self._pin.close()
        self.context.cache.clear()

    def reader(self, number: int) -> SegmentReader:
        """The reader of a segment, opened the first time it is asked for."""
        reader = self._readers[number]
        if reader is None:
            with self.context.lock:
                reader = self._readers[number]
                if reader is None:
                    reader = open_segment(self.root, self.manifest, number, self.context)
                    self._readers[number] = reader
        return reader

    def read(self, name: str, positions: Positions) -> RaggedBatch | npt.NDArray[Any]:
        """The field `name` of the samples at `positions`."""
        field = self.manifest.schema[name]

        def part(number: int, local: Positions) -> RaggedBatch | npt.NDArray[Any]:
            reader = self.reader(number)
            return reader.ragged(name, local) if field.is_ragged else reader.dense(name, local)

        return read_parts(field, self.starts, positions, part)

    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        """Rows ``[start, stop)`` of the ragged field `name` of each sample."""
        return windows_of_parts(
            self.manifest.schema[name],
            self.starts,
            positions,
            (starts, stops),
            lambda number, *where: self.reader(number).windows(name, *where),
        )

    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        """(k, d) shapes of the field `name` at `positions`."""
        field = self.manifest.schema[name]
        if not field.is_ragged:
            return np.tile(np.array(field.shape, np.int64), (len(positions), 1))
        return shapes_of_parts(
            field,
            self.starts,
            positions,
            lambda number, local: self.reader(number).shapes(name, local),
        )


def open_segment(
    root: Path, manifest: Manifest, number: int, context: ReadContext
) -> SegmentReader:
    """Open a segment that a manifest names; CorruptionError where it is not the one named."""
    entry = manifest.segments[number]
    path = segments_folder(root) / entry.file
    if path.is_symlink():
        raise CorruptionError(f"segment {entry.file}: a symbolic link, which a store never holds")
    try:
        data = FileBytes(path, context.files, in_memory=context.in_memory)
    except StorageError as error:
        if not path.exists() and not path_of(root, manifest.version).exists():
            raise VersionError(
                f"version {manifest.version} of {root} was removed by vacuum while it was open"
            ) from error
        raise
    if len(data) != entry.bytes:
        raise CorruptionError(
            f"segment {entry.file}: {len(data)} bytes where {entry.bytes} were written"
        )
    table = read_index(root, entry)
    if table is None:
        table = rebuild_table(entry.file, data)
    if table.schema != manifest.schema or table.samples != entry.samples:
        raise CorruptionError(f"segment {entry.file}: not of the schema and length of the store")
    return SegmentReader(entry.file[:-3], data, table, context)


def read_index(root: Path, entry: SegmentEntry) -> SegmentTable | None:
    """A segment's chunk table, or None where the file is absent.

    Raises
    ------
    CorruptionError
        The file is there but not the one that was written.
    """
    path = segments_folder(root) / entry.index
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: could not be read: {error.strerror}") from error
    if digest_of(data) != entry.index_digest:
        raise CorruptionError(f"segment {entry.file}: its chunk table is damaged")
    return SegmentTable.loads(data, file_bytes=entry.bytes)


def _pin(root: Path, version: int) -> Descriptor:
    """Open a version's manifest and lock it against vacuum; VersionError where it is gone."""
    path = path_of(root, version)
    try:
        file = Descriptor(path)
    except OSError:
        load(root, version)  # says what is wrong
        raise
    files.lock_shared(file)
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        raise VersionError(f"{root} has no version {version} any more")
    return file

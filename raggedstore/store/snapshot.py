"""What a reader opened: one version, its segments read as they are needed.

To open one, its manifest is read and no more; the segment lists are read when the first sample
is. A list that is damaged stands in the place of its segments: its samples cannot be read, all
others can.

A snapshot holds a shared lock on its manifest for as long as it lives, so that vacuum, which
asks for the exclusive one, leaves alone what somebody is reading.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import (
    ConflictError,
    CorruptionError,
    FormatError,
    StorageError,
    VersionError,
)
from raggedstore.indexing import Positions, split_by_part
from raggedstore.samples import Samples
from raggedstore.schema import Schema
from raggedstore.segment import several
from raggedstore.segment.context import ReadContext
from raggedstore.segment.file import Descriptor, FileBytes
from raggedstore.segment.reader import SegmentReader
from raggedstore.segment.rebuild import rebuild_table, with_checksums
from raggedstore.segment.table import MAX_BYTES as MAX_INDEX_BYTES
from raggedstore.segment.table import SegmentTable
from raggedstore.store import files
from raggedstore.store.commit import digest_of, segments_folder
from raggedstore.store.lists import ListEntry, SegmentEntry, read_file, read_list, versions_folder
from raggedstore.store.manifest import Manifest, load, newest_version, path_of

__all__ = ["LostList", "Parts", "Snapshot", "check_folders", "newest_snapshot"]

P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LostList:
    """A segment list that cannot be read, in the place of its segments."""

    entry: ListEntry
    error: CorruptionError | FormatError

    @property
    def samples(self) -> int:
        """How many samples are lost with it."""
        return self.entry.samples


@dataclass(frozen=True, slots=True)
class Parts:
    """The segments of a version, and where the samples of each begin."""

    entries: list[SegmentEntry | LostList]
    starts: npt.NDArray[np.int64]  #: (n + 1,)
    firsts: list[int]  #: the same but the last, to look one sample up in
    readers: list[SegmentReader | None]  #: those opened so far


def _or_removed(
    read: Callable[Concatenate[Snapshot, P], Result],
) -> Callable[Concatenate[Snapshot, P], Result]:
    """`read`, but where files are gone since their version was removed, the error says so."""

    @wraps(read)
    def reading(snapshot: Snapshot, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return read(snapshot, *args, **kwargs)
        except StorageError as error:
            _check_not_removed(snapshot.root, snapshot.manifest.version, error)
            raise

    return reading


class Snapshot(Samples):
    """The samples of one version of the store in the folder `root`.

    Parameters
    ----------
    manifest
        That version's, where it is known already: it is not read again.
    """

    def __init__(
        self, root: Path, version: int, context: ReadContext, manifest: Manifest | None = None
    ) -> None:
        self.root = root
        self.context = context
        check_folders(root)
        self._pin = pin(root, version)
        try:
            self.manifest: Manifest = manifest or load(root, version)
        except BaseException:
            self._pin.close()  # or vacuum would take it for read until the error is forgotten
            raise
        self._length = self.manifest.samples
        self._parts: Parts | None = None

    @property
    def schema(self) -> Schema:
        return self.manifest.schema

    def __len__(self) -> int:
        return self._length

    @property
    def concurrent(self) -> bool:
        return kernel.is_there()

    def close(self) -> None:
        """Let go of the version and of decoded chunks."""
        self._pin.close()
        self.context.cache.clear()

    def reader(self, number: int) -> SegmentReader:
        """The reader of a segment, opened the first time it is asked for."""
        parts = self.parts
        reader = parts.readers[number]
        if reader is None:
            with self.context.lock:
                reader = parts.readers[number]
                if reader is None:
                    entry = parts.entries[number]
                    if isinstance(entry, LostList):
                        raise type(entry.error)(str(entry.error))
                    reader = open_segment(self.root, self.manifest, entry, self.context)
                    parts.readers[number] = reader
        return reader

    @property
    def parts(self) -> Parts:
        """The segments; the lists that name them are read the first time."""
        parts = self._parts
        if parts is None:
            with self.context.lock:
                parts = self._parts
                if parts is None:
                    parts = self._parts = self._read_parts()
        return parts

    def _read_parts(self) -> Parts:
        entries: list[SegmentEntry | LostList] = []
        for entry in self.manifest.lists:
            try:
                entries += read_list(self.root, entry)
            except (CorruptionError, FormatError) as error:
                _check_not_removed(self.root, self.manifest.version, error)
                entries.append(LostList(entry, error))
        entries += self.manifest.recent
        segments = [entry.file for entry in entries if isinstance(entry, SegmentEntry)]
        if len({*segments}) < len(segments):
            raise FormatError(f"{self.root}: version {self.manifest.version} has a segment twice")
        starts = offsets_of([entry.samples for entry in entries])
        return Parts(entries, starts, starts[:-1].tolist(), [None] * len(entries))

    def _parts_of(self, positions: Positions) -> list[several.Part]:
        """The segments that hold samples, and which of them each does."""
        parts = self.parts
        if len(parts.readers) == 1 and len(positions):
            return [several.Part(self.reader(0), positions, slice(None))]
        return [
            several.Part(self.reader(number), local, places)
            for number, local, places in split_by_part(parts.starts, positions)
        ]

    @_or_removed
    def read(self, name: str, positions: Positions) -> RaggedBatch | npt.NDArray[Any]:
        """The field `name` of the samples at `positions`."""
        field, parts = self.schema[name], self._parts_of(positions)
        if field.is_ragged:
            return several.ragged(name, field, parts)
        return several.dense(name, field, parts)

    def read_one(self, name: str, position: int) -> Any:
        """The field `name` of one sample: an array of its own shape, or a scalar."""
        parts = self._parts or self.parts
        number = bisect_right(parts.firsts, position) - 1
        reader = parts.readers[number]
        try:  # as `_or_removed`, whose wrapping would take a tenth of what is to be done here
            if reader is None:
                reader = self.reader(number)
            return reader.one(name, position - parts.firsts[number])
        except StorageError as error:
            _check_not_removed(self.root, self.manifest.version, error)
            raise

    @_or_removed
    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        """Rows ``[start, stop)`` of the ragged field `name` of each sample."""
        parts = self._parts_of(positions)
        return several.ragged(name, self.schema[name], parts, (starts, stops))

    @_or_removed
    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        """(k, d) shapes of the field `name` at `positions`."""
        field = self.schema[name]
        if not field.is_ragged:
            return np.tile(np.array(field.shape, np.int64), (len(positions), 1))
        return several.shapes(name, field, self._parts_of(positions))


def newest_snapshot(
    root: Path, snapshot_of: Callable[[int], Snapshot], hint: int | None = None
) -> Snapshot:
    """The newest version opened by `snapshot_of`, whatever vacuum removes meanwhile."""
    for _ in range(100):
        try:
            return snapshot_of(newest_version(root, hint))
        except VersionError:
            hint = None  # vacuumed between the look and the lock: there is a newer one
    raise ConflictError(f"{root}: its versions change faster than they can be opened")


def open_segment(
    root: Path, manifest: Manifest, entry: SegmentEntry, context: ReadContext
) -> SegmentReader:
    """Open a segment that a manifest names; CorruptionError where it is not the one named."""
    path = segments_folder(root) / entry.file
    with files.storage_errors(path, "be looked at"):
        is_link = path.is_symlink()
    if is_link:
        raise CorruptionError(f"segment {entry.file}: a symbolic link, which a store never holds")
    try:
        data = FileBytes(path, context.files)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            _check_not_removed(root, manifest.version, error)
        raise
    if len(data) != entry.bytes:
        raise CorruptionError(
            f"segment {entry.file}: {len(data)} bytes where {entry.bytes} were written"
        )
    if context.in_memory:
        data = FileBytes(path, context.files, in_memory=True)
    table = read_index(root, entry)
    if table is None:
        # A table made by parsing has no checksums; the file's digest vouches for all of it at once,
        # and then for those that are taken of it.
        if context.checksums and digest_of(data) != entry.digest:
            raise CorruptionError(
                f"segment {entry.file}: its chunk table is missing and its file damaged"
            )
        table = rebuild_table(entry.file, data)
        if context.checksums:
            with suppress(FormatError):  # of chunks that are no frames, as the writer makes none
                table = with_checksums(table, data)
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
        data = read_file(path, MAX_INDEX_BYTES)
    except FileNotFoundError:
        return None
    except FormatError as error:
        raise CorruptionError(str(error)) from None
    if digest_of(data) != entry.index_digest:
        raise CorruptionError(f"segment {entry.file}: its chunk table is damaged")
    try:
        return SegmentTable.loads(data, file_bytes=entry.bytes)
    except (CorruptionError, FormatError) as error:
        raise type(error)(f"segment {entry.file}: {error}") from None


def check_folders(root: Path) -> None:
    """CorruptionError where a store's folders are links, which may lead anywhere.

    Reading would then give, and vacuum remove, files that are no part of the store.
    """
    for folder in (versions_folder(root), segments_folder(root)):
        with files.storage_errors(folder, "be looked at"):
            is_link = folder.is_symlink()
        if is_link:
            raise CorruptionError(f"{folder}: a symbolic link, which a store never holds")


def _check_not_removed(root: Path, version: int, error: Exception) -> None:
    """VersionError where the reason for `error` is that nothing of a version is left."""
    path = path_of(root, version)
    with files.storage_errors(path, "be looked for"):
        is_there = path.exists()
    if not is_there:
        raise VersionError(
            f"version {version} of {root} was removed by vacuum while it was open"
        ) from error


def pin(root: Path, version: int) -> Descriptor:
    """Open a version's manifest and lock it against vacuum; VersionError where it is gone."""
    path = path_of(root, version)
    with files.storage_errors(path, "be opened"):
        try:
            file = Descriptor(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            load(root, version)  # says what is wrong
            raise
        files.lock_shared(file)
        is_gone = os.fstat(file.fileno()).st_nlink == 0
    if is_gone:
        file.close()
        raise VersionError(f"{root} has no version {version} any more")
    return file

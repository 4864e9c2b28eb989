"""Repair: a new version of all that is intact, and a list of what is lost.

Nothing that is there is touched: old versions stay as damaged as they are, and the new one is
committed as any other. Segment by segment of the newest version:

- An intact one is named again as it is.
- Of one that is damaged, the samples that read are written anew, by the ordinary writer. Which do
  not read is known block by block, as `verify` finds it, so damage costs the samples of a block.
  A file cut short or grown is no other case: its chunks still lie where its .idx says.
- Where the .idx is missing or damaged, the file is linked under another name, beside an .idx made
  by parsing the file. Such a table has no checksums of its own to compare with what is read. What
  vouches for it is the file's digest in the manifest: only a file all of whose bytes are those
  that were written is parsed, and the checksums are then taken from it.
- Without an .idx and without that digest, nothing vouches for a segment, and it is lost as a
  whole; so is one whose file is missing, and so are those of a segment list that cannot be read.

Where the newest manifest is damaged, the newest one that is not is taken instead. What the
damaged ones added is lost; their segments lie about still, and the report names them.

A disk that refuses to be read is not damage, since it may read tomorrow: repair stops with a
StorageError. Where files are of a format that it does not know, or intact and beyond the parser,
it stops with a FormatError.
"""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.errors import (
    ConflictError,
    CorruptionError,
    FormatError,
    RaggedStoreError,
    StorageError,
    VersionError,
)
from raggedstore.indexing import Positions
from raggedstore.progress import track
from raggedstore.samples import Column, Samples
from raggedstore.schema import Schema
from raggedstore.segment.codec import Compression
from raggedstore.segment.context import ReadContext
from raggedstore.segment.file import FileBytes
from raggedstore.segment.reader import SegmentReader
from raggedstore.segment.rebuild import rebuild_table, with_checksums
from raggedstore.store import files
from raggedstore.store.commit import (
    commit,
    digest_of,
    remove_segments,
    revive,
    segments_folder,
    utc_now,
)
from raggedstore.store.compaction import copy_samples
from raggedstore.store.lists import SegmentEntry, read_list
from raggedstore.store.manifest import Manifest, list_versions, load, newest_version
from raggedstore.store.snapshot import LostList, Snapshot, read_index
from raggedstore.store.verification import Report, verify_field
from raggedstore.store.writer import SegmentSink

__all__ = ["Loss", "RepairReport", "repair"]

_BUDGET = 2**27
_UNBOUNDED = 2**62  # what is left of a segment is no larger than the segment

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Loss:
    """Samples that are lost: for one field of a segment, or with all of a segment or list."""

    segment: str  #: or the segment list's file, where that is what is lost
    field: str | None  #: None for all of them
    runs: tuple[tuple[int, int], ...]  #: positions ``[start, stop)`` in the version repaired
    message: str

    @property
    def samples(self) -> int:
        """How many."""
        return sum(stop - start for start, stop in self.runs)

    def __str__(self) -> str:
        place = f"segment {'list ' * self.segment.endswith('.list')}{self.segment}"
        if self.field is not None:
            place += f", field {self.field!r}"
        shown = [f"{a} to {b - 1}" if b - a > 1 else f"{a}" for a, b in self.runs[:5]]
        more = f" and {len(self.runs) - 5} more runs" * (len(self.runs) > 5)
        return f"{place}: {self.samples} samples, {', '.join(shown)}{more}: {self.message}"


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair kept, and what is lost."""

    base: int  #: the version that was repaired: the newest that can be read
    version: int | None  #: the one that was made; None where there was nothing to do, or a dry run
    samples: int  #: in the version repaired
    lost: tuple[Loss, ...] = ()
    lost_segments: tuple[str, ...] = ()  #: of which nothing is left
    rewritten: tuple[str, ...] = ()  #: of which the samples that read were written anew
    reindexed: tuple[str, ...] = ()  #: whose .idx was made anew
    unreadable: tuple[int, ...] = ()  #: newer versions, whose manifests are damaged
    #: Segment files that no readable version names, where a manifest or list is damaged: what
    #: it added may lie in them, and each opens by itself.
    unnamed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is nothing to repair."""
        return not (self.lost or self.rewritten or self.reindexed or self.unreadable)

    @property
    def kept(self) -> int:
        """Samples that the new version holds."""
        return self.samples - sum(stop - start for start, stop in self._gaps())

    @property
    def first_lost(self) -> int | None:
        """The first position of a sample that is lost; those after it have moved up."""
        return min((start for loss in self.lost for start, _ in loss.runs), default=None)

    def positions(self) -> npt.NDArray[np.int64]:
        """(kept,) where each sample of the new version stood in the one that was repaired."""
        edges = [0, *itertools.chain(*self._gaps()), self.samples]
        runs = [np.arange(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        return np.concatenate(runs).astype(np.int64)

    def _gaps(self) -> list[tuple[int, int]]:
        """The runs of positions that are lost, in order and apart."""
        gaps: list[tuple[int, int]] = []
        for start, stop in sorted(run for loss in self.lost for run in loss.runs):
            if gaps and start <= gaps[-1][1]:
                gaps[-1] = gaps[-1][0], max(stop, gaps[-1][1])
            else:
                gaps.append((start, stop))
        return gaps

    def __str__(self) -> str:
        if self.ok:
            return f"nothing to repair in version {self.base}: {self.samples} samples"
        made = f"version {self.version} made of" if self.version is not None else "of"
        lines = [f"{made} version {self.base}: {self.kept} of {self.samples} samples kept"]
        lines += [
            f"the manifest of version {version} is damaged: what it added is lost"
            for version in self.unreadable
        ]
        lines += [f"lost: {loss}" for loss in self.lost]
        if self.first_lost is not None:
            lines.append(f"samples that stood after position {self.first_lost} have moved up")
        return "\n  ".join(lines)


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment, or a list that cannot be read, and what is to become of it."""

    entry: SegmentEntry | LostList
    fate: Literal["kept", "rewritten", "reindexed", "lost"] = "kept"
    lost: tuple[Loss, ...] = ()
    reader: SegmentReader | None = None  #: of what is to be written anew
    left: Positions | None = None  #: the samples of it that read

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.file if isinstance(self.entry, LostList) else self.file[:-3]

    @property
    def file(self) -> str:
        """Its file's name, by which a manifest names it."""
        return self.entry.entry.file if isinstance(self.entry, LostList) else self.entry.file


def repair(root: Path, *, dry_run: bool = False, progress: bool = False) -> RepairReport:
    """Make a new version of all that is intact in the store in the folder `root`.

    Parameters
    ----------
    dry_run
        Only say what would be lost.

    Raises
    ------
    CorruptionError
        No manifest can be read.
    StorageError
        The disk refused a read or a write.
    FormatError
        A file is intact, but nothing here can read it.
    ConflictError
        Another process replaced what was to be repaired.
    """
    if not dry_run:
        revive(root)
    snapshot, unreadable = _newest_readable(root)
    with closing(snapshot):
        parts = _examine(snapshot, progress=progress)
        named = {
            fate: tuple(part.name for part in parts if part.fate == fate)
            for fate in ("rewritten", "reindexed", "lost")
        }
        unnamed = unreadable or any(isinstance(part.entry, LostList) for part in parts)
        report = RepairReport(
            base=snapshot.manifest.version,
            version=None,
            samples=len(snapshot),
            lost=tuple(loss for part in parts for loss in part.lost),
            lost_segments=named["lost"],
            rewritten=named["rewritten"],
            reindexed=named["reindexed"],
            unreadable=unreadable,
            unnamed=_unnamed(root) if unnamed else (),
        )
        if report.ok or dry_run:
            return report
        return replace(report, version=_write(snapshot, parts, progress=progress).version)


# What there is


def _newest_readable(root: Path, hint: int | None = None) -> tuple[Snapshot, tuple[int, ...]]:
    """The newest version whose manifest is not damaged, and those after it."""
    for _ in range(100):
        unreadable: list[int] = []
        damage: CorruptionError | None = None
        newest = newest_version(root, hint)
        for version in reversed([v for v in list_versions(root) if v <= newest]):
            try:
                return Snapshot(root, version, ReadContext(_BUDGET)), tuple(unreadable[::-1])
            except VersionError:
                break  # removed before it was read: there is a newer one
            except CorruptionError as error:
                unreadable.append(version)
                damage = damage or error
        else:
            if damage is not None:
                raise CorruptionError(
                    f"no version can be read, so nothing says which segments belong together, and "
                    f"each must be opened by itself: {damage}"
                ) from None
    raise ConflictError(f"{root}: its versions change faster than they can be opened")


def _unnamed(root: Path) -> tuple[str, ...]:
    """The segment files that no version names, as far as versions can be read."""
    named: set[str] = set()
    for version in list_versions(root):
        with suppress(VersionError, CorruptionError):
            manifest = load(root, version)
            named |= {entry.file for entry in manifest.recent}
            for entry in manifest.lists:
                with suppress(CorruptionError):
                    named |= {segment.file for segment in read_list(root, entry)}
    folder = segments_folder(root)
    with files.storage_errors(folder, "be listed"):
        found = {name for name in os.listdir(folder) if name.endswith(".h5")}
    return tuple(sorted(n for n in found - named if not n.startswith(files.TEMPORARY)))


def _examine(snapshot: Snapshot, *, progress: bool) -> list[_Part]:
    """Everything in one version, and what is to become of it."""
    parts = snapshot.parts
    found = []
    total = sum(part.bytes for part in snapshot.manifest.parts)
    with track("looking", total, enabled=progress) as advance:
        for first, entry in zip(parts.starts.tolist(), parts.entries, strict=False):
            if isinstance(entry, LostList):
                if isinstance(entry.error, FormatError):
                    raise FormatError(str(entry.error))
                found.append(_lost(entry, entry.entry.file, first, str(entry.error)))
                advance(entry.entry.bytes)
            else:
                found.append(_examine_segment(snapshot, entry, first))
                advance(entry.bytes)
    return found


def _lost(entry: SegmentEntry | LostList, name: str, first: int, message: str) -> _Part:
    """A segment or list of which nothing is left."""
    runs = ((first, first + entry.samples),) if entry.samples else ()
    return _Part(entry, "lost", (Loss(name, None, runs, message),))


def _runs(lost: Bools, first: int) -> tuple[tuple[int, int], ...]:
    """The positions of samples marked as lost, counted from `first`, as ranges."""
    edges = np.flatnonzero(np.diff(lost.astype(np.int8), prepend=0, append=0)) + first
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _examine_segment(snapshot: Snapshot, entry: SegmentEntry, first: int) -> _Part:
    """What is left of one segment."""
    root, name = snapshot.root, entry.file[:-3]
    path = segments_folder(root) / entry.file
    with files.storage_errors(path, "be looked at"):
        is_link, is_other = path.is_symlink(), path.exists() and not path.is_file()
    if is_link:
        return _lost(entry, name, first, "a symbolic link, which a store never holds")
    if is_other:
        return _lost(entry, name, first, "not a regular file")
    try:
        data = FileBytes(path, snapshot.context.files)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return _lost(entry, name, first, "its file is missing")
    try:
        table = read_index(root, entry)
        index = "missing"
    except CorruptionError:
        table, index = None, "damaged"
    if table is None:
        if len(data) != entry.bytes or digest_of(data) != entry.digest:
            message = f"its chunk table is {index} and its file damaged: nothing vouches for it"
            return _lost(entry, name, first, message)
        try:
            _remade_index(snapshot.manifest, entry, data)
        except FormatError as error:
            # All its bytes are those that were written: what cannot read them is this parser.
            raise FormatError(
                f"segment {name}: its chunk table is {index}, and its file is intact but cannot be "
                f"parsed: {error}"
            ) from None
        except StorageError:  # not of the file, but of the disk
            raise
        except RaggedStoreError as error:
            return _lost(entry, name, first, f"its chunk table is {index}, and: {error}")
        return _Part(entry, "reindexed")
    if table.schema != snapshot.schema or table.samples != entry.samples:
        return _lost(entry, name, first, "not of the schema and length of the store")
    # Chunks that are there are read where they lie, though others may not be.
    reader = SegmentReader(
        name, data, replace(table, file_bytes=min(len(data), entry.bytes)), snapshot.context
    )
    report = Report()
    damaged = np.zeros(entry.samples, bool)
    losses = []
    for field_name in table.schema:
        lost = np.zeros(entry.samples, bool)
        verify_field(reader, field_name, first, lost, report)
        if lost.any():
            messages = [fault.message for fault in report.faults if fault.field == field_name]
            losses.append(Loss(name, field_name, _runs(lost, first), messages[0]))
        damaged |= lost
    if not report.faults and len(data) == entry.bytes and digest_of(data) == entry.digest:
        return _Part(entry)
    left = np.flatnonzero(~damaged)
    fate: Literal["rewritten", "lost"] = "rewritten" if len(left) else "lost"
    return _Part(entry, fate, tuple(losses), reader, left)


# An .idx made anew


def _remade_index(manifest: Manifest, entry: SegmentEntry, data: FileBytes) -> bytes:
    """The .idx of a segment file whose digest holds, by parsing it."""
    table = rebuild_table(entry.file, data)
    if table.schema != manifest.schema or table.samples != entry.samples:
        raise CorruptionError(f"segment {entry.file}: not of the schema and length of the store")
    return with_checksums(table, data).dumps()


# The new version


def _write(snapshot: Snapshot, parts: list[_Part], *, progress: bool) -> Manifest:
    """Write what is to be written, and commit."""
    root = snapshot.root
    written: list[SegmentEntry] = []
    new: dict[str, list[SegmentEntry]] = {}  # what stands for a file that is not named again
    with closing(SegmentSink(root, snapshot.manifest, _BUDGET, _UNBOUNDED)) as sink:
        try:
            for part in parts:
                if part.fate == "rewritten":
                    assert part.reader is not None and part.left is not None
                    copy_samples(_OneSegment(part.reader), part.left, sink, progress=progress)
                    new[part.file] = sink.take()
                elif part.fate == "reindexed":
                    assert isinstance(part.entry, SegmentEntry)
                    new[part.file] = [_reindex(snapshot, part.entry)]
                elif part.fate == "lost":
                    new[part.file] = []
                written += new.get(part.file, [])
        except BaseException:
            remove_segments(root, written)
            raise
        parent = snapshot.manifest.version

        def latest(root: Path, hint: int | None) -> Manifest:
            # Numbered as the newest there is, so that what is made of it comes after that.
            nonlocal parent
            readable, unreadable = _newest_readable(root, hint)
            with closing(readable):
                parent = readable.manifest.version
                manifest, number = readable.manifest, max(parent, *unreadable, 0)
                # What came in versions that cannot be read is lost, and what comes takes its place.
                return replace(manifest, version=number, moved=manifest.moved + bool(unreadable))

        try:
            return commit(
                root,
                lambda manifest: replace(
                    _replaced(manifest, new, sink.compressions), parent=parent
                ),
                hint=parent,
                latest=latest,
            )
        except ConflictError:
            remove_segments(root, written)
            raise


def _reindex(snapshot: Snapshot, entry: SegmentEntry) -> SegmentEntry:
    """A segment's file under another name, beside an .idx made anew."""
    folder, name = segments_folder(snapshot.root), uuid.uuid4().hex
    data = FileBytes(folder / entry.file, snapshot.context.files)
    index = _remade_index(snapshot.manifest, entry, data)
    made = replace(entry, file=f"{name}.h5", index_bytes=len(index), index_digest=digest_of(index))
    try:
        files.put(folder / made.index, index)
        _link_or_copy(folder / entry.file, folder / made.file)
    except BaseException:
        remove_segments(snapshot.root, [made])
        raise
    return made


def _link_or_copy(source: Path, target: Path) -> None:
    """Another name for a segment's file; a copy where the filesystem has no hard links."""
    with files.storage_errors(target, "be linked into place"):
        try:
            os.link(source, target)
            return
        except OSError as error:
            if error.errno not in files.NO_LINKS:
                raise
        shutil.copyfile(source, target)
        files.sync_file(target)


def _replaced(
    latest: Manifest,
    new: Mapping[str, list[SegmentEntry]],
    choices: Mapping[str, Compression | str],
) -> Manifest:
    """The version after `latest`: what is damaged in it replaced where it stands."""
    left = dict(new)
    segments: list[SegmentEntry] = []
    before = [
        left.pop(e.file) if e.file in left else read_list(latest.root, e) for e in latest.lists
    ]
    for entry in itertools.chain(*before, latest.recent):
        segments += left.pop(entry.file, [entry])
    if left:
        raise ConflictError("what was damaged was replaced by another process meanwhile")
    return latest.replaced(
        segments,
        time=utc_now(),
        operation="repair",
        compressions=latest.settled(choices),
        moved=latest.moved + (sum(entry.samples for entry in segments) < latest.samples),
    )


class _OneSegment(Samples):
    """The samples of one segment."""

    def __init__(self, reader: SegmentReader) -> None:
        self._reader = reader

    @property
    def schema(self) -> Schema:
        return self._reader.table.schema

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, name: str, positions: Positions) -> Column:
        ragged = self.schema[name].is_ragged
        return (self._reader.ragged if ragged else self._reader.dense)(name, positions)

    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        return self._reader.shapes(name, positions)

    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        return self._reader.ragged(name, positions, (starts, stops))

"""`Store`: a folder of immutable segments and numbered manifests, opened at one version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.errors import (
    ConflictError,
    CorruptionError,
    FormatError,
    NotAStoreError,
    UsageError,
    VersionError,
)
from raggedstore.indexing import Positions, is_single
from raggedstore.moments import Moments
from raggedstore.samples import Column, Samples
from raggedstore.schema import Schema
from raggedstore.segment.codec import Compression
from raggedstore.segment.context import ReadContext
from raggedstore.segment.profiles import PROFILES, check_profile
from raggedstore.segment.writer import check_writable
from raggedstore.statistics import Axes
from raggedstore.store import compaction, files, verification
from raggedstore.store import vacuum as vacuuming
from raggedstore.store.commit import utc_now
from raggedstore.store.manifest import (
    Manifest,
    list_versions,
    load,
    newest,
    newest_version,
    path_of,
)
from raggedstore.store.repair import RepairReport, repair
from raggedstore.store.snapshot import Snapshot, check_folders, newest_snapshot
from raggedstore.store.summaries import Summaries
from raggedstore.store.verification import Report
from raggedstore.store.writer import Writer
from raggedstore.units import format_bytes, parse_bytes

__all__ = ["Store", "VersionInfo", "create", "history", "open_store"]

DEFAULT_BUDGET = "256MB"
DEFAULT_SEGMENT = "1GiB"


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One line of a store's history."""

    version: int
    time: str  #: ISO 8601, UTC
    operation: str
    samples: int
    segments: int
    nbytes_stored: int
    #: Why its manifest cannot be read; nothing else but the version is then known.
    damage: str = ""


def history(root: Path) -> list[VersionInfo]:
    """What each version of the store in a folder was made by, oldest first."""
    check_folders(root)
    lines = []
    for version in list_versions(root):
        try:
            manifest = load(root, version)
        except VersionError:
            continue  # vacuumed meanwhile
        except (CorruptionError, FormatError) as error:
            lines.append(VersionInfo(version, "", "damaged", 0, 0, 0, str(error)))
            continue
        lines.append(
            VersionInfo(
                version,
                manifest.time,
                manifest.operation,
                manifest.samples,
                manifest.segment_count,
                manifest.stored_bytes,
            )
        )
    if not lines:
        raise NotAStoreError(f"{root}: no raggedstore store is here")
    return lines


class Store(Samples):
    """A store opened at one version: a sequence of samples that never changes under its reader.

    Made by `create` and `open`; see `Samples` for indexing, batches and views.

    Parameters
    ----------
    path
        The store's folder.
    mode
        "r" to read, "a" to write too.
    version
        Which version to read; by default the newest.
    budget
        Bytes of decoded data to hold: an int, or a string such as "256MB".
    in_memory
        Read segments whole into memory instead of piece by piece.
    checksums
        Check what is read against its checksum; without, damage may give wrong values.
    verify
        Verify every chunk's checksum and all side columns before returning.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: str = "r",
        *,
        version: int | None = None,
        budget: int | str = DEFAULT_BUDGET,
        in_memory: bool = False,
        checksums: bool = True,
        verify: bool = False,
    ) -> None:
        if mode not in ("r", "a"):
            raise UsageError(f"mode must be 'r' to read or 'a' to write too, got {mode!r}")
        self._path = files.as_path(path).absolute()  # wherever the process goes
        if version is not None and not is_single(version):
            raise UsageError(f"version is the number of one, got {version!r}")
        self._mode = mode
        self._options: dict[str, Any] = {
            "budget": parse_bytes(budget, what="budget"),
            "in_memory": in_memory,
            "checksums": checksums,
        }
        self._summaries = Summaries(self._path, write=mode == "a" and checksums)
        self._snapshot = self._newest_snapshot() if version is None else self._snapshot_of(version)
        if verify:
            self.verify().raise_for_faults()

    def _snapshot_of(self, version: int, manifest: Manifest | None = None) -> Snapshot:
        return Snapshot(self._path, version, ReadContext(**self._options), manifest)

    def _newest_snapshot(self, hint: int | None = None) -> Snapshot:
        return newest_snapshot(self._path, self._snapshot_of, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self._path), self._mode, self.version, self._options)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {field!r}" for name, field in self.schema.items())
        return (
            f"<Store {self._path} version {self.version}: {len(self)} samples, "
            f"{format_bytes(self.nbytes)} in {format_bytes(self.nbytes_stored)}; {fields}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the version (vacuum may then remove it), of decoded data and open files."""
        self._snapshot.close()
        self._snapshot.context.files.clear()

    # What it is

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._path

    @property
    def manifest(self) -> Manifest:
        """The manifest of the version that is open."""
        return self._snapshot.manifest

    @property
    def moved(self) -> int:
        return self._snapshot.manifest.moved

    @property
    def version(self) -> int:
        """The version that is open."""
        return self.manifest.version

    @property
    def schema(self) -> Schema:
        """The fields of every sample."""
        return self.manifest.schema

    @property
    def compression(self) -> dict[str, Compression | str]:
        """How each field is compressed; the profile's name where it had too little data yet."""
        return dict(self.manifest.compressions)

    @property
    def concurrent(self) -> bool:
        return self._snapshot.concurrent

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's metadata at this version."""
        return dict(self.manifest.metadata)

    @property
    def nbytes(self) -> int:
        """Bytes of all samples, decoded."""
        return self.manifest.raw_bytes

    @property
    def nbytes_stored(self) -> int:
        """Bytes of this version's files."""
        return self.manifest.stored_bytes

    def versions(self) -> list[int]:
        """The versions that the store has now, oldest first."""
        return list_versions(self._path)

    def history(self) -> list[VersionInfo]:
        """What each version that the store has was made by, oldest first."""
        return history(self._path)

    # Reading

    def __len__(self) -> int:
        return len(self._snapshot)

    @property
    def _now(self) -> Snapshot:
        return self._snapshot

    def read(self, name: str, positions: Positions) -> Column:
        return self._snapshot.read(name, positions)

    def read_one(self, name: str, position: int) -> Any:
        return self._snapshot.read_one(name, position)

    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        return self._snapshot.read_shapes(name, positions)

    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        return self._snapshot.read_windows(name, positions, starts, stops)

    def moments(self, name: str, axes: Axes, *, skipna: bool) -> Moments:
        return self._summaries.moments(self._snapshot, name, axes, skipna=skipna)

    def refresh(self) -> int:
        """Move to the newest version, and return its number."""
        version = newest_version(self._path, self.version)
        if version != self.version:
            old, self._snapshot = self._snapshot, self._newest_snapshot(version)
            old.close()
        return self.version

    # Writing

    def _check_writable(self, doing: str) -> None:
        if self._mode != "a":
            raise UsageError(f"{self._path} is open to read: open it with mode='a' to {doing}")

    def writer(
        self, *, budget: int | str = DEFAULT_BUDGET, segment_bytes: int | str = DEFAULT_SEGMENT
    ) -> Writer:
        """A writer: one commit on a clean exit of its ``with`` block, nothing on an exception.

        Parameters
        ----------
        budget
            Memory for data being written.
        segment_bytes
            Stored size at which a segment is finished and the next begun.
        """
        self._check_writable("append")
        return Writer(
            self._path,
            newest(self._path, self.version),
            budget=parse_bytes(budget, what="budget"),
            segment_bytes=max(parse_bytes(segment_bytes, what="segment_bytes"), 1),
            on_commit=lambda manifest: self._follow(manifest.version, manifest),
        )

    def _follow(self, version: int, manifest: Manifest | None = None) -> None:
        """Show what this store's own writer committed; others' commits wait for `refresh`."""
        if version > self.version:
            old = self._snapshot
            try:
                self._snapshot = self._snapshot_of(version, manifest)
            except VersionError:  # others have committed after it and vacuumed it
                self._snapshot = self._newest_snapshot(version)
            old.close()

    def compact(self, *, segment_bytes: int | str = DEFAULT_SEGMENT, progress: bool = False) -> int:
        """Write runs of small segments as few large ones, as a new version; return its number.

        Readers of older versions are not disturbed. With nothing to join no version is made.
        """
        self._check_writable("compact")
        version = compaction.compact(
            self._path, parse_bytes(segment_bytes, what="segment_bytes"), progress=progress
        )
        self._follow(version)
        return version

    def vacuum(self, *, keep: int = 2) -> list[Path]:
        """Remove all but the newest `keep` versions, and files that no version names.

        A version that somebody on this machine has open is kept. While a writer is at work
        anywhere, loose files are left for another time: they may be its own. Versions whose
        manifests are damaged do not count as kept.

        Returns
        -------
        The paths removed.

        Raises
        ------
        CorruptionError
            No version can be read, and nothing was removed; or a manifest or segment list that
            stays cannot, and loose segments were left, since it may name them.
        """
        self._check_writable("vacuum")
        return vacuuming.vacuum(self._path, keep)

    def verify(self, *, progress: bool = False) -> Report:
        """Check every chunk against its checksum, and every side column against its data."""
        return verification.verify(self._snapshot, progress=progress)

    def repair(self, *, dry_run: bool = False, progress: bool = False) -> RepairReport:
        """Make a new version of all samples of the newest that are intact; say what is lost.

        Old versions and their files are left as they are, and a store with nothing to repair as it
        is. Where samples are lost, those after them move up: `RepairReport.positions` says from
        where. A store whose newest manifest is damaged opens at an older version, or is repaired
        by the command `raggedstore repair`.

        Parameters
        ----------
        dry_run
            Only say what would be lost.
        """
        self._check_writable("repair")
        report = repair(self._path, dry_run=dry_run, progress=progress)
        if report.version is not None:
            self._follow(report.version)
        return report

    def export(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Write all samples of this version into one HDF5 file, which must not exist."""
        from raggedstore.interop.single import export

        export(self, path, self.compression, progress=progress)


def _reopen(path: str, mode: str, version: int, options: dict[str, Any]) -> Store:
    return Store(path, mode, version=version, **options)


def open_store(path: str | os.PathLike[str], mode: str = "r", **options: Any) -> Store:
    """Open the store in a folder; `Store` says what the options are."""
    return Store(path, mode, **options)


def create(
    path: str | os.PathLike[str],
    schema: Mapping[str, Any],
    *,
    profile: str | Compression | Mapping[str, str | Compression] = "balanced",
    metadata: Mapping[str, Any] | None = None,
) -> Store:
    """Make an empty store in a new or empty folder, and open it for writing.

    Parameters
    ----------
    schema
        A `Field` for each field's name.
    profile
        "fast", "balanced" or "small": codec and filters are then chosen by a trial on each
        field's first data, and kept (`Store.compression`). Or a `Compression`; or one of these
        for each field's name (others are "balanced").
    metadata
        Plain JSON values to keep with it.

    Raises
    ------
    ConflictError
        Something is there already.
    SchemaError, UsageError
        The schema or the profile makes no sense.
    """
    root = files.as_path(path)
    checked = schema if isinstance(schema, Schema) else Schema(schema)
    check_writable(checked)
    try:
        str(root.absolute()).encode()
    except UnicodeEncodeError:
        raise UsageError(f"HDF5 writes where names are UTF-8, and not below {root}") from None
    if not isinstance(metadata, (Mapping, NoneType)):
        raise UsageError(f"metadata is a dict of JSON values, got {metadata!r}")
    compressions = _compressions(checked, profile)
    manifest = Manifest(
        root, 0, checked, compressions, time=utc_now(), metadata=dict(metadata or {})
    )
    data = manifest.dumps()
    with files.storage_errors(root, "be looked at"):
        _check_vacant(root)
    with files.storage_errors(root, "be made"):
        new = [folder for folder in (root, *root.parents) if not folder.exists()]
        for name in ("segments", "versions"):
            (root / name).mkdir(parents=True, exist_ok=True)
    for folder in (root, *(made.parent for made in new)):
        files.sync_folder(folder)
    try:
        files.publish(path_of(root, 0), data)
    except ConflictError:
        raise ConflictError(f"{root} is a store already") from None
    return Store(root, "a")


def _check_vacant(root: Path) -> None:
    """ConflictError where anything but the bare folders of a store is there."""
    if not root.is_dir():
        if root.exists() or root.is_symlink():
            raise ConflictError(f"{root} exists and is not a folder")
        return
    for entry in sorted(root.iterdir()):
        if (
            entry.name in ("segments", "versions")
            and entry.is_dir()
            and not any(
                name for name in entry.iterdir() if not name.name.startswith(files.TEMPORARY)
            )
        ):
            continue  # left by a `create` that died half-way
        what = "a store already" if entry.name == "versions" else "not an empty folder"
        raise ConflictError(f"{root} is {what}")


def _compressions(schema: Schema, wanted: Any) -> dict[str, Compression | str]:
    """The compression of each field, or the profile to choose it by."""
    each = wanted if isinstance(wanted, Mapping) else dict.fromkeys(schema, wanted)
    for name in each:
        schema[name]  # UnknownFieldError for a name that is no field
    chosen: dict[str, Compression | str] = {}
    for name in schema:
        choice = each.get(name, "balanced")
        if isinstance(choice, str):
            check_profile(choice)
        elif not isinstance(choice, Compression):
            raise UsageError(f"profile is one of {', '.join(PROFILES)} or a Compression")
        chosen[name] = choice
    return chosen

"""The manifest: the small JSON file that says what one version holds.

On disk: ``{"checksum":"<16 hex digits>","manifest":{…}}``, the checksum being xxh3-64 of the
bytes of the inner object, so that no damaged manifest is ever believed. It names the newest
segments itself and those before through segment lists (see `lists`). Names in it are plain file
names: nothing in a manifest can lead out of the store's folder.

Which version is the newest
---------------------------
Versions are made one after another, without gaps, and a newest one is never removed. So where
version v is there and v + 1 never was, v is the newest; whoever knows some version need only
look for the next instead of listing the folder. But vacuum removes versions, and where one that
is being read stays, those after it may go. Two rules keep the answer right:

- vacuum goes upwards, and before it goes past a version that stays it marks it, with an empty
  file ``<version>.passed`` that goes only after the version itself;
- whoever finds v + 1 absent looks, in this order, that v has no mark and that v is still there.

If v + 1 had been there and was removed before it was looked for, then v was removed or marked
earlier still, and one of the two looks shows it (a mark that is gone again went after its
version). Otherwise v was the newest when v + 1 was looked for. How v came to be known does not
matter: it may come from a listing too, which alone could miss a version that was removed, and
the one made just before, while the folder was being read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from raggedstore import strictjson
from raggedstore.errors import (
    ConflictError,
    CorruptionError,
    FormatError,
    NotAStoreError,
    RaggedStoreError,
    StorageError,
    UsageError,
    VersionError,
)
from raggedstore.schema import Schema
from raggedstore.segment.codec import Compression
from raggedstore.segment.profiles import check_profile
from raggedstore.store import files, lists
from raggedstore.store.lists import (
    ListEntry,
    SegmentEntry,
    parse_lists,
    parse_segments,
    read_file,
    read_list,
    seal,
    unseal,
    versions_folder,
)

__all__ = [
    "FORMAT_VERSION",
    "Manifest",
    "is_unpassed",
    "list_versions",
    "load",
    "mark_of",
    "newest",
    "newest_version",
    "path_of",
]

FORMAT_VERSION = 1
MAX_VERSION = 2**63 - 1
MAX_SAMPLES = 2**48
#: How far after a version others are looked for where the next one is missing.
_GAPS = (*range(2, 17), 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a store."""

    root: Path = field(compare=False, repr=False)  #: the store's folder
    version: int
    schema: Schema
    #: Of each field; the name of a profile as long as there was too little data to try it on.
    compressions: dict[str, Compression | str]
    lists: tuple[ListEntry, ...] = ()  #: the segments before `recent`, in order
    recent: tuple[SegmentEntry, ...] = ()  #: the newest segments
    parent: int | None = None
    time: str = ""  #: ISO 8601, UTC
    operation: str = "create"  #: "create", "append", "compact", "repair"
    metadata: dict[str, Any] = field(default_factory=dict)
    #: How many repairs have cut samples out, so that those after them have other positions.
    moved: int = 0

    @property
    def segments(self) -> tuple[SegmentEntry, ...]:
        """All segments in order; reads the lists, each time."""
        before = chain.from_iterable(read_list(self.root, entry) for entry in self.lists)
        return (*before, *self.recent)

    # What all segments come to, without reading a list

    @property
    def parts(self) -> tuple[ListEntry | SegmentEntry, ...]:
        """The lists and the newest segments, which all have the sums that follow."""
        return (*self.lists, *self.recent)

    @property
    def segment_count(self) -> int:
        """Number of segments."""
        return sum(entry.segments for entry in self.lists) + len(self.recent)

    @property
    def samples(self) -> int:
        """Number of samples in all."""
        return sum(part.samples for part in self.parts)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all samples, uncompressed."""
        return sum(part.raw_bytes for part in self.parts)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all segments and their chunk tables."""
        return sum(part.bytes + part.index_bytes for part in self.parts)

    # The next version

    def child(self, **changes: Any) -> Manifest:
        """The next version, with `changes`."""
        return replace(self, version=self.version + 1, parent=self.version, **changes)

    def appended(self, entries: Sequence[SegmentEntry], **changes: Any) -> Manifest:
        """The next version, with `entries` after all segments."""
        return self.child(recent=(*self.recent, *entries), **changes)

    def replaced(self, entries: Sequence[SegmentEntry], **changes: Any) -> Manifest:
        """The next version, with `entries` for all segments."""
        return self.child(lists=(), recent=tuple(entries), **changes)

    def rolled_over(self) -> tuple[Manifest, dict[str, bytes]]:
        """This manifest with its oldest direct segments in lists where there are too many.

        Returns
        -------
        The manifest, and the files of the lists that it names besides, by name.
        """
        named, made, start = [*self.lists], {}, 0
        while len(self.recent) - start > lists.DIRECT:
            entry, data = lists.dump_list(self.recent[start : start + lists.DIRECT])
            named.append(entry)
            made[entry.file] = data
            start += lists.DIRECT
        return replace(self, lists=tuple(named), recent=self.recent[start:]), made

    # On disk

    def settled(self, choices: Mapping[str, Compression | str]) -> dict[str, Compression | str]:
        """How fields are compressed, once `choices` were made of profiles that stood open."""
        return {
            name: choices[name] if isinstance(choice, str) else choice
            for name, choice in self.compressions.items()
        }

    def dumps(self) -> bytes:
        """The bytes of the manifest's file; UsageError for metadata that is no JSON."""
        strictjson.check(self.metadata, "metadata")
        if self.version > MAX_VERSION:
            raise UsageError(f"version {self.version}: there are no more versions than 2**63")
        return seal(
            "manifest",
            {
                "format": FORMAT_VERSION,
                "version": self.version,
                "parent": self.parent,
                "time": self.time,
                "operation": self.operation,
                "schema": self.schema.to_json(),
                "compression": {
                    name: choice if isinstance(choice, str) else choice.to_json()
                    for name, choice in self.compressions.items()
                },
                "lists": [entry.to_json() for entry in self.lists],
                "segments": [entry.to_json() for entry in self.recent],
                "metadata": self.metadata,
                **({"moved": self.moved} if self.moved else {}),
            },
        )

    @classmethod
    def loads(cls, data: bytes, root: Path) -> Manifest:
        """The manifest in `data`, of the store in the folder `root`.

        Raises
        ------
        CorruptionError
            The bytes are not those that were written.
        FormatError
            They are, but not of a format that this version of raggedstore reads.
        """
        value = unseal("manifest", data)
        try:
            if value["format"] != FORMAT_VERSION:
                raise FormatError(
                    f"format version {value['format']!s:.20}; this raggedstore reads "
                    f"{FORMAT_VERSION}"
                )
            schema = Schema.from_json(value["schema"])
            parent, metadata = value["parent"], value["metadata"]
            moved = value.get("moved", 0)
            if type(moved) is not int or moved < 0:
                raise FormatError("it counts no repairs")
            if not (parent is None or type(parent) is int) or not isinstance(metadata, dict):
                raise FormatError("its parent is no version, or its metadata no object")
            manifest = cls(
                root=root,
                version=int(value["version"]),
                schema=schema,
                compressions={n: _compression(value["compression"][n]) for n in schema},
                lists=parse_lists(value.get("lists", [])),
                recent=parse_segments(value["segments"]),
                parent=parent,
                time=str(value["time"]),
                operation=str(value["operation"]),
                metadata=metadata,
                moved=moved,
            )
            if manifest.samples > MAX_SAMPLES or not 0 <= manifest.version <= MAX_VERSION:
                raise FormatError(f"{manifest.samples} samples in version {manifest.version}")
            return manifest
        except RaggedStoreError as error:
            raise FormatError(f"the manifest makes no sense: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FormatError(f"the manifest makes no sense: {error!r:.200}") from None


def _compression(value: Any) -> Compression | str:
    return check_profile(value) if isinstance(value, str) else Compression.from_json(value)


def path_of(root: Path, version: int) -> Path:
    """Where the manifest of a version lies."""
    return versions_folder(root) / _name_of(version)


def _name_of(version: int) -> str:
    return f"{version:020d}.json"


def mark_of(root: Path, version: int) -> Path:
    """The empty file by which vacuum says that it removes versions after one that stays."""
    return versions_folder(root) / f"{version:020d}.passed"


def list_versions(root: Path) -> list[int]:
    """The versions that the store has, oldest first.

    Raises
    ------
    NotAStoreError
        `root` has no folder of versions.
    """
    try:
        names = os.listdir(versions_folder(root))
    except (FileNotFoundError, NotADirectoryError):
        raise NotAStoreError(f"{root}: no raggedstore store is here") from None
    except OSError as error:
        raise StorageError(f"{root}: could not be listed: {error.strerror}") from error
    numbers = [name[:20] for name in names if len(name) == 25 and name.endswith(".json")]
    return sorted(int(number) for number in numbers if number.isascii() and number.isdigit())


def load(root: Path, version: int) -> Manifest:
    """The manifest of `version`; VersionError where the store has it not."""
    path = path_of(root, version)
    try:
        data = read_file(path)
    except FileNotFoundError:
        have = list_versions(root)
        span = f"{have[0]} to {have[-1]}" if have else "none"
        raise VersionError(f"{root} has no version {version}; it has {span}") from None
    try:
        manifest = Manifest.loads(data, root)
    except (CorruptionError, FormatError) as error:
        raise type(error)(f"{path}: {error}") from None
    if manifest.version != version:
        raise CorruptionError(f"{path}: holds the manifest of version {manifest.version}")
    return manifest


def newest_version(root: Path, hint: int | None = None) -> int:
    """The newest version, whatever is committed and removed meanwhile.

    Parameters
    ----------
    hint
        A version that the store had, the newer the better: spares the listing of the folder.
    """
    for _ in range(100):
        if hint is None:
            versions = list_versions(root)
            if not versions:
                raise NotAStoreError(f"{root}: no raggedstore store is here")
            hint = versions[-1]
        version = _climb(root, hint)
        if is_unpassed(root, version) and not _has_gap(root, version):
            return version
        hint = None
    if files.is_there(mark_of(root, version)):
        raise CorruptionError(
            f"{root}: versions after {version} are lost, and it had been marked as not the newest: "
            f"`repair` takes it for that; rs.open(path, version={version}) reads it"
        )
    raise ConflictError(f"{root}: its versions change faster than they can be read")


def is_unpassed(root: Path, version: int) -> bool:
    """Whether `version` is there, and no version after it was ever removed."""
    return not files.is_there(mark_of(root, version)) and files.is_there(path_of(root, version))


def _climb(root: Path, version: int) -> int:
    """A version from `version` upwards that no other follows, found in few steps."""
    step = 1
    while step:
        if files.is_there(path_of(root, version + step)):
            version += step
            step *= 2
        else:
            step //= 2
    return version


def _has_gap(root: Path, version: int) -> bool:
    """Whether versions are there after `version`, and the next one is not: it was lost.

    Not all are looked at. Where vacuum has made such a gap `version` has a mark.
    """
    folder = os.fspath(versions_folder(root))  # a Path for each would take longer than to look
    return any(files.is_there(f"{folder}/{_name_of(version + step)}") for step in _GAPS)


def newest(root: Path, hint: int | None = None) -> Manifest:
    """The manifest of the newest version; see `newest_version`."""
    for _ in range(100):
        try:
            return load(root, newest_version(root, hint))
        except VersionError:
            hint = None  # removed before it was read: there is a newer one
    raise ConflictError(f"{root}: its versions change faster than they can be read")

"""The manifest: the small JSON file that names the segments of one version.

On disk: ``{"checksum":"<16 hex digits>","manifest":{…}}``, the checksum being xxh3-64 of the
bytes of the inner object, so that no damaged manifest is ever believed. Names in it are plain
file names: nothing in a manifest can lead out of the store's folder.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raggedstore.errors import (
    ConflictError,
    CorruptionError,
    FormatError,
    NotAStoreError,
    RaggedStoreError,
    StorageError,
    VersionError,
)
from raggedstore.schema import Schema
from raggedstore.segment.codec import Compression
from raggedstore.segment.table import checksum

__all__ = ["FORMAT_VERSION", "Manifest", "SegmentEntry", "list_versions", "load", "newest"]

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 2**28
_NAME = re.compile(r"[0-9a-f]{32}\.h5")
_HEAD = re.compile(rb'\{"checksum":"([0-9a-f]{16})","manifest":')


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment as a manifest names it."""

    file: str  #: ``<uuid>.h5``
    samples: int
    bytes: int  #: size of the file
    index_bytes: int  #: size of its .idx
    raw_bytes: int  #: of the samples, uncompressed, side columns left out
    digest: str  #: xxh3-128 of the file, hex
    index_digest: str  #: xxh3-128 of the .idx, hex

    @property
    def index(self) -> str:
        """Name of the chunk table's file."""
        return self.file[:-3] + ".idx"

    def to_json(self) -> list[Any]:
        """The entry as a short JSON list."""
        return [
            self.file,
            self.samples,
            self.bytes,
            self.index_bytes,
            self.raw_bytes,
            self.digest,
            self.index_digest,
        ]

    @classmethod
    def from_json(cls, value: Any) -> SegmentEntry:
        """The entry that `to_json` made; FormatError for anything else."""
        if (
            not isinstance(value, list)
            or len(value) != 7
            or [type(v) for v in value] != [str, int, int, int, int, str, str]
            or not _NAME.fullmatch(value[0])
            or min(value[1:5]) < 0
        ):
            raise FormatError(f"not a segment entry: {value!r}")
        return cls(*value)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a store."""

    version: int
    schema: Schema
    compressions: dict[str, Compression]
    segments: tuple[SegmentEntry, ...] = ()
    parent: int | None = None
    time: str = ""  #: ISO 8601, UTC
    operation: str = "create"  #: "create", "append", "compact"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples in all."""
        return sum(entry.samples for entry in self.segments)

    def child(self, **changes: Any) -> Manifest:
        """The next version, with `changes`."""
        return replace(self, version=self.version + 1, parent=self.version, **changes)

    def dumps(self) -> bytes:
        """The bytes of the manifest's file."""
        body = json.dumps(
            {
                "format": FORMAT_VERSION,
                "version": self.version,
                "parent": self.parent,
                "time": self.time,
                "operation": self.operation,
                "schema": self.schema.to_json(),
                "compression": {n: c.to_json() for n, c in self.compressions.items()},
                "segments": [entry.to_json() for entry in self.segments],
                "metadata": self.metadata,
            },
            separators=(",", ":"),
            allow_nan=False,
        ).encode()
        return b'{"checksum":"%016x","manifest":%s}\n' % (checksum(body), body)

    @classmethod
    def loads(cls, data: bytes) -> Manifest:
        """The manifest in `data`.

        Raises
        ------
        CorruptionError
            The bytes are not those that were written.
        FormatError
            They are, but not of a format that this version of raggedstore reads.
        """
        head = _HEAD.match(data)
        if head is None or not data.endswith(b"}\n"):
            raise CorruptionError("not a whole manifest")
        body = memoryview(data)[head.end() : -2]
        if int(head[1], 16) != checksum(body):
            raise CorruptionError("the manifest's checksum does not hold")
        try:
            value = json.loads(bytes(body))
            if value["format"] != FORMAT_VERSION:
                raise FormatError(
                    f"format version {value['format']!r}; this raggedstore reads {FORMAT_VERSION}"
                )
            schema = Schema.from_json(value["schema"])
            return cls(
                version=int(value["version"]),
                schema=schema,
                compressions={n: Compression.from_json(value["compression"][n]) for n in schema},
                segments=tuple(SegmentEntry.from_json(entry) for entry in value["segments"]),
                parent=value["parent"],
                time=str(value["time"]),
                operation=str(value["operation"]),
                metadata=dict(value["metadata"]),
            )
        except RaggedStoreError as error:
            raise FormatError(f"the manifest makes no sense: {error}") from None
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise FormatError(f"the manifest makes no sense: {error!r}") from None


def path_of(root: Path, version: int) -> Path:
    """Where the manifest of a version lies."""
    return root / "versions" / f"{version:020d}.json"


def list_versions(root: Path) -> list[int]:
    """The versions that the store has, oldest first.

    Raises
    ------
    NotAStoreError
        `root` has no folder of versions.
    """
    try:
        names = [path.name for path in (root / "versions").iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        raise NotAStoreError(f"{root}: no raggedstore store is here") from None
    except OSError as error:
        raise StorageError(f"{root}: could not be listed: {error.strerror}") from error
    return sorted(int(n[:20]) for n in names if re.fullmatch(r"[0-9]{20}\.json", n))


def load(root: Path, version: int) -> Manifest:
    """The manifest of `version`; VersionError where the store has it not."""
    path = path_of(root, version)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        have = list_versions(root)
        span = f"{have[0]} to {have[-1]}" if have else "none"
        raise VersionError(f"{root} has no version {version}; it has {span}") from None
    except OSError as error:
        raise StorageError(f"{path}: could not be read: {error.strerror}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise FormatError(f"{path}: too large for a manifest")
    try:
        manifest = Manifest.loads(data)
    except (CorruptionError, FormatError) as error:
        raise type(error)(f"{path}: {error}") from None
    if manifest.version != version:
        raise CorruptionError(f"{path}: holds the manifest of version {manifest.version}")
    return manifest


def newest(root: Path) -> Manifest:
    """The manifest of the newest version, whatever vacuum removes meanwhile."""
    for _ in range(100):
        versions = list_versions(root)
        if not versions:
            raise NotAStoreError(f"{root}: no raggedstore store is here")
        try:
            return load(root, versions[-1])
        except VersionError:
            continue  # removed between the listing and the reading: there is a newer one
    raise ConflictError(f"{root}: its versions change faster than they can be read")

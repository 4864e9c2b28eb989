"""Segment lists: what keeps a commit's cost in proportion to what it adds.

A manifest names its newest segments itself, at most `DIRECT` of them. Those before lie in
segment lists of `DIRECT` segments each, files that are written once and that every later
manifest names again instead of copying what is in them.

On disk a list is ``{"checksum":"<16 hex digits>","list":{"segments":[…]}}``, the checksum being
that of a manifest. Its name is the digest of its bytes: whoever writes the same segments writes
the same file, so two processes that roll over at once, or a compaction that leaves the first
segments as they are, make nothing twice; and a list that is not the one named is known at once.
What a manifest says of a list (how many segments and samples, how many bytes) is believed until
the list is read, and then held against it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from raggedstore import strictjson
from raggedstore.errors import CorruptionError, FormatError, StorageError, UsageError
from raggedstore.segment.file import Descriptor
from raggedstore.segment.table import checksum

__all__ = [
    "DIRECT",
    "ListEntry",
    "SegmentEntry",
    "dump_list",
    "parse_lists",
    "parse_segments",
    "read_file",
    "read_list",
    "seal",
    "unseal",
    "versions_folder",
]

DIRECT = 256  #: segments that a manifest names itself at most, and that a list holds
MAX_BYTES = 2**24  #: of a manifest or a list: parsed, it takes some twenty times as much memory
_SEGMENT = re.compile(r"[0-9a-f]{32}\.h5")
_LIST = re.compile(r"[0-9a-f]{32}\.list")


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment as a manifest or a list names it."""

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

    @property
    def summary(self) -> str:
        """Name of the file that its statistics may be kept in."""
        return self.file[:-3] + ".stats"

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


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One segment list as a manifest names it, with the sums over its segments."""

    file: str  #: ``<xxh3-128 of the file>.list``
    segments: int
    samples: int
    bytes: int
    index_bytes: int
    raw_bytes: int

    @classmethod
    def of(cls, file: str, entries: Sequence[SegmentEntry]) -> ListEntry:
        """The entry of a list of `entries`."""
        return cls(
            file,
            len(entries),
            sum(entry.samples for entry in entries),
            sum(entry.bytes for entry in entries),
            sum(entry.index_bytes for entry in entries),
            sum(entry.raw_bytes for entry in entries),
        )

    def to_json(self) -> list[Any]:
        """The entry as a short JSON list."""
        return [
            self.file,
            self.segments,
            self.samples,
            self.bytes,
            self.index_bytes,
            self.raw_bytes,
        ]


def parse_segments(value: Any) -> tuple[SegmentEntry, ...]:
    """The entries that `SegmentEntry.to_json` made; FormatError for anything else."""
    rows = _rows(value, [str, int, int, int, int, str, str], _SEGMENT, "segment")
    return tuple(SegmentEntry(*row) for row in rows)


def parse_lists(value: Any) -> tuple[ListEntry, ...]:
    """The entries that `ListEntry.to_json` made; FormatError for anything else."""
    rows = _rows(value, [str, int, int, int, int, int], _LIST, "list")
    return tuple(ListEntry(*row) for row in rows)


def _rows(value: Any, types: list[type], name: re.Pattern[str], what: str) -> list[list[Any]]:
    """`value` if it is a list of rows of `types`, a file's name first, no number negative."""
    if not isinstance(value, list):
        raise FormatError(f"not a list of {what} entries: {reprlib.repr(value)}")
    numbers = types.count(int)
    for row in value:
        if (
            type(row) is not list
            or [type(cell) for cell in row] != types
            or not name.fullmatch(row[0])
            or min(row[1 : 1 + numbers]) < 0
        ):
            raise FormatError(f"not a {what} entry: {reprlib.repr(row)}")
    if len({row[0] for row in value}) < len(value):
        # None ever is; and a small file must not become many segments.
        raise FormatError(f"a {what} is named twice")
    return value


def seal(kind: str, value: Any) -> bytes:
    """The bytes of a file that holds `value` and a checksum of it.

    Raises
    ------
    UsageError
        It would be larger than any that is read.
    """
    body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    data = b'{"checksum":"%016x","%s":%s}\n' % (checksum(body), kind.encode(), body)
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"a {kind} of {len(data)} bytes, of {MAX_BYTES} at most: keep less metadata, or "
            f"compact the store"
        )
    return data


def unseal(kind: str, data: bytes) -> Any:
    """The value that `seal` put into `data`.

    Raises
    ------
    CorruptionError
        The bytes are not those that were written.
    FormatError
        They are, and are no JSON that can be read.
    """
    head = re.match(rb'\{"checksum":"([0-9a-f]{16})","%s":' % kind.encode(), data)
    if head is None or not data.endswith(b"}\n"):
        raise CorruptionError(f"not a whole {kind}")
    body = memoryview(data)[head.end() : -2]
    if int(head[1], 16) != checksum(body):
        raise CorruptionError(f"the {kind}'s checksum does not hold")
    try:
        return strictjson.loads(bytes(body))
    except ValueError as error:
        raise FormatError(f"the {kind} makes no sense: {error}") from None


def dump_list(entries: Sequence[SegmentEntry]) -> tuple[ListEntry, bytes]:
    """The bytes of the list of `entries`, and how a manifest names it."""
    data = seal("list", {"segments": [entry.to_json() for entry in entries]})
    return ListEntry.of(f"{xxhash.xxh3_128_hexdigest(data)}.list", entries), data


def versions_folder(root: Path) -> Path:
    """Where the manifests and segment lists of a store lie."""
    return root / "versions"


def read_file(path: Path, most: int | None = None) -> bytes:
    """All of a manifest, a list or a chunk table, of `MAX_BYTES` or `most` bytes.

    Raises
    ------
    FileNotFoundError
        There is none.
    CorruptionError, FormatError
        It is a symbolic link or no regular file, or larger than any that was ever written.
    StorageError
        It could not be read.
    """
    most = MAX_BYTES if most is None else most
    try:
        with (
            closing(Descriptor(path, os.O_RDONLY | os.O_NOFOLLOW)) as file,
            open(file.number, "rb", closefd=False) as stream,
        ):
            # What is asked for is allocated, however little there is.
            data = stream.read(min(os.fstat(file.number).st_size, most) + 1)
    except (FileNotFoundError, CorruptionError):
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptionError(f"{path}: a symbolic link, which a store never holds") from None
        raise StorageError(f"{path}: could not be read: {error.strerror}") from error
    if len(data) > most:
        raise FormatError(f"{path}: too large for a {path.suffix[1:]}")
    return data


def read_list(root: Path, entry: ListEntry) -> tuple[SegmentEntry, ...]:
    """The segments of a list that a manifest names.

    Raises
    ------
    CorruptionError, FormatError
        The list is missing, damaged, or not the one that was named.
    """
    path = versions_folder(root) / entry.file
    try:
        data = read_file(path)
    except FileNotFoundError:
        raise CorruptionError(f"{path}: the segment list is missing") from None
    if xxhash.xxh3_128_hexdigest(data) != path.stem:
        raise CorruptionError(f"{path}: the segment list is damaged")
    try:
        value = unseal("list", data)
        if not isinstance(value, dict):
            raise FormatError("the list makes no sense")
        entries = parse_segments(value.get("segments"))
    except (CorruptionError, FormatError) as error:
        raise type(error)(f"{path}: {error}") from None
    found = ListEntry.of(entry.file, entries)
    if found != entry:
        raise CorruptionError(
            f"{path}: holds {found.segments} segments of {found.samples} samples and "
            f"{found.bytes} bytes, not the {entry.segments} of {entry.samples} and "
            f"{entry.bytes} that were written"
        )
    return entries

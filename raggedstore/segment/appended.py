"""A chunk table with checksums behind the end of a single HDF5 file.

A segment of a store has its .idx beside it. An exported file travels alone, so its table follows
where HDF5's own bytes end:

    HDF5 file | the bytes of an .idx | their number, uint64 | `MAGIC`

HDF5 knows from its superblock where it ends and does not look at what comes after. Whatever opens
the file to write, even if nothing is then written, cuts it off there on closing: so a table is
there as long as no other tool had its hands on what it describes, and then it is gone. That is no
damage, and the file reads as one from elsewhere. But the root of HDF5's tree carries
`TABLE_ATTRIBUTE`, so a file that has one, does not end where HDF5 says, and has no table, has lost
it with its tail.
"""

from __future__ import annotations

import struct
from pathlib import Path

from raggedstore.errors import CorruptionError
from raggedstore.segment.file import FileBytes
from raggedstore.segment.table import MAX_BYTES, SegmentTable

__all__ = ["append_table", "appended_table", "hdf5_size"]

MAGIC = b"RSTABLE\x01"
TAIL = struct.Struct("<Q8s")
_END_IN_SUPERBLOCK = {0: 40, 1: 44, 2: 28, 3: 28}  #: by its version, with offsets of 8 bytes


def append_table(path: Path, table: SegmentTable) -> None:
    """Put a file's table behind its end; making sure of the disk is the caller's."""
    data = table.dumps()
    with open(path, "ab") as file:
        file.write(data + TAIL.pack(len(data), MAGIC))


def appended_table(data: FileBytes) -> SegmentTable | None:
    """The table behind the end of an HDF5 file, or None where there is none.

    Raises
    ------
    CorruptionError
        There is one, and it is damaged.
    """
    at = len(data) - TAIL.size
    if at < 0:
        return None
    length, magic = TAIL.unpack(data.read(at, TAIL.size))
    if magic != MAGIC:
        return None
    if length > min(at, MAX_BYTES):
        raise CorruptionError("the chunk table at its end is damaged")
    return SegmentTable.loads(data.read(at - length, length), file_bytes=at - length)


def hdf5_size(data: FileBytes) -> int | None:
    """Where an HDF5 file ends as its superblock says; None for one that does not begin with it."""
    head = bytes(data.read(0, min(len(data), 64)))
    at = _END_IN_SUPERBLOCK.get(head[8] if len(head) == 64 else -1)
    return None if at is None else int.from_bytes(head[at : at + 8], "little")

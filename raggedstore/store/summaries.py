"""Statistics of a store, kept for each segment: an append then costs the reading of what it added.

Segments never change, so neither do the moments of a field over one. What was computed is kept in
memory and, by who may write, beside the segment in ``segments/<uuid>.stats``::

    {"checksum":"<16 hex digits>","stats":{"segment":"<the segment's digest>","moments":
     [["mel",[0],false,"<base64>"], …]}}

with a row for each field, axes and whether NaN was skipped; the text is `Moments.to_bytes`. The
file is no part of any version: one that is missing, damaged or another segment's is made anew, one
that cannot be written is done without, and vacuum removes it with its segment.
"""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raggedstore.errors import RaggedStoreError
from raggedstore.moments import Moments
from raggedstore.schema import Field
from raggedstore.statistics import Axes, groups_of, moments_of
from raggedstore.store import files
from raggedstore.store.commit import segments_folder
from raggedstore.store.lists import SegmentEntry, read_file, seal, unseal

if TYPE_CHECKING:
    from raggedstore.store.snapshot import Snapshot

__all__ = ["Summaries"]

_MOST_BYTES = 2**20  # of one row: of more than 21,845 groups nothing is kept

#: Field, axes, whether NaN was skipped.
Key = tuple[str, Axes, bool]


class Summaries:
    """What is kept of the statistics of the store in the folder `root`.

    Parameters
    ----------
    write
        Keep it on the disk too.
    """

    def __init__(self, root: Path, *, write: bool) -> None:
        self._root = root
        self._write = write
        self._held: dict[Key, dict[str, Moments]] = {}  # and of each, by segment

    def moments(self, snapshot: Snapshot, name: str, axes: Axes, *, skipna: bool) -> Moments:
        """The moments of a field over all segments of `snapshot`."""
        field, key, parts = snapshot.schema[name], (name, axes, skipna), snapshot.parts
        total = Moments.none(field.dtype, groups_of(field, axes))
        held, known = {}, self._held.get(key, {})
        for number, entry in enumerate(parts.entries):
            found = known.get(entry.file) if isinstance(entry, SegmentEntry) else None
            if found is None and isinstance(entry, SegmentEntry):
                found = self._read(entry, field, key)
            if found is None:
                first, last = parts.starts[number : number + 2].tolist()
                found = moments_of(snapshot, name, range(first, last), axes, skipna=skipna)
                if isinstance(entry, SegmentEntry) and self._write:
                    self._keep(entry, key, found)
            if isinstance(entry, SegmentEntry) and len(found.to_bytes()) <= _MOST_BYTES:
                held[entry.file] = found
            total = total.merge(found)
        self._held[key] = held  # of segments that are no part of this version any more, nothing
        return total

    def _rows(self, entry: SegmentEntry) -> list[Any]:
        """What is kept on the disk for a segment; nothing where that is not to be trusted."""
        with suppress(OSError, RaggedStoreError):
            value = unseal("stats", read_file(segments_folder(self._root) / entry.summary))
            if isinstance(value, dict) and value.get("segment") == entry.digest:
                rows = value.get("moments")
                if isinstance(rows, list) and all(_is_row(row) for row in rows):
                    return rows
        return []

    def _read(self, entry: SegmentEntry, field: Field, key: Key) -> Moments | None:
        for row in self._rows(entry):
            if row[:3] == _shown(key):
                with suppress(ValueError):
                    data = base64.b64decode(row[3], validate=True)
                    return Moments.from_bytes(data, field.dtype, groups_of(field, key[1]))
        return None

    def _keep(self, entry: SegmentEntry, key: Key, moments: Moments) -> None:
        data = moments.to_bytes()
        if len(data) > _MOST_BYTES:
            return
        rows = [row for row in self._rows(entry) if row[:3] != _shown(key)]
        rows.append([*_shown(key), base64.b64encode(data).decode()])
        value = {"segment": entry.digest, "moments": rows}
        with suppress(OSError, RaggedStoreError):  # a full disk, say, or vacuum: nothing is lost
            files.put(segments_folder(self._root) / entry.summary, seal("stats", value))


def _shown(key: Key) -> list[Any]:
    name, axes, skipna = key
    return [name, list(axes), skipna]


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, list)
        and [type(cell) for cell in row] == [str, list, bool, str]
        and all(type(axis) is int for axis in row[1])
    )

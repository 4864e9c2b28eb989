"""Samples of several segments into one batch: each decoded to where it belongs.

What few samples of a segment cost is planning, and what many of several cost is putting them
together: one sample of a segment is looked up as a single get is, and nothing is copied twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.layout import DATA
from raggedstore.schema import Field
from raggedstore.segment import memory
from raggedstore.segment.context import check_room
from raggedstore.segment.reader import SegmentReader

__all__ = ["Part", "dense", "ragged", "shapes"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """The samples of one segment that a batch has."""

    reader: SegmentReader
    positions: Int64s  #: (k,) within the segment
    places: Int64s | slice  #: (k,) within the batch, ascending


def _count(parts: list[Part]) -> int:
    return sum(len(part.positions) for part in parts)


def ragged(
    name: str, field: Field, parts: list[Part], windows: tuple[Int64s, Int64s] | None = None
) -> RaggedBatch:
    """A ragged field of the samples of all parts, or windows of them.

    Parameters
    ----------
    windows
        Starts and stops of the rows that are wanted of each sample of the batch.
    """
    if len(parts) == 1:
        return parts[0].reader.ragged(name, parts[0].positions, windows)
    count = _count(parts)
    starts, stops = np.empty(count, np.int64), np.empty(count, np.int64)
    shapes = np.empty((count, field.ndim), np.int64)
    for part in parts:
        at = part.places
        own = None if windows is None else (windows[0][at], windows[1][at])
        starts[at], stops[at], shapes[at] = part.reader.bounds(name, part.positions, own)
    offsets = offsets_of(stops - starts)
    check_room(int(offsets[-1]) * field.dtype.itemsize)
    values = memory.empty((int(offsets[-1]),), field.dtype)
    for part in parts:
        at = part.places
        part.reader.column(name, DATA).read_into(starts[at], stops[at], values, offsets[at])
    return RaggedBatch.trusted(values, offsets, shapes)


def dense(name: str, field: Field, parts: list[Part]) -> npt.NDArray[Any]:
    """As `ragged`, of a field without ragged dimensions."""
    if len(parts) == 1:
        return parts[0].reader.dense(name, parts[0].positions)
    out = np.empty((_count(parts), *(size or 0 for size in field.shape)), field.dtype)
    for part in parts:
        out[part.places] = part.reader.dense(name, part.positions)
    return out


def shapes(name: str, field: Field, parts: list[Part]) -> Int64s:
    """(k, d) shapes of the samples of all parts."""
    if len(parts) == 1:
        return parts[0].reader.shapes(name, parts[0].positions)
    out = np.empty((_count(parts), field.ndim), np.int64)
    for part in parts:
        out[part.places] = part.reader.shapes(name, part.positions)
    return out

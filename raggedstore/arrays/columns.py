"""The side columns of a ragged array: where each sample lies, and its shape.

Strategy: rows are checked as they are read, against the length that the data has now, so that
a damaged file is an error that names its sample and never a wrong slice. How many samples there
are is the length of the shorter column: a row of one without its counterpart is an append that
a crash cut short. Positions are int64 in columns made here; the 2014 PyTables article's layout
has int32 ones, which are read the same and refuse to grow past what they can hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from raggedstore.arrays.rows import Array, RowReader, Rows
from raggedstore.errors import CorruptionError, FormatError, SampleError
from raggedstore.indexing import Positions

__all__ = ["Bounds", "Extents", "SampleTable", "check_capacity", "open_column"]


@dataclass(frozen=True, slots=True)
class Extents:
    """Sizes and shapes of some samples: ``sizes`` (k,) and ``shapes`` (k, d), int64."""

    sizes: Positions
    shapes: Positions


@dataclass(frozen=True, slots=True)
class Bounds(Extents):
    """As `Extents`, with where each sample lies in the flat data: ``starts`` (k,) int64."""

    starts: Positions

    @property
    def stops(self) -> Positions:
        return self.starts + self.sizes


class SampleTable:
    """Checked rows of the side columns.

    Parameters
    ----------
    shapes : rows of (n, d) integers
    places : rows of (n, 2) integers, optional
        Starts and stops; a VLArray has none.
    values : Rows, optional
        The flat data that the places must lie in.
    """

    def __init__(
        self, shapes: RowReader, places: RowReader | None = None, values: Rows | None = None
    ) -> None:
        self._shapes, self._places, self._values = shapes, places, values

    def __len__(self) -> int:
        count = len(self._shapes)
        return count if self._places is None else min(count, len(self._places))

    def extents(self, positions: Positions) -> Extents:
        """Shapes and sizes of the samples at `positions`.

        Raises
        ------
        CorruptionError
            A dimension is negative, or a shape means more values than can be.
        """
        shapes = self._shapes.gather(positions).astype(np.int64, copy=False)
        bits = int(shapes.max()).bit_length() * shapes.shape[1] if shapes.size else 0
        if bits > 62 or (shapes < 0).any():
            _refuse((shapes < 0).any(axis=1), positions, shapes, "a negative dimension in shape")
            # The product in int64 could wrap round to a likely size; in float it is inexact only.
            vast = np.prod(shapes, axis=1, dtype=np.float64) >= 2**62
            _refuse(vast, positions, shapes, "an impossible shape")
        return Extents(np.prod(shapes, axis=1, dtype=np.int64), shapes)

    def bounds(self, positions: Positions) -> Bounds:
        """Places and shapes of the samples at `positions`.

        Raises
        ------
        CorruptionError
            As for `extents`; or a start lies after its stop or before 0, a stop past the data,
            or the shape's size is not the stop less the start.
        """
        assert self._places is not None and self._values is not None
        extents = self.extents(positions)
        places = self._places.gather(positions).astype(np.int64, copy=False)
        starts, stops = places[:, 0], places[:, 1]
        length = len(self._values)
        # Sizes are not negative: if they match and starts are none either, starts <= stops.
        if ((starts < 0) | (stops > length) | (stops - starts != extents.sizes)).any():
            _refuse(starts < 0, positions, places, "a negative start in start and stop")
            _refuse(starts > stops, positions, places, "start after stop:")
            _refuse(stops > length, positions, places, f"data ends at {length}, not at the stop of")
            _refuse(
                stops - starts != extents.sizes,
                positions,
                places,
                "its shape holds another number of values than",
            )
        return Bounds(extents.sizes, extents.shapes, starts)


def open_column(node: Any, width: int | None, *, what: str) -> Rows:
    """`node` as a side column: rows of `width` integers (at least one where `width` is None).

    Raises
    ------
    FormatError
        It is anything else.
    """
    shape: tuple[int, ...] = getattr(node, "shape", ())
    dtype = getattr(node, "dtype", None)
    if dtype is None or np.dtype(dtype).kind not in "iu" or len(shape) != 2:
        raise FormatError(f"{what} must be an array of integers (n, d), got {node!s}")
    if (width is not None and shape[1] != width) or shape[1] == 0:
        raise FormatError(f"{what} must have {width or 'at least one'} columns, got {shape[1]}")
    return Rows(node)


def check_capacity(column: Rows, values: Iterable[int], *, what: str) -> None:
    """Refuse `values` that the column's integers would wrap.

    Raises
    ------
    SampleError
        One of them is past the column's largest integer.
    """
    limit, highest = int(np.iinfo(column.dtype).max), max(values, default=0)
    if highest > limit:
        raise SampleError(
            f"{what} {highest} does not fit the file's {column.dtype} column (at most {limit}); "
            "copy the samples to a new array, whose columns are int64"
        )


def _refuse(bad: Any, positions: Positions, rows: Array, problem: str) -> None:
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise CorruptionError(f"sample {positions[at]}: {problem} {rows[at].tolist()}")

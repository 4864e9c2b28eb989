"""`Moments`: count, mean, variance, extremes and sum of many values, of which any two add up.

Pieces of data are summarised one by one and merged: what comes out is what all values at once would
have given. Within a piece the squares are taken of distances to the piece's own mean, and pieces
are merged by the formula of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm
for computing sample variances", 1979), in float64: a large mean costs the variance no digits.

The sum of integers is exact, and int64 is enough for it: it is kept modulo 2**64, which no overflow
on the way can change, and count times mean, right to many more than 2 digits, says how many
times 2**64 are missing.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError

__all__ = ["Moments", "Spread", "check_real"]

Floats = npt.NDArray[np.float64]

_PIECE = 2**17  # values at a time: 1 MiB as float64, which stays in the processor's cache
_SHARED = 2**18  # and where threads share the work, so many: they wait for one another less often
_CRUMB = 64  # so many neighbours at least, or what is read between them costs more than they
_ROWS = 16  # but this many rows at least, or many groups would cost a step for each row
_MODULUS = 2**64


def check_real(dtype: np.dtype[Any], what: str) -> None:
    """UsageError where values of `dtype` are no real numbers."""
    if dtype.kind not in "biuf":
        raise UsageError(f"{what} needs real numbers, and these are {dtype}")


@dataclass(frozen=True, slots=True)
class Spread:
    """Count, mean and summed squares of distances to it, of some groups of values.

    Attributes
    ----------
    count : int64, of each group, or an int for all of them
    mean, squares : float64, of the shape of the groups
    """

    count: npt.NDArray[np.int64] | int
    mean: Floats
    squares: Floats

    @classmethod
    def of(cls, values: npt.NDArray[Any], along: tuple[int, ...]) -> Spread:
        """That of real numbers along some axes of an array, for each place along the others."""
        if len(along) == values.ndim and values.flags.c_contiguous:
            values, along = values.reshape(-1), (0,)
        if not values.size:
            groups = [n for axis, n in enumerate(values.shape) if axis not in along]
            return cls(0, np.zeros(groups), np.zeros(groups))
        # Pieces of other groups cost nothing to put together, as long as their rows are no crumbs.
        left = [axis for axis in range(values.ndim) if axis not in along]
        least = [1] * values.ndim
        if values.ndim - 1 in left:
            least[-1] = _CRUMB
        cuttable = [axis for axis in (*left, *along) if values.shape[axis] > least[axis]]
        if values.size <= _SHARED or not cuttable:
            return _spread_of_piece(values, along)
        axis = cuttable[0]
        step = max(_SHARED * values.shape[axis] // values.size, least[axis])
        before = (slice(None),) * axis
        parts = [
            cls.of(values[(*before, slice(first, first + step))], along)
            for first in range(0, values.shape[axis], step)
        ]
        if axis in along:
            return functools.reduce(cls.merge, parts)
        means, squares = ([getattr(part, name) for part in parts] for name in ("mean", "squares"))
        place = left.index(axis)
        return cls(parts[0].count, np.concatenate(means, place), np.concatenate(squares, place))

    @classmethod
    def of_present(
        cls, values: npt.NDArray[Any], absent: npt.NDArray[np.bool_], along: tuple[int, ...]
    ) -> Spread:
        """As `of`, without the values where `absent`, which has their shape."""
        return _spread_of_piece(values, along, absent)

    def merge(self, other: Spread) -> Spread:
        """That of the values of both."""
        count = self.count + other.count
        # Of the whole; where there is nothing, nothing is weighed.
        mine = self.count / np.maximum(count, 1)
        theirs = other.count / np.maximum(count, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            delta = other.mean - self.mean
            # Of nothing none, also where the distance is infinite.
            apart = np.where(self.count * theirs == 0, 0, delta * delta * self.count * theirs)
            return Spread(
                count,
                # Not mean + delta * theirs: that is NaN where one mean is infinite. And equal means
                # stay as they are: what does not vary has no deviation, not even of rounding.
                np.where(delta == 0, self.mean, self.mean * mine + other.mean * theirs),
                self.squares + other.squares + apart,
            )

    def variance(self, ddof: int = 0) -> Floats:
        """Squares over count less `ddof`; NaN where that is not positive."""
        freedom = self.count - ddof
        out = np.full(np.shape(self.squares), np.nan)
        np.divide(self.squares, freedom, out=out, where=np.asarray(freedom > 0))
        return out


@dataclass(frozen=True, slots=True)
class Moments:
    """Summary of the values of some groups, such as the features of a spectrogram.

    All arrays have the shape of the groups, () for a single one. NaN makes mean, `squares` and
    extremes of its group NaN, unless it was skipped.

    Attributes
    ----------
    count : int64, values that were not skipped
    mean : float64, 0 where there are none
    squares : float64, summed squares of distances to the mean
    min, max : of the values' dtype, as 64 bits; where there are none, infinite or the
        integers' limits, so that any value replaces them
    total : int64, the sum of integers modulo 2**64; 0 for floats
    """

    count: npt.NDArray[np.int64]
    mean: Floats
    squares: Floats
    min: npt.NDArray[Any]
    max: npt.NDArray[Any]
    total: npt.NDArray[np.int64]

    @classmethod
    def none(cls, dtype: Any, groups: tuple[int, ...] = ()) -> Moments:
        """Those of no values at all, to be merged with others."""
        wide = _wide(np.dtype(dtype))
        if wide.kind == "f":
            low, high = -np.inf, np.inf
        else:
            low, high = np.iinfo(wide).min, np.iinfo(wide).max
        return cls(
            np.zeros(groups, np.int64),
            np.zeros(groups),
            np.zeros(groups),
            np.full(groups, high, wide),
            np.full(groups, low, wide),
            np.zeros(groups, np.int64),
        )

    @classmethod
    def of(cls, values: npt.NDArray[Any], *, skipna: bool = False) -> Moments:
        """Those of (rows, ...) `values` of real numbers, for each place in a row.

        Parameters
        ----------
        skipna
            Leave NaN out.
        """
        groups = values.shape[1:]
        flat = values.reshape(len(values), -1) if values.size else values
        total = cls.none(values.dtype, groups)
        if not values.size:
            return total
        rows = max(_PIECE // flat.shape[1], _ROWS)
        for first in range(0, len(flat), rows):
            piece = _of_piece(flat[first : first + rows], skipna and values.dtype.kind == "f")
            total = total.merge(piece.reshape(groups))
        return total

    def reshape(self, groups: tuple[int, ...]) -> Moments:
        """The same groups in another shape."""
        return Moments(*(getattr(self, name).reshape(groups) for name in self.__slots__))

    def to_bytes(self) -> bytes:
        """All of it, 48 bytes a group; `from_bytes` takes them."""
        out = np.empty(self.count.shape, _layout(self.min.dtype))
        for name in self.__slots__:
            out[name] = getattr(self, name)
        return out.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, dtype: Any, groups: tuple[int, ...] = ()) -> Moments:
        """What `to_bytes` gave for values of `dtype`; ValueError where it cannot have."""
        kept = np.frombuffer(data, _layout(_wide(np.dtype(dtype)))).reshape(groups)
        return cls(*(kept[name].copy() for name in cls.__slots__))

    def merge(self, other: Moments) -> Moments:
        """Those of the values of both."""
        spread = Spread(self.count, self.mean, self.squares).merge(
            Spread(other.count, other.mean, other.squares)
        )
        with np.errstate(invalid="ignore", over="ignore"):
            return Moments(
                np.asarray(spread.count),
                spread.mean,
                spread.squares,
                np.minimum(self.min, other.min),
                np.maximum(self.max, other.max),
                self.total + other.total,
            )

    def variance(self, ddof: int = 0) -> Floats:
        """Squares over count less `ddof`; NaN where that is not positive."""
        return Spread(self.count, self.mean, self.squares).variance(ddof)

    def sums(self) -> npt.NDArray[Any]:
        """The sum: of integers exactly, as Python ints (dtype object); of floats as float64."""
        about = self.mean * self.count
        if self.min.dtype.kind == "f":
            return np.asarray(about)
        sums = np.empty(about.shape, object)
        for place in np.ndindex(about.shape):
            kept, near = int(self.total[place]), int(about[place])
            sums[place] = kept + _MODULUS * round((near - kept) / _MODULUS)
        return sums


def _spread_of_piece(
    values: npt.NDArray[Any],
    along: tuple[int, ...],
    absent: npt.NDArray[np.bool_] | None = None,
) -> Spread:
    """That of values that are few enough to be copied, but for those `absent`."""
    count: Any = math.prod(values.shape[axis] for axis in along)
    axes = list(range(values.ndim))
    left = [axis for axis in axes if axis not in along]
    if absent is not None:
        values = np.where(absent, 0.0, values)
        count = count - absent.sum(axis=along, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        wide = values.astype(np.float64)
        mean = wide.sum(axis=along, keepdims=True) / np.maximum(count, 1)
        wide -= mean
        if absent is not None:
            wide[absent] = 0
        squares: Floats = np.asarray(np.einsum(wide, axes, wide, axes, left))  # type: ignore[arg-type]
    if absent is not None:
        count = count.reshape(squares.shape)
    return Spread(count, mean.reshape(squares.shape), squares)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What extremes of a dtype are kept as."""
    return np.dtype({"f": "f8", "u": "u8"}.get(dtype.kind, "i8"))


def _layout(extremes: np.dtype[Any]) -> np.dtype[Any]:
    kinds = ["i8", "f8", "f8", extremes.str, extremes.str, "i8"]
    names = zip(Moments.__slots__, kinds, strict=True)
    return np.dtype([(name, kind) for name, kind in names]).newbyteorder("<")


def _of_piece(values: npt.NDArray[Any], skipna: bool) -> Moments:
    """Those of (rows, groups) values that are few enough to be copied."""
    absent = np.isnan(values) if skipna else None
    if absent is None or not absent.any():
        absent, low, high = None, values.min(axis=0), values.max(axis=0)
    else:
        low = np.where(absent, np.inf, values).min(axis=0)
        high = np.where(absent, -np.inf, values).max(axis=0)
    spread = _spread_of_piece(values, (0,), absent)
    count = np.broadcast_to(spread.count, spread.mean.shape).astype(np.int64)
    integer = values.dtype.kind != "f"
    # Also of unsigned: modulo 2**64 they are the same.
    total = values.sum(axis=0, dtype=np.int64) if integer else np.zeros(len(count), np.int64)
    kept = _wide(values.dtype)
    return Moments(count, spread.mean, spread.squares, low.astype(kept), high.astype(kept), total)

"""What an index means: the same as on a Python list or a one-dimensional NumPy array.

Strategy: every key becomes either one non-negative int (a single item was asked for) or a
one-dimensional int64 array of non-negative positions (several were), checked against the
length before anything is read. Nothing below this module ever sees a negative, a slice, a
mask or a position out of range.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.errors import KeyTypeError, OutOfRangeError, UsageError

__all__ = [
    "Positions",
    "as_position",
    "as_positions",
    "at_least",
    "is_single",
    "runs_of",
    "split_by_part",
    "stable_order",
]

Positions = npt.NDArray[np.int64]


def is_single(key: object) -> bool:
    """Whether `key` asks for one item (an int, a NumPy integer, a 0-d integer array)."""
    if type(key) is int:  # as nearly always
        return True
    if isinstance(key, (bool, np.bool_)):
        return False
    if isinstance(key, np.ndarray):
        return key.ndim == 0 and key.dtype.kind in "iu"
    return hasattr(key, "__index__") and getattr(key, "ndim", 0) == 0  # tensors have it always


_MOST = 2**62  # of which the sum of two still is an int64


def at_least(least: int, value: Any, what: str) -> int:
    """`value` as an int; UsageError where it is none, or less than `least`."""
    if not is_single(value):
        raise UsageError(f"{what} must be an int, got {value!r}")
    number = int(value.__index__())
    if number < least:
        raise UsageError(f"{what} must be at least {least}, got {number}")
    if number > _MOST:
        raise UsageError(f"{what} must be at most 2**62, got {number}")
    return number


def as_position(key: object, length: int, *, what: str = "sample") -> int:
    """The non-negative position that the int `key` means among `length` items.

    Raises
    ------
    OutOfRangeError
        `key` is not in ``[-length, length)``.
    KeyTypeError
        `key` is no integer.
    """
    if type(key) is int and 0 <= key < length:  # as nearly always
        return key
    if isinstance(key, (bool, np.bool_)):
        raise KeyTypeError(f"a single bool is no {what} index; a mask needs one bool per {what}")
    try:
        position = operator.index(key)  # type: ignore[arg-type]
    except TypeError:
        raise KeyTypeError(
            f"{what} indices must be integers, slices, integer arrays or boolean masks, "
            f"not {type(key).__name__}"
        ) from None
    if not -length <= position < length:
        raise OutOfRangeError(f"{what} index {position} is out of range for length {length}")
    return position + length if position < 0 else position


def as_positions(key: Any, length: int, *, what: str = "sample") -> Positions:
    """The positions that a slice, an index array or list, or a boolean mask means.

    Returns
    -------
    (k,) int64, each in ``[0, length)``, in the order asked for, repeats kept.

    Raises
    ------
    OutOfRangeError
        An index is out of range, or a mask has the wrong length.
    KeyTypeError
        `key` is a float, a tuple, a string, or an array of such or of two dimensions.
    UsageError
        A slice has a step of 0.
    """
    if isinstance(key, slice):
        try:
            return np.arange(*key.indices(length), dtype=np.int64)
        except TypeError as error:
            raise KeyTypeError(f"{what} slice {key}: {error}") from None
        except ValueError as error:
            raise UsageError(f"{what} slice {key}: {error}") from None
    if is_single(key):
        return np.array([as_position(key, length, what=what)], np.int64)
    if key is None or isinstance(key, (str, bytes, tuple, float, complex, dict, set)):
        as_position(key, length, what=what)  # raises, with the one message for all of these
    if isinstance(key, (bool, np.bool_)):
        as_position(key, length, what=what)
    try:
        array = np.asarray(key)
    except (ValueError, TypeError) as error:
        raise KeyTypeError(f"{what} index list: {error}") from None
    if array.ndim != 1:
        raise KeyTypeError(f"{what} index arrays must have one dimension, got {array.ndim}")
    if array.dtype == np.bool_:
        if len(array) != length:
            raise OutOfRangeError(
                f"boolean mask of length {len(array)} does not match {length} {what}s"
            )
        return np.flatnonzero(array).astype(np.int64, copy=False)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        if array.dtype.kind == "O" and all(is_single(item) for item in array):
            # Python ints beyond 64 bits: certainly out of range, and as_position says of what.
            return np.array([as_position(item, length, what=what) for item in array], np.int64)
        raise KeyTypeError(f"{what} index arrays must hold integers or bools, not {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < -length or high >= length:
        bad = high if high >= length else low
        raise OutOfRangeError(f"{what} index {bad} is out of range for length {length}")
    positions = array.astype(np.int64)
    if low < 0:
        positions[positions < 0] += length
    return positions


def split_by_part(
    starts: npt.NDArray[np.int64], positions: Positions
) -> list[tuple[int, Positions, Positions]]:
    """Which of some parts that lie one after another the positions are in.

    Parameters
    ----------
    starts
        (n + 1,) the position that each part begins at, and where the last ends.

    Returns
    -------
    For each part that has any: its number, the (k,) positions within it, and the (k,) places
    that they have among `positions`, ascending.
    """
    part = np.searchsorted(starts, positions, "right") - 1
    if (part[1:] >= part[:-1]).all():
        order = np.arange(len(part))
    else:
        order = np.argsort(part, kind="stable")
        part = part[order]
    edges = [0, *(np.flatnonzero(part[1:] != part[:-1]) + 1).tolist(), len(part)]
    return [
        (int(part[a]), positions[order[a:b]] - starts[part[a]], order[a:b])
        for a, b in itertools.pairwise(edges)
        if b > a
    ]


def runs_of(positions: Positions | range, most: int) -> Iterator[Positions]:
    """`positions` in order, at most so many at a time.

    Of a range they are made as they are wanted: all of them take 8 bytes for each sample.
    """
    for start in range(0, len(positions), most):
        run = positions[start : start + most]
        yield np.arange(run.start, run.stop, run.step) if isinstance(run, range) else run


def stable_order(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(n,) the stable order of (n,) non-negative `keys`, by radix, as NumPy sorts 16 bits.

    Each 16 bits that the keys have take NumPy 5 ns a key, where a comparing sort takes 80; the
    kernel takes half of that.
    """
    by_kernel = kernel.order_of(keys)
    if by_kernel is not None:
        return by_kernel
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    high = keys >> 16
    while high.any():
        order = order[np.argsort(high[order].astype(np.uint16), kind="stable")]
        high >>= 16
    return order

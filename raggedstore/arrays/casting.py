"""Turning what a caller appends into an array of the stored dtype, or refusing it.

Strategy: NumPy's ``same_kind`` rule says which kinds convert at all (never float to int, never
complex to float), integers convert among themselves, and then the values are compared: an
integer must come out as itself, and a finite float must not become infinite. Rounding a
float64 to float32 is the one loss that is accepted: it is what choosing float32 means.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from raggedstore.arrays.rows import Array
from raggedstore.errors import SampleError, SampleTypeError, SchemaError

__all__ = ["as_sample", "as_value_dtype"]


def as_value_dtype(dtype: Any) -> np.dtype[Any]:
    """`dtype` as a NumPy bool, integer, float or complex dtype of either byte order.

    Raises
    ------
    SchemaError
        It is no dtype, or one of strings, objects, records or dates.
    """
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise SchemaError(f"{dtype!r} is not a dtype: {error}") from None
    if found.kind not in "biufc":
        raise SchemaError(f"values must be bool, integer, float or complex, not {found}")
    return found


def as_sample(value: Any, dtype: np.dtype[Any], ndim: int, *, what: str) -> Array:
    """`value` as an array of `dtype` (native byte order) with `ndim` dimensions.

    Raises
    ------
    SampleError
        It has another number of dimensions, is a ragged list, or has masked elements.
    SampleTypeError
        Its values do not convert without loss.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise SampleError(f"{what}: masked elements cannot be stored; fill them first")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise SampleError(f"{what}: not an array ({error})") from None
    if array.ndim != ndim:
        raise SampleError(
            f"{what}: expected {ndim} dimensions, got {array.ndim} (shape {array.shape})"
        )
    if array.dtype == dtype:
        return array
    if array.size == 0 and not hasattr(value, "dtype"):
        return array.astype(dtype)  # an empty list has no type of its own
    return _convert(array, dtype, what)


def _convert(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if array.dtype.kind not in "biufc" or not (
        integers or np.can_cast(array.dtype, dtype, "same_kind")
    ):
        raise SampleTypeError(f"{what}: {array.dtype} does not convert to {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
        if integers:
            kept = converted == array
        elif array.dtype.kind in "iu":  # NumPy calls int64 to float64 safe; past 2**53 it is not
            kept = _exact(array, converted)
        else:
            kept = np.isfinite(converted) | ~np.isfinite(array)
    if not kept.all():
        bad = array[~kept].flat[0]
        raise SampleTypeError(f"{what}: {bad!r} ({array.dtype}) does not fit {dtype}")
    return converted


def _exact(array: Array, converted: Array) -> Array:
    """Which integers came through a cast to float or complex as themselves."""
    reals = converted.real if converted.dtype.kind == "c" else converted
    kept = np.abs(reals) < math.ldexp(1, np.finfo(reals.dtype).nmant + 1)
    for at in zip(*np.nonzero(~kept), strict=True):  # beyond the mantissa: few, and each its own
        kept[at] = bool(np.isfinite(reals[at])) and int(reals[at]) == int(array[at])
    return np.asarray(kept)

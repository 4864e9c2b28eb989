"""Turning an array into the stored dtype without loss, or refusing it.

NumPy's ``same_kind`` rule says which dtypes convert at all (never float to int, never complex to
float); then values are compared: an integer must come out as itself, and a finite float must
not become infinite. Rounding float64 to float32 is the one loss accepted: it is what choosing
float32 means.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import SampleError, SampleTypeError, UsageError

__all__ = ["as_array", "cast", "check_unmasked", "fill_value"]

Array = npt.NDArray[Any]


_DEEPEST = 64  # as many lists within one another as NumPy makes arrays of


def check_unmasked(value: Any, what: str, depth: int = 0) -> None:
    """SampleError where elements are masked, which would be stored as if they were not."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise SampleError(f"{what}: masked elements cannot be stored; fill them first")
    if isinstance(value, (list, tuple)) and depth < _DEEPEST:
        for item in value:
            if isinstance(item, (np.ma.MaskedArray, list, tuple)):
                check_unmasked(item, what, depth + 1)


def as_array(value: Any, what: str) -> Array:
    """`value` as an ndarray.

    Raises
    ------
    SampleError
        It is a ragged list, or has masked elements, which would be stored as if they were not.
    """
    if type(value) is np.ndarray:
        return value
    check_unmasked(value, what)
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise SampleError(f"{what}: not an array ({error})") from None


def cast(array: Array, dtype: np.dtype[Any], what: str, *, by_value: bool) -> Array:
    """`array` in `dtype`.

    Parameters
    ----------
    by_value
        Whether any integers convert that fit, whatever their dtype: meant for what had no
        dtype of its own, such as lists of Python ints.

    Raises
    ------
    SampleTypeError
        The dtypes are of different kinds, or a value does not fit.
    """
    if array.dtype == dtype:
        return array
    if by_value and array.size == 0:
        return array.astype(dtype)  # an empty list has no type of its own
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if array.dtype.kind not in "biufc" or not (
        (integers and by_value) or np.can_cast(array.dtype, dtype, "same_kind")
    ):
        raise SampleTypeError(
            f"{what}: expected {dtype}, got {array.dtype}, which does not convert to {dtype} "
            f"without loss"
        )
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
        raise SampleTypeError(
            f"{what}: expected {dtype}, got {array.dtype} with {bad!r}, which does not fit"
        )
    return converted


def fill_value(value: Any, dtype: np.dtype[Any]) -> Array:
    """`value` in `dtype`; UsageError where that has none like it. Floats may be rounded."""
    try:
        given = np.asarray(value, np.float64 if _is_int(value) and dtype.kind in "fc" else None)
        if dtype.kind not in "biufc":
            return given.astype(dtype, casting="same_kind")
    except (TypeError, ValueError, OverflowError):
        given = np.empty(0, object)
    fits = given.dtype.kind in "biufc" and (given.dtype.kind != "c" or dtype.kind == "c")
    if fits:
        with np.errstate(all="ignore"):
            made = given.astype(dtype)
        same = made == given
        if dtype.kind in "fc":
            same = np.isfinite(made) | ~np.isfinite(given)
        fits = bool(np.all(same))
    if not fits:
        raise UsageError(f"{value!r} is no value to fill {dtype} with")
    return made


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _exact(array: Array, converted: Array) -> Array:
    """Which integers came through a cast to float or complex as themselves."""
    reals = (converted.real if converted.dtype.kind == "c" else converted).reshape(-1)
    integers = array.reshape(-1)
    kept = np.abs(reals) < math.ldexp(1, np.finfo(reals.dtype).nmant + 1)
    for at in np.flatnonzero(~kept):  # beyond the mantissa: few, and each its own
        kept[at] = bool(np.isfinite(reals[at])) and int(reals[at]) == int(integers[at])
    return np.asarray(kept.reshape(array.shape))

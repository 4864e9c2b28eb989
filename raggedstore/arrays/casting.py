"""What a caller appends to an array, as the stored dtype with the right number of dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from raggedstore.arrays.rows import Array
from raggedstore.casting import as_array, cast
from raggedstore.errors import SampleError, SchemaError

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
    array = as_array(value, what)
    if array.ndim != ndim:
        raise SampleError(
            f"{what}: expected {ndim} dimensions, got {array.ndim} (shape {array.shape})"
        )
    return cast(array, dtype, what, by_value=True)

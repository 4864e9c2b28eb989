"""Arguments as people give them: axes, sizes, numbers, dtypes, chunks, locks; or why they are none.

Dask and NumPy find out about a wrong one late, and in their own words.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import dask.array as da
import numpy as np
from dask.utils import SerializableLock

from raggedstore.errors import UsageError
from raggedstore.lazy.windows import Chunks

__all__ = [
    "axis_number",
    "chunking",
    "cut",
    "data_type",
    "lock_given",
    "number",
    "sizes",
]


def axis_number(axis: Any, ndim: int) -> int:
    """The number, from 0, of an axis that may be counted from the last.

    Raises
    ------
    UsageError
        There is no such axis, or it is no int.
    """
    try:
        number = operator.index(axis)
    except TypeError:
        raise UsageError(f"axis={axis!r}: an axis is given by its number, an int") from None
    if not -ndim <= number < ndim:
        raise UsageError(f"axis {axis} of an array with {ndim} dimensions")
    return number % ndim


def sizes(given: Any, what: str) -> tuple[int, ...]:
    """The ints of a shape; UsageError where they are none."""
    try:
        return tuple(operator.index(size) for size in given)
    except TypeError:
        raise UsageError(f"{what}={given!r}: give a tuple of ints, one an axis") from None


def data_type(given: Any, what: str) -> np.dtype[Any]:
    """The dtype that is meant; UsageError where there is none of that name."""
    try:
        dtype: np.dtype[Any] = np.dtype(given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what}={given!r} is no dtype such as 'float32': {error}") from None
    return dtype


def number(given: Any, what: str) -> float:
    """A number as float; UsageError where it is none."""
    try:
        return float(given)
    except (TypeError, ValueError):
        raise UsageError(f"{what}={given!r}: give a number") from None


@contextmanager
def chunking(chunks: Any, shape: tuple[int, ...]) -> Iterator[None]:
    """Have Dask understand `chunks`; UsageError where it cannot."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"chunks={chunks!r} of an array of {shape}: {error}; give a size for each axis, such "
            f"as {(100,) * len(shape)}, or 'auto'"
        ) from error


def cut(
    chunks: Any, shape: tuple[int, ...], dtype: np.dtype[Any], unit: tuple[int, ...] | None
) -> Chunks:
    """Chunks as Dask takes them, spelt out; UsageError where they do not fit `shape`."""
    with chunking(chunks, shape):
        spelt: Chunks = da.core.normalize_chunks(chunks, shape, dtype=dtype, previous_chunks=unit)
        if min(itertools.chain.from_iterable(spelt), default=0) < 0:
            raise ValueError("there are no sizes below 0")
        return spelt


def lock_given(lock: Any) -> AbstractContextManager[Any]:
    """A lock for what reads: any that is given, a new one for ``True``, none for ``False``.

    Raises
    ------
    UsageError
        It is nothing that can be held.
    """
    if isinstance(lock, bool):
        return SerializableLock() if lock else nullcontext()
    if not isinstance(lock, AbstractContextManager):
        raise UsageError(f"lock={lock!r}: give True, False, or a lock to be used with `with`")
    return lock

"""Statistics of arrays of any size, as lazy arrays: `compute` reads the data once for many of them.

Dask's reductions do the work, told to sum in float64 whatever the data is: a uint8 sum does not
overflow, and a float32 mean of a million keeps its digits. Means and variances of real numbers go
by `Spread`, which reads each value once for both; those of complex ones are Dask's own.
What Dask lacks is built on them: sums of integers that are exact or an error, counts and histograms
that heed masks, quantiles with a proven error (`Sketch`).

Masked values are left out everywhere. NaN makes a result NaN, as in NumPy; with `skipna` it is
taken for a masked value, and a result of no values is NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt

from raggedstore.distribution import counts_of, edges_of, ranks_of
from raggedstore.errors import UsageError
from raggedstore.lazy.arguments import axis_number, number
from raggedstore.lazy.sources import adapt
from raggedstore.moments import Spread, check_real
from raggedstore.sketch import Sketch, capacity_for

__all__ = [
    "compute",
    "count",
    "histogram",
    "max",
    "mean",
    "min",
    "quantiles",
    "std",
    "sum",
    "var",
]

Axis = int | tuple[int, ...] | None

_MANY = 2**48  # values, more than any array has


def compute(arrays: Iterable[Any]) -> list[Any]:
    """The values of several lazy arrays, for which what they have in common is read once.

    They have it in common where they were made of one lazy array: `adapt` first, and once.

    Examples
    --------
    >>> mean, std = lazy.compute([lazy.mean(x, axis=0), lazy.std(x, axis=0)])
    """
    try:
        wanted = list(arrays)
    except TypeError:
        raise UsageError(
            f"a list of lazy arrays is computed, not a {type(arrays).__name__}"
        ) from None
    return list(dask.compute(*wanted))


def mean(x: Any, axis: Axis = None, *, keepdims: bool = False, skipna: bool = False) -> da.Array:
    """The mean, float64 (complex128 of complex numbers).

    Parameters
    ----------
    x
        A lazy array, or anything that `adapt` takes.
    axis
        One axis or several; by default all.
    keepdims
        Keep those axes, with a length of 1.
    skipna
        Leave NaN out.
    """
    x, axes = _checked(x, axis, skipna, "mean")
    if _is_real(x):
        result = _of_spread(x, axes, _mean_of, keepdims)
    else:
        result = da.mean(x, axis=axes, keepdims=keepdims, dtype=_wide(x.dtype))
    return _filled(result, np.nan, skipna)


def var(
    x: Any, axis: Axis = None, *, ddof: int = 0, keepdims: bool = False, skipna: bool = False
) -> da.Array:
    """The variance, float64: of the population, or of a sample with ``ddof=1``; see `mean`."""
    x, axes = _checked(x, axis, skipna, "var")
    number(ddof, "ddof")
    if _is_real(x):
        result = _of_spread(x, axes, functools.partial(_variance_of, ddof=ddof), keepdims, ddof)
    elif x.dtype.kind == "c":
        result = da.var(x.astype(_wide(x.dtype)), axis=axes, ddof=ddof, keepdims=keepdims)
    else:
        result = da.var(x, axis=axes, ddof=ddof, keepdims=keepdims, dtype=_wide(x.dtype))
    return _filled(result, np.nan, skipna)


def _is_real(x: da.Array) -> bool:
    """Whether there are only real numbers, of which float64 has the digits."""
    return x.dtype.kind in "biuf" and x.dtype.itemsize <= 8


def _of_spread(
    x: da.Array,
    axes: tuple[int, ...],
    what: Callable[[Spread], Any],
    keepdims: bool,
    ddof: int = 0,
) -> da.Array:
    """Something of the spread along some axes, which all that ask for it have in common.

    Where there are no more than `ddof` values it is masked, and in what has no masks NaN.
    """
    left = tuple(i for i in range(x.ndim) if i not in axes)
    masked = isinstance(x._meta, np.ma.MaskedArray)
    meta = np.empty((0,) * len(left))
    reduced = da.reduction(
        x,
        functools.partial(_spread_of_block, along=axes),
        functools.partial(_of_parts, merge=Spread.merge),
        axis=axes,
        concatenate=False,
        dtype=object,
        meta=meta.astype(object),
    )
    result = reduced.map_blocks(
        functools.partial(_shown_spread, what=what, ddof=ddof, masked=masked),
        dtype=np.float64,
        meta=np.ma.asarray(meta) if masked else meta,
    )
    return _kept(result, axes, x.ndim) if keepdims else result


def _spread_of_block(
    block: Any, axis: Any, keepdims: bool, along: tuple[int, ...], computing_meta: bool = False
) -> Any:
    if computing_meta:
        return block
    shape = tuple(n for i, n in enumerate(block.shape) if i not in along)
    if isinstance(block, np.ma.MaskedArray):
        absent = np.ma.getmaskarray(block)
        return {"shape": shape, "summary": Spread.of_present(block.data, absent, along)}
    return {"shape": shape, "summary": Spread.of(block, along)}


def _shown_spread(
    part: dict[str, Any], what: Callable[[Spread], Any], ddof: int, masked: bool
) -> Any:
    spread, shape = part["summary"], part["shape"]
    few = np.broadcast_to(spread.count <= ddof, spread.mean.shape)
    shown = np.where(few, np.nan, what(spread)).reshape(shape)
    # A number, where it is one.
    return np.ma.masked_array(shown, few.reshape(shape))[()] if masked else shown[()]


def _mean_of(spread: Spread) -> Any:
    return spread.mean


def _variance_of(spread: Spread, ddof: int) -> Any:
    return spread.variance(ddof)


def std(
    x: Any, axis: Axis = None, *, ddof: int = 0, keepdims: bool = False, skipna: bool = False
) -> da.Array:
    """The standard deviation, float64: the root of `var`."""
    return da.sqrt(var(x, axis, ddof=ddof, keepdims=keepdims, skipna=skipna))


def min(x: Any, axis: Axis = None, *, keepdims: bool = False, skipna: bool = False) -> da.Array:
    """The least value, of the data's dtype; see `mean`.

    Raises
    ------
    UsageError
        When it is computed: there are no values, and no `skipna` that would make NaN of that.
    """
    return _extreme(np.min, x, axis, keepdims, skipna)


def max(x: Any, axis: Axis = None, *, keepdims: bool = False, skipna: bool = False) -> da.Array:
    """The greatest value, of the data's dtype; see `min`."""
    return _extreme(np.max, x, axis, keepdims, skipna)


def _extreme(pick: Any, x: Any, axis: Axis, keepdims: bool, skipna: bool) -> da.Array:
    """What `np.min` or `np.max` picks, of blocks of which some, or all, may have no values."""
    what = pick.__name__.removeprefix("a")  # as NumPy 1 has it
    x, axes = _checked(x, axis, skipna, what, real=True)
    result = da.reduction(
        x,
        functools.partial(_extreme_of_block, pick=pick),
        functools.partial(_extreme_of_parts, pick=pick, skipna=skipna, what=what),
        combine=functools.partial(_extreme_of_block, pick=pick),
        axis=axes,
        keepdims=keepdims,
        dtype=x.dtype,
    )
    return _filled(result, np.nan, skipna)


def _extreme_of_block(block: Any, axis: tuple[int, ...], keepdims: bool, pick: Any) -> Any:
    if all(block.shape[i] for i in axis):
        return pick(block, axis=axis, keepdims=True)
    # Nothing comes of nothing: none along the axes that have none.
    return block[tuple(slice(1) if i in axis else slice(None) for i in range(block.ndim))]


def _extreme_of_parts(
    parts: Any, axis: tuple[int, ...], keepdims: bool, pick: Any, skipna: bool, what: str
) -> Any:
    if all(parts.shape[i] for i in axis):
        return pick(parts, axis=axis, keepdims=keepdims)
    if not skipna or parts.dtype.kind != "f":
        raise UsageError(
            f"{what} of no values: along axis {axis} the array has none. Look at its shape first; "
            f"of floats, skipna=True makes NaN of nothing"
        )
    zeros = np.ma.getdata(parts).sum(axis=axis, keepdims=keepdims).astype(parts.dtype)
    return np.ma.masked_array(zeros, True)


def sum(x: Any, axis: Axis = None, *, keepdims: bool = False, skipna: bool = False) -> da.Array:
    """The sum: int64 or uint64 of integers, exactly; float64 or complex128 else; see `mean`.

    Raises
    ------
    UsageError
        When it is computed: a sum of integers does not fit into 64 bits.
    """
    x, axes = _checked(x, axis, skipna, "sum")
    if x.dtype.kind not in "biu":
        result = da.sum(x, axis=axes, keepdims=keepdims, dtype=_wide(x.dtype))
        return _filled(result, 0, skipna)
    wide = np.dtype("u8" if x.dtype.kind == "u" else "i8")
    exact = da.sum(x, axis=axes, keepdims=keepdims, dtype=wide)
    largest = 1 if x.dtype.kind == "b" else 2 ** (8 * x.dtype.itemsize)
    if x.size * largest < 2**63:
        return exact
    # An overflow is off by a multiple of 2**64, which a sum in float64 is nowhere near.
    about = da.sum(x, axis=axes, keepdims=keepdims, dtype=np.float64)
    return da.map_blocks(_fitting, exact, about, dtype=wide, meta=exact._meta)


def _fitting(exact: Any, about: Any) -> Any:
    if np.any(np.abs(np.asarray(exact, np.float64) - about) > 2.0**63):
        raise UsageError(
            f"a sum of integers of about {np.abs(about).max():.3g} does not fit into 64 bits: "
            f"sum them as floats, x.astype('float64')"
        )
    return exact


def count(x: Any, axis: Axis = None, *, keepdims: bool = False, skipna: bool = False) -> da.Array:
    """How many values there are that are not masked, nor NaN with `skipna`: int64; see `mean`."""
    x, axes = _checked(x, axis, skipna, "count")
    present = x.map_blocks(_present, dtype=bool, meta=np.empty((0,) * x.ndim, bool))
    return da.sum(present, axis=axes, keepdims=keepdims, dtype=np.int64)


def _present(block: Any) -> npt.NDArray[np.bool_]:
    return ~np.ma.getmaskarray(block)


def histogram(x: Any, edges: npt.ArrayLike, axis: Axis = None) -> da.Array:
    """How many values lie between given edges, as `numpy.histogram` counts them.

    Parameters
    ----------
    x, axis
        As `mean` has it.
    edges
        (n + 1,) ascending. An edge belongs to the bin above it, the last one to the last bin.
        Values outside, masked ones and NaN are not counted.

    Returns
    -------
    (..., n) int64 lazy array, of the axes that are left and the bins.
    """
    x, axes = _checked(x, axis, False, "histogram", real=True)
    bounds = edges_of(edges)
    reduced = _tree(x, axes, functools.partial(counts_of, edges=bounds), np.add)
    return reduced.map_blocks(
        _shown_counts,
        dtype=np.int64,
        new_axis=reduced.ndim,
        chunks=(*reduced.chunks, (len(bounds) - 1,)),
        meta=np.empty((0,) * (reduced.ndim + 1), np.int64),
    )


def _shown_counts(part: dict[str, Any]) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = part["summary"]
    return counts.reshape(*part["shape"], counts.shape[1])


def quantiles(
    x: Any,
    q: npt.ArrayLike,
    axis: Axis = None,
    *,
    error: float = 0.002,
    keepdims: bool = False,
    skipna: bool = False,
) -> da.Array:
    """Values that occur, of rank `q` times their number, give or take `error` times it.

    The bound is certain and not only likely (`raggedstore/sketch.py` has the proof), and holds for
    the rank: with ``error=0.01`` the median is a value that at most 51 % are above and at most
    51 % below. Where at most ``1 / error`` values lie along `axis`, it is NumPy's
    method "inverted_cdf".

    Parameters
    ----------
    x, axis, keepdims, skipna
        As `mean` has it.
    q
        From 0 to 1; any shape.
    error
        A tenth of it takes some ten times the memory: with 0.002 up to 1.4 MB for each 10**9
        values along all of `axis`, for each place in the result. Where values are masked or
        skipped and the result has several places, it is a fraction of their number with the
        absent ones.

    Returns
    -------
    float64 lazy array of the shape of `q` and then of the axes that are left.
    """
    x, axes = _checked(x, axis, skipna, "quantiles", real=True)
    wanted, error = ranks_of(q, error)
    along = math.prod(x.shape[i] for i in axes)
    if math.isnan(along):  # of an array that a mask was applied to
        along = _MANY
    make = functools.partial(_sketch, capacity=capacity_for(error, along))
    reduced = _tree(x, axes, make, Sketch.merge)
    result = reduced.map_blocks(
        _shown_quantiles,
        wanted,
        dtype=np.float64,
        new_axis=list(range(wanted.ndim)),
        chunks=(*((size,) for size in wanted.shape), *reduced.chunks),
        meta=np.empty((0,) * (wanted.ndim + reduced.ndim)),
    )
    return _kept(result, axes, x.ndim, wanted.ndim) if keepdims else result


def _sketch(values: Any, capacity: int) -> Sketch:
    if len(values) == 1 and np.ma.isMaskedArray(values):
        values = np.ma.compressed(values)[None]
    absent = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    return Sketch.of(np.ma.getdata(values), capacity, absent)


def _shown_quantiles(part: dict[str, Any], q: npt.NDArray[np.float64]) -> Any:
    shape = part["shape"]
    values = part["summary"].quantiles(q).reshape((*shape, *q.shape))
    return np.moveaxis(values, range(len(shape)), range(q.ndim, q.ndim + len(shape)))[()]


# What they have in common


def _checked(
    x: Any, axis: Axis, skipna: bool, what: str, *, real: bool = False
) -> tuple[da.Array, tuple[int, ...]]:
    """The lazy array, its NaN masked where they are to be skipped, and the axes by number."""
    x = adapt(x)
    if x.dtype.kind != "c" or real:
        check_real(x.dtype, what)
    each = range(x.ndim) if axis is None else (axis if isinstance(axis, tuple) else (axis,))
    axes = tuple(axis_number(one, x.ndim) for one in each)
    if len(set(axes)) < len(axes):
        raise UsageError(f"axis={axis!r} names one twice")
    if skipna and x.dtype.kind in "fc":
        meta = np.ma.masked_array(np.empty((0,) * x.ndim, x.dtype))
        x = x.map_blocks(_nan_masked, dtype=x.dtype, meta=meta)
    return x, axes


def _nan_masked(block: Any) -> Any:
    data = np.ma.getdata(block)
    return np.ma.masked_array(data, np.isnan(data) | np.ma.getmaskarray(block))


def _filled(result: da.Array, value: float, skipna: bool) -> da.Array:
    """Plain numbers where NaN was skipped, `value` for those of nothing."""
    if not skipna or result.dtype.kind not in "fc":
        return result
    meta = np.empty((0,) * result.ndim, result.dtype)
    return result.map_blocks(np.ma.filled, value, dtype=result.dtype, meta=meta)


def _kept(result: da.Array, axes: tuple[int, ...], ndim: int, before: int = 0) -> da.Array:
    """The axes put back with a length of 1, after so many others."""
    kept = (None if i in axes else slice(None) for i in range(ndim))
    return result[(*(slice(None),) * before, *kept)]


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.result_type(dtype, np.float64)


def _tree(
    x: da.Array,
    axes: tuple[int, ...],
    summary: Callable[[Any], Any],
    merge: Callable[[Any, Any], Any],
) -> da.Array:
    """An array of which each block is a dict: its "shape", and the "summary" of its groups.

    Parameters
    ----------
    summary
        Of (groups, n) values.
    merge
        Of two summaries of the same groups.
    """
    left = tuple(i for i in range(x.ndim) if i not in axes)
    return da.reduction(
        x,
        functools.partial(_of_block, order=(left, axes), summary=summary),
        functools.partial(_of_parts, merge=merge),
        axis=axes,
        concatenate=False,
        dtype=object,
        meta=np.empty((0,) * len(left), object),
    )


def _of_block(
    block: Any,
    axis: Any,
    keepdims: bool,
    order: tuple[tuple[int, ...], tuple[int, ...]],
    summary: Callable[[Any], Any],
    computing_meta: bool = False,
) -> Any:
    if computing_meta:  # Dask asks what comes, and could not make use of the answer
        return block
    left, along = order
    shape = tuple(block.shape[i] for i in left)
    size = math.prod(block.shape[i] for i in along)
    rows = block.transpose(*left, *along).reshape(math.prod(shape), size)
    return {"shape": shape, "summary": summary(rows)}


def _of_parts(parts: Any, axis: Any, keepdims: bool, merge: Callable[[Any, Any], Any]) -> Any:
    flat = list(_flattened(parts))
    summary = functools.reduce(merge, (part["summary"] for part in flat))
    return {"shape": flat[0]["shape"], "summary": summary}


def _flattened(parts: Any) -> Iterable[Any]:
    if not isinstance(parts, list):
        yield parts
        return
    for part in parts:
        yield from _flattened(part)

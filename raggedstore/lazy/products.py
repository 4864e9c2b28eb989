"""Products of matrices and vectors larger than memory, by blocks.

A matrix times what is in memory is read once, in bands of rows: each is a task that goes through
its band in tiles of whole chunks, so small that they stay in the processor's cache.

Of all others, Dask's own product of blocks is what computes: BLAS on one block of each operand, in
as many threads as there are, and sums of what comes out. It reads a block anew for each product
that needs it, and so keeps none. What is done here is to cut the operands so that it goes well:
into blocks of whole chunks of the file, which a loop over rows would decode again and again, and so
small that those which all threads hold fit into a budget together.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.system import CPU_COUNT

from raggedstore.errors import UsageError
from raggedstore.lazy.sources import adapt, memory_of
from raggedstore.lazy.windows import (
    Chunks,
    Source,
    SourceArray,
    Values,
    group_chunks,
    source_of,
    unique_token,
)
from raggedstore.units import parse_bytes

__all__ = ["matmul"]

#: Blocks that a thread has at a time: one in use and one on its way out, and where both operands
#: are matrices, those of the other one and products that wait to be summed.
_HELD, _HELD_OF_TWO = 2, 16
_KINDS = "biufc"
#: Bytes of a tile, and at most of a band; and bands for each thread, that none waits long for the
#: last.
_TILE, _BAND, _BANDS = 2**21, 2**28, 4
#: What is mapped goes to BLAS as it lies, which has threads of its own: so many bytes at a time.
_MAPPED = 2**30
#: Smaller blocks cost more to schedule than to read.
_LEAST = 2**18


def _unmasked(x: da.Array) -> da.Array:
    if not isinstance(x._meta, np.ma.MaskedArray):
        return x
    return x.map_blocks(np.ma.filled, 0, dtype=x.dtype, meta=np.empty((0,) * x.ndim, x.dtype))


def matmul(a: Any, b: Any, *, budget: int | str = "64MB") -> da.Array:
    """The lazy product of two matrices, or of a matrix and a vector, as ``a @ b``.

    Parameters
    ----------
    a, b
        Whatever `adapt` takes, of one or two dimensions: h5py datasets, memory maps, a store's
        fields, arrays in memory; or lazy arrays. Those that come from `adapt` unchanged are cut
        anew; of others the chunks are what they are.
    budget
        Bytes of blocks that all of this machine's threads together hold while it is computed. A
        file whose chunks are large takes more: at least one chunk a thread.

    Returns
    -------
    Of the dtype that NumPy gives the product: integers wrap around as they do there. Masked values
    count as 0, as they do for `numpy.ma.dot`, and nothing of the product is masked.

    Raises
    ------
    UsageError
        The shapes do not fit, or hold no numbers.

    Notes
    -----
    Dask's threads and those that BLAS starts for each block get into each other's way. As Dask
    advises, start Python with ``OPENBLAS_NUM_THREADS=1`` (or ``MKL_NUM_THREADS``).

    Examples
    --------
    >>> y = lazy.matmul(file["counts"], weights).compute()
    """
    left, right = _unmasked(_adapted(a)), _unmasked(_adapted(b))
    if not {left.ndim, right.ndim} <= {1, 2} or left.shape[-1] != right.shape[0]:
        raise UsageError(
            f"no product of arrays of {left.shape} and {right.shape}: matrices and vectors are "
            f"meant, the last dimension of the one as long as the first of the other"
        )
    for operand in (left, right):
        if operand.dtype.kind not in _KINDS:
            raise UsageError(f"a product is one of numbers, and these are {operand.dtype}")
    of_sources = source_of(left) is not None and source_of(right) is not None
    two = of_sources and left.ndim + right.ndim == 4
    threads = dask.config.get("num_workers", None) or CPU_COUNT
    held = threads * (_HELD_OF_TWO if two else _HELD)
    block = max(parse_bytes(budget, what="budget") // held, _LEAST)
    matrix, factor = source_of(left), memory_of(source_of(right))
    if matrix is not None and matrix.ndim == 2 and not matrix.masked and factor is not None:
        return _in_bands(matrix, factor, min(block, _TILE), _BANDS * threads)
    if left.ndim >= right.ndim:
        left = _cut(left, block, square=two)
        right = _aligned(right, 0, left.chunks[-1], block)
    else:
        right = _cut(right, block, square=two)
        left = _aligned(left, left.ndim - 1, right.chunks[0], block)
    with warnings.catch_warnings():
        # Of two large matrices there are many more products of blocks than blocks.
        warnings.simplefilter("ignore", da.PerformanceWarning)
        product = left @ right
    dtype = np.result_type(left.dtype, right.dtype)
    # Dask sums what small integers came to as larger ones, whatever dtype it says it is of.
    return product.map_blocks(np.asarray, dtype, dtype=dtype)


def _in_bands(source: Source, factor: Values, tile: int, bands: int) -> da.Array:
    """The product of what a source reads and an array in memory."""
    rows, dtype = source.shape[0], np.result_type(source.dtype, factor.dtype)
    if 0 in source.shape:
        return da.zeros((rows, *factor.shape[1:]), dtype=dtype)
    band = _BAND
    # Else NumPy would make a copy first.
    by_blas = source.mapped and source.dtype == factor.dtype and source.dtype.char in "fdFD"
    if by_blas:
        tile, band, bands = _MAPPED, _MAPPED, 1
    row = source.dtype.itemsize * source.shape[1]
    unit = 1 if source.unit is None else min(source.unit[0], rows)
    size = max(1, min(-(-rows // bands), band // row) // unit) * unit
    # By names of their own: else Dask would pickle both to make up some.
    matrix = dask.delayed(source, name=f"matrix-{source.token}", traverse=False)
    vector = dask.delayed(factor, name=unique_token("factor"), traverse=False)
    product = dask.delayed(_product)
    parts = [
        da.from_delayed(
            product(matrix, first, min(first + size, rows), vector, tile, by_blas),
            (min(size, rows - first), *factor.shape[1:]),
            dtype,
        )
        for first in range(0, rows, size)
    ]
    return da.concatenate(parts)


def _product(
    source: Source, first: int, stop: int, factor: Values, tile: int, by_blas: bool
) -> Values:
    """The product of rows of a source and an array in memory, tile by tile."""
    shape = (stop - first, source.shape[1])
    out = np.zeros((shape[0], *factor.shape[1:]), np.result_type(source.dtype, factor.dtype))
    cuts = group_chunks(shape, source.dtype, source.unit, tile)
    edges = [list(itertools.pairwise(itertools.accumulate(sizes, initial=0))) for sizes in cuts]
    times: Callable[[Values, Values], Values] = np.matmul
    if factor.ndim == 1 and not by_blas:
        # BLAS's threads get into the way of Dask's; and of a vector, NumPy is as fast.
        times = functools.partial(np.einsum, "ij,j->i")
    for (a, b), (c, d) in itertools.product(*edges):
        values = source.fetch((slice(first + a, first + b, 1), slice(c, d, 1)))
        out[a:b] += times(values, factor[c:d])
    return out


def _adapted(x: Any) -> da.Array:
    if hasattr(x, "dtype"):
        return adapt(x)
    try:
        return adapt(np.asarray(x))
    except ValueError as error:  # of lists of different lengths
        raise UsageError(
            f"no product with a {type(x).__name__} that is no array: {error}"
        ) from None


def _cut(x: da.Array, block: int, *, square: bool) -> da.Array:
    """A lazy array in blocks of whole chunks, of about `block` bytes."""
    source = source_of(x)
    if source is None:
        return x
    if square and source.unit is None:
        cut: Chunks = da.core.normalize_chunks("auto", x.shape, limit=block, dtype=x.dtype)
    else:
        cut = group_chunks(x.shape, x.dtype, source.unit, block)
    return SourceArray.over(source, cut)


def _aligned(x: da.Array, axis: int, sizes: tuple[int, ...], block: int) -> da.Array:
    """A lazy array cut along `axis` as the other operand is, and into `block` bytes besides."""
    source = source_of(x)
    if source is None:
        return x.rechunk({axis: sizes})
    wanted = ["auto"] * x.ndim
    wanted[axis] = sizes  # type: ignore[call-overload]
    cut = da.core.normalize_chunks(
        tuple(wanted), x.shape, limit=block, dtype=x.dtype, previous_chunks=source.unit
    )
    return SourceArray.over(source, cut)

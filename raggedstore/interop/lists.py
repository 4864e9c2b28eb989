"""Batches as nested lists in memory: Arrow and Awkward arrays, there and back.

Both keep a list of lists as the values of all, flattened, and one array of offsets for each level.
A sample of shape (3, 2) is 3 lists of 2 values; a level of which all lists are of one length may
be of fixed size, and then needs no offsets.

Strategy of the way back: peel off one level after another, keep the lengths of its lists, and
check that within a sample all of them agree, since a sample is an n-dimensional array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import SampleError, UsageError
from raggedstore.extras import require
from raggedstore.indexing import at_least
from raggedstore.interop.tensors import native

__all__ = ["from_arrow", "from_awkward", "to_arrow", "to_awkward"]

Int64s = npt.NDArray[np.int64]


def _levels(batch: RaggedBatch, ragged_ndim: int | None) -> tuple[list[Int64s], list[int]]:
    """The offsets of each level of ragged lists, outermost first, and the sizes of the fixed."""
    least = batch.ragged_ndim
    depth = least if ragged_ndim is None else at_least(0, ragged_ndim, "ragged_ndim")
    if not least <= depth <= batch.ndim:
        raise UsageError(
            f"ragged_ndim lies between {least}, as the samples differ in so many dimensions, and "
            f"their {batch.ndim} dimensions, got {ragged_ndim}"
        )
    counts = np.ones(len(batch), np.int64)
    offsets = []
    for dimension in range(depth):
        offsets.append(offsets_of(np.repeat(batch.shapes[:, dimension], counts)))
        counts = counts * batch.shapes[:, dimension]
    return offsets, batch.shapes[:, depth:].max(axis=0, initial=0).tolist()


def to_awkward(batch: RaggedBatch, ragged_ndim: int | None) -> Any:
    """As `RaggedBatch.to_awkward`."""
    ak = require("awkward", "awkward")
    offsets, sizes = _levels(batch, ragged_ndim)
    rows = int(offsets[-1][-1]) if offsets else len(batch)
    layout = ak.contents.NumpyArray(native(batch.values).reshape(rows, *sizes))
    for level in reversed(offsets):
        layout = ak.contents.ListOffsetArray(ak.index.Index64(level), layout)
    return ak.Array(layout)


def to_arrow(batch: RaggedBatch, ragged_ndim: int | None, *, large: bool) -> Any:
    """As `RaggedBatch.to_arrow`."""
    pa = require("pyarrow", "arrow")
    offsets, sizes = _levels(batch, ragged_ndim)
    try:
        array = pa.array(np.ascontiguousarray(native(batch.values)))
    except pa.ArrowNotImplementedError:
        raise UsageError(f"Arrow has no dtype like {batch.dtype.name}: convert it") from None
    rows = int(offsets[-1][-1]) if offsets else len(batch)
    for i in reversed(range(len(sizes))):
        # Of buffers, since a list_size of 0 says nothing of how many lists there are.
        count = rows * int(np.prod(sizes[:i]))
        kind = pa.list_(array.type, sizes[i])
        array = pa.Array.from_buffers(kind, count, [None], children=[array])
    for level in reversed(offsets):
        if large:
            array = pa.LargeListArray.from_arrays(pa.array(level), array)
            continue
        if level[-1] > np.iinfo(np.int32).max:
            raise UsageError(f"{level[-1]} values do not fit in offsets of 32 bits: large=True")
        array = pa.ListArray.from_arrays(pa.array(level.astype(np.int32)), array)
    return array


@dataclass(frozen=True, slots=True)
class _Level:
    """One level of lists: how long each is, and the size of all where the type fixes it."""

    lengths: Int64s
    size: int | None = None


def from_awkward(array: Any) -> RaggedBatch:
    """As `RaggedBatch.from_awkward`."""
    ak = require("awkward", "awkward")
    if not isinstance(array, ak.Array):
        raise UsageError(f"expected an awkward Array, got {type(array).__name__}")
    layout = ak.to_packed(array, highlevel=False)  # whose offsets begin at 0, with nothing unused
    samples = len(layout)
    levels: list[_Level] = []
    while not layout.is_numpy and not layout.is_unknown:
        if layout.is_option:
            _refuse_missing(layout.mask_as_bool(valid_when=False).any(), levels)
            layout = ak.to_packed(layout.project(), highlevel=False)
        elif not layout.is_list or layout.parameter("__array__") is not None:
            raise _wrong_kind(layout.form.type, levels)
        else:
            lengths = np.diff(np.asarray(layout.to_ListOffsetArray64().offsets.data))
            levels.append(_Level(lengths, layout.size if layout.is_regular else None))
            layout = layout.content
    values = np.empty(0) if layout.is_unknown else np.asarray(layout.data)
    if values.dtype.kind not in "biufc":
        raise _wrong_kind(values.dtype, levels)
    return _batch(values, samples, levels)


def from_arrow(array: Any) -> RaggedBatch:
    """As `RaggedBatch.from_arrow`."""
    pa = require("pyarrow", "arrow")
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if not isinstance(array, pa.Array):
        raise UsageError(f"expected a pyarrow Array or ChunkedArray, got {type(array).__name__}")
    samples = len(array)
    levels: list[_Level] = []
    while True:
        kind = array.type
        _refuse_missing(array.null_count > 0, levels)
        if pa.types.is_fixed_size_list(kind):
            size = kind.list_size
            levels.append(_Level(np.full(len(array), size, np.int64), size))
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            levels.append(_Level(np.diff(array.offsets.to_numpy()).astype(np.int64, copy=False)))
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return _batch(array.to_numpy(zero_copy_only=False), samples, levels)
        elif pa.types.is_null(kind) and levels:  # of lists that are empty, all of them
            return _batch(np.empty(0), samples, levels)
        else:
            raise _wrong_kind(kind, levels)
        array = array.flatten()


def _depth(levels: list[_Level]) -> str:
    return f"{len(levels)} level(s) of lists down" if levels else "among its samples"


def _refuse_missing(missing: bool, levels: list[_Level]) -> None:
    if missing:
        raise SampleError(f"something is missing (None) {_depth(levels)}: fill or drop it first")


def _wrong_kind(kind: Any, levels: list[_Level]) -> SampleError:
    return SampleError(f"a batch is of lists of numbers, and there is {kind} {_depth(levels)}")


def _batch(values: npt.NDArray[Any], samples: int, levels: list[_Level]) -> RaggedBatch:
    """The batch of flattened `values`; SampleError where a sample's lists differ in length."""
    shapes = np.empty((samples, len(levels)), np.int64)
    bounds = np.arange(samples + 1, dtype=np.int64)  # each sample's lists among those of the level
    for dimension, level in enumerate(levels):
        counts = np.diff(bounds)
        full = counts > 0
        # A sample without lists says how long they would be only where the type does.
        lengths = np.full(samples, level.size or 0, np.int64)
        lengths[full] = level.lengths[bounds[:-1][full]]
        odd = np.flatnonzero(level.lengths != np.repeat(lengths, counts))
        if len(odd):
            sample = int(np.searchsorted(bounds, odd[0], "right")) - 1
            raise SampleError(
                f"sample {sample} is no {len(levels)}-dimensional array: its dimension {dimension} "
                f"is {lengths[sample]} in one place and {level.lengths[odd[0]]} in another"
            )
        shapes[:, dimension] = lengths
        bounds = offsets_of(level.lengths)[bounds]
    return RaggedBatch.trusted(values, bounds, shapes)

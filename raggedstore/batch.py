"""`RaggedBatch`: many samples of one ragged field in one contiguous array.

The layout that variable-length kernels take: all samples flattened one after another, and
offsets that say where each begins. Views of single samples cost no copy, and neither do, where the
memory allows it, the forms that other libraries take (`interop/tensors.py`, `interop/lists.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.casting import as_array, cast, check_unmasked, fill_value
from raggedstore.errors import SampleError, SampleTypeError, UsageError
from raggedstore.indexing import as_position, as_positions, at_least, is_single

if TYPE_CHECKING:
    from raggedstore.interop.tensors import RaggedTensors

__all__ = ["RaggedBatch", "copy_ranges", "expand_ranges", "offsets_of", "scatter"]

Int64s = npt.NDArray[np.int64]

#: Samples of fewer values than this on average are taken by index, longer ones copied one by one:
#: an index costs 1.7 ns a value, a copy 0.4 µs a sample.
_TINY = 256
#: Values taken by one array of indices: 512 KiB of it, which stay in the processor's cache.
_TAKEN_AT_ONCE = 2**16


def offsets_of(lengths: npt.ArrayLike) -> Int64s:
    """(n + 1,) int64: the running sum of (n,) `lengths`, starting at 0."""
    lengths = np.asarray(lengths)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def expand_ranges(starts: Int64s, lengths: Int64s) -> Int64s:
    """The indices ``starts[0] … starts[0] + lengths[0] - 1, starts[1] …`` as one int64 array."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int64)


def _in(dtype: np.dtype[Any], array: npt.NDArray[Any], *, by_value: bool) -> npt.NDArray[Any]:
    """A sample in another dtype, without loss."""
    if dtype.kind in "biufc":
        return cast(array, dtype, "a sample", by_value=by_value)
    try:
        return array.astype(dtype, casting="same_kind")
    except TypeError as error:
        raise SampleTypeError(f"a sample: {error}") from None


class RaggedBatch(Sequence[npt.NDArray[Any]]):
    """Samples of one ragged field, flattened into one array.

    Parameters
    ----------
    values
        (total,) all samples flattened row-major, one after another; or (rows, ...) where the
        samples differ in their first dimension only, and `offsets` then counts rows.
    offsets
        (n + 1,) non-decreasing, from 0 to ``len(values)``: sample i is
        ``values[offsets[i]:offsets[i + 1]]``.
    shapes
        (n, d) shape of each sample; by default one-dimensional samples.

    Attributes
    ----------
    values : (total,) ndarray
    offsets : (n + 1,) int64 ndarray, in values
    shapes : (n, d) int64 ndarray
    """

    __slots__ = ("offsets", "shapes", "values")

    def __init__(
        self,
        values: npt.ArrayLike,
        offsets: npt.ArrayLike,
        shapes: npt.ArrayLike | None = None,
    ) -> None:
        check_unmasked(values, "values")
        try:
            array, where = np.asarray(values), np.asarray(offsets)
            shape_rows = None if shapes is None else np.asarray(shapes)
        except ValueError as error:  # of lists of different lengths
            raise SampleError(f"values, offsets and shapes must be arrays: {error}") from None
        if where.ndim != 1 or len(where) < 1 or where.dtype.kind not in "iu":
            raise SampleError("offsets must be n + 1 integers, the first of them 0")
        where = where.astype(np.int64)
        if array.ndim == 0:
            raise SampleError("values must have at least one dimension")
        if where[0] != 0 or where[-1] != len(array) or (np.diff(where) < 0).any():
            raise SampleError(
                f"offsets must rise from 0 to the {len(array)} values, "
                f"got {where[0]} to {where[-1]}"
            )
        if shape_rows is None:
            tail = np.array(array.shape[1:], np.int64)
            shape_rows = np.empty((len(where) - 1, array.ndim), np.int64)
            shape_rows[:, 0] = np.diff(where)
            shape_rows[:, 1:] = tail
            where = where * int(np.prod(tail))
        else:
            if array.ndim != 1 or shape_rows.ndim != 2 or len(shape_rows) != len(where) - 1:
                raise SampleError("with shapes (n, d), values must be flat and offsets n + 1")
            if shape_rows.size and shape_rows.dtype.kind not in "iu":
                raise SampleError(f"shapes must be integers, not {shape_rows.dtype}")
            shape_rows = shape_rows.astype(np.int64)
            # In int64 the product could wrap round to a likely size; as a float it is inexact only.
            # Nor can an array have any shape where one of its dimensions is 0.
            least = np.maximum(shape_rows, 1).prod(axis=1, dtype=np.float64)
            vast = least * max(array.itemsize, 2) >= 2.0**63
            sizes = shape_rows.prod(axis=1)
            if (shape_rows < 0).any() or vast.any() or (sizes != np.diff(where)).any():
                raise SampleError("shapes do not multiply to the number of values between offsets")
        self.values = array.reshape(-1)
        self.offsets = where
        self.shapes = shape_rows

    @classmethod
    def trusted(cls, values: npt.NDArray[Any], offsets: Int64s, shapes: Int64s) -> RaggedBatch:
        """A batch of parts that are known to agree: nothing is checked again."""
        batch = cls.__new__(cls)
        batch.values, batch.offsets, batch.shapes = values, offsets, shapes
        return batch

    @classmethod
    def from_list(
        cls, samples: Iterable[npt.ArrayLike], dtype: Any = None, ndim: int | None = None
    ) -> RaggedBatch:
        """A batch of the given arrays, copied; `ndim` is needed only for an empty list.

        Raises
        ------
        SampleError
            A sample is no array, has masked elements, or has other dimensions than the others.
        SampleTypeError
            A sample does not convert to `dtype` without loss, as a store's fields have it.
        """
        if not isinstance(samples, Iterable):
            raise SampleTypeError(f"samples come from an iterable, not {type(samples).__name__}")
        try:
            wanted = None if dtype is None else np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError) as error:
            raise UsageError(f"{dtype!r} is no NumPy dtype: {error}") from None
        arrays, typed = [], []
        for sample in samples:
            array = as_array(sample, "a sample")
            has_type = (
                hasattr(sample, "dtype") or array.size > 0
            )  # that of an empty list is made up
            if wanted is not None:
                array = _in(wanted, array, by_value=not hasattr(sample, "dtype"))
            elif has_type:
                typed.append(array.dtype)
            arrays.append(array)
        dims = {a.ndim for a in arrays} or {1 if ndim is None else at_least(0, ndim, "ndim")}
        if len(dims) > 1:
            raise SampleError(f"samples of one batch must agree in dimensions, got {sorted(dims)}")
        shapes = np.array([a.shape for a in arrays], np.int64).reshape(len(arrays), dims.pop())
        flat = [array.reshape(-1) for array in arrays] or [np.empty(0, wanted)]
        if len({array.dtype for array in flat}) > 1:
            try:
                common = np.result_type(*typed)
            except TypeError as error:
                raise SampleTypeError(
                    f"samples of one batch have no dtype for all: {error}"
                ) from None
            flat = [_in(common, array, by_value=not array.size) for array in flat]
        # Left to itself NumPy gives the native byte order.
        values = np.concatenate(flat, dtype=flat[0].dtype)
        return cls.trusted(values, offsets_of(shapes.prod(axis=1)), shapes)

    @classmethod
    def from_arrow(cls, array: Any) -> RaggedBatch:
        """A batch of a pyarrow Array or ChunkedArray of lists, as `to_arrow` gives them.

        The values are shared wherever Arrow keeps them as NumPy does, and then read-only.

        Raises
        ------
        SampleError
            A value or a list is null, a sample is no n-dimensional array, or the lists hold
            anything but numbers and bools.
        UsageError
            It is no Arrow array.
        """
        from raggedstore.interop import lists

        return lists.from_arrow(array)

    @classmethod
    def from_awkward(cls, array: Any) -> RaggedBatch:
        """A batch of an awkward Array of lists, as `to_awkward` gives them; values are shared.

        Raises
        ------
        SampleError
            A value or a list is None, a sample is no n-dimensional array, or the lists hold
            anything but numbers and bools.
        UsageError
            It is no awkward Array.
        """
        from raggedstore.interop import lists

        return lists.from_awkward(array)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, key: Any) -> Any:
        """Sample `key` as a view, or for a slice, list or mask the batch of those samples."""
        if is_single(key):
            i = as_position(key, len(self))
            flat = self.values[self.offsets[i] : self.offsets[i + 1]]
            return flat.reshape(self.shapes[i])
        return self.take(as_positions(key, len(self)))

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for i in range(len(self)):
            yield self[i]

    def __repr__(self) -> str:
        return (
            f"<RaggedBatch of {len(self)} {self.dtype} samples, {self.ndim}-d, "
            f"{len(self.values)} values>"
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the values."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions of each sample."""
        return int(self.shapes.shape[1])

    @property
    def ragged_ndim(self) -> int:
        """How many dimensions, counted from the first, it takes until all samples agree.

        At least 1, unless the samples are scalars: the first dimension counts always.
        """
        differs = (self.shapes[:, 1:] != self.shapes[:1, 1:]).any(axis=0)
        return min(self.ndim, int(np.flatnonzero(differs).max(initial=-1)) + 2)

    @property
    def nbytes(self) -> int:
        """Bytes of values, offsets and shapes."""
        return self.values.nbytes + self.offsets.nbytes + self.shapes.nbytes

    @property
    def lengths(self) -> Int64s:
        """(n,) int64: the first dimension of each sample (1 for scalars)."""
        if not self.ndim:
            return np.ones(len(self), np.int64)
        lengths: Int64s = self.shapes[:, 0]
        return lengths

    @property
    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        """(n + 1,) int32 running sum of `lengths`, as variable-length attention takes it."""
        total = offsets_of(self.lengths)
        if total[-1] > np.iinfo(np.int32).max:
            raise UsageError(f"{total[-1]} rows do not fit in the int32 of cu_seqlens")
        return total.astype(np.int32)

    def take(self, positions: Int64s) -> RaggedBatch:
        """The batch of the samples at the non-negative `positions`, copied."""
        starts, stops = self.offsets[:-1][positions], self.offsets[1:][positions]
        offsets = offsets_of(stops - starts)
        values = np.empty(int(offsets[-1]), self.dtype)
        copy_ranges(self.values, starts, stops, offsets, values)
        return RaggedBatch.trusted(values, offsets, self.shapes[positions])

    def spans(self, edges: Int64s) -> Iterator[RaggedBatch]:
        """For each i the batch of samples ``edges[i]`` to ``edges[i + 1]``, within range.

        Its values and shapes are views.
        """
        values, offsets, shapes, trusted = self.values, self.offsets, self.shapes, self.trusted
        of_values = itertools.pairwise(offsets[edges].tolist())
        of_samples = itertools.pairwise(edges.tolist())
        for (a, b), (start, stop) in zip(of_values, of_samples, strict=True):
            yield trusted(values[a:b], offsets[start : stop + 1] - a, shapes[start:stop])

    @classmethod
    def join(cls, batches: Sequence[RaggedBatch]) -> RaggedBatch:
        """One batch of the samples of several, of one dtype and dimension, copied."""
        sizes = [np.diff(batch.offsets) for batch in batches]
        # Left to itself concatenate gives the native byte order.
        values = np.concatenate([batch.values for batch in batches], dtype=batches[0].dtype)
        shapes = np.concatenate([batch.shapes for batch in batches])
        return cls.trusted(values, offsets_of(np.concatenate(sizes)), shapes)

    def to_list(self) -> list[npt.NDArray[Any]]:
        """One array per sample, each of its own shape: views, not copies."""
        bounds, shapes = self.offsets.tolist(), self.shapes.tolist()
        values = self.values
        if self.ndim == 1:
            return [values[a:b] for a, b in itertools.pairwise(bounds)]
        return [
            values[a:b].reshape(shape)
            for a, b, shape in zip(bounds, bounds[1:], shapes, strict=False)
        ]

    def _padded_length(self, multiple_of: int, max_length: int | None) -> int:
        multiple_of = at_least(1, multiple_of, "multiple_of")
        longest = int(self.lengths.max(initial=0))
        if max_length is not None:
            longest = min(longest, at_least(0, max_length, "max_length"))
        length = -(-longest // multiple_of) * multiple_of
        if length * len(self) * self.dtype.itemsize >= 2**63:
            raise UsageError(f"{len(self)} samples padded to {length} are too many for any memory")
        return length

    def to_padded(
        self,
        value: Any = 0,
        side: Literal["left", "right"] = "right",
        *,
        multiple_of: int = 1,
        max_length: int | None = None,
        time_first: bool = False,
    ) -> npt.NDArray[Any]:
        """One dense array, shorter samples filled up with `value`.

        Parameters
        ----------
        value
            What to fill with: a number that the dtype has, or several that broadcast.
        side
            Which side of the first dimension the filling comes on; further ragged dimensions
            are filled at their ends.
        multiple_of
            Round the padded first dimension up to a multiple of this.
        max_length
            Longer samples are cut to this many rows (the first ones), before rounding.
        time_first
            Put the samples' first dimension before the samples, as recurrent layers take it.

        Returns
        -------
        (n, longest, ...) array of the batch's dtype, or (longest, n, ...) with `time_first`.

        Raises
        ------
        UsageError
            The dtype has no such `value`: NaN among integers, say.
        """
        _check_side(side)
        is_zero = type(value) is int and value == 0
        value = value if is_zero else fill_value(value, self.dtype)
        if not self.ndim:
            return self.values.copy()
        length = self._padded_length(multiple_of, max_length)
        lengths = np.minimum(self.lengths, length if max_length is None else max_length)
        tail = tuple(int(d) for d in self.shapes[:, 1:].max(axis=0, initial=0))
        front = (length, len(self)) if time_first else (len(self), length)
        if is_zero:  # pages that stay zero are never touched
            out = np.zeros((*front, *tail), self.dtype)
        else:
            out = np.empty((*front, *tail), self.dtype)
            try:
                out[...] = value
            except ValueError as error:
                raise UsageError(f"no values to fill an array of {out.shape}: {error}") from None
        rows = out.swapaxes(0, 1) if time_first else out
        if self.ragged_ndim == 1 and len(self.values) < _TINY * len(self):
            # Tiny samples: one masked assignment for the whole batch, and no loop.
            picked = self.values.reshape(int(self.lengths.sum()), *tail)
            if (lengths != self.lengths).any():
                picked = picked[expand_ranges(offsets_of(self.lengths)[:-1], lengths)]
            rows[_mask(lengths, length, side)] = picked
            return out
        for row, sample, count in zip(rows, self.to_list(), lengths.tolist(), strict=True):
            first = length - count if side == "left" else 0
            window = (slice(first, first + count), *(slice(0, d) for d in sample.shape[1:]))
            row[window] = sample[:count]
        return out

    def mask(
        self,
        side: Literal["left", "right"] = "right",
        *,
        multiple_of: int = 1,
        max_length: int | None = None,
        time_first: bool = False,
    ) -> npt.NDArray[np.bool_]:
        """True where `to_padded` with the same arguments holds data.

        Returns
        -------
        (n, longest) bool array, or (longest, n) with `time_first`.
        """
        _check_side(side)
        length = self._padded_length(multiple_of, max_length)
        lengths = np.minimum(self.lengths, length if max_length is None else max_length)
        mask = _mask(lengths, length, side)
        return np.ascontiguousarray(mask.T) if time_first else mask

    # Other libraries

    def to_torch(self) -> RaggedTensors:
        """Values, offsets and shapes as PyTorch tensors.

        They share the batch's memory, whose changes are then seen on both sides. What may not be
        written to is copied, since a tensor always may; so is what has another byte order than
        the machine's.

        Raises
        ------
        UsageError
            PyTorch has no such dtype.
        """
        from raggedstore.interop import tensors

        return tensors.to_torch(self)

    def to_torch_nested(self) -> Any:
        """A nested tensor of PyTorch's jagged layout; shares memory as `to_torch` does.

        Raises
        ------
        UsageError
            The samples differ in another dimension than the first, or are scalars, or PyTorch
            has no such dtype.
        """
        from raggedstore.interop import tensors

        return tensors.to_torch_nested(self)

    def to_dlpack(self) -> RaggedTensors:
        """Values, offsets and shapes as arrays that any library's ``from_dlpack`` takes.

        They share the batch's memory, or are copies, as `to_torch` has it.

        Raises
        ------
        UsageError
            DLPack has no such dtype.
        """
        from raggedstore.interop import tensors

        return tensors.to_dlpack(self)

    def to_awkward(self, ragged_ndim: int | None = None) -> Any:
        """An awkward Array of the samples, sharing the values.

        Parameters
        ----------
        ragged_ndim
            How many dimensions, counted from the first, are lists of any length; the others are
            of fixed size. By default as few as the batch needs: name it where several batches are
            to be of one type.
        """
        from raggedstore.interop import lists

        return lists.to_awkward(self, ragged_ndim)

    def to_arrow(self, ragged_ndim: int | None = None, *, large: bool = True) -> Any:
        """A pyarrow array of the samples as lists, sharing the values (bools excepted).

        Parameters
        ----------
        ragged_ndim
            As in `to_awkward`.
        large
            Offsets of 64 bits. Without, the type is ``list`` instead of ``large_list``.

        Raises
        ------
        UsageError
            Arrow has no such dtype, or without `large` too many values.
        """
        from raggedstore.interop import lists

        return lists.to_arrow(self, ragged_ndim, large=large)


def _mask(lengths: Int64s, length: int, side: str) -> npt.NDArray[np.bool_]:
    """(n, length) bool: True in `lengths` places of each row, at its beginning or its end."""
    steps = np.arange(length)
    if side == "left":
        steps = steps[::-1]
    return steps[None, :] < lengths[:, None]


def copy_ranges(
    values: npt.NDArray[Any], starts: Int64s, stops: Int64s, offsets: Int64s, out: npt.NDArray[Any]
) -> None:
    """Copy ``values[starts[i]:stops[i]]``, rows of it, to ``out[offsets[i]:offsets[i + 1]]``.

    Parameters
    ----------
    starts, stops
        (n,) int64, within `values`.
    offsets
        (n + 1,) `offsets_of` their lengths.
    """
    if kernel.copy_rows(values, starts, stops - starts, offsets[:-1], out):
        return
    copy = _copy_tiny if len(out) < _TINY * len(starts) else _copy_long
    copy(values, starts, stops, offsets, out)


def scatter(batch: RaggedBatch, places: Int64s, out: npt.NDArray[Any]) -> None:
    """Copy the values of each sample of `batch` to where in `out` they are to begin.

    Parameters
    ----------
    places
        (n,) int64, so that samples neither overlap there nor end beyond `out`, of the same dtype.
    """
    starts, sizes = batch.offsets[:-1], np.diff(batch.offsets)
    if kernel.copy_rows(batch.values, starts, sizes, places, out):
        return
    if len(batch.values) < _TINY * len(sizes):
        out[np.repeat(places - starts, sizes) + np.arange(len(batch.values))] = batch.values
    else:
        _copy_long(batch.values, starts, batch.offsets[1:], places, out)


def _copy_tiny(
    values: npt.NDArray[Any], starts: Int64s, stops: Int64s, offsets: Int64s, out: npt.NDArray[Any]
) -> None:
    """As `copy_ranges`, by the index of each row."""
    if len(out) == len(starts) and len(out) <= _TAKEN_AT_ONCE and (stops - starts == 1).all():
        np.take(values, starts, axis=0, out=out, mode="wrap")
        return
    full = np.flatnonzero(stops > starts)
    starts, stops, places = starts[full], stops[full], offsets[full]
    ends = np.arange(_TAKEN_AT_ONCE, len(out) + _TAKEN_AT_ONCE, _TAKEN_AT_ONCE)
    first = 0
    for last in np.searchsorted(places, ends).tolist():
        if last == first:
            continue
        begin = int(places[first])
        end = int(places[last]) if last < len(places) else len(out)
        # A running sum of steps: 1 within a sample, and a jump to the next one's first value.
        index = np.ones(end - begin, np.int64)
        index[0] = starts[first]
        index[places[first + 1 : last] - begin] = (
            starts[first + 1 : last] - stops[first : last - 1] + 1
        )
        np.cumsum(index, out=index)
        # No index is out of range; "wrap" is the mode that checks least.
        np.take(values, index, axis=0, out=out[begin:end], mode="wrap")
        first = last


def _copy_long(
    values: npt.NDArray[Any], starts: Int64s, stops: Int64s, offsets: Int64s, out: npt.NDArray[Any]
) -> None:
    """As `copy_ranges`, one copy a range."""
    bounds = zip(starts.tolist(), stops.tolist(), offsets.tolist(), strict=False)
    for start, stop, place in bounds:
        out[place : place + stop - start] = values[start:stop]


def _check_side(side: str) -> None:
    if side not in ("left", "right"):
        raise UsageError(f"side must be 'left' or 'right', got {side!r}")

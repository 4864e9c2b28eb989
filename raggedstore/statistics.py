"""Statistics of one field over samples, in one pass, and a `Normalizer` made of them.

Samples are read in blocks and each block becomes `Moments`, which are merged; no more than a block
is in memory, and a sample larger than that is read in pieces. What is left of a sample's shape
after `axis` is taken away are the groups, such as the features of a spectrogram: one statistic
each. As those dimensions are of fixed size, every block holds equally many values of every group,
and is seen as rows of all groups.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.distribution import counts_of
from raggedstore.errors import UnknownFieldError, UsageError
from raggedstore.indexing import Positions, runs_of
from raggedstore.moments import Moments, check_real
from raggedstore.schema import Field
from raggedstore.sketch import Sketch, capacity_for

if TYPE_CHECKING:
    from raggedstore.samples import Column, FieldView, Samples

__all__ = [
    "Axes",
    "Normalizer",
    "Stats",
    "axes_of",
    "groups_of",
    "histogram_of",
    "moments_of",
    "quantiles_of",
]

Axes = tuple[int, ...]

_BLOCK_BYTES = 2**24
_SORTED_VALUES = 2**20  # in a block whose groups do not lie side by side: an index takes 8 bytes
_SHAPES = 2**17  # samples whose shapes are looked at together
_CONSTANT = 1e-12  # of the mean: a deviation below is what rounding left of none


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of values: plain numbers, or arrays of one number for each group.

    `std` is the population's. Where there are no values all but `count` and `sum` are NaN. Sums of
    integers are exact, in an array of Python ints where they do not fit into int64. Floats of more
    than 64 bits are taken for the nearest of 64 bits.
    """

    count: Any
    sum: Any
    mean: Any
    std: Any
    min: Any
    max: Any

    @classmethod
    def of(cls, moments: Moments, dtype: np.dtype[Any]) -> Stats:
        """Those of values of `dtype`."""
        found = moments.count > 0
        least, most = (
            each.astype(dtype.newbyteorder("=")) if found.all() else np.where(found, each, np.nan)
            for each in (moments.min, moments.max)
        )
        sums = moments.sums()
        fit = sums.dtype == object and all(-(2**63) <= each < 2**63 for each in sums.flat)
        numbers = (
            moments.count,
            sums.astype(np.int64) if fit else sums,
            np.where(found, moments.mean, np.nan),
            np.sqrt(moments.variance()),
            least,
            most,
        )
        return cls(*numbers) if moments.count.shape else cls(*(each.item() for each in numbers))


def axes_of(field: Field, name: str, axis: int | tuple[int, ...] | None) -> Axes:
    """The dimensions of a sample to go over, ascending: by default all.

    Raises
    ------
    UsageError
        The field holds no real numbers, has no such dimension, or would be left with a ragged one.
    """
    if field.kind != "array":
        raise UsageError(f"field {name!r} holds text, which has no statistics")
    check_real(field.dtype, f"statistics of field {name!r}")
    if axis is None:
        return tuple(range(field.ndim))
    try:
        given = [operator.index(one) for one in np.atleast_1d(axis).tolist()]
    except (TypeError, ValueError):
        raise UsageError(f"axis={axis!r}: axes are given by their numbers, ints") from None
    numbers = [one + field.ndim if one < 0 else one for one in given]
    if any(not 0 <= one < field.ndim for one in numbers):
        raise UsageError(f"axis={axis!r} of field {name!r}, whose samples are {field.shape}")
    axes = tuple(sorted({*numbers}))
    if None in groups_of(field, axes):
        raise UsageError(
            f"field {name!r}: axis={axis!r} of samples {field.shape} leaves a ragged dimension"
        )
    return axes


def groups_of(field: Field, axes: Axes) -> tuple[int, ...]:
    """The dimensions of a sample that `axes` leave."""
    return tuple(size for i, size in enumerate(field.shape) if i not in axes)  # type: ignore[misc]


def moments_of(
    samples: Samples, name: str, positions: Positions | range, axes: Axes, *, skipna: bool
) -> Moments:
    """The moments of the field `name` of the samples at `positions`, read block by block."""
    field = samples.schema[name]
    total = Moments.none(field.dtype, groups_of(field, axes))
    for column in _columns(samples, name, positions, axes):
        total = total.merge(Moments.of(_grouped(column, field, axes), skipna=skipna))
    return total


def histogram_of(
    samples: Samples, name: str, axes: Axes, edges: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """(groups..., bins) how many values lie between `edges`, read block by block."""
    field = samples.schema[name]
    groups = groups_of(field, axes)
    total = np.zeros((math.prod(groups), len(edges) - 1), np.int64)
    for column in _columns(samples, name, range(len(samples)), axes):
        total += counts_of(_rows_of(column, field, axes), edges)
    return total.reshape((*groups, len(edges) - 1))


def quantiles_of(
    samples: Samples,
    name: str,
    axes: Axes,
    wanted: npt.NDArray[np.float64],
    error: float,
    *,
    skipna: bool,
) -> npt.NDArray[np.float64]:
    """Values of the ranks `wanted`, of their shape and then of the groups; read block by block."""
    field = samples.schema[name]
    groups = groups_of(field, axes)
    everything, total = range(len(samples)), math.prod(groups)
    sizes = (samples.read_shapes(name, run).prod(axis=1) for run in runs_of(everything, _SHAPES))
    count = sum(int(some.sum()) for some in sizes) // max(total, 1)
    sketch = Sketch.of(np.empty((total, 0), field.dtype), capacity_for(error, max(count, 1)))
    for column in _columns(samples, name, everything, axes):
        rows = _rows_of(column, field, axes)
        absent = np.isnan(rows) if skipna and rows.dtype.kind == "f" else None
        if absent is not None and total == 1:  # what is not there is nothing to be off by
            rows, absent = rows[:, ~absent[0]], None
        sketch = sketch.merge(Sketch.of(rows, sketch.capacity, absent))
    found = sketch.quantiles(wanted)
    return np.moveaxis(found, 0, -1).reshape((*wanted.shape, *groups))


def _rows_of(column: Column, field: Field, axes: Axes) -> npt.NDArray[Any]:
    """(groups, n) values."""
    grouped = _grouped(column, field, axes)
    return grouped.reshape(len(grouped), math.prod(grouped.shape[1:])).T


def _columns(
    samples: Samples, name: str, positions: Positions | range, axes: Axes
) -> Iterator[Column]:
    """The field of all samples, no more than fits into a block at a time."""
    field = samples.schema[name]
    most = _BLOCK_BYTES if _side_by_side(axes) else _SORTED_VALUES * field.dtype.itemsize
    only = samples.select(fields=[name])
    for block in only.blocks(positions, max_bytes=most):
        size = int(only.sizes(block[:1])[0])
        if len(block) == 1 and size > most and field.is_ragged and 0 in axes:
            length = int(only.read_shapes(name, block)[0, 0])
            step = max(most * length // size, 1)
            for start in range(0, length, step):
                begin = np.array([start], np.int64)
                yield only.read_windows(name, block, begin, begin + step)
        else:
            yield only.read(name, block)


def _side_by_side(axes: Axes) -> bool:
    """Whether the groups are the last dimensions."""
    return axes == tuple(range(len(axes)))


def _grouped(column: Column, field: Field, axes: Axes) -> npt.NDArray[Any]:
    """(rows, ...) values, all groups in each row."""
    groups = groups_of(field, axes)
    values = column.values if isinstance(column, RaggedBatch) else column.reshape(-1)
    if _side_by_side(axes) or not len(values):
        return values.reshape(len(values) // max(math.prod(groups), 1), *groups)
    if isinstance(column, RaggedBatch):
        offsets, shapes = column.offsets, column.shapes
    else:
        offsets = np.array([0, len(values)])
        shapes = np.array([column.shape[1:]], np.int64)
    sizes = np.diff(offsets)
    within = np.arange(len(values)) - np.repeat(offsets[:-1], sizes)
    group = np.zeros(len(values), np.int64)
    for i, size in enumerate(field.shape):
        if i not in axes:
            assert size is not None
            stride = np.repeat(shapes[:, i + 1 :].prod(axis=1), sizes)
            group = group * size + within // stride % size
    order = np.argsort(group, kind="stable")
    return values[order].reshape(*groups, -1).transpose(len(groups), *range(len(groups)))


@dataclass(frozen=True, slots=True, eq=False)
class Normalizer:
    """Subtracts a mean and divides by a deviation: ``(values - mean) / std``, as float32.

    A function for `Loader.map`, per batch or per sample; it pickles.

    Parameters
    ----------
    mean, std
        Numbers or arrays; they broadcast against the last dimensions of what is normalised. What
        has no deviation, or one that is rounding only, is not divided: it becomes 0.
    field
        Which one to normalise in a batch or a sample.

    Examples
    --------
    >>> normal = rs.Normalizer.of(parts["train"]["mel"])
    >>> loader = Loader(store, batch=64).map(normal)
    """

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    field: str | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            try:
                given = np.array(getattr(self, name), np.float64)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{name} is a number, or an array of them: {error}") from None
            object.__setattr__(self, name, given)
        if not (np.isfinite(self.mean).all() and (self.std >= 0).all()):
            raise UsageError("a mean must be finite and a deviation not negative, and are not here")

    @classmethod
    def of(cls, view: FieldView, *, axis: int | tuple[int, ...] | None = None) -> Self:
        """That of a field's samples, read once.

        Parameters
        ----------
        axis
            As `FieldView.stats` has it; by default all dimensions up to the last ragged one, which
            leaves the features: of (None, 80) a mean and a deviation for each of the 80.
        """
        sizes = view.field.shape
        if axis is None:
            ragged = [i for i, size in enumerate(sizes) if size is None]
            axis = tuple(range(max(ragged, default=-1) + 1))
        axes = axes_of(view.field, view.name, axis)
        stats = view.stats(axes)
        if not np.all(stats.count):
            raise UsageError(f"field {view.name!r} has no values to take a mean of")
        first = next((i for i in range(len(sizes)) if i not in axes), len(sizes))
        kept = [1 if i in axes else sizes[i] or 0 for i in range(first, len(sizes))]
        return cls(np.reshape(stats.mean, kept), np.reshape(stats.std, kept), view.name)

    def __call__(self, values: Any) -> Any:
        """The same normalised: an array, a RaggedBatch, or a batch or sample that has the field."""
        if isinstance(values, Mapping):
            if self.field is None:
                raise UsageError("a Normalizer that was given no field does not know which to take")
            if self.field not in values:
                raise UnknownFieldError(
                    f"what is to be normalised has no {self.field!r}: {', '.join(map(str, values))}"
                )
            return {**values, self.field: self(values[self.field])}
        if not isinstance(values, RaggedBatch):
            return self._normal(np.asarray(values))
        wanted = self.mean.shape
        tails = values.shapes[:, max(values.ndim - len(wanted), 0) :]
        if len(wanted) < values.ndim and (tails == wanted).all():
            flat = self._normal(values.values.reshape(-1, *wanted)).reshape(-1)
        else:
            flat = np.empty(len(values.values), np.float32)
            for i, sample in enumerate(values):
                flat[values.offsets[i] : values.offsets[i + 1]] = self._normal(sample).reshape(-1)
        return RaggedBatch.trusted(flat, values.offsets, values.shapes)

    def _normal(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        check_real(values.dtype, "normalising")
        scale = np.ones_like(self.std)
        varies = self.std > _CONSTANT * np.abs(self.mean)
        np.divide(1, self.std, out=scale, where=varies)
        if not np.can_cast(values.dtype, np.float32):
            return ((values - self.mean) * scale).astype(np.float32)
        # A large mean has more digits than a float32: what it lacks is subtracted next.
        high = self.mean.astype(np.float32)
        out: npt.NDArray[np.float32] = np.subtract(values, high, dtype=np.float32)
        out -= (self.mean - high).astype(np.float32)
        out *= scale.astype(np.float32)
        return out

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values; `from_state_dict` takes them."""
        return {"field": self.field, "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """The normalizer whose `state_dict` it is."""
        try:
            return cls(state["mean"], state["std"], state["field"])
        except (KeyError, TypeError) as error:
            raise UsageError(f"not the state of a Normalizer: {error!r}") from None

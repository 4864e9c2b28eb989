"""Lazy arrays over something that can read windows, and what indexing makes of them.

Strategy. A `Source` reads windows: one slice with a positive step for each axis, and nothing
else. That is little enough for any file format, tile server or function to do. A `SourceArray` is
a Dask array that knows its source, and indexing it gives another one over fewer positions of the
same source, cut where the first one's chunks are: nothing is left for Dask's optimizer to find
out, and what was not asked for is not read, whatever the key.

picks    Of each axis the positions asked for: a range, which slices of any step make of one
         another, or ascending positions, from a list or mask. A list in another order or with
         repeats becomes ascending positions and a key for what was read.
runs     Reading turns the picks of an axis into slices: a range is one; positions are one for
         each chunk of the source that they are in, and where it has none, for each run of
         neighbours.
"""

from __future__ import annotations

import itertools
import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from raggedstore.errors import FormatError, RaggedStoreError, StorageError
from raggedstore.lazy.keys import Layout, Pick, Points, read_key

__all__ = [
    "CHUNK_BYTES",
    "Arranged",
    "Chunks",
    "Source",
    "SourceArray",
    "Values",
    "Window",
    "group_chunks",
    "unique_token",
]

#: Of each axis the sizes of the chunks along it, as Dask has them.
Chunks = tuple[tuple[int, ...], ...]
#: A slice with a positive step for each axis.
Window = tuple[slice, ...]
Values = npt.NDArray[Any]

#: What a task of Dask should read at least, where the source's chunks are smaller.
CHUNK_BYTES = 2**25


class Source(ABC):
    """What a lazy array reads from."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    #: Sizes of its own chunks, one for each axis, or None where any window is as good as another.
    unit: tuple[int, ...] | None = None
    #: Held while it is read.
    lock: AbstractContextManager[Any] = nullcontext()
    #: Whether what it reads are masked arrays.
    masked: bool = False
    #: Equal for sources that read the same for sure.
    token: str

    @abstractmethod
    def read(self, window: Window) -> Any:
        """The values in a window, never an empty one: an array of just that shape."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def fetch(self, window: Window) -> Values:
        """`read`, held against what the source said of itself.

        Raises
        ------
        StorageError
            Reading failed: the cause is what was raised, the message says where.
        FormatError
            What came was of another shape or dtype.
        """
        try:
            with self.lock:
                values: Values = np.asanyarray(self.read(window))
        except (RaggedStoreError, MemoryError):
            raise
        except Exception as error:
            raise StorageError(
                f"{self}, {_shown(window)}: {type(error).__name__}: {error}"
            ) from error
        shape = _shape_of(window)
        if values.shape != shape or values.dtype != self.dtype:
            raise FormatError(
                f"{self}, {_shown(window)}: {values.shape} {values.dtype} came where "
                f"{shape} {self.dtype} was to be read"
            )
        return values

    def __getitem__(self, key: tuple[Any, ...]) -> Values:
        """The values at slices or ints, as Dask cuts blocks and may narrow them further."""
        window = tuple(
            slice(*k.indices(n)) if isinstance(k, slice) else slice(k, k + 1, 1)
            for k, n in zip(key, self.shape, strict=True)
        )
        shape = _shape_of(window)
        values = self.empty(shape) if 0 in shape else self.fetch(window)
        # The ellipsis makes an array of what would be a scalar.
        return values[(*(slice(None) if isinstance(k, slice) else 0 for k in key), ...)]

    def empty(self, shape: tuple[int, ...]) -> Values:
        """An uninitialised array of the kind that it reads."""
        make: Callable[..., Values] = np.ma.empty if self.masked else np.empty
        return make(shape, self.dtype)


def _shape_of(window: Window) -> tuple[int, ...]:
    return tuple(len(range(s.start, s.stop, s.step)) for s in window)


def _shown(window: Window) -> str:
    ends = (f"{s.start}:{s.stop}" + (f":{s.step}" if s.step > 1 else "") for s in window)
    return f"[{', '.join(ends)}]"


class _Picked(Source):
    """Some positions of a source along each axis: what Dask takes its blocks from."""

    def __init__(self, source: Source, picks: tuple[Pick, ...]) -> None:
        self.source, self.picks = source, picks
        self.shape = tuple(len(pick) for pick in picks)
        self.dtype, self.masked = source.dtype, source.masked
        self.token = str(da.core.tokenize(source.token, self.picks))

    def __repr__(self) -> str:
        return f"part of {self.source}"

    def read(self, window: Window) -> Any:
        picks = [p[k] for p, k in zip(self.picks, window, strict=True)]
        unit = self.source.unit or (1,) * self.ndim
        runs = [list(_runs(*pair)) for pair in zip(picks, unit, strict=True)]
        if all(len(along) == 1 for along in runs):
            return self._read_run([along[0] for along in runs])
        out = self.source.empty(_shape_of(window))
        for run in itertools.product(*runs):
            out[tuple(part.out for part in run)] = self._read_run(run)
        return out

    def _read_run(self, run: Sequence[_Run]) -> Values:
        values = self.source.fetch(tuple(part.window for part in run))
        for axis, part in enumerate(run):
            if part.within is not None:
                values = values[(*(slice(None),) * axis, part.within)]
        return values


class Arranged(Source):
    """A source with its axes in another order, new ones of length 1, and without some of those.

    Parameters
    ----------
    layout
        For each axis the source's axis, or None for a new one. Axes of length 1 may be missing.
    """

    def __init__(self, source: Source, layout: Layout) -> None:
        self.source, self._layout = source, layout
        self.shape = tuple(1 if axis is None else source.shape[axis] for axis in layout)
        self.dtype, self.masked = source.dtype, source.masked
        self.token = str(da.core.tokenize(source.token, layout))

    def __repr__(self) -> str:
        return repr(self.source)

    def read(self, window: Window) -> Any:
        inner = [slice(0, 1, 1)] * self.source.ndim
        for axis, along in zip(self._layout, window, strict=True):
            if axis is not None:
                inner[axis] = along
        kept = [axis for axis in self._layout if axis is not None]
        dropped = [axis for axis in range(self.source.ndim) if axis not in kept]
        values = self.source.fetch(tuple(inner)).transpose(kept + dropped)
        return values.reshape(_shape_of(window))


@dataclass(frozen=True, slots=True)
class _Run:
    """What is read at once along one axis."""

    window: slice  #: of the source
    within: slice | npt.NDArray[np.int64] | None  #: what of it was asked for: all of it if None
    out: slice  #: where that goes


def _runs(pick: Pick, unit: int) -> list[_Run]:
    if isinstance(pick, range):
        forth = pick if pick.step > 0 else pick[::-1]
        turned = None if pick.step > 0 else slice(None, None, -1)
        return [_Run(slice(forth[0], forth[-1] + 1, forth.step), turned, slice(0, len(pick)))]
    # Positions in one chunk are read together: the chunk is decoded anyway.
    apart = np.diff(pick) > 1 if unit == 1 else np.diff(pick // unit) > 0
    edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(pick)]
    runs = []
    for a, b in itertools.pairwise(edges):
        low, high = int(pick[a]), int(pick[b - 1]) + 1
        within = None if high - low == b - a else pick[a:b] - low
        runs.append(_Run(slice(low, high, 1), within, slice(a, b)))
    return runs


# Arrays


class SourceArray(da.Array):  # type: ignore[misc]  # mypy does not look at Dask
    """A Dask array whose indices go to the source it reads from; otherwise like any other."""

    #: What all of the array, and nothing else, can be read from.
    source: Source

    @classmethod
    def over(cls, source: Source, chunks: Chunks) -> SourceArray:
        """All of a source, in chunks."""
        name = f"read-{da.core.tokenize(source.token, chunks)}"
        meta = source.empty((0,) * source.ndim)
        array = da.from_array(source, chunks, name=name, lock=False, meta=meta)
        # A new Array is of the class that makes it; all else is taken from what Dask made.
        self: SourceArray = cls(array.dask, array.name, array.chunks, meta=array._meta)
        self.source = source
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SourceArray.over, (self.source, self.chunks)

    def __getitem__(self, key: Any) -> Any:
        plan = read_key(key, self.shape)
        if isinstance(plan, Points):
            if any(isinstance(part, np.ndarray) and not part.size for part in plan.lists):
                # Dask fails where lists are empty.
                shape = np.broadcast_to(np.empty(()), self.shape)[key].shape
                return da.from_array(self.source.empty(shape), chunks=-1)
            points = self[plan.slices].vindex[plan.lists].transpose(plan.axes)
            return points[plan.new]
        within = self.source if isinstance(self.source, _Picked) else None
        if plan is None or (within and any(map(_turns, within.picks, plan.picks))):
            return super().__getitem__(key)
        source, picks = self.source, plan.picks
        if within:
            source, picks = within.source, tuple(map(_compose, within.picks, picks))
        chunks = tuple(map(_cut, self.chunks, plan.picks))
        source = _Picked(source, picks)
        if plan.layout != tuple(range(self.ndim)):
            source = Arranged(source, plan.layout)
            chunks = tuple((1,) if axis is None else chunks[axis] for axis in plan.layout)
        array = SourceArray.over(source, chunks)
        return array if plan.then is None else da.Array.__getitem__(array, plan.then)


def _turns(outer: Pick, inner: Pick) -> bool:
    """Whether `inner` puts positions that ascend into another order."""
    return not isinstance(outer, range) and isinstance(inner, range) and inner.step < 0


def _compose(outer: Pick, inner: Pick) -> Pick:
    """Which positions of the source `inner` means, counted among those that `outer` has."""
    if isinstance(inner, range):
        if not inner:
            return range(0)
        stop = inner[-1] + (1 if inner.step > 0 else -1)
        return outer[inner.start : None if stop < 0 else stop : inner.step]
    return outer.start + inner * outer.step if isinstance(outer, range) else outer[inner]


def _cut(sizes: tuple[int, ...], pick: Pick) -> tuple[int, ...]:
    """Chunks of what is picked along an axis in chunks of these `sizes`."""
    if not len(pick):
        return (0,)
    edges = np.cumsum((0, *sizes))
    if isinstance(pick, range):
        forth = pick if pick.step > 0 else pick[::-1]
        # How many of the range come before each edge.
        before = np.clip(-((forth.start - edges) // forth.step), 0, len(forth))
    else:
        before = np.searchsorted(pick, edges)
    counts = [count for count in np.diff(before).tolist() if count]
    return tuple(counts[::-1] if isinstance(pick, range) and pick.step < 0 else counts)


def group_chunks(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    unit: tuple[int, ...] | None,
    nbytes: int = CHUNK_BYTES,
) -> Chunks:
    """Chunks of about `nbytes`, or of one unit where that is more, made of whole units.

    Without units, of whole rows as they lie one after another.
    """
    limit = max(1, nbytes // max(1, dtype.itemsize))
    if unit is None:
        # The last axes whole, as many as fit; of the one before them as much as fits.
        sizes, left = list(shape), limit
        for axis in reversed(range(len(shape))):
            sizes[axis] = max(1, min(shape[axis], left))
            left //= sizes[axis]
    elif math.prod(unit) > limit // 2 or dtype.hasobject:
        sizes = [min(u, n) for u, n in zip(unit, shape, strict=True)]
    else:
        previous = tuple(max(1, min(u, n)) for u, n in zip(unit, shape, strict=True))
        grouped: Chunks = da.core.normalize_chunks(
            "auto", shape, limit=nbytes, dtype=dtype, previous_chunks=previous
        )
        return grouped
    chunks: Chunks = da.core.normalize_chunks(tuple(sizes), shape, dtype=dtype)
    return chunks


def unique_token(what: str) -> str:
    """A token of something of which nobody can tell whether it reads the same."""
    return f"{what}-{uuid.uuid4().hex}"

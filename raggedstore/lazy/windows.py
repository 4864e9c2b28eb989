"""Lazy arrays over something that can read windows, and what indexing makes of them.

Strategy. A `Source` reads windows: one slice with a positive step for each axis, and nothing
else. That is little enough for any file format, tile server or function to do. A `SourceArray` is
a Dask array that knows its source, and indexing it gives another one over fewer positions of the
same source, cut where the first one's chunks are: nothing is left for Dask's optimizer to find
out, and what was not asked for is not read, whatever the key.

picks    Of each axis the positions asked for: a range, which slices of any step make of one
         another, or ascending positions, from a list or mask. A list in another order or with
         repeats becomes ascending positions and a key for what was read.
now      What is one block of Dask's is one read whoever does it, so `compute` reads it right here,
         where nobody asked for another scheduler; and small windows of more blocks, where the
         source is as fast by itself. Dask's graph is made when Dask asks for it: most arrays are
         an index on the way to another, or a window that is read.
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
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import get_scheduler
from dask.callbacks import Callback
from xxhash import xxh3_128_hexdigest

from raggedstore.errors import (
    FormatError,
    KeyTypeError,
    OutOfRangeError,
    RaggedStoreError,
    StorageError,
)
from raggedstore.lazy.keys import Layout, Pick, Plan, Points, read_key

__all__ = [
    "CHUNK_BYTES",
    "READ_AT_ONCE",
    "Arranged",
    "Chunks",
    "Source",
    "SourceArray",
    "Values",
    "Window",
    "group_chunks",
    "source_of",
    "unique_token",
    "view_of",
]

#: Of each axis the sizes of the chunks along it, as Dask has them.
Chunks = tuple[tuple[int, ...], ...]
#: A slice with a positive step for each axis.
Window = tuple[slice, ...]
Values = npt.NDArray[Any]

#: What a task of Dask should read at least, where the source's chunks are smaller: just less than
#: 32 MiB, from which on glibc asks the system for new memory for each array, and gives it back.
CHUNK_BYTES = 2**25 - 2**16
#: Units along an axis, from which on Dask is not shown each of them.
_MANY_UNITS = 2**14

#: Whether a source is read by this thread alone, and not by one of several of Dask's: it may then
#: use threads of its own.
READ_AT_ONCE = ContextVar("READ_AT_ONCE", default=False)


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
    #: Whether one call reads a window as fast as threads would that share it.
    at_once: bool = False
    #: Whether what it reads is nobody else's.
    fresh: bool = False
    #: Whether the values lie in memory as they are, one row after another, without being read.
    mapped: bool = False
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
                values = self._as_array(self.read(window))
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

    def _as_array(self, values: Any) -> Values:
        if not self.shape and values is np.ma.masked:
            return np.ma.masked_array(np.zeros((), self.dtype), True)
        if not self.shape and not isinstance(values, np.ndarray):
            # What NumPy makes of an array of no dimensions has neither its byte order nor, as a
            # string, its length.
            made: Values = np.empty((), self.dtype)
            if self.dtype.hasobject or np.asarray(values).dtype.type is self.dtype.type:
                made[()] = values
                return made
        return np.asanyarray(values)

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


def view_of(values: Values, window: Window) -> Values:
    """What a window has of an array: an array, even of no dimensions, where NumPy has scalars."""
    key: Any = (*window, ...)
    view: Values = values[key]
    return view


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
        self.at_once, self.fresh = source.at_once, source.fresh
        lists = [xxh3_128_hexdigest(p.tobytes()) for p in self.picks if isinstance(p, np.ndarray)]
        ranges = [p for p in self.picks if isinstance(p, range)]
        self.token = _token(source.token, ranges, lists, [type(p).__name__ for p in self.picks])

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
        self.at_once, self.fresh = source.at_once, source.fresh
        self.token = _token(source.token, layout)

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

    __slots__ = ("_graph", "_source", "_source_name")

    _graph: Any  #: None until Dask asks for it
    _source: Source | None
    _source_name: str  #: of the array as long as it is just what `_source` reads

    @classmethod
    def over(cls, source: Source, chunks: Chunks) -> SourceArray:
        """All of a source, in chunks."""
        # What makes a new Array would ask for the graph. These are what Dask itself sets where it
        # makes an array into another.
        self: SourceArray = object.__new__(cls)
        self._name = self._source_name = f"read-{_token(source.token, chunks)}"
        self._chunks, self._meta = chunks, source.empty((0,) * source.ndim)
        self._source, self._graph = source, None
        return self

    @classmethod
    def around(cls, array: da.Array) -> SourceArray:
        """What Dask made of one of these, with the same meaning of keys, and no source."""
        self: SourceArray = object.__new__(cls)
        self._name, self._chunks, self._meta = array.name, array.chunks, array._meta
        self._source, self._source_name, self._graph = None, "", array.dask
        return self

    @property
    def dask(self) -> Any:
        """Dask's graph of it."""
        if self._graph is None:
            array = da.from_array(
                self._source, self.chunks, name=self.name, lock=False, meta=self._meta
            )
            self._graph = array.dask
        return self._graph

    @dask.setter
    def dask(self, graph: Any) -> None:
        self._graph = graph

    @property
    def source(self) -> Source | None:
        """What all of the array, and nothing else, can be read from.

        None once something was assigned to it, by an index or as ``out=`` of a ufunc: Dask makes
        another array of the same object then.
        """
        return self._source if self.name == self._source_name else None

    def __reduce__(self) -> Any:
        source = self.source
        if source is None:
            return super().__reduce__()
        return SourceArray.over, (source, self.chunks)

    def compute(self, **kwargs: Any) -> Any:
        """The values, as Dask computes them.

        One block is read right here, and so are several small ones where threads would not be
        faster; unless options, a scheduler, pool or callbacks of Dask or a client of a cluster say
        who else is to do it.
        """
        source = self.source
        if source is None or kwargs or _is_run_elsewhere():
            return super().compute(**kwargs)
        if self.npartitions != 1 and not (source.at_once and self.nbytes <= CHUNK_BYTES):
            return super().compute()
        token = READ_AT_ONCE.set(True)
        try:
            values = source[tuple(slice(0, n) for n in self.shape)]
        finally:
            READ_AT_ONCE.reset(token)
        # A copy, as Dask makes one: what was read may be the source's own.
        return values if source.fresh and values.flags.c_contiguous else values.copy()

    def __getitem__(self, key: Any) -> Any:
        source = self.source
        if source is None and any(map(math.isnan, self.shape)):  # a mask was applied to it
            return self._by_dask(key)
        plan = read_key(key, self.shape)
        if isinstance(plan, Points):
            if any(isinstance(part, np.ndarray) and not part.size for part in plan.lists):
                # Dask fails where lists are empty.
                shape = np.broadcast_to(np.empty(()), self.shape)[key].shape
                return da.from_array(np.empty_like(self._meta, shape=shape), chunks=-1)
            points = self[plan.slices].vindex[plan.lists].transpose(plan.axes)
            return SourceArray.around(points[plan.new])
        if plan is None:
            return self._by_dask(key)
        if source is None:
            return SourceArray.around(_step_by_step(self, plan))
        picks, chunks = list(plan.picks), list(map(_cut, self.chunks, plan.picks))
        if isinstance(source, _Picked):
            picks = list(map(_compose, source.picks, picks))
            source = source.source
        # A list backwards, or a list of what is backwards, is read forwards and turned then.
        turned = [axis for axis, pick in enumerate(picks) if _descends(pick)]
        for axis in turned:
            picks[axis], chunks[axis] = picks[axis][::-1], chunks[axis][::-1]
        source = _Picked(source, tuple(picks))
        if plan.layout != tuple(range(self.ndim)):
            source = Arranged(source, plan.layout)
            chunks = [(1,) if axis is None else chunks[axis] for axis in plan.layout]
        array: Any = SourceArray.over(source, tuple(chunks))
        if turned:
            ways = (-1 if axis in turned else None for axis in plan.layout)
            array = da.Array.__getitem__(array, tuple(slice(None, None, way) for way in ways))
        if plan.then is not None:
            array = da.Array.__getitem__(array, plan.then)
        return array if isinstance(array, SourceArray) else SourceArray.around(array)

    def _by_dask(self, key: Any) -> Any:
        """What Dask makes of a key that is not read here."""
        try:
            return super().__getitem__(key)
        except (IndexError, OverflowError) as error:
            raise OutOfRangeError(
                f"index {key!r:.80} of an array of {self.shape}: {error}"
            ) from error
        except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise KeyTypeError(
                f"index {key!r:.80} of an array of {self.shape} is not understood: {error}"
            ) from error


def _step_by_step(array: da.Array, plan: Plan) -> da.Array:
    """What a key means to an array that no source has all of, by keys that Dask takes as NumPy."""
    keys = [_slice_of(pick) if isinstance(pick, range) else slice(None) for pick in plan.picks]
    array = da.Array.__getitem__(array, tuple(keys))
    for axis, pick in enumerate(plan.picks):
        if not isinstance(pick, range):
            array = da.Array.__getitem__(array, (*(slice(None),) * axis, pick))
    kept = [axis for axis in plan.layout if axis is not None]
    left_out = [axis for axis in range(array.ndim) if axis not in kept]
    array = array.transpose((*left_out, *kept))
    new = (None if axis is None else slice(None) for axis in plan.layout)
    array = da.Array.__getitem__(array, ((0,) * len(left_out)))
    array = da.Array.__getitem__(array, tuple(new))
    return array if plan.then is None else da.Array.__getitem__(array, plan.then)


def _slice_of(pick: range) -> slice:
    if not pick:
        return slice(0, 0)
    stop = pick[-1] + (1 if pick.step > 0 else -1)
    return slice(pick.start, None if stop < 0 else stop, pick.step)


def _token(*parts: Any) -> str:
    """Equal for plain values that are, and made in a fraction of the time that Dask's takes."""
    return str(xxh3_128_hexdigest(repr(parts).encode()))


def _descends(pick: Pick) -> bool:
    return not isinstance(pick, range) and len(pick) > 1 and bool(pick[0] > pick[-1])


def source_of(x: Any) -> Source | None:
    """What an array reads from, where it is a lazy array and nothing but that."""
    return x.source if isinstance(x, SourceArray) else None


def _is_run_elsewhere() -> bool:
    """Whether Dask has been told who is to run tasks, or has somebody who watches them."""
    return bool(get_scheduler() is not None or dask.config.get("pool", None) or Callback.active)


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
        previous = [max(1, min(u, n)) for u, n in zip(unit, shape, strict=True)]
        for axis, size in enumerate(shape):
            # Dask goes through all of them; of very many, several are taken together first.
            while size > previous[axis] * _MANY_UNITS and math.prod(previous) < limit // 4:
                previous[axis] *= 2
        grouped: Chunks = da.core.normalize_chunks(
            "auto", shape, limit=nbytes, dtype=dtype, previous_chunks=tuple(previous)
        )
        return grouped
    chunks: Chunks = da.core.normalize_chunks(tuple(sizes), shape, dtype=dtype)
    return chunks


def unique_token(what: str) -> str:
    """A token of something of which nobody can tell whether it reads the same."""
    return f"{what}-{uuid.uuid4().hex}"

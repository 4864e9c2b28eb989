"""Adapters: a Dask array over anything with a shape, a dtype and `__getitem__`, nothing read.

What a thing is decides three questions about it: what its own chunks are, who else must not
read meanwhile, and how another process comes by it.

                                   chunks          lock               in another process
a map of a file (.npy)             rows            none               mapped again by path
h5py, PyTables, netCDF4            its own         one for libhdf5    opened again by path
Zarr                               its own         none               pickled
a store's field of fixed shape     segments        none               opened again by path, version
an array in memory                 Dask's          none               sent
anything else                      its `chunks`    its own            pickled
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.utils import SerializableLock

from raggedstore.errors import UsageError
from raggedstore.layout import DATA
from raggedstore.lazy.arguments import chunking, cut, data_type, lock_given, sizes
from raggedstore.lazy.direct import past_libhdf5
from raggedstore.lazy.files import HDF5_LOCK, Hdf5Source, MemmapSource, hdf5_kind, memmap_under
from raggedstore.lazy.windows import (
    CHUNK_BYTES,
    Chunks,
    Source,
    SourceArray,
    Window,
    group_chunks,
    unique_token,
    view_of,
)
from raggedstore.samples import FieldView, check_unmoved
from raggedstore.store.store import Store

__all__ = ["adapt", "laid_out"]

#: What h5py, PyTables and netCDF4 call what can be found again by its name in a file.
_DATASETS = ("Dataset", "Array", "CArray", "EArray", "Table", "Variable")


def adapt(x: Any, *, chunks: Any = None, lock: Any = None) -> da.Array:
    """A Dask array over `x`, of which nothing is read until something is computed.

    Indexing it gives an array over what was asked for, and no more is read: slices, ints, new
    axes, a list or a mask. Lists for several axes are Dask's matter and read whole chunks.

    Parameters
    ----------
    x
        A memory map (``np.load(path, mmap_mode="r")``), an h5py dataset, an array of PyTables,
        a Zarr array, a netCDF4 variable, a field of fixed shape (``store["label"]``), a NumPy
        array, or an object of one's own with ``shape``, ``dtype`` and ``__getitem__``, which is
        given a tuple of slices with positive steps, one an axis, and never an empty one. A Dask
        array is returned as it is.
    chunks
        As Dask takes them. By default whole chunks of `x`, as many as come to some 32 MiB, or
        as many rows where it has none (no ``chunks`` or ``chunkshape``).
    lock
        Held while `x` is read: by default one for all that use libhdf5, none for NumPy, Zarr and
        stores, one of its own for an object of one's own. ``False`` for one that several threads
        may read at once, ``True`` for one of its own; or any lock.

    Raises
    ------
    UsageError
        `x` is nothing to read arrays from, or `chunks` or `lock` make no sense for it.
    MissingExtraError
        Dask is not installed.

    Examples
    --------
    >>> x = lazy.adapt(np.load("frames.npy", mmap_mode="r"))
    >>> x[::100].mean().compute()
    """
    if isinstance(x, da.Array):
        if chunks is None:
            return x
        with chunking(chunks, x.shape):
            return x.rechunk(chunks)
    return SourceArray.over(*laid_out(x, chunks, lock))


def laid_out(x: Any, chunks: Any = None, lock: Any = None) -> tuple[Source, Chunks]:
    """What `adapt` makes of what is no Dask array, and how it is cut, before it becomes one."""
    source = _source_of(x)
    if lock is not None:
        source.lock = lock_given(lock)
    if chunks is not None:
        return source, cut(chunks, source.shape, source.dtype, source.unit)
    if isinstance(source, _FieldSource):
        return source, source.chunks()
    return source, group_chunks(source.shape, source.dtype, source.unit)


def _source_of(x: Any) -> Source:
    if isinstance(x, (np.ndarray, np.generic)):
        array = np.asanyarray(x)
        base = None if isinstance(array, np.ma.MaskedArray) else memmap_under(array)
        return _MemorySource(array) if base is None else MemmapSource(array, base)
    if isinstance(x, FieldView):
        return _FieldSource(x)
    named = type(x).__name__
    if not all(hasattr(x, name) for name in ("shape", "dtype", "__getitem__")):
        raise UsageError(f"adapt takes what has shape, dtype and __getitem__, not a {named}")
    kind = hdf5_kind(x)
    if kind == "tables" and named == "VLArray":
        raise UsageError("a VLArray is ragged: there is no one shape for its rows to have")
    if kind is not None and named in _DATASETS:
        return past_libhdf5(Hdf5Source(kind, x))
    return _ObjectSource(x)


class _MemorySource(Source):
    """An array in memory, masked or not."""

    at_once = fresh = True

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self.masked = isinstance(array, np.ma.MaskedArray)
        self.token = unique_token("array")
        self._array = array

    def __repr__(self) -> str:
        return f"array of {self.shape} {self.dtype}"

    def read(self, window: Window) -> Any:
        # A copy: who computes a result may write to it.
        return view_of(self._array, window).copy()


def memory_of(source: Source | None) -> npt.NDArray[Any] | None:
    """The array that a source reads from, where it lies in memory and is not masked."""
    return source._array if isinstance(source, _MemorySource) and not source.masked else None


class _ObjectSource(Source):
    """Anything with a shape, a dtype and `__getitem__`."""

    def __init__(self, x: Any) -> None:
        self.shape, self.dtype = sizes(x.shape, "shape"), data_type(x.dtype, "dtype")
        unit = getattr(x, "chunks", None) or getattr(x, "chunkshape", None)
        if isinstance(unit, tuple) and len(unit) == self.ndim and all(map(_is_size, unit)):
            self.unit = tuple(map(int, unit))
        self.token = unique_token("object")
        self.lock = _lock_for(x)
        self._x = x

    def __repr__(self) -> str:
        return f"{type(self._x).__name__} of {self.shape} {self.dtype}"

    def read(self, window: Window) -> Any:
        return self._x[window]


def _is_size(n: object) -> bool:
    return isinstance(n, (int, np.integer)) and bool(n > 0)


def _lock_for(x: Any) -> AbstractContextManager[Any]:
    if hdf5_kind(x) is not None:
        return HDF5_LOCK
    if type(x).__module__.partition(".")[0] == "zarr":
        return nullcontext()
    # By identity, so that all who adapt the same object wait for one another.
    return cast(AbstractContextManager[Any], SerializableLock(f"raggedstore {id(x)}"))


class _FieldSource(Source):
    """A field of fixed shape of a store, selection or concatenation: (n, ...)."""

    at_once = True

    def __init__(self, view: FieldView) -> None:
        field = view.field
        if field.kind != "array" or field.is_ragged:
            raise UsageError(
                f"field {view.name!r} has samples of different shapes: "
                f"lazy.field reads it in partitions"
            )
        self.shape = (len(view), *(size or 0 for size in field.shape))
        self.dtype = field.dtype
        self.token = unique_token("field")
        self._view, self._moved = view, view._samples.moved

    def __repr__(self) -> str:
        return repr(self._view)

    def read(self, window: Window) -> Any:
        check_unmoved(self._view._samples, self._moved)
        return self._view.batch(window[0])[(slice(None), *window[1:])]

    def chunks(self) -> Chunks:
        """Whole segments, as many as come to `CHUNK_BYTES`; larger ones cut between chunks."""
        row = max(1, self.dtype.itemsize * math.prod(self.shape[1:]))
        most = max(1, CHUNK_BYTES // row)
        sizes = [0]
        for rows in self._pieces(most):
            if sizes[-1] and sizes[-1] + rows > most:
                sizes.append(0)
            sizes[-1] += rows
        return (tuple(sizes), *((size,) for size in self.shape[1:]))

    def _pieces(self, most: int) -> Iterator[int]:
        """Numbers of rows that are read by themselves, `most` where that can be."""
        samples, name = self._view._samples, self._view.name
        if not isinstance(samples, Store):
            yield from _pieces_of(len(samples), most)
            return
        snapshot = samples._snapshot
        for number, rows in enumerate(np.diff(snapshot.parts.starts).tolist()):
            step = most
            if rows > most:
                chunk = snapshot.reader(number).table.datasets[name][DATA].chunk_rows
                step = max(1, most // chunk) * chunk
            yield from _pieces_of(rows, step)


def _pieces_of(rows: int, step: int) -> Iterator[int]:
    return (min(step, rows - start) for start in range(0, rows, step))

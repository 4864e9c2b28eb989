"""Fields whose values lie in other people's files: what `Items` is made of.

    Dense       one array with a sample in each row
    Flat        all samples flattened into one array, and where each begins and ends in it
    Files       a .npy file a sample
    ArrayLike   rows of anything that is indexed like an array but is none: h5py, Zarr, PyTables

Nothing is read before a sample is asked for. One sample of a memory map is a view of it; many are
copied together, so that what a batch becomes never changes a file or another batch. Arrays over
memory maps pickle by the path of their file and where in it they lie, never by value.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, copy_ranges, offsets_of
from raggedstore.errors import CorruptionError, FormatError, UsageError
from raggedstore.indexing import Positions
from raggedstore.samples import Column, present_one
from raggedstore.schema import Field
from raggedstore.segment.context import check_room
from raggedstore.store.files import storage_errors

__all__ = ["ArrayLike", "Dense", "Files", "Flat", "OnDisk", "on_disk", "ragged_field"]

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]


class OnDisk(ABC):
    """One field of some samples."""

    __slots__ = ("field",)
    field: Field

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def one(self, position: int) -> Any:
        """The stored value of one sample; a negative position counts from the end."""

    @abstractmethod
    def sliced(self, key: slice) -> OnDisk:
        """The field of the samples of a slice, nothing read."""

    @abstractmethod
    def take(self, positions: Positions) -> Column:
        """The samples at the checked `positions`, copied."""

    @abstractmethod
    def shapes(self, positions: Positions) -> Int64s:
        """(k, d) shapes of the samples at the checked `positions`."""

    def windows(self, positions: Positions, starts: Positions, stops: Positions) -> RaggedBatch:
        """Rows ``[start, stop)``, cut to its length, of each of the samples at `positions`."""
        raise UsageError(f"{self.field!r} has no ragged dimension to cut")

    def whole(self) -> Column:
        """All samples as one array or batch over the file, nothing copied."""
        raise UsageError(f"{self!r} is no one array in one file: read it by batch()")

    def shown(self) -> Any:
        """What gives the value that users see of a sample, by its position."""
        return self

    def taking(self) -> Any:
        """What takes any positions and an axis, if there is such: else None."""
        return None

    def __getitem__(self, position: int) -> Any:
        return present_one(self.field, self.one(position))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} samples, {self.field!r}>"

    def __getstate__(self) -> dict[str, Any]:
        names = (name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ()))
        return {name: _packed(getattr(self, name)) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value.opened() if isinstance(value, _Place) else value)
            if name in ("_array", "_values") and isinstance(value, np.ndarray):
                # Unpickled arrays are in the machine's byte order, whatever theirs was.
                setattr(self, name, value.astype(state["field"].dtype, copy=False))


def on_disk(value: Any, name: str) -> OnDisk:
    """The field that `value` holds: an array, a RaggedBatch or anything indexed like an array."""
    if isinstance(value, OnDisk):
        return value
    if isinstance(value, RaggedBatch):
        if not value.ndim:
            return Dense(value.values)
        return Flat(ragged_field(value.dtype, value.shapes), value)
    if not all(hasattr(value, what) for what in ("shape", "dtype", "__getitem__")):
        raise UsageError(
            f"field {name!r}: an array, a RaggedBatch or something with shape, dtype and "
            f"indexing is meant, not {type(value).__name__}; files are for from_npy"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise UsageError(f"field {name!r}: samples hold no masks: fill what is masked first")
    shape = tuple(value.shape)
    if not shape:
        raise UsageError(f"field {name!r}: an array of no dimensions has no samples")
    if 0 in shape[1:]:  # kept as a ragged one, as in a store
        shapes = np.tile(np.array(shape[1:], np.int64), (shape[0], 1))
        empty = np.empty(0, value.dtype), np.zeros(shape[0] + 1, np.int64)
        return Flat(Field(value.dtype, shape[1:]), RaggedBatch.trusted(*empty, shapes))
    return Dense(value) if isinstance(value, np.ndarray) else ArrayLike(value, range(shape[0]))


def ragged_field(dtype: np.dtype[Any], shapes: Int64s) -> Field:
    """The field of samples of (n, d) `shapes`: ragged in their first dimension, and where they
    differ in others."""
    differs = (shapes[:, 1:] != shapes[:1, 1:]).any(axis=0) | (len(shapes) == 0)
    tail = [
        None if ragged else int(size)
        for ragged, size in zip(differs, shapes[0, 1:] if len(shapes) else differs, strict=True)
    ]
    return Field(dtype, (None, *tail) if shapes.shape[1] else ())


class Dense(OnDisk):
    """One array, (n, ...): a row a sample."""

    __slots__ = ("_array",)

    def __init__(self, array: Array) -> None:
        self.field = Field(array.dtype, array.shape[1:])
        # Indexing np.memmap itself takes a microsecond, most of it for making another np.memmap.
        self._array = array.view(np.ndarray)

    def __len__(self) -> int:
        return len(self._array)

    def one(self, position: int) -> Any:
        return self._array[position]

    def sliced(self, key: slice) -> Dense:
        return Dense(self._array[key])

    def take(self, positions: Positions) -> Array:
        if self._is_plain():
            return self._array.take(positions, axis=0)
        picked: Array = self._array[positions]
        return picked

    def shapes(self, positions: Positions) -> Int64s:
        return np.tile(np.array(self.field.shape, np.int64), (len(positions), 1))

    def whole(self) -> Array:
        return self._array

    def shown(self) -> Array:
        return self._array

    def taking(self) -> Any:
        return self._array.take if self._is_plain() else None

    def _is_plain(self) -> bool:
        """Whether NumPy's `take` takes from the array itself, and not from a copy of it all."""
        return self._array.flags.c_contiguous and self._array.flags.aligned


class Flat(OnDisk):
    """Samples flattened into one array."""

    __slots__ = ("_shapes", "_starts", "_stops", "_values")

    def __init__(self, field: Field, batch: RaggedBatch) -> None:
        self.field = field
        self._values = batch.values.view(np.ndarray)
        self._starts, self._stops = batch.offsets[:-1], batch.offsets[1:]
        self._shapes = None if field.is_vector else batch.shapes

    def __len__(self) -> int:
        return len(self._starts)

    def one(self, position: int) -> Array:
        values = self._values[self._starts[position] : self._stops[position]]
        return values if self._shapes is None else values.reshape(self._shapes[position])

    def sliced(self, key: slice) -> Flat:
        part = Flat.__new__(Flat)
        part.field, part._values = self.field, self._values
        part._starts, part._stops = self._starts[key], self._stops[key]
        part._shapes = None if self._shapes is None else self._shapes[key]
        return part

    def take(self, positions: Positions) -> RaggedBatch:
        return self._copied(self._starts[positions], self._stops[positions], self.shapes(positions))

    def _copied(self, starts: Int64s, stops: Int64s, shapes: Int64s) -> RaggedBatch:
        offsets = offsets_of(stops - starts)
        check_room(int(offsets[-1]) * self.field.dtype.itemsize)
        values = np.empty(int(offsets[-1]), self.field.dtype)
        copy_ranges(self._values, starts, stops, offsets, values)
        return RaggedBatch.trusted(values, offsets, shapes)

    def shapes(self, positions: Positions) -> Int64s:
        if self._shapes is not None:
            return self._shapes[positions]
        lengths: Int64s = self._stops[positions] - self._starts[positions]
        return lengths[:, None]

    def windows(self, positions: Positions, starts: Positions, stops: Positions) -> RaggedBatch:
        low, high, shapes = _cut(self.shapes(positions), starts, stops)
        row, first = shapes[:, 1:].prod(axis=1), self._starts[positions]
        return self._copied(first + low * row, first + high * row, shapes)

    def whole(self) -> RaggedBatch:
        if (self._starts[1:] != self._stops[:-1]).any():
            raise UsageError("samples that do not lie one after another make no one batch")
        first, last = (self._starts[0], self._stops[-1]) if len(self) else (0, 0)
        offsets = np.append(self._starts, last) - first
        shapes = self.shapes(np.arange(len(self)))
        return RaggedBatch.trusted(self._values[first:last], offsets, shapes)


class Files(OnDisk):
    """A .npy file a sample, each opened when it is asked for and closed again.

    Parameters
    ----------
    paths
        Of the files.
    shapes
        (n, d) int64, of the array in each.
    places
        (n,) int64: at which byte its values begin.
    fortran
        (n,) bool: whether they lie column by column.
    mode
        "r", or "c" for single samples that may be written to in memory.
    """

    __slots__ = ("_fortran", "_mode", "_paths", "_places", "_shapes")

    def __init__(
        self,
        dtype: np.dtype[Any],
        paths: Sequence[str],
        shapes: Int64s,
        places: Int64s,
        fortran: npt.NDArray[np.bool_],
        mode: str,
    ) -> None:
        self.field = ragged_field(dtype, shapes)
        self._paths, self._shapes, self._places = paths, shapes, places
        self._fortran, self._mode = fortran, mode

    def __len__(self) -> int:
        return len(self._paths)

    def one(self, position: int) -> Any:
        shape, path = tuple(self._shapes[position].tolist()), self._paths[position]
        if not math.prod(shape):  # there is nothing to map
            return np.empty(shape, self.field.dtype)
        place = int(self._places[position])
        with storage_errors(Path(path), "be opened"), open(path, "rb") as file:
            size = math.prod(shape) * self.field.dtype.itemsize
            if os.fstat(file.fileno()).st_size < place + size:
                raise _short(path)
            access = mmap.ACCESS_COPY if self._mode == "c" else mmap.ACCESS_READ
            mapped = mmap.mmap(file.fileno(), place + size, access=access)
        order: Literal["C", "F"] = "F" if self._fortran[position] else "C"
        array: Array = np.ndarray(shape, self.field.dtype, mapped, place, order=order)
        return array if shape else array[()]

    def sliced(self, key: slice) -> Files:
        part = Files.__new__(Files)
        part.field, part._paths, part._shapes = self.field, self._paths[key], self._shapes[key]
        part._places, part._fortran = self._places[key], self._fortran[key]
        part._mode = self._mode
        return part

    def take(self, positions: Positions) -> Column:
        shapes = self.shapes(positions)
        batch = self._read(positions, shapes[:, 0] * 0 if shapes.shape[1] else None, shapes)
        return batch if self.field.is_ragged else batch.values

    def shapes(self, positions: Positions) -> Int64s:
        return self._shapes[positions]

    def windows(self, positions: Positions, starts: Positions, stops: Positions) -> RaggedBatch:
        low, _, shapes = _cut(self.shapes(positions), starts, stops)
        return self._read(positions, low, shapes)

    def _read(self, positions: Positions, low: Int64s | None, shapes: Int64s) -> RaggedBatch:
        """Of each sample the rows from `low` on, as many as its shape says."""
        offsets = offsets_of(shapes.prod(axis=1))
        check_room(int(offsets[-1]) * self.field.dtype.itemsize)
        values = np.empty(int(offsets[-1]), self.field.dtype)
        raw, size = values.view(np.uint8), self.field.dtype.itemsize
        skipped = np.zeros(len(shapes), np.int64) if low is None else low
        bytes_before = self._places[positions] + skipped * shapes[:, 1:].prod(axis=1) * size
        for k, position in enumerate(positions.tolist()):
            if self._fortran[position]:
                rows = self.one(position)[skipped[k] : skipped[k] + shapes[k, 0]]
                values[offsets[k] : offsets[k + 1]] = rows.reshape(-1)
                continue
            path, out = self._paths[position], raw[offsets[k] * size : offsets[k + 1] * size]
            with storage_errors(Path(path), "be read"), open(path, "rb", buffering=0) as file:
                file.seek(int(bytes_before[k]))
                if _read_into(file, out) < len(out):
                    raise _short(path)
        return RaggedBatch.trusted(values, offsets, shapes)


class ArrayLike(OnDisk):
    """Rows of something indexed like an array: `which` of them.

    It is asked for single rows and for slices only, in the order in which they lie.
    """

    __slots__ = ("_array", "_which")

    def __init__(self, array: Any, which: range) -> None:
        self.field = Field(array.dtype, tuple(array.shape[1:]))
        self._array, self._which = array, which

    def __len__(self) -> int:
        return len(self._which)

    def one(self, position: int) -> Any:
        return self._array[self._which[position]]

    def sliced(self, key: slice) -> ArrayLike:
        return ArrayLike(self._array, self._which[key])

    def take(self, positions: Positions) -> Array:
        rows = self._which.start + self._which.step * positions
        wanted, back = np.unique(rows, return_inverse=True)
        out = np.empty((len(wanted), *self._array.shape[1:]), self.field.dtype)
        edges = [0, *(np.flatnonzero(np.diff(wanted) != 1) + 1).tolist(), len(wanted)]
        for a, b in itertools.pairwise(edges):
            if b > a:
                got = self._array[int(wanted[a]) : int(wanted[b - 1]) + 1]
                if isinstance(got, np.ma.MaskedArray) or np.asarray(got).dtype != out.dtype:
                    what = "masked values" if isinstance(got, np.ma.MaskedArray) else got.dtype
                    raise FormatError(
                        f"{type(self._array).__name__} said that it holds {out.dtype}, and gives "
                        f"{what}: give it to lazy.adapt, or an array of what it gives"
                    )
                out[a:b] = got
        if len(wanted) != len(rows) or (np.diff(back) != 1).any():
            out = out[back]
        return out

    def shapes(self, positions: Positions) -> Int64s:
        return np.tile(np.array(self.field.shape, np.int64), (len(positions), 1))


def _cut(shapes: Int64s, starts: Int64s, stops: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """The rows ``[start, stop)`` cut to samples' lengths, and the shapes that they then have."""
    low = np.minimum(starts, shapes[:, 0])
    high = np.clip(stops, low, shapes[:, 0])
    return low, high, np.concatenate([(high - low)[:, None], shapes[:, 1:]], axis=1)


def _read_into(file: Any, out: npt.NDArray[np.uint8]) -> int:
    """Fill `out` from where the file is at; how many bytes there were."""
    done = 0
    while done < len(out):
        count = file.readinto(out[done:])
        if not count:
            break
        done += count
    return done


def _short(path: str) -> CorruptionError:
    return CorruptionError(f"{path}: shorter than its header says; it was cut, or is being written")


class _Place(NamedTuple):
    """Where in a file the values of an array over a memory map lie."""

    path: str
    mode: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    def opened(self) -> Array:
        """The array again."""
        with storage_errors(Path(self.path), "be opened"):
            raw = np.memmap(self.path, np.uint8, self.mode)  # type: ignore[call-overload]
        try:
            return np.ndarray(self.shape, self.dtype, raw, self.offset, self.strides)
        except (TypeError, ValueError):
            raise _short(self.path) from None


def _packed(value: Any) -> Any:
    """`value`, or where it lies if it is an array over a memory map of a file."""
    root = value
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None or not value.size:
        return value
    offset = (
        root.offset + value.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    )
    mode = "r+" if root.mode == "w+" else root.mode
    return _Place(
        str(Path(root.filename).absolute()), mode, offset, value.shape, value.strides, value.dtype
    )

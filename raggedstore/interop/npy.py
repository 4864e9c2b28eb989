"""Folders and files of .npy as `Items`, samples as .npy files, and large .npy files from pieces.

A folder that `to_npy` wrote explains itself by its ``schema.json``. It holds, of a field of fixed
shape, ``<field>.npy``, a sample a row; of any other ``<field>.values.npy``, all samples flattened,
``<field>.offsets.npy``, (n + 1,) where each begins, and ``<field>.shapes.npy``, (n, d), unless a
length says it all. Text lies as its bytes. Any other folder is a sample a file.

Files are written in order, under another name that is changed at the end, so that they take no more
room on the way than when they are done; the length, which is known last, is put into the header
last. Nothing is ever pickled or unpickled: arrays of objects are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from raggedstore import strictjson
from raggedstore.batch import RaggedBatch
from raggedstore.casting import as_array
from raggedstore.errors import (
    CorruptionError,
    FormatError,
    NotAStoreError,
    SampleError,
    SampleTypeError,
    SchemaError,
    UsageError,
)
from raggedstore.items import Items
from raggedstore.mapped import Dense, Files, Flat, OnDisk, on_disk
from raggedstore.progress import track
from raggedstore.samples import Samples
from raggedstore.schema import Field, Schema
from raggedstore.segment.file import Descriptor
from raggedstore.store import files
from raggedstore.store.lists import MAX_BYTES

__all__ = ["from_npy", "to_npy", "write_npy"]

Array = npt.NDArray[Any]
Source = str | os.PathLike[str]

_SCHEMA = "schema.json"
_MOST_NDIM = 64  # that NumPy's arrays can have
_MOST_OF_NOTHING = 2**24  # samples without values, which a few bytes could tell any number of
_FIELD = "data"  #: what the field of a folder or file without a name is called


# Reading


def from_npy(source: Source | Mapping[str, Source], *, mode: str = "r") -> Items:
    """The samples of .npy files, which stay where they are.

    Parameters
    ----------
    source
        A folder that `to_npy` wrote; any other folder, of which each .npy file, in the order of
        their names, is a sample, ragged in its first dimension; one .npy file, a sample a row; or
        a mapping from the names of fields to folders and files, which then lie side by side. A
        field without a name is "data".
    mode
        "r", or "c", copy on write: then single samples, slices and `Items.arrays` become tensors
        without a copy, and what is written to them stays in memory, shared by all who look at
        the same place.

    Raises
    ------
    NotAStoreError
        There is no such file, or no .npy file in a folder.
    FormatError
        A file is no .npy file, or holds Python objects, which would have to be unpickled.
    SchemaError
        Files of one folder differ in dtype or number of dimensions, or hold no numbers.
    CorruptionError
        A file is shorter than it says.
    """
    if mode not in ("r", "c"):
        raise UsageError(f"mode is 'r' to read or 'c' for copy on write, got {mode!r}")
    if isinstance(source, Mapping):
        return Items({n: _field(files.as_path(path), n, mode) for n, path in source.items()})
    path = files.as_path(source)
    with files.storage_errors(path, "be looked at"):
        is_written = (path / _SCHEMA).is_file()
    if is_written:
        return Items(_written(path, mode))
    return Items({_FIELD: _field(path, _FIELD, mode)})


@dataclass(frozen=True, slots=True)
class _Header:
    """What a .npy file begins with."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    place: int  #: the byte at which the values begin

    @classmethod
    def of(cls, path: Path) -> _Header:
        """The header of a file, held against the file's size."""
        with files.storage_errors(path, "be looked at"):
            is_there = path.exists()
        if not is_there:
            raise NotAStoreError(f"{path}: there is no such file")
        with _opened(path) as file:
            try:
                version = np.lib.format.read_magic(file)
                # Versions 2 and 3 differ from 1 in how long a header is and how it is encoded.
                read = np.lib.format.read_array_header_1_0
                shape, fortran, dtype = (
                    read(file) if version == (1, 0) else np.lib.format.read_array_header_2_0(file)
                )
            except OSError:
                raise
            except Exception as error:  # a header is Python, and its parsers raise what they like
                raise FormatError(f"{path}: not a .npy file: {error!s:.200}") from None
            place, size = file.tell(), os.fstat(file.fileno()).st_size
        fits = all(type(n) is int and 0 <= n < 2**63 for n in shape) and len(shape) <= _MOST_NDIM
        if not fits or (not math.prod(shape) * dtype.itemsize and shape[0] > _MOST_OF_NOTHING):
            raise FormatError(f"{path}: not a .npy file: the shape {shape!s:.200} makes no sense")
        if dtype.hasobject:
            raise FormatError(f"{path}: holds Python objects, which are never unpickled")
        if size < place + math.prod(shape) * dtype.itemsize:
            raise CorruptionError(f"{path}: {size} bytes are too few for {dtype} of shape {shape}")
        return cls(os.fspath(path.absolute()), dtype, shape, fortran, place)

    def mapped(self, mode: str) -> Array:
        """The array, memory-mapped."""
        if not math.prod(self.shape) * self.dtype.itemsize:  # there is nothing to map
            return np.empty(self.shape, self.dtype)
        order = "F" if self.fortran else "C"
        with files.storage_errors(Path(self.path), "be opened"):
            return np.memmap(  # type: ignore[call-overload, no-any-return]
                self.path, self.dtype, mode, self.place, self.shape, order
            )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read from; no pipe or device, which might never end."""
    with (
        files.storage_errors(path, "be read"),
        closing(Descriptor(path)) as descriptor,
        open(descriptor.fileno(), "rb", closefd=False) as file,
    ):
        yield file


def _field(path: Path, name: str, mode: str) -> OnDisk:
    """The samples of one file or folder."""
    with files.storage_errors(path, "be looked at"):
        is_file = not path.is_dir()
    if is_file:
        return on_disk(_Header.of(path).mapped(mode), name)
    with files.storage_errors(path, "be listed"):
        paths = sorted(entry for entry in path.iterdir() if entry.suffix == ".npy")
    if not paths:
        raise NotAStoreError(f"{path}: no .npy file in this folder")
    headers = [_Header.of(each) for each in paths]
    first = headers[0]
    for header in headers:
        if header.dtype != first.dtype or len(header.shape) != len(first.shape):
            raise SchemaError(
                f"{header.path}: {len(header.shape)} dimensions of {header.dtype}, where "
                f"{first.path} has {len(first.shape)} of {first.dtype}"
            )
    return Files(
        first.dtype,
        [header.path for header in headers],
        np.array([header.shape for header in headers], np.int64).reshape(len(headers), -1),
        np.array([header.place for header in headers], np.int64),
        np.array([header.fortran and len(header.shape) > 1 for header in headers]),
        mode,
    )


def _written(folder: Path, mode: str) -> dict[str, OnDisk]:
    """The fields of a folder that `to_npy` wrote."""
    path = folder / _SCHEMA
    with _opened(path) as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES) + 1)
    if len(data) > MAX_BYTES:
        raise FormatError(f"{path}: too large for a schema")
    try:
        schema = Schema.from_json(strictjson.loads(data))
    except ValueError as error:
        raise FormatError(f"{path}: describes no schema: {error}") from None
    return {name: _written_field(folder, name, field, mode) for name, field in schema.items()}


def _written_field(folder: Path, name: str, field: Field, mode: str) -> OnDisk:
    def array(what: str, dtype: Any, ndim: int, mode: str = "r") -> Array:
        header = _Header.of(folder / f"{name}{what}.npy")
        if header.dtype != dtype or len(header.shape) != ndim or (header.fortran and ndim > 1):
            raise FormatError(
                f"{header.path}: {header.dtype} of shape {header.shape}, where {ndim} dimensions "
                f"of {dtype} belong"
            )
        return header.mapped(mode)

    if not field.is_ragged:
        dense = array("", field.dtype, 1 + field.ndim, mode)
        if dense.shape[1:] != field.shape:
            raise FormatError(f"{folder}: {name}.npy has samples of shape {dense.shape[1:]}")
        return Dense(dense)
    values, offsets = array(".values", field.dtype, 1, mode), array(".offsets", np.int64, 1)
    shapes = None if field.is_vector else array(".shapes", np.int64, 2)
    try:
        checked = RaggedBatch(values, offsets, shapes)
    except SampleError as error:
        raise FormatError(f"{folder}: field {name!r}: {error}") from None
    fixed = [(axis, size) for axis, size in enumerate(field.shape) if size is not None]
    if checked.ndim != field.ndim or any((checked.shapes[:, a] != size).any() for a, size in fixed):
        raise FormatError(f"{folder}: field {name!r}: shapes that are none of {field!r}")
    # The offsets that stay on disk, not those that were copied to look at them.
    stays = checked.shapes if shapes is None else shapes.view(np.ndarray)
    return Flat(field, RaggedBatch.trusted(values, offsets.view(np.ndarray), stays))


# Writing


def write_npy(path: Source, pieces: Iterable[npt.ArrayLike]) -> tuple[int, ...]:
    """One .npy file of the rows of all `pieces`, one after another.

    Each is written as it comes: one is in memory at a time, and on the disk there is never more
    than the result. The file appears whole or not at all.

    Parameters
    ----------
    pieces
        Arrays, (k, ...) with any k; of the dtype, and but for k the shape, of the first one.

    Returns
    -------
    The shape of the array.

    Raises
    ------
    ConflictError
        The file exists.
    SampleError, SampleTypeError
        Pieces differ, or hold Python objects; nothing is left.
    UsageError
        There are no pieces.
    """
    target = files.as_path(path)
    with files.appearing(target) as temporary:
        ordered = iter(pieces)
        first = next((as_array(piece, "a piece") for piece in ordered), None)
        if first is None:
            raise UsageError(f"{target}: no pieces, and so no dtype or shape")
        if not first.ndim:
            raise SampleError(f"{target}: a piece of no dimensions has no rows")
        with _Growing(temporary, first.dtype, first.shape[1:]) as file:
            file.append(first)
            for piece in ordered:
                file.append(as_array(piece, "a piece"))
    return (file.rows, *first.shape[1:])


def to_npy(samples: Samples, path: Source, *, progress: bool = False) -> None:
    """As `Samples.to_npy`."""
    folder = files.as_path(path)
    with files.appearing(folder) as temporary:
        with files.storage_errors(folder, "be made"):
            temporary.mkdir()
        for name, field in samples.schema.items():
            only = samples.select(fields=[name])
            write = _write_ragged if field.is_ragged else _write_dense
            with track(f"writing {name}", len(samples), enabled=progress) as advance:
                write(only, temporary, name, field, advance)
        files.write_file(temporary / _SCHEMA, samples.schema.dumps().encode())
        files.sync_folder(temporary)


def _write_dense(only: Samples, folder: Path, name: str, field: Field, advance: Any) -> None:
    with _Growing(folder / f"{name}.npy", field.dtype, field.shape) as rows:
        for block in only.blocks(range(len(only))):
            column = only.read(name, block)
            assert isinstance(column, np.ndarray)
            rows.append(column)
            advance(len(block))


def _write_ragged(only: Samples, folder: Path, name: str, field: Field, advance: Any) -> None:
    with (
        _Growing(folder / f"{name}.values.npy", field.dtype, ()) as values,
        _Growing(folder / f"{name}.offsets.npy", np.dtype(np.int64), ()) as offsets,
        _Growing(folder / f"{name}.shapes.npy", np.dtype(np.int64), (field.ndim,)) as shapes,
    ):
        offsets.append(np.zeros(1, np.int64))
        for block in only.blocks(range(len(only))):
            batch = only.read(name, block)
            assert isinstance(batch, RaggedBatch)
            offsets.append(batch.offsets[1:] + values.rows)
            values.append(batch.values)
            if not field.is_vector:
                shapes.append(batch.shapes)
            advance(len(block))
    if field.is_vector:
        (folder / f"{name}.shapes.npy").unlink()


class _Growing:
    """A .npy file that rows are appended to; left, its header says how many, and it is synced."""

    def __init__(self, path: Path, dtype: np.dtype[Any], tail: Sequence[int | None]) -> None:
        if dtype.hasobject:
            raise SampleTypeError(f"{path.name}: Python objects would be pickled, which is refused")
        self._path, self._dtype, self._tail = path, dtype, tuple(tail)
        self.rows = 0

    def __enter__(self) -> Self:
        with files.storage_errors(self._path, "be made"):
            self._file = open(self._path, "xb")
        self._put_header()
        return self

    def _put_header(self) -> None:
        # NumPy leaves room in it for any number of rows.
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._tail),
        }
        with files.storage_errors(self._path, "be written"):
            np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: Array) -> None:
        if rows.dtype != self._dtype or rows.shape[1:] != self._tail:
            raise SampleError(
                f"{self._path.name}: rows of shape {rows.shape[1:]} and {rows.dtype} after "
                f"{self.rows} of shape {self._tail} and {self._dtype}"
            )
        with files.storage_errors(self._path, "be written"):
            self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self.rows += len(rows)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file, files.storage_errors(self._path, "be written"):
            if kind is None:
                self._file.seek(0)
                self._put_header()
                self._file.flush()
                os.fsync(self._file.fileno())

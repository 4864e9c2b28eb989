"""Sources in files: opened again by path where the object that was adapted cannot be had.

That is in another process, and in this one when the file was closed since. HDF5 files opened
again stay open for the next read, a few in each process.

Everybody who calls libhdf5 (PyTables, h5py and netCDF4 do) holds `HDF5_LOCK`: h5py takes a lock of
its own, but the others do not know it.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError, FormatError, NotAStoreError, UsageError
from raggedstore.extras import require
from raggedstore.lazy.windows import Source, Values, Window, unique_token, view_of
from raggedstore.segment.writer import hdf5_lock

__all__ = ["HDF5_LOCK", "Hdf5Source", "MemmapSource", "hdf5_kind", "memmap_under"]


class _Hdf5Lock(AbstractContextManager[Any]):
    """The process's lock for libhdf5, which writers of segments hold too; pickled by name."""

    def __enter__(self) -> None:
        hdf5_lock.acquire()

    def __exit__(self, *_: object) -> None:
        hdf5_lock.release()

    def __reduce__(self) -> str:
        return "HDF5_LOCK"


HDF5_LOCK = _Hdf5Lock()

#: How many files stay open that were opened again.
_MOST_OPEN = 16


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise NotAStoreError(
            f"{path} cannot be read any more ({error.strerror}): a lazy array that was made from "
            f"it opens it again by its path"
        ) from error


# HDF5


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one of the packages around libhdf5 is used."""

    #: Of a dataset: the path of its file, its name in it, whether it can be used.
    path: Callable[[Any], str]
    name: Callable[[Any], str]
    is_open: Callable[[Any], bool]
    #: The file at a path, and a dataset in it by name.
    open: Callable[[str], Any]
    find: Callable[[Any, str], Any]
    unit: Callable[[Any], Any]
    #: Whether nobody can write through the file that the dataset is in.
    is_final: Callable[[Any], bool]
    #: The descriptor of the file that the dataset is in, where there is one and it can be had.
    descriptor: Callable[[Any], int | None]


def _open_h5py(path: str) -> Any:
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  # registers filters, Blosc2 among them
    return require("h5py", "h5py").File(path, "r")


def _h5py_descriptor(dataset: Any) -> int | None:
    return dataset.file.id.get_vfd_handle() if dataset.file.driver == "sec2" else None


def _tables_descriptor(node: Any) -> int | None:
    driver = node._v_file.params.get("DRIVER")
    return node._v_file.fileno() if driver in (None, "H5FD_SEC2") else None


def _chunking(variable: Any) -> Any:
    sizes = variable.chunking()
    return sizes if isinstance(sizes, list) else None


_KINDS = {
    "h5py": _Kind(
        path=lambda dataset: os.fsdecode(dataset.file.filename),
        name=lambda dataset: dataset.name,
        is_open=bool,
        open=_open_h5py,
        find=lambda file, name: file[name],
        unit=lambda dataset: dataset.chunks,
        is_final=lambda dataset: dataset.file.mode == "r",
        descriptor=_h5py_descriptor,
    ),
    "tables": _Kind(
        path=lambda node: node._v_file.filename,
        name=lambda node: node._v_pathname,
        is_open=lambda node: bool(node._v_isopen),
        open=lambda path: import_module("tables").open_file(path, "r"),
        find=lambda file, name: file.get_node(name),
        unit=lambda node: node.chunkshape,
        is_final=lambda node: node._v_file.mode == "r",
        descriptor=_tables_descriptor,
    ),
    "netCDF4": _Kind(
        path=lambda variable: variable.group().filepath(),
        name=lambda variable: f"{variable.group().path.rstrip('/')}/{variable.name}",
        is_open=lambda variable: bool(variable.group().isopen()),
        open=lambda path: import_module("netCDF4").Dataset(path),
        find=lambda file, name: file[name],
        unit=_chunking,
        is_final=lambda variable: False,  # it does not say,
        descriptor=lambda variable: None,  # nor this
    ),
}


def hdf5_kind(x: object) -> str | None:
    """Which package around libhdf5 `x` is of, if any."""
    module = type(x).__module__.partition(".")[0]
    return module if module in _KINDS else None


class Hdf5Source(Source):
    """A dataset of h5py, an array of PyTables, a variable of netCDF4, by its `path` and `name`.

    What netCDF4 was told of masks, scales and strings when it was adapted holds when it is
    opened again.
    """

    lock: AbstractContextManager[Any] = HDF5_LOCK
    at_once = fresh = True  # others would wait for the lock

    def __init__(self, kind: str, node: Any) -> None:
        what, self._kind, self._node = _KINDS[kind], kind, node
        self._options = _netcdf_options(node) if kind == "netCDF4" else None
        with self.lock:
            if node.shape is None:
                raise UsageError(f"{what.name(node)} is a dataset that is said to have no values")
            self.shape = tuple(map(int, node.shape))
            # Scaled or not, and masked or not: netCDF4 says so by what it makes of nothing.
            nothing = node[(slice(0, 0),) * len(self.shape)] if self._options else None
            self.dtype = np.dtype(node.dtype if nothing is None else nothing.dtype)
            # Told not to always, it masks where something is missing alone.
            sometimes = bool(self._options and self._options["mask"])
            self.masked = sometimes or isinstance(nothing, np.ma.MaskedArray)
            unit = what.unit(node) if self.shape else None
            self.unit = None if unit is None else tuple(map(int, unit))
            self.path, self.name = os.path.abspath(what.path(node)), what.name(node)
            self._moved = _is_other(what.descriptor(node), self.path)
            self.final = what.is_final(node) and not self._moved
        self.token, self._size = unique_token(kind), 0
        self.changed = 0  #: when the file was, in ns, where it is final
        if self.final and os.path.exists(self.path):
            stat = os.stat(self.path)
            self._size, self.changed = stat.st_size, stat.st_mtime_ns
            self.token = f"{kind}-{self.path}-{self.name}-{stat.st_ino}-{stat.st_mtime_ns}"

    def __repr__(self) -> str:
        return f"{self.path}:{self.name}"

    def __getstate__(self) -> dict[str, Any]:
        if not self.name or not os.path.exists(self.path):
            raise UsageError(f"{self} lies in no file, so no other process can open it")
        self._check_there()
        return {**self.__dict__, "_node": None}

    def read(self, window: Window) -> Any:
        node = self._node
        if node is None or not _KINDS[self._kind].is_open(node):
            node = self._reopened()
        if not window:  # PyTables knows no empty tuple, and h5py makes a scalar of one
            values = node.read() if self._kind == "tables" else node[...]
        else:
            # A Table takes a slice, and none in a tuple.
            values = node[window if len(window) > 1 else window[0]]
        self._check_whole()
        return np.ma.asarray(values) if self.masked else values

    def _check_whole(self) -> None:
        """CorruptionError where the file was cut short: libhdf5 then reads zeros."""
        with suppress(FileNotFoundError):  # what is open and removed is whole
            if self._size and (size := os.stat(self.path).st_size) < self._size:
                raise CorruptionError(
                    f"{self}: the file has {size} bytes, and had {self._size} when it was adapted"
                )

    def _check_there(self) -> None:
        """UsageError where the file could not be opened again by its path."""
        if self._moved:
            raise UsageError(
                f"{self}: at this path lies another file than the one that was open when this was "
                f"adapted, which cannot be opened again: was it moved, or the working folder "
                f"changed? Open it anew, and adapt that"
            )

    def _reopened(self) -> Any:
        self._check_there()
        _stat(self.path)
        node = _FILES.find(self._kind, self.path, self.name)
        if self._options:
            _set_netcdf_options(node, self._options)
        if tuple(node.shape) != self.shape:
            raise FormatError(
                f"{self} is {tuple(node.shape)} now, and was {self.shape} when it was adapted: "
                f"adapt it again"
            )
        return node


def _is_other(descriptor: int | None, path: str) -> bool:
    """Whether the file at a path is another one than that which is open."""
    if descriptor is None or not os.path.exists(path):
        return False
    return not os.path.samestat(os.fstat(descriptor), os.stat(path))


def _netcdf_options(variable: Any) -> dict[str, bool]:
    names = ("scale", "mask", "always_mask", "chartostring")
    return {name: bool(getattr(variable, name)) for name in names}


def _set_netcdf_options(variable: Any, options: dict[str, bool]) -> None:
    variable.set_auto_scale(options["scale"])
    variable.set_auto_mask(options["mask"])
    variable.set_always_mask(options["always_mask"])
    variable.set_auto_chartostring(options["chartostring"])


class _OpenFiles:
    """Files opened again, those closed first that were not used for longest.

    To be used under `HDF5_LOCK` alone.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def find(self, kind: str, path: str, name: str) -> Any:
        """A dataset by name."""
        stat, what = _stat(path), _KINDS[kind]
        # Another file at the same path is another file, and a forked child's are its parent's.
        key = (os.getpid(), kind, path, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = what.open(path)
        self._files.move_to_end(key)
        while len(self._files) > _MOST_OPEN:
            (pid, *_), oldest = self._files.popitem(last=False)
            if pid == os.getpid():
                oldest.close()
        return what.find(file, name)


_FILES = _OpenFiles()


# Memory maps


def memmap_under(x: npt.NDArray[Any]) -> np.memmap[Any, Any] | None:
    """The map of a file that an array is, or is a view of, where other processes can map it."""
    base: Any = x
    while isinstance(base, np.ndarray):
        # A map that is private keeps to itself what was written to it.
        if isinstance(base, np.memmap) and base.filename is not None and base.mode != "c":
            return base
        base = base.base
    return None


class MemmapSource(Source):
    """A `np.memmap`, such as of a .npy file, or a view of one.

    What is read are views of the map that cannot be written to, so that nobody changes the file
    by what they do with a result.
    """

    at_once = True

    def __init__(self, array: npt.NDArray[Any], base: np.memmap[Any, Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self.mapped = array.flags.c_contiguous and array.dtype.isnative
        self._array: Values | None = _readonly(array)
        self._path = os.path.abspath(os.fsdecode(base.filename))  # type: ignore[arg-type]
        mapped = np.frombuffer(base._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
        start = base.offset - base.offset % mmap.ALLOCATIONGRANULARITY
        self._offset, self._strides = start + array.ctypes.data - mapped, array.strides
        self.token = unique_token("memmap")
        if base.mode == "r":
            stat = os.stat(self._path)
            place = f"{self._offset}-{self.shape}-{self._strides}-{self.dtype!r}"
            self.token = f"memmap-{self._path}-{place}-{stat.st_ino}-{stat.st_mtime_ns}"

    def __repr__(self) -> str:
        return self._path

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def read(self, window: Window) -> Any:
        if self._array is None:
            self._array = self._mapped()
        return view_of(self._array, window)

    def _mapped(self) -> Values:
        size = _stat(self._path).st_size
        steps = zip(self.shape, self._strides, strict=True)
        ends = [(n - 1) * stride for n, stride in steps]
        end = self._offset + sum(e for e in ends if e > 0) + self.dtype.itemsize
        if end > size:
            raise FormatError(
                f"{self} has {size} bytes now, and what was adapted ends at {end}: adapt it again"
            )
        buffer = np.memmap(self._path, np.uint8, "r")
        array: Values = np.ndarray(self.shape, self.dtype, buffer, self._offset, self._strides)
        return _readonly(array)


def _readonly(array: npt.NDArray[Any]) -> Values:
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view

"""Chunks under filters that only libhdf5 knows: read by h5py, in a process of its own.

A reader's process never calls libhdf5: it holds one lock, hangs children that are forked while
it reads, and has faults that a stranger's file can reach. In a child, with bounded memory, it
can do no more than die, which is an error here like any other damage. h5py unpickles nothing.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError, MissingExtraError

__all__ = ["ForeignDataset"]

_MEMORY = 2**32  # of the child, bytes of address space
_MESSAGE = 1000  # bytes of what it says went wrong
_SECONDS = 60  # of its processor's time, for one run of rows

#: What the child runs: asked for rows by (start, stop), it answers with their length and bytes.
_CHILD = """
import os, resource, signal, struct, sys
plugins = os.environ.get("HDF5_PLUGIN_PATH", "::")
if plugins != "::":
    del os.environ["HDF5_PLUGIN_PATH"]
path, name, memory, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
import numpy, h5py
try:
    import hdf5plugin
except ImportError:
    pass
# Behind the filters of hdf5plugin: netCDF4 sets the path to its own, which h5py cannot use.
for folder in filter(None, plugins.split(os.pathsep)):
    h5py.h5pl.append(folder.encode())
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ask, answer = sys.stdin.buffer, sys.stdout.buffer
signal.signal(signal.SIGPROF, signal.SIG_DFL)
signal.setitimer(signal.ITIMER_PROF, seconds)
try:
    dataset = h5py.File(path, "r")
    for part in name.strip("/").split("/"):
        if not isinstance(dataset.get(part, getlink=True), h5py.HardLink):
            raise ValueError("it is a link")
        dataset = dataset[part]
    if dataset.external or dataset.is_virtual:
        raise ValueError("its values lie in other files")
    if dataset.dtype.kind not in "biufc":
        raise ValueError("its values are no numbers")
except Exception as error:
    dataset, broken = None, error
while len(request := ask.read(16)) == 16:
    start, stop = struct.unpack("<qq", request)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        if dataset is None:
            raise broken
        data = numpy.ascontiguousarray(dataset[start:stop]).tobytes()
        answer.write(struct.pack("<q", len(data)))
    except Exception as error:
        data = " ".join(f"{type(error).__name__}: {error}".split()).encode()[:1000]
        answer.write(struct.pack("<q", -len(data)))
    answer.write(data)
    answer.flush()
"""


class ForeignDataset:
    """Rows of one dataset, through a child process that begins when the first are asked for.

    Parameters
    ----------
    path
        The HDF5 file.
    name
        The dataset's path in it.

    Raises
    ------
    MissingExtraError
        h5py is not installed.
    """

    def __init__(self, path: Path, name: str) -> None:
        if importlib.util.find_spec("h5py") is None:
            raise MissingExtraError(
                f"{path}: {name} is compressed by a filter that takes h5py to read; "
                f"pip install 'raggedstore[h5py]'"
            )
        self._path = path
        self._name = name
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        _live.add(self)

    def read_into(self, start: int, stop: int, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out` with the raw bytes of rows `start` to `stop`.

        Raises
        ------
        CorruptionError
            libhdf5 could not read them, or died of them.
        """
        with self._lock:
            child = self._child = self._child or self._begin()
            assert child.stdin is not None and child.stdout is not None
            try:
                child.stdin.write(struct.pack("<qq", start, stop))
                child.stdin.flush()
                (length,) = struct.unpack("<q", child.stdout.read(8))
                most = out.nbytes + 1 if length > 0 else _MESSAGE
                data = child.stdout.read(min(abs(length), most))
            except (OSError, struct.error):
                self._child = None
                child.kill()
                raise CorruptionError(
                    f"libhdf5 died on {self._name} (status {child.wait()})"
                ) from None
            if length < 0:
                raise CorruptionError(f"not readable: {data.decode(errors='replace')}")
            if length != out.nbytes or len(data) != length:
                self._child = None
                child.kill()
                raise CorruptionError(f"{length} bytes where {out.nbytes} belong")
            out[:] = np.frombuffer(data, np.uint8)

    def after_fork(self) -> None:
        """Have a forked child ask a child of its own, as no two can share a pipe."""
        self._lock, self._child = threading.Lock(), None

    def _begin(self) -> subprocess.Popen[bytes]:
        limits = [str(_MEMORY), str(_SECONDS)]
        command = [sys.executable, "-P", "-c", _CHILD, str(self._path), self._name, *limits]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # To find the plug-in that a Blosc2 chunk may ask for, c-blosc2 runs the "python" that
            # it finds, which imports what lies in the working folder.
            env={**os.environ, "PATH": os.devnull},
        )
        weakref.finalize(self, _end, child, os.getpid())
        return child


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the owner ends, which has no say in it
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not sent yet can't be any more
                pipe.close()


_live: weakref.WeakSet[ForeignDataset] = weakref.WeakSet()


def _after_fork() -> None:
    for dataset in list(_live):
        dataset.after_fork()


os.register_at_fork(after_in_child=_after_fork)

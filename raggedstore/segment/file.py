"""The bytes of an immutable file, read piece by piece.

Pieces are read with `pread` and not through a memory map: it costs about a twentieth of the
decoding, and for that a disk error or a file cut short is an exception and not a SIGBUS that
ends the interpreter, and pages read do not count as the reader's memory.

A reader of thousands of segments must not hold thousands of descriptors: `OpenFiles` keeps the
last few used, and all are forgotten where the process may open no more. A descriptor is closed when
nobody holds its `Descriptor` any more, so one that is dropped in the middle of another thread's
read stays open until that read is done.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from raggedstore.errors import CorruptionError, StorageError

__all__ = ["Descriptor", "FileBytes", "OpenFiles"]

_MAX_OPEN = 64


class Descriptor:
    """An open file descriptor, closed when it is forgotten or by `close`.

    Raises
    ------
    CorruptionError
        What is there is no regular file: reading a pipe or a device might never end.
    """

    __slots__ = ("number",)

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.number = -1
        # Without O_NONBLOCK the opening of a pipe would wait for somebody to write into it.
        self.number = _opened(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self.number).st_mode):
            self.close()
            raise CorruptionError(f"{path}: not a regular file")

    def fileno(self) -> int:
        """The descriptor's number, as `fcntl` asks for it."""
        return self.number

    def close(self) -> None:
        """Close it, if it is open.

        Nothing is written through one, so a close that fails loses nothing; and Linux has let go
        of the descriptor whatever it says.
        """
        number, self.number = self.number, -1
        if number >= 0:
            with suppress(OSError):
                os.close(number)

    __del__ = close


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    with suppress(RuntimeError):  # another thread has just added to them: some will do
        for files in _all:
            files.clear()
    return os.open(path, flags, 0o666)


class OpenFiles:
    """The descriptors used last, at most `limit` of them; safe from many threads."""

    def __init__(self, limit: int = _MAX_OPEN) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        _all.add(self)

    def get(self, path: Path) -> Descriptor:
        """The descriptor of a file, opened if it is not open."""
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open.move_to_end(path)
                return found
        opened = Descriptor(path)  # which may have all of these forgotten
        with self._lock:
            found = self._open.setdefault(path, opened)  # another thread may have been at it, too
            self._open.move_to_end(path)
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
            return found

    def clear(self) -> None:
        """Forget them all; those that are being read from are closed after that."""
        with self._lock:
            self._open.clear()

    def after_fork(self) -> None:
        """Make the lock new in a forked child; the descriptors are as good there."""
        self._lock = threading.Lock()


_all: weakref.WeakSet[OpenFiles] = weakref.WeakSet()


def _after_fork() -> None:
    for files in list(_all):
        files.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class FileBytes:
    """A file's bytes: `read` gives any piece.

    Parameters
    ----------
    path
        The file; it must not change while it is in use.
    files
        Where its descriptor is kept.
    in_memory
        Read it whole now, and never again from the disk.

    Raises
    ------
    StorageError
        It cannot be opened or read.
    """

    def __init__(self, path: Path, files: OpenFiles, *, in_memory: bool = False) -> None:
        self.path = path
        self._files = files
        self._whole: memoryview | None = None
        file = self._descriptor()  # held, or other threads may have it closed before it is used
        try:
            self.size = os.fstat(file.number).st_size
            if in_memory:
                self._whole = memoryview(path.read_bytes())
                self.size = len(self._whole)
        except OSError as error:
            raise StorageError(f"{path}: could not be read: {error.strerror}") from error

    def __len__(self) -> int:
        return self.size

    def read(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset`; CorruptionError where the file ends before."""
        if self._whole is not None:
            piece = self._whole[offset : offset + size]
        else:
            file = self._descriptor()  # held while it is read
            try:
                piece = memoryview(os.pread(file.number, size, offset))
            except OSError as error:
                raise StorageError(f"{self.path}: could not be read: {error.strerror}") from error
        if len(piece) != size:
            raise CorruptionError(f"{self.path}: ends before byte {offset + size}")
        return piece

    def fileno(self) -> int:
        """The descriptor's number, until another file is opened."""
        return self._descriptor().fileno()

    @property
    def source(self) -> Descriptor | memoryview:
        """What it is read from: a descriptor, or memory."""
        return self._descriptor() if self._whole is None else self._whole

    def _descriptor(self) -> Descriptor:
        """The file's, opened anew where it is not open any more."""
        try:
            return self._files.get(self.path)
        except CorruptionError:
            raise
        except OSError as error:
            raise StorageError(f"{self.path}: could not be read: {error.strerror}") from error

    def borrow(self, offset: int, size: int, scratch: Callable[[int], memoryview]) -> memoryview:
        """As `read`, in memory that `scratch` gives; what is in memory already is not copied."""
        if self._whole is not None:
            return self.read(offset, size)
        out = scratch(size)
        self.read_into(offset, out)
        return out

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset`; CorruptionError where the file ends before."""
        done = 0
        if self._whole is not None:
            piece = self._whole[offset : offset + len(out)]
            out[: len(piece)] = piece
            done = len(piece)
        else:
            file = self._descriptor()
            try:
                while done < len(out):
                    got = os.preadv(file.number, [out[done:]], offset + done)
                    if not got:
                        break
                    done += got
            except OSError as error:
                raise StorageError(f"{self.path}: could not be read: {error.strerror}") from error
        if done < len(out):
            raise CorruptionError(f"{self.path}: ends before byte {offset + len(out)}")

    def pieces(self, size: int = 2**20) -> Iterator[memoryview]:
        """The whole file, from its beginning, in pieces of at most `size` bytes."""
        for offset in range(0, self.size, size):
            yield self.read(offset, min(size, self.size - offset))

"""Large arrays whose memory is used again when nobody refers to them any more.

The C library gives memory of more than 32 MiB back to the system, which clears it page by page
when it is next asked for: that takes longer than to decode into it. Who reads as much again and
again, such as a loader its windows, reads within `recycled`.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Recycler", "empty", "recycled"]

#: Less than this is kept by the C library itself.
_LARGE = 2**22
_PAGE = 2**21

_current = threading.local()


class Recycler:
    """Keeps the memory of arrays that were dropped, as many as `count`, for those to come."""

    def __init__(self, count: int = 2) -> None:
        self._count = count
        # Without a lock: an array may be collected, and its memory come back, at any moment.
        self._free: deque[mmap.mmap] = deque()

    def empty(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """(nbytes,) uint8, of any content."""
        memory = self._found(nbytes)
        if memory is None:
            memory = mmap.mmap(
                -1,
                -(-(nbytes + nbytes // 8) // _PAGE) * _PAGE,
                flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            )
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
        array = np.frombuffer(memory, np.uint8, nbytes)
        weakref.finalize(array, self._back, memory).atexit = False
        return array

    def _found(self, nbytes: int) -> mmap.mmap | None:
        while True:
            try:
                memory = self._free.popleft()
            except IndexError:
                return None
            if len(memory) >= nbytes:
                return memory

    def _back(self, memory: mmap.mmap) -> None:
        if len(self._free) < self._count:
            self._free.append(memory)


@contextmanager
def recycled(recycler: Recycler) -> Iterator[None]:
    """Within it, this thread's large arrays from `empty` use the recycler's memory."""
    before = getattr(_current, "recycler", None)
    _current.recycler = recycler
    try:
        yield
    finally:
        _current.recycler = before


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """As `numpy.empty`."""
    recycler: Recycler | None = getattr(_current, "recycler", None)
    nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if recycler is None or nbytes < _LARGE:
        return np.empty(shape, dtype)
    return recycler.empty(nbytes).view(dtype).reshape(shape)

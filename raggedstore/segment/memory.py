"""Memory for what is read, used again once nobody looks at it any more.

New memory is cleared by the system page by page, which for a batch of some megabytes takes longer
than decoding into it. So memory of a few batches that were dropped is kept, whoever dropped them,
and given to the next that are read. A C library's allocator does the same where it can; it can't
where one thread reads and another drops.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["empty"]

Bytes = npt.NDArray[np.uint8]

#: Bytes that are worth it, that an array may have that is kept, and that are kept in all: four of
#: the largest reads (training/reading.py).
_LEAST, _MOST, _KEPT = 2**20, 2**25, 3 * 2**25
_PAGE = 2**21  # bytes of a large page

#: What nobody uses, the oldest first, by identity. To add and to take is one step each, which no
#: other thread nor garbage collection comes between.
_free: dict[int, Bytes] = {}


class _Lease:
    """Memory while there are arrays over it: the owner of them all."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: Bytes) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        _keep(self._memory)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """As ``np.empty``, perhaps in memory that was used before."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _LEAST:
        return np.empty(shape, dtype)
    if nbytes > _MOST:
        _drop(nbytes)
        return _new(nbytes).view(dtype).reshape(shape)
    memory = _taken(nbytes)
    if memory is None:
        # By quarters, so that the next, of nearly the same size, fits. What is not used of it is
        # only addresses.
        step = max(_PAGE, 1 << (nbytes.bit_length() - 2))
        size = -(-nbytes // step) * step
        _drop(size)  # what is kept did not fit: with what is in use it is not to become more
        memory = _new(size)
    owner: Any = _Lease(memory)
    return np.asarray(owner)[:nbytes].view(dtype).reshape(shape)


def _new(nbytes: int) -> Bytes:
    """Memory that the system clears by large pages, where it can: in half the time."""
    try:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return np.empty(nbytes, np.uint8)  # says that there is none left, if there is none
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def _keep(memory: Bytes) -> None:
    _free[id(memory)] = memory
    _drop(sum(map(len, _there())) - _KEPT)


def _drop(nbytes: int) -> None:
    """Drop the oldest of what is kept, until it is so many bytes."""
    for memory in _there():
        if nbytes <= 0:
            break
        if _free.pop(id(memory), None) is not None:
            nbytes -= len(memory)


def _taken(nbytes: int) -> Bytes | None:
    """The least free memory of so many bytes; None where there is none."""
    for memory in sorted(_there(), key=len):
        if nbytes <= len(memory) and _free.pop(id(memory), None) is not None:
            return memory
    return None


def _there() -> list[Bytes]:
    try:
        return list(_free.values())
    except RuntimeError:  # garbage collection has just added to it
        return []

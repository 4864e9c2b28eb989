"""Memory for what is read, used again once nobody looks at it any more.

New memory is cleared by the system page by page, which for a batch of some megabytes takes longer
than decoding into it. So memory of a few batches that were dropped is kept, whoever dropped them,
and given to the next that are read. A C library's allocator does the same where it can; it can't
where one thread reads and another drops.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["empty"]

Bytes = npt.NDArray[np.uint8]

_LEAST, _MOST = 2**20, 2**24 + 2**22  # bytes that are worth it, and that are kept
_SPARE = 3  # pieces of an eighth that one may have more than is asked for

#: What nobody uses. Appending drops the oldest, and like taking is one step that no other thread,
#: nor garbage collection, can come between.
_free: deque[Bytes] = deque(maxlen=4)


class _Lease:
    """Memory while there are arrays over it: the owner of them all."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: Bytes) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        _free.append(self._memory)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """As ``np.empty``, perhaps in memory that was used before."""
    nbytes = math.prod(shape) * dtype.itemsize
    if not _LEAST <= nbytes <= _MOST:
        return np.empty(shape, dtype)
    step = 1 << (nbytes.bit_length() - 4)
    size = -(-nbytes // step) * step
    memory = _taken(size, size + _SPARE * step)
    owner: Any = _Lease(np.empty(size, np.uint8) if memory is None else memory)
    return np.asarray(owner)[:nbytes].view(dtype).reshape(shape)


def _taken(least: int, most: int) -> Bytes | None:
    """Free memory of so many bytes; None where there is none."""
    for _ in range(len(_free)):
        try:
            memory = _free.popleft()
        except IndexError:
            return None
        if least <= len(memory) <= most:
            return memory
        _free.append(memory)
    return None

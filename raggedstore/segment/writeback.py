"""Having the disk begin with what was written, before anybody waits for it.

Until a file is synced the system may keep all of it in memory, and then whoever syncs it waits for
the whole of it. Linux can be asked to begin meanwhile. That is a hint: it makes sure of nothing,
reports no error, and takes none from the fsync that follows.
https://man7.org/linux/man-pages/man2/sync_file_range.2.html
"""

from __future__ import annotations

import ctypes

__all__ = ["begin_writeback"]

_WRITE = 2  # of Linux's fcntl.h: begin, and wait for nothing
_call = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _call is not None:
    _call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def begin_writeback(descriptor: int) -> None:
    """Have the disk begin with what was written to a file; nothing where the system can't."""
    if _call is not None:
        _call(descriptor, 0, 0, _WRITE)

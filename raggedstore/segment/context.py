"""What the segments of one reader share: budget, cache, open files, threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

# NumPy imports these when somebody first asks for them, `np.unique` among others. Where a fork
# comes in the midst of an import by a thread, the child waits for that thread for ever.
import numpy.ma
import numpy.random
import numpy.typing as npt

from raggedstore.segment.cache import ChunkCache
from raggedstore.segment.file import OpenFiles

__all__ = ["ReadContext", "TooMuch", "at_most", "check_room", "sharing"]


_SCRATCH = 2**22  # no more than this is kept for a thread and a use


@dataclass(eq=False)
class ReadContext:
    """What the segments of one reader share: the cache within the budget, and the threads."""

    budget: int
    checksums: bool = True  #: verify each chunk's checksum as it is read
    in_memory: bool = False  #: read files whole when they are opened
    # Counted without a lock, for people to look at: two threads may now and then count one.
    chunks_decoded: int = field(init=False, default=0)  #: whole
    blocks_decoded: int = field(init=False, default=0)  #: one by one
    cache: ChunkCache = field(init=False)
    files: OpenFiles = field(init=False, default_factory=OpenFiles)
    _scratch: threading.local = field(init=False, default_factory=threading.local)
    _pool: ThreadPoolExecutor | None = field(init=False, default=None)
    _pool_pid: int = field(init=False, default=0)
    lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _cores: int = field(init=False)  #: that this process may use

    def __post_init__(self) -> None:
        self.cache = ChunkCache(self.budget)
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        _live.add(self)

    @property
    def threads(self) -> int:
        """How many a read decodes in: the cores, or this thread's share of them."""
        return max(1, self._cores // getattr(_shares, "count", 1))

    @property
    def pool(self) -> ThreadPoolExecutor | None:
        """Decoding threads of this process; None where a read has one core.

        A forked child makes its own.
        """
        if self.threads < 2:
            return None
        if self._pool_pid != os.getpid():
            with self.lock:
                if self._pool_pid != os.getpid():
                    self._pool = ThreadPoolExecutor(self._cores, thread_name_prefix="raggedstore")
                    self._pool_pid = os.getpid()
        return self._pool

    def scratch(self, use: str, nbytes: int) -> npt.NDArray[np.uint8]:
        """Memory of this thread's own, valid until it asks for the same `use` again.

        New memory of some hundred kilobytes costs as much as copying into it: the system clears
        every page of it first.
        """
        if nbytes > _SCRATCH:
            return np.empty(nbytes, np.uint8)
        held: npt.NDArray[np.uint8] | None = getattr(self._scratch, use, None)
        if held is None or len(held) < nbytes:
            held = np.empty(nbytes, np.uint8)
            setattr(self._scratch, use, held)
        return held[:nbytes]

    def after_fork(self) -> None:
        """Make the locks new: one may have been held by a thread that the child doesn't have."""
        self.lock = threading.Lock()
        self._pool, self._pool_pid = None, 0
        self.cache.after_fork()


_shares = threading.local()


@contextmanager
def sharing(count: int) -> Iterator[None]:
    """Within it this thread reads beside `count` - 1 others, each with its share of the cores."""
    before = getattr(_shares, "count", 1)
    _shares.count = count
    try:
        yield
    finally:
        _shares.count = before


class TooMuch(Exception):
    """What is asked for is larger than who asked said that it may be; nothing was read."""


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    """Within it what this thread reads of ragged fields may come to so many bytes in all.

    For who knows only about how large samples are: an exact answer costs half as much as reading
    short ones, and reading them looks it up anyway.
    """
    _shares.room = nbytes
    try:
        yield
    finally:
        _shares.room = None


def check_room(nbytes: int) -> None:
    """TooMuch where so many bytes more are more than `at_most` said."""
    room = getattr(_shares, "room", None)
    if room is not None:
        if nbytes > room:
            raise TooMuch
        _shares.room = room - nbytes


# A forked child has none of its parent's threads, so what they held is made anew in it.
_live: weakref.WeakSet[ReadContext] = weakref.WeakSet()


def _after_fork() -> None:
    for context in list(_live):
        context.after_fork()


os.register_at_fork(after_in_child=_after_fork)

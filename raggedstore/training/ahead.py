"""Work done ahead of who takes it, in a thread, within a number of bytes.

Two queues join the thread and the taker: results go one way, and what the taker is done with
comes back the other as credit. Only the thread counts, so no lock is held by anyone. Both queues
are `SimpleQueue`s, which garbage collection may put to at any moment, even in the midst of
another put: an iterator that is dropped anywhere can tell its thread to stop.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from raggedstore.errors import UsageError

__all__ = ["Ahead", "Job", "in_turn"]

T = TypeVar("T")

#: Seconds that the thread is out of the way of a taker who has been waiting for a result. Without
#: them it would go on with the interpreter's lock, and the taker get that after 5 ms only.
_GIVE_WAY = 5e-5

#: What a result takes in bytes, and the function that makes it.
Job = tuple[int, Callable[[], T]]
Jobs = Generator[Job[T], None, None]

_DONE = object()

#: How long an iterator that ends early waits for its thread, which is at most in the middle of a
#: read. Not forever: it may be garbage collection that ends it, in a thread with a lock held that
#: the reading thread wants.
_PATIENCE = 2.0


class Ahead(Generic[T]):
    """An iterator over the results of `jobs`, made in a thread before they are asked for.

    Parameters
    ----------
    jobs
        Asked for the next job, and closed at the end, in the thread.
    count
        Results to be made or ready besides the one that the taker has.
    limit
        Bytes of all results, with the one that the taker has; one result that is larger is made
        when there is no other.
    """

    def __init__(self, jobs: Jobs[T], *, count: int, limit: int) -> None:
        self._results: SimpleQueue[Any] = SimpleQueue()
        self._credit: SimpleQueue[bool] = SimpleQueue()  # True: a result is done with; False: stop
        self._holds = False
        self._pid = os.getpid()
        # The thread knows the queues and not this object, which can thus be collected.
        self._thread = threading.Thread(
            target=_work,
            args=(jobs, self._results, self._credit, count + 1, limit),
            name="raggedstore-loader",
            daemon=True,
        )
        weakref.finalize(self, self._credit.put, False).atexit = False
        _live.add(self)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pid != os.getpid():
            raise UsageError(
                "this iterator was made before a fork, and its thread is not in this process: "
                "iterate over the loader anew"
            )
        if self._holds:
            self._credit.put(True)
            self._holds = False
        result = self._results.get()
        if result is _DONE:
            self._results.put(_DONE)  # for who asks once more
            raise StopIteration
        if isinstance(result, StopIteration):
            # Raised as it is, it would pass for the end.
            raise RuntimeError("a function that the loader calls raised StopIteration") from result
        if isinstance(result, BaseException):
            raise result
        self._holds = True
        (value,) = result
        made: T = value
        return made

    def close(self) -> None:
        """Stop the thread."""
        if self._pid != os.getpid():
            return
        self._credit.put(False)
        if self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE)


class _Stopped(Exception):
    """The taker wants no more."""


def _work(
    jobs: Jobs[Any],
    results: SimpleQueue[Any],
    credit: SimpleQueue[bool],
    count: int,
    limit: int,
) -> None:
    """Put the results of `jobs`, each as a tuple of one, then `_DONE`; an error in its place."""
    out: deque[int] = deque()  # bytes of the results not yet done with, oldest first
    try:
        for nbytes, make in jobs:
            while not credit.empty() or (out and (len(out) >= count or sum(out) + nbytes > limit)):
                if not credit.get():
                    raise _Stopped
                out.popleft()
            out.append(nbytes)
            results.put((make(),))
            del make  # holds what the result was made of
            if len(out) - credit.qsize() < 2:
                time.sleep(_GIVE_WAY)
    except _Stopped:
        pass
    except BaseException as error:  # whatever it is, it belongs to the taker
        results.put(error)
    finally:
        jobs.close()
        results.put(_DONE)


def in_turn(jobs: Jobs[T]) -> Generator[T, None, None]:
    """The results of `jobs`, each made when it is asked for."""
    try:
        for _, make in jobs:
            yield make()
            del make
    finally:
        jobs.close()


# At exit threads are stopped before the interpreter goes, rather than frozen in the midst of a
# decompression.
_live: weakref.WeakSet[Ahead[Any]] = weakref.WeakSet()


def _at_exit() -> None:
    for ahead in list(_live):
        ahead.close()


atexit.register(_at_exit)

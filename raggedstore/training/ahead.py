"""Work done ahead of who takes it, in threads, within a number of bytes.

Two queues join the threads and the taker: results go one way, and what the taker is done with
comes back the other as credit. Whose turn it is to take a job counts, and no lock is held by the
taker. Both queues are `SimpleQueue`s, which garbage collection may put to at any moment, even in
the midst of another put: an iterator that is dropped anywhere can tell its threads to stop.
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

#: Seconds that a thread is out of the way of a taker who has been waiting for the first result.
#: Without them it would go on with the interpreter's lock, and the taker get that up to 5 ms later.
_GIVE_WAY = 5e-5

#: What a result takes in bytes, and the function that makes it.
Job = tuple[int, Callable[[], T]]
Jobs = Generator[Job[T], None, None]

_DONE = object()

#: How long an iterator that ends early waits for its threads, which are at most in the middle of a
#: read. Not forever: it may be garbage collection that ends it, in a thread with a lock held that
#: a reading thread wants.
_PATIENCE = 2.0


class Ahead(Generic[T]):
    """An iterator over the results of `jobs`, made in threads before they are asked for.

    Parameters
    ----------
    jobs
        Asked for the next job, and closed at the end, by one thread at a time.
    count
        Results to be made or ready besides the one that the taker has.
    limit
        Bytes of all results, with the one that the taker has; one result that is larger is made
        when there is no other.
    threads
        How many make results at a time. With more than one, a result may be made before the one
        that comes before it; they are taken in the order of the jobs all the same.
    """

    def __init__(self, jobs: Jobs[T], *, count: int, limit: int, threads: int = 1) -> None:
        threads = min(threads, count + 1)
        self._work = _Work(jobs, count + 1, limit, threads)
        self._wanted = 0  # the number of the result that comes next
        self._early: dict[int, Any] = {}  # results that are made before their turn
        self._holds = self._over = False
        self._pid = os.getpid()
        # The threads know the work and not this object, which can thus be collected.
        self._threads = [
            threading.Thread(target=self._work.run, name="raggedstore-loader", daemon=True)
            for _ in range(threads)
        ]
        weakref.finalize(self, self._work.credit.put, False).atexit = False
        _live.add(self)
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pid != os.getpid():
            raise UsageError(
                "this iterator was made before a fork, and its threads are not in this process: "
                "iterate over the loader anew"
            )
        if self._over:
            raise StopIteration
        if self._holds:
            self._work.credit.put(True)
            self._holds = False
        while self._wanted not in self._early:
            number, result = self._work.take()
            if result is _DONE:
                self._over = True
                raise StopIteration
            self._early[number] = result
        result = self._early.pop(self._wanted)
        self._wanted += 1
        if isinstance(result, BaseException):
            self._over = True
            self._early.clear()
            self._work.credit.put(False)
            if isinstance(result, StopIteration):
                # Raised as it is, it would pass for the end.
                raise RuntimeError(
                    "a function that the loader calls raised StopIteration"
                ) from result
            raise result
        self._holds = True
        (value,) = result
        made: T = value
        return made

    def close(self) -> None:
        """Stop the threads."""
        if self._pid != os.getpid():
            return
        self._work.credit.put(False)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_PATIENCE)


class _Work:
    """What the threads share with one another and the taker."""

    def __init__(self, jobs: Jobs[Any], count: int, limit: int, threads: int) -> None:
        #: Each result as a tuple of one, or an error in its place, with its number.
        self.results: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self.credit: SimpleQueue[bool] = SimpleQueue()  # True: a result is done with; False: stop
        self._hungry = False  # whether the taker waits for a result
        self._jobs, self._count, self._limit = jobs, count, limit
        self._turn = threading.Lock()
        # Below is theirs whose turn it is.
        self._out: deque[int] = deque()  # bytes of the results not yet done with, oldest first
        self._begun = 0
        self._stopped = False
        self._running = threads

    def take(self) -> tuple[int, Any]:
        """A result, once there is one."""
        self._hungry = True
        result = self.results.get()
        self._hungry = False
        return result

    def run(self) -> None:
        """What a thread does: one job after another, until there are no more or it is to stop."""
        while True:
            with self._turn:
                number, make = self._next()
            if make is None:
                return
            try:
                self.results.put((number, (make(),)))
            except BaseException as error:  # whatever it is, it belongs to the taker
                self._stopped = True
                self.results.put((number, error))
            del make  # holds what the result was made of
            if not number and self._hungry:
                time.sleep(_GIVE_WAY)

    def _next(self) -> tuple[int, Callable[[], Any] | None]:
        """A job and its number; None once there is no more for this thread."""
        number = self._begun
        try:
            if not self._stopped:
                nbytes, make = next(self._jobs)
                while not self._stopped and (not self.credit.empty() or self._is_full(nbytes)):
                    if self.credit.get():
                        self._out.popleft()
                    else:
                        self._stopped = True
            if not self._stopped:
                self._out.append(nbytes)
                self._begun += 1
                return number, make
            self._jobs.close()
        except StopIteration:
            self._stopped = True
        except BaseException as error:
            self._begun, self._stopped = number + 1, True
            self.results.put((number, error))
        self._running -= 1
        if not self._running:
            self.results.put((self._begun, _DONE))
        return number, None

    def _is_full(self, nbytes: int) -> bool:
        """Whether there is no room for a result of so many bytes."""
        out = self._out
        return bool(out) and (len(out) >= self._count or sum(out) + nbytes > self._limit)


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

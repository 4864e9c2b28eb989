"""Work done ahead of who takes it, in threads, within a number of bytes.

Two queues join the threads and the taker: results go one way, and what the taker is done with
comes back the other as credit. Whose turn it is to take a job counts, and for what is made already
the taker waits for no lock. Where results may be made side by side, the taker makes some itself
rather than wait: to wake a thread, or be woken by one, takes as long as to decode a megabyte. Both
queues are `SimpleQueue`s, which garbage collection may put to at any moment, even in the midst of
another put: an iterator that is dropped anywhere can tell its threads to stop.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
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
        Results to be made or ready besides the one that the taker has, and one that it makes.
    limit
        Bytes of all results, with the one that the taker has; one result that is larger is made
        when there is no other.
    threads
        How many make results at a time. With more than one, the taker is one of them: where what
        it wants is not there it makes the first result that nobody has begun. The very first it
        makes before there are threads at all. Results come in the order of their jobs all the same.
    """

    def __init__(self, jobs: Jobs[T], *, count: int, limit: int, threads: int = 1) -> None:
        self._helps = threads > 1
        self._work = _Work(jobs, count + 1 + self._helps, limit)
        self._wanted = 0  # the number of the result that comes next
        self._early: dict[int, Any] = {}  # results that are made before their turn
        self._holds = self._over = False
        self._pid = os.getpid()
        # The threads know the work and not this object, which can thus be collected.
        self._threads = [
            threading.Thread(target=self._work.run, name="raggedstore-loader", daemon=True)
            for _ in range(min(threads, count + 1) - self._helps)
        ]
        weakref.finalize(self, self._work.credit.put, False).atexit = False
        _live.add(self)
        if not self._helps:
            self._work.start(self._threads)

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
            number, result = self._another()
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

    def _another(self) -> tuple[int, Any]:
        """A result and its number: one that is made, or else made here, or else waited for."""
        if not self._helps:
            return self._work.take()
        with suppress(Empty):
            return self._work.results.get_nowait()
        number, make = self._work.begin() or (0, None)
        if make is None:
            return self._work.take()
        try:
            result = make()
        except Exception as error:
            self._work.stopped = True
            return number, error
        except BaseException:  # such as Ctrl-C, which is not to wait for its turn
            self._over = True
            self._work.credit.put(False)
            raise
        if not number:
            self._work.start(self._threads)
        return number, (result,)

    def close(self) -> None:
        """Stop the threads."""
        if self._pid != os.getpid():
            return
        self._work.credit.put(False)
        for thread in self._threads:
            if thread.ident is None:  # never started: then nobody else closes the jobs
                self._work.stopped = True
                self._work.begin()
            elif thread is not threading.current_thread():
                thread.join(_PATIENCE)


class _Work:
    """What the threads share with one another and the taker."""

    def __init__(self, jobs: Jobs[Any], count: int, limit: int) -> None:
        #: Each result as a tuple of one, or an error in its place, with its number.
        self.results: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        #: True: a result is done with; False: stop; None: look whether there is room, or an end.
        self.credit: SimpleQueue[bool | None] = SimpleQueue()
        self.stopped = False
        self._hungry = False  # whether the taker waits for a result
        self._jobs, self._count, self._limit = jobs, count, limit
        self._line = threading.Lock()  # one thread waits for room, and the others behind it
        self._turn = threading.Lock()
        # Below is theirs whose turn it is.
        self._put_off: Job[Any] | None = None  # a job for which there was no room
        self._out: deque[int] = deque()  # bytes of the results not yet done with, oldest first
        self._begun = 0
        self._running = 0  # threads
        self._waits = False  # whether one of them waits for credit

    def start(self, threads: Sequence[threading.Thread]) -> None:
        """Have the `threads`, which `run`, start."""
        self._running = len(threads)
        for thread in threads:
            thread.start()

    def take(self) -> tuple[int, Any]:
        """A result, once there is one."""
        self._hungry = True
        result = self.results.get()
        self._hungry = False
        return result

    def begin(self) -> tuple[int, Callable[[], Any] | None] | None:
        """A job and its number; no job where there are no more; None where there is no room."""
        with self._turn:
            self._note_all()
            begun = self._next(Exception)  # and no Ctrl-C, which is not to wait for its turn
            if self._waits:
                self.credit.put(None)
            return begun

    def run(self) -> None:
        """What a thread does: one job after another, until there are no more or it is to stop."""
        while True:
            with self._line:
                number, make = self._await()
            if make is None:
                return
            try:
                self.results.put((number, (make(),)))
            except BaseException as error:  # whatever it is, it belongs to the taker
                self.stopped = True
                self.results.put((number, error))
            del make  # holds what the result was made of
            if not number and self._hungry:
                time.sleep(_GIVE_WAY)

    def _await(self) -> tuple[int, Callable[[], Any] | None]:
        """As `begin`, once there is room; where there is no job the thread is to end."""
        while True:
            with self._turn:
                self._note_all()
                begun = self._next(BaseException)
                self._waits = begun is None
                if begun is not None:
                    if begun[1] is None:
                        self._running -= 1
                        self._end()
                    return begun
            credit = self.credit.get()
            with self._turn:
                self._waits = False
                self._note(credit)

    def _note_all(self) -> None:
        with suppress(Empty):
            while True:
                self._note(self.credit.get_nowait())

    def _note(self, credit: bool | None) -> None:
        if credit:
            self._out.popleft()
        elif credit is not None:
            self.stopped = True

    def _next(self, caught: type[BaseException]) -> tuple[int, Callable[[], Any] | None] | None:
        """As `begin`; what is `caught` of the jobs' errors is the taker's, in its turn."""
        number = self._begun
        try:
            if not self.stopped:
                self._put_off = self._put_off or next(self._jobs)
                nbytes, make = self._put_off
                if self._is_full(nbytes):
                    return None
                self._put_off = None
                self._out.append(nbytes)
                self._begun += 1
                return number, make
            self._put_off = None
            self._jobs.close()
        except StopIteration:
            self.stopped = True
        except caught as error:
            self._begun, self.stopped = number + 1, True
            self.results.put((number, error))
        self._end()
        return number, None

    def _end(self) -> None:
        """Say that it is over, where no thread can have more to say."""
        if not self._running:
            self.results.put((self._begun, _DONE))

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

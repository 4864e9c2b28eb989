"""Work made ahead: in order, within its bounds, and gone when nobody wants it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from raggedstore.training.ahead import Ahead


def jobs_of(make: Callable[[int], int], count: int, closed: list[bool]) -> Iterator[Any]:
    """`count` jobs that call `make`; adds to `closed` when it is closed, or over."""
    try:
        for i in range(count):
            yield 1, partial(make, i)
    finally:
        closed.append(True)


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "raggedstore-loader"]


def test_work_ahead_keeps_to_its_count_and_bytes() -> None:
    sizes = [10, 10, 70, 20, 200, 10, 10, 10, 10, 10, 10]
    made: list[int] = []
    news = threading.Semaphore(0)

    def make(i: int) -> int:
        made.append(i)
        news.release()
        return i

    def jobs() -> Iterator[Any]:
        for i, nbytes in enumerate(sizes):
            yield nbytes, partial(make, i)

    ahead = Ahead(jobs(), count=3, limit=100)
    got = []
    # How many are made once the loop has taken one more: 100 bytes, or one, or 3 and its own.
    for there in (3, 4, 4, 4, 5, 9, 10, 11, 11, 11, 11):
        got.append(next(ahead))
        while len(made) < there:
            assert news.acquire(timeout=10)
        assert len(made) == there
    assert got == made == list(range(len(sizes)))
    assert next(ahead, None) is None and next(ahead, None) is None
    ahead.close()


class Meeting:
    """Jobs of which each waits for the next one to be begun, so that two must be made at a time."""

    def __init__(self, count: int) -> None:
        self.begun = [threading.Event() for _ in range(count + 1)]
        self.begun[count].set()
        self.closed = 0

    def make(self, i: int) -> int:
        self.begun[i].set()
        assert self.begun[i + 1].wait(10)
        return i

    def jobs(self) -> Iterator[Any]:
        try:
            for i in range(len(self.begun) - 1):
                yield 1, partial(self.make, i)
        finally:
            self.closed += 1


def test_results_made_by_two_threads_come_in_the_order_of_their_jobs() -> None:
    meeting = Meeting(50)
    ahead = Ahead(meeting.jobs(), count=3, limit=100, threads=2)
    assert list(ahead) == list(range(50))
    assert list(ahead) == [] and meeting.closed == 1
    ahead.close()
    assert not readers()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_error_comes_in_its_turn_and_ends_it(threads: int) -> None:
    def make(i: int) -> int:
        if i in (4, 5):
            raise ZeroDivisionError(i)
        return i

    closed: list[bool] = []
    ahead = Ahead(jobs_of(make, 30, closed), count=5, limit=100, threads=threads)
    assert [next(ahead) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError, match="4"):
        next(ahead)
    assert next(ahead, None) is None
    ahead.close()
    assert closed == [True] and not readers()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_between_jobs_comes_after_what_was_made_before(threads: int) -> None:
    def jobs() -> Iterator[Any]:
        for i in range(3):
            yield 1, partial(int, i)
        raise ZeroDivisionError

    ahead = Ahead(jobs(), count=5, limit=100, threads=threads)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(ahead)
    ahead.close()
    assert not readers()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_end_whenever_it_is_closed_or_dropped(threads: int) -> None:
    for taken in range(5):
        closed: list[bool] = []
        ahead = Ahead(jobs_of(int, 5, closed), count=1, limit=100, threads=threads)
        assert [next(ahead) for _ in range(taken)] == list(range(taken))
        if taken % 2:
            ahead.close()
        del ahead
        gc.collect()
        for thread in readers():
            thread.join(10)
        assert closed == [True] and not readers()


def test_two_threads_keep_to_count_and_bytes() -> None:
    working = threading.Lock()
    now = 0
    sizes = np.random.default_rng(0).integers(1, 60, 60).tolist()

    def make(nbytes: int) -> int:
        nonlocal now
        with working:
            now += nbytes
        return nbytes

    def jobs() -> Iterator[Any]:
        for nbytes in sizes:
            yield nbytes, partial(make, nbytes)

    ahead = Ahead(jobs(), count=4, limit=100, threads=2)
    for i, nbytes in enumerate(sizes):
        assert next(ahead) == nbytes
        time.sleep(0.001)  # all the time they want
        with working:
            assert now - sum(sizes[:i]) <= 100
    ahead.close()

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
from hypothesis import given
from hypothesis import strategies as st

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
    """Jobs of which each waits for the next one to be begun, so that two must be made at a time.

    The first is made alone.
    """

    def __init__(self, count: int) -> None:
        self.begun = [threading.Event() for _ in range(count + 1)]
        self.begun[count].set()
        self.closed = 0

    def make(self, i: int) -> int:
        self.begun[i].set()
        assert not i or self.begun[i + 1].wait(10)
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
        # Where the taker would have begun, nothing has been.
        assert closed == ([True] if taken or threads == 1 else []) and not readers()


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


def test_the_taker_makes_the_first_result_and_then_what_nobody_has_begun() -> None:
    begun = [threading.Event() for _ in range(3)]
    go_on = threading.Event()
    makers: list[threading.Thread] = []

    def make(i: int) -> int:
        if i == 0:
            assert not readers()
        if i < 3:
            begun[i].set()
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(10)
        else:
            makers.append(threading.current_thread())
        if i == 2:  # made by the taker, while the reader is at 1
            assert begun[1].is_set()
            go_on.set()
        return i

    ahead = Ahead(jobs_of(make, 3, []), count=2, limit=100, threads=2)
    assert next(ahead) == 0 and len(makers) == 1
    assert begun[1].wait(10)
    assert next(ahead) == 1 and len(makers) == 2
    assert list(ahead) == [2]
    ahead.close()


def test_what_the_taker_makes_takes_no_place_from_what_is_made_ahead() -> None:
    begun = [threading.Event() for _ in range(4)]
    waits_for = {1: 2, 2: 3}

    def make(i: int) -> int:
        begun[i].set()
        if i in waits_for:
            assert begun[waits_for[i]].wait(10)
        return i

    ahead = Ahead(((1, partial(make, i)) for i in range(4)), count=1, limit=100, threads=2)
    assert next(ahead) == 0
    assert begun[1].wait(10)  # by the thread, so that the taker makes 2, and 3 comes meanwhile
    assert list(ahead) == [1, 2, 3]
    ahead.close()


def test_an_interrupt_of_the_taker_does_not_wait_for_its_turn() -> None:
    main = threading.main_thread()
    slow = threading.Event()

    def make(i: int) -> int:
        if i and threading.current_thread() is main:
            raise KeyboardInterrupt
        if i:
            slow.wait(10)
        return i

    closed: list[bool] = []
    ahead = Ahead(jobs_of(make, 9, closed), count=5, limit=100, threads=2)
    assert next(ahead) == 0
    with pytest.raises(KeyboardInterrupt):
        next(ahead)
    slow.set()
    assert next(ahead, None) is None
    ahead.close()
    assert closed == [True] and not readers()


def test_nor_does_one_while_a_job_is_planned() -> None:
    main = threading.main_thread()
    slow = threading.Event()

    def jobs() -> Iterator[Any]:
        for i in range(9):
            if i > 1 and threading.current_thread() is main:
                raise KeyboardInterrupt
            yield 1, slow.wait if i else bool

    ahead = Ahead(jobs(), count=5, limit=100, threads=2)
    assert next(ahead) is False
    while not readers():
        time.sleep(0.001)
    time.sleep(0.02)  # the reader is at job 1
    with pytest.raises(KeyboardInterrupt):
        next(ahead)
    slow.set()
    ahead.close()
    assert not readers()


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=40),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_nobody_waits_for_what_never_comes(
    jobs: list[tuple[int, bool]], count: int, threads: int, seed: int
) -> None:
    """Whatever jobs take in bytes and time, and whoever is fast: all results, in order."""
    slow = np.random.default_rng(seed).random(len(jobs)) < 0.3

    def make(i: int) -> int:
        if jobs[i][1]:
            time.sleep(1e-4)
        return i

    def planned() -> Iterator[Any]:
        for i, (nbytes, _) in enumerate(jobs):
            yield nbytes, partial(make, i)

    got: list[int] = []

    def take() -> None:
        ahead = Ahead(planned(), count=count, limit=100, threads=threads)
        for i in ahead:
            got.append(i)
            if slow[i]:
                time.sleep(2e-4)
        ahead.close()

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    taker.join(20)
    assert not taker.is_alive() and got == list(range(len(jobs)))

"""The log of who begins which epoch: groups that come in any order, copies, and real processes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from dataclasses import replace
from typing import Any

import pytest

from raggedstore.errors import StorageError
from raggedstore.training.elsewhere import Elsewhere, Entry
from raggedstore.training.report import Quarantined

HERE = Entry(
    starter=1, change=0, seed=5, members=2, round=0, member=0, epoch=3, fixed=0, process=10
)


def begin(log: Elsewhere, seed: int, member: int, **others: int) -> int:
    return log.begin(replace(HERE, seed=seed, member=member, **others))


def test_members_of_a_group_begin_one_epoch_in_whatever_order_they_come() -> None:
    log = Elsewhere()
    came = [(5, 0), (6, 1), (7, 0), (6, 0), (5, 1), (7, 1)]

    assert [begin(log, seed, member) for seed, member in came] == [3, 4, 5, 4, 3, 5]
    assert log.last(1, 0) == 5


def test_a_seed_that_comes_again_is_another_group() -> None:
    log = Elsewhere()

    assert [begin(log, 5, member, process=10 + member) for member in (0, 1)] == [3, 3]
    assert [begin(log, 5, member, process=20 + member) for member in (1, 0)] == [4, 4]
    assert [begin(log, 5, m, process=30 + m, members=3) for m in (2, 0, 1)] == [5, 5, 5]
    assert [begin(log, 5, m, process=30 + m, members=3, round=1) for m in (2, 1)] == [6, 6]


def test_a_state_says_where_a_group_is_and_the_next_goes_on_from_there() -> None:
    log = Elsewhere()
    begin(log, 5, 0)

    assert [begin(log, 6, member, epoch=1, fixed=1) for member in (0, 1)] == [1, 1]
    assert log.last(1, 0) == 1
    assert begin(log, 7, 0) == 2


def test_loaders_of_other_processes_and_changes_are_apart() -> None:
    log = Elsewhere()
    begin(log, 5, 0)

    assert log.last(1, 1) is None and log.last(2, 0) is None
    assert begin(log, 6, 0, change=1) == 3
    assert begin(log, 7, 0, starter=2) == 3
    assert log.last(1, 0) == log.last(1, 1) == log.last(2, 0) == 3


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_is_a_log_of_its_own(again: Any) -> None:
    log = Elsewhere()
    other = again(log)
    begin(log, 5, 0)

    assert other.last(1, 0) is None


def test_a_log_that_nobody_has_is_closed() -> None:
    log = Elsewhere()
    fds = [log._begun.fd, log._lost.fd]
    for fd in fds:
        os.fstat(fd)
    del log

    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_what_is_set_aside_is_told_to_who_started_the_process_and_once() -> None:
    log = Elsewhere()
    one, other = (Quarantined(i, 0, 1, "a", None, "Odd", "é\n") for i in range(2))
    assert log.was_set_aside(1) == []
    log.set_aside(1, [one])
    log.set_aside(2, [other])
    log.set_aside(1, [other, one])

    assert log.was_set_aside(1) == [one, other, one]
    assert log.was_set_aside(1) == []
    log._lost.append(b"[1, 5", "half of a line")
    assert log.was_set_aside(1) == []
    log.set_aside(1, [one])  # which comes behind that half
    log.set_aside(1, [other])
    assert log.was_set_aside(1) == [other]


def test_a_full_disk_is_an_error_that_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Elsewhere()
    monkeypatch.setattr(os, "write", lambda fd, data: 1)
    with pytest.raises(StorageError, match=r"set aside.*No space"):
        log.set_aside(1, [Quarantined(0, 0, 0, "a", None, "Odd", "")])


def _rounds(log: Elsewhere, seed: int, member: int, results: Any) -> None:
    here = replace(HERE, seed=seed, member=member, members=3, process=os.getpid())
    results.put((seed, [log.begin(replace(here, round=n)) for n in range(40)]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_run_at_once_agree(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    log, results = Elsewhere(), context.Queue()
    started = [
        context.Process(target=_rounds, args=(log, seed, member, results))
        for member in range(3)
        for seed in range(2)
    ]
    for process in started:
        process.start()
    got = [results.get() for _ in started]
    for process in started:
        process.join()

    one, other = ([epochs for seed, epochs in got if seed == wanted] for wanted in range(2))
    assert one == [one[0]] * 3 and other == [other[0]] * 3
    assert sorted(one[0] + other[0]) == list(range(3, 83))

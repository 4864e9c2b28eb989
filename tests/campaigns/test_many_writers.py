"""Eight processes append to one store at once."""

import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np

import raggedstore as rs

PROCESSES, COMMITS, SAMPLES = 8, 25, 3


def append_commits(path: Path, process: int) -> None:
    store = rs.open(path, "a")
    assert isinstance(store, rs.Store)
    for commit in range(COMMITS):
        with store.writer() as writer:
            for number in range(SAMPLES):
                key = (process * COMMITS + commit) * SAMPLES + number
                writer.append({"key": key, "values": np.full(key % 11, key, np.int32)})


def test_eight_processes_of_25_commits_each_lose_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rs.create(path, {"key": rs.Field("int64"), "values": rs.Field("int32", (None,))})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=append_commits, args=(path, i)) for i in range(PROCESSES)]

    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0] * PROCESSES
    store = rs.open(path)
    assert isinstance(store, rs.Store)
    assert store.versions() == list(range(PROCESSES * COMMITS + 1))
    keys = store["key"].batch(slice(None)).tolist()
    assert Counter(keys) == Counter(range(PROCESSES * COMMITS * SAMPLES))
    for key, values in zip(keys, store["values"], strict=True):
        assert values.tolist() == [key] * (key % 11)
    assert store.verify().ok


def test_each_process_sees_its_own_commits_in_order(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rs.create(path, {"key": rs.Field("int64"), "values": rs.Field("int32", (None,))})
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_commits, args=(path, i)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    keys = rs.open(path)["key"].batch(slice(None))

    for process in range(2):
        own = keys[keys // (COMMITS * SAMPLES) == process]
        assert (np.diff(own) > 0).all()

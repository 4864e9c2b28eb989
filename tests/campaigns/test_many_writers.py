"""Eight processes append to one store at once, and others read, compact and vacuum it."""

import multiprocessing
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.store import lists

PROCESSES, COMMITS, SAMPLES = 8, 25, 3


def append_commits(path: Path, process: int, direct: int = lists.DIRECT) -> None:
    lists.DIRECT = direct
    store = rs.open(path, "a")
    assert isinstance(store, rs.Store)
    for commit in range(COMMITS):
        with store.writer() as writer:
            for number in range(SAMPLES):
                key = (process * COMMITS + commit) * SAMPLES + number
                writer.append({"key": key, "values": np.full(key % 11, key, np.int32)})


@pytest.mark.parametrize("direct", [2, lists.DIRECT])
def test_eight_processes_of_25_commits_each_lose_and_double_nothing(
    tmp_path: Path, direct: int
) -> None:
    path = tmp_path / "store"
    rs.create(path, {"key": rs.Field("int64"), "values": rs.Field("int32", (None,))})
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=append_commits, args=(path, i, direct)) for i in range(PROCESSES)
    ]

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
    assert len(store.manifest.lists) == (PROCESSES * COMMITS - 1) // direct
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


def follow(path: Path, done: Event) -> None:
    """Refresh until the writers are done; what was seen once is there ever after."""
    store = rs.open(path)
    assert isinstance(store, rs.Store)
    seen: list[int] = []
    version = 0
    while True:
        last = done.is_set()
        assert store.refresh() >= version
        version = store.version
        keys = store["key"].batch(slice(None)).tolist()
        assert keys[: len(seen)] == seen
        seen = keys
        if last:
            assert len(seen) == 3 * COMMITS * SAMPLES
            return


def keep_up(path: Path, done: Event, what: str) -> None:
    """Compact or vacuum until the writers are done."""
    lists.DIRECT = 2
    store = rs.open(path, "a")
    assert isinstance(store, rs.Store)
    while not done.is_set():
        if what == "compact":
            store.compact()
        else:
            store.refresh()
            store.vacuum(keep=1)


def test_readers_follow_writers_while_others_compact_and_vacuum(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rs.create(path, {"key": rs.Field("int64"), "values": rs.Field("int32", (None,))})
    context = multiprocessing.get_context("spawn")
    done = context.Event()

    def start(target: Any, *arguments: Any) -> Any:
        process = context.Process(target=target, args=(path, *arguments))
        process.start()
        return process

    writers = [start(append_commits, i, 2) for i in range(3)]
    others = [start(follow, done) for _ in range(2)]
    others += [start(keep_up, done, what) for what in ("compact", "vacuum")]
    for writer in writers:
        writer.join()
    done.set()
    for other in others:
        other.join()

    assert [process.exitcode for process in writers + others] == [0] * 7
    store = rs.open(path, "a")
    assert isinstance(store, rs.Store)
    store.vacuum(keep=1)
    store = rs.open(path, verify=True)
    assert isinstance(store, rs.Store)
    assert sorted(store["key"].batch(slice(None)).tolist()) == list(range(3 * COMMITS * SAMPLES))
    manifest = store.manifest
    names = {entry.file for entry in manifest.segments} | {e.index for e in manifest.segments}
    names |= {entry.file for entry in manifest.lists} | {f"{store.version:020d}.json"}
    assert {p.name for p in path.rglob("*.*") if p.suffix != ".lock"} == names

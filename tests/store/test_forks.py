"""What a fork leaves of what its parent had open."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tables

import raggedstore as rs
from raggedstore.segment.codec import encode_frame
from raggedstore.segment.writer import hdf5_lock
from raggedstore.store import vacuum

SCHEMA = {"values": rs.Field("int32", (None,))}
OPEN = tables.file._open_files

# The child ends as Python does, before the commit or after it: it leaves the writer's block, and
# PyTables closes what is open.
WRITING = """
import os, sys
import raggedstore as rs

wait, go_on = os.pipe()
with rs.create(sys.argv[1], {"values": rs.Field("int32", (None,))}) as store:
    with store.writer() as writer:
        for i in range(3_000):
            writer.append({"values": [i]})
        child = os.fork()
        if not child:
            os.read(wait, 1)
            sys.exit()
        if sys.argv[2] == "after":
            writer.commit()
        os.write(go_on, b"!")
        assert os.waitpid(child, 0)[1] == 0
        writer.append({"values": [-1]})
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_child_that_ends_takes_nothing_from_a_writer_of_its_parent(
    tmp_path: Path, when: str
) -> None:
    subprocess.run([sys.executable, "-c", WRITING, tmp_path / "store", when], check=True)

    store = rs.open(tmp_path / "store", verify=True)
    assert len(store) == 3_001
    assert [int(values[0]) for values in store["values"][-2:]] == [2_999, -1]


def in_child(work: Callable[[], bool]) -> int:
    """The exit code of a forked child: 0 where `work` says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads about
        child = os.fork()
    if not child:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_cannot_write_with_its_parents_writer(tmp_path: Path) -> None:
    with rs.create(tmp_path / "store", SCHEMA).writer() as writer:
        writer.append({"values": [1]})

        def is_refused() -> bool:
            with pytest.raises(rs.UsageError, match="before a fork"):
                writer.append({"values": [2]})
            writer.close()
            # Other tests may have files open that are no concern of this one.
            return not any(name.startswith(str(tmp_path)) for name in map(str, OPEN.filenames))

        assert in_child(is_refused) == 0

    assert len(rs.open(tmp_path / "store")) == 1


def test_a_fork_waits_until_nobody_is_in_hdf5(tmp_path: Path) -> None:
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with hdf5_lock:
            held.set()
            forked.wait(0.1)  # the fork cannot come before this has passed

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def is_free() -> bool:
        return hdf5_lock.acquire(blocking=False)

    code = in_child(is_free)
    forked.set()
    thread.join()

    assert code == 0


def test_children_compress_though_threads_of_the_parent_were_at_it() -> None:
    raw, stop = np.arange(2000, dtype=np.int32), threading.Event()

    def compress() -> bool:
        return bool(encode_frame(raw, 4, 4, rs.Compression()))

    def compress_on() -> None:
        while not stop.is_set():
            compress()

    def compress_soon() -> bool:
        signal.alarm(20)
        return compress()

    threads = [threading.Thread(target=compress_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(25):
        time.sleep(0.003)
        codes.append(in_child(compress_soon))
        if codes[-1]:
            break
    stop.set()
    for thread in threads:
        thread.join()

    assert not any(codes)


def test_numpy_has_nothing_left_to_import_when_threads_begin() -> None:
    code = """
import sys
import numpy as np
import raggedstore as rs

before = {*sys.modules}
np.unique([1, 1]), np.random.default_rng(0), np.ma.is_masked(1)
print(*sorted(name for name in {*sys.modules} - before if name.startswith("numpy")))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.split() == []


def test_a_child_forked_in_the_midst_of_a_vacuum_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = rs.create(tmp_path / "store", SCHEMA)
    children: list[int] = []
    pipes: list[int] = []

    def forking(root: Path) -> list[Path]:
        wait, go_on = os.pipe()
        pipes.append(go_on)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            for end in pipes:
                os.close(end)
            os.read(wait, 1)
            os._exit(0)
        os.close(wait)
        children.append(child)
        return []

    monkeypatch.setattr(vacuum, "_outdated", lambda root, keep: forking(root))
    monkeypatch.setattr(vacuum, "_remove_loose", forking)
    signal.alarm(30)  # a lock that a child kept would be waited for for ever
    try:
        store.vacuum(keep=1)
        with store.writer() as writer:
            writer.append({"values": [1]})
    finally:
        signal.alarm(0)
        for end in pipes:
            os.close(end)
        for child in children:
            os.waitpid(child, 0)

    assert len(children) == 2 and len(rs.open(store.path)) == 1

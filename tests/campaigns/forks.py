"""Fork a process whose threads are at work, again and again, and see that no child hangs.

    python -m tests.campaigns.forks [--long] [--forks 60] [--seed 0]

Threads of this process read a store in every way there is: samples, permuted batches and crops, in
order (so that chunks are decoded ahead), by a `Loader`, and by opening it anew. Others write stores
of their own. Python switches between them as often as it can, so that a fork finds locks held.

- Each child reads in all these ways from the store that the threads are at; some write a store. A
  child that takes too long is a hang, and where it hung is told.
- Children of a process with an open writer leave the writer's block and close what HDF5 has open,
  before or after the writer commits. It must lose nothing, and commit nothing twice.
- DataLoaders of PyTorch by fork, spawn and forkserver, over the store that the threads are at and
  over a `Loader`, must give every sample once.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tables

import raggedstore as rs
from raggedstore.segment.writer import hdf5_lock
from raggedstore.torch import LoaderDataset, MapDataset
from raggedstore.training import Loader, Shuffled
from tests.campaigns.looking import differences, opened
from tests.campaigns.table import conclude, print_row

SHORT_FORKS, LONG_FORKS = 30, 1000
SECONDS = 60  # for one child
SAMPLES = 400
SMALL = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=8192, block_bytes=1024)
SCHEMA = {"key": rs.Field("int64"), "values": rs.Field("int32", (None,)), "text": rs.Field("str")}
METHODS = ("fork", "spawn", "forkserver")


def sample(index: int) -> dict[str, Any]:
    """The sample that belongs at `index`."""
    values = (np.arange(index * 37 % 1500) * 7 + index).astype(np.int32)
    return {"key": np.int64(index), "values": values, "text": f"sample {index}" * (index % 3)}


def make(path: Path, count: int = SAMPLES, segments: int = 8) -> None:
    """A store of so many segments."""
    with rs.create(path, SCHEMA, profile=SMALL) as store, store.writer() as writer:
        for i in range(count):
            writer.append(sample(i))
            if (i + 1) % (count // segments) == 0:
                writer.commit()


# Looking, in threads and children


def check(row: dict[str, Any], index: int) -> None:
    """AssertionError where it is not the sample that belongs at `index`."""
    want = sample(index)
    assert all(np.array_equal(row[name], want[name]) for name in want), f"sample {index}"


def check_batch(batch: dict[str, Any]) -> int:
    """AssertionError where anything in a batch does not go with its key."""
    for key, values, text in zip(batch["key"], batch["values"], batch["text"], strict=True):
        check({"key": key, "values": values, "text": text}, int(key))
    return len(batch["key"])


def read_samples(store: rs.Store, rng: random.Random) -> None:
    for _ in range(10):
        index = rng.randrange(len(store))
        check(store[index], index)


def read_batch(store: rs.Store, rng: random.Random) -> None:
    check_batch(store.batch(rng.sample(range(len(store)), 20)))


def read_in_order(store: rs.Store, rng: random.Random) -> None:
    first = rng.randrange(len(store) - 40)
    for index in range(first, first + 40):
        assert np.array_equal(store["values"][index], sample(index)["values"]), index


def read_loader(store: rs.Store, rng: random.Random) -> None:
    loader = Loader(store, order=Shuffled(seed=rng.randrange(99)), batch=16, budget="8MB")
    for batch in itertools.islice(loader, 3):
        check_batch(batch)


def open_anew(store: rs.Store, rng: random.Random) -> None:
    with opened(store.path) as other:
        read_batch(other, rng)


READS: tuple[Callable[[rs.Store, random.Random], None], ...] = (
    read_samples, read_batch, read_in_order, read_loader, open_anew,
)  # fmt: skip


def write(folder: Path, rng: random.Random) -> None:
    """Make a store, look at it, and have it gone."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        make(Path(scratch) / "store", count=24, segments=3)
        with opened(Path(scratch) / "store") as store:
            read_batch(store, rng)


class Threads:
    """Threads at work for as long as this is entered."""

    def __init__(
        self, store: rs.Store, folder: Path, *, writers: int = 2, pause: float = 0
    ) -> None:
        self.faults: list[str] = []
        self._pause = pause
        self._stop = threading.Event()
        works = [lambda rng, read=read: read(store, rng) for read in READS]
        works += [lambda rng: write(folder, rng)] * writers
        self._threads = [
            threading.Thread(target=self._work, args=(work, number), daemon=True)
            for number, work in enumerate(works)
        ]

    def _work(self, work: Callable[[random.Random], None], number: int) -> None:
        rng = random.Random(number)
        while not self._stop.wait(self._pause):
            try:
                work(rng)
            except Exception:
                self.faults.append(f"a thread of the parent: {traceback.format_exc()}")
                return

    def __enter__(self) -> Threads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


# Forks


@dataclass
class Findings:
    """What a campaign tried and found."""

    forks: int = 0
    wrote: int = 0  #: children that wrote a store
    locked: Counter[str] = field(default_factory=Counter)  #: forks that found a lock held
    commits: int = 0  #: by writers that were open when a child was forked
    batches: Counter[str] = field(default_factory=Counter)  #: of DataLoaders, by method
    slowest: float = 0.0  #: seconds that a child took
    faults: list[str] = field(default_factory=list)


class Child:
    """A forked child that does one thing, and says what went wrong."""

    def __init__(self, work: Callable[[], None]) -> None:
        told, say = os.pipe()
        self._told = told
        self._begun = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads about
            self._pid = os.fork()
        if not self._pid:
            _live(work, say)
        os.close(say)

    def join(self) -> tuple[str, float]:
        """What went wrong, or nothing; and how long it took."""
        with open(self._told, errors="replace") as said:
            last_words = said.read()
        _, status = os.waitpid(self._pid, 0)
        took = time.monotonic() - self._begun
        if not status:
            return "", took
        kind = "hung" if "Timeout" in last_words or status == signal.SIGALRM else "failed"
        return f"a child {kind} (status {status}): {last_words[-3000:]}", took


def _live(work: Callable[[], None], say: int) -> NoReturn:
    status = 1
    try:
        signal.alarm(SECONDS + 10)  # should the next fail
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=say)
        work()
        status = 0
    except BaseException:
        os.write(say, traceback.format_exc().encode())
    os._exit(status)


@contextmanager
def counting_locks(store: rs.Store, findings: Findings) -> Iterator[None]:
    """Count what locks the forks find held."""
    context = store._snapshot.context
    counts = True

    def count() -> None:
        if counts:
            held = {
                "cache": context.cache._lock.locked(),
                "open files": context.files._lock.locked(),
                "HDF5": not hdf5_lock.acquire(blocking=False),
            }
            if not held["HDF5"]:
                hdf5_lock.release()
            findings.locked.update(name for name, is_held in held.items() if is_held)

    os.register_at_fork(before=count)  # hooks run the last one first
    try:
        yield
    finally:
        counts = False


@contextmanager
def switching(seconds: float) -> Iterator[None]:
    """Have Python go from thread to thread so often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def fork_readers(forks: int, seed: int, folder: Path, findings: Findings) -> None:
    """Fork so many children while threads read and write."""
    rng = random.Random(seed)
    with (
        opened(folder / "store") as store,
        Threads(store, folder) as threads,
        counting_locks(store, findings),
        switching(1e-5),
    ):
        for number in range(forks):
            time.sleep(rng.random() * 0.005)
            writes, seed = rng.random() < 0.25, rng.randrange(2**32)

            def child(writes: bool = writes, seed: int = seed) -> None:
                rng = random.Random(seed)
                for read in READS:
                    read(store, rng)
                if writes:
                    write(folder, rng)

            error, took = Child(child).join()
            findings.forks += 1
            findings.wrote += writes
            findings.slowest = max(findings.slowest, took)
            findings.faults += [f"fork {number}: {error}"] if error else []
        findings.faults += threads.faults


def fork_writers(forks: int, seed: int, folder: Path, findings: Findings) -> None:
    """Fork so many children while a writer is open, which end before or after it commits."""
    rng = random.Random(seed)
    path = folder / "written"
    with rs.create(path, SCHEMA, profile=SMALL) as store:
        count = 0
        for number in range(forks):
            wait, go_on = os.pipe()
            with store.writer() as writer:
                for _ in range(rng.randrange(1, 300)):
                    writer.append(sample(count))
                    count += 1

                def end(writer: Any = writer, wait: int = wait) -> None:
                    os.read(wait, 1)
                    writer.__exit__(SystemExit, SystemExit(), None)
                    with suppress(rs.UsageError):
                        writer.append(sample(0))
                        raise AssertionError("a child appends with its parent's writer")
                    tables.file._open_files.close_all()  # as at the end of Python

                child = Child(end)
                if rng.random() < 0.5:
                    os.write(go_on, b"!")
                    error, _ = child.join()
                    writer.commit()
                else:
                    writer.commit()
                    os.write(go_on, b"!")
                    error, _ = child.join()
            os.close(wait)
            os.close(go_on)
            findings.commits += 1
            findings.faults += [f"fork of a writer {number}: {error}"] if error else []
        if not (report := store.verify()).ok:
            findings.faults.append(f"forks of writers: {report}")
        found = differences(store, [sample(i) for i in range(count)])
        findings.faults += [f"forks of writers: {fault}" for fault in found]


# DataLoaders


def identity(rows: Any) -> dict[str, Any]:
    """The columns of a batch, as they are."""
    rows = [*rows]
    return {name: [row[name] for row in rows] for name in SCHEMA}


def load(method: str, is_long: bool, folder: Path, findings: Findings) -> None:
    """Every sample once from DataLoaders of one method, while threads are at work."""
    from torch.utils.data import DataLoader

    with (
        opened(folder / "store") as store,
        Threads(store, folder, writers=0, pause=0.02) as threads,
    ):
        datasets: list[tuple[Any, int | None]] = [
            (MapDataset(store), 32),
            (LoaderDataset(Loader(store, batch=32), ragged="values"), None),
        ]
        if not is_long and method != "fork":  # a new Python takes seconds to have PyTorch
            datasets = datasets[METHODS.index(method) % 2 :][:1]
        for dataset, batch in datasets:
            loader = DataLoader(
                dataset, batch, num_workers=4 if is_long else 1, timeout=SECONDS,
                collate_fn=identity if batch else None, multiprocessing_context=method,
            )  # fmt: skip
            keys = []
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    for columns in loader:
                        keys += [int(key) for key in columns["key"]]
                        findings.batches[method] += 1
                        if batch:
                            check_batch(columns)
            except Exception:
                findings.faults.append(f"{method}, {dataset}: {traceback.format_exc()}")
            if sorted(keys) != list(range(len(store))):
                findings.faults.append(f"{method}, {dataset}: {len(keys)} samples came")
        findings.faults += threads.faults


def campaign(forks: int, seed: int, *, is_long: bool = False) -> Findings:
    """Fork so many children, a tenth as many of a process that writes, and have DataLoaders."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "store")
        fork_readers(forks, seed, folder, findings)
        fork_writers(max(forks // 10, 1), seed, folder, findings)
        for method in METHODS:
            load(method, is_long, folder, findings)
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help=f"{LONG_FORKS} forks")
    parser.add_argument("--forks", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    forks = options.forks or (LONG_FORKS if options.long else SHORT_FORKS)
    findings = campaign(forks, options.seed, is_long=options.long)
    rows = [
        ("children of a process that reads and writes", findings.forks),
        ("  of which wrote a store themselves", findings.wrote),
        *((f"  forked while the lock of {n} was held", c) for n, c in findings.locked.items()),
        ("  seconds that the slowest took", round(findings.slowest, 2)),
        ("children of a process with an open writer", findings.commits),
        *((f"batches of DataLoaders by {m}", findings.batches[m]) for m in METHODS),
    ]
    for what, number in rows:
        print_row(what, number, first=46, width=8)
    conclude("hangs, crashes, wrong samples", started, findings.faults)


if __name__ == "__main__":
    main()

"""A year of daily appends, with compactions, vacuums and kills, against one bulk write.

    python -m tests.campaigns.year [--long] [--days 40] [--seed 0]

Each day a job of its own opens the store, appends the day's samples if they are not there, and once
a week compacts and vacuums. One job in five is killed at a random moment and started again. In the
end every day's samples must be there once, exactly, and the store must take no more than 1.05 times
what the same samples take when they are written at once.

Opening and reading are timed for both, in turn, on the eve of a compaction (six days lie in
segments of their own) and after it. Those are ratios to look at, and not judged.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import raggedstore as rs
from tests.campaigns.looking import loose_files, opened
from tests.campaigns.table import conclude, print_row

SHORT_DAYS, LONG_DAYS = 40, 365
SHORT_RUNS, LONG_RUNS = 3, 25
WEEK = 7
KILLED = 0.2  # of the jobs
MOST = 1.05  # of the size of one bulk write
SCHEMA = {
    "audio": rs.Field("int16", (None,)),
    "label": rs.Field("int32"),
    "text": rs.Field("str"),
}


def samples_of(day: int) -> list[dict[str, Any]]:
    """What comes on a day: some recordings, like speech in how they compress."""
    rng = np.random.default_rng(day)
    samples = []
    for number in range(rng.integers(20, 40)):
        count = int(rng.integers(1000, 8000))
        loud = 300 * np.abs(np.sin(np.arange(count) / 900 + number))
        audio = np.cumsum(rng.normal(0, loud)) * 0.05 + rng.normal(0, 20, count)
        text = " ".join(rng.choice(["one", "two", "three", "yes", "no"], 8))
        samples.append(
            {"audio": audio.astype(np.int16), "label": np.int32(day * 100 + number), "text": text}
        )
    return samples


# Days


@dataclass
class Findings:
    """What a campaign tried and found."""

    days: int = 0
    kills: int = 0
    halves: int = 0  #: days that were committed when their job was killed
    compactions: int = 0
    removed: int = 0  #: files that vacuum removed
    samples: int = 0
    sizes: dict[str, float] = field(default_factory=dict)  #: to that of one bulk write
    #: likewise: by the clock, and of the processor's time, which other work on the machine
    #: disturbs less
    times: dict[str, tuple[float, float]] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)  #: of the bulk write
    faults: list[str] = field(default_factory=list)


def job(path: Path, day: int, *, keeps_up: bool) -> None:
    """What is done each day, and can be done again."""
    with opened(path, "a") as store:
        if store.metadata.get("day", -1) < day:
            with store.writer() as writer:
                writer.extend(samples_of(day))
                writer.commit(metadata={"day": day})
        if keeps_up:
            store.compact()
            store.vacuum(keep=1)


def run(path: Path, day: int, *, keeps_up: bool, seconds: float | None) -> tuple[str, float]:
    """Do a day's job in a child and kill it after so long; what it died of by itself."""
    begun = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads about
        child = os.fork()
    if not child:
        try:
            job(path, day, keeps_up=keeps_up)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    failed = os.WIFEXITED(status) and os.WEXITSTATUS(status)
    return f"the job of day {day} failed" if failed else "", time.monotonic() - begun


def live(path: Path, days: int, rng: random.Random, findings: Findings) -> None:
    """Have so many days; the last six are in segments of their own."""
    rs.create(path, SCHEMA).close()
    took = {False: 0.1, True: 0.1}  # how long the last such job took
    for day in range(days):
        keeps_up = (days - day) % WEEK == 0
        if rng.random() < KILLED:
            moment = rng.random() * took[keeps_up]
            error, _ = run(path, day, keeps_up=keeps_up, seconds=moment)
            findings.faults += [error] if error else []
            findings.kills += 1
            with opened(path) as store:
                there = store.metadata.get("day", -1)
            findings.halves += there == day
            if there not in (day - 1, day):
                findings.faults.append(f"day {there} is the last after a kill on day {day}")
        error, took[keeps_up] = run(path, day, keeps_up=keeps_up, seconds=None)
        findings.faults += [error] if error else []
        findings.compactions += keeps_up
        findings.days += 1


def compare(store: rs.Store, days: int) -> list[str]:
    """What is not as it came on its day."""
    at = 0
    for day in range(days):
        for want in samples_of(day):
            if at == len(store):
                return [f"samples end on day {day}"]
            got = store[at]
            if not all(np.array_equal(got[name], want[name]) for name in SCHEMA):
                return [f"sample {at}, of day {day}, is not exact"]
            at += 1
    return [] if at == len(store) else [f"{len(store)} samples where {at} came"]


# Against one bulk write


def read_in_order(store: rs.Store) -> None:
    for start in range(0, len(store), 64):
        store["audio"].batch(slice(start, start + 64))


def read_permuted(store: rs.Store) -> None:
    order = np.random.default_rng(0).permutation(len(store))
    for start in range(0, len(store), 64):
        store["audio"].batch(order[start : start + 64])


def get_some(store: rs.Store) -> None:
    for position in np.random.default_rng(1).integers(0, len(store), 200).tolist():
        store[position]


def first_sample(store: rs.Store) -> None:
    store[0]


def nothing(store: rs.Store) -> None:
    pass


READS: dict[str, Callable[[rs.Store], None]] = {
    "open": nothing,
    "open, one sample": first_sample,
    "open, read in order": read_in_order,
    "open, read permuted": read_permuted,
    "open, 200 samples": get_some,
}


def seconds_of(path: Path, read: Callable[[rs.Store], None], times: int) -> tuple[float, float]:
    """By the clock, and of the processor's time in all threads."""
    begun = time.perf_counter(), time.process_time()
    for _ in range(times):
        with opened(path) as store:
            read(store)
    ended = time.perf_counter(), time.process_time()
    return (ended[0] - begun[0]) / times, (ended[1] - begun[1]) / times


def size_of(path: Path) -> int:
    """Bytes of all files of a store."""
    return sum(file.stat().st_size for file in path.rglob("*"))


def measure(when: str, path: Path, bulk: Path, runs: int, findings: Findings) -> None:
    """Sizes and times of a store to those of another, medians of runs in turn."""
    findings.sizes[when] = size_of(path) / size_of(bulk)
    for name, read in READS.items():
        times = 20 if read in (nothing, first_sample) else 1
        took: dict[Path, list[tuple[float, float]]] = {path: [], bulk: []}
        for i in range(runs):
            for one in (path, bulk) if i % 2 else (bulk, path):
                took[one].append(seconds_of(one, read, times))
        own, other = (
            [statistics.median(clock) for clock in zip(*took[one], strict=True)]
            for one in (path, bulk)
        )
        findings.times[f"{name}, {when}"] = own[0] / other[0], own[1] / other[1]
        findings.milliseconds[name] = other[0] * 1000


def campaign(days: int, seed: int, runs: int) -> Findings:
    """Have so many days, and hold them against one bulk write."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder:
        path, bulk = Path(folder) / "daily", Path(folder) / "bulk"
        live(path, days, random.Random(seed), findings)
        with rs.create(bulk, SCHEMA) as store, store.writer() as writer:
            for day in range(days):
                writer.extend(samples_of(day))
        with opened(path, "a") as store:
            findings.samples = len(store)
            findings.faults += compare(store, days)
            findings.removed = len(store.vacuum(keep=1))
            findings.faults += [f"vacuum left {name}" for name in loose_files(path)]
        measure("on the eve", path, bulk, runs, findings)
        with opened(path, "a") as store:
            store.compact()
            store.vacuum(keep=1)
            findings.faults += compare(store, days)
            if not (report := store.verify()).ok:
                findings.faults.append(str(report))
        measure("compacted", path, bulk, runs, findings)
    findings.faults += [
        f"{ratio:.3f} times the size of one bulk write, {when}"
        for when, ratio in findings.sizes.items()
        if ratio > MOST
    ]
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help=f"{LONG_DAYS} days")
    parser.add_argument("--days", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    days = options.days or (LONG_DAYS if options.long else SHORT_DAYS)
    findings = campaign(days, options.seed, LONG_RUNS if options.long else SHORT_RUNS)
    for what, count in (
        ("days", findings.days),
        ("samples", findings.samples),
        ("jobs killed", findings.kills),
        ("  of which had committed their day", findings.halves),
        ("compactions", findings.compactions),
    ):
        print_row(what, count, first=36)
    whens = ("on the eve", "compacted")
    layout = partial(print_row, first=24, width=20)
    print()
    layout("to one bulk write", *whens, "bulk, ms")
    layout("size", *(f"{findings.sizes[when]:.3f}" for when in whens))
    for name in READS:
        ratios = [findings.times[f"{name}, {when}"] for when in whens]
        told = [f"{clock:.2f}, CPU {processor:.2f}" for clock, processor in ratios]
        layout(name, *told, f"{findings.milliseconds[name]:.2f}")
    conclude(f"{findings.days} days", started, findings.faults)


if __name__ == "__main__":
    main()

"""Writers and readers by the dozen on one store, while others compact and vacuum it.

    python -m tests.campaigns.many [--long] [--seconds 8] [--writers 4] [--readers 6] [--seed 0]

Writers, readers and those who compact are forked processes, spawned ones and threads in turn; so
processes are forked while threads of their parent write and read.

- A writer commits a few samples at a time, by a writer of its own or by one that it keeps open, and
  now and then leaves one by an exception. Every sample says whose it is, of which commit, and of
  how many samples that is.
- A follower moves to the newest version again and again. A version has all samples of a commit, one
  after another, or none; the commits of each writer without a gap; and before them what the
  version before had.
- A holder reads a version bit by bit while later ones come and go; nothing may go from under it.
- An unlocked reader is one on a disk without locks: vacuum can't know of it. It reads what was
  written, or is told by a `VersionError` that its version was removed.
- Two compact, and may find that the other was faster. One vacuums, half of the time in a lull in
  which nobody writes, since stray files stay as long as anybody does.

In the end every commit that returned is there once, and vacuum leaves nothing but what a version
names.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

import raggedstore as rs
from raggedstore.store import files, lists
from tests.campaigns.looking import loose_files, opened
from tests.campaigns.table import conclude, print_row

SHORT, LONG = (8, 4, 6), (600, 16, 16)  # seconds, writers, readers
PATIENCE = 120  # seconds that one may take to come to its end
DIRECT = 4  # segments that a manifest names itself
HOW = ("thread", "fork", "spawn")
SCHEMA = {
    "writer": rs.Field("int32"),
    "commit": rs.Field("int32"),
    "number": rs.Field("int32"),
    "of": rs.Field("int32"),
    "values": rs.Field("int32", (None,)),
}
DENSE = tuple(SCHEMA)[:4]


def sample(writer: int, commit: int, number: int, of: int) -> dict[str, Any]:
    """The sample of this number of a commit."""
    count = (writer * 31 + commit * 7 + number * 3) % 200
    values = (np.arange(count) + writer * 1_000_003 + commit * 101 + number).astype(np.int32)
    return {"writer": writer, "commit": commit, "number": number, "of": of, "values": values}


class Stage:
    """What all players are given: the store, when to stop, and when to hold still."""

    def __init__(self, path: Path, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.path, self.seed = path, seed
        self.stop, self.lull = context.Event(), context.Event()


class Fault(Exception):
    """What must not be."""


# The players: each gives counts of what it did


def write(stage: Stage, number: int, told: Counter[str]) -> None:
    """Commit a few samples again and again."""
    rng = random.Random(f"{stage.seed} writer {number}")
    commit = 0
    store = opened(stage.path, "a")
    while not stage.stop.is_set():
        if stage.lull.is_set():
            time.sleep(0.01)
            continue
        with store.writer() as writer:
            for _ in range(rng.choice((1, 1, 5))):
                of = rng.randrange(1, 9)
                for i in range(of):
                    writer.append(sample(number, commit, i, of))
                writer.commit()
                commit += 1
                told[f"commits of {number}"] = commit
                told["commits"] += 1
        if rng.random() < 0.1:
            with suppress(KeyboardInterrupt), store.writer() as writer:
                writer.append(sample(number, -1, 0, 1))
                told["given up"] += 1
                raise KeyboardInterrupt
        time.sleep(rng.random() * 0.05)


def follow(stage: Stage, number: int, told: Counter[str]) -> None:
    """Look at all of the newest version, again and again."""
    rng = random.Random(f"{stage.seed} follower {number}")
    with opened(stage.path) as store:
        seen, version = np.zeros((4, 0), np.int32), -1
        while not stage.stop.is_set():
            if store.refresh() < version:
                raise Fault(f"version {store.version} after {version}")
            told["versions followed"] += store.version > version
            version = store.version
            seen = check_version(store, seen)
            check_values(store, rng, 20)
            time.sleep(rng.random() * 0.05)


def hold(stage: Stage, number: int, told: Counter[str]) -> None:
    """Hold a version, and read it bit by bit."""
    rng = random.Random(f"{stage.seed} holder {number}")
    while not stage.stop.is_set():
        with opened(stage.path) as store:
            look_for_a_while(store, rng)
            told["versions held"] += 1
            told["versions held, and others removed"] += store.versions()[-2:-1] != [store.version]


def look_for_a_while(store: rs.Store, rng: random.Random) -> None:
    """Read some of a version again and again, and at last all of it."""
    until = time.monotonic() + 3 * rng.random()
    while time.monotonic() < until:
        check_values(store, rng, 3)
        time.sleep(0.05)
    check_version(store)


def read_unlocked(stage: Stage, number: int, told: Counter[str]) -> None:
    """As `hold`, of a version that vacuum may remove."""
    rng = random.Random(f"{stage.seed} unlocked {number}")
    with mock.patch.object(files, "lock_shared"):
        while not stage.stop.is_set():
            try:
                with opened(stage.path) as store:
                    look_for_a_while(store, rng)
                    told["versions read without locks"] += 1
            except rs.VersionError as error:
                if "removed by vacuum" not in str(error) and "has no version" not in str(error):
                    raise Fault(f"what does this say? {error}") from error
                told["of which were gone, as the error said"] += 1


def compact(stage: Stage, number: int, told: Counter[str]) -> None:
    """Compact again and again."""
    lists.DIRECT = DIRECT
    with opened(stage.path, "a") as store:
        while not stage.stop.is_set():
            if not stage.lull.is_set():
                try:
                    before = store.refresh()
                    # Where there was nothing to join, it may be what others committed meanwhile
                    told["compactions, at most"] += store.compact() > before
                except rs.ConflictError:
                    told["compactions that another was faster than"] += 1
            time.sleep(0.2)


def vacuum(stage: Stage, number: int, told: Counter[str]) -> None:
    """Vacuum again and again, half of the time in a lull."""
    rng = random.Random(stage.seed)
    with opened(stage.path, "a") as store:
        while not stage.stop.is_set():
            time.sleep(rng.random() * 0.4)
            if rng.random() < 0.5:
                stage.lull.set()
                time.sleep(0.3)
            store.refresh()
            removed = store.vacuum(keep=rng.choice((1, 2)))
            stage.lull.clear()
            told["vacuums"] += 1
            told["files removed"] += len(removed)


# What must hold


def check_version(
    store: rs.Store, seen: npt.NDArray[np.int32] | None = None
) -> npt.NDArray[np.int32]:
    """Fault where a version is not of whole commits, each once, after what was `seen` before."""
    found = np.stack([store[name].batch(slice(None)) for name in DENSE])
    writer, commit, number, of = found
    if seen is not None and not np.array_equal(found[:, : seen.shape[1]], seen):
        raise Fault(f"version {store.version} does not begin as the one before it")
    starts = np.flatnonzero(number == 0)
    lengths = np.diff(starts, append=len(number))
    runs = np.repeat(np.arange(len(starts)), lengths)
    whole = np.array_equal(lengths, of[starts]) and (not len(number) or number[0] == 0)
    if not whole or not np.array_equal(number, np.arange(len(number)) - starts[runs]):
        raise Fault(f"version {store.version} has a part of a commit")
    for which in (writer, commit, of):
        if not np.array_equal(which, which[starts][runs]):
            raise Fault(f"version {store.version} has two commits in one")
    for one in np.unique(writer):
        own = commit[starts][writer[starts] == one]
        if not np.array_equal(own, np.arange(len(own))):
            raise Fault(f"version {store.version} lacks or doubles a commit of writer {one}")
    return found


def check_values(store: rs.Store, rng: random.Random, count: int) -> None:
    """Fault where one of some samples is not as it was written."""
    for _ in range(min(count, len(store))):
        got = store[rng.randrange(len(store))]
        want = sample(*(int(got[name]) for name in DENSE))
        if not np.array_equal(got["values"], want["values"]):
            raise Fault(f"a sample of version {store.version} is not as it was written: {got}")


# Who plays what


@dataclass
class Findings:
    """What a campaign tried and found."""

    players: Counter[str] = field(default_factory=Counter)  #: by what and how they are
    counts: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    faults: list[str] = field(default_factory=list)


def play(
    part: Callable[[Stage, int, Counter[str]], None], stage: Stage, number: int, report: Path
) -> None:
    """Do a part to its end, and leave a report of it."""
    told: Counter[str] = Counter()
    fault = ""
    lists.DIRECT = DIRECT
    try:
        part(stage, number, told)
    except BaseException:
        fault = f"{report.stem}: {traceback.format_exc()}"
    report.write_text(json.dumps([told, fault]))


def start(how: str, *arguments: Any) -> Any:
    """Start a player: a thread, or a process."""
    player: Any
    if how == "thread":
        player = threading.Thread(target=play, args=arguments, daemon=True)
    else:
        context: Any = multiprocessing.get_context(how)
        player = context.Process(target=play, args=arguments, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads about
        player.start()
    return player


def campaign(seconds: float, writers: int, readers: int, seed: int) -> Findings:
    """Have so many at one store for so long."""
    findings = Findings()
    # Of the readers every other follows, every sixth has no locks, and the others hold.
    reading = [(follow, hold, follow, hold, follow, read_unlocked)[i % 6] for i in range(readers)]
    parts = [*[write] * writers, *reading, compact, compact, vacuum]
    direct = lists.DIRECT
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder) / "store", seed)
        rs.create(stage.path, SCHEMA).close()
        players = []
        for number, part in enumerate(parts):
            how = HOW[number % 3]
            if part is read_unlocked and how == "thread":
                how = "fork"  # for it changes its process
            players.append((number, part, how))
            findings.players[f"{part.__name__}, {how}"] += 1
        reports = {n: Path(folder) / f"{part.__name__} {n}, {how}" for n, part, how in players}
        started = [
            start(how, part, stage, number, reports[number])
            for number, part, how in sorted(players, key=lambda player: HOW.index(player[2]))
        ]
        time.sleep(seconds)
        stage.stop.set()
        for player in started:
            player.join(PATIENCE)
        lists.DIRECT = direct
        for report in reports.values():
            if report.exists():
                told, fault = json.loads(report.read_text())
                findings.counts.update(told)
                findings.faults += [fault] if fault else []
            else:
                findings.faults.append(f"{report.stem} came to no end, or to a bad one")
        findings.faults += look(stage.path, writers, findings)
    return findings


def look(path: Path, writers: int, findings: Findings) -> list[str]:
    """What is wrong with the store that is left."""
    found = []
    counts = findings.counts
    with opened(path, "a") as store:
        findings.samples = len(store)
        if not 0 <= store.version - counts["commits"] <= counts["compactions, at most"]:
            found.append(f"version {store.version} does not come of {counts}")
        try:
            writer, commit, _, _ = check_version(store)
        except Fault as fault:
            return [*found, str(fault)]
        for number in range(writers):
            there = len(np.unique(commit[writer == number]))
            if there != counts[f"commits of {number}"]:
                told = counts[f"commits of {number}"]
                found.append(f"{there} commits of writer {number}, which made {told}")
        for got in store:
            want = sample(*(int(got[name]) for name in DENSE))
            if not np.array_equal(got["values"], want["values"]):
                found.append(f"{got} is not as it was written")
                break
        if not (report := store.verify()).ok:
            found.append(str(report))
        store.vacuum(keep=1)
    return [*found, *(f"vacuum left {name}" for name in loose_files(path))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="ten minutes, 16 and 16")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--writers", type=int)
    parser.add_argument("--readers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seconds, writers, readers = LONG if options.long else SHORT
    started = time.monotonic()
    findings = campaign(
        options.seconds or seconds, options.writers or writers, options.readers or readers,
        options.seed,
    )  # fmt: skip
    counts = {what: n for what, n in findings.counts.items() if "commits of" not in what}
    for what, count in (*sorted(findings.players.items()), *counts.items()):
        print_row(what, count, first=44)
    print_row("samples", findings.samples, first=44)
    conclude("lost, doubled, torn, taken away; hangs", started, findings.faults)


if __name__ == "__main__":
    main()

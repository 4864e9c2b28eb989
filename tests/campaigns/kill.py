"""SIGKILL every operation at random moments, and see that nothing that was committed is lost.

    python -m tests.campaigns.kill [--long] [--kills 200] [--seed 0] [--only compact]

Each operation on a store (operations.py, and here the import of recordings) is run a few
times to see how long it takes. Then it is killed again and again, each time after a time drawn
evenly from that long. A store goes on to the next kill with all that lies about in it, until the
operation is through with it, or for ten rounds where it can be done over and over. After each kill:

- the versions are those from before, and those that the operation had said were committed; it may
  have made one more than it had come to say; each is whole and exact, and verify finds nothing
- on a copy the operation works when it is done again, an append is taken after it, and vacuum
  leaves nothing but the files that a version names
- an export's target is absent or whole; an import that goes on has every file once; a repair gives
  what it gives when nobody disturbs it
- files that were there before are as they were, or gone where the operation removes old versions

A "session" is a writer that commits in a loop, now and then compacting and vacuuming.

A process that imported everything and has no threads forks the children that are killed: a Python
that begins anew would take longer than what it is to be killed in.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import wave
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

import numpy as np

import raggedstore as rs
from raggedstore.interop.folders import import_folder
from raggedstore.store.writer import Writer
from tests.campaigns.looking import (
    again,
    changed,
    copied,
    differences,
    files_below,
    lengths,
    look,
    loose_files,
    opened,
)
from tests.campaigns.operations import LONG, OPERATIONS, SCHEMA, Operation, sample
from tests.campaigns.table import conclude, print_row

SHORT_KILLS, LONG_KILLS = 60, 3000
ROUNDS = 10  # kills that one store goes through, at most
MEASURED = 5  # times that an operation is let through, to see how long it takes
SESSION_SECONDS = 0.25
RECORDINGS = {f"{folder}/{i}.wav": 500 * i + 7 for folder in "ab" for i in range(4)}
AGAIN_AND_AGAIN = {"append", "append segments", "append list", "commit twice", "session"}
#: Where a kill found things.
STAGES = ("nothing yet", "under way", "made, not said", "returned")


# More to be killed


def _make_recordings(home: Path) -> None:
    for name, count in RECORDINGS.items():
        path = home / "recordings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, count, "NONE", ""))
            file.writeframes(_recording(count).tobytes())


def _recording(count: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    return (np.arange(count) * 7919 % 65536 - 32768).astype("<i2")


def _import_recordings(home: Path) -> Any:
    # A commit for every few files, so that a kill may come between two of them
    return import_folder(
        home / "recordings", home / "store", kind="audio", append=True, commit_every=5000
    )


def _look_at_recordings(home: Path, done: bool, given: Any) -> list[str]:
    """Each recording came at most once, exactly, and all of them where the import returned."""
    found = []
    come: Counter[str] = Counter()
    if lengths(home / "store"):
        with opened(home / "store") as store:
            come.update(row["path"] for row in store)
            for row in store:
                if not np.array_equal(row["audio"], _recording(RECORDINGS[row["path"]])):
                    found.append(f"{row['path']} is not exact")
    found += [f"{path} came {n} times" for path, n in come.items() if n > 1]
    if done and come.keys() != RECORDINGS.keys():
        found.append(f"{RECORDINGS.keys() - come.keys()} are missing")
    return found


def _begin_session(home: Path) -> None:
    rs.create(home / "store", SCHEMA).close()


def _write_on(home: Path) -> None:
    """Append from where the store ends and commit, for ever."""
    rng = random.Random(len(os.listdir(home / "store/segments")))
    with opened(home / "store", "a") as store, store.writer() as writer:
        count = len(store)
        while True:
            for _ in range(rng.randrange(1, 40)):
                writer.append(sample(count))
                count += 1
            writer.commit()
            chance = rng.random()
            if chance < 0.1:
                store.compact()
            elif chance < 0.2:
                store.vacuum(keep=1)


SESSION = Operation("session", _begin_session, _write_on, direct=3, forgets=True)
KILLED = {
    **OPERATIONS,
    "import audio": Operation(
        "import audio", _make_recordings, _import_recordings, look=_look_at_recordings, samples=None
    ),
    "session": SESSION,
}


# The process that forks children and kills them


@dataclass(frozen=True)
class Killed:
    """What is known of a child that was killed."""

    committed: int  #: the last version that it said was committed; -1 where it said nothing
    returned: bool  #: whether it said that the operation had returned
    seconds: float  #: from its beginning to what it said last
    error: str  #: what it died of by itself


def _run(name: str, home: Path, say: int) -> None:
    """The child: do the operation, and say what is done of it."""
    operation, commit = KILLED[name], Writer.commit

    def committed(self: Writer, **options: Any) -> int:
        version = commit(self, **options)
        os.write(say, f"{version}\n".encode())
        return version

    with operation.settings(), mock.patch.object(Writer, "commit", committed):
        os.write(say, b"begun\n")
        operation.run(home)
        os.write(say, b"returned\n")
    signal.pause()


def _kill(name: str, home: Path, seconds: float | None) -> Killed:
    """Fork a child that does the operation, and kill it after so long; None lets it through."""
    told, say = os.pipe()
    child = os.fork()
    if not child:
        try:
            _run(name, home, say)
        except BaseException:
            os.write(say, traceback.format_exc()[-3000:].encode())
        os._exit(1)
    os.close(say)
    with open(told) as lines:
        said = [lines.readline()]
        begun = time.monotonic()
        if seconds is None:
            while said[-1] not in ("returned\n", ""):
                said.append(lines.readline())
        else:
            time.sleep(seconds)
        took = time.monotonic() - begun
        os.kill(child, signal.SIGKILL)  # there to be killed, as nobody has waited for it
        said += lines.readlines()
    _, status = os.waitpid(child, 0)
    numbers = [int(line) for line in said if line.strip().isdigit() and line.endswith("\n")]
    died = "" if os.WIFSIGNALED(status) else "".join(said)
    return Killed(max(numbers, default=-1), "returned\n" in said, took, died)


def _kill_as_told() -> None:
    """Serve `Killer`, until its end of the pipe is closed."""
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
    for line in sys.stdin:
        name, home, seconds = json.loads(line)
        print(json.dumps(asdict(_kill(name, Path(home), seconds))), flush=True)


class Killer:
    """A process without threads, in which children are forked and killed."""

    def __init__(self) -> None:
        single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "NUMEXPR_MAX_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.kill", "--serve"],
            cwd=Path(__file__).parents[2], env={**os.environ, **single}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def kill(self, name: str, home: Path, seconds: float | None) -> Killed:
        """See `_kill`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([name, str(home), seconds]), file=self._process.stdin, flush=True)
        return Killed(**json.loads(self._process.stdout.readline()))


# Looking at what a kill left


@dataclass
class Tally:
    """What came of killing one operation."""

    name: str
    seconds: float = 0.0  #: that the operation takes
    stages: Counter[str] = field(default_factory=Counter)
    versions: int = 0  #: that were looked at, whole
    strays: int = 0  #: files that no version names
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How often it was killed."""
        return self.stages.total()


class Bench:
    """Kills one operation, and looks at what is left."""

    def __init__(self, root: Path, operation: Operation, killer: Killer) -> None:
        self.operation = operation
        self.tally = Tally(operation.name)
        self._killer = killer
        self._template, self._home, self._copy = (root / n for n in ("template", "home", "copy"))
        self._template.mkdir(parents=True)
        with operation.settings():
            operation.prepare(self._template)
        self._known = {path.name for path in self._template.rglob("*.h5")}
        self._rounds = ROUNDS
        self._begin()
        self.tally.seconds = self._measured()

    def _begin(self) -> None:
        """Have the home as it is before the operation."""
        shutil.rmtree(self._home, ignore_errors=True)
        copied(self._template, self._home)
        self._rounds = 0

    def _measured(self) -> float:
        if self.operation is SESSION:
            return SESSION_SECONDS
        took = []
        for _ in range(MEASURED):
            self._begin()
            with self.operation.around(self._home):
                through = self._killer.kill(self.operation.name, self._home, None)
            if through.error:
                raise RuntimeError(f"{self.operation.name} fails by itself:\n{through.error}")
            took.append(through.seconds)
        self._begin()
        return 1.1 * statistics.median(took)

    def kill(self, rng: random.Random) -> None:
        """Kill it once, at any moment."""
        if self._rounds == ROUNDS:
            self._begin()
        self._rounds += 1
        before, there = lengths(self._home / "store"), files_below(self._home)
        moment = rng.random() * self.tally.seconds
        with self.operation.around(self._home):
            killed = self._killer.kill(self.operation.name, self._home, moment)
        found = [killed.error] if killed.error else []
        now, made = {}, True
        try:
            now = lengths(self._home / "store")
            grown = max(now, default=-1) - max(before, default=-1)
            made = grown > 0 or self.operation.is_done(self._home, grown)
            self.tally.versions += len(now)
            self.tally.strays += self._strays()
            with self.operation.settings():
                found += self._look(before, killed)
        except Exception:
            found.append(f"looking at it failed: {traceback.format_exc()}")
        if killed.returned:
            stage = "returned"
        elif made and max(now, default=-1) > killed.committed:
            stage = "made, not said"
        else:
            changed = files_below(self._home) != there
            stage = "under way" if changed else "nothing yet"
        self.tally.stages[stage] += 1
        at = f"{self.tally.name}, kill {self.tally.kills}, {moment:.4f} s, {stage}"
        self.tally.faults += [f"{at}: {fault}" for fault in found]
        goes_on = self.tally.name in AGAIN_AND_AGAIN
        if found or (killed.returned and not goes_on) or (self._once_only and made):
            self._begin()

    @property
    def _once_only(self) -> bool:
        """Whether what was made must not be there when it is done again."""
        return self.tally.name not in AGAIN_AND_AGAIN and bool(
            self.operation.gains or self.operation.once
        )

    def _strays(self) -> int:
        store = self._home / "store"
        if not lengths(store):
            return 0
        return len(loose_files(store))

    def _look(self, before: dict[int, int], killed: Killed) -> Iterator[str]:
        """What is wrong."""
        shutil.rmtree(self._copy, ignore_errors=True)
        if self.operation is SESSION:
            yield from self._look_at_session(before, killed)
        else:
            yield from self._look_at_others(before, killed)

    def _look_at_others(self, before: dict[int, int], killed: Killed) -> Iterator[str]:
        operation, home, copy = self.operation, self._home, self._copy
        yield from changed(self._template, home, operation)
        newest, commits = max(before, default=-1), len(operation.gains)
        said = commits if killed.returned else max(killed.committed - newest, 0)
        yield from look(operation, home, before, range(said, commits + 1), self._known)
        yield from operation.look(home, killed.returned, None)
        now = lengths(home / "store")
        self._known |= {path.name for path in (home / "store").rglob("*.h5")}
        if max(now, default=-1) < killed.committed:
            yield f"version {killed.committed} was said to be committed, and there are {now}"
        copied(home, copy)
        is_done = operation.is_done(home, max(now, default=-1) - newest)
        yield from again(operation, copy, lambda: self._repeat(copy), is_done=is_done)
        if operation.samples is not None or operation.mends:
            yield from _append_and_vacuum(copy)
        loose = {p.name for p in home.iterdir()} - {p.name for p in self._template.iterdir()}
        loose = {name for name in loose - {"store", "out.h5"} if not name.startswith(".tmp-")}
        yield from (f"{name} was left" for name in loose)

    def _repeat(self, home: Path) -> tuple[str, Any]:
        try:
            with self.operation.around(home):
                return "", self.operation.run(home)
        except Exception:
            return traceback.format_exc(), None

    def _look_at_session(self, before: dict[int, int], killed: Killed) -> Iterator[str]:
        store, now = self._home / "store", lengths(self._home / "store")
        if max(now) < max(killed.committed, *before):
            yield f"version {killed.committed} was committed after {before}, and there are {now}"
        for version, count in now.items():
            with opened(store, version=version) as samples:
                yield from differences(samples, [sample(i) for i in range(count)])
        with opened(store) as newest:
            report = newest.verify()
        if not report.ok:
            yield str(report)
        copied(self._home, self._copy)
        yield from _append_and_vacuum(self._copy)


def _append_and_vacuum(home: Path) -> Iterator[str]:
    """What is wrong where one more sample is appended to a store, and the rest cleared away."""
    with opened(home / "store", "a") as store:
        count = len(store)
        with store.writer() as writer:
            writer.append(sample(count))
        if len(store) != count + 1 or not np.array_equal(store[-1]["key"], count):
            yield "the next append was not taken"
        store.vacuum(keep=1)
    yield from (f"vacuum left {name}" for name in loose_files(home / "store"))


def campaign(
    kills: int, seed: int, *, is_long: bool = False, only: Sequence[str] = (), jobs: int = 1
) -> Iterator[Tally]:
    """Kill each operation as often as the others, so many times in all; some at the same time."""
    names = only or [name for name in KILLED if is_long or name not in LONG]
    shares = [kills * (i + 1) // len(names) - kills * i // len(names) for i in range(len(names))]
    if jobs == 1:
        yield from map(_tally_of, names, shares, repeat(seed))
        return
    # Spawned, so that none holds an end of another's pipe to its killer
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_tally_of, names, shares, repeat(seed))


def _tally_of(name: str, kills: int, seed: int) -> Tally:
    """What comes of killing one operation so many times."""
    rng = random.Random(f"{seed} {name}")
    with tempfile.TemporaryDirectory() as folder, Killer() as killer:
        bench = Bench(Path(folder), KILLED[name], killer)
        for _ in range(kills):
            bench.kill(rng)
    return bench.tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help=f"{LONG_KILLS} kills")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=KILLED)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="operations at a time")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _kill_as_told()
        return
    started = time.monotonic()
    kills = options.kills or (LONG_KILLS if options.long else SHORT_KILLS)
    faults, done = [], 0
    layout = partial(print_row, width=16)
    layout("operation", "ms", "kills", *STAGES, "versions read", "strays", "faults")
    for tally in campaign(
        kills, options.seed, is_long=options.long, only=options.only, jobs=options.jobs
    ):
        stages = [tally.stages[stage] for stage in STAGES]
        counts = tally.kills, *stages, tally.versions, tally.strays, len(tally.faults)
        layout(tally.name, round(tally.seconds * 1000), *counts)
        faults += tally.faults
        done += tally.kills
    conclude(f"{done:,} kills", started, faults)


if __name__ == "__main__":
    main()

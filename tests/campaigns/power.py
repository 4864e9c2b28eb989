"""Cut the power after every call of an operation, in every way, and see what the disk holds.

    python -m tests.campaigns.power [--long] [--seed 0] [--cases 4] [--only append]

Each operation on a store is run once while its calls are recorded (disk.py). Then, for every number
of calls that may have been made before the power failed, disks are made up that may be found
afterwards: what was not synced is kept, dropped, torn or noise; names not synced are there or not.
Equal disks are looked at once. Each must open at the version before or after the operation, or in
between where it makes several, whole and exact; at the one after it, once the operation had
returned. Every other version must be whole too, verify must find nothing, the operation must work
when it is done again, and vacuum then leave nothing but files that a version names.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.campaigns.disk import Recorder, Recording, State, states
from tests.campaigns.looking import again, copied, lengths, look
from tests.campaigns.operations import LONG, OPERATIONS, Operation
from tests.campaigns.table import conclude, print_row

SHORT_CASES = 4  # of each number of calls
LONG_CASES = 200


@dataclass
class Findings:
    """What a campaign tried and found."""

    calls: dict[str, int] = field(default_factory=dict)  #: that change the disk, by operation
    replays: dict[str, int] = field(default_factory=dict)
    disks: dict[str, int] = field(default_factory=dict)  #: that differ from one another
    before: dict[str, int] = field(default_factory=dict)  #: that opened as if it had not begun
    faults: list[str] = field(default_factory=list)


class Bench:
    """Records operations, and looks at the disks that power failures leave."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._home = root / "home"

    def record(self, operation: Operation) -> Recording:
        """What the operation does to a disk."""
        template = self._template(operation)
        template.mkdir(parents=True)
        with operation.settings():
            operation.prepare(template)
        self._clear()
        copied(template, self._home)
        recorder = Recorder(self._home)
        with operation.settings(), operation.around(self._home), recorder:
            operation.run(self._home)
        return recorder.recording

    def look(self, operation: Operation, state: State) -> tuple[bool, list[str]]:
        """Whether a disk opens as if the operation had not begun, and what is wrong with it."""
        self._clear()
        state.make(self._home)
        template = self._template(operation)
        known = {path.name for path in template.rglob("*.h5")}
        before, commits = lengths(template / "store"), len(operation.gains)
        made = [commits] if state.returned else [*range(commits + 1)]
        found: list[str] = []
        unchanged = False
        try:
            now = lengths(self._home / "store")
            unchanged = now == before
            is_done = operation.is_done(self._home, max(now, default=-1) - max(before, default=-1))
            found += look(operation, self._home, before, made, known)
            found += operation.look(self._home, state.returned, None)
            found += again(operation, self._home, lambda: self._repeat(operation), is_done=is_done)
        except Exception:
            found.append(f"looking at it failed: {traceback.format_exc()}")
        return unchanged, found

    def _template(self, operation: Operation) -> Path:
        return self._root / "templates" / operation.name.replace(" ", "-")

    def _clear(self) -> None:
        if self._home.exists():
            shutil.rmtree(self._home)

    def _repeat(self, operation: Operation) -> tuple[str, Any]:
        try:
            with operation.settings(), operation.around(self._home):
                return "", operation.run(self._home)
        except Exception:
            return traceback.format_exc(), None


def campaign(seed: int, *, limit: int, is_long: bool = False, only: Sequence[str] = ()) -> Findings:
    """Look at `limit` disks, at most, for each number of calls that may have been made."""
    rng, findings = random.Random(seed), Findings()
    names = only or [name for name in OPERATIONS if is_long or name not in LONG]
    unsynced = mock.patch.object(os, "fsync", return_value=None)  # no power is really lost
    with tempfile.TemporaryDirectory() as folder, unsynced:
        bench = Bench(Path(folder))
        for name in names:
            operation = OPERATIONS[name]
            recording = bench.record(operation)
            findings.calls[name] = len(recording.steps) - 1
            seen: set[int] = set()
            replays = before = 0
            for state in states(recording, rng, limit):
                replays += 1
                if state.key in seen:
                    continue
                seen.add(state.key)
                unchanged, found = bench.look(operation, state)
                before += unchanged
                when = f"{name}, power lost after {state.after}"
                findings.faults += [f"{when}: {fault}" for fault in found]
            findings.replays[name], findings.disks[name] = replays, len(seen)
            findings.before[name] = before
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="every operation; more disks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cases", type=int, help=f"disks for each call: {SHORT_CASES}, or {LONG_CASES}"
    )
    parser.add_argument("--only", action="append", default=[], choices=OPERATIONS)
    options = parser.parse_args()
    started = time.monotonic()
    limit = options.cases or (LONG_CASES if options.long else SHORT_CASES)
    findings = campaign(options.seed, limit=limit, is_long=options.long, only=options.only)
    print_row("operation", "calls", "replays", "disks", "as before")
    for name, calls in findings.calls.items():
        counts = findings.replays[name], findings.disks[name], findings.before[name]
        print_row(name, calls, *counts)
    disks, replays = sum(findings.disks.values()), sum(findings.replays.values())
    conclude(f"{replays:,} replays, {disks:,} disks", started, findings.faults)


if __name__ == "__main__":
    main()

"""Append to a disk that is really full: a file system of 2 MB, or a limit on the size of files.

    python -m tests.campaigns.full [--long] [--rounds 3] [--seed 0]

Nothing is simulated here. In a process of its own, either a small tmpfs is mounted, which takes a
superuser and is seen by that process alone, or files may not grow past a limit. Then commits of all
sizes are made until not the smallest fits any more; compaction and export are tried as well, and
may fail too. Whatever fails must say so and change nothing; vacuum must work on the full disk; and
then there must be room again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import raggedstore as rs
from tests.campaigns.looking import look_at_newest, opened
from tests.campaigns.table import conclude

__all__ = ["Findings", "campaign"]

DISK = "2m"
LIMIT = 150_000
SHORT_ROUNDS, LONG_ROUNDS = 3, 20
ATTEMPTS = 40  # where files are limited, there is always room for one more
CAUSES = ("No space left on device", "File too large")


@dataclass
class Findings:
    """What a campaign tried and found."""

    commits: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    skipped: str = ""  #: why it could not be tried


def sample(index: int) -> dict[str, Any]:
    """The sample that belongs at `index`; noise, which does not compress."""
    rng = np.random.default_rng(index)
    return {"values": rng.integers(0, 2**31, int(rng.integers(1, 3000)), np.int32)}


class Filling:
    """A store that is appended to until it does not fit any more."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self.findings = Findings()
        self._path = folder / "store"
        rs.create(self._path, {"values": rs.Field("int32", (None,))}).close()

    def fill(self) -> None:
        """Append until even a single sample is refused, or long enough; then make room."""
        count = 64
        for _ in range(ATTEMPTS):
            done = self._try(partial(self._append, count))
            count = self._rng.randrange(1, 65) if done else count // 2
            if not count:
                break
        for other in (self._compact, self._export):
            self._try(other)
        with self._open() as store:
            store.vacuum(keep=1)
        self.findings.faults += self._wrong(*self._state())
        shutil.rmtree(self._path)

    def _open(self) -> rs.Store:
        return opened(self._path, "a")

    def _append(self, count: int) -> None:
        with self._open() as store, store.writer() as writer:
            for i in range(len(store), len(store) + count):
                writer.append(sample(i))

    def _compact(self) -> None:
        with self._open() as store:
            store.compact()

    def _export(self) -> None:
        target = self._folder / "out.h5"
        try:
            with self._open() as store:
                store.export(target)
        finally:
            if any(self._folder.glob(".tmp-*")):
                self.findings.faults.append("an export that failed left a file")
            target.unlink(missing_ok=True)

    def _state(self) -> tuple[int, int]:
        with self._open() as store:
            return len(store), store.version

    def _try(self, act: Callable[[], Any]) -> bool:
        """Whether it was done; and that nothing has changed where it was not."""
        before = self._state()
        try:
            act()
        except rs.StorageError as error:
            self.findings.refused += 1
            told = str(self._folder) in str(error) and any(c in str(error) for c in CAUSES)
            if not told:
                self.findings.faults.append(f"the error does not say what and why: {error}")
            self.findings.faults += self._wrong(*before)
            return False
        after = self._state()
        self.findings.commits += after[1] > before[1]
        self.findings.faults += self._wrong(*after)
        return True

    def _wrong(self, count: int, version: int) -> Iterator[str]:
        with self._open() as store:
            if (len(store), store.version) != (count, version):
                yield f"version {store.version} of {len(store)}, not {version} of {count}"
            for i in {0, len(store) // 2, len(store) - 1} & {*range(len(store))}:
                if not np.array_equal(store["values"][i], sample(i)["values"]):
                    yield f"sample {i} is not exact"
        yield from look_at_newest(self._path)


def inside(folder: Path, kind: str, rounds: int, seed: int) -> Findings:
    """The child: arrange for little room, and fill it."""
    if kind == "disk":
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder],
            capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            return Findings(skipped=made.stderr.strip())
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    found = Findings()
    for number in range(rounds):
        filling = Filling(folder, seed + number)
        filling.fill()
        found.commits += filling.findings.commits
        found.refused += filling.findings.refused
        found.faults += filling.findings.faults
    return found


def campaign(kind: str, *, rounds: int, seed: int) -> Findings:
    """Fill a "disk", or files up to a "limit"."""
    command = [sys.executable, "-m", "tests.campaigns.full", "--inside", kind]
    command += ["--rounds", str(rounds), "--seed", str(seed)]
    if kind == "disk":
        if shutil.which("unshare") is None or shutil.which("mount") is None:
            return Findings(skipped="no unshare or mount here")
        command[:0] = ["unshare", "--mount"]
    paths = str(Path(rs.__file__).parents[1])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--folder", folder], capture_output=True, text=True, timeout=3600,
            env={**os.environ, "PYTHONPATH": paths}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    if done.returncode:
        if kind == "disk" and "unshare" in done.stderr:
            return Findings(skipped=done.stderr.strip())
        return Findings(faults=[done.stderr])
    return Findings(**json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help=f"{LONG_ROUNDS} rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", choices=["disk", "limit"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds = options.rounds or (LONG_ROUNDS if options.long else SHORT_ROUNDS)
    if options.inside:
        found = inside(options.folder, options.inside, rounds, options.seed)
        print(json.dumps(vars(found)))
        return
    started, faults = time.monotonic(), []
    for kind in ("disk", "limit"):
        found = campaign(kind, rounds=rounds, seed=options.seed)
        what = f"disk of {DISK}" if kind == "disk" else f"files of {LIMIT:,} bytes at most"
        tried = f"{found.commits} commits, {found.refused} refused, {len(found.faults)} faults"
        print(f"{what}: {'skipped, ' + found.skipped if found.skipped else tried}")
        faults += found.faults
    conclude("disks and limits", started, faults)


if __name__ == "__main__":
    main()

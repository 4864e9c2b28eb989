"""SIGKILL a writer at random moments, and see that nothing that was committed is lost.

    python tests/campaigns/kill.py [--kills 200] [--seed 0]

Each round a child process appends and commits in a loop, now and then compacting and vacuuming,
and reports every commit that returned through a pipe; it is killed after a random time. Then the
store must open, hold every sample of the last commit reported exactly (it may hold one commit
more, which was made and not reported), pass `verify`, and take the next append. The store is
used on for ten rounds, so that what earlier kills left lies about in it. Manifests name few
segments themselves, so that segment lists are written and shared all the time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import raggedstore as rs
from raggedstore.store import lists

DIRECT = 3  # segments that a manifest names itself
ROUNDS_PER_STORE = 10


def sample(index: int) -> dict[str, Any]:
    """The sample that belongs at `index`."""
    values = (np.arange(index % 97) * 31 + index).astype(np.int32)
    return {"values": values, "text": f"sample {index}" * (index % 3)}


def write_for_ever(path: Path, seed: int) -> None:
    """The child: append from where the store ends, commit, report, and again."""
    lists.DIRECT = DIRECT
    rng = random.Random(seed)
    store = rs.open(path, "a")
    assert isinstance(store, rs.Store)
    with store.writer() as writer:
        count = len(store)
        print("ready", flush=True)
        while True:
            for _ in range(rng.randrange(1, 200)):
                writer.append(sample(count))
                count += 1
            writer.commit()
            print(count, flush=True)
            chance = rng.random()
            if chance < 0.1:
                store.compact()
            elif chance < 0.2:
                store.vacuum(keep=1)


@dataclass
class Findings:
    """What a campaign tried and found."""

    kills: int = 0
    commits: int = 0
    unreported: int = 0  #: commits that took place just before the kill
    left_over: int = 0  #: loose files that vacuum removed in the end
    faults: list[str] = field(default_factory=list)


def check(path: Path, reported: int, before: int, findings: Findings) -> None:
    """Hold the store against what its writer reported."""
    store = rs.open(path, "a")
    assert isinstance(store, rs.Store)
    if len(store) < max(reported, before):
        findings.faults.append(f"{len(store)} samples, {max(reported, before)} were committed")
    findings.unreported += len(store) > max(reported, before)
    for i, got in enumerate(store):
        want = sample(i)
        if not np.array_equal(got["values"], want["values"]) or got["text"] != want["text"]:
            findings.faults.append(f"sample {i} is not the one that was committed")
            break
    report = store.verify()
    if not report.ok:
        findings.faults.append(str(report))
    count = len(store)
    with store.writer() as writer:
        writer.append(sample(count))
    if len(rs.open(path)) != count + 1:
        findings.faults.append("the next append was not taken")


def campaign(kills: int, seed: int) -> Findings:
    """Kill `kills` writers."""
    rng, findings = random.Random(seed), Findings()
    environment = {**os.environ, "PYTHONPATH": str(Path(rs.__file__).parents[1])}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(kills):
            path = Path(folder) / f"store{number // ROUNDS_PER_STORE}"
            if not path.exists():
                rs.create(path, {"values": rs.Field("int32", (None,)), "text": rs.Field("str")})
            before = len(rs.open(path))
            command = [sys.executable, __file__, "--write", str(path), "--seed", str(number)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(rng.random() * 0.25)
            child.send_signal(signal.SIGKILL)
            lines = child.stdout.read().splitlines(keepends=True)
            child.stdout.close()
            child.wait()
            whole = [int(line) for line in lines if line.endswith("\n")]
            findings.kills += 1
            findings.commits += len(whole)
            faults = len(findings.faults)
            check(path, whole[-1] if whole else 0, before, findings)
            findings.faults[faults:] = [f"kill {number}: {f}" for f in findings.faults[faults:]]
        for path in Path(folder).iterdir():
            store = rs.open(path, "a")
            assert isinstance(store, rs.Store)
            removed = [p.relative_to(path) for p in store.vacuum(keep=1)]
            findings.left_over += sum(p.suffix in (".h5", ".idx", ".list") for p in removed)
            names = {e.file for e in store.manifest.segments}
            names |= {e.index for e in store.manifest.segments}
            names |= {e.file for e in store.manifest.lists} | {f"{store.version:020d}.json"}
            if {*os.listdir(path / "segments"), *os.listdir(path / "versions")} != names:
                findings.faults.append(f"{path.name}: vacuum left files that no version names")
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        write_for_ever(options.write, options.seed)
    findings = campaign(options.kills, options.seed)
    print(
        f"{findings.kills} kills over {findings.commits} commits reported; "
        f"{findings.unreported} commits made and not reported; "
        f"{findings.left_over} loose files removed by vacuum; {len(findings.faults)} faults"
    )
    print("\n".join(findings.faults))
    sys.exit(bool(findings.faults))


if __name__ == "__main__":
    main()

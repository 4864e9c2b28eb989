"""Make every file operation fail once, in every way, and see that no store is harmed.

    python -m tests.campaigns.faults [--long] [--seed 0] [--cases 12] [--only append] [--jobs 2]
    python -m tests.campaigns.faults --case append 64 EIO

Each operation on a store is run once to count the calls that it makes to the system on files,
and then again and again, each time with one of these calls failing in one of the ways of
`FAULTS`. After each the call must have raised a StorageError that names a file and the cause, or
have succeeded; the store must hold exactly what was committed, whole and verified, as versions of
raggedstore and as the HDF5 files that it consists of; no file in use may have changed; a file
whose fsync failed must not have been used; no thread and no open file may be left. Then the same
call must succeed, and vacuum leave nothing but files that a version names.

Many calls of an operation are alike: they come from the same lines of raggedstore, all the way
from the outside in, and are the same call on the same kind of file, as HDF5's are when it flushes.
Of the calls of one such site, `EACH` are made to fail in each way: the first, the last, and of
those between them one drawn by lot, which another `--seed` draws anew. "append 257th" goes through
the lines of "append list", at a hundred times the cost: of each of its sites one call fails, in
`FEW` of the ways, drawn by lot too.

The operations run in a child process, so that one that hangs or kills it is a finding too. Where
there is gcc the child begins with shim.c preloaded, which meets HDF5's own calls; where there is
none, Python's functions are replaced, and what HDF5 does in C is not met. How a disk behaves that
is really full is tried in full.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import raggedstore as rs
from tests.campaigns.child import shared
from tests.campaigns.looking import again, changed, copied, lengths, look
from tests.campaigns.operations import LONG, OPERATIONS, Operation
from tests.campaigns.shim import FAULTS, SHORT, build, injector
from tests.campaigns.table import conclude, print_row

PATIENCE = 60.0  # seconds after which a case is taken to hang
SHORT_CASES = 12  # of each operation
EACH = 3  # calls of a site that are made to fail in each way
FEW = 3  # ways in which one call of a site is made to fail, in an operation that takes long
RECORD, AFTER_DEATH = 0, -1  # what the child is asked in place of the number of a call

RESULTS = ("refused", "undecided", "succeeded", "not met", "died")

#: The calls of which some come first where not all cases are tried.
WEIGHTY = frozenset({"fsync", "write", "link", "rename", "close", "create", "open", "mkdir"})
#: PyTables looks whether it may open a file, and so does HDF5; neither says why it may not.
UNTOLD = ("`` does not exist", "exists but it can not be", "Unable to open/create file")
#: PyTables 3.11.1 dies where the header of a file that it opens cannot be read (`read_f_attr`).
DEADLY = re.compile(r"^read .*/\.tmp-[^/]*\.h5$")
#: What is other in each run, and says nothing of the kind of a file.
_ANY_NAME = re.compile(r"(?<=\.tmp-)\d+(?=-)|[0-9a-f]{12,}")


@dataclass(frozen=True)
class Outcome:
    """What an operation did, without a reference to anything that it used."""

    given: Any = None
    error: str = ""  #: empty where it succeeded
    trace: str = ""
    is_ours: bool = True  #: the error is a StorageError


class Bench:
    """Tries cases, in the process that it is made in."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._home = root / "home"
        self._injector = injector(root)
        self._warm: set[str] = set()  # operations that were run in this process
        self._unseen: list[str] = []  # exceptions that nobody could catch
        sys.unraisablehook = lambda said: self._unseen.append(f"unraisable {said.exc_value!r}")
        threading.excepthook = lambda said: self._unseen.append(f"in a thread {said.exc_value!r}")

    def calls_of(self, operation: Operation) -> tuple[list[str], list[str]]:
        """The calls that an operation makes, and the site of each."""
        self._warm.add(operation.name)
        for _ in range(2):  # what is made once in a process is made the first time
            self._set_out(operation)
            sites = self._injector.note_sites()
            outcome, calls, _ = self._run(operation, 0, "EIO")
        if outcome.error:
            raise AssertionError(f"{operation.name} fails by itself: {outcome.trace}")
        gc.collect()
        gc.freeze()  # collecting is then quick, and is done often
        kinds = [_ANY_NAME.sub("*", call) for call in calls]
        return calls, [f"{kind} {sites[i]}" for i, kind in enumerate(kinds, 1)]

    def case(self, operation: Operation, number: int, fault: str) -> dict[str, Any]:
        """Let one call fail; what happened, and what is wrong."""
        if operation.name not in self._warm:
            self.calls_of(operation)
        self._set_out(operation)
        self._unseen.clear()
        outcome, calls, fired = self._run(operation, number, fault)
        found = left_behind(self._root) + self._unseen
        if fired:
            found += wrong_with_error(outcome, fault, self._home)
            found += wrong_with_fsync(outcome, calls, fired, fault)
        elif outcome.error:
            found.append("it failed without a fault")
        made = commits(calls, fired, self._home / "store")
        is_done = bool(outcome.error) and operation.is_done(self._home, made)
        found += self._judge(operation, made, outcome)
        result = "undecided" if is_done else "refused" if outcome.error else "succeeded"
        return {
            "call": calls[fired - 1].replace(f"{self._root}/", "") if fired else "",
            "result": result if fired else "not met",
            "error": outcome.error,
            "trace": outcome.trace if found else "",
            "found": found,
        }

    def after_death(self, operation: Operation) -> list[str]:
        """What is wrong with what another process left that died of a case."""
        before, now = lengths(self._template(operation) / "store"), lengths(self._home / "store")
        made = max(now, default=-1) - max(before, default=-1)
        return self._judge(operation, made, Outcome(error="it died"))

    def _template(self, operation: Operation) -> Path:
        return self._root / "templates" / operation.name.replace(" ", "-")

    def _set_out(self, operation: Operation) -> None:
        """Make the home folder what the operation expects."""
        template = self._template(operation)
        if not template.exists():
            template.mkdir(parents=True)
            with operation.settings():
                operation.prepare(template)
        if self._home.exists():
            shutil.rmtree(self._home)
        copied(template, self._home)

    def _run(self, operation: Operation, number: int, fault: str) -> tuple[Outcome, list[str], int]:
        with operation.settings(), operation.around(self._home):
            self._injector.arm(number, fault)
            try:
                outcome = Outcome(operation.run(self._home))
            except Exception as error:
                self._injector.disarm()
                outcome = Outcome(
                    error=f"{type(error).__name__}: {error}",
                    trace=traceback.format_exc(),
                    is_ours=isinstance(error, rs.StorageError),
                )
            calls, fired = self._injector.disarm()
        return outcome, calls, fired

    def _judge(self, operation: Operation, made: int, outcome: Outcome) -> list[str]:
        """What is wrong after `made` commits, and when the operation is run once more."""
        template, home = self._template(operation), self._home
        known = {path.name for path in template.rglob("*.h5")}
        found: list[str] = []
        try:
            is_done = operation.is_done(home, made)
            found += look(operation, home, lengths(template / "store"), [made], known)
            found += operation.look(home, not outcome.error, outcome.given)
            found += changed(template, home, operation)
            found += again(operation, home, lambda: self._repeat(operation), is_done=is_done)
            found += [f"left by the second call: {what}" for what in left_behind(self._root)]
        except Exception:
            found.append(f"looking at it failed: {traceback.format_exc()}")
        return found

    def _repeat(self, operation: Operation) -> tuple[str, Any]:
        outcome, _, _ = self._run(operation, 0, "EIO")
        return outcome.trace, outcome.given


def left_behind(root: Path, patience: float = 2.0) -> list[str]:
    """Threads of the library's, and open files below `root`, once all is let go of."""
    gc.collect()
    until = time.monotonic() + patience
    while True:
        found = [f"thread {t.name}" for t in threading.enumerate() if "raggedstore" in t.name]
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                name = os.readlink(f"/proc/self/fd/{number}")
                if name.startswith(f"{root}/"):
                    found.append(f"open file {name}")
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.005)


def commits(calls: list[str], fired: int, store: Path) -> int:
    """How many manifests were linked into place; the call that failed linked none."""
    start = f"link {store}/versions/"
    return sum(call.startswith(start) and i != fired for i, call in enumerate(calls, 1))


def wrong_with_error(outcome: Outcome, fault: str, home: Path) -> Iterator[str]:
    """What an error lacks that was raised because of `fault`."""
    if not outcome.error:
        return
    cause = os.strerror(max(FAULTS[fault][0], 0))
    if not outcome.is_ours:
        yield "no StorageError"
    if str(home) not in outcome.error:
        yield "the error names no file"
    if cause not in outcome.error and not any(text in outcome.error for text in UNTOLD):
        yield f"the error does not say {cause!r}"


def wrong_with_fsync(outcome: Outcome, calls: list[str], fired: int, fault: str) -> Iterator[str]:
    """Where an fsync failed: that it went unnoticed, or that the file was used all the same."""
    what, _, path = calls[fired - 1].partition(" ")
    if what in ("fsync", "fdatasync") and fault != "EINTR":  # interrupted is not failed
        if not outcome.error:
            yield "its fsync failed, and nothing was said"
        for call in calls[fired:]:
            if call in (f"{what} {path}", f"rename {path}", f"link {path}", f"write {path}"):
                yield f"{call} after its fsync failed"


# The process that is in danger, and the one that is not


def serve(root: Path) -> None:
    """The child: answer requests, a line each."""
    bench = Bench(root)
    for line in sys.stdin:
        name, number, fault = json.loads(line)
        operation = OPERATIONS[name]
        answer: Any
        if number > 0:
            answer = bench.case(operation, number, fault)
        elif number == RECORD:
            answer = bench.calls_of(operation)
        else:
            answer = bench.after_death(operation)
        print(json.dumps(answer), flush=True)


class Died(Exception):
    """The child hung or died: which of them, and the call that failed."""

    def __init__(self, what: str, call: str) -> None:
        super().__init__(what)
        self.call = call


class Child:
    """A child process that tries cases, begun anew when it dies."""

    def __init__(self, root: Path, shim: dict[str, str] | None) -> None:
        root.mkdir()
        self._root = root / "tried"
        self._root.mkdir()
        self._told = root / "told"
        paths = str(Path(rs.__file__).parents[1])
        self._environment = {**os.environ, "PYTHONPATH": paths, **(shim or {})}
        self._process: subprocess.Popen[str] | None = None

    def ask(self, operation: str, number: int, fault: str = "") -> Any:
        """What the child answers."""
        if self._process is None:
            command = [sys.executable, "-m", "tests.campaigns.faults", "--serve", str(self._root)]
            with open(self._told, "w") as told:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told,
                    text=True, env=self._environment, cwd=Path(__file__).parents[2],
                )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([operation, number, fault]) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline() if ready else ""
        if line.endswith("\n"):
            return json.loads(line)
        if not ready:
            process.kill()
        status = self.close()
        calls = re.findall("^fails: (.*)$", self._told.read_text(errors="replace"), re.MULTILINE)
        call = calls[-1] if calls else ""
        raise Died("it hung" if not ready else f"the process died with status {status}", call)

    def close(self) -> int:
        """End the child; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            return process.wait(PATIENCE)


@dataclass
class Findings:
    """What a campaign tried and found."""

    is_preloaded: bool = False
    calls: dict[str, int] = field(default_factory=dict)  #: of each operation
    sites: dict[str, int] = field(default_factory=dict)  #: that its calls come from
    results: dict[str, Counter[str]] = field(default_factory=dict)  #: of each operation
    faults: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many cases were tried."""
        return sum(counter.total() for counter in self.results.values())


def planned(
    calls: Sequence[str],
    sites: Sequence[str],
    faults: Sequence[str],
    limit: int | None,
    rng: random.Random,
    *,
    few: bool = False,
) -> list[tuple[int, str]]:
    """The cases of an operation that makes these calls: of every site some, or of every kind.

    In an order such that to stop early leaves no kind out.
    """
    alike: dict[str, list[int]] = {}
    for number, site in enumerate(sites, 1):
        alike.setdefault(site, []).append(number)
    cases = []
    for numbers in alike.values():
        is_write = calls[numbers[0] - 1].startswith("write ")
        ways = [fault for fault in faults if fault != SHORT or is_write]
        for fault in rng.sample(ways, FEW) if few else ways:
            chosen = numbers
            if few:
                chosen = [rng.choice(numbers)]
            elif len(numbers) > EACH:
                between = rng.sample(numbers[1:-1], EACH - 2)
                chosen = [numbers[0], *between, numbers[-1]]
            cases += [(number, fault) for number in chosen]
    rng.shuffle(cases)
    seen: Counter[str] = Counter()
    ranked = []
    for number, fault in cases:
        what = calls[number - 1].partition(" ")[0]
        seen[what] += 1
        ranked.append((seen[what], what not in WEIGHTY, number, fault))
    return [case[2:] for case in sorted(ranked)[:limit]]


def tried(child: Child, name: str, number: int, fault: str) -> dict[str, Any]:
    """What came of a case, whether or not the child outlived it."""
    try:
        return dict(child.ask(name, number, fault))
    except Died as died:
        call = died.call
        found = [] if DEADLY.search(call) else [str(died)]
    try:
        found += child.ask(name, AFTER_DEATH)
    except Died as died:
        found.append(f"looking at what a dead process left: {died}")
    return {"result": "died", "call": call, "found": found, "error": ""}


def answers(
    children: Sequence[Child], name: str, cases: Sequence[tuple[int, str]]
) -> Iterator[dict[str, Any]]:
    """What comes of the cases of an operation, in their order; each child is at one of them."""
    idle: SimpleQueue[Child] = SimpleQueue()
    for child in children:
        idle.put(child)

    def one(case: tuple[int, str]) -> dict[str, Any]:
        child = idle.get()
        try:
            return tried(child, name, *case)
        finally:
            idle.put(child)

    with ThreadPoolExecutor(len(children)) as pool:
        yield from pool.map(one, cases)


def campaign(
    seed: int,
    *,
    limit: int | None = None,
    is_long: bool = False,
    only: Sequence[str] = (),
    in_python: bool = False,
    jobs: int = 1,
) -> Findings:
    """Try `limit` cases of each operation, or all, so many at a time.

    Parameters
    ----------
    in_python
        Leave out what HDF5 does in C.
    """
    rng, findings = random.Random(seed), Findings()
    names = only or [name for name in OPERATIONS if is_long or name not in LONG]
    with tempfile.TemporaryDirectory(dir=shared()) as folder:
        shim = None if in_python else build(Path(folder))
        children = [Child(Path(folder) / str(number), shim) for number in range(jobs)]
        findings.is_preloaded = shim is not None
        faults = [fault for fault in FAULTS if fault != SHORT or shim is not None]
        for name in names:
            try:
                calls, sites = children[0].ask(name, RECORD)
            except Died as died:
                findings.faults.append(f"{name}, without a fault: {died}")
                continue
            findings.calls[name], findings.sites[name] = len(calls), len({*sites})
            results = findings.results[name] = Counter()
            cases = planned(calls, sites, faults, limit, rng, few=name in LONG)
            told = answers(children, name, cases)
            for (number, fault), answer in zip(cases, told, strict=True):
                results[answer["result"]] += 1
                error = f" ({answer['error']})" if answer["error"] else ""
                for found in answer["found"]:
                    where = f"{name}, call {number}, {fault}, {answer['call']}"
                    findings.faults.append(f"{where}: {found}{error}")
        for status in filter(None, [child.close() for child in children]):
            findings.faults.append(f"the process ended with status {status}")
    return findings


def show_case(name: str, number: int, fault: str) -> None:
    """Try one case and print all that is known of it."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(Path(folder) / "0", build(Path(folder)))
        answer = tried(child, name, number, fault)
        child.close()
    for key, value in answer.items():
        print(f"{key}: ", *([value] if isinstance(value, str) else value), sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="every operation; every site")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help=f"of each operation; {SHORT_CASES} if not --long")
    parser.add_argument("--only", action="append", default=[], choices=OPERATIONS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time")
    parser.add_argument("--case", nargs=3, metavar=("OPERATION", "CALL", "FAULT"))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    if options.case is not None:
        show_case(options.case[0], int(options.case[1]), options.case[2])
        return
    started = time.monotonic()
    findings = campaign(
        options.seed,
        limit=options.cases or (None if options.long else SHORT_CASES),
        is_long=options.long,
        only=options.only,
        jobs=options.jobs,
    )
    print(f"HDF5's own calls {'too' if findings.is_preloaded else 'left out: no gcc'}")
    print_row("operation", "calls", "sites", "cases", *RESULTS)
    for name, results in findings.results.items():
        counts = findings.calls[name], findings.sites[name], results.total()
        print_row(name, *counts, *(results[kind] for kind in RESULTS))
    conclude(f"{findings.cases:,} cases", started, findings.faults)


if __name__ == "__main__":
    main()

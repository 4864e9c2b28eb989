"""Kill, damage, power failures and forks: the same asked of PyTables, h5py, Zarr and of a store.

    python -m tests.campaigns.peers [--long] [--seed 0] [--only Zarr]

Each keeps the same ragged samples in the way that it is made for, compressed, and is asked by its
own calls:

kill    A process appends samples and flushes (here: commits) after every few, and is killed by
        SIGKILL at a random moment. What had been flushed must be there, exact ("lost" or "wrong"
        where it is not); what came after may be, and must then be exact too (else "half"); and
        appending must work again without other tools (else "stuck").
power   Samples that had long been on the disk, then an append and a flush that returned. None of
        these libraries calls fsync, so of what was written since, each page may have come to the
        disk or not. The old samples must read, exact. A store is held to more by power.py.
flip    One bit in the compressed data: the right values, an error, or values that nobody wrote?
fork    A process in which a thread is reading forks. Children read from what was opened before.

It is all done in child processes that may die or hang, begun by a process without threads.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import tables
import zarr

import raggedstore as rs
from tests.campaigns.table import conclude, print_row

__all__ = ["PEERS", "QUESTIONS", "Findings", "campaign"]

FIRST = 24  # samples that are there before anything happens
BLOCK = 4  # samples from one flush to the next
MOMENTS = 0.25  # seconds within which a writer is killed
SECONDS = 10  # for one case, else it hangs
CHUNK = 16_384  # values
COUNTS = {"kill": (2, 100), "power": (3, 100), "flip": (20, 2000), "fork": (3, 100)}
PAGE = 4096  # bytes
TOGETHER = 20  # children of one process that forks

Samples = list[np.ndarray]


def sample(index: int) -> np.ndarray:
    """The sample that belongs at `index`: a few thousand steps of a random walk."""
    rng = np.random.default_rng(index)
    return np.cumsum(rng.integers(-9, 10, 500 + index * 777 % 4000)).astype(np.int32)


class Peer:
    """One way to keep samples."""

    name = ""
    fsyncs = False

    def append(self, path: Path, start: int, stop: int, told: Callable[[int], None]) -> None:
        """Append samples, and tell how many there are whenever they have been flushed."""
        raise NotImplementedError

    def open(self, path: Path) -> tuple[Callable[[], Samples], Callable[[], object]]:
        """Open it: what reads all samples, and what closes it."""
        raise NotImplementedError

    def chunks(self, path: Path) -> list[tuple[Path, int, int]]:
        """Where compressed data lies: file, offset, size."""
        return [(path, *place) for place in _hdf5_chunks(path)]


def _hdf5_chunks(path: Path) -> list[tuple[int, int]]:
    with h5py.File(path) as file:
        leaf = file["data"].id
        found = [leaf.get_chunk_info(i) for i in range(leaf.get_num_chunks())]
        return [(chunk.byte_offset, chunk.size) for chunk in found]


def _blocks(start: int, stop: int) -> Iterator[tuple[int, Samples]]:
    """The samples a few at a time, and how many there are with them."""
    for first in range(start, stop, BLOCK):
        count = min(first + BLOCK, stop)
        yield count, [sample(i) for i in range(first, count)]


class EArrays(Peer):
    """Values and spans in two EArrays."""

    name = "PyTables EArray"

    def append(self, path: Path, start: int, stop: int, told: Callable[[int], None]) -> None:
        with tables.open_file(str(path), "a") as file:
            if "/data" not in file:
                made: dict[str, Any] = {"filters": tables.Filters(5, "blosc2:zstd", shuffle=True)}
                file.create_earray(
                    "/", "data", tables.Int32Atom(), (0,), chunkshape=(CHUNK,), **made
                )
                file.create_earray(
                    "/", "stops", tables.Int64Atom(), (0,), chunkshape=(512,), **made
                )
            data, stops = file.root.data, file.root.stops
            if data.nrows > (end := int(stops[-1]) if start else 0):
                data.truncate(end)  # what an append left that came to no end
            for count, samples in _blocks(start, stop):
                data.append(np.concatenate(samples))
                stops.append(np.cumsum([len(s) for s in samples]) + (stops[-1] if start else 0))
                start = count
                file.flush()
                told(count)

    def open(self, path: Path) -> tuple[Callable[[], Samples], Callable[[], object]]:
        file = tables.open_file(str(path))
        data, stops = file.root.data, file.root.stops
        return lambda: _cut(data[:], stops[:]), file.close


def _cut(values: np.ndarray, stops: np.ndarray) -> Samples:
    """The samples by themselves: where one makes no sense, others may."""
    return [values[start:stop] for start, stop in itertools.pairwise([0, *stops.tolist()])]


class VLArrays(Peer):
    """A VLArray."""

    name = "PyTables VLArray"

    def append(self, path: Path, start: int, stop: int, told: Callable[[int], None]) -> None:
        with tables.open_file(str(path), "a") as file:
            if "/data" not in file:
                file.create_vlarray("/", "data", tables.Int32Atom())
            for count, samples in _blocks(start, stop):
                for one in samples:
                    file.root.data.append(one)
                file.flush()
                told(count)

    def open(self, path: Path) -> tuple[Callable[[], Samples], Callable[[], object]]:
        file = tables.open_file(str(path))
        data = file.root.data
        return lambda: data[:], file.close

    def chunks(self, path: Path) -> list[tuple[Path, int, int]]:
        data = path.read_bytes()  # it compresses none of them
        pieces = [sample(i).tobytes() for i in range(FIRST)]
        return [(path, data.index(piece), len(piece)) for piece in pieces]


class H5py(Peer):
    """Values and where samples stop in two datasets."""

    name = "h5py"
    swmr = False

    def append(self, path: Path, start: int, stop: int, told: Callable[[int], None]) -> None:
        with h5py.File(path, "a", libver="latest" if self.swmr else None) as file:
            if "data" not in file:
                made = {"maxshape": (None,), **hdf5plugin.Blosc2(cname="zstd")}
                file.create_dataset("data", (0,), "i4", chunks=(CHUNK,), **made)
                file.create_dataset("stops", (0,), "i8", chunks=(512,), **made)
            if self.swmr:
                file.swmr_mode = True
            data, stops = file["data"], file["stops"]
            for count, samples in _blocks(start, stop):
                before = int(stops[-1]) if len(stops) else 0
                values = np.concatenate(samples)
                data.resize((before + len(values),))
                data[before:] = values
                data.flush()  # values first, so that whoever sees where samples stop sees them
                stops.resize((count,))
                stops[start:] = np.cumsum([len(s) for s in samples]) + before
                stops.flush()
                file.flush()
                start = count
                told(count)

    def open(self, path: Path) -> tuple[Callable[[], Samples], Callable[[], object]]:
        file = h5py.File(path, swmr=self.swmr)
        return lambda: _cut(file["data"][:], file["stops"][:]), file.close


class Swmr(H5py):
    """As h5py, in the mode for readers beside a writer."""

    name = "h5py SWMR"
    swmr = True


class Zarr(Peer):
    """Values and where samples stop in two arrays of a group in a folder, format 3."""

    name = "Zarr 3"

    def append(self, path: Path, start: int, stop: int, told: Callable[[int], None]) -> None:
        group = zarr.open_group(path, mode="a", zarr_format=3)
        if "data" not in group:
            group.create_array("data", shape=(0,), chunks=(CHUNK,), dtype="i4")
            group.create_array("stops", shape=(0,), chunks=(512,), dtype="i8")
        data: Any = group["data"]
        stops: Any = group["stops"]
        data.resize((int(stops[-1]) if start else 0,))  # without what an append left half done
        for count, samples in _blocks(start, stop):
            before = int(stops[-1]) if start else 0
            data.append(np.concatenate(samples))
            stops.append(np.cumsum([len(s) for s in samples]) + before)
            start = count
            told(count)

    def open(self, path: Path) -> tuple[Callable[[], Samples], Callable[[], object]]:
        group: Any = zarr.open_group(path, mode="r")
        return lambda: _cut(group["data"][:], group["stops"][:]), lambda: None

    def chunks(self, path: Path) -> list[tuple[Path, int, int]]:
        found = sorted(file for file in (path / "data/c").rglob("*") if file.is_file())
        return [(file, 0, file.stat().st_size) for file in found]


class Ours(Peer):
    """A store, each flush a commit."""

    name = "raggedstore"
    fsyncs = True

    def append(self, path: Path, start: int, stop: int, told: Callable[[int], None]) -> None:
        if not path.exists():
            profile = rs.Compression("zstd", 5, ("shuffle",), chunk_bytes=4 * CHUNK)
            rs.create(path, {"data": rs.Field("int32", (None,))}, profile=profile).close()
        store = rs.open(path, "a")
        assert isinstance(store, rs.Store)
        with store, store.writer() as writer:
            for count, samples in _blocks(start, stop):
                writer.extend({"data": one} for one in samples)
                writer.commit()
                told(count)

    def open(self, path: Path) -> tuple[Callable[[], Samples], Callable[[], object]]:
        store: Any = rs.open(path, budget=0)
        return lambda: [*store["data"]], store.close

    def chunks(self, path: Path) -> list[tuple[Path, int, int]]:
        found = []
        for segment in sorted(path.glob("segments/*.h5")):
            table: Any = rs.open(segment)
            entries = table._reader.table.datasets["data"]["data"].entries
            found += [(segment, int(at), int(size)) for at, size, _ in entries.tolist()]
        return found


PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (EArrays(), VLArrays(), H5py(), Swmr(), Zarr(), Ours())
}

#: What may come of a case; the first only is as it should be, and for a flipped bit an error is.
RESULTS = ("right", "error", "lost", "wrong", "half", "stuck", "crash", "hang")


def all_of(peer: Peer, path: Path) -> Samples:
    """What reads, closed again."""
    read, close = peer.open(path)
    try:
        return read()
    finally:
        close()


def judge(peer: Peer, path: Path, least: int) -> str:
    """What reads, where the first `least` samples must be there."""
    try:
        got = all_of(peer, path)
    except Exception:  # whatever they raise
        return "error"
    exact = [np.array_equal(one, sample(i)) for i, one in enumerate(got)]
    if not all(exact[:least]):
        return "wrong"
    if len(got) < least:
        return "lost"
    return "right" if all(exact) else "half"


# Cases, each of which may kill or stop the process that it is tried in

Work = Callable[[Connection, Sequence[Any], str], None]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["h5py", "hdf5plugin", "tables", "zarr", "raggedstore"])


def isolated(work: Work, cases: Sequence[Any], name: str) -> Iterator[str]:
    """What comes of each case; `work` sends that, case by case, and is begun anew if it dies."""
    left = list(cases)
    while left:
        ours, theirs = _context.Pipe()
        process = _context.Process(target=work, args=(theirs, left, name), daemon=True)
        process.start()
        theirs.close()
        result = ""
        while left and not result:
            try:
                if ours.poll(SECONDS):
                    yield ours.recv()
                else:
                    process.kill()
                    yield (result := "hang")
            except EOFError:
                yield (result := "crash")
            left.pop(0)
        process.join()
        ours.close()


def prepared(peer: Peer, folder: Path) -> Path:
    """A store with the first samples, made once."""
    path = folder / "made"
    if not path.exists():
        process = _context.Process(target=_first, args=(peer.name, path))
        process.start()
        process.join()
        assert process.exitcode == 0, f"{peer.name} could not be made"
    return path


def _first(name: str, path: Path) -> None:
    PEERS[name].append(path, 0, FIRST, lambda count: None)


def copied(source: Path, target: Path) -> Path:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target


def ask_kill(peer: Peer, folder: Path, count: int, rng: random.Random) -> Iterator[str]:
    """Kill a writer so many times."""
    cases = []
    for number in range(count):
        path = copied(prepared(peer, folder), folder / f"killed-{number}")
        ours, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=_appending, args=(theirs, peer.name, path), daemon=True)
        process.start()
        theirs.close()
        told = struct.unpack("q", ours.recv_bytes())[0]  # it begins
        time.sleep(rng.uniform(0, MOMENTS))
        process.kill()
        process.join()
        while ours.poll():
            try:
                told = struct.unpack("q", ours.recv_bytes())[0]
            except EOFError:
                break
        ours.close()
        cases.append((path, told))
    yield from isolated(_after_kill, cases, peer.name)


def _appending(told: Connection, name: str, path: Path) -> None:
    told.send_bytes(struct.pack("q", FIRST))
    tell = lambda count: told.send_bytes(struct.pack("q", count))  # noqa: E731
    PEERS[name].append(path, FIRST, 10**6, tell)


def _after_kill(results: Connection, cases: Sequence[Any], name: str) -> None:
    peer = PEERS[name]
    for path, told in cases:
        result = judge(peer, path, told)
        if result == "right":
            try:
                there = len(all_of(peer, path))
                peer.append(path, there, there + BLOCK, lambda count: None)
                result = judge(peer, path, there + BLOCK)
            except Exception:
                result = "stuck"
        results.send(result)


def ask_power(peer: Peer, folder: Path, count: int, rng: random.Random) -> Iterator[str]:
    """Lose some of what was written since the last fsync."""
    if peer.fsyncs:
        return
    old, new = prepared(peer, folder), copied(prepared(peer, folder), folder / "appended")
    process = _context.Process(target=_second, args=(peer.name, new))
    process.start()
    process.join()
    cases = [(old, new, folder / "found", rng.random()) for _ in range(count)]
    yield from isolated(_after_power, cases, peer.name)


def _second(name: str, path: Path) -> None:
    PEERS[name].append(path, FIRST, FIRST + BLOCK, lambda count: None)


def _files(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [f for f in sorted(path.rglob("*")) if f.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _after_power(results: Connection, cases: Sequence[Any], name: str) -> None:
    for old, new, path, seed in cases:
        rng = random.Random(seed)
        before, after = _files(old), _files(new)
        for file, data in after.items():
            target = path / file
            was = before.get(file)
            if data != was:
                if was is None and rng.random() < 0.3:
                    continue  # its name is not there either
                data = _partly(was or b"", data, rng)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        results.send(judge(PEERS[name], path, FIRST))
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _partly(old: bytes, new: bytes, rng: random.Random) -> bytes:
    """A file of which some pages are as they were and some as they were written."""
    out = bytearray(rng.choice([old, new]).ljust(len(old), b"\0"))
    for at in range(0, len(out), PAGE):
        source = rng.choice([old, new])[at : min(at + PAGE, len(out))]
        out[at : at + PAGE] = source.ljust(len(out[at : at + PAGE]), b"\0")
    return bytes(out)


def ask_flip(peer: Peer, folder: Path, count: int, rng: random.Random) -> Iterator[str]:
    """Flip a bit."""
    path = prepared(peer, folder)
    cases = [(path, rng.random()) for _ in range(count)]
    yield from isolated(_after_flip, cases, peer.name)


def _after_flip(results: Connection, cases: Sequence[Any], name: str) -> None:
    peer, path = PEERS[name], cases[0][0]
    chunks = peer.chunks(path)
    for _, seed in cases:
        rng = random.Random(seed)
        [(file, first, size)] = rng.choices(chunks, [size for *_, size in chunks])
        at, bit = first + rng.randrange(size), 1 << rng.randrange(8)
        _flip(file, at, bit)
        try:
            result = judge(peer, path, FIRST)
        finally:
            _flip(file, at, bit)
        results.send(result)


def _flip(path: Path, at: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ bit]))


def ask_fork(peer: Peer, folder: Path, count: int, rng: random.Random) -> Iterator[str]:
    """Fork a process that reads."""
    path = prepared(peer, folder)
    cases = [(path, rng.random()) for _ in range(count)]
    for first in range(0, count, TOGETHER):
        yield from isolated(_forking, cases[first : first + TOGETHER], peer.name)


def _forking(results: Connection, cases: Sequence[Any], name: str) -> None:
    read, _ = PEERS[name].open(cases[0][0])
    sys.setswitchinterval(1e-4)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            read()

    threading.Thread(target=work, daemon=True).start()
    children = []
    for _, seed in cases:
        time.sleep(0.02 * seed)
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS - 2)
            try:
                ok = all(np.array_equal(one, sample(i)) for i, one in enumerate(read()))
                os._exit(0 if ok else 1)
            except BaseException:
                os._exit(2)
        children.append(child)
    stop.set()
    said = {0: "right", 1: "wrong", 2: "error", -signal.SIGALRM: "hang"}
    for child in children:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        results.send(said.get(status, "crash"))
    os._exit(0)


QUESTIONS = {"kill": ask_kill, "power": ask_power, "flip": ask_flip, "fork": ask_fork}


@dataclass
class Findings:
    """What came of the cases, by question and library."""

    results: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)


def campaign(
    seed: int, *, is_long: bool = False, only: Sequence[str] = (), questions: Sequence[str] = ()
) -> Findings:
    """Ask each library everything."""
    findings = Findings()
    for question, name in itertools.product(questions or QUESTIONS, only or PEERS):
        rng = random.Random(f"{seed} {question} {name}")
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            count = COUNTS[question][is_long]
            results = QUESTIONS[question](PEERS[name], folder, count, rng)
            findings.results[question, name] = Counter(results)
    return findings


def wrong_with_ours(findings: Findings) -> list[str]:
    """What should never come of a case with a store."""
    allowed = {"flip": {"right", "error"}}
    return [
        f"{question}: {n} {result}"
        for (question, name), counter in findings.results.items()
        for result, n in counter.items()
        if name == Ours.name and result not in allowed.get(question, {"right"})
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="many more cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=PEERS)
    parser.add_argument("--question", action="append", default=[], choices=QUESTIONS)
    options = parser.parse_args()
    layout = partial(print_row, first=26, width=8)
    layout("question and library", "cases", *RESULTS)
    started, findings = time.monotonic(), Findings()
    for question in options.question or QUESTIONS:
        for name in options.only or PEERS:
            part = campaign(options.seed, is_long=options.long, only=[name], questions=[question])
            findings.results |= part.results
            counter = part.results[question, name]
            counts = counter.total(), *(counter[result] for result in RESULTS)
            layout(f"{question:8}{name}", *counts)
    conclude("all questions", started, wrong_with_ours(findings))


if __name__ == "__main__":
    main()

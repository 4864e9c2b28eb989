"""Measure one peer on one corpus, in a process of its own; `run.py` starts it.

    python benchmarks/measure.py JOB

JOB is JSON: what to do (write, check, read, memory or limit), with which peer, where. The answer is
JSON too, the last line printed. For memory, lines of a `BEGIN` and an `END` come before it: the
parent watches this process meanwhile, so that watching takes no part of its time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import limits
from benchmarks.corpora import Corpus
from benchmarks.peers import PEERS, Batch, Flat, Peer, Reader

#: One value in so many bytes is read of every array, so that memory maps have to bring the page.
PAGE = 4096

BEGIN, END = "begin", "end"

Measures = dict[str, float]
Epoch = Callable[[Reader], Iterator[Batch] | None]


@dataclass(frozen=True)
class Job:
    """What a child does."""

    action: str
    peer: str
    corpus: str  #: path of the .npz
    folder: str  #: the peer's files; for writing, a scratch folder
    samples: int  #: how many the corpus has, so that readers need not load it
    batch: int  #: samples in a batch of an epoch
    seed: int = 0
    cache_bytes: int = 256_000_000
    seconds: float = 2.0  #: after which an epoch, or appending, is cut short
    gets: int = 2_000

    def dumps(self) -> str:
        """As the argument of the child."""
        return json.dumps(asdict(self))


class Corrupt(Exception):
    """A peer gave other data than it was given."""


def touch(batch: Batch) -> int:
    """Read at least one value of every page of a batch; returns its bytes."""
    arrays = [batch.values] if isinstance(batch, Flat) else batch
    total = 0
    for array in arrays:
        nbytes = array.nbytes
        total += nbytes
        if nbytes > PAGE:
            array.reshape(-1)[:: PAGE // array.itemsize].max()
        elif nbytes:
            array.item(0)
    return total


def epoch_rate(epoch: Epoch, reader: Reader, limit: float) -> float | None:
    """Bytes a second of an epoch, or of as much of it as `limit` seconds allow."""
    begin = time.perf_counter()
    batches = epoch(reader)
    if batches is None:
        return None
    total = 0
    for batch in batches:
        total += touch(batch)
        if time.perf_counter() - begin > limit:
            break
    return total / (time.perf_counter() - begin)


def repeated(peer: Peer, job: Job, epoch: Epoch) -> float | None:
    """`epoch_rate` with a new reader each time, until a tenth of the time allowed is measured.

    What comes first, an epoch or a quarter of the time of it, is not counted: a process's first one
    imports, and gets its memory from the system.
    """
    reader = peer.open(Path(job.folder), job.cache_bytes)
    before = epoch_rate(epoch, reader, job.seconds / 4)
    reader.close()
    if before is None:
        return None
    rates = []
    spent = 0.0
    while spent < job.seconds / 10:
        reader = peer.open(Path(job.folder), job.cache_bytes)
        begin = time.perf_counter()
        rates.append(epoch_rate(epoch, reader, job.seconds) or 0.0)
        spent += time.perf_counter() - begin
        reader.close()
    return float(np.median(rates))


def sync(folder: Path) -> None:
    """Have the kernel put a folder's files on the disk: written means that for everybody."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def fresh(folder: str) -> Path:
    """The folder, emptied."""
    path = Path(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def stored_bytes(folder: Path) -> int:
    """Bytes of all files; of those with holes, what is on the disk."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(min(stat.st_size, stat.st_blocks * 512) for stat in stats)


def until(samples: Iterable[Any], seconds: float) -> Iterator[Any]:
    """Samples until the time is up."""
    end = time.perf_counter() + seconds
    for sample in samples:
        yield sample
        if time.perf_counter() > end:
            return


# Actions


def write(peer: Peer, job: Job, corpus: Corpus) -> Measures:
    """Bulk and one by one, each to the disk."""
    if not peer.writes:
        return {}
    # Once for what happens only once in a process.
    peer.write(fresh(job.folder), Corpus.of("few", list(islice(corpus, 100))))
    folder = fresh(job.folder)
    begin = time.perf_counter()
    peer.write(folder, corpus)
    sync(folder)
    found = {"write": corpus.nbytes / (time.perf_counter() - begin)}
    # Counted rather than assumed: the clock may stop it before the corpus ends.
    count = 0

    def counted() -> Iterator[Any]:
        nonlocal count
        for sample in until(samples, job.seconds):
            count += 1
            yield sample

    samples = list(islice(corpus, 50_000))
    folder = fresh(job.folder)
    begin = time.perf_counter()
    if peer.append(folder, counted(), corpus):
        sync(folder)
        found["append"] = count / (time.perf_counter() - begin)
    shutil.rmtree(folder)
    return found


def prepare(peer: Peer, job: Job, corpus: Corpus) -> Measures:
    """Write the files that are read, and hold everything read from them against the corpus."""
    folder = fresh(job.folder)
    peer.write(folder, corpus)
    sync(folder)
    check(peer, job, corpus)
    return {"size": stored_bytes(folder) / corpus.nbytes}


def samples_of(batches: Iterator[Batch]) -> Iterator[npt.NDArray[Any]]:
    """The samples of batches, one after another."""
    for batch in batches:
        yield from batch.to_list() if isinstance(batch, Flat) else batch


def same(peer: Peer, what: str, i: int, got: Any, wanted: npt.NDArray[Any]) -> None:
    """Raise unless the sample is the one wanted."""
    if got.dtype != wanted.dtype or got.shape != wanted.shape or not np.array_equal(got, wanted):
        raise Corrupt(f"{peer.name}: {what}: sample {i} is not what was written")


def check(peer: Peer, job: Job, corpus: Corpus) -> None:
    """Raise unless a peer reads what it wrote.

    Sequentially every sample; a random hundred permuted, got one by one, and appended; of a
    windowed shuffle that every sample comes once.
    """
    folder = Path(job.folder)
    reader = peer.open(folder, job.cache_bytes)
    got = -1
    for got, sample in enumerate(samples_of(reader.sequential(corpus.batch))):
        same(peer, "sequential", got, sample, corpus[got])
    if got + 1 != len(corpus):
        raise Corrupt(f"{peer.name}: sequential: {got + 1} samples of {len(corpus)}")
    order = np.random.default_rng(job.seed).permutation(len(corpus))
    hundred = order[:100]
    permuted = reader.permuted(hundred, 16)
    if permuted is not None:
        for i, sample in zip(hundred.tolist(), samples_of(permuted), strict=True):
            same(peer, "permuted", i, sample, corpus[i])
    for i in hundred.tolist():
        single = reader.get(i)
        if single is not None:
            same(peer, "get", i, single, corpus[i])
    windowed = reader.windowed(job.seed, corpus.batch)
    if windowed is not None:
        digests = sorted(hash(sample.tobytes()) for sample in samples_of(windowed))
        if digests != sorted(hash(sample.tobytes()) for sample in corpus):
            raise Corrupt(f"{peer.name}: windowed: not every sample once")
    reader.close()
    if not peer.writes:
        return
    few = fresh(f"{job.folder}-appended")
    if peer.append(few, (corpus[i] for i in hundred.tolist()), corpus):
        reader = peer.open(few, job.cache_bytes)
        found = samples_of(reader.sequential(16))
        for i, sample in zip(hundred.tolist(), found, strict=True):
            same(peer, "appended", i, sample, corpus[i])
        reader.close()
    shutil.rmtree(few)


def read(peer: Peer, job: Job) -> Measures:
    """Opening, epochs and single samples."""
    folder = Path(job.folder)
    rng = np.random.default_rng(job.seed)
    order = rng.permutation(job.samples)

    def opened() -> float:
        begin = time.perf_counter()
        reader = peer.open(folder, job.cache_bytes)
        # With its first sample: what a library puts off is part of opening.
        if reader.get(0) is None:
            next(iter(reader.sequential(1)))
        took = time.perf_counter() - begin
        reader.close()
        return took

    opened()  # once for what happens only once in a process
    found = {"open": float(np.median([opened() for _ in range(5)]))}
    epochs: dict[str, Epoch] = {
        "sequential": lambda reader: reader.sequential(job.batch),
        "permuted": lambda reader: reader.permuted(order, job.batch),
        "windowed": lambda reader: reader.windowed(job.seed, job.batch),
    }
    for name, epoch in epochs.items():
        rate = repeated(peer, job, epoch)
        if rate is not None:
            found[name] = rate
    times = get_times(peer, job, rng.integers(0, job.samples, job.gets).tolist())
    if times is not None:
        found["get_p50"], found["get_p99"] = np.percentile(times, [50, 99]).tolist()
    return found


def get_times(peer: Peer, job: Job, indices: list[int]) -> list[float] | None:
    """Seconds of each get, the samples all got once before: what a peer can hold, it holds."""
    reader = peer.open(Path(job.folder), job.cache_bytes)
    if reader.get(0) is None:
        return None
    for _ in range(2):
        times: list[float] = []
        end = time.perf_counter() + 2 * job.seconds
        for i in indices:
            begin = time.perf_counter()
            touch([reader.get(i)])
            now = time.perf_counter()
            times.append(now - begin)
            if now > end:
                break
    reader.close()
    return times


def memory(peer: Peer, job: Job) -> Measures:
    """An epoch in order and a permuted one, each between two lines that the parent waits for."""
    order = np.random.default_rng(job.seed).permutation(job.samples)
    epochs: dict[str, Epoch] = {
        "sequential": lambda reader: reader.sequential(job.batch),
        "permuted": lambda reader: reader.permuted(order, job.batch),
    }
    for name, epoch in epochs.items():
        print(BEGIN, name, flush=True)
        reader = peer.open(Path(job.folder), job.cache_bytes)
        done = epoch_rate(epoch, reader, 3 * job.seconds)
        reader.close()
        print(END, name if done is not None else "", flush=True)
    return {}


READING: dict[str, Callable[[Peer, Job], Measures]] = {"read": read, "memory": memory}
WRITING: dict[str, Callable[[Peer, Job, Corpus], Measures]] = {"write": write, "prepare": prepare}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    if job.action == "limit":
        corpus = Corpus.load(Path(job.corpus))
        found = limits.measure(job.peer, Path(job.folder), corpus, job.seconds / 10)
        print(json.dumps(found))
        return
    peer = PEERS[job.peer]
    peer.load()
    if job.action in READING:
        # Without the corpus in memory, nor what the allocator would keep of it.
        found = READING[job.action](peer, job)
    else:
        found = WRITING[job.action](peer, job, Corpus.load(Path(job.corpus)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

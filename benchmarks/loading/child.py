"""Write, check or time one way of loading, in a process of its own; `loaders.py` starts it.

    python -m benchmarks.loading.child JOB

JOB is JSON. The answer is JSON too, the last line printed. Before a check begins, a line `BEGIN`
is printed and one waited for: the parent looks meanwhile what the process takes that has imported
everything, and then watches it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from benchmarks.corpora import Corpus
from benchmarks.loading import LOADINGS, Loading, Setting
from benchmarks.loading.padding import Batch, Flat
from raggedstore.batch import RaggedBatch, offsets_of

#: One value in so many bytes is read of every batch.
PAGE = 4096

BEGIN = "begin"

Measures = dict[str, float]


@dataclass(frozen=True)
class Job:
    """What a child does."""

    action: str  #: write, check or time
    loading: str
    corpus: str  #: path of the .npz
    digests: str  #: path of its samples' digests
    folder: str  #: the files
    samples: int
    batch: int
    workers: int = 0
    seed: int = 0
    budget: int = 512_000_000
    seconds: float = 2.0
    flat: bool = False

    def dumps(self) -> str:
        """As the argument of the child."""
        return json.dumps(asdict(self))

    @property
    def setting(self) -> Setting:
        """As the loadings take it."""
        return Setting(self.samples, self.batch, self.workers, self.seed, self.budget, self.flat)


class Corrupt(Exception):
    """Other samples came than were written."""


def digest(sample: npt.NDArray[Any]) -> int:
    """Of a sample's shape and bytes."""
    shape = np.array(sample.shape, np.int64).tobytes()
    return xxhash.xxh3_64_intdigest(shape + np.ascontiguousarray(sample).tobytes())


def digests_of(corpus: Corpus) -> npt.NDArray[np.uint64]:
    """Of all samples, sorted."""
    return np.sort(np.array([digest(sample) for sample in corpus], np.uint64))


def touch(batch: Batch, size: int) -> int:
    """Read values of every page of a batch, and one of every sample; returns the samples."""
    values = batch.values.numpy()
    count = len(batch.lengths)
    if not 0 < count <= size or (len(values) != count and not isinstance(batch, Flat)):
        raise Corrupt(f"a batch of {len(values)} samples with {count} lengths")
    flat = values.reshape(-1)
    if flat.size:
        flat[:: PAGE // flat.itemsize].max()
    if flat.size and not isinstance(batch, Flat):
        values[(slice(None), *[0] * (values.ndim - 1))].max()
    return count


def samples_of(batch: Batch) -> Iterator[npt.NDArray[Any]]:
    """The samples of a batch; raises where anything lies behind one."""
    values, lengths = batch.values.numpy(), batch.lengths.numpy()
    if isinstance(batch, Flat):
        shapes = lengths.reshape(len(lengths), -1)
        yield from RaggedBatch(values, offsets_of(shapes.prod(axis=1)), shapes)
        return
    filled = 0
    for row, shape in zip(values, lengths.reshape(len(lengths), -1), strict=True):
        sample = row[tuple(map(slice, shape.tolist()))]
        filled += np.count_nonzero(sample)
        yield sample
    if filled != np.count_nonzero(values):
        raise Corrupt("there are values in the padding")


# Actions


def write(loading: Loading, job: Job) -> Measures:
    """Files for every job that reads."""
    corpus = Corpus.load(Path(job.corpus))
    folder = Path(job.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    loading.write(folder, corpus)
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    # Of files with holes, what is on the disk.
    stored = sum(min(stat.st_size, stat.st_blocks * 512) for stat in stats)
    return {"size": stored / corpus.nbytes}


def hold_against(
    loading: Loading,
    folder: Path,
    setting: Setting,
    wanted: npt.NDArray[np.uint64],
    seconds: float = 0.0,
) -> None:
    """Raise unless an epoch has every sample once, and the next one is in another order.

    Of the next epoch as much is read as `seconds` from the beginning allow.
    """
    end = time.perf_counter() + seconds
    epochs = loading.epochs(folder, setting)
    got: list[int] = []
    for batch in next(epochs):
        touch(batch, setting.batch)
        got += map(digest, samples_of(batch))
    if not np.array_equal(np.sort(np.array(got, np.uint64)), wanted):
        missing = len(np.setdiff1d(wanted, np.array(got, np.uint64)))
        raise Corrupt(f"{len(got)} samples of {len(wanted)}, {missing} missing or changed")
    again: list[int] = []
    for batch in next(epochs):
        again += map(digest, samples_of(batch))
        if time.perf_counter() > end:
            break
    if len(wanted) > setting.batch and again == got[: len(again)]:
        raise Corrupt("the second epoch has the order of the first")


def check(loading: Loading, job: Job) -> Measures:
    """What it gives, held against the corpus while the parent watches its memory."""
    wanted = np.load(job.digests)
    print(BEGIN, flush=True)
    sys.stdin.readline()
    hold_against(loading, Path(job.folder), job.setting, wanted, job.seconds)
    return {}


def measure(loading: Loading, job: Job) -> Measures:
    """Time to the first batch, and samples a second from there on, epoch following epoch."""
    begin = time.perf_counter()
    first = end = 0.0
    count = 0
    for epoch in loading.epochs(Path(job.folder), job.setting):
        of_epoch = 0
        for batch in epoch:
            of_batch = touch(batch, job.batch)
            now = time.perf_counter()
            of_epoch += of_batch
            if not first:
                first, end = now, now + job.seconds
                continue
            count += of_batch
            if now > end:
                return {"first": first - begin, "rate": count / (now - first)}
        if of_epoch != job.samples:
            raise Corrupt(f"an epoch of {of_epoch} samples in place of {job.samples}")
    raise Corrupt("no more epochs")


ACTIONS = {"write": write, "check": check, "time": measure}


def main() -> None:
    # Other projects warn of what is theirs to mend.
    warnings.simplefilter("ignore")
    job = Job(**json.loads(sys.argv[1]))
    loading = LOADINGS[job.loading]
    loading.load()
    found = ACTIONS[job.action](loading, job)
    print(json.dumps(found), flush=True)
    # Without waiting for worker processes to be asked to leave: the parent ends what is left.
    os._exit(0)


if __name__ == "__main__":
    main()

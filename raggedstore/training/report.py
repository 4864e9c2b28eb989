"""What an epoch was like: how fast, how well mixed, how much of it padding, what was set aside.

Reading notes a few sums for each read (`Facts`), and the loop counts how many batches it has been
given (`Watch`): nothing is done for each sample, next to nothing for each batch, and a report is
worked out when somebody asks for it.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.samples import Concatenation, Samples, Selection
from raggedstore.segment.context import ReadContext
from raggedstore.segment.reader import SegmentReader
from raggedstore.store.store import Store
from raggedstore.training.columns import Columns
from raggedstore.training.packing import PackedRows
from raggedstore.units import format_bytes

__all__ = [
    "LISTED",
    "Facts",
    "Loss",
    "Quarantined",
    "Report",
    "Watch",
    "extents_of",
    "peak_memory",
]

Int64s = npt.NDArray[np.int64]

#: Places of the epoch that are looked at to say how well it was mixed, at most.
_LOOKED_AT = 2**12
#: Samples set aside that are listed; more are only counted.
LISTED = 10_000


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a sample was set aside."""

    error: str
    message: str
    field: str | None = None
    transform: str | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A sample that was set aside, since it could not be read or its transform failed."""

    position: int  #: among the loader's samples
    epoch: int
    step: int  #: which batch of this process in the epoch it is missing in, counted from 0
    field: str | None  #: that could not be read
    transform: str | None  #: that failed
    error: str  #: the name of the error's type
    message: str

    def __str__(self) -> str:
        what = f"field {self.field!r}" if self.transform is None else f"transform {self.transform}"
        return (
            f"sample {self.position}, {what}, epoch {self.epoch}, step {self.step}: "
            f"{self.error}: {self.message}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """About the m batches of a read.

    Parameters
    ----------
    positions
        (k,) the samples in them.
    edges
        (m + 1,) batch i has ``positions[edges[i]:edges[i + 1]]``.
    nbytes
        Decoded bytes of all of them.
    extents
        For each ragged field how many values all of them have, as they are and padded.
    lost
        For each batch that lost samples their positions, and why.
    """

    positions: Int64s
    edges: Int64s
    nbytes: int
    extents: Mapping[str, tuple[int, int]]
    lost: Mapping[int, list[tuple[int, Loss]]]


def extents_of(
    columns: Columns, edges: Int64s, batches: Sequence[Columns] = ()
) -> dict[str, tuple[int, int]]:
    """For each ragged field how many values the `batches` have, as they are and padded.

    `columns` has the samples of all of them together. Of what is packed steps count and not values,
    which comes to the same; only then need the `batches` be given.
    """
    extents = {}
    for name, column in columns.items():
        if not isinstance(column, RaggedBatch):
            continue
        if batches and isinstance(batches[0].get(name), PackedRows):
            steps = sum(math.prod(batch[name].shape) for batch in batches)
            extents[name] = (int(column.lengths.sum()), steps)
            continue
        firsts = edges[:-1]
        sizes = edges[1:] - firsts
        if not sizes.all():  # `reduceat` knows no empty part
            firsts, sizes = firsts[sizes > 0], sizes[sizes > 0]
        padded = 0
        if len(sizes):
            # Contiguous, as a vector's are, they are gone over four times as fast.
            if column.ndim == 1:
                largest = np.maximum.reduceat(column.shapes.reshape(-1), firsts)
            else:
                largest = np.maximum.reduceat(column.shapes, firsts, axis=0).prod(axis=1)
            padded = int(np.dot(largest, sizes))
        extents[name] = (len(column.values), padded)
    return extents


@dataclass(frozen=True, slots=True)
class Report:
    """What the latest epoch of a loader was like, up to now or to its end."""

    epoch: int
    finished: bool
    samples: int  #: handed over, of this process
    batches: int
    nbytes: int  #: of the values decoded for them
    waiting: float  #: seconds that the loop waited for batches
    looping: float  #: seconds that it was busy with them
    #: For each ragged field how much of a batch is padding where it is padded to its longest
    #: sample, or what is empty of packed rows: from 0 to 1.
    padding: Mapping[str, float]
    #: Rank correlation between where samples come in the epoch and where they stand in the store,
    #: without its sign: 1 in order, about 0 where they are mixed. Of up to 4,096 samples.
    order: float | None
    #: How far apart in the store samples stand that follow one another, on average, as a part of
    #: the whole: 1/3 where any order is as likely as any other.
    jump: float | None
    cache_hits: int | None  #: chunks that were still decoded; None where no store is read
    chunks_decoded: int | None
    blocks_decoded: int | None  #: apart from their chunks
    quarantined: int  #: samples set aside
    #: The most memory that this process and its children ever took, each of them, added up; None
    #: where the system does not say.
    peak_memory: int | None
    budget: int

    @property
    def seconds(self) -> float:
        """From when the first batch was asked for to when the last was done with, or to now."""
        return self.waiting + self.looping

    @property
    def samples_per_second(self) -> float:
        """Samples over `seconds`."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Decoded bytes over `seconds`."""
        return self.nbytes / self.seconds if self.seconds else 0.0

    @property
    def chunks_per_sample(self) -> float | None:
        """Whole chunks decoded for each sample."""
        if self.chunks_decoded is None:
            return None
        return self.chunks_decoded / self.samples if self.samples else 0.0

    def __str__(self) -> str:
        lines = [
            f"epoch {self.epoch}{'' if self.finished else ', not finished'}: {self.samples} "
            f"samples in {self.batches} batches, {format_bytes(self.nbytes)}",
            f"{self.seconds:.3g} s, of which {self.waiting:.3g} s waiting for data: "
            f"{self.samples_per_second:,.0f} samples/s, {format_bytes(self.bytes_per_second)}/s",
        ]
        if self.padding:
            each = ", ".join(f"{part:.1%} of {name!r}" for name, part in self.padding.items())
            lines.append(f"padding: {each}")
        if self.order is not None and self.jump is not None:
            lines.append(
                f"mixing: order correlation {self.order:.3f} (mixed: 0), jumps of {self.jump:.3f} "
                f"of the store (mixed: 0.333)"
            )
        if self.chunks_decoded is not None:
            lines.append(
                f"decoded: {self.chunks_decoded} chunks ({self.chunks_per_sample:.3g} a sample) "
                f"and {self.blocks_decoded} blocks; {self.cache_hits} cache hits"
            )
        if self.quarantined:
            lines.append(f"set aside: {self.quarantined} samples")
        memory = "" if self.peak_memory is None else f"peak {format_bytes(self.peak_memory)}, "
        lines.append(f"memory: {memory}budget {format_bytes(self.budget)}")
        return "\n  ".join(lines)

    __repr__ = __str__


class _Some:
    """Up to `_LOOKED_AT` numbers."""

    def __init__(self) -> None:
        self._all = np.zeros(_LOOKED_AT, np.int64)
        self.count = 0

    @property
    def numbers(self) -> Int64s:
        """(count,) those there are."""
        return self._all[: self.count]

    def add(self, numbers: Int64s) -> None:
        """Take so many more."""
        self._all[self.count : self.count + len(numbers)] = numbers
        self.count += len(numbers)

    def halve(self) -> None:
        """Keep every other one."""
        kept = self.numbers[::2].copy()
        self.count = 0
        self.add(kept)


@dataclass(eq=False)
class Watch:
    """Looks on while an epoch goes by.

    Parameters
    ----------
    samples
        What is read.
    step
        Which step of the epoch the iteration begins with.
    """

    samples: Samples
    epoch: int
    step: int
    budget: int
    waiting: float = 0.0  #: seconds
    #: Batches of the read that is being handed over. Counted by the loop itself: a call for each
    #: batch would cost more than all else.
    given: int = 0
    finished: bool = False
    quarantined: int = 0
    _begun: float | None = None
    _ended: float | None = None
    _facts: Facts | None = None
    _batches: int = 0
    _samples: int = 0
    _nbytes: int = 0
    _extents: dict[str, tuple[int, int]] = field(default_factory=dict)
    _peak: int | None = None

    def __post_init__(self) -> None:
        found = _contexts(self.samples)
        self._before = None if found is None else [(c, *_counts(c)) for c in found]
        # Of every `_stride`-th place in the epoch the sample, and how far off the next one is.
        self._stride = 1
        self._positions = _Some()
        self._jumps = _Some()

    def begin(self) -> None:
        """The loop asks for its first batch."""
        self._begun = time.perf_counter()

    def reading(self, facts: Facts, waiting: float) -> None:
        """Those of the read that is handed over from now on, waited for for so many seconds."""
        self.waiting += waiting
        self._add()
        self._facts, self.given = facts, 0

    def lost(self, step: int) -> Iterator[Quarantined]:
        """What the batch handed over last is missing; `step` counts from the iteration's first."""
        assert self._facts is not None
        for position, loss in self._facts.lost.get(self.given - 1, ()):
            self.quarantined += 1
            yield Quarantined(
                position,
                self.epoch,
                self.step + step,
                loss.field,
                loss.transform,
                loss.error,
                loss.message,
            )

    def ended(self, *, whole: bool, processes: bool) -> None:
        """The iteration is over; with `processes`, those are still there to be looked at."""
        self.finished, self._ended = whole, time.perf_counter()
        self._add()
        if processes:
            self._peak = peak_memory()

    def _add(self) -> None:
        """Put the batches handed over of the read to the sums."""
        facts, given = self._facts, self.given
        self._facts, self.given = None, 0
        if facts is None or not given:
            return
        count = int(facts.edges[given])
        start = self._thin_out(count)
        looked_at = facts.positions[start : count : self._stride]
        follow = facts.positions[start + 1 : count + 1 : self._stride]
        self._positions.add(looked_at)
        self._jumps.add(np.abs(follow - looked_at[: len(follow)]))
        self._batches += given
        self._samples += count
        # For a read given in part its bytes are taken to be spread evenly, and its padding counts
        # as a whole.
        self._nbytes += facts.nbytes * given // (len(facts.edges) - 1)
        for name, (values, padded) in facts.extents.items():
            sums = self._extents.get(name, (0, 0))
            self._extents[name] = (sums[0] + values, sums[1] + padded)

    def _thin_out(self, more: int) -> int:
        """Make room for `more` samples; which of them is the first to look at."""
        while self._positions.count + more // self._stride >= _LOOKED_AT:
            self._stride *= 2
            self._positions.halve()
            self._jumps.halve()
        return -self._samples % self._stride

    def report(self) -> Report:
        """All that is known by now."""
        # Of a copy, so that it may be asked for at any time and in any thread.
        seen = copy.copy(self)
        seen._extents = dict(self._extents)
        seen._positions, seen._jumps = copy.deepcopy((self._positions, self._jumps))
        seen._add()
        return seen._report()

    def _report(self) -> Report:
        seconds = 0.0
        if self._begun is not None:
            seconds = (time.perf_counter() if self._ended is None else self._ended) - self._begun
        hits = chunks = blocks = None
        if self._before is not None:
            now = [_counts(context) for context, *_ in self._before]
            then = [counts for _, *counts in self._before]
            grown = np.array(now, np.int64) - np.array(then, np.int64)
            hits, chunks, blocks = grown.reshape(-1, 3).sum(axis=0).tolist()
        peaks = [peak for peak in (self._peak, peak_memory()) if peak is not None]
        jumps = self._jumps.numbers
        return Report(
            epoch=self.epoch,
            finished=self.finished,
            samples=self._samples,
            batches=self._batches,
            nbytes=self._nbytes,
            waiting=self.waiting,
            looping=max(seconds - self.waiting, 0.0),
            padding={
                name: 1 - values / padded if padded else 0.0
                for name, (values, padded) in self._extents.items()
            },
            order=_rank_correlation(self._positions.numbers),
            jump=float(jumps.mean()) / max(len(self.samples), 1) if len(jumps) else None,
            cache_hits=hits,
            chunks_decoded=chunks,
            blocks_decoded=blocks,
            quarantined=self.quarantined,
            peak_memory=max(peaks, default=None),
            budget=self.budget,
        )


def _rank_correlation(positions: Int64s) -> float | None:
    """Spearman's, without its sign, between where `positions` stand and what they are."""
    if len(positions) < 2:
        return None
    _, which, counts = np.unique(positions, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # those of equal ones on average
    if len(counts) < 2:
        return 0.0
    return abs(float(np.corrcoef(np.arange(len(positions)), ranks)[0, 1]))


# What is counted elsewhere


def _contexts(samples: Samples) -> list[ReadContext] | None:
    """What the stores are read through that `samples` come from; None where one is no store."""
    if isinstance(samples, Store):
        return [samples._snapshot.context]
    reader = getattr(samples, "_reader", None)
    if isinstance(reader, SegmentReader):  # of a single file
        return [reader.context]
    if isinstance(samples, Selection):
        return _contexts(samples._base)
    if isinstance(samples, Concatenation):
        found: dict[int, ReadContext] = {}
        for part in samples._parts:
            contexts = _contexts(part)
            if contexts is None:
                return None
            found.update((id(context), context) for context in contexts)
        return list(found.values())
    return None


def _counts(context: ReadContext) -> tuple[int, int, int]:
    return context.cache.hits, context.chunks_decoded, context.blocks_decoded


def peak_memory() -> int | None:
    """Bytes that this process and all below it took at most, each for itself, added up."""
    own = _high_water(os.getpid())
    if own is None:
        return None
    return own + sum(_high_water(pid) or 0 for pid in _below(os.getpid()))


def _high_water(pid: int) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _below(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    # Not every kernel lists children, so each process is asked for its parent.
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        with suppress(OSError, ValueError, IndexError):
            stat = Path(f"/proc/{int(entry)}/stat").read_text()
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found

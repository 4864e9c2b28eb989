"""`Transform`: a user's function on the way of samples or batches to the loop, and where it runs.

Functions run in the reading thread, or in threads or processes of an iteration's own
(`workers.py`). What one read has is cut into runs, a few for each worker, and the results are put
into order, so that who works where changes nothing.

Randomness is asked for by what it is for: (seed, epoch, the sample's position, and which of its
turns it is, where it has several in an epoch). Philox computes any stretch of its stream from a
counter, and each position and turn has a stretch of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore.errors import SampleTypeError, UsageError
from raggedstore.indexing import at_least
from raggedstore.schema import Field, Schema
from raggedstore.training.batching import Rule
from raggedstore.training.keys import check_seed, derive_key
from raggedstore.training.picks import Picks
from raggedstore.training.workers import Pool, Processes, Threads

__all__ = ["Failed", "Per", "Stages", "Transform", "checked"]

Int64s = npt.NDArray[np.int64]
Per = Literal["batch", "sample"]
Sample = Mapping[str, Any]

#: Runs that the samples of a read are cut into, for each worker: some take longer than others.
_RUNS = 4

# What keys are for, as one of the numbers that they are derived from.
_OF_SAMPLE, _OF_BATCH = 0x5A3B, 0xBA7C


@dataclass(frozen=True, slots=True)
class Transform:
    """A function of a sample or a batch.

    Parameters
    ----------
    fn
        Takes a sample or a batch and, where it is `seeded`, a `numpy.random.Generator`.
    per
        What of.
    seed
        None where it is not seeded.
    number
        Which of the seeded transforms it is.
    threads, processes
        How many it runs in; with 1 thread and no process, the reading thread.
    fields
        What fields it gives are.
    """

    fn: Callable[..., Any]
    per: Per
    seed: int | None
    number: int
    threads: int
    processes: int
    fields: Mapping[str, Field]

    @property
    def name(self) -> str:
        """What errors call it."""
        fn = getattr(self.fn, "func", self.fn)  # of a partial
        return getattr(fn, "__qualname__", type(fn).__qualname__)

    @property
    def workers(self) -> int:
        """How many samples or batches it works on at a time."""
        return max(self.threads, self.processes)

    def __repr__(self) -> str:
        words = [self.name, f"per={self.per!r}"]
        if self.seed is not None:
            words.append(f"seed={self.seed}")
        if self.processes or self.threads > 1:
            words.append(
                f"processes={self.processes}" if self.processes else f"threads={self.threads}"
            )
        return f"map({', '.join(words)})"


def checked(
    before: Sequence[Transform],
    rule: Rule,
    fn: Any,
    *,
    per: Any,
    seeded: bool,
    seed: Any,
    threads: Any,
    processes: Any,
    fields: Any,
) -> Transform:
    """A transform to come after those `before`; UsageError where it cannot."""
    if not callable(fn):
        raise UsageError(f"a transform is a function, not {fn!r}")
    if per not in ("batch", "sample"):
        raise UsageError(f"per is 'batch' or 'sample', got {per!r}")
    transform = Transform(
        fn,
        per,
        check_seed(seed) if seeded else None,
        sum(other.seed is not None for other in before),
        at_least(1, threads, "threads"),
        at_least(0, processes, "processes"),
        dict(Schema(fields)) if fields else {},
    )
    name = transform.name
    if transform.threads > 1 and transform.processes:
        raise UsageError("a transform runs in threads or in processes, not in both")
    if per == "batch" and fields:
        raise UsageError("fields= says what a transform per sample gives")
    if per == "sample":
        if rule.cuts:
            raise UsageError(
                f"{name} is to see samples, and {rule!r} cuts them into pieces: "
                f"map it with per='batch'"
            )
        if any(other.per == "batch" for other in before):
            raise UsageError(f"{name} is to see samples, and {before[-1]!r} before it has batches")
    if processes:
        try:
            pickle.dumps(transform)
        except Exception as error:  # pickling may raise anything
            raise UsageError(
                f"{name} is to run in processes, and does not pickle: {error}. A function at the "
                f"top of a module does, and so does functools.partial of one"
            ) from None
    return transform


@dataclass(frozen=True, slots=True)
class Failed:
    """In the place of a sample whose transform raised an error."""

    transform: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class _Work:
    """What a worker does: several transforms, one after another."""

    transforms: tuple[Transform, ...]
    epoch: int
    skip: bool  #: give back `Failed` instead of raising, of samples

    def samples(self, samples: Sequence[Sample], known: Sequence[tuple[int, int]]) -> list[Any]:
        """Each sample transformed; of each is `known` its position, and which turn it has."""
        streams = [_Stream.of(transform, self.epoch) for transform in self.transforms]
        steps = list(zip(self.transforms, streams, strict=True))
        return [self._sample(steps, *one) for one in zip(samples, known, strict=True)]

    def _sample(
        self, steps: list[tuple[Transform, _Stream | None]], sample: Sample, known: tuple[int, int]
    ) -> Any:
        made: Any = sample
        position, turn = known
        for transform, stream in steps:
            try:
                if stream is None:
                    made = transform.fn(made)
                else:
                    made = transform.fn(made, stream.at(position, turn))
            except Exception as error:
                if self.skip:
                    return Failed(transform.name, type(error).__name__, str(error))
                error.add_note(
                    f"in transform {transform.name}, sample {position}, epoch {self.epoch}"
                )
                raise
            if type(made) is not dict and not isinstance(made, Mapping):
                raise SampleTypeError(
                    f"transform {transform.name} gave {type(made).__name__} for sample "
                    f"{position}: per sample it gives a dict"
                )
        return made

    def batches(self, batches: Sequence[Any], known: Sequence[tuple[int, int]]) -> list[Any]:
        """Each batch transformed; of each is `known` its first sample and its digest."""
        made = []
        for batch, (first, digest) in zip(batches, known, strict=True):
            for transform in self.transforms:
                try:
                    if transform.seed is None:
                        batch = transform.fn(batch)
                        continue
                    which = (transform.seed, self.epoch, transform.number, digest)
                    key = derive_key(*which, _OF_BATCH)
                    batch = transform.fn(batch, np.random.Generator(np.random.Philox(key=key)))
                except Exception as error:
                    error.add_note(
                        f"in transform {transform.name}, the batch that begins with sample "
                        f"{first}, epoch {self.epoch}"
                    )
                    raise
            made.append(batch)
        return made


class _Stream:
    """The random numbers of a transform, for each position its own.

    One generator serves all: to set its counter takes a tenth of the time of making another.
    """

    def __init__(self, key: npt.NDArray[np.uint64]) -> None:
        self._bits = np.random.Philox(key=key)
        self._generator = np.random.Generator(self._bits)
        self._state: Any = self._bits.state

    @classmethod
    def of(cls, transform: Transform, epoch: int) -> _Stream | None:
        """Of a transform in an epoch; None where it has none."""
        if transform.seed is None:
            return None
        return cls(derive_key(transform.seed, epoch, transform.number, _OF_SAMPLE))

    def at(self, position: int, turn: int) -> np.random.Generator:
        """Those of the sample at `position` in one of its turns."""
        # The words that counting does not reach in 2**128 numbers.
        self._state["state"]["counter"][2:] = turn, position
        self._bits.state = self._state
        return self._generator


def _digest(picks: Picks) -> int:
    """64 bits that tell what is in one batch from what is in another."""
    arrays = [picks.positions, picks.starts, picks.stops, picks.rows]
    arrays += [] if picks.turns is None else [picks.turns]
    hashing = hashlib.blake2b(digest_size=8)
    for array in arrays:
        hashing.update(b"" if array is None else array.astype("<i8").tobytes())
    return int.from_bytes(hashing.digest(), "little")


class Stages:
    """The transforms of one iteration, with the threads and processes that they run in.

    Parameters
    ----------
    transforms
        Those per sample first.
    epoch
        What randomness depends on.
    skip
        Whether samples that fail are set aside.
    """

    def __init__(self, transforms: Sequence[Transform], epoch: int, *, skip: bool) -> None:
        self._pools: list[Pool] = []
        self._of_samples: list[tuple[_Work, Pool]] = []
        self._of_batches: list[tuple[_Work, Pool]] = []
        # Neighbours that run alike run together: what lies between them goes nowhere.
        alike = itertools.groupby(transforms, lambda t: (t.per, t.threads, t.processes))
        for (per, threads, processes), group in alike:
            work = _Work(tuple(group), epoch, skip)
            pool = Pool()
            if processes:
                pool = Processes(processes)
            elif threads > 1:
                pool = Threads(threads)
            self._pools.append(pool)
            (self._of_samples if per == "sample" else self._of_batches).append((work, pool))
        self._seeded = any(t.seed is not None and t.per == "batch" for t in transforms)

    @property
    def per_sample(self) -> bool:
        """Whether there are transforms of single samples."""
        return bool(self._of_samples)

    @property
    def processes(self) -> bool:
        """Whether there are processes."""
        return any(isinstance(pool, Processes) for pool in self._pools)

    @property
    def batches_at_once(self) -> int:
        """How many batches are worked on at a time."""
        return max((pool.workers for _, pool in self._of_batches), default=1)

    def __bool__(self) -> bool:
        return bool(self._pools)

    def samples(self, samples: Sequence[Sample], picks: Picks) -> list[Sample | Failed]:
        """Each of the `samples`, which are `picks`, transformed, or what became of it."""
        made: list[Any] = list(samples)
        alive = list(range(len(made)))
        turns = itertools.repeat(0) if picks.turns is None else picks.turns.tolist()
        known = list(zip(picks.positions.tolist(), turns, strict=False))
        for work, pool in self._of_samples:
            runs = min(len(alive), pool.workers * _RUNS) if pool.workers > 1 else 1
            bounds = [len(alive) * i // runs for i in range(runs + 1)] if runs else [0]
            tasks = []
            for first, last in itertools.pairwise(bounds):
                which = alive[first:last]
                tasks.append(([made[i] for i in which], [known[i] for i in which]))
            done = itertools.chain.from_iterable(pool.run(work.samples, tasks))
            for i, one in zip(alive, done, strict=True):
                made[i] = one
            alive = [i for i in alive if not isinstance(made[i], Failed)]
        return made

    def batches(self, batches: list[Any], picks: Sequence[Picks]) -> list[Any]:
        """Each of the `batches` transformed; `picks` is what each was to hold."""
        if not self._of_batches:
            return batches
        known = [(int(some.positions[0]), _digest(some) if self._seeded else 0) for some in picks]
        for work, pool in self._of_batches:
            tasks = [([batch], [one]) for batch, one in zip(batches, known, strict=True)]
            batches = [one for (one,) in pool.run(work.batches, tasks)]
        return batches

    def stop(self) -> None:
        """End the threads and processes; those who wait for them get an error."""
        for pool in self._pools:
            pool.stop()

"""`Transform`: a user's function on the way of samples or batches to the loop, and where it runs.

Functions run in the reading thread, or in threads or processes of an iteration's own. Those are
there from its first read to its end, however that comes: stopping them takes no lock and waits for
nobody's answer, so that garbage collection may do it in the midst of anything. What one read has is
cut into runs, a few for each worker; each worker is given one at a time and the results are put
into order, so that who works where changes nothing.

Randomness is asked for by what it is for: (seed, epoch, the sample's position). Philox computes any
stretch of its stream from a counter, and each position has a stretch of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore.errors import SampleTypeError, UsageError
from raggedstore.schema import Field, Schema
from raggedstore.training.batching import Rule, at_least
from raggedstore.training.keys import check_seed, derive_key
from raggedstore.training.picks import Picks

__all__ = ["Failed", "Per", "Stages", "Transform", "checked"]

Int64s = npt.NDArray[np.int64]
Per = Literal["batch", "sample"]
Sample = Mapping[str, Any]

#: Runs that the samples of a read are cut into, for each worker: some take longer than others.
_RUNS = 4
#: How long a process that was told to end is waited for before it is killed.
_PATIENCE = 1.0

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

    def samples(self, samples: Sequence[Sample], positions: Sequence[int]) -> list[Any]:
        """Each sample transformed."""
        streams = [_Stream.of(transform, self.epoch) for transform in self.transforms]
        steps = list(zip(self.transforms, streams, strict=True))
        return [self._sample(steps, *one) for one in zip(samples, positions, strict=True)]

    def _sample(
        self, steps: list[tuple[Transform, _Stream | None]], sample: Sample, position: int
    ) -> Any:
        made: Any = sample
        for transform, stream in steps:
            try:
                if stream is None:
                    made = transform.fn(made)
                else:
                    made = transform.fn(made, stream.at(position))
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

    def at(self, position: int) -> np.random.Generator:
        """Those of the sample at `position`."""
        # The word that counting does not reach in 2**192 numbers.
        self._state["state"]["counter"][3] = position
        self._bits.state = self._state
        return self._generator


def _digest(picks: Picks) -> int:
    """64 bits that tell what is in one batch from what is in another."""
    arrays = (picks.positions, picks.starts, picks.stops, picks.rows)
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
        self._pools: list[_Pool] = []
        self._of_samples: list[tuple[_Work, _Pool]] = []
        self._of_batches: list[tuple[_Work, _Pool]] = []
        # Neighbours that run alike run together: what lies between them goes nowhere.
        alike = itertools.groupby(transforms, lambda t: (t.per, t.threads, t.processes))
        for (per, threads, processes), group in alike:
            work = _Work(tuple(group), epoch, skip)
            pool = _Pool()
            if processes:
                pool = _Processes(processes)
            elif threads > 1:
                pool = _Threads(threads)
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
        return any(isinstance(pool, _Processes) for pool in self._pools)

    @property
    def batches_at_once(self) -> int:
        """How many batches are worked on at a time."""
        return max((pool.workers for _, pool in self._of_batches), default=1)

    def __bool__(self) -> bool:
        return bool(self._pools)

    def samples(self, samples: Sequence[Sample], positions: Int64s) -> list[Sample | Failed]:
        """Each of the `samples` at `positions` transformed, or what became of it."""
        made: list[Any] = list(samples)
        alive = list(range(len(made)))
        numbers = positions.tolist()
        for work, pool in self._of_samples:
            runs = min(len(alive), pool.workers * _RUNS) if pool.workers > 1 else 1
            bounds = [len(alive) * i // runs for i in range(runs + 1)] if runs else [0]
            tasks = []
            for first, last in itertools.pairwise(bounds):
                which = alive[first:last]
                tasks.append(([made[i] for i in which], [numbers[i] for i in which]))
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


Task = tuple[Any, ...]


class _Pool:
    """Who does the work: here the one who asks."""

    workers = 1

    def run(self, work: Callable[..., Any], tasks: Sequence[Task]) -> list[Any]:
        """``work(*task)`` for each of the `tasks`, in order; the first error is raised."""
        return [work(*task) for task in tasks]

    def stop(self) -> None:
        """Let the workers go."""


class _Stopped(Exception):
    """The iteration is over."""


class _Threads(_Pool):
    """Daemon threads, so that one that never comes back does not keep the interpreter."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._results: SimpleQueue[Any] = SimpleQueue()
        self._begun = self._stopped = False

    def run(self, work: Callable[..., Any], tasks: Sequence[Task]) -> list[Any]:
        if not self._begun:
            self._begun = True
            for _ in range(self.workers):
                queues = (self._tasks, self._results)
                # A thread knows the queues and not this pool, which can thus be collected.
                threading.Thread(
                    target=_work_in_thread, args=queues, name="raggedstore-map", daemon=True
                ).start()
        left = deque(enumerate(tasks))
        results: list[Any] = [None] * len(tasks)
        errors: dict[int, BaseException] = {}
        busy = 0
        while left or busy:
            while left and busy < self.workers:
                number, task = left.popleft()
                self._tasks.put((number, work, task))
                busy += 1
            got = self._results.get()
            if got is None or self._stopped:
                raise _Stopped
            number, result, error = got
            busy -= 1
            results[number] = result
            if error is not None:
                # Those before it are all begun, and the first of them to fail is the one to raise.
                errors[number] = error
                left.clear()
        if errors:
            raise errors[min(errors)]
        return results

    def stop(self) -> None:
        self._stopped = True
        self._results.put(None)
        for _ in range(self.workers):
            self._tasks.put(None)


def _work_in_thread(tasks: SimpleQueue[Any], results: SimpleQueue[Any]) -> None:
    while (got := tasks.get()) is not None:
        number, work, task = got
        try:
            results.put((number, work(*task), None))
        except BaseException as error:  # whatever it is, it belongs to who asked
            results.put((number, None, error))
        del got, work, task


class _Processes(_Pool):
    """Processes, each with a pipe of its own, which ends when this process does.

    They are spawned: a fork of a process with threads may find any lock held. Only one task at a
    time is with a process, so that never do both ends of a pipe wait to be rid of something.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._sent: bytes | None = None  # the work that the processes have
        self._pid = os.getpid()
        self._stopped = False

    def _begin(self, work: bytes) -> None:
        import multiprocessing

        if multiprocessing.current_process().daemon:
            raise UsageError(
                "processes= cannot be had in a process that may start none, such as a worker of "
                "PyTorch's DataLoader; nor in a script without if __name__ == '__main__'"
            )
        context = multiprocessing.get_context("spawn")
        for _ in range(self.workers):
            self._check_stopped()
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_work_in_process, args=(theirs,), name="raggedstore-map", daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)
            try:
                self._check_stopped()  # before it was in the list?
            except _Stopped:
                process.terminate()
                raise
        for pipe in self._pipes:
            self._send(pipe, work)
        self._sent = work

    def run(self, work: Callable[..., Any], tasks: Sequence[Task]) -> list[Any]:
        from multiprocessing.connection import wait

        if self._pid != os.getpid():
            raise UsageError("this iterator was made before a fork: iterate over the loader anew")
        if self._sent is None:
            self._begin(pickle.dumps(work))
        left = deque(enumerate(tasks))
        results: list[Any] = [None] * len(tasks)
        errors: dict[int, BaseException] = {}
        idle, busy = list(self._pipes), dict[Any, int]()
        while left or busy:
            while left and idle:
                number, task = left.popleft()
                pipe = idle.pop()
                self._send(pipe, pickle.dumps(task, protocol=5))
                busy[pipe] = number
            for ready in wait(list(busy)):
                number = busy.pop(ready)
                idle.append(ready)  # type: ignore[arg-type]  # only pipes are waited for
                good, *made = self._receive(ready)
                if good:
                    results[number] = made[0]
                else:
                    # As in a pool of threads.
                    errors[number] = _error(*made)
                    left.clear()
        if errors:
            raise errors[min(errors)]
        return results

    def _check_stopped(self) -> None:
        if self._stopped:
            raise _Stopped

    def _send(self, pipe: Connection, data: bytes) -> None:
        try:
            pipe.send_bytes(data)
        except OSError:
            raise self._death(pipe) from None

    def _receive(self, pipe: Any) -> Any:
        try:
            data = pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._death(pipe) from None
        return pickle.loads(data)

    def _death(self, pipe: Any) -> Exception:
        if self._stopped:
            return _Stopped()
        process = self._processes[self._pipes.index(pipe)]
        process.join(_PATIENCE)
        return RuntimeError(
            f"a process that a transform runs in has died, with exit code {process.exitcode}: "
            f"killed for want of memory, or by a crash in native code, or the script that was "
            f"started lacks if __name__ == '__main__'"
        )

    def stop(self) -> None:
        self._stopped = True
        if self._pid != os.getpid():
            return  # they are the parent's
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join(_PATIENCE)


class _Remote(Exception):
    """The traceback of an error in another process."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def _error(pickled: bytes | None, name: str, text: str) -> BaseException:
    """The error of another process, which says where it was raised."""
    error: BaseException
    try:
        if pickled is None:
            raise ValueError
        error = pickle.loads(pickled)
    except Exception:  # there are errors that pickle and do not come back
        error = RuntimeError(f"a transform raised {name}")
    error.__cause__ = _Remote(text)
    return error


def _work_in_process(pipe: Connection) -> None:
    import signal

    # An interrupt from the keyboard goes to all processes: the loop decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sent = pipe.recv_bytes()
        work: Any = None
        while True:
            task = pipe.recv_bytes()
            try:
                work = work or pickle.loads(sent)
                data = pickle.dumps((True, work(*pickle.loads(task))), protocol=5)
            except BaseException as error:  # whatever it is, it belongs to who asked
                data = pickle.dumps((False, *_told(error)))
            pipe.send_bytes(data)
            del task, data
    except (EOFError, OSError):
        pass  # nobody wants anything any more


def _told(error: BaseException) -> tuple[bytes | None, str, str]:
    """An error as `_error` takes it."""
    name = f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    try:
        return pickle.dumps(error), name, text
    except Exception:
        return None, name, text

"""`Loader`: the batches of an epoch, read ahead of the loop that trains on them.

Four questions, answered apart: which samples come next (`orders.py`), which of them make a batch
(`batching.py`), whose the batch is (`dealing.py`), and how it is read (`reading.py`). The first
three read no data, and are computed from a few numbers: those are the state that an interrupted
run goes on from. What becomes of a batch on its way to the loop (`transforms.py`), and what there
is to say of an epoch (`report.py`), is no part of it.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.errors import UsageError
from raggedstore.indexing import as_position, at_least
from raggedstore.samples import Growing, Samples
from raggedstore.schema import Field
from raggedstore.training import columns
from raggedstore.training.ahead import Jobs
from raggedstore.training.batching import FixedSize, Rule
from raggedstore.training.columns import Collate
from raggedstore.training.covering import Cover, check_grows, parts_of
from raggedstore.training.crops import Crop
from raggedstore.training.dealing import Cursor, Dealt, Even, Plan, Share, deal
from raggedstore.training.elsewhere import Elsewhere
from raggedstore.training.mixture import Mixed, Mixture
from raggedstore.training.orders import ORDER_VERSION, Order, Outlook, Sequential
from raggedstore.training.picks import Batches, Picks
from raggedstore.training.reading import MIXED_BYTES, READ_BYTES, Budget, Made, Reader, results
from raggedstore.training.recurrent import BEYOND
from raggedstore.training.report import LISTED, Quarantined, Report, Watch
from raggedstore.training.sizes import Measures, probes
from raggedstore.training.transforms import Per, Stages, Transform, checked
from raggedstore.units import format_bytes, parse_bytes
from raggedstore.where import describe

__all__ = ["Loader"]

Int64s = npt.NDArray[np.int64]

#: Of half the memory for windows, how much a window is planned to take: its samples may be larger
#: than the average.
_SLACK = 0.95
#: Bytes of a sample on average, from which on it is large.
_LARGE = 2**15
_STATE = 1
_START = Cursor()
_MOST_EPOCHS = 2**32  # all the samples of so many can be counted


def _checked_epoch(epoch: Any) -> int:
    """`epoch` as an int; UsageError where it is none that a loader counts to."""
    number = at_least(0, epoch, "epoch")
    if number > _MOST_EPOCHS:
        raise UsageError(f"epoch must be at most 2**32, got {number}")
    return number


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far an epoch has come: `batches` of the whole sequence are dealt out."""

    epoch: int
    cursor: Cursor = _START
    batches: int = 0
    begun: bool = False


@dataclass(slots=True, eq=False)
class _Place:
    """Where an iterator is: what that comes to is worked out when somebody asks.

    Parameters
    ----------
    begun
        Where the iterator began.
    world
        Batches of all processes in a step.
    dealt, number
        The batch that it handed over last: which of those.
    """

    begun: _Progress
    world: int
    dealt: Dealt
    number: int

    def progress(self) -> _Progress:
        """How far the epoch has come."""
        begun, dealt, number = self.begun, self.dealt, self.number
        batches = begun.batches + (int(dealt.steps[number]) + 1) * self.world
        return _Progress(begun.epoch, dealt.after(number), batches, begun=True)


@dataclass(frozen=True, slots=True)
class _Era:
    """What epochs were planned with, from one on."""

    since: int
    count: int  #: samples, before any is left out
    geometry: dict[str, dict[str, Any]]


#: Held while a thread finds out which epoch it begins, or says how far it is, of whatever loader.
_beginning = threading.RLock()


def _after_fork() -> None:
    global _beginning
    _beginning = threading.RLock()  # a thread that the child doesn't have may hold the other


os.register_at_fork(after_in_child=_after_fork)


class Loader:
    """Batches of samples, epoch after epoch: iterate over it, and again for the next epoch.

    Parameters
    ----------
    samples
        A store, a selection, several stores from `concat`, or a `Mixture` of them.
    fields
        Names of the fields to read; by default all.
    order
        `Sequential`, `Shuffled`, `Permuted` or `Weighted`.
    batch
        `FixedSize`, or an int that means it; `Bucketed`, `TokenBudget`, `Packed` or `Windowed`.
    collate
        "ragged": a batch is a dict as ``store.batch`` gives it, of a `RaggedBatch` for a ragged
        field, a list for text and an ndarray for any other. "padded": ragged fields come as
        ``to_padded()`` makes them, each with ``"<name>_lengths"``, (n,) int64, beside it; where
        other dimensions than the first are ragged, with ``"<name>_shapes"``, (n, d) int64. Or a
        function that takes the dict; it is called ahead of the loop, by one thread at a time.
    where
        Which samples take part, by default all: a rule such as
        ``"audio.length <= 160000 and label in (1, 2)"``, a function of `Candidates`, a boolean
        mask, or positions. Rules read no data of ragged fields, and are asked of samples that come
        later too.
    crop
        A `Crop`, or several, of fields that are not to be read whole.
    rank, world_size
        Which of the processes that share each epoch this one is. Their batches are disjoint and
        complete.
    even
        None: where the batches of an epoch do not divide among the processes, some have one more.
        "drop": all have as many, and a few batches are left out; "pad": all have as many, and a
        few come twice.
    prefetch
        How many reads (of some 8 MiB, or one batch where that is more; of windows as much as there
        is room for) to make ready while the loop is at one. With 0 all is read by the loop itself,
        without a thread.
    budget
        Bytes of decoded data that an iteration may hold, besides what `samples` keeps for itself:
        an int, or a string such as "512MB". A window of `Shuffled` is at most a little under half
        of it, since the next window is read meanwhile: with a smaller budget the order is another.
        A batch is always made whole, even if it alone is larger.
    drop_last
        Leave out the last batch of an epoch where it has fewer samples than the others.
    time_first
        With ``collate="padded"``: (longest, n, ...) instead of (n, longest, ...).
    follow
        Take a store's newest version at the beginning of each epoch; of a part of a split likewise.
        Not where several processes share an epoch, which would have to find the same one.
    on_error
        "raise", or "skip": a sample that cannot be read, since its data are damaged or the system
        refuses them, or whose transform (see `map`) fails, is set aside and noted in `quarantine`.
        Its batch comes without it, and all others are as they would be. Where what is left is no
        sample, an empty batch comes, so that processes stay in step (after a transform of samples,
        where none has come through yet, with the store's fields and those declared); of packed rows
        those samples' pieces are missing, and of streams a window is empty. What is raised all the
        same: a field of lengths and places that cannot be read, and whatever else goes wrong.

    Notes
    -----
    The first iteration is epoch 0, and each one begun goes on to the next epoch; `set_epoch` says
    which one the next iteration will be. The order of an epoch depends on nothing but the seed,
    the epoch, the samples, the fields and the budget.

    A loader covers the samples that there were when it was made. Appending to the store changes
    nothing for it, until `refresh`.

    Iterators of one loader are independent of one another. One that is dropped, or whose loop is
    left early, stops its thread. A loader pickles with its samples, and may be used after a fork.

    The arrays of a batch may be views of what was read with it: keeping one batch keeps its read.
    They are the loop's to change.

    Examples
    --------
    >>> loader = Loader(store, fields=["audio"], order=Shuffled(seed=0), batch=64)
    >>> for batch in loader:
    ...     train(batch["audio"].to_padded(), batch["audio"].mask())
    """

    def __init__(
        self,
        samples: Samples,
        *,
        fields: Sequence[str] | None = None,
        order: Order | None = None,
        batch: Rule | int = 64,
        collate: Collate = "ragged",
        where: Any = None,
        crop: Crop | Sequence[Crop] = (),
        rank: int = 0,
        world_size: int = 1,
        even: Even = None,
        prefetch: int = 2,
        budget: int | str = "512MB",
        drop_last: bool = False,
        time_first: bool = False,
        follow: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        if not isinstance(samples, Samples):
            raise UsageError(
                f"a loader reads a store, a selection or a concatenation, "
                f"not {type(samples).__name__}"
            )
        self.order = Sequential() if order is None else order
        if not isinstance(self.order, Order):
            raise UsageError(f"order is Sequential(), Shuffled() or Permuted(), got {self.order!r}")
        self.batch = batch if isinstance(batch, Rule) else FixedSize(batch)
        self.crop = (crop,) if isinstance(crop, Crop) else crop
        if not isinstance(self.crop, (list, tuple)) or not all(
            isinstance(one, Crop) for one in self.crop
        ):
            raise UsageError(f"crop is a Crop, or several, got {crop!r}")
        self.crop = tuple(self.crop)
        self.world_size = at_least(1, world_size, "world_size")
        self.rank = at_least(0, rank, "rank")
        if self.rank >= self.world_size:
            raise UsageError(f"rank {rank} of {world_size}: ranks are counted from 0")
        if not (even is None or isinstance(even, str)) or even not in (None, "pad", "drop"):
            raise UsageError(f"even is None, 'pad' or 'drop', got {even!r}")
        self.even: Even = even
        self.collate, self.time_first = collate, bool(time_first)
        self.prefetch = at_least(0, prefetch, "prefetch")
        self.budget = parse_bytes(budget, what="budget")
        if not self.budget:
            raise UsageError("a budget has 1 byte at least, got 0")
        self.drop_last = bool(drop_last)
        self.follow = bool(follow)
        if self.follow:
            check_grows(samples)
            if self.world_size > 1:
                raise UsageError(
                    "with follow=True each process could begin an epoch on another version: have "
                    "one of them refresh(), and the others load its state_dict()"
                )

        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error is 'raise' or 'skip', got {on_error!r}")
        self.on_error = on_error
        self._transforms: tuple[Transform, ...] = ()
        self._quarantine: list[Quarantined] = []
        self._watch: Watch | None = None

        self._base, self._where = samples, where
        names = None if fields is None else tuple(samples.select(fields=fields).schema)
        self._cover_of = Cover(samples, where, names)
        #: The order that there is in the end.
        self._drawn = self.order
        if isinstance(samples, Mixture):
            if where is not None:
                raise UsageError("where= is of one store: mix selections of the stores instead")
            self._drawn = Mixed(self.order, samples, names)
        self._cover(len(samples))
        self._check()
        self._collate = self._collator()
        self._newest: int | None = None  # samples to take in once no epoch is on
        #: The epoch that goes on after other numbers of processes began it.
        self._rejoined: int | None = None
        self._place: _Progress | _Place = _Progress(0)
        self._ended = True  # whether what is to come next is an epoch's beginning
        #: How often it was said where to go on, or gone on.
        self.changes = 0
        #: What copies in other processes have begun, where there may be some.
        self.elsewhere: Elsewhere | None = None
        self._geometry: dict[str, dict[str, Any]] | None = None
        #: The first epoch planned as the next one is, and what those before it were planned with,
        #: as far as that is known.
        self._since = 0
        self._eras: tuple[_Era, ...] = ()

    def _cover(self, count: int) -> None:
        """Take the first `count` of the samples."""
        samples = self._cover_of.first(count)
        self._drawn.drawn(len(samples))  # whether its weights are as many
        self._count, self._moved = count, self._base.moved
        self.samples = samples
        self._measures = Measures(samples)
        self._counted: dict[int, int] = {}

    def _check(self) -> None:
        schema = self.samples.schema
        self.batch.check(schema)
        taken: dict[str, object] = dict.fromkeys(self.batch.fields, self.batch)
        taken = taken if self.batch.cuts else {}
        for crop in self.crop:
            crop.check(schema)
            for name in crop.fields:
                if name in taken:
                    raise UsageError(f"{crop!r} and {taken[name]!r} would both cut field {name!r}")
                taken[name] = crop
        for name in self.batch.adds:
            if name in schema:
                raise UsageError(f"{self.batch!r} adds {name!r}, and there is a field of that name")

    def _collator(self) -> Callable[[Any], Any]:
        return columns.collator(
            self.collate,
            self.samples.schema,
            self.batch,
            time_first=self.time_first,
            declared=self._declared,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy has seen nothing yet, and stays where this one is now.
        place = self._progress
        seen: dict[str, Any] = {"_watch": None, "elsewhere": None, "_quarantine": []}
        return {**self.__dict__, "_place": place, **seen}

    @property
    def _begun_elsewhere(self) -> int | None:
        """The epoch that copies in other processes began last, if any did since a change here."""
        return None if self.elsewhere is None else self.elsewhere.last(os.getpid(), self.changes)

    @property
    def _progress(self) -> _Progress:
        begun = self._begun_elsewhere
        if begun is not None and self._place != _Progress(begun + 1):
            self._place, self._ended = _Progress(begun + 1), True
            self._take_in()
        place = self._place
        return place.progress() if isinstance(place, _Place) else place

    # What it is

    def __len__(self) -> int:
        """Batches that this process has in an epoch.

        Rules that go by length plan the whole epoch to find out, which reads all lengths. Where
        the number is another one each epoch, it is that of the epoch that comes next or is on.
        """
        total = self._batches(self._progress.epoch)
        world = self.batches_a_step
        steps, rest = divmod(total, world)
        return steps + (bool(rest) if self.even == "pad" else not self.even and self.rank < rest)

    def _batches(self, epoch: int) -> int:
        """Batches of all processes together in an epoch."""
        drawn = self._drawn.drawn(len(self.samples))
        count = self.batch.count(drawn, drop_last=self.drop_last)
        if count is not None:
            return count
        if epoch not in self._counted:
            plan, left, total = self._plan(epoch), [Picks.none()], 0
            for number in range(len(plan)):
                batches, left = plan.unit(number, left)
                total += len(batches)
            self._counted = {epoch: total}
        return self._counted[epoch]

    @property
    def is_steady(self) -> bool:
        """Whether each epoch has as many batches, whatever the samples' lengths."""
        drawn = self._drawn.drawn(len(self.samples))
        return self.batch.count(drawn, drop_last=self.drop_last) is not None

    @property
    def batches_a_step(self) -> int:
        """Batches of all processes together in the time that each has one."""
        return 1 if self.batch.shared else self.world_size

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration will be, here or by workers of a `LoaderDataset`."""
        return self._progress.epoch + (not self._ended)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch`, counted from 0, from its beginning."""
        epoch = _checked_epoch(epoch)
        self._place, self._ended = _Progress(epoch), True
        self._rejoined = None
        self._since = min(self._since, epoch)
        self._eras = tuple(era for era in self._eras if era.since < epoch)
        self.changes += 1
        self._take_in()

    def __repr__(self) -> str:
        words = [f"collate={self.collate!r}", f"prefetch={self.prefetch}"]
        if self._where is not None:
            words.append(f"where={describe(self._where)} leaves out {self.left_out}")
        words.append(f"budget={format_bytes(self.budget)}")
        words += [f"crop={crop!r}" for crop in self.crop]
        words += [repr(transform) for transform in self._transforms]
        if self.world_size > 1:
            words.append(f"rank {self.rank} of {self.world_size}, even={self.even!r}")
        words += [f"{n}=True" for n in ("drop_last", "time_first", "follow") if getattr(self, n)]
        words += ["on_error='skip'"] if self.on_error == "skip" else []
        count = self.batch.count(self._drawn.drawn(len(self.samples)), drop_last=self.drop_last)
        batches = "" if count is None else f" in {len(self)} batches"
        return (
            f"<Loader of {len(self.samples)} samples{batches}, "
            f"{', '.join(self.samples.schema)}: {self.order!r}, {self.batch!r}, "
            f"{', '.join(words)}; next is epoch {self.epoch}>"
        )

    @property
    def left_out(self) -> int:
        """How many samples `where` leaves out."""
        return self._count - len(self.samples)

    # Transforms

    def map(
        self,
        fn: Callable[..., Any],
        *,
        per: Per = "batch",
        seeded: bool = False,
        seed: int | None = None,
        threads: int = 1,
        processes: int = 0,
        fields: Mapping[str, Any] | None = None,
    ) -> Loader:
        """This loader with `fn` applied to each batch or sample, after what was mapped before.

        It is another loader: this one stays as it is. States, order and length are the same.

        Parameters
        ----------
        fn
            Per batch it takes what `collate` would, and gives it anything in its stead; called with
            its last result comes `collate`. Per sample it takes a dict as ``store[i]`` gives it,
            cropped where there is a `crop`, and gives a dict, of any fields. It may change what it
            is given.
        per
            "batch" or "sample". Samples are transformed before batches are, and not where the rule
            cuts them into pieces.
        seeded
            Call it with a `numpy.random.Generator` besides, whose numbers depend on seed, epoch and
            the sample's position (or a batch's samples), and so neither on who reads it with whom
            nor on where a run was interrupted. It is for that call only.
        seed
            From 0 to 2**64 - 1; by default the order's, or 0.
        threads
            How many to call it in at a time, where it lets go of the interpreter.
        processes
            How many processes to call it in instead. `fn` and what it takes and gives must pickle,
            and a script that is run needs ``if __name__ == "__main__"``. They are started by each
            iteration, and end with it.
        fields
            What fields it gives per sample, a `Field` for each name: those are converted to, and
            come as stored ones would. Any other is a list where it is text, an array where it is a
            scalar, or stored in one shape; else it is a `RaggedBatch`. Samples of an epoch must
            agree in fields, dtypes and numbers of dimensions.

        Examples
        --------
        >>> def louder(sample, rng):
        ...     sample["audio"] = sample["audio"] * np.float32(rng.uniform(0.5, 2))
        ...     return sample
        >>> loader = Loader(store, batch=64).map(louder, per="sample", seeded=True)
        """
        transform = checked(
            self._transforms,
            self.batch,
            fn,
            per=per,
            seeded=seeded,
            seed=getattr(self.order, "seed", 0) if seed is None else seed,
            threads=threads,
            processes=processes,
            fields=fields,
        )
        mapped = copy.copy(self)
        mapped._transforms = (*self._transforms, transform)
        mapped._collate = mapped._collator()
        return mapped

    @property
    def _declared(self) -> dict[str, Field]:
        """What fields transforms make, where somebody said so."""
        declared: dict[str, Field] = {}
        for transform in self._transforms:
            declared.update(transform.fields)
        return declared

    # Planning

    @property
    def geometry(self) -> dict[str, dict[str, Any]]:
        """What order and rule took from the data when it was first asked for; kept from then on."""
        if self._geometry is None:
            self._geometry = self._measure()
        return self._geometry

    def _measure(self) -> dict[str, dict[str, Any]]:
        sizes = self._measures.sizes()

        def some() -> Int64s:
            return self._cropped_dims(self.batch.fields[0])(probes(len(self.samples)))

        outlook = Outlook(
            samples=len(self.samples),
            # Who cuts no windows does not ask, and to look at the samples takes milliseconds.
            sample_bytes=sizes.mean if self._drawn.windowed else 0.0,
            first_bytes=sizes.mean_of_first() if self._drawn.windowed else 0.0,
            pool=self.batch.pool,
            # Whatever `prefetch` is, which must not touch the order.
            window_bytes=max(1, int(self.budget * 7 / 8 / 2 * _SLACK)),
            lanes=self.world_size,
        )
        return {
            "order": self._drawn.measure(outlook),
            "batch": self.batch.measure(some, self.world_size),
        }

    @property
    def _divided(self) -> Budget:
        """How memory is divided up, and so in which of three ways windows are read.

        In as few reads as there is room for, each sample to its place in its batch. Where something
        is made of batches a window is decoded whole, and batches are copied out of it a few at a
        time; but large samples are read a few batches at a time, since to decode some blocks again
        costs less than the copy.
        """
        of_windows, sizes = self._drawn.windowed, self._measures.sizes()
        if not of_windows or self.batch.cuts or not kernel.is_there():
            return Budget.of(self.budget, self.prefetch, windowed=of_windows)
        # What makes something of a read holds both for a moment: then it had better be little.
        is_plain = self.collate == "ragged" and not self._transforms and not self.crop
        if is_plain and self.samples.concurrent:
            most = MIXED_BYTES if sizes.mean >= _LARGE else self.budget
            if sizes.mean * len(self.samples) <= 2 * READ_BYTES:
                most = READ_BYTES  # what is held after the first read need not be read at once
            copies = self.samples.copies
            return Budget.of(self.budget, self.prefetch, mixed=most, copies=copies)
        return Budget.of(self.budget, self.prefetch, windowed=sizes.mean < _LARGE)

    def _plan(self, epoch: int) -> Plan:
        geometry = self.geometry
        sizes = None
        if self.batch.fields:
            sizes = self._cropped_dims(self.batch.fields[0])
        units = self._drawn.bind(len(self.samples), epoch, geometry["order"])
        return Plan(units, self.batch, geometry["batch"], sizes, drop_last=self.drop_last)

    def _cropped_dims(self, name: str) -> Callable[[Int64s], Int64s]:
        dims = self._measures.dims(name)
        for crop in self.crop:
            if name in crop.fields:
                return partial(_at_most, dims, crop.length)
        return dims

    def _deals(
        self, progress: _Progress, worker: int = 0, workers: int = 1, phase: int = 0
    ) -> Iterator[Dealt]:
        share = Share(self.rank, self.world_size, worker, workers, phase)
        plan = self._plan(progress.epoch)
        rows = self.batch.share(self.world_size, self.geometry["batch"])
        return deal(plan, progress.cursor, share, self.even, rows=rows)

    # Iterating

    def __iter__(self) -> Iterator[Any]:
        return self.iterate()

    def iterate(self, worker: int = 0, workers: int = 1, *, phase: int = 0) -> Iterator[Any]:
        """As ``iter(loader)``, of every `workers`-th batch beginning with number `worker`.

        For processes that together hand over what one loader would, in turn. Where they have handed
        over `phase` batches before, it is worker ``phase % workers`` that has the first.
        """
        worker, phase = at_least(0, worker, "worker"), at_least(0, phase, "phase")
        if worker >= at_least(1, workers, "workers"):
            raise UsageError(f"worker {worker} of {workers}: workers are counted from 0")
        with _beginning:  # or two threads would take one epoch
            progress = self._progress
            if not self._ended:
                self._place = _Progress(progress.epoch + 1)
                self._take_in()
            if self.follow and not self._progress.begun:
                self.refresh()
            begun = replace(self._progress, begun=True)
            self._place, self._ended = begun, False
            self.changes += 1
        skip = self.on_error == "skip"
        stages = Stages(self._transforms, begun.epoch, skip=skip)
        budget = self._divided
        reader = Reader(
            self.samples,
            self.batch,
            self.crop,
            budget,
            self._measures,
            collate=self._collate,
            own=not callable(self.collate),
            stages=stages,
            declared=self._declared,
            skip=skip,
            epoch=begun.epoch,
        )
        deals = self._deals(begun, worker, workers, phase)
        before = begun.batches // self.batches_a_step
        watch = self._watch = Watch(self.samples, begun.epoch, before, self.budget)
        return self._iterate(begun, reader.jobs(deals), reader.abreast, budget, stages, watch)

    def _iterate(
        self,
        begun: _Progress,
        jobs: Jobs[Made],
        abreast: int,
        budget: Budget,
        stages: Stages,
        watch: Watch,
    ) -> Generator[Any, None, None]:
        watch.begin()
        _keep_freed_memory(budget.read)
        lists = results(jobs, count=budget.ahead, limit=budget.ready, threads=abreast)
        latest: _Progress | _Place = begun
        world = self.batches_a_step
        whole = False
        try:
            read: Made | None = None
            while True:
                since = time.perf_counter()
                read = read.rest() if read is not None and read.rest else next(lists, None)
                if read is None:
                    break
                watch.reading(read.facts, time.perf_counter() - since)
                place = _Place(begun, world, read.dealt, read.first - 1)
                for batch in read.batches:
                    place.number += 1
                    # Unless another iterator has been begun meanwhile.
                    with _beginning:
                        if self._place is latest:
                            self._place = latest = place
                    watch.given += 1
                    if read.facts.lost:
                        self._set_aside(watch.lost(int(read.dealt.steps[place.number])))
                    yield batch
                    del batch  # so that the loop alone holds it
            with _beginning:
                if self._place is latest:
                    self._place, self._ended = _Progress(begun.epoch + 1), True
                    self._take_in()
            whole = True
        finally:
            watch.ended(whole=whole, processes=stages.processes)
            stages.stop()
            lists.close()

    def _set_aside(self, lost: Iterable[Quarantined]) -> None:
        room = LISTED - len(self._quarantine)
        self._quarantine += list(lost)[: max(room, 0)]

    @property
    def quarantine(self) -> list[Quarantined]:
        """What was set aside since the loader was made, up to 10,000 samples.

        Of batches handed over, and of those that workers of torch have made.
        """
        if self.elsewhere is not None:
            with _beginning:
                self._set_aside(self.elsewhere.was_set_aside(os.getpid()))
        return self._quarantine

    def report(self) -> Report:
        """How the latest epoch went, or goes: how fast, how well mixed, how much of it padding.

        Of what was handed over by the iterator of this loader that was made last, in this process.
        """
        if self._watch is None:
            return Watch(self.samples, self._progress.epoch, 0, self.budget).report()
        return self._watch.report()

    # Growing

    def refresh(self) -> int:
        """Take the store's newest version from the next epoch on; how many samples it will have.

        The order goes on as it was, with the new samples in it; only where windows have outgrown
        the memory are they cut anew. An epoch that is on goes on over what it began with, and so do
        its states.
        """
        check_grows(self._base).refresh()
        newest = len(self._base)
        count = len(self._cover_of.first(newest))
        self._drawn.drawn(count)  # or it would be for the next epoch to say
        self._newest = newest
        self._take_in()
        return count

    def _take_in(self) -> None:
        """Cover what was refreshed to, unless an epoch is on: its plan is of what it began with."""
        begun = self._progress.begun  # to ask may be what takes it in
        if self._newest is None or begun:
            return
        count, self._newest = self._newest, None
        if (count, self._base.moved) != (self._count, self._moved):
            if self._base.moved != self._moved:
                self._eras = ()
            elif self._since < self._progress.epoch and (
                self._geometry is not None or self._begun_elsewhere is not None
            ):
                self._eras += (_Era(self._since, self._count, self.geometry),)
            self._since = self._progress.epoch
            was_empty = not len(self.samples)
            self._cover(count)
            if was_empty:
                self._geometry = None  # nothing could be measured
            if self._geometry is not None:
                fresh = self._measure()
                if fresh["order"].get("windows", 0) > 2 * self._geometry["order"].get("windows", 0):
                    self._geometry = {**self._geometry, "order": fresh["order"]}

    # Going on

    def state_dict(self) -> dict[str, Any]:
        """Where the loop is: plain JSON, to go on from by `load_state_dict`.

        It is what the loop has been given that counts, and not what was read ahead. All processes
        that share an epoch have the same state after as many batches, up to how it is written.
        Where workers of torch have begun epochs, it is the beginning of the one after: within an
        epoch, see `state_after`.
        """
        return self._state(self._progress)

    def _state(self, progress: _Progress) -> dict[str, Any]:
        cursor = progress.cursor
        return {
            "format": _STATE,
            "order_version": ORDER_VERSION,
            "epoch": progress.epoch,
            "begun": progress.begun,
            "batches": progress.batches,
            # 0 where not all of them were of so many.
            "batches_a_step": 0 if progress.epoch == self._rejoined else self.batches_a_step,
            "unit": cursor.unit,
            "given": cursor.given,
            "has": cursor.has,
            "left": [picks.to_json() for picks in cursor.left],
            "samples": self._count,
            "since": self._since,
            "refreshed": self._newest,
            "taking_part": self._cover_of.asked_of(self._count),
            "geometry": self.geometry,
            "options": self._options(),
        }

    def _options(self) -> dict[str, str]:
        """What has to be the same for an epoch to go on."""
        return {
            "order": repr(self.order),
            "batch": repr(self.batch),
            "crop": repr(self.crop),
            "where": self._cover_of.digest(),
            "drop_last": repr(self.drop_last),
            "parts": parts_of(self._base),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the very next batch after `state` was taken, at the next iteration.

        The loader must be made with the same samples, order, batching rule, `where`, `crop` and
        `drop_last`; rank, number of processes and workers, fields, memory and collation may be
        others. To a store, more may have been appended; of stores side by side (`concat`,
        `Mixture`) each must have as many samples as it had.

        Raises
        ------
        UsageError
            The state is another loader's, or none at all.
        """
        progress, count, geometry, since, newest = self._parsed(state)
        most = max(count, newest or 0)
        if most > len(self._base) and isinstance(self._base, Growing):
            self._base.refresh()
        if most > len(self._base):
            raise UsageError(
                f"the state is of {most} samples, and there are only {len(self._base)}: "
                f"open a newer version"
            )
        asked = self._cover_of.asked_of(count)
        if state.get("taking_part", asked) != asked:
            raise UsageError(
                "the state is of a loader whose where= lets other samples take part than this one's"
            )
        if (count, self._base.moved) != (self._count, self._moved):
            self._cover(count)
        self._geometry, self._counted = geometry, {}
        self._newest, self._since, self._eras = newest, since, ()
        self._rejoined = None
        if state["batches_a_step"] != self.batches_a_step:
            self._since = progress.epoch  # those before had other batches
            self._rejoined = progress.epoch if progress.batches else None
        self._place, self._ended = progress, True
        self.changes += 1

    def _parsed(
        self, state: Mapping[str, Any]
    ) -> tuple[_Progress, int, dict[str, dict[str, Any]], int, int | None]:
        """Where a state is; its samples, geometry and first epoch; what it was refreshed to."""
        try:
            if (state["format"], state["order_version"]) != (_STATE, ORDER_VERSION):
                raise UsageError(
                    f"a state of format {state['format']} and order {state['order_version']}, and "
                    f"this raggedstore goes on from format {_STATE} and order {ORDER_VERSION}"
                )
            for name, mine in self._options().items():
                if (theirs := state["options"][name]) != mine:
                    raise UsageError(
                        f"the state is of a loader with {name}={theirs}, and this one has {mine}"
                    )
            numbers = [
                at_least(0, state[name], name)
                for name in ("epoch", "batches", "unit", "given", "samples", "batches_a_step")
            ]
            epoch, batches, unit, given, count, _ = numbers
            _checked_epoch(epoch)
            has = at_least(0, state.get("has", 0), "has")
            since = min(at_least(0, state.get("since", 0), "since"), epoch)
            newest = state.get("refreshed")
            if newest is not None:
                newest = at_least(count, newest, "refreshed")
            left = tuple(Picks.from_json(lists) for lists in state["left"])
            for picks in left:
                if len(picks) and not 0 <= picks.positions.min() <= picks.positions.max() < count:
                    raise UsageError("a state's carried samples are damaged")
                if picks.turns is not None and len(picks) and picks.turns.min() < 0:
                    raise UsageError("a state's carried samples are damaged")
            geometry = {name: dict(state["geometry"][name]) for name in ("order", "batch")}
            self._drawn.check_geometry(geometry["order"], count)
            self.batch.check_geometry(geometry["batch"])
            for picks in left:
                if len(picks):
                    self.batch.check_left(picks, geometry["batch"])
            self.batch.share(self.world_size, geometry["batch"])
            begun = bool(state["begun"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"this is no state of a loader: {error!r}") from None
        cursor = Cursor(unit, given, left, has)
        return _Progress(epoch, cursor, batches, begun), count, geometry, since, newest

    def state_after(self, batches: int, *, epoch: int | None = None) -> dict[str, Any]:
        """The state that this process has once it was given `batches` batches of an epoch.

        What a loop over torch's DataLoader saves, whose workers are ahead of it. It is planned from
        the beginning of the epoch, which reads no data.

        Parameters
        ----------
        epoch
            By default the one that is on, or comes next. Where workers make the batches, nobody
            here knows whether it is over: it is the one that they began last.
        """
        number, by_then = self._planned(epoch)
        wanted = at_least(0, batches, "batches")
        progress, seen = _Progress(number, begun=True), 0
        world = self.batches_a_step
        if wanted:
            for dealt in by_then._deals(progress):
                if wanted <= seen + len(dealt.batches):
                    after = dealt.after(wanted - seen - 1)
                    progress = _Progress(number, after, wanted * world, begun=True)
                    break
                seen += len(dealt.batches)
            else:
                raise UsageError(f"epoch {number} has only {seen} batches, not {wanted}")
        return by_then._state(progress)

    def _planned(self, epoch: int | None) -> tuple[int, Loader]:
        """The epoch that is meant, which must be planned from its beginning to be known.

        And the loader as it will be by then, or was: of more or fewer samples, where it was
        refreshed.
        """
        if epoch is None:
            begun = self._begun_elsewhere
            number = self._progress.epoch if begun is None else begun
        else:
            number = _checked_epoch(epoch)
        if number == self._rejoined:
            raise UsageError(
                f"epoch {number} was begun by another number of processes, so that its batches "
                f"cannot be counted from the beginning: ask again from the next one on, or take "
                f"state_dict() where the loader itself is iterated over"
            )
        if number < self._since:
            era = next((era for era in reversed(self._eras) if era.since <= number), None)
            if era is None or self._base.moved != self._moved:
                raise UsageError(
                    f"epoch {number} was planned for other samples, or for other numbers of "
                    f"processes, than those from epoch {self._since} on, and this loader does not "
                    f"know for which"
                )
            by_then = copy.copy(self)
            by_then._cover(era.count)
            by_then._since, by_then._geometry = era.since, era.geometry
            return number, by_then
        if self._newest is None or number <= self._progress.epoch:
            return number, self
        by_then = copy.copy(self)
        by_then.set_epoch(number)
        return number, by_then

    # Who saw what when

    def samples_at(self, step: int, *, epoch: int | None = None) -> Int64s:
        """(k,) the samples in batch `step` of this process in an epoch, in their order.

        Positions among the loader's samples; found by planning, which reads no data.
        """
        wanted = at_least(0, step, "step")
        number, by_then = self._planned(epoch)
        for batches in by_then._batches_of(number):
            if wanted < len(batches):
                picks = batches.span(wanted, wanted + 1).picks
                return picks.positions[_shown(picks)]
            wanted -= len(batches)
        as_position(step, step - wanted, what="step")  # raises
        raise AssertionError

    def step_of(self, sample: int, *, epoch: int | None = None) -> int | None:
        """Which batch of this process in an epoch first has `sample`; None where none has."""
        number, by_then = self._planned(epoch)
        position = as_position(sample, len(by_then.samples))
        before = 0
        for batches in by_then._batches_of(number):
            found = np.flatnonzero((batches.picks.positions == position) & _shown(batches.picks))
            if len(found):
                return before + int(np.searchsorted(batches.edges, found[0], "right")) - 1
            before += len(batches)
        return None

    def _batches_of(self, epoch: int) -> Iterator[Batches]:
        return (dealt.batches for dealt in self._deals(_Progress(epoch)))


def _shown(picks: Picks) -> npt.NDArray[np.bool_]:
    """Which picks show anything: not those of streams that have run out."""
    if picks.starts is None:
        return np.ones(len(picks), np.bool_)
    return picks.starts < BEYOND


def _at_most(dims: Callable[[Int64s], Int64s], most: int, positions: Int64s) -> Int64s:
    sizes = dims(positions)
    sizes[:, 0] = np.minimum(sizes[:, 0], most)
    return sizes


def _keep_freed_memory(read_bytes: int) -> None:
    """Have the C library reuse what reads free, rather than give it back and fault it in again.

    glibc keeps up to twice the largest block that it has seen freed, of at most 32 MiB. Until it
    has seen a large one, a third of the time of reading short samples goes into page faults. The
    block is never touched, so that it costs some microseconds and no memory.
    """
    np.empty(min(read_bytes * 5 // 4, 2**25 - 2**14), np.uint8)

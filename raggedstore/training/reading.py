"""Reading planned batches: as jobs, each with the bytes that its result will take.

So they can be done in turn or ahead (`ahead.py`):

    batches  →  decode as many as make a read  →  lists of batches
    batches  →  decode a window  →  pieces  →  lists of batches         (`Shuffled`, where something
                                       is made of batches; and without the kernel: a window is
                                       decoded while the one before is handed over. Where it is too
                                       large for memory, as whole samples may be of which batches
                                       have parts, the first way is taken)

A read is decoded by one call for each field, which sorts it by chunk. Two reads are made at a time,
each with half of the cores, where nothing is called that is not ours; else one with all of them,
and so the last. Reads and pieces are as many whole batches as make about 8 MiB: little enough to
hold several, large enough that what is done per read costs little. Only of windows whose batches
are but views of what is read, as much is read at once as there is room for, so that each block is
decoded once. How much that is goes by how large samples are on average, where they are short; a
read that turns out far larger, since a few are long, is made by and by.

Where samples that cannot be read are to be set aside, a read that fails is cut in halves, and so
on, until what fails is single samples. They are left out of what their batches become, and planning
knows nothing of it: all other batches stay as they are. A batch that loses all its samples is
handed over without any, or processes that share an epoch would fall out of step.
"""

from __future__ import annotations

import itertools
import math
import operator
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import CorruptionError, SampleError, StorageError
from raggedstore.indexing import stable_order
from raggedstore.samples import Column, Samples, present
from raggedstore.schema import Field
from raggedstore.segment.context import TooMuch, at_most, sharing
from raggedstore.training import columns
from raggedstore.training.ahead import Ahead, Jobs, in_turn
from raggedstore.training.batching import Rule
from raggedstore.training.columns import Columns, Forms
from raggedstore.training.crops import Crop
from raggedstore.training.dealing import Dealt
from raggedstore.training.picks import Batches, Picks
from raggedstore.training.recurrent import BEYOND
from raggedstore.training.report import Facts, Loss, extents_of
from raggedstore.training.sizes import Measures
from raggedstore.training.transforms import Failed, Stages

__all__ = ["MIXED_BYTES", "READ_BYTES", "Budget", "Made", "Reader", "Windows", "results"]

READ_BYTES = 2**23
#: Reads made at a time, each with its share of the cores. Two of one thread each are faster than
#: one of two: neither waits for the other's last block, nor is woken for each read.
_ABREAST = 2

#: What is read of large samples at a time where a window's are mixed: more, and less is decoded
#: twice, but four reads may be in memory, which is kept for the next (segment/memory.py).
MIXED_BYTES = 3 * 2**23

#: As many bytes as there are.
_ANY = 2**62

#: A read of more batches leaves it to the loop to cut them.
_MANY = 16

#: Where there are transforms: bytes to begin with, and seconds that a read's may take.
_TRIED = 2**18
_SOON = 0.25

T = TypeVar("T")
Int64s = npt.NDArray[np.int64]
#: For each cropped field where each sample's window begins and ends.
Windows = dict[str, tuple[Int64s, Int64s]]
#: Which of some samples are set aside, by their places among them.
Lost = dict[int, Loss]


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a read became: batches from number `first` on of what was dealt."""

    batches: Iterator[Any]  #: as the loop gets them, none of them held here once it has it
    dealt: Dealt
    first: int
    facts: Facts
    #: Reads the batches that come next, where they turned out too large to be read with these:
    #: for whoever is through with these to call.
    rest: Callable[[], Made] | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How much memory what is for."""

    ready: int  #: of what is ready for the loop
    windows: int  #: of decoded windows, besides; 0 where none is decoded whole
    read: int  #: of a read or piece: so little that as many as may be ahead fit
    ahead: int  #: how many reads may be ahead of the loop

    @property
    def alone(self) -> int:
        """Of which size on a batch is made when the loop asks for it, and not ahead."""
        return (self.ready + self.windows) // 8

    @classmethod
    def of(
        cls, total: int, ahead: int, *, windowed: bool = False, mixed: int = 0, copies: int = 1
    ) -> Budget:
        """`total` bytes divided up.

        Parameters
        ----------
        windowed
            Whether windows are decoded whole, and batches copied out of them.
        mixed
            Where neighbours are mixed, and reads thus share blocks: how large a read may be. It is
            less than half of all, so that one can be made while the loop is at another.
        copies
            How many times a read is in memory while it is made.
        """
        ready = min((ahead + 1) * READ_BYTES, total // 8) if windowed else total
        read = min(READ_BYTES, ready // (ahead + 1))
        if mixed:
            read = min(mixed, ready * 9 // 20 // copies)
        return cls(ready, total - ready, read, ahead)


def results(
    jobs: Jobs[T], *, count: int, limit: int, threads: int = 1
) -> Ahead[T] | Generator[T, None, None]:
    """The results of `jobs`, `count` of them ahead of who takes them."""
    return Ahead(jobs, count=count, limit=limit, threads=threads) if count else in_turn(jobs)


class Pace:
    """How much to read at a time.

    So many bytes, counted as they are once transforms are through with them; and no more than
    transforms do in a quarter of a second, or the loop would wait for the last batch of a read to
    have its first.

    Parameters
    ----------
    nbytes
        The bytes.
    at_once
        How many batches transforms work on at a time.
    transformed
        Whether there are transforms at all.
    """

    def __init__(self, nbytes: int, *, at_once: int = 1, transformed: bool = False) -> None:
        self.at_once = at_once
        self.growth = 1.0  #: how many times as large samples become
        self._nbytes = nbytes
        self._soon = _TRIED if transformed else nbytes
        self._read = self._became = self._took = 0.0  # of late
        self._lock = threading.Lock()  # two reads may be made at a time

    @property
    def room(self) -> int:
        """Bytes that a read may have."""
        return int(self._nbytes / self.growth)

    @property
    def soon(self) -> int:
        """Bytes that are through in time."""
        return self._soon

    def note(self, read: int, became: int, seconds: float) -> None:
        """That transforms made `became` bytes of `read` bytes in so many `seconds`."""
        with self._lock:
            self._read, self._became, self._took = (
                old / 2 + new
                for old, new in (
                    (self._read, max(read, 1)),
                    (self._became, became),
                    (self._took, max(seconds, 1e-6)),
                )
            )
            self.growth = max(1.0, self._became / self._read)
            self._soon = int(_SOON * self._read / self._took)


#: Decoded columns; which samples they lack; where their batches' samples lie among all of them;
#: what is dealt; the bytes of all batches before each.
_Window = tuple[Columns, Lost, Int64s, Dealt, Int64s]


class Reader:
    """Reads the batches of a share.

    Parameters
    ----------
    samples
        What to read from.
    rule
        What made the batches; parts of samples are of its fields.
    crops
        Which samples to cut.
    budget
        For what how much memory is.
    measures
        How large samples are.
    collate
        Makes of the columns of a batch what the loop gets.
    own
        Whether that is ours, and may be called by two threads at once. Otherwise it is called by
        one at a time, as transforms are.
    stages
        Transforms of what is read.
    declared
        What fields they make, where somebody said so.
    skip
        Whether samples that cannot be read are set aside.
    epoch
        What random crops depend on.
    """

    def __init__(
        self,
        samples: Samples,
        rule: Rule,
        crops: Sequence[Crop],
        budget: Budget,
        measures: Measures,
        *,
        collate: Callable[[Any], Any],
        own: bool,
        stages: Stages,
        declared: Mapping[str, Field],
        skip: bool,
        epoch: int,
    ) -> None:
        self._samples, self._rule, self._crops = samples, rule, crops
        self._budget, self._measures, self._epoch = budget, measures, epoch
        self._collate, self._stages, self._skip = collate, stages, skip
        # Both the reading thread and the loop make batches, the loop those that were too large to
        # lie ready; what is not ours is called by one of them at a time.
        self._alone = threading.Lock()
        if not own:
            self._collate = self._by_one(collate)
        self._forms = Forms(samples.schema, declared)
        self._raw = frozenset(rule.fields if rule.cuts else ())
        self._pace = Pace(budget.read, at_once=stages.batches_at_once, transformed=bool(stages))
        # Of cropped samples only the windows are to be read, so never more than a batch's.
        self._windowed = bool(budget.windows) and not crops
        self._adds_nothing = type(rule).dress is Rule.dress
        #: Whether batches are but views of what is read.
        self._is_plain = self._adds_nothing and not stages and collate is columns.as_they_are
        #: Reads that may be made at a time.
        self.abreast = 1
        if own and samples.concurrent and not stages and budget.ahead:
            self.abreast = _ABREAST

    def jobs(self, deals: Iterator[Dealt]) -> Jobs[Made]:
        """Jobs that make lists of batches."""
        deals = _first_alone(deals)
        if self._windowed:
            yield from self._from_windows(deals)
        else:
            yield from self._reads(deals)

    def _reads(self, deals: Iterable[Dealt]) -> Jobs[Made]:
        """Jobs that decode batches straight from the store."""
        beside = 1  # how many reads the next one is made beside, and it; the first is made alone
        for dealt in deals:
            windows = self._windows(dealt.batches.picks)
            bytes_to = _bytes_to(dealt.batches, self._bytes(dealt.batches.picks, windows))
            # What was planned by the average is cut up only where it turns out far from it.
            for first, last, nbytes in _parts(bytes_to, self._pace):
                span = slice(int(dealt.batches.edges[first]), int(dealt.batches.edges[last]))
                # What is planned by the average may be far from it where a few are long.
                room = 2 * nbytes + 2**20 if last - first > 1 else _ANY
                nbytes = int(nbytes * self._pace.growth)
                # With the one that the loop has there must be room for as many as are made.
                if (self.abreast + 1) * nbytes > self._budget.ready:
                    beside = 1
                # Nor is there one to be made beside the last.
                if dealt.final and last == len(dealt.batches):
                    beside = 1
                yield (
                    nbytes,
                    partial(self._decode, dealt, first, last, _of(windows, span), beside, room),
                )
                beside = self.abreast

    # What is read of each sample

    def _windows(self, picks: Picks) -> Windows:
        """For each cropped field where the windows of the picked samples begin and end."""
        windows: Windows = {}
        if picks.starts is not None and picks.stops is not None:
            self._check_alike(picks.positions, self._rule.fields, self._rule)
            windows = dict.fromkeys(self._rule.fields, (picks.starts, picks.stops))
        for crop in self._crops:
            self._check_alike(picks.positions, crop.fields, crop)
            lengths = self._measures.dims(crop.fields[0])(picks.positions)[:, 0]
            bounds = crop.windows(picks.positions, lengths, self._epoch, picks.turns)
            windows.update(dict.fromkeys(crop.fields, bounds))
        return windows

    def _check_alike(self, positions: Int64s, names: Sequence[str], by: Rule | Crop) -> None:
        """SampleError where fields that are cut together `by` something differ in length."""
        first, *others = names
        for name in others:
            lengths = self._measures.dims(first)(positions)[:, 0]
            theirs = self._measures.dims(name)(positions)[:, 0]
            if (differ := np.flatnonzero(lengths != theirs)).size:
                i = differ[0]
                raise SampleError(
                    f"sample {positions[i]}: {first!r} is {lengths[i]} long, and {name!r}, which "
                    f"{by!r} cuts with it, {theirs[i]}"
                )

    def _bytes(self, picks: Picks, windows: Windows, *, exact: bool = False) -> Int64s:
        """(k,) how many bytes each of the picked samples takes once it is read."""
        flat = frozenset(n for n in windows if None not in self._samples.schema[n].shape[1:])
        sizes = self._measures.sizes(flat)
        each = (sizes.exact if exact else sizes.of)(picks.positions)
        for name in flat:
            field = self._samples.schema[name]
            step = math.prod(d or 0 for d in field.shape[1:]) * field.dtype.itemsize
            starts, stops = windows[name]
            each = each + np.maximum(stops - starts, 0) * step + 32
        return each

    # Reading them

    def _read(self, positions: Int64s, windows: Windows) -> tuple[Columns, Lost]:
        """The samples at `positions`, less those that are set aside."""
        if not self._skip:
            return {n: self._column(n, positions, windows) for n in self._samples.schema}, {}
        lost: Lost = {}
        found = {n: self._salvaged(n, positions, windows, lost) for n in self._samples.schema}
        there = _without(len(positions), lost)
        decoded: Columns = {}
        for name, (column, has) in found.items():
            if there is None or len(has) == len(there):
                decoded[name] = column
            else:
                decoded[name] = columns.take({name: column}, np.searchsorted(has, there), {})[name]
        return decoded, lost

    def _column(self, name: str, positions: Int64s, windows: Windows) -> Column:
        if name in windows:
            return self._samples.read_windows(name, positions, *windows[name])
        return self._samples.read(name, positions)

    def _salvaged(
        self, name: str, positions: Int64s, windows: Windows, lost: Lost
    ) -> tuple[Column, Int64s]:
        """What can be read of a field, and of which of the `positions`; the others go to `lost`."""
        field, parts, places = self._samples.schema[name], [], []
        runs = [(0, len(positions))]
        while runs:
            first, last = runs.pop()
            run = slice(first, last)
            try:
                column = self._column(name, positions[run], _of(windows, run))
                if field.kind == "str" and name not in self._raw:
                    present(field, column)  # whether it can be shown
            except (CorruptionError, StorageError) as error:
                if last - first > 1:
                    middle = (first + last) // 2
                    runs += [(middle, last), (first, middle)]
                    continue
                # Without side columns nothing is known of any sample: that raises here.
                self._samples.read_shapes(name, positions[run])
                lost.setdefault(first, Loss(type(error).__name__, str(error), field=name))
                continue
            parts.append(column)
            places.append(np.arange(first, last, dtype=np.int64))
        if not parts:
            none = slice(0, 0)
            return self._column(name, positions[none], _of(windows, none)), positions[none]
        if len(parts) == 1:
            return parts[0], places[0]
        if isinstance(parts[0], RaggedBatch):
            whole: Column = RaggedBatch.join(parts)  # type: ignore[arg-type]  # all are such
        else:
            whole = np.concatenate(parts, dtype=field.dtype)
        return whole, np.concatenate(places)

    # What becomes of them

    def _made(self, decoded: Columns, dealt: Dealt, first: int, last: int, lost: Lost) -> Made:
        """Batches `first` to `last` of what is dealt, of which all but `lost` is `decoded`."""
        batches = dealt.batches.span(first, last)
        positions = batches.picks.positions
        there = _without(len(positions), lost)
        edges = _edges(batches.edges, there)
        nbytes = sum(_values_of(column) for column in decoded.values())
        shown = columns.show(self._samples.schema, decoded, raw=self._raw)
        begun = time.perf_counter()
        if self._stages.per_sample:
            shown = self._mapped(shown, batches.picks, there, lost)
            there = _without(len(positions), lost)
            edges = _edges(batches.edges, there)
        kept = positions if there is None else positions[there]
        gone = _lost_of(batches, lost)
        if self._is_plain and batches.picks.rows is None:
            facts = Facts(kept, edges, nbytes, extents_of(shown, edges), gone)
            parts = columns.spans(shown, edges)
            # Of many the loop cuts one at a time, while other threads decode; but what cuts them
            # has hold of all, which for large ones would be a batch too many.
            return Made(
                parts if last - first > _MANY else _popped(list(parts)), dealt, first, facts
            )
        dressed = self._dressed(shown, batches, there, edges)
        extents = extents_of(shown, edges, dressed)
        if self._stages:
            picked = [batches.span(i, i + 1).picks for i in range(len(batches))]
            with self._alone:
                dressed = self._stages.batches(dressed, picked)
        made, became = self._collated(dressed)
        if self._stages or not made or any(map(operator.is_not, made, dressed)):
            # Padding counts: it may make ten times as much of what is read.
            self._pace.note(nbytes, became, time.perf_counter() - begun)
        later = map(self._collate, _popped(dressed[len(made) :]))
        facts = Facts(kept, edges, nbytes, extents, gone)
        return Made(itertools.chain(_popped(made), later), dealt, first, facts)

    def _collated(self, batches: list[Columns]) -> tuple[list[Any], int]:
        """What is made of batches, and about how many bytes it would be of all of them.

        Only of the first where all would be larger than a read should be, and of none that would be
        too large to lie ready: one long sample may be a thousand times as large once all beside it
        are padded.
        """
        sizes = columns.made_bytes(self._collate, batches)
        made: list[Any] = []
        became = 0
        for i, batch in enumerate(batches):
            if became > self._budget.read or (sizes and sizes[i] > self._budget.alone):
                break
            made.append(self._collate(batch))
            if self._stages or made[-1] is not batch:
                became += columns.nbytes_of(made[-1])
        if sizes:
            return made, sum(sizes)
        return made, became * len(batches) // max(len(made), 1)

    def _mapped(self, shown: Columns, picks: Picks, there: Int64s | None, lost: Lost) -> Columns:
        """Each sample transformed; those that fail go to `lost`."""
        places = np.arange(len(picks), dtype=np.int64) if there is None else there
        before = columns.apart(shown)
        names = list(before)
        samples = [dict(zip(names, row, strict=True)) for row in zip(*before.values(), strict=True)]
        made, good = [], []
        with self._alone:
            transformed = self._stages.samples(samples, picks.take(places))
        for i, sample in enumerate(transformed):
            if isinstance(sample, Failed):
                loss = Loss(sample.error, sample.message, transform=sample.transform)
                lost[int(places[i])] = loss
            else:
                made.append(sample)
                good.append(i)
        if len(good) < len(samples):
            before, places = {}, places[good]
        with self._alone:  # which learns from what it sees
            return self._forms.join(made, picks.positions[places], before, shown)

    def _by_one(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def alone(batch: Any) -> Any:
            with self._alone:
                return collate(batch)

        return alone

    def _dressed(
        self, shown: Columns, batches: Batches, there: Int64s | None, edges: Int64s
    ) -> list[Columns]:
        """The columns of each batch with what the rule makes of them."""
        picks, all_rows = batches.picks, batches.picks.rows
        if there is not None and self._rule.shared:
            # Each row is a stream, which must not move: those that are lost show nothing.
            shown = columns.spread(self._samples.schema, shown, there, len(picks))
            edges = batches.edges
        elif there is not None:
            picks = picks.take(there)
        dressed = list(columns.spans(shown, edges))
        if all_rows is None and self._adds_nothing:
            return dressed
        for i, (start, stop) in enumerate(itertools.pairwise(edges.tolist())):
            batch = self._rule.dress(dressed[i], picks.take(slice(start, stop)))
            if there is not None and all_rows is not None:
                of_batch = all_rows[batches.edges[i] : batches.edges[i + 1]]
                batch = columns.keep_rows(batch, int(of_batch.max(initial=-1)) + 1)
            dressed[i] = batch
        return dressed

    # Straight from the store

    def _decode(
        self, dealt: Dealt, first: int, last: int, windows: Windows, abreast: int, room: int
    ) -> Made:
        """The batches of a read that is made beside others, `abreast` in all.

        Where they come to more than `room` bytes, as many of them as should make a read.
        """
        edges = dealt.batches.edges
        positions = dealt.batches.picks.positions[edges[first] : edges[last]]
        try:
            with sharing(abreast), at_most(room):
                decoded, lost = self._read(positions, windows)
        except TooMuch:
            part = dealt.span(first, last)
            each = self._bytes(part.batches.picks, windows, exact=True)
            bytes_to = _bytes_to(part.batches, each)
            parts = [ends for *ends, _ in _parts(bytes_to, Pace(self._budget.read))]
            return self._by_and_by(part, windows, parts)
        return self._made(decoded, dealt, first, last, lost)

    def _by_and_by(self, dealt: Dealt, windows: Windows, parts: list[list[int]]) -> Made:
        """The first part of some batches, from which to which, and with it what makes the rest."""
        (first, last), *others = parts
        span = slice(int(dealt.batches.edges[first]), int(dealt.batches.edges[last]))
        made = self._decode(dealt, first, last, _of(windows, span), 1, _ANY)
        rest = partial(self._by_and_by, dealt, windows, others) if others else None
        return replace(made, rest=rest)

    # By way of windows

    def _from_windows(self, deals: Iterator[Dealt]) -> Jobs[Made]:
        windows = results(
            self._window_jobs(deals),
            count=min(self._budget.ahead, 1),
            limit=self._budget.windows,
            threads=self.abreast,
        )
        try:
            for window in windows:
                if isinstance(window, Dealt):
                    yield from self._reads([window])
                    continue
                for first, last, nbytes in _parts(window[-1], self._pace):
                    of_part = int(nbytes * self._pace.growth)
                    yield of_part, partial(self._take, window, first, last)
                del window
        finally:
            windows.close()

    def _window_jobs(self, deals: Iterator[Dealt]) -> Jobs[_Window | Dealt]:
        for dealt in deals:
            picks = dealt.batches.picks
            needed, places = _needed(picks)
            nbytes = int(self._bytes(Picks(needed), {}).sum())
            if nbytes > self._budget.windows:
                # Of long samples, perhaps, of which the batches have but parts.
                yield 0, partial(_itself, dealt)
                continue
            bytes_to = _bytes_to(dealt.batches, self._bytes(picks, self._windows(picks)))
            job = partial(self._decode_window, needed, places, dealt, bytes_to, nbytes)
            yield nbytes * self._samples.copies, job

    def _decode_window(
        self, needed: Int64s, places: Int64s, dealt: Dealt, bytes_to: Int64s, nbytes: int
    ) -> _Window | Dealt:
        """What batches need, decoded; they themselves where that is far more than it should be."""
        try:
            with at_most(min(2 * nbytes + 2**20, self._budget.windows)):
                return *self._read(needed, {}), places, dealt, bytes_to
        except TooMuch:
            return dealt

    def _take(self, window: _Window, first: int, last: int) -> Made:
        decoded, lacks, places, dealt, _ = window
        edges = dealt.batches.edges
        span = slice(int(edges[first]), int(edges[last]))
        windows = self._windows(dealt.batches.picks.take(span))
        wanted, lost = places[span], Lost()
        if lacks:
            gone = np.array(sorted(lacks), np.int64)
            lost = {i: lacks[place] for i, place in enumerate(wanted.tolist()) if place in lacks}
            there = np.setdiff1d(np.arange(len(wanted)), list(lost))
            windows = _of(windows, there)
            wanted = wanted[there] - np.searchsorted(gone, wanted[there])
        taken = columns.take(decoded, wanted, windows)
        return self._made(taken, dealt, first, last, lost)


def _itself(dealt: Dealt) -> Dealt:
    return dealt


def _popped(batches: list[Any]) -> Iterator[Any]:
    """They, one by one, each held no longer."""
    batches.reverse()
    while batches:
        yield batches.pop()


def _values_of(column: Column) -> int:
    """Bytes of a column's values."""
    return column.values.nbytes if isinstance(column, RaggedBatch) else column.nbytes


def _of(windows: Windows, index: Any) -> Windows:
    """The windows of the samples at `index`."""
    return {name: (starts[index], stops[index]) for name, (starts, stops) in windows.items()}


def _without(count: int, lost: Lost) -> Int64s | None:
    """Which of `count` samples are there; None where all are."""
    if not lost:
        return None
    there = np.ones(count, np.bool_)
    there[list(lost)] = False
    return np.flatnonzero(there)


def _edges(edges: Int64s, there: Int64s | None) -> Int64s:
    """Where batches begin and end once only the samples at `there` are left."""
    return edges if there is None else np.searchsorted(there, edges).astype(np.int64)


def _lost_of(batches: Batches, lost: Lost) -> dict[int, list[tuple[int, Loss]]]:
    """What is lost of each batch, every sample once."""
    found: dict[int, dict[int, Loss]] = {}
    starts = batches.picks.starts
    for place, loss in sorted(lost.items()):
        if starts is not None and starts[place] >= BEYOND:
            continue  # of a stream that has run out, so that it shows nothing anyway
        batch = int(np.searchsorted(batches.edges, place, "right")) - 1
        found.setdefault(batch, {}).setdefault(int(batches.picks.positions[place]), loss)
    return {batch: list(losses.items()) for batch, losses in found.items()}


def _first_alone(deals: Iterator[Dealt]) -> Iterator[Dealt]:
    """The same, the first batch by itself: it need not wait for those that come with it."""
    waiting = True
    for dealt in deals:
        if waiting and len(dealt.batches) > 1:
            yield dealt.span(0, 1)
            dealt = dealt.span(1, len(dealt.batches))
        waiting = waiting and not len(dealt.batches)
        yield dealt


def _needed(picks: Picks) -> tuple[Int64s, Int64s]:
    """The picked samples in file order, and where among them each pick is."""
    if picks.starts is not None:  # of one sample there may be many parts
        needed, places = np.unique(picks.positions, return_inverse=True)
        return needed, places.reshape(-1)
    order = stable_order(picks.positions)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return picks.positions[order], places


def _bytes_to(batches: Batches, each: Int64s) -> Int64s:
    """(m + 1,) bytes of all batches before each, of samples of `each` bytes."""
    if len(each) and not each.strides[0]:  # short ones, all taken to be of the mean
        return batches.edges * int(each[0])
    return offsets_of(each)[batches.edges]


def _parts(bytes_to: Int64s, pace: Pace) -> Iterator[tuple[int, int, int]]:
    """Cut batches into runs, of one at least, that keep to `pace`: from, to, and their bytes.

    As few as may be, and about as large as one another: so they are read into the same memory.
    """
    start = 0
    while start < len(bytes_to) - 1:
        left = int(bytes_to[-1] - bytes_to[start])
        room = max(pace.room, 1)
        even = math.ceil(left / max(-(-left // room), 1))
        bounds = bytes_to[start] + np.array([room, pace.soon])
        fit, soon = (np.searchsorted(bytes_to, bounds, "right") - 1).tolist()
        enough = int(np.searchsorted(bytes_to, bytes_to[start] + even))
        stop = max(min(fit, enough, max(soon, start + pace.at_once)), start + 1)
        yield start, stop, int(bytes_to[stop] - bytes_to[start])
        start = stop

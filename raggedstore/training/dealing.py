"""Dealing: the batches of an epoch, one after another, to the processes that share it.

An epoch is one sequence of batches, which depends on the order, the rule and the samples, and on
nothing else: each unit of the order becomes batches, and hands what is left over to the next. All
processes plan the whole sequence, which reads no data, and the batches are dealt like cards: of
`world_size` processes number r takes batch r of each *step* of `world_size` batches. So whatever
the rule, their parts are disjoint and complete, and equal up to the last step, which ``even``
settles. Where a process hands its share on to torch workers, worker w of n takes every n-th step.

A `Cursor` says how far the sequence is dealt out, in terms of a unit. What is left is dealt from
there, to as many processes as there then are: resuming reads and replays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore.training.batching import Pool, Rule
from raggedstore.training.keys import derive_key
from raggedstore.training.orders import Units
from raggedstore.training.picks import Batches, Picks

__all__ = ["Cursor", "Dealt", "Even", "Plan", "Share", "deal"]

Int64s = npt.NDArray[np.int64]
Even = Literal["pad", "drop"] | None


@dataclass(frozen=True, slots=True, eq=False)
class Cursor:
    """How much of an epoch is dealt out.

    Parameters
    ----------
    unit
        The unit that is being dealt.
    given
        How many of its batches are; where more than it has, so many of the units after it.
    left
        For each lane what was left over when the unit began.
    has
        How many batches the unit has; 0 where nobody says so.
    """

    unit: int = 0
    given: int = 0
    left: Sequence[Picks] = field(default_factory=tuple)
    has: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """Whose batches: `rank` of `world_size` processes, `worker` of its `workers`.

    `phase` steps the workers had before the cursor.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1
    phase: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Dealt:
    """A share's batches of one unit.

    Parameters
    ----------
    batches
        Those of the share.
    unit, left, has
        As in `Cursor`.
    given
        (m,) how many of the unit's batches are dealt out once each of them is done with: by all
        processes, which are at the same step.
    steps
        (m,) the step of each, counted from the cursor.
    final
        Whether they end with the last of the last unit.
    """

    batches: Batches
    unit: int
    left: Sequence[Picks]
    given: Int64s
    steps: Int64s
    has: int = 0
    final: bool = False

    def span(self, first: int, last: int) -> Dealt:
        """Batches `first` to `last` of these."""
        part = slice(first, last)
        batches = self.batches.span(first, last)
        final = self.final and last >= len(self.batches)
        given, steps = self.given[part], self.steps[part]
        return Dealt(batches, self.unit, self.left, given, steps, self.has, final)

    def after(self, number: int) -> Cursor:
        """Where the epoch goes on after batch `number`."""
        return Cursor(self.unit, int(self.given[number]), self.left, self.has)


class Plan:
    """The batches of one epoch, unit by unit.

    Parameters
    ----------
    units
        Of the order.
    rule, geometry
        What makes batches of them.
    sizes
        Gives the (k, r) ragged dimensions of samples in the rule's field.
    drop_last
        Whether to leave out what makes no whole batch at the end.
    """

    def __init__(
        self,
        units: Units,
        rule: Rule,
        geometry: dict[str, Any],
        sizes: Callable[[Int64s], Int64s] | None,
        *,
        drop_last: bool,
    ) -> None:
        self._units, self._rule, self._geometry = units, rule, geometry
        self._sizes, self._drop_last = sizes, drop_last
        self._seen: dict[int, _Fresh] = {}

    def __len__(self) -> int:
        return len(self._units)

    def unit(
        self, number: int, left: Sequence[Picks], *, ahead: bool = False
    ) -> tuple[Batches, list[Picks]]:
        """The batches of a unit, and what each of its lanes has left over for the next.

        Who may want the next unit as well has the sizes of both read at once, `ahead`: under a
        random order both lie in much the same blocks, which take as long to decode for one.
        """
        fresh = self._seen.pop(number, None)
        if fresh is None:
            fresh = _Fresh(*self._lanes(number))
            if ahead and self._sizes is not None and number + 1 < len(self):
                then = self._seen[number + 1] = _Fresh(*self._lanes(number + 1))
                fresh.measure(self._sizes, then)
        last = number == len(self) - 1
        if last or self._rule.shared:
            left = [Picks.join(left)]
        made, over = [], []
        for lane, positions in enumerate(fresh.lanes):
            held = left[lane] if lane < len(left) else Picks.none()
            sizes = None
            if self._sizes is not None and fresh.sizes:
                sizes = np.concatenate([self._sizes(held.positions), fresh.sizes[lane]])
            elif self._sizes is not None:
                sizes = self._sizes(np.concatenate([held.positions, positions]))
            key = self._units.key
            if key is not None:
                key = derive_key(int(key[0]), number, lane)
            of_fresh = None if fresh.turns is None else fresh.turns[lane]
            pool = Pool(held, positions, of_fresh, sizes, key, last, self._drop_last)
            batches, rest = self._rule.plan(pool, self._geometry)
            made.append(batches)
            over.append(rest)
        return _in_turn(made), over

    def _lanes(self, number: int) -> tuple[list[Int64s], list[Int64s] | None]:
        """The positions of a unit, and which draw of the epoch each is where they are drawn."""
        lanes, turns = self._units[number], self._units.turns(number)
        # As one at the end, so that there is one short batch at most.
        if len(lanes) > 1 and (number == len(self) - 1 or self._rule.shared):
            lanes = [np.concatenate(lanes)]
            turns = None if turns is None else [np.concatenate(turns)]
        return lanes, turns


@dataclass(slots=True, eq=False)
class _Fresh:
    """A unit's samples, lane by lane, and their sizes where those were read before."""

    lanes: list[Int64s]
    turns: list[Int64s] | None
    sizes: list[Int64s] = field(default_factory=list)

    def measure(self, sizes: Callable[[Int64s], Int64s], other: _Fresh) -> None:
        """Read the sizes of both units at once."""
        lanes = [*self.lanes, *other.lanes]
        ends = np.cumsum([len(lane) for lane in lanes])
        parts = np.split(sizes(np.concatenate(lanes)), ends[:-1])
        self.sizes, other.sizes = parts[: len(self.lanes)], parts[len(self.lanes) :]


def _in_turn(lanes: Sequence[Batches]) -> Batches:
    """The first batch of each lane, the second of each, and so on."""
    if len(lanes) == 1:
        return lanes[0]
    turn = np.concatenate([np.arange(len(lane), dtype=np.int64) for lane in lanes])
    return Batches.join(lanes).take(np.argsort(turn, kind="stable"))


def deal(plan: Plan, cursor: Cursor, share: Share, even: Even, *, rows: int = 0) -> Iterator[Dealt]:
    """A share's batches from `cursor` to the end of the epoch, unit by unit.

    Parameters
    ----------
    even
        What becomes of a last step with fewer batches than there are processes: None, and the
        processes after those have one batch less; "drop", and nobody has it; or "pad", and they
        have those batches a second time.
    rows
        Where each batch is everybody's, how many of its rows are each process's.
    """
    world, rank = (1, 0) if rows else (share.world_size, share.rank)
    step, tail, left, skip = 0, Batches.none(), cursor.left, cursor.given
    # Whether the share's first batch may be, or want to be planned with, one of the next unit.
    soon = 0 < cursor.has < cursor.given + world * share.workers

    def mine(batches: Batches, steps: Int64s) -> tuple[Batches, Int64s]:
        """Which of `steps` are this worker's, and its batches, one of them in each step."""
        if world == share.workers == 1 and not rows:
            return batches, steps
        here = np.flatnonzero((steps + share.phase) % share.workers == share.worker)
        taken = batches.take(here * world + rank)
        return _rows_of(taken, share.rank, rows) if rows else taken, steps[here]

    for number in range(cursor.unit, len(plan)):
        before = left
        batches, left = plan.unit(number, before, ahead=soon)
        soon = False
        if skip >= len(batches):
            skip -= len(batches)
            continue
        begun = len(tail)
        together = Batches.join([tail, batches.span(skip, len(batches))])
        whole = len(together) // world
        taken, steps = mine(together, np.arange(step, step + whole, dtype=np.int64))
        given = (steps - step + 1) * world - begun + skip
        yield Dealt(taken, number, before, given, steps, len(batches), number == len(plan) - 1)
        tail = together.span(whole * world, len(together))
        step, skip = step + whole, 0
    here = (step + share.phase) % share.workers == share.worker
    if here and len(tail) and even != "drop" and (even == "pad" or rank < len(tail)):
        taken = tail.take(np.array([rank % len(tail)]))
        yield Dealt(taken, len(plan), (), np.zeros(1, np.int64), np.array([step]))


def _rows_of(batches: Batches, rank: int, rows: int) -> Batches:
    """Of each batch the rows of process `rank`, numbered from 0."""
    picks = batches.picks
    assert picks.rows is not None
    here = np.flatnonzero(picks.rows // rows == rank)
    chosen = picks.take(here)
    assert chosen.rows is not None
    return Batches(
        replace(chosen, rows=chosen.rows % rows),
        np.searchsorted(here, batches.edges).astype(np.int64),
    )

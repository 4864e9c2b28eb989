"""Reading planned batches: as jobs, each with the bytes that its result will take.

So they can be done in turn or ahead (`ahead.py`):

    batches  →  decode as many as make a read  →  lists of batches              (most orders)
    batches  →  decode a window  →  pieces  →  lists of batches   (`Shuffled`: a window is decoded
                                                                while the one before is handed over)

A read is decoded by one call for each field, which sorts it by chunk and decodes in as many
threads as there are cores. Reads and pieces are as many whole batches as make about 16 MiB: little
enough to hold several, large enough that what is done per read costs nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from raggedstore.batch import offsets_of
from raggedstore.indexing import stable_order
from raggedstore.samples import Samples
from raggedstore.training import columns
from raggedstore.training.ahead import Ahead, Jobs, in_turn
from raggedstore.training.batching import Rule
from raggedstore.training.columns import Columns
from raggedstore.training.crops import Crop
from raggedstore.training.dealing import Cursor, Dealt
from raggedstore.training.picks import Batches, Picks
from raggedstore.training.sizes import Measures

__all__ = ["READ_BYTES", "Budget", "Reader", "Ready", "Windows", "results"]

READ_BYTES = 2**24

T = TypeVar("T")
Int64s = npt.NDArray[np.int64]
#: For each cropped field where each sample's window begins and ends.
Windows = dict[str, tuple[Int64s, Int64s]]


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A batch as the loop gets it."""

    batch: Any
    after: Cursor  #: where the epoch goes on after it
    step: int  #: which step it is, counted from where the iteration began


@dataclass(frozen=True, slots=True)
class Budget:
    """How much memory what is for."""

    ready: int  #: of what is ready for the loop
    windows: int  #: of decoded windows, besides
    read: int  #: of a read or piece: so little that as many as may be ahead fit
    ahead: int  #: how many reads may be ahead of the loop

    @classmethod
    def of(cls, total: int, ahead: int, *, windowed: bool) -> Budget:
        """`total` bytes divided up."""
        ready = min((ahead + 1) * READ_BYTES, total // 8) if windowed else total
        return cls(ready, total - ready, min(READ_BYTES, ready // (ahead + 1)), ahead)


def results(jobs: Jobs[T], *, count: int, limit: int) -> Ahead[T] | Generator[T, None, None]:
    """The results of `jobs`, `count` of them ahead of who takes them."""
    return Ahead(jobs, count=count, limit=limit) if count else in_turn(jobs)


#: Decoded columns; where their batches' samples lie in them; what is dealt; the bytes of each.
_Window = tuple[Columns, Int64s, Dealt, Int64s]


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
    finish
        Makes of the columns of a batch, and its picks, what the loop gets.
    measures
        How large samples are.
    windowed
        Whether a unit's batches are decoded together before they are handed over.
    epoch
        What random crops depend on.
    """

    def __init__(
        self,
        samples: Samples,
        rule: Rule,
        crops: Sequence[Crop],
        finish: Callable[[Columns, Picks], Any],
        budget: Budget,
        measures: Measures,
        *,
        windowed: bool,
        epoch: int,
    ) -> None:
        self._samples, self._rule, self._crops = samples, rule, crops
        self._finish, self._budget, self._epoch = finish, budget, epoch
        self._measures = measures
        # Of cropped samples only the windows are to be read, so never more than a batch's.
        self._windowed = windowed and not crops

    def jobs(self, deals: Iterator[Dealt]) -> Jobs[list[Ready]]:
        """Jobs that make lists of batches."""
        deals = _first_alone(deals)
        if self._windowed:
            yield from self._from_windows(deals)
            return
        for dealt in deals:
            windows = self._windows(dealt.batches.picks)
            each = self._bytes(dealt.batches.picks, windows)
            # What was planned by the average is cut up only where it turns out far from it.
            for first, last in _parts(dealt.batches, each, self._budget.read):
                span = slice(int(dealt.batches.edges[first]), int(dealt.batches.edges[last]))
                part = {name: (a[span], b[span]) for name, (a, b) in windows.items()}
                yield int(each[span].sum()), partial(self._decode, dealt, first, last, part)

    # What is read of each sample

    def _windows(self, picks: Picks) -> Windows:
        """For each cropped field where the windows of the picked samples begin and end."""
        windows: Windows = {}
        if picks.starts is not None and picks.stops is not None:
            windows = dict.fromkeys(self._rule.fields, (picks.starts, picks.stops))
        for crop in self._crops:
            lengths = self._measures.dims(crop.fields[0])(picks.positions)[:, 0]
            bounds = crop.windows(picks.positions, lengths, self._epoch)
            windows.update(dict.fromkeys(crop.fields, bounds))
        return windows

    def _bytes(self, picks: Picks, windows: Windows) -> Int64s:
        """(k,) how many bytes each of the picked samples takes once it is read."""
        flat = frozenset(n for n in windows if None not in self._samples.schema[n].shape[1:])
        each = self._measures.sizes(flat).of(picks.positions)
        for name in flat:
            field = self._samples.schema[name]
            step = math.prod(d or 0 for d in field.shape[1:]) * field.dtype.itemsize
            starts, stops = windows[name]
            each = each + np.maximum(stops - starts, 0) * step + 32
        return each

    def _read(self, positions: Int64s, windows: Windows) -> Columns:
        return {
            name: self._samples.read_windows(name, positions, *windows[name])
            if name in windows
            else self._samples.read(name, positions)
            for name in self._samples.schema
        }

    def _ready(self, decoded: Columns, dealt: Dealt, first: int, last: int) -> list[Ready]:
        """Batches `first` to `last` of what is dealt, whose columns are `decoded`."""
        raw = self._rule.fields if self._rule.cuts else ()
        shown = columns.show(self._samples.schema, decoded, raw=raw)
        batches = dealt.batches.span(first, last)
        edges = batches.edges.tolist()
        made = []
        for i, (start, stop) in enumerate(itertools.pairwise(edges)):
            picks = batches.picks.take(slice(start, stop))
            batch = self._finish(columns.span(shown, start, stop), picks)
            made.append(Ready(batch, dealt.after(first + i), int(dealt.steps[first + i])))
        return made

    # Straight from the store

    def _decode(self, dealt: Dealt, first: int, last: int, windows: Windows) -> list[Ready]:
        edges = dealt.batches.edges
        positions = dealt.batches.picks.positions[edges[first] : edges[last]]
        return self._ready(self._read(positions, windows), dealt, first, last)

    # By way of windows

    def _from_windows(self, deals: Iterator[Dealt]) -> Jobs[list[Ready]]:
        windows = results(
            self._window_jobs(deals),
            count=min(self._budget.ahead, 1),
            limit=self._budget.windows,
        )
        try:
            for decoded, places, dealt, each in windows:
                for first, last in _parts(dealt.batches, each, self._budget.read):
                    nbytes = int(each[dealt.batches.edges[first] : dealt.batches.edges[last]].sum())
                    yield nbytes, partial(self._take, decoded, places, dealt, first, last)
                del decoded, places, dealt, each
        finally:
            windows.close()

    def _window_jobs(self, deals: Iterator[Dealt]) -> Jobs[_Window]:
        for dealt in deals:
            picks = dealt.batches.picks
            needed, places = _needed(picks)
            nbytes = int(self._bytes(Picks(needed), {}).sum())
            each = self._bytes(picks, self._windows(picks))
            if nbytes <= self._budget.windows:
                yield nbytes, partial(self._decode_window, needed, places, dealt, each)
                continue
            # Too large for memory: the same batches in the same order, but read in parts.
            for first, last in _parts(dealt.batches, each, self._budget.windows // 4):
                part = dealt.span(first, last)
                needed, places = _needed(part.batches.picks)
                edges = dealt.batches.edges
                sizes = each[edges[first] : edges[last]]
                nbytes = int(self._bytes(Picks(needed), {}).sum())
                yield nbytes, partial(self._decode_window, needed, places, part, sizes)

    def _decode_window(self, needed: Int64s, places: Int64s, dealt: Dealt, each: Int64s) -> _Window:
        return self._read(needed, {}), places, dealt, each

    def _take(
        self, decoded: Columns, places: Int64s, dealt: Dealt, first: int, last: int
    ) -> list[Ready]:
        edges = dealt.batches.edges
        span = slice(int(edges[first]), int(edges[last]))
        windows = self._windows(dealt.batches.picks.take(span))
        taken = columns.take(decoded, places[span], windows)
        return self._ready(taken, dealt, first, last)


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


def _parts(batches: Batches, each: Int64s, room: int) -> Iterator[tuple[int, int]]:
    """Cut into runs of batches, of one at least, whose samples of `each` bytes fit in `room`."""
    bytes_to = offsets_of(each)[batches.edges]
    start = 0
    while start < len(batches):
        stop = int(np.searchsorted(bytes_to, bytes_to[start] + room, "right")) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop

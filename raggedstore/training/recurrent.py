"""Windows of sequences, for truncated back-propagation through time.

A batch is the next window of each of several streams. A stream plays one sequence after another,
each from its beginning to its end, so that a network carries its state from batch to batch and
forgets it where a flag says that a sequence begins. The next sequence goes to the stream that runs
out first, which keeps the streams together: what a stream has left to play when a unit is through
is at most one sequence.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from raggedstore.batch import expand_ranges
from raggedstore.errors import UsageError
from raggedstore.indexing import at_least, stable_order
from raggedstore.schema import Schema
from raggedstore.training.batching import Pool, Rule
from raggedstore.training.packing import check_vectors
from raggedstore.training.picks import Batches, Picks, names_of

__all__ = ["BEYOND", "Windowed", "first_to_end"]

Int64s = npt.NDArray[np.int64]

#: Where the window of a stream that has run out begins and ends.
BEYOND = 2**62
#: From so many streams on it is quicker to deal to several at once.
_MANY = 64
_MOST_PROCESSES = 2**16  # that a state can tell of


@dataclass(frozen=True, slots=True)
class Windowed(Rule):
    """Batches of one window of each of `streams` parallel streams of sequences.

    Each batch has as many rows as there are streams: in row i the next window of stream i, and in
    ``batch["reset"]``, (streams,) bool, whether a sequence begins there. Other fields are those of
    the sequence. At the end of an epoch streams that have run out have windows of length 0; what
    other fields say of those means nothing.

    Parameters
    ----------
    field
        A field whose first dimension alone is ragged, or several that are of the same lengths
        sample by sample; all are cut alike.
    length
        Steps in a window; the last one of a sequence may have fewer.
    stride
        Steps from one window to the next, by default `length`; with fewer they overlap.
    streams
        Rows of a batch, for each of the processes that share an epoch.
    """

    shared: ClassVar[bool] = True
    cuts: ClassVar[bool] = True
    adds: ClassVar[tuple[str, ...]] = ("reset",)

    field: str | Sequence[str]
    length: int
    stride: int | None = None
    streams: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "field", names_of(self.field, "Windowed"))
        object.__setattr__(self, "length", at_least(1, self.length, "a window's length"))
        stride = self.length if self.stride is None else at_least(1, self.stride, "stride")
        if stride > self.length:
            raise UsageError(f"a stride of {stride} would skip steps between windows")
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "streams", at_least(1, self.streams, "streams"))

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,) if isinstance(self.field, str) else tuple(self.field)

    @property
    def pool(self) -> int:
        return max(2**10, 4 * self.streams)

    @property
    def multiple_of(self) -> int:
        return self.length

    def check(self, schema: Schema) -> None:
        check_vectors(self, schema)

    def measure(self, sizes: Callable[[], Int64s], world_size: int) -> dict[str, Any]:
        return {"streams": self.streams * world_size}

    def check_geometry(self, geometry: dict[str, Any]) -> None:
        streams = at_least(1, geometry["streams"], "streams")
        if streams % self.streams or streams > self.streams * _MOST_PROCESSES:
            raise UsageError(f"{streams} streams, where each process has {self.streams}")

    def check_left(self, left: Picks, geometry: dict[str, Any]) -> None:
        if left.starts is None or left.rows is None or left.starts.min() < 0:
            raise UsageError("windows are left over, with starts and rows")
        if left.rows.min() < 0 or left.rows.max() >= geometry["streams"]:
            raise UsageError(f"windows of {geometry['streams']} streams are left over")

    def share(self, world_size: int, geometry: dict[str, Any]) -> int:
        streams: int = geometry["streams"]
        if streams % world_size:
            raise UsageError(
                f"{streams} streams, as this run was begun with, do not divide among "
                f"{world_size} processes"
            )
        return streams // world_size

    def dress(self, columns: dict[str, Any], picks: Picks) -> dict[str, Any]:
        return {**columns, "reset": picks.starts == 0}

    def plan(self, pool: Pool, geometry: dict[str, Any]) -> tuple[Batches, Picks]:
        assert pool.sizes is not None and self.stride is not None
        streams: int = geometry["streams"]
        lengths = pool.sizes[:, 0]
        stream, position, start = self._dealt(pool, lengths, streams)
        if not len(stream):
            return Batches.none(), Picks.none()
        lengths = lengths[position]
        windows = self._windows(lengths - start)
        # Each window's stream, and its turn in it: by stream, then sequence, then time.
        order = stable_order(stream)
        stream, position, start, lengths, windows = (
            a[order] for a in (stream, position, start, lengths, windows)
        )
        ends = np.cumsum(windows)
        first = np.searchsorted(stream, np.arange(streams))
        before = np.append(0, ends)[first]  # windows of the streams before
        each = np.diff(np.append(before, ends[-1]))
        owner = np.repeat(np.arange(len(windows)), windows)
        turn = np.arange(ends[-1]) - before[stream][owner]
        begin = start[owner] + expand_ranges(np.zeros_like(windows), windows) * self.stride
        turns = int(each.max() if pool.takes_all else each.min())
        # What comes after the last whole turn is one window for each stream where to go on.
        left = Picks.none()
        if not pool.last:
            rest = np.flatnonzero(turn == turns)
            left = replace(
                pool.picks.take(position[owner[rest]]),
                starts=begin[rest],
                rows=stream[owner[rest]],
            )
        here = np.flatnonzero(turn < turns)
        picks = replace(
            pool.picks.take(position[owner[here]]),
            starts=begin[here],
            stops=np.minimum(begin[here] + self.length, lengths[owner[here]]),
            rows=stream[owner[here]],
        )
        return self._in_turns(picks, turn[here], turns, streams), left

    def _dealt(self, pool: Pool, lengths: Int64s, streams: int) -> tuple[Int64s, Int64s, Int64s]:
        """For each sequence its stream, which of the pool's it is, and where it goes on."""
        count, held = len(lengths), len(pool.left)
        stream, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
        if held:
            assert pool.left.rows is not None and pool.left.starts is not None
            stream[:held], start[:held] = pool.left.rows, pool.left.starts
        windows = self._windows(lengths - start)
        busy = np.zeros(streams, np.int64)
        np.add.at(busy, stream[:held], windows[:held])
        stream[held:] = first_to_end(busy, windows[held:])
        return stream, np.arange(count, dtype=np.int64), start

    def _windows(self, lengths: Int64s) -> Int64s:
        """How many windows sequences of `lengths` make, each 1 at least."""
        assert self.stride is not None
        return 1 + np.maximum(-(-(lengths - self.length) // self.stride), 0)

    def _in_turns(self, picks: Picks, turn: Int64s, turns: int, streams: int) -> Batches:
        """One batch for each turn, with a row for every stream."""
        assert picks.starts is not None and picks.stops is not None and picks.rows is not None
        # A stream that has run out shows nothing of what it played last, or of any sample.
        first = picks.positions[0] if len(picks) else 0
        place = (turn, picks.rows)

        def spread(known: Int64s, otherwise: int) -> Int64s:
            column = np.full((turns, streams), otherwise, np.int64)
            column[place] = known
            return column.reshape(-1)

        rows = np.tile(np.arange(streams, dtype=np.int64), turns)
        edges = np.arange(turns + 1, dtype=np.int64) * streams
        made = Picks(
            spread(picks.positions, int(first)),
            spread(picks.starts, BEYOND),
            spread(picks.stops, BEYOND),
            rows,
            None if picks.turns is None else spread(picks.turns, 0),
        )
        return Batches(made, edges)


def first_to_end(busy: Int64s, windows: Int64s) -> Int64s:
    """To which stream each sequence goes: to the one that ends first, of several to the first.

    Parameters
    ----------
    busy
        (streams,) windows that each stream has to play before.
    windows
        (k,) windows of each sequence in turn, 1 at least.

    Returns
    -------
    (k,) int64.
    """
    streams = len(busy)
    # When a stream ends and which it is, as one number.
    ends, more = busy * streams + np.arange(streams), windows * streams
    if streams < _MANY:
        heap = ends.tolist()
        heapq.heapify(heap)
        dealt = np.array([heapq.heapreplace(heap, heap[0] + m) for m in more.tolist()], np.int64)
        return dealt % streams
    dealt, done = np.empty_like(more), 0
    while done < len(more):
        ends.sort()
        then = more[done : done + streams]
        then = ends[: len(then)] + then
        # Each to the next that ends, up to where one that was dealt to would end before that.
        early = np.minimum.accumulate(then[:-1]) < ends[1 : len(then)]
        count = int(early.argmax()) + 1 if early.any() else len(then)
        dealt[done : done + count] = ends[:count]
        ends[:count] = then[:count]
        done += count
    return dealt % streams

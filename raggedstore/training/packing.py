"""Packing: sequences put one after another into rows of a fixed length, so that little is padded.

Rows are filled by best fit of decreasing lengths: the longest sequence first, each into the row
that it leaves the least room in. Ding et al., "Fewer truncations improve language modeling" (2024),
use it for the same. Sequences of one length are interchangeable, so that they are placed at once: a
unit takes as many steps as it has different lengths and rooms, not as it has sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, expand_ranges, offsets_of
from raggedstore.errors import UsageError
from raggedstore.indexing import at_least, stable_order
from raggedstore.samples import with_sizes
from raggedstore.schema import Field, Schema
from raggedstore.training.batching import Pool, Rule
from raggedstore.training.keys import Key, shuffled
from raggedstore.training.picks import Batches, Picks, names_of

__all__ = ["Packed", "PackedRows", "best_fit"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed(Rule):
    """Batches of `rows` rows of `length` values, each filled with whole sequences.

    A batch has a `PackedRows` for each of the packed fields, and of every other field one value
    for each sequence, in the order of the rows.

    Parameters
    ----------
    field
        A field whose first dimension alone is ragged, or several that are of the same lengths
        sample by sample, such as tokens and their targets.
    length
        Values (steps of the first dimension) in a row.
    rows
        Rows in a batch; the last batch of an epoch may have fewer.
    longer
        What becomes of a sequence longer than a row: "split" into pieces of `length` and a rest,
        or "drop" it.
    """

    cuts: ClassVar[bool] = True

    field: str | Sequence[str]
    length: int
    rows: int = 8
    longer: Literal["split", "drop"] = "split"

    def __post_init__(self) -> None:
        object.__setattr__(self, "field", names_of(self.field, "Packed"))
        object.__setattr__(self, "length", at_least(1, self.length, "a row's length"))
        object.__setattr__(self, "rows", at_least(1, self.rows, "a batch's rows"))
        if self.longer not in ("split", "drop"):
            raise UsageError(f"longer is 'split' or 'drop', got {self.longer!r}")

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,) if isinstance(self.field, str) else tuple(self.field)

    @property
    def pool(self) -> int:
        return 2**14

    def check(self, schema: Schema) -> None:
        check_vectors(self, schema)

    def check_left(self, left: Picks, geometry: dict[str, Any]) -> None:
        if left.starts is None or left.stops is None or left.rows is not None:
            raise UsageError("pieces of samples are left over, with starts and stops")
        lengths = left.stops - left.starts
        if left.starts.min() < 0 or lengths.min() < 0 or lengths.max() > self.length:
            raise UsageError(f"pieces of at most {self.length} values are left over")

    def plan(self, pool: Pool, geometry: dict[str, Any]) -> tuple[Batches, Picks]:
        pieces = Picks.join([pool.left, self._pieces(pool)])
        if not len(pieces):
            return Batches.none(), Picks.none()
        assert pieces.starts is not None and pieces.stops is not None
        lengths = pieces.stops - pieces.starts
        count = len(pieces) if pool.takes_all else self._filling(lengths)
        row, room = best_fit(lengths[:count], self.length)
        whole = len(room) if pool.takes_all else len(room) // self.rows * self.rows
        row = self._ranks(row, room, whole, pool.key)[row]
        order = stable_order(row)  # within a row they stand as they came
        sorted_rows = row[order]
        placed = order[: int(np.searchsorted(sorted_rows, whole))]
        first_rows = np.append(np.arange(0, whole, self.rows), whole)
        edges = np.searchsorted(sorted_rows[: len(placed)], first_rows)
        chosen = pieces.take(placed)
        picks = replace(chosen, rows=row[placed] % self.rows)
        waiting = np.append(order[len(placed) :], np.arange(count, len(pieces)))
        left = Picks.none() if pool.last else pieces.take(np.sort(waiting))
        return Batches(picks, edges.astype(np.int64)), left

    def _filling(self, lengths: Int64s) -> int:
        """How many of the first pieces have as many values as whole batches, one at least.

        So it is the last to come that have to wait. If it were what is in the last rows, which
        best fit fills with the shortest, those would wait until the end of each epoch, and
        `drop_last` would leave them out.
        """
        total, batch = np.cumsum(lengths), self.rows * self.length
        most = max(int(total[-1]) // batch, 1) * batch
        return int(np.searchsorted(total, most, "right"))

    def _ranks(self, row: Int64s, room: Int64s, whole: int, key: Key | None) -> Int64s:
        """(rows,) in which order rows come; those from `whole` on are left over.

        That is by chance, or without a key as the first piece of each came. But of rows that are
        left over the emptiest is one.
        """
        if key is None:
            first = np.zeros(len(room), np.int64)
            first[row[::-1]] = np.arange(len(row))[::-1]
            order = stable_order(first)
        else:
            order = shuffled(np.arange(len(room), dtype=np.int64), key)
        if whole < len(room):
            emptiest = int(np.argmax(room))
            order = np.append(order[order != emptiest], emptiest)
        rank = np.empty(len(room), np.int64)
        rank[order] = np.arange(len(room))
        return rank

    def _pieces(self, pool: Pool) -> Picks:
        """The unit's sequences, cut into pieces that fit a row."""
        assert pool.sizes is not None
        lengths = pool.sizes[len(pool.left) :, 0]
        whole = Picks(pool.fresh, np.zeros_like(lengths), lengths, turns=pool.turns)
        if self.longer == "drop":
            return whole.take(lengths <= self.length)
        counts = np.maximum(-(-lengths // self.length), 1)
        starts = expand_ranges(np.zeros_like(counts), counts) * self.length
        stops = np.minimum(starts + self.length, np.repeat(lengths, counts))
        pieces = whole.take(np.repeat(np.arange(len(counts)), counts))
        return replace(pieces, starts=starts, stops=stops)

    def dress(self, columns: dict[str, Any], picks: Picks) -> dict[str, Any]:
        row = picks.rows
        assert row is not None
        rows = int(row.max(initial=-1)) + 1
        packed = {n: PackedRows(columns[n], row, rows, self.length) for n in self.fields}
        return {**columns, **packed}


def check_vectors(rule: Rule, schema: Schema) -> None:
    """UsageError where a rule's fields have not one ragged dimension, the first."""
    for name in rule.fields:
        shape = schema[name].shape
        if not schema[name].is_ragged or shape[0] is not None or None in shape[1:]:
            raise UsageError(
                f"{rule!r}: the first dimension of field {name!r} must be ragged, and no other, "
                f"but it is {schema[name]!r}"
            )


def best_fit(lengths: Int64s, capacity: int) -> tuple[Int64s, Int64s]:
    """Rows for (k,) `lengths`, by best fit of decreasing lengths.

    Parameters
    ----------
    lengths
        (k,) int64, from 0 to `capacity`.

    Returns
    -------
    (k,) int64 the row of each, and (rows,) int64 the room left in each row.
    """
    row = np.zeros(len(lengths), np.int64)
    order = stable_order(capacity - lengths)
    distinct, first = np.unique(capacity - lengths[order], return_index=True)
    bounds = [*first.tolist(), len(order)]
    rows = _Rows(capacity)
    for i, gone in enumerate(distinct.tolist()):
        rows.put(capacity - gone, order[bounds[i] : bounds[i + 1]], row)
    return row, rows.room()


class _Rows:
    """Rows by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._count = 0
        self._of: dict[int, list[Int64s]] = {}  # a room to the rows that have it
        self._any = np.zeros(capacity + 1, np.bool_)

    def room(self) -> Int64s:
        room = np.full(self._count, self._capacity, np.int64)
        for left, rows in self._of.items():
            room[np.concatenate(rows)] = left
        return room

    def put(self, length: int, items: Int64s, row: Int64s) -> None:
        """Place `items`, all of `length`, and write down where in `row`."""
        if not length:  # takes no room: where the first row is
            self._count = max(self._count, 1)
            return
        while len(items):
            room = length + int(np.argmax(self._any[length:]))
            if self._any[room]:
                rows = self._take(room)
            else:
                room = self._capacity
                rows = np.arange(self._count, self._count - (-len(items) // (room // length)))
                self._count += len(rows)
            # Having taken one, a row is the best fit for the next of the same length.
            each = min(room // length, len(items))
            full = min(len(items) // each, len(rows))
            row[items[: each * full]] = np.repeat(rows[:full], each)
            items = items[each * full :]
            self._add(room - each * length, rows[:full])
            rows = rows[full:]
            if len(items) and len(rows):
                row[items] = rows[0]
                self._add(room - len(items) * length, rows[:1])
                items, rows = items[:0], rows[1:]
            self._add(room, rows)

    def _take(self, room: int) -> Int64s:
        self._any[room] = False
        return np.concatenate(self._of.pop(room))

    def _add(self, room: int, rows: Int64s) -> None:
        if len(rows):
            self._of.setdefault(room, []).append(rows)
            self._any[room] = True


class PackedRows:
    """Sequences, or pieces of them, packed into rows.

    Parameters
    ----------
    batch
        The k sequences, row by row.
    row
        (k,) int64, rising: the row of each.
    rows, length
        How many rows, and the steps in each.

    Attributes
    ----------
    batch : RaggedBatch of the sequences
    row : (k,) int64
    lengths : (k,) int64 steps of each sequence
    """

    __slots__ = ("_length", "_rows", "batch", "row")

    def __init__(self, batch: RaggedBatch, row: Int64s, rows: int, length: int) -> None:
        self.batch, self.row = batch, row
        self._rows, self._length = rows, length

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return (
            f"<PackedRows of {len(self.batch)} sequences in {self._rows} rows of {self._length}, "
            f"{self.batch.dtype}, {self.waste:.1%} padded>"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, length)."""
        return self._rows, self._length

    @property
    def lengths(self) -> Int64s:
        """(k,) int64 steps of each sequence."""
        return self.batch.lengths

    @property
    def waste(self) -> float:
        """Which part of the steps is padding."""
        steps = self._rows * self._length
        return 1 - int(self.lengths.sum()) / steps if steps else 0.0

    def _starts(self) -> Int64s:
        """(k,) where each sequence begins in its row."""
        total = offsets_of(self.lengths)
        first = np.searchsorted(self.row, np.arange(self._rows))
        return total[:-1] - total[first][self.row]

    def _places(self) -> Int64s:
        """(steps,) where each step of the sequences lies in the flat rows."""
        return expand_ranges(self.row * self._length + self._starts(), self.lengths)

    def _spread(self, steps: npt.NDArray[Any], fill: Any) -> npt.NDArray[Any]:
        flat = np.full((self._rows * self._length, *steps.shape[1:]), fill, steps.dtype)
        flat[self._places()] = steps
        return flat.reshape(self._rows, self._length, *steps.shape[1:])

    def to_padded(self, value: Any = 0) -> npt.NDArray[Any]:
        """(rows, length, ...): the sequences of a row one after another, then `value`."""
        tail = self.batch.shapes[:, 1:].max(axis=0, initial=0).tolist()
        return self._spread(self.batch.values.reshape(int(self.lengths.sum()), *tail), value)

    def positions(self) -> npt.NDArray[np.int64]:
        """(rows, length): which step of its sequence each is, counted from 0; 0 in the padding."""
        return self._spread(expand_ranges(np.zeros_like(self.lengths), self.lengths), 0)

    def segments(self) -> npt.NDArray[np.int64]:
        """(rows, length): which sequence of its row each step is of, from 1; 0 in the padding."""
        first = np.searchsorted(self.row, np.arange(self._rows))
        ordinal = np.arange(len(self.row)) - first[self.row] + 1
        return self._spread(np.repeat(ordinal, self.lengths), 0)

    def mask(self) -> npt.NDArray[np.bool_]:
        """(rows, length): True where there is data."""
        return self._spread(np.ones(int(self.lengths.sum()), np.bool_), False)

    def padded(self, name: str, field: Field | None = None) -> dict[str, npt.NDArray[Any]]:
        """`to_padded`, `segments` and `positions` as fields called after `name`, of `field`."""
        steps = self.to_padded()
        return {
            name: steps if len(self.batch) else with_sizes(steps, field),
            f"{name}_segments": self.segments(),
            f"{name}_positions": self.positions(),
        }

    @property
    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        """(k + 1,) int32: where each sequence begins in ``batch.values``, which has no padding.

        With them variable-length attention needs no rows at all.
        """
        return self.batch.cu_seqlens

"""The buffers behind `MemorySwapper`: one for rows, one for each kind of ragged array.

Strategy: a window holds consecutive rows. What is asked for and held is taken from it; where
the asking starts inside and runs over the end, the part held is kept aside and the window moves
on to the first row not held, so that walking through an array reads each row once. Anything
wider than the window goes to the node directly and leaves the window as it was. The block is
let go before the next one is read: there are never two. What is given out is always a copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sized
from typing import Any

import numpy as np

from raggedstore.arrays.base import Ragged, shaped
from raggedstore.arrays.columns import SampleTable
from raggedstore.arrays.ragged import RaggedEArray
from raggedstore.arrays.rows import Array, Rows
from raggedstore.errors import UsageError
from raggedstore.indexing import Positions
from raggedstore.units import format_bytes

__all__ = ["FlatWindow", "RowWindow", "SampleWindow", "Window", "window_over"]

_COLUMN_ROWS = 4096  # rows of each side column that a window over an EArray keeps beside it


class Window(ABC):
    """A buffer in front of an array; `reads` counts how often it went to the array."""

    reads: int = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def get(self, wanted: Positions | range) -> Any:
        """What lies at `wanted`: positions in range, or an ascending range of them."""

    @property
    @abstractmethod
    def limits(self) -> tuple[int, int]:
        """(start, stop) of what is held."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the values held."""

    @abstractmethod
    def clear(self) -> None:
        """Let go of what is held."""


class RowWindow(Window):
    """At most `capacity` consecutive rows of a node, as many of them as `until` has."""

    def __init__(self, rows: Rows, capacity: int, until: Sized | None = None) -> None:
        self._rows, self._capacity = rows, capacity
        self._until = rows if until is None else until
        self.clear()

    def __len__(self) -> int:
        return len(self._until)

    @property
    def limits(self) -> tuple[int, int]:
        return self._start, self._start + len(self._block)

    @property
    def nbytes(self) -> int:
        return self._block.nbytes

    def clear(self) -> None:
        self._start, self._block = 0, np.empty((0, *self._rows.row_shape), self._rows.dtype)

    def get(self, wanted: Positions | range) -> Array:
        if isinstance(wanted, range):
            start, stop = wanted[0], wanted[-1] + 1
            if stop - start <= self._capacity:
                return self.span(start, stop)[:: wanted.step].copy()
            self.reads += 1
            return self._rows.strided(wanted)
        start, stop = int(wanted.min()), int(wanted.max()) + 1
        if stop - start <= self._capacity:
            return np.asarray(self.span(start, stop)[wanted - start])
        self.reads += 1
        return self._rows.gather(wanted)

    def gather(self, positions: Positions) -> Array:
        """As `get`, for no positions too: what `SampleTable` reads its columns by."""
        return self.get(positions) if len(positions) else self._rows.gather(positions)

    def span(self, start: int, stop: int) -> Array:
        """Rows ``[start, stop)``, no more than the capacity; maybe a view of the block."""
        if start == stop:
            return self._block[:0]
        low, high = self.limits
        if high > len(self):  # the array was cut: what is held may not be what comes next
            self.clear()
            low = high = 0
        if low <= start and stop <= high:
            return self._block[start - low : stop - low]
        if low <= start < high:
            head = self._block[start - low :].copy()
            self._load(high)
            return np.concatenate([head, self._block[: stop - high]])
        self._load(start)
        return self._block[: stop - start]

    def _load(self, start: int) -> None:
        self.clear()
        self.reads += 1
        stop = min(start + self._capacity, len(self))
        self._block, self._start = self._rows.read(start, stop), start


class FlatWindow(Window):
    """A budget of the values of a `RaggedEArray`, whatever samples they belong to.

    The window is over the flat data and may end within a sample, the rest of which comes with
    the next block: each value is read once, and a block is always full. The side columns are
    read through small windows of their own, which the budget does not count.
    """

    def __init__(self, source: RaggedEArray, budget: int) -> None:
        values, places, shapes = (Rows(node) for node in source.nodes)
        self._source, self._capacity = source, budget // source.dtype.itemsize
        self._values = RowWindow(values, self._capacity)
        # Rows past the last sample are half of an append that was cut short: the next append
        # replaces them, so they must not be held.
        self._columns = [
            RowWindow(column, _COLUMN_ROWS, until=source) for column in (places, shapes)
        ]
        self._table = SampleTable(self._columns[1], self._columns[0], values)
        self._first = 0  # no sample before this one is held whole

    def __len__(self) -> int:
        return len(self._source)

    @property
    def limits(self) -> tuple[int, int]:
        low, high = self._values.limits
        if low == high:
            return 0, 0
        stop = self._first
        while stop < len(self):
            positions = np.arange(stop, min(stop + _COLUMN_ROWS, len(self)), dtype=np.int64)
            bounds = self._table.bounds(positions)
            outside = np.flatnonzero((bounds.starts < low) | (bounds.stops > high))
            if len(outside):
                return self._first, stop + int(outside[0])
            stop += len(positions)
        return self._first, stop

    @property
    def nbytes(self) -> int:
        return self._values.nbytes

    def clear(self) -> None:
        for window in (self._values, *self._columns):
            window.clear()
        self._first = 0

    def get(self, wanted: Positions | range) -> list[Array]:
        positions = np.asarray(wanted, np.int64)
        bounds = self._table.bounds(positions)
        start, stop = int(bounds.starts.min()), int(bounds.stops.max())
        if stop - start > self._capacity:
            self.reads += 1
            return self._source.read(positions)
        before = self._values.reads
        block = self._values.span(start, stop)
        if self._values.reads > before:
            self.reads += 1
            self._first = self._first_whole(positions)
        return [
            shaped(block[at - start : at - start + size], shape, int(number))
            for at, size, shape, number in zip(
                bounds.starts, bounds.sizes, bounds.shapes, positions, strict=True
            )
        ]

    def _first_whole(self, positions: Positions) -> int:
        """The first sample from those just read on that does not start before the block."""
        between = np.arange(positions.min(), positions.max() + 1, dtype=np.int64)
        whole = np.flatnonzero(self._table.bounds(between).starts >= self._values.limits[0])
        return int(between[whole[0]]) if len(whole) else int(between[-1]) + 1


class SampleWindow(Window):
    """As many whole samples of a `RaggedVLArray` as a budget allows: a row is read whole."""

    def __init__(self, source: Ragged, budget: int) -> None:
        self._source, self._budget = source, budget
        self.clear()

    def __len__(self) -> int:
        return len(self._source)

    @property
    def limits(self) -> tuple[int, int]:
        return self._start, self._start + len(self._samples)

    @property
    def nbytes(self) -> int:
        return sum(sample.nbytes for sample in self._samples)

    def clear(self) -> None:
        self._start = 0
        self._samples: list[Array] = []

    def get(self, wanted: Positions | range) -> list[Array]:
        positions = np.asarray(wanted, np.int64)
        start, stop = int(positions.min()), int(positions.max()) + 1
        low, high = self.limits
        if high > len(self):
            self.clear()
            low = high = 0
        held = self._samples[start - low : stop - low] if low <= start < high else []
        if start + len(held) < stop:
            if self._source.reach(start, self._budget) < stop:
                self.reads += 1
                return self._source.read(positions)
            rest = start + len(held)
            self._load(rest)
            held = held + self._samples[: stop - rest]
        return [held[at].copy() for at in (positions - start).tolist()]

    def _load(self, start: int) -> None:
        self.clear()
        self.reads += 1
        stop = self._source.reach(start, self._budget)
        self._samples = self._source.read(np.arange(start, stop, dtype=np.int64))
        self._start = start


def window_over(source: Any, budget: int) -> Window:
    """The kind of window that `source` needs.

    Raises
    ------
    UsageError
        Not one row or sample fits into the budget, or `source` is nothing that has rows.
    """
    if not isinstance(source, Ragged):
        rows = Rows(source)
        if budget < max(rows.row_bytes, 1):
            raise UsageError(
                f"a budget of {format_bytes(budget)} is less than one row "
                f"({format_bytes(rows.row_bytes)})"
            )
        return RowWindow(rows, budget // max(rows.row_bytes, 1))
    if budget < source.dtype.itemsize or not _any_fits(source, budget):
        raise UsageError(
            f"a budget of {format_bytes(budget)} is less than any sample of {source!r}"
        )
    if isinstance(source, RaggedEArray):
        return FlatWindow(source, budget)
    return SampleWindow(source, budget)


def _any_fits(source: Ragged, budget: int) -> bool:
    """Whether some sample with values in it is within the budget (or there is none yet)."""
    start, seen = 0, False
    while start < len(source):
        sizes = source.sizes(start, start + _COLUMN_ROWS) * source.dtype.itemsize
        if ((sizes > 0) & (sizes <= budget)).any():
            return True
        seen = seen or bool((sizes > 0).any())
        start += len(sizes)
    return not seen

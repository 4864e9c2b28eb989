"""Memory traded for speed: a buffer of a given size in front of an array on disk.

Strategy: a key becomes an ascending range or an array of positions, both within bounds; a
window (`windows.py`) gives what lies there, from its block or by reading; what a request cost
the window in reads is what tells a hit from a miss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from raggedstore.arrays.base import Ragged
from raggedstore.arrays.rows import Rows
from raggedstore.arrays.windows import window_over
from raggedstore.errors import UsageError
from raggedstore.indexing import Positions, as_position, as_positions, is_single
from raggedstore.units import format_bytes, parse_bytes

__all__ = ["MemorySwapper"]


class MemorySwapper:
    """Reads an array through a buffer that is refilled, a whole budget at a time, on a miss.

    Reading on from a position costs one read per budget and not one per slice. A request that
    spans more than the budget is read directly and leaves the buffer alone.

    Parameters
    ----------
    source : PyTables EArray, CArray or Array; h5py dataset; RaggedEArray, RaggedVLArray
        Or any array-like with ``shape``, ``dtype`` and slices.
    budget : int or str
        Bytes of decoded values that the buffer may hold, as many as there are whatever the
        dtype; at least one row. Of a ragged array, the values of samples are counted.

    Attributes
    ----------
    hits, misses : int
        Requests answered from the buffer alone, and requests that had to read.

    Notes
    -----
    What is returned is the caller's own: later reads never change it, and changing it changes
    nothing here. Rows appended to the source are seen at once; rows overwritten in place while
    they are held are not, until `clear`. Not for use from several threads at once, as little
    as PyTables is.

    Examples
    --------
    >>> import numpy as np
    >>> s = MemorySwapper(np.arange(10, dtype="uint8"), budget=4)
    >>> s[2:4].tolist(), s[5], s.limits, s.hits, s.misses
    ([2, 3], np.uint8(5), (2, 6), 1, 1)
    """

    def __init__(self, source: Any, budget: int | str = "64MB") -> None:
        self.source = source
        self.budget = parse_bytes(budget, what="budget")
        self._window = window_over(source, self.budget)
        self._rows = None if isinstance(source, Ragged) else Rows(source)
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._window)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is returned."""
        found: np.dtype[Any] = self.source.dtype if self._rows is None else self._rows.dtype
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's shape; of a ragged array, the number of samples only."""
        return (len(self), *(() if self._rows is None else self._rows.row_shape))

    @property
    def shapes(self) -> Positions:
        """(n, d) int64: the shape of each sample of a ragged array.

        Raises
        ------
        UsageError
            The source is no ragged array: its rows have one shape, which `shape` tells.
        """
        return np.asarray(self._ragged().shapes)

    @property
    def lengths(self) -> Positions:
        """(n,) int64: the first dimension of each sample of a ragged array.

        Raises
        ------
        UsageError
            As for `shapes`.
        """
        return np.asarray(self._ragged().lengths)

    @property
    def limits(self) -> tuple[int, int]:
        """(start, stop) of the rows, or whole samples, that the buffer holds."""
        return self._window.limits

    @property
    def nbytes(self) -> int:
        """Bytes of the values that the buffer holds: never more than the budget."""
        return self._window.nbytes

    def clear(self) -> None:
        """Let go of what the buffer holds."""
        self._window.clear()

    def __getitem__(self, key: Any) -> Any:
        """As the source's own: one row or sample for an int, several for anything else.

        Raises
        ------
        OutOfRangeError, KeyTypeError
            As `raggedstore.indexing` has it.
        """
        if is_single(key):
            position = as_position(key, len(self), what=self._what)
            return self._get(range(position, position + 1))[0]
        if isinstance(key, slice):
            try:
                wanted = range(*key.indices(len(self)))
            except (TypeError, ValueError):
                return as_positions(key, len(self), what=self._what)  # raises, as everywhere
            found = self._get(wanted if wanted.step > 0 else wanted[::-1])
            return found if wanted.step > 0 else found[::-1]
        return self._get(as_positions(key, len(self), what=self._what))

    def __iter__(self) -> Iterator[Any]:
        position = 0
        while position < len(self):  # asked anew each time: rows appended meanwhile are seen
            yield self[position]
            position += 1

    def __repr__(self) -> str:
        start, stop = self.limits
        return (
            f"<MemorySwapper of {format_bytes(self.budget)} over {self.source!r}: holds "
            f"[{start}, {stop}), {self.hits} hits, {self.misses} misses>"
        )

    def _ragged(self) -> Ragged:
        if isinstance(self.source, Ragged):
            return self.source
        raise UsageError("only ragged arrays have shapes and lengths; this array's rows are alike")

    @property
    def _what(self) -> str:
        return "sample" if self._rows is None else "row"

    def _get(self, wanted: Positions | range) -> Any:
        if len(wanted) == 0:
            return [] if self._rows is None else self._rows.read(0, 0)
        before = self._window.reads
        found = self._window.get(wanted)
        if self._window.reads == before:
            self.hits += 1
        else:
            self.misses += 1
        return found

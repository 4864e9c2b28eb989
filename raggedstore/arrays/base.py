"""What both kinds of ragged array share: indexing, iteration, shapes, and checking what is added.

Strategy: an index becomes positions, positions are read by the kind at hand, and everything
that is added is converted and checked before any of it is written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from raggedstore.arrays.casting import as_sample
from raggedstore.arrays.columns import Extents, SampleTable
from raggedstore.arrays.rows import Array, Rows
from raggedstore.errors import CorruptionError, UsageError
from raggedstore.indexing import Positions, as_position, as_positions, is_single
from raggedstore.units import format_bytes

__all__ = ["BLOCK_BYTES", "Ragged", "shaped"]

BLOCK_BYTES = 4 * 2**20  # decoded values that are read at once, unless one sample is more
_BLOCK_SAMPLES = 1024


def shaped(flat: Array, shape: Positions, number: int) -> Array:
    """A copy of `flat` values in the sample's shape.

    Raises
    ------
    CorruptionError
        They are not as many, or no array can have that shape.
    """
    try:
        return flat.reshape(shape.tolist()).copy()
    except ValueError as error:
        raise CorruptionError(f"sample {number}: {error}") from None


class Ragged(ABC):
    """What both kinds of ragged array share: indexing, iteration, shapes."""

    _table: SampleTable
    _shapes: Rows
    data: Any
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return len(self._table)

    @property
    def ndim(self) -> int:
        """Dimensions of every sample."""
        return self._shapes.row_shape[0]

    @property
    def shapes(self) -> Positions:
        """(n, d) int64: the shape of each sample."""
        return self._extents().shapes

    @property
    def lengths(self) -> Positions:
        """(n,) int64: the first dimension of each sample."""
        return self.shapes[:, 0].copy()

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the values, decoded."""

    def __getitem__(self, key: Any) -> Any:
        """One sample for an int; a list of them for a slice, an index array or a mask.

        Raises
        ------
        OutOfRangeError, KeyTypeError
            As `raggedstore.indexing` has it.
        CorruptionError
            The side columns or the data of a sample asked for are damaged.
        """
        if is_single(key):
            return self.read(np.array([as_position(key, len(self))], np.int64))[0]
        return self.read(as_positions(key, len(self)))

    def __iter__(self) -> Iterator[Array]:
        start = 0
        while start < len(self):  # asked anew each time: samples appended meanwhile are seen
            stop = max(self.reach(start, BLOCK_BYTES, most=_BLOCK_SAMPLES), start + 1)
            yield from self.read(np.arange(start, stop, dtype=np.int64))
            start = stop

    def sizes(self, start: int, stop: int) -> Positions:
        """How many values each of the samples ``[start, stop)`` has, as far as there are any."""
        positions = np.arange(start, min(stop, len(self)), dtype=np.int64)
        return self._table.extents(positions).sizes

    def reach(self, start: int, budget: int, *, most: int | None = None) -> int:
        """Where samples from `start` first hold more than `budget` bytes, or end.

        With `most`, no further than that many samples on.
        """
        end = len(self) if most is None else min(start + most, len(self))
        held = 0
        for first in range(start, end, _BLOCK_SAMPLES):
            sizes = self.sizes(first, min(first + _BLOCK_SAMPLES, end))
            total = held + np.cumsum(sizes * self.dtype.itemsize)
            within = int(np.searchsorted(total, budget, side="right"))
            if within < len(sizes):
                return first + within
            held = int(total[-1])
        return end

    def _extents(self) -> Extents:
        return self._table.extents(np.arange(len(self), dtype=np.int64))

    @abstractmethod
    def read(self, positions: Positions) -> list[Array]:
        """The samples at `positions`, which are in range."""

    def append(self, sample: Any) -> None:
        """Add one sample: any array-like of `ndim` dimensions that converts without loss.

        Raises
        ------
        SampleError
            It has another number of dimensions; nothing is written.
        SampleTypeError
            Its values do not convert; nothing is written.
        """
        self._write([as_sample(sample, self.dtype, self.ndim, what=f"sample {len(self)}")])

    def extend(self, samples: Iterable[Any]) -> None:
        """Add many samples, all of them or, where one does not fit, none.

        Raises
        ------
        SampleError, SampleTypeError
            As for `append`; the message has the number that the sample would have got.
        """
        arrays = [
            as_sample(sample, self.dtype, self.ndim, what=f"sample {number}")
            for number, sample in enumerate(samples, start=len(self))
        ]
        if arrays:
            self._write(arrays)

    @abstractmethod
    def _write(self, arrays: list[Array]) -> None: ...

    @property
    @abstractmethod
    def nodes(self) -> list[Any]:
        """The nodes it lies in: the data, then the side columns."""

    def flush(self) -> None:
        """Hand what was appended to the file (which is not yet to have it safe on disk)."""
        for node in self.nodes:
            node.flush()

    def _check_growing(self) -> None:
        if self.data._v_file.mode == "r":
            raise UsageError(f"{self!r} cannot grow: its file was opened to read")
        for node in self.nodes:
            if getattr(node, "extdim", 0) != 0:  # a CArray or Array has -1
                raise UsageError(f"{self!r} cannot grow: {node._v_pathname} has a fixed size")

    def __repr__(self) -> str:
        if not self.data._v_isopen:
            return f"<{type(self).__name__} of a closed file>"
        return (
            f"<{type(self).__name__} {self.data._v_pathname!r}: {len(self)} samples of "
            f"{self.ndim} dimensions, {self.dtype}, {format_bytes(self.nbytes)}>"
        )

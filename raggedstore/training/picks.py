"""What a batch is made of before it is read: which samples, and which part of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import expand_ranges
from raggedstore.errors import UsageError

__all__ = ["Batches", "Picks", "names_of"]

Int64s = npt.NDArray[np.int64]

_NONE = np.zeros(0, np.int64)


def names_of(fields: Any, what: str) -> str | tuple[str, ...]:
    """The name of a field, or several, that `what` is of; UsageError where it is none."""
    names = tuple(fields) if isinstance(fields, (list, tuple)) else (fields,)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"{what} wants the name of a field, or a list of them, got {fields!r}")
    return names if isinstance(fields, (list, tuple)) else names[0]


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """Samples, whole or in part.

    Parameters
    ----------
    positions
        (k,) int64 which samples.
    starts, stops
        (k,) int64 which rows of the batching rule's fields; None where samples are whole.
    rows
        (k,) int64 in which row of the batch each goes, where a batch has rows.
    turns
        (k,) int64 which of its turns in the epoch it is, where a sample may have several; None
        where it has one, number 0. What is random about a sample is so anew in each turn.
    """

    positions: Int64s
    starts: Int64s | None = None
    stops: Int64s | None = None
    rows: Int64s | None = None
    turns: Int64s | None = None

    @classmethod
    def none(cls) -> Picks:
        """No samples."""
        return cls(_NONE)

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, index: Any) -> Picks:
        """Those at `index`: an index array or a slice."""
        return Picks(*(None if a is None else a[index] for a in self._arrays()))  # type: ignore[arg-type]

    def _arrays(self) -> tuple[Int64s | None, ...]:
        return self.positions, self.starts, self.stops, self.rows, self.turns

    @classmethod
    def join(cls, parts: Sequence[Picks]) -> Picks:
        """All of several, which are alike in what they say; of empty ones nothing counts."""
        full = [part for part in parts if len(part)]
        if len(full) <= 1:
            return full[0] if full else cls.none()
        columns = zip(*(part._arrays() for part in full), strict=True)
        return cls(*(None if c[0] is None else np.concatenate(c) for c in columns))  # type: ignore[arg-type]

    def to_json(self) -> list[list[int] | None]:
        """As plain lists."""
        return [None if array is None else array.tolist() for array in self._arrays()]

    @classmethod
    def from_json(cls, lists: Any) -> Picks:
        """What `to_json` gave; UsageError where it can not have."""
        try:
            arrays = [None if numbers is None else _ints(numbers) for numbers in lists]
            positions, *others = arrays
            if positions is None or len(others) != 4 or positions.ndim != 1:
                raise ValueError
            if any(a is not None and a.shape != positions.shape for a in others):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise UsageError("a state's carried samples are damaged") from None
        return cls(positions, *others)


def _ints(numbers: Any) -> Int64s:
    array = np.array(numbers, np.int64)
    if array.size and np.array(numbers).dtype.kind != "i":  # 1.5 would be taken for 1
        raise ValueError
    return array


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """Batches, one after another.

    Parameters
    ----------
    picks
        (k,) what is in them, batch by batch.
    edges
        (m + 1,) int64: batch i is ``picks[edges[i]:edges[i + 1]]``.
    """

    picks: Picks
    edges: Int64s

    @classmethod
    def none(cls) -> Batches:
        """No batches."""
        return cls(Picks.none(), np.zeros(1, np.int64))

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def sizes(self) -> Int64s:
        """(m,) samples in each."""
        sizes: Int64s = np.diff(self.edges)
        return sizes

    def take(self, which: Int64s) -> Batches:
        """The batches at the (j,) indices `which`."""
        sizes = self.sizes[which]
        index = expand_ranges(self.edges[:-1][which], sizes)
        return Batches(self.picks.take(index), np.concatenate([[0], np.cumsum(sizes)]))

    def span(self, start: int, stop: int) -> Batches:
        """Batches `start` to `stop`, as views."""
        edges = self.edges[start : stop + 1]
        first = int(edges[0])
        return Batches(self.picks.take(slice(first, int(edges[-1]))), edges - first)

    @classmethod
    def join(cls, parts: Sequence[Batches]) -> Batches:
        """All batches of several."""
        full = [part for part in parts if len(part)]
        if len(full) <= 1:
            return full[0] if full else cls.none()
        sizes = np.concatenate([part.sizes for part in full])
        edges = np.concatenate([[0], np.cumsum(sizes)])
        return cls(Picks.join([part.picks for part in full]), edges)

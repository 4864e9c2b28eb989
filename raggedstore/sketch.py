"""`Sketch`: quantiles of more values than fit into memory, with an error that is proven.

Values are kept in levels: one in level l stands for 2**l values. A level that outgrows its
capacity is sorted and every second of its values goes up a level, the first, third … or the
second, fourth … in turn; the others are dropped. That is the buffer collapse of Munro and Paterson
(1980) and of Manku, Rajagopalan and Lindsay (1998), in the form of Agarwal et al., "Mergeable
summaries" (2012), where any two sketches merge.

The error: a value's rank is estimated by the weights of the kept values up to it, and a collapse of
level l changes that by 2**l at most, whatever is collapsed. A collapse takes at least as many
values as the capacity k, each standing for 2**l of n; so level l collapses at most n / (k 2**l)
times and adds at most n / k. A level that collapses holds k 2**l <= n, so there are at most
log2(n / k) + 1 of them, and the rank is off by at most n (log2(n / k) + 1) / k. `capacity_for`
solves that for k. No chance is involved, and in any order of merging it holds; `Sketch.error`
counts what the collapses that took place have cost, which is less.

Many groups of equally many values, such as the pixels of a film, share their levels: one row each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Sketch", "capacity_for"]

Floats = npt.NDArray[np.float64]


def capacity_for(error: float, count: int) -> int:
    """How many values a level must hold, for ranks among `count` that are off by `error` of it."""
    capacity = 2
    while capacity < count and (math.floor(math.log2(count / capacity)) + 1) / capacity > error:
        capacity = math.ceil(capacity * 1.02) + 1
    return capacity


@dataclass(frozen=True, slots=True)
class Sketch:
    """Sorted samples of the values of some groups; see the module's text.

    Attributes
    ----------
    capacity : values of a group that a level holds
    levels : (groups, m) float64 each, NaN for a value that is absent
    collapses : of each level, how many there were
    present : (groups,) int64, values that are not absent
    spoilt : (groups,) bool, where a NaN was met that is not absent: any quantile is NaN
    """

    capacity: int
    levels: tuple[Floats, ...]
    collapses: tuple[int, ...]
    present: npt.NDArray[np.int64]
    spoilt: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        values: npt.NDArray[Any],
        capacity: int,
        absent: npt.NDArray[np.bool_] | None = None,
    ) -> Sketch:
        """That of (groups, n) real `values`, taken as float64, but for those that are `absent`."""
        groups, count = values.shape
        present = np.full(groups, count, np.int64)
        spoilt = np.zeros(groups, np.bool_)
        if values.dtype.kind == "f":
            nan = np.isnan(values)
            spoilt = np.any(nan if absent is None else nan & ~absent, axis=1)
        if absent is not None:
            present -= absent.sum(axis=1)
            values = np.where(absent, np.nan, values)
        # Sorted as they are: float32 in half the time.
        level = np.sort(values, axis=1)
        return cls(capacity, (level,), (0,), present, spoilt)._collapsed(in_order=True)

    @property
    def error(self) -> int:
        """By how much a rank is off at most."""
        return sum(times << level for level, times in enumerate(self.collapses))

    def merge(self, other: Sketch) -> Sketch:
        """That of the values of both, which have the same capacity and groups."""
        depth = max(len(self.levels), len(other.levels))
        none = np.empty((len(self.present), 0))
        return Sketch(
            self.capacity,
            tuple(
                np.concatenate([_at(self.levels, i, none), _at(other.levels, i, none)], axis=1)
                for i in range(depth)
            ),
            tuple(_at(self.collapses, i, 0) + _at(other.collapses, i, 0) for i in range(depth)),
            self.present + other.present,
            self.spoilt | other.spoilt,
        )._collapsed()

    def _collapsed(self, *, in_order: bool = False) -> Sketch:
        """The same, with no level above its capacity; the first may be in order."""
        levels, collapses = list(self.levels), list(self.collapses)
        level = 0
        while level < len(levels):
            if levels[level].shape[1] > self.capacity:
                if level + 1 == len(levels):
                    levels.append(np.empty((len(self.present), 0)))
                    collapses.append(0)
                # NaN, for what is absent, comes last, so it is in the way of no rank.
                ordered = levels[level] if in_order else np.sort(levels[level], axis=1)
                even = ordered.shape[1] // 2 * 2
                up = ordered[:, collapses[level] % 2 : even : 2]
                levels[level] = ordered[:, even:].copy()
                in_order = not levels[level + 1].size
                levels[level + 1] = np.concatenate([levels[level + 1], up], axis=1)
                collapses[level] += 1
            else:
                in_order = False
            levels[level] = levels[level].astype(np.float64, copy=False)
            level += 1
        return Sketch(self.capacity, tuple(levels), tuple(collapses), self.present, self.spoilt)

    def quantiles(self, q: npt.ArrayLike) -> Floats:
        """(groups, ...) values of rank `q` times their number, for `q` from 0 to 1.

        As NumPy's method "inverted_cdf", exactly so where nothing was collapsed: a value that
        occurs, the smallest that so many values are not above. NaN where there are no values.
        """
        wanted = np.asarray(q, np.float64)
        values = np.concatenate(self.levels, axis=1)
        if not values.shape[1]:
            return np.full((len(values), *wanted.shape), np.nan)
        weights = np.repeat(
            [1 << i for i in range(len(self.levels))], [one.shape[1] for one in self.levels]
        )
        order = np.argsort(values, axis=1)
        values = np.take_along_axis(values, order, axis=1)
        ranks = np.cumsum(weights[order], axis=1)
        last = np.maximum((~np.isnan(values)).sum(axis=1, keepdims=True) - 1, 0)
        out = np.empty((len(values), wanted.size))
        for column, each in enumerate(wanted.ravel()):
            place = (ranks < (each * self.present)[:, None]).sum(axis=1, keepdims=True)
            place = np.minimum(place, last)
            out[:, column] = np.take_along_axis(values, place, axis=1)[:, 0]
        out[self.spoilt | (self.present == 0)] = np.nan
        return out.reshape(len(values), *wanted.shape)


def _at(items: tuple[Any, ...], index: int, default: Any) -> Any:
    return items[index] if index < len(items) else default

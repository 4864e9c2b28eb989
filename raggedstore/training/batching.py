"""Batching rules: which samples, of those that an order plans together, make a batch.

A rule sees one unit at a time (`orders.py`): the samples in their order, and the shapes of those of
the field that it is about. It gives back batches, and what it has left over for the next unit, so
that only the last batches of an epoch need be short. It reads no data, and it remembers nothing:
what is left over is handed to it again, which is what makes an epoch go on from anywhere.
"""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError
from raggedstore.indexing import at_least, stable_order
from raggedstore.schema import Schema
from raggedstore.training.keys import Key, shuffled
from raggedstore.training.picks import Batches, Picks

__all__ = ["Bucketed", "FixedSize", "Pool", "Rule", "TokenBudget", "at_least"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What a rule makes batches of.

    Parameters
    ----------
    left
        (l,) what was left over.
    fresh
        (f,) the unit's samples in their order.
    turns
        (f,) of which `Picks.turns` they are, or None.
    sizes
        (l + f, r) the ragged dimensions of each sample in the rule's (first) field, the first one
        first; None for a rule without a field.
    key
        What batches are shuffled by; None where they keep the samples' order.
    last
        Whether no other unit follows.
    drop_last
        Whether to leave out what makes no whole batch at the end.
    """

    left: Picks
    fresh: Int64s
    turns: Int64s | None
    sizes: Int64s | None
    key: Key | None
    last: bool
    drop_last: bool

    @property
    def takes_all(self) -> bool:
        """Whether samples that make no whole batch are to make one all the same."""
        return self.last and not self.drop_last

    @property
    def picks(self) -> Picks:
        """(l + f,) what was left over, then the unit's samples, all of them whole."""
        return Picks(self.positions, turns=self.all_turns)

    @property
    def positions(self) -> Int64s:
        """(l + f,) what was left over, then the unit's samples."""
        if not len(self.left):
            return self.fresh
        return np.concatenate([self.left.positions, self.fresh])

    @property
    def all_turns(self) -> Int64s | None:
        """(l + f,) of which turns those are, or None."""
        if self.turns is None or self.left.turns is None:
            return self.turns if not len(self.left) else self.left.turns
        return np.concatenate([self.left.turns, self.turns])


class Rule(ABC):
    """What makes a batch."""

    #: Whether each batch has a part for every process, rather than being one process's.
    shared: ClassVar[bool] = False
    #: Whether it cuts samples of its fields into parts, which then come as values and not as text.
    cuts: ClassVar[bool] = False
    #: What it adds to a batch beside the fields.
    adds: ClassVar[tuple[str, ...]] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that it is about; the lengths of the first one decide."""
        return ()

    @property
    @abstractmethod
    def pool(self) -> int:
        """How many samples it would have together."""

    @property
    def multiple_of(self) -> int:
        """What its fields are padded to a multiple of, where batches are padded."""
        return 1

    def check(self, schema: Schema) -> None:
        """UsageError where the rule does not suit samples of `schema`."""
        for name in self.fields:
            if None not in schema[name].shape:
                raise UsageError(f"{self!r}: field {name!r} has no ragged dimension")

    def measure(self, sizes: Callable[[], Int64s], world_size: int) -> dict[str, Any]:
        """What it decides from a look at the samples, to be kept: plain JSON.

        Parameters
        ----------
        sizes
            Gives the (k, r) ragged dimensions of some samples from all over.
        """
        return {}

    def check_geometry(self, geometry: dict[str, Any]) -> None:  # noqa: B027  (most have none)
        """UsageError, KeyError or TypeError where it is none that `measure` could have given."""

    def check_left(self, left: Picks, geometry: dict[str, Any]) -> None:
        """UsageError where `plan` could not have left this over: the picks of another rule, say."""
        if any(column is not None for column in (left.starts, left.stops, left.rows)):
            raise UsageError("whole samples are left over, and not parts of them")

    @abstractmethod
    def plan(self, pool: Pool, geometry: dict[str, Any]) -> tuple[Batches, Picks]:
        """The batches of a unit, and what is left over."""

    def share(self, world_size: int, geometry: dict[str, Any]) -> int:
        """Where batches are shared: how many rows of each are one process's."""
        return 0

    def count(self, samples: int, *, drop_last: bool) -> int | None:
        """How many batches `samples` make; None where that depends on what they are."""
        return None

    def dress(self, columns: dict[str, Any], picks: Picks) -> dict[str, Any]:
        """A batch's columns with what the rule makes of them; `picks` is what is in the batch."""
        return columns


_MOST_BUCKETS = 2**16


@dataclass(frozen=True, slots=True)
class FixedSize(Rule):
    """Batches of `size` samples, in the order in which they come.

    The last of an epoch may have fewer.

    Parameters
    ----------
    size
        Samples in a batch, at least 1.
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", at_least(1, self.size, "a batch's size"))

    @property
    def pool(self) -> int:
        return max(2**16, self.size)

    def plan(self, pool: Pool, geometry: dict[str, Any]) -> tuple[Batches, Picks]:
        return _cut(pool.picks, self.size, pool)

    def count(self, samples: int, *, drop_last: bool) -> int | None:
        return samples // self.size if drop_last else -(-samples // self.size)


def _cut(picks: Picks, size: int, pool: Pool) -> tuple[Batches, Picks]:
    """Batches of `size`, and the rest."""
    whole = len(picks) // size * size
    edges = np.arange(0, whole + 1, size, dtype=np.int64)
    if not pool.last:
        return Batches(picks.take(slice(whole)), edges), picks.take(slice(whole, None))
    if whole == len(picks) or pool.drop_last:
        return Batches(picks.take(slice(whole)), edges), Picks.none()
    return Batches(picks, np.append(edges, len(picks))), Picks.none()


@dataclass(frozen=True, slots=True)
class TokenBudget(Rule):
    """Batches of as many samples as make up to `max_values` values.

    Parameters
    ----------
    field
        The field whose values are counted: along its ragged dimensions, so that a step of a
        ``(None, 80)`` field is one value, and so is a pixel of a ``(None, None, 3)`` one. A sample
        without values counts as one.
    max_values
        The most values in a batch. A sample that is larger makes a batch of its own.
    multiple_of
        Padded lengths are counted as the next multiple of this (pad to it as well).
    padded
        Count values as they are once the batch is padded to its longest sample. Samples planned
        together (a window of `Shuffled`) are then batched by length and the batches shuffled, so
        that little is padded. With False samples keep their order, and what counts is the sum.
    """

    field: str
    max_values: int
    multiple_of: int = 1
    padded: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_values", at_least(1, self.max_values, "max_values"))
        object.__setattr__(self, "multiple_of", at_least(1, self.multiple_of, "multiple_of"))

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    @property
    def pool(self) -> int:
        return 2**12

    def plan(self, pool: Pool, geometry: dict[str, Any]) -> tuple[Batches, Picks]:
        assert pool.sizes is not None
        sizes = np.maximum(pool.sizes, 1)
        batches = self._padded(pool, sizes) if self.padded else self._in_order(pool, sizes)
        # Of both the first samples are in batches, and the last to come are left.
        left = Picks.none() if pool.last else pool.picks.take(slice(len(batches.picks), None))
        return batches, left

    def _in_order(self, pool: Pool, sizes: Int64s) -> Batches:
        values = sizes.prod(axis=1)
        total = np.concatenate([[0], np.cumsum(values)])
        edges = [0]
        while edges[-1] < len(values):
            start = edges[-1]
            stop = int(np.searchsorted(total, total[start] + self.max_values, "right")) - 1
            edges.append(max(stop, start + 1))
        if not pool.takes_all and len(edges) > 1:
            filled = total[-1] - total[edges[-2]]
            edges = edges if filled >= self.max_values else edges[:-1]
        return Batches(pool.picks.take(slice(edges[-1])), np.array(edges, np.int64))

    def _padded(self, pool: Pool, sizes: Int64s) -> Batches:
        order = _by_volume(sizes)
        sizes[:, 0] = -(-sizes[:, 0] // self.multiple_of) * self.multiple_of
        if not pool.takes_all:
            order = order[order < self._filling(sizes, order)]
        edges = self._cut(sizes[order])
        return _mixed(Batches(pool.picks.take(order), edges), order, pool)

    def _filling(self, sizes: Int64s, order: Int64s) -> int:
        """How many of the first samples make batches of which none has much room left.

        So it is the last to come that have to wait. If it were what is in the last batch, the
        longest would wait until the end of each epoch, and `drop_last` would leave them out.
        """
        edges = self._cut(sizes[order])
        if len(edges) < 2:
            return 0
        last = sizes[order[edges[-2] :]]
        if (len(last) + 1) * int(last.max(axis=0).prod()) > self.max_values:
            return len(order)

        def parts(count: int) -> int:
            return len(self._cut(sizes[order[order < count]]))

        # It is not far from the end, most often by less than a batch's worth.
        high, step = len(order), -(-len(order) // (len(edges) - 1))
        while (low := max(high - step, 0)) and parts(low) >= len(edges):
            high, step = low, 2 * step
        return bisect.bisect_left(range(high), len(edges), low, key=parts) - 1

    def _cut(self, sizes: Int64s) -> Int64s:
        """As many samples at a time as fit when all are padded to the largest of each dimension."""
        edges, step = [0], 64
        if sizes.shape[1] == 1:
            # The longest is the last: it says how many fit, and so do all of about its length.
            fit = np.maximum(self.max_values // sizes[:, 0], 1)
            runs = np.flatnonzero(np.diff(fit, prepend=0, append=0)).tolist()
            for start, stop in itertools.pairwise(runs):
                many = int(fit[start])
                edges += range(max(edges[-1] + many, start), stop, many)
            return np.array([*edges, len(sizes)] if len(sizes) else edges, np.int64)
        while edges[-1] < len(sizes):
            start, taken = edges[-1], 1
            while True:  # look at twice as many until one is too much
                largest = np.maximum.accumulate(sizes[start : start + step], axis=0)
                values = largest.prod(axis=1) * np.arange(1, len(largest) + 1)
                taken = int(np.searchsorted(values, self.max_values, "right"))
                if taken < step or start + step >= len(sizes):
                    break
                step *= 2
            edges.append(start + max(taken, 1))
            step = max(2 * taken, 16)
        return np.array(edges, np.int64)


def _by_volume(sizes: Int64s) -> Int64s:
    """The order from the fewest values to the most, those of as many as they stand."""
    return stable_order(sizes.prod(axis=1))


def _mixed(batches: Batches, places: Int64s, pool: Pool) -> Batches:
    """The batches in random order, or without a key by the first sample of each.

    `places` says where each sample stood.
    """
    which = np.arange(len(batches), dtype=np.int64)
    if not len(which):
        return batches
    if pool.key is not None:
        return batches.take(shuffled(which, pool.key))
    first = np.minimum.reduceat(places[: len(batches.picks)], batches.edges[:-1])
    return batches.take(np.argsort(first, kind="stable"))


@dataclass(frozen=True, slots=True)
class Bucketed(Rule):
    """Batches of `size` samples of about the same length, in random order.

    Samples planned together (a window of `Shuffled`) are sorted by length and cut into batches,
    and the batches shuffled; every batch but the last is whole. With `edges` or `quantiles` no
    batch has samples of two buckets, and at the end of an epoch each bucket may have a short one.
    With a loader's `drop_last` those are left out, and so of a bucket with few samples all of them.

    Parameters
    ----------
    field
        The field whose length counts: its first dimension, or, where others are ragged too, the
        product of the ragged ones.
    size
        Samples in a batch.
    edges
        Lengths at which buckets begin, rising: ``[100, 200]`` makes three buckets, up to 99, 100
        to 199 and from 200.
    quantiles
        How many buckets of about as many values each to make, instead of edges; they are found by a
        look at up to 1,024 samples.
    """

    field: str
    size: int
    edges: Sequence[int] | None = None
    quantiles: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", at_least(1, self.size, "a batch's size"))
        if self.edges is not None:
            if self.quantiles is not None:
                raise UsageError("buckets have edges or quantiles, not both")
            given: Any = self.edges
            if not isinstance(given, Iterable):
                raise UsageError(f"edges are ints that rise, got {given!r}")
            edges = tuple(at_least(0, edge, "an edge") for edge in given)
            if any(a >= b for a, b in itertools.pairwise(edges)):
                raise UsageError(f"edges must rise, got {list(edges)}")
            object.__setattr__(self, "edges", edges)
        if self.quantiles is not None:
            object.__setattr__(self, "quantiles", at_least(1, self.quantiles, "quantiles"))
            if self.quantiles > _MOST_BUCKETS:
                raise UsageError(f"quantiles must be at most {_MOST_BUCKETS}, got {self.quantiles}")

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    @property
    def pool(self) -> int:
        return min(max(32 * self.size, 2**12), 2**16)

    @property
    def _has_buckets(self) -> bool:
        return self.edges is not None or self.quantiles is not None

    def measure(self, sizes: Callable[[], Int64s], world_size: int) -> dict[str, Any]:
        if not self._has_buckets:
            return {}
        if self.edges is not None:
            return {"edges": list(self.edges)}
        assert self.quantiles is not None
        volumes = np.sort(sizes().prod(axis=1))
        if not len(volumes):
            return {"edges": []}
        # Of values and not of samples: it is among the long ones that much is padded.
        total = np.cumsum(volumes)
        parts = np.arange(1, self.quantiles) * int(total[-1]) // self.quantiles
        return {"edges": np.unique(volumes[np.searchsorted(total, parts)]).tolist()}

    def check_geometry(self, geometry: dict[str, Any]) -> None:
        if self._has_buckets:
            edges = [at_least(0, edge, "an edge") for edge in list(geometry["edges"])]
            if edges != sorted(set(edges)):
                raise UsageError(f"edges must rise, got {edges}")

    def plan(self, pool: Pool, geometry: dict[str, Any]) -> tuple[Batches, Picks]:
        assert pool.sizes is not None
        volumes = pool.sizes.prod(axis=1)
        if self._has_buckets:
            bucket = np.searchsorted(np.array(geometry["edges"], np.int64), volumes, "right")
        else:
            bucket = np.zeros(len(volumes), np.int64)
        grouped = stable_order(bucket)
        counts = np.bincount(bucket, minlength=1)
        rank = np.arange(len(grouped)) - np.repeat(np.cumsum(counts) - counts, counts)
        whole = rank < np.repeat(counts // self.size * self.size, counts)
        chosen = grouped if pool.takes_all else grouped[whole]
        # By bucket, then by volume, then as they came.
        chosen = chosen[stable_order(volumes[chosen])]
        chosen = chosen[stable_order(bucket[chosen])]
        sizes = counts if pool.takes_all else counts // self.size * self.size
        edges = [0]
        for size in sizes.tolist():
            start = edges[-1]
            edges += range(start + self.size, start + size, self.size)
            if size:
                edges.append(start + size)
        batches = Batches(pool.picks.take(chosen), np.array(edges, np.int64))
        left = Picks.none() if pool.last else pool.picks.take(np.sort(grouped[~whole]))
        return _mixed(batches, chosen, pool), left

    def count(self, samples: int, *, drop_last: bool) -> int | None:
        if self._has_buckets:
            return None
        return samples // self.size if drop_last else -(-samples // self.size)

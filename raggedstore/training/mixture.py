"""`Mixture`: samples of several stores in given proportions, each store in an order of its own.

Number j of the samples that a store of weight w gives stands at the time ``(j + 1 - p) / w``, and
all come by their times. Up to any time t a store has thus given ``w * t + p`` samples, rounded
down, so that the proportions hold in each stretch of an epoch, to within a sample or two. With p
1/2 for all it is the method of Webster and Sainte-Laguë for sharing out seats; but then stores of
one weight all come at once, and between them the others. So store k has ``p = 1/2 + g * k``, less
its whole part, g the golden section, 0.618: which no few of them have nearly alike. A unit is a
stretch of time, so that any unit can be had without those before it.

A store goes through its samples in its own order, from epoch to epoch: where one epoch of the
mixture takes a part of it, the next goes on there; where it takes more than all, it begins again in
another order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError
from raggedstore.indexing import at_least
from raggedstore.samples import Concatenation, Samples
from raggedstore.training.keys import derive_key
from raggedstore.training.orders import (
    UNIT_SAMPLES,
    Geometry,
    Order,
    Outlook,
    Shuffled,
    Units,
    Weighted,
)
from raggedstore.training.sizes import Sizes
from raggedstore.units import parse_bytes

__all__ = ["Mixed", "Mixture"]

Int64s = npt.NDArray[np.int64]

_OF_MIXTURE = 0x3174
_GOLDEN = 0.6180339887498949


class Mixture(Concatenation):
    """Samples of several stores or views of one schema, in proportion to weights.

    As a sequence of samples it is what `concat` gives: the stores one after another. A loader takes
    of it, under any order but `Weighted`, so many of each as the weights say.

    Parameters
    ----------
    parts
        The weight of each store or view: numbers above 0, of which only the proportions count.
    count
        Samples in an epoch. By default the first one is over when a store is used up, so that no
        sample comes twice in it, and later ones are as long.

    Examples
    --------
    >>> loader = Loader(Mixture({speech: 0.7, noise: 0.3}), order=Shuffled(seed=0))
    """

    def __init__(self, parts: Mapping[Samples, float], *, count: int | None = None) -> None:
        if not isinstance(parts, Mapping) or not all(isinstance(p, Samples) for p in parts):
            raise UsageError("a mixture takes a weight for each store: Mixture({a: 0.7, b: 0.3})")
        super().__init__(list(parts))
        try:
            weights = np.array([float(weight) for weight in parts.values()])
        except (TypeError, ValueError):
            raise UsageError("the weights of a mixture are numbers") from None
        with np.errstate(over="ignore"):
            whole = weights.sum()
        if not (np.isfinite(whole) and (weights > 0).all()):
            raise UsageError(f"the weights of a mixture are above 0, got {list(parts.values())}")
        self.weights: tuple[float, ...] = tuple((weights / whole).tolist())
        for part in parts:
            if not len(part):
                raise UsageError(f"a mixture can take nothing of {part!r}")
        used_up = min(len(p) / w for p, w in zip(parts, self.weights, strict=True))
        self.count = int(used_up + 1e-9) if count is None else at_least(0, count, "count")

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{part!r}: {weight:.3g}"
            for part, weight in zip(self._parts, self.weights, strict=True)
        )
        return f"Mixture({{{parts}}}, count={self.count})"

    @property
    def makeup(self) -> str:
        return f"{super().makeup}, weights {list(self.weights)}, {self.count} an epoch"

    @property
    def parts(self) -> tuple[Samples, ...]:
        """The stores or views."""
        return tuple(self._parts)

    @property
    def counts(self) -> Int64s:
        """(parts,) how many samples an epoch has of each: `count` in all, by largest remainders."""
        exact = np.array(self.weights) * self.count
        counts = np.floor(exact).astype(np.int64)
        missing = self.count - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
        shared: Int64s = counts
        return shared


class Mixed(Order):
    """The order of a mixture whose stores are each in order `each`."""

    def __init__(self, each: Order, mixture: Mixture, fields: tuple[str, ...] | None) -> None:
        if isinstance(each, Weighted):
            raise UsageError("Weighted draws by weights of its own: mix under another order")
        self._each, self._mixture, self._fields = each, mixture, fields

    @property
    def windowed(self) -> bool:  # type: ignore[override]
        return self._each.windowed

    def drawn(self, samples: int) -> int:
        return self._mixture.count

    def measure(self, outlook: Outlook) -> Geometry:
        parts = [part.select(fields=self._fields) for part in self._mixture.parts]
        sizes = [Sizes(part) for part in parts]
        shares = np.array([w * s.mean for w, s in zip(self._mixture.weights, sizes, strict=True)])
        geometries = []
        counts = self._mixture.sizes_of_parts.tolist()
        for count, size, share in zip(counts, sizes, shares / shares.sum(), strict=True):
            each = self._each
            if isinstance(each, Shuffled):
                each = replace(each, window=max(1, int(parse_bytes(each.window) * share)))
            seen = replace(
                outlook,
                samples=count,
                sample_bytes=size.mean,
                first_bytes=size.mean_of_first(),
                window_bytes=max(1, int(outlook.window_bytes * share)),
                lanes=1,
            )
            geometries.append({**each.measure(seen)})
        unit = outlook.pool
        if isinstance(self._each, Shuffled):
            window = min(parse_bytes(self._each.window), outlook.window_bytes)
            unit = min(max(1, int(window / shares.sum())), UNIT_SAMPLES)
        return {"unit": unit, "parts": geometries, "staggered": True}

    def check_geometry(self, geometry: Geometry, samples: int) -> None:
        at_least(1, geometry["unit"], "unit")
        counts = self._mixture.sizes_of_parts.tolist()
        if len(geometry["parts"]) != len(counts):
            raise UsageError(f"{len(geometry['parts'])} parts, and {len(counts)} are mixed")
        for part, count in zip(geometry["parts"], counts, strict=True):
            self._each.check_geometry(part, count)

    def bind(self, samples: int, epoch: int, geometry: Geometry) -> Units:
        return _MixedUnits(self._each, self._mixture, epoch, geometry)


class _MixedUnits(Units):
    def __init__(self, each: Order, mixture: Mixture, epoch: int, geometry: Geometry) -> None:
        self._unit: int = geometry["unit"]
        seed = getattr(each, "seed", None)
        key = None if seed is None else derive_key(seed, epoch, _OF_MIXTURE)
        super().__init__(-(-mixture.count // self._unit), key)
        self._weights, self._counts = mixture.weights, mixture.counts
        # States of before go on as they began, with 1/2 for all.
        steps = np.arange(len(mixture.parts)) * bool(geometry.get("staggered"))
        self._phases: list[float] = ((0.5 + _GOLDEN * steps) % 1).tolist()
        self._sources = [
            _Source(each, count, geometry["parts"][k], k, len(mixture.parts))
            for k, count in enumerate(mixture.sizes_of_parts.tolist())
        ]
        self._begun = self._counts * epoch  # what earlier epochs had of each
        self._starts = np.cumsum([0, *mixture.sizes_of_parts])

    def __getitem__(self, number: int) -> list[Int64s]:  # type: ignore[override]
        positions = []
        for k, (first, last) in enumerate(self._bounds(number)):
            begun = int(self._begun[k])
            taken = self._sources[k].take(begun + first, begun + last)
            positions.append(taken + self._starts[k])
        return [np.concatenate(positions)[self._order(number)]]

    def turns(self, number: int) -> list[Int64s]:
        """How often each sample's store has been gone through before, since the first epoch."""
        sizes = np.diff(self._starts)
        turns = [
            (self._begun[k] + np.arange(first, last)) // sizes[k]
            for k, (first, last) in enumerate(self._bounds(number))
        ]
        return [np.concatenate(turns)[self._order(number)]]

    def _bounds(self, number: int) -> list[tuple[int, int]]:
        """Of each part, from which to which of its samples of the epoch a unit has."""
        parts = range(len(self._sources))
        return [(self._given(k, number), self._given(k, number + 1)) for k in parts]

    def _order(self, number: int) -> Int64s:
        """How the samples of the parts, one after another, come to lie between one another."""
        times = [
            (np.arange(first, last) + 1 - self._phases[k]) / self._weights[k]
            for k, (first, last) in enumerate(self._bounds(number))
        ]
        order: Int64s = np.argsort(np.concatenate(times), kind="stable")
        return order

    def _given(self, part: int, unit: int) -> int:
        """How many samples of a part come before a unit."""
        if unit >= len(self):
            return int(self._counts[part])
        given = math.floor(self._weights[part] * unit * self._unit + self._phases[part])
        return min(given, int(self._counts[part]))


class _Source:
    """The samples of one store in their order, epoch after epoch."""

    def __init__(
        self, order: Order, samples: int, geometry: Geometry, which: int, parts: int
    ) -> None:
        self._order, self._samples, self._geometry = order, samples, geometry
        self._which, self._parts = which, parts
        self._bound: dict[int, tuple[Units, Int64s]] = {}

    def take(self, first: int, last: int) -> Int64s:
        """Those from number `first` to `last`, counted over all epochs."""
        taken = [np.empty(0, np.int64)]
        while first < last:
            epoch, start = divmod(first, self._samples)
            stop = min(self._samples, start + last - first)
            taken.append(self._of_epoch(epoch, start, stop))
            first += stop - start
        return np.concatenate(taken)

    def _of_epoch(self, epoch: int, start: int, stop: int) -> Int64s:
        if epoch not in self._bound:
            # An epoch of its own for each store, or stores of one size would be in one order.
            number = epoch * self._parts + self._which
            units = self._order.bind(self._samples, number, self._geometry)
            sizes = [units.size(i) for i in range(len(units))]
            self._bound = {epoch: (units, np.cumsum([0, *sizes]))}
        units, bounds = self._bound[epoch]
        first = int(np.searchsorted(bounds, start, "right")) - 1
        last = int(np.searchsorted(bounds, stop, "left"))
        some = np.concatenate([lane for i in range(first, last) for lane in units[i]])
        begun = int(bounds[first])
        return some[start - begun : stop - begun]

"""Orders: in which order an epoch hands over the samples, and which of them are planned together.

An order is a few numbers. Bound to an epoch of so many samples it gives a sequence of *units*, each
computed when it is asked for from nothing but (seed, epoch, which unit): nothing is kept per
sample, and any unit can be had without those before it. Samples stand in a unit in the order in
which they come; batching rules may put those of one unit into another order (`batching.py`).

`Shuffled` cuts the samples into blocks of consecutive ones and gives each block a random key. The
keys' range is cut into windows. A window is decoded whole, block by block in file order, and its
samples come in a random order. Each chunk is thus decoded about once an epoch, where `Permuted`
decodes it for every read that has a sample in it.

**The order contract, version 1.** Sorted by the keys of `keys.py`, samples that are appended fall
in between the old ones, which go on following one another as they did: under `Permuted` always,
under `Shuffled` as long as block and windows stay. Those are chosen when a loader is made, and kept
by it and by its states (`Geometry`). A block's number of samples depends on the first samples
alone, so that it stays; the number of windows doubles when the data have outgrown them, since a
window of the same size can then not hold the samples that it did.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from raggedstore.batch import expand_ranges
from raggedstore.errors import UsageError
from raggedstore.indexing import at_least
from raggedstore.training.keys import Key, Keys, check_seed, derive_key, hashed, shuffled
from raggedstore.units import parse_bytes

__all__ = [
    "ORDER_VERSION",
    "UNIT_SAMPLES",
    "Geometry",
    "Order",
    "Outlook",
    "Permuted",
    "Sequential",
    "Shuffled",
    "Units",
    "Weighted",
]

Int64s = npt.NDArray[np.int64]
#: What is decided by the data when a loader is made, and kept from then on.
Geometry = dict[str, Any]

#: Of the contract above: another order for the same seed means another number here.
ORDER_VERSION = 1

#: How large blocks are at least, or their ends, which are decoded in part, would cost too much; and
#: how large at most.
_BLOCK_BYTES = 2**16, 2**21
#: How many blocks a window is to have: of data sorted by class 8 still mix badly, and 64 nearly as
#: well as a permutation (docs/orders.md).
_BLOCKS = 64
#: The most samples in a unit of windows: so many are planned in a few hundredths of a second.
UNIT_SAMPLES = 2**18

# What keys are for, as the last number that they are derived from.
_OF_SAMPLES, _OF_BLOCKS, _IN_WINDOWS, _OF_DRAWS, _OF_BATCHES = range(5)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an order may know of the samples before it is bound."""

    samples: int
    sample_bytes: float  #: of a sample, decoded, on average; 0 where there are no windows
    first_bytes: float  #: the same of the first 1,024 samples
    pool: int  #: how many samples the batching rule would plan together
    window_bytes: int  #: the largest window that memory allows
    lanes: int  #: how many processes share the epoch


class Units(Sequence[list[Int64s]]):
    """The units of an epoch: each a list of lanes, each (k,) samples in their order.

    Lanes are batched apart and then take turns, batch by batch, so that a process that takes every
    n-th batch reads one lane in n.
    """

    def __init__(self, count: int, key: Key | None) -> None:
        self._count = count
        #: What batches of one unit are shuffled by; None where they keep the samples' order.
        self.key = key

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> list[Int64s]:  # type: ignore[override]
        raise NotImplementedError

    def turns(self, number: int) -> list[Int64s] | None:
        """Lane by lane (k,) which of its turns each sample has; None where all have one only."""
        return None

    def size(self, number: int) -> int:
        """How many samples a unit has."""
        return sum(map(len, self[number]))


class Order(ABC):
    """In which order the samples of an epoch come."""

    #: Whether units are windows, decoded whole.
    windowed: ClassVar[bool] = False

    def measure(self, outlook: Outlook) -> Geometry:
        """The geometry that suits these samples."""
        return {"unit": _power_of_two(outlook.pool)}

    def check_geometry(self, geometry: Geometry, samples: int) -> None:
        """UsageError, KeyError or TypeError where it is none that `measure` could have given."""
        at_least(1, geometry["unit"], "unit")

    @abstractmethod
    def bind(self, samples: int, epoch: int, geometry: Geometry) -> Units:
        """The units of an epoch of `samples` samples."""

    def drawn(self, samples: int) -> int:
        """How many samples come in an epoch over `samples` samples."""
        return samples


def _power_of_two(number: float) -> int:
    """The largest power of two that is at most `number`, and at least 1."""
    return 1 << max(0, int(math.log2(max(number, 1))))


def _parts(samples: int, each: float) -> int:
    """The smallest power of two parts that hold at most `each` of the `samples`."""
    return 1 << max(0, math.ceil(math.log2(max(samples / each, 1))))


@dataclass(frozen=True, slots=True)
class Sequential(Order):
    """The samples as they lie in the store."""

    def bind(self, samples: int, epoch: int, geometry: Geometry) -> Units:
        return _Slices(samples, geometry["unit"])


class _Slices(Units):
    def __init__(self, samples: int, size: int) -> None:
        super().__init__(-(-samples // size), None)
        self._samples, self._size = samples, size

    def __getitem__(self, number: int) -> list[Int64s]:  # type: ignore[override]
        start = number * self._size
        return [np.arange(start, min(start + self._size, self._samples), dtype=np.int64)]


@dataclass(frozen=True, slots=True)
class Permuted(Order):
    """A random order of all samples, another each epoch.

    Up to 2**20 samples each order is as likely as any other. A chunk is decoded for each
    read that has a sample in it, unless the store's own budget still holds it; `Shuffled` decodes
    each about once.

    Parameters
    ----------
    seed
        From 0 to 2**64 - 1: another one gives other orders.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))

    def bind(self, samples: int, epoch: int, geometry: Geometry) -> Units:
        return _Permuted(samples, _parts(samples, geometry["unit"]), self.seed, epoch)


class _Permuted(Units):
    def __init__(self, samples: int, parts: int, seed: int, epoch: int) -> None:
        super().__init__(parts if samples else 0, derive_key(seed, epoch, _OF_BATCHES))
        self._samples = samples
        self._keys = Keys(derive_key(seed, epoch, _OF_SAMPLES))
        self._sizes: Int64s | None = None

    def size(self, number: int) -> int:
        if self._sizes is None:
            self._sizes = self._keys.sizes(self._samples, len(self))
        return int(self._sizes[number])

    def __getitem__(self, number: int) -> list[Int64s]:  # type: ignore[override]
        return [self._keys.part(self._samples, number, len(self))]


@dataclass(frozen=True, slots=True)
class Shuffled(Order):
    """Samples shuffled within windows of blocks drawn from all over the store.

    Parameters
    ----------
    seed
        From 0 to 2**64 - 1: another one gives other orders.
    window
        Bytes of decoded samples to shuffle together, an int or a string such as "256MB". Windows
        hold between half of it and all of it, and about 2**18 samples at most. A loader holds one
        window and reads the next, so that it makes the window smaller where two do not fit in its
        budget.
    lanes
        How many windows take turns, batch by batch. With as many as processes share an epoch each
        of them reads windows of its own, rather than a part of every window; by default as many
        as the loader's `world_size`.
    """

    windowed: ClassVar[bool] = True

    seed: int = 0
    window: int | str = "256MB"
    lanes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if parse_bytes(self.window, what="window") < 1:
            raise UsageError(f"a window has 1 byte at least, got {self.window!r}")
        if self.lanes is not None:
            object.__setattr__(self, "lanes", check_seed(self.lanes, what="lanes"))
            if self.lanes < 1:
                raise UsageError("there is 1 lane at least")

    def measure(self, outlook: Outlook) -> Geometry:
        window = min(parse_bytes(self.window), outlook.window_bytes)
        lanes = outlook.lanes if self.lanes is None else self.lanes
        most = max(UNIT_SAMPLES // lanes, 2**15)
        least, most_bytes = _BLOCK_BYTES
        block_bytes = min(max(window / _BLOCKS, least), most_bytes, window / 8)
        block = _power_of_two(min(block_bytes / outlook.first_bytes, most / _BLOCKS))
        windows = max(
            _parts(math.ceil(outlook.samples * outlook.sample_bytes), window),
            _parts(outlook.samples, most),
        )
        # Two blocks at least in a window, or nothing would be mixed.
        blocks = -(-outlook.samples // block)
        windows = min(windows, _power_of_two(blocks / 2))
        return {
            "block": block,
            "windows": windows,
            "lanes": min(lanes, windows),
        }

    def check_geometry(self, geometry: Geometry, samples: int) -> None:
        block, windows, lanes = (
            at_least(1, geometry[name], name) for name in ("block", "windows", "lanes")
        )
        if windows > max(samples, 1) or lanes > windows:
            raise UsageError(
                f"{lanes} lanes of {windows} windows, of blocks of {block}, are none of {samples} "
                f"samples"
            )

    def bind(self, samples: int, epoch: int, geometry: Geometry) -> Units:
        return _Windows(samples, geometry, self.seed, epoch)


class _Windows(Units):
    def __init__(self, samples: int, geometry: Geometry, seed: int, epoch: int) -> None:
        self._samples, self._block = samples, geometry["block"]
        self._windows, self._lanes = geometry["windows"], geometry["lanes"]
        count = -(-self._windows // self._lanes) if samples else 0
        super().__init__(count, derive_key(seed, epoch, _OF_BATCHES))
        # With `exact` at 0 windows get as many blocks each as can be.
        blocks = Keys(derive_key(seed, epoch, _OF_BLOCKS), exact=0)
        self._blocks = blocks.parts(-(-samples // self._block), self._windows)
        self._key = derive_key(seed, epoch, _IN_WINDOWS)

    def __getitem__(self, number: int) -> list[Int64s]:  # type: ignore[override]
        first = number * self._lanes
        last = min(first + self._lanes, self._windows)
        return [self._window(i) for i in range(first, last)]

    def size(self, number: int) -> int:
        first = number * self._lanes
        starts = np.concatenate(self._blocks[first : first + self._lanes]) * self._block
        return int((np.minimum(starts + self._block, self._samples) - starts).sum())

    def _window(self, number: int) -> Int64s:
        starts = np.sort(self._blocks[number]) * self._block
        lengths = np.minimum(starts + self._block, self._samples) - starts
        return shuffled(expand_ranges(starts, lengths), self._key)


class Weighted(Order):
    """Samples drawn with replacement, each in proportion to its weight.

    Parameters
    ----------
    weights
        (n,) a weight of at least 0 for each of the samples that take part.
    seed
        From 0 to 2**64 - 1.
    count
        Draws in an epoch, by default n.

    Notes
    -----
    Each draw stands by itself, computed from (seed, epoch, which draw): by inverting the cumulated
    weights.
    """

    def __init__(self, weights: npt.ArrayLike, seed: int = 0, *, count: int | None = None) -> None:
        try:
            given = np.asarray(weights, np.float64)
        except (TypeError, ValueError):
            raise UsageError("weights are numbers, one for each sample") from None
        if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any():
            raise UsageError("weights are finite numbers of at least 0, one for each sample")
        if len(given) and not given.any():
            raise UsageError("all weights are 0: no sample can be drawn")
        self.seed = check_seed(seed)
        self.count = None if count is None else check_seed(count, what="count")
        self._total = np.cumsum(given)
        if len(given) and not np.isfinite(self._total[-1]):
            raise UsageError("weights come to more than a float holds")
        # Told apart, since a run must not go on with other weights: hashed here, and not whenever a
        # state is asked for or loaded.
        self._digest = hashlib.sha256(self._total.astype("<f8", copy=False).data).hexdigest()[:8]

    @classmethod
    def balanced(
        cls, labels: npt.ArrayLike, seed: int = 0, *, count: int | None = None
    ) -> Weighted:
        """Each class equally often: `labels` is the (n,) class of each sample."""
        try:
            array = np.asarray(labels)
        except ValueError:
            raise UsageError("labels hold one class for each sample") from None
        if array.ndim != 1:
            raise UsageError("labels hold one class for each sample")
        _, classes, sizes = np.unique(array, return_inverse=True, return_counts=True)
        return cls(1 / sizes[classes], seed, count=count)

    def __repr__(self) -> str:
        many = "" if self.count is None else f", count={self.count}"
        return f"Weighted(<{len(self._total)} weights, {self._digest}>, seed={self.seed}{many})"

    def drawn(self, samples: int) -> int:
        if samples != len(self._total):
            raise UsageError(f"{len(self._total)} weights for {samples} samples")
        return samples if self.count is None or not samples else self.count

    def bind(self, samples: int, epoch: int, geometry: Geometry) -> Units:
        return _Draws(self._total, self.drawn(samples), geometry["unit"], (self.seed, epoch))


class _Draws(Units):
    def __init__(
        self, total: npt.NDArray[np.float64], count: int, size: int, key: tuple[int, int]
    ) -> None:
        super().__init__(-(-count // size), derive_key(*key, _OF_BATCHES))
        self._total, self._draws, self._size = total, count, size
        self._key = derive_key(*key, _OF_DRAWS)

    def __getitem__(self, number: int) -> list[Int64s]:  # type: ignore[override]
        (draws,) = self.turns(number)
        uniform = (hashed(draws, self._key) >> np.uint64(11)) * 2.0**-53
        # Rounded up to the total, it would fall behind the last; "right" passes weights of 0.
        wanted = uniform * self._total[-1]
        order = np.argsort(wanted)  # sought in this order they lie near one another
        drawn = np.empty(len(wanted), np.int64)
        drawn[order] = np.searchsorted(self._total, wanted[order], "right")
        last = int(np.searchsorted(self._total, self._total[-1]))
        return [np.minimum(drawn, last)]

    def turns(self, number: int) -> list[Int64s]:
        """Which draw of the epoch each is."""
        start = number * self._size
        return [np.arange(start, min(start + self._size, self._draws), dtype=np.int64)]

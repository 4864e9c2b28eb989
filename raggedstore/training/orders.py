"""Orders: in which order an epoch hands over the samples, and what is decoded together for that.

An order is a few numbers. Bound to an epoch of so many samples it gives a sequence of `Read`s,
each computed when it is asked for from nothing but (seed, epoch, which read): nothing is kept
per sample, and any read can be had without those before it.

`Shuffled` cuts the samples into blocks of consecutive ones, puts the blocks in a random order,
and takes so many of them at a time as make a window; a window is decoded whole, block by block in
file order, and its samples are handed over in a random order. Each chunk is thus decoded about
once an epoch, where `Permuted` decodes it for every read that has a sample in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from raggedstore.batch import expand_ranges
from raggedstore.errors import UsageError
from raggedstore.indexing import Positions
from raggedstore.training.permutation import Permutation, check_seed, derive_key
from raggedstore.units import parse_bytes

__all__ = ["Epoch", "Order", "Permuted", "Read", "Sequential", "Shuffled", "Windows"]

_BLOCK_BYTES = 2**21

# What a permutation is for, as the third number of its key.
_OF_SAMPLES, _OF_BLOCKS, _IN_WINDOW = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What is decoded together.

    Parameters
    ----------
    positions
        (k,) which samples.
    emission
        (k,) which of `positions` is handed over first, second, ...; None where they are handed
        over as they stand.
    """

    positions: Positions
    emission: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an order is bound to."""

    number: int
    samples: int
    sample_bytes: float  #: of a sample, decoded, on average
    read_samples: int  #: how many to read at a time where the order leaves it open
    window_bytes: int  #: the largest window that memory allows


class Order(ABC):
    """In which order the samples of an epoch come."""

    #: Whether reads are windows, with an emission order of their own.
    windowed: ClassVar[bool] = False

    @abstractmethod
    def reads(self, epoch: Epoch) -> Iterator[Read]:
        """All samples of the epoch, each once."""


@dataclass(frozen=True, slots=True)
class Sequential(Order):
    """The samples as they lie in the store."""

    def reads(self, epoch: Epoch) -> Iterator[Read]:
        for start in range(0, epoch.samples, epoch.read_samples):
            stop = min(start + epoch.read_samples, epoch.samples)
            yield Read(np.arange(start, stop, dtype=np.int64))


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

    def reads(self, epoch: Epoch) -> Iterator[Read]:
        shuffle = Permutation(epoch.samples, derive_key(self.seed, epoch.number, _OF_SAMPLES))
        for start in range(0, epoch.samples, epoch.read_samples):
            stop = min(start + epoch.read_samples, epoch.samples)
            yield Read(shuffle(np.arange(start, stop, dtype=np.int64)))


@dataclass(frozen=True, slots=True)
class Shuffled(Order):
    """Samples shuffled within windows of blocks drawn from all over the store.

    Parameters
    ----------
    seed
        From 0 to 2**64 - 1: another one gives other orders.
    window
        Bytes of decoded samples to shuffle together, an int or a string such as "256MB". A
        loader holds one window and reads the next, so that it makes the window smaller where
        two do not fit in its budget.
    """

    windowed: ClassVar[bool] = True

    seed: int = 0
    window: int | str = "256MB"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if parse_bytes(self.window, what="window") < 1:
            raise UsageError(f"a window has 1 byte at least, got {self.window!r}")

    def bind(self, epoch: Epoch) -> Windows:
        """The windows of an epoch."""
        window = min(parse_bytes(self.window), epoch.window_bytes)
        block = max(1, int(min(_BLOCK_BYTES, window / 2) / epoch.sample_bytes))
        group = max(2, int(window / (block * epoch.sample_bytes)))
        return Windows(epoch.samples, block, group, self.seed, epoch.number)

    def reads(self, epoch: Epoch) -> Iterator[Read]:
        windows = self.bind(epoch)
        for number in range(len(windows)):
            yield windows[number]


class Windows:
    """The windows of one epoch of `Shuffled`: a sequence of `Read`s.

    Parameters
    ----------
    samples
        How many samples there are.
    block
        Consecutive samples in a block; the last block may have fewer.
    group
        Blocks in a window, at most, unless one would be left alone.
    seed, epoch
        What all permutations are drawn by.
    """

    def __init__(self, samples: int, block: int, group: int, seed: int, epoch: int) -> None:
        self.samples, self.block = samples, block
        self._key = (seed, epoch)
        self.blocks = -(-samples // block)
        # Windows of nearly the same number of blocks, rather than a last one of a few.
        count = -(-self.blocks // group)
        if count and self.blocks // count < 2:
            count = max(1, self.blocks // 2)
        self._count = count
        self._shuffle = Permutation(self.blocks, derive_key(seed, epoch, _OF_BLOCKS))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Read:
        first, last = (self.blocks * i // self._count for i in (number, number + 1))
        chosen = np.sort(self._shuffle(np.arange(first, last, dtype=np.int64)))
        starts = chosen * self.block
        positions = expand_ranges(starts, np.minimum(starts + self.block, self.samples) - starts)
        shuffle = Permutation(len(positions), derive_key(*self._key, _IN_WINDOW, number))
        return Read(positions, shuffle(np.arange(len(positions), dtype=np.int64)))

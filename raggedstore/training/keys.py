"""Random keys for 0, 1, 2, …: sorted by them, the numbers stand in a random order.

Three things are asked of that order. It is the same on every machine; it can be entered anywhere
without what comes before; and it is stable under appending**: with more numbers than before, the
old ones follow one another as they did, and the new ones have fallen in between. The last is why
numbers have keys of their own, rather than being permuted: a permutation of n + 1 is another one.

A key has 48 bits. Numbers are cut into levels by their size:

level 0    the numbers below ``2**exact``: the key is a hash of the number, so that each order is as
           likely as any other;
level k    those from D to 2 D, with ``D = 2**(exact + k - 1)``: the key is ``P(number - D) / D`` of
           the whole range, P being a random permutation of the D, and the bits below are hashed.

P is a Feistel network (Luby and Rackoff, 1988), which runs backwards as well: what has its key in a
given range is computed, not searched for, and nothing is kept per number. The price is that the
numbers of a level are spread evenly, each range of keys having its share of them: a little more
evenly than chance would.

All randomness is the raw output of NumPy's SeedSequence and Philox, which NumPy promises never to
change, and SplitMix64's mixer (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.errors import UsageError
from raggedstore.indexing import is_single, stable_order

__all__ = ["EXACT", "Keys", "check_seed", "derive_key", "hashed", "shuffled"]

Int64s = npt.NDArray[np.int64]
Key = npt.NDArray[np.uint64]

#: Samples below 2**EXACT are ordered by hashes alone.
EXACT = 20
_BITS = 48
_ROUNDS = 10
#: Values computed at a time, so that what lies between the steps stays in the processor's cache.
_AT_ONCE = 2**14
_COUNTED = 2**20  # numbers whose parts are counted at a time


def check_seed(seed: Any, *, what: str = "seed") -> int:
    """`seed` as an int of 64 bits; UsageError where it is none."""
    if not is_single(seed):
        raise UsageError(f"{what} must be an int, got {seed!r}")
    value = int(seed.__index__())
    if not 0 <= value < 2**64:
        raise UsageError(f"{what} must be from 0 to 2**64 - 1, got {value}")
    return value


def derive_key(*numbers: int) -> Key:
    """(2,) uint64: a key for each tuple of numbers of 64 bits, such as seed and epoch.

    How many there are, and each number cut into two words of 32 bits, the low one first, are hashed
    by `numpy.random.SeedSequence`.
    """
    words = [len(numbers)]  # SeedSequence takes a few words for the same with zeros after them
    for number in numbers:
        words += [number & 0xFFFFFFFF, number >> 32]
    return np.random.SeedSequence(words).generate_state(2, np.uint64).astype(np.uint64)


def hashed(numbers: Int64s, key: Key) -> Key:
    """(n,) uint64: a hash of each of the (n,) `numbers` under the (2,) `key`, no two the same."""
    by_kernel = kernel.hashes_of(numbers, key)
    if by_kernel is not None:
        return by_kernel
    out = np.empty(len(numbers), np.uint64)
    for i in range(0, len(numbers), _AT_ONCE):
        mixed = numbers[i : i + _AT_ONCE].astype(np.uint64)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed += key[0]
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= key[1]
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        out[i : i + _AT_ONCE] = mixed
    return out


def shuffled(numbers: Int64s, key: Key) -> Int64s:
    """The rising `numbers` in the order of their hashes."""
    order: Int64s = numbers[stable_order(_key_bits(hashed(numbers, key)))]
    return order


def _key_bits(hashes: Key) -> Int64s:
    """The upper bits of `hashes`, in their place: new memory would take longer to get."""
    hashes >>= np.uint64(64 - _BITS)
    return hashes.view(np.int64)


class Keys:
    """The keys of 0, 1, 2, … under one `key`.

    Parameters
    ----------
    key
        (2,) uint64, from `derive_key`.
    exact
        The numbers below ``2**exact`` have hashes for keys.
    """

    def __init__(self, key: Key, *, exact: int = EXACT) -> None:
        self._exact = exact
        self._key = key
        bits = np.random.Philox(key=key)
        self._rounds: Key = bits.random_raw(_ROUNDS)
        self._low: Int64s | None = None  # keys of level 0, once computed

    def part(self, n: int, number: int, parts: int) -> Int64s:
        """Which of ``range(n)`` have their keys in part `number` of `parts`, in their order.

        Parameters
        ----------
        parts
            A power of two; all of them one after another hold each number once.
        """
        split = parts.bit_length() - 1
        return self._ranked(n, number, split)[0]

    def parts(self, n: int, parts: int) -> list[Int64s]:
        """All parts at once, which for a small `n` costs about as much as one."""
        numbers, keys = self._ranked(n, 0, 0)
        split = parts.bit_length() - 1
        bounds = np.searchsorted(keys, np.arange(1, parts, dtype=np.int64) << (_BITS - split))
        return np.split(numbers, bounds)

    def sizes(self, n: int, parts: int) -> Int64s:
        """(parts,) how many of ``range(n)`` each part has, of which few are computed one by one."""
        split = parts.bit_length() - 1
        counts = np.bincount(self._of_level_0(n, 0, 0)[1] >> (_BITS - split), minlength=parts)
        for level in range(self._exact, (n - 1).bit_length()):
            left = min(n - (1 << level), 1 << level)
            if left == 1 << level and split <= level:
                counts += 1 << (level - split)  # a permutation of all of the level: in equal parts
                continue
            for start in range(0, left, _COUNTED):
                numbers = np.arange(start, min(start + _COUNTED, left), dtype=np.int64)
                places = self._permuted(numbers, np.full(len(numbers), level))
                below = _key_bits(hashed(numbers + (1 << level), self._key)) >> level
                keys = (places << (_BITS - level)) | below
                counts += np.bincount(keys >> (_BITS - split), minlength=parts)
        sizes: Int64s = counts
        return sizes

    def _ranked(self, n: int, number: int, split: int) -> tuple[Int64s, Int64s]:
        """The numbers of a part, and their keys, both in the order of the keys."""
        found = [self._of_level_0(n, number, split)]
        if 2**self._exact < n:
            found.append(self._of_levels(n, number, split))
        numbers, keys = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = stable_order(keys)
        return numbers[order], keys[order]

    def _of_level_0(self, n: int, number: int, split: int) -> tuple[Int64s, Int64s]:
        n = min(n, 2**self._exact)
        if self._low is None or len(self._low) != n:
            self._low = _key_bits(hashed(np.arange(n, dtype=np.int64), self._key))
        if not split:
            return np.arange(n, dtype=np.int64), self._low
        found = np.flatnonzero(self._low >> (_BITS - split) == number)
        return found, self._low[found]

    def _of_levels(self, n: int, number: int, split: int) -> tuple[Int64s, Int64s]:
        """Of the numbers from ``2**exact`` on: of all levels at once, since most hold few."""
        places, bits = [], []
        for level in range(self._exact, (n - 1).bit_length()):
            if split <= level:
                first, count = number << (level - split), 1 << (level - split)
            else:
                first, count = number >> (split - level), 1
            places.append(np.arange(first, first + count, dtype=np.int64))
            bits.append(np.full(count, level, np.int64))
        place, level_of = np.concatenate(places), np.concatenate(bits)
        numbers = self._permuted(place, level_of, back=True) + (1 << level_of)
        there = np.flatnonzero(numbers < n)
        numbers, place, level_of = numbers[there], place[there], level_of[there]
        below = _key_bits(hashed(numbers, self._key)) >> level_of
        keys = (place << (_BITS - level_of)) | below
        if split:
            there = np.flatnonzero(keys >> (_BITS - split) == number)
            numbers, keys = numbers[there], keys[there]
        return numbers, keys

    def _permuted(self, values: Int64s, bits: Int64s, *, back: bool = False) -> Int64s:
        """Where the permutation of `bits` bits takes each of `values`; or whence it did, `back`."""
        by_kernel = kernel.permuted(values, bits, self._rounds, back=back)
        if by_kernel is not None:
            return by_kernel
        turns = range(_ROUNDS - 1, -1, -1) if back else range(_ROUNDS)
        out = np.empty(len(values), np.int64)
        for i in range(0, len(values), _AT_ONCE):
            value = values[i : i + _AT_ONCE].astype(np.uint64)
            width = bits[i : i + _AT_ONCE].astype(np.uint64)
            one, low = np.uint64(1), width // np.uint64(2)
            halves = (one << low) - one, (one << (width - low)) - one
            right, left = value & halves[0], value >> low
            for turn in turns:
                key = self._rounds[turn] ^ width
                if turn % 2:
                    right ^= _scrambled(left, key) & halves[0]
                else:
                    left ^= _scrambled(right, key) & halves[1]
            out[i : i + _AT_ONCE] = ((left << low) | right).astype(np.int64)
        return out


def _scrambled(half: Key, key: Key) -> Key:
    """32 well mixed bits of each number: SplitMix64's mixer, and of it the high half."""
    mixed = half * np.uint64(0x9E3779B97F4A7C15)
    mixed += key
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed >>= np.uint64(32)
    return mixed

"""Permutations of ``range(n)`` that are computed, the same on every machine.

Two ways, by size:

up to 2**20     uniform: random keys of 48 bits are sorted, and the order kept as an array;
above           a keyed Feistel network, which computes each value when it is asked for and keeps
                nothing per sample.

The network is that of Black and Rogaway, "Ciphers with arbitrary finite domains" (2002): a
number is written as a pair (left, right) in Z_a × Z_b with ``a * b >= n``, and in turn each half
has a pseudo-random function of the other added to it. What comes out at n or above goes through
again, until it is below (cycle walking): a and b lie so close to the root of n that few do.

All randomness is the raw output of the Philox generator, which NumPy promises never to change;
its methods, such as ``Generator.permutation``, it does not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError
from raggedstore.indexing import stable_order

__all__ = ["Permutation", "check_seed", "derive_key"]

Int64s = npt.NDArray[np.int64]
Key = npt.NDArray[np.uint64]

_EXACT = 2**20
_ROUNDS = 10
#: Values computed at a time, so that what lies between the steps stays in the processor's cache.
_AT_ONCE = 2**14


def check_seed(seed: Any, *, what: str = "seed") -> int:
    """`seed` as an int of 64 bits; UsageError where it is none."""
    if isinstance(seed, (bool, np.bool_)) or not hasattr(seed, "__index__"):
        raise UsageError(f"{what} must be an int, got {seed!r}")
    value = int(seed.__index__())
    if not 0 <= value < 2**64:
        raise UsageError(f"{what} must be from 0 to 2**64 - 1, got {value}")
    return value


def derive_key(*numbers: int) -> Key:
    """(2,) uint64: a key of Philox for each tuple of numbers of 64 bits, such as seed and epoch.

    How many there are, and each number cut into two words of 32 bits, the low one first, are hashed
    by `numpy.random.SeedSequence`, whose output NumPy promises never to change.
    """
    words = [len(numbers)]  # SeedSequence takes a few words for the same with zeros after them
    for number in numbers:
        words += [number & 0xFFFFFFFF, number >> 32]
    return np.random.SeedSequence(words).generate_state(2, np.uint64).astype(np.uint64)


class Permutation:
    """A pseudo-random permutation of ``range(n)``; call it with indices to have its values.

    Parameters
    ----------
    n
        How many values.
    key
        (2,) uint64, from `derive_key`: each gives another permutation.

    Examples
    --------
    >>> Permutation(5, derive_key(0))(np.arange(5)).tolist()
    [2, 0, 1, 4, 3]
    """

    def __init__(self, n: int, key: Key) -> None:
        if not 0 <= n < 2**62:
            raise UsageError(f"cannot permute {n} values")
        self.n = n
        bits = np.random.Philox(key=key)
        self._values: Int64s | None = None
        if n <= _EXACT:
            self._values = _uniform(n, bits)
            return
        self._left = math.isqrt(n - 1) + 1
        self._right = -(-n // self._left)
        self._keys: list[np.uint64] = list(bits.random_raw(_ROUNDS))

    def __len__(self) -> int:
        return self.n

    def __call__(self, indices: npt.ArrayLike) -> Int64s:
        """The values at `indices`, each in ``[0, n)``: an int64 array of their shape."""
        where = np.asarray(indices, np.int64)
        if self._values is not None:
            return self._values[where]
        flat = where.reshape(-1)
        out = np.empty(len(flat), np.int64)
        for i in range(0, len(flat), _AT_ONCE):
            out[i : i + _AT_ONCE] = self._walk(flat[i : i + _AT_ONCE])
        return out.reshape(where.shape)

    def _walk(self, indices: Int64s) -> Int64s:
        values = self._network(indices)
        out = np.flatnonzero(values >= self.n)
        while len(out):
            values[out] = self._network(values[out])
            out = out[values[out] >= self.n]
        return values

    def _network(self, indices: Int64s) -> Int64s:
        a, b = np.uint64(self._left), np.uint64(self._right)
        right, left = np.divmod(indices.astype(np.uint64), a)
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                left += _below(right, key, a)
                np.subtract(left, a, out=left, where=left >= a)
            else:
                right += _below(left, key, b)
                np.subtract(right, b, out=right, where=right >= b)
        return (right * a + left).astype(np.int64)


def _below(half: Key, key: np.uint64, limit: np.uint64) -> Key:
    """A pseudo-random number below `limit` for each: SplitMix64's mixer, then multiply-shift."""
    mixed = half * np.uint64(0x9E3779B97F4A7C15)
    mixed += key
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    # The high half is the better mixed one: SplitMix64's last shift would only touch the low one.
    mixed >>= np.uint64(32)
    mixed *= limit
    mixed >>= np.uint64(32)
    return mixed


def _uniform(n: int, bits: np.random.Philox) -> Int64s:
    """The order of `n` random keys of 48 bits."""
    while True:
        keys = (bits.random_raw(n) >> np.uint64(16)).astype(np.int64) if n else np.zeros(0, int)
        order = stable_order(keys)
        ranked = keys[order]
        # Equal keys would come in the order of their indices. Without any, each order is as
        # likely as another; 2**20 keys have a pair once in 500 times.
        if not (ranked[1:] == ranked[:-1]).any():
            return order

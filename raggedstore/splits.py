"""Splits: which samples are for training and which for validation, once and for good.

A sample's part depends on nothing but the seed, the sizes asked for, and its position (stratified:
its place among the samples of its class; grouped: its key). So it stays when samples are appended.
The rule is a contract, pinned by tests: with another one, samples that a model was trained on
would be among those it is validated with.

fractions   Consecutive samples are dealt in hands, each of as many as have one sample of the
            smallest part. A hand holds of each part what brings the running count to its exact
            share, rounded, and who in the hand gets which is random. Thresholds of a hash would be
            simpler, but make a tenth of 1,000 samples anything from 80 to 120; dealt, it is 100.
            With strata, each class is dealt by itself.
groups      Thresholds of a hash of the key, so that a speaker is on the same side in every store.
counts      Drawn among so many of the first samples, by random keys. With strata, each sample is
            placed at its rank within its class, as a fraction of the class, and each part takes
            the next so many by that: of every class alike, and exactly as many as asked for.

A hand is dealt from one of many decks shuffled beforehand, cut at a random card: each sample is
dealt by one hash, whatever the size of the hand, and the first samples of a hand before the others
are there. All randomness is integer mixing, SplitMix64's finalizer of places, keyed by hashes of
the seed: the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from raggedstore.errors import UsageError
from raggedstore.indexing import Positions, stable_order

__all__ = ["hash_keys", "split"]

Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
#: Of each sample, the number of its part.
_Parts = npt.NDArray[np.int32]

# All of these but _AT_ONCE are part of the rule: never to be changed.

#: Shares are whole numbers of this many: nine decimals.
_WHOLE = 10**9
#: The smallest fraction, and how far a sum of fractions may be from 1 and still mean it.
_LEAST = 10**-6
#: Cards in all decks together: as many as the processor's cache holds.
_CARDS = 2**18
#: Samples dealt at a time, so that what lies between the steps stays in the cache too.
_AT_ONCE = 2**14
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def split(
    parts: Mapping[str, float | int | None],
    n: int,
    *,
    seed: int = 0,
    by: Hashes | None = None,
    group: Hashes | None = None,
    among: int | None = None,
) -> dict[str, Positions]:
    """The positions, ascending, of each of the `parts` of `n` samples: see `Samples.split`.

    Parameters
    ----------
    by, group
        (n,) `hash_keys` of each sample's class or group.
    """
    if not isinstance(parts, Mapping) or not parts:
        raise UsageError("parts is a mapping such as {'train': 0.9, 'valid': 0.1}, and not empty")
    if not all(isinstance(name, str) for name in parts):
        raise UsageError(f"parts are named by strings, got {list(parts)!r}")
    if by is not None and group is not None:
        raise UsageError("by or group, not both: whole groups hold no class in proportion")
    seed = _checked_seed(seed)
    # By name: mappings that are equal give equal splits.
    names = sorted(parts)
    shares: list[Any] = [parts[name] for name in names]
    if _are_counts(parts):
        if group is not None:
            raise UsageError("whole groups make no exact counts: give fractions with group")
        assigned = _draw(_counts(shares, n, among), n, seed, by)
    elif among is not None:
        raise UsageError("among is for counts: fractions are of all samples, also of those to come")
    elif group is not None:
        assigned = _by_threshold(_bounds(shares), group, seed)
    else:
        assigned = _Dealer(_bounds(shares), seed).deal(n, by)
    positions = {name: np.flatnonzero(assigned == k) for k, name in enumerate(names)}
    return {name: positions[name].astype(np.int64, copy=False) for name in parts}


# What is asked for


def _checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**64:
        raise UsageError(f"seed must be an int from 0 to 2**64 - 1, got {seed!r}")
    return int(seed)


def _are_counts(parts: Mapping[str, Any]) -> bool:
    """Whether the shares are counts; UsageError where they are neither counts nor fractions."""
    given = {name: share for name, share in parts.items() if share is not None}
    if len(given) < len(parts) - 1:
        raise UsageError(f"one part may be None, for all the rest, got {dict(parts)!r}")
    for name, share in given.items():
        if isinstance(share, (bool, np.bool_)) or not isinstance(share, Real):
            raise UsageError(
                f"part {name!r} is a fraction (float), a count (int) or None, got {share!r}"
            )
    counts = [isinstance(share, Integral) for share in given.values()]
    if any(counts) and not all(counts):
        raise UsageError(
            f"fractions (floats) and counts (ints) do not mix, got {dict(parts)!r}: "
            f"1 is one sample, 1.0 is all of them"
        )
    # None alone is all of them, of those to come too: that is the fraction 1.
    return any(counts)


def _bounds(fractions: Sequence[Any]) -> list[int]:
    """Where each part ends, of `_WHOLE`; where they leave something over, that is one part more."""
    given = [float(share) for share in fractions if share is not None]
    for share in given:
        if not _LEAST <= share <= 1:
            raise UsageError(f"a fraction is from {_LEAST:f} to 1.0, got {share!r}")
    total = math.fsum(given)
    if total > 1 + _LEAST:
        raise UsageError(f"fractions come to 1.0 at most, got {total:g}")
    if len(given) < len(fractions) and total > 1 - _LEAST:
        raise UsageError(f"fractions come to {total:g}: no rest is left for None")
    if len(given) == len(fractions) and total > 1 - _LEAST:
        each = [share / total for share in given]
    else:
        each = [1 - total if share is None else float(share) for share in fractions]
    ends = [round(math.fsum(each[: k + 1]) * _WHOLE) for k in range(len(each))]
    return ends if ends[-1] == _WHOLE else [*ends, _WHOLE]


def _counts(counts: Sequence[Any], n: int, among: Any) -> tuple[list[int | None], int]:
    """Counts, and among how many of the first samples to draw them; UsageError if that fails."""
    checked = [None if count is None else int(count) for count in counts]
    given = [count for count in checked if count is not None]
    if min(given) < 0:
        raise UsageError(f"a count must not be negative, got {min(given)}")
    total = sum(given)
    if among is None:
        if None in checked:
            raise UsageError(
                "counts with a rest are drawn among the first so many samples, for good: say "
                f"among how many, such as among={n}, which is all that there are now"
            )
        among = total
    if isinstance(among, (bool, np.bool_)) or not isinstance(among, Integral):
        raise UsageError(f"among is an int, got {among!r}")
    among = int(among)
    if not total <= among <= n:
        raise UsageError(f"cannot draw {total} samples among the first {among} of {n}")
    return checked, among


# Keys


def hash_keys(keys: Any, *, what: str = "by") -> Hashes:
    """(n,) a hash of each of the (n,) integers, bools, texts or bytes of `keys`.

    It depends on the value alone: not on the width of the integer, nor on how texts are kept.
    """
    if not isinstance(keys, (list, tuple)):
        keys = np.asarray(keys)
        if keys.ndim == 1 and keys.dtype.kind in "USOT":
            keys = keys.tolist()
    if isinstance(keys, (list, tuple)):
        texts = sum(isinstance(key, (str, bytes)) for key in keys)
        if keys and texts == len(keys):
            return _hash_texts(keys)
        # As objects, which are refused, where left to itself NumPy makes texts of the numbers.
        kind: Any = object if texts else None if keys else np.int64
        try:
            keys = np.asarray(keys, kind)
        except ValueError as error:
            raise UsageError(f"{what}: {error}") from None
    if keys.ndim != 1 or keys.dtype.kind not in "biu":
        raise UsageError(
            f"{what} is the name of a field or one key a sample: all integers, bools, str or bytes"
        )
    # Negative ones wrap, to what no other integer of 64 bits but a huge unsigned one becomes.
    return _mix(keys.astype(np.uint64) + _GOLDEN)


def _hash_texts(texts: Sequence[str | bytes]) -> Hashes:
    hashed = (
        xxhash.xxh3_64_intdigest(
            text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        )
        for text in texts
    )
    return np.fromiter(hashed, np.uint64, len(texts))


def _key(purpose: bytes, seed: int) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(purpose + seed.to_bytes(8, "little")))


def _mix(values: Hashes) -> Hashes:
    """SplitMix64's finalizer, in place: a permutation of the integers of 64 bits."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _below(hashes: Hashes, limit: int) -> Hashes:
    """The high halves of `hashes`, scaled to ``[0, limit)``."""
    return ((hashes >> _HALF) * np.uint64(limit)) >> _HALF


# Fractions


def _by_threshold(bounds: list[int], group: Hashes, seed: int) -> _Parts:
    """(n,) the part of each sample, by the hash of its group."""
    place = _below(_mix(group ^ _key(b"group", seed)), _WHOLE)
    return np.searchsorted(np.array(bounds[:-1], np.uint64), place, "right").astype(np.int32)


@dataclass(frozen=True, slots=True)
class _Strata:
    """The samples of each class together: `order` has them by class, in the store's order.

    The class that begins at ``order[starts[i]]`` has the hash ``hashes[i]``.
    """

    order: Positions
    starts: Int64s
    hashes: Hashes

    @classmethod
    def of(cls, by: Hashes) -> _Strata:
        classes = (by >> np.uint64(1)).astype(np.int64)
        order = stable_order(classes)
        ranked = classes[order]
        starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])[: len(by)])
        return cls(order, starts, ranked[starts].astype(np.uint64))

    @property
    def sizes(self) -> Int64s:
        """(classes,) the samples of each."""
        return np.diff(self.starts, append=len(self.order))


class _Dealer:
    """Deals samples to the parts that end at `bounds`, hand by hand."""

    def __init__(self, bounds: list[int], seed: int) -> None:
        self._bounds = bounds
        self._seed = seed
        smallest = min(np.diff(bounds, prepend=0).tolist())
        # A third is 333,333,333 of 10**9, and its hands have three samples, not four.
        self._hand = math.ceil(_WHOLE / smallest - _LEAST)
        self._decks = self._shuffled()

    def _shuffled(self) -> npt.NDArray[np.uint32]:
        """(decks, hand) permutations of a hand's cards."""
        decks = max(1, _CARDS // self._hand)
        numbers = np.arange(decks * self._hand, dtype=np.uint64).reshape(decks, self._hand)
        keys = _mix(numbers * _GOLDEN + _key(b"decks", self._seed))
        return np.argsort(keys, axis=1, kind="stable").astype(np.uint32)

    def deal(self, n: int, by: Hashes | None) -> _Parts:
        """(n,) the part of each sample."""
        parts = np.empty(n, np.int32)
        stratum = _mix(np.array([_key(b"hands", self._seed)]))
        if by is None:
            for i in range(0, n, _AT_ONCE):
                places = np.arange(i, min(i + _AT_ONCE, n), dtype=np.uint64)
                parts[i : i + _AT_ONCE] = self._parts(places, stratum)
            return parts
        strata = _Strata.of(by)
        classes = np.repeat(np.arange(len(strata.starts)), strata.sizes)
        keys = _mix(strata.hashes ^ stratum)
        for i in range(0, n, _AT_ONCE):
            number = classes[i : i + _AT_ONCE]
            within = np.arange(i, i + len(number)) - strata.starts[number]
            dealt = self._parts(within.astype(np.uint64), keys[number])
            parts[strata.order[i : i + _AT_ONCE]] = dealt
        return parts

    def _parts(self, places: Hashes, strata: Hashes) -> _Parts:
        """(k,) parts of the samples at `places` in the `strata` of these keys."""
        size = np.uint64(self._hand)
        hands: Hashes = places // size
        slots = places - hands * size
        random = _mix(hands * _GOLDEN + strata)
        cut = slots + _below(random << _HALF, self._hand)
        np.subtract(cut, size, out=cut, where=cut >= size)
        cards = self._decks[_below(random, len(self._decks)), cut]
        # Where a stratum's rounding begins is random: else the first hands of all the small
        # classes would be rounded the same way.
        phase = _below(_mix(strata + _GOLDEN), _WHOLE)
        first = hands * size  # times _WHOLE fits up to 18 billion samples
        parts = np.zeros(len(places), np.int32)
        whole = np.uint64(_WHOLE)
        for end in np.array(self._bounds[:-1], np.uint64):
            before = (first * end + phase) // whole
            parts += cards >= ((first + size) * end + phase) // whole - before
        return parts


# Counts


def _draw(counts: tuple[list[int | None], int], n: int, seed: int, by: Hashes | None) -> _Parts:
    """(n,) the part of each sample, or -1."""
    wanted, among = counts
    rest = wanted.index(None) if None in wanted else -1
    parts = np.full(n, rest, np.int32)
    random = _mix(np.arange(among, dtype=np.uint64) * _GOLDEN + _key(b"counts", seed))
    order: Positions = np.argsort(random, kind="stable")
    if by is not None:
        order = _interleaved(order, by, seed)
    start = 0
    for part, count in enumerate(wanted):
        if count is not None:
            parts[order[start : start + count]] = part
            start += count
    return parts


def _interleaved(order: Positions, by: Hashes, seed: int) -> Positions:
    """`order` changed so that every run of it has its share of each class; within one it stays."""
    strata = _Strata.of(by[order])
    sizes = np.repeat(strata.sizes, strata.sizes).astype(np.uint64)
    ranks = np.arange(len(order)) - np.repeat(strata.starts, strata.sizes)
    phase = _mix(strata.hashes ^ _key(b"phase", seed)) >> _HALF
    # (rank + a random part of one) / size, in units of 2**-32.
    place = ((ranks.astype(np.uint64) << _HALF) + np.repeat(phase, strata.sizes)) // sizes
    return order[strata.order[np.argsort(place, kind="stable")]]

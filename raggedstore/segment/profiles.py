"""What the profiles mean: a field's compression, chosen by a trial on its first data.

Each profile is a short list of candidates, tried on the first chunk of a field. The smallest
wins, but for a handicap in proportion to what it costs to decode: bitshuffle halves the speed of
LZ4, and is not worth a few hundredths of the size where speed is what was asked for. Sizes alone
decide, never times, so the same data gets the same choice on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError
from raggedstore.segment.codec import Compression, compressed_size

__all__ = ["ENOUGH", "PROFILES", "check_profile", "choose", "profile"]

#: Fewer raw bytes than this show too little to choose by.
ENOUGH = 2**16
#: Of the first so many bytes one block in so many is tried, as long as that is enough.
_TRIED, _EVERY = 2**19, 4
#: What all candidates take to less than this is next to constant, and shows nothing either.
_NOTHING = 0.02

_FAST = Compression("lz4", 9, ())
_BALANCED = Compression("zstd", 1, ())
_SMALL = Compression("zstd", 3, (), block_bytes=2**15)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A compression, and what is added to its ratio before it is compared."""

    compression: Compression
    handicap: float = 0.0


def _wide(base: Compression, *filters: tuple[float, tuple[str, ...]]) -> list[_Candidate]:
    return [_Candidate(replace(base, filters=names), handicap) for handicap, names in filters]


_NONE, _SHUFFLE, _BITS, _DELTA = (), ("shuffle",), ("bitshuffle",), ("shuffle", "bytedelta")

#: For items of several bytes. The first is what a field gets that has no data to try on.
_CANDIDATES = {
    "fast": _wide(_FAST, (0.01, _SHUFFLE), (0.0, _NONE), (0.15, _BITS)),
    "balanced": _wide(_BALANCED, (0.0, _BITS), (0.0, _NONE), (0.03, _SHUFFLE), (0.08, _DELTA)),
    "small": _wide(_SMALL, (0.0, _DELTA), (0.0, _NONE), (0.0, _SHUFFLE), (0.0, _BITS)),
}
PROFILES = tuple(_CANDIDATES)

#: For single bytes, which no shuffle helps. Images gain by the difference to the neighbour: that
#: filter wants items of several bytes, and pixels of three or four are such items.
_BYTE_CANDIDATES = {
    "fast": [_Candidate(_FAST)],
    "balanced": [
        _Candidate(_BALANCED),
        _Candidate(replace(_BALANCED, filters=("bytedelta",), item_bytes=4), 0.005),
    ],
    "small": [
        _Candidate(_SMALL),
        _Candidate(replace(_SMALL, filters=("bytedelta",), item_bytes=4)),
    ],
}


def check_profile(name: str) -> str:
    """`name`; UsageError where there is no such profile."""
    if name not in PROFILES:
        raise UsageError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}")
    return name


def profile(name: str, itemsize: int) -> Compression:
    """What the profile `name` takes for items of `itemsize` bytes when there is nothing to try."""
    return (_CANDIDATES if itemsize > 1 else _BYTE_CANDIDATES)[check_profile(name)][0].compression


def choose(
    name: str,
    raw: npt.NDArray[Any],
    itemsize: int,
    row_nbytes: int,
    apply: Callable[..., Iterable[float]] = map,
) -> Compression | None:
    """The compression that the profile `name` picks for data like `raw`; None if that can't tell.

    Parameters
    ----------
    raw
        C-contiguous: the first rows of the field; blocks from all over the first 512 KiB are tried,
        and fewer than `ENOUGH` bytes not at all.
    itemsize, row_nbytes
        Bytes of one value and of one row.
    apply
        As `map`: by a pool's, the candidates are tried at once.
    """
    first = profile(name, itemsize)
    rows_of = first.chunk_rows(row_nbytes, itemsize)
    # Other items may make for other blocks where rows are odd; chunks are cut already.
    tried = [
        candidate
        for candidate in (_CANDIDATES if itemsize > 1 else _BYTE_CANDIDATES)[name]
        if candidate.compression.chunk_rows(row_nbytes, itemsize) == rows_of
    ]
    if len(tried) == 1 or raw.nbytes < ENOUGH:
        return first
    rows = raw.reshape(-1).view(np.uint8).reshape(-1, row_nbytes)[: max(_TRIED // row_nbytes, 1)]

    def ratio(candidate: _Candidate) -> float:
        block = candidate.compression.chunk_rows(row_nbytes, itemsize)[1]
        part = rows[: max(len(rows) // block, 1) * block]  # whole blocks, as chunks are
        if part.nbytes >= _EVERY * ENOUGH:  # blocks know nothing of one another
            part = part.reshape(-1, block, row_nbytes)[::_EVERY].reshape(-1, row_nbytes)
        size = compressed_size(part, itemsize, row_nbytes, candidate.compression)
        return size / part.nbytes

    ratios = list(apply(ratio, tried))
    if max(ratios) < _NOTHING:
        return None
    costs = [ratio + candidate.handicap for ratio, candidate in zip(ratios, tried, strict=True)]
    return tried[costs.index(min(costs))].compression

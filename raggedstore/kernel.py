"""The compiled part, where there is one: copies, decoding and checksums without the GIL.

It was compiled when the package was installed, if a C compiler was there, and takes Blosc2 and
xxh3 from the libraries that came with their packages. Where any of them is missing, or the
environment has ``RAGGEDSTORE_KERNEL=0``, NumPy does the same: the results are equal, and it takes
longer.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

__all__ = ["compiled", "copy_held", "copy_rows", "digests_of", "is_there", "order_of"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Checks = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]

_BLOSC2 = "3."  # versions of the C library that it was tried with


def _load() -> ModuleType | None:
    if os.environ.get("RAGGEDSTORE_KERNEL") == "0" or sys.byteorder != "little":
        return None
    try:
        from raggedstore import _kernel

        codec = ctypes.CDLL(str(Path(blosc2.__file__).parent / "lib" / "libblosc2.so"))
        digest = ctypes.CDLL(import_module("xxhash._xxhash").__file__)
        codec.blosc2_get_version_string.restype = ctypes.c_char_p
        if not codec.blosc2_get_version_string().decode().startswith(_BLOSC2):
            return None
        codec.blosc2_init()
        calls = (
            codec.blosc2_create_dctx,
            codec.blosc2_decompress_ctx,
            codec.blosc2_free_ctx,
            digest.XXH3_64bits,
        )
    except (ImportError, OSError, AttributeError):
        return None
    _kernel.use(*(ctypes.cast(call, ctypes.c_void_p).value or 0 for call in calls))
    return _kernel


_compiled = _load()


def is_there() -> bool:
    """Whether this is compiled."""
    return _compiled is not None


def compiled() -> ModuleType:
    """The compiled module, where there is one."""
    assert _compiled is not None
    return _compiled


def _raw(rows: npt.NDArray[Any]) -> Bytes:
    return rows.reshape(-1).view(np.uint8)


def _int64s(numbers: Int64s) -> Int64s:
    return np.ascontiguousarray(numbers, np.int64)


def order_of(keys: Int64s) -> Int64s | None:
    """(n,) the stable order of (n,) non-negative `keys`; None where this is not compiled."""
    if _compiled is None:
        return None
    order = np.empty(len(keys), np.int64)
    _compiled.order(_int64s(keys), order)
    return order


def hashes_of(numbers: Int64s, key: Hashes) -> Hashes | None:
    """(n,) uint64: what `training.keys.hashed` gives; None where this is not compiled."""
    if _compiled is None:
        return None
    out = np.empty(len(numbers), np.uint64)
    _compiled.hash(_int64s(numbers), int(key[0]), int(key[1]), out)
    return out


def permuted(values: Int64s, bits: Int64s, rounds: Hashes, *, back: bool) -> Int64s | None:
    """(n,) where a Feistel network takes each of `values`, of as many `bits`; or whence, `back`.

    `training.keys` says which. None where this is not compiled.
    """
    if _compiled is None:
        return None
    out = np.empty(len(values), np.int64)
    _compiled.permute(_int64s(values), _int64s(bits), rounds, back, out)
    return out


def measure(spans: Int64s, limit: int) -> tuple[Int64s, Int64s, bool] | None:
    """Sizes of spans, where each begins once they lie one after another, and whether they do.

    Parameters
    ----------
    spans
        (n, 2) where each starts and stops.
    limit
        Where the last may stop, and the most that all may come to.

    Returns
    -------
    (n,) and (n + 1,); None where a span lies outside, all are too many, or this is not compiled.
    """
    if _compiled is None:
        return None
    sizes, offsets = np.empty(len(spans), np.int64), np.empty(len(spans) + 1, np.int64)
    how = _compiled.measure(_int64s(spans), limit, sizes, offsets)
    return (sizes, offsets, how == 2) if how else None


def digests_of(stored: bytes | memoryview, edges: npt.NDArray[np.uint32]) -> Checks | None:
    """(n,) uint32, 32 bits of the xxh3 of what is stored between (n + 1,) ascending `edges`.

    None where this is not compiled.
    """
    if _compiled is None:
        return None
    digests = np.empty(len(edges) - 1, np.uint32)
    _compiled.digests(stored, np.ascontiguousarray(edges, np.uint32), digests)
    return digests


def copy_rows(
    rows: npt.NDArray[Any],
    starts: Int64s,
    counts: Int64s,
    places: Int64s,
    out: npt.NDArray[Any],
) -> bool:
    """Copy runs of `rows` to `out`, which has such rows; False where nothing was done.

    Parameters
    ----------
    starts, counts, places
        (n,) where each run begins, its rows, and where in `out` it is to begin.

    Raises
    ------
    IndexError
        A run lies outside of an array.
    """
    row = out.itemsize
    for size in out.shape[1:]:
        row *= size
    if (
        _compiled is None
        or not row
        or out.dtype.hasobject
        or rows.dtype != out.dtype
        or not (out.flags.c_contiguous and rows.flags.c_contiguous)
    ):
        return False
    runs = (_int64s(starts), _int64s(counts), _int64s(places))
    edges = np.array([0, len(starts)], np.int64)
    _compiled.copy([_raw(rows)], row, edges, *runs, _raw(out))
    return True


def copy_held(
    chunks: list[npt.NDArray[Any]],
    first: int,
    out: npt.NDArray[Any],
    starts: Int64s,
    stops: Int64s | None = None,
    places: Int64s | None = None,
) -> None:
    """Copy ranges of rows to `out` from chunks of as many such rows each, where this is compiled.

    Parameters
    ----------
    chunks, first
        Side by side in the dataset, and the number of the first of them.
    starts, stops, places
        (n,) where each range begins and ends in the dataset, and the row of `out` that it goes to;
        without `stops` each has one row, without `places` they come one after another.

    Raises
    ------
    IndexError
        A range lies outside of them, or of `out`.
    """
    row = out[:1].nbytes
    each = len(chunks[0])
    numbers = [None if a is None else _int64s(a) for a in (starts, stops, places)]
    compiled().copy_held([_raw(chunk) for chunk in chunks], first, each, row, *numbers, _raw(out))

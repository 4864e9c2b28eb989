"""The compiled part of reading, where there is one: copies and decoding without the GIL.

It was compiled when the package was installed, if a C compiler was there, and takes Blosc2 and
xxh3 from the libraries that came with their packages. Where any of them is missing, or the
environment has ``RAGGEDSTORE_KERNEL=0``, NumPy does the same: the results are equal, and it takes
longer.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

__all__ = ["compiled", "copy_rows", "is_there", "order_of"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_BLOSC2 = "3."  # versions of the C library that it was tried with


def _load() -> ModuleType | None:
    if os.environ.get("RAGGEDSTORE_KERNEL") == "0":
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


def copy_rows(
    sources: Sequence[npt.NDArray[Any]],
    edges: Int64s | None,
    starts: Int64s,
    counts: Int64s,
    places: Int64s,
    out: npt.NDArray[Any],
) -> bool:
    """Copy runs of rows from several arrays to `out`; False where nothing was done.

    Parameters
    ----------
    sources
        Arrays with rows like those of `out`.
    edges
        (len(sources) + 1,) which runs are of which array; None where there is one.
    starts, counts, places
        (n,) where each run begins in its array, its rows, and where in `out` it is to begin.

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
        or not out.flags.c_contiguous
        or not all(rows.flags.c_contiguous and rows.dtype == out.dtype for rows in sources)
    ):
        return False
    if edges is None:
        edges = np.array([0, len(starts)], np.int64)
    _compiled.copy(
        [_raw(rows) for rows in sources],
        row,
        edges,
        _int64s(starts),
        _int64s(counts),
        _int64s(places),
        _raw(out),
    )
    return True

"""Finding and making the PyTables nodes that a ragged array is made of."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tables

from raggedstore.errors import ConflictError, FormatError, UsageError

__all__ = ["byteorder", "child", "make_earray", "make_group", "value_filters"]

_DEFAULT = tables.Filters(complevel=1, complib="blosc2:zstd", shuffle=True)
_BARE = {"blosc": "blosc:lz4", "blosc2": "blosc2:lz4"}  # PyTables would take BloscLZ
_MOST_DIMENSIONS = 32


def child(group: Any, name: str) -> Any:
    """The node `name` of `group`.

    Raises
    ------
    FormatError
        There is none.
    """
    if not isinstance(group, tables.Group):
        raise UsageError(f"expected a group of an open PyTables file, got {type(group).__name__}")
    if name not in group:
        raise FormatError(f"group {group._v_pathname!r} has no node {name!r}")
    return group._f_get_child(name)


def make_group(where: Any, name: str, ndim: int) -> Any:
    """A new group for samples of `ndim` dimensions.

    Raises
    ------
    UsageError
        `where` is no group of a file open to write, or `ndim` cannot be.
    ConflictError
        `where` has a child of that name.
    """
    if not isinstance(where, tables.Group):
        raise UsageError(f"expected a group of an open PyTables file, got {type(where).__name__}")
    if where._v_file.mode == "r":
        raise UsageError(
            f"{where._v_file.filename!r} was opened to read: nothing can be made in it"
        )
    if not 1 <= ndim <= _MOST_DIMENSIONS:
        raise UsageError(f"samples have 1 to {_MOST_DIMENSIONS} dimensions, got ndim={ndim}")
    if name in where:
        raise ConflictError(f"group {where._v_pathname!r} already has a child {name!r}")
    return where._v_file.create_group(where, name)


def make_earray(
    group: Any,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    *,
    filters: tables.Filters,
    chunk_bytes: int = 2**16,
) -> Any:
    """An empty EArray that grows along its first dimension."""
    row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    rows = max(chunk_bytes // row_bytes, 1)
    return group._v_file.create_earray(
        group,
        name,
        atom=tables.Atom.from_dtype(dtype.newbyteorder("=")),
        shape=shape,
        filters=filters,
        chunkshape=(rows, *shape[1:]),
        byteorder=byteorder(dtype),
    )


def value_filters(filters: tables.Filters | None) -> tables.Filters:
    """`filters`, or the default, never with BloscLZ (which has an open heap overflow).

    Raises
    ------
    UsageError
        They name BloscLZ.
    """
    if filters is None:
        return _DEFAULT
    complib = filters.complib or ""
    if complib.endswith(":blosclz"):
        raise UsageError("BloscLZ is not written; take 'blosc2:zstd' or 'blosc2:lz4'")
    return filters.copy(complib=_BARE[complib]) if complib in _BARE else filters


def byteorder(dtype: np.dtype[Any]) -> str:
    """PyTables' word for the byte order of `dtype`."""
    return {"<": "little", ">": "big"}.get(dtype.byteorder, sys.byteorder)

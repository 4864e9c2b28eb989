"""Reading rows of one array node: a PyTables leaf, an h5py dataset, anything with a shape.

Strategy: all keys have become non-negative positions before they get here (PyTables itself
wraps negative ones twice), so a node is only ever asked for ``[start, stop)`` of its first
dimension. Scattered rows are read in as few such ranges as there are separate runs of chunks
among them, since a chunk is decoded whole whatever part of it is wanted.

Blosc2 nodes are not read through PyTables' slices, which leak some 67 kB each and decode a
whole chunk for every few rows: the stored chunk is fetched as it is, and decoded here.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tables
from tables.utilsextension import get_filters

from raggedstore.errors import CorruptionError, UsageError
from raggedstore.indexing import Positions
from raggedstore.segment.boxes import decode_rows

__all__ = ["Array", "RowReader", "Rows", "runs"]

Array = npt.NDArray[Any]

_RUN_BYTES = 4 * 2**20  # scattered rows are gathered through pieces of at most about this
#: Of PyTables' atoms, those that are stored as NumPy has them, and times.
_DIRECT_KINDS = {"bool", "int", "uint", "float", "complex", "string", "enum", "time"}


class RowReader(Protocol):
    """What gives rows by position: a node itself, or a buffer in front of one."""

    def __len__(self) -> int: ...

    def gather(self, positions: Positions) -> Array:
        """The rows at `positions`, each in range, in any order."""


class Rows:
    """Rows of one node, by non-negative positions only.

    Parameters
    ----------
    node : PyTables EArray, CArray, Array or Table; h5py dataset; any array-like
        Needs ``shape``, ``dtype`` and slices of its first dimension.
    """

    def __init__(self, node: Any) -> None:
        shape, dtype = getattr(node, "shape", None), getattr(node, "dtype", None)
        if shape is None or dtype is None or isinstance(node, tables.VLArray):
            raise UsageError(
                f"{_name(node)} has no rows of one shape and dtype; ragged samples need "
                "RaggedEArray.attach or RaggedVLArray.attach"
            )
        if len(shape) == 0:
            raise UsageError(f"{_name(node)} is a scalar: there are no rows to read")
        self.node, self.name = node, _name(node)
        whole = np.dtype(dtype)
        base, inner = whole.subdtype or (whole, ())  # items of PyTables may be arrays
        self.dtype: np.dtype[Any] = base
        if self.dtype.hasobject:
            raise UsageError(f"{_name(node)} holds Python objects, whose bytes cannot be counted")
        self._item, self._outer = whole, tuple(int(extent) for extent in shape[1:])
        self.row_shape: tuple[int, ...] = (*self._outer, *inner)
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))
        chunks = getattr(node, "chunkshape", None) or getattr(node, "chunks", None)
        rows = chunks[0] if isinstance(chunks, tuple) else 2**16 // max(self.row_bytes, 1)
        self.chunk_rows = max(int(rows), 1)
        self._direct = _is_blosc2(node)

    def __len__(self) -> int:
        if not getattr(self.node, "_v_isopen", True):  # PyTables' own error names an attribute
            raise UsageError(f"the file that {self.name} lies in is closed")
        return int(self.node.shape[0])

    def read(self, start: int, stop: int) -> Array:
        """Rows ``[start, stop)``, an array of the caller's own; ``0 <= start <= stop <= len``."""
        if start == stop:
            return np.empty((0, *self.row_shape), self.dtype)
        if self._direct:
            return self._read_chunks(start, stop)
        given = self.node[start:stop]
        block = np.asarray(given)
        if isinstance(given, np.ma.MaskedArray) or block.dtype != self.dtype:
            raise UsageError(
                f"{self.name} says that it holds {self.dtype}, and gives "
                f"{'masked values' if isinstance(given, np.ma.MaskedArray) else block.dtype}"
            )
        return block if block.flags.owndata and block.flags.writeable else block.copy()

    def gather(self, positions: Positions) -> Array:
        """Rows at `positions`, in the order given, repeats kept."""
        if len(positions) and _consecutive(positions):
            return self.read(int(positions[0]), int(positions[-1]) + 1)
        order, inverse = np.unique(positions, return_inverse=True)
        found = np.empty((len(order), *self.row_shape), self.dtype)
        limit = _RUN_BYTES // max(self.row_bytes, 1)
        for members in runs(order, order + 1, chunk=self.chunk_rows, limit=limit):
            start, stop = int(order[members][0]), int(order[members][-1]) + 1
            found[members] = self.read(start, stop)[order[members] - start]
        return found if len(order) == len(positions) and _ascending(positions) else found[inverse]

    def strided(self, wanted: range) -> Array:
        """Rows at an ascending `wanted`, without a list of its positions."""
        if wanted.step == 1:
            return self.read(wanted.start, wanted.stop)
        found = np.empty((len(wanted), *self.row_shape), self.dtype)
        span = 1 if wanted.step > self.chunk_rows else _RUN_BYTES // max(self.row_bytes, 1)
        piece = max(span // wanted.step, 1)
        for first in range(0, len(wanted), piece):
            part = wanted[first : first + piece]
            found[first : first + piece] = self.read(part[0], part[-1] + 1)[:: wanted.step]
        return found

    def _read_chunks(self, start: int, stop: int) -> Array:
        out = np.empty((stop - start, *self.row_shape), self.dtype)
        chunkshape = tuple(int(extent) for extent in self.node.chunkshape)
        low, high = (start,) + (0,) * len(self._outer), (stop, *self._outer)
        grid = [
            range(first // size * size, last, size)
            for first, last, size in zip(low, high, chunkshape, strict=True)
        ]
        for corner in itertools.product(*grid):
            inside = list(zip(corner, chunkshape, low, high, strict=True))
            source = tuple(
                slice(max(first, at) - at, min(last, at + size) - at)
                for at, size, first, last in inside
            )
            target = tuple(
                slice(max(first, at) - first, min(last, at + size) - first)
                for at, size, first, last in inside
            )
            out[target] = self._read_chunk(corner, chunkshape, source)
        return out

    def _read_chunk(
        self, corner: tuple[int, ...], chunkshape: tuple[int, ...], part: tuple[slice, ...]
    ) -> Array:
        info = self.node.chunk_info(corner)
        if info.offset is None:  # never written: HDF5 means its fill value
            extents = [piece.stop - piece.start for piece in part]
            inner = self.row_shape[len(self._outer) :]
            fill = np.asarray(self.node.atom.dflt)  # with more dimensions each time an atom is used
            return np.full((*extents, *inner), fill[(0,) * (fill.ndim - len(inner))], self.dtype)
        stored = self.node.read_chunk(corner)
        item = np.dtype((np.void, self._item.itemsize))  # an item may be an array
        try:
            if info.filter_mask:  # this chunk skipped the filter: its bytes are the values
                items = np.frombuffer(stored, item).reshape(chunkshape)[part]
            else:
                items = _decode(stored, item, chunkshape, part)
            return self._values(items)
        except Exception as error:  # damaged bytes: the decoder raises whatever it trips over
            raise CorruptionError(
                f"{_name(self.node)}: the chunk at {corner} does not decode ({error})"
            ) from error

    def _values(self, items: Array) -> Array:
        """What stored items are."""
        shape = (*items.shape, *self.row_shape[len(self._outer) :])
        flat = np.ascontiguousarray(items).reshape(-1)
        if self.node.atom.type == "time64":  # seconds, and below them microseconds
            times = flat.view(np.int64)
            return ((times >> 32) + 1e-6 * times.astype(np.int32)).reshape(shape)
        return flat.view(self.dtype).reshape(shape)


def _decode(
    frame: bytes, dtype: np.dtype[Any], chunkshape: tuple[int, ...], part: tuple[slice, ...]
) -> Array:
    """`part` of the chunk in a contiguous Blosc2 frame, its rows by the blocks that they lie in."""
    rows, *others = part
    got = decode_rows(memoryview(frame), rows.start, rows.stop, chunkshape, dtype)
    return got[(slice(None), *others)]


def runs(starts: Positions, stops: Positions, *, chunk: int, limit: int) -> list[slice]:
    """Groups of ascending ranges that are best read as one.

    Neighbours join where the first chunk of one is the last chunk of those before it, or they
    touch; a group longer than about `limit` rows is cut, so that memory stays bounded.

    Parameters
    ----------
    starts, stops : (k,) int64
        Ranges ``[start, stop)`` with ascending starts.
    chunk, limit : int
        Rows of a chunk; rows that a group may span (one range may be longer by itself).

    Returns
    -------
    list of slice
        Which of the ranges make a group, in order.
    """
    if len(starts) == 0:
        return []
    reach = np.maximum.accumulate(stops)
    apart = (starts[1:] > reach[:-1]) & (starts[1:] // chunk > (reach[:-1] - 1) // chunk)
    joined = np.concatenate([[0], np.cumsum(apart)])
    origin = starts[np.searchsorted(joined, joined)]  # where each range's run of chunks begins
    piece = (starts - origin) // max(limit, 1)
    cuts = np.flatnonzero((np.diff(joined) != 0) | (np.diff(piece) != 0)) + 1
    edges = [0, *cuts.tolist(), len(starts)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _is_blosc2(node: Any) -> bool:
    """Whether PyTables would read this node by its Blosc2 shortcut, which leaks."""
    return (
        isinstance(node, tables.CArray)  # of which EArray is a kind
        and node.byteorder in (sys.byteorder, "irrelevant")
        and node.atom.kind in _DIRECT_KINDS
        # Blosc2 and nothing else: with HDF5's own shuffle before it, say, or a checksum after
        # it, a stored chunk is no Blosc2 frame of the values.
        and list(get_filters(node._v_parent._v_objectid, node._v_name) or ()) == ["blosc2"]
    )


def _consecutive(positions: Positions) -> bool:
    return bool((np.diff(positions) == 1).all())


def _ascending(positions: Positions) -> bool:
    return bool((np.diff(positions) > 0).all())


def _name(node: Any) -> str:
    return str(getattr(node, "_v_pathname", None) or getattr(node, "name", type(node).__name__))

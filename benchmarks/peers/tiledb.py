"""TileDB: one flat dense array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, ChunkedReader, Peer, Reader

#: Read at once: a query takes a millisecond, whether it is for a sample or for this.
UNIT_BYTES = 2**22


class TileDB(Peer):
    """Tiles of byte-shuffled LZ4. Samples are not appended one by one: each write is a fragment."""

    name = "tiledb lz4"
    modules = ("tiledb",)

    def __init__(self, tile_bytes: int) -> None:
        self.tile_bytes = tile_bytes

    def write(self, folder: Path, corpus: Corpus) -> None:
        self._array(folder / "values", corpus.values)
        self._array(folder / "offsets", corpus.offsets)
        if corpus.shapes is not None:
            self._array(folder / "shapes", corpus.shapes.reshape(-1))

    def _array(self, path: Path, values: Array) -> None:
        import tiledb

        n = len(values)
        tile = min(self.tile_bytes // values.itemsize, n)
        domain = tiledb.Domain(tiledb.Dim("i", (0, n - 1), tile, dtype=np.uint64))
        filters = [tiledb.ByteShuffleFilter()] if values.itemsize > 1 else []
        filters.append(tiledb.LZ4Filter())
        # Nameless, so that a slice is an array and not a dict of them.
        attribute = tiledb.Attr("", dtype=values.dtype, filters=tiledb.FilterList(filters))
        tiledb.Array.create(str(path), tiledb.ArraySchema(domain, attrs=[attribute]))
        with tiledb.open(str(path), "w") as array:
            array[:] = values

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder, cache_bytes)


class _Reader(ChunkedReader):
    def __init__(self, folder: Path, cache_bytes: int) -> None:
        import tiledb

        def whole(name: str) -> Array:
            with tiledb.open(str(folder / name), "r") as array:
                values: Array = array[:]
                return values

        self._array: Any = tiledb.open(str(folder / "values"), "r")
        dtype = self._array.attr(0).dtype
        self._values = self._array.shape[0]
        super().__init__(dtype, UNIT_BYTES // dtype.itemsize, cache_bytes)
        offsets = whole("offsets")
        shapes = whole("shapes") if (folder / "shapes").exists() else None
        self._index(offsets, None if shapes is None else shapes.reshape(len(offsets) - 1, -1))

    def load(self, start: int, stop: int) -> Array:
        chunk: Array = self._array[start : min(stop, self._values)]
        return chunk

    def close(self) -> None:
        self._array.close()

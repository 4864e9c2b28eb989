"""Zarr v3: one flat array in one shard, so that it is a file and not a folder of thousands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, ChunkedReader, Peer, Reader


class Zarr(Peer):
    """Chunks of Blosc-LZ4 in shards; decoded chunks are kept by the reader here.

    Samples are not appended one by one: an append rewrites a shard.
    """

    name = "zarr blosc:lz4"
    modules = ("zarr",)

    def __init__(self, chunk_bytes: int, shard_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.shard_bytes = shard_bytes

    def write(self, folder: Path, corpus: Corpus) -> None:
        import zarr

        group = zarr.create_group(str(folder / "x.zarr"))
        self._array(group, "values", corpus.values)
        self._array(group, "offsets", corpus.offsets)
        if corpus.shapes is not None:
            self._array(group, "shapes", corpus.shapes)

    def _array(self, group: Any, name: str, array: Array) -> None:
        from zarr.codecs import BloscCodec

        tail = array.shape[1:]
        row = array.dtype.itemsize * int(np.prod(tail))
        chunk = max(1, min(self.chunk_bytes // row, len(array)))
        # A shard is a whole number of chunks.
        shard = chunk * max(1, min(self.shard_bytes // (chunk * row), -(-len(array) // chunk)))
        how = "shuffle" if array.dtype.itemsize > 1 else "noshuffle"
        made = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(chunk, *tail),
            shards=(shard, *tail),
            compressors=BloscCodec(cname="lz4", clevel=5, shuffle=how),
        )
        made[:] = array

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder, cache_bytes)


class _Reader(ChunkedReader):
    def __init__(self, folder: Path, cache_bytes: int) -> None:
        import zarr

        group = zarr.open_group(str(folder / "x.zarr"), mode="r")
        self._values = group["values"]
        (chunk,) = self._values.chunks
        super().__init__(self._values.dtype, chunk, cache_bytes)
        self._index(group["offsets"][:], group["shapes"][:] if "shapes" in group else None)

    def load(self, start: int, stop: int) -> Array:
        chunk: Array = self._values[start:stop]
        return chunk

"""LMDB with one Blosc2-LZ4 value per sample."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Int64s, Peer, Reader, parts_of

#: Blosc2's chunk header alone takes 32 bytes: smaller samples are kept as they are.
LEAST = 256
MAP_BYTES = 2**40  # of address space; the file grows as it needs


class Lmdb(Peer):
    """A value is one byte (compressed or not), the shape where there is one, and the data."""

    name = "lmdb blosc2:lz4"
    modules = ("lmdb", "blosc2")

    def write(self, folder: Path, corpus: Corpus) -> None:
        self._put(folder, corpus, corpus)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        self._put(folder, samples, like)
        return True

    def _put(self, folder: Path, samples: Iterable[Array], like: Corpus) -> None:
        import blosc2
        import lmdb

        itemsize = like.dtype.itemsize
        params = blosc2.CParams(
            codec=blosc2.Codec.LZ4,
            clevel=5,
            typesize=itemsize,
            nthreads=1,
            filters=[blosc2.Filter.SHUFFLE if itemsize > 1 else blosc2.Filter.NOFILTER],
        )

        def pairs() -> Iterator[tuple[bytes, bytes]]:
            for i, sample in enumerate(samples):
                dims = np.array(sample.shape, "<u4").tobytes() if sample.ndim > 1 else b""
                small = sample.nbytes < LEAST
                data = sample.tobytes() if small else blosc2.compress2(sample, cparams=params)
                yield struct.pack(">Q", i), b"".join((b"\0" if small else b"\1", dims, data))

        with lmdb.open(str(folder), map_size=MAP_BYTES) as env:
            # putmulti with append fills pages in order, one call into C for all.
            with env.begin(write=True) as txn, txn.cursor() as cursor:
                cursor.putmulti(pairs(), append=True)
            with env.begin(write=True) as txn:
                txn.put(b"type", f"{like.dtype.str} {like.ndim}".encode())

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder)


class _Reader(Reader):
    def __init__(self, folder: Path) -> None:
        import blosc2
        import lmdb

        self._decompress = blosc2.decompress2
        # No lock file, and one transaction for the reader's life.
        self._env = lmdb.open(str(folder), readonly=True, lock=False, map_size=MAP_BYTES)
        self._txn = self._env.begin(buffers=True)
        self._cursor = self._txn.cursor()
        dtype, ndim = bytes(self._txn.get(b"type")).decode().split()
        self._dtype, self._ndim = np.dtype(dtype), int(ndim)
        self._n = self._env.stat()["entries"] - 1
        self._head = 1 + (4 * self._ndim if self._ndim > 1 else 0)

    def _decode(self, value: Any) -> Array:
        data = value[self._head :]
        if value[0]:
            (nbytes,) = struct.unpack_from("<i", data, 4)  # as a Blosc2 chunk's header says
            flat = np.empty(nbytes // self._dtype.itemsize, self._dtype)
            self._decompress(data, dst=flat, nthreads=1)
        else:
            flat = np.frombuffer(data, self._dtype)
        if self._ndim == 1:
            return flat
        return flat.reshape(np.frombuffer(value, "<u4", self._ndim, 1))

    def sequential(self, batch: int) -> Iterator[Batch]:
        with self._txn.cursor() as cursor:
            cursor.first()
            values = islice((value for _, value in cursor.iternext()), self._n)
            for _ in range(0, self._n, batch):
                yield [self._decode(value) for value in islice(values, batch)]

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return (self._of_keys(part) for part in parts_of(order, batch))

    def _of_keys(self, part: list[int]) -> list[Array]:
        found = self._cursor.getmulti([struct.pack(">Q", i) for i in part])
        return [self._decode(value) for _, value in found]

    def get(self, i: int) -> Array:
        return self._decode(self._txn.get(struct.pack(">Q", i)))

    def close(self) -> None:
        # What was given as views of the map must not outlive it.
        self._cursor.close()
        self._txn.abort()
        self._env.close()

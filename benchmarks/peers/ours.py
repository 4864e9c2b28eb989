"""raggedstore itself, in its three profiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import raggedstore as rs
from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Flat, Int64s, Peer, Reader
from raggedstore.training import FixedSize, Loader, Order, Sequential, Shuffled

#: What is no profile.
OTHERS = {"uncompressed": rs.Compression("lz4", 0, ())}


class Ours(Peer):
    """A store of one ragged field."""

    modules = ("raggedstore",)
    ours = True

    def __init__(self, profile: str) -> None:
        self.name = f"raggedstore {profile}"
        self.compressed = profile not in OTHERS
        self.profile: str | rs.Compression = OTHERS.get(profile, profile)

    def create(self, folder: Path, like: Corpus) -> rs.Store:
        """An empty store of samples like those of a corpus."""
        shape = (None,) if like.ndim == 1 else (None, None, *like.shapes[0, 2:].tolist())
        return rs.create(folder / "store", {"x": rs.Field(like.dtype, shape)}, profile=self.profile)

    def write(self, folder: Path, corpus: Corpus) -> None:
        batch = rs.RaggedBatch(corpus.values, corpus.offsets, corpus.shapes)
        with self.create(folder, corpus) as store, store.writer() as writer:
            writer.extend_batch({"x": batch})

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        with self.create(folder, like) as store, store.writer() as writer:
            for sample in samples:
                writer.append({"x": sample})
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder, cache_bytes)


class _Reader(Reader):
    def __init__(self, folder: Path, cache_bytes: int) -> None:
        self._cache = cache_bytes
        self._store = rs.open(folder / "store", budget=cache_bytes)
        self._view = self._store["x"]
        # Of epochs, a quarter is for the store's chunks, the rest for what the loader made ready.
        self._looped = rs.open(folder / "store", budget=cache_bytes // 4)

    def _epoch(self, batch: int, order: Order, where: Int64s | None = None) -> Iterator[Batch]:
        loader = Loader(
            self._looped,
            fields=["x"],
            order=order,
            where=where,
            batch=FixedSize(batch),
            budget=self._cache - self._cache // 4,
        )
        for parts in loader:
            ragged = parts["x"]
            yield Flat(ragged.values, ragged.offsets, ragged.shapes)

    def sequential(self, batch: int) -> Iterator[Batch]:
        return self._epoch(batch, Sequential())

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        # What Permuted() reads, but in the order that all peers are asked for.
        return self._epoch(batch, Sequential(), order)

    def windowed(self, seed: int, batch: int) -> Iterator[Batch] | None:
        return self._epoch(batch, Shuffled(seed=seed))

    def get(self, i: int) -> Array:
        sample: Array = self._view[i]
        return sample

    def close(self) -> None:
        self._store.close()
        self._looped.close()

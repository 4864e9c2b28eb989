"""Raw values and offsets, memory-mapped: no compression, and nothing faster to read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, FlatReader, IndexBuilder, Int64s, Peer, Reader


def save_index(folder: Path, offsets: Int64s, shapes: Int64s | None) -> None:
    """Keep offsets and shapes beside the values."""
    np.save(folder / "offsets.npy", offsets)
    if shapes is not None:
        np.save(folder / "shapes.npy", shapes)


def load_index(folder: Path) -> tuple[Int64s, Int64s | None]:
    """What `save_index` kept."""
    shapes = folder / "shapes.npy"
    return np.load(folder / "offsets.npy"), np.load(shapes) if shapes.exists() else None


class Memmap(Peer):
    """np.memmap and offsets."""

    name = "memmap"
    compressed = False

    def write(self, folder: Path, corpus: Corpus) -> None:
        corpus.values.tofile(folder / "values.bin")
        (folder / "dtype").write_text(corpus.dtype.str)
        save_index(folder, corpus.offsets, corpus.shapes)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        index = IndexBuilder()
        with open(folder / "values.bin", "wb") as file:
            for sample in samples:
                file.write(sample.data)
                index.add(sample)
        (folder / "dtype").write_text(like.dtype.str)
        save_index(folder, index.offsets, index.shapes)
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder)


class _Reader(FlatReader):
    def __init__(self, folder: Path) -> None:
        # As a plain ndarray: slicing np.memmap itself costs microseconds a slice.
        dtype = (folder / "dtype").read_text()
        self._values = np.asarray(np.memmap(folder / "values.bin", dtype, mode="r"))
        self._index(*load_index(folder))

    def slice(self, start: int, stop: int) -> Array:
        return self._values[start:stop]

"""PyTables' VLArray: HDF5's variable-length type, a row per sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Int64s, Peer, Reader, parts_of


class VLArray(Peer):
    """Not compressed: HDF5's filters see only the references to its heap."""

    name = "pytables VLArray"
    compressed = False
    modules = ("tables",)

    def write(self, folder: Path, corpus: Corpus) -> None:
        import tables

        with tables.open_file(str(folder / "x.h5"), "w") as file:
            atom = tables.Atom.from_dtype(corpus.dtype)
            data = file.create_vlarray("/", "data", atom, expectedrows=len(corpus))
            for sample in corpus:
                data.append(sample.reshape(-1))
            if corpus.shapes is not None:
                file.create_array("/", "shapes", corpus.shapes)

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder / "x.h5")


class _Reader(Reader):
    def __init__(self, path: Path) -> None:
        import tables

        self._file = tables.open_file(str(path), "r")
        self._data: Any = self._file.root.data
        self._dims = self._file.root.shapes[:] if "/shapes" in self._file else None

    def sequential(self, batch: int) -> Iterator[Batch]:
        for part in parts_of(np.arange(len(self._data)), batch):
            yield [self.get(i) for i in part]

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return ([self.get(i) for i in part] for part in parts_of(order, batch))

    def get(self, i: int) -> Array:
        flat: Array = self._data[i]
        return flat if self._dims is None else flat.reshape(self._dims[i])

    def close(self) -> None:
        self._file.close()

"""A torch DataLoader over files that give any sample by its index: what most people write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting, data_loader
from benchmarks.loading.padding import Batch, collate, collate_plainly, formed
from benchmarks.peers.base import Peer, Reader


class Samples:
    """A map-style dataset; files are opened in the process that reads them, at its first sample."""

    def __init__(self, peer: Peer, folder: Path, setting: Setting) -> None:
        self._peer, self._folder, self._setting = peer, folder, setting
        self._open: tuple[int, Reader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def __len__(self) -> int:
        return self._setting.samples

    @property
    def reader(self) -> Reader:
        """This process's own."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), self._peer.open(self._folder, self._setting.share)
        return self._open[1]

    def close(self) -> None:
        """Close what this process has open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __getitem__(self, i: int) -> Any:
        return self.reader.get(i)


class SortedSamples(Samples):
    """Of each batch the samples in the order of the file: neighbours share what was decoded."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        order = np.sort(np.array(indices, np.int64))
        batches = self.reader.permuted(order, len(order))
        assert batches is not None
        samples = next(batches)
        assert isinstance(samples, list)
        return samples


class Mapped(Loading):
    """Samples one by one, padded plainly: `careful` means sorted, and padded by the loop."""

    def __init__(self, peer: Peer, storage: str, *, careful: bool, kind: str = "hdf5") -> None:
        self.name = f"{storage}, {'careful' if careful else 'plain'}"
        self.storage = storage
        self.compressed = peer.compressed
        self.modules = ("torch", *peer.modules)
        self.kind = kind
        self._peer, self._careful = peer, careful

    def write(self, folder: Path, corpus: Corpus) -> None:
        self._peer.write(folder, corpus)

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        made = SortedSamples if self._careful else Samples
        dataset = made(self._peer, folder, setting)
        collate_fn = partial(collate, flat=setting.flat) if self._careful else collate_plainly
        loader = data_loader(dataset, setting, collate_fn, shuffle=True)
        try:
            while True:
                yield formed(loader, flat=setting.flat)
        finally:
            dataset.close()

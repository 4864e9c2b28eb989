"""A windowed shuffle over a flat HDF5 dataset, as a careful user of h5py writes it by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting, data_loader
from benchmarks.loading.padding import Batch, collate, formed
from benchmarks.peers.base import Array, Flat
from benchmarks.peers.hdf5 import H5pyFlat

BLOCK_BYTES = 2**21


class Windows(IterableDataset):  # type: ignore[type-arg]
    """Blocks of neighbours in a random order, as many as fit shuffled together; batches of them."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self._folder, self._setting = folder, setting
        self._epoch = 0

    def __iter__(self) -> Iterator[Any]:
        import h5py
        import hdf5plugin  # noqa: F401  (registers the filter)

        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # Workers live on, so that each counts the epochs for itself, and all count alike.
        seed = (self._setting.seed, self._epoch)
        self._epoch += 1
        with h5py.File(self._folder / "x.h5", "r") as file:
            offsets = file["offsets"][:]
            shapes = file["shapes"][:] if "shapes" in file else None
            values = file["values"]
            mean = values.nbytes / max(len(offsets) - 1, 1)
            rows = max(1, int(BLOCK_BYTES / max(mean, 1)))
            blocks = np.random.default_rng(seed).permutation(np.arange(0, len(offsets) - 1, rows))
            blocks = blocks[worker::workers]
            rng = np.random.default_rng((*seed, worker))
            window = max(1, self._setting.share // 2 // BLOCK_BYTES)
            held: list[Array] = []
            for first in range(0, len(blocks), window):
                read: list[Array] = []
                for i in np.sort(blocks[first : first + window]).tolist():
                    where = offsets[i : i + rows + 1]
                    dims = None if shapes is None else shapes[i : i + rows]
                    read += Flat(values[where[0] : where[-1]], where, dims).to_list()
                held += [read[i] for i in rng.permutation(len(read)).tolist()]
                del read
                batch = self._setting.batch
                whole = len(held) - len(held) % batch
                for start in range(0, whole, batch):
                    yield collate(held[start : start + batch], flat=self._setting.flat)
                del held[:whole]
            if held:
                yield collate(held, flat=self._setting.flat)


class H5pyWindows(Loading):
    """The same file as h5py's map-style dataset, read a block at a time."""

    kind = "hdf5"
    shuffle = "window"
    modules = ("torch", "h5py", "hdf5plugin")

    def __init__(self, peer: H5pyFlat, storage: str) -> None:
        self.storage = storage
        self.name = f"{storage}, windows by hand"
        self.compressed = peer.compressed
        self._peer = peer

    def write(self, folder: Path, corpus: Corpus) -> None:
        self._peer.write(folder, corpus)

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        loader = data_loader(Windows(folder, setting), setting, None, batch_size=None)
        while True:
            yield formed(loader, flat=setting.flat)

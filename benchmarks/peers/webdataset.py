"""WebDataset: tar files read from front to back, shuffled in a buffer."""

from __future__ import annotations

import io
import random
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Peer, Reader, batched

#: Samples in the buffer that a shuffle draws from: WebDataset's documentation uses 1,000.
BUFFER = 1_000


class WebDataset(Peer):
    """One shard of a .npy per sample. Not compressed, and in order or nearly so only."""

    name = "webdataset"
    compressed = False
    modules = ("webdataset",)

    def write(self, folder: Path, corpus: Corpus) -> None:
        self.append(folder, corpus, corpus)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        # By tarfile, which WebDataset's own writer wraps, with fewer steps on the way.
        with tarfile.open(folder / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i, sample in enumerate(samples):
                data = io.BytesIO()
                np.lib.format.write_array(data, sample, allow_pickle=False)
                entry = tarfile.TarInfo(f"{i:09}.npy")
                entry.size = data.tell()
                data.seek(0)
                tar.addfile(entry, data)
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder)


class _Reader(Reader):
    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "x.tar")

    def _samples(self, *stages: Any) -> Iterator[dict[str, Any]]:
        import webdataset as wds

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one shard, and none of a node's split
            yield from wds.DataPipeline(
                wds.SimpleShardList(self._path), wds.tarfile_to_samples(), *stages
            )

    def _batches(self, samples: Iterator[dict[str, Any]], batch: int) -> Iterator[Batch]:
        found = (io.BytesIO(sample["npy"]) for sample in samples)
        arrays = (np.lib.format.read_array(data, allow_pickle=False) for data in found)
        return batched(arrays, batch)

    def sequential(self, batch: int) -> Iterator[Batch]:
        return self._batches(self._samples(), batch)

    def windowed(self, seed: int, batch: int) -> Iterator[Batch] | None:
        import webdataset as wds

        shuffle = wds.shuffle(BUFFER, initial=BUFFER, rng=random.Random(seed))
        return self._batches(self._samples(shuffle), batch)

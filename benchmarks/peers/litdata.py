"""LitData: chunks that are read through, or a sample at a time by its number.

Not compressed. Whole chunks compressed are unpacked beside themselves when they are first read,
and from then on that is what is read. Compressed in batches they are decoded each time: 9,500
samples of speech a second in place of 16,600, the first after ten seconds, and images that were
written so cannot be read.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Int64s, Peer, Reader, batched

#: With its usual chunks of 64 MB two workers have one each, and wait for each other for seconds.
CHUNKS = 32
CHUNK_BYTES = 2**26


class LitData(Peer):
    """Arrays by its own serializer. Samples cannot be appended one at a time."""

    name = "litdata"
    compressed = False
    modules = ("torch", "litdata")

    def load(self) -> None:
        # Else it asks the package index, each time, whether there is a newer one.
        os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
        super().load()

    def write(self, folder: Path, corpus: Corpus) -> None:
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(folder / "cache")
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(folder / "cache")
        self.load()
        import litdata

        litdata.optimize(
            corpus.__getitem__,
            list(range(len(corpus))),
            str(folder / "x"),
            chunk_bytes=max(2**18, min(CHUNK_BYTES, corpus.nbytes // CHUNKS)),
            num_workers=1,
            start_method="fork",
            verbose=False,
        )

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder)


class _Reader(Reader):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dataset = self._opened()

    def _opened(self, **options: Any) -> Any:
        import litdata

        cache = str(self._folder / "cache")
        return litdata.StreamingDataset(str(self._folder / "x"), cache_dir=cache, **options)

    def _of(self, dataset: Any) -> Iterator[Array]:
        # Asked again where it has ended it begins anew.
        yield from itertools.islice(dataset, len(dataset))

    def sequential(self, batch: int) -> Iterator[Batch]:
        return batched(self._of(self._dataset), batch)

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return batched(map(self.get, order.tolist()), batch)

    def windowed(self, seed: int, batch: int) -> Iterator[Batch] | None:
        return batched(self._of(self._opened(shuffle=True, seed=seed)), batch)

    def get(self, i: int) -> Array:
        sample: Array = self._dataset[i]
        return sample

"""LitData: chunks that are mapped, a sample at a time by its number.

Samples are bytes: such are views of the map, while arrays by its own serializer are copied, and
those of more than one dimension cannot be read again once they were compressed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Int64s, Peer, Reader, Records, batched

#: It keeps four chunks mapped, and to map another takes longer than to read most samples.
CHUNK_BYTES = 2**30


class LitData(Peer):
    """Samples cannot be appended one at a time.

    Parameters
    ----------
    codec
        Compresses each sample by itself. Whole chunks compressed would be unpacked beside
        themselves when they are first read, and of frames of several samples one is decoded whole
        for any sample in it.
    chunk_bytes
        Size of a chunk.
    """

    modules = ("torch", "litdata")

    def __init__(self, codec: str | None, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.name = f"litdata {codec.partition(':')[0]}" if codec else "litdata"
        self.compressed = codec is not None
        self._codec, self._chunk_bytes = codec, chunk_bytes

    def load(self) -> None:
        # Else it asks the package index, each time, whether there is a newer one.
        os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
        # Else it looks, for any sample by its number, how many of the next make up 256 kB.
        os.environ["LITDATA_POSIX_PAGE_BYTES"] = "0"
        super().load()

    def write(self, folder: Path, corpus: Corpus) -> None:
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(folder / "cache")
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(folder / "cache")
        self.load()
        import litdata

        Records.describe(folder, corpus)
        litdata.optimize(
            lambda i: Records.encode(corpus[i]),
            list(range(len(corpus))),
            str(folder / "x"),
            chunk_bytes=self._chunk_bytes,
            compression=self._codec,
            compression_level="sample" if self._codec else None,
            num_workers=1,
            start_method="fork",
            verbose=False,
        )

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder)


def opened(folder: Path, **options: Any) -> Any:
    """Its dataset, of arrays."""
    import litdata

    return litdata.StreamingDataset(
        str(folder / "x"),
        cache_dir=str(folder / "cache"),
        transform=Records(folder).decode,
        **options,
    )


class _Reader(Reader):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Else it decodes up to 256 samples for any one.
        self._dataset = opened(folder, batch_decode=0)

    def sequential(self, batch: int) -> Iterator[Batch]:
        # By number: a tenth faster than iterating.
        return batched(map(self.get, range(len(self._dataset))), batch)

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return batched(map(self.get, order.tolist()), batch)

    def windowed(self, seed: int, batch: int) -> Iterator[Batch] | None:
        found = opened(self._folder, shuffle=True, seed=seed)
        # Asked again where it has ended it begins anew.
        return batched(itertools.islice(found, len(found)), batch)

    def get(self, i: int) -> Array:
        sample: Array = self._dataset[i]
        return sample

"""LitData: chunks that are read through, shuffled among themselves and within.

Not compressed. Whole chunks compressed are unpacked beside themselves when they are first read,
and from then on that is what is read. Compressed in batches they are decoded each time: 9,500
samples of speech a second in place of 16,600, the first after ten seconds, and images that were
written so cannot be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting
from benchmarks.loading.padding import Batch, collate, formed

#: With its usual chunks of 64 MB two workers have one each, and wait for each other for seconds.
CHUNKS = 32
CHUNK_BYTES = 2**26


class LitData(Loading):
    """`StreamingDataset` on a local folder, by `StreamingDataLoader`."""

    name = "litdata"
    storage = "litdata"
    compressed = False
    shuffle = "chunk"
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

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        import litdata

        dataset = litdata.StreamingDataset(
            str(folder / "x"), cache_dir=str(folder / "cache"), shuffle=True, seed=setting.seed
        )
        loader = litdata.StreamingDataLoader(
            dataset,
            batch_size=setting.batch,
            num_workers=setting.workers,
            collate_fn=partial(collate, flat=setting.flat),
            persistent_workers=setting.workers > 0,
        )
        while True:
            yield formed(loader, flat=setting.flat)

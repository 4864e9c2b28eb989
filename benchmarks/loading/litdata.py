"""LitData: chunks that are read through, shuffled among themselves and within."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting
from benchmarks.loading.padding import Batch, collate, formed
from benchmarks.peers import litdata as files

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
        files.LitData(None).load()

    def write(self, folder: Path, corpus: Corpus) -> None:
        chunk_bytes = max(2**18, min(CHUNK_BYTES, corpus.nbytes // CHUNKS))
        files.LitData(None, chunk_bytes).write(folder, corpus)

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        import litdata

        dataset = files.opened(folder, shuffle=True, seed=setting.seed)
        loader = litdata.StreamingDataLoader(
            dataset,
            batch_size=setting.batch,
            num_workers=setting.workers,
            collate_fn=partial(collate, flat=setting.flat),
            persistent_workers=setting.workers > 0,
        )
        while True:
            yield formed(loader, flat=setting.flat)

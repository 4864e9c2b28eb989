"""MosaicML Streaming: shards of samples as bytes, shuffled over all of them within a block.

Of its shuffles `py1e`, its default, was as fast as `py2s` on speech and 3 times on tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting, data_loader
from benchmarks.loading.padding import Batch, collate, formed
from benchmarks.peers import mds
from benchmarks.peers.base import Records


class MDS(Loading):
    """`StreamingDataset` on a local folder, by torch's DataLoader."""

    name = "mosaicml streaming"
    storage = "mds"
    compressed = False
    shuffle = "block"
    modules = ("torch", "streaming")

    def load(self) -> None:
        mds.MDS().load()

    def write(self, folder: Path, corpus: Corpus) -> None:
        mds.MDS().write(folder, corpus)

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        from streaming import StreamingDataset

        dataset = StreamingDataset(
            local=str(folder / "x"),
            shuffle=True,
            shuffle_seed=setting.seed,
            batch_size=setting.batch,
            num_canonical_nodes=1,
        )
        found = partial(_collate, records=Records(folder), flat=setting.flat)
        loader = data_loader(dataset, setting, found)
        while True:
            yield formed(loader, flat=setting.flat)


def _collate(rows: list[dict[str, bytes]], records: Records, *, flat: bool) -> Batch:
    return collate([records.decode(row["x"]) for row in rows], flat=flat)

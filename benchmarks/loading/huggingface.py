"""Hugging Face `datasets`: a mapped Arrow file, by index or shuffled in a buffer.

Of its formats Arrow's own tables, padded from their buffers, are fastest: on tokens 3.8 times as
fast as `numpy` and 7 as `torch`, on speech a sixth faster than `numpy`. As an `IterableDataset` it
takes no dtype for `torch` and gives int64: a tenth of the speed of tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting, data_loader
from benchmarks.loading.padding import Batch, Padded, collate_flat, collate_plainly, formed
from benchmarks.peers.arrow import as_flat, as_table

#: As in its documentation.
BUFFER = 1_000
#: Parts that an IterableDataset shuffles, and shares out among workers.
SHARDS = 16


class HuggingFace(Loading):
    """What is common: the files, which `save_to_disk` does not compress."""

    storage = "hf datasets"
    compressed = False
    modules = ("torch", "datasets")

    def load(self) -> None:
        super().load()
        import datasets

        datasets.disable_progress_bars()

    def write(self, folder: Path, corpus: Corpus) -> None:
        import datasets

        datasets.Dataset(as_table(corpus)).save_to_disk(folder / "x")

    def open(self, folder: Path) -> Any:
        """The mapped dataset."""
        import datasets

        return datasets.load_from_disk(folder / "x")


class ByIndex(HuggingFace):
    """A map-style dataset; torch's DataLoader asks it for the rows of a whole batch."""

    def __init__(self, *, careful: bool) -> None:
        self.name = f"{self.storage} map, {'careful' if careful else 'plain'}"
        self._careful = careful

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        import torch

        dataset = self.open(folder)
        if self._careful:
            loader = data_loader(
                _Tables(dataset.with_format("arrow")),
                setting,
                partial(_collate_table, flat=setting.flat),
                shuffle=True,
            )
        else:
            dtype = getattr(torch, str(dataset.features["x"].feature.dtype))
            # The dtype is for all columns of the format: shapes stay out of it.
            dataset = dataset.with_format(
                "torch", columns=["x"], output_all_columns=True, dtype=dtype
            )
            loader = data_loader(dataset, setting, _collate_rows, shuffle=True)
        while True:
            yield formed(loader, flat=setting.flat)


class Buffered(HuggingFace):
    """An `IterableDataset`: shards in a random order, and a buffer that samples are drawn from."""

    name = "hf datasets iterable, careful"
    shuffle = "buffer"

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        dataset = self.open(folder).to_iterable_dataset(num_shards=SHARDS)
        dataset = dataset.shuffle(seed=setting.seed, buffer_size=BUFFER).with_format("arrow")
        loader = data_loader(dataset, setting, partial(_collate_tables, flat=setting.flat))
        epoch = 0
        while True:
            dataset.set_epoch(epoch)
            epoch += 1
            yield formed(loader, flat=setting.flat)


class _Tables:
    """The rows of a batch as one table: what `dataset[indices]` is in this format."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: list[int]) -> Any:
        return self._dataset[indices]


def _collate_table(table: Any, *, flat: bool) -> Batch:
    (batch,) = table.combine_chunks().to_batches()
    rows = as_flat(batch)
    offsets = rows.offsets
    lengths = np.diff(offsets) if rows.shapes is None else rows.shapes.astype(np.int64)
    return collate_flat(rows.values[offsets[0] : offsets[-1]], lengths, flat=flat)


def _collate_tables(tables: list[Any], *, flat: bool) -> Batch:
    import pyarrow as pa

    return _collate_table(pa.concat_tables(tables), flat=flat)


def _collate_rows(rows: list[dict[str, Any]]) -> Padded:
    samples = [row["x"].numpy() for row in rows]
    if "shape" in rows[0]:
        samples = [x.reshape(row["shape"]) for x, row in zip(samples, rows, strict=True)]
    return collate_plainly(samples)

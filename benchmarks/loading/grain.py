"""Grain over ArrayRecord: its own pipelines, threads and worker processes.

A record per group, as Grain asks for, with Snappy: on images 1.2 times as fast as Zstd, else no
different. `plain` maps its source's records one by one, threads and buffers as Grain has them;
`careful` draws batches of indices and reads each batch at once, with ArrayRecord's own advice for
random access: 14 times as fast on tokens, 3 times on speech. Its read-ahead of two threads beats
none, and far more than the default of sixteen, which hinder one another on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting
from benchmarks.loading.padding import Array, Batch, Flat, lengths_of, pad, pad_flat
from benchmarks.peers.array_record import MODULE, ArrayRecord
from benchmarks.peers.base import Int64s, Reader

#: More than anybody measures: a pipeline is told beforehand how often to repeat.
EPOCHS = 2**20
THREADS = 2


class Grain(Loading):
    """Threads in the loop's process, or as many worker processes."""

    storage = "array_record snappy"
    modules = ("torch", "array_record", MODULE, "grain")

    def __init__(self, *, careful: bool) -> None:
        self.name = f"grain, {'careful' if careful else 'plain'}"
        self._careful = careful

    def write(self, folder: Path, corpus: Corpus) -> None:
        _FILES.write(folder, corpus)

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        import grain

        form = _flat if setting.workers or setting.flat else pad
        if self._careful:
            dataset = grain.MapDataset.range(setting.samples).seed(setting.seed).shuffle()
            dataset = dataset.batch(setting.batch).map(_Read(folder, form)).repeat(EPOCHS)
            batches = dataset.to_iter_dataset(grain.ReadOptions(THREADS, 2 * THREADS))
        else:
            source = grain.sources.ArrayRecordDataSource(str(folder / "x.array_record"))
            dataset = grain.MapDataset.source(source).seed(setting.seed).shuffle()
            # Repeated before it is batched, it would have batches of two epochs.
            parts = dataset.map(_Decode(folder)).batch(setting.batch, batch_fn=form)
            batches = parts.repeat(EPOCHS).to_iter_dataset(grain.ReadOptions(16, 16))
        if setting.workers:
            options = grain.MultiprocessingOptions(setting.workers, per_worker_buffer_size=2)
            batches = batches.mp_prefetch(options)
        each = -(-setting.samples // setting.batch)
        stream = map(_as_tensors if setting.flat else _padded, batches)
        while True:
            yield islice(stream, each)


_FILES = ArrayRecord(1, "snappy")


class _Lazy:
    """What opens the file in the process that reads it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def reader(self) -> Any:
        """The reader of `benchmarks.peers`, which is set as ArrayRecord advises."""
        if self._reader is None:
            self._reader = _FILES.open(self._folder, 0)
        return self._reader


class _Read(_Lazy):
    """A batch of indices to a batch of samples, in the order of the file."""

    def __init__(self, folder: Path, form: Any) -> None:
        super().__init__(folder)
        self._form = form

    def __call__(self, indices: Int64s) -> Any:
        reader: Reader = self.reader()
        batches = reader.permuted(np.sort(indices), len(indices))
        assert batches is not None
        return self._form(next(batches))


class _Decode(_Lazy):
    """The bytes of a record to a sample."""

    def __call__(self, record: bytes) -> Array:
        sample: Array = self.reader()._decode(record)
        return sample


def _flat(samples: list[Array]) -> dict[str, Array]:
    """As a worker hands it over: NumPy arrays, which Grain puts in shared memory."""
    values = np.concatenate([sample.reshape(-1) for sample in samples])
    return {"values": values, "lengths": lengths_of(samples)}


def _as_tensors(batch: dict[str, Array]) -> Batch:
    return Flat(*map(torch.from_numpy, (batch["values"], batch["lengths"])))


def _padded(batch: Any) -> Batch:
    return pad_flat(**batch) if isinstance(batch, dict) else batch

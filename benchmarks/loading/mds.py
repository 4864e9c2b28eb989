"""MosaicML Streaming: shards of samples as bytes, shuffled over all of them within a block.

Not compressed: compressed shards are unpacked beside themselves when they are first read, and from
then on that is what is read. Its type for arrays refuses empty ones, so that samples are bytes
here. Of its shuffles `py1e`, its default, was as fast as `py2s` on speech and 3 times on tokens.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting, data_loader, installed
from benchmarks.loading.padding import Batch, collate, formed

SHARD_BYTES = 2**24


class MDS(Loading):
    """`StreamingDataset` on a local folder, by torch's DataLoader."""

    name = "mosaicml streaming"
    storage = "mds"
    compressed = False
    shuffle = "block"
    modules = ("torch", "streaming")

    def load(self) -> None:
        if not installed("torchvision"):
            _without_torchvision()
        super().load()

    def write(self, folder: Path, corpus: Corpus) -> None:
        self.load()
        from streaming import MDSWriter

        with MDSWriter(
            out=str(folder / "x"), columns={"x": "bytes"}, size_limit=SHARD_BYTES
        ) as writer:
            for sample in corpus:
                head = np.array(sample.shape, "<u4").tobytes() if sample.ndim > 1 else b""
                writer.write({"x": head + sample.tobytes()})
        (folder / "type").write_text(f"{corpus.dtype.str} {corpus.ndim}")

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        from streaming import StreamingDataset

        dataset = StreamingDataset(
            local=str(folder / "x"),
            shuffle=True,
            shuffle_seed=setting.seed,
            batch_size=setting.batch,
            num_canonical_nodes=1,
        )
        loader = data_loader(dataset, setting, _Collate(folder, flat=setting.flat))
        while True:
            yield formed(loader, flat=setting.flat)


class _Collate:
    def __init__(self, folder: Path, *, flat: bool) -> None:
        dtype, ndim = (folder / "type").read_text().split()
        self._dtype, self._ndim = np.dtype(dtype), int(ndim)
        self._flat = flat
        self._head = 4 * self._ndim if self._ndim > 1 else 0

    def __call__(self, rows: list[dict[str, bytes]]) -> Batch:
        samples = []
        for row in rows:
            flat = np.frombuffer(row["x"], self._dtype, offset=self._head)
            dims = np.frombuffer(row["x"], "<u4", self._ndim) if self._head else None
            samples.append(flat if dims is None else flat.reshape(dims))
        return collate(samples, flat=self._flat)


def _without_torchvision() -> None:
    """Import `streaming` where torchvision is missing.

    Only its ready-made picture datasets use that, but it imports them all. The torchvision that
    goes with the pinned PyTorch needs a build of it with CUDA.
    """
    # First what it takes from transformers, which looks whether torchvision is there.
    for module in "transformers.feature_extraction_utils", "transformers.tokenization_utils_base":
        importlib.import_module(module)
    stand_ins: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.datasets": {"VisionDataset": object},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"to_tensor": None},
    }
    for name, names in stand_ins.items():
        module_made = types.ModuleType(name)
        module_made.__spec__ = ModuleSpec(name, None)
        module_made.__dict__.update(names)
        sys.modules[name] = module_made
    try:
        importlib.import_module("streaming")
    finally:
        for name in stand_ins:
            del sys.modules[name]

"""MosaicML Streaming: shards of samples as bytes, each sample found by its number.

Not compressed: compressed shards are unpacked beside themselves when they are first read, and from
then on that is what is read. Its type for arrays refuses empty ones, so that samples are bytes
here.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Int64s, Peer, Reader, Records, batched

SHARD_BYTES = 2**24


class MDS(Peer):
    """A sample is one of `Records`."""

    name = "mosaicml streaming"
    compressed = False
    modules = ("torch", "streaming")

    def load(self) -> None:
        if importlib.util.find_spec("torchvision") is None:
            _without_torchvision()
        super().load()

    def write(self, folder: Path, corpus: Corpus) -> None:
        self.append(folder, corpus, corpus)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        self.load()
        from streaming import MDSWriter

        with MDSWriter(
            out=str(folder / "x"), columns={"x": "bytes"}, size_limit=SHARD_BYTES
        ) as writer:
            for sample in samples:
                writer.write({"x": Records.encode(sample)})
        Records.describe(folder, like)
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder)


class _Reader(Reader):
    def __init__(self, folder: Path) -> None:
        self._folder = str(folder / "x")
        self._decode = Records(folder).decode
        self._dataset = self._opened()

    def _opened(self, **options: Any) -> Any:
        from streaming import StreamingDataset

        return StreamingDataset(local=self._folder, num_canonical_nodes=1, **options)

    def sequential(self, batch: int) -> Iterator[Batch]:
        # By number: iterating has threads look ahead, and takes two to three times as long.
        return batched(map(self.get, range(len(self._dataset))), batch)

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return batched(map(self.get, order.tolist()), batch)

    def windowed(self, seed: int, batch: int) -> Iterator[Batch] | None:
        found = self._opened(shuffle=True, shuffle_seed=seed, batch_size=batch)
        return batched((self._decode(sample["x"]) for sample in found), batch)

    def get(self, i: int) -> Array:
        return self._decode(self._dataset[i]["x"])


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

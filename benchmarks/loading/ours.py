"""raggedstore: its own `Loader`, and through torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import raggedstore as rs
from benchmarks.corpora import Corpus
from benchmarks.loading.base import Loading, Setting, data_loader
from benchmarks.loading.padding import Batch, Flat, Padded, pad_flat
from benchmarks.peers.ours import Ours
from raggedstore.training import Loader, Permuted, Shuffled

ORDERS = {"shuffled": Shuffled, "permuted": Permuted}


class Raggedstore(Loading):
    """A store of one ragged field, in one of its profiles.

    As elsewhere, `careful` means that batches are padded by the loop.
    """

    kind = "ours"
    modules = ("raggedstore", "torch")

    def __init__(self, profile: str, way: str, *, careful: bool) -> None:
        self.storage = f"raggedstore {profile}"
        self.name = f"{self.storage}, {way}, {'careful' if careful else 'plain'}"
        self._profile, self._careful = profile, careful
        self.compressed = Ours(profile).compressed

    def write(self, folder: Path, corpus: Corpus) -> None:
        Ours(self._profile).write(folder, corpus)

    def _open(self, folder: Path, budget: int) -> rs.Store:
        return rs.open(folder / "store", budget=budget)

    def _loader(self, folder: Path, setting: Setting, order: str, collate: Any) -> Loader:
        # A quarter for the store's chunks, the rest for what the loader has made ready.
        return Loader(
            self._open(folder, setting.share // 4),
            order=ORDERS[order](seed=setting.seed),
            batch=setting.batch,
            collate=collate,
            budget=setting.share - setting.share // 4,
        )


class Direct(Raggedstore):
    """`Loader` in the loop's own process: it decodes in threads, so that no worker is needed.

    `halved` gives it half of the budget that all others get.
    """

    workers = (0,)

    def __init__(self, profile: str, order: str, *, careful: bool, halved: bool = False) -> None:
        way = f"Loader {order}, half the budget" if halved else f"Loader {order}"
        super().__init__(profile, way, careful=careful)
        self.shuffle = "all" if order == "permuted" else "window"
        self._order, self._parts = order, 1 + halved

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        setting = replace(setting, budget=setting.budget // self._parts)
        collate = "ragged" if self._careful else "padded"
        loader = self._loader(folder, setting, self._order, collate)
        while True:
            yield _formed(loader, setting)


class ThroughMapDataset(Raggedstore):
    """`MapDataset`: torch draws the order, and a batch is one read."""

    modules = ("raggedstore", "raggedstore.torch", "torch")

    def __init__(self, profile: str, *, careful: bool) -> None:
        super().__init__(profile, "MapDataset", careful=careful)

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        dataset = rs.torch.MapDataset(self._open(folder, setting.share))
        collate = _values if self._careful else rs.torch.collate
        loader = data_loader(dataset, setting, collate, shuffle=True)
        while True:
            yield _formed(loader, setting)


class ThroughLoaderDataset(Raggedstore):
    """`LoaderDataset`: raggedstore draws the order, and each worker has its part of the batches."""

    shuffle = "window"
    modules = ("raggedstore", "raggedstore.torch", "torch")

    def __init__(self, profile: str, *, careful: bool) -> None:
        super().__init__(profile, "LoaderDataset", careful=careful)

    def available(self) -> bool:
        return super().available() and hasattr(rs.torch, "LoaderDataset")

    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        made = self._loader(folder, setting, "shuffled", "ragged")
        dataset = rs.torch.LoaderDataset(made, "values" if self._careful else "padded")
        loader = data_loader(dataset, setting, None, batch_size=None)
        while True:
            yield _formed(loader, setting)


def _values(rows: Any) -> Any:
    """The batch's values and shapes as tensors, neither padded nor copied."""
    return rs.torch.to_tensors(rows.columns, "values")


def _formed(batches: Iterable[dict[str, Any]], setting: Setting) -> Iterator[Batch]:
    """Batches in whichever form they come: padded, or ragged as arrays or tensors."""
    for batch in batches:
        found = batch["x"]
        if hasattr(found, "offsets"):
            values, shapes = np.asarray(found.values), np.asarray(found.shapes)
            lengths = shapes[:, 0] if shapes.shape[1] == 1 else shapes
            if setting.flat:
                yield Flat(torch.as_tensor(values), torch.as_tensor(lengths))
            else:
                yield pad_flat(values, lengths)
            continue
        lengths = batch["x_lengths"] if "x_lengths" in batch else batch["x_shapes"]
        yield Padded(torch.as_tensor(found), torch.as_tensor(lengths))

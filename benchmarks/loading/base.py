"""What every way of loading offers: files made from a corpus, and epochs of batches."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.corpora import Corpus
from benchmarks.loading.padding import Batch


@dataclass(frozen=True)
class Setting:
    """How an epoch is asked for."""

    samples: int
    batch: int
    workers: int
    seed: int
    budget: int  #: bytes of decoded data that all processes together may hold
    flat: bool = False  #: batches are to be values one after another, in place of padded ones

    @property
    def share(self) -> int:
        """What one process may hold."""
        return self.budget // max(self.workers, 1)


class Loading(ABC):
    """One way to load: a library, its files, and how it is used."""

    name: str
    #: Files of the same storage are written once, by the first that needs them.
    storage: str
    compressed: bool = True
    #: How well it shuffles: over all samples, or within windows, buffers or chunks.
    shuffle: str = "all"
    #: "ours", "hdf5" or "other": what it is held against.
    kind: str = "other"
    workers: tuple[int, ...] = (0, 1, 2)
    modules: ClassVar[tuple[str, ...]] = ()

    def available(self) -> bool:
        """Whether its modules are installed."""
        return all(installed(module) for module in self.modules)

    def load(self) -> None:
        """Import what it needs, so that no measure has that in it."""
        for module in self.modules:
            importlib.import_module(module)

    @abstractmethod
    def write(self, folder: Path, corpus: Corpus) -> None:
        """Write a corpus into an empty folder."""

    @abstractmethod
    def epochs(self, folder: Path, setting: Setting) -> Iterator[Iterator[Batch]]:
        """One epoch after another, without end, each in a random order of its own.

        What the first epoch alone pays for, opening files and starting workers, is done in it.
        """


def installed(module: str) -> bool:
    """Whether a module, perhaps of a package, is there."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def data_loader(
    dataset: Any, setting: Setting, collate_fn: Callable[[Any], Any] | None, **options: Any
) -> Any:
    """A torch DataLoader whose workers live on from epoch to epoch.

    A `prefetch_factor` of 4 in place of 2 changed nothing beyond noise.
    """
    import torch
    from torch.utils.data import DataLoader

    options = {"batch_size": setting.batch, **options}
    return DataLoader(
        dataset,
        num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
        collate_fn=collate_fn,
        generator=torch.Generator().manual_seed(setting.seed),
        **options,
    )

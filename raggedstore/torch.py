"""Stores for PyTorch: datasets for ``torch.utils.data.DataLoader``, and batches of tensors.

Reached as ``raggedstore.torch``, which imports PyTorch; nothing else in raggedstore does so
unasked.
"""

from __future__ import annotations

import multiprocessing
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from raggedstore.errors import UsageError
from raggedstore.extras import require
from raggedstore.indexing import as_position
from raggedstore.interop.collate import Collate, Ragged, Rows, to_tensors
from raggedstore.interop.tensors import RaggedTensors, check_torch_dtype, tensor
from raggedstore.samples import Samples
from raggedstore.schema import Field
from raggedstore.training.elsewhere import Elsewhere, Entry
from raggedstore.training.loader import Loader
from raggedstore.training.packing import PackedRows

__all__ = [
    "Collate",
    "LoaderDataset",
    "MapDataset",
    "RaggedTensors",
    "Rows",
    "collate",
    "to_tensors",
]

_Dataset: Any = require("torch.utils.data", "torch").Dataset
_IterableDataset: Any = require("torch.utils.data", "torch").IterableDataset

#: A `Collate` without arguments.
collate = Collate()


# By index: the sampler of a DataLoader says which samples come next


class MapDataset(_Dataset):  # type: ignore[misc]  # mypy does not look at PyTorch
    """The samples of a store by index, for a ``DataLoader`` with any sampler.

    Parameters
    ----------
    samples
        A store, a selection, or several stores from `concat`.
    fields
        Names of the fields to read; by default all.
    transform
        Called with each sample, a dict; what it returns takes the sample's place. It must pickle
        where worker processes are not forked.

    Raises
    ------
    UsageError
        PyTorch has no dtype like that of one of the fields.

    Notes
    -----
    A sample is a dict: of a tensor for an array, one without dimensions for a scalar, and of str
    or bytes for text. A ``DataLoader`` asks for whole batches, and a batch is read at once: one
    read for each field. Give it `collate`, or a `Collate`, to pad what is ragged; PyTorch's own
    collation will do where all samples of a batch are of one shape.

    Examples
    --------
    >>> dataset = MapDataset(store, fields=["audio", "label"])
    >>> for batch in DataLoader(dataset, 64, shuffle=True, num_workers=2, collate_fn=collate):
    ...     train(batch["audio"], batch["audio_lengths"], batch["label"])
    """

    def __init__(
        self,
        samples: Samples,
        fields: Sequence[str] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        if not isinstance(samples, Samples):
            raise UsageError(
                f"a dataset reads a store, a selection or a concatenation, "
                f"not {type(samples).__name__}"
            )
        self.samples = samples if fields is None else samples.select(fields=fields)
        self.transform = transform
        for name, field in self.samples.schema.items():
            check_torch_dtype(field.dtype, f"field {name!r}")

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"<MapDataset of {len(self)} samples, {', '.join(self.samples.schema)}>"

    def __getitem__(self, index: int) -> Any:
        """One sample."""
        shown = self.samples[as_position(index, len(self))]
        sample = {
            name: tensor(np.asarray(shown[name])) if field.kind == "array" else shown[name]
            for name, field in self.samples.schema.items()
        }
        return sample if self.transform is None else self.transform(sample)

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """The samples of a batch, read at once: a list of them."""
        schema, length = self.samples.schema, len(self)
        # One by one, since a sampler may give tensors.
        rows = Rows(schema, self.samples.batch([as_position(i, length) for i in indices]))
        if self.transform is None:
            return rows
        return Rows(schema, None, [self.transform(sample) for sample in rows])


# By iteration: the dataset itself says which samples come next


class LoaderDataset(_IterableDataset):  # type: ignore[misc]
    """The batches of a `Loader`, for a ``DataLoader`` with ``batch_size=None``.

    Its workers share each epoch: what they hand over together, in turn, is what the loader alone
    would. So the order, and a state, do not depend on how many there are.

    Parameters
    ----------
    loader
        What makes the batches. Worker processes have copies of it.
    ragged
        What becomes of a `RaggedBatch`, as in `to_tensors`: "padded", "nested" or "values", or one
        of these for each field's name. `PackedRows` are padded, as ``collate="padded"`` does it.
        What is no dict, as a function for `collate` may make it, stays as it is.

    Notes
    -----
    Each time the ``DataLoader`` is gone through is the next epoch, from the one that the loader is
    at, also where several are gone through at the same time. ``loader.epoch`` counts those that
    workers have begun. To choose another one, ``loader.set_epoch`` before the workers start
    (persistent ones start once, and do not see either what is iterated over without workers).

    How far the loop has come, the loader does not know where workers read: within an epoch call
    ``loader.state_after(steps, epoch=epoch)``, with `epoch` as ``loader.epoch`` was before it.
    Without `epoch` that and the like are of the epoch that workers began last.

    A loader reads in threads of its own, which do not hold Python's lock: workers are for
    transforms that do. The loader's budget is each worker's. What `on_error` sets aside is
    listed in the ``quarantine`` of the loader here, as soon as a worker has made the batch.

    ``StatefulDataLoader`` of torchdata finds here what it needs to go on with as many workers. To
    go on with another number of them, count the batches and save `state_after`.

    Examples
    --------
    >>> dataset = LoaderDataset(Loader(store, order=Shuffled(seed=0), batch=64))
    >>> for batch in DataLoader(dataset, batch_size=None, num_workers=2):
    ...     train(batch["audio"], batch["audio_lengths"])
    """

    def __init__(self, loader: Loader, ragged: Ragged | Mapping[str, Ragged] = "padded") -> None:
        if not isinstance(loader, Loader):
            raise UsageError(f"a LoaderDataset has a Loader, not {type(loader).__name__}")
        for how in ragged.values() if isinstance(ragged, Mapping) else (ragged,):
            if not isinstance(how, str) or how not in get_args(Ragged):
                raise UsageError(f"ragged is one of {', '.join(get_args(Ragged))}, got {how!r}")
        self.loader, self.ragged = loader, ragged
        for name, field in loader.samples.schema.items():
            check_torch_dtype(field.dtype, f"field {name!r}")
        if loader.elsewhere is None:
            loader.elsewhere = Elsewhere()
        self._elsewhere = loader.elsewhere
        #: In a worker: as of which change of the main process' loader it has its copy, how many
        #: epochs it has begun, and whether a state says what the next one is.
        self._change: int | None = None
        self._rounds, self._fixed = 0, False
        self._phase, self._begun = 0, 0
        self._resumes = False  # whether nothing was begun since a state was loaded
        #: Where an iterator begins that has handed over nothing, as of which change, and it itself.
        self._unused: tuple[int, dict[str, Any], Callable[[], object]] | None = None

    def __len__(self) -> int:
        """Batches in an epoch; TypeError where each has another number of them."""
        if not self.loader.is_steady:
            raise TypeError(f"{self.loader.batch!r} makes other numbers of batches each epoch")
        return len(self.loader)

    def __repr__(self) -> str:
        return f"LoaderDataset({self.loader!r}, ragged={self.ragged!r})"

    def __iter__(self) -> Iterator[Any]:
        info = require("torch.utils.data", "torch").get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if info is not None:
            if self.loader.follow:
                raise UsageError(
                    "with follow=True each worker could begin an epoch on another version: call "
                    "refresh() on the loader before an epoch's workers start"
                )
            self._find_epoch(info)
        elif self._elsewhere.last(os.getpid(), self.loader.changes) is None:
            self._take_unused()
        phase, self._phase = self._phase, 0
        batches = self.loader.iterate(worker, workers, phase=phase)
        if info is not None:
            batches = self._noting(batches)
        state = self.loader.state_dict()
        self._begun = state["batches"] - phase * self.loader.batches_a_step
        made = self._tensors(batches)
        if info is None:
            held = _gone if self._resumes else weakref.ref(made)
            self._unused = self.loader.changes, state, held
        self._resumes = False
        return made

    def __getstate__(self) -> dict[str, Any]:
        unused = self._unused
        if unused is not None:  # a copy in another process knows of no iterator that is held here
            unused = None if unused[2]() is not None else (*unused[:2], _gone)
        return {**self.__dict__, "_unused": unused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.loader.elsewhere = self._elsewhere

    def _find_epoch(self, info: Any) -> None:
        """Have this worker's copy of the loader at the epoch that the workers begin together."""
        if self._change is None:
            self._change = self.loader.changes
            self._take_unused()
        entry = Entry(
            starter=_starter(),
            change=self._change,
            seed=int(info.seed) - int(info.id),
            members=info.num_workers,
            round=self._rounds,
            member=info.id,
            epoch=self.loader.epoch,
            fixed=self._fixed,
            process=os.getpid(),
        )
        epoch = self._elsewhere.begin(entry)
        self._rounds, self._fixed = self._rounds + 1, False
        if epoch != self.loader.epoch:
            self.loader.set_epoch(epoch)

    def _noting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; what is set aside of them the main process is told as well."""
        told = len(self.loader.quarantine)
        for batch in batches:
            if lost := self.loader.quarantine[told:]:
                self._elsewhere.set_aside(_starter(), lost)
                told += len(lost)
            yield batch
            del batch

    def _take_unused(self) -> None:
        """Begin where an iterator did that is gone, and has handed over nothing.

        It has had no epoch: torchdata makes one and drops it where it goes on from an epoch's end,
        though not before it has the next.
        """
        if self._unused is None:
            return
        changes, state, made = self._unused
        if changes == self.loader.changes and made() is None:
            self.loader.load_state_dict(state)

    def _tensors(self, batches: Iterator[Any]) -> Iterator[Any]:
        schema = {**self.loader.samples.schema, **self.loader._declared}
        for batch in batches:
            self._unused = None
            if isinstance(batch, dict):
                yield to_tensors(_unpacked(batch, schema), self.ragged, schema=schema)
            else:
                yield batch
        self._unused = None

    def state_dict(self) -> dict[str, Any]:
        """Where this process' copy of the loader is: plain JSON."""
        state = self.loader.state_dict()
        phase = (state["batches"] - self._begun) // self.loader.batches_a_step
        return {"loader": state, "phase": phase, "world_size": self.loader.world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, in the same worker of as many."""
        try:
            loader, phase, world = state["loader"], int(state["phase"]), int(state["world_size"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UsageError("this is no state of a LoaderDataset") from None
        if world != self.loader.world_size:
            raise UsageError(
                f"the state is of workers of {world} processes, and there are "
                f"{self.loader.world_size}: save loader.state_after() to go on with other numbers"
            )
        is_worker = require("torch.utils.data", "torch").get_worker_info() is not None
        if is_worker and self._change is None:
            self._change = self.loader.changes  # as it is where this was copied
        self._fixed, self._resumes = is_worker, True
        self.loader.load_state_dict(loader)
        self._phase = phase if is_worker else 0  # one alone has each batch, and workers come new


def _gone() -> None:
    """As a weak reference to what is no more, for another process."""


def _unpacked(batch: dict[str, Any], schema: Mapping[str, Field]) -> dict[str, Any]:
    """The batch with its packed rows padded, and where each sequence lies beside them."""
    flat: dict[str, Any] = {}
    for name, column in batch.items():
        made = {name: column}
        if isinstance(column, PackedRows):
            made = column.padded(name, schema.get(name))
            if taken := [extra for extra in made if extra != name and extra in batch]:
                raise UsageError(
                    f"padding adds {taken[0]!r} to field {name!r}, and there is a field of that "
                    f"name: leave one out by fields="
                )
        flat.update(made)
    return flat


def _starter() -> int:
    """The process that started this worker."""
    main = multiprocessing.parent_process()
    return os.getppid() if main is None or main.pid is None else main.pid

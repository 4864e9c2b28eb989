"""Stores for PyTorch: datasets for ``torch.utils.data.DataLoader``, and batches of tensors.

Reached as ``raggedstore.torch``, which imports PyTorch; nothing else in raggedstore does so
unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raggedstore.errors import UsageError
from raggedstore.extras import require
from raggedstore.indexing import as_position
from raggedstore.interop.collate import Collate, Rows, to_tensors
from raggedstore.interop.tensors import RaggedTensors, check_torch_dtype, tensor
from raggedstore.samples import Samples

__all__ = ["Collate", "MapDataset", "RaggedTensors", "Rows", "collate", "to_tensors"]

_Dataset: Any = require("torch.utils.data", "torch").Dataset

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

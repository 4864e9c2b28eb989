"""Batches as PyTorch tensors, and as arrays for every library that speaks DLPack.

Strategy: memory is shared wherever it can be. A tensor may always be written to, so memory that
may not be is copied first; so is what the other side cannot address: a foreign byte order,
values that are not aligned, steps backwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError
from raggedstore.extras import require

if TYPE_CHECKING:
    from raggedstore.batch import RaggedBatch

__all__ = [
    "RaggedTensors",
    "addressable",
    "check_nestable",
    "check_torch_dtype",
    "native",
    "tensor",
    "to_dlpack",
    "to_torch",
    "to_torch_nested",
]


class RaggedTensors(NamedTuple):
    """The parts of a `RaggedBatch` as tensors; a tuple, so that it pins, moves and pickles."""

    values: Any  #: (total,) all samples flattened, one after another
    offsets: Any  #: (n + 1,) int64: sample i is ``values[offsets[i]:offsets[i + 1]]``
    shapes: Any  #: (n, d) int64

    @property
    def lengths(self) -> Any:
        """(n,) int64: the first dimension of each sample; of scalars there is none."""
        return self.shapes[:, 0]


def native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array in the machine's byte order: itself, or a copy."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def addressable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, or a copy where a tensor could not or must not lie in its memory."""
    steps_fit = all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
    if array.dtype.isnative and array.flags.behaved and steps_fit:
        return array
    return np.array(array, array.dtype.newbyteorder("="))


def check_torch_dtype(dtype: np.dtype[Any], what: str) -> None:
    """UsageError, with `what` named, where PyTorch has no such dtype."""
    torch = require("torch", "torch")
    try:
        torch.from_numpy(np.empty(0, dtype.newbyteorder("=")))
    except TypeError:
        raise UsageError(
            f"{what}: PyTorch has no dtype like {dtype.name}: convert the values, or leave them out"
        ) from None


def tensor(array: npt.NDArray[Any], what: str = "the array") -> Any:
    """A PyTorch tensor of `array`, in its memory where it is `addressable`.

    Raises
    ------
    UsageError
        PyTorch has no such dtype; `what` is named.
    """
    torch = require("torch", "torch")
    try:
        return torch.from_numpy(addressable(array))
    except TypeError:
        check_torch_dtype(array.dtype, what)
        raise


def to_torch(batch: RaggedBatch, what: str = "the batch") -> RaggedTensors:
    """As `RaggedBatch.to_torch`; errors say `what` it was."""
    parts = (batch.values, batch.offsets, batch.shapes)
    return RaggedTensors(*(tensor(part, what) for part in parts))


def check_nestable(batch: RaggedBatch, what: str) -> None:
    """UsageError where the samples of `batch` cannot make a nested tensor; `what` is named."""
    if batch.ragged_ndim != 1:
        why = "differ in others too: use to_padded()" if batch.ndim else "are scalars: use values"
        raise UsageError(
            f"{what}: a nested tensor's samples differ in their first dimension, and these {why}"
        )


def to_torch_nested(batch: RaggedBatch, what: str = "the batch") -> Any:
    """As `RaggedBatch.to_torch_nested`; errors say `what` it was."""
    check_nestable(batch, what)
    nested = require("torch.nested", "torch")
    offsets = np.zeros(len(batch) + 1, np.int64)
    np.cumsum(batch.lengths, out=offsets[1:])
    tail = batch.shapes[:, 1:].max(axis=0, initial=0).tolist()
    values = tensor(batch.values.reshape(int(offsets[-1]), *tail), what)
    return nested.nested_tensor_from_jagged(values, tensor(offsets))


def to_dlpack(batch: RaggedBatch) -> RaggedTensors:
    """As `RaggedBatch.to_dlpack`."""
    parts = RaggedTensors(*map(addressable, (batch.values, batch.offsets, batch.shapes)))
    try:
        parts.values.__dlpack__()
    except BufferError as error:
        raise UsageError(f"DLPack has no dtype like {batch.dtype.name}: {error}") from None
    return parts

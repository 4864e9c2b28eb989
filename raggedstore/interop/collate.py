"""Batches of PyTorch tensors: of what a store gives, and of single samples.

A batch that was read at once comes as `Rows`: to whoever takes it for one, a list of samples; to
`Collate`, which pads it as it is, all of them in one piece. Lists that others made are padded
sample by sample, to the same result.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.casting import fill_value
from raggedstore.errors import UsageError
from raggedstore.extras import require
from raggedstore.interop import tensors
from raggedstore.interop.tensors import tensor
from raggedstore.samples import with_sizes
from raggedstore.schema import Field, Schema

__all__ = ["Collate", "Ragged", "Rows", "to_tensors"]

Ragged = Literal["padded", "nested", "values"]
Fields = Mapping[str, Field]


class Rows(Sequence[Any]):
    """A list of samples that may still be in one piece.

    Parameters
    ----------
    schema
        The fields that were read.
    columns
        The batch, as ``store.batch`` gives it; None where a transform has changed the samples.
    samples
        Then the samples, one by one.
    """

    __slots__ = ("_samples", "columns", "schema")

    def __init__(
        self, schema: Schema, columns: dict[str, Any] | None, samples: Sequence[Any] | None = None
    ) -> None:
        self.schema = schema
        self.columns = columns
        self._samples = samples

    def __reduce__(self) -> tuple[Any, ...]:
        # In one piece where there is one, even if somebody has looked into it.
        return Rows, (self.schema, self.columns, self._samples if self.columns is None else None)

    def __len__(self) -> int:
        return len(self._apart if self.columns is None else next(iter(self.columns.values())))

    def __getitem__(self, key: Any) -> Any:
        """A sample by int, a list of samples by slice."""
        return self._apart[key]

    @property
    def _apart(self) -> Sequence[Any]:
        # Kept: PyTorch's own collation goes through the list once for each field.
        if self._samples is None:
            self._samples = _taken_apart(self.columns or {})
        return self._samples


def _taken_apart(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A dict for each sample; the tensors of a field lie in the memory of the batch."""
    parts: dict[str, Any] = {}
    for name, column in columns.items():
        if isinstance(column, RaggedBatch):
            flat = tensor(column.values).split(np.diff(column.offsets).tolist())
            shapes = column.shapes.tolist()
            parts[name] = [v.reshape(shape) for v, shape in zip(flat, shapes, strict=True)]
        else:
            parts[name] = column if isinstance(column, list) else tensor(column).unbind()
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


@dataclass(frozen=True)
class Collate:
    """Makes one dict of tensors of a list of samples: a ``collate_fn`` for a ``DataLoader``.

    Parameters
    ----------
    padding_value
        What ragged fields are filled up with; or that for each field's name (others with 0).
    side, multiple_of, time_first
        As in `RaggedBatch.to_padded`.
    nested
        Make nested tensors of ragged fields instead of padding them: of all, or of those named.
    mask
        Add ``"<name>_mask"`` to each padded field, True where it holds data.
    schema
        The fields, as in ``store.schema``, where samples do not come straight from a `MapDataset`:
        by way of a ``ConcatDataset``, say.

    Notes
    -----
    A padded field has ``"<name>_lengths"``, (n,) int64, beside it; where other dimensions than the
    first are ragged, ``"<name>_shapes"``, (n, d) int64. Scalars and arrays of a fixed shape are
    stacked, and text is a list.

    Of what a transform adds no field is known, nor is any without a schema. Then every array is
    taken for ragged, with shapes beside it in those batches where another dimension than the
    first differs, and all else is left to PyTorch's own collation.
    """

    padding_value: Any = 0
    side: Literal["left", "right"] = "right"
    multiple_of: int = 1
    time_first: bool = False
    nested: bool | Collection[str] = False
    mask: bool = False
    schema: Fields | None = None

    def __post_init__(self) -> None:
        # What makes no sense is to be said here, and not by a worker process.
        RaggedBatch(np.empty(0), [0]).mask(self.side, multiple_of=self.multiple_of)
        if isinstance(self.nested, str):
            raise UsageError(f"nested is a bool or a list of names, such as [{self.nested!r}]")

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """The batch of `samples`: dicts, all of the same fields."""
        schema = self.schema
        if isinstance(samples, Rows):
            schema = schema or samples.schema
            if samples.columns is not None:
                modes = {name: self._mode(name) for name in samples.columns}
                return self.of_columns(samples.columns, modes, schema)
        return self._of_list(samples, schema)

    def _mode(self, name: str) -> Ragged:
        nested = self.nested if isinstance(self.nested, bool) else name in self.nested
        return "nested" if nested else "padded"

    def of_columns(
        self, batch: Mapping[str, Any], ragged: Mapping[str, Ragged], schema: Fields | None
    ) -> dict[str, Any]:
        """The batch of what ``store.batch`` gives; each ragged field as `ragged` has it."""
        made: dict[str, Any] = {}
        for name, column in batch.items():
            what = f"field {name!r}"
            if not isinstance(column, RaggedBatch):
                made[name] = tensor(column, what) if isinstance(column, np.ndarray) else column
            elif ragged[name] == "nested":
                made[name] = tensors.to_torch_nested(column, what)
            elif ragged[name] == "values":
                made[name] = tensors.to_torch(column, what)
            else:
                padded = column.to_padded(
                    self._value(name),
                    self.side,
                    multiple_of=self.multiple_of,
                    time_first=self.time_first,
                )
                field = None if schema is None else schema.get(name)
                if not len(column):
                    padded = with_sizes(padded, field)
                made[name] = tensor(padded, what)
                self._add_beside(made, name, column, field, batch)
        return made

    def _of_list(self, samples: Sequence[Any], schema: Fields | None) -> dict[str, Any]:
        """The batch of single samples."""
        columns = _columns(samples)
        made: dict[str, Any] = {}
        for name, values in columns.items():
            what = f"field {name!r}"
            arrays = _arrays(values, what)
            if arrays is None:
                made[name] = _not_of_arrays(values, what)
                continue
            field = _field_of(arrays, None if schema is None else schema.get(name))
            if field is not None and not field.is_ragged:
                made[name] = require("torch", "torch").stack(arrays)
                continue
            # Of the arrays' shapes alone: their values stay where they are.
            shapes = np.array([array.shape for array in arrays], np.int64)
            extent = RaggedBatch.trusted(np.empty(0), offsets_of(shapes.prod(axis=1)), shapes)
            if self._mode(name) == "nested":
                made[name] = _nested(arrays, extent, what)
            else:
                made[name] = self._padded(arrays, extent, self._value(name))
                self._add_beside(made, name, extent, field, columns)
        return made

    def _value(self, name: str) -> Any:
        value = self.padding_value
        value = value.get(name, 0) if isinstance(value, Mapping) else value
        if np.ndim(value):
            raise UsageError(f"padding_value is a number, or one for each field, not {value!r}")
        return value

    def _mask(self, extent: RaggedBatch) -> npt.NDArray[np.bool_]:
        return extent.mask(self.side, multiple_of=self.multiple_of, time_first=self.time_first)

    def _padded(self, arrays: Sequence[Any], extent: RaggedBatch, value: Any) -> Any:
        """As `RaggedBatch.to_padded`, of tensors of any dtype and device."""
        tail = extent.shapes[:, 1:].max(axis=0).tolist()
        with suppress(TypeError):  # of what NumPy does not know, such as bfloat16
            value = fill_value(value, arrays[0].new_empty(0, device="cpu").numpy().dtype).item()
        try:
            out = arrays[0].new_full((*self._mask(extent).shape, *tail), value)
        except (OverflowError, RuntimeError, TypeError) as error:
            raise UsageError(
                f"{value!r} is no value to fill {arrays[0].dtype} with: {error}"
            ) from None
        rows = out.swapaxes(0, 1) if self.time_first else out
        for i, array in enumerate(arrays):
            first = rows.shape[1] - len(array) if self.side == "left" else 0
            window = (slice(first, first + len(array)), *(slice(0, d) for d in array.shape[1:]))
            rows[(i, *window)] = array
        return out

    def _add_beside(
        self,
        made: dict[str, Any],
        name: str,
        extent: RaggedBatch,
        field: Field | None,
        names: Container[str],
    ) -> None:
        """Add what comes beside the padded field `name`: its lengths or shapes, its mask."""
        if field is None or field.ndim != extent.ndim:  # or a transform made it something else
            several = extent.ragged_ndim > 1
        else:
            several = None in field.shape[1:]
        beside: dict[str, npt.NDArray[Any]] = (
            {"shapes": extent.shapes} if several else {"lengths": extent.lengths}
        )
        if self.mask:
            beside["mask"] = self._mask(extent)
        for suffix, array in beside.items():
            added = f"{name}_{suffix}"
            if added in names:
                raise UsageError(
                    f"padding adds {added!r} to field {name!r}, and there is a field of that "
                    f"name: leave one out"
                )
            made[added] = tensor(array.copy())  # the batch's own stays as it is


def to_tensors(
    batch: Mapping[str, Any],
    ragged: Ragged | Mapping[str, Ragged] = "padded",
    *,
    padding_value: Any = 0,
    side: Literal["left", "right"] = "right",
    multiple_of: int = 1,
    time_first: bool = False,
    mask: bool = False,
    schema: Fields | None = None,
) -> dict[str, Any]:
    """A batch as ``store.batch`` or a loader gives it, as tensors.

    Parameters
    ----------
    batch
        From field name to `RaggedBatch`, ndarray or list.
    ragged
        What a `RaggedBatch` becomes: "padded", a dense tensor with its lengths or shapes beside
        it; "nested", a nested tensor of the jagged layout; "values", its `RaggedTensors`. Or one
        of these for each field's name (others are padded). The latter two share its memory.
    padding_value, side, multiple_of, time_first, mask
        As in `Collate`.
    schema
        The fields, as in ``store.schema``. Without it, whether a padded field has lengths or
        shapes beside it goes by the samples of the batch.

    Returns
    -------
    dict of tensors, and lists as they are. The tensor of an array lies in its memory.

    Raises
    ------
    UsageError
        PyTorch has no dtype like a field's; a field to be nested is ragged in another dimension
        than the first; or a name to be added is a field's.
    """
    given = dict.fromkeys(batch, ragged) if isinstance(ragged, str) else ragged
    modes = {name: given.get(name, "padded") for name in batch}
    for name, mode in modes.items():
        if mode not in ("padded", "nested", "values"):
            raise UsageError(f"a field is 'padded', 'nested' or 'values', got {name!r}: {mode!r}")
    form = Collate(padding_value, side, multiple_of, time_first, mask=mask)
    return form.of_columns(batch, modes, schema)


def _columns(samples: Sequence[Any]) -> dict[str, list[Any]]:
    """The values of each field; UsageError where the samples are not dicts of the same ones."""
    if not len(samples):
        raise UsageError("a batch has 1 sample at least")
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise UsageError(
                f"samples to collate are dicts, and this one is of type {type(sample).__name__}: "
                f"pass a collate_fn of your own"
            )
        if sample.keys() != samples[0].keys():
            raise UsageError(
                f"the samples of a batch have the same fields, got {', '.join(samples[0])} and "
                f"{', '.join(sample)}"
            )
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def _arrays(values: list[Any], what: str) -> list[Any] | None:
    """The values as tensors, where all of them are arrays or tensors and none a scalar."""
    is_tensor = require("torch", "torch").is_tensor
    if not all((is_tensor(v) or isinstance(v, np.ndarray)) and v.ndim for v in values):
        return None
    arrays = [v if is_tensor(v) else tensor(v, what) for v in values]
    kinds = {(array.ndim, array.dtype) for array in arrays}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{ndim}-d {dtype}" for ndim, dtype in kinds))
        raise UsageError(f"{what}: samples of one batch must agree, got {found}")
    return arrays


def _not_of_arrays(values: list[Any], what: str) -> Any:
    """Text as a list; numbers, and whatever else there is, as PyTorch has it."""
    if isinstance(values[0], (str, bytes)):
        return values
    try:
        return require("torch.utils.data", "torch").default_collate(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what}: {error}") from error


def _field_of(arrays: list[Any], field: Field | None) -> Field | None:
    """The field, unless a transform has made of it what does not fit it."""
    if field is None or field.kind != "array" or arrays[0].ndim != field.ndim:
        return None
    for size, sizes in zip(field.shape, zip(*(a.shape for a in arrays), strict=True), strict=True):
        if size is not None and set(sizes) != {size}:
            return None
    return field


def _nested(arrays: list[Any], extent: RaggedBatch, what: str) -> Any:
    """As `RaggedBatch.to_torch_nested`, of tensors of any dtype and device."""
    tensors.check_nestable(extent, what)
    torch = require("torch", "torch")
    offsets = tensor(offsets_of(extent.lengths)).to(arrays[0].device)
    return torch.nested.nested_tensor_from_jagged(torch.cat(arrays), offsets)

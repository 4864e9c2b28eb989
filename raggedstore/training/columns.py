"""Several fields of the same samples at once: reordered, cut into batches, collated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, copy_ranges, offsets_of
from raggedstore.errors import UsageError
from raggedstore.samples import present
from raggedstore.schema import Schema
from raggedstore.training.batching import Rule
from raggedstore.training.packing import PackedRows

__all__ = ["Collate", "Columns", "collator", "show", "span", "take"]

Int64s = npt.NDArray[np.int64]

#: A field's name to a RaggedBatch, an ndarray, or a list of texts.
Columns = dict[str, Any]
Collate = Literal["ragged", "padded"] | Callable[[Columns], Any]


def take(columns: Columns, places: Int64s, windows: Mapping[str, tuple[Int64s, Int64s]]) -> Columns:
    """The samples at `places`, copied; of fields in `windows` only rows ``[start, stop)``."""
    taken = {}
    for name, column in columns.items():
        if name in windows:
            taken[name] = _cut(column, places, *windows[name])
        elif isinstance(column, RaggedBatch):
            taken[name] = column.take(places)
        else:
            taken[name] = column[places]
    return taken


def _cut(batch: RaggedBatch, places: Int64s, starts: Int64s, stops: Int64s) -> RaggedBatch:
    shapes = batch.shapes[places]
    rows = np.maximum(shapes[:, 0], 1)
    step = np.diff(batch.offsets)[places] // rows
    starts, stops = np.minimum(starts, shapes[:, 0]), np.minimum(stops, shapes[:, 0])
    shapes[:, 0] = stops - starts
    first = batch.offsets[places]
    offsets = offsets_of((stops - starts) * step)
    values = np.empty(int(offsets[-1]), batch.dtype)
    copy_ranges(batch.values, first + starts * step, first + stops * step, offsets, values)
    return RaggedBatch.trusted(values, offsets, shapes)


def show(schema: Schema, columns: Columns, *, raw: Collection[str] = ()) -> Columns:
    """Text as lists of str or bytes, but for the fields in `raw`, all else as it is."""
    return {
        name: columns[name] if name in raw else present(field, columns[name])
        for name, field in schema.items()
    }


def span(columns: Columns, start: int, stop: int) -> Columns:
    """Samples `start` to `stop`, as views."""
    return {
        name: column.span(start, stop) if isinstance(column, RaggedBatch) else column[start:stop]
        for name, column in columns.items()
    }


def collator(
    collate: Any, schema: Schema, rule: Rule, *, time_first: bool = False
) -> Callable[[Columns], Any]:
    """The function that `collate` means; UsageError where it means none."""
    if time_first and collate != "padded":
        raise UsageError("time_first=True is for collate='padded'")
    if callable(collate):
        made: Callable[[Columns], Any] = collate
        return made
    if collate == "ragged":
        return _as_they_are
    if collate == "padded":
        return _Padded(schema, rule, time_first=time_first)
    raise UsageError(f"collate is 'ragged', 'padded' or a function of a batch, got {collate!r}")


def _as_they_are(columns: Columns) -> Columns:
    return columns


class _Padded:
    """Pads every ragged field, and adds what tells the data from the padding."""

    def __init__(self, schema: Schema, rule: Rule, *, time_first: bool) -> None:
        self._rule, self._time_first = rule, time_first
        self._added: dict[str, tuple[str, ...]] = {}
        for name, field in schema.items():
            cut = name in rule.fields and rule.cuts
            if cut and not rule.shared:
                self._added[name] = (f"{name}_segments", f"{name}_positions")
            elif cut or (field.is_ragged and field.kind == "array"):
                ragged = None in field.shape[1:]
                self._added[name] = (f"{name}_shapes" if ragged else f"{name}_lengths",)
        for name, added in self._added.items():
            for extra in added:
                if extra in schema:
                    raise UsageError(
                        f"collate='padded' adds {extra!r} to field {name!r}, and there is a field "
                        f"of that name: leave one out by fields=, or pass a function"
                    )

    def __call__(self, columns: Mapping[str, Any]) -> Columns:
        padded: Columns = {}
        for name, column in columns.items():
            added = self._added.get(name)
            if added is None:
                padded[name] = column
            elif isinstance(column, PackedRows):
                padded |= {part: self._turned(a) for part, a in column.padded(name).items()}
            else:
                multiple = self._rule.multiple_of if name in self._rule.fields else 1
                padded[name] = self._turned(column.to_padded(multiple_of=multiple))
                (extra,) = added
                padded[extra] = column.shapes if extra.endswith("_shapes") else column.lengths
        return padded

    def _turned(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(array.swapaxes(0, 1)) if self._time_first else array

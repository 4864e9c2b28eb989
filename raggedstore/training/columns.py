"""Several fields of the same samples at once: read, reordered, cut into batches, collated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.errors import UsageError
from raggedstore.indexing import Positions
from raggedstore.samples import Samples, present
from raggedstore.schema import Schema

__all__ = ["Collate", "Columns", "Cutter", "collator", "read", "show", "span", "take"]

#: A field's name to a RaggedBatch, an ndarray, or a list of texts.
Columns = dict[str, Any]
Collate = Literal["ragged", "padded"] | Callable[[Columns], Any]


def read(samples: Samples, positions: Positions) -> Columns:
    """All fields of the samples at `positions`, text as its bytes."""
    return {name: samples.read(name, positions) for name in samples.schema}


def take(columns: Columns, places: npt.NDArray[np.int64]) -> Columns:
    """The samples at `places`, copied."""
    return {
        name: column.take(places) if isinstance(column, RaggedBatch) else column[places]
        for name, column in columns.items()
    }


def show(schema: Schema, columns: Columns) -> Columns:
    """Text as lists of str or bytes, all else as it is."""
    return {name: present(field, columns[name]) for name, field in schema.items()}


def span(columns: Columns, start: int, stop: int) -> Columns:
    """Samples `start` to `stop`, as views."""
    return {
        name: column.span(start, stop) if isinstance(column, RaggedBatch) else column[start:stop]
        for name, column in columns.items()
    }


def _join(pieces: Sequence[Any]) -> Any:
    if isinstance(pieces[0], RaggedBatch):
        return RaggedBatch.join(pieces)
    if isinstance(pieces[0], list):
        return list(itertools.chain.from_iterable(pieces))
    # Left to itself concatenate gives the native byte order.
    return np.concatenate(pieces, dtype=pieces[0].dtype)


class Cutter:
    """Cuts batches of `size` samples from columns that come one after another.

    A batch is views of the columns that it lies in; only one that straddles two is copied.
    """

    def __init__(self, size: int, collate: Callable[[Columns], Any]) -> None:
        self._size = size
        self._collate = collate
        self._begun: list[Columns] = []  # of a batch whose end is still to come
        self._missing = size

    def feed(self, columns: Columns, count: int) -> list[Any]:
        """The batches that are whole with these `count` samples more."""
        whole = []
        start = 0
        while self._missing <= count - start:
            stop = start + self._missing
            piece = span(columns, start, stop)
            whole.append(self._finish(piece) if self._begun else self._collate(piece))
            start, self._missing = stop, self._size
        if start < count:
            self._begun.append(span(columns, start, count))
            self._missing -= count - start
        return whole

    def last(self) -> list[Any]:
        """The batch that has remained short, if there is one."""
        return [self._finish(self._begun.pop())] if self._begun else []

    def _finish(self, piece: Columns) -> Any:
        pieces, self._begun = [*self._begun, piece], []
        if len(pieces) == 1:
            return self._collate(piece)
        return self._collate({name: _join([p[name] for p in pieces]) for name in piece})


def collator(collate: Any, schema: Schema) -> Callable[[Columns], Any]:
    """The function that `collate` means; UsageError where it means none."""
    if callable(collate):
        made: Callable[[Columns], Any] = collate
        return made
    if collate == "ragged":
        return _as_they_are
    if collate == "padded":
        return _Padded(schema)
    raise UsageError(f"collate is 'ragged', 'padded' or a function of a batch, got {collate!r}")


def _as_they_are(columns: Columns) -> Columns:
    return columns


class _Padded:
    """Pads every ragged field, and adds how long each sample is."""

    def __init__(self, schema: Schema) -> None:
        self._extra = {
            name: f"{name}_shapes" if None in field.shape[1:] else f"{name}_lengths"
            for name, field in schema.items()
            if field.is_ragged and field.kind == "array"
        }
        for name, extra in self._extra.items():
            if extra in schema:
                raise UsageError(
                    f"collate='padded' adds {extra!r} to field {name!r}, and there is a field of "
                    f"that name: leave one out by fields=, or pass a function"
                )

    def __call__(self, columns: Mapping[str, Any]) -> Columns:
        padded: Columns = {}
        for name, column in columns.items():
            extra = self._extra.get(name)
            if extra is None:
                padded[name] = column
                continue
            padded[name] = column.to_padded()
            padded[extra] = column.shapes if extra.endswith("_shapes") else column.lengths
        return padded

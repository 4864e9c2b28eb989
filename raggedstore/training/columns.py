"""Several fields of the same samples at once: reordered, cut into batches, collated.

Where a transform is to see single samples, columns are taken apart (`apart`) and put together again
(`Forms`). What a column then is must not depend on which samples a batch happens to have, so that
each field has one form through an epoch: the one declared for it, or else that of its first value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, copy_ranges, offsets_of
from raggedstore.casting import as_array
from raggedstore.errors import SampleError, UsageError
from raggedstore.samples import present, with_sizes
from raggedstore.schema import Field, Schema
from raggedstore.training.batching import Rule
from raggedstore.training.packing import PackedRows

__all__ = [
    "Apart",
    "Collate",
    "Columns",
    "Forms",
    "apart",
    "as_they_are",
    "collator",
    "keep_rows",
    "made_bytes",
    "nbytes_of",
    "show",
    "spans",
    "spread",
    "take",
]

Int64s = npt.NDArray[np.int64]

#: A field's name to a RaggedBatch, an ndarray, or a list of texts.
Columns = dict[str, Any]
Collate = Literal["ragged", "padded"] | Callable[[Columns], Any]
#: A field's name to its single values.
Apart = dict[str, list[Any]]

#: The dtypes that columns of what a transform gives can have.
_ARRAYS = "biufcmM"


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


def spans(columns: Columns, edges: Int64s) -> Iterator[Columns]:
    """For each i the samples from ``edges[i]`` to ``edges[i + 1]``, as views."""
    if len(columns) == 1:
        ((name, column),) = columns.items()
        return ({name: part} for part in _spans_of(column, edges))
    parts = [_spans_of(column, edges) for column in columns.values()]
    return (dict(zip(columns, row, strict=True)) for row in zip(*parts, strict=True))


def _spans_of(column: Any, edges: Int64s) -> Iterator[Any]:
    if isinstance(column, RaggedBatch):
        return column.spans(edges)
    return (column[start:stop] for start, stop in itertools.pairwise(edges.tolist()))


def nbytes_of(batch: Any) -> int:
    """About how many bytes a batch takes; 0 for what nothing is known of."""
    if isinstance(batch, Mapping):
        return sum(map(nbytes_of, batch.values()))
    if isinstance(batch, PackedRows):
        return batch.batch.nbytes
    if isinstance(batch, (str, bytes)):
        return len(batch)
    if isinstance(batch, (list, tuple)):
        return sum(map(nbytes_of, batch))
    nbytes = getattr(batch, "nbytes", 0)
    return nbytes if isinstance(nbytes, int) else 0


# Samples missing


def spread(schema: Schema, columns: Columns, places: Int64s, count: int) -> Columns:
    """`count` samples: those of `columns` at the rising `places`, and for the others nothing.

    Which is an array without values for a ragged field, an empty text, and zeros.
    """
    made: Columns = {}
    for name, column in columns.items():
        field = schema[name]
        if isinstance(column, RaggedBatch):
            lengths, shapes = np.zeros(count, np.int64), np.zeros((count, field.ndim), np.int64)
            shapes[:, 1:] = [d or 0 for d in field.shape[1:]]
            lengths[places], shapes[places] = np.diff(column.offsets), column.shapes
            made[name] = RaggedBatch.trusted(column.values, offsets_of(lengths), shapes)
        elif isinstance(column, list):
            texts: list[Any] = ["" if field.kind == "str" else b""] * count
            for place, text in zip(places.tolist(), column, strict=True):
                texts[place] = text
            made[name] = texts
        else:
            made[name] = np.zeros((count, *column.shape[1:]), column.dtype)
            made[name][places] = column
    return made


def keep_rows(columns: Columns, rows: int) -> Columns:
    """With as many `rows` in what is packed, though sequences of the last ones be missing."""
    return {
        name: PackedRows(column.batch, column.row, rows, column.shape[1])
        if isinstance(column, PackedRows)
        else column
        for name, column in columns.items()
    }


# One by one


def apart(columns: Columns) -> Apart:
    """The samples' values one by one, as ``store[i]`` has them: views."""
    return {
        name: column.to_list() if isinstance(column, RaggedBatch) else list(column)
        for name, column in columns.items()
    }


@dataclass(frozen=True, slots=True)
class _Form:
    """What all values of a field have in common."""

    dtype: np.dtype[Any]
    ndim: int
    shape: tuple[int, ...] | None = None  #: where they are stacked
    text: type | None = None  #: str or bytes
    sample: int | None = None  #: where it was first seen

    def fits(self, array: npt.NDArray[Any]) -> bool:
        """Whether `array` is such a value; byte order does not count."""
        return (
            (array.dtype == self.dtype or array.dtype.newbyteorder() == self.dtype)
            and array.ndim == self.ndim
            and self.shape in (None, array.shape)
        )

    def column(self, arrays: Sequence[npt.NDArray[Any]]) -> Any:
        """Arrays of this form as one column."""
        if self.shape is not None:
            stacked = np.empty((len(arrays), *self.shape), self.dtype)
            for place, array in enumerate(arrays):
                stacked[place] = array
            return stacked
        shapes = np.array([a.shape for a in arrays], np.int64).reshape(len(arrays), self.ndim)
        values = np.empty(0, self.dtype)
        if arrays:  # left to itself concatenate gives the native byte order
            values = np.concatenate([a.reshape(-1) for a in arrays], dtype=self.dtype)
        return RaggedBatch.trusted(values, offsets_of(shapes.prod(axis=1)), shapes)


class Forms:
    """Puts samples together as columns, each field's in one form through an epoch.

    A field of text is a list, a scalar field an array of one dimension. Any other is a RaggedBatch,
    unless the schema says that its samples are of one shape: then they are stacked, whatever shape
    they have now. All values of a field are of one dtype and number of dimensions.

    Parameters
    ----------
    schema
        What samples were before they were transformed.
    declared
        What some fields are now: those are converted to, or refused.
    """

    def __init__(self, schema: Schema, declared: Mapping[str, Field]) -> None:
        self._schema, self._declared = schema, declared
        self._forms: dict[str, _Form] = {}

    def join(
        self,
        samples: Sequence[Mapping[str, Any]],
        positions: Int64s,
        before: Apart,
        columns: Columns,
    ) -> Columns:
        """The `samples` as columns.

        Parameters
        ----------
        positions
            (k,) what errors call them.
        before, columns
            What they were made of: a column nobody touched is not put together again.

        Raises
        ------
        SampleError
            They do not agree; it names the sample and the field.
        """
        if not samples:
            return self._none()
        if not self._forms:
            self._learn(samples[0], int(positions[0]))
        names = self._forms.keys()
        for sample, position in zip(samples, positions.tolist(), strict=True):
            if sample.keys() != names:
                raise SampleError(self._difference(sample, position))
        made: Columns = {}
        for name, form in self._forms.items():
            values = [sample[name] for sample in samples]
            if name not in self._declared and name in before and form == self._stored(name, form):
                old = before[name]
                if len(old) == len(values) and all(map(_is, old, values)):
                    made[name] = columns[name]
                    continue
            made[name] = self._column(name, form, values, positions)
        return made

    def _none(self) -> Columns:
        """Columns of no samples."""
        forms = self._forms
        if not forms:
            fields = {**self._schema, **self._declared}
            forms = {name: _declared_form(field) for name, field in fields.items()}
        return {n: [] if form.text is not None else form.column([]) for n, form in forms.items()}

    def _learn(self, sample: Mapping[str, Any], position: int) -> None:
        for name in self._declared:
            if name not in sample:
                raise SampleError(f"sample {position} has no field {name!r}, which was declared")
        forms = {}
        for name, value in sample.items():
            if not isinstance(name, str):
                raise SampleError(f"sample {position}: a field's name is a str, not {name!r}")
            if name in self._declared:
                forms[name] = _declared_form(self._declared[name])
            else:
                forms[name] = self._form_of(name, value, position)
        self._forms = forms

    def _form_of(self, name: str, value: Any, position: int) -> _Form:
        if isinstance(value, (str, bytes)):
            text = str if isinstance(value, str) else bytes
            return _Form(np.dtype(np.uint8), 1, text=text, sample=position)
        array = _array(value, name, position)
        field = self._schema.get(name)
        dtype = array.dtype.newbyteorder("=")
        if field is not None and field.dtype.newbyteorder("=") == dtype:
            dtype = field.dtype
        stacked = not array.ndim or (field is not None and not field.is_ragged)
        shape = array.shape if stacked else None
        return _Form(dtype, array.ndim, shape=shape, sample=position)

    def _stored(self, name: str, form: _Form) -> _Form:
        """The form of a field as it is stored, had it been first seen where `form` was."""
        stored = _declared_form(self._schema[name])
        return _Form(stored.dtype, stored.ndim, stored.shape, stored.text, form.sample)

    def _column(self, name: str, form: _Form, values: list[Any], positions: Int64s) -> Any:
        if name in self._declared:
            return self._converted(name, form, values, positions)
        if form.text is not None:
            for value, position in zip(values, positions.tolist(), strict=True):
                if not isinstance(value, form.text):
                    raise SampleError(_unlike(name, form, position, type(value).__name__))
            return values
        arrays = []
        for value, position in zip(values, positions.tolist(), strict=True):
            array = value if type(value) is np.ndarray else _array(value, name, position)
            if not form.fits(array):
                has = f"an array of {array.dtype} and shape {array.shape}"
                raise SampleError(_unlike(name, form, position, has))
            arrays.append(array)
        return form.column(arrays)

    def _converted(self, name: str, form: _Form, values: list[Any], positions: Int64s) -> Any:
        field, arrays = self._declared[name], []
        for value, position in zip(values, positions.tolist(), strict=True):
            try:
                if form.text is not None:
                    field.encode(value, name)
                    continue
                flat, shape = field.convert(value, name)
            except SampleError as error:
                raise type(error)(f"sample {position}: {error}") from None
            arrays.append(flat.reshape(shape))
        return values if form.text is not None else form.column(arrays)

    def _difference(self, sample: Mapping[str, Any], position: int) -> str:
        lacks = [repr(name) for name in self._forms if name not in sample]
        more = [repr(name) for name in sample if name not in self._forms]
        what = f"has no field {', '.join(lacks)}" if lacks else f"has a field {', '.join(more)} too"
        return f"sample {position} {what}: all samples must come with the same fields"


def _is(one: Any, other: Any) -> bool:
    return one is other


def _array(value: Any, name: str, position: int) -> npt.NDArray[Any]:
    what = f"sample {position}, field {name!r}"
    array = as_array(value, what)
    if array.dtype.kind not in _ARRAYS:
        raise SampleError(f"{what}: {type(value).__name__} is no text, number or array of numbers")
    return array


def _declared_form(field: Field) -> _Form:
    if field.kind != "array":
        return _Form(field.dtype, 1, text=str if field.kind == "str" else bytes)
    shape = None if field.is_ragged else tuple(d or 0 for d in field.shape)
    return _Form(field.dtype, field.ndim, shape=shape)


def _unlike(name: str, form: _Form, position: int, has: str) -> str:
    if form.text is not None:
        wanted = form.text.__name__
    elif form.shape is not None:
        wanted = f"an array of {form.dtype} and shape {form.shape}"
    else:
        wanted = f"an array of {form.dtype} and {form.ndim} dimensions"
    return f"sample {position}, field {name!r}: {has}, where sample {form.sample} has {wanted}"


# As the loop wants them


def collator(
    collate: Any,
    schema: Schema,
    rule: Rule,
    *,
    time_first: bool = False,
    declared: Mapping[str, Field] | None = None,
) -> Callable[[Columns], Any]:
    """The function that `collate` means; UsageError where it means none.

    `declared` says of fields that transforms change what they then are.
    """
    if time_first and collate != "padded":
        raise UsageError("time_first=True is for collate='padded'")
    if callable(collate):
        made: Callable[[Columns], Any] = collate
        return made
    if collate == "ragged":
        return as_they_are
    if collate == "padded":
        return _Padded({**schema, **(declared or {})}, rule, time_first=time_first)
    raise UsageError(f"collate is 'ragged', 'padded' or a function of a batch, got {collate!r}")


def made_bytes(collate: Callable[[Columns], Any], batches: Iterable[Any]) -> list[int] | None:
    """About how many bytes `collate` makes of each batch; None where only it knows."""
    return list(map(collate.nbytes, batches)) if isinstance(collate, _Padded) else None


def as_they_are(columns: Columns) -> Columns:
    """The columns themselves."""
    return columns


_PACKED = ("_segments", "_positions")


def _check_free(name: str, extra: str, fields: Collection[str]) -> None:
    if extra in fields:
        raise UsageError(
            f"collate='padded' adds {extra!r} to field {name!r}, and there is a field "
            f"of that name: leave one out by fields=, or pass a function"
        )


class _Padded:
    """Pads every ragged field, and adds what tells the data from the padding.

    What a transform made is padded likewise; where nobody said what it is, its shapes are added if
    it has more than one dimension.
    """

    def __init__(self, fields: Mapping[str, Field], rule: Rule, *, time_first: bool) -> None:
        self._fields, self._rule, self._time_first = fields, rule, time_first
        for name, field in fields.items():
            cut = name in rule.fields and rule.cuts
            if not cut and not (field.is_ragged and field.kind == "array"):
                continue
            packed = cut and not rule.shared
            for extra in _PACKED if packed else (self._beside(name, field.ndim),):
                _check_free(name, name + extra, fields)

    def _beside(self, name: str, ndim: int) -> str:
        """What is added to the name of a padded field, to say how large its samples are."""
        field = self._fields.get(name)
        if field is None or field.ndim != ndim:
            return "_shapes" if ndim > 1 else "_lengths"
        return "_shapes" if None in field.shape[1:] else "_lengths"

    def __call__(self, columns: Any) -> Any:
        if not isinstance(columns, Mapping):
            return columns  # a transform's own
        padded: Columns = {}
        for name, column in columns.items():
            if isinstance(column, PackedRows):
                made = column.padded(name, self._fields.get(name))
                padded.update((extra, self._turned(array)) for extra, array in made.items())
            elif isinstance(column, RaggedBatch):
                multiple = self._rule.multiple_of if name in self._rule.fields else 1
                array = column.to_padded(multiple_of=multiple)
                if not len(column):
                    array = with_sizes(array, self._fields.get(name))
                padded[name] = self._turned(array)
                extra = self._beside(name, column.ndim)
                _check_free(name, name + extra, columns)
                padded[name + extra] = column.shapes if extra == "_shapes" else column.lengths
            else:
                padded[name] = column
        return padded

    def nbytes(self, columns: Any) -> int:
        """About how many bytes it makes of a batch."""
        if not isinstance(columns, Mapping):
            return nbytes_of(columns)
        total = 0
        for column in columns.values():
            if isinstance(column, RaggedBatch):
                dims = column.shapes.max(axis=0, initial=0).tolist()
                total += math.prod(dims) * len(column) * column.dtype.itemsize
            elif isinstance(column, PackedRows):
                total += column.batch.nbytes + 16 * math.prod(column.shape)
            else:
                total += nbytes_of(column)
        return total

    def _turned(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(array.swapaxes(0, 1)) if self._time_first else array

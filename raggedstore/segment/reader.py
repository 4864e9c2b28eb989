"""Reading one segment: chunk table, pieces of the file, decode into place, without libhdf5.

A `SegmentReader` checks everything that a damaged file could lie about before it is used:
checksums as chunks are read, side columns as they are planned with. What it can't vouch for
it refuses, naming the segment, the field and the sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import CorruptionError
from raggedstore.layout import DATA, SHAPE, SPAN
from raggedstore.schema import Field
from raggedstore.segment.cache import ChunkCache, Finder
from raggedstore.segment.column import ColumnReader
from raggedstore.segment.context import ReadContext, check_room
from raggedstore.segment.file import FileBytes
from raggedstore.segment.table import SegmentTable

__all__ = ["SegmentReader", "bad_spans"]

Int64s = npt.NDArray[np.int64]
#: What `kernel.measure` gives: sizes, offsets, and whether samples lie side by side.
_Measured = tuple[Int64s, Int64s, bool]


@dataclass(frozen=True, slots=True, eq=False)
class _Ragged:
    """What a sample of a ragged field is read from."""

    spec: Field
    data: ColumnReader
    span: ColumnReader
    shape: ColumnReader | None  #: None of vectors, whose span says it
    find: Finder | None  #: finds one whose chunks are in the cache

    @classmethod
    def of(cls, reader: SegmentReader, name: str) -> _Ragged:
        """That of the field `name` of a segment."""
        spec, data = reader.table.schema[name], reader.column(name, DATA)
        span = reader.column(name, SPAN)
        shape = None if spec.is_vector else reader.column(name, SHAPE)
        return cls(spec, data, span, shape, _finder(reader.context.cache, spec, data, span, shape))


def _finder(
    cache: ChunkCache,
    spec: Field,
    data: ColumnReader,
    span: ColumnReader,
    shape: ColumnReader | None,
) -> Finder | None:
    """What finds a sample in the cache; None of side columns that are no int64s, as ours are."""
    last = span if shape is None else shape
    if not span.dtype == last.dtype == np.dtype(np.int64):
        return None
    dims = [-1 if size is None else size for size in spec.shape]
    numbers = [span.chunk_rows, last.chunk_rows, data.chunk_rows, data.rows, data.row_nbytes]
    found = np.array([*numbers, spec.ndim, *dims], np.int64).tobytes()
    return cache.finder(span.key, None if shape is None else shape.key, data.key, found)


class SegmentReader:
    """Reads samples of one segment.

    Parameters
    ----------
    name
        What errors call the segment.
    data
        The HDF5 file.
    table
        Its chunk table.
    context
        Cache and threads, shared with other segments.
    """

    def __init__(
        self,
        name: str,
        data: FileBytes,
        table: SegmentTable,
        context: ReadContext,
    ) -> None:
        if len(data) < table.file_bytes:
            raise CorruptionError(
                f"segment {name}: {len(data)} bytes where {table.file_bytes} were written"
            )
        self.name = name
        self.table = table
        self.context = context
        self._data = data
        self._columns: dict[tuple[str, str], ColumnReader] = {}
        self._ragged: dict[str, _Ragged | None] = {}

    def __len__(self) -> int:
        return self.table.samples

    def __repr__(self) -> str:
        return f"<SegmentReader {self.name}: {len(self)} samples>"

    @property
    def file(self) -> FileBytes:
        """The HDF5 file."""
        return self._data

    def column(self, name: str, column: str) -> ColumnReader:
        """The reader of one dataset."""
        reader = self._columns.get((name, column))
        if reader is None:
            reader = self._columns[name, column] = ColumnReader(
                self.name,
                name,
                self.table.datasets[name][column],
                self._data,
                self.context,
                checksums=self.table.checksums,
            )
        return reader

    def rows(self, name: str, column: str, starts: Int64s, stops: Int64s) -> npt.NDArray[Any]:
        """The rows of a column in ``[starts, stops)``, one range after another."""
        return self.column(name, column).read(starts, stops)

    # Samples

    def spans(self, name: str, positions: Int64s) -> tuple[Int64s, Int64s]:
        """(k, 2) start and stop in data, and (k, d) shape, of the samples at `positions`.

        Raises
        ------
        CorruptionError
            A span lies outside the data, or does not match its shape.
        """
        return self._measured(name, positions)[:2]

    def _measured(self, name: str, positions: Int64s) -> tuple[Int64s, Int64s, _Measured | None]:
        """As `spans`, and what the kernel has found out about them."""
        spec = self.table.schema[name]
        limit = self.table.datasets[name][DATA].rows
        spans = self.column(name, SPAN).at(positions).astype(np.int64, copy=False)
        found = kernel.measure(spans, limit)
        sizes = spans[:, 1] - spans[:, 0] if found is None else found[0]
        if spec.is_vector:
            shapes = sizes[:, None]  # says what the column of shapes would
        else:
            shapes = self.column(name, SHAPE).at(positions).astype(np.int64, copy=False)
        lie = found is None and outside(spans, sizes, limit)
        if not lie and not spec.is_vector:
            lie = bool(bad_shapes(spec, shapes, sizes).any())
        if lie:
            bad = bad_spans(spec, spans, shapes, limit)
            i = int(np.argmax(bad))
            raise CorruptionError(
                f"segment {self.name}, field {name!r}, sample {int(positions[i])}: side columns "
                f"make no sense: start and stop {spans[i].tolist()}, shape {shapes[i].tolist()}, "
                f"{limit} values"
            )
        if found is None and _total(sizes, limit) > limit:
            _, first = np.unique(positions, return_index=True)  # one may be asked for repeatedly
            if _total(sizes[first], limit) > limit:
                raise CorruptionError(
                    f"segment {self.name}, field {name!r}: side columns make no sense: samples "
                    f"overlap"
                )
        return spans, shapes, found

    def shapes(self, name: str, positions: Int64s) -> Int64s:
        """(k, d) shapes of the samples at `positions`, no data read."""
        spec = self.table.schema[name]
        if spec.is_ragged:
            return self.spans(name, positions)[1]
        return np.tile(np.array(spec.shape, np.int64), (len(positions), 1))

    def bounds(
        self, name: str, positions: Int64s, windows: tuple[Int64s, Int64s] | None = None
    ) -> tuple[Int64s, Int64s, Int64s]:
        """Where the values of samples lie in data: starts, stops, both (k,), and (k, d) shapes.

        Parameters
        ----------
        windows
            (k,) starts and stops of the rows that are wanted of each, cut to those it has; all of
            them if not given.
        """
        if windows is None and len(positions) == 1:
            ragged = self._ragged_of(name)
            assert ragged is not None
            start, stop, shape = self._bounds_of_one(name, ragged, int(positions[0]))
            return np.array([start]), np.array([stop]), np.array([shape or [stop - start]])
        spans, shapes = self.spans(name, positions)
        if windows is None:
            return spans[:, 0], spans[:, 1], shapes
        row = shapes[:, 1:].prod(axis=1)
        low = np.minimum(windows[0], shapes[:, 0])
        high = np.clip(windows[1], low, shapes[:, 0])
        shapes = np.concatenate([(high - low)[:, None], shapes[:, 1:]], axis=1)
        return spans[:, 0] + low * row, spans[:, 0] + high * row, shapes

    def ragged(
        self, name: str, positions: Int64s, windows: tuple[Int64s, Int64s] | None = None
    ) -> RaggedBatch:
        """The samples at `positions` of a ragged field, or windows of them, as for `bounds`."""
        if windows is None and len(positions) > 1:
            spans, shapes, found = self._measured(name, positions)
            starts, stops = spans[:, 0], spans[:, 1]
        else:
            found = None
            starts, stops, shapes = self.bounds(name, positions, windows)
        if found is None:
            offsets = offsets_of(stops - starts)
        else:
            _, offsets, joined = found
            if joined:
                starts, stops = starts[:1], stops[-1:]
        check_room(int(offsets[-1]) * self.table.schema[name].dtype.itemsize)
        return RaggedBatch.trusted(self.rows(name, DATA, starts, stops), offsets, shapes)

    def one(self, name: str, position: int) -> Any:
        """The sample at `position`, of its own shape; a scalar of a field of scalars."""
        ragged = self._ragged_of(name)
        if ragged is None:
            return self.column(name, DATA).row(position)
        got = None if ragged.find is None else ragged.find(position)
        if got is not None:
            self.context.cache.hits += 2
            ragged.data.went_on(got[0], got[1])
            try:
                return np.ndarray(got[2], ragged.data.dtype, got[3])
            except ValueError:  # no array can have such a shape
                self.spans(name, np.array([position], np.int64))  # says so
                raise
        start, stop, bounds = self._bounds_of_one(name, ragged, position)
        values = ragged.data.run(start, stop)
        return values.reshape(bounds) if bounds else values

    def _ragged_of(self, name: str) -> _Ragged | None:
        """What a sample of the field is read from; None where it is not ragged."""
        try:
            return self._ragged[name]
        except KeyError:
            pass
        ragged = _Ragged.of(self, name) if self.table.schema[name].is_ragged else None
        self._ragged[name] = ragged
        return ragged

    def _bounds_of_one(
        self, name: str, ragged: _Ragged, position: int
    ) -> tuple[int, int, list[int]]:
        """Start and stop in data, and the shape, of a sample; no shape where it is a vector."""
        start, stop = ragged.span.row(position).tolist()
        fits = 0 <= start <= stop <= ragged.data.rows
        shape: list[int] = []
        if ragged.shape is not None:
            shape = ragged.shape.row(position).tolist()
            fits = fits and _shape_fits(ragged.spec, shape, stop - start)
        if not fits:
            self.spans(name, np.array([position], np.int64))  # says what is wrong
        return start, stop, shape

    def dense(self, name: str, positions: Int64s) -> npt.NDArray[Any]:
        """(k, ...) the samples at `positions` of a field without ragged dimensions."""
        return self.column(name, DATA).at(positions)


def _shape_fits(spec: Field, shape: list[int], count: int) -> bool:
    """Whether a sample of `spec` can be of `shape` and `count` values."""
    return (
        min(shape) >= 0
        and math.prod(shape) == count
        and (count > 0 or math.prod(size or 1 for size in shape) < 2**63 // spec.dtype.itemsize)
        and all(want is None or want == size for want, size in zip(spec.shape, shape, strict=True))
    )


def _total(sizes: Int64s, limit: int) -> int:
    """How many values sizes of 0 to `limit` come to."""
    if len(sizes) * limit < 2**63:
        return int(sizes.sum())
    return int(sizes.sum(dtype=np.float64))


def outside(spans: Int64s, sizes: Int64s, limit: int) -> bool:
    """Whether any start and stop, `sizes` apart, are no part of `limit` values."""
    if not len(spans):
        return False
    starts, stops = spans[:, 0], spans[:, 1]
    # Sizes of negative ones may wrap around int64.
    low = min(starts.min(), stops.min(), sizes.min())
    return bool(low < 0 or stops.max() > limit)


def bad_shapes(spec: Field, shapes: Int64s, sizes: Int64s) -> npt.NDArray[np.bool_]:
    """(k,) True where a shape cannot be that of a sample of `spec` with so many values."""
    # Products of lying shapes may wrap around int64; as floats they can only be far off.
    bad: npt.NDArray[np.bool_] = (
        (shapes < 0).any(axis=1)
        | (shapes.prod(axis=1, dtype=np.float64) > 2.0**62)
        | (shapes.prod(axis=1) != sizes)
        # Nor can an array without values have any shape.
        | (np.maximum(shapes, 1).prod(axis=1, dtype=np.float64) * spec.dtype.itemsize >= 2.0**63)
    )
    for axis, size in enumerate(spec.shape):
        if size is not None:
            bad |= shapes[:, axis] != size
    return bad


def bad_spans(spec: Field, spans: Int64s, shapes: Int64s, limit: int) -> npt.NDArray[np.bool_]:
    """(k,) True where start, stop and shape cannot be those of a sample of `spec`."""
    starts, stops = spans[:, 0], spans[:, 1]
    bad: npt.NDArray[np.bool_] = (starts < 0) | (stops < starts) | (stops > limit)
    return bad | bad_shapes(spec, shapes, stops - starts)

"""Ragged n-dimensional samples in any group of any file that PyTables has open.

Strategy: a sample is stored flat, in row-major order, with its shape in a column beside it.
`RaggedEArray` lays the flat samples end to end in one EArray, which compresses; where each one
lies is a second column. `RaggedVLArray` gives each a row of a VLArray, which does not compress.
Both are wrappers that hold nodes: no class of PyTables is changed, nothing read is kept for
later, and what is read is a copy that belongs to the caller.

Several samples are read as one where they lie together (`rows.runs`). An append writes the data
first and the columns after it, and starts at the data's own end: what a crash left behind
without columns is passed over, never read and never overwritten.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import tables

from raggedstore.arrays.base import BLOCK_BYTES, Ragged, shaped
from raggedstore.arrays.casting import as_value_dtype
from raggedstore.arrays.columns import Extents, SampleTable, check_capacity, open_column
from raggedstore.arrays.nodes import byteorder, child, make_earray, make_group, value_filters
from raggedstore.arrays.rows import Array, Rows, runs
from raggedstore.errors import FormatError
from raggedstore.indexing import Positions
from raggedstore.units import parse_bytes

__all__ = ["RaggedEArray", "RaggedVLArray"]


class RaggedEArray(Ragged):
    """Ragged samples laid end to end in one compressed EArray.

    Made by `create` or `attach`. `dtype` is in native byte order, whatever the file's.

    Examples
    --------
    >>> import numpy as np, tables
    >>> with tables.open_file("x.h5", "w", driver="H5FD_CORE",
    ...                       driver_core_backing_store=0) as h5:
    ...     a = RaggedEArray.create(h5.root, "utterances", "int16", ndim=2)
    ...     a.extend([np.zeros((3, 2)).astype("int16"), [[1, 2, 3]]])
    ...     a[-1].tolist(), a.shapes.tolist()
    ([[1, 2, 3]], [[3, 2], [1, 3]])
    """

    def __init__(self, data: Any, start_and_stop: Any, shape: Any) -> None:
        if not isinstance(data, tables.Array) or len(data.shape) != 1:
            raise FormatError(f"data must be an array of one dimension, got {data!s}")
        if data.dtype.kind not in "biufc":
            raise FormatError(f"{data._v_pathname} holds {data.dtype}, which no sample can be of")
        self.data = data
        self._values = Rows(data)
        self.dtype = self._values.dtype
        self._places = open_column(start_and_stop, 2, what="data_start_and_stop")
        self._shapes = open_column(shape, None, what="data_shape")
        self._table = SampleTable(self._shapes, self._places, self._values)
        self._sound = 0  # as many samples as this object itself has seen to

    @classmethod
    def create(
        cls,
        where: tables.Group,
        name: str,
        dtype: Any,
        *,
        ndim: int,
        filters: tables.Filters | None = None,
        chunk_bytes: int | str = "256KiB",
    ) -> Self:
        """Make the group `name` under `where`, with an empty ragged array in it.

        Parameters
        ----------
        where : tables.Group
            Of a file that is open to write.
        name : str
        dtype : dtype
            Bool, integer, float or complex; its byte order is the file's.
        ndim : int
            Dimensions of every sample, at least 1.
        filters : tables.Filters, optional
            Blosc2 with zstd and shuffle if not given. BloscLZ is not written.
        chunk_bytes : int or str
            Decoded bytes of a chunk of the data.

        Raises
        ------
        ConflictError
            `where` has a child of that name.
        SchemaError, UsageError
            The dtype, the number of dimensions or the filters cannot be.
        """
        found = as_value_dtype(dtype)
        chosen, chunk_bytes = value_filters(filters), parse_bytes(chunk_bytes, what="chunk_bytes")
        group = make_group(where, name, ndim)
        int64 = np.dtype(np.int64)
        return cls(
            make_earray(group, "data", found, (0,), filters=chosen, chunk_bytes=chunk_bytes),
            make_earray(group, "data_start_and_stop", int64, (0, 2), filters=chosen),
            make_earray(group, "data_shape", int64, (0, ndim), filters=chosen),
        )

    @classmethod
    def attach(cls, group: tables.Group, name: str = "data") -> Self:
        """The ragged array whose nodes are `name`, `name`_start_and_stop and `name`_shape.

        Files in the 2014 PyTables article's layout, with int32 columns, open as they are.

        Raises
        ------
        FormatError
            A node is missing, or is not what it should be.
        """
        return cls(
            child(group, name),
            child(group, f"{name}_start_and_stop"),
            child(group, f"{name}_shape"),
        )

    @property
    def nbytes(self) -> int:
        return len(self._values) * self.dtype.itemsize

    def _extents(self) -> Extents:
        return self._table.bounds(np.arange(len(self), dtype=np.int64))

    def read(self, positions: Positions) -> list[Array]:
        bounds = self._table.bounds(positions)
        order = np.argsort(bounds.starts, kind="stable")
        starts, stops = bounds.starts[order], bounds.stops[order]
        limit = BLOCK_BYTES // self.dtype.itemsize
        samples: list[Any] = [None] * len(positions)
        for group in runs(starts, stops, chunk=self._values.chunk_rows, limit=limit):
            first = int(starts[group][0])
            block = self._values.read(first, int(stops[group].max()))
            for at in order[group].tolist():
                start = int(bounds.starts[at]) - first
                flat = block[start : start + int(bounds.sizes[at])]
                samples[at] = shaped(flat, bounds.shapes[at], int(positions[at]))
        return samples

    @property
    def nodes(self) -> list[Any]:
        return [self.data, self._places.node, self._shapes.node]

    def _write(self, arrays: list[Array]) -> None:
        self._check_growing()
        count = len(self)
        if count not in (0, self._sound):  # a last row that is damaged must not be built upon
            self._table.bounds(np.array([count - 1], np.int64))
        edges = len(self._values) + np.cumsum([0] + [array.size for array in arrays])
        shapes = np.array([array.shape for array in arrays], np.int64)
        check_capacity(self._places, [int(edges[-1])], what="a position of")
        check_capacity(self._shapes, [int(shapes.max())], what="a dimension of")
        keep = [len(self._values), count, count]
        try:
            for column in (self._places, self._shapes):
                if len(column) > count:  # half of an append that a crash cut short
                    column.node.truncate(count)
            if edges[-1] > edges[0]:
                self.data.append(np.concatenate([array.reshape(-1) for array in arrays]))
            self._places.node.append(np.stack([edges[:-1], edges[1:]], axis=1))
            self._shapes.node.append(shapes)
        except BaseException:
            for node, length in zip(self.nodes, keep, strict=True):
                if node.shape[0] > length:
                    node.truncate(length)
            raise
        self._sound = count + len(arrays)


class RaggedVLArray(Ragged):
    """Ragged samples as rows of a VLArray, uncompressed, with their shapes in a column.

    Made by `create` or `attach`; used like `RaggedEArray`, which is the better choice unless
    other programs expect a VLArray.
    """

    def __init__(self, data: Any, shape: Any) -> None:
        # Atoms of objects and strings are pseudo-atoms: to read objects would unpickle them.
        if not isinstance(data, tables.VLArray) or not isinstance(data.atom, tables.Atom):
            raise FormatError(f"data must be a VLArray of numbers, got {data!s}")
        if data.atom.dtype.kind not in "biufc" or data.atom.shape != ():
            raise FormatError(f"{data._v_pathname} holds {data.atom}, which no sample can be of")
        self.data = data
        self.dtype = np.dtype(data.atom.dtype.base)
        self._shapes = open_column(shape, None, what="data_shape")
        self._table = SampleTable(self._shapes)

    @classmethod
    def create(cls, where: tables.Group, name: str, dtype: Any, *, ndim: int) -> Self:
        """Make the group `name` under `where`, with an empty ragged array in it.

        Parameters and errors are those of `RaggedEArray.create`; the values of a VLArray
        cannot be compressed.
        """
        found = as_value_dtype(dtype)
        group = make_group(where, name, ndim)
        native = found.newbyteorder("=")
        data = group._v_file.create_vlarray(
            group, "data", tables.Atom.from_dtype(native), byteorder=byteorder(found)
        )
        shape = make_earray(
            group, "data_shape", np.dtype(np.int64), (0, ndim), filters=value_filters(None)
        )
        return cls(data, shape)

    @classmethod
    def attach(cls, group: tables.Group, name: str = "data") -> Self:
        """The ragged array whose nodes are the VLArray `name` and `name`_shape.

        Raises
        ------
        FormatError
            A node is missing, or is not what it should be.
        """
        return cls(child(group, name), child(group, f"{name}_shape"))

    def __len__(self) -> int:
        count = len(self._table)  # refuses a closed file
        return min(count, int(self.data.nrows))

    @property
    def nbytes(self) -> int:
        return int(self._extents().sizes.sum()) * self.dtype.itemsize

    def read(self, positions: Positions) -> list[Array]:
        extents = self._table.extents(positions)
        order, inverse = np.unique(positions, return_inverse=True)
        found: list[Array] = []
        for group in runs(order, order + 1, chunk=1, limit=max(len(order), 1)):
            first, stop = int(order[group][0]), int(order[group][-1]) + 1
            found += self.data.read(first, stop)
        return [
            shaped(np.asarray(found[at]), shape, int(number))
            for at, shape, number in zip(inverse, extents.shapes, positions, strict=True)
        ]

    @property
    def nodes(self) -> list[Any]:
        return [self.data, self._shapes.node]

    def _write(self, arrays: list[Array]) -> None:
        self._check_growing()
        shapes = np.array([array.shape for array in arrays], np.int64)
        check_capacity(self._shapes, [int(shapes.max())], what="a dimension of")
        count = len(self)
        # A VLArray cannot be cut, so the shapes go first: of the two, they are what a crash
        # may leave too long.
        if len(self._shapes) > count:
            self._shapes.node.truncate(count)
        if self.data.nrows > count:
            self._drop_rows_without_shape(count)
        self._shapes.node.append(shapes)
        try:
            for array in arrays:
                self.data.append(array.reshape(-1))
        except BaseException:
            self._shapes.node.truncate(int(self.data.nrows))
            raise

    def _drop_rows_without_shape(self, count: int) -> None:
        """Rewrite the data with its first `count` rows: another program wrote rows and died."""
        name, parent = self.data._v_name, self.data._v_parent
        kept = self.data.copy(parent, f"{name}_kept", stop=count)
        self.data.remove()
        kept.rename(name)
        self.data = kept

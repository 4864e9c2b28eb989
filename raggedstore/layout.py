"""How a field lies in HDF5: the one place that knows the names.

    /<field>/data                  (n_values,)   flattened values, or (n, ...) rows if not ragged
    /<field>/data_start_and_stop   (n, 2) int64  where sample i lies in data
    /<field>/data_shape            (n, d) int64  its shape

The root carries `FORMAT_ATTRIBUTE` and `SCHEMA_ATTRIBUTE` (JSON), so that a segment explains
itself. Nothing is ever pickled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from raggedstore.schema import Field

__all__ = [
    "DATA",
    "FORMAT_ATTRIBUTE",
    "FORMAT_VERSION",
    "SCHEMA_ATTRIBUTE",
    "SHAPE",
    "SPAN",
    "TABLE_ATTRIBUTE",
    "Column",
    "columns_of",
]

FORMAT_VERSION = 1
FORMAT_ATTRIBUTE = "raggedstore_format"
SCHEMA_ATTRIBUTE = "raggedstore_schema"
TABLE_ATTRIBUTE = "raggedstore_table"  #: of a single file, which a chunk table follows

DATA = "data"
SPAN = "data_start_and_stop"
SHAPE = "data_shape"


@dataclass(frozen=True, slots=True)
class Column:
    """One dataset of a field: rows of a fixed shape that extend along the first dimension."""

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.row_shape)


def columns_of(field: Field) -> tuple[Column, ...]:
    """The datasets that hold `field`: data alone, or data with its two side columns."""
    if not field.is_ragged:
        return (Column(DATA, field.dtype, tuple(d or 0 for d in field.shape)),)
    index = np.dtype("<i8")
    return (
        Column(DATA, field.dtype, ()),
        Column(SPAN, index, (2,)),
        Column(SHAPE, index, (field.ndim,)),
    )

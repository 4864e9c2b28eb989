"""`Items`: samples that lie in arrays on disk, together, and stay there until they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.errors import KeyTypeError, UsageError
from raggedstore.indexing import Positions
from raggedstore.mapped import OnDisk, on_disk
from raggedstore.samples import Column, Samples
from raggedstore.schema import Schema

__all__ = ["Items"]


class Items(Samples):
    """Samples made of arrays that lie side by side: row i of each is sample i.

    An item is a dict, as everywhere: `items[5]`. What can be stays on disk, as with ``np.memmap``
    itself: an item of a memory map is a view of the file, a slice is `Items` of fewer samples, and
    nothing is read. A list of positions or a mask is read, by one gather a field. `batch`,
    `select`, `split`, fields by name, `Loader` and the datasets for PyTorch work as on a store.

    Parameters
    ----------
    arrays
        For each field's name an array, (n, ...), in memory or memory-mapped; a RaggedBatch, over
        memory-mapped values say; or anything with shape, dtype and indexing by ints and slices,
        such as an h5py dataset. All hold the same number of samples.

    Raises
    ------
    UsageError
        They differ in length, or a value is none of these.
    SchemaError
        A name or a dtype is none that a field can have.

    Notes
    -----
    Memory maps pickle by their path. A view of a map opened with ``mode="c"`` (copy on write)
    becomes a tensor without a copy; one opened with "r" is copied, since a tensor may always be
    written to.

    Examples
    --------
    >>> images = np.load("images.npy", mmap_mode="c")
    >>> items = Items({"image": images, "label": np.load("labels.npy", mmap_mode="r")})
    >>> items[5]["image"], items[100:200], items.batch([7, 3, 3])
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        if not isinstance(arrays, Mapping):
            raise UsageError(
                f"Items takes a mapping such as {{'x': array}}, got {type(arrays).__name__}"
            )
        self._fields = {name: on_disk(value, name) for name, value in arrays.items()}
        self._schema = Schema({name: field.field for name, field in self._fields.items()})
        lengths = {name: len(field) for name, field in self._fields.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"fields of the same samples must agree in length, got {lengths}")
        self._shown = [(name, field.shown()) for name, field in self._fields.items()]
        takes = [(name, field.taking()) for name, field in self._fields.items()]
        self._takes = takes if all(take is not None for _, take in takes) else []

    def __getstate__(self) -> dict[str, OnDisk]:
        return self._fields

    def __setstate__(self, fields: dict[str, OnDisk]) -> None:
        self.__init__(fields)  # type: ignore[misc]

    @property
    def schema(self) -> Schema:
        return self._schema

    def __len__(self) -> int:
        return len(next(iter(self._fields.values())))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {field!r}" for name, field in self.schema.items())
        return f"<Items, {len(self)} samples: {fields}>"

    def __getitem__(self, key: Any) -> Any:
        """A sample by int, `Items` by slice, a list of samples by list or mask, a field by name."""
        if type(key) is int:
            try:
                return {name: values[key] for name, values in self._shown}
            except (IndexError, OverflowError):
                pass  # said below, in the words of all samples
        elif isinstance(key, slice):
            return self._sliced(key)
        return super().__getitem__(key)

    def _sliced(self, key: slice) -> Items:
        try:
            key.indices(0)
        except TypeError as error:
            raise KeyTypeError(f"sample slice {key}: {error}") from None
        except ValueError as error:
            raise UsageError(f"sample slice {key}: {error}") from None
        return Items({name: field.sliced(key) for name, field in self._fields.items()})

    def batch(self, key: Any) -> dict[str, Any]:
        # NumPy checks what it is asked for, and what is wrong is said below.
        if self._takes and type(key) is np.ndarray and key.dtype == np.int64 and key.ndim == 1:
            try:
                return {name: take(key, 0) for name, take in self._takes}
            except IndexError:
                pass
        return super().batch(key)

    def zip(self, *others: Items) -> Items:
        """These fields and those of `others`, sample by sample; nothing is read.

        Raises
        ------
        UsageError
            Two have a field of the same name, or they differ in length.
        """
        fields = dict(self._fields)
        for other in others:
            if not isinstance(other, Items):
                raise UsageError(f"Items are put beside Items, not {type(other).__name__}")
            twice = [name for name in other._fields if name in fields]
            if twice:
                raise UsageError(f"more than one has a field {', '.join(map(repr, twice))}")
            fields |= other._fields
        return Items(fields)

    def arrays(self) -> dict[str, RaggedBatch | npt.NDArray[Any]]:
        """All samples as one array a field, (n, ...) or a RaggedBatch, over the files themselves.

        Nothing is read or copied: with maps opened with ``mode="c"`` they become tensors so.

        Raises
        ------
        UsageError
            A field has a file a sample, or is no array of NumPy's, or its samples do not lie one
            after another any more.
        """
        return {name: field.whole() for name, field in self._fields.items()}

    def read(self, name: str, positions: Positions) -> Column:
        return self._field(name).take(positions)

    def read_one(self, name: str, position: int) -> Any:
        return self._field(name).one(position)

    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        return self._field(name).shapes(positions)

    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        return self._field(name).windows(positions, starts, stops)

    def _field(self, name: str) -> OnDisk:
        self.schema[name]  # UnknownFieldError
        return self._fields[name]

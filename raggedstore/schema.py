"""What a sample is: `Field`, `Schema`, and the check that a value fits its field.

Strategy: a value is checked and converted in one place, `Field.convert`, before anything of
its sample is buffered. The common case (an ndarray of the field's own dtype) costs one
comparison; all else takes the slow path, which is where the errors are made.
"""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.casting import as_array, cast
from raggedstore.errors import SampleError, SampleTypeError, SchemaError, UnknownFieldError
from raggedstore.indexing import is_single

__all__ = ["MAX_DIMENSIONS", "Field", "Schema"]

MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 255
_MAX_SIZE = 2**63 - 1  # of a dimension
_MOST = 2**31  # bytes of a fixed shape
_DTYPE = re.compile(r"[<>|][biufc][0-9]{1,2}")  # as `to_json` writes it
_TEXT = {"str": "str", str: "str", "bytes": "bytes", bytes: "bytes"}


@dataclass(frozen=True, slots=True, init=False)
class Field:
    """A named column of a store: its dtype, and a shape with None for each ragged dimension.

    Parameters
    ----------
    dtype
        Any NumPy bool, integer, float or complex dtype in either byte order, or "str", "bytes".
    shape
        One entry per dimension, at most 8: an int where every sample agrees, None where they
        do not. ``()`` is a scalar. "str" and "bytes" take no shape.

    Examples
    --------
    >>> Field("float32", (None, 80))
    Field('float32', (None, 80))
    """

    kind: str  #: "array", "str" or "bytes"
    dtype: np.dtype[Any]  #: of the stored values; uint8 for "str" and "bytes"
    shape: tuple[int | None, ...]

    def __init__(self, dtype: Any, shape: Sequence[int | None] = ()) -> None:
        kind = _TEXT.get(dtype, "array") if isinstance(dtype, (str, type)) else "array"
        if kind != "array":
            if not isinstance(shape, (tuple, list)) or tuple(shape) not in ((), (None,)):
                raise SchemaError(f"a {kind!r} field takes no shape, got {shape!r}")
            resolved, shape = np.dtype("uint8"), (None,)
        else:
            try:
                if dtype is None:  # which NumPy takes for float64
                    raise TypeError("None")
                resolved = np.dtype(dtype)
            except (TypeError, ValueError, SyntaxError) as error:
                raise SchemaError(f"{dtype!r} is no NumPy dtype: {error}") from None
            if resolved.kind not in "biufc" or resolved.shape:
                raise SchemaError(
                    f"dtype {resolved} cannot be stored: fields hold bools, integers, floats, "
                    f"complex numbers, 'str' or 'bytes'"
                )
        if not isinstance(shape, (tuple, list)):
            raise SchemaError(f"shape must be a tuple such as (None, 80), got {shape!r}")
        dims: list[int | None] = []
        for size in shape:
            if size is None:
                dims.append(None)
                continue
            if not is_single(size) or not 0 <= size.__index__() <= _MAX_SIZE:
                raise SchemaError(
                    f"a dimension is a non-negative int below 2**63 or None, "
                    f"got {reprlib.repr(size)}"
                )
            dims.append(size.__index__())
        if len(dims) > MAX_DIMENSIONS:
            raise SchemaError(f"at most {MAX_DIMENSIONS} dimensions, got {len(dims)}")
        if None not in dims and np.prod([float(d or 0) for d in dims]) * resolved.itemsize > _MOST:
            raise SchemaError(f"a fixed shape of over 2 GiB a sample, {shape!r}: make it ragged")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "dtype", resolved)
        object.__setattr__(self, "shape", tuple(dims))

    def __repr__(self) -> str:
        if self.kind != "array":
            return f"Field({self.kind!r})"
        name = self.dtype.name if self.dtype.isnative else self.dtype.str
        return f"Field({name!r}, {self.shape})" if self.shape else f"Field({name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kind != "array":
            return Field, (self.kind,)
        return Field, (self.dtype.str, self.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions of a sample."""
        return len(self.shape)

    @property
    def is_vector(self) -> bool:
        """Whether a sample has one dimension, a ragged one: its length says all of its shape."""
        return self.shape == (None,)

    @property
    def is_ragged(self) -> bool:
        """Whether samples lie flattened with side columns.

        True for any ragged dimension, and for a fixed shape of size zero, which HDF5 could not
        chunk as rows.
        """
        return None in self.shape or 0 in self.shape

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON types that `from_json` takes back."""
        if self.kind != "array":
            return {"dtype": self.kind}
        return {"dtype": self.dtype.str, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Any) -> Field:
        """The field that `to_json` described; SchemaError if it describes none."""
        if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
            raise SchemaError(f"not the description of a field: {reprlib.repr(value)}")
        dtype, shape = value["dtype"], value.get("shape", [])
        if not isinstance(shape, list):
            raise SchemaError(f"not the shape of a field: {reprlib.repr(shape)}")
        if dtype not in _TEXT and not _DTYPE.fullmatch(dtype):
            # NumPy takes many more words for a dtype, and parses some of them as Python.
            raise SchemaError(f"not the dtype of a field: {reprlib.repr(dtype)}")
        return cls(dtype, tuple(shape))

    def convert(self, value: Any, name: str) -> tuple[npt.NDArray[Any], tuple[int, ...]]:
        """Check one sample's value; give its flattened values and its shape.

        Raises
        ------
        SampleError
            Wrong number of dimensions or wrong fixed dimension.
        SampleTypeError
            The value does not convert to the field's dtype without loss.
        """
        if self.kind != "array":
            flat = np.frombuffer(self.encode(value, name), np.uint8)
            return flat, flat.shape
        what = f"field {name!r}"
        array = as_array(value, what)
        shape = array.shape
        if len(shape) != len(self.shape):
            raise SampleError(
                f"field {name!r}: expected {self.shape} {self.dtype}, got {shape} {array.dtype}"
            )
        for wanted, got in zip(self.shape, shape, strict=True):
            if wanted is not None and wanted != got:
                raise SampleError(
                    f"field {name!r}: expected {self.shape} {self.dtype}, got {shape} {array.dtype}"
                )
        if array.dtype != self.dtype:
            array = cast(array, self.dtype, what, by_value=not hasattr(value, "dtype"))
        return array.reshape(-1), shape

    def encode(self, value: Any, name: str) -> bytes:
        """The bytes that one text is stored as; errors as `convert`."""
        if not isinstance(value, str if self.kind == "str" else bytes):
            raise SampleTypeError(
                f"field {name!r}: expected {self.kind}, got {type(value).__name__}"
            )
        if isinstance(value, str):
            try:
                return value.encode()
            except UnicodeEncodeError as error:
                raise SampleError(f"field {name!r}: not encodable as UTF-8: {error}") from None
        return bytes(value)


class Schema(Mapping[str, Field]):
    """An immutable ordered mapping from field name to `Field`."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        if not isinstance(fields, Mapping) or not fields:
            raise SchemaError("a schema is a mapping from field names to Fields, with one at least")
        checked: dict[str, Field] = {}
        for name, field in fields.items():
            check_name(name)
            checked[name] = field if isinstance(field, Field) else Field(field)
        self._fields = checked

    def __getitem__(self, name: str) -> Field:
        try:
            return self._fields[name]
        except (KeyError, TypeError):
            raise UnknownFieldError(
                f"no field {name!r}; the fields are {', '.join(self._fields)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return "Schema({" + ", ".join(f"{n!r}: {f!r}" for n, f in self._fields.items()) + "})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schema):
            return NotImplemented
        return list(self._fields.items()) == list(other._fields.items())

    def __hash__(self) -> int:
        return hash(tuple(self._fields.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Schema, (self._fields,)

    def only(self, names: Any) -> Schema:
        """The schema of the named fields alone, in the order given."""
        return Schema({name: self[name] for name in names})

    def to_json(self) -> list[dict[str, Any]]:
        """A list, in order, of plain JSON dicts that `from_json` takes back."""
        return [{"name": name, **field.to_json()} for name, field in self._fields.items()]

    @classmethod
    def from_json(cls, value: Any) -> Schema:
        """The schema that `to_json` described; SchemaError if it describes none."""
        if not isinstance(value, list) or not all(
            isinstance(item, dict) and isinstance(item.get("name"), str) for item in value
        ):
            raise SchemaError("not the description of a schema")
        fields = {item["name"]: Field.from_json(item) for item in value}
        if len(fields) < len(value):
            raise SchemaError("two fields have one name")
        return cls(fields)

    def dumps(self) -> str:
        """The schema as a JSON string."""
        return json.dumps(self.to_json(), separators=(",", ":"))


def check_name(name: object) -> None:
    """SchemaError unless `name` can name a field: an identifier of Python, not one of PyTables'."""
    if not isinstance(name, str) or not name.isidentifier():
        raise SchemaError(
            f"a field name is letters, digits and underscores, got {reprlib.repr(name)}"
        )
    if name.startswith("_") or len(name.encode()) > MAX_NAME_BYTES:
        raise SchemaError(
            f"a field name starts with no underscore and has at most {MAX_NAME_BYTES} bytes of "
            f"UTF-8, got {reprlib.repr(name)}"
        )
    if unicodedata.normalize("NFKC", name) != name:
        # Python takes other spellings in source, and so in rules of `where`, for this one.
        raise SchemaError(
            f"a field name is spelled as Python reads it, "
            f"{unicodedata.normalize('NFKC', name)!r} and not {name!r}"
        )

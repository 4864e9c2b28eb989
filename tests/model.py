"""A store as a plain list of dicts: the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

import raggedstore as rs


def assert_same_value(field: rs.Field, got: Any, want: Any) -> None:
    """Exactly the value, to the byte: NaNs, byte order and shape too."""
    if field.kind != "array":
        assert type(got) is type(want)
        assert got == want
        return
    assert np.shape(got) == np.shape(want)
    if np.ndim(want):  # NumPy's scalars have no byte order of their own
        assert got.dtype == field.dtype
    native = field.dtype.newbyteorder("=")
    assert np.asarray(got, native).tobytes() == np.asarray(want, native).tobytes()


def assert_same(schema: rs.Schema, got: Any, want: Any) -> None:
    """The sample, or list of samples, exactly."""
    if isinstance(want, list):
        assert isinstance(got, list)
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_same(schema, one, other)
        return
    assert list(got) == list(schema)
    for name, field in schema.items():
        assert_same_value(field, got[name], want[name])


def at(samples: list[Any], key: Any) -> Any:
    """What NumPy's own indexing of a list of samples gives, or its error."""
    boxes = np.empty(len(samples), object)
    boxes[:] = samples
    if isinstance(key, slice):
        return samples[key]
    if isinstance(key, list) and not key:
        return []
    if key is None or isinstance(key, tuple):
        raise IndexError("an index of one dimension is meant")
    found = boxes[key]
    return list(found) if isinstance(found, np.ndarray) else found

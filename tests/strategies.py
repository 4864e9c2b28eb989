"""What inputs look like: fields, schemas, samples and index keys, for hypothesis."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import strategies as st

import raggedstore as rs

DTYPES = [
    np.dtype(order + code)
    for code in (
        "b1",
        "i1",
        "i2",
        "i4",
        "i8",
        "u1",
        "u2",
        "u4",
        "u8",
        "f2",
        "f4",
        "f8",
        "c8",
        "c16",
    )
    for order in "<>"
]
DIMENSIONS = st.one_of(st.none(), st.integers(0, 3))


@st.composite
def fields(draw: st.DrawFn) -> rs.Field:
    """A field of any kind, of up to 4 dimensions and now and then 8."""
    kind = draw(st.sampled_from(["array"] * 6 + ["str", "bytes"]))
    if kind != "array":
        return rs.Field(kind)
    ndim = draw(st.sampled_from([0, 1, 1, 2, 3, 4, 8]))
    shape = draw(st.tuples(*[DIMENSIONS] * ndim))
    return rs.Field(draw(st.sampled_from(DTYPES)), shape)


def schemas() -> st.SearchStrategy[rs.Schema]:
    """One to three fields."""
    names = st.sampled_from(["audio", "image", "text", "label", "class"])
    return st.dictionaries(names, fields(), min_size=1, max_size=3).map(rs.Schema)


def values(field: rs.Field) -> st.SearchStrategy[Any]:
    """A value of a field: zero-length ones are ordinary."""
    if field.kind == "str":
        return st.text(max_size=12)
    if field.kind == "bytes":
        return st.binary(max_size=12)
    longest = 9 if field.ndim <= 2 else 2
    sizes = [st.integers(0, longest) if d is None else st.just(d) for d in field.shape]
    return st.tuples(*sizes).flatmap(lambda shape: hnp.arrays(field.dtype, shape))


def samples(schema: rs.Schema) -> st.SearchStrategy[dict[str, Any]]:
    """A sample of a schema."""
    return st.fixed_dictionaries({name: values(field) for name, field in schema.items()})


def keys(length: int) -> st.SearchStrategy[Any]:
    """Anything that may index `length` samples, right or wrong."""
    near = st.integers(-length - 2, length + 1)
    ends = st.none() | near
    steps = st.none() | st.sampled_from([-3, -2, -1, 1, 2, 3])
    return st.one_of(
        near,
        near.map(np.int64),
        st.builds(slice, ends, ends, steps),
        st.lists(near, max_size=6),
        st.lists(near, min_size=1, max_size=6).map(np.array),
        st.lists(st.booleans(), min_size=length, max_size=length).map(lambda m: np.array(m, bool)),
        st.just(np.ones(length + 1, bool)),
        st.sampled_from([1.0, [0.5], (0, 1), None, 2**70]),
    )

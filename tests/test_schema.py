"""What a field and a schema may be."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import raggedstore as rs
from tests import strategies


@given(strategies.schemas())
def test_a_schema_survives_json_and_pickle(schema: rs.Schema) -> None:
    assert rs.Schema.from_json(json.loads(schema.dumps())) == schema
    assert pickle.loads(pickle.dumps(schema)) == schema
    assert eval(repr(schema), {"Schema": rs.Schema, "Field": rs.Field}) == schema


@pytest.mark.parametrize(
    "make",
    [
        lambda: rs.Field("O"),
        lambda: rs.Field("datetime64[s]"),
        lambda: rs.Field("no such"),
        lambda: rs.Field("i4", (None,) * 9),
        lambda: rs.Field("i4", (-1,)),
        lambda: rs.Field("i4", (1.5,)),
        lambda: rs.Field("i4", (True,)),
        lambda: rs.Field("i4", 3),
        lambda: rs.Field("i4", None),
        lambda: rs.Field("str", (None, 3)),
        lambda: rs.Field("f8", (2**20, 2**20)),
        lambda: rs.Schema({"a/b": rs.Field("i4")}),
        lambda: rs.Schema({"": rs.Field("i4")}),
        lambda: rs.Schema({3: rs.Field("i4")}),
        lambda: rs.Schema({"_v_file": rs.Field("i4")}),
        lambda: rs.Schema([]),
    ],
)
def test_what_cannot_be_stored_is_refused(make: Any) -> None:
    with pytest.raises(rs.SchemaError):
        make()


@pytest.mark.parametrize(
    "value", [None, 3, {}, [3], [{"name": "a"}], [{"name": "a", "dtype": "i4", "shape": 3}]]
)
def test_json_that_is_no_schema_is_refused(value: Any) -> None:
    with pytest.raises(rs.SchemaError):
        rs.Schema.from_json(value)


def test_an_unknown_field_is_a_key_error_that_names_the_fields() -> None:
    schema = rs.Schema({"audio": rs.Field("i2", (None,))})
    with pytest.raises(KeyError, match="no field 'mel'; the fields are audio"):
        schema["mel"]


def test_a_single_integer_is_a_float_too() -> None:
    flat, shape = rs.Field("float64").convert(3, "x")
    assert flat.tolist() == [3.0] and shape == ()
    assert rs.Field("complex128").convert(2**53, "x")[0].tolist() == [2.0**53]
    with pytest.raises(rs.SampleTypeError):
        rs.Field("float64").convert(2**53 + 1, "x")


def test_an_integer_that_a_float_cannot_hold_is_refused() -> None:
    field = rs.Field("float64", (None,))
    assert field.convert([2**53], "x")[0].tolist() == [2.0**53]
    with pytest.raises(rs.SampleTypeError, match="does not fit"):
        field.convert(np.array([2**53 + 1]), "x")


@pytest.mark.parametrize("dtype", ["longdouble", "clongdouble"])
def test_the_widest_floats_are_fields_too(dtype: str, tmp_path: Any) -> None:
    store = rs.create(tmp_path / "store", {"x": rs.Field(dtype, (None,))})
    values = np.array([1, 3], dtype) / 3
    with store.writer() as writer:
        writer.append({"x": values})
    np.testing.assert_array_equal(store["x"][0], values)

"""Files of .npy that nobody can have meant, each refused in our own words."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs

GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


def written(path: Path, header: str, values: bytes = bytes(1000)) -> Path:
    """A .npy file of that header."""
    text = header.encode("latin-1") + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values)
    return path


def test_a_header_that_makes_sense_is_read(tmp_path: Path) -> None:
    assert rs.from_npy(written(tmp_path / "x.npy", GOOD))[1]["data"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "header",
    [
        GOOD.replace("(2, 3)", "(-2, 3)"),
        GOOD.replace("(2, 3)", "(-2, -3)"),
        GOOD.replace("(2, 3)", "(2.0,)"),
        GOOD.replace("(2, 3)", "2"),
        GOOD.replace("(2, 3)", "(" * 3000),
        GOOD.replace("(2, 3)", "-" * 9000 + "1"),
        GOOD.replace("(2, 3)", "9" * 5000),
        GOOD.replace("'<f4'", "{[]: 1}"),
        GOOD.replace("'<f4'", "'nope'"),
        GOOD.replace("'<f4'", "[('a',)]"),
        GOOD.replace("'<f4'", "'|O'"),
        GOOD.replace("'<f4'", "None"),
        GOOD.replace("'shape'", "'form'"),
        "import os",
        "[]",
        "",
        "\x00" * 10,
    ],
)
def test_a_header_that_makes_none_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(rs.FormatError, match=r"x\.npy"):
        rs.from_npy(written(tmp_path / "x.npy", header))


@settings(deadline=None, max_examples=200)
@given(at=st.integers(0, 90), byte=st.integers(0, 255))
def test_any_byte_of_a_header_may_be_any_other(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    path = written(tmp_path_factory.mktemp("npy") / "x.npy", GOOD)
    data = bytearray(path.read_bytes())
    data[min(at, len(GOOD) + 10)] = byte
    path.write_bytes(data)
    try:
        items = rs.from_npy(path)
    except rs.RaggedStoreError:
        return
    assert len(items) <= 1000 and np.asarray(items["data"].batch(slice(1))).nbytes <= 4000


def test_values_of_no_size_are_refused_as_values_that_are_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(rs.SchemaError):
        rs.from_npy(written(tmp_path / "x.npy", GOOD.replace("<f4", "|V0")))


def test_pipes_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(rs.CorruptionError, match="not a regular file"):
        rs.from_npy(tmp_path / "x.npy")


@pytest.mark.parametrize("text", ["[" * 10_000, "{", '{"fields": NaN}', "[]", "{}"])
def test_a_schema_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(rs.FormatError, match=r"schema\.json: describes no schema"):
        rs.from_npy(tmp_path)


def test_errors_of_the_disk_name_the_file_that_was_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(rs.StorageError, match=r"none/x\.npy: could not be made: No such file"):
        rs.write_npy(tmp_path / "none" / "x.npy", [np.zeros(3)])


def header(descr: str, shape: object) -> bytes:
    text = f"{{'descr':'{descr}','fortran_order':False,'shape':{shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("<f8", "(0, 9223372036854775808)"),
        ("|S0", "(9223372036854775807,)"),
        ("|b1", "(True, 2)"),
        ("<f8", (1,) * 99),
        ("<f8", "(1099511627776, 0)"),
    ],
)
def test_headers_that_make_no_sense_are_format_errors(
    tmp_path: Path, descr: str, shape: object
) -> None:
    (tmp_path / "a.npy").write_bytes(header(descr, shape) + bytes(8))
    for source in tmp_path / "a.npy", tmp_path:
        with pytest.raises(rs.FormatError):
            rs.from_npy(source)


def test_what_is_no_path_is_told() -> None:
    items = rs.Items({"x": np.zeros(3)})
    for path in None, 3, "a\0":
        with pytest.raises(rs.UsageError):
            rs.from_npy(path)  # type: ignore[arg-type]
        with pytest.raises(rs.UsageError):
            items.to_npy(path)  # type: ignore[arg-type]
        with pytest.raises(rs.UsageError):
            rs.write_npy(path, [np.zeros(3)])  # type: ignore[arg-type]
    with pytest.raises(rs.StorageError):
        rs.from_npy("x" * 300)

"""Deflate, shuffle and fletcher32 undone as libhdf5 undoes them, and no further."""

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.segment.filters import unfilter


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.sampled_from(["u1", "<i2", ">i4", "<f8", "<c16"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0, 4]),
    st.sampled_from([0, 512, 2048]),
)
def test_any_grid_of_chunks_reads_as_h5py_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    dtype: str,
    shuffle: bool,
    fletcher: bool,
    gzip: int | None,
    userblock: int,
) -> None:
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    path = tmp_path_factory.getbasetemp() / "grid.h5"
    fill = np.array(3, dtype)
    with h5py.File(path, "w", userblock_size=userblock) as h5:
        options: dict[str, Any] = {"shuffle": shuffle, "fletcher32": fletcher}
        if gzip is not None:
            options |= {"compression": "gzip", "compression_opts": gzip}
        node = h5.create_dataset("x/data", shape, dtype, chunks=chunks, fillvalue=fill, **options)
        for first in np.ndindex(*shape):
            if data.draw(st.booleans()):  # some chunks are never written
                node[first] = data.draw(st.integers(0, 200))
                break
        want = node[:]

    got = rs.open(path)["x"].batch(slice(None))

    np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("size", [1, 5, 300_000])
def test_values_without_chunks_read_wherever_they_lie(
    tmp_path: Path, userblock: int, size: int
) -> None:
    want = np.arange(size * 3, dtype="f4").reshape(size, 3)
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=userblock) as h5:
        h5["x/data"] = want
    opened = rs.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(opened["x"].batch(slice(None)), want, strict=True)
    np.testing.assert_array_equal(opened["x"][size - 1], want[-1], strict=True)


def test_no_more_is_inflated_than_the_chunk_can_hold() -> None:
    bomb = zlib.compress(bytes(2**26))
    with pytest.raises(rs.CorruptionError, match="more than"):
        unfilter(bomb, [1], 0, 1, 1000)
    assert len(unfilter(bomb, [1], 0, 1, 2**26)) == 2**26


@pytest.mark.parametrize(
    ("stored", "filters", "what"),
    [
        (b"no deflate", [1], "not readable"),
        (zlib.compress(bytes(90)), [1], "90 bytes"),
        (zlib.compress(bytes(100))[:4], [1], "1 bytes"),
        (b"abc", [3], "too short"),
        (bytes(100) + b"\1\0\0\0", [3], "fletcher32"),
        (bytes(99), [], "99 bytes"),
    ],
)
def test_what_is_damaged_is_an_error(stored: bytes, filters: list[int], what: str) -> None:
    with pytest.raises(rs.CorruptionError, match=what):
        unfilter(stored, filters, 0, 4, 100)

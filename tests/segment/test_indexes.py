"""The newer indexes of chunks, against libhdf5."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import lazy
from raggedstore.lazy.direct import _ChunkedSource
from raggedstore.lazy.windows import source_of
from raggedstore.segment.indexes import Layout, lookup3
from raggedstore.segment.parser import parse

VERSIONS = ["v110", "v112", "latest"]
GZIP = {"compression": "gzip", "shuffle": True}


def chunks_by_libhdf5(dataset: h5py.Dataset) -> dict[tuple[int, ...], tuple[int, int, int]]:
    """By the place of its first value each chunk's filter mask, offset and stored bytes."""
    found = {}

    def keep(info: Any) -> None:
        found[info.chunk_offset] = (info.filter_mask, info.byte_offset, info.size)

    dataset.id.chunk_iter(keep)
    return found


def chunks_by_us(path: Path, name: str = "x") -> dict[tuple[int, ...], tuple[int, int, int]]:
    with path.open("rb") as stream:
        file = parse(io.BytesIO(stream.read()))
        index = file[name].id.index
        where = file.userblock_size
    return {
        place: (info.filter_mask, info.byte_offset + where, info.size)
        for place, info in index.items()
    }


#: Shape, chunks, what it may grow to.
LAYOUTS = {
    "a single chunk": ((30, 4), (30, 4), None),
    "a single chunk, partly outside": ((30, 4), (40, 4), (40, 4)),
    "a fixed array": ((90, 7), (10, 3), None),
    "a fixed array, with room": ((90, 7), (10, 3), (500, 20)),
    "a fixed array of pages": ((5000,), (2,), None),
    "an extensible array": ((90, 7), (10, 3), (None, 7)),
    "an extensible array, with room beside": ((90, 7), (10, 3), (None, 25)),
    "an extensible array along the second": ((7, 90), (3, 10), (9, None)),
    "an extensible array along the third": ((7, 3, 90), (3, 2, 10), (9, 4, None)),
    "an extensible array of many blocks": ((9000,), (2,), (None,)),
    "a tree": ((90, 7), (10, 3), (None, None)),
    "a tree of two levels": ((900, 40), (10, 3), (None, None)),
    "a tree of three levels": ((60_000, 2), (5, 1), (None, None)),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("filters", [{}, GZIP, {"fletcher32": True}], ids=["raw", "gzip", "sums"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_lie_where_libhdf5_has_them(
    tmp_path: Path, layout: str, filters: dict[str, Any], version: str
) -> None:
    shape, chunks, most = LAYOUTS[layout]
    path, rng = tmp_path / "a.h5", np.random.default_rng(0)
    options = {"chunks": chunks, "maxshape": most, "dtype": "i4", **filters}
    with h5py.File(path, "w", libver=version, userblock_size=512) as h5:
        h5.create_dataset("x", data=rng.integers(0, 9, shape), **options)
        hole = h5.create_dataset("holes", shape=shape, **options)
        for at in rng.integers(0, shape[0], 5).tolist():
            hole[at] = 1
        h5.create_dataset(
            "empty", shape=(0, *shape[1:]), **{**options, "maxshape": (None,) * len(shape)}
        )
        want = {name: chunks_by_libhdf5(h5[name]) for name in h5}
        values = h5["x"][...]

    for name, found in want.items():
        ours = chunks_by_us(path, name)
        if "along" in layout:
            # libhdf5 reads them right, but lists them as though the first dimension were unlimited.
            assert sorted(ours.values()) == sorted(found.values())
        else:
            assert ours == found
    if not filters:
        assert_holds(path, chunks_by_us(path), values, chunks)


def assert_holds(path: Path, found: Any, values: np.ndarray, chunks: tuple[int, ...]) -> None:
    """That what lies in unfiltered chunks is the values of a dataset."""
    raw, got = path.read_bytes(), np.full_like(values, -1)
    for place, (_, offset, size) in found.items():
        chunk = np.frombuffer(raw[offset : offset + size], values.dtype).reshape(chunks)
        part = got[tuple(slice(a, a + n) for a, n in zip(place, chunks, strict=True))]
        part[...] = chunk[tuple(slice(n) for n in part.shape)]
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("early", [True, False])
def test_chunks_without_an_index_lie_side_by_side(tmp_path: Path, early: bool) -> None:
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((10, 3))
    created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY if early else h5py.h5d.ALLOC_TIME_LATE)
    with h5py.File(tmp_path / "a.h5", "w", libver="v110") as h5:
        space = h5py.h5s.create_simple((90, 7), (120, 8))
        h5py.h5d.create(h5.id, b"x", h5py.h5t.NATIVE_INT32, space, created)
        h5["x"][...] = np.arange(630).reshape(90, 7)
        want = chunks_by_libhdf5(h5["x"])

    assert chunks_by_us(tmp_path / "a.h5") == want


def test_pages_that_nobody_wrote_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="v110") as h5:
        fixed = h5.create_dataset("fixed", (200_000,), "u1", chunks=(1,))
        growing = h5.create_dataset("growing", (400_000,), "u1", chunks=(1,), maxshape=(None,))
        packed = h5.create_dataset(
            "packed", (400_000,), "u1", chunks=(1,), maxshape=(None,), compression="gzip"
        )
        for at in (0, 5000, 131_060, 133_000, 135_200, 140_000, 199_999):
            fixed[at] = growing[at] = packed[at] = growing[2 * at] = 1
        want = {name: chunks_by_libhdf5(h5[name]) for name in h5}

    for name, found in want.items():
        assert chunks_by_us(path, name) == found


def test_what_a_dataset_was_cut_down_to_is_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="v110") as h5:
        for name, most in (("fixed", (200, 20)), ("growing", (None, 20)), ("tree", (None, None))):
            h5.create_dataset(name, data=np.ones((100, 9)), chunks=(10, 2), maxshape=most)
            h5[name].resize((33, 5))
        want = {name: chunks_by_libhdf5(h5[name]) for name in h5}

    for name, found in want.items():
        assert chunks_by_us(path, name) == found


@pytest.mark.parametrize("most", [None, (None, 93), (9, None), (None, None)])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_matrix_in_a_file_of_a_newer_format_is_read_without_libhdf5(
    tmp_path: Path, most: Any, version: str
) -> None:
    path, values = tmp_path / "a.h5", np.arange(9 * 93, dtype="i4").reshape(9, 93)
    with h5py.File(path, "w", libver=version) as h5:
        h5.create_dataset("x", data=values, chunks=(2, 10), maxshape=most, **GZIP)
    with h5py.File(path) as h5:
        array = lazy.adapt(h5["x"])
        assert isinstance(source_of(array), _ChunkedSource)
        np.testing.assert_array_equal(array[1:8, 5:88].compute(), values[1:8, 5:88])


def test_chunks_at_the_edges_may_skip_all_filters(tmp_path: Path) -> None:
    """As h5py cannot write them: a flag is set, and they are as they are."""
    path, values = tmp_path / "a.h5", np.arange(45, dtype="i4")
    with h5py.File(path, "w", libver="v110") as h5:
        data = h5.create_dataset("x/data", (45,), "i4", chunks=(10,), compression="gzip")
        data[...] = values
        last = np.zeros(10, "i4")
        last[:5] = values[40:]
        data.id.write_direct_chunk((40,), last.tobytes(), 0)
    raw = bytearray(path.read_bytes())
    at = raw.index(bytes([4, 2, 0, 2, 1, 10, 4, 3]))  # version, chunked, flags, rank and so on
    raw[at + 2] = 1
    head = raw.rindex(b"OHDR", 0, at)
    width = 1 << (raw[head + 5] & 3)
    begin = head + 6 + (16 if raw[head + 5] & 32 else 0) + (4 if raw[head + 5] & 16 else 0)
    end = begin + width + int.from_bytes(raw[begin : begin + width], "little")
    raw[end : end + 4] = lookup3(bytes(raw[head:end])).to_bytes(4, "little")
    path.write_bytes(raw)

    with h5py.File(path) as h5:
        np.testing.assert_array_equal(h5["x/data"], values)
    with rs.open(path) as file:
        np.testing.assert_array_equal(file["x"][:], values)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("rows", [(None,), None, (4000,)])
def test_samples_in_files_of_newer_formats_are_read(
    tmp_path: Path, rows: Any, version: str
) -> None:
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 99, n).astype("i2") for n in rng.integers(0, 30, 100)]
    ends = np.cumsum([len(sample) for sample in samples])
    with h5py.File(tmp_path / "a.h5", "w", libver=version) as h5:
        for name, array in {
            "data": np.concatenate(samples),
            "data_start_and_stop": np.stack([np.append(0, ends[:-1]), ends], 1),
            "data_shape": np.array([[len(sample)] for sample in samples]),
        }.items():
            most = None if rows is None else (*rows, *array.shape[1:])
            h5.create_dataset(
                f"x/{name}", data=array, chunks=(16, *array.shape[1:]), maxshape=most, **GZIP
            )
    with rs.open(tmp_path / "a.h5") as file:
        for got, want in zip(file["x"].batch(slice(None)).to_list(), samples, strict=True):
            np.testing.assert_array_equal(got, want)


def test_an_index_is_read_once_for_a_file_that_is_opened(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    find = Layout.chunks

    def counted(*args: Any, **options: Any) -> Any:
        read.append(1)
        return find(*args, **options)

    monkeypatch.setattr(Layout, "chunks", counted)
    with rs.open(indexed) as file:
        assert len(file["x"][:]) and len(read) == 1


INDEXED = ["a fixed array of pages", "an extensible array of many blocks", "a tree of two levels"]


@pytest.fixture(scope="module", params=INDEXED)
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape, chunks, most = LAYOUTS[request.param]
    path = tmp_path_factory.mktemp("indexed") / "a.h5"
    with h5py.File(path, "w", libver="v110") as h5:
        data = np.arange(np.prod(shape), dtype="i4").reshape(shape)
        h5.create_dataset("x/data", data=data, chunks=chunks, maxshape=most)
    return path


@given(st.data())
def test_no_damaged_index_is_believed(indexed: Path, data: st.DataObject) -> None:
    raw = bytearray(indexed.read_bytes())
    parts = [b"FAHD", b"FADB", b"EAHD", b"EAIB", b"EASB", b"EADB", b"BTHD", b"BTIN", b"BTLF"]
    begins = [raw.find(part) for part in parts if part in raw]
    place = data.draw(st.sampled_from(begins)) + data.draw(st.integers(0, 60))
    raw[place] ^= data.draw(st.integers(1, 255))
    damaged = indexed.with_name("damaged.h5")
    damaged.write_bytes(raw)

    with suppress(rs.CorruptionError):
        # Where it was no part of it.
        assert chunks_by_us(damaged, "x/data") == chunks_by_us(indexed, "x/data")


@given(st.binary(max_size=80))
def test_a_message_of_nonsense_is_an_error_or_a_layout(message: bytes) -> None:
    with suppress(rs.CorruptionError):
        layout = Layout.of(b"\x04\x02" + message)
        shape = (90,) * len(layout.chunk)
        layout.chunks(io.BytesIO(bytes(500)), shape, shape, False)


def test_the_checksum_is_the_one_of_its_author() -> None:
    # From the comments of lookup3.c, which begins at other numbers where it is told to.
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551

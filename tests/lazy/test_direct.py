"""HDF5 read past libhdf5 gives what libhdf5 gives."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import tables
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import lazy
from raggedstore.lazy import direct
from raggedstore.lazy.windows import source_of
from raggedstore.segment.file import FileBytes

pytest.importorskip("dask.array")
h5py: Any = pytest.importorskip("h5py")
hdf5plugin: Any = pytest.importorskip("hdf5plugin")

RNG = np.random.default_rng(0)
FILTERS: dict[str, dict[str, Any]] = {
    "raw": {},
    "blosc2": dict(hdf5plugin.Blosc2("lz4")),
    "blosc": dict(hdf5plugin.Blosc("zstd")),
    "deflate": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},  # left to libhdf5
}
#: Shapes and chunks: in one piece, whole rows, parts of rows, more than the array, three axes.
LAYOUTS: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = [
    ((40, 300), None),
    ((40, 300), (1, 300)),
    ((40, 300), (7, 130)),
    ((200, 3000), (150, 2500)),  # which Blosc2 cuts into blocks
    ((9, 8, 31), (4, 8, 10)),
    ((1000,), (64,)),
]
CASES = {
    f"{name}-{i}-{dtype}": (shape, chunks, name, dtype)
    for (i, (shape, chunks)), name, dtype in itertools.product(
        enumerate(LAYOUTS), FILTERS, ("<f4", ">i2")
    )
    if chunks or name == "raw"
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("direct") / "x.h5"
    with h5py.File(path, "w", userblock_size=512) as made:
        for name, (shape, chunks, filters, dtype) in CASES.items():
            values = RNG.integers(0, 99, shape).astype(dtype)
            made.create_dataset(name, data=values, chunks=chunks, **FILTERS[filters])
        hole = made.create_dataset("hole", (30, 30), "f8", chunks=(10, 10), fillvalue=7)
        hole[12:15, 3] = 1
        made.create_dataset("never", (30, 30), "f8", fillvalue=3)
        # Rows nearer to one another than what is read at a time, and further apart.
        made["rows"] = RNG.integers(0, 99, (300, 500)).astype(">i2")
        made["wide rows"] = RNG.integers(0, 99, (4, 3, 9000))
    with h5py.File(path, "r") as opened:
        yield opened


def keys(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[slice, ...]]:
    ends = [st.none() | st.integers(-n - 1, n + 1) for n in shape]
    steps = st.sampled_from([None, 1, 2, 3, 7, -1, -3, 100])
    return st.tuples(*(st.builds(slice, end, end, steps) for end in ends))


@pytest.mark.parametrize("name", [*CASES, "hole", "never", "rows", "wide rows"])
def test_every_window_is_what_libhdf5_reads(file: Any, name: str) -> None:
    values, array = file[name][()], lazy.adapt(file[name])
    windows = keys(values.shape)
    np.testing.assert_array_equal(array.compute(), values)

    @settings(max_examples=8, deadline=None)
    @given(windows)
    def check(key: tuple[slice, ...]) -> None:
        got = array[key].compute(scheduler="sync")
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values[key])

    check()


def test_libhdf5_is_asked_for_nothing_where_it_need_not_be(
    file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {name: lazy.adapt(file[name]) for name in CASES}
    want = {name: file[name][()] for name in CASES}
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("libhdf5 was asked"))
    for name, array in arrays.items():
        if "lzf" not in name and not name.startswith("raw"):
            np.testing.assert_array_equal(array.compute(), want[name])


def test_it_goes_to_other_processes(file: Any) -> None:
    for name in ("blosc2-3-<f4", "raw-0-<f4", "deflate-2->i2"):
        array = pickle.loads(pickle.dumps(lazy.adapt(file[name])))
        np.testing.assert_array_equal(array.compute(), file[name][()])


def test_threads_that_open_it_at_once_leave_one_another_the_file(
    file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(lazy.adapt(file["blosc2-1-<f4"]))
    assert isinstance(source, direct._DirectSource)
    others: list[Thread] = []

    class Overtaken(FileBytes):
        def fileno(self) -> int:
            number = super().fileno()
            if not others:  # one that had looked before this one put its own there
                source._file = None
                others.append(Thread(target=source._opened))
                others[0].start()
                others[0].join()
            return number

    monkeypatch.setattr(direct, "FileBytes", Overtaken)
    source._file = None
    assert source._opened().read(0, 1)
    assert others


def test_a_file_that_is_written_to_is_left_to_libhdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as made:
        made["x"] = np.arange(9)
        array = lazy.adapt(made["x"])
        made["x"][3] = 77
        assert array.compute()[3] == 77


def test_files_of_pytables_are_read_likewise(tmp_path: Path) -> None:
    values = RNG.integers(0, 9, (500, 70)).astype("i4")
    filters = tables.Filters(5, "blosc2:zstd")
    with tables.open_file(tmp_path / "x.h5", "w") as made:
        made.create_carray("/", "x", obj=values, filters=filters, chunkshape=(64, 33))
        made.create_earray("/", "y", obj=values[:, 0])
    with tables.open_file(tmp_path / "x.h5") as opened:
        np.testing.assert_array_equal(
            lazy.adapt(opened.root.x)[::3, 60:].compute(), values[::3, 60:]
        )
        np.testing.assert_array_equal(lazy.adapt(opened.root.y).compute(), values[:, 0])


@pytest.mark.parametrize("layout", ["contiguous", "raw chunks", "deflate"])
def test_a_file_cut_short_while_it_is_open_is_an_error_that_names_file_and_dataset(
    tmp_path: Path, layout: str
) -> None:
    path = tmp_path / "x.h5"
    options = {"contiguous": {}, "raw chunks": {"chunks": (100, 1000)}}
    deflate = {"chunks": (100, 1000), "compression": 1}
    why = "the file has 1048576 bytes" if layout == "raw chunks" else "ends before"
    values = np.frombuffer(RNG.bytes(8 * 3000 * 1000), "i8").reshape(3000, 1000)
    with h5py.File(path, "w") as made:
        made.create_dataset("group/x", data=values, **options.get(layout, deflate))
    with h5py.File(path, "r") as opened:
        array = lazy.adapt(opened["group/x"])
        np.testing.assert_array_equal(array[::7, 3:5].compute(), values[::7, 3:5])
        os.truncate(path, 2**20)
        for key in (..., np.s_[2000:, 3], np.s_[-1], np.s_[::500, ::500]):
            for options in ({}, {"scheduler": "threads"}):
                with pytest.raises(rs.CorruptionError, match=rf"^{path}:/group/x: {why}"):
                    array[key].compute(**options)
        if layout != "raw chunks":  # which libhdf5 reads: it would give zeros
            assert array[:20, :7].compute().shape == (20, 7)


def adapted_and_damaged(path: Path) -> Any:
    """The lazy array of a file's dataset "x", whose second chunk was overwritten since."""
    with h5py.File(path, "r") as opened:
        array = lazy.adapt(opened["x"])
        info = opened["x"].id.get_chunk_info(1)
    written = os.stat(path)
    with open(path, "r+b") as raw:
        raw.seek(info.byte_offset)
        raw.write(b"\0" * 40)
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))  # as a disk would do it
    return array


def test_a_chunk_that_cannot_be_decoded_is_an_error_that_names_file_and_dataset(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as made:
        made.create_dataset("x", data=np.arange(9000.0), chunks=(3000,), compression="gzip")
    array = adapted_and_damaged(path)
    with pytest.raises(rs.CorruptionError, match=rf"^{path}:/x: not readable"):
        array.compute()


@pytest.mark.parametrize("key", [np.s_[:], np.s_[:, 3], np.s_[7:9, 3:5], np.s_[::3, ::2]])
def test_contiguous_values_are_read_in_few_calls(
    file: Any, monkeypatch: pytest.MonkeyPatch, key: Any
) -> None:
    array = lazy.adapt(file["rows"])[key]
    sizes: list[int] = []
    read = os.preadv

    def preadv(number: int, buffers: list[Any], offset: int) -> int:
        sizes.append(len(buffers[0]))
        return read(number, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    np.testing.assert_array_equal(array.compute(), file["rows"][()][key])
    assert len(sizes) <= 2 and sum(sizes) <= 300 * 500 * 2


def test_damage_and_other_files_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as made:
        made.create_dataset("x", data=np.arange(9000.0), chunks=(3000,), **FILTERS["blosc2"])
    array = adapted_and_damaged(path)
    with pytest.raises(rs.CorruptionError):
        array.compute(scheduler="sync")
    written = os.stat(path)
    os.truncate(path, 4000)
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    with pytest.raises(rs.RaggedStoreError, match="adapt it again"):
        pickle.loads(pickle.dumps(array)).compute(scheduler="sync")


@pytest.mark.parametrize("options", [{}, {"chunks": (100,), "compression": 1}])
def test_a_file_that_is_written_anew_is_noticed_while_it_is_open(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as made:
        made.create_dataset("x", data=np.zeros(1000), **options)
    with h5py.File(path, "r") as opened:
        array = lazy.adapt(opened["x"])
        assert not array[:5].compute().any()
    with h5py.File(path, "w") as made:  # at the same inode
        made.create_dataset("before", data=np.full(1000, 7.0))
        made.create_dataset("x", data=np.ones(1200), **options)
    with pytest.raises(rs.FormatError, match="adapt it again"):
        array[:5].compute()


def test_integers_of_some_of_their_bits_are_left_to_libhdf5(tmp_path: Path) -> None:
    values = np.arange(-5, 5).astype("i2")
    of_bits = h5py.h5t.NATIVE_INT16.copy()
    of_bits.set_precision(12)
    with h5py.File(tmp_path / "x.h5", "w") as made:
        space = h5py.h5s.create_simple((10,))
        data = h5py.h5d.create(made.create_group("x").id, b"data", of_bits, space)
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    with h5py.File(tmp_path / "x.h5", "r") as opened:
        np.testing.assert_array_equal(lazy.adapt(opened["x/data"]).compute(), values)
    with pytest.raises(rs.FormatError, match="12 bits"):
        rs.open(tmp_path / "x.h5")

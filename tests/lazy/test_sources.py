"""Whatever is adapted reads as itself, here and in other processes, and nothing before its time."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import hdf5plugin
import netCDF4
import numpy as np
import pytest
import tables
import zarr
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import lazy
from raggedstore.errors import FormatError, NotAStoreError, StorageError, UsageError
from raggedstore.lazy.files import HDF5_LOCK
from raggedstore.lazy.windows import CHUNK_BYTES, group_chunks
from tests.lazy.recording import Recording

ROOT = Path(__file__).resolve().parents[2]
VALUES = np.arange(60 * 50, dtype="f4").reshape(60, 50)

#: A source over `VALUES`, and what closes it.
Opened = tuple[Any, Callable[[], Any]]


def open_memmap(path: Path) -> Opened:
    np.save(path, VALUES)
    path.with_name(f"{path.name}.npy").rename(path)
    return np.load(path, mmap_mode="r"), lambda: None


def open_h5py(path: Path) -> Opened:
    with h5py.File(path, "w") as file:
        file.create_dataset("group/x", data=VALUES, chunks=(7, 20), **hdf5plugin.Blosc2())
    file = h5py.File(path)
    return file["group/x"], file.close


def open_written(path: Path) -> Opened:
    file = h5py.File(path, "w")
    file.create_dataset("x", data=VALUES, chunks=(7, 20), compression="gzip")
    return file["x"], file.close


def open_pytables(path: Path) -> Opened:
    with tables.open_file(path, "w") as file:
        file.create_carray("/group", "x", obj=VALUES, chunkshape=(7, 20), createparents=True)
    file = tables.open_file(path)
    return file.root.group.x, file.close


def open_netcdf(path: Path) -> Opened:
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("t", None)
        file.createDimension("x", 50)
        file.createGroup("group").createVariable("x", "f4", ("t", "x"), chunksizes=(7, 20))
        file["group/x"][:] = VALUES
    file = netCDF4.Dataset(path)
    return file["group/x"], lambda: file.isopen() and file.close()


def open_zarr(path: Path) -> Opened:
    array = zarr.create_array(path, shape=VALUES.shape, chunks=(7, 20), dtype="f4")
    array[:] = VALUES
    return zarr.open_array(path, mode="r"), lambda: None


def open_field(path: Path) -> Opened:
    store = rs.create(path, {"x": rs.Field("f4", (50,))})
    for rows in np.array_split(VALUES, 3):
        with store.writer() as writer:
            writer.extend({"x": row} for row in rows)
    return rs.open(path)["x"], lambda: None


OPENERS = [
    open_memmap,
    open_h5py,
    open_written,
    open_pytables,
    open_netcdf,
    open_zarr,
    open_field,
]


@pytest.fixture(params=OPENERS, ids=lambda opener: opener.__name__[5:])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    source, close = request.param(tmp_path / "source")
    yield source, close
    close()


def test_it_reads_as_itself(opened: Opened) -> None:
    x = lazy.adapt(opened[0])
    assert isinstance(x, da.Array)
    assert x.shape == VALUES.shape and x.dtype == VALUES.dtype
    np.testing.assert_array_equal(x, VALUES)
    np.testing.assert_array_equal(x[::-1, 3:40:7], VALUES[::-1, 3:40:7])
    np.testing.assert_array_equal(x[-1, None, [4, 2, 2]], VALUES[-1, None, [4, 2, 2]])
    assert float(x[5, 6].compute()) == VALUES[5, 6]
    assert x[4:4].compute().shape == (0, 50)
    np.testing.assert_array_equal(lazy.adapt(opened[0], chunks=(9, 11)), VALUES)


def test_many_threads_read_it_at_once(opened: Opened) -> None:
    x = lazy.adapt(opened[0], chunks=(2, 50))
    with ThreadPoolExecutor(8) as pool, dask.config.set(pool=pool):
        for _ in range(5):
            np.testing.assert_array_equal(x.compute(), VALUES)


def test_other_processes_open_them_by_path(tmp_path: Path) -> None:
    arrays = []
    for opener in OPENERS:
        source, close = opener(tmp_path / opener.__name__)
        x = lazy.adapt(source, chunks=(60, 50))[1:]
        assert len(pickle.dumps(x)) < 4000
        assert opener.__name__.encode() in pickle.dumps(x)
        arrays.append(x)
        close()  # what is open for writing, nobody else opens
    # Processes of their own, not forked, to which tasks are pickled.
    got = dask.compute(*arrays, scheduler="processes", num_workers=1, optimize_graph=False)
    for values in got:
        np.testing.assert_array_equal(values, VALUES[1:])


@pytest.mark.parametrize("kind", ["h5py", "tables"])
def test_what_is_open_is_read_where_another_file_lies_at_its_path(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, number in (("here", 1), ("there", 2)):
        (tmp_path / folder).mkdir()
        with h5py.File(tmp_path / folder / "x.h5", "w") as file:
            values = np.full((40, 10), number)
            file.create_dataset("x", data=values, chunks=(10, 10), compression="gzip")
    monkeypatch.chdir(tmp_path / "here")
    file = h5py.File("x.h5") if kind == "h5py" else tables.open_file("x.h5")
    monkeypatch.chdir(tmp_path / "there")
    x = lazy.adapt(file["x"] if kind == "h5py" else file.root.x)

    assert x.mean().compute() == 1
    with pytest.raises(UsageError, match="another file"):
        pickle.dumps(x)
    file.close()
    with pytest.raises(UsageError, match="another file"):
        x.mean().compute()


def test_a_file_that_was_closed_is_opened_again(opened: Opened) -> None:
    source, close = opened
    x = lazy.adapt(source)
    close()
    np.testing.assert_array_equal(x[2:5], VALUES[2:5])
    np.testing.assert_array_equal(x, VALUES)


def test_the_same_thing_adapted_twice_is_read_once(tmp_path: Path) -> None:
    for number, opener in enumerate((open_memmap, open_h5py, open_pytables)):
        source, close = opener(tmp_path / str(number))
        assert lazy.adapt(source).name == lazy.adapt(source).name
        assert lazy.adapt(source).name != lazy.adapt(source)[1:].name
        close()
    source, close = open_written(tmp_path / "changing")
    assert lazy.adapt(source).name != lazy.adapt(source).name
    close()


# Gone and changed


@pytest.mark.parametrize("opener", [open_memmap, open_h5py, open_pytables, open_netcdf])
def test_a_source_that_is_gone_says_so(opener: Callable[[Path], Opened], tmp_path: Path) -> None:
    source, close = opener(tmp_path / "source")
    pickled = pickle.dumps(lazy.adapt(source))
    close()
    (tmp_path / "source").unlink()
    with pytest.raises((NotAStoreError, StorageError), match=r"source.* (can|could) ?not be read"):
        pickle.loads(pickled).compute()


@pytest.mark.parametrize("opener", [open_memmap, open_h5py, open_pytables, open_netcdf])
def test_a_source_that_has_changed_says_so(
    opener: Callable[[Path], Opened], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, close = opener(tmp_path / "source")
    pickled = pickle.dumps(lazy.adapt(source))
    close()
    del source
    (tmp_path / "source").unlink()
    monkeypatch.setattr(sys.modules[__name__], "VALUES", VALUES[:40])
    opener(tmp_path / "source")[1]()
    with pytest.raises(FormatError, match="adapt it again"):
        pickle.loads(pickled).compute()


def test_a_dataset_that_was_taken_out_says_so(tmp_path: Path) -> None:
    source, close = open_written(tmp_path / "source")
    x = lazy.adapt(source)
    close()
    with h5py.File(tmp_path / "source", "a") as file:
        del file["x"]
    with pytest.raises(StorageError, match=r"source:/x, \[0:60, 0:50\]: KeyError"):
        x.compute()


def test_what_lies_in_no_file_cannot_be_sent() -> None:
    with h5py.File("nowhere", "w", driver="core", backing_store=False) as file:
        x = lazy.adapt(file.create_dataset("x", data=VALUES))
        np.testing.assert_array_equal(x, VALUES)
        with pytest.raises(UsageError, match="lies in no file"):
            pickle.dumps(x)


# Memory maps


@given(st.data())
def test_views_of_maps_are_mapped_again_as_they_were(data: st.DataObject) -> None:
    order = data.draw(st.sampled_from("CF"))
    offset = data.draw(st.integers(0, 5000))
    path = data.draw(st.just(_MAPS / f"{order}{offset}"))
    values = np.arange(24, dtype="i4").reshape(2, 3, 4)
    whole = np.memmap(path, "i4", "w+", offset, values.shape, order)
    whole[:] = values
    whole.flush()
    key = tuple(data.draw(st.slices(n)) for n in values.shape)
    view = whole[key].transpose(data.draw(st.permutations(range(3))))
    x = lazy.adapt(view)
    np.testing.assert_array_equal(x, view)
    if view.size:
        again = pickle.loads(pickle.dumps(x))
        np.testing.assert_array_equal(again, view)
    path.unlink()


@pytest.fixture(autouse=True, scope="module")
def _maps(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _MAPS
    _MAPS = tmp_path_factory.mktemp("maps")


_MAPS: Path


def test_what_was_read_of_a_map_does_not_write_to_it(tmp_path: Path) -> None:
    source = np.memmap(tmp_path / "x", "i4", "w+", shape=(5,))
    with pytest.raises(ValueError, match="read-only"):
        lazy.adapt(source).map_blocks(np.ndarray.sort, dtype="i4").compute()
    assert source[0] == 0


def test_a_private_map_and_a_plain_array_are_sent_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(5))
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[0] = 9
    for array in (private, np.array([9, 1, 2, 3, 4])):
        x = pickle.loads(pickle.dumps(lazy.adapt(array)))
        assert x.compute().tolist() == [9, 1, 2, 3, 4]
        read = lazy.adapt(array).compute()
        read[1] = 7
        assert array[1] == 1


# netCDF4 and masks


def test_netcdf_variables_keep_masks_and_scales(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "x.nc", "w") as file:
        file.createDimension("t", 10)
        packed = file.createVariable("packed", "i2", ("t",), fill_value=-1)
        packed.scale_factor = np.float32(0.5)
        packed[:] = np.ma.masked_equal(np.arange(10), 4)
        file.createVariable("scalar", "f8", ())[...] = 3.5
    with netCDF4.Dataset(tmp_path / "x.nc") as file:
        expected, x = file["packed"][:], lazy.adapt(file["packed"])
        assert x.dtype == np.float32 and isinstance(x._meta, np.ma.MaskedArray)
        file["packed"].set_auto_maskandscale(False)
        raw, y = file["packed"][:], lazy.adapt(file["packed"])
        scalar = lazy.adapt(file["scalar"])
        assert float(scalar.compute()) == 3.5
    for _ in range(2):  # opened again, each as it was when it was adapted
        got = x[::-1].compute()
        assert got.mask.tolist() == expected.mask[::-1].tolist()
        np.testing.assert_array_equal(got.compressed(), expected[::-1].compressed())
        np.testing.assert_array_equal(y.compute(), raw)
        assert y.dtype == np.int16
    assert float(scalar.compute()) == 3.5
    assert da.ma.count(x).compute() == 9


def test_masked_arrays_stay_masked() -> None:
    values = np.ma.masked_greater(VALUES, 99)
    got = lazy.adapt(values, chunks=10)[::-1, [3, 9, 1]].compute()
    np.testing.assert_array_equal(got.mask, values[::-1, [3, 9, 1]].mask)


# Locks


class Guarded(Recording):
    """Falls over when two threads are in it."""

    def __init__(self, values: Any, *, expected: int = 0) -> None:
        super().__init__(values)
        self._inside = threading.Lock()
        self._together = threading.Barrier(expected) if expected else None

    def __getitem__(self, window: Any) -> Any:
        if self._together is not None:
            self._together.wait(30)
            return super().__getitem__(window)
        assert self._inside.acquire(blocking=False), "two at once"
        try:
            return super().__getitem__(window)
        finally:
            self._inside.release()


def test_an_object_of_ones_own_is_read_by_one_thread_at_a_time() -> None:
    source = Guarded(VALUES)
    # Adapted twice, it is the same object.
    x = lazy.stack([lazy.adapt(source, chunks=(2, 5)), lazy.adapt(source, chunks=(2, 5))])
    with ThreadPoolExecutor(8) as pool, dask.config.set(pool=pool):
        np.testing.assert_array_equal(x, np.stack([VALUES, VALUES]))


def test_without_a_lock_threads_read_together() -> None:
    source = Guarded(VALUES, expected=2)
    with ThreadPoolExecutor(2) as pool, dask.config.set(pool=pool):
        lazy.adapt(source, chunks=(30, 50), lock=False).compute()
    assert len(source.windows) == 2


def test_a_lock_may_be_given() -> None:
    held = []

    class Lock(AbstractContextManager[None]):
        def __enter__(self) -> None:
            held.append(True)

        def __exit__(self, *_: object) -> None:
            held.append(False)

    lazy.adapt(Recording(VALUES), lock=Lock()).compute()
    assert held == [True, False]


def test_all_that_is_read_by_libhdf5_waits_for_one_lock(tmp_path: Path) -> None:
    for number, opener in enumerate((open_written, open_netcdf)):
        source, close = opener(tmp_path / str(number))
        x = lazy.adapt(source)
        assert x.source.lock is HDF5_LOCK
        assert pickle.loads(pickle.dumps(HDF5_LOCK)) is HDF5_LOCK
        close()


# Chunks


def test_chunks_of_a_file_are_whole_chunks_of_its(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        small = lazy.adapt(file.create_dataset("small", (100_000, 5000), "f4", chunks=(70, 300)))
        large = lazy.adapt(file.create_dataset("large", (3000, 9000), "f8", chunks=(2000, 2100)))
        plain = lazy.adapt(file.create_dataset("plain", (100_000, 5000), "f4"))
    for axis, unit in ((0, 70), (1, 300)):
        assert all(size % unit == 0 for size in small.chunks[axis][:-1])
    assert CHUNK_BYTES / 4 < np.prod(small.chunksize) * 4 <= 2 * CHUNK_BYTES
    assert large.chunks == ((2000, 1000), (2100, 2100, 2100, 2100, 600))
    assert plain.chunksize == (CHUNK_BYTES // 20_000, 5000)


@given(
    st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
    st.sampled_from(["u1", "f4", "c16", "S1000"]),
)
def test_chunks_of_what_has_none_are_rows(shape: tuple[int, ...], code: str) -> None:
    dtype = np.dtype(code)
    while np.prod([float(n) for n in shape]) * dtype.itemsize / CHUNK_BYTES > 1e5:
        shape = tuple(n // 10 for n in shape)
    chunks = group_chunks(shape, dtype, None)
    assert tuple(map(sum, chunks)) == shape
    sizes = [sizes[0] for sizes in chunks]
    assert np.prod(sizes, dtype=float) * dtype.itemsize <= CHUNK_BYTES
    # Whole along all axes after the first that is cut; one at a time along those before it.
    cut = [axis for axis, n in enumerate(shape) if sizes[axis] < n]
    if cut and 0 not in shape:
        assert sizes[: cut[-1]] == [1] * cut[-1]


def test_chunks_of_a_field_end_where_segments_and_chunks_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compression = rs.Compression(chunk_bytes=2**16)
    store = rs.create(tmp_path / "s", {"x": rs.Field("f4", (64,))}, profile=compression)
    for rows in (100, 30, 2000):
        with store.writer() as writer:
            writer.extend({"x": np.full(64, row, "f4")} for row in range(rows))
    monkeypatch.setattr("raggedstore.lazy.sources.CHUNK_BYTES", 700 * 256)
    assert lazy.adapt(store["x"]).chunks == ((642, 512, 512, 464), (64,))
    parts = rs.concat([store, store])
    assert lazy.adapt(parts["x"]).chunks == ((700,) * 6 + (60,), (64,))
    x = lazy.adapt(store.select(np.arange(2129, 0, -1))["x"])
    np.testing.assert_array_equal(x[:3, 0], [1999, 1998, 1997])


# What else can be adapted, and what cannot


def test_a_dask_array_stays_itself() -> None:
    x = da.zeros((4, 4), chunks=2)
    assert lazy.adapt(x) is x
    assert lazy.adapt(x, chunks=4).numblocks == (1, 1)


def test_scalars_and_tables_are_arrays_too(tmp_path: Path) -> None:
    assert lazy.adapt(np.float32(3)).compute() == 3
    with tables.open_file(tmp_path / "t.h5", "w") as file:
        rows = np.array([(1, 2.0), (3, 4.0)], [("a", "i4"), ("b", "f8")])
        x = lazy.adapt(file.create_table("/", "t", obj=rows))
        np.testing.assert_array_equal(x[::-1]["a"], [3, 1])
        scalar = lazy.adapt(file.create_array("/", "s", obj=np.array(5)))
        assert scalar.compute() == 5


SCALARS = {
    "big-endian": np.array(3, ">f4"),
    "bytes": np.array(b"ab", "S5"),
    "masked": np.ma.masked_array(np.array(3, "i2"), True),
    "not masked": np.ma.masked_array(np.array(3, "i2"), False),
    "text": np.array("ab", "U5"),
    "object": np.array(None, object),
    "date": np.array("2000-01-01", "M8[s]"),
    "record": np.array((1, b"a"), [("a", ">i4"), ("b", "S3")]),
}


def assert_same_scalar(got: Any, values: Any) -> None:
    assert got.shape == () and got.dtype == values.dtype
    np.testing.assert_array_equal(np.ma.getmaskarray(got), np.ma.getmaskarray(values))
    assert np.ma.is_masked(values) or got.tolist() == values.tolist()


@pytest.mark.parametrize("name", SCALARS)
def test_arrays_of_no_dimensions_keep_dtype_and_mask(name: str) -> None:
    for x in (SCALARS[name], Recording(SCALARS[name])):
        assert_same_scalar(lazy.adapt(x).compute(), SCALARS[name])
        assert_same_scalar(lazy.adapt(x)[...].compute(scheduler="sync"), SCALARS[name])


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("name", ["big-endian", "bytes", "record"])
def test_so_do_those_in_files(name: str, mode: str, tmp_path: Path) -> None:
    values = SCALARS[name]
    mapped = np.memmap(tmp_path / "map", values.dtype, "w+", shape=())
    mapped[...] = values
    assert_same_scalar(lazy.adapt(mapped).compute(), values)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = values
    with h5py.File(tmp_path / "x.h5", mode) as file:
        assert_same_scalar(lazy.adapt(file["x"]).compute(), values)


def test_so_do_those_of_zarr(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "x", shape=(), dtype=">f4")
    array[...] = 3
    assert_same_scalar(lazy.adapt(array).compute(), np.array(3, ">f4"))


def test_a_scalar_of_another_type_than_was_said_is_refused() -> None:
    source = Recording(np.array(3.0))
    source.values = np.array(3.0, "f4")
    with pytest.raises(FormatError, match=r"float32 came where .* float64"):
        lazy.adapt(source).compute()


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a list"):
        lazy.adapt([1, 2])
    store = rs.create(tmp_path / "s", {"audio": rs.Field("f4", (None,)), "text": rs.Field("str")})
    for name in ("audio", "text"):
        with pytest.raises(UsageError, match=f"{name}.*lazy.field"):
            lazy.adapt(store[name])
    with (
        tables.open_file(tmp_path / "t.h5", "w") as file,
        pytest.raises(UsageError, match="ragged"),
    ):
        lazy.adapt(file.create_vlarray("/", "v", tables.Int32Atom()))


def test_without_dask_it_imports_and_says_what_to_install() -> None:
    script = """
import sys
sys.modules["dask"] = None
import raggedstore as rs
from raggedstore import lazy
assert "adapt" in dir(lazy)
try:
    lazy.adapt
except rs.MissingExtraError as error:
    assert "raggedstore[lazy]" in str(error)
else:
    raise SystemExit("it came")
try:
    lazy.nothing
except AttributeError:
    pass
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_dask_is_not_imported_unasked() -> None:
    script = "import sys, raggedstore; raggedstore.lazy; sys.exit('dask' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_masks_of_netcdf_are_kept_where_it_does_not_always_make_one(tmp_path: Path) -> None:
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "x.nc", "w") as file:
        file.createDimension("n", 6)
        made = file.createVariable("x", "i4", ("n",), fill_value=-999)
        made[:] = np.ma.masked_array([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 0, 0])
    with netcdf.Dataset(tmp_path / "x.nc") as file:
        file.set_always_mask(False)
        array = lazy.adapt(file["x"])
        assert float(lazy.mean(array).compute()) == file["x"][:].mean() == 3.4
        assert array[[0, 3]].compute().mask.tolist() == [False, True]


def test_the_mask_over_a_memory_map_is_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([1.0, -999, 3]))
    under = np.load(tmp_path / "x.npy", mmap_mode="r")
    masked = np.ma.masked_equal(under, -999, copy=False)
    assert float(lazy.mean(masked).compute()) == 2

"""What `save` writes reads back the same, by other tools too; it is there whole or not at all."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import hdf5plugin  # noqa: F401  # h5py reads Blosc2 by it
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import tables
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import lazy
from raggedstore.lazy import saving


class Recorded:
    """Rows of numbers that say how often they were read, and may fail."""

    dtype = np.dtype("f4")
    chunks = (10, 20)

    def __init__(self, shape: tuple[int, int] = (100, 20), fails_at: int | None = None) -> None:
        self.shape, self.fails_at = shape, fails_at
        self.reads: list[Any] = []

    def __getitem__(self, key: Any) -> np.ndarray:
        self.reads.append(key)
        if len(self.reads) == self.fails_at:
            raise OSError("the tape broke")
        rows, columns = (np.arange(size)[k] for size, k in zip(self.shape, key, strict=True))
        return (rows[:, None] * 1000 + columns).astype("f4")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(st.data())
@settings(max_examples=40)
def test_h5py_reads_what_was_saved(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("saving") / "result.h5"
    dtypes = st.sampled_from(["?", "i1", "u8", "f2", "<f4", ">f8", "c8", "c16"])
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
    names = st.sampled_from(["mean", "class", "a/b", "a/c/d", "with space"])
    arrays = data.draw(
        st.dictionaries(names, dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes)), min_size=1)
    )
    chunked = {
        name: da.from_array(
            array,
            chunks=tuple(data.draw(st.integers(1, 4)) for _ in array.shape),
        )
        for name, array in arrays.items()
    }
    lazy.save(chunked, path)

    with h5py.File(path) as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name][()], array)
            assert file[name].dtype == (
                array.dtype.newbyteorder("=") if array.dtype != "?" else "u1"
            )
    assert names_in(path.parent) == ["result.h5"]


def test_several_results_read_the_data_once_and_are_compressed(tmp_path: Path) -> None:
    source = Recorded((1000, 200))
    x = lazy.adapt(source, chunks=(100, 200))
    lazy.save(
        {"double": x * 2, "root": np.sqrt(x), "mean": lazy.mean(x, axis=0)}, tmp_path / "r.h5"
    )

    assert len(source.reads) == 10
    values = x.compute()
    with h5py.File(tmp_path / "r.h5") as file:
        np.testing.assert_array_equal(file["double"], values * 2)
        np.testing.assert_allclose(file["mean"], values.mean(axis=0, dtype="f8"))
        assert file["root"].chunks == (100, 200)
    assert (tmp_path / "r.h5").stat().st_size < values.nbytes


def test_lazily_read_it_is_what_was_saved_and_may_be_saved_in_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    lazy.save({"x": np.arange(100.0)}, path)
    with h5py.File(path) as file:
        lazy.save({"x": lazy.adapt(file["x"]) + 1}, path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"], np.arange(1, 101))


@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_what_was_there(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "r.h5"
    if there:
        path.write_bytes(b"old")
    x = lazy.adapt(Recorded(fails_at=7), chunks=(10, 20))
    with pytest.raises(OSError, match="the tape broke"):
        lazy.save({"x": x, "y": x + 1}, path)

    assert names_in(tmp_path) == ["r.h5"] * there
    assert not there or path.read_bytes() == b"old"


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_refuses_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, call, refuse)
    path = tmp_path / "r.h5"
    path.write_bytes(b"old")
    with pytest.raises(rs.StorageError, match=rf"{path}: could not be .*no space"):
        lazy.save({"x": np.zeros(3)}, path)
    assert names_in(tmp_path) == ["r.h5"] and path.read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    target = tmp_path / "absent" / "r.h5"
    with pytest.raises(rs.StorageError, match=rf"^{target}: .* no folder {target.parent}$"):
        lazy.save({"x": np.zeros(3)}, target)
    with pytest.raises(rs.UsageError, match="is a folder"):
        lazy.save({"x": np.zeros(3)}, tmp_path)


def test_libhdf5s_errors_name_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(tables.File, "create_carray", refuse)
    with pytest.raises(rs.StorageError, match=rf"^{tmp_path / 'r.h5'}: .*no space"):
        lazy.save({"x": np.zeros(3)}, tmp_path / "r.h5")


REFUSED: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing to save": dict,
    "numbers or bools": lambda: {"x": np.array(["a"])},
    "is not known": lambda: {"x": (x := da.arange(9, chunks=3))[x > 2]},
    "masked values": lambda: {"x": np.ma.masked_less(np.arange(4), 2)},
    "dataset's name": lambda: {"a": np.zeros(1), "a/b": np.zeros(1)},
    "dataset's name beside": lambda: {"../a": np.zeros(1)},
    r"a block of \(2,\)": lambda: {
        "x": da.zeros(8, chunks=8).map_blocks(lambda block: block[:2], dtype=float)
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, message: str) -> None:
    with pytest.raises(rs.UsageError, match=message):
        lazy.save(REFUSED[message](), tmp_path / "r.h5")
    assert names_in(tmp_path) == []


def test_masked_floats_become_nan(tmp_path: Path) -> None:
    lazy.save({"x": np.ma.masked_less(np.arange(4.0), 2)}, tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        np.testing.assert_array_equal(file["x"], [np.nan, np.nan, 2, 3])


@given(
    st.lists(
        st.lists(st.integers(1, 3000), min_size=1, max_size=4).map(tuple), min_size=1, max_size=3
    ),
    st.sampled_from([1, 4, 16]),
)
def test_chunks_of_the_file_are_small_and_fit_into_the_blocks(
    sizes: list[tuple[int, ...]], itemsize: int
) -> None:
    shape = saving.chunk_shape(tuple(sizes), itemsize)

    assert math.prod(shape) * itemsize <= 2**20
    for chunk, blocks in zip(shape, sizes, strict=True):
        assert 1 <= chunk <= max(blocks)


def test_blocks_of_even_sizes_share_no_chunk() -> None:
    assert saving.chunk_shape(((1000, 1000, 300), (512, 512)), 4) == (500, 512)
    assert saving.chunk_shape(((300, 200, 500),), 4) == (100,)
    assert saving.chunk_shape(((1009, 1009),), 8) == (1009,)


def test_many_small_blocks_are_written_together(tmp_path: Path) -> None:
    x = da.arange(10_000, chunks=10)
    lazy.save({"x": x}, tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        assert file["x"].chunks[0] >= 5000
        np.testing.assert_array_equal(file["x"], np.arange(10_000))


# Into a store

SCHEMA = {"wide": rs.Field("f4", (20,)), "any": rs.Field("f4", (None,)), "sum": rs.Field("f8")}


def test_a_store_takes_rows_as_samples_in_order_with_one_commit(tmp_path: Path) -> None:
    source = Recorded()
    x = lazy.adapt(source, chunks=(10, 20))
    with rs.create(tmp_path / "s", SCHEMA) as store:
        arrays = {"any": x[:, :7].rechunk((30, 7)), "sum": lazy.sum(x, axis=1), "wide": x}
        source.reads.clear()
        lazy.save(arrays, store)

        assert store.version == 1 and len(store) == 100
        values = x.compute()
        np.testing.assert_array_equal(store["wide"].batch(slice(None)), values)
        np.testing.assert_array_equal(store["any"].batch(slice(None)).to_padded(), values[:, :7])
        np.testing.assert_allclose(store["sum"].batch(slice(None)), values.sum(axis=1))


def test_a_store_reads_its_sources_once(tmp_path: Path) -> None:
    source = Recorded()
    x = lazy.adapt(source, chunks=(10, 20))
    with rs.create(tmp_path / "s", {"a": rs.Field("f4", (20,)), "b": rs.Field("f4", (20,))}) as s:
        lazy.save({"a": x, "b": x + 1}, s)
    assert len(source.reads) == 10


def test_an_error_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    x = lazy.adapt(Recorded(fails_at=7), chunks=(10, 20))
    with rs.create(tmp_path / "s", {"a": rs.Field("f4", (20,))}) as store:
        with pytest.raises(OSError, match="the tape broke"):
            lazy.save({"a": x}, store)
        assert store.version == 0 and len(store) == 0
        store.vacuum()
    assert names_in(tmp_path / "s" / "segments") == []


def test_arrays_that_make_no_samples_are_refused(tmp_path: Path) -> None:
    zeros = np.zeros((4, 20), "f4")
    with rs.create(tmp_path / "s", SCHEMA) as store:
        for arrays in (
            {"wide": zeros},
            {"wide": zeros, "any": zeros, "sum": zeros[:, 0], "more": zeros},
            {"wide": zeros, "any": zeros[:3], "sum": zeros[:, 0]},
            {"wide": zeros, "any": zeros, "sum": zeros},
            {"wide": zeros[:, :3], "any": zeros, "sum": zeros[:, 0]},
        ):
            with pytest.raises(rs.SampleError):
                lazy.save(arrays, store)
        assert store.version == 0
    with rs.open(tmp_path / "s") as reader, pytest.raises(rs.UsageError, match="mode='a'"):
        lazy.save({"wide": zeros, "any": zeros, "sum": zeros[:, 0]}, reader)


# However large

CHILD = """
import resource, sys
import dask.array as da, numpy as np
import raggedstore as rs
from raggedstore import lazy

class Source:
    shape, dtype, chunks = (5000, 10_000), np.dtype("f4"), (100, 10_000)
    def __init__(self):
        self.reads = 0
    def __getitem__(self, key):
        self.reads += 1
        return np.ones([len(range(n)[k]) for n, k in zip(self.shape, key)], self.dtype)

def now(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))

folder, kind = sys.argv[1:]
lazy.save({"warm": da.zeros((100, 100)) + 1}, folder + "/warm.h5")
source = Source()
x = lazy.adapt(source, chunks=(100, 10_000))
limit = now("VmData") + 150_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if kind == "file":
    lazy.save({"a": x * 2, "b": x + 1}, folder + "/result.h5")
else:
    fields = {name: rs.Field("f4", (10_000,)) for name in "ab"}
    with rs.create(folder + "/store", fields) as store:
        lazy.save({"a": x * 2, "b": x + 1}, store)
        assert store.nbytes == 400_000_000
print(source.reads)
"""


@pytest.mark.parametrize("kind", ["file", "store"])
def test_400_MB_are_saved_in_150_MB_of_memory(tmp_path: Path, kind: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(rs.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), kind],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "50\n"


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_any_scheduler_saves_the_same(tmp_path: Path, scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler):
        lazy.save({"x": da.arange(100, chunks=30) * 2}, tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        np.testing.assert_array_equal(file["x"], np.arange(100) * 2)


def test_a_cluster_computes_what_is_written_here(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    x = da.arange(1000, chunks=100).reshape(100, 10)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
        rs.create(tmp_path / "s", {"x": rs.Field("i8", (10,))}) as store,
    ):
        lazy.save({"x": x * 2, "mean": lazy.mean(x)}, tmp_path / "r.h5")
        lazy.save({"x": x * 2}, store)
        histogram, median = lazy.compute([lazy.histogram(x, [0, 10, 1000]), lazy.quantiles(x, 0.5)])
        assert client.get_versions()["workers"]
        np.testing.assert_array_equal(store["x"].batch(slice(None)), x.compute() * 2)
    assert histogram.tolist() == [10, 990] and abs(median - 499) <= 2
    with h5py.File(tmp_path / "r.h5") as file:
        np.testing.assert_array_equal(file["x"], np.arange(0, 2000, 2).reshape(100, 10))
        assert file["mean"][()] == 499.5

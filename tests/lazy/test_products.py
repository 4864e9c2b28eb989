"""Products of blocks are those of NumPy, and take no more memory than they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import lazy

da: Any = pytest.importorskip("dask.array")
h5py: Any = pytest.importorskip("h5py")

DTYPES = ["?", "i1", "u2", "i4", "i8", "f4", "f8", ">f4", "c16"]


class Counted:
    """An array that says what is read of it, and how large its chunks are."""

    def __init__(self, array: Any, chunks: tuple[int, ...]) -> None:
        self.array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, chunks
        self.reads: list[tuple[slice, ...]] = []

    def __getitem__(self, key: tuple[slice, ...]) -> Any:
        self.reads.append(key)
        return self.array[key]


def mapped(folder: Path, values: np.ndarray) -> np.ndarray:
    """The same values in a memory map."""
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, values)
    read: np.ndarray = np.load(path, mmap_mode="r")
    return read


@settings(max_examples=60)
@given(data=st.data())
def test_the_product_is_numpys(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("maps")
    n, k, m = (data.draw(st.integers(0, 40)) for _ in range(3))
    shapes = data.draw(
        st.sampled_from([((n, k), (k,)), ((n, k), (k, m)), ((k,), (k, m)), ((k,), (k,))])
    )
    rng = np.random.default_rng(0)
    operands = []
    for shape in shapes:
        values = rng.integers(0, 50, shape).astype(data.draw(st.sampled_from(DTYPES)))
        chunks = tuple(data.draw(st.integers(1, max(size, 1))) for size in shape)
        operands.append(
            (values, data.draw(st.sampled_from(["array", "map", "dask", "file"])), chunks)
        )
    made = {
        "array": lambda values, chunks: values,
        "map": lambda values, chunks: mapped(folder, values),
        "dask": lambda values, chunks: da.from_array(values, chunks),
        "file": Counted,
    }
    got = lazy.matmul(*(made[kind](values, chunks) for values, kind, chunks in operands))
    want = operands[0][0] @ operands[1][0]
    assert isinstance(got, da.Array) and got.shape == want.shape
    computed = got.compute(scheduler="sync")
    assert computed.dtype == want.dtype == got.dtype
    np.testing.assert_array_equal(computed, want)


@pytest.mark.parametrize("turned", [False, True])
def test_a_matrix_is_read_once_in_whole_chunks(
    monkeypatch: pytest.MonkeyPatch, turned: bool
) -> None:
    monkeypatch.setattr("raggedstore.lazy.products._LEAST", 1)
    source = Counted(np.arange(100 * 90.0).reshape(100, 90), (30, 20))
    x = np.ones(90)
    operands = (np.ones(100), source) if turned else (source, x)
    got = lazy.matmul(*operands, budget="20kB")
    assert not source.reads
    want = np.ones(100) @ source.array if turned else source.array @ x
    np.testing.assert_allclose(got.compute(scheduler="sync"), want)
    cells = np.zeros(source.shape, int)
    for rows, columns in source.reads:
        cells[rows, columns] += 1
        assert rows.start % 30 == 0 and columns.start % 20 == 0
    assert (cells == 1).all() and len(source.reads) > 1


def test_a_budget_decides_how_large_blocks_are() -> None:
    x = da.ones(50_000)
    matrix = Counted(np.broadcast_to(np.float32(1), (1000, 50_000)), (10, 500))
    for budget in ("16MB", "128MB"):
        got = lazy.matmul(matrix, x, budget=budget)
        blocks = next(layer for name, layer in got.dask.layers.items() if name.startswith("read"))
        assert 200e6 / (len(blocks) - 1) <= rs.units.parse_bytes(budget)  # type: ignore[attr-defined]


def test_chains_of_arithmetic_go_on_block_by_block() -> None:
    source = Counted(np.arange(6000.0).reshape(60, 100), (20, 50))
    x = lazy.adapt(source)
    product = lazy.matmul((x - 3) ** 2 / 7, np.ones(100)).sum()
    assert not source.reads
    np.testing.assert_allclose(
        product.compute(scheduler="sync"), ((source.array - 3) ** 2 / 7).sum()
    )


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (3,)), ((3, 4), (5, 4)), ((2, 3, 4), (4,)), ((3,), ()), ((3,), (4,))]
)
def test_shapes_that_do_not_fit_are_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(rs.UsageError, match="no product of arrays"):
        lazy.matmul(np.ones(a), np.ones(b))


_CHILD = """
import resource, sys
import dask, h5py, hdf5plugin, numpy as np
from raggedstore import lazy
dask.config.set(num_workers=2)
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
import threading, time
most, done = [0], []
def watch():
    while not done:
        most[0] = max(most[0], anonymous())
        time.sleep(0.002)
x = np.ones(100_000, "f4")
with h5py.File(sys.argv[1], "r") as file:
    lazy.matmul(np.ones((2, 2)), np.ones(2)).compute()  # all that is imported only when it is used
    before = anonymous()
    watcher = threading.Thread(target=watch, daemon=True)  # or an error would wait for it
    watcher.start()
    y = lazy.matmul(file["x"], x).compute()
    done.append(1)
    watcher.join()
assert (y == 100_000).all()
print(most[0] - before)
"""


@pytest.mark.parametrize(
    ("chunks", "compressed"), [(None, False), ((100, 1000), True), ((1, 100_000), True)]
)
def test_a_product_of_400_mb_takes_under_100(
    tmp_path: Path, chunks: tuple[int, ...] | None, compressed: bool
) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    options = dict(hdf5plugin.Blosc2("lz4")) if compressed else {}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        made = file.create_dataset("x", (1000, 100_000), "f4", chunks=chunks, **options)
        rows = np.ones((100, 100_000), "f4")
        for start in range(0, 1000, 100):
            made[start : start + 100] = rows
    out = subprocess.run(
        [sys.executable, "-c", _CHILD, tmp_path / "x.h5"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 100 * 1024


def test_masked_values_count_as_nothing_in_a_product() -> None:
    masked = np.ma.masked_array(np.arange(12.0).reshape(3, 4), np.arange(12).reshape(3, 4) % 5 == 1)
    other = np.arange(8.0).reshape(4, 2)
    want = np.ma.dot(masked, other).filled(0)
    got = lazy.matmul(masked, other).compute()
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(lazy.matmul(other.T, masked.T).compute(), want.T)

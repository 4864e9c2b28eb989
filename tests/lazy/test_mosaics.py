"""Arrays put together are what NumPy makes of them, and read from each part only its own."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggedstore import lazy
from raggedstore.errors import FormatError, StorageError, UsageError
from tests.lazy.recording import Recording
from tests.lazy.test_windows import keys

ROOT = Path(__file__).resolve().parents[2]


def numbered(*shape: int, start: int = 0) -> Recording:
    """A source of numbers that are all different."""
    values = np.arange(start, start + np.prod(shape, dtype=int)).reshape(shape)
    return Recording(values)


def read_in_all(sources: list[Recording]) -> int:
    return sum(source.values_read for source in sources)


# Against NumPy


@given(st.data())
def test_concatenation_is_numpys_and_reads_what_is_asked_for(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for number in range(data.draw(st.integers(1, 4))):
        shape[axis] = data.draw(st.integers(0, 4))
        parts.append(numbered(*shape, start=100 * number))
    whole = np.concatenate([part.values for part in parts], axis)
    key = data.draw(keys(whole.shape, lists=False))
    x = lazy.concatenate(parts, axis=axis)
    assert x.shape == whole.shape and read_in_all(parts) == 0
    np.testing.assert_array_equal(x[key].compute(scheduler="sync"), whole[key])
    assert read_in_all(parts) == whole[key].size
    listed = data.draw(keys(whole.shape))
    np.testing.assert_array_equal(x[listed].compute(scheduler="sync"), whole[listed])


@given(st.data())
def test_a_stack_is_numpys_and_reads_what_is_asked_for(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=2))
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    parts = [numbered(*shape, start=100 * n) for n in range(data.draw(st.integers(1, 4)))]
    whole = np.stack([part.values for part in parts], axis)
    key = data.draw(keys(whole.shape, lists=False))
    x = lazy.stack(parts, axis=axis)
    assert x.shape == whole.shape
    np.testing.assert_array_equal(x[key].compute(scheduler="sync"), whole[key])
    assert read_in_all(parts) == whole[key].size


@given(st.data())
def test_a_mosaic_is_a_block_and_reads_what_is_asked_for(data: st.DataObject) -> None:
    heights = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    widths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    parts = [[numbered(h, w, start=100 * h + w) for w in widths] for h in heights]
    whole = np.block([[part.values for part in row] for row in parts])
    key = data.draw(keys(whole.shape, lists=False))
    x = lazy.mosaic(parts)
    np.testing.assert_array_equal(x[key].compute(scheduler="sync"), whole[key])
    assert sum(read_in_all(row) for row in parts) == whole[key].size


@given(st.data())
def test_tiles_load_those_that_are_touched_once_each(data: st.DataObject) -> None:
    grid = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    tile = data.draw(st.tuples(*(st.integers(1, 4) for _ in range(3))))
    shape = tuple(
        data.draw(st.integers((n - 1) * size + 1, n * size))
        for n, size in zip(grid, tile, strict=False)
    )
    whole = np.arange(np.prod([*shape, tile[2]])).reshape(*shape, tile[2])
    padded = np.zeros((*(n * size for n, size in zip(grid, tile, strict=False)), tile[2]), int)
    padded[: shape[0], : shape[1]] = whole
    loaded: list[tuple[int, int]] = []

    def load(i: int, j: int) -> Any:
        loaded.append((i, j))
        # Those in the last row come cropped, those in the last column whole.
        high = min((i + 1) * tile[0], shape[0])
        return padded[i * tile[0] : high, j * tile[1] : (j + 1) * tile[1]]

    x = lazy.tiles(load, grid=grid, tile=tile, dtype=int, shape=(*shape, tile[2]))
    key = data.draw(keys(whole.shape, lists=False))
    np.testing.assert_array_equal(x[key].compute(scheduler="sync"), whole[key])
    touched = np.zeros(whole.shape, int)
    touched[key] = 1
    rows, columns, _ = np.nonzero(touched)
    expected = {
        (r // tile[0], c // tile[1]) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
    }
    assert sorted(loaded) == sorted(expected)


# What else holds


def test_large_chunks_of_tiles_load_the_tiles_in_a_window_alone() -> None:
    loaded = []

    def load(i: int) -> Any:
        loaded.append(i)
        return np.full(10, i)

    x = lazy.tiles(load, grid=[100], tile=[10], dtype=int, chunks=500)
    assert x.numblocks == (2,)
    np.testing.assert_array_equal(x[15:32].compute(), [1] * 5 + [2] * 10 + [3] * 2)
    assert sorted(loaded) == [1, 2, 3]


def test_all_kinds_of_arrays_go_into_one_mosaic(tmp_path: Path) -> None:
    values = np.arange(48.0).reshape(4, 12)
    np.save(tmp_path / "a.npy", values[:, :4])
    a = np.load(tmp_path / "a.npy", mmap_mode="r")
    computed = da.from_array(values[:, 8:]) * 1
    with h5py.File(tmp_path / "b.h5", "w") as file:
        b = file.create_dataset("b", data=values[:, 4:8], chunks=(1, 3))
        row = [a, b, values[:, 8:]]
        x = lazy.mosaic([row, row[::-1]])
        whole = np.block([[values], [values[:, 8:], values[:, 4:8], values[:, :4]]])
        np.testing.assert_array_equal(x[::-1, 2:11], whole[::-1, 2:11])
        y = lazy.concatenate([a, b, computed], axis=1)
        np.testing.assert_array_equal(y[-1, ::-1], values[-1, ::-1])


def test_masked_parts_stay_masked_beside_those_that_are_not() -> None:
    masked = np.ma.masked_greater(np.arange(6), 3)
    got = lazy.concatenate([masked, np.arange(3)])[2:8].compute()
    assert got.mask.tolist() == [False, False, True, True, False, False]
    assert lazy.concatenate([masked, np.arange(3)])[7].compute() == 1


def test_the_axes_of_a_mosaic_may_be_chosen() -> None:
    a, b, c, d = (np.full((2, 3, 4), n) for n in range(4))
    x = lazy.mosaic([[a, b], [c, d]], axes=(1, 2))
    assert x.shape == (2, 6, 8)
    np.testing.assert_array_equal(x, np.block([[a, b], [c, d]]))
    assert lazy.mosaic([[a, b], [c, d]]).shape == (4, 6, 4)


def test_parts_that_do_not_fit_are_named() -> None:
    a, b = np.zeros((2, 3)), np.zeros((2, 4))
    with pytest.raises(UsageError, match=r"part \[1\] is \(2, 4\), .* 4 and 3 along axis 1"):
        lazy.concatenate([a, b])
    with pytest.raises(UsageError, match=r"part \[1\] is float32, and part \[0\] is float64"):
        lazy.concatenate([a, a.astype("f4")])
    with pytest.raises(UsageError, match=r"part \[2\] is \(2, 4\)"):
        lazy.stack([a, a, b])
    with pytest.raises(UsageError, match=r"part \[1\] is \(3,\)"):
        lazy.stack([a, a[0]])
    with pytest.raises(UsageError, match=r"part \[1\]\[1\] is \(1, 4\), and part \[1\]\[0\]"):
        lazy.mosaic([[a, a], [a, b[:1]]])
    with pytest.raises(UsageError, match=r"part \[1\] is \(2, 7\), and part \[0\] is \(2, 6\)"):
        lazy.mosaic([[a, a], [a, b]])
    with pytest.raises(UsageError, match=r"part \[1\] is an array, where other parts are lists"):
        lazy.mosaic([[a], a])
    with pytest.raises(UsageError, match=r"part \[1\]\[0\] is a list"):
        lazy.mosaic([[a], [[a]]])
    with pytest.raises(UsageError, match="axis 2 of an array with 2 dimensions"):
        lazy.concatenate([a, a], axis=2)
    for nothing in ([], [[]], [[a], []]):
        with pytest.raises(UsageError, match="empty"):
            lazy.mosaic(nothing)


@pytest.mark.parametrize(
    "shape", [(20, 30), (16, 30), (21, 30), (20, 26), (20,), (20, 30, 1), (-1, 30)]
)
def test_tiles_are_cropped_in_the_last_places_alone(shape: tuple[int, ...]) -> None:
    def make() -> Any:
        return lazy.tiles(lambda i, j: 0, grid=(5, 6), tile=(4, 5), dtype=int, shape=shape)

    if shape in [(20, 30), (20, 26)]:
        assert make().shape == shape
    else:
        with pytest.raises(UsageError, match="cropped"):
            make()


@pytest.mark.parametrize(("grid", "tile"), [((2, 2), (3,)), ((0,), (3,)), ((2,), (0,))])
def test_grids_that_make_no_sense_are_refused(grid: Any, tile: Any) -> None:
    with pytest.raises(UsageError, match="grid"):
        lazy.tiles(lambda i: 0, grid=grid, tile=tile, dtype=int)


def test_an_error_in_a_loader_keeps_its_cause_and_names_the_tile() -> None:
    def load(i: int, j: int) -> Any:
        if (i, j) == (1, 2):
            raise ZeroDivisionError("so it goes")
        return np.zeros((2, 2))

    x = lazy.tiles(load, grid=(3, 3), tile=(2, 2), dtype=float)
    assert x[:2].compute().shape == (2, 6)
    match = r"tile \(1, 2\) of tiles of load: ZeroDivisionError: so it goes"
    with pytest.raises(StorageError, match=match) as info:
        x.compute()
    assert isinstance(info.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("tile", [np.zeros((2, 3)), np.zeros((2, 2), int), 0.0])
def test_a_loader_that_breaks_its_promise_is_told_which_tile(tile: Any) -> None:
    x = lazy.tiles(lambda i: tile, grid=(3,), tile=(2, 2), dtype=float)
    with pytest.raises(FormatError, match=r"tile \(2,\) .* \(2, 2\) float64 was promised"):
        x[4].compute()


def test_mosaics_pickle_and_compute_in_other_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6))
    a = np.load(tmp_path / "a.npy", mmap_mode="r")
    x = lazy.stack([a, a])
    assert str(tmp_path).encode() in pickle.dumps(x)
    np.testing.assert_array_equal(x[1, ::-1].compute(scheduler="processes"), np.arange(6)[::-1])


def test_48_gigabytes_of_tiles_take_no_memory_and_a_window_its_tiles(tmp_path: Path) -> None:
    script = """
        import resource
        import numpy as np
        from raggedstore import lazy

        loaded = []

        def load(i, j):
            loaded.append((i, j))
            return np.full((256, 256, 3), i + j, "uint8")

        lazy.tiles(load, grid=(2, 2), tile=(256, 256, 3), dtype="uint8").compute()  # warm
        loaded.clear()
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 100 * 10**6
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        x = lazy.tiles(load, grid=(512, 512), tile=(256, 256, 3), dtype="uint8")
        assert x.nbytes == 48 * 2**30 and not loaded
        window = x[1000:1400, 2000:2550].compute()
        assert window.shape == (400, 550, 3)
        assert (window[0, 0] == 3 + 7).all() and (window[-1, -1] == 5 + 9).all()
        assert sorted(loaded) == [(i, j) for i in (3, 4, 5) for j in (7, 8, 9)]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=True)


@pytest.mark.parametrize("dtype", [">i4", [("a", ">i4")]])
def test_arrays_of_the_other_byte_order_are_put_together(dtype: Any) -> None:
    values = np.arange(6).astype(">i4").view(dtype)
    parts = [lazy.adapt(values, chunks=4) for _ in range(2)]
    for made in (lazy.concatenate(parts), lazy.mosaic([*parts])):
        assert made.dtype == made.compute().dtype == np.dtype(dtype)
        np.testing.assert_array_equal(made.compute(), np.concatenate([values, values]))
    np.testing.assert_array_equal(lazy.stack(parts).compute(), np.stack([values, values]))

"""Indexing a lazy array gives what NumPy gives, and reads what was asked for and no more."""

from __future__ import annotations

import pickle
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import dask.array as da
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raggedstore import lazy
from raggedstore.errors import FormatError, KeyTypeError, RaggedStoreError, StorageError
from raggedstore.lazy.windows import CHUNK_BYTES, SourceArray, group_chunks, source_of
from tests.lazy.recording import Recording


@st.composite
def sources(draw: st.DrawFn) -> tuple[Recording, Any]:
    """A recording source of up to 4 dimensions, and chunks to read it in."""
    shape = draw(st.lists(st.integers(0, 7), max_size=4).map(tuple))
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    unit = draw(st.none() | st.tuples(*(st.integers(1, 4) for _ in shape)))
    chunks = draw(st.none() | st.tuples(*(st.integers(1, 5) for _ in shape)))
    return Recording(values, unit), chunks


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...], *, lists: bool = True) -> Any:
    """A key of ints, slices, ellipses, new axes and, if wanted, one list, array or mask."""
    kinds = [draw(st.sampled_from(["int", "slice", "slice"])) for _ in shape]
    kinds = kinds[: draw(st.integers(0, len(kinds)))]
    if lists and kinds and draw(st.booleans()):
        kinds[draw(st.integers(0, len(kinds) - 1))] = "list"
    if draw(st.booleans()):
        at = draw(st.integers(0, len(kinds)))
        # What comes after an ellipsis is counted from the last axis.
        sizes = [*shape[:at], None, *shape[len(shape) - (len(kinds) - at) :]]
        kinds.insert(at, "dots")
    else:
        sizes = list(shape[: len(kinds)])
    key: list[Any] = []
    for kind, size in zip(kinds, sizes, strict=True):
        if draw(st.integers(0, 5)) == 0:
            key.append(None)
        if size is None:
            key.append(Ellipsis)
        elif kind == "int":
            assume(size)
            number = draw(st.integers(-size, size - 1))
            key.append(
                draw(st.sampled_from([int, np.int64, np.uint8 if number >= 0 else int]))(number)
            )
        elif kind == "slice":
            key.append(draw(st.slices(size)))
        else:
            positions = st.lists(
                st.integers(-size, size - 1) if size else st.just(0), max_size=9 if size else 0
            )
            mask = st.lists(st.booleans(), min_size=size, max_size=size)
            chosen = draw(positions | mask.filter(len))
            key.append(draw(st.sampled_from([list, _array]))(chosen))
    return key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


def _array(chosen: list[Any]) -> Any:
    return np.array(chosen, None if chosen else int)


@given(st.data())
def test_keys_mean_what_they_mean_to_numpy(data: st.DataObject) -> None:
    source, chunks = data.draw(sources())
    key = data.draw(keys(source.shape))
    expected = source.values[key]
    x = lazy.adapt(source, chunks=chunks)[key]
    assert not source.windows
    assert x.shape == expected.shape and x.dtype == expected.dtype
    got = x.compute(scheduler="sync")
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)


@given(st.data())
def test_slices_and_ints_read_what_they_ask_for_once(data: st.DataObject) -> None:
    source, chunks = data.draw(sources())
    key = data.draw(keys(source.shape, lists=False))
    wanted = np.zeros(source.shape, int)
    wanted[key] = 1
    lazy.adapt(source, chunks=chunks)[key].compute(scheduler="sync")
    np.testing.assert_array_equal(source.positions_read(), wanted)


@given(st.data())
def test_a_list_reads_its_positions_once_or_the_chunk_between_them(data: st.DataObject) -> None:
    source, chunks = data.draw(sources())
    assume(source.values.ndim)
    key = data.draw(keys(source.shape))
    wanted = np.zeros(source.shape, int)
    wanted[key] = 1
    lazy.adapt(source, chunks=chunks)[key].compute(scheduler="sync")
    times = source.positions_read()
    assert times.max(initial=0) <= 1
    assert (times >= wanted).all()
    if source.chunks is None:
        np.testing.assert_array_equal(times, wanted)


@given(st.data())
def test_keys_of_keys_go_on_meaning_it(data: st.DataObject) -> None:
    source, chunks = data.draw(sources())
    expected, x = source.values, lazy.adapt(source, chunks=chunks)
    # Of a list in another order Dask makes an array of its own.
    for lists in (False, False, True):
        key = data.draw(keys(expected.shape, lists=lists))
        expected, x = expected[key], x[key]
    np.testing.assert_array_equal(x.compute(scheduler="sync"), expected)


def test_an_ellipsis_for_no_axis_stands_between_lists_all_the_same() -> None:
    values = np.arange(24).reshape(2, 3, 4)
    for key in [(slice(None), [2, 0], ..., 1), ([0, 1], ..., [1, 2], 3), ([1], 0, ..., 2)]:
        got = lazy.adapt(values, chunks=2)[key].compute()
        np.testing.assert_array_equal(got, values[key])


def test_what_a_list_picked_can_be_picked_from() -> None:
    source = Recording(np.arange(100))
    x = lazy.adapt(source, chunks=30)[[3, 40, 41, 99]]
    np.testing.assert_array_equal(x[[False, True, False, True]][1:], [99])
    assert source.values_read == 1
    np.testing.assert_array_equal(x[::-1][:2], [99, 41])


def test_a_list_may_pick_from_what_is_backwards() -> None:
    values = np.arange(40).reshape(10, 4)
    for key in ([0, 1], [7, 2, 2], [True, False] * 5, (slice(1, 9, 2), None, [3, 0])):
        source = Recording(values)
        x = lazy.adapt(source, chunks=3)[::-1][key]
        wanted = values[::-1][key]
        np.testing.assert_array_equal(x.compute(), wanted)
        assert source.values_read == np.unique(wanted).size


@st.composite
def keys_of_lists(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """A key of lists and masks of several dimensions, ints, slices, ellipses and new axes."""
    points = draw(st.lists(st.integers(0, 3), max_size=2).map(tuple))
    key: list[Any] = []
    axis = 0
    while axis < len(shape):
        kind = draw(st.sampled_from(["int", "slice", "list", "list", "mask", "new"]))
        size = shape[axis]
        if kind == "new":
            key.append(None)
            continue
        if kind == "mask":
            masked = shape[axis : axis + draw(st.integers(1, 2))]
            key.append(draw(hnp.arrays(bool, masked)))
            axis += len(masked) - 1
        elif kind == "slice":
            key.append(draw(st.slices(size)))
        elif kind == "int":
            key.append(draw(st.integers(-size, size - 1)))
        else:
            ones = draw(st.lists(st.booleans(), min_size=len(points), max_size=len(points)))
            own = tuple(1 if one else n for one, n in zip(ones, points, strict=True))
            own = own[draw(st.integers(0, len(own))) :]
            key.append(draw(hnp.arrays(np.int64, own, elements=st.integers(-size, size - 1))))
        axis += 1
    if draw(st.booleans()):
        while key and isinstance(key[-1], slice):
            key.pop()
        key.insert(len(key) if draw(st.booleans()) or len(key) < len(shape) else 0, Ellipsis)
    return tuple(key)


@given(st.data())
def test_lists_for_several_axes_mean_what_they_mean_to_numpy(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    values = np.arange(np.prod(shape)).reshape(shape)
    key = data.draw(keys_of_lists(shape))
    try:
        expected = values[key]
    except IndexError:  # shapes that do not go together
        assume(False)
    x = lazy.adapt(values, chunks=data.draw(st.integers(1, 4)))[key]
    got = x.compute(scheduler="sync")
    assert x.shape == got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "key", [4, -5, (0, 5), [4], [True], (0, 0, 0), 1.0, ([0, 1], [0, 1, 2]), np.ones((5, 4), bool)]
)
def test_keys_that_numpy_refuses_are_refused(key: Any) -> None:
    with pytest.raises((IndexError, TypeError)):
        np.zeros((4, 5))[key]
    with pytest.raises(IndexError) as refused:
        lazy.adapt(Recording(np.zeros((4, 5))))[key]
    assert isinstance(refused.value, RaggedStoreError)


def test_a_window_of_a_chunk_reads_the_window_alone() -> None:
    source = Recording(np.arange(10_000).reshape(100, 100))
    x = lazy.adapt(source, chunks=(50, 50))
    np.testing.assert_array_equal(x[10:5:-1, 48:52], source.values[10:5:-1, 48:52])
    assert source.values_read == 5 * 4
    assert sorted(str(w) for w in source.windows) == [
        "(slice(6, 11, 1), slice(48, 50, 1))",
        "(slice(6, 11, 1), slice(50, 52, 1))",
    ]


def test_chunks_of_what_is_left_end_where_chunks_of_the_whole_did() -> None:
    x = lazy.adapt(Recording(np.zeros(100)), chunks=30)
    assert x[10:70].chunks == ((20, 30, 10),)
    assert x[::-1].chunks == ((10, 30, 30, 30),)
    assert x[95:5:-10].chunks == ((1, 3, 3, 2),)
    assert x[[1, 2, 40, 99]].chunks == ((2, 1, 1),)


def test_a_lazy_array_is_a_dask_array_and_so_is_all_that_is_made_of_it() -> None:
    x = lazy.adapt(Recording(np.arange(20.0).reshape(4, 5)), chunks=2)
    assert isinstance(x, da.Array)
    np.testing.assert_array_equal((x.T @ x).compute(), (x.compute().T @ x.compute()))
    np.testing.assert_array_equal(
        x.rechunk(3)[1:].sum(axis=0).compute(), x.compute()[1:].sum(axis=0)
    )


def test_it_pickles_with_its_source() -> None:
    x = lazy.adapt(Recording(np.arange(20).reshape(4, 5)))[::-1, [3, 1]]
    again = pickle.loads(pickle.dumps(x))
    np.testing.assert_array_equal(again[1:], x[1:])


def test_an_error_keeps_its_cause_and_says_where() -> None:
    x = lazy.adapt(Recording(np.zeros((40, 50)), fail=True), chunks=20)
    with pytest.raises(
        StorageError, match=r"Recording of .*\[20:22, 3:4\]: KeyError: 'lost'"
    ) as info:
        x[20:22, 3].compute()
    assert isinstance(info.value.__cause__, KeyError)


def test_a_source_that_gives_something_else_than_it_said_is_refused() -> None:
    source = Recording(np.zeros((4, 5)))
    source.values = source.values.astype("f4")
    with pytest.raises(FormatError, match=r"\(2, 5\) float32 came where \(2, 5\) float64"):
        lazy.adapt(source)[:2].compute()


def test_an_array_that_was_assigned_to_no_longer_reads_from_its_source() -> None:
    values = np.arange(12.0).reshape(3, 4)
    x, y = lazy.adapt(values), lazy.adapt(values)
    x[0] = 99
    np.add(y, 1, out=y)
    for array, expected in ((x, np.vstack([np.full(4, 99), values[1:]])), (y, values + 1)):
        assert source_of(array) is None
        np.testing.assert_array_equal(array[:2].compute(), expected[:2])
        np.testing.assert_array_equal(array.compute(), expected)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(array)), expected)
        np.testing.assert_array_equal(
            lazy.concatenate([array, values]).compute(), np.concatenate([expected, values])
        )
        np.testing.assert_array_equal(lazy.matmul(array, values[0]), expected @ values[0])


# One block is read right here


@pytest.fixture
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.base.compute", lambda *_, **__: pytest.fail("a graph was run"))
    monkeypatch.setattr(SourceArray, "dask", property(lambda _: pytest.fail("a graph was made")))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Dask was asked to compute."""
    asked: list[Any] = []
    run = dask.base.compute

    def compute(*arrays: Any, **kwargs: Any) -> Any:
        asked.extend(arrays)
        return run(*arrays, **kwargs)

    monkeypatch.setattr("dask.base.compute", compute)
    return asked


@pytest.mark.usefixtures("no_graph")
def test_one_block_is_read_without_a_graph() -> None:
    source = Recording(np.arange(10_000.0).reshape(100, 100))
    x = lazy.adapt(source, chunks=(50, 50))
    assert isinstance(x[3:9, [3, 7]], da.Array)
    np.testing.assert_array_equal(x[3:9, 5:1:-1].compute(), source.values[3:9, 5:1:-1])
    np.testing.assert_array_equal(np.asarray(x[60:70, 7], "f4"), source.values[60:70, 7])
    assert float(x[7, 9]) == source.values[7, 9]
    assert x[4:4, 3:9].compute().shape == (0, 6)
    assert len(source.windows) == 3 and source.values_read == 6 * 4 + 10 + 1
    parts = lazy.mosaic([[source, source]])
    np.testing.assert_array_equal(parts[5:8, 110:115].compute(), source.values[5:8, 10:15])


def steps(array: np.ndarray) -> list[int]:
    """Its strides, but those that lead nowhere."""
    strides = zip(array.strides, array.shape, strict=True)
    return [step for step, size in strides if size > 1 and array.size]


@given(st.data())
def test_what_is_read_right_here_is_what_a_graph_gives(data: st.DataObject) -> None:
    source, _ = data.draw(sources())
    values = source.values.astype(data.draw(st.sampled_from(["<i8", ">f4", "S3"])))
    if data.draw(st.booleans()):
        values = np.ma.masked_array(values, np.arange(values.size).reshape(values.shape) % 3 == 0)
    kept = data.draw(st.booleans())
    x = lazy.adapt(values if kept else Recording(values, source.chunks), chunks=-1)
    x = x[data.draw(keys(source.shape))]
    if kept and data.draw(st.booleans()):
        x = lazy.stack([x, x])[1]
    here, there = x.compute(), x.compute(scheduler="sync")
    assert type(here) is type(there) and here.shape == there.shape and here.dtype == there.dtype
    assert here.flags.writeable and steps(here) == steps(there)
    np.testing.assert_array_equal(np.ma.getmask(here), np.ma.getmask(there))
    np.testing.assert_array_equal(np.ma.getdata(here), np.ma.getdata(there))


def test_several_blocks_are_left_to_the_scheduler(graphs: list[Any]) -> None:
    x = lazy.adapt(Recording(np.zeros((40, 50))), chunks=20)
    x[:20, :20].compute()
    assert not graphs
    x[:20, :21].compute()
    (x[:20, :20] + 1).compute()
    assert len(graphs) == 2


def test_whoever_is_asked_to_run_it_does(graphs: list[Any]) -> None:
    threads: list[str] = []

    class Named(Recording):
        def __getitem__(self, window: Any) -> Any:
            threads.append(threading.current_thread().name)
            return super().__getitem__(window)

    x = lazy.adapt(Named(np.zeros((40, 50))))[3:5]
    x.compute(scheduler="sync")
    x.compute(num_workers=1)
    with dask.config.set(scheduler="threads"):
        x.compute()
    with ThreadPoolExecutor(1, "mine") as pool, dask.config.set(pool=pool):
        x.compute()
    assert len(graphs) == 4 and threads[-1].startswith("mine")
    seen: list[Any] = []
    with dask.callbacks.Callback(pretask=lambda *_: seen.append(1)):
        x.compute()
    assert len(graphs) == 5 and seen
    x.compute()
    assert len(graphs) == 5 and threads[-1] == threading.current_thread().name


def test_a_current_client_has_its_workers_read() -> None:
    distributed: Any = pytest.importorskip("distributed")

    def load(*place: int) -> np.ndarray:
        try:
            distributed.get_worker()
        except ValueError:
            return np.zeros((2, 2))
        return np.ones((2, 2))

    x = lazy.tiles(load, grid=(2, 2), tile=(2, 2), dtype="f8")[:2, :2]
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    )
    with cluster, distributed.Client(cluster):
        assert x.compute().all() and np.asarray(x).all()
    assert not x.compute().any()


def test_errors_read_alike_with_and_without_a_graph() -> None:
    def load(*place: int) -> Any:
        raise KeyError("lost")

    tiles = lazy.tiles(load, grid=(2,), tile=(3,), dtype="f8")
    short = Recording(np.zeros((4, 5)))
    short.values = short.values.astype("f4")
    lost = lazy.adapt(Recording(np.zeros((4, 5)), fail=True))
    for x, error in ((tiles[4:5], StorageError), (lost[1:, 2], StorageError)):
        with pytest.raises(error) as here:
            x.compute()
        with pytest.raises(error) as there:
            x.compute(scheduler="sync")
        assert str(here.value) == str(there.value) and "KeyError: 'lost'" in str(here.value)
        assert isinstance(here.value.__cause__, KeyError)
    with pytest.raises(FormatError, match="float32 came where"):
        lazy.adapt(short).compute()


def test_what_is_read_right_here_is_ones_own() -> None:
    cached = np.zeros((2, 2))
    x = lazy.tiles(lambda *_: cached, grid=(2, 2), tile=(2, 2), dtype="f8")[:2, :2]
    for own in (x, lazy.adapt(cached), lazy.adapt(Recording(cached))):
        assert isinstance(own, SourceArray)
        own.compute()[...] = 5
    assert not cached.any()


@given(st.data())
def test_keys_of_what_dask_put_in_order_mean_what_they_mean_to_numpy(data: st.DataObject) -> None:
    """A list that does not ascend, and lists for several axes, leave no source to read from."""
    values = np.arange(5 * 4 * 4 * 3).reshape(5, 4, 4, 3)
    first = data.draw(
        st.sampled_from([[3, 1, 2], np.s_[::-1, [0, 2], ::2], np.s_[[2, 0], :, [1, 3]], [1, 1, 0]])
    )
    x, want = lazy.adapt(values, chunks=2)[first], values[first]
    for _ in range(2):
        key = data.draw(keys(want.shape))
        x, want = x[key], want[key]
    assert x.shape == want.shape
    np.testing.assert_array_equal(x.compute(), want)


def test_an_int_beside_a_list_means_a_list_after_any_list() -> None:
    values = np.arange(4 * 3 * 3).reshape(4, 3, 3)
    for rows in ([1, 2, 3], [3, 1, 2]):
        want = values[rows][0, :, [0, 1, 2]]
        np.testing.assert_array_equal(lazy.adapt(values)[rows][0, :, [0, 1, 2]].compute(), want)


def test_a_field_that_is_none_is_no_key() -> None:
    with pytest.raises(KeyTypeError):
        lazy.adapt(np.arange(3))["a"]


def test_very_many_small_units_are_taken_together_before_dask_sees_them() -> None:
    tracemalloc.start()
    chunks = group_chunks((10**8, 3), np.dtype("f8"), (1, 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(chunks[0]) == 10**8 and chunks[1] == (3,) and peak < 2**22
    assert max(chunks[0]) * 24 <= CHUNK_BYTES and len(chunks[0]) < 200

"""Indexing a lazy array gives what NumPy gives, and reads what was asked for and no more."""

from __future__ import annotations

import pickle
from typing import Any

import dask.array as da
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raggedstore import lazy
from raggedstore.errors import FormatError, StorageError
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
    with pytest.raises((IndexError, TypeError, NotImplementedError)):
        lazy.adapt(Recording(np.zeros((4, 5))))[key]


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

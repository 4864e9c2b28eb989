"""Memory of arrays that are gone is used again, and never while there are any over it."""

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggedstore.segment import memory

MB = 2**20


@pytest.fixture(autouse=True)
def nothing_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free", {})


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_of_an_array_that_is_gone_is_used_again() -> None:
    first = memory.empty((2 * MB,), np.dtype("u1"))
    at = address(first)
    del first
    again = memory.empty((MB // 4, 2), np.dtype("f4"))

    assert address(again) == at
    assert again.shape == (MB // 4, 2) and again.dtype == "f4"
    assert again.flags.writeable and again.flags.c_contiguous and again.flags.aligned


def test_it_is_not_while_any_view_of_it_is_there() -> None:
    array = memory.empty((2 * MB,), np.dtype("u1"))
    view = array[5:].view()[::7]
    at = address(array)
    del array
    gc.collect()
    view[:] = 3

    other = memory.empty((2 * MB,), np.dtype("u1"))
    other[:] = 9
    assert address(other) != at and (view == 3).all()
    del view
    assert address(memory.empty((2 * MB,), np.dtype("u1"))) == at


def test_of_little_and_large_arrays_nothing_is_kept() -> None:
    for size in (0, 100, MB - 1, 32 * MB + 8):
        array = memory.empty((size // 4,), np.dtype("f4"))
        array[-1:] = 1
        assert array.flags.writeable and array.nbytes == size // 4 * 4
        del array
    assert not memory._free


def test_what_is_kept_is_bounded_and_the_least_that_fits_is_used() -> None:
    arrays = [memory.empty((k * MB,), np.dtype("u1")) for k in (2, 4, 6, 8, 12, 16, 24, 32)]
    odd = memory.empty((9 * MB + 1,), np.dtype("u1"))
    assert len(odd.base.base._memory) == 12 * MB
    while arrays:
        del arrays[0]
    assert [len(kept) for kept in memory._free.values()] == [k * MB for k in (8, 12, 16, 24, 32)]

    fitting = [memory.empty((k * MB,), np.dtype("u1")) for k in (15, 2, 20, 20)]
    assert [len(a.base.base._memory) for a in fitting] == [k * MB for k in (16, 8, 24, 32)]
    large = memory.empty((20 * MB,), np.dtype("u1"))  # in the stead of what it doesn't fit in
    assert len(large.base.base._memory) == 24 * MB and not memory._free


def test_threads_never_share_memory() -> None:
    wrong = []

    def work(number: int) -> None:
        held: list[np.ndarray] = []
        for turn in range(300):
            array = memory.empty((MB + 1000 * (turn % 7),), np.dtype("u1"))
            array[:] = number
            held.append(array)
            if len(held) > 2:
                wrong.extend(a for a in held if not (a[:: MB // 5] == number).all())
                held.pop(turn % 3)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["u1", "i2", "f8", "c16"])), max_size=8)
)
def test_arrays_are_of_the_shape_and_type_that_is_asked(asked: list[tuple[int, str]]) -> None:
    for size, dtype in asked:
        shape = (size, 1 + 2**19 // 7, 3)
        array = memory.empty(shape, np.dtype(dtype))
        plain = np.empty(shape, dtype)
        assert (array.shape, array.dtype, array.strides) == (shape, plain.dtype, plain.strides)
        assert array.flags.writeable and array.flags.aligned

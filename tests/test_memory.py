"""Memory of large arrays, used again when they are dropped."""

import os
import threading

import numpy as np
import pytest

from raggedstore import memory
from raggedstore.memory import Recycler, recycled

LARGE = 2**22


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_dropped_arrays_memory_is_the_next_ones() -> None:
    with recycled(Recycler()):
        first = memory.empty((LARGE,), np.dtype("u1"))
        first[:] = 7
        where = address(first)
        del first
        second = memory.empty((LARGE // 4, 2), np.dtype("i2"))
        assert address(second) == where
        assert second.shape == (LARGE // 4, 2) and second.flags.writeable


def test_memory_that_a_view_refers_to_is_not_used_again() -> None:
    with recycled(Recycler()):
        view = memory.empty((LARGE,), np.dtype("i2"))[100:200]
        view[:] = 5
        other = memory.empty((LARGE,), np.dtype("i2"))
        other[:] = 9
        assert (view == 5).all()


def test_only_so_many_are_kept_and_too_small_ones_are_dropped() -> None:
    recycler = Recycler(2)
    arrays = [recycler.empty(LARGE) for _ in range(4)]
    del arrays
    assert len(recycler._free) == 2
    recycler.empty(10 * LARGE)
    assert len(recycler._free) == 1  # the large one came back, the small ones were no use


def test_small_arrays_and_other_threads_are_numpys() -> None:
    recycler = Recycler()
    with recycled(recycler):
        small = memory.empty((10,), np.dtype("f4"))
        found: list[np.ndarray] = []
        thread = threading.Thread(
            target=lambda: found.append(memory.empty((LARGE,), np.dtype("u1")))
        )
        thread.start()
        thread.join()
    del small
    found.clear()
    assert len(recycler._free) == 0


def test_a_fork_has_a_copy_of_its_own() -> None:
    with recycled(Recycler()):
        array = memory.empty((LARGE,), np.dtype("u1"))
    array[:] = 1
    pid = os.fork()
    if pid == 0:
        array[:] = 2
        os._exit(0)
    os.waitpid(pid, 0)
    assert (array == 1).all()


def test_what_was_set_before_is_set_again_after_an_error() -> None:
    outer = Recycler()
    with recycled(outer):
        with pytest.raises(ZeroDivisionError), recycled(Recycler()):
            raise ZeroDivisionError
        del_me = memory.empty((LARGE,), np.dtype("u1"))
        del del_me
        assert len(outer._free) == 1

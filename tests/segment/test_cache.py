"""The cache of decoded chunks: its bound, its order, what is worth holding."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggedstore import kernel
from raggedstore.segment.cache import ChunkCache


def chunk(nbytes: int) -> np.ndarray:
    return np.zeros(nbytes, np.uint8)


@given(
    st.integers(0, 50), st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 20)))
)
def test_it_never_holds_more_than_its_budget_and_drops_the_least_recently_used(
    budget: int, steps: list[tuple[bool, int, int]]
) -> None:
    cache = ChunkCache(budget)
    model: dict[int, int] = {}  # in the order of use
    for put, key, nbytes in steps:
        if put:
            cache.put(key, chunk(nbytes))
            if nbytes <= budget:
                model.pop(key, None)
                model[key] = nbytes
                while sum(model.values()) > budget:
                    del model[next(iter(model))]
        else:
            held = cache.get(key)
            assert (held is not None) == (key in model)
            if held is not None:
                assert held.nbytes == model[key]
                model[key] = model.pop(key)
        assert cache.nbytes == sum(model.values()) <= budget


def rent(cache: ChunkCache, key: object, nbytes: int, whole: int, *, first: bool = False) -> bool:
    """Whether to rent of a single chunk."""
    (answer,) = cache.rent([(key, nbytes)], whole, first=first)
    return answer


def test_what_it_holds_cannot_be_written_to() -> None:
    cache = ChunkCache(100)
    cache.put(1, chunk(10))
    assert not cache.get(1).flags.writeable


def test_a_chunk_is_rented_until_that_has_cost_as_much_as_buying_it() -> None:
    cache = ChunkCache(1000)
    cache.put("other", chunk(950))  # no room is left
    assert [rent(cache, "a", 30, 100) for _ in range(4)] == [True, True, True, False]
    cache.put("a", chunk(100))
    cache.put("other", chunk(950))
    assert rent(cache, "a", 30, 100)  # forgotten: it counts from the beginning


def test_while_there_is_room_a_chunk_is_bought_sooner() -> None:
    cache = ChunkCache(1000)
    assert [rent(cache, "a", 10, 100) for _ in range(3)] == [True, True, False]


def test_where_the_first_read_of_a_chunk_is_to_be_rented_the_third_buys() -> None:
    cache = ChunkCache(1000)
    assert [rent(cache, "a", 100, 100, first=True) for _ in range(3)] == [True, True, False]
    assert not rent(cache, "b", 70, 100)
    assert rent(cache, "c", 90, 100, first=True)  # which is not counted
    assert [rent(cache, "c", 40, 100, first=True) for _ in range(3)] == [True, True, False]


def test_what_no_budget_could_hold_is_rented_for_ever() -> None:
    cache = ChunkCache(99)
    assert all(rent(cache, "a", 60, 100) for _ in range(10))


def test_only_what_was_rented_lately_is_remembered() -> None:
    cache = ChunkCache(1000)
    cache.put("other", chunk(950))
    for number in range(100):
        assert rent(cache, number, 90, 100)
    assert rent(cache, 0, 90, 100)
    assert not rent(cache, 99, 90, 100)


def test_a_chunk_on_its_way_is_waited_for_and_prepared_once() -> None:
    cache = ChunkCache(100)
    go = threading.Event()
    starts = []

    def make() -> np.ndarray:
        go.wait()
        return chunk(10)

    with ThreadPoolExecutor(1) as pool:

        def start() -> Future:
            starts.append(1)
            return pool.submit(make)

        cache.prepare("a", start)
        cache.prepare("a", start)
        threading.Timer(0.05, go.set).start()
        assert cache.get("a").nbytes == 10
    cache.prepare("a", start)
    assert len(starts) == 1 and cache.nbytes == 10


def test_one_that_fails_on_its_way_is_not_held() -> None:
    cache = ChunkCache(100)
    with ThreadPoolExecutor(1) as pool:
        cache.prepare("a", lambda: pool.submit(lambda: 1 / 0))
        assert cache.get("a") is None
    assert cache.get("a") is None and cache.nbytes == 0


def test_clear_drops_everything() -> None:
    cache = ChunkCache(100)
    cache.put(1, chunk(10))
    rent(cache, 2, 20, 100)
    cache.clear()
    assert cache.get(1) is None and cache.nbytes == 0 and rent(cache, 2, 20, 100)
    assert repr(cache) == "<ChunkCache 0 of 100 bytes, 0 hits, 1 misses>"


@given(st.lists(st.integers(0, 9), max_size=12), st.sets(st.integers(0, 9)), st.integers(10, 90))
def test_several_at_once_are_what_they_are_one_by_one(
    asked: list[int], there: set[int], budget: int
) -> None:
    caches = [ChunkCache(budget), ChunkCache(budget)]
    for cache in caches:
        for number in sorted(there):
            cache.put(("a", number), chunk(10 + number))

    together = caches[0].get_all("a", asked)
    singly = [caches[1].get(("a", number)) for number in asked]

    assert [None if c is None else c.nbytes for c in together] == [
        None if c is None else c.nbytes for c in singly
    ]
    assert [(c.hits, c.misses, list(c._chunks)) for c in caches[:1]] == [
        (c.hits, c.misses, list(c._chunks)) for c in caches[1:]
    ]


def test_every_one_of_several_or_none_of_them_and_then_nobody_has_asked() -> None:
    cache = ChunkCache(100)
    for number in (0, 1, 2):
        cache.put(("a", number), chunk(10 + number))

    assert cache.get_every("a", range(1, 4)) is None
    assert (cache.hits, cache.misses) == (0, 0)
    found = cache.get_every("a", range(2))

    assert found is not None and [c.nbytes for c in found] == [10, 11]
    assert cache.hits == 2
    assert list(cache._chunks) == [("a", 2), ("a", 0), ("a", 1)]


def test_what_is_being_prepared_is_waited_for_among_several() -> None:
    cache, coming = ChunkCache(100), Future[np.ndarray]()
    cache.put(("a", 0), chunk(10))
    cache.prepare(("a", 1), lambda: coming)
    threading.Timer(0.05, lambda: coming.set_result(chunk(20))).start()

    found = cache.get_all("a", [0, 1, 2])

    assert [None if c is None else c.nbytes for c in found] == [10, 20, None]
    assert (cache.hits, cache.misses) == (2, 1)


@pytest.mark.skipif(not kernel.is_there(), reason="the kernel is not compiled here")
def test_a_sample_is_found_where_all_its_chunks_are_held() -> None:
    cache = ChunkCache(1000)
    found = np.array([2, 2, 4, 8, 2, 1, -1], np.int64).tobytes()
    find = cache.finder("span", None, "data", found)
    assert find is not None and find(1) is None
    cache.put(("span", 0), np.array([[0, 3], [3, 6]], np.int64))
    cache.put(("data", 0), np.arange(4, dtype=np.int16))
    assert find(1) is None  # half of it
    cache.put(("data", 1), np.arange(4, 8, dtype=np.int16))
    assert find(1) == (3, 6, (3,), bytearray(np.arange(3, 6, dtype=np.int16).tobytes()))
    cache.clear()
    assert find(1) is None

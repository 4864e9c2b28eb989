"""How much is read at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raggedstore.training.picks import Batches, Picks
from raggedstore.training.reading import Pace, _parts


@given(st.lists(st.lists(st.integers(0, 50), max_size=4), max_size=20), st.integers(1, 200))
def test_batches_are_read_all_once_in_order_and_no_more_at_a_time_than_there_is_room_for(
    sizes: list[list[int]], room: int
) -> None:
    each = np.array([size for batch in sizes for size in batch], np.int64)
    edges = np.concatenate([[0], np.cumsum([len(batch) for batch in sizes])]).astype(np.int64)
    batches = Batches(Picks(np.arange(len(each), dtype=np.int64)), edges)
    parts = list(_parts(batches, each, Pace(room)))

    assert [i for first, last in parts for i in range(first, last)] == list(range(len(sizes)))
    for first, last in parts:
        assert last - first == 1 or sum(map(sum, sizes[first:last])) <= room


def test_reads_are_about_as_large_as_one_another() -> None:
    each = np.full(110, 10, np.int64)
    batches = Batches(Picks(np.arange(110, dtype=np.int64)), np.arange(0, 111, 10))
    parts = list(_parts(batches, each, Pace(500)))
    assert parts == [(0, 4), (4, 8), (8, 11)]

"""How much is read at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggedstore.training.picks import Batches, Picks
from raggedstore.training.reading import Pace, _bytes_to, _parts


@given(st.lists(st.lists(st.integers(0, 50), max_size=4), max_size=20), st.integers(1, 200))
def test_batches_are_read_all_once_in_order_and_no_more_at_a_time_than_there_is_room_for(
    sizes: list[list[int]], room: int
) -> None:
    each = np.array([size for batch in sizes for size in batch], np.int64)
    edges = np.concatenate([[0], np.cumsum([len(batch) for batch in sizes])]).astype(np.int64)
    batches = Batches(Picks(np.arange(len(each), dtype=np.int64)), edges)
    parts = list(_parts(_bytes_to(batches, each), Pace(room)))

    assert [i for first, last, _ in parts for i in range(first, last)] == list(range(len(sizes)))
    for first, last, nbytes in parts:
        assert nbytes == sum(map(sum, sizes[first:last]))
        assert last - first == 1 or nbytes <= room


@pytest.mark.parametrize("each", [np.full(110, 10), np.broadcast_to(np.int64(10), 110)])
def test_reads_are_about_as_large_as_one_another(each: np.ndarray) -> None:
    batches = Batches(Picks(np.arange(110, dtype=np.int64)), np.arange(0, 111, 10))
    parts = list(_parts(_bytes_to(batches, each), Pace(500)))
    assert parts == [(0, 4, 400), (4, 8, 400), (8, 11, 300)]

"""Planned gathering against plain slices."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedstore.segment.gather import gather


@pytest.mark.parametrize("threads", [0, 2])
@settings(deadline=None)
@given(data=st.data())
def test_any_ranges_come_one_after_another_and_each_chunk_is_decoded_once(
    threads: int, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 300))
    chunk_rows = data.draw(st.integers(1, 40))
    point = st.integers(0, rows)
    ranges = data.draw(st.lists(st.tuples(point, point).map(sorted), max_size=30))
    values = np.arange(rows * 2, dtype="i4").reshape(rows, 2)
    stored = np.zeros((-(-rows // chunk_rows) * chunk_rows, 2), "i4")
    stored[:rows] = values
    decoded: list[int] = []

    def fetch(number: int) -> np.ndarray:
        decoded.append(number)
        return stored[number * chunk_rows : (number + 1) * chunk_rows]

    def decode_into(number: int, raw: np.ndarray) -> None:
        raw[:] = fetch(number).reshape(-1).view(np.uint8)

    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    want = np.concatenate([values[:0], *(values[a:b] for a, b in ranges)])
    out = np.empty_like(want)
    pool = ThreadPoolExecutor(threads) if threads else None
    gather(
        starts,
        stops,
        out,
        rows=rows,
        chunk_rows=chunk_rows,
        fetch=fetch,
        decode_into=decode_into,
        pool=pool,
    )
    if pool is not None:
        pool.shutdown()

    np.testing.assert_array_equal(out, want)
    touched = {row // chunk_rows for a, b in ranges for row in range(a, b)}
    assert sorted(decoded) == sorted(touched)

"""What side columns may say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.segment.reader import bad_spans, outside

NUMBERS = st.integers(-3, 12) | st.sampled_from([-(2**63), -(2**62), 2**62, 2**63 - 1])


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6),
    st.sampled_from([0, 5, 10, 2**40]),
)
def test_starts_and_stops_lie_in_the_data_whatever_numbers_they_are(
    pairs: list[tuple[int, int]], limit: int
) -> None:
    spans = np.array(pairs, np.int64).reshape(-1, 2)
    sizes = spans[:, 1] - spans[:, 0]
    wrong = [not 0 <= start <= stop <= limit for start, stop in pairs]

    assert outside(spans, sizes, limit) == any(wrong)
    # Of a field whose shapes say nothing else.
    bad = bad_spans(rs.Field("u1", (None,)), spans, np.maximum(sizes, 0)[:, None], limit)
    assert bad.tolist() == wrong

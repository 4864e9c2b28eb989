"""Sketches against sorted values: the ranks are off by no more than was promised."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggedstore.sketch import Sketch, capacity_for

EIGHTHS = np.arange(9) / 8


def ranks_hold(values: np.ndarray, q: np.ndarray, found: np.ndarray, error: float) -> bool:
    """Whether each of `found` is a quantile of some rank that is off by `error` at most."""
    below = np.array([(values < each).sum() for each in found])
    up_to = np.array([(values <= each).sum() for each in found])
    return bool(
        (below <= q * len(values) + error).all() and (up_to >= q * len(values) - error).all()
    )


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.sampled_from([2, 3, 8, 31]),
    st.integers(1, 3),
)
def test_ranks_are_off_by_no_more_than_it_says_however_pieces_are_merged(
    seed: int, sizes: list[int], capacity: int, groups: int
) -> None:
    rng = np.random.default_rng(seed)
    pieces = [rng.integers(-9, 40, (groups, size)) for size in sizes]
    sketches = [Sketch.of(piece, capacity) for piece in pieces]
    while len(sketches) > 1:  # in any order: also a large one with a small one
        i = int(rng.integers(len(sketches) - 1))
        sketches[i : i + 2] = [sketches[i].merge(sketches[i + 1])]
    (sketch,), values = sketches, np.concatenate(pieces, axis=1)

    count = values.shape[1]
    levels = np.floor(np.log2(count / capacity)) + 1 if count >= capacity else 0
    assert sketch.error <= count * levels / capacity
    assert all(level.shape[1] <= capacity for level in sketch.levels)
    found = sketch.quantiles(EIGHTHS)
    for group, row in zip(values, found, strict=True):
        assert not count or ranks_hold(group, EIGHTHS, row, sketch.error)
        assert count or np.isnan(row).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_what_fits_is_exact(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(-5, 20, (2, count))
    found = Sketch.of(values[:, :7], 50).merge(Sketch.of(values[:, 7:], 50)).quantiles(EIGHTHS)

    want = np.quantile(values, EIGHTHS, axis=1, method="inverted_cdf")
    np.testing.assert_array_equal(found, want.T)


@pytest.mark.parametrize("kind", ["rising", "falling", "random", "few"])
def test_the_capacity_for_an_error_keeps_it(kind: str) -> None:
    count, error = 300_000, 0.01
    values = np.arange(count, dtype=np.float64)
    if kind == "falling":
        values = values[::-1]
    elif kind == "random":
        values = np.random.default_rng(0).permutation(values)
    elif kind == "few":
        values = values // 100_000
    capacity = capacity_for(error, count)
    one_by_one = functools.reduce(
        Sketch.merge, (Sketch.of(piece[None], capacity) for piece in np.split(values, 300))
    )

    assert one_by_one.error <= error * count
    assert ranks_hold(values, EIGHTHS, one_by_one.quantiles(EIGHTHS)[0], error * count)
    assert sum(level.size for level in one_by_one.levels) < 20_000


def test_absent_values_and_nan_are_told_apart() -> None:
    values = np.array([[1, np.nan, 3], [1, 2, np.nan], [7, 8, 9]])
    absent = np.array([[False, True, False], [False] * 3, [True] * 3])
    sketch = Sketch.of(values, 4, absent)

    np.testing.assert_array_equal(sketch.quantiles([0.0, 1.0])[0], [1, 3])
    assert np.isnan(sketch.quantiles(0.5)[1:]).all()


def test_infinities_are_values() -> None:
    found = Sketch.of(np.array([[np.inf, 1, -np.inf]]), 8).quantiles([0, 0.5, 1])
    np.testing.assert_array_equal(found, [[-np.inf, 1, np.inf]])

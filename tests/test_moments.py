"""Moments of pieces, merged, against NumPy's of the whole."""

import itertools
import warnings
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedstore import moments as module
from raggedstore.moments import Moments, Spread

DTYPES = ["?", "u1", "i2", "<i8", ">i8", "u8", "f2", "<f4", ">f4", "f8"]


def merged(pieces: list[np.ndarray], **options: Any) -> Moments:
    total = Moments.none(pieces[0].dtype, pieces[0].shape[1:])
    for piece in pieces:
        total = total.merge(Moments.of(piece, **options))
    return total


@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.lists(st.integers(0, 40), max_size=5))
def test_merged_pieces_are_the_whole(seed: int, dtype: str, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2 if dtype == "?" else 100, (40, 3, 2)).astype(dtype)
    edges = [0, *sorted(cuts), 40]
    got = merged([values[a:b] for a, b in itertools.pairwise(edges)])

    wide = values.astype("f8")
    assert (got.count == 40).all()
    np.testing.assert_allclose(got.mean, wide.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(got.variance(), wide.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.variance(1), wide.var(axis=0, ddof=1), rtol=1e-12)
    np.testing.assert_array_equal(got.min, values.min(axis=0))
    np.testing.assert_array_equal(got.max, values.max(axis=0))
    np.testing.assert_allclose(got.sums().astype("f8"), wide.sum(axis=0), rtol=1e-13)
    again = Moments.from_bytes(got.to_bytes(), dtype, (3, 2))
    for name in Moments.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(got, name))


@given(
    st.sampled_from(["i8", "u8", "i4", "u1"]),
    st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.5, 1.0]), st.integers(0, 9)), max_size=40),
)
def test_sums_of_integers_are_exact_however_large(
    dtype: str, parts: list[tuple[float, int]]
) -> None:
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    numbers = [min(max(int(low + (high - low) * part) + n, low), high) for part, n in parts]
    got = merged([np.array(numbers[i : i + 3], dtype) for i in range(0, len(numbers) + 1, 3)])

    assert got.sums().item() == sum(numbers)
    if numbers:
        assert (got.min, got.max) == (min(numbers), max(numbers))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_nan_is_skipped_or_spreads(seed: int, piece: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(12, 4))
    values[rng.random((12, 4)) < rng.random()] = np.nan
    pieces = [values[i : i + piece] for i in range(0, 12, piece)]
    plain, skipped = merged(pieces), merged(pieces, skipna=True)

    np.testing.assert_allclose(plain.mean, values.mean(axis=0))
    np.testing.assert_allclose(plain.max, values.max(axis=0))
    masked = np.ma.masked_invalid(values)
    some = np.asarray(masked.count(axis=0)) > 0
    np.testing.assert_array_equal(skipped.count, masked.count(axis=0))
    for got, want in (
        (skipped.mean, masked.mean(axis=0)),
        (skipped.variance(), masked.var(axis=0)),
        (skipped.min, masked.min(axis=0)),
    ):
        np.testing.assert_allclose(got[some], np.asarray(want)[some], rtol=1e-9, atol=1e-12)
    assert np.isnan(skipped.variance()[~some]).all()


def test_infinities_make_the_mean_infinite_without_a_warning() -> None:
    got = merged([np.array([1.0]), np.array([np.inf, 2]), np.array([3.0]), np.array([])])
    assert (got.mean, got.max, got.min) == (np.inf, np.inf, 1)
    assert np.isnan(got.variance())


def test_a_large_mean_costs_no_digits() -> None:
    values = (1e6 + np.random.default_rng(0).normal(size=300_000)).astype("f4")
    got = merged(np.split(values, 30))

    assert np.sqrt(got.variance()) == pytest.approx(values.astype("f8").std(), rel=1e-10)


def test_many_values_are_taken_piece_by_piece() -> None:
    values = np.random.default_rng(0).integers(0, 255, (300_001, 3), "u1")
    got = Moments.of(values)

    np.testing.assert_allclose(got.variance(), values.astype("f8").var(axis=0), rtol=1e-12)
    assert got.sums().tolist() == values.sum(axis=0, dtype="i8").tolist()


def test_no_values_have_no_mean() -> None:
    got = Moments.of(np.empty((0, 2), "i4"))
    assert got.count.tolist() == [0, 0] and got.sums().tolist() == [0, 0]
    assert np.isnan(got.variance()).all()
    with pytest.raises(ValueError, match="size"):
        Moments.from_bytes(got.to_bytes()[:-1], "i4", (2,))


# Spread


@settings(deadline=None)
@given(data=st.data())
def test_a_spread_along_any_axes_is_numpys_mean_and_variance(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(max_dims=4, max_side=9, min_side=0))
    dtype = data.draw(st.sampled_from(["f4", ">f8", "i2", "u8", "f2", "?"]))
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    values[...] = np.random.default_rng(1).integers(0, 1 if dtype == "?" else 99, shape)
    if data.draw(st.booleans()):
        values = values.T
    along = tuple(data.draw(st.sets(st.integers(0, values.ndim - 1), min_size=1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SHARED", data.draw(st.integers(1, 200)))
        patch.setattr(module, "_CRUMB", data.draw(st.integers(1, 5)))
        spread = Spread.of(values, along)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, variance = (f(values, axis=along, dtype="f8") for f in (np.mean, np.var))
    assert spread.squares.shape == mean.shape
    np.testing.assert_allclose(spread.variance(), variance, atol=1e-9)
    if spread.count:
        np.testing.assert_allclose(spread.mean, mean, rtol=1e-12)


def test_a_spread_keeps_its_digits_where_the_mean_is_large() -> None:
    values = (1e6 + np.random.default_rng(0).standard_normal((3000, 700))).astype("f4")
    spread, wide = Spread.of(values, (0, 1)), values.astype("f8")
    assert float(spread.variance()) == pytest.approx(wide.var(), rel=1e-13)
    assert float(spread.mean) == pytest.approx(wide.mean(), rel=1e-15)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_none_makes_none_of_its_group_alone(value: float) -> None:
    values = np.ones((2**19, 3))
    values[7, 1] = value
    spread = Spread.of(values, (0,))
    np.testing.assert_array_equal(spread.mean, [1, value, 1])
    np.testing.assert_array_equal(spread.variance(), [0, np.nan, 0])

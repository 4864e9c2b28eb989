"""Statistics of lazy arrays against NumPy's of the whole, and how often the data is read."""

from typing import Any

import dask.array as da
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import lazy

REDUCTIONS = ["mean", "std", "var", "min", "max", "sum", "count"]


class Recorded:
    """An array that says what was read of it."""

    chunks = (100, 50)

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.reads: list[Any] = []

    def __getitem__(self, key: Any) -> np.ndarray:
        self.reads.append(key)
        return self.values[key]


def arrays(dtypes: list[str]) -> st.SearchStrategy[np.ndarray]:
    """Arrays of up to three dimensions, with few and small values."""

    def of(dtype: str) -> st.SearchStrategy[np.ndarray]:
        elements = st.integers(0, 1 if dtype == "?" else 100)
        shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=5)
        return hnp.arrays(dtype, shapes, elements=elements)

    return st.sampled_from(dtypes).flatmap(of)


@st.composite
def axes(draw: st.DrawFn, ndim: int) -> Any:
    numbers = st.integers(-ndim, ndim - 1) if ndim else st.nothing()
    several = st.lists(numbers, unique_by=lambda i: i % ndim).map(tuple)
    return draw(st.none() | numbers | several)


def lazily(values: np.ndarray, data: st.DataObject) -> Any:
    sizes = tuple(data.draw(st.integers(1, 4)) for _ in values.shape)
    return da.from_array(values, chunks=sizes, asarray=False)


def counted(values: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.sum(~np.ma.getmaskarray(values), axis=axis, keepdims=keepdims)


ORACLES = {name: getattr(np, name) for name in REDUCTIONS[:-1]} | {"count": counted}


@given(arrays(["?", "u1", "i2", "i8", "u8", "f2", "<f4", ">f4", "f8"]), st.data())
@settings(max_examples=40)
def test_any_reduction_is_numpys(values: np.ndarray, data: st.DataObject) -> None:
    axis, keepdims = data.draw(axes(values.ndim)), data.draw(st.booleans())
    x = lazily(values, data)
    options = {"axis": axis, "keepdims": keepdims}

    results = [getattr(lazy, name)(x, **options) for name in REDUCTIONS]
    for name, result, got in zip(REDUCTIONS, results, lazy.compute(results), strict=True):
        exact = values if name in ("min", "max", "count") else values.astype("f8")
        want = ORACLES[name](exact, **options)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
        assert np.shape(got) == result.shape == want.shape
        assert np.asarray(got).dtype == result.dtype.newbyteorder("=")
    assert {result.dtype for result in results[:3]} == {np.dtype("f8")}


@given(arrays(["i4", "f4"]).filter(lambda a: a.ndim > 0), st.data())
@settings(max_examples=40)
@pytest.mark.filterwarnings("ignore:.*converting a masked element to nan")
def test_masked_values_are_left_out(values: np.ndarray, data: st.DataObject) -> None:
    mask = data.draw(hnp.arrays(bool, values.shape))
    masked = np.ma.masked_array(values, mask)
    axis = data.draw(axes(values.ndim))
    x = lazily(masked, data)

    got = dict(
        zip(REDUCTIONS, lazy.compute(getattr(lazy, n)(x, axis) for n in REDUCTIONS), strict=True)
    )
    np.testing.assert_array_equal(got["count"], counted(masked, axis))
    some = np.asarray(got["count"]) > 0
    for name in REDUCTIONS[:-1]:
        wide = masked.astype("f8")
        want = np.ma.filled(getattr(wide, name)(axis=axis), np.nan)
        np.testing.assert_allclose(
            np.ma.filled(np.ma.asarray(got[name]).astype("f8"), np.nan)[some], want[some]
        )


@given(
    hnp.arrays("i4", hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)), st.data()
)
@settings(max_examples=40)
@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes_of_no_values_are_an_error_where_numpy_has_one(
    name: str, values: np.ndarray, data: st.DataObject
) -> None:
    axis, keepdims = data.draw(axes(values.ndim)), data.draw(st.booleans())
    x = lazily(values, data)
    result = getattr(lazy, name)(x, axis, keepdims=keepdims)
    try:
        want = ORACLES[name](values, axis=axis, keepdims=keepdims)
    except ValueError:
        with pytest.raises(rs.UsageError, match=f"{name} of no values"):
            result.compute(scheduler="sync")
        floats = getattr(lazy, name)(x.astype("f4"), axis, keepdims=keepdims, skipna=True)
        got = floats.compute(scheduler="sync")
        assert got.shape == result.shape == floats.shape and np.isnan(got).all()
    else:
        got = result.compute(scheduler="sync")
        assert np.shape(got) == result.shape == want.shape
        np.testing.assert_array_equal(got, want)


def test_extremes_of_blocks_of_unknown_size_are_those_of_what_is_in_them() -> None:
    x = lazy.adapt(np.arange(12.0), chunks=3)
    assert float(lazy.min(x[x > 7])) == 8 and float(lazy.max(x[x < 2])) == 1
    with pytest.raises(rs.UsageError, match="max of no values"):
        lazy.max(x[x > 100]).compute()
    assert np.isnan(float(lazy.max(x[x > 100], skipna=True)))


@given(arrays(["f4", "f8"]).filter(lambda a: a.ndim > 0), st.data())
@settings(max_examples=40)
def test_nan_makes_nan_or_is_skipped(values: np.ndarray, data: st.DataObject) -> None:
    values[data.draw(hnp.arrays(bool, values.shape))] = np.nan
    axis = data.draw(axes(values.ndim))
    x = lazily(values, data)
    masked = np.ma.masked_invalid(values.astype("f8"))

    for name in REDUCTIONS:
        (plain, skipped) = lazy.compute(
            [getattr(lazy, name)(x, axis, skipna=skipna) for skipna in (False, True)]
        )
        np.testing.assert_allclose(plain, ORACLES[name](values.astype("f8"), axis=axis))
        want = counted(masked, axis) if name == "count" else getattr(masked, name)(axis=axis)
        nothing = 0 if name in ("count", "sum") else np.nan
        np.testing.assert_allclose(skipped, np.ma.filled(want, nothing))
        assert not np.ma.isMaskedArray(skipped)


def test_squares_that_overflow_are_infinite_also_beside_what_is_left_out() -> None:
    values = np.array([1e200, -1e200, 1e200, np.nan])
    for chunks in (1, 2, 4):
        skipped = lazy.adapt(values, chunks=chunks)
        masked = lazy.adapt(np.ma.masked_array(values, np.isnan(values)), chunks=chunks)
        assert lazy.var(skipped, skipna=True).compute() == np.inf
        assert lazy.std(skipped, skipna=True).compute() == np.inf
        assert lazy.std(masked).compute() == np.inf


@pytest.mark.parametrize("name", ["mean", "std", "var", "sum"])
def test_complex_numbers_have_means_and_deviations(name: str) -> None:
    values = (np.arange(24) + 1j * np.arange(24)[::-1] ** 2).reshape(6, 4).astype("c8")
    x = lazy.adapt(values, chunks=(2, 3))

    got = getattr(lazy, name)(x, axis=0).compute()
    np.testing.assert_allclose(got, getattr(np, name)(values.astype("c16"), axis=0))


def test_what_has_no_order_or_is_no_number_is_refused() -> None:
    numbers = lazy.adapt(np.zeros(3, "c8"))
    dates = lazy.adapt(np.zeros(3, "M8[s]"))
    for name in ("min", "max"):
        with pytest.raises(rs.UsageError, match=f"{name} needs real numbers"):
            getattr(lazy, name)(numbers)
    for name in REDUCTIONS:
        with pytest.raises(rs.UsageError, match="real numbers"):
            getattr(lazy, name)(dates)
    for axis in (3, -4, (0, 0), (0, -3)):
        with pytest.raises(rs.UsageError, match="axis"):
            lazy.mean(np.zeros((2, 2, 2)), axis)


def test_the_mean_of_bytes_is_not_cut_to_a_byte() -> None:
    x = lazy.adapt(np.full((4000, 10), 200, "u1"), chunks=(1000, 10))
    assert lazy.compute([lazy.mean(x), lazy.sum(x), lazy.std(x)]) == [200.0, 8_000_000, 0.0]


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_sums_of_integers_are_exact_or_an_error(dtype: str) -> None:
    most = np.iinfo(dtype).max
    fits = np.array([most // 4] * 4 + [3], dtype)
    assert lazy.sum(lazy.adapt(fits, chunks=2)).compute() == 4 * (most // 4) + 3
    if dtype == "i8":  # over the limit on the way, and back again
        there = np.array([most, most, 5, -most, -most], dtype)
        assert lazy.sum(lazy.adapt(there, chunks=2)).compute() == 5

    too_many = lazy.adapt(np.array([[most] * 6, [0] * 6], dtype), chunks=2)
    with pytest.raises(rs.UsageError, match="does not fit into 64 bits"):
        lazy.sum(too_many, axis=1).compute()
    assert lazy.sum(too_many.astype("f8")).compute() == pytest.approx(6.0 * most)
    assert lazy.mean(too_many, axis=1).compute().tolist() == [float(most), 0.0]


def test_a_mean_of_a_million_costs_the_deviation_no_digits() -> None:
    values = (1e6 + np.random.default_rng(0).normal(size=400_000)).astype("f4")
    x = lazy.adapt(values, chunks=10_000)

    want = values.astype("f8").std()
    assert lazy.std(x).compute() == pytest.approx(want, rel=1e-9)
    assert lazy.mean(x).compute() == pytest.approx(values.astype("f8").mean(), rel=1e-15)
    naive = np.sqrt(np.abs((values * values).mean() - values.mean() ** 2))
    assert abs(naive / want - 1) > 0.1


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_everything_asked_for_together_reads_each_chunk_once(scheduler: str) -> None:
    import dask

    source = Recorded(np.random.default_rng(0).normal(size=(1000, 100)).astype("f4"))
    x = lazy.adapt(source, chunks=(100, 50))
    with dask.config.set(scheduler=scheduler):
        results = lazy.compute(
            [
                *(getattr(lazy, name)(x, axis=0) for name in REDUCTIONS),
                *(getattr(lazy, name)(x, skipna=True) for name in REDUCTIONS),
                lazy.histogram(x, [-1, 0, 1]),
                lazy.quantiles(x, [0.1, 0.9], axis=1),
            ]
        )
    assert len(source.reads) == 20
    np.testing.assert_allclose(results[1], source.values.astype("f8").std(axis=0))


@given(arrays(["u1", "i8", "f4"]), st.data())
@settings(max_examples=40)
def test_a_histogram_counts_as_numpy_does(values: np.ndarray, data: st.DataObject) -> None:
    edges = np.sort(data.draw(hnp.arrays("f8", st.integers(2, 5), elements=st.integers(-2, 102))))
    axis = data.draw(axes(values.ndim))
    if data.draw(st.booleans()):
        values = np.ma.masked_array(values, data.draw(hnp.arrays(bool, values.shape)))
    got = lazy.histogram(lazily(values, data), edges, axis).compute()

    every = tuple(range(values.ndim)) if axis is None else np.atleast_1d(axis) % (values.ndim or 1)
    left = [i for i in range(values.ndim) if i not in every]
    rows = values.transpose(*left, *every).reshape(*(values.shape[i] for i in left), -1)
    want = np.zeros((*rows.shape[:-1], len(edges) - 1))
    for place in np.ndindex(rows.shape[:-1]):
        want[place] = np.histogram(np.ma.compressed(rows[place]), edges)[0]
    np.testing.assert_array_equal(got, want)


def test_edges_must_ascend() -> None:
    for edges in ([1], [2, 1], [[0, 1]], ["a", "b"]):
        with pytest.raises(rs.UsageError):
            lazy.histogram(np.arange(3), edges)


@given(arrays(["u1", "i4", "f4"]), st.data())
@settings(max_examples=40)
def test_quantiles_of_few_values_are_numpys(values: np.ndarray, data: st.DataObject) -> None:
    axis, keepdims = data.draw(axes(values.ndim)), data.draw(st.booleans())
    q = data.draw(st.sampled_from([0.5, [0.25, 0.75], [[0.0], [1.0]], []]))
    result = lazy.quantiles(lazily(values, data), q, axis, keepdims=keepdims)

    want = np.quantile(values, q, axis=axis, keepdims=keepdims, method="inverted_cdf")
    np.testing.assert_array_equal(result.compute(), want)
    assert result.shape == want.shape


def test_quantiles_of_many_values_are_off_by_no_more_than_asked_for() -> None:
    values = np.random.default_rng(0).gamma(2, size=(60, 5000)).astype("f4")
    x = lazy.adapt(values, chunks=(7, 900))
    q = np.linspace(0, 1, 11)
    (got, along) = lazy.compute(
        [lazy.quantiles(x, q, error=0.01), lazy.quantiles(x, q, axis=1, error=0.05)]
    )

    ranks = np.searchsorted(np.sort(values, axis=None), got) / values.size
    assert np.abs(ranks - q).max() <= 0.01
    for row, found in zip(np.sort(values, axis=1), along.T, strict=True):
        assert np.abs(np.searchsorted(row, found) / len(row) - q).max() <= 0.05


def test_quantiles_leave_out_what_is_masked_and_heed_nan() -> None:
    values = np.array([[1, 2, 3, 4], [5, np.nan, 7, 8]])
    x = lazy.adapt(values, chunks=(1, 2))
    masked = lazy.adapt(np.ma.masked_less(np.arange(12.0).reshape(3, 4), 7), chunks=2)

    assert np.isnan(lazy.quantiles(x, 0.5).compute())
    assert lazy.quantiles(x, 0.5, skipna=True).compute() == 4
    np.testing.assert_array_equal(lazy.quantiles(x, 1, axis=1).compute(), [4, np.nan])
    np.testing.assert_array_equal(lazy.quantiles(x, 1, axis=1, skipna=True).compute(), [4, 8])
    assert lazy.quantiles(masked, 0).compute() == 7
    np.testing.assert_array_equal(lazy.quantiles(masked, 0, axis=1).compute(), [np.nan, 7, 8])


def test_quantiles_of_values_of_unknown_number() -> None:
    x = lazy.adapt(np.arange(100), chunks=10)
    assert lazy.quantiles(x[x % 2 == 0], 0.5).compute() == 48
    assert lazy.sum(x[x > 97]).compute() == 98 + 99


def test_quantiles_are_asked_for_from_0_to_1() -> None:
    for q, error in ((1.1, 0.1), (-0.1, 0.1), (np.nan, 0.1), (0.5, 0), (0.5, 1)):
        with pytest.raises(rs.UsageError):
            lazy.quantiles(np.arange(3), q, error=error)


@pytest.mark.parametrize("blocks", [(5, 7), (2, 3)])
@pytest.mark.parametrize("what", ["mean", "std", "var", "min", "max", "sum", "count", "quantiles"])
def test_one_number_is_a_number(what: str, blocks: tuple[int, int]) -> None:
    x = lazy.adapt(np.arange(35.0).reshape(5, 7), chunks=blocks)
    found = getattr(lazy, what)(x, *([0.5] if what == "quantiles" else [])).compute()
    assert isinstance(found, np.generic) and f"{found:.1f}"

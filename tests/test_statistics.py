"""Statistics of ragged fields against NumPy's of all values, and what is normalised by them."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import statistics
from raggedstore.training import Loader

#: Of each field its dtype, its shape, and the axes that may be gone over.
FIELDS: dict[str, tuple[str, tuple[int | None, ...], list[Any]]] = {
    "mel": ("f4", (None, 5), [None, 0, (0, 1), -2]),
    "image": ("u1", (None, None, 3), [None, (0, 1), (1, 0), (0, 1, 2)]),
    "wave": ("i2", (2, None), [None, 1, (-1,)]),
    "odd": ("f8", (None, 2, None, 3), [None, (0, 2), (0, 2, 3), (0, 1, 2)]),
    "dense": ("i8", (2, 3), [None, (), 0, 1]),
    "turned": (">f4", (4, 2), [None, (), 0, 1]),
    "scalar": ("u8", (), [None, ()]),
    "flag": ("?", (None,), [None, 0]),
}
SCHEMA = {name: rs.Field(dtype, shape) for name, (dtype, shape, _) in FIELDS.items()}


def make(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    sample = {}
    for name, (dtype, shape, _) in FIELDS.items():
        sizes = [int(rng.integers(0, 4)) if size is None else size for size in shape]
        sample[name] = rng.integers(0, 2 if dtype == "?" else 100, sizes).astype(dtype)
    return sample


SAMPLES = [make(i) for i in range(30)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rs.Store]:
    path = tmp_path_factory.mktemp("statistics") / "store"
    with rs.create(path, SCHEMA) as made:
        for first in range(0, 30, 10):
            with made.writer() as writer:
                writer.extend(SAMPLES[first : first + 10])
    with rs.open(path) as store:
        yield store


def all_of(samples: list[dict[str, Any]], name: str, axis: Any) -> np.ndarray:
    """(n, ...) the values of all samples, those of one group in a column."""
    shape = FIELDS[name][1]
    axes = range(len(shape)) if axis is None else [one % len(shape) for one in np.atleast_1d(axis)]
    axes = [int(one) for one in axes]
    left = [i for i in range(len(shape)) if i not in axes]
    rows = [
        sample[name].transpose(*axes, *left).reshape(-1, *(shape[i] for i in left))
        if np.prod([shape[i] for i in left])
        else sample[name]
        for sample in samples
    ]
    return np.concatenate(rows)


def assert_stats(got: Any, values: np.ndarray) -> None:
    wide = values.astype("f8")
    np.testing.assert_array_equal(got.count, np.full(values.shape[1:], len(values)))
    np.testing.assert_allclose(got.mean, wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.std, wide.std(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.asarray(got.sum, float), wide.sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(got.min, values.min(axis=0))
    np.testing.assert_array_equal(got.max, values.max(axis=0))
    assert np.asarray(got.max).dtype.kind == values.dtype.kind or np.isscalar(got.max)


EACH = pytest.mark.parametrize(
    ("name", "axis"), [(name, axis) for name, (*_, axes) in FIELDS.items() for axis in axes]
)


@EACH
def test_they_are_those_of_all_values_at_once(store: rs.Store, name: str, axis: Any) -> None:
    assert_stats(store[name].stats(axis), all_of(SAMPLES, name, axis))
    some = [3, 29, 3, -1]
    assert_stats(
        store.select(some)[name].stats(axis), all_of([SAMPLES[i] for i in some], name, axis)
    )
    both = rs.concat([store.select(slice(4), fields=[name]), store.select(fields=[name])])
    assert_stats(both[name].stats(axis), all_of(SAMPLES[:4] + SAMPLES, name, axis))


@pytest.mark.parametrize("name", ["mel", "image", "odd", "dense"])
def test_blocks_and_pieces_of_samples_change_nothing(
    store: rs.Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = store.select(range(30))[name].stats(FIELDS[name][2][1])
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 7)
    monkeypatch.setattr(statistics, "_SORTED_VALUES", 3)
    got = store.select(range(30))[name].stats(FIELDS[name][2][1])

    for one in ("count", "sum", "mean", "std", "min", "max"):
        np.testing.assert_allclose(
            np.asarray(getattr(got, one), float), np.asarray(getattr(want, one), float)
        )


def test_no_values_have_no_mean(store: rs.Store) -> None:
    nothing = store.select([])
    for name in FIELDS:
        stats = nothing[name].stats()
        assert (stats.count, stats.sum) == (0, 0)
        assert np.isnan([stats.mean, stats.std, stats.min, stats.max]).all()
    assert np.isnan(nothing["dense"].stats(()).min).all()


# Distributions


@EACH
def test_quantiles_of_few_values_are_numpys(store: rs.Store, name: str, axis: Any) -> None:
    values, q = all_of(SAMPLES, name, axis), [0, 0.1, 0.5, 1]
    got = store[name].quantiles(q, axis, error=1 / (len(values) + 1))
    want = np.quantile(values.astype("f8"), q, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(got, want)
    assert got.shape == (4, *values.shape[1:])
    one = store[name].quantiles(0.5, axis, error=1 / (len(values) + 1))
    np.testing.assert_array_equal(one, want[2])
    assert isinstance(one, float) == (values.ndim == 1)


@EACH
def test_histograms_are_numpys(store: rs.Store, name: str, axis: Any) -> None:
    values, edges = all_of(SAMPLES, name, axis), [0, 1, 7, 7, 50, 99]
    got = store[name].histogram(edges, axis)
    assert got.shape == (*values.shape[1:], 5) and got.dtype == np.int64
    for place in np.ndindex(values.shape[1:]):
        column = values[(slice(None), *place)].astype("f8")
        np.testing.assert_array_equal(got[place], np.histogram(column, edges)[0])


def test_quantiles_of_many_values_are_as_near_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 2**12)
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((int(n), 2)) for n in rng.integers(0, 900, 60)]
    values, q = np.concatenate(samples), np.linspace(0, 1, 21)
    with rs.create(tmp_path / "s", {"x": rs.Field("f8", (None, 2))}) as store:
        with store.writer() as writer:
            writer.extend({"x": sample} for sample in samples)
        got = store["x"].quantiles(q, 0, error=0.02)
    for group in range(2):
        ranks = np.searchsorted(np.sort(values[:, group]), got[:, group], "right") / len(values)
        assert (np.abs(ranks - q) <= 0.02 + 1 / len(values)).all()


def test_nan_makes_quantiles_nan_or_is_skipped_and_is_in_no_bin(tmp_path: Path) -> None:
    with rs.create(tmp_path / "s", {"x": rs.Field("f4", (None, 2))}) as store:
        with store.writer() as writer:
            writer.append({"x": np.array([[1, np.nan], [3, 4]], "f4")})
        np.testing.assert_array_equal(store["x"].quantiles(1, 0), [3, np.nan])
        np.testing.assert_array_equal(store["x"].quantiles(1, 0, skipna=True), [3, 4])
        assert store["x"].histogram([0, 2, 9], 0).tolist() == [[1, 1], [0, 1]]
        nothing = store.select([])["x"]
        assert np.isnan(nothing.quantiles([0.5], 0)).all()
        assert nothing.histogram([0, 1], 0).tolist() == [[0], [0]]


def test_what_has_no_distribution_is_refused(store: rs.Store) -> None:
    for q in ([1.5], [-0.1], ["a"], [np.nan], [[1], [1, 2]]):
        with pytest.raises(rs.UsageError):
            store["mel"].quantiles(q, 0)
    for error in (0, 1, np.nan, "x"):
        with pytest.raises(rs.UsageError):
            store["mel"].quantiles(0.5, 0, error=error)
    for edges in ([1], [2, 1], 3, ["a", "b"], [[1], [1, 2]]):
        with pytest.raises(rs.UsageError, match="edges"):
            store["mel"].histogram(edges, 0)
    with pytest.raises(rs.UsageError, match="ragged"):
        store["mel"].histogram([0, 1], 1)


def test_sums_are_plain_and_exact(tmp_path: Any) -> None:
    with rs.create(tmp_path / "s", {"n": rs.Field("i8", (2,))}) as store:
        with store.writer() as writer:
            writer.extend({"n": [2**63 - 1, i]} for i in range(4))
        assert store["n"].stats().sum == 4 * (2**63 - 1) + 6
        assert store["n"].stats(()).sum.tolist() == [4 * (2**63 - 1), 6]


def test_nan_spreads_or_is_skipped(tmp_path: Any) -> None:
    with rs.create(tmp_path / "s", {"x": rs.Field("f4", (None, 2))}) as store:
        with store.writer() as writer:
            writer.append({"x": np.array([[1, np.nan], [3, 4]], "f4")})
        np.testing.assert_array_equal(store["x"].stats(0).mean, [2, np.nan])
        np.testing.assert_array_equal(store["x"].stats(0, skipna=True).mean, [2, 4])
        assert store["x"].stats(0, skipna=True).count.tolist() == [2, 1]
        assert store["x"].stats(0).count.tolist() == [2, 2]


def test_what_has_no_statistics_is_refused(store: rs.Store, tmp_path: Any) -> None:
    for name, axis in (("mel", 1), ("image", 0), ("wave", 0), ("odd", 2), ("image", ())):
        with pytest.raises(rs.UsageError, match="ragged"):
            store[name].stats(axis)
    with pytest.raises(rs.UsageError, match="axis=2"):
        store["mel"].stats(2)
    for axis in ("x", 0.5, [[0], [0, 1]], {}, (0, "x")):
        with pytest.raises(rs.UsageError, match="axis="):
            store["dense"].stats(axis)
    schema = {"text": rs.Field("str"), "wave": rs.Field("c8", (None,))}
    with rs.create(tmp_path / "other", schema) as other:
        for name in schema:
            with pytest.raises(rs.UsageError, match=name):
                other[name].stats()


# Normalizer


@pytest.mark.parametrize("name", FIELDS)
def test_what_is_normalised_by_its_own_statistics_has_mean_0_and_deviation_1(
    store: rs.Store, name: str
) -> None:
    if name == "flag":
        normal = rs.Normalizer.of(store[name])
        assert normal(np.array([True, False])).dtype == np.float32
        return
    normal = rs.Normalizer.of(store[name])
    batch = store.batch(slice(None))[name]
    got = normal(batch)
    values = got.values if isinstance(got, rs.RaggedBatch) else got

    assert values.dtype == np.float32
    assert values.mean(dtype="f8") == pytest.approx(0, abs=1e-5)
    assert values.std(dtype="f8") == pytest.approx(1, abs=1e-3)
    for i, one in enumerate(store[name]):
        np.testing.assert_array_equal(normal(one), got[i])


def test_features_are_normalised_each_by_itself_wherever_they_lie(store: rs.Store) -> None:
    last, first = rs.Normalizer.of(store["mel"]), rs.Normalizer.of(store["wave"], axis=1)
    assert (last.mean.shape, first.mean.shape) == ((5,), (2, 1))

    batch = store.batch([7, 3, 11])
    for normal, name, axis in ((last, "mel", 0), (first, "wave", 1)):
        stats = store[name].stats(axis)
        shape = normal.mean.shape
        for got, raw in zip(normal(batch[name]), batch[name], strict=True):
            want = (raw - stats.mean.reshape(shape)) / stats.std.reshape(shape)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        last(batch["mel"].to_padded()), (batch["mel"].to_padded() - last.mean) / last.std, rtol=1e-5
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["i2", "i8", "f2", "f4", ">f4", "f8"]), st.sampled_from([0, 3e4]))
def test_a_large_mean_costs_no_digits(dtype: str, mean: float) -> None:
    if dtype == "f2" and mean:
        mean = 100.0
    values = np.arange(-20, 20).astype(dtype) + np.array(mean, dtype)
    got = rs.Normalizer(mean + 1 / 3, 7.0)(values)

    np.testing.assert_allclose(got, (values.astype("f8") - (mean + 1 / 3)) / 7, rtol=2e-6)


def test_what_does_not_vary_becomes_0() -> None:
    values = np.full((1000, 2), 0.1)
    mean, std = values.mean(axis=0), np.array([0, 1e-17])
    assert np.abs(rs.Normalizer(mean, std)(values)).max() < 1e-12


def test_a_loader_maps_batches_and_samples(store: rs.Store) -> None:
    normal = rs.Normalizer.of(store["mel"])
    wanted = np.concatenate([normal(sample["mel"]).ravel() for sample in SAMPLES])
    for per in ("batch", "sample"):
        loader = Loader(store, batch=4).map(normal, per=per)
        got = [batch["mel"] for batch in loader]
        np.testing.assert_array_equal(np.concatenate([one.values for one in got]), wanted)


def test_it_pickles_and_goes_into_json(store: rs.Store) -> None:
    normal = rs.Normalizer.of(store["mel"])
    state = json.loads(json.dumps(normal.state_dict()))
    for again in (pickle.loads(pickle.dumps(normal)), rs.Normalizer.from_state_dict(state)):
        assert again.field == "mel"
        np.testing.assert_array_equal(again.mean, normal.mean)
        np.testing.assert_array_equal(again.std, normal.std)
    with pytest.raises(rs.UsageError, match="not the state"):
        rs.Normalizer.from_state_dict({"mean": 0})


def test_what_cannot_be_normalised_is_refused(store: rs.Store) -> None:
    with pytest.raises(rs.UsageError, match="finite"):
        rs.Normalizer(np.nan, 1)
    with pytest.raises(rs.UsageError, match="no values"):
        rs.Normalizer.of(store.select([])["mel"])
    with pytest.raises(rs.UsageError, match="no field"):
        rs.Normalizer(0, 1)({"mel": np.zeros(3)})
    with pytest.raises(rs.UsageError, match="real numbers"):
        rs.Normalizer(0, 1)(np.zeros(3, "c8"))


CHILD = """
import resource, sys
import raggedstore as rs

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

store = rs.open(sys.argv[1], budget="16MB")
store["mel"].crop([0], [0], [9])
store["mel"].crop([0], [0], [9])
before = peak()
print(store["mel"].stats(0).count[0], peak() - before)
"""


def test_samples_larger_than_the_budget_are_read_in_pieces(tmp_path: Path) -> None:
    with rs.create(tmp_path / "s", {"mel": rs.Field("f4", (None, 80))}) as store:
        with store.writer(budget="32MB") as writer:
            writer.append({"mel": np.zeros((750_000, 80), "f4")})
        assert store.nbytes == 240_000_000
    env = {**os.environ, "PYTHONPATH": str(Path(rs.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "s")],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )

    count, more = map(int, done.stdout.split())
    assert count == 750_000
    assert more < 110_000_000


def test_quantiles_of_few_values_among_much_that_is_missing_are_as_near(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"x": rs.Field("f4", (None,))})
    values = np.full(500_000, np.nan, "f4")
    values[::1250] = np.arange(400)
    with store.writer() as writer:
        writer.extend({"x": part} for part in np.split(values, 50))

    wanted = np.linspace(0, 1, 11)
    got = store["x"].quantiles(wanted, skipna=True)
    np.testing.assert_array_equal(
        got, np.nanquantile(values, wanted, method="inverted_cdf").astype("f8")
    )


@pytest.mark.parametrize("edges", [np.array([5, 3, 1], "u1"), np.array([0, 2, 1], "u8")])
@pytest.mark.parametrize("axis", [None, 0])
def test_unsigned_edges_that_descend_are_refused(store: rs.Store, edges: Any, axis: Any) -> None:
    with pytest.raises(rs.UsageError, match="ascending"):
        store["mel"].histogram(edges, axis=axis)


def test_edges_may_be_as_far_apart_as_integers_are(store: rs.Store) -> None:
    counts = store["dense"].histogram([-(2**63), 0, 2**63 - 1])
    assert counts.sum() == store["dense"].stats().count


def test_what_is_no_normalizer_is_told() -> None:
    with pytest.raises(rs.UsageError):
        rs.Normalizer.from_state_dict({"mean": "x", "std": 1, "field": None})
    with pytest.raises(rs.UnknownFieldError, match="'x'"):
        rs.Normalizer(0.0, 1.0, "x")({"y": 1})

"""Views, concatenations and statistics against the lists and arrays that they stand for."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from tests.model import assert_same, at

SCHEMA = rs.Schema(
    {
        "values": rs.Field("int16", (None,)),
        "grid": rs.Field("f4", (None, 2)),
        "text": rs.Field("str"),
    }
)


def make(i: int) -> dict[str, object]:
    rng = np.random.default_rng(i)
    return {
        "values": rng.integers(-999, 999, i % 7).astype("i2"),
        "grid": rng.normal(1000, 1, (i % 3, 2)).astype("f4"),
        "text": "ü" * (i % 4),
    }


SAMPLES = [make(i) for i in range(40)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rs.Store]:
    with rs.create(tmp_path_factory.mktemp("samples") / "store", SCHEMA) as store:
        for first in range(0, 40, 10):
            with store.writer() as writer:
                writer.extend(SAMPLES[first : first + 10])
        yield store


FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@FIXTURE
@given(st.data())
def test_a_view_of_a_concatenation_is_a_list_of_the_same(
    store: rs.Store, data: st.DataObject
) -> None:
    both, want = rs.concat([store, store.select([5, 3, -1])]), [*SAMPLES, SAMPLES[5], SAMPLES[3]]
    want.append(SAMPLES[-1])
    key = data.draw(st.lists(st.integers(-43, 42), max_size=12))
    view, want = both.select(key), at(want, key)

    assert_same(SCHEMA, list(view), want)
    again = data.draw(st.slices(len(want)))
    assert_same(SCHEMA, view[again], want[again])
    assert view["values"].lengths.tolist() == [len(sample["values"]) for sample in want]


def test_a_view_of_some_fields_has_no_others(store: rs.Store) -> None:
    view = store.select(slice(2, 4), fields=["text"])

    assert list(view.schema) == ["text"]
    assert view[:] == [{"text": "üü"}, {"text": "üüü"}]
    with pytest.raises(KeyError):
        view["values"]
    with pytest.raises(rs.UsageError):
        store.select(fields="text")


def test_statistics_are_those_of_all_values_at_once(store: rs.Store) -> None:
    for name in ("values", "grid"):
        values = np.concatenate([np.ravel(sample[name]) for sample in SAMPLES]).astype("f8")
        stats = store[name].stats()
        assert (stats.count, stats.min, stats.max) == (len(values), values.min(), values.max())
        assert stats.mean == pytest.approx(values.mean(), rel=1e-12)
        assert stats.std == pytest.approx(values.std(), rel=1e-9)
    assert store.select([0])["values"].stats().count == 0
    with pytest.raises(rs.UsageError):
        store["text"].stats()


def test_a_crop_is_a_slice_of_each_sample(store: rs.Store) -> None:
    crop = store["grid"].crop([2, 5, 2], starts=[0, 1, 1], stops=[1, 9, 1])

    for got, (i, a, b) in zip(crop, [(2, 0, 1), (5, 1, 9), (2, 1, 1)], strict=True):
        np.testing.assert_array_equal(got, SAMPLES[i]["grid"][a:b])
    for got, i in zip(store["grid"].crop([2, 5], 1, 3), [2, 5], strict=True):
        np.testing.assert_array_equal(got, SAMPLES[i]["grid"][1:3])
    assert len(store["grid"].crop([], [], [])) == len(store["grid"].crop([], 0, 5)) == 0
    far = store["grid"].crop([2], 0, np.array([2**64 - 1], np.uint64))
    np.testing.assert_array_equal(far[0], SAMPLES[2]["grid"])
    with pytest.raises(IndexError):
        store["grid"].crop([40], starts=[0], stops=[1])


@pytest.mark.parametrize(
    "end", [[-1], -1, [0.5], 0.5, ["1"], None, [None], [2**70], [1, 2], [[1]], [[1], [1, 2]], [1j]]
)
def test_where_no_crop_can_begin_or_end_is_refused(store: rs.Store, end: Any) -> None:
    for ends in ((end, [3]), ([3], end)):
        with pytest.raises(rs.UsageError, match=r"(starts|stops) is"):
            store["grid"].crop([2], *ends)


@FIXTURE
@given(st.data())
def test_windows_of_any_samples_in_any_order_are_slices_of_them(
    store: rs.Store, data: st.DataObject
) -> None:
    both, samples = rs.concat([store, store]).select(slice(70, None, -1)), SAMPLES + SAMPLES
    window = st.tuples(st.integers(0, 70), st.integers(0, 8), st.integers(0, 8))
    rows = np.array(data.draw(st.lists(window, max_size=10)), np.int64).reshape(-1, 3)
    for name in ("values", "grid"):
        crop = both[name].crop(rows[:, 0], rows[:, 1], rows[:, 2])
        assert len(crop) == len(rows)
        for got, (i, a, b) in zip(crop, rows.tolist(), strict=True):
            np.testing.assert_array_equal(got, samples[70 - i][name][a:b])


def test_stores_of_different_schemas_do_not_concatenate(store: rs.Store, tmp_path: Path) -> None:
    other = rs.create(tmp_path / "other", {"values": rs.Field("int32", (None,))})
    with pytest.raises(rs.SchemaError, match="different schemas"):
        rs.concat([store, other])


@pytest.mark.parametrize(
    "make",
    [
        lambda store: rs.concat([store, "another"]),
        lambda store: rs.concat(store),
        lambda store: rs.concat([]),
        lambda store: store.select(fields=5),
        lambda store: store.select(fields="values"),
    ],
)
def test_what_is_no_view_is_refused(store: rs.Store, make: Any) -> None:
    with pytest.raises(rs.UsageError):
        make(store)


def test_blocks_hold_at_most_the_bytes_asked_for(store: rs.Store) -> None:
    positions = np.arange(40)
    blocks = list(store.blocks(positions, max_bytes=64))

    assert np.concatenate(blocks).tolist() == positions.tolist()
    for block in blocks:
        size = sum(
            s["values"].nbytes + s["grid"].nbytes + len(s["text"].encode())
            for s in (SAMPLES[i] for i in block)
        )
        assert size <= 64 or len(block) == 1


def test_statistics_of_a_concatenation_are_of_what_it_has(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "grows", {"x": rs.Field("i8")})
    with store.writer() as writer:
        writer.extend({"x": i} for i in range(5))
    both = rs.concat([store, store])
    with store.writer() as writer:
        writer.extend({"x": 100} for _ in range(5))

    stats = both["x"].stats()
    assert (stats.count, stats.mean, stats.max) == (10, 2, 4) and len(store) == 10


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u4", "i8", "u8"])
def test_windows_may_be_told_by_integers_of_any_kind(store: rs.Store, dtype: str) -> None:
    starts, stops = np.array([0, 1], dtype), np.array([2, 3], dtype)
    got = store["values"].crop([5, 7], starts, stops)
    for sample, i, start, stop in zip(got, [5, 7], [0, 1], [2, 3], strict=True):
        np.testing.assert_array_equal(sample, SAMPLES[i]["values"][start:stop])


def test_a_step_of_zero_is_an_error_of_ours(store: rs.Store) -> None:
    for part in (store, store["values"], store.select([1, 2]), store.batch([1])["values"]):
        with pytest.raises(rs.UsageError, match="zero"):
            part[::0]


def test_tensors_index_as_arrays_do(store: rs.Store) -> None:
    torch = pytest.importorskip("torch")
    for key in ([3, 1], [-1]):
        assert_same(SCHEMA, store[torch.tensor(key)], [SAMPLES[i] for i in key])
    assert_same(SCHEMA, [store[torch.tensor(3)]], [SAMPLES[3]])


@pytest.mark.parametrize("added", [0, 10, 30])
def test_views_of_what_a_repair_cut_out_say_so(tmp_path: Path, added: int) -> None:
    store = rs.create(tmp_path / "store", {"i": rs.Field("i8")})
    for day in range(3):
        with store.writer() as writer:
            writer.extend({"i": 10 * day + i} for i in range(10))
    store.refresh()
    views = [store.select([1, 29]), rs.concat([store, store]), store.split({"a": 1.0})["a"]]
    damaged = sorted((store.path / "segments").glob("*.h5"))[0]
    damaged.write_bytes(b"")
    rs.open(store.path, "a").repair()
    with rs.open(store.path, "a").writer() as writer:
        writer.extend({"i": 100 + i} for i in range(added))
    rs.open(store.path, "a").compact()
    store.refresh()

    assert len(store) == 20 + added and store.moved == 1
    assert len(store.select(fields=["i"])["i"][:]) == len(store)
    for view in views:
        for read in (
            lambda v=view: v[-1],
            lambda v=view: v.batch([0]),
            lambda v=view: v["i"][:],
            lambda v=view: v["i"].stats(),
        ):
            with pytest.raises(rs.VersionError, match="repair"):
                read()


def test_going_through_many_samples_holds_no_number_for_each(tmp_path: Path) -> None:
    count = 1_000_000
    offsets = np.arange(count + 1)
    schema = {"x": rs.Field("u1", (None,))}
    with rs.create(tmp_path / "many", schema) as made, made.writer() as writer:
        writer.extend_batch({"x": rs.RaggedBatch(np.zeros(count, "u1"), offsets)})
    store = rs.open(tmp_path / "many", budget="1MB")
    view, out = store["x"], 8 * count
    view.batch([0, count - 1])
    for look, most in [
        (lambda: next(iter(store)), 0),
        (lambda: next(iter(view)), 0),
        (lambda: view.stats(), 0),
        (lambda: view.quantiles(0.5), 0),
        (lambda: view.histogram([0, 1, 2]), 0),
        (lambda: view.lengths, out),
        (lambda: view.shapes, out),
    ]:
        tracemalloc.start()
        look()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most + 7_500_000, look
    assert view.lengths.tolist() == [1] * count and view.shapes.shape == (count, 1)

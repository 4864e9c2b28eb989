"""Sizes and dimensions of samples against those of the decoded samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.samples import Samples
from raggedstore.training import sizes
from raggedstore.training.sizes import Dims, Measures, Sizes, probes
from tests.training.epochs import Between

COUNT = 300
FIELDS = {
    "x": rs.Field("int16", (None,)),
    "image": rs.Field("uint8", (None, None, 3)),
    "mel": rs.Field("float32", (None, 4)),
    "vector": rs.Field("float64", (3,)),
    "label": rs.Field("int8"),
    "text": rs.Field("str"),
    "raw": rs.Field("bytes"),
}
POSITIONS = st.lists(st.integers(0, COUNT - 1), max_size=80).map(lambda p: np.array(p, np.int64))


def sample(i: int) -> dict[str, Any]:
    return {
        "x": np.zeros((i * 37) % 90, "i2"),
        "image": np.zeros((i % 6, i % 11, 3), "u1"),
        "mel": np.zeros((i % 7, 4), "f4"),
        "vector": np.zeros(3),
        "label": i % 100,
        "text": "да" * (i % 9),
        "raw": bytes(i % 13),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    store = rs.create(tmp_path_factory.mktemp("sizes") / "store", FIELDS)
    with store.writer() as writer:
        writer.extend(map(sample, range(COUNT)))
    return store


def decoded(i: int, fields: list[str]) -> int:
    """Bytes of a sample: its values, what says where they lie, and a place in a window."""
    values, total = sample(i), 16
    for name in fields:
        field, value = FIELDS[name], values[name]
        if field.kind == "array":
            total += np.asarray(value, field.dtype).nbytes
            total += 16 + 8 * (field.ndim + 1) if field.is_ragged else 0
        else:  # its bytes, and again as an object
            nbytes = len(value.encode() if isinstance(value, str) else value)
            total += 2 * nbytes + 72 + 16 + 8 * 2
    return total


@given(POSITIONS, st.sets(st.sampled_from(list(FIELDS)), max_size=7))
def test_exact_sizes_are_those_of_the_decoded_samples(
    store: rs.Store, positions: Any, without: set[str]
) -> None:
    measured = Sizes(store, without=without)
    fields = [name for name in FIELDS if name not in without]

    wanted = [decoded(i, fields) for i in positions.tolist()]
    assert measured.exact(positions).tolist() == wanted
    assert measured.of(positions).tolist() == wanted  # so few are looked at one by one
    everything = [decoded(i, fields) for i in range(COUNT)]
    assert measured.mean == measured.mean_of_first() == pytest.approx(np.mean(everything))


def lengths_store(path: Path, lengths: list[int]) -> rs.Store:
    store = rs.create(path, {"x": rs.Field("uint8", (None,))})
    values = np.zeros(sum(lengths), "u1")
    with store.writer() as writer:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        writer.extend_batch({"x": rs.RaggedBatch(values, offsets)})
    return store


def test_short_samples_have_the_size_of_the_average(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = lengths_store(tmp_path / "short", rng.integers(0, 30, 5000).tolist())
    some = np.sort(rng.choice(5000, 3000, replace=False))
    measured = Sizes(store)

    sizes = measured.of(some)
    assert len(set(sizes.tolist())) == 1
    assert sizes.sum() == pytest.approx(measured.exact(some).sum(), rel=0.05)
    assert measured.mean == pytest.approx(measured.exact(np.arange(5000)).mean(), rel=0.05)


@pytest.mark.parametrize("lengths", [[2000, 3000] * 100, [0] * 199 + [10**6]])
def test_long_or_uneven_samples_are_measured_one_by_one(tmp_path: Path, lengths: list[int]) -> None:
    measured = Sizes(lengths_store(tmp_path / "long", lengths))
    everything = np.arange(200)

    assert measured.of(everything).tolist() == measured.exact(everything).tolist()
    assert np.ptp(measured.exact(everything)) == max(lengths) - min(lengths)


def test_appending_leaves_the_mean_of_the_first_as_it_is(tmp_path: Path) -> None:
    store = lengths_store(tmp_path / "grows", [10] * 1500)
    before = Sizes(store)
    mean = before.mean
    with store.writer() as writer:
        writer.extend({"x": np.zeros(500, "u1")} for _ in range(1500))
    store.refresh()
    after = Sizes(store)

    assert before.mean_of_first() == after.mean_of_first() == mean
    assert after.mean > 5 * mean


@given(st.integers(0, 10**9))
def test_probes_are_from_all_over(samples: int) -> None:
    found = probes(samples)

    assert len(found) <= 1024 and (np.diff(found) > 0).all()
    assert len(found) == samples if samples <= 1024 else len(found) > 512
    if samples:
        assert found[0] == 0 and found[-1] == samples - 1
        assert np.diff(found).max(initial=0) <= max(samples // 60, 1)


class Counted(Between):
    """Samples that count how many shapes are read of them."""

    def __init__(self, base: Samples) -> None:
        super().__init__(base)
        self.read_of = 0

    def read(self, name: str, positions: Any) -> Any:
        raise AssertionError("no data should be read")

    read_windows = read  # type: ignore[assignment]

    def read_shapes(self, name: str, positions: Any) -> Any:
        self.read_of += len(positions)
        return self.base.read_shapes(name, positions)


RAGGED: dict[str, Callable[[int], list[int]]] = {
    "x": lambda i: [(i * 37) % 90],
    "image": lambda i: [i % 6, i % 11],
    "mel": lambda i: [i % 7],
    "text": lambda i: [4 * (i % 9)],
}


@given(st.sampled_from(list(RAGGED)), st.lists(POSITIONS, max_size=6))
def test_dims_are_the_ragged_dimensions(store: rs.Store, name: str, asked: list[Any]) -> None:
    counted = Counted(store)
    dims = Dims(counted, name)

    for positions in asked:
        got = dims(positions)
        assert got.dtype == np.int64 and got.shape == (len(positions), len(RAGGED[name](0)))
        assert got.tolist() == [RAGGED[name](i) for i in positions.tolist()]
    assert counted.read_of <= COUNT * 5 // 4  # once for all, and a quarter before that


def test_dims_are_the_callers_to_change(store: rs.Store) -> None:
    dims, everything = Dims(store, "x"), np.arange(COUNT)
    for _ in range(3):
        dims(everything)[:] = -1

    assert (dims(everything) >= 0).all()


def test_of_too_many_samples_no_dims_are_kept(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_KEPT", COUNT - 1)
    counted = Counted(store)
    dims = Dims(counted, "x")

    for _ in range(3):
        assert dims(np.arange(COUNT)).tolist() == [RAGGED["x"](i) for i in range(COUNT)]
    assert counted.read_of == 3 * COUNT


def test_no_samples_have_no_sizes(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "empty", FIELDS)
    none = np.zeros(0, np.int64)

    assert Sizes(store).of(none).tolist() == Sizes(store).exact(none).tolist() == []
    assert Sizes(store).mean > 0
    assert Dims(store, "image")(none).shape == (0, 2)


def test_measures_look_once(store: rs.Store) -> None:
    measures = Measures(store)

    assert measures.dims("x") is measures.dims("x") is not measures.dims("mel")
    assert measures.sizes() is measures.sizes(frozenset())
    assert measures.sizes(frozenset({"x"})).mean < measures.sizes().mean

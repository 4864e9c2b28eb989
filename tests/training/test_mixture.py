"""Mixtures: proportions in every stretch, each store in an order of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training import Loader, Mixture, Permuted, Sequential, Shuffled, Weighted

SIZES = (300, 100, 40)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[rs.Store]:
    made = []
    for k, size in enumerate(SIZES):
        path = tmp_path_factory.mktemp("mixture") / "store"
        store = rs.create(path, {"x": rs.Field("u1", (None,)), "i": rs.Field("i8")})
        with store.writer() as writer:
            writer.extend({"x": np.zeros(i % 9, "u1"), "i": 1000 * k + i} for i in range(size))
        made.append(rs.open(path))
    return made


def drawn(loader: Loader) -> list[int]:
    return [int(i) for batch in loader for i in batch["i"]]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    order=st.sampled_from([Sequential(), Permuted(1), Shuffled(1), Shuffled(1, window=500)]),
    weights=st.lists(st.integers(1, 20), min_size=3, max_size=3),
    count=st.none() | st.integers(0, 600),
    epoch=st.integers(0, 3),
)
def test_each_stretch_has_its_proportions(
    stores: list[rs.Store], order: Any, weights: list[int], count: int | None, epoch: int
) -> None:
    mixture = Mixture(dict(zip(stores, weights, strict=True)), count=count)
    loader = Loader(mixture, order=order, batch=16, prefetch=0)
    loader.set_epoch(epoch)
    got = drawn(loader)

    assert len(got) == mixture.count and len(mixture) == sum(SIZES)
    if count is None and not epoch:
        assert len(set(got)) == len(got)  # none twice
    of = np.array(got) // 1000
    for k, weight in enumerate(weights):
        so_far = np.cumsum(of == k)
        exact = weight / sum(weights) * np.arange(1, len(got) + 1)
        assert (np.abs(so_far - exact) <= 1.5).all()


@pytest.mark.parametrize("order", [Permuted(1), Shuffled(1, window=500)])
def test_many_stores_of_one_weight_do_not_come_all_at_once(
    stores: list[rs.Store], order: Any
) -> None:
    whole = stores[0]
    views = [whole.select(slice(None)) for _ in range(21)]
    weights = [0.5, *[0.025] * 20]
    mixture = Mixture(dict(zip(views, weights, strict=True)), count=600)
    loader = Loader(mixture, order=order, batch=8)
    positions = np.concatenate([loader.samples_at(step) for step in range(len(loader))])
    of = positions // len(whole)
    for k, weight in enumerate(weights):
        assert np.abs(np.cumsum(of == k) - weight * np.arange(1, 601)).max() <= 1

    # What was saved before they were staggered goes on as it began.
    state = Loader(mixture, order=order, batch=8).state_dict()
    del state["geometry"]["order"]["staggered"]
    loader.load_state_dict(state)
    begun = np.concatenate([loader.samples_at(step) for step in range(3)]) // len(whole)
    assert begun.tolist() == [0] * 10 + [*range(1, 15)]


def test_a_store_goes_on_where_the_last_epoch_left_it(stores: list[rs.Store]) -> None:
    loader = Loader(Mixture({stores[0]: 1, stores[1]: 1}, count=100), order=Permuted(2))
    epochs = [drawn(loader) for _ in range(6)]

    first = [i for epoch in epochs for i in epoch if i < 1000]
    second = [i for epoch in epochs for i in epoch if i >= 1000]
    assert sorted(first) == list(range(300))  # six times 50: each once
    halves = second[:100], second[100:200], second[200:]
    assert all(sorted(half) == list(range(1000, 1100)) for half in halves)
    assert halves[0] != halves[1] != halves[2]


@pytest.mark.parametrize("order", [Permuted(3), Shuffled(3, window=900)])
def test_a_mixture_is_shared_and_goes_on(stores: list[rs.Store], order: Any) -> None:
    mixture = Mixture({stores[0]: 0.5, stores[2]: 0.5}, count=150)
    whole = drawn(Loader(mixture, order=order, batch=8))
    loader = Loader(mixture, order=order, batch=8)
    batches = iter(loader)
    seen = [int(i) for _ in range(4) for i in next(batches)["i"]]
    state = json.loads(json.dumps(loader.state_dict()))

    again = Loader(mixture, order=order, batch=8)
    again.load_state_dict(state)
    assert seen + drawn(again) == whole
    ranks = [Loader(mixture, order=order, batch=8, rank=r, world_size=3) for r in range(3)]
    assert sorted(i for rank in ranks for i in drawn(rank)) == sorted(whole)


def test_a_mixture_says_what_it_is(stores: list[rs.Store]) -> None:
    mixture = Mixture({stores[0]: 3, stores[1]: 1})

    assert "0.75" in repr(mixture) and mixture.count == 400
    assert mixture.counts.tolist() == [300, 100]


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: Mixture({a: 0, b: 1}),
        lambda a, b: Mixture({a: -1, b: 1}),
        lambda a, b: Mixture({a: "x"}),
        lambda a, b: Mixture({a: float("nan")}),
        lambda a, b: Mixture({}),
        lambda a, b: Mixture([a, b]),
        lambda a, b: Mixture({a: 1, b.select([]): 1}),
        lambda a, b: Mixture({a: 1}, count=-1),
        lambda a, b: Loader(Mixture({a: 1, b: 1}), where=[1]),
        lambda a, b: Loader(Mixture({a: 1, b: 1}), order=Weighted([1.0] * 400)),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(stores: list[rs.Store], make: Any) -> None:
    with pytest.raises(rs.UsageError):
        make(stores[0], stores[1])


def test_stores_of_other_fields_do_not_mix(stores: list[rs.Store], tmp_path: Path) -> None:
    other = rs.create(tmp_path / "other", {"y": rs.Field("i4")})
    with other.writer() as writer:
        writer.append({"y": 1})

    with pytest.raises(rs.SchemaError):
        Mixture({stores[0]: 1, other: 1})


@pytest.mark.parametrize("order", [Sequential(), Permuted(1), Shuffled(1)], ids=repr)
def test_a_mixture_stays_as_it_was_made_though_its_stores_grow(tmp_path: Path, order: Any) -> None:
    made = []
    for k in range(2):
        store = rs.create(tmp_path / str(k), {"i": rs.Field("i8")})
        with store.writer() as writer:
            writer.extend({"i": 1000 * k + i} for i in range(50))
        made.append(store)
    loaders = [Loader(Mixture({made[0]: 0.8, made[1]: 0.2}), order=order) for _ in range(2)]
    epochs = [drawn(loaders[0]) for _ in range(3)]
    assert drawn(loaders[1]) == epochs[0]

    with made[0].writer() as writer:
        writer.extend({"i": i} for i in range(50, 80))
    made[0].refresh()

    assert [drawn(loaders[1]) for _ in range(2)] == epochs[1:]


def test_a_state_of_another_mixture_or_of_stores_that_have_grown_is_refused(
    stores: list[rs.Store],
) -> None:
    a, b, c = stores
    mixture = Mixture({a: 0.5, b: 0.5}, count=60)
    state = Loader(mixture).state_dict()
    others = [
        Mixture({a: 0.4, b: 0.6}, count=60),
        Mixture({a: 0.5, b: 0.5}, count=59),
        Mixture({a: 0.5, c: 0.5}, count=60),
        Mixture({a: 0.5, b: 0.25, c: 0.25}, count=60),
        rs.concat([a, b]),
    ]
    for other in others:
        with pytest.raises(rs.UsageError, match="parts"):
            Loader(other).load_state_dict(state)
    Loader(Mixture({a: 1, b: 1}, count=60)).load_state_dict(state)
    # A store that grew would have the samples of those after it at other places.
    state = Loader(rs.concat([a.select(slice(0, 90)), b])).state_dict()
    for parts in ([a, b], [a.select(slice(0, 95)), b.select(slice(0, 95))]):
        with pytest.raises(rs.UsageError, match="parts"):
            Loader(rs.concat(parts).select(fields=["i"])).load_state_dict(state)

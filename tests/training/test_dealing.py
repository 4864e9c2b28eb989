"""Every order, rule, number of processes and workers, and every place to go on from: the samples of
an epoch come exactly once, and a run that was interrupted equals one that was not, bit by bit."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.samples import Samples
from raggedstore.training import (
    Bucketed,
    Crop,
    FixedSize,
    Loader,
    Mixture,
    Packed,
    PackedRows,
    Permuted,
    Sequential,
    Shuffled,
    TokenBudget,
    Weighted,
    Windowed,
)
from raggedstore.training.sizes import Dims
from tests.training.epochs import handed_over

COUNT = 157
ORDERS = [
    Sequential(),
    Permuted(3),
    Shuffled(3, window=6000),
    Shuffled(3, window=900),
    Shuffled(4, window=900, lanes=3),
]
RULES = [
    FixedSize(10),
    FixedSize(1),
    FixedSize(400),
    TokenBudget("a", 120),
    TokenBudget("a", 100, multiple_of=8),
    TokenBudget("a", 90, padded=False),
    TokenBudget("image", 60),
    Bucketed("a", 8),
    Bucketed("a", 8, edges=[10, 20]),
    Bucketed("image", 7, quantiles=4),
]
CUTTING = [
    Packed("a", 32, rows=4),
    Packed(("a", "b"), 50, rows=3),
    Packed("a", 20, rows=2, longer="drop"),
    Windowed("a", 8, streams=4),
    Windowed(("a", "b"), 8, stride=5, streams=3),
]


def length(i: int) -> int:
    return (i * 37) % 41


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    path = tmp_path_factory.mktemp("dealing") / "store"
    store = rs.create(
        path,
        {
            "a": rs.Field("int32", (None,)),
            "b": rs.Field("float32", (None, 2)),
            "image": rs.Field("uint8", (None, None)),
            "i": rs.Field("int64"),
        },
    )
    with store.writer() as writer:
        writer.extend(
            {
                "a": np.arange(length(i)) + 1000 * i,
                "b": np.full((length(i), 2), i, "f4"),
                "image": np.full((i % 5, i % 7), i % 256, "u1"),
                "i": i,
            }
            for i in range(COUNT)
        )
    return rs.open(path)


def plain(batch: Any) -> Any:
    """A batch as lists, to compare."""
    if isinstance(batch, dict):
        return {name: plain(column) for name, column in batch.items()}
    if isinstance(batch, PackedRows):
        return [plain(batch.batch), batch.row.tolist(), batch.shape]
    if isinstance(batch, rs.RaggedBatch):
        return [batch.values.tolist(), batch.shapes.tolist()]
    return batch.tolist() if isinstance(batch, np.ndarray) else batch


def run(loader: Loader, workers: int = 1) -> list[Any]:
    """One epoch, by itself or as workers hand it over."""
    made = loader if workers == 1 else handed_over(loader, workers)
    return [plain(batch) for batch in made]


def ids(batches: list[Any]) -> Counter[int]:
    return Counter(i for batch in batches for i in batch["i"])


def steps_of(batches: list[Any], fields: str = "a") -> Counter[int]:
    """How often each value of field a came."""
    parts = [batch["a"][0] if "reset" in batch else batch["a"][0][0] for batch in batches]
    return Counter(itertools.chain.from_iterable(parts))


def all_steps(where: Any = range(COUNT)) -> Counter[int]:
    return Counter(1000 * i + t for i in where for t in range(length(i)))


def made_of(store: rs.Store, kind: str, order: Any) -> Samples:
    """The samples of a store as they are, or of two parts of it side by side, or mixed."""
    if kind == "plain":
        return store
    parts = [store.select(slice(60)), store.select(slice(60, COUNT))]
    if kind == "mixed" and not isinstance(order, Weighted):
        return Mixture(dict(zip(parts, (2, 1), strict=True)), count=140)
    return rs.concat(parts)


def ranks(store: Samples, world: int, **options: Any) -> list[Loader]:
    return [Loader(store, rank=r, world_size=world, prefetch=0, **options) for r in range(world)]


KINDS = ["plain", "side by side", "mixed"]
WEIGHTED = Weighted(np.arange(COUNT) % 3, seed=5, count=200)
MANY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(
    order=st.sampled_from(ORDERS),
    rule=st.sampled_from(RULES),
    world=st.integers(1, 4),
    workers=st.integers(1, 3),
    epoch=st.integers(0, 5),
)
def test_processes_share_each_epoch_exactly(
    store: rs.Store, order: Any, rule: Any, world: int, workers: int, epoch: int
) -> None:
    loaders = ranks(store, world, order=order, batch=rule)
    parts = []
    for loader in loaders:
        loader.set_epoch(epoch)
        batches = len(loader)
        parts.append(run(loader))
        assert batches == len(parts[-1])
        loader.set_epoch(epoch)
        assert run(loader, workers) == parts[-1]

    assert sum((ids(part) for part in parts), Counter()) == Counter(range(COUNT))
    lengths = [len(part) for part in parts]
    assert sorted(lengths, reverse=True) == lengths and lengths[0] - lengths[-1] <= 1


@MANY
@given(
    order=st.sampled_from(ORDERS),
    rule=st.sampled_from(RULES + CUTTING[:3]),
    world=st.integers(1, 5),
    even=st.sampled_from(["pad", "drop"]),
    drop_last=st.booleans(),
)
def test_even_processes_have_equally_many_batches(
    store: rs.Store, order: Any, rule: Any, world: int, even: Any, drop_last: bool
) -> None:
    options = {"order": order, "batch": rule, "drop_last": drop_last}
    everything = run(Loader(store, prefetch=0, **_same_lanes(options, world)))
    parts = [run(loader) for loader in ranks(store, world, even=even, **options)]

    steps = len(everything) // world + (even == "pad" and bool(len(everything) % world))
    assert [len(part) for part in parts] == [steps] * world
    dealt = [parts[i % world][i // world] for i in range(steps * world)]
    there = min(len(everything), len(dealt))
    assert dealt[:there] == everything[:there]
    for extra in dealt[there:]:
        assert extra in everything[-(len(everything) % world) :]


def _same_lanes(options: dict[str, Any], world: int) -> dict[str, Any]:
    """By default there are as many lanes as processes."""
    order = options["order"]
    if isinstance(order, Shuffled) and order.lanes is None:
        return {**options, "order": Shuffled(order.seed, order.window, lanes=world)}
    return options


@MANY
@given(
    kind=st.sampled_from(KINDS),
    order=st.sampled_from([*ORDERS, WEIGHTED]),
    rule=st.sampled_from(RULES + CUTTING),
    world=st.integers(1, 3),
    even=st.sampled_from([None, "pad", "drop"]),
    drop_last=st.booleans(),
    crop=st.sampled_from([(), Crop("image", 2, seed=1)]),
    data=st.data(),
)
def test_an_interrupted_run_equals_one_that_was_not(
    store: rs.Store, kind: str, data: Any, world: int, **options: Any
) -> None:
    samples = made_of(store, kind, options["order"])
    if options["crop"] and options["rule"].fields == ("image",):
        options["crop"] = ()
    options["batch"] = options.pop("rule")
    rank = data.draw(st.integers(0, world - 1))
    whole = ranks(samples, world, **options)[rank]
    batches = run(whole)
    following = run(whole)
    stop = data.draw(st.integers(0, len(batches)))

    first = ranks(samples, world, **options)[rank]
    iterator = iter(first)
    got = [plain(next(iterator)) for _ in range(stop)]
    state = json.loads(json.dumps(first.state_dict()))
    second = ranks(samples, world, **options)[rank]
    second.load_state_dict(state)
    shared = run(copy.copy(second), data.draw(st.integers(2, 3)))
    rest = run(second)

    assert got + rest == batches
    assert shared == rest
    assert second.epoch == 1
    assert run(second) == following
    if stop:
        assert json.loads(json.dumps(whole.state_after(stop, epoch=0))) == state


@MANY
@given(
    kind=st.sampled_from(KINDS),
    order=st.sampled_from([*ORDERS, WEIGHTED]),
    rule=st.sampled_from(RULES + CUTTING[:3]),
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    even=st.sampled_from([None, "pad", "drop"]),
    epoch=st.integers(0, 2),
    data=st.data(),
)
def test_a_run_goes_on_with_other_numbers_of_processes(
    store: rs.Store,
    kind: str,
    order: Any,
    rule: Any,
    before: int,
    after: int,
    even: Any,
    epoch: int,
    data: Any,
) -> None:
    samples = made_of(store, kind, order)
    options = {"order": order, "batch": rule}
    alone = Loader(samples, prefetch=0, **_same_lanes(options, before))
    alone.set_epoch(epoch)
    everything = run(alone)
    loaders = ranks(samples, before, even=even, **options)
    for loader in loaders:
        loader.set_epoch(epoch)
    iterators = [iter(loader) for loader in loaders]
    steps = data.draw(st.integers(0, min(len(loader) for loader in loaders)))
    seen = [plain(next(iterator)) for _ in range(steps) for iterator in iterators]
    state = json.loads(json.dumps(data.draw(st.sampled_from(loaders)).state_dict()))

    others = ranks(samples, after, even=even, **options)
    for loader in others:
        loader.load_state_dict(state)
    rest = [run(loader, data.draw(st.integers(1, 2))) for loader in others]

    assert seen[: len(everything)] == everything[: len(seen)]
    left = everything[len(seen) :]
    for rank, part in enumerate(rest):
        mine = left[rank::after]
        if even == "drop":
            assert part == mine[: len(left) // after]
            continue
        assert part[: len(mine)] == mine
        assert len(part) == (-(-len(left) // after) if even else len(mine))
        assert all(extra in everything for extra in part[len(mine) :])


@MANY
@given(order=st.sampled_from(ORDERS), rule=st.sampled_from(CUTTING), world=st.integers(1, 3))
def test_parts_join_to_the_samples(store: rs.Store, order: Any, rule: Any, world: int) -> None:
    if getattr(rule, "stride", None) == 5:
        return  # overlaps; tests/training/test_recurrent.py has it
    parts = [run(loader) for loader in ranks(store, world, order=order, batch=rule)]

    came = sum((steps_of(part) for part in parts), Counter())

    kept = range(COUNT)
    if getattr(rule, "longer", "") == "drop":
        kept = [i for i in kept if length(i) <= rule.length]  # type: ignore[assignment]
    assert came == all_steps(kept)


def test_draws_with_replacement_go_on_too(store: rs.Store) -> None:
    weights = np.arange(COUNT) % 3
    order = Weighted(weights, seed=5, count=1000)
    loader = Loader(store, order=order, batch=16)
    batches = run(loader)

    drawn = ids(batches)
    assert sum(drawn.values()) == 1000 and len(loader) == 63
    assert not any(i % 3 == 0 for i in drawn)
    twice = sum(n for i, n in drawn.items() if i % 3 == 2)
    assert 600 < twice < 733  # of 667
    loader.load_state_dict(loader.state_after(20, epoch=0))
    assert run(loader) == batches[20:]


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("order", [Permuted(3), Weighted(np.arange(COUNT) + 1.0, 3)])
def test_where_a_state_says_that_its_unit_ends_the_sizes_of_the_next_are_read_with_its_own(
    store: rs.Store, order: Any, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Packed, "pool", 32)

    def loader() -> Loader:
        made = Loader(store, fields=["a"], order=order, batch=Packed("a", 50, rows=4), prefetch=0)
        monkeypatch.setattr(made._measures.dims("a"), "_asked", -(10**9))  # never all of them
        return made

    whole, asked = loader(), []
    batches, states = [], []
    for batch in whole:
        batches.append(plain(batch))
        states.append(whole.state_dict())
    ask = Dims.__call__

    def counted(self: Dims, positions: np.ndarray) -> np.ndarray:
        asked.append(len(positions))
        return ask(self, positions)

    monkeypatch.setattr(Dims, "__call__", counted)
    together = ends = 0
    for done, state in enumerate(states[:-1], 1):
        asked.clear()
        ends += state["unit"] < states[-1]["unit"] and state["given"] == state["has"]
        if not noted:
            del state["has"]  # as of a state that an earlier raggedstore wrote
        resumed = loader()
        resumed.load_state_dict(state)
        assert [plain(batch) for batch in resumed] == batches[done:]
        # Of both at once, and then of what each has left over from the one before.
        together += len(asked) > 2 and asked[1] + asked[2] < asked[0]
    assert ends > 1
    assert together == (ends if noted else 0)


def test_who_saw_what_when(store: rs.Store) -> None:
    loader = Loader(store, order=Shuffled(1, window=900), batch=Bucketed("a", 6), world_size=2)
    batches = run(loader)

    for step in (0, 3, len(batches) - 1):
        assert loader.samples_at(step, epoch=0).tolist() == batches[step]["i"]
        assert loader.step_of(batches[step]["i"][-1], epoch=0) == step
    with pytest.raises(IndexError):
        loader.samples_at(len(batches), epoch=0)
    other = Loader(
        store, order=Shuffled(1, window=900), batch=Bucketed("a", 6), world_size=2, rank=1
    )
    assert other.step_of(batches[0]["i"][0], epoch=0) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 9}, "format 9"),
        ({"options": {}}, "no state"),
        ({"epoch": -1}, "epoch must be at least 0"),
        ({"epoch": 1.5}, "epoch must be an int"),
        ({"left": [[[1, 2], [3], None, None]]}, "damaged"),
        ({"left": [[[10**6], None, None, None]]}, "damaged"),
        ({"samples": 10**6}, "only 157"),
        ({"geometry": None}, "no state"),
        ({"refreshed": COUNT - 1}, "refreshed must be at least 157"),
        ({"refreshed": 10**6}, "only 157"),
        ({"since": -1}, "since must be at least 0"),
        ({"taking_part": "x"}, "lets other samples take part"),
    ],
)
def test_states_that_are_none_are_refused_and_change_nothing(
    store: rs.Store, change: dict[str, Any], words: str
) -> None:
    loader = Loader(store, batch=20)
    state = loader.state_dict()

    with pytest.raises(rs.UsageError, match=words):
        loader.load_state_dict({**state, **change})
    with pytest.raises(rs.UsageError):
        loader.load_state_dict({})

    assert ids(run(loader)) == Counter(range(COUNT))


def test_a_state_of_another_loader_says_what_differs(store: rs.Store) -> None:
    state = Loader(store, order=Permuted(1)).state_dict()

    with pytest.raises(rs.UsageError, match=r"order=Permuted\(seed=1\).*Permuted\(seed=2\)"):
        Loader(store, order=Permuted(2)).load_state_dict(state)
    with pytest.raises(rs.UsageError, match="where"):
        Loader(store, order=Permuted(1), where=[1, 2]).load_state_dict(state)


def test_a_state_is_small(store: rs.Store) -> None:
    loader = Loader(store, order=Shuffled(1, window=900), batch=Bucketed("a", 64))
    next(iter(loader))

    assert len(json.dumps(loader.state_dict())) < 2000


def test_old_samples_keep_their_order_when_new_ones_come(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "grows", {"a": rs.Field("u1", (None,)), "i": rs.Field("i8")})

    def add(first: int, last: int) -> None:
        with rs.open(store.path, "a").writer() as writer:
            writer.extend({"a": np.zeros(i % 50, "u1"), "i": i} for i in range(first, last))

    add(0, 3000)
    store.refresh()
    orders = [Permuted(3), Shuffled(3, window="64kB"), Shuffled(3, window="20kB")]
    loaders = [Loader(store, order=order, batch=64) for order in orders]
    before = [[i for b in run(loader) for i in b["i"]] for loader in loaders]

    for loader in loaders:
        loader.set_epoch(0)
    half = [iter(loader) for loader in loaders]
    begun = [plain(next(iterator)) for iterator in half]
    states = [loader.state_dict() for loader in loaders]
    add(3000, 3300)

    for loader, old, iterator, first in zip(loaders, before, half, begun, strict=True):
        assert loader.refresh() == 3300
        on = [first, *map(plain, iterator)]
        assert [i for b in on for i in b["i"]] == old  # what it began with
        loader.set_epoch(0)
        new = [i for b in run(loader) for i in b["i"]]
        assert sorted(new) == list(range(3300))
        assert [i for i in new if i < 3000] == old
        assert np.ptp(np.flatnonzero(np.array(new) >= 3000)) > 1000  # all over
    for order, state, old, first in zip(orders, states, before, begun, strict=True):
        fresh = Loader(rs.open(store.path), order=order, batch=64)
        fresh.load_state_dict(state)
        assert [i for b in [first, *run(fresh)] for i in b["i"]] == old
        assert len(fresh.samples) == 3000


def test_an_epoch_follows_the_store_only_where_it_is_asked_to(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "grows", {"i": rs.Field("i8")})
    with store.writer() as writer:
        writer.extend({"i": i} for i in range(10))
    stays, follows = Loader(rs.open(store.path)), Loader(rs.open(store.path), follow=True)
    first = iter(follows)
    with store.writer() as writer:
        writer.append({"i": 10})

    assert sum(len(b["i"]) for b in first) == 10
    assert sum(len(b["i"]) for b in stays) == 10
    assert sum(len(b["i"]) for b in follows) == 11
    with pytest.raises(rs.UsageError, match="only a loader of a store"):
        Loader(store.select([1, 2]), follow=True)
    with pytest.raises(rs.UsageError, match="keys given one by one"):
        Loader(store.split({"a": 0.5}, by=[0] * 11)["a"], follow=True)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_refresh_leaves_the_states_of_an_epoch_that_is_on_as_they_were(
    tmp_path: Path, loaded: bool
) -> None:
    store = rs.create(tmp_path / "grows", {"i": rs.Field("i8")})

    def add(first: int, last: int) -> None:
        with rs.open(store.path, "a").writer() as writer:
            writer.extend({"i": i} for i in range(first, last))

    def made() -> Loader:
        return Loader(rs.open(store.path), order=Permuted(1), batch=10)

    add(0, 100)
    loader = made()
    batches = iter(loader)
    begun = ids_of([next(batches) for _ in range(4)])
    state = loader.state_dict()
    add(100, 160)
    if loaded:
        loader = made()
        loader.load_state_dict(state)
        assert loader.refresh() == 160
        batches = iter(loader)
    else:
        assert loader.refresh() == 160
    begun += ids_of([next(batches)])
    again = made()
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert loader.step_of(begun[0]) == 0 and len(loader) == 10
    # What is said of the next epoch is said of what it will have.
    planned = [loader.samples_at(step, epoch=1).tolist() for step in range(16)]
    third = loader.state_after(3, epoch=1)

    rest = ids_of(batches)
    assert sorted(begun + rest) == list(range(100))
    assert ids_of(again) == rest
    assert len(loader.samples) == 160
    assert [b["i"].tolist() for b in loader] == planned
    assert sorted(i for batch in planned for i in batch) == list(range(160))
    again.load_state_dict(third)
    assert [b["i"].tolist() for b in again] == planned[3:]


def test_what_was_seen_before_the_store_grew_is_still_told(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "grows", {"i": rs.Field("i8")})

    def add(first: int, last: int) -> None:
        with rs.open(store.path, "a").writer() as writer:
            writer.extend({"i": i} for i in range(first, last))

    def told(loader: Loader, epoch: int) -> list[list[int]]:
        count = len(seen[epoch])
        return [loader.samples_at(step, epoch=epoch).tolist() for step in range(count)]

    add(0, 100)
    loader = Loader(rs.open(store.path), order=Shuffled(1, window=200), batch=10, follow=True)
    seen: list[list[list[int]]] = []
    for epoch in range(6):
        seen.append([b["i"].tolist() for b in loader])
        if epoch % 2:
            add(100 * (epoch + 1) // 2, 100 * (epoch + 3) // 2)
    assert [sum(map(len, batches)) for batches in seen] == [100, 100, 200, 200, 300, 300]

    assert [told(loader, epoch) for epoch in range(6)] == seen
    assert loader.step_of(seen[1][3][0], epoch=1) == 3
    other = Loader(rs.open(store.path), order=Shuffled(1, window=200), batch=10)
    other.load_state_dict(loader.state_after(3, epoch=1))
    assert [b["i"].tolist() for b in other] == seen[1][3:]

    # A state says from which epoch on it holds, and not what was before.
    other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert [told(other, epoch) for epoch in (4, 5)] == seen[4:]
    for ask in (other.samples_at, other.step_of, other.state_after):
        with pytest.raises(rs.UsageError, match=r"epoch 3 was planned for other samples.*epoch 4"):
            ask(2, epoch=3)
    # An epoch gone through again is over what there is now.
    loader.set_epoch(1)
    seen[1] = [b["i"].tolist() for b in loader]
    assert [told(loader, epoch) for epoch in (0, 1)] == seen[:2]


def test_epochs_of_another_number_of_processes_are_not_told(store: rs.Store) -> None:
    two = Loader(store, batch=5, rank=1, world_size=2)
    run(two)
    three = Loader(store, batch=5, rank=1, world_size=3)
    three.load_state_dict(two.state_dict())
    with pytest.raises(rs.UsageError, match="other numbers of processes"):
        three.samples_at(2, epoch=0)
    assert three.samples_at(0, epoch=1).tolist() == [5, 6, 7, 8, 9]


def test_a_state_remembers_what_it_was_refreshed_to(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "grows", {"i": rs.Field("i8")})
    with store.writer() as writer:
        writer.extend({"i": i} for i in range(100))
    loader = Loader(rs.open(store.path), order=Permuted(1), batch=10)
    batches = iter(loader)
    next(batches)
    opened_before = Loader(rs.open(store.path), order=Permuted(1), batch=10)
    with store.writer() as writer:
        writer.extend({"i": i} for i in range(100, 160))
    assert loader.refresh() == 160
    state = json.loads(json.dumps(loader.state_dict()))
    rest, after = ids_of(batches), ids_of(loader)
    assert len(after) == 160

    for again in opened_before, Loader(rs.open(store.path), order=Permuted(1), batch=10):
        again.load_state_dict(state)
        assert ids_of(again) == rest
        assert ids_of(again) == after


def test_functions_of_one_name_that_let_other_samples_take_part_are_told_apart(
    tmp_path: Path,
) -> None:
    store = rs.create(tmp_path / "grows", {"i": rs.Field("i8")})

    def under(most: int) -> Loader:
        return Loader(rs.open(store.path), where=lambda v: v["i"] % 100 < most, batch=10)

    with store.writer() as writer:
        writer.extend({"i": i} for i in range(100))
    loader = under(80)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    with store.writer() as writer:
        writer.extend({"i": i} for i in range(100, 200))

    other = under(50)
    with pytest.raises(rs.UsageError, match="lets other samples take part"):
        other.load_state_dict(state)
    assert len(ids_of(other)) == 100
    same = under(80)
    same.load_state_dict(state)
    assert ids_of(same) == ids_of(batches)


def test_a_mask_is_looked_at_once_and_not_for_every_state(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(store, where=np.arange(COUNT) % 2 == 0, batch=10)
    states = [loader.state_dict()]
    monkeypatch.setattr("raggedstore.training.covering.xxhash", None)
    for _ in loader:
        states.append(loader.state_dict())
    assert len({state["options"]["where"] for state in states}) == 1


def test_quantiles_are_measured_once_there_are_samples(tmp_path: Path) -> None:
    with rs.create(tmp_path / "store", {"a": rs.Field("u1", (None,))}) as store:
        loader = Loader(store, batch=Bucketed("a", 8, quantiles=4), follow=True)
        assert list(loader) == [] and loader.geometry["batch"]["edges"] == []
        with store.writer() as writer:
            writer.extend({"a": np.zeros(n, "u1")} for n in range(10, 510))
        assert sum(len(batch["a"]) for batch in loader) == 500
        assert len(loader.geometry["batch"]["edges"]) == 3


def test_states_are_plain_whatever_the_numbers_were_given_as(store: rs.Store) -> None:
    loader = Loader(store, order=Shuffled(0, lanes=np.int64(2)), batch=10)
    loader.set_epoch(np.int64(3))
    state = json.loads(json.dumps(loader.state_dict()))
    same = Loader(store, order=Shuffled(0, lanes=2), batch=10)
    same.load_state_dict(state)
    assert same.epoch == 3
    with pytest.raises(rs.UsageError, match=r"epoch must be at most 2\*\*32"):
        loader.set_epoch(2**32 + 1)
    with pytest.raises(rs.UsageError, match=r"epoch must be at most 2\*\*32"):
        same.load_state_dict({**state, "epoch": 2**40})


def test_quantiles_are_those_of_cropped_samples(tmp_path: Path) -> None:
    with rs.create(tmp_path / "store", {"a": rs.Field("u1", (None,))}) as store:
        with store.writer() as writer:
            writer.extend({"a": np.zeros(n, "u1")} for n in range(10, 510))
        cropped = Loader(
            store, crop=Crop("a", 100), batch=Bucketed("a", 8, quantiles=4), order=Permuted(1)
        )
        assert len(cropped.geometry["batch"]["edges"]) >= 1
        assert max(cropped.geometry["batch"]["edges"]) <= 100


def test_processes_do_not_follow_a_store_each_by_itself(store: rs.Store) -> None:
    with pytest.raises(rs.UsageError, match="refresh"):
        Loader(store, world_size=2, follow=True)


def test_an_epoch_that_others_began_cannot_be_counted_from_its_beginning(store: rs.Store) -> None:
    begun = Loader(store, batch=5, rank=1, world_size=2)
    batches = iter(begun)
    next(batches)
    loader = Loader(store, batch=5, rank=1, world_size=3)
    loader.load_state_dict(begun.state_dict())
    next(iter(loader))
    for ask in (loader.state_after, loader.samples_at, loader.step_of):
        with pytest.raises(rs.UsageError, match="another number of processes"):
            ask(2)
        ask(2, epoch=1)
    same = Loader(store, batch=5, rank=0, world_size=2)
    same.load_state_dict(begun.state_dict())
    assert same.samples_at(0).tolist() == [0, 1, 2, 3, 4]


def test_a_loader_of_a_part_takes_in_what_that_part_gets(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "grows", {"i": rs.Field("i8"), "label": rs.Field("i8")})

    def add(first: int, last: int) -> None:
        with rs.open(store.path, "a").writer() as writer:
            writer.extend({"i": i, "label": i % 3} for i in range(first, last))

    def train() -> rs.samples.Part:
        parts = rs.open(store.path).split({"train": 0.8, "valid": 0.2}, seed=1, by="label")
        return parts["train"]

    add(0, 1000)
    part = train()
    loader = Loader(part, order=Shuffled(2, window="1kB"), batch=16, follow=True)
    iterator = iter(loader)
    begun = ids([next(iterator) for _ in range(9)])
    state = loader.state_dict()
    old = begun + ids(iterator)
    add(1000, 1500)

    assert set(ids(loader)) == set(train()["i"])
    assert len(part) == 1200 and len(loader.samples) == 1200
    for samples in (part, train()):
        resumed = Loader(samples, order=Shuffled(2, window="1kB"), batch=16)
        resumed.load_state_dict(state)
        assert begun + ids(resumed) == old


def test_rules_say_which_samples_take_part_now_and_later(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "grows", {"a": rs.Field("u1", (None,)), "i": rs.Field("i8")})

    def add(first: int, last: int) -> None:
        with rs.open(store.path, "a").writer() as writer:
            writer.extend({"a": np.zeros(i % 7, "u1"), "i": i} for i in range(first, last))

    add(0, 100)
    store.refresh()
    rules: list[Any] = ["a.length < 3 and i != 1", lambda v: (v.length("a") < 3) & (v["i"] != 1)]
    kept = [i for i in range(130) if i % 7 < 3 and i != 1]
    for where in rules:
        loader = Loader(store, where=where, order=Permuted(1), batch=8)
        assert loader.left_out == 100 - sum(i < 100 for i in kept)
        assert set(ids(run(loader))) == {i for i in kept if i < 100}
        states = loader.state_after(2, epoch=0)
        rest = [i for b in run(_at(loader, states)) for i in b["i"]]
        if len(store) == 100:
            add(100, 130)
        loader.refresh()
        loader.set_epoch(0)
        assert set(ids(run(loader))) == set(kept)
        assert [i for b in run(_at(loader, states)) for i in b["i"]] == rest
        assert loader.left_out == 100 - sum(i < 100 for i in kept)
        store = rs.open(store.path, version=1)

    masked = Loader(rs.open(store.path, version=1), where=np.arange(100) % 2 == 0)
    masked.refresh()
    assert set(ids(run(masked))) == set(range(0, 100, 2))


def _at(loader: Loader, state: Any) -> Loader:
    loader.load_state_dict(state)
    return loader


def test_an_order_does_not_depend_on_prefetch(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "large", {"x": rs.Field("u1", (None,)), "i": rs.Field("i8")})
    with store.writer() as writer:
        writer.extend({"x": np.zeros(10_000, "u1"), "i": i} for i in range(227))
    loaders = [
        Loader(store, order=Shuffled(0), batch=10, prefetch=p, budget="5MB") for p in (0, 2, 9)
    ]

    assert len({str(ids_in_order(loader)) for loader in loaders}) == 1
    assert len({str(loader.geometry) for loader in loaders}) == 1


def ids_in_order(loader: Loader) -> list[int]:
    return [i for batch in run(loader) for i in batch["i"]]


def ids_of(batches: Any) -> list[int]:
    return [int(i) for batch in batches for i in batch["i"]]


@pytest.mark.parametrize("rule", [Packed(("a", "c"), 32), Windowed(("a", "c"), 8, streams=2)])
def test_fields_that_are_cut_together_must_be_of_one_length(tmp_path: Path, rule: Any) -> None:
    vector = rs.Field("u1", (None,))
    with rs.create(tmp_path / "store", {"a": vector, "c": vector}) as made:
        with made.writer() as writer:
            for i in range(20):
                length = i % 5 + 2
                more = np.zeros(length + (i == 13), "u1")
                writer.append({"a": np.zeros(length, "u1"), "c": more})
        with pytest.raises(rs.SampleError, match=r"sample 13: 'a' is 5 long, and 'c'.*6"):
            list(Loader(made, batch=rule))


def test_a_stream_that_has_run_out_shows_no_sample(store: rs.Store) -> None:
    loader = Loader(store, where=[3, 40], batch=Windowed("a", 2, streams=2))
    last = len(loader) - 1

    assert length(3) == 29 and length(40) == 4
    assert loader.samples_at(0, epoch=0).tolist() == [0, 1]
    assert loader.samples_at(last, epoch=0).tolist() == [0]


def test_other_weights_are_another_order(store: rs.Store) -> None:
    state = Loader(store, order=Weighted(np.ones(COUNT))).state_dict()

    with pytest.raises(rs.UsageError, match="order"):
        Loader(store, order=Weighted(np.arange(COUNT))).load_state_dict(state)


@pytest.mark.parametrize("added", [0, 40])
def test_a_repair_that_moves_samples_is_noticed(tmp_path: Path, added: int) -> None:
    store = rs.create(tmp_path / "store", {"i": rs.Field("i8")})
    for day in range(3):
        with store.writer() as writer:
            writer.extend({"i": 20 * day + i} for i in range(20))
    store.refresh()
    rule = Loader(store, where="i % 2 == 0", order=Permuted(1), batch=4)
    listed = Loader(rs.open(store.path), where=[3, 50], batch=1)
    stays = Loader(rs.open(store.path), order=Permuted(1), batch=4)
    next(batches := iter(stays))
    state = json.loads(json.dumps(stays.state_dict()))
    del batches
    sorted((store.path / "segments").glob("*.h5"))[0].write_bytes(b"")
    rs.open(store.path, "a").repair()
    with rs.open(store.path, "a").writer() as writer:
        writer.extend({"i": 2 * i + 100} for i in range(added))

    rule.refresh()
    assert sorted(ids_of(rule)) == [i for i in rs.open(store.path)["i"][:] if i % 2 == 0]
    with pytest.raises(rs.VersionError, match="repair"):
        listed.refresh()
    with pytest.raises(rs.UsageError, match="repairs"):
        Loader(rs.open(store.path), order=Permuted(1), batch=4).load_state_dict(state)


def test_weights_for_other_samples_are_refused_and_change_nothing(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"i": rs.Field("i8")})
    with store.writer() as writer:
        writer.extend({"i": i} for i in range(10))
    loader = Loader(rs.open(store.path), order=Weighted(np.ones(10), seed=1), batch=5)
    batches = iter(loader)
    next(batches)
    with store.writer() as writer:
        writer.append({"i": 10})

    with pytest.raises(rs.UsageError, match="10 weights"):
        loader.refresh()
    assert len(list(batches)) == 1 and len(list(loader)) == 2
    assert len(loader.samples) == 10 and "10 samples" in repr(loader)

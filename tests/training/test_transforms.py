"""Transforms against the same functions applied by hand, wherever they run, and what must not hang.

What is random may depend on seed, epoch and sample alone.
"""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
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
    Weighted,
    Windowed,
)
from raggedstore.training.reading import Pace
from tests.training.epochs import handed_over

SCHEMA = {
    "audio": rs.Field(">i2", (None,)),
    "image": rs.Field("uint8", (None, None, 3)),
    "label": rs.Field(">i8"),
    "vector": rs.Field("float32", (3,)),
    "text": rs.Field("str"),
    "raw": rs.Field("bytes"),
}
COUNT = 101
ORDERS = [Sequential(), Permuted(3), Shuffled(3, window=9000), Shuffled(3, window=200)]
MANY = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sample(i: int) -> dict[str, Any]:
    return {
        "audio": np.arange(i % 50, dtype="i2"),
        "image": np.full((i % 4, i % 3, 3), i % 256, "u1"),
        "label": i,
        "vector": np.full(3, i, "f4"),
        "text": "да" * (i % 5) + str(i),
        "raw": bytes(i % 6),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    path = tmp_path_factory.mktemp("transforms") / "store"
    store = rs.create(path, SCHEMA)
    with store.writer() as writer:
        writer.extend(sample(i) for i in range(COUNT))
    return rs.open(path)


def working() -> list[Any]:
    """The threads and processes of loaders."""
    threads = [t for t in threading.enumerate() if t.name.startswith("raggedstore-")]
    return [*threads, *multiprocessing.active_children()]


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    yield
    gc.collect()
    for worker in working():
        worker.join(10)
    assert not working()


def plain(value: Any) -> Any:
    """A batch as lists, with the types of its columns."""
    if isinstance(value, dict):
        return {name: plain(column) for name, column in value.items()}
    if isinstance(value, PackedRows):
        return ["packed", plain(value.batch), value.row.tolist(), value.shape]
    if isinstance(value, rs.RaggedBatch):
        return ["ragged", value.dtype, value.values.tolist(), value.shapes.tolist()]
    if isinstance(value, np.ndarray):
        return [value.dtype, value.shape, value.tolist()]
    return value


def run(loader: Loader, workers: int = 1) -> list[Any]:
    """One epoch, by itself or as workers hand it over."""
    made = loader if workers == 1 else handed_over(loader, workers)
    return [plain(batch) for batch in made]


def untouched(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


def copied(sample: dict[str, Any]) -> dict[str, Any]:
    """What is put together anew, being no longer what was read."""
    return {n: np.array(v) if isinstance(v, np.ndarray) else v for n, v in sample.items()}


def other(sample: dict[str, Any]) -> dict[str, Any]:
    label = int(sample["label"])
    return {
        "audio": sample["audio"].astype("f4")[:, None] / 2 + np.zeros(2, "f4"),
        "vector": np.append(sample["vector"], [label]).astype("f4"),
        "sevens": np.full(7, label),
        "square": label**2,
        "name": sample["text"].upper(),
        "flag": np.bool_(label % 2),
    }


# What comes out


@MANY
@given(
    order=st.sampled_from(ORDERS),
    batch=st.sampled_from([FixedSize(1), FixedSize(10), FixedSize(300), Bucketed("audio", 8)]),
    prefetch=st.integers(0, 2),
    threads=st.integers(1, 3),
    budget=st.sampled_from([2000, "512MB"]),
    fn=st.sampled_from([untouched, copied, dict]),
)
def test_samples_that_nothing_happens_to_make_the_same_batches(
    store: rs.Store, threads: int, fn: Any, **options: Any
) -> None:
    loader = Loader(store, **options)
    mapped = loader.map(fn, per="sample", threads=threads)

    assert run(mapped) == run(loader)


@MANY
@given(
    order=st.sampled_from(ORDERS),
    size=st.integers(1, 120),
    prefetch=st.integers(0, 2),
    threads=st.integers(1, 3),
    crop=st.sampled_from([(), Crop("audio", 9, seed=2)]),
)
def test_each_sample_goes_through_the_function(
    store: rs.Store, size: int, threads: int, **options: Any
) -> None:
    base = Loader(store, batch=size, **options)
    samples = [
        other({"label": i, "text": t, "audio": a, "vector": v})
        for b in base
        for i, t, a, v in zip(b["label"], b["text"], b["audio"], b["vector"], strict=True)
    ]
    base.set_epoch(0)

    batches = list(base.map(other, per="sample", threads=threads))

    for i, batch in enumerate(batches):
        rows = samples[i * size : (i + 1) * size]
        assert list(batch) == ["audio", "vector", "sevens", "square", "name", "flag"]
        for name in ("audio", "sevens"):
            assert isinstance(batch[name], rs.RaggedBatch)
            wanted = rs.RaggedBatch.from_list([row[name] for row in rows])
            assert plain(batch[name]) == plain(wanted)
        assert batch["vector"].shape == (len(rows), 4)
        assert batch["square"].tolist() == [row["square"] for row in rows]
        assert batch["flag"].dtype == np.bool_
        assert batch["name"] == [row["name"] for row in rows]


def test_chains_go_in_order_and_leave_the_loader_as_it_was(store: rs.Store) -> None:
    def put(field: str, value: Any, sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, field: value(sample)}

    loader = Loader(store, fields=["label"], batch=4, collate=lambda batch: ("collated", batch))
    once = loader.map(partial(put, "twice", lambda s: s["label"] * 2), per="sample")
    more = once.map(partial(put, "four", lambda s: s["twice"] * 2), per="sample", threads=2)
    after = more.map(lambda batch: batch["four"] + 1).map(lambda array: array.tolist())

    assert [list(batch[1]) for batch in loader] == [["label"]] * 26
    assert next(iter(once))[1].keys() == {"label", "twice"}
    assert next(iter(after)) == ("collated", [1, 5, 9, 13])
    assert (
        repr(more).count("map(") == 2 and "threads=2" in repr(more) and "map(" not in repr(loader)
    )
    assert len(after) == len(loader)


def test_a_batch_is_transformed_after_its_rule_and_before_collate(store: rs.Store) -> None:
    def seen(batch: dict[str, Any]) -> dict[str, Any]:
        kinds.append({name: type(column) for name, column in batch.items()})
        return batch

    kinds: list[Any] = []
    rules: list[Any] = [Packed("audio", 60, rows=2), Windowed("audio", 8, streams=3), 5]
    for rule in rules:
        loader = Loader(store, batch=rule, fields=["audio", "label"], collate="padded")
        plainly, mapped = run(loader), run(loader.map(seen))
        loader.set_epoch(0)
        assert mapped == plainly
    assert kinds[0]["audio"] is PackedRows
    assert {"reset": np.ndarray} in [{"reset": kind.get("reset")} for kind in kinds]
    assert kinds[-1] == {"audio": rs.RaggedBatch, "label": np.ndarray}


def test_a_batch_may_become_anything(store: rs.Store) -> None:
    loader = Loader(store, batch=50, collate="padded").map(lambda batch: len(batch["text"]))

    assert list(loader) == [50, 50, 1]


def test_states_do_not_know_of_transforms(store: rs.Store) -> None:
    loader = Loader(store, order=Permuted(1), batch=10)
    mapped = loader.map(copied, per="sample")
    whole = run(loader)
    loader.set_epoch(0)
    batches = iter(loader)
    for _ in range(4):
        next(batches)

    mapped.load_state_dict(json.loads(json.dumps(loader.state_dict())))

    assert mapped.state_dict() == loader.state_dict()
    assert run(mapped) == whole[4:]
    batches.close()  # type: ignore[attr-defined]


def test_a_mapped_loader_pickles_when_its_functions_do(store: rs.Store) -> None:
    loader = Loader(store, order=Permuted(1), batch=10).map(other, per="sample", seeded=False)

    again = pickle.loads(pickle.dumps(loader))

    assert repr(again) == repr(loader) and run(again) == run(loader)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(loader.map(lambda batch: batch))


# The form of columns


@pytest.mark.parametrize("collate", ["ragged", "padded"])
def test_what_a_column_is_does_not_depend_on_the_samples_in_a_batch(
    store: rs.Store, collate: Any
) -> None:
    def fn(sample: dict[str, Any]) -> dict[str, Any]:
        return {
            "audio": sample["audio"],  # of one shape where each batch is one sample
            "new": np.zeros((2, 2)),
            "image": sample["image"].astype("f4").mean(axis=2),
            "label": np.eye(5)[int(sample["label"]) % 5],
        }

    loader = Loader(store, batch=1, collate=collate).map(fn, per="sample")

    for batch in loader:
        if collate == "ragged":
            kinds = [type(batch[name]) for name in ("audio", "new", "image")]
            assert kinds == [rs.RaggedBatch] * 3
        else:
            assert set(batch) - {"audio", "new", "image", "label"} == {
                "audio_lengths",
                "new_shapes",
                "image_shapes",
            }
        assert batch["label"].shape == (1, 5)


def test_declared_fields_come_as_stored_ones_would(store: rs.Store) -> None:
    def fn(sample: dict[str, Any]) -> dict[str, Any]:
        many = int(sample["label"]) % 3
        return {"mel": [[1.5] * 4] * many, "pair": [many, 2], "name": "x", "n": many / 2}

    fields = {
        "mel": rs.Field(">f4", (None, 4)),
        "pair": rs.Field("int8", (2,)),
        "name": "str",
        "n": "float32",
    }
    base = Loader(store, batch=40, collate="padded")
    # An empty list has no dimensions but the one.
    fixed = base.map(
        lambda s: {**fn(s), "mel": np.reshape(fn(s)["mel"], (-1, 4))}, per="sample", fields=fields
    )

    batch = next(iter(fixed))

    assert batch["mel"].shape == (40, 2, 4) and batch["mel"].dtype == ">f4"
    assert batch["mel_lengths"][:4].tolist() == [0, 1, 2, 0]
    assert batch["pair"].shape == (40, 2) and batch["pair"].dtype == np.int8
    assert batch["name"] == ["x"] * 40 and batch["n"].dtype == np.float32
    with pytest.raises(rs.SampleError, match=r"sample 0: field 'mel': expected \(None, 4\)"):
        list(base.map(fn, per="sample", fields=fields))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"audio": np.zeros(3, "f8")}, "sample 7, field 'audio': .*float64.*, where sample 0 has"),
        ({"audio": np.zeros((3, 1), ">i2")}, r"sample 7, field 'audio': .*\(3, 1\)"),
        ({"vector": np.zeros(4, "f4")}, r"sample 7, field 'vector': .*\(4,\), where"),
        ({"label": "seven"}, "sample 7, field 'label': .*no text, number or array"),
        ({"label": None}, "sample 7, field 'label': NoneType"),
        ({"text": 7}, "sample 7, field 'text': int, where sample 0 has str"),
        ({"text": b"seven"}, "sample 7, field 'text': bytes, where sample 0 has str"),
        ({"more": 1}, "sample 7 has a field 'more' too"),
        ({"image": [[1], [2, 3]]}, "sample 7, field 'image': not an array"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_samples_that_do_not_go_together_are_named(
    store: rs.Store, change: dict[str, Any], words: str, on_error: Any
) -> None:
    def fn(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, **(change if sample["label"] == 7 else {})}

    with pytest.raises(rs.SampleError, match=words):
        list(Loader(store, on_error=on_error, batch=3).map(fn, per="sample"))


def test_a_sample_becomes_a_dict_with_every_field(store: rs.Store) -> None:
    with pytest.raises(TypeError, match=r"transform .*lambda> gave dict_keys for sample 0"):
        list(Loader(store, on_error="skip").map(lambda s: s.keys(), per="sample"))  # type: ignore[misc]
    with pytest.raises(rs.SampleError, match="sample 1 has no field 'text'"):
        list(
            Loader(store).map(
                lambda s: {n: v for n, v in s.items() if s["label"] != 1 or n != "text"},
                per="sample",
            )
        )
    with pytest.raises(rs.SampleError, match="sample 0 has no field 'x', which was declared"):
        list(Loader(store).map(untouched, per="sample", fields={"x": "int8"}))


@pytest.mark.parametrize(
    ("fn", "options", "words"),
    [
        ("louder", {}, "a function"),
        (untouched, {"per": "epoch"}, "per is"),
        (untouched, {"threads": 0}, "threads"),
        (untouched, {"threads": 2, "processes": 2}, "not in both"),
        (untouched, {"processes": -1}, "processes"),
        (untouched, {"seeded": True, "seed": -1}, "seed"),
        (untouched, {"fields": {"x": "int8"}}, "per sample"),
        (lambda batch: batch, {"processes": 1}, "does not pickle"),
    ],
)
def test_transforms_that_make_no_sense_are_refused(
    store: rs.Store, fn: Any, options: Any, words: str
) -> None:
    with pytest.raises(rs.UsageError, match=words):
        Loader(store).map(fn, **options)


def test_samples_are_not_to_be_had_where_there_are_none(store: rs.Store) -> None:
    with pytest.raises(rs.UsageError, match="per='batch'"):
        Loader(store, batch=Packed("audio", 50)).map(untouched, per="sample")
    with pytest.raises(rs.UsageError, match="before it has batches"):
        Loader(store).map(untouched).map(untouched, per="sample")
    clash = Loader(store, collate="padded").map(lambda s: {**s, "audio_lengths": 1}, per="sample")
    with pytest.raises(rs.UsageError, match="audio_lengths"):
        list(clash)
    with pytest.raises(rs.UsageError, match="audio_lengths"):
        Loader(store, collate="padded").map(
            untouched, per="sample", fields={"audio_lengths": "int64"}
        )


# Randomness


def noisy(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    draws = rng.random(int(sample["label"]) % 3 + 1)  # some leave words over
    return {"label": sample["label"], "draw": draws[-1], "low": rng.integers(10, dtype=np.uint32)}


def draws(batches: list[Any], name: str = "draw") -> dict[int, Any]:
    return {
        label: draw
        for batch in batches
        for label, draw in zip(batch["label"][-1], batch[name][-1], strict=True)
    }


@pytest.fixture(scope="module")
def drawn(store: rs.Store) -> dict[int, Any]:
    return draws(run(Loader(store).map(noisy, per="sample", seeded=True, seed=3)))


@MANY
@given(
    order=st.sampled_from(ORDERS),
    size=st.integers(1, 60),
    threads=st.integers(1, 3),
    world=st.integers(1, 3),
    workers=st.integers(1, 2),
    stop=st.integers(0, 3),
)
def test_chance_depends_on_seed_epoch_and_sample_alone(
    store: rs.Store,
    drawn: dict[int, Any],
    order: Any,
    size: int,
    threads: int,
    world: int,
    workers: int,
    stop: int,
) -> None:
    got: dict[int, Any] = {}
    for rank in range(world):
        loader = Loader(store, order=order, batch=size, rank=rank, world_size=world, prefetch=0)
        loader = loader.map(noisy, per="sample", seeded=True, seed=3, threads=threads)
        begun = iter(loader)
        for batch, _ in zip(begun, range(min(stop, len(loader))), strict=False):
            got |= draws([plain(batch)])
        begun.close()  # type: ignore[attr-defined]
        resumed = copy.copy(loader)
        resumed.set_epoch(0)
        resumed.load_state_dict(loader.state_after(min(stop, len(loader)), epoch=0))
        got |= draws(run(resumed, workers))

    assert got == drawn


def test_chance_is_another_for_each_sample_epoch_seed_and_transform(store: rs.Store) -> None:
    def twice(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**sample, "second": rng.random()}

    def values(loader: Loader, name: str = "draw") -> list[float]:
        return list(draws(run(loader), name).values())

    order = Permuted(11)
    loader = Loader(store, order=order).map(noisy, per="sample", seeded=True)
    seeded = Loader(store, order=order).map(noisy, per="sample", seeded=True, seed=11)
    other_seed = Loader(store, order=order).map(noisy, per="sample", seeded=True, seed=12)
    first, second = values(loader), values(loader)
    assert values(seeded) == first  # by default the order's
    both = seeded.map(twice, per="sample", seeded=True)
    both.set_epoch(0)

    everything = [*first, *second, *values(other_seed), *values(both, "second")]

    assert len(set(everything)) == 4 * COUNT
    between = Loader(store, order=order).map(untouched, per="sample")
    assert values(between.map(noisy, per="sample", seeded=True)) == first
    assert 0.3 < np.mean(everything) < 0.7


def pairs(batches: list[Any]) -> list[tuple[int, Any]]:
    rows = [zip(batch["label"][-1], batch["draw"][-1], strict=True) for batch in batches]
    return sorted(pair for row in rows for pair in row)


@MANY
@given(
    rule=st.sampled_from([1, 7, Bucketed("audio", 5), Bucketed("audio", 4, edges=[9, 30])]),
    world=st.integers(1, 3),
    workers=st.integers(1, 2),
    stop=st.integers(0, 5),
    mixed=st.booleans(),
)
def test_chance_is_anew_in_each_turn_of_a_sample_and_depends_on_that_alone(
    store: rs.Store, rule: Any, world: int, workers: int, stop: int, mixed: bool
) -> None:
    few = store.select(range(7))
    samples: Any = Mixture({few: 1, store.select(range(7, 60)): 2}, count=90) if mixed else store
    order = Permuted(2) if mixed else Weighted(np.arange(COUNT) % 9 == 3, seed=4)
    whole = Loader(samples, order=order).map(noisy, per="sample", seeded=True, seed=3)
    wanted = pairs(run(whole))
    got: list[tuple[int, Any]] = []
    for rank in range(world):
        loader = Loader(
            samples, order=order, batch=rule, rank=rank, world_size=world, prefetch=0
        ).map(noisy, per="sample", seeded=True, seed=3)
        begun = iter(loader)
        got += pairs([plain(batch) for _, batch in zip(range(stop), begun, strict=False)])
        state = json.loads(json.dumps(loader.state_dict()))
        begun.close()  # type: ignore[attr-defined]
        loader.load_state_dict(state)
        if state["epoch"] == 0:
            got += pairs(run(loader, workers))

    assert sorted(got) == wanted
    assert len({draw for _, draw in wanted}) == len(wanted) > len({i for i, _ in wanted})


def test_chance_per_batch_depends_on_what_is_in_it(store: rs.Store) -> None:
    def fn(batch: dict[str, Any], rng: np.random.Generator) -> tuple[Any, float]:
        return batch["label"].tolist(), rng.random()

    rules: list[Any] = [8, Packed("audio", 60, rows=2), Windowed("audio", 8, streams=3)]
    for rule in rules:
        options = {"order": Permuted(1), "batch": rule, "fields": ["audio", "label"]}
        loader = Loader(store, **options).map(fn, seeded=True)
        first, second = list(loader), list(loader)
        small = Loader(store, budget=2000, prefetch=0, **options).map(fn, seeded=True, threads=2)
        assert list(small) == first
        assert len({chance for _, chance in [*first, *second]}) == len(first) + len(second)
        small.load_state_dict(loader.state_after(2, epoch=0))
        assert list(small) == first[2:]


def test_a_sample_drawn_twice_is_transformed_twice(store: rs.Store) -> None:
    def fn(sample: dict[str, Any]) -> dict[str, Any]:
        sample["audio"] += 1  # in place
        return sample

    order = Weighted(np.arange(COUNT) == 30, count=5)
    (batch,) = Loader(store, order=order).map(fn, per="sample")

    assert [values.tolist() for values in batch["audio"]] == [list(range(1, 31))] * 5
    assert store[30]["audio"].tolist() == list(range(30))


# Where it runs


def test_threads_work_at_a_time_and_results_come_in_order(store: rs.Store) -> None:
    together = threading.Barrier(3, timeout=20)

    def fn(sample: dict[str, Any]) -> dict[str, Any]:
        together.wait()
        return {"label": sample["label"], "thread": threading.current_thread().name}

    loader = Loader(store, where=range(12), batch=6).map(fn, per="sample", threads=3)

    batches = list(loader)

    assert [int(i) for batch in batches for i in batch["label"]] == list(range(12))
    assert {name for batch in batches for name in batch["thread"]} == {"raggedstore-map"}


def test_batches_are_worked_on_at_a_time_too(store: rs.Store) -> None:
    busy: list[int] = []
    seen = []

    def fn(batch: dict[str, Any]) -> int:
        busy.append(1)
        time.sleep(0.05)
        seen.append(len(busy))
        busy.pop()
        return int(batch["label"][0])

    loader = Loader(store, where=range(15), batch=3).map(fn, threads=2)

    assert list(loader) == [0, 3, 6, 9, 12]
    assert max(seen) == 2


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_first_error_is_the_one_raised_and_says_where(
    store: rs.Store, threads: int, prefetch: int
) -> None:
    def fn(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["label"] >= 30:
            time.sleep(0.02 * (sample["label"] == 30))
            raise KeyError(int(sample["label"]))
        return sample

    loader = Loader(store, prefetch=prefetch, batch=40).map(fn, per="sample", threads=threads)

    with pytest.raises(KeyError, match="30") as caught:
        list(loader)

    assert any(frame.name == "fn" for frame in caught.traceback)
    assert "sample 30, epoch 0" in caught.value.__notes__[0]


def test_a_function_that_raises_stop_iteration_does_not_end_the_epoch(store: rs.Store) -> None:
    def fn(batch: dict[str, Any]) -> Any:
        return next(iter(()))

    for prefetch in (0, 2):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(Loader(store, prefetch=prefetch).map(fn))
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(Loader(store, prefetch=prefetch, collate=fn))


def test_a_loop_left_early_leaves_no_thread(store: rs.Store) -> None:
    loader = Loader(store, batch=5).map(untouched, per="sample", threads=3).map(dict, threads=2)
    for _ in loader:
        break
    assert not [worker for worker in working() if worker.name == "raggedstore-loader"]

    begun = iter(loader)
    next(begun)
    del begun
    gc.collect()  # the fixture looks whether they go


def test_what_takes_long_is_not_read_far_ahead(store: rs.Store) -> None:
    done = []

    def fn(sample: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.01)
        done.append(sample["label"])
        return sample

    ahead = []
    for i, _ in enumerate(Loader(store, batch=5, prefetch=1).map(fn, per="sample")):
        ahead.append(len(done) - 5 * i)

    # All would take a second: a quarter of one is as much as the first batches wait for.
    assert ahead[0] <= 40 and max(ahead) < 80


def test_what_grows_is_read_less_of(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "images", {"coded": rs.Field("bytes")})
    with store.writer() as writer:
        writer.extend({"coded": bytes(100)} for _ in range(3000))
    alive: set[int] = set()
    most = 0

    class Large(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            alive.discard(id(self))

    def decoded(sample: dict[str, Any]) -> dict[str, Any]:
        return {"pixels": np.zeros(10_000, "u1")}

    def counted(batch: dict[str, Any]) -> dict[str, Any]:
        large = np.ones(1).view(Large)
        alive.add(id(large))
        return {**batch, "large": large}

    loader = Loader(store, batch=10, budget="4MB").map(decoded, per="sample").map(counted)
    for i, _ in enumerate(loader):
        if i > 30:  # by then it knows
            time.sleep(0.001)
            most = max(most, len(alive))

    assert 0 < most * 100_000 < 8e6


# Processes


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that worker processes can import, which is soon done."""
    name = f"functions_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent(
            """
            import os, time
            def noisy(sample, rng):
                return {"label": sample["label"], "draw": rng.random(), "pid": os.getpid()}
            def total(batch):
                return batch["label"].tolist(), os.getpid()
            def fails(sample):
                if sample["label"] == 3:
                    deeper(sample)
                return sample
            def deeper(sample):
                raise Odd(1, 2)
            class Odd(Exception):
                def __init__(self, one, two):
                    super().__init__(f"{one} and {two}")
            def dies(sample):
                os._exit(7)
            def hangs(batch):
                time.sleep(1000)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(name)
    yield module
    sys.modules.pop(name)


def test_processes_give_what_one_thread_gives(store: rs.Store, functions: Any) -> None:
    loader = Loader(store, order=Permuted(2), batch=30)
    options = {"per": "sample", "seeded": True}
    wanted = run(loader.map(functions.noisy, **options))

    spread = loader.map(functions.noisy, processes=2, **options).map(functions.total, processes=2)
    batches = list(spread)

    assert draws(wanted).keys() == {i for labels, _ in batches for i in labels}
    assert [labels for labels, _ in batches] == [batch["label"][-1] for batch in wanted]
    assert os.getpid() not in {pid for _, pid in batches}
    assert not multiprocessing.active_children()
    alone = list(loader.map(functions.noisy, processes=1, **options))
    assert draws([plain(b) for b in alone]) == draws(run(loader.map(functions.noisy, **options)))


def test_errors_in_processes_have_their_tracebacks(store: rs.Store, functions: Any) -> None:
    failing = Loader(store, batch=4).map(functions.fails, per="sample", processes=1)
    with pytest.raises(RuntimeError, match="raised Odd: 1 and 2") as caught:
        list(failing)
    assert "in deeper" in str(caught.value.__cause__)
    assert "sample 3, epoch 0" in str(caught.value.__cause__)
    assert not multiprocessing.active_children()

    skipping = Loader(store, batch=4, on_error="skip")
    skipping = skipping.map(functions.fails, per="sample", processes=1)
    assert [len(batch["label"]) for batch in skipping] == [3] + [4] * 24 + [1]
    assert [(q.position, q.error) for q in skipping.quarantine] == [(3, "Odd")]

    with pytest.raises(RuntimeError, match="has died, with exit code 7"):
        list(Loader(store, batch=4).map(functions.dies, per="sample", processes=1))


def test_a_process_that_may_start_none_says_so(
    store: rs.Store, functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]

    with pytest.raises(rs.UsageError, match="DataLoader"):
        list(Loader(store).map(functions.total, processes=1))


def test_a_process_that_never_answers_is_ended_with_the_loop(
    store: rs.Store, functions: Any
) -> None:
    loader = Loader(store, batch=4).map(functions.hangs, processes=1)

    def end() -> None:
        while not multiprocessing.active_children():
            time.sleep(0.01)
        multiprocessing.active_children()[0].terminate()

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(RuntimeError, match="has died, with exit code -15"):
        next(iter(loader))
    ending.join()

    first = iter(Loader(store, batch=4, prefetch=1).map(functions.total, processes=1))
    next(first)
    (process,) = multiprocessing.active_children()
    del first
    gc.collect()
    process.join(20)
    assert not process.is_alive()


def running(group: int) -> list[str]:
    """The processes of a group that are not just waiting to be buried."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(path.parent.name)
    return found


SCRIPT = """
import signal, sys, time
import raggedstore as rs
from raggedstore.training import Loader, Shuffled

def waits(batch):
    if batch["label"][0] >= 8:
        time.sleep(1000)
    return batch

if __name__ == "__main__":
    # What is started in the background may have been told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    store = rs.open(sys.argv[1])
    loader = Loader(store, batch=4, prefetch=int(sys.argv[3]))
    how = {"thread": {}, "threads": {"threads": 2}, "processes": {"processes": 1}}[sys.argv[2]]
    batches = iter(loader.map(waits, **how))
    print(len(next(batches)["label"]), flush=True)
    try:
        if sys.argv[4] == "interrupt":
            for batch in batches:
                pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    ("how", "prefetch"),
    [("thread", 2), ("threads", 0), ("processes", 2)],
)
@pytest.mark.parametrize("end", ["interrupt", "exit"])
def test_no_end_waits_for_a_function_that_does_not_come_back(
    store: rs.Store, tmp_path: Path, how: str, prefetch: int, end: str
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(rs.__file__).resolve().parent.parent
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", store.path, how, str(prefetch), end],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "4\n"
        if end == "interrupt":
            time.sleep(0.3)  # it waits for the third batch
            os.killpg(process.pid, signal.SIGINT)  # as the keyboard does
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and err == ""
        assert ("interrupted" in out) == (end == "interrupt")
        for _ in range(500):
            if not running(process.pid):
                break
            time.sleep(0.01)
        assert not running(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_batches_of_no_known_size_set_the_pace_too(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(Pace, "note", lambda _, read, became, seconds: noted.append(became))
    batches = list(Loader(store, batch=10).map(lambda batch: object()))
    assert len(batches) == 11 and noted and not any(noted)

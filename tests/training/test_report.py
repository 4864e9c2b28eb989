"""What is set aside, held against a run over data that are whole; what a report says, by counting.

Damage is real where it can be: bits flipped in a segment.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing
import pickle
import subprocess
import sys
import time
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
    Packed,
    PackedRows,
    Permuted,
    Sequential,
    Shuffled,
    TokenBudget,
    Weighted,
    Windowed,
)
from raggedstore.training.report import Quarantined, peak_memory
from tests.training.epochs import Between

COUNT = 83
ORDERS = [Sequential(), Permuted(3), Shuffled(3, window=6000), Shuffled(3, window=900)]
MANY = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SCHEMA = {
    "a": rs.Field("int32", (None,)),
    "b": rs.Field("float32", (None, 2)),
    "text": rs.Field("str"),
    "i": rs.Field("int64"),
}


def length(i: int) -> int:
    return (i * 37) % 41


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    store = rs.create(tmp_path_factory.mktemp("report") / "store", SCHEMA)
    with store.writer() as writer:
        for i in range(COUNT):
            values = np.arange(length(i)) + 1000 * i
            writer.append(
                {"a": values, "b": np.full((length(i), 2), i, "f4"), "text": f"t{i}", "i": i}
            )
    return rs.open(store.path)


class Damaged(Between):
    """Samples of which some cannot be read: `bad` has a field's name to their positions."""

    def __init__(self, base: Samples, bad: dict[str, set[int]]) -> None:
        super().__init__(base)
        self.bad, self.asked = bad, 0

    def read(self, name: str, positions: Any) -> Any:
        self.asked += 1
        if self.bad.get(name, set()) & set(positions.tolist()):
            raise rs.CorruptionError(f"made to fail in {name}")
        return super().read(name, positions)

    def read_windows(self, name: str, positions: Any, starts: Any, stops: Any) -> Any:
        lengths = self.base.read_shapes(name, positions)[:, 0]
        touched = np.minimum(starts, lengths) < np.minimum(stops, lengths)
        if self.bad.get(name, set()) & set(positions[touched].tolist()):
            raise rs.StorageError(f"made to fail in {name}")
        return super().read_windows(name, positions, starts, stops)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(column) for name, column in value.items()}
    if isinstance(value, PackedRows):
        return [plain(value.batch), value.row.tolist(), value.shape]
    if isinstance(value, rs.RaggedBatch):
        return [sample.tolist() for sample in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def run(loader: Loader) -> list[Any]:
    return [plain(batch) for batch in loader]


def without(batches: list[Any], lost: set[int]) -> list[Any]:
    """The batches as they would be without those samples."""
    kept = []
    for batch in batches:
        good = [k for k, i in enumerate(batch["i"]) if i not in lost]
        kept.append({name: [column[k] for k in good] for name, column in batch.items()})
    return kept


# Setting aside


@MANY
@given(
    order=st.sampled_from(ORDERS),
    batch=st.sampled_from([FixedSize(1), FixedSize(10), TokenBudget("a", 120), Bucketed("a", 8)]),
    bad=st.fixed_dictionaries(
        {name: st.sets(st.integers(0, COUNT - 1), max_size=6) for name in SCHEMA}
    ),
    prefetch=st.integers(0, 2),
    budget=st.sampled_from([2000, "512MB"]),
    world=st.integers(1, 3),
    crop=st.sampled_from([(), Crop("b", 5, seed=1)]),
)
def test_batches_come_without_what_cannot_be_read(
    store: rs.Store, bad: dict[str, set[int]], world: int, **options: Any
) -> None:
    # Of a crop of no values nothing is read that could be damaged.
    lost = set().union(*(bad[n] for n in bad if n != "b" or not options["crop"]))
    lost |= {i for i in bad["b"] if length(i) or not options["crop"]}
    for rank in range(world):
        share = {"rank": rank, "world_size": world, **options}
        whole = run(Loader(store, **share))
        loader = Loader(Damaged(store, bad), on_error="skip", **share)

        batches = run(loader)

        assert batches == without(whole, lost)
        where = {i: step for step, batch in enumerate(whole) for i in batch["i"]}
        assert {(q.position, q.step) for q in loader.quarantine} == {
            (i, where[i]) for i in lost if i in where
        }
        for q in loader.quarantine:
            assert q.field is not None and q.position in bad[q.field]
            assert (q.epoch, q.transform) == (0, None)
            assert q.message == f"made to fail in {q.field}"
        assert loader.report().quarantined == len(loader.quarantine)
        assert loader.report().samples == sum(len(batch["i"]) for batch in batches)


def test_what_raises_by_default_raises(store: rs.Store) -> None:
    for order in ORDERS:
        with pytest.raises(rs.CorruptionError, match="made to fail in a"):
            list(Loader(Damaged(store, {"a": {40}}), order=order))
    with pytest.raises(rs.UsageError, match="on_error"):
        Loader(store, on_error="ignore")  # type: ignore[arg-type]


def test_a_few_bad_samples_cost_a_few_reads(store: rs.Store) -> None:
    damaged = Damaged(store.select(fields=["i"]), {"i": {11, 12, 70}})

    list(Loader(damaged, on_error="skip", prefetch=0, batch=COUNT))

    assert damaged.asked < 2 * 3 * 8


@MANY
@given(
    order=st.sampled_from(ORDERS),
    bad=st.sets(st.integers(0, COUNT - 1), max_size=8),
    other=st.sets(st.integers(0, COUNT - 1), max_size=3),
    field=st.sampled_from(["a", ("a", "b")]),
    whole=st.booleans(),
)
def test_rows_stay_where_pieces_are_missing(
    store: rs.Store, order: Any, bad: set[int], other: set[int], field: Any, whole: bool
) -> None:
    rule = Packed(field, 32, rows=4)
    bad = set(range(COUNT)) if whole else bad
    healthy = list(Loader(store, order=order, batch=rule))
    loader = Loader(
        Damaged(store, {"a": bad, "text": other}), order=order, batch=rule, on_error="skip"
    )

    batches = list(loader)

    # An empty sequence has nothing that could be damaged, where it is read as a piece.
    reads_whole = isinstance(order, Shuffled)
    lost = {i for i in bad if length(i) or reads_whole} | other
    assert len(batches) == len(healthy)
    for batch, full in zip(batches, healthy, strict=True):
        kept = [k for k, i in enumerate(full["i"].tolist()) if i not in lost]
        assert batch["i"].tolist() == full["i"][kept].tolist()
        for name in rule.fields:
            packed, before = batch[name], full[name]
            assert packed.shape == before.shape
            assert packed.row.tolist() == before.row[kept].tolist()
            assert plain(packed.batch) == plain(before.batch.take(np.array(kept, np.int64)))
    assert {q.position for q in loader.quarantine} == lost


@MANY
@given(
    order=st.sampled_from(ORDERS),
    bad=st.sets(st.integers(0, COUNT - 1), max_size=8),
    other=st.sets(st.integers(0, COUNT - 1), max_size=3),
    world=st.integers(1, 2),
    whole=st.booleans(),
)
def test_streams_stay_where_windows_are_missing(
    store: rs.Store, order: Any, bad: set[int], other: set[int], world: int, whole: bool
) -> None:
    bad = set(range(COUNT)) if whole else bad
    options = {"order": order, "batch": Windowed(("a", "b"), 8, streams=3), "world_size": world}
    healthy = list(Loader(store, **options))
    loader = Loader(Damaged(store, {"a": bad, "i": other}), on_error="skip", **options)

    batches = list(loader)

    assert len(batches) == len(healthy)
    recorded = {q.position for q in loader.quarantine}
    assert recorded <= bad | other
    for batch, full in zip(batches, healthy, strict=True):
        assert batch["b"].shapes.shape == (3, 2) and set(batch["b"].shapes[:, 1]) == {2}
        assert batch["reset"].tolist() == full["reset"].tolist()
        for row in range(3):
            steps = full["a"][row].tolist()
            lost = bool(steps) and steps[0] // 1000 in bad | other
            assert batch["a"][row].tolist() == ([] if lost else steps)
            assert batch["b"][row].tolist() == ([] if lost else full["b"][row].tolist())
            if lost:
                assert steps[0] // 1000 in recorded
                assert (batch["i"][row], batch["text"][row]) == (0, "")


def fails(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["i"] % 7 == 2:
        raise KeyError(int(sample["i"]))
    return {**sample, "new": np.ones(3)}


@pytest.mark.parametrize("threads", [1, 2])
def test_samples_whose_transform_fails_are_set_aside(store: rs.Store, threads: int) -> None:
    lost = set(range(2, COUNT, 7)) | {50}
    damaged = Damaged(store, {"a": {50}})
    options = {"order": Permuted(1), "batch": 10}
    whole = run(Loader(store, **options))
    loader = Loader(damaged, on_error="skip", **options)
    loader = loader.map(fails, per="sample", threads=threads).map(dict, per="sample")

    batches = run(loader)

    assert [{n: b[n] for n in SCHEMA} for b in batches] == without(whole, lost)
    assert [len(batch["new"]) for batch in batches] == [len(batch["i"]) for batch in batches]
    by_transform = [q for q in loader.quarantine if q.transform]
    assert {q.position for q in by_transform} == lost - {50}
    assert by_transform[0].transform == "fails" and by_transform[0].error == "KeyError"
    assert str(by_transform[0].position) in by_transform[0].message
    assert "transform fails" in str(by_transform[0]) and len(loader.quarantine) == len(lost)


def test_a_batch_that_loses_all_comes_empty_and_in_step(store: rs.Store) -> None:
    def fn(sample: dict[str, Any]) -> dict[str, Any]:
        if 10 <= sample["i"] < 20 or sample["i"] < start:
            raise ValueError
        return {"i": sample["i"], "new": np.ones((2, 2), "f4"), "name": "x"}

    start = 0
    loader = Loader(store, batch=10, on_error="skip", collate="padded")
    batches = list(loader.map(fn, per="sample"))
    assert len(batches) == 9
    assert {n: len(c) for n, c in batches[1].items()} == dict.fromkeys(batches[0], 0)
    assert [c.dtype for c in batches[1].values() if hasattr(c, "dtype")] == [
        c.dtype for c in batches[0].values() if hasattr(c, "dtype")
    ]

    start = 10  # nothing has been seen of what the function gives
    empty = next(iter(loader.map(fn, per="sample", fields={"new": rs.Field("f4", (None, 2))})))
    assert len(empty["new"]) == 0 and empty["new"].dtype == np.float32
    assert len(empty["i"]) == 0


@pytest.mark.parametrize("batch", [10, Packed("x", 4, rows=2)])
def test_a_batch_that_loses_all_is_as_wide_as_others(batch: Any, tmp_path: Path) -> None:
    with rs.create(tmp_path / "s", {"x": rs.Field("f4", (None, 3)), "i": rs.Field("i8")}) as store:
        with store.writer() as writer:
            writer.extend({"x": np.ones((2, 3), "f4"), "i": i} for i in range(20))
        damaged = Damaged(store, {"x": set(range(10))})
        for collate in ("padded", "ragged"):
            loader = Loader(damaged, batch=batch, on_error="skip", collate=collate)
            made = list(loader if collate == "padded" else rs.torch.LoaderDataset(loader))
            assert sum(len(some["i"]) for some in made) == 10
            assert {some["x"].shape[2] for some in made} == {3}


def test_errors_of_batches_and_interrupts_are_raised(store: rs.Store) -> None:
    def interrupted(sample: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    def whole(batch: dict[str, Any]) -> Any:
        raise ValueError("the batch")

    for prefetch in (0, 2):
        loader = Loader(store, on_error="skip", prefetch=prefetch)
        with pytest.raises(KeyboardInterrupt):
            list(loader.map(interrupted, per="sample"))
        with pytest.raises(KeyboardInterrupt):
            list(loader.map(interrupted, per="sample", threads=2))
        with pytest.raises(ValueError, match="the batch") as caught:
            list(loader.map(whole))
        assert "the batch that begins with sample 0" in caught.value.__notes__[0]
        assert not loader.quarantine


def test_a_resumed_run_sets_aside_what_a_whole_one_does(store: rs.Store) -> None:
    def made() -> Loader:
        loader = Loader(Damaged(store, {"a": set(range(0, COUNT, 5))}), on_error="skip", batch=4)
        return loader.map(fails, per="sample")

    whole, first, second = made(), made(), made()
    batches = run(whole)
    begun = iter(first)
    got = [plain(next(begun)) for _ in range(9)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))

    assert got + run(second) == batches
    # What is read ahead and not handed over is not counted.
    assert first.quarantine + second.quarantine == whole.quarantine
    begun.close()  # type: ignore[attr-defined]


# Real damage


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@pytest.fixture
def flipped(tmp_path: Path) -> tuple[rs.Store, Any]:
    """A store, and what flips a bit in a block of a column."""
    small = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=1024)
    fields = {"values": rs.Field("int32", (None,)), "text": rs.Field("str"), "i": rs.Field("int64")}
    store = rs.create(tmp_path / "store", fields, profile=small)
    with store.writer() as writer:
        for i in range(2000):
            writer.append({"values": np.arange(i % 23) * i, "text": f"text {i}", "i": i})

    def damage(field: str, column: str, chunk: int, block: int) -> None:
        dataset = store._snapshot.reader(0).table.datasets[field][column]
        edges = dataset.blocks.edges
        segment = store.path / "segments" / store.manifest.segments[0].file
        flip(segment, int(dataset.entries[chunk]["offset"]) + int(edges[chunk, block]) + 5)

    return store, damage


@pytest.mark.parametrize("order", [Sequential(), Permuted(3), Shuffled(3, window=9000)])
def test_a_flipped_bit_costs_the_samples_of_a_block(flipped: Any, order: Any) -> None:
    store, damage = flipped
    damage("values", "data", 2, 1)
    damage("text", "data", 1, 2)
    damage("i", "data", 0, 3)
    fresh = rs.open(store.path)
    lost = set()
    for i in range(2000):
        try:
            fresh[i]
        except rs.CorruptionError:
            lost.add(i)
    assert 100 < len(lost) < 500
    loader = Loader(rs.open(store.path), order=order, batch=16, on_error="skip")

    batches = list(loader)

    assert {int(i) for batch in batches for i in batch["i"]} == set(range(2000)) - lost
    for batch in batches:
        for i, values, text in zip(batch["i"], batch["values"], batch["text"], strict=True):
            assert text == f"text {i}"
            np.testing.assert_array_equal(values, np.arange(i % 23) * i)
    assert len(batches) == len(loader) == 125
    assert {q.position for q in loader.quarantine} == lost
    assert {q.field for q in loader.quarantine} == {"values", "text", "i"}
    assert {q.error for q in loader.quarantine} == {"CorruptionError"}
    assert "checksum" in loader.quarantine[0].message


def test_without_side_columns_a_run_ends(flipped: Any) -> None:
    store, damage = flipped
    damage("values", "data_start_and_stop", 0, 1)

    with pytest.raises(rs.CorruptionError, match="values"):
        list(Loader(rs.open(store.path), on_error="skip", batch=16))


# The report


@MANY
@given(
    order=st.sampled_from([*ORDERS, Weighted(np.arange(COUNT), count=50)]),
    batch=st.sampled_from([FixedSize(7), Bucketed("a", 8), FixedSize(100)]),
    prefetch=st.integers(0, 2),
    budget=st.sampled_from([2000, "512MB"]),
    mapped=st.booleans(),
)
def test_a_report_counts_what_came(store: rs.Store, mapped: bool, **options: Any) -> None:
    loader = Loader(store, **options)
    batches = list(loader)
    if mapped:
        loader = loader.map(dict, per="sample")
        loader.set_epoch(0)
        assert len(list(loader)) == len(batches)

    report = loader.report()

    assert report.finished and report.epoch == 0
    assert report.batches == len(batches)
    assert report.samples == sum(len(batch["i"]) for batch in batches)
    ids = np.concatenate([batch["i"] for batch in batches])
    each = [4 * length(i) + 8 * length(i) + len(f"t{i}") + 8 for i in ids.tolist()]
    assert report.nbytes == sum(each)
    for name in ("a", "b"):
        values = sum(len(batch[name].values) for batch in batches)
        padded = sum(batch[name].to_padded().size for batch in batches)
        assert report.padding[name] == pytest.approx(1 - values / padded)
    assert set(report.padding) == {"a", "b"}
    expected = abs(np.corrcoef(np.arange(len(ids)), _ranks(ids))[0, 1])
    assert report.order == pytest.approx(expected)
    assert report.quarantined == 0 and report.budget == loader.budget
    assert report.waiting >= 0 and report.looping >= 0
    assert report.seconds == report.waiting + report.looping
    assert report.samples_per_second == pytest.approx(report.samples / report.seconds)


def _ranks(ids: Any) -> list[float]:
    return [float((ids < i).sum() + (ids == i).sum() / 2) for i in ids]


def test_rows_say_how_full_they_were(store: rs.Store) -> None:
    loader = Loader(store, batch=Packed("a", 50, rows=3), fields=["a"])
    batches = [batch["a"] for batch in loader]
    steps = sum(batch.shape[0] * batch.shape[1] for batch in batches)
    full = sum(int(batch.lengths.sum()) for batch in batches)

    assert loader.report().padding == {"a": pytest.approx(1 - full / steps)}


def test_a_report_is_of_the_latest_epoch_so_far(store: rs.Store) -> None:
    loader = Loader(store, batch=10)
    before = loader.report()
    assert (before.samples, before.seconds, before.order, before.finished) == (0, 0, None, False)
    batches = iter(loader)
    for count in range(1, 4):
        next(batches)
        assert loader.report().batches == loader.report().batches == count
        assert loader.report().samples == 10 * count and not loader.report().finished
    time.sleep(0.05)
    report = loader.report()
    assert report.looping >= 0.05 and not report.finished and "not finished" in str(report)
    batches.close()  # type: ignore[attr-defined]
    ended = loader.report()
    assert ended.batches == 3 and not ended.finished
    time.sleep(0.01)
    assert loader.report().seconds == ended.seconds

    list(loader)

    assert (loader.report().epoch, loader.report().finished, loader.report().batches) == (
        1,
        True,
        9,
    )
    assert pickle.loads(pickle.dumps(loader)).report().batches == 0
    assert copy.copy(loader).report().batches == 0 and loader.report().batches == 9


def test_waiting_is_told_from_the_loop(store: rs.Store) -> None:
    def slow(batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.02)
        return batch

    waits = Loader(store, batch=20, prefetch=0).map(slow)
    list(waits)
    assert waits.report().waiting >= 0.1 > waits.report().looping
    works = Loader(store, batch=20)
    for _ in works:
        time.sleep(0.02)
    assert works.report().looping >= 0.1 > works.report().waiting


@pytest.mark.parametrize("samples", [100, 5000, 70_001])
def test_a_report_says_how_well_samples_are_mixed(tmp_path: Path, samples: int) -> None:
    store = rs.create(tmp_path / "s", {"i": rs.Field("int64")})
    with store.writer() as writer:
        writer.extend({"i": i} for i in range(samples))

    def mixing(budget: Any = "512MB", **options: Any) -> tuple[float, float]:
        loader = Loader(store, batch=33, budget=budget, **options)
        list(loader)
        report = loader.report()
        assert report.order is not None and report.jump is not None
        return report.order, report.jump

    for budget in ("512MB", "30kB"):
        assert mixing(budget) == (pytest.approx(1), pytest.approx(1 / samples))
        backwards = mixing(budget, where=np.arange(samples)[::-1])
        assert backwards[0] == pytest.approx(1)  # in the order of the selection
        order, jump = mixing(budget, order=Permuted(1))
        assert order < 0.3 if samples == 100 else order < 0.06
        assert 0.28 < jump < 0.39 if samples == 100 else 0.32 < jump < 0.345


def test_chunks_and_hits_are_counted_where_there_is_a_store(
    store: rs.Store, tmp_path: Path
) -> None:
    fresh = rs.open(store.path)
    loader = Loader(fresh, batch=10)
    list(loader)
    first = loader.report()
    list(loader)
    second = loader.report()

    assert first.chunks_decoded is not None and first.blocks_decoded is not None
    assert first.chunks_decoded + first.blocks_decoded > 0
    assert second.chunks_decoded == 0 and second.cache_hits  # all of it fits
    assert first.chunks_per_sample == first.chunks_decoded / COUNT

    store.export(tmp_path / "one.h5")
    file = rs.open(tmp_path / "one.h5")
    for samples in (rs.concat([fresh, fresh]), fresh.select(range(20)), file):
        other = Loader(samples, batch=10)
        list(other)
        assert other.report().cache_hits is not None
    for unknown in (Damaged(store, {}), rs.concat([store, Damaged(store, {})])):
        other = Loader(unknown, batch=10)
        list(other)
        assert (other.report().cache_hits, other.report().chunks_per_sample) == (None, None)


def test_memory_is_that_of_all_processes(store: rs.Store) -> None:
    before = peak_memory()
    assert before is not None and 10**7 < before < 10**11
    code = "a = bytearray(200 * 10**6); b = a[::4096]; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with_child = Loader(store).report().peak_memory
        process.communicate(b"\n")

    assert with_child is not None and with_child > before + 190 * 10**6


def test_processes_that_have_ended_count_too(store: rs.Store) -> None:
    loader = Loader(store, batch=10).map(dict, processes=1)
    list(loader)

    report = loader.report()

    assert not multiprocessing.active_children()
    now = peak_memory()
    assert report.peak_memory is not None and now is not None
    assert report.peak_memory > now + 10**7


def test_a_report_reads_well(store: rs.Store) -> None:
    loader = Loader(Damaged(store, {"a": {4}}), on_error="skip", order=Permuted(0))
    list(loader)
    report = loader.report()

    assert str(report).startswith("epoch 0: 82 samples in 2 batches, ")
    assert repr(report) == str(report)
    for words in ("of 'a'", "mixing: ", "set aside: 1 samples", "budget 512.0 MB", "samples/s"):
        assert words in str(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.samples = 1  # type: ignore[misc]
    (one,) = loader.quarantine
    assert isinstance(one, Quarantined)
    assert str(one).startswith("sample 4, field 'a', epoch 0, step ")

"""The loader against ``store.batch`` on the order's positions, and what its thread must not do."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import kernel
from raggedstore.samples import Samples
from raggedstore.training import (
    Bucketed,
    Crop,
    FixedSize,
    Loader,
    Mixture,
    Order,
    Packed,
    Permuted,
    Sequential,
    Shuffled,
    TokenBudget,
    Weighted,
    Windowed,
)
from raggedstore.training import loader as module
from tests.training.epochs import Between

SCHEMA = {
    "audio": rs.Field(">i2", (None,)),
    "image": rs.Field("uint8", (None, None, 3)),
    "mel": rs.Field("float32", (None, 4)),
    "label": rs.Field(">i8"),
    "vector": rs.Field("float32", (3,)),
    "text": rs.Field("str"),
    "raw": rs.Field("bytes"),
}
COUNT = 203
ORDERS = [Sequential(), Permuted(3), Shuffled(3, window=9000), Shuffled(3, window=200)]


def sample(i: int) -> dict[str, Any]:
    return {
        "audio": np.arange(i % 50, dtype="i2"),
        "image": np.full((i % 4, i % 3, 3), i % 256, "u1"),
        "mel": np.full((i % 7, 4), i, "f4"),
        "label": i,
        "vector": np.full(3, i, "f4"),
        "text": "да" * (i % 5) + str(i),
        "raw": bytes(i % 6),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    path = tmp_path_factory.mktemp("loader") / "store"
    store = rs.create(path, SCHEMA)
    for first in (0, 120):  # two segments
        with store.writer() as writer:
            writer.extend(sample(i) for i in range(first, COUNT if first else 120))
    return rs.open(path)


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "raggedstore-loader"]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    for thread in readers():
        thread.join(10)
    assert not readers()


def same(one: Any, other: Any) -> None:
    assert list(one) == list(other)
    for name, column in other.items():
        assert type(one[name]) is type(column)
        if isinstance(column, rs.RaggedBatch):
            for part in ("values", "offsets", "shapes"):
                got, wanted = getattr(one[name], part), getattr(column, part)
                np.testing.assert_array_equal(got, wanted)
                assert got.dtype == wanted.dtype
        elif isinstance(column, list):
            assert one[name] == column
        else:
            np.testing.assert_array_equal(one[name], column)
            assert one[name].dtype == column.dtype


def labels(batches: Any) -> list[int]:
    return [int(label) for batch in batches for label in batch["label"]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    order=st.sampled_from(ORDERS),
    size=st.integers(1, 250),
    prefetch=st.integers(0, 3),
    budget=st.sampled_from([1, 5000, 100_000, "512MB"]),
    drop_last=st.booleans(),
    large=st.sampled_from([1, 2**15]),  # of windows, decoded whole or batch by batch
)
def test_batches_are_what_the_store_gives(store: rs.Store, large: int, **options: Any) -> None:
    size, drop_last = options.pop("size"), options.pop("drop_last")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LARGE", large)
        loader = Loader(store, batch=size, drop_last=drop_last, **options)

        batches = list(loader)

    order = labels(batches)
    assert len(batches) == len(loader)
    whole = COUNT // size * size if drop_last else COUNT
    assert len(order) == whole == len(set(order))
    if isinstance(options["order"], Sequential):
        assert order == list(range(whole))
    for i, batch in enumerate(batches):
        same(batch, store.batch(order[i * size : (i + 1) * size]))


@pytest.mark.skipif(not kernel.is_there(), reason="the kernel is not compiled here")
def test_windows_are_read_at_once_unless_samples_are_large_and_batches_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    class Counted(Watched):
        concurrent = True  # as of a store

        def read(self, name: str, positions: Any) -> Any:
            reads.append(len(positions))
            return super().read(name, positions)

    size, orders, largest = 40_000, [], {}
    store = rs.create(tmp_path / "store", {"a": rs.Field("u1", (None,))})
    with store.writer() as writer:
        writer.extend({"a": np.full(size, i, "u1")} for i in range(64))
    for collate in ("ragged", "padded"):
        for large in (size, 2 * size):
            reads.clear()
            monkeypatch.setattr(module, "_LARGE", large)
            order = Shuffled(0, window=33 * size)
            loader = Loader(Counted(store), order=order, batch=4, budget=81 * size, collate=collate)
            got = [batch["a"] for batch in loader]
            rows = [b.values if collate == "ragged" else b.reshape(-1) for b in got]
            orders.append([row[::size].tolist() for row in rows])
            largest[collate, large] = max(reads)
    assert largest == {
        ("ragged", size): 36,  # the window, and what is left over of the one before
        ("ragged", 2 * size): 36,
        ("padded", size): 24,  # a third of the budget
        ("padded", 2 * size): 36,
    }
    assert all(order == orders[0] for order in orders)


@pytest.mark.skipif(not kernel.is_there(), reason="the kernel is not compiled here")
def test_blocks_of_a_window_are_decoded_once_where_the_budget_allows(tmp_path: Path) -> None:
    size, count, block, in_chunk = 40_000, 400, 2**14, 2**5
    noise = np.random.default_rng(0).integers(0, 2**16, size * count, "u2").view("u1")[::2]
    rs.create(tmp_path / "store", {"a": rs.Field("u1", (None,))}, profile="fast")
    with rs.open(tmp_path / "store", mode="a").writer() as writer:
        writer.extend({"a": noise[i * size : (i + 1) * size]} for i in range(count))
    decoded = {}
    for budget in (size * 60, size * count * 4):
        store = rs.open(tmp_path / "store", budget=300_000)  # room for side columns only
        loader = Loader(store, order=Shuffled(0, window=size * count), batch=8, budget=budget)
        assert sum(len(batch["a"]) for batch in loader) == count
        report = loader.report()
        assert report.chunks_decoded is not None and report.blocks_decoded is not None
        blocks = report.chunks_decoded * in_chunk + report.blocks_decoded
        decoded[budget] = blocks * block / (size * count)
    little, large = decoded.values()
    assert little > 1.2 and large < 1.1


@pytest.mark.parametrize("order", ORDERS)
def test_prefetch_and_batch_size_do_not_touch_the_order(store: rs.Store, order: Any) -> None:
    ways = [(0, 1), (0, 64), (1, 7), (2, 64), (5, 500)]

    got = [labels(Loader(store, order=order, prefetch=p, batch=b)) for p, b in ways]

    assert all(order == got[0] for order in got)


def test_each_iteration_is_the_next_epoch(store: rs.Store) -> None:
    loader = Loader(store, fields=["label"], order=Permuted(1), batch=50)
    assert loader.epoch == 0

    first, second = labels(loader), labels(loader)
    assert loader.epoch == 2
    loader.set_epoch(0)

    assert labels(loader) == first != second
    assert sorted(first) == sorted(second) == list(range(COUNT))


def test_iterators_of_one_loader_are_independent(store: rs.Store) -> None:
    loader = Loader(store, fields=["label"], order=Permuted(1), batch=10)
    alone = [labels(loader), labels(loader)]
    loader.set_epoch(0)

    one, other = iter(loader), iter(loader)
    pairs = list(zip(one, other, strict=True))

    assert [labels(side) for side in zip(*pairs, strict=True)] == alone


def test_threads_that_begin_at_once_have_epochs_of_their_own(store: rs.Store) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(100):
            loader = Loader(store, order=Permuted(1), batch=50, prefetch=0)
            begin, found = threading.Barrier(6), list[tuple[int, ...]]()

            def run(
                loader: Loader = loader,
                begin: threading.Barrier = begin,
                found: list[tuple[int, ...]] = found,
            ) -> None:
                begin.wait()
                found.append(tuple(labels(loader)))

            threads = [threading.Thread(target=run) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(set(found)) == 6 and loader.epoch == 6
    finally:
        sys.setswitchinterval(before)


def test_where_takes_a_mask_or_positions(store: rs.Store) -> None:
    even = np.arange(COUNT) % 2 == 0
    chosen = [7, 3, 3, -1]

    assert labels(Loader(store, where=even)) == list(range(0, COUNT, 2))
    assert labels(Loader(store, where=chosen)) == [7, 3, 3, COUNT - 1]
    assert len(Loader(store, where=chosen, batch=3)) == 2
    shuffled = Loader(store, where=even, order=Shuffled(window=3000))
    assert sorted(labels(shuffled)) == list(range(0, COUNT, 2))


def test_an_empty_store_has_no_batches(store: rs.Store) -> None:
    for order in ORDERS:
        loader = Loader(store, where=[], order=order)
        assert len(loader) == 0 and list(loader) == []


def test_padded_batches_say_how_long_each_sample_is(store: rs.Store) -> None:
    (batch,) = Loader(store, where=[3, 5], collate="padded")
    plain = store.batch([3, 5])

    assert batch["audio"].shape == (2, 5)
    assert batch["audio_lengths"].tolist() == [3, 5]
    assert batch["image_shapes"].tolist() == [[3, 0, 3], [1, 2, 3]]
    np.testing.assert_array_equal(batch["mel"], plain["mel"].to_padded())
    assert batch["text"] == plain["text"] and batch["label"].tolist() == [3, 5]
    assert "label_lengths" not in batch and "text_lengths" not in batch


def test_a_function_collates(store: rs.Store) -> None:
    loader = Loader(store, batch=100, collate=lambda batch: len(batch["text"]))

    assert list(loader) == [100, 100, 3]


def test_batches_of_a_read_are_views_that_do_not_overlap(store: rs.Store) -> None:
    batches = list(Loader(store, fields=["audio"], batch=20))
    for batch in batches:
        batch["audio"].values[:] = -1

    again = list(Loader(store, fields=["audio"], batch=20))

    assert batches[1]["audio"].values.base is batches[2]["audio"].values.base
    np.testing.assert_array_equal(
        again[1]["audio"].values, store["audio"].batch(slice(20, 40)).values
    )


class Watched(Between):
    """Samples that count the bytes read of them, and fail at a given one."""

    def __init__(self, base: Samples, fail_at: int | None = None) -> None:
        super().__init__(base)
        self.fail_at, self.seen = fail_at, 0

    def read(self, name: str, positions: Any) -> Any:
        if self.fail_at is not None and self.fail_at in positions:
            raise rs.CorruptionError("made to fail")
        self.seen += len(positions)
        return super().read(name, positions)


def test_windows_too_large_for_memory_are_read_in_parts_in_the_same_order(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "uneven", {"a": rs.Field("u1", (None,)), "label": rs.Field("i4")})
    with store.writer() as writer:  # a window of the samples 100 to 109 is six times the average
        for i in range(200):
            writer.append({"a": np.zeros(2000 * (100 <= i < 110), "u1"), "label": i})
    order = Shuffled(0, window=3000)
    largest = 0

    class Measured(Watched):
        def read(self, name: str, positions: Any) -> Any:
            nonlocal largest
            column = super().read(name, positions)
            largest = max(largest, column.nbytes)
            return column

    roomy = labels(Loader(store, order=order, batch=2))
    tight = labels(Loader(Measured(store), order=order, batch=2, budget=7000))

    assert roomy == tight and sorted(tight) == list(range(200))
    assert 2000 < largest < 7000


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_an_error_reaches_the_loop_with_its_own_traceback(
    store: rs.Store, order: Any, prefetch: int
) -> None:
    loader = Loader(Watched(store, fail_at=150), order=order, prefetch=prefetch, batch=10)

    with pytest.raises(rs.CorruptionError, match="made to fail") as caught:
        list(loader)

    assert any(frame.name == "read" for frame in caught.traceback)


def test_batches_before_an_error_still_come(store: rs.Store) -> None:
    loader = Loader(Watched(store, fail_at=150), batch=10, fields=["label"], budget=3000)
    got = []
    with pytest.raises(rs.CorruptionError):
        for batch in loader:
            got.append(batch)

    assert labels(got) == list(range(len(got) * 10)) and got


@pytest.mark.parametrize("order", ORDERS)
def test_a_loop_left_early_leaves_no_thread(store: rs.Store, order: Any) -> None:
    for _ in Loader(store, order=order, batch=5, budget=20_000):
        break

    assert not readers()


def test_a_dropped_iterator_stops_its_thread(store: rs.Store) -> None:
    batches = iter(Loader(store, order=Shuffled(window=2000), batch=5, budget=20_000))
    next(batches)
    assert readers()

    cycle = [batches]
    cycle.append(cycle)
    del batches, cycle
    gc.collect()

    for thread in readers():
        thread.join(10)
    assert not readers()


def test_an_iterator_never_begun_starts_no_thread(store: rs.Store) -> None:
    batches = iter(Loader(store))

    assert not readers()
    del batches


@pytest.mark.parametrize("order", [Sequential(), Permuted(), Shuffled(window=3000)])
def test_a_slow_loop_makes_nothing_grow(store: rs.Store, order: Any) -> None:
    watched = Watched(store.select(fields=["label"]))
    loader = Loader(watched, order=order, batch=4, prefetch=2, budget=1200)
    total = 24 * COUNT

    eaten = 0
    for _ in loader:
        eaten += 4
        for thread in readers():
            thread.join(0.002)  # all the time it wants to read on
        # What is read but not eaten; a batch is made whole even where the budget is smaller.
        assert (watched.seen - eaten) * 24 <= 1200 + 4 * 24
    assert eaten >= COUNT and total > 2400


class Noted(Between):
    """Samples that note which threads read them, and take their time."""

    concurrent = True

    def __init__(self, base: Samples) -> None:
        super().__init__(base)
        self.threads: set[int] = set()

    def read(self, name: str, positions: Any) -> Any:
        self.threads.add(threading.get_ident())
        time.sleep(0.002)
        return super().read(name, positions)


@pytest.mark.parametrize("order", [Sequential(), Permuted(3)])
def test_reads_of_two_threads_make_the_batches_of_one(store: rs.Store, order: Any) -> None:
    def batches(**options: Any) -> tuple[list[Any], int]:
        noted = Noted(store)
        made = list(Loader(noted, order=order, batch=7, budget=20_000, **options))
        return made, len(noted.threads)

    # A function of the user's is called by one thread only.
    one, of_one = batches(collate=lambda batch: batch)
    two, of_two = batches()
    assert (of_one, of_two) == (1, 2)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        same(a, b)


def test_a_loader_pickles_with_its_epoch(store: rs.Store) -> None:
    loader = Loader(store, order=Shuffled(5, window=3000), batch=FixedSize(30), collate="padded")
    list(loader)

    copy = pickle.loads(pickle.dumps(loader))

    assert repr(copy) == repr(loader) and copy.epoch == 1
    assert labels(copy) == labels(loader)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_loader_works_after_a_fork_and_an_iterator_says_it_cannot(store: rs.Store) -> None:
    loader = Loader(store, fields=["label"], batch=10, order=Permuted(2), budget=3000)
    begun = iter(loader)
    next(begun)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        loader.set_epoch(0)
        said = ""
        try:
            list(begun)
        except rs.UsageError as error:
            said = str(error)
        send.send((labels(loader), said))

    process = context.Process(target=child)
    process.start()
    assert receive.poll(60)
    got, said = receive.recv()
    process.join()

    loader.set_epoch(0)
    assert got == labels(loader)
    assert "fork" in said
    begun.close()  # type: ignore[attr-defined]


def test_the_interpreter_ends_with_an_iterator_half_way(store: rs.Store) -> None:
    code = (
        "import sys, raggedstore as rs\n"
        "from raggedstore.training import Loader, Shuffled\n"
        "store, order = rs.open(sys.argv[1]), Shuffled(window=2000)\n"
        "loader = Loader(store, batch=3, budget=20_000, order=order)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
    )
    root = Path(rs.__file__).resolve().parent.parent

    done = subprocess.run(
        [sys.executable, "-c", code, str(store.path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 0},
        {"batch": True},
        {"batch": 2.5},
        {"batch": "64"},
        {"order": "shuffled"},
        {"order": Shuffled},
        {"collate": "torch"},
        {"prefetch": -1},
        {"prefetch": 1.5},
        {"budget": 0},
        {"budget": "lots"},
        {"fields": "audio"},
    ],
)
def test_options_that_make_no_sense_are_refused(store: rs.Store, options: Any) -> None:
    with pytest.raises(rs.UsageError):
        Loader(store, **options)


def test_other_mistakes_have_the_errors_that_stores_have(store: rs.Store) -> None:
    with pytest.raises(rs.UnknownFieldError, match="no field 'video'"):
        Loader(store, fields=["video"])
    with pytest.raises(rs.OutOfRangeError):
        Loader(store, where=[COUNT])
    with pytest.raises(rs.OutOfRangeError):
        Loader(store, where=[True])
    with pytest.raises(rs.UsageError, match="not list"):
        Loader([{"audio": 1}])  # type: ignore[arg-type]
    with pytest.raises(rs.UsageError):
        Loader(store).set_epoch(-1)


def test_a_field_in_the_way_of_the_lengths_is_refused(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "s", {"a": rs.Field("i4", (None,)), "a_lengths": rs.Field("i4")})

    with pytest.raises(rs.UsageError, match="a_lengths"):
        Loader(store, collate="padded")
    assert list(Loader(store, fields=["a"], collate="padded")) == []


def test_a_loader_says_what_it_is(store: rs.Store) -> None:
    loader = Loader(store, fields=["audio"], batch=64, drop_last=True)

    for part in ("203 samples in 3 batches", "audio", "Sequential()", "FixedSize(size=64)", "512"):
        assert part in repr(loader)


@pytest.mark.parametrize(
    ("order", "batch", "wrong"),
    [
        (Permuted(0), 4, {"order": {}}),
        (Permuted(0), 4, {"order": {"unit": 0}}),
        (Permuted(0), 4, {"order": "x"}),
        (Shuffled(0), 4, {"order": {"block": 1, "windows": 10**6, "lanes": 1}}),
        (Shuffled(0), 4, {"order": {"block": 1, "windows": 2, "lanes": None}}),
        (Sequential(), Bucketed("audio", 4, quantiles=2), {"batch": {"edges": ["a"]}}),
        (Sequential(), Bucketed("audio", 4, quantiles=2), {"batch": {}}),
    ],
)
def test_a_state_with_a_geometry_that_makes_no_sense_is_refused(
    store: rs.Store, order: Order, batch: Any, wrong: dict[str, Any]
) -> None:
    loader = Loader(store, order=order, batch=batch)
    state = json.loads(json.dumps(loader.state_dict()))
    state["geometry"].update(wrong)
    with pytest.raises(rs.UsageError):
        loader.load_state_dict(state)
    assert sum(len(columns["label"]) for columns in loader) == len(store)


@pytest.mark.parametrize(
    ("batch", "column", "wrong"),
    [
        (Packed("audio", 64, rows=3), 1, -5),
        (Packed("audio", 64, rows=3), 2, 10**6),
        (Packed("audio", 64, rows=3), 1, None),
        (Windowed("audio", 8, streams=3), 3, 7),
        (Windowed("audio", 8, streams=3), 1, -1),
        (Bucketed("audio", 7), 1, 0),
        (FixedSize(7), 3, 0),
    ],
)
def test_a_state_with_carried_samples_that_make_no_sense_is_refused(
    store: rs.Store, batch: Any, column: int, wrong: int | None
) -> None:
    loader = Loader(store, order=Permuted(0), batch=batch)
    state = loader.state_dict()
    lists = [[3], None, None, None, None]
    if batch.cuts or isinstance(batch, Packed):
        lists = [[3], [0], [4], None, None]
    if isinstance(batch, Windowed):
        lists = [[3], [0], None, [1], None]
    loader.load_state_dict({**state, "left": [lists]})
    lists[column] = None if wrong is None else [wrong]
    with pytest.raises(rs.UsageError):
        loader.load_state_dict({**state, "left": [lists]})


def test_len_is_that_of_the_state_that_was_loaded(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"a": rs.Field("int16", (None,))})
    with store.writer() as writer:
        for n in np.random.default_rng(1).integers(0, 12, 500):
            writer.append({"a": np.zeros(n, "int16")})

    def make(rank: int, world: int) -> Loader:
        order, batch = Shuffled(0, window=3000), TokenBudget("a", 20)
        return Loader(store, order=order, batch=batch, rank=rank, world_size=world, even="drop")

    state = make(0, 2).state_dict()
    for rank in range(3):
        loader = make(rank, 3)
        len(loader)
        loader.load_state_dict(state)
        assert len(loader) == sum(1 for _ in loader)


def test_a_state_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"a": rs.Field("int16", (None,))})
    for count in 100, 20:
        with store.writer() as writer:
            writer.extend({"a": np.zeros(4, "int16")} for _ in range(count))
        if count == 100:
            state = Loader(rs.open(store.path), batch=Windowed("a", 4, streams=2)).state_dict()
    loader = Loader(rs.open(store.path), batch=Windowed("a", 4, streams=2), world_size=3)

    with pytest.raises(rs.UsageError, match="divide"):
        loader.load_state_dict(state)

    assert len(loader.samples) == loader.state_dict()["samples"] == 120


@pytest.mark.parametrize(
    "wrong",
    [
        lambda store: Crop(None, 3),
        lambda store: Crop([], 3),
        lambda store: Packed(5, 3),
        lambda store: Windowed(["audio", 5], 3),
        lambda store: Bucketed("audio", 3, edges=5),
        lambda store: Bucketed("audio", 3, edges="12"),
        lambda store: Weighted.balanced([[1], [2, 3]]),
        lambda store: Mixture({store: 1e308, store.select([1]): 1e308}),
        lambda store: Loader(store, even=np.array([1, 2])),
        lambda store: Loader(store).iterate("a", 2),
        lambda store: Loader(store).iterate(0.5, 2),
        lambda store: Loader(store).iterate(0, 2, phase=0.5),
        lambda store: Loader(store).iterate(2, 2),
    ],
)
def test_arguments_that_make_no_sense_are_usage_errors(store: rs.Store, wrong: Any) -> None:
    with pytest.raises(rs.UsageError):
        wrong(store)

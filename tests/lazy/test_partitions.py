"""Stores read and written by partitions: by threads, processes, a cluster that loses workers."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from dask import bag
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import lazy
from raggedstore.lazy import partitions
from raggedstore.lazy.partitions import _open, _Shared

SCHEMA = {"audio": rs.Field("int16", (None,)), "text": rs.Field("str"), "label": rs.Field("int64")}
SMALL = rs.Compression(codec="lz4", chunk_bytes=4096, block_bytes=4096)


def sample(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    audio = rng.integers(-999, 999, rng.integers(0, 500)).astype("int16")
    return {"audio": audio, "text": f"number {number}", "label": number}


def check(store: rs.Store, count: int, first: int = 0) -> None:
    """The store holds the samples from `first` on, each once, in order, whole."""
    assert len(store) == count
    assert store["label"][:] == list(range(first, first + count))
    for number, audio in zip(range(first, first + count), store["audio"], strict=True):
        np.testing.assert_array_equal(audio, sample(number)["audio"])
    assert store.verify().ok


def files_of(path: Path) -> set[str]:
    return {file.name for file in (path / "segments").iterdir()}


def named_by(store: rs.Store) -> set[str]:
    return {name for e in store.manifest.segments for name in (e.file, e.index)}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit="1GiB",
            dashboard_address=":0",
            host="127.0.0.1",
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(params=["sync", "threads", "processes", "distributed"])
def scheduler(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `dask.compute` takes to run tasks in one of four ways."""
    if request.param == "distributed":
        return {"scheduler": request.getfixturevalue("client")}
    if request.param == "processes":
        return {"scheduler": "processes", "pool": request.getfixturevalue("processes")}
    return {"scheduler": request.param}


# Writing


def test_every_scheduler_writes_the_same_store(scheduler: dict[str, Any], tmp_path: Path) -> None:
    samples = bag.range(100, npartitions=4).map(sample)

    written = lazy.write_partitions(samples, tmp_path / "store", SCHEMA, **scheduler)

    store = rs.open(tmp_path / "store")
    check(store, 100)
    assert written.version == store.version == 1
    assert written.partitions == (25, 25, 25, 25) and written.samples == 100
    assert written.segments == 4
    assert (written.nbytes, written.nbytes_stored) == (store.nbytes, store.nbytes_stored)
    assert files_of(tmp_path / "store") == named_by(store)


class OnTheWay:
    """Does something the first time that a sample is made, in whichever process that is."""

    def __init__(self, number: int, mark: Path, what: Callable[[], object]) -> None:
        self.number, self.mark, self.what = number, str(mark), what

    def __call__(self, number: int) -> dict[str, Any]:
        if number == self.number and not os.path.exists(self.mark):
            Path(self.mark).touch()
            self.what()
        return sample(number)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_the_middle_of_a_partition_leaves_no_half(
    client: Client, tmp_path: Path
) -> None:
    make = OnTheWay(450, tmp_path / "killed", die)
    samples = bag.range(600, npartitions=3).map(make)

    # Segments so small that some of the partition are on the disk when the worker dies.
    written = lazy.write_partitions(
        samples, tmp_path / "store", SCHEMA, scheduler=client, segment_bytes=1, budget="1MB"
    )

    assert (tmp_path / "killed").exists()
    store = rs.open(tmp_path / "store", "a")
    check(store, 600)
    assert written.partitions == (200, 200, 200)
    _check_strays_go(store)


def _check_strays_go(store: rs.Store) -> None:
    """What the killed left behind is in no version, and vacuum removes just that."""
    assert files_of(store.path) > named_by(store)
    store.vacuum()
    assert files_of(store.path) == named_by(store)
    assert store.verify().ok


def _die_when_sealed(mark: str) -> None:
    from raggedstore.store.writer import Writer

    seal = Writer.seal

    def seal_and_die(self: Writer) -> Any:
        sealed = seal(self)
        if sealed.samples and not os.path.exists(mark):
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sealed

    Writer.seal = seal_and_die  # type: ignore[method-assign]


def test_a_worker_killed_between_writing_and_reporting_leaves_no_double(
    client: Client, tmp_path: Path
) -> None:
    client.wait_for_workers(2)
    client.run(_die_when_sealed, str(tmp_path / "killed"))
    samples = bag.range(90, npartitions=6).map(sample)

    written = lazy.write_partitions(samples, tmp_path / "store", SCHEMA, scheduler=client)

    assert (tmp_path / "killed").exists()
    store = rs.open(tmp_path / "store", "a")
    check(store, 90)
    assert written.segments == store.manifest.segment_count == 6
    _check_strays_go(store)


def refuse() -> None:
    raise OSError("a disk that works the second time")


def test_a_task_that_fails_and_is_tried_again_leaves_no_double(
    client: Client, tmp_path: Path
) -> None:
    samples = bag.range(40, npartitions=2).map(OnTheWay(35, tmp_path / "failed", refuse))

    lazy.write_partitions(samples, tmp_path / "store", SCHEMA, scheduler=client, retries=2)

    assert (tmp_path / "failed").exists()
    check(rs.open(tmp_path / "store"), 40)


def test_vacuum_spares_what_is_written_until_it_is_committed(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", SCHEMA)
    (tmp_path / "store" / "segments" / "left-over.h5").touch()

    def vacuum() -> None:
        with rs.open(tmp_path / "store", "a") as other:
            assert not other.vacuum()

    # When the third partition is made, the first two are on the disk and in no version.
    samples = bag.range(30, npartitions=3).map(OnTheWay(25, tmp_path / "done", vacuum))
    lazy.write_partitions(samples, store, scheduler="sync")

    assert (tmp_path / "done").exists()
    check(store, 30)
    assert [path.name for path in store.vacuum()] == ["left-over.h5"]


def test_a_sample_that_does_not_fit_is_named_by_partition_and_nothing_is_committed(
    scheduler: dict[str, Any], tmp_path: Path
) -> None:
    store = rs.create(tmp_path / "store", SCHEMA)
    samples = [*map(sample, range(5)), {**sample(5), "label": "six"}]

    with pytest.raises(rs.SampleError, match="partition 1, after 2 samples: field 'label'"):
        lazy.write_partitions(bag.from_sequence(samples, partition_size=3), store, **scheduler)

    assert store.versions() == [0]


def test_errors_of_the_users_own_stay_what_they_are_and_name_the_partition(
    scheduler: dict[str, Any], tmp_path: Path
) -> None:
    make = OnTheWay(7, tmp_path / "failed", refuse)
    samples = bag.range(10, npartitions=2).map(make)

    with pytest.raises(OSError, match="the second time") as caught:
        lazy.write_partitions(samples, tmp_path / "store", SCHEMA, **scheduler)

    assert "This was partition 1" in "".join(caught.value.__notes__)
    assert rs.open(tmp_path / "store").versions() == [0]


def batch_of(numbers: range) -> dict[str, Any]:
    parts = [sample(number) for number in numbers]
    return {
        "audio": rs.RaggedBatch.from_list([part["audio"] for part in parts], "int16", 1),
        "text": [part["text"] for part in parts],
        "label": np.array([part["label"] for part in parts], "int64"),
    }


def test_partitions_may_be_columns_samples_batches_or_stores(tmp_path: Path) -> None:
    with rs.create(tmp_path / "other", SCHEMA) as other, other.writer() as writer:
        writer.extend(map(sample, range(30, 40)))
    parts: list[Any] = [
        batch_of(range(10)),
        [sample(number) for number in range(10, 15)],
        [batch_of(range(15, 20)), batch_of(range(20, 20)), batch_of(range(20, 30))],
        rs.open(tmp_path / "other"),
        iter([]),
    ]

    written = lazy.write_partitions(
        [dask.delayed(part, traverse=False, pure=False) for part in parts],
        tmp_path / "store",
        SCHEMA,
    )

    assert written.partitions == (10, 5, 15, 10, 0)
    check(rs.open(tmp_path / "store"), 40)


def test_futures_of_a_cluster_are_partitions(client: Client, tmp_path: Path) -> None:
    parts = client.map(batch_of, [range(10), range(10, 20)])

    lazy.write_partitions(parts, tmp_path / "store", SCHEMA, scheduler=client)

    check(rs.open(tmp_path / "store"), 20)


def test_samples_are_written_as_they_are_made(tmp_path: Path) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    most = 0

    def make(number: int) -> dict[str, Any]:
        nonlocal most
        one = sample(number)
        made.append(weakref.ref(one["audio"]))
        most = max(most, sum(array() is not None for array in made))
        return one

    lazy.write_partitions(
        bag.range(200, npartitions=1).map(make), tmp_path / "store", SCHEMA, scheduler="sync"
    )

    check(rs.open(tmp_path / "store"), 200)
    assert most < 10


def test_partitions_are_appended_to_what_is_there(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", SCHEMA)
    for first in (0, 50):
        samples = bag.from_sequence(range(first, first + 50), npartitions=3).map(sample)
        lazy.write_partitions(samples, store, scheduler="sync")

    check(store, 100)
    assert store.version == 2


def test_without_samples_nothing_is_committed(tmp_path: Path) -> None:
    written = lazy.write_partitions(
        bag.from_sequence([]), tmp_path / "store", SCHEMA, scheduler="sync"
    )

    assert written.version == 0 and written.partitions == (0,) and written.segments == 0
    assert rs.open(tmp_path / "store").versions() == [0]


def test_what_makes_no_sense_is_refused_before_a_task_runs(tmp_path: Path) -> None:
    samples = bag.range(10, npartitions=2).map(sample)
    with pytest.raises(rs.UsageError, match="schema"):
        lazy.write_partitions(samples, tmp_path / "store")
    assert not (tmp_path / "store").exists()

    rs.create(tmp_path / "store", SCHEMA)
    with pytest.raises(rs.SchemaError, match="int64"):
        lazy.write_partitions(samples, tmp_path / "store", {"label": rs.Field("int64")})
    with pytest.raises(rs.UsageError, match="mode='a'"):
        lazy.write_partitions(samples, rs.open(tmp_path / "store"))
    with pytest.raises(rs.UsageError, match="got dict in a list"):
        lazy.write_partitions([sample(0)], tmp_path / "store")


# Reading


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    """A store with segments smaller and larger than the partitions asked for."""
    path = tmp_path_factory.mktemp("read") / "store"
    with rs.create(path, SCHEMA, profile=SMALL) as store:
        done = 0
        for count in (5, 300, 1, 20, 0, 200):
            with store.writer() as writer:
                writer.extend(map(sample, range(done, done + count)))
            done += count
    return rs.open(path)


def test_every_scheduler_reads_the_same_samples(
    scheduler: dict[str, Any], speech: rs.Store
) -> None:
    lengths = lazy.field(speech["audio"], partition="32KiB").map(len).compute(**scheduler)
    texts = lazy.field(speech["text"]).compute(**scheduler)

    assert lengths == speech["audio"].lengths.tolist()
    assert texts == speech["text"][:]


@given(
    counts=st.lists(st.integers(0, 40), max_size=4),
    size=st.integers(1, 60_000),
    name=st.sampled_from(["audio", "text", None]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_partitions_hold_each_sample_once_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    size: int,
    name: str | None,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("store") / "store"
    store = rs.create(path, SCHEMA, profile=SMALL)
    for count in counts:
        with store.writer() as writer:
            writer.extend(map(sample, range(len(store), len(store) + count)))
    positions = np.random.default_rng(seed).integers(0, max(len(store), 1), min(len(store), 30))

    for samples in (store, store.select(positions), rs.concat([store, store])):
        view = samples if name is None else samples[name]
        partitions = lazy.field(view, partition=size).to_delayed()
        parts = dask.compute(*partitions, scheduler="sync")
        got, expected = [s for part in parts for s in part], list(view)
        if name is None:
            got, expected = [s["label"] for s in got], [s["label"] for s in expected]
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        if len(expected):
            assert all(parts)


def test_partitions_are_about_as_large_as_asked(speech: rs.Store) -> None:
    batches = lazy.field(speech["audio"], partition="32KiB", form="batches")
    sizes = [batch.values.nbytes for batch in batches.compute(scheduler="sync")]

    assert len(sizes) > 5
    assert max(sizes) < 2**15 + 2 * 500  # a chunk ends in the middle of a sample
    assert np.median(sizes) > 2**14


def test_partitions_end_where_segments_and_chunks_do(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"audio": SCHEMA["audio"]}, profile=SMALL)
    for count in (3, 100, 1, 2, 50):
        with store.writer() as writer:
            writer.extend({"audio": np.arange(512, dtype="int16")} for _ in range(count))

    partitions = lazy.field(store["audio"], partition=10_000)  # chunks hold four samples

    counts = partitions.map_partitions(lambda part: [len(list(part))]).compute(scheduler="sync")
    assert counts == [3, *[8] * 12, 4, 1 + 2, *[8] * 6, 2]


def test_batches_give_whole_columns(speech: rs.Store) -> None:
    parts = lazy.field(speech, partition="64KiB", form="batches").compute(scheduler="sync")

    assert len(parts) > 3
    assert np.concatenate([part["label"] for part in parts]).tolist() == speech["label"][:]
    assert sum(part["audio"].values.sum() for part in parts) == speech["audio"].stats().sum


def test_the_version_is_the_one_that_was_open(scheduler: dict[str, Any], tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", SCHEMA)
    with store.writer() as writer:
        writer.extend(map(sample, range(10)))
    texts = lazy.field(rs.open(tmp_path / "store")["text"])
    with store.writer() as writer:
        writer.extend(map(sample, range(10, 20)))
    store.vacuum(keep=1)  # the bag holds the version, though nobody else does any more

    assert texts.count().compute(**scheduler) == 10


def test_a_process_opens_a_store_once(speech: rs.Store) -> None:
    import pickle

    shared = pickle.dumps(_Shared(speech))
    one, other = pickle.loads(shared), pickle.loads(shared)

    assert one.open() is other.open() is not speech
    # Who only passes it on, as the scheduler does, needs no store.
    assert pickle.loads(pickle.dumps(pickle.loads(shared))).open() is one.open()


def test_fields_of_one_shape_are_left_to_adapt(speech: rs.Store) -> None:
    with pytest.raises(rs.UsageError, match=r"lazy\.adapt"):
        lazy.field(speech["label"])
    with pytest.raises(rs.UsageError, match="'bag', 'batches' or 'awkward'"):
        lazy.field(speech["audio"], form="list")


def test_a_store_goes_through_a_function_into_another(speech: rs.Store, tmp_path: Path) -> None:
    def louder(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "audio": sample["audio"] * 2}

    lazy.write_partitions(
        lazy.field(speech, partition="64KiB").map(louder),
        tmp_path / "louder",
        speech.schema,
        scheduler="threads",
    )

    store = rs.open(tmp_path / "louder")
    assert store["label"][:] == speech["label"][:]
    np.testing.assert_array_equal(
        store["audio"].batch(slice(None)).values, speech["audio"].batch(slice(None)).values * 2
    )


def test_a_field_is_a_dask_awkward_array(speech: rs.Store) -> None:
    dak = pytest.importorskip("dask_awkward")
    if tuple(map(int, dask.__version__.split(".")[:2])) >= (2025, 4):
        pytest.skip("dask-awkward knows Dask before 2025.4")
    array = lazy.field(speech["audio"], partition="64KiB", form="awkward")

    assert array.npartitions > 3
    assert dak.num(array, axis=1).compute().tolist() == speech["audio"].lengths.tolist()
    with pytest.raises(rs.UsageError, match="numbers"):
        lazy.field(speech["text"], form="awkward")


def test_what_a_repair_has_moved_is_read_by_no_bag_or_array_made_before(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", SCHEMA)
    for first in (0, 3, 6):
        with store.writer() as writer:
            writer.extend(sample(i) for i in range(first, first + 3))
    bags = [lazy.field(store["audio"]), lazy.field(store.select([4, 5])), lazy.field(store)]
    array = lazy.adapt(store["label"])
    (store.path / "segments" / store.manifest.segments[0].file).unlink()
    store.repair()

    for made in [*bags, array[3:6]]:
        with pytest.raises(rs.VersionError, match="repair"):
            made.compute(scheduler="sync")


def test_threads_that_open_what_was_repaired_at_once_do_not_take_it_for_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, got = _Shared.__new__(_Shared), []

    class Repaired:
        @property
        def moved(self) -> int:
            if not got:  # another thread opens it while this one does
                got.append(None)
                with ThreadPoolExecutor(1) as pool:
                    got.append(pool.submit(shared.open).result())
            return 3

    samples = Repaired()
    monkeypatch.setattr(partitions, "_open", lambda *_: samples)
    shared.__setstate__((b"", ()))
    assert shared.open() is samples
    assert got[1] is samples


def test_a_bag_keeps_its_version_though_the_store_goes_on(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", SCHEMA)
    with store.writer() as writer:
        writer.extend(sample(i) for i in range(3))
    made = lazy.field(rs.concat([store, store.select([0])]))
    with store.writer() as writer:
        writer.append(sample(3))
    assert store.vacuum(keep=1)  # version 0

    again = pickle.loads(pickle.dumps(made)).compute(scheduler="sync")

    assert [each["label"] for each in again] == [0, 1, 2, 0]
    del made
    _open.cache_clear()
    gc.collect()
    store.vacuum(keep=1)
    with pytest.raises(rs.VersionError):
        rs.open(store.path, version=1)


def test_another_store_at_its_path_is_not_read_by_a_bag(tmp_path: Path) -> None:
    def make(first: int) -> Any:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        store = rs.create(tmp_path / "store", SCHEMA)
        with store.writer() as writer:
            writer.extend(sample(i) for i in range(first, first + 3))
        return lazy.field(store["text"])

    one = make(0)
    pickled = pickle.dumps(one)
    assert pickle.loads(pickled).compute(scheduler="sync")[0] == "number 0"
    other = make(100)

    assert other.name != one.name
    assert pickle.loads(pickle.dumps(other)).compute(scheduler="sync")[0] == "number 100"
    _open.cache_clear()  # as in a process that has not read it before
    with pytest.raises(rs.VersionError, match="another one"):
        pickle.loads(pickled).compute(scheduler="sync")


def test_one_delayed_is_a_partition(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", SCHEMA)
    lazy.write_partitions(dask.delayed([sample(0)]), store, scheduler="sync")
    check(rs.open(store.path), 1)

"""What a writer refuses, and what it leaves behind."""

import errno
import os
import pickle
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tables

import raggedstore as rs
from raggedstore.segment import writer as segment_writer
from raggedstore.segment.file import Descriptor
from raggedstore.store import files
from raggedstore.store.writer import Sealed

SCHEMA = {
    "mel": rs.Field("float32", (None, 80)),
    "count": rs.Field("uint8", (None,)),
    "text": rs.Field("str"),
    "label": rs.Field("int64"),
}


def good() -> dict[str, Any]:
    return {
        "mel": np.zeros((3, 80), "float32"),
        "count": np.arange(4, dtype="uint8"),
        "text": "hello",
        "label": 3,
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[rs.Store]:
    with rs.create(tmp_path / "store", SCHEMA) as store:
        yield store


REFUSED = {
    "a wrong fixed dimension": ("mel", np.zeros((3, 64), "float32"), "mel", "80", "64"),
    "too few dimensions": ("mel", np.zeros(80, "float32"), "mel", "80", "(80,)"),
    "float to int": ("count", np.ones(2), "count", "uint8", "float64"),
    "another kind of integer": ("count", np.ones(2, "int64"), "count", "uint8", "int64"),
    "a list that does not fit": ("count", [1, 256], "count", "uint8", "256"),
    "a negative": ("count", [-1], "count", "uint8", "-1"),
    "too large a float": ("mel", np.full((1, 80), 1e300), "mel", "float32", "1e+300"),
    "too wide an integer": ("label", np.uint64(2**63), "label", "int64", "uint64"),
    "complex to real": ("mel", np.zeros((1, 80), "complex64"), "mel", "float32", "complex64"),
    "bytes for text": ("text", b"x", "text", "str", "bytes"),
    "text that is no UTF-8": ("text", "\ud800", "text", "UTF-8", "surrogates"),
    "a ragged list": ("count", [[1], [1, 2]], "count", "array", "shape"),
    "masked elements": ("count", np.ma.array([1, 2], "uint8", mask=[0, 1]), "count", "mask", ""),
    "an object": ("label", object(), "label", "int64", "object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_value_that_does_not_fit_is_refused_by_field_expected_and_got(
    store: rs.Store, case: str
) -> None:
    name, value, *words = REFUSED[case]
    with store.writer() as writer:
        writer.append(good())
        with pytest.raises(rs.SampleError) as caught:
            writer.append({**good(), name: value})
        writer.append(good())

    for word in words:
        assert word in str(caught.value)
    assert len(store) == 2
    assert store["text"][:] == ["hello", "hello"]
    assert store.verify().ok


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({k: v for k, v in good().items() if k != "mel"}, "missing field 'mel'"),
        ({**good(), "mle": 1}, "unknown field 'mle'"),
        ({"mle" if k == "mel" else k: v for k, v in good().items()}, "missing field 'mel'"),
        ([1, 2], "mapping"),
    ],
)
def test_a_sample_with_other_fields_is_refused(store: rs.Store, sample: Any, words: str) -> None:
    with store.writer() as writer, pytest.raises(rs.SampleError, match=words):
        writer.append(sample)

    assert len(store) == 0
    assert store.versions() == [0]


def test_what_fits_by_value_is_taken(store: rs.Store) -> None:
    with store.writer() as writer:
        writer.append({"mel": np.ones((1, 80)), "count": [], "text": np.str_("é"), "label": True})
        writer.append({"mel": np.empty((0, 80), "f2"), "count": [255], "text": "", "label": -1})

    assert [len(mel) for mel in store["mel"]] == [1, 0]
    assert store["mel"][0].dtype == np.float32
    assert store["count"].batch([1, 0]).values.tolist() == [255]
    assert store["label"].batch(slice(None)).tolist() == [1, -1]


def test_an_exception_in_the_block_changes_nothing_at_all(store: rs.Store) -> None:
    before = sorted(p.name for p in store.path.rglob("*.*"))
    with pytest.raises(RuntimeError, match="mine"), store.writer() as writer:
        writer.extend(good() for _ in range(5000))
        raise RuntimeError("mine")

    after = sorted(p.name for p in store.path.rglob("*.*"))
    assert [name for name in after if not name.endswith(".lock")] == before
    assert len(rs.open(store.path)) == 0


def test_an_early_commit_stays_when_the_block_fails_later(store: rs.Store) -> None:
    with pytest.raises(RuntimeError), store.writer() as writer:
        writer.append(good())
        assert writer.commit() == 1
        writer.append(good())
        raise RuntimeError

    assert len(rs.open(store.path)) == 1


def test_nothing_to_commit_makes_no_version(store: rs.Store) -> None:
    with store.writer() as writer:
        assert writer.commit() == 0

    assert store.versions() == [0]


def test_metadata_may_be_committed_alone(store: rs.Store) -> None:
    with store.writer() as writer:
        assert writer.commit(metadata={"source": "radio"}) == 1

    assert store.metadata == {"source": "radio"}
    assert rs.open(store.path, version=0).metadata == {}


def test_a_closed_writer_says_so(store: rs.Store) -> None:
    with store.writer() as writer:
        pass
    with pytest.raises(rs.UsageError, match="closed"):
        writer.append(good())


def test_a_segment_is_rolled_over_at_its_size(store: rs.Store) -> None:
    rng = np.random.default_rng(0)
    with store.writer(segment_bytes="200kB") as writer:
        for _ in range(40):
            noise = rng.integers(0, 256, 2**16, dtype="uint8")
            writer.append({**good(), "count": noise})
            writer.extend_batch(
                {
                    "mel": [good()["mel"]],
                    "count": rs.RaggedBatch(noise, [0, 2**16]),
                    "text": ["x"],
                    "label": [1],
                }
            )

    sizes = [entry.bytes for entry in store.manifest.segments]
    assert len(sizes) >= 3  # chunks still being encoded when a segment is full belong to it
    assert sum(entry.samples for entry in store.manifest.segments) == len(store) == 80
    assert store.verify().ok


def test_a_batch_of_unequal_lengths_or_wrong_shapes_is_refused_whole(store: rs.Store) -> None:
    batch = {
        "mel": rs.RaggedBatch(np.zeros((4, 80), "f4"), [0, 1, 4]),
        "count": rs.RaggedBatch(np.zeros(3, "u1"), [0, 3, 3]),
        "text": ["a", "b"],
        "label": np.arange(2),
    }
    wrong: list[dict[str, Any]] = [
        {**batch, "label": np.arange(3)},
        {**batch, "mel": rs.RaggedBatch(np.zeros((4, 79), "f4"), [0, 1, 4])},
        {**batch, "count": rs.RaggedBatch(np.zeros(3), [0, 3, 3])},
        {**batch, "label": np.zeros((2, 1), int)},
        {**batch, "text": "ab"},
        {k: v for k, v in batch.items() if k != "text"},
    ]
    with store.writer() as writer:
        for one in wrong:
            with pytest.raises(rs.SampleError):
                writer.extend_batch(one)
        writer.extend_batch(batch)

    assert store["text"][:] == ["a", "b"]
    assert [mel.shape for mel in store["mel"]] == [(1, 80), (3, 80)]


def test_an_array_that_is_changed_after_append_does_not_change_the_store(store: rs.Store) -> None:
    sample = good()
    with store.writer() as writer:
        writer.append(sample)
        sample["count"][:] = 99
        sample["mel"][:] = 99

    assert store["count"][0].tolist() == [0, 1, 2, 3]
    assert not store["mel"][0].any()


def test_a_full_disk_names_the_file_and_leaves_the_store_as_it_was(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.writer() as writer:
        writer.append(good())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        writer = store.writer()
        writer.append(good())
        with pytest.raises(rs.StorageError, match=r"segments.*No space left"):
            writer.commit()
        with pytest.raises(rs.StorageError, match="failed earlier"):
            writer.append(good())

    assert store.versions() == [0, 1]
    assert store.verify().ok
    with store.writer() as writer:
        writer.append(good())
    assert len(store) == 2


def test_what_hdf5_cannot_finish_is_not_committed(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTables says nothing when HDF5 fails to write the last of a file as it is closed."""

    def close(file: tables.File) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        try:
            real(file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    real = tables.File.close
    with monkeypatch.context() as patched, pytest.raises(rs.StorageError, match="File too large"):
        patched.setattr(tables.File, "flush", lambda file: None)
        patched.setattr(tables.File, "close", close)
        with store.writer() as writer:
            writer.append(good())

    assert rs.open(store.path).versions() == [0]
    assert list((store.path / "segments").iterdir()) == []


def test_a_segment_that_cannot_be_begun_leaves_nothing(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(tables, "open_file", refuse)
    with (
        pytest.raises(rs.StorageError, match="Too many open files"),
        store.writer(segment_bytes=1) as writer,
    ):
        writer.append(good())

    assert list((store.path / "segments").iterdir()) == []


def test_a_commit_that_only_the_reader_cannot_follow_says_that_it_took_place(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(rs.Store, "_follow", refuse)
        with (
            pytest.raises(rs.StorageError, match=r"version 1 is committed, but .* open files"),
            store.writer() as writer,
        ):
            writer.append(good())

    assert len(rs.open(store.path)) == 1
    assert not [thread for thread in threading.enumerate() if "encode" in thread.name]
    lock = Descriptor(store.path / "writers.lock")
    assert files.lock_exclusive(lock)  # nobody writes any more
    lock.close()


# Segments that one writer seals and another commits


def sealed(path: Path, *labels: int, segment_bytes: int = 2**20) -> Sealed:
    """What somebody else seals of samples with these labels, and has forgotten since."""
    with rs.open(path, "a").writer(segment_bytes=segment_bytes) as writer:
        writer.extend({**good(), "label": label} for label in labels)
        return pickle.loads(pickle.dumps(writer.seal()))


def test_segments_are_committed_in_the_order_of_adoption(store: rs.Store) -> None:
    with store.writer() as writer:
        last = sealed(store.path, 3, 4)
        first = sealed(store.path, 1)
        writer.append({**good(), "label": 0})
        writer.adopt(first)
        writer.append({**good(), "label": 2})
        writer.adopt(last)
        assert writer.pending == 5 and (first.samples, last.samples) == (1, 2)
        assert store.versions() == [0]

    assert store.version == 1 and store["label"][:] == [0, 1, 2, 3, 4]
    assert store.verify().ok


def test_profiles_are_settled_by_the_first_that_could_choose(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"x": rs.Field("int16", (None,))})
    parts = []
    with store.writer() as writer:
        for count in (10, 100_000, 200_000):
            with rs.open(tmp_path / "store", "a").writer() as other:
                other.append({"x": np.arange(count, dtype="int16")})
                parts.append(other.seal())
        for part in parts:
            writer.adopt(part)

    assert isinstance(parts[0].compressions["x"], str)
    assert store.compression == parts[1].compressions


@pytest.mark.parametrize("profile", ["fast", "balanced", "small"])
def test_a_profile_is_not_settled_by_silence(tmp_path: Path, profile: str) -> None:
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(900_000) * 300).astype("int16")
    silence = np.zeros(300_000, "int16")
    silence[::10_000] = 1
    store = rs.create(tmp_path / "store", {"x": rs.Field("int16", (None,))}, profile=profile)
    with store.writer() as writer:
        writer.append({"x": silence})
    assert store.compression == {"x": profile}
    with store.writer() as writer:
        writer.append({"x": silence})
        writer.append({"x": noise})

    chosen = store.compression["x"]
    assert isinstance(chosen, rs.Compression) and chosen.filters
    assert store.verify().ok
    for i, x in enumerate([silence, silence, noise]):
        np.testing.assert_array_equal(store[i]["x"], x)
    starts = np.arange(0, 900_000, 50_000)
    got = store["x"].crop(np.full(len(starts), 2), starts, starts + 10)
    np.testing.assert_array_equal(got.values, np.concatenate([noise[a : a + 10] for a in starts]))


def test_what_is_sealed_and_not_adopted_is_in_no_version(store: rs.Store) -> None:
    left = sealed(store.path, 1, 2)

    assert store.versions() == [0]
    removed = {path.name for path in store.vacuum()}
    assert removed == {left.entries[0].file, left.entries[0].index}
    with pytest.raises(rs.StorageError, match="one folder"), store.writer() as writer:
        writer.adopt(left)
    assert store.versions() == [0]


def test_segments_of_another_folder_are_refused(store: rs.Store, tmp_path: Path) -> None:
    with rs.create(tmp_path / "other", SCHEMA) as other:
        elsewhere = sealed(other.path, 1)

    with store.writer() as writer:
        writer.append(good())
        with pytest.raises(rs.StorageError, match=elsewhere.entries[0].file):
            writer.adopt(elsewhere)

    assert len(store) == 1 and store.verify().ok


def test_nothing_is_adopted_twice(store: rs.Store) -> None:
    with store.writer() as writer:
        part = sealed(store.path, 1)
        writer.adopt(part)
        with pytest.raises(rs.ConflictError, match="adopted already"):
            writer.adopt(part)
        writer.commit()
        writer.adopt(sealed(store.path, 2))
        writer.commit()
        writer.append({**good(), "label": 3})

    with (
        pytest.raises(rs.ConflictError, match="version 3, or one before it, has 1 of"),
        store.writer() as writer,
    ):
        writer.adopt(part)
    assert store["label"][:] == [1, 2, 3] and store.versions() == [0, 1, 2, 3]
    assert store.verify().ok


def test_a_writer_that_fails_leaves_what_it_adopted_to_vacuum(store: rs.Store) -> None:
    with store.writer() as writer:
        committed, other = sealed(store.path, 1), sealed(store.path, 2)
        writer.adopt(committed)
    with pytest.raises(RuntimeError), store.writer() as writer:
        writer.adopt(other)
        writer.adopt(committed)  # by mistake: it is in a version
        writer.append(good())
        raise RuntimeError

    assert rs.open(store.path)["label"][:] == [1] and store.verify().ok
    assert {path.name for path in store.vacuum()} == {other.entries[0].file, other.entries[0].index}


@pytest.mark.parametrize("profile", ["fast", "small"])
def test_arrays_of_many_chunks_are_the_callers_again_once_they_are_taken(
    tmp_path: Path, profile: str
) -> None:
    values = np.random.default_rng(0).integers(0, 50, 3_000_000).astype("i2")  # 12 chunks
    offsets, taken = np.arange(0, len(values) + 1, 1000), values.copy()
    with (
        rs.create(tmp_path / "s", {"x": rs.Field("i2", (None,))}, profile=profile) as store,
        store.writer() as writer,
    ):
        writer.extend_batch({"x": rs.RaggedBatch(taken, offsets)})
        taken[:] = -1
        writer.extend_batch({"x": rs.RaggedBatch(values[::-1], offsets)})
    with rs.open(tmp_path / "s") as store:
        read = store["x"].batch(slice(None)).values
    np.testing.assert_array_equal(read, np.concatenate([values, values[::-1]]))


def test_metadata_that_is_refused_costs_nothing_that_was_appended(store: rs.Store) -> None:
    before = len(store)
    with store.writer() as writer:
        writer.append({"mel": np.zeros((2, 80), "f4"), "count": [1], "text": "a", "label": 1})
        with pytest.raises(rs.UsageError, match="metadata"):
            writer.commit(metadata={"when": np.int64(3)})
        writer.commit(metadata={"when": 3})
    assert len(rs.open(store.path)) == before + 1


def test_rows_that_are_larger_than_chunks_count_by_their_size(tmp_path: Path) -> None:
    """Or eight chunks of them would be in flight at a time."""
    store = rs.create(tmp_path / "large", {"x": rs.Field("u1", (2**25,))})
    with store, store.writer(budget="128MB") as writer:
        assert writer._open_sink()._in_flight == 1


def test_what_was_adopted_is_not_adopted_again_after_the_store_was_compacted(
    store: rs.Store,
) -> None:
    for label in (1, 2):
        with store.writer() as writer:
            part = sealed(store.path, label)
            writer.adopt(part)
    store.compact()

    with pytest.raises(rs.ConflictError, match="already"), store.writer() as writer:
        writer.adopt(part)
    assert rs.open(store.path)["label"][:] == [1, 2]


def test_threads_may_share_a_writer(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"i": rs.Field("i8"), "x": rs.Field("i8", (None,))})

    def fill(first: int) -> None:
        for i in range(first, first + 500):
            writer.append({"i": i, "x": np.full(i % 7, i)})
            if i % 100 == 0:
                writer.extend_batch({"i": [-i], "x": [[-i]]})
                writer.commit()

    with store.writer(segment_bytes=10_000) as writer:
        threads = [threading.Thread(target=fill, args=(1000 * n,)) for n in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    read = rs.open(store.path)
    assert sorted(i for i in read["i"][:] if i >= 0) == [
        1000 * n + i for n in range(1, 5) for i in range(500)
    ]
    assert all((sample["x"] == sample["i"]).all() for sample in read) and read.verify().ok


@pytest.mark.parametrize("size", [2**24 + 10, 2**24 - 5000])
def test_metadata_that_does_not_fit_costs_nothing_that_was_appended(
    store: rs.Store, size: int
) -> None:
    with store.writer() as writer:
        writer.append(good())
        with pytest.raises(rs.UsageError, match="manifest of"):
            writer.commit(metadata={"x": "x" * size})
        writer.append(good())
    assert len(rs.open(store.path)) == 2


@pytest.mark.parametrize("value", [None, 5, [np.ma.array([1, 2], mask=[False, True])], [[300]]])
def test_a_batch_of_what_is_no_list_of_arrays_is_refused(store: rs.Store, value: Any) -> None:
    batch = {"mel": [np.zeros((1, 80), "f4")], "count": value, "text": ["a"], "label": [1]}
    with store.writer() as writer:
        with pytest.raises(rs.SampleError):
            writer.extend_batch(batch)
        assert writer.pending == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
def test_a_handler_of_a_signal_does_not_come_between_an_append(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"i": rs.Field("i8"), "x": rs.Field("i8", (None,))})
    refused: list[str] = []

    def handler(*_: object) -> None:
        for use in (lambda: writer.append({"i": -1, "x": [-1]}), writer.commit):
            try:
                use()
            except rs.UsageError as error:
                refused.append(str(error))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        with store.writer() as writer:
            for i in range(20_000):
                writer.append({"i": i, "x": np.full(i % 7, i)})
                if refused and i > 2000:
                    break
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    read = rs.open(store.path)
    assert all("interrupted" in message for message in refused)
    assert [s["i"] for s in read if s["i"] >= 0] == list(range(i + 1))
    assert all((sample["x"] == sample["i"]).all() for sample in read) and read.verify().ok


def test_adopted_segments_that_are_gone_are_not_committed(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"i": rs.Field("i8")})
    writer = store.writer()
    with rs.open(store.path, mode="a").writer() as other:
        other.append({"i": 1})
        sealed = other.seal()
    writer.adopt(sealed)
    (store.path / "segments" / sealed.entries[0].file).unlink()

    with pytest.raises(rs.StorageError, match="0 bytes here"):
        writer.commit()
    assert rs.open(store.path).version == 0
    with store.writer() as writer, pytest.raises(rs.UsageError, match="seal"):
        writer.adopt([sealed])  # type: ignore[arg-type]


@pytest.mark.parametrize("few", [0, 10**9])
def test_chunk_tables_say_where_hdf5_has_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(segment_writer, "_FEW", few)
    small = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=1024)
    schema = {"vector": rs.Field("i4", (None,)), "frame": rs.Field("f4", (3, 500)), "ü": "str"}
    store = rs.create(tmp_path / "store", schema, profile=small)
    with store.writer() as writer:
        for i in range(60):
            frame = np.full((3, 500), i, "f4")
            writer.append({"vector": np.arange(i * 90, dtype="i4"), "frame": frame, "ü": "ü" * i})

    reader = rs.open(store.path)._snapshot.reader(0)
    with h5py.File(reader.file.path) as file:
        for name, columns in reader.table.datasets.items():
            for column, table in columns.items():
                dataset = file[name][column].id
                for i, entry in enumerate(table.entries):
                    place = (i * table.chunk_rows, *(0,) * len(table.column.row_shape))
                    info = dataset.get_chunk_info_by_coord(place)
                    assert (info.byte_offset, info.size) == (entry["offset"], entry["size"])
    assert len(reader.table.datasets["vector"]["data"].entries) > 50
    assert store.verify().ok

"""Making, opening and sharing stores."""

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.store import snapshot as snapshots


def filled(path: Path, count: int = 50) -> rs.Store:
    store = rs.create(path, {"values": rs.Field("int32", (None,)), "label": rs.Field("int8")})
    with store.writer() as writer:
        writer.extend({"values": np.arange(i), "label": i} for i in map(np.int16, range(count)))
    return store


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: rs.create(path, {}), rs.SchemaError),
        (lambda path: rs.create(path, {"a b": rs.Field("i4")}), rs.SchemaError),
        (lambda path: rs.create(path, {"_a": rs.Field("i4")}), rs.SchemaError),
        (lambda path: rs.create(path, {"a": rs.Field("i4")}, profile="best"), rs.UsageError),
        (lambda path: rs.create(path, {"a": rs.Field("i4")}, profile={"b": "fast"}), KeyError),
        (lambda path: rs.create(path, {"a": rs.Field("i4")}, metadata={"a": {1}}), rs.UsageError),
        (lambda path: rs.create(path, {"a": rs.Field("i4")}, metadata={"a": {1: 2}}), ValueError),
        (lambda path: rs.create(path, {"a": rs.Field("i4")}, metadata=[1]), rs.UsageError),
        (lambda path: rs.create(f"{path}\0", {"a": rs.Field("i4")}), rs.UsageError),
        (lambda path: rs.create(5, {"a": rs.Field("i4")}), rs.UsageError),
        (lambda path: rs.create(path, {"a": rs.Field("(2,")}), rs.SchemaError),
        (lambda path: rs.create(path, {"a": rs.Field(None)}), rs.SchemaError),
        (lambda path: rs.open(path), FileNotFoundError),
        (lambda path: rs.open(None), rs.UsageError),
        (lambda path: rs.open(path.parent, version="7"), rs.UsageError),
        (lambda path: rs.open(path.parent, version=True), rs.UsageError),
    ],
)
def test_what_makes_no_sense_is_refused_and_makes_nothing(
    tmp_path: Path, make: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        make(tmp_path / "store")

    assert isinstance(caught.value, rs.RaggedStoreError)
    assert not (tmp_path / "store").exists()


def test_create_never_touches_what_is_there(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    for taken in ("store", "folder"):
        with pytest.raises(rs.ConflictError):
            rs.create(tmp_path / taken, {"a": rs.Field("i4")})
    assert len(rs.open(tmp_path / "store")) == 50


def test_a_create_that_died_half_way_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "store" / "versions").mkdir(parents=True)
    (tmp_path / "store" / "versions" / ".tmp-1-ab").write_text("{")

    assert rs.create(tmp_path / "store", {"a": rs.Field("i4")}).version == 0


def test_a_reader_stays_where_it_is_until_it_is_refreshed(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    reader = rs.open(tmp_path / "store")
    assert isinstance(reader, rs.Store)

    with store.writer() as writer:
        writer.append({"values": [1], "label": 1})

    assert (len(store), len(reader)) == (51, 50)
    assert reader.refresh() == 2
    assert len(reader) == 51
    assert len(rs.open(tmp_path / "store", version=1)) == 50
    with pytest.raises(LookupError, match="no version 9; it has 0 to 2"):
        rs.open(tmp_path / "store", version=9)


def test_a_reader_keeps_its_snapshot_while_a_writer_appends_compacts_and_vacuums(
    tmp_path: Path,
) -> None:
    store = filled(tmp_path / "store")
    reader = rs.open(tmp_path / "store")
    assert isinstance(reader, rs.Store)
    with store.writer() as writer:
        writer.append({"values": [1], "label": 1})
    store.compact()

    removed = store.vacuum(keep=1)

    assert [len(values) for values in reader["values"]] == list(range(50))
    assert reader.version in store.versions()
    assert removed
    reader.close()
    store.vacuum(keep=1)
    assert store.versions() == [store.version]
    assert len(list((tmp_path / "store" / "segments").iterdir())) == 2


def test_opening_goes_on_to_the_newer_version_when_the_newest_is_vacuumed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "store")
    real, raced = snapshots.newest_version, False

    def overtaken(root: Path, hint: int | None = None) -> int:
        nonlocal raced
        found = real(root, hint)
        if not raced:
            raced = True
            with store.writer() as writer:
                writer.append({"values": [1], "label": 1})
            store.vacuum(keep=1)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "newest_version", overtaken)
        assert len(rs.open(tmp_path / "store")) == 51
    assert store.versions() == [2]


@pytest.mark.parametrize("what", ["commit", "compact"])
def test_a_version_made_and_at_once_vacuumed_by_others_is_no_error_to_its_maker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    store = filled(tmp_path / "store")
    with store.writer() as writer:
        writer.append({"values": [1], "label": 1})
    real, raced = store._follow, False

    def follow(*arguments: Any) -> None:
        nonlocal raced
        if not raced:
            raced = True
            with rs.open(tmp_path / "store", "a") as other:
                assert isinstance(other, rs.Store)
                with other.writer() as writer:
                    writer.append({"values": [2], "label": 2})
                other.vacuum(keep=1)
        real(*arguments)

    monkeypatch.setattr(store, "_follow", follow)
    if what == "compact":
        assert store.compact() == 3
    else:
        with store.writer() as writer:
            writer.append({"values": [3], "label": 3})
            assert writer.commit() == 3

    assert store.version == 4
    assert len(store) == (52 if what == "compact" else 53)
    assert store.verify().ok


def test_vacuum_spares_what_a_writer_has_not_committed(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    with store.writer(segment_bytes=1) as writer:
        for _ in range(600):
            writer.append({"values": np.random.default_rng(0).integers(0, 99, 500), "label": 1})
        assert not [path for path in store.vacuum(keep=1) if path.parent.name == "segments"]

    assert len(rs.open(tmp_path / "store")) == 650
    assert store.verify().ok


def test_only_a_store_opened_to_write_writes(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    reader = rs.open(tmp_path / "store")
    assert isinstance(reader, rs.Store)
    for change in (reader.writer, reader.compact, reader.vacuum):
        with pytest.raises(ValueError, match="mode='a'"):
            change()


def test_opening_to_read_changes_no_byte(tmp_path: Path) -> None:
    filled(tmp_path / "store")

    def state() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}

    before = state()
    store = rs.open(tmp_path / "store", verify=True)
    list(store)
    assert state() == before


def test_repr_says_what_it_is(tmp_path: Path) -> None:
    text = repr(filled(tmp_path / "store"))

    for word in ("store", "version 1", "50 samples", "values", "int32", "label"):
        assert word in text


def read_all(store: rs.Store) -> list[int]:
    return [int(values.sum()) for values in store["values"]]


WANT = [i * (i - 1) // 2 for i in range(50)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_goes_to_other_processes(tmp_path: Path, method: str) -> None:
    store = filled(tmp_path / "store")
    store[0]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_all, [store, store]) == [WANT, WANT]


def test_a_pickled_store_and_view_open_the_same_version(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    view = pickle.loads(pickle.dumps(store.select([4, 2], fields=["values"])))
    again = pickle.loads(pickle.dumps(store))
    with store.writer() as writer:
        writer.append({"values": [1], "label": 1})

    assert [len(sample["values"]) for sample in view] == [4, 2]
    assert (again.version, len(again)) == (1, 50)


def test_many_threads_read_one_store(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(read_all, [store] * 32):
            assert result == WANT


def test_history_says_what_each_version_was_made_by(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    with store.writer() as writer:
        writer.append({"values": [1], "label": 1})
    store.compact()

    history = store.history()

    assert [line.operation for line in history] == ["create", "append", "append", "compact"]
    assert [line.samples for line in history] == [0, 50, 51, 51]
    assert [line.segments for line in history] == [0, 1, 2, 1]


def test_a_store_stays_the_one_that_was_opened_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        monkeypatch.chdir(tmp_path / run)
        with rs.create("corpus", {"i": rs.Field("i8")}) as made, made.writer() as writer:
            writer.append({"i": 1})
    monkeypatch.chdir(tmp_path / "one")
    store = rs.open("corpus", mode="a")
    writer = store.writer()
    monkeypatch.chdir(tmp_path / "two")
    with writer:
        writer.append({"i": 2})
    store.export("out.h5")
    single = rs.open("out.h5")
    monkeypatch.chdir(tmp_path)

    assert list(store["i"]) == list(single["i"]) == [1, 2]
    assert len(rs.open("one/corpus")) == 2 and len(rs.open("two/corpus")) == 1


def test_a_closed_store_has_no_files_open(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"i": rs.Field("i8")})
    for i in range(5):
        with store.writer() as writer:
            writer.append({"i": i})
    store.export(tmp_path / "x.h5")

    def opened() -> list[str]:
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        found = (os.readlink(link) for link in links if os.path.lexists(link))
        return [name for name in found if name.startswith(str(tmp_path)) and ".h5" in name]

    store.close()
    for path in store.path, tmp_path / "x.h5":
        samples = rs.open(path)
        assert samples["i"][:] == list(range(5))
        assert opened()
        samples.close()
        assert not opened()
        assert samples["i"][:] == list(range(5))  # which opens them again
        samples.close()

"""Segment lists: made when a manifest is full, shared by later versions, believed never blindly."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import raggedstore as rs
from raggedstore.store import files, lists
from raggedstore.store.lists import ListEntry, dump_list, read_list, seal
from raggedstore.store.manifest import Manifest, load, path_of
from tests.store.test_commit import append, lists_of

DIRECT = 3


@pytest.fixture(autouse=True)
def few_direct_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "DIRECT", DIRECT)


@pytest.fixture
def store(tmp_path: Path) -> rs.Store:
    """Eight segments of one sample: two lists of three, and two direct ones."""
    store = rs.create(tmp_path / "store", {"a": rs.Field("i4", (None,))})
    for i in range(8):
        append(store, [i])
    return store


WANT = [[i] for i in range(8)]


def reopen(store: rs.Store, mode: str = "r") -> rs.Store:
    fresh = rs.open(store.path, mode)
    assert isinstance(fresh, rs.Store)
    return fresh


def list_path(store: rs.Store, number: int) -> Path:
    return store.path / "versions" / store.manifest.lists[number].file


def list_files(store: rs.Store) -> set[str]:
    return {path.name for path in (store.path / "versions").glob("*.list")}


def test_a_manifest_that_is_full_rolls_over_into_a_list_of_just_that_many(store: rs.Store) -> None:
    shapes = []
    for version in store.versions():
        manifest = load(store.path, version)
        shapes.append(([entry.segments for entry in manifest.lists], len(manifest.recent)))

    assert shapes == [
        ([], 0), ([], 1), ([], 2), ([], 3),
        ([3], 1), ([3], 2), ([3], 3),
        ([3, 3], 1), ([3, 3], 2),
    ]  # fmt: skip
    for version in store.versions():
        old = rs.open(store.path, version=version)
        assert isinstance(old, rs.Store)
        assert lists_of(old) == WANT[:version]
        assert old.manifest.segments == store.manifest.segments[:version]


def test_later_versions_share_the_lists_of_earlier_ones(store: rs.Store) -> None:
    first, second = store.manifest.lists
    assert load(store.path, 4).lists == (first,)
    assert list_files(store) == {first.file, second.file}


def test_what_all_segments_come_to_is_known_without_a_list(store: rs.Store) -> None:
    segments = store.manifest.segments
    for entry in store.manifest.lists:
        (store.path / "versions" / entry.file).unlink()
    fresh = reopen(store)

    assert len(fresh) == 8
    assert fresh.nbytes == sum(entry.raw_bytes for entry in segments) == 32
    assert fresh.nbytes_stored == sum(entry.bytes + entry.index_bytes for entry in segments)
    assert [line.segments for line in fresh.history()] == list(range(9))


def test_a_commit_reads_and_writes_no_list_but_the_one_it_fills(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (store.path / "versions").glob("*.list"):
        path.unlink()

    append(store, [8])
    assert list_files(store) == set()
    append(store, [9])
    assert list_files(store) == {store.manifest.lists[2].file}


def test_many_segments_in_one_commit_fill_many_lists(tmp_path: Path) -> None:
    small = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=1024)
    store = rs.create(tmp_path / "store", {"a": rs.Field("i4", (None,))}, profile=small)
    noise = np.random.default_rng(0).integers(0, 2**31, 2**18, dtype="i4")
    with store.writer(segment_bytes=1) as writer:
        for _ in range(12):
            writer.extend_batch({"a": rs.RaggedBatch(noise, [0, 2**18])})

    manifest = store.manifest
    assert len(manifest.lists) > 1
    assert {entry.segments for entry in manifest.lists} == {DIRECT}
    assert 1 <= len(manifest.recent) <= DIRECT
    assert len(store) == 12
    assert store.verify().ok


def test_compaction_leaves_the_lists_before_what_it_joins(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"a": rs.Field("i4", (None,))})
    large = np.random.default_rng(0).integers(0, 2**31, 20_000, dtype="i4").tolist()
    for values in [large] * 4 + [[i] for i in range(4)]:
        append(store, values)
    before = load(store.path, 8)
    inode = list_path(store, 0).stat().st_ino

    store.compact(segment_bytes=100_000)

    assert [entry.segments for entry in before.lists] == [3, 3]
    assert store.manifest.lists == before.lists[:1]
    assert store.manifest.segments[:4] == before.segments[:4]
    assert list_path(store, 0).stat().st_ino == inode  # nobody wrote it again
    assert lists_of(store) == [large] * 4 + [[i] for i in range(4)]


def test_a_compacted_store_has_no_lists_left_after_vacuum(store: rs.Store) -> None:
    store.compact()
    assert lists_of(store) == WANT
    assert store.manifest.lists == ()
    assert list_files(store)

    removed = store.vacuum(keep=1)

    assert {path.name for path in removed if path.suffix == ".list"}
    assert list_files(store) == set()
    assert lists_of(reopen(store)) == WANT


def test_vacuum_keeps_the_lists_of_versions_that_are_read(store: rs.Store) -> None:
    reader = reopen(store)
    store.compact()
    store.vacuum(keep=1)

    assert list_files(store) == {entry.file for entry in reader.manifest.lists}
    assert lists_of(reader) == WANT
    reader.close()
    store.vacuum(keep=1)
    assert list_files(store) == set()


def test_vacuum_leaves_a_list_that_a_commit_is_about_to_name(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, [8])
    real = files.publish

    def publish(path: Path, data: bytes, **options: Any) -> None:
        other = reopen(store, "a")
        assert other.vacuum(keep=1)
        real(path, data, **options)

    with monkeypatch.context() as patched:
        patched.setattr(files, "publish", publish)
        append(store, [9])

    assert len(store.manifest.lists) == 3
    assert lists_of(reopen(store)) == [*WANT, [8], [9]]
    assert store.verify().ok


def test_a_list_that_no_version_came_to_name_is_swept(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, [8])

    def die(path: Path, data: bytes, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "publish", die)
        with pytest.raises(OSError, match="No space"):
            append(store, [9])
    assert len(list_files(store)) == 3

    store.vacuum(keep=100)

    assert list_files(store) == {entry.file for entry in store.manifest.lists}
    assert len(list_files(store)) == 2
    append(store, [9])
    assert lists_of(reopen(store)) == [*WANT, [8], [9]]


def test_the_list_is_on_the_disk_with_its_name_before_the_manifest_is_written(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, [8])
    done: list[str] = []

    def note(step: str) -> Callable[..., Any]:
        real = getattr(files, step)

        def noted(path: Path, *more: Any, **options: Any) -> Any:
            target = more[0] if step == "rename" else path
            done.append(f"{step} {target.name.lstrip('.')[:3]} {target.suffix}".strip())
            return real(path, *more, **options)

        return noted

    with monkeypatch.context() as patched:
        for step in ("rename", "sync_folder", "publish"):
            patched.setattr(files, step, note(step))
        append(store, [9])

    named = store.manifest.lists[2].file[:3]
    at = done.index(f"rename {named} .list")
    assert done[at:][:3] == [
        f"rename {named} .list",
        "sync_folder ver",
        "publish 000 .json",
    ]


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped": (damage_flip, "damaged"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 1), "damaged"),
    "empty": (lambda path: os.truncate(path, 0), "damaged"),
    "missing": (lambda path: path.unlink(), "missing"),
    "link": (damage_link, "symbolic link"),
    "another": (lambda path: path.write_bytes(seal("list", {"segments": []})), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_is_named_and_only_its_samples_are_lost(
    store: rs.Store, damage: str
) -> None:
    path = list_path(store, 1)
    act, word = DAMAGES[damage]
    act(path)
    fresh = reopen(store)

    for lost in (3, 5):
        with pytest.raises(rs.CorruptionError, match=f"{path.name}.*{word}"):
            fresh[lost]
    assert [fresh["a"][i].tolist() for i in (0, 2, 6, 7)] == [[0], [2], [6], [7]]
    report = fresh.verify()
    [fault] = report.faults
    assert (fault.segment, fault.sample) == (path.name, 3)
    assert (report.samples, report.segments, report.damaged) == (8, 8, 3)
    assert str(fault).startswith(f"segment list {path.name}, sample 3: ")
    with pytest.raises(rs.CorruptionError, match=path.name):
        rs.open(store.path, verify=True)


def test_nothing_loose_is_removed_and_nothing_joined_while_a_list_cannot_be_read(
    store: rs.Store,
) -> None:
    damage_flip(list_path(store, 1))
    before = sorted(store.path.rglob("*"))
    writing = reopen(store, "a")

    with pytest.raises(rs.CorruptionError, match="damaged"):
        writing.compact()
    with pytest.raises(rs.CorruptionError, match="damaged"):
        writing.vacuum(keep=100)

    assert sorted(store.path.rglob("*")) == before
    append(writing, [8])
    assert len(writing) == 9


@pytest.mark.parametrize("what", ["segments", "samples", "bytes", "index_bytes", "raw_bytes"])
def test_a_manifest_that_lies_about_a_list_is_found_out(store: rs.Store, what: str) -> None:
    entry = store.manifest.lists[0]
    lie = dataclasses.replace(entry, **{what: getattr(entry, what) + 1})
    path_of(store.path, 9).write_bytes(
        store.manifest.child(lists=(lie, *store.manifest.lists[1:])).dumps()
    )
    fresh = reopen(store)

    with pytest.raises(rs.CorruptionError, match=f"{entry.file}.*were written"):
        fresh[0]
    assert fresh["a"][-1].tolist() == [7]
    assert [fault.segment for fault in fresh.verify().faults] == [entry.file]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"segments": None},
        {"segments": [["../" + "a" * 32 + ".h5", 1, 1, 1, 1, "", ""]]},
        {"segments": [["a" * 32 + ".h5", -1, 1, 1, 1, "", ""]]},
        {"segments": [["a" * 32 + ".h5", True, 1, 1, 1, "", ""]]},
    ],
)
def test_a_list_that_makes_no_sense_is_refused(store: rs.Store, value: Any) -> None:
    data = seal("list", value)
    name = f"{xxhash.xxh3_128_hexdigest(data)}.list"
    (store.path / "versions" / name).write_bytes(data)

    with pytest.raises(rs.FormatError, match=name):
        read_list(store.path, ListEntry(name, 1, 1, 1, 1, 1))


@pytest.mark.parametrize(
    "name",
    ["../" + "a" * 32 + ".list", "/etc/passwd", "a.list", "A" * 32 + ".list", "a" * 32 + ".h5", 7],
)
def test_a_list_s_name_cannot_lead_out_of_the_store(store: rs.Store, name: Any) -> None:
    forged = dataclasses.replace(store.manifest, lists=(ListEntry(name, 1, 1, 1, 1, 1),))

    with pytest.raises(rs.FormatError, match="list entry"):
        Manifest.loads(forged.dumps(), store.path)


def test_a_list_named_twice_is_refused(store: rs.Store) -> None:
    forged = dataclasses.replace(store.manifest, lists=store.manifest.lists * 2)

    with pytest.raises(rs.FormatError, match="named twice"):
        Manifest.loads(forged.dumps(), store.path)


def test_a_list_too_large_to_be_one_is_not_read(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.manifest.lists[0]
    monkeypatch.setattr(lists, "MAX_BYTES", 100)

    with pytest.raises(rs.FormatError, match="too large for a list"):
        read_list(store.path, entry)


def test_the_same_segments_make_the_same_list(store: rs.Store) -> None:
    entries = store.manifest.segments[:3]
    entry, data = dump_list(entries)

    assert entry == store.manifest.lists[0]
    assert list_path(store, 0).read_bytes() == data
    assert read_list(store.path, entry) == entries

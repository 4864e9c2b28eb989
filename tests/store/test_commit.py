"""Stopped at any step, a commit leaves the last version whole."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raggedstore as rs
from raggedstore.store import files, lists
from raggedstore.store.manifest import path_of

STEPS = ["sync_file", "write_file", "rename", "sync_folder", "put", "publish"]


class Stopped(Exception):
    """The process died here."""


def stops(
    monkeypatch: pytest.MonkeyPatch, step: str, nth: int, after: bool, act: Callable[[], Any]
) -> bool:
    """`act`, but that the `nth` call of a step of `files` ends it; whether it came so far."""
    calls, real = 0, getattr(files, step)

    def stop(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != nth:
            return real(*arguments, **options)
        if after:
            real(*arguments, **options)
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(files, step, stop)
        try:
            act()
        except Stopped:
            return True
    return False


@pytest.fixture
def store(tmp_path: Path) -> rs.Store:
    store = rs.create(tmp_path / "store", {"a": rs.Field("i4", (None,))})
    with store.writer() as writer:
        writer.append({"a": [1, 2, 3]})
    return store


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("direct", [1, lists.DIRECT])  # with 1 the commit writes a list too
def test_stopped_before_or_after_a_step_the_store_is_at_the_last_or_the_new_version(
    store: rs.Store,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    nth: int,
    after: bool,
    direct: int,
) -> None:
    monkeypatch.setattr(lists, "DIRECT", direct)

    def append() -> None:
        writer = store.writer()
        writer.append({"a": [4]})
        writer.commit()

    stopped = stops(monkeypatch, step, nth, after, append)

    fresh = rs.open(store.path, "a", verify=True)
    assert isinstance(fresh, rs.Store)
    values = lists_of(fresh)
    assert values in ([[1, 2, 3]], [[1, 2, 3], [4]])
    assert stopped or values == [[1, 2, 3], [4]]
    with fresh.writer() as again:
        again.append({"a": [5]})
    assert fresh["a"][-1].tolist() == [5]
    store.close()
    fresh.vacuum(keep=1)
    named = {n for e in fresh.manifest.segments for n in (e.file, e.index)}
    assert {path.name for path in (store.path / "segments").iterdir()} == named
    named = {entry.file for entry in fresh.manifest.lists} | {f"{fresh.version:020d}.json"}
    assert {path.name for path in (store.path / "versions").iterdir()} == named


def race(store: rs.Store, monkeypatch: pytest.MonkeyPatch, act: Callable[[rs.Store], Any]) -> None:
    """Have another handle on the store `act` just before this one's next version is linked."""
    real, raced = files.publish, False

    def publish(path: Path, data: bytes, **options: Any) -> None:
        nonlocal raced
        if not raced:
            raced = True
            other = rs.open(store.path, "a")
            assert isinstance(other, rs.Store)
            act(other)
        real(path, data, **options)

    monkeypatch.setattr(files, "publish", publish)


def append(store: rs.Store, values: list[int]) -> None:
    with store.writer() as writer:
        writer.append({"a": values})


def lists_of(store: Any) -> list[list[int]]:
    return [values.tolist() for values in store["a"]]


def test_a_slow_commit_does_not_take_a_number_that_vacuum_made_free(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.version

    def overtake(other: rs.Store) -> None:
        append(other, [7])
        append(other, [8])
        other.vacuum(keep=1)

    race(store, monkeypatch, overtake)
    before = lists_of(store)
    append(store, [9])

    assert store.version == first + 3
    assert lists_of(rs.open(store.path)) == [*before, [7], [8], [9]]


@pytest.mark.parametrize("direct", [1, 2, lists.DIRECT])
def test_the_loser_of_a_race_commits_after_the_winner(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch, direct: int
) -> None:
    monkeypatch.setattr(lists, "DIRECT", direct)
    race(store, monkeypatch, lambda other: append(other, [7]))
    append(store, [8])

    assert store.version == 3
    assert lists_of(store) == [[1, 2, 3], [7], [8]]
    assert store.verify().ok


def test_an_append_that_commits_during_a_compaction_is_kept(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, [4])
    race(store, monkeypatch, lambda other: append(other, [5]))
    store.compact()

    assert lists_of(store) == [[1, 2, 3], [4], [5]]
    assert len(store.manifest.segments) == 2


def test_of_two_compactions_at_once_one_is_thrown_away(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, [4])
    race(store, monkeypatch, lambda other: other.compact())
    with pytest.raises(rs.ConflictError, match="compacted by another process"):
        store.compact()

    assert lists_of(rs.open(store.path, verify=True)) == [[1, 2, 3], [4]]


def failing(real: Callable[[Path], None], name: str) -> Callable[[Path], None]:
    """`files.sync_folder`, but that it fails for the folder `name`."""

    def sync_folder(path: Path) -> None:
        if path.name == name:
            raise rs.StorageError(errno.EIO, f"{path}: {os.strerror(errno.EIO)}")
        real(path)

    return sync_folder


def test_a_commit_whose_last_step_fails_says_that_the_version_is_in_place(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(files, "sync_folder", failing(files.sync_folder, "versions"))
        with pytest.raises(rs.StorageError, match=r"2\.json is in place, but .*Input/output"):
            append(store, [4])

    assert lists_of(rs.open(store.path, verify=True)) == [[1, 2, 3], [4]]


def test_an_export_that_fails_leaves_nothing_in_the_way_of_the_next(
    store: rs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "out.h5"
    target.parent.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(files, "sync_folder", failing(files.sync_folder, "out"))
        with pytest.raises(rs.StorageError, match="Input/output"):
            store.export(target)
        assert list(target.parent.iterdir()) == []
    with monkeypatch.context() as patched:  # the temporary file can't be removed either
        patched.setattr(files, "sync_file", lambda path: files.sync_folder(path / "none"))
        patched.setattr(Path, "unlink", lambda path: files.sync_folder(path / "none"))
        with pytest.raises(rs.StorageError):
            store.export(target)
        assert [path.name[:5] for path in target.parent.iterdir()] == [".tmp-"]

    store.export(target)
    assert lists_of(rs.open(target)) == [[1, 2, 3]]


def test_vacuum_says_which_folder_it_could_not_list(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.iterdir

    def iterdir(path: Path) -> Any:
        if path.name == "segments":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(rs.StorageError, match="segments: could not be listed: Input/output"):
        store.vacuum()


def test_of_two_vacuums_at_once_the_slower_one_goes_on(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, [4])
    real = files.lock_exclusive

    def lock(file: Any) -> bool:
        monkeypatch.setattr(files, "lock_exclusive", real)
        assert store.vacuum(keep=1)  # comes between the look and the lock
        return real(file)

    monkeypatch.setattr(files, "lock_exclusive", lock)
    assert store.vacuum(keep=1) == []
    assert store.versions() == [2]


def test_a_mark_that_is_there_already_is_synced_before_vacuum_goes_past_it(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rs.open(store.path, version=1):
        append(store, [4])
        append(store, [5])
        with monkeypatch.context() as patched:
            patched.setattr(files, "sync_folder", failing(files.sync_folder, "versions"))
            for _ in range(2):  # the first leaves a mark whose name may not be on the disk
                with pytest.raises(rs.StorageError):
                    store.vacuum(keep=1)
                assert store.versions() == [1, 2, 3]
        store.vacuum(keep=1)
    assert store.versions() == [1, 3]


def test_a_link_that_was_made_though_the_answer_was_lost_is_no_conflict(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over NFS, where the call is then sent again and finds what it has made itself."""
    link = os.link

    def linked_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", linked_twice)
    append(store, [4])

    assert store.versions() == [0, 1, 2]
    assert [a.tolist() for a in store["a"]] == [[1, 2, 3], [4]]


@pytest.mark.parametrize("lost", [[2], [3], [2, 3], [1, 2, 3, 4]])
def test_no_commit_goes_into_the_gap_that_a_lost_manifest_left(
    store: rs.Store, lost: list[int]
) -> None:
    for i in range(5):
        with store.writer() as writer:
            writer.append({"a": [i]})
    newest = store.version
    old = rs.open(store.path, mode="a", version=lost[0] - 1)
    for version in lost:
        path_of(store.path, version).unlink()

    with old.writer() as writer:
        writer.append({"a": [99]})

    assert old.version == rs.open(store.path).version == newest + 1
    assert rs.open(store.path)[-1]["a"].tolist() == [99]

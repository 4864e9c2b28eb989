"""How large things may be, and what becomes of a store where a filesystem can do less."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import raggedstore as rs
from raggedstore.segment import table as tables
from raggedstore.store import commit, files, lists
from raggedstore.store.lists import ListEntry, SegmentEntry, seal
from raggedstore.store.manifest import MAX_SAMPLES, path_of
from tests.campaigns import hostile

SMALL = rs.Compression("lz4", 1, (), chunk_bytes=2**12, block_bytes=2**10)


def one_field(path: Path, count: int = 100, **options: Any) -> rs.Store:
    store = rs.create(path, {"a": rs.Field("i4", (None,))}, **options)
    with store.writer() as writer:
        writer.extend({"a": np.arange(i, i + 50)} for i in range(count))
    return store


# Sizes


def test_a_sample_of_more_than_2_to_the_31_bytes_reads_in_parts(tmp_path: Path) -> None:
    size = 2**31 + 5000
    wave = np.zeros(size, "u1")  # memory that is only read takes none
    wave[-3:] = 7
    large = rs.Compression("lz4", 1, (), chunk_bytes=2**28, block_bytes=2**20)
    store = rs.create(tmp_path / "store", {"a": rs.Field("u1", (None,))}, profile=large)
    with store.writer(budget="3GB") as writer:
        writer.append({"a": wave})
        writer.append({"a": [1, 2, 3]})

    store = rs.open(tmp_path / "store")

    assert store["a"].lengths.tolist() == [size, 3]
    [end] = store["a"].crop([0], [size - 4], [size])
    assert end.tolist() == [0, 7, 7, 7]
    assert store[1]["a"].tolist() == [1, 2, 3]
    assert store.nbytes_stored > size // tables.EXPANSION  # so it is not taken for a bomb


@pytest.mark.parametrize("offset", [2**31 - 100, 2**32 + 1, 2**41 + 7])
def test_chunks_lie_anywhere_in_files_of_terabytes(tmp_path: Path, offset: int) -> None:
    store = one_field(tmp_path / "store", profile=SMALL)
    root = store.path
    want = store["a"][:]
    segment = hostile.segment_of(root)
    table = hostile.table_of(root)
    dataset = table.datasets["a"]["data"]
    entries = dataset.entries.copy()
    with open(segment, "r+b") as file:
        for i, (at, size, _) in enumerate(dataset.entries.tolist()):
            file.seek(at)
            chunk = file.read(size)
            file.seek(offset + at)
            try:
                file.write(chunk)
                file.flush()
            except OSError:
                pytest.skip("the filesystem has no files of that size")
            entries["offset"][i] = offset + at
    size = segment.stat().st_size
    table.datasets["a"]["data"] = replace(dataset, entries=entries)
    index = replace(table, file_bytes=size).dumps()
    segment.with_suffix(".idx").write_bytes(index)
    hostile.set_entry(
        root,
        lambda entry: replace(entry, bytes=size, index_digest=commit.digest_of(index)),
    )

    moved = rs.open(root)

    assert all(map(np.array_equal, moved["a"][:], want))
    assert np.array_equal(moved["a"].batch([99, 3, 57])[0], want[99])
    assert np.array_equal(moved["a"][41], want[41])


@pytest.mark.parametrize("count", [2**31 + 1, 2**40, MAX_SAMPLES])
def test_positions_reach_to_2_to_the_48_samples(tmp_path: Path, count: int) -> None:
    root = one_field(tmp_path / "store").path
    body = hostile.body_of(root)
    [entry] = [SegmentEntry(*row) for row in body["segments"]]
    rest = count - entry.samples
    body["lists"] = [ListEntry("0" * 32 + ".list", 7, rest, 10**15, 10**12, 2**62).to_json()]
    path_of(root, 1).write_bytes(seal("manifest", body))

    store = rs.open(root)

    assert len(store) == count
    assert np.array_equal(store[-1]["a"], np.arange(99, 149))
    assert np.array_equal(store["a"].batch([count - 1, count - 100])[1], np.arange(50))
    with pytest.raises(rs.CorruptionError, match=r"0\.list"):
        store[0]
    with pytest.raises(rs.OutOfRangeError):
        store[count]


@pytest.mark.parametrize("position", [2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), -(10**30)])
def test_an_index_of_any_size_is_out_of_range(tmp_path: Path, position: int) -> None:
    store = one_field(tmp_path / "store")
    with pytest.raises(rs.OutOfRangeError):
        store[position]
    with pytest.raises(rs.OutOfRangeError):
        store["a"].batch([position])
    assert len(store[: abs(position)]) == len(store)


def test_versions_count_to_2_to_the_63(tmp_path: Path) -> None:
    root = one_field(tmp_path / "store").path
    body = hostile.body_of(root)
    body["version"] = 2**63 - 2
    path_of(root, 2**63 - 2).write_bytes(seal("manifest", body))

    store = rs.open(root, mode="a")
    with store.writer() as writer:
        writer.append({"a": [1]})

    assert rs.open(root).version == 2**63 - 1
    with pytest.raises(rs.UsageError, match="version"), store.writer() as writer:
        writer.append({"a": [1]})
    assert len(rs.open(root)) == 101


def test_a_store_has_hundreds_of_fields_with_names_of_255_bytes(tmp_path: Path) -> None:
    names = [f"f{i}_".ljust(255, "x") for i in range(300)]
    store = rs.create(tmp_path / "store", dict.fromkeys(names, rs.Field("int32")), profile="fast")
    with store.writer() as writer:
        writer.extend({name: i * j for i, name in enumerate(names)} for j in range(3))

    assert rs.open(store.path)[2] == {name: 2 * i for i, name in enumerate(names)}
    segment = rs.open(hostile.segment_of(store.path))
    assert segment[2] == rs.open(store.path)[2]


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128, "a b", "_a", "ﬁ", "e\u0301", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(rs.SchemaError):
        rs.Schema({name: rs.Field("int32")})


@pytest.mark.parametrize("shape", [(None,) * 9, (2**31, 2), (None, 2**63), (0, 10**400), (2**63,)])
def test_other_shapes_are_refused(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(rs.SchemaError):
        rs.Field("int16", shape)


def test_rows_of_fixed_shape_take_up_to_2_gib_and_are_written_up_to_511_mib(tmp_path: Path) -> None:
    assert rs.Field("u1", (2**31,)).shape == (2**31,)
    with pytest.raises(rs.SchemaError, match="2 GiB"):
        rs.Field("u1", (2**31 + 1,))

    assert len(rs.create(tmp_path / "store", {"x": rs.Field("u1", (511 * 2**20,))})) == 0
    with pytest.raises(rs.SchemaError, match="cannot be written: make it ragged"):
        rs.create(tmp_path / "larger", {"x": rs.Field("u1", (511 * 2**20 + 1,))})
    assert not (tmp_path / "larger").exists()


def test_larger_rows_of_other_tools_are_opened_and_make_no_store(tmp_path: Path) -> None:
    kept = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    kept.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    kept.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # so that the file has a hole, and takes no room
    space = h5py.h5s.create_simple((1, 600 * 2**20))
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        h5py.h5d.create(file.create_group("x").id, b"data", h5py.h5t.STD_U8LE, space, kept)
    source = rs.open(tmp_path / "rows.h5", budget="1MB")

    assert source.schema["x"].shape == (600 * 2**20,)
    with pytest.raises(rs.SchemaError, match="cannot be written: make it ragged"):
        rs.create(tmp_path / "store", source.schema)


def test_metadata_of_over_16_mib_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    store = one_field(tmp_path / "store", 3)
    store.writer().commit(metadata={"a": "x" * (2**24 - 2000)})
    before = sorted((store.path / "versions").iterdir())

    with pytest.raises(rs.UsageError, match="metadata"):
        store.writer().commit(metadata={"b": "x" * 2000})

    assert sorted((store.path / "versions").iterdir()) == before
    assert len(rs.open(store.path).metadata["a"]) == 2**24 - 2000


def test_a_segment_of_too_many_chunks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = one_field(tmp_path / "store", 3)
    monkeypatch.setattr(commit, "MAX_INDEX_BYTES", 100)
    with pytest.raises(rs.UsageError, match="segment_bytes"):
        one_field(tmp_path / "other", 3)
    assert len(rs.open(store.path)) == 3


def test_a_sample_that_does_not_fit_into_memory_is_a_memory_error(tmp_path: Path) -> None:
    size = 2**30
    store = rs.create(tmp_path / "store", {"a": rs.Field("u1", (None,))})
    with store.writer() as writer:
        writer.append({"a": np.zeros(size, "u1")})
    script = """
import resource, sys
import raggedstore as rs
store = rs.open(sys.argv[1])
store["a"].lengths
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    store[0]
except MemoryError:
    print(store["a"].crop([0], [5], [9])[0].tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, store.path], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(rs.__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout == "[0, 0, 0, 0]\n"


# Filesystems


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(request.param, os.strerror(request.param), source, None, target)

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_everything_works_and_no_commit_replaces_another(tmp_path: Path) -> None:
    store = one_field(tmp_path / "store", 5)
    other = rs.open(store.path, mode="a")
    writers = [store.writer(), other.writer()]
    for i, writer in enumerate(writers):
        writer.append({"a": [i]})
    assert [writer.commit() for writer in writers] == [2, 3]
    with pytest.raises(rs.ConflictError):
        files.publish(path_of(store.path, 2), b"another")
    store.refresh()
    assert len(store) == 7 and store.verify().ok

    store.export(tmp_path / "file.h5")
    with pytest.raises(rs.ConflictError):
        store.export(tmp_path / "file.h5")
    for path in store.path.glob("segments/*.idx"):
        path.unlink()
    assert rs.open(store.path, mode="a").repair().reindexed
    again = rs.open(store.path)
    assert again.verify().ok and len(again) == 7
    assert not [*store.path.rglob(f"{files.TEMPORARY}*")]


@pytest.mark.usefixtures("no_links")
def test_where_nothing_can_be_put_in_place_safely_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = one_field(tmp_path / "store", 5)
    monkeypatch.setattr(files, "_rename_new", lambda source, target: False)

    with pytest.raises(rs.StorageError, match="hard links"), store.writer() as writer:
        writer.append({"a": [1]})

    assert rs.open(store.path).version == 1
    assert not [*store.path.glob("versions/.tmp*")]


def test_without_locks_stores_are_read_and_written_and_vacuum_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    store = one_field(tmp_path / "store", 5)
    stray = store.path / "segments" / f"{'0' * 32}.h5"
    stray.touch()

    assert store.vacuum(keep=1) == []

    assert store.versions() == [0, 1] and stray.exists()
    assert len(rs.open(store.path)) == 5


_READ_ONLY = """
import sys
import raggedstore as rs
store = rs.open(sys.argv[1])
assert len(store) == 5 and store[4]["a"][0] == 4 and store.verify().ok
assert rs.open(next(store.path.glob("segments/*.h5")))[4]["a"][0] == 4
store.export(sys.argv[2])
writable = rs.open(sys.argv[1], mode="a")
for do in (writable.writer, writable.vacuum, lambda: store.export(sys.argv[1] + "/x.h5")):
    try:
        do()
    except rs.StorageError as error:
        assert "Read-only file system" in str(error), error
    else:
        raise AssertionError(do)
assert writable.repair().ok and writable.compact() == 1
print("read")
"""


def test_a_store_reads_from_read_only_media_and_says_so_when_it_is_written_to(
    tmp_path: Path,
) -> None:
    store = one_field(tmp_path / "store", 5)
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" || exit 77; exec "$@"'
    command = [sys.executable, "-c", _READ_ONLY, store.path, tmp_path / "exported.h5"]
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount, store.path, *command],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(rs.__file__).parents[1])},
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode in (1, 77) and "unshare" in done.stderr + "unshare" * (
        done.returncode == 77
    ):
        pytest.skip("mounting is not allowed here")
    assert done.stdout == "read\n", done.stderr


def test_lists_hold_256_segments_and_a_manifest_any_number_of_lists() -> None:
    entry = ListEntry("0" * 32 + ".list", lists.DIRECT, 10**9, 10**12, 10**9, 10**13)
    most = lists.MAX_BYTES // (len(str(entry.to_json())) + 2)
    assert most * lists.DIRECT > 40_000_000

"""What is intact goes into a new version, what is lost is listed, and nothing else changes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.store import lists
from raggedstore.store.manifest import path_of
from raggedstore.store.repair import RepairReport, repair
from tests.store.test_commit import STEPS, race, stops

COUNT = 600
FIELDS = {
    "values": rs.Field("int32", (None,)),
    "image": rs.Field("uint8", (None, None)),
    "text": rs.Field("str"),
    "label": rs.Field("int64"),
}
SMALL = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=1024)
STOPS = (100, 500, COUNT)


def sample(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    return {
        "values": (np.arange(i % 23) * i).astype("i4"),
        "image": rng.integers(0, 256, (i % 4, i % 3), np.uint8),
        "text": f"text {i}",
        "label": i,
    }


def make(path: Path, stops: tuple[int, ...] = STOPS) -> rs.Store:
    """Three segments, the second of several chunks of data."""
    store = rs.create(path, FIELDS, profile=SMALL)
    for start, stop in zip((0, *stops), stops, strict=False):
        with store.writer() as writer:
            writer.extend(sample(i) for i in range(start, stop))
    return store


@pytest.fixture
def store(tmp_path: Path) -> rs.Store:
    return make(tmp_path / "store")


def flip(path: Path, offset: int, mask: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def segment_path(store: rs.Store, number: int) -> Path:
    return store.path / "segments" / store.manifest.segments[number].file


def place_of(store: rs.Store, field: str, column: str, chunk: int, block: int) -> int:
    """A byte of a block of the second segment."""
    dataset = store._snapshot.reader(1).table.datasets[field][column]
    edge = int(dataset.blocks.edges[chunk, block]) & ~(1 << 31)
    return int(dataset.entries["offset"][chunk]) + edge + 5


def contents(store: rs.Store) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}


def assert_holds(store: rs.Store, positions: list[int]) -> None:
    """The samples that were written at `positions`, exactly."""
    assert len(store) == len(positions)
    for got, i in zip(store, positions, strict=True):
        want = sample(i)
        np.testing.assert_array_equal(got["values"], want["values"])
        np.testing.assert_array_equal(got["image"], want["image"])
        assert (got["text"], got["label"]) == (want["text"], want["label"])


def reading(store: rs.Store) -> list[int]:
    """The positions that read."""
    good = []
    for i in range(len(store)):
        try:
            store[i]
        except rs.RaggedStoreError:
            continue
        good.append(i)
    return good


def repaired(store: rs.Store, **wanted: Any) -> RepairReport:
    """Repair it, and look at all that must hold of any repair, and at what is `wanted` of it."""
    before = contents(store)
    reads = reading(reopen(store, version=store.version))
    report = repair(store.path)
    assert report.version == max(report.base, *report.unreadable, 0) + 1
    assert {path: path.read_bytes() for path in before} == before
    fresh = reopen(store)
    assert fresh.version == report.version
    assert fresh.manifest.operation == "repair"
    assert fresh.manifest.parent == report.base
    assert fresh.verify().ok
    kept = report.positions().tolist()
    assert_holds(fresh, kept)
    assert report.kept == len(kept) == report.samples - len(lost_positions(report))
    if not report.unreadable:
        assert {*reads} <= {*kept}
    assert repair(store.path).ok
    for name, want in wanted.items():
        assert getattr(report, name) == want
    return report


def reopen(store: rs.Store, mode: str = "r", **options: Any) -> rs.Store:
    fresh = rs.open(store.path, mode, **options)
    assert isinstance(fresh, rs.Store)
    return fresh


def lost_positions(report: RepairReport) -> set[int]:
    return {i for loss in report.lost for start, stop in loss.runs for i in range(start, stop)}


def stem(store: rs.Store, number: int) -> str:
    return segment_path(store, number).stem


def test_a_whole_store_is_left_as_it_is(store: rs.Store) -> None:
    before = contents(store)

    report = store.repair()

    assert report.ok
    assert (report.version, report.kept, report.first_lost) == (None, COUNT, None)
    assert str(report) == f"nothing to repair in version 3: {COUNT} samples"
    assert contents(store) == before


@pytest.mark.parametrize(
    ("field", "column"),
    [
        ("values", "data"),
        ("values", "data_start_and_stop"),
        ("image", "data"),
        ("image", "data_shape"),
        ("text", "data"),
        ("label", "data"),
    ],
)
def test_a_damaged_block_costs_its_samples_and_no_others(
    tmp_path: Path, field: str, column: str
) -> None:
    store = make(tmp_path / "store", (100, 2600, 2650))  # side columns of several blocks, too
    table = store._snapshot.reader(1).table.datasets[field][column]
    chunk = min(1, len(table.entries) - 1)
    flip(segment_path(store, 1), place_of(store, field, column, chunk, 0))
    reads = reading(reopen(store))
    damaged = stem(store, 1)

    report = repaired(store, rewritten=(damaged,), reindexed=(), lost_segments=(), unnamed=())

    assert report.positions().tolist() == reads
    [loss] = report.lost
    assert (loss.segment, loss.field) == (damaged, field)
    assert 0 < loss.samples == len(store) - len(reads) < 1100
    assert "checksum" in loss.message and f"field {field!r}: {loss.samples} samples" in str(loss)
    assert report.first_lost == min(lost_positions(report))
    assert f"stood after position {report.first_lost} have moved" in str(report)
    # The others are named again as they are.
    old, new = store.manifest.segments, reopen(store).manifest.segments
    assert (new[0], new[2]) == (old[0], old[2])


def test_damage_to_several_fields_is_listed_for_each(store: rs.Store) -> None:
    flip(segment_path(store, 1), place_of(store, "values", "data", 1, 0))
    flip(segment_path(store, 1), place_of(store, "text", "data", 0, 1))

    report = repaired(store)

    assert [loss.field for loss in report.lost] == ["values", "text"]


@pytest.mark.parametrize("damage", ["HDF5's own", "a chunk's header", "grown"])
def test_what_costs_no_sample_is_written_anew_and_nothing_is_lost(
    store: rs.Store, damage: str
) -> None:
    path = segment_path(store, 1)
    if damage == "grown":
        path.write_bytes(path.read_bytes() + b"more")
    elif damage == "HDF5's own":
        flip(path, 60)
    else:
        table = store._snapshot.reader(1).table.datasets["values"]["data"]
        flip(path, int(table.entries["offset"][1]) + 20)

    repaired(store, lost=(), kept=COUNT, rewritten=(path.stem,))


def test_of_a_file_cut_short_the_chunks_before_the_cut_are_kept(store: rs.Store) -> None:
    path = segment_path(store, 1)
    os.truncate(path, place_of(store, "label", "data", 0, 2))  # the last chunk that was written
    assert len(reading(reopen(store))) == COUNT - 400

    report = repaired(store, rewritten=(path.stem,))

    assert COUNT - 400 < report.kept < COUNT
    assert {*range(100), *range(500, COUNT)} < {*report.positions().tolist()}


@pytest.mark.parametrize("damage", ["missing", "a link", "empty", "another's"])
def test_a_segment_of_which_nothing_reads_is_lost_as_a_whole(store: rs.Store, damage: str) -> None:
    path = segment_path(store, 1)
    if damage == "another's":
        path.write_bytes(segment_path(store, 0).read_bytes())
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.rename(store.path / "elsewhere.h5")
        if damage == "a link":
            path.symlink_to(store.path / "elsewhere.h5")

    report = repaired(store, lost_segments=(path.stem,), rewritten=(), reindexed=())

    assert report.positions().tolist() == [*range(100), *range(500, COUNT)]
    assert report.lost[0].runs == ((100, 500),)
    assert f"segment {path.stem}" in str(report)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_idx_is_made_anew_of_a_file_whose_digest_holds(store: rs.Store, damage: str) -> None:
    path = segment_path(store, 1)
    index = path.with_suffix(".idx")
    written = index.read_bytes()
    if damage == "missing":
        index.unlink()
    else:
        flip(index, 200)

    repaired(store, reindexed=(path.stem,), lost=(), kept=COUNT, rewritten=())

    fresh = reopen(store, "a")
    entry = fresh.manifest.segments[1]
    made = store.path / "segments" / entry.index
    assert made.read_bytes() == written
    assert made.with_suffix(".h5").stat().st_ino == path.stat().st_ino
    store.close()
    fresh.vacuum(keep=1)
    assert not path.exists()
    assert_holds(reopen(store), [*range(COUNT)])


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_without_idx_and_digest_nothing_vouches_for_a_segment(store: rs.Store, damage: str) -> None:
    path = segment_path(store, 1)
    flip(path, place_of(store, "values", "data", 1, 0))
    if damage == "missing":
        path.with_suffix(".idx").unlink()
    else:
        flip(path.with_suffix(".idx"), 200)

    report = repaired(store, lost_segments=(path.stem,))

    assert f"chunk table is {damage} and its file damaged" in report.lost[0].message


def test_an_intact_file_that_the_parser_cannot_read_is_not_thrown_away(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: object) -> None:
        raise rs.FormatError("holds what this parser cannot read")

    path = segment_path(store, 1)
    path.with_suffix(".idx").unlink()
    before = contents(store)
    with monkeypatch.context() as patch:
        patch.setattr("raggedstore.store.repair.rebuild_table", refuses)
        with pytest.raises(rs.FormatError, match=f"{path.stem}.*missing.*intact but cannot be"):
            repair(store.path)
    assert contents(store) == before

    repaired(store, reindexed=(path.stem,), lost=(), kept=COUNT, rewritten=())


def test_without_its_idx_what_is_damaged_once_it_is_open_is_an_error(store: rs.Store) -> None:
    path = segment_path(store, 1)
    path.with_suffix(".idx").unlink()
    fresh = reopen(store, budget=0)  # so that nothing is held
    assert fresh[199]["text"] == "text 199"
    flip(path, place_of(store, "values", "data", 1, 0))

    with pytest.raises(rs.CorruptionError, match="checksum"):
        fresh["values"].batch(slice(None))


def test_without_its_idx_a_damaged_segment_is_an_error_and_never_wrong(store: rs.Store) -> None:
    path = segment_path(store, 1)
    flip(path, place_of(store, "values", "data", 1, 0))
    path.with_suffix(".idx").unlink()
    fresh = reopen(store)

    with pytest.raises(rs.CorruptionError, match=f"{path.stem}.*missing and its file damaged"):
        fresh[100]
    [fault] = fresh.verify().faults
    assert fault.segment == path.stem
    assert fresh[99]["text"] == "text 99"
    assert reopen(store, checksums=False)[100]["text"] == "text 100"  # as was asked for


# Manifests and lists


def test_behind_a_damaged_manifest_the_newest_readable_one_is_repaired(store: rs.Store) -> None:
    flip(path_of(store.path, 3), 100)
    flip(path_of(store.path, 2), 100)
    with pytest.raises(rs.CorruptionError):
        rs.open(store.path)
    stale = reopen(store, "a", version=1)
    added = tuple(sorted(segment_path(store, i).name for i in (1, 2)))

    report = stale.repair()

    assert (report.base, report.version, report.unreadable) == (1, 4, (2, 3))
    assert report.unnamed == added
    assert (report.samples, report.kept, report.first_lost) == (100, 100, None)
    assert "manifest of version 3 is damaged" in str(report)
    assert stale.version == 4
    fresh = reopen(store, "a", verify=True)
    assert (fresh.moved, reopen(store, version=1).moved) == (1, 0)  # what is lost makes room
    assert_holds(fresh, [*range(100)])
    # What is not named opens by itself, as the report says.
    single = rs.open(store.path / "segments" / added[0])
    assert {single[0]["label"]} < {100, 500}
    with fresh.writer() as writer:
        writer.append(sample(100))
    assert_holds(reopen(store), [*range(101)])
    stale.close()
    store.close()
    fresh.vacuum(keep=1)
    assert fresh.versions() == [5]
    assert not (store.path / "segments" / added[0]).exists()


def test_damaged_manifest_and_damaged_segment_at_once(store: rs.Store) -> None:
    flip(path_of(store.path, 3), 100)
    flip(segment_path(store, 1), place_of(store, "values", "data", 1, 0))

    report = repaired(reopen(store, version=2))

    assert (report.base, report.version, report.samples) == (2, 4, 500)
    assert 100 < report.kept < 500


def test_where_no_manifest_reads_nothing_can_be_repaired(store: rs.Store) -> None:
    for version in store.versions():
        flip(path_of(store.path, version), 50)
    before = contents(store)

    with pytest.raises(rs.CorruptionError, match="no version can be read"):
        repair(store.path)

    assert contents(store) == before


def test_a_format_of_the_future_is_no_damage(store: rs.Store) -> None:
    data = lists.seal("manifest", {"format": 2, "version": 4})
    path_of(store.path, 4).write_bytes(data)

    with pytest.raises(rs.FormatError, match="format version 2"):
        repair(store.path)


def test_there_must_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(rs.NotAStoreError):
        repair(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_the_segments_of_a_damaged_list_are_lost_and_all_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(lists, "DIRECT", 2)
    store = rs.create(tmp_path / "store", FIELDS, profile=SMALL)
    for i in range(7):
        with store.writer() as writer:
            writer.append(sample(i))
    path = store.path / "versions" / store.manifest.lists[1].file
    store.close()
    reopen(store, "a").vacuum(keep=1)
    lost = tuple(sorted(segment_path(store, i).name for i in (2, 3)))
    if damage == "missing":
        path.unlink()
    else:
        flip(path, 100)

    report = repaired(store, lost_segments=(path.name,), unnamed=lost)

    assert report.positions().tolist() == [0, 1, 4, 5, 6]
    assert [e.segments for e in reopen(store).manifest.lists] == [2, 2]
    assert f"segment list {path.name}" in str(report.lost[0])


# Whole or not at all


def damage_much(store: rs.Store) -> None:
    """The first segment without its .idx, the second damaged, the last gone."""
    segment_path(store, 0).with_suffix(".idx").unlink()
    flip(segment_path(store, 1), place_of(store, "values", "data", 1, 0))
    segment_path(store, 2).unlink()


def test_a_dry_run_says_the_same_and_changes_nothing(store: rs.Store) -> None:
    damage_much(store)
    before = contents(store)

    dry = store.repair(dry_run=True)

    assert contents(store) == before
    assert (dry.version, store.version) == (None, 3)
    done = store.repair()
    assert (dry.lost, dry.rewritten, dry.reindexed) == (done.lost, done.rewritten, done.reindexed)
    assert (done.version, store.version) == (4, 4)
    assert len(store) == done.kept == dry.kept


def test_versions_before_stay_as_damaged_as_they_were(store: rs.Store) -> None:
    damage_much(store)
    reads = reading(reopen(store))

    store.repair()

    old = reopen(store, version=3)
    assert reading(old) == reads
    assert not old.verify().ok


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("after", [False, True])
def test_stopped_before_or_after_a_step_the_store_is_as_it_was_or_repaired(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch, step: str, nth: int, after: bool
) -> None:
    damage_much(store)
    before = contents(store)
    stopped = stops(monkeypatch, step, nth, after, lambda: repair(store.path))

    assert {path: path.read_bytes() for path in before} == before
    fresh = reopen(store)
    assert fresh.version == 4 if not stopped else fresh.version in (3, 4)
    if fresh.version == 3:
        report = repair(store.path)
        assert not report.ok
        fresh = reopen(store, "a")
    assert fresh.verify().ok
    store.close()
    named = {n for e in fresh.manifest.segments for n in (e.file, e.index)}
    reopen(store, "a").vacuum(keep=1)
    assert {path.name for path in (store.path / "segments").iterdir()} == named


def test_an_append_that_commits_meanwhile_is_kept(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_much(store)

    def append(other: rs.Store) -> None:
        with other.writer() as writer:
            writer.append(sample(COUNT))

    race(store, monkeypatch, append)
    report = store.repair()

    assert (report.base, report.version) == (3, 5)
    assert_holds(reopen(store, verify=True), [*report.positions().tolist(), COUNT])


def test_of_two_repairs_at_once_one_is_thrown_away(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_much(store)
    race(store, monkeypatch, lambda other: other.repair())

    with pytest.raises(rs.ConflictError, match="replaced by another process"):
        store.repair()

    fresh = reopen(store, "a", verify=True)
    store.close()
    fresh.vacuum(keep=1)
    named = {n for e in fresh.manifest.segments for n in (e.file, e.index)}
    assert {path.name for path in (store.path / "segments").iterdir()} == named


def test_a_disk_that_refuses_is_no_damage(store: rs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(store)

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    real = os.stat

    def refuse_segments(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith(".h5"):
            refuse()
        return real(path, **options)

    for function, put in (("preadv", refuse), ("stat", refuse_segments)):
        with monkeypatch.context() as patched:
            patched.setattr(os, function, put)
            with pytest.raises(rs.StorageError, match="Input/output error"):
                repair(store.path)

    assert contents(store) == before


def test_a_disk_that_refuses_while_an_idx_is_made_anew_is_no_damage(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_path(store, 0).with_suffix(".idx").unlink()
    real, digested = os.pread, False

    def refuse_after_digest(number: int, size: int, at: int) -> bytes:
        nonlocal digested
        if digested:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        piece = real(number, size, at)
        digested = at + size == os.fstat(number).st_size
        return piece

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", refuse_after_digest)
        with pytest.raises(rs.StorageError, match="Input/output error"):
            repair(store.path)

    report = repair(store.path)
    assert report.reindexed and not report.lost


def test_a_store_open_to_read_is_not_repaired(store: rs.Store) -> None:
    with pytest.raises(rs.UsageError, match="mode='a' to repair"):
        reopen(store).repair()


# Any damage


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[rs.Store, dict[Path, bytes]]:
    store = make(tmp_path_factory.mktemp("any") / "store")
    return store, contents(store)


FRACTION = st.floats(0, 1, exclude_max=True)
Change = Callable[[bytes], bytes]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """A byte flipped, a range zeroed or put elsewhere, or an end cut off."""
    kind = draw(st.sampled_from(["flip", "flip", "zeros", "copy", "cut"]))
    where, other, mask = draw(FRACTION), draw(FRACTION), draw(st.integers(1, 255))
    length = draw(st.integers(1, 3000))

    def change(data: bytes) -> bytes:
        new, at = bytearray(data), int(where * len(data))
        if not new:  # cut off before
            pass
        elif kind == "flip":
            new[at] ^= mask
        elif kind == "zeros":
            new[at : at + length] = bytes(len(new[at : at + length]))
        elif kind == "copy":
            to = int(other * len(data))
            piece = new[at : at + length][: len(new) - to]
            new[to : to + len(piece)] = piece
        else:
            del new[at:]
        return bytes(new)

    return change


@given(st.lists(st.tuples(st.integers(0, 5), changes()), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_whatever_is_damaged_what_is_kept_is_what_was_written_and_what_reads_is_kept(
    written: tuple[rs.Store, dict[Path, bytes]], damages: list[tuple[int, Change]]
) -> None:
    store, before = written
    targets = [p for i in range(3) for p in (segment_path(store, i),)]
    targets += [path.with_suffix(".idx") for path in targets]
    try:
        for number, change in damages:
            targets[number].write_bytes(change(targets[number].read_bytes()))
        if all(targets[i].read_bytes() == before[targets[i]] for i in range(6)):
            return
        repaired(store)
    finally:
        for path in contents(store):
            if path not in before:
                path.unlink()
        for path, data in before.items():
            path.write_bytes(data)


def test_what_is_left_beside_a_lost_newest_manifest_can_be_repaired(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"i": rs.Field("i8")})
    for i in range(4):
        with store.writer() as writer:
            writer.append({"i": i})
    held = rs.open(store.path, version=2)
    store.vacuum(keep=1)  # which marks 2, and removes 3
    store.close()
    path_of(store.path, 4).unlink()

    with pytest.raises(rs.CorruptionError, match="repair"):
        rs.open(store.path)
    assert held["i"][:] == [0, 1]
    repair(store.path)

    with rs.open(store.path, mode="a") as after:
        with after.writer() as writer:
            writer.append({"i": 9})
        assert (after.version, after["i"][:]) == (3, [0, 1, 9])

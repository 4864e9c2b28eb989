"""Every fault is found, named, and kept from doing harm elsewhere."""

import errno
import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raggedstore as rs

COUNT = 2000


@pytest.fixture
def store(tmp_path: Path) -> rs.Store:
    """Two segments; in the second, several chunks of values and of side columns."""
    small = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=1024)
    fields = {"values": rs.Field("int32", (None,)), "text": rs.Field("str")}
    store = rs.create(tmp_path / "store", fields, profile=small)
    for first in (0, 100):
        with store.writer() as writer:
            stop = 100 if first == 0 else COUNT
            for i in range(first, stop):
                writer.append({"values": np.arange(i % 23) * i, "text": f"text {i}"})
    return store


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def segment_path(store: rs.Store, number: int) -> Path:
    return store.path / "segments" / store.manifest.segments[number].file


def entry_of(store: rs.Store, field: str, column: str, chunk: int) -> tuple[int, int, int]:
    """Offset and size of a chunk of the second segment, and its rows."""
    dataset = store._snapshot.reader(1).table.datasets[field][column]
    entry = dataset.entries[chunk]
    return int(entry["offset"]), int(entry["size"]), dataset.chunk_rows


def want(i: int) -> np.ndarray:
    return np.arange(i % 23) * i


def reading(store: rs.Store) -> tuple[set[int], set[int]]:
    """Which samples' values read, each held against what was written, and which do not."""
    good, bad = set(), set()
    for i in range(COUNT):
        try:
            values = store["values"][i]
        except rs.CorruptionError:
            bad.add(i)
        else:
            np.testing.assert_array_equal(values, want(i))
            good.add(i)
    return good, bad


def test_nothing_is_wrong_with_a_whole_store(store: rs.Store) -> None:
    report = store.verify()

    assert report.ok
    assert report.faults == []
    assert report.samples == COUNT
    assert "no faults in 2000 samples, 2 segments" in str(report)


@pytest.mark.parametrize("where", [3, 20, 60, -40, -1, "first block", "last block", "a block"])
def test_a_flipped_bit_in_data_is_found_and_only_its_samples_are_lost(
    store: rs.Store, where: int | str
) -> None:
    offset, size, rows = entry_of(store, "values", "data", 2)
    blocks = store._snapshot.reader(1).table.datasets["values"]["data"].blocks
    edges = blocks.edges[2].tolist()
    named = {"first block": edges[0], "last block": edges[-1] - 1, "a block": edges[2] + 5}
    at = named[where] if isinstance(where, str) else where % size
    flip(segment_path(store, 1), offset + at)
    fresh = rs.open(store.path)
    assert isinstance(fresh, rs.Store)

    report = fresh.verify()

    # Of what lies outside the blocks, other tools have need, and this one has not.
    hit = [i for i, (a, b) in enumerate(itertools.pairwise(edges)) if a <= at < b]
    block_rows = blocks.nbytes // 4
    lost = {2 * rows + i * block_rows + j for i in hit for j in range(block_rows)}
    spans = np.cumsum([0, *(len(want(i)) for i in range(100, COUNT))])
    touched = {
        100 + i
        for i, (a, b) in enumerate(itertools.pairwise(spans.tolist()))
        if not lost.isdisjoint(range(a, b))
    }
    assert bool(touched) == isinstance(where, str)
    [fault] = report.faults
    assert (fault.field, fault.sample) == ("values", min(touched, default=None))
    assert fault.segment in store.manifest.segments[1].file
    assert report.damaged == len(touched)
    assert reading(fresh) == (set(range(COUNT)) - touched, touched)
    if not touched:
        assert "every sample in it reads" in fault.message
        np.testing.assert_array_equal(
            fresh["values"].batch(slice(None)).values, store["values"].batch(slice(None)).values
        )
        return
    with pytest.raises(rs.CorruptionError, match=f"segment {fault.segment}, field 'values'"):
        fresh["values"][min(touched)]
    with pytest.raises(OSError, match="checksum"):
        rs.open(store.path, verify=True)


@pytest.mark.parametrize("column", ["data_start_and_stop", "data_shape"])
def test_a_flipped_bit_in_a_side_column_is_found(store: rs.Store, column: str) -> None:
    offset, size, _ = entry_of(store, "values", column, 0)
    blocks = store._snapshot.reader(1).table.datasets["values"][column].blocks
    flip(segment_path(store, 1), offset + (size // 2 if blocks is None else blocks.edges[0, 1]))
    fresh = rs.open(store.path)
    assert isinstance(fresh, rs.Store)

    report = fresh.verify()

    [fault] = report.faults
    if column == "data_shape":  # the shape of a vector is its length: nothing is lost
        assert (fault.field, fault.sample, report.damaged) == ("values", None, 0)
        lost = set()
    else:
        rows = blocks.nbytes // 16
        lost = set(range(100 + rows, COUNT))  # all but the first block
        assert (fault.field, fault.sample) == ("values", min(lost))
        assert report.damaged == len(lost)
    assert reading(fresh) == (set(range(COUNT)) - lost, lost)
    assert fresh["text"][150] == "text 150"


def test_damage_between_the_chunks_is_reported_and_costs_no_sample(store: rs.Store) -> None:
    flip(segment_path(store, 1), 60)
    fresh = rs.open(store.path)
    assert isinstance(fresh, rs.Store)

    report = fresh.verify()

    assert [fault.field for fault in report.faults] == [None]
    assert "HDF5's own structures" in str(report.faults[0])
    assert report.damaged == 0
    assert reading(fresh)[1] == set()


@pytest.mark.parametrize("damage", ["cut", "missing", "link", "index flipped"])
def test_a_segment_that_is_not_the_one_written_is_named_and_the_other_reads(
    store: rs.Store, damage: str
) -> None:
    path = segment_path(store, 1)
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "missing":
        path.unlink()
    elif damage == "link":
        path.rename(store.path / "elsewhere.h5")
        path.symlink_to(store.path / "elsewhere.h5")
    else:
        flip(path.with_suffix(".idx"), 100)
    fresh = rs.open(store.path)
    assert isinstance(fresh, rs.Store)

    report = fresh.verify()

    assert [(fault.segment, fault.sample) for fault in report.faults] == [(path.stem, 100)]
    assert report.damaged == COUNT - 100
    np.testing.assert_array_equal(fresh["values"][99], want(99))
    with pytest.raises(OSError, match=path.stem):
        fresh[100]


def test_a_file_cut_short_under_an_open_reader_is_an_error(store: rs.Store) -> None:
    fresh = rs.open(store.path, budget=0)
    np.testing.assert_array_equal(fresh["values"][1999], want(1999))
    os.truncate(segment_path(store, 1), 2000)

    with pytest.raises(rs.CorruptionError, match="ends before byte"):
        fresh["values"][1999]


def test_without_its_chunk_table_a_segment_reads_the_same(store: rs.Store) -> None:
    segment_path(store, 1).with_suffix(".idx").unlink()
    fresh = rs.open(store.path)
    assert isinstance(fresh, rs.Store)

    assert reading(fresh) == (set(range(COUNT)), set())
    [fault] = fresh.verify().faults
    assert "chunk table is missing" in fault.message


def test_checksums_left_out_in_reading_are_verified_all_the_same(store: rs.Store) -> None:
    offset, _, _ = entry_of(store, "values", "data", 2)
    edges = store._snapshot.reader(1).table.datasets["values"]["data"].blocks.edges
    flip(segment_path(store, 1), offset + int(edges[2, 1]) + 9)

    unchecked = rs.open(store.path, checksums=False)

    assert not unchecked.verify().ok
    assert len(pickle.loads(pickle.dumps(unchecked))["values"]) == COUNT
    with pytest.raises(rs.CorruptionError):
        rs.open(store.path, checksums=False, verify=True)


def test_a_disk_that_refuses_to_be_read_is_no_damage(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, real = rs.open(store.path), os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".h5"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(rs.StorageError, match="Too many open files"):
        fresh.verify()

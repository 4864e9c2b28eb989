"""A chunk table that is damaged, or lies, is refused whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.segment.empty import empty_file
from raggedstore.segment.table import SegmentTable, checksum


@pytest.fixture
def table(tmp_path: Path) -> SegmentTable:
    store = rs.create(tmp_path / "store", {"a": rs.Field("i4", (None,)), "b": rs.Field("i4")})
    with store.writer() as writer:
        writer.append({"a": [1, 2], "b": 3})
    return store._snapshot.reader(0).table


def test_a_table_reads_back_as_it_was_written(table: SegmentTable) -> None:
    again = SegmentTable.loads(table.dumps(), file_bytes=table.file_bytes)

    assert again.schema == table.schema
    assert again.samples == table.samples
    for name, columns in table.datasets.items():
        for column, dataset in columns.items():
            other = again.datasets[name][column]
            assert (other.rows, other.chunk_rows) == (dataset.rows, dataset.chunk_rows)
            np.testing.assert_array_equal(other.entries, dataset.entries)


def test_every_flipped_byte_and_every_cut_is_refused(table: SegmentTable) -> None:
    data = table.dumps()
    for i in range(len(data)):
        for damaged in (data[:i], data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :]):
            with pytest.raises(rs.CorruptionError):
                SegmentTable.loads(damaged, file_bytes=table.file_bytes)


@pytest.mark.parametrize(
    ("offset", "size"), [(2**40, 8), (0, 2**40), (2**64 - 4, 8), (0, 2**64 - 1)]
)
def test_a_chunk_outside_the_file_is_refused(table: SegmentTable, offset: int, size: int) -> None:
    entries = table.datasets["a"]["data"].entries
    if not entries.flags.writeable:
        entries = entries.copy()
    lying = table.dumps().replace(entries.tobytes()[:16], np.array([offset, size], "u8").tobytes())
    body = lying[:-8]
    signed = body + checksum(body).to_bytes(8, "little")
    with pytest.raises(rs.CorruptionError, match="outside the file"):
        SegmentTable.loads(signed, file_bytes=table.file_bytes)


def test_a_chunk_of_no_bytes_is_refused_so_that_holes_are_no_large_table(
    table: SegmentTable,
) -> None:
    dataset = table.datasets["a"]["data"]
    entries = dataset.entries.copy()
    entries["size"] = 0
    table.datasets["a"]["data"] = replace(dataset, entries=entries)

    with pytest.raises(rs.CorruptionError, match="field 'a': a chunk of no bytes"):
        SegmentTable.loads(memoryview(table.dumps()), file_bytes=table.file_bytes)


def test_a_table_of_another_file_is_refused(table: SegmentTable) -> None:
    with pytest.raises(rs.CorruptionError, match="is for a file of"):
        SegmentTable.loads(table.dumps(), file_bytes=table.file_bytes + 1)


def test_the_empty_file_is_an_hdf5_file_with_nothing_in_it(tmp_path: Path) -> None:
    import h5py
    import tables

    (tmp_path / "empty.h5").write_bytes(empty_file())

    with h5py.File(tmp_path / "empty.h5", "r") as file:
        assert list(file) == []
        assert len(file.attrs) == 0
    with tables.open_file(str(tmp_path / "empty.h5"), "r") as opened:
        assert opened.root._v_nchildren == 0

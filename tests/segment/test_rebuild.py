"""Chunk tables made anew from the HDF5 file alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tables

import raggedstore as rs
from raggedstore.segment.context import ReadContext
from raggedstore.segment.file import FileBytes
from raggedstore.segment.reader import SegmentReader
from raggedstore.segment.rebuild import rebuild_table
from raggedstore.segment.writer import SegmentWriter

ROWS = 40_000


def values() -> np.ndarray:
    data = np.arange(ROWS, dtype="i4") // 3
    data[9000:20_000] = np.frombuffer(np.random.default_rng(0).bytes(44_000), "i4")
    data[20_000:30_000] = 0
    return data


def rebuilt(path: Path) -> SegmentReader:
    context = ReadContext(2**20)
    data = FileBytes(path, context.files)
    return SegmentReader("a", data, rebuild_table("a", data), context)


def test_a_segments_table_comes_out_as_it_was_written_but_for_the_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    small = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=8192, block_bytes=1024)
    with ThreadPoolExecutor(1) as pool:
        writer = SegmentWriter(path, rs.Schema({"x": rs.Field("i4")}), {"x": small}, pool)
        writer.extend({"x": (values(), np.empty((ROWS, 0), np.int64))}, ROWS)
        written = writer.seal().datasets["x"]["data"]

    again = rebuilt(path).table.datasets["x"]["data"]

    assert (again.rows, again.chunk_rows) == (written.rows, written.chunk_rows)
    for name in ("offset", "size"):
        np.testing.assert_array_equal(again.entries[name], written.entries[name])
    assert again.blocks.nbytes == written.blocks.nbytes == 1024
    np.testing.assert_array_equal(again.blocks.edges, written.blocks.edges)
    assert again.blocks.header == written.blocks.header


@pytest.mark.parametrize(
    ("complib", "shuffle"),
    [("blosc2:lz4", True), ("blosc2:zstd", False), ("blosc:lz4", True), ("zlib", True), (None, 0)],
)
@pytest.mark.parametrize("chunk_rows", [1, 1000, 2**15])
def test_a_file_that_pytables_wrote_reads_whole_and_in_part(
    tmp_path: Path, complib: str | None, shuffle: bool, chunk_rows: int
) -> None:
    rows = 300 if chunk_rows == 1 else ROWS
    want = values()[:rows]
    path = tmp_path / "a.h5"
    filters = tables.Filters(5, complib, shuffle=shuffle) if complib else None
    with tables.open_file(str(path), "w") as h5:
        group = h5.create_group("/", "x")
        h5.create_earray(
            group, "data", obj=want, filters=filters, chunkshape=(chunk_rows,), expectedrows=rows
        )

    reader = rebuilt(path)
    column = reader.column("x", "data")

    rng = np.random.default_rng(1)
    for _ in range(5):
        starts = rng.integers(0, rows, 20)
        stops = np.minimum(starts + rng.integers(0, 2000, 20), rows)
        pieces = [want[a:b] for a, b in zip(starts, stops, strict=True)]
        np.testing.assert_array_equal(column.read(starts, stops), np.concatenate(pieces))
    np.testing.assert_array_equal(column.read(np.array([0]), np.array([rows])), want)

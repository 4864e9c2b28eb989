"""One dataset, read whole, in part, in any order, ahead of time, and damaged."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import kernel
from raggedstore.segment.column import ColumnReader
from raggedstore.segment.context import ReadContext
from raggedstore.segment.file import FileBytes
from raggedstore.segment.reader import SegmentReader
from raggedstore.segment.table import SegmentTable
from raggedstore.segment.writer import SegmentWriter

pytestmark = pytest.mark.usefixtures("either_kernel")

COMPRESSION = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=512)
ROWS = 30_000


def values() -> np.ndarray:
    """Chunks of all kinds: smooth, all zeros, and noise, which does not compress."""
    data = np.arange(ROWS, dtype="i4") // 7
    data[4096:9000] = 0
    noise = np.frombuffer(np.random.default_rng(0).bytes(4 * 9000), "i4")
    data[12_000:21_000] = noise
    return data


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SegmentTable]:
    path = tmp_path_factory.mktemp("segment") / "a.h5"
    with ThreadPoolExecutor(1) as pool:
        writer = SegmentWriter(path, rs.Schema({"x": rs.Field("i4")}), {"x": COMPRESSION}, pool)
        writer.extend({"x": (values(), np.empty((ROWS, 0), np.int64))}, ROWS)
        return path, writer.seal()


def column_of(path: Path, table: SegmentTable, budget: int, check: bool = True) -> ColumnReader:
    context = ReadContext(budget, checksums=check)
    reader = SegmentReader("a", FileBytes(path, context.files), table, context)
    return reader.column("x", "data")


@pytest.mark.parametrize("budget", [0, 20_000, 2**20])
@settings(deadline=None)
@given(data=st.data())
def test_any_ranges_read_as_from_an_array(
    segment: tuple[Path, SegmentTable], budget: int, data: st.DataObject
) -> None:
    column = column_of(*segment, budget, data.draw(st.booleans()))
    want = values()
    for _ in range(3):
        starts = np.array(data.draw(st.lists(st.integers(0, ROWS), max_size=30)), np.int64)
        longest = data.draw(st.sampled_from([0, 1, 50, 3000]))
        stops = np.minimum(starts + data.draw(st.integers(0, longest)), ROWS)
        pieces = [want[a:b] for a, b in zip(starts, stops, strict=True)]
        np.testing.assert_array_equal(
            column.read(starts, stops), np.concatenate([want[:0], *pieces])
        )


@pytest.mark.parametrize("budget", [0, 20_000, 2**20])
@settings(deadline=None)
@given(data=st.data())
def test_any_rows_read_as_from_an_array(
    segment: tuple[Path, SegmentTable], budget: int, data: st.DataObject
) -> None:
    column = column_of(*segment, budget)
    want = values()
    for number in data.draw(st.lists(st.integers(0, ROWS // 1024), max_size=4)):
        column.fetch(number)
    for _ in range(3):
        low = data.draw(st.integers(0, ROWS - 1))
        high = data.draw(st.integers(low, min(low + 3000, ROWS - 1)))
        positions = data.draw(st.lists(st.integers(low, high), max_size=30))
        got = column.at(np.array(positions, np.int64))
        np.testing.assert_array_equal(got, want[positions] if positions else want[:0])


@settings(deadline=None)
@given(data=st.data())
def test_parts_of_chunks_without_blocks_read_as_from_an_array(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 600))
    want = np.arange(rows, dtype="i4")
    level = data.draw(st.integers(0, 1))
    whole = rs.Compression("lz4", level, (), chunk_bytes=512, block_bytes=512)
    path = tmp_path_factory.mktemp("segment") / "a.h5"
    with ThreadPoolExecutor(1) as pool:
        writer = SegmentWriter(path, rs.Schema({"x": rs.Field("i4")}), {"x": whole}, pool)
        writer.extend({"x": (want, np.empty((rows, 0), np.int64))}, rows)
        column = column_of(path, writer.seal(), data.draw(st.sampled_from([0, 600, 2**20])))
    assert column.dataset.blocks is None
    for _ in range(10):
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, min(rows, start + 260)))
        stop = data.draw(st.sampled_from([stop, min(rows, -(-stop // 128) * 128)]))  # a chunk's end
        np.testing.assert_array_equal(column.run(start, stop), want[start:stop])


@pytest.mark.parametrize("part", [1, 20])  # in 20: six ranges in a block
def test_short_ranges_of_all_over_are_copied_from_chunks_that_are_decoded_once(
    segment: tuple[Path, SegmentTable], part: int
) -> None:
    column = column_of(*segment, 2**20)
    want, starts = values(), np.random.default_rng(0).permutation(ROWS - 2)[: ROWS // part]
    for _ in range(2):
        got = column.read(starts, starts + 2)
        np.testing.assert_array_equal(got.reshape(-1, 2), want[starts[:, None] + np.arange(2)])
    if kernel.is_there():
        context = column._context
        assert context.blocks_decoded == 0
        assert context.chunks_decoded == len(column.dataset.entries)


def test_no_more_chunks_are_decoded_for_short_ranges_than_half_of_the_budget_holds(
    segment: tuple[Path, SegmentTable],
) -> None:
    starts = np.random.default_rng(0).permutation(ROWS - 2)
    for budget, whole in ((4 * ROWS, False), (12 * ROWS, True)):
        column = column_of(*segment, budget)
        got = column.read(starts, starts + 2)
        np.testing.assert_array_equal(got[::2], values()[starts])
        if kernel.is_there():
            assert (column._context.blocks_decoded == 0) == whole


@pytest.mark.parametrize("budget", [0, 2**20])
def test_rows_and_runs_one_after_another_read_as_from_an_array(
    segment: tuple[Path, SegmentTable], budget: int
) -> None:
    column = column_of(*segment, budget)
    want = values()
    assert [column.row(i) for i in range(0, ROWS, 97)] == want[::97].tolist()
    for start in range(0, ROWS - 333, 333):  # in sequence, so that chunks are read ahead
        np.testing.assert_array_equal(column.run(start, start + 333), want[start : start + 333])


def test_what_is_given_back_is_the_callers_own(segment: tuple[Path, SegmentTable]) -> None:
    column = column_of(*segment, 2**20)
    for _ in range(20):  # until the chunk is held
        run = column.run(10, 700)
        assert run.flags.writeable
        run[:] = -1


def test_a_little_of_a_chunk_costs_its_blocks_only(segment: tuple[Path, SegmentTable]) -> None:
    path, table = segment
    column = column_of(path, table, 2**20)
    read: list[int] = []
    whole = column._data.read_into
    column._data.read_into = lambda at, out: (read.append(len(out)), whole(at, out))[1]

    column.read(np.array([5, 25_000]), np.array([6, 25_001]))

    assert column._context.blocks_decoded == 2 and column._context.chunks_decoded == 0
    if not kernel.is_there():
        assert len(read) == 2 and sum(read) < 600
    assert column._context.cache.nbytes == 0


def test_a_chunk_read_again_and_again_is_held(segment: tuple[Path, SegmentTable]) -> None:
    column = column_of(*segment, 2**20)
    for _ in range(20 if kernel.is_there() else 10):
        column.read(np.array([5]), np.array([6]))
    assert column._context.cache.nbytes == 4096


def test_sequential_reading_decodes_what_comes_next_in_the_background(
    segment: tuple[Path, SegmentTable],
) -> None:
    column = column_of(*segment, 2**20)
    if column._context.pool is None:
        pytest.skip("one core: nothing to read ahead with")
    for start in (0, 1500, 3000):
        column.read(np.array([start]), np.array([start + 1500]))
    deadline = time.monotonic() + 10
    while column._context.cache.nbytes < 8192 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert column.cached(4500 // 1024) is not None


@pytest.mark.parametrize("where", ["header", "first block", "last block"])
def test_damage_to_a_block_costs_only_what_lies_in_it(
    segment: tuple[Path, SegmentTable], tmp_path: Path, where: str
) -> None:
    path, table = segment
    dataset = table.datasets["x"]["data"]
    number = 25
    offset = int(dataset.entries["offset"][number])
    edges = dataset.blocks.edges[number].tolist()
    at = {"header": 20, "first block": edges[0] + 3, "last block": edges[-1] - 2}[where]
    damaged = bytearray(path.read_bytes())
    damaged[offset + at] ^= 1
    copy = tmp_path / "b.h5"
    copy.write_bytes(damaged)
    want = values()
    first = number * 1024
    rows = {"header": (0, 0), "first block": (0, 128), "last block": (896, 1024)}[where]

    for budget in (0, 2**20):
        column = column_of(copy, table, budget)
        for _ in range(2):
            for start in range(0, 1024, 64):
                bad = rows[0] <= start < rows[1]
                run = first + start, first + start + 64
                if bad:
                    with pytest.raises(rs.CorruptionError, match=f"data chunk {number}"):
                        column.run(*run)
                else:
                    np.testing.assert_array_equal(column.run(*run), want[slice(*run)])
        whole = np.array([first]), np.array([first + 1024])
        if where == "header":
            np.testing.assert_array_equal(column.read(*whole), want[first : first + 1024])
        else:
            with pytest.raises(rs.CorruptionError, match="segment a, field 'x'"):
                column.read(*whole)
        fault, lost = column.damage_of(number)
        assert "checksum" in str(fault)
        assert column.unit_rows == 128
        assert lost.tolist() == [rows[0] <= 128 * i < rows[1] for i in range(8)]
        fault, lost = column.damage_of(number - 1)
        assert fault is None and not lost.any()


def test_checksums_can_be_left_out(segment: tuple[Path, SegmentTable], tmp_path: Path) -> None:
    path, table = segment
    dataset = table.datasets["x"]["data"]
    damaged = bytearray(path.read_bytes())
    # A byte of noise, which is stored as it is: nothing but a checksum would notice.
    damaged[int(dataset.entries["offset"][15]) + int(dataset.blocks.edges[15, 5])] ^= 1
    copy = tmp_path / "b.h5"
    copy.write_bytes(damaged)
    where = np.array([15 * 1024]), np.array([16 * 1024])

    with pytest.raises(rs.CorruptionError, match="checksum"):
        column_of(copy, table, 0).read(*where)
    assert (
        column_of(copy, table, 0, check=False).read(*where) != values()[15_360:16_384]
    ).sum() == 1


def test_many_threads_read_one_column(segment: tuple[Path, SegmentTable]) -> None:
    column = column_of(*segment, 20_000)
    want = values()

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            starts = rng.integers(0, ROWS - 500, 20)
            stops = starts + rng.integers(0, 500, 20)
            pieces = [want[a:b] for a, b in zip(starts, stops, strict=True)]
            if not np.array_equal(column.read(starts, stops), np.concatenate(pieces)):
                return False
            at = int(rng.integers(ROWS))
            if column.row(at) != want[at]:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_what_is_decoded_is_counted_as_chunks_where_it_is_all_of_one(
    segment: tuple[Path, SegmentTable],
) -> None:
    column = column_of(*segment, 0)
    column.read(np.array([0, 25_000]), np.array([3 * 1024 + 1, 25_001]))
    assert (column._context.chunks_decoded, column._context.blocks_decoded) == (3, 2)


def side_column_of(folder: Path, count: int, budget: int) -> ColumnReader:
    """Where `count` samples of one value each lie."""
    if not kernel.is_there():
        pytest.skip("without the kernel its blocks are as dear as the whole")
    schema = rs.Schema({"x": rs.Field("u1", (None,))})
    with ThreadPoolExecutor(1) as pool:
        writer = SegmentWriter(folder / "a.h5", schema, {"x": COMPRESSION}, pool)
        writer.extend({"x": (np.zeros(count, "u1"), np.ones((count, 1), np.int64))}, count)
        table = writer.seal()
    context = ReadContext(budget)
    reader = SegmentReader("a", FileBytes(folder / "a.h5", context.files), table, context)
    return reader.column("x", "data_start_and_stop")


@pytest.mark.parametrize("budget", [2**22, 2**24])
def test_a_side_column_is_held_where_it_is_small_or_much_of_it_is_wanted_not_rows_here_and_there(
    tmp_path: Path, budget: int
) -> None:
    count = 2**16
    column = side_column_of(tmp_path, count, budget)
    cache = column._context.cache
    is_small = 8 * 16 * count <= budget
    order = np.random.default_rng(0).permutation(count)
    here_and_there = order[order % 100 == 0]  # some of every block
    rows = column.at(here_and_there)
    np.testing.assert_array_equal(rows, here_and_there[:, None] + [0, 1])
    column.at(here_and_there[:1])
    assert cache.nbytes == (16 * count if is_small else 0)
    np.testing.assert_array_equal(column.at(order), order[:, None] + [0, 1])
    assert cache.nbytes == count * 16


@pytest.mark.parametrize("budget", [2**22, 2**24])
def test_a_small_side_column_is_held_from_the_first_time_that_much_of_it_is_wanted(
    tmp_path: Path, budget: int
) -> None:
    count = 2**16
    column = side_column_of(tmp_path, count, budget)
    order = np.random.default_rng(0).permutation(count)
    third = order[order % 3 == 0]  # enough that not to plan is worth it
    np.testing.assert_array_equal(column.at(third), third[:, None] + [0, 1])
    assert column._context.cache.nbytes == (16 * count if 8 * 16 * count <= budget else 0)

"""Planned gathering against plain slices."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raggedstore import kernel
from raggedstore.segment import by_kernel, compiled
from raggedstore.segment import gather as module
from raggedstore.segment.gather import gather
from raggedstore.segment.tasks import Task, run

pytestmark = pytest.mark.usefixtures("either_kernel")


class Chunks:
    """Rows in memory, served by chunks and blocks, which counts what it is asked for."""

    def __init__(self, values: np.ndarray, chunk_rows: int, block_nbytes: int) -> None:
        rows = len(values)
        self.rows = rows
        self.stored = np.zeros((-(-rows // chunk_rows) * chunk_rows, *values.shape[1:]), "i4")
        self.stored[:rows] = values
        self.chunk_rows = chunk_rows
        self.row_nbytes = self.stored.nbytes // max(len(self.stored), 1)
        self.block_nbytes = block_nbytes
        self.is_side = False
        self.room = 2**30
        self.kept: set[int] = set()
        self.renting = True
        self.decoded: list[int] = []
        self.blocks: list[int] = []

    def chunk(self, number: int) -> np.ndarray:
        return self.stored[number * self.chunk_rows : (number + 1) * self.chunk_rows]

    def cached(self, number: int) -> np.ndarray | None:
        return self.chunk(number) if number in self.kept else None

    def held(self, numbers: list[int]) -> list[np.ndarray | None]:
        return [self.cached(number) for number in numbers]

    def fetch(self, number: int) -> np.ndarray:
        self.decoded.append(number)
        return self.chunk(number)

    def decode_into(self, number: int, out: np.ndarray) -> None:
        out[:] = self.fetch(number).reshape(-1).view(np.uint8)

    def has_blocks(self, number: int) -> bool:
        return self.renting

    def held_every(self, numbers: range) -> list[np.ndarray] | None:
        return [self.chunk(n) for n in numbers] if self.kept.issuperset(numbers) else None

    def rent(self, numbers: list[int], blocks: list[int]) -> list[bool]:
        return [self.renting] * len(numbers)

    def decode_blocks(self, blocks: np.ndarray, out: np.ndarray) -> None:
        self.blocks += blocks.tolist()
        out[:] = (
            self.stored.reshape(-1)
            .view(np.uint8)
            .reshape(-1, self.block_nbytes)[blocks]
            .reshape(-1)
        )

    def scratch(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)

    def decode_laid_out(
        self, cut: compiled.Cut, chosen: list[bool], out: np.ndarray, otherwise: Task
    ) -> tuple[Task, int]:
        chunk_nbytes = self.chunk_rows * self.row_nbytes
        edges = np.arange(0, chunk_nbytes + 1, self.block_nbytes, np.uint32)
        edges[0] |= 2**31  # blocks are as they are
        table = compiled.Table(
            bytes(32),
            self.block_nbytes,
            np.arange(0, self.stored.nbytes, chunk_nbytes, np.uint64),
            np.tile(edges, (self.stored.nbytes // chunk_nbytes, 1)),
            None,
        )
        layout = compiled.lay_out(cut, bytes(chosen), table)
        self.blocks += (np.frombuffer(layout.begins, np.int64) // self.block_nbytes).tolist()
        state = np.zeros(2, np.int64)

        def task() -> None:
            scratch = self.scratch(layout.stored), self.scratch(layout.decoded)
            source = memoryview(self.stored.tobytes())
            assert compiled.decode(source, table, layout, out, state, *scratch)

        return task, layout.groups


@pytest.mark.parametrize("threads", [0, 2])
@settings(deadline=None)
@given(data=st.data())
def test_any_ranges_come_to_their_places_and_nothing_is_decoded_twice(
    threads: int, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 300))
    width = data.draw(st.sampled_from([1, 2, 3]))
    blocks_in_chunk = data.draw(st.sampled_from([0, 2, 5]))
    block_rows = data.draw(st.sampled_from([1, 4, 7]))
    # Blocks that hold no whole number of rows: three blocks to two chunks' worth of rows.
    odd = blocks_in_chunk and data.draw(st.booleans())
    chunk_rows = block_rows * max(blocks_in_chunk, 1)
    block_nbytes = block_rows * width * 4 if blocks_in_chunk else 0
    if odd:
        chunk_rows, block_nbytes = 3, 2 * width * 2
    point = st.integers(0, rows)
    ranges = data.draw(st.lists(st.tuples(point, point).map(sorted), max_size=30))
    values = np.arange(rows * width, dtype="i4").reshape(rows, width)
    source = Chunks(values, chunk_rows, block_nbytes)
    n_chunks = -(-rows // chunk_rows)
    source.kept = set(data.draw(st.lists(st.integers(0, n_chunks - 1), max_size=3)))
    source.renting = data.draw(st.booleans())

    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    # One after another, or with rows between them that are somebody else's.
    gap = data.draw(st.sampled_from([None, 0, 1, 3]))
    want, places = [], []
    for a, b in ranges:
        places.append(len(want))
        want += [*values[a:b], *[np.full(width, -1, "i4")] * (gap or 0)]
    want = np.array(want, "i4").reshape(-1, width)
    out = np.full_like(want, -1)
    at = None if gap is None else np.array(places, np.int64)
    pool = ThreadPoolExecutor(threads) if threads else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_THREADED", 0)
        patch.setattr(module, "_JOB", 16)
        patch.setattr(by_kernel, "_COPIES", 16)
        trifle = data.draw(st.sampled_from([0, 2**14]))
        for each in (module, by_kernel):
            patch.setattr(each, "TRIFLE", trifle)
        patch.setattr(compiled, "_GROUP", data.draw(st.sampled_from([1, 50, 2**17])))
        patch.setattr(module, "_TINY", data.draw(st.sampled_from([0, 2, 5, 64])))
        gather(starts, stops, out, source, pool, places=at)
    if pool is not None:
        pool.shutdown()

    np.testing.assert_array_equal(out, want)
    touched = {row // chunk_rows for a, b in ranges for row in range(a, b)}
    by_block = {block * max(block_nbytes, 1) // (chunk_rows * width * 4) for block in source.blocks}
    assert len(source.decoded) == len(set(source.decoded))
    assert len(source.blocks) == len(set(source.blocks))
    assert by_block.isdisjoint(source.decoded)
    assert by_block | set(source.decoded) == touched - source.kept


@pytest.mark.parametrize("apart", [False, True])
@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_little_ranges_that_lie_close_are_copied_from_blocks_that_lie_side_by_side(
    apart: bool, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    rows, block_rows, in_chunk = 256 * 240 - data.draw(st.integers(0, 255)), 256, 8
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = rng.integers(0, 2**31, (rows, 1), "i4")
    source = Chunks(values, block_rows * in_chunk, block_rows * 4)
    lengths = rng.integers(0, 5, 400)
    # Consecutive, but for one that is long, some somewhere else, and the last rows.
    starts = np.cumsum(lengths) + data.draw(st.integers(0, rows - 6000))
    stops = starts + lengths
    starts[7] += 3000
    stops[7] = starts[7] + data.draw(st.integers(512, 680))
    starts[:5], stops[:5] = rows - 4, rows
    if apart:
        starts[9:] = rng.integers(0, rows - 4, 391)
        stops[9:] = starts[9:] + rng.integers(0, 5, 391)
    order = rng.permutation(400)
    starts, stops = starts[order], stops[order]
    done = []

    def copy_compact(*what: Any) -> bool:
        done.append(by_kernel.copy_compact(*what))
        return bool(done[-1])

    monkeypatch.setattr(by_kernel, "_MANY", 300)
    monkeypatch.setattr(module, "copy_compact", copy_compact)
    out = np.zeros((int((stops - starts).sum()), 1), "i4")
    gather(starts, stops, out, source, None)

    want = [values[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    np.testing.assert_array_equal(out, np.concatenate(want))
    assert any(done) == (kernel.is_there() and not apart)
    touched = {
        block
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
        if b > a
        for block in range(a // block_rows, (b - 1) // block_rows + 1)
    }
    whole = {n * in_chunk + i for n in source.decoded for i in range(in_chunk)}
    assert sorted(source.blocks) == sorted(set(source.blocks))
    assert set(source.blocks) | whole >= touched
    assert whole or set(source.blocks) == touched


def test_only_the_blocks_that_are_touched_are_decoded() -> None:
    values = np.arange(1000, dtype="i4")
    source = Chunks(values, 100, 40)  # ten blocks of ten rows in a chunk

    out = np.empty(9, "i4")
    gather(np.array([905, 5, 98]), np.array([907, 6, 104]), out, source, None)

    assert out.tolist() == [905, 906, 5, 98, 99, 100, 101, 102, 103]
    assert source.blocks == [0, 9, 10, 90]
    assert source.decoded == []


def test_blocks_are_decoded_by_several_threads_however_little_of_them_is_wanted() -> None:
    met = threading.Barrier(2, timeout=10)

    class Meeting(Chunks):
        def decode_blocks(self, blocks: np.ndarray, out: np.ndarray) -> None:
            met.wait()
            super().decode_blocks(blocks, out)

        def decode_laid_out(self, *args: Any) -> tuple[Task, int]:
            task, parts = super().decode_laid_out(*args)
            return lambda: (met.wait(), task())[1], parts

    source = Meeting(np.arange(2**18, dtype="i4"), 2**13, 2**14)  # two blocks in a chunk
    starts = np.arange(0, 2**18, 2**13)

    out = np.empty(len(starts), "i4")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(module, "_JOB", 2**18)
        gather(starts, starts + 1, out, source, pool)

    assert out.tolist() == starts.tolist()


def test_a_chunk_of_which_most_is_wanted_is_decoded_whole_where_that_is_cheaper() -> None:
    source = Chunks(np.arange(1000, dtype="i4"), 100, 40)

    out = np.empty(80, "i4")
    gather(np.array([5]), np.array([85]), out, source, None)

    if kernel.is_there():
        assert source.decoded == [] and source.blocks == list(range(9))
    else:
        assert source.decoded == [0] and source.blocks == []


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_run_does_every_task_once_and_raises_the_first_error(threads: int) -> None:
    done: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        run([lambda i=i: done.append(i) for i in range(20)], pool, threads)
        assert sorted(done) == list(range(20))

        def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run([fail] * 20, pool, threads)


def test_run_needs_no_thread_but_its_own() -> None:
    busy = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        blocker = pool.submit(busy.wait)
        done: list[int] = []
        run([lambda i=i: done.append(i) for i in range(5)], pool, 2)
        assert done == list(range(5))
        busy.set()
        assert blocker.result()

"""Pieces of blocks, decoded by the kernel, are what the blocks hold there."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggedstore import kernel
from raggedstore.segment import compiled
from raggedstore.segment.blocks import block_checksum

pytestmark = pytest.mark.skipif(not kernel.is_there(), reason="the kernel is not compiled here")

BLOCK, COUNT = 64, 40
VALUES = (np.arange(BLOCK * COUNT // 4) // 5).astype("i4")
RAW = VALUES.view(np.uint8)


def chunk(*, compresses: bool) -> tuple[bytes, bytes, np.ndarray]:
    """A chunk of all values, its header without sizes, and where its blocks begin and end."""
    stored = blosc2.compress2(
        VALUES,
        codec=blosc2.Codec.LZ4,
        clevel=5 if compresses else 0,
        typesize=4,
        blocksize=BLOCK,
        nthreads=1,
        filters=[blosc2.Filter.SHUFFLE],
    )
    edges = 32 + BLOCK * np.arange(COUNT + 1)
    if compresses:
        edges = np.append(np.frombuffer(stored, "<i4", COUNT, 32), len(stored))
    return stored, stored[:4] + bytes(4) + stored[8:12] + bytes(4) + stored[16:32], edges


@dataclass(frozen=True)
class Blocks:
    """Blocks as a `Layout` has them, and the file they lie in."""

    file: memoryview
    table: compiled.Table
    begins: np.ndarray
    sizes: np.ndarray
    raw: np.ndarray
    checks: np.ndarray

    def of(self, which: list[int]) -> dict[str, Any]:
        """Some of them."""
        names = ("begins", "sizes", "raw", "checks")
        return {name: getattr(self, name)[which] for name in names}


def table_of(header: bytes, chunks: int, edges: np.ndarray, checks: Any) -> compiled.Table:
    return compiled.Table(
        header,
        BLOCK,
        np.arange(chunks).astype(np.uint64) * (int(edges[-1]) & (2**31 - 1)),
        np.tile(edges.astype(np.uint32), (chunks, 1)),
        checks if checks is None else np.tile(checks, (chunks, 1)),
    )


def chunk_in_file(path: Path, every: int) -> Blocks:
    """Blocks of a chunk, of `every` so many one not compressed; some lie apart from the others."""
    stored, header, edges = chunk(compresses=True)
    content = b""
    begins, sizes, raw = [], [], np.arange(COUNT) % every == every - 1
    for i in range(COUNT):
        content += b"gap" if i % 7 == 0 else b""
        block = bytes(RAW[i * BLOCK :][:BLOCK]) if raw[i] else stored[edges[i] : edges[i + 1]]
        begins.append(len(content))
        sizes.append(len(block))
        content += block
    path.write_bytes(content)
    checks = [block_checksum(content[a : a + n]) for a, n in zip(begins, sizes, strict=True)]
    return Blocks(
        memoryview(content),
        table_of(header, 1, edges, None),
        np.array(begins, np.int64),
        np.array(sizes, np.int64),
        raw,
        np.array(checks, np.uint32),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled") / "blocks"


@pytest.fixture(scope="module", params=[1, 3])
def blocks(path: Path, request: pytest.FixtureRequest) -> Blocks:
    return chunk_in_file(path, request.param)


@st.composite
def wanted(draw: st.DrawFn) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Which blocks, and where pieces begin and end in what those decode to; all blocks needed."""
    which = sorted(draw(st.sets(st.integers(0, COUNT - 1), min_size=1)))
    size = len(which) * BLOCK
    ends = st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(sorted)
    pieces = draw(st.lists(ends.filter(lambda p: p[0] < p[1]), max_size=8))
    covered = {b for low, high in pieces for b in range(low // BLOCK, (high - 1) // BLOCK + 1)}
    pieces += [[b * BLOCK + 3, b * BLOCK + 9] for b in range(len(which)) if b not in covered]
    pieces.sort(key=lambda piece: piece[0] // BLOCK)
    low, high = np.array(pieces, np.int64).T
    return which, low, high - low


NUMBERS = ("begins", "sizes", "froms", "counts", "places", "edges", "block_edges")


def laid_out(
    count: int, low: np.ndarray, counts: np.ndarray, places: np.ndarray, **of_blocks: Any
) -> compiled.Layout:
    """Pieces of `count` blocks, each of which has some: what the blocks are may be said besides."""
    cut = compiled.cut(
        *(low, low + counts, places), rows=count * BLOCK, row=1, chunk=count * BLOCK, block=BLOCK
    )
    table = table_of(bytes(32), 1, np.arange(count + 1) * BLOCK, None)
    layout = compiled.lay_out(cut, b"\1", table)
    arrays = {name: np.frombuffer(getattr(layout, name), np.int64) for name in NUMBERS}
    stored = 32 + (4 + 2 * BLOCK) * int(np.diff(arrays["block_edges"]).max())
    return replace(layout, **{**arrays, "stored": stored, **of_blocks})


def decode(
    file: Any, table: compiled.Table, layout: compiled.Layout, size: int, threads: int = 1
) -> tuple[bool, np.ndarray]:
    out, state = np.zeros(size, np.uint8), np.zeros(2, np.int64)

    def work() -> bool:
        scratch = np.empty(layout.stored, np.uint8), np.empty(layout.decoded, np.uint8)
        return compiled.decode(file, table, layout, out, state, *scratch)

    with ThreadPoolExecutor(threads) as pool:
        done = [task.result() for task in [pool.submit(work) for _ in range(threads)]]
    return all(done), out


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), max_size=20),
    st.data(),
)
def test_ranges_are_cut_where_chunks_end_and_come_in_the_order_of_blocks(
    row: int, per_chunk: int, ranges: list[list[int]], data: st.DataObject
) -> None:
    block = row * data.draw(st.sampled_from([1, 3]))
    chunk = block * per_chunk
    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    places = np.array([40 * i for i in range(len(ranges))], np.int64)
    joined = data.draw(st.booleans())
    if joined:
        places = np.cumsum(stops - starts) - (stops - starts)

    cut = compiled.cut(starts, stops, places, rows=30, row=row, chunk=chunk, block=block)

    edges, low, count, place = cut.of(list(range(len(cut.chunks))))
    number = np.repeat(cut.chunks, np.diff(edges)).astype(np.int64)
    went = [
        (int(c) * chunk + int(a) + i, int(p) + i)
        for c, a, n, p in zip(number, low, count, place, strict=True)
        for i in range(n)
    ]
    want = [
        (start * row + i, int(at) * row + i)
        for (start, stop), at in zip(ranges, places, strict=True)
        for i in range((stop - start) * row)
    ]
    assert sorted(went) == sorted(want)
    assert (low + count <= chunk).all()
    assert (np.diff(number * chunk + low // block * block) >= 0).all()
    assert cut.chunks == sorted(set(cut.chunks))
    touched = {at // block for at, _ in want}
    assert cut.blocks == [sum(b // per_chunk == c for b in touched) for c in cut.chunks]
    assert sum(cut.sizes()) == len(want)
    alone = [
        n == 1 and int(count[a]) == chunk
        for a, n in zip(edges[:-1].tolist(), np.diff(edges).tolist(), strict=True)
    ]
    assert cut.whole(chunk) == alone


@given(wanted(), st.sampled_from([1, 100, 150, 500, 2**17]))
def test_groups_share_no_block_and_cut_what_is_long(
    asked: tuple[list[int], np.ndarray, np.ndarray], target: int
) -> None:
    which, low, count = asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_GROUP", target)
        layout: Any = laid_out(len(which), low, count, np.cumsum(count) - count)

    # Every byte goes where it went before.
    went = {}
    for start, n, place in zip(layout.froms, layout.counts, layout.places, strict=True):
        assert n > 0
        went |= {int(place) + i: int(start) + i for i in range(n)}
    assert [went[i] for i in range(len(went))] == [
        int(start) + i for start, n in zip(low, count, strict=True) for i in range(n)
    ]
    first, last = layout.froms // BLOCK, (layout.froms + layout.counts - 1) // BLOCK
    assert layout.block_edges[0] == 0 and layout.block_edges[-1] == last.max() + 1 == len(which)
    assert (np.diff(layout.block_edges) > 0).all()
    assert (np.diff(layout.block_edges) <= max(target // BLOCK, 1)).all()
    assert layout.groups == len(layout.edges) - 1
    assert layout.decoded == np.diff(layout.block_edges).max() * BLOCK
    for group in range(layout.groups):
        of_group = slice(*layout.edges[group : group + 2])
        assert first[of_group].min() == layout.block_edges[group]
        assert last[of_group].max() + 1 == layout.block_edges[group + 1]


@pytest.mark.parametrize("threads", [1, 3])
@given(
    asked=wanted(),
    target=st.sampled_from([1, 150, 2**17]),
    from_file=st.booleans(),
    checked=st.booleans(),
    data=st.data(),
)
def test_pieces_are_what_the_blocks_hold(
    path: Path,
    blocks: Blocks,
    threads: int,
    asked: tuple[list[int], np.ndarray, np.ndarray],
    target: int,
    from_file: bool,
    checked: bool,
    data: st.DataObject,
) -> None:
    which, low, count = asked
    order = np.array(data.draw(st.permutations(range(len(low)))))
    places = np.empty_like(count)
    places[order] = np.cumsum(count[order]) - count[order]
    held = RAW.reshape(COUNT, BLOCK)[which].reshape(-1)
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(compiled, "_GROUP", target)
        of_blocks = blocks.of(which) | ({} if checked else {"checks": None})
        layout = laid_out(len(which), low, count, places, **of_blocks)
        source = file if from_file else blocks.file
        done, out = decode(source, blocks.table, layout, int(count.sum()), threads)
    assert done
    for start, n, place in zip(low, count, places, strict=True):
        np.testing.assert_array_equal(out[place : place + n], held[start : start + n])


@given(data=st.data())
def test_a_damaged_block_is_noticed(blocks: Blocks, data: st.DataObject) -> None:
    content = bytearray(blocks.file)
    number = data.draw(st.integers(0, COUNT - 1))
    at = int(blocks.begins[number]) + data.draw(st.integers(0, int(blocks.sizes[number]) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    low, high = np.arange(COUNT) * BLOCK, np.arange(1, COUNT + 1) * BLOCK
    if data.draw(st.booleans()):  # in one piece
        low, high = low[:1] + data.draw(st.integers(0, 9)), high[-1:] - data.draw(st.integers(0, 9))
    of_blocks = blocks.of(list(range(COUNT)))
    layout = laid_out(COUNT, low, high - low, low, **of_blocks)
    done, _ = decode(memoryview(bytes(content)), blocks.table, layout, BLOCK * COUNT, 2)
    assert not done


HUGE = [-(2**63), -(2**62), -(2**31), -1, 0, 1, 63, 65, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1]


@given(data=st.data())
def test_whatever_it_is_told_it_stays_within_its_buffers(
    path: Path, blocks: Blocks, data: st.DataObject
) -> None:
    which, low, count = data.draw(wanted())
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(compiled, "_GROUP", data.draw(st.sampled_from([1, 150, 2**17])))
        layout = laid_out(len(which), low, count, np.cumsum(count) - count, **blocks.of(which))
        if data.draw(st.booleans()):
            layout = replace(layout, checks=None)
        for _ in range(data.draw(st.integers(1, 3))):
            name = data.draw(st.sampled_from(NUMBERS))
            lies = getattr(layout, name).copy()
            if not len(lies):  # cut to nothing before
                continue
            at = data.draw(st.integers(0, len(lies) - 1))
            near = np.clip(int(lies[at]) + np.arange(-9, 10, dtype=object), HUGE[0], HUGE[-1])
            lies[at] = data.draw(st.sampled_from([*HUGE, *near.tolist()]))
            lies = lies[: data.draw(st.sampled_from([len(lies), len(lies), len(lies) - 1]))]
            layout = replace(layout, **{name: lies})
        table = blocks.table
        if data.draw(st.booleans()):
            table = replace(table, nbytes=data.draw(st.sampled_from(HUGE)))
        # Fences on both sides of what it may write to.
        sizes = [int(count.sum()), layout.stored, layout.decoded]
        memory = np.full(3 * 4096 + sum(sizes) + BLOCK * COUNT * 20, 7, np.uint8)
        lows = np.cumsum([1024 + size for size in [0, *sizes[:-1]]])
        out, stored, decoded = (
            memory[a : a + n] for a, n in zip(lows.tolist(), sizes, strict=True)
        )
        source = file if data.draw(st.booleans()) else blocks.file
        with suppress(ValueError):
            state = np.zeros(2, np.int64)
            compiled.decode(source, table, layout, out, state, stored, decoded)
    for part in (out, stored, decoded):
        part[:] = 7
    assert (memory == 7).all()


@given(data=st.data())
def test_a_plan_of_lies_is_refused_or_makes_sense(data: st.DataObject) -> None:
    number = st.sampled_from(HUGE) | st.integers(-2, 40)
    ranges = data.draw(st.lists(st.tuples(number, number, number), max_size=5))
    arrays = list(np.array(ranges, np.int64).reshape(-1, 3).T)
    if data.draw(st.booleans()) and ranges:
        which = data.draw(st.integers(0, 2))
        arrays[which] = arrays[which][1:]
    # Not so many pieces that making them takes long.
    sizes = {name: data.draw(number) for name in ("row", "chunk", "block")}
    with suppress(ValueError):
        compiled.cut(*arrays, rows=data.draw(st.integers(-1, 40)), **sizes)

    low = np.array([3, BLOCK * 2, BLOCK * 4 - 1, 7 * BLOCK], np.int64)
    counts = np.array([BLOCK, 5, BLOCK * 3, 1], np.int64)
    cut = compiled.cut(
        *(low, low + counts, low), rows=12 * BLOCK, row=1, chunk=4 * BLOCK, block=BLOCK
    )
    checks = np.zeros(4, np.uint32) if data.draw(st.booleans()) else None
    table = table_of(bytes(32), 2, np.arange(5) * BLOCK, checks)
    for name in data.draw(st.sets(st.sampled_from(["pieces", "edges"]), min_size=1)):
        lies = np.frombuffer(getattr(cut, name), np.int64).copy()
        lies[data.draw(st.integers(0, len(lies) - 1))] = data.draw(number)
        lies = lies[: data.draw(st.sampled_from([len(lies), len(lies), len(lies) - 1]))]
        cut = replace(cut, **{name: lies.tobytes()})
    block, group = data.draw(st.sampled_from([(BLOCK, 2 * BLOCK)]) | st.tuples(number, number))
    if data.draw(st.booleans()):
        table = replace(table, edges=table.edges[:, : data.draw(st.integers(0, 5))])
    if data.draw(st.booleans()):
        table = replace(table, offsets=table.offsets[: data.draw(st.integers(0, 2))])
    chosen = bytes(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=3)))
    with suppress(ValueError):
        plan = cut.pieces, cut.edges, chosen, block, group
        made = kernel.compiled().lay_out(*plan, table.offsets, table.edges, table.checks)
        froms, counts = (np.frombuffer(a, np.int64) for a in made[4:6])
        assert (froms >= 0).all() and (counts > 0).all()


def flagged(edges: np.ndarray, compresses: bool) -> np.ndarray:
    """As chunk tables have them."""
    edges = edges.astype(np.uint32)
    edges[0] |= 0 if compresses else 2**31
    return edges


CHUNKS = {compresses: chunk(compresses=compresses) for compresses in (True, False)}


@pytest.mark.parametrize("compresses", [True, False])
@given(
    run=st.tuples(st.integers(0, COUNT * BLOCK - 1), st.integers(1, COUNT * BLOCK)).map(sorted),
    checked=st.booleans(),
    damaged=st.booleans(),
)
def test_a_run_of_a_chunk_is_what_it_holds_there(
    compresses: bool, run: list[int], checked: bool, damaged: bool
) -> None:
    stored, header, edges = CHUNKS[compresses]
    pairs = itertools.pairwise(edges.tolist())
    checks = np.array([block_checksum(stored[a:b]) for a, b in pairs], np.uint32)
    start, stop = run[0], max(run[0] + 1, run[1])
    first, last = start // BLOCK, (stop - 1) // BLOCK
    if damaged:
        at = int(edges[last + 1]) - 1
        stored = stored[:at] + bytes([stored[at] ^ 16]) + stored[at + 1 :]
    out = np.zeros(stop - start, np.uint8)
    done = compiled.decode_run(
        *(memoryview(b"gap" + stored), header, BLOCK),
        *(flagged(edges, compresses), checks if checked else None),
        (3, first, last - first + 1, start - first * BLOCK),
        *(out, np.empty(4000, np.uint8), np.empty(BLOCK * COUNT, np.uint8)),
    )
    if damaged and checked:
        assert not done
    elif not damaged:
        assert done
        np.testing.assert_array_equal(out, RAW[start:stop])


@given(
    run=st.tuples(*[st.sampled_from(HUGE) | st.integers(0, 50)] * 4),
    block=st.sampled_from([*HUGE, BLOCK]),
    compresses=st.booleans(),
    row=st.lists(st.integers(0, 2**32 - 1), min_size=COUNT + 1, max_size=COUNT + 1) | st.none(),
    sizes=st.tuples(*[st.sampled_from([0, 1, 63, 64, 65, 1000, 4000])] * 3),
)
def test_whatever_it_is_told_of_a_run_it_stays_within_its_buffers(
    run: Any, block: int, compresses: bool, row: list[int] | None, sizes: tuple[int, ...]
) -> None:
    stored, header, edges = CHUNKS[compresses]
    memory = np.full(3 * 4096 + sum(sizes), 7, np.uint8)
    lows = np.cumsum([1024 + size for size in [0, *sizes[:-1]]]).tolist()
    parts = [memory[low : low + size] for low, size in zip(lows, sizes, strict=True)]
    edges = flagged(edges, compresses) if row is None else np.array(row, np.uint32)
    with suppress(ValueError):
        compiled.decode_run(memoryview(stored), header, block, edges, None, run, *parts)
    for part in parts:
        part[:] = 7
    assert (memory == 7).all()

"""Pieces of blocks, decoded by the kernel, are what the blocks hold there."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
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


def chunk_in_file(path: Path) -> compiled.Blocks:
    """Blocks of a chunk, every third of them not compressed; some lie apart from the others."""
    stored, header, edges = chunk(compresses=True)
    content = b""
    begins, sizes, raw = [], [], np.arange(COUNT) % 3 == 2
    for i in range(COUNT):
        content += b"gap" if i % 7 == 0 else b""
        block = bytes(RAW[i * BLOCK :][:BLOCK]) if raw[i] else stored[edges[i] : edges[i + 1]]
        begins.append(len(content))
        sizes.append(len(block))
        content += block
    path.write_bytes(content)
    checks = [block_checksum(content[a : a + n]) for a, n in zip(begins, sizes, strict=True)]
    return compiled.Blocks(
        memoryview(content),
        header,
        BLOCK,
        np.array(begins, np.int64),
        np.array(sizes, np.int64),
        raw,
        np.array(checks, np.uint32),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled") / "blocks"


@pytest.fixture(scope="module")
def blocks(path: Path) -> compiled.Blocks:
    return chunk_in_file(path)


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


def of(blocks: compiled.Blocks, which: list[int], **changes: Any) -> compiled.Blocks:
    """Some of the blocks."""
    assert blocks.checks is not None
    taken = {name: getattr(blocks, name)[which] for name in ("begins", "sizes", "raw", "checks")}
    return replace(blocks, **{**taken, **changes})


def decode(
    blocks: compiled.Blocks, pieces: compiled.Pieces, size: int, threads: int = 1
) -> tuple[bool, np.ndarray]:
    out, state = np.zeros(size, np.uint8), np.zeros(2, np.int64)
    stored, decoded = compiled.scratch_sizes(blocks, pieces)

    def work() -> bool:
        scratch = np.empty(stored, np.uint8), np.empty(decoded, np.uint8)
        return compiled.decode(blocks, pieces, out, state, *scratch)

    with ThreadPoolExecutor(threads) as pool:
        done = [task.result() for task in [pool.submit(work) for _ in range(threads)]]
    return all(done), out


@given(wanted(), st.sampled_from([1, 100, 150, 500, 2**17]))
def test_groups_share_no_block_and_cut_what_is_long(
    asked: tuple[list[int], np.ndarray, np.ndarray], target: int
) -> None:
    _, low, count = asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_GROUP", target)
        pieces = compiled.group(low, count, np.cumsum(count) - count, BLOCK)

    # Every byte goes where it went before.
    went = {}
    for start, n, place in zip(pieces.froms, pieces.counts, pieces.places, strict=True):
        assert n > 0
        went |= {int(place) + i: int(start) + i for i in range(n)}
    assert [went[i] for i in range(len(went))] == [
        int(start) + i for start, n in zip(low, count, strict=True) for i in range(n)
    ]
    first, last = pieces.froms // BLOCK, (pieces.froms + pieces.counts - 1) // BLOCK
    assert pieces.block_edges[0] == 0 and pieces.block_edges[-1] == last.max() + 1
    assert (np.diff(pieces.block_edges) > 0).all()
    assert (np.diff(pieces.block_edges) <= max(target // BLOCK, 1)).all()
    for group in range(len(pieces.edges) - 1):
        of_group = slice(*pieces.edges[group : group + 2])
        assert first[of_group].min() == pieces.block_edges[group]
        assert last[of_group].max() + 1 == pieces.block_edges[group + 1]


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
    blocks: compiled.Blocks,
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
        pieces = compiled.group(low, count, places, BLOCK)
        changes: dict[str, Any] = {"file": file} if from_file else {}
        changes |= {} if checked else {"checks": None}
        done, out = decode(of(blocks, which, **changes), pieces, int(count.sum()), threads)
    assert done
    for start, n, place in zip(low, count, places, strict=True):
        np.testing.assert_array_equal(out[place : place + n], held[start : start + n])


@given(data=st.data())
def test_a_damaged_block_is_noticed(blocks: compiled.Blocks, data: st.DataObject) -> None:
    assert isinstance(blocks.file, memoryview)
    content = bytearray(blocks.file)
    number = data.draw(st.integers(0, COUNT - 1))
    at = int(blocks.begins[number]) + data.draw(st.integers(0, int(blocks.sizes[number]) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    every = np.arange(COUNT) * BLOCK
    pieces = compiled.group(every, np.full(COUNT, BLOCK), every, BLOCK)
    done, _ = decode(replace(blocks, file=memoryview(bytes(content))), pieces, BLOCK * COUNT, 2)
    assert not done


HUGE = [-(2**63), -(2**62), -(2**31), -1, 0, 1, 63, 65, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1]


@given(data=st.data())
def test_whatever_it_is_told_it_stays_within_its_buffers(
    path: Path, blocks: compiled.Blocks, data: st.DataObject
) -> None:
    which, low, count = data.draw(wanted())
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(compiled, "_GROUP", data.draw(st.sampled_from([1, 150, 2**17])))
        pieces = compiled.group(low, count, np.cumsum(count) - count, BLOCK)
        asked = of(blocks, which, checks=data.draw(st.sampled_from([None, blocks.checks[which]])))
        scratch = compiled.scratch_sizes(asked, pieces)
        if data.draw(st.booleans()):
            asked = replace(asked, file=file)
        for _ in range(data.draw(st.integers(1, 3))):
            names = ["begins", "sizes", "froms", "counts", "places", "edges", "block_edges"]
            name = data.draw(st.sampled_from(names))
            of_blocks = name in ("begins", "sizes")
            lies = getattr(asked if of_blocks else pieces, name).copy()
            at = data.draw(st.integers(0, len(lies) - 1))
            lies[at] = data.draw(st.sampled_from(HUGE) | st.integers(-9, 9).map(lies[at].__add__))
            lies = lies[: data.draw(st.sampled_from([len(lies), len(lies), len(lies) - 1]))]
            asked = replace(asked, **{name: lies}) if of_blocks else asked
            pieces = pieces if of_blocks else replace(pieces, **{name: lies})
        if data.draw(st.booleans()):
            asked = replace(asked, nbytes=data.draw(st.sampled_from(HUGE)))
        # Fences on both sides of what it may write to.
        memory = np.full(3 * 4096 + sum(scratch) + BLOCK * COUNT * 20, 7, np.uint8)
        sizes = [int(count.sum()), *scratch]
        lows = np.cumsum([1024 + size for size in [0, *sizes[:-1]]])
        out, stored, decoded = (
            memory[a : a + n] for a, n in zip(lows.tolist(), sizes, strict=True)
        )
        with suppress(ValueError):
            compiled.decode(asked, pieces, out, np.zeros(2, np.int64), stored, decoded)
    for part in (out, stored, decoded):
        part[:] = 7
    assert (memory == 7).all()


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

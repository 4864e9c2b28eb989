"""Blocks of chunks, decoded without the rest."""

import struct

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.segment.blocks import (
    BlockTable,
    assemble,
    assembled_size,
    block_checksum,
    blocks_of,
    decode_assembled,
)
from raggedstore.segment.codec import Compression, encode_frame

COMPRESSIONS = [
    Compression("lz4", 9, (), 2**14, 2**11),
    Compression("lz4", 5, ("shuffle",), 2**14, 2**11),
    Compression("zstd", 1, ("bitshuffle",), 2**14, 2**10),
    Compression("zstd", 3, ("shuffle", "bytedelta"), 2**14, 2**12),
]


def begun(header: bytes, block: int, sizes: np.ndarray) -> np.ndarray:
    return assemble(header, block, sizes, np.empty(assembled_size(sizes), np.uint8))


def chunk(count: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).integers(-9, 9, count)).astype("i2")


def frame_of(raw: np.ndarray, compression: Compression) -> memoryview:
    return memoryview(encode_frame(raw, raw.itemsize, raw.itemsize, compression))


@settings(deadline=None)
@given(st.sampled_from(COMPRESSIONS), st.data())
def test_any_blocks_of_any_chunks_decode_in_one_call(
    compression: Compression, data: st.DataObject
) -> None:
    raws = [chunk(2**13, seed) for seed in range(3)]
    frames = [frame_of(raw, compression) for raw in raws]
    blocks = [blocks_of(frame, len(frame)) for frame in frames]
    count = compression.chunk_bytes // compression.block_bytes
    wanted = data.draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, count - 1)), min_size=1, max_size=20)
    )
    size = compression.block_bytes

    stored = [frames[c][blocks[c].edges[b] : blocks[c].edges[b + 1]] for c, b in wanted]
    sizes = np.array([len(piece) for piece in stored])
    assembled = begun(blocks[0].header, size, sizes)
    assembled[len(assembled) - sizes.sum() :] = np.frombuffer(b"".join(stored), np.uint8)
    out = np.empty(len(wanted) * size, np.uint8)
    decode_assembled(assembled.data, out)

    want = b"".join(raws[c].tobytes()[b * size : (b + 1) * size] for c, b in wanted)
    assert out.tobytes() == want


def test_a_chunk_that_did_not_compress_holds_its_blocks_as_they_are() -> None:
    raw = np.frombuffer(np.random.default_rng(0).bytes(2**14), "i2")
    frame = frame_of(raw, COMPRESSIONS[1])
    blocks = blocks_of(frame, len(frame))

    assert blocks.raw
    a, b = blocks.edges[3:5]
    assert bytes(frame[a:b]) == raw.tobytes()[3 * 2**11 : 4 * 2**11]


@pytest.mark.parametrize("value", [0, 7])
def test_a_special_chunk_has_no_blocks(value: int) -> None:
    frame = frame_of(np.full(2**13, value, "i2"), COMPRESSIONS[1])
    if value == 0:
        assert blocks_of(frame, len(frame)) is None


def test_a_chunk_of_one_block_or_of_broken_blocks_has_none() -> None:
    one = frame_of(chunk(1000), COMPRESSIONS[1])
    broken = frame_of(chunk(2**13 - 1), COMPRESSIONS[1])
    assert blocks_of(one, len(one)) is None
    assert blocks_of(broken, len(broken)) is None


def test_dictionaries_and_foreign_filters_have_none() -> None:
    raw = chunk(2**13).view(np.uint8)
    for params in ({"use_dict": True}, {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]}):
        cparams = blosc2.CParams(
            codec=blosc2.Codec.ZSTD, typesize=2, blocksize=2**11, nthreads=1, **params
        )
        frame = memoryview(
            blosc2.SChunk(chunksize=raw.nbytes, data=raw, cparams=cparams).to_cframe()
        )
        assert blocks_of(frame, len(frame)) is None


def test_damaged_heads_are_never_believed_beyond_the_chunk() -> None:
    frame = bytes(frame_of(chunk(2**13), COMPRESSIONS[1]))
    for i in range(200):
        for flip in (1, 128, 255):
            damaged = memoryview(frame[:i] + bytes([frame[i] ^ flip]) + frame[i + 1 :])
            for view in (damaged, damaged[:i]):
                blocks = blocks_of(view, len(frame))
                if blocks is not None:
                    assert (np.diff(blocks.edges.astype(np.int64)) > 0).all()
                    assert blocks.edges[-1] <= len(frame)


def test_damaged_blocks_are_an_error_or_other_values_and_never_a_crash() -> None:
    raw = chunk(2**13)
    frame = frame_of(raw, COMPRESSIONS[1])
    blocks = blocks_of(frame, len(frame))
    sizes = np.diff(blocks.edges.astype(np.int64))
    body = np.frombuffer(frame[blocks.edges[0] : blocks.edges[-1]], np.uint8)
    out = np.empty(raw.nbytes, np.uint8)
    for i in range(0, len(body), 37):
        assembled = begun(blocks.header, blocks.nbytes, sizes)
        assembled[len(assembled) - len(body) :] = body
        assembled[len(assembled) - len(body) + i] ^= 255
        try:
            decode_assembled(assembled.data, out)
        except rs.CorruptionError:
            continue


def test_a_table_refuses_blocks_outside_their_chunk() -> None:
    frames = [frame_of(chunk(2**13, seed), COMPRESSIONS[1]) for seed in range(3)]
    found = []
    for frame in frames:
        blocks = blocks_of(frame, len(frame))
        pairs = zip(blocks.edges[:-1], blocks.edges[1:], strict=True)
        checks = np.array([block_checksum(frame[a:b]) for a, b in pairs], np.uint32)
        found.append((blocks, checks))
    table = BlockTable.of([*found, (None, found[0][1])], 2**14)
    sizes = np.array([*(blocks.edges[-1] for blocks, _ in found), 5], np.uint64)

    assert table.check_bounds(sizes)
    assert table.known.tolist() == [True, True, True, False]
    assert not table.check_bounds(sizes - np.array([1, 0, 0, 0], np.uint64))
    bent = BlockTable(table.header, table.nbytes, table.edges.copy(), table.checks)
    bent.edges[1, 3] = bent.edges[1, 2]
    assert not bent.check_bounds(sizes)
    # Said not to be compressed, and of no bytes: nothing would be read to where they belong.
    hollow = BlockTable(table.header, table.nbytes, table.edges.copy(), table.checks)
    hollow.edges[1] = 0
    hollow.edges[1, 0] = 2**31
    assert not hollow.check_bounds(sizes)


def test_blocks_of_more_than_a_chunk_can_hold_are_refused() -> None:
    with pytest.raises(rs.CorruptionError, match="more bytes"):
        begun(bytes(32), 2**30, np.array([5, 5]))
    chunk_of_two = begun(bytes(32), 100, np.array([5, 5]))
    assert struct.unpack_from("<iii", chunk_of_two, 4) == (200, 100, 32 + 8 + 10)
    with pytest.raises(rs.CorruptionError, match="200 bytes where 100"):
        decode_assembled(chunk_of_two.data, np.empty(100, np.uint8))

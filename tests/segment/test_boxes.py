"""Blosc2 chunks whose blocks are boxes."""

import struct
from pathlib import Path

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedstore.errors import CorruptionError
from raggedstore.segment.boxes import box_of, decode_boxes, decode_range, decode_rows

RNG = np.random.default_rng(0)


def frame_of(values: np.ndarray, box: tuple[int, ...], level: int = 1) -> bytes:
    """As HDF5's filter makes them: an array of one chunk."""
    params = blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=level, typesize=values.itemsize)
    array = blosc2.asarray(values, chunks=values.shape, blocks=box, cparams=params)
    return array.to_cframe()


@st.composite
def chunks(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], int]:
    ndim = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 12)) for _ in range(ndim))
    box = tuple(draw(st.integers(1, size)) for size in shape)
    dtype = draw(st.sampled_from(["u1", "<i2", ">i2", "<f4", "<f8", "<c16"]))
    values = RNG.integers(0, draw(st.sampled_from([2, 255])), shape).astype(dtype)
    return values, box, draw(st.sampled_from([0, 1]))


@settings(deadline=None)
@given(chunks(), st.integers(0, 100))
def test_whatever_its_boxes_a_chunk_decodes_to_its_rows(
    chunk: tuple[np.ndarray, tuple[int, ...], int], count: int
) -> None:
    values, box, level = chunk
    out = np.empty(values.nbytes, np.uint8)
    frame = memoryview(frame_of(values, box, level))
    decode_boxes(frame, out, values.shape, values.dtype)
    np.testing.assert_array_equal(out.view(values.dtype).reshape(values.shape), values)
    start = count % len(values)
    rows = decode_rows(frame, start, len(values), values.shape, values.dtype)
    np.testing.assert_array_equal(rows, values[start:])
    middle = decode_rows(frame, start, start + 1, values.shape, values.dtype)
    np.testing.assert_array_equal(middle, values[start : start + 1])
    if box_of(frame, values.shape) is None:  # then the frame alone says all
        plain = blosc2.decompress2(frame[struct.unpack_from(">i", frame, 11)[0] :])
        np.testing.assert_array_equal(np.frombuffer(plain, np.uint8), out)


@pytest.mark.parametrize(
    ("shape", "box", "is_boxes"),
    [
        ((64,), (16,), False),
        ((60,), (16,), True),  # the last is filled up
        ((64, 32), (16, 32), False),
        ((60, 32), (16, 32), True),
        ((64, 32), (16, 16), True),
        ((4, 64, 32), (1, 64, 32), False),
        ((4, 64, 32), (1, 16, 32), False),
        ((4, 64, 32), (1, 1, 16), False),
        ((4, 64, 32), (2, 16, 32), True),
    ],
)
def test_boxes_that_are_runs_of_rows_are_none(
    shape: tuple[int, ...], box: tuple[int, ...], is_boxes: bool
) -> None:
    frame = memoryview(frame_of(np.zeros(shape, "i4"), box))
    assert box_of(frame, shape) == (box if is_boxes else None)


def test_boxes_of_another_chunk_are_refused() -> None:
    frame = memoryview(frame_of(RNG.integers(0, 9, (32, 48)), (16, 16)))
    for shape in [(48, 32), (32, 48, 1), (32, 49), (1536,)]:
        with pytest.raises(CorruptionError):
            box_of(frame, shape)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_header_is_refused_or_without_effect(data: st.DataObject) -> None:
    values = RNG.integers(0, 9, (20, 30)).astype("i4")
    frame = bytearray(frame_of(values, (8, 8)))
    (head,) = struct.unpack_from(">i", frame, 11)
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(87, head - 1))] = data.draw(st.integers(0, 255))
    cut = memoryview(frame)[: data.draw(st.sampled_from([len(frame), head, head // 2]))]
    try:
        box_of(cut, values.shape)
        decode_boxes(cut, np.empty(values.nbytes, np.uint8), values.shape, values.dtype)
    except CorruptionError:
        pass


@pytest.mark.parametrize("boxes", [(2**31 - 1, 2**31 - 1), (0, 8), (-8, 8), (21, 8)])
def test_boxes_that_no_chunk_has_take_no_memory(boxes: tuple[int, int]) -> None:
    frame = bytearray(frame_of(RNG.integers(0, 9, (20, 30)), (8, 9)))
    at = bytes(frame).index(b"\xd2" + struct.pack(">i", 8) + b"\xd2" + struct.pack(">i", 9))
    struct.pack_into(">xixi", frame, at, *boxes)
    frame[at] = frame[at + 5] = 0xD2
    with pytest.raises(CorruptionError):
        box_of(memoryview(frame), (20, 30))


@settings(deadline=None)
@given(st.data())
def test_a_range_of_bytes_is_that_of_the_whole(data: st.DataObject) -> None:
    count = data.draw(st.sampled_from([1, 100, 4096, 5000]))
    kind = data.draw(st.sampled_from(["zeros", "little", "noise"]))
    high = {"zeros": 1, "little": 3, "noise": 2**31}[kind]
    values = RNG.integers(0, high, count).astype("i4")
    params = blosc2.CParams(typesize=4, blocksize=data.draw(st.sampled_from([512, 1024, 2**14])))
    frame = blosc2.SChunk(chunksize=values.nbytes, data=values, cparams=params).to_cframe()
    start = data.draw(st.integers(0, values.nbytes))
    stop = data.draw(st.integers(start, values.nbytes))
    got = decode_range(memoryview(frame), start, stop, values.nbytes)
    assert got.tobytes() == values.tobytes()[start:stop]
    with pytest.raises(CorruptionError):
        decode_range(memoryview(frame), start, stop, values.nbytes + 4)


def test_a_plug_in_that_a_frames_own_table_asks_for_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """c-blosc2 would run ``python -c "import blosc2_grok"`` to decode where the chunks lie."""
    (tmp_path / "blosc2_grok.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    values = RNG.integers(0, 9, (64, 64)).astype("i4")
    frame = frame_of(values, (16, 16))
    head, size = struct.unpack_from(">i", frame, 11)[0], struct.unpack_from(">q", frame, 39)[0]
    table = bytearray(32)
    table[0], table[1], table[2], table[3], table[22] = 5, 1, 6 << 5 | 5, 8, 37
    struct.pack_into("<iii", table, 4, 8, 8, 44)
    hostile = bytearray(frame[: head + size] + bytes(table) + struct.pack("<ii", 36, 4) + b"abcd")
    struct.pack_into(">q", hostile, 16, len(hostile))

    out = np.empty(values.nbytes, np.uint8)
    decode_boxes(memoryview(hostile), out, values.shape, values.dtype)

    assert not (tmp_path / "ran").exists()
    np.testing.assert_array_equal(out, values.view(np.uint8).reshape(-1))

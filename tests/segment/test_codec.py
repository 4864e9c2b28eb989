"""Chunks to frames and back, and what damage does to them."""

from pathlib import Path

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.segment import codec
from raggedstore.segment.codec import compressed_size, decode_frame, encode_frame
from raggedstore.segment.profiles import PROFILES, profile
from tests.strategies import DTYPES


def decoded(frame: bytes, nbytes: int) -> np.ndarray:
    out = np.empty(nbytes, np.uint8)
    decode_frame(memoryview(frame), out)
    return out


@settings(deadline=None)
@given(
    st.sampled_from(PROFILES),
    st.sampled_from(DTYPES),
    st.integers(1, 70_000),
    st.sampled_from(["random", "zeros", "one value", "ramp"]),
)
def test_every_profile_gives_back_what_it_was_given(
    name: str, dtype: np.dtype, count: int, what: str
) -> None:
    rng = np.random.default_rng(count)
    raw = np.zeros(count, dtype)
    if what == "random":
        raw = np.frombuffer(rng.bytes(raw.nbytes), np.uint8)
    elif what == "one value":
        raw[:] = 1
    elif what == "ramp":
        raw = (np.arange(count) % 100).astype(dtype)

    frame = encode_frame(raw, dtype.itemsize, dtype.itemsize, profile(name, dtype.itemsize))

    assert decoded(frame, raw.nbytes).tobytes() == raw.tobytes()


CONTENTS = {
    "random": lambda rng, n: np.frombuffer(rng.bytes(n), np.uint8),
    "small": lambda rng, n: rng.integers(0, 3, n).astype(np.uint8),
    "ramp": lambda rng, n: np.arange(n, dtype=np.uint8),
    "zeros": lambda rng, n: np.zeros(n, np.uint8),
    "one value": lambda rng, n: np.full(n, 7, np.uint8),
    "nearly zeros": lambda rng, n: np.eye(1, n, n // 2, np.uint8)[0],
}


@settings(deadline=None, max_examples=200)
@given(
    codec=st.sampled_from(["lz4", "zstd"]),
    level=st.sampled_from([0, 1, 9]),
    filters=st.lists(
        st.sampled_from(["shuffle", "bitshuffle", "bytedelta"]), max_size=2, unique=True
    ),
    sizes=st.tuples(st.sampled_from([1, 1000, 2**14]), st.sampled_from([512, 1000, 4096])),
    items=st.integers(0, 16),
    row=st.tuples(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(1, 5)),
    count=st.integers(1, 3000),
    high=st.sampled_from([1, 3, 256]),
)
def test_every_compression_gives_back_chunks_of_any_size(
    codec: str,
    level: int,
    filters: list[str],
    sizes: tuple[int, int],
    items: int,
    row: tuple[int, int],
    count: int,
    high: int,
) -> None:
    """Also those that are no whole number of the items that filters take."""
    compression = rs.Compression(
        codec, level, tuple(filters), chunk_bytes=sizes[0], block_bytes=sizes[1], item_bytes=items
    )
    itemsize, row_nbytes = row[0], row[0] * row[1]
    raw = np.random.default_rng(count).integers(0, high, count * row_nbytes).astype(np.uint8)
    frame = encode_frame(raw, itemsize, row_nbytes, compression)
    np.testing.assert_array_equal(decoded(frame, raw.nbytes), raw)


def test_small_images_appended_to_a_store_of_large_ones_can_be_read(tmp_path: Path) -> None:
    """The trial on the first day's chooses items of four bytes, of which a small image is none."""
    y, x = np.mgrid[:400, :401]
    smooth = ((np.sin(x / 40) + np.cos(y / 30) + 2) * 60).astype("u1")
    want = [smooth, *(smooth[i : i + 41, :33] for i in range(3)), smooth[:11, :27]]
    with rs.create(tmp_path / "store", {"x": rs.Field("u1", (None, None))}) as store:
        for day in (want[:1], want[1:4], want[4:]):
            with store.writer() as writer:
                writer.extend({"x": image} for image in day)
        for got, image in zip(rs.open(store.path)["x"], want, strict=True):
            np.testing.assert_array_equal(got, image)


@given(
    st.sampled_from(PROFILES),
    st.sampled_from(["u1", "<i2", ">f4", "f8"]),
    st.lists(st.sampled_from(sorted(CONTENTS)), min_size=2, max_size=8),
    st.sampled_from([64, 4096, 2**16 + 8]),
)
def test_frames_are_those_that_blosc2_itself_makes(
    name: str, dtype: str, contents: list[str], nbytes: int
) -> None:
    size, compression = np.dtype(dtype).itemsize, profile(name, np.dtype(dtype).itemsize)
    rng = np.random.default_rng(nbytes)
    params = compression.params(size, size, nbytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_wrappings", {})  # so that it is learned here
        for what in contents:
            raw = CONTENTS[what](rng, nbytes)
            whole = blosc2.SChunk(chunksize=nbytes, data=raw, cparams=params)
            assert encode_frame(raw.view(dtype), size, size, compression) == whole.to_cframe()


def test_wrappings_that_differ_are_left_to_blosc2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_wrappings", {})
    rng, compression = np.random.default_rng(0), profile("fast", 1)
    first, *others = [np.frombuffer(rng.bytes(4096), np.uint8) for _ in range(4)]
    encode_frame(first, 1, 1, compression)
    ((kind, (seen, _)),) = codec._wrappings.items()
    # As though another c-blosc2 put something else there for each.
    codec._wrappings[kind] = (codec._Wrapping(seen.head, seen.tail[:-1] + b"?"), None)
    for raw in others:
        np.testing.assert_array_equal(decoded(encode_frame(raw, 1, 1, compression), 4096), raw)
    assert codec._wrappings[kind][1] is False


def test_damage_is_an_error_or_other_values_and_never_a_crash() -> None:
    raw = np.arange(5000, dtype="i4")
    frame = encode_frame(raw, 4, 4, profile("fast", 4))
    for i in [*range(200), *range(200, len(frame), 97)]:
        for damaged in (frame[:i], frame[:i] + bytes([frame[i] ^ 255]) + frame[i + 1 :]):
            try:
                decoded(damaged, raw.nbytes)
            except rs.CorruptionError:
                continue


def test_a_frame_of_another_size_is_refused() -> None:
    frame = encode_frame(np.arange(50), 8, 8, profile("fast", 8))
    with pytest.raises(rs.CorruptionError, match="400 bytes where 392"):
        decoded(frame, 392)


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": "blosclz"},
        {"level": 10},
        {"filters": ("delta",)},
        {"chunk_bytes": 0},
        {"chunk_bytes": 2**31},
        {"block_bytes": 1},
        {"block_bytes": False},
    ],
)
def test_compressions_that_are_not_written_are_refused(wrong: dict) -> None:
    with pytest.raises(rs.UsageError):
        rs.Compression(**wrong)


def test_blocks_of_what_is_not_compressed_are_smaller_unless_said() -> None:
    assert rs.Compression("lz4", 1).block_bytes == 2**14
    assert rs.Compression("lz4", 0).block_bytes == 2**12
    assert rs.Compression("lz4", 0, block_bytes=2**13).block_bytes == 2**13
    assert rs.Compression.from_json(rs.Compression(level=0).to_json()).block_bytes == 2**12


@pytest.mark.parametrize("compression", [rs.Compression("lz4", 9), rs.Compression("zstd", 1)])
def test_the_compressed_size_is_that_of_the_chunk_in_the_frame(compression: rs.Compression) -> None:
    around = set()
    for seed in range(3):
        data = np.random.default_rng(seed).integers(0, 5 + seed, 2**16).astype("i2")
        frame = encode_frame(data, 2, 2, compression)
        around.add(len(frame) - compressed_size(data, 2, 2, compression))
    assert len(around) == 1  # the same whatever is in it

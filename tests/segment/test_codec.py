"""Chunks to frames and back, and what damage does to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.segment.codec import decode_frame, encode_frame
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
    ],
)
def test_compressions_that_are_not_written_are_refused(wrong: dict) -> None:
    with pytest.raises(rs.UsageError):
        rs.Compression(**wrong)

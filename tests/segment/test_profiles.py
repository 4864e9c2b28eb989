"""What each profile chooses, and that the choice is fit for any data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.segment.codec import Compression, encode_frame
from raggedstore.segment.profiles import ENOUGH, PROFILES, choose, profile
from tests.strategies import DTYPES


def speech(count: int = 2**18) -> np.ndarray:
    """Like a voice: neighbours are close, and the low bytes are noise."""
    rng = np.random.default_rng(0)
    tone = 3000 * np.sin(np.arange(count) / 50) + rng.normal(0, 100, count)
    return tone.astype("i2")


def words(count: int = 2**18) -> np.ndarray:
    """Like token ids: phrases of a large vocabulary that come again and again."""
    rng = np.random.default_rng(0)
    phrases = rng.integers(0, 65_535, (3000, 8)).astype("u2")
    return phrases[np.minimum(rng.zipf(1.2, count // 8), 2999)].reshape(-1)


def picture() -> np.ndarray:
    """Like a scanned photograph: a slope, and some noise."""
    y, x = np.mgrid[0:700, 0:700]
    noise = np.random.default_rng(0).integers(0, 2, (700, 700))
    return (np.sqrt(x * x + y * y) / 4 + noise).astype("u1").reshape(-1)


def size(raw: np.ndarray, compression: Compression) -> int:
    return len(encode_frame(raw, raw.itemsize, raw.itemsize, compression))


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(PROFILES),
    st.sampled_from(DTYPES),
    st.integers(0, 3 * ENOUGH),
    st.sampled_from([(), (3,), (5, 4)]),
)
def test_any_data_gets_a_choice_that_cuts_chunks_as_the_first_candidate_does(
    name: str, dtype: np.dtype, nbytes: int, row: tuple[int, ...]
) -> None:
    row_nbytes = dtype.itemsize * int(np.prod(row, dtype=int))
    count = max(nbytes // row_nbytes, 1)
    raw = np.random.default_rng(0).integers(0, 99, (count, *row)).astype(dtype)
    chosen = choose(name, raw, dtype.itemsize, row_nbytes)
    assert chosen is not None
    first = profile(name, dtype.itemsize)
    assert chosen.codec == first.codec and chosen.level == first.level
    assert chosen.chunk_rows(row_nbytes, dtype.itemsize) == first.chunk_rows(
        row_nbytes, dtype.itemsize
    )


def test_the_choice_follows_the_data() -> None:
    assert choose("fast", speech(), 2, 2).filters == ("shuffle",)
    assert choose("fast", words(), 2, 2).filters == ()
    assert choose("small", speech(), 2, 2).filters == ("shuffle", "bytedelta")
    assert choose("balanced", words(), 2, 2).filters == ()
    assert choose("balanced", picture(), 1, 1).item_bytes == 4


@pytest.mark.parametrize("raw", [speech(), words(), picture()], ids=["speech", "words", "picture"])
def test_smaller_profiles_are_smaller(raw: np.ndarray) -> None:
    sizes = [size(raw[: 2**17], choose(name, raw, raw.itemsize, raw.itemsize)) for name in PROFILES]
    assert sizes[0] > sizes[1] > 0.9 * sizes[2]


def test_the_same_data_gets_the_same_choice() -> None:
    assert len({choose("balanced", speech(), 2, 2) for _ in range(5)}) == 1


def test_too_little_data_is_not_tried() -> None:
    words_then = words(ENOUGH // 2 - 1)
    assert choose("fast", words_then, 2, 2) == profile("fast", 2)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("value", [0, 7])
def test_silence_shows_nothing_to_choose_by(name: str, value: int) -> None:
    assert choose(name, np.full(2**18, value, "i2"), 2, 2) is None
    little = np.full(2**18, value, "i2")
    little[::9000] += 1
    assert choose(name, little, 2, 2) is None
    assert choose(name, np.concatenate([little, speech()])[-(2**18) :], 2, 2) is not None


@pytest.mark.parametrize("name", ["", "FAST", "tiny"])
def test_an_unknown_profile_is_refused(name: str) -> None:
    with pytest.raises(rs.UsageError, match="fast, balanced, small"):
        profile(name, 2)

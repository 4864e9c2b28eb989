"""Samples of many segments in one batch, against a list of arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.segment.reader import SegmentReader

pytestmark = pytest.mark.usefixtures("either_kernel")

SMALL = rs.Compression(chunk_bytes=2**14, block_bytes=2**12)
SCHEMA = {
    "audio": rs.Field(">i2", (None,)),
    "image": rs.Field("uint8", (None, None, 3)),
    "label": rs.Field("int64"),
    "box": rs.Field("float32", (2, 2)),
    "text": rs.Field("str"),
}
LENGTHS = [0, 1, 5, 700, 9000, 40_000]  # within a block, in several, in many chunks


def sample(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    height, width = rng.integers(0, 40, 2)
    return {
        "audio": rng.integers(-99, 99, LENGTHS[number % len(LENGTHS)]).astype(">i2"),
        "image": rng.integers(0, 9, (height, width, 3), np.uint8),
        "label": number,
        "box": rng.random((2, 2), np.float32),
        "text": "é" * int(height),
    }


SAMPLES = [sample(i) for i in range(60)]
#: Where commits end: segments of one sample, of a few, of many.
ENDS = [1, 2, 3, 9, 10, 35, 36, 37, 60]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "store"
    with rs.create(path, SCHEMA, profile=SMALL) as store:
        for first, last in zip([0, *ENDS], ENDS, strict=False):
            with store.writer() as writer:
                writer.extend(SAMPLES[first:last])
    return path


@pytest.mark.parametrize("budget", ["0", "64MB"])
@settings(deadline=None, max_examples=60)
@given(
    asked=st.lists(st.integers(0, len(SAMPLES) - 1), max_size=20),
    low=st.integers(0, 50),
    size=st.integers(0, 9000),
)
def test_batches_windows_and_shapes_are_those_of_a_list(
    path: Path, budget: str, asked: list[int], low: int, size: int
) -> None:
    with rs.open(path, budget=budget) as store:
        for _ in range(2):  # decoded, and from the cache
            for name in ("audio", "image"):
                batch, want = store[name].batch(asked), [SAMPLES[i][name] for i in asked]
                assert batch.values.dtype == SCHEMA[name].dtype
                for got, expected in zip(batch, want, strict=True):
                    np.testing.assert_array_equal(got, expected)
                starts = np.full(len(asked), low)
                crop = store[name].crop(asked, starts, starts + size)
                for got, expected in zip(crop, want, strict=True):
                    np.testing.assert_array_equal(got, expected[low : low + size])
                at = np.array(asked, np.int64)
                assert store.read_shapes(name, at).tolist() == [[*one.shape] for one in want]
        assert store["label"].batch(asked).tolist() == asked
        boxes = store["box"].batch(asked)
        assert boxes.shape == (len(asked), 2, 2)
        assert all((got == SAMPLES[i]["box"]).all() for got, i in zip(boxes, asked, strict=True))
        assert store["text"].batch(asked) == [SAMPLES[i]["text"] for i in asked]


def test_one_sample_of_a_segment_is_looked_up_without_planning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(self: SegmentReader, name: str, positions: np.ndarray) -> None:
        raise AssertionError("planned")

    monkeypatch.setattr(SegmentReader, "spans", planned)
    with rs.open(path) as store:
        batch = store["audio"].batch([36, 0, 2, 9, 1])
        assert [len(one) for one in batch] == [len(SAMPLES[i]["audio"]) for i in [36, 0, 2, 9, 1]]

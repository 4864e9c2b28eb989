"""What ``collate="padded"`` makes of batches, time first or not, under every batching rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.training import (
    Bucketed,
    Crop,
    FixedSize,
    Loader,
    Packed,
    PackedRows,
    Permuted,
    Sequential,
    Shuffled,
    TokenBudget,
    Windowed,
)

COUNT = 70
RAGGED = {"x": 0, "frames": 1, "image": 2}  # to how many dimensions come after the first
PLAIN = [
    FixedSize(9),
    TokenBudget("x", 200),
    TokenBudget("frames", 200, multiple_of=8),
    Bucketed("x", 8, quantiles=3),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    fields = {
        "x": rs.Field("int32", (None,)),
        "frames": rs.Field("float32", (None, 4)),
        "image": rs.Field("uint8", (None, None, 3)),
        "vector": rs.Field("float32", (2,)),
        "text": rs.Field("str"),
        "raw": rs.Field("bytes"),
        "i": rs.Field("int64"),
    }
    store = rs.create(tmp_path_factory.mktemp("columns") / "store", fields)
    rng = np.random.default_rng(0)
    with store.writer() as writer:
        for i in range(COUNT):
            steps = (i * 13) % 29
            writer.append(
                {
                    "x": rng.integers(1, 100, steps, "i4"),
                    "frames": rng.random((steps, 4), "f4") + 1,
                    "image": rng.integers(1, 255, (i % 5, i % 7, 3), "u1"),
                    "vector": np.full(2, i, "f4"),
                    "text": "é" * i,
                    "raw": bytes([i]) * steps,
                    "i": i,
                }
            )
    return store


def padded(samples: list[Any], multiple: int = 1, *, time_first: bool = False) -> Any:
    """Arrays in one array, with zeros where there are no more of them."""
    longest = np.array([a.shape for a in samples]).max(axis=0)
    longest[0] = -(-longest[0] // multiple) * multiple
    made = np.zeros((len(samples), *longest), samples[0].dtype)
    for row, sample in zip(made, samples, strict=True):
        row[tuple(slice(d) for d in sample.shape)] = sample
    return made.swapaxes(0, 1) if time_first else made


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("rule", PLAIN, ids=repr)
@pytest.mark.parametrize("order", [Sequential(), Shuffled(1, window=5000)], ids=repr)
def test_batches_are_padded(store: rs.Store, order: Any, rule: Any, time_first: bool) -> None:
    loader = Loader(store, order=order, batch=rule, collate="padded", time_first=time_first)
    seen = []
    for batch in loader:
        seen += batch["i"].tolist()
        samples = [store[i] for i in batch["i"].tolist()]
        for name in RAGGED:
            multiple = rule.multiple_of if name in rule.fields else 1
            values = [sample[name] for sample in samples]
            wanted = padded(values, multiple, time_first=time_first)
            np.testing.assert_array_equal(batch[name], wanted)
            assert batch[name].dtype == wanted.dtype and batch[name].flags.c_contiguous
        assert batch["x_lengths"].tolist() == [len(s["x"]) for s in samples]
        assert batch["frames_lengths"].tolist() == [len(s["frames"]) for s in samples]
        assert batch["image_shapes"].tolist() == [list(s["image"].shape) for s in samples]
        assert batch["vector"].shape == (len(samples), 2)
        assert batch["text"] == [s["text"] for s in samples]
        assert batch["raw"] == [s["raw"] for s in samples]
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("time_first", [False, True])
def test_packed_fields_say_which_sequence_and_step_it_is(store: rs.Store, time_first: bool) -> None:
    rule = Packed(("x", "frames", "raw"), 32, rows=3)
    options: dict[str, Any] = {"order": Permuted(2), "batch": rule}
    loader = Loader(store, collate="padded", time_first=time_first, **options)

    for batch, rows in zip(loader, Loader(store, **options), strict=True):
        for name in rule.fields:
            packed = rows[name]
            assert isinstance(packed, PackedRows)
            for extra, wanted in (
                ("", packed.to_padded()),
                ("_segments", packed.segments()),
                ("_positions", packed.positions()),
            ):
                got = batch[name + extra]
                np.testing.assert_array_equal(got.swapaxes(0, 1) if time_first else got, wanted)
                assert got.flags.c_contiguous
        shape = (32, len(rows["x"])) if time_first else (len(rows["x"]), 32)
        assert batch["x"].shape == batch["x_segments"].shape == shape
        assert batch["frames"].shape == (*shape, 4)
        assert batch["image_shapes"].shape == (len(batch["i"]), 3)
        assert not {"x_lengths", "frames_lengths", "raw_lengths"} & set(batch)
        # The sequences one after another are the samples, or pieces of them, row by row.
        x, segments = batch["x"], batch["x_segments"]
        x, segments = (x.T, segments.T) if time_first else (x, segments)
        sequences = [
            row[which == number].tolist()
            for row, which in zip(x, segments, strict=True)
            for number in range(1, which.max() + 1)
        ]
        whole = [store[i]["x"].tolist() for i in batch["i"].tolist()]
        assert [s for s in sequences if s] == [x for x in whole if x]


@pytest.mark.parametrize("time_first", [False, True])
def test_windows_come_with_resets_and_are_as_long_as_windows(
    store: rs.Store, time_first: bool
) -> None:
    rule = Windowed(("x", "frames"), 10, stride=6, streams=4)
    loader = Loader(store, batch=rule, collate="padded", time_first=time_first)

    begun = 0
    for batch in loader:
        x = batch["x"].T if time_first else batch["x"]
        assert x.shape[0] == len(batch["reset"]) == len(batch["i"]) == len(batch["text"]) == 4
        # A multiple of the window's length: 0 where all four are empty.
        assert x.shape[1] in ((10,) if batch["x_lengths"].any() else (0,))
        frames = (x.shape[1], 4, 4) if time_first else (4, x.shape[1], 4)
        assert batch["frames"].shape == frames
        assert batch["frames_lengths"].tolist() == batch["x_lengths"].tolist()
        for row, length, i, reset in zip(
            x, batch["x_lengths"], batch["i"], batch["reset"], strict=True
        ):
            assert (row[length:] == 0).all()
            if reset:
                begun += 1
                assert row[:length].tolist() == store[int(i)]["x"][:10].tolist()
    assert begun == COUNT


def test_crops_are_padded_to_their_length(store: rs.Store) -> None:
    loader = Loader(store, batch=COUNT, crop=Crop(("x", "frames"), 7), collate="padded")
    (batch,) = loader

    assert batch["x"].shape == (COUNT, 7) and batch["frames"].shape == (COUNT, 7, 4)
    wanted = [min((i * 13) % 29, 7) for i in range(COUNT)]
    assert batch["x_lengths"].tolist() == batch["frames_lengths"].tolist() == wanted


def test_time_comes_first_in_padded_batches_only(store: rs.Store) -> None:
    with pytest.raises(rs.UsageError, match="time_first"):
        Loader(store, time_first=True)
    with pytest.raises(rs.UsageError, match="time_first"):
        Loader(store, time_first=True, collate=lambda batch: batch)

"""Crops: where their windows lie, and that they depend on nothing but the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training import Crop, Loader, Permuted, Shuffled, Weighted

SEEDS = st.integers(0, 2**64 - 1)
PLACES = st.sampled_from(["random", "start", "center", "end"])
LENGTHS = st.lists(st.integers(0, 50) | st.integers(0, 2**45), max_size=30)


def windows(crop: Crop, lengths: list[int], epoch: int = 0) -> list[tuple[int, int]]:
    starts, stops = crop.windows(
        np.arange(len(lengths), dtype=np.int64), np.array(lengths, np.int64), epoch
    )
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


@given(st.builds(Crop, st.just("x"), st.integers(0, 60), SEEDS, PLACES), LENGTHS)
def test_windows_lie_within_the_samples(crop: Crop, lengths: list[int]) -> None:
    for (start, stop), length in zip(windows(crop, lengths), lengths, strict=True):
        assert 0 <= start <= stop <= length
        assert stop - start == min(length, crop.length)


@given(st.integers(0, 60), LENGTHS)
def test_fixed_windows_lie_where_they_should(length: int, lengths: list[int]) -> None:
    room = [max(steps - length, 0) for steps in lengths]

    for at, wanted in (
        ("start", [0] * len(room)),
        ("center", [r // 2 for r in room]),
        ("end", room),
    ):
        crop = Crop("x", length, at=at)  # type: ignore[arg-type]
        assert [start for start, _ in windows(crop, lengths)] == wanted


@given(SEEDS, st.integers(0, 1000), LENGTHS, st.data())
def test_a_window_depends_on_seed_epoch_and_sample_alone(
    seed: int, epoch: int, lengths: list[int], data: st.DataObject
) -> None:
    crop = Crop("x", 10, seed)
    whole = windows(crop, lengths, epoch)
    some = np.array(
        data.draw(st.lists(st.integers(0, len(lengths) - 1))) if lengths else [], np.int64
    )

    starts, stops = crop.windows(some, np.array(lengths, np.int64)[some], epoch)

    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == [whole[i] for i in some]


def test_random_windows_are_uniform_and_others_each_epoch_and_seed() -> None:
    count, room = 20_000, 9
    lengths = [5 + room] * count
    several = [
        [start for start, _ in windows(Crop("x", 5, seed), lengths, epoch)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]

    for starts in several:
        counts = np.bincount(starts, minlength=room + 1)
        chi2 = ((counts - count / (room + 1)) ** 2 / (count / (room + 1))).sum()
        assert len(counts) == room + 1 and chi2 < 27.9  # 9 degrees of freedom, one in a thousand
        assert abs(np.corrcoef(starts[1:], starts[:-1])[0, 1]) < 0.03
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(several[one], several[other])[0, 1]) < 0.03


def test_windows_of_very_long_samples_are_uniform_too() -> None:
    starts = np.array([start for start, _ in windows(Crop("x", 1), [2**45] * 4000)])

    counts = np.bincount(starts >> 41, minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 37.7  # 15 degrees of freedom, one in a thousand


# Through a loader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    fields = {
        "x": rs.Field("int32", (None,)),
        "frames": rs.Field("float32", (None, 3)),
        "y": rs.Field("int16", (None,)),
        "raw": rs.Field("bytes"),
        "i": rs.Field("int64"),
    }
    store = rs.create(tmp_path_factory.mktemp("crops") / "store", fields)
    with store.writer() as writer:
        for i in range(80):
            steps = np.arange((i * 7) % 41)
            sample = {"x": steps, "frames": np.repeat(steps[:, None], 3, 1).astype("f4")}
            writer.append({**sample, "y": steps, "raw": steps.astype("u1").tobytes(), "i": i})
    return store


@pytest.mark.parametrize("order", [Permuted(1), Shuffled(1, window=2000)])
def test_several_fields_are_cut_alike(store: rs.Store, order: Any) -> None:
    crop = Crop(("x", "frames", "raw"), 12, seed=3)
    wanted = windows(crop, [(i * 7) % 41 for i in range(80)], 2)
    loader = Loader(store, order=order, crop=crop, batch=9)
    loader.set_epoch(2)

    for batch in loader:
        columns = [batch[name] for name in ("x", "frames", "y", "raw", "i")]
        for x, frames, y, raw, i in zip(*columns, strict=True):
            start, stop = wanted[i]
            assert x.tolist() == list(range(start, stop)) == frames[:, 1].tolist() == list(raw)
            assert frames.shape == (stop - start, 3) and len(y) == (i * 7) % 41


def test_a_sample_that_comes_again_is_cut_elsewhere(store: rs.Store) -> None:
    order = Weighted(np.arange(80) == 23, seed=2, count=60)  # 38 steps long

    def starts(batch: int) -> list[int]:
        loader = Loader(store, order=order, crop=Crop("x", 1, seed=1), batch=batch)
        return [int(x[0]) for b in loader for x in b["x"]]

    assert starts(60) == starts(7)
    assert len(set(starts(60))) > 20 and 10 < np.mean(starts(60)) < 28


def test_a_place_does_not_depend_on_the_order(store: rs.Store) -> None:
    def cut(order: Any, batch: int) -> dict[int, list[int]]:
        loader = Loader(store, order=order, crop=Crop("x", 5, seed=1), batch=batch)
        return {int(i): x.tolist() for b in loader for i, x in zip(b["i"], b["x"], strict=True)}

    assert cut(Permuted(1), 7) == cut(Permuted(2), 16) == cut(Shuffled(3, window=900), 80)


def test_several_crops_have_places_of_their_own(store: rs.Store) -> None:
    crops = (Crop("x", 5, seed=1), Crop("y", 5, seed=2))
    (batch,) = Loader(store, crop=crops, batch=80, where="x.length >= 20")

    assert any(x[0] != y[0] for x, y in zip(batch["x"], batch["y"], strict=True))
    with pytest.raises(rs.UsageError, match="both cut"):
        Loader(store, crop=(Crop("x", 5), Crop(("y", "x"), 6)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Crop("x", -1),
        lambda: Crop("x", 2.5),  # type: ignore[arg-type]
        lambda: Crop("x", 5, seed=-1),
        lambda: Crop("x", 5, at="middle"),  # type: ignore[arg-type]
        lambda: Crop((), 5),
        lambda: Crop("x", 5).check(rs.Schema({"x": rs.Field("str")})),
        lambda: Crop("x", 5).check(rs.Schema({"x": rs.Field("i4")})),
        lambda: Crop("x", 5).check(rs.Schema({"x": rs.Field("i4", (3, None))})),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(rs.UsageError):
        make()


@pytest.mark.parametrize("at", ["random", "end"])
def test_fields_that_are_cropped_together_are_of_one_length(tmp_path: Path, at: Any) -> None:
    field = rs.Field("i4", (None,))
    store = rs.create(tmp_path / "store", {"tokens": field, "targets": field})
    with store.writer() as writer:
        writer.append({"tokens": np.arange(10), "targets": np.arange(7)})

    loader = Loader(store, batch=1, crop=Crop(["tokens", "targets"], 3, at=at))
    with pytest.raises(rs.SampleError, match="sample 0: 'tokens' is 10 long, and"):
        list(loader)


def test_each_turn_of_each_sample_has_a_place_of_its_own() -> None:
    positions, turns = (x.reshape(-1) for x in np.mgrid[:30, :30])
    lengths = np.full(900, 2**40)
    starts, _ = Crop("x", 10).windows(positions, lengths, 0, turns)
    assert len(np.unique(starts)) == 900

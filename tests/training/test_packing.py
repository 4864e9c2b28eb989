"""Packing against a naive best fit, and packed rows against rows filled step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training import Loader, Packed, PackedRows
from raggedstore.training.packing import best_fit
from raggedstore.training.picks import Picks
from tests.training.test_batching import Epoch, epochs, planned

RULES = st.builds(
    Packed,
    st.just("x"),
    st.integers(1, 50),
    rows=st.integers(1, 5),
    longer=st.sampled_from(["split", "drop"]),
)


def naive_rooms(lengths: list[int], capacity: int) -> list[int]:
    """The room that best fit leaves in each row, the longest placed first; sorted."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@given(st.integers(1, 60), st.data())
def test_rows_are_what_a_naive_best_fit_makes(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, capacity), max_size=80))

    row, room = best_fit(np.array(lengths, np.int64), capacity)

    assert sorted(room.tolist()) == naive_rooms(lengths, capacity)
    filled = np.bincount(row, lengths, minlength=len(room)).astype(int)
    assert (filled + room == capacity).all()
    assert set(row.tolist()) == set(range(len(room)))  # none is empty


def pieces_of(epoch: Epoch, rule: Packed) -> list[tuple[int, int, int]]:
    """What is to be packed, in the order in which it comes: sample, start and stop."""
    pieces = []
    for i in epoch.order:
        length = int(epoch.sizes[i, 0])
        if length > rule.length and rule.longer == "drop":
            continue
        starts = range(0, max(length, 1), rule.length)
        pieces += [(i, start, min(start + rule.length, length)) for start in starts]
    return pieces


def listed(batch: Picks) -> list[tuple[int, int, int]]:
    assert batch.starts is not None and batch.stops is not None
    columns = (batch.positions, batch.starts, batch.stops)
    return list(zip(*(c.tolist() for c in columns), strict=True))


@given(epochs(most=40, largest=70), RULES)
def test_every_piece_is_in_one_row_that_it_fits(epoch: Epoch, rule: Packed) -> None:
    batches = [batch for unit in planned(rule, epoch) for batch in unit]

    pieces = pieces_of(epoch, rule)
    place = {piece: at for at, piece in enumerate(pieces)}
    got = [piece for batch in batches for piece in listed(batch)]
    if epoch.drop_last:
        assert len(set(got)) == len(got) and set(got) <= set(pieces)
    else:
        assert sorted(got) == sorted(pieces)
    for batch in batches:
        rows = batch.rows
        assert rows is not None and (np.diff(rows) >= 0).all()
        count = int(rows[-1]) + 1
        assert set(rows.tolist()) == set(range(count))
        for row in range(count):
            inside = [p for p, r in zip(listed(batch), rows.tolist(), strict=True) if r == row]
            assert sum(stop - start for _, start, stop in inside) <= rule.length
            assert [place[p] for p in inside] == sorted(place[p] for p in inside)


@given(epochs(most=40, largest=70), RULES)
def test_one_batch_at_most_is_short_of_rows(epoch: Epoch, rule: Packed) -> None:
    batches = [batch for unit in planned(rule, epoch) for batch in unit]

    counts = [int(batch.rows[-1]) + 1 for batch in batches]  # type: ignore[index]
    short = [count for count in counts if count != rule.rows]
    assert len(short) <= (not epoch.drop_last)
    assert all(count < rule.rows for count in short)


def filling(rule: Packed, pieces: list[tuple[int, int, int]]) -> int:
    """How many of the first pieces have as many values as whole batches, one batch at least."""
    lengths = [stop - start for _, start, stop in pieces]
    batch = rule.rows * rule.length
    most = max(sum(lengths) // batch, 1) * batch
    return max(k for k in range(len(pieces) + 1) if sum(lengths[:k]) <= most)


@given(epochs(most=40, largest=70), RULES)
def test_a_unit_is_packed_as_best_fit_packs_it(epoch: Epoch, rule: Packed) -> None:
    """Together with what was left over; rows that make no batch wait, and the emptiest first."""
    held: list[tuple[int, int, int]] = []
    coming = pieces_of(epoch, rule)
    for number, batches in enumerate(planned(rule, epoch)):
        fresh = set(epoch.units[number].tolist())
        held += [piece for piece in coming if piece[0] in fresh]
        takes_all = number == len(epoch.units) - 1 and not epoch.drop_last
        count = len(held) if takes_all else filling(rule, held)
        rooms = naive_rooms([stop - start for _, start, stop in held[:count]], rule.length)
        left = 0 if takes_all else len(rooms) % rule.rows
        got = []
        for batch in batches:
            assert batch.rows is not None and batch.starts is not None
            lengths = batch.stops - batch.starts
            got += (rule.length - np.bincount(batch.rows, lengths).astype(int)).tolist()
            for piece in listed(batch):
                held.remove(piece)
        assert len(got) == len(rooms) - left
        if left:
            assert rooms.pop() >= max(got, default=0)
        for room in got:
            rooms.remove(room)


@given(epochs(most=40, largest=70), RULES)
def test_without_a_key_rows_come_as_their_first_pieces_do(epoch: Epoch, rule: Packed) -> None:
    epoch.keyed = False
    place = {piece: at for at, piece in enumerate(pieces_of(epoch, rule))}

    for unit in planned(rule, epoch):
        first = []
        for batch in unit:
            assert batch.rows is not None
            begins = np.flatnonzero(np.diff(batch.rows, prepend=-1))
            first += [place[listed(batch)[i]] for i in begins]
        assert first == sorted(first)


def test_rows_come_in_random_order() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, (3000, 1))
    (unit,) = planned(Packed("x", 100, rows=4), Epoch(sizes, [np.arange(3000)]))

    longest = [int(sizes[batch.positions].max()) for batch in unit]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.25
    filled = [int((b.stops - b.starts).sum()) for b in unit]  # type: ignore[operator]
    assert np.mean(filled[:-1]) > 399  # of 400


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_shortest_do_not_wait_for_the_end_of_the_epoch(drop_last: bool) -> None:
    """Best fit has them in the last rows; to leave these over each time would keep them back."""
    rng = np.random.default_rng(0)
    sizes = rng.geometric(1 / 15, (12_000, 1)).clip(max=200)
    epoch = Epoch(sizes, np.split(rng.permutation(12_000), 6), drop_last=drop_last)
    units = planned(Packed("x", 256, rows=16), epoch)

    for unit in units:
        lengths = np.concatenate([sizes[batch.positions, 0] for batch in unit])
        assert abs(lengths.mean() - sizes.mean()) < 1.5
    seen = np.unique(np.concatenate([batch.positions for unit in units for batch in unit]))
    lost = np.setdiff1d(np.arange(12_000), seen)
    assert bool(len(lost)) == drop_last
    if drop_last:
        assert len(lost) < 2 * 16 * 256 / sizes.mean()
        assert abs(sizes[lost].mean() - sizes.mean()) < 5


# Packed rows


@st.composite
def packed(draw: st.DrawFn, tail: tuple[int, ...]) -> tuple[PackedRows, list[list[Any]], int]:
    """Packed rows, the sequences of each row, and the rows' length."""
    length = draw(st.integers(1, 12))
    rows: list[list[Any]] = []
    number = 1.0
    for _ in range(draw(st.integers(0, 4))):
        rows.append([])
        room = length
        for _ in range(draw(st.integers(1, 4))):
            steps = draw(st.integers(0, room))
            room -= steps
            size = (steps, *tail)
            rows[-1].append(number + np.arange(np.prod(size), dtype="f4").reshape(size))
            number += 1000
    flat = [sequence for row in rows for sequence in row]
    row = np.array([i for i, row in enumerate(rows) for _ in row], np.int64)
    batch = rs.RaggedBatch.from_list(flat, "f4", ndim=1 + len(tail))
    return PackedRows(batch, row, len(rows), length), rows, length


@given(st.sampled_from([(), (4,), (2, 3)]).flatmap(packed))
def test_packed_rows_are_rows_filled_step_by_step(
    drawn: tuple[PackedRows, list[list[Any]], int],
) -> None:
    made, rows, length = drawn
    tail = made.batch.shapes[:, 1:].max(axis=0, initial=0)
    values = np.full((len(rows), length, *tail), -1, "f4")
    segments = np.zeros((len(rows), length), int)
    positions = np.zeros((len(rows), length), int)
    for r, row in enumerate(rows):
        at = 0
        for number, sequence in enumerate(row, start=1):
            for step, value in enumerate(sequence):
                values[r, at], segments[r, at], positions[r, at] = value, number, step
                at += 1

    np.testing.assert_array_equal(made.to_padded(-1), values)
    assert made.to_padded().dtype == np.float32 and made.to_padded().ndim == made.batch.ndim + 1
    np.testing.assert_array_equal(made.segments(), segments)
    np.testing.assert_array_equal(made.positions(), positions)
    np.testing.assert_array_equal(made.mask(), segments > 0)
    lengths = [len(sequence) for row in rows for sequence in row]
    assert made.lengths.tolist() == lengths
    assert made.cu_seqlens.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert made.cu_seqlens.dtype == np.int32
    assert len(made) == len(rows) and made.shape == (len(rows), length)
    assert made.waste == pytest.approx(1 - sum(lengths) / (len(rows) * length) if rows else 0)
    assert f"in {len(rows)} rows of {length}" in repr(made)


# Through a loader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    fields = {
        "x": rs.Field("int32", (None,)),
        "frames": rs.Field("float32", (None, 4)),
        "text": rs.Field("bytes"),
        "i": rs.Field("int64"),
    }
    store = rs.create(tmp_path_factory.mktemp("packing") / "store", fields)
    with store.writer() as writer:
        for i in range(60):
            steps = (i * 13) % 29
            writer.append(
                {
                    "x": np.arange(steps) + 100 * i,
                    "frames": np.full((steps, 4), i, "f4"),
                    "text": bytes([i]) * steps,
                    "i": i,
                }
            )
    return store


def test_several_fields_are_packed_alike(store: rs.Store) -> None:
    fields = ("x", "frames", "text")
    seen = []
    for batch in Loader(store, batch=Packed(fields, 24, rows=3)):
        packed = [batch[name] for name in fields]
        assert all(isinstance(rows, PackedRows) for rows in packed)
        for rows in packed[1:]:
            assert rows.row.tolist() == packed[0].row.tolist()
            assert rows.lengths.tolist() == packed[0].lengths.tolist()
        assert len(batch["i"]) == len(packed[0].batch)
        for x, frames, text, i in zip(*(rows.batch for rows in packed), batch["i"], strict=True):
            assert (x // 100 == i).all() and (frames == i).all() and (text == i).all()
            seen += x.tolist()
    assert sorted(seen) == [100 * i + t for i in range(60) for t in range((i * 13) % 29)]


@pytest.mark.parametrize("shape", [(), (3,), (None, None), (2, None)])
def test_fields_that_can_not_be_packed_are_refused(tmp_path: Path, shape: Any) -> None:
    store = rs.create(tmp_path / "s", {"x": rs.Field("i4", shape)})

    with pytest.raises(rs.UsageError, match="first dimension"):
        Loader(store, batch=Packed("x", 10))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Packed("x", 0),
        lambda: Packed("x", 10, rows=0),
        lambda: Packed("x", 10, longer="cut"),  # type: ignore[arg-type]
        lambda: Packed((), 10),
        lambda: Packed("", 10),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(rs.UsageError):
        make()


@given(hnp.arrays(np.int64, st.integers(0, 40), elements=st.integers(0, 30)))
def test_longer_ones_alone_are_dropped(lengths: Any) -> None:
    epoch = Epoch(lengths[:, None], [np.arange(len(lengths))])
    (unit,) = planned(Packed("x", 20, longer="drop"), epoch)

    kept = sorted(i for batch in unit for i in batch.positions.tolist())
    assert kept == [i for i, length in enumerate(lengths) if length <= 20]

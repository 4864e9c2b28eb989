"""Windows for truncated back-propagation, against streams that play one sequence after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training import (
    Crop,
    Loader,
    Permuted,
    Sequential,
    Shuffled,
    Weighted,
    Windowed,
)
from raggedstore.training.picks import Picks
from raggedstore.training.recurrent import BEYOND, first_to_end
from tests.training.test_batching import Epoch, epochs, planned

#: A window: which sample, from where to where; None where a stream has run out.
Window = tuple[int, int, int] | None


@st.composite
def rules(draw: st.DrawFn) -> Windowed:
    length = draw(st.integers(1, 20))
    stride = draw(st.none() | st.integers(1, length))
    return Windowed("x", length, stride, draw(st.integers(1, 5)))


def windows_of(rule: Windowed, i: int, steps: int) -> list[Window]:
    """One sequence's: until one of them reaches the end."""
    windows: list[Window] = [(i, 0, min(rule.length, steps))]
    assert rule.stride is not None
    while windows[-1][2] < steps:  # type: ignore[index]
        start = windows[-1][1] + rule.stride  # type: ignore[index]
        windows.append((i, start, min(start + rule.length, steps)))
    return windows


def played(rule: Windowed, epoch: Epoch) -> list[list[Window]]:
    """What each stream plays: the next sequence goes to the one that runs out first."""
    streams: list[list[Window]] = [[] for _ in range(rule.streams)]
    for i in epoch.order:
        first = min(streams, key=len)
        first += windows_of(rule, i, int(epoch.sizes[i, 0]))
    return streams


def rows_of(batch: Picks) -> list[Window]:
    assert batch.starts is not None and batch.stops is not None and batch.rows is not None
    assert batch.rows.tolist() == list(range(len(batch)))
    columns = (batch.positions, batch.starts, batch.stops)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return [None if start == stop == BEYOND else (i, start, stop) for i, start, stop in rows]


@given(epochs(most=40, largest=70), rules())
def test_each_stream_plays_one_sequence_after_another(epoch: Epoch, rule: Windowed) -> None:
    batches = [batch for unit in planned(rule, epoch) for batch in unit]

    streams = played(rule, epoch)
    turns = [len(stream) for stream in streams]
    count = min(turns) if epoch.drop_last else max(turns)
    wanted = [[s[turn] if turn < len(s) else None for s in streams] for turn in range(count)]
    assert [rows_of(batch) for batch in batches] == wanted
    # Streams stay together: one has at most a sequence more than another to play.
    each = [len(windows_of(rule, 0, int(steps))) for steps in epoch.sizes[:, 0]]
    assert max(turns) - min(turns) <= max(each, default=0)


@given(st.sampled_from([1, 2, 63, 64, 200]), st.sampled_from([1, 3, 50]), st.data())
def test_a_sequence_goes_to_the_stream_that_ends_first_however_many_there_are(
    streams: int, longest: int, data: st.DataObject
) -> None:
    busy = data.draw(hnp.arrays(np.int64, streams, elements=st.integers(0, 60)))
    windows = data.draw(hnp.arrays(np.int64, st.integers(0, 500), elements=st.integers(1, longest)))

    until, wanted = busy.tolist(), []
    for more in windows.tolist():
        wanted.append(until.index(min(until)))
        until[wanted[-1]] += more
    assert first_to_end(busy, windows).tolist() == wanted


@given(epochs(most=40, largest=70), rules())
def test_windows_join_to_the_sequences(epoch: Epoch, rule: Windowed) -> None:
    epoch.drop_last = False
    rows: list[list[tuple[int, int, int]]] = [[] for _ in range(rule.streams)]
    for unit in planned(rule, epoch):
        for batch in unit:
            for row, window in zip(rows, rows_of(batch), strict=True):
                row += [window] if window is not None else []

    joined: dict[int, list[int]] = {}
    for row in rows:
        for i, start, stop in row:
            steps = joined.setdefault(i, [])
            assert start <= len(steps)  # no step is skipped, and it is in order
            steps[start:] = range(start, stop)
    lengths = {i: int(epoch.sizes[i, 0]) for i in epoch.order}
    assert joined == {i: list(range(length)) for i, length in lengths.items()}


@given(epochs(most=40, largest=70), rules())
def test_a_reset_is_where_a_sequence_begins(epoch: Epoch, rule: Windowed) -> None:
    began: list[int] = []
    for unit in planned(rule, epoch):
        for batch in unit:
            dressed = rule.dress({"i": batch.positions}, batch)
            assert list(dressed) == ["i", "reset"]
            assert dressed["reset"].dtype == bool and len(dressed["reset"]) == rule.streams
            rows = rows_of(batch)
            assert dressed["reset"].tolist() == [w is not None and w[1] == 0 for w in rows]
            began += batch.positions[dressed["reset"]].tolist()
    if not epoch.drop_last:
        assert sorted(began) == sorted(epoch.order)


@given(epochs(most=40, largest=70), rules())
def test_units_do_not_show(epoch: Epoch, rule: Windowed) -> None:
    whole = Epoch(epoch.sizes, [np.array(epoch.order, np.int64)], drop_last=epoch.drop_last)

    def rows(epoch: Epoch) -> Any:
        return [rows_of(batch) for unit in planned(rule, epoch) for batch in unit]

    assert rows(epoch) == rows(whole)


# Through a loader

LENGTHS = [(i * 13) % 29 for i in range(50)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    fields = {"x": rs.Field("int32", (None,)), "y": rs.Field("float32", (None, 2))}
    store = rs.create(
        tmp_path_factory.mktemp("recurrent") / "store", {**fields, "i": rs.Field("i8")}
    )
    with store.writer() as writer:
        for i, steps in enumerate(LENGTHS):
            y = np.full((steps, 2), i, "f4")
            writer.append({"x": np.arange(steps) + 100 * i, "y": y, "i": i})
    return store


def streams_of(loader: Loader) -> list[list[int]]:
    """The values that each stream plays from one reset to the next, all of them in turn."""
    rows: list[list[int]] = []
    for batch in loader:
        rows = rows or [[] for _ in range(len(batch["x"]))]
        assert len(batch["x"]) == len(batch["y"]) == len(batch["i"]) == len(batch["reset"])
        assert batch["y"].lengths.tolist() == batch["x"].lengths.tolist()
        for row, x, i, reset in zip(rows, batch["x"], batch["i"], batch["reset"], strict=True):
            assert (x // 100 == i).all()
            assert not (reset and len(x)) or x[0] == 100 * i
            row += x.tolist()
    return rows


def test_each_turn_of_a_sample_is_cropped_anew(tmp_path: Path) -> None:
    schema = {"a": rs.Field("i4", (None,)), "b": rs.Field("i4", (None,))}
    with rs.create(tmp_path / "s", schema) as store:
        with store.writer() as writer:
            writer.append({"a": np.arange(4), "b": np.arange(1000)})
        loader = Loader(
            store,
            order=Weighted([1.0], count=10),
            batch=Windowed("a", 4, streams=1),
            crop=Crop("b", 2),
        )
        firsts = [int(batch["b"][0][0]) for batch in loader]
    assert len(firsts) == 10 and len(set(firsts)) > 5


@pytest.mark.parametrize("order", [Sequential(), Permuted(1), Shuffled(1, window=900)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_process_has_streams_of_its_own(store: rs.Store, order: Any, world: int) -> None:
    rule = Windowed(("x", "y"), 7, streams=2)
    parts = [
        streams_of(Loader(store, batch=rule, order=order, rank=rank, world_size=world))
        for rank in range(world)
    ]

    assert [len(rows) for rows in parts] == [2] * world
    values = sorted(value for rows in parts for row in rows for value in row)
    assert values == [100 * i + t for i, steps in enumerate(LENGTHS) for t in range(steps)]
    for row in (row for rows in parts for row in rows):
        played: list[int] = []
        while len(played) < len(row):  # whole sequences, one after another
            i, t = divmod(row[len(played)], 100)
            assert t == 0
            played += [100 * i + step for step in range(LENGTHS[i])]
        assert played == row


def test_processes_that_do_not_divide_the_streams_are_refused(store: rs.Store) -> None:
    state = Loader(store, batch=Windowed("x", 7, streams=3)).state_dict()

    with pytest.raises(rs.UsageError, match=r"3 streams.*2 processes"):
        Loader(store, batch=Windowed("x", 7, streams=3), world_size=2).load_state_dict(state)


def test_a_field_in_the_way_of_reset_is_refused(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "s", {"x": rs.Field("i4", (None,)), "reset": rs.Field("i4")})

    with pytest.raises(rs.UsageError, match="reset"):
        Loader(store, batch=Windowed("x", 7))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Windowed("x", 0),
        lambda: Windowed("x", 5, stride=0),
        lambda: Windowed("x", 5, stride=6),
        lambda: Windowed("x", 5, streams=0),
        lambda: Windowed((), 5),
        lambda: Windowed("x", 5).check(rs.Schema({"x": rs.Field("i4", (None, None))})),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(rs.UsageError):
        make()

"""Picks and batches of them, against plain lists."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training.picks import Batches, Picks

Rows = list[tuple[int | None, ...]]


@st.composite
def picks(draw: st.DrawFn, columns: tuple[bool, ...] | None = None) -> Picks:
    """Picks with any of starts, stops, rows and turns, or with those that `columns` says."""
    count = draw(st.integers(0, 12))
    there = columns or (True, *draw(st.tuples(*[st.booleans()] * 4)))
    numbers = st.lists(st.integers(0, 2**40), min_size=count, max_size=count)
    return Picks(*(np.array(draw(numbers), np.int64) if c else None for c in there))


@st.composite
def batches(draw: st.DrawFn, columns: tuple[bool, ...] | None = None) -> Batches:
    """Batches, empty ones among them."""
    made = draw(picks(columns))
    inner = draw(st.lists(st.integers(0, len(made)), max_size=5)) if len(made) else []
    ends = sorted(inner) + ([len(made)] if len(made) or draw(st.booleans()) else [])
    return Batches(made, np.array([0, *ends], np.int64))


def plain(made: Picks) -> Rows:
    columns = (made.positions, made.starts, made.stops, made.rows, made.turns)
    lists = [[None] * len(made) if c is None else c.tolist() for c in columns]
    return list(zip(*lists, strict=True))


def listed(made: Batches) -> list[Rows]:
    rows, edges = plain(made.picks), made.edges.tolist()
    return [rows[a:b] for a, b in itertools.pairwise(edges)]


@given(picks(), st.data())
def test_picks_are_taken_by_index_and_slice(made: Picks, data: st.DataObject) -> None:
    count = len(made)
    index = data.draw(st.lists(st.integers(0, count - 1))) if count else []
    start, stop = data.draw(st.tuples(st.integers(0, count), st.integers(0, count)))

    assert plain(made.take(np.array(index, np.int64))) == [plain(made)[i] for i in index]
    assert plain(made.take(slice(start, stop))) == plain(made)[start:stop]


@given(st.tuples(*[st.booleans()] * 4), st.data())
def test_picks_and_batches_join(there: Any, data: st.DataObject) -> None:
    alike = (True, *there)
    parts = data.draw(st.lists(picks(alike) | st.just(Picks.none()), max_size=4))
    several = data.draw(st.lists(batches(alike) | st.just(Batches.none()), max_size=4))

    assert plain(Picks.join(parts)) == [row for part in parts for row in plain(part)]
    joined = Batches.join(several)
    assert listed(joined) == [batch for part in several for batch in listed(part)]
    assert joined.edges[0] == 0 and joined.edges[-1] == len(joined.picks)


@given(picks())
def test_picks_come_back_from_json(made: Picks) -> None:
    lists = json.loads(json.dumps(made.to_json()))

    assert plain(Picks.from_json(lists)) == plain(made)


@pytest.mark.parametrize(
    "lists",
    [
        None,
        3,
        "abcd",
        [],
        [[1]],
        [None, None, None, None, None],
        [[1, 2], [3], None, None, None],
        [[1], None, None, None],
        [[1], None, None, None, None, None],
        [[[1]], None, None, None, None],
        [["one"], None, None, None, None],
        [[2**63], None, None, None, None],
        [[1.5], None, None, None, None],
        [[True], None, None, None, None],
        [[None], None, None, None, None],
    ],
)
def test_what_is_no_picks_is_refused(lists: Any) -> None:
    with pytest.raises(rs.UsageError, match="damaged"):
        Picks.from_json(lists)


@given(batches(), st.data())
def test_batches_are_taken_and_cut(made: Batches, data: st.DataObject) -> None:
    count = len(made)
    which = data.draw(st.lists(st.integers(0, count - 1))) if count else []
    start, stop = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count))))
    lists = listed(made)

    assert len(lists) == count and made.sizes.tolist() == [len(batch) for batch in lists]
    assert listed(made.take(np.array(which, np.int64))) == [lists[i] for i in which]
    assert listed(made.span(start, stop)) == lists[start:stop]


def test_none_are_none() -> None:
    assert len(Picks.none()) == len(Batches.none()) == 0
    assert len(Picks.join([])) == len(Batches.join([])) == 0

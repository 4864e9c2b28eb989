"""How much is read at a time."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training import Loader
from raggedstore.training.picks import Batches, Picks
from raggedstore.training.reading import Pace, _bytes_to, _parts


@given(st.lists(st.lists(st.integers(0, 50), max_size=4), max_size=20), st.integers(1, 200))
def test_batches_are_read_all_once_in_order_and_no_more_at_a_time_than_there_is_room_for(
    sizes: list[list[int]], room: int
) -> None:
    each = np.array([size for batch in sizes for size in batch], np.int64)
    edges = np.concatenate([[0], np.cumsum([len(batch) for batch in sizes])]).astype(np.int64)
    batches = Batches(Picks(np.arange(len(each), dtype=np.int64)), edges)
    parts = list(_parts(_bytes_to(batches, each), Pace(room)))

    assert [i for first, last, _ in parts for i in range(first, last)] == list(range(len(sizes)))
    for first, last, nbytes in parts:
        assert nbytes == sum(map(sum, sizes[first:last]))
        assert last - first == 1 or nbytes <= room


@pytest.mark.parametrize("each", [np.full(110, 10), np.broadcast_to(np.int64(10), 110)])
def test_reads_are_about_as_large_as_one_another(each: np.ndarray) -> None:
    batches = Batches(Picks(np.arange(110, dtype=np.int64)), np.arange(0, 111, 10))
    parts = list(_parts(_bytes_to(batches, each), Pace(500)))
    assert parts == [(0, 4, 400), (4, 8, 400), (8, 11, 300)]


@pytest.mark.parametrize("where", ["batch", "batches in threads", "samples", "collate"])
def test_what_is_not_ours_is_called_by_one_thread_at_a_time(where: str, tmp_path: Path) -> None:
    """Long samples among short ones make a read so large that the loop makes a part of it."""
    sizes = np.full(20_000, 20, np.int64)
    sizes[10_000:10_060] = 2**18
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    columns = {
        "x": rs.RaggedBatch(np.arange(offsets[-1], dtype="i4"), offsets),
        "n": np.arange(len(sizes)),
    }
    schema = {"x": rs.Field("i4", (None,)), "n": rs.Field("i8")}
    with rs.create(tmp_path / "s", schema, profile="fast") as store, store.writer() as writer:
        writer.extend_batch(columns)
    inside = threading.Semaphore(2 if where == "batches in threads" else 1)

    def called(made: Any) -> Any:
        assert inside.acquire(blocking=False), "called by another thread meanwhile"
        if where != "samples":
            time.sleep(0.001)
        inside.release()
        if where == "collate":  # twice as large, so that not all are made ahead
            twice = rs.RaggedBatch(made["x"].values.astype("f8"), made["x"].offsets)
            return {"x": twice, "n": made["n"]}
        return made

    loader = Loader(
        rs.open(tmp_path / "s", budget="4MB"),
        batch=32,
        budget="32MB",
        collate=called if where == "collate" else "ragged",
    )
    if where != "collate":
        per = "sample" if where == "samples" else "batch"
        loader = loader.map(called, per=per, threads=2 if where == "batches in threads" else 1)
    count = 0
    for batch in loader:
        assert (batch["n"] == np.arange(count, count + len(batch["n"]))).all()
        assert (batch["x"].values[batch["x"].offsets[:-1]] == offsets[batch["n"]]).all()
        count += len(batch["n"])
    assert count == len(sizes)

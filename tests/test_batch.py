"""Ragged batches against plain lists of arrays."""

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs


def lists(ndim: int) -> st.SearchStrategy[list[np.ndarray]]:
    shape = st.tuples(*[st.integers(0, 4)] * ndim)
    return st.lists(shape.flatmap(lambda s: hnp.arrays("i4", s)), max_size=6)


def padded(arrays: list[np.ndarray], ndim: int, value: int, side: str, length: int) -> np.ndarray:
    tail = [max((a.shape[d] for a in arrays), default=0) for d in range(1, ndim)]
    out = np.full((len(arrays), length, *tail), value, "i4")
    for row, array in zip(out, arrays, strict=True):
        kept = array[:length]
        first = length - len(kept) if side == "left" else 0
        row[(slice(first, first + len(kept)), *(slice(0, d) for d in kept.shape[1:]))] = kept
    return out


@given(st.data(), st.integers(1, 3), st.sampled_from(["left", "right"]))
def test_padded_and_mask_are_what_a_loop_gives(data: Any, ndim: int, side: Any) -> None:
    arrays = data.draw(lists(ndim))
    multiple = data.draw(st.integers(1, 4))
    limit = data.draw(st.none() | st.integers(0, 5))
    batch = rs.RaggedBatch.from_list(arrays, "i4", ndim)
    cut = [a[:limit] for a in arrays]
    length = -(-max((len(a) for a in cut), default=0) // multiple) * multiple

    got = batch.to_padded(-7, side, multiple_of=multiple, max_length=limit)
    mask = batch.mask(side, multiple_of=multiple, max_length=limit)

    np.testing.assert_array_equal(got, padded(cut, ndim, -7, side, length))
    ones = [np.ones(len(a), "i4") for a in cut]
    np.testing.assert_array_equal(mask, padded(ones, 1, 0, side, length).astype(bool))


@given(st.data(), st.integers(1, 3))
def test_a_batch_indexes_like_the_list_it_was_made_of(data: Any, ndim: int) -> None:
    arrays = data.draw(lists(ndim))
    batch = rs.RaggedBatch.from_list(arrays, "i4", ndim)

    assert len(batch) == len(arrays)
    assert batch.shapes.tolist() == [list(a.shape) for a in arrays]
    assert batch.lengths.tolist() == np.diff(batch.cu_seqlens).tolist()
    for one, other in zip(batch, arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(batch.to_list(), arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(batch[::-2], arrays[::-2], strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(IndexError):
        batch[len(arrays)]


def test_a_sample_of_a_batch_is_a_view() -> None:
    batch = rs.RaggedBatch(np.arange(6), [0, 2, 6])

    assert np.shares_memory(batch[1], batch.values)


def test_rows_of_a_two_dimensional_array_make_two_dimensional_samples() -> None:
    batch = rs.RaggedBatch(np.arange(12).reshape(6, 2), [0, 1, 6])

    assert [sample.shape for sample in batch] == [(1, 2), (5, 2)]
    assert batch.offsets.tolist() == [0, 2, 12]
    assert batch.cu_seqlens.tolist() == [0, 1, 6]
    assert batch.cu_seqlens.dtype == np.int32


@pytest.mark.parametrize(
    "arguments",
    [
        (np.arange(3), [0, 2]),
        (np.arange(3), [1, 3]),
        (np.arange(3), [0, 3, 2, 3]),
        (np.arange(3), [0.0, 3.0]),
        (np.arange(3), []),
        (np.arange(3), [[0, 3]]),
        (3, [0, 1]),
        (np.arange(3), [0, 3], [[2]]),
        (np.arange(3), [0, 3], [[-1, -3]]),
        (np.arange(3), [0, 3], [[3], [0]]),
    ],
)
def test_parts_that_do_not_agree_are_refused(arguments: Any) -> None:
    with pytest.raises(rs.SampleError):
        rs.RaggedBatch(*arguments)


def test_wrong_ways_of_padding_are_refused() -> None:
    batch = rs.RaggedBatch(np.arange(3), [0, 3])
    for wrong in ({"side": "top"}, {"multiple_of": 0}, {"max_length": -1}):
        with pytest.raises(rs.UsageError):
            batch.to_padded(**wrong)

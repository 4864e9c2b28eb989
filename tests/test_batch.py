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


@given(st.data(), st.integers(1, 3))
def test_spans_and_joins_are_those_of_the_list(data: Any, ndim: int) -> None:
    arrays = data.draw(lists(ndim))
    batch = rs.RaggedBatch.from_list(arrays, ">i4", ndim)
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, len(arrays))] * 2)))

    pieces = [batch.span(0, a), batch.span(a, b), batch.span(b, len(arrays))]
    whole = rs.RaggedBatch.join(pieces)

    assert np.shares_memory(pieces[1].values, batch.values) or not pieces[1].values.size
    assert pieces[1].offsets[0] == 0
    for one, other in zip(pieces[1], arrays[a:b], strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.dtype == batch.dtype
    for part in ("values", "offsets", "shapes"):
        np.testing.assert_array_equal(getattr(whole, part), getattr(batch, part))


@pytest.mark.parametrize("dtype", ["u1", ">u2", "f8"])
@pytest.mark.parametrize("longest", [0, 3, 40, 2000, 100_000])
def test_samples_are_taken_the_same_however_long_they_are(dtype: str, longest: int) -> None:
    rng = np.random.default_rng(longest)
    lengths = rng.integers(0, longest + 1, 1_000_000 // (longest + 10))
    batch = rs.RaggedBatch(
        rng.integers(0, 256, lengths.sum()).astype(dtype), np.cumsum([0, *lengths])
    )
    samples = batch.to_list()
    chosen = rng.integers(0, len(samples), len(samples))

    got = batch.take(chosen)

    np.testing.assert_array_equal(got.values, np.concatenate([samples[i] for i in chosen]))
    assert got.dtype == batch.dtype
    assert got.lengths.tolist() == lengths[chosen].tolist()

"""Ragged batches against plain lists of arrays, also by way of other libraries."""

from typing import Any
from unittest import mock

import awkward as ak
import hypothesis.extra.numpy as hnp
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import batch as batch_module
from tests.strategies import DTYPES


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


@given(
    st.data(), st.integers(1, 3), st.sampled_from(["left", "right"]), st.sampled_from([0, 2**20])
)
def test_padded_and_mask_are_what_a_loop_gives(data: Any, ndim: int, side: Any, tiny: int) -> None:
    arrays = data.draw(lists(ndim))
    multiple = data.draw(st.integers(1, 4))
    limit = data.draw(st.none() | st.integers(0, 5))
    batch = rs.RaggedBatch.from_list(arrays, "i4", ndim)
    cut = [a[:limit] for a in arrays]
    length = -(-max((len(a) for a in cut), default=0) // multiple) * multiple

    options = {"side": side, "multiple_of": multiple, "max_length": limit}
    with mock.patch.object(batch_module, "_TINY", tiny):  # both ways of filling
        got = batch.to_padded(-7, **options)
        turned = batch.to_padded(-7, **options, time_first=True)
    mask = batch.mask(**options)
    turned_mask = batch.mask(**options, time_first=True)

    np.testing.assert_array_equal(turned.swapaxes(0, 1), got)
    np.testing.assert_array_equal(turned_mask.T, mask)
    assert turned.flags.c_contiguous and turned_mask.flags.c_contiguous
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
        ([1, 2, 3], [[0], [1, 3]]),
        ([1, 2, 3], [0, 3], [[3.2]]),
        ([1, 2, 3], [0, 3], [["3"]]),
        ([1, 2, 3], [0, 3], [[1], [1, 2]]),
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

    pieces = list(batch.spans(np.array([0, a, b, len(arrays)])))
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


def parts(batch: rs.RaggedBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return batch.values, batch.offsets, batch.shapes


def as_lists(arrays: Any) -> list[Any]:
    return [array.tolist() for array in arrays]


@given(st.data(), st.integers(0, 3), st.booleans())
def test_nested_lists_are_those_of_the_samples_there_and_back(
    data: Any, ndim: int, large: bool
) -> None:
    arrays = data.draw(lists(ndim))
    batch = rs.RaggedBatch.from_list(arrays, "i4", ndim)
    depth = data.draw(st.none() | st.integers(batch.ragged_ndim, ndim))

    awkward, arrow = batch.to_awkward(depth), batch.to_arrow(depth, large=large)

    assert awkward.to_list() == arrow.to_pylist() == as_lists(arrays)
    arrow.validate(full=True)
    for back in (rs.RaggedBatch.from_awkward(awkward), rs.RaggedBatch.from_arrow(arrow)):
        assert as_lists(back) == as_lists(arrays)
        assert back.dtype == "i4"
        # Of no lists nobody knows how long they would have been.
        full = [array.size > 0 for array in arrays]
        assert (back.shapes[full] == batch.shapes[full]).all()
        rs.RaggedBatch(*parts(back))  # which checks that they agree
    assert awkward.to_list() == ak.from_arrow(arrow).to_list()


def test_ragged_dimensions_are_counted_until_all_samples_agree() -> None:
    def of(*shapes: tuple[int, ...], ndim: int = 1) -> int:
        return rs.RaggedBatch.from_list([np.zeros(s) for s in shapes], "f8", ndim).ragged_ndim

    assert of((2,), (3,)) == of((2, 5), (2, 5)) == of((0, 5, 3), (2, 5, 3)) == of() == 1
    assert of((2, 4, 3), (2, 5, 3)) == of((), ndim=0) + 2 == 2
    assert of((1, 4, 3), (1, 4, 2)) == 3


def test_fixed_dimensions_have_a_fixed_size_in_the_types() -> None:
    batch = rs.RaggedBatch(np.zeros((5, 80), "f4"), [0, 2, 5])

    assert str(batch.to_awkward().type) == "2 * var * 80 * float32"
    assert str(batch.to_awkward(2).type) == "2 * var * var * float32"
    assert batch.to_arrow().type == pa.large_list(pa.list_(pa.float32(), 80))
    assert batch.to_arrow(2, large=False).type == pa.list_(pa.list_(pa.float32()))
    for wrong in (0, 3):
        with pytest.raises(rs.UsageError, match="between 1"):
            batch.to_awkward(wrong)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_keeps_its_values(dtype: np.dtype[Any]) -> None:
    native = dtype.newbyteorder("=")
    values = np.arange(6).astype(dtype)
    batch = rs.RaggedBatch(values, [0, 2, 6])

    shared = batch.to_torch().values
    assert shared.numpy().dtype == native
    assert shared.tolist() == values.tolist()
    assert np.shares_memory(shared.numpy(), values) == dtype.isnative
    assert torch.from_dlpack(batch.to_dlpack().values).tolist() == values.tolist()
    assert rs.RaggedBatch.from_awkward(batch.to_awkward()).values.tolist() == values.tolist()
    assert rs.RaggedBatch.from_awkward(batch.to_awkward()).dtype == native
    if dtype.kind == "c":
        with pytest.raises(rs.UsageError, match="complex"):
            batch.to_arrow()
        return
    back = rs.RaggedBatch.from_arrow(batch.to_arrow())
    assert back.values.tolist() == values.tolist() and back.dtype == native


def test_a_dtype_that_others_lack_is_refused() -> None:
    batch = rs.RaggedBatch(np.zeros(3, np.longdouble), [0, 3])

    for convert in (batch.to_torch, batch.to_torch_nested, batch.to_dlpack, batch.to_arrow):
        with pytest.raises(rs.UsageError, match=r"no dtype like (float128|float96|longdouble)"):
            convert()


def test_writable_values_are_shared_with_all() -> None:
    batch = rs.RaggedBatch(np.zeros((6, 2)), [0, 1, 6])
    values = batch.values

    tensors = batch.to_torch()
    assert [t.data_ptr() for t in tensors] == [part.ctypes.data for part in parts(batch)]
    assert batch.to_torch_nested().values().data_ptr() == values.ctypes.data
    assert all(a is b for a, b in zip(batch.to_dlpack(), parts(batch), strict=True))
    assert np.shares_memory(ak.to_numpy(ak.flatten(batch.to_awkward())), values)
    leaf = batch.to_arrow().flatten().flatten()
    assert leaf.buffers()[1].address == values.ctypes.data
    assert np.shares_memory(rs.RaggedBatch.from_awkward(batch.to_awkward()).values, values)
    assert np.shares_memory(rs.RaggedBatch.from_arrow(batch.to_arrow()).values, values)

    tensors.values[3] = 7
    assert batch[1][0, 1] == 7
    assert tensors.lengths.tolist() == [1, 5]


def test_memory_that_may_not_be_written_to_is_never_handed_out_to_be_written() -> None:
    data = np.arange(6.0)
    frozen = data[:]
    frozen.flags.writeable = False
    shapes = np.broadcast_to(np.array([[3]]), (2, 1))  # read-only, and each row the same memory
    batch = rs.RaggedBatch.trusted(frozen, np.array([0, 3, 6]), shapes)

    handed_out = [
        *batch.to_torch(),
        batch.to_torch_nested().values(),
        *(torch.from_dlpack(part) for part in batch.to_dlpack()),
    ]
    for tensor in handed_out:
        tensor.fill_(-1)
    assert data.tolist() == [0, 1, 2, 3, 4, 5]
    assert shapes.tolist() == [[3], [3]]
    arrow = rs.RaggedBatch.from_arrow(batch.to_arrow())
    assert np.shares_memory(arrow.values, data) and not arrow.values.flags.writeable
    arrow.to_torch().values.fill_(-1)
    assert data.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12)[::2],
        np.arange(6)[::-1],
        np.zeros(6, [("tag", "i1"), ("value", "i4")])["value"],
        np.frombuffer(bytearray(49), "i8", 6, offset=1),
    ],
    ids=["steps", "backwards", "records", "unaligned"],
)
def test_values_that_are_a_view_of_something_else(values: np.ndarray) -> None:
    batch = rs.RaggedBatch(values, [0, 2, 6])
    want = as_lists(batch)

    assert [t.tolist() for t in batch.to_torch_nested().unbind()] == want
    assert batch.to_torch().values.tolist() == values.tolist()
    assert torch.from_dlpack(batch.to_dlpack().values).tolist() == values.tolist()
    assert batch.to_awkward().to_list() == batch.to_arrow().to_pylist() == want


@given(st.data(), st.integers(1, 3))
def test_a_nested_tensor_holds_the_samples(data: Any, ndim: int) -> None:
    lengths = data.draw(st.lists(st.integers(0, 4), max_size=5))
    tail = data.draw(st.tuples(*[st.integers(0, 3)] * (ndim - 1)))
    arrays = [np.random.default_rng(i).random((n, *tail)) for i, n in enumerate(lengths)]
    batch = rs.RaggedBatch.from_list(arrays, "f8", ndim)

    nested = batch.to_torch_nested()

    assert nested.layout == torch.jagged and nested.dim() == ndim + 1
    assert [t.tolist() for t in nested.unbind()] == as_lists(arrays)
    assert nested.offsets().tolist() == batch.cu_seqlens.tolist()


def test_a_nested_tensor_of_what_it_cannot_hold_is_refused() -> None:
    images = rs.RaggedBatch.from_list([np.zeros((2, 3)), np.zeros((2, 4))])
    numbers = rs.RaggedBatch.from_list([1, 2])

    with pytest.raises(rs.UsageError, match="to_padded"):
        images.to_torch_nested()
    with pytest.raises(rs.UsageError, match="scalars"):
        numbers.to_torch_nested()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([[1, None], [2]], "missing.* 1 level"),
        ([[1], None], "missing.* among its samples"),
        ([[1], 2], "union"),
        ([[1], ["a"]], "union"),
        (["ab"], "string"),
        ([{"a": 1}], "a: int64"),
        ([[[1, 2], [3]]], "sample 0 is no 2-dimensional array: its dimension 1 is 2 .* 1"),
        ([[[1]], [], [[1], [2, 3]]], "sample 2 "),
        (np.array(["2020"], "M8[D]"), "datetime64"),
    ],
)
def test_awkward_arrays_that_are_no_batch_are_refused(array: Any, message: str) -> None:
    with pytest.raises(rs.SampleError, match=message):
        rs.RaggedBatch.from_awkward(ak.Array(array))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pa.array([[1, None], [2]]), "missing.* 1 level"),
        (pa.array([[1], None]), "missing.* among its samples"),
        (pa.array(["ab"]), "string"),
        (pa.array([["ab"]]), "string"),
        (pa.nulls(2), "missing"),
        (pa.array([[None]]), "missing"),
        (pa.array([{"a": 1}]), "struct"),
        (pa.array([[[1, 2], [3]]]), "sample 0 is no 2-dimensional array"),
    ],
)
def test_arrow_arrays_that_are_no_batch_are_refused(array: Any, message: str) -> None:
    with pytest.raises(rs.SampleError, match=message):
        rs.RaggedBatch.from_arrow(array)
    with pytest.raises(rs.UsageError, match="Table"):
        rs.RaggedBatch.from_arrow(pa.table({"column": array}))


def test_slices_and_options_of_others_arrays_come_in() -> None:
    lists = [[[1, 2]], [[3, 4], [5, 6]], [], [[7, 8]]]
    fixed = pa.array(lists, pa.list_(pa.list_(pa.int16(), 2)))
    chunked = pa.chunked_array([fixed[:1], fixed[1:3], fixed[3:]])

    for arrow in (
        fixed[1:],
        chunked[1:],
        pa.array(lists)[1:],
        fixed.cast(pa.list_(fixed.type.value_type))[1:],
    ):
        back = rs.RaggedBatch.from_arrow(arrow)
        assert as_lists(back) == lists[1:]
        assert as_lists(rs.RaggedBatch.from_awkward(ak.from_arrow(arrow))) == lists[1:]
    assert rs.RaggedBatch.from_arrow(fixed).shapes.tolist() == [[1, 2], [2, 2], [0, 2], [1, 2]]
    assert as_lists(rs.RaggedBatch.from_awkward(ak.Array([[1], None, [2]])[[0, 2]])) == [[1], [2]]
    assert rs.RaggedBatch.from_awkward(ak.Array([[], []])).lengths.tolist() == [0, 0]
    assert rs.RaggedBatch.from_awkward(ak.Array(np.zeros((3, 2)))).shapes.tolist() == [[2]] * 3


def test_masked_values_are_no_batch() -> None:
    masked = np.ma.masked_array([1, 2, 3], [False, True, False])
    with pytest.raises(rs.SampleError, match="fill them first"):
        rs.RaggedBatch(masked, [0, 3])
    with pytest.raises(rs.SampleError, match="fill them first"):
        rs.RaggedBatch.from_list([np.arange(2), masked])
    assert rs.RaggedBatch(np.ma.masked_array([1, 2]), [0, 2])[0].tolist() == [1, 2]


def test_lists_of_nothing_come_in_from_arrow_as_from_awkward() -> None:
    for made in (
        rs.RaggedBatch.from_arrow(pa.array([[], []])),
        rs.RaggedBatch.from_awkward(ak.Array([[], []])),
    ):
        assert len(made) == 2 and made.lengths.tolist() == [0, 0]


def test_samples_come_from_any_iterable_once() -> None:
    samples = [np.arange(i, dtype="i2") for i in range(4)]
    batch = rs.RaggedBatch.from_list(sample for sample in samples)
    assert batch.dtype == np.int16 and [len(s) for s in batch] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("samples", "dtype"),
    [
        ([np.array([300, -1])], "u1"),
        ([[300]], "u1"),
        ([np.array([np.nan, 1.7])], "i2"),
        ([[0.5]], "i4"),
        ([np.array([2**63], "u8"), np.array([-(2**62) - 1])], None),
        ([[[1, 2], [3]]], None),
    ],
)
def test_samples_that_do_not_convert_without_loss_are_refused(samples: Any, dtype: Any) -> None:
    with pytest.raises(rs.SampleError):
        rs.RaggedBatch.from_list(samples, dtype)


def test_a_list_keeps_its_byte_order_and_mixes_what_can_be_mixed() -> None:
    swapped = rs.RaggedBatch.from_list([np.arange(3), np.arange(2)], ">i4")
    mixed = rs.RaggedBatch.from_list([[1, 2], [0.5]])
    assert swapped.dtype == np.dtype(">i4") and swapped[0].tolist() == [0, 1, 2]
    assert mixed.dtype == np.float64 and mixed[1].tolist() == [0.5]


@pytest.mark.parametrize("shape", [[2**32, 2**32], [2**62 + 1, 4]])
def test_shapes_whose_product_is_no_int64_are_refused(shape: list[int]) -> None:
    count = (shape[0] * shape[1]) % 2**64
    with pytest.raises(rs.SampleError, match="do not multiply"):
        rs.RaggedBatch(np.zeros(count), [0, count], [shape])


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("i4", np.nan), ("i4", np.inf), ("i4", 2.0**40), ("i4", 2**40), ("i4", 0.5), ("i4", "7"),
     ("u1", -1), ("?", 2), ("f4", 1j), ("f4", 1e300), ("i8", 2**70), ("f8", None)],
)  # fmt: skip
def test_a_value_that_the_dtype_lacks_does_not_fill(dtype: str, value: Any) -> None:
    batch = rs.RaggedBatch.from_list([np.zeros(1, dtype), np.zeros(2, dtype)])
    with pytest.raises(rs.UsageError, match="no value to fill"):
        batch.to_padded(value)


@pytest.mark.parametrize(
    ("dtype", "value"), [("i4", True), ("i4", 3.0), ("f4", 0.1), ("f4", np.nan), ("c8", 1j)]
)
def test_a_value_that_it_has_fills(dtype: str, value: Any) -> None:
    batch = rs.RaggedBatch.from_list([np.zeros(1, dtype), np.zeros(2, dtype)])
    np.testing.assert_array_equal(batch.to_padded(value)[0, 1], np.array(value).astype(dtype))


def test_samples_of_no_numbers_are_put_together_as_numpy_does() -> None:
    dates = np.array(["2020-01-01", "2020-01-02"], "M8[D]")
    assert rs.RaggedBatch.from_list([["a", "bcd"], ["c"]]).values.tolist() == ["a", "bcd", "c"]
    assert rs.RaggedBatch.from_list([dates, dates[:1]], "M8[s]").dtype == np.dtype("M8[s]")
    padded = rs.RaggedBatch.from_list([dates, dates[:1]]).to_padded(np.datetime64("NaT"))
    assert np.isnat(padded[1, 1]) and padded[0, 1] == dates[1]
    assert rs.RaggedBatch.from_list([["a"], ["b", "c"]]).to_padded("")[0, 1] == ""


def test_empty_lists_have_no_type_of_their_own() -> None:
    batch = rs.RaggedBatch.from_list([[], np.array([2**60 + 1])])
    assert batch.dtype == np.int64 and batch[1].tolist() == [2**60 + 1]
    assert rs.RaggedBatch.from_list([[], [1, 2]]).dtype == np.int64


def test_large_ints_fill_floats() -> None:
    batch = rs.RaggedBatch.from_list([np.zeros(1, "f4"), np.zeros(2, "f4")])
    assert batch.to_padded(10**30)[0, 1] == np.float32(1e30)


@pytest.mark.parametrize("samples", [None, 5])
def test_what_is_no_list_of_samples_is_refused(samples: Any) -> None:
    with pytest.raises(rs.SampleError):
        rs.RaggedBatch.from_list(samples)
    with pytest.raises(rs.UsageError, match="dtype"):
        rs.RaggedBatch.from_list([[1]], "nothing")


def test_lists_too_deep_for_an_array_are_refused() -> None:
    deep: Any = [1]
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(rs.SampleError, match="not an array"):
        rs.RaggedBatch.from_list([deep])


@pytest.mark.parametrize("wrong", [2.5, "2", True, -1, 2**63])
def test_padded_lengths_are_ints(wrong: Any) -> None:
    batch = rs.RaggedBatch.from_list([[1, 2, 3], [4]])
    for what in "max_length", "multiple_of":
        with pytest.raises(rs.UsageError, match=what):
            batch.to_padded(**{what: wrong})
        with pytest.raises(rs.UsageError, match=what):
            batch.mask(**{what: wrong})


def test_values_to_fill_with_must_broadcast() -> None:
    batch = rs.RaggedBatch.from_list([[1, 2, 3], [4]])
    assert batch.to_padded([7, 8, 9]).tolist() == [[1, 2, 3], [4, 8, 9]]
    with pytest.raises(rs.UsageError, match="fill"):
        batch.to_padded([1, 2])


@pytest.mark.parametrize("wrong", [None, 5, [[1], [2]], {"a": 1}])
def test_from_awkward_takes_awkward_arrays_alone(wrong: Any) -> None:
    pytest.importorskip("awkward")
    with pytest.raises(rs.UsageError, match="awkward"):
        rs.RaggedBatch.from_awkward(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: rs.RaggedBatch.from_list([[1]], dtype="i4,("),
        lambda: rs.RaggedBatch.from_list([], ndim=-1),
        lambda: rs.RaggedBatch.from_list([np.array(["2020"], "M8[D]"), np.array([1])]),
        lambda: rs.RaggedBatch.from_list([[1]]).mask(multiple_of=2**62),
        lambda: rs.RaggedBatch.from_list([[1]]).to_padded(multiple_of=2**62),
        lambda: rs.Items({"a": np.zeros(2)}).zip(1),  # type: ignore[arg-type]
        lambda: rs.Compression(filters=None),  # type: ignore[arg-type]
        lambda: rs.Compression(codec=["zstd"]),  # type: ignore[arg-type]
        lambda: rs.Field("str", np.array([3, 4])),  # type: ignore[arg-type]
    ],
)
def test_arguments_that_make_no_sense_are_errors_of_ours(wrong: Any) -> None:
    with pytest.raises(rs.RaggedStoreError):
        wrong()

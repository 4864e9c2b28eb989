"""An index means what it means on a NumPy array."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.indexing import as_position, as_positions, is_single, split_by_part, stable_order
from tests import strategies
from tests.model import at


@given(st.data(), st.integers(0, 8))
def test_any_key_gives_what_numpy_gives_or_its_error(data: Any, length: int) -> None:
    key = data.draw(strategies.keys(length))
    try:
        want = at(list(range(length)), key)
    except (IndexError, TypeError) as error:
        kind = type(error)
        with pytest.raises(kind) as caught:
            as_position(key, length) if is_single(key) else as_positions(key, length)
        assert isinstance(caught.value, rs.RaggedStoreError)
    else:
        if is_single(key):
            assert as_position(key, length) == want
        else:
            got = as_positions(key, length)
            assert got.dtype == np.int64
            assert got.tolist() == want


@pytest.mark.parametrize("key", [True, np.bool_(False), "3", b"3", {1: 2}, 1j, [[0]], ["a"], [1.0]])
def test_what_is_no_index_is_an_index_error_and_a_type_error(key: Any) -> None:
    with pytest.raises(rs.KeyTypeError) as caught:
        as_positions(key, 5)
    assert isinstance(caught.value, IndexError)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("key", [5, -6, 2**63, -(2**80), [0, 5], [2**70], np.array([2**64 - 1])])
def test_far_out_of_range_says_so(key: Any) -> None:
    with pytest.raises(IndexError, match="out of range for length 5"):
        as_positions(key, 5)


def test_unsigned_and_zero_dimensional_indices_count_as_integers() -> None:
    assert as_positions(np.array([4, 0], np.uint8), 5).tolist() == [4, 0]
    assert as_position(np.array(-1), 5) == 4


@pytest.mark.usefixtures("either_kernel")
@given(st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**63 - 1)), max_size=200))
def test_stable_order_is_numpys_stable_order(keys: list[int]) -> None:
    array = np.array(keys, np.int64)
    assert stable_order(array).tolist() == np.argsort(array, kind="stable").tolist()


@given(
    st.integers(0, 3000),
    st.integers(0, 2**32),
    st.sampled_from([1, 5, 22, 31, 32, 33, 40, 63]),
    st.sampled_from([0, 10, 30, 50]),
)
def test_stable_order_of_keys_of_many_bits_whether_or_not_their_upper_ones_tell_them_apart(
    count: int, seed: int, bits: int, alike: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 2**bits, count)
    array[::3] |= (2**62 >> (63 - bits)) if count % 2 else 0
    array[: count // 2] >>= alike  # half of them differ in their lower bits alone
    array[count // 4 :: 5] = array[: len(array[count // 4 :: 5])]
    assert stable_order(array).tolist() == np.argsort(array, kind="stable").tolist()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_split_by_part_says_where_each_position_lies_and_where_it_was_asked_for(
    sizes: list[int], data: Any
) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)])
    total = int(starts[-1])
    position = st.integers(0, max(total - 1, 0))
    asked = np.array(data.draw(st.lists(position, max_size=12 if total else 0)), np.int64)

    found = split_by_part(starts, asked)

    assert [part for part, _, _ in found] == sorted({part for part, _, _ in found})
    for part, local, places in found:
        assert len(local) == len(places) > 0 and (np.diff(places) > 0).all()
        assert (local < sizes[part]).all()
        assert (local + starts[part]).tolist() == asked[places].tolist()
    assert sum(len(places) for _, _, places in found) == len(asked)

"""Keys: an order of 0, 1, 2, … that can be entered anywhere and is stable under appending."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training.keys import Keys, check_seed, derive_key, hashed, shuffled

GOLDEN_KEY = [18001877160497339420, 695234760586458207]
GOLDEN_HASHES = [18160848763308427839, 17981965951837823709, 2952556085705516096]
GOLDEN_EXACT = [2, 0, 4, 5, 7, 9, 1, 8, 3, 6]
GOLDEN_EVEN = [8, 6, 0, 7, 3, 2, 4, 9, 1, 5]
GOLDEN_LARGE = [1055371, 1358267, 82028, 1273683, 1564010]
GOLDEN_SHUFFLED = [5, 7, 3, 1, 2, 6, 0, 4]

EXACT = st.sampled_from([0, 1, 3, 20])
PARTS = st.sampled_from([1, 2, 4, 64])


def order(n: int, exact: int, parts: int = 1, seed: int = 0) -> list[int]:
    keys = Keys(derive_key(seed), exact=exact)
    return np.concatenate([keys.part(n, i, parts) for i in range(parts)]).tolist()


@given(st.integers(0, 500), EXACT, PARTS, st.integers(0, 2**64 - 1))
def test_parts_hold_each_number_once_in_one_order(
    n: int, exact: int, parts: int, seed: int
) -> None:
    whole = order(n, exact, 1, seed)

    assert sorted(whole) == list(range(n))
    assert order(n, exact, parts, seed) == whole
    pieces = Keys(derive_key(seed), exact=exact).parts(n, parts)
    assert len(pieces) == parts and np.concatenate(pieces).tolist() == whole


@given(st.integers(0, 300), st.integers(0, 300), EXACT)
def test_old_numbers_keep_their_order_when_new_ones_come(n: int, more: int, exact: int) -> None:
    assert [i for i in order(n + more, exact) if i < n] == order(n, exact)


def test_keys_beyond_the_exact_ones_are_spread_evenly() -> None:
    keys = Keys(derive_key(1), exact=0)

    assert all(250 <= len(keys.part(2**12, i, 16)) <= 262 for i in range(16))


def test_an_order_does_not_remember_where_numbers_were() -> None:
    got = np.array(order(20_000, 20))

    assert abs(np.corrcoef(got, np.arange(len(got)))[0, 1]) < 0.03
    assert abs(np.corrcoef(got[1:], got[:-1])[0, 1]) < 0.03
    # Neighbours end up as far apart as chance would have them: a third of the whole.
    place = np.argsort(got)
    assert 0.30 < np.abs(np.diff(place)).mean() / len(got) < 0.36


def test_every_order_of_four_is_as_likely() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(4800):
        one = tuple(order(4, 20, seed=seed))
        seen[one] = seen.get(one, 0) + 1

    assert len(seen) == 24
    chi2 = sum((n - 200) ** 2 / 200 for n in seen.values())
    assert chi2 < 49.7  # 23 degrees of freedom, one in a thousand


def test_the_keys_are_the_same_on_every_machine() -> None:
    assert derive_key(1, 2, 3).tolist() == GOLDEN_KEY
    assert hashed(np.arange(3), derive_key(5)).tolist() == GOLDEN_HASHES
    assert order(10, 20) == GOLDEN_EXACT
    assert order(10, 0) == GOLDEN_EVEN
    assert Keys(derive_key(0)).part(2**21, 77, 2**18).tolist() == GOLDEN_LARGE
    assert shuffled(np.arange(8), derive_key(9)).tolist() == GOLDEN_SHUFFLED


@given(st.lists(st.integers(0, 2**62), unique=True, max_size=50))
def test_hashes_are_all_different(numbers: list[int]) -> None:
    assert len(set(hashed(np.array(numbers, np.int64), derive_key(0)).tolist())) == len(numbers)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True, "1", None])
def test_seeds_that_are_none_are_refused(seed: object) -> None:
    with pytest.raises(rs.UsageError, match="seed"):
        check_seed(seed)


@given(n=st.integers(0, 1500), exact=EXACT, parts=PARTS)
def test_the_sizes_of_parts_are_counted_without_making_them(n: int, exact: int, parts: int) -> None:
    keys = Keys(derive_key(n, parts), exact=exact)
    assert keys.sizes(n, parts).tolist() == [len(keys.part(n, i, parts)) for i in range(parts)]

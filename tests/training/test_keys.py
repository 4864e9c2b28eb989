"""Keys: an order of 0, 1, 2, … that can be entered anywhere and is stable under appending."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import kernel
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


WORDS = st.integers(0, 2**64 - 1)


@pytest.mark.skipif(not kernel.is_there(), reason="the kernel is not compiled here")
@given(
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    key=st.tuples(WORDS, WORDS),
    many=st.booleans(),
)
def test_hashes_are_the_same_with_and_without_the_kernel(
    numbers: list[int], key: tuple[int, int], many: bool
) -> None:
    array = np.array(numbers * (1000 if many else 1), np.int64)
    words = np.array(key, np.uint64)

    by_kernel = hashed(array, words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_compiled", None)
        np.testing.assert_array_equal(by_kernel, hashed(array, words))


@pytest.mark.skipif(not kernel.is_there(), reason="the kernel is not compiled here")
@given(
    values=st.lists(
        st.integers(0, 62).flatmap(lambda b: st.tuples(st.integers(0, 2**b - 1), st.just(b))),
        max_size=30,
    ),
    seed=WORDS,
    back=st.booleans(),
)
def test_permutations_are_the_same_with_and_without_the_kernel_and_run_backwards(
    values: list[tuple[int, int]], seed: int, back: bool
) -> None:
    numbers, bits = np.array(values, np.int64).reshape(-1, 2).T
    keys = Keys(derive_key(seed))

    by_kernel = keys._permuted(numbers, bits, back=back)
    assert (keys._permuted(by_kernel, bits, back=not back) == numbers).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_compiled", None)
        np.testing.assert_array_equal(by_kernel, keys._permuted(numbers, bits, back=back))


@pytest.mark.skipif(not kernel.is_there(), reason="the kernel is not compiled here")
def test_the_kernel_permutes_no_values_of_more_than_63_bits_nor_other_arrays() -> None:
    rounds, three = np.zeros(10, np.uint64), np.zeros(3, np.int64)
    permute, hash_ = kernel.compiled().permute, kernel.compiled().hash
    for bits in (-1, 64, 2**62):
        with pytest.raises(ValueError, match="64 bits"):
            permute(three, np.full(3, bits), rounds, False, three.copy())
    for values, widths, out in ((three[:2], three, three), (three, three, three[:2])):
        with pytest.raises(ValueError, match="belong together"):
            permute(values, widths, rounds, False, out.copy())
    with pytest.raises(ValueError, match="belong together"):
        hash_(three, 1, 2, three[:2].copy())

"""Permutations: each value once, the same everywhere, and each order as likely as another."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training.permutation import Permutation, derive_key

KEYS = st.integers(0, 2**64 - 1).map(derive_key)


class Network(Permutation):
    """The Feistel network also for few values, where all can be looked at."""

    def __init__(self, n: int, key: np.ndarray) -> None:
        super().__init__(2**20 + n, key)
        self.n = n
        self._left = int(np.ceil(np.sqrt(n)))
        self._right = -(-n // self._left)


@given(st.integers(0, 3000), KEYS)
def test_each_value_comes_once(n: int, key: np.ndarray) -> None:
    assert np.sort(Permutation(n, key)(np.arange(n))).tolist() == list(range(n))


@given(st.integers(1, 3000), KEYS)
def test_each_value_comes_once_out_of_the_network(n: int, key: np.ndarray) -> None:
    assert np.sort(Network(n, key)(np.arange(n))).tolist() == list(range(n))


@pytest.mark.parametrize("n", [2**20 - 1, 2**20, 2**20 + 1, 2**20 + 12_345])
def test_each_value_comes_once_where_the_way_changes(n: int) -> None:
    values = Permutation(n, derive_key(7))(np.arange(n))

    assert (np.bincount(values, minlength=n) == 1).all() and len(values) == n


@settings(max_examples=30)
@given(st.integers(2**20 + 1, 2**62 - 1), KEYS, st.data())
def test_a_large_permutation_stays_within_range(
    n: int, key: np.ndarray, data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=50))

    values = Permutation(n, key)(indices)

    assert ((values >= 0) & (values < n)).all()
    assert len(np.unique(values)) == len(indices)


def test_values_are_the_same_on_every_machine() -> None:
    assert derive_key(1, 2, 2**40).tolist() == [9241876457997484257, 4338646326585511090]
    small = Permutation(10, derive_key(0, 0, 0))
    assert small(np.arange(10)).tolist() == [1, 0, 5, 7, 3, 6, 4, 8, 9, 2]
    middle = Permutation(2**20, derive_key(3))
    assert middle([0, 1, 2, 2**20 - 1]).tolist() == [424219, 817847, 803167, 444359]
    large = Permutation(10**12, derive_key(5, 1))
    assert large([0, 1, 2, 10**12 - 1]).tolist() == [
        662793845063,
        373162342473,
        621497066842,
        22889444383,
    ]


@pytest.mark.parametrize("kind", [Permutation, Network])
@pytest.mark.parametrize("n", [4, 5])
def test_each_order_is_as_likely_as_another(n: int, kind: type[Permutation]) -> None:
    orders = {order: i for i, order in enumerate(itertools.permutations(range(n)))}
    counts = np.zeros(len(orders))
    for seed in range(30 * len(orders)):
        counts[orders[tuple(kind(n, derive_key(seed))(np.arange(n)).tolist())]] += 1

    chi_square = ((counts - 30) ** 2 / 30).sum()

    # Five standard deviations over what chance gives on average.
    freedom = len(orders) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_places_of_a_large_permutation_are_spread_evenly() -> None:
    n = 3 * 2**20
    values = Permutation(n, derive_key(11))(np.arange(2**17))

    counts = np.histogram(values, bins=64, range=(0, n))[0]

    mean = 2**17 / 64
    assert ((counts - mean) ** 2 / mean).sum() < 63 + 5 * np.sqrt(2 * 63)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(2**17)


def test_keys_differ_by_each_number_and_its_place() -> None:
    numbers = [(), (0,), (0, 0), (1, 0), (0, 1), (2**32, 0), (0, 2**32), (1, 1), (1, 2**32)]

    assert len({tuple(derive_key(*n).tolist()) for n in numbers}) == len(numbers)


def test_nobody_permutes_a_negative_number_of_values() -> None:
    with pytest.raises(rs.UsageError):
        Permutation(-1, derive_key(0))

"""Orders: each sample exactly once, in an order that depends on seed and epoch alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training import Permuted, Sequential, Shuffled
from raggedstore.training.orders import Epoch, Order

SEEDS = st.integers(0, 2**64 - 1)


def orders() -> st.SearchStrategy[Order]:
    windows = st.integers(1, 10_000)
    return st.one_of(
        st.just(Sequential()),
        SEEDS.map(Permuted),
        st.builds(Shuffled, seed=SEEDS, window=windows),
    )


def epoch(number: int = 0, samples: int = 1000, **changed: Any) -> Epoch:
    values = {"sample_bytes": 10.0, "read_samples": 64, "window_bytes": 2**30}
    return Epoch(number, samples, **{**values, **changed})


def emitted(order: Order, bound: Epoch) -> list[int]:
    out: list[int] = []
    for read in order.reads(bound):
        places = slice(None) if read.emission is None else read.emission
        out += read.positions[places].tolist()
    return out


@given(
    orders(),
    st.builds(
        Epoch,
        number=st.integers(0, 2**64 - 1),
        samples=st.integers(0, 500),
        sample_bytes=st.floats(1, 1000),
        read_samples=st.integers(1, 100),
        window_bytes=st.integers(1, 100_000),
    ),
)
def test_each_sample_comes_exactly_once(order: Order, bound: Epoch) -> None:
    got = emitted(order, bound)

    assert sorted(got) == list(range(bound.samples))
    assert got == emitted(order, bound)


@pytest.mark.parametrize("order", [Permuted(), Shuffled(window=2000)])
def test_epochs_and_seeds_have_orders_of_their_own(order: Any) -> None:
    other = type(order)(seed=1) if isinstance(order, Permuted) else Shuffled(1, 2000)
    got = [emitted(o, epoch(number)) for o in (order, other) for number in (0, 1, 2)]

    assert len({tuple(g) for g in got}) == 6


def test_orders_are_the_same_on_every_machine() -> None:
    assert emitted(Permuted(seed=1), epoch(2, 8)) == [6, 1, 4, 5, 3, 2, 0, 7]
    assert emitted(Shuffled(seed=1, window=60), epoch(2, 14)) == [
        6,
        9,
        10,
        7,
        11,
        8,
        0,
        4,
        5,
        2,
        12,
        1,
        13,
        3,
    ]


@given(st.integers(0, 2000), st.integers(40, 5000))
def test_a_window_is_of_two_blocks_at_least_and_read_in_file_order(samples: int, size: int) -> None:
    bound = epoch(samples=samples)
    windows = Shuffled(window=size).bind(bound)
    for number in range(len(windows)):
        positions = windows[number].positions
        assert (np.diff(positions) > 0).all()
        blocks = np.unique(positions // windows.block)
        assert len(blocks) >= min(2, windows.blocks)
        assert len(positions) * 10 <= max(1.5 * size, 30 * windows.block)


def test_a_window_is_no_larger_than_memory_allows() -> None:
    windows = Shuffled(window="1GB").bind(epoch(samples=10_000, window_bytes=20_000))

    assert max(len(windows[i].positions) for i in range(len(windows))) * 10 <= 20_000


def test_a_window_mixes_blocks_from_all_over_the_store() -> None:
    windows = Shuffled(window=2**24).bind(epoch(samples=10_000, sample_bytes=2**16))

    assert np.ptp(windows[0].positions) > 5000


@pytest.mark.parametrize(
    "make",
    [
        lambda: Permuted(seed=-1),
        lambda: Permuted(seed=2**64),
        lambda: Permuted(seed=0.5),
        lambda: Shuffled(seed=True),
        lambda: Shuffled(window=0),
        lambda: Shuffled(window="many"),
    ],
)
def test_seeds_and_windows_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(rs.UsageError):
        make()

"""Orders: each sample exactly once, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training import Order, Permuted, Sequential, Shuffled, Weighted
from raggedstore.training.orders import Outlook

GOLDEN_PERMUTED = [2, 6, 0, 3, 1, 5, 7, 4]
GOLDEN_SHUFFLED = [11, 0, 9, 3, 4, 6, 8, 2, 10, 7, 1, 12, 5, 13]
GOLDEN_DRAWN = [3, 3, 1, 2, 2, 2, 3, 3, 3, 3]

SEEDS = st.integers(0, 2**64 - 1)


def orders() -> st.SearchStrategy[Order]:
    lanes = st.none() | st.integers(1, 4)
    return st.one_of(
        st.just(Sequential()),
        SEEDS.map(Permuted),
        st.builds(Shuffled, seed=SEEDS, window=st.integers(1, 10_000), lanes=lanes),
    )


def outlook(samples: int = 1000, **changed: Any) -> Outlook:
    values = {"sample_bytes": 10.0, "first_bytes": 10.0, "pool": 64, "window_bytes": 2**30}
    return Outlook(**{"samples": samples, "lanes": 1, **values, **changed})


def units(order: Order, seen: Outlook, epoch: int = 0, samples: int | None = None) -> Any:
    return order.bind(seen.samples if samples is None else samples, epoch, order.measure(seen))


def emitted(order: Order, seen: Outlook, epoch: int = 0, samples: int | None = None) -> list[int]:
    bound = units(order, seen, epoch, samples)
    return [i for number in range(len(bound)) for lane in bound[number] for i in lane.tolist()]


@given(
    orders(),
    st.builds(
        Outlook,
        samples=st.integers(0, 500),
        sample_bytes=st.floats(1, 1000),
        first_bytes=st.floats(1, 1000),
        pool=st.integers(1, 100),
        window_bytes=st.integers(1, 100_000),
        lanes=st.integers(1, 3),
    ),
    st.integers(0, 2**64 - 1),
)
def test_each_sample_comes_exactly_once(order: Order, seen: Outlook, epoch: int) -> None:
    got = emitted(order, seen, epoch)

    assert sorted(got) == list(range(seen.samples))
    assert got == emitted(order, seen, epoch)


@given(orders(), st.integers(0, 300), st.integers(0, 300))
def test_old_samples_keep_their_order_when_new_ones_come(
    order: Order, samples: int, more: int
) -> None:
    seen = outlook(samples)

    grown = emitted(order, seen, 3, samples + more)

    assert [i for i in grown if i < samples] == emitted(order, seen, 3)
    assert sorted(grown) == list(range(samples + more))


@pytest.mark.parametrize("order", [Permuted(), Shuffled(window=2000)])
def test_epochs_and_seeds_have_orders_of_their_own(order: Any) -> None:
    other = type(order)(seed=1) if isinstance(order, Permuted) else Shuffled(1, 2000)
    got = [emitted(o, outlook(), number) for o in (order, other) for number in (0, 1, 2)]

    assert len({tuple(g) for g in got}) == 6


def test_orders_are_the_same_on_every_machine() -> None:
    """The order contract, version 1: other values here want another ORDER_VERSION."""
    assert emitted(Permuted(seed=1), outlook(8), 2) == GOLDEN_PERMUTED
    assert emitted(Shuffled(seed=1, window=60), outlook(14), 2) == GOLDEN_SHUFFLED
    draws = emitted(Weighted([0, 1, 2, 3], seed=1, count=10), outlook(4), 2)
    assert draws == GOLDEN_DRAWN


@given(st.integers(1, 2000), st.integers(40, 5000))
def test_windows_have_about_their_size(samples: int, size: int) -> None:
    order = Shuffled(window=size)
    geometry = order.measure(outlook(samples))
    bound = order.bind(samples, 0, geometry)
    blocks = -(-samples // geometry["block"])

    assert geometry["windows"] == len(bound)
    for number in range(len(bound)):
        (lane,) = bound[number]
        held = len(np.unique(lane // geometry["block"]))
        # Blocks are spread evenly, a level of them at a time.
        assert abs(held - blocks / len(bound)) <= np.log2(blocks) + 2
    assert samples * 10 / len(bound) <= size or blocks < 4 * len(bound)


def test_blocks_do_not_change_when_samples_come() -> None:
    order = Shuffled(window="1MB")

    before = order.measure(outlook(10_000, sample_bytes=100.0))
    after = order.measure(outlook(11_000, sample_bytes=120.0))

    assert before == after


def test_windows_double_when_the_data_have_outgrown_them() -> None:
    order = Shuffled(window="1MB")
    counts = [order.measure(outlook(n))["windows"] for n in (90_000, 110_000, 190_000, 210_000)]

    assert counts == [1, 2, 2, 4]


def test_a_window_is_no_larger_than_memory_allows() -> None:
    bound = units(Shuffled(window="1GB"), outlook(10_000, window_bytes=20_000))

    sizes = [sum(map(len, bound[i])) * 10 for i in range(len(bound))]
    assert np.mean(sizes) <= 20_000 and max(sizes) < 30_000


def test_a_window_mixes_blocks_from_all_over_the_store() -> None:
    seen = outlook(10_000, sample_bytes=2.0**16, first_bytes=2.0**16)
    windows = units(Shuffled(window=2**24), seen)

    assert np.mean([np.ptp(windows[i][0]) for i in range(len(windows))]) > 5000


def test_lanes_are_windows_that_take_turns() -> None:
    one, three = Shuffled(2, window=500), Shuffled(2, window=500, lanes=3)
    windows = [units(one, outlook())[i][0].tolist() for i in range(len(units(one, outlook())))]
    grouped = units(three, outlook())

    lanes = [lane.tolist() for i in range(len(grouped)) for lane in grouped[i]]
    assert lanes == windows
    assert [len(grouped[i]) for i in range(len(grouped))] == [3] * (len(windows) // 3) + (
        [len(windows) % 3] if len(windows) % 3 else []
    )


def test_weights_draw_in_proportion() -> None:
    drawn = emitted(Weighted([1, 0, 3], seed=2, count=4000), outlook(3))

    assert drawn.count(1) == 0
    assert 2900 < drawn.count(2) < 3100 and len(drawn) == 4000


def test_balanced_classes_are_drawn_equally_often() -> None:
    labels = ["rare"] * 2 + ["common"] * 98
    drawn = emitted(Weighted.balanced(labels, seed=1, count=2000), outlook(100))

    assert 900 < sum(i < 2 for i in drawn) < 1100


@pytest.mark.parametrize(
    "make",
    [
        lambda: Permuted(seed=-1),
        lambda: Permuted(seed=2**64),
        lambda: Permuted(seed=0.5),
        lambda: Shuffled(seed=True),
        lambda: Shuffled(window=0),
        lambda: Shuffled(window="many"),
        lambda: Shuffled(lanes=0),
        lambda: Weighted([1, -1]),
        lambda: Weighted([0, 0]),
        lambda: Weighted([[1]]),
        lambda: Weighted([float("nan")]),
        lambda: Weighted(["a"]),
        lambda: Weighted([1], count=-1),
        lambda: Weighted([1, 2]).drawn(3),
        lambda: Weighted.balanced([[1]]),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(rs.UsageError):
        make()

"""Batching rules on arrays, unit after unit, against plain Python."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training.batching import Bucketed, FixedSize, Pool, Rule, TokenBudget
from raggedstore.training.keys import derive_key
from raggedstore.training.picks import Picks

Int64s = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Epoch:
    """Samples as an order gives them, unit by unit."""

    sizes: Int64s  #: (n, r) of each sample
    units: list[Int64s]
    keyed: bool = True
    drop_last: bool = False

    @property
    def order(self) -> list[int]:
        """The samples as they come."""
        return [int(i) for unit in self.units for i in unit]


@st.composite
def epochs(draw: st.DrawFn, dims: int = 1, most: int = 60, largest: int = 40) -> Epoch:
    """Up to `most` samples in up to five units."""
    shape = (draw(st.integers(0, most)), dims)
    sizes = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, largest)))
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(sizes))
    cuts = sorted(draw(st.lists(st.integers(0, len(sizes)), max_size=4)))
    return Epoch(sizes, np.split(order, cuts), draw(st.booleans()), draw(st.booleans()))


def planned(rule: Rule, epoch: Epoch, geometry: Any = None) -> list[list[Picks]]:
    """The batches of each unit; what one leaves over is handed to the next."""
    if geometry is None:
        geometry = rule.measure(lambda: epoch.sizes, 1)
    left, units = Picks.none(), []
    for number, fresh in enumerate(epoch.units):
        sizes = epoch.sizes[np.concatenate([left.positions, fresh])]
        key = derive_key(7, number) if epoch.keyed else None
        last = number == len(epoch.units) - 1
        pool = Pool(left, fresh.astype(np.int64), None, sizes, key, last, epoch.drop_last)
        batches, left = rule.plan(pool, geometry)
        assert batches.edges[0] == 0 and batches.edges[-1] == len(batches.picks)
        parts = itertools.pairwise(batches.edges.tolist())
        units.append([batches.picks.take(slice(a, b)) for a, b in parts])
        assert not (last and len(left))
    return units


def flat(units: list[list[Picks]]) -> list[list[int]]:
    """The samples of each batch."""
    return [batch.positions.tolist() for unit in units for batch in unit]


def came(units: list[list[Picks]]) -> list[int]:
    """All samples, sorted."""
    return sorted(itertools.chain.from_iterable(flat(units)))


def budgets(**fixed: Any) -> st.SearchStrategy[TokenBudget]:
    options = {"max_values": st.integers(1, 300), "multiple_of": st.sampled_from([1, 1, 4, 16])}
    return st.builds(TokenBudget, st.just("x"), **{**options, **fixed})


def buckets(which: str = "any") -> st.SearchStrategy[Bucketed]:
    """Rules with edges, with quantiles, or with none of them."""
    none, edges = st.none(), st.lists(st.integers(0, 50), unique=True, max_size=4).map(sorted)
    ways = {
        "plain": st.tuples(none, none),
        "edges": st.tuples(edges, none),
        "quantiles": st.tuples(none, st.integers(1, 5)),
    }
    way = st.one_of(*ways.values()) if which == "any" else ways[which]
    return st.builds(lambda size, way: Bucketed("x", size, *way), st.integers(1, 9), way)


RULES = st.one_of(st.integers(1, 70).map(FixedSize), budgets(padded=st.booleans()), buckets())


@given(st.integers(1, 2).flatmap(epochs), RULES)
def test_each_sample_comes_once(epoch: Epoch, rule: Rule) -> None:
    units = planned(rule, epoch)

    if epoch.drop_last:
        assert len(set(came(units))) == len(came(units))
    else:
        assert came(units) == list(range(len(epoch.sizes)))
    assert all(flat(units))
    count = rule.count(len(epoch.sizes), drop_last=epoch.drop_last)
    assert count in (None, len(flat(units)))
    assert flat(planned(rule, epoch)) == flat(units)


@given(epochs(), st.integers(1, 70))
def test_batches_of_a_fixed_size_are_the_order_cut(epoch: Epoch, size: int) -> None:
    batches = flat(planned(FixedSize(size), epoch))

    wanted = [epoch.order[i : i + size] for i in range(0, len(epoch.order), size)]
    assert batches == [b for b in wanted if len(b) == size or not epoch.drop_last]


# Values within a budget


def volume(rule: TokenBudget, sizes: Int64s) -> int:
    """Values of a batch, padded or not."""
    sizes = np.maximum(sizes, 1)
    if not rule.padded:
        return int(sizes.prod(axis=1).sum())
    longest = [int(d) for d in sizes.max(axis=0)]
    longest[0] = math.ceil(longest[0] / rule.multiple_of) * rule.multiple_of
    return len(sizes) * math.prod(longest)


def greedy(rule: TokenBudget, epoch: Epoch, samples: list[int]) -> list[list[int]]:
    """As many samples at a time as fit, of few values first where batches are padded."""
    if rule.padded:
        samples = sorted(samples, key=lambda i: int(np.maximum(epoch.sizes[i], 1).prod()))
    batches: list[list[int]] = []
    for i in samples:
        if batches and volume(rule, epoch.sizes[[*batches[-1], i]]) <= rule.max_values:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def filling(rule: TokenBudget, epoch: Epoch, samples: list[int]) -> int:
    """How many of the first samples make batches of which the last is filled too."""
    batches = greedy(rule, epoch, samples)
    if not batches:
        return 0
    if rule.padded:
        one_more = volume(rule, epoch.sizes[[*batches[-1], batches[-1][-1]]])
        full = one_more > rule.max_values
    else:
        full = volume(rule, epoch.sizes[batches[-1]]) >= rule.max_values
    if full:
        return len(samples)
    fewer = [k for k in range(len(samples)) if len(greedy(rule, epoch, samples[:k])) < len(batches)]
    return max(fewer)


@given(st.integers(1, 2).flatmap(epochs), budgets(padded=st.booleans()))
def test_no_batch_is_over_the_budget(epoch: Epoch, rule: TokenBudget) -> None:
    for batch in flat(planned(rule, epoch)):
        assert len(batch) == 1 or volume(rule, epoch.sizes[batch]) <= rule.max_values


@given(st.integers(1, 2).flatmap(epochs), budgets(padded=st.booleans()))
def test_batches_hold_as_many_as_fit(epoch: Epoch, rule: TokenBudget) -> None:
    held: list[int] = []
    for number, batches in enumerate(planned(rule, epoch)):
        held += epoch.units[number].tolist()
        last = number == len(epoch.units) - 1
        takes_all = last and not epoch.drop_last
        count = len(held) if takes_all else filling(rule, epoch, held)
        wanted = greedy(rule, epoch, held[:count])
        if not (rule.padded and epoch.keyed):
            wanted.sort(key=lambda batch: min(map(held.index, batch)))
            assert flat([batches]) == wanted
        assert sorted(flat([batches])) == sorted(wanted)
        del held[:count]


def test_the_longest_do_not_wait_for_the_end_of_the_epoch() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 1000, (8000, 1))
    epoch = Epoch(sizes, np.split(rng.permutation(8000), 8))
    units = planned(TokenBudget("x", 20_000), epoch)

    longest = np.argsort(sizes[:, 0])[-160:]
    each = [np.isin(np.concatenate(flat([unit])), longest).sum() for unit in units]
    assert min(each) > 8 and max(each) < 36


# Buckets


def bucket_of(rule: Bucketed, epoch: Epoch, i: int) -> int:
    """Counted in plain Python; without edges there is one bucket."""
    edges = rule.measure(lambda: epoch.sizes, 1).get("edges", [])
    return sum(int(epoch.sizes[i].prod()) >= edge for edge in edges)


@given(st.integers(1, 2).flatmap(epochs), buckets())
def test_buckets_make_whole_batches_and_one_short_one_each(epoch: Epoch, rule: Bucketed) -> None:
    batches = flat(planned(rule, epoch))

    order = epoch.order
    for number in {bucket_of(rule, epoch, i) for i in order}:
        mine = [i for i in order if bucket_of(rule, epoch, i) == number]
        got = [batch for batch in batches if bucket_of(rule, epoch, batch[0]) == number]
        if epoch.drop_last:  # those that came last are left out, whatever their lengths
            del mine[len(mine) // rule.size * rule.size :]
        assert sorted(i for batch in got for i in batch) == sorted(mine)
        sizes = sorted(map(len, got), reverse=True)
        whole, rest = divmod(len(mine), rule.size)
        assert sizes == [rule.size] * whole + ([rest] if rest else [])


@given(st.integers(1, 2).flatmap(epochs), buckets())
def test_batches_of_a_unit_and_bucket_are_sorted_ones_cut(epoch: Epoch, rule: Bucketed) -> None:
    """So nothing else with batches as large is padded less."""
    for unit in planned(rule, epoch):
        bounds = []
        for batch in flat([unit]):
            volumes = [int(epoch.sizes[i].prod()) for i in batch]
            assert volumes == sorted(volumes)
            bounds.append((bucket_of(rule, epoch, batch[0]), volumes[0], volumes[-1]))
            assert bucket_of(rule, epoch, batch[-1]) == bounds[-1][0]
        bounds.sort()
        for (_, _, longest), (_, shortest, _) in itertools.pairwise(bounds):
            assert longest <= shortest


def waste(sizes: Int64s, batches: list[list[int]]) -> float:
    values = sum(int(sizes[b].sum()) for b in batches)
    return 1 - values / sum(len(b) * int(sizes[b].max()) for b in batches)


def test_little_is_padded() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.lognormal(6, 1, (6000, 1)).astype(np.int64)
    epoch = Epoch(sizes, np.split(rng.permutation(6000), 3))
    ratio = [int(50 * 1.25**k) for k in range(25)]
    rules = (
        Bucketed("x", 64, edges=ratio),
        Bucketed("x", 64, quantiles=24),
        TokenBudget("x", 20_000),
    )

    assert waste(sizes, flat(planned(FixedSize(64), epoch))) > 0.8
    assert waste(sizes, flat(planned(Bucketed("x", 64), epoch))) < 0.4
    for rule in rules:
        assert waste(sizes, flat(planned(rule, epoch))) < 0.1


@given(epochs(), budgets() | buckets())
def test_without_a_key_batches_come_as_their_first_samples_do(epoch: Epoch, rule: Rule) -> None:
    epoch.keyed = False
    place = {i: at for at, i in enumerate(epoch.order)}

    for unit in planned(rule, epoch):
        first = [min(place[i] for i in batch) for batch in flat([unit])]
        assert first == sorted(first)


@pytest.mark.parametrize("rule", [Bucketed("x", 10), TokenBudget("x", 1000)])
def test_with_a_key_lengths_come_in_random_order(rule: Rule) -> None:
    sizes = np.arange(1, 2001)[:, None] % 97 + 1
    batches = flat(planned(rule, Epoch(sizes, [np.arange(2000)])))

    lengths = [int(sizes[batch[0], 0]) for batch in batches]
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.25
    assert abs(np.corrcoef(lengths[1:], lengths[:-1])[0, 1]) < 0.25


def test_quantiles_make_buckets_of_about_as_many_values() -> None:
    sizes = np.random.default_rng(0).permutation(np.arange(1, 1001))[:, None]
    rule = Bucketed("x", 8, quantiles=4)
    (edges,) = rule.measure(lambda: sizes, 1).values()

    buckets = np.searchsorted(edges, sizes[:, 0], "right")
    values = np.bincount(buckets, sizes[:, 0])
    assert len(values) == 4 and np.ptp(values) < 0.02 * values.mean()
    assert rule.measure(lambda: sizes[:0], 1) == {"edges": []}
    assert rule.measure(lambda: sizes[:0, [0, 0]], 1) == {"edges": []}
    assert rule.measure(lambda: 0 * sizes, 1) == {"edges": [0]}


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedSize(0),
        lambda: FixedSize(True),
        lambda: FixedSize(1.0),
        lambda: TokenBudget("x", 0),
        lambda: TokenBudget("x", 10, multiple_of=0),
        lambda: Bucketed("x", 0),
        lambda: Bucketed("x", 8, edges=[3, 3]),
        lambda: Bucketed("x", 8, edges=[-1]),
        lambda: Bucketed("x", 8, edges=[0.5]),
        lambda: Bucketed("x", 8, edges=[5], quantiles=2),
        lambda: Bucketed("x", 8, quantiles=0),
        lambda: Bucketed("x", 8, quantiles=10**12),
        lambda: Bucketed("x", 8).check(rs.Schema({"x": rs.Field("i4")})),
        lambda: TokenBudget("x", 8).check(rs.Schema({"x": rs.Field("i4", (3,))})),
        lambda: TokenBudget("y", 8).check(rs.Schema({"x": rs.Field("i4", (None,))})),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises((rs.UsageError, rs.UnknownFieldError)):
        make()

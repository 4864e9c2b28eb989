"""Splits: each sample in one part for good, in proportion, and the same on every machine."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.splits import hash_keys, split

SEEDS = st.integers(0, 2**64 - 1)
SIZES = st.integers(0, 400)
FEW = settings(max_examples=60, deadline=None)
FIXTURE = settings(
    FEW, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def fractions(draw: st.DrawFn, *, whole: bool = False) -> dict[str, float]:
    """Two to four parts, that leave something over or do not."""
    weights = draw(st.lists(st.integers(1, 60), min_size=2, max_size=4))
    total = sum(weights) + (0 if whole else draw(st.integers(0, 20)))
    return {f"part{i}": weight / total for i, weight in enumerate(weights)}


@st.composite
def keys(draw: st.DrawFn, n: int) -> Any:
    """A key for each of n samples, of few classes or of many."""
    kinds = [st.integers(-(2**63), 2**63 - 1), st.text(max_size=3), st.binary(max_size=3)]
    classes = draw(st.lists(draw(st.sampled_from(kinds)), min_size=1, max_size=8, unique=True))
    numbers = draw(st.lists(st.integers(0, len(classes) - 1), min_size=n, max_size=n))
    return [classes[number] for number in numbers]


def assigned(parts: dict[str, Any], n: int) -> list[str | None]:
    """The part of each sample; each is in one at most, in ascending order."""
    found: list[str | None] = [None] * n
    for name, positions in parts.items():
        assert positions.dtype == np.int64
        assert (np.diff(positions) > 0).all()
        for position in positions.tolist():
            assert found[position] is None
            found[position] = name
    return found


# Any split


@FEW
@given(st.data(), fractions(), SEEDS, SIZES, SIZES)
def test_what_old_samples_were_assigned_to_stays_when_new_ones_come(
    data: st.DataObject, parts: dict[str, float], seed: int, old: int, new: int
) -> None:
    how = data.draw(st.sampled_from(["plain", "by", "group"]))
    known: dict[str, Any] = {}
    if how != "plain":
        known[how] = hash_keys(data.draw(keys(old + new)))
    before = {name: hashes[:old] for name, hashes in known.items()}

    first = assigned(split(parts, old, seed=seed, **before), old)
    later = assigned(split(parts, old + new, seed=seed, **known), old + new)
    assert later[:old] == first


@FEW
@given(st.data(), fractions(whole=True), SEEDS, SIZES)
def test_fractions_that_come_to_one_leave_nobody_out(
    data: st.DataObject, parts: dict[str, float], seed: int, n: int
) -> None:
    how = data.draw(st.sampled_from(["plain", "by", "group"]))
    known = {} if how == "plain" else {how: hash_keys(data.draw(keys(n)))}
    assert None not in assigned(split(parts, n, seed=seed, **known), n)

    rest = {**parts, "part0": None}
    assert assigned(split(rest, n, seed=seed, **known), n) == assigned(
        split(parts, n, seed=seed, **known), n
    )


@FEW
@given(fractions(), SEEDS, st.integers(0, 3000))
def test_every_prefix_is_in_proportion(parts: dict[str, float], seed: int, n: int) -> None:
    left = 1 - sum(parts.values())
    hand = 1 / min(share for share in [*parts.values(), left] if share > 1e-6)
    for name, positions in split(parts, n, seed=seed).items():
        # One for rounding, and what may lie in the part of a hand that is there.
        slack = 1 + min(hand, n) * parts[name] * (1 - parts[name]) + 1
        assert abs(len(positions) - n * parts[name]) <= slack


def test_round_numbers_come_out_exactly() -> None:
    for seed in range(20):
        tenths = split({"train": 0.8, "valid": 0.1, "test": 0.1}, 1000, seed=seed)
        assert [len(positions) for positions in tenths.values()] == [800, 100, 100]
        thirds = split({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 300, seed=seed)
        assert [len(positions) for positions in thirds.values()] == [100] * 3
        rare = split({"train": 0.9995, "valid": 0.0005}, 20_000, seed=seed)
        assert len(rare["valid"]) == 10


def test_a_part_is_spread_at_random_over_the_hands() -> None:
    """Every tenth sample is in the part, but none is likelier than another to be."""
    valid = split({"train": 0.9, "valid": 0.1}, 10**6)["valid"]
    assert (valid // 10 == np.arange(10**5)).all()
    slots = valid % 10
    pairs = np.bincount(slots[:-1] * 10 + slots[1:], minlength=100)
    surprise = ((pairs - 1000) ** 2 / 1000).sum()
    assert abs(surprise - 99) < 5 * np.sqrt(2 * 99)


def test_other_seeds_give_other_splits_that_know_nothing_of_each_other() -> None:
    half = [np.zeros(10_000, bool) for _ in range(3)]
    for seed, chosen in enumerate(half):
        chosen[split({"a": 0.5, "b": 0.5}, 10_000, seed=seed)["a"]] = True
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert abs((half[i] == half[j]).mean() - 0.5) < 0.03


# Strata and groups


@FEW
@given(st.data(), fractions(), SEEDS, SIZES)
def test_each_class_is_split_like_a_store_of_its_own(
    data: st.DataObject, parts: dict[str, float], seed: int, n: int
) -> None:
    labels = data.draw(keys(n))
    found = assigned(split(parts, n, seed=seed, by=hash_keys(labels)), n)

    for label in set(labels):
        where = [i for i in range(n) if labels[i] == label]
        alone = split(parts, len(where), seed=seed, by=hash_keys([label] * len(where)))
        assert [found[i] for i in where] == assigned(alone, len(where))


def test_each_class_is_in_proportion() -> None:
    labels = np.random.default_rng(0).zipf(1.3, 50_000).clip(0, 300)
    valid = split({"train": 0.9, "valid": 0.1}, 50_000, by=hash_keys(labels))["valid"]
    want = np.bincount(labels) / 10
    assert (abs(np.bincount(labels[valid], minlength=301) - want) < 1).all()


@pytest.mark.parametrize("share", [0.07, 0.15, 0.3, 0.5, 0.65])
def test_classes_too_small_to_split_are_in_proportion_together(share: float) -> None:
    labels = hash_keys(np.repeat(np.arange(30_000), 2))
    parts = split({"a": share, "b": 1 - share}, 60_000, by=labels)
    assert len(parts["a"]) / 60_000 == pytest.approx(share, abs=0.01)
    assert np.mean(parts["a"] % 2) == pytest.approx(0.5, abs=0.02)


@FEW
@given(st.data(), fractions(), SEEDS, SIZES)
def test_a_group_is_in_one_part_and_in_the_same_everywhere(
    data: st.DataObject, parts: dict[str, float], seed: int, n: int
) -> None:
    speakers = data.draw(keys(n))
    found = assigned(split(parts, n, seed=seed, group=hash_keys(speakers)), n)
    side = dict(zip(speakers, found, strict=True))
    assert found == [side[speaker] for speaker in speakers]

    shuffled = data.draw(st.permutations(speakers))
    again = assigned(split(parts, n, seed=seed, group=hash_keys(shuffled)), n)
    assert again == [side[speaker] for speaker in shuffled]


def test_many_groups_are_in_proportion() -> None:
    parts = split({"train": 0.8, "valid": 0.2}, 20_000, group=hash_keys(np.arange(20_000)))
    assert len(parts["valid"]) / 20_000 == pytest.approx(0.2, abs=0.01)


# Counts


@FEW
@given(st.data(), SEEDS, st.integers(1, 300), st.integers(0, 300))
def test_counts_are_exact_and_stay(data: st.DataObject, seed: int, among: int, new: int) -> None:
    sizes = data.draw(st.lists(st.integers(0, among), min_size=2, max_size=3))
    counts: dict[str, int | None] = {f"part{i}": size for i, size in enumerate(sizes)}
    if data.draw(st.booleans()):
        counts["rest"] = None
    labels = hash_keys(data.draw(keys(among + new))) if data.draw(st.booleans()) else None
    old = None if labels is None else labels[:among]
    if sum(sizes) > among:
        with pytest.raises(rs.UsageError, match="cannot draw"):
            split(counts, among, seed=seed, by=old, among=among)
        return

    first = split(counts, among, seed=seed, by=old, among=among)
    later = split(counts, among + new, seed=seed, by=labels, among=among)
    found = assigned(later, among + new)
    assert found[:among] == assigned(first, among)
    assert found[among:] == ["rest" if "rest" in counts else None] * new
    for name, count in counts.items():
        assert count is None or len(later[name]) == count
    assert "rest" not in counts or None not in found


def test_counts_of_classes_are_in_proportion() -> None:
    labels = np.random.default_rng(1).choice(6, 5000, p=[0.5, 0.3, 0.1, 0.06, 0.03, 0.01])
    parts = split({"b": 1000, "a": 500, "c": None}, 5000, by=hash_keys(labels), among=5000)
    for name, count in ("a", 500), ("b", 1000):
        got = np.bincount(labels[parts[name]], minlength=6)
        assert (abs(got - np.bincount(labels) * count / 5000) < 2).all()


def test_counts_without_a_rest_fill_from_the_first_samples() -> None:
    parts = split({"train": 80, "valid": 20}, 1000)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(100))
    assert max(parts["valid"]) > 80  # drawn among them, not the first of them


# The contract


def letters(n: int, parts: dict[str, Any] | None = None, **options: Any) -> str:
    """A letter for the part of each sample, and a dash for none."""
    letter = {"train": ".", "valid": "v", "test": "t", None: "-"}
    found = split(parts or {"train": 0.8, "valid": 0.1, "test": 0.1}, n, **options)
    return "".join(letter.get(name, name or "") for name in assigned(found, n))


def test_the_rule_is_the_one_it_always_was() -> None:
    """Never change these: samples that somebody validates with would become training data."""
    threes = hash_keys(np.arange(40) % 3)
    speakers = hash_keys([f"speaker {i}" for i in range(40)])
    alike = hash_keys([b"x", b"y"] * 20)
    assert letters(40) == ("..t..v....vt...............vt.v..t......")
    assert letters(40, seed=2**64 - 1) == ("v.t..........v.t.......v.....tv........t")
    assert letters(40, {"a": 0.3, "b": 0.123456}) == ("a--ab-a----a-a-ab--a-aab----ba----baaa-a")
    assert letters(40, by=threes) == ("tt......v........tv.........v...vv..t...")
    assert letters(40, group=speakers) == ("...t.v...v........v.....t....vv..v......")
    assert letters(40, {"a": 4, "b": None}, among=20) == (
        "abbbbbabbbababbbbbbbbbbbbbbbbbbbbbbbbbbb"
    )
    assert letters(40, {"a": 4, "b": 8}, by=alike, among=24) == (
        "ab--bbb--ba-b--b----ba-a----------------"
    )
    assert letters(40, {"a": 4, "b": 8}, by=threes, among=24) == (
        "ab--bbb-b-a-b------bba-a----------------"
    )
    rare = split({"train": 0.999, "valid": 0.001}, 10**6, seed=7)["valid"]
    assert rare[:4].tolist() == [851, 1729, 2202, 3707] and rare.sum() == 500000232


def test_equal_parts_give_equal_splits_whatever_their_order() -> None:
    one = split({"train": 0.9, "valid": 0.1}, 500)
    other = split({"valid": 0.1, "train": 0.9}, 500)
    assert list(other) == ["valid", "train"]
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_fraction_is_what_it_says_whatever_its_type() -> None:
    one = split({"a": 0.25, "b": 0.75}, 500, seed=np.int64(3))
    other = split({"a": Fraction(1, 4), "b": np.float32(0.75)}, 500, seed=3)
    np.testing.assert_array_equal(one["a"], other["a"])
    assert len(split({"a": 1.0}, 7)["a"]) == len(split({"a": None}, 7)["a"]) == 7
    assert len(split({"a": 1}, 7)["a"]) == 1


# Keys


def test_a_key_is_its_value_however_it_is_kept() -> None:
    narrow, wide = np.array([3, -1, 100], "i1"), np.array([3, -1, 100], ">i8")
    assert (
        hash_keys(narrow).tolist() == hash_keys(wide).tolist() == hash_keys([3, -1, 100]).tolist()
    )
    assert hash_keys([True, False]).tolist() == hash_keys([1, 0]).tolist()
    texts = ["a", "ü", ""]
    for kept in (np.array(texts), np.array(texts, object), [text.encode() for text in texts]):
        assert hash_keys(kept).tolist() == hash_keys(texts).tolist()
    assert hash_keys(["a\0"]) != hash_keys(["a"])
    assert len(hash_keys([])) == len(hash_keys(np.array([], object))) == 0


@pytest.mark.parametrize(
    "bad",
    [
        [1.0],
        [1, "a"],
        ["a", None],
        [None],
        [[1]],
        [[1], [1, 2]],
        [2**70],
        3,
        None,
        np.zeros((2, 2), int),
    ],
)
def test_what_is_no_key_is_refused(bad: Any) -> None:
    with pytest.raises(rs.UsageError):
        hash_keys(bad)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        [0.9, 0.1],
        {"a": -0.1, "b": 0.5},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 0.0, "b": 0.5},
        {"a": 0.9, "b": 0.2},
        {"a": 0.5, "b": 1},
        {"a": None, "b": None, "c": 0.5},
        {"a": 0.5, "b": 0.5, "c": None},
        {"a": True},
        {"a": "0.5"},
        {"a": 1j},
        {1: 0.5},
        {"a": -1},
        {"a": 11},
        {"a": 5, "b": None},
        {"a": 1e-9},
    ],
)
def test_parts_that_make_no_sense_are_refused(parts: Any) -> None:
    with pytest.raises(rs.UsageError):
        split(parts, 10)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 0.5},
        {"seed": True},
        {"among": 10},
        {"by": hash_keys(range(10)), "group": hash_keys(range(10))},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(rs.UsageError):
        split({"a": 0.5}, 10, **options)


def test_counts_take_no_groups_and_an_among_that_fits() -> None:
    with pytest.raises(rs.UsageError, match="group"):
        split({"a": 3}, 10, group=hash_keys(range(10)))
    for among in (2, 11, 3.0, True):
        with pytest.raises(rs.UsageError):
            split({"a": 3}, 10, among=among)  # type: ignore[arg-type]
    with pytest.raises(rs.UsageError, match="among=10"):
        split({"a": 3, "b": None}, 10)


# Stores

SCHEMA = {
    "audio": rs.Field("int16", (None,)),
    "label": rs.Field("uint8"),
    "spoken": rs.Field("bool"),
    "speaker": rs.Field("str"),
    "raw": rs.Field("bytes"),
    "level": rs.Field("float32"),
    "pair": rs.Field("int32", (2,)),
}


def make(i: int) -> dict[str, object]:
    return {
        "audio": np.zeros(i % 5, "int16"),
        "label": i * i % 7,
        "spoken": i % 3 == 0,
        "speaker": f"ü{i % 40}",
        "raw": bytes([i % 11]),
        "level": 0.5,
        "pair": [i, i],
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rs.Store]:
    with rs.create(tmp_path_factory.mktemp("splits") / "store", SCHEMA) as store:
        for first in range(0, 600, 200):
            with store.writer() as writer:
                writer.extend(make(i) for i in range(first, first + 200))
        yield store


def labels(samples: rs.Samples) -> list[int]:
    return list(samples["label"])


@pytest.mark.parametrize("name", ["label", "spoken", "speaker", "raw"])
@pytest.mark.parametrize("how", ["by", "group"])
def test_a_field_is_a_key_by_its_values_and_nothing_else_is_read(
    store: rs.Store, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"train": 0.7, "valid": 0.3}
    want = store.split(shares, **{how: [make(i)[name] for i in range(600)]})
    read = type(store).read
    asked = set()

    def watched(self: rs.Store, name: str, positions: Any) -> Any:
        asked.add(name)
        return read(self, name, positions)

    monkeypatch.setattr(type(store), "read", watched)
    got = store.split(shares, **{how: name})
    assert asked == {name}
    for part in shares:
        assert list(got[part]["pair"].batch(slice(None))[:, 0]) == list(
            want[part]["pair"].batch(slice(None))[:, 0]
        )


@FIXTURE
@given(SEEDS, st.sampled_from([None, "label", "speaker"]))
def test_a_view_of_the_same_samples_splits_the_same(
    store: rs.Store, seed: int, by: str | None
) -> None:
    half = store.select(slice(0, 300))
    alike = rs.concat([store.select(range(100)), store.select(range(100, 300))])
    parts = {"train": 0.75, "valid": 0.25}
    one, other = half.split(parts, seed=seed, by=by), alike.split(parts, seed=seed, by=by)
    whole = store.split(parts, seed=seed, by=by)
    for name in parts:
        ids = one[name]["pair"].batch(slice(None))[:, 0]
        assert ids.tolist() == other[name]["pair"].batch(slice(None))[:, 0].tolist()
        assert ids.tolist() == [i for i in whole[name]["pair"].batch(slice(None))[:, 0] if i < 300]


def test_a_part_can_be_split_again(store: rs.Store) -> None:
    train = store.split({"train": 0.9, "test": 0.1})["train"]
    inner = train.split({"train": 0.5, "valid": 0.5}, by="label")
    assert sum(len(part) for part in inner.values()) == len(train) == 540


def test_a_part_stays_when_the_store_grows(tmp_path: Path) -> None:
    store = rs.create(tmp_path / "store", {"label": rs.Field("int64")})
    found: list[dict[str, list[int]]] = []
    for first in range(0, 90, 30):
        with store.writer() as writer:
            writer.extend({"label": i} for i in range(first, first + 30))
        parts = rs.open(tmp_path / "store").split({"train": 0.8, "valid": 0.2})
        found.append({name: labels(part) for name, part in parts.items()})
    for name in ("train", "valid"):
        for before, after in itertools.pairwise(found):
            assert after[name][: len(before[name])] == before[name]


def test_a_part_takes_in_what_was_appended_when_it_is_asked_to(tmp_path: Path) -> None:
    fields = {"n": rs.Field("i8"), "label": rs.Field("i8")}
    store = rs.create(tmp_path / "grows", fields)

    def add(first: int, last: int) -> None:
        with store.writer() as writer:
            writer.extend({"n": n, "label": n % 7} for n in range(first, last))

    add(0, 300)
    reader = rs.open(store.path)
    options: list[dict[str, Any]] = [{}, {"by": "label"}, {"group": "label"}]
    splits = [reader.split({"a": 0.3, "b": 0.7}, seed=5, **each) for each in options]
    splits.append(reader.split({"a": 20, "b": None}, among=200))
    nested = splits[0]["b"].split({"c": 0.5}, seed=6)["c"]
    before = [list(part["n"]) for parts in splits for part in parts.values()]
    within = list(nested["n"])
    add(300, 500)

    for parts in splits:
        assert [part.refresh() for part in parts.values()] == [2, 2]
    assert nested.refresh() == 2
    after = [list(part["n"]) for parts in splits for part in parts.values()]
    for old, new in zip(before, after, strict=True):
        assert [n for n in new if n < 300] == old
    assert sorted(after[0] + after[1]) == sorted(after[6] + after[7]) == list(range(500))
    assert after[:2] == [
        list(p["n"]) for p in rs.open(store.path).split({"a": 0.3, "b": 0.7}, seed=5).values()
    ]
    assert list(nested["n"])[: len(within)] == within and len(nested) > len(within)
    assert "Part 'c' of a split" in repr(nested)


def test_a_part_that_cannot_grow_says_why(store: rs.Store) -> None:
    by_keys = store.split({"a": 0.5}, by=np.zeros(len(store), int))["a"]
    of_few = store.select(range(4)).split({"a": 0.5})["a"]

    with pytest.raises(rs.UsageError, match="keys given one by one"):
        by_keys.refresh()
    with pytest.raises(rs.UsageError, match="only a part of a store"):
        of_few.refresh()
    with pytest.raises(rs.UsageError, match="only a part of a store"):
        of_few.split({"a": 0.5})["a"].refresh()


def test_fields_and_keys_that_make_no_sense_are_refused(store: rs.Store) -> None:
    with pytest.raises(rs.UnknownFieldError, match="the fields are"):
        store.split({"a": 0.5}, by="lable")
    for name in ("audio", "level", "pair"):
        with pytest.raises(rs.UsageError, match="a field of integers"):
            store.split({"a": 0.5}, group=name)
    with pytest.raises(rs.UsageError, match="3 keys for 600 samples"):
        store.split({"a": 0.5}, by=[1, 2, 3])
    assert {len(part) for part in store.select([]).split({"a": 0.5}, by="label").values()} == {0}

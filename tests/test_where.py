"""Rules mean what Python means by them, read no ragged data, and say what is wrong with them."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore import where as module
from raggedstore.where import Candidates, describe, is_rule, resolve

SCHEMA = {
    "audio": rs.Field("int16", (None,)),
    "image": rs.Field("uint8", (None, None, 3)),
    "label": rs.Field("int8"),
    "count": rs.Field(">u2"),
    "level": rs.Field("float32"),
    "flag": rs.Field("bool"),
    "lang": rs.Field("str"),
    "raw": rs.Field("bytes"),
    "pair": rs.Field("int32", (2,)),
    "large": rs.Field("float64", (200,)),
    "id": rs.Field("uint64"),
    "wave": rs.Field("complex64"),
}
LANGS = ["de", "fr", "ü", "", "deutsch", "ü!"]
COUNT = 60


def make(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    return {
        "audio": rng.integers(-9, 9, i % 11).astype("int16"),
        "image": np.zeros((i % 4, i % 3, 3), "uint8"),
        "label": i % 9 - 4,
        "count": i * 1000,
        "level": [0.5, 0.1, -2.25, 3.0][i % 4],
        "flag": i % 5 == 0,
        "lang": LANGS[i % len(LANGS)],
        "raw": bytes([i % 3]),
        "pair": [i, -i],
        "large": np.zeros(200),
        "id": 2**64 - 1 - i if i % 2 else i,
        "wave": 1j,
    }


SAMPLES = [make(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rs.Store]:
    with rs.create(tmp_path_factory.mktemp("where") / "store", SCHEMA) as store:
        for first in range(0, COUNT, 25):
            with store.writer() as writer:
                writer.extend(SAMPLES[first : first + 25])
        yield store


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 7)


FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def found(where: Any, samples: rs.Samples, **options: Any) -> list[int]:
    positions = resolve(where, samples, **options)
    assert positions is not None and positions.dtype == np.int64
    return positions.tolist()


# Python as the oracle


class Text(str):
    """A str that knows its length in bytes."""

    @property
    def length(self) -> int:
        return len(self.encode())


def names_of(sample: dict[str, Any]) -> dict[str, Any]:
    """What the names in a rule mean, to Python."""
    names: dict[str, Any] = {name: sample[name] for name in ("label", "count", "flag", "raw", "id")}
    names["level"] = float(np.float32(sample["level"]))
    names["lang"] = Text(sample["lang"])
    for name in ("audio", "image"):
        array = sample[name]
        names[name] = SimpleNamespace(length=len(array), shape=array.shape, size=array.size)
    return names


NAMES = [names_of(sample) for sample in SAMPLES]


def by_python(rule: str) -> list[int]:
    return [i for i, names in enumerate(NAMES) if eval(rule, {"__builtins__": {}}, names)]


FIELDS = ["label", "count", "level", "flag", "id", "audio.length", "audio.shape[0]"]
MEASURES = ["image.shape[1]", "image.shape[-1]", "image.size", "lang.length"]
LITERALS = ["0", "1", "2", "3", "0.5", "1.25", "1000", "True", "1e3"]
LEAVES = st.sampled_from([*FIELDS, *MEASURES]) | st.sampled_from(LITERALS)


def combined(numbers: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    # id is up to 2**64: as a number it is for comparisons, and refused in arithmetic.
    smaller = numbers.filter(lambda text: "id" not in text)
    return st.one_of(
        st.builds(
            "({} {} {})".format,
            smaller,
            st.sampled_from(["+", "-", "*", "/", "//", "%"]),
            smaller,
        ),
        st.builds("{}{}".format, st.sampled_from(["-", "+"]), smaller),
    )


NUMBERS = st.recursive(LEAVES, combined, max_leaves=4)
COMPARE = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
QUOTED = st.sampled_from([repr(lang) for lang in [*LANGS, "xx"]])
SIMPLE = st.one_of(
    st.builds("{} {} {}".format, NUMBERS, COMPARE, NUMBERS),
    st.builds("{} {} {} {} {}".format, NUMBERS, COMPARE, NUMBERS, COMPARE, NUMBERS),
    st.builds(
        "{} {} ({}, {}, -2, 0.5)".format,
        NUMBERS,
        st.sampled_from(["in", "not in"]),
        st.integers(-4, 4),
        st.integers(0, 9),
    ),
    st.builds("lang {} {}".format, st.sampled_from(["==", "!="]), QUOTED),
    st.builds("{} {} lang".format, QUOTED, st.sampled_from(["==", "!="])),
    st.builds("lang {} ({}, {})".format, st.sampled_from(["in", "not in"]), QUOTED, QUOTED),
    st.sampled_from(["flag", "raw == b'\\x01'", "True", "False"]),
)
RULES = st.recursive(
    SIMPLE,
    lambda rules: st.one_of(
        st.builds("({} and {})".format, rules, rules),
        st.builds("({} or {})".format, rules, rules),
        st.builds("({} and {} or {})".format, rules, rules, rules),
        st.builds("not {}".format, rules),
    ),
    max_leaves=6,
)


@settings(FIXTURE, max_examples=300)
@given(rule=RULES)
def test_a_rule_means_what_python_means_by_it(
    store: rs.Store, small_blocks: None, rule: str
) -> None:
    try:
        want = by_python(rule)
    except ZeroDivisionError:
        with pytest.raises(rs.UsageError, match="division by zero, at sample"):
            resolve(rule, store)
    else:
        assert found(rule, store) == want


@pytest.mark.parametrize(
    "rule",
    [
        "audio.length <= 5 and label in (1, 2, 3) and not (lang.length < 2)",
        "label != 0 and 4 / label > 1.5",
        "label == 0 or 4 // label == 2",
        "0 < audio.length < 40 // audio.length",
        "label * 100 > 300",  # int8 would wrap
        "count - 30000 < 0",  # uint16 would wrap
        "level == 0.1 or level == 0.5",  # float32 is not the double
        "flag + flag == 2",
        "-flag < 0",
        "id > 9223372036854775807 and id >= 18446744073709551600",
        "id in (3, 4, 18446744073709551614)",
        "lang not in ('de', '') and label % -3 == 0",
        "  lang == 'ü'  or\n lang == 'ü!' ",
    ],
)
def test_rules_as_they_are_written(store: rs.Store, small_blocks: None, rule: str) -> None:
    assert found(rule, store) == by_python(f"({rule})")
    assert 0 < len(found(rule, store)) < COUNT


def test_the_length_of_a_scalar_is_one_and_a_fixed_field_has_its_shape(store: rs.Store) -> None:
    assert found("label.length == 1 and pair.shape[0] == 2 and large.size == 200", store) == list(
        range(COUNT)
    )


# What is read


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Samples read of each field."""
    counted: Counter[str] = Counter()
    read = rs.Store.read

    def watched(self: rs.Store, name: str, positions: Any) -> Any:
        counted[name] += len(positions)
        return read(self, name, positions)

    monkeypatch.setattr(rs.Store, "read", watched)
    return counted


def test_no_data_of_a_ragged_field_is_read(store: rs.Store, reads: Counter[str]) -> None:
    resolve("audio.length > 3 and image.shape[0] * image.shape[1] > 2 and lang.length == 2", store)
    assert not any(reads.values())
    resolve("label in (1, 2) and audio.length > label", store)
    assert {name for name, count in reads.items() if count} == {"label"}
    assert reads["label"] == COUNT


def test_only_texts_of_the_length_asked_for_are_read(store: rs.Store, reads: Counter[str]) -> None:
    resolve("lang == 'de' or lang in ('fr', 'es') or lang == ''", store)
    assert reads["lang"] == sum(len(sample["lang"].encode()) in (0, 2) for sample in SAMPLES)


# Functions


def test_a_function_sees_lengths_shapes_and_small_fields(
    store: rs.Store, small_blocks: None
) -> None:
    seen: list[int] = []

    def chosen(v: Candidates) -> Any:
        assert v.positions.shape == v["label"].shape == v.length("audio").shape == (len(v),)
        assert v["pair"].shape == (len(v), 2)
        assert v.shape("image").shape == (len(v), 3)
        assert v.size("image").tolist() == v.shape("image").prod(axis=1).tolist()
        assert v["lang"] == [SAMPLES[i]["lang"] for i in v.positions]
        assert v.equals("lang", "de").tolist() == [lang == "de" for lang in v["lang"]]
        assert v.equals("raw", b"\0").tolist() == [raw == b"\0" for raw in v["raw"]]
        seen.extend(v.positions.tolist())
        return (v["label"] > 0) & (v.length("audio") >= 4)

    assert found(chosen, store) == found("label > 0 and audio.length >= 4", store)
    assert seen == list(range(COUNT))


@pytest.mark.parametrize(
    "function",
    [
        lambda v: v["label"],
        lambda v: np.ones(len(v) + 1, bool),
        lambda v: True,
        lambda v: v["audio"],
        lambda v: v["large"],
        lambda v: v.equals("lang", b"de"),
        lambda v: v.equals("label", "de"),
    ],
)
def test_a_function_that_makes_no_sense_is_refused(store: rs.Store, function: Any) -> None:
    with pytest.raises(rs.UsageError):
        resolve(function, store)


def test_an_error_of_a_function_is_its_own(store: rs.Store) -> None:
    with pytest.raises(ZeroDivisionError):
        resolve(lambda v: 1 // 0, store)
    with pytest.raises(rs.UnknownFieldError):
        resolve(lambda v: v["lable"], store)


# Masks, positions, ranges


def test_masks_and_positions_are_what_select_takes(store: rs.Store) -> None:
    assert resolve(None, store) is None
    assert found(np.arange(COUNT) % 2 == 0, store) == list(range(0, COUNT, 2))
    assert found([True] + [False] * (COUNT - 1), store) == [0]
    assert found([7, 3, 3, -1], store) == [7, 3, 3, COUNT - 1]
    assert found(slice(-3, None), store) == [57, 58, 59]
    assert found([], store) == []
    for bad in ([COUNT], [True], [0.5], (1, 2), {"a": 1}, 0.5):
        with pytest.raises(IndexError):
            resolve(bad, store)


@FIXTURE
@given(st.integers(0, COUNT), st.sampled_from(["rule", "function", "mask", "positions", "none"]))
def test_what_old_and_new_samples_give_is_what_all_give(
    store: rs.Store, small_blocks: None, middle: int, kind: str
) -> None:
    where: Any = {
        "rule": "audio.length > 3",
        "function": lambda v: v.length("audio") > 3,
        "mask": np.arange(middle) % 3 == 0,
        "positions": list(range(0, middle, 3)),
        "none": "False",
    }[kind]
    old = found(where, store, stop=middle)
    assert all(position < middle for position in old)
    if is_rule(where):
        assert old + found(where, store, start=middle) == found(where, store)
    else:
        assert found(where, store, start=middle // 2, stop=middle) == [
            position for position in old if position >= middle // 2
        ]


def test_a_range_outside_the_samples_is_refused(store: rs.Store) -> None:
    for start, stop in [(-1, 3), (4, 3), (0, COUNT + 1)]:
        with pytest.raises(rs.UsageError):
            resolve("flag", store, start, stop)


def test_views_and_concatenations_count_by_their_own_positions(store: rs.Store) -> None:
    view = rs.concat([store.select([5, 0, 9]), store.select([10], fields=list(SCHEMA))])
    assert found("flag", view) == [0, 1, 3]
    with pytest.raises(rs.UnknownFieldError, match="the fields are lang"):
        resolve("flag", store.select(fields=["lang"]))


# What is refused


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("lable == 3", r"column 1, 'lable': no field 'lable'; the fields are audio, image"),
        ("flag and nothing.length > 3", r"column 10, 'nothing': no field"),
        ("lang == 'ü' and audio > 3", r"column 17, 'audio': the field is ragged: use audio.length"),
        ("pair == 3", "single real numbers"),
        ("wave == 3", "single real numbers"),
        ("label", "column 1, 'label': a number, where something true or false"),
        ("lang", "a text, where"),
        ("'de'", "a text, where"),
        ("flag and label", "column 10, 'label': a number"),
        ("not label", "a number"),
        ("lang < 'de'", "texts compare with =="),
        ("lang == 3", "holds text"),
        ("lang == raw", "holds text"),
        ("lang == b'de'", "holds str"),
        ("raw == 'de'", r'holds bytes: write b"..."'),
        ("label == 'de'", "a text compares with a field of text"),
        ("'de' == 'de'", "a text compares with a field of text"),
        ("'d' in lang", "in is followed by a tuple"),
        ("label in 3", "in is followed by a tuple"),
        ("label in (1, count)", "column 14, 'count': a number or a text is meant"),
        ("label in (1, 2) == flag", "nothing compares with a tuple"),
        ("label == (1, 2)", "to the right of in alone"),
        ("lang + 'x' == 'dex'", "a text, where a number"),
        ("audio.shape == 3", "say which dimension"),
        ("audio.shape[1] == 3", "audio has 1 dimensions"),
        ("label.shape[0] == 3", "label has 0 dimensions"),
        ("audio.shape[True] == 3", "audio has 1 dimensions"),
        ("audio[0] == 3", "only .shape is indexed"),
        ("audio.shape[label] == 3", "only .shape is indexed"),
        ("audio.shape[0:1] == 3", "only .shape is indexed"),
        ("audio.lenght == 3", "not .lenght"),
        ("(label + 1).length == 3", "a field is meant before the dot"),
        ("label ** 2 == 4", "no powers"),
        ("flag & flag", "in the place of &"),
        ("~flag", "in the place of"),
        ("label << 2 == 4", "not this"),
        ("label is 4", "rules compare with"),
        ("label == None", "neither a number nor a text"),
        ("label == 1j", "neither a number nor a text"),
        ("label == ...", "neither a number nor a text"),
        ("len(audio) == 4", "not this"),
        ("__import__('os').system('true')", "not this"),
        ("audio.__class__ == 3", "not .__class__"),
        ("(lambda: flag)()", "not this"),
        ("[label for label in (1, 2)]", "not this"),
        ("f'{label}' == '3'", "not this"),
        ("flag if flag else flag", "not this"),
        ("(flag := True)", "not this"),
        ("label / 0 > 1", "division by zero, at sample 0"),
        ("level % (label - label) > 1", "division by zero, at sample 0"),
        ("id + 1 > 3", "64 bits"),
        ("-id > 3", "64 bits"),
        ("label * 9223372036854775807 > 1", "64 bits"),
        ("label == 18446744073709551616", "64 bits"),
        ("label < 1e400", "too large for a float"),
        ("label == " + "9" * 5000, "a rule|digits"),
        ("lang == " + repr("x" * 300), "more than 255 bytes"),
        ("lang == '\\ud800'", "not Unicode"),
        ("label ==", r"column \d+: invalid syntax"),
        ("label = 3", "column"),
        ("flag; flag", "column"),
        ("flag and # all", r"column \d+: invalid syntax"),
        (" ", "an empty rule"),
        ("flag\0", "null bytes|not a rule"),
        ("'\ud800' == lang", "not a rule"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_with_its_place(
    store: rs.Store, rule: str, message: str
) -> None:
    with pytest.raises((rs.UsageError, rs.UnknownFieldError), match=message):
        resolve(rule, store)


@pytest.mark.parametrize(
    "rule",
    [
        "flag and " * 1200 + "flag",  # too long
        "(" * 150 + "flag" + ")" * 150 + " and " + "not " * 60 + "flag",
        "(" * 4000 + "flag" + ")" * 4000,
        "not " * 2000 + "flag",
        "-" * 9000 + "1 == 1",
        "1" + "+1" * 2400 + " == 1",
        "label" + ".length" * 1400,
        "label in (" + "1," * 4995 + ") and True or False or False or False",
        "9*" * 40 + "9 == label",
        "1e308*" * 30 + "1 == label and " + "[" * 190 + "]" * 190,
    ],
)
def test_hostile_rules_are_refused_at_once(store: rs.Store, rule: str) -> None:
    with pytest.raises(rs.UsageError):
        resolve(rule, store)


@settings(FIXTURE, max_examples=200)
@given(st.text(max_size=40) | st.text("abel()[]'.+-*/%<>=! 10,notdrif", max_size=40))
def test_any_text_is_a_rule_or_an_error_of_ours(store: rs.Store, rule: str) -> None:
    with contextlib.suppress(rs.UsageError, rs.UnknownFieldError):
        resolve(rule, store)


def test_a_rule_is_checked_where_there_are_no_samples(store: rs.Store) -> None:
    nobody = store.select([])
    assert found("flag and audio.length > 3 and lang == 'de' and label % 2 == 1", nobody) == []
    for rule in ("flag and label", "False and nothing", "flag and audio.shape[3] > 1"):
        with pytest.raises((rs.UsageError, rs.UnknownFieldError)):
            resolve(rule, nobody)


@settings(FIXTURE, max_examples=300)
@given(
    st.sampled_from(["int64", "uint64"]).flatmap(
        lambda kind: st.tuples(
            st.just(kind),
            st.lists(
                st.integers(np.iinfo(kind).min, np.iinfo(kind).max)
                | st.sampled_from([2**53, 2**53 + 1, 2**62 + 1, 2**63 - 1, np.iinfo(kind).max]),
                min_size=1,
                max_size=8,
            ),
        )
    ),
    st.floats() | st.sampled_from([2.0**53, 2.0**62, 2.0**63, 2.0**64, -(2.0**63)]),
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    st.booleans(),
)
def test_integers_and_floats_compare_by_value_as_in_python(
    tmp_path_factory: Any, integers: tuple[str, list[int]], number: float, op: str, turned: bool
) -> None:
    kind, values = integers
    store = rs.create(
        tmp_path_factory.mktemp("numbers") / "store",
        {"n": rs.Field(kind), "x": rs.Field("float64")},
    )
    with store.writer() as writer:
        writer.extend({"n": np.array(value, kind), "x": number} for value in values)

    rule = f"x {op} n" if turned else f"n {op} x"
    assert found(rule, store) == [
        i for i, n in enumerate(values) if eval(rule, {"n": n, "x": number})
    ]


def test_a_field_named_by_a_word_of_python_needs_a_function(tmp_path: Any) -> None:
    store = rs.create(tmp_path / "store", {"class": rs.Field("int64")})
    with pytest.raises(rs.UsageError, match="write a function"):
        resolve("class == 3", store)
    assert found(lambda v: v["class"] == 3, store) == []


def test_a_description_is_short(store: rs.Store) -> None:
    assert describe(None) == "None"
    assert describe("flag") == "'flag'"
    assert describe("flag and " * 100 + "flag").endswith("...'")
    assert describe(slice(3)) == "slice(None, 3, None)"
    assert describe([True, False]) == "<mask of 1 in 2>"
    assert describe(np.arange(5)) == "<5 positions>"
    assert describe(make) == "<make>"
    assert describe([]) == "<0 positions>"


@pytest.mark.parametrize(
    "rule",
    ["label == 1  # ones\nand flag", "lang == '''d\ne'''", "lang == 'd\re'", "label == 1\n)\n("],
)
def test_lines_that_cannot_be_put_into_one_are_refused(store: rs.Store, rule: str) -> None:
    with pytest.raises(rs.UsageError, match="where"):
        resolve(rule, store)


def test_a_rule_may_have_several_lines(store: rs.Store) -> None:
    lines = "flag\n  and audio.length > 3\r\n  and lang == 'de'\n"
    assert found(lines, store) == found("flag and audio.length > 3 and lang == 'de'", store)
    assert found("\nflag # one comment at the end\n", store) == found("flag", store)

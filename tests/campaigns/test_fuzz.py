"""The fuzz campaign in its short mode, and what it found once."""

import json
import math
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import raggedstore as rs
from raggedstore import strictjson
from raggedstore.segment.blocks import BlockTable, blocks_of
from raggedstore.segment.codec import encode_frame
from tests.campaigns import fuzz
from tests.campaigns.fuzz import TARGETS, Tally, campaign, case_of, run_case


@pytest.fixture(scope="module")
def tallies() -> Iterator[dict[str, Tally]]:
    with ThreadPoolExecutor(2) as pool:
        yield dict(zip(TARGETS, pool.map(campaign, TARGETS), strict=True))


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_errors_of_our_own_comes_of_what_no_writer_wrote(
    name: str, tallies: dict[str, Tally]
) -> None:
    tally = tallies[name]

    assert not tally.findings
    assert tally.cases == sum(tally.errors.values()) == TARGETS[name].short
    refused = tally.cases - tally.errors[""]
    assert refused > tally.cases / 10, "it gets past no check"


def test_what_may_not_come_out_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(data: bytes) -> None:
        raise KeyError(data)

    monkeypatch.setitem(TARGETS, "list", fuzz.Target(lambda: [b""], feed, fuzz.mutated, 1, 1))

    with pytest.raises(KeyError):
        run_case("list", b"x")


def test_a_crash_is_a_finding_and_the_cases_after_it_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The child itself is put in the place of one that dies at a case.
    dies = "import struct, sys, os\n"
    dies += "open(sys.argv[-1], 'r+b').write(struct.pack('<q', 7)); os.abort()"
    real = fuzz.subprocess.run

    def run(command: list[str], **how: Any) -> Any:
        return real([sys.executable, "-c", dies, *command[3:]], **how)

    monkeypatch.setattr(fuzz.subprocess, "run", run)
    tally = campaign("list", cases=8)

    assert [("crash" in line, "--case 7 " in line) for line in tally.findings] == [(True, True)]
    assert tally.cases == 8


def test_the_same_case_feeds_the_same_bytes_again() -> None:
    for name in ("manifest", "frame"):
        seeds = TARGETS[name].seeds()
        fed = [case_of(name, seeds, 3, number) for number in range(20)]
        assert fed == [case_of(name, seeds, 3, number) for number in range(20)]
        assert len({*fed}) > 10


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "[1e999]", '{"a":1,"a":1}', "[" * 10**5, "1" * 5000, b"\xff\xfe\0"]
)
def test_json_of_no_one_meaning_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        strictjson.loads(text)


@pytest.mark.parametrize(
    "metadata",
    [{"a": math.nan}, {1: "x", "1": "y"}, {"a": {1, 2}}, {"a": json.loads("[" * 80 + "]" * 80)}],
)
def test_metadata_that_would_not_read_again_is_not_written(
    metadata: dict[str, object], tmp_path: object
) -> None:
    for folder, first in (("a", metadata), ("b", {})):
        path = f"{tmp_path}/{folder}"
        with pytest.raises(rs.UsageError, match="plain JSON"):
            store = rs.create(path, {"x": "int32"}, metadata=first)
            store.writer().commit(metadata=metadata)


@pytest.mark.parametrize("name", [{}, [], None, 3])
def test_a_field_in_a_schema_whose_name_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(rs.SchemaError):
        rs.Schema.from_json([{"name": name, "dtype": "<i2"}])


def test_blocks_that_are_not_there_are_not_made_room_for() -> None:
    frame = bytearray(encode_frame(np.arange(1024, dtype="i4"), 4, 4, fuzz.hostile.SMALL))
    (head,) = struct.unpack_from(">i", frame, 11)
    frame[head + 2] |= 2  # not compressed,
    struct.pack_into("<ii", frame, head + 4, 2**31 - 1, 1)  # 2 GiB in blocks of a byte each

    assert blocks_of(memoryview(frame), len(frame)) is None


def test_a_table_of_blocks_has_no_room_for_those_that_no_chunk_has() -> None:
    few = blocks_of(memoryview(encode_frame(np.arange(1024) // 9, 8, 8, fuzz.hostile.SMALL)), 10**6)
    assert few is not None
    checks = np.zeros(len(few.edges) - 1, np.uint32)
    size = few.nbytes * len(checks)

    assert BlockTable.of([(few, checks)], size) is not None
    assert BlockTable.of([(few, checks)], few.nbytes * 2**40) is None
    assert BlockTable.of([(few, checks)] + [(None, checks)] * 2**24, size) is None

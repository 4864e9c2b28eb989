"""The campaign of damage in its short mode."""

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

import raggedstore as rs
from raggedstore.segment.file import FileBytes, OpenFiles
from raggedstore.segment.rebuild import _Buffered
from tests.campaigns.corrupt import SUITES, TOLERATED, Finding, Tally, campaign, run_case

OURS = [name for name in SUITES if not name.startswith("peer ")]


@pytest.mark.parametrize("name", OURS)
def test_no_damage_gives_a_wrong_value_a_crash_a_hang_or_takes_up_memory(name: str) -> None:
    tally = campaign(name, seed=1)

    assert {*tally.faults} - TOLERATED.get(name, set()) == set(), tally.again
    assert tally.cases > 0.5 * SUITES[name].short
    if name not in ("bytes", "alone", "parsed"):  # most bytes of a small file mean nothing to us
        assert sum(tally.errors.values()) > tally.cases / 3


def test_flipped_bits_that_are_found_here_are_passed_over_elsewhere() -> None:
    theirs = campaign("peer PyTables blosc:lz4", count=60, seed=2)

    assert theirs.faults["silent"] > 30


def test_a_finding_comes_with_a_line_that_does_it_again() -> None:
    tally = Tally("bits", seed=3)
    finding = Finding(7, said="bit 2 of byte 9")
    finding.fault("silent", "audio[3]")

    tally.add(finding)
    tally.add(Finding(8, errors=["CorruptionError"]))
    tally.add(Finding(9))
    tally.add(Finding(10, effect=False))

    assert (tally.cases, tally.right, tally.faults["silent"]) == (3, 1, 1)
    assert dict(tally.errors) == {"CorruptionError": 1}
    [line] = tally.again
    assert "--suite 'bits' --seed 3 --case 7    # bit 2 of byte 9: audio[3]" in line


@pytest.mark.parametrize("name", ["bits", "single"])
def test_the_same_case_damages_the_same_place_again(name: str, tmp_path: Path) -> None:
    findings = []
    for folder in ("first", "again"):
        (tmp_path / folder).mkdir()
        corpus = SUITES[name].build(tmp_path / folder)
        findings.append([run_case(name, corpus, 4, number) for number in range(5)])

    assert findings[0] == findings[1]
    assert findings[0][0].said


def test_a_length_that_a_damaged_file_tells_is_not_made_room_for(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    stream = _Buffered(FileBytes(path, OpenFiles()))
    stream.seek(90)

    assert stream.read(2**60) == bytes(range(90, 100))
    assert stream.read(2**60) == b""
    assert stream.seek(10) == 10 and stream.read() == bytes(range(10, 100))


def test_a_row_count_that_a_damaged_file_tells_is_not_made_room_for(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as h5:
        options = {"chunks": (1,), "maxshape": (None,), "compression": "gzip"}
        h5.create_dataset("label/data", data=np.arange(5000, dtype="i2"), **options)
    data = path.read_bytes()
    assert data.count(struct.pack("<Q", 5000)) == 1
    path.write_bytes(data.replace(struct.pack("<Q", 5000), struct.pack("<Q", 2**32)))

    opened = rs.open(path)

    [table] = opened._reader.table.datasets["label"].values()
    assert len(opened) == 2**32 and len(table.entries) <= 2**20
    assert opened[3]["label"] == 3


def test_more_dimensions_than_there_can_be_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as h5:
        h5["data"] = np.zeros(1, "i2")
        h5["data_start_and_stop"] = np.array([[0, 1]])
        h5["data_shape"] = np.ones((1, 10**6), "i8")

    with pytest.raises(rs.FormatError, match="shape"):
        rs.open(path)

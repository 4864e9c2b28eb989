"""`raggedstore repair`: what it prints, and the status it ends with."""

import json
from pathlib import Path

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.store.manifest import path_of

COUNT = 300


@pytest.fixture
def corpus(tmp_path):
    """Two segments, their data in blocks of 512 bytes."""
    small = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=2048, block_bytes=512)
    store = rs.create(tmp_path / "corpus", {"x": rs.Field("int32", (None,))}, profile=small)
    for first in (0, 100):
        with store.writer() as writer:
            stop = 100 if first == 0 else COUNT
            writer.extend({"x": np.full(i % 17 + 1, i, "i4")} for i in range(first, stop))
    store.close()
    return tmp_path / "corpus"


def segment_of(corpus: Path, number: int) -> Path:
    with rs.open(corpus) as store:
        return corpus / "segments" / store.manifest.segments[number].file


def damage_a_block(corpus: Path) -> None:
    with rs.open(corpus) as store:
        table = store._snapshot.reader(1).table.datasets["x"]["data"]
        offset = int(table.entries["offset"][1]) + int(table.blocks.edges[1, 1]) + 3
    path = segment_of(corpus, 1)
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def test_a_whole_store_is_left_as_it_is(corpus, run):
    status, out, err = run("repair", corpus)

    assert (status, err) == (0, "")
    assert out == f"{corpus}: nothing to repair in version 2, {COUNT} samples\n"
    assert json.loads(run("repair", corpus, "--json")[1])["ok"] is True


def test_what_is_lost_is_listed_and_the_status_is_1(corpus, run):
    damage_a_block(corpus)
    name = segment_of(corpus, 1).stem

    dry = run("repair", corpus, "--dry-run")
    status, out, err = run("repair", corpus)

    assert (dry[0], dry[2]) == (status, err) == (1, err)
    assert "the new version holds" in dry[1] and "nothing was changed" in dry[1]
    [line] = err.splitlines()
    assert line.startswith(f"raggedstore: lost: segment {name}, field 'x': ")
    assert "version 3 holds" in out and f"of the {COUNT} samples of version 2" in out
    assert "segments: 1 written anew, 0 with a new chunk table, 0 lost" in out
    assert "have moved up" in out and f"raggedstore vacuum {corpus} --keep 1" in out
    assert run("verify", corpus)[0] == 0
    assert run("repair", corpus)[0] == 0
    newest = run("log", corpus)[1].splitlines()[1]
    assert newest.split()[0] == "3" and "repair" in newest


def test_the_report_as_json_says_where_each_lost_sample_stood(corpus, run):
    damage_a_block(corpus)

    status, out, err = run("repair", corpus, "--json")

    report = json.loads(out)
    assert (status, err) == (1, "")
    [loss] = report["lost"]
    [[start, stop]] = loss["runs"]
    assert loss["field"] == "x" and 100 < start < stop < COUNT
    assert report["kept"] == COUNT - (stop - start)
    with rs.open(corpus) as store:
        got = store["x"][:]
    kept = [*range(start), *range(stop, COUNT)]
    assert [x.tolist() for x in got] == [[i] * (i % 17 + 1) for i in kept]


def test_a_missing_chunk_table_costs_nothing(corpus, run):
    segment_of(corpus, 0).with_suffix(".idx").unlink()

    status, out, err = run("repair", corpus)

    assert (status, err) == (0, "")
    assert f"{COUNT} of the {COUNT} samples" in out and "1 with a new chunk table" in out
    assert run("verify", corpus)[0] == 0


def test_a_damaged_manifest_is_got_behind(corpus, run):
    newest = path_of(corpus, 2)
    newest.write_bytes(newest.read_bytes().replace(b"append", b"appenD"))
    assert run("info", corpus)[0] == 1

    status, out, err = run("repair", corpus)

    assert status == 1
    assert "the manifest of version 2 is damaged" in err and err.count("\n") == 1
    assert "version 3 holds 100 of the 100 samples of version 1" in out
    assert f"no readable version names: 1 in {corpus}/segments" in out
    assert run("info", corpus)[0] == 0
    assert run("vacuum", corpus, "--keep", 1)[0] == 0
    assert run("verify", corpus)[0] == 0


def test_where_nothing_reads_it_says_so(corpus, run):
    for path in (corpus / "versions").glob("*.json"):
        path.write_bytes(b"")

    status, out, err = run("repair", corpus)

    assert (status, out) == (1, "")
    assert "no version can be read" in err and err.count("\n") == 1


@pytest.mark.parametrize("what", ["absent", "file", "folder"])
def test_what_is_no_store_ends_with_2(run, tmp_path, what):
    path = tmp_path / what
    if what == "file":
        path.write_bytes(b"")
    elif what == "folder":
        path.mkdir()

    status, out, err = run("repair", path)

    assert (status, out) == (2, "")
    assert err.startswith("raggedstore: error: ") and err.count("\n") == 1

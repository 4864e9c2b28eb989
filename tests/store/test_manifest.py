"""No damaged or hostile manifest is believed."""

import json
from pathlib import Path
from typing import Any

import pytest

import raggedstore as rs
from raggedstore.segment.table import checksum
from raggedstore.store.manifest import Manifest


@pytest.fixture
def store(tmp_path: Path) -> rs.Store:
    store = rs.create(tmp_path / "store", {"a": rs.Field("i4", (None,))}, metadata={"x": [1, 2]})
    with store.writer() as writer:
        writer.append({"a": [1, 2, 3]})
    return store


def test_a_manifest_reads_back_as_it_was_written(store: rs.Store) -> None:
    assert Manifest.loads(store.manifest.dumps()) == store.manifest


def test_every_flipped_byte_is_refused(store: rs.Store) -> None:
    data = store.manifest.dumps()
    for i in range(len(data)):
        damaged = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises((rs.CorruptionError, rs.FormatError)):
            Manifest.loads(damaged)
        with pytest.raises((rs.CorruptionError, rs.FormatError)):
            Manifest.loads(data[:i])


def signed(store: rs.Store, **changes: Any) -> bytes:
    """A manifest with `changes` and a checksum that holds."""
    value = {**json.loads(store.manifest.dumps())["manifest"], **changes}
    body = json.dumps(value).encode()
    return b'{"checksum":"%016x","manifest":%s}\n' % (checksum(body), body)


@pytest.mark.parametrize(
    "name",
    ["../" + "a" * 32 + ".h5", "/etc/passwd", "a.h5", "A" * 32 + ".h5", "a" * 32 + ".h5\n", 7],
)
def test_a_segment_name_cannot_lead_out_of_the_store(store: rs.Store, name: Any) -> None:
    entry = [name, 1, 1, 1, 1, "", ""]
    with pytest.raises(rs.FormatError, match="segment entry"):
        Manifest.loads(signed(store, segments=[entry]))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"schema": []},
        {"schema": [{"name": "a", "dtype": "O"}]},
        {"compression": {}},
        {"segments": [["a" * 32 + ".h5", -1, 1, 1, 1, "", ""]]},
        {"segments": 3},
        {"metadata": None},
        {"version": None},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    store: rs.Store, changes: dict[str, Any]
) -> None:
    with pytest.raises(rs.FormatError):
        Manifest.loads(signed(store, **changes))


def test_a_manifest_under_another_version_s_name_is_refused(store: rs.Store) -> None:
    versions = store.path / "versions"
    (versions / f"{9:020d}.json").write_bytes((versions / f"{1:020d}.json").read_bytes())

    with pytest.raises(rs.CorruptionError, match="holds the manifest of version 1"):
        rs.open(store.path)

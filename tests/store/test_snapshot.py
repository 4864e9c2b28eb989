"""What a reader is told when the version that it has open is gone."""

from pathlib import Path

import pytest

import raggedstore as rs
from raggedstore.store import files


def test_a_reader_that_vacuum_could_not_know_of_is_told_that_its_version_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = 70  # more than stay open
    store = rs.create(tmp_path / "store", {"values": rs.Field("int32", (None,))})
    with store.writer() as writer:
        for i in range(segments):
            writer.append({"values": [i]})
            writer.commit()
    monkeypatch.setattr(files, "lock_shared", lambda file: None)  # as on a disk without locks
    reader = rs.open(tmp_path / "store", budget=0)
    assert [int(values[0]) for values in reader["values"]] == list(range(segments))
    store.compact()
    store.close()
    rs.open(tmp_path / "store", "a").vacuum(keep=1)

    for read in (lambda: reader[0], lambda: reader.batch([0, 1])):
        with pytest.raises(rs.VersionError, match=r"version 70 .* was removed by vacuum"):
            read()
    assert [int(values[0]) for values in rs.open(tmp_path / "store")["values"]][-1] == segments - 1

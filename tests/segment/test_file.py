"""Descriptors: closed without a word, and never while they are used."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import raggedstore as rs
from raggedstore.segment.file import Descriptor, FileBytes, OpenFiles


def test_a_close_that_fails_has_closed_and_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    file = Descriptor(tmp_path / "x")
    number, real = file.number, os.close

    def failing(number: int) -> None:
        real(number)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "close", failing)
    file.close()
    file.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_file_stays_open_while_it_is_read_whatever_others_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number would be given to the next file that is opened, and that be read in its place."""
    (tmp_path / "a").write_bytes(b"aaaa")
    (tmp_path / "b").write_bytes(b"bb")
    files = OpenFiles(1)
    calls = {"pread": os.pread, "fstat": os.fstat, "preadv": os.preadv}

    def meanwhile(name: str, *arguments: object) -> object:
        monkeypatch.undo()
        files.get(tmp_path / "b")  # has the other dropped, as another thread would
        return calls[name](*arguments)

    def interrupted(name: str) -> None:
        files.get(tmp_path / "a")
        monkeypatch.setattr(os, name, lambda *arguments: meanwhile(name, *arguments))

    interrupted("fstat")
    data = FileBytes(tmp_path / "a", files)
    assert len(data) == 4
    interrupted("pread")
    assert bytes(data.read(0, 2)) == b"aa"
    interrupted("preadv")
    out = bytearray(2)
    data.read_into(0, memoryview(out))
    assert out == b"aa"


def test_a_file_that_cannot_be_opened_again_is_an_error_of_ours(tmp_path: Path) -> None:
    path, files = tmp_path / "a", OpenFiles(4)
    path.write_bytes(b"aaaa")
    data = FileBytes(path, files)
    ways = (
        lambda: data.read(0, 2),
        lambda: data.read_into(0, memoryview(bytearray(2))),
        lambda: data.source,
        data.fileno,
    )
    path.unlink()
    files.clear()
    for way in ways:
        with pytest.raises(rs.StorageError, match="a: could not be read: No such file"):
            way()
    os.mkfifo(path)
    for way in ways:
        with pytest.raises(rs.CorruptionError, match="a: not a regular file"):
            way()


FEW = """
import resource, sys
import raggedstore as rs
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
stores = [rs.open(path) for path in sys.argv[1:]]
for _ in range(2):
    for store in stores:
        assert [sample["n"] for sample in store] == list(range(30)), store
"""


def test_stores_of_more_segments_than_a_process_may_open_are_read_together(tmp_path: Path) -> None:
    for name in "abc":
        store = rs.create(tmp_path / name, {"n": rs.Field("int64")})
        for i in range(30):
            with store.writer() as writer:
                writer.append({"n": i})
    stores = [str(tmp_path / name) for name in "abc"]
    subprocess.run([sys.executable, "-c", FEW, *stores], check=True)

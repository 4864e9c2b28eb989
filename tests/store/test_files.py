"""Files that appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

import raggedstore as rs
from raggedstore.store import files


def test_a_file_appears_when_it_is_whole_and_nothing_is_left_where_it_is_not(
    tmp_path: Path,
) -> None:
    target = tmp_path / "x.bin"
    with pytest.raises(ZeroDivisionError), files.appearing(target) as temporary:
        files.write_file(temporary, b"half")
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)

    with files.appearing(target) as temporary:
        files.write_file(temporary, b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole" and os.listdir(tmp_path) == ["x.bin"]


def test_a_folder_appears_likewise(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with pytest.raises(ZeroDivisionError), files.appearing(target) as temporary:
        temporary.mkdir()
        files.write_file(temporary / "part", b"")
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)
    with files.appearing(target) as temporary:
        temporary.mkdir()
        files.write_file(temporary / "part", b"")
    assert os.listdir(tmp_path) == ["x"] and os.listdir(target) == ["part"]


@pytest.mark.parametrize("dangling", [False, True])
def test_what_is_there_is_replaced_only_where_that_was_asked_for(
    tmp_path: Path, dangling: bool
) -> None:
    target = tmp_path / "x.bin"
    if dangling:
        target.symlink_to("nowhere")
    else:
        target.write_bytes(b"old")
    with pytest.raises(rs.ConflictError, match="exists already"), files.appearing(target):
        raise AssertionError("entered")
    with files.appearing(target, replace=True) as temporary:
        files.write_file(temporary, b"new")
    assert target.read_bytes() == b"new" and not target.is_symlink()


def test_one_that_was_made_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    with pytest.raises(rs.ConflictError), files.appearing(target) as temporary:
        files.write_file(temporary, b"mine")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs" and os.listdir(tmp_path) == ["x.bin"]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "none" / "x.bin"
    with (
        pytest.raises(
            rs.StorageError, match=r"none/x\.bin: could not be written: No such"
        ) as caught,
        files.appearing(target) as temporary,
    ):
        files.write_file(temporary, b"")
    assert files.TEMPORARY not in str(caught.value)
    assert caught.value.errno == errno.ENOENT


def test_a_file_whose_name_may_not_be_on_the_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise rs.StorageError(errno.EIO, f"{path}: could not be written to disk")

    monkeypatch.setattr(files, "sync_folder", refuse)
    with pytest.raises(rs.StorageError), files.appearing(tmp_path / "x.bin") as temporary:
        files.write_file(temporary, b"")
    assert not os.listdir(tmp_path)


def test_a_disk_that_refuses_to_say_what_is_to_be_removed_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(ZeroDivisionError), files.appearing(tmp_path / "x") as temporary:
        temporary.touch()
        monkeypatch.setattr(os, "stat", refuse)
        1 / 0  # noqa: B018

    monkeypatch.undo()
    refused = pytest.raises(rs.StorageError, match="Input/output error")
    with refused, files.appearing(tmp_path / "x"):
        monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_does_not_say_whether_a_name_is_taken_is_not_taken_for_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert files.is_there(tmp_path / "file") and files.is_there(tmp_path / "link")
    assert not files.is_there(tmp_path / "none") and not files.is_there(tmp_path / "file" / "x")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "lstat", refuse)
    with pytest.raises(rs.StorageError, match=r"none: could not be looked for: Input/output"):
        files.is_there(tmp_path / "none")
    with pytest.raises(rs.StorageError), files.appearing(tmp_path / "none"):
        raise AssertionError("entered")

"""What the disk says while something is opened comes out as an error that names the file."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import raggedstore as rs


@pytest.fixture
def store(tmp_path: Path) -> rs.Store:
    store = rs.create(tmp_path / "store", {"n": rs.Field("int64")})
    with store.writer() as writer:
        writer.append({"n": 1})
    return store


@pytest.mark.parametrize("call", ["stat", "lstat", "open", "fstat"])
def test_an_error_of_the_disk_names_what_could_not_be_opened(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def failing(*given: Any, **options: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        with pytest.raises(rs.StorageError) as caught:
            rs.open(store.path)

    assert str(store.path) in str(caught.value) and "Too many open files" in str(caught.value)
    assert rs.open(store.path)[0]["n"] == 1


def test_a_segment_that_cannot_be_looked_for_is_not_taken_for_removed(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = rs.open(store.path)
    real = os.open

    def failing(path: Any, *rest: Any, **options: Any) -> int:
        if str(path).endswith(".h5"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(rs.StorageError, match=r"\.h5.*Input/output error"):
        reader[0]

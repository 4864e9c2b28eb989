"""Descriptors are closed without a word, whatever the system says of it."""

import errno
import os
from pathlib import Path

import pytest

from raggedstore.segment.file import Descriptor


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

"""Sizes as people write them."""

from typing import Any

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (17, 17),
        (1e6, 1_000_000),
        ("17", 17),
        ("256MB", 256_000_000),
        ("64 KiB", 65_536),
        ("1.5gb", 1_500_000_000),
    ],
)
def test_sizes_are_read(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "5 apples", "1e3", -1, None, [1], np.nan, np.inf])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(rs.UsageError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1300, "1.3 kB"), (5 * 10**12, "5.0 TB")]
)
def test_sizes_are_shown(size: int, text: str) -> None:
    assert format_bytes(size) == text

"""Sizes in bytes as people write them: ints, or strings such as "256MB" and "64 KiB"."""

from __future__ import annotations

import re

from raggedstore.errors import UsageError

__all__ = ["format_bytes", "parse_bytes"]

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[_letter] = _UNITS[_letter + "B"] = 1000**_power
    _UNITS[_letter + "IB"] = 1024**_power


def parse_bytes(size: int | str, *, what: str = "size") -> int:
    """The number of bytes that `size` means; "MB" is 10**6 and "MiB" 2**20.

    >>> parse_bytes("256MB")
    256000000
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)\s*", size)
        if match is None or match[2].upper() not in _UNITS:
            raise UsageError(f"{what} {size!r} is not a size such as 1000000, '256MB' or '1GiB'")
        value = int(min(float(match[1]) * _UNITS[match[2].upper()], 2.0**63))  # as good as any
    else:
        try:
            value = int(size)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"{what} is a number of bytes or a string such as '256MB', got {size!r}"
            ) from None
    if value < 0:
        raise UsageError(f"{what} must not be negative, got {size!r}")
    return value


def format_bytes(count: float) -> str:
    """`count` bytes for people: ``1.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

"""How campaigns tell what they tried and found."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["conclude", "print_row"]


def print_row(*cells: object, first: int = 16, width: int = 10) -> None:
    """A row of a table: what stands first begins it, and numbers end where their columns do."""
    told = [f"{cell:,}" if isinstance(cell, int) else f"{cell}" for cell in cells[1:]]
    print(f"{cells[0]!s:{first}}" + "".join(f"{cell:>{width}}" for cell in told), flush=True)


def conclude(what: str, started: float, faults: Sequence[str]) -> NoReturn:
    """The last lines, and the exit status: 1 where there are faults."""
    print(f"{what}, {time.monotonic() - started:.0f} s, {len(faults)} faults")
    print(*faults, sep="\n", end="\n" * bool(faults))
    sys.exit(bool(faults))

"""What the commands print: tables, JSON, and samples' values as short safe text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import numpy as np

from raggedstore.schema import Field

__all__ = ["one_line", "plain", "print_json", "print_table", "summary", "value_text", "when"]

_WIDE = 100_000


def plain(text: object) -> str:
    """`text` with control characters escaped: what a corpus holds must not steer a terminal."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def one_line(text: object) -> str:
    """`text` as `plain`, its line breaks turned to spaces."""
    return plain(" ".join(str(text).split()))


def when(time: str) -> str:
    """An ISO 8601 time in UTC, for people: to the second."""
    return f"{time[:19].replace('T', ' ')} UTC"


def print_json(value: Any) -> None:
    """`value` as indented JSON on stdout; what does not print is escaped, as in `plain`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False)
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, right: str = ""
) -> None:
    """A table on stdout; whole and without colours where that is no terminal.

    Parameters
    ----------
    right
        One letter per column: ``r`` flushes it right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if terminal else None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        justify = "right" if right[i : i + 1] == "r" else "left"
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = Console(width=None if terminal else _WIDE, highlight=False, markup=False)
    if terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def value_text(value: Any, field: Field) -> str:
    """One value in full, as `show` prints it."""
    if field.kind == "str":
        return "\n".join(plain(line) for line in value.split("\n"))
    if field.kind == "bytes":
        return repr(value)
    if field.shape == ():
        return str(value)
    edge = 3 if value.ndim < 3 else 1
    shown = np.array2string(value, threshold=200, edgeitems=edge, max_line_width=100)
    return "\n".join(line for line in shown.splitlines() if line)


def summary(value: Any, field: Field, *, width: int = 60) -> str:
    """One value in short: text cut to `width`, an array's shape and range."""
    if field.kind == "str":
        cut = value if len(value) <= width else value[: width - 1] + "…"
        return plain(cut)
    if field.kind == "bytes":
        return repr(value) if len(value) <= width else f"{value[: width - 1]!r}… {len(value)} bytes"
    if field.shape == ():
        return str(value)
    size = "×".join(map(str, value.shape))
    if not value.size or value.dtype.kind not in "iuf":
        return size
    return f"{size}  {value.min():.6g} … {value.max():.6g}"

"""Text files to samples, a line or a file each.

Text is UTF-8, strictly: a file with a byte that is not is passed over whole, so every file is
checked to its end before its first line is taken. A line ends at ``"\\n"`` or ``"\\r\\n"``, which
is dropped, and nowhere else: other white space, lone carriage returns, form feeds, a byte order
mark and empty lines are kept as they are. Files are streamed: memory does not grow with their
size when taken by line.
"""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import SchemaError, UsageError
from raggedstore.interop.scan import SourceFile, Unreadable
from raggedstore.schema import Field

__all__ = ["SUFFIXES", "HeldLines", "TextReader"]

SUFFIXES = frozenset(
    {".txt", ".text", ".md", ".rst", ".tex", ".csv", ".tsv", ".jsonl", ".json", ".xml", ".html"}
    | {".htm", ".log"}
)
_PIECE_BYTES = 1 << 20
_BLOCK_LINES = 4096
_BLOCK_BYTES = 4 << 20


class HeldLines:
    """Which lines of a file a store holds, and whether they are those of the file.

    Parameters
    ----------
    texts
        The store's field of text.
    """

    def __init__(self, texts: Any) -> None:
        self._texts = texts
        self._runs: list[tuple[int, int]] = []  # of line numbers
        self._last = 0, 0  # the last line, and its sample

    def add(self, numbers: npt.NDArray[np.int64], first: int) -> None:
        """Lines that lie one after another in the store, from sample `first` on."""
        edges = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for a, b in itertools.pairwise(edges):
            begin, end = int(numbers[a]), int(numbers[b - 1])
            if self._runs and self._runs[-1][1] == begin:
                begin = self._runs.pop()[0]
            self._runs.append((begin, end + 1))
            self._last = max(self._last, (end, first + b - 1))

    def missing(self) -> Iterator[tuple[int, int | None]]:
        """From which line to which none is held; None: to the end."""
        after = 1
        for begin, end in sorted(self._runs):
            if begin > after:
                yield after, begin
            after = max(after, end)
        yield after, None

    def check(self, file: SourceFile) -> None:
        """Unreadable where the last line that is held is another one in the file."""
        number, sample = self._last
        with open(file.path, "rb") as source:
            line = next(itertools.islice(source, max(number - 1, 0), None), None)
        if line is None or _text(line) != self._texts[sample]:
            raise Unreadable(f"line {number} is not what the corpus holds by this path")


class TextReader:
    """Text: fields ``text`` and ``path``, and by line also ``line``, counted from 1.

    Parameters
    ----------
    per
        "line" or "file": what becomes a sample.
    """

    kind = "text"

    def __init__(self, per: str = "line") -> None:
        if per not in ("line", "file"):
            raise UsageError(f"per must be 'line' or 'file', got {per!r}")
        self._by_line = per == "line"
        self.samples_per_file = not self._by_line

    def probe(self, file: SourceFile) -> None:
        """Nothing: the schema is known."""

    def take(self, probed: None) -> None:
        """Nothing, likewise."""

    def fields(self) -> dict[str, Field]:
        """The schema."""
        fields = {"text": Field("str"), "path": Field("str")}
        return {**fields, "line": Field("int64")} if self._by_line else fields

    def fit(self, schema: Mapping[str, Field]) -> None:
        """SchemaError unless the store's ``text`` field holds text."""
        if schema["text"] != Field("str"):
            raise SchemaError(f"the corpus holds text as {schema['text']}, not as {Field('str')}")

    def read(
        self, file: SourceFile, common: Mapping[str, Any], held: HeldLines | None
    ) -> Iterable[tuple[list[dict[str, Any]], int]]:
        """The file's samples but those `held`, in blocks, once all of it was checked."""
        try:
            if self._by_line:
                _check(file)
                if held is not None:
                    held.check(file)
                return _lines(file, common, [(1, None)] if held is None else held.missing())
            text = file.path.read_bytes().decode()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8: {error.reason} at byte {error.start}") from error
        return [([{"text": text, **common}], file.nbytes)]


def _check(file: SourceFile) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with open(file.path, "rb") as source:
        while piece := source.read(_PIECE_BYTES):
            kept = len(decoder.getstate()[0])
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                raise Unreadable(
                    f"not UTF-8: {error.reason} at byte {done - kept + error.start}"
                ) from error
            done += len(piece)
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8: {error.reason} at its end") from error


def _lines(
    file: SourceFile, common: Mapping[str, Any], runs: Iterable[tuple[int, int | None]]
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    block: list[dict[str, Any]] = []
    nbytes = 0
    ahead = iter(runs)
    first, end = next(ahead)
    try:
        with open(file.path, "rb") as source:
            for number, line in enumerate(source, start=1):
                nbytes += len(line)
                if number == end:
                    first, end = next(ahead)
                if number >= first:
                    block.append({"text": _text(line), "line": np.int64(number), **common})
                if len(block) >= _BLOCK_LINES or nbytes >= _BLOCK_BYTES:
                    yield block, nbytes
                    block, nbytes = [], 0
    except OSError as error:
        raise Unreadable(error.strerror or os.strerror(error.errno or 0)) from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"changed while it was read: {error.reason}") from error
    if block or nbytes:
        yield block, nbytes


def _text(line: bytes) -> str:
    if line.endswith(b"\n"):
        line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
    return line.decode()

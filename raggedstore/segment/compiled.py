"""Blocks from the file to where they are wanted, by the compiled kernel.

A batch is planned in two calls: its ranges of rows are cut at chunk borders and put in file order
(`cut`); then, of the chunks that are not better taken otherwise, which blocks are wanted, where
they lie, and what goes from them to where (`lay_out`). The pieces of blocks are shared out among
groups of about as many bytes as a core's own cache holds. A thread reads the blocks of a group,
checks and decodes them, copies the pieces from them while they lie there, and takes the next group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raggedstore import kernel

__all__ = ["Cut", "Layout", "Table", "cut", "decode", "decode_run", "lay_out"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Numbers = bytes | Int64s

#: Bytes of blocks in a group: they and what they are stored as are held at once.
_GROUP = 2**17


class HasFileno(Protocol):
    """An open file, as long as somebody has it."""

    def fileno(self) -> int:
        """The descriptor's number."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where the blocks of a dataset's chunks lie: its `BlockTable` and where chunks begin."""

    header: bytes  #: that compressed blocks share, sizes left out
    nbytes: int  #: raw bytes in a block
    offsets: npt.NDArray[np.uint64]  #: (n_chunks,) where each begins in the file
    edges: npt.NDArray[np.uint32]  #: (n_chunks, k + 1)
    checks: npt.NDArray[np.uint32] | None  #: (n_chunks, k) to hold blocks against


@dataclass(frozen=True, slots=True)
class Cut:
    """Ranges of rows cut at chunk borders, in the order of the blocks that they begin in."""

    pieces: bytes  #: (n, 4) int64: chunk; and in bytes, first and number in it, place in the output
    edges: bytes  #: (runs + 1,) int64: the first piece of each run, which is one chunk's
    chunks: list[int]  #: (runs,) the chunks
    blocks: list[int]  #: (runs,) how many blocks of each the pieces lie in

    def of(self, runs: list[int]) -> list[Int64s]:
        """For some runs where each begins in what follows; and first, number, place of pieces."""
        pieces = np.frombuffer(self.pieces, np.int64).reshape(-1, 4)
        edges = np.frombuffer(self.edges, np.int64)
        if len(runs) < len(self.chunks):
            parts = [slice(edges[i], edges[i + 1]) for i in runs]
            pieces = np.concatenate([pieces[part] for part in parts])
            edges = np.cumsum([0, *(part.stop - part.start for part in parts)])
        return [np.ascontiguousarray(a) for a in (edges, *pieces.T[1:])]

    def sizes(self) -> list[int]:
        """(runs,) bytes of each run's pieces."""
        counts = np.frombuffer(self.pieces, np.int64).reshape(-1, 4)[:, 2]
        sums: list[int] = np.add.reduceat(counts, np.frombuffer(self.edges, np.int64)[:-1]).tolist()
        return sums

    def whole(self, nbytes: int) -> list[bool]:
        """(runs,) whether a run is one piece, of `nbytes`."""
        edges = np.frombuffer(self.edges, np.int64)
        counts = np.frombuffer(self.pieces, np.int64).reshape(-1, 4)[edges[:-1], 2]
        alone: list[bool] = ((np.diff(edges) == 1) & (counts == nbytes)).tolist()
        return alone


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks of a file, and what is wanted of them in groups that share no block."""

    begins: Numbers  #: (n,) where each block begins in the file
    sizes: Numbers  #: (n,) stored bytes
    raw: bytes | npt.NDArray[np.bool_]  #: (n,) not compressed
    checks: bytes | npt.NDArray[np.uint32] | None  #: (n,) uint32 to hold them against
    froms: Numbers  #: (k,) where each piece begins in what all blocks decode to
    counts: Numbers  #: (k,) bytes
    places: Numbers  #: (k,) the byte of the output where it is to begin
    edges: Numbers  #: (groups + 1,) its first piece
    block_edges: Numbers  #: (groups + 1,) its first block
    stored: int  #: bytes of scratch memory that a thread needs for stored blocks
    decoded: int  #: and for decoded ones

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self.edges) // (8 if isinstance(self.edges, bytes) else 1) - 1


def cut(
    starts: Int64s, stops: Int64s, places: Int64s, *, rows: int, row: int, chunk: int, block: int
) -> Cut:
    """Cut ranges of rows where chunks end.

    Parameters
    ----------
    starts, stops, places
        (k,) rows ``[start, stop)`` of a dataset of `rows` rows, and the row of the output that each
        range goes to.
    row, chunk, block
        Bytes of each.

    Raises
    ------
    ValueError
        A range lies outside.
    """
    numbers = (np.ascontiguousarray(a, np.int64) for a in (starts, stops, places))
    pieces, edges, chunks, blocks = kernel.compiled().cut(*numbers, rows, row, chunk, block)
    runs, counts = (np.frombuffer(a, np.int64).tolist() for a in (chunks, blocks))
    return Cut(pieces, edges, runs, counts)


def lay_out(cut: Cut, chosen: bytes | bytearray, table: Table) -> Layout:
    """Which blocks the pieces of the `chosen` runs, (runs,) of 0 and 1, lie in, and where.

    Raises
    ------
    ValueError
        They lie outside of what the table tells.
    """
    arrays = kernel.compiled().lay_out(
        cut.pieces,
        cut.edges,
        chosen,
        table.nbytes,
        max(_GROUP // table.nbytes, 1) * table.nbytes,
        table.offsets,
        table.edges,
        table.checks,
    )
    layout = Layout(*arrays)
    return layout if table.checks is not None else replace(layout, checks=None)


def decode(
    file: HasFileno | memoryview,
    table: Table,
    layout: Layout,
    out: Bytes,
    state: Int64s,
    stored: Bytes,
    decoded: Bytes,
) -> bool:
    """Decode blocks and copy pieces of them to `out`; False where something is wrong with one.

    Several threads may be at it together, with the same `state`, (2,) zeros at first, and scratch
    memory of their own: each takes a group and another until none is left. All is there when the
    last of them returns.
    """
    done: bool = kernel.compiled().decode(
        _file(file),
        table.header,
        table.nbytes,
        layout.begins,
        layout.sizes,
        layout.raw,
        b"" if layout.checks is None else layout.checks,
        layout.checks is not None,
        layout.froms,
        layout.counts,
        layout.places,
        layout.edges,
        layout.block_edges,
        out,
        state,
        stored,
        decoded,
    )
    return done


def decode_run(
    file: HasFileno | memoryview,
    header: bytes,
    block: int,
    edges: npt.NDArray[np.uint32],
    checks: npt.NDArray[np.uint32] | None,
    run: tuple[int, int, int, int],
    out: Bytes,
    stored: Bytes,
    decoded: Bytes,
) -> bool:
    """Fill `out` from blocks side by side in one chunk; False where something is wrong with one.

    Parameters
    ----------
    edges, checks
        Those of the chunk in its `BlockTable`; without `checks` nothing is held against them.
    run
        Where the chunk begins in the file, its first block that is wanted, how many are, and the
        byte of what they decode to that `out` begins with.
    """
    done: bool = kernel.compiled().decode_run(
        _file(file),
        header,
        block,
        edges,
        b"" if checks is None else checks,
        checks is not None,
        *run,
        out,
        stored,
        decoded,
    )
    return done


def _file(file: HasFileno | memoryview) -> int | memoryview:
    return file if isinstance(file, memoryview) else file.fileno()

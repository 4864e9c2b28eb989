"""Blocks from the file to where they are wanted, by the compiled kernel.

The pieces of blocks that a batch wants are shared out among groups of about as many bytes as a
core's own cache holds. A thread reads the blocks of a group, checks and decodes them, copies the
pieces from them while they lie there, and takes the next group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raggedstore import kernel
from raggedstore.batch import expand_ranges
from raggedstore.indexing import stable_order
from raggedstore.segment.blocks import HEADER

__all__ = ["Blocks", "Pieces", "decode", "decode_run", "group", "scratch_sizes"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

#: Bytes of blocks in a group: they and what they are stored as are held at once.
_GROUP = 2**17


class HasFileno(Protocol):
    """An open file, as long as somebody has it."""

    def fileno(self) -> int:
        """The descriptor's number."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of one dataset's chunks, and the file that they lie in."""

    file: HasFileno | memoryview  #: or its bytes
    header: bytes  #: that compressed ones share, sizes left out
    nbytes: int  #: raw bytes in a block
    begins: Int64s  #: (n,) where each begins in the file
    sizes: Int64s  #: (n,) stored bytes
    raw: npt.NDArray[np.bool_]  #: (n,) not compressed
    checks: npt.NDArray[np.uint32] | None  #: (n,) checksums to hold them against


@dataclass(frozen=True, slots=True)
class Pieces:
    """What is wanted of blocks, all in bytes, in groups that share no block."""

    froms: Int64s  #: (k,) where each begins in what all blocks decode to, one after another
    counts: Int64s  #: (k,)
    places: Int64s  #: (k,) where it is to begin in the output
    edges: Int64s  #: (groups + 1,) its first piece
    block_edges: Int64s  #: (groups + 1,) its first block


def group(froms: Int64s, counts: Int64s, places: Int64s, block: int) -> Pieces:
    """Share pieces of blocks of `block` bytes out among groups, cut where groups end.

    Parameters
    ----------
    froms, counts, places
        (k,) as in `Pieces`, none empty, ordered by the block that they begin in, and of each
        block something wanted.
    """
    nbytes = max(_GROUP // block, 1) * block
    number = froms // nbytes
    parts = (froms + counts - 1) // nbytes - number + 1
    if (parts > 1).any():
        number = expand_ranges(number, parts)
        low = np.maximum(np.repeat(froms, parts), number * nbytes)
        high = np.minimum(np.repeat(froms + counts, parts), (number + 1) * nbytes)
        froms, counts, places = low, high - low, low + np.repeat(places - froms, parts)
        if (number[1:] < number[:-1]).any():  # a sample is asked for twice
            order = stable_order(number)
            number, froms, counts, places = (a[order] for a in (number, froms, counts, places))
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    block_edges = np.arange(len(begins) + 1) * (nbytes // block)
    block_edges[-1] = (froms + counts - 1).max() // block + 1
    arrays = froms, counts, places, np.append(begins, len(froms)), block_edges
    return Pieces(*map(np.ascontiguousarray, arrays))


def scratch_sizes(blocks: Blocks, pieces: Pieces) -> tuple[int, int]:
    """Bytes that `decode` needs of each kind of scratch memory, for its largest group."""
    most = int(np.diff(pieces.block_edges).max())
    stored = int(np.add.reduceat(blocks.sizes, pieces.block_edges[:-1]).max())
    return stored + HEADER + 4 * most, most * blocks.nbytes


def decode(
    blocks: Blocks, pieces: Pieces, out: Bytes, state: Int64s, stored: Bytes, decoded: Bytes
) -> bool:
    """Decode blocks and copy pieces of them to `out`; False where something is wrong with one.

    Several threads may be at it together, with the same `state`, (2,) zeros at first, and scratch
    memory of their own: each takes a group and another until none is left. All is there when the
    last of them returns.
    """
    done: bool = kernel.compiled().decode(
        _file(blocks.file),
        blocks.header,
        blocks.nbytes,
        blocks.begins,
        blocks.sizes,
        blocks.raw,
        b"" if blocks.checks is None else blocks.checks,
        blocks.checks is not None,
        pieces.froms,
        pieces.counts,
        pieces.places,
        pieces.edges,
        pieces.block_edges,
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

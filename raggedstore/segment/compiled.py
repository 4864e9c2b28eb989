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

__all__ = ["Blocks", "Pieces", "decode", "group", "scratch_sizes"]

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
    """Share pieces of blocks of `block` bytes out among groups, cutting those that are long.

    Parameters
    ----------
    froms, counts, places
        (k,) as in `Pieces`, none empty, ordered by the block that they begin in, and of each
        block something wanted.
    """
    froms, counts, places = map(np.ascontiguousarray, (froms, counts, places))
    nbytes = max(_GROUP // block, 1) * block
    if (counts > nbytes).any():
        first = froms // nbytes
        parts = (froms + counts - 1) // nbytes - first + 1
        low = expand_ranges(first, parts) * nbytes
        high = np.minimum(np.repeat(froms + counts, parts), low + nbytes)
        low = np.maximum(np.repeat(froms, parts), low)
        froms, counts, places = low, high - low, low + np.repeat(places - froms, parts)
        if (froms[1:] < froms[:-1]).any():  # a sample is asked for twice
            order = stable_order(froms)
            froms, counts, places = froms[order], counts[order], places[order]
    first, last = froms // block, (froms + counts - 1) // block
    # A group may begin with any piece that needs no block of those before it.
    apart = np.flatnonzero(first[1:] > np.maximum.accumulate(last[:-1])) + 1
    apart = np.concatenate([[0], apart])
    begins = apart[np.diff(first[apart] * block // nbytes, prepend=-1) > 0]
    edges = np.append(begins, len(froms))
    return Pieces(froms, counts, places, edges, np.append(first[begins], last.max() + 1))


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
    file = blocks.file if isinstance(blocks.file, memoryview) else blocks.file.fileno()
    done: bool = kernel.compiled().decode(
        file,
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

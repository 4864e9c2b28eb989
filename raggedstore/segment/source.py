"""What rows are gathered from: a dataset cut into chunks, and how to get at them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from raggedstore.segment import compiled
from raggedstore.segment.tasks import Task

__all__ = ["TRIFLE", "ChunkSource"]

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

#: A chunk up to this size is kept even when it is wanted whole: a store of many small segments
#: is made of such, and would decode them again and again.
TRIFLE = 2**14


class ChunkSource(Protocol):
    """A dataset cut into chunks, and how to get at them."""

    rows: int
    chunk_rows: int
    row_nbytes: int
    block_nbytes: int  #: raw bytes of a block; 0 where chunks can only be decoded whole
    is_side: bool  #: whether it says where samples lie, rather than holding them

    @property
    def is_small(self) -> bool:
        """Whether all of it takes little of the cache."""

    @property
    def room(self) -> int:
        """Bytes of chunks that one read may have the cache hold."""

    def cached(self, number: int) -> npt.NDArray[Any] | None:
        """The rows of a chunk, if they are in the cache or on their way there."""

    def held(self, numbers: list[int]) -> list[npt.NDArray[Any] | None]:
        """As `cached`, of several chunks."""

    def held_every(self, numbers: range) -> list[npt.NDArray[Any]] | None:
        """As `held`, where all of them are in the cache; else None."""

    def fetch(self, number: int) -> npt.NDArray[Any]:
        """The rows of a chunk, decoded whole and kept in the cache."""

    def decode_into(self, number: int, out: Bytes) -> None:
        """Decode a chunk into raw bytes of exactly its size, past the cache."""

    def has_blocks(self, number: int) -> bool:
        """Whether the blocks of a chunk can be told apart."""

    def rent(self, numbers: list[int], blocks: list[int]) -> list[bool]:
        """Of each chunk, whether to decode so many of its blocks, and not the whole of it."""

    def decode_blocks(self, blocks: Int64s, out: Bytes) -> None:
        """Decode blocks, numbered through all chunks and ascending, into `out`."""

    def scratch(self, nbytes: int) -> Bytes:
        """Memory of this thread's own to decode into, until it asks again."""

    def decode_laid_out(
        self, cut: compiled.Cut, chosen: list[bool], out: Bytes, otherwise: Task
    ) -> tuple[Task, int]:
        """What decodes the blocks of the chosen runs and copies their pieces, by the kernel.

        As many threads may be at it at once as there are parts, the second. Where something is
        wrong, `otherwise` is done instead.
        """

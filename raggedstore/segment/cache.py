"""Decoded chunks, least recently used dropped first, never more bytes than the budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ChunkCache"]

Chunk = npt.NDArray[np.uint8]


class ChunkCache:
    """A mapping from any key to a decoded chunk, bounded in bytes and safe from many threads.

    Parameters
    ----------
    budget
        Bytes of chunks to hold at most; 0 holds none.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._chunks: OrderedDict[Any, Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Chunk | None:
        """The chunk, now the most recently used; None where it is not held."""
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is None:
                self.misses += 1
                return None
            self._chunks.move_to_end(key)
            self.hits += 1
            return chunk

    def put(self, key: Any, chunk: Chunk) -> None:
        """Hold the chunk, unless it alone is over the budget."""
        if chunk.nbytes > self.budget:
            return
        chunk.flags.writeable = False
        with self._lock:
            old = self._chunks.pop(key, None)
            self.nbytes += chunk.nbytes - (old.nbytes if old is not None else 0)
            self._chunks[key] = chunk
            while self.nbytes > self.budget:
                self.nbytes -= self._chunks.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Drop every chunk."""
        with self._lock:
            self._chunks.clear()
            self.nbytes = 0

    def __repr__(self) -> str:
        return (
            f"<ChunkCache {self.nbytes} of {self.budget} bytes, "
            f"{self.hits} hits, {self.misses} misses>"
        )

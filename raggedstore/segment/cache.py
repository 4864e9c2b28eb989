"""Decoded chunks, least recently used dropped first, never more bytes than the budget.

Which chunks are worth their place? Samples read at random from a store much larger than the budget
touch a little of many chunks, and would be slowed by decoding each whole, only for it to be dropped
again; samples read over and over want nothing else. `ChunkCache.rent` settles it as one settles
whether to rent or to buy: blocks of a chunk are decoded and forgotten until that has cost as much
as decoding the chunk whole, which is then done and kept. It never costs more than twice what
knowing the future would. While the cache has room, and nothing need be dropped for it, a quarter of
that is enough. Where blocks go from the file to their places by the compiled kernel, to hold a
chunk costs several times what its blocks do, since memory for it must be found and cleared: such
readers are more patient. The first read of a large side column is free, being that of a plan: it
takes some of every chunk, a loop waits for it, and the next one takes few of them; and where that
takes as many, since two units are planned, the room there is makes no difference.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy.typing as npt

from raggedstore import kernel

__all__ = ["ChunkCache", "Finder"]

Chunk = npt.NDArray[Any]  # its rows
Finder = Callable[[int], tuple[int, int, tuple[int, ...], bytearray] | None]

#: What was rented is remembered for so many times as many chunks as the budget holds.
_REMEMBERED = 2


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
        self._pending: dict[Any, Future[Chunk]] = {}
        self._rented: OrderedDict[Any, int] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Chunk | None:
        """The chunk, now the most recently used; None where it is not held.

        One that is being prepared is waited for; where that fails, it is not held.
        """
        chunk = self._chunks.get(key)
        if chunk is not None:  # no lock: between these steps all is well, but for a hit not counted
            self.hits += 1
            try:  # noqa: SIM105 - suppress takes as long as all the rest
                self._chunks.move_to_end(key)
            except KeyError:  # dropped since
                pass
            return chunk
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self.hits += 1
                return chunk
            pending = self._pending.get(key)
            if pending is None:
                self.misses += 1
                return None
        try:
            chunk = pending.result()
        except Exception:
            return None  # whoever wants it now meets the error himself
        with self._lock:
            self.hits += 1
        return chunk

    def get_all(self, column: Any, numbers: Sequence[int]) -> list[Chunk | None]:
        """As `get`, of the chunks with the keys ``(column, number)``."""
        found: list[Chunk | None] = []
        with self._lock:
            waiting, missing = bool(self._pending), 0
            for number in numbers:
                full = (column, number)
                chunk = self._chunks.get(full)
                if chunk is not None:
                    self._chunks.move_to_end(full)
                else:
                    missing += 1
                found.append(chunk)
            self.hits += len(numbers) - missing
            if not waiting:
                self.misses += missing
                return found
        pairs = zip(numbers, found, strict=True)
        return [self.get((column, number)) if chunk is None else chunk for number, chunk in pairs]

    def get_every(self, column: Any, numbers: range) -> list[Chunk] | None:
        """As `get_all`, where all of them are held; else None, and nobody has asked."""
        chunks = self._chunks
        with self._lock:
            if len(numbers) > len(chunks):
                return None
            keys = [(column, number) for number in numbers]
            found = [chunks[full] for full in keys if full in chunks]
            if len(found) < len(keys):
                return None
            for full in keys:
                chunks.move_to_end(full)
            self.hits += len(keys)
        return found

    def finder(self, span: Any, shape: Any, data: Any, found: bytes) -> Finder | None:
        """What finds a sample by its position, where this is compiled.

        It gives the sample's start and stop in data, its shape, and its values as raw bytes; None
        where not all of its chunks are held, or what side columns say is unusual in any way.

        Parameters
        ----------
        span, shape, data
            The columns; `shape` may be None.
        found
            int64s: the rows in a chunk of each, the values in data and the bytes of one, and the
            dimensions, -1 where they are of any size.
        """
        if not kernel.is_there():
            return None
        return partial(kernel.compiled().sample, self._chunks, span, shape, data, found)

    def put(self, key: Any, chunk: Chunk) -> None:
        """Hold the chunk, unless it alone is over the budget."""
        chunk.flags.writeable = False
        if chunk.nbytes > self.budget:
            return
        with self._lock:
            self._rented.pop(key, None)
            old = self._chunks.pop(key, None)
            self.nbytes += chunk.nbytes - (old.nbytes if old is not None else 0)
            self._chunks[key] = chunk
            while self.nbytes > self.budget:
                self.nbytes -= self._chunks.popitem(last=False)[1].nbytes

    def prepare(self, key: Any, start: Callable[[], Future[Chunk] | None]) -> None:
        """Hold the chunk that `start` has made elsewhere, unless it is held or on its way."""
        with self._lock:
            if key in self._chunks or key in self._pending:
                return
            future = start()
            if future is None:
                return
            self._pending[key] = future
        future.add_done_callback(lambda done: self._arrived(key, done))

    def _arrived(self, key: Any, done: Future[Chunk]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.put(key, done.result())
        with self._lock:
            self._pending.pop(key, None)

    def rent(
        self,
        wanted: Iterable[tuple[Any, int]],
        whole: int,
        *,
        first: bool = False,
        patience: int = 1,
    ) -> list[bool]:
        """Of each chunk of `whole` bytes whether to decode a part of it, and not to hold it whole.

        `wanted` are their keys, and the bytes of each part. With `first` it is so the first time,
        whatever it costs, which is not counted, and room makes no difference. `patience` is how
        many times as dear as its blocks' decoding it is to hold a chunk.
        """
        if whole > self.budget:
            return [True for _ in wanted]
        rented, answers = self._rented, []
        with self._lock:
            most = patience * whole
            if self.nbytes + whole <= self.budget and not first:
                most //= 4
            for key, nbytes in wanted:
                before = rented.pop(key, None)
                paid = 0 if first and before is None else (before or 0) + nbytes
                rent = paid <= most
                if rent:
                    rented[key] = paid
                answers.append(rent)
            while len(rented) * whole > _REMEMBERED * self.budget:
                rented.popitem(last=False)
        return answers

    def clear(self) -> None:
        """Drop every chunk."""
        with self._lock:
            self._chunks.clear()
            self._rented.clear()
            self.nbytes = 0

    def after_fork(self) -> None:
        """Begin anew: a thread that the child doesn't have may have held the lock."""
        self._lock = threading.Lock()
        self._pending.clear()
        self.clear()

    def __repr__(self) -> str:
        return (
            f"<ChunkCache {self.nbytes} of {self.budget} bytes, "
            f"{self.hits} hits, {self.misses} misses>"
        )

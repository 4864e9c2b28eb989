"""What every peer offers: files made from a corpus, samples one at a time, and a reader.

A peer writes a corpus into a folder of its own and opens a reader on it. A reader gives epochs as
batches in whatever form the peer gives fastest: a list of arrays, or `Flat`. What a peer has no
way to do it answers with None.

A cache of decoded data is worth much in any random order, so nobody gets one of another size:
`open` takes the bytes that a reader may hold, and `UnitCache` is for formats that decode in units
but leave it to their user to keep them.
"""

from __future__ import annotations

import importlib.util
import itertools
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.corpora import Corpus

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]


class Flat(NamedTuple):
    """A batch in one array: sample i is ``values[offsets[i]:offsets[i + 1]]`` of ``shapes[i]``.

    Offsets need not start at 0: a slice of a longer array keeps its own.
    """

    values: Array
    offsets: Int64s
    shapes: Int64s | None = None

    def to_list(self) -> list[Array]:
        """One array per sample."""
        bounds = (self.offsets - self.offsets[0]).tolist()
        flat = [self.values[a:b] for a, b in itertools.pairwise(bounds)]
        if self.shapes is None:
            return flat
        return [a.reshape(shape) for a, shape in zip(flat, self.shapes, strict=True)]


Batch = list[Array] | Flat


class Reader(ABC):
    """An open file or store. The epochs are iterators of batches; None: there is no such way."""

    @abstractmethod
    def sequential(self, batch: int) -> Iterator[Batch]:
        """All samples in order."""

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        """The samples in exactly this order."""
        return None

    def windowed(self, seed: int, batch: int) -> Iterator[Batch] | None:
        """All samples, shuffled as well as the peer's own windowed or buffered shuffle does."""
        return None

    def get(self, i: int) -> Array | None:
        """One sample."""
        return None

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Close the files."""


class Peer(ABC):
    """One library at one setting."""

    name: str
    compressed: bool = True
    #: Ours are compared with the best of the others.
    ours: ClassVar[bool] = False
    #: False where the files are another's: neither size nor writing is then its own.
    writes: bool = True
    #: What must be importable.
    modules: ClassVar[tuple[str, ...]] = ()

    def available(self) -> bool:
        """Whether its modules are installed."""
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    def load(self) -> None:
        """Import what it needs, so that no measure has that in it."""
        for module in self.modules:
            importlib.import_module(module)

    @abstractmethod
    def write(self, folder: Path, corpus: Corpus) -> None:
        """Write a corpus in bulk into an empty folder."""

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        """Write samples one by one into an empty folder; False where there is no such way.

        `like` gives dtype and dimensions.
        """
        return False

    @abstractmethod
    def open(self, folder: Path, cache_bytes: int) -> Reader:
        """Open what `write` or `append` wrote."""


class UnitCache:
    """Decoded units (record batches, row groups, chunks), the least recently used dropped first.

    Parameters
    ----------
    load
        Decodes unit `number`; gives it with its size in bytes.
    """

    def __init__(self, load: Callable[[int], tuple[Any, int]], cache_bytes: int) -> None:
        self._load = load
        self._left = cache_bytes
        self._units: OrderedDict[int, tuple[Any, int]] = OrderedDict()

    def __getitem__(self, number: int) -> Any:
        found = self._units.get(number)
        if found is not None:
            self._units.move_to_end(number)
            return found[0]
        unit, nbytes = self._units[number] = self._load(number)
        self._left -= nbytes
        while self._left < 0 and len(self._units) > 1:
            self._left += self._units.popitem(last=False)[1][1]
        return unit


class FlatReader(Reader):
    """Over one long array that slices: offsets and shapes are held in memory, values are read."""

    offsets: Int64s
    shapes: Int64s | None

    @abstractmethod
    def slice(self, start: int, stop: int) -> Array:
        """Values ``[start, stop)``."""

    def _index(self, offsets: Int64s, shapes: Int64s | None) -> None:
        self.offsets, self.shapes = offsets, shapes
        self._bounds: list[int] = offsets.tolist()
        self._shapes = None if shapes is None else list(map(tuple, shapes.tolist()))

    def sequential(self, batch: int) -> Iterator[Batch]:
        for i in range(0, len(self.offsets) - 1, batch):
            offsets = self.offsets[i : i + batch + 1]
            values = self.slice(int(offsets[0]), int(offsets[-1]))
            yield Flat(values, offsets, None if self.shapes is None else self.shapes[i : i + batch])

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return ([self.get(i) for i in part] for part in parts_of(order, batch))

    def get(self, i: int) -> Array:
        flat = self.slice(self._bounds[i], self._bounds[i + 1])
        return flat if self._shapes is None else flat.reshape(self._shapes[i])


class ChunkedReader(FlatReader):
    """Over an array whose every read costs much, whatever its size: whole chunks, and kept.

    Parameters
    ----------
    chunk
        Values to read at once.
    """

    def __init__(self, dtype: np.dtype[Any], chunk: int, cache_bytes: int) -> None:
        self._dtype, self._chunk = dtype, chunk
        self._chunks = UnitCache(self._load, cache_bytes)

    @abstractmethod
    def load(self, start: int, stop: int) -> Array:
        """Values from `start` to `stop`, or to the end."""

    def _load(self, number: int) -> tuple[Array, int]:
        chunk = self.load(number * self._chunk, (number + 1) * self._chunk)
        return chunk, chunk.nbytes

    def slice(self, start: int, stop: int) -> Array:
        if stop == start:
            return np.empty(0, self._dtype)
        first, last = start // self._chunk, (stop - 1) // self._chunk
        low = first * self._chunk
        if first == last:
            values: Array = self._chunks[first][start - low : stop - low]
            return values
        parts = [self._chunks[number] for number in range(first, last + 1)]
        parts[0] = parts[0][start - low :]
        parts[-1] = parts[-1][: stop - last * self._chunk]
        return np.concatenate(parts)


class Records:
    """Samples as bytes: the shape (unless one-dimensional) and the values.

    Parameters
    ----------
    folder
        Where `describe` has said what they are.
    """

    def __init__(self, folder: Path) -> None:
        dtype, ndim = (folder / "type").read_text().split()
        self._dtype, self._ndim = np.dtype(dtype), int(ndim)
        self._head = 4 * self._ndim if self._ndim > 1 else 0

    @staticmethod
    def describe(folder: Path, like: Corpus) -> None:
        """Note dtype and dimensions."""
        (folder / "type").write_text(f"{like.dtype.str} {like.ndim}")

    @staticmethod
    def encode(sample: Array) -> bytes:
        """The record of a sample."""
        head = np.array(sample.shape, "<u4").tobytes() if sample.ndim > 1 else b""
        return head + sample.tobytes()

    def decode(self, record: bytes) -> Array:
        """The sample of a record, a view of it."""
        flat = np.frombuffer(record, self._dtype, offset=self._head)
        return flat.reshape(np.frombuffer(record, "<u4", self._ndim)) if self._head else flat


def parts_of(order: Int64s, batch: int) -> Iterator[list[int]]:
    """An order in lists of `batch` ints."""
    for i in range(0, len(order), batch):
        part: list[int] = order[i : i + batch].tolist()
        yield part


def batched(samples: Iterable[Array], batch: int) -> Iterator[list[Array]]:
    """Samples in lists of `batch`."""
    samples = iter(samples)
    while held := list(itertools.islice(samples, batch)):
        yield held


class IndexBuilder:
    """Offsets and shapes of samples that come one at a time."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.dims: list[tuple[int, ...]] = []

    def add(self, sample: Array) -> None:
        """Note one sample."""
        self.lengths.append(sample.size)
        if sample.ndim > 1:
            self.dims.append(sample.shape)

    @property
    def offsets(self) -> Int64s:
        """(n + 1,) running sum of the sizes."""
        offsets = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets

    @property
    def shapes(self) -> Int64s | None:
        """(n, d), None where all are one-dimensional."""
        return np.array(self.dims, np.int64) if self.dims else None

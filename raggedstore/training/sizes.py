"""How many bytes samples are when they are decoded, before they are.

An exact answer takes the shapes of the samples, which costs some 50 ns a sample: nothing where
they are long, half as much again as reading them where they are a few tokens each. There a look
at some of them has to do, unless it finds very different ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from raggedstore.indexing import Positions
from raggedstore.samples import Samples

__all__ = ["Dims", "Measures", "Sizes", "probes"]

Int64s = npt.NDArray[np.int64]

#: Bytes that go with each sample whatever it holds: its position and its place in a window.
_PLACES = 16
#: Bytes that go with each text once it is a str or bytes in a list.
_OBJECT = 72

_RUNS, _RUN = 64, 16
_FIRST = 1024
_PROBES = 128
_FEW = 1024
_SHORT = 1024
_ALIKE = 16

#: The most samples whose dimensions are kept: 256 MiB of them.
_KEPT = 2**26
_READ_SAMPLES = 2**18


def probes(samples: int) -> Positions:
    """Up to 1,024 samples from all over, in runs: neighbours lie in one chunk of side columns."""
    if samples <= _RUNS * _RUN:
        return np.arange(samples, dtype=np.int64)
    starts = np.arange(_RUNS, dtype=np.int64) * (samples - _RUN) // (_RUNS - 1)
    return np.unique(starts[:, None] + np.arange(_RUN))


class Sizes:
    """Bytes of the samples of `samples`, decoded: values, offsets and shapes, text as objects."""

    def __init__(self, samples: Samples, *, without: Collection[str] = ()) -> None:
        self._samples = samples
        self._fixed = float(_PLACES)
        self._ragged: dict[str, int] = {}
        self._mean: float | None = None
        for name, field in samples.schema.items():
            if name in without:
                continue
            if not field.is_ragged:
                self._fixed += math.prod(d or 0 for d in field.shape) * field.dtype.itemsize
                continue
            # While a batch is read: where each sample lies, its shape and its offset.
            self._fixed += 16 + 8 * (field.ndim + 1)
            self._ragged[name] = field.dtype.itemsize
            if field.kind != "array":
                self._fixed += _OBJECT
                self._ragged[name] = 2

    @property
    def mean(self) -> float:
        """Bytes of a sample on average, by a look at up to 1,024 of them the first time."""
        if self._mean is None:
            self._mean = self._mean_of(probes(len(self._samples)))
        return self._mean

    def _mean_of(self, positions: Positions) -> float:
        if not len(positions) or not self._ragged:
            return self._fixed
        return float(self.exact(positions).mean())

    def mean_of_first(self) -> float:
        """What `mean` is of the first 1,024 samples alone, which appending does not change."""
        return self._mean_of(np.arange(min(len(self._samples), _FIRST), dtype=np.int64))

    def exact(self, positions: Positions) -> Int64s:
        """(k,) bytes of each of the samples."""
        sizes = np.full(len(positions), int(self._fixed), np.int64)
        for name, itemsize in self._ragged.items():
            sizes += self._samples.read_shapes(name, positions).prod(axis=1) * itemsize
        return sizes

    def of(self, positions: Positions) -> Int64s:
        """(k,) bytes of each of the samples: of short ones, what they are on average here."""
        if not self._ragged:
            return np.broadcast_to(np.int64(self._fixed), len(positions))
        if len(positions) <= _FEW or self.mean >= _SHORT:
            return self.exact(positions)
        probes = positions[np.arange(_PROBES) * (len(positions) - 1) // (_PROBES - 1)]
        sizes = self.exact(probes)
        mean = float(sizes.mean())
        if mean >= _SHORT or sizes.max() > _ALIKE * mean:
            return self.exact(positions)
        return np.broadcast_to(np.int64(mean), len(positions))


class Dims:
    """The ragged dimensions of one field's samples, for batching rules.

    Read as they are asked for; once that has come to a quarter of all samples, all of them are
    read, and kept in 4 bytes each, since a random order reads the side columns all over.
    """

    def __init__(self, samples: Samples, name: str) -> None:
        self._samples, self._name = samples, name
        self._which = [i for i, d in enumerate(samples.schema[name].shape) if d is None]
        self._all: npt.NDArray[np.uint32] | None = None
        self._asked = 0

    def __call__(self, positions: Positions) -> Int64s:
        """(k, r) of each of the samples, the first dimension first."""
        if self._all is None:
            self._asked += len(positions)
            if 4 * self._asked < len(self._samples) or len(self._samples) > _KEPT:
                return self._read(positions)
            everything = np.empty((len(self._samples), len(self._which)), np.uint32)
            for start in range(0, len(everything), _READ_SAMPLES):
                some = np.arange(start, min(start + _READ_SAMPLES, len(everything)), dtype=np.int64)
                dims = self._read(some)
                if dims.max(initial=0) >= 2**32:
                    return self._read(positions)
                everything[start : start + len(some)] = dims
            self._all = everything
        return self._all[positions].astype(np.int64)

    def _read(self, positions: Positions) -> Int64s:
        return self._samples.read_shapes(self._name, positions)[:, self._which]


class Measures:
    """How large the samples of `samples` are, each question looked at when it is first asked."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._sizes: dict[frozenset[str], Sizes] = {}
        self._dims: dict[str, Dims] = {}

    def sizes(self, without: frozenset[str] = frozenset()) -> Sizes:
        """In bytes, but for the fields in `without`."""
        if without not in self._sizes:
            self._sizes[without] = Sizes(self._samples, without=without)
        return self._sizes[without]

    def dims(self, name: str) -> Dims:
        """In the ragged dimensions of field `name`."""
        if name not in self._dims:
            self._dims[name] = Dims(self._samples, name)
        return self._dims[name]

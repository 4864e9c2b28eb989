"""How many bytes samples are when they are decoded, before they are.

An exact answer takes the shapes of the samples, which costs some 50 ns a sample: nothing where
they are long, half as much again as reading them where they are a few tokens each. There a look
at some of them has to do, unless it finds very different ones.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from raggedstore.indexing import Positions
from raggedstore.samples import Samples

__all__ = ["Sizes"]

Int64s = npt.NDArray[np.int64]

#: Bytes that go with each sample whatever it holds: its position and its place in a window.
_PLACES = 16
#: Bytes that go with each text once it is a str or bytes in a list.
_OBJECT = 72

_RUNS, _RUN = 64, 16
_PROBES = 128
_SHORT = 1024
_ALIKE = 16


class Sizes:
    """Bytes of the samples of `samples`, decoded: values, offsets and shapes, text as objects."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._fixed = float(_PLACES)
        self._ragged: dict[str, int] = {}
        for name, field in samples.schema.items():
            if not field.is_ragged:
                self._fixed += math.prod(d or 0 for d in field.shape) * field.dtype.itemsize
                continue
            # While a batch is read: where each sample lies, its shape and its offset.
            self._fixed += 16 + 8 * (field.ndim + 1)
            self._ragged[name] = field.dtype.itemsize
            if field.kind != "array":
                self._fixed += _OBJECT
                self._ragged[name] = 2
        self.mean = self._mean()

    def _mean(self) -> float:
        n = len(self._samples)
        if not n or not self._ragged:
            return self._fixed
        if n <= _RUNS * _RUN:
            chosen = np.arange(n, dtype=np.int64)
        else:  # runs, since neighbours lie in one chunk of the side columns
            starts = np.arange(_RUNS, dtype=np.int64) * (n - _RUN) // (_RUNS - 1)
            chosen = np.unique(starts[:, None] + np.arange(_RUN))
        return float(self.exact(chosen).mean())

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
        if len(positions) <= _PROBES or self.mean >= _SHORT:
            return self.exact(positions)
        probes = positions[np.arange(_PROBES) * (len(positions) - 1) // (_PROBES - 1)]
        sizes = self.exact(probes)
        mean = float(sizes.mean())
        if mean >= _SHORT or sizes.max() > _ALIKE * mean:
            return self.exact(positions)
        return np.broadcast_to(np.int64(mean), len(positions))

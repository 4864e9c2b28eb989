"""A corpus to measure on: ragged samples of one dtype, flattened, as .npz files keep them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Samples whose mean size is below this come in larger batches, so that a batch is worth its call.
SMALL_SAMPLE = 1_000


@dataclass(frozen=True)
class Corpus:
    """Ragged samples: `values` flattened, `offsets` (n + 1), `shapes` (n, d) unless 1-d."""

    name: str
    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    shapes: npt.NDArray[np.int64] | None = None

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """The corpus in an .npz file, named after it."""
        with np.load(path) as arrays:
            shapes = arrays.get("shapes")
            return cls(path.stem, arrays["values"], arrays["offsets"].astype(np.int64), shapes)

    @classmethod
    def of(cls, name: str, samples: list[npt.NDArray[Any]]) -> Corpus:
        """The corpus of a list of arrays that agree in dtype and dimensions."""
        offsets = np.zeros(len(samples) + 1, np.int64)
        np.cumsum([sample.size for sample in samples], out=offsets[1:])
        values = np.concatenate([sample.reshape(-1) for sample in samples])
        shapes = np.array([sample.shape for sample in samples], np.int64)
        return cls(name, values, offsets, shapes if shapes.shape[1] > 1 else None)

    def save(self, folder: Path) -> Path:
        """Write it to FOLDER/<name>.npz."""
        path = folder / f"{self.name}.npz"
        arrays = {"values": self.values, "offsets": self.offsets}
        np.savez(path, **arrays, **({} if self.shapes is None else {"shapes": self.shapes}))
        return path

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> npt.NDArray[Any]:
        flat = self.values[self._bounds[i] : self._bounds[i + 1]]
        return flat if self.shapes is None else flat.reshape(self.shapes[i])

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return map(self.__getitem__, range(len(self)))

    @cached_property
    def _bounds(self) -> list[int]:
        bounds: list[int] = self.offsets.tolist()
        return bounds

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the values."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Dimensions of each sample."""
        return 1 if self.shapes is None else int(self.shapes.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the values alone: what every ratio and every MB/s is taken of."""
        return self.values.nbytes

    @property
    def batch(self) -> int:
        """Samples in a batch."""
        return 256 if self.nbytes < SMALL_SAMPLE * len(self) else 64

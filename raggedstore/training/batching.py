"""Batching rules: how many samples, one after another as the order gives them, make a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raggedstore.errors import UsageError

__all__ = ["FixedSize"]


@dataclass(frozen=True, slots=True)
class FixedSize:
    """Batches of `size` samples; the last of an epoch may have fewer.

    Parameters
    ----------
    size
        Samples in a batch, at least 1.
    """

    size: int

    def __post_init__(self) -> None:
        size = self.size
        if isinstance(size, (bool, np.bool_)) or not hasattr(size, "__index__"):
            raise UsageError(f"a batch's size must be an int, got {size!r}")
        if size.__index__() < 1:
            raise UsageError(f"a batch has 1 sample at least, got a size of {size}")
        object.__setattr__(self, "size", size.__index__())

    def count(self, samples: int, *, drop_last: bool) -> int:
        """How many batches `samples` make."""
        return samples // self.size if drop_last else -(-samples // self.size)

"""Array-likes that write down what is read of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Recording:
    """An array that gives out windows alone, as the documentation says they are asked for."""

    def __init__(
        self, values: npt.NDArray[Any], chunks: tuple[int, ...] | None = None, *, fail: bool = False
    ) -> None:
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.chunks = chunks
        self.fail = fail
        self.windows: list[tuple[slice, ...]] = []

    def __getitem__(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        assert isinstance(window, tuple) and len(window) == self.values.ndim
        for along, size in zip(window, self.shape, strict=True):
            assert 0 <= along.start < along.stop <= size and along.step > 0
        if self.fail:
            raise KeyError("lost")
        self.windows.append(window)
        return self.values[window]

    @property
    def values_read(self) -> int:
        """How many values were given out."""
        return sum(self.values[window].size for window in self.windows)

    def positions_read(self) -> npt.NDArray[np.intp]:
        """How often each value was given out, in the shape of the array."""
        times = np.zeros(self.shape, np.intp)
        for window in self.windows:
            times[window] += 1
        return times

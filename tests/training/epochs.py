"""What tests of loaders share: epochs as workers hand them over, and samples in between."""

from __future__ import annotations

import copy
from typing import Any

import raggedstore as rs
from raggedstore.samples import Samples
from raggedstore.training import Loader


def handed_over(loader: Loader, workers: int) -> list[Any]:
    """One epoch as `workers` processes of one loader would: in turn, until one has no more."""
    hands = [copy.copy(loader).iterate(w, workers) for w in range(workers)]
    out: list[Any] = []
    try:
        while True:
            for hand in hands:
                out.append(next(hand))
    except StopIteration:
        assert all(next(hand, None) is None for hand in hands)
    return out


class Between(Samples):
    """The samples of `base`; a subclass watches what is read of them, or fails."""

    def __init__(self, base: Samples) -> None:
        self.base = base

    @property
    def schema(self) -> rs.Schema:
        return self.base.schema

    def __len__(self) -> int:
        return len(self.base)

    def read(self, name: str, positions: Any) -> Any:
        return self.base.read(name, positions)

    def read_shapes(self, name: str, positions: Any) -> Any:
        return self.base.read_shapes(name, positions)

    def read_windows(self, name: str, positions: Any, starts: Any, stops: Any) -> Any:
        return self.base.read_windows(name, positions, starts, stops)

"""`Crop`: windows of long samples instead of the samples, of which nothing else is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError
from raggedstore.indexing import at_least
from raggedstore.schema import Schema
from raggedstore.training.keys import check_seed, derive_key, hashed
from raggedstore.training.picks import names_of

__all__ = ["Crop"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Crop:
    """At most `length` steps of each sample, along the first dimension.

    Parameters
    ----------
    field
        A field whose first dimension is ragged, or several that are of the same lengths sample by
        sample; all are cut alike.
    length
        Steps to keep. Shorter samples stay whole.
    seed
        Of the random places; another place each epoch.
    at
        "random", "start", "center" or "end".
    """

    field: str | Sequence[str]
    length: int
    seed: int = 0
    at: Literal["random", "start", "center", "end"] = "random"

    def __post_init__(self) -> None:
        object.__setattr__(self, "field", names_of(self.field, "Crop"))
        object.__setattr__(self, "length", at_least(0, self.length, "a crop's length"))
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.at not in ("random", "start", "center", "end"):
            raise UsageError(f"a crop is at 'random', 'start', 'center' or 'end', got {self.at!r}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that it cuts; the lengths of the first one decide."""
        return (self.field,) if isinstance(self.field, str) else tuple(self.field)

    def check(self, schema: Schema) -> None:
        """UsageError where a field can not be cut."""
        for name in self.fields:
            field = schema[name]
            if field.kind == "str":
                raise UsageError(f"{self!r}: cutting text {name!r} would cut through characters")
            if not field.is_ragged or not field.shape or field.shape[0] is not None:
                raise UsageError(f"{self!r}: field {name!r} has no ragged first dimension")

    def windows(
        self, positions: Int64s, lengths: Int64s, epoch: int, turns: Int64s | None = None
    ) -> tuple[Int64s, Int64s]:
        """(k,) where the window of each sample begins and ends; `turns` as in `Picks`."""
        room = np.maximum(lengths - self.length, 0)
        if self.at == "random":
            key = derive_key(self.seed, epoch, 0xC309)
            drawn = hashed(positions, key)
            if turns is not None:
                # By another key, or sample a in turn b would be cut as sample b in turn a.
                of_turns = hashed(turns, derive_key(self.seed, epoch, 0x70B5))
                drawn = hashed((drawn ^ of_turns).view(np.int64), key)
            chance = (drawn >> np.uint64(11)) * 2.0**-53
            # Rounded, the product may come to room + 1.
            starts = np.minimum((chance * (room + 1)).astype(np.int64), room)
        else:
            starts = {"start": room * 0, "center": room // 2, "end": room}[self.at]
        return starts, np.minimum(starts + self.length, lengths)

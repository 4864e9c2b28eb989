"""Which samples take part: those of one version of a store, less what a rule leaves out."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from raggedstore.errors import UsageError
from raggedstore.indexing import Positions
from raggedstore.samples import Concatenation, Growing, Part, Samples, Selection, check_unmoved
from raggedstore.where import is_rule, resolve

__all__ = ["Cover", "check_grows", "parts_of"]


class _First(Selection):
    """The first `count` samples, however many more there come to be."""

    def __init__(self, base: Samples, fields: tuple[str, ...] | None, count: int) -> None:
        super().__init__(base, None, fields)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def _of_base(self, positions: Positions) -> Positions:
        check_unmoved(self._base, self._moved)
        return positions

    def read_one(self, name: str, position: int) -> Any:
        check_unmoved(self._base, self._moved)
        return self._base.read_one(name, position)


class Cover:
    """The samples of `base` that `where` lets take part, of as many as there then are.

    A rule or function is asked about each sample once; a mask or positions say once and for all.
    """

    def __init__(self, base: Samples, where: Any, fields: tuple[str, ...] | None) -> None:
        self._base, self._where, self._fields = base, where, fields
        self._positions: Positions | None = None
        self._asked, self._moved = 0, base.moved
        #: What was asked for last, and of the first how many.
        self._latest: tuple[int, Samples | None] = -1, None
        self._digests: dict[int, str] = {}  # as many

    def first(self, count: int) -> Samples:
        """Those that take part of the first `count` samples."""
        if self._base.moved != self._moved:
            if self._where is not None and not is_rule(self._where):
                check_unmoved(self._base, self._moved)
            self._positions, self._asked, self._moved = None, 0, self._base.moved
            self._latest, self._digests = (-1, None), {}
        if self._where is None:
            return _First(self._base, self._fields, count)
        if self._positions is None or (is_rule(self._where) and count > self._asked):
            more = resolve(self._where, self._base, self._asked, count)
            assert more is not None
            known = self._positions
            self._positions = more if known is None else np.concatenate([known, more])
            self._asked = count
        positions = self._positions
        if is_rule(self._where) and count < self._asked:
            positions = positions[: int(np.searchsorted(positions, count))]
        self._latest = count, self._base.select(positions, fields=self._fields)
        return self._latest[1]

    def digest(self) -> str:
        """What tells one `where` from another: a rule itself, a name, or a few letters."""
        if self._where is None or isinstance(self._where, str):
            return repr(self._where)
        if callable(self._where):
            name = getattr(self._where, "__qualname__", type(self._where).__qualname__)
            return f"function {name}"
        return self._digest_of(self._asked)

    def asked_of(self, count: int) -> str | None:
        """What tells a function from others of its name: which of `count` samples it lets in."""
        return self._digest_of(count) if callable(self._where) else None

    def _digest_of(self, count: int) -> str:
        """A few letters that depend on which of the first `count` samples take part."""
        if count not in self._digests:
            # A copy of ten million positions takes a tenth of a second.
            known, chosen = self._latest
            if known != count:
                chosen = self.first(count)
            assert isinstance(chosen, Selection) and chosen._positions is not None
            positions = np.ascontiguousarray(chosen._positions, "<i8")
            self._digests = {count: xxhash.xxh3_64_hexdigest(positions.data)}
        return self._digests[count]


def parts_of(samples: Samples) -> str:
    """What tells several stores side by side from others: how many samples each has.

    Where one has more than it had, the samples of those after it have other positions. So they have
    where a repair has cut some out.
    """
    if isinstance(samples, Selection):
        return parts_of(samples._base)
    made = [samples.makeup] if isinstance(samples, Concatenation) else []
    made += [f"{samples.moved} repairs that lost samples"] if samples.moved else []
    return ", ".join(made)


def check_grows(samples: Samples) -> Growing:
    """`samples` as what can take a newer version; UsageError where they can't."""
    if isinstance(samples, Part):
        samples.check_grows()
    if not isinstance(samples, Growing):
        raise UsageError(
            f"only a loader of a store, or a part of it, can take a newer version, and this is one "
            f"of {samples!r}"
        )
    return samples

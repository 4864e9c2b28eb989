"""What a key means to a lazy array: which positions along each axis, and what to do with them.

The oracle is NumPy. A key of ints, slices, ellipses, new axes and one list or mask becomes a
`Plan`: of each axis what to read. Lists for several axes, or of several dimensions, mean single
points, and become `Points`. What is neither is Dask's to understand or refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import KeyTypeError

__all__ = ["Layout", "Pick", "Plan", "Points", "read_key"]

#: Positions along an axis: a range, or ascending ones, each once.
Pick = range | npt.NDArray[np.int64]


#: For each axis of a result the axis that it is of what was read, or None for a new one.
Layout = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A key, taken apart."""

    picks: tuple[Pick, ...]  #: what to read
    layout: Layout  #: how it lies in the result; axes left out are of length 1
    then: tuple[Any, ...] | None  #: a key for that, where a list is not ascending


@dataclass(frozen=True, slots=True)
class Points:
    """A key of lists for several axes, taken apart; each step goes on with what the last gave."""

    slices: tuple[slice, ...]  #: of each axis, all of those that there are lists for
    lists: tuple[Any, ...]  #: for Dask's ``vindex``, which puts the axes of the lists first
    axes: tuple[int, ...]  #: in which order NumPy has the axes
    new: tuple[Any, ...]  #: where there are new ones


@dataclass(frozen=True, slots=True)
class _List:
    """A list of a key, or the places along one axis where a mask holds."""

    values: npt.NDArray[np.int64]
    size: int | None = None  #: of the axis, if it is that of a mask

    def among(self, size: int) -> npt.NDArray[np.int64] | None:
        """The positions meant among `size`; None where that makes no sense."""
        if self.size not in (None, size):
            return None
        values = self.values
        if values.size and not -size <= values.min() <= values.max() < size:
            return None
        return np.where(values < 0, values + size, values)


def read_key(key: Any, shape: tuple[int, ...]) -> Plan | Points | None:
    """What a key of an array of `shape` means; None where it is Dask's to say."""
    given = key if isinstance(key, tuple) else (key,)
    parts = [plain for part in given for plain in _plain(part)]
    wide, apart = _expand(parts, len(shape)), _stand_apart(parts)
    if wide is None:
        return None
    lists = [part for part in wide if isinstance(part, _List)]
    if len(lists) > 1 or any(part.values.ndim > 1 for part in lists):
        return _points(wide, shape, apart=apart)
    picks: list[Pick] = []
    layout: list[int | None] = []
    then: tuple[Any, ...] | None = None
    for part in wide:
        if part is None:
            layout.append(None)
            continue
        size, axis = shape[len(picks)], len(picks)
        if isinstance(part, int):
            if not -size <= part < size:
                return None  # Dask raises what NumPy does
            picks.append(range(part % size, part % size + 1))
            continue
        layout.append(axis)
        if isinstance(part, slice):
            picks.append(range(size)[part])
            continue
        positions = part.among(size)
        if positions is None:
            return None
        if apart:
            layout.insert(0, layout.pop())
        unique, inverse = np.unique(positions, return_inverse=True)
        picks.append(unique)
        if not np.array_equal(unique, positions):
            then = (*(slice(None),) * layout.index(axis), inverse)
    return Plan(tuple(picks), tuple(layout), then)


def _plain(part: Any) -> list[Any]:
    """A part of a key as ints, slices, ellipses, None and lists, or NotImplemented."""
    if part is None or part is Ellipsis:
        return [part]
    if isinstance(part, slice):
        ends = (part.start, part.stop, part.step)
        fine = all(e is None or hasattr(e, "__index__") for e in ends) and part.step != 0
        return [part] if fine else [NotImplemented]
    if isinstance(part, (bool, np.bool_, float, np.floating)):  # Dask takes them for ints
        raise KeyTypeError(f"{part!r} is no index: ints, slices, lists and masks are")
    if not isinstance(part, (int, np.integer, list, np.ndarray)):
        return [NotImplemented]
    try:
        array = np.asarray(part)
    except ValueError:  # of lists of different lengths
        return [NotImplemented]
    if isinstance(part, list) and not array.size:
        array = array.astype(np.int64)
    if array.dtype.kind == "b" and array.ndim:
        where = zip(np.nonzero(array), array.shape, strict=True)
        return [_List(values, size) for values, size in where]
    if array.dtype.kind not in "iu":
        return [NotImplemented]
    return [_List(array.astype(np.int64)) if array.ndim else int(array)]


def _expand(parts: list[Any], ndim: int) -> list[Any] | None:
    """The parts of a key with slices in the place of an ellipsis, and up to the last axis."""
    if any(part is NotImplemented for part in parts):
        return None
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    missing = ndim - sum(part is not None and part is not Ellipsis for part in parts)
    if len(dots) > 1 or missing < 0:
        return None
    at = dots[0] if dots else len(parts)
    return [*parts[:at], *(slice(None),) * missing, *parts[at + 1 :]]


def _stand_apart(parts: list[Any]) -> bool:
    """Whether NumPy puts the axes of lists first: where anything else is between them.

    To NumPy ints beside a list are lists too, and an ellipsis is there even if it means no axis.
    """
    fancy = [i for i, part in enumerate(parts) if isinstance(part, (int, _List))]
    return bool(fancy) and fancy[-1] - fancy[0] >= len(fancy)


def _points(wide: list[Any], shape: tuple[int, ...], *, apart: bool) -> Points | None:
    along = [part for part in wide if part is not None]
    positions = [
        None if isinstance(part, slice) else _as_list(part).among(size)
        for part, size in zip(along, shape, strict=True)
    ]
    meant = [p for p in positions if p is not None]
    if len(meant) < sum(not isinstance(part, slice) for part in along):
        return None
    try:
        points = np.broadcast_shapes(*(p.shape for p in meant))
    except ValueError:
        return None
    # What of the key comes before the points: what does before the first list, or nothing.
    first = next(i for i, part in enumerate(wide) if isinstance(part, (int, _List)))
    front = [] if apart else wide[:first]
    back = [part for part in wide[len(front) :] if part is None or isinstance(part, slice)]
    # Axes of what vindex gives: first those of the points, then those of the slices.
    n, before = len(points), sum(part is not None for part in front)
    axes = (*range(n, n + before), *range(n), *range(n + before, n + len(along) - len(meant)))
    new = [part and slice(None) for part in (*front, *(slice(None),) * n, *back)]
    return Points(
        tuple(part if isinstance(part, slice) else slice(None) for part in along),
        tuple(slice(None) if p is None else np.broadcast_to(p, points) for p in positions),
        axes,
        tuple(new),
    )


def _as_list(part: int | _List) -> _List:
    return _List(np.array(part)) if isinstance(part, int) else part

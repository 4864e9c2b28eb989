"""Several array-likes side by side as one lazy array, and tiles that a function loads.

Strategy. What has been put together is a source like its parts are: it reads a window by
reading from each part what of the window lies in it. So nothing is cut anew where the parts'
chunks differ, a mosaic of mosaics is no deeper in Dask's graph than one array, and an index goes
through to the files. Where a part is the result of a computation, Dask puts them together.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from raggedstore.errors import FormatError, StorageError, UsageError
from raggedstore.lazy.arguments import axis_number, cut, data_type, lock_given, sizes
from raggedstore.lazy.sources import laid_out
from raggedstore.lazy.windows import (
    Arranged,
    Chunks,
    Source,
    SourceArray,
    Window,
    source_of,
    unique_token,
)

__all__ = ["concatenate", "mosaic", "stack", "tiles"]


def concatenate(parts: Sequence[Any], axis: int = 0) -> da.Array:
    """Array-likes one after another along an axis they have; see `adapt` for what they may be.

    Raises
    ------
    UsageError
        There are none, or they differ in dtype or along another axis: the message says which.
    """
    return _concatenated(_parts(parts), axis).lazy()


def stack(parts: Sequence[Any], axis: int = 0) -> da.Array:
    """Array-likes of one shape one after another along a new axis.

    Raises
    ------
    UsageError
        As for `concatenate`.
    """
    each = _parts(parts)
    first = each[0]
    axis = axis_number(axis, len(first.shape) + 1)
    axes = range(len(first.shape))
    for part in each:
        _check_same(first, part, axes)
    sources = _sources(each)
    if sources is None:
        return da.stack([part.lazy() for part in each], axis=axis)
    layout = (*axes[:axis], None, *axes[axis:])
    chunks = (*first.chunks[:axis], (1,) * len(each), *first.chunks[axis:])
    return SourceArray.over(_Joined([Arranged(s, layout) for s in sources], axis), chunks)


def mosaic(parts: Sequence[Any], axes: Sequence[int] | None = None) -> da.Array:
    """Nested lists of array-likes as one: ``[[a, b], [c, d]]`` has `c` below `a`, `b` beside it.

    Parameters
    ----------
    parts
        Lists, nested to the same depth everywhere.
    axes
        For each level of nesting the axis that it goes along, the outermost first: by default
        0, 1 and so on. So pictures of (rows, columns, colours) are set as pictures.

    Raises
    ------
    UsageError
        As for `concatenate`; a part is called by its place, such as ``part [1][0]``.
    """
    depth = _depth(parts)
    along = tuple(range(depth)) if axes is None else sizes(axes, "axes")
    if len(along) != depth:
        raise UsageError(f"axes {list(along)} for lists nested {depth} deep")
    return _mosaic(parts, along, "").lazy()


def tiles(
    load: Callable[..., Any],
    *,
    grid: Sequence[int],
    tile: Sequence[int],
    dtype: Any,
    shape: Sequence[int] | None = None,
    chunks: Any = None,
    lock: Any = False,
) -> da.Array:
    """An array of tiles that a function loads when they are wanted.

    Parameters
    ----------
    load
        Called with a tile's position in the grid, ``load(row, column)``; gives an array of the
        shape of a tile and of `dtype`.
    grid
        How many tiles there are along the first axes.
    tile
        Shape of a tile; axes that the grid does not have are as long as the tile's.
    dtype
        Data type of all tiles.
    shape
        Of the whole, where the last tiles stick out: they are cropped, whether loaded cropped
        or whole.
    chunks
        As Dask takes them; by default a tile each. Larger ones cost less in computations over
        all of a large grid: only the tiles that a window touches are loaded either way.
    lock
        `load` may be called from several threads at once; ``True`` for one after another.

    Raises
    ------
    UsageError
        Grid, tile and shape do not go together, or another argument makes no sense.

    Examples
    --------
    >>> x = lazy.tiles(read_tile, grid=(512, 512), tile=(256, 256, 3), dtype="uint8")
    >>> x[1000:1400, 2000:2550].compute()
    """
    if not callable(load):
        raise UsageError(f"load={load!r}: give a function of a tile's position in the grid")
    source = _Tiles(load, grid, tile, data_type(dtype, "dtype"), shape)
    source.lock = lock_given(lock)
    unit = tuple(max(1, min(u, n)) for u, n in zip(source.tile, source.shape, strict=True))
    wanted = unit if chunks is None else chunks
    return SourceArray.over(source, cut(wanted, source.shape, source.dtype, unit))


# Parts


@dataclass(frozen=True, slots=True)
class _Part:
    """An array to be put beside others: what it reads from, or what computes it."""

    name: str  #: what errors call it
    of: Source | da.Array
    chunks: Chunks

    @classmethod
    def made(cls, name: str, x: Any) -> _Part:
        if isinstance(x, da.Array):
            return cls(name, source_of(x) or x, x.chunks)
        # No array of Dask for each part: there may be thousands of them, and one does.
        return cls(name, *laid_out(x))

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.of.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.of.dtype)

    def lazy(self) -> da.Array:
        """The lazy array of it."""
        return SourceArray.over(self.of, self.chunks) if isinstance(self.of, Source) else self.of


def _parts(parts: Sequence[Any]) -> list[_Part]:
    if not isinstance(parts, (list, tuple)) or not parts:
        raise UsageError("a list of arrays is to be put together, and not an empty one")
    return [_Part.made(f"part [{i}]", part) for i, part in enumerate(parts)]


def _check_same(a: _Part, b: _Part, axes: Sequence[int]) -> None:
    """UsageError where dtypes, numbers of dimensions, or lengths along `axes` differ."""
    if a.dtype != b.dtype:
        raise UsageError(
            f"{b.name} is {b.dtype}, and {a.name} is {a.dtype}: convert one with astype"
        )
    both = f"{b.name} is {b.shape}, and {a.name} is {a.shape}"
    if len(a.shape) != len(b.shape):
        raise UsageError(f"{both}: of other dimensions")
    for axis in axes:
        if a.shape[axis] != b.shape[axis]:
            raise UsageError(f"{both}: {b.shape[axis]} and {a.shape[axis]} along axis {axis}")


def _sources(parts: list[_Part]) -> list[Source] | None:
    """What the parts read from; None where one is computed."""
    sources = [part.of for part in parts if isinstance(part.of, Source)]
    return sources if len(sources) == len(parts) else None


def _concatenated(parts: list[_Part], axis: int, name: str = "") -> _Part:
    first = parts[0]
    axis = axis_number(axis, len(first.shape))
    for part in parts:
        _check_same(first, part, [a for a in range(len(first.shape)) if a != axis])
    sources = _sources(parts)
    if sources is None:
        return _Part.made(name, da.concatenate([part.lazy() for part in parts], axis=axis))
    # Other axes are cut as the largest part is; along this one each part as it is.
    chunks = list(max(parts, key=lambda part: math.prod(part.shape)).chunks)
    along = [size for part in parts for size in part.chunks[axis] if size]
    chunks[axis] = tuple(along) or (0,)
    return _Part(name, _Joined(sources, axis), tuple(chunks))


def _depth(parts: Any) -> int:
    depth = 0
    while isinstance(parts, (list, tuple)):
        if not parts:
            raise UsageError("an empty list among the parts of a mosaic")
        parts, depth = parts[0], depth + 1
    return depth


def _mosaic(parts: Any, axes: tuple[int, ...], place: str) -> _Part:
    name = f"part {place}"
    if not axes:
        if isinstance(parts, (list, tuple)):
            raise UsageError(f"{name} is a list, where other parts are arrays")
        return _Part.made(name, parts)
    if not isinstance(parts, (list, tuple)):
        raise UsageError(f"{name} is an array, where other parts are lists")
    if not parts:
        raise UsageError("an empty list among the parts of a mosaic")
    inner = [_mosaic(part, axes[1:], f"{place}[{i}]") for i, part in enumerate(parts)]
    return _concatenated(inner, axes[0], name)


class _Joined(Source):
    """Sources one after another along an axis."""

    def __init__(self, parts: Sequence[Source], axis: int) -> None:
        self._parts, self._axis = list(parts), axis
        sizes = [part.shape[axis] for part in parts]
        self._starts = np.cumsum((0, *sizes))
        first = parts[0]
        self.shape = (*first.shape[:axis], sum(sizes), *first.shape[axis + 1 :])
        self.dtype, self.masked = first.dtype, any(part.masked for part in parts)
        self.at_once = all(part.at_once for part in parts)
        self.token = f"joined-{axis}-{'-'.join(part.token for part in parts)}"

    def __repr__(self) -> str:
        return f"{len(self._parts)} arrays along axis {self._axis}"

    def read(self, window: Window) -> Any:
        before, after = window[: self._axis], window[self._axis + 1 :]
        pieces = [
            self._parts[piece.number].fetch((*before, piece.window, *after))
            for piece in _pieces(window[self._axis], self._starts)
        ]
        if len(pieces) == 1:
            return pieces[0]
        join = np.ma.concatenate if self.masked else np.concatenate
        # Both make of it what has the machine's byte order.
        return join(pieces, axis=self._axis).astype(self.dtype, copy=False)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one part has of a slice along an axis."""

    number: int  #: of the part
    window: slice  #: of the part
    out: slice  #: where that goes in the slice


def _pieces(along: slice, starts: npt.NDArray[np.int64]) -> Iterator[_Piece]:
    """The pieces of a slice along an axis where parts begin at `starts`, (n + 1,)."""
    wanted = range(along.start, along.stop, along.step)
    first, last = np.searchsorted(starts, (wanted[0], wanted[-1]), "right") - 1
    for number in range(first, last + 1):
        low, high = int(starts[number]), int(starts[number + 1])
        # Those of the positions wanted that are in this part.
        begin = max(0, -((wanted.start - low) // wanted.step))
        end = min(len(wanted), -((wanted.start - high) // wanted.step))
        if begin < end:
            window = slice(wanted[begin] - low, wanted[end - 1] - low + 1, wanted.step)
            yield _Piece(number, window, slice(begin, end))


class _Tiles(Source):
    """Tiles that a function loads."""

    def __init__(
        self,
        load: Callable[..., Any],
        grid: Sequence[int],
        tile: Sequence[int],
        dtype: np.dtype[Any],
        shape: Sequence[int] | None,
    ) -> None:
        self._grid, self.tile = sizes(grid, "grid"), sizes(tile, "tile")
        if len(self._grid) > len(self.tile) or min((*self._grid, *self.tile), default=1) < 1:
            raise UsageError(f"grid {grid} and tile {tile}: of positive sizes, grid no longer")
        filled = (*self._grid, *(1,) * (len(self.tile) - len(self._grid)))
        most = tuple(n * size for n, size in zip(filled, self.tile, strict=True))
        self.shape = most if shape is None else sizes(shape, "shape")
        # Of how many tiles along an axis a shape can be cropped from.
        needed = [-(-n // size) for n, size in zip(self.shape, self.tile, strict=False)]
        if len(self.shape) != len(most) or tuple(needed) != filled:
            raise UsageError(
                f"shape {self.shape}: the last tiles of {most} cannot be cropped to it"
            )
        self.dtype, self.token = dtype, unique_token("tiles")
        self._load = load
        self._starts = [
            np.minimum(np.arange(n + 1) * size, end)
            for n, size, end in zip(filled, self.tile, self.shape, strict=True)
        ]

    def __repr__(self) -> str:
        return f"tiles of {getattr(self._load, '__name__', repr(self._load))}"

    def read(self, window: Window) -> Any:
        out = np.empty([len(range(s.start, s.stop, s.step)) for s in window], self.dtype)
        along = [list(_pieces(*pair)) for pair in zip(window, self._starts, strict=True)]
        for pieces in itertools.product(*along):
            place = tuple(piece.number for piece in pieces)[: len(self._grid)]
            loaded = self._loaded(place)
            out[tuple(p.out for p in pieces)] = loaded[tuple(p.window for p in pieces)]
        return out

    def _loaded(self, place: tuple[int, ...]) -> npt.NDArray[Any]:
        """The tile at a place in the grid, whole or cropped."""
        try:
            tile = np.asarray(self._load(*place))
        except MemoryError:
            raise
        except Exception as error:
            raise StorageError(
                f"tile {place} of {self}: {type(error).__name__}: {error}"
            ) from error
        numbers = (*place, *(0,) * (self.ndim - len(place)))
        cropped = tuple(
            int(starts[n + 1] - starts[n]) for n, starts in zip(numbers, self._starts, strict=True)
        )
        fits = tile.ndim == self.ndim and all(
            map(operator.contains, zip(self.tile, cropped, strict=True), tile.shape)
        )
        if not fits or tile.dtype != self.dtype:
            raise FormatError(
                f"tile {place} of {self}: {tile.shape} {tile.dtype} came where "
                f"{self.tile} {self.dtype} was promised"
            )
        return tile

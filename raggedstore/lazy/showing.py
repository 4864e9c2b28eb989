"""Pictures of arrays of any size: what is in view, at the resolution of the screen.

Strategy. A matplotlib image that, whenever it is drawn, works out which pixels of which overview
the screen can show now, and has them read in a thread if they are others than last time. What it
has got is drawn meanwhile, where it belongs. So zooming, panning, resizing and saving need no
callbacks: they all end in drawing. A canvas without a window, such as of a file, waits for
what is in view.

Artists are changed by the thread that draws alone: a timer of the canvas asks whether something
has been read. Of views asked for while another is read, the newest is read next.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError
from raggedstore.extras import require
from raggedstore.lazy.sources import adapt

__all__ = ["LazyImage", "imshow"]

_AxesImage: Any = require("matplotlib.image", "plot").AxesImage

#: How often a canvas with a window asks whether something has been read, in ms.
_POLL_MS = 30


def imshow(
    x: Any,
    ax: Any = None,
    *,
    overviews: Sequence[Any] = (),
    vmin: float | None = None,
    vmax: float | None = None,
    **kwargs: Any,
) -> LazyImage:
    """Show an array-like of any size as a picture, and read of it what is in view.

    Nothing is read until it is drawn. Zoomed out, every so-manieth pixel is read, or those of an
    overview; an array in tiles without overviews then loads all that are in view, so give it
    some, or set the limits of the axes to a part of it.

    Parameters
    ----------
    x
        (rows, columns), or with 3 or 4 colours (rows, columns, colours); see `adapt`.
    ax
        Matplotlib axes, by default the current ones; their limits are set to all of `x`.
    overviews
        The same picture in coarser pixels, of any sizes. The coarsest is shown that has a pixel
        for each of the screen.
    vmin, vmax
        Values for the ends of the colour map: by default those of what is shown first.
    kwargs
        As for matplotlib's ``AxesImage``: ``cmap``, ``norm``, ``interpolation``...

    Returns
    -------
    LazyImage, matplotlib's image. Its ``wait()`` returns when what is in view has been read.

    Raises
    ------
    UsageError
        `x` or an overview is no picture.
    MissingExtraError
        Matplotlib is not installed.

    Examples
    --------
    >>> image = lazy.imshow(x, ax=ax, overviews=[x8, x64])
    >>> ax.set(xlim=(2000, 2550), ylim=(1400, 1000))
    """
    if isinstance(overviews, (str, bytes)) or not hasattr(overviews, "__iter__"):
        raise UsageError(f"overviews is a sequence of arrays, not {overviews!r:.80}")
    levels = [adapt(level) for level in (x, *overviews)]
    for level in levels:
        colours = level.shape[2:]
        if level.ndim not in (2, 3) or colours not in ((), (3,), (4,)) or 0 in level.shape:
            raise UsageError(f"a picture is (rows, columns[, 3 or 4]), not {level.shape}")
        if colours != levels[0].shape[2:]:
            raise UsageError(f"an overview of {level.shape} for a picture of {levels[0].shape}")
    if ax is None:
        ax = require("matplotlib.pyplot", "plot").gca()
    image = LazyImage(ax, levels, **kwargs)
    image.set_clim(vmin, vmax)
    image.set_clip_path(ax.patch)
    ax.add_image(image)
    rows, columns = levels[0].shape[:2]
    ax.set_aspect("equal")
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    return image


@dataclass(frozen=True, slots=True)
class _View:
    """Pixels of an overview, and where they lie on the axes."""

    level: int
    rows: slice
    columns: slice
    extent: tuple[float, float, float, float]


class LazyImage(_AxesImage):  # type: ignore[misc]  # mypy does not look at matplotlib
    """A matplotlib image of lazy arrays, made by `imshow`."""

    def __init__(self, ax: Any, levels: Sequence[da.Array], **kwargs: Any) -> None:
        super().__init__(ax, **kwargs)
        self._levels = levels
        self._reader = _Reader(self._read)
        self._asked: _View | None = None
        self._timer: Any = None
        rows, columns = levels[0].shape[:2]
        self.set_extent((-0.5, columns - 0.5, rows - 0.5, -0.5))

    def wait(self) -> None:
        """Return when what is in view has been read.

        Raises
        ------
        StorageError
            It could not be.
        """
        self.axes.apply_aspect()
        self._ask()
        self._reader.wait()
        self._take()

    def draw(self, renderer: Any) -> None:
        """Draw what has been read, and ask for what is in view."""
        self._ask()
        if self.figure.canvas.required_interactive_framework is None:
            self._reader.wait()
        self._take()
        if self.get_array() is not None:
            super().draw(renderer)

    def _ask(self) -> None:
        view = self._view()
        if view is None or view == self._asked:
            return
        self._asked = view
        self._reader.ask(view)
        if self._timer is None:
            self._timer = self.figure.canvas.new_timer(_POLL_MS)
            self._timer.add_callback(self._poll)
        self._timer.start()

    def _poll(self) -> None:
        if not self._reader.busy:
            self._timer.stop()
        if self._take():
            self.figure.canvas.draw_idle()

    def _take(self) -> bool:
        """Take over what has been read, if something has."""
        read = self._reader.take()
        if read is None:
            return False
        view, values = read
        self.set_data(values)
        self.autoscale_None()
        # Limits that follow the data would follow what is in view, and not the picture.
        self.axes.set_autoscale_on(False)
        self.set_extent(view.extent)
        return True

    def _view(self) -> _View | None:
        """What of the picture the axes show, as finely as the screen does; None for nothing."""
        shape = self._levels[0].shape
        box = self.axes.get_window_extent()
        # Of the first two axes: the ends of what is seen, and pixels of the screen for each unit.
        ends = [sorted(self.axes.get_ylim()), sorted(self.axes.get_xlim())]
        scales = [
            size / max(high - low, 1e-9)
            for size, (low, high) in zip((box.height, box.width), ends, strict=True)
        ]
        number = self._level(scales)
        level = self._levels[number]
        cuts = []
        for axis in (0, 1):
            unit = shape[axis] / level.shape[axis]
            step = max(1, math.floor(1 / (scales[axis] * unit)))
            # A pixel reaches half a unit to each side of its number.
            low, high = ((end + 0.5) / unit for end in ends[axis])
            start = max(0, math.floor(low / step) * step)
            stop = min(level.shape[axis], math.ceil(high))
            if start >= stop:
                return None
            count = len(range(start, stop, step))
            edges = (start * unit - 0.5, (start + count * step) * unit - 0.5)
            cuts.append((slice(start, stop, step), edges))
        (rows, (top, bottom)), (columns, (left, right)) = cuts
        return _View(number, rows, columns, (left, right, bottom, top))

    def _level(self, scales: Sequence[float]) -> int:
        """The coarsest level whose pixels are no larger than those of the screen, or the first."""
        shape = self._levels[0].shape
        fine = [
            number
            for number, level in enumerate(self._levels)
            if all(scales[axis] * shape[axis] <= level.shape[axis] for axis in (0, 1))
        ]
        return min(fine, key=lambda number: self._levels[number].shape[0], default=0)

    def _read(self, view: _View) -> npt.NDArray[Any]:
        return np.asanyarray(self._levels[view.level][view.rows, view.columns].compute())


class _Reader:
    """Reads views in a thread, which lives while there is something to read."""

    def __init__(self, read: Callable[[_View], npt.NDArray[Any]]) -> None:
        self._read = read
        self._changed = threading.Condition()
        self._wanted: _View | None = None
        self._done: tuple[_View, npt.NDArray[Any]] | Exception | None = None
        self.busy = False

    def ask(self, view: _View) -> None:
        """Have a view read, in the place of one that was asked for and not begun."""
        with self._changed:
            self._wanted = view
            if not self.busy:
                self.busy = True
                threading.Thread(target=self._run, name="lazy picture", daemon=True).start()

    def wait(self) -> None:
        """Return when there is nothing left to read."""
        with self._changed:
            self._changed.wait_for(lambda: not self.busy)

    def take(self) -> tuple[_View, npt.NDArray[Any]] | None:
        """What was read last, once; or the error that it ended in."""
        with self._changed:
            done, self._done = self._done, None
        if isinstance(done, Exception):
            raise done
        return done

    def _run(self) -> None:
        while True:
            with self._changed:
                view, self._wanted = self._wanted, None
                if view is None:
                    self.busy = False
                    self._changed.notify_all()
                    return
            done: tuple[_View, npt.NDArray[Any]] | Exception
            try:
                done = view, self._read(view)
            except Exception as error:  # raised where the picture is drawn
                done = error
            with self._changed:
                self._done = done

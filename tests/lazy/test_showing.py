"""Pictures read what is in view, once, and no more of it than the screen can show."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raggedstore import lazy
from raggedstore.errors import StorageError, UsageError
from tests.lazy.recording import Recording

RNG = np.random.default_rng(0)


@pytest.fixture
def ax() -> Iterator[Any]:
    """Axes of 100 × 100 pixels, that fill their figure."""
    figure = Figure(figsize=(1, 1), dpi=100)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    yield ax
    for thread in threading.enumerate():
        if thread.name == "lazy picture":
            thread.join(30)
            assert not thread.is_alive()


def drawn(ax: Any) -> Any:
    """The pixels on the canvas."""
    ax.axis("off")
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]


def test_nothing_is_read_before_it_is_drawn_and_all_of_it_once(ax: Any) -> None:
    source = Recording(RNG.integers(0, 256, (100, 100, 3), "u1"))
    lazy.imshow(source, ax=ax)
    assert not source.windows
    np.testing.assert_array_equal(drawn(ax), source.values)
    ax.figure.canvas.draw()
    assert (source.positions_read() == 1).all()


def test_zoomed_in_it_reads_the_pixels_in_view(ax: Any) -> None:
    source = Recording(RNG.integers(0, 256, (4000, 5000, 4), "u1"))
    source.values[..., 3] = 255
    lazy.imshow(source, ax=ax)
    ax.set(xlim=(2999.5, 3099.5), ylim=(1099.5, 999.5))
    np.testing.assert_array_equal(drawn(ax), source.values[1000:1100, 3000:3100, :3])
    assert source.values_read == 100 * 100 * 4
    ax.set(xlim=(3009.5, 3109.5))  # panned
    np.testing.assert_array_equal(drawn(ax), source.values[1000:1100, 3010:3110, :3])
    assert source.values_read == 2 * 100 * 100 * 4


def test_zoomed_out_it_reads_as_many_pixels_as_the_screen_has(ax: Any) -> None:
    source = Recording(RNG.integers(0, 256, (5000, 5000), "u1"))
    image = lazy.imshow(source, ax=ax, cmap="gray", vmin=0, vmax=255)
    # The colour map has its own rounding.
    np.testing.assert_allclose(drawn(ax)[..., 0].astype(int), source.values[::50, ::50], atol=1)
    assert source.values_read == 100 * 100
    assert image.get_extent() == [-0.5, 4999.5, 4999.5, -0.5]


def test_it_reads_the_coarsest_overview_that_is_fine_enough(ax: Any) -> None:
    sizes = (6400, 1600, 400, 50)
    levels = [Recording(np.full((size, size), float(n))) for n, size in enumerate(sizes)]
    image = lazy.imshow(levels[0], ax=ax, overviews=levels[:0:-1])
    for width, wanted in [(6400, 2), (1700, 2), (1500, 1), (450, 1), (390, 0), (20, 0)]:
        for level in levels:
            level.windows.clear()
        ax.set(xlim=(-0.5, width - 0.5), ylim=(width - 0.5, -0.5))
        image.wait()
        assert [n for n, level in enumerate(levels) if level.windows] == [wanted]
        assert (np.asarray(image.get_array()) == wanted).all()
        assert levels[wanted].values_read <= 201**2
        left, right, bottom, top = image.get_extent()
        assert left == top == -0.5 and right == bottom >= width - 0.5


def test_tiles_out_of_view_are_not_loaded(ax: Any) -> None:
    loaded = []

    def load(i: int, j: int) -> Any:
        loaded.append((i, j))
        return np.zeros((256, 256, 3), "u1")

    lazy.imshow(lazy.tiles(load, grid=(512, 512), tile=(256, 256, 3), dtype="u1"), ax=ax)
    ax.set(xlim=(2000, 2549), ylim=(1548, 1000))
    ax.figure.canvas.draw()
    assert sorted(loaded) == [(i, j) for i in range(3, 7) for j in range(7, 10)]


def test_a_saved_picture_has_the_resolution_of_the_file(ax: Any) -> None:
    source = Recording(RNG.random((1000, 1000)))
    lazy.imshow(source, ax=ax)
    ax.figure.savefig(io.BytesIO(), dpi=200)
    assert source.values_read == 200 * 200


def test_a_view_beside_the_picture_reads_nothing(ax: Any) -> None:
    source = Recording(RNG.random((100, 100)))
    lazy.imshow(source, ax=ax)
    ax.set(xlim=(200, 300))
    drawn(ax)
    assert not source.windows


def test_colours_stay_those_of_the_first_view(ax: Any) -> None:
    source = Recording(np.arange(10_000.0).reshape(100, 100))
    image = lazy.imshow(source, ax=ax)
    image.wait()
    ax.set(xlim=(0, 10), ylim=(10, 0))
    image.wait()
    assert image.get_clim() == (0, 9999)


def test_masked_pixels_stay_masked(ax: Any) -> None:
    image = lazy.imshow(np.ma.masked_less(np.arange(100.0).reshape(10, 10), 50), ax=ax)
    image.wait()
    assert np.ma.getmaskarray(image.get_array()).sum() == 50


class Slow(Recording):
    """Gives nothing out until it is told to."""

    def __init__(self, values: Any) -> None:
        super().__init__(values)
        self.begun, self.go = threading.Event(), threading.Event()

    def __getitem__(self, window: Any) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        return super().__getitem__(window)


class FakeTimer:
    """A timer that goes off when the test says so."""

    def __init__(self) -> None:
        self.running = False

    def add_callback(self, callback: Any) -> None:
        self.fire = callback

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False


def test_a_window_stays_responsive_and_of_many_views_the_newest_is_read(
    ax: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer, asked = FakeTimer(), []
    canvas = ax.figure.canvas
    monkeypatch.setattr(canvas, "required_interactive_framework", "test", raising=False)
    monkeypatch.setattr(canvas, "new_timer", lambda interval: timer)
    monkeypatch.setattr(canvas, "draw_idle", lambda: asked.append(True))
    source = Slow(RNG.integers(0, 256, (1000, 1000, 3), "u1"))
    image = lazy.imshow(source, ax=ax)
    assert (drawn(ax) == 255).all()  # returns at once, and shows nothing yet
    assert source.begun.wait(30)
    for left in (100, 200, 300):
        ax.set(xlim=(left - 0.5, left + 99.5), ylim=(99.5, -0.5))
        drawn(ax)
    timer.fire()
    assert timer.running and not asked
    source.go.set()
    image._reader.wait()
    timer.fire()
    assert asked and not timer.running
    np.testing.assert_array_equal(drawn(ax), source.values[:100, 300:400])
    assert [str(w[1]) for w in source.windows] == ["slice(0, 991, 10)", "slice(300, 400, 1)"]


def test_an_error_is_raised_where_the_picture_is_drawn(ax: Any) -> None:
    lazy.imshow(Recording(np.zeros((10, 10)), fail=True), ax=ax)
    with pytest.raises(StorageError, match="KeyError: 'lost'"):
        ax.figure.canvas.draw()


@pytest.mark.parametrize("shape", [(10,), (10, 10, 2), (10, 10, 3, 1), (0, 10)])
def test_what_is_no_picture_is_refused(ax: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="a picture is"):
        lazy.imshow(np.zeros(shape), ax=ax)
    if len(shape) > 1 and 0 not in shape:
        with pytest.raises(UsageError):
            lazy.imshow(np.zeros((10, 10)), ax=ax, overviews=[np.zeros((5, 5, 3))])


def test_overviews_that_are_no_sequence_are_refused(ax: Any) -> None:
    with pytest.raises(UsageError, match="sequence of arrays"):
        lazy.imshow(np.zeros((10, 10)), ax=ax, overviews=5)  # type: ignore[arg-type]

"""The demo's picture: what was stored, how the losses fell, what the models make of it."""

from pathlib import Path
from typing import Any

import language
import numpy as np
import speech
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from training import History

import raggedstore as rs

__all__ = ["draw"]

BLUE, ORANGE, GREEN = "#4c78a8", "#f58518", "#54a24b"
HEARD = 5  # recordings
SHOWN = 12  # images
SMOOTHED = 15  # steps


def draw(path: Path, heard: speech.Learned, read: language.Learned, images: rs.Store) -> None:
    """Draw everything into one PNG."""
    figure = Figure(figsize=(11, 10), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.add_gridspec(4, 1, height_ratios=(2.4, 1.3, 1.0, 2.0))

    left, right = (figure.add_subplot(cell) for cell in rows[0].subgridspec(1, 2))
    draw_losses(left, heard.history, "Digits in noise", "loss")
    tests = left.twinx()
    for name, color in (("valid", ORANGE), ("new voices", GREEN)):
        draw_tests(tests, heard.history, name, color)
    tests.set(ylim=(0, 1.05), ylabel="part heard right")
    tests.legend(loc="center right", frameon=False)
    bits = float(1 / np.log(2))  # in a nat
    draw_losses(right, read.history, "Text, byte by byte", "bits a byte", bits)
    draw_tests(right, read.history, "valid", ORANGE, bits)
    right.legend(loc="upper right", frameon=False)

    cells = rows[1].subgridspec(1, HEARD)
    for cell, one in zip(cells, heard.heard[:HEARD], strict=True):
        draw_heard(figure.add_subplot(cell), one)

    ax = figure.add_subplot(rows[2])
    chosen = np.linspace(0, len(images) - 1, SHOWN).astype(int)
    ax.imshow(side_by_side(images["image"][chosen]))
    ax.set_title(f"{SHOWN} of the {len(images)} images, each of its own shape", fontsize=10)
    ax.axis("off")

    lines = ["Lines held out:", *read.read, "", "Lines that the model wrote:", *read.written]
    draw_lines(figure.add_subplot(rows[3]), lines)
    figure.savefig(path, dpi=100)


def draw_losses(ax: Axes, history: History, title: str, unit: str, scale: float = 1.0) -> None:
    """The loss of each step, times `scale`, and a running mean."""
    losses = np.array(history.losses) * scale
    width = min(SMOOTHED, len(losses))
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8)
    ax.plot(steps[width - 1 :], smooth, color=BLUE, label="train")
    ax.axvline(history.cut, color="0.5", linestyle=":")
    where = {"transform": ax.get_xaxis_transform(), "fontsize": 9, "color": "0.4"}
    ax.text(history.cut, 0.72, " cut off, gone on", **where)
    ax.set(xlabel="step", ylabel=unit, title=title, ylim=(0, None))


def draw_tests(ax: Axes, history: History, name: str, color: str, scale: float = 1.0) -> None:
    """What came out of each test, times `scale`."""
    steps = [step for step, _ in history.tests]
    values = [found[name] * scale for _, found in history.tests]
    ax.plot(steps, values, "o-", color=color, markersize=4, label=name)


def draw_heard(ax: Axes, one: speech.Heard) -> None:
    """The spectrogram of a recording, and what it was taken for."""
    frames = speech.spectrogram(one.waves[None])[0].numpy()
    ax.imshow(frames, aspect="auto", origin="lower", cmap="magma")
    ax.set_title(f"{one.digit}, heard as {one.guess}", fontsize=10)
    ax.set(xticks=[], yticks=[])


def draw_lines(ax: Axes, lines: list[str]) -> None:
    """Lines of text, one below another."""
    ax.axis("off")
    for i, line in enumerate(lines):
        printed = "".join(c if c.isprintable() else "·" for c in line[:120])
        place = (0, 1 - i / len(lines))
        ax.text(*place, printed, family="monospace", fontsize=9, va="top", parse_math=False)


def side_by_side(images: list[Any]) -> Any:
    """One picture of several, on white."""
    height, gap = max(len(image) for image in images), 8
    parts = []
    for image in images:
        above = (height - len(image)) // 2
        margins = ((above, height - len(image) - above), (gap, gap), (0, 0))
        parts.append(np.pad(image, margins, constant_values=255))
    return np.concatenate(parts, axis=1)

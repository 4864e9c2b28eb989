"""Draw docs/layout.png: how samples of different lengths lie in a segment.

python tools/draw_layout.py docs/layout.png
"""

import sys

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

SHAPES = ((5,), (2,), (7,), (3,))
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")


def cell(ax: Axes, x: float, y: float, colour: str, text: str = "") -> None:
    ax.add_patch(Rectangle((x, y), 0.94, 0.8, facecolor=colour, alpha=0.85, edgecolor="white"))
    ax.text(x + 0.47, y + 0.38, text, ha="center", va="center", color="white", fontsize=9)


def main(out: str) -> None:
    figure = Figure(figsize=(9, 2.5))
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.3, 25.4), ylim=(-1.2, 5.7), aspect="equal")
    ax.axis("off")

    ax.text(0, 5.1, "four samples, each of its own shape", fontsize=11)
    for i, ((length,), colour) in enumerate(zip(SHAPES, COLOURS, strict=True)):
        for j in range(length):
            cell(ax, j, 4 - i, colour)
        ax.text(length + 0.2, 4.35 - i, f"sample {i}: ({length},)", va="center", fontsize=9)

    ax.text(11.5, 5.1, "one segment: an ordinary HDF5 file", fontsize=11)
    ax.text(11.5, 4.35, "/audio/data_start_and_stop", va="center", fontsize=9, family="monospace")
    ax.text(21.5, 4.35, "data_shape", va="center", fontsize=9, family="monospace")
    start = 0
    for i, ((length,), colour) in enumerate(zip(SHAPES, COLOURS, strict=True)):
        y = 3.3 - i * 0.9
        cell(ax, 14, y, colour, str(start))
        cell(ax, 15, y, colour, str(start + length))
        cell(ax, 22.5, y, colour, str(length))
        start += length

    ax.text(0, -0.65, "/audio/data", va="center", fontsize=9, family="monospace")
    x = 4.5
    for (length,), colour in zip(SHAPES, COLOURS, strict=True):
        for _ in range(length):
            cell(ax, x, -1, colour)
            x += 1
    ax.text(x + 0.2, -0.65, "in Blosc2\nchunks", va="center", fontsize=9)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1])

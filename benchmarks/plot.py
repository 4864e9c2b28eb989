"""Draw how raggedstore compares with the best compressed peer, from the figures of run.py.

python benchmarks/plot.py RESULTS.json OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.run import MEASURES, ratio

PROFILES = {"fast": "#1f6feb", "balanced": "#2da44e", "small": "#bf8700"}
INK, FAINT, PAPER = "#24292f", "#d0d7de", "#ffffff"


def draw(report: dict[str, Any], path: Path) -> None:
    """One panel per corpus, a group of bars per measure, a bar per profile.

    The paper is white and not see-through, so that the picture reads the same on any page.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    corpora = report["corpora"]
    # Not every measure has a compressed peer to be held against.
    measures = [m for m in MEASURES if any(m.key in c["best"] for c in corpora.values())]
    figure = Figure(figsize=(1 + 4.6 * len(corpora), 6.4), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(corpora), sharey=True, squeeze=False)[0]
    height = 0.8 / len(PROFILES)
    for ax, (name, corpus) in zip(axes, corpora.items(), strict=True):
        for k, (profile, colour) in enumerate(PROFILES.items()):
            found = corpus["results"].get(f"raggedstore {profile}", {})
            rows = [
                (row, ratio(measure, found[measure.key], corpus["best"][measure.key][1]))
                for row, measure in enumerate(measures)
                if measure.key in found and measure.key in corpus["best"]
            ]
            at = [row + (k - 1) * height for row, times in rows if times]
            # From 1 outwards: to the right is better, to the left worse.
            widths = [times - 1 for _, times in rows if times]
            ax.barh(at, widths, height, left=1, color=colour, label=profile, zorder=2)
        for row, measure in enumerate(measures):
            if measure.key in corpus["best"]:
                ax.annotate(
                    corpus["best"][measure.key][0],
                    (1.01, row),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=7.5,
                    color=INK,
                )
        found_all = [bar.get_width() + 1 for bar in ax.patches]
        ax.set_xscale("log")
        ax.set_xlim(min([0.5, *found_all]) / 1.2, max([2, *found_all]) * 1.2)
        ax.axvline(1, color=INK, linewidth=1, zorder=3)
        ax.xaxis.set_major_locator(FixedLocator([10.0**p for p in range(-3, 4)]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="x", color=FAINT, linewidth=0.8, zorder=0)
        ax.set_title(name, color=INK, fontsize=12, loc="left")
        ax.tick_params(colors=INK, length=0)
        for side in ax.spines.values():
            side.set_visible(False)
    axes[0].set_yticks(np.arange(len(measures)), [m.label for m in measures])
    axes[0].invert_yaxis()
    figure.suptitle(
        "raggedstore against the best compressed peer of each measure,\n"
        "which is named at the right; right of 1× is better",
        color=INK,
        fontsize=11,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=144, facecolor=PAPER)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

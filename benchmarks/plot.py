"""Draw how raggedstore's profile "fast" compares with each peer, from the figures of run.py.

python benchmarks/plot.py RESULTS.json OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import PEERS
from benchmarks.run import MEASURES, ratio

OURS = "raggedstore fast"
SHOWN = {"sequential": "#1f6feb", "permuted": "#2da44e", "size": "#bf8700"}
#: So much of an epoch has to have been gone through: where it was cut earlier, formats that decode
#: large units and keep them had done little but that.
LEAST = 0.5
INK, FAINT, PAPER = "#24292f", "#d0d7de", "#ffffff"


def show_ratios(ax: Any, ratios: list[float], title: str, *, fontsize: int) -> None:
    """Make of axes with horizontal bars from 1 outwards a panel: to the right is better."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    ax.set_xscale("log")
    low, high = min([0.5, *ratios]) / 1.2, max([2, *ratios]) * 1.2
    ax.set_xlim(low, high)
    ax.axvline(1, color=INK, linewidth=1, zorder=3)
    steps = (1, 2, 5) if high < 50 * low else (1,)
    ax.xaxis.set_major_locator(FixedLocator([k * 10.0**p for p in range(-3, 5) for k in steps]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="x", color=FAINT, linewidth=0.8, zorder=0)
    ax.set_title(title, color=INK, fontsize=fontsize, loc="left")
    ax.tick_params(colors=INK, length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def draw(report: dict[str, Any], path: Path) -> None:
    """One panel per corpus, a group of bars per compressed peer, a bar per measure.

    The paper is white and not see-through, so that the picture reads the same on any page.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    corpora = report["corpora"]
    measures = {measure.key: measure for measure in MEASURES}
    peers = [
        name
        for name, peer in PEERS.items()
        if peer.compressed and not peer.ours and any(name in c["results"] for c in corpora.values())
    ]
    size = (2 + 4.2 * len(corpora), 1.6 + 0.55 * max(len(peers), 2))
    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(corpora), sharey=True, squeeze=False)[0]
    height = 0.8 / len(SHOWN)
    for ax, (name, corpus) in zip(axes, corpora.items(), strict=True):
        results = corpus["results"]
        found_all = []
        for k, (key, colour) in enumerate(SHOWN.items()):
            for row, peer_name in enumerate(peers):
                theirs, ours = (results.get(who, {}).get(key) for who in (peer_name, OURS))
                if theirs is None or ours is None:
                    continue
                seen = theirs * report["settings"]["seconds"] / corpus["bytes"]
                if key != "size" and seen < LEAST:
                    continue
                times = ratio(measures[key], ours, theirs)
                if times:
                    found_all.append(times)
                    # From 1 outwards: to the right is better, to the left worse.
                    at = row + (k - 1) * height
                    ax.barh(at, times - 1, height, left=1, color=colour, zorder=2)
        show_ratios(ax, found_all, name, fontsize=12)
    axes[0].set_yticks(np.arange(len(peers)), peers)
    axes[0].invert_yaxis()
    figure.suptitle(
        f"{OURS} against each compressed peer: right of 1× is better", color=INK, fontsize=11
    )
    from matplotlib.patches import Patch

    labels = {"sequential": "epoch in order", "permuted": "epoch permuted", "size": "size"}
    handles = [Patch(color=colour, label=labels[key]) for key, colour in SHOWN.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=144, facecolor=PAPER)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

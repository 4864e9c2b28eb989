"""Draw how raggedstore's own loader compares with each other way, from the figures of loaders.py.

python benchmarks/loading/plot.py RESULTS.json OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.loading import LOADINGS
from benchmarks.plot import INK, PAPER, show_ratios

#: By number of workers, in turn.
COLOURS = ("#1f6feb", "#2da44e", "#bf8700", "#8250df")


def draw(report: dict[str, Any], path: Path) -> None:
    """One panel per corpus, a group of bars per way of loading, a bar per number of workers.

    Each bar is our fastest `Loader` over that way.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    corpora, workers = report["corpora"], report["workers"]
    names = [
        name
        for name, loading in LOADINGS.items()
        if loading.kind != "ours" and any(name in c["results"] for c in corpora.values())
    ]
    size = (2.6 + 4.2 * len(corpora), 1.6 + 0.45 * max(len(names), 2))
    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(corpora), sharey=True, squeeze=False)[0]
    height = 0.8 / len(workers)
    for ax, (corpus_name, corpus) in zip(axes, corpora.items(), strict=True):
        results, ours = corpus["results"], corpus["best"]["ours"]
        found_all = []
        for k, count in enumerate(workers):
            for row, name in enumerate(names):
                rate = results.get(name, {}).get(str(count), {}).get("rate")
                if not rate or not ours:
                    continue
                times = ours[1] / rate
                found_all.append(times)
                at = row + (k - (len(workers) - 1) / 2) * height
                # From 1 outwards: to the right is better, to the left worse.
                colour = COLOURS[k % len(COLOURS)]
                ax.barh(at, times - 1, height, left=1, color=colour, zorder=2)
        title = f"{corpus_name}: {ours[0]}" if ours else corpus_name
        show_ratios(ax, found_all, title, fontsize=9)
    axes[0].set_yticks(np.arange(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(
        "Samples a second, raggedstore's fastest way\nagainst each other: right of 1× is better",
        color=INK,
        fontsize=11,
    )
    handles = [
        Patch(color=COLOURS[k % len(COLOURS)], label=f"{count} workers")
        for k, count in enumerate(workers)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(workers), frameon=False)
    figure.savefig(path, dpi=144, facecolor=PAPER)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

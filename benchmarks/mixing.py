"""How well orders mix: Shuffled's windows of blocks beside an exact permutation.

    python benchmarks/mixing.py [CORPUS.npz...] [--json OUT.json] [--plot OUT.png]

The data are sorted by class, ten classes one after another, which is the worst that can lie in a
store. What is measured, of epochs planned but not read:

    correlation   of a sample's place in the epoch with its place in the store; 0 is chance
    distance      in the store of two samples that come one after the other, of all samples; a third
                  is chance
    classes       entropy of the classes in a batch of 64, in bits, on average and in the batch that
                  has the least; log2(10) is 3.32, and batches of a permutation have about 3.22

First 2**18 samples, for windows of at most 1, 5, 20 and 100 % of them in blocks of 16 to 4,096.
Then samples as large as speech and tokens under `Shuffled()`, as a loader's defaults have it; and
each corpus, its samples as they lie and sorted by length, in blocks as `Shuffled` chooses them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.corpora import Corpus
from raggedstore.training import Order, Permuted, Sequential, Shuffled
from raggedstore.training.orders import Geometry, Outlook

Int64s = npt.NDArray[np.int64]

SAMPLES = 2**18
SHARES = (0.01, 0.05, 0.2, 1.0)
BLOCKS = (16, 64, 256, 1024, 4096)
CLASSES, BATCH, EPOCHS = 10, 64, 5
#: How many samples of how many bytes under the defaults of a loader, whose windows are so large.
DEFAULTS = {"speech": (2**20, 44_000.0), "tokens": (2**22, 70.0)}
DEFAULT_WINDOW = 219_000_000

STYLES = (("#bf8700", "o"), ("#2da44e", "s"), ("#1f6feb", "^"), ("#8250df", "D"))
INK, FAINT, PAPER = "#24292f", "#d0d7de", "#ffffff"


@dataclass(frozen=True)
class Mixing:
    """One row of the table: an order of some data, and what came of it."""

    data: str
    order: str
    window: float | None  #: of all samples
    block: int | None  #: samples
    blocks_in_window: float | None
    correlation: float
    distance: float
    classes: float
    fewest_classes: float


def emitted(order: Order, samples: int, geometry: Geometry, epoch: int) -> Int64s:
    """(n,) the samples in the order of an epoch."""
    units = order.bind(samples, epoch, geometry)
    return np.concatenate([lane for unit in range(len(units)) for lane in units[unit]])


def entropies(classes: Int64s) -> npt.NDArray[np.float64]:
    """(batches,) bits of each whole batch."""
    whole = classes[: len(classes) // BATCH * BATCH].reshape(-1, BATCH)
    share = np.stack([(whole == c).mean(axis=1) for c in range(CLASSES)], axis=1)
    bits: npt.NDArray[np.float64] = -(share * np.log2(np.maximum(share, 1e-12))).sum(axis=1)
    return bits


def measure(data: str, name: str, order: Order, samples: int, geometry: Geometry) -> Mixing:
    """An order of `samples` samples whose classes are sorted."""
    found = []
    for epoch in range(EPOCHS):
        got = emitted(order, samples, geometry, epoch)
        bits = entropies(got * CLASSES // samples)
        correlation = abs(float(np.corrcoef(got, np.arange(samples))[0, 1]))
        distance = float(np.abs(np.diff(got)).mean()) / samples
        found.append((correlation, distance, float(bits.mean()), float(bits.min())))
    windows, block = geometry.get("windows"), geometry.get("block")
    shuffled = windows is not None and block is not None
    return Mixing(
        data,
        name,
        1 / windows if shuffled else None,
        block,
        samples / windows / block if shuffled else None,
        *(float(np.mean(column)) for column in zip(*found, strict=True)),
    )


def outlook(samples: int, mean: float, first: float, *, window: int = 2**62) -> Outlook:
    """What an order is told of samples of `mean` bytes, the first ones of `first`."""
    return Outlook(
        samples=samples,
        sample_bytes=mean,
        first_bytes=first,
        pool=2**16,
        window_bytes=window,
        lanes=1,
    )


def synthetic() -> Iterator[Mixing]:
    """Every window with every block that is at most half of it."""
    data = f"{SAMPLES:,} samples"
    seen = outlook(SAMPLES, 1.0, 1.0)
    for order in (Sequential(), Permuted()):
        yield measure(data, type(order).__name__, order, SAMPLES, order.measure(seen))
    for share in SHARES:
        # As Shuffled does it: so many windows that they hold at most this.
        windows = 1 << math.ceil(math.log2(1 / share))
        for block in BLOCKS:
            if 2 * block * windows <= SAMPLES:
                geometry = {"windows": windows, "block": block, "lanes": 1}
                yield measure(data, "Shuffled", Shuffled(), SAMPLES, geometry)


def by_default() -> Iterator[Mixing]:
    """Stores that are much larger than a window."""
    for name, (samples, each) in DEFAULTS.items():
        seen = outlook(samples, each, each, window=DEFAULT_WINDOW)
        data = f"{samples:,} {name}"
        yield measure(data, "Shuffled()", Shuffled(), samples, Shuffled().measure(seen))


def real(corpus: Corpus) -> Iterator[Mixing]:
    """A corpus as it lies and sorted by length, in windows and blocks as a loader makes them."""
    sizes = np.diff(corpus.offsets) * corpus.dtype.itemsize
    samples, total = len(corpus), int(sizes.sum())
    for how, each in (("as it lies", sizes), ("by length", np.sort(sizes))):
        seen = outlook(samples, total / samples, float(each[:1024].mean()))
        for share in SHARES:
            shuffled = Shuffled(window=max(1, int(total * share)))
            geometry = shuffled.measure(seen)
            yield measure(f"{corpus.name}, {how}", "Shuffled", shuffled, samples, geometry)


def table(rows: list[Mixing]) -> Iterator[str]:
    head = ("data", "order", "window", "block", "blocks", "corr.", "distance", "classes", "fewest")
    yield "{:22}{:12}{:>8}{:>7}{:>8}{:>7}{:>10}{:>9}{:>8}".format(*head)
    for row in rows:
        window = "" if row.window is None else f"{row.window:.1%}"
        block = "" if row.block is None else f"{row.block:,}"
        many = "" if row.blocks_in_window is None else f"{row.blocks_in_window:,.0f}"
        yield (
            f"{row.data:22}{row.order:12}{window:>8}{block:>7}{many:>8}{row.correlation:>7.3f}"
            f"{row.distance:>10.3f}{row.classes:>9.2f}{row.fewest_classes:>8.2f}"
        )


def draw(rows: list[Mixing], path: Path) -> None:
    """Classes and distance against the blocks in a window: a colour for each size of window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(8.6, 3.9), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    panels = [
        ("classes", "entropy of the classes in a batch of 64, bits", 3.5),
        ("distance", "distance of successive samples, of the whole", 0.38),
    ]
    permuted = next(row for row in rows if row.order == "Permuted")
    shares = sorted({row.window for row in rows if row.window is not None})
    for ax, (key, title, top) in zip(figure.subplots(1, 2), panels, strict=True):
        chance = getattr(permuted, key)
        ax.axhline(chance, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(
            "exact permutation",
            (1.0, chance),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -16),
            textcoords="offset points",
            ha="right",
            color=INK,
            fontsize=9,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
        )
        for share, (colour, marker) in zip(shares, STYLES, strict=True):
            mine = [row for row in rows if row.window == share]
            x = [row.blocks_in_window for row in mine]
            y = [getattr(row, key) for row in mine]
            label = f"{share:.1%}" if share < 1 else "all"
            ax.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.2, label=label)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator([2, 8, 32, 128, 512, 2048, 16384]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.set_ylim(0, top)
        ax.set_xlabel("blocks in a window", color=INK, fontsize=9)
        ax.set_title(title, color=INK, fontsize=10, loc="left")
        ax.grid(color=FAINT, linewidth=0.7, zorder=0)
        ax.tick_params(colors=INK, length=0, labelsize=9)
        for side in ax.spines.values():
            side.set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="window, of all samples",
        loc="outside lower center",
        ncols=len(shares),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    figure.savefig(path, dpi=144, facecolor=PAPER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="*", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    drawn = list(synthetic())
    rows = [*drawn, *by_default()]
    rows += [row for path in options.corpora for row in real(Corpus.load(path))]
    print("\n".join(table(rows)))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if options.plot:
        draw(drawn, options.plot)


if __name__ == "__main__":
    main()

"""`stats`: how long samples are, read from their shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from raggedstore.cli.opening import CORPUS, opened
from raggedstore.cli.output import plain, print_json, print_table
from raggedstore.errors import UsageError
from raggedstore.extras import require

__all__ = ["stats"]

_NAMES = {"path", "label"}  # whose lengths nobody wants drawn
QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, slots=True)
class Lengths:
    """The sizes of one dimension of a field over all samples."""

    field: str
    dimension: int
    unit: str
    sizes: npt.NDArray[np.int64]

    @property
    def name(self) -> str:
        return f"{self.field}[{self.dimension}]" if self.unit != "bytes" else self.field


@click.command()
@CORPUS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", "target", type=click.Path(dir_okay=False), help="Draw a histogram as PNG.")
def stats(corpus: str, as_json: bool, target: str | None) -> None:
    """Say how long the samples are.

    Count, total, mean and quantiles per field: one line for each dimension that samples
    differ in. Dimension 0 of a field `audio` is `audio[0]`, its number of frames. Text is
    counted in bytes of UTF-8. No data is read.

    \b
    Examples:
      raggedstore stats corpus
      raggedstore stats corpus --plot lengths.png
    """
    with opened(corpus) as store:
        columns = _lengths(store)
        if target is not None:
            _plot(columns, target)
        if as_json:
            print_json({"samples": len(store), "lengths": [_as_json(each) for each in columns]})
            return
        if not columns:
            click.echo(f"{len(store)} samples; no field has a ragged dimension")
            return
        header = [
            "field",
            "unit",
            "count",
            "total",
            "mean",
            "min",
            *(f"{q} %" for q in QUANTILES[1:-1]),
        ]
        rows = [_row(each) for each in columns]
        print_table([*header, "max"], rows, right="ll" + "r" * 10)
        if target is not None:
            click.echo(f"histogram saved to {plain(target)}")


def _lengths(store: Any) -> list[Lengths]:
    columns = []
    for name, field in store.schema.items():
        if None not in field.shape:
            continue
        shapes = store[name].shapes
        for dimension, size in enumerate(field.shape):
            if size is None:
                unit = "bytes" if field.kind != "array" else "values" if field.ndim == 1 else "rows"
                unit = unit if dimension == 0 else "columns" if dimension == 1 else "entries"
                columns.append(Lengths(name, dimension, unit, shapes[:, dimension]))
    return columns


def _quantiles(sizes: npt.NDArray[np.int64]) -> list[int]:
    if not len(sizes):
        return []
    # Sizes that do occur: no sample is 12.5 values long.
    return [int(q) for q in np.percentile(sizes, QUANTILES, method="inverted_cdf")]


def _row(each: Lengths) -> list[object]:
    marks: list[object] = [*_quantiles(each.sizes)] or ["–"] * len(QUANTILES)
    mean = f"{each.sizes.mean():.1f}" if len(each.sizes) else "–"
    return [each.name, each.unit, len(each.sizes), int(each.sizes.sum()), mean, *marks]


def _as_json(each: Lengths) -> dict[str, Any]:
    quantiles = _quantiles(each.sizes)
    return {
        "field": each.field,
        "dimension": each.dimension,
        "unit": each.unit,
        "count": len(each.sizes),
        "total": int(each.sizes.sum()),
        "mean": float(each.sizes.mean()) if quantiles else None,
        "min": quantiles[0] if quantiles else None,
        "max": quantiles[-1] if quantiles else None,
        "quantiles": {str(q / 100): n for q, n in zip(QUANTILES, quantiles, strict=False)},
    }


def _plot(columns: list[Lengths], target: str) -> None:
    columns = [each for each in columns if each.field not in _NAMES] or columns
    if not columns:
        raise UsageError("no field has a ragged dimension to draw")
    if not target.lower().endswith(".png"):
        raise UsageError(f"{target}: the histogram is a PNG: give a name that ends in .png")
    figure_module = require("matplotlib.figure", "plot")
    agg = require("matplotlib.backends.backend_agg", "plot")
    figure = figure_module.Figure(figsize=(7, 2.4 * len(columns)), layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes = figure.subplots(len(columns), 1, squeeze=False)[:, 0]
    for ax, each in zip(axes, columns, strict=True):
        if len(each.sizes):
            ax.hist(each.sizes, bins=min(60, max(int(np.ptp(each.sizes)), 1)), color="#4c78a8")
            median = _quantiles(each.sizes)[QUANTILES.index(50)]
            ax.axvline(median, color="#f58518", label=f"median {median}")
            ax.legend(frameon=False)
        ax.set_xlabel(f"{each.name}, {each.unit}")
        ax.set_ylabel("samples")
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=120)

"""How values are distributed: counts between edges, and what quantiles are asked for.

Of arrays of any size (`lazy.histogram`, `lazy.quantiles`) and of the samples of a field
(`FieldView.histogram`, `FieldView.quantiles`) alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import UsageError
from raggedstore.moments import check_real

__all__ = ["counts_of", "edges_of", "ranks_of"]


def edges_of(given: Any) -> npt.NDArray[Any]:
    """(n + 1,) edges of a histogram's bins; UsageError where they are none."""
    try:
        edges = np.asarray(given)
    except ValueError:  # of lists of different lengths
        raise UsageError(f"edges are two numbers or more, ascending; got {given!r}") from None
    check_real(edges.dtype, "edges")
    if edges.ndim != 1 or len(edges) < 2 or not (edges[1:] >= edges[:-1]).all():
        raise UsageError(f"edges are two numbers or more, ascending; got {given!r}")
    return edges


def counts_of(values: Any, edges: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """(groups, bins) how many of (groups, n) values lie between edges, as `numpy.histogram` has it.

    An edge belongs to the bin above it, the last one to the last bin. Values outside, masked ones
    and NaN are not counted.
    """
    if values.dtype == np.bool_:  # of which np.histogram warns
        values = values.view(np.uint8)
    if len(values) == 1:
        plain = np.ma.compressed(values) if np.ma.isMaskedArray(values) else values
        return np.histogram(plain, edges)[0].astype(np.int64)[None]
    bins = len(edges) - 1
    data = np.ma.getdata(values)
    place = np.searchsorted(edges, data, "right") - 1
    place[data == edges[-1]] = bins - 1
    inside = (place >= 0) & (place < bins) & ~np.ma.getmaskarray(values)
    place += np.arange(len(data))[:, None] * bins
    counts = np.bincount(place[inside], minlength=len(data) * bins)
    return counts.reshape(len(data), bins)


def ranks_of(q: Any, error: Any) -> tuple[npt.NDArray[np.float64], float]:
    """The ranks that are asked for, of any shape, and by how much they may be off.

    Raises
    ------
    UsageError
        They are no fractions.
    """
    try:
        wanted, error = np.asarray(q, np.float64), float(error)
    except (TypeError, ValueError) as reason:
        raise UsageError(f"q={q!r}, error={error!r}: give numbers; {reason}") from None
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise UsageError(f"quantiles are asked for from 0 to 1, got {q!r}")
    if not 0 < error < 1:
        raise UsageError(f"error is a fraction between 0 and 1, got {error}")
    return wanted, error

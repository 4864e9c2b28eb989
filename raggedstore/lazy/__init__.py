"""Arrays beyond memory and stores beyond one machine, on Dask.

Whatever is called lazy array here is a `dask.array.Array`: all of Dask works on it. The package can
be imported without Dask; the first use of a name then says which extra brings it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from raggedstore.extras import require

if TYPE_CHECKING:
    from raggedstore.lazy.mosaics import concatenate as concatenate
    from raggedstore.lazy.mosaics import mosaic as mosaic
    from raggedstore.lazy.mosaics import stack as stack
    from raggedstore.lazy.mosaics import tiles as tiles
    from raggedstore.lazy.partitions import field as field
    from raggedstore.lazy.partitions import write_partitions as write_partitions
    from raggedstore.lazy.products import matmul as matmul
    from raggedstore.lazy.saving import save as save
    from raggedstore.lazy.showing import imshow as imshow
    from raggedstore.lazy.sources import adapt as adapt
    from raggedstore.lazy.statistics import compute as compute
    from raggedstore.lazy.statistics import count as count
    from raggedstore.lazy.statistics import histogram as histogram
    from raggedstore.lazy.statistics import max as max
    from raggedstore.lazy.statistics import mean as mean
    from raggedstore.lazy.statistics import min as min
    from raggedstore.lazy.statistics import quantiles as quantiles
    from raggedstore.lazy.statistics import std as std
    from raggedstore.lazy.statistics import sum as sum
    from raggedstore.lazy.statistics import var as var

#: Of each public name, the module here that has it.
_HOMES = {
    "adapt": "sources",
    "compute": "statistics",
    "concatenate": "mosaics",
    "count": "statistics",
    "field": "partitions",
    "histogram": "statistics",
    "imshow": "showing",
    "matmul": "products",
    "max": "statistics",
    "mean": "statistics",
    "min": "statistics",
    "mosaic": "mosaics",
    "quantiles": "statistics",
    "save": "saving",
    "stack": "mosaics",
    "std": "statistics",
    "sum": "statistics",
    "tiles": "mosaics",
    "var": "statistics",
    "write_partitions": "partitions",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    # Imported when asked for: Dask takes half a second, and not everybody has it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("dask.array", "lazy")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)

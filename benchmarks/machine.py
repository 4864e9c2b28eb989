"""What a benchmark was run on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raggedstore import kernel

__all__ = ["machine"]


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """The interpreter, cores, system, kernel, and versions of those of `packages` that are here."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "compiled_kernel": kernel.is_there(),
        "versions": versions,
    }

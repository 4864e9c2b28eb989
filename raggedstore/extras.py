"""Optional packages: imported where they are used, and named with their extra when missing."""

from __future__ import annotations

import importlib
from typing import Any

from raggedstore.errors import MissingExtraError

__all__ = ["require"]


def require(module: str, extra: str) -> Any:
    """The imported `module`.

    Parameters
    ----------
    module
        Name of the module, such as ``"PIL.Image"``.
    extra
        The extra of raggedstore that installs it.

    Raises
    ------
    MissingExtraError
        It is not installed, or lacks a library of its own; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: soundfile without its libsndfile
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"this needs {package}, which does not import ({error}): "
            f"pip install 'raggedstore[{extra}]'"
        ) from error

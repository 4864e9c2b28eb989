"""JSON that anybody may have written: one meaning for each text, or a ValueError.

Python's own parser takes NaN and Infinity for numbers, makes infinity of 1e999, keeps the last of
two equal keys where another reader keeps the first, and ends deep nesting with a RecursionError.
"""

from __future__ import annotations

import json
import math
from typing import Any

from raggedstore.errors import UsageError

__all__ = ["check", "loads"]

_DEEPEST = 64


def loads(text: bytes | str) -> Any:
    """The value of a JSON text.

    Raises
    ------
    ValueError
        It is no JSON, or not of one meaning.
    """
    try:
        return json.loads(
            text, parse_constant=_constant, parse_float=_float, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check(value: Any, what: str) -> None:
    """UsageError unless `value` can be written as JSON that `loads` takes for the same."""
    try:
        if _deeper(value, _DEEPEST):
            raise ValueError(f"nested over {_DEEPEST} deep")
        loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} must be plain JSON: {error}") from None


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise TypeError("the keys of a dict are strings")  # json would make strings of some others
    return isinstance(value, (dict, list, tuple)) and (
        levels == 0 or any(_deeper(one, levels - 1) for one in inner)
    )


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands in it twice")
    return value

"""One value of a sample to a file of its own, by the file's suffix."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from raggedstore.errors import UnknownFieldError, UsageError
from raggedstore.extras import require
from raggedstore.schema import Field
from raggedstore.store.files import appearing, storage_errors

__all__ = ["MAX_RATE", "save"]

MAX_RATE = 2**31 - 1  # that a sound file can say

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_SOUNDS = {".wav", ".flac"}
_SUBTYPES = {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT", "float64": "DOUBLE"}


def save(
    sample: Mapping[str, Any],
    schema: Mapping[str, Field],
    target: str,
    *,
    name: str | None = None,
    rate: int | None = None,
) -> str:
    """Write a field of `sample` to `target`, which is replaced; the field's name.

    Parameters
    ----------
    name
        The field; by default the first that suits the suffix.
    rate
        Sample rate of a sound, where no field ``sample_rate`` holds it.
    """
    suffix = Path(target).suffix.lower()
    suits: Callable[[Field], bool]
    if suffix in _PICTURES:
        suits = _is_picture
    elif suffix in _SOUNDS:
        suits = _is_sound
    elif suffix == ".txt":
        suits = _is_text
    elif suffix == ".npy":
        suits = _is_array
    else:
        raise UsageError(f"{target}: save to .png (and other pictures), .wav, .flac, .txt or .npy")
    name = _choose(schema, name, suits, suffix)
    value = sample[name]
    play = _rate(sample, rate) if suffix in _SOUNDS else 0
    with _in_place_of(target) as made, storage_errors(Path(target), "be written"):
        if suffix in _PICTURES:
            _save_picture(value, target, made)
        elif suffix in _SOUNDS:
            _save_sound(value, target, made, play)
        elif suffix == ".txt":
            made.write_bytes(value if isinstance(value, bytes) else value.encode())
        else:
            with made.open("wb") as file:  # of a name, NumPy would make another
                np.save(file, value, allow_pickle=False)
    return name


@contextmanager
def _in_place_of(target: str) -> Iterator[Path]:
    """Where to write what then is at `target`; a pipe or a device is written to as it is."""
    path = Path(os.path.realpath(target))  # what a link leads to
    with storage_errors(path, "be looked at"):
        before = path.stat() if path.exists() else None
    if before is not None and not stat.S_ISREG(before.st_mode):
        yield path
        return
    with appearing(path, replace=True) as made:
        yield made
        if before is not None:
            made.chmod(stat.S_IMODE(before.st_mode))


def _choose(
    schema: Mapping[str, Field], name: str | None, suits: Callable[[Field], bool], suffix: str
) -> str:
    if name is None:
        fitting = [each for each, field in schema.items() if suits(field)]
        if not fitting:
            raise UsageError(f"no field suits a {suffix} file")
        return fitting[0]
    if name not in schema:
        raise UnknownFieldError(f"no field {name!r}; the fields are {', '.join(schema)}")
    if not suits(schema[name]):
        raise UsageError(f"field {name!r}, {schema[name]}, does not suit a {suffix} file")
    return name


def _is_picture(field: Field) -> bool:
    if field.kind != "array" or field.dtype != np.uint8:
        return False
    return field.ndim == 2 or (field.ndim == 3 and field.shape[2] in (3, 4))


def _is_sound(field: Field) -> bool:
    return field.kind == "array" and field.dtype.name in _SUBTYPES and field.ndim in (1, 2)


def _is_text(field: Field) -> bool:
    return field.kind != "array"


def _is_array(field: Field) -> bool:
    return field.kind == "array"


def _rate(sample: Mapping[str, Any], rate: int | None) -> int:
    if rate is None and "sample_rate" not in sample:
        raise UsageError("no field 'sample_rate' says how fast to play it: give --rate")
    chosen = int(sample["sample_rate"]) if rate is None else rate
    if not 1 <= chosen <= MAX_RATE:
        raise UsageError(f"field 'sample_rate' has {chosen}, at which nothing plays: give --rate")
    return chosen


def _save_picture(value: Any, target: str, made: Path) -> None:
    if not value.size:
        raise UsageError(f"{target}: a picture of shape {value.shape} has no pixels")
    picture = require("PIL.Image", "image").fromarray(np.ascontiguousarray(value))
    try:
        picture.save(made)
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise UsageError(f"{target}: {error}") from error


def _save_sound(value: Any, target: str, made: Path, rate: int) -> None:
    soundfile = require("soundfile", "audio")
    subtype, form = _SUBTYPES[value.dtype.name], Path(target).suffix[1:].upper()
    if form == "FLAC" and subtype != "PCM_16":
        raise UsageError(f"{target}: {value.dtype} would lose something as FLAC: save to .wav")
    if form == "FLAC" and not len(value):
        raise UsageError(f"{target}: FLAC holds no sound without values: save to .wav")
    try:
        # It goes by the kind of dtype, and not by the order of its bytes.
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        # By its descriptor: soundfile takes only paths that are UTF-8.
        with made.open("wb") as file:
            soundfile.write(
                file.fileno(), native, rate, subtype=subtype, format=form, closefd=False
            )
    except soundfile.SoundFileError as error:
        raise UsageError(f"{target}: {getattr(error, 'error_string', error)}") from error

"""Pictures to samples, with pillow.

Values are those of ``np.asarray(PIL.Image.open(path).convert(mode))``: the first frame of an
animation, EXIF orientation left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from raggedstore.errors import SchemaError, UsageError
from raggedstore.extras import require
from raggedstore.interop.scan import SourceFile, Unreadable
from raggedstore.schema import Field

__all__ = ["MODES", "SUFFIXES", "ImageReader"]

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".tga"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
MODES: dict[str, tuple[int | None, ...]] = {
    "RGB": (None, None, 3),
    "RGBA": (None, None, 4),
    "L": (None, None),
}
# Pillow goes by content, not by suffix: name the formats, so that no file can reach one that
# starts another program (EPS) under a harmless name.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "TGA", "PPM")


class ImageReader:
    """Pictures: fields ``image`` and ``path``.

    Parameters
    ----------
    mode
        What every picture is converted to: a key of `MODES`.
    """

    kind = "image"
    samples_per_file = True

    def __init__(self, mode: str = "RGB") -> None:
        if mode not in MODES:
            raise UsageError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self._image = require("PIL.Image", "image")
        self._image.init()  # loads the formats now: from several threads at once it is not safe
        self._formats = tuple(name for name in _FORMATS if name in self._image.OPEN)
        self._mode = mode

    def probe(self, file: SourceFile) -> None:
        """Nothing: the mode decides the schema."""

    def take(self, probed: None) -> None:
        """Nothing, likewise."""

    def fields(self) -> dict[str, Field]:
        """The schema that the mode asks for."""
        return {"image": Field("uint8", MODES[self._mode]), "path": Field("str")}

    def fit(self, schema: Mapping[str, Field]) -> None:
        """SchemaError unless the store's ``image`` field is the one of this mode."""
        field, wanted = schema["image"], self.fields()["image"]
        if field != wanted:
            fitting = [mode for mode, shape in MODES.items() if Field("uint8", shape) == field]
            hint = f"--mode {fitting[0]}" if fitting else "import them to a corpus of their own"
            raise SchemaError(
                f"the corpus holds images as {field}, and mode {self._mode} gives {wanted}: {hint}"
            )

    def read(
        self, file: SourceFile, common: Mapping[str, Any], held: object
    ) -> Iterable[tuple[list[dict[str, Any]], int]]:
        """The file's one sample, decoded."""
        try:
            with self._image.open(file.path, formats=self._formats) as picture:
                if picture.mode == "F" or picture.mode.startswith("I"):
                    # pillow would make 255 of all that is more.
                    raise Unreadable(f"values of more than 8 bits, mode {picture.mode}")
                pixels = np.asarray(picture.convert(self._mode))
        except (MemoryError, Unreadable):
            raise
        except Exception as error:  # pillow's decoders raise anything on a malformed file
            raise Unreadable(_reason(error, file)) from error
        return [([{"image": pixels, **common}], file.nbytes)]


def _reason(error: Exception, file: SourceFile) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "not a picture in a format that is read"
    strerror = getattr(error, "strerror", None)
    return strerror or str(error) or type(error).__name__

"""Recordings to samples, with soundfile.

Strategy: every header is read first, so that one dtype and one shape can be chosen that hold
all files without loss. Values are those that ``soundfile.read(path, dtype=...)`` gives in that
dtype: integers of narrower files are scaled up to the wider, as libsndfile does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from raggedstore.errors import SchemaError
from raggedstore.extras import require
from raggedstore.interop.scan import SourceFile, Unreadable
from raggedstore.schema import Field

__all__ = ["SUFFIXES", "AudioReader"]

SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"}
)

# What a subtype of libsndfile needs: integers of so many bits, or floats.  The compressed ones
# that are not here (ADPCM, GSM and so on) decode to 16 bits.
_NEEDS = {
    "PCM_24": "i24",
    "PCM_32": "i32",
    "FLOAT": "f32",
    "DOUBLE": "f64",
    "VORBIS": "f32",
    "OPUS": "f32",
    "MPEG_LAYER_I": "f32",
    "MPEG_LAYER_II": "f32",
    "MPEG_LAYER_III": "f32",
    "DWVW_24": "i24",
    "ALAC_20": "i24",
    "ALAC_24": "i24",
    "ALAC_32": "i32",
}
# What a dtype holds without loss, narrowest dtype first.
_HOLDS = {
    "int16": {"i16"},
    "int32": {"i16", "i24", "i32"},
    "float32": {"i16", "i24", "f32"},
    "float64": {"i16", "i24", "i32", "f32", "f64"},
}
# How many bytes of sound a header has, and how many there are where libsndfile says that these are
# others; of all else it says only how long the file is. Where they take 32 bits, the uppermost mean
# that who wrote it did not know.
_SIZES = re.compile(
    r"^ *(?:data|SSND|Data [Ss]ize) *: (\d+)(?: \(should be (\d+)\))?$", re.MULTILINE
)
_LENGTH = re.compile(r"^Length : (\d+)$", re.MULTILINE)
_UNKNOWN = range(2**31 - 2**13, 2**32)
# Only an estimate of their length stands in the header.
_LENGTH_UNSURE = {"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}


class AudioReader:
    """Recordings: fields ``audio``, ``path`` and ``sample_rate``."""

    kind = "audio"
    samples_per_file = True

    def __init__(self) -> None:
        self._soundfile = require("soundfile", "audio")
        self._needs: set[str] = set()
        self._channels: set[int] = set()
        self._field = Field("int16", (None,))

    def probe(self, file: SourceFile) -> tuple[str, int]:
        """What the file's header asks for: the width of its values, its number of channels."""
        with self._opened(file) as sound:
            length = _LENGTH.search(sound.extra_info)
            for size, there in _SIZES.findall(sound.extra_info):
                found = int(there or (length[1] if length else size))
                if found < int(size) not in _UNKNOWN:  # libsndfile takes what there is
                    raise Unreadable(
                        f"cut off: of {size} bytes of sound no more than {found} are there"
                    )
            return _NEEDS.get(sound.subtype, "i16"), sound.channels

    @contextmanager
    def _opened(self, file: SourceFile) -> Iterator[Any]:
        """The file as soundfile has it; of what becomes of it, Unreadable says why."""
        try:
            # By its descriptor: soundfile takes only paths that are UTF-8.
            with (
                open(file.path, "rb") as source,
                self._soundfile.SoundFile(source.fileno(), closefd=False) as sound,
            ):
                yield sound
        except (self._soundfile.SoundFileError, OSError, RuntimeError, ValueError) as error:
            raise Unreadable(_reason(error)) from error

    def take(self, probed: tuple[str, int]) -> None:
        """Count what one file needs into `fields`."""
        self._needs.add(probed[0])
        self._channels.add(probed[1])

    def fields(self) -> dict[str, Field]:
        """The narrowest schema that holds all files probed without loss."""
        dtype = next(name for name, held in _HOLDS.items() if held >= self._needs)
        shape: tuple[int | None, ...] = (None, None)
        if len(self._channels) == 1:
            (channels,) = self._channels
            shape = (None,) if channels == 1 else (None, channels)
        self._field = Field(dtype, shape)
        return {"audio": self._field, "path": Field("str"), "sample_rate": Field("int32")}

    def fit(self, schema: Mapping[str, Field]) -> None:
        """Read into the ``audio`` field of an existing store from now on.

        Raises
        ------
        SchemaError
            That field would lose something of a file probed.
        """
        field = schema["audio"]
        held = _HOLDS.get(field.dtype.name, set()) if field.kind == "array" else set()
        if not held >= self._needs or not _takes(field.shape, self._channels):
            raise SchemaError(
                f"the corpus holds audio as {field}, and the files to import need "
                f"{self.fields()['audio']}: import them to a corpus of their own"
            )
        self._field = field

    def read(
        self, file: SourceFile, common: Mapping[str, Any], held: object
    ) -> Iterable[tuple[list[dict[str, Any]], int]]:
        """The file's one sample, decoded."""
        field = self._field
        with self._opened(file) as sound:
            frames, subtype, rate = sound.frames, sound.subtype, sound.samplerate
            audio = sound.read(dtype=field.dtype.name, always_2d=field.ndim == 2)
        if len(audio) < frames and subtype not in _LENGTH_UNSURE:
            raise Unreadable(f"ends after {len(audio)} of {frames} frames")
        sample = {"audio": audio, "sample_rate": np.int32(rate), **common}
        return [([sample], file.nbytes)]


def _takes(shape: tuple[int | None, ...], channels: Collection[int]) -> bool:
    if len(shape) == 1:
        return shape == (None,) and set(channels) <= {1}
    return (
        len(shape) == 2 and shape[0] is None and (shape[1] is None or {shape[1]} >= set(channels))
    )


def _reason(error: Exception) -> str:
    """What went wrong, without the path, which is named anyway."""
    said = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(said) or type(error).__name__

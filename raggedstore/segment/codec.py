"""One chunk to stored bytes and back, by Blosc2, in calls that hold no lock.

A stored chunk is a contiguous Blosc2 frame, which is what HDF5's Blosc2 filter keeps, so any
HDF5 tool with that filter reads it. Decoding skips the frame's wrapping: the header's length
is a big-endian int32 at bytes 11-14, the Blosc2 chunk follows, and its own header holds its
raw and its compressed size as little-endian int32 at bytes 4-7 and 12-15. All are checked
against the stored size before a byte is decoded. A frame whose only chunk is special (all
zeros, one value repeated) has no such chunk and goes the general way.

python-blosc2 keeps the GIL unless told otherwise; `blosc2.set_releasegil` is a switch of the
whole process, and importing this module turns it on: without it threads decode one by one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError, SchemaError, UsageError

__all__ = [
    "PROFILES",
    "Compression",
    "decode_blosc",
    "decode_frame",
    "encode_frame",
    "profile",
    "side_column_compression",
]

blosc2.set_releasegil(True)

_CODECS = {"lz4": blosc2.Codec.LZ4, "zstd": blosc2.Codec.ZSTD}
_FILTERS = {
    "shuffle": blosc2.Filter.SHUFFLE,
    "bitshuffle": blosc2.Filter.BITSHUFFLE,
    "bytedelta": blosc2.Filter.BYTEDELTA,
}
_MIN_FRAME = 87  # the shortest header that c-blosc2 writes
_CHUNK_HEADER = 32


@dataclass(frozen=True, slots=True)
class Compression:
    """How the chunks of a field are compressed.

    Parameters
    ----------
    codec
        "lz4" or "zstd".
    level
        0 (stored) to 9.
    filters
        Any of "shuffle", "bitshuffle", "bytedelta", in the order they are applied.
    chunk_bytes
        Raw bytes in a chunk, the unit that is read at once.
    block_bytes
        Raw bytes in a block, the unit within a chunk that can be decoded alone.
    """

    codec: str = "zstd"
    level: int = 1
    filters: tuple[str, ...] = ("shuffle",)
    chunk_bytes: int = 2**19
    block_bytes: int = 2**15

    def __post_init__(self) -> None:
        if self.codec not in _CODECS:
            raise UsageError(f"codec must be one of {', '.join(_CODECS)}, got {self.codec!r}")
        if not 0 <= self.level <= 9:
            raise UsageError(f"level must be 0 to 9, got {self.level}")
        object.__setattr__(self, "filters", tuple(self.filters))
        for name in self.filters:
            if name not in _FILTERS:
                raise UsageError(f"filters are {', '.join(_FILTERS)}, got {name!r}")
        if len(self.filters) > 6:
            raise UsageError("at most 6 filters")
        if not 1 <= self.chunk_bytes <= 2**30:
            raise UsageError(f"chunk_bytes must be 1 to 2**30, got {self.chunk_bytes}")
        if not 512 <= self.block_bytes <= 2**29:
            raise UsageError(f"block_bytes must be 512 to 2**29, got {self.block_bytes}")

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON types."""
        return {
            "codec": self.codec,
            "level": self.level,
            "filters": list(self.filters),
            "chunk_bytes": self.chunk_bytes,
            "block_bytes": self.block_bytes,
        }

    @classmethod
    def from_json(cls, value: Any) -> Compression:
        """The compression that `to_json` described."""
        try:
            return cls(**value)
        except TypeError:
            raise SchemaError(f"not the description of a compression: {value!r}") from None

    def params(self, itemsize: int, nbytes: int) -> blosc2.CParams:
        """Blosc2's own parameters for a chunk of `nbytes` made of items of `itemsize` bytes."""
        typesize = itemsize if itemsize <= 16 else 1
        block = min(self.block_bytes, nbytes) // typesize * typesize or typesize
        filters = [name for name in self.filters if typesize > 1]
        # Old decoders get the tail of a block wrong under bytedelta where a block or a chunk
        # is not whole: nothing that could meet that is ever written.
        if "bytedelta" in filters and nbytes % block:
            filters.remove("bytedelta")
        codes = [_FILTERS[name] for name in filters]
        return blosc2.CParams(
            codec=_CODECS[self.codec],
            clevel=self.level,
            typesize=typesize,
            blocksize=block,
            nthreads=1,
            filters=codes or [blosc2.Filter.NOFILTER],
            filters_meta=[typesize if name == "bytedelta" else 0 for name in filters] or [0],
        )


#: What each profile means, by the size of an item: single bytes gain nothing from shuffling.
PROFILES = ("fast", "balanced", "small")


def profile(name: str, itemsize: int) -> Compression:
    """The compression that the profile `name` picks for items of `itemsize` bytes."""
    if name not in PROFILES:
        raise UsageError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}")
    wide = itemsize > 1
    if name == "fast":
        return Compression("lz4", 5, ("shuffle",) if wide else ())
    if name == "balanced":
        if wide:
            return Compression("zstd", 1, ("bitshuffle",))
        return Compression("zstd", 3, ())
    if wide:
        return Compression("zstd", 3, ("shuffle", "bytedelta"), block_bytes=2**16)
    return Compression("zstd", 7, (), block_bytes=2**18)


def side_column_compression() -> Compression:
    """What side columns are written with: neighbouring starts differ little, byte by byte."""
    return Compression("zstd", 1, ("shuffle", "bytedelta"), chunk_bytes=2**17, block_bytes=2**15)


def encode_frame(raw: npt.NDArray[Any], itemsize: int, compression: Compression) -> bytes:
    """The frame of one chunk.

    Parameters
    ----------
    raw
        C-contiguous array: the whole chunk.
    itemsize
        Bytes of one value.
    """
    data = raw.reshape(-1).view(np.uint8)
    params = compression.params(itemsize, data.nbytes)
    frame = blosc2.SChunk(chunksize=data.nbytes, data=data, cparams=params).to_cframe()
    if blosc2.Filter.BYTEDELTA in params.filters:
        back = np.empty(data.nbytes, np.uint8)
        decode_frame(memoryview(frame), back)
        if not np.array_equal(back, data):
            raise CorruptionError("a chunk did not decode to what was encoded; nothing is written")
    return bytes(frame)


def decode_frame(frame: memoryview, out: npt.NDArray[np.uint8]) -> None:
    """Decode the one chunk of `frame` into `out`, (nbytes,) uint8, filling it exactly.

    Raises
    ------
    CorruptionError
        The frame is damaged, or holds another number of bytes.
    """
    if len(frame) < _MIN_FRAME or bytes(frame[2:9]) != b"b2frame":
        raise CorruptionError("not a Blosc2 frame")
    head, cbytes = struct.unpack_from(">i24xq", frame, 11)
    if cbytes <= 0:
        _decode_special(frame, out)
        return
    if not _MIN_FRAME <= head <= len(frame) - _CHUNK_HEADER:
        raise CorruptionError("a Blosc2 frame's header is longer than the frame")
    nbytes, _, size = struct.unpack_from("<iii", frame, head + 4)
    if nbytes != out.nbytes or not _CHUNK_HEADER <= size <= len(frame) - head:
        raise CorruptionError(f"a Blosc2 chunk of {nbytes} bytes where {out.nbytes} belong")
    try:
        blosc2.decompress2(frame[head : head + size], dst=out, nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise CorruptionError(f"Blosc2 could not decode a chunk: {error}") from None


def decode_blosc(chunk: memoryview, out: npt.NDArray[np.uint8]) -> None:
    """Decode a chunk of HDF5's older Blosc filter: a bare Blosc 1 buffer, no frame."""
    if len(chunk) < 16:
        raise CorruptionError("not a Blosc chunk")
    nbytes, _, size = struct.unpack_from("<iii", chunk, 4)
    if nbytes != out.nbytes or not 16 <= size <= len(chunk):
        raise CorruptionError(f"a Blosc chunk of {nbytes} bytes where {out.nbytes} belong")
    try:
        blosc2.decompress2(chunk[:size], dst=out, nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise CorruptionError(f"Blosc could not decode a chunk: {error}") from None


def _decode_special(frame: memoryview, out: npt.NDArray[np.uint8]) -> None:
    try:
        schunk = blosc2.schunk_from_cframe(bytes(frame))
        if schunk.nbytes != out.nbytes or schunk.nchunks != 1:
            raise CorruptionError(f"a frame of {schunk.nbytes} bytes where {out.nbytes} belong")
        schunk.decompress_chunk(0, dst=out)
    except (RuntimeError, ValueError) as error:
        raise CorruptionError(f"Blosc2 could not decode a chunk: {error}") from None

"""One chunk to stored bytes and back, by Blosc2, in calls that hold no lock.

A stored chunk is a contiguous Blosc2 frame, which is what HDF5's Blosc2 filter keeps, so any
HDF5 tool with that filter reads it. Decoding skips the frame's wrapping: the header's length
is a big-endian int32 at bytes 11-14, the Blosc2 chunk follows, and its own header holds its
raw and its compressed size as little-endian int32 at bytes 4-7 and 12-15. All are checked
against the stored size before a byte is decoded, and that no plug-in is asked for. A frame of
zeros has no such chunk: its header is followed by the table of chunks, which says so.
https://github.com/Blosc/c-blosc2 README_CFRAME_FORMAT.

python-blosc2 keeps the GIL unless told otherwise; `blosc2.set_releasegil` is a switch of the
whole process, and importing this module turns it on: without it threads decode one by one.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError, SchemaError, UsageError
from raggedstore.segment.blocks import check_header, is_unwritten
from raggedstore.segment.forking import no_fork
from raggedstore.units import format_bytes

__all__ = [
    "Compression",
    "check_frame",
    "compressed_size",
    "decode_blosc",
    "decode_frame",
    "encode_frame",
    "side_column_compression",
]

blosc2.set_releasegil(True)

_CODECS = {"lz4": blosc2.Codec.LZ4, "zstd": blosc2.Codec.ZSTD}
_FILTERS = {
    "shuffle": blosc2.Filter.SHUFFLE,
    "bitshuffle": blosc2.Filter.BITSHUFFLE,
    "bytedelta": blosc2.Filter.BYTEDELTA,
}
_BLOCK, _STORED_BLOCK = 2**14, 2**12
_MAX_FILTERS = 2
_MAX_ITEM = 16  # larger items gain nothing from filters
_MIN_FRAME = 87  # the shortest header that c-blosc2 writes
_CHUNK_HEADER = 32
_SPECIAL = 0x70  # in a chunk's last byte of header: it stands for values that are not there
_ZEROS = 0x81  # in the table of chunks, the highest byte of where one lies: nowhere, all zeros
_NANS = 0x82  # or all NaN
_UNWRITTEN = 0x84  # or never written: then zeros here, and whatever lies in memory elsewhere


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
        Raw bytes in a block, the unit within a chunk that can be decoded alone; 0 for 16 KiB, or
        4 KiB where they are stored as they are: nothing is gained by reading more than is wanted.
    item_bytes
        What the filters take for one item; 0 for the size of the field's own.
    """

    codec: str = "zstd"
    level: int = 1
    filters: tuple[str, ...] = ("shuffle",)
    chunk_bytes: int = 2**19
    block_bytes: int = 0
    item_bytes: int = 0

    def __post_init__(self) -> None:
        numbers = (self.level, self.chunk_bytes, self.block_bytes, self.item_bytes)
        if any(type(number) is not int for number in numbers):
            raise UsageError("level, chunk_bytes, block_bytes and item_bytes are ints")
        if self.block_bytes == 0:
            object.__setattr__(self, "block_bytes", _BLOCK if self.level else _STORED_BLOCK)
        if not isinstance(self.codec, str) or self.codec not in _CODECS:
            raise UsageError(f"codec must be one of {', '.join(_CODECS)}, got {self.codec!r}")
        if not 0 <= self.level <= 9:
            raise UsageError(f"level must be 0 to 9, got {self.level}")
        if not isinstance(self.filters, (list, tuple)):
            raise UsageError(f"filters are a tuple of names, got {self.filters!r}")
        object.__setattr__(self, "filters", tuple(self.filters))
        for name in self.filters:
            if name not in _FILTERS:
                raise UsageError(f"filters are {', '.join(_FILTERS)}, got {name!r}")
        # Under three or more, c-blosc2 3.3 works in the memory that it was given to compress,
        # and so destroys its caller's array.
        if len(self.filters) > _MAX_FILTERS:
            raise UsageError(f"at most {_MAX_FILTERS} filters, got {', '.join(self.filters)}")
        if not 1 <= self.chunk_bytes <= 2**30:
            raise UsageError(f"chunk_bytes must be 1 to 2**30, got {self.chunk_bytes}")
        if not 512 <= self.block_bytes <= 2**29:
            raise UsageError(f"block_bytes must be 512 to 2**29, or 0, got {self.block_bytes}")
        if not 0 <= self.item_bytes <= _MAX_ITEM:
            raise UsageError(f"item_bytes must be 0 to {_MAX_ITEM}, got {self.item_bytes}")

    def __str__(self) -> str:
        what = " + ".join([f"{self.codec} {self.level}", *self.filters])
        return (
            f"{what}, chunks of {format_bytes(self.chunk_bytes)}, "
            f"blocks of {format_bytes(self.block_bytes)}"
        )

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON types."""
        return {
            "codec": self.codec,
            "level": self.level,
            "filters": list(self.filters),
            "chunk_bytes": self.chunk_bytes,
            "block_bytes": self.block_bytes,
            "item_bytes": self.item_bytes,
        }

    @classmethod
    def from_json(cls, value: Any) -> Compression:
        """The compression that `to_json` described."""
        try:
            return cls(**value)
        except TypeError:
            raise SchemaError(f"not the description of a compression: {value!r}") from None

    def chunk_rows(self, row_nbytes: int, itemsize: int) -> tuple[int, int]:
        """Rows in a chunk and in a block: a chunk is so many whole blocks where it can be."""
        unit = math.lcm(max(row_nbytes, 1), self._typesize(itemsize))
        block = max(self.block_bytes // unit, 1) * unit // max(row_nbytes, 1)
        rows = max(self.chunk_bytes // max(row_nbytes, 1), 1)
        return (rows // block * block, block) if rows >= block else (rows, rows)

    def _typesize(self, itemsize: int) -> int:
        size = self.item_bytes or itemsize
        return size if size <= _MAX_ITEM else 1

    def params(self, itemsize: int, row_nbytes: int, nbytes: int) -> blosc2.CParams:
        """Blosc2's own parameters for a chunk of `nbytes` made of rows of items."""
        typesize = self._typesize(itemsize)
        block = self.chunk_rows(row_nbytes, itemsize)[1] * max(row_nbytes, 1)
        block = min(block, nbytes)
        if nbytes % typesize or block % typesize:
            # c-blosc2 loses the end of what is no whole number of its items, or can't decode it.
            typesize = itemsize if itemsize <= _MAX_ITEM else 1
        block = max(block, typesize)
        filters = [name for name in self.filters if typesize > 1]
        # Old decoders get the tail of a block wrong under bytedelta where a block or a chunk
        # is not whole: nothing that could meet that is ever written.
        if "bytedelta" in filters and (nbytes % block or block % typesize):
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


@dataclass(frozen=True, slots=True)
class _Wrapping:
    """What c-blosc2 puts around the one chunk of a frame: the same for all chunks of a kind.

    Only two numbers of the header are a chunk's own. To have c-blosc2 make each frame takes nearly
    as long again as to compress, most of it with the interpreter's lock.
    """

    head: bytes
    tail: bytes

    @classmethod
    def of(cls, frame: bytes) -> tuple[_Wrapping, bytes] | None:
        """What is around the chunk of a frame, and the chunk; None where the frame has none."""
        head, cbytes = struct.unpack_from(">i24xq", frame, 11)
        chunk = frame[head : head + max(cbytes, 0)]
        return (cls(frame[:head], frame[head + cbytes :]), chunk) if chunk else None

    def around(self, chunk: bytes) -> bytes | None:
        """The frame of another chunk; None of one that is not kept as such, like all zeros."""
        if len(chunk) <= _CHUNK_HEADER or chunk[_CHUNK_HEADER - 1] & _SPECIAL:
            return None
        head = bytearray(self.head)
        struct.pack_into(">q", head, 16, len(head) + len(chunk) + len(self.tail))
        struct.pack_into(">q", head, 39, len(chunk))
        return b"".join([head, chunk, self.tail])


#: What is known of the wrapping of each kind of chunk: as it was seen once; True once a second
#: frame was just what the first one tells; False where it was not.
_wrappings: dict[tuple[Compression, int, int, int], tuple[_Wrapping, bool | None]] = {}
_MOST_KINDS = 1024


def _learn(kind: tuple[Compression, int, int, int], frame: bytes) -> None:
    found = _Wrapping.of(frame)
    if found is None:
        return
    wrapping, chunk = found
    before = _wrappings.get(kind)
    if before is not None and before[1] is None:
        _wrappings[kind] = before[0], before[0].around(chunk) == frame
    elif len(_wrappings) < _MOST_KINDS:
        _wrappings.setdefault(kind, (wrapping, None))


def side_column_compression(codec: str) -> Compression:
    """What side columns are written with, beside data of `codec`.

    Neighbouring starts differ little, byte by byte. Beside LZ4, which is there for its speed, they
    are decoded seven times as fast as elsewhere, and take a byte a sample more.
    """
    if codec == "lz4":
        return Compression("lz4", 9, ("shuffle",))
    return Compression("zstd", 1, ("shuffle", "bytedelta"))


def encode_frame(
    raw: npt.NDArray[Any], itemsize: int, row_nbytes: int, compression: Compression
) -> bytes:
    """The frame of one chunk.

    Parameters
    ----------
    raw
        C-contiguous array: the whole chunk.
    itemsize, row_nbytes
        Bytes of one value and of one row.
    """
    data = raw.reshape(-1).view(np.uint8)
    params = compression.params(itemsize, row_nbytes, data.nbytes)
    kind = (compression, itemsize, row_nbytes, data.nbytes)
    wrapping, sure = _wrappings.get(kind, (None, False))
    frame = None
    with no_fork():
        if wrapping is not None and sure:
            frame = wrapping.around(blosc2.compress2(data, cparams=params))
        if frame is None:
            frame = blosc2.SChunk(chunksize=data.nbytes, data=data, cparams=params).to_cframe()
            _learn(kind, frame)
    if blosc2.Filter.BYTEDELTA in params.filters:
        back = np.empty(data.nbytes, np.uint8)
        decode_frame(memoryview(frame), back)
        if not np.array_equal(back, data):
            raise CorruptionError("a chunk did not decode to what was encoded; nothing is written")
    return frame


def compressed_size(
    raw: npt.NDArray[Any], itemsize: int, row_nbytes: int, compression: Compression
) -> int:
    """Bytes of a chunk as `encode_frame` would make it, without what a frame puts around it."""
    data = raw.reshape(-1).view(np.uint8)
    with no_fork():
        params = compression.params(itemsize, row_nbytes, data.nbytes)
        return len(blosc2.compress2(data, cparams=params))


def check_frame(frame: memoryview) -> None:
    """CorruptionError unless Blosc2 can decode the chunk of a frame by itself; see blocks.py."""
    if len(frame) < _MIN_FRAME or bytes(frame[2:9]) != b"b2frame":
        raise CorruptionError("not a Blosc2 frame")
    (head,) = struct.unpack_from(">i", frame, 11)
    if not _MIN_FRAME <= head <= len(frame) - _CHUNK_HEADER:
        raise CorruptionError("a Blosc2 frame's header is longer than the frame")
    check_header(frame[head : head + _CHUNK_HEADER])


def decode_frame(frame: memoryview, out: npt.NDArray[np.uint8]) -> None:
    """Decode the one chunk of `frame` into `out`, (nbytes,) uint8, filling it exactly.

    Raises
    ------
    CorruptionError
        The frame is damaged, or holds another number of bytes.
    """
    check_frame(frame)
    head, nbytes, cbytes = struct.unpack_from(">i15xqxq", frame, 11)
    if cbytes <= 0:
        _decode_zeros(frame, head, nbytes, out)
        return
    nbytes, _, size = struct.unpack_from("<iii", frame, head + 4)
    if nbytes != out.nbytes or not _CHUNK_HEADER <= size <= len(frame) - head:
        raise CorruptionError(f"a Blosc2 chunk of {nbytes} bytes where {out.nbytes} belong")
    _decompress(frame[head : head + size], out)


def decode_blosc(chunk: memoryview, out: npt.NDArray[np.uint8]) -> None:
    """Decode a chunk of HDF5's older Blosc filter: a bare Blosc 1 buffer, no frame."""
    if len(chunk) < 16:
        raise CorruptionError("not a Blosc chunk")
    nbytes, _, size = struct.unpack_from("<iii", chunk, 4)
    if nbytes != out.nbytes or not 16 <= size <= len(chunk):
        raise CorruptionError(f"a Blosc chunk of {nbytes} bytes where {out.nbytes} belong")
    check_header(bytes(chunk[:_CHUNK_HEADER]).ljust(_CHUNK_HEADER, b"\0"))
    _decompress(chunk[:size], out)


def _decompress(chunk: memoryview, out: npt.NDArray[np.uint8]) -> None:
    if is_unwritten(chunk):
        out[:] = 0
        return
    try:
        blosc2.decompress2(chunk, dst=out, nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise CorruptionError(f"Blosc2 could not decode a chunk: {error}") from None


def _decode_zeros(frame: memoryview, head: int, nbytes: int, out: npt.NDArray[np.uint8]) -> None:
    """Fill `out` with zeros or NaN, if those are what a frame without a chunk stands for."""
    table = frame[head : head + _CHUNK_HEADER + 8]  # of one chunk: eight bytes behind a header
    (itemsize,) = struct.unpack_from(">i", frame, 48)
    special = table[-1] if len(table) == _CHUNK_HEADER + 8 else 0
    if nbytes != out.nbytes or special not in (_ZEROS, _NANS, _UNWRITTEN):
        raise CorruptionError(f"a Blosc2 frame that is not {out.nbytes} zeros, nor has a chunk")
    if special in (_ZEROS, _UNWRITTEN):
        out[:] = 0
    elif itemsize in (4, 8) and nbytes % itemsize == 0:
        out.view(f"f{itemsize}")[:] = np.nan
    else:
        raise CorruptionError(f"a Blosc2 frame of NaN of {itemsize} bytes")

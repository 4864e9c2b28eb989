"""The blocks of a chunk: the parts of it that can be decoded without the rest.

A Blosc2 chunk is a header of 32 bytes, where each block starts (little-endian int32, from the
header's first byte), and the blocks, each compressed by itself. So any blocks of chunks that
share their header can be put behind a header of their own and decoded in one call, whatever
chunks they come from: a batch of samples from all over a segment costs as few calls, and as few
bytes read, as if they lay side by side. https://github.com/Blosc/c-blosc2 README_CHUNK_FORMAT
says what the bytes mean.

Where the blocks of each chunk lie, and a checksum of each, is kept in the chunk table, so that
nothing of a chunk need be read but the blocks that are wanted. A chunk that did not compress
holds its blocks as they are; one that is special (all zeros, one value) has none.
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt
import xxhash

from raggedstore import kernel
from raggedstore.errors import CorruptionError
from raggedstore.units import format_bytes

__all__ = [
    "BlockTable",
    "ChunkBlocks",
    "assemble",
    "assemble_run",
    "assembled_size",
    "block_checksum",
    "block_checksums",
    "blocks_of",
    "check_header",
    "decode_assembled",
    "is_unwritten",
]

HEADER = 32
_STORED = 0x02  # in the header's flags: not compressed
_MOST = 2**31 - 1
_MOST_BLOCKS = 2**26  # of a dataset; where there are more, its chunks are decoded whole
_RAW = np.uint32(2**31)  # set in a chunk's first edge where its blocks are not compressed
# Filters whose blocks depend on nothing outside: none, shuffle, bitshuffle, bytedelta.
_FILTERS = (0, 1, 2, 35)
# Those besides that other tools write: delta, truncated precision, bytedelta as it once was.
_MORE_FILTERS = (3, 4, 34)
_FILTER_NAMES = {1: "shuffle", 2: "bitshuffle", 35: "bytedelta"}
_CODECS = {0: "blosclz", 1: "lz4", 2: "snappy", 3: "zlib", 4: "zstd"}
_EXTENDED = 0x05  # both of Blosc 1's flags for shuffles say that the header has 32 bytes
_MOST_CODEC = 4  # BloscLZ, LZ4, Snappy, Zlib, Zstandard; what follows is up to plug-ins
_DICTIONARY = 0x01  # in the last byte
_MOST_SPECIAL = 0x40  # in the last byte: zeros, NaNs, one value throughout, never written
_SPECIAL = 0x70
_ZSTANDARD = 4  # the one codec whose dictionaries c-blosc2 takes

Edges = npt.NDArray[np.uint32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ChunkBlocks:
    """The blocks of one chunk."""

    header: bytes  #: its header, sizes left out
    nbytes: int  #: raw bytes in a block
    edges: Edges  #: (k + 1,) where each begins, and the last ends, in the stored bytes
    raw: bool  #: not compressed


def check_header(header: Any) -> None:
    """See that Blosc2 can decode a chunk with that header by itself.

    For a codec or filter that it does not know, c-blosc2 runs ``python -c "import blosc2_…"``,
    which finds a module in the working folder; so the header of whatever is decoded is looked at
    first.

    Raises
    ------
    CorruptionError
        It names a codec or filter that is not Blosc2's own, or wants more than the chunk's bytes.
    """
    flags, more = header[2], header[30:32]
    if flags >> 5 > _MOST_CODEC:
        raise CorruptionError(f"a Blosc2 codec that is not read, {flags >> 5}")
    if flags & _EXTENDED != _EXTENDED:
        return
    filters = header[16:22]
    if any(code not in _FILTERS + _MORE_FILTERS for code in filters):
        raise CorruptionError(f"Blosc2 filters that are not read, {list(filters)}")
    if more[1] & _DICTIONARY and flags >> 5 != _ZSTANDARD:
        raise CorruptionError(f"a Blosc2 chunk with a dictionary for codec {flags >> 5}")
    if more[0] or more[1] & 0x0F & ~_DICTIONARY or more[1] > _MOST_SPECIAL:
        raise CorruptionError("a Blosc2 chunk that does not stand by itself")
    if is_unwritten(header) and struct.unpack_from("<i", header, 12) != (HEADER,):
        raise CorruptionError("a Blosc2 chunk that nobody wrote to, and yet has bytes")


def is_unwritten(header: Any) -> bool:
    """Whether a chunk stands for values that nobody wrote, which Blosc2 leaves as they were."""
    if len(header) < HEADER or header[2] & _EXTENDED != _EXTENDED:
        return False
    return bool(header[31] & _SPECIAL == _MOST_SPECIAL)


def blocks_of(frame: memoryview, size: int) -> ChunkBlocks | None:
    """The blocks of the one chunk of a Blosc2 frame; None where they can't be told apart.

    Parameters
    ----------
    frame
        Its first bytes: those up to the first block do.
    size
        Bytes of the whole.
    """
    if len(frame) < 87 + HEADER:
        return None
    (head,) = struct.unpack_from(">i", frame, 11)
    if not 87 <= head <= len(frame) - HEADER:
        return None
    header = bytes(frame[head : head + HEADER])
    nbytes, block, stored = struct.unpack_from("<iii", header, 4)
    if not 0 < block < nbytes or nbytes % block or not HEADER < stored <= size - head:
        return None
    if header[2] & _EXTENDED != _EXTENDED or header[2] >> 5 > _MOST_CODEC:
        return None
    # Anything out of the ordinary: special chunks, dictionaries, blocks of various lengths.
    if header[30] or header[31] or any(code not in _FILTERS for code in header[16:22]):
        return None
    count = nbytes // block
    raw = bool(header[2] & _STORED)
    if raw and HEADER + nbytes > stored:
        return None
    if raw:
        starts = HEADER + np.arange(count + 1, dtype=np.int64) * block
    else:
        places = frame[head + HEADER : head + HEADER + 4 * count]
        if len(places) < 4 * count:
            return None
        starts = np.append(np.frombuffer(places, "<i4").astype(np.int64), stored)
    first = HEADER if raw else HEADER + 4 * count
    if starts[0] != first or starts[-1] > stored or (np.diff(starts) <= 0).any():
        return None
    return ChunkBlocks(
        header[:4] + bytes(4) + header[8:12] + bytes(4) + header[16:],
        block,
        (starts + head).astype(np.uint32),
        raw,
    )


def block_checksum(stored: Any) -> int:
    """32 bits of xxh3-64 over the stored bytes of a block."""
    return xxhash.xxh3_64_intdigest(stored) & 0xFFFFFFFF


def block_checksums(stored: memoryview, edges: Edges) -> Edges:
    """(n,) `block_checksum` of the n blocks between the (n + 1,) `edges` of what is stored."""
    digests = kernel.digests_of(stored, edges)
    if digests is None:
        parts = itertools.pairwise(edges.tolist())
        digests = np.array([block_checksum(stored[a:b]) for a, b in parts], np.uint32)
    return digests


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The blocks of every chunk of a dataset.

    Parameters
    ----------
    header
        The header that its compressed chunks share, sizes left out. Others have no blocks here.
    nbytes
        Raw bytes in a block.
    edges
        (n_chunks, k + 1) uint32 where blocks begin and end in a chunk's stored bytes. All 0 for a
        chunk whose blocks can't be told apart; the first with its highest bit set for one that
        holds them uncompressed.
    checks
        (n_chunks, k) uint32 `block_checksum` of each.
    """

    header: bytes
    nbytes: int
    edges: Edges
    checks: Edges

    @classmethod
    def of(
        cls, chunks: Sequence[tuple[ChunkBlocks | None, Edges]], chunk_nbytes: int
    ) -> BlockTable | None:
        """The table of chunks of `chunk_nbytes` raw bytes, given each one's blocks and checks."""
        known = [
            blocks
            for blocks, _ in chunks
            if blocks is not None and blocks.nbytes * (len(blocks.edges) - 1) == chunk_nbytes
        ]
        if not known or len(chunks) * (len(known[0].edges) - 1) > _MOST_BLOCKS:
            return None
        # Chunks before the first that a profile could be chosen by may have others.
        headers = Counter(blocks.header for blocks in known if not blocks.raw)
        header = headers.most_common(1)[0][0] if headers else known[0].header
        nbytes = known[0].nbytes
        count = chunk_nbytes // nbytes
        edges = np.zeros((len(chunks), count + 1), np.uint32)
        checks = np.zeros((len(chunks), count), np.uint32)
        for i, (blocks, check) in enumerate(chunks):
            if blocks is None or blocks.nbytes != nbytes or len(blocks.edges) != count + 1:
                continue
            if blocks.raw or blocks.header == header:
                edges[i], checks[i] = blocks.edges, check
                if blocks.raw:
                    edges[i, 0] |= _RAW
        return cls(header, nbytes, edges, checks)

    def __str__(self) -> str:
        """What its chunks were compressed with, and the size of their blocks."""
        codec = self.header[2] >> 5
        names = [_CODECS.get(codec, f"codec {codec}")]
        names += [_FILTER_NAMES.get(n, f"filter {n}") for n in self.header[16:22] if n]
        return f"{' + '.join(names)}, blocks of {format_bytes(self.nbytes)}"

    def is_raw(self, chunk: Any) -> Any:
        """Whether a chunk, or each of an array of chunks, holds its blocks uncompressed."""
        return self.edges[chunk, 0] >= _RAW

    def begin(self, chunk: Int64s, block: Int64s) -> Int64s:
        """(k,) where blocks begin in the stored bytes of their chunks, without the flag."""
        places: Edges = self.edges[chunk, block]
        return (places & ~_RAW).astype(np.int64)

    def end(self, chunk: Int64s, block: Int64s) -> Int64s:
        """(k,) where they end."""
        places: Edges = self.edges[chunk, block + 1]
        return places.astype(np.int64)

    def run(self, chunk: int, first: int, count: int) -> list[int]:
        """The edges of `count` blocks of one chunk, from the block `first`."""
        edges: list[int] = self.edges[chunk, first : first + count + 1].tolist()
        edges[0] &= ~int(_RAW)
        return edges

    def check_bounds(self, stored: npt.NDArray[Any]) -> bool:
        """Whether every block lies inside its chunk, of (n_chunks,) `stored` bytes."""
        edges = self.edges[self.known].astype(np.int64)
        edges[:, 0] &= ~np.int64(_RAW)
        sizes = np.diff(edges, axis=1)
        return bool(
            (edges[:, 0] > 0).all()
            and (sizes > 0).all()
            and (edges[:, -1] <= stored[self.known].astype(np.int64)).all()
            and (sizes[self.is_raw(self.known)] == self.nbytes).all()
        )

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """(n_chunks,) whether the blocks of a chunk can be told apart."""
        return self.edges[:, 0] > 0


def assembled_size(sizes: npt.NDArray[np.int64]) -> int:
    """Bytes of the chunk that `assemble` makes for blocks of the given stored `sizes`."""
    return HEADER + 4 * len(sizes) + int(sizes.sum())


def assemble(
    header: bytes, block: int, sizes: npt.NDArray[np.int64], chunk: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Begin a chunk for blocks of the given stored `sizes`: its header and starts.

    Parameters
    ----------
    header, block
        As in a `BlockTable`: the header, and the raw bytes in a block.
    chunk
        (`assembled_size` of them,) uint8, where it is put. The blocks belong at its end.
    """
    count = len(sizes)
    first = HEADER + 4 * count
    if max(len(chunk), count * block) > _MOST:
        raise CorruptionError("blocks of more bytes than a chunk can hold")
    chunk[:HEADER] = np.frombuffer(header, np.uint8)
    struct.pack_into("<iii", chunk.data, 4, count * block, block, len(chunk))
    starts = np.cumsum(sizes) - sizes + first
    chunk[HEADER:first] = starts.astype("<i4").view(np.uint8)
    return chunk


def assemble_run(header: bytes, block: int, edges: list[int], chunk: memoryview) -> None:
    """As `assemble`, of blocks side by side in one chunk, given their (k + 1) `edges` in it."""
    count = len(edges) - 1
    first = HEADER + 4 * count
    chunk[:HEADER] = header
    struct.pack_into("<iii", chunk, 4, count * block, block, len(chunk))
    shift = first - edges[0]
    struct.pack_into(f"<{count}i", chunk, HEADER, *(edge + shift for edge in edges[:-1]))


def decode_assembled(chunk: memoryview, out: npt.NDArray[np.uint8]) -> None:
    """Decode a chunk that `assemble` began and whose blocks were put in, into `out`."""
    (nbytes,) = struct.unpack_from("<i", chunk, 4)
    if nbytes != out.nbytes:
        raise CorruptionError(f"blocks of {nbytes} bytes where {out.nbytes} belong")
    try:
        blosc2.decompress2(chunk, dst=out, nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise CorruptionError(f"Blosc2 could not decode blocks: {error}") from None

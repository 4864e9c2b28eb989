"""Where the chunks of a dataset lie, by the indexes that HDF5 has had since 1.10.

Files of ``libver="latest"`` and the like have them in place of B-trees of the first version: none
at all where there is one chunk, or all lie side by side; a fixed array; an extensible array where
one dimension is unlimited; a B-tree of the second version where several are. Each part of them ends
with a checksum, which is verified, so that no damage leads to another chunk's bytes.

Source: HDF5 File Format Specification, version 3.0 (The HDF Group): IV.A.2.i, "Data Layout
Message", and its appendix C; and of its second B-trees III.A.2. Checksums are Bob Jenkins' lookup3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError

__all__ = ["Found", "Layout"]

Int64s = npt.NDArray[np.int64]

UNDEFINED = 2**64 - 1  # an address that HDF5 has not given out
_SINGLE, _IMPLICIT, _FIXED, _EXTENSIBLE, _TREE = range(1, 6)
_WHOLE_EDGES, _SINGLE_FILTERED = 1, 2  # flags: chunks at the edges skip all filters; a size follows
_SKIPS_ALL = 2**32 - 1
_PREFIX = 14  # bytes that a part begins with: signature, version, kind, its header's address
_DEEPEST = 64  # levels of a tree; and a tree of fewer has more records than any file


@dataclass(frozen=True, slots=True)
class Found:
    """The chunks that there are, in no order."""

    places: Int64s  #: (n, d) the first value of each, along each dimension
    offsets: npt.NDArray[np.uint64]  #: (n,) where in the file, as addresses count
    sizes: npt.NDArray[np.uint64]  #: (n,) stored bytes
    masks: npt.NDArray[np.uint64]  #: (n,) bit i: filter i was skipped


#: Numbers of elements that lie side by side, the first of them, and their bytes.
_Run = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a data layout message of version 4 or 5 says of a dataset in chunks.

    Parameters
    ----------
    chunk
        (d,) values along each dimension.
    nbytes
        Bytes of a chunk that is not filtered.
    kind, flags, about, address
        The index: its kind, what the message says of it, and where it begins.
    """

    chunk: tuple[int, ...]
    nbytes: int
    kind: int
    flags: int
    about: bytes
    address: int

    @classmethod
    def of(cls, message: bytes) -> Layout:
        """That of a message, from its version on.

        Raises
        ------
        CorruptionError
            It ends too early, or knows an index that nobody does.
        """
        try:
            flags, rank, width = struct.unpack_from("<BBB", message, 2)
            at = 5 + rank * width
            sizes = [
                int.from_bytes(message[i : i + width], "little") for i in range(5, at, width or 1)
            ]
            kind = message[at]
            about = {
                _SINGLE: 12 if flags & _SINGLE_FILTERED else 0,
                _IMPLICIT: 0,
                _FIXED: 1,
                _EXTENSIBLE: 5,
                _TREE: 6,
            }[kind]
            (address,) = struct.unpack_from("<Q", message, at + 1 + about)
        except (struct.error, IndexError, KeyError):
            raise CorruptionError("where its chunks lie makes no sense") from None
        if len(sizes) < 2 or not all(sizes):
            raise CorruptionError(f"chunks of {sizes} values")
        said = bytes(message[at + 1 : at + 1 + about])
        return cls(tuple(sizes[:-1]), math.prod(sizes), kind, flags, said, address)

    def chunks(
        self,
        stream: Any,
        shape: Sequence[int],
        most: Sequence[int | None],
        filtered: bool,
    ) -> Found:
        """The chunks that a dataset has.

        Parameters
        ----------
        stream
            The file, in which addresses are places.
        shape, most
            (d,) of the dataset, and what it may grow to; None for any size.
        filtered
            Whether chunks go through filters.

        Raises
        ------
        CorruptionError
            The index is damaged.
        """
        if len(shape) != len(self.chunk):
            raise CorruptionError(f"chunks of {len(self.chunk)} dimensions where {len(shape)} are")
        if self.address == UNDEFINED:
            return _found([], len(shape))
        elements = _Elements(stream, filtered, self.nbytes)
        if self.kind == _TREE:
            found = _found(_of_tree(elements, self.address, self.chunk), len(shape))
        else:
            # Numbers count along a grid of chunks, the last dimension first; but the unlimited one,
            # wherever it stands, counts as the first.
            axes = list(range(len(shape)))
            if self.kind == _EXTENSIBLE and None in most:
                axes.insert(0, axes.pop(list(most).index(None)))
            sizes = [shape[axis] if size is None else size for axis, size in enumerate(most)]
            grid = [-(-sizes[axis] // self.chunk[axis]) for axis in axes]
            parts = [
                (_unravelled(first, len(entries), grid, axes) * self.chunk, entries)
                for first, entries in self._numbered(elements, shape, math.prod(grid))
            ]
            found = _found(parts, len(shape))
        # What a dataset was cut down to leaves some behind.
        within = (found.places >= 0) & (found.places < np.array(shape))
        there = (found.offsets != UNDEFINED) & within.all(axis=1)
        places, masks = found.places[there], found.masks[there]
        if filtered and self.flags & _WHOLE_EDGES:
            masks[(places + self.chunk > np.array(shape)).any(axis=1)] = _SKIPS_ALL
        return Found(places, found.offsets[there], found.sizes[there], masks)

    def _numbered(
        self, elements: _Elements, shape: Sequence[int], count: int
    ) -> Iterator[tuple[int, _Entries]]:
        """Of runs of chunks the number of the first, and where they lie."""
        if self.kind == _SINGLE:
            size, mask = self.nbytes, 0
            if self.flags & _SINGLE_FILTERED:
                size, mask = struct.unpack("<QI", self.about)
            yield 0, _entries(np.array([self.address], np.uint64), size, mask)
        elif self.kind == _IMPLICIT:
            elements.check(self.address, count * self.nbytes)
            places = self.address + np.arange(count, dtype=np.uint64) * np.uint64(self.nbytes)
            yield 0, _entries(places, self.nbytes, 0)
        else:
            walk = _of_fixed if self.kind == _FIXED else _of_extensible
            for first, raw in walk(elements, self.address):
                yield first, elements.parsed(raw)


#: (n, 3) uint64: address, stored bytes and filter mask of some chunks.
_Entries = npt.NDArray[np.uint64]


def _entries(addresses: npt.NDArray[np.uint64], sizes: Any, masks: Any) -> _Entries:
    entries = np.empty((len(addresses), 3), np.uint64)
    entries[:, 0], entries[:, 1], entries[:, 2] = addresses, sizes, masks
    return entries


def _unravelled(first: int, count: int, grid: list[int], axes: list[int]) -> Int64s:
    """(count, d) the places on a grid of the numbers from `first` on, the slowest axis open."""
    places = np.empty((count, len(grid)), np.int64)
    left = np.arange(first, first + count, dtype=np.int64)
    for axis, size in zip(axes[:0:-1], grid[:0:-1], strict=True):
        left, places[:, axis] = np.divmod(left, max(size, 1))
    places[:, axes[0]] = left
    return places


def _found(parts: Any, rank: int) -> Found:
    places = [np.zeros((0, rank), np.int64)]
    entries = [np.zeros((0, 3), np.uint64)]
    for some, theirs in parts:
        places.append(some)
        entries.append(theirs)
    return Found(np.concatenate(places), *np.concatenate(entries).T)


class _Elements:
    """Parts of an index, and the elements in them: of one chunk each."""

    def __init__(self, stream: Any, filtered: bool, nbytes: int) -> None:
        self._stream, self.filtered, self._nbytes = stream, filtered, nbytes
        stream.seek(0, 2)
        self._size = self._left = stream.tell()
        self.width = 8  #: bytes of an element

    def check(self, address: int, nbytes: int) -> None:
        """CorruptionError unless so many bytes lie there in the file."""
        if not 0 <= nbytes <= self._size - address:
            raise CorruptionError("what says where its chunks lie reaches out of the file")

    def read(self, address: int, nbytes: int, signature: bytes = b"") -> bytes:
        """So many bytes from an address, of which the last four, the checksum, are left out."""
        self.check(address, nbytes)
        self._left -= nbytes
        if self._left < 0:
            raise CorruptionError("what says where its chunks lie goes round in circles")
        self._stream.seek(address)
        data: bytes = self._stream.read(nbytes)
        if data[:4] != signature and signature:
            raise CorruptionError(f"no {signature.decode()} where one should be")
        if len(data) != nbytes or lookup3(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise CorruptionError("the checksum of an index of chunks does not hold")
        return data[:-4]

    def begin(self, address: int, nbytes: int, signature: bytes) -> bytes:
        """As `read`, of an array's header, which says how wide elements are."""
        head = self.read(address, nbytes, signature)
        self.check_kind(head[5], head[6])
        return head

    def check_kind(self, client: int, width: int) -> None:
        """Take elements to be so wide; CorruptionError where these cannot be."""
        if client != self.filtered or not (12 < width <= 20 if client else width == 8):
            raise CorruptionError(f"elements of {width} bytes in an index of chunks")
        self.width = width

    def parsed(self, raw: bytes) -> _Entries:
        """What the bytes of elements say."""
        cells = np.frombuffer(raw, np.uint8).reshape(-1, self.width)
        addresses = np.ascontiguousarray(cells[:, :8]).view("<u8")[:, 0]
        if not self.filtered:
            return _entries(addresses, self._nbytes, 0)
        sizes = np.zeros((len(cells), 8), np.uint8)
        sizes[:, : self.width - 12] = cells[:, 8:-4]
        masks = np.ascontiguousarray(cells[:, -4:]).view("<u4")[:, 0]
        return _entries(addresses, sizes.view("<u8")[:, 0], masks)


def _set_among(bits: bytes, first: int, count: int) -> Iterator[int]:
    """Which of `count` bits, from number `first` on, are set; counted from that."""
    low = first // 8
    part = np.frombuffer(bits, np.uint8)[low : -(-(first + count) // 8)]
    for at in np.flatnonzero(part).tolist():
        for bit in range(8):
            number = (low + at) * 8 + bit - first
            if part[at] & 0x80 >> bit and 0 <= number < count:
                yield number


def _of_fixed(elements: _Elements, address: int) -> Iterator[_Run]:
    head = elements.begin(address, 28, b"FAHD")
    page_bits, count, block = struct.unpack_from("<xxxxxxxBQQ", head)
    if block == UNDEFINED:
        return
    width, page = elements.width, 1 << min(page_bits, 63)
    if count <= page:
        yield 0, elements.read(block, _PREFIX + count * width + 4, b"FADB")[_PREFIX:]
        return
    pages = -(-count // page)
    begin = _PREFIX + -(-pages // 8) + 4
    written = elements.read(block, begin, b"FADB")[_PREFIX:]
    for number in _set_among(written, 0, pages):
        size = min(page, count - number * page) * width + 4
        yield number * page, elements.read(block + begin + number * (page * width + 4), size)


def _of_extensible(elements: _Elements, address: int) -> Iterator[_Run]:
    head = elements.begin(address, 72, b"EAHD")
    bits, direct, least, pointers, page_bits = head[7:12]
    count, block = struct.unpack_from("<QxxxxxxxxQ", head, 44)
    if least < 1 or least & (least - 1) or pointers < 2 or pointers & (pointers - 1) or bits > 64:
        raise CorruptionError("an extensible array of no size that it can have")
    if block == UNDEFINED:
        return
    width, page, counted = elements.width, 1 << min(page_bits, 63), -(-bits // 8)
    levels = 1 + bits - (least.bit_length() - 1)
    near = 2 * (pointers.bit_length() - 1)  # levels whose blocks are known to the first one
    data, above = 2 * (pointers - 1), max(levels - near, 0)
    size = _PREFIX + direct * width + (data + above) * 8
    first_block = elements.read(block, size + 4, b"EAIB")
    yield 0, first_block[_PREFIX : _PREFIX + direct * width]
    known = np.frombuffer(first_block, "<u8", data + above, _PREFIX + direct * width).tolist()
    start, used = direct, 0
    for level in range(levels):
        if start >= count:
            break
        blocks, each = 1 << level // 2, (1 << (level + 1) // 2) * least
        pages, written = each // page if each > page else 0, b""
        if level < near:
            addresses = known[used : used + blocks]
            used += blocks
            if pages:
                raise CorruptionError("an extensible array whose first blocks have pages")
        elif known[data + level - near] == UNDEFINED:
            start += blocks * each
            continue
        else:
            bitmaps = blocks * -(-pages // 8)
            begin = _PREFIX + counted
            nbytes = begin + bitmaps + blocks * 8 + 4
            super_block = elements.read(known[data + level - near], nbytes, b"EASB")
            written = super_block[begin : begin + bitmaps]
            addresses = np.frombuffer(super_block, "<u8", blocks, begin + bitmaps).tolist()
        for number, place in enumerate(addresses):
            if place != UNDEFINED and not pages:
                raw = elements.read(place, _PREFIX + counted + each * width + 4, b"EADB")
                yield start, raw[_PREFIX + counted :]
            elif place != UNDEFINED:
                begin = place + _PREFIX + counted + 4
                elements.read(place, _PREFIX + counted + 4, b"EADB")
                for i in _set_among(written, number * pages, pages):
                    at = begin + i * (page * width + 4)
                    yield start + i * page, elements.read(at, page * width + 4)
            start += each


def _of_tree(
    elements: _Elements, address: int, chunk: Sequence[int]
) -> Iterator[tuple[Int64s, _Entries]]:
    head = elements.read(address, 38, b"BTHD")
    kind, node, record, depth, root, records = struct.unpack_from("<xxxxxBIHHxxQH", head)
    rank = len(chunk)
    if kind not in (10, 11) or depth > _DEEPEST or node < 64:
        raise CorruptionError("a tree of chunks of no kind that it can have")
    elements.check_kind(kind - 10, record - 8 * rank)
    # How wide the numbers of records below a node are: as the most of them needs.
    most = (node - 10) // record
    per_node = _bytes_of(most)
    pointers, below = [0, 8 + per_node], most
    for _ in range(1, depth):
        here = (node - 10 - pointers[-1]) // (record + pointers[-1])
        below = (here + 1) * below + here
        pointers.append(8 + per_node + _bytes_of(below))

    def walk(place: int, count: int, level: int) -> Iterator[tuple[Int64s, _Entries]]:
        size = 6 + count * record + (count + 1) * pointers[level] * (level > 0)
        raw = elements.read(place, size + 4, b"BTIN" if level else b"BTLF")
        cells = np.frombuffer(raw, np.uint8, count * record, 6).reshape(count, record)
        scaled = np.ascontiguousarray(cells[:, -8 * rank :]).view("<u8")
        if (scaled >= 2**62 // np.array(chunk, np.uint64)).any():
            raise CorruptionError("a chunk begins where none can")
        own = np.ascontiguousarray(cells[:, : -8 * rank])
        yield scaled.astype(np.int64) * chunk, elements.parsed(own.tobytes())
        for i in range(count + 1 if level else 0):
            at = 6 + count * record + i * pointers[level]
            below = int.from_bytes(raw[at + 8 : at + 8 + per_node], "little")
            yield from walk(int.from_bytes(raw[at : at + 8], "little"), below, level - 1)

    if root != UNDEFINED:
        yield from walk(root, records, depth)


def _bytes_of(number: int) -> int:
    """How many bytes HDF5 takes to say numbers up to this one."""
    return (max(number, 1).bit_length() - 1) // 8 + 1


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash of 32 bits (lookup3.c, ``hashlittle`` from 0), as HDF5 takes it."""
    full = 2**32 - 1
    a = b = c = (0xDEADBEEF + len(data)) & full
    whole = max(len(data) - 1, 0) // 12 * 12
    for x, y, z in struct.iter_unpack("<III", data[:whole]):
        a, b, c = a + x, b + y, (c + z) & full
        a = ((a - c) ^ (c << 4 | c >> 28)) & full
        c = (c + b) & full
        b = ((b - a) ^ (a << 6 | a >> 26)) & full
        a = (a + c) & full
        c = ((c - b) ^ (b << 8 | b >> 24)) & full
        b = (b + a) & full
        a = ((a - c) ^ (c << 16 | c >> 16)) & full
        c = (c + b) & full
        b = ((b - a) ^ (a << 19 | a >> 13)) & full
        a = (a + c) & full
        c = ((c - b) ^ (b << 4 | b >> 28)) & full
        b = (b + a) & full
    if not data:
        return c
    x, y, z = struct.unpack("<III", data[whole:].ljust(12, b"\0"))
    a, b, c = (a + x) & full, (b + y) & full, (c + z) & full
    for by in ((14, 11, 25), (16, 4, 14)):
        c = ((c ^ b) - (b << by[0] | b >> 32 - by[0])) & full
        a = ((a ^ c) - (c << by[1] | c >> 32 - by[1])) & full
        b = ((b ^ a) - (a << by[2] | a >> 32 - by[2])) & full
    last: int = ((c ^ b) - (b << 24 | b >> 8)) & full
    return last

"""HDF5 datasets read past libhdf5, by many threads at once.

libhdf5 has one lock and decodes one chunk at a time under it: however many threads Dask has, one of
them works. Where chunks lie can be learnt from the file once; then each thread reads the stored
bytes of the chunks that it needs with `pread` and decodes them itself, with no lock. Values that
lie one after another, in no chunks, are mapped into memory.

That is done for files that nobody writes to, and for plain numbers stored raw or under the filters
that are decoded here: Blosc, Blosc2, deflate, shuffle, fletcher32. All else is left to libhdf5.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from raggedstore.errors import FormatError
from raggedstore.lazy.files import Hdf5Source, MemmapSource
from raggedstore.lazy.windows import Source, Values, Window
from raggedstore.segment.codec import check_frame, decode_blosc, decode_frame
from raggedstore.segment.file import FileBytes, OpenFiles
from raggedstore.segment.filters import PIPELINE, unfilter

__all__ = ["past_libhdf5"]

_BLOSC, _BLOSC2 = 32001, 32026
_CONTIGUOUS, _CHUNKED = 1, 2  #: HDF5's classes of layout
_META = 87  #: where a Blosc2 frame tells of its metalayers
_UNDEFINED = 2**64 - 1  #: an address that HDF5 has not given out


def past_libhdf5(source: Hdf5Source) -> Source:
    """A source of the same values that does without libhdf5, where there can be one."""
    if not source.final or source.masked or source.dtype.kind not in "iufc" or 0 in source.shape:
        return source
    try:
        return _parsed(source) or source
    except Exception:  # whatever the parser cannot read, libhdf5 may, and else says why
        return source


def _parsed(source: Hdf5Source) -> Source | None:
    import pyfive

    with (
        open(source._path, "rb") as raw,
        _Nameless(raw.fileno(), 0, access=mmap.ACCESS_READ) as bare,
    ):
        file = pyfive.File(bare)
        node = file[source._name]
        if tuple(node.shape) != source.shape or node.dtype != source.dtype or not node.shape:
            return None
        if node.id.layout_class == _CONTIGUOUS and node.id.data_offset != _UNDEFINED:
            place = int(node.id.data_offset) + file.userblock_size
            base = np.memmap(source._path, source.dtype, "r", place, source.shape)
            return MemmapSource(base, base)
        if node.id.layout_class != _CHUNKED:
            return None
        filters = tuple(int(f["filter_id"]) for f in node.id.filter_pipeline or [])
        if filters not in ((_BLOSC,), (_BLOSC2,)) and not PIPELINE.issuperset(filters):
            return None
        return _DirectSource(source, _Chunks.of(node, file.userblock_size, filters, len(bare)))


class _Nameless(mmap.mmap):
    """A file without a name, by which the parser would open it again and leave it open."""

    def seek(self, pos: int, whence: Any = 0) -> int:  # type: ignore[override, unused-ignore]
        super().seek(pos, whence)
        return self.tell()


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Where the chunks of a dataset lie, each array with a place for each chunk of the grid."""

    offset: npt.NDArray[np.int64]  #: in the file; -1 for one that was never written
    size: npt.NDArray[np.int64]  #: stored bytes
    mask: npt.NDArray[np.int64]  #: bit i: the chunk skips filter i
    shape: tuple[int, ...]  #: of a chunk
    filters: tuple[int, ...]
    fill: Any
    file_size: int

    @classmethod
    def of(cls, node: Any, userblock: int, filters: tuple[int, ...], file_size: int) -> _Chunks:
        shape = tuple(map(int, node.chunks))
        grid = [-(-n // size) for n, size in zip(node.shape, shape, strict=True)]
        offset, size, mask = np.full(grid, -1, np.int64), np.zeros(grid, int), np.zeros(grid, int)
        for first, info in node.id.index.items():
            at = tuple(place // step for place, step in zip(first, shape, strict=True))
            offset[at], size[at] = info.byte_offset + userblock, info.size
            mask[at] = info.filter_mask
        return cls(offset, size, mask, shape, filters, node.fillvalue, file_size)


@dataclass(frozen=True, slots=True)
class _Part:
    """What of a window lies in one row of chunks, along one axis."""

    number: int  #: of the chunks
    within: slice  #: of each of them
    out: slice  #: of what is read


class _DirectSource(Hdf5Source):
    """The dataset of another source, whose chunks are read here."""

    def __init__(self, source: Hdf5Source, chunks: _Chunks) -> None:
        self.__dict__.update(source.__dict__)
        self.lock = nullcontext()
        self._chunks = chunks
        self._file: tuple[int, FileBytes] | None = None
        #: What Blosc2's frames say of blocks, and the shape that is.
        self._blocks: dict[bytes, tuple[int, ...] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_file": None}

    def _opened(self) -> FileBytes:
        """The file, opened by each process for itself."""
        if self._file is None or self._file[0] != os.getpid():
            file = FileBytes(Path(self._path), OpenFiles(1))
            if len(file) != self._chunks.file_size:
                raise FormatError(f"{self} is not the file that was adapted: adapt it again")
            self._file = os.getpid(), file
        return self._file[1]

    def read(self, window: Window) -> Values:
        chunks, file = self._chunks, self._opened()
        shape = [len(range(s.start, s.stop, s.step or 1)) for s in window]
        out = np.empty(shape, self.dtype)
        scratch = np.empty(chunks.shape, self.dtype)
        axes = [list(_parts(s, size)) for s, size in zip(window, chunks.shape, strict=True)]
        for parts in itertools.product(*axes):
            at = tuple(part.number for part in parts)
            target = out[tuple(part.out for part in parts)]
            whole = target.shape == chunks.shape
            if chunks.offset[at] < 0:
                target[...] = chunks.fill
            elif whole and target.flags.c_contiguous:
                values = self._decoded(file, at, target)
                if values is not target:
                    target[...] = values
            else:
                values = self._decoded(file, at, scratch)
                target[...] = values[tuple(part.within for part in parts)]
        return out

    def _decoded(self, file: FileBytes, at: tuple[int, ...], room: Values) -> Values:
        """A chunk: in `room`, which is of its shape and contiguous, or wherever it came to lie."""
        chunks, raw = self._chunks, room.reshape(-1).view(np.uint8)
        offset, size = int(chunks.offset[at]), int(chunks.size[at])
        filters, mask = chunks.filters, int(chunks.mask[at])
        if not filters or (mask and not PIPELINE.issuperset(filters)):  # its only filter skipped
            file.read_into(offset, raw.data)
            return room
        stored = file.read(offset, size)
        if filters == (_BLOSC2,):
            return self._from_blosc2(stored, room)
        if filters == (_BLOSC,):
            decode_blosc(stored, raw)
        else:
            raw[:] = unfilter(stored, filters, mask, self.dtype.itemsize, raw.nbytes)
        return room

    def _from_blosc2(self, frame: memoryview, room: Values) -> Values:
        """The chunk of a frame.

        HDF5's filter may have cut it into blocks of n dimensions. They lie one after another,
        those at the edges filled up, and are put together here.
        """
        head = int.from_bytes(frame[11:15], "big")
        meta = bytes(frame[_META:head])
        if meta not in self._blocks:
            check_frame(frame)
            is_cut = b"b2nd" in meta
            self._blocks[meta] = blosc2.ndarray_from_cframe(bytes(frame)).blocks if is_cut else None
        blocks = self._blocks[meta]
        if blocks is None or blocks == room.shape:
            decode_frame(frame, room.reshape(-1).view(np.uint8))
            return room
        grid = [-(-n // block) for n, block in zip(room.shape, blocks, strict=True)]
        cut = np.empty((*grid, *blocks), self.dtype)
        decode_frame(frame, cut.reshape(-1).view(np.uint8))
        axes = [axis for i in range(room.ndim) for axis in (i, room.ndim + i)]
        full = [count * block for count, block in zip(grid, blocks, strict=True)]
        return cut.transpose(axes).reshape(full)[tuple(map(slice, room.shape))]


def _parts(along: slice, size: int) -> Iterator[_Part]:
    """A slice with a positive step cut where chunks of `size` begin."""
    step, done = along.step or 1, 0
    picked = range(along.start, along.stop, step)
    while done < len(picked):
        number = picked[done] // size
        count = -(-((number + 1) * size - picked[done]) // step)
        count = min(count, len(picked) - done)
        first = picked[done] - number * size
        within = slice(first, first + (count - 1) * step + 1, step)
        yield _Part(number, within, slice(done, done + count))
        done += count

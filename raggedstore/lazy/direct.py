"""HDF5 datasets read past libhdf5, by many threads at once.

libhdf5 has one lock and decodes one chunk at a time under it: however many threads Dask has, one of
them works. Where chunks lie can be learnt from the file once; then each thread reads the stored
bytes of the chunks that it needs with `pread` and decodes them itself, with no lock. Values that
lie one after another, in no chunks, are read likewise, and not mapped into memory: a file cut
short is an error and not a SIGBUS that ends the interpreter.

That is done for files that nobody writes to, and for plain numbers in one piece or in chunks under
the filters that are decoded here: Blosc, Blosc2, deflate, shuffle, fletcher32. All else is left to
libhdf5, chunks that are not compressed too: there is nothing to decode.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError, FormatError
from raggedstore.lazy.files import Hdf5Source
from raggedstore.lazy.windows import READ_AT_ONCE, Source, Values, Window
from raggedstore.segment.boxes import decode_boxes
from raggedstore.segment.codec import decode_blosc
from raggedstore.segment.context import ReadContext
from raggedstore.segment.file import FileBytes, OpenFiles
from raggedstore.segment.filters import PIPELINE, unfilter
from raggedstore.segment.parser import parse
from raggedstore.segment.rebuild import BLOSC, BLOSC2, is_snappy
from raggedstore.segment.tasks import Task, run

__all__ = ["past_libhdf5"]

_MOST_CHUNKS = 2**22  #: whose places are learnt; of more libhdf5 finds those that are wanted
_CONTIGUOUS, _CHUNKED = 1, 2  #: HDF5's classes of layout
_UNDEFINED = 2**64 - 1  #: an address that HDF5 has not given out
#: Values nearer to one another than so many bytes are read with what lies between them, which
#: costs no more than another call,
_NEAR_BYTES = 2**14
_SLAB_BYTES = 2**18  #: so many bytes at a time, which stay in the processor's cache

#: Threads to decode chunks in, and memory of each of them.
_context = ReadContext(0)


def past_libhdf5(source: Hdf5Source) -> Source:
    """A source of the same values that does without libhdf5, where there can be one."""
    if not source.final or source.masked or source.dtype.kind not in "iufc" or 0 in source.shape:
        return source
    try:
        return _parsed(source) or source
    except Exception:  # whatever the parser cannot read, libhdf5 may, and else says why
        return source


def _parsed(source: Hdf5Source) -> Source | None:
    with (
        open(source.path, "rb") as raw,
        _Nameless(raw.fileno(), 0, access=mmap.ACCESS_READ) as bare,
    ):
        file = parse(bare)
        node = file[source.name]
        if tuple(node.shape) != source.shape or node.dtype != source.dtype or not node.shape:
            return None
        if node.id.layout_class == _CONTIGUOUS and node.id.data_offset != _UNDEFINED:
            place = int(node.id.data_offset) + file.userblock_size
            return _ContiguousSource(source, len(bare), place)
        if node.id.layout_class != _CHUNKED:
            return None
        if (
            math.prod(-(-n // c) for n, c in zip(node.shape, node.chunks, strict=True))
            > _MOST_CHUNKS
        ):
            return None
        pipeline = node.id.filter_pipeline or []
        filters = tuple(int(f["filter_id"]) for f in pipeline)
        if is_snappy(pipeline):
            return None
        if filters not in ((BLOSC,), (BLOSC2,)) and not (filters and PIPELINE.issuperset(filters)):
            return None  # chunks as they are, too, of which libhdf5 takes what is wanted
        return _ChunkedSource(source, len(bare), _Chunks.of(node, file.userblock_size, filters))


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

    @classmethod
    def of(cls, node: Any, userblock: int, filters: tuple[int, ...]) -> _Chunks:
        shape = tuple(map(int, node.chunks))
        grid = [-(-n // size) for n, size in zip(node.shape, shape, strict=True)]
        offset, size, mask = np.full(grid, -1, np.int64), np.zeros(grid, int), np.zeros(grid, int)
        for first, info in node.id.index.items():
            at = tuple(place // step for place, step in zip(first, shape, strict=True))
            offset[at], size[at] = info.byte_offset + userblock, info.size
            mask[at] = info.filter_mask
        return cls(offset, size, mask, shape, filters, node.fillvalue)


@dataclass(frozen=True, slots=True)
class _Part:
    """What of a window lies in one row of chunks, along one axis."""

    number: int  #: of the chunks
    within: slice  #: of each of them
    out: slice  #: of what is read


class _DirectSource(Source):
    """The dataset of another source, whose bytes are read here."""

    at_once = fresh = True

    def __init__(self, source: Hdf5Source, file_size: int) -> None:
        self.shape, self.dtype, self.unit = source.shape, source.dtype, source.unit
        self.token = source.token
        self._path, self._name = source.path, source.name
        self._was = file_size, source.changed
        self._file: tuple[int, FileBytes] | None = None

    def __repr__(self) -> str:
        return f"{self._path}:{self._name}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _opened(self) -> FileBytes:
        """The file, opened by each process for itself, and not written to since."""
        size, changed = self._was
        opened = self._file  # held: another thread may open it as well, and put its own there
        fresh = opened is None or opened[0] != os.getpid()
        if opened is None or fresh:
            opened = self._file = os.getpid(), FileBytes(Path(self._path), OpenFiles(1))
        file = opened[1]
        stat = os.fstat(file.fileno())
        # One that was cut short is damaged: what is not there any more is met as it is read.
        is_other = stat.st_mtime_ns != changed or stat.st_size != size
        if is_other and (fresh or stat.st_size >= size):
            raise FormatError(f"{self} is not the file that was adapted: adapt it again")
        return file

    def read(self, window: Window) -> Values:
        out = np.empty([len(range(s.start, s.stop, s.step)) for s in window], self.dtype)
        file = self._opened()
        try:
            self._read_into(out, window, file)
        except CorruptionError as error:  # which knows of the bytes, and at best of the file
            cause = str(error).removeprefix(f"{self._path}: ")
            raise CorruptionError(f"{self}: {cause}") from error
        return out

    @abstractmethod
    def _read_into(self, out: Values, window: Window, file: FileBytes) -> None:
        """Read a window into an array of its shape."""


class _ContiguousSource(_DirectSource):
    """A dataset of values that lie one after another, from an `offset` in the file."""

    def __init__(self, source: Hdf5Source, file_size: int, offset: int) -> None:
        super().__init__(source, file_size)
        self._offset = offset

    def _read_into(self, out: Values, window: Window, file: FileBytes) -> None:
        _read_window(out, window, self.shape, self._offset, file)


class _ChunkedSource(_DirectSource):
    """A dataset in chunks, which are decoded here."""

    def __init__(self, source: Hdf5Source, file_size: int, chunks: _Chunks) -> None:
        super().__init__(source, file_size)
        self._chunks = chunks

    def _read_into(self, out: Values, window: Window, file: FileBytes) -> None:
        chunks = self._chunks
        axes = [list(_parts(s, size)) for s, size in zip(window, chunks.shape, strict=True)]
        tasks: list[Task] = [
            partial(self._read_chunk, out, parts, file) for parts in itertools.product(*axes)
        ]
        run(tasks, _context.pool if READ_AT_ONCE.get() else None, _context.threads)

    def _read_chunk(self, out: Values, parts: tuple[_Part, ...], file: FileBytes) -> None:
        """Read what a window has of one chunk."""
        chunks, at = self._chunks, tuple(part.number for part in parts)
        target = out[tuple(part.out for part in parts)]
        if chunks.offset[at] < 0:
            target[...] = chunks.fill
        elif target.shape == chunks.shape and target.flags.c_contiguous:
            self._decode(file, at, target.reshape(-1).view(np.uint8))
        else:
            raw = _context.scratch("chunk", math.prod(chunks.shape) * self.dtype.itemsize)
            self._decode(file, at, raw)
            values = raw.view(self.dtype).reshape(chunks.shape)
            target[...] = values[tuple(part.within for part in parts)]

    def _decode(self, file: FileBytes, at: tuple[int, ...], raw: npt.NDArray[np.uint8]) -> None:
        """Decode a chunk into its (nbytes,) `raw` bytes."""
        chunks = self._chunks
        offset, size = int(chunks.offset[at]), int(chunks.size[at])
        filters, mask = chunks.filters, int(chunks.mask[at])
        if mask & 1 and not PIPELINE.issuperset(filters):  # its only filter skipped
            if size != raw.nbytes:
                raise CorruptionError(f"{size} stored bytes where {raw.nbytes} belong")
            file.read_into(offset, raw.data)
            return
        stored = file.read(offset, size)
        if filters == (BLOSC2,):
            decode_boxes(stored, raw, chunks.shape, self.dtype)
        elif filters == (BLOSC,):
            decode_blosc(stored, raw)
        else:
            raw[:] = unfilter(stored, filters, mask, self.dtype.itemsize, raw.nbytes)


def _read_window(
    out: Values, window: Window, shape: tuple[int, ...], offset: int, file: FileBytes
) -> None:
    """Read a window of an array of some `shape` that lies from `offset` in a file."""
    steps, first, size = [0] * len(shape), offset, out.dtype.itemsize
    for axis in reversed(range(len(shape))):
        steps[axis] = window[axis].step * size
        first += window[axis].start * size
        size *= shape[axis]
    _read_strided(out, first, steps, file)


def _read_strided(out: Values, first: int, steps: list[int], file: FileBytes) -> None:
    """Read values: `first` is the byte of the first, `steps` bytes lead along each axis."""
    ends = ((n - 1) * step for n, step in zip(out.shape, steps, strict=True))
    extent = sum(ends) + out.dtype.itemsize
    if extent == out.nbytes and out.flags.c_contiguous:
        file.read_into(first, out.reshape(-1).view(np.uint8).data)
    elif steps and (len(out) == 1 or steps[0] > _NEAR_BYTES):
        for i in range(len(out)):
            _read_strided(out[i, ...], first + i * steps[0], steps[1:], file)
    else:
        rows = max(1, _SLAB_BYTES // steps[0])
        for i in range(0, len(out), rows):
            part = out[i : i + rows]
            slab = np.empty(extent - (len(out) - len(part)) * steps[0], np.uint8)
            file.read_into(first + i * steps[0], slab.data)
            part[...] = np.ndarray(part.shape, out.dtype, slab, 0, steps)


def _parts(along: slice, size: int) -> Iterator[_Part]:
    """A slice with a positive step cut where chunks of `size` begin."""
    step, done = along.step, 0
    picked = range(along.start, along.stop, step)
    while done < len(picked):
        number = picked[done] // size
        count = -(-((number + 1) * size - picked[done]) // step)
        count = min(count, len(picked) - done)
        first = picked[done] - number * size
        within = slice(first, first + (count - 1) * step + 1, step)
        yield _Part(number, within, slice(done, done + count))
        done += count

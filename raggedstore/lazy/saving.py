"""`save`: lazy arrays to an HDF5 file or into a store, block by block, in one pass.

All arrays are computed as one graph, so that what they have in common is read once, and each block
is written as soon as it is there and then let go. Blocks are computed in threads, or by the workers
of a `distributed.Client` where one is current; they are written here.

A file is written under a temporary name and put in place at the end, so it appears whole or not at
all. Into a store blocks go in the order of the samples, one after another.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import SampleError, StorageError, UsageError
from raggedstore.lazy.sources import adapt
from raggedstore.progress import track
from raggedstore.segment.codec import Compression, encode_frame
from raggedstore.segment.writer import check_closed, hdf5_errors, hdf5_lock, quiet_names
from raggedstore.store import files
from raggedstore.store.store import Store

__all__ = ["save"]

_CHUNK_BYTES = 2**20  # of HDF5, the unit of compression
_SMALL_BYTES = 2**16  # blocks below are computed together,
_BLOCK_BYTES = 2**22  # into ones of so many bytes
_WRITER_BYTES = 2**25
_KINDS = "biufc"
_COMPRESSION = Compression("zstd", 1, ("shuffle",))


def save(
    arrays: Mapping[str, Any],
    target: str | os.PathLike[str] | Store,
    *,
    progress: bool = False,
) -> None:
    """Write lazy arrays into one HDF5 file, or as samples into a store, whole or not at all.

    Memory holds the blocks being worked on, and no more. An array that uses the data twice, such as
    ``(x - lazy.mean(x)) / lazy.std(x)``, makes Dask hold all of it meanwhile: compute the mean and
    the deviation first.

    Parameters
    ----------
    arrays
        Of each name a lazy array, or anything that `adapt` takes: of numbers or bools.
    target
        The file, in place of any that is there: a compressed (zstd) dataset for each name, which
        may be a path such as ``"layer/weights"``; bools become uint8. Or a store open to write,
        with a field for each name: the first axis becomes the samples, all are appended in order
        and committed once.
    progress
        Show a progress bar.

    Raises
    ------
    UsageError
        The arrays cannot lie in HDF5, or hold masked integers.
    SampleError
        They do not make samples of the store.
    StorageError
        The disk refused. A file that was there, or the store, is as it was.

    Examples
    --------
    >>> lazy.save({"mean": lazy.mean(x, axis=0), "louder": x * 2}, "result.h5")
    """
    if not isinstance(arrays, Mapping) or not arrays:
        raise UsageError(
            f"nothing to save: give at least one array, as {{name: array}}; got {arrays!r:.80}"
        )
    checked = {name: _checked(name, array) for name, array in arrays.items()}
    if isinstance(target, Store):
        _to_store(checked, target, progress=progress)
        return
    try:
        path = Path(target)
    except TypeError:
        raise UsageError(
            f"target={target!r}: give the path of a file, or a store open to write"
        ) from None
    _to_file(checked, path, progress=progress)


def _checked(name: str, array: Any) -> da.Array:
    if not isinstance(name, str):
        raise UsageError(f"names are strings, and {name!r} is a {type(name).__name__}")
    lazy = adapt(array)
    if lazy.dtype.kind not in _KINDS:
        raise UsageError(f"{name!r} is to hold numbers or bools, and is {lazy.dtype}")
    if any(map(math.isnan, lazy.shape)):
        raise UsageError(
            f"{name!r} has a length that is not known before it is computed: call its "
            f"compute_chunk_sizes() first"
        )
    return lazy


@dataclass(frozen=True, slots=True)
class _Job:
    """Blocks to be computed together, and what is then done with their values."""

    blocks: list[Any]
    write: Callable[[Sequence[Any]], None]


def _run(jobs: list[_Job], *, ordered: bool) -> None:
    """Do all jobs, each once its blocks are there; `ordered`, each after the one before it."""
    client = getattr(dask.base.get_scheduler(), "__self__", None)
    if client is None:
        done = None
        steps = []
        for job in jobs:
            done = dask.delayed(_written, pure=False)(job.write, job.blocks, ordered and done)
            steps.append(done)
        # In order, only one thread: others would compute on while a write waits for its turn,
        # and memory would fill with what they made.
        dask.compute(steps, scheduler="threads", num_workers=1 if ordered else None)
        return
    futures = deque(client.compute([dask.delayed(list)(job.blocks) for job in jobs]))
    places = {future.key: place for place, future in enumerate(futures)}
    for future in _arriving(futures, ordered=ordered):
        jobs[places[future.key]].write(future.result())


def _arriving(futures: deque[Any], *, ordered: bool) -> Iterator[Any]:
    """Take all futures, in order or as they come: what is held here, the cluster holds too."""
    if not ordered:
        from distributed import as_completed

        coming = as_completed(futures)
        futures.clear()
        yield from coming
    while futures:
        yield futures.popleft()


def _written(write: Callable[[Sequence[Any]], None], blocks: Sequence[Any], before: Any) -> None:
    write(blocks)


def _delayed(array: da.Array) -> npt.NDArray[Any]:
    """(blocks along each axis) object array of delayed blocks.

    Not optimised: each array by itself, that would read what they share once for each of them.
    """
    delayed: npt.NDArray[Any] = array.to_delayed(optimize_graph=False)
    return delayed


def _plain(name: str, block: Any) -> npt.NDArray[Any]:
    """A block without a mask: NaN where it was masked."""
    if not np.ma.isMaskedArray(block):
        return np.asarray(block)
    if block.dtype.kind in "fc":
        return np.asarray(block.filled(np.nan))
    if np.ma.is_masked(block):
        raise UsageError(
            f"{name!r} holds masked values, and {block.dtype} has no NaN to stand for them: fill "
            f"them, with dask.array.ma.filled"
        )
    return np.asarray(block.data)


# Files


def _to_file(arrays: Mapping[str, da.Array], path: Path, *, progress: bool) -> None:
    import tables

    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the name of a file")
    if "\0" in path.name:
        raise UsageError(f"{str(path)!r}: no file can be called that")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: could not be written: there is no folder {path.parent}")
    with files.appearing(path, replace=True) as temporary:
        with _hdf5(path):
            file = tables.open_file(str(temporary), "w", pytables_sys_attrs=False)
        try:
            _fill(file, path, arrays, progress=progress)
            with _hdf5(path):
                file.close()
                check_closed()
        except BaseException:
            with hdf5_lock, suppress(Exception):
                file.close()
            raise
        files.sync_file(temporary)


@contextmanager
def _hdf5(path: Path) -> Iterator[None]:
    """Call libhdf5: alone, and with errors that name the file as it will be called."""
    with hdf5_lock, hdf5_errors(path):
        yield


def _fill(file: Any, path: Path, arrays: Mapping[str, da.Array], *, progress: bool) -> None:
    """Compute all arrays into an open file."""
    _check_names(arrays)
    fair = {name: _in_fair_blocks(array) for name, array in arrays.items()}
    with track("saving", sum(a.nbytes for a in fair.values()), enabled=progress) as advance:
        sets = [_Dataset(file, path, name, array, advance) for name, array in fair.items()]
        _run([job for dataset in sets for job in dataset.jobs()], ordered=False)
        for dataset in sets:
            dataset.finish()


class _Dataset:
    """A dataset being written.

    What has no chunks in HDF5, single numbers and arrays of no values, is put there at the end.
    """

    def __init__(
        self, file: Any, path: Path, name: str, array: da.Array, advance: Callable[[int], None]
    ) -> None:
        import tables

        self._file, self._path, self._name, self._array = file, path, name, array
        self._advance = advance
        # Bools as in stores: HDF5 has none, and tools differ in what they take for one.
        self._dtype = np.dtype("u1") if array.dtype.kind == "b" else array.dtype.newbyteorder("=")
        self._small = not array.ndim or not array.size
        if self._small:
            self._values: Any = np.empty(array.shape, self._dtype)
            return
        self._chunk = chunk_shape(array.chunks, self._dtype.itemsize)
        with _hdf5(path), quiet_names():
            self._values = file.create_carray(
                *self._place(),
                atom=tables.Atom.from_dtype(self._dtype),
                shape=array.shape,
                filters=tables.Filters(
                    complevel=_COMPRESSION.level,
                    complib=f"blosc2:{_COMPRESSION.codec}",
                    shuffle="shuffle" in _COMPRESSION.filters,
                ),
                chunkshape=self._chunk,
                createparents=True,
            )

    def _place(self) -> tuple[str, str]:
        parent, _, name = f"/{self._name}".rpartition("/")
        return parent or "/", name

    def jobs(self) -> Iterator[_Job]:
        """The writing of each block."""
        if self._array.size:
            regions = da.core.slices_from_chunks(self._array.chunks)
            for region, block in zip(regions, _delayed(self._array).flat, strict=True):
                yield _Job([block], functools.partial(self._write, region))

    def _write(self, region: tuple[slice, ...], blocks: Sequence[Any]) -> None:
        values = _plain(self._name, blocks[0])
        shape = tuple(s.stop - s.start for s in region)
        if values.shape != shape:  # which could be stretched to fit
            raise UsageError(
                f"{self._name!r}: a block of {values.shape} came where its chunks say {shape}"
            )
        values = values.astype(self._dtype, copy=False)
        if self._small:
            self._values[()] = values
        elif self._is_whole_chunks(region):
            self._write_chunks(region, values)
        else:
            with _hdf5(self._path):
                self._values[region] = values
        self._advance(values.nbytes)

    def _is_whole_chunks(self, region: tuple[slice, ...]) -> bool:
        """Whether no chunk lies partly in another block."""
        return all(
            s.start % chunk == 0 and (s.stop % chunk == 0 or s.stop == size)
            for s, chunk, size in zip(region, self._chunk, self._array.shape, strict=True)
        )

    def _write_chunks(self, region: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        """Encode chunks here, in a thread of Dask's and under no lock, past HDF5's own filters."""
        corners = (range(0, n, chunk) for n, chunk in zip(values.shape, self._chunk, strict=True))
        row = math.prod(self._chunk[1:]) * self._dtype.itemsize
        for corner in itertools.product(*corners):
            ends = zip(corner, self._chunk, strict=True)
            piece = values[tuple(slice(at, at + chunk) for at, chunk in ends)]
            if piece.shape != self._chunk:  # at the end of the array: a chunk is whole all the same
                whole = np.zeros(self._chunk, self._dtype)
                whole[tuple(map(slice, piece.shape))] = piece
                piece = whole
            piece = np.ascontiguousarray(piece)
            frame = encode_frame(piece, self._dtype.itemsize, row, _COMPRESSION)
            with _hdf5(self._path):
                place = (s.start + at for s, at in zip(region, corner, strict=True))
                self._values.write_chunk(tuple(place), frame)

    def finish(self) -> None:
        """Put into the file what was not yet."""
        if self._small:
            with _hdf5(self._path), quiet_names():
                self._file.create_array(*self._place(), obj=self._values, createparents=True)


def _check_names(names: Iterable[str]) -> None:
    """UsageError where they are no paths of datasets in one file."""
    paths = [name.split("/") for name in names]
    groups = {"/".join(path[:i]) for path in paths for i in range(1, len(path))}
    for path in paths:
        name = "/".join(path)
        if name in groups or not all(map(_is_name, path)):
            raise UsageError(f"{name!r} cannot be a dataset's name beside {', '.join(names)}")


def _is_name(part: str) -> bool:
    """Whether HDF5 and PyTables, which has names of its own, take it."""
    return part not in ("", ".", "..") and "\0" not in part and not part.startswith("_i_")


def _in_fair_blocks(array: da.Array) -> da.Array:
    """The array in blocks that are worth a task and a chunk each."""
    largest = math.prod(array.chunksize) * array.dtype.itemsize
    if largest >= _SMALL_BYTES or array.npartitions == 1:
        return array
    return array.rechunk("auto", block_size_limit=_BLOCK_BYTES)


def chunk_shape(chunks: tuple[tuple[int, ...], ...], itemsize: int) -> tuple[int, ...]:
    """How large HDF5's chunks are to be: such that no two blocks lie in one, where that can be.

    A chunk that two blocks share is compressed twice.
    """
    # What divides all places where blocks meet; the largest block where that is next to nothing.
    shape = []
    for sizes in chunks:
        common = math.gcd(*itertools.accumulate(sizes[:-1])) or sizes[0]
        shape.append(common if common * 8 >= max(sizes) else max(sizes))
    while math.prod(shape) * itemsize > _CHUNK_BYTES:
        longest = max(range(len(shape)), key=shape.__getitem__)
        size = shape[longest]
        divisor = next((d for d in (2, 3, 5, 7) if size % d == 0), 2)
        shape[longest] = -(-size // divisor)
    return tuple(shape)


# Stores


def _to_store(arrays: Mapping[str, da.Array], store: Store, *, progress: bool) -> None:
    _check_samples(arrays, store)
    count = next(iter(arrays.values())).shape[0]
    # Cut alike along the samples, as the array is that has most bytes in a sample.
    rows = max(arrays.values(), key=lambda array: array.nbytes).chunks[0]
    alike = {n: a.rechunk((rows, *a.shape[1:])) for n, a in arrays.items()}
    columns = [_delayed(array).reshape(-1) for array in alike.values()]
    with (
        store.writer(budget=_WRITER_BYTES) as writer,
        track("saving", count, enabled=progress) as advance,
    ):

        def write(blocks: Sequence[Any]) -> None:
            named = zip(alike, blocks, strict=True)
            batch = {name: _plain(name, block) for name, block in named}
            length = len(next(iter(batch.values())))
            writer.extend_batch({n: _column(store, n, values) for n, values in batch.items()})
            advance(length)

        _run([_Job(list(blocks), write) for blocks in zip(*columns, strict=True)], ordered=True)


def _check_samples(arrays: Mapping[str, da.Array], store: Store) -> None:
    if set(arrays) != set(store.schema):
        raise SampleError(
            f"an array is needed for each of the fields {', '.join(store.schema)}; "
            f"got {', '.join(arrays)}"
        )
    for name, array in arrays.items():
        if array.ndim != store.schema[name].ndim + 1:
            raise SampleError(
                f"field {name!r} has samples {store.schema[name].shape}: an array of one dimension "
                f"more is needed, got {array.shape}"
            )
    counts = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise SampleError(f"arrays differ in how many samples they have: {counts}")


def _column(store: Store, name: str, values: npt.NDArray[Any]) -> Any:
    if not store.schema[name].is_ragged:
        return values
    shapes = np.tile(np.array(values.shape[1:], np.int64), (len(values), 1))
    return RaggedBatch.trusted(values.reshape(-1), offsets_of(shapes.prod(axis=1)), shapes)

"""Stores on a cluster: read as partitions, and written partition by partition by any worker.

Reading. A partition is a run of positions. Its task carries the store's path and version, not the
store; a process opens a store when its first partition comes, and keeps it for the next ones.

Writing. A partition becomes segments of its own, which the task that computes it writes into the
store's folder (`Writer.seal`). What it returns is a few hundred bytes that name them. When all
partitions have returned, one commit names all segments, in the order of the partitions
(`Writer.adopt`). So it does not matter what else was written: of a task that ran twice one answer
is kept, of a worker that died there is none, and segments that no commit names are in no version.
They are left for vacuum, which spares them while the job runs: the writer that will commit is
open from before the first task to the end.
"""

from __future__ import annotations

import itertools
import os
import pickle
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
from dask import bag
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import (
    MissingExtraError,
    NotAStoreError,
    SampleError,
    SchemaError,
    UsageError,
    VersionError,
)
from raggedstore.indexing import Positions
from raggedstore.interop.single import SingleFile
from raggedstore.layout import DATA
from raggedstore.samples import Concatenation, FieldView, Samples, Selection, check_unmoved
from raggedstore.schema import Field, Schema
from raggedstore.store.files import storage_errors
from raggedstore.store.snapshot import Snapshot, pin
from raggedstore.store.store import DEFAULT_BUDGET, DEFAULT_SEGMENT, Store, create
from raggedstore.store.writer import Sealed, Writer
from raggedstore.units import parse_bytes

__all__ = ["Written", "field", "write_partitions"]

_MOST_OPEN = 16  # stores and views that a process keeps open

_Made = tuple[str, ...]
#: Some positions: those of a range, or any.
_Piece = range | Positions


def field(view: FieldView | Samples, *, partition: int | str = "64MiB", form: str = "bag") -> Any:
    """A Dask bag over a ragged field, or over whole samples, in partitions of a size.

    Nothing is read but side columns, where a segment is larger than a partition. Those of a store
    end where segments end or, in larger ones, where chunks do, so that no two decode the same
    chunk, but for a sample that lies across. The version is the one that is open here: each
    process opens it by its path, which must lead to the store on every worker.

    Parameters
    ----------
    view
        ``store["audio"]``, or of a selection or concatenation. For whole samples, as dicts, the
        store or selection itself.
    partition
        Decoded bytes of a partition, about: an int, or a string such as "64MiB".
    form
        What comes of a partition: "bag", its values or samples one by one; "batches", one
        RaggedBatch (of whole samples a dict of columns), which is how to give much data to
        vectorised code; "awkward", a dask-awkward Array in place of a bag (dask-awkward must be
        installed, and the field not be text).

    Returns
    -------
    dask.bag.Bag or dask_awkward.Array

    Raises
    ------
    UsageError
        The field has samples of one shape: `adapt` makes a Dask array of it.

    Examples
    --------
    >>> lazy.field(store["audio"]).map(np.ptp).max().compute()
    """
    if not isinstance(view, (FieldView, Samples)):
        raise UsageError(
            f"field reads a store, or a field of one such as store['audio'], "
            f"not a {type(view).__name__}"
        )
    size = max(parse_bytes(partition, what="partition"), 1)
    name = view.name if isinstance(view, FieldView) else None
    samples = view._samples if isinstance(view, FieldView) else view
    if name is not None and not samples.schema[name].is_ragged:
        raise UsageError(
            f"field {name!r} has samples of one shape: lazy.adapt makes a Dask array of it"
        )
    base, positions = _origin(samples)
    names = tuple(samples.schema) if name is None else (name,)
    pieces: list[_Piece]
    if positions is None:
        pieces = _pieces(base, names, size)
    else:
        pieces = [positions[run] for run in _runs(samples, names, size)]
    pieces = pieces or [range(0)]  # a bag has a partition at least
    read = _Read(_Shared(base), names, name is None, form)
    if form == "awkward":
        return _awkward(read, pieces, samples.schema[names[0]])
    if form not in ("bag", "batches"):
        raise UsageError(f"form is 'bag', 'batches' or 'awkward', got {form!r}")
    return bag.from_sequence(pieces, partition_size=1).map_partitions(read.first)


def _origin(samples: Samples) -> tuple[Samples, Positions | None]:
    """What a selection is of, and its positions in that; None where they are all of them."""
    positions: Positions | None = None
    while isinstance(samples, Selection):
        if positions is not None or samples._positions is not None:
            everything = np.arange(len(samples), dtype=np.int64)
            positions = samples._of_base(everything if positions is None else positions)
        samples = samples._base
    return samples, positions


class _Shared:
    """Samples that each process opens once, of the versions that are open here now.

    Vacuum leaves those alone as long as there is a bag.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples: Samples | None = samples
        self._moved = samples.moved
        stores = [each for each in _leaves(samples) if isinstance(each, Store)]
        self._pins = [pin(store.path, store.version) for store in stores]
        # What has no versions is pickled where that is asked for: it may be arrays.
        self._pickled = pickle.dumps(samples) if stores else None
        self._made = _made(samples)

    def __getstate__(self) -> tuple[bytes, _Made]:
        if self._pickled is None:
            self._pickled = pickle.dumps(self._samples)
        return self._pickled, self._made

    def __setstate__(self, state: tuple[bytes, _Made]) -> None:
        # Opened when it is read, not here: the scheduler looks at tasks too.
        self._samples, self._moved, self._pins = None, 0, []
        self._pickled, self._made = state

    def open(self) -> Samples:
        """The samples."""
        samples = self._samples
        if samples is None:
            assert self._pickled is not None
            samples = _open(self._pickled, self._made)
            # In this order: from then on other threads hold them against it.
            self._moved, self._samples = samples.moved, samples
        check_unmoved(samples, self._moved)
        return samples


@lru_cache(_MOST_OPEN)
def _open(pickled: bytes, made: _Made) -> Samples:
    samples: Samples = pickle.loads(pickled)
    if _made(samples) != made:
        raise VersionError(
            f"{samples!r} is another one than lay there when this was made of it: make it anew"
        )
    return samples


def _leaves(samples: Samples) -> Iterator[Samples]:
    """What views are of."""
    if isinstance(samples, Selection):
        yield from _leaves(samples._base)
    elif isinstance(samples, Concatenation):
        for part in samples._parts:
            yield from _leaves(part)
    else:
        yield samples


def _made(samples: Samples) -> _Made:
    """What tells files from others that come to lie at their paths."""
    made = []
    for each in _leaves(samples):
        if isinstance(each, Store):
            made.append(each.manifest.time)
        elif isinstance(each, SingleFile):
            with storage_errors(each._path, "be looked at"):
                stat = each._path.stat()
            made.append(f"{stat.st_size} {stat.st_mtime_ns}")
    return tuple(made)


@dataclass(frozen=True)
class _Read:
    """Reads partitions."""

    shared: _Shared
    names: tuple[str, ...]
    whole: bool  #: samples, not one field
    form: str

    def first(self, pieces: Iterable[_Piece]) -> list[Any]:
        """The one piece of a partition, as that of a bag."""
        view, positions = self._view(next(iter(pieces)))
        return list(view[positions]) if self.form == "bag" else [view.batch(positions)]

    def awkward(self, piece: _Piece) -> Any:
        """A piece as an awkward Array."""
        view, positions = self._view(piece)
        return view.batch(positions).to_awkward(_ragged_ndim(view.field))

    def _view(self, piece: _Piece) -> tuple[Any, Positions]:
        samples = self.shared.open()
        view = samples.select(fields=self.names) if self.whole else samples[self.names[0]]
        return view, np.asarray(piece, np.int64)


def _awkward(read: _Read, pieces: Sequence[_Piece], field: Field) -> Any:
    try:
        dak = import_module("dask_awkward")
    except ImportError as error:  # of no extra: its releases want other versions of Dask
        raise MissingExtraError(
            f"form='awkward' needs dask-awkward, which does not import ({error}): "
            f"pip install dask-awkward"
        ) from None
    if read.whole or field.kind != "array":
        raise UsageError("form='awkward' is for a field of numbers: take 'batches'")
    nothing = np.zeros([size or 0 for size in field.shape], field.dtype)
    like = RaggedBatch.from_list([nothing]).to_awkward(_ragged_ndim(field))
    meta = dak.lib.core.typetracer_array(like)
    return dak.from_map(read.awkward, pieces, label="raggedstore", meta=meta)


def _ragged_ndim(field: Field) -> int:
    """How many dimensions, from the first, are lists: the same for each batch of the field."""
    return max(i + 1 for i, size in enumerate(field.shape) if size is None)


# Where to cut


def _pieces(samples: Samples, names: tuple[str, ...], size: int) -> list[_Piece]:
    """All positions of what is no selection, in runs of about `size` bytes."""
    if not isinstance(samples, Store):
        return [range(run[0], run[-1] + 1) for run in _runs(samples, names, size)]
    edges = _edges(samples._snapshot, names, size)
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def _runs(samples: Samples, names: tuple[str, ...], size: int) -> list[Positions]:
    """All positions in runs of at most `size` bytes, or one sample."""
    everything = np.arange(len(samples), dtype=np.int64)
    only = samples.select(fields=names)
    return [*only.blocks(everything, max_bytes=size, max_samples=max(len(samples), 1))]


def _edges(snapshot: Snapshot, names: tuple[str, ...], size: int) -> list[int]:
    """Where partitions begin and end: between segments, and in large ones between chunks."""
    edges, held = [0], 0
    for number, start in enumerate(snapshot.parts.starts[:-1].tolist()):
        tables = snapshot.reader(number).table.datasets
        columns = {name: tables[name][DATA] for name in names}
        sizes = {n: table.rows * table.column.row_nbytes for n, table in columns.items()}
        raw = sum(sizes.values())
        if held + raw > size and edges[-1] < start:
            edges.append(start)
            held = 0
        held += raw
        if raw > size:
            largest = max(sizes, key=sizes.__getitem__)
            table = columns[largest]
            rows = size * table.rows // raw // table.chunk_rows * table.chunk_rows
            step = max(rows, table.chunk_rows)
            first = _first_rows(snapshot, largest, number)
            cuts = np.searchsorted(first, np.arange(step, table.rows, step)) + start
            edges += np.unique(cuts[cuts < start + len(first)]).tolist()
            held = size  # so that the next segment begins another
    return [*edges, len(snapshot)] if edges[-1] < len(snapshot) else edges


def _first_rows(snapshot: Snapshot, name: str, number: int) -> npt.NDArray[np.int64]:
    """(n,) the row of data where each sample of a segment begins."""
    reader = snapshot.reader(number)
    if not snapshot.schema[name].is_ragged:
        return np.arange(len(reader), dtype=np.int64)
    shapes = reader.shapes(name, np.arange(len(reader), dtype=np.int64))
    return offsets_of(shapes.prod(axis=1))[:-1]


# Writing


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_partitions` did."""

    version: int  #: the version that it made; the one that was newest where there were no samples
    partitions: tuple[int, ...]  #: number of samples of each partition
    segments: int
    nbytes: int  #: decoded
    nbytes_stored: int

    @property
    def samples(self) -> int:
        """Number of samples in all."""
        return sum(self.partitions)


def write_partitions(
    collection: Any,
    store: Store | str | os.PathLike[str],
    schema: Mapping[str, Any] | None = None,
    *,
    budget: int | str = DEFAULT_BUDGET,
    segment_bytes: int | str = DEFAULT_SEGMENT,
    **options: Any,
) -> Written:
    """Append a Dask collection to a store: segments by the workers, one commit at the end.

    Samples come in the order of the partitions. Either all of them are in the new version or, where
    anything fails, there is none: tasks that run again, and workers that die, leave nothing in it.
    What they leave in the folder `Store.vacuum` removes, once nobody writes. Every worker must see
    the store's folder under the same path.

    Parameters
    ----------
    collection
        A bag of samples, or of dicts of columns with a RaggedBatch among them; or any other
        collection with ``to_delayed``, or a list of Delayed, each partition of which is an
        iterable of these, one dict of columns as `Writer.extend_batch` takes it, or a store or
        view.
    store
        One that is open with ``mode="a"``, or where one is.
    schema
        Where no store is there yet, the schema of the one to make.
    budget
        Memory for data being written by each task at a time.
    segment_bytes
        Stored size at which a partition's next segment is begun.
    options
        For `dask.compute`: ``scheduler``, ``num_workers``, ``retries`` and so on.

    Raises
    ------
    SampleError
        A sample does not fit; the message says of which partition. Errors of other kinds that end
        a task carry that as a note.
    StorageError
        A disk refused, or a worker wrote into a folder that is not this one.

    Examples
    --------
    >>> waves = bag.from_sequence(paths).map(load)  # load(path) -> {"audio": …, "label": …}
    >>> lazy.write_partitions(waves, "corpus", {"audio": rs.Field("int16", (None,)), ...})
    """
    target = _opened(store, schema)
    # From here on until the commit vacuum spares what the tasks write: this holds the lock.
    with target.writer() as writer:
        seal = partial(
            _seal,
            path=os.path.abspath(target.path),
            budget=parse_bytes(budget, what="budget"),
            segment_bytes=parse_bytes(segment_bytes, what="segment_bytes"),
        )
        parts = _sealed(collection, seal, options)
        for part in parts:
            writer.adopt(part)
        version = writer.commit()
    entries = [entry for part in parts for entry in part.entries]
    return Written(
        version=version,
        partitions=tuple(part.samples for part in parts),
        segments=len(entries),
        nbytes=sum(entry.raw_bytes for entry in entries),
        nbytes_stored=sum(entry.bytes + entry.index_bytes for entry in entries),
    )


def _opened(store: Store | str | os.PathLike[str], schema: Mapping[str, Any] | None) -> Store:
    try:
        opened = store if isinstance(store, Store) else Store(store, "a")
    except NotAStoreError:
        if schema is None:
            raise UsageError(f"no store is at {store}: name the schema to make one") from None
        return create(store, schema)  # type: ignore[arg-type]  # it was no Store
    if schema is not None and opened.schema != Schema(schema):
        raise SchemaError(f"{opened.path} has the schema {opened.schema!r}, not {schema!r}")
    return opened


def _sealed(collection: Any, seal: Any, options: dict[str, Any]) -> list[Sealed]:
    """What became of each partition, in order."""
    if isinstance(collection, bag.Bag):
        # Not by `to_delayed`: the tasks of a bag are joined, and one takes samples as they are made
        # and need not hold all of its partition. The name is new so that no answer is used twice.
        name = f"write_partitions-{uuid.uuid4().hex}"
        layer = {(name, i): (seal, key, i) for i, key in enumerate(collection.__dask_keys__())}
        graph = HighLevelGraph.from_collections(name, layer, dependencies=[collection])
        return list(dask.compute(bag.Bag(graph, name, len(layer)), **options)[0])
    if isinstance(collection, Delayed):  # which has any attribute
        collection = [collection]
    elif hasattr(collection, "to_delayed"):
        collection = np.ravel(collection.to_delayed()).tolist()
    parts = list(collection) if isinstance(collection, Iterable) else [collection]
    for part in parts:
        if not hasattr(part, "key"):  # as Delayed and the futures of a cluster have
            raise UsageError(
                f"a Dask collection is needed, or a list of Delayed; "
                f"got {type(part).__name__} in a {type(collection).__name__}"
            )
    write = dask.delayed(seal, pure=False)
    tasks = [write(part, number) for number, part in enumerate(parts)]
    return list(itertools.chain.from_iterable(dask.compute(*tasks, **options)))


def _seal(
    partition: Any, number: int, *, path: str, budget: int, segment_bytes: int
) -> list[Sealed]:
    """The task: write a partition as segments, on whichever machine this is."""
    with (
        Store(path, "a") as store,
        store.writer(budget=budget, segment_bytes=segment_bytes) as writer,
    ):
        try:
            _fill(writer, partition)
        except SampleError as error:
            raise type(error)(
                f"partition {number}, after {writer.pending} samples: {error}"
            ) from error
        except Exception as error:
            error.add_note(f"This was partition {number}, to be written to {path}.")
            raise
        return [writer.seal()]  # a list, as a partition of a bag is


def _fill(writer: Writer, partition: Any) -> None:
    if isinstance(partition, Mapping):
        writer.extend_batch(partition)
    elif isinstance(partition, Samples):
        writer.extend(partition)
    else:
        for item in partition:
            if isinstance(item, Mapping) and _is_batch(item.values()):
                writer.extend_batch(item)
            else:
                writer.append(item)


def _is_batch(columns: Iterable[Any]) -> bool:
    return any(isinstance(column, RaggedBatch) for column in columns)

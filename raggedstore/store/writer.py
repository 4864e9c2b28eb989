"""The store's writer: checks samples, fills segments within a budget, commits.

Everything appended since the last commit is in temporary segments until `commit`; leaving the
``with`` block by an exception, or dying, leaves the store as the last commit left it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.casting import as_array, cast
from raggedstore.errors import (
    ConflictError,
    CorruptionError,
    FormatError,
    SampleError,
    SampleTypeError,
    StorageError,
    UsageError,
    VersionError,
)
from raggedstore.layout import columns_of
from raggedstore.samples import Samples
from raggedstore.schema import Field
from raggedstore.segment.codec import Compression
from raggedstore.segment.file import Descriptor
from raggedstore.segment.profiles import profile
from raggedstore.segment.writer import SegmentWriter
from raggedstore.store import files
from raggedstore.store.commit import (
    check_present,
    commit,
    remove_segments,
    seal_segment,
    segments_folder,
    temporary_segment,
    utc_now,
)
from raggedstore.store.lists import MAX_BYTES, SegmentEntry, read_list
from raggedstore.store.manifest import Manifest, list_versions, load

__all__ = ["Sealed", "SegmentSink", "Writer", "encoding_pool"]

#: Bytes of a bulk batch handed to a segment at once, so that it can roll over: the least, and the
#: most where segments are large. The last chunks of each are copied.
_SLICE_LEAST, _SLICE_MOST = 2**24, 2**26
_CHECK_EVERY = 256  # samples between two looks at a segment's size
_ROOM = 2**18  # bytes of a manifest for the segments of a commit


def encoding_pool() -> ThreadPoolExecutor:
    """Threads for encoding: one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ThreadPoolExecutor(cores or 1, thread_name_prefix="raggedstore-encode")


@dataclass(frozen=True, slots=True)
class Sealed:
    """Segments that are on the disk and in no version: `Writer.seal` gives, `Writer.adopt` takes.

    A few hundred bytes that can be pickled, however large the segments are.
    """

    entries: tuple[SegmentEntry, ...]
    #: How the fields are compressed; the name of a profile where there was too little data.
    compressions: dict[str, Compression | str]

    @property
    def samples(self) -> int:
        """Number of samples in all."""
        return sum(entry.samples for entry in self.entries)


class SegmentSink:
    """A row of segments being written into a store's folder, rolled over at a size.

    Parameters
    ----------
    root
        The store's folder.
    manifest
        Gives the schema and compressions.
    budget
        Bytes of memory for chunks staged and in flight.
    segment_bytes
        Stored bytes at which a segment is sealed and the next begun.
    """

    def __init__(self, root: Path, manifest: Manifest, budget: int, segment_bytes: int) -> None:
        self._root = root
        self._schema = manifest.schema
        self.compressions = manifest.compressions  # each as far as it is chosen yet
        self._segment_bytes = segment_bytes
        self._slice_bytes = min(max(segment_bytes // 8, _SLICE_LEAST), _SLICE_MOST)
        # A column holds a chunk being filled, those in flight, and as many frames again at worst.
        chunks = 2**18
        for name, choice in manifest.compressions.items():
            if isinstance(choice, str):
                choice = profile(choice, manifest.schema[name].dtype.itemsize)
            row = columns_of(manifest.schema[name])[0].row_nbytes  # no chunk has less than one
            chunks += max(choice.chunk_bytes, row)
        self._in_flight = max(1, min(8, budget // max(2 * chunks, 1) - 2))
        self._pool = encoding_pool()
        self._segment: SegmentWriter | None = None
        self._sealed: list[SegmentEntry] = []
        self.adopted: set[str] = set()  # files of segments that others sealed
        self._unchecked = 0
        self._lock_file = _hold_writer_lock(root)

    @property
    def pending(self) -> int:
        """Samples taken since the last `take`."""
        current = self._segment.samples if self._segment is not None else 0
        return current + sum(entry.samples for entry in self._sealed)

    def _current(self) -> SegmentWriter:
        if self._segment is None:
            self._segment = SegmentWriter(
                temporary_segment(self._root),
                self._schema,
                self.compressions,
                self._pool,
                in_flight=self._in_flight,
            )
        return self._segment

    def append(self, parts: list[tuple[npt.NDArray[Any], tuple[int, ...]]]) -> None:
        """One checked sample."""
        self._current().append(parts)
        self._unchecked += 1
        if self._unchecked >= _CHECK_EVERY:
            self._roll_over()

    def extend(
        self, parts: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[np.int64]]], count: int
    ) -> None:
        """`count` checked samples in bulk."""
        stops = {
            name: np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])
            for name, (_, shapes) in parts.items()
        }
        sizes = np.zeros(count + 1, np.int64)
        for name, (flat, _) in parts.items():
            sizes += stops[name] * flat.itemsize
        start = 0
        while start < count:
            stop = int(np.searchsorted(sizes, sizes[start] + self._slice_bytes, "right")) - 1
            stop = min(max(stop, start + 1), count)
            piece = {
                name: (flat[stops[name][start] : stops[name][stop]], shapes[start:stop])
                for name, (flat, shapes) in parts.items()
            }
            self._current().extend(piece, stop - start)
            self._roll_over()
            start = stop

    def _roll_over(self) -> None:
        self._unchecked = 0
        if self._segment is not None and self._segment.stored >= self._segment_bytes:
            self._seal()

    def _seal(self) -> None:
        if self._segment is not None:
            self._sealed.append(seal_segment(self._segment, self._root))
            self.compressions = self._segment.compressions
            self._segment = None

    def take(self) -> list[SegmentEntry]:
        """Seal what is open and give all sealed segments; they are the caller's to commit."""
        self._seal()
        sealed, self._sealed, self.adopted = self._sealed, [], set()
        return sealed

    def adopt(self, sealed: Sealed) -> None:
        """Put segments that another sink sealed after those of this one."""
        self._seal()
        self._sealed += sealed.entries
        self.adopted.update(entry.file for entry in sealed.entries)
        self.compressions = {
            name: sealed.compressions[name] if isinstance(choice, str) else choice
            for name, choice in self.compressions.items()
        }

    def discard(self) -> None:
        """Remove all that was not taken, but for what others sealed.

        That may be in a version already: to be adopted once more is a mistake, but must not cost
        it. If it is in none, vacuum removes it.
        """
        if self._segment is not None:
            self._segment.abort()
            self._segment = None
        own = [entry for entry in self._sealed if entry.file not in self.adopted]
        remove_segments(self._root, own)
        self._sealed = []

    def close(self, *, wait: bool = True) -> None:
        """Discard what is left, end the threads, let vacuum see that nobody writes.

        Who was interrupted does not wait for the threads: where that came in the midst of asking
        one how far it is, CPython may have left it a lock that nobody opens.
        """
        self.discard()
        self._pool.shutdown(wait=wait, cancel_futures=not wait)
        self._lock_file.close()


class Writer:
    """Appends samples to a store; made by `Store.writer`, used in a ``with`` block.

    Threads may share one: each sample, and each batch, lies together in the order in which they
    came.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        *,
        budget: int,
        segment_bytes: int,
        on_commit: Callable[[Manifest], None] = lambda manifest: None,
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._on_commit = on_commit
        self._sink: SegmentSink | None = SegmentSink(root, manifest, budget, segment_bytes)
        self._fields: list[tuple[str, Field]] = list(manifest.schema.items())
        self._broken: BaseException | None = None
        self._why_closed = "this writer is closed"
        self._lock = threading.RLock()  # of the sink, and of what became of it
        self._busy = False  # whether the thread that has the lock is at work on the sink
        _live.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._sink is None else f"{self.pending} samples to commit"
        return f"<Writer on {self._root}, {state}>"

    @property
    def pending(self) -> int:
        """Samples that the next commit will make visible."""
        return self._open_sink().pending

    def _open_sink(self) -> SegmentSink:
        if self._broken is not None:
            raise StorageError(
                f"{self._root}: this writer failed earlier ({self._broken}); nothing since its "
                f"last commit is kept: open another writer"
            )
        if self._sink is None:
            raise UsageError(self._why_closed)
        return self._sink

    def append(self, sample: Mapping[str, Any]) -> None:
        """Append one sample: a mapping from each field's name to its value.

        Raises
        ------
        SampleError, SampleTypeError
            A field is missing or unknown, or a value does not fit; nothing of it is kept.
        StorageError
            The disk refused; the writer is of no more use, the store is as last committed.
        """
        if self._sink is None or self._broken is not None:
            self._open_sink()
        if not isinstance(sample, Mapping):
            raise SampleError(f"a sample is a mapping of fields, got {type(sample).__name__}")
        if len(sample) != len(self._fields):
            self._check_names(sample)
        try:
            parts = [field.convert(sample[name], name) for name, field in self._fields]
        except KeyError:
            self._check_names(sample)
            raise
        with self._lock:  # as `_at_work`, which would take as long as the rest of it
            sink = self._sink
            if sink is None or self._broken is not None or self._busy:
                sink = self._idle_sink()
            self._busy = True
            try:
                sink.append(parts)
            except BaseException as error:
                self._fail(error)
                raise
            finally:
                self._busy = False

    @contextmanager
    def _taken(self) -> Iterator[SegmentSink]:
        """The sink, for one thread."""
        with self._lock:
            sink = self._idle_sink()
            self._busy = True
            try:
                yield sink
            finally:
                self._busy = False

    @contextmanager
    def _at_work(self) -> Iterator[SegmentSink]:
        """As `_taken`; where anything fails meanwhile, the writer does."""
        with self._taken() as sink:
            try:
                yield sink
            except BaseException as error:
                self._fail(error)
                raise

    def _idle_sink(self) -> SegmentSink:
        """The sink; UsageError where this thread is in the midst of something with it already.

        A handler of a signal is run by the main thread wherever that is, and the lock lets it in.
        """
        if self._busy:
            raise UsageError(
                f"{self._root}: this writer was interrupted in the midst of its work: what "
                f"interrupted it, a signal's handler, say, can't use it"
            )
        return self._open_sink()

    def extend(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Append the samples of any iterable, one after another as they come.

        Those of a store, a view or `Items` are taken in bulk.
        """
        if isinstance(samples, Samples):
            for block in samples.blocks(range(len(samples))):
                self.extend_batch(samples.batch(block))
            return
        if not isinstance(samples, Iterable):
            raise SampleTypeError(f"samples come from an iterable, not {type(samples).__name__}")
        append = self.append
        for sample in samples:
            append(sample)

    def extend_batch(self, batch: Mapping[str, Any]) -> None:
        """Append many samples at once, one array a field, without a loop over samples.

        Parameters
        ----------
        batch
            For a ragged field a RaggedBatch (or a list of arrays), for any other an
            (n, ...) array, for text a list of str or bytes. All of one length n.
        """
        self._open_sink()
        if not isinstance(batch, Mapping):
            raise SampleError(f"a batch is a mapping of fields, got {type(batch).__name__}")
        self._check_names(batch)
        parts = {name: _bulk(field, batch[name], name) for name, field in self._fields}
        counts = {name: len(shapes) for name, (_, shapes) in parts.items()}
        count = next(iter(counts.values()))
        if set(counts.values()) != {count}:
            raise SampleError(f"fields of one batch must agree in length, got {counts}")
        with self._at_work() as sink:
            sink.extend(parts, count)

    def seal(self) -> Sealed:
        """Finish what was appended, and give it away for another writer to commit.

        The segments are on the disk when this returns, and in no version until a writer of the
        same store has adopted and committed them. That one must have been open since before this
        one was closed, or `Store.vacuum` may meanwhile take them for left over, and remove them;
        so it does with what nobody adopts.

        Returns
        -------
        What `adopt` takes, in this or another process, on this or another machine.
        """
        with self._at_work() as sink:
            entries = sink.take()
            # Again by who commits, who may be on another machine.
            files.sync_folder(segments_folder(self._root))
            return Sealed(tuple(entries), dict(sink.compressions))

    def adopt(self, sealed: Sealed) -> None:
        """Append segments that another writer of this store has sealed, without reading them.

        Raises
        ------
        StorageError
            They are not in this store's folder, or not as they were written.
        ConflictError
            They were adopted already.
        """
        if not isinstance(sealed, Sealed):
            raise UsageError(f"what `seal` gave is adopted, not {sealed!r}")
        with self._lock:
            sink = self._idle_sink()
            check_present(self._root, sealed.entries)
            if not sink.adopted.isdisjoint(entry.file for entry in sealed.entries):
                raise ConflictError(f"{self._root}: these segments were adopted already")
            with self._at_work():
                sink.adopt(sealed)

    def _check_names(self, sample: Mapping[str, Any]) -> None:
        names = [name for name, _ in self._fields]
        missing = [name for name in names if name not in sample]
        unknown = [name for name in sample if name not in names]
        if missing or unknown:
            raise SampleError(
                "; ".join(
                    [f"missing field {name!r}" for name in missing]
                    + [f"unknown field {name!r}" for name in unknown]
                )
                + f"; expected {', '.join(names)}, got {', '.join(map(str, sample)) or 'none'}"
            )

    def commit(self, *, metadata: Mapping[str, Any] | None = None) -> int:
        """Make all samples appended so far a new version, and return its number.

        With nothing appended and no metadata there is nothing to commit, and the version that
        stands is returned. Writing may go on afterwards.

        Parameters
        ----------
        metadata
            Updates the user's metadata: plain JSON values.

        Raises
        ------
        StorageError
            The disk refused. The store is as last committed, unless the message says that the
            version is in place.
        """
        if not isinstance(metadata, (Mapping, NoneType)):
            raise UsageError(f"metadata is a dict of JSON values, got {metadata!r}")
        with self._taken() as sink:
            return self._commit(sink, dict(metadata or {}))

    def _commit(self, sink: SegmentSink, metadata: dict[str, Any]) -> int:
        if metadata:
            self._check(metadata, _ROOM if sink.pending else 0)
        entries: list[SegmentEntry] = []
        try:
            if not sink.pending and not metadata:
                return self._manifest.version
            adopted, entries = sink.adopted, sink.take()
            check_present(self._root, (entry for entry in entries if entry.file in adopted))
            self._manifest = commit(
                self._root,
                lambda newest: _without(newest, adopted).appended(
                    entries,
                    time=utc_now(),
                    operation="append",
                    compressions=newest.settled(sink.compressions),
                    metadata={**newest.metadata, **metadata},
                ),
                hint=self._manifest.version,
            )
        except BaseException as error:
            # Segments that were sealed stay: whether the commit took place may not be known
            # (a folder's fsync failed after the link), and vacuum removes what no version names.
            self._fail(error)
            raise
        version = self._manifest.version
        try:
            self._on_commit(self._manifest)
        except OSError as error:
            raise StorageError(
                error.errno or 0,
                f"{self._root}: version {version} is committed, but could not be opened: {error}",
            ) from error
        return version

    def _check(self, metadata: dict[str, Any], room: int) -> None:
        """UsageError where it cannot be kept, before all that was appended is lost by it."""
        merged = {**self._manifest.metadata, **metadata}
        size = len(replace(self._manifest, metadata=merged).dumps())
        if size > MAX_BYTES - room:
            raise UsageError(f"metadata for a manifest of {size} bytes, of {MAX_BYTES} at most")

    def _fail(self, error: BaseException) -> None:
        self._broken = error
        if self._sink is not None:
            with suppress(Exception):
                self._sink.close(wait=isinstance(error, Exception))
            self._sink = None

    def abort(self) -> None:
        """Drop everything since the last commit and close."""
        with self._lock:
            if self._sink is not None:
                if self._busy:
                    self._idle_sink()
                sink, self._sink = self._sink, None
                sink.close()

    def close(self) -> None:
        """Commit what was appended, and close."""
        with self._lock:
            if self._sink is not None:
                try:
                    self.commit()
                finally:
                    self.abort()

    def __enter__(self) -> Self:
        self._open_sink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            if self._broken is not None:
                self._open_sink()  # the caller swallowed the failure: say that nothing was kept
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        with suppress(Exception):
            self.abort()

    def after_fork(self) -> None:
        """Leave what is being written to the parent: a child can neither commit nor remove it."""
        self._sink, self._lock, self._busy = None, threading.RLock(), False
        self._why_closed = "this writer was opened before a fork: open another in this process"


_live: weakref.WeakSet[Writer] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in list(_live):
        writer.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _without(newest: Manifest, adopted: set[str]) -> Manifest:
    """`newest`; ConflictError where a version has a segment already that was adopted for the next.

    Any version: since one that had it, the store may have been compacted.
    """
    # Asked only where something was adopted: it costs the reading of all lists.
    twice = adopted and adopted.intersection(_segments_of(newest))
    if twice:
        raise ConflictError(
            f"{newest.root}: version {newest.version}, or one before it, has {len(twice)} of the "
            f"adopted segments already: nothing is committed"
        )
    return newest


def _segments_of(newest: Manifest) -> Iterator[str]:
    """The files of all segments that `newest` names, or a version that is still there."""
    seen: set[str] = set()
    yield from (entry.file for entry in newest.segments)
    for version in list_versions(newest.root):
        with suppress(CorruptionError, FormatError, VersionError):
            manifest = load(newest.root, version)
            yield from (entry.file for entry in manifest.recent)
            for entry in manifest.lists:
                if entry.file not in seen:
                    seen.add(entry.file)
                    yield from (segment.file for segment in read_list(newest.root, entry))


def _bulk(field: Field, value: Any, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """A whole batch of a field, checked: flat values and (n, d) shapes."""
    what = f"field {name!r}"
    if field.kind != "array":
        if isinstance(value, (str, bytes)):
            raise SampleError(f"field {name!r}: expected a list of {field.kind}")
        if not isinstance(value, RaggedBatch):
            if not isinstance(value, Iterable):
                raise SampleTypeError(f"field {name!r}: expected a list of {field.kind}")
            pieces = [field.encode(item, name) for item in value]
            sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
            return np.frombuffer(b"".join(pieces), np.uint8), sizes[:, None]
        for start in range(0, len(value), 2**16) if field.kind == "str" else ():
            part = value[start : start + 2**16]
            try:
                for sample in part:
                    str(sample.data, "utf-8")
            except UnicodeDecodeError as error:
                raise SampleError(f"field {name!r}: a text is not valid UTF-8: {error}") from None
    elif not field.is_ragged:
        dense = as_array(value, what)
        if dense.ndim != field.ndim + 1 or dense.shape[1:] != field.shape:
            raise SampleError(
                f"field {name!r}: expected {('n', *field.shape)} {field.dtype}, "
                f"got {dense.shape} {dense.dtype}"
            )
        flat = cast(dense, field.dtype, what, by_value=not hasattr(value, "dtype"))
        return flat.reshape(-1), np.tile(np.array(field.shape, np.int64), (len(dense), 1))
    elif not isinstance(value, RaggedBatch):
        if not isinstance(value, Iterable):
            raise SampleTypeError(f"field {name!r}: expected a list of arrays")
        converted = [field.convert(item, name) for item in value]
        flat = np.concatenate([c[0] for c in converted]) if converted else np.empty(0, field.dtype)
        shapes = np.array([c[1] for c in converted], np.int64).reshape(len(converted), field.ndim)
        return flat, shapes
    wrong = value.ndim != field.ndim or any(
        size is not None and (value.shapes[:, axis] != size).any()
        for axis, size in enumerate(field.shape)
    )
    if wrong:
        raise SampleError(
            f"field {name!r}: expected samples of {field.shape} {field.dtype}, got {value!r} "
            f"of other shapes"
        )
    return cast(value.values, field.dtype, what, by_value=False), value.shapes


def _hold_writer_lock(root: Path) -> Descriptor:
    """Say, until the file is closed, that somebody writes: vacuum then spares loose files."""
    file = files.lock_file(root / "writers.lock")
    files.lock_shared(file)
    return file

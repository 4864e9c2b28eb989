"""`Loader`: the batches of an epoch, read ahead of the loop that trains on them.

Three questions, answered apart: which samples come next (`orders.py`), how they are read (here),
and how they make batches (`batching.py`, `columns.py`). Reading is a sequence of jobs, each with
the bytes that its result will take, so that it can be done in turn or ahead (`ahead.py`):

    order's reads  →  decode  →  lists of batches              (Sequential, Permuted)
    order's reads  →  decode  →  pieces  →  lists of batches   (Shuffled: a window is decoded
                                                                while the one before is handed over)

A read is decoded by one call for each field, which sorts it by chunk and decodes in as many
threads as there are cores. Reads and pieces are as many whole batches as make about 16 MiB: little
enough to hold several, large enough that what is done per read costs nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from raggedstore.batch import offsets_of
from raggedstore.errors import UsageError
from raggedstore.indexing import Positions
from raggedstore.samples import Samples
from raggedstore.training import columns
from raggedstore.training.ahead import Ahead, Job, Jobs, in_turn
from raggedstore.training.batching import FixedSize
from raggedstore.training.columns import Collate, Columns, Cutter
from raggedstore.training.orders import Epoch, Order, Read, Sequential
from raggedstore.training.permutation import check_seed
from raggedstore.training.sizes import Sizes
from raggedstore.units import format_bytes, parse_bytes

__all__ = ["Loader"]

_READ_BYTES = 2**24
#: The most samples in a read: so many that arrays of an int64 each stay in the cache.
_READ_SAMPLES = 2**16
#: Of half the memory for windows, how much a window is planned to take: its samples may be larger
#: than the average.
_SLACK = 0.95

T = TypeVar("T")
Int64s = npt.NDArray[np.int64]

_Batches = list[Any]
#: Decoded columns, where their samples come (None: as they stand), and the bytes of each sample.
_Decoded = tuple[Columns, Int64s | None, Int64s]


class Loader:
    """Batches of samples, epoch after epoch: iterate over it, and again for the next epoch.

    Parameters
    ----------
    samples
        A store, a selection, or several stores from `concat`.
    fields
        Names of the fields to read; by default all.
    order
        `Sequential`, `Shuffled` or `Permuted`.
    batch
        `FixedSize`, or an int that means it.
    collate
        "ragged": a batch is a dict as ``store.batch`` gives it, of a `RaggedBatch` for a ragged
        field, a list for text and an ndarray for any other. "padded": ragged fields come as
        ``to_padded()`` makes them, each with ``"<name>_lengths"``, (n,) int64, beside it; where
        other dimensions than the first are ragged, with ``"<name>_shapes"``, (n, d) int64. Or a
        function that takes the dict; it is called in the reading thread.
    where
        A boolean mask or positions of the samples to take part, by default all.
    prefetch
        How many reads (of some 16 MiB, or one batch where that is more) to make ready while the
        loop is at one. With 0 all is read by the loop itself, without a thread.
    budget
        Bytes of decoded data that an iteration may hold, besides what `samples` keeps for itself:
        an int, or a string such as "512MB". A window of `Shuffled` is at most a little under half
        of it, since the next window is read meanwhile: with a smaller budget the order is another.
        A batch is always made whole, even if it alone is larger.
    drop_last
        Leave out the last batch of an epoch where it has fewer samples than the others.

    Notes
    -----
    The first iteration is epoch 0, and each one begun goes on to the next epoch; `set_epoch` says
    which one the next iteration will be. The order of an epoch depends on nothing but the seed,
    the epoch, the samples, the fields and the budget.

    Iterators of one loader are independent of one another. One that is dropped, or whose loop is
    left early, stops its thread. A loader pickles with its samples, and may be used after a fork.

    The arrays of a batch may be views of what was read with it: keeping one batch keeps its read.
    They are the loop's to change.

    Examples
    --------
    >>> loader = Loader(store, fields=["audio"], order=Shuffled(seed=0), batch=64)
    >>> for batch in loader:
    ...     train(batch["audio"].to_padded(), batch["audio"].mask())
    """

    def __init__(
        self,
        samples: Samples,
        *,
        fields: Sequence[str] | None = None,
        order: Order | None = None,
        batch: FixedSize | int = 64,
        collate: Collate = "ragged",
        where: Any = None,
        prefetch: int = 2,
        budget: int | str = "512MB",
        drop_last: bool = False,
    ) -> None:
        if not isinstance(samples, Samples):
            raise UsageError(
                f"a loader reads a store, a selection or a concatenation, "
                f"not {type(samples).__name__}"
            )
        self.order = Sequential() if order is None else order
        if not isinstance(self.order, Order):
            raise UsageError(f"order is Sequential(), Shuffled() or Permuted(), got {self.order!r}")
        self.batch = batch if isinstance(batch, FixedSize) else FixedSize(batch)
        if where is not None or fields is not None:
            samples = samples.select(where, fields=fields)
        self.samples = samples
        self.collate = collate
        self._collate = columns.collator(collate, samples.schema)
        self.prefetch = check_seed(prefetch, what="prefetch")
        self.budget = parse_bytes(budget, what="budget")
        if not self.budget:
            raise UsageError("a budget has 1 byte at least, got 0")
        self.drop_last = bool(drop_last)
        self._epoch = 0
        self._sizes: Sizes | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.batch.count(len(self.samples), drop_last=self.drop_last)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration will be."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch`, counted from 0."""
        self._epoch = check_seed(epoch, what="epoch")

    def __repr__(self) -> str:
        short = ", drop_last=True" if self.drop_last else ""
        return (
            f"<Loader of {len(self.samples)} samples in {len(self)} batches, "
            f"{', '.join(self.samples.schema)}: {self.order!r}, {self.batch!r}, "
            f"collate={self.collate!r}, prefetch={self.prefetch}, "
            f"budget={format_bytes(self.budget)}{short}; next is epoch {self.epoch}>"
        )

    @property
    def sizes(self) -> Sizes:
        """How large the samples are, looked at when it is first asked for."""
        if self._sizes is None:
            self._sizes = Sizes(self.samples)
        return self._sizes

    def __iter__(self) -> Iterator[Any]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        return _iterate(self, epoch)


def _iterate(loader: Loader, epoch: int) -> Generator[Any, None, None]:
    """The batches of an epoch."""
    plan = _Plan(loader, epoch)
    _keep_freed_memory(plan.target)
    lists = _results(plan.jobs(), count=loader.prefetch, limit=plan.limit)
    try:
        for batches in lists:
            # Popped, so that the loop alone holds its batch.
            batches.reverse()
            while batches:
                yield batches.pop()
    finally:
        lists.close()


def _results(jobs: Jobs[T], *, count: int, limit: int) -> Ahead[T] | Generator[T, None, None]:
    """The results of `jobs`, `count` of them ahead of who takes them."""
    return Ahead(jobs, count=count, limit=limit) if count else in_turn(jobs)


def _keep_freed_memory(read_bytes: int) -> None:
    """Have the C library reuse what reads free, rather than give it back and fault it in again.

    glibc keeps up to twice the largest block that it has seen freed, of at most 32 MiB. Until it
    has seen a large one, a third of the time of reading short samples goes into page faults. The
    block is never touched, so that it costs some microseconds and no memory.
    """
    np.empty(min(read_bytes * 5 // 4, 2**25 - 2**14), np.uint8)


class _Plan:
    """How one epoch is read: its jobs, and the bytes that each may take."""

    def __init__(self, loader: Loader, number: int) -> None:
        self._loader, self._samples, self._order = loader, loader.samples, loader.order
        self._size, self._prefetch = loader.batch.size, loader.prefetch
        self._drop_last = loader.drop_last
        self._number = number
        self._cutter = Cutter(self._size, loader._collate)
        #: Bytes of what is ready for the loop, and of windows besides.
        self.limit = loader.budget
        if self._order.windowed:
            self.limit = min((loader.prefetch + 1) * _READ_BYTES, loader.budget // 8)
        self._windows_limit = loader.budget - self.limit
        #: What a read or piece should take: so little that as many as may be ahead fit.
        self.target = min(_READ_BYTES, self.limit // (loader.prefetch + 1))

    def jobs(self) -> Jobs[_Batches]:
        """Jobs that make lists of batches."""
        sizes = self._loader.sizes
        epoch = Epoch(
            number=self._number,
            samples=len(self._samples),
            sample_bytes=sizes.mean,
            read_samples=self._whole_batches(sizes.mean),
            window_bytes=max(1, int(self._windows_limit / 2 * _SLACK)),
        )
        reads = self._order.reads(epoch)
        if self._order.windowed:
            yield from self._from_windows(reads, sizes)
        else:
            for read in reads:
                yield from self._from_read(read.positions, sizes)
        if not self._drop_last:
            yield 0, self._cutter.last

    def _whole_batches(self, sample_bytes: float) -> int:
        """The samples in as many batches as make a read."""
        samples = min(self.target / sample_bytes, _READ_SAMPLES)
        return self._size * max(1, int(samples / self._size))

    def _parts(self, sizes: Int64s, room: int, begun: int = 0) -> Iterator[tuple[int, int]]:
        """Cut samples of `sizes` bytes into runs of whole batches (at least one) within `room`.

        The first `begun` samples of the first batch came with an earlier read.
        """
        edges = np.arange(-begun % self._size, len(sizes), self._size)
        edges = np.unique(np.concatenate([[0], edges, [len(sizes)]]))
        bytes_to = offsets_of(sizes)[edges]
        start = 0
        while start < len(edges) - 1:
            stop = int(np.searchsorted(bytes_to, bytes_to[start] + room, "right")) - 1
            stop = max(stop, start + 1)
            yield int(edges[start]), int(edges[stop])
            start = stop

    # Straight from the reads

    def _from_read(self, positions: Positions, sizes: Sizes) -> Jobs[_Batches]:
        each = sizes.of(positions)
        total = int(each.sum())
        # What was planned by the average is cut up only where it turns out far from it.
        room = 2 * self.target
        for start, stop in [(0, len(each))] if total <= room else self._parts(each, room):
            part = positions[start:stop]
            yield int(each[start:stop].sum()), partial(self._decode_and_cut, part)

    def _decode_and_cut(self, positions: Positions) -> _Batches:
        decoded = columns.read(self._samples, positions)
        shown = columns.show(self._samples.schema, decoded)
        return self._cutter.feed(shown, len(positions))

    # By way of windows

    def _from_windows(self, reads: Iterator[Read], sizes: Sizes) -> Jobs[_Batches]:
        windows = _results(
            self._window_jobs(reads, sizes), count=min(self._prefetch, 1), limit=self._windows_limit
        )
        done = 0
        try:
            for decoded, emission, each in windows:
                for start, stop in self._parts(each, self.target, done % self._size):
                    nbytes = int(each[start:stop].sum())
                    yield nbytes, partial(self._take_and_cut, decoded, emission, start, stop)
                done += len(each)
                del decoded
        finally:
            windows.close()

    def _window_jobs(self, reads: Iterator[Read], sizes: Sizes) -> Jobs[_Decoded]:
        for read in reads:
            positions, emission = read.positions, read.emission
            each = sizes.of(positions)
            if emission is not None:
                each = each[emission]
            if int(each.sum()) <= self._windows_limit:
                yield self._window(positions, emission, each)
                continue
            # Too large for memory: the same samples in the same order, but read in parts.
            if emission is not None:
                positions = positions[emission]
            for start, stop in self._parts(each, self._windows_limit // 4):
                yield self._window(positions[start:stop], None, each[start:stop])

    def _window(self, positions: Positions, emission: Int64s | None, each: Int64s) -> Job[_Decoded]:
        def decode() -> _Decoded:
            return columns.read(self._samples, positions), emission, each

        return int(each.sum()), decode

    def _take_and_cut(
        self, decoded: Columns, emission: Int64s | None, start: int, stop: int
    ) -> _Batches:
        if emission is None:
            taken = columns.span(decoded, start, stop)
        else:
            taken = columns.take(decoded, emission[start:stop])
        return self._cutter.feed(columns.show(self._samples.schema, taken), stop - start)

"""`bench`: how fast a store is read here, and what other profiles would make of its data."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import click
import numpy as np

import raggedstore as rs
from raggedstore.batch import RaggedBatch
from raggedstore.cli.opening import CORPUS, opened_store
from raggedstore.cli.output import plain, print_json, print_table
from raggedstore.errors import UsageError
from raggedstore.progress import track
from raggedstore.samples import Samples
from raggedstore.segment.codec import decode_frame, encode_frame
from raggedstore.segment.context import ReadContext
from raggedstore.segment.profiles import PROFILES, choose
from raggedstore.segment.profiles import profile as default_of
from raggedstore.segment.reader import SegmentReader
from raggedstore.segment.table import DatasetTable
from raggedstore.segment.tasks import run
from raggedstore.store.snapshot import Snapshot
from raggedstore.training import FixedSize, Loader, Order, Permuted, Sequential, Shuffled
from raggedstore.units import format_bytes, parse_bytes

__all__ = ["bench"]

_TRIED = 2**23  # bytes of a field that are tried in each profile
_GETS = 1000
_SMALL = 1024  # samples below this many bytes come in larger batches


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: the median of several runs."""

    what: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a profile makes of a field's first data."""

    field: str
    profile: str
    ratio: float  #: stored bytes over raw bytes
    encode: float  #: MB/s, one thread
    decode: float
    compression: str


@click.command()
@CORPUS
@click.option("--fields", help="Names of the fields to read, with commas; by default all.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Samples in a batch; by default 64, or 256 of tiny ones.",
)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--limit", default="1GB", show_default=True, help="Read the first samples up to so many bytes."
)
@click.option("--budget", default="256MB", show_default=True, help="Decoded bytes to hold.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    corpus: str,
    fields: str | None,
    batch: int | None,
    runs: int,
    limit: str,
    budget: str,
    as_json: bool,
) -> None:
    """Measure how fast a store is read on this machine.

    Epochs of batches in order, exactly permuted, and shuffled within a window; single samples at
    random; and beside them the limits: the same chunks decoded from memory by all cores, and a
    plain copy of as many bytes. Then, for each field, what every profile would make of its first
    data. Files are read before they are timed, so that the disk does not count. Medians of
    several runs; nothing is written.

    \b
    Examples:
      raggedstore bench corpus
      raggedstore bench corpus --fields audio --batch 32 --json
    """
    with opened_store(corpus) as store:
        names = list(store.schema) if fields is None else [f.strip() for f in fields.split(",")]
        only = store.select(fields=names)  # UnknownFieldError for a name that is no field
        count, nbytes = _first(only, parse_bytes(limit, what="limit"))
        if not nbytes:
            raise UsageError(f"{corpus} holds no data in {', '.join(names)} to read")
        size = batch or (64 if nbytes >= _SMALL * count else 256)
        figures = _figures(corpus, names, count, nbytes, size, runs, budget)
        trials = [trial for name in names for trial in _trials(only, name, count)]
    if as_json:
        print_json(
            {
                "samples": count,
                "bytes": nbytes,
                "batch": size,
                "runs": runs,
                "figures": [asdict(figure) for figure in figures],
                "profiles": [asdict(trial) for trial in trials],
            }
        )
        return
    click.echo(
        f"{plain(corpus)}: {count} samples, {format_bytes(nbytes)}, batches of {size}, "
        f"budget {budget}, medians of {runs}"
    )
    print_table(
        ("what", "", "", ""),
        [(f.what, _number(f.value), f.unit, f.note) for f in figures],
        right="lrl",
    )
    click.echo()
    print_table(
        ("field", "profile", "size", "encode", "decode", "as"),
        [
            (t.field, t.profile, f"{t.ratio:.3f}", f"{_number(t.encode)} MB/s",
             f"{_number(t.decode)} MB/s", t.compression)
            for t in trials
        ],
        right="llrrr",
    )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _first(samples: Samples, limit: int) -> tuple[int, int]:
    """How many of the first samples make up to `limit` bytes, and how many bytes they are."""
    count = nbytes = 0
    for start in range(0, len(samples), 2**16):
        stop = min(start + 2**16, len(samples))
        total = np.cumsum(samples.sizes(np.arange(start, stop))) + nbytes
        fit = int(np.searchsorted(total, limit, "right"))
        if fit < len(total):
            fit = max(fit, int(count == 0))  # one at least, however large
            return count + fit, int(total[fit - 1]) if fit else nbytes
        count, nbytes = stop, int(total[-1])
    return count, nbytes


def _figures(
    corpus: str, names: list[str], count: int, nbytes: int, batch: int, runs: int, budget: str
) -> list[Figure]:
    def epoch(order: Order) -> None:
        with _reopened(corpus, budget) as store:
            loader = Loader(
                store, fields=names, order=order, batch=FixedSize(batch), where=slice(0, count),
                budget=budget,
            )  # fmt: skip
            deque(loader, maxlen=0)

    def open_and_read() -> None:
        with _reopened(corpus, budget) as store:
            store[names[0]][0]

    ways: dict[str, Callable[[], Any]] = {
        "open, and read the first sample": open_and_read,
        "epoch in order": lambda: epoch(Sequential()),
        "epoch permuted": lambda: epoch(Permuted(seed=0)),
        "epoch shuffled in a window": lambda: epoch(Shuffled(seed=0)),
    }
    decode, n_chunks = _decode_all(corpus, names, count)
    ways[f"limit: decode the same {n_chunks} chunks"] = decode
    source = np.ones(nbytes, np.uint8)
    target = np.empty_like(source)
    ways["limit: copy as many bytes"] = lambda: np.copyto(target, source)
    for way in ways.values():
        way()  # the files into the page cache, code into memory
    times: dict[str, list[float]] = {what: [] for what in ways}
    # In turn, so that whatever else the machine does meanwhile hits all alike.
    with track("measuring", runs * len(ways)) as advance:
        for _, (what, way) in itertools.product(range(runs), ways.items()):
            begin = time.perf_counter()
            way()
            times[what].append(time.perf_counter() - begin)
            advance(1)

    medians = {what: statistics.median(seconds) for what, seconds in times.items()}
    in_order = medians["epoch in order"]
    figures = []
    for what, seconds in medians.items():
        if what.startswith("open"):
            figures.append(Figure(what, seconds * 1e3, "ms"))
            continue
        rate = Figure(what, nbytes / seconds / 1e6, "MB/s", f"{in_order / seconds:.2f} of in order")
        figures.append(rate)
    p50, p99 = _gets(corpus, names, count, budget)
    figures.insert(4, Figure("one sample at random", p50, "µs", f"99 % within {p99:,.0f} µs"))
    return figures


def _reopened(corpus: str, budget: str) -> rs.Store:
    store = rs.open(corpus, budget=budget)
    assert isinstance(store, rs.Store)
    return store


def _gets(corpus: str, names: list[str], count: int, budget: str) -> tuple[float, float]:
    """The median and the 99th percentile of single gets, in µs, once the cache is warm."""
    wanted = np.random.default_rng(0).integers(0, count, 2 * _GETS).tolist()
    times = []
    with _reopened(corpus, budget) as store:
        only = store.select(fields=names)
        for i in wanted:
            begin = time.perf_counter()
            only[i]
            times.append(time.perf_counter() - begin)
    p50, p99 = np.percentile(times[_GETS:], [50, 99]) * 1e6
    return float(p50), float(p99)


def _decode_all(corpus: str, names: list[str], count: int) -> tuple[Callable[[], None], int]:
    """What decodes, by all cores, every chunk that an epoch reads, from memory into one array."""
    context = ReadContext(0)
    frames: list[tuple[memoryview, DatasetTable, int]] = []
    with _reopened(corpus, "0B") as store, closing(
        Snapshot(store.path, store.version, context)
    ) as snapshot:  # fmt: skip
        left = count
        for number in itertools.count():
            if left <= 0:
                break
            reader = snapshot.reader(number)
            frames += _frames(reader, names, min(left, len(reader)) / max(len(reader), 1))
            left -= len(reader)
    sizes = [table.chunk_rows * table.column.row_nbytes for _, table, _ in frames]
    out = np.empty(sum(sizes), np.uint8)
    places = np.cumsum([0, *sizes]).tolist()

    def decode(i: int) -> None:
        stored, table, number = frames[i]
        into = out[places[i] : places[i + 1]]
        if table.source is None:
            decode_frame(stored, into)
        else:
            table.source(number, stored, into)

    tasks: list[Callable[[], None]] = [partial(decode, i) for i in range(len(frames))]
    return lambda: run(tasks, context.pool, context.threads), len(frames)


def _frames(
    reader: SegmentReader, names: list[str], part: float
) -> Iterator[tuple[memoryview, DatasetTable, int]]:
    """The stored bytes of the first `part` of a segment's chunks."""
    for name in names:
        for table in reader.table.datasets[name].values():
            if table.column.row_nbytes:
                entries = table.entries[["offset", "size"]].tolist()
                for number, (offset, size) in enumerate(entries[: math.ceil(part * len(entries))]):
                    yield reader.file.read(offset, size), table, number


def _trials(samples: Samples, name: str, count: int) -> Iterator[Trial]:
    """What each profile makes of the first data of a field."""
    field = samples.schema[name]
    sizes = samples.select(fields=[name]).sizes(np.arange(min(count, 2**16)))
    most = max(int(np.searchsorted(np.cumsum(sizes), _TRIED, "right")), 1)
    column = samples.read(name, np.arange(min(most, count)))
    data = column.values if isinstance(column, RaggedBatch) else column
    row = data.itemsize * int(np.prod(data.shape[1:], dtype=np.int64))
    if not data.nbytes:
        return
    itemsize = field.dtype.itemsize
    for profile in PROFILES:
        compression = choose(profile, data, itemsize, row) or default_of(profile, itemsize)
        rows = min(compression.chunk_rows(row, itemsize)[0], len(data))
        chunks = [data[i : i + rows] for i in range(0, len(data) - rows + 1, rows)]
        begin = time.perf_counter()
        frames = [encode_frame(c, itemsize, row, compression) for c in chunks]
        encoded = time.perf_counter()
        out = np.empty(rows * row, np.uint8)
        for frame in frames:
            decode_frame(memoryview(frame), out)
        decoded = time.perf_counter()
        nbytes = len(chunks) * rows * row
        yield Trial(
            name,
            profile,
            sum(map(len, frames)) / nbytes,
            nbytes / (encoded - begin) / 1e6,
            nbytes / (decoded - encoded) / 1e6,
            str(compression),
        )

"""Arrow IPC files of LargeList arrays, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Flat, Int64s, Peer, Reader, UnitCache, parts_of

#: Raw bytes of a record batch. Compressed ones are decoded whole for any sample in them, and kept.
BATCH_BYTES = 2**22


def rows_per_unit(corpus: Corpus, unit_bytes: int) -> int:
    """Samples in a unit of about so many raw bytes: a multiple of the batch, where it can be."""
    rows = int(unit_bytes * len(corpus) / max(corpus.nbytes, 1))
    return max(rows // corpus.batch * corpus.batch, min(corpus.batch, 64))


def as_table(corpus: Corpus) -> Any:
    """The corpus as a pyarrow Table, nothing copied: values and, unless 1-d, shapes."""
    import pyarrow as pa

    columns = {"x": pa.LargeListArray.from_arrays(corpus.offsets, pa.array(corpus.values))}
    if corpus.shapes is not None:
        flat = pa.array(corpus.shapes.astype(np.int32).reshape(-1))
        columns["shape"] = pa.FixedSizeListArray.from_arrays(flat, corpus.ndim)
    return pa.table(columns)


def as_binary_table(corpus: Corpus) -> Any:
    """The same with each sample as bytes, for formats that widen or split small integers."""
    import pyarrow as pa

    offsets = pa.py_buffer(corpus.offsets * corpus.dtype.itemsize)
    buffers = [None, offsets, pa.py_buffer(corpus.values)]
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(corpus), buffers)
    table = as_table(corpus).set_column(0, "x", column)
    return table.replace_schema_metadata({"dtype": corpus.dtype.str})


def as_flat(batch: Any, dtype: str | None = None) -> Flat:
    """A record batch as NumPy arrays, nothing copied; of bytes, as values of `dtype`."""
    lists = batch.column(0)
    if dtype is None:
        offsets = lists.offsets.to_numpy(zero_copy_only=True)
        values = lists.values.to_numpy(zero_copy_only=True)
    else:
        _, where, data = lists.buffers()
        width = np.int64 if str(lists.type) == "large_binary" else np.int32
        offsets = np.frombuffer(where, width)[lists.offset : lists.offset + len(lists) + 1]
        offsets = offsets // np.dtype(dtype).itemsize
        values = np.frombuffer(data or b"", dtype)
    if batch.num_columns == 1:
        return Flat(values, offsets)
    dims = batch.column(1)
    shapes = dims.flatten().to_numpy(zero_copy_only=True).reshape(len(dims), -1)
    return Flat(values, offsets, shapes)


def rows_of(unit: Flat, a: int, b: int) -> Flat:
    """Samples ``[a, b)`` of a unit whose values may begin anywhere."""
    offsets = unit.offsets[a : b + 1]
    shapes = None if unit.shapes is None else unit.shapes[a:b]
    return Flat(unit.values[offsets[0] : offsets[-1]], offsets, shapes)


class UnitReader(Reader):
    """Over units of `rows` samples each (the last may have fewer), decoded whole."""

    def __init__(self, samples: int, rows: int, load: Any, cache_bytes: int) -> None:
        self._samples, self._rows, self._load = samples, rows, load
        self._units = UnitCache(self._cached, cache_bytes)

    def _cached(self, number: int) -> tuple[Any, int]:
        unit = self._load(number)
        # Lists, so that one sample is found without NumPy's scalars.
        shapes = None if unit.shapes is None else list(map(tuple, unit.shapes.tolist()))
        return (unit.values, unit.offsets.tolist(), shapes), unit.values.nbytes

    def sequential(self, batch: int) -> Iterator[Batch]:
        for number in range(-(-self._samples // self._rows)):
            unit = self._load(number)
            for i in range(0, len(unit.offsets) - 1, batch):
                yield rows_of(unit, i, min(i + batch, len(unit.offsets) - 1))

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return ([self.get(i) for i in part] for part in parts_of(order, batch))

    def get(self, i: int) -> Array:
        number, row = divmod(i, self._rows)
        values, bounds, shapes = self._units[number]
        flat = values[bounds[row] : bounds[row + 1]]
        sample: Array = flat if shapes is None else flat.reshape(shapes[row])
        return sample


def lists_of(samples: Iterable[Array], rows: int) -> Iterator[list[Array]]:
    """Samples that come one by one, in lists of `rows`: what a user of such formats holds back."""
    samples = iter(samples)
    while held := list(islice(samples, rows)):
        yield held


class ArrowIpc(Peer):
    """One file; the record batches raw, or compressed with `codec`."""

    modules = ("pyarrow",)

    def __init__(self, codec: str | None) -> None:
        self.name = f"arrow ipc {codec or 'raw'}"
        self.codec = codec
        self.compressed = codec is not None

    def _writer(self, folder: Path, schema: Any) -> Any:
        import pyarrow as pa

        options = pa.ipc.IpcWriteOptions(compression=self.codec)
        return pa.ipc.new_file(str(folder / "x.arrow"), schema, options=options)

    def write(self, folder: Path, corpus: Corpus) -> None:
        table = as_table(corpus)
        with self._writer(folder, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows_per_unit(corpus, BATCH_BYTES))

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        rows = rows_per_unit(like, BATCH_BYTES)
        with self._writer(folder, as_table(like).schema) as writer:
            for held in lists_of(samples, rows):
                writer.write_table(as_table(Corpus.of("", held)))
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        import pyarrow as pa

        source = pa.memory_map(str(folder / "x.arrow"))
        file = pa.ipc.open_file(source)
        first = file.get_batch(0).num_rows
        last = file.get_batch(file.num_record_batches - 1).num_rows
        samples = first * (file.num_record_batches - 1) + last
        # Mapped batches hold no memory of their own: all of them are kept.
        keep = cache_bytes if self.compressed else 2**62
        return UnitReader(samples, first, lambda number: as_flat(file.get_batch(number)), keep)

"""Lance: columns in its own format, made for random access."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.corpora import Corpus
from benchmarks.peers.arrow import (
    as_binary_table,
    as_flat,
    as_table,
    lists_of,
    rows_of,
    rows_per_unit,
)
from benchmarks.peers.base import Array, Batch, Flat, Int64s, Peer, Reader

#: Raw bytes handed over at once by a writer that gets its samples one by one.
UNIT_BYTES = 2**23


class Lance(Peer):
    """One dataset: bytes compressed with `codec`, or lists of numbers as they are."""

    modules = ("lance",)

    def __init__(self, codec: str | None) -> None:
        self.name = f"lance {codec or 'raw'}"
        self.codec = codec
        self.compressed = codec is not None

    def _table(self, corpus: Corpus) -> Any:
        import pyarrow as pa

        if self.codec is None:
            return as_table(corpus)
        table = as_binary_table(corpus)
        how = {"lance-encoding:compression": self.codec}
        fields = [table.schema.field(0).with_metadata(how), *list(table.schema)[1:]]
        return table.cast(pa.schema(fields, metadata=table.schema.metadata))

    def _write(self, folder: Path, tables: Any, schema: Any) -> None:
        import lance

        # Format 2.0 keeps lists as they are; those of 2.1 are larger, and slower to read.
        fmt = "2.0" if self.codec is None else "2.1"
        lance.write_dataset(
            tables, str(folder / "x.lance"), schema=schema, data_storage_version=fmt
        )

    def write(self, folder: Path, corpus: Corpus) -> None:
        table = self._table(corpus)
        self._write(folder, table, table.schema)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        schema = self._table(like).schema
        rows = rows_per_unit(like, UNIT_BYTES)

        def batches() -> Iterator[Any]:
            for held in lists_of(samples, rows):
                yield from self._table(Corpus.of("", held)).to_batches()

        self._write(folder, batches(), schema)
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder, cache_bytes)


class _Reader(Reader):
    def __init__(self, folder: Path, cache_bytes: int) -> None:
        import lance

        session = lance.Session(index_cache_size_bytes=0, metadata_cache_size_bytes=cache_bytes)
        self._data = lance.dataset(str(folder / "x.lance"), session=session)
        meta = self._data.schema.metadata or {}
        self._dtype = meta[b"dtype"].decode() if b"dtype" in meta else None

    def sequential(self, batch: int) -> Iterator[Batch]:
        for part in self._data.to_batches(batch_size=batch):
            yield self._flat(part)

    def _flat(self, batch: Any) -> Flat:
        flat = as_flat(batch, self._dtype)
        return rows_of(flat, 0, len(flat.offsets) - 1)

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return (self._take(order[i : i + batch]) for i in range(0, len(order), batch))

    def _take(self, positions: Int64s | list[int]) -> Flat:
        (batch,) = self._data.take(positions).combine_chunks().to_batches()
        return self._flat(batch)

    def get(self, i: int) -> Array:
        return self._take([i]).to_list()[0]

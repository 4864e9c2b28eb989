"""Parquet through pyarrow, a row group being the unit that is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.corpora import Corpus
from benchmarks.peers.arrow import (
    UnitReader,
    as_binary_table,
    as_flat,
    as_table,
    lists_of,
    rows_per_unit,
)
from benchmarks.peers.base import Array, Flat, Peer, Reader


class Parquet(Peer):
    """One file of row groups."""

    modules = ("pyarrow",)

    def __init__(self, codec: str, group_bytes: int, encoding: str | None = None) -> None:
        self.name = f"parquet {codec}" + (" delta" if encoding else "")
        self.codec = codec
        self.group_bytes = group_bytes
        self.encoding = encoding

    def _table(self, corpus: Corpus) -> Any:
        return as_table(corpus) if self.encoding else as_binary_table(corpus)

    def _writer(self, folder: Path, schema: Any) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetWriter(
            folder / "x.parquet",
            schema,
            compression=self.codec,
            use_dictionary=False,
            write_statistics=False,
            column_encoding={"x.list.element": self.encoding} if self.encoding else None,
        )

    def write(self, folder: Path, corpus: Corpus) -> None:
        table = self._table(corpus)
        with self._writer(folder, table.schema) as writer:
            writer.write_table(table, row_group_size=rows_per_unit(corpus, self.group_bytes))

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        rows = rows_per_unit(like, self.group_bytes)
        with self._writer(folder, self._table(like).schema) as writer:
            for held in lists_of(samples, rows):
                writer.write_table(self._table(Corpus.of("", held)))
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        import pyarrow.parquet as pq

        file = pq.ParquetFile(folder / "x.parquet", memory_map=True)
        rows = file.metadata.row_group(0).num_rows
        meta = file.schema_arrow.metadata or {}
        dtype = meta[b"dtype"].decode() if b"dtype" in meta else None

        def load(number: int) -> Flat:
            (batch,) = file.read_row_group(number).combine_chunks().to_batches()
            return as_flat(batch, dtype)

        return UnitReader(file.metadata.num_rows, rows, load, cache_bytes)

"""ArrayRecord: records of bytes in groups that are compressed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.corpora import Corpus
from benchmarks.peers.base import Array, Batch, Int64s, Peer, Reader, Records

MODULE = "array_record.python.array_record_module"


class ArrayRecord(Peer):
    """Records of bytes: see `Records`."""

    modules = ("array_record", MODULE)

    def __init__(self, group: int, codec: str) -> None:
        self.name = f"array_record {codec.partition(':')[0]} {group}"
        self.compressed = codec != "uncompressed"
        self.options = f"group_size:{group},{codec}"

    def write(self, folder: Path, corpus: Corpus) -> None:
        self._write(folder, corpus, corpus)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        self._write(folder, samples, like)
        return True

    def _write(self, folder: Path, samples: Iterable[Array], like: Corpus) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(folder / "x.array_record"), self.options)
        for sample in samples:
            writer.write(Records.encode(sample))
        writer.close()
        Records.describe(folder, like)

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _Reader(folder)


class _Reader(Reader):
    def __init__(self, folder: Path) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self._open = ArrayRecordReader
        self._path = str(folder / "x.array_record")
        self._decode = Records(folder).decode
        # Its own documentation's advice for random access; epochs in order get another reader.
        self._random = ArrayRecordReader(self._path, "readahead_buffer_size:0,max_parallelism:0")

    def sequential(self, batch: int) -> Iterator[Batch]:
        # By ranges: faster than record by record with its read-ahead, on speech and on tokens.
        n = self._random.num_records()
        for i in range(0, n, batch):
            yield [self._decode(r) for r in self._random.read(i, min(i + batch, n))]

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        return (
            [self._decode(r) for r in self._random.read(order[i : i + batch].tolist())]
            for i in range(0, len(order), batch)
        )

    def get(self, i: int) -> Array:
        (record,) = self._random.read([i])
        return self._decode(record)

    def close(self) -> None:
        self._random.close()

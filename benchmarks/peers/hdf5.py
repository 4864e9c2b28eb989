"""HDF5 by PyTables and by h5py: flat arrays in Blosc chunks, and h5py's own ragged type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus
from benchmarks.peers.base import (
    Array,
    Batch,
    FlatReader,
    IndexBuilder,
    Int64s,
    Peer,
    Reader,
    parts_of,
)
from benchmarks.peers.ours import Ours

#: Slots of HDF5's chunk cache: prime, and many more than it has chunks.
CACHE_SLOTS = 100_003


class PyTables(Peer):
    """A flat EArray, with start and stop of each sample in another: what raggedstore grew from."""

    modules = ("tables",)

    def __init__(self, codec: str, chunk_bytes: int) -> None:
        self.name = f"pytables {codec}"
        self.codec = codec
        self.chunk_bytes = chunk_bytes

    def _create(self, file: Any, like: Corpus, rows: int) -> tuple[Any, Any, Any]:
        """Empty arrays for values, spans and shapes."""
        import tables

        def filters(itemsize: int) -> Any:
            return tables.Filters(5, self.codec, shuffle=itemsize > 1)

        def array(name: str, dtype: Any, width: int, chunk: int) -> Any:
            return file.create_earray(
                "/",
                name,
                tables.Atom.from_dtype(np.dtype(dtype)),
                (0, width) if width else (0,),
                filters=filters(np.dtype(dtype).itemsize),
                expectedrows=rows,
                chunkshape=(chunk, width) if width else (chunk,),
            )

        return (
            array("data", like.dtype, 0, self.chunk_bytes // like.dtype.itemsize),
            array("data_start_and_stop", np.int64, 2, 2**13),
            array("data_shape", np.int64, like.ndim, 2**13),
        )

    def write(self, folder: Path, corpus: Corpus) -> None:
        import tables

        with tables.open_file(str(folder / "x.h5"), "w") as file:
            data, spans, shapes = self._create(file, corpus, len(corpus.values))
            data.append(corpus.values)
            self._finish(spans, shapes, corpus.offsets, corpus.shapes)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        import tables

        index = IndexBuilder()
        with tables.open_file(str(folder / "x.h5"), "w") as file:
            data, spans, shapes = self._create(file, like, len(like.values))
            for sample in samples:
                data.append(sample.reshape(-1))
                index.add(sample)
            # The spans go in at the end, all at once: an append of a row each is twice the work.
            self._finish(spans, shapes, index.offsets, index.shapes)
        return True

    @staticmethod
    def _finish(spans: Any, shapes: Any, offsets: Int64s, dims: Int64s | None) -> None:
        spans.append(np.stack([offsets[:-1], offsets[1:]], axis=1))
        shapes.append(np.diff(offsets)[:, None] if dims is None else dims)

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _PyTablesReader(folder / "x.h5", "/", cache_bytes)


class PyTablesOnOurs(PyTables):
    """PyTables reading raggedstore's own segment: the same chunks, by another way."""

    writes = False
    modules = ("tables", "raggedstore")

    def __init__(self) -> None:
        self.name = "pytables, our file"
        self._writer = Ours("fast")

    def write(self, folder: Path, corpus: Corpus) -> None:
        self._writer.write(folder, corpus)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        return False

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        (segment,) = (folder / "store" / "segments").glob("*.h5")
        return _PyTablesReader(segment, "/x", cache_bytes)


class _PyTablesReader(FlatReader):
    def __init__(self, path: Path, group: str, cache_bytes: int) -> None:
        import tables

        self._file = tables.open_file(
            str(path), "r", CHUNK_CACHE_SIZE=cache_bytes, CHUNK_CACHE_NELMTS=CACHE_SLOTS
        )
        where = self._file.get_node(group)
        self._data = where.data
        spans, shapes = where.data_start_and_stop[:], where.data_shape[:]
        offsets = np.append(spans[:, 0], spans[-1:, 1] if len(spans) else [0])
        self._index(offsets, shapes if shapes.shape[1] > 1 else None)

    def slice(self, start: int, stop: int) -> Array:
        values: Array = self._data[start:stop]
        return values

    def close(self) -> None:
        self._file.close()


class H5pyFlat(Peer):
    """The same by h5py, with hdf5plugin's Blosc2."""

    name = "h5py blosc2:lz4"
    modules = ("h5py", "hdf5plugin")

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes

    def _create(self, file: Any, name: str, like: Array, rows: int | None) -> Any:
        import hdf5plugin

        # hdf5plugin's filters are numbered as Blosc2's: 1 is shuffle.
        codec = hdf5plugin.Blosc2("lz4", clevel=5, filters=int(like.dtype.itemsize > 1))
        chunk = self.chunk_bytes // like.dtype.itemsize // int(np.prod(like.shape[1:]))
        shape = (0 if rows is None else rows, *like.shape[1:])
        return file.create_dataset(
            name,
            shape,
            like.dtype,
            chunks=(max(1, min(chunk, len(like))), *like.shape[1:]),
            maxshape=(None, *like.shape[1:]),
            compression=codec,
        )

    def _index(self, file: Any, offsets: Int64s, shapes: Int64s | None) -> None:
        for name, array in ("offsets", offsets), ("shapes", shapes):
            if array is not None:
                self._create(file, name, array, len(array))[:] = array

    def write(self, folder: Path, corpus: Corpus) -> None:
        import h5py

        with h5py.File(folder / "x.h5", "w") as file:
            self._create(file, "values", corpus.values, len(corpus.values))[:] = corpus.values
            self._index(file, corpus.offsets, corpus.shapes)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        import h5py

        index = IndexBuilder()
        with h5py.File(folder / "x.h5", "w") as file:
            data = self._create(file, "values", like.values, None)
            rows = 0
            for sample in samples:
                data.resize((rows + sample.size,))
                data[rows:] = sample.reshape(-1)
                rows += sample.size
                index.add(sample)
            self._index(file, index.offsets, index.shapes)
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _H5pyReader(folder / "x.h5", cache_bytes)


class H5pyContiguous(H5pyFlat):
    """The same in one piece: neither in chunks nor compressed, and of a size that is for good."""

    name = "h5py contiguous"
    compressed = False

    def __init__(self) -> None:
        super().__init__(0)

    def _create(self, file: Any, name: str, like: Array, rows: int | None) -> Any:
        return file.create_dataset(name, (rows, *like.shape[1:]), like.dtype)

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        return False


class _H5pyReader(FlatReader):
    def __init__(self, path: Path, cache_bytes: int) -> None:
        import h5py
        import hdf5plugin  # noqa: F401  (registers the filter)

        self._file = h5py.File(path, "r", rdcc_nbytes=cache_bytes, rdcc_nslots=CACHE_SLOTS)
        self._data = self._file["values"]
        shapes = self._file["shapes"][:] if "shapes" in self._file else None
        self._index(self._file["offsets"][:], shapes)

    def slice(self, start: int, stop: int) -> Array:
        values: Array = self._data[start:stop]
        return values

    def close(self) -> None:
        self._file.close()


class H5pyVlen(Peer):
    """h5py's variable-length type: HDF5 keeps each sample on its own heap, never compressed."""

    name = "h5py vlen"
    compressed = False
    modules = ("h5py",)

    def _create(self, file: Any, like: Corpus, rows: int) -> Any:
        import h5py

        return file.create_dataset(
            "values", (rows,), h5py.vlen_dtype(like.dtype), chunks=(1024,), maxshape=(None,)
        )

    def write(self, folder: Path, corpus: Corpus) -> None:
        import h5py

        with h5py.File(folder / "x.h5", "w") as file:
            data = self._create(file, corpus, len(corpus))
            # A block at a time: h5py copies what it is given.
            for i in range(0, len(corpus), 1024):
                samples = [corpus[j].reshape(-1) for j in range(i, min(i + 1024, len(corpus)))]
                if len({sample.size for sample in samples}) == 1:
                    # h5py takes arrays of one length for a two-dimensional one, and refuses it.
                    for j, sample in enumerate(samples):
                        data[i + j] = sample
                    continue
                block = np.empty(len(samples), object)
                block[:] = samples
                data[i : i + len(block)] = block
            if corpus.shapes is not None:
                file["shapes"] = corpus.shapes

    def append(self, folder: Path, samples: Iterable[Array], like: Corpus) -> bool:
        import h5py

        index = IndexBuilder()
        with h5py.File(folder / "x.h5", "w") as file:
            data = self._create(file, like, 0)
            for i, sample in enumerate(samples):
                if i >= data.shape[0]:
                    data.resize((i + 1024,))
                data[i] = sample.reshape(-1)
                index.add(sample)
            data.resize((len(index.lengths),))
            if index.shapes is not None:
                file["shapes"] = index.shapes
        return True

    def open(self, folder: Path, cache_bytes: int) -> Reader:
        return _VlenReader(folder / "x.h5")


class _VlenReader(Reader):
    def __init__(self, path: Path) -> None:
        import h5py

        self._file = h5py.File(path, "r")
        self._data = self._file["values"]
        self._dims = self._file["shapes"][:] if "shapes" in self._file else None

    def sequential(self, batch: int) -> Iterator[Batch]:
        for i in range(0, self._data.shape[0], batch):
            arrays = list(self._data[i : i + batch])
            if self._dims is not None:
                dims = self._dims[i : i + batch]
                arrays = [a.reshape(shape) for a, shape in zip(arrays, dims, strict=True)]
            yield arrays

    def permuted(self, order: Int64s, batch: int) -> Iterator[Batch] | None:
        # One by one: h5py's selection by a list is slower than that.
        return ([self.get(i) for i in part] for part in parts_of(order, batch))

    def get(self, i: int) -> Array:
        flat: Array = self._data[i]
        return flat if self._dims is None else flat.reshape(self._dims[i])

    def close(self) -> None:
        self._file.close()

"""Sparse matrices in a store: a row is a ragged sample of column numbers and values.

SciPy's CSR is the entries of all rows one after another and offsets that say where each row begins,
which is what a batch of ragged samples is too: a matrix goes in and comes out as it lies, with no
copy but that of decoding, no loop over rows, and no dense array. Duplicates, explicit zeros and the
order of a row's entries stay as they are. CSC is the same with columns for samples.

The store's metadata says what its samples are:

    {"sparse": {"format": "csr", "width": 30522}}    width: the length of the other dimension

So rows can be appended; all else works as on any store: a selection of rows is a matrix of them.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.errors import FormatError, SampleError, UsageError
from raggedstore.extras import require
from raggedstore.samples import Samples
from raggedstore.schema import Field
from raggedstore.segment.codec import Compression
from raggedstore.store.store import Store, create

__all__ = ["append_sparse", "from_sparse", "sparse_matmul", "to_sparse"]

_KEY = "sparse"
_BLOCK_SAMPLES = 2**17


def from_sparse(
    matrix: Any, path: str | os.PathLike[str], *, profile: str | Compression = "balanced"
) -> Store:
    """A new store with the rows of a CSR matrix, or the columns of a CSC one, as its samples.

    Its fields are "indices", int32 or int64 as the matrix has them, and "values".

    Parameters
    ----------
    matrix
        A csr_array, csr_matrix, csc_array or csc_matrix of SciPy's.
    path, profile
        As for `create`.

    Raises
    ------
    SampleError
        It is no such matrix, or its indices are out of range.
    SchemaError
        A store has no such dtype as its values'.

    Examples
    --------
    >>> store = rs.from_sparse(scipy.sparse.csr_array(counts), "counts")
    >>> store[5]["indices"], rs.to_sparse(store.select(slice(0, 100))), rs.sparse_matmul(store, x)
    """
    kind, width = _described(matrix)
    fields = {
        "indices": Field(matrix.indices.dtype, (None,)),
        "values": Field(matrix.data.dtype, (None,)),
    }
    metadata = {_KEY: {"format": kind, "width": width}}
    store = create(path, fields, profile=profile, metadata=metadata)
    append_sparse(store, matrix)
    return store


def append_sparse(store: Store, matrix: Any) -> int:
    """Append the rows of a CSR matrix (columns of a CSC one) to a store that holds such.

    Returns
    -------
    The version that they are in.

    Raises
    ------
    SampleError
        The matrix is of another format or width, or its indices are out of range.
    SampleTypeError
        Its values do not convert to the store's dtype without loss.
    """
    kind, width = _described(matrix)
    if (kind, width) != _kept(store):
        raise SampleError(
            f"a {kind} matrix, {width} wide, does not continue {store.path}, which is "
            f"{' and '.join(map(str, _kept(store)))} wide"
        )
    entries = slice(0, int(matrix.indptr[-1]))  # there may be room for more behind them
    with store.writer() as writer:
        writer.extend_batch(
            {
                "indices": RaggedBatch(matrix.indices[entries], matrix.indptr),
                "values": RaggedBatch(matrix.data[entries], matrix.indptr),
            }
        )
        return writer.commit()


def to_sparse(samples: Samples) -> Any:
    """The csr_array of samples that are rows, the csc_array of samples that are columns.

    Parameters
    ----------
    samples
        A store that `from_sparse` made, a selection or a concatenation of such.

    Raises
    ------
    FormatError
        The metadata does not say what the samples are, or an index is out of range.
    """
    kind, width = _kept(samples)
    return _matrix(samples, np.arange(len(samples), dtype=np.int64), kind, width)


def sparse_matmul(samples: Samples, dense: npt.ArrayLike) -> npt.NDArray[Any]:
    """The matrix in a store times a dense vector or matrix, read block by block.

    Only some 16 MB of the store's matrix are in memory at a time, besides what the store's budget
    lets it hold. Of a matrix by columns, `dense` needs as many rows as there are samples.

    Parameters
    ----------
    samples
        As for `to_sparse`.
    dense
        (width,) or (width, k).

    Returns
    -------
    (n,) or (n, k), of the dtype that NumPy gives the product of the two.
    """
    kind, width = _kept(samples)
    x = np.asarray(dense)
    inner, outer = (width, len(samples)) if kind == "csr" else (len(samples), width)
    if x.ndim not in (1, 2) or len(x) != inner:
        raise UsageError(f"a matrix of ({outer}, {inner}) times an array of {x.shape}")
    native = samples.schema["values"].dtype.newbyteorder("=")
    out = np.zeros((outer, *x.shape[1:]), np.result_type(native, x))
    done = 0
    for block in samples.blocks(range(len(samples)), max_samples=_BLOCK_SAMPLES):
        matrix, part = _matrix(samples, block, kind, width), slice(done, done + len(block))
        if kind == "csr":
            out[part] = matrix @ x
        else:
            out += matrix @ x[part]
        done = part.stop
    return out


def _matrix(samples: Samples, positions: npt.NDArray[np.int64], kind: str, width: int) -> Any:
    """The matrix of the samples at `positions`."""
    scipy = require("scipy.sparse", "sparse")
    indices, values = samples.read("indices", positions), samples.read("values", positions)
    assert isinstance(indices, RaggedBatch) and isinstance(values, RaggedBatch)
    if (indices.offsets != values.offsets).any():
        raise FormatError("samples have more indices than values, or fewer: no sparse matrix")
    found = indices.values
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < width:
        raise FormatError(f"an index is outside of the {width} that there can be")
    made, shape = scipy.csr_array, (len(positions), width)
    if kind == "csc":
        made, shape = scipy.csc_array, (width, len(positions))
    # SciPy computes in the machine's byte order only.
    data = values.values.astype(values.dtype.newbyteorder("="), copy=False)
    return made((data, found, indices.offsets), shape)


def _described(matrix: Any) -> tuple[str, int]:
    """Format and width of a matrix, whose indices are looked at."""
    kind = getattr(matrix, "format", None)
    if kind not in ("csr", "csc") or len(matrix.shape) != 2:
        raise SampleError(
            f"a CSR or CSC matrix of SciPy's is meant, not {type(matrix).__name__}: "
            f"convert it by tocsr()"
        )
    width = int(matrix.shape[1 if kind == "csr" else 0])
    found = matrix.indices[: int(matrix.indptr[-1])]
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < width:
        raise SampleError(f"an index of the matrix is outside of the {width} that there can be")
    return kind, width


def _kept(samples: Samples) -> tuple[str, int]:
    """Format and width of the matrix in a store."""
    told: Any = samples.metadata.get(_KEY)
    try:
        kind, width = str(told["format"]), int(told["width"])
    except (TypeError, KeyError, ValueError):
        raise FormatError(f"{samples!r} holds no sparse matrix that from_sparse made") from None
    if kind not in ("csr", "csc") or width < 0:
        raise FormatError(f"{samples!r}: a sparse matrix of format {kind!r} and width {width}")
    return kind, width

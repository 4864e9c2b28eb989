"""HDF5's own filters undone: deflate, shuffle and fletcher32, in bounded memory.

A few kilobytes of deflate can stand for gigabytes, so no more is inflated than the chunk can hold.
What each filter does to the bytes is said in the HDF5 File Format Specification, "Filter
Pipeline", and for fletcher32 in H5checksum.c: sums of big-endian 16-bit words, modulo 65,535.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError

__all__ = ["PIPELINE", "unfilter"]

_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
PIPELINE = frozenset({_DEFLATE, _SHUFFLE, _FLETCHER})  #: what `unfilter` knows

Bytes = npt.NDArray[np.uint8]


def unfilter(stored: Any, filters: Sequence[int], mask: int, itemsize: int, nbytes: int) -> Bytes:
    """(nbytes,) the raw bytes of a chunk.

    Parameters
    ----------
    stored
        Its stored bytes.
    filters, mask
        Those of `PIPELINE` that were applied to it, in that order; bit i says that i was skipped.
    itemsize
        Bytes of a value.

    Raises
    ------
    CorruptionError
        The bytes are damaged, or more or fewer than they should be.
    """
    data = np.frombuffer(stored, np.uint8)
    for i in reversed(range(len(filters))):
        if mask >> i & 1:
            continue
        if filters[i] == _DEFLATE:
            data = _inflated(data, nbytes + 4 * len(filters))
        elif filters[i] == _SHUFFLE:
            whole = len(data) // itemsize * itemsize
            items = data[:whole].reshape(itemsize, -1).T.reshape(-1)
            data = np.concatenate([items, data[whole:]])
        else:
            data = _checked(data)
    if len(data) != nbytes:
        raise CorruptionError(f"{len(data)} bytes where {nbytes} belong")
    return data


def _inflated(data: Bytes, most: int) -> Bytes:
    decoder = zlib.decompressobj()
    try:
        raw = decoder.decompress(data.data, most)
    except zlib.error as error:
        raise CorruptionError(f"not readable: {error}") from None
    if not decoder.eof and (decoder.unconsumed_tail or len(raw) == most):
        raise CorruptionError(f"more than {most} bytes come out of a chunk")
    return np.frombuffer(raw, np.uint8)


def _checked(data: Bytes) -> Bytes:
    """The bytes before a fletcher32 checksum, which must hold."""
    if len(data) < 4:
        raise CorruptionError("a chunk is too short for its checksum")
    body = data[:-4]
    words = np.append(body, np.zeros(len(body) % 2, np.uint8)).view(">u2").astype(np.uint64)
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % np.uint64(65535)
    sums = int((words * weights).sum()) % 65535, int(words.sum()) % 65535
    (stored,) = struct.unpack("<I", data[-4:].tobytes())
    if ((stored >> 16) % 65535, (stored & 0xFFFF) % 65535) != sums:
        raise CorruptionError("a chunk's fletcher32 checksum does not hold")
    return body

"""Blosc2 chunks as other tools write them, whose blocks may be boxes of n dimensions.

PyTables and HDF5's Blosc2 filter cut a chunk of two dimensions or more into such boxes. They lie
one after another, by rows of their grid, and those at its ends are filled up. A frame says so in
its metalayer "b2nd", by the shape of the chunk and that of its blocks. Both are few numbers of
MessagePack, and are read here: python-blosc2 would open the frame to tell them, and decode its
table of chunks unseen, whose header may name a plug-in.
https://github.com/Blosc/c-blosc2 README_B2ND_METALAYER, README_CFRAME_FORMAT.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError
from raggedstore.segment.blocks import HEADER, assemble_run, blocks_of, decode_assembled
from raggedstore.segment.codec import check_frame, decode_frame

__all__ = ["box_of", "decode_boxes", "decode_range", "decode_rows"]

Bytes = npt.NDArray[np.uint8]
Shape = tuple[int, ...]

_META = 87  # where a frame's metalayers begin
_MOST = 2**31 - 1  # bytes of a Blosc2 chunk


def box_of(frame: memoryview, shape: Shape) -> Shape | None:
    """The shape of the boxes that a chunk is cut into; None where it decodes to rows as they are.

    Parameters
    ----------
    frame
        Its first bytes: those before the first block do.
    shape
        Of the chunk.

    Raises
    ------
    CorruptionError
        What it says of its boxes is not of such a chunk, or lies behind what there is of it.
    """
    try:
        found = _metalayer(frame)
        if found is None:
            return None
        whole, chunk, box = found
    except (struct.error, IndexError) as error:
        raise CorruptionError(f"a Blosc2 frame whose metalayers make no sense: {error}") from None
    if len(shape) == 1 == len(box) and box[0] > 0 and shape[0] % box[0] == 0:
        return None  # they lie one after another, and none is filled up
    fits = len(box) == len(shape) and all(1 <= b <= n for b, n in zip(box, shape, strict=True))
    if not whole == chunk == shape or not fits:
        raise CorruptionError(f"a Blosc2 chunk of {chunk} in boxes of {box} where {shape} belongs")
    # Boxes that are runs of rows, or such runs within one row, one value or plane.
    axis = next((i for i, size in enumerate(box) if size > 1), len(box) - 1)
    if shape[axis] % box[axis] == 0 and box[axis + 1 :] == shape[axis + 1 :]:
        return None
    return box


def _metalayer(frame: memoryview) -> tuple[Shape, Shape, Shape] | None:
    """The shapes of the array, its chunks and its blocks, where a frame tells of them."""
    (head,) = struct.unpack_from(">i", frame, 11)
    if head > len(frame):
        raise IndexError(f"{head} bytes of header in {len(frame)}")
    meta = frame[:head]
    if head <= _META or meta[_META] != 0x93:
        return None
    # An array of three: the size of what follows, a map of names to places, the metalayers.
    (count,) = struct.unpack_from(">H", meta, _META + 5)
    at = _META + 7
    for _ in range(count):
        length = meta[at] & 0x1F
        name, at = bytes(meta[at + 1 : at + 1 + length]), at + 1 + length
        (place,) = struct.unpack_from(">i", meta, at + 1)
        at += 5
        if name == b"b2nd":
            return _shapes(meta[place + 5 :])  # behind its type and size
    return None


def _shapes(content: memoryview) -> tuple[Shape, Shape, Shape]:
    ndim, at = content[2], 3
    shapes: list[Shape] = []
    for code in "qii":  # each an array of numbers, each with its type before it
        each = struct.unpack_from(">" + f"x{code}" * ndim, content, at + 1)
        shapes.append(tuple(each))
        at += 1 + struct.calcsize(f">x{code}") * ndim
    whole, chunk, box = shapes
    return whole, chunk, box


def decode_boxes(frame: memoryview, out: Bytes, shape: Shape, dtype: np.dtype[Any]) -> None:
    """As `decode_frame`, into rows, of a chunk of `shape` whose blocks may be boxes."""
    check_frame(frame)
    box = box_of(frame, shape)
    if box is None:
        decode_frame(frame, out)
        return
    cut = np.empty((*_grid(shape, box, dtype), *box), dtype)
    decode_frame(frame, cut.reshape(-1).view(np.uint8))
    out.view(dtype).reshape(shape)[...] = _joined(cut)[tuple(map(slice, shape))]


def decode_rows(
    frame: memoryview, start: int, stop: int, shape: Shape, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """The rows from `start` to `stop` of such a chunk, by the blocks that they lie in."""
    check_frame(frame)
    box = box_of(frame, shape)
    if box is None:
        row = math.prod(shape[1:]) * dtype.itemsize
        raw = decode_range(frame, start * row, stop * row, shape[0] * row)
        return raw.view(dtype).reshape(-1, *shape[1:])
    # Boxes lie row by row of their grid, so that those of neighbouring rows are neighbours.
    grid = _grid(shape, box, dtype)
    first, last = start // box[0], -(-stop // box[0])
    each = math.prod((*grid[1:], *box)) * dtype.itemsize
    raw = decode_range(frame, first * each, last * each, grid[0] * each)
    cut = raw.view(dtype).reshape(last - first, *grid[1:], *box)
    rows = slice(start - first * box[0], stop - first * box[0])
    return _joined(cut)[(rows, *map(slice, shape[1:]))]


def _grid(shape: Shape, box: Shape, dtype: np.dtype[Any]) -> Shape:
    """How many boxes there are along each dimension; CorruptionError where they are too large."""
    grid = tuple(-(-n // b) for n, b in zip(shape, box, strict=True))
    if math.prod(grid) * math.prod(box) * dtype.itemsize > _MOST:
        raise CorruptionError(f"a Blosc2 chunk of {shape} in boxes of {box}")
    return grid


def _joined(cut: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Boxes of a grid put together, filled up as they are."""
    ndim = cut.ndim // 2
    axes = [axis for i in range(ndim) for axis in (i, ndim + i)]
    full = [cut.shape[i] * cut.shape[ndim + i] for i in range(ndim)]
    return cut.transpose(axes).reshape(full)


def decode_range(frame: memoryview, start: int, stop: int, nbytes: int) -> Bytes:
    """The raw bytes from `start` to `stop` of a chunk of `nbytes`, by its blocks where it can be.

    Raises
    ------
    CorruptionError
        The frame is damaged, or holds another number of bytes.
    """
    check_frame(frame)
    blocks = blocks_of(frame, len(frame))
    if blocks is None or blocks.nbytes * (len(blocks.edges) - 1) != nbytes or start == stop:
        out = np.empty(nbytes, np.uint8)
        decode_frame(frame, out)
        return out[start:stop]
    first, last = start // blocks.nbytes, -(-stop // blocks.nbytes)
    edges = blocks.edges[first : last + 1].tolist()
    stored = frame[edges[0] : edges[-1]]
    if blocks.raw:
        out = np.frombuffer(stored, np.uint8)
    else:
        head = HEADER + 4 * (last - first)
        chunk = memoryview(bytearray(head + len(stored)))
        assemble_run(blocks.header, blocks.nbytes, edges, chunk)
        chunk[head:] = stored
        out = np.empty((last - first) * blocks.nbytes, np.uint8)
        decode_assembled(chunk, out)
    return out[start - first * blocks.nbytes : stop - first * blocks.nbytes]

"""The empty HDF5 file that every segment begins as.

HDF5's default ranks give each dataset 2 to 3 kB of mostly empty B-tree, which a store of small
daily segments would pay again every day. PyTables can't set the ranks, so a segment begins as a
copy of this file, in which they are 4 and 4 for groups and 8 for chunks. It is an ordinary file
of 244 bytes, made by tools/make_empty_file.py.
"""

from __future__ import annotations

import base64
import zlib

__all__ = ["empty_file"]

_EMPTY_FILE = (
    "c-rgqaB<`1lHy|G;9!6O11S9kN+&{TP34HS{vIwtObWVYjM>OoOqiX4m4SnS"
    "1qd0~;Re}+s0d)!P{AYwQt%%Qa4|730)-<OXa;^9eOUtlj-(=}"
)


def empty_file() -> bytes:
    """The bytes of an empty HDF5 file with small B-trees."""
    return zlib.decompress(base64.b85decode(_EMPTY_FILE))

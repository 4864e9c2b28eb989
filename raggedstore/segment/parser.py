"""pyfive, and what it gets wrong mended.

It is pure Python, so that a stranger's file can reach no fault of libhdf5. Two of its assumptions
do not hold of files that every other tool reads: that names marked as ASCII are it, and that
integers have as many bits as their bytes. Both are set right in its classes, once; files for which
they hold are read as before.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

__all__ = ["parse"]


def parse(stream: Any) -> Any:
    """The file in a `stream`, as ``pyfive.File``."""
    import pyfive

    _mend()
    return pyfive.File(stream)


@cache
def _mend() -> None:
    from pyfive.dataobjects import DataObjects
    from pyfive.datatype_msg import DatatypeMessage

    # Another version of it may call them otherwise, and then has to be right by itself.
    decode = getattr(DataObjects, "_decode_link_msg", None)
    fixed_point = getattr(DatatypeMessage, "_determine_dtype_fixed_point", None)

    def decode_link(data: bytes, offset: int) -> Any:
        """Names are UTF-8: PyTables, and HDF5 by default, mark them as ASCII whatever they are."""
        assert decode is not None
        try:
            return decode(data, offset)
        except UnicodeDecodeError:
            message = bytearray(data[offset:])
            place = 2 + (message[1] >> 3 & 1) + 8 * (message[1] >> 2 & 1)
            if not message[1] & 16:  # it says nothing, which means ASCII
                message[1] |= 16
                message.insert(place, 0)
            message[place] = 1
            return decode(bytes(message), 0)

    def of_all_bits(message: Any, head: Any) -> Any:
        """Integers of some of their bytes' bits would have to be shifted and extended."""
        assert fixed_point is not None
        offset, precision = struct.unpack_from("<HH", message.buf, message.offset)
        if (offset, precision) != (0, 8 * head["size"]):
            raise NotImplementedError(f"integers of {precision} bits in {head['size']} bytes")
        return fixed_point(message, head)

    if decode is not None:
        DataObjects._decode_link_msg = staticmethod(decode_link)
    if fixed_point is not None:
        DatatypeMessage._determine_dtype_fixed_point = of_all_bits

"""pyfive, and what it gets wrong mended.

It is pure Python, so that a stranger's file can reach no fault of libhdf5. Some of its assumptions
do not hold of files that every other tool reads: that names marked as ASCII are it, that integers
have as many bits as their bytes, and that floats are IEEE 754's. They are set right in its classes,
once; files for which they hold are read as before. And it learns of bitfields of a byte, as which
PyTables keeps bools.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

__all__ = ["BITS", "parse"]

#: What the dtype of bitfields of a byte has in its metadata, under "enum".
BITS = {"bits": 8}


def parse(stream: Any) -> Any:
    """The file in a `stream`, as ``pyfive.File``."""
    import pyfive

    _mend()
    return pyfive.File(stream)


_BITFIELD = 4  # of HDF5's classes of datatypes
#: Of IEEE 754's floats of so many bits: where the exponent lies and how many bits it has, and the
#: mantissa; and what is added to the exponent.
_IEEE = {16: (10, 5, 0, 10, 15), 32: (23, 8, 0, 23, 127), 64: (52, 11, 0, 52, 1023)}


@cache
def _mend() -> None:
    from pyfive.dataobjects import DataObjects
    from pyfive.datatype_msg import DatatypeMessage
    from pyfive.p5t import P5EnumType

    # Another version of it may call them otherwise, and then has to be right by itself.
    decode = getattr(DataObjects, "_decode_link_msg", None)
    fixed_point = getattr(DatatypeMessage, "_determine_dtype_fixed_point", None)
    floating_point = getattr(DatatypeMessage, "_determine_dtype_floating_point", None)
    layout = getattr(DataObjects, "_get_data_message_properties", None)
    determine = getattr(DatatypeMessage, "determine_dtype", None)

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

    def of_known_version(objects: Any, offset: int) -> Any:
        """HDF5 2.0 has a fifth version of where data lie."""
        assert layout is not None
        if (version := objects.msg_data[offset]) > 4:
            raise NotImplementedError(f"version {version} of data layouts, of HDF5 2 (h5repack)")
        return layout(objects, offset)

    def of_all_bits(message: Any, head: Any) -> Any:
        """Integers of some of their bytes' bits would have to be shifted and extended."""
        assert fixed_point is not None
        offset, precision = struct.unpack_from("<HH", message.buf, message.offset)
        if (offset, precision) != (0, 8 * head["size"]):
            raise NotImplementedError(f"integers of {precision} bits in {head['size']} bytes")
        return fixed_point(message, head)

    def of_ieee(message: Any, head: Any) -> Any:
        """bfloat16 has as many bytes as float16 has."""
        assert floating_point is not None
        found = struct.unpack_from("<HHBBBBI", message.buf, message.offset)
        sign, vax = head["class_bit_field_1"], head["class_bit_field_0"] & 64
        bits = 8 * head["size"]
        if vax or (sign, *found) != (bits - 1, 0, bits, *_IEEE.get(bits, ())):
            raise NotImplementedError(f"floats of {bits} bits that are not IEEE 754's")
        return floating_point(message, head)

    def with_bitfields(message: Any) -> Any:
        assert determine is not None
        first, size = struct.unpack_from("<B3xI", message.buf, message.offset)
        if (first & 15, size) != (_BITFIELD, 1):
            return determine(message)
        if struct.unpack_from("<HH", message.buf, message.offset + 8) != (0, 8):
            raise NotImplementedError("bitfields of some of a byte's bits")
        message.offset += 12
        return P5EnumType("|u1", BITS)

    if decode is not None:
        DataObjects._decode_link_msg = staticmethod(decode_link)
    if fixed_point is not None:
        DatatypeMessage._determine_dtype_fixed_point = of_all_bits
    if layout is not None:
        DataObjects._get_data_message_properties = of_known_version
    if floating_point is not None:
        DatatypeMessage._determine_dtype_floating_point = of_ieee
    if determine is not None:
        DatatypeMessage.determine_dtype = with_bitfields

"""pyfive, and what it gets wrong mended.

It is pure Python, so that a stranger's file can reach no fault of libhdf5. Some of its assumptions
do not hold of files that every other tool reads: that names marked as ASCII are it, that integers
have as many bits as their bytes and floats are IEEE 754's, that any two numbers named r and i are
complex, that an object has all that is said of it to itself, that no link leads to another file.
They are set right in its classes, once; files for which they hold are read as before. It learns of
bitfields of a byte, as which PyTables keeps bools. And an attribute that it cannot read, which
nobody may need, is no reason to read nothing.
"""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import Any

from raggedstore.errors import RaggedStoreError

__all__ = ["BITS", "parse"]

#: What the dtype of bitfields of a byte has in its metadata, under "enum".
BITS = {"bits": 8}


def parse(stream: Any) -> Any:
    """The file in a `stream`, as ``pyfive.File``."""
    import pyfive

    _mend()
    return pyfive.File(stream)


_BITFIELD = 4  # of HDF5's classes of datatypes
_EXTERNAL = 64  # of its types of links, and what others may make of links
#: Of its messages about an object those that may lie elsewhere, for several objects: of its
#: dataspace, datatype, fill value (two of them) and filters; and an attribute.
_SHAREABLE, _ATTRIBUTE = (1, 3, 4, 5, 11), 12
_OURS = b"raggedstore"  # which our own attributes begin with
#: Of IEEE 754's floats of so many bits: where the exponent lies and how many bits it has, and the
#: mantissa; and what is added to the exponent.
_IEEE = {16: (10, 5, 0, 10, 15), 32: (23, 8, 0, 23, 127), 64: (52, 11, 0, 52, 1023)}


@cache
def _mend() -> None:
    from pyfive.dataobjects import DataObjects
    from pyfive.datatype_msg import DatatypeMessage
    from pyfive.p5t import P5CompoundType, P5EnumType, complex_dtype_map

    # Another version of it may call them otherwise, and then has to be right by itself.
    decode = getattr(DataObjects, "_decode_link_msg", None)
    fixed_point = getattr(DatatypeMessage, "_determine_dtype_fixed_point", None)
    floating_point = getattr(DatatypeMessage, "_determine_dtype_floating_point", None)
    layout = getattr(DataObjects, "_get_data_message_properties", None)
    determine = getattr(DatatypeMessage, "determine_dtype", None)
    enumeration = getattr(DatatypeMessage, "_determine_dtype_enum", None)
    is_complex = getattr(P5CompoundType, "_check_complex", None)
    find = getattr(DataObjects, "find_msg_type", None)
    attribute = getattr(DataObjects, "_parse_attribute_msg", None)
    header = getattr(DataObjects, "_parse_v2_header", None)

    def decode_link(data: bytes, offset: int) -> Any:
        """Names are UTF-8: PyTables, and HDF5 by default, mark them as ASCII whatever they are.

        A link into another file is taken for a soft one, which is not followed either.
        """
        assert decode is not None
        if data[offset + 1] & 8 and data[offset + 2] >= _EXTERNAL:
            soft = bytearray(data[offset:])
            soft[2] = 1
            data, offset = bytes(soft), 0
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

    def of_ascii(message: Any, head: Any) -> Any:
        assert enumeration is not None
        try:
            return enumeration(message, head)
        except UnicodeDecodeError:
            raise NotImplementedError("an enumeration with names beyond ASCII") from None

    def of_two_floats(compound: Any) -> bool:
        """h5py's complex numbers are two floats of one kind, and nothing between them."""
        assert is_complex is not None
        if not is_complex(compound):
            return False
        real, imaginary = (field.ptype.dtype for field in compound.fields)
        return (
            real == imaginary
            and real.str in complex_dtype_map
            and compound.size == 2 * real.itemsize
        )

    def of_its_own(objects: Any, kind: int) -> Any:
        """What several objects share lies elsewhere, and would be taken for what it is not."""
        assert find is not None
        found = find(objects, kind)
        if kind == _ATTRIBUTE:
            return [message for message in found if not message["flags"] & 2]
        if kind in _SHAREABLE and any(message["flags"] & 2 for message in found):
            raise NotImplementedError("what objects share, such as a committed datatype")
        return found

    def if_readable(objects: Any, data: Any, offset: int) -> Any:
        assert attribute is not None
        try:
            return attribute(objects, data, offset)
        except RaggedStoreError:
            raise
        except Exception:
            version, length = struct.unpack_from("<BxH", data, offset)
            first = offset + (9 if version == 3 else 8)
            name = bytes(data[first : first + length]).strip(b"\0")
            if not name or name.startswith(_OURS):
                raise
            return name.decode("utf-8", "replace"), None

    def with_phases(file: Any) -> Any:
        """Four bytes more, where it is said when attributes are kept otherwise."""
        assert header is not None
        start = file.tell()
        flags = file.read(6)[5:]
        if not flags or not flags[0] & 16:
            file.seek(start)
            return header(file)
        times = file.read(16 if flags[0] & 32 else 0)
        file.read(4)
        size = file.read(1 << (flags[0] & 3))
        file.seek(start)
        begin = file.read(5) + bytes([flags[0] & ~16])
        file.seek(start + 6 + len(times) + 4 + len(size))
        return header(io.BytesIO(begin + times + size))

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
    if enumeration is not None:
        DatatypeMessage._determine_dtype_enum = of_ascii
    if is_complex is not None:
        P5CompoundType._check_complex = of_two_floats
    if find is not None:
        DataObjects.find_msg_type = of_its_own
    if attribute is not None:
        DataObjects._parse_attribute_msg = if_readable
    if header is not None:
        DataObjects._parse_v2_header = staticmethod(with_phases)

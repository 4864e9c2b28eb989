"""pyfive, and what it gets wrong mended.

It is pure Python, so that a stranger's file can reach no fault of libhdf5. Some of its assumptions
do not hold of files that every other tool reads: that names marked as ASCII are it, that integers
have as many bits as their bytes and floats are IEEE 754's, that any two numbers named r and i are
complex, that an object has all that is said of it to itself, that no link leads to another file.
They are set right in its classes, once; files for which they hold are read as before. It learns of
bitfields of a byte, as which PyTables keeps bools, and of the indexes of chunks that HDF5 has had
since 1.10 (`indexes.py`). And an attribute that it cannot read, which nobody may need, is no reason
to read nothing.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from raggedstore.errors import RaggedStoreError
from raggedstore.segment.indexes import Layout

__all__ = ["BITS", "parse"]

#: What the dtype of bitfields of a byte has in its metadata, under "enum".
BITS = {"bits": 8}


def parse(stream: Any) -> Any:
    """The file in a `stream`, as ``pyfive.File``."""
    import pyfive

    _mend()
    return pyfive.File(stream)


Original = Callable[..., Any]

_MENDED: dict[str, Original] = {}  #: by module, class and method of pyfive
_BITFIELD = 4  # of HDF5's classes of datatypes
_LAYOUT = 8  # of its messages about an object that of where its values lie
_OLD_INDEXES, _NEWEST = 3, 5  # of that message: up to which version pyfive finds chunks; the last
_CHUNKED = 2  # of what it says
_LOOKED_UP = "_raggedstore_looked_up"
_EXTERNAL = 64  # of its types of links, and what others may make of links
#: Of its messages about an object those that may lie elsewhere, for several objects: of its
#: dataspace, datatype, fill value (two of them) and filters; and an attribute.
_SHAREABLE, _ATTRIBUTE = (1, 3, 4, 5, 11), 12
_OURS = b"raggedstore"  # which our own attributes begin with
#: Of IEEE 754's floats of so many bits: where the exponent lies and how many bits it has, and the
#: mantissa; and what is added to the exponent.
_IEEE = {16: (10, 5, 0, 10, 15), 32: (23, 8, 0, 23, 127), 64: (52, 11, 0, 52, 1023)}
#: What a longdouble is where it has 80 bits in 16 bytes: its sign, of how many bits, and the same.
_X87 = (79, 0, 80, 64, 15, 0, 64, 16383)


def _mends(place: str) -> Callable[[Original], Original]:
    """Have a function stand for one of pyfive, which it is given before its arguments."""

    def keep(mended: Original) -> Original:
        _MENDED[place] = mended
        return mended

    return keep


@cache
def _mend() -> None:
    from pyfive.p5t import complex_dtype_map

    complex_dtype_map.update({"<f16": "<c32", ">f16": ">c32"})
    for place, mended in _MENDED.items():
        module, owner, name = place.split(".")
        found = getattr(import_module(f"pyfive.{module}"), owner, None)
        # Another version of it may call them otherwise, and then has to be right by itself.
        if (original := getattr(found, name, None)) is None:
            continue
        call = _with_original(mended, original)
        is_static = isinstance(vars(found).get(name), staticmethod)
        setattr(found, name, staticmethod(call) if is_static else call)


def _with_original(mended: Original, original: Original) -> Original:
    return lambda *args: mended(original, *args)


@_mends("dataobjects.DataObjects._decode_link_msg")
def _decode_link(decode: Original, data: bytes, offset: int) -> Any:
    """Names are UTF-8: PyTables, and HDF5 by default, mark them as ASCII whatever they are.

    A link into another file is taken for a soft one, which is not followed either.
    """
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


@_mends("dataobjects.DataObjects._get_data_message_properties")
def _of_known_version(layout: Original, objects: Any, offset: int) -> Any:
    """HDF5 2.0 has a fifth version of where data lie, which begins as the fourth does."""
    if (version := objects.msg_data[offset]) <= _OLD_INDEXES:
        return layout(objects, offset)
    if version > _NEWEST:
        raise NotImplementedError(
            f"version {version} of data layouts (h5repack rewrites it in an older one)"
        )
    return version, None, objects.msg_data[offset + 1], offset + 2


@_mends("dataobjects.DataObjects._get_chunk_params")
def _with_newer_indexes(params: Original, objects: Any) -> None:
    """Of those of HDF5 1.10 and later it knows nothing."""
    message = objects.find_msg_type(_LAYOUT)[0]
    data = objects.msg_data[message["offset_to_message"] :][: message["size"]]
    if data[0] <= _OLD_INDEXES or data[1] != _CHUNKED:
        params(objects)
    elif not objects._chunk_params_set:
        layout = Layout.of(bytes(data))
        found = partial(layout.chunks, shape=objects.shape, most=objects.maxshape,
                        filtered=bool(objects.filter_pipeline))  # fmt: skip
        # Where it keeps the address of a tree of chunks, for `_build_index`.
        objects._chunks, objects._chunk_dims = layout.chunk, len(layout.chunk) + 1
        objects._chunk_address, objects._chunk_params_set = found, True


@_mends("h5d.DatasetID._build_index")
def _when_asked(build: Original, dataset: Any) -> None:
    """The index of chunks, when it is asked for, and not whenever a dataset is looked up."""
    from pyfive.h5d import StoreInfo

    if not hasattr(dataset, _LOOKED_UP):  # called as it is made
        setattr(dataset, _LOOKED_UP, True)
        return
    find = getattr(dataset._index_params, "chunk_address", None)
    if not isinstance(find, partial):
        build(dataset)
    elif dataset._index is None:
        stream = dataset._fh
        try:
            found = find(stream)
        finally:
            if dataset.posix:
                stream.close()
        columns = (found.masks.tolist(), found.offsets.tolist(), found.sizes.tolist())
        rows = zip(map(tuple, found.places.tolist()), *columns, strict=True)
        dataset._index = {place: StoreInfo(place, *where) for place, *where in rows}


@_mends("datatype_msg.DatatypeMessage._determine_dtype_fixed_point")
def _of_all_bits(fixed_point: Original, message: Any, head: Any) -> Any:
    """Integers of some of their bytes' bits would have to be shifted and extended."""
    offset, precision = struct.unpack_from("<HH", message.buf, message.offset)
    if (offset, precision) != (0, 8 * head["size"]):
        raise NotImplementedError(f"integers of {precision} bits in {head['size']} bytes")
    return fixed_point(message, head)


@_mends("datatype_msg.DatatypeMessage._determine_dtype_floating_point")
def _of_ieee(floating_point: Original, message: Any, head: Any) -> Any:
    """bfloat16 has as many bytes as float16 has."""
    found = struct.unpack_from("<HHBBBBI", message.buf, message.offset)
    sign, vax = head["class_bit_field_1"], head["class_bit_field_0"] & 64
    bits = 8 * head["size"]
    if bits == 128 and (vax, sign, *found) == (0, *_X87) and np.finfo(np.longdouble).nmant == 63:
        from pyfive.p5t import P5FloatType

        message.offset += 12
        return P5FloatType((">" if head["class_bit_field_0"] & 1 else "<") + "f16")
    if vax or (sign, *found) != (bits - 1, 0, bits, *_IEEE.get(bits, ())):
        raise NotImplementedError(f"floats of {bits} bits that are not IEEE 754's")
    return floating_point(message, head)


@_mends("datatype_msg.DatatypeMessage.determine_dtype")
def _with_bitfields(determine: Original, message: Any) -> Any:
    from pyfive.p5t import P5EnumType

    first, size = struct.unpack_from("<B3xI", message.buf, message.offset)
    if (first & 15, size) != (_BITFIELD, 1):
        return determine(message)
    if struct.unpack_from("<HH", message.buf, message.offset + 8) != (0, 8):
        raise NotImplementedError("bitfields of some of a byte's bits")
    message.offset += 12
    return P5EnumType("|u1", BITS)


@_mends("datatype_msg.DatatypeMessage._determine_dtype_enum")
def _of_ascii(enumeration: Original, message: Any, head: Any) -> Any:
    try:
        return enumeration(message, head)
    except UnicodeDecodeError:
        raise NotImplementedError("an enumeration with names beyond ASCII") from None


@_mends("p5t.P5CompoundType._check_complex")
def _of_two_floats(is_complex: Original, compound: Any) -> bool:
    """h5py's complex numbers are two floats of one kind, and nothing between them."""
    from pyfive.p5t import complex_dtype_map

    if not is_complex(compound):
        return False
    real, imaginary = (field.ptype.dtype for field in compound.fields)
    return (
        real == imaginary and real.str in complex_dtype_map and compound.size == 2 * real.itemsize
    )


@_mends("dataobjects.DataObjects.find_msg_type")
def _of_its_own(find: Original, objects: Any, kind: int) -> Any:
    """What several objects share lies elsewhere, and would be taken for what it is not."""
    found = find(objects, kind)
    if kind == _ATTRIBUTE:
        return [message for message in found if not message["flags"] & 2]
    if kind in _SHAREABLE and any(message["flags"] & 2 for message in found):
        raise NotImplementedError("what objects share, such as a committed datatype")
    return found


@_mends("dataobjects.DataObjects._parse_attribute_msg")
def _if_readable(attribute: Original, objects: Any, data: Any, offset: int) -> Any:
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


@_mends("dataobjects.DataObjects._parse_v2_header")
def _with_phases(header: Original, file: Any) -> Any:
    """Four bytes more, where it is said when attributes are kept otherwise."""
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

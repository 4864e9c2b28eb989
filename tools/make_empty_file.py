"""Print the constant EMPTY_FILE of raggedstore/segment/empty.py.

PyTables can't set the two properties of an HDF5 file that decide how small a small one is: the
ranks of the B-trees of groups and of chunks (H5Pset_sym_k, H5Pset_istore_k). With HDF5's own
ranks every dataset takes 2 to 3 kB of mostly empty index. So segments begin as a copy of this
empty file, made with libhdf5 by way of h5py.

    python tools/make_empty_file.py        needs h5py
"""

import base64
import ctypes
import tempfile
import zlib
from pathlib import Path

import h5py

GROUP_RANK, GROUP_LEAF_RANK, CHUNK_RANK = 4, 4, 8


def libhdf5() -> ctypes.CDLL:
    """The libhdf5 that h5py is linked with."""
    package = Path(h5py.__file__).parent
    found = sorted((package.parent / "h5py.libs").glob("libhdf5-*.so*"))
    library = ctypes.CDLL(str(found[0]) if found else "libhdf5.so")
    library.H5Pset_istore_k.argtypes = [ctypes.c_int64, ctypes.c_uint]
    library.H5Pset_sym_k.argtypes = [ctypes.c_int64, ctypes.c_uint, ctypes.c_uint]
    return library


def empty_file() -> bytes:
    """The bytes of an HDF5 file with nothing in it and small B-tree ranks."""
    library = libhdf5()
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    assert library.H5Pset_sym_k(properties.id, GROUP_RANK, GROUP_LEAF_RANK) >= 0
    assert library.H5Pset_istore_k(properties.id, CHUNK_RANK) >= 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.h5"
        h5py.h5f.create(bytes(path), h5py.h5f.ACC_EXCL, fcpl=properties).close()
        return path.read_bytes()


if __name__ == "__main__":
    print(base64.b85encode(zlib.compress(empty_file(), 9)).decode())

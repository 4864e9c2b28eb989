"""Ragged samples in ordinary HDF5 files: compressed, appendable, fast to train from."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from raggedstore import lazy, training
from raggedstore.arrays import MemorySwapper, RaggedEArray, RaggedVLArray
from raggedstore.batch import RaggedBatch
from raggedstore.errors import (
    ConflictError,
    CorruptionError,
    FormatError,
    KeyTypeError,
    MissingExtraError,
    NotAStoreError,
    OutOfRangeError,
    RaggedStoreError,
    SampleError,
    SampleTypeError,
    SchemaError,
    StorageError,
    UnknownFieldError,
    UsageError,
    VersionError,
)
from raggedstore.interop.npy import from_npy, write_npy
from raggedstore.items import Items
from raggedstore.opening import open
from raggedstore.samples import FieldView, Samples, concat
from raggedstore.schema import Field, Schema
from raggedstore.segment.codec import Compression
from raggedstore.sparse import append_sparse, from_sparse, sparse_matmul, to_sparse
from raggedstore.statistics import Normalizer
from raggedstore.store.store import Store, create

if TYPE_CHECKING:
    from raggedstore import torch as torch
else:

    def __getattr__(name: str) -> object:
        # Imported when it is asked for: PyTorch takes seconds, and not everybody has it.
        if name == "torch":
            return import_module("raggedstore.torch")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


try:
    __version__ = version("raggedstore")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Compression",
    "ConflictError",
    "CorruptionError",
    "Field",
    "FieldView",
    "FormatError",
    "Items",
    "KeyTypeError",
    "MemorySwapper",
    "MissingExtraError",
    "Normalizer",
    "NotAStoreError",
    "OutOfRangeError",
    "RaggedBatch",
    "RaggedEArray",
    "RaggedStoreError",
    "RaggedVLArray",
    "SampleError",
    "SampleTypeError",
    "Samples",
    "Schema",
    "SchemaError",
    "StorageError",
    "Store",
    "UnknownFieldError",
    "UsageError",
    "VersionError",
    "append_sparse",
    "concat",
    "create",
    "from_npy",
    "from_sparse",
    "lazy",
    "open",
    "sparse_matmul",
    "to_sparse",
    "training",
    "write_npy",
]

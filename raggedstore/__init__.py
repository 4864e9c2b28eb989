"""Ragged samples in ordinary HDF5 files: compressed, appendable, fast to train from."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from raggedstore import training
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
from raggedstore.opening import open
from raggedstore.samples import FieldView, Samples, concat
from raggedstore.schema import Field, Schema
from raggedstore.segment.codec import Compression
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
    "KeyTypeError",
    "MemorySwapper",
    "MissingExtraError",
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
    "concat",
    "create",
    "open",
    "training",
]

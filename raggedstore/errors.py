"""Every error that raggedstore raises on purpose.

They fall into three kinds, by whose fault it is:

the caller's    `SampleError`, `KeyTypeError`, `OutOfRangeError`, `UnknownFieldError`, `UsageError`
the store's     `FormatError`, `CorruptionError`, `NotAStoreError`, `VersionError`
the world's     `StorageError` (disk, permissions), `ConflictError` (another process)

Each derives from `RaggedStoreError` and from the builtin that people would catch anyway.
"""

from __future__ import annotations

__all__ = [
    "ConflictError",
    "CorruptionError",
    "FormatError",
    "KeyTypeError",
    "MissingExtraError",
    "NotAStoreError",
    "OutOfRangeError",
    "RaggedStoreError",
    "SampleError",
    "SampleTypeError",
    "SchemaError",
    "StorageError",
    "UnknownFieldError",
    "UsageError",
    "VersionError",
]


class RaggedStoreError(Exception):
    """Base of all errors raised by raggedstore."""


class UsageError(RaggedStoreError, ValueError):
    """An argument has a value that makes no sense."""


class SchemaError(RaggedStoreError, ValueError):
    """A field or schema cannot be what was asked for."""


class SampleError(RaggedStoreError, ValueError):
    """A sample does not fit the schema: a missing or unknown field, a wrong shape."""


class SampleTypeError(SampleError, TypeError):
    """A value of a sample has a type that does not convert to its field's without loss."""


class KeyTypeError(RaggedStoreError, IndexError, TypeError):
    """An index is of a type that cannot index samples (a float, a tuple, a string)."""


class OutOfRangeError(RaggedStoreError, IndexError):
    """An index lies outside the store, or a boolean mask has the wrong length."""


class UnknownFieldError(RaggedStoreError, KeyError):
    """A field name that the schema does not have."""

    def __str__(self) -> str:  # KeyError shows the repr of its argument: quotes around a sentence
        return str(self.args[0]) if self.args else ""


class FormatError(RaggedStoreError, ValueError):
    """A file is not laid out as any layout that raggedstore reads."""


class CorruptionError(RaggedStoreError, OSError):
    """Stored bytes are not the ones that were written: a checksum or a bound does not hold."""


class NotAStoreError(RaggedStoreError, FileNotFoundError):
    """Nothing that raggedstore can open lies at the path."""


class VersionError(RaggedStoreError, LookupError):
    """A version that the store does not have, or no longer."""


class StorageError(RaggedStoreError, OSError):
    """The operating system refused a read or a write."""


class ConflictError(RaggedStoreError, FileExistsError):
    """Something is there already, or another process got there first."""


class MissingExtraError(RaggedStoreError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

"""Ragged arrays and read-ahead over single nodes of any HDF5 file that PyTables has open."""

from __future__ import annotations

from raggedstore.arrays.ragged import RaggedEArray, RaggedVLArray
from raggedstore.arrays.swapper import MemorySwapper

__all__ = ["MemorySwapper", "RaggedEArray", "RaggedVLArray"]

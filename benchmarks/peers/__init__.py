"""Every peer at its best settings, in the order of the tables."""

from __future__ import annotations

from benchmarks.peers.array_record import ArrayRecord
from benchmarks.peers.arrow import ArrowIpc
from benchmarks.peers.base import Batch, Flat, Peer, Reader
from benchmarks.peers.hdf5 import H5pyContiguous, H5pyFlat, H5pyVlen, PyTables, PyTablesOnOurs
from benchmarks.peers.lance import Lance
from benchmarks.peers.litdata import LitData
from benchmarks.peers.lmdb import Lmdb
from benchmarks.peers.mds import MDS
from benchmarks.peers.memmap import Memmap
from benchmarks.peers.ours import Ours
from benchmarks.peers.parquet import Parquet
from benchmarks.peers.tiledb import TileDB
from benchmarks.peers.webdataset import WebDataset
from benchmarks.peers.zarr import Zarr

__all__ = ["PEERS", "Batch", "Flat", "Peer", "Reader"]

_ALL: list[Peer] = [
    Ours("fast"),
    Ours("balanced"),
    Ours("small"),
    Memmap(),
    PyTables("blosc:lz4", 2**18),
    PyTables("blosc2:lz4", 2**18),
    PyTablesOnOurs(),
    H5pyFlat(2**20),
    H5pyContiguous(),
    H5pyVlen(),
    ArrowIpc(None),
    ArrowIpc("lz4"),
    ArrowIpc("zstd"),
    Parquet("lz4", 2**20),
    Parquet("zstd", 2**22),
    Parquet("zstd", 2**22, "DELTA_BINARY_PACKED"),
    Lance(None),
    Lance("zstd"),
    Lmdb(),
    Zarr(2**21, 2**30),
    TileDB(2**18),
    ArrayRecord(1, "uncompressed"),
    ArrayRecord(1, "snappy"),
    ArrayRecord(1, "zstd:1"),
    ArrayRecord(64, "zstd:1"),
    WebDataset(),
    MDS(),
    LitData(None),
    LitData("zstd:1"),
]
PEERS: dict[str, Peer] = {peer.name: peer for peer in _ALL}

"""Every way of loading that is measured, in the order of the tables."""

from __future__ import annotations

import importlib.util

from benchmarks.loading.base import Loading, Setting

__all__ = ["LOADINGS", "Loading", "Setting"]


def _all() -> list[Loading]:
    if importlib.util.find_spec("torch") is None:
        return []  # then there is nothing to load for
    from benchmarks.loading.grain import Grain
    from benchmarks.loading.huggingface import Buffered, ByIndex
    from benchmarks.loading.litdata import LitData
    from benchmarks.loading.mapped import Mapped
    from benchmarks.loading.mds import MDS
    from benchmarks.loading.ours import Direct, ThroughLoaderDataset, ThroughMapDataset
    from benchmarks.loading.vlarray import VLArray
    from benchmarks.loading.windows import H5pyWindows
    from benchmarks.peers.hdf5 import H5pyContiguous, H5pyFlat, H5pyVlen, PyTables
    from benchmarks.peers.lmdb import Lmdb

    # Chunks as in benchmarks/peers, where they were tried out.
    flat, tables = H5pyFlat(2**20), PyTables("blosc:lz4", 2**18)
    contiguous = H5pyContiguous()
    return [
        Direct("fast", "shuffled", careful=False),
        Direct("fast", "shuffled", careful=True),
        Direct("fast", "permuted", careful=False),
        Direct("fast", "permuted", careful=True),
        Direct("fast", "shuffled", careful=True, halved=True),
        Direct("fast", "permuted", careful=True, halved=True),
        Direct("balanced", "shuffled", careful=False),
        Direct("balanced", "permuted", careful=False),
        Direct("uncompressed", "shuffled", careful=True),
        Direct("uncompressed", "permuted", careful=True),
        Direct("uncompressed", "permuted", careful=True, halved=True),
        ThroughLoaderDataset("fast", careful=False),
        ThroughLoaderDataset("fast", careful=True),
        ThroughMapDataset("fast", careful=False),
        ThroughMapDataset("fast", careful=True),
        Mapped(flat, "h5py flat", careful=False),
        Mapped(flat, "h5py flat", careful=True),
        H5pyWindows(flat, "h5py flat"),
        Mapped(contiguous, "h5py contiguous", careful=True),
        H5pyWindows(contiguous, "h5py contiguous"),
        Mapped(H5pyVlen(), "h5py vlen", careful=False),
        Mapped(H5pyVlen(), "h5py vlen", careful=True),
        Mapped(tables, "pytables EArray", careful=False),
        Mapped(tables, "pytables EArray", careful=True),
        Mapped(VLArray(), "pytables VLArray", careful=False),
        Mapped(VLArray(), "pytables VLArray", careful=True),
        ByIndex(careful=False),
        ByIndex(careful=True),
        Buffered(),
        Grain(careful=False),
        Grain(careful=True),
        LitData(),
        MDS(),
        Mapped(Lmdb(), "lmdb blosc2:lz4", careful=True, kind="other"),
    ]


LOADINGS: dict[str, Loading] = {loading.name: loading for loading in _all()}

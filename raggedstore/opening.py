"""`open`: a store's folder or a single HDF5 file, by the same call."""

from __future__ import annotations

import os

from raggedstore.errors import NotAStoreError, UsageError
from raggedstore.interop.single import SingleFile
from raggedstore.store.files import as_path, storage_errors
from raggedstore.store.store import DEFAULT_BUDGET, Store

__all__ = ["open"]


def open(
    path: str | os.PathLike[str],
    mode: str = "r",
    *,
    version: int | None = None,
    group: str | None = None,
    budget: int | str = DEFAULT_BUDGET,
    in_memory: bool = False,
    checksums: bool = True,
    verify: bool = False,
) -> Store | SingleFile:
    """Open a store, or one HDF5 file as if it were one.

    Parameters
    ----------
    path
        A store's folder, or an HDF5 file: a segment, an exported store, or data with
        data_start_and_stop and data_shape.
    mode
        "r" to read; "a" to write too (stores only).
    version
        Of a store: which version to read, by default the newest.
    group
        Of a file: the group to read, by default the root.
    budget
        Bytes of decoded data to hold: an int, or a string such as "256MB".
    in_memory
        Read files whole into memory instead of piece by piece.
    checksums
        Check what is read against its checksum, of a store or an exported file (2 to 12 % of the
        time of reading). Without, a damaged file may give wrong values.
    verify
        Verify all checksums and side columns first.

    Raises
    ------
    NotAStoreError
        There is nothing to open.
    VersionError
        The store has no such version.
    CorruptionError
        What is there is damaged.
    """
    where = as_path(path)
    with storage_errors(where, "be looked at"):
        is_folder, is_there = where.is_dir(), where.exists()
    if is_folder:
        if group is not None:
            raise UsageError("a store has no groups: group= is for single files")
        return Store(
            where,
            mode,
            version=version,
            budget=budget,
            in_memory=in_memory,
            checksums=checksums,
            verify=verify,
        )
    if not is_there:
        raise NotAStoreError(f"{where}: no such file or folder")
    if mode != "r":
        raise UsageError("a single file opens to read only: mode='r'")
    if version is not None:
        raise UsageError("a single file has no versions")
    file = SingleFile(
        where, group=group or "/", budget=budget, in_memory=in_memory, checksums=checksums
    )
    if verify:
        file.verify().raise_for_faults()
    return file

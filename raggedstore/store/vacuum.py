"""Vacuum: remove old versions, and files that no version names.

What must never happen is that a file goes which somebody still needs:

- a version that a reader has open is locked (see `snapshot`) and stays;
- loose files may belong to a writer that has not committed yet, so they are looked at only
  while the exclusive lock on `writers.lock` says that nobody writes;
- manifests go before the segments that they alone name, so that a vacuum that dies half-way
  leaves loose files and never a version without its segments.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress
from pathlib import Path

from raggedstore.errors import UsageError
from raggedstore.segment.file import Descriptor
from raggedstore.store import files
from raggedstore.store.commit import segments_folder
from raggedstore.store.manifest import list_versions, load, path_of

__all__ = ["vacuum"]


def vacuum(root: Path, keep: int) -> list[Path]:
    """Keep the newest `keep` versions and those being read; the paths removed."""
    if keep < 1:
        raise UsageError(f"at least one version must be kept, got keep={keep}")
    removed = _remove_versions(root, keep)
    files.sync_folder(root / "versions")
    lock = root / "writers.lock"
    with (
        files.storage_errors(lock, "be locked"),
        closing(Descriptor(lock, os.O_RDWR | os.O_CREAT)) as held,
    ):
        if files.lock_exclusive(held):
            removed += _remove_loose(root)
    files.sync_folder(segments_folder(root))
    return removed


def _remove_versions(root: Path, keep: int) -> list[Path]:
    removed = []
    for version in list_versions(root)[:-keep]:
        path = path_of(root, version)
        with suppress(FileNotFoundError), closing(Descriptor(path)) as manifest:
            if files.lock_exclusive(manifest):
                with files.storage_errors(path, "be removed"):
                    path.unlink()
                removed.append(path)
    return removed


def _remove_loose(root: Path) -> list[Path]:
    """Remove segments that no version names, and temporary files; nobody is writing now."""
    named = set()
    for version in list_versions(root):
        for entry in load(root, version).segments:
            named |= {entry.file, entry.index}
    removed = []
    for folder in (segments_folder(root), root / "versions"):
        for path in sorted(folder.iterdir()):
            ours = folder.name == "segments" and path.suffix in (".h5", ".idx")
            loose = path.name.startswith(files.TEMPORARY) or (ours and path.name not in named)
            if loose and path.is_file():
                with files.storage_errors(path, "be removed"):
                    path.unlink()
                removed.append(path)
    return removed

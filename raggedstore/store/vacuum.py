"""Vacuum: remove old versions, and files that no version names.

What must never happen is that a file goes which somebody still needs:

- a version that a reader has open is locked (see `snapshot`) and stays;
- a name that vacuum makes free is never taken again: a writer that was slow to commit would make
  a version that is older than the newest, and lose it. So versions go only while the exclusive lock
  on `commits.lock` says that nobody links one, and who links one looks first whether any went;
- loose files may belong to a writer that has not committed yet, so they are looked at only
  while the exclusive lock on `writers.lock` says that nobody writes;
- manifests go before the segment lists and segments that they alone name, so that a vacuum that
  dies half-way leaves loose files and never a version without its segments;
- a manifest or list that cannot be read may name any file, so with one of those no loose segment
  or list goes;
- a version whose manifest is damaged is none to fall back on, so only others are counted as kept;
  and what is newer than the oldest of these stays, damaged or not: its manifest may come back
  from a backup.

A version that stays while later ones go is marked: `manifest` says what that is good for.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from raggedstore.errors import CorruptionError, NotAStoreError, UsageError, VersionError
from raggedstore.indexing import is_single
from raggedstore.segment.file import Descriptor
from raggedstore.store import files
from raggedstore.store.commit import commits_lock, segments_folder
from raggedstore.store.lists import read_list, versions_folder
from raggedstore.store.manifest import list_versions, load, mark_of, newest_version, path_of
from raggedstore.store.snapshot import check_folders

__all__ = ["vacuum"]

# Endings of the files that are loose when no version needs them; a manifest never is.
_SUFFIXES = {"segments": (".h5", ".idx", ".stats"), "versions": (".list", ".passed")}


def vacuum(root: Path, keep: int) -> list[Path]:
    """Keep the newest `keep` versions that can be read, and those being read; the paths removed.

    Raises
    ------
    CorruptionError
        No version can be read, and nothing was removed; or a manifest or list that stays cannot,
        and loose segments and lists were left, since it may name them.
    """
    if not is_single(keep) or keep < 1:
        raise UsageError(f"at least one version must be kept, got keep={keep}")
    check_folders(root)
    newest_version(root)  # or there is no store, and nothing to be locked
    linking = commits_lock(root)
    with files.unlocking(linking):
        removed = _remove_versions(root, _outdated(root, keep)) if _alone(linking) else []
    files.sync_folder(root / "versions")
    held = files.lock_file(root / "writers.lock")
    with files.unlocking(held):
        if files.lock_exclusive(held):
            removed += _remove_loose(root)
    files.sync_folder(segments_folder(root))
    return removed


def _alone(lock: Descriptor) -> bool:
    """Take the exclusive lock; False where it is held all the time, or there are no locks."""
    for _ in range(200):
        if files.lock_exclusive(lock):
            return True
        time.sleep(0.005)
    return False


def _outdated(root: Path, keep: int) -> list[int]:
    """The versions before the newest `keep` that can be read."""
    versions = list_versions(root)
    if not versions:
        raise NotAStoreError(f"{root}: no raggedstore store is here")
    left, damage = keep, None
    for i in reversed(range(len(versions))):
        try:
            load(root, versions[i])
        except VersionError:
            continue  # another vacuum was faster
        except CorruptionError as error:
            damage = damage or error
            continue
        left -= 1
        if not left:
            return versions[:i]
    if damage is not None and left == keep:
        raise CorruptionError(f"no version can be read, so nothing was removed: {damage}")
    return []


def _remove_versions(root: Path, versions: list[int]) -> list[Path]:
    removed = []
    for version in versions:
        path = path_of(root, version)
        with files.storage_errors(path, "be opened"):
            try:
                manifest = Descriptor(path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # another vacuum was faster
        with files.unlocking(manifest):
            if files.lock_exclusive(manifest):
                with files.storage_errors(path, "be removed"), suppress(FileNotFoundError):
                    path.unlink()
                    removed.append(path)
            else:
                _mark(root, version)
    return removed


def _mark(root: Path, version: int) -> None:
    """Say that versions after one that stays are removed; see `manifest`."""
    path = mark_of(root, version)
    files.lock_file(path).close()
    files.sync_folder(path.parent)  # even where it was there: who made it may have come no further


def _remove_loose(root: Path) -> list[Path]:
    """Remove files that no version names, and temporary ones; nobody is writing now."""
    named, damage = _named(root)
    removed = []
    for folder in (segments_folder(root), versions_folder(root)):
        ours = _SUFFIXES[folder.name] if damage is None else ()
        with files.storage_errors(folder, "be listed"):
            paths = sorted(folder.iterdir())
        for path in paths:
            loose = path.suffix in ours and path.name not in named
            if loose or path.name.startswith(files.TEMPORARY):
                with files.storage_errors(path, "be removed"):
                    if path.is_file():
                        path.unlink()
                        removed.append(path)
    if damage is not None:
        raise CorruptionError(
            f"{damage}: it may name any segment, so none that is loose was removed; put it back "
            f"from a backup, or repair the store and then keep only the version that this made"
        ) from damage
    return removed


def _named(root: Path) -> tuple[set[str], CorruptionError | None]:
    """The files that any version of the store needs, its manifest left out; what was not read."""
    named: set[str] = set()
    damage: CorruptionError | None = None
    for version in list_versions(root):
        named.add(mark_of(root, version).name)
        try:
            manifest = load(root, version)
        except VersionError:
            continue  # another vacuum was faster
        except CorruptionError as error:
            damage = damage or error
            continue
        entries = [*manifest.recent]
        for segment_list in manifest.lists:
            if segment_list.file not in named:
                named.add(segment_list.file)
                try:
                    entries += read_list(root, segment_list)
                except CorruptionError as error:
                    damage = damage or error
        for entry in entries:
            named |= {entry.file, entry.index, entry.summary}
    return named, damage

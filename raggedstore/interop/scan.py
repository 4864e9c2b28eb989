"""Which files a folder holds: found once, in one fixed order, named relative to the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from raggedstore.errors import NotAStoreError, StorageError
from raggedstore.store.files import storage_errors

__all__ = ["Skipped", "SourceFile", "Unreadable", "find_files"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to import.

    Attributes
    ----------
    path
        Where it lies.
    name
        Its path relative to the folder imported, with forward slashes.
    nbytes
        Its size.
    """

    path: Path
    name: str
    nbytes: int

    @property
    def label(self) -> str:
        """The folder that holds it, relative to the folder imported; empty at the top."""
        parent = str(PurePosixPath(self.name).parent)
        return "" if parent == "." else parent


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was passed over, and why."""

    name: str
    reason: str


class Unreadable(Exception):
    """A file cannot become samples; the message says why. Never leaves the import."""


def find_files(
    root: Path, suffixes: Collection[str], *, leave_out: Path | None = None
) -> tuple[list[SourceFile], list[Skipped]]:
    """Every file below `root` with one of the `suffixes`, sorted by name.

    Links to files are followed, links to folders are not, so that no loop of links can trap it.

    Parameters
    ----------
    root
        A folder, or a single file, which is taken whatever its suffix.
    suffixes
        Lower-case, with the dot.
    leave_out
        A folder to stay out of: the corpus being written.

    Returns
    -------
    The files, and those whose suffix fits but that are no readable regular files, and folders
    that could not be listed.

    Raises
    ------
    NotAStoreError
        There is nothing at `root`.
    StorageError
        It could not be listed.
    """
    with storage_errors(root, "be looked at"):
        if root.is_file():
            return [SourceFile(root, root.name, root.stat().st_size)], []
        is_folder = root.is_dir()
    if not is_folder:
        raise NotAStoreError(f"{root}: no such file or folder to import")
    skipped: list[Skipped] = []

    def folder_failed(error: OSError) -> None:
        # One that breaks off in the midst of a folder does not say which.
        name = os.path.relpath(error.filename or root, root)
        if name == ".":
            raise StorageError(
                error.errno or 0, f"{root}: could not be listed: {error.strerror}"
            ) from error
        skipped.append(Skipped(name, error.strerror or str(error)))

    files: list[SourceFile] = []
    for path, name in _walk(root, leave_out, folder_failed):
        if path.suffix.lower() not in suffixes:
            continue
        try:
            files.append(SourceFile(path, name, _size(path, name)))
        except OSError as error:
            skipped.append(Skipped(name, error.strerror or str(error)))
        except Unreadable as error:
            skipped.append(Skipped(name, str(error)))
    files.sort(key=lambda file: file.name)
    skipped.sort(key=lambda skip: skip.name)
    return files, skipped


def _walk(
    root: Path, leave_out: Path | None, failed: Callable[[OSError], None]
) -> Iterator[tuple[Path, str]]:
    barred = os.path.realpath(leave_out) if leave_out is not None else None
    for folder, subfolders, names in os.walk(root, onerror=failed):
        subfolders[:] = sorted(
            sub for sub in subfolders if os.path.realpath(os.path.join(folder, sub)) != barred
        )
        for name in names:
            path = Path(folder, name)
            yield path, path.relative_to(root).as_posix()


def _size(path: Path, name: str) -> int:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Unreadable("its name is not UTF-8") from None
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a regular file")
    return status.st_size

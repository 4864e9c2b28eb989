"""The few operations on the disk that durability rests on, each where a test can make it fail.

Neither PyTables nor h5py ever calls fsync; here a file counts as written only once its bytes
and its name are on the disk. A failed fsync is never tried again: the kernel may have dropped
the bytes and forgotten that it did, so the file is given up.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from raggedstore.errors import ConflictError, RaggedStoreError, StorageError, UsageError
from raggedstore.segment.file import Descriptor

__all__ = [
    "NO_LINKS",
    "TEMPORARY",
    "appearing",
    "as_path",
    "is_there",
    "lock_exclusive",
    "lock_file",
    "lock_shared",
    "place",
    "publish",
    "put",
    "rename",
    "storage_errors",
    "sync_file",
    "sync_folder",
    "unlocking",
    "write_file",
]

TEMPORARY = ".tmp-"  #: prefix of every name that is not yet, or no longer, part of a store


@contextmanager
def storage_errors(path: Path | str, doing: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the file and the cause."""
    try:
        yield
    except RaggedStoreError:
        raise
    except OSError as error:
        raise StorageError(
            error.errno or 0, f"{path}: could not {doing}: {error.strerror}"
        ) from error


def as_path(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path; UsageError where it can be none."""
    try:
        where = Path(path)
    except TypeError:
        raise UsageError(f"a path is a str or an os.PathLike, not {path!r}") from None
    try:
        possible = b"\0" not in os.fsencode(where)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise UsageError(f"no file has a name like this: {path!r}")
    return where


def is_there(path: Path | str) -> bool:
    """Whether there is anything of that name; a link counts, wherever it leads."""
    with storage_errors(path, "be looked for"):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def sync_file(path: Path) -> None:
    """Make sure that the bytes of a file are on the disk."""
    with storage_errors(path, "be written to disk"), open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make sure that the names in a folder are on the disk."""
    with storage_errors(path, "be written to disk"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and make sure that its bytes are on the disk."""
    with storage_errors(path, "be written"), open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    """Give a finished file its final name."""
    with storage_errors(target, "be renamed into place"):
        os.rename(source, target)


def publish(path: Path, data: bytes, *, guard: AbstractContextManager[None] | None = None) -> None:
    """Make the file `path` with all of `data` or, where it exists, fail and change nothing.

    Parameters
    ----------
    guard
        Entered for the moment in which the file gets its name; what it raises keeps it from that.

    Raises
    ------
    ConflictError
        The file exists: somebody else was first.
    StorageError
        The disk refused. Where it did so last of all, the file is there, and the message says so.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{os.urandom(6).hex()}")
    try:
        write_file(temporary, data)
        with guard or nullcontext():
            place(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    try:
        sync_folder(path.parent)
    except StorageError as error:
        # Others may have read it and built on it: it can't be taken back.
        raise StorageError(
            error.errno or 0,
            f"{path} is in place, but whether it outlasts a loss of power is not known: "
            f"{error.strerror}",
        ) from error


def place(temporary: Path, path: Path) -> None:
    """Give a finished file its final name too, unless that is taken.

    Where the filesystem has no hard links (FAT, some network and FUSE ones), it is renamed by a
    call that fails where the new name is taken: Linux's renameat2. A plain rename would replace
    what another process has put there since it was looked for, so without either nothing is done.

    Raises
    ------
    ConflictError
        The name is taken.
    StorageError
        The disk refused, or can do neither.
    """
    with storage_errors(path, "be linked into place"):
        try:
            os.link(temporary, path)
        except FileExistsError:
            # Over NFS, a call whose answer was lost is sent again, and finds its own link.
            if os.lstat(temporary).st_nlink < 2:
                raise ConflictError(f"{path} exists already") from None
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if not _rename_new(temporary, path):
                raise StorageError(
                    error.errno,
                    f"{path}: could not be put in place: the filesystem has neither hard links "
                    f"nor another way not to replace a file; write to another one",
                ) from error


#: What `os.link` fails with where there are no hard links, or one file has too many.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_AT_CWD, _NOREPLACE = -100, 1  # of Linux's fcntl.h and fs.h


def _rename_new(source: Path, target: Path) -> bool:
    """Rename unless `target` is there (ConflictError); False where the system can't."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_CWD, os.fsencode(source), _AT_CWD, os.fsencode(target), _NOREPLACE) == 0:
        return True
    if ctypes.get_errno() == errno.EEXIST:
        raise ConflictError(f"{target} exists already")
    return False


def put(path: Path, data: bytes) -> None:
    """Make the file `path` with all of `data`, in place of any that is there.

    Its name is on the disk only once the folder is synced.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{os.urandom(6).hex()}")
    try:
        write_file(temporary, data)
        rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def appearing(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Where to make a file or a folder that then appears as `target`, whole or not at all.

    It is made, and synced, in the `with` block. Its name is another one each time: what was left
    when one was cut off is in nobody's way. Errors of the disk name `target` in its stead.

    Parameters
    ----------
    replace
        Whether a file may take the place of one that is there.

    Raises
    ------
    ConflictError
        There is something already.
    """
    if not replace and is_there(target):
        raise ConflictError(f"{target} exists already")
    # The end of its name is kept, by which some tell what to write.
    temporary = target.with_name(f"{TEMPORARY}{os.urandom(6).hex()}{target.suffix[:32]}")
    try:
        yield temporary
        with storage_errors(temporary, "be looked at"):
            is_folder = temporary.is_dir()
        if replace or is_folder:
            rename(temporary, target)
        else:
            place(temporary, target)
        try:
            sync_folder(target.parent)
        except BaseException:
            if not replace:
                _remove(target)
            raise
    except StorageError as error:
        *number, message = error.args
        raise StorageError(*number, message.replace(temporary.name, target.name)) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be."""
    if os.path.isdir(path) and not os.path.islink(path):  # which do not raise
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def lock_file(path: Path) -> Descriptor:
    """Open an empty file that is locked, or only there, as a sign; made where it is not there."""
    with storage_errors(path, "be opened"):
        return Descriptor(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)


def lock_shared(file: Descriptor) -> None:
    """Take a shared advisory lock, held until the file is closed or the process dies."""
    with suppress(OSError):  # a filesystem without locks: there is nothing to hold
        fcntl.flock(file, fcntl.LOCK_SH)


@contextmanager
def unlocking(file: Descriptor) -> Iterator[None]:
    """Close a file at the end, and first let go of what lock it has.

    Closing alone leaves the lock to a child that was forked meanwhile, which has the file open too.
    """
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def lock_exclusive(file: Descriptor) -> bool:
    """Try to take the exclusive lock; False where somebody holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

"""How a version is made.

The steps, each of which may be the last one that a dying process takes:

1. a segment is written under a temporary name and fsynced
2. its chunk table likewise
3. both are renamed to their final names            (`seal_segment`)
4. the folder of segments is fsynced
5. where the manifest would name too many segments itself, the first of them go into segment
   lists, each written under a temporary name, fsynced and renamed; the folder of versions is
   fsynced, since a manifest must not reach the disk before a list that it names
6. the next manifest is written under a temporary name and fsynced
7. it is linked to its final name, which fails if that version exists, or did (`_follows`)
8. the folder of versions is fsynced                (`commit`)

Until step 7 nothing that a reader looks at has changed; after it the version is there, whole.
Whoever loses the race at step 7 takes the newest manifest and applies its change to that, so
two appends never conflict.

What a commit writes: the new segments, a manifest with at most `lists.DIRECT` segments in it and
a line for each list, and once in `lists.DIRECT` segments a list. The segments that are there
already are neither read nor written.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import xxhash

from raggedstore.errors import ConflictError, StorageError, UsageError
from raggedstore.segment.file import Descriptor, FileBytes, OpenFiles
from raggedstore.segment.forking import no_fork
from raggedstore.segment.table import MAX_BYTES as MAX_INDEX_BYTES
from raggedstore.segment.writer import SegmentWriter
from raggedstore.store import files
from raggedstore.store.lists import SegmentEntry, versions_folder
from raggedstore.store.manifest import (
    Manifest,
    is_unpassed,
    list_versions,
    mark_of,
    newest,
    path_of,
)

__all__ = [
    "check_present",
    "commit",
    "commits_lock",
    "digest_of",
    "remove_segments",
    "revive",
    "seal_segment",
    "segments_folder",
    "temporary_segment",
    "utc_now",
]


def utc_now() -> str:
    """The time now, as manifests hold it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def segments_folder(root: Path) -> Path:
    """Where the segments of a store lie."""
    return root / "segments"


def temporary_segment(root: Path) -> Path:
    """A new temporary name in the folder of segments."""
    return segments_folder(root) / f"{files.TEMPORARY}{uuid.uuid4().hex}.h5"


def digest_of(data: bytes | FileBytes) -> str:
    """xxh3-128, hex."""
    digest = xxhash.xxh3_128()
    for piece in data.pieces() if isinstance(data, FileBytes) else [data]:
        digest.update(piece)
    return digest.hexdigest()


def seal_segment(writer: SegmentWriter, root: Path) -> SegmentEntry:
    """Steps 1 to 3: finish a segment and give it its final name; the manifest's entry for it."""
    table = writer.seal()
    digest = writer.pool.submit(digest_of, FileBytes(writer.path, OpenFiles()))
    files.sync_file(writer.path)  # meanwhile
    name = uuid.uuid4().hex
    folder = segments_folder(root)
    index = table.dumps()
    if len(index) > MAX_INDEX_BYTES:
        raise UsageError(f"{writer.path}: too many chunks for one segment: lower segment_bytes")
    temporary_index = folder / f"{files.TEMPORARY}{name}.idx"
    try:
        files.write_file(temporary_index, index)
        files.rename(temporary_index, folder / f"{name}.idx")
    except BaseException:
        with suppress(OSError):
            temporary_index.unlink()
        raise
    try:
        files.rename(writer.path, folder / f"{name}.h5")
    except BaseException:
        with suppress(OSError):
            (folder / f"{name}.idx").unlink()
        raise
    raw = sum(
        columns["data"].rows * columns["data"].column.row_nbytes
        for columns in table.datasets.values()
    )
    return SegmentEntry(
        file=f"{name}.h5",
        samples=table.samples,
        bytes=table.file_bytes,
        index_bytes=len(index),
        raw_bytes=raw,
        digest=digest.result(),
        index_digest=digest_of(index),
    )


def commit(
    root: Path,
    change: Callable[[Manifest], Manifest],
    *,
    hint: int,
    latest: Callable[[Path, int], Manifest] = newest,
) -> Manifest:
    """Steps 4 to 8: make the next version, `change` applied to whatever is newest.

    To be called only by who holds the writers' lock, and has held it since before it wrote the
    segments: until the manifest is there, vacuum would take them, and the lists, for strays.

    Parameters
    ----------
    change
        From the newest manifest to the one that shall follow it (`Manifest.child`). Called
        again with a newer one as often as other processes commit first.
    hint
        The newest version that is known.
    latest
        How the newest manifest is found.
    """
    files.sync_folder(segments_folder(root))
    while True:
        before = latest(root, hint)
        manifest, made = change(before).rolled_over()
        _write_lists(root, made, have={entry.file for entry in before.lists})
        follows = _follows(root, manifest.version - 1)
        try:
            files.publish(path_of(root, manifest.version), manifest.dumps(), guard=follows)
        except ConflictError:
            hint = manifest.version
            continue
        return manifest


def commits_lock(root: Path) -> Descriptor:
    """The file that is locked while a version is linked, or versions are removed."""
    return files.lock_file(root / "commits.lock")


@contextmanager
def _follows(root: Path, version: int) -> Iterator[None]:
    """Keep vacuum out while the version after this one is linked; ConflictError if there was one.

    That its name is free does not mean that it never was: others may have committed it and more
    after it, and vacuum removed it. But vacuum goes upwards, so `version` was then removed or
    marked before.
    """
    with no_fork(), closing(commits_lock(root)) as lock:
        files.lock_shared(lock)
        if not is_unpassed(root, version):
            raise ConflictError(f"{root}: version {version} is not the newest any more")
        yield


def revive(root: Path) -> None:
    """Have the highest version for the newest again, where those after it were lost.

    It has then been passed, and what was lost cannot be told from what vacuum removed; but
    versions are never removed without a newer one to stay.
    """

    def mark() -> Path | None:
        versions = list_versions(root)
        path = mark_of(root, versions[-1]) if versions else None
        return path if path is not None and files.is_there(path) else None

    if mark() is None:  # as nearly always: nothing is to be written
        return
    with no_fork(), closing(commits_lock(root)) as lock:
        # Nobody commits or removes versions meanwhile.
        if files.lock_exclusive(lock) and (path := mark()) is not None:
            with files.storage_errors(path, "be removed"), suppress(FileNotFoundError):
                os.unlink(path)


def _write_lists(root: Path, made: dict[str, bytes], *, have: set[str]) -> None:
    """Step 5: put the segment lists on the disk that are not there yet."""
    new = [name for name in made if name not in have]
    for name in new:
        files.put(versions_folder(root) / name, made[name])
    if new:
        files.sync_folder(versions_folder(root))


def check_present(root: Path, entries: Iterable[SegmentEntry]) -> None:
    """StorageError where the files of segments that another process wrote are not here."""
    for entry in entries:
        for name, size in ((entry.file, entry.bytes), (entry.index, entry.index_bytes)):
            path = segments_folder(root) / name
            found = path.lstat().st_size if path.is_file() else 0
            if found != size:
                raise StorageError(
                    f"{path}: {found} bytes here, of {size} that were written where it was "
                    f"sealed: all processes must see one folder under this path"
                )


def remove_segments(root: Path, entries: list[SegmentEntry]) -> None:
    """Remove sealed segments that no manifest will name."""
    for entry in entries:
        for name in (entry.file, entry.index):
            with suppress(OSError):
                os.unlink(segments_folder(root) / name)

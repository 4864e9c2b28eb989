"""What must be true of a store after an operation on it was disturbed.

What it must hold is known: the versions before the operation, and those that it makes. Each must
be there whole and exact, verify must find nothing, segments must read as the HDF5 files that they
are, the operation must work when it is done again, and vacuum leave nothing that no version names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

import raggedstore as rs
from raggedstore.store.manifest import list_versions, path_of

if TYPE_CHECKING:
    from tests.campaigns.operations import Operation

__all__ = [
    "again",
    "changed",
    "copied",
    "differences",
    "files_below",
    "lengths",
    "look",
    "look_at_newest",
    "loose_files",
    "opened",
]


def look(
    operation: Operation,
    home: Path,
    before: dict[int, int],
    made: Collection[int],
    known: Container[str] = (),
) -> Iterator[str]:
    """What is wrong with the store in `home` after some commits to what was there `before`.

    Parameters
    ----------
    before
        The versions, and how many samples each has.
    made
        How many commits of the operation may be there.
    known
        Segments that were looked at as HDF5 before.
    """
    now = lengths(home / "store")
    if operation.samples is None:
        wanted = [{**now, **before}]
    else:
        wanted = [operation.versions(before, count) for count in made]
    if operation.forgets:
        wanted = [{v: n for v, n in w.items() if v in now or v == max(w)} for w in wanted]
    if operation.mends and now == before:
        return
    if now in wanted:
        yield from _look_at_all(operation, home / "store", now, known)
    else:
        yield f"versions of {now} samples where one of {wanted} belongs"


def again(
    operation: Operation, home: Path, run: Callable[[], tuple[str, Any]], *, is_done: bool
) -> Iterator[str]:
    """What is wrong when the operation is done once more, and then vacuum.

    Parameters
    ----------
    run
        Does it; gives the error that came of it, or the empty string, and what it gave.
    is_done
        Whether it was done before.
    """
    store = home / "store"
    before = lengths(store)
    known = set(os.listdir(store / "segments")) if before else set()
    error, given = run()
    now = lengths(store)
    if error:
        if not (operation.once and is_done and "ConflictError" in error):
            yield f"the operation fails when it is done again: {error}"
    elif operation.samples is not None:
        grown = now[max(now)] - before.get(max(before, default=0), 0)
        if grown != sum(operation.gains):
            yield f"done again, it added {grown} samples"
        lost = before.keys() - now.keys()
        if lost and not operation.forgets:
            yield f"done again, it lost versions {lost}"
    yield from _look_at_all(operation, store, now, known)
    yield from operation.look(home, not error, given)
    with opened(store, "a") as writable:
        writable.vacuum(keep=1)
    yield from (f"vacuum left {name}" for name in loose_files(store))


def _look_at_all(
    operation: Operation, store: Path, now: dict[int, int], known: Container[str]
) -> Iterator[str]:
    """What is wrong with the versions that are there."""
    if operation.samples is not None:
        for version, count in now.items():
            with opened(store, version=version) as samples:
                want = operation.samples(count)
                yield from _once("samples", samples, partial(differences, samples, want))
    if now:
        with opened(store) as newest:
            yield from _once("newest", newest, partial(look_at_newest, store, known))


def opened(path: Path, mode: str = "r", *, version: int | None = None) -> rs.Store:
    """The store at `path`, opened as anybody would."""
    store = rs.open(path, mode, version=version)
    assert isinstance(store, rs.Store)
    return store


def lengths(store: Path) -> dict[int, int]:
    """The versions of a store and how many samples each has; none where no store is."""
    try:
        versions = list_versions(store)
    except rs.NotAStoreError:
        return {}
    found = {}
    for version in versions:
        with opened(store, version=version) as samples:
            found[version] = len(samples)
    return found


def differences(samples: Any, want: Sequence[dict[str, Any]]) -> list[str]:
    """What is not as it was appended."""
    if len(samples) != len(want):
        return [f"{len(samples)} samples where {len(want)} belong"]
    for name in samples.schema:
        for i, (got, one) in enumerate(zip(samples[name][:], want, strict=True)):
            if not np.array_equal(got, one[name]):
                return [f"sample {i}, {name}, is not exact"]
    return []


def look_at_newest(store: Path, known: Container[str] = ()) -> Iterator[str]:
    """What verify finds in the newest version, and where its segments differ read as HDF5."""
    with opened(store) as samples:
        report = samples.verify()
        if not report.ok:
            yield str(report)
        stop = 0
        for entry in samples.manifest.segments:
            start, stop = stop, stop + entry.samples
            if entry.file in known:
                continue
            # For each dataset pyfive looks its own version up, which takes longer than the rest
            with mock.patch("pyfive.h5d.version", return_value=""):
                alone = rs.open(store / "segments" / entry.file)
            for name in samples.schema:
                one, other = alone[name][:], samples[name][start:stop]
                if len(one) != len(other) or not all(map(np.array_equal, one, other)):
                    yield f"{entry.file}, {name}: HDF5 has other values"


_found_right: set[int] = set()  # of `_once`, for this process


def _once(what: str, samples: rs.Store, faults: Callable[[], Iterable[str]]) -> Iterator[str]:
    """What is wrong, unless the same was asked of the same files before, and nothing was wrong.

    Most cases leave most files as they were, by inode, size and time.
    """
    manifest, root = samples.manifest, samples.path
    paths = [path_of(root, samples.version)]
    paths += [root / "versions" / entry.file for entry in manifest.lists]
    for entry in manifest.segments:
        paths += [root / "segments" / entry.file, root / "segments" / entry.index]
    stats = [path.stat() for path in paths if path.exists()]
    key = hash((what, *((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)))
    if key not in _found_right:
        found = [*faults()]
        yield from found
        if not found:
            _found_right.add(key)


def loose_files(store: Path) -> list[str]:
    """The files that no version of a store names; what marks a version is not one of them."""
    named = set()
    for version in lengths(store):
        named |= {f"{version:020d}.json", f"{version:020d}.passed"}
        with opened(store, version=version) as samples:
            manifest = samples.manifest
        for entry in manifest.segments:
            named |= {entry.file, entry.index}
        named |= {entry.file for entry in manifest.lists}
    folders = [store / "segments", store / "versions"]
    return sorted(p.name for f in folders for p in f.iterdir() if p.name not in named)


def files_below(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every file, by what changes when it is replaced or written to: inode, size and time."""
    return {
        str(path.relative_to(root)): (status.st_ino, status.st_size, status.st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
        for status in [path.stat()]
    }


def changed(template: Path, home: Path, operation: Operation) -> list[str]:
    """The files of what was there before an operation that are not as they were."""
    now = files_below(home)
    return [
        f"{name} changed or is gone"
        for name, what in files_below(template).items()
        if now.get(name) != what and (name in now or not operation.forgets)
    ]


def copied(source: Path, target: Path) -> None:
    """Copy a folder; its files are shared, since nothing ever writes to a file in use."""
    for folder, _, names in os.walk(source):
        to = target / os.path.relpath(folder, source)
        to.mkdir()
        for name in names:
            os.link(os.path.join(folder, name), to / name)

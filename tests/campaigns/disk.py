"""A disk that has lost power: what may be on it, given the calls made before.

POSIX promises little. The bytes of a file are as they were at its last fsync, and what was written
since may be there, may not, or may be torn, sector by sector. A name that was made, changed or
removed in a folder since the folder's last fsync may be so or not, each change by itself and
whatever others did; a rename happens whole or not at all.

`Recorder` watches the calls of an operation and what the files held before each. `states` gives
the disks that may be found if the power fails after any number of them.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.campaigns.calls import Patches

__all__ = ["Recorder", "Recording", "State", "states"]

SECTOR = 512

#: A change of one folder that happens whole or not at all: names, and the inode of each or None.
Change = dict[str, int | None]


@dataclass(frozen=True)
class Step:
    """A call, and what the files held just before it."""

    what: str  #: "change" of a folder, "fsync" of a file or folder, "return" of the operation
    inode: int = 0  #: the folder that changes, or what is synced
    change: Change = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)  #: of every file, by inode
    call: str = ""  #: for people


@dataclass(frozen=True)
class Recording:
    """An operation as a disk sees it."""

    root: int  #: inode of the folder that all lies in
    folders: dict[int, dict[str, int]]  #: names and inodes in each folder, before
    contents: dict[int, bytes]  #: of every file, before
    steps: list[Step]


@dataclass(frozen=True)
class State:
    """What may be on a disk."""

    files: dict[str, bytes]  #: by path
    folders: tuple[str, ...]
    returned: bool  #: whether the operation had returned before the power failed
    after: str  #: the last call before

    @property
    def key(self) -> int:
        """Equal for equal disks of which the same is asked."""
        return hash((self.returned, self.folders, tuple(sorted(self.files.items()))))

    def make(self, root: Path) -> None:
        """Put it into a new folder."""
        for folder in ("", *self.folders):
            (root / folder).mkdir()
        for path, data in self.files.items():
            (root / path).write_bytes(data)


class Recorder:
    """Records what happens below a folder while it is entered."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._busy = False
        self._patches = Patches(root, self._meet)
        self._known: dict[int, tuple[tuple[int, int], bytes]] = {}
        self._held: list[int] = []  # so that no inode is used again
        self._steps: list[Step] = []
        folders, contents = self._look()
        self.recording = Recording(root.stat().st_ino, folders, contents, self._steps)

    def __enter__(self) -> Recorder:
        self._patches.install()
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.remove()
        there, contents = self._look()
        self._steps.append(Step("return", contents=contents, call="return"))
        for number in self._held:
            os.close(number)
        folders = {inode: dict(entries) for inode, entries in self.recording.folders.items()}
        for step in self._steps:
            if step.what == "change":
                _apply(folders.setdefault(step.inode, {}), step.change)
        assert error[0] or all(folders.get(i, {}) == names for i, names in there.items()), (
            "something was made or removed that was not recorded"
        )

    def _look(self) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
        """All folders and files; a file is read again only where it has changed."""
        folders: dict[int, dict[str, int]] = {}
        contents = {}
        todo = [self._root]
        while todo:
            folder = todo.pop()
            entries = folders[os.stat(folder).st_ino] = {}
            for entry in os.scandir(folder):
                status = os.stat(entry.path)
                entries[entry.name] = status.st_ino
                if entry.is_dir():
                    todo.append(Path(entry.path))
                    continue
                stamp = status.st_size, status.st_mtime_ns
                known = self._known.get(status.st_ino)
                if known is None or known[0] != stamp:
                    known = stamp, Path(entry.path).read_bytes()
                    self._known[status.st_ino] = known
                contents[status.st_ino] = known[1]
        return folders, contents

    def _meet(self, what: str, paths: tuple[str, ...], real: Callable[[], Any]) -> Any:
        if self._busy or what not in _NOTED:
            return real()
        self._busy = True
        try:
            return self._note(what, [Path(path) for path in paths], real)
        finally:
            self._busy = False

    def _note(self, what: str, paths: list[Path], real: Callable[[], Any]) -> Any:
        first, last = paths[0], paths[-1]
        if what == "create" and first.exists():
            return real()
        call = f"{what} {first.relative_to(self._root)}"
        if what in ("fsync", "fdatasync"):
            step = Step("fsync", first.stat().st_ino, call=call)
        else:
            step = Step("change", last.parent.stat().st_ino, call=call)
        step = replace(step, contents=self._look()[1])
        moved = first.stat().st_ino if what in ("rename", "replace", "link") else 0
        given = real()
        if what in ("create", "mkdir"):
            step.change[last.name] = last.stat().st_ino
            self._held.append(os.open(last, os.O_RDONLY))
        elif what in ("unlink", "remove", "rmdir"):
            step.change[last.name] = None
        elif moved:
            assert first.parent == last.parent, "a rename from one folder to another"
            step.change[last.name] = moved
            if what != "link":
                step.change[first.name] = None
        self._steps.append(step)
        return given


_NOTED = {"create", "mkdir", "unlink", "remove", "rmdir", "rename", "replace", "link"}
_NOTED |= {"fsync", "fdatasync"}


def states(recording: Recording, rng: random.Random, limit: int) -> Iterator[State]:
    """The disks that may be found after every number of calls, at most `limit` for each.

    Where there are more, they are drawn by lot; all changes kept and all dropped are among them.
    """
    folders = {inode: dict(entries) for inode, entries in recording.folders.items()}
    synced = dict(recording.contents)  # what the files hold for certain
    pending: list[tuple[int, Change]] = []
    after = "nothing"
    for step in recording.steps:
        returned = step.what == "return"
        for inode in step.contents:
            synced.setdefault(inode, b"")
        disk = _Disk(recording.root, folders, synced, step.contents, pending)
        for files, names in disk.some(rng, limit):
            yield State(files, names, returned, after)
        after = step.call
        if step.what == "change":
            pending.append((step.inode, step.change))
        elif step.inode in step.contents:
            synced[step.inode] = step.contents[step.inode]
        else:
            for _, change in (entry for entry in pending if entry[0] == step.inode):
                _apply(folders.setdefault(step.inode, {}), change)
            pending = [entry for entry in pending if entry[0] != step.inode]


def _apply(entries: dict[str, int], change: Change) -> None:
    for name, inode in change.items():
        if inode is None:
            entries.pop(name, None)
        else:
            entries[name] = inode


@dataclass(frozen=True)
class _Disk:
    """What is certain, and what is not, at one moment."""

    root: int
    folders: dict[int, dict[str, int]]
    synced: dict[int, bytes]
    contents: dict[int, bytes]
    pending: list[tuple[int, Change]]

    def some(
        self, rng: random.Random, limit: int
    ) -> Iterator[tuple[dict[str, bytes], tuple[str, ...]]]:
        """Files and folders of the disks that may be found."""
        dirty = [inode for inode, data in self.contents.items() if self.synced.get(inode) != data]
        choices: list[list[Any]] = [[True, False] for _ in self.pending]
        choices += [list(_KINDS) for _ in dirty]
        total = 1
        for choice in choices:
            total *= len(choice)
        chosen: Iterator[tuple[Any, ...]]
        if total <= limit:
            chosen = itertools.product(*choices)
        else:
            all_kept = tuple(choice[0] for choice in choices)
            all_lost = tuple(choice[-1] for choice in choices)
            lots = [tuple(map(rng.choice, choices)) for _ in range(limit - 2)]
            chosen = iter([all_kept, all_lost, *lots])
        for made in chosen:
            kept = made[: len(self.pending)]
            kinds = dict(zip(dirty, made[len(self.pending) :], strict=True))
            yield self._one(kept, kinds, rng)

    def _one(
        self, kept: tuple[bool, ...], kinds: dict[int, str], rng: random.Random
    ) -> tuple[dict[str, bytes], tuple[str, ...]]:
        folders = {inode: dict(entries) for inode, entries in self.folders.items()}
        for is_kept, (inode, change) in zip(kept, self.pending, strict=True):
            if is_kept:
                _apply(folders.setdefault(inode, {}), change)
        files: dict[str, bytes] = {}
        names: list[str] = []
        todo = [("", self.root)]
        while todo:
            path, folder = todo.pop()
            for name, inode in sorted(folders.get(folder, {}).items()):
                if inode not in self.contents and inode not in self.synced:
                    names.append(path + name)
                    todo.append((f"{path}{name}/", inode))
                elif inode in kinds:
                    old, new = self.synced.get(inode, b""), self.contents[inode]
                    files[path + name] = _KINDS[kinds[inode]](old, new, rng)
                else:  # one that was removed is as it was when it was synced
                    files[path + name] = self.contents.get(inode, self.synced.get(inode, b""))
        return files, tuple(sorted(names))


def _torn(old: bytes, new: bytes, rng: random.Random) -> bytes:
    """Some sectors as they were, some as they were to be, some empty; cut off anywhere."""
    size = rng.choice([len(old), len(new), rng.randrange(max(len(old), len(new)) + 1)])
    out = bytearray(size)
    for at in range(0, size, SECTOR):
        source = rng.choice([old, new, b""])[at : min(at + SECTOR, size)]
        out[at : at + len(source)] = source
    return bytes(out)


#: What may become of a file that was written to since its last fsync.
_KINDS: dict[str, Callable[[bytes, bytes, random.Random], bytes]] = {
    "new": lambda old, new, rng: new,
    "torn": _torn,
    "zeros": lambda old, new, rng: bytes(len(new)),
    "noise": lambda old, new, rng: rng.randbytes(len(new)),
    "old": lambda old, new, rng: old,
}

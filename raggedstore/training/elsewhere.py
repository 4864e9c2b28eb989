"""Which epoch is whose, where several processes begin epochs of one loader, and what they lost.

Processes that go through an epoch together, as torch's workers do, are a group. Each process that
begins an epoch adds an entry to a log that all of them have, and then reads it. The system puts the
entries one after another, so that all read the same, and what follows from it each works out alone:
the first of a group takes the epoch after that of the group before it, and the others find it.

So nobody waits for anybody or holds a lock, and a process that is killed stops no other. Likewise
each notes what it had to set aside, for the process that started it to know.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from multiprocessing import context, reduction
from typing import Any

import numpy as np

from raggedstore.errors import StorageError
from raggedstore.training.report import Quarantined

__all__ = ["Elsewhere", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a process adds to the log when it begins an epoch: ints, in this order.

    Parameters
    ----------
    starter, change
        The process whose loader this one has a copy of, and as of which of its changes. The entries
        of others do not matter to it.
    seed, members, round
        Which group it is of: a number that its members have in common, how many they are, and how
        many epochs each has begun before.
    member
        Which of them it is, from 0.
    epoch, fixed
        The epoch that its loader is at. It is the group's where that is the first one, or where it
        is fixed, as by a state that was loaded.
    process
        Which process that is.
    """

    starter: int
    change: int
    seed: int
    members: int
    round: int
    member: int
    epoch: int
    fixed: int
    process: int


class _Log:
    """A file without a name, to the end of which any number of processes write."""

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
        self.fd = fd
        weakref.finalize(self, os.close, fd).atexit = False

    def __len__(self) -> int:
        return os.fstat(self.fd).st_size

    def append(self, data: bytes, what: str) -> None:
        try:
            if os.write(self.fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            where = tempfile.gettempdir()
            raise StorageError(f"{where}: could not note {what}: {error}") from error

    def read(self, start: int = 0) -> bytes:
        return os.pread(self.fd, len(self) - start, start)


class Elsewhere:
    """The logs, which processes share that were forked or spawned with it.

    Any other copy has logs of its own, as the copy of the loader goes its own way.
    """

    def __init__(self, begun: int | None = None, lost: int | None = None) -> None:
        self._begun, self._lost = _Log(begun), _Log(lost)
        self._read = 0  # bytes of what was lost that were looked at
        #: What was asked for last, of how long a log, and what it was.
        self._known: tuple[tuple[int, int, int], int | None] | None = None

    def __reduce__(self) -> tuple[Callable[..., Elsewhere], tuple[Any, ...]]:
        if context.get_spawning_popen() is None:
            return Elsewhere, ()
        return _passed_on, (reduction.DupFd(self._begun.fd), reduction.DupFd(self._lost.fd))

    def begin(self, entry: Entry) -> int:
        """The epoch that a process begins, and all of its group with it."""
        row = list(astuple(entry))
        self._begun.append(np.array(row, np.int64).tobytes(), "the beginning of an epoch")
        rows = self._rows(entry.starter, entry.change)
        epochs, _ = _resolved(rows)
        return [epoch for other, epoch in zip(rows, epochs, strict=True) if other == row][-1]

    def last(self, starter: int, change: int) -> int | None:
        """The epoch of the group that began last, of those that have this starter and change."""
        asked = starter, change, len(self._begun)
        known = self._known
        if known is None or known[0] != asked:
            known = self._known = asked, _resolved(self._rows(starter, change))[1]
        return known[1]

    def _rows(self, starter: int, change: int) -> list[list[int]]:
        rows = np.frombuffer(self._begun.read(), np.int64).reshape(-1, len(Entry.__slots__))
        rows = rows[(rows[:, 0] == starter) & (rows[:, 1] == change)]
        return rows.tolist()  # type: ignore[no-any-return]

    def set_aside(self, starter: int, lost: Sequence[Quarantined]) -> None:
        """Note what this process set aside, for the one that started it."""
        lines = (json.dumps([starter, *astuple(one)]) + "\n" for one in lost)
        self._lost.append("".join(lines).encode(), "what was set aside")

    def was_set_aside(self, starter: int) -> list[Quarantined]:
        """What those set aside that this one has started, and was not asked for yet."""
        if len(self._lost) == self._read:
            return []
        whole, end, _ = self._lost.read(self._read).rpartition(b"\n")
        self._read += len(whole + end)
        found = []
        for line in whole.splitlines():
            with suppress(ValueError):  # behind one that a full disk has cut, which was an error
                by, *rest = json.loads(line)
                found += [Quarantined(*rest)] if by == starter else []
        return found


def _passed_on(begun: Any, lost: Any) -> Elsewhere:
    return Elsewhere(begun.detach(), lost.detach())


def _resolved(rows: list[list[int]]) -> tuple[list[int], int | None]:
    """The epoch that each entry comes to, and that of the last group to begin."""
    epochs: list[int] = []
    came: Counter[tuple[int, ...]] = Counter()
    groups: dict[tuple[int, ...], int] = {}
    last: int | None = None
    for _, _, seed, members, number, member, epoch, fixed, _ in rows:
        # Where a seed comes again, so does each member: with the next group of that seed.
        who = seed, members, number, member
        group = seed, members, number, came[who]
        came[who] += 1
        if group not in groups:
            last = groups[group] = epoch if fixed or last is None else last + 1
        epochs.append(groups[group])
    return epochs, last

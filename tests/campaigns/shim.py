"""The n-th file operation of this process fails: in C where there is gcc, else in Python.

Two injectors that are steered alike. `Preloaded` is the library made of shim.c, which must have
been named in LD_PRELOAD when the process began; it meets HDF5's own writes too. `Patched` puts
itself in place of Python's functions and so meets only what the library does itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import raggedstore as rs
from tests.campaigns.calls import Patches

__all__ = ["FAULTS", "SHORT", "Injector", "Patched", "Preloaded", "build", "injector"]

ONCE, ALL, ALIKE = range(3)  # which calls after the failing one fail as well, as in shim.c
SHORT = "short"  #: a write takes half of its bytes
FULL = "full"  #: ENOSPC, and again for every later call of the same kind on the same file
GONE = "gone"  #: EIO, and again for every later call

#: The ways to fail: an error, and which of the calls after it fail likewise.
FAULTS: dict[str, tuple[int, int]] = {
    **{
        name: (getattr(errno, name), ONCE)
        for name in ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EMFILE", "EINTR")
    },
    SHORT: (-1, ONCE),
    FULL: (errno.ENOSPC, ALIKE),
    GONE: (errno.EIO, ALL),
}

_OURS = f"{Path(rs.__file__).parent}/"
_LIBRARY = "RAGGEDSTORE_SHIM"  # the environment variable that names the preloaded library


class Injector(Protocol):
    """Counts the calls on files below a folder, and makes one of them fail."""

    def arm(self, number: int, fault: str) -> None:
        """Count from 1; make call `number` fail (0: none)."""

    def disarm(self) -> tuple[list[str], int]:
        """The calls that were made, as "what path", and the number of the one that failed."""

    def note_sites(self) -> dict[int, str]:
        """From now on note where each call comes from: see `site`."""


def site() -> str:
    """Where a call comes from: the lines of raggedstore that it passed through, from the inside."""
    frame, lines = sys._getframe(1), []
    while frame := frame.f_back:
        code = frame.f_code
        if code.co_filename.startswith(_OURS):
            lines.append(f"{code.co_qualname}:{frame.f_lineno}")
    return " ".join(lines)


def build(folder: Path) -> dict[str, str] | None:
    """Compile shim.c; the environment to begin a process with, or None where that cannot be."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    return {"LD_PRELOAD": str(library), _LIBRARY: str(library)}


def injector(root: Path) -> Injector:
    """The injector of this process, for files below `root`."""
    library = os.environ.get(_LIBRARY)
    return Preloaded(library, root) if library else Patched(root)


class Preloaded:
    """The library that this process began with."""

    def __init__(self, library: str, root: Path) -> None:
        self._shim = ctypes.CDLL(library)
        self._shim.shim_call.restype = ctypes.c_char_p
        self._shim.shim_disarm.restype = ctypes.c_long
        self._shim.shim_fired.restype = ctypes.c_long
        self._shim.shim_watch(str(root).encode())

    def arm(self, number: int, fault: str) -> None:
        self._shim.shim_arm(ctypes.c_long(number), *FAULTS[fault])

    def note_sites(self) -> dict[int, str]:
        sites: dict[int, str] = {}

        @ctypes.CFUNCTYPE(None, ctypes.c_long)
        def note(number: int) -> None:
            sites[number] = site()

        self._note = note  # which C holds no reference to
        self._shim.shim_note(note)
        return sites

    def disarm(self) -> tuple[list[str], int]:
        count = self._shim.shim_disarm()
        self._shim.shim_note(None)
        calls = [self._shim.shim_call(ctypes.c_long(i)).decode() for i in range(count)]
        return calls, int(self._shim.shim_fired())


class Patched:
    """Python's own functions, replaced."""

    def __init__(self, root: Path) -> None:
        self._calls: list[str] = []
        self._number = self._fired = 0
        self._fault = FAULTS["EIO"]
        self._sites: dict[int, str] | None = None
        self._patches = Patches(root, self._meet)

    def arm(self, number: int, fault: str) -> None:
        self._calls, self._number, self._fired, self._fault = [], number, 0, FAULTS[fault]
        self._patches.install()

    def disarm(self) -> tuple[list[str], int]:
        self._patches.remove()
        self._sites = None
        return self._calls, self._fired

    def note_sites(self) -> dict[int, str]:
        self._sites = {}
        return self._sites

    def _meet(self, what: str, paths: tuple[str, ...], real: Callable[[], Any]) -> Any:
        self._calls.append(f"{what} {paths[0]}")
        count, chosen = len(self._calls), self._number
        if self._sites is not None:
            self._sites[count] = site()
        code, lasting = self._fault
        later = 0 < chosen < count and (
            lasting == ALL or (lasting == ALIKE and self._calls[-1] == self._calls[chosen - 1])
        )
        if code < 0 or not (count == chosen or later):  # a short write takes C to make
            return real() if what not in ("fsync", "fdatasync") else None
        self._fired = self._fired or count
        if what == "close":
            real()
        raise OSError(code, os.strerror(code), paths[0])

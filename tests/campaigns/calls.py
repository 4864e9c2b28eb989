"""Python's functions on files, each call led through a hook.

A hook is given what is called, the paths it is called on, and the call itself, which it may make,
note or refuse. Only calls on files below one folder come by. What HDF5 does in C does not.
"""

from __future__ import annotations

import builtins
import fcntl
import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Hook", "Patches"]

#: what, paths, the call
Hook = Callable[[str, tuple[str, ...], Callable[[], Any]], Any]

_ON_PATHS = {
    "mkdir": 1, "unlink": 1, "remove": 1, "rmdir": 1, "stat": 1, "lstat": 1, "access": 1,
    "listdir": 1, "scandir": 1, "rename": 2, "replace": 2, "link": 2, "truncate": 1,
}  # fmt: skip
_ON_DESCRIPTORS = (
    "fsync", "fdatasync", "close", "write", "pwrite", "read", "pread", "preadv", "fstat",
    "ftruncate",
)  # fmt: skip


class Patches:
    """Hooks on the functions of `os`, on `open` and on `flock`.

    Parameters
    ----------
    root
        Calls on files below it go through `hook`, all others pass by.
    """

    def __init__(self, root: Path, hook: Hook) -> None:
        self._root = f"{root}/"
        self._hook = hook
        self._paths: dict[int, str] = {}  # of descriptors opened while this is installed
        self._real: list[tuple[Any, str, Any]] = []

    def install(self) -> None:
        """Put the hooks in place."""
        for name, count in _ON_PATHS.items():
            self._replace(os, name, functools.partial(self._on_paths, name, count))
        for name in _ON_DESCRIPTORS:
            self._replace(os, name, functools.partial(self._on_descriptor, name))
        self._replace(fcntl, "flock", functools.partial(self._on_descriptor, "flock"))
        self._replace(os, "open", self._os_open)
        self._replace(builtins, "open", self._open)
        self._replace(io, "open", self._open)

    def remove(self) -> None:
        """Put everything back as it was."""
        for module, name, real in reversed(self._real):
            setattr(module, name, real)
        self._real.clear()

    def __enter__(self) -> Patches:
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _replace(self, module: Any, name: str, by: Callable[..., Any]) -> None:
        real = getattr(module, name)
        self._real.append((module, name, real))
        setattr(module, name, functools.wraps(real)(functools.partial(by, real)))

    def _below(self, path: Any) -> str | None:
        """`path` as a string where it lies below the root."""
        if isinstance(path, int):
            return self._paths.get(path)
        name = os.fspath(path)
        return name if isinstance(name, str) and f"{name}/".startswith(self._root) else None

    def _on_paths(self, what: str, count: int, real: Any, *given: Any, **options: Any) -> Any:
        paths = tuple(self._below(path) for path in given[:count])
        if not paths or None in paths:
            return real(*given, **options)
        return self._hook(what, paths, lambda: real(*given, **options))  # type: ignore[arg-type]

    def _on_descriptor(self, what: str, real: Any, file: Any, *rest: Any) -> Any:
        number = file if isinstance(file, int) else file.fileno()
        path = self._paths.get(number)
        if what == "close":
            self._paths.pop(number, None)
        if path is None:
            return real(file, *rest)
        return self._hook(what, (path,), lambda: real(file, *rest))

    def _os_open(self, real: Any, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        name = self._below(path)
        if name is None:
            return int(real(path, flags, *rest, **options))
        what = "create" if flags & os.O_CREAT else "open"
        number = int(self._hook(what, (name,), lambda: real(path, flags, *rest, **options)))
        self._paths[number] = name
        return number

    def _open(self, real: Any, path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        name = self._below(path)
        if name is None or isinstance(path, int):
            return real(path, mode, *rest, **options)
        options |= zip(("buffering", "encoding", "errors", "newline"), rest, strict=False)
        opener = options.pop("opener", None)
        options.pop("buffering", None)
        what = "open" if mode[0] == "r" else "create"
        raw_mode = mode.replace("b", "").replace("t", "")
        raw = self._hook(what, (name,), lambda: _Raw(name, raw_mode, opener=opener))
        raw.patches, raw.path = self, name
        self._paths[raw.fileno()] = name
        buffered: Any = io.BufferedReader(raw) if raw_mode == "r" else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, **options)


class _Raw(io.FileIO):
    """A file opened by `open`, whose calls go through the hook as well."""

    patches: Patches | None = None
    path = ""

    def _call(self, what: str, real: Callable[[], Any]) -> Any:
        if self.patches is None or not self.patches._real:
            return real()
        return self.patches._hook(what, (self.path,), real)

    def write(self, data: Any, /) -> int:
        return int(self._call("write", lambda: io.FileIO.write(self, data)))

    def readinto(self, buffer: Any, /) -> int:
        return int(self._call("read", lambda: io.FileIO.readinto(self, buffer)))

    def readall(self) -> bytes:
        return bytes(self._call("read", lambda: io.FileIO.readall(self)))

    def close(self) -> None:
        if self.closed:
            return
        if self.patches is not None:
            self.patches._paths.pop(self.fileno(), None)
        self._call("close", lambda: io.FileIO.close(self))

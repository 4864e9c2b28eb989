"""Child processes in which cases may crash, hang and take up memory, and are found to.

A child is given the cases in JSON. It says before each that it begins, and then what came of it, a
line each; so where a child dies, it is known of what, and another goes on with the rest.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import raggedstore as rs

__all__ = ["alarm", "answers", "limit_memory", "serve", "shared"]

WORDS = 3000  # characters of what a dying child says that are told


def shared() -> Path | None:
    """A folder in memory, where there is one."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None


def limit_memory(size: int) -> None:
    """Let this process have so many bytes of address space above what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """End the process, and say where it was, unless what is done in here takes less."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def serve(one: Callable[[Any], Any], memory: int) -> None:
    """The child: do each of the cases that come in, which gives a dataclass."""
    cases = json.load(sys.stdin)
    limit_memory(memory)
    for case in cases:
        print(json.dumps(case), flush=True)
        print(json.dumps(asdict(one(case))), flush=True)


def answers(
    arguments: Sequence[str], cases: Sequence[Any], at_once: int | None = None
) -> Iterator[tuple[Any, dict[str, Any], tuple[str, str]]]:
    """Each case, what came of it, and where a child died of it: "hang" or "crash", and its words.

    Parameters
    ----------
    arguments
        Of Python, to begin a child that serves.
    at_once
        Cases of one child, at most. Each has a folder of its own as TMPDIR.
    """
    left = list(cases)
    while left:
        with (
            tempfile.TemporaryDirectory(dir=shared()) as folder,
            tempfile.TemporaryFile() as told,
            subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=told, text=True, cwd=Path(rs.__file__).parents[1],
                env={**os.environ, "TMPDIR": folder},
            ) as child,
        ):  # fmt: skip
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps(left[:at_once]))
            child.stdin.close()
            begun = None
            for line in child.stdout:
                said = json.loads(line)
                if not isinstance(said, dict):
                    begun = said
                    continue
                yield begun, said, ("", "")
                left.remove(begun)
                begun = None
            if child.wait():
                told.seek(0)
                words = told.read().decode(errors="replace")[-WORDS:]
                if begun is None:
                    raise RuntimeError(f"the child died by itself:\n{words}")
                kind = "hang" if "Timeout" in words else "crash"
                yield begun, {}, (kind, f"status {child.returncode}: {words}")
                left.remove(begun)

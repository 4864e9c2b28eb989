"""Memory of a process and all that it started.

Twice: what they hold that no file on a disk backs, which is their own (anonymous) memory, of pages
that are shared after a fork each process's part, and shared memory, in which workers hand over
batches; and with pages of mapped files, which the kernel may take back when it needs them. The
second is what `top` shows as resident.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil

EVERY_SECONDS = 0.05


class Held(NamedTuple):
    """Bytes of memory."""

    own: int  #: that no file backs
    resident: int  #: with pages of mapped files


def held_by(root: psutil.Process) -> Held:
    """What a process and its descendants hold now."""
    processes = [root]
    try:
        processes += root.children(recursive=True)
    except psutil.Error:
        return Held(0, 0)
    own = resident = 0
    mapped: set[tuple[int, int]] = set()
    opened: dict[tuple[int, int], int] = {}
    for process in processes:
        folder = Path(f"/proc/{process.pid}")
        try:
            held = _proportional(folder / "smaps_rollup")
            own, resident = own + held.own, resident + held.resident
            mapped |= _mapped(folder / "maps")
            opened |= _opened(folder / "fd")
        except (OSError, KeyError):  # it has just ended
            continue
    # Batches under way: sent by one process and not yet mapped by another.
    sent = sum(size for file, size in opened.items() if file not in mapped)
    return Held(own + sent, resident + sent)


def _proportional(rollup: Path) -> Held:
    lines = (line.split() for line in rollup.read_text().splitlines()[1:])
    kibibytes = {line[0]: int(line[1]) for line in lines}
    own = kibibytes["Pss_Anon:"] + kibibytes["Pss_Shmem:"]
    return Held(1024 * own, 1024 * kibibytes["Pss:"])


def _mapped(maps: Path) -> set[tuple[int, int]]:
    """Device and inode of the files in shared memory that a process has mapped."""
    found = set()
    for line in maps.read_text().splitlines():
        if "/dev/shm/" in line:
            _, _, _, device, inode, _ = line.split(maxsplit=5)
            major, minor = (int(part, 16) for part in device.split(":"))
            found.add((os.makedev(major, minor), int(inode)))
    return found


def _opened(descriptors: Path) -> dict[tuple[int, int], int]:
    """Bytes of the files in shared memory that a process has open, by device and inode."""
    found = {}
    for entry in os.scandir(descriptors):
        try:
            if os.readlink(entry.path).startswith("/dev/shm/"):
                stat = os.stat(entry.path)
                found[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
        except OSError:  # it has just been closed
            continue
    return found


def peak(process: subprocess.Popen[str], seconds: float) -> Held:
    """The most that a process and its descendants hold until it ends, looked at 20 times a second.

    The most of either, not at one time. A peak that is shorter may be missed. After `seconds` it
    looks no more.
    """
    root = psutil.Process(process.pid)
    most = Held(0, 0)
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        most = Held(*map(max, most, held_by(root)))
        time.sleep(EVERY_SECONDS)
    return most

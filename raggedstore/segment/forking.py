"""Code that no fork may come into the midst of.

Blosc2 has a lock of its own, in C, for compressing. A child that is forked while another thread
holds it would wait for that thread, which the child doesn't have, as soon as it compresses
anything. So a fork waits until nobody compresses, as `hdf5_lock` has it wait until nobody is in
libhdf5. Many threads may compress at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_fork"]

_door = threading.Lock()  # who goes in passes it; a fork keeps it shut
_changed = threading.Condition()
_inside = 0


@contextmanager
def no_fork() -> Iterator[None]:
    """A block that forks wait for; none may be made within it."""
    global _inside
    with _door, _changed:
        _inside += 1
    try:
        yield
    finally:
        with _changed:
            _inside -= 1
            _changed.notify_all()


def _before_fork() -> None:
    _door.acquire()
    with _changed:
        _changed.wait_for(lambda: not _inside)


os.register_at_fork(
    before=_before_fork, after_in_parent=_door.release, after_in_child=_door.release
)

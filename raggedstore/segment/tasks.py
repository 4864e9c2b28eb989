"""Tasks that a read is made of, done in several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

__all__ = ["Task", "run"]

Task = Callable[[], None]


def run(tasks: list[Task], pool: ThreadPoolExecutor | None, threads: int) -> None:
    """Do all tasks, in this thread and up to `threads` - 1 others; the first error is raised."""
    if pool is None or len(tasks) < 2 or threads < 2:
        for task in tasks:
            task()
        return
    left = deque(tasks)

    def work() -> None:
        while True:
            try:
                task = left.popleft()
            except IndexError:
                return
            task()

    others: list[Future[None]] = []
    with suppress(RuntimeError):  # the interpreter ends, or has no more threads: all is done here
        others += (pool.submit(work) for _ in range(min(threads, len(tasks)) - 1))
    try:
        work()
    finally:
        left.clear()
        # One that has not begun has nothing to do any more: the pool may be busy elsewhere.
        running = [other for other in others if not other.cancel()]
        errors = [other.exception() for other in running]
    for error in errors:
        if error is not None:
            raise error

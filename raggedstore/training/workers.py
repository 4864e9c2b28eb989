"""Pools of threads and processes that run a user's function, in the order asked for.

They are there from an iteration's first read to its end, however that comes: stopping them takes no
lock and waits for nobody's answer, so that garbage collection may do it in the midst of anything.
Each worker is given one task at a time, and the results are put into order.
"""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from raggedstore.errors import UsageError

__all__ = ["Pool", "Processes", "Threads"]

Task = tuple[Any, ...]

#: How long a process that was told to end is waited for before it is killed.
_PATIENCE = 1.0


class Pool:
    """Who does the work: here the one who asks."""

    workers = 1

    def run(self, work: Callable[..., Any], tasks: Sequence[Task]) -> list[Any]:
        """``work(*task)`` for each of the `tasks`, in order; the first error is raised."""
        return [work(*task) for task in tasks]

    def stop(self) -> None:
        """Let the workers go."""


class _Stopped(Exception):
    """The iteration is over."""


class Threads(Pool):
    """Daemon threads, so that one that never comes back does not keep the interpreter."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._results: SimpleQueue[Any] = SimpleQueue()
        self._begun = self._stopped = False

    def run(self, work: Callable[..., Any], tasks: Sequence[Task]) -> list[Any]:
        if not self._begun:
            self._begun = True
            for _ in range(self.workers):
                queues = (self._tasks, self._results)
                # A thread knows the queues and not this pool, which can thus be collected.
                threading.Thread(
                    target=_work_in_thread, args=queues, name="raggedstore-map", daemon=True
                ).start()
        left = deque(enumerate(tasks))
        results: list[Any] = [None] * len(tasks)
        errors: dict[int, BaseException] = {}
        busy = 0
        while left or busy:
            while left and busy < self.workers:
                number, task = left.popleft()
                self._tasks.put((number, work, task))
                busy += 1
            got = self._results.get()
            if got is None or self._stopped:
                raise _Stopped
            number, result, error = got
            busy -= 1
            results[number] = result
            if error is not None:
                # Those before it are all begun, and the first of them to fail is the one to raise.
                errors[number] = error
                left.clear()
        if errors:
            raise errors[min(errors)]
        return results

    def stop(self) -> None:
        self._stopped = True
        self._results.put(None)
        for _ in range(self.workers):
            self._tasks.put(None)


def _work_in_thread(tasks: SimpleQueue[Any], results: SimpleQueue[Any]) -> None:
    while (got := tasks.get()) is not None:
        number, work, task = got
        try:
            results.put((number, work(*task), None))
        except BaseException as error:  # whatever it is, it belongs to who asked
            results.put((number, None, error))
        del got, work, task


class Processes(Pool):
    """Processes, each with a pipe of its own, which ends when this process does.

    They are spawned: a fork of a process with threads may find any lock held. Only one task at a
    time is with a process, so that never do both ends of a pipe wait to be rid of something.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._sent: bytes | None = None  # the work that the processes have
        self._pid = os.getpid()
        self._stopped = False

    def _begin(self, work: bytes) -> None:
        import multiprocessing

        if multiprocessing.current_process().daemon:
            raise UsageError(
                "processes= cannot be had in a process that may start none, such as a worker of "
                "PyTorch's DataLoader; nor in a script without if __name__ == '__main__'"
            )
        context = multiprocessing.get_context("spawn")
        for _ in range(self.workers):
            self._check_stopped()
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_work_in_process, args=(theirs,), name="raggedstore-map", daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)
            try:
                self._check_stopped()  # before it was in the list?
            except _Stopped:
                process.terminate()
                raise
        for pipe in self._pipes:
            self._send(pipe, work)
        self._sent = work

    def run(self, work: Callable[..., Any], tasks: Sequence[Task]) -> list[Any]:
        from multiprocessing.connection import wait

        if self._pid != os.getpid():
            raise UsageError("this iterator was made before a fork: iterate over the loader anew")
        if self._sent is None:
            self._begin(pickle.dumps(work))
        left = deque(enumerate(tasks))
        results: list[Any] = [None] * len(tasks)
        errors: dict[int, BaseException] = {}
        idle, busy = list(self._pipes), dict[Any, int]()
        while left or busy:
            while left and idle:
                number, task = left.popleft()
                pipe = idle.pop()
                self._send(pipe, pickle.dumps(task, protocol=5))
                busy[pipe] = number
            for ready in wait(list(busy)):
                number = busy.pop(ready)
                idle.append(ready)  # type: ignore[arg-type]  # only pipes are waited for
                good, *made = self._receive(ready)
                if good:
                    results[number] = made[0]
                else:
                    # As in a pool of threads.
                    errors[number] = _error(*made)
                    left.clear()
        if errors:
            raise errors[min(errors)]
        return results

    def _check_stopped(self) -> None:
        if self._stopped:
            raise _Stopped

    def _send(self, pipe: Connection, data: bytes) -> None:
        try:
            pipe.send_bytes(data)
        except OSError:
            raise self._death(pipe) from None

    def _receive(self, pipe: Any) -> Any:
        try:
            data = pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._death(pipe) from None
        return pickle.loads(data)

    def _death(self, pipe: Any) -> Exception:
        if self._stopped:
            return _Stopped()
        process = self._processes[self._pipes.index(pipe)]
        process.join(_PATIENCE)
        return RuntimeError(
            f"a process that a transform runs in has died, with exit code {process.exitcode}: "
            f"killed for want of memory, or by a crash in native code, or the script that was "
            f"started lacks if __name__ == '__main__'"
        )

    def stop(self) -> None:
        self._stopped = True
        if self._pid != os.getpid():
            return  # they are the parent's
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join(_PATIENCE)


class _Remote(Exception):
    """The traceback of an error in another process."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def _error(pickled: bytes | None, name: str, text: str) -> BaseException:
    """The error of another process, which says where it was raised."""
    error: BaseException
    try:
        if pickled is None:
            raise ValueError
        error = pickle.loads(pickled)
    except Exception:  # there are errors that pickle and do not come back
        error = RuntimeError(f"a transform raised {name}")
    error.__cause__ = _Remote(text)
    return error


def _work_in_process(pipe: Connection) -> None:
    import signal

    # An interrupt from the keyboard goes to all processes: the loop decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sent = pipe.recv_bytes()
        work: Any = None
        while True:
            task = pipe.recv_bytes()
            try:
                work = work or pickle.loads(sent)
                data = pickle.dumps((True, work(*pickle.loads(task))), protocol=5)
            except BaseException as error:  # whatever it is, it belongs to who asked
                data = pickle.dumps((False, *_told(error)))
            pipe.send_bytes(data)
            del task, data
    except (EOFError, OSError):
        pass  # nobody wants anything any more


def _told(error: BaseException) -> tuple[bytes | None, str, str]:
    """An error as `_error` takes it."""
    name = f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    try:
        return pickle.dumps(error), name, text
    except Exception:
        return None, name, text

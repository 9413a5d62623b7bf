"""`the_guard`: this program's side of the guard, a process that does the killing where this one
cannot any more.
"""

from __future__ import annotations

import collections
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable

from . import guard
from .logs import Report, report_here

GIVE_UP = 10.0  # s, after which a process that SIGKILL does not end is left alone


class Guard:
    """The process that ends what jobs forked, if this process is killed.

    It runs while any pool is open that has had a worker. Whatever a thread wants of it is put
    into `_wishes`; whoever has `_lock` then, nobody ever waiting for it, fulfils all of them. So
    a finalizer or signal handler that comes in between may use pools too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wishes: collections.deque[Callable[[], None]] = collections.deque()
        self._users: dict[object, Report] = {}  # each with what it logs by
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, user: object, report: Report = report_here) -> None:
        """A pool has begun."""
        self._wish(lambda: self._users.update({user: report}))

    def release(self, user: object) -> None:
        """A pool has ended, if it had begun at all; with the last one the guard goes."""
        self._wish(lambda: self._release(user))

    def add(self, group: int) -> None:
        """Watch over a worker's process group."""
        self._wish(lambda: self._add(group))

    def remove(self, group: int) -> None:
        """A worker is gone."""
        self._wish(lambda: self._remove(group))

    def _wish(self, wish: Callable[[], None]) -> None:
        self._wishes.append(wish)
        while self._wishes and self._lock.acquire(blocking=False):
            try:
                while self._wishes:
                    self._wishes.popleft()()
            finally:
                self._lock.release()

    def _release(self, user: object) -> None:
        self._users.pop(user, None)
        if not self._users:
            self._stop()

    def _add(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def _remove(self, group: int) -> None:
        self._groups.discard(group)
        if self._process is not None:
            self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        try:
            if self._process is None:
                self._start()
                line = "".join(f"+{group}\n" for group in self._groups)
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode())
        except BrokenPipeError:  # somebody killed it: the next worker's start makes another
            self._stop()
        except OSError as error:
            report = next(iter(self._users.values()), report_here)
            report(logging.WARNING, "the guard process cannot be started: %s", error)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            cwd="/",
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(GIVE_UP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def forget(self) -> None:
        """In a fork of this process: the guard is the parent's."""
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.returncode = 0  # not ours to wait for
        self.__init__()  # type: ignore[misc]


the_guard = Guard()
os.register_at_fork(after_in_child=the_guard.forget)

__all__ = ["GIVE_UP", "Guard", "the_guard"]

"""`StoreLock`: one program at a time writes to a store.

A POSIX lock on a file beside the database: the kernel lets go of it when the program ends, however
that is, and keeps it apart from pids, which are others' in a container. No fork holds it. But a
process loses it as soon as it closes any descriptor of the file, and is never refused its own lock.
So this module alone opens the file, and knows the stores that this process writes to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time

from ..errors import StoreBusyError, StoreError

_MOST = 1000  # bytes that are read of who has it
_held: dict[str, int] = {}  # by path: the pid of the process that has it, this one or its parent
_guard = threading.Lock()


class StoreLock:
    """The lock of the store at ``path``; it makes a file of that name with ``.lock`` behind it."""

    def __init__(self, path: str) -> None:
        self._path = f"{path}.lock"
        self._fd = -1

    @property
    def held(self) -> bool:
        """Whether this process has it by this object."""
        return self._fd >= 0 and _held.get(self._path) == os.getpid()

    def take(self) -> None:
        """Take it; again is allowed.

        Raises:
            StoreBusyError: Another program has it, or another `SweepStore` of this one.
            StoreError: The file cannot be made.
        """
        if self.held:
            return
        with _guard:
            if _held.get(self._path) == os.getpid():
                raise StoreBusyError(
                    f"{self._path[:-5]} is written to by another SweepStore of this process: use "
                    "that one, or leave its `with` block first"
                )
            self._fd = fd = self._locked()
            while not self.is_there():  # somebody has deleted the file meanwhile
                os.close(fd)
                self._fd = fd = self._locked()
            _held[self._path] = os.getpid()
            with contextlib.suppress(OSError):  # no room: it is only told
                os.ftruncate(fd, 0)
                os.pwrite(fd, _who().encode(), 0)

    def _locked(self) -> int:
        """Return a descriptor of the file, with the lock."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(fd, _MOST, 0).decode(errors="replace").strip()
            os.close(fd)
            raise StoreBusyError(
                f"{self._path[:-5]} is written to by another program: {owner or 'unknown'}. "
                "One program at a time writes to a store; any may read it"
            ) from error
        return fd

    def is_there(self) -> bool:
        """Whether the file that is locked is the one that others find."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._path))  # noqa: PTH116
        except OSError:
            return False

    def release(self) -> None:
        """Let go of it; without it, harmless."""
        with _guard:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            if _held.get(self._path) == os.getpid():
                del _held[self._path]
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
            os.close(fd)  # in a fork that is its own descriptor: the parent's lock stays


def _who() -> str:
    command = " ".join(sys.argv[:3]) or "python"
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()}, `{command}`, since {since}"


__all__ = ["StoreLock"]

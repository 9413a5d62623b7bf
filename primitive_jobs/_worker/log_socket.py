"""The socket by which log records leave a worker: its pool has the other end.

Each record is one datagram. So any thread may send, and any process that a job forks, without a
lock; and a worker that is killed in the middle has sent the record, or has not.
"""

from __future__ import annotations

import _socket as socket  # all that is needed here, without what `socket` imports
import os

from .._wire.messages import LOGGED
from .._wire.present import now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_BUFFER = 256 << 10  # bytes; the kernel takes it twice, and no more than it grants anybody

levels: tuple[int, dict[str, int]] = 0, {}
"""What passes in the program: as `logging.disable` says; and the levels of loggers, by name."""
worker = 0
"""The pid of the worker, in its forks, too."""
_end: list[tuple[int, tuple[int, int]]] = []
"""The end to write to, and its inode and device."""
_write = os.write  # whatever a job puts into its place


def open_for(passing: tuple[int, dict[str, int]], out_of_reach: Callable[[int], int]) -> None:
    """Make the socket, and lend the pool its end; on the main thread, before anything may log.

    Args:
        passing: What passes in the program.
        out_of_reach: Moves a descriptor to where no job hits it by chance.
    """
    global levels, worker
    levels, worker = passing, os.getpid()
    assert now.lend is not None, "that of a worker is set"
    out, into = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        into.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        now.lend(out.fileno(), LOGGED)
    finally:
        out.close()
    fd = out_of_reach(into.detach())
    _end.append((fd, _identity(fd)))


def send(data: bytes) -> bool:
    """Send a record, once there is room; False: there is no such socket any more.

    Raises:
        OSError: It cannot be sent; EMSGSIZE where it is too large.
    """
    if not _end:
        return False
    fd, identity = _end[0]
    try:
        if _identity(fd) != identity:  # a job has closed it, and perhaps something else is there
            return False
    except OSError:
        return False
    _write(fd, data)
    return True


def _identity(fd: int) -> tuple[int, int]:
    state = os.fstat(fd)
    return state.st_ino, state.st_dev


__all__ = ["levels", "open_for", "send", "worker"]

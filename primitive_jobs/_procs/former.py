"""What the program that this process was before an exec(3) has left: workers, and their guard.

They die with it, or a moment later, as children of this process whom nobody knows any more.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path

from .._wire import notes
from . import guard
from .probe import children_of

_PATIENCE = (
    1.0  # s that one of them may take to die: the guard needs some ms for killing the others
)
_PAUSE = 0.002  # s, between two looks where nothing tells of a death
_DEAD = os.WEXITED | os.WNOHANG
_looked_in: list[int] = []  # the pid of the process that has looked; under the lock for starts


def reap_former() -> None:
    """Take them off the table; to be called before the first worker is started, once.

    Until then no child of this process that has a name of ours can be one of this program's; but
    where it has one itself, as a worker has, what it forks has it, too.
    """
    if _looked_in == [os.getpid()]:
        return
    _looked_in[:] = [os.getpid()]
    with contextlib.suppress(OSError):  # ECHILD, as a rule; or /proc is missing
        os.waitid(os.P_ALL, 0, _DEAD | os.WNOWAIT)
        if _has_name_of_ours("self"):
            return
        until = time.monotonic() + _PATIENCE
        for pid in children_of(os.getpid()):
            with contextlib.suppress(OSError):  # it is gone
                if _has_name_of_ours(pid):
                    _reap(pid, until - time.monotonic())


def _has_name_of_ours(pid: int | str) -> bool:
    # With the name of a job behind, of which the system keeps nothing: see `loop`.
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return name == guard.NAME or name.startswith(notes.NAME)


def _reap(pid: int, seconds: float) -> None:
    if os.waitpid(pid, os.WNOHANG)[0]:
        return
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):  # missing or refused
        until = time.monotonic() + seconds
        while time.monotonic() < until and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(_PAUSE)
        return
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll(max(0.0, seconds) * 1000)
    finally:
        os.close(fd)
    os.waitpid(pid, os.WNOHANG)

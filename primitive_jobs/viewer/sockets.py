"""Finds the sockets of pools in what the kernel lists of them; see `monitor.protocol`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..monitor.protocol import owner_of

PROC = Path("/proc")
_LISTENS = "00010000"  # of the column Flags: the socket accepts connections
_MOST = 1000  # that are tried: anybody may bind any number of names


class Found(NamedTuple):
    """A socket whose name says that it is of a pool of this user.

    Attributes:
        name: Its name.
        pid: The process that it should be of.
    """

    name: str
    pid: int


def find() -> list[Found]:
    """Return the sockets of this user's pools in this network namespace; raises OSError.

    Who they really are of is known only when they are connected to.
    """
    text = (PROC / "net/unix").read_text(encoding="utf-8", errors="replace")
    user = os.geteuid()
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) == 8 and fields[3] == _LISTENS and fields[7].startswith("@"):
            name = fields[7][1:]
            owner = owner_of(name)
            if owner is not None and owner.uid == user and _is_of(user, owner.pid):
                found.append(Found(name, owner.pid))
    return sorted(found, key=lambda each: each.pid)[:_MOST]


def _is_of(user: int, pid: int) -> bool:
    try:
        # A process that cannot be dumped belongs to root there: whose it is, the socket tells.
        return (PROC / str(pid)).stat().st_uid in (user, 0)
    except OSError:
        return False


__all__ = ["Found", "find"]

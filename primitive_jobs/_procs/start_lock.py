"""`start_lock`: held while a process is started, so that no fork comes in between.

A fork waits for it. Else it would find the locks of the resource trackers and of imports held by a
thread that it does not have.
"""

from __future__ import annotations

import os
import threading

from .._common.forks import Turn, in_forks

_lock = threading.RLock()


def start_lock() -> threading.RLock:
    """Return the lock of this process."""
    return _lock


def _before_fork() -> None:
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
in_forks(Turn.PARTS, _after_fork_in_child)

__all__ = ["start_lock"]

"""What is done in a fork of the process, in an order that does not hang on that of imports.

A pool that is abandoned there lets go of its jobs, and with them of objects of the user's. What
these do when they go may take a pool of the fork's own. So all that a pool stands on comes first.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable


class Turn(enum.IntEnum):
    """When it comes to a call."""

    PARTS = 0  # locks, processes and descriptors that are the parent's are given up
    POOLS = 1  # they are abandoned: their jobs have ended
    WAITERS = 2  # whoever waits for jobs in a way of his own hears of that


_calls: list[tuple[Turn, Callable[[], object]]] = []


def in_forks(turn: Turn, call: Callable[[], object]) -> None:
    """Have something called in each fork of the process."""
    _calls.append((turn, call))


def _in_fork() -> None:
    with contextlib.ExitStack() as rest:  # the others are called, whatever one of them raises
        for _, call in sorted(_calls, key=lambda each: each[0], reverse=True):
            rest.callback(call)


os.register_at_fork(after_in_child=_in_fork)

__all__ = ["Turn", "in_forks"]

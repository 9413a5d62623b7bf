"""`HiddenDeaths`: workers whose death no descriptor shows at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from .._procs.process import WorkerProcess

_LOOK = 0.1  # s between two looks


class HiddenDeaths:
    """Workers without a pidfd: what they have forked keeps open what would show their death.

    Args:
        died: Takes one that is dead.
        changed: Called when `pause` may have changed.

    Attributes:
        pause: Seconds after which they have to be looked at again; None: there are none.
    """

    pause: float | None = None

    def __init__(self, died: Callable[[WorkerProcess], None], changed: Callable[[], None]) -> None:
        self._died = died
        self._changed = changed
        self._processes: set[WorkerProcess] = set()
        self._next = 0.0

    def add(self, process: WorkerProcess) -> None:
        """Look at one from now on."""
        self._processes.add(process)
        self.pause = _LOOK
        self._changed()

    def discard(self, process: WorkerProcess) -> None:
        """Look at it no more."""
        self._processes.discard(process)
        if not self._processes:
            self.pause = None
            self._changed()

    def look(self) -> None:
        """Look at all, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK
        for process in list(self._processes):
            if process.is_dead():
                self._died(process)


__all__ = ["HiddenDeaths"]

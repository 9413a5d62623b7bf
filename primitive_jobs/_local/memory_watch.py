"""`MemoryWatch`: looks at what jobs with a memory limit hold, on a thread of its own.

It wakes up only while such a job runs.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Callable

from .._engine.events import OverMemory
from .._procs.probe import Unmeasurable, tree_memory
from ..logs import Report

MEMORY_PAUSE = 0.1  # s between two looks at the memory of running jobs that have a limit


class _Watched:
    """A worker whose job has a memory limit."""

    __slots__ = ("_attempt", "_limit", "failed", "pid", "slot")

    def __init__(self, slot: int, attempt: int, limit: int, pid: int) -> None:
        self.failed = False  # the last look
        self.slot = slot
        self._attempt = attempt
        self._limit = limit
        self.pid = pid

    def look(self, tell: Callable[[OverMemory], object]) -> None:
        """Measure, and tell if it is too much."""
        try:
            held = tree_memory(self.pid, self._limit)
        except Unmeasurable:
            tell(OverMemory(self.slot, self._attempt, None))
            return
        if held > self._limit:
            tell(OverMemory(self.slot, self._attempt, held))


class MemoryWatch:
    """Watches workers, on the thread that `run` is.

    Args:
        tell: Takes an `OverMemory` for each look at one that holds too much.
        report: Logs what cannot be measured.
    """

    def __init__(self, tell: Callable[[OverMemory], object], report: Report) -> None:
        self._tell = tell
        self._report = report
        self._orders: queue.SimpleQueue[_Watched | int | None] = queue.SimpleQueue()

    # --- for other threads -------------------------------------------------------------------

    def watch(self, slot: int, attempt: int, limit: int, pid: int) -> None:
        """Look at a worker, and all below it, from now on."""
        self._orders.put(_Watched(slot, attempt, limit, pid))

    def unwatch(self, slot: int) -> None:
        """Look at it no more."""
        self._orders.put(slot)

    def end(self) -> None:
        """Have the thread end."""
        self._orders.put(None)

    # --- the thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Be the thread."""
        watched: dict[int, _Watched] = {}
        look = math.inf  # when the next one is due
        while True:
            pause = max(0.0, look - time.monotonic()) if watched else None
            try:
                order = self._orders.get(timeout=pause)
            except queue.Empty:
                for item in watched.values():
                    self._look(item)
                look = time.monotonic() + MEMORY_PAUSE
                continue
            if order is None:
                return
            if not watched:
                look = time.monotonic() + MEMORY_PAUSE
            if isinstance(order, int):
                watched.pop(order, None)
            else:
                watched[order.slot] = order

    def _look(self, item: _Watched) -> None:
        try:
            item.look(self._tell)
            item.failed = False
        except Exception as error:  # noqa: BLE001 - it is logged, once in a row
            if not item.failed:
                text = "the memory of worker %d cannot be measured"
                report = self._report.about(item.pid, item.slot)
                report(logging.ERROR, text, item.pid, error=error)
            item.failed = True


__all__ = ["MEMORY_PAUSE", "MemoryWatch"]

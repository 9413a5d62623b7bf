"""`MemoryWatch`: looks at what jobs with a memory limit hold, on a thread of its own.

It wakes up only while such a job runs.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Callable

from .._engine.events import OverMemory, Unwatch, Watch
from .._procs.probe import Unmeasurable, tree_memory
from ..logs import Report

MEMORY_PAUSE = 0.1  # s between two looks at the memory of running jobs that have a limit


class _Watched:
    """A worker whose job has a memory limit."""

    __slots__ = ("_attempt", "_limit", "failed", "pid", "slot")

    def __init__(self, watch: Watch, pid: int) -> None:
        self.failed = False  # the last look
        self.slot = watch.slot
        self._attempt = watch.attempt
        self._limit = watch.limit
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
        self._orders: queue.SimpleQueue[_Watched | Unwatch | None] = queue.SimpleQueue()

    # --- for other threads -------------------------------------------------------------------

    def watch(self, order: Watch, pid: int) -> None:
        """Look at a worker, and all below it, from now on."""
        self._orders.put(_Watched(order, pid))

    def unwatch(self, order: Unwatch) -> None:
        """Look at it no more."""
        self._orders.put(order)

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
            if isinstance(order, Unwatch):
                watched.pop(order.slot, None)
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

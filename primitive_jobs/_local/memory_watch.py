"""`MemoryWatch`: looks at what jobs with a memory limit hold, on a thread of its own.

It wakes up only while such a job runs.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable

from .._engine.events import MemorySeen, OverMemory
from .._procs.available import anonymous_memory, available_memory
from .._procs.probe import Unmeasurable, peak_memory, tree_memory
from ..insight.traces import LocalTraces
from ..logs import Report

MEMORY_PAUSE = 0.1  # s between two looks at the memory of running jobs that have a limit
_KEPT = 20_000  # measurements
_LOOK = "look"
_CHANGE = 32  # the part of it by which what a worker holds has to change to be kept again


class _Watched:
    """A worker whose job has a memory limit."""

    __slots__ = ("_known", "_limit", "_traces", "attempt", "failed", "pid", "slot")

    def __init__(self, slot: int, attempt: int, limit: int, pid: int, traces: LocalTraces) -> None:
        self._traces = traces
        self.failed = False  # the last look
        self._known = 0  # what was kept last of what it held
        self.slot = slot
        self.attempt = attempt
        self._limit = limit
        self.pid = pid

    def look(
        self, tell: Callable[[OverMemory], object], seen: deque[tuple[float, int, int]]
    ) -> None:
        """Measure, keep that if it is news, and tell if it is too much."""
        kept = self._traces.held(self.attempt)
        try:
            held = tree_memory(self.pid, self._limit - kept) + kept
        except Unmeasurable:
            tell(OverMemory(self.slot, self.attempt, None))
            return
        if abs(held - self._known) > self._known // _CHANGE and held:
            self._known = held
            seen.append((time.monotonic(), self.pid, held))
        if held <= self._limit and self._traces.knows_peak(
            self.attempt
        ):  # between two looks, perhaps
            held = max(held, peak_memory(self.pid))
        if held > self._limit:
            tell(OverMemory(self.slot, self.attempt, held))


class MemoryWatch:
    """Watches workers, on the thread that `run` is.

    Args:
        tell: Takes an `OverMemory` for each look at one that holds too much, and a `MemorySeen`
            where it was asked for that.
        report: Logs what cannot be measured.

    Attributes:
        measured: See `Fleet`; written by the thread.
    """

    def __init__(self, tell: Callable[[OverMemory | MemorySeen], object], report: Report) -> None:
        self.measured: deque[tuple[float, int, int]] = deque(maxlen=_KEPT)
        self._tell = tell
        self._report = report
        self._orders: queue.SimpleQueue[_Watched | int | str | None] = queue.SimpleQueue()

    # --- for other threads -------------------------------------------------------------------

    def watch(self, slot: int, attempt: int, limit: int, pid: int, traces: LocalTraces) -> None:
        """Look at a worker, all below it and its checkpoints, from now on."""
        self._orders.put(_Watched(slot, attempt, limit, pid, traces))

    def unwatch(self, slot: int) -> None:
        """Look at it no more."""
        self._orders.put(slot)

    def look(self) -> None:
        """Tell once by `MemorySeen` what may be had, and what those that are watched use."""
        self._orders.put(_LOOK)

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
            if isinstance(order, str):
                self._see([*watched.values()])
                continue
            if not watched:
                look = time.monotonic() + MEMORY_PAUSE
            if isinstance(order, int):
                watched.pop(order, None)
            else:
                watched[order.slot] = order

    def _see(self, watched: list[_Watched]) -> None:
        available, used = 0, {}
        try:
            used = {(each.slot, each.attempt): anonymous_memory(each.pid) for each in watched}
            available = available_memory()
        except Exception as error:  # noqa: BLE001 - it is logged
            text = "the memory that is left cannot be read: jobs that need some start one by one"
            self._report(logging.ERROR, text, error=error)
        self._tell(MemorySeen(available, used))

    def _look(self, item: _Watched) -> None:
        try:
            item.look(self._tell, self.measured)
            item.failed = False
        except Exception as error:  # noqa: BLE001 - it is logged, once in a row
            if not item.failed:
                text = "the memory of worker %d cannot be measured"
                report = self._report.about(item.pid, item.slot)
                report(logging.ERROR, text, item.pid, error=error)
            item.failed = True


__all__ = ["MEMORY_PAUSE", "MemoryWatch"]

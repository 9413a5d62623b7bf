"""`MemoryWatch`: looks at what jobs with a memory limit hold, on a thread of its own.

Whoever has such a job begin stores that where the thread finds it when it looks next; so a short
job wakes nobody. The thread falls asleep after a second without any, and is woken by the next one:
that is stored before its caller looks whether the thread is asleep, and the thread says that it is
before it looks for the last time (see `lock_free`).

What a caller stores holds for as long as its offer is its own, which the thread sees by itself:
that caller may stand still before it stores it, and the dispatcher take its job over meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable

from .._engine.events import MemorySeen, OverMemory
from .._engine.fleet import Memory, Offered
from .._procs.available import anonymous_memory, available_memory, total_memory
from .._procs.probe import Unmeasurable, measurable, peak_memory, resident, resident_by, tree_memory
from .._procs.process import WorkerProcess
from ..logs import Report

MEMORY_PAUSE = 0.1  # s between two looks at the memory of running jobs that have a limit
_KEPT = 20_000  # measurements
_PATIENCE = 10  # looks at nobody, after which the thread falls asleep
_CHANGE = 32  # the part of it by which what a worker holds has to change to be kept again


class _Watched:
    """A worker whose job has a memory limit."""

    __slots__ = ("_known", "_limit", "_traces", "attempt", "failed", "pid", "slot")

    def __init__(self, process: WorkerProcess, attempt: int, limit: int) -> None:
        self._traces = process.traces
        self.failed = False  # the last look
        self._known = 0  # what was kept last of what it held
        self.slot = process.slot
        self.attempt = attempt
        self._limit = limit
        self.pid = process.pid

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


class MemoryWatch(Memory):
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
        self._watched: dict[int, _Watched] = {}  # by slot, as the dispatcher says
        self._offered: dict[int, tuple[Offered, _Watched]] = {}  # by attempt, as callers say
        self._asleep, self._idle = True, 0  # written by the thread alone
        self._orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    # --- for other threads -------------------------------------------------------------------

    def measures(self) -> bool:
        """Whether /proc shows how much memory processes hold."""
        return measurable()

    def held_by(self, worker: WorkerProcess) -> int | None:
        """Return what its process holds, if a job with a limit was there before."""
        return None if worker.statm is None else resident_by(worker.statm)

    def has_room(self, worker: WorkerProcess, room: int) -> bool:
        """Look how much its process holds."""
        try:
            return resident(worker.pid) <= room
        except Unmeasurable:
            return True

    def watch(self, worker: WorkerProcess, attempt: int, limit: int) -> None:
        """Look at a worker, all below it and its checkpoints, from now on."""
        self._watched[worker.slot] = _Watched(worker, attempt, limit)
        with contextlib.suppress(OSError):  # then all such jobs come by way of the dispatcher
            worker.open_statm()
        self._be_awake()

    def watch_offered(self, offer: Offered, limit: int) -> None:
        """The same, until the dispatcher takes the offer back."""
        self._offered[offer.attempt] = offer, _Watched(offer.worker, offer.attempt, limit)
        self._be_awake()

    def _be_awake(self) -> None:
        if self._asleep:
            self._orders.put(self._wake)

    def unwatch(self, slot: int) -> None:
        """Look at it no more."""
        self._watched.pop(slot, None)

    def total(self) -> int:
        """Return how much memory there is."""
        return total_memory()

    def look(self) -> None:
        """Tell once by `MemorySeen` what may be had, and what those that are watched use."""
        self._orders.put(self._see)

    def end(self) -> None:
        """Have the thread end."""
        self._orders.put(None)

    # --- the thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Be the thread."""
        look = math.inf  # when the next one is due
        while True:
            if not self._asleep and time.monotonic() >= look:
                self._look_at_all()
                look = time.monotonic() + MEMORY_PAUSE
            pause = None if self._asleep else max(0.0, look - time.monotonic())
            try:
                order = self._orders.get(timeout=pause)
            except queue.Empty:
                continue
            if order is None:
                return
            slept = self._asleep
            order()
            if slept and not self._asleep:
                look = time.monotonic() + MEMORY_PAUSE

    def _wake(self) -> None:
        self._asleep, self._idle = False, 0

    def _look_at_all(self) -> None:
        watched = list(self._watched.values())
        for attempt, (offer, item) in self._offered.copy().items():
            if offer.claims[0] is None:
                del self._offered[attempt]
            else:
                watched.append(item)
        for item in watched:
            self._look(item)
        self._idle = 0 if watched else self._idle + 1
        if self._idle >= _PATIENCE:
            self._asleep = True
            if self._watched or self._offered:  # since the look
                self._asleep = False

    def _see(self) -> None:
        available, used = 0, {}
        watched = list(self._watched.values())
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

"""`Spawner`: starts a pool's workers, one after the other, on a thread of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable

from .._engine.events import StartFailed
from .._procs import trackers
from .._procs.process import WorkerConfig, WorkerProcess
from .._procs.start_lock import start_lock
from .._wire.evidence import Evidence
from ..logs import Report


class Order:
    """A process to be started; `wanted` is cleared by the dispatcher when it is called off."""

    __slots__ = ("cpus", "slot", "spare", "wanted")

    def __init__(self, slot: int, cpus: int, spare: bool) -> None:
        self.slot = slot
        self.cpus = cpus
        self.spare = spare
        self.wanted = True


class Spawner:
    """Starts processes on the thread that `run` is.

    That thread must not end while a worker lives: the kernel sends a worker SIGKILL when the thread
    that started it ends.

    Args:
        config: How workers are started.
        tell: Takes a `WorkerProcess` or a `StartFailed` for each order.
        report: Logs what happens to the workers.
    """

    def __init__(
        self,
        config: WorkerConfig,
        tell: Callable[[WorkerProcess | StartFailed], object],
        report: Report,
    ) -> None:
        self._config = config
        self._tell = tell
        self._report = report
        self._queue: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._orders: dict[int, Order] = {}  # the dispatcher's; those that are not told of yet

    # --- on the dispatcher's thread ----------------------------------------------------------

    def order(self, slot: int, cpus: int = 1, *, spare: bool = False) -> None:
        """Have a worker started, whose jobs take so many CPUs."""
        self._orders[slot] = order = Order(slot, cpus, spare)
        self._queue.put(order)

    def call_off(self, slot: int) -> None:
        """Have no worker started, if that has not begun; it is told of as one that failed."""
        if slot in self._orders:
            self._orders[slot].wanted = False

    def told(self, slot: int) -> None:
        """Note that the dispatcher knows what became of an order."""
        self._orders.pop(slot, None)

    @property
    def busy(self) -> bool:
        """Whether there are orders that the dispatcher has heard nothing of."""
        return bool(self._orders)

    def end(self) -> None:
        """Have the thread end, after all orders."""
        self._queue.put(None)

    # --- the thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Be the thread."""
        order = self._queue.get()
        if order is None:
            return
        trackers.enter()
        try:
            while order is not None:
                self._start(order)
                order = self._queue.get()
        finally:
            trackers.leave()

    def _start(self, order: Order) -> None:
        if not order.wanted:
            self._tell(StartFailed(order.slot, Evidence(noted=0)))
            return
        try:
            config = self._config.for_cpus(order.cpus)
            if order.spare:
                config = config.for_spare()
            with start_lock():
                process = WorkerProcess(order.slot, config, self._report)
        except BaseException as error:  # noqa: BLE001 - it is the jobs' that wait for it
            self._tell(StartFailed(order.slot, Evidence(noted=0, error=error)))
        else:
            self._tell(process)


__all__ = ["Spawner"]

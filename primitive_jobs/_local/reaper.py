"""`Reaper`: ends a pool's workers, as many at a time as there are, each as fast as it goes."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import select
from collections.abc import Callable

from .._engine.events import Gone
from .._engine.poller import Bell
from .._procs.process import WorkerProcess
from .._wire.evidence import Evidence


class Reaper:
    """Has workers killed and reaped, on a thread of its own, which `run` is.

    Nothing in there waits for one of them: a worker that does not die, or does not tell its stack,
    since its file system hangs, holds up no other.

    Args:
        tell: Takes a `Gone` for each worker that is done with.
    """

    def __init__(self, tell: Callable[[Gone], object]) -> None:
        self._tell = tell
        self._orders: queue.SimpleQueue[tuple[WorkerProcess, bool] | None] = queue.SimpleQueue()
        self._bell = Bell()
        # The rest is the thread's alone.
        self._dying: list[WorkerProcess] = []
        self._ending = False

    # --- for other threads -------------------------------------------------------------------

    def take(self, process: WorkerProcess, *, ask_stack: bool = False) -> None:
        """Have a worker ended; ``ask_stack``: after it has told where its job is."""
        self._orders.put((process, ask_stack))
        self._bell.ring()

    def end(self) -> None:
        """Have the thread end, once nothing is left to be done."""
        self._orders.put(None)
        self._bell.ring()

    def close(self) -> None:
        """Give the descriptors back; in a fork of the process, too."""
        self._bell.close()

    # --- the thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Be the thread."""
        while True:
            self._take_orders()
            self._dying = [process for process in self._dying if not self._done_with(process)]
            if self._ending and not self._dying:
                return
            self._wait()

    def _take_orders(self) -> None:
        """Have all that are to die hold still first.

        Else each of many that compute would have to wait for a processor before it can die.
        """
        with contextlib.suppress(queue.Empty):
            while True:
                order = self._orders.get_nowait()
                if order is None:
                    self._ending = True
                    continue
                process, ask_stack = order
                self._dying.append(process)
                try:
                    process.hold_still(ask_stack=ask_stack)
                except Exception as error:  # noqa: BLE001 - it is logged; it is killed all the same
                    text = "worker %d could not be stopped before it is killed"
                    process.report(logging.ERROR, text, process.pid, error=error)

    def _done_with(self, process: WorkerProcess) -> bool:
        """Take one a step further; return whether that was the last."""
        try:
            if not (process.is_still() and process.kill() and process.is_gone()):
                return False
            evidence = process.end()
        except BaseException as error:  # noqa: BLE001 - it is logged
            text = "worker %d could not be ended properly"
            process.report(logging.ERROR, text, process.pid, error=error)
            evidence = Evidence(process.pid, error=error, left=process.put_down())
        self._tell(Gone(process.slot, evidence))
        return True

    def _wait(self) -> None:
        """Until there is an order, or something about one of the dying may have changed."""
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        shortest = math.inf
        for process in self._dying:
            death, pause = process.pause()
            if death:
                poller.register(process.death, select.POLLIN)
            shortest = min(shortest, pause)
        poller.poll(None if shortest is math.inf else math.ceil(shortest * 1000))
        self._bell.hush(0)

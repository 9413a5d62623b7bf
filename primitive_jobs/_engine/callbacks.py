"""`Callbacks`: the thread of a pool on which users' code runs."""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Callable

from ..logs import report_here


class Callbacks:
    """The thread for callbacks: what it is given, it calls. It does not hold the pool."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._ended = False
        self._then: Callable[[], object] | None = None

    def call(self, callback: Callable[[], object]) -> None:
        """Have it called; here and now, if the thread has ended."""
        self._queue.put(callback)
        if self._ended:
            self._run_late()

    def end(self, then: Callable[[], object]) -> None:
        """Have the thread end, after what was given before; the last thing it calls is ``then``."""
        self._then = then
        self._queue.put(None)

    def run(self) -> None:
        """Be the thread."""
        while (callback := self._queue.get()) is not None:
            self._call(callback)
            del callback
        self._ended = True
        self._run_late()
        then, self._then = self._then, None
        if then is not None:
            then()

    def _run_late(self) -> None:
        """Whoever takes a callback out of the queue runs it, on any thread."""
        with contextlib.suppress(queue.Empty):
            while True:
                callback = self._queue.get_nowait()
                if callback is not None:
                    self._call(callback)

    @staticmethod
    def _call(callback: Callable[[], object]) -> None:
        try:
            callback()  # raises nothing: see JobRecord.add_done_callback
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it is logged
            report_here(logging.ERROR, "a callback failed", error=error)


__all__ = ["Callbacks"]

"""`Unclosed`: workers that are gone, whose channels somebody may still be using."""

from __future__ import annotations

from collections.abc import Callable

from .._engine.fleet import LateSender
from .._procs.process import WorkerProcess


class Unclosed:
    """Closes workers that are gone, as soon as nobody uses them any more.

    Until then nobody else can get the number of a descriptor of theirs.

    Args:
        step: Does something whose failure is logged, and changes nothing.
        drop: Reads what is left in a worker's pipe, which nobody else uses, and closes it.
    """

    def __init__(
        self,
        step: Callable[[str, WorkerProcess, Callable[[], object]], None],
        drop: Callable[[WorkerProcess], None],
    ) -> None:
        self._step = step
        self._drop = drop
        self._late_senders: list[LateSender] = []
        self._gone: set[WorkerProcess] = set()
        self._given_up: set[WorkerProcess] = set()  # of these: they could not be killed

    def sends_late(self, sender: LateSender) -> None:
        """Keep a worker open while somebody may be sending."""
        self._close_what_is_unused()
        self._late_senders.append(sender)

    def gone(self, process: WorkerProcess) -> None:
        """Close a worker of which nothing is left."""
        self._drop(process)
        self._gone.add(process)
        self._close_what_is_unused()

    def given_up(self, process: WorkerProcess) -> None:
        """Keep a worker until the end, that could not be killed."""
        self._drop(process)
        self._given_up.add(process)
        self._gone.add(process)

    def close(self) -> None:
        """Try once more to kill those that were given up, and close all."""
        for process in self._given_up:
            self._step("ending it", process, process.end)
        for process in self._gone:
            self._step("closing", process, process.close)

    def _close_what_is_unused(self) -> None:
        self._late_senders = [sender for sender in self._late_senders if not sender.over]
        in_use = {sender.worker for sender in self._late_senders} | self._given_up
        unused = self._gone - in_use
        self._gone &= in_use
        for process in unused:
            self._step("closing", process, process.close)


__all__ = ["Unclosed"]

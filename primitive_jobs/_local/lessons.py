"""`Lessons`: tells workers that have had no job what others have imported, so that they do, too.

A spare may stand ready before the first job has imported anything. So whenever something is
learned, those that wait are told the names that they do not know. They import one after the other,
and look before each whether there is something else to do.

=================================  ================================================================
what may happen                    why no job is held up for nothing, and none is lost
=================================  ================================================================
a job is on its way already        it comes first; a worker that has had a job learns nothing more
a job comes during an import       it waits for the rest of this one, which siblings have needed;
                                   the other names are dropped
a job waits for the worker to      it is sent before the names: `ready` is called after the pool
become ready                       has given it a job
the worker is asked to leave       it leaves after the import at hand, or is killed
the worker dies of it              no job of it has begun; the spare after it imports the same
                                   before it is ready, and what pauses spares is in `staffing`
its jobs are taken back            with names between them, which are dropped: see `take_back`
=================================  ================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._procs.learned import Learned
from .._procs.process import WorkerProcess
from .._wire.messages import Kind
from .._wire.notes import NUMBER


class Lessons:
    """Used on the dispatcher's thread, as its fleet.

    Args:
        learned: What workers have imported; None: they tell nothing.
        processes: The workers, by slot; the same object each time.
        send: Sends a message to a worker, unless its death is coming.
    """

    def __init__(
        self,
        learned: Learned | None,
        processes: Mapping[int, WorkerProcess],
        send: Callable[[WorkerProcess, Kind, int, bytes], object],
    ) -> None:
        self._learned = learned
        self._processes = processes
        self._send = send
        if learned is not None:
            learned.tell = self._tell

    def ready(self, process: WorkerProcess) -> None:
        """Tell a worker that is ready, after it was given a job, if one waited for it."""
        process.is_ready = not process.link_lost
        self._teach(process)

    def _tell(self) -> None:
        for process in self._processes.values():
            self._teach(process)

    def _teach(self, process: WorkerProcess) -> None:
        learned = self._learned
        if learned is None or not process.is_ready or NUMBER.unpack_from(process.page)[0]:
            return
        new = learned.names[process.knows :]
        if new:
            process.knows = len(learned.names)
            self._send(process, Kind.LEARN, 0, "\n".join(new).encode())


__all__ = ["Lessons"]

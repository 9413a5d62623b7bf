"""`Lessons`: has spares that stand ready import what jobs have made others import.

A spare may stand ready before the first job has imported anything. So whenever something is
learned, the scheduler is told of each worker that does not know it. A spare that has had no job is
then sent the names, and counts as one that is not ready yet, until it has imported them.

=================================  ================================================================
what may happen                    why no job is held up for nothing, and none is lost
=================================  ================================================================
a job comes during the imports     another worker has it, or it waits, QUEUED, as for any that is
                                   coming: its time does not run, and what is free first has it
a job is on its way already        the scheduler knows that worker as busy, and it learns nothing
others learn more meanwhile        it is told that, too, once it is ready
the pool is shut down              who is not ready is killed
it dies of it, or hangs            as if it had done so before it was ready
=================================  ================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._engine.events import Lesson
from .._engine.fleet import Host, News
from .._procs.learned import Learned
from .._procs.process import WorkerProcess
from .._wire.messages import Kind


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

    def open(self, host: Host) -> None:
        """Begin."""
        self._host = host
        if self._learned is not None:
            # Later: it becomes known in the midst of the end of a job.
            self._learned.tell = lambda: host.tell(News(self._offer_all))

    def offer(self, process: WorkerProcess) -> None:
        """Tell the scheduler of a worker that does not know all."""
        if self._learned is not None and process.knows < len(self._learned.names):
            self._host.happened(Lesson(process.slot))

    def _offer_all(self) -> None:
        for process in list(self._processes.values()):
            self.offer(process)

    def teach(self, slot: int) -> None:
        """Send a worker the names that it does not know."""
        process, learned = self._processes[slot], self._learned
        assert learned is not None, "else nothing was offered"
        names = learned.names[process.knows :]
        process.knows = len(learned.names)
        self._send(process, Kind.LEARN, 0, "\n".join(names).encode())


__all__ = ["Lessons"]

"""`Observed`: what is read of a job beside its result, while it runs and after its end.

Nothing here blocks, and nothing raises for a job in whatever state but where it says so; None means
that it is not known.
"""

from __future__ import annotations

import math
from typing import Any

from ..options import check_count
from ..status import JobStatus
from .progress import Progress, progress_of
from .usage import Usage

_NOTHING: Any = object()


class Observed:
    """A part of `PrimitiveJob`."""

    __slots__ = ()
    _record: Any
    _tracker: Any

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs the job now, else None.

        A worker killed from outside before it has begun with the job costs the job nothing: it
        waits for another one.
        """
        pid: int | None = self._tracker.pid
        return pid

    @property
    def node(self) -> str | None:
        """Address of the Dask worker on whose machine the job runs now.

        None where no worker has it, and where that is on this machine.
        """
        node: str | None = self._tracker.node
        return node

    @property
    def attempts(self) -> int:
        """How often a worker has begun with the job: more than 1 only with ``retries``."""
        attempts: int = self._tracker.attempts
        return attempts

    @property
    def waiting_for(self) -> str | None:
        """What a QUEUED job waits for, in words; None where it is not QUEUED.

        It may be "a worker", "job 'simulate'" (whose result it is to get), "4 CPUs", "4.0 GB of
        memory (1.2 GB free)", "gpu" (a token of its pool's ``resources``), or "retry in 4 s"
        (rounded up).
        """
        queued = self._tracker.status is JobStatus.QUEUED
        return self._record.waiting_for() if queued else None

    @property
    def started(self) -> float | None:
        """When the last attempt began, in s since the epoch; None: none has."""
        run = self._last_run()
        return None if run is None else run[0]

    @property
    def duration(self) -> float | None:
        """Seconds that the last attempt took, or has taken up to now; None: none has begun."""
        run = self._last_run()
        return None if run is None else run[1]

    def _last_run(self) -> tuple[float, float] | None:
        """When the last attempt began, on the wall clock, and how many s it took."""
        tracker = self._tracker
        steps, spans = tracker.steps(), tracker.spans()
        for (status, when, _), (_, lasted) in zip(reversed(steps), reversed(spans), strict=False):
            if status is JobStatus.RUNNING:
                return when, lasted
        return None

    @property
    def progress(self) -> Progress | None:
        """What the job has told last by `report`, in its present attempt or before its end.

        None where it has told nothing.
        """
        record, tracker = self._record, self._tracker
        seat = record.seated()
        until: float | None = None
        if seat is not None and tracker.outcome is None:
            noted, shift = seat.traces.progress(seat.attempt), seat.traces.shift
        else:
            kept = record.kept
            noted, shift = (None, 0.0) if kept is None else kept.progress
            ended = tracker.ended_at()
            until = None if math.isinf(ended) else ended
        return progress_of(noted, shift, until)

    @property
    def usage(self) -> Usage | None:
        """Time and memory that the last attempt took, once it is over; None before.

        The worker resets its peak of memory (``ru_maxrss``) for each job.
        """
        record = self._record
        if self._tracker.outcome is None:
            return None
        kept = record.kept
        usage: Usage | None = None if kept is None else kept.usage
        run = self._last_run()
        if run is None:
            return None
        if usage is None:
            return Usage(run[1], None, None, None, exact=False)
        return Usage(run[1], *usage[1:]) if math.isnan(usage.wall) else usage

    def output(self, tail: int | None = None) -> str | None:
        """Return what the job has printed up to now, in all its attempts: stdout and stderr.

        It is there where the option ``output`` says so. Of more than 1.06 MB the first 64 KB and
        the last 1 MB are kept, and the text says how much is left out between them. What goes to a
        file is the text of that file.

        Args:
            tail: At most so many bytes of the end; default None: all that there is.

        Returns:
            None where it is not known: the job prints where the program does, or to a file that
            cannot be read here, or is there no more.

        Raises:
            TypeError, ValueError: ``tail`` is no int from 0 on.
        """
        if tail is not None:
            check_count("tail", tail, least=0)
        prints = self._record.prints
        if prints is None:
            return None
        text: str | None = prints.text(tail, over=self._tracker.outcome is not None)
        return text

    def partial_result(self, *, default: Any = _NOTHING) -> Any:
        """Return what the job has kept last by `checkpoint`, made anew at each call.

        It is there while the job runs and after its end, however that came: a result, an exception,
        a cancel, a limit, a crash. It is held in memory of this process until the job goes.

        Args:
            default: Returned where there is none.

        Raises:
            LookupError: There is none, and no ``default``.
            Exception: Whatever the unpickling raises.
        """
        record = self._record
        seat = record.seated()
        found = []
        if seat is not None and self._tracker.outcome is None:
            found = seat.traces.load(seat.attempt)
        kept = record.kept
        if not found and kept is not None and kept.checkpoint is not None:
            found = [kept.checkpoint.load()]
        if found:
            return found[0]
        if default is _NOTHING:
            raise LookupError(f"job {record.name} has no checkpoint")
        return default


__all__ = ["Observed"]

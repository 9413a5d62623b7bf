"""`Sweep`: the points of one call of `StoredFunction.sweep`, as their rows come."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from .._engine.tracker import StatusTracker
from ..job import PrimitiveJob
from ..map_results import Followed
from ..options import check_grace
from ..status import JobStatus
from .jobs import Pending, StoredJob
from .rows import StoredRow
from .work import Work

T = TypeVar("T")


class SweepCounts(NamedTuple):
    """How many points of a sweep there are of each kind.

    Attributes:
        points: All; such as are the same are one.
        stored: Those that were stored before.
        queued: Those that wait for a worker.
        running: Those that a worker has.
        done: Those that have returned since.
        failed: Those that have failed since.
        cancelled: Those that were cancelled since.
    """

    points: int
    stored: int
    queued: int
    running: int
    done: int
    failed: int
    cancelled: int


class _Progress:
    """What `track` shows of it."""

    def __init__(self, sweep: Sweep[Any]) -> None:
        self._sweep = sweep
        self.on_wait: Callable[[], float | None] | None = None

    def total(self) -> int:
        """All points."""
        return self._sweep.counts().points

    def calls_ended(self) -> int:
        """Those that have a row, or are about to get one."""
        counts = self._sweep.counts()
        return counts.points - counts.queued - counts.running

    def jobs_running(self) -> int:
        """Those that a worker has."""
        return self._sweep.counts().running


class Sweep(Followed[StoredRow], Generic[T]):
    """The rows of a sweep: first those that were stored, then each as soon as it is written.

    It may be iterated over more than once, by any thread, and `track` shows how far it is. It goes
    on whether anybody looks or not: `cancel` stops it.
    """

    __slots__ = (
        "_by_key",
        "_changed",
        "_failure",
        "_known",
        "_order",
        "_pending",
        "_rows",
        "_stored",
        "_untold",
        "_work",
        "name",
    )

    def __init__(
        self,
        work: Work,
        name: str,
        order: Sequence[str],
        rows: Mapping[str, StoredRow],
        pending: Mapping[str, Pending],
        jobs: Sequence[StoredJob[Any]],
    ) -> None:
        self.name = name
        self._work = work
        self._order = order
        self._stored = len(rows)
        self._changed = threading.Condition()
        self._rows = [rows[key] for key in dict.fromkeys(order) if key in rows]
        self._by_key = dict(rows)
        self._pending = dict(pending)
        self._failure: Exception | None = None
        self._untold: dict[
            str, StatusTracker
        ] = {}  # of jobs that failed, until their rows are seen
        # Jobs are not held: each has its result.
        self._known: weakref.WeakValueDictionary[str, StoredJob[T]] = weakref.WeakValueDictionary()
        for job in jobs:
            self._known[job.metadata["key"]] = job
        self._progress = _Progress(self)
        for one in pending.values():
            one.call_when_written(_Arrival(self, one))

    def _arrive(self, pending: Pending, row: StoredRow | Exception) -> None:
        key = pending.key
        with self._changed:
            if isinstance(row, Exception):
                self._failure = row
            else:
                if row.status is JobStatus.ERROR:
                    self._untold[key] = pending.record.tracker
                self._rows.append(row)
                self._by_key[key] = row
                self._pending.pop(key, None)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[StoredRow]:
        """Yield each row once, as it comes.

        Raises:
            StoreError: A row cannot be written.
        """
        seen = 0
        while (row := self._next(seen)) is not None:
            yield row
            seen += 1

    def _next(self, seen: int) -> StoredRow | None:
        while True:
            if self._progress.on_wait is not None:
                due = self._progress.on_wait()
            else:
                due = None
            with self._changed:
                if len(self._rows) > seen:
                    row = self._rows[seen]
                    failed = self._untold.pop(row.key, None)
                    if failed is not None:  # whoever gets the row sees it
                        failed.looked_at()
                    return row
                if self._failure is not None:
                    raise self._failure
                if not self._pending:
                    return None
                self._check_may_wait()
                self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))

    def _check_may_wait(self) -> None:
        # The last: the dict is emptied from its begin, where each look would be a search.
        one = next(reversed(self._pending.values()), None)
        if one is not None and one.record.link is not None:
            one.record.link.check_may_wait()

    def results(self) -> list[T]:
        """Wait for all points, and return their results, in the points' order.

        Raises:
            JobCancelledError: A job was cancelled.
            StoreError: A row cannot be written, or its result not read.
            BaseException: What the function raised for the first point, in order, that failed.
        """
        for _ in self:
            pass
        return [self._by_key[key].result for key in self._order]

    def jobs(self) -> list[PrimitiveJob[T]]:
        """Return the jobs of all points, in the points' order; of stored ones they are over."""
        return [self._job_of(key) for key in self._order]

    def _job_of(self, key: str) -> PrimitiveJob[T]:
        job = self._known.get(key) or self._work.job_of(key)
        while job is None:
            with self._changed:
                row = self._by_key.get(key)
                if row is None and self._failure is not None:
                    raise self._failure
                if row is None:  # it has ended, and nobody had its job: the row comes now
                    self._check_may_wait()
                    self._changed.wait()
                    continue
            job = StoredJob.of_row(row)
            self._known[key] = job
        return job

    def counts(self) -> SweepCounts:
        """Return how many points there are of each kind, now."""
        with self._changed:
            pending, ended_now = list(self._pending.values()), self._rows[self._stored :]
        found = Counter(row.status for row in ended_now)
        found.update(one.record.tracker.status for one in pending)
        ended = JobStatus.DONE, JobStatus.ERROR, JobStatus.CANCELLED
        done, failed, cancelled = (found[status] for status in ended)
        running = found[JobStatus.RUNNING]
        total = len(pending) + len(ended_now) + self._stored
        queued = total - self._stored - running - done - failed - cancelled
        return SweepCounts(total, self._stored, queued, running, done, failed, cancelled)

    def cancel(self, *, grace: float | None = None) -> None:
        """Cancel all points that have not ended, as `PrimitiveJob.cancel`, and wait for their end.

        What they have kept by `checkpoint` stays: the next sweep goes on from there.

        Raises:
            TypeError, ValueError: ``grace`` is no finite number of seconds from 0 on.
        """
        seconds = None if grace is None else check_grace(grace)
        with self._changed:
            pending = list(self._pending.values())
        for one in pending:
            one.record.ask_cancel(seconds)
        for one in pending:
            if one.record.link is not None:
                one.record.link.check_may_wait()
            one.record.tracker.wait()

    def close(self) -> None:
        """Do nothing: whoever does not look any more does not end it."""

    def __repr__(self) -> str:
        counts = self.counts()
        rest = ", ".join(f"{n} {kind}" for kind, n in counts._asdict().items() if kind != "points")
        return f"<Sweep of {self.name}, {counts.points} points: {rest}>"


class _Arrival:
    """Tells a sweep of a row, and does not hold the sweep."""

    def __init__(self, sweep: Sweep[Any], pending: Pending) -> None:
        self._sweep = weakref.ref(sweep)
        self._pending = pending

    def __call__(self, row: StoredRow | Exception) -> None:
        sweep = self._sweep()
        if sweep is not None:
            sweep._arrive(self._pending, row)


__all__ = ["Sweep", "SweepCounts"]

"""`JobRegistry`: the jobs that a pool's dispatcher has taken in, and what comes at the end of one.

All of it is the dispatcher's, but for what says otherwise. An end takes three steps: the tracker
gets the outcome, from which moment everybody sees it; those who wait are told, soon; and the record
goes to `leaving`, whence a thread on which foreign code may run drops the handle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from .._common.naming import one_line
from .._wire.evidence import Evidence
from .._wire.messages import Filed, Kind, Message, duration
from .._wire.parcel import Parcel
from ..errors import JobError
from ..status import JobStatus
from .attempts import Attempts, Told
from .awaited import Awaited, deliver, keep_file
from .events import Fate, Lost, Requeue
from .gate import HandOver
from .record import Ended, JobRecord
from .sources import file_limit
from .tracker import NEVER, Outcome, StatusTracker
from .unseen import Unseen
from .verdicts import attempt_told, finished, outcome_of, tried_again, with_notes

if TYPE_CHECKING:
    from weakref import WeakSet

    Waiters = dict[int, tuple[Awaited, Callable[[], None]]]

_DONE = JobStatus.DONE
ENDS = (_DONE, JobStatus.ERROR, JobStatus.CANCELLED)
"""How a job may end, in the order of `JobRegistry.ended`."""


class JobRegistry:
    """The unfinished jobs of one pool, and how many have ended.

    Args:
        unseen: Where failures go until somebody looks at them.
        ended: Counts of those that have ended, one for each of `ENDS`; may be read on any thread.

    Attributes:
        attempts: What workers did with jobs; may be looked at on any thread.
        held: For jobs that wait for others, by number: those that have not ended, each with what
            waits for that, by their places.
        unfinished: By number, in the order in which they came.
        untold: Trackers of jobs that have ended, whose waiters are to be told.
        postponed: How many of these might have been told before.
        leaving: Records of jobs that have ended; anybody may have them let go of their handles.
    """

    def __init__(self, unseen: Unseen, ended: list[int]) -> None:
        self.unfinished: dict[int, JobRecord] = {}
        self.held: dict[int, Waiters] = {}
        self.untold: list[StatusTracker] = []
        self.postponed = 0
        self.leaving = Ended()
        self.attempts = Attempts()
        self._returned = self.attempts.returned
        self.ended = ended
        self._unseen = unseen
        self._count = 0
        self._in_files: set[int] = set()  # jobs whose payload holds a descriptor
        self._file_limit = file_limit()

    def may_hold_descriptor(self) -> bool:
        """Whether one more queued call may; on any thread."""
        return len(self._in_files) < self._file_limit

    def register(self, job: JobRecord) -> None:
        """Give a job its number."""
        self._count += 1
        job.number = self._count
        self.unfinished[job.number] = job
        payload = job.payload  # once: a cancel may take it away
        if isinstance(payload, Parcel) and payload.fd >= 0:
            self._in_files.add(job.number)

    def settle(self, number: int, fate: Fate) -> None:
        """End a job."""
        job = self.unfinished[number]
        took: float | None = None
        if type(fate) is Message or isinstance(fate, Message):  # the first saves time
            if job.wanted is not None:
                self._deliver(job.wanted, fate)
            outcome, took = finished(job, fate), duration(fate.extra)
            if fate.notes:
                job.leave(fate.notes)
        else:
            job.leave(None)
            outcome = outcome_of(job, fate)
        status = outcome.status
        if status is not _DONE:
            if job.kept is not None and job.kept.earlier:
                outcome = with_notes(outcome, job.kept.earlier)
            self._unseen.note(job, outcome)
        job.seat = None
        run = job.tracker.settle(outcome, took)
        if job.wanted is not None and isinstance(fate, Message):
            self._deliver(job.wanted, fate)  # once more: somebody may have come in between
        if type(fate) is Filed:
            keep_file(fate)
        if run is not None:
            job.drop_payload(returned=status is _DONE)
            self.untold.append(job.tracker)
            if status is _DONE:
                if job.kept is None:  # as of most short jobs
                    self._returned(job.name, run)
                else:
                    self._returned(job.name, run, job.kept.peak())
            elif run is not NEVER:
                self.attempts.ended(job.name, run, _told(job, fate))
        else:
            status = job.tracker.status
        self._drop(number)  # now: see end_anyhow
        if status is _DONE:  # as most are: without a call
            self.ended[0] += 1
        else:
            self._count_end(status)

    def ran(self, job: JobRecord, handed: HandOver, message: Message) -> None:
        """A job that its caller gave to a worker has ended before it was registered."""
        outcome = finished(job, message)
        if message.notes:
            job.leave(message.notes)
        if job.wanted is not None:
            self._deliver(job.wanted, message)
        if outcome.status is not _DONE:
            self._unseen.note(job, outcome)
        run = job.tracker.ran(handed, outcome)
        if job.wanted is not None:
            self._deliver(job.wanted, message)  # as in `settle`
        if type(message) is Filed:
            keep_file(message)
        self.leaving.put(job)
        if outcome.status is _DONE:
            self._returned(job.name, run, None if job.kept is None else job.kept.peak())
            self.ended[0] += 1
        else:
            self.attempts.ended(job.name, run, _told(job, message))
            self._count_end(outcome.status)
        job.drop_payload(returned=outcome.status is _DONE)
        self.untold.append(job.tracker)

    @staticmethod
    def _deliver(wanted: WeakSet[Awaited], message: Message) -> None:
        """Give a result to those who wait for it, before anybody can see that it is there."""
        if message.kind == Kind.RETURNED and not message.lost:
            with contextlib.suppress(OSError, MemoryError):  # they take it themselves then, or fail
                deliver(wanted, message)

    def end_anyhow(self, number: int, error: BaseException) -> None:
        """End a job, if it has not ended, with what can still be said of it."""
        if number not in self.unfinished:
            return
        job = self._drop(number)
        failure = JobError(f"job {job.name}: how it ended could not be told: {one_line(error)}")
        failure.__cause__ = error
        with contextlib.suppress(Exception):  # it may have its outcome, but told nobody yet
            outcome = Outcome(JobStatus.ERROR, failure)
            self._unseen.note(job, outcome)
            run = job.tracker.settle(outcome)
            if run is not None and run is not NEVER:
                self.attempts.ended(job.name, run, attempt_told(Lost(Evidence(error=error))))
        self.untold.append(job.tracker)
        with contextlib.suppress(OSError):
            job.drop_payload()
        self._count_end(job.tracker.status)

    def requeued(self, action: Requeue) -> None:
        """A job waits for another worker."""
        job = self.unfinished[action.job]
        told: Told | None = None
        if action.began:
            job.leave(None if action.answer is None else action.answer.notes)
            end, told = tried_again(action)
            told = _with_memory(told, job)
            job.go_on(end, action.delay)
        job.seat = None
        run = job.tracker.requeued(began=action.began)
        if told is not None and run is not NEVER:
            self.attempts.ended(job.name, run, told)

    def withdrawn(self, number: int) -> None:
        """A job has ended by its canceller, before a worker got it."""
        self._count_end(self._drop(number).tracker.status)

    def passed(self, job: JobRecord) -> None:
        """A job was cancelled before it was registered."""
        self.leaving.put(job)
        self._count_end(job.tracker.status)

    def failed_early(self) -> None:
        """A job has ended before it came."""
        self._count_end(JobStatus.ERROR)

    def tell_waiters(self, failed: Callable[[Exception], object]) -> None:
        """Tell all who wait; ``failed`` is told where that raises, and the others are told."""
        for tracker in self.untold:
            try:
                tracker.tell_waiters()
            except Exception as error:  # noqa: BLE001 - it is logged
                failed(error)
        self.untold.clear()
        self.postponed = 0

    def _drop(self, number: int) -> JobRecord:
        if self._in_files:
            self._in_files.discard(number)
        if self.held and (waiters := self.held.pop(number, None)) is not None:
            for awaited, waiter in waiters.values():
                if awaited.record is not None:
                    awaited.record.tracker.forget(waiter)
        record = self.unfinished.pop(number)
        self.leaving.put(record)
        return record

    def _count_end(self, status: JobStatus) -> None:
        self.ended[0 if status is _DONE else ENDS.index(status)] += 1


def _told(job: JobRecord, fate: Fate) -> Told:
    """How a job's attempt has ended."""
    return _with_memory(attempt_told(fate), job)


def _with_memory(told: Told, job: JobRecord) -> Told:
    """The same with the most that it held, if only its worker knew that."""
    if told.memory is None and job.kept is not None:
        told = Told(told.end, told.reason, job.kept.peak())
    return told


__all__ = ["ENDS", "JobRegistry"]

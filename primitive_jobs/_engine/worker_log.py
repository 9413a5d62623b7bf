"""`WorkerLog`: what becomes of a pool's workers, and why, on the logger `primitive_jobs`.

WARNING is what a user has to know: a death, a failed start, a retry. INFO is what the pool does to
workers on purpose: kills, replacements. DEBUG is the rest of their lives.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Concatenate, ParamSpec

from .._common.naming import one_line
from .._wire.evidence import Evidence
from .._wire.failures import what_was_raised
from .._wire.messages import Message
from ..logs import Later, Report
from ..options import size
from .events import (
    Event,
    Gone,
    InitFailed,
    NotTaken,
    Overcommit,
    Ready,
    Reason,
    Requeue,
    Started,
    StartFailed,
)
from .fleet import Worker
from .record import JobRecord
from .scheduler import LEAVE_TIME, Scheduler, Slot, SlotState
from .verdicts import cause_of_death

_MOST_VACANT = 64  # workers remembered as gone and not replaced


P = ParamSpec("P")


def _unfailing(
    method: Callable[Concatenate[WorkerLog, P], None],
) -> Callable[Concatenate[WorkerLog, P], None]:
    """Nothing of what is told here may depend on whether it can be told."""

    @functools.wraps(method)
    def tell(self: WorkerLog, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - it is logged
            self._report(logging.ERROR, "something could not be logged", error=error)

    return tell


class WorkerLog:
    """Called by the dispatcher, on its thread, where it carries out what the scheduler says.

    Args:
        report: Logs, somewhere else.
        scheduler: Of the pool.
        jobs: The pool's unfinished jobs, by number.
    """

    def __init__(self, report: Report, scheduler: Scheduler, jobs: Mapping[int, JobRecord]) -> None:
        self._report = report
        self._scheduler = scheduler
        self._jobs = jobs
        self._leaving: dict[int, str] = {}  # by slot: why, where the scheduler's state cannot tell
        # Of workers that ended for another reason than that nobody needs them: pid, what happened.
        self._vacant: deque[tuple[int, str]] = deque(maxlen=_MOST_VACANT)
        self._replaces: dict[int, tuple[int, str]] = {}  # the same, by the slot of who is to come

    def happened(self, event: Event, worker: Worker | None) -> None:
        """Whatever the fleet has reported of a worker; called before the scheduler is told."""
        match event:
            case StartFailed(slot=slot, evidence=evidence):
                self.not_started(slot, evidence.error)
            case Started() if worker is not None:
                self.started(worker)
            case Ready() if worker is not None:
                self.ready(worker)
            case InitFailed(message=message) if worker is not None:
                self.not_initialized(worker, message)
            case NotTaken(attempt=attempt, unfit=True) if worker is not None:
                self.unfit(worker, attempt)
            case Gone(evidence=evidence) if worker is not None:
                self.gone(worker, evidence)
            case _:
                pass

    # --- coming ------------------------------------------------------------------------------

    @_unfailing
    def ordered(self, slot: int) -> None:
        """A process is to be started."""
        if self._vacant:
            self._replaces[slot] = self._vacant.popleft()

    @_unfailing
    def not_started(self, slot: int, error: BaseException | None) -> None:
        """None was; without an error it was called off."""
        if slot in self._replaces:
            self._vacant.appendleft(self._replaces.pop(slot))
        if error is not None:
            self._report.about(None, slot)(
                logging.WARNING,
                "no worker could be started for slot %d: %s",
                slot,
                Later(one_line, error),
            )

    @_unfailing
    def started(self, worker: Worker) -> None:
        """There is a worker."""
        worker.report(logging.DEBUG, "worker %d is started, in slot %d", worker.pid, worker.slot)
        replaced = self._replaces.pop(worker.slot, None)
        if replaced is None:
            return
        if self._scheduler.slots[worker.slot].state is SlotState.DYING:  # it was called off
            self._vacant.appendleft(replaced)
            return
        before, why = replaced
        states = [slot.state for slot in self._scheduler.slots.values()]
        live = len(states) - states.count(SlotState.LEAVING) - states.count(SlotState.DYING)
        worker.report(
            logging.INFO,
            "worker %d%s replaces worker %d, which %s",
            worker.pid,
            ", a spare," if live > self._scheduler.max_workers else "",
            before,
            why,
        )

    @_unfailing
    def ready(self, worker: Worker) -> None:
        """It waits for its first job."""
        worker.report(logging.DEBUG, "worker %d is ready", worker.pid)

    @_unfailing
    def not_initialized(self, worker: Worker, message: Message) -> None:
        """What is to run in it first has raised."""
        worker.report(
            logging.WARNING,
            "the pool's preload or initializer raised in worker %d: %s",
            worker.pid,
            Later(what_was_raised, message.body),
        )

    @_unfailing
    def postponed(self, seconds: float, *, spare: bool) -> None:
        """One did not get ready, and others do the work."""
        text = "the next %s is started in %g s: the last one did not get ready"
        self._report(logging.INFO, text, "spare worker" if spare else "worker", seconds)

    # --- going -------------------------------------------------------------------------------

    @_unfailing
    def unfit(self, worker: Worker, attempt: int | None = None) -> None:
        """It holds more memory than its job may; said of a stale attempt it is nothing."""
        slot = self._scheduler.slots.get(worker.slot)
        job = None if slot is None else self._job(slot)
        if slot is None or job is None or attempt not in (None, slot.attempt):
            return
        why = "held more memory than a job was allowed to"
        self._leaving[worker.slot] = why
        worker.report(
            logging.DEBUG,
            "worker %d holds more memory than the memory_limit of job %s",
            worker.pid,
            job,
            job=job,
        )

    @_unfailing
    def leaves(self, worker: Worker) -> None:
        """It was asked to end by itself."""
        slot = self._scheduler.slots[worker.slot]
        why = self._leaving.pop(slot.number, None)
        if slot.reclaimed:
            why = "is in a place that others want"
        elif slot.retiring:
            why = "was to be replaced (restart_workers)"
        elif slot.served == self._scheduler.max_jobs_per_worker:
            why = f"had done {slot.served} jobs (max_jobs_per_worker)"
        if why is not None:
            self._vacate(worker.pid, why)
        worker.report(
            logging.DEBUG,
            "worker %d is asked to leave: it %s",
            worker.pid,
            why or ("has no job, and the pool ends" if self._scheduler.closing else "is idle"),
        )

    @_unfailing
    def terminated(self, worker: Worker) -> None:
        """It was sent SIGTERM: its job has a grace."""
        slot = self._scheduler.slots[worker.slot]
        job = self._job(slot)
        worker.report(
            logging.INFO,
            f"worker %d is sent SIGTERM: job %s {_REASONS[slot.reason or Reason.CANCEL]}",
            worker.pid,
            job,
            job=job,
        )

    @_unfailing
    def killed(self, worker: Worker) -> None:
        """It is being killed, or only what is left of it, if it has died."""
        slot = self._scheduler.slots[worker.slot]
        job = self._job(slot)
        if slot.died:
            if slot.was is not SlotState.LEAVING:
                self._vacate(worker.pid, "died" if slot.reason is None else "was killed")
        elif slot.fault is not None:
            self._vacate(worker.pid, "could not be used any more")
            text = "worker %d is killed: %s"
            report = worker.report
            report(logging.INFO, text, worker.pid, Later(one_line, slot.fault), job=job)
        elif slot.reason is not None and job is not None:
            self._vacate(worker.pid, "was killed")
            text = f"worker %d is killed: job %s {_REASONS[slot.reason]}"
            worker.report(logging.INFO, text, worker.pid, job, job=job)
        elif slot.was is SlotState.LEAVING:
            worker.report(
                logging.INFO,
                "worker %d is killed: it did not leave within %g s",
                worker.pid,
                LEAVE_TIME,
            )
        elif slot.was in (SlotState.BUSY, SlotState.GRACE):
            self._vacate(worker.pid, "was killed")
            worker.report(logging.WARNING, "worker %d is killed: it did not take a job", worker.pid)
        else:
            if slot.retiring:
                self._vacate(worker.pid, "was to be replaced (restart_workers)")
            worker.report(
                logging.DEBUG, "worker %d is killed: it is of no use any more", worker.pid
            )

    @_unfailing
    def gone(self, worker: Worker, evidence: Evidence) -> None:
        """Nothing is left of it."""
        slot = self._scheduler.slots[worker.slot]
        self._leaving.pop(slot.number, None)
        job, report = self._job(slot), worker.report
        if not slot.died:
            report(logging.DEBUG, "worker %d is gone", worker.pid)
        elif slot.was is SlotState.LEAVING:
            report(logging.DEBUG, "worker %d has left", worker.pid)
        elif slot.reason is not None:
            text = f"worker %d has ended on SIGTERM: job %s {_REASONS[slot.reason]}"
            report(logging.INFO, text, worker.pid, job, job=job)
        elif job is not None:
            text = "worker %d died: %s; it had job %s"
            report(logging.WARNING, text, worker.pid, cause_of_death(evidence), job, job=job)
        else:
            report(
                logging.WARNING,
                "worker %d died %s: %s",
                worker.pid,
                "in the pool's preload or initializer"
                if evidence.initializing
                else _WITHOUT_JOB.get(slot.was, "after its job"),
                cause_of_death(evidence, " by itself"),
            )

    @_unfailing
    def requeued(self, action: Requeue) -> None:
        """A job waits for another worker, or for its next attempt."""
        job = self._jobs[action.job]
        if action.began:
            left = self._scheduler.jobs[action.job].retries
            attempt = job.limits.retries - left  # of what was sent and not confirmed, nobody counts
            end = f"its worker died in attempt {attempt}"
            if action.answer is not None and job.kept is not None:
                end = job.kept.earlier[-1]
            when = f" in {action.delay:g} s" if action.delay else ""
            text = "job %s is tried again%s: %s; retries left: %d"
            self._report(logging.WARNING, text, job, when, end, left, job=job)
        else:
            self._report(
                logging.INFO,
                "job %s waits for another worker: it had not begun",
                job,
                job=job,
            )

    @_unfailing
    def overcommitted(self, action: Overcommit) -> None:
        """A job starts for which there is too little memory."""
        job = self._jobs[action.job]
        text = (
            "job %s starts though %s of its memory are missing: no other job of the pool runs "
            "that could give some back"
        )
        self._report(logging.WARNING, text, job, size(action.missing), job=job)

    @_unfailing
    def broken(self, error: BaseException) -> None:
        """No worker can be reached any more."""
        text = "the pool's workers cannot be reached any more, so all its jobs end: %s"
        self._report(logging.ERROR, text, Later(one_line, error))

    # --- helpers -----------------------------------------------------------------------------

    def _job(self, slot: Slot) -> JobRecord | None:
        return None if slot.job is None else self._jobs.get(slot.job.number)

    def _vacate(self, pid: int, why: str) -> None:
        if not self._scheduler.closing:
            self._vacant.append((pid, why))


_REASONS = {
    Reason.CANCEL: "was cancelled",
    Reason.TIMEOUT: "passed its timeout",
    Reason.MEMORY: "passed its memory_limit",
    Reason.BROKEN: "has lost its cluster",
}
_WITHOUT_JOB = {
    SlotState.WARMING: "while it was starting",
    SlotState.IDLE: "while it was idle",
}


__all__ = ["WorkerLog"]

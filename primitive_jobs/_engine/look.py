"""What `snapshot` and `repr` show of a pool: counts, jobs and workers at one moment.

`look_at` runs on the dispatcher's thread, and so is short; the thread that has asked makes plain
data of what it returns (`snapshot_of`).
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Literal, NamedTuple

from .._common.lock_free import snapshot
from ..snapshots import Counts, JobInfo, PoolSnapshot, WorkerInfo
from ..status import JobStatus
from .fleet import Fleet
from .record import JobRecord
from .registry import ENDS, JobRegistry
from .scheduler import Scheduler, SlotState

_STATES: dict[SlotState, Literal["starting", "idle", "busy", "ending"]] = {
    SlotState.STARTING: "starting",
    SlotState.WARMING: "starting",
    SlotState.IDLE: "idle",
    SlotState.BUSY: "busy",
    SlotState.GRACE: "ending",
    SlotState.LEAVING: "ending",
    SlotState.DYING: "ending",
}


class _SlotLook(NamedTuple):
    pid: int | None
    node: str | None
    state: SlotState
    job: int | None  # its number
    runs: bool  # the job does: the worker has it


class Look(NamedTuple):
    """A pool at one moment, with the engine's own objects.

    Attributes:
        at: When, in s of the monotonic clock.
        counts: How many jobs and workers.
        records: The unfinished jobs, in order.
        slots: Of each worker, the oldest first: what is shown of it.
    """

    at: float
    counts: Counts
    records: list[JobRecord]
    slots: list[_SlotLook]


def look_at(scheduler: Scheduler, jobs: JobRegistry, fleet: Fleet) -> Look:
    """Look at a pool; on the dispatcher's thread, or once that has ended."""
    slots = _slots(scheduler, fleet)
    sent = sum(slot.job is not None and not slot.runs for slot in slots)  # and QUEUED still
    queued, running = scheduler.waiting + sent, scheduler.running - sent
    counts = _counts(queued, running, jobs.ended, slots)
    return Look(time.monotonic(), counts, list(jobs.unfinished.values()), slots)


def look_from_outside(
    scheduler: Scheduler, jobs: JobRegistry, fleet: Fleet, commands: deque[Any]
) -> Look:
    """Look at a pool from another thread, while the dispatcher works or stands still."""
    # In this order, no job is counted twice on its way; each is what its tracker says.
    ended = list(jobs.ended)
    slots = _slots(scheduler, fleet)
    known = [*jobs.unfinished.values(), *(c for c in snapshot(commands) if type(c) is JobRecord)]
    records = []
    statuses = []
    for record in dict.fromkeys(known):
        status = record.tracker.status
        if status in ENDS:
            ended[ENDS.index(status)] += 1
        else:
            records.append(record)
            statuses.append(status)
    running = statuses.count(JobStatus.RUNNING)
    counts = _counts(len(records) - running, running, ended, slots)
    return Look(time.monotonic(), counts, records, slots)


def _slots(scheduler: Scheduler, fleet: Fleet) -> list[_SlotLook]:
    found = []
    for slot in list(scheduler.slots.values()):
        worker, job = fleet.workers.get(slot.number), slot.job
        pid, node = (None, None) if worker is None else (worker.pid, worker.node)
        number = None if job is None else job.number
        found.append(_SlotLook(pid, node, slot.state, number, scheduler.runs(slot)))
    return found


def _counts(queued: int, running: int, ended: list[int], slots: list[_SlotLook]) -> Counts:
    done, failed, cancelled = ended
    states = [slot.state for slot in slots]
    starting = states.count(SlotState.STARTING) + states.count(SlotState.WARMING)
    idle = states.count(SlotState.IDLE)
    return Counts(queued, running, done, failed, cancelled, idle, starting)


def snapshot_of(look: Look) -> PoolSnapshot:
    """Return a look as plain data."""
    workers_of = {slot.job: slot for slot in look.slots if slot.job is not None and slot.runs}
    ids = {record.number: record.job_id() for record in look.records}
    jobs = tuple(_job_info(record, look.at, workers_of) for record in look.records)
    workers = tuple(
        WorkerInfo(pid, _STATES[state], None if job is None else ids.get(job), node)
        for pid, node, state, job, _ in look.slots
    )
    return PoolSnapshot(look.counts, jobs, workers)


def _job_info(record: JobRecord, at: float, workers: dict[int, _SlotLook]) -> JobInfo:
    # What its tracker says now may be later than the look; it counts where the job has no number
    # yet, since only its caller and a worker know of it.
    worker, tracker = workers.get(record.number), record.tracker
    running = worker is not None if record.number else tracker.status is JobStatus.RUNNING
    status = JobStatus.RUNNING if running else JobStatus.QUEUED
    entered = [since for each, _, since in tracker.steps() if each is status]
    seconds = max(0.0, at - entered[-1]) if entered else 0.0
    pid, node = (None, None) if worker is None else (worker.pid, worker.node)
    name, attempts = record.name, tracker.attempts
    return JobInfo(record.job_id(), name, status, seconds, attempts, pid, node)


__all__ = ["Look", "look_at", "look_from_outside", "snapshot_of"]

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


_SlotLook = tuple[int | None, SlotState, int | None]  # pid, state, and the number of the job


class Look(NamedTuple):
    """A pool at one moment, with the engine's own objects.

    Attributes:
        at: When, in s of the monotonic clock.
        counts: How many jobs and workers.
        records: The unfinished jobs, in order.
        slots: Of each worker, the oldest first: its pid, its state, the number of its job.
    """

    at: float
    counts: Counts
    records: list[JobRecord]
    slots: list[_SlotLook]


def look_at(scheduler: Scheduler, jobs: JobRegistry, fleet: Fleet) -> Look:
    """Look at a pool; on the dispatcher's thread, or once that has ended."""
    slots = _slots(scheduler, fleet)
    counts = _counts(scheduler.waiting, scheduler.running, jobs.ended, slots)
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
        pid = None if worker is None else worker.pid
        found.append((pid, slot.state, None if job is None else job.number))
    return found


def _counts(queued: int, running: int, ended: list[int], slots: list[_SlotLook]) -> Counts:
    done, failed, cancelled = ended
    states = [state for _, state, _ in slots]
    starting = states.count(SlotState.STARTING) + states.count(SlotState.WARMING)
    idle = states.count(SlotState.IDLE)
    return Counts(queued, running, done, failed, cancelled, idle, starting)


def snapshot_of(look: Look) -> PoolSnapshot:
    """Return a look as plain data."""
    pids = {job: pid for pid, _, job in look.slots if job is not None}
    ids = {record.number: record.job_id() for record in look.records}
    jobs = tuple(_job_info(record, look.at, pids) for record in look.records)
    workers = tuple(
        WorkerInfo(pid, _STATES[state], None if job is None else ids.get(job))
        for pid, state, job in look.slots
    )
    return PoolSnapshot(look.counts, jobs, workers)


def _job_info(record: JobRecord, at: float, pids: dict[int, int | None]) -> JobInfo:
    # What its tracker says now may be later than the look; it counts where the job has no number
    # yet, since only its caller and a worker know of it.
    running = record.number in pids if record.number else record.tracker.status is JobStatus.RUNNING
    status = JobStatus.RUNNING if running else JobStatus.QUEUED
    entered = [since for each, _, since in record.tracker.steps() if each is status]
    seconds = max(0.0, at - entered[-1]) if entered else 0.0
    pid = pids.get(record.number)
    return JobInfo(record.job_id(), record.name, status, seconds, record.tracker.attempts, pid)


__all__ = ["Look", "look_at", "look_from_outside", "snapshot_of"]

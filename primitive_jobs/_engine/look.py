"""What `snapshot` and `repr` show of a pool: counts, jobs and workers at one moment; and what
`timeline` shows: what workers did till then.

`look_at` and `look_at_attempts` run on the dispatcher's thread, and so are short; the thread that
has asked makes plain data of what they return (`snapshot_of`, `attempts_of`).
"""

from __future__ import annotations

import bisect
import contextlib
import time
from collections import deque
from typing import Any, Literal, NamedTuple

from .._common.clocks import to_wall_clock
from .._common.lock_free import snapshot
from ..insight.progress import progress_of
from ..snapshots import (
    Attempt,
    AttemptEnd,
    AttemptTotal,
    Counts,
    JobInfo,
    MemorySample,
    PoolAttempts,
    PoolSnapshot,
    Progress,
    WorkerInfo,
)
from ..status import JobStatus
from .attempts import KEPT, Told, row, rows
from .fleet import Fleet
from .record import JobRecord
from .registry import ENDS, JobRegistry
from .scheduler import Scheduler, SlotState
from .tracker import Who

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
    slots = _slots(scheduler, jobs, fleet)
    counts = _present_counts(scheduler, jobs, slots)
    return Look(time.monotonic(), counts, list(jobs.unfinished.values()), slots)


def glance_at(scheduler: Scheduler, jobs: JobRegistry, fleet: Fleet, most: int) -> Look:
    """Look at all jobs that workers have, and at the first ``most`` that wait, in this order.

    On the dispatcher's thread; it takes no longer where many more wait.
    """
    slots = _slots(scheduler, jobs, fleet)
    lines = [job for slot in scheduler.slots.values() for job in slot.line]
    waiting = [*lines[:most], *scheduler.head(max(0, most - len(lines)))]
    numbers = [slot.job for slot in slots if slot.job is not None]
    waiting += scheduler.delayed.head(max(0, most - len(waiting)))
    waiting += scheduler.held.head(max(0, most - len(waiting)))
    numbers += [job.number for job in waiting]
    records = [jobs.unfinished[number] for number in numbers if number in jobs.unfinished]
    counts = _present_counts(scheduler, jobs, slots)
    return Look(time.monotonic(), counts, records, slots)


def _present_counts(scheduler: Scheduler, jobs: JobRegistry, slots: list[_SlotLook]) -> Counts:
    """On the dispatcher's thread."""
    sent = sum(slot.job is not None and not slot.runs for slot in slots)  # and QUEUED still
    sent_ahead = sum(len(slot.line) for slot in scheduler.slots.values())
    waiting = scheduler.waiting + len(scheduler.delayed.jobs) + len(scheduler.held.jobs)
    queued, running = waiting + sent_ahead + sent, scheduler.running - sent
    return _counts(queued, running, jobs.ended, slots)


def look_from_outside(
    scheduler: Scheduler, jobs: JobRegistry, fleet: Fleet, commands: deque[Any]
) -> Look:
    """Look at a pool from another thread, while the dispatcher works or stands still."""
    # In this order, no job is counted twice on its way; each is what its tracker says.
    ended = list(jobs.ended)
    slots = _slots(scheduler, jobs, fleet)
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


def _slots(scheduler: Scheduler, jobs: JobRegistry, fleet: Fleet) -> list[_SlotLook]:
    found = []
    for slot in list(scheduler.slots.values()):
        worker, job = fleet.workers.get(slot.number), slot.job
        pid, node = (None, None) if worker is None else (worker.pid, worker.node)
        number = runs = None
        if job is not None:
            number, record = job.number, jobs.unfinished.get(job.number)
            runs = scheduler.runs(slot)
            if runs and record is not None:  # else it was sent ahead, and has not begun
                runs = record.tracker.status is JobStatus.RUNNING
        found.append(_SlotLook(pid, node, slot.state, number, bool(runs)))
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
    seconds = 0.0
    for each, _, since in reversed(tracker.steps()):
        if each is status:
            seconds = max(0.0, at - since)
            break
    pid, node = (None, None) if worker is None else (worker.pid, worker.node)
    name, attempts = record.name, tracker.attempts
    progress = _progress_of(record) if running else None
    waits = None if running else record.waiting_for()
    return JobInfo(record.job_id(), name, status, seconds, attempts, pid, node, progress, waits)


def _progress_of(record: JobRecord) -> Progress | None:
    seat = record.seated()
    if seat is None:
        return None
    return progress_of(seat.traces.progress(seat.attempt), seat.traces.shift)


# --- attempts -------------------------------------------------------------------------------------


class AttemptsLook(NamedTuple):
    """What a pool's workers did, and do at one moment, with the engine's own objects.

    Attributes:
        at: When, in s of the monotonic clock.
        kept: Those that have ended: see `Attempts`.
        running: Those that have not, with their ends as far as known.
        returned: How many did, and how long that took.
        others: Those that ended in another way.
        memory: What was measured: see `Fleet.measured`.
    """

    at: float
    kept: list[Any]
    running: list[tuple[str, Who, float, float]]
    returned: AttemptTotal
    others: dict[AttemptEnd, AttemptTotal]
    memory: list[tuple[float, int, int]]


def look_at_attempts(
    scheduler: Scheduler, jobs: JobRegistry, fleet: Fleet, commands: deque[Any]
) -> AttemptsLook:
    """Look at what workers did and do; on any thread, best on the dispatcher's.

    On another one, while the dispatcher works, one that ends this moment may be missing.
    """
    now = time.monotonic()
    kept, seconds, others = jobs.attempts.look()  # first: nothing shall be there twice
    running = []
    for slot in list(scheduler.slots.values()):
        theirs = [slot.job, *snapshot(slot.line)]
        records = [jobs.unfinished.get(job.number) for job in theirs if job is not None]
        running += _running([record for record in records if record is not None], now)
    with contextlib.suppress(IndexError):  # there is none
        # What a caller has handed over comes first, as long as the dispatcher has not heard of it.
        first = commands[0]
        running += _running([first] if type(first) is JobRecord else [], now)
    returned = AttemptTotal(jobs.ended[0], seconds)
    return AttemptsLook(now, kept, running, returned, others, snapshot(fleet.measured))


def _running(records: list[JobRecord], now: float) -> list[tuple[str, Who, float, float]]:
    """What one worker has begun of its jobs, in order: the last one runs till now.

    Of the others, which it was sent ahead, the outcomes are on their way.
    """
    found: list[tuple[str, Who, float, float]] = []
    for record in records:
        tracker = record.tracker
        pid, node, attempt = tracker.pid, tracker.node, tracker.attempts
        status, _, began = tracker.steps()[-1]
        if status is not JobStatus.RUNNING or pid is None:
            break
        if found:
            found[-1] = (*found[-1][:3], began)
        found.append((record.name, (pid, node, attempt), began, now))
    return found


def attempts_of(look: AttemptsLook) -> PoolAttempts:
    """Return a look at attempts as plain data, with times of the wall clock as it is now."""
    shift = to_wall_clock()
    attempts = list(rows(look.kept, shift))
    count = sum(total.attempts for total in (look.returned, *look.others.values()))
    left_out = count - len(attempts) if len(attempts) >= KEPT else 0
    totals: dict[AttemptEnd, AttemptTotal] = {"returned": look.returned, **look.others}
    for name, who, began, ended in look.running:
        attempts.append(row(name, who, began + shift, ended + shift, _RUNNING))
        count, seconds = totals.get("running", (0, 0.0))
        totals["running"] = AttemptTotal(count + 1, seconds + ended - began)
    memory = [MemorySample(at + shift, pid, held) for at, pid, held in look.memory]
    if memory:
        attempts = _with_peaks(attempts, memory)
    return PoolAttempts(look.at + shift, attempts, max(0, left_out), totals, memory)


def _with_peaks(attempts: list[Attempt], memory: list[MemorySample]) -> list[Attempt]:
    """Give each attempt the most that was measured of it, and of all below it, if that is more."""
    samples: dict[int, tuple[list[float], list[int]]] = {}
    for at, pid, held, _ in memory:
        times, sizes = samples.setdefault(pid, ([], []))
        times.append(at)
        sizes.append(held)
    found = []
    for attempt in attempts:
        if attempt.node is None and attempt.pid in samples:
            times, sizes = samples[attempt.pid]
            first = bisect.bisect_left(times, attempt.began)
            peak = max(sizes[first : bisect.bisect_right(times, attempt.ended)], default=0)
            attempt = Attempt(*attempt[:-1], memory=max(peak, attempt.memory or 0) or None)
        found.append(attempt)
    return found


_RUNNING = Told("running")

__all__ = [
    "AttemptsLook",
    "Look",
    "attempts_of",
    "glance_at",
    "look_at",
    "look_at_attempts",
    "look_from_outside",
    "snapshot_of",
]

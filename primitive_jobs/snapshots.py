"""What `BasePool.snapshot` returns, and what a `Timeline` is made of: plain data, which can be
pickled and knows no pool.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from .status import JobStatus


class Counts(NamedTuple):
    """How many there are of each kind.

    Attributes:
        queued: Jobs that wait for a worker, or are on their way to one.
        running: Jobs that a worker has; one that is being killed counts until nothing of it is
            left.
        done: Jobs that have returned, since the pool was made.
        failed: Jobs that have ended with an error, since then.
        cancelled: Jobs that were cancelled, since then.
        idle: Workers that are ready for a job.
        starting: Workers that are not ready yet.
    """

    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    idle: int
    starting: int


class Progress(NamedTuple):
    """What a job has told last by `report`.

    Attributes:
        fraction: Of its work that is done, from 0 to 1; None: it has told none.
        message: What it is at; "" where it says nothing.
        values: Numbers by name.
        age: Seconds since it was told.
        eta: Seconds that remain, if it goes on as it did since the attempt's first fraction; None
            where that cannot be told.
    """

    fraction: float | None
    message: str
    values: Mapping[str, float]
    age: float
    eta: float | None


class JobInfo(NamedTuple):
    """An unfinished job.

    Attributes:
        id: What `PrimitiveJob.job_id` returns.
        name: Its name.
        status: QUEUED or RUNNING.
        seconds: How long it has had this status.
        attempts: How often a worker was given it.
        pid: Process id of the worker that has it; None while it waits.
        node: Address of the Dask worker on whose machine that is; None while it waits, and where
            it is this machine.
        progress: What it has told of itself; None: nothing.
        waiting_for: As `PrimitiveJob.waiting_for`.
    """

    id: str
    name: str
    status: JobStatus
    seconds: float
    attempts: int
    pid: int | None
    node: str | None = None
    progress: Progress | None = None
    waiting_for: str | None = None


class WorkerInfo(NamedTuple):
    """A worker process.

    Attributes:
        pid: Its process id; None before the process is there.
        state: "starting" until it is ready; "idle"; "busy" with a job; "ending" while it is asked
            to leave, or is being killed.
        job: The id of the job that it has, or that is on its way to it; None: it has none.
        node: Address of the Dask worker on whose machine it is; None: it is on this machine, or
            the process is not there yet.
    """

    pid: int | None
    state: Literal["starting", "idle", "busy", "ending"]
    job: str | None
    node: str | None = None


class PoolSnapshot(NamedTuple):
    """A pool at one moment.

    Attributes:
        counts: How many there are of each kind.
        jobs: Those that are queued or running, in the order in which the pool got them.
        workers: The worker processes, the oldest first.
    """

    counts: Counts
    jobs: tuple[JobInfo, ...]
    workers: tuple[WorkerInfo, ...]


AttemptEnd = Literal["returned", "raised", "cancelled", "timeout", "memory", "died", "running"]
"""How an attempt ended: it returned; it raised; it was cancelled, passed its timeout or its memory
limit, and was killed; its worker died; or it has not ended."""


class Attempt(NamedTuple):
    """What a worker did with a job: from when it had it until it answered, or nothing was left.

    Attributes:
        name: The job's.
        end: "returned"; "raised"; "cancelled", "timeout" or "memory" of what was killed for that;
            "died" where its worker did, or was lost; "running".
        began: When, in seconds since the epoch.
        ended: The same; of one that runs, when that was looked at.
        pid: Process id of the worker.
        node: Address of the Dask worker on whose machine that is; None: it is on this one.
        attempt: 1, or more where the job was tried again.
        reason: What the word for its end does not say, such as the signal; "" where it says all.
        memory: The most bytes that it held; None: that is not known.
    """

    name: str
    end: AttemptEnd
    began: float
    ended: float
    pid: int
    node: str | None = None
    attempt: int = 1
    reason: str = ""
    memory: int | None = None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class AttemptTotal(NamedTuple):
    """All attempts of a pool that ended in one way.

    Attributes:
        attempts: How many.
        seconds: How long they took, together.
    """

    attempts: int
    seconds: float


class MemorySample(NamedTuple):
    """What a worker, and the processes below it, held at one moment.

    Attributes:
        at: When, in seconds since the epoch.
        pid: Process id of the worker.
        memory: In bytes.
        node: As that of an `Attempt`.
    """

    at: float
    pid: int
    memory: int
    node: str | None = None


class PoolAttempts(NamedTuple):
    """What a pool knows of what its workers did.

    Attributes:
        at: When that was, in seconds since the epoch.
        attempts: The last ones that have ended, and those that run.
        left_out: How many ended before those.
        totals: Of all that there ever were, by how they ended; those that run included.
        memory: What was measured while jobs with a memory limit ran, in order.
    """

    at: float
    attempts: list[Attempt]
    left_out: int
    totals: dict[AttemptEnd, AttemptTotal]
    memory: list[MemorySample]


__all__ = [
    "Attempt",
    "AttemptEnd",
    "AttemptTotal",
    "Counts",
    "JobInfo",
    "MemorySample",
    "PoolAttempts",
    "PoolSnapshot",
    "WorkerInfo",
]

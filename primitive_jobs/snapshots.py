"""What `BasePool.snapshot` returns: plain data, which can be pickled and knows no pool."""

from __future__ import annotations

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
    """

    id: str
    name: str
    status: JobStatus
    seconds: float
    attempts: int
    pid: int | None
    node: str | None = None


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


__all__ = ["Counts", "JobInfo", "PoolSnapshot", "WorkerInfo"]

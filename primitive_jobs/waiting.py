"""`as_completed` and `wait`, over jobs of any pools."""

from __future__ import annotations

import functools
import queue
import time
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from ._common.forks import Turn, in_forks
from ._common.lock_free import members
from ._engine.tracker import StatusTracker, Waiter
from ._wire.pickling import LEFT_OUT
from .errors import ResultTimeoutError
from .job import PrimitiveJob, check_may_wait, check_submitted, record_of, tracker_of
from .options import check_iterable, check_seconds, shown
from .status import JobStatus

T = TypeVar("T")


if TYPE_CHECKING:

    class DoneAndNotDone(NamedTuple, Generic[T]):
        """What `wait` returns, shaped as in `concurrent.futures`."""

        done: set[PrimitiveJob[T]]
        not_done: set[PrimitiveJob[T]]

else:  # Python 3.10 has no generic named tuples

    class DoneAndNotDone(NamedTuple):
        """What `wait` returns, shaped as in `concurrent.futures`."""

        done: set[PrimitiveJob[Any]]
        not_done: set[PrimitiveJob[Any]]

        __class_getitem__ = classmethod(GenericAlias)


def as_completed(
    jobs: Iterable[PrimitiveJob[T]], timeout: float | None = None
) -> Iterator[PrimitiveJob[T]]:
    """Yield each job as soon as it is final, whatever the order of ``jobs``; duplicates once.

    Args:
        jobs: Submitted jobs.
        timeout: Seconds from this call in which all must be final; default None: no limit.

    Raises:
        JobError: At once, if a job was not submitted.
        ResultTimeoutError: When the time is over; the jobs go on.
    """
    check_one_iterable("as_completed", jobs)
    seconds = check_seconds("timeout", timeout)
    end = None if seconds is None else time.monotonic() + seconds
    unique = list(dict.fromkeys(check_jobs(jobs)))
    return _yield_final(unique, end, seconds)


def check_one_iterable(name: str, jobs: object, *others: object) -> None:
    """Raise `TypeError` where ``name`` is called with jobs instead of an iterable of them."""
    if isinstance(jobs, PrimitiveJob) or others:
        several = "[a, b]" if others else "[a]"
        raise TypeError(
            f"jobs must be an iterable of PrimitiveJobs, as in {name}({several}), not "
            f"{shown(jobs)}{' and more arguments' if others else ''}"
        )


def check_jobs(jobs: Iterable[PrimitiveJob[T]]) -> list[PrimitiveJob[T]]:
    """Return submitted jobs as a list, duplicates included.

    Raises:
        TypeError: It is no iterable of jobs.
        JobError: One was not submitted.
    """
    checked = []
    for job in check_iterable("jobs", "PrimitiveJobs", jobs):
        if not isinstance(cast("object", job), PrimitiveJob):
            future = isinstance(getattr(job, "job", None), PrimitiveJob)
            hint = ", whose job is its attribute job" if future else ""
            raise TypeError(f"jobs must be an iterable of PrimitiveJobs; one is {shown(job)}{hint}")
        check_submitted(job)
        check_may_wait(job)
        checked.append(job)
    return checked


def _yield_final(
    jobs: list[PrimitiveJob[T]], end: float | None, timeout: float | None
) -> Iterator[PrimitiveJob[T]]:
    watch = Watch(jobs)
    total = len(jobs)
    jobs = LEFT_OUT  # a job that was yielded is not kept alive
    try:
        while watch.waiters:
            job = watch.next_final(end)
            if job is None:
                raise too_late(len(watch.waiters), total, timeout)
            yield job
            del job
    finally:
        watch.close()


def too_late(left: int, total: int, timeout: float | None) -> ResultTimeoutError:
    """What is raised when the time is over."""
    return ResultTimeoutError(f"{left} of {total} jobs are not final after {timeout} s; they go on")


class Watch(Generic[T]):
    """Jobs whose end is put into a queue.

    As their trackers: what tells of an end holds no job, which is its caller's to let go.
    """

    def __init__(self, jobs: Iterable[PrimitiveJob[T]]) -> None:
        self._final: queue.SimpleQueue[StatusTracker] = queue.SimpleQueue()
        self._jobs: dict[StatusTracker, PrimitiveJob[T]] = {}
        self.waiters: dict[PrimitiveJob[T], Waiter] = {}
        for job in jobs:
            if job in self.waiters:
                continue
            tracker = tracker_of(job)
            waiter = functools.partial(self._final.put, tracker)
            self._jobs[tracker] = job
            self.waiters[job] = waiter
            tracker.call_when_final(waiter)
        _watches.add(self)

    def next_final(self, end: float | None) -> PrimitiveJob[T] | None:
        """Wait for the next; None when it is ``end`` on the monotonic clock."""
        try:
            while True:
                left = None if end is None else max(0.0, end - time.monotonic())
                job = self._jobs.pop(self._final.get(timeout=left), None)
                if job is not None:  # else it was put twice
                    break
        except queue.Empty:
            return None
        del self.waiters[job]
        record_of(job).let_go()  # of this handle, with which the job goes from now on
        return job

    def close(self) -> None:
        """Stop watching."""
        for tracker, job in self._jobs.items():
            tracker.forget(self.waiters[job])

    def end_in_fork(self) -> None:
        """In a fork of the process: all jobs end, and this hears of it."""
        for job, waiter in list(self.waiters.items()):
            # Most have been ended by their pools: but not one that no list had at that moment,
            # and of one that had just ended nobody else tells.
            link = record_of(job).link
            if link is not None:  # else it was cancelled before its submit
                tracker_of(job).abandon(link.owner)
            waiter()


_watches: weakref.WeakSet[Watch[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for watch in members(_watches):
        watch.end_in_fork()
    _watches.clear()


in_forks(Turn.WAITERS, _after_fork_in_child)


def wait(
    jobs: Iterable[PrimitiveJob[T]],
    timeout: float | None = None,
    return_when: str = ALL_COMPLETED,
) -> DoneAndNotDone[T]:
    """Wait for jobs, as `concurrent.futures.wait` does for futures.

    Args:
        jobs: Submitted jobs.
        timeout: Seconds to wait at most; default None: no limit.
        return_when: ``concurrent.futures.ALL_COMPLETED`` (default), ``FIRST_COMPLETED`` or
            ``FIRST_EXCEPTION``, where an ERROR ends the waiting.

    Returns:
        (done, not_done), two sets.

    Raises:
        JobError: A job was not submitted.
        ValueError: ``return_when`` is none of these.
    """
    check_one_iterable("wait", jobs)
    seconds = check_seconds("timeout", timeout)
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(
            f"return_when must be one of {ALL_COMPLETED!r}, {FIRST_COMPLETED!r} and "
            f"{FIRST_EXCEPTION!r}, not {return_when!r}"
        )
    end = None if seconds is None else time.monotonic() + seconds
    unique = list(dict.fromkeys(check_jobs(jobs)))
    watch = Watch(unique)

    try:
        # Each job is looked at once, when its end is told: those that have ended come at once.
        while watch.waiters:
            job = watch.next_final(end)
            if job is None or return_when == FIRST_COMPLETED:
                break
            if return_when == FIRST_EXCEPTION and tracker_of(job).status is JobStatus.ERROR:
                break
    finally:
        watch.close()
    done = {job for job in unique if job.in_final_state()}
    return DoneAndNotDone(done, set(unique) - done)

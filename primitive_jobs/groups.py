"""`gather` and `race`: several jobs as one; what fails, or wins, stops the others for real."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, Generic, NoReturn, TypeVar

from ._engine.tracker import Outcome, StatusTracker
from ._wire.pickling import LEFT_OUT
from .errors import ResultTimeoutError, SerializationError
from .job import PrimitiveJob, ask_cancel, cancel_unbegun, tracker_of
from .options import check_bool, check_seconds
from .status import JobStatus
from .waiting import Watch, check_jobs, check_one_iterable

T = TypeVar("T")

_MOST_NAMES = 10  # of failed jobs, in a message


def gather(
    jobs: Iterable[PrimitiveJob[T]],
    *others: NoReturn,
    fail_fast: bool = True,
    timeout: float | None = None,
) -> list[T]:
    """Wait for all jobs, of whatever pools, and return their results in the order of ``jobs``.

    If one job fails, its own exception is raised; if several do, an `ExceptionGroup` of theirs, in
    the order of ``jobs`` (a `BaseExceptionGroup`, where one is no `Exception`; on Python 3.10 that
    of the package ``exceptiongroup``). A job fails that does not end DONE, also one that somebody
    else cancelled (`JobCancelledError`), or whose result cannot be unpickled here. Ctrl-C cancels
    nothing, unless a failure has begun to.

    It blocks: in an event loop, `asyncio.gather` takes jobs, too; `asyncio.TaskGroup` takes
    coroutines that await one.

    Args:
        jobs: Submitted jobs, in one iterable; one may come several times.
        *others: Nothing: jobs that do not come in one iterable are a `TypeError`, which says so.
        fail_fast: Whether the first failure cancels all other jobs at once (default), each after
            the ``grace`` of its options; what this cancelled is no failure. It is raised when all
            are final and their processes are gone.
        timeout: Seconds to wait for results at most; default None: no limit.

    Raises:
        ResultTimeoutError: The time is over; the jobs go on.
        JobError: At once, if a job was not submitted.
        TypeError, ValueError: An argument is wrong; the message names it.
        BaseException: What the jobs raised, as told above.
    """
    check_one_iterable("gather", jobs, *others)
    check_bool("fail_fast", fail_fast)
    group = _Group(jobs, timeout)
    failure: BaseException | None = None
    jobs = LEFT_OUT
    try:
        while group.places and not (fail_fast and group.failures) and group.take_next():
            if group.failures:
                group.values.clear()
        if fail_fast and group.failures:
            group.stop_others()
            group.take_failed()
        failure = group.error()
        if failure is None:
            return [group.values[place] for place in range(len(group.values))]
        raise failure  # of a job or several: tracebacks of what their functions raised are above
    finally:
        group.close()
        del group, failure  # or this frame and the exception keep each other alive


def race(jobs: Iterable[PrimitiveJob[T]], *others: NoReturn, timeout: float | None = None) -> T:
    """Return the result of the first job that is DONE; stop all others, of whatever pools.

    They are final, and their processes gone, when this returns; each had the ``grace`` of its
    options. Failures are passed over while another job may win; if all fail, what is raised is as
    in `gather`. Of jobs that have ended already, the one that ended first wins. Ctrl-C cancels
    nothing, unless the winner has begun to.

    It blocks: in an event loop, use ``await asyncio.to_thread(race, jobs)``.

    Args:
        jobs: Submitted jobs, in one iterable, at least one.
        *others: As in `gather`.
        timeout: Seconds to wait for the winner at most; default None: no limit.

    Raises:
        ResultTimeoutError: The time is over; the jobs go on.
        JobError: At once, if a job was not submitted.
        TypeError, ValueError: An argument is wrong; the message names it.
        BaseException: What the jobs raised, if none was DONE.
    """
    check_one_iterable("race", jobs, *others)
    group = _Group(jobs, timeout)
    failure: BaseException | None = None
    jobs = LEFT_OUT
    try:
        if not group.total:
            raise ValueError("jobs must be an iterable of PrimitiveJobs, at least one; it is empty")
        while group.places and not group.values and group.take_next():
            pass
        if group.values:
            group.stop_others()
            group.looked_at()
            return group.values.popitem()[1]
        failure = group.error()
        assert failure is not None, "nobody has won"
        raise failure  # of all jobs: tracebacks of what their functions raised are above
    finally:
        group.close()
        del group, failure


class _Group(Generic[T]):
    """What is known of the jobs of one call. A job is let go once it is final.

    It stays out of the frames that an exception holds: so no method raises what a job raised.

    Attributes:
        total: Different jobs.
        places: Of each job that was not looked at yet, where in the order.
        values: The results of those that were, by place.
        failures: Name, exception and tracker of those that failed, by first place.
    """

    def __init__(self, jobs: Iterable[PrimitiveJob[T]], timeout: float | None) -> None:
        self._timeout = check_seconds("timeout", timeout)
        self._end = None if self._timeout is None else time.monotonic() + self._timeout
        self.places: dict[PrimitiveJob[T], list[int]] = {}
        for place, job in enumerate(check_jobs(jobs)):
            self.places.setdefault(job, []).append(place)
        self.total = len(self.places)
        self.values: dict[int, T] = {}
        self.failures: dict[int, tuple[str, BaseException, StatusTracker]] = {}
        # Those that have ended already are told of in the order in which they did.
        self._watch = Watch(sorted(self.places, key=lambda job: tracker_of(job).ended_at()))

    def take_next(self) -> bool:
        """Wait for the next job that is final; False if the time is over."""
        job = self._watch.next_final(self._end)
        if job is None:
            return False
        self._take(job)
        return True

    def _take(self, job: PrimitiveJob[T]) -> None:
        places = self.places.pop(job)
        outcome = tracker_of(job).outcome
        assert outcome is not None
        value, error = _loaded(job, outcome)
        if error is not None:
            self.failures[places[0]] = job.name, error, tracker_of(job)
        else:
            for place in places:
                self.values[place] = value

    def stop_others(self) -> None:
        """Cancel all jobs that are not final and wait until they are; keep those that failed.

        What this cancelled has not failed, and results are not looked at any more.
        """
        final: list[PrimitiveJob[T]] = []
        others: list[PrimitiveJob[T]] = []
        for job in self.places:  # asked once each: it may end meanwhile
            (final if job.in_final_state() else others).append(job)
        try:
            _ask_cancel(others)
        except BaseException:  # an interrupt: it comes after all were asked
            _ask_cancel(others)
            raise
        for job in others:
            tracker_of(job).wait()
        failed = [job for job in final if tracker_of(job).status is not JobStatus.DONE]
        failed += [job for job in others if tracker_of(job).status is JobStatus.ERROR]
        self.places = {job: self.places[job] for job in failed}

    def take_failed(self) -> None:
        """Look at those that `stop_others` kept."""
        for job in list(self.places):
            self._take(job)

    def looked_at(self) -> None:
        """Whoever called has the answer, which covers what has failed."""
        for _, _, tracker in self.failures.values():
            tracker.looked_at()
        for job in self.places:
            tracker_of(job).looked_at()

    def close(self) -> None:
        """Be told of no job any more."""
        self._watch.close()

    def error(self) -> BaseException | None:
        """What is to be raised."""
        if self.places:
            return ResultTimeoutError(
                f"{len(self.places)} of {self.total} jobs are not final after {self._timeout} s; "
                "they go on"
            )
        self.looked_at()
        failures = [self.failures[place] for place in sorted(self.failures)]
        errors = [BaseException.with_traceback(error, None) for _, error, _ in failures]
        if len(errors) < 2:
            return errors[0] if errors else None
        names = [name for name, _, _ in failures]
        if len(names) > _MOST_NAMES:
            names[_MOST_NAMES:] = [f"{len(names) - _MOST_NAMES} more"]
        return _several(f"{len(errors)} of {self.total} jobs failed: {', '.join(names)}", errors)


def _loaded(job: PrimitiveJob[T], outcome: Outcome) -> tuple[Any, BaseException | None]:
    """The result of a job that is final, or why there is none."""
    try:
        return outcome.load(job)
    except SerializationError as error:
        return None, BaseException.with_traceback(error, None)


def _ask_cancel(jobs: list[PrimitiveJob[T]]) -> None:
    # Those that wait for a worker first, or they would get those of the others.
    for job in [job for job in jobs if not cancel_unbegun(job)]:
        ask_cancel(job)


def _several(message: str, errors: list[BaseException]) -> BaseException:
    if sys.version_info >= (3, 11):
        from builtins import BaseExceptionGroup
    else:
        from exceptiongroup import BaseExceptionGroup

    return BaseExceptionGroup(message, errors)


__all__ = ["gather", "race"]

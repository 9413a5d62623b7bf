"""`PooledJob`: the job of a run, and the status that follows from those of its parts."""

# Qiskit need not be there where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from qiskit.primitives import BasePrimitiveJob, PrimitiveResult
from qiskit.providers import JobStatus as QiskitStatus

from .._engine.record import JobRecord
from ..base_pool import BasePool, PoolView
from ..errors import ClusterError, JobCancelledError, JobError, PoolClosedError, ResultTimeoutError
from ..job import PrimitiveJob, ask_cancel, record_of, tracker_of
from ..options import check_grace, check_seconds
from ..status import FINAL_STATES, JobStatus
from .remote import PartResult, give_warnings

_Todo = tuple[BasePool | PoolView, list[str]]
"""Where the parts are to be submitted, and under which names."""


def combined_status(statuses: Sequence[JobStatus]) -> JobStatus:
    """Return the status of a job that has parts with these statuses.

    It is final only when every part is: then ERROR if a part has failed, else CANCELLED if one was
    cancelled, else DONE. Before, it is RUNNING from the day on which the first part began;
    VALIDATING as long as there is a part that is not queued yet; INITIALIZING if all are so new.
    """
    found = set(statuses)
    if found and found <= set(FINAL_STATES):
        for status in (JobStatus.ERROR, JobStatus.CANCELLED):
            if status in found:
                return status
        return JobStatus.DONE
    if found & {JobStatus.RUNNING, *FINAL_STATES}:
        return JobStatus.RUNNING
    if found == {JobStatus.QUEUED}:
        return JobStatus.QUEUED
    return JobStatus.VALIDATING if found - {JobStatus.INITIALIZING} else JobStatus.INITIALIZING


class _Together:
    """Cancels all parts of a job once one of them has ended without a result."""

    def __init__(self, parts: Sequence[PrimitiveJob[Any]]) -> None:
        self._records = [record_of(part) for part in parts]
        self._cancelling = False
        for record in self._records:
            record.tracker.call_when_final(partial(self._ended, record))

    def _ended(self, part: JobRecord) -> None:
        # Called on the pool's own thread: it only asks, waits for nothing, and holds no part.
        if part.tracker.look() is JobStatus.DONE or self._cancelling:
            return
        self._cancelling = True  # those that are cancelled now get here, too
        for other in self._records:
            other.ask_cancel()


class PooledJob(BasePrimitiveJob):  # type: ignore[misc]  # Any, where Qiskit is not followed
    """The job that `PooledSampler.run` and `PooledEstimator.run` return.

    A ``qiskit.primitives.BasePrimitiveJob`` whose ``status()`` is a ``qiskit.providers.JobStatus``.
    It has parts, a `PrimitiveJob` for one pub or some short ones. The first that fails, or is
    cancelled, has the others cancelled.

    Pickling it waits for its end, as with Qiskit's own job; then result or error, id, metadata and
    status travel.

    Attributes:
        metadata: A dict, from the option of that name of the pool's view.
        name: From the options; without, the type of the wrapped primitive.
        parts: The `PrimitiveJob` of each part, in the order of the pubs.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[PrimitiveJob[PartResult]],
        *,
        job_id: str | None = None,
        todo: _Todo | None = None,
    ) -> None:
        super().__init__(str(uuid.uuid4()) if job_id is None else job_id)
        self.metadata: dict[str, Any] = {}
        self.name = name
        self.parts = tuple(parts)
        self._results: list[Any] = []  # the first one counts
        self._unwarned = [True]  # empty: the warnings were given
        self._todo = [] if todo is None else [todo]  # until it is submitted
        _Together(self.parts)

    def _submit(self) -> None:
        """Submit the parts, once; the name that Qiskit's primitives call.

        If it raises, its caller cancels the job. Not this, nor a function between the two: an
        interrupt may come in the caller itself, right after this has returned.
        """
        if not self._todo:
            raise JobError(f"job {self.name} was submitted before")
        pool, names = self._todo.pop()
        for part, name in zip(self.parts, names, strict=True):
            _submit_part(part, pool, name)

    def _ask_cancel(self, grace: float | None = None) -> list[PrimitiveJob[PartResult]]:
        """Have every part cancelled; return those to wait for."""
        return [part for part in self.parts if ask_cancel(part, grace)]

    # --- what Qiskit's job has -------------------------------------------------------------------

    def status(self) -> Any:
        """Return the status as it is now, a ``qiskit.providers.JobStatus``; never blocks."""
        return QiskitStatus[self._status().name]

    def _status(self) -> JobStatus:
        return combined_status([part.status() for part in self.parts])

    def done(self) -> bool:
        """Return whether the status is DONE: ended with a result."""
        return self._status() is JobStatus.DONE

    def running(self) -> bool:
        """Return whether the status is RUNNING: it has begun, and has not ended."""
        return self._status() is JobStatus.RUNNING

    def cancelled(self) -> bool:
        """Return whether the status is CANCELLED."""
        return self._status() is JobStatus.CANCELLED

    def in_final_state(self) -> bool:
        """Return whether the status is DONE, CANCELLED or ERROR; nothing of it runs then."""
        return self._status() in FINAL_STATES

    def cancel(self, *, grace: float | None = None) -> bool:
        """Stop every part for real; when this returns True, nothing of the job runs any more.

        Args:
            grace: Seconds between SIGTERM and SIGKILL; default: the option ``grace`` of the pool's
                view, which is 0, SIGKILL at once, unless given.

        Returns:
            True exactly when the job's final status is CANCELLED.

        Raises:
            TypeError, ValueError: ``grace`` is no finite number of seconds from 0 on.
        """
        seconds = None if grace is None else check_grace(grace)
        for part in self._ask_cancel(seconds):
            part.wait()
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Return the ``PrimitiveResult``, the same object each time, waiting for it.

        Its pub results are in the order of the pubs. The first call that has waited long enough
        also gives the warnings that came up in the workers, each once, to this process's filters.

        Args:
            timeout: Seconds to wait at most; default None: as long as it takes.

        Raises:
            ResultTimeoutError: It is not ready in time; the job goes on.
            JobCancelledError: The job was cancelled.
            BaseException: Whatever the first part to fail raised, with the remote traceback as
                cause; what `PrimitiveJob.result` raises where a worker died or a limit was passed.
        """
        self.wait_for_final_state(timeout)
        status = self._status()
        if status is JobStatus.CANCELLED:
            raise JobCancelledError(f"job {self.name} was cancelled")
        if status is JobStatus.DONE and not self._results:
            self._results.append(self._put_together())
        try:
            self._unwarned.pop()
        except IndexError:  # somebody has been here before
            pass
        else:
            give_warnings(self.parts)
        if status is JobStatus.ERROR:
            failed = [part for part in self.parts if part.status() is JobStatus.ERROR]
            min(failed, key=lambda part: tracker_of(part).ended_at()).result()
        return self._results[0]

    def _put_together(self) -> Any:
        results = [part.result() for part in self.parts]
        return PrimitiveResult(
            [one for result in results for one in result.pub_results], metadata=results[0].metadata
        )

    # --- beyond Qiskit ---------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job is final, at most ``timeout`` s; return whether it is."""
        seconds = check_seconds("timeout", timeout)
        end = None if seconds is None else time.monotonic() + seconds
        return all(
            part.wait(None if end is None else max(0.0, end - time.monotonic()))
            for part in self.parts
        )

    def wait_for_final_state(self, timeout: float | None = None) -> None:
        """Wait until the job is final.

        Raises:
            ResultTimeoutError: It is not, after ``timeout`` s; the job goes on.
        """
        if not self.wait(timeout):
            raise ResultTimeoutError(
                f"job {self.name} is {self._status().name} after {timeout} s of waiting; it goes on"
            )

    def __repr__(self) -> str:
        ended = sum(part.in_final_state() for part in self.parts)
        return (
            f"<{type(self).__name__} {self.job_id()} {self.name!r} {self._status().name} "
            f"{ended} of {len(self.parts)} parts>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Wait for the end; the parts know how to travel."""
        self.wait()
        state = (self.job_id(), self.name, self.metadata, self.parts, bool(self._unwarned))
        return _rebuild, state


def _submit_part(part: PrimitiveJob[Any], pool: BasePool | PoolView, name: str) -> None:
    """Submit it, unless one before has ended without a result by now, and had it cancelled."""
    if part.in_final_state():
        ask_cancel(part)  # which lets its call go
        return
    record_of(part).inner = True
    try:
        part.submit(pool, name=name)
    except (PoolClosedError, ClusterError):
        raise  # this cancels it, too
    except JobError:
        if not part.cancelled():
            raise


def _rebuild(
    job_id: str,
    name: str,
    metadata: dict[str, Any],
    parts: tuple[PrimitiveJob[PartResult], ...],
    unwarned: bool,
) -> PooledJob:
    job = PooledJob(name, parts, job_id=job_id)
    job.metadata = metadata
    job._unwarned = [True] if unwarned else []
    return job


# For the primitives, but not for their users.
submit_parts = PooledJob._submit
ask_cancel_parts = PooledJob._ask_cancel

__all__ = ["PooledJob", "ask_cancel_parts", "combined_status", "submit_parts"]

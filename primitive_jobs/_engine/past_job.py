"""What of a job travels in a pickle, and what becomes of it there: a job that has ended."""

from __future__ import annotations

import pickle
from typing import Any

from .._common import identity
from .._wire.failures import RemoteTraceback, set_cause
from .._wire.pickling import dumps_whole
from ..insight.traces import Kept
from ..status import JobStatus
from .record import JobRecord
from .tracker import Outcome, StatusTracker


def state_of(
    record: JobRecord,
    metadata: dict[str, Any],
    outcome: Outcome,
    loaded: tuple[Any, BaseException | None],
) -> tuple[Any, ...]:
    """Return what travels: everything but function and arguments."""
    content = dumps_whole(loaded)
    outcome.looked_at()
    cause = None if loaded[1] is None else loaded[1].__cause__
    walk = [fact for step in record.tracker.steps() for fact in step]
    facts = (record.job_id(), record.name, metadata, outcome.status, content)
    kept = None if record.kept is None else record.kept.state()
    told = None if cause is None else str(cause)
    return *facts, told, walk, record.tracker.attempts, kept


class PastJob:
    """What was made of that.

    Attributes:
        loaded: The result, and the exception.
        metadata: As it was.
        record: With a tracker that has ended.
    """

    def __init__(self, state: tuple[Any, ...]) -> None:
        job_id, name, self.metadata, status, content, cause, walk, attempts, kept = state
        value, error = pickle.loads(content)
        if error is not None and cause is not None and error.__cause__ is None:
            set_cause(error, RemoteTraceback(cause.strip().strip('"').strip("\n") + "\n"))
        self.loaded: tuple[Any, BaseException | None] = value, error
        tracker = _PastTracker(status, walk, attempts)
        self.record: JobRecord = _PastRecord(name, tracker, job_id)
        if kept is not None:
            self.record.kept = Kept.of_state(kept, tracker.shift)


class _PastTracker(StatusTracker):
    """That of a job that has ended before it was pickled."""

    __slots__ = ("shift",)

    def __init__(self, status: JobStatus, walk: list[Any], attempts: int) -> None:
        super().__init__()
        self._outcome = Outcome(status, None)
        self._status = status
        self._attempts = attempts
        self.shift = self.remember(walk)


class _PastRecord(JobRecord):
    """The same of its record."""

    __slots__ = ()

    def __init__(self, name: str, tracker: StatusTracker, job_id: str) -> None:
        super().__init__(name, tracker)
        self._id.append(identity.drawn_of(job_id))


__all__ = ["PastJob", "state_of"]

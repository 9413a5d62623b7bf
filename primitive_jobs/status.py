"""`JobStatus`, its final states and the one table of legal moves. Pure data, no imports of ours."""

from __future__ import annotations

import enum

_QISKIT_MODULE = "qiskit.providers.jobstatus"


class JobStatus(enum.Enum):
    """The state of a job, with the names and texts of ``qiskit.providers.JobStatus``.

    A member equals (and hashes like) Qiskit's member of the same name, so that either can be
    compared with, or looked up by, the other; Qiskit is not imported for it.
    """

    INITIALIZING = "job is being initialized"
    QUEUED = "job is queued"
    VALIDATING = "job is being validated"
    RUNNING = "job is actively running"
    CANCELLED = "job has been cancelled"
    DONE = "job has successfully run"
    ERROR = "job incurred error"

    bit: int
    """A power of two of its own."""
    next_bits: int
    """The bits of those that may follow, as `TRANSITIONS` has it."""

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        kind = type(other)
        if kind is str:
            _warn_of_text(self, other)  # type: ignore[arg-type]
            return NotImplemented
        if kind is JobStatus or kind.__name__ != "JobStatus" or kind.__module__ != _QISKIT_MODULE:
            return NotImplemented
        return bool(self._name_ == getattr(other, "_name_", None))

    def __hash__(self) -> int:
        return hash(self._name_)  # what enum.Enum itself does, and so Qiskit's


def _warn_of_text(status: JobStatus, text: str) -> None:
    """A member is no text: whoever compares it with the name of one waits for ever, say."""
    name = text.upper()
    if name not in JobStatus.__members__:
        return
    import warnings

    warnings.warn(
        f"a JobStatus is never equal to a text: {status} == {text!r} is False; compare with "
        f"JobStatus.{name}, or the text with status.name",
        UserWarning,
        stacklevel=3,
    )


FINAL_STATES = (JobStatus.DONE, JobStatus.CANCELLED, JobStatus.ERROR)
"""The states that a job never leaves."""

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.INITIALIZING: frozenset({JobStatus.VALIDATING, JobStatus.CANCELLED}),
    JobStatus.VALIDATING: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED, JobStatus.ERROR}),
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.ERROR}),
    # Back to QUEUED only on a retry, or where the job certainly never started.
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.DONE, JobStatus.CANCELLED, JobStatus.ERROR}
    ),
    JobStatus.DONE: frozenset(),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.ERROR: frozenset(),
}
"""Every legal move of a job's status; any other is a bug and raises."""

# A look into the table takes two calls of a Python function, and every job asks four times.
for _place, _status in enumerate(JobStatus):
    _status.bit = 1 << _place
for _status, _followers in TRANSITIONS.items():
    _status.next_bits = sum(follower.bit for follower in _followers)

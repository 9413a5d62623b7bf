"""Waiting for a job that is being submitted, in a thread that may be what it waits for.

Code of the user's that runs while a call is pickled may ask for the result of a job. If that is the
one that is being submitted, or two threads that submit wait for each other's, it waits for ever::

    thread ── submits ─► job ◄── waits for ── thread ── submits ─► job ◄── ...

A job that was submitted ends by itself, whatever waits for it: only waits for those that are being
submitted are looked at, which are few.
"""

from __future__ import annotations

import threading
from typing import Protocol, TypeVar

from .._common.forks import Turn, in_forks
from ..errors import JobError

OutcomeT_co = TypeVar("OutcomeT_co", covariant=True)


class Waitable(Protocol[OutcomeT_co]):
    """What a job's tracker is here."""

    def wait(self) -> OutcomeT_co:
        """Block until the job is final; return how it ended."""
        ...


class Submitted(Protocol[OutcomeT_co]):
    """What a job is here."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def _tracker(self) -> Waitable[OutcomeT_co]: ...

    @property
    def _submits(self) -> list[int] | None:
        """First the ident of the thread that is submitting it; None: it was submitted."""


_awaited: dict[int, Submitted[object]] = {}
"""What a thread waits for, if that is being submitted; each thread writes its own entry."""

in_forks(Turn.PARTS, _awaited.clear)  # the other threads stayed behind


def wait(job: Submitted[OutcomeT_co]) -> OutcomeT_co:
    """Wait until a job has ended that is being submitted.

    Raises:
        JobError: It never would: its submit waits, itself or through others, for this thread.
    """
    me = threading.get_ident()
    before = _awaited.get(me)  # in a signal handler, a finalizer
    try:
        # First: of threads that close a circle, the last one to look sees it whole.
        _awaited[me] = job
        if _leads_to(me, job):
            raise JobError(
                f"job {job.name} is among its own arguments, directly or through another job's: "
                "what is called while it is pickled would wait for its end, and it for that"
            )
        return job._tracker.wait()
    finally:
        if before is None:
            _awaited.pop(me, None)
        else:
            _awaited[me] = before


def _leads_to(thread: int, job: Submitted[object]) -> bool:
    """Whether the submit of a job waits for a thread; a circle of others is theirs to find."""
    next_one: Submitted[object] | None = job
    seen: set[int] = set()
    while next_one is not None and (submits := next_one._submits):
        submitter = submits[0]
        if submitter == thread:
            return True
        if submitter in seen:
            return False
        seen.add(submitter)
        next_one = _awaited.get(submitter)
    return False

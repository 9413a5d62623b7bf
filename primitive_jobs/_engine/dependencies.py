"""`Dependencies`: the jobs of a pool that wait for others, of this pool or another, to end.

    another job is final ─► its waiter ─► inbox ─► `_ended` ─┬─► scheduler: one less is missing
    (on whatever thread)                                     └─► scheduler: the job ends, unmet

The waiter holds two numbers and puts them into the inbox; so whoever ends a job does nothing else
for those that wait for it, and a chain of jobs that end one after the other is a loop of the
dispatcher. It may be called twice, or for a job that has ended meanwhile: then its place is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .._common.threads import make_thread
from ..errors import JobError
from ..status import JobStatus
from .awaited import Awaited
from .events import DependencyDone, Event, HeldBack, NeverDone, Unmet
from .fence import bare
from .fleet import News
from .record import JobRecord
from .registry import JobRegistry
from .standing import needs_of, record_of


class Dependencies:
    """One dispatcher's, used on its thread alone.

    Args:
        jobs: The pool's.
        feed: Tells the scheduler an event.
        tell: Puts something into the inbox; on any thread.
    """

    __slots__ = ("_feed", "_jobs", "_tell")

    def __init__(
        self, jobs: JobRegistry, feed: Callable[[Event], None], tell: Callable[[Any], None]
    ) -> None:
        self._jobs = jobs
        self._feed = feed
        self._tell = tell

    def take_in(self, job: JobRecord) -> None:
        """Have a registered job wait for others."""
        number = job.number
        waiters: dict[int, tuple[Awaited, Callable[[], None]]] = {}
        for place, awaited in enumerate(job.awaits):
            if isinstance(awaited, Awaited):  # else it has ended, and is cancelled in a moment
                waiters[place] = awaited, functools.partial(self._post, number, place)
        self._jobs.held[number] = waiters
        self._feed(HeldBack(number, job.limits, len(waiters)))
        if number not in self._jobs.held:
            return  # it came too late
        for awaited, waiter in list(waiters.values()):
            other = awaited.record  # once: another pool's thread may take it out, if both share it
            if other is not None:
                other.tracker.call_when_final(waiter)
            else:  # its result is there since before it was submitted
                waiter()

    def _post(self, number: int, place: int) -> None:
        """On whatever thread has ended the other job."""
        self._tell(News(functools.partial(self._ended, number, place)))

    def _ended(self, number: int, place: int) -> None:
        waiters = self._jobs.held.get(number)
        if waiters is None or place not in waiters:
            return
        job, awaited = self._jobs.unfinished[number], waiters[place][0]
        try:
            why: bool | BaseException | None = self._look_at(job, awaited, place)
        except Exception as error:  # noqa: BLE001 - no memory, say: nobody shall wait for ever
            why = bare(error)
        if why is None:
            return  # not yet
        del waiters[place]
        if isinstance(why, BaseException) or not why:
            failure = why if isinstance(why, BaseException) else None
            self._feed(NeverDone(number, Unmet(place, awaited.record, failure)))
            return
        awaited.record = None
        if not waiters:
            del self._jobs.held[number]
        self._feed(DependencyDone(number))

    def _look_at(self, job: JobRecord, awaited: Awaited, place: int) -> bool | Exception | None:
        """Return whether the result is there; an exception: it cannot be sent; None: not yet."""
        if awaited.content is not None:
            return True
        if awaited.failure is not None:
            return awaited.failure
        other = awaited.record
        assert other is not None, "it has not been there yet"
        outcome = other.tracker.outcome
        if outcome is None or outcome.status is not JobStatus.DONE:
            return False
        if awaited.take_unread():
            return True
        # Code of the user's may run, so it does not here; nor on the thread for callbacks, one of
        # which may be waiting for this very job.
        again = functools.partial(self._pickle_again, job, awaited, place)
        make_thread("pickle-again", again).start()
        return None

    def _pickle_again(self, job: JobRecord, awaited: Awaited, place: int) -> None:
        """On a thread of its own."""
        try:
            needs = needs_of(job.handle)
            # Else it has ended, or is one that was resubmitted after it was unmet.
            if len(needs) > place and record_of(needs[place]) is awaited.record:
                awaited.pickle_again(needs[place])
        except Exception as error:  # noqa: BLE001 - it is told
            awaited.failure = error
        if awaited.content is None and awaited.failure is None:
            awaited.failure = JobError("nobody has it any more")
        self._post(job.number, place)


__all__ = ["Dependencies"]

"""`Window`: what is seen of a pool, and done to its jobs, from outside of its program.

Whoever shows the pool to others is handed it, and knows nothing of the engine but this. All of it
is called on the dispatcher's thread, but for what says otherwise; no call blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

from ..insight.printed import Prints
from ..logs import Report
from ..snapshots import PoolSnapshot
from ..status import FINAL_STATES, JobStatus
from .fleet import Fleet, News
from .inbox import Inbox
from .look import glance_at, snapshot_of
from .record import JobRecord, known_by
from .registry import JobRegistry
from .scheduler import BUSY, GRACE, Scheduler
from .tracker import StatusTracker

_REMEMBERED = 1000  # jobs that were shown, of which it is known that they were there


class SeenJob(NamedTuple):
    """One job, as it is seen from outside.

    Attributes:
        id: Its id.
        name: Its name.
        status: What it is now; None: it is over, and how is not known any more.
        pid: Process id of the worker that has it.
        node: Where that is, if not on this machine.
    """

    id: str
    name: str
    status: JobStatus | None
    pid: int | None
    node: str | None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status is None or self.status in FINAL_STATES


class SeenOutput(NamedTuple):
    """A piece of what a job has printed.

    Attributes:
        path: The file that it prints to; None: it is kept.
        start: Where the piece begins.
        data: The piece.
        over: Whether nothing more comes.
    """

    path: str | None
    start: int
    data: bytes
    over: bool


class _Shown(NamedTuple):
    """What is kept of a job that was shown: not its tracker, which has the outcome."""

    number: int
    name: str
    tracker: weakref.ref[StatusTracker]
    prints: weakref.ref[Prints] | None


class Window:
    """One pool, as it is seen from outside of its program.

    Args:
        scheduler: The pool's.
        jobs: Its unfinished jobs.
        fleet: Its workers.
        inbox: Its inbox.
        report: Logs.

    Attributes:
        report: As the argument.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        jobs: JobRegistry,
        fleet: Fleet,
        inbox: Inbox,
        report: Report,
    ) -> None:
        self.report = report
        self._scheduler = scheduler
        self._jobs = jobs
        self._fleet = fleet
        self._inbox = inbox
        self._shown: dict[str, _Shown] = {}  # by id, the oldest first

    @property
    def max_workers(self) -> int:
        """Most jobs that run at a time."""
        return self._scheduler.max_workers

    def look(self, most: int) -> PoolSnapshot:
        """Return counts, workers, all running jobs, and the first ``most`` that wait."""
        look = glance_at(self._scheduler, self._jobs, self._fleet, most)
        for record in look.records:
            self._remember(record)
        return snapshot_of(look)

    def find(self, prefix: str, most: int) -> list[SeenJob]:
        """Return the jobs whose id begins so, at most so many; those that were shown are known
        also when they are over.

        It takes some ms for 100,000 unfinished jobs.
        """
        records = known_by(prefix, list(self._jobs.unfinished.values()))[:most]
        for record in records:
            self._remember(record)
        if records:
            return list(map(_seen, records))
        past = [each for each in self._shown.items() if each[0].startswith(prefix)]
        return [_past(*each) for each in past[:most]]

    def cancel(self, job_id: str, done: Callable[[SeenJob], None]) -> Cancelling | None:
        """Cancel a job that was shown, with its own grace, as its owner would.

        None: it is not unfinished. ``done`` is called once, on this thread, when the job is final.
        """
        shown = self._shown.get(job_id)
        record = None if shown is None else self._jobs.unfinished.get(shown.number)
        return None if record is None else Cancelling(record, self._inbox, done)

    def ask_stack(self, job_id: str, *, deep: bool, force: bool) -> str:
        """Ask for the stack of a job that was shown; return why that is not done, or "": it is.

        The arguments are those of `Stacks.ask`.
        """
        slot, stacks = self._slot_of(job_id), self._fleet.stacks
        if slot is None:
            return "it is not running"
        if stacks is None:
            node = self._fleet.workers[slot].node
            return f"it runs on another machine, {node}: ask for its stack there"
        return stacks.ask(slot, deep=deep, force=force)

    def stack(self, job_id: str) -> str | None:
        """Return what there is of it; None: the job does not run any more, or cannot be asked."""
        slot, stacks = self._slot_of(job_id), self._fleet.stacks
        return None if slot is None or stacks is None else stacks.text(slot)

    def output(self, job_id: str, place: int, most: int) -> SeenOutput | None:
        """Return what a job that was shown has printed, from a place on; None: nobody knows."""
        shown = self._shown.get(job_id)
        prints = None if shown is None or shown.prints is None else shown.prints()
        if shown is None or prints is None:
            return None
        over = shown.number not in self._jobs.unfinished  # first: then all of it is there
        start, data = (place, b"") if prints.path else prints.printed.piece(place, most)
        return SeenOutput(prints.path, start, data, over)

    def _slot_of(self, job_id: str) -> int | None:
        """The number of the slot whose worker runs a job, and is not being killed."""
        shown = self._shown.get(job_id)
        job = None if shown is None else self._scheduler.jobs.get(shown.number)
        slot = None if job is None or job.slot is None else self._scheduler.slots.get(job.slot)
        if slot is None or slot.job is not job or slot.state not in (BUSY, GRACE):
            return None
        return slot.number if self._scheduler.runs(slot) else None

    def _remember(self, record: JobRecord) -> None:
        shown = self._shown
        if record.job_id() not in shown:
            tracker = weakref.ref(record.tracker)
            prints = None if record.prints is None else weakref.ref(record.prints)
            shown[record.job_id()] = _Shown(record.number, record.name, tracker, prints)
            if len(shown) > _REMEMBERED:
                del shown[next(iter(shown))]


class Cancelling:
    """A cancel that somebody waits for; making it asks for the cancel.

    Args:
        record: The job's.
        inbox: By which the dispatcher is told of its end.
        done: Called with the job when it is final.
    """

    def __init__(self, record: JobRecord, inbox: Inbox, done: Callable[[SeenJob], None]) -> None:
        self._record = record
        self._inbox = inbox
        self._done = [done]  # until it is called, or nobody waits any more
        record.ask_cancel()
        record.tracker.call_when_final(self._ended)

    def _ended(self) -> None:
        """On any thread, perhaps twice."""
        self._inbox.tell(News(self.finish))

    def finish(self) -> None:
        """Tell now, if the job is final and nobody was told; the pool may have ended since."""
        if self._done and self._record.tracker.outcome is not None:
            self._done.pop()(_seen(self._record))

    def drop(self) -> None:
        """Nobody waits for it any more; the cancel goes on."""
        self._done.clear()
        self._record.tracker.forget(self._ended)


def _seen(record: JobRecord) -> SeenJob:
    tracker = record.tracker
    return SeenJob(record.job_id(), record.name, tracker.status, tracker.pid, tracker.node)


def _past(job_id: str, shown: _Shown) -> SeenJob:
    tracker = shown.tracker()
    return SeenJob(job_id, shown.name, None if tracker is None else tracker.status, None, None)


__all__ = ["Cancelling", "SeenJob", "SeenOutput", "Window"]

"""`Recall`: sends jobs ahead to busy workers, and takes them back before they could wait.

A job that was sent ahead is a datagram in the queue that the kernel has for its worker. Pool and
worker both read there, and the kernel gives each datagram to one of them. So after the pool has
read until nothing was left, it knows of each job whether the worker has received it; whatever
came back has not begun, and never will. The worker receives a job only after it has answered the
one before: of those it has received, all but the last are answered, and the answers are there.

=============================  ====================================================================
what may happen                why nothing is lost, or done twice
=============================  ====================================================================
the worker receives some       each datagram goes to one of the two: what came back is queued
while the pool reads           again, under a new attempt, and what did not is the worker's
the worker dies                the pool holds the other end, too: what was not received is there
the job is cancelled           its tracker's gate is taken since before it was sent: the pool
                               decides, after it has taken the line back
it is cancelled before it is   the gate refuses it: it goes back to the queue, where the cancel,
sent                           which is in the inbox, finds it
somebody reads its status      the worker notes in the page when it begins: see `SentAhead`
meanwhile
its worker does not answer     after 1 ms (5 ms while the others are fed anyway) the line is taken
                               back, and that worker gets none until it has answered
=============================  ====================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .events import (
    Actions,
    CancelAsked,
    Died,
    Event,
    Faulted,
    HandedOver,
    HeldBack,
    Lesson,
    SendAhead,
    Started,
    Tick,
    Unsent,
)
from .fence import Unfenced, bare
from .fleet import Fleet, Worker
from .gate import SentAhead
from .lines import MOST, PLAIN_SIZE
from .record import JobRecord
from .registry import JobRegistry
from .scheduler import Scheduler
from .slots import BUSY, Slot

_UNTOUCHED = (HandedOver, HeldBack, Lesson, Started, Unsent)
"""The events that touch no line: they can be told with the lines as they are."""
# s that the sending of a line may take. If it takes longer, a caller that computes gets the
# interpreter's lock after each job that is sent: then what is in the inbox comes first.
_PATIENCE = 0.002
PAUSE = 0.001  # s between two looks whether workers answer, while there are lines


class Recall:
    """The lines of one pool, on its dispatcher's thread.

    Args:
        scheduler: The pool's.
        jobs: The pool's.
        fleet: The pool's.
        carry_out: Carries out actions of the scheduler's.
        tell: Puts an event into the inbox.
        log: Logs what has raised about a worker.
    """

    __slots__ = ("_carry_out", "_fleet", "_jobs", "_lines", "_log", "_scheduler", "_tell", "slots")

    def __init__(
        self,
        scheduler: Scheduler,
        jobs: JobRegistry,
        fleet: Fleet,
        carry_out: Callable[[Actions], None],
        tell: Callable[[Event], None],
        log: Callable[[str, Worker | None, Exception], None],
    ) -> None:
        self._scheduler = scheduler
        self._jobs = jobs
        self._fleet = fleet
        self._carry_out = carry_out
        self._tell = tell
        self._log = log
        self._lines = scheduler.lines
        self._lines.most = 0 if fleet.ahead is None else MOST
        self.slots = scheduler.lines.slots  # those with a line; the same object each time

    # --- sending ---------------------------------------------------------------------------------

    def send(self, action: SendAhead) -> Event | None:
        """Send a worker jobs; return what the scheduler has to be told because of that."""
        ahead, slot = self._fleet.ahead, action.slot
        assert ahead is not None, "else there are no lines"
        worker, page = self._fleet.workers[slot], ahead.page(slot)
        unfinished, unsent = self._jobs.unfinished, []
        lost = False
        enough = time.monotonic() + _PATIENCE
        for number, attempt, place in action.jobs:
            job, how = unfinished[number], SentAhead(worker, page, place, attempt)
            if lost or time.monotonic() > enough or not job.tracker.send_ahead(how):
                unsent.append(attempt)
            elif not ahead.send(slot, attempt, job.payload, place):
                job.tracker.came_back()
                unsent.append(attempt)
                lost = True
        if lost:
            self._tell(Died(slot))
        return Unsent(slot, unsent) if unsent else None

    def attempt_of(self, number: int) -> int:
        """Return the attempt that a worker has; if that has begun, its limit counts from then."""
        slot = self._scheduler.slots.get(number)
        if slot is None or slot.job is None:
            return 0
        if slot.deadline is not None and slot.state is BUSY:
            since = self._jobs.unfinished[slot.job.number].tracker.began_at()
            if since is not None:
                self._lines.began(slot, since)
        return slot.attempt

    # --- taking back -----------------------------------------------------------------------------

    def before(self, event: Event) -> None:
        """Take back every line that an event may touch, before the scheduler is told of it."""
        if type(event) is CancelAsked:
            job = self._scheduler.jobs.get(event.job)
            if job is not None and job.slot in self.slots:
                self._of(job.slot)
                if self._lines.are_overtaken():
                    self._of_all()
        elif not isinstance(event, _UNTOUCHED):
            self._of_all()

    def before_job(self, job: JobRecord) -> bool:
        """The same, before a job comes; return whether that itself may be sent ahead."""
        limits, payload = job.limits, job.payload
        if self.slots and limits.priority > self._lines.priority:
            self.all()
        small = type(payload) is bytes and len(payload) <= PLAIN_SIZE
        return small and limits.memory_limit is None and limits.needs is None

    def before_idle(self, slot: int) -> None:
        """The same, before an answer of a worker, while nothing is in the queue."""
        known = self._scheduler.slots.get(slot)
        if known is not None and not known.line:
            self.all()

    def tick(self) -> Tick:
        """Take in the answers of workers that seem to be late; return who is.

        The dispatcher itself may have been held up, between any two steps: an answer may be there.
        """
        ahead = self._fleet.ahead
        if ahead is None:
            return Tick()
        late = set()
        for slot in self._lines.due(time.monotonic()):
            for _ in range(2 * MOST):
                self.attempt_of(slot.number)  # the worker may have begun later than it seemed
                if slot.deadline is None or slot.deadline > time.monotonic():
                    break
                if not ahead.hear(slot.number, 1):
                    late.add((slot.number, slot.attempt))
                    break
        return Tick(frozenset(late))

    def all(self) -> None:
        """Take back all lines, and give the jobs to those workers that are free."""
        self._of_all()
        self._fill()

    def _fill(self) -> None:
        try:
            actions = self._scheduler.filled(time.monotonic())
        except Exception as error:
            raise Unfenced from error
        self._carry_out(actions)

    def look(self) -> None:
        """Take back the lines of workers that do not answer; `PAUSE` says when to look again."""
        late = self._lines.late(time.monotonic())
        for slot in late:
            if slot.number in self.slots:
                self._of(slot.number)
        overtaken = self._lines.are_overtaken()
        if overtaken:
            self._of_all()
        if late or overtaken:
            self._fill()

    def _of_all(self) -> None:
        while self.slots:
            self._of(next(iter(self.slots)))

    def _of(self, number: int) -> None:
        """Take back one line."""
        slot = self.slots.pop(number)
        ahead = self._fleet.ahead
        assert ahead is not None, "else there are no lines"
        held, self._lines.held = self._lines.held, True
        try:
            for job in self._taken_back(slot, ahead.take_back(number)):
                self._jobs.unfinished[job].tracker.came_back()
            self.attempt_of(number)
            if slot.line:  # all but the last one are answered
                ahead.hear(number, len(slot.line))
            if slot.line:  # foreign code must have read or written in its place
                raise RuntimeError("it has not answered all of its jobs but the last")
        except Exception as error:  # noqa: BLE001 - it is logged
            self._log("taking jobs back", self._fleet.workers.get(number), error)
            self._tell(Faulted(number, bare(error)))
        finally:
            self._lines.held = held

    def _taken_back(self, slot: Slot, attempts: list[int]) -> list[int]:
        try:
            return self._lines.taken_back(slot, attempts, time.monotonic())
        except Exception as error:
            raise Unfenced from error


__all__ = ["PAUSE", "Recall"]

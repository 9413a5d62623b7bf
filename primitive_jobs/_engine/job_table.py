"""`JobTable`: the unfinished jobs of one pool: whether the next may start, and how each ends.

A pure part of the scheduler's state. The order of the jobs that wait is in `queue`.
"""

from __future__ import annotations

from .._wire.evidence import Evidence
from .._wire.messages import Kind, Message
from .admission import Admission
from .delays import Delays, after
from .events import (
    Assign,
    Begin,
    Cancelled,
    Fate,
    Lost,
    OutOfMemory,
    Reason,
    Requeue,
    Settle,
    Terminate,
    TimedOut,
    TurnedAway,
    Unkilled,
    Unreachable,
)
from .held import Held
from .lines import Lines
from .queue import Job, JobQueue
from .roster import Roster
from .slots import BUSY, DYING, GRACE, Slot
from .staffing import MAX_STARTS, Staffing

_RETRIABLE = int(Kind.RETRIABLE)  # of an IntEnum takes longer to compare with


class JobTable:
    """The jobs, each in exactly one place: in the queue, delayed, held, or in a slot of the roster.

    Args:
        roster: The pool's workers.
        staffing: When more of them are started.
        max_jobs_per_worker: Jobs after which a worker is asked to leave; None: never.
        confirms: Whether `Taken` is told of each job: see `Fleet`.

    Attributes:
        jobs: All that have not ended, by number.
        admission: Those that wait and need more than any worker.
        delayed: Those that wait until they may be tried again.
        held: Those that wait for other jobs.
        lines: Those that were sent ahead.
        queue: The others that wait.
        broken: Why no worker can be reached any more; None: they can.
    """

    def __init__(
        self,
        roster: Roster,
        staffing: Staffing,
        max_jobs_per_worker: int | None,
        *,
        confirms: bool = False,
    ) -> None:
        self.jobs: dict[int, Job] = {}
        self.broken: BaseException | None = None
        self.queue = JobQueue()
        self.admission = Admission(roster, self.queue, roster.reservations)
        self.delayed = Delays()
        self.held = Held()
        self.lines = Lines(roster, self.queue, max_jobs_per_worker)
        self._roster = roster
        self._staffing = staffing
        self._max_jobs_per_worker = max_jobs_per_worker
        self._confirms = confirms

    # --- which one is next -----------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Put a job into the queue; it may be one that has waited before."""
        self.jobs[job.number] = job
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if job.needs is None:
            self.queue.push(job)
        else:
            self.admission.push(job)

    @property
    def waiting(self) -> int:
        """How many jobs might start, now or later, if there were workers enough.

        Those with needs count where they might start now; and then so do the others.
        """
        if self._roster.needy:
            return sum(width == 1 for _, width in self.admission.wanting)
        return self.queue.count

    def fill_up(self) -> None:
        """Have the workers started that are missing."""
        if self._roster.needy:
            wide = [width for _, width in self.admission.wanting if width > 1]
            self._staffing.fill_up(self.waiting, wide)
        else:
            self._staffing.fill_up(self.queue.count)

    def may_start(self, job: Job | None) -> bool:
        """Whether a free worker may have a job now; while some need more, `Admission` decides it.

        Args:
            job: The next one in the queue; None: a plain one that came now, behind all others.
        """
        roster = self._roster
        if roster.blocks or roster.running + roster.extra >= roster.max_workers:
            return False
        return job is not None or not (self.queue.count or roster.closing)

    def fill(self) -> None:
        """Give idle workers the jobs that may start now."""
        if self._roster.needy:
            pausing = self._staffing.pause.until is not None
            self.admission.place(self._assign, pausing=pausing)
        idle = self._roster.idle
        while idle and (job := self._next()) is not None:
            self._assign(idle.pop(), job)

    def _next(self) -> Job | None:
        """Take the next job out of the queue, if it may start now."""
        queue = self.queue
        if queue.count and self.may_start(queue.first()):
            return queue.pop()
        return None

    def _assign(self, slot: Slot, job: Job) -> None:
        roster = self._roster
        roster.give(slot, job)
        if job.needs is not None:
            roster.reservations.reserve(slot, job.needs)
        if job.timeout is not None and not self._confirms:
            roster.limit(slot, roster.now + job.timeout)
        if job.memory_limit is None:
            roster.actions.append(Assign(slot.number, job.number, slot.attempt))
            return
        # What earlier jobs left behind in the worker, or made it import, shall not count against
        # this one.
        room = job.memory_limit if slot.served or slot.spare else None
        roster.actions.append(Assign(slot.number, job.number, slot.attempt, room))
        roster.watch(slot, job.memory_limit)

    def taken(self, slot: Slot, job: Job) -> None:
        """Begin a job that was sent to a worker: that has it now."""
        self._begin(slot, job)
        if slot.state is BUSY and job.timeout is not None:
            self._roster.limit(slot, self._roster.now + job.timeout)

    def _begin(self, slot: Slot, job: Job) -> None:
        slot.taken = slot.attempt
        self._roster.actions.append(Begin(slot.number, job.number))

    # --- how they end ----------------------------------------------------------------------------

    def settle(self, slot: Slot, fate: Fate) -> None:
        """End the job that a slot has."""
        number = self._roster.take_job(slot).number
        del self.jobs[number]
        self._roster.actions.append(Settle(number, fate))

    def _settle_waiting(self, job: Job, fate: Fate) -> None:
        if not (self.delayed.remove(job) or self.held.remove(job)):
            (self.queue if job.needs is None else self.admission).remove(job)
        del self.jobs[job.number]
        self._roster.actions.append(Settle(job.number, fate))

    def fail_waiting(self, fate: Fate, width: int = 1) -> None:
        """End the jobs that might have started on a worker for so many CPUs."""
        if self._roster.needy:  # of the others, which lack something, each has its turn
            for job in [job for job, each in self.admission.wanting if each == width]:
                if job.number in self.jobs and job.slot is None:
                    self._settle_waiting(job, fate)
        while width == 1 and self.queue.count:
            self._settle_waiting(self.queue.first(), fate)

    def turn_away(self, number: int) -> None:
        """End a job that came too late."""
        fate = TurnedAway() if self.broken is None else Unreachable(self.broken)
        self._roster.actions.append(Settle(number, fate))

    def give_up(self, error: BaseException) -> None:
        """End all jobs: no worker can be reached. Those that have one end when that is gone."""
        self.broken = error
        self.fail_waiting(Unreachable(error))
        others = [*self.admission.jobs(), *(job for _, job in self.delayed.jobs.values())]
        for job in [*others, *self.held.jobs.values()]:
            self._settle_waiting(job, Unreachable(error))
        for job in self.jobs.values():
            if job.slot is not None:
                slot = self._roster.slots[job.slot]
                slot.reason = slot.reason or Reason.BROKEN

    def answered(self, slot: Slot, message: Message) -> bool:
        """End the attempt of a busy worker's job; return whether that has another job.

        Else it idles or leaves.
        """
        roster = self._roster
        if self._confirms:
            self._begin_at_last(slot)
        if slot.reserves:  # others may wait for what comes back
            roster.blocks = roster.needy
        if message.kind == _RETRIABLE:
            self._raised(slot, message)
        else:
            self.settle(slot, message)
        if slot.deadline is not None:
            roster.limit(slot, None)
        if slot.watched:
            roster.unwatch(slot)
        slot.longest = max(message.extra, slot.longest - (slot.longest >> 2))
        slot.served += 1
        if slot.line:
            self.lines.move_up(slot)
            return True
        if slot.retiring or slot.served == self._max_jobs_per_worker:
            roster.ask_to_leave(slot)
        elif slot.width == 1 and (job := self._next()) is not None:
            if job.plain and (depth := self.lines.depth(slot)) > 0:
                self.lines.start(slot, job, depth)
            else:
                self._assign(slot, job)
            return True
        else:
            roster.set_idle(slot)
        return False

    def answered_late(self, slot: Slot, message: Message) -> None:
        """Take in the answer of a worker that was sent SIGTERM, or is being killed."""
        if self._confirms:
            self._begin_at_last(slot)
        # In the grace only a result ends a cancelled job; and a limit that was passed stays passed.
        counts = message.kind == Kind.RETURNED and slot.reason is Reason.CANCEL
        if slot.state is GRACE:
            # What was sent SIGTERM is not used again: the signal may still be on its way.
            if counts:
                self.settle(slot, message)
            self._roster.kill(slot, ask_stack=False)  # its job is not there any more
        elif slot.was is not GRACE or counts:
            # DYING: it was faster than the kill
            if message.kind == _RETRIABLE:
                self._raised(slot, message)
            else:
                self.settle(slot, message)

    def _begin_at_last(self, slot: Slot) -> None:
        """Begin a job whose outcome is there: a worker that is being killed does not say more."""
        if slot.job is not None and slot.taken != slot.attempt:
            self._begin(slot, slot.job)

    def worker_gone(self, slot: Slot, job: Job, evidence: Evidence) -> None:
        """End, give back or try again the job of a worker of which nothing is left."""
        if slot.reason is Reason.CANCEL:
            self.settle(slot, Cancelled() if evidence.left is None else Unkilled(evidence))
        elif slot.reason is Reason.TIMEOUT:
            self.settle(slot, TimedOut(job.timeout or 0.0, evidence.stack, evidence.left))
        elif slot.reason is Reason.MEMORY:
            limit = job.memory_limit or 0
            self.settle(slot, OutOfMemory(limit, slot.peak, evidence.stack, evidence.left))
        elif self.broken is not None:
            self.settle(slot, Unreachable(self.broken, evidence))
        elif evidence.left is not None:  # neither given back nor tried again
            self.settle(slot, Lost(evidence))
        elif evidence.noted is not None and evidence.noted < slot.attempt:
            self.give_back(slot, job, evidence)
        elif job.retries > 0:
            self._retry(slot, job, evidence=evidence)
        else:
            self.settle(slot, Lost(evidence))

    def _raised(self, slot: Slot, message: Message) -> None:
        """Try a job again that has raised what it may be tried again after, or end it."""
        job = slot.job
        assert job is not None, "whoever answers has one"
        if job.retries <= 0 or slot.reason not in (None, Reason.CANCEL):
            self.settle(slot, message)  # a limit that it passed never counts
        elif slot.reason is None:
            self._retry(slot, job, answer=message)
        # Else it is cancelled once nothing is left of its worker: see `worker_gone`.

    def end_line(self, slot: Slot, evidence: Evidence) -> None:
        """End the jobs in the line of a worker that did not answer as workers do; see `Recall`.

        Those that began, as far as it has noted that, may have been done: they do not run again.
        """
        line = list(slot.line)
        slot.line.clear()
        for job in line:
            job.slot = None
            unbegun = evidence.noted is not None and evidence.noted < job.attempt
            if unbegun and not job.cancel_asked:
                self.add(job)
                self._roster.actions.append(Requeue(job.number))
            else:
                del self.jobs[job.number]
                fate = Cancelled() if unbegun else Lost(evidence)
                self._roster.actions.append(Settle(job.number, fate))

    def give_back(self, slot: Slot, job: Job, evidence: Evidence) -> None:
        """Queue a job again that certainly never began; the third such attempt ends it."""
        job.unstarted += 1
        if job.cancel_asked:
            self.settle(slot, Cancelled())
        elif job.unstarted >= MAX_STARTS:
            self.settle(slot, Lost(evidence))
        else:
            self._requeue(slot, Requeue(job.number))

    def _retry(
        self,
        slot: Slot,
        job: Job,
        *,
        evidence: Evidence | None = None,
        answer: Message | None = None,
    ) -> None:
        """Have a job tried again whose worker died, or which raised, after its delay."""
        job.retries -= 1
        job.plain = False  # what goes ahead of its call is sent with it alone
        if job.cancel_asked:
            self.settle(slot, Cancelled())
            return
        delay, job.retry_delay = job.retry_delay, after(job.retry_delay)
        self._requeue(slot, Requeue(job.number, True, evidence, answer, delay))

    def _requeue(self, slot: Slot, action: Requeue) -> None:
        roster = self._roster
        roster.actions.append(action)
        job = roster.take_job(slot)
        if action.delay > 0:
            self.delayed.put(job, roster.now + action.delay)
        else:
            self.add(job)

    # --- they are tried again later --------------------------------------------------------------

    def queue_due(self) -> None:
        """Queue the delayed jobs that are due."""
        for job in self.delayed.take_due(self._roster.now):
            self._enqueue(job)

    def next_deadline(self) -> float | None:
        """Return when the next tick is due; None: never."""
        due = self._roster.next_deadline()
        if self._staffing.pausing:
            due = _sooner(due, self._staffing.next_start(self.waiting))
        if self.delayed.jobs:
            due = _sooner(due, self.delayed.first())
        if self._roster.needy:
            due = _sooner(due, self.admission.next_look())
        return due

    # --- they wait for others --------------------------------------------------------------------

    def hold(self, job: Job, missing: int) -> None:
        """Take a job in that waits for so many others."""
        self.jobs[job.number] = job
        self.held.put(job, missing)

    def dependency_done(self, number: int) -> None:
        """One of those that a job waits for is done; after the last one it waits for a worker."""
        job = self.held.done(number)
        if job is not None:
            self._enqueue(job)

    def never_done(self, number: int, fate: Fate) -> None:
        """One of them has ended otherwise."""
        job = self.held.jobs.get(number)
        if job is not None:
            self._settle_waiting(job, fate)

    def withdraw(self, slot: Slot) -> None:
        """Forget a busy worker's job, which has ended before it was sent there."""
        roster = self._roster
        del self.jobs[roster.take_job(slot).number]
        roster.limit(slot, None)
        roster.unwatch(slot)
        if slot.retiring:
            roster.ask_to_leave(slot)
        else:
            roster.set_idle(slot)

    # --- they are stopped ------------------------------------------------------------------------

    def cancel(self, job: Job, grace: float) -> None:
        """Cancel a job; a running one is killed ``grace`` s after SIGTERM."""
        job.cancel_asked = True
        if job.slot is None:
            self._settle_waiting(job, Cancelled())
            return
        slot = self._roster.slots[job.slot]
        # Else it is in a line, of a worker that is about to be killed: see `end_line`.
        if slot.job is job and slot.state in (BUSY, GRACE):
            self.stop(slot, Reason.CANCEL, grace)

    def cancel_all(self, grace: float | None) -> None:
        """Cancel every job; ``grace`` None: each with its own."""
        for job in sorted(self.jobs.values(), key=lambda job: job.slot is not None):
            # The waiting first, or they would move up.
            self.cancel(job, job.grace if grace is None else grace)

    def stop(self, slot: Slot, reason: Reason, grace: float) -> None:
        """Kill a busy worker, after a grace if there is one; the first reason counts."""
        roster = self._roster
        slot.reason = slot.reason or reason
        if grace <= 0:
            roster.kill(slot)
            return
        until = roster.now + grace
        if slot.deadline is None or until < slot.deadline or reason is Reason.TIMEOUT:
            roster.limit(slot, until)
        if slot.state is BUSY:
            roster.move(slot, GRACE)
            roster.actions.append(Terminate(slot.number))


def check(table: JobTable, roster: Roster) -> None:
    """For tests: raise `AssertionError` if the state contradicts ittable."""
    slots = roster.slots
    waiting = sorted(n for n, job in table.jobs.items() if job.slot is None)
    table.admission.check()
    with_needs = table.admission.jobs()
    queued = [*table.queue.numbers(), *(job.number for job in with_needs)]
    others = [*table.delayed.jobs, *table.held.jobs]
    assert sorted([*queued, *others]) == waiting, "a waiting job is in one place"
    assert table.held.missing.keys() == table.held.jobs.keys()
    assert all(missing > 0 for missing in table.held.missing.values())
    count = table.queue.count + table.admission.count
    assert count == len(queued), "the waiting are counted right"
    assert all(job.retry_delay > 0 for _, job in table.delayed.jobs.values())
    for job in table.jobs.values():
        slot = None if job.slot is None else slots[job.slot]
        assert slot is None or job in (slot.job, *slot.line), "job and slot agree"
    for slot in slots.values():
        mine = [*([] if slot.job is None else [slot.job]), *slot.line]
        assert all(table.jobs.get(job.number) is job for job in mine)
        assert not slot.line or slot.state in (BUSY, DYING), "nobody else has a line"
        assert not slot.line or slot.job is not None or slot.state is DYING, "behind a job"
        assert (slot.number in table.lines.slots) == (bool(slot.line) and slot.state is BUSY)
        assert [job.attempt for job in mine] == sorted(job.attempt for job in mine)
    may_run = roster.idle and roster.taken < roster.max_workers
    # With needs, the first one may keep what it lacks.
    alone = table.queue.count and not with_needs
    assert not (alone and may_run), "nobody waits while a worker may have it"


def _sooner(one: float | None, other: float | None) -> float | None:
    return other if one is None or (other is not None and other < one) else one

"""The pool's decisions as a pure state machine: one event in, a list of actions out.

No input, output, clock, lock or thread: the time comes with each event, and the dispatcher carries
the actions out. What is known and decided of workers is in `roster`, of jobs in `job_table`, of
their order in `queue`, and of the moves that a worker can make in `slots`; what is told of a
worker's start and end alone is taken in by `worker_events`::

    Scheduler ──► JobTable ──► JobQueue, Admission, Delays, Lines
        │            │
        ├─► WorkerEvents, Staffing
        │            │
        └────────────┴──► Roster ──► Slot
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._wire.evidence import Evidence
from .._wire.messages import ENDS
from .events import (
    Actions,
    Broken,
    CancelAllAsked,
    CancelAsked,
    Close,
    DependencyDone,
    Event,
    HandedOver,
    HeldBack,
    MemorySeen,
    NeverDone,
    NotTaken,
    OverMemory,
    Reason,
    Reclaimed,
    Refuse,
    Resized,
    RestartAsked,
    ShutDown,
    Suspended,
    Taken,
    Tick,
    Unsent,
    Withdrawn,
)
from .job_table import JobTable
from .job_table import check as check_table
from .queue import Job, in_turn
from .reservations import Reservations
from .roster import LEAVE_TIME, Roster
from .roster import check as check_roster
from .slots import (
    BUSY,
    DYING,
    GRACE,
    IDLE,
    LEAVING,
    STARTING,
    WARMING,
    Slot,
    SlotState,
)
from .staffing import MAX_STARTS, Staffing
from .worker_events import WorkerEvents

if TYPE_CHECKING:
    from .._wire.messages import Message
    from ..options import Limits


class Scheduler:
    """Queue and slots of one pool.

    Args:
        max_workers: Most processes that may have a job, or be ready for one, at a time.
        idle_timeout: Seconds after which an idle worker is asked to leave; None: never.
        max_jobs_per_worker: Jobs after which a worker is replaced; None: never.
        spare_workers: Idle workers beyond `max_workers` that stand ready while all those have
            jobs, from the day the first job has ended.
        confirms: Whether `Taken` is told of each job: see `Fleet`. The time that a job may take
            is counted from then, and it is sent till then, but does not run.
        slow_starts: Whether starts that no job waits for any more are called off.
        memory: Bytes that jobs may reserve together; None: what the machine has.
        tokens: What jobs may need besides, by name, and how many there are.

    Attributes:
        jobs: All that have not ended, by number.
        admission: Those that wait and need more than any worker.
        delayed: Those that wait until they may be tried again.
        held: Those that wait for other jobs.
        queue: The others that wait, but for those in lines.
        lines: Those that were sent ahead. Each event but `answered`, and those that touch no line,
            is told only after these were taken back: see `Recall`.
        slots: All workers that are not gone, by number.
        closed: Nothing is left to do, ever.
        steady: True says that the last `answered` did nothing but end a job and see to it that
            its worker has the next one: it returned a `Settle` and perhaps an `Assign` or a
            `SendAhead`, and what `next_deadline`, `needs_wake` and `offer` say is what they said
            before.
    """

    def __init__(
        self,
        max_workers: int,
        idle_timeout: float | None,
        max_jobs_per_worker: int | None = None,
        spare_workers: int = 0,
        *,
        confirms: bool = False,
        slow_starts: bool = False,
        memory: int | None = None,
        tokens: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.memory, self.tokens = memory, tokens
        self.max_jobs_per_worker = max_jobs_per_worker
        self.closed = False
        self.steady = False
        self._cancelling = False  # it was shut down with everything cancelled
        reservations = Reservations(memory, tokens)
        self._roster = Roster(max_workers, idle_timeout, spare_workers, reservations)
        self._staffing = Staffing(self._roster, slow_starts=slow_starts)
        parts = self._roster, self._staffing
        self._table = JobTable(*parts, max_jobs_per_worker, confirms=confirms)
        self._confirms = confirms
        self.admission = self._table.admission
        self.delayed = self._table.delayed
        self.held = self._table.held
        self.queue, self.jobs, self.lines = self._table.queue, self._table.jobs, self._table.lines
        self.slots = self._roster.slots
        self._handlers: dict[type, Callable[[Any], None]] = {
            **WorkerEvents(*parts, self._table).handlers(),
            HandedOver: self._on_handed_over,
            HeldBack: self._on_held_back,
            DependencyDone: lambda event: self._table.dependency_done(event.job),
            NeverDone: lambda event: self._table.never_done(event.job, event.fate),
            Withdrawn: self._on_withdrawn,
            Unsent: self._on_unsent,
            CancelAsked: self._on_cancel,
            CancelAllAsked: self._on_cancel_all,
            NotTaken: self._on_not_taken,
            Taken: self._on_taken,
            OverMemory: self._on_over_memory,
            MemorySeen: self._on_memory_seen,
            Tick: self._on_tick,
            Resized: self._on_resized,
            Suspended: self._on_suspended,
            RestartAsked: self._on_restart,
            Reclaimed: self._on_reclaimed,
            Broken: self._on_broken,
            ShutDown: self._on_shut_down,
        }

    # --- what is true, for any thread ------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many jobs wait for their turn; those in lines, delayed and held ones do not."""
        return self.queue.count + self.admission.count

    @property
    def running(self) -> int:
        """How many jobs some slot has: see `Roster`."""
        return self._roster.running

    @property
    def max_workers(self) -> int:
        """Most processes that may have a job, or be ready for one, at a time."""
        return self._roster.max_workers

    @property
    def spare_workers(self) -> int:
        """Most idle workers beyond those."""
        return self._roster.spare_workers

    @property
    def closing(self) -> bool:
        """No job comes any more."""
        return self._roster.closing

    def head(self, count: int) -> list[Job]:
        """Return the next ones of those that wait for their turn, in order, at most so many."""
        found = self.queue.head(count)
        if self.admission.count:
            found = sorted([*found, *self.admission.head(count)], key=in_turn)[:count]
        return found

    def runs(self, slot: Slot) -> bool:
        """Whether a slot's job is RUNNING: its worker has it, as far as that is told."""
        return slot.job is not None and (not self._confirms or slot.taken == slot.attempt)

    # --- what happens; each returns what to do, in order. ``now`` is monotonic, in s -------------

    def handle(self, event: Event, now: float) -> Actions:
        """Take in any event but the two most frequent ones, which follow."""
        actions = self._roster.begin(type(event).__name__, now)
        self._handlers[type(event)](event)
        self._fill()
        self._roster.end()
        return actions

    def submitted(self, number: int, limits: Limits, now: float, plain: bool = False) -> Actions:
        """Take a job in; a ``plain`` one may be sent ahead."""
        roster = self._roster
        actions = roster.begin("submitted", now)
        if roster.closing:
            self._table.turn_away(number)
        else:
            job = Job(number, *limits)
            job.plain = plain
            self._table.add(job)
        if roster.busy + roster.extra < roster.max_workers or limits.needs is not None:
            self._fill()  # else it waits, and that is all
        roster.end()
        return actions

    def answered(self, slot_number: int, attempt: int, message: Message, now: float) -> Actions:
        """Take in that a worker sent a job's outcome, and waits for the next one, or has it."""
        roster = self._roster
        actions = roster.begin("answered", now)
        slot = self.slots.get(slot_number)
        self.steady = False
        fill = True
        if slot is not None and slot.attempt == attempt and slot.job is not None:
            if slot.state is BUSY:
                # Else the end of a deadline is news; and that of a pause, if the queue is empty.
                unlimited = slot.deadline is None and self._staffing.pause.until is None
                goes_on = self._table.answered(slot, message)
                ended = message.kind in ENDS  # else it may be tried again, at a time
                calm = goes_on and ended and roster.warm
                if calm and not (roster.blocks or (roster.closing and not self.queue.count)):
                    # As many run, are idle and wait for their start as before: no more is due.
                    fill = (
                        self._staffing.slow_starts
                    )  # else there is one job less that waits for one
                    self.steady = (
                        not fill and unlimited and slot.deadline is None and len(actions) <= 2
                    )
            else:
                self._table.answered_late(slot, message)
            roster.warm = True
        if fill:
            self._fill()
        roster.end()
        return actions

    def filled(self, now: float) -> Actions:
        """Give free workers the jobs that came back."""
        actions = self._roster.begin("filled", now)
        self._fill()
        self._roster.end()
        return actions

    def served(self, slot_number: int, attempt: int, now: float) -> bool:
        """Take in that the worker on offer got a job and has answered it already.

        Stands for `HandedOver` and `answered` where they only end the job; then the next attempt
        on the same worker is on offer. Else it is False, and nothing has been done.
        """
        roster = self._roster
        slot = roster.idle[-1]
        assert slot.number == slot_number, "it was offered, and nothing has happened since"
        if slot.served + 1 == self.max_jobs_per_worker:
            return False
        roster.attempts += 1
        slot.attempt = attempt
        slot.served += 1
        roster.warm = True
        slot.idle_since = now
        if roster.running + roster.extra + 1 >= roster.max_workers:  # see Roster.trim
            for spare in roster.idle:
                spare.idle_since = now
        return True

    def _fill(self) -> None:
        """Bring queue and slots together; every event ends here."""
        roster = self._roster
        if roster.idle or roster.needy:
            self._staffing.trim()
            self._table.fill()
            if roster.reclaimed:
                roster.dismiss_reclaimed()
        self._table.fill_up()
        if roster.closing and not (self.waiting or self.delayed.jobs or self.held.jobs):
            self._close()

    def _close(self) -> None:
        roster = self._roster
        roster.empty()
        if not self.slots and not self.jobs and not self.closed:
            self.closed = True
            roster.actions.append(Close())

    # --- what follows from it, until the next event ----------------------------------------------

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, on the clock of `handle`; None: nothing is due."""
        return self._table.next_deadline()

    def offer(self) -> tuple[int, int] | None:
        """The (slot, attempt) of an idle worker that the next job may be given to by its caller.

        None where its coming would need more than that. It holds until the next event; a job
        that is given is told of by `HandedOver`, which has to be that event.
        """
        roster = self._roster
        if not roster.idle or not self._table.may_start(None):
            return None
        if roster.spare_workers and not roster.warm:
            return None  # the end of the first job makes spares due
        busy = roster.busy + 1
        full = busy + roster.extra >= roster.max_workers
        if full and self._staffing.to_start(0, busy) > 0:  # of spares, that is
            return None
        return roster.idle[-1].number, roster.attempts + 1

    def needs_wake(self) -> bool:
        """Whether a plain job that came now would make a difference before the next event."""
        roster = self._roster
        if roster.closing:
            return True  # it would be turned away
        if roster.blocks:
            return True
        if roster.busy + roster.extra >= roster.max_workers:
            return self._staffing.to_start(0, roster.busy) > 0
        if roster.idle and self._table.may_start(None):
            return True
        # Whoever asks may have to answer for any number of them.
        return self._staffing.missing(roster.max_workers, roster.busy) > 0

    def tokens_of(self, slot: int) -> dict[str, tuple[int, ...]]:
        """Return which tokens a slot's job has."""
        return self._roster.reservations.tokens_of(slot)

    # --- a job's way -----------------------------------------------------------------------------

    def _on_handed_over(self, event: HandedOver) -> None:
        slot = self._roster.idle.pop()
        assert slot.number == event.slot, "it was offered, and nothing has happened since"
        others = event.memory_limit, event.retries, event.grace, event.retry_delay
        job = Job(event.job, event.priority, None, *others)
        self.jobs[job.number] = job
        self._roster.give(slot, job)
        assert slot.attempt == event.attempt
        self._roster.watch(slot, job.memory_limit)

    def _on_held_back(self, event: HeldBack) -> None:
        if self._roster.closing:
            self._table.turn_away(event.job)
        else:
            self._table.hold(Job(event.job, *event.limits), event.missing)

    def _on_withdrawn(self, event: Withdrawn) -> None:
        slot = self._roster.with_attempt(event.slot, event.attempt)
        if slot is not None and slot.job is not None and slot.state is BUSY:
            self._table.withdraw(slot)

    def _on_unsent(self, event: Unsent) -> None:
        slot = self.slots.get(event.slot)
        if slot is not None and slot.state is BUSY:
            self._table.lines.came_back(slot, event.attempts)

    def _on_not_taken(self, event: NotTaken) -> None:
        roster = self._roster
        slot = roster.with_attempt(event.slot, event.attempt)
        if slot is None or slot.job is None:
            return
        if event.unfit and slot.state is BUSY:
            self._table.add(roster.take_job(slot))
            roster.limit(slot, None)
            roster.unwatch(slot)
            roster.ask_to_leave(slot)
            roster.call_off_spares()  # they import as much
            return
        if slot.state is BUSY:
            self._table.give_back(slot, slot.job, Evidence())
        roster.kill(slot)

    def _on_taken(self, event: Taken) -> None:
        slot = self._roster.with_attempt(event.slot, event.attempt)
        if slot is not None and slot.state in (BUSY, GRACE) and slot.taken != slot.attempt:
            assert slot.job is not None, "it has one"
            self._table.taken(slot, slot.job)

    def _on_over_memory(self, event: OverMemory) -> None:
        slot = self._roster.with_attempt(event.slot, event.attempt)
        if slot is not None and slot.state in (BUSY, GRACE):
            if slot.state is BUSY:
                slot.reason, slot.peak = Reason.MEMORY, event.peak
            self._roster.kill(slot)

    def _on_cancel(self, event: CancelAsked) -> None:
        job = self.jobs.get(event.job)
        if job is not None and (job.slot is None or not event.queued_only):
            self._table.cancel(job, event.grace)

    def _on_cancel_all(self, event: CancelAllAsked) -> None:
        self._table.cancel_all(event.grace)

    # --- the whole pool's ------------------------------------------------------------------------

    def _on_tick(self, event: Tick) -> None:
        self._staffing.tick()
        for slot in self._roster.late(self._roster.now):
            if event.late is not None and (slot.number, slot.attempt) not in event.late:
                continue
            if slot.state is BUSY and slot.job is not None:
                self._table.stop(slot, Reason.TIMEOUT, slot.job.grace)
            else:
                self._roster.kill(slot)
        self._roster.dismiss_idle()
        self._table.queue_due()

    def _on_memory_seen(self, event: MemorySeen) -> None:
        roster = self._roster
        used = {
            number: size
            for (number, attempt), size in event.used.items()
            if roster.with_attempt(number, attempt) is not None
        }
        roster.reservations.seen(event.available, used, roster.now)

    def _on_resized(self, event: Resized) -> None:
        self._roster.resize(event.max_workers)

    def _on_suspended(self, event: Suspended) -> None:
        self._roster.suspended(event.since, event.until)

    def _on_restart(self, event: RestartAsked) -> None:
        del event
        self._roster.restart()

    def _on_reclaimed(self, event: Reclaimed) -> None:
        self._roster.reclaim(event.slot)

    def _on_broken(self, event: Broken) -> None:
        roster = self._roster
        if self._table.broken is None:
            roster.closing = True
            roster.actions.append(Refuse(event.error))  # first: then everybody sees why
            self._table.give_up(event.error)
            for slot in list(self.slots.values()):
                roster.kill(slot)

    def _on_shut_down(self, event: ShutDown) -> None:
        self._roster.closing = True
        if event.cancel:
            at_once = event.at_once or self._cancelling
            self._cancelling = True
            self._table.cancel_all(0.0 if at_once else None)
            for slot in list(self.slots.values()):
                if slot.state is not GRACE:
                    self._roster.kill(slot)

    # --- for tests -------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` if the state contradicts itself."""
        check_table(self._table, self._roster)
        check_roster(self._roster, self.queue.count)
        self._roster.reservations.check(self.slots, self.tokens)


__all__ = [
    "BUSY",
    "DYING",
    "GRACE",
    "IDLE",
    "LEAVE_TIME",
    "LEAVING",
    "MAX_STARTS",
    "STARTING",
    "WARMING",
    "Scheduler",
    "Slot",
    "SlotState",
]

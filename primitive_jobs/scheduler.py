"""The pool's decisions as a pure state machine: one event in, a list of actions out.

No input, output, clock, lock or thread: `handle` gets the time with each event, and the
dispatcher carries the actions out. A job known here is in exactly one place: in the queue, or in
one slot. A slot's life::

    STARTING ─► WARMING ─► IDLE ◄─► BUSY ─► GRACE
        │          │         │        │        │        GRACE: SIGTERM sent, the job may still end
        │          │         ▼        │        │
        │          │      LEAVING     │        │        LEAVING: asked to end by itself
        └──────────┴─────────┴────────┴────────┴──► DYING ──► (forgotten)
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable
from typing import Any

from .messages import (
    Actions,
    Answered,
    Assign,
    CancelAllAsked,
    CancelAsked,
    Cancelled,
    Close,
    Died,
    Event,
    Evidence,
    Fate,
    Finished,
    Gone,
    InitFailed,
    Kill,
    Kind,
    Leave,
    Lost,
    NotInitialized,
    NotTaken,
    OutOfMemory,
    OverMemory,
    Ready,
    Reason,
    Requeue,
    Resized,
    RestartAsked,
    Settle,
    ShutDown,
    Spawn,
    Started,
    StartFailed,
    Submitted,
    Terminate,
    Tick,
    TimedOut,
    TurnedAway,
    Unspawn,
    Unwatch,
    Watch,
)

MAX_STARTS = 3  # failures in a row to start a worker, or a job, before those who wait are told
START_PAUSE = 1.0  # s between tries to start more workers after that, while others do the work
LEAVE_TIME = 5.0  # s that an idle worker has to end by itself, for the sake of its atexit handlers


class SlotState(enum.Enum):
    """Where a worker process is in its life."""

    STARTING = enum.auto()  # ordered; no process known yet
    WARMING = enum.auto()  # the process imports and initializes
    IDLE = enum.auto()  # ready for a job
    BUSY = enum.auto()  # has a job
    GRACE = enum.auto()  # has a job and was sent SIGTERM
    LEAVING = enum.auto()  # was asked to end
    DYING = enum.auto()  # is being killed and reaped; may hold a job whose end is not known yet


class Job:
    """What the scheduler knows of a job; `slot` is None while it waits."""

    __slots__ = (
        "cancel_asked",
        "memory_limit",
        "number",
        "priority",
        "retries",
        "slot",
        "timeout",
        "unstarted",
    )

    def __init__(self, event: Submitted) -> None:
        self.number = event.job
        self.priority = event.priority
        self.timeout = event.timeout
        self.memory_limit = event.memory_limit
        self.retries = event.retries  # that are left
        self.slot: Slot | None = None
        self.unstarted = 0  # attempts that never began
        self.cancel_asked = False


class Slot:
    """What the scheduler knows of a worker."""

    __slots__ = (
        "attempt",
        "deadline",
        "died",
        "idle_since",
        "job",
        "number",
        "peak",
        "reason",
        "retiring",
        "served",
        "state",
        "was",
        "watched",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = SlotState.STARTING
        self.was = SlotState.STARTING  # the state before DYING
        self.job: Job | None = None
        self.attempt = 0
        self.reason: Reason | None = None  # the first one recorded stays
        self.died = False  # by itself, that is: not by our kill
        self.deadline: float | None = None
        self.idle_since = 0.0
        self.served = 0  # jobs that it answered
        self.retiring = False  # it leaves after its present job
        self.watched = False  # somebody watches its memory
        self.peak = 0  # bytes, where that was too much


_COMING = frozenset({SlotState.STARTING, SlotState.WARMING})


class Scheduler:
    """Queue and slots of one pool.

    Args:
        max_workers: Most processes that may have a job, or be ready for one, at a time.
        idle_timeout: Seconds after which an idle worker is asked to leave; None: never.
        max_jobs_per_worker: Jobs after which a worker is replaced; None: never.
        spare_workers: Idle workers beyond `max_workers` that stand ready while all those have
            jobs, from the day the first job has ended.
    """

    def __init__(
        self,
        max_workers: int,
        idle_timeout: float | None,
        max_jobs_per_worker: int | None = None,
        spare_workers: int = 0,
    ) -> None:
        self.max_workers = max_workers
        self.idle_timeout = idle_timeout
        self.max_jobs_per_worker = max_jobs_per_worker
        self.spare_workers = spare_workers
        self.jobs: dict[int, Job] = {}
        self.slots: dict[int, Slot] = {}
        self.closing = False
        self.closed = False
        self._queue: list[tuple[int, int]] = []  # heap of (-priority, job); may hold gone jobs
        self._waiting = 0  # jobs in the queue, those gone not counted
        self._idle: list[Slot] = []  # the longest idle first; the last one is used next
        self._counts = dict.fromkeys(SlotState, 0)  # slots in each state
        self._warm = False  # a job has ended: spares may be started
        self._spares_failed = False  # the last start failed, and nobody waited for it
        self._limited: set[Slot] = set()  # slots with a deadline
        self._slot_count = 0
        self._attempt_count = 0
        self._start_failures = 0  # in a row
        self._hold_until: float | None = None  # no worker is started before
        self._now = 0.0
        self._actions: Actions = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Submitted: self._on_submitted,
            Answered: self._on_answered,
            CancelAsked: self._on_cancel,
            CancelAllAsked: self._on_cancel_all,
            Started: self._on_started,
            StartFailed: self._on_start_failed,
            Ready: self._on_ready,
            InitFailed: self._on_init_failed,
            NotTaken: self._on_not_taken,
            OverMemory: self._on_over_memory,
            Died: self._on_died,
            Gone: self._on_gone,
            Tick: self._on_tick,
            Resized: self._on_resized,
            RestartAsked: self._on_restart,
            ShutDown: self._on_shut_down,
        }

    # --- interface ---------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> Actions:
        """Take one event in; return what to do, in order. ``now`` is monotonic, in s."""
        self._now = now
        actions: Actions = []
        self._actions = actions
        self._handlers[type(event)](event)
        self._fill()
        self._actions = []  # or it would keep the last result alive
        return actions

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, on the clock of `handle`; None: nothing is due."""
        due = [slot.deadline for slot in self._limited if slot.deadline is not None]
        if self._idle and self.idle_timeout is not None and not self._full():
            due.append(self._idle[0].idle_since + self.idle_timeout)
        if self._hold_until is not None and self._waiting:
            due.append(self._hold_until)
        return min(due, default=None)

    # --- jobs --------------------------------------------------------------------------------

    def _on_submitted(self, event: Submitted) -> None:
        if self.closing:
            self._do(Settle(event.job, TurnedAway()))
            return
        self._spares_failed = False
        self._enqueue(Job(event))

    def _enqueue(self, job: Job) -> None:
        # Numbers grow with submission, so one that returns stands before all later ones.
        job.slot = None
        self.jobs[job.number] = job
        heapq.heappush(self._queue, (-job.priority, job.number))
        self._waiting += 1

    def _pop_queue(self) -> Job | None:
        while self._queue:
            job = self.jobs.get(heapq.heappop(self._queue)[1])
            if job is not None and job.slot is None:
                self._waiting -= 1
                return job
        return None

    def _settle(self, job: Job, fate: Fate) -> None:
        """End a job; its slot, if any, is without a job from now on."""
        del self.jobs[job.number]
        if job.slot is None:
            self._waiting -= 1
            if len(self._queue) > 64 and len(self._queue) > 2 * self._waiting:
                self._drop_gone_entries()
        else:
            job.slot.job = None
            job.slot = None
        self._do(Settle(job.number, fate))

    def _drop_gone_entries(self) -> None:
        jobs = self.jobs
        self._queue = [e for e in self._queue if (j := jobs.get(e[1])) and j.slot is None]
        heapq.heapify(self._queue)

    def _on_answered(self, event: Answered) -> None:
        slot = self._slot_with(event.slot, event.attempt)
        if slot is None or slot.job is None:
            return
        returned = event.message.kind == Kind.RETURNED
        self._warm = True
        if slot.state is SlotState.BUSY:
            self._settle(slot.job, Finished(event.message))
            self._set_deadline(slot, None)
            self._unwatch(slot)
            slot.served += 1
            if slot.retiring or slot.served == self.max_jobs_per_worker:
                self._ask_to_leave(slot)
            else:
                self._set_idle(slot)
        elif slot.state is SlotState.GRACE:
            # What was sent SIGTERM is not used again: the signal may still be on its way.
            if returned:
                self._settle(slot.job, Finished(event.message))
            self._kill(slot)
        else:  # DYING: it was faster than the kill
            if returned or slot.was is not SlotState.GRACE:
                self._settle(slot.job, Finished(event.message))

    def _on_not_taken(self, event: NotTaken) -> None:
        slot = self._slot_with(event.slot, event.attempt)
        if slot is None or slot.job is None:
            return
        if event.unfit:
            self._enqueue(slot.job)
            slot.job = None
            self._set_deadline(slot, None)
            self._unwatch(slot)
            self._ask_to_leave(slot)
            return
        if slot.state is SlotState.BUSY:
            self._give_back(slot.job, Evidence())
        self._kill(slot)

    def _on_over_memory(self, event: OverMemory) -> None:
        slot = self._slot_with(event.slot, event.attempt)
        if slot is not None and slot.state in (SlotState.BUSY, SlotState.GRACE):
            if slot.state is SlotState.BUSY:
                slot.reason, slot.peak = Reason.MEMORY, event.peak
            self._kill(slot)

    def _give_back(self, job: Job, evidence: Evidence) -> None:
        """A job that certainly never started waits again, but not for ever."""
        slot = job.slot
        job.unstarted += 1
        if job.cancel_asked:
            self._settle(job, Cancelled())
        elif job.unstarted >= MAX_STARTS:
            self._settle(job, Lost(evidence))
        else:
            if slot is not None:
                slot.job = None
            self._do(Requeue(job.number))
            self._enqueue(job)

    def _retry(self, job: Job, slot: Slot) -> None:
        """A job whose worker died has another attempt."""
        job.retries -= 1
        if job.cancel_asked:
            self._settle(job, Cancelled())
        else:
            slot.job = None
            self._do(Requeue(job.number, began=True))
            self._enqueue(job)

    def _on_cancel(self, event: CancelAsked) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            self._cancel(job, event.grace)

    def _on_cancel_all(self, event: CancelAllAsked) -> None:
        for job in sorted(self.jobs.values(), key=lambda job: job.slot is not None):
            self._cancel(job, event.grace)  # the waiting first, or they would move up

    def _cancel(self, job: Job, grace: float) -> None:
        slot = job.slot
        job.cancel_asked = True
        if slot is None:
            self._settle(job, Cancelled())
        elif slot.state in (SlotState.BUSY, SlotState.GRACE):
            slot.reason = Reason.CANCEL
            if grace <= 0:
                self._kill(slot)
            else:
                until = self._now + grace
                if slot.deadline is None or until < slot.deadline:
                    self._set_deadline(slot, until)
                if slot.state is SlotState.BUSY:
                    self._move(slot, SlotState.GRACE)
                    self._do(Terminate(slot.number))

    # --- slots -------------------------------------------------------------------------------

    def _do(self, action: Any) -> None:
        self._actions.append(action)

    def _slot_with(self, number: int, attempt: int) -> Slot | None:
        """The slot, if the attempt is still its present one."""
        slot = self.slots.get(number)
        return slot if slot is not None and slot.attempt == attempt else None

    def _set_deadline(self, slot: Slot, deadline: float | None) -> None:
        slot.deadline = deadline
        if deadline is None:
            self._limited.discard(slot)
        else:
            self._limited.add(slot)

    def _move(self, slot: Slot, state: SlotState) -> None:
        self._counts[slot.state] -= 1
        self._counts[state] += 1
        slot.state = state

    def _forget(self, number: int) -> Slot:
        slot = self.slots.pop(number)
        self._counts[slot.state] -= 1
        return slot

    def _set_idle(self, slot: Slot) -> None:
        if self._full():  # the spares were of use as long as it was; they do not leave at once
            for spare in self._idle:
                spare.idle_since = self._now
        self._move(slot, SlotState.IDLE)
        slot.idle_since = self._now
        self._idle.append(slot)

    def _kill(self, slot: Slot) -> None:
        if slot.state is SlotState.DYING:
            return
        self._set_deadline(slot, None)
        self._unwatch(slot)
        if slot.state is SlotState.IDLE:
            self._idle.remove(slot)
        slot.was = slot.state
        self._move(slot, SlotState.DYING)
        # Without a process yet there is nothing to kill: see _on_started.
        self._do(Unspawn(slot.number) if slot.was is SlotState.STARTING else Kill(slot.number))

    def _unwatch(self, slot: Slot) -> None:
        if slot.watched:
            slot.watched = False
            self._do(Unwatch(slot.number))

    def _ask_to_leave(self, slot: Slot) -> None:
        """End a worker that has no job."""
        if slot.state is SlotState.IDLE:
            self._idle.remove(slot)
        self._move(slot, SlotState.LEAVING)
        self._set_deadline(slot, self._now + LEAVE_TIME)
        self._do(Leave(slot.number))

    def _on_started(self, event: Started) -> None:
        slot = self.slots[event.slot]
        if slot.state is SlotState.STARTING:
            self._move(slot, SlotState.WARMING)
        else:  # called off meanwhile, too late
            self._do(Kill(slot.number))

    def _on_start_failed(self, event: StartFailed) -> None:
        slot = self._forget(event.slot)
        if slot.state is SlotState.STARTING:
            self._count_failure(event.evidence)

    def _count_failure(self, evidence: Evidence) -> None:
        """A worker did not get ready: try again, but not for ever if there is no other."""
        self._start_failures += 1
        self._spares_failed = True
        usable = self._counts[SlotState.IDLE] + self._counts[SlotState.BUSY] > 0
        if self._start_failures < MAX_STARTS:
            return
        if usable:
            self._hold_until = self._now + START_PAUSE
        else:
            self._start_failures = 0
            self._fail_waiting(Lost(evidence))

    def _fail_waiting(self, fate: Fate) -> None:
        while (job := self._pop_queue()) is not None:
            self._waiting += 1  # _settle takes it off again
            self._settle(job, fate)

    def _on_ready(self, event: Ready) -> None:
        slot = self.slots.get(event.slot)
        if slot is not None and slot.state is SlotState.WARMING:
            self._start_failures = 0
            self._spares_failed = False
            self._hold_until = None
            self._set_idle(slot)
            if self._idle[0] is not slot:
                # Behind those that have served: what they have imported serves again.
                self._idle.remove(slot)
                slot.idle_since = self._idle[0].idle_since
                self._idle.insert(0, slot)

    def _on_init_failed(self, event: InitFailed) -> None:
        slot = self.slots.get(event.slot)
        if slot is not None and slot.state is SlotState.WARMING:
            self._kill(slot)
            self._initializer_failed(NotInitialized(event.message, None))

    def _initializer_failed(self, fate: NotInitialized) -> None:
        """Fail those who wait. The next submit tries anew, in processes of its own."""
        self._spares_failed = True
        self._fail_waiting(fate)
        for slot in self.slots.values():
            if slot.state in _COMING:
                self._kill(slot)

    def _on_died(self, event: Died) -> None:
        slot = self.slots.get(event.slot)
        if slot is not None and slot.state is not SlotState.DYING:
            slot.died = True
            self._kill(slot)

    def _on_gone(self, event: Gone) -> None:
        slot = self._forget(event.slot)
        self._warm = self._warm or slot.job is not None
        self._set_deadline(slot, None)
        job, evidence = slot.job, event.evidence
        if job is not None:
            if slot.reason is Reason.CANCEL:
                self._settle(job, Cancelled())
            elif slot.reason is Reason.TIMEOUT:
                self._settle(job, TimedOut(job.timeout or 0.0))
            elif slot.reason is Reason.MEMORY:
                self._settle(job, OutOfMemory(job.memory_limit or 0, slot.peak))
            elif evidence.noted not in (None, slot.attempt):
                self._give_back(job, evidence)
            elif job.retries > 0:
                self._retry(job, slot)
            else:
                self._settle(job, Lost(evidence))
        elif slot.was is SlotState.WARMING and slot.died:
            if evidence.initializing:
                self._initializer_failed(NotInitialized(None, evidence))
            else:
                self._count_failure(evidence)

    def _on_tick(self, event: Tick) -> None:
        del event
        now = self._now
        late = [s for s in self._limited if s.deadline is not None and s.deadline <= now]
        for slot in sorted(late, key=lambda slot: slot.number):
            if slot.state is SlotState.BUSY:
                slot.reason = Reason.TIMEOUT
            self._kill(slot)
        if self.idle_timeout is not None and not self._full():
            while self._idle and self._idle[0].idle_since + self.idle_timeout <= now:
                self._ask_to_leave(self._idle[0])

    def _on_resized(self, event: Resized) -> None:
        self.max_workers = event.max_workers
        while self._idle and self._live() > self.max_workers:  # spares come when they are of use
            self._ask_to_leave(self._idle[0])

    def _on_restart(self, event: RestartAsked) -> None:
        del event
        for slot in list(self.slots.values()):
            if slot.state is SlotState.IDLE:
                self._ask_to_leave(slot)
            elif slot.state in _COMING:  # it may have begun to import what has changed since
                self._kill(slot)
            else:
                slot.retiring = True

    def _on_shut_down(self, event: ShutDown) -> None:
        self.closing = True
        if event.cancel:
            self._on_cancel_all(CancelAllAsked())
            for slot in list(self.slots.values()):
                self._kill(slot)

    # --- what follows from the state as it is now ------------------------------------------------

    def _fill(self) -> None:
        """Bring queue and slots together; every event ends here."""
        while self._idle and self._live() > self.max_workers + self.spare_workers:
            self._ask_to_leave(self._idle[0])
        while self._waiting and self._idle and not self._full():
            job = self._pop_queue()
            if job is None:
                break
            self._assign(self._idle.pop(), job)
        if self._waiting or (self._warm and self.spare_workers):
            self._spawn()
        if self.closing and not self._waiting:
            self._close()

    def _busy(self) -> int:
        return self._counts[SlotState.BUSY] + self._counts[SlotState.GRACE]

    def _full(self) -> bool:
        """Whether as many jobs run as may; who is idle then is a spare."""
        return self._busy() >= self.max_workers

    def _live(self) -> int:
        counts = self._counts
        return len(self.slots) - counts[SlotState.DYING] - counts[SlotState.LEAVING]

    def _assign(self, slot: Slot, job: Job) -> None:
        self._attempt_count += 1
        slot.attempt = self._attempt_count
        self._move(slot, SlotState.BUSY)
        slot.job, job.slot = job, slot
        if job.timeout is not None:
            self._set_deadline(slot, self._now + job.timeout)
        if job.memory_limit is None:
            self._do(Assign(slot.number, job.number, slot.attempt))
            return
        # What earlier jobs left behind in the worker shall not count against this one.
        room = job.memory_limit if slot.served else None
        self._do(Assign(slot.number, job.number, slot.attempt, room))
        slot.watched = True
        self._do(Watch(slot.number, slot.attempt, job.memory_limit))

    def _spawn(self) -> None:
        if self._hold_until is not None:
            if self._now < self._hold_until:
                return
            self._hold_until = None
        busy = self._busy()
        if busy < self.max_workers:
            wanted = min(self._waiting, self.max_workers - busy)
        elif self._warm and not self._spares_failed and not self.closing:
            wanted = self.spare_workers
        else:
            return
        for _ in range(wanted - (self._live() - busy)):
            self._slot_count += 1
            self.slots[self._slot_count] = Slot(self._slot_count)
            self._counts[SlotState.STARTING] += 1
            self._do(Spawn(self._slot_count))

    def _close(self) -> None:
        while self._idle:
            self._ask_to_leave(self._idle[0])
        for slot in self.slots.values():
            if slot.state in _COMING:
                self._kill(slot)
        if not self.slots and not self.jobs and not self.closed:
            self.closed = True
            self._do(Close())

    # --- for tests ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` if the state contradicts itself."""
        waiting = {n for n, job in self.jobs.items() if job.slot is None}
        queued = [n for _, n in self._queue if n in waiting]
        assert sorted(queued) == sorted(waiting), "a waiting job is in the queue exactly once"
        assert self._waiting == len(waiting), "the waiting are counted right"
        for job in self.jobs.values():
            assert job.slot is None or job.slot.job is job, "job and slot agree"
        for number, slot in self.slots.items():
            assert slot.number == number
            assert slot.job is None or self.jobs.get(slot.job.number) is slot.job
            has_job = slot.state in (SlotState.BUSY, SlotState.GRACE)
            assert not has_job or slot.job is not None, "a busy slot has a job"
            may_have = has_job or slot.state is SlotState.DYING
            assert slot.job is None or may_have, "only a busy or dying slot has a job"
            assert (slot in self._idle) == (slot.state is SlotState.IDLE), "idle slots are listed"
            assert (slot.deadline is None) == (slot not in self._limited)
            assert not slot.watched or has_job, "only a busy worker's memory is watched"
        for state, count in self._counts.items():
            assert count == sum(slot.state is state for slot in self.slots.values())
        assert all(slot.number in self.slots for slot in self._limited)
        may_run = self._idle and not self._full()
        assert not (self._waiting and may_run), "nobody waits while a worker may have it"

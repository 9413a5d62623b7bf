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
from collections import deque
from collections.abc import Callable
from typing import Any

from .._wire.evidence import Evidence
from .._wire.messages import Kind, Message
from .events import (
    Actions,
    Answered,
    Assign,
    CancelAllAsked,
    CancelAsked,
    Cancelled,
    Close,
    Died,
    Event,
    Fate,
    Faulted,
    Gone,
    HandedOver,
    InitFailed,
    Kill,
    Leave,
    Lost,
    NotInitialized,
    NotTaken,
    OutOfMemory,
    OverMemory,
    Postpone,
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
    Suspended,
    Terminate,
    Tick,
    TimedOut,
    TurnedAway,
    Unkilled,
    Unspawn,
    Unwatch,
    Watch,
    Withdrawn,
)
from .pauses import Pause

MAX_STARTS = 3  # failures in a row to start a worker, or a job, before those who wait are told
LEAVE_TIME = 5.0  # s that an idle worker has to end by itself, for the sake of its atexit handlers


class SlotState(enum.IntEnum):
    """Where a worker process is in its life."""

    STARTING = 0  # ordered; no process known yet
    WARMING = 1  # the process imports and initializes
    IDLE = 2  # ready for a job
    BUSY = 3  # has a job
    GRACE = 4  # has a job and was sent SIGTERM
    LEAVING = 5  # was asked to end
    DYING = 6  # is being killed and reaped; may hold a job whose end is not known yet


# A member looked up in its class, or hashed, takes longer than the rest of most lines here.
STARTING, WARMING, IDLE, BUSY, GRACE, LEAVING, DYING = SlotState
_HAS_JOB = tuple(int(state in (BUSY, GRACE)) for state in SlotState)
_IS_LIVE = tuple(int(state not in (LEAVING, DYING)) for state in SlotState)


class Job:
    """What the scheduler knows of a job; `slot` is None while it waits."""

    __slots__ = (
        "cancel_asked",
        "grace",
        "memory_limit",
        "number",
        "priority",
        "retries",
        "slot",
        "timeout",
        "unstarted",
    )

    def __init__(
        self,
        number: int,
        priority: int = 0,
        timeout: float | None = None,
        memory_limit: int | None = None,
        retries: int = 0,
        grace: float = 0.0,
    ) -> None:
        self.number = number
        self.priority = priority
        self.timeout = timeout
        self.memory_limit = memory_limit
        self.retries = retries  # that are left
        self.grace = grace  # s, of a cancel that says nothing else
        self.slot: Slot | None = None
        self.unstarted = 0  # attempts that never began
        self.cancel_asked = False


class Slot:
    """What the scheduler knows of a worker."""

    __slots__ = (
        "attempt",
        "deadline",
        "died",
        "fault",
        "idle_since",
        "job",
        "limited_at",
        "number",
        "peak",
        "reason",
        "retiring",
        "served",
        "spare",
        "state",
        "trial",
        "unclear",
        "was",
        "watched",
    )

    def __init__(self, number: int, *, spare: bool = False, trial: bool = False) -> None:
        self.number = number
        self.spare = spare  # no job waited for it when it was ordered
        self.trial = trial  # the one before it did not get ready
        self.state = STARTING
        self.was = STARTING  # the state before DYING
        self.job: Job | None = None
        self.attempt = 0
        self.reason: Reason | None = None  # the first one recorded stays
        self.died = False  # by itself, that is: not by our kill
        self.fault: BaseException | None = None  # of ours, for which it is killed
        self.unclear = False  # so it ended before it was ready; why, is told when it is gone
        self.deadline: float | None = None
        self.limited_at = 0.0  # when that was set
        self.idle_since = 0.0
        self.served = 0  # jobs that it answered
        self.retiring = False  # it is replaced, after its present job
        self.watched = False  # somebody watches its memory
        self.peak: int | None = 0  # bytes, where that was too much, or cannot be told


class _Queue:
    """The waiting jobs: those of the highest priority first, in the order of their numbers.

    Those that return come before all later ones: they wait in heaps of their own until they are
    next. Those that were removed are marked and passed over, until they are more than the
    others; what was removed has ended, and does not return.
    """

    __slots__ = ("_gone", "_priorities", "_returned", "_rows", "count")

    def __init__(self) -> None:
        self._rows: dict[int, deque[Job]] = {}  # by priority; each in order
        self._priorities: list[int] = []  # heap of the rows' priorities, negated
        self._returned: dict[int, list[tuple[int, Job]]] = {}  # heaps by priority, none empty
        self.count = 0  # of those that wait
        self._gone: set[Job] = set()

    def push(self, job: Job) -> None:
        """Take a job in."""
        row = self._rows.get(job.priority)
        if row is None:
            row = self._rows[job.priority] = deque()
            heapq.heappush(self._priorities, -job.priority)
        if not row or row[-1].number < job.number:
            row.append(job)
        else:
            heap = self._returned.setdefault(job.priority, [])
            heapq.heappush(heap, (job.number, job))
        self.count += 1

    def first(self) -> Job:
        """The next one; there must be one."""
        while True:
            priority = -self._priorities[0]
            row = self._rows[priority]
            if self._returned:
                self._move_up(priority, row)
            if not row:
                del self._rows[-heapq.heappop(self._priorities)]
            elif not self._gone or row[0] not in self._gone:
                return row[0]
            else:
                self._gone.discard(row.popleft())

    def _move_up(self, priority: int, row: deque[Job]) -> None:
        """If one that returned comes before the whole row, put it there."""
        heap = self._returned.get(priority)
        if heap and (not row or heap[0][0] < row[0].number):
            row.appendleft(heapq.heappop(heap)[1])
            if not heap:
                del self._returned[priority]

    def pop(self) -> Job:
        """Take the next one out."""
        job = self.first()
        self._rows[job.priority].popleft()
        self.count -= 1
        return job

    def remove(self, job: Job) -> None:
        """Take any one out, for good."""
        self._gone.add(job)
        self.count -= 1
        if len(self._gone) > 64 and len(self._gone) > self.count:
            self._sweep()

    def _sweep(self) -> None:
        gone = self._gone
        for priority, row in self._rows.items():
            self._rows[priority] = deque(job for job in row if job not in gone)
        for priority, heap in list(self._returned.items()):
            heap[:] = [entry for entry in heap if entry[1] not in gone]
            heapq.heapify(heap)
            if not heap:
                del self._returned[priority]
        gone.clear()

    def numbers(self) -> list[int]:
        """For tests: of all that wait."""
        rows = [job for row in self._rows.values() for job in row]
        rows += [job for heap in self._returned.values() for _, job in heap]
        return [job.number for job in rows if job not in self._gone]


_COMING = frozenset({STARTING, WARMING})


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
        self._cancelling = False  # it was shut down with everything cancelled
        self._queue = _Queue()
        self._idle: list[Slot] = []  # the longest idle first; the last one is used next
        # Jobs that some slot has. One whose worker is being killed counts until its end is known:
        # till then it holds what it has taken, and is RUNNING.
        self.running = 0  # written by the dispatcher alone; may be read on any thread
        self._busy = 0  # slots that have a job, without those that are being killed
        self._live = 0  # slots that may have one now or later, or may prove that none can
        self._full = False  # after the last event as many jobs ran as may
        self._warm = False  # a job has ended: spares may be started
        self._limited: set[Slot] = set()  # slots with a deadline
        self._slot_count = 0
        self._attempt_count = 0
        self._start_failures = 0  # in a row, of workers that jobs waited for
        self._pause = Pause()
        self._spare_pause = Pause()
        self._now = 0.0
        self._actions: Actions = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Submitted: self._on_submitted,
            HandedOver: self._on_handed_over,
            Withdrawn: self._on_withdrawn,
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
            Faulted: self._on_faulted,
            Gone: self._on_gone,
            Tick: self._on_tick,
            Resized: self._on_resized,
            Suspended: self._on_suspended,
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

    @property
    def waiting(self) -> int:
        """How many jobs are in the queue; may be read on any thread."""
        return self._queue.count

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, on the clock of `handle`; None: nothing is due."""
        due = []
        if self._limited:
            due += [slot.deadline for slot in self._limited if slot.deadline is not None]
        if self._idle and self.idle_timeout is not None and self.running < self.max_workers:
            due.append(self._idle[0].idle_since + self.idle_timeout)
        until = self._pause_of(self._busy).until
        if until is not None and self._missing(self._queue.count, self._busy) > 0:
            due.append(until)
        return min(due) if due else None

    def offer(self) -> tuple[int, int] | None:
        """The (slot, attempt) of an idle worker that the next job may be given to by its caller.

        None where its coming would need more than that. It holds until the next event; a job
        that is given is told of by `HandedOver`, which has to be that event.
        """
        if not self._idle or self._queue.count or self.closing or self.running >= self.max_workers:
            return None
        if self._to_start(0, self._busy + 1) > 0:  # of spares, that is
            return None
        return self._idle[-1].number, self._attempt_count + 1

    # --- short ways: what an event comes to where it asks for nothing unusual, in a fraction of the
    # time. Each either does all of it, or returns a false value and has done nothing.

    def served(self, slot_number: int, attempt: int, now: float) -> bool:
        """Take in that the worker on offer got a job and has answered it already.

        Stands for `HandedOver` and `Answered` where they only end the job; then the next attempt
        on the same worker is on offer.
        """
        slot = self._idle[-1]
        assert slot.number == slot_number, "it was offered, and nothing has happened since"
        if slot.served + 1 == self.max_jobs_per_worker:
            return False
        self._attempt_count += 1
        slot.attempt = attempt
        slot.served += 1
        self._warm = True
        slot.idle_since = now
        if self.running + 1 >= self.max_workers:  # see _fill
            for spare in self._idle:
                spare.idle_since = now
        return True

    def line_up(self, event: Submitted) -> bool:
        """Take in a job that has to wait, since all workers are busy: stands for the event."""
        if self._busy < self.max_workers or self.closing:
            return False
        if self._to_start(0, self._busy) > 0:  # a spare, that is
            return False
        self._on_submitted(event)
        return True

    def next_after(self, slot_number: int, attempt: int) -> tuple[int, int, int] | None:
        """Take in that a busy worker has answered, where it gets the next job at once.

        Stands for `Answered` and the two actions that follow, `Settle` and `Assign`; returns the
        job that has ended, the next one, and the attempt's number.
        """
        slot = self.slots.get(slot_number)
        queue = self._queue
        if (
            slot is None
            or slot.attempt != attempt
            or slot.state is not BUSY
            or slot.deadline is not None
            or slot.watched
            or slot.retiring
            or slot.served + 1 == self.max_jobs_per_worker
            or slot.job is None
            or not queue.count
            or self._live != self.max_workers + self.spare_workers  # else one starts, or leaves
            or self.running > self.max_workers
            or (self.running < self.max_workers and self._idle)
            or self.closing
        ):
            return None
        job = queue.first()
        if job.timeout is not None or job.memory_limit is not None:
            return None
        queue.pop()
        ended = slot.job.number
        del self.jobs[ended]
        self._warm = True
        slot.served += 1
        self._give(slot, job)
        return ended, job.number, slot.attempt

    def hungry(self) -> bool:
        """Whether a plain job that came now would make a difference before the next event."""
        if self.closing:
            return True  # it would be turned away
        if self._busy >= self.max_workers:
            return self._to_start(0, self._busy) > 0
        if self._idle and self.running < self.max_workers:
            return True
        # Whoever asks may have to answer for any number of them.
        return self._missing(self.max_workers, self._busy) > 0

    # --- jobs --------------------------------------------------------------------------------

    def _on_submitted(self, event: Submitted) -> None:
        if self.closing:
            self._do(Settle(event.job, TurnedAway()))
            return
        self._enqueue(
            Job(
                event.job,
                event.priority,
                event.timeout,
                event.memory_limit,
                event.retries,
                event.grace,
            )
        )

    def _on_handed_over(self, event: HandedOver) -> None:
        slot = self._idle.pop()
        assert slot.number == event.slot, "it was offered, and nothing has happened since"
        job = Job(event.job, event.priority, retries=event.retries, grace=event.grace)
        self.jobs[job.number] = job
        self._give(slot, job)
        assert slot.attempt == event.attempt

    def _on_withdrawn(self, event: Withdrawn) -> None:
        slot = self._slot_with(event.slot, event.attempt)
        if slot is not None and slot.job is not None and slot.state is BUSY:
            del self.jobs[slot.job.number]
            self._take_away(slot)
            self._set_deadline(slot, None)
            self._unwatch(slot)
            self._set_idle(slot)

    def _enqueue(self, job: Job) -> None:
        job.slot = None
        self.jobs[job.number] = job
        self._queue.push(job)

    def _settle(self, job: Job, fate: Fate) -> None:
        """End a job; its slot, if any, is without a job from now on."""
        del self.jobs[job.number]
        if job.slot is None:
            self._queue.remove(job)
        else:
            self._take_away(job.slot)
            job.slot = None
        self._actions.append(Settle(job.number, fate))

    def _take_away(self, slot: Slot) -> None:
        """A slot has no job any more."""
        slot.job = None
        self.running -= 1

    def _on_answered(self, event: Answered) -> None:
        slot = self._slot_with(event.slot, event.attempt)
        if slot is None or slot.job is None:
            return
        message = event.message
        self._warm = True
        if slot.state is BUSY:
            self._settle(slot.job, message)
            if slot.deadline is not None:
                self._set_deadline(slot, None)
            self._unwatch(slot)
            slot.served += 1
            if slot.retiring or slot.served == self.max_jobs_per_worker:
                self._ask_to_leave(slot)
            elif self._queue.count and self.running < self.max_workers:
                self._assign(slot, self._queue.pop())
            else:
                self._set_idle(slot)
        elif slot.state is GRACE:
            # What was sent SIGTERM is not used again: the signal may still be on its way.
            if self._counts(slot, message):
                self._settle(slot.job, message)
            self._kill(slot, ask_stack=False)  # its job is not there any more
        elif slot.was is not GRACE or self._counts(slot, message):
            # DYING: it was faster than the kill
            self._settle(slot.job, message)

    @staticmethod
    def _counts(slot: Slot, message: Message) -> bool:
        """Whether an answer in the grace is the job's end: a limit that was passed stays passed."""
        return message.kind == Kind.RETURNED and slot.reason is Reason.CANCEL

    def _on_not_taken(self, event: NotTaken) -> None:
        slot = self._slot_with(event.slot, event.attempt)
        if slot is None or slot.job is None:
            return
        if event.unfit:
            job = slot.job
            self._take_away(slot)
            self._enqueue(job)
            self._set_deadline(slot, None)
            self._unwatch(slot)
            self._ask_to_leave(slot)
            return
        if slot.state is BUSY:
            self._give_back(slot.job, Evidence())
        self._kill(slot)

    def _on_over_memory(self, event: OverMemory) -> None:
        slot = self._slot_with(event.slot, event.attempt)
        if slot is not None and slot.state in (BUSY, GRACE):
            if slot.state is BUSY:
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
                self._take_away(slot)
            self._do(Requeue(job.number))
            self._enqueue(job)

    def _retry(self, job: Job, slot: Slot) -> None:
        """A job whose worker died has another attempt."""
        job.retries -= 1
        if job.cancel_asked:
            self._settle(job, Cancelled())
        else:
            self._take_away(slot)
            self._do(Requeue(job.number, began=True))
            self._enqueue(job)

    def _on_cancel(self, event: CancelAsked) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            self._cancel(job, event.grace)

    def _on_cancel_all(self, event: CancelAllAsked) -> None:
        for job in sorted(self.jobs.values(), key=lambda job: job.slot is not None):
            # The waiting first, or they would move up.
            self._cancel(job, job.grace if event.grace is None else event.grace)

    def _cancel(self, job: Job, grace: float) -> None:
        slot = job.slot
        job.cancel_asked = True
        if slot is None:
            self._settle(job, Cancelled())
        elif slot.state in (BUSY, GRACE):
            self._end(slot, Reason.CANCEL, grace)

    def _end(self, slot: Slot, reason: Reason, grace: float) -> None:
        """Stop what a worker does, after a grace if there is one; the first reason stays."""
        slot.reason = slot.reason or reason
        if grace <= 0:
            self._kill(slot)
            return
        until = self._now + grace
        if slot.deadline is None or until < slot.deadline or reason is Reason.TIMEOUT:
            self._set_deadline(slot, until)
        if slot.state is BUSY:
            self._move(slot, GRACE)
            self._do(Terminate(slot.number))

    # --- slots -------------------------------------------------------------------------------

    def _do(self, action: Any) -> None:
        self._actions.append(action)

    def _slot_with(self, number: int, attempt: int) -> Slot | None:
        """The slot, if the attempt is still its present one."""
        slot = self.slots.get(number)
        return slot if slot is not None and slot.attempt == attempt else None

    def _set_deadline(self, slot: Slot, deadline: float | None) -> None:
        slot.deadline, slot.limited_at = deadline, self._now
        if deadline is None:
            self._limited.discard(slot)
        else:
            self._limited.add(slot)

    def _move(self, slot: Slot, state: SlotState) -> None:
        before = slot.state
        self._busy += _HAS_JOB[state] - _HAS_JOB[before]
        self._live += _IS_LIVE[state] - _IS_LIVE[before]
        slot.state = state

    def _forget(self, number: int) -> Slot:
        slot = self.slots.pop(number)
        self._busy -= _HAS_JOB[slot.state]
        self._live -= _IS_LIVE[slot.state] or slot.unclear
        return slot

    def _set_idle(self, slot: Slot) -> None:
        self._move(slot, IDLE)
        slot.idle_since = self._now
        self._idle.append(slot)

    def _kill(self, slot: Slot, *, ask_stack: bool = True) -> None:
        if slot.state is DYING:
            return
        self._set_deadline(slot, None)
        self._unwatch(slot)
        if slot.state is IDLE:
            self._idle.remove(slot)
        slot.was = slot.state
        self._move(slot, DYING)
        # Without a process yet there is nothing to kill: see _on_started.
        if slot.was is STARTING:
            self._do(Unspawn(slot.number))
        else:
            ask_stack = ask_stack and slot.reason in (Reason.TIMEOUT, Reason.MEMORY)
            self._do(Kill(slot.number, ask_stack))

    def _unwatch(self, slot: Slot) -> None:
        if slot.watched:
            slot.watched = False
            self._do(Unwatch(slot.number))

    def _ask_to_leave(self, slot: Slot) -> None:
        """End a worker that has no job."""
        if slot.state is IDLE:
            self._idle.remove(slot)
        self._move(slot, LEAVING)
        self._set_deadline(slot, self._now + LEAVE_TIME)
        self._do(Leave(slot.number))

    def _on_started(self, event: Started) -> None:
        slot = self.slots[event.slot]
        if slot.state is STARTING:
            self._move(slot, WARMING)
        else:  # called off meanwhile, too late
            self._do(Kill(slot.number))

    def _on_start_failed(self, event: StartFailed) -> None:
        slot = self._forget(event.slot)
        if slot.state is STARTING:
            self._not_ready(slot, Lost(event.evidence))

    def _not_ready(self, slot: Slot, fate: Lost | NotInitialized) -> None:
        """A worker did not get ready: those who wait are told if nobody works or is coming."""
        if slot.spare:
            self._postpone(self._spare_pause, spare=True)
            return
        self._start_failures += 1
        if self._start_failures < MAX_STARTS and isinstance(fate, Lost):
            return  # by chance, perhaps: another is started at once
        if self._live:
            self._postpone(self._pause, spare=False)
            return
        self._start_failures = 0
        self._pause.end()
        self._fail_waiting(fate)

    def _postpone(self, pause: Pause, *, spare: bool) -> None:
        seconds = pause.begin(self._now)
        if seconds is not None:
            self._do(Postpone(seconds, spare))

    def _fail_waiting(self, fate: Fate) -> None:
        while self._queue.count:
            self._settle(self._queue.first(), fate)

    def _on_ready(self, event: Ready) -> None:
        slot = self.slots.get(event.slot)
        if slot is not None and slot.state is WARMING:
            self._start_failures = 0
            self._pause.end()
            if slot.spare:
                self._spare_pause.end()
            self._set_idle(slot)
            if self._idle[0] is not slot:
                # Behind those that have served: what they have imported serves again.
                self._idle.remove(slot)
                slot.idle_since = self._idle[0].idle_since
                self._idle.insert(0, slot)

    def _on_init_failed(self, event: InitFailed) -> None:
        slot = self.slots.get(event.slot)
        if slot is not None and slot.state is WARMING:
            self._kill(slot)
            self._not_ready(slot, NotInitialized(event.message, None))

    def _on_died(self, event: Died) -> None:
        slot = self.slots.get(event.slot)
        if slot is not None and slot.state is not DYING:
            slot.died = True
            self._lose(slot)

    def _on_faulted(self, event: Faulted) -> None:
        slot = self.slots.get(event.slot)
        if slot is not None and slot.state is not DYING:
            slot.fault = event.error
            self._lose(slot)

    def _lose(self, slot: Slot) -> None:
        """A worker has ended, or has to, for no reason of ours."""
        self._kill(slot)
        if slot.was is WARMING:
            # None is started in its place before it is known whether that makes sense.
            slot.unclear = True
            self._live += 1

    def _on_gone(self, event: Gone) -> None:
        slot = self._forget(event.slot)
        self._warm = self._warm or slot.job is not None
        self._set_deadline(slot, None)
        job, evidence = slot.job, event.evidence
        if slot.fault is not None:
            evidence = Evidence(**{**vars(evidence), "error": slot.fault})
        if job is not None:
            if slot.reason is Reason.CANCEL:
                self._settle(job, Cancelled() if evidence.left is None else Unkilled(evidence))
            elif slot.reason is Reason.TIMEOUT:
                self._settle(job, TimedOut(job.timeout or 0.0, evidence.stack, evidence.left))
            elif slot.reason is Reason.MEMORY:
                limit = job.memory_limit or 0
                self._settle(job, OutOfMemory(limit, slot.peak, evidence.stack, evidence.left))
            elif evidence.left is not None:  # neither given back nor tried again
                self._settle(job, Lost(evidence))
            elif evidence.noted not in (None, slot.attempt):
                self._give_back(job, evidence)
            elif job.retries > 0:
                self._retry(job, slot)
            else:
                self._settle(job, Lost(evidence))
        elif slot.unclear:
            raised = evidence.initializing and slot.died
            self._not_ready(slot, NotInitialized(None, evidence) if raised else Lost(evidence))

    def _on_tick(self, event: Tick) -> None:
        del event
        now = self._now
        self._pause.tick(now)
        self._spare_pause.tick(now)
        late = [s for s in self._limited if s.deadline is not None and s.deadline <= now]
        for slot in sorted(late, key=lambda slot: slot.number):
            if slot.state is BUSY and slot.job is not None:
                self._end(slot, Reason.TIMEOUT, slot.job.grace)
            else:
                self._kill(slot)
        if self.idle_timeout is not None and self.running < self.max_workers:
            while self._idle and self._idle[0].idle_since + self.idle_timeout <= now:
                self._ask_to_leave(self._idle[0])

    def _on_suspended(self, event: Suspended) -> None:
        for slot in self._limited:
            missed = event.until - max(event.since, slot.limited_at)
            if slot.deadline is not None and missed > 0:
                slot.deadline += missed

    def _on_resized(self, event: Resized) -> None:
        self.max_workers = event.max_workers
        while self._idle and self._live > self.max_workers:  # spares come when they are of use
            self._ask_to_leave(self._idle[0])

    def _on_restart(self, event: RestartAsked) -> None:
        del event
        for slot in list(self.slots.values()):
            slot.retiring = True
            if slot.state is IDLE:
                self._ask_to_leave(slot)
            elif slot.state in _COMING:  # it may have begun to import what has changed since
                self._kill(slot)

    def _on_shut_down(self, event: ShutDown) -> None:
        self.closing = True
        if event.cancel:
            at_once = event.at_once or self._cancelling
            self._cancelling = True
            self._on_cancel_all(CancelAllAsked(0.0 if at_once else None))
            for slot in list(self.slots.values()):
                if slot.state is not GRACE:
                    self._kill(slot)

    # --- what follows from the state as it is now ------------------------------------------------

    def _fill(self) -> None:
        """Bring queue and slots together; every event ends here."""
        if self._idle:
            if self._full and self.running < self.max_workers:
                for spare in self._idle:  # they were of use till now: they do not leave at once
                    spare.idle_since = self._now
            while self._live > self.max_workers + self.spare_workers and self._idle:
                self._ask_to_leave(self._idle[0])
            while self._queue.count and self._idle and self.running < self.max_workers:
                self._assign(self._idle.pop(), self._queue.pop())
        self._full = self.running >= self.max_workers
        # What is busy beyond the limit, after a resize, may have a spare too.
        if self._live < max(self.max_workers, self._busy) + self.spare_workers:
            self._spawn()
        if self.closing and not self._queue.count:
            self._close()

    def _give(self, slot: Slot, job: Job) -> None:
        """A worker, taken off the list of the idle ones, has a job."""
        self._attempt_count += 1
        slot.attempt = self._attempt_count
        if slot.state is not BUSY:
            self._move(slot, BUSY)
        if slot.job is None:
            self.running += 1
        slot.job, job.slot = job, slot

    def _assign(self, slot: Slot, job: Job) -> None:
        self._give(slot, job)
        if job.timeout is not None:
            self._set_deadline(slot, self._now + job.timeout)
        if job.memory_limit is None:
            self._actions.append(Assign(slot.number, job.number, slot.attempt))
            return
        # What earlier jobs left behind in the worker shall not count against this one.
        room = job.memory_limit if slot.served else None
        self._do(Assign(slot.number, job.number, slot.attempt, room))
        slot.watched = True
        self._do(Watch(slot.number, slot.attempt, job.memory_limit))

    def _missing(self, waiting: int, busy: int) -> int:
        """How many workers are missing, with so many jobs that wait, and that run."""
        if busy < self.max_workers:
            wanted = min(waiting, self.max_workers - busy)
        elif self._warm and not self.closing:
            wanted = self.spare_workers
        else:
            return 0
        return wanted - (self._live - busy)

    def _pause_of(self, busy: int) -> Pause:
        """That of whom would be started while so many jobs run."""
        return self._pause if busy < self.max_workers else self._spare_pause

    def _to_start(self, waiting: int, busy: int) -> int:
        """How many of the missing to start now.

        As long as the last one did not get ready it is one after a pause, and the next after that
        one's failure. If none is there at all, there is nothing to wait for.
        """
        missing = self._missing(waiting, busy)
        if missing <= 0:
            return missing
        pause = self._pause_of(busy)
        if not pause.doubt:
            return missing
        spare = pause is self._spare_pause
        slots = self.slots.values()
        coming = (slot for slot in slots if slot.state in _COMING or slot.unclear)
        tried = any(slot.trial and slot.spare is spare for slot in coming)
        return 0 if tried or (self._live and pause.until is not None) else 1

    def _spawn(self) -> None:
        pause = self._pause_of(self._busy)
        for _ in range(self._to_start(self._queue.count, self._busy)):
            self._slot_count += 1
            spare = pause is self._spare_pause
            slot = Slot(self._slot_count, spare=spare, trial=pause.doubt)
            self.slots[self._slot_count] = slot
            self._live += 1
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
        waiting = sorted(n for n, job in self.jobs.items() if job.slot is None)
        assert sorted(self._queue.numbers()) == waiting, "a waiting job is in the queue, once"
        assert self._queue.count == len(waiting), "the waiting are counted right"
        for job in self.jobs.values():
            assert job.slot is None or job.slot.job is job, "job and slot agree"
        for number, slot in self.slots.items():
            assert slot.number == number
            assert slot.job is None or self.jobs.get(slot.job.number) is slot.job
            has_job = slot.state in (BUSY, GRACE)
            assert not has_job or slot.job is not None, "a busy slot has a job"
            may_have = has_job or slot.state is DYING
            assert slot.job is None or may_have, "only a busy or dying slot has a job"
            assert (slot in self._idle) == (slot.state is IDLE), "idle slots are listed"
            assert (slot.deadline is None) == (slot not in self._limited)
            assert not slot.watched or has_job, "only a busy worker's memory is watched"
        states = [slot.state for slot in self.slots.values()]
        assert self._busy == states.count(BUSY) + states.count(GRACE)
        unclear = [slot for slot in self.slots.values() if slot.unclear]
        assert all(slot.state is DYING and slot.was is WARMING for slot in unclear)
        ending = states.count(LEAVING) + states.count(DYING)
        assert self._live == len(states) - ending + len(unclear)
        assert self._live or not self._queue.count, "nobody waits without a worker to come"
        assert all(slot.number in self.slots for slot in self._limited)
        assert self.running == len([s for s in self.slots.values() if s.job is not None])
        may_run = self._idle and self.running < self.max_workers
        assert not (self._queue.count and may_run), "nobody waits while a worker may have it"

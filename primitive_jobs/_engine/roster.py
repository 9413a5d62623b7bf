"""`Roster`: the workers of one pool: which there are, which are free, and how many are missing.

A pure part of the scheduler's state. It decides when a worker starts, leaves or is killed, and
appends that to the actions of the event at hand. Which job a worker gets, and how a job ends, is
decided in `job_table`.
"""

from __future__ import annotations

from .events import (
    Action,
    Actions,
    Kill,
    Leave,
    Postpone,
    Reason,
    Spawn,
    Unspawn,
    Unwatch,
)
from .pauses import Pause
from .queue import Job
from .slots import (
    BUSY,
    DYING,
    GONE,
    GRACE,
    IDLE,
    LEAVING,
    STARTING,
    WARMING,
    Slot,
    SlotState,
)

MAX_STARTS = 3  # failures in a row to start a worker, or a job, before those who wait are told
LEAVE_TIME = 5.0  # s that an idle worker has to end by itself, for the sake of its atexit handlers

_HAS_JOB = tuple(int(state in (BUSY, GRACE)) for state in SlotState)
_IS_LIVE = tuple(int(state not in (LEAVING, DYING, GONE)) for state in SlotState)
_COMING = (STARTING, WARMING)


class Roster:
    """The slots of one pool.

    Args:
        max_workers: The most processes that may have a job, or be ready for one, at a time.
        idle_timeout: Seconds after which an idle worker is asked to leave; None: never.
        spare_workers: Idle workers beyond `max_workers` that stand ready while all those have
            jobs, from the end of the first job on.
        slow_starts: Whether starts that no job waits for any more are called off.

    Attributes:
        slots: All slots that are not gone, by number.
        idle: The slots that are ready for a job, the longest idle first; the last one is used next.
        running: Jobs that some slot has. One whose worker is being killed counts until its end is
            known: until then it holds its memory. May be read on any thread.
        busy: Slots that have a job, without those that are being killed.
        attempts: The number of the last attempt.
        warm: A job has ended: spares may be started.
        closing: No job comes any more, and no spare is started.
        reclaimed: Slots whose place others wanted before their worker was ready: it leaves as soon
            as it is idle.
        slow_starts: As the argument.
        pause: Before the next start of a worker that jobs wait for, after failed ones.
        now: The time of the event at hand.
        actions: What is to be done about it; whoever decides something appends to it.
    """

    def __init__(
        self,
        max_workers: int,
        idle_timeout: float | None,
        spare_workers: int,
        *,
        slow_starts: bool = False,
    ) -> None:
        self.max_workers = max_workers
        self.spare_workers = spare_workers
        self.slow_starts = slow_starts
        self.reclaimed: set[Slot] = set()
        self.slots: dict[int, Slot] = {}
        self.idle: list[Slot] = []
        self.running = 0
        self.busy = 0
        self.attempts = 0
        self.warm = False
        self.closing = False
        self.pause = Pause()
        self.now = 0.0
        self._idle_timeout = idle_timeout
        self._live = 0  # slots that may have a job now or later, or may prove that none can
        self._full = False  # after the last event as many jobs ran as may
        self._limited: set[Slot] = set()  # slots with a deadline
        self._slot_count = 0
        self._start_failures = 0  # in a row, of workers that jobs waited for
        self._spare_pause = Pause()
        self.actions: Actions = []
        self._cause = ""  # the event at hand, by name

    def begin(self, cause: str, now: float) -> Actions:
        """Begin an event; return the list to which all its actions are appended."""
        self.now = now
        self._cause = cause
        actions: Actions = []
        self.actions = actions
        return actions

    def end(self) -> None:
        """End the event: its actions belong to the dispatcher from now on."""
        self.actions = []

    # --- one slot ----------------------------------------------------------------------------

    def with_attempt(self, number: int, attempt: int) -> Slot | None:
        """Return the slot, if the attempt is still its present one."""
        slot = self.slots.get(number)
        return slot if slot is not None and slot.attempt == attempt else None

    def move(self, slot: Slot, state: SlotState) -> None:
        """Move a slot to a state, and keep the counts right."""
        before = slot.state
        slot.move(state, self._cause)
        self.busy += _HAS_JOB[state] - _HAS_JOB[before]
        self._live += _IS_LIVE[state] - _IS_LIVE[before]

    def give(self, slot: Slot, job: Job) -> None:
        """Give a job to a worker that the caller has taken out of `idle`."""
        self.attempts += 1
        slot.attempt = job.attempt = self.attempts
        if slot.state is not BUSY:
            self.move(slot, BUSY)
        self.running += 1
        slot.job, job.slot = job, slot.number

    def take_job(self, slot: Slot) -> Job:
        """Take the job away from a slot and return it."""
        job = slot.job
        assert job is not None, "it has one"
        slot.job = job.slot = None
        self.running -= 1
        return job

    def set_idle(self, slot: Slot) -> None:
        """Make a worker idle: it is ready for the next job."""
        self.move(slot, IDLE)
        slot.idle_since = self.now
        self.idle.append(slot)

    def limit(self, slot: Slot, deadline: float | None) -> None:
        """Set a slot's deadline; None: it has none."""
        slot.deadline, slot.limited_at = deadline, self.now
        if deadline is None:
            self._limited.discard(slot)
        else:
            self._limited.add(slot)

    def unwatch(self, slot: Slot) -> None:
        """Stop watching a worker's memory."""
        if slot.watched:
            slot.watched = False
            self._do(Unwatch(slot.number))

    def ask_to_leave(self, slot: Slot) -> None:
        """Ask a worker that has no job to end."""
        if slot.state is IDLE:
            self.idle.remove(slot)
        self.move(slot, LEAVING)
        self.limit(slot, self.now + LEAVE_TIME)
        self._do(Leave(slot.number))

    def kill(self, slot: Slot, *, ask_stack: bool = True) -> None:
        """Kill a worker in any state; if its job passed a limit, ask for the stack first."""
        if slot.state is DYING:
            return
        self.limit(slot, None)
        self.unwatch(slot)
        if slot.state is IDLE:
            self.idle.remove(slot)
        slot.was = slot.state
        self.move(slot, DYING)
        # Without a process yet there is nothing to kill: see `started`.
        if slot.was is STARTING:
            self._do(Unspawn(slot.number))
        else:
            ask_stack = ask_stack and slot.reason in (Reason.TIMEOUT, Reason.MEMORY)
            self._do(Kill(slot.number, ask_stack))

    def forget(self, number: int) -> Slot:
        """Remove a slot: nothing is left of its worker, or it did not start."""
        slot = self.slots.pop(number)
        self.reclaimed.discard(slot)
        self.limit(slot, None)
        self.move(slot, GONE)
        self._live -= slot.unclear
        return slot

    def _do(self, action: Action) -> None:
        self.actions.append(action)

    # --- from the order to the readiness -------------------------------------------------------

    def started(self, number: int) -> None:
        """Record that a slot has its process."""
        slot = self.slots[number]
        if slot.state is STARTING:
            self.move(slot, WARMING)
        else:  # called off meanwhile, too late
            self._do(Kill(slot.number))

    def ready(self, number: int) -> None:
        """Record that a worker waits for its first job."""
        slot = self.slots.get(number)
        if slot is None or slot.state is not WARMING:
            return
        self._start_failures = 0
        self.pause.end()
        if slot.spare:
            self._spare_pause.end()
        self.set_idle(slot)
        if self.idle[0] is not slot:
            # Behind those that have served: what they have imported serves again.
            self.idle.remove(slot)
            slot.idle_since = self.idle[0].idle_since
            self.idle.insert(0, slot)

    def lose(self, slot: Slot) -> None:
        """Clean up a worker that died by itself, or about which the pool had an error."""
        self.kill(slot)
        if slot.was is WARMING:
            # None is started in its place before it is known whether that makes sense.
            slot.unclear = True
            self._live += 1

    def not_ready(self, slot: Slot, *, by_chance: bool) -> bool:
        """Record that a worker did not get ready; return whether the jobs that wait fail.

        They fail if no other worker works or is coming, and the failure is not by chance: it is an
        initializer's, or the last of several in a row.
        """
        if slot.spare:
            self._postpone(self._spare_pause, spare=True)
            return False
        self._start_failures += 1
        if self._start_failures < MAX_STARTS and by_chance:
            return False  # another is started at once
        if self._live:
            self._postpone(self.pause, spare=False)
            return False
        self._start_failures = 0
        self.pause.end()
        return True

    def _postpone(self, pause: Pause, *, spare: bool) -> None:
        seconds = pause.begin(self.now)
        if seconds is not None:
            self._do(Postpone(seconds, spare))

    # --- all of them -----------------------------------------------------------------------------

    def next_deadline(self, waiting: int) -> float | None:
        """Return when the next tick is due, with ``waiting`` jobs in the queue; None: never."""
        due = []
        if self._limited:
            due += [slot.deadline for slot in self._limited if slot.deadline is not None]
        if self.idle and self._idle_timeout is not None and self.running < self.max_workers:
            due.append(self.idle[0].idle_since + self._idle_timeout)
        until = self._pause_of(self.busy).until
        if until is not None and self.missing(waiting, self.busy) > 0:
            due.append(until)
        return min(due) if due else None

    def tick(self) -> list[Slot]:
        """Take in that time has passed; return the slots past their deadline, in order."""
        self.pause.tick(self.now)
        self._spare_pause.tick(self.now)
        return self.late(self.now)

    def late(self, now: float) -> list[Slot]:
        """Return the slots past their deadline, in order."""
        late = [s for s in self._limited if s.deadline is not None and s.deadline <= now]
        return sorted(late, key=lambda slot: slot.number)

    def dismiss_idle(self) -> None:
        """Ask workers to leave that have been idle for too long."""
        if self._idle_timeout is not None and self.running < self.max_workers:
            while self.idle and self.idle[0].idle_since + self._idle_timeout <= self.now:
                self.ask_to_leave(self.idle[0])

    def suspended(self, since: float, until: float) -> None:
        """Move deadlines by the time for which all workers were stopped with the program."""
        for slot in self._limited:
            missed = until - max(since, slot.limited_at)
            if slot.deadline is not None and missed > 0:
                slot.deadline += missed

    def resize(self, max_workers: int) -> None:
        """Change the number of workers; idle ones beyond it leave."""
        self.max_workers = max_workers
        while self.idle and self._live > max_workers:  # spares come when they are of use
            self.ask_to_leave(self.idle[0])

    def restart(self) -> None:
        """Replace every worker, a busy one after its job."""
        for slot in list(self.slots.values()):
            slot.retiring = True
            if slot.state is IDLE:
                self.ask_to_leave(slot)
            elif slot.state in _COMING:  # it may have begun to import what has changed since
                self.kill(slot)

    def reclaim(self, number: int) -> None:
        """Have a worker leave whose place others want: an idle one now, a busy one after its job.

        One that is coming has jobs that wait for it: it leaves after the first of them, or when it
        is idle.
        """
        slot = self.slots.get(number)
        if slot is None or slot.state in (LEAVING, DYING):
            return
        slot.retiring = slot.reclaimed = True
        if slot.state is IDLE:
            self.ask_to_leave(slot)
        elif slot.state in _COMING:
            self.reclaimed.add(slot)

    def dismiss_reclaimed(self) -> None:
        """Ask workers to leave that have found no job, and whose place others want."""
        for slot in sorted(self.reclaimed, key=lambda slot: slot.number):
            if slot.state is IDLE:
                self.ask_to_leave(slot)
            if slot.state not in _COMING:
                self.reclaimed.discard(slot)

    def empty(self) -> None:
        """Ask every worker without a job to leave, and kill those that are not ready yet."""
        while self.idle:
            self.ask_to_leave(self.idle[0])
        for slot in self.slots.values():
            if slot.state in _COMING:
                self.kill(slot)

    # --- how many there should be ----------------------------------------------------------------

    def trim(self) -> None:
        """Ask idle workers to leave that are too many."""
        if self._full and self.running < self.max_workers:
            for spare in self.idle:  # they were of use till now: they do not leave at once
                spare.idle_since = self.now
        while self.idle and self._live > self._most():
            self.ask_to_leave(self.idle[0])

    def fill_up(self, waiting: int) -> None:
        """Start the workers that are missing, with ``waiting`` jobs in the queue."""
        self._full = self.running >= self.max_workers
        if self._live < self._most():
            self._spawn(waiting)
        if self.slow_starts:
            self._call_off(waiting)

    def _call_off(self, waiting: int) -> None:
        """Call off the newest starts, of workers that no job waits for."""
        slots = list(self.slots.values())
        starting = [slot for slot in slots if slot.state is STARTING]
        if not starting:
            return
        unclear = sum(slot.unclear for slot in slots)  # these count as live, but will have no job
        surplus = -self.missing(waiting, self.busy) - unclear
        for slot in reversed(starting[-surplus:] if surplus > 0 else []):
            self.kill(slot)

    def _most(self) -> int:
        """How many workers there may be."""
        # What is busy beyond the limit, after a resize, may have a spare too.
        return max(self.max_workers, self.busy) + self.spare_workers

    def missing(self, waiting: int, busy: int) -> int:
        """Return how many workers are missing, with so many jobs waiting, and workers busy."""
        if busy < self.max_workers:
            wanted = min(waiting, self.max_workers - busy)
        elif self.warm and not self.closing:
            wanted = self.spare_workers
        else:
            wanted = 0
        return wanted - (self._live - busy)

    def to_start(self, waiting: int, busy: int) -> int:
        """Return how many of the missing workers to start now.

        After one that did not get ready, a single one is started at a time, each after a pause;
        without a pause if there is no worker at all.
        """
        missing = self.missing(waiting, busy)
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

    def _pause_of(self, busy: int) -> Pause:
        """Return the pause of a start: jobs wait for it, or, if all may be busy, it is a spare."""
        return self.pause if busy < self.max_workers else self._spare_pause

    def _spawn(self, waiting: int) -> None:
        pause = self._pause_of(self.busy)
        for _ in range(self.to_start(waiting, self.busy)):
            self._slot_count += 1
            spare = pause is self._spare_pause
            slot = Slot(self._slot_count, self._cause, spare=spare, trial=pause.doubt)
            self.slots[self._slot_count] = slot
            self._live += 1
            self._do(Spawn(self._slot_count))

    # --- for tests ---------------------------------------------------------------------------

    def check(self, waiting: int) -> None:
        """Raise `AssertionError` if the state contradicts itself."""
        for number, slot in self.slots.items():
            assert slot.number == number
            has_job = slot.state in (BUSY, GRACE)
            assert not has_job or slot.job is not None, "a busy slot has a job"
            may_have = has_job or slot.state is DYING
            assert slot.job is None or may_have, "only a busy or dying slot has a job"
            assert (slot in self.idle) == (slot.state is IDLE), "idle slots are listed"
            assert (slot.deadline is None) == (slot not in self._limited)
            assert not slot.watched or has_job, "only a busy worker's memory is watched"
            assert slot.moves[-1][0] is slot.state, "the last move is remembered"
        states = [slot.state for slot in self.slots.values()]
        assert GONE not in states, "what is gone is forgotten"
        assert self.busy == states.count(BUSY) + states.count(GRACE)
        unclear = [slot for slot in self.slots.values() if slot.unclear]
        assert all(slot.state is DYING and slot.was is WARMING for slot in unclear)
        ending = states.count(LEAVING) + states.count(DYING)
        assert self._live == len(states) - ending + len(unclear)
        assert self._live or not waiting, "nobody waits without a worker to come"
        assert all(slot.number in self.slots for slot in self._limited)
        assert self.running == len([s for s in self.slots.values() if s.job is not None])

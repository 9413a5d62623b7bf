"""`Roster`: the workers of one pool: which there are, and which are free.

A pure part of the scheduler's state. It decides when a worker leaves or is killed, and
appends that to the actions of the event at hand. When one starts is decided in `staffing`; which
job it gets, and how a job ends, in `job_table`.
"""

from __future__ import annotations

from .events import (
    Action,
    Actions,
    Kill,
    Leave,
    Reason,
    Spawn,
    Teach,
    Unspawn,
    Unwatch,
    Watch,
)
from .queue import Job
from .reservations import Reservations
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
from .wide import WideWorkers

LEAVE_TIME = 5.0  # s that an idle worker has to end by itself, for the sake of its atexit handlers

_HAS_JOB = tuple(int(state in (BUSY, GRACE)) for state in SlotState)
_IS_LIVE = tuple(int(state not in (LEAVING, DYING, GONE)) for state in SlotState)
COMING = (STARTING, WARMING)
"""The states of a worker that is not ready yet."""


class Roster:
    """The slots of one pool.

    Args:
        max_workers: The most processes that may have a job, or be ready for one, at a time.
        idle_timeout: Seconds after which an idle worker is asked to leave; None: never.
        spare_workers: Idle workers beyond `max_workers` that stand ready while all those have
            jobs, from the end of the first job on.
        reservations: What jobs hold besides their worker.

    Attributes:
        slots: All slots that are not gone, by number.
        idle: The slots that are ready for a job, the longest idle first; the last one is used next.
            Those that were started for jobs of several CPUs are in `wide`.
        running: Jobs that some slot has. One whose worker is being killed counts until its end is
            known: until then it holds its memory. May be read on any thread.
        extra: CPUs that these jobs take beyond one each.
        busy: Slots that have a job, without those that are being killed.
        needy: Jobs wait that need more than any worker: then `Admission` decides who is next.
        blocks: One of them might start if a CPU got free, so that no other job may just take it.
        short: Some of them wait for memory: no spare is started.
        attempts: The number of the last attempt.
        warm: A job has ended: spares may be started.
        closing: No job comes any more, and no spare is started.
        reclaimed: Slots whose place others wanted before their worker was ready: it leaves as soon
            as it is idle.
        live: Slots that may have a job now or later, or may prove that none can. A wide one counts
            while it has a job: it takes no other's place before or after that.
        now: The time of the event at hand.
        actions: What is to be done about it; whoever decides something appends to it.
    """

    def __init__(
        self,
        max_workers: int,
        idle_timeout: float | None,
        spare_workers: int,
        reservations: Reservations,
    ) -> None:
        self.max_workers = max_workers
        self.reservations = reservations
        self.wide = WideWorkers()
        self.extra = 0
        self.needy = self.blocks = self.short = False
        self.spare_workers = spare_workers
        self.reclaimed: set[Slot] = set()
        self.slots: dict[int, Slot] = {}
        self.idle: list[Slot] = []
        self.running = 0
        self.busy = 0
        self.attempts = 0
        self.warm = False
        self.closing = False
        self.now = 0.0
        self._idle_timeout = idle_timeout
        self.live = 0
        self._limited: set[Slot] = set()  # slots with a deadline
        self._slot_count = 0
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

    @property
    def taken(self) -> int:
        """How many CPUs the jobs take that some slot has."""
        return self.running + self.extra

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
        counts = _IS_LIVE if slot.width == 1 else _HAS_JOB
        self.live += counts[state] - counts[before]

    def give(self, slot: Slot, job: Job) -> None:
        """Give a job to a worker that the caller has taken out of `idle`."""
        self.attempts += 1
        slot.attempt = job.attempt = self.attempts
        if slot.state is not BUSY:
            self.move(slot, BUSY)
        self.running += 1
        if slot.width > 1:
            self.extra += slot.width - 1
        slot.job, job.slot = job, slot.number

    def take_job(self, slot: Slot) -> Job:
        """Take the job away from a slot and return it."""
        job = slot.job
        assert job is not None, "it has one"
        slot.job = job.slot = None
        self.running -= 1
        if slot.width > 1:
            self.extra -= slot.width - 1
        if slot.reserves and slot.state is BUSY:  # else it is its worker's till that is gone
            self.reservations.release(slot)
        return job

    def set_idle(self, slot: Slot) -> None:
        """Make a worker idle: it is ready for the next job."""
        self.move(slot, IDLE)
        slot.idle_since = self.now
        self._idle_with(slot).append(slot)

    def _idle_with(self, slot: Slot) -> list[Slot]:
        return self.idle if slot.width == 1 else self.wide.idle(slot.width)

    def all_idle(self) -> list[Slot]:
        """Return the idle ones, those for several CPUs first."""
        return [*self.wide.all_idle(), *self.idle]

    def limit(self, slot: Slot, deadline: float | None) -> None:
        """Set a slot's deadline; None: it has none."""
        slot.deadline, slot.limited_at = deadline, self.now
        if deadline is None:
            self._limited.discard(slot)
        else:
            self._limited.add(slot)

    def watch(self, slot: Slot, limit: int | None) -> None:
        """Have somebody watch the memory of a worker whose job has a limit; None: it has none."""
        if limit is not None:
            slot.watched = True
            self._do(Watch(slot.number, slot.attempt, limit))

    def unwatch(self, slot: Slot) -> None:
        """Stop watching a worker's memory."""
        if slot.watched:
            slot.watched = False
            self._do(Unwatch(slot.number))

    def ask_to_leave(self, slot: Slot) -> None:
        """Ask a worker that has no job to end."""
        if slot.state is IDLE:
            self._idle_with(slot).remove(slot)
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
            self._idle_with(slot).remove(slot)
        slot.was = slot.state
        self.move(slot, DYING)
        # Without a process yet there is nothing to kill: see `started`.
        if slot.was is STARTING:
            self._do(Unspawn(slot.number))
        else:
            ask_stack = ask_stack and slot.reason in (Reason.TIMEOUT, Reason.MEMORY)
            self._do(Kill(slot.number, ask_stack))

    def forget(self, number: int, *, lives_on: bool = False) -> Slot:
        """Remove a slot: nothing is left of its worker, or it did not start.

        Or something of it ``lives_on``, which could not be killed.
        """
        slot = self.slots.pop(number)
        self.reclaimed.discard(slot)
        self.limit(slot, None)
        self.move(slot, GONE)
        self.live -= slot.unclear and slot.width == 1
        if slot.reserves:
            self.reservations.release(slot, lives_on=lives_on)
        return slot

    def _do(self, action: Action) -> None:
        self.actions.append(action)

    # --- from the order to the readiness -------------------------------------------------------

    def order(self, *, spare: bool, trial: bool, width: int = 1) -> None:
        """Have a worker started, whose jobs take so many CPUs."""
        self._slot_count += 1
        slot = Slot(self._slot_count, self._cause, spare=spare, trial=trial, width=width)
        self.slots[self._slot_count] = slot
        self.live += width == 1
        self._do(Spawn(self._slot_count, width) if width > 1 else Spawn(self._slot_count))

    def started(self, number: int) -> None:
        """Record that a slot has its process."""
        slot = self.slots[number]
        if slot.state is STARTING:
            self.move(slot, WARMING)
        else:  # called off meanwhile, too late
            self._do(Kill(slot.number))

    def ready(self, slot: Slot) -> None:
        """Record that a worker waits for its first job."""
        self.set_idle(slot)
        if slot.width > self.max_workers:  # that have become fewer meanwhile
            self.ask_to_leave(slot)
            return
        idle = self._idle_with(slot)
        if idle[0] is not slot:
            # Behind those that have served: what they have imported serves again.
            idle.remove(slot)
            slot.idle_since = idle[0].idle_since
            idle.insert(0, slot)

    def teach(self, slot: Slot) -> None:
        """Have an idle worker do something before it is ready again."""
        self._idle_with(slot).remove(slot)
        self.move(slot, WARMING)
        self._do(Teach(slot.number))

    def lose(self, slot: Slot) -> None:
        """Clean up a worker that died by itself, or about which the pool had an error."""
        self.kill(slot)
        if slot.was is WARMING:
            # None is started in its place before it is known whether that makes sense.
            slot.unclear = True
            self.live += slot.width == 1

    # --- all of them -----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when a slot's time is over; None: never."""
        due = []
        if self._limited:
            due += [slot.deadline for slot in self._limited if slot.deadline is not None]
        timeout = self._idle_timeout
        if timeout is not None and self.running + self.extra < self.max_workers:
            if self.idle:
                due.append(self.idle[0].idle_since + timeout)
            if self.wide.used:
                due += [slot.idle_since + timeout for slot in self.wide.all_idle()]
        return min(due) if due else None

    def late(self, now: float) -> list[Slot]:
        """Return the slots past their deadline, in order."""
        late = [s for s in self._limited if s.deadline is not None and s.deadline <= now]
        return sorted(late, key=lambda slot: slot.number)

    def dismiss_idle(self) -> None:
        """Ask workers to leave that have been idle for too long."""
        if self._idle_timeout is not None and self.taken < self.max_workers:
            for slot in self.all_idle():
                if slot.idle_since + self._idle_timeout <= self.now:
                    self.ask_to_leave(slot)

    def suspended(self, since: float, until: float) -> None:
        """Move deadlines by the time for which all workers were stopped with the program."""
        for slot in self._limited:
            missed = until - max(since, slot.limited_at)
            if slot.deadline is not None and missed > 0:
                slot.deadline += missed

    def resize(self, max_workers: int) -> None:
        """Change the number of workers; idle ones beyond it leave."""
        self.max_workers = max_workers
        while self.idle and self.live > max_workers:  # spares come when they are of use
            self.ask_to_leave(self.idle[0])
        for slot in self.wide.all_idle():
            if slot.width > max_workers:
                self.ask_to_leave(slot)

    def restart(self) -> None:
        """Replace every worker, a busy one after its job."""
        for slot in list(self.slots.values()):
            slot.retiring = True
            if slot.state is IDLE:
                self.ask_to_leave(slot)
            elif slot.state in COMING:  # it may have begun to import what has changed since
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
        elif slot.state in COMING:
            self.reclaimed.add(slot)

    def dismiss_reclaimed(self) -> None:
        """Ask workers to leave that have found no job, and whose place others want."""
        for slot in sorted(self.reclaimed, key=lambda slot: slot.number):
            if slot.state is IDLE:
                self.ask_to_leave(slot)
            if slot.state not in COMING:
                self.reclaimed.discard(slot)

    def call_off_spares(self) -> None:
        """Kill those that are not ready: what is started in their place is for a job that waits."""
        for slot in self.slots.values():
            if slot.spare and slot.state in COMING:
                self.kill(slot)

    def empty(self) -> None:
        """Ask every worker without a job to leave, and kill those that are not ready yet."""
        for slot in self.all_idle():
            self.ask_to_leave(slot)
        for slot in self.slots.values():
            if slot.state in COMING:
                self.kill(slot)


def check(roster: Roster, waiting: int) -> None:
    """For tests: raise `AssertionError` if the state contradicts itself."""
    for number, slot in roster.slots.items():
        assert slot.number == number
        has_job = slot.state in (BUSY, GRACE)
        assert not has_job or slot.job is not None, "a busy slot has a job"
        may_have = has_job or slot.state is DYING
        assert slot.job is None or may_have, "only a busy or dying slot has a job"
        idle = roster.idle if slot.width == 1 else roster.wide.idle(slot.width)
        assert (slot in idle) == (slot.state is IDLE), "idle slots are listed"
        assert (slot.deadline is None) == (slot not in roster._limited)
        assert not slot.watched or has_job, "only a busy worker's memory is watched"
        assert slot.moves[-1][0] is slot.state, "the last move is remembered"
    states = [slot.state for slot in roster.slots.values()]
    assert GONE not in states, "what is gone is forgotten"
    assert roster.busy == states.count(BUSY) + states.count(GRACE)
    unclear = [slot for slot in roster.slots.values() if slot.unclear]
    assert all(slot.state is DYING and slot.was is WARMING for slot in unclear)
    regular = [slot for slot in roster.slots.values() if slot.width == 1]
    live = sum(slot.state not in (LEAVING, DYING) or slot.unclear for slot in regular)
    wide = [slot for slot in roster.slots.values() if slot.width > 1]
    live += sum(slot.state in (BUSY, GRACE) for slot in wide)
    assert roster.live == live
    # A job before them may hold the CPUs till it is known how much memory there is.
    assert roster.slots or roster.needy or not waiting, "nobody waits without a worker to come"
    assert all(slot.number in roster.slots for slot in roster._limited)
    with_job = [slot for slot in roster.slots.values() if slot.job is not None]
    assert roster.running == len(with_job)
    assert roster.taken == sum(slot.width for slot in with_job)

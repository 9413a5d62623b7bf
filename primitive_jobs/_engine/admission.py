"""`Admission`: the jobs that need more than any worker, and one pass over all that wait.

A pure part of the scheduler's state. While no such job waits, the next job is simply the first in
the queue, and nothing in here is asked. While one does, each event ends in a pass: from the first
to the last in order, jobs take their share of what is left, as far as it lasts. One that fits and
has no worker yet keeps its share till the end of the pass; so later ones do not take it away. One
that does not fit is passed by others, for `PATIENCE`: from then on it keeps what it lacks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

from ..options import CPUS, MEMORY, Lacked, Needs
from .events import LookAtMemory, Overcommit
from .queue import Job, JobQueue, in_turn
from .reservations import FRESH, Reservations, Room
from .roster import Roster
from .slots import DYING, LEAVING, Slot

PATIENCE = 30.0  # s for which the first job that does not fit is passed by others
_PLAIN = Needs()

Row = tuple[int, int, Job, Iterator[Job]]


class Admission:
    """The jobs with needs of one pool, in rows of the same needs.

    Args:
        roster: The pool's workers.
        plain: The queue of the jobs without needs.
        reservations: The pool's memory and tokens.

    Attributes:
        count: How many wait here.
        lacking: What jobs lacked in the last pass, by `Needs.row`, and how much memory was left
            then; replaced as a whole, so it may be read on any thread.
        wanting: The jobs that might start if they had a worker, each with how many CPUs that one
            has to be started for; by the last pass.
    """

    def __init__(self, roster: Roster, plain: JobQueue, reservations: Reservations) -> None:
        self.count = 0
        self.lacking: dict[Needs, tuple[tuple[Lacked, ...], int | None]] = {}
        self.wanting: list[tuple[Job, int]] = []
        self._roster = roster
        self._plain = plain
        self._reservations = reservations
        self._rows: dict[Needs, JobQueue] = {}

    # --- what waits ------------------------------------------------------------------------------

    def push(self, job: Job) -> None:
        """Take in a job that has needs."""
        assert job.needs is not None, "else it belongs into the queue"
        kind = job.needs.row
        row = self._rows.get(kind)
        if row is None:
            row = self._rows[kind] = JobQueue()
        row.push(job)
        self._counted(1)

    def remove(self, job: Job) -> None:
        """Take any one out, for good."""
        assert job.needs is not None, "that is why it is here"
        kind = job.needs.row
        row = self._rows[kind]
        row.remove(job)
        self._counted(-1)
        if not row.count:
            del self._rows[kind]

    def _counted(self, change: int) -> None:
        self.count += change
        self._roster.needy = self.count > 0
        if not self.count:
            self.lacking, self.wanting = {}, []
            self._roster.short = False

    def jobs(self) -> list[Job]:
        """Return all of them, in order."""
        found = [job for row in self._rows.values() for job in row.head(row.count)]
        return sorted(found, key=in_turn)

    def head(self, count: int) -> list[Job]:
        """Return the next ones, in order, at most so many."""
        found = [job for row in self._rows.values() for job in row.head(count)]
        return heapq.nsmallest(count, found, key=in_turn)

    # --- who may start ---------------------------------------------------------------------------

    def width(self, needs: Needs) -> int:
        """Return how many CPUs the worker of such a job is started for."""
        return min(needs.cpus, self._roster.max_workers)

    def place(self, assign: Callable[[Slot, Job], object]) -> None:
        """Go once over what waits, and give workers the jobs that may start now."""
        roster, reservations = self._roster, self._reservations
        left = roster.max_workers - roster.taken
        room = Room(left, reservations.memory(roster.now), reservations.free_tokens())
        lacking: dict[Needs, tuple[tuple[Lacked, ...], int | None]] = {}
        kept: frozenset[Lacked] = frozenset()
        first: Job | None = None
        self.wanting = []
        rows = self._first_rows(max(1, left))
        while rows:
            _, _, job, others = heapq.heappop(rows)
            needs = job.needs or _PLAIN
            lacks = room.lacks(needs, self.width(needs)) or _of(needs, kept)
            if lacks:
                lacking[needs.row] = lacks, room.memory
                if first is None:
                    first = job
                    kept = self._kept_by(job, lacks)
                continue
            room.take(needs, self.width(needs))
            self._place(job, needs, room, assign)
            _push(rows, others)
        self.lacking = lacking
        self._see_to_memory(first, assign)
        if reservations.look_due:
            reservations.look_due = False
            roster.actions.append(LookAtMemory())

    def _first_rows(self, count: int) -> list[Row]:
        """Return the rows, each with its next jobs, at most so many."""
        rows: list[Row] = []
        for row in (self._plain, *self._rows.values()):
            if row.count:
                _push(rows, iter(row.head(count)))
        return rows

    def _kept_by(self, job: Job, lacks: tuple[Lacked, ...]) -> frozenset[Lacked]:
        """What the first job that does not fit keeps from all that come after it."""
        now = self._roster.now
        if job.lacks_since is None:
            job.lacks_since = now
        return frozenset(lacks) if now - job.lacks_since >= PATIENCE else frozenset()

    def _place(self, job: Job, needs: Needs, room: Room, assign: Callable[..., object]) -> None:
        """Give a job that fits a worker, if there is one, and if it is known that it fits."""
        known = not needs.memory or room.memory is not None
        if not known:
            self._reservations.ask_for_look()
        slot = self._worker_for(needs, take=known)
        if slot is None:
            self.wanting.append((job, self.width(needs)))
        elif known:
            self._start(job, slot, assign)

    def _worker_for(self, needs: Needs, *, take: bool) -> Slot | None:
        """Return an idle worker for such a job, if there is one; ``take`` it out of the idle."""
        width = self.width(needs)
        idle = self._roster.idle if width == 1 else self._roster.wide.idle(width)
        if not idle:
            return None
        slot = self._reservations.preferred(needs, idle) or idle[-1]
        if take:
            idle.remove(slot)
        return slot

    def _start(self, job: Job, slot: Slot, assign: Callable[..., object]) -> None:
        if job.needs is None:
            taken = self._plain.pop()
        else:
            kind = job.needs.row
            row = self._rows[kind]
            taken = row.pop()
            if not row.count:
                del self._rows[kind]
            self._counted(-1)
        assert taken is job, "of one row, those that start are the first ones"
        assign(slot, job)

    # --- memory is short -------------------------------------------------------------------------

    def _see_to_memory(self, first: Job | None, assign: Callable[..., object]) -> None:
        """Where memory is short, have idle workers leave; and have one job start in any case."""
        roster = self._roster
        short = {needs for needs, (lacks, _) in self.lacking.items() if MEMORY in lacks}
        roster.short = bool(short)
        if not short or self._reservations.budget is not None:
            return
        if self._dismiss_idle() or roster.running or self.wanting:
            return
        if first is None or first.needs is None:
            return
        lacks, left = self.lacking[first.needs.row]
        if lacks != (MEMORY,):
            return
        ending = any(slot.state in (LEAVING, DYING) for slot in roster.slots.values())
        if ending or self._reservations.looked_at < roster.now:
            return  # what they hold comes back, and may have since the last look
        # Nothing of ours runs, so nobody gives anything back: it would wait for ever.
        slot = self._worker_for(first.needs, take=True)
        if slot is None:
            self.wanting.append((first, self.width(first.needs)))
        else:
            missing = first.needs.memory - max(0, left or 0)
            roster.actions.append(Overcommit(first.number, missing))
            self._start(first, slot, assign)

    def _dismiss_idle(self) -> bool:
        """Ask idle workers to leave, but for one; return whether there were any."""
        idle = [*self._roster.wide.all_idle(), *self._roster.idle][:-1]
        for slot in idle:
            self._roster.ask_to_leave(slot)
        return bool(idle)

    def next_look(self) -> float | None:
        """When the machine's memory is to be looked at again; None: nobody waits for that."""
        if self._reservations.budget is not None or not self._roster.short:
            return None
        return self._reservations.looked_at + FRESH

    # --- for tests -------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` if the state contradicts itself."""
        rows = self._rows.values()
        assert all(row.count for row in rows), "no row is empty"
        assert self.count == sum(row.count for row in rows)
        assert self._roster.needy == (self.count > 0)
        for kind, row in self._rows.items():
            assert all(job.needs and job.needs.row == kind for job in row.head(9))


def _push(rows: list[Row], jobs: Iterator[Job]) -> None:
    """Put a row back by its next job, if it has one."""
    job = next(jobs, None)
    if job is not None:
        heapq.heappush(rows, (-job.priority, job.number, job, jobs))


def _of(needs: Needs, kept: frozenset[Lacked]) -> tuple[Lacked, ...]:
    """Return what of that which is kept such a job would take."""
    if not kept:
        return ()
    wants: list[Any] = [CPUS, *([MEMORY] if needs.memory else []), *dict(needs.tokens)]
    return tuple(each for each in wants if each in kept)


__all__ = ["PATIENCE", "Admission"]

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
        self._rows[job.needs.row].remove(job)
        self._one_less(job.needs)

    def _one_less(self, needs: Needs) -> None:
        if not self._rows[needs.row].count:
            del self._rows[needs.row]
        self._counted(-1)

    def _counted(self, change: int) -> None:
        self.count += change
        # Until the next pass has looked.
        self._roster.needy = self._roster.blocks = self.count > 0
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

    def place(self, assign: Callable[[Slot, Job], object], *, pausing: bool) -> None:
        """Go once over what waits, and give workers the jobs that may start now.

        While no worker is started (``pausing``), those that would need a new one take no share.
        """
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
            width = self.width(needs)
            lacks = room.lacks(needs, width)
            if lacks:
                lacking[needs.row] = lacks, room.memory
            elif lacks := _of(needs, kept):
                lacking[needs.row] = lacks, None  # there may be enough: it is another one's
            if lacks:
                if first is None:
                    first = job
                    kept = self._kept_by(job, lacks)
                continue
            if pausing and width > 1 and not roster.wide.idle(width):
                self.wanting.append((job, width))
                continue
            room.take(needs, width)
            if needs.memory and room.memory is None:
                reservations.ask_for_look()
                if needs.row in self.lacking:  # still true, as far as is known
                    lacking[needs.row] = self.lacking[needs.row]
            else:
                self._place(job, needs, assign)
            _push(rows, others)
        self.lacking = lacking if self.count else {}
        self._see_to_memory(first, assign)
        roster.blocks = self.count > 0 and not self._wait_for_tokens_alone(kept)
        if reservations.look_due:
            reservations.look_due = False
            roster.actions.append(LookAtMemory())

    def _first_rows(self, count: int) -> list[Row]:
        """Return the rows, each with its next jobs, at most so many."""
        rows: list[Row] = []
        for row in (self._plain, *self._rows.values()):
            if row.count:
                _push(rows, _in_order(row, count))
        return rows

    def _kept_by(self, job: Job, lacks: tuple[Lacked, ...]) -> frozenset[Lacked]:
        """Return what the first job that does not fit keeps from all that come after it.

        One thing after the other: tokens, then memory, then CPUs. It keeps those that it would have
        by now, and the first that it lacks. So it gets them all in the end, and what it cannot use
        before another one is there, others have till then.
        """
        now = self._roster.now
        if job.lacks_since is None:
            job.lacks_since = now
        if now - job.lacks_since < PATIENCE:
            return frozenset()
        wants = _wants(job.needs or _PLAIN)
        first = min(wants.index(each) for each in lacks)
        return frozenset(wants[: first + 1])

    def _wait_for_tokens_alone(self, kept: frozenset[Lacked]) -> bool:
        """Whether no job here could start if a CPU got free: then others are served as ever."""
        if CPUS in kept or self.wanting or self._reservations.look_due or self._roster.short:
            return False
        lacked = [self.lacking.get(kind, ((), None))[0] for kind in self._rows]
        return all(any(isinstance(each, str) for each in lacks) for lacks in lacked)

    def _place(self, job: Job, needs: Needs, assign: Callable[..., object]) -> None:
        """Give a job that fits a worker, if there is one."""
        slot = self._worker_for(needs)
        if slot is None:
            self.wanting.append((job, self.width(needs)))
        else:
            self._start(job, slot, assign)

    def _worker_for(self, needs: Needs) -> Slot | None:
        """Take an idle worker for such a job; None: there is none."""
        width = self.width(needs)
        idle = self._roster.idle if width == 1 else self._roster.wide.idle(width)
        if not idle:
            return None
        slot = self._reservations.preferred(needs, idle) or idle[-1]
        idle.remove(slot)
        return slot

    def _start(self, job: Job, slot: Slot, assign: Callable[..., object]) -> None:
        if job.needs is None:
            taken = self._plain.pop()
        else:
            taken = self._rows[job.needs.row].pop()
            self._one_less(job.needs)
        assert taken is job, "of one row, those that start are the first ones"
        job.lacks_since = None
        assign(slot, job)

    # --- memory is short -------------------------------------------------------------------------

    def _see_to_memory(self, first: Job | None, assign: Callable[..., object]) -> None:
        """Where memory is short, have idle workers leave; and have one job start in any case."""
        roster = self._roster
        short = {needs for needs, (lacks, _) in self.lacking.items() if MEMORY in lacks}
        roster.short = bool(short)
        if not short or self._reservations.budget is not None:
            return
        if first is None or first.needs is None:
            return
        if self._dismiss_idle(self.width(first.needs)) or roster.running or self.wanting:
            return
        lacks, left = self.lacking[first.needs.row]
        if lacks != (MEMORY,):
            return
        ending = any(slot.state in (LEAVING, DYING) for slot in roster.slots.values())
        if ending or self._reservations.looked_at < roster.now:
            return  # what they hold comes back, and may have since the last look
        # Nothing of ours runs, so nobody gives anything back: it would wait for ever.
        slot = self._worker_for(first.needs)
        if slot is None:
            self.wanting.append((first, self.width(first.needs)))
        else:
            missing = first.needs.memory - max(0, left or 0)
            roster.actions.append(Overcommit(first.number, missing))
            self._start(first, slot, assign)

    def _dismiss_idle(self, width: int) -> bool:
        """Ask idle workers to leave, but for one, if possible of a width; return whether any do."""
        roster = self._roster
        idle = roster.all_idle()
        best = roster.idle if width == 1 else roster.wide.idle(width)
        keep = best[-1] if best else idle[-1] if idle else None
        leaving = [slot for slot in idle if slot is not keep]
        for slot in leaving:
            roster.ask_to_leave(slot)
        return bool(leaving)

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


def _in_order(row: JobQueue, count: int) -> Iterator[Job]:
    """Yield the next ones; what comes after the first is looked for once that was dealt with."""
    first = row.first()
    yield first
    if row.count:
        yield from (job for job in row.head(count) if job is not first)


def _push(rows: list[Row], jobs: Iterator[Job]) -> None:
    """Put a row back by its next job, if it has one."""
    job = next(jobs, None)
    if job is not None:
        heapq.heappush(rows, (-job.priority, job.number, job, jobs))


def _wants(needs: Needs) -> list[Lacked]:
    """Return what such a job takes, in the order in which it keeps that."""
    return [*dict(needs.tokens), *([MEMORY] if needs.memory else []), CPUS]


def _of(needs: Needs, kept: frozenset[Lacked]) -> tuple[Lacked, ...]:
    """Return what of that which is kept such a job would take."""
    return tuple(each for each in _wants(needs) if each in kept) if kept else ()


__all__ = ["PATIENCE", "Admission"]

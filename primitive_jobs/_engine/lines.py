"""`Lines`: the jobs that busy workers were sent ahead, each one's in a line behind the one it has.

A pure part of the scheduler's state. A worker whose jobs are short would wait for its pool between
two of them. So it is sent some ahead: they lie in the queue that the kernel has for it, out of
which the pool can take them back at any time (`recall`). Nothing waits behind a job because of
that. A job in a line is QUEUED, and is the next one of its slot; whatever may touch it, but for an
answer of its worker, is preceded by the taking back of the line. So nothing else in the scheduler
knows of lines.
"""

from __future__ import annotations

from .._wire.notes import PLACES
from .events import SendAhead
from .queue import Job, JobQueue
from .roster import Roster
from .slots import Slot

MOST = 32  # jobs in a line
PLAIN_SIZE = 2048  # bytes of a call that may be sent ahead: lines shall fit into any socket
_SHORT = 200  # us: nothing is sent behind a job of a worker one of whose last jobs took longer
_LEAD = 500  # us that a line may take, by what its worker's last jobs took
_OVERHEAD = 10  # us that each job takes, beside its run
_LONG = 1000  # us that a job is taken to need whose answer does not come


class Lines:
    """The lines of one pool.

    Args:
        roster: The pool's workers.
        queue: Where the jobs come from, in their order.
        max_jobs_per_worker: Jobs that a worker may get; None: any number.

    Attributes:
        slots: Those with a line that is not empty, by number.
        most: Jobs in a line; 0: nothing is sent ahead. It is set before the first event.
        held: Nothing is sent ahead now: a line is being taken back.
        priority: No job in a line has a lower one.
    """

    def __init__(self, roster: Roster, queue: JobQueue, max_jobs_per_worker: int | None) -> None:
        self.slots: dict[int, Slot] = {}
        self.most = 0
        self.held = False
        self.priority = 0
        self._roster = roster
        self._queue = queue
        self._max_jobs_per_worker = max_jobs_per_worker

    def depth(self, slot: Slot) -> int:
        """How many jobs may stand in line behind the one that a busy worker has, or gets."""
        if slot.longest >= _SHORT or self.held or slot.retiring or self._roster.blocks:
            return 0
        # The last term: the jobs of a batch's end go to whoever is free.
        share = self._queue.count // (2 * self._roster.max_workers)
        depth = min(self.most, _LEAD // (slot.longest + _OVERHEAD), share)
        if self._max_jobs_per_worker is not None:
            depth = min(depth, self._max_jobs_per_worker - slot.served - 1)
        return depth

    def start(self, slot: Slot, job: Job, depth: int) -> None:
        """Give a worker that has answered its next job, and those of the queue that come next."""
        sent = [self._number(slot, job)]
        self._begin(slot, job)
        self._fill(slot, depth, sent)

    def move_up(self, slot: Slot) -> None:
        """Have the first one in line be the job of a worker that has answered the one before."""
        line = slot.line
        self._begin(slot, line.popleft())
        depth = self.depth(slot)
        if 2 * len(line) <= depth:
            self._fill(slot, depth, [])
        elif not line:
            self.slots.pop(slot.number, None)

    def _have(self, slot: Slot, job: Job) -> None:
        """Make a job, which the worker was sent, the one that it has."""
        self._roster.running += 1
        slot.job, slot.attempt = job, job.attempt

    def _begin(self, slot: Slot, job: Job) -> None:
        self._have(slot, job)
        slot.heard = self._roster.now
        if job.timeout is not None:
            self._roster.limit(slot, self._roster.now + job.timeout)
        elif slot.deadline is not None:
            self._roster.limit(slot, None)

    def _fill(self, slot: Slot, depth: int, sent: list[tuple[int, int, int]]) -> None:
        queue, line = self._queue, slot.line
        while len(line) < depth and (job := queue.pop_plain()) is not None:
            line.append(job)
            sent.append(self._number(slot, job))
        if line:
            least = line[-1].priority  # in a queue's order, the last one's is the least
            self.priority = min(least, self.priority) if self.slots else least
            self.slots[slot.number] = slot
        else:
            self.slots.pop(slot.number, None)
        if sent:
            self._roster.actions.append(SendAhead(slot.number, sent))

    def _number(self, slot: Slot, job: Job) -> tuple[int, int, int]:
        """Give a job its attempt, and the place where that is noted."""
        roster = self._roster
        roster.attempts += 1
        job.attempt = roster.attempts
        job.slot = slot.number
        slot.place = slot.place % (PLACES - 1) + 1  # not 0: that is for all that is not sent ahead
        return job.number, job.attempt, slot.place

    def taken_back(self, slot: Slot, attempts: list[int], now: float) -> list[int]:
        """Take in what a worker was sent ahead and has not received; return the jobs' numbers.

        What is left of its line it has received: all but the last one are answered, and these
        answers come next. Then `Scheduler.filled`, or an event, has to follow.
        """
        self._roster.begin("taken_back", now)
        back = self.came_back(slot, attempts)
        self._roster.end()
        return back

    def due(self, now: float) -> list[Slot]:
        """Return the slots that a `Tick` would find past their deadlines."""
        return self._roster.late(now)

    def came_back(self, slot: Slot, attempts: list[int]) -> list[int]:
        """Queue jobs again that the worker has not received; return their numbers.

        The others in the line were received. Whoever has none left is idle.
        """
        roster = self._roster
        assert slot.job is not None, "who has a line has a job"
        jobs = [slot.job, *slot.line]
        slot.line.clear()
        roster.take_job(slot)
        back = []
        for job in jobs:
            if job.attempt in attempts:
                job.slot = None
                self._queue.push(job)
                back.append(job.number)
            elif slot.job is not None:
                slot.line.append(job)
            elif job is jobs[0]:
                self._have(slot, job)
                job.slot = slot.number
            else:
                self._begin(slot, job)
        if not slot.line:
            self.slots.pop(slot.number, None)
        if slot.job is None:
            roster.limit(slot, None)
            roster.set_idle(slot)
        return back

    def began(self, slot: Slot, since: float) -> None:
        """Count the time that a worker's job may take from when it has begun."""
        if slot.job is not None and slot.job.timeout is not None:
            self._roster.limit(slot, since + slot.job.timeout)
            slot.limited_at = since

    def are_overtaken(self) -> bool:
        """Whether there are lines, and a job in the queue was to come before some that are there.

        So it may be where one line was taken back, and others were not.
        """
        queue = self._queue
        return bool(self.slots and queue.count and queue.first().priority > self.priority)

    def late(self, now: float) -> list[Slot]:
        """Return the slots whose workers have not answered for long; they get no line for now."""
        patience = 0.005 if self._queue.count else 0.001
        slots = [slot for slot in self.slots.values() if now - slot.heard > patience]
        for slot in slots:
            slot.longest = _LONG
        return slots

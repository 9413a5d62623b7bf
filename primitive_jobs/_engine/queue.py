"""`JobQueue`: the jobs that wait, in the order in which they start; and `Job`.

Pure parts of the scheduler's state.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque

from ..options import Needs


class Job:
    """What the scheduler knows of a job; `slot` is the number of the one that has it, if any."""

    __slots__ = (
        "attempt",
        "cancel_asked",
        "grace",
        "lacks_since",
        "memory_limit",
        "needs",
        "number",
        "plain",
        "priority",
        "retries",
        "retry_delay",
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
        retry_delay: float = 0.0,
        needs: Needs | None = None,
    ) -> None:
        self.number = number
        self.priority = priority
        self.timeout = timeout
        self.memory_limit = memory_limit
        self.retries = retries  # that are left
        self.grace = grace  # s, of a cancel that says nothing else
        self.retry_delay = retry_delay  # s before the next retry
        self.needs = needs  # None: a worker will do
        self.lacks_since: float | None = None  # when it was first in order and did not fit
        self.plain = False  # it is small, and needs nothing that not every job does
        self.slot: int | None = None
        self.attempt = 0  # there
        self.unstarted = 0  # attempts that never began
        self.cancel_asked = False


def in_turn(job: Job) -> tuple[int, int]:
    """Return what jobs are sorted by."""
    return -job.priority, job.number


class JobQueue:
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

    def pop_plain(self) -> Job | None:
        """Take the next one out if it is plain; None: there is none, or it is not."""
        if not self.count or not (job := self.first()).plain:
            return None
        self._rows[job.priority].popleft()
        self.count -= 1
        return job

    def head(self, count: int) -> list[Job]:
        """Return the next ones, in order, at most so many; it takes no longer for a long queue."""
        found: list[Job] = []
        if self.count:
            self.first()  # else many that were removed may stand before the others
        # Of a priority there may be removed ones alone.
        for priority in heapq.nsmallest(count + len(self._gone), self._priorities):
            if len(found) < count:
                back = heapq.nsmallest(count, self._returned.get(-priority, ()))
                row = ((job.number, job) for job in self._rows[-priority])
                both = (job for _, job in heapq.merge(back, row))
                waiting = (job for job in both if job not in self._gone)
                found += itertools.islice(waiting, count - len(found))
        return found

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

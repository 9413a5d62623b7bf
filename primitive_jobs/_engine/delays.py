"""`Delays`: the jobs that wait until they may be tried again, by when that is.

A pure part of the scheduler's state. Until then no worker may have them, and they are in no queue.
"""

from __future__ import annotations

import heapq

from .queue import Job

LONGEST_DELAY = 60.0  # s up to which a delay is doubled


class Delays:
    """The delayed jobs of one pool.

    Those that were removed stay in the heap until they are more than the others, and are passed
    over: they are not in `jobs` any more, or under another time.

    Attributes:
        jobs: Each with when it is due, by number.
    """

    __slots__ = ("_heap", "jobs")

    def __init__(self) -> None:
        self.jobs: dict[int, tuple[float, Job]] = {}
        self._heap: list[tuple[float, int]] = []

    def put(self, job: Job, due: float) -> None:
        """Take a job in, until it is due."""
        self.jobs[job.number] = due, job
        heapq.heappush(self._heap, (due, job.number))

    def remove(self, job: Job) -> bool:
        """Take one out; False if it is not here."""
        if self.jobs.pop(job.number, None) is None:
            return False
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self.jobs):
            self._heap = [(due, number) for number, (due, _) in self.jobs.items()]
            heapq.heapify(self._heap)
        return True

    def first(self) -> float:
        """When the next one is due; there must be one."""
        heap = self._heap
        while not self._counts(*heap[0]):
            heapq.heappop(heap)
        return heap[0][0]

    def _counts(self, due: float, number: int) -> bool:
        known = self.jobs.get(number)
        return known is not None and known[0] == due

    def take_due(self, now: float) -> list[Job]:
        """Take out those that are due, in order."""
        taken = []
        while self.jobs and self.first() <= now:
            _, number = heapq.heappop(self._heap)
            taken.append(self.jobs.pop(number)[1])
        return taken

    def head(self, count: int) -> list[Job]:
        """Return the next ones, in order, at most so many."""
        return [job for _, job in heapq.nsmallest(count, self.jobs.values(), key=_due_of)]


def after(delay: float) -> float:
    """Return the delay that follows on one: twice as long, up to the longest or what was asked."""
    return max(delay, min(2 * delay, LONGEST_DELAY))


def _due_of(entry: tuple[float, Job]) -> float:
    return entry[0]


__all__ = ["LONGEST_DELAY", "Delays", "after"]

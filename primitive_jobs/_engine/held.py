"""`Held`: the jobs that wait for other jobs.

A pure part of the scheduler's state. Until those are done no worker may have them, and they are in
no queue.
"""

from __future__ import annotations

import itertools

from .queue import Job


class Held:
    """The held jobs of one pool.

    Attributes:
        jobs: Each by number, in the order in which they came.
        missing: For how many others each waits.
    """

    __slots__ = ("jobs", "missing")

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.missing: dict[int, int] = {}

    def put(self, job: Job, missing: int) -> None:
        """Take a job in that waits for so many others."""
        self.jobs[job.number] = job
        self.missing[job.number] = missing

    def done(self, number: int) -> Job | None:
        """One of those that a job waits for is done; return it, taken out, if it was the last."""
        if number not in self.jobs:
            return None
        self.missing[number] -= 1
        if self.missing[number] > 0:
            return None
        del self.missing[number]
        return self.jobs.pop(number)

    def remove(self, job: Job) -> bool:
        """Take one out; False if it is not here."""
        self.missing.pop(job.number, None)
        return self.jobs.pop(job.number, None) is not None

    def head(self, count: int) -> list[Job]:
        """Return the first ones, at most so many."""
        return list(itertools.islice(self.jobs.values(), count))


__all__ = ["Held"]

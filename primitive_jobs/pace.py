"""How far several jobs are, how fast they end, and how long the rest will take. Pure."""

from __future__ import annotations

import time
from typing import Any

from ._common.markup import clock
from .job import PrimitiveJob, tracker_of
from .status import FINAL_STATES, JobStatus


class State:
    """How far the jobs are.

    Attributes:
        label: What stands before.
        total: How many there are; None: nobody knows yet.
        final: How many have ended; of them `failed` and `cancelled`.
        running: How many run.
        ran: How many a worker has run to their end: what the pace follows from. Those that were
            cancelled, or could not be sent, say nothing of how long the others take.
        before: How many of these had ended at the beginning.
        since: When that was, on the monotonic clock.
    """

    def __init__(self, label: str, total: int | None) -> None:
        self.label = label
        self.total = total
        self.final = self.failed = self.cancelled = self.running = self.ran = self.before = 0
        self.since = time.monotonic()

    def add(self, job: PrimitiveJob[Any]) -> None:
        """Count one more job as it is now."""
        status = tracker_of(job).status
        self.ran += ran(job)
        self.final += status in FINAL_STATES
        self.failed += status is JobStatus.ERROR
        self.cancelled += status is JobStatus.CANCELLED
        self.running += status is JobStatus.RUNNING

    def __str__(self) -> str:
        return self.text()

    def text(self, room: int | None = None) -> str:
        """All of it in a line, less where there is room for so many characters only."""
        passed = time.monotonic() - self.since
        ended = self.ran - self.before
        failed = f"{self.failed} failed" if self.failed else ""
        cancelled = f"{self.cancelled} cancelled" if self.cancelled else ""
        running = f"{self.running} running" if self.running else ""
        rate = rate_text(ended / passed) if ended and passed > 0 else ""
        of = "" if self.total is None else f"/{self.total}"
        if self.total is None:
            left = ""
        elif self.final >= self.total:
            left = f"in {clock(passed)}"
        else:
            left = f"{clock(passed * (self.total - self.final) / ended)} left" if ended else ""
        parts = [f"{self.final}{of}", failed, cancelled, running, rate, left]
        line = ", ".join(filter(None, parts))
        for dispensable in filter(None, (rate, running, cancelled, left, failed)):
            if room is None or len(line) <= room:
                break
            parts.remove(dispensable)
            line = ", ".join(filter(None, parts))
        return line


def ran(job: PrimitiveJob[Any]) -> bool:
    """Whether a worker has run it to its end: its function returned, raised or passed a limit."""
    tracker = tracker_of(job)
    status = tracker.status
    return status is JobStatus.DONE or (status is JobStatus.ERROR and tracker.attempts > 0)


def rate_text(rate: float) -> str:
    """Jobs by the second, the minute or the hour: the first of which there is one at least."""
    for unit in ("s", "min"):
        if rate >= 1:
            return f"{rate:.0f}/{unit}" if rate >= 100 else f"{rate:.1f}/{unit}"
        rate *= 60
    return f"{rate:.1f}/h"


__all__ = ["State", "ran", "rate_text"]

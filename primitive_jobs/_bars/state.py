"""How far several jobs are, how fast they end, and how long the rest will take. Pure."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from .._common.markup import clock
from .._engine.tracker import present
from ..insight.progress import Progress
from ..job import PrimitiveJob, tracker_of
from ..status import FINAL_STATES, JobStatus


class Detail(NamedTuple):
    """What is shown of a job that runs.

    Attributes:
        name: Its own.
        fraction: Of its work that is done; None: it does not tell.
        text: What else it tells, and how long it has run and will run.
    """

    name: str
    fraction: float | None
    text: str

    @classmethod
    def of(cls, job: PrimitiveJob[Any], progress: Progress | None) -> Detail:
        """That of a job as it is now."""
        parts = [clock(job.duration or 0.0)]
        fraction = None
        if progress is not None:
            fraction = progress.fraction
            values = [f"{name}={value:.6g}" for name, value in progress.values.items()]
            parts = [*filter(None, [progress.message, *values]), *parts]
            if progress.eta is not None:
                parts.append(f"{clock(progress.eta)} left")
        return cls(_printable(job.name), fraction, _printable(", ".join(parts)))

    def __str__(self) -> str:
        share = "" if self.fraction is None else f" {100 * self.fraction:.0f}%"
        return f"{self.name}:{share} {self.text}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


class State:
    """How far the jobs are.

    Attributes:
        label: What stands before.
        total: How many there are; None: nobody knows yet.
        final: How many have ended; of them `failed` and `cancelled`.
        running: How many run.
        partial: How much of these is done, as far as they tell: each counts at most 1.
        details: What is shown of each of these; None: nothing.
        ran: How many a worker has run to their end: what the pace follows from. Those that were
            cancelled, or could not be sent, say nothing of how long the others take.
        before: What `done` was at the beginning.
        since: When that was, on the monotonic clock.
    """

    def __init__(self, label: str, total: int | None) -> None:
        self.label = label
        self.total = total
        self.final = self.failed = self.cancelled = self.running = self.ran = 0
        self.partial = self.before = 0.0
        self.details: list[Detail] | None = None
        self.since = time.monotonic()

    def add(self, job: PrimitiveJob[Any]) -> None:
        """Count one more job as it is now."""
        status = tracker_of(job).status
        self.ran += ran(job)
        self.final += status in FINAL_STATES
        self.failed += status is JobStatus.ERROR
        self.cancelled += status is JobStatus.CANCELLED
        if status is JobStatus.RUNNING:
            self.running += 1
            progress = job.progress
            if progress is not None and progress.fraction is not None:
                self.partial += progress.fraction
            if self.details is not None:
                self.details.append(Detail.of(job, progress))

    def done(self) -> float:
        """How many jobs' work workers have done: whole ones, and parts of those that run."""
        return self.ran + self.partial

    def reached(self) -> float:
        """How many jobs need no time any more, parts of those that run included."""
        return self.final + self.partial

    def __str__(self) -> str:
        return self.text()

    def text(self, room: int | None = None) -> str:
        """All of it in a line, less where there is room for so many characters only."""
        passed = time.monotonic() - self.since
        done = self.done() - self.before
        failed = f"{self.failed} failed" if self.failed else ""
        cancelled = f"{self.cancelled} cancelled" if self.cancelled else ""
        running = f"{self.running} running" if self.running else ""
        rate = rate_text(done / passed) if done > 0 and passed > 0 else ""
        of = "" if self.total is None else f"/{self.total}"
        if self.total is None:
            left = ""
        elif self.final >= self.total:
            left = f"in {clock(passed)}"
        else:
            rest = self.total - self.reached()
            left = f"{clock(passed * rest / done)} left" if done > 0 else ""
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
    status = present(tracker)
    return status is JobStatus.DONE or (status is JobStatus.ERROR and tracker.attempts > 0)


def rate_text(rate: float) -> str:
    """Jobs by the second, the minute or the hour: the first of which there is one at least."""
    for unit in ("s", "min"):
        if rate >= 1:
            return f"{rate:.0f}/{unit}" if rate >= 100 else f"{rate:.1f}/{unit}"
        rate *= 60
    return f"{rate:.1f}/h"


__all__ = ["Detail", "State", "ran", "rate_text"]

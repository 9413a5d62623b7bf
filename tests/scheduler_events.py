"""What is told to a scheduler, in a row: its events, and facts for what it has methods for."""

from __future__ import annotations

from typing import NamedTuple

from primitive_jobs._engine.events import Action, Event
from primitive_jobs._engine.scheduler import Scheduler
from primitive_jobs._wire.messages import Message
from primitive_jobs.options import Limits, Needs


class Submitted(NamedTuple):
    """A job came in."""

    job: int
    priority: int = 0
    timeout: float | None = None
    memory_limit: int | None = None
    retries: int = 0
    grace: float = 0.0
    retry_delay: float = 0.0
    needs: Needs | None = None


class Answered(NamedTuple):
    """A worker sent a job's outcome."""

    slot: int
    attempt: int
    message: Message


Told = Event | Submitted | Answered


def tell(scheduler: Scheduler, told: Told, now: float) -> list[Action]:
    """Tell it, and return what it wants done."""
    if isinstance(told, Submitted):
        return scheduler.submitted(told.job, Limits(*told[1:]), now)
    if isinstance(told, Answered):
        return scheduler.answered(told.slot, told.attempt, told.message, now)
    return scheduler.handle(told, now)

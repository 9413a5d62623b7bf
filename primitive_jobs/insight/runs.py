"""`Runs`: what ran when on the workers of a pool, as plain data; `Timeline` documents it."""

from __future__ import annotations

from functools import cached_property

from ..snapshots import Attempt, AttemptEnd, AttemptTotal, MemorySample, PoolAttempts
from .ends import KILLED, LOOKS
from .lanes import Lane, lanes_of
from .words import share, span

_NONE = AttemptTotal(0, 0.0)


class Runs:
    """The data of a `Timeline`, for those who draw it.

    Args:
        pool: What the pool is called in pictures.
        found: What it knows.
    """

    def __init__(self, pool: str, found: PoolAttempts) -> None:
        self.pool = pool
        self.taken = found.at
        self.attempts: tuple[Attempt, ...] = tuple(sorted(found.attempts, key=_began))
        self.left_out = found.left_out
        self.totals: dict[AttemptEnd, AttemptTotal] = {
            end: found.totals[end] for end in LOOKS if found.totals.get(end, _NONE).attempts
        }
        self.memory: tuple[MemorySample, ...] = tuple(found.memory)

    @property
    def since(self) -> float:
        """When the first of the attempts began, in seconds since the epoch."""
        return self.attempts[0].began if self.attempts else self.taken

    @cached_property
    def until(self) -> float:
        """When the last of the attempts ended; that of one that runs is `taken`."""
        return max((attempt.ended for attempt in self.attempts), default=self.taken)

    @cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """The attempts by worker; workers of a node that followed each other share a lane."""
        return lanes_of(self.attempts)

    @property
    def seconds(self) -> float:
        """How much time of workers all attempts took, since the pool was made."""
        return sum(total.seconds for total in self.totals.values())

    @property
    def results(self) -> float:
        """How much of that went into results, in seconds."""
        return self._spent(("returned",))

    @property
    def lost(self) -> float:
        """How much of that was lost, in seconds: to cancels, limits and deaths of workers."""
        return self._spent(KILLED)

    def _spent(self, ends: tuple[AttemptEnd, ...]) -> float:
        return sum(self.totals[end].seconds for end in ends if end in self.totals)


def _began(attempt: Attempt) -> float:
    return attempt.began


def summary(runs: Runs) -> list[str]:
    """Say in short what there is: how much is shown, and what became of the time of workers."""
    count, lanes = len(runs.attempts), len(runs.lanes)
    shown = f"{count:,} {'attempt' if count == 1 else 'attempts'}"
    if count:
        shown += f" in {lanes:,} {'lane' if lanes == 1 else 'lanes'}"
        shown += f", {span(runs.until - runs.since)}"
    told = [shown]
    if runs.left_out:
        told.append(f"{runs.left_out:,} earlier ones are left out")
    total = runs.seconds
    if total > 0:
        parts = [(runs.results, "into results"), (runs.lost, "lost to kills and deaths")]
        shares = [f"{share(part, total)} {words}" for part, words in parts]
        told.append(f"{span(total)} of worker time, {', '.join(shares)}")
    return told


__all__ = ["Runs", "summary"]

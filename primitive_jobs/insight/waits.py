"""`waits_for`: what a job that is QUEUED waits for, in words."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..options import CPUS, MEMORY, Needs, size

if TYPE_CHECKING:
    from ..options import Lacked
    from .traces import Kept

    class Awaited(Protocol):
        """Another job's result."""

        @property
        def record(self) -> Any:
            """That of the job; None: the result is there."""


def waits_for(
    kept: Kept | None,
    awaits: Sequence[Awaited] = (),
    needs: Needs | None = None,
    lacked: tuple[Lacked, ...] = (),
    left: int | None = None,
) -> str:
    """Return it; on any thread.

    Args:
        kept: What its attempts have left.
        awaits: The results that it gets.
        needs: What it needs.
        lacked: What such jobs lacked when it was last looked at.
        left: How much memory there was then.
    """
    for awaited in awaits:
        record = awaited.record  # once: it is taken out when the result is there
        if record is not None and record.tracker.outcome is None:
            return f"job {record.name!r}"
    seconds = 0.0 if kept is None else kept.retry_at - time.monotonic()
    if seconds > 0:
        # Up: who waits for so long finds it tried.
        return f"retry in {math.ceil(seconds)} s"
    if needs is None or not lacked:
        return "a worker"
    return " and ".join(_words(each, needs, left) for each in lacked)


def _words(lacked: Lacked, needs: Needs, left: int | None) -> str:
    if lacked == CPUS:
        return "a worker" if needs.cpus == 1 else f"{needs.cpus} CPUs"
    if lacked == MEMORY:
        free = "" if left is None else f" ({size(max(0, left))} free)"
        return f"{size(needs.memory)} of memory{free}"
    count = dict(needs.tokens).get(str(lacked), 1)
    return str(lacked) if count == 1 else f"{count} {lacked}"


__all__ = ["waits_for"]

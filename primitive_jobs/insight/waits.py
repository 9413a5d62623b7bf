"""`waits_for`: what a job that is QUEUED waits for, in words."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .traces import Kept

    class Awaited(Protocol):
        """Another job's result."""

        @property
        def record(self) -> Any:
            """That of the job; None: the result is there."""


def waits_for(kept: Kept | None, awaits: Sequence[Awaited] = ()) -> str:
    """Return it, by what its attempts have left, and what it awaits; on any thread."""
    for awaited in awaits:
        record = awaited.record  # once: it is taken out when the result is there
        if record is not None and record.tracker.outcome is None:
            return f"job {record.name!r}"
    left = 0.0 if kept is None else kept.retry_at - time.monotonic()
    # Up: who waits for so long finds it tried.
    return "a worker" if left <= 0 else f"retry in {math.ceil(left)} s"


__all__ = ["waits_for"]

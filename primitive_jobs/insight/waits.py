"""`waits_for`: what a job that is QUEUED waits for, in words."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .traces import Kept


def waits_for(kept: Kept | None) -> str:
    """Return it, by what its attempts have left; on any thread."""
    left = 0.0 if kept is None else kept.retry_at - time.monotonic()
    # Up: who waits for so long finds it tried.
    return "a worker" if left <= 0 else f"retry in {math.ceil(left)} s"


__all__ = ["waits_for"]

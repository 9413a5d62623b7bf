"""`Capacity`: what the jobs of a pool can ever have, and what they lack now; on any thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..options import Needs, size

if TYPE_CHECKING:
    from ..options import Lacked
    from .fleet import Fleet
    from .scheduler import Scheduler


class Capacity:
    """That of one pool.

    Args:
        scheduler: The pool's; what is read of it is replaced as a whole, or never changes.
        fleet: The pool's.
    """

    def __init__(self, scheduler: Scheduler, fleet: Fleet) -> None:
        self._scheduler = scheduler
        self._fleet = fleet
        self._total = float("-inf"), 0  # bytes, and when that was read

    def check(self, needs: Needs) -> None:
        """Raise `ValueError` if a job needs more than the pool can ever give it."""
        scheduler = self._scheduler
        if not self._fleet.local and (needs.cpus > 1 or needs.memory):
            what = f"cpus={needs.cpus}" if needs.cpus > 1 else "memory"
            raise ValueError(
                f"{what} is for jobs on this machine: of a cluster's nodes the pool knows neither; "
                "place_resources of ClusterPool says what a worker's place takes of its node"
            )
        if needs.cpus > scheduler.max_workers:
            raise ValueError(
                f"cpus={needs.cpus} is more than the pool's max_workers={scheduler.max_workers}: "
                "the job could never start"
            )
        there = scheduler.memory or (self._total_memory() if needs.memory else 0)
        if there and needs.memory > there:
            whose = "the pool's memory" if scheduler.memory else "what this machine, or cgroup, has"
            raise ValueError(
                f"memory of {size(needs.memory)} is more than {whose}, {size(there)}: "
                "the job could never start"
            )
        for name, count in needs.tokens:
            if count > scheduler.tokens.get(name, 0):
                known = ", ".join(f"{each}: {n}" for each, n in scheduler.tokens.items())
                raise ValueError(
                    f"resources={{{name!r}: {count}}} is more than the pool has, "
                    f"{{{known}}}: the job could never start"
                )

    def _total_memory(self) -> int:
        """Return what there is; it is read once a second: many may be submitted in that time."""
        when, total = self._total
        now = time.monotonic()
        if now - when > 1.0:
            total = self._fleet.memory.total()
            self._total = now, total
        return total

    def lacked(self, needs: Needs | None) -> tuple[tuple[Lacked, ...], int | None]:
        """Return what such a job lacks now, if its turn has come, and how much memory is left."""
        kind = Needs() if needs is None else needs.row
        return self._scheduler.admission.lacking.get(kind, ((), None))


__all__ = ["Capacity"]

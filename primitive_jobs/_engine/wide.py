"""`WideWorkers`: the idle workers that were started for jobs of several CPUs.

A pure part of the scheduler's state. Numerical libraries read how many threads they may use as they
are imported. So a worker serves jobs of one width alone: that for which it was started.
"""

from __future__ import annotations

from .slots import Slot


class WideWorkers:
    """Those of one pool, by how many CPUs they were started for; each the longest idle first.

    Attributes:
        used: There has been one; most pools have none.
    """

    __slots__ = ("_idle", "used")

    def __init__(self) -> None:
        self.used = False
        self._idle: dict[int, list[Slot]] = {}

    def idle(self, width: int) -> list[Slot]:
        """The idle ones for so many CPUs; the last one is used next."""
        self.used = True
        return self._idle.setdefault(width, [])

    def all_idle(self) -> list[Slot]:
        """Return all idle ones, the longest idle first."""
        found = [slot for idle in self._idle.values() for slot in idle]
        return sorted(found, key=lambda slot: (slot.idle_since, slot.number))

    def of_others(self, width: int) -> list[Slot]:
        """Return the idle ones for any other number of CPUs."""
        return [slot for slot in self.all_idle() if slot.width != width]


__all__ = ["WideWorkers"]

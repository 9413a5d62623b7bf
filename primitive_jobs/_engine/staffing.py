"""`Staffing`: when another worker is started, and how many there should be.

A pure part of the scheduler's state. After one that did not get ready, `pauses` says when the next
one is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .events import Postpone
from .pauses import Pause
from .roster import COMING, Roster
from .slots import DYING, LEAVING, STARTING, WARMING, Slot

MAX_STARTS = 3  # failures in a row to start a worker, or a job, before those who wait are told


class Staffing:
    """The starts of one pool's workers.

    Args:
        roster: The workers.
        slow_starts: Whether starts that no job waits for any more are called off.

    Attributes:
        pause: Before the next start of a worker that jobs wait for, after failed ones.
        slow_starts: As the argument.
    """

    def __init__(self, roster: Roster, *, slow_starts: bool = False) -> None:
        self.slow_starts = slow_starts
        self.pause = Pause()
        self._roster = roster
        self._spare_pause = Pause()
        self._start_failures = 0  # in a row, of workers that jobs waited for
        self._lacks_wide = False  # a job waits for a worker of several CPUs that is not coming
        self._full = False  # after the last event as many jobs ran as may

    # --- how many there should be ----------------------------------------------------------------

    def trim(self) -> None:
        """Ask idle workers to leave that are too many."""
        roster = self._roster
        if self._full and roster.taken < roster.max_workers:
            for spare in roster.idle:  # they were of use till now: they do not leave at once
                spare.idle_since = roster.now
        while roster.idle and roster.live > self._most():
            roster.ask_to_leave(roster.idle[0])

    def fill_up(self, waiting: int, wide: Sequence[int] = ()) -> None:
        """Start the workers that are missing, with ``waiting`` jobs in the queue.

        Others wait for workers of several CPUs: ``wide`` says for how many, each.
        """
        roster = self._roster
        self._full = roster.taken >= roster.max_workers
        if roster.live < self._most():
            self._spawn(waiting)
        if self.slow_starts:
            self._call_off(waiting)
        self._lacks_wide = False
        if wide:
            for width, count in Counter(wide).items():
                self._fill_up_wide(width, count)

    def _call_off(self, waiting: int) -> None:
        """Call off the newest starts, of workers that no job waits for."""
        roster = self._roster
        slots = list(roster.slots.values())
        starting = [slot for slot in slots if slot.state is STARTING]
        if not starting:
            return
        unclear = sum(slot.unclear for slot in slots)  # these count as live, but will have no job
        surplus = -self.missing(waiting, roster.busy) - unclear
        for slot in reversed(starting[-surplus:] if surplus > 0 else []):
            roster.kill(slot)

    def _most(self) -> int:
        """How many workers there may be."""
        roster = self._roster
        # What is busy beyond the limit, after a resize, may have a spare too.
        return max(roster.max_workers - roster.extra, roster.busy) + roster.spare_workers

    def missing(self, waiting: int, busy: int) -> int:
        """Return how many workers are missing, with so many jobs waiting, and workers busy."""
        roster = self._roster
        most = roster.max_workers - roster.extra
        if busy < most:
            wanted = min(waiting, most - busy)
        elif roster.warm and not (roster.closing or roster.short):
            wanted = roster.spare_workers
        else:
            wanted = 0
        return wanted - (roster.live - busy)

    def to_start(self, waiting: int, busy: int) -> int:
        """Return how many of the missing workers to start now.

        After one that did not get ready, a single one is started at a time, each after a pause;
        without a pause if there is no worker at all.
        """
        roster = self._roster
        missing = self.missing(waiting, busy)
        if missing <= 0:
            return missing
        pause = self._pause_of(busy)
        if not pause.doubt:
            return missing
        spare = pause is self._spare_pause
        slots = roster.slots.values()
        coming = (slot for slot in slots if slot.state in COMING or slot.unclear)
        tried = any(slot.trial and slot.spare is spare for slot in coming)
        return 0 if tried or (roster.live and pause.until is not None) else 1

    def _pause_of(self, busy: int) -> Pause:
        """Return the pause of a start: jobs wait for it, or, if all may be busy, it is a spare."""
        roster = self._roster
        return self.pause if busy < roster.max_workers - roster.extra else self._spare_pause

    def _spawn(self, waiting: int) -> None:
        roster = self._roster
        pause = self._pause_of(roster.busy)
        for _ in range(self.to_start(waiting, roster.busy)):
            roster.order(spare=pause is self._spare_pause, trial=pause.doubt)

    def _fill_up_wide(self, width: int, count: int) -> None:
        """Start the workers of so many CPUs that are missing, with so many jobs waiting for them.

        Idle ones of another width leave for them: nobody knows whether they will be of use.
        """
        roster = self._roster
        coming = [slot for slot in roster.slots.values() if slot.state in COMING or slot.unclear]
        missing = count - sum(slot.width == width for slot in coming)
        if missing > 0 and self.pause.doubt:
            tried = any(slot.trial and not slot.spare for slot in coming)
            self._lacks_wide = tried or self.pause.until is not None
            missing = int(not self._lacks_wide)
        for _ in range(missing):
            roster.order(spare=False, trial=self.pause.doubt, width=width)
        for slot in roster.wide.of_others(width) if missing > 0 else ():
            roster.ask_to_leave(slot)

    # --- they get ready, or not ------------------------------------------------------------------

    def next_start(self, waiting: int) -> float | None:
        """When a pause ends after which a worker is started; None: none is to be."""
        until = self._pause_of(self._roster.busy).until
        if until is None or not (self._lacks_wide or self.missing(waiting, self._roster.busy) > 0):
            return None
        return until

    @property
    def pausing(self) -> bool:
        """Whether a start may be put off: then `next_start` says till when."""
        return self.pause.until is not None or self._spare_pause.until is not None

    def tick(self) -> None:
        """Take in that time has passed."""
        self.pause.tick(self._roster.now)
        self._spare_pause.tick(self._roster.now)

    def ready(self, number: int) -> None:
        """Record that a worker waits for its first job."""
        slot = self._roster.slots.get(number)
        if slot is None or slot.state is not WARMING:
            return
        self._start_failures = 0
        self.pause.end()
        if slot.spare:
            self._spare_pause.end()
        self._roster.ready(slot)

    def not_ready(self, slot: Slot, *, by_chance: bool) -> bool:
        """Record that a worker did not get ready; return whether the jobs that wait fail.

        They fail if no other worker works or is coming, and the failure is not by chance: it is an
        initializer's, or the last of several in a row.
        """
        roster = self._roster
        if slot.spare:
            self._postpone(self._spare_pause, spare=True)
            return False
        self._start_failures += 1
        if self._start_failures < MAX_STARTS and by_chance:
            return False  # another is started at once
        if any(_may_serve(other) and other.width == slot.width for other in roster.slots.values()):
            self._postpone(self.pause, spare=False)
            return False
        self._start_failures = 0
        self.pause.end()
        return True

    def _postpone(self, pause: Pause, *, spare: bool) -> None:
        roster = self._roster
        seconds = pause.begin(roster.now)
        if seconds is not None:
            roster.actions.append(Postpone(seconds, spare))


def _may_serve(slot: Slot) -> bool:
    """Whether it may have a job now or later, or may prove that none can."""
    return slot.unclear or slot.state not in (LEAVING, DYING)


__all__ = ["MAX_STARTS", "Staffing"]

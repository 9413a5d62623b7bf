"""`Pause`: when another worker is tried, after one did not get ready while others do the work.

A pure part of the scheduler's state, which gives it the time and tells it of each `Tick`.
"""

from __future__ import annotations

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # s; each is twice as long as the one before


class Pause:
    """One for workers that jobs wait for, one for spares.

    Attributes:
        doubt: The last one that was started did not get ready; so they are tried one by one.
        until: When the pause ends; None: there is none. It ends with a `Tick` alone, so that what
            is true after one event holds until the next.
    """

    __slots__ = ("_next", "doubt", "until")

    def __init__(self) -> None:
        self._next = FIRST_PAUSE
        self.doubt = False
        self.until: float | None = None

    def begin(self, now: float) -> float | None:
        """One did not get ready; return the length of the pause that begins, in s.

        None where one has begun already: what fails in it was started before.
        """
        if self.until is not None:
            return None
        length = self._next
        self._next = min(2 * length, LONGEST_PAUSE)
        self.doubt, self.until = True, now + length
        return length

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.until is not None and self.until <= now:
            self.until = None

    def end(self) -> None:
        """One got ready, or nobody waits any more: nothing is in doubt."""
        self._next = FIRST_PAUSE
        self.doubt, self.until = False, None

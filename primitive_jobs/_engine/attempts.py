"""`Attempts`: who ran what from when until when, and how that ended: the last ones of one pool.

The dispatcher's thread writes, one call of a deque for each attempt. Any thread may read: what is
there is copied, and made into plain data by whoever has asked.

Four entries of the deque are one attempt: what it was, who had it, when it began and when it ended.
As a rule these are the name of its job and the pid of its worker, which others share, and the two
floats that the job's own history has: 81 bytes. A row of typed arrays would be 36, but would take a
quarter longer to be written, for each job of the pool. Where its peak of memory is known, which is
so of jobs that took a millisecond, a pair with it stands in the place of the name: 92 bytes more.
What did not return has a `_Told` there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from .._common.lock_free import snapshot
from ..snapshots import Attempt, AttemptEnd, AttemptTotal
from .tracker import Run, Who

KEPT = 20_000  # attempts
_FACTS = 4  # entries of each
_LONGEST = 120  # characters of a name that are kept


class Told(NamedTuple):
    """How an attempt ended that brought no result.

    Attributes:
        end: In a word.
        reason: In words, as far as the word does not say it.
        memory: The most bytes that it held; None: that is not known.
    """

    end: AttemptEnd
    reason: str = ""
    memory: int | None = None


class _Told(NamedTuple):
    name: str
    told: Told


class Attempts:
    """The attempts of one pool; written by its dispatcher."""

    __slots__ = ("_keep", "_kept", "_returned", "_totals")

    def __init__(self) -> None:
        self._kept: deque[Any] = deque(maxlen=_FACTS * KEPT)
        self._keep = self._kept.extend
        # Of all that there ever were: seconds of those that returned, and the same of the others.
        # How many returned, the pool counts anyway.
        self._returned = 0.0
        self._totals: dict[AttemptEnd, AttemptTotal] = {}

    def returned(self, name: str, run: Run, memory: int | None = None) -> None:
        """Keep one that brought a result, and the most bytes that it held; it takes 0.2 us."""
        if len(name) > _LONGEST:
            name = _cut(name)
        who, began, ended = run
        self._keep((name if memory is None else (name, memory), who, began, ended))
        self._returned += ended - began

    def ended(self, name: str, run: Run, told: Told) -> None:
        """Keep one that ended otherwise."""
        who, began, ended = run
        self._keep((_Told(_cut(name), told), who, began, ended))
        count, seconds = self._totals.get(told.end, (0, 0.0))
        self._totals[told.end] = AttemptTotal(count + 1, seconds + ended - began)

    def look(self) -> tuple[list[Any], float, dict[AttemptEnd, AttemptTotal]]:
        """Return what there is, for `rows` and `totals`; on any thread."""
        return snapshot(self._kept), self._returned, self._totals.copy()


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def rows(entries: list[Any], shift: float) -> Iterator[Attempt]:
    """Make plain data of what is kept, with times ``shift`` s after those of the monotonic clock.

    It may have been copied while the dispatcher wrote: what is there in part is left out.
    """
    place, last = 0, len(entries) - _FACTS
    while place <= last:
        what, who, began, ended = entries[place : place + _FACTS]
        if type(began) is not float or type(ended) is not float or ended < began:
            place += 1
            continue
        place += _FACTS
        if type(what) is _Told:
            name, told = what
        elif type(what) is tuple:
            name, told = what[0], Told("returned", memory=what[1])
        else:
            name, told = what, _RETURNED
        yield row(name, who, began + shift, ended + shift, told)


def row(name: str, who: Who, began: float, ended: float, told: Told) -> Attempt:
    """Make plain data of one attempt."""
    pid, node, attempt = (who, None, 1) if isinstance(who, int) else who
    return Attempt(name, told.end, began, ended, pid, node, attempt, told.reason, told.memory)


_RETURNED = Told("returned")

__all__ = ["KEPT", "Attempts", "Told", "row", "rows"]

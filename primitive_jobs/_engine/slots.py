"""`Slot`: what the scheduler knows of one worker, from the order to start it until it is gone; and
the one table of its legal moves.

A pure part of the scheduler's state. A slot's life::

    STARTING ─► WARMING ◄─► IDLE ◄─► BUSY ─► GRACE
        │          │          │        │        │       GRACE: SIGTERM sent, the job may still end
        │          │          ▼        │        │
        │          │       LEAVING ◄───┤        │       LEAVING: asked to end by itself
        ├──────────┴──────────┴────────┴────────┴─► DYING ──► GONE
        └──────────────────────────────────────────────────────┘  a start that failed
"""

from __future__ import annotations

import enum
from collections import deque

from .events import Reason
from .queue import Job

_REMEMBERED = 8  # moves of a slot, for the message about an illegal one


class SlotState(enum.IntEnum):
    """The state of a worker process."""

    STARTING = 0  # ordered; no process known yet
    WARMING = 1  # the process imports and initializes; or, a spare, imports more
    IDLE = 2  # ready for a job
    BUSY = 3  # has a job
    GRACE = 4  # has a job and was sent SIGTERM
    LEAVING = 5  # was asked to end
    DYING = 6  # is being killed and reaped; may hold a job whose end is not known yet
    GONE = 7  # nothing of it is left, or there never was a process; the slot is forgotten


# A member looked up in its class, or hashed, takes longer than the rest of most lines here.
STARTING, WARMING, IDLE, BUSY, GRACE, LEAVING, DYING, GONE = SlotState

MOVES: dict[SlotState, frozenset[SlotState]] = {
    STARTING: frozenset({WARMING, DYING, GONE}),
    WARMING: frozenset({IDLE, DYING}),
    IDLE: frozenset({WARMING, BUSY, LEAVING, DYING}),
    BUSY: frozenset({IDLE, GRACE, LEAVING, DYING}),
    # Not back to IDLE: the signal may still be on its way.
    GRACE: frozenset({DYING}),
    LEAVING: frozenset({DYING}),
    DYING: frozenset({GONE}),
    GONE: frozenset(),
}
"""Every legal move of a slot; any other is a bug and raises."""

_BITS = tuple(1 << state for state in SlotState)
_NEXT_BITS = tuple(sum(_BITS[follower] for follower in MOVES[state]) for state in SlotState)


class Slot:
    """What the scheduler knows of a worker."""

    __slots__ = (
        "attempt",
        "deadline",
        "died",
        "fault",
        "heard",
        "idle_since",
        "job",
        "limited_at",
        "line",
        "longest",
        "moves",
        "number",
        "peak",
        "place",
        "reason",
        "reclaimed",
        "reserves",
        "retiring",
        "served",
        "spare",
        "state",
        "taken",
        "trial",
        "unclear",
        "was",
        "watched",
        "width",
    )

    def __init__(
        self, number: int, cause: str, *, spare: bool = False, trial: bool = False, width: int = 1
    ) -> None:
        self.number = number
        self.width = width  # CPUs that its jobs take
        self.reserves = False  # something is reserved for its job, or what is left of that
        self.spare = spare  # no job waited for it when it was ordered
        self.trial = trial  # the one before it did not get ready
        self.state = STARTING
        self.was = STARTING  # the state before DYING
        # The last ones: the state, and what caused it.
        self.moves = deque([(STARTING, cause)], _REMEMBERED)
        self.job: Job | None = None
        self.attempt = 0
        self.taken = 0  # the last attempt that the worker has confirmed
        self.reason: Reason | None = None  # the first one recorded stays
        self.died = False  # by itself, not by the pool's kill
        self.fault: BaseException | None = None  # an error in the pool about it: it is killed
        self.unclear = False  # it ended before it was ready; why, is known when it is gone
        self.deadline: float | None = None
        self.limited_at = 0.0  # when that was set
        self.idle_since = 0.0
        self.served = 0  # jobs that it answered
        self.line: deque[Job] = deque()  # that it was sent ahead: see `Lines`
        self.longest = 0  # us that its jobs took: the most of late
        self.heard = 0.0  # when its job moved up
        self.place = 0  # where its last attempt that was sent ahead is noted
        self.retiring = False  # it leaves after its present job
        self.reclaimed = False  # for others want its place, not in order to be replaced
        self.watched = False  # somebody watches its memory
        self.peak: int | None = 0  # bytes, where that was too much, or cannot be told

    def move(self, state: SlotState, cause: str) -> None:
        """Enter a state; ``cause`` is the event that has led to it, by name.

        Raises:
            RuntimeError: The move is not in the table.
        """
        if not _NEXT_BITS[self.state] & _BITS[state]:
            history = ", ".join(f"{state.name} ({cause})" for state, cause in self.moves)
            raise RuntimeError(
                f"illegal move of slot {self.number} from {self.state.name} to {state.name} "
                f"({cause}); its last moves were {history}"
            )
        self.state = state
        self.moves.append((state, cause))

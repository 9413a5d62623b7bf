"""What stands in the gate of a job that a worker is to have: how it gets there. See `tracker`."""

from __future__ import annotations

from .._common.clocks import to_wall_clock
from .._wire.notes import NUMBER, place_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..insight.traces import Traces
    from .fleet import Worker


class Taken:
    """What stands first in the gate of a job that a worker is to have."""

    __slots__ = ()


class HandOver(Taken):
    """The same, where the caller itself gave the job to an idle worker.

    From then on the job runs, whenever the dispatcher hears of it and writes it down.

    Attributes:
        pid: The worker's process id.
        attempts: How often a worker got the job, with this time.
        attempt: The number of the attempt there; whoever hands over has it.
        at: When, on the monotonic clock; set by the caller.
        when: The same moment in seconds since the epoch; set next, so that it says that both are.
        noted: Whether the dispatcher has written it down.
    """

    __slots__ = ("at", "noted", "pid", "when")
    attempt: int
    attempts = 1

    @property
    def traces(self) -> Traces:
        """The worker's; whoever hands over has them."""
        raise NotImplementedError

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.when = self.at = 0.0
        self.noted = False

    def runs_unnoted(self) -> bool:
        """Whether the job has begun, and the dispatcher has not written that down."""
        return not self.noted

    def is_over(self) -> bool:
        """Whether the worker is at another job: not before the dispatcher has heard of it."""
        return False


class SentAhead(Taken):
    """The same, where the dispatcher sent the job to a busy worker: it runs once that begins it.

    The worker notes that in the page that it shares with the pool: so everybody sees what is true,
    and the dispatcher writes it down when the job ends. Meanwhile the worker may be at a later job
    already, while the outcome of this one is on its way: see `tracker.present`.

    Args:
        worker: That one.
        page: What is shared with it.
        place: Where it notes the job's attempt, when it begins.
        attempt: That one. Later ones in the same place have larger numbers.

    Attributes:
        attempt: As the argument.
        pid: The worker's process id.
        traces: The worker's.
        attempts: As `HandOver` has it.
        noted: Whether the dispatcher has written down that the job began, or taken it back. It is
            written before the place is used again, and so has to be read after the place was.
    """

    __slots__ = ("_page", "_place", "attempt", "attempts", "noted", "pid", "traces")

    def __init__(self, worker: Worker, page: memoryview, place: int, attempt: int) -> None:
        self.pid = worker.pid
        self.traces = worker.traces
        self._page = page
        self._place = place_at(place)
        self.attempt = attempt
        self.attempts = 1
        self.noted = False

    def began(self) -> bool:
        """Whether the worker has begun it; meant only while that is not noted."""
        noted: int = NUMBER.unpack_from(self._page, self._place + NUMBER.size)[0]
        return noted >= self.attempt

    def runs_unnoted(self) -> bool:
        """Whether the job has begun, and the dispatcher has not written that down."""
        return self.began() and not self.noted

    def is_over(self) -> bool:
        """Whether the worker, which has begun this job, has begun another one since."""
        last: int = NUMBER.unpack_from(self._page)[0]
        return last != self.attempt

    @property
    def at(self) -> float:
        """When it began, on the monotonic clock."""
        nanoseconds: int = NUMBER.unpack_from(self._page, self._place)[0]
        return nanoseconds * 1e-9

    @property
    def when(self) -> float:
        """The same moment in seconds since the epoch."""
        return self.at + to_wall_clock()


TAKEN = Taken()
"""That of a job that the dispatcher gives to a worker, or has taken back; it holds nothing."""

__all__ = ["TAKEN", "HandOver", "SentAhead", "Taken"]

"""The facts that travel between the parts of a pool: one frozen type for each, and no behaviour.

* what a worker and its pool say to each other: `Kind`, `Message` of `_wire.messages`
* events: what happened, told to the scheduler
* actions: what the scheduler wants done about it

Jobs, slots and attempts are plain ints here, unique within their pool and never used again. A
slot is one worker process from the order to start it until its last trace is gone.

All of them are frozen dataclasses for the type checker. At run time `Fact` takes the place of that
decorator, which takes 1 ms for each class when this is imported; and those that every job needs
have an `__init__` written out, in which they are made in 0.25 us instead of 0.7 us.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._wire.evidence import Evidence
from .._wire.fact import Fact
from .._wire.messages import Message

if TYPE_CHECKING:
    from ..options import Limits

# --- why a job has no outcome of its own ---------------------------------------------------------


class Reason(enum.Enum):
    """Why the pool ended a worker that held a job."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    BROKEN = "broken"


# --- fates: how a job ends, as the scheduler decides it; a worker's own message is one too -------


class Cancelled(Fact):
    """It was cancelled, and nothing of it is left."""


class TimedOut(Fact):
    """It passed its time limit, and nothing of it is left but `left`."""

    limit: float
    stack: str | None = None
    left: str | None = None


class OutOfMemory(Fact):
    """It passed its memory limit, and nothing of it is left but `left`; both in bytes.

    Without a `peak` what it held could not be measured.
    """

    limit: int
    peak: int | None
    stack: str | None = None
    left: str | None = None


class Unkilled(Fact):
    """It was cancelled, and something of it may live on."""

    evidence: Evidence


class Lost(Fact):
    """Its worker died under it, or no worker could be started for it."""

    evidence: Evidence


class NotInitialized(Fact):
    """The initializer raised (`message`) or died (`evidence`) while the job waited for it."""

    message: Message | None
    evidence: Evidence | None


class TurnedAway(Fact):
    """It came after the pool was shut down."""


class Unreachable(Fact):
    """The fleet has no way to any worker; `evidence` is of the one that had the job, if any had."""

    error: BaseException
    evidence: Evidence | None = None


class Unmet(Fact):
    """It waited for another job, in this place among those, which has ended without a result.

    Or with one that cannot be sent, because of an error.
    """

    place: int
    dependency: Any
    error: BaseException | None = None


Fate = (
    Message
    | Cancelled
    | Unkilled
    | TimedOut
    | OutOfMemory
    | Lost
    | NotInitialized
    | TurnedAway
    | Unmet
    | Unreachable
)

# --- events: what happened; jobs that come in, and answers, are told by methods of the scheduler --


class HandedOver(Fact):
    """A job came in, and its caller gave it to the idle worker of `Scheduler.offer`."""

    job: int
    slot: int
    attempt: int
    priority: int = 0
    memory_limit: int | None = None  # bytes; its caller has had it watched
    retries: int = 0
    grace: float = 0.0  # s
    retry_delay: float = 0.0  # s

    if not TYPE_CHECKING:

        def __init__(
            self,
            job,
            slot,
            attempt,
            priority=0,
            memory_limit=None,
            retries=0,
            grace=0.0,
            retry_delay=0.0,
        ):
            self.job = job
            self.slot = slot
            self.attempt = attempt
            self.priority = priority
            self.memory_limit = memory_limit
            self.retries = retries
            self.grace = grace
            self.retry_delay = retry_delay


class HeldBack(Fact):
    """A job came in that waits for so many others (`missing`), of this pool or another."""

    job: int
    limits: Limits
    missing: int


class DependencyDone(Fact):
    """One of those that a job waits for is done, and its result is there."""

    job: int


class NeverDone(Fact):
    """One of those that a job waits for has ended otherwise: that is how the job ends, too."""

    job: int
    fate: Unmet


class Withdrawn(Fact):
    """A job was cancelled before its worker got it; the worker is as it was."""

    slot: int
    attempt: int


class Unsent(Fact):
    """These attempts were to be sent ahead, and were not: their jobs had ended, or it failed."""

    slot: int
    attempts: list[int]


class CancelAsked(Fact):
    """Somebody wants a job to stop, after `grace` s of SIGTERM; or not to begin (`queued_only`)."""

    job: int
    grace: float = 0.0
    queued_only: bool = False


class CancelAllAsked(Fact):
    """The same for every unfinished job; after its own grace where `grace` is None."""

    grace: float | None = None


class Started(Fact):
    """A slot has its process."""

    slot: int


class StartFailed(Fact):
    """A slot gets no process; `evidence.error` is None where the start was called off."""

    slot: int
    evidence: Evidence


class Ready(Fact):
    """A worker waits for its first job."""

    slot: int


class Lesson(Fact):
    """There is something that a worker might do before its first job, for the sake of that."""

    slot: int


class InitFailed(Fact):
    """A worker's initializer raised; it leaves."""

    slot: int
    message: Message


class NotTaken(Fact):
    """A job did not reach its worker: the sending failed, or the worker refused it.

    `unfit` says that the worker never had it, since it holds more memory than the job may; the
    worker itself is well.
    """

    slot: int
    attempt: int
    unfit: bool = False


class Taken(Fact):
    """A worker has a job that was sent to it; only fleets that confirm report it."""

    slot: int
    attempt: int


class OverMemory(Fact):
    """A watched worker and those below it hold `peak` bytes, more than their job may.

    None: nobody can tell how much, so that the limit cannot be kept.
    """

    slot: int
    attempt: int
    peak: int | None


class Died(Fact):
    """A worker's process ended; everything it sent before has been read."""

    slot: int


class Faulted(Fact):
    """Something that was to be done about a worker raised: it is of no use any more."""

    slot: int
    error: BaseException


class Gone(Fact):
    """A worker is reaped, its process tree is gone, everything it sent has been read."""

    slot: int
    evidence: Evidence


class Tick(Fact):
    """Time passed, and something may be due.

    Of the slots past their deadline those count alone that are in `late`, with that attempt: their
    workers had not answered after it. None: all do.
    """

    late: frozenset[tuple[int, int]] | None = None


class MemorySeen(Fact):
    """What `LookAtMemory` has asked for: bytes that may be had, and that watched slots use."""

    available: int
    used: dict[tuple[int, int], int]  # by slot and attempt


class Suspended(Fact):
    """All workers were stopped with the program, from when to when in monotonic seconds."""

    since: float
    until: float


class Resized(Fact):
    """The pool shall have another number of workers."""

    max_workers: int


class RestartAsked(Fact):
    """Every worker that is there now shall be replaced, a busy one after its job."""


class Reclaimed(Fact):
    """Others want the place of a worker: it shall leave, a busy one after its job."""

    slot: int


class Broken(Fact):
    """The fleet has no way to any worker left, for good: everything ends. The error's text is told.

    Each `Kill` is still answered by `Gone`, and each `Unspawn` by `StartFailed`.
    """

    error: BaseException


class ShutDown(Fact):
    """No job comes any more; `cancel` also ends those that are there, each after its own grace.

    `at_once` and a second `cancel` leave them none.
    """

    cancel: bool = False
    at_once: bool = False


Event = (
    HandedOver
    | HeldBack
    | DependencyDone
    | NeverDone
    | Withdrawn
    | Unsent
    | CancelAsked
    | CancelAllAsked
    | Started
    | StartFailed
    | Ready
    | InitFailed
    | Lesson
    | NotTaken
    | Taken
    | OverMemory
    | Died
    | Faulted
    | Gone
    | MemorySeen
    | Tick
    | Resized
    | Suspended
    | RestartAsked
    | Reclaimed
    | Broken
    | ShutDown
)

# --- actions: what to do -------------------------------------------------------------------------


class Spawn(Fact):
    """Start a process for a slot, whose jobs take so many CPUs."""

    slot: int
    cpus: int = 1


class LookAtMemory(Fact):
    """Look how much memory may be had, and what the workers use for whose jobs some is reserved."""


class Overcommit(Fact):
    """Tell that a job starts for which so many bytes are missing: nobody would give them back."""

    job: int
    missing: int


class Postpone(Fact):
    """Tell that a worker did not get ready, and the next one is tried in `seconds`."""

    seconds: float
    spare: bool


class Unspawn(Fact):
    """Call a start off, if it has not begun."""

    slot: int


class Assign(Fact):
    """Give a job to an idle worker, if that itself holds at most `room` bytes (None: any)."""

    slot: int
    job: int
    attempt: int
    room: int | None = None

    if not TYPE_CHECKING:

        def __init__(self, slot, job, attempt, room=None):
            self.slot = slot
            self.job = job
            self.attempt = attempt
            self.room = room


class SendAhead(Fact):
    """Send a busy worker jobs, each as (its number, its attempt, the place that notes that)."""

    slot: int
    jobs: list[tuple[int, int, int]]

    if not TYPE_CHECKING:

        def __init__(self, slot, jobs):
            self.slot = slot
            self.jobs = jobs


class Begin(Fact):
    """Tell a job that it runs: the worker that it was sent to has it."""

    slot: int
    job: int


class Watch(Fact):
    """From now on, tell if a worker and those below it hold more than `limit` bytes."""

    slot: int
    attempt: int
    limit: int


class Unwatch(Fact):
    """Its memory does not matter any more."""

    slot: int


class Requeue(Fact):
    """Tell that a job waits again: it certainly never started, or (`began`) it is retried.

    Then there is the `evidence` of the worker that died under it, or the `answer`, the exception
    that it raised. It is not tried before `delay` s are over.
    """

    job: int
    began: bool = False
    evidence: Evidence | None = None
    answer: Message | None = None
    delay: float = 0.0


class Settle(Fact):
    """Tell a job how it ended."""

    job: int
    fate: Fate

    if not TYPE_CHECKING:

        def __init__(self, job, fate):
            self.job = job
            self.fate = fate


class Teach(Fact):
    """Have a worker do what `Lesson` has told of; `Ready` tells that it has."""

    slot: int


class Leave(Fact):
    """Ask an idle worker to end by itself."""

    slot: int


class Terminate(Fact):
    """Send a worker SIGTERM."""

    slot: int


class Kill(Fact):
    """End a worker and all below it, and reap it."""

    slot: int
    ask_stack: bool = False  # where its job is: first


class Refuse(Fact):
    """Take no job any more: no worker can be reached."""

    error: BaseException


class Close(Fact):
    """Nothing is left to do, ever."""


Action = (
    Spawn
    | LookAtMemory
    | Overcommit
    | Postpone
    | Unspawn
    | Assign
    | SendAhead
    | Begin
    | Watch
    | Unwatch
    | Requeue
    | Settle
    | Leave
    | Teach
    | Terminate
    | Kill
    | Refuse
    | Close
)

Actions = list[Action]

# --- commands: what callers put into a pool's inbox; a job that is enlisted stands for itself ----


class FailedEarly(Fact):
    """A job failed before it came: it could not be serialized."""


class CancelJob(Fact):
    """Stop a job; it may already be final. See `CancelAsked`."""

    job: Any
    grace: float = 0.0
    queued_only: bool = False


class NewCode(Fact):
    """What workers have imported may be outdated, by the number of `CodeWatch.changes`."""

    number: int


class ThreadDied(Fact):
    """A thread of the pool, without which it cannot go on, has ended by an exception."""

    error: BaseException


class Ask:
    """Call ``look`` on the dispatcher's thread, keep what it returns as `answer`, then call `done`.

    So the answer is of one moment, and knows all that was said to the dispatcher before it was
    asked. Where the pool has ended nobody looks: `answer` is None.
    """

    __slots__ = ("answer", "done", "look")

    def __init__(self, look: Callable[[], Any], done: Callable[[], object]) -> None:
        self.answer: Any = None
        self.look = look
        self.done = done

"""The facts that travel between the parts of a pool: one frozen type for each, and no behaviour.

* wire: what a worker and its pool say to each other (`Kind`, `Message`)
* events: what happened, told to the scheduler
* actions: what the scheduler wants done about it

Jobs, slots and attempts are plain ints here, unique within their pool and never used again. A
slot is one worker process from the order to start it until its last trace is gone.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# --- wire ----------------------------------------------------------------------------------------


class Kind(enum.IntEnum):
    """What a message on the channel says."""

    RUN = 1  # pool -> worker: a call to make
    STOP = 2  # pool -> worker: leave
    READY = 3  # worker -> pool: a job may come
    RETURNED = 4  # worker -> pool: the job's result
    RAISED = 5  # worker -> pool: the job's exception, or why it has no result
    REFUSED = 6  # worker -> pool: the call could not be received, it was not started
    INIT_FAILED = 7  # worker -> pool: the initializer's exception
    SHARE = 8  # pool -> worker: data that calls may refer to; its number stands for the attempt's
    FORGET = 9  # pool -> worker: no call refers to it any more


@dataclass(frozen=True, slots=True)
class Message:
    """One message as received.

    `body` is a pickle (b"" where the kind says all), `buffers` its out-of-band data. `lost` says
    why the receiver could not take the content in, None where it did.
    """

    kind: int
    attempt: int = 0
    body: bytes | bytearray | memoryview = b""
    buffers: Sequence[memoryview] = ()
    lost: str | None = None


# --- why a job has no outcome of its own ---------------------------------------------------------


class Reason(enum.Enum):
    """Why the pool ended a worker that held a job."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a worker after its death."""

    pid: int | None = None
    exitcode: int | None = None
    noted: int | None = 0  # the last attempt that it began; None if that is unknown
    initializing: bool = False  # it died inside the initializer
    stack: str | None = None
    peak_memory: int | None = None  # bytes, of the process itself in all its life
    cut_off: bool = False  # it was alive, without its channel, and was killed for that
    out_of_memory: str | None = None  # what makes a SIGKILL look like the kernel's OOM killer's
    error: BaseException | None = None  # why it could not be started at all


# --- fates: how a job ends, as the scheduler decides it ------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """The function returned or raised; `message` is the worker's own."""

    message: Message


@dataclass(frozen=True, slots=True)
class Cancelled:
    """It was cancelled, and nothing of it is left."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """It passed its time limit, and nothing of it is left."""

    limit: float


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """It passed its memory limit, and nothing of it is left; both in bytes."""

    limit: int
    peak: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Its worker died under it, or no worker could be started for it."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class NotInitialized:
    """The initializer raised (`message`) or died (`evidence`) while the job waited for it."""

    message: Message | None
    evidence: Evidence | None


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """It came after the pool was shut down."""


Fate = Finished | Cancelled | TimedOut | OutOfMemory | Lost | NotInitialized | TurnedAway

# --- events: what happened -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job came in."""

    job: int
    priority: int = 0
    timeout: float | None = None  # s
    memory_limit: int | None = None  # bytes
    retries: int = 0


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody wants a job to stop, after `grace` s of SIGTERM."""

    job: int
    grace: float = 0.0


@dataclass(frozen=True, slots=True)
class CancelAllAsked:
    """The same for every unfinished job."""

    grace: float = 0.0


@dataclass(frozen=True, slots=True)
class Started:
    """A slot has its process."""

    slot: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A slot gets no process; `evidence.error` is None where the start was called off."""

    slot: int
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker waits for its first job."""

    slot: int


@dataclass(frozen=True, slots=True)
class InitFailed:
    """A worker's initializer raised; it leaves."""

    slot: int
    message: Message


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker sent a job's outcome and waits for the next one."""

    slot: int
    attempt: int
    message: Message


@dataclass(frozen=True, slots=True)
class NotTaken:
    """A job did not reach its worker: the sending failed, or the worker refused it.

    `unfit` says that nothing was sent, nor told to the job, since the worker holds more memory
    than the job may.
    """

    slot: int
    attempt: int
    unfit: bool = False


@dataclass(frozen=True, slots=True)
class OverMemory:
    """A watched worker and those below it hold `peak` bytes, more than their job may."""

    slot: int
    attempt: int
    peak: int


@dataclass(frozen=True, slots=True)
class Died:
    """A worker's process ended; everything it sent before has been read."""

    slot: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is reaped, its process tree is gone, everything it sent has been read."""

    slot: int
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed, and something may be due."""


@dataclass(frozen=True, slots=True)
class Resized:
    """The pool shall have another number of workers."""

    max_workers: int


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """Every worker that is there now shall be replaced, a busy one after its job."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """No job comes any more; `cancel` also ends those that are there."""

    cancel: bool = False


Event = (
    Submitted
    | CancelAsked
    | CancelAllAsked
    | Started
    | StartFailed
    | Ready
    | InitFailed
    | Answered
    | NotTaken
    | OverMemory
    | Died
    | Gone
    | Tick
    | Resized
    | RestartAsked
    | ShutDown
)

# --- actions: what to do -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for a slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class Unspawn:
    """Call a start off, if it has not begun."""

    slot: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a job to an idle worker, if that itself holds at most `room` bytes (None: any)."""

    slot: int
    job: int
    attempt: int
    room: int | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """From now on, tell if a worker and those below it hold more than `limit` bytes."""

    slot: int
    attempt: int
    limit: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    """Its memory does not matter any more."""

    slot: int


@dataclass(frozen=True, slots=True)
class Requeue:
    """Tell that a job waits again: it certainly never started, or (`began`) it is retried."""

    job: int
    began: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell a job how it ended."""

    job: int
    fate: Fate


@dataclass(frozen=True, slots=True)
class Leave:
    """Ask an idle worker to end by itself."""

    slot: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Send a worker SIGTERM."""

    slot: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker and all below it, and reap it."""

    slot: int


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing is left to do, ever."""


Action = (
    Spawn | Unspawn | Assign | Watch | Unwatch | Requeue | Settle | Leave | Terminate | Kill | Close
)

Actions = list[Action]

# --- commands: what callers put into a pool's inbox ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Enlist:
    """Take a job in. `job` is the caller's PrimitiveJob, `parcel` its serialized call."""

    job: Any
    parcel: Any
    shared: Sequence[Any] = ()  # what the call refers to


@dataclass(frozen=True, slots=True)
class Forget:
    """Shared data that nobody can refer to any more."""

    number: int


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Stop a job; it may already be final."""

    job: Any
    grace: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Put a snapshot of the unfinished jobs into `answer`, then call `done`."""

    answer: list[Any] = field(default_factory=list)
    done: Any = None

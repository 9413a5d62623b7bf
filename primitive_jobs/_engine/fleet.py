"""`Fleet`: where a pool's worker processes are, as its engine sees it.

The engine decides what happens to workers, and knows them by the numbers of their slots; a fleet
starts, feeds and ends them. The engine imports no fleet: a pool makes one and hands it over.

A fleet calls the engine by `Host`: with events, as soon as it knows of them. What its own threads
learn comes through the inbox, as events or as `News`; what its descriptors tell comes from the
engine's poller, on the dispatcher's thread, and is told at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .._wire.channel import Content, PacketChannel
from .._wire.messages import Message
from ..logs import Report

if TYPE_CHECKING:
    from .events import Event, Gone, StartFailed, Suspended
    from .poller import Poller


class Worker(Protocol):
    """One worker process.

    Attributes:
        slot: The number of its slot.
        pid: Its process id, where it runs.
        report: Logs what happens to it.
    """

    slot: int
    pid: int
    report: Report


class FleetThread(NamedTuple):
    """A thread that a fleet needs.

    Attributes:
        name: Shown by debuggers.
        run: What it runs; returns after `Fleet.end`.
        signals: Whether signals are left open there, for the processes that it starts.
    """

    name: str
    run: Callable[[], None]
    signals: bool = False


class News:
    """What a thread of a fleet has learnt; it is put into the inbox.

    Args:
        take_in: Called on the dispatcher's thread.
        event: What the scheduler is told where ``take_in`` raises; None: nothing.
        refuse: Called instead, on any thread, if the pool has ended.
    """

    __slots__ = ("event", "refuse", "take_in")

    def __init__(
        self,
        take_in: Callable[[], None],
        event: Gone | StartFailed | None = None,
        refuse: Callable[[], None] | None = None,
    ) -> None:
        self.take_in = take_in
        self.event = event
        self.refuse = refuse


class Host(Protocol):
    """What the engine is for its fleet; on the dispatcher's thread, but for what says otherwise.

    Attributes:
        poller: Where the fleet's descriptors are waited on.
        report: Logs; on any thread.
    """

    poller: Poller
    report: Report

    def tell(self, command: Any) -> None:
        """Put an event, or `News`, into the inbox; on any thread, returns at once."""

    def happened(self, event: Event, worker: Worker | None = None) -> None:
        """Log what became of a worker, and tell the scheduler."""

    def answered(self, slot: int, message: Message) -> None:
        """A worker has sent the outcome of a job."""

    def fault(self, what: str, worker: Worker, error: Exception) -> None:
        """Something about a worker raised: it is replaced."""

    def step(self, what: str, worker: Worker | None, call: Callable[[], object]) -> None:
        """Do something whose failure changes nothing for anybody: it is logged."""

    def replan(self) -> None:
        """A worker's channel has become free, or full."""


class LateSender(Protocol):
    """Somebody who may still be using a worker's channel on a thread of his own.

    Attributes:
        worker: Whose channel.
        over: Whether he does not any more.
    """

    worker: Any
    over: bool


class Fleet(ABC):
    """The workers of one pool. All of this is called on the dispatcher's thread, and never blocks,
    but for what says so. What raises costs the worker (see `Fence`).

    Attributes:
        workers: Those that have a process, by the number of their slot.
        pause: Seconds after which `look` is to be called again; None: it is not needed.
    """

    workers: Mapping[int, Worker]
    pause: float | None = None

    # --- its own life ------------------------------------------------------------------------

    @abstractmethod
    def open(self, host: Host) -> None:
        """Begin; on the thread that makes the pool. Raises OSError where the system refuses."""

    @abstractmethod
    def threads(self) -> Sequence[FleetThread]:
        """Return the threads that it needs; the engine makes them."""

    @abstractmethod
    def end(self) -> None:
        """Have the threads end, once they have nothing left to do."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds; all its threads have ended. May block for a moment."""

    @abstractmethod
    def let_go(self) -> None:
        """Hold no object of the user's any more; called last, where foreign code may run."""

    @abstractmethod
    def abandon(self) -> None:
        """In a fork of the process: let go of what is not its own."""

    # --- workers -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def coming(self) -> bool:
        """Whether workers were ordered that have no process yet."""

    @abstractmethod
    def start(self, slot: int) -> None:
        """Have a worker started: `Started` or `StartFailed` tells what became of it.

        One of them, once; and none of them where this raises, which counts as the latter.
        """

    @abstractmethod
    def call_off(self, slot: int) -> None:
        """Have no worker started, if that has not begun; `StartFailed` without an error tells."""

    @abstractmethod
    def leave(self, slot: int) -> None:
        """Ask an idle worker to end by itself."""

    @abstractmethod
    def terminate(self, slot: int) -> None:
        """Send a worker SIGTERM."""

    @abstractmethod
    def kill(self, slot: int, *, ask_stack: bool = False) -> None:
        """Have a worker ended with all below it, after it has told its stack if that is asked.

        `Gone` tells that it is, and is told of no other worker: where one has ended by itself,
        `Died` comes first, and leads to this.
        """

    @abstractmethod
    def give_up(self, slot: int, error: BaseException) -> Gone:
        """Forget a worker that could not be had killed, and return what is known of it."""

    @abstractmethod
    def put_down(self) -> None:
        """After a bug in the engine: have all workers killed, whatever they do."""

    # --- jobs --------------------------------------------------------------------------------

    @abstractmethod
    def pack(
        self, body: bytes, buffers: list[memoryview], refers_to: tuple[Any, ...], *, to_file: bool
    ) -> Content:
        """Make a serialized call ready to be sent; on any thread. Raises OSError, MemoryError."""

    @abstractmethod
    def fits(self, slot: int, room: int) -> bool:
        """Whether an idle worker holds at most ``room`` bytes of memory."""

    @abstractmethod
    def run(self, slot: int, attempt: int, content: Content | None) -> bool:
        """Send a worker a job, and before it what that refers to; False: it does not get it."""

    @abstractmethod
    def watch(self, slot: int, attempt: int, limit: int) -> None:
        """Tell by `OverMemory` if a worker and all below it hold more than ``limit`` bytes."""

    @abstractmethod
    def unwatch(self, slot: int) -> None:
        """Watch its memory no more."""

    @abstractmethod
    def measures_memory(self) -> bool:
        """Whether a limit of memory can be kept at all."""

    @property
    def direct(self) -> Direct | None:
        """Itself, where callers can send to its workers; None: they cannot."""
        return None

    # --- time --------------------------------------------------------------------------------

    @abstractmethod
    def look(self) -> None:
        """See to what no descriptor tells."""

    def suspensions(self) -> tuple[list[Suspended], bool]:
        """Return when the workers were stopped with the program, and whether they still are.

        The former only once.
        """
        return [], False


class Direct(ABC):
    """A fleet to whose workers a job's caller can send by itself: see `hand_over`."""

    @abstractmethod
    def channel_to(self, slot: int) -> PacketChannel | None:
        """Return where a caller may send a job to an idle worker; None: nowhere, now."""

    @abstractmethod
    def sends_late(self, sender: LateSender) -> None:
        """Keep the channel of a worker open while somebody may be sending."""

    @abstractmethod
    def first_message(self, worker: Any) -> Message | None:
        """Receive what a worker has to say; raises `ChannelClosed` or OSError."""

    @abstractmethod
    def lost(self, worker: Any) -> None:
        """See to a worker of which `first_message` has raised."""

    @abstractmethod
    def hear(self, worker: Any, message: Message) -> None:
        """Take in what `first_message` has returned."""


__all__ = ["Direct", "Fleet", "FleetThread", "Host", "LateSender", "News", "Worker"]

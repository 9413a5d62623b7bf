"""`Fleet`: the interface between an engine and the processes of its workers.

The engine decides what happens to workers, and knows them by the numbers of their slots; a fleet
starts them, sends them jobs and ends them. The engine imports no fleet: a pool makes one and hands
it over.

A fleet reports to the engine by `Host`, as soon as something happens. Its own threads put events or
`News` into the inbox (`Host.tell`). What its descriptors show, the engine's poller tells it on the
dispatcher's thread; there it calls the other methods of `Host` directly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .._wire.channel import PacketChannel
from .._wire.messages import Message
from .._wire.parcel import Content, Parcel
from ..insight.traces import Traces
from ..logs import Report

if TYPE_CHECKING:
    from .events import Event, Gone, StartFailed, Suspended
    from .poller import Poller


class Worker(Protocol):
    """One worker process.

    Attributes:
        slot: The number of its slot.
        pid: Its process id, where it runs.
        node: The address of the Dask worker on whose machine it is; None: it is on this machine.
        report: Logs what happens to it.
    """

    slot: int
    pid: int
    node: str | None
    report: Report

    @property
    def traces(self) -> Traces:
        """What is seen of its attempts."""
        ...


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
    """Something that a thread of a fleet tells the dispatcher, through the inbox.

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
    """What a fleet may call; on the dispatcher's thread, unless it says otherwise.

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

    def answered(self, slot: int, message: Message) -> int:
        """A worker has sent the outcome of a job.

        Return the attempt that it has now: once it has begun a later one, it has answered that.
        """
        ...

    def fault(self, what: str, worker: Worker, error: Exception) -> None:
        """Something about a worker raised: it is replaced."""

    def step(self, what: str, worker: Worker | None, call: Callable[[], object]) -> None:
        """Do something whose failure changes nothing for anybody: it is logged."""

    def replan(self) -> None:
        """A worker's channel has become free, or full."""


class LateSender(Protocol):
    """A caller that may still be sending on a worker's channel, on its own thread.

    Attributes:
        worker: The worker whose channel it is.
        over: Whether it has finished.
    """

    worker: Any
    over: bool


class Offered(LateSender, Protocol):
    """A worker that a caller may have: see `hand_over`.

    Attributes:
        attempt: That of the caller's job there.
        claims: The first one has it, None is the dispatcher.
    """

    attempt: int
    claims: list[Any]


_NOTHING: deque[tuple[float, int, int]] = deque(maxlen=0)


class Fleet(ABC):
    """The workers of one pool. Unless a method says otherwise, it is called on the dispatcher's
    thread and never blocks. Where one raises, the engine gives up that worker alone: see `Fence`.

    A fleet whose workers stand where others have a say may also report `Reclaimed`, and `Broken`.

    Attributes:
        pause: Seconds after which the engine has to call `look` again; None: it need not.
        confirms: Whether it reports `Taken` for each job that was sent, as soon as the worker has
            it, and before the outcome. Until then the job is QUEUED, and callers cannot send to
            its workers by themselves (`direct`). Else a job runs as soon as it is sent.
        local: Whether its workers are on this machine. Then jobs may take several CPUs, and wait
            for memory.
        slow_starts: Whether a start may wait for long, for a place where others have theirs. Then
            those that no job waits for any more are called off.
        measured: What was measured of late because of `Memory.watch`, in order: when (on the
            monotonic clock), the pid of the worker, and the bytes. Any thread may read it.
        stacks: What asks workers for their stacks; None: they cannot be asked from here.
    """

    pause: float | None = None
    confirms: bool = False
    local: bool = True
    slow_starts: bool = False
    measured: deque[tuple[float, int, int]] = _NOTHING
    stacks: Stacks | None = None

    # --- its own life ------------------------------------------------------------------------

    @abstractmethod
    def open(self, host: Host) -> None:
        """Begin; on the thread that makes the pool. Raises OSError where the system refuses."""

    @abstractmethod
    def threads(self) -> Sequence[FleetThread]:
        """Return the threads that the fleet needs; the engine makes and starts them."""

    @abstractmethod
    def end(self) -> None:
        """Tell the threads to end, once they have nothing left to do."""

    @abstractmethod
    def close(self) -> None:
        """Close what it holds, after all its threads have ended. May block for a moment."""

    @abstractmethod
    def let_go(self) -> None:
        """Drop every object of the user's; called last, on a thread where their code may run."""

    @abstractmethod
    def abandon(self) -> None:
        """In a fork of the process: drop what belongs to the parent."""

    # --- workers -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def workers(self) -> Mapping[int, Worker]:
        """Those that have a process, by the number of their slot: the same object each time."""

    @property
    @abstractmethod
    def coming(self) -> bool:
        """Whether a worker was ordered whose start is not reported yet."""

    @abstractmethod
    def start(self, slot: int, cpus: int = 1, *, spare: bool = False) -> None:
        """Order the start of a worker; `Started` or `StartFailed` reports how that went.

        For a ``spare`` no job waits: it may take its time, if that serves its first job.
        Its jobs take so many CPUs; 1, where the fleet is not `local`.

        One of the two is reported, once. Where this raises, neither is: that counts as a failure.
        """

    @abstractmethod
    def call_off(self, slot: int) -> None:
        """Take an order back whose start has not begun; `StartFailed` without an error tells."""

    def teach(self, slot: int) -> None:
        """Have a worker do what it was told of by `Lesson`; `Ready` reports that it has."""
        raise NotImplementedError

    @abstractmethod
    def leave(self, slot: int) -> None:
        """Ask an idle worker to end by itself."""

    @abstractmethod
    def terminate(self, slot: int) -> None:
        """Send a worker SIGTERM."""

    @abstractmethod
    def kill(self, slot: int, *, ask_stack: bool = False) -> None:
        """Kill a worker and every process below it; with ``ask_stack``, ask it for its stack first.

        `Gone` reports the end, and is reported only after this: of a worker that ends by itself,
        the fleet reports `Died`, and the engine then calls this.
        """

    @abstractmethod
    def give_up(self, slot: int, error: BaseException) -> Gone:
        """Forget a worker for which `kill` has raised, and return what is known of it."""

    @abstractmethod
    def put_down(self) -> None:
        """After a bug in the engine: kill all workers, whatever they do."""

    # --- jobs --------------------------------------------------------------------------------

    @abstractmethod
    def pack(
        self, body: bytes, buffers: list[memoryview], refers_to: tuple[Any, ...], *, to_file: bool
    ) -> Content:
        """Make a serialized call ready to be sent; on any thread. Raises OSError, MemoryError."""

    def repack(self, parcel: Parcel) -> Parcel:
        """Make a call that was packed for any fleet ready for this one; on any thread.

        Raises SerializationError where it cannot be sent there.
        """
        return parcel

    @abstractmethod
    def run(self, slot: int, attempt: int, content: Content | None, room: int | None) -> bool:
        """Send a worker a job, after the data that the job refers to; False: it was not sent.

        Where `Memory.held_by` does not know it, a worker that holds more than ``room`` bytes must
        not begin with the job: it reports `NotTaken` then, with ``unfit``. None: any worker may.
        """

    @property
    @abstractmethod
    def memory(self) -> Memory:
        """What measures memory, from `open` on; the same object each time."""

    @property
    def direct(self) -> Direct | None:
        """The fleet itself, if callers can send to its workers; None: they cannot."""
        return None

    @property
    def ahead(self) -> Ahead | None:
        """The fleet itself, if busy workers can be sent jobs ahead; None: they cannot."""
        return None

    # --- time --------------------------------------------------------------------------------

    @abstractmethod
    def look(self) -> None:
        """Look for what no descriptor shows, such as a death that a pidfd does not report."""

    def suspensions(self) -> tuple[list[Suspended], bool]:
        """Return when the workers were stopped with the program, and whether they still are.

        Each such time is returned once.
        """
        return [], False


class Memory(ABC):
    """What workers and machine hold. None of it blocks.

    `held_by`, `watch_offered` and `total` are for any thread, the others for the dispatcher's.
    """

    @abstractmethod
    def measures(self) -> bool:
        """Whether the memory of processes can be measured here at all."""

    @abstractmethod
    def held_by(self, worker: Any) -> int | None:
        """Return how many bytes an idle worker holds; None: that cannot be told at once."""

    @abstractmethod
    def has_room(self, worker: Any, room: int) -> bool:
        """Whether it holds at most so much; True also where nobody here knows. Raises OSError."""

    @abstractmethod
    def watch(self, worker: Any, attempt: int, limit: int) -> None:
        """Report by `OverMemory` if a worker and all below it hold more than ``limit`` bytes."""

    def watch_offered(self, offer: Offered, limit: int) -> None:
        """The same for a job that is being handed over, for as long as the offer is its own."""
        raise NotImplementedError

    @abstractmethod
    def unwatch(self, slot: int) -> None:
        """Stop watching a worker's memory."""

    def total(self) -> int:
        """Return how many bytes the jobs of a `local` fleet could ever have; 0: not known."""
        raise NotImplementedError

    def look(self) -> None:
        """Report by `MemorySeen` how much there is, once; only where it is `local`."""
        raise NotImplementedError


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
        """Receive a message of a worker; raises `ChannelClosed` or OSError."""

    @abstractmethod
    def lost(self, worker: Any) -> None:
        """Report the death of a worker for which `first_message` has raised."""

    @abstractmethod
    def taken_in(self, worker: Any, message: Message) -> int:
        """Handle what `first_message` has returned; return as `Host.answered` does."""


class Ahead(ABC):
    """A fleet whose workers can be sent jobs ahead, and have them taken back: see `recall`."""

    @abstractmethod
    def page(self, slot: int) -> memoryview:
        """Return the page in which a worker notes what it begins: see `notes`."""

    @abstractmethod
    def send(self, slot: int, attempt: int, content: Content | None, place: int) -> bool:
        """Send a worker a job, to be noted in a place of its page; False: it was not sent."""

    @abstractmethod
    def take_back(self, slot: int) -> list[int]:
        """Take back what a worker was sent and has not received; return the attempts."""

    @abstractmethod
    def hear(self, slot: int, count: int) -> int:
        """Report so many messages of a worker, of those that are there; return how many."""


class Stacks(ABC):
    """Asks workers for the Python stack of a job that goes on; none of it blocks."""

    @abstractmethod
    def ask(self, slot: int, *, deep: bool, force: bool) -> str:
        """Ask a worker that has a job and is not being killed; return why that is not done, or "".

        Args:
            slot: The worker's.
            deep: Ask in C: only where the worker has not answered for a second.
            force: Ask also where the job is in a system call that this would end early.
        """

    @abstractmethod
    def text(self, slot: int) -> str:
        """Return what it has written since then; raises OSError."""


__all__ = [
    "Ahead",
    "Direct",
    "Fleet",
    "FleetThread",
    "Host",
    "LateSender",
    "Memory",
    "News",
    "Offered",
    "Stacks",
    "Worker",
]

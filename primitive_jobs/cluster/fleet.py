"""`ClusterFleet`: the workers of a pool on the nodes of a cluster.

All of it is the dispatcher's thread's, but for `pack` and `forget`. A worker's way::

    start ──► ordered ──► placed ──► started ──► gone
               │  ▲ Dask has to  │ a node holds the place, and was told to start the process
               │  │ find a place │
               └──┴──────────────┘ the node was lost: Dask finds another place

`Connection` finds the places and keeps the lines to the nodes; on each node a `Session` does what
a fleet on this machine does.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._common.naming import one_line
from .._engine.events import (
    Broken,
    Died,
    Gone,
    InitFailed,
    NotTaken,
    OverMemory,
    Ready,
    Reclaimed,
    Resized,
    Started,
    StartFailed,
    Taken,
)
from .._engine.fleet import Fleet, FleetThread, Host, Memory, News
from .._wire.evidence import Evidence
from .._wire.messages import Kind
from .._wire.parcel import Content, Parcel, pack
from ..errors import SerializationError
from ..logs import Report
from .connection import Connection, Hearer, Link, Policy, Target
from .frames import evidence_of, message_of, packed
from .line import Data, Frame
from .traces import RemoteTraces


class RemoteWorker:
    """A worker process on a node.

    Attributes:
        slot: The number of its slot.
        pid: Its process id, on its own machine.
        node: The address of its node.
        report: Logs what happens to it.
        link: The line to the node.
        ending: It was told to die.
        busy: It was sent a job, and has not answered.
        traces: What its node has told of its attempts.
    """

    def __init__(self, slot: int, pid: int, link: Link, report: Report) -> None:
        self.slot = slot
        self.pid = pid
        self.node: str | None = link.address
        self.report = report.about(pid, slot)
        self.link = link
        self.traces = RemoteTraces()
        self.ending = self.busy = False

    def send(self, name: str, **facts: Any) -> None:
        """Tell the node something about it."""
        # Not in the lane of its jobs: a long one does not hold up its end.
        self.link.send({"frame": name, "slot": self.slot, **facts})


class _Memory(Memory):
    """Has the nodes measure what their workers hold.

    Args:
        workers: The workers, by slot; the same object each time.
    """

    def __init__(self, workers: Mapping[int, RemoteWorker]) -> None:
        self._workers = workers

    def measures(self) -> bool:
        """Whether the nodes can do so, they say for each job."""
        return True

    def held_by(self, worker: RemoteWorker) -> int | None:
        """The node knows."""
        del worker
        return None

    def has_room(self, worker: RemoteWorker, room: int) -> bool:
        """The node says so: see `Fleet.run`."""
        del worker, room
        return True

    def watch(self, worker: RemoteWorker, attempt: int, limit: int) -> None:
        """Have the node watch a worker's memory, from when the job is there."""
        frame = {"frame": "watch", "slot": worker.slot, "attempt": attempt, "limit": limit}
        worker.link.send(frame, worker.slot)

    def unwatch(self, slot: int) -> None:
        """Have it stop watching; after `watch`."""
        self._workers[slot].link.send({"frame": "unwatch", "slot": slot}, slot)


class _Order:
    """A worker that is to be started."""

    __slots__ = ("called_off", "link", "over")

    def __init__(self) -> None:
        self.link: Link | None = None  # of the node that holds its place
        self.called_off = False  # the node was told so, and has not answered
        self.over = False  # its place is no more


class ClusterFleet(Fleet, Hearer):
    """The fleet of a cluster; `Fleet` says what each method is for.

    Args:
        target: Where the cluster is.
        pool: The name of the pool there, unique.
        policy: How the cluster is used.
        config: What all workers have in common: the first frame to each node, and its data.
        follow_threads: Whether there are to be as many workers as the cluster has threads.

    Attributes:
        follow_threads: The same; may be written on any thread.
    """

    confirms = True
    local = False
    slow_starts = True

    def __init__(
        self,
        target: Target,
        pool: str,
        policy: Policy,
        config: tuple[Frame, Data],
        *,
        follow_threads: bool,
    ) -> None:
        self._connection = Connection(target, pool, policy, config, self, self._tell)
        self.follow_threads = follow_threads
        self._workers: dict[int, RemoteWorker] = {}
        self._memory = _Memory(self._workers)
        self._orders: dict[int, _Order] = {}
        self._links: dict[str, Link] = {}
        self._ended = False

    # --- its own life ------------------------------------------------------------------------

    def open(self, host: Host) -> None:
        """Begin."""
        self._host = host

    def threads(self) -> Sequence[FleetThread]:
        """Return the thread that all connections are on."""
        return (FleetThread("cluster", self._connection.run),)

    def end(self) -> None:
        """Tell the thread to end."""
        self._connection.end()

    def close(self) -> None:
        """Nothing is held but by the thread."""
        self._ended = True

    def let_go(self) -> None:
        """Nothing of the user's is held."""

    def abandon(self) -> None:
        """In a fork of the process: nothing there runs that could use the parent's connections."""
        self._ended = True

    def _tell(self, call: Callable[[], None]) -> None:
        """Have something called on the dispatcher's thread; on any thread."""
        self._host.tell(News(call))

    @property
    def memory(self) -> _Memory:
        """The nodes measure it."""
        return self._memory

    # --- workers -----------------------------------------------------------------------------

    @property
    def workers(self) -> dict[int, RemoteWorker]:
        """Those that have a process."""
        return self._workers

    @property
    def coming(self) -> bool:
        """Whether workers were ordered that have no process yet."""
        return bool(self._orders)

    def start(self, slot: int, cpus: int = 1, *, spare: bool = False) -> None:
        """Order the start of a worker."""
        del spare
        assert cpus == 1, "others are refused: it is not `local`"
        self._orders[slot] = _Order()
        self._connection.place(slot)

    def call_off(self, slot: int) -> None:
        """Take back an order."""
        order = self._orders.get(slot)
        if order is None:
            return
        if order.link is None or not order.link.opened:
            event = StartFailed(slot, Evidence(noted=0))
            self._host.tell(News(functools.partial(self._not_started, event), event))
        else:
            order.called_off = True
            order.link.send({"frame": "evict", "slot": slot})

    def leave(self, slot: int) -> None:
        """Ask an idle worker to end by itself."""
        self._workers[slot].send("leave")

    def terminate(self, slot: int) -> None:
        """Send a worker SIGTERM."""
        self._workers[slot].send("terminate")

    def kill(self, slot: int, *, ask_stack: bool = False) -> None:
        """Have the node kill a worker, if that is not lost."""
        worker = self._workers[slot]
        worker.ending = True
        worker.send("kill", ask_stack=ask_stack)

    def give_up(self, slot: int, error: BaseException) -> Gone:
        """Forget a worker; its place is given back, which kills it."""
        worker = self._forget(slot)
        left = f"worker {worker.pid} on {worker.node}: it could not be killed: {one_line(error)}"
        return Gone(slot, Evidence(worker.pid, error=error, left=left, node=worker.node))

    def put_down(self) -> None:
        """Have all workers killed."""
        for worker in self._workers.values():
            worker.send("kill", ask_stack=False)

    def _forget(self, slot: int) -> RemoteWorker:
        worker = self._workers.pop(slot)
        worker.link.slots.discard(slot)
        self._connection.release(slot)
        return worker

    # --- jobs --------------------------------------------------------------------------------

    def pack(
        self, body: bytes, buffers: list[memoryview], refers_to: tuple[Any, ...], *, to_file: bool
    ) -> Content:
        """Make a serialized call ready to be sent; in no file, as it goes over a network."""
        del to_file
        _check_sent(refers_to)
        return pack(body, buffers, refers_to, to_file=False)

    def repack(self, parcel: Parcel) -> Parcel:
        """Have it in no file."""
        _check_sent(parcel.refers_to)
        copy = parcel.copy_of_bytes()
        copy.refers_to = parcel.refers_to
        return copy

    def run(self, slot: int, attempt: int, content: Content | None, room: int | None) -> bool:
        """Send a worker a job, after the data that the job refers to."""
        worker = self._workers[slot]
        if worker.link.ended:
            return False
        shared: Sequence[Any] = content.refers_to if isinstance(content, Parcel) else ()
        for source in shared:
            self._share(worker.link, source)
        data, buffers = packed(content)
        frame = {
            "frame": "run",
            "slot": slot,
            "attempt": attempt,
            "room": room,
            "buffers": buffers,
            "shared": [source.number for source in shared],
        }
        worker.busy = True
        worker.link.send(frame, slot, data)
        return True

    def _share(self, link: Link, source: Any) -> None:
        """Send a node shared data that it does not have yet, once, however many jobs use it."""
        if source.number in link.shared:
            return
        source.used_by(self)
        for other in source.shared:
            self._share(link, other)
        data, buffers = packed(source.parcel_for(packets=False))
        frame = {
            "frame": "share",
            "number": source.number,
            "kind": int(source.kind),
            "buffers": buffers,
            "shared": [other.number for other in source.shared],
            "notes": source.notes,
        }
        link.send(frame, -source.number, data)
        link.shared.add(source.number)

    def forget(self, number: int) -> None:
        """Have the nodes drop shared data; called by a finalizer, on any thread."""
        if not self._ended:
            self._tell(functools.partial(self._on_forget, number))

    def _on_forget(self, number: int) -> None:
        for link in self._links.values():
            if number in link.shared:
                link.shared.discard(number)
                link.send({"frame": "forget", "number": number}, -number)

    def look(self) -> None:
        """Nothing is to be looked for: nodes and connection tell."""

    # --- what the connection tells -----------------------------------------------------------

    def thread_total(self, total: int) -> None:
        """The cluster has another number of threads."""
        if self.follow_threads:
            self._host.happened(Resized(max(1, total)))

    def placed(self, slot: int, node: str) -> None:
        """A node holds the place of a worker: have the process started there."""
        order = self._orders.get(slot)
        if order is None:  # Dask repeats a place whose worker is gone
            self._connection.release(slot)
            return
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = Link(node)
            self._connection.open(link)
        if order.link is link:
            return
        if order.link is not None:  # Dask has lost that node, and we have not
            order.link.send({"frame": "evict", "slot": slot})
            order.link.slots.discard(slot)
        order.link = link
        link.slots.add(slot)
        if link.opened:  # else that is still to be told of, and starts all
            link.send({"frame": "start", "slot": slot}, slot)

    def opened(self, link: Link) -> None:
        """A node can be spoken to."""
        link.opened = True
        for slot in link.slots:
            link.send({"frame": "start", "slot": slot}, slot)

    def unreachable(self, link: Link, error: BaseException) -> None:
        """A node cannot be spoken to: none of its workers starts."""
        self._host.report(logging.WARNING, "node %s: %s", link.address, one_line(error))
        self._drop(link)
        for slot in list(link.slots):
            self._not_started(StartFailed(slot, Evidence(noted=0, error=error, node=link.address)))

    def place_over(self, slot: int, error: BaseException | None) -> None:
        """The Dask task of a place has ended."""
        order = self._orders.get(slot)
        if order is None:
            return  # its worker was there: the node tells of its end
        order.over = True
        if order.link is None:
            self._not_placed(slot, error)

    def _not_placed(self, slot: int, error: BaseException | None) -> None:
        if error is None:
            error = RuntimeError("its node gave the place back before the process was started")
        self._not_started(StartFailed(slot, Evidence(noted=0, error=error)))

    def _not_started(self, event: StartFailed) -> None:
        order = self._orders.pop(event.slot, None)
        if order is None:
            return
        if order.link is not None:
            order.link.slots.discard(event.slot)
        self._connection.release(event.slot)
        self._host.happened(event)

    def cut_off(self, link: Link) -> None:
        """A line has ended: its workers get no job any more, and the node may get another line."""
        link.ended = True
        self._drop(link)
        for slot in sorted(link.slots):
            worker = self._workers.get(slot)
            # A job may be running yet, and may be cancelled; the others are of no use any more.
            if worker is not None and not worker.busy:
                self._host.happened(Died(slot), worker)

    def lost(self, link: Link, why: str) -> None:
        """Nothing that was started over a line runs any more."""
        self._host.report(logging.WARNING, "node %s was lost: %s", link.address, why)
        for slot in sorted(link.slots):
            worker = self._workers.get(slot)
            if worker is not None:
                lost = Evidence(worker.pid, node=link.address, node_lost=why)
                self._on_gone(worker, lost)
                continue
            order = self._orders[slot]
            link.slots.discard(slot)
            order.link = None  # Dask finds another place, if the task has not ended
            if order.called_off:
                self._not_started(StartFailed(slot, Evidence(noted=0)))
            elif order.over:
                self._not_placed(slot, RuntimeError(f"node {link.address} was lost: {why}"))

    def _drop(self, link: Link) -> None:
        if self._links.get(link.address) is link:
            del self._links[link.address]

    def broken(self, error: BaseException) -> None:
        """There is no way to the cluster any more."""
        self._host.happened(Broken(error))

    def heard(self, link: Link, frames: list[Frame]) -> None:
        """A node has sent frames."""
        for frame in frames:
            self._on_frame(link, frame)

    # --- what nodes tell ---------------------------------------------------------------------

    def _on_frame(self, link: Link, frame: Frame) -> None:
        if frame["frame"] == "bye":
            self._connection.cut(link)
            return
        slot = frame.get("slot", 0)
        worker, order = self._workers.get(slot), self._orders.get(slot)
        if worker is not None and worker.link is link:
            try:
                self._on_worker_frame(worker, frame)
            except Exception as error:  # noqa: BLE001 - it is logged
                self._host.fault("taking in what it sent", worker, error)
        elif order is not None and order.link is link:
            if frame["frame"] == "started":
                del self._orders[slot]
                worker = RemoteWorker(slot, frame["pid"], link, self._host.report)
                self._workers[slot] = worker
                self._host.happened(Started(slot), worker)
            elif frame["frame"] == "reclaimed":
                self._host.happened(Reclaimed(slot))
            elif frame["frame"] == "start_failed":
                evidence = evidence_of(frame["evidence"], link.address)
                self._not_started(StartFailed(slot, evidence))

    def _on_worker_frame(self, worker: RemoteWorker, frame: Frame) -> None:
        host, slot = self._host, worker.slot
        match frame["frame"]:
            case "answer":
                worker.busy = False
                host.answered(slot, message_of(frame))
            case "traces":
                worker.traces.heard(frame)
            case "printing":
                worker.traces.heard_printing(frame)
            case "printed":
                worker.traces.heard_printed(frame)
            case "taken":
                host.happened(Taken(slot, frame["attempt"]), worker)
            case "not_taken":
                host.happened(NotTaken(slot, frame["attempt"], frame["unfit"]), worker)
            case "ready":
                host.happened(Ready(slot), worker)
            case "init_failed":
                host.happened(InitFailed(slot, message_of(frame)), worker)
            case "over_memory":
                host.happened(OverMemory(slot, frame["attempt"], frame["peak"]), worker)
            case "reclaimed":
                host.happened(Reclaimed(slot), worker)
            case "died":
                host.happened(Died(slot), worker)
            case "faulted":
                host.fault(frame["what"], worker, RuntimeError(frame["error"]))
            case "gone":
                self._on_gone(worker, evidence_of(frame["evidence"], str(worker.node)))

    def _on_gone(self, worker: RemoteWorker, evidence: Evidence) -> None:
        slot = worker.slot
        if not worker.ending:  # the engine hears of a death before it hears that nothing is left
            self._host.happened(Died(slot), worker)
        if self._workers.get(slot) is not worker:
            return  # given up
        self._forget(slot)
        self._host.happened(Gone(slot, evidence), worker)


def _check_sent(refers_to: Sequence[Any]) -> None:
    if any(source.kind == Kind.LEND for source in refers_to):
        raise SerializationError(
            "the call has a socket or a connection among its arguments, whose descriptor "
            "cannot be sent to another machine; a JobPool can lend it to its workers"
        )


__all__ = ["ClusterFleet", "RemoteWorker"]

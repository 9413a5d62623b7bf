"""`LocalFleet`: the workers of a pool on this machine, each at the other end of a socket.

====================  =============================================================================
what                  which thread does it
====================  =============================================================================
workers, channels     the dispatcher's: the poller tells it of messages and deaths, the threads
                      below of the rest, by `News`
a worker's start      the spawner's; that thread never ends while a worker lives
a worker's end        the reaper's: it kills and reaps
memory                the memory watch's: it measures
====================  =============================================================================
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import signal
from collections.abc import Sequence
from typing import Any

from .._common.naming import one_line
from .._engine.events import (
    Died,
    Gone,
    InitFailed,
    NotTaken,
    Ready,
    Started,
    StartFailed,
    Suspended,
)
from .._engine.fleet import Ahead, Direct, Fleet, FleetThread, Host, LateSender, News
from .._procs.guardian import the_guard
from .._procs.process import WorkerConfig, WorkerProcess
from .._wire.channel import ChannelClosed, PacketChannel
from .._wire.evidence import Evidence
from .._wire.messages import OUTCOMES, Kind, Message
from .._wire.parcel import Content, Parcel, pack
from .ahead import LocalAhead, receive
from .hidden import HiddenDeaths
from .lessons import Lessons
from .memory_watch import MemoryWatch
from .pipes import Pipes
from .reaper import Reaper
from .spawner import Spawner
from .stacks import LocalStacks
from .unclosed import Unclosed

_READ = select.POLLIN
_WRITE = select.POLLOUT
_UNKNOWN = "worker %d sent an unknown message; it is replaced"


class LocalFleet(Fleet, Direct):
    """The fleet of this machine; `Fleet` says what each method is for.

    Args:
        config: How workers are started.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._processes: dict[int, WorkerProcess] = {}
        self.config = config
        self.stacks = LocalStacks(self._processes)
        self._ahead = LocalAhead(self._processes, self._send, self.taken_in)
        self._lessons = Lessons(config.learned, self._processes, self._send)
        self._hidden = HiddenDeaths(self._on_death, self._pause)
        self._ended, self._stops = False, 0  # those by Ctrl-Z that have been told
        self._lease_end: float | None = None  # s of `guard.lease_clock`

    # --- its own life ------------------------------------------------------------------------

    def open(self, host: Host) -> None:
        """Begin."""
        self._host = host
        self._poller = host.poller
        self._spawner = Spawner(self.config, self._spawned, host.report)
        self._memory = MemoryWatch(host.tell, host.report)
        self.measured = self._memory.measured
        self._lessons.open(host)
        self._reaper = Reaper(self._reaped)
        self._pipes = Pipes(host, self._pause)
        self._unclosed = Unclosed(host.step, self._pipes.drop)

    def threads(self) -> Sequence[FleetThread]:
        """Return the three threads: each does one thing that takes time."""
        return (
            FleetThread("spawner", self._spawn, signals=True),  # workers would inherit a block
            FleetThread("reaper", self._reaper.run),
            FleetThread("memory", self._memory.run),
        )

    def _spawn(self) -> None:
        the_guard.open(self, self._host.report)
        if self._ended:  # before this thread began: see Engine._start_threads
            the_guard.release(self)
        self._spawner.run()

    def end(self) -> None:
        """Tell the threads to end."""
        self._spawner.end()
        self._reaper.end()
        self._memory.end()

    def close(self) -> None:
        """Close what it holds; try once more to kill the workers that were given up."""
        self._ended = True
        step = self._host.step
        self._unclosed.close()
        for process in self._processes.values():
            step("closing", process, process.close)
        step("closing", None, self.config.close)
        step("closing", None, self._reaper.close)
        step("releasing the guard", None, lambda: the_guard.release(self))

    def let_go(self) -> None:
        """Drop the initializer."""
        self.config.let_go()

    def abandon(self) -> None:
        """In a fork of the process: drop what belongs to the parent."""
        self._ended = True
        self.config.close()
        self._reaper.close()

    # --- workers -----------------------------------------------------------------------------

    @property
    def workers(self) -> dict[int, WorkerProcess]:
        """Those that have a process."""
        return self._processes

    @property
    def coming(self) -> bool:
        """Whether the spawner has orders that it has not reported yet."""
        return self._spawner.busy

    def start(self, slot: int, cpus: int = 1, *, spare: bool = False) -> None:
        """Order the start of a worker."""
        self._spawner.order(slot, cpus, spare=spare)

    def call_off(self, slot: int) -> None:
        """Take back an order."""
        self._spawner.call_off(slot)

    def teach(self, slot: int) -> None:
        """Have a spare import what others have."""
        self._lessons.teach(slot)

    def leave(self, slot: int) -> None:
        """Ask an idle worker to end by itself."""
        self._send(self._processes[slot], Kind.STOP)  # where it fails, its death is coming

    def terminate(self, slot: int) -> None:
        """Send a worker SIGTERM."""
        self._processes[slot].terminate()

    def kill(self, slot: int, *, ask_stack: bool = False) -> None:
        """Hand a worker to the reaper, which kills it: see `Reaper`."""
        process = self._processes[slot]
        if ask_stack and not process.has_sent():
            # What it sends from now on may be the work of the signal that asks.
            process.heard_out = True
        self._reaper.take(process, ask_stack=process.heard_out)

    def give_up(self, slot: int, error: BaseException) -> Gone:
        """Forget a worker; `close` tries once more to kill it."""
        process = self._processes[slot]
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)  # nobody has reaped it
        self._unclosed.given_up(process)
        self._unwatch_death(process)
        self._unwatch(process.channel.fileno())
        del self._processes[slot]
        left = f"worker {process.pid}: it could not be killed: {one_line(error)}"
        return Gone(slot, Evidence(process.pid, error=error, left=left))

    def put_down(self) -> None:
        """Hand all workers to the reaper."""
        for process in self._processes.values():
            self._reaper.take(process)

    def lease(self, deadline: float) -> None:
        """Have the guard kill all workers, of now and later, at a deadline; see `Guard.lease`."""
        self._lease_end = deadline
        the_guard.lease([process.pid for process in self._processes.values()], deadline)
        if self._processes:  # somebody may have killed the one that had the earlier lease
            self._host.step("starting the guard", None, the_guard.be_there)

    # --- jobs --------------------------------------------------------------------------------

    def pack(
        self, body: bytes, buffers: list[memoryview], refers_to: tuple[Any, ...], *, to_file: bool
    ) -> Content:
        """Make a serialized call ready to be sent."""
        return pack(body, buffers, refers_to, to_file=to_file and self.config.packets)

    def run(self, slot: int, attempt: int, content: Content | None, room: int | None) -> bool:
        """Send a worker a job; whoever gives it there has looked whether it has ``room``."""
        del room
        process = self._processes[slot]
        refers_to: Sequence[Any] = content.refers_to if isinstance(content, Parcel) else ()
        known = not refers_to or self._share(process, refers_to)
        return known and self._send(process, Kind.RUN, attempt, content)

    def forget(self, number: int) -> None:
        """Tell the workers to drop shared data; called by a finalizer, on any thread."""
        if not self._ended:  # later there may be no modules any more
            self._host.tell(News(functools.partial(self._on_forget, number)))

    # --- time --------------------------------------------------------------------------------

    def look(self) -> None:
        """Look for dead workers without a pidfd, and at pipes that have rested."""
        self._hidden.look()
        self._pipes.look()

    def suspensions(self) -> tuple[list[Suspended], bool]:
        """Return the times of each Ctrl-Z, which the guard reports."""
        stops, still = the_guard.stops(self._stops)
        self._stops += len(stops)
        return [Suspended(since, until) for since, until in stops], still

    # --- the hand-over -----------------------------------------------------------------------

    @property
    def direct(self) -> Direct:
        """The fleet itself: callers can send to its workers."""
        return self

    def channel_to(self, slot: int) -> PacketChannel | None:
        """Return a worker's channel, if what is sent there goes at once or not at all."""
        channel = self._processes[slot].channel
        return channel if isinstance(channel, PacketChannel) and not channel.wants_write else None

    def sends_late(self, sender: LateSender) -> None:
        """Keep a channel open."""
        self._unclosed.sends_late(sender)

    def first_message(self, worker: WorkerProcess) -> Message | None:
        """Receive."""
        return receive(worker)

    def lost(self, worker: WorkerProcess) -> None:
        """Report a worker as dead: it is, or its job closed the channel and it is of no use."""
        worker.link_lost = True
        self._unwatch(worker.channel.fileno())
        self._host.happened(Died(worker.slot))

    def taken_in(self, worker: WorkerProcess, message: Message) -> int:
        """Take a message in; return the attempt that the worker has now, as `Host.answered`."""
        if worker.heard_out and message.kind != Kind.LEND:
            return 0
        try:
            if message.kind in OUTCOMES:
                return self._host.answered(worker.slot, message)
            self._on_news(worker, message)
        except Exception as error:  # noqa: BLE001 - it is logged
            self._host.fault("taking in what it sent", worker, error)
        return 0

    @property
    def memory(self) -> MemoryWatch:
        """The thread that measures it."""
        return self._memory

    # --- what is sent ahead ------------------------------------------------------------------

    @property
    def ahead(self) -> Ahead | None:
        """What sends jobs ahead, where messages are datagrams."""
        return self._ahead if self.config.packets else None

    # --- what workers send -------------------------------------------------------------------

    def _on_socket(self, process: WorkerProcess, mask: int) -> None:
        try:
            if mask != _READ and mask & _WRITE:
                process.channel.flush()
                if not process.channel.wants_write:
                    self._poller.modify(process.channel.fileno(), _READ)
                    self._host.replan()
            if mask != _WRITE:
                message = receive(process)
                if message is not None and (attempt := self.taken_in(process, message)):
                    self._ahead.hear_on(process, attempt)
        except (ChannelClosed, OSError):
            self.lost(process)
        except Exception as error:  # noqa: BLE001 - it is logged
            self._host.fault("hearing it", process, error)

    def _on_news(self, process: WorkerProcess, message: Message) -> None:
        slot = process.slot
        match message.kind:
            case Kind.READY:
                self._host.happened(Ready(slot), process)
                self._lessons.offer(process)
            case Kind.REFUSED:
                self._host.happened(NotTaken(slot, message.attempt))
            case Kind.LEND:
                self._pipes.take(process, message)
            case Kind.INIT_FAILED:
                self._host.happened(InitFailed(slot, message), process)
            case _:
                process.report(logging.WARNING, _UNKNOWN, process.pid)
                self._host.happened(Died(slot))

    def _on_death(self, process: WorkerProcess) -> None:
        self._unwatch_death(process)
        if not process.shows_death and not process.is_dead():
            process.link_lost = True  # it has closed what tells of its death, and all else
        # First: nothing more is sent there, or it would lie in a queue that nobody reads.
        self._host.happened(Died(process.slot))
        self._drain(process)

    def _on_cut(self, process: WorkerProcess) -> None:
        assert process.lifeline is not None, "that is what was watched"
        self._unwatch(process.lifeline)
        self.lost(process)
        self._drain(process)

    def _drain(self, process: WorkerProcess) -> None:
        """Handle everything that it sent before its end."""
        with contextlib.suppress(ChannelClosed):
            while (message := receive(process)) is not None:
                self.taken_in(process, message)

    # --- what the other threads tell ---------------------------------------------------------

    def _spawned(self, what: WorkerProcess | StartFailed) -> None:
        """On the spawner's thread."""
        if isinstance(what, StartFailed):
            news = News(functools.partial(self._on_start_failed, what), what)
        else:
            take_in = functools.partial(self._on_process, what)
            news = News(take_in, refuse=functools.partial(_end_unknown, what))
        self._host.tell(news)

    def _on_start_failed(self, event: StartFailed) -> None:
        self._spawner.told(event.slot)
        self._host.happened(event)

    def _on_process(self, process: WorkerProcess) -> None:
        slot = process.slot
        self._spawner.told(slot)
        self._processes[slot] = process
        fault: Exception | None = None
        try:
            if self._lease_end is not None:
                the_guard.lease([process.pid], self._lease_end)
            fd = process.channel.fileno()
            self._poller.watch(fd, functools.partial(self._on_socket, process))
            if process.channel.wants_write:  # its initializer
                self._poller.modify(fd, _READ | _WRITE)
            self._poller.watch(process.death, lambda _: self._on_death(process))
            if process.lifeline is not None:
                self._poller.watch(process.lifeline, lambda _: self._on_cut(process))
            if not process.shows_death:
                self._hidden.add(process)
        except Exception as error:  # noqa: BLE001 - it is logged
            fault = error
        self._host.happened(Started(slot), process)
        if fault is not None:
            self._host.fault("watching it", process, fault)

    def _reaped(self, event: Gone) -> None:
        """On the reaper's thread."""
        self._host.tell(News(functools.partial(self._on_gone, event), event))

    def _on_gone(self, event: Gone) -> None:
        process = self._processes[event.slot]
        self._unwatch_death(process)
        self._drain(process)
        self._unwatch(process.channel.fileno())
        process.traces.usage = event.evidence.noted or 0, event.evidence.usage
        del self._processes[event.slot]
        self._unclosed.gone(process)
        self._host.happened(event, process)

    # --- helpers -----------------------------------------------------------------------------

    def _send(
        self,
        process: WorkerProcess,
        kind: Kind,
        attempt: int = 0,
        content: Content | None = None,
        place: int = 0,
        notes: bytes = b"",
    ) -> bool:
        channel = process.channel
        try:
            channel.send(kind, attempt, content, place, notes)
        except (ChannelClosed, OSError, MemoryError):
            return False
        if channel.wants_write:
            self._poller.modify(channel.fileno(), _READ | _WRITE)
        return True

    def _share(self, process: WorkerProcess, shared: Sequence[Any]) -> bool:
        """Send a worker the shared data of a call that it does not have yet."""
        for source in shared:
            if source.number in process.shared:
                continue
            if not self._share(process, source.shared):
                return False
            parcel = source.parcel_for(packets=self.config.packets)
            if not self._send(process, source.kind, source.number, parcel, notes=source.notes):
                return False
            if source.kind != Kind.RESULT:  # which is the next call's own
                process.shared.add(source.number)
                source.used_by(self)
        return True

    def _on_forget(self, number: int) -> None:
        for process in list(self._processes.values()):
            if number in process.shared:
                process.shared.discard(number)
                self._host.replan()  # its socket may be full
                try:
                    self._send(process, Kind.FORGET, number)  # if not: its death is coming
                except Exception as error:  # noqa: BLE001 - it is logged
                    self._host.fault("having it forget data", process, error)

    def _unwatch(self, fd: int) -> None:
        self._host.step("unwatching", None, lambda: self._poller.unwatch(fd))

    def _unwatch_death(self, process: WorkerProcess) -> None:
        self._unwatch(process.death)
        if process.lifeline is not None:
            self._unwatch(process.lifeline)
        self._hidden.discard(process)

    def _pause(self) -> None:
        self.pause = min(filter(None, (self._hidden.pause, self._pipes.pause)), default=None)


def _end_unknown(process: WorkerProcess) -> None:
    """End a worker whose pool has ended meanwhile."""
    process.end()
    process.close()


__all__ = ["LocalFleet"]

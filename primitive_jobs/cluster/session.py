"""`Session`: the workers that one pool has on a node; a `LocalFleet` whose engine is elsewhere.

It stands where an engine stands on the pool's own machine, with a thread of its own (`run`), which
owns the fleet. The node's event loop tells it what the pool has said (`obey`), and to end.

The pool may be gone without a word: its machine, or the network. So the session has a lease. It
asks for one every third of its length; what is granted ends so many seconds after it was *asked*
for, on the clock here. The pool takes these jobs for lost only when so many seconds have passed
since it *granted* one, which is later. At its end the guard kills the workers, a process of its own
that works on where this one is frozen: so no job runs any more when the pool runs it elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from .._common.naming import one_line
from .._common.thread_variables import thread_settings
from .._common.threads import make_thread
from .._engine.events import (
    Died,
    Event,
    Gone,
    InitFailed,
    NotTaken,
    OverMemory,
    Ready,
    Started,
    StartFailed,
)
from .._engine.fleet import FleetThread, News, Worker
from .._engine.poller import Bell, Poller
from .._local.fleet import LocalFleet
from .._procs.guard import lease_clock
from .._procs.process import WorkerConfig
from .._wire.evidence import Evidence
from .._wire.initializer import Initializer
from .._wire.messages import Kind, Message
from .._wire.parcel import Content, Parcel
from ..logs import report_here
from .frames import answer_frame, evidence_as_dict, unpacked
from .line import URGENT, Frame
from .traces import TraceRelay

_NEVER = -1.0


class _Data:
    """Shared data that the pool has sent; what `LocalFleet` knows of a `Source`."""

    def __init__(self, frame: Frame, shared: Sequence[_Data]) -> None:
        self.number: int = frame["number"]
        self.kind = Kind(frame["kind"])
        self.notes: bytes = frame["notes"]
        self.shared = shared
        content = unpacked(frame)
        self._parcel = content if isinstance(content, Parcel) else Parcel(content, to_file=False)

    def parcel_for(self, *, packets: bool) -> Parcel:
        """What to send to a worker; one file, and its descriptor for each of them."""
        return self._parcel if packets else self._parcel.copy_of_bytes()

    def used_by(self, user: object) -> None:
        """The pool says itself when it is to be forgotten."""


class Session:
    """What one pool has on this node.

    Args:
        config: What all its workers have in common, as a frame.
        cpus: CPUs of the node.
        places: Workers that it may have at a time here, by Dask's threads.
        send: Sends a frame to the pool: (frame, lane, data); any thread.
        over: Called with a slot that has no process any more, and gets none; on any thread.
        ended: Called when nothing is left; on any thread.
    """

    def __init__(
        self,
        config: Frame,
        *,
        cpus: int,
        places: int,
        send: Callable[..., object],
        over: Callable[[int], object],
        ended: Callable[[], object],
    ) -> None:
        self._send = send
        self._over = over
        self._ended = ended
        self._lease: float = config["lease"]  # s
        # The pool counts from when it hears our answer, which is later.
        self._lease_end: float = lease_clock() + self._lease
        self._asked: dict[int, float] = {}  # when, by number
        self._ask_at = 0.0
        self._count = 0
        self._commands: collections.deque[Any] = collections.deque()
        self._data: dict[int, _Data] = {}
        self._incomplete: list[Frame] = []  # what refers to data that has not come yet
        self._starting: dict[int, bool] = {}  # by slot: whether that is still wanted
        self._dying: set[int] = set()
        self._ending = False
        self._bell = Bell()
        self.report = report_here
        self.poller = Poller()
        self.poller.watch(self._bell.fileno(), self._bell.hush)
        self._fleet = LocalFleet(_worker_config(config, cpus, places))
        self._fleet.open(self)
        self._relay = TraceRelay(self._fleet.workers, send)
        self._fleet.lease(self._lease_end)
        self._threads = [make_thread("node", self.run)]
        for thread in self._fleet.threads():
            self._threads.append(make_thread(thread.name, functools.partial(_be, thread)))

    # --- for any thread ----------------------------------------------------------------------

    def begin(self) -> None:
        """Start the threads."""
        for thread in reversed(self._threads):
            thread.start()

    def obey(self, frame: Frame) -> None:
        """Do what the pool has said."""
        self.tell(frame)

    def evict(self, slot: int) -> None:
        """The place of a worker is no more: end it; without one, harmless."""
        self.tell({"frame": "evict", "slot": slot})

    def refuse(self, slot: int) -> None:
        """Tell the pool that no worker is started, as the place is no more."""
        error = RuntimeError("its place was given back before the process was started")
        frame, _ = _frame_of(StartFailed(slot, Evidence(noted=0, error=error)), None)
        self._send(frame, slot)

    def reclaim(self, slot: int) -> None:
        """Tell the pool that others want the place of a worker."""
        self._send({"frame": "reclaimed", "slot": slot}, slot)

    def end(self) -> None:
        """End all workers, then the session."""
        self.tell(None)

    def tell(self, command: Any) -> None:
        """Have the thread take in a frame, an event, `News`, or None: the end."""
        self._commands.append(command)
        self._bell.ring()

    # --- the thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Be the thread."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._is_over():
                self._wait()
                self._take_all()
        except BaseException as error:  # noqa: BLE001 - it is logged
            self.report(logging.CRITICAL, "a node's workers are ended", error=error)
            self._fleet.put_down()
        finally:
            self._close()

    def _is_over(self) -> bool:
        return self._ending and not self._fleet.workers and not self._fleet.coming

    def _take_all(self) -> None:
        while self._commands:
            command = self._commands.popleft()
            try:
                self._take(command)
            except Exception as error:  # noqa: BLE001 - it is logged
                self._not_taken(command, error)

    def _wait(self) -> None:
        """Wait for something to happen, and take in what the fleet's descriptors show."""
        timeout = self._keep_lease()
        for pause in (self._fleet.pause, self._relay.pause()):
            if pause is not None and pause >= 0:
                timeout = pause if timeout < 0 else min(timeout, pause)
        self.poller.handle(self.poller.poll(0 if self._commands else timeout))
        if self._fleet.pause is not None:
            self._fleet.look()
        self.step("looking at its jobs", None, self._relay.look)

    def _take(self, command: Any) -> None:
        match command:
            case News():
                command.take_in()
            case dict():
                self._obey(command)
            case None:
                self._end()
            case _:
                self.happened(command)

    def _not_taken(self, command: Any, error: Exception) -> None:
        event = command.event if isinstance(command, News) else None
        self.report(
            logging.ERROR, "a node could not take in %s", type(command).__name__, error=error
        )
        if event is not None:
            self.happened(event)
        elif isinstance(command, dict) and command["frame"] == "start":
            self.happened(StartFailed(command["slot"], Evidence(noted=0, error=error)))
        elif isinstance(command, dict) and command.get("slot") in self._fleet.workers:
            self._kill(command["slot"])

    def _end(self) -> None:
        self._ending = True
        for slot in list(self._fleet.workers):
            self._kill(slot)

    def _close(self) -> None:
        self._fleet.end()
        for thread in self._threads[1:]:
            thread.join()
        with contextlib.suppress(Exception):
            self._fleet.close()
        self.poller.close()
        self._bell.close()
        self._fleet.let_go()
        self._ended()

    # --- the lease ---------------------------------------------------------------------------

    def _keep_lease(self) -> float:
        """Ask for the next lease, if it is time; return the seconds until something is due."""
        now = lease_clock()
        if self._ending:
            return _NEVER
        if now >= self._lease_end:
            text = "a pool was silent for %g s: its workers here are ended"
            self.report(logging.WARNING, text, self._lease)
            self._send({"frame": "bye"}, URGENT)
            self._end()
            return 0.0  # there may be no worker whose end would be told
        if now >= self._ask_at:
            self._count += 1
            self._asked[self._count] = now
            self._ask_at = now + self._lease / 3
            self._send({"frame": "lease", "number": self._count}, URGENT)
        return max(0.0, min(self._ask_at, self._lease_end) - now)

    def _granted(self, number: int) -> None:
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        for earlier in [n for n in self._asked if n < number]:
            del self._asked[earlier]
        self._lease_end = max(self._lease_end, asked + self._lease)
        self._fleet.lease(self._lease_end)

    # --- what the pool says ------------------------------------------------------------------

    def _obey(self, frame: Frame) -> None:
        slot = frame.get("slot", 0)
        match frame["frame"]:
            case "grant":
                self._granted(frame["number"])
            case "start":
                self._start(slot)
            case "run" | "share":
                self._incomplete.append(frame)
                self._take_complete()
            case "forget":
                self._data.pop(frame["number"], None)
                self._fleet.forget(frame["number"])
            case "kill":
                self._kill(slot, ask_stack=frame["ask_stack"])
            case "evict":
                self._evict(slot)
            case name if slot in self._fleet.workers and slot not in self._dying:
                self._do(name, slot, frame)

    def _do(self, name: str, slot: int, frame: Frame) -> None:
        match name:
            case "leave":
                self._fleet.leave(slot)
            case "terminate":
                self._fleet.terminate(slot)
            case "watch":
                worker = self._fleet.workers[slot]
                self._fleet.memory.watch(worker, frame["attempt"], frame["limit"])
            case "unwatch":
                self._fleet.memory.unwatch(slot)

    def _start(self, slot: int) -> None:
        if self._ending:
            self.happened(StartFailed(slot, Evidence(noted=0)))
        else:
            self._starting[slot] = True
            self._fleet.start(slot)

    def _evict(self, slot: int) -> None:
        self._fleet.call_off(slot)
        if slot in self._starting:
            self._starting[slot] = False
        self._kill(slot)

    def _kill(self, slot: int, *, ask_stack: bool = False) -> None:
        if slot in self._fleet.workers and slot not in self._dying:
            self._dying.add(slot)
            # It may not have been told to, and hears no more of it.
            self._fleet.memory.unwatch(slot)
            self._fleet.kill(slot, ask_stack=ask_stack)

    def _take_complete(self) -> None:
        """Take in what refers to nothing that is still on its way; that may complete more."""
        rest = self._incomplete
        while True:
            complete = [f for f in rest if all(n in self._data for n in f["shared"])]
            rest = [f for f in rest if f not in complete]
            self._incomplete = rest
            if not complete:
                return
            for frame in complete:
                if frame["frame"] == "run":
                    self._run(frame)
                else:
                    shared = [self._data[number] for number in frame["shared"]]
                    self._data[frame["number"]] = _Data(frame, shared)

    def _run(self, frame: Frame) -> None:
        slot, attempt, room = frame["slot"], frame["attempt"], frame["room"]
        if slot not in self._fleet.workers or slot in self._dying:
            return  # the pool is told, or has said so itself
        if room is not None and not self._fleet.memory.has_room(self._fleet.workers[slot], room):
            self.happened(NotTaken(slot, attempt, unfit=True))
            return
        content: Content = unpacked(frame)
        if frame["shared"]:
            if not isinstance(content, Parcel):
                content = Parcel(content, to_file=False)
            content.refers_to = [self._data[number] for number in frame["shared"]]
        if self._fleet.run(slot, attempt, content, room):
            self._relay.begin(slot, attempt)
            self._send({"frame": "taken", "slot": slot, "attempt": attempt}, slot)
        else:
            self.happened(NotTaken(slot, attempt))

    # --- the fleet's host --------------------------------------------------------------------

    def happened(self, event: Event, worker: Worker | None = None) -> None:
        """Tell the pool what became of a worker."""
        if isinstance(event, Gone):
            self.step("telling what it has left", worker, lambda: self._relay.end(event.slot, None))
        frame, data = _frame_of(event, worker)
        slot = frame["slot"]
        if isinstance(event, Started | StartFailed):
            wanted = self._starting.pop(slot, True)
            if isinstance(event, Started) and (self._ending or not wanted):
                self._kill(slot)
        if isinstance(event, Gone | StartFailed):
            self._dying.discard(slot)
            self._incomplete = [f for f in self._incomplete if f.get("slot") != slot]
        self._send(frame, slot, data)
        if isinstance(event, Died):
            self._kill(slot)
        elif isinstance(event, Gone | StartFailed):
            self._over(slot)

    def answered(self, slot: int, message: Message) -> int:
        """Tell the pool how a job has ended; nothing is sent ahead here."""
        self.step("telling what it has left", None, lambda: self._relay.end(slot, message.notes))
        frame, data = answer_frame("answer", slot, message)
        self._send(frame, slot, data)
        return 0

    def fault(self, what: str, worker: Worker, error: Exception) -> None:
        """End a worker about which something has raised."""
        text = "%s of worker %d raised; it is replaced"
        self.report(logging.ERROR, text, what, worker.pid, error=error)
        told = {"frame": "faulted", "slot": worker.slot, "what": what, "error": one_line(error)}
        self._send(told, worker.slot)
        self._kill(worker.slot)

    def step(self, what: str, worker: Worker | None, call: Callable[[], object]) -> None:
        """Do something whose failure changes nothing."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - it is logged
            pid = None if worker is None else worker.pid
            self.report(logging.ERROR, "%s of worker %s raised", what, pid, error=error)

    def replan(self) -> None:
        """Nothing is planned here."""


def _frame_of(event: Event, worker: Worker | None) -> tuple[Frame, Any]:
    """Return an event as a frame, and its data."""
    match event:
        case Started(slot=slot):
            assert worker is not None
            return {"frame": "started", "slot": slot, "pid": worker.pid}, None
        case StartFailed(slot=slot, evidence=evidence):
            told = evidence_as_dict(evidence)
            return {"frame": "start_failed", "slot": slot, "evidence": told}, None
        case Ready(slot=slot):
            return {"frame": "ready", "slot": slot}, None
        case InitFailed(slot=slot, message=message):
            return answer_frame("init_failed", slot, message)
        case NotTaken(slot=slot, attempt=attempt, unfit=unfit):
            return {"frame": "not_taken", "slot": slot, "attempt": attempt, "unfit": unfit}, None
        case OverMemory(slot=slot, attempt=attempt, peak=peak):
            return {"frame": "over_memory", "slot": slot, "attempt": attempt, "peak": peak}, None
        case Died(slot=slot):
            return {"frame": "died", "slot": slot}, None
        case Gone(slot=slot, evidence=evidence):
            return {"frame": "gone", "slot": slot, "evidence": evidence_as_dict(evidence)}, None
    raise TypeError(f"no fleet tells of {type(event).__name__}")


def _worker_config(config: Frame, cpus: int, places: int) -> WorkerConfig:
    share = max(1, cpus // places)
    initializer = None
    if config["initializer"] is not None:
        data = config.get("data") or b""
        initializer = Initializer.from_other_machine(data, config["buffers"], config["initializer"])
    return WorkerConfig(
        cpu_share=share,
        env={**thread_settings(config["threads"], share), **config["env"]},
        initializer=initializer,
        preload=tuple(config["preload"]),
        depth=config["depth"],
    )


def _be(thread: FleetThread) -> None:
    if not thread.signals:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    thread.run()


def cpu_count() -> int:
    """Return the CPUs of this node."""
    from loky import cpu_count as count

    return int(count() or os.cpu_count() or 1)


__all__ = ["Session", "cpu_count"]

"""An engine over a fleet without processes: what happens is a script, which is played to it.

No thread runs: whatever happens, happens while the dispatcher sleeps, which is a call of its poller
here.
"""

from __future__ import annotations

import functools
import select
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from primitive_jobs import ClusterError, JobOptions, JobStatus, PrimitiveJob
from primitive_jobs._engine.engine import Engine
from primitive_jobs._engine.events import Broken, Died, Gone, NotTaken, Ready, Started, Taken
from primitive_jobs._engine.fleet import (
    Direct,
    Fleet,
    FleetThread,
    Host,
    LateSender,
    Memory,
    News,
)
from primitive_jobs._engine.look import look_at
from primitive_jobs._engine.record import JobRecord
from primitive_jobs._engine.scheduler import Scheduler
from primitive_jobs._wire.evidence import Evidence
from primitive_jobs._wire.failures import dump_exception
from primitive_jobs._wire.messages import Kind, Message
from primitive_jobs._wire.notes import PAGE_SIZE
from primitive_jobs._wire.parcel import Parcel, pack
from primitive_jobs._wire.pickling import dumps_whole
from primitive_jobs.insight.traces import LocalTraces
from primitive_jobs.job import record_of, submit_to
from primitive_jobs.logs import report_here
from primitive_jobs.options import DEFAULT_OPTIONS

NODE = "tcp://node:1"
RESULT, FAILURE = dumps_whole(7), dump_exception(ValueError("no"))
LIMITS = {
    "priority": JobOptions(priority=1),
    "timeout": JobOptions(timeout=1e6),
    "memory": JobOptions(memory_limit=10**12),
    "retries": JobOptions(retries=1),
    "grace": JobOptions(grace=1e6),
}


class PlainScheduler(Scheduler):
    """Every event is followed by a look at everything."""

    def submitted(self, *told: Any) -> Any:
        return self._thought_over(super().submitted(*told))

    def answered(self, *told: Any) -> Any:
        actions = self._thought_over(super().answered(*told))
        self.steady = False
        return actions

    def _thought_over(self, actions: Any) -> Any:
        self._roster.actions = actions
        self._fill()
        self._roster.end()
        return actions


class Worker:
    """A worker that is played, and its channel."""

    wants_write = False
    node: str | None = None
    report = report_here

    def __init__(self, slot: int) -> None:
        self.slot, self.pid, self.fd = slot, 1000 + slot, 10**6 + slot
        self.traces = LocalTraces(memoryview(bytearray(PAGE_SIZE)))
        self.sent: list[Message] = []  # that nobody has received yet
        self.attempt = 0
        self.job: str | None = None  # how it goes, while it runs
        self.dead = False
        # Of a fleet that confirms: what is on its way to the worker: attempt, kind, room.
        self.coming: tuple[int, str, int | None] | None = None

    def take(self, attempt: int, kind: str) -> None:
        """Run a job, unless it is known already."""
        if self.dead or attempt <= self.attempt:
            return
        self.attempt, self.job = attempt, kind
        if "slow" not in kind:
            self.answer()

    def answer(self) -> None:
        """Send the outcome of the job."""
        if self.job is not None:
            raised = "raises" in self.job
            kind, body = (Kind.RAISED, FAILURE) if raised else (Kind.RETURNED, RESULT)
            self.sent.append(Message(kind, self.attempt, body))
            self.job = None

    def try_to_send(self, kind: int, attempt: int, payload: bytes) -> bool:
        """Take a job from its caller; the caller may not get to know that it has arrived."""
        assert kind == Kind.RUN
        how = self.kinds[payload]
        if "unsent" not in how:
            self.take(attempt, how)
        return "unsent" not in how and "unsure" not in how

    kinds: dict[Any, str]


class Measures(Memory):
    """Nobody holds too much."""

    def measures(self) -> bool:
        return True

    def held_by(self, worker: Any) -> int | None:
        return 0

    def has_room(self, worker: Any, room: int) -> bool:
        return True

    def watch(self, worker: Any, attempt: int, limit: int) -> None: ...
    def watch_offered(self, offer: Any, limit: int) -> None: ...
    def unwatch(self, slot: int) -> None: ...


class PlayedFleet(Fleet, Direct):
    """Its workers start, answer and die when the script says so; fast or plain.

    One that confirms has its workers on another node; they take jobs when the script says so.
    """

    def __init__(self, kinds: dict[Any, str], *, fast: bool, confirms: bool = False) -> None:
        self.confirms = confirms
        self.told: set[tuple[int, int]] = set()  # slots and attempts of which `Taken` was told
        self.played: dict[int, Worker] = {}
        self._kinds = kinds
        self._fast = fast
        self._memory = Measures()
        self.host: Host

    @property
    def memory(self) -> Memory:
        return self._memory

    @property
    def direct(self) -> Direct | None:
        return self if self._fast else None

    @property
    def workers(self) -> Any:
        return self.played

    def open(self, host: Host) -> None:
        self.host = host

    def threads(self) -> Sequence[FleetThread]:
        return ()

    def end(self) -> None: ...
    def close(self) -> None: ...
    def let_go(self) -> None: ...
    def abandon(self) -> None: ...
    def look(self) -> None: ...
    def call_off(self, slot: int) -> None: ...
    def terminate(self, slot: int) -> None: ...
    def put_down(self) -> None: ...
    def sends_late(self, sender: LateSender) -> None: ...

    @property
    def coming(self) -> bool:
        return False

    def start(self, slot: int, cpus: int = 1, *, spare: bool = False) -> None:
        assert cpus == 1, "it has no others"
        self.host.tell(News(functools.partial(self._on_process, slot)))

    def _on_process(self, slot: int) -> None:
        worker = Worker(slot)
        worker.kinds = self._kinds
        worker.node = NODE if self.confirms else None
        self.played[slot] = worker
        self.host.poller.handlers[worker.fd] = lambda _: self._on_readable(worker)
        self.host.happened(Started(slot), cast("Any", worker))
        self.host.happened(Ready(slot), cast("Any", worker))

    def _on_readable(self, worker: Worker) -> None:
        if worker.sent:
            self.taken_in(worker, worker.sent.pop(0))
        elif worker.dead:
            self.host.happened(Died(worker.slot))

    def leave(self, slot: int) -> None:
        self.played[slot].dead = True

    def kill(self, slot: int, *, ask_stack: bool = False) -> None:
        del ask_stack
        worker = self.played[slot]
        worker.dead = True
        # What was on its way may have arrived: each other time it has.
        began = worker.coming is not None and worker.coming[0] % 2
        noted = worker.coming[0] if began and worker.coming else worker.attempt
        worker.coming = None
        event = Gone(slot, Evidence(worker.pid, 9, noted=noted, node=worker.node))
        self.host.tell(News(functools.partial(self._on_gone, event), event))

    def _on_gone(self, event: Gone) -> None:
        worker = self.played[event.slot]
        while worker.sent:
            self.taken_in(worker, worker.sent.pop(0))
        del self.host.poller.handlers[worker.fd]
        del self.played[event.slot]
        self.host.happened(event, worker)

    def give_up(self, slot: int, error: BaseException) -> Gone:
        raise NotImplementedError

    def pack(self, body: bytes, buffers: Any, refers_to: Any, *, to_file: bool) -> Any:
        return pack(body, buffers, refers_to, to_file=False)

    def run(self, slot: int, attempt: int, content: Any, room: int | None) -> bool:
        # What is tried again has something ahead of its call.
        call = content.data if isinstance(content, Parcel) else content
        worker, kind = self.played[slot], self._kinds[bytes(call)]
        if self.confirms:
            worker.coming = attempt, kind, room
        else:
            worker.take(attempt, kind)
        return True

    def confirm(self, worker: Worker) -> None:
        """What was on its way to a worker has arrived."""
        if worker.coming is not None and not worker.dead:
            attempt, kind, _ = worker.coming
            worker.coming = None
            self.told.add((worker.slot, attempt))
            self.host.tell(Taken(worker.slot, attempt))
            worker.take(attempt, kind)

    def refuse(self, worker: Worker) -> None:
        """A worker does not take what was on its way: it is too large, or broken."""
        if worker.coming is not None:
            attempt, _, room = worker.coming
            worker.coming = None
            event = NotTaken(worker.slot, attempt, unfit=room is not None)
            self.host.tell(News(lambda: self.host.happened(event, cast("Any", worker))))

    def channel_to(self, slot: int) -> Any:
        return self.played[slot]

    def first_message(self, worker: Worker) -> Message | None:
        return worker.sent.pop(0) if worker.sent else None

    def lost(self, worker: Worker) -> None:
        raise NotImplementedError

    def taken_in(self, worker: Worker, message: Message) -> int:
        return self.host.answered(worker.slot, message)


class Asleep(BaseException):
    """The dispatcher would sleep for ever."""


Script = list[tuple[str, Any]]
State = tuple[Any, ...]


class Play:
    """One engine, and the script as it is played to it."""

    def __init__(
        self,
        script: Script,
        workers: int,
        spares: int,
        most: int | None,
        *,
        confirms: bool = False,
    ) -> None:
        self.confirms = confirms
        self.script = iter(script)
        self.jobs: list[PrimitiveJob[Any]] = []
        self.kinds: dict[Any, str] = {}
        self.workers = workers
        self.states: list[State] = []  # before each step of the script
        self.handed = 0
        self.rung = False
        self.given = workers, spares, most

    def run(self, *, fast: bool) -> Play:
        """Play it to the end, and then let everything come to its end."""
        kind = Scheduler if fast else PlainScheduler
        count, spares, most = self.given
        self.fleet = PlayedFleet(self.kinds, fast=fast, confirms=self.confirms)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "_start_threads", lambda self: None)
            self.engine = Engine(
                kind(count, None, most, spares, confirms=self.confirms), self.fleet
            )
            inbox, dispatcher = self.engine._inbox, self.engine._dispatcher
            patch.setattr(inbox.bell, "ring", self.ring)
            dispatcher.poller.poll = self.poll
            try:
                self.turn()
                self.script = self.endless()
                self.turn()
                dispatcher.tell_waiters()
                self.engine._jobs.leaving.let_go()
            finally:
                inbox.bell.close()
                dispatcher.poller.close()
        return self

    def turn(self) -> None:
        dispatcher = self.engine._dispatcher
        if self.engine._hand_off.offer is not None:  # it slept at the end of the script
            dispatcher._take_offer_back([])
        try:
            while not self.engine._scheduler.closed:
                dispatcher._turn()
                self.engine._scheduler.check()
        except Asleep:
            pass

    def endless(self) -> Iterator[tuple[str, Any]]:
        """Until all jobs have ended."""
        for _ in range(1000):
            if all(job.in_final_state() for job in self.jobs):
                return
            if self.confirms:
                yield "confirm", 0
            yield "answer", 0
        raise AssertionError(f"some do not end: {self.state()}")

    def ring(self) -> None:
        self.rung = True

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Be the poller: the script goes on until the dispatcher is woken."""
        self.check()
        while True:
            workers = self.fleet.played.values()
            ready = [(w.fd, select.POLLIN) for w in workers if w.sent or w.dead]
            if ready or self.rung or timeout == 0:
                self.rung = False
                return ready[:1]
            self.states.append(self.state())
            try:
                step, which = next(self.script)
            except StopIteration:
                raise Asleep from None
            getattr(self, step)(which)
            self.check()

    def check(self) -> None:
        running = [job for job in self.jobs if job.status() is JobStatus.RUNNING]
        assert len(running) <= self.workers

    def state(self) -> State:
        """What users see, and which workers have jobs."""
        jobs = [(job.status(), job.attempts, job.pid) for job in self.jobs]
        busy = [(w.slot, w.attempt, w.job) for w in self.fleet.played.values() if w.job]
        return jobs, busy

    def end(self) -> State:
        """What is known of it all at the end."""
        walks = [[status for status, _ in job.history()] for job in self.jobs]
        failures = [type(job.exception(0)).__name__ for job in self.jobs if not job.cancelled()]
        scheduler, engine = self.engine._scheduler, self.engine
        counts = look_at(scheduler, engine._jobs, self.fleet).counts
        slots = [(slot.state, slot.served) for slot in scheduler.slots.values()]
        return walks, failures, counts, slots

    # --- steps -------------------------------------------------------------------------------

    def submit(self, kind: str) -> None:
        number = len(self.jobs)
        job: PrimitiveJob[Any] = PrimitiveJob(abs, number)
        options = next((LIMITS[word] for word in kind.split() if word in LIMITS), DEFAULT_OPTIONS)

        if self.engine.broken is not None:
            with pytest.raises(ClusterError, match=r"^the scheduler was lost: closed$"):
                submit_to(job, self.engine, options)
            return
        enlist = self.engine.enlist

        def noted(record: JobRecord) -> None:
            self.kinds[record.payload] = kind
            enlist(record)

        before = {worker.attempt for worker in self.fleet.played.values()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.engine, "enlist", noted)
            submit_to(job, self.engine, options)
        self.jobs.append(job)
        self.handed += before != {worker.attempt for worker in self.fleet.played.values()}

    def cancel(self, which: tuple[int, float]) -> None:
        number, grace = which
        if self.jobs:
            record_of(self.jobs[number % len(self.jobs)]).ask_cancel(grace)

    def cancel_all(self, _: object) -> None:
        self.engine.ask_cancel_all(None)

    def answer(self, which: int) -> None:
        busy = [worker for worker in self.fleet.played.values() if worker.job]
        if busy:
            busy[which % len(busy)].answer()

    def confirm(self, which: int) -> None:
        self._of_those_it_comes_to(which, self.fleet.confirm)

    def refuse(self, which: int) -> None:
        self._of_those_it_comes_to(which, self.fleet.refuse)

    def _of_those_it_comes_to(self, which: int, do: Callable[[Worker], None]) -> None:
        workers = [worker for worker in self.fleet.played.values() if worker.coming]
        if workers:
            do(workers[which % len(workers)])

    def confirm_again(self, which: int) -> None:
        """What is told twice, or of an attempt that is over."""
        told = sorted(self.fleet.told)
        if told:
            self.fleet.host.tell(Taken(*told[which % len(told)]))

    def die(self, which: int) -> None:
        workers = [*self.fleet.played.values()]
        if workers:
            workers[which % len(workers)].dead = True
            workers[which % len(workers)].job = None

    def break_down(self, _: object) -> None:
        """No worker can be reached any more."""
        self.fleet.host.tell(Broken(ConnectionError("the scheduler was lost: closed")))

    def restart(self, _: object) -> None:
        if self.engine.accepting:
            self.engine.restart_workers()

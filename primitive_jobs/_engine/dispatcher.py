"""`Dispatcher`: the thread that owns a pool's state. It gets events from the inbox, the fleet's
descriptors and the clock, tells the scheduler, and carries out the scheduler's actions.

It alone uses the scheduler, the jobs' records, and the fleet. In each turn it empties the inbox,
plans (the next deadline, the next offer), sleeps with an offer to callers (`hand_over`) until
something happens, and handles that. A job that is submitted wakes it only where that makes a
difference before the next event (`needs_wake`).

Code that was imported anew in this process is noticed at the next submit (see `code_watch`), whose
caller puts `NewCode` into the inbox before its job. The job cannot overtake that: it may claim an
offer only as the first in the inbox, and the inbox is emptied in order, after the offer was taken
back. Nor can the job of another thread that saw the change: the note that the pool has been told
is written after the telling.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import time
from collections.abc import Callable
from typing import Any

from .._wire.evidence import Evidence
from .._wire.messages import Message
from ..errors import JobError
from ..logs import Report
from .dependencies import Dependencies
from .events import (
    Action,
    Actions,
    Ask,
    Assign,
    Begin,
    CancelAsked,
    CancelJob,
    Event,
    FailedEarly,
    Faulted,
    Kill,
    Leave,
    LookAtMemory,
    Lost,
    NewCode,
    NotTaken,
    OutOfMemory,
    Overcommit,
    Postpone,
    Refuse,
    Requeue,
    RestartAsked,
    SendAhead,
    Settle,
    ShutDown,
    Spawn,
    Teach,
    Terminate,
    ThreadDied,
    Unspawn,
    Unwatch,
    Watch,
    Withdrawn,
)
from .fence import Fence, Unfenced, bare
from .fleet import Fleet, News, Worker
from .hand_over import HandOff
from .inbox import Inbox
from .poller import Poller
from .recall import PAUSE, Recall
from .record import JobRecord
from .registry import JobRegistry
from .scheduler import Scheduler
from .worker_log import WorkerLog

_MOST_FAILURES = 3  # turns in a row that may fail, before the pool is given up
_SUSPENSION_PAUSE = 0.02  # s between two looks whether the workers, too, go on after Ctrl-Z
_MANY_FINAL = 16  # jobs at most whose ends are told together, while the workers are busy
_REST = 0.05  # s without any event, after which the handles of ended jobs are let go
_LONGEST = 86400.0  # s of sleep: what is due later is looked at again then
_READ = select.POLLIN


class Dispatcher:
    """One pool's state; `run` is its thread.

    Args:
        scheduler: What decides.
        fleet: Where the workers are; it is opened here.
        jobs: The records of the unfinished jobs.
        inbox: Where callers and other threads put commands.
        rest: Calls what it is given soon, on a thread where users' code may run.
        refuse: Called where no worker can be reached any more, with why: no job is taken then.
        report: Logs.

    Attributes:
        poller: Where it sleeps.
        fence: Handles an exception about a worker.
        hand_off: What is on offer while it sleeps.
        needs_wake: Whether a job that comes while it sleeps should wake it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        fleet: Fleet,
        jobs: JobRegistry,
        inbox: Inbox,
        rest: Callable[[Callable[[], object]], object],
        refuse: Callable[[BaseException], object],
        report: Report,
    ) -> None:
        self.report = report
        self._rest = rest
        self._refuse = refuse
        self._scheduler = scheduler
        self._fleet = fleet
        self._jobs = jobs
        self._inbox = inbox
        self._unfinished = jobs.unfinished
        self._workers, self._confirms = fleet.workers, fleet.confirms
        self._log = WorkerLog(report, scheduler, jobs.unfinished)
        self.fence = Fence(fleet, jobs, report)
        self.step = self.fence.step
        self._recall = Recall(scheduler, jobs, fleet, self._carry_out, inbox.tell, self.fence.log)
        self._lines = self._recall.slots
        self._dependencies = Dependencies(jobs, self.feed, inbox.tell)
        self.hand_off = HandOff(inbox, scheduler, jobs, fleet, self.feed, self._not_taken_over)
        # What follows from the scheduler's state; most of it stays while jobs are handed over.
        self._planned = False
        self._deadline: float | None = None  # that of the scheduler, or another one
        self.needs_wake = False
        self._renewed = 0  # the last change of code that workers were replaced for
        self.tell = inbox.tell
        self.poller = Poller()
        try:
            self.poller.watch(inbox.bell.fileno(), inbox.bell.hush)
            fleet.open(self)
        except BaseException:
            self.poller.close()
            raise

    # --- the thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Run the thread, until the pool has been shut down and nothing is left to do."""
        text = "a pool of at most %d workers is open"
        self.report(logging.DEBUG, text, self._scheduler.max_workers)
        failures = 0
        try:
            while not self._scheduler.closed:
                try:
                    self._turn()
                    failures = 0
                except Exception as error:
                    failures += 1
                    if failures > _MOST_FAILURES:
                        raise
                    self.fence.log("a turn of the dispatcher", None, error)
                    if self.hand_off.offer is not None:  # somebody may have claimed it
                        self._inbox.asleep = False
                        self._take_offer_back([])
        except BaseException as error:  # noqa: BLE001 - it is logged
            if isinstance(error, Unfenced) and error.__cause__ is not None:
                error = error.__cause__
            text = "the pool's dispatcher failed: all its jobs end"
            self.report(logging.CRITICAL, text, error=error)
            self._fail()

    def _turn(self) -> None:
        commands = self._inbox.commands
        if commands:
            self._empty_inbox()
            if self._scheduler.closed:
                return
        if not self._planned:
            self._plan()
        deadline = self._deadline
        events = self._sleep(deadline)
        self._inbox.asleep = False
        if self.hand_off.offer is not None:
            events = self._take_offer_back(events)
        if commands:  # before a free worker is given what waits: one of them may come first
            self._empty_inbox()
        self.poller.handle(events)
        if self._lines:
            self._recall.look()
        if self._fleet.pause is not None:
            self._fleet.look()
        if deadline is not None and time.monotonic() >= deadline and not self._suspended():
            self.feed(self._recall.tick())

    def _sleep(self, deadline: float | None) -> list[tuple[int, int]]:
        """Wait for something to happen; return the poller's events."""
        jobs, hand_off = self._jobs, self.hand_off
        hand_off.offer = hand_off.next
        if hand_off.next is None and jobs.postponed < len(jobs.untold) < _MANY_FINAL:
            # While more jobs end, some are told of together: each one told may mean two switches
            # between threads.
            jobs.postponed = len(jobs.untold)
            events = self.poller.poll(0)
            if events:
                return events
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        timeout = min(left, _LONGEST)  # below 0: no end
        inbox = self._inbox
        inbox.asleep = True
        if jobs.untold:
            # As late as can be: those who wake up want the interpreter's lock, and the offer.
            self.tell_waiters()
        rests = bool(jobs.leaving) and not self._lines
        if rests or self._lines:
            timeout = _sooner(timeout, _REST if rests else PAUSE)
        if self._fleet.pause is not None:
            timeout = _sooner(timeout, self._fleet.pause)
        events = self.poller.poll(0 if inbox.commands else timeout)
        if rests and not events and not inbox.commands:
            self._rest(jobs.leaving.part().let_go)
        return events

    def _take_offer_back(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        self._planned = False
        events, self._planned = self.hand_off.take_back(events)
        return events

    def _plan(self) -> None:
        self._planned = True
        self._deadline = self._scheduler.next_deadline()
        self.needs_wake = self._scheduler.needs_wake()
        self.hand_off.plan()

    def _suspended(self) -> bool:
        """Take the time of a Ctrl-Z off the limits; return whether that makes this tick void.

        It does too while workers are still stopped: nothing of theirs is due before they go on.
        """
        stops, still = self._fleet.suspensions()
        for stop in stops:
            self.feed(stop)
        if still:
            self._deadline = time.monotonic() + _SUSPENSION_PAUSE
            self._planned = True
        return still or bool(stops)

    def tell_waiters(self) -> None:
        """Wake those who wait for jobs that have ended."""
        self._jobs.tell_waiters(functools.partial(self.fence.log, "telling who waits", None))

    def _fail(self) -> None:
        """After a bug in the engine: end all jobs, and kill all processes."""
        job = self.hand_off.call_off()
        if job is not None and job.tracker.take():
            self._jobs.register(job)
        self._fleet.put_down()
        for number in list(self._unfinished):
            with contextlib.suppress(Exception):  # the others shall have their end all the same
                failure = JobError("the pool's dispatcher failed")
                self._jobs.settle(number, Lost(Evidence(error=failure)))

    # --- what is in the inbox ----------------------------------------------------------------

    def _empty_inbox(self) -> None:
        commands = self._inbox.commands
        for _ in range(len(commands)):
            command = commands.popleft()
            try:
                self._take(command)
            except Exception as error:  # noqa: BLE001 - it is logged
                self._not_taken(command, error)
            if self._scheduler.closed:
                return

    def _not_taken(self, command: Any, error: Exception) -> None:
        """A command has raised half-way: end what somebody may wait for because of it."""
        event = command.event if isinstance(command, News) else None
        what = type(event or command).__name__
        self.fence.log(f"taking in {what}", None, error)
        if isinstance(command, JobRecord):
            self._end_unknown(command, error)
        elif event is not None and event.slot in self._scheduler.slots:
            self.feed(event)
        elif isinstance(command, Ask):
            self.fence.step("answering", None, command.done)

    def _take(self, command: Any) -> None:
        match command:
            case JobRecord():
                self._take_in(command)
            case CancelJob(job=job, grace=grace, queued_only=queued):
                self.feed(CancelAsked(job.number, grace, queued))
            case Ask():
                command.answer = command.look()
                command.done()
            case News():
                command.take_in()
            case FailedEarly():
                self._jobs.failed_early()
            case NewCode(number=number):
                self._on_new_code(number)
            case ThreadDied(error=error):
                raise Unfenced from error
            case ShutDown(cancel=cancel):
                text = "a pool is shut down: its unfinished jobs are %s"
                self.report(logging.DEBUG, text, "cancelled" if cancel else "waited for")
                self.feed(command)
            case _:
                self.feed(command)

    def _on_new_code(self, number: int) -> None:
        if number <= self._renewed:  # several callers noticed
            return
        self._renewed = number
        if self._workers or self._fleet.coming:
            text = "code was reloaded: the pool's workers are replaced, busy ones later"
            self.report(logging.INFO, text)
            self.feed(RestartAsked())

    def _take_in(self, job: JobRecord) -> None:
        if job.tracker.outcome is not None:
            self._jobs.passed(job)
            return
        self._jobs.register(job)
        limit = job.limits.memory_limit
        if limit is not None and not self._fleet.memory.measures():
            self._jobs.settle(job.number, OutOfMemory(limit, None))
        elif job.awaits:
            self._dependencies.take_in(job)
        else:
            plain = self._recall.before_job(job)
            try:
                actions = self._scheduler.submitted(job.number, job.limits, time.monotonic(), plain)
            except Exception as error:
                raise Unfenced from error
            self._carry_out(actions)

    def _not_taken_over(self, job: JobRecord, worker: Worker, error: Exception) -> None:
        self.fault("taking over its job", worker, error)
        self._end_unknown(job, error)

    def _end_unknown(self, job: JobRecord, error: Exception) -> None:
        """End a job, if it did not get as far as the scheduler."""
        if job.number not in self._unfinished:
            self._jobs.register(job)
        if job.number not in self._scheduler.jobs:
            self._jobs.end_anyhow(job.number, bare(error))

    # --- for the fleet -----------------------------------------------------------------------

    def happened(self, event: Event, worker: Worker | None = None) -> None:
        """Log what became of a worker, and tell the scheduler."""
        self.step("logging", worker, lambda: self._log.happened(event, worker))
        self.feed(event)

    def replan(self) -> None:
        """Plan again: a worker's channel has become free, or full."""
        self._planned = False

    def answered(self, slot: int, message: Message) -> int:
        """Settle a job whose outcome its worker has sent, and give the worker its next job."""
        scheduler = self._scheduler
        if self._lines and not scheduler.waiting:
            self._recall.before_idle(slot)
        try:
            actions = scheduler.answered(slot, message.attempt, message, time.monotonic())
        except Exception as error:
            raise Unfenced from error
        if scheduler.steady:
            self._go_on(actions)
        else:
            self._carry_out(actions)
        return self._recall.attempt_of(slot)

    def _go_on(self, actions: Actions) -> None:
        """End one job, and see to it that the same worker has another; nothing else has changed."""
        settle = actions[0]
        assert type(settle) is Settle, "that is what steady means"
        try:
            # First: never do two RUNNING jobs have one worker.
            self._jobs.settle(settle.job, settle.fate)
            follow_up = self._do(actions[1]) if len(actions) > 1 else None
        except Exception as error:
            self._jobs.end_anyhow(settle.job, bare(error))
            raise  # the next job is the scheduler's and goes back to the queue
        if follow_up is not None:
            self.feed(follow_up)

    def fault(self, what: str, worker: Worker, error: Exception) -> None:
        """Log that something about a worker raised, and have it replaced."""
        self.fence.log(what, worker, error)
        self.feed(Faulted(worker.slot, bare(error)))

    # --- the scheduler's actions -------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Tell the scheduler an event, and carry out its actions."""
        self._carry_out(self._decide(event))

    def _decide(self, event: Event) -> Actions:
        if self._lines:
            self._recall.before(event)
        try:
            return self._scheduler.handle(event, time.monotonic())
        except Exception as error:
            raise Unfenced from error

    def _carry_out(self, actions: Actions) -> None:
        """Carry out actions; what follows from them is told to the scheduler in turn."""
        self._planned = False
        events: list[Event] = []
        self._do_each(actions, events)
        for event in events:  # it grows: of the jobs that wait, many may have been cancelled
            self._do_each(self._decide(event), events)

    def _do_each(self, actions: Actions, events: list[Event]) -> None:
        for action in actions:
            try:
                follow_up = self._do(action)
            except Exception as error:  # noqa: BLE001 - it is logged
                follow_up = self.fence.after(action, error)
            if follow_up is not None:
                events.append(follow_up)

    def _do(self, action: Action) -> Event | None:
        fleet, log = self._fleet, self._log
        match action:
            case Assign():
                return self._assign(action)
            case SendAhead():
                return self._recall.send(action)
            case Settle(job=number, fate=fate):
                self._jobs.settle(number, fate)
            case Begin(slot=slot, job=number):
                worker = self._workers[slot]
                self._unfinished[number].tracker.assigned(worker.pid, worker.node)
            case Watch(slot=slot, attempt=attempt, limit=limit):
                fleet.memory.watch(self._workers[slot], attempt, limit)
            case Unwatch(slot=slot):
                fleet.memory.unwatch(slot)
            case Requeue():
                self._jobs.requeued(action)
                log.requeued(action)
            case Spawn(slot=slot, cpus=cpus):
                log.ordered(slot)
                fleet.start(slot, cpus, spare=self._scheduler.slots[slot].spare)
            case LookAtMemory():
                fleet.memory.look()
            case Overcommit():
                log.overcommitted(action)
            case Postpone(seconds=seconds, spare=spare):
                log.postponed(seconds, spare=spare)
            case Unspawn(slot=slot):
                fleet.call_off(slot)
            case Teach(slot=slot):
                fleet.teach(slot)
            case Leave(slot=slot):
                log.leaves(self._workers[slot])
                fleet.leave(slot)
            case Terminate(slot=slot):
                log.terminated(self._workers[slot])
                fleet.terminate(slot)
            case Kill(slot=slot, ask_stack=ask_stack):
                log.killed(self._workers[slot])
                fleet.kill(slot, ask_stack=ask_stack)
            case Refuse(error=error):
                log.broken(error)
                self._refuse(error)
        return None  # as for `Close`, which `run` sees

    def _assign(self, action: Assign) -> Event | None:
        slot, attempt = action.slot, action.attempt
        job, worker = self._unfinished[action.job], self._workers[slot]
        if action.room is not None and not self._fleet.memory.has_room(worker, action.room):
            self._log.unfit(worker)
            return NotTaken(slot, attempt, unfit=True)
        if not job.tracker.take():
            self._jobs.withdrawn(action.job)
            return Withdrawn(slot, attempt)
        if not self._confirms:
            # Before the sending: whatever the job does, somebody who sees it sees RUNNING too.
            job.tracker.assigned(worker.pid, worker.node)
        job.sit(worker.traces, attempt, self._scheduler.tokens_of(slot))
        sent = self._fleet.run(slot, attempt, job.payload, action.room)
        return None if sent else NotTaken(slot, attempt)


def _sooner(timeout: float, pause: float) -> float:
    """The shorter one of a poller's timeout, which is negative if it has no end, and a pause."""
    return pause if timeout < 0 else min(timeout, pause)


__all__ = ["Dispatcher"]

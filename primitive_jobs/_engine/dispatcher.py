"""`Dispatcher`: the threads of one pool. Facts in, through inbox, sockets, pidfds and the clock;
the scheduler's actions out.

============  =====================================================================================
thread        owns
============  =====================================================================================
dispatcher    scheduler, the records of jobs taken in, the pool's ends of all channels
spawner       the starting of processes; it never ends while a worker lives, since the kernel sends
              a worker SIGKILL when the thread that started it ends
reaper        the killing and reaping of processes
callbacks     nothing: it runs users' callbacks, and logs what the others have to say
memory        which workers are watched; it wakes up only while a running job has a memory limit
============  =====================================================================================

There is no lock; `lock_free` says what is relied on. Every thread says what it has to say by
appending to the inbox, a deque, and waking the dispatcher; both can be done in a signal handler and
in a finalizer. The dispatcher sets `_asleep` before it looks into the inbox for the last time, and
a sender looks at `_asleep` after it appended: so no message is left lying while the dispatcher
sleeps. A job alone need not wake it where its coming makes no difference before the next event
(`_needs_wake`).

Nor where its caller can give it to an idle worker itself, which saves the two wake-ups of a round
trip that are not the worker's. Before the dispatcher sleeps it may make an *offer*: one idle worker
and the number that the next attempt will have. The claims on it decide, as the gate of a job does,
whose it is: the first job appended there or, with None, the dispatcher again, which takes each
offer back before it does anything else. So a claimed job is seen by the dispatcher wherever its
caller was interrupted. If the caller has not sent it by then, the dispatcher does so too: a worker
takes no notice of an attempt that it has had.

Code that was imported anew in this process is noticed at the next submit (see `code_watch`), whose
caller has the workers replaced: it says so before it appends its job. The job cannot pass that: it
may claim an offer only as the first in the inbox, and the dispatcher empties the inbox in order,
after it has taken the offer back. Nor can the job of another thread that saw the change: what says
that the pool has been told is written after the telling.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import select
import signal
import threading
import time
from _thread import allocate_lock  # of threads, whoever patches `threading` later
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._common.lock_free import members, snapshot
from .._common.naming import one_line
from .._common.threads import make_thread
from .._local.memory_watch import MemoryWatch
from .._local.reaper import Reaper
from .._local.spawner import HasProcess, Spawner
from .._procs.guardian import the_guard
from .._procs.probe import Unmeasurable, measurable, resident
from .._procs.process import WorkerConfig, WorkerProcess
from .._procs.surroundings import check_unpatched
from .._wire.channel import ChannelClosed, Content, PacketChannel, Parcel, pack
from .._wire.evidence import Evidence
from .._wire.messages import Kind, Message
from ..errors import (
    JobError,
    PoolClosedError,
)
from ..logs import Report
from ..options import DEFAULT_LIMITS
from ..status import JobStatus
from . import lifetime
from .callbacks import Callbacks
from .code_watch import code_watch
from .events import (
    Action,
    Actions,
    Ask,
    Assign,
    CancelAllAsked,
    CancelAsked,
    CancelJob,
    Close,
    Died,
    Event,
    FailedEarly,
    Fate,
    Faulted,
    Forget,
    Gone,
    HandedOver,
    InitFailed,
    Kill,
    Leave,
    Lost,
    NotTaken,
    OutOfMemory,
    Postpone,
    Ready,
    Requeue,
    Resized,
    RestartAsked,
    Settle,
    ShutDown,
    Spawn,
    Started,
    StartFailed,
    Suspended,
    Terminate,
    Tick,
    TurnedAway,
    Unspawn,
    Unwatch,
    Watch,
    Withdrawn,
)
from .fence import Fence, Unfenced, bare
from .poller import Bell, Poller
from .record import Ended, JobRecord
from .scheduler import IDLE, STARTING, WARMING, Scheduler
from .sources import Source
from .tracker import HandOver, Outcome, StatusTracker, of_the_parent
from .unseen import Unseen
from .verdicts import finished, outcome_of
from .worker_log import WorkerLog

if TYPE_CHECKING:
    from .._wire.seeding import Seeds

_MOST_FAILURES = 3  # turns of the dispatcher in a row that may fail, before it is given up
_SUSPENSION_PAUSE = 0.02  # s between two looks whether the workers, too, go on after Ctrl-Z
_MANY_FINAL = 16  # jobs at most whose ends are told together, while the workers are busy
_REST = 0.05  # s without any event, after which the handles of ended jobs are let go
_LOOK = 0.1  # s between two looks at a worker whose death a process that it has forked may hide
_LONGEST = 86400.0  # s of sleep: what is due later is looked at again then
_DONE = JobStatus.DONE
_READ = select.POLLIN
_WRITE = select.POLLOUT


class _Offer(HandOver):
    """An idle worker that the next job may be given to by its caller.

    Attributes:
        claims: The first one has it: a job, or None for the dispatcher.
        sent: The job certainly went out.
        over: Whoever claimed it does not use the channel any more.
    """

    __slots__ = ("attempt", "channel", "claims", "event", "over", "process", "sent")

    def __init__(self, process: WorkerProcess, channel: PacketChannel, attempt: int) -> None:
        # All here, without a call of the base's: one is made for every job.
        self.pid = process.pid
        self.when = 0.0
        self.noted = False
        self.process = process
        self.channel = channel
        self.event = (channel.fd, _READ)  # what the poller says when the answer is there
        self.attempt = attempt
        self.claims: list[JobRecord | None] = []
        self.sent = False
        self.over = False


class _ThreadDied:
    """A thread of the pool, without which it cannot go on, has ended by an exception."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _NewCode:
    """What workers have imported may be outdated, by the number of `CodeWatch.changes`."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Counts(NamedTuple):
    """What there is in a pool; of those that have ended, all that it was ever given."""

    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    idle: int  # workers, as the next
    starting: int


class Dispatcher:
    """One pool's machinery; runs from its making until `shut_down` has had its full effect.

    Args:
        max_workers: Most processes with a job at a time.
        idle_timeout: Seconds after which an idle worker leaves; None: never.
        config: How workers are started.
        max_jobs_per_worker: Jobs after which a worker is replaced; None: never.
        spare_workers: Idle workers beyond `max_workers` that stand ready while all those are busy.
        cancel_at_exit: Whether the interpreter's end cancels what is unfinished.
        seeds: Where jobs get the keys of their randomness; None: nowhere.
        made: Where it puts itself before it starts anything, for whoever is to end it.

    Attributes:
        owner: The process that it works in.
        of_parent: Whether this is a fork of that process.
    """

    def __init__(
        self,
        max_workers: int,
        idle_timeout: float | None,
        config: WorkerConfig,
        *,
        max_jobs_per_worker: int | None = None,
        spare_workers: int = 0,
        cancel_at_exit: bool = False,
        seeds: Seeds | None = None,
        made: list[Dispatcher] | None = None,
    ) -> None:
        lifetime.register_exit_hook()  # first: it may refuse
        code_watch.install()
        # Callers': up to where they have looked at it, and what they have told of.
        self._tick = code_watch.tick
        self._code = code_watch.changes()
        self._renewed = self._code  # the dispatcher's: the last that it replaced workers for
        self.accepting = True
        self.cancel_at_exit = cancel_at_exit
        self.seeds = seeds
        self._config = config
        self._scheduler = Scheduler(max_workers, idle_timeout, max_jobs_per_worker, spare_workers)
        self._jobs: dict[int, JobRecord] = {}
        self._workers: dict[int, WorkerProcess] = {}
        self._job_count = 0
        self._ended_jobs = [0, 0, 0]  # DONE, ERROR, CANCELLED
        self._in_files: set[int] = set()  # jobs whose payload holds a descriptor
        self._file_limit = file_limit()
        self._inbox: collections.deque[Any] = collections.deque()
        self._asleep = False
        # What follows from the scheduler's state; all but the numbers stays as it is while one job
        # after the other is handed over and answered.
        self._planned = False
        self._deadline: float | None = None  # that of the scheduler, or another one
        self._stops = 0  # by Ctrl-Z, that the scheduler knows of
        self._needs_wake = False  # a job that comes while it sleeps should wake it
        self._offer: _Offer | None = None  # set while it sleeps
        self._next_offer: _Offer | None = None
        self._in_limbo: list[_Offer] = []  # claimed by a caller that may still be sending
        self._unclosed: set[WorkerProcess] = set()  # gone, but in use by such a caller
        self._given_up: set[WorkerProcess] = set()  # of these: they could not be killed
        self._hidden: set[WorkerProcess] = set()  # whose death may not show: see _look_for_deaths
        self._next_look = 0.0  # at those
        self._leaving = Ended()
        self._final: list[StatusTracker] = []  # whose waiters are to be told
        self._postponed = 0  # of these, those that might have been told before
        self._ended = False
        self.owner = os.getpid()
        self.of_parent = False
        self._end_waiters: list[Callable[[], object]] = []
        self._gone_waiters: list[Callable[[], object]] = []
        self._left: list[None] = []  # by the two threads that end last
        self._callbacks = Callbacks()
        self._report = Report(self._callbacks.call)
        self._spawner = Spawner(config, self._tell, self._report)
        self._memory_watch = MemoryWatch(self._tell, self._report)
        self.unseen = Unseen(functools.partial(_call_late, self._callbacks), self._ended_jobs)
        self._log = WorkerLog(self._report, self._scheduler, self._jobs)
        self._fence = Fence(self, self._workers, self._report)
        with contextlib.ExitStack() as undo:
            self._bell = Bell()
            undo.callback(self._bell.close)
            self._reaper = Reaper(self._tell)
            undo.callback(self._reaper.close)
            self._poller = Poller()
            undo.pop_all()
        self._poll = self._poller.poll
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._watch(self._bell.fileno(), self._bell.hush)
        self._begun: list[bool] = []  # first: whether the dispatcher's thread came to run
        self._own_threads: set[int] = set()  # idents of all but the one for callbacks
        self._threads = [
            make_thread(name, target)
            for name, target in (
                ("dispatcher", self._dispatch),
                ("spawner", functools.partial(self._be_thread, self._spawner.run, signals=True)),
                ("reaper", functools.partial(self._be_thread, self._reaper.run)),
                ("memory", functools.partial(self._be_thread, self._memory_watch.run)),
                ("callbacks", self._callbacks.run),
            )
        ]
        if made is not None:
            made.append(self)
        self._start_threads()

    def _start_threads(self) -> None:
        try:
            the_guard.open(self, self._report)
            lifetime.pools.add(self)
            # The dispatcher comes last: it ends the others.
            for thread in reversed(self._threads):
                thread.start()
        except BaseException as error:
            self.accepting = False
            # An interrupt may come while its thread starts, which then has not begun yet.
            self._begun.append(False)
            if self._begun[0]:
                self._tell(ShutDown(cancel=True, at_once=True))
            else:
                self._end()
            if isinstance(error, RuntimeError):
                raise PoolClosedError(
                    "no pool can be started: the interpreter is going down, or no thread is left"
                ) from error
            raise

    # --- for callers, on any thread ----------------------------------------------------------

    def pack(
        self, body: bytes, buffers: list[memoryview], refers_to: tuple[Source, ...]
    ) -> Content:
        """Make a serialized call ready to be sent; raises OSError or MemoryError."""
        to_file = self._config.packets and len(self._in_files) < self._file_limit
        return pack(body, buffers, refers_to, to_file=to_file)

    def enlist(self, record: JobRecord) -> None:
        """Queue a job with its payload; raises `PoolClosedError` if the pool takes none."""
        if not self.accepting:
            self.check_open()
        if code_watch.tick != self._tick:
            self._look_at_code()
        if self._leaving:
            self._leaving.let_go()
        offer = self._offer  # before the job is in the inbox: see _hand_over
        self._inbox.append(record)
        if offer is not None and self._hand_over(offer, record):
            return
        if self._asleep:
            # One that holds a descriptor is to be counted before too many do.
            if self._needs_wake or isinstance(record.payload, Parcel):
                self._wake()
        elif self._ended:
            self._refuse()

    def _look_at_code(self) -> None:
        """If code has changed, have it told before the next job of any caller who knows."""
        check_unpatched()  # what patches imports first
        tick = code_watch.tick  # first: what comes later is looked at by the next one
        number = code_watch.changes()
        if number != self._code:
            self._tell(_NewCode(number))
            self._code = number
        self._tick = tick

    def _hand_over(self, offer: _Offer, job: JobRecord) -> bool:
        """Give a job to the worker on offer; False if the dispatcher has to see to it."""
        payload, limits = job.payload, job.limits
        if type(payload) is not bytes:
            return False
        if limits is not DEFAULT_LIMITS and not limits.unlimited:
            return False
        try:
            if self._inbox[0] is not job:
                return False  # others came first
        except IndexError:  # the dispatcher has it
            return False
        # It took no job out of the inbox since the offer was read, unless it took back the offer.
        claims = offer.claims
        claims.append(job)
        if claims[0] is not job:
            return False
        try:
            offer.at, offer.when = time.monotonic(), time.time()
            if not job.tracker.take(offer):
                return True  # cancelled meanwhile
            offer.sent = offer.channel.try_to_send(Kind.RUN, offer.attempt, payload)
            return offer.sent
        finally:
            offer.over = True

    def check_open(self) -> None:
        """Raise `PoolClosedError` unless jobs are accepted."""
        if self.of_parent:
            raise PoolClosedError(
                f"the pool belongs to process {self.owner}, of which this one is a fork: use "
                "default_pool() here, or make a JobPool"
            )
        if not self.accepting:
            raise PoolClosedError("the pool was shut down: it takes no job any more")
        lifetime.check_not_exiting()

    def ask_cancel(self, record: JobRecord, grace: float) -> None:
        """Have a job stopped; returns at once."""
        self._tell(CancelJob(record, grace))

    def ask_cancel_all(self, grace: float | None) -> None:
        """Have every unfinished job stopped, after its own grace if None; returns at once."""
        self._tell(CancelAllAsked(grace))

    def forget(self, number: int) -> None:
        """Have the workers let shared data go; returns at once."""
        if not self._ended:  # later there may be no modules any more
            self._tell(Forget(number))

    def fail_early(self, record: JobRecord, failure: BaseException) -> None:
        """End a job that cannot be enlisted; returns at once."""
        if record.tracker.fail_early(failure, record, self.unseen):
            self._tell(FailedEarly())
        record.let_go()

    def call_back(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on the thread for callbacks."""
        self._callbacks.call(callback)

    def check_may_wait(self) -> None:
        """Raise `JobError` where the waiting would be for ever."""
        if self.of_parent:
            raise of_the_parent(self.owner)
        if threading.get_ident() in self._own_threads:
            self._check_thread()

    def _check_thread(self) -> None:
        if threading.get_ident() in self._own_threads:
            # Foreign code gets here only through a finalizer that the collector runs.
            raise JobError("a pool's own thread cannot wait for a job of the pool")

    def unfinished(self) -> list[JobRecord]:
        """Those of the jobs that were submitted and are not final."""
        self._check_thread()
        lock = allocate_lock()
        lock.acquire()
        question = Ask(lock.release)
        self._tell(question)
        lock.acquire()
        return [job for job in question.answer if job.tracker.outcome is None]

    def counts(self) -> Counts:
        """What there is just now; never blocks, and may be late by what is happening."""
        # Other threads go on meanwhile: in this order, no job is counted twice on its way.
        done, failed, gone = self._ended_jobs
        running = self._scheduler.running
        states = [slot.state for slot in list(self._scheduler.slots.values())]
        waiting = self._scheduler.waiting
        coming = [
            job.tracker.status is JobStatus.RUNNING
            for job in snapshot(self._inbox)
            if isinstance(job, JobRecord) and job.tracker.outcome is None
        ]
        handed = sum(coming)
        return Counts(
            queued=waiting + len(coming) - handed,
            running=running + handed,
            done=done,
            failed=failed,
            cancelled=gone,
            idle=max(0, states.count(IDLE) - handed),
            starting=states.count(STARTING) + states.count(WARMING),
        )

    def resize(self, max_workers: int) -> None:
        """Have another number of workers from now on."""
        self.check_open()
        self._tell(Resized(max_workers))

    def restart_workers(self) -> None:
        """Have every worker replaced, a busy one after its job."""
        self.check_open()
        self._tell(RestartAsked())

    def shut_down(self, *, cancel: bool = False, at_once: bool = False) -> None:
        """Take no job any more, end when all are final; returns at once.

        `cancel` leaves each job its grace, unless ``at_once``, or where it was given before.
        """
        self.accepting = False
        self.unseen.keep_quiet()
        self._tell(ShutDown(cancel, at_once))

    def join(self) -> None:
        """Wait until everything is gone: jobs, processes, threads, descriptors."""
        self._check_thread()
        lock = allocate_lock()
        lock.acquire()
        self._end_waiters.append(lock.release)
        try:
            if not self._ended:
                lock.acquire()
        finally:
            self.forget_waiter(lock.release)
        for thread in self._threads:
            if thread is not threading.current_thread():  # a callback may shut its pool down
                thread.join()

    def call_when_gone(self, waiter: Callable[[], object]) -> None:
        """Have ``waiter`` called when `join` has nothing to wait for; at once if that is so.

        It is called on one of the pool's own threads, perhaps twice, and must not block.
        """
        waiters = self._gone_waiters
        if threading.current_thread() in self._threads:
            waiters = self._end_waiters  # it is a callback that waits, and `join` passes that over
        waiters.append(waiter)
        if self.gone or (waiters is self._end_waiters and self._ended):
            waiter()

    def forget_waiter(self, waiter: Callable[[], object]) -> None:
        """Take back what `call_when_gone` was given."""
        for waiters in (self._gone_waiters, self._end_waiters):
            with contextlib.suppress(ValueError):
                waiters.remove(waiter)

    @property
    def gone(self) -> bool:
        """Whether nothing is left but threads that are at their last line."""
        return len(self._left) > 1 or self.of_parent

    def _leave(self) -> None:
        """Tell that this thread ends; the callbacks' thread may end before or after the others."""
        self._left.append(None)
        if self.gone:
            with contextlib.suppress(IndexError):  # both threads may be in here
                while self._gone_waiters:
                    self._gone_waiters.pop()()

    def _tell(self, command: Any) -> None:
        self._inbox.append(command)
        if self._asleep:
            self._wake()
        elif self._ended:
            self._refuse()

    def _wake(self) -> None:
        self._bell.ring()
        if self._ended:
            self._refuse()

    # --- the dispatcher's thread -------------------------------------------------------------

    def _dispatch(self) -> None:
        self._begun.append(True)
        if not self._begun[0]:
            return  # whoever was making the pool was interrupted, and has ended it
        self._own_threads.add(threading.get_ident())
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        most = self._scheduler.max_workers
        self._report(logging.DEBUG, "a pool of at most %d workers is open", most)
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
                    self._fence.log("a turn of the dispatcher", None, error)
                    if self._offer is not None:  # somebody may have claimed it
                        self._asleep = False
                        self._take_offer_back([])
        except BaseException as error:  # noqa: BLE001 - it is logged
            if isinstance(error, Unfenced) and error.__cause__ is not None:
                error = error.__cause__
            text = "the pool's dispatcher failed: all its jobs end"
            self._report(logging.CRITICAL, text, error=error)
            self._fail()
        finally:
            try:
                self._end()
            finally:
                self._leave()

    def _turn(self) -> None:
        inbox = self._inbox
        if inbox:
            self._empty_inbox()
            if self._scheduler.closed:
                return
        if not self._planned:
            self._plan()
        self._offer = self._next_offer
        deadline = self._deadline
        timeout = -1.0  # no end
        if deadline is not None:
            timeout = min(max(0.0, deadline - time.monotonic()), _LONGEST)
        events: list[tuple[int, int]] = []
        if self._next_offer is None and self._postponed < len(self._final) < _MANY_FINAL:
            # While more jobs end, some are told of together: each one told may mean two switches
            # between threads.
            self._postponed = len(self._final)
            events = self._poll(0)
        if not events:
            self._asleep = True
            if self._final:
                # As late as can be: those who wake up want the interpreter's lock, and the offer.
                self._tell_waiters()
            if self._leaving:
                timeout = _sooner(timeout, _REST)
            if self._hidden:
                timeout = _sooner(timeout, _LOOK)
            events = self._poll(0 if inbox else timeout)
            if self._leaving and not events and not inbox:
                # Once, however long a callback may take.
                leaving, self._leaving = self._leaving, Ended()
                self._callbacks.call(leaving.let_go)
        self._asleep = False
        if self._offer is not None:
            events = self._take_offer_back(events)
        if inbox:  # before a free worker is given what waits: one of them may come first
            self._empty_inbox()
        for fd, mask in events:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(mask)
        if self._hidden:
            self._look_for_deaths()
        if deadline is not None and time.monotonic() >= deadline and not self._suspended():
            self._feed(Tick())

    def _look_for_deaths(self) -> None:
        """Where a pidfd is refused, a child of a worker holds what would tell the worker's end."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        for process in list(self._hidden):
            if process.is_dead():
                self._on_death(process)

    def _suspended(self) -> bool:
        """Have limits not count what was stopped with this program; return whether that matters.

        It does if workers still are stopped: nothing of theirs is due before they go on.
        """
        stops, still = the_guard.stops(self._stops)
        for since, until in stops:
            self._feed(Suspended(since, until))
        self._stops += len(stops)
        if still:
            self._deadline = time.monotonic() + _SUSPENSION_PAUSE
            self._planned = True
        return still or bool(stops)

    def _empty_inbox(self) -> None:
        for _ in range(len(self._inbox)):
            command = self._inbox.popleft()
            try:
                self._take(command)
            except Exception as error:  # noqa: BLE001 - it is logged
                self._not_taken(command, error)
            if self._scheduler.closed:
                return

    def _not_taken(self, command: Any, error: Exception) -> None:
        """What became of a command is not known; nobody shall wait for it in vain."""
        self._fence.log(f"taking in {type(command).__name__}", None, error)
        if isinstance(command, JobRecord):
            self._end_unknown(command, error)
        elif isinstance(command, (Gone, StartFailed)) and command.slot in self._scheduler.slots:
            self._feed(command)
        elif isinstance(command, Ask):
            self._fence.step("answering", None, command.done)

    def _tell_waiters(self) -> None:
        for tracker in self._final:
            try:
                tracker.tell_waiters()
            except Exception as error:  # noqa: BLE001 - it is logged
                self._fence.log("telling who waits for a job", None, error)
        self._final.clear()
        self._postponed = 0

    def _plan(self) -> None:
        self._planned = True
        self._deadline = self._scheduler.next_deadline()
        self._needs_wake = self._scheduler.needs_wake()
        self._next_offer = None
        place = self._scheduler.offer() if self.accepting else None
        if place is not None:
            process = self._workers[place[0]]
            channel = process.channel
            if isinstance(channel, PacketChannel) and not channel.wants_write:
                self._next_offer = _Offer(process, channel, place[1])

    def _take_offer_back(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """See whose the offer was; return the events that are still to be handled."""
        offer, self._offer = self._offer, None
        assert offer is not None
        self._planned = False
        offer.claims.append(None)
        job = offer.claims[0]
        if job is None:
            return events
        first = self._inbox.popleft()
        assert first is job, "it claimed the offer as the first in the inbox"
        offer.claims = [None]  # whoever comes late; and it does not hold the job any more
        if not offer.over:
            self._close_what_is_unused()
            self._in_limbo.append(offer)
        if not job.tracker.take():
            self._leaving.put(job)
            self._count(job.tracker.status)
            return events  # cancelled meanwhile, and not sent
        try:
            if offer.sent and len(events) == 1 and events[0] == offer.event:
                self._on_answer(offer, job)
                return []
            self._begin(offer, job)
        except Exception as error:  # noqa: BLE001 - it is logged
            self._fault("taking over its job", offer.process, error)
            self._end_unknown(job, error)
        return events

    def _begin(self, offer: _Offer, job: JobRecord) -> None:
        """A job that was handed over runs."""
        job.tracker.note(offer)
        self._register(job)
        slot, (priority, _, _, retries, grace) = offer.process.slot, job.limits
        self._feed(HandedOver(job.number, slot, offer.attempt, priority, retries, grace))
        if not offer.sent and not self._send(offer.process, Kind.RUN, offer.attempt, job.payload):
            # It may be because the caller has sent it, and the job has ended its worker already:
            # what that has noted tells whether the job began.
            self._feed(Died(slot))

    def _on_answer(self, offer: _Offer, job: JobRecord) -> None:
        """The first news of a job that was handed over is its worker's: its end, most likely."""
        process = offer.process
        try:
            message = _receive(process)
        except (ChannelClosed, OSError):
            self._begin(offer, job)
            self._on_lost_link(process)
            return
        if message is None:
            self._begin(offer, job)
        elif (
            message.attempt == offer.attempt
            and message.kind in _OUTCOMES
            and self._scheduler.served(process.slot, offer.attempt, time.monotonic())
        ):
            outcome = finished(job, message)
            if outcome.status is not _DONE:
                self.unseen.note(job, outcome)
            job.tracker.ran(offer, outcome)
            self._leaving.put(job)
            self._count(outcome.status)
            job.drop_payload()
            self._final.append(job.tracker)
            self._next_offer = _Offer(process, offer.channel, offer.attempt + 1)
            self._planned = True
        else:
            self._begin(offer, job)
            self._on_message(process, message)

    def _register(self, job: JobRecord) -> None:
        self._job_count += 1
        job.number = self._job_count
        self._jobs[job.number] = job

    def _end_unknown(self, job: JobRecord, error: Exception) -> None:
        """End a job, if it did not get as far as the scheduler."""
        if job.number not in self._jobs:
            self._register(job)
        if job.number not in self._scheduler.jobs:
            self._end_anyhow(job.number, bare(error))

    def _take(self, command: Any) -> None:
        match command:
            case JobRecord():
                self._take_in(command)
            case CancelJob(job=job, grace=grace):
                self._feed(CancelAsked(job.number, grace))
            case Ask(answer=answer, done=done):
                answer += self._jobs.values()
                done()
            case HasProcess(process=process):
                self._has_process(process)
            case Gone(slot=slot):
                self._on_gone(slot, command)
            case Forget(number=number):
                self._on_forget(number)
            case FailedEarly():
                self._ended_jobs[1] += 1
            case _NewCode():
                self._on_new_code(command.number)
            case _ThreadDied(error=error):
                raise Unfenced from error
            case _:
                if isinstance(command, StartFailed):
                    self._spawner.told(command.slot)
                    self._log.not_started(command.slot, command.evidence.error)
                elif isinstance(command, ShutDown):
                    what = "cancelled" if command.cancel else "waited for"
                    self._report(
                        logging.DEBUG, "a pool is shut down: its unfinished jobs are %s", what
                    )
                self._feed(command)

    def _on_new_code(self, number: int) -> None:
        if number <= self._renewed:  # several callers noticed
            return
        self._renewed = number
        if self._workers or self._spawner.busy:
            text = "code was reloaded: the pool's workers are replaced, busy ones later"
            self._report(logging.INFO, text)
            self._feed(RestartAsked())

    def _take_in(self, job: JobRecord) -> None:
        if job.tracker.outcome is not None:
            self._leaving.put(job)
            self._count(job.tracker.status)
            return
        self._register(job)
        payload = job.payload  # once: a cancel may take it away
        if isinstance(payload, Parcel) and payload.fd >= 0:
            self._in_files.add(job.number)
        limit = job.limits.memory_limit
        if limit is not None and not measurable():
            self._settle(job.number, OutOfMemory(limit, None))
            return
        try:
            actions = self._scheduler.submitted(job.number, job.limits, time.monotonic())
        except Exception as error:
            raise Unfenced from error
        self._carry_out(actions)

    def _feed(self, event: Event) -> None:
        """Tell the scheduler, and do what it says."""
        self._carry_out(self._decide(event))

    def _decide(self, event: Event) -> Actions:
        try:
            return self._scheduler.handle(event, time.monotonic())
        except Exception as error:
            raise Unfenced from error

    def _carry_out(self, actions: Actions) -> None:
        """Do what the scheduler says; that may lead to events, which are told to it in turn."""
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
                follow_up = self._fence.after(action, error)
            if follow_up is not None:
                events.append(follow_up)

    def _do(self, action: Action) -> Event | None:
        match action:
            case Assign():
                return self._assign(action)
            case Settle(job=number, fate=fate):
                self._settle(number, fate)
            case Watch(slot=slot):
                self._memory_watch.watch(action, self._workers[slot].pid)
            case Unwatch():
                self._memory_watch.unwatch(action)
            case Requeue(job=number, began=began):
                tracker = self._jobs[number].tracker
                if tracker.status is JobStatus.RUNNING:  # else it did not come to that
                    tracker.requeued(began=began)
                self._log.requeued(number, began=began)
            case Spawn(slot=slot):
                self._log.ordered(slot)
                self._spawner.order(slot)
            case Postpone(seconds=seconds, spare=spare):
                self._log.postponed(seconds, spare=spare)
            case Unspawn(slot=slot):
                self._spawner.call_off(slot)
            case Leave(slot=slot):
                self._log.leaves(self._workers[slot])
                self._send(self._workers[slot], Kind.STOP)  # where it fails, its death is coming
            case Terminate(slot=slot):
                self._log.terminated(self._workers[slot])
                self._workers[slot].terminate()
            case Kill(slot=slot, ask_stack=ask_stack):
                self._kill(self._workers[slot], ask_stack)
            case Close():
                pass  # seen by _dispatch
        return None

    def _kill(self, process: WorkerProcess, ask_stack: bool) -> None:
        self._log.killed(process)
        if ask_stack and not process.has_sent():
            # What it sends from now on may be the work of the signal that asks.
            process.heard_out = True
        self._reaper.take(process, ask_stack=process.heard_out)

    def _give_up(self, process: WorkerProcess, error: BaseException) -> Event:
        """Forget a worker that cannot be killed; at the pool's end it is tried once more."""
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)  # nobody has reaped it
        self._given_up.add(process)
        self._unclosed.add(process)
        self._unwatch_death(process)
        self._unwatch(process.channel.fileno())
        del self._workers[process.slot]
        left = f"worker {process.pid}: it could not be had killed: {one_line(error)}"
        return Gone(process.slot, Evidence(process.pid, error=error, left=left))

    def _fault(self, what: str, process: WorkerProcess, error: Exception) -> None:
        """Something about a worker raised: it is replaced."""
        self._fence.log(what, process, error)
        self._feed(Faulted(process.slot, bare(error)))

    def _assign(self, action: Assign) -> Event | None:
        job, process = self._jobs[action.job], self._workers[action.slot]
        if action.room is not None and _holds(process) > action.room:
            self._log.unfit(process, job)
            return NotTaken(action.slot, action.attempt, unfit=True)
        if not job.tracker.take():
            self._count(self._drop(action.job).tracker.status)
            return Withdrawn(action.slot, action.attempt)
        # Before the sending: whatever the job does, somebody who sees it sees RUNNING too.
        job.tracker.assigned(process.pid)
        payload = job.payload
        refers_to: Any = payload.refers_to if isinstance(payload, Parcel) else ()
        shared_there = not refers_to or self._share(process, refers_to)
        if shared_there and self._send(process, Kind.RUN, action.attempt, payload):
            return None
        return NotTaken(action.slot, action.attempt)

    def _drop(self, number: int) -> JobRecord:
        if self._in_files:
            self._in_files.discard(number)
        record = self._jobs.pop(number)
        self._leaving.put(record)
        return record

    def _share(self, process: WorkerProcess, shared: Sequence[Source]) -> bool:
        """Send a worker what it has not yet of the data that a call refers to."""
        for source in shared:
            if source.number in process.shared:
                continue
            source.used_by(self)
            if not self._share(process, source.shared):
                return False
            parcel = source.parcel_for(packets=self._config.packets)
            if not self._send(process, source.kind, source.number, parcel):
                return False
            process.shared.add(source.number)
        return True

    def _on_forget(self, number: int) -> None:
        for process in list(self._workers.values()):
            if number in process.shared:
                process.shared.discard(number)
                self._planned = False  # its socket may be full
                try:
                    self._send(process, Kind.FORGET, number)  # if not: its death is coming
                except Exception as error:  # noqa: BLE001 - it is logged
                    self._fault("having it forget data", process, error)

    def _send(
        self, process: WorkerProcess, kind: Kind, attempt: int = 0, content: Content | None = None
    ) -> bool:
        try:
            process.channel.send(kind, attempt, content)
        except (ChannelClosed, OSError, MemoryError):
            return False
        if process.channel.wants_write:
            self._poller.modify(process.channel.fileno(), _READ | _WRITE)
        return True

    def _settle(self, number: int, fate: Fate) -> None:
        job = self._jobs[number]
        outcome = finished(job, fate) if type(fate) is Message else outcome_of(job, fate)
        if outcome.status is not _DONE:
            self.unseen.note(job, outcome)
        status = outcome.status
        if job.tracker.settle(outcome):
            job.drop_payload()
            self._final.append(job.tracker)
        else:
            status = job.tracker.status
        self._drop(number)  # now: see _end_anyhow
        self._count(status)

    def _end_anyhow(self, number: int, error: BaseException) -> None:
        """End a job, if it has not ended, with what can still be said of it."""
        if number not in self._jobs:
            return
        job = self._drop(number)
        failure = JobError(f"job {job.name}: how it ended could not be told: {one_line(error)}")
        failure.__cause__ = error
        with contextlib.suppress(Exception):  # it may have its outcome, but told nobody yet
            outcome = Outcome(JobStatus.ERROR, failure)
            self.unseen.note(job, outcome)
            job.tracker.settle(outcome)
        self._final.append(job.tracker)
        with contextlib.suppress(OSError):
            job.drop_payload()
        self._count(job.tracker.status)

    def _count(self, status: JobStatus) -> None:
        """A job has ended."""
        place = 0 if status is _DONE else 1 if status is JobStatus.ERROR else 2
        self._ended_jobs[place] += 1

    # --- workers, on the dispatcher's thread -------------------------------------------------

    def _watch(self, fd: int, handler: Callable[[int], None]) -> None:
        self._poller.register(fd, _READ)
        self._handlers[fd] = handler

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            # Where it fails, what is closed soon goes by itself, and what comes has no handler.
            self._fence.step("unwatching", None, lambda: self._poller.unregister(fd))

    def _has_process(self, process: WorkerProcess) -> None:
        slot = process.slot
        self._spawner.told(slot)
        self._workers[slot] = process
        fault: Exception | None = None
        try:
            self._log.started(process)
            self._watch(process.channel.fileno(), functools.partial(self._on_socket, process))
            if process.channel.wants_write:  # its initializer
                self._poller.modify(process.channel.fileno(), _READ | _WRITE)
            self._watch(process.death, lambda _: self._on_death(process))
            if not process.shows_death:
                self._hidden.add(process)
        except Exception as error:  # noqa: BLE001 - it is logged
            fault = error
        self._feed(Started(slot))
        if fault is not None:
            self._fault("watching it", process, fault)

    def _on_socket(self, process: WorkerProcess, mask: int) -> None:
        try:
            if mask != _READ and mask & _WRITE:
                process.channel.flush()
                self._planned = False
                if not process.channel.wants_write:
                    self._poller.modify(process.channel.fileno(), _READ)
            if mask != _WRITE:
                message = _receive(process)
                if message is not None:
                    self._on_message(process, message)
        except (ChannelClosed, OSError):
            self._on_lost_link(process)
        except Exception as error:  # noqa: BLE001 - it is logged
            self._fault("hearing it", process, error)

    def _on_lost_link(self, process: WorkerProcess) -> None:
        # It died, or its job closed the channel: it is of no use any more either way.
        process.link_lost = True
        self._unwatch(process.channel.fileno())
        self._feed(Died(process.slot))

    def _on_message(self, process: WorkerProcess, message: Message) -> None:
        if process.heard_out:
            return
        slot = process.slot
        try:
            if message.kind not in _OUTCOMES:
                self._on_news(process, message)
                return
            try:
                actions = self._scheduler.answered(slot, message.attempt, message, time.monotonic())
            except Exception as error:
                raise Unfenced from error
            match actions:
                case [Settle() as settle, Assign() as assign] if self._scheduler.steady:
                    self._go_on(settle, assign)
                case _:
                    self._carry_out(actions)
        except Exception as error:  # noqa: BLE001 - it is logged
            self._fault("taking in what it sent", process, error)

    def _on_news(self, process: WorkerProcess, message: Message) -> None:
        slot = process.slot
        match message.kind:
            case Kind.READY:
                self._log.ready(process)
                self._feed(Ready(slot))
            case Kind.REFUSED:
                self._feed(NotTaken(slot, message.attempt))
            case Kind.INIT_FAILED:
                self._log.not_initialized(process, message)
                self._feed(InitFailed(slot, message))
            case _:
                process.report(
                    logging.WARNING,
                    "worker %d sent an unknown message; it is replaced",
                    process.pid,
                )
                self._feed(Died(slot))

    def _go_on(self, settle: Settle, assign: Assign) -> None:
        """One job has ended, the next is for the same worker."""
        try:
            # First: never do two RUNNING jobs have one worker.
            self._settle(settle.job, settle.fate)
            follow_up = self._assign(assign)
        except Exception as error:
            self._end_anyhow(settle.job, bare(error))
            raise  # the next job is the scheduler's and goes back to the queue
        if follow_up is not None:
            self._feed(follow_up)

    def _unwatch_death(self, process: WorkerProcess) -> None:
        self._unwatch(process.death)
        self._hidden.discard(process)

    def _on_death(self, process: WorkerProcess) -> None:
        self._unwatch_death(process)
        self._drain(process)
        self._feed(Died(process.slot))

    def _drain(self, process: WorkerProcess) -> None:
        """Take in everything that it sent before."""
        with contextlib.suppress(ChannelClosed):
            while (message := _receive(process)) is not None:
                self._on_message(process, message)

    def _on_gone(self, slot: int, event: Gone) -> None:
        process = self._workers[slot]
        self._unwatch_death(process)
        self._drain(process)
        self._unwatch(process.channel.fileno())
        del self._workers[slot]
        self._unclosed.add(process)
        self._close_what_is_unused()
        self._log.gone(process, event.evidence)
        self._feed(event)

    def _close_what_is_unused(self) -> None:
        """Close the workers that are gone, but for one whose channel a caller may be using."""
        self._in_limbo = [offer for offer in self._in_limbo if not offer.over]
        in_use = {offer.process for offer in self._in_limbo} | self._given_up
        unused = self._unclosed - in_use
        self._unclosed &= in_use
        for process in unused:
            self._fence.step("closing", process, process.close)

    # --- the end, on the dispatcher's thread -------------------------------------------------

    def _fail(self) -> None:
        """After a bug in here: no job and no process is left behind all the same."""
        offer, self._offer = self._offer, None
        if offer is not None:
            offer.claims.append(None)
            job = offer.claims[0]
            if job is not None and job.tracker.take():
                self._register(job)
        for process in self._workers.values():
            self._reaper.take(process)
        for number in list(self._jobs):
            with contextlib.suppress(Exception):  # the others shall have their end all the same
                self._settle(number, Lost(Evidence(error=JobError("the pool's dispatcher failed"))))

    def _end(self) -> None:
        self.accepting = False
        self._spawner.end()
        self._reaper.end()
        self._memory_watch.end()
        for thread in self._threads[1:4]:
            if thread.ident is not None:
                thread.join()
        for process in self._given_up:
            self._fence.step("ending it", process, process.end)
        for process in {*self._workers.values(), *self._unclosed}:
            self._fence.step("closing", process, process.close)
        self._fence.step("closing", None, self._config.close)
        self._tell_waiters()
        self._fence.step("closing", None, self._bell.close)
        self._fence.step("closing", None, self._reaper.close)
        self._fence.step("closing", None, self._poller.close)
        self._fence.step("releasing the guard", None, lambda: the_guard.release(self))
        lifetime.pools.discard(self)
        self._own_threads.clear()
        self._ended = True
        self._refuse()
        self._report(logging.DEBUG, "a pool has ended")
        self._callbacks.call(self._leaving.let_go)
        self._callbacks.call(self._config.let_go)
        self._callbacks.call(self.unseen.pool_ended)
        self._callbacks.end(self._leave)  # last: later it is done by whoever comes
        with contextlib.suppress(IndexError):  # one may be taken back meanwhile
            while self._end_waiters:
                self._end_waiters.pop()()

    def _refuse(self) -> None:
        """Answer what came too late; whoever pops a command answers it, on any thread."""
        while True:
            try:
                command = self._inbox.popleft()
            except IndexError:
                return
            match command:
                case JobRecord():
                    outcome = outcome_of(command, TurnedAway())
                    self.unseen.note(command, outcome)
                    if command.tracker.end_early(outcome):
                        command.drop_payload()
                    self._callbacks.call(command.let_go)
                case Ask(done=done):
                    done()
                case HasProcess(process=process):  # only after a bug in here: see _fail
                    process.end()
                    process.close()
                case _:
                    pass

    def abandon(self) -> None:
        """In a fork of the process: nothing of this is ours; its jobs cannot end here."""
        self.accepting = False
        self.of_parent = True
        jobs = {*self._jobs.values()}
        while self._inbox:
            command = self._inbox.popleft()
            if isinstance(command, JobRecord):
                jobs.add(command)
        for job in jobs:
            job.tracker.abandon(self.owner)
            job.drop_payload()
            job.let_go()
        self._leaving.let_go()
        self._config.close()
        self._bell.close()
        self._reaper.close()
        self._poller.close()
        self._asleep = False
        self._offer = None
        self._ended = True
        self._threads = []
        self._own_threads.clear()
        # This thread may go on in a generator or a task that waits, or, where a signal handler or
        # a finalizer has forked, in a lock. Now that all has ended, the one does not stop another.
        trackers = [*self._final, *(job.tracker for job in jobs)]
        waiters = [*self._gone_waiters, *self._end_waiters]
        for tell in [*(tracker.tell_waiters for tracker in trackers), *waiters]:
            with contextlib.suppress(Exception):
                tell()

    # --- the other threads -------------------------------------------------------------------

    def _be_thread(self, run: Callable[[], None], *, signals: bool = False) -> None:
        self._own_threads.add(threading.get_ident())
        if not signals:  # what is started on the thread would inherit that they are blocked
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - the dispatcher logs it
            self._tell(_ThreadDied(error))


def _call_late(callbacks: Callbacks, callback: Callable[[], object]) -> None:
    """Have it called, however late, but not on a thread of any pool where no foreign code may run.

    The collector may let go of a job there whose own pool has ended long ago.
    """
    me = threading.get_ident()
    for pool in members(lifetime.pools):
        if isinstance(pool, Dispatcher) and me in pool._own_threads:
            callbacks = pool._callbacks
    callbacks.call(callback)


def _sooner(timeout: float, pause: float) -> float:
    """The shorter one of a poller's timeout, which is negative if it has no end, and a pause."""
    return pause if timeout < 0 else min(timeout, pause)


def _receive(process: WorkerProcess) -> Message | None:
    """The next message; `ChannelClosed` also where nonsense came, which a job may send."""
    try:
        return process.channel.receive()
    except ChannelClosed:
        raise
    except Exception as error:
        if not isinstance(error, OSError):
            text = "worker %d sent what is no message: %s"
            process.report(logging.WARNING, text, process.pid, one_line(error))
        raise ChannelClosed from error


def _holds(process: WorkerProcess) -> int:
    """Its resident memory in bytes; 0 where it cannot be measured, which the watch will tell."""
    try:
        return resident(process.pid)
    except Unmeasurable:
        return 0


_RETURNED = int(Kind.RETURNED)
_OUTCOMES = (_RETURNED, int(Kind.RAISED))


def file_limit() -> int:
    """How many queued calls may hold a descriptor: a quarter of what the process may have."""
    import resource

    try:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a sandbox refuses it
        soft = 1024
    return 1 << 16 if soft == resource.RLIM_INFINITY else soft // 4

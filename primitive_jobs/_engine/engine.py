"""`Engine`: what callers of a pool reach, on any thread; the pool's threads, and its end.

============  =====================================================================================
thread        owns
============  =====================================================================================
dispatcher    scheduler, the records of the unfinished jobs, the fleet's workers
callbacks     nothing: it runs users' callbacks, and writes the other threads' log records
the fleet's   what the fleet says; for workers on this machine: starts, ends and measurements
============  =====================================================================================

Only `join`, `unfinished` and, for half a second at most, `snapshot` and `counts` wait for another
thread. Most of the rest may be called in signal handlers and finalizers, since it only puts a
command into the inbox.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
from _thread import allocate_lock  # of threads, whoever patches `threading` later
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._common.lock_free import members
from .._common.threads import make_thread
from .._common.unpatched import check_unpatched
from .._wire.parcel import Content, Parcel
from ..errors import ClusterError, JobError, PoolClosedError
from ..logs import Report
from ..snapshots import Counts, PoolAttempts, PoolSnapshot
from . import lifetime
from .callbacks import Callbacks
from .capacity import Capacity
from .code_watch import code_watch
from .dispatcher import Dispatcher
from .events import (
    Ask,
    CancelAllAsked,
    CancelJob,
    FailedEarly,
    NewCode,
    Resized,
    RestartAsked,
    ShutDown,
    ThreadDied,
    TurnedAway,
    Unreachable,
)
from .fleet import Fleet, News
from .hand_over import give
from .inbox import Inbox
from .look import (
    Look,
    attempts_of,
    look_at,
    look_at_attempts,
    look_from_outside,
    snapshot_of,
)
from .record import JobRecord
from .registry import ENDS, JobRegistry
from .scheduler import Scheduler
from .tracker import of_the_parent
from .unseen import Unseen
from .verdicts import outcome_of, why_unreachable
from .window import Window

if TYPE_CHECKING:
    from .._wire.seeding import Seeds
    from .poller import Poller
    from .sources import Source


_PATIENCE = 0.5  # s that whoever wants to see a pool waits for its dispatcher


class Engine:
    """The inside of one pool; its threads run until `shut_down` has taken full effect.

    Args:
        scheduler: The pool's; it makes the decisions.
        fleet: The pool's; it has the workers.
        cancel_at_exit: Whether the interpreter's end cancels unfinished jobs.
        seeds: Gives each job the key of its seed; None: jobs have none.
        made: A list to which it appends itself before it starts any thread, so that whoever makes
            it can end it after an interrupt.

    Attributes:
        accepting: Whether it takes jobs.
        broken: Why no worker can be reached any more; None: they can. The dispatcher writes it,
            before `accepting`, so that whoever sees that the one is False knows the other.
        capacity: What its jobs can have.
        owner: The process that it works in.
        of_parent: Whether this is a fork of that process.
        unseen: The failures that nobody has looked at.
    """

    broken: BaseException | None = None

    def __init__(
        self,
        scheduler: Scheduler,
        fleet: Fleet,
        *,
        cancel_at_exit: bool = False,
        seeds: Seeds | None = None,
        made: list[Engine] | None = None,
    ) -> None:
        lifetime.register_exit_hook()  # first: it may refuse
        code_watch.install()
        # Up to where callers have looked at it, and what they have told of.
        self._tick = code_watch.tick
        self._code = code_watch.changes()
        self.accepting = True
        self.cancel_at_exit = cancel_at_exit
        self.seeds = seeds
        self.capacity = Capacity(scheduler, fleet)
        self.owner = os.getpid()
        self.of_parent = False
        self._scheduler = scheduler
        self._fleet = fleet
        self._end_waiters: list[Callable[[], object]] = []
        self._gone_waiters: list[Callable[[], object]] = []
        self._left: list[None] = []  # by the two threads that end last
        self._callbacks = Callbacks()
        self._report = Report(self._callbacks.call)
        ended = [0] * len(ENDS)
        self.unseen = Unseen(functools.partial(_call_late, self._callbacks), ended)
        self._jobs = JobRegistry(self.unseen, ended)
        self._inbox = Inbox(self._refuse)
        self._tell = self._inbox.tell
        try:
            told = self._callbacks.call, self._give_up, self._report
            self._dispatcher = Dispatcher(scheduler, fleet, self._jobs, self._inbox, *told)
        except BaseException:
            self._inbox.bell.close()
            raise
        self._hand_off = self._dispatcher.hand_off
        self._begun: list[bool] = []  # first: whether the dispatcher's thread came to run
        self._own_threads: set[int] = set()  # idents of all but the one for callbacks
        self._threads = [make_thread("dispatcher", self._dispatch)]
        for name, run, signals in fleet.threads():
            target = functools.partial(self._be_thread, run, signals=signals)
            self._threads.append(make_thread(name, target))
        self._threads.append(make_thread("callbacks", self._callbacks.run))
        if made is not None:
            made.append(self)
        self._start_threads()

    def _start_threads(self) -> None:
        try:
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

    # --- jobs --------------------------------------------------------------------------------

    def pack(
        self, body: bytes, buffers: list[memoryview], refers_to: tuple[Source, ...]
    ) -> Content:
        """Make a serialized call ready to be sent; raises OSError or MemoryError."""
        to_file = self._jobs.may_hold_descriptor()
        return self._fleet.pack(body, buffers, refers_to, to_file=to_file)

    def repack(self, parcel: Parcel) -> Parcel:
        """Make a call that was packed for any pool ready for this one's workers."""
        return self._fleet.repack(parcel)

    def enlist(self, record: JobRecord) -> None:
        """Queue a job with its payload; raises `PoolClosedError` if the pool takes none."""
        if not self.accepting:
            self.check_open()
        if code_watch.tick != self._tick:
            self._look_at_code()
        leaving = self._jobs.leaving
        if leaving:
            leaving.let_go()
        inbox = self._inbox
        offer = self._hand_off.offer  # before the job is in the inbox: see `give`
        inbox.commands.append(record)
        if offer is not None and give(offer, record, inbox.commands):
            return
        if inbox.asleep:
            # One that holds a descriptor is to be counted before too many do.
            if self._dispatcher.needs_wake or isinstance(record.payload, Parcel):
                inbox.wake()
        elif inbox.ended:
            inbox.refuse()

    def _look_at_code(self) -> None:
        """If code has changed, tell the dispatcher before any caller who knows submits a job."""
        check_unpatched()  # what patches imports first
        tick = code_watch.tick  # first: what comes later is looked at by the next one
        number = code_watch.changes()
        if number != self._code:
            self._tell(NewCode(number))
            self._code = number
        self._tick = tick

    def check_open(self) -> None:
        """Raise `PoolClosedError`, or `ClusterError`, unless jobs are accepted."""
        if self.of_parent:
            raise PoolClosedError(
                f"the pool belongs to process {self.owner}, of which this one is a fork: use "
                "default_pool() here, or make a JobPool"
            )
        if self.broken is not None:
            raise ClusterError(why_unreachable(self.broken))
        if not self.accepting:
            raise PoolClosedError("the pool was shut down: it takes no job any more")
        lifetime.check_not_exiting()

    def _give_up(self, error: BaseException) -> None:
        """Take no job any more, since no worker can be reached; on the dispatcher's thread."""
        self.broken = error
        self.accepting = False

    def ask_cancel(self, record: JobRecord, grace: float, *, queued_only: bool = False) -> None:
        """Ask for the cancel of a job; returns at once."""
        self._tell(CancelJob(record, grace, queued_only))

    def ask_cancel_all(self, grace: float | None) -> None:
        """Ask for the cancel of all jobs, each with its own grace if None; returns at once."""
        self._tell(CancelAllAsked(grace))

    def fail_early(self, record: JobRecord, failure: BaseException) -> None:
        """End a job that cannot be enlisted; returns at once."""
        if record.tracker.fail_early(failure, record, self.unseen):
            self._tell(FailedEarly())
        record.let_go()

    def call_back(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on the thread for callbacks."""
        self._callbacks.call(callback)

    def check_may_wait(self) -> None:
        """Raise `JobError` where a wait would never end."""
        if self.of_parent:
            raise of_the_parent(self.owner)
        self._check_thread()

    def _check_thread(self) -> None:
        if threading.get_ident() in self._own_threads:
            # Foreign code gets here only through a finalizer that the collector runs.
            raise JobError("a pool's own thread cannot wait for a job of the pool")

    def _ask(self, look: Callable[[], Any], timeout: float = -1) -> Any:
        """Return what ``look`` returns on the dispatcher's thread; None: not called in time."""
        lock = allocate_lock()
        lock.acquire()
        question = Ask(look, lock.release)
        self._tell(question)
        lock.acquire(timeout=timeout)
        return question.answer

    def unfinished(self) -> list[JobRecord]:
        """Return the jobs that were submitted and are not final."""
        self._check_thread()
        records = self._ask(lambda: list(self._jobs.unfinished.values())) or ()
        return [job for job in records if job.tracker.outcome is None]

    def counts(self) -> Counts:
        """Return how many jobs and workers there are; see `snapshot`."""
        return self._seen().counts

    def snapshot(self) -> PoolSnapshot:
        """Return counts, jobs and workers, after every command that came before was carried out.

        If the dispatcher does not answer in 0.5 s (a debugger may have stopped it), this is read
        from outside, and lacks what the dispatcher has not done yet.
        """
        return snapshot_of(self._seen())

    def attempts(self) -> PoolAttempts:
        """Return what workers did with jobs, and do now; in a fork, what had ended before that."""
        what = self._scheduler, self._jobs, self._fleet, self._inbox.commands
        look = functools.partial(look_at_attempts, *what)
        return attempts_of(self._shown(look) or look())

    def _seen(self) -> Look:
        what = self._scheduler, self._jobs, self._fleet
        look: Look | None = self._shown(lambda: look_at(*what))
        return look_from_outside(*what, self._inbox.commands) if look is None else look

    def _shown(self, look: Callable[[], Any]) -> Any:
        """What the dispatcher is to show; None: it does not, in time."""
        own = threading.get_ident() in self._own_threads
        return None if own else self._ask(look, _PATIENCE)

    def show(self, opened: Callable[[Poller, Window], None]) -> None:
        """Have somebody called, on the dispatcher's thread, who shows the pool to others."""
        window = Window(self._scheduler, self._jobs, self._fleet, self._inbox, self._report)
        self._tell(News(functools.partial(opened, self._dispatcher.poller, window)))

    # --- the pool ----------------------------------------------------------------------------

    def resize(self, max_workers: int) -> None:
        """Change the number of workers."""
        self.check_open()
        self._tell(Resized(max_workers))

    def restart_workers(self) -> None:
        """Replace every worker, a busy one after its job."""
        self.check_open()
        self._tell(RestartAsked())

    def shut_down(self, *, cancel: bool = False, at_once: bool = False) -> None:
        """Accept no further job, and end when all are final; returns at once.

        ``cancel`` leaves each job its grace, unless ``at_once`` is set or an earlier call has
        cancelled them already.
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
            if not self._inbox.ended:
                lock.acquire()
        finally:
            self.forget_waiter(lock.release)
        for thread in self._threads:
            if thread is not threading.current_thread():  # a callback may shut its pool down
                thread.join()

    def call_when_gone(self, waiter: Callable[[], object]) -> None:
        """Call ``waiter`` as soon as `join` has nothing to wait for, perhaps at once.

        It is called on one of the pool's own threads, perhaps twice, and must not block.
        """
        waiters = self._gone_waiters
        if threading.current_thread() in self._threads:
            waiters = self._end_waiters  # it is a callback that waits, and `join` passes that over
        waiters.append(waiter)
        if self.gone or (waiters is self._end_waiters and self._inbox.ended):
            waiter()

    def forget_waiter(self, waiter: Callable[[], object]) -> None:
        """Take back what `call_when_gone` was given."""
        for waiters in (self._gone_waiters, self._end_waiters):
            with contextlib.suppress(ValueError):
                waiters.remove(waiter)

    @property
    def gone(self) -> bool:
        """Whether nothing is left except threads that are at their last line."""
        return len(self._left) > 1 or self.of_parent

    # --- threads and the end -----------------------------------------------------------------

    def _dispatch(self) -> None:
        self._begun.append(True)
        if not self._begun[0]:
            return  # whoever was making the pool was interrupted, and has ended it
        self._own_threads.add(threading.get_ident())
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._dispatcher.run()
        finally:
            try:
                self._end()
            finally:
                self._leave()

    def _be_thread(self, run: Callable[[], None], *, signals: bool) -> None:
        self._own_threads.add(threading.get_ident())
        if not signals:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - the dispatcher logs it
            self._tell(ThreadDied(error))

    def _end(self) -> None:
        """End everything except the thread for callbacks; on the dispatcher's thread."""
        self.accepting = False
        step = self._dispatcher.fence.step
        self._fleet.end()
        for thread in self._threads[1:-1]:
            if thread.ident is not None:
                thread.join()
        self._dispatcher.tell_waiters()
        step("closing the fleet", None, self._fleet.close)
        step("closing", None, self._inbox.bell.close)
        step("closing", None, self._dispatcher.poller.close)
        lifetime.pools.discard(self)
        self._own_threads.clear()
        self._inbox.end()
        self._report(logging.DEBUG, "a pool has ended")
        self._callbacks.call(self._jobs.leaving.let_go)
        self._callbacks.call(self._fleet.let_go)
        self._callbacks.call(self.unseen.pool_ended)
        self._callbacks.end(self._leave)  # last: later it is done by whoever comes
        with contextlib.suppress(IndexError):  # one may be taken back meanwhile
            while self._end_waiters:
                self._end_waiters.pop()()

    def _leave(self) -> None:
        """Record that this thread ends: the dispatcher's, or that for callbacks, in any order."""
        self._left.append(None)
        if self.gone:
            with contextlib.suppress(IndexError):  # both threads may be in here
                while self._gone_waiters:
                    self._gone_waiters.pop()()

    def _refuse(self, command: Any) -> None:
        """Answer a command that came after the pool's end; on any thread."""
        match command:
            case JobRecord():
                broken = self.broken
                fate = TurnedAway() if broken is None else Unreachable(broken)
                outcome = outcome_of(command, fate)
                self.unseen.note(command, outcome)
                if command.tracker.end_early(outcome):
                    command.drop_payload()
                self._callbacks.call(command.let_go)
            case Ask(done=done):
                done()
            case News(refuse=refuse) if refuse is not None:
                refuse()
            case _:
                pass

    def abandon(self) -> None:
        """In a fork of the process: drop the parent's jobs, threads and descriptors.

        Its jobs cannot end here: they become ERROR.
        """
        self.accepting = False
        self.of_parent = True
        jobs = {*self._jobs.unfinished.values()}
        commands = self._inbox.commands
        while commands:
            command = commands.popleft()
            if isinstance(command, JobRecord):
                jobs.add(command)
        for job in jobs:
            job.tracker.abandon(self.owner)
            job.drop_payload()
            job.let_go()
        self._jobs.leaving.let_go()
        self._fleet.abandon()
        self._inbox.bell.close()
        self._dispatcher.poller.close()
        self._inbox.asleep = False
        self._hand_off.offer = None
        self._inbox.ended = True
        self._threads = []
        self._own_threads.clear()
        # This thread may go on in a generator or a task that waits, or, where a signal handler or
        # a finalizer has forked, in a lock. Now that all has ended, the one does not stop another.
        trackers = [*self._jobs.untold, *(job.tracker for job in jobs)]
        waiters = [*self._gone_waiters, *self._end_waiters]
        for tell in [*(tracker.tell_waiters for tracker in trackers), *waiters]:
            with contextlib.suppress(Exception):
                tell()


def _call_late(callbacks: Callbacks, callback: Callable[[], object]) -> None:
    """Call it on a thread where users' code may run, even after its pool has ended.

    The garbage collector may drop a job of such a pool on a thread of another pool, where users'
    code must not run: then that pool's thread for callbacks calls it.
    """
    me = threading.get_ident()
    for pool in members(lifetime.pools):
        if isinstance(pool, Engine) and me in pool._own_threads:
            callbacks = pool._callbacks
    callbacks.call(callback)


__all__ = ["Engine"]

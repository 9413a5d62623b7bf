"""`JobFuture`: what `JobExecutor.submit` returns; and who settles those that somebody waits for.

    job is final ─┬─► whoever looks at the future settles it
                  ├─► settler thread ─► settled: where wait() or as_completed() is to be told
                  └─► thread for callbacks ─► settled, callbacks called

A future's state follows its job's, and is brought up to date by whoever looks at it. Those who only
wait to be told, the standard library's ``wait`` and ``as_completed``, need somebody who does it
unasked: the executor's settler thread, which runs no foreign code. Callbacks run on the pool's
thread for them: so they may block on any future. The pool's own threads hold no future, so that
none goes there with what is the user's: the settler has the thread for callbacks let go of those
that it settled. What is done without the future's own lock is of the kinds that `lock_free` lists.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any, NoReturn, TypeVar

from ._common.forks import Turn, in_forks
from ._common.imported import imported
from ._common.lock_free import members
from ._common.threads import make_thread
from ._engine.record import Callback, JobRecord, PoolLink
from ._engine.standing import Standing
from ._engine.tracker import present
from ._wire.pickling import LEFT_OUT
from .awaiting import in_trio_task
from .errors import JobError, PoolClosedError, SerializationError
from .job import PrimitiveJob, ask_cancel, check_may_wait, record_of
from .logs import Later, report_here
from .status import JobStatus

T = TypeVar("T")

PATIENCE_IN_TASK = 0.01  # s that a task's cancel() may hold up its event loop
_MANY = 64  # settled futures at most that are let go together
_REST = 0.01  # s without a further one, after which those are let go that there are
_NOT_HERE = "the state of this future is its job's: it cannot be set"
_SETTLED = (CANCELLED_AND_NOTIFIED, FINISHED)
_STATES = {
    JobStatus.RUNNING: "running",
    JobStatus.CANCELLED: "cancelled",
    JobStatus.DONE: "finished",
    JobStatus.ERROR: "finished",
}


class JobFuture(Standing, Future[T]):
    """The future of a job; made by `JobExecutor.submit`.

    It is what a `concurrent.futures.Future` is, but `cancel` also stops a running job, and results
    are unpickled in the thread that asks for them.

    Attributes:
        job: The `PrimitiveJob`.
    """

    job: PrimitiveJob[T]
    _lock: Any
    _told_of: list[Any]

    def __init__(self, job: PrimitiveJob[T], record: JobRecord, settler: Settler) -> None:
        self.job = job
        self._record = record  # the job's
        self._settler = settler
        self._watched = False  # the settler is told of the end
        super().__init__()
        # By the idents of threads that are in `cancel`: the callbacks that are to be run there.
        self._cancels: dict[int, list[Callback]] = {}

    # --- what a future is asked --------------------------------------------------------------

    def cancel(self) -> bool:
        """Stop the job for real, as `PrimitiveJob.cancel`; return whether it is cancelled.

        Waits for the end of a running job's processes, some milliseconds, and returns True exactly
        when its final status is CANCELLED. Only the thread of a running event loop is not held up:
        a callback of the loop, such as those through which asyncio cancels, does not wait at all,
        a task at most 10 ms. There, False means "not cancelled yet" as well: the kill goes on.

        Of an executor with ``cancel_running=False`` a running job goes on, and this is False; with
        a number of seconds it is False, and the job has so long to end before it is stopped.
        """
        me = threading.get_ident()
        left = self._cancels.setdefault(me, [])
        job = self.job
        try:
            if self.stop():
                self._record.tracker.wait(_patience(self._record.link))
            self._settle()
        finally:
            self._cancels.pop(me, None)
            for callback in left:  # as in the standard library, before cancel() returns
                callback.run()
        return job.cancelled()

    def stop(
        self,
        ask_cancel: Callable[[PrimitiveJob[Any]], bool] = ask_cancel,
    ) -> bool:
        """Set its cancel going; return whether its end is to be waited for. Returns at once.

        At the interpreter's end there may be no globals any more.
        """
        settler, record = self._settler, self._record
        if settler.cancel_running is True:
            return ask_cancel(self.job)
        if _SETTLED is None:
            return False
        record.cancel_queued()
        if record.tracker.outcome is None:
            if settler.cancel_running is not False:
                settler.stop_later(record)
            # Of one that a worker may have, or not yet, the pool knows.
            if present(record.tracker) is JobStatus.QUEUED:
                record.tracker.wait(0.01)
        return False

    def cancelled(self) -> bool:
        """Return whether the job was cancelled, by whatever way."""
        return self._settle() and self.job.cancelled()

    def running(self) -> bool:
        """Return whether a worker has the job now."""
        return self.job.running()

    def done(self) -> bool:
        """Return whether the job has ended, however."""
        return self._settle()

    def result(self, timeout: float | None = None) -> T:
        """Return the result, waiting for it at most ``timeout`` s; raises as `PrimitiveJob.result`.

        Its errors are those of the standard library too: `concurrent.futures.CancelledError`,
        `TimeoutError`, `BrokenProcessPool`.
        """
        try:
            return self.job.result(timeout)
        finally:
            self._settle()
            # Or this frame, the exception and the job keep each other alive.
            self = LEFT_OUT  # noqa: PLW0642

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, None if nothing; waits and raises like it.

        A result that cannot be unpickled here is such an exception.
        """
        try:
            return self.job.exception(timeout)
        except SerializationError as error:
            return error
        finally:
            self._settle()
            self = LEFT_OUT  # noqa: PLW0642

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have ``fn(future)`` called once, when the job is final.

        It runs on the pool's thread for callbacks, where it may call anything; in the `cancel` of
        a job that was not running yet; at once, if it has ended. What it raises is logged on
        ``primitive_jobs``.
        """
        if self._settle():
            self._call(fn)
            return
        call = functools.partial(JobFuture._call, self, fn)
        self._record.tracker.call_when_final(_FutureCallback(self._record, call, self._cancels))

    def __reduce__(self) -> NoReturn:
        """Raise TypeError, as any future, at once: pickling the job would wait for its end."""
        raise TypeError("cannot pickle a 'JobFuture' object; its result, or its job, can travel")

    def set_running_or_notify_cancel(self) -> bool:
        """Raise `InvalidStateError`: only the pool says how a job ends."""
        raise InvalidStateError(_NOT_HERE)

    def set_result(self, result: T) -> None:  # noqa: ARG002
        """Raise `InvalidStateError`: only the pool says how a job ends."""
        raise InvalidStateError(_NOT_HERE)

    def set_exception(self, exception: BaseException | None) -> None:  # noqa: ARG002
        """Raise `InvalidStateError`: only the pool says how a job ends."""
        raise InvalidStateError(_NOT_HERE)

    def _get_snapshot(self) -> tuple[bool, bool, T | None, BaseException | None]:
        """What asyncio asks since Python 3.14: done, cancelled, result, exception."""
        if not self._settle():
            return False, False, None, None
        if self.job.cancelled():
            return True, True, None, None
        error = self.exception()
        return True, False, None if error is not None else self.result(), error

    def __repr__(self) -> str:
        state = _STATES.get(present(self._record.tracker), "pending")
        failure = self._record.tracker.failure(self.job)
        if failure is not None:
            state += f" raised {failure}"
        return (
            f"<{type(self).__name__} at {id(self):#x} state={state} "
            f"job={self.job.name!r} {self.job.job_id()}>"
        )

    def _job(self) -> PrimitiveJob[T]:
        return self.job

    # --- how it follows its job --------------------------------------------------------------

    def _settle(self) -> bool:
        """Take the job's end over, if it has ended; return whether it has."""
        outcome = self._record.tracker.outcome
        if outcome is None:
            return False
        if self._state in _SETTLED:
            return True
        with self._lock:  # reentrant
            if outcome.status is JobStatus.CANCELLED:
                if self._state == PENDING:
                    super().cancel()
                if self._state == CANCELLED:  # also where an interrupt came after the former
                    super().set_running_or_notify_cancel()
            elif self._state == PENDING:
                if outcome.status is JobStatus.DONE:
                    super().set_result(None)  # type: ignore[arg-type]  # the job has it
                else:
                    super().set_exception(None)
        return True

    # The standard library looks at these two: so it sees what is true, and we see that it waits.

    @property
    def _condition(self) -> Any:
        """Whoever asks for the lock, to look at the state under it, finds that up to date."""
        # The names of this module may be gone: a generator of the standard library's that is still
        # open is closed at the end of the program.
        if _SETTLED is not None and not self._lock._is_owned():
            self._settle()
        return self._lock

    @_condition.setter
    def _condition(self, lock: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._lock = lock

    @property
    def _waiters(self) -> list[Any]:
        """Whoever asks for them, under the lock, is about to wait for the end."""
        if not self._watched and self._state not in _SETTLED:
            self._watched = True
            tell = functools.partial(self._settler.put, weakref.ref(self))
            self._record.tracker.call_when_final(tell)
        return self._told_of

    @_waiters.setter
    def _waiters(self, waiters: list[Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._told_of = waiters

    def _call(self, callback: Callable[[Future[T]], object]) -> None:
        self._settle()
        try:
            callback(self)
        except BaseException as error:
            # Not on the standard library's logger, which has a handler that prints on stderr.
            report_here(
                logging.ERROR,
                "a callback of %s raised",
                Later(repr, self),
                job=self.job,
                error=error,
            )
            own = threading.current_thread() is threading.main_thread()
            if own and isinstance(error, KeyboardInterrupt):
                raise  # the user's Ctrl-C, not the callback's affair

    def _abandon(self) -> None:
        """In a fork of the process: end it. Those who hold a lock stayed behind.

        But who waits may be in the standard library's ``as_completed``, whose generator goes on.
        """
        self._lock = threading.Condition()
        for waiter in self._told_of:
            locks: tuple[Any, ...] = (getattr(waiter, "lock", None), waiter.event)
            for lock in locks:
                if lock is not None:
                    lock._at_fork_reinit()
        check_may_wait(self.job)
        self._settle()


class _FutureCallback(Callback):
    """Where a thread is in `JobFuture.cancel`, and tells of the end itself, it is left to that."""

    __slots__ = ("_cancels",)

    def __init__(
        self,
        record: JobRecord,
        call: functools.partial[Any],
        cancels: dict[int, list[Callback]],
    ) -> None:
        super().__init__(record, call)
        self._cancels = cancels

    def __call__(self) -> None:
        left = self._cancels.get(threading.get_ident())
        if left is None:
            super().__call__()
        else:
            left.append(self)


def _patience(link: PoolLink | None) -> float | None:
    """Seconds that a cancel may wait on this thread; None: as long as it takes."""
    if in_trio_task():
        return PATIENCE_IN_TASK
    asyncio = imported("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return 0.0 if asyncio.current_task() is None else PATIENCE_IN_TASK
    try:
        if link is not None:
            link.check_may_wait()
    except JobError:  # a finalizer on the pool's own thread
        return 0.0
    return None


class Settler:
    """Settles futures that somebody waits for; one thread for each executor.

    The thread ends when the executor is shut down or gone and no job is pending any more. It
    holds this object, but neither the executor nor a future.

    Args:
        made: Where it puts itself before it starts its thread, for whoever is to end that.
        cancel_running: As the argument of `JobExecutor`.

    Attributes:
        pending: The jobs that are not final yet, in the order they came in.
        futures: Those of its executor that somebody holds.
        thread: Its thread.
    """

    def __init__(self, made: list[Settler], cancel_running: bool | float = True) -> None:
        self.cancel_running = cancel_running
        self._reprieved: deque[tuple[float, JobRecord]] = deque()  # till when; its thread's
        self.pending: dict[JobRecord, None] = {}
        self.futures: weakref.WeakSet[JobFuture[Any]] = weakref.WeakSet()
        self._closed = False
        self._queue: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self.thread = make_thread("settler", self._run)
        self._left = False  # its thread settles what comes later no more
        self._ended = False
        self._end_waiters: list[Callable[[], object]] = []
        made.append(self)
        try:
            self.thread.start()
        except RuntimeError as error:
            raise PoolClosedError(
                "no executor can be made: the interpreter is going down, or no thread is left"
            ) from error
        _settlers.add(self)

    def put(self, future: weakref.ref[JobFuture[Any]]) -> None:
        """Have a future settled soon; returns at once."""
        self._queue.put(future)
        if self._left:  # it looks once more after it has said so: one of both sees the other
            with contextlib.suppress(RuntimeError):  # at the interpreter's end, when nobody waits
                make_thread("settler", self._settle_rest).start()

    def stop_later(self, record: JobRecord) -> None:
        """Have a job cancelled after as many seconds as it may run on; returns at once."""
        self._queue.put((time.monotonic() + self.cancel_running, record))

    def job_ended(self, record: JobRecord) -> None:
        """Note that a job is final."""
        if record.link is not None and record.link.of_parent:
            return  # in a fork of the process, which has to see to its future
        self.pending.pop(record, None)
        if self._closed and not self.pending:
            self._queue.put(None)

    def close(self) -> None:
        """No future will be added; returns at once."""
        self._closed = True
        if not self.pending:
            self._queue.put(None)

    def call_when_ended(self, waiter: Callable[[], object]) -> None:
        """Have ``waiter`` called when every future is settled; at once if that is so.

        It is called on the settler's thread, at the end of that, and must not block.
        """
        self._end_waiters.append(waiter)
        if self.ended:
            waiter()

    def forget_waiter(self, waiter: Callable[[], object]) -> None:
        """Take back what `call_when_ended` was given."""
        with contextlib.suppress(ValueError):
            self._end_waiters.remove(waiter)

    @property
    def ended(self) -> bool:
        """Whether its thread is at its last line."""
        return self._ended or not self.thread.is_alive()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        settled: list[JobFuture[Any]] = []  # this may be the last that holds them
        while True:
            try:
                known = self._queue.get(timeout=_REST if settled else self._stop_those_due())
            except queue.Empty:
                self._let_go(settled)
                settled = []
                continue
            if isinstance(known, tuple):
                self._reprieved.append(known)
                continue
            future = None if known is None else known()
            if future is not None:
                settled.append(future)
                future._settle()
                del future
            if known is None or len(settled) == _MANY:
                self._let_go(settled)
                settled = []
            if known is None:
                break
        self._left = True
        self._settle_rest()
        self.tell_ended()

    def _stop_those_due(self) -> float | None:
        """Cancel the jobs whose reprieve is over; return how long that of the next one is."""
        reprieved = self._reprieved
        while reprieved:
            due, record = reprieved[0]
            left = due - time.monotonic()
            if left > 0 and record.tracker.outcome is None:
                return left
            reprieved.popleft()
            record.ask_cancel()
        return None

    def _settle_rest(self) -> None:
        """Settle what was put here after the end of the last job, which is told first."""
        settled: list[JobFuture[Any]] = []
        with contextlib.suppress(queue.Empty):
            while True:
                known = self._queue.get_nowait()
                future = None if known is None or isinstance(known, tuple) else known()
                if future is not None:
                    settled.append(future)
                    future._settle()
                    del future
        self._let_go(settled)

    @staticmethod
    def _let_go(settled: list[JobFuture[Any]]) -> None:
        """Have futures dropped where foreign code may run."""
        if settled:
            link = record_of(settled[0].job).link
            assert link is not None, "nobody has a future before it was submitted"
            link.call_back(settled.clear)

    def tell_ended(self) -> None:
        """No future is pending any more, nor will be."""
        self._ended = True
        with contextlib.suppress(IndexError):  # one may be taken back meanwhile
            while self._end_waiters:
                self._end_waiters.pop()()


_Order = weakref.ref[JobFuture[Any]] | tuple[float, JobRecord] | None
_settlers: weakref.WeakSet[Settler] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for settler in members(_settlers):
        for future in members(settler.futures):  # settled or not: its lock may be held
            future._abandon()
        settler.pending.clear()
        settler.tell_ended()
    _settlers.clear()


in_forks(Turn.WAITERS, _after_fork_in_child)

__all__ = ["JobFuture", "Settler"]

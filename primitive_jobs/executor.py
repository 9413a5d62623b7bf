"""`JobExecutor`: a pool for everything that takes a `concurrent.futures.Executor`.

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
import itertools
import logging
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from ._common.hints import OF_EXECUTOR, Hinted
from ._common.imported import imported
from ._common.lock_free import members
from ._common.naming import call_name
from ._common.signatures import PoolOptionsDict, Unpack
from ._common.threads import make_thread
from ._engine.record import Callback, JobRecord, PoolLink
from ._wire.chunk import CHECKED, Unpacker, is_packed, reply_of
from ._wire.pickling import LEFT_OUT, load_exception
from ._wire.rows import RowPacker
from ._wire.seeding import child
from .awaiting import in_trio_task
from .base_pool import BasePool, PoolView
from .errors import JobError, PoolClosedError, SerializationError
from .job import PrimitiveJob
from .logs import Later, report_here
from .options import (
    check_bool,
    check_callable,
    check_columns,
    check_count,
    check_seconds,
    shown,
)
from .pool import JobPool
from .status import JobStatus

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._wire.chunk import Reply
    from ._wire.seeding import Key

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_IN_TASK = 0.01  # s that a task's cancel() may hold up its event loop
_NO_ARGUMENTS: tuple[Any, ...] = ()
_JOIN = 1.0  # s; see JobExecutor.shutdown
_MANY = 64  # settled futures at most that are let go together
_REST = 0.01  # s without a further one, after which those are let go that there are
_GRACE = 5.0  # s between SIGTERM and SIGKILL in `terminate_workers`
_NOT_HERE = "the state of this future is its job's: it cannot be set"
_SETTLED = (CANCELLED_AND_NOTIFIED, FINISHED)
_STATES = {
    JobStatus.RUNNING: "running",
    JobStatus.CANCELLED: "cancelled",
    JobStatus.DONE: "finished",
    JobStatus.ERROR: "finished",
}


class JobFuture(Future[T]):
    """The future of a job; made by `JobExecutor.submit`.

    It is what a `concurrent.futures.Future` is, but `cancel` also stops a running job, and results
    are unpickled in the thread that asks for them.

    Attributes:
        job: The `PrimitiveJob`.
    """

    job: PrimitiveJob[T]
    _lock: Any
    _told_of: list[Any]

    def __init__(self, job: PrimitiveJob[T], settler: _Settler) -> None:
        self.job = job
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
        """
        me = threading.get_ident()
        left = self._cancels.setdefault(me, [])
        job = self.job
        try:
            if job._ask_cancel():
                job._tracker.wait(_patience(job._record.link))
            self._settle()
        finally:
            self._cancels.pop(me, None)
            for callback in left:  # as in the standard library, before cancel() returns
                callback.run()
        return job.cancelled()

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
        self.job._tracker.call_when_final(_FutureCallback(self.job._record, call, self._cancels))

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
        state = _STATES.get(self.job._tracker.status, "pending")
        failure = self.job._tracker.failure(self.job)
        if failure is not None:
            state += f" raised {failure}"
        return (
            f"<{type(self).__name__} at {id(self):#x} state={state} "
            f"job={self.job.name!r} {self.job.job_id()}>"
        )

    # --- how it follows its job --------------------------------------------------------------

    def _settle(self) -> bool:
        """Take the job's end over, if it has ended; return whether it has."""
        outcome = self.job._tracker.outcome
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
        if not self._lock._is_owned():
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
            self.job._tracker.call_when_final(tell)
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
        self.job._check_may_wait()
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


class _Settler:
    """Settles futures that somebody waits for; one thread for each executor.

    The thread ends when the executor is shut down or gone and no job is pending any more. It
    holds this object, but neither the executor nor a future.

    Args:
        made: Where it puts itself before it starts its thread, for whoever is to end that.

    Attributes:
        pending: The jobs that are not final yet, in the order they came in.
        futures: Those of its executor that somebody holds.
        thread: Its thread.
    """

    def __init__(self, made: list[_Settler]) -> None:
        self.pending: dict[JobRecord, None] = {}
        self.futures: weakref.WeakSet[JobFuture[Any]] = weakref.WeakSet()
        self._closed = False
        self._queue: queue.SimpleQueue[weakref.ref[JobFuture[Any]] | None] = queue.SimpleQueue()
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
                known = self._queue.get(timeout=_REST if settled else None)
            except queue.Empty:
                self._let_go(settled)
                settled = []
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

    def _settle_rest(self) -> None:
        """Settle what was put here after the end of the last job, which is told first."""
        settled: list[JobFuture[Any]] = []
        with contextlib.suppress(queue.Empty):
            while True:
                known = self._queue.get_nowait()
                future = None if known is None else known()
                if future is not None:
                    settled.append(future)
                    future._settle()
                    del future
        self._let_go(settled)

    @staticmethod
    def _let_go(settled: list[JobFuture[Any]]) -> None:
        """Have futures dropped where foreign code may run."""
        if settled:
            link = settled[0].job._record.link
            assert link is not None, "nobody has a future before it was submitted"
            link.call_back(settled.clear)

    def tell_ended(self) -> None:
        """No future is pending any more, nor will be."""
        self._ended = True
        with contextlib.suppress(IndexError):  # one may be taken back meanwhile
            while self._end_waiters:
                self._end_waiters.pop()()


def _close(settlers: list[_Settler]) -> None:
    for settler in settlers:
        settler.close()


_settlers: weakref.WeakSet[_Settler] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # After that of the dispatchers, whose module is imported first: the jobs have ended.
    for settler in members(_settlers):
        for future in members(settler.futures):  # settled or not: its lock may be held
            future._abandon()
        settler.pending.clear()
        settler.tell_ended()
    _settlers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class JobExecutor(Hinted, Executor):
    """A `concurrent.futures.Executor` whose running futures can be cancelled.

    It takes the place of a `ProcessPoolExecutor`, with these differences: `JobFuture.cancel` also
    stops a running job, with every process below it; a worker that dies costs its own future, not
    the executor; `submit` pickles functions and arguments, with cloudpickle.

    What belongs to the script or notebook travels by value, with the globals that it names, since a
    worker does not import ``__main__``. So lambdas and nested functions travel, too, and each call
    has globals of its own. But: a global that cannot be pickled makes a function that names it fail
    (`SerializationError` says which), and so does the result of looking up a method of
    `functools.singledispatchmethod` on an object, from Python 3.13 on; `functools.lru_cache` begins
    empty in each call; ``__init_subclass__`` and metaclasses run again where a class arrives; in a
    job, ``pickle.dumps`` finds no class of the script, and ``import __main__`` is not the script;
    of the names in annotations that are text, `typing.get_type_hints` finds Python's own and the
    script's classes, not those of other modules.

    As a context manager it waits for its futures at the end. ``async with`` does the same in a task
    of asyncio, trio or anyio without blocking the event loop; if the task is cancelled, in the
    block or while it waits, all unfinished futures are cancelled. An executor that is dropped
    finishes its work and goes.

    Args:
        max_workers: Most worker processes; default: `loky.cpu_count()`.
        mp_context: Accepted for programs written for `ProcessPoolExecutor`: a multiprocessing
            context whose start method is not "fork". It changes nothing: workers are always fresh
            processes, which inherit no memory, as with "spawn".
        initializer: Called in each worker before its first job. If it raises or dies, and no
            other worker works or is still coming, the futures that wait fail with
            `InitializerError`, a `BrokenProcessPool`, and the next submit tries again; else
            another worker is tried after a pause. What it sets in globals of a script or
            notebook, calls see, as `JobPool` says.
        initargs: Its arguments, pickled with it once, now; what multiprocessing shares (locks,
            events, queues, connections, shared ctypes) is allowed among them, but for locks of a
            "fork" context, as `JobPool` says.
        max_tasks_per_child: Jobs after which a worker process is replaced; default None: never.
        pool: A `JobPool`, or what `JobPool.options` returns, to use instead of a pool of its own;
            `shutdown` leaves it open. Then nothing else may be given.
        **pool_options: Further arguments of `JobPool`.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        PoolClosedError: The interpreter is going down.
    """

    _words = OF_EXECUTOR

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = _NO_ARGUMENTS,
        *,
        max_tasks_per_child: int | None = None,
        pool: BasePool | PoolView | None = None,
        **pool_options: Unpack[PoolOptionsDict],
    ) -> None:
        _check_context(mp_context)
        if max_tasks_per_child is not None:
            check_count("max_tasks_per_child", max_tasks_per_child)
            if pool_options.get("max_jobs_per_worker") is not None:
                raise TypeError("max_tasks_per_child and max_jobs_per_worker are the same")
            pool_options["max_jobs_per_worker"] = max_tasks_per_child
        self._own: JobPool | None = None
        if pool is None:
            self._own = pool = JobPool(
                max_workers, initializer=initializer, initargs=initargs, **pool_options
            )
        else:
            if not isinstance(pool, (BasePool, PoolView)):
                raise TypeError(
                    f"pool must be a JobPool, a JobPool.options(...) or None, not {shown(pool)}"
                )
            given = [
                ("max_workers", max_workers),
                ("mp_context", mp_context),
                ("initializer", initializer),
                ("initargs", None if initargs is _NO_ARGUMENTS else initargs),
                *pool_options.items(),
            ]
            for name, value in given:
                if value is not None:
                    raise TypeError(
                        f"pool is given, which is as it was made: so {name} must not be"
                    )
        self._pool: BasePool | PoolView = pool
        self._shut_down = False
        made: list[_Settler] = []  # also by a making that is interrupted
        weakref.finalize(self, _close, made).atexit = False
        self._settler = _Settler(made)

    @property
    def _max_workers(self) -> int:  # which many look at
        return self._pool._worker_count()

    def submit(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> JobFuture[T]:
        """Queue ``function(*args, **kwargs)`` and return its future at once.

        What cannot be pickled is a `SerializationError` of the future.

        Raises:
            PoolClosedError: A `RuntimeError`: the executor or its pool was shut down, or the
                interpreter is going down.
            TypeError: ``function`` cannot be called.
        """
        return self._submit(PrimitiveJob(function, *args, **kwargs))

    def _submit(self, job: PrimitiveJob[T]) -> JobFuture[T]:
        pool, settler = self._pool, self._settler
        future, record = JobFuture(job, settler), job._record
        try:
            # First: so a shutdown sees it, or it the shutdown.
            settler.pending[record] = None
            settler.futures.add(future)
            self._check_open()
            job._tracker.call_when_final(functools.partial(settler.job_ended, record))
            job._submit_to(pool._link, pool._options)
        except BaseException:  # an interrupt may be so late that the job was on its way
            if not job._ask_cancel():
                settler.job_ended(record)
            raise
        return future

    def _check_open(self) -> None:
        if self._shut_down:
            raise PoolClosedError("cannot schedule new futures after shutdown")
        try:
            self._pool._link.check_open()
        except PoolClosedError as error:
            raise PoolClosedError(f"cannot schedule new futures: {error}") from None

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Apply ``fn`` to the items of ``iterables``, like the built-in `map`, in parallel.

        All calls are submitted at once, and run even if nobody asks for a result; results come in
        order. An exception is raised where its result would stand. Then, and when the iterator is
        closed, or dropped after its first result, all unfinished calls are cancelled, running ones
        included. `JobPool.map` is the one for endless input and short calls.

        Args:
            fn: Called with one item of each iterable.
            *iterables: The shortest ends it.
            timeout: Seconds from now in which the next result must come; default None: no limit.
            chunksize: Calls that make up one job; default 1. Of whatever size, each call means what
                `submit` means; what `JobPool.map` says of functions that change holds here, too.
            buffersize: Most jobs whose results were not asked for; only then further items are
                taken. Until they are, the iterator keeps the executor alive. Default None: no
                limit. (As in Python 3.14, in every version.)

        Raises:
            ResultTimeoutError: A `TimeoutError`, from the iterator, when the time is over.
            PoolClosedError: As in `submit`.
            TypeError, ValueError: An argument is wrong; the message names it.
        """
        check_callable("fn", fn)
        seconds = check_seconds("timeout", timeout)
        size = check_count("chunksize", chunksize)
        ahead = None if buffersize is None else check_count("buffersize", buffersize)
        end = None if seconds is None else time.monotonic() + seconds
        columns = check_columns(iterables)
        seeds = self._pool._link.seeds
        key = None if seeds is None else seeds.next()
        jobs = _jobs(fn, columns, size, self._pool._options.name or call_name(fn), key)
        futures: deque[JobFuture[Any]] = deque()
        try:
            self._check_open()
            for job in itertools.islice(jobs, ahead):
                futures.append(self._submit(job))
        except BaseException:  # nobody has a handle
            _cancel(futures)
            raise
        more = None if ahead is None else (self._submit(_inner(job)) for job in jobs)
        return _Results(futures, _results(futures, more, end, chunked=size > 1))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further call. A second call of this is allowed, and may go further.

        A pool that was given stays open. If the pool is the executor's own, failed calls that
        nobody looked at are reported as by `JobPool.shutdown`.

        Args:
            wait: Return only when every future has ended, and the pool, if it is the executor's
                own, with every process and thread, is gone.
            cancel_futures: Cancel the futures that no worker has begun with; running ones go on.

        Raises:
            TypeError: One of them is no bool; nothing has happened then.
        """
        check_bool("wait", wait)
        check_bool("cancel_futures", cancel_futures)
        if wait:
            self._end(cancel_futures=cancel_futures, warn=sys.exc_info()[1] is None)
        else:
            self._close(cancel_futures=cancel_futures)

    def terminate_workers(self) -> None:
        """Shut down, and cancel every future; running jobs get a SIGTERM. Returns at once.

        As in Python 3.14, in every version, with two differences. A process that does not end by
        the SIGTERM is killed: after the job's ``grace``, or after 5 s where it has none. And
        futures whose calls were stopped are cancelled, as after `JobFuture.cancel`;
        `ProcessPoolExecutor` gives them a `BrokenProcessPool`. A pool that was given stays open.
        """
        self._close()
        for record in list(self._settler.pending):
            record.ask_cancel(record.limits.grace or _GRACE)

    def kill_workers(self) -> None:
        """Shut down, and cancel every future; running jobs are killed. Returns at once.

        As `terminate_workers`, without a SIGTERM.
        """
        self._close()
        for record in list(self._settler.pending):
            record.ask_cancel(0.0)

    def _close(self, *, cancel_futures: bool = False) -> None:
        self._shut_down = True
        self._settler.close()
        if self._own is not None:
            self._own.shutdown(wait=False)
        if cancel_futures:
            for record in list(self._settler.pending):
                record.cancel_unbegun()

    def _end(self, *, cancel_futures: bool = False, warn: bool) -> None:
        unseen = None if self._own is None else self._own._engine.unseen
        with contextlib.nullcontext() if unseen is None else unseen.awaited():
            self._close(cancel_futures=cancel_futures)
            if self._own is not None:
                self._own._engine.join()
            for record in list(self._settler.pending):
                self._pool._link.check_may_wait()
                record.tracker.wait()
            # Without an end it would never come back to a finalizer that interrupts wait() where
            # that holds a lock which the settler needs.
            self._settler.thread.join(_JOIN)
        if unseen is not None:
            # The caller of who calls this has the line to be shown.
            unseen.tell_rest(4 if warn else None)

    def __enter__(self) -> Self:
        if self._own is not None:
            self._own._engine.unseen.keep_quiet()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(warn=kind is None)

    async def __aenter__(self) -> Self:
        if self._own is not None:
            self._own._engine.unseen.keep_quiet()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from .awaiting import until_over

        settler, own = self._settler, None if self._own is None else self._own._engine

        def cancel() -> None:
            if own is not None:
                own.shut_down(cancel=True)
            else:
                for record in list(settler.pending):
                    record.ask_cancel()

        hurry = kind is not None and not issubclass(kind, Exception)
        ends = [(settler.call_when_ended, settler.forget_waiter)]
        if own is not None:
            ends.append((own.call_when_gone, own.forget_waiter))
        with contextlib.nullcontext() if own is None else own.unseen.awaited():
            self._close()
            if hurry:
                cancel()
            try:
                await until_over((lambda: None) if hurry else cancel, *ends)
            finally:
                if own is not None and own.gone:
                    own.join()
                if settler.ended:
                    settler.thread.join(_JOIN)
        if own is not None:
            own.unseen.tell_rest(3 if kind is None else None)

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else "open"
        return f"<JobExecutor {state} over {self._pool!r}>"


def _check_context(context: Any) -> None:
    if context is None:
        return
    ask = getattr(context, "get_start_method", None)
    if not callable(ask):
        raise TypeError(f"mp_context must be a multiprocessing context, not {shown(context)}")
    if ask(allow_none=False) == "fork":
        raise ValueError(
            "mp_context must not be one of the start method 'fork': workers are fresh processes, "
            f"as with 'spawn', and cannot inherit memory; it is {shown(context)}"
        )


# --- map ------------------------------------------------------------------------------------------


def _jobs(
    function: Callable[..., Any],
    columns: list[Iterator[Any]],
    size: int,
    label: str,
    key: Key | None,
) -> Iterator[PrimitiveJob[Any]]:
    rows = zip(*columns, strict=False)
    packer = RowPacker(function, columns)
    start = 0
    if size == 1:
        for row in rows:
            job: PrimitiveJob[Any] = PrimitiveJob(function, *row)
            job._record.key = None if key is None else child(key, start)
            start += 1
            yield job
        return
    while True:
        chunk = packer.chunk()
        for row in itertools.islice(rows, size):
            chunk.add_or_refuse(row)
        part = chunk.end(start)
        calls = len(part.rows)
        if not calls:
            return
        first = None if key is None else start
        call, args = part.call(None, first, CHECKED)
        job = PrimitiveJob(call, *args)
        job._record.name = f"{label}[{start}:{start + calls}]"
        job._record.key = key
        start += calls
        yield job


def _inner(job: PrimitiveJob[T]) -> PrimitiveJob[T]:
    job._record.inner = True
    return job


def _answer_for(futures: Iterable[JobFuture[Any]]) -> None:
    """Whoever iterates is told of the first failure, and wants no further result.

    Without anybody who does, each failure is one that nobody looked at.
    """
    for future in futures:
        future.job._record.inner = True
        future.job._tracker.looked_at()


def _cancel(futures: Iterable[JobFuture[Any]]) -> None:
    """Have them cancelled; returns at once."""
    for future in futures:
        future.job._ask_cancel()


def _results(
    futures: deque[JobFuture[Any]],
    more: Iterator[JobFuture[Any]] | None,
    end: float | None,
    *,
    chunked: bool,
    answer_for: Callable[[Iterable[JobFuture[Any]]], None] = _answer_for,
    cancel: Callable[[Iterable[JobFuture[Any]]], None] = _cancel,
) -> Generator[Any, None, None]:
    """The results of ``futures`` and ``more``; no name here refers to one that was yielded.

    At the interpreter's end it may be closed when there are no globals any more.
    """
    failures: list[Exception] = []
    answer_for(futures)
    try:
        while futures:
            try:
                if more is not None:
                    futures.extend(itertools.islice(more, 1))
            except Exception as error:  # noqa: BLE001 - of the iterables; comes in its place
                failures.append(error)
                more = None
            if not chunked:
                yield _result(futures, end)
            else:
                yield from _values(futures, end)
        if failures:
            raise failures.pop()
    finally:
        cancel(futures)
        answer_for(futures)  # one may have been on its way to its end before


def _result(futures: deque[JobFuture[T]], end: float | None) -> T:
    """The first future's result; if it raises, the future has ended or will."""
    future = futures.popleft()
    try:
        return future.result(None if end is None else end - time.monotonic())
    except BaseException:
        future.job._ask_cancel()  # its time is over, or an interrupt came
        raise
    finally:
        del future


def _values(
    futures: deque[JobFuture[Reply | bytes]], end: float | None
) -> Generator[Any, None, None]:
    """The results of a chunk's calls, and what the next one raised."""
    name = futures[0].job.name
    values, failure, _, _, parts, _ = reply_of(_result(futures, end))
    unpacker = Unpacker(parts, name)
    calls = len(values)
    values.reverse()
    while values:
        if is_packed(values[-1]):
            place = calls - len(values)
            yield unpacker.unpack(values.pop(), place)
        else:
            yield values.pop()
    if failure is not None:
        raised = load_exception(failure)
        try:
            raise raised  # by a call: the traceback there is above
        finally:
            del raised


class _Results(Iterator[T]):
    """What `map` returns: a generator whose `close` cancels also before the first result."""

    def __init__(self, futures: deque[JobFuture[Any]], results: Generator[T, None, None]) -> None:
        self._futures = futures
        self._results = results

    def __next__(self) -> T:
        return next(self._results)

    def close(self) -> None:
        """Cancel all that is unfinished; returns at once."""
        self._results.close()
        _cancel(self._futures)


__all__ = ["JobExecutor", "JobFuture"]

"""`JobExecutor`: a pool for everything that takes a `concurrent.futures.Executor`.

The futures that it returns, and how they are settled, are in `futures`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._common.hints import OF_EXECUTOR, Hinted
from ._common.naming import call_name
from ._common.signatures import PoolOptionsDict, Unpack
from ._wire.chunk import Unpacker, is_packed, reply_of
from ._wire.failures import load_exception
from .base_pool import BasePool, PoolView, link_of, options_of, worker_count
from .chunks import chunk_jobs
from .engine_pool import engine_of
from .errors import PoolClosedError
from .futures import JobFuture, Settler
from .job import PrimitiveJob, ask_cancel, record_of, submit_to
from .options import (
    check_bool,
    check_callable,
    check_columns,
    check_count,
    check_seconds,
    shown,
)
from .pool import JobPool

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._engine.record import JobRecord
    from ._wire.chunk import Reply

P = ParamSpec("P")
T = TypeVar("T")

_NO_ARGUMENTS: tuple[Any, ...] = ()
_JOIN = 1.0  # s; see JobExecutor.shutdown
_GRACE = 5.0  # s between SIGTERM and SIGKILL in `terminate_workers`


def _close(settlers: list[Settler]) -> None:
    for settler in settlers:
        settler.close()


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
        cancel_running: What `JobFuture.cancel`, and a `map` that is left, do with calls that run.
            True, the default: stop them. False: leave them, as `concurrent.futures` does, for
            libraries that cancel many at a time and count on the others to end. A number of
            seconds: leave them for so long, then stop those that have not ended.
        pool: A `JobPool`, or what `JobPool.options` returns, to use instead of a pool of its own;
            `shutdown` leaves it open. Then nothing but ``cancel_running`` may be given, too.
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
        cancel_running: bool | float = True,
        pool: BasePool | PoolView | None = None,
        **pool_options: Unpack[PoolOptionsDict],
    ) -> None:
        _check_context(mp_context)
        stops = _check_cancel_running(cancel_running)
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
        self._pool_link = link_of(pool)
        self._pool_options = options_of(pool)
        self._shut_down = False
        made: list[Settler] = []  # also by a making that is interrupted
        weakref.finalize(self, _close, made).atexit = False
        self._settler = Settler(made, stops)

    @property
    def size(self) -> int:
        """How many worker processes there are at most, now."""
        return worker_count(self._pool)

    @property
    def _max_workers(self) -> int:  # which many look at
        return self.size

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
        future = JobFuture(job, record_of(job), self._settler)
        self._settler.futures.add(future)
        self._enlist(job)
        return future

    def _enlist(self, job: PrimitiveJob[Any]) -> None:
        settler, record = self._settler, record_of(job)
        try:
            settler.pending[record] = None  # first: so a shutdown sees it, or it the shutdown
            self._check_open()
            record.tracker.call_when_final(functools.partial(settler.job_ended, record))
            submit_to(job, self._pool_link, self._pool_options)
        except BaseException:  # an interrupt may be so late that the job was on its way
            if not ask_cancel(job):
                settler.job_ended(record)
            raise

    def _check_open(self) -> None:
        if self._shut_down:
            raise PoolClosedError("cannot schedule new futures after shutdown")
        try:
            self._pool_link.check_open()
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
        as ``cancel_running`` says. `JobPool.map` is the one for endless input and short calls.

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
        if self._pool_options.retry_on is not None:
            size = 1  # else calls that have returned would be made again
        ahead = None if buffersize is None else check_count("buffersize", buffersize)
        end = None if seconds is None else time.monotonic() + seconds
        columns = check_columns(iterables)
        seeds = self._pool_link.seeds
        key = None if seeds is None else seeds.next()
        label = self._pool_options.name or call_name(fn)
        jobs = chunk_jobs(fn, zip(*columns, strict=False), columns, size, label, key)
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
                own, with every process and thread, is gone. A pool that was given may still be at
                what callbacks are called for these futures.
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
                record.cancel_queued()

    def _end(self, *, cancel_futures: bool = False, warn: bool) -> None:
        unseen = None if self._own is None else engine_of(self._own).unseen
        with contextlib.nullcontext() if unseen is None else unseen.awaited():
            self._close(cancel_futures=cancel_futures)
            if self._own is not None:
                engine_of(self._own).join()
            for record in list(self._settler.pending):
                self._pool_link.check_may_wait()
                record.tracker.wait()
            # Without an end it would never come back to a finalizer that interrupts wait() where
            # that holds a lock which the settler needs.
            self._settler.thread.join(_JOIN)
        if unseen is not None:
            # The caller of who calls this has the line to be shown.
            unseen.tell_rest(4 if warn else None)

    def __enter__(self) -> Self:
        if self._own is not None:
            engine_of(self._own).unseen.keep_quiet()
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
            engine_of(self._own).unseen.keep_quiet()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from .awaiting import until_over

        settler, own = self._settler, None if self._own is None else engine_of(self._own)

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


def _check_cancel_running(value: object) -> bool | float:
    if isinstance(value, bool):
        return value
    if value is None:
        raise TypeError("cancel_running must be True, False or a number of seconds, not None")
    seconds = check_seconds("cancel_running", value, positive=True)
    if seconds is None:
        raise ValueError(f"cancel_running must be a finite number of seconds, or False: {value!r}")
    return seconds


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


def _inner(job: PrimitiveJob[T]) -> PrimitiveJob[T]:
    record_of(job).inner = True
    return job


# Of these two, what they call is an argument: see `_results`.


def _answer_for(
    futures: Iterable[JobFuture[Any]],
    record_of: Callable[[PrimitiveJob[Any]], JobRecord] = record_of,
) -> None:
    """Whoever iterates is told of the first failure, and wants no further result.

    Without anybody who does, each failure is one that nobody looked at.
    """
    for future in futures:
        record = record_of(future.job)
        record.inner = True
        record.tracker.looked_at()


def _cancel(
    futures: Iterable[JobFuture[Any]],
    stop: Callable[[JobFuture[Any]], bool] = JobFuture.stop,
) -> None:
    """Have them cancelled, running ones as the executor says; returns at once."""
    for future in futures:
        stop(future)


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
        future.stop()  # its time is over, or an interrupt came
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


# --- for the rest of the package ------------------------------------------------------------------

enlist = JobExecutor._enlist
end_executor = JobExecutor._end
pool_of: Callable[[JobExecutor], BasePool | PoolView] = attrgetter("_pool")


def pending_of(executor: JobExecutor) -> list[JobRecord]:
    """Return those of its jobs that are not final."""
    return list(executor._settler.pending)


__all__ = ["JobExecutor", "JobFuture", "end_executor", "enlist", "pending_of", "pool_of"]

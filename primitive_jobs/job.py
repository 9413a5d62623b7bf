"""`PrimitiveJob`: the caller's handle on one call, with the methods of Qiskit's class.

A job talks to its pool only through the `PoolLink` that the pool hands it at submit; what the pool
needs of it is in its `JobRecord`, and everything about its state in its `StatusTracker`. Function,
arguments, metadata and what was loaded of the outcome are here alone, so that they go where their
caller lets go of them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Generator
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any, ParamSpec, Protocol

from ._common.hints import OF_JOB, Hinted, hinted, of_cancel_keyword
from ._common.naming import call_name
from ._common.signatures import JobOptionsDict, Self, Unpack
from ._engine import circles
from ._engine.record import Callback, JobRecord, PoolLink
from ._engine.resubmit import submit_again
from ._engine.serialize import serialize
from ._engine.standing import Standing, needs_of, set_needs
from ._engine.tracker import Outcome, StatusTracker, Unstopped, present
from ._wire.pickling import LEFT_OUT
from .base_job import BasePrimitiveJob, ResultT_co
from .errors import JobError, ResultTimeoutError
from .insight.of_job import Observed
from .options import (
    DEFAULT_OPTIONS,
    UNFIT,
    JobOptions,
    check_bool,
    check_callable,
    check_grace,
    check_seconds,
)
from .status import JobStatus

P = ParamSpec("P")


class Submittable(Protocol):
    """What a job can be submitted to: a `BasePool`, or what `BasePool.options` returns."""

    @property
    def _link(self) -> PoolLink: ...
    @property
    def _options(self) -> JobOptions: ...


FindPool = Callable[[Any], tuple[PoolLink, JobOptions]]
find_pool: FindPool | None = None
"""Set by the pool's module: what a job is submitted to when given ``pool`` (None: the default)."""


class PrimitiveJob(Hinted, Observed, Standing, BasePrimitiveJob[ResultT_co, JobStatus]):
    """One call of a function, to be run in a process of a pool.

    Making a job is cheap and starts nothing.

    Args:
        function: Any callable that cloudpickle can pickle.
        *args: Its positional arguments. Of sockets and of multiprocessing's connections a duplicate
            travels, so they may be closed here once the job is submitted; the duplicates are
            closed when the job is final. Jobs cannot return them. What multiprocessing shares
            (locks, queues, shared ctypes) is for a pool's ``initargs``, a manager's proxies for
            both. A job among them, at any depth, arrives as its result.
        **kwargs: Its keyword arguments.

    Raises:
        TypeError: ``function`` cannot be called, or is an async or generator function.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_loaded",
        "_needs",
        "_options",
        "_record",
        "_submits",
        "_tracker",
        "metadata",
    )
    _words = OF_JOB
    _record: JobRecord
    _tracker: StatusTracker

    def __init__(
        self, function: Callable[P, ResultT_co], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        kind = type(function)
        if (
            function.__code__.co_flags & UNFIT
            if kind is FunctionType
            else kind is MethodType or not callable(function)
        ):
            check_callable("function", function)
        self._call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = (
            function,
            args,
            kwargs,
        )
        # Idents of threads: whoever is first submits it; None: it is done.
        self._submits: list[int] | None = []
        self._tracker = tracker = StatusTracker()
        name = function.__qualname__ if kind is FunctionType else None
        if type(name) is not str:  # of a subclass, perhaps, with its own ways
            name = call_name(function)
        self._record = JobRecord(name, tracker)
        self._loaded: list[tuple[Any, BaseException | None]] = []  # see Outcome.load
        self._options = DEFAULT_OPTIONS
        self.metadata: dict[str, Any] = {}

    # --- submitting --------------------------------------------------------------------------

    def submit(self, pool: Submittable | None = None, **options: Unpack[JobOptionsDict]) -> Self:
        """Serialize the call, here and now, and queue it.

        What cannot be serialized makes the job ERROR with a `SerializationError`, which
        `result` raises. An interrupt (Ctrl-C) while this runs cancels the job and goes on.

        Args:
            pool: A `JobPool`, or what `JobPool.options` returns; default: `default_pool()`.
            **options: See `JobOptions`.

        Returns:
            The job itself.

        Raises:
            JobError: It was submitted or cancelled before.
            PoolClosedError: The pool was shut down, or the interpreter is going down.
            TypeError, ValueError: An option is unknown or wrong.
        """
        if find_pool is None:
            from . import default_pool  # noqa: F401 - the package knows its module, which fills it

        assert find_pool is not None
        link, defaults = find_pool(pool)
        return self._submit_to(link, defaults.replace(options))

    def _submit(self) -> None:
        """Submit to the default pool: the name that Qiskit's primitives call."""
        self.submit()

    def _submit_to(self, link: PoolLink, options: JobOptions) -> Self:
        submits = self._submits
        token = threading.get_ident()  # an object of its own in each call
        try:
            if submits is not None:
                submits.append(token)
            if submits is None or submits[0] is not token:
                raise JobError(f"job {self.name} was submitted before")
            record = self._record
            called = record.name
            if options is not DEFAULT_OPTIONS:
                self._take_options(options, link)
            call = self._call
            tracker = self._tracker
            if not tracker.submitted() or call is None:
                raise JobError(f"job {self.name} was cancelled before it was submitted")
            record.handle, record.link = self, link
            self._call = None
            if link.seeds is not None and record.key is None:
                record.key = link.seeds.next()
            if serialize(record, link, call, called):
                if tracker.serialized():
                    link.enlist(record)
                else:
                    record.let_go()
                    record.drop_payload()
            self._submits = None
            return self
        except BaseException:
            # Whoever called has no handle, or cannot know what became of it: it must not run.
            if submits and submits[0] is token:
                self._record.link = link
                self._ask_cancel()
                self._record.let_go()
            raise

    def _take_options(self, options: JobOptions, link: PoolLink | None) -> None:
        self._options = options
        self._record.take(options, link)
        if options.metadata:
            self.metadata.update(options.metadata)

    # --- Qiskit's eight ----------------------------------------------------------------------

    def job_id(self) -> str:
        """Return the job's uuid4 as text, unique for ever."""
        return self._record.job_id()

    def status(self) -> JobStatus:
        """Return the status as it is now; never blocks."""
        return self._tracker.look()

    def done(self) -> bool:
        """Return whether the status is DONE, as in Qiskit: it ended with a result.

        What a `concurrent.futures.Future` calls done is `in_final_state`: it ended, however.
        """
        return self.status() is JobStatus.DONE

    def running(self) -> bool:
        """Return whether the status is RUNNING: a worker has it."""
        return present(self._tracker) is JobStatus.RUNNING

    def cancelled(self) -> bool:
        """Return whether the status is CANCELLED."""
        return self._tracker.status is JobStatus.CANCELLED

    def in_final_state(self) -> bool:
        """Return whether the status is DONE, CANCELLED or ERROR: what a Future calls done."""
        return self._tracker.outcome is not None

    def result(self, timeout: float | None = None) -> ResultT_co:
        """Return what the function returned, the same object each time, waiting for it.

        Args:
            timeout: Seconds to wait at most; default None: as long as it takes.

        Raises:
            ResultTimeoutError: It is not ready in time; the job goes on.
            JobCancelledError: The job was cancelled.
            JobTimeoutError: It passed its own limit.
            WorkerDiedError: Its process died.
            DependencyError: A job among its arguments did not end with a result.
            SerializationError: The call or the result cannot be pickled or unpickled.
            JobError: It was not submitted.
            BaseException: Whatever the function raised, with the remote traceback as cause.
        """
        outcome = self._await_outcome(timeout)
        value, error = outcome.load(self)
        if error is None:
            return value  # type: ignore[no-any-return]
        outcome.looked_at()
        failure = BaseException.with_traceback(error, None)  # it may have one of its own
        try:
            raise failure  # of the job: if its function raised this, the traceback there is above
        finally:
            # Or this frame and the exception keep each other alive.
            self = LEFT_OUT  # noqa: PLW0642
            del outcome, error, failure

    @hinted("cancel", of_cancel_keyword, positional="it is given by name, as in cancel(grace=5)")
    def cancel(self, *, grace: float | None = None) -> bool:
        """Stop the job for real; when this returns True, nothing of it runs any more.

        A queued job never starts. A running one loses its worker and every process below it,
        whatever it is doing. The worker of no other job is touched. This waits for the end of the
        processes, on the thread of an event loop as well: there, cancel the task that awaits the
        job, or use ``await asyncio.to_thread(job.cancel)``.

        Args:
            grace: Seconds between SIGTERM, which raises SystemExit in the job, and SIGKILL;
                default: the job's option ``grace``, which is 0, SIGKILL at once, unless given. A
                job that returns within the grace is DONE.

        Returns:
            True exactly when the job's final status is CANCELLED.

        Raises:
            JobError: A process of the job could not be killed, and may go on; the status is ERROR.
            TypeError, ValueError: ``grace`` is no finite number of seconds from 0 on.
        """
        if self._ask_cancel(None if grace is None else check_grace(grace)):
            self._check_may_wait()
            outcome = self._tracker.wait()
            if isinstance(outcome, Unstopped):
                outcome.looked_at()
                outcome.looked_at()
                raise JobError(str(outcome.load(self)[1]))
        return self.cancelled()

    def _ask_cancel(self, grace: float | None = None) -> bool:
        """Set a cancel going; return whether its end is still to be waited for."""
        waits = self._record.ask_cancel(grace)
        if self._tracker.outcome is not None:
            self._call = None  # it had not come to its submit, perhaps
        return waits

    def _cancel_unbegun(self) -> bool:
        """Cancel it if it has not ended and no worker was ever to have it; return whether."""
        if not self._record.cancel_unbegun():
            return False
        self._call = None
        return True

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the function raised, None if it returned; waits and raises as `result`.

        Raises:
            JobCancelledError: The job was cancelled.
            ResultTimeoutError, SerializationError, JobError: As in `result`.
        """
        outcome = self._await_outcome(timeout)
        error = outcome.load(self)[1]
        outcome.looked_at()
        if outcome.status is JobStatus.CANCELLED and error is not None:
            cancellation = BaseException.with_traceback(error, None)
            raise cancellation  # of the job: there is nothing to be returned
        return error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job is final, at most ``timeout`` s; return whether it is.

        Raises:
            JobError: It was not submitted.
        """
        seconds = check_seconds("timeout", timeout)
        self._check_submitted()
        self._check_may_wait()
        if seconds is None and self._submits:
            return circles.wait(self) is not None
        return self._tracker.wait(seconds) is not None

    def wait_for_final_state(self, timeout: float | None = None) -> None:
        """Wait until the job is final.

        Raises:
            ResultTimeoutError: It is not, after ``timeout`` s; the job goes on.
            JobError: It was not submitted.
        """
        if not self.wait(timeout):
            raise ResultTimeoutError(
                f"job {self.name} is {self.status().name} after {timeout} s of waiting; it goes on"
            )

    def add_done_callback(self, fn: Callable[[PrimitiveJob[ResultT_co]], object]) -> None:
        """Have ``fn(job)`` called once, when the job is final.

        It runs on a thread for callbacks, where it may call anything; on the calling thread,
        at once, if the job is final already. What it raises is logged on ``primitive_jobs``.
        """
        check_callable("fn", fn)
        callback = Callback(self._record, functools.partial(fn, self))
        if self._tracker.outcome is not None:
            callback.run()
        else:
            self._tracker.call_when_final(callback)

    def __await__(self) -> Generator[Any, None, ResultT_co]:
        """Wait in a task of asyncio, trio or anyio, without blocking its event loop.

        If the task is cancelled, so is the job, for real, after the ``grace`` of its options: its
        processes are gone when the cancellation goes on. Of several tasks that await one job, the
        others get `JobCancelledError` then; ``await asyncio.shield(job)`` cancels nothing. A task
        that is dropped, or whose loop is closed, leaves the job alone. A large result takes its
        time to be unpickled on this thread.

        Raises:
            JobError: At once, if the job was not submitted.
            BaseException: As `result`.
        """
        from .awaiting import until_over

        self._check_submitted()
        self._check_may_wait()
        end = (self._tracker.call_when_final, self._tracker.forget)
        yield from until_over(self._ask_cancel, end).__await__()
        try:
            return self.result()
        finally:
            # Or this frame, the exception and the job keep each other alive.
            self = LEFT_OUT  # noqa: PLW0642
            del end

    @property
    def name(self) -> str:
        """From the options; without, the function's name."""
        return self._record.name

    def history(self) -> tuple[tuple[JobStatus, float], ...]:
        """Return each (status, wall-clock time in s since the epoch) so far, in order."""
        walk = self._tracker.history()
        if walk[-1][0] is JobStatus.ERROR:
            self._tracker.looked_at()
        return walk

    def resubmit(
        self,
        pool: Submittable | None = None,
        *,
        resume: bool = True,
        **options: Unpack[JobOptionsDict],
    ) -> Self:
        """Submit the same call again, as a new job with an id of its own, and return that.

        It is the call as it was serialized, with the key of its randomness. It is there as long as
        this job is, if that has a checkpoint and did not return, or the option ``keep_call``.

        Args:
            pool: What it is submitted to; default: the pool of this job.
            resume: Whether it goes on from the last checkpoint: see `primitive_jobs.resume`.
            **options: See `JobOptions`; the others are those of this job.

        Raises:
            JobError: The job is not over, or its call is not there any more.
            PoolClosedError: The pool was shut down.
            TypeError, ValueError: An option is unknown or wrong.
        """
        check_bool("resume", resume)
        changed = self._options.replace(options)
        return _submitted_again(self, pool, changed, resume=resume)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return _line_of(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return _card_of(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Wait for the end; then everything but function and arguments travels."""
        from ._engine.past_job import state_of

        outcome = self._await_outcome(None)
        state = state_of(self._record, self.metadata, outcome, outcome.load(self))
        return _rebuild, (type(self), state)

    # --- helpers -----------------------------------------------------------------------------

    def _check_submitted(self) -> None:
        if self._submits == [] and self._tracker.outcome is None:
            raise JobError(f"job {self.name} was not submitted: call submit() first")

    def _check_may_wait(self) -> None:
        link = self._record.link
        if link is None or self._tracker.outcome is not None:
            return
        if link.of_parent:
            # The dispatcher's thread had it in its hands, or a caller's was submitting it, when
            # the process was forked: so it was on no list of those that end then.
            self._tracker.abandon(link.owner)
        else:
            link.check_may_wait()

    def _await_outcome(self, timeout: float | None) -> Outcome:
        outcome = self._tracker.outcome
        if outcome is None:
            if timeout is not None:
                self.wait_for_final_state(timeout)
                outcome = self._tracker.outcome
            else:
                self._check_submitted()
                self._check_may_wait()
                outcome = circles.wait(self) if self._submits else self._tracker.wait()
            assert outcome is not None
        elif timeout is not None:
            check_seconds("timeout", timeout)
        self._record.let_go()  # this thread has the handle: with that it goes from now on
        if self._record.prints is not None:
            self._record.prints.printed.wait_shown()
        return outcome


def _submitted_again(
    job: PrimitiveJob[Any], pool: Submittable | None, options: JobOptions, *, resume: bool
) -> Any:
    record = job._record
    link = record.link if pool is None or find_pool is None else find_pool(pool)[0]
    made: PrimitiveJob[Any] = type(job).__new__(type(job))
    made._call = made._submits = None
    made._loaded = []
    made.metadata = {}
    made._record = again = JobRecord(record.name, StatusTracker())
    made._tracker = again.tracker
    made._take_options(options, link)
    again.handle = made
    set_needs(made, needs_of(job))
    try:
        submit_again(record, again, link, resume=resume)
    except BaseException:  # whoever called has no handle: it must not run
        made._ask_cancel()
        again.let_go()
        raise
    return made


def _rebuild(cls: type[PrimitiveJob[Any]], state: tuple[Any, ...]) -> PrimitiveJob[Any]:
    from ._engine.past_job import PastJob

    past = PastJob(state)
    job: PrimitiveJob[Any] = cls.__new__(cls)
    job._call = None
    job._submits = None
    job._loaded = [past.loaded]
    job._options = DEFAULT_OPTIONS
    job.metadata = past.metadata
    job._record = past.record
    job._tracker = past.record.tracker
    return job


def _line_of(job: PrimitiveJob[Any]) -> str:
    """Return a job as a line of text."""
    tracker = job._tracker
    elapsed = sum(seconds for _, seconds in tracker.spans())
    failure = tracker.failure(job)
    state = present(tracker).name if failure is None else f"ERROR {failure},"
    return f"<{type(job).__name__} {job.job_id()} {job.name!r} {state} {elapsed:.3f} s>"


def _card_of(job: PrimitiveJob[Any]) -> str:
    """Return a job as HTML: its name, state and times."""
    from ._common.markup import seconds, table

    tracker = job._tracker
    walk, spans = tracker.history(), tracker.spans()
    spent = dict.fromkeys(JobStatus, 0.0)  # s
    for status, lasted in spans:
        spent[status] += lasted
    last = walk[-1][0]
    rows = [("id", job.job_id())]
    if len(walk) > 1 and walk[1][0] is not JobStatus.CANCELLED:
        submitted = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(walk[1][1]))
        rows += [
            ("submitted", submitted),
            ("waited", seconds(spent[JobStatus.QUEUED])),
            ("ran", seconds(spent[JobStatus.RUNNING])),
            ("took", seconds(sum(lasted for _, lasted in spans[1:]))),
        ]
    pid = job.pid
    if pid is not None:
        node = job.node
        rows.append(("worker", f"process {pid}" if node is None else f"process {pid} on {node}"))
    progress = job.progress
    if progress is not None:
        share = "" if progress.fraction is None else f"{progress.fraction:.0%} "
        rows.append(("progress", share + progress.message))
    failure = tracker.failure(job)
    state = last.name if failure is None else f"ERROR {failure}"
    return table(type(job).__name__, job.name, state, rows)


# --- for the rest of the package ------------------------------------------------------------------

# What it needs of a job, and the job's user does not. None costs a call more than the job's own.
record_of: Callable[[PrimitiveJob[Any]], JobRecord] = attrgetter("_record")
tracker_of: Callable[[PrimitiveJob[Any]], StatusTracker] = attrgetter("_tracker")
submit_to = PrimitiveJob._submit_to
ask_cancel = PrimitiveJob._ask_cancel
cancel_unbegun = PrimitiveJob._cancel_unbegun
check_submitted = PrimitiveJob._check_submitted
check_may_wait = PrimitiveJob._check_may_wait

"""`JobPool`, the process-wide `default_pool` and `run`: what users submit to."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, TypeVar

from . import job as job_module
from ._common.forks import Turn, in_forks
from ._common.hints import hinted, of_pool_keyword, of_shutdown_keyword
from ._common.signatures import Seed, Self
from ._common.thread_variables import thread_settings
from ._engine.engine import Engine
from ._engine.lifetime import check_not_exiting
from ._engine.record import PoolLink
from ._engine.scheduler import Scheduler
from ._local.fleet import LocalFleet
from ._procs.process import WorkerConfig
from ._procs.surroundings import check_surroundings
from ._wire import nesting
from ._wire.initializer import Initializer
from .base_pool import BasePool, PoolView, Submitter
from .job import PrimitiveJob
from .options import (
    DEFAULT_OPTIONS,
    JobOptions,
    check_bool,
    check_callable,
    check_count,
    check_env,
    check_grace,
    check_initargs,
    check_preload,
    check_seconds,
)
from .snapshots import Counts, PoolSnapshot

if TYPE_CHECKING:
    from ._wire.seeding import Seeds

P = ParamSpec("P")
T = TypeVar("T")

IDLE_TIMEOUT = 60.0  # s
# Which caller of the function that warns a `JobFailuresWarning` is shown at, as in `warnings.warn`.
_BLOCK = 4  # of __exit__
_SHUTDOWN = 5  # of shutdown, which is called through its hints


class JobPool(BasePool):
    """A pool of reusable worker processes; each job has one to itself while it runs.

    Workers start when jobs need them, serve many jobs, leave when idle and are replaced when they
    die. As a context manager it waits for its jobs at the end; if the block ends by an exception,
    it cancels them first. ``async with`` does the same in a task of asyncio, trio or anyio without
    blocking the event loop; if the task is cancelled while it waits, all jobs are cancelled. A pool
    that is dropped finishes its jobs and goes.

    Before the next job, a worker undoes what a job has changed, as far as that is cheap; what
    ``preload`` and ``initializer`` have set stays. It restores the working directory, `os.environ`,
    umask, the standard streams, signal masks, timers and the handlers of SIGTERM, SIGINT, SIGCHLD,
    SIGPIPE and SIGALRM, the recursion limit, trace and profile functions, whether the garbage
    collector is on, `faulthandler`. The rest stays, as in every process that is used again:
    imported modules, and what their import has set of all these; a standard stream that was opened
    anew over the same descriptor; descriptors that were closed or redirected; what was set in
    modules (``sys.path``, `builtins`, warning filters, decimal contexts, NumPy's error handling,
    ``random``); locale, resource limits, open files, threads, child processes. Where that matters,
    ``max_jobs_per_worker=1`` gives each job a fresh process.

    Ctrl-Z stops the jobs with the program, and they continue with it (``fg``); the seconds between
    do not count against their limits. A program that is stopped alone (``kill -STOP`` or ``kill
    -TSTP`` with its pid, or Ctrl-Z at the prompt of Python 3.13) leaves its jobs running.

    Args:
        max_workers: Most worker processes; default: `loky.cpu_count()`, which knows of cgroups
            and CPU affinity.
        initializer: Called in each worker before its first job. If it raises or dies, and no
            other worker works or is still coming, the jobs that wait fail with
            `InitializerError`, and the next submit tries again; else another worker is tried
            after a pause of 1 s, which doubles up to 60 s. A spare that fails so fails no job.
            Jobs see the globals of a script or notebook that it sets, unless the caller's value of
            that global differs from what it was when the pool was made: then that one counts. (Of
            a global that the initializer's code does not name, as in ``globals().update(values)``,
            the pool cannot know that: what the initializer has set counts.) What a job binds anew
            there ends with it. That does not hold for attributes of the script's classes, for what
            is set as attributes of the module ``__main__``, nor in pools that a job makes.
        initargs: Its arguments, pickled with it once, now: all workers get the same, whatever
            changes later. What multiprocessing shares is allowed among them: locks and all that
            has one (events, barriers, queues, ``Value``, ``Array``) from a context of the start
            method "spawn" or "forkserver" (``multiprocessing.get_context("spawn").Lock()``),
            connections, sockets, ``RawValue`` and ``RawArray`` from any. A lock of a "fork"
            context, the default on Linux up to Python 3.13, is known to forked children only.
            With that, and with what cannot be pickled, the jobs fail with `InitializerError`.
        env: Environment variables of the workers, besides those of this process.
        threads_per_worker: For BLAS, OpenMP, Numba, Polars, TensorFlow and the like, set by
            environment variables before anything is imported there (`thread_variables` lists them);
            default: max(1, cpus // max_workers), where the environment does not say otherwise.
        idle_timeout: Seconds after which an idle worker leaves; default 60; None: never.
        max_jobs_per_worker: Jobs after which a worker process is replaced by a fresh one, for
            code that leaks; default None: never.
        memory_limit: The `memory_limit` of jobs that have none of their own; default None.
        preload: Names of modules that each worker imports before its first job, so that this does
            not have to wait for them. One that cannot be imported is as an initializer that raises.
        spare_workers: Idle worker processes beyond `max_workers` that stand ready to take the
            place of one that is killed or replaced, since starting one takes some 0.2 s; default
            1. They are started when all workers are busy and the first job has ended, refilled in
            the background, and leave like the others when the pool is idle. 0 saves their memory.
        seed: Makes what is random in jobs reproducible: each job gets a seed of its own, which
            follows from this one and the job's number in the order of the submits, whatever the
            number of workers, kills and retries. Before its function is called, the job's
            ``random`` and ``numpy.random`` are seeded by it, and `job_rng` returns a generator
            made of it. Calls of `map` have each their own, whatever the chunks. An int from 0 on,
            several of them or a `numpy.random.SeedSequence`, whose next children the jobs get (it
            is not changed, so give each pool one of its own); default None: nothing is seeded.
        on_exit: What the interpreter's end does with unfinished jobs: "wait" (default) for them,
            or "cancel" them, each after its ``grace``. A Ctrl-C that ends the program cancels them
            always, and at once.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        PoolClosedError: The interpreter is going down.
        RuntimeError: No pool can work here: in a frozen program (``sys.frozen``) unless
            `multiprocessing.set_executable` was given a Python interpreter; in a job of a job of a
            job of the program, unless the environment variable PRIMITIVE_JOBS_MAX_DEPTH allows
            more than 3 of them; where gevent or eventlet have patched threads.
    """

    @hinted("JobPool", of_pool_keyword, positional="all but max_workers is given by name")
    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        env: Mapping[str, str] | None = None,
        threads_per_worker: int | None = None,
        idle_timeout: float | None = IDLE_TIMEOUT,
        max_jobs_per_worker: int | None = None,
        memory_limit: float | str | None = None,
        preload: Iterable[str] = (),
        spare_workers: int = 1,
        seed: Seed | None = None,
        on_exit: Literal["wait", "cancel"] = "wait",
    ) -> None:
        check_not_exiting()  # before any import: none works any more then
        check_surroundings()
        cpus = _cpu_count()
        count = cpus if max_workers is None else check_count("max_workers", max_workers)
        config = _config(count, cpus, initializer, initargs, env, threads_per_worker, preload)
        leave_after = check_seconds("idle_timeout", idle_timeout, positive=True)
        most_jobs = _count_or_none("max_jobs_per_worker", max_jobs_per_worker)
        spares = check_count("spare_workers", spare_workers, least=0)
        if on_exit not in ("wait", "cancel"):
            raise ValueError(f"on_exit must be 'wait' or 'cancel', not {on_exit!r}")
        seeds = _seeds(seed)
        limit = {} if memory_limit is None else {"memory_limit": memory_limit}
        self._options = DEFAULT_OPTIONS.replace(limit)
        self._max_workers = count
        self._shown = {  # in a notebook
            "idle_timeout": leave_after,
            "memory_limit": self._options.memory_limit,
            "max_jobs_per_worker": most_jobs,
            "spare_workers": spares,
            "preload": config.preload,
            "on_exit": on_exit,
        }
        # It holds the list, not the pool: so a dropped pool is noticed, and ends; also one whose
        # making was interrupted.
        made: list[Engine] = []
        weakref.finalize(self, _shut_down, made).atexit = False
        self._link = self._engine = Engine(
            Scheduler(count, leave_after, most_jobs, spares),
            LocalFleet(config),
            cancel_at_exit=on_exit == "cancel",
            seeds=seeds,
            made=made,
        )

    def _worker_count(self) -> int:
        return self._max_workers

    def jobs(self) -> list[PrimitiveJob[Any]]:
        """Return the jobs that are queued or running now, in the order they came in."""
        handles = [record.handle for record in self._engine.unfinished()]
        return [job for job in handles if job is not None]  # else it has ended this moment

    def cancel_all(self, *, grace: float | None = None) -> None:
        """Cancel every unfinished job and wait until all are final; ``grace`` as in `cancel`."""
        seconds = None if grace is None else check_grace(grace)
        records = self._engine.unfinished()
        self._engine.ask_cancel_all(seconds)
        for record in records:
            record.tracker.wait()

    def snapshot(self) -> PoolSnapshot:
        """Return what the pool has at this moment: counts, unfinished jobs, workers; plain data.

        All that was submitted or cancelled before is in it. It takes 0.1 ms, and 3 to 7 us a job.
        Where the pool's thread does not answer within 0.5 s (a debugger may have stopped it), it is
        what can be seen without that, which may be late.
        """
        return self._engine.snapshot()

    def resize(self, max_workers: int) -> None:
        """Change the number of workers: more start as jobs need them, fewer stay as they get free.

        Raises:
            TypeError, ValueError: It is no int above 0.
            PoolClosedError: The pool was shut down.
        """
        count = check_count("max_workers", max_workers)
        self._engine.resize(count)
        self._max_workers = count

    def restart_workers(self) -> None:
        """Replace all worker processes: idle ones at once, busy ones after their job.

        For when the workers have imported code that has changed since. No job is lost or run twice.

        Raises:
            PoolClosedError: The pool was shut down.
        """
        self._engine.restart_workers()

    @hinted("shutdown", of_shutdown_keyword, positional="only wait is given without its name")
    def shutdown(self, wait: bool = True, *, cancel: bool = False) -> None:
        """Take no further job, and end once all jobs are final. A second call may go further.

        If jobs have failed and nobody looked at them, this gives a `JobFailuresWarning` as its last
        act; while an exception is being handled, and without ``wait``, it only logs that.

        Args:
            wait: Return only when every job is final, and every process and thread gone.
            cancel: Cancel all jobs first, those that run included: each after the ``grace`` of its
                options, and without any if this is the second call that says so.

        Raises:
            TypeError: One of them is no bool; nothing has happened then.
        """
        check_bool("wait", wait)
        check_bool("cancel", cancel)
        if wait:
            warn = sys.exc_info()[1] is None
            self._end(cancel=cancel, stacklevel=_SHUTDOWN if warn else None)
        else:
            self._engine.shut_down(cancel=cancel)

    def _end(self, *, cancel: bool, stacklevel: int | None) -> None:
        engine = self._engine
        with engine.unseen.awaited():
            engine.shut_down(cancel=cancel)
            engine.join()
        # The caller of who calls this has the line to be shown.
        engine.unseen.tell_rest(stacklevel)

    def __enter__(self) -> Self:
        self._engine.unseen.keep_quiet()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(cancel=kind is not None, stacklevel=_BLOCK if kind is None else None)

    async def __aenter__(self) -> Self:
        self._engine.unseen.keep_quiet()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from .awaiting import until_over

        engine = self._engine

        def cancel() -> None:
            if kind is None:  # else it is cancelled already: a second time would be in a hurry
                engine.shut_down(cancel=True)

        with engine.unseen.awaited():
            engine.shut_down(cancel=kind is not None)
            try:
                await until_over(cancel, (engine.call_when_gone, engine.forget_waiter))
            finally:
                if engine.gone:
                    engine.join()
        engine.unseen.tell_rest(3 if kind is None else None)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a JobPool cannot be sent to another process; a job that submits jobs makes one of its "
            "own, or takes default_pool()"
        )

    def __repr__(self) -> str:
        jobs, _ = _described(self._engine.counts())
        return f"<JobPool max_workers={self._max_workers} {self._state()}: {jobs}>"

    def _state(self) -> str:
        if self._engine.of_parent:
            return f"of process {self._engine.owner}"
        return "open" if self._engine.accepting else "shut down"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from ._common.markup import table

        jobs, workers = _described(self._engine.counts())
        options = ", ".join(
            f"{name}={value!r}"
            for name, value in self._shown.items()
            if name == "idle_timeout" or value not in (None, (), "wait")
        )
        rows = [
            ("jobs", jobs),
            ("workers", f"{workers}; at most {self._max_workers} busy"),
            ("options", options),
        ]
        return table(type(self).__name__, "", self._state(), rows)


engine_of: Callable[[JobPool], Engine] = attrgetter("_engine")  # for `JobExecutor`


def _config(
    max_workers: int,
    cpus: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    env: Mapping[str, str] | None,
    threads_per_worker: int | None,
    preload: Iterable[str],
) -> WorkerConfig:
    """Check what concerns each worker, and serialize the initializer."""
    if initializer is not None:
        check_callable("initializer", initializer)
    arguments = check_initargs(initargs)
    variables = check_env(env)
    share = max(1, cpus // max_workers)
    threads = _count_or_none("threads_per_worker", threads_per_worker)
    return WorkerConfig(
        cpu_share=share,
        env={**thread_settings(threads, share), **variables},
        initializer=None if initializer is None else Initializer(initializer, arguments),
        preload=check_preload(preload),
    )


def _count_or_none(name: str, value: int | None) -> int | None:
    return None if value is None else check_count(name, value)


def _seeds(seed: Seed | None) -> Seeds | None:
    if seed is None:
        return None
    from ._wire.seeding import Seeds

    return Seeds(seed)


def _described(counts: Counts) -> tuple[str, str]:
    """Jobs and workers as text; of those that ended badly only if there are any."""
    jobs = [f"{counts.queued} queued, {counts.running} running, {counts.done} done"]
    jobs += [f"{counts.failed} failed"] if counts.failed else []
    jobs += [f"{counts.cancelled} cancelled"] if counts.cancelled else []
    workers = f"{counts.running} busy, {counts.idle} idle"
    return ", ".join(jobs), workers + (f", {counts.starting} starting" if counts.starting else "")


def _shut_down(engines: list[Engine]) -> None:
    for engine in engines:
        engine.shut_down()


def _cpu_count() -> int:
    from loky import cpu_count

    return int(cpu_count())


# --- the default pool -----------------------------------------------------------------------------

_default: JobPool | None = None
_default_lock = threading.RLock()
"""Guards the making of the default pool only, so that two threads do not make two."""


def default_pool() -> JobPool:
    """Return the process-wide pool behind `run` and `PrimitiveJob.submit`; make it if need be.

    Inside a job it has as many workers as the job's share of the CPUs. After its shutdown, and in
    a fork of the process, it is a fresh one.

    Raises:
        PoolClosedError: The interpreter is going down.
    """
    global _default
    pool = _default
    if pool is None or not pool._engine.accepting:
        with _default_lock:
            pool = _default
            if pool is None or not pool._engine.accepting:
                _default = pool = JobPool(nesting.cpu_share)
    return pool


def _new_lock() -> None:
    global _default_lock
    _default_lock = threading.RLock()


in_forks(Turn.PARTS, _new_lock)


def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> PrimitiveJob[T]:
    """Submit ``function(*args, **kwargs)`` to the default pool and return its job."""
    return default_pool().submit(function, *args, **kwargs)


def _find_pool(pool: Any) -> tuple[PoolLink, JobOptions]:
    if pool is None:
        pool = default_pool()
    if not isinstance(pool, Submitter):
        raise TypeError(
            f"pool must be a JobPool, a JobPool.options(...) or None, not {type(pool).__name__}"
        )
    pool._link.check_open()
    return pool._link, pool._options


job_module.find_pool = _find_pool

__all__ = ["JobPool", "PoolView", "default_pool", "run"]

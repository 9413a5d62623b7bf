"""`JobPool`, the process-wide `default_pool` and `run`: what users submit to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

from . import job as job_module
from ._common.forks import Turn, in_forks
from ._common.hints import hinted, of_pool_keyword
from ._common.signatures import Seed
from ._engine.lifetime import check_not_exiting
from ._engine.record import PoolLink
from ._engine.scheduler import Scheduler
from ._local.fleet import LocalFleet
from ._procs.process import WorkerConfig
from ._procs.surroundings import check_surroundings
from ._wire import nesting, present
from .base_pool import PoolView, Submitter, link_of, options_of
from .engine_pool import (
    EnginePool,
    check_numbers,
    check_pool_options,
    check_worker_settings,
    engine_of,
)
from .job import PrimitiveJob
from .options import (
    JobOptions,
    check_bool,
    check_bytes,
    check_count,
    check_resources,
)

P = ParamSpec("P")
T = TypeVar("T")

IDLE_TIMEOUT = 60.0  # s


class JobPool(EnginePool):
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
        memory: What jobs with a ``memory`` of their own may reserve together, in bytes or as a text
            like "64 GB". Default None: what this machine has left, or the cgroup that the program
            is in, each time that such a job waits; in a pool that a job makes, the ``memory`` of
            that job, if it has one.
        resources: How many there are of what jobs ask for by the same option, by name, as
            ``{"gpu": 2, "licence": 1}``; `job_resources` says in the job which ones it has. Default
            None: there are none.
        output: The `output` of jobs that have none of their own: where goes what they print;
            default "inherit": to where this program's stdout and stderr go. What an initializer
            prints goes there always.
        forward_logs: Whether records of the workers' `logging` are handled by this program's
            loggers of the same names, with ``job_id``, ``job_name`` and ``worker_pid``, on the
            thread for callbacks; default False: they are handled in the worker. What the levels of
            this program's loggers do not let pass is not sent: those that they have when a worker
            is started. A job that logs faster than they are handled waits, as for a handler of its
            own. On a cluster there is no such option.
        preload: Names of modules that each worker imports before its first job, so that this does
            not have to wait for them. One that cannot be imported is as an initializer that raises.
            Besides, a spare imports what jobs have made other workers import of the standard
            library and of installed packages before it was started: None turns that off, too.
            Default: no names.
        spare_workers: Idle worker processes beyond `max_workers` that stand ready to take the
            place of one that is killed or replaced, since starting one takes some 0.2 s; default
            1. They are started when all workers are busy and the first job has ended, refilled in
            the background, and leave like the others when the pool is idle. 0 saves their memory.
        seed: Makes what is random in jobs reproducible: each job gets a seed of its own, which
            follows from this one and the job's number in the order of the submits, whatever the
            number of workers, kills and retries. Before its function is called, the job's
            ``random``, ``numpy.random`` and, where it imports that, ``torch`` are seeded by it,
            and `job_rng` returns a generator made of it. Calls of `map` have each their own,
            whatever the chunks. An int from 0 on, several of them or a
            `numpy.random.SeedSequence`, whose next children the jobs get (it is not changed, so
            give each pool one of its own); default None: nothing is seeded.
        on_exit: What the interpreter's end does with unfinished jobs: "wait" (default) for them,
            or "cancel" them, each after its ``grace``. A Ctrl-C that ends the program cancels them
            always, and at once.
        visible: Whether ``python -m primitive_jobs top`` of the same user shows the pool, and its
            ``cancel`` and ``stack`` reach the jobs; default True. The environment variable
            ``PRIMITIVE_JOBS_TOP=0`` turns that off for all pools; those that jobs make are never
            shown.

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
        memory: float | str | None = None,
        resources: Mapping[str, int] | None = None,
        output: str | os.PathLike[str] = "inherit",
        forward_logs: bool = False,
        preload: Iterable[str] | None = (),
        spare_workers: int = 1,
        seed: Seed | None = None,
        on_exit: Literal["wait", "cancel"] = "wait",
        visible: bool = True,
    ) -> None:
        check_not_exiting()  # before any import: none works any more then
        check_surroundings()
        cpus = _cpu_count()
        count = cpus if max_workers is None else check_count("max_workers", max_workers)
        of_workers = initializer, initargs, env, threads_per_worker, preload
        settings = check_worker_settings(count, cpus, *of_workers)
        numbers = check_numbers(idle_timeout, max_jobs_per_worker, spare_workers)
        check_bool("forward_logs", forward_logs)
        budget = check_bytes("memory", memory) or _memory_of_job()
        tokens = check_resources("resources", resources)
        self._options = check_pool_options(memory_limit, output)
        self._max_workers = count
        self._shown = {  # in a notebook
            **numbers._asdict(),
            "memory_limit": self._options.memory_limit,
            "memory": budget,
            "resources": tokens or None,
            "output": self._options.output,
            "forward_logs": forward_logs or None,
            "preload": settings.preload,
            "on_exit": on_exit,
        }
        self._start(
            Scheduler(count, *numbers, memory=budget, tokens=tokens),
            LocalFleet(WorkerConfig(**settings._asdict(), forward_logs=forward_logs)),
            on_exit=on_exit,
            seed=seed,
            visible=visible,
        )


def _memory_of_job() -> int | None:
    """What the job has reserved that makes a pool; None: there is no such job, or it has not."""
    about = present.about() if nesting.depth else None
    return None if about is None or len(about) < 3 else about[2].get("memory")


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
    if pool is None or not engine_of(pool).accepting:
        with _default_lock:
            pool = _default
            if pool is None or not engine_of(pool).accepting:
                _default = pool = JobPool(nesting.cpu_share)
    return pool


def _new_lock() -> None:
    global _default_lock
    _default_lock = threading.RLock()


in_forks(Turn.PARTS, _new_lock)


def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> PrimitiveJob[T]:
    """Submit ``function(*args, **kwargs)`` to the default pool and return its job."""
    return default_pool().submit(function, *args, **kwargs)


def find_pool(pool: Any) -> tuple[PoolLink, JobOptions]:
    """Return what a job is submitted to, given ``pool``; None: the default pool."""
    if pool is None:
        pool = default_pool()
    if not isinstance(pool, Submitter):
        raise TypeError(
            f"pool must be a JobPool, a JobPool.options(...) or None, not {type(pool).__name__}"
        )
    link_of(pool).check_open()
    return link_of(pool), options_of(pool)


job_module.find_pool = find_pool

__all__ = ["JobPool", "PoolView", "default_pool", "find_pool", "run"]

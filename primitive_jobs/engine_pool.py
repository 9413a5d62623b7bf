"""`EnginePool`: what a pool with an engine of this package has, wherever its workers are; and the
checks of arguments that the constructors of such pools share.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from ._common.hints import hinted, of_shutdown_keyword
from ._common.signatures import Seed, Self
from ._common.thread_variables import thread_settings
from ._engine.engine import Engine
from ._engine.fleet import Fleet
from ._engine.scheduler import Scheduler
from ._procs.learned import Learned
from ._wire import nesting
from ._wire.initializer import Initializer
from .base_pool import BasePool
from .insight.timeline import Timeline
from .job import PrimitiveJob
from .monitor import server as monitor
from .options import (
    DEFAULT_OPTIONS,
    JobOptions,
    check_bool,
    check_callable,
    check_count,
    check_env,
    check_grace,
    check_initargs,
    check_output,
    check_preload,
    check_seconds,
)
from .snapshots import Counts, PoolSnapshot

if TYPE_CHECKING:
    from ._wire.seeding import Seeds

# Which caller of the function that warns a `JobFailuresWarning` is shown at, as in `warnings.warn`.
_BLOCK = 4  # of __exit__
_SHUTDOWN = 5  # of shutdown, which is called through its hints


class EnginePool(BasePool):
    """A pool with an engine; each kind makes the engine's fleet in its constructor.

    A kind sets `_options`, `_max_workers` and `_shown` (what a notebook shows of its options) and
    calls `_start`, which sets the rest.
    """

    _engine: Engine
    _max_workers: int
    _shown: dict[str, Any]

    def _start(
        self,
        scheduler: Scheduler,
        fleet: Fleet,
        *,
        on_exit: Literal["wait", "cancel"],
        seed: Seed | None,
        visible: bool = True,
    ) -> None:
        """Make the engine and start its threads; the last thing that a constructor does.

        Raises:
            TypeError, ValueError: ``on_exit``, ``seed`` or ``visible`` is wrong.
            PoolClosedError: The interpreter is going down.
        """
        cancel = check_on_exit(on_exit)
        check_bool("visible", visible)
        seeds = _seeds(seed)
        # It holds the list, not the pool: so a dropped pool is noticed, and ends; also one whose
        # making was interrupted.
        made: list[Engine] = []
        weakref.finalize(self, _shut_down, made).atexit = False
        self._link = self._engine = Engine(
            scheduler, fleet, cancel_at_exit=cancel, seeds=seeds, made=made
        )
        if visible and not nesting.depth and monitor.wanted():  # a worker's pools are its job's
            self._engine.show(partial(monitor.show, type(self).__name__))

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

    def timeline(self) -> Timeline:
        """Return what ran when on the pool's workers: to be saved, or shown in a notebook.

        It has the last 20,000 attempts, and those that run now, up to now. It can be made at any
        time, also after the pool was shut down; in a fork of the program it has what had ended
        before that. It takes 30 ms for 20,000 attempts, of which the pool's own thread is busy for
        less than 1 ms; that is waited for as `snapshot` does.
        """
        name = f"{type(self).__name__}(max_workers={self._worker_count()})"
        return Timeline(name, self._engine.attempts())

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
            f"a {type(self).__name__} cannot be sent to another process; a job that submits jobs "
            "makes one of its own, or takes default_pool()"
        )

    def __repr__(self) -> str:
        jobs, _ = _described(self._engine.counts())
        return f"<{type(self).__name__} max_workers={self._worker_count()} {self._state()}: {jobs}>"

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
            ("workers", f"{workers}; at most {self._worker_count()} busy"),
            ("options", options),
        ]
        return table(type(self).__name__, "", self._state(), rows)


engine_of: Callable[[EnginePool], Engine] = attrgetter("_engine")  # for the rest of the package


# --- arguments of constructors --------------------------------------------------------------------


class WorkerSettings(NamedTuple):
    """What each worker of a pool is started with.

    Attributes:
        cpu_share: The CPUs that one may use, by default.
        env: Variables besides those of the process that starts it.
        initializer: Called before the first job; None: nothing is.
        preload: Names of modules to be imported before that.
        learned: What spares import besides; None: nothing.
        by_cpus: Those of the variables that say how many threads libraries may use, and are ours:
            a worker whose jobs take several CPUs has so many times more.
    """

    cpu_share: int
    env: dict[str, str]
    initializer: Initializer | None
    preload: tuple[str, ...]
    learned: Learned | None
    by_cpus: frozenset[str]


def check_worker_settings(
    max_workers: int,
    cpus: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    env: Mapping[str, str] | None,
    threads_per_worker: int | None,
    preload: Iterable[str] | None,
) -> WorkerSettings:
    """Check what concerns each worker, and serialize the initializer."""
    if initializer is not None:
        check_callable("initializer", initializer)
    arguments = check_initargs(initargs)
    variables = check_env(env)
    share = max(1, cpus // max_workers)
    threads = check_count_or_none("threads_per_worker", threads_per_worker)
    limits = thread_settings(threads, share)
    return WorkerSettings(
        cpu_share=share,
        env={**limits, **variables},
        initializer=None if initializer is None else Initializer(initializer, arguments),
        preload=() if preload is None else check_preload(preload),
        learned=None if preload is None else Learned(),
        by_cpus=frozenset(limits.keys() - variables.keys()),
    )


class Numbers(NamedTuple):
    """What a pool's scheduler is made with, besides the number of workers; see `Scheduler`."""

    idle_timeout: float | None
    max_jobs_per_worker: int | None
    spare_workers: int


def check_numbers(
    idle_timeout: float | None, max_jobs_per_worker: int | None, spare_workers: int
) -> Numbers:
    """Check them."""
    return Numbers(
        check_seconds("idle_timeout", idle_timeout, positive=True),
        check_count_or_none("max_jobs_per_worker", max_jobs_per_worker),
        check_count("spare_workers", spare_workers, least=0),
    )


def check_count_or_none(name: str, value: int | None) -> int | None:
    """Check that it is None or an int from 1 on."""
    return None if value is None else check_count(name, value)


def check_on_exit(value: str) -> bool:
    """Return whether the interpreter's end cancels what is unfinished."""
    if value not in ("wait", "cancel"):
        raise ValueError(f"on_exit must be 'wait' or 'cancel', not {value!r}")
    return value == "cancel"


def check_pool_options(
    memory_limit: float | str | None, output: str | os.PathLike[str] = "inherit"
) -> JobOptions:
    """Return the options of jobs that have none of their own."""
    options: dict[str, Any] = {} if memory_limit is None else {"memory_limit": memory_limit}
    if check_output(output) is None:
        raise TypeError("output must be 'inherit', 'capture', 'tee' or a path, not None")
    if output != "inherit":
        options["output"] = output
    return DEFAULT_OPTIONS.replace(options)


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


__all__ = [
    "EnginePool",
    "Numbers",
    "WorkerSettings",
    "check_count_or_none",
    "check_numbers",
    "check_on_exit",
    "check_pool_options",
    "check_worker_settings",
    "engine_of",
]

"""Run Python callables as jobs in a pool of processes; know their true status; stop them for real.

::

    from primitive_jobs import JobPool, as_completed

    with JobPool(max_workers=4) as pool:
        limited = pool.options(timeout=60)
        jobs = [limited.submit(simulate, temperature) for temperature in grid]
        for job in as_completed(jobs):
            print(job.name, job.result())

What to begin with:

- `run` sends one call to the process-wide `default_pool` and returns its `PrimitiveJob`: `status`,
  `result` and `cancel` are its methods. When `cancel` returns True, nothing of the job runs.
- `JobPool` is a pool of one's own: `JobPool.submit` and `JobPool.map`; `JobPool.options` sets what
  `JobOptions` lists, such as a timeout, a memory limit, a name.
- `as_completed`, `wait` and `track`, which shows progress, wait for many jobs; `gather` and `race`
  take several as one; ``await job`` works under asyncio and trio.
- `JobExecutor` is an executor for whatever takes one of `concurrent.futures`.
- `SweepStore` keeps results in a file: a sweep that was killed goes on where it was.
- `share` is for data that many jobs use, `job_rng` for reproducible randomness.
- Every error is a `JobError`; `primitive_jobs.errors` draws the tree.

``primitive_jobs.multiprocessing`` has a ``Pool`` with the methods of the standard library's.
``primitive_jobs.joblib``, ``primitive_jobs.qiskit`` and ``primitive_jobs.cluster`` (pools on many
machines, by Dask) need their libraries. ``python -m primitive_jobs demo`` shows a sweep with a
cancel and a crash; ``top``, ``cancel`` and ``stack`` look at jobs from another terminal, ``store``
at results that are kept.

How it works::

    caller's thread              │ dispatcher thread: owns queue,      │ worker process (loky)
                                 │ slots, statuses; reads all channels │
    PrimitiveJob ─► pickling  ─► inbox ─► Scheduler ─► Assign ─► Channel.send ══► loads, call, dumps
    job.result() ◄─ unpickle  ◄─ outcome ◄─ StatusTracker ◄─ Channel.receive ◄═════════════┘
                                 │      ▲ pidfd ready, timer due       │
       spawner thread: starts processes     reaper thread: kills trees, reaps

The rooms of the package, each importing only from those after it (`tests/test_layers.py` has the
table); the docstring of each says what it may touch, and what its modules are for:

============  ======================================================================================
joblib        joblib's backend; `qiskit`, its primitives; `multiprocessing`, its pool
cluster       pools on the machines of a Dask cluster
store         results in a file, which outlive the program
what you use  pool, job, executor, mapping, groups, waiting, progress, awaiting, shared
insight       what the owner of jobs reads about them: pictures of plain data
viewer        shows the pools of all programs in another terminal; uses `monitor` alone
monitor       the socket by which a pool is shown there
_local        the workers on this machine
_engine       what a pool decides, and the thread that carries it out
_procs        one worker process from outside
_worker       one from inside
_wire         what travels between a pool and its workers
_common       words, hints, threads; above the vocabulary: errors, logs, options, status,
              snapshots
============  ======================================================================================

The public names are imported when they are first used, so that a worker, which needs few of the
modules, starts fast.
"""

from __future__ import annotations

TYPE_CHECKING = False  # every worker imports this: it does without `typing`
if TYPE_CHECKING:
    from typing import Any

    __version__: str

    from ._wire.seeding import job_rng
    from .base_job import BasePrimitiveJob
    from .base_pool import BasePool
    from .errors import (
        ClusterError,
        DependencyError,
        InitializerError,
        JobCancelledError,
        JobError,
        JobFailuresWarning,
        JobMemoryError,
        JobTimeoutError,
        PoolClosedError,
        ResultTimeoutError,
        SerializationError,
        StaleResultsError,
        StoreBusyError,
        StoreError,
        WorkerDiedError,
    )
    from .executor import JobExecutor
    from .groups import gather, race
    from .inside.checkpoints import checkpoint, resume
    from .inside.current import CurrentJob, current_job
    from .inside.reporting import report
    from .inside.resources import job_resources
    from .insight.progress import Progress
    from .insight.timeline import Timeline
    from .insight.usage import Usage
    from .job import PrimitiveJob
    from .options import JobOptions
    from .pool import JobPool, default_pool, run
    from .progress import track
    from .shared import share
    from .status import FINAL_STATES, JobStatus
    from .store.functions import StoredFunction
    from .store.rows import StoredRow
    from .store.store import SweepStore
    from .store.sweep import Sweep
    from .waiting import as_completed, wait

_HOMES = {
    "errors": (
        "ClusterError",
        "DependencyError",
        "InitializerError",
        "JobCancelledError",
        "JobError",
        "JobFailuresWarning",
        "JobMemoryError",
        "JobTimeoutError",
        "PoolClosedError",
        "ResultTimeoutError",
        "SerializationError",
        "StaleResultsError",
        "StoreBusyError",
        "StoreError",
        "WorkerDiedError",
    ),
    "executor": ("JobExecutor",),
    "groups": ("gather", "race"),
    "inside.checkpoints": ("checkpoint", "resume"),
    "inside.current": ("CurrentJob", "current_job"),
    "inside.reporting": ("report",),
    "inside.resources": ("job_resources",),
    "insight.progress": ("Progress",),
    "insight.usage": ("Usage",),
    "insight.timeline": ("Timeline",),
    "base_job": ("BasePrimitiveJob",),
    "base_pool": ("BasePool",),
    "job": ("PrimitiveJob",),
    "options": ("JobOptions",),
    "pool": ("JobPool", "default_pool", "run"),
    "progress": ("track",),
    "_wire.seeding": ("job_rng",),
    "shared": ("share",),
    "status": ("FINAL_STATES", "JobStatus"),
    "store.functions": ("StoredFunction",),
    "store.rows": ("StoredRow",),
    "store.store": ("SweepStore",),
    "store.sweep": ("Sweep",),
    "waiting": ("as_completed", "wait"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

# Names in lower case that others have and this package has not; see `hints`.
_ELSEWHERE = frozenset(
    "apply_async call cpu_count delayed get_reusable_executor map submit tqdm".split()  # noqa: SIM905
)

__all__ = [
    "FINAL_STATES",
    "BasePool",
    "BasePrimitiveJob",
    "ClusterError",
    "CurrentJob",
    "DependencyError",
    "InitializerError",
    "JobCancelledError",
    "JobError",
    "JobExecutor",
    "JobFailuresWarning",
    "JobMemoryError",
    "JobOptions",
    "JobPool",
    "JobStatus",
    "JobTimeoutError",
    "PoolClosedError",
    "PrimitiveJob",
    "Progress",
    "ResultTimeoutError",
    "SerializationError",
    "StaleResultsError",
    "StoreBusyError",
    "StoreError",
    "StoredFunction",
    "StoredRow",
    "Sweep",
    "SweepStore",
    "Timeline",
    "Usage",
    "WorkerDiedError",
    "as_completed",
    "checkpoint",
    "current_job",
    "default_pool",
    "gather",
    "job_resources",
    "job_rng",
    "race",
    "report",
    "resume",
    "run",
    "share",
    "track",
    "wait",
]


if not TYPE_CHECKING:  # or type checkers believe that every name is there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("primitive_jobs")
            except PackageNotFoundError:  # help() of the package asks whether there is one
                raise AttributeError(
                    "primitive_jobs is not installed, so no version is known"
                ) from None
        home = _HOME_OF.get(name)
        if home is None:
            raise _absent(name)
        from importlib import import_module

        value = getattr(import_module(f".{home}", __name__), name)
        globals()[name] = value  # the next look-up does not get here
        return value


def _absent(name: str) -> Exception:
    """What says that a name is not there, with a hint at what it may be called here."""
    text = f"module {__name__!r} has no attribute {name!r}"
    # A name of a module of ours comes here, too, before that is imported: by a worker, say.
    if name.startswith("_") or (name.islower() and name not in _ELSEWHERE):
        return AttributeError(text)
    import sys

    from ._common.hints import of_name

    hint = of_name(name, __all__)
    if hint is None:
        return AttributeError(text)
    # `from primitive_jobs import X` first asks in there whether X is here; an AttributeError would
    # become "cannot import name", without the hint.
    asker = sys._getframe(2).f_code
    if asker.co_name == "_handle_fromlist" and "importlib._bootstrap" in asker.co_filename:
        return ImportError(f"cannot import name {name!r} from {__name__!r}: {hint}", name=__name__)
    return AttributeError(f"{text}: {hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

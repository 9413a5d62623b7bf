"""Words that other libraries use for what is called differently here, and what to say to them.

Nothing of this is looked at before something has failed: a name that is not there, a keyword that a
function does not take. What is raised is what Python would raise, with a hint at its end; so
``hasattr`` is False as ever. It imports nothing but the standard library.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

JOB_OPTIONS = (
    "name",
    "metadata",
    "timeout",
    "priority",
    "memory_limit",
    "retries",
    "grace",
    "cwd",
    "env",
    "keep_call",
    "output",
    "retry_on",
    "retry_delay",
    "cpus",
    "memory",
    "resources",
)

_SHORT = 30  # characters of a text that a message repeats
_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")
_REFUSED = r"unexpected keyword argument '{0}'|'{0}' is an invalid keyword|takes no keyword arg"


def _all(names: str, hint: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), hint)


# --- names of the package -------------------------------------------------------------------------

_NAMES = {
    **_all(
        "Pool",
        "the pool is JobPool; one like multiprocessing's is primitive_jobs.multiprocessing.Pool",
    ),
    **_all("ProcessPool WorkerPool PrimitivePool Workers", "the pool is JobPool"),
    **_all("Job PrimitiveJobs Task", "a job is a PrimitiveJob"),
    **_all("Process", "run(function, *args) calls a function in a process of the default pool"),
    **_all(
        "Executor ProcessPoolExecutor ThreadPoolExecutor PoolExecutor ProcessExecutor",
        "the concurrent.futures executor is JobExecutor",
    ),
    **_all("get_reusable_executor", "use JobExecutor(pool=default_pool())"),
    **_all(
        "Future JobFuture", "JobExecutor.submit returns futures, any other submit PrimitiveJobs"
    ),
    **_all("Status JobState State", "the states are those of JobStatus"),
    **_all(
        "submit map", "that is a method of a pool: JobPool().submit(...), default_pool().map(...)"
    ),
    **_all("apply_async call", "run(function, *args) returns a job at once"),
    **_all("CancelledError", "result() of a cancelled job raises JobCancelledError"),
    **_all(
        "TimeoutError",
        "the waiting raises ResultTimeoutError, a job's own limit JobTimeoutError; both are "
        "built-in TimeoutErrors",
    ),
    **_all("BrokenProcessPool BrokenExecutor", "a worker's death is a WorkerDiedError"),
    **_all("MemoryLimitError", "a job beyond its limit has a JobMemoryError"),
    **_all("PooledSampler PooledEstimator", "it is in primitive_jobs.qiskit"),
    **_all(
        "Parallel delayed",
        "that is joblib's: import primitive_jobs.joblib, call its register(), and use "
        'joblib.Parallel(backend="primitive_jobs")',
    ),
    **_all("cpu_count", "loky.cpu_count() is what a pool's size is by default"),
    **_all("tqdm", "track(jobs) is as_completed with a progress bar"),
}


def of_name(name: str, public: Iterable[str]) -> str | None:
    """Return what to say to whoever looks for ``name`` in the package; None: nothing."""
    hint = _NAMES.get(name)
    if hint is not None or name.startswith("_"):
        return hint
    plain = name.replace("_", "").lower()
    for other in public:
        if other.replace("_", "").lower() in (plain, plain + "s", plain.removesuffix("s")):
            return f"it is spelt {other}"
    return None


# --- attributes -----------------------------------------------------------------------------------

_FOR_ANY_POOL = {
    **_all("apply", "use submit(function, *args).result()"),
    **_all("apply_async schedule spawn start run call", "use submit(function, *args)"),
    **_all(
        "imap map_async amap",
        "map() is lazy: it works ahead and gives results as they are asked for",
    ),
    **_all("imap_unordered uimap map_unordered", "use map(..., ordered=False)"),
    **_all("starmap starmap_async istarmap", "use map(function, *zip(*tuples))"),
}
OF_POOL = {
    **_FOR_ANY_POOL,
    **_all("close", "the end of the pool's with block, or shutdown(), waits for its jobs"),
    **_all("join", "shutdown() waits for all jobs and ends the pool; wait(pool.jobs()) only waits"),
    **_all(
        "terminate kill stop abort terminate_workers kill_workers",
        "shutdown(cancel=True) ends the pool and all its jobs",
    ),
    **_all("cancel cancel_futures", "cancel_all() cancels every unfinished job"),
    **_all("restart", "use restart_workers()"),
    **_all(
        "wait gather as_completed track", "that is a function: it takes jobs, such as pool.jobs()"
    ),
    **_all("workers n_workers processes num_workers", "repr(pool) tells it; resize(n) changes it"),
    **_all("clear purge", "cancel_all() and restart_workers() are there"),
}
OF_VIEW = {
    **_FOR_ANY_POOL,
    **_all(
        "shutdown jobs snapshot cancel_all resize restart_workers close join terminate",
        "what options() returns has submit, map and options; the rest is the pool's own",
    ),
}
OF_EXECUTOR = {
    **_FOR_ANY_POOL,
    **_all("close join", "use shutdown()"),
    **_all("terminate stop cancel cancel_all", "use terminate_workers()"),
    **_all("kill abort", "use kill_workers()"),
    **_all("options", "that is a pool's: JobExecutor(pool=pool.options(...))"),
    **_all("jobs", "each future's job is future.job"),
}
OF_JOB = {
    **_all("get value", "use result()"),
    **_all("join", "use wait()"),
    **_all("ready finished is_done is_finished", "use in_final_state()"),
    **_all("successful succeeded", "use done(): it ended with a result"),
    **_all("kill terminate stop abort", "use cancel()"),
    **_all("is_alive", "running() is True while a worker has it; in_final_state() once it ended"),
    **_all("state", "use status()"),
    **_all("id", "use job_id()"),
    **_all(
        "error traceback", "exception() returns what it raised; its __cause__ has the traceback"
    ),
    **_all("start run", "use submit()"),
    **_all(
        "args kwargs function fn", "the call is let go once it is submitted; metadata is for that"
    ),
    # What asyncio.wait and concurrent.futures look for in what they are to wait for.
    "remove_done_callback": "a job is not a future: asyncio.ensure_future(job) makes one",
    "_condition": "a job is not a future: wait and as_completed of primitive_jobs take jobs",
}


class Hinted:
    """A class whose users look for attributes under other names."""

    __slots__ = ()

    _words: ClassVar[Mapping[str, str]] = {}
    """What to say to some."""

    if not TYPE_CHECKING:  # or type checkers believe that every attribute is there

        def __getattr__(self, name: str) -> Any:
            hint = self._words.get(name)
            if hint is None:
                return object.__getattribute__(self, name)  # which raises what it did
            kind = type(self).__name__
            raise AttributeError(
                f"{kind!r} object has no attribute {name!r}: {hint}", name=name, obj=self
            )


# --- arguments ------------------------------------------------------------------------------------

_WORKERS = "the number of worker processes is max_workers"
_POOL_KEYWORDS = {
    **_all("workers processes n_jobs njobs max_worker nprocs nproc n_procs num_procs", _WORKERS),
    **_all("num_workers n_workers nworkers num_processes n_processes max_processes", _WORKERS),
    **_all("cpus n_cpus ncpus num_cpus nodes size", _WORKERS),
    **_all(
        "maxtasksperchild max_tasks_per_child max_tasks maxtasks",
        "the jobs after which a worker is replaced are max_jobs_per_worker",
    ),
    **_all("mp_context context", "workers are fresh processes always, as with 'spawn'"),
    **_all(
        "threads n_threads num_threads inner_max_num_threads",
        "the threads of numerical libraries are threads_per_worker",
    ),
    **_all("init init_fn", "it is initializer, with initargs"),
    **_all("daemon", "on_exit says what the interpreter's end does with unfinished jobs"),
}


def of_pool_keyword(name: str) -> str | None:
    """What to say to whoever makes a pool with an argument ``name``."""
    if name in JOB_OPTIONS:
        return f"options of its jobs go to pool.options({name}=...).submit(...)"
    return _POOL_KEYWORDS.get(name)


def of_map_keyword(name: str) -> str | None:
    """What to say to whoever calls a pool's ``map`` with an argument ``name``."""
    if name in JOB_OPTIONS:
        return f"options of its jobs go to pool.options({name}=...).map(...)"
    if name in ("chunk_size", "chunks", "batch_size"):
        return "the calls that make up a job are chunksize"
    return None


def of_shutdown_keyword(name: str) -> str | None:
    """What to say to whoever shuts a pool down with an argument ``name``."""
    if name in ("cancel_futures", "kill_workers", "force", "terminate"):
        return "cancel=True cancels all jobs first"
    return "wait(pool.jobs(), timeout=...) waits for a time" if name == "timeout" else None


def of_cancel_keyword(name: str) -> str | None:
    """What to say to whoever cancels a job with an argument ``name``."""
    if name in ("timeout", "wait", "patience", "delay"):
        return "the seconds between SIGTERM and SIGKILL are grace"
    return None


def hinted(
    shown: str, hint: Callable[[str], str | None], *, positional: str = ""
) -> Callable[[F], F]:
    """Have a function say more where it is called with arguments that it does not take.

    Args:
        shown: The function's name in messages.
        hint: What to say for a keyword.
        positional: What to say for too many positional arguments.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except TypeError as error:
                trace = error.__traceback__
                if trace is None or trace.tb_next is not None:  # it was called
                    raise
                message = str(error).replace(f"{function.__qualname__}()", f"{shown}()")
            keyword = _KEYWORD.search(message)
            told = hint(keyword[1]) if keyword else None
            if keyword and told:
                message = f"{message[: keyword.end()]}: {told}"  # without a guess of Python's
            elif "positional argument" in message and "given" in message and positional:
                message = f"{message}: {positional}"
            raise TypeError(message)

        return call  # type: ignore[return-value]

    return decorate


def add_option_hint(error: TypeError, name: str, kwargs: Mapping[str, Any], *, own: bool) -> None:
    """Say in a call's own TypeError where options of a job belong, if it was given one of them.

    Args:
        error: What the call raised.
        name: The function's.
        kwargs: What it was called with.
        own: Whether it was the call itself that failed, before the function's first line.
    """
    message = error.args[0] if len(error.args) == 1 else None
    if not isinstance(message, str) or not (own or message.startswith(f"{name}() ")):
        return
    for option in JOB_OPTIONS:
        if option in kwargs and re.search(_REFUSED.format(option), message):
            value = kwargs[option]
            short = type(value) in (bool, int, float) or (
                type(value) is str and len(value) <= _SHORT
            )
            told = f"{option}={value!r}" if short else f"{option}=..."
            hint = f"an option of the job goes to pool.options({told}).submit(...)"
            error.args = (f"{message} ({hint}, not among the function's arguments)",)
            return


__all__ = [
    "JOB_OPTIONS",
    "OF_EXECUTOR",
    "OF_JOB",
    "OF_POOL",
    "OF_VIEW",
    "Hinted",
    "add_option_hint",
    "hinted",
    "of_cancel_keyword",
    "of_map_keyword",
    "of_name",
    "of_pool_keyword",
    "of_shutdown_keyword",
]

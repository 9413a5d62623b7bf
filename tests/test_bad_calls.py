"""Each public function with each kind of wrong argument.

The answer is a `TypeError` or `ValueError` that names the argument, what it got and what is right;
nothing is started and nothing is lost. A check of the signatures says which argument the table
leaves out.
"""

from __future__ import annotations

import inspect
import multiprocessing.context
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from helpers import PATIENCE, case

import primitive_jobs
from primitive_jobs import (
    CurrentJob,
    JobExecutor,
    JobOptions,
    JobPool,
    JobStatus,
    PrimitiveJob,
    Progress,
    StoredFunction,
    StoredRow,
    Sweep,
    SweepStore,
    Timeline,
    Usage,
    as_completed,
    checkpoint,
    default_pool,
    gather,
    race,
    report,
    run,
    track,
    wait,
)
from primitive_jobs.pool import PoolView

NAN, INFINITY = float("nan"), float("inf")


class BadRepr:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("never shown")


class Forking(multiprocessing.context.ForkContext):
    """Shown alike in every process."""

    def __repr__(self) -> str:
        return "a fork context"


def use(value: Any) -> Any:
    """What jobs call here, and what a type checker would not let through."""
    return value


def fail() -> None:
    raise ValueError("mine")


class Kind(NamedTuple):
    """Values that are wrong for one kind of argument, and what the message says is right."""

    right: str
    types: tuple[Any, ...]  # TypeError
    values: tuple[Any, ...] = ()  # ValueError


CALLABLE = Kind("must be callable", (None, 3, "print", BadRepr()))
SECONDS = Kind("number of seconds", ("1", True, [1], 1j, BadRepr()), (NAN,))
LIMIT = Kind("seconds", ("1", True, [1], 1j, BadRepr()), (NAN, 0, -1, -INFINITY))
GRACE = Kind("number of seconds", ("1", True, [1], None, BadRepr()), (NAN, -1, INFINITY))
DELAY = GRACE
KINDS = Kind("retry_on", ("OSError", 1, [OSError], int, (OSError, 1), BadRepr()), (OSError,))
NEW_GRACE = GRACE._replace(types=tuple(bad for bad in GRACE.types if bad is not None))
COUNT = Kind("must be", ("1", True, 1.5, [1], 1j, BadRepr()), (0, -1))
FROM_ZERO = Kind("must be", ("1", True, 1.5, None, BadRepr()), (-1,))
WHOLE = Kind("must be an int", ("1", True, 1.5, None, BadRepr()))
SIZE = Kind("must be", (True, [1], 1j, BadRepr()), (NAN, 0, -1, "", "much", "1 XB", "-1 MB"))
SEED = Kind("seed", ("1", b"1", True, 1.5, [1.5], ["a"], 1j, BadRepr()), (-1, [], [-1]))
BOOL = Kind("must be True or False", ("no", 0, 1, None, BadRepr()))
JOBS = Kind("iterable of PrimitiveJobs", (3, None, [3], [None], [[]], ["a"], "abc", [BadRepr()]))
TEXT = Kind("must be a str", (3, None, b"a", ["a"], BadRepr()))
NAME = Kind("must be a str or None", (3, b"a", ["a"], BadRepr()))
METADATA = Kind("must be a dict or None", (3, "a", [("a", 1)], BadRepr()))
ARGUMENTS = Kind("must be a tuple", (3, None, "abc", b"abc", BadRepr()))
MODULES = Kind("names of modules", (3, None, "numpy", [3], BadRepr()), (["a b"], [""], ["a."]))
NEW_MODULES = MODULES._replace(types=tuple(bad for bad in MODULES.types if bad is not None))
ITERABLE = Kind("must be an iterable", (3, None, use, BadRepr()))
POOL = Kind("must be a JobPool", (3, "default", JobPool, [], BadRepr()))
WHEN = Kind("must be one of", (), (None, 3, "ALL", "FIRST_COMPLETED "))
AT_EXIT = Kind("must be 'wait' or 'cancel'", (), (None, 3, "kill", True))
CONTEXT = Kind("must", (3, "spawn", multiprocessing.Process), (Forking(),))
PERCENT = Kind("must be a", ("1", True, [1], None, 1j, BadRepr()), (NAN, -1))
FRACTION = Kind("must be", ("1", True, [1], 1j, BadRepr()), (NAN, -0.1, 1.1, INFINITY))
OUTPUT = Kind("output", (3, b"a", ["a"], BadRepr()), ("", "nowhere", "a\0/b", "a/", "{other}"))
PATH = Kind("cwd", (3, b"a", ["a"], BadRepr()), ("", "a\0b"))
TOKENS = Kind(
    "resources",
    (3, ["gpu"], "gpu", {1: 1}, {"gpu": "1"}, {"gpu": True}, {"gpu": 1.5}),
    ({"": 1}, {"gpu": 0}, {"gpu": -1}),
)
ENV = Kind("env", (3, ["a"], "a=b", {"a": 1}, {1: "a"}), ({"": "a"}, {"a=b": "c"}, {"a": "\0"}))

OPTIONS: dict[str, Kind] = {
    "name": NAME,
    "metadata": METADATA,
    "timeout": LIMIT,
    "priority": WHOLE,
    "memory_limit": SIZE,
    "retries": FROM_ZERO,
    "grace": GRACE,
    "cwd": PATH,
    "env": ENV,
    "keep_call": BOOL,
    "output": OUTPUT,
    "retry_on": KINDS,
    "retry_delay": DELAY,
    "cpus": COUNT._replace(types=(*COUNT.types, None)),
    "memory": SIZE,
    "resources": TOKENS,
}

# (function, argument) -> (kind, call with a wrong value); `pool` and `job` are live.
Call = Callable[[JobPool, PrimitiveJob[Any], Any], object]
TABLE: dict[tuple[Any, str], tuple[Kind, Call]] = {
    (run, "function"): (CALLABLE, lambda pool, job, bad: run(bad)),
    (PrimitiveJob, "function"): (CALLABLE, lambda pool, job, bad: PrimitiveJob(bad)),
    (PrimitiveJob.submit, "pool"): (POOL, lambda pool, job, bad: PrimitiveJob(use, 1).submit(bad)),
    (PrimitiveJob.cancel, "grace"): (NEW_GRACE, lambda pool, job, bad: job.cancel(grace=bad)),
    (PrimitiveJob.add_done_callback, "fn"): (
        CALLABLE,
        lambda pool, job, bad: job.add_done_callback(bad),
    ),
    (wait, "jobs"): (JOBS, lambda pool, job, bad: wait(bad)),
    (wait, "timeout"): (SECONDS, lambda pool, job, bad: wait([job], bad)),
    (wait, "return_when"): (WHEN, lambda pool, job, bad: wait([job], return_when=bad)),
    (as_completed, "jobs"): (JOBS, lambda pool, job, bad: as_completed(bad)),
    (as_completed, "timeout"): (SECONDS, lambda pool, job, bad: as_completed([job], bad)),
    (gather, "jobs"): (JOBS, lambda pool, job, bad: gather(bad)),
    (gather, "fail_fast"): (BOOL, lambda pool, job, bad: gather([job], fail_fast=bad)),
    (gather, "timeout"): (SECONDS, lambda pool, job, bad: gather([job], timeout=bad)),
    (race, "jobs"): (JOBS, lambda pool, job, bad: race(bad)),
    (race, "timeout"): (SECONDS, lambda pool, job, bad: race([job], timeout=bad)),
    (track, "jobs"): (JOBS, lambda pool, job, bad: track(bad)),
    (track, "description"): (TEXT, lambda pool, job, bad: track([job], bad)),
    (track, "timeout"): (SECONDS, lambda pool, job, bad: track([job], timeout=bad)),
    (track, "details"): (BOOL, lambda pool, job, bad: track([job], details=bad)),
    (report, "fraction"): (FRACTION, lambda pool, job, bad: report(bad)),
    (report, "message"): (TEXT, lambda pool, job, bad: report(message=bad)),
    (checkpoint, "force"): (BOOL, lambda pool, job, bad: checkpoint(1, force=bad)),
    (checkpoint, "most"): (PERCENT, lambda pool, job, bad: checkpoint(1, most=bad)),
    (PrimitiveJob.resubmit, "pool"): (POOL, lambda pool, job, bad: job.resubmit(bad)),
    (PrimitiveJob.resubmit, "resume"): (BOOL, lambda pool, job, bad: job.resubmit(resume=bad)),
    (track, "disable"): (BOOL, lambda pool, job, bad: track([job], disable=bad)),
    (JobPool, "max_workers"): (COUNT, lambda pool, job, bad: JobPool(bad)),
    (JobPool, "initializer"): (
        CALLABLE._replace(types=(3, "print", BadRepr())),
        lambda pool, job, bad: JobPool(1, initializer=bad),
    ),
    (JobPool, "initargs"): (ARGUMENTS, lambda pool, job, bad: JobPool(1, initargs=bad)),
    (JobPool, "env"): (ENV, lambda pool, job, bad: JobPool(1, env=bad)),
    (JobPool, "threads_per_worker"): (
        COUNT,
        lambda pool, job, bad: JobPool(1, threads_per_worker=bad),
    ),
    (JobPool, "idle_timeout"): (LIMIT, lambda pool, job, bad: JobPool(1, idle_timeout=bad)),
    (JobPool, "max_jobs_per_worker"): (
        COUNT,
        lambda pool, job, bad: JobPool(1, max_jobs_per_worker=bad),
    ),
    (JobPool, "memory_limit"): (SIZE, lambda pool, job, bad: JobPool(1, memory_limit=bad)),
    (JobExecutor, "cancel_running"): (
        Kind("cancel_running", ("yes", None, [1], 1j, BadRepr()), (NAN, 0, -1, INFINITY)),
        lambda pool, job, bad: JobExecutor(pool=pool, cancel_running=bad),
    ),
    (JobPool, "memory"): (SIZE, lambda pool, job, bad: JobPool(1, memory=bad)),
    (JobPool, "resources"): (TOKENS, lambda pool, job, bad: JobPool(1, resources=bad)),
    (JobPool, "preload"): (NEW_MODULES, lambda pool, job, bad: JobPool(1, preload=bad)),
    (JobPool, "spare_workers"): (
        FROM_ZERO,
        lambda pool, job, bad: JobPool(1, spare_workers=bad),
    ),
    (JobPool, "seed"): (SEED, lambda pool, job, bad: JobPool(1, seed=bad)),
    (JobPool, "on_exit"): (AT_EXIT, lambda pool, job, bad: JobPool(1, on_exit=bad)),
    (JobPool, "output"): (OUTPUT, lambda pool, job, bad: JobPool(1, output=bad)),
    (JobPool, "forward_logs"): (BOOL, lambda pool, job, bad: JobPool(1, forward_logs=bad)),
    (JobPool, "visible"): (BOOL, lambda pool, job, bad: JobPool(1, visible=bad)),
    (PrimitiveJob.output, "tail"): (
        FROM_ZERO._replace(types=tuple(bad for bad in FROM_ZERO.types if bad is not None)),
        lambda pool, job, bad: job.output(bad),
    ),
    (JobPool.submit, "function"): (CALLABLE, lambda pool, job, bad: pool.submit(bad)),
    (JobPool.map, "function"): (CALLABLE, lambda pool, job, bad: pool.map(bad, [1])),
    (JobPool.map, "iterables"): (ITERABLE, lambda pool, job, bad: pool.map(pow, [1], bad)),
    (JobPool.map, "timeout"): (SECONDS, lambda pool, job, bad: pool.map(use, [1], timeout=bad)),
    (JobPool.map, "chunksize"): (COUNT, lambda pool, job, bad: pool.map(use, [1], chunksize=bad)),
    (JobPool.map, "ordered"): (BOOL, lambda pool, job, bad: pool.map(use, [1], ordered=bad)),
    (JobPool.cancel_all, "grace"): (NEW_GRACE, lambda pool, job, bad: pool.cancel_all(grace=bad)),
    (JobPool.resize, "max_workers"): (
        COUNT._replace(types=(*COUNT.types, None)),
        lambda pool, job, bad: pool.resize(bad),
    ),
    (JobPool.shutdown, "wait"): (BOOL, lambda pool, job, bad: pool.shutdown(bad)),
    (JobPool.shutdown, "cancel"): (BOOL, lambda pool, job, bad: pool.shutdown(cancel=bad)),
}


def over(pool: JobPool, call: Callable[[JobExecutor], object]) -> object:
    with JobExecutor(pool=pool) as executor:  # else the error's traceback would keep it
        return call(executor)


EXECUTOR = {
    "mp_context": CONTEXT,
    "max_tasks_per_child": COUNT,
    "pool": POOL,
    **{name: kind for (function, name), (kind, _) in TABLE.items() if function is JobPool},
}
for _name, _kind in EXECUTOR.items():
    TABLE[JobExecutor, _name] = (
        _kind,
        lambda pool, job, bad, _name=_name: JobExecutor(**{_name: bad}),  # type: ignore[misc]
    )
TABLE |= {
    (JobExecutor.submit, "function"): (
        CALLABLE,
        lambda pool, job, bad: over(pool, lambda e: e.submit(bad)),
    ),
    (JobExecutor.map, "fn"): (
        CALLABLE,
        lambda pool, job, bad: over(pool, lambda e: e.map(bad, [1])),
    ),
    (JobExecutor.map, "iterables"): (
        ITERABLE,
        lambda pool, job, bad: over(pool, lambda e: e.map(use, [1], bad)),
    ),
    (JobExecutor.map, "timeout"): (
        SECONDS,
        lambda pool, job, bad: over(pool, lambda e: e.map(use, [1], timeout=bad)),
    ),
    (JobExecutor.map, "chunksize"): (
        COUNT._replace(types=(*COUNT.types, None)),
        lambda pool, job, bad: over(pool, lambda e: e.map(use, [1], chunksize=bad)),
    ),
    (JobExecutor.map, "buffersize"): (
        COUNT,
        lambda pool, job, bad: over(pool, lambda e: e.map(use, [1], buffersize=bad)),
    ),
    (JobExecutor.shutdown, "wait"): (
        BOOL,
        lambda pool, job, bad: over(pool, lambda e: e.shutdown(bad)),
    ),
    (JobExecutor.shutdown, "cancel_futures"): (
        BOOL,
        lambda pool, job, bad: over(pool, lambda e: e.shutdown(cancel_futures=bad)),
    ),
}


def stored(call: Callable[[SweepStore], object]) -> object:
    """Call it with a store of its own."""
    with tempfile.TemporaryDirectory() as folder, SweepStore(f"{folder}/results.db") as store:
        return call(store)


FILE = Kind("must be that of a file", (3, None, b"a", BadRepr()), ("", "a\0b"))
VERSION = Kind("must be a str, an int or None", (1.5, True, b"a", ["a"], BadRepr()))
IGNORE = Kind("ignore", (3, None, BadRepr()), ("nothing",))
STATUS = Kind("must be one of", (), (3, "done", JobStatus.RUNNING, BadRepr()))
POINTS = ITERABLE._replace(types=(*ITERABLE.types, "abc", b"abc", {"x": 1}))
KEYS = ITERABLE._replace(types=tuple(bad for bad in ITERABLE.types if bad is not None))
ON_CHANGE = Kind("must be one of", (), (None, 3, "ask"))
OF_FUNCTION = {
    "name": NAME._replace(types=(*NAME.types, "")),
    "version": VERSION,
    "key": CALLABLE._replace(types=(3, "print", BadRepr())),
    "ignore": IGNORE,
    "on_change": ON_CHANGE,
    "retry_errors": BOOL,
}
TABLE |= {
    (SweepStore, "path"): (FILE, lambda pool, job, bad: SweepStore(bad)),
    (SweepStore.function, "function"): (
        CALLABLE,
        lambda pool, job, bad: stored(lambda store: store.function(bad)),
    ),
    (SweepStore.rows, "name"): (
        NAME,
        lambda pool, job, bad: stored(lambda store: list(store.rows(bad))),
    ),
    (SweepStore.rows, "status"): (
        STATUS,
        lambda pool, job, bad: stored(lambda store: list(store.rows(status=bad))),
    ),
    (SweepStore.result, "key"): (
        TEXT,
        lambda pool, job, bad: stored(lambda store: store.result(bad)),
    ),
    (SweepStore.forget, "name"): (
        TEXT._replace(types=(3, b"a", ["a"], BadRepr())),
        lambda pool, job, bad: stored(lambda store: store.forget(bad)),
    ),
    (SweepStore.forget, "keys"): (
        KEYS,
        lambda pool, job, bad: stored(lambda store: store.forget(keys=bad)),
    ),
    (SweepStore.to_pandas, "name"): (
        TEXT,
        lambda pool, job, bad: stored(lambda store: store.to_pandas(bad)),
    ),
    (SweepStore.to_pandas, "load"): (
        BOOL,
        lambda pool, job, bad: stored(lambda store: store.to_pandas("use", load=bad)),
    ),
    (StoredFunction.submit, "pool"): (
        POOL,
        lambda pool, job, bad: stored(lambda store: store.function(use).submit(bad, 1)),
    ),
    (StoredFunction.sweep, "points"): (
        POINTS,
        lambda pool, job, bad: stored(lambda store: store.function(use).sweep(bad, pool)),
    ),
    (StoredFunction.sweep, "pool"): (
        POOL,
        lambda pool, job, bad: stored(lambda store: store.function(use).sweep([1], bad)),
    ),
    (StoredFunction.sweep, "keys"): (
        KEYS,
        lambda pool, job, bad: stored(lambda store: store.function(use).sweep([1], pool, keys=bad)),
    ),
    (StoredFunction.rows, "status"): (
        STATUS,
        lambda pool, job, bad: stored(lambda store: list(store.function(use).rows(bad))),
    ),
    (Sweep.cancel, "grace"): (
        NEW_GRACE,
        lambda pool, job, bad: stored(
            lambda store: store.function(use).sweep([], pool).cancel(grace=bad)
        ),
    ),
}
for _name, _kind in OF_FUNCTION.items():
    TABLE[SweepStore.function, _name] = (
        _kind,
        lambda pool, job, bad, _name=_name: stored(  # type: ignore[misc]
            lambda store: store.function(use, **{_name: bad})
        ),
    )
for _method in ("result", "exception", "wait", "wait_for_final_state"):
    TABLE[getattr(PrimitiveJob, _method), "timeout"] = (
        SECONDS,
        lambda pool, job, bad, _method=_method: getattr(job, _method)(bad),  # type: ignore[misc]
    )
for _name, _kind in OPTIONS.items():
    TABLE[JobOptions, _name] = (
        _kind,
        lambda pool, job, bad, _name=_name: JobOptions(**{_name: bad}),  # type: ignore[misc]
    )
    TABLE[JobPool.options, _name] = (
        _kind,
        lambda pool, job, bad, _name=_name: pool.options(**{_name: bad}),  # type: ignore[misc]
    )
    TABLE[PoolView.options, _name] = (
        _kind,
        lambda pool, job, bad, _name=_name: pool.options().options(**{_name: bad}),  # type: ignore[misc]
    )
    TABLE[PrimitiveJob.submit, _name] = (
        _kind,
        lambda pool, job, bad, _name=_name: PrimitiveJob(use, 1).submit(  # type: ignore[misc]
            pool, **{_name: bad}
        ),
    )
    TABLE[PrimitiveJob.resubmit, _name] = (
        _kind,
        lambda pool, job, bad, _name=_name: job.resubmit(**{_name: bad}),  # type: ignore[misc]
    )


@pytest.fixture(scope="module")
def live() -> Iterator[tuple[JobPool, PrimitiveJob[Any]]]:
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(use, 5)
        assert job.result(PATIENCE) == 5
        yield pool, job


def _shown(bad: Any) -> str:
    try:
        return repr(bad)
    except RuntimeError:
        return "BadRepr"


def check_refusal(
    pool: JobPool, job: PrimitiveJob[Any], where: tuple[Any, str], error: type[Exception], bad: Any
) -> None:
    kind, call = TABLE[where]
    argument = where[1]
    with pytest.raises(error) as caught:
        call(pool, job, bad)
    assert type(caught.value) is error
    text = str(caught.value)
    assert argument.removesuffix("s") in text
    assert kind.right in text
    # Of a container it is the item that is wrong.
    got = (
        bad[0]
        if isinstance(bad, list) and kind in (JOBS, MODULES, NEW_MODULES, SEED) and bad
        else bad
    )
    items = [repr(part) for pair in bad.items() for part in pair] if isinstance(bad, dict) else []
    shown = any(part in text for part in (_shown(got), type(got).__name__, "NaN"))
    assert shown or (items and all(item in text for item in items)), text
    # Nothing was started, nothing lost.
    assert pool.jobs() == []
    assert job.result() == 5
    assert pool.submit(use, 7).result(PATIENCE) == 7


@pytest.mark.parametrize(
    "function", dict.fromkeys(function for function, _ in TABLE), ids=lambda f: f.__qualname__
)
def test_wrong_arguments(live: tuple[JobPool, PrimitiveJob[Any]], function: Any) -> None:
    """Each argument with each wrong value; the last line of a failure tells with which."""
    kinds = {where: kind for where, (kind, _) in TABLE.items() if where[0] is function}
    for where, kind in kinds.items():
        for error, values in ((TypeError, kind.types), (ValueError, kind.values)):
            for bad in values:
                with case(f"{where[1]}={_shown(bad)}"):
                    check_refusal(*live, where, error, bad)


def test_unfinished_job_refuses_as_well() -> None:
    with JobPool(1) as pool:
        pool.submit(use, 1).result(PATIENCE)
        job = pool.submit(time.sleep, 600)
        for (function, argument), (kind, call) in TABLE.items():
            if function not in vars(PrimitiveJob).values():
                continue
            for bad in kind.types:
                with pytest.raises(TypeError, match=argument):
                    call(pool, job, bad)
        assert not job.in_final_state()
        assert job.cancel()


def test_unknown_options(live: tuple[JobPool, PrimitiveJob[Any]]) -> None:
    pool, _ = live
    for call in (
        lambda: pool.options(tiemout=3),  # type: ignore[call-arg]
        lambda: pool.options(timeout=3).options(tiemout=3),  # type: ignore[call-arg]
        lambda: PrimitiveJob(use, 1).submit(pool, tiemout=3),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match=r"unknown option 'tiemout'; the options are name, .*"):
            call()


def test_a_submit_with_a_wrong_option_can_be_repeated(
    live: tuple[JobPool, PrimitiveJob[Any]],
) -> None:
    pool, _ = live
    job = PrimitiveJob(use, 2)
    with pytest.raises(TypeError, match="retries"):
        job.submit(pool, retries="many")  # type: ignore[arg-type]
    assert job.status() is JobStatus.INITIALIZING
    assert job.submit(pool).result(PATIENCE) == 2


def test_map_without_iterables(live: tuple[JobPool, PrimitiveJob[Any]]) -> None:
    """As `concurrent.futures` has it, so that an empty table needs no case of its own."""
    pairs: list[tuple[int, int]] = []
    assert list(live[0].map(pow, *zip(*pairs, strict=True))) == []
    assert list(live[0].options(timeout=5).map(pow, *zip(*pairs, strict=True), ordered=False)) == []
    with JobExecutor(pool=live[0]) as executor:
        assert list(executor.map(pow, *zip(*pairs, strict=True))) == []
    assert list(live[0].map(pow, *zip(*[(2, 3), (3, 2)], strict=True))) == [8, 9]


def test_positional_only(live: tuple[JobPool, PrimitiveJob[Any]]) -> None:
    pool, _ = live

    def both(function: int, self: int) -> tuple[int, int]:
        return function, self

    assert pool.submit(both, function=1, self=2).result(PATIENCE) == (1, 2)
    assert run(both, function=1, self=2).result(PATIENCE) == (1, 2)
    assert PrimitiveJob(both, function=1, self=2).submit(pool).result(PATIENCE) == (1, 2)


# Of the arguments that are the user's own there is nothing to say.
_FREE = {
    "default",
    "state",
    "values",
    "others",
    "args",
    "kwargs",
    "self",
    "value",
    "trace",
    "kind",
    "error",
}


def test_the_table_is_complete() -> None:
    functions: list[Any] = []
    for name in primitive_jobs.__all__:
        public = getattr(primitive_jobs, name)
        if inspect.isfunction(public):
            functions.append(public)
        elif public in (CurrentJob, Progress, Timeline, Usage):
            continue  # nobody but the package makes one
        elif inspect.isclass(public) and not issubclass(public, (Exception, JobStatus)):
            if public not in (StoredFunction, StoredRow, Sweep):  # those are made by a store
                functions.append(public)
            functions += [
                member
                for attribute, member in inspect.getmembers(public, inspect.isfunction)
                if not attribute.startswith("_")
            ]
    missing = []
    for function in functions:
        for name in inspect.signature(function).parameters:
            if name == "options":
                names = list(OPTIONS)
            elif name == "pool_options":
                names = list(inspect.signature(JobPool).parameters)
            elif name in _FREE or function in (primitive_jobs.BasePrimitiveJob, JobOptions.replace):
                names = []
            elif getattr(function, "__isabstractmethod__", False):
                names = []  # those that are called stand in the table
            else:
                names = [name]
            missing += [(function, n) for n in names if (function, n) not in TABLE]
    assert not missing
    assert list(OPTIONS) == list(inspect.signature(JobOptions).parameters)
    assert default_pool not in [function for function, _ in TABLE]  # it has no argument


def test_job_errors_of_wrong_order(live: tuple[JobPool, PrimitiveJob[Any]]) -> None:
    pool, _ = live
    fresh = PrimitiveJob(use, 1)
    for call in (fresh.result, fresh.exception, fresh.wait, fresh.wait_for_final_state):
        with pytest.raises(primitive_jobs.JobError, match="was not submitted"):
            call()
    for wait_for in (lambda: wait([fresh]), lambda: as_completed([fresh])):
        with pytest.raises(primitive_jobs.JobError, match="was not submitted"):
            wait_for()
    fresh.submit(pool)
    with pytest.raises(primitive_jobs.JobError, match="submitted before"):
        fresh.submit(pool)
    assert fresh.result(PATIENCE) == 1

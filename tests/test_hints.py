"""Who comes with the words of another library is told the right one, where and when it fails."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import importlib
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE

import primitive_jobs
from primitive_jobs import (
    JobExecutor,
    JobOptions,
    JobPool,
    JobStatus,
    PrimitiveJob,
    SerializationError,
    as_completed,
    gather,
    race,
    run,
    track,
    wait,
)
from primitive_jobs._common import hints


def identity(x: Any) -> Any:
    return x


def takes_all(x: Any, **options: Any) -> Any:
    return x, options


def takes_and_fails(x: Any, timeout: float) -> Any:
    return identity(x, timeout=timeout)  # type: ignore[call-arg]


@functools.wraps(identity)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    return identity(*args, **kwargs)


async def asynchronous(x: Any) -> Any:
    return x


async def asynchronous_generator(x: Any) -> Any:
    yield x


def generator(x: Any) -> Iterator[Any]:
    yield x


class Model:
    async def run(self) -> int:
        return 1

    def steps(self) -> Iterator[int]:
        yield 1


@pytest.fixture(scope="module")
def pool() -> Iterator[JobPool]:
    with JobPool(1, spare_workers=0) as made:
        made.submit(abs, 1).result(PATIENCE)  # or the gate of the first test misses the worker
        yield made


# --- options among the arguments ------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "name": "n",
    "metadata": {"a": 1},
    "timeout": 5,
    "priority": 1,
    "memory_limit": "2 GB",
    "retries": 2,
    "grace": 0.5,
    "cwd": "/",
    "env": {"A": "1"},
    "keep_call": True,
    "output": "capture",
    "retry_on": OSError,
    "retry_delay": 0.5,
    "cpus": 1,
    "memory": "2 GB",
    "resources": {"gpu": 1},
}


def test_every_option_among_the_arguments(pool: JobPool) -> None:
    fields = [field.name for field in dataclasses.fields(JobOptions)]
    assert list(VALUES) == fields
    assert list(hints.JOB_OPTIONS) == fields
    submit: Any = pool.submit
    for option, value in VALUES.items():
        shown = "..." if option in ("metadata", "env", "retry_on", "resources") else repr(value)
        with pytest.raises(TypeError) as caught:
            submit(identity, 1, **{option: value}).result(PATIENCE)
        text = str(caught.value)
        assert text.startswith("identity() got an unexpected keyword argument"), text
        assert f"pool.options({option}={shown}).submit(...)" in text
        assert text in str(caught.value.__cause__)
        assert submit(takes_all, 1, **{option: value}).result(PATIENCE) == (1, {option: value})


def test_every_way_to_submit_tells_of_options(pool: JobPool) -> None:
    with JobExecutor(pool=pool) as executor:
        for call in (
            lambda: pool.options(name="n").submit(identity, 1, timeout=5),  # type: ignore[call-arg]
            lambda: PrimitiveJob(identity, 1, timeout=5).submit(pool),  # type: ignore[call-arg]
            lambda: executor.submit(identity, 1, timeout=5),  # type: ignore[call-arg]
            lambda: run(identity, 1, timeout=5),  # type: ignore[call-arg]
            lambda: pool.submit(wrapped, 1, timeout=5),
            lambda: pool.submit(pow, 1, 2, timeout=5),  # type: ignore[arg-type]
            lambda: pool.submit(int, timeout=5),  # type: ignore[arg-type]
            lambda: pool.submit(functools.partial(identity), 1, timeout=5),
        ):
            with pytest.raises(TypeError, match=r"options\(timeout=5\)\.submit"):
                call().result(PATIENCE)


def test_nothing_is_said_of_options_where_the_function_takes_them(pool: JobPool) -> None:
    wrong: list[Callable[[], PrimitiveJob[Any]]] = [
        lambda: pool.submit(takes_and_fails, 1, timeout=5),  # it hands it on to what does not
        lambda: pool.submit(takes_and_fails, timeout=5),  # type: ignore[call-arg]
        lambda: pool.submit(identity, 1, tiemout=5),  # type: ignore[call-arg]
    ]
    for call in wrong:
        with pytest.raises(TypeError) as caught:
            call().result(PATIENCE)
        assert "options" not in str(caught.value)


# --- names and keywords ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("Pool", "JobPool"),
        ("ProcessPoolExecutor", "JobExecutor"),
        ("Executor", "JobExecutor"),
        ("Process", r"run\("),
        ("Job", "PrimitiveJob"),
        ("Jobpool", "JobPool"),
        ("JobStatuses", None),
        ("Jobstatus", "JobStatus"),
        ("asCompleted", "as_completed"),
        ("TimeoutError", "JobTimeoutError"),
        ("submit", r"JobPool\(\)\.submit"),
        ("get_reusable_executor", r"JobExecutor\(pool=default_pool\(\)\)"),
        ("nothing", None),
        ("_private", None),
    ],
)
def test_a_name_of_another_library(name: str, right: str | None) -> None:
    assert not hasattr(primitive_jobs, name)
    with pytest.raises(AttributeError, match=f"no attribute '{name}'") as caught:
        getattr(primitive_jobs, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'") as refused:
        exec(f"from primitive_jobs import {name}", {})
    for error in (caught, refused):
        if right is not None:
            error.match(right)
        else:
            assert not str(error.value).split("'primitive_jobs'")[1].startswith(":")


def test_the_hint_of_an_import_is_what_a_script_shows() -> None:
    code = (
        "import sys\ntry:\n    from primitive_jobs import Pool\nfinally:\n    print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    told = "the pool is JobPool; one like multiprocessing's is primitive_jobs.multiprocessing.Pool"
    assert last == f"ImportError: cannot import name 'Pool' from 'primitive_jobs': {told}"
    # Nothing is imported for a hint but the hints.
    ours = {name for name in done.stdout.split() if name.startswith("primitive_jobs")}
    assert ours - {"primitive_jobs._common"} == {"primitive_jobs", "primitive_jobs._common.hints"}
    assert not {"loky", "psutil", "multiprocessing", "asyncio"} & {*done.stdout.split()}


def test_the_package_knows_which_names_have_hints() -> None:
    lower = {name for name in hints._NAMES if name.islower()}
    assert lower == set(primitive_jobs._ELSEWHERE)
    modules = {path.stem for path in Path(primitive_jobs.__file__).parent.iterdir()}
    assert not modules & hints._NAMES.keys()


def test_modules_of_the_package_are_imported_as_ever() -> None:
    code = (
        "from primitive_jobs import pool, executor, errors, JobPool; print(pool.JobPool is JobPool)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_attributes_of_other_libraries(pool: JobPool) -> None:
    job = pool.submit(abs, -1)
    job.result(PATIENCE)
    with JobExecutor(pool=pool) as executor:
        for thing, words in (
            (pool, hints.OF_POOL),
            (pool.options(timeout=5), hints.OF_VIEW),
            (executor, hints.OF_EXECUTOR),
            (job, hints.OF_JOB),
        ):
            for word, hint in words.items():
                assert not hasattr(thing, word), word
                with pytest.raises(AttributeError) as caught:
                    getattr(thing, word)
                kind = type(thing).__name__
                assert str(caught.value) == f"{kind!r} object has no attribute {word!r}: {hint}"
            with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
                thing.nothing  # type: ignore[union-attr]  # noqa: B018
    assert "shutdown" in hints.OF_POOL["close"]
    assert "submit" in hints.OF_POOL["apply_async"]
    assert "result" in hints.OF_JOB["get"]


@pytest.mark.parametrize("function", [concurrent.futures.wait, concurrent.futures.as_completed])
def test_jobs_among_futures(function: Callable[[Any], Any], pool: JobPool) -> None:
    with pytest.raises(AttributeError, match="wait and as_completed of primitive_jobs"):
        list(function([pool.submit(abs, -1)]))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before, asyncio.wait made tasks of them")
def test_jobs_where_asyncio_waits() -> None:
    async def main(own: JobPool) -> None:
        jobs: list[Any] = [own.submit(time.sleep, 1000)]
        waits = asyncio.wait(jobs, timeout=PATIENCE)
        with pytest.raises(AttributeError, match="ensure_future"):
            await asyncio.wait_for(waits, 0.1)

    with JobPool(1) as own:  # which loses a worker
        asyncio.run(main(own))
        own.cancel_all()


def test_an_error_inside_a_property_is_told_as_it_is() -> None:
    class Mine(JobPool):
        @property
        def close(self) -> None:
            raise AttributeError("of mine")

        @property
        def other(self) -> None:
            raise AttributeError("of mine")

    with Mine(1) as pool, pytest.raises(AttributeError, match=r"^of mine$"):
        pool.other  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"workers": 2}, "max_workers"),
        ({"processes": 2}, "max_workers"),
        ({"n_jobs": 2}, "max_workers"),
        ({"max_worker": 2}, "max_workers"),
        ({"nprocs": 2}, "max_workers"),
        ({"maxtasksperchild": 2}, "max_jobs_per_worker"),
        ({"timeout": 2}, r"pool\.options\(timeout"),
        ({"retries": 2}, r"pool\.options\(retries"),
        ({"colour": "blue"}, "'colour'$"),
    ],
)
def test_keywords_of_other_pools(arguments: dict[str, Any], right: str) -> None:
    for kind in (JobPool, JobExecutor):
        with pytest.raises(TypeError, match=rf"^JobPool\(\) got an unexpected.*{right}"):
            kind(**arguments)
    with pytest.raises(TypeError, match=r"^JobPool\(\) takes .* given: .* by name"):
        JobPool(2, print)  # type: ignore[call-arg]


def test_arguments_of_other_maps(pool: JobPool) -> None:
    with JobExecutor(pool=pool) as executor:
        for call in (
            lambda: pool.map(abs, [1, 2], 8),  # type: ignore[call-overload]
            lambda: executor.map(abs, [1, 2], 8),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError, match=r"iterable 2 .* int 8; .*by name: chunksize=8"):
                call()
    with pytest.raises(TypeError, match=r"^map\(\) got .*pool\.options\(retries=\.\.\.\)\.map"):
        pool.map(abs, [1], retries=2)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^map\(\) got .*chunksize"):
        pool.options().map(abs, [1], chunk_size=2)  # type: ignore[call-overload]


def test_arguments_of_other_ends(pool: JobPool) -> None:
    job = pool.submit(abs, -1)
    wrong: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any], str]] = [
        (job.cancel, (5,), {}, r"cancel\(\) takes 1 .* 2 were given: .* as in cancel\(grace=5\)"),
        (job.cancel, (), {"timeout": 5}, "'timeout': the seconds between SIGTERM and SIGKILL are"),
        (pool.shutdown, (), {"cancel_futures": True}, "'cancel_futures': cancel=True cancels all"),
        (pool.shutdown, (), {"timeout": 5}, r"'timeout': wait\(pool\.jobs\(\), timeout="),
        (pool.shutdown, (True, True), {}, "given: only wait is given without its name"),
    ]
    for call, arguments, keywords, told in wrong:
        with pytest.raises(TypeError, match=told):
            call(*arguments, **keywords)
    assert job.result(PATIENCE) == 1


def test_bare_jobs(pool: JobPool) -> None:
    a, b = pool.submit(abs, 1), pool.submit(abs, 2)
    calls: dict[str, Any] = {
        "gather": gather,
        "race": race,
        "wait": wait,
        "as_completed": as_completed,
        "track": track,
    }
    for name, call in calls.items():
        for arguments in ((a,), (a, b), (a, b, b)):
            if name in ("gather", "race") or len(arguments) < 3:
                with pytest.raises(
                    TypeError, match=rf"iterable of PrimitiveJobs, as in {name}\(\["
                ):
                    call(*arguments)
        with JobExecutor(pool=pool) as executor:
            future = executor.submit(abs, 3)
            with pytest.raises(TypeError, match=r"one is JobFuture.*attribute job"):
                call([future])
            assert future.result(PATIENCE) == 3
    assert gather([a, b]) == [1, 2]


# --- what cannot be found -------------------------------------------------------------------------


def test_a_module_that_the_worker_does_not_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JobPool(1, spare_workers=0) as pool:
        pool.submit(abs, 1).result(PATIENCE)
        (tmp_path / "found_later.py").write_text("def double(x):\n    return 2 * x\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        function = importlib.import_module("found_later").double
        with pytest.raises(SerializationError, match=r"'found_later'; .* restart_workers\(\)"):
            pool.submit(function, 1).result(PATIENCE)
        pool.restart_workers()
        assert pool.submit(function, 1).result(PATIENCE) == 2


def test_joblib_is_an_extra() -> None:
    code = "import sys; sys.modules['joblib'] = None; import primitive_jobs.joblib"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert "needs joblib: pip install 'primitive_jobs[joblib]'" in last


# --- functions that do not run when they are called -----------------------------------------------


@pytest.mark.parametrize(
    "function",
    [asynchronous, asynchronous_generator, Model().run, functools.partial(asynchronous, 1)],
    ids=["function", "generator", "method", "partial"],
)
def test_an_async_function(function: Any, pool: JobPool) -> None:
    for call in callers(pool):
        if isinstance(function, functools.partial) and call in callers(pool)[:2]:
            continue
        with pytest.raises(TypeError, match=r"not the async .*asyncio.run"):
            call(function)
    assert pool.jobs() == []


@pytest.mark.parametrize("function", [generator, Model().steps], ids=["function", "method"])
def test_a_generator_function(function: Any, pool: JobPool) -> None:
    for call in callers(pool):
        with pytest.raises(TypeError, match=r"not the generator .*list"):
            call(function)
    assert pool.jobs() == []


def callers(pool: JobPool) -> list[Callable[[Any], object]]:
    return [
        pool.submit,
        PrimitiveJob,
        lambda function: pool.map(function, [1]),
        lambda function: JobPool(1, initializer=function),
        PrimitiveJob(abs, 1).add_done_callback,
    ]


def test_what_only_the_result_tells(pool: JobPool) -> None:
    with pytest.raises(SerializationError, match=r"a generator, .*list\(f\(x\)\)"):
        pool.submit(lambda: (x for x in "ab")).result(PATIENCE)
    with pytest.raises(SerializationError, match=r"a generator, .*list\(f\(x\)\)"):
        list(pool.map(lambda x: (x for x in "ab"), [1]))


def test_a_call_instead_of_a_function(pool: JobPool) -> None:
    with pytest.raises(TypeError, match=r"must be callable, not int 3; .* \(f, x\)"):
        pool.submit(abs(-3))  # type: ignore[arg-type]


# --- statuses and texts ---------------------------------------------------------------------------


def test_a_status_and_a_text(pool: JobPool) -> None:
    job = pool.submit(abs, 1)
    job.result(PATIENCE)
    status: Any = job.status()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            assert (status == "DONE") is False
        assert ("done" == status) is False  # noqa: SIM300, RUF100
        assert (status != "DONE") is True
        assert {"DONE": 1}.get(status) is None
        match status:
            case "DONE":
                raise AssertionError
            case JobStatus.DONE:
                pass
    assert [str(one.message).count("JobStatus.DONE") for one in caught] == [2] * 5  # a line each
    assert {one.filename for one in caught} == {__file__}
    assert {one.category for one in caught} == {UserWarning}
    # Nothing is said of any other comparison.
    assert status == JobStatus.DONE
    assert status != JobStatus.ERROR
    assert status != "done by hand"
    assert status != 3
    assert hash(status) == hash(JobStatus.DONE)


class Table:
    @functools.lru_cache  # noqa: B019
    def square(self, x: int) -> int:
        return x * x


def add(x: int, y: int) -> int:
    return x + y


@pytest.mark.parametrize(
    "method",
    [Table().square, types.MethodType(functools.partial(add, 1), 2), types.MethodType(add, 3)],
    ids=["cached", "partial", "function"],
)
def test_a_method_of_whatever_can_be_called(method: Callable[..., int], one: JobPool) -> None:
    args = () if isinstance(getattr(method, "__func__", None), functools.partial) else (4,)
    expected = method(*args)
    assert one.submit(method, *args).result(PATIENCE) == expected
    assert list(one.map(lambda _: method(*args), range(2))) == [expected] * 2

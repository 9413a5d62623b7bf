"""A job that raises a cancellation has failed: nobody in the caller's program was cancelled.

An event loop takes `asyncio.CancelledError` and `trio.Cancelled` for the answer to a cancel of its
own, and ends a task group without a word.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import cloudpickle
import joblib
import pytest
import trio
from helpers import PATIENCE, raise_it

import primitive_jobs.joblib as backend
from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobExecutor,
    JobPool,
    JobStatus,
    SerializationError,
    gather,
)
from primitive_jobs._wire.failures import dump_exception, load_exception

if sys.version_info >= (3, 11):
    from builtins import BaseExceptionGroup
else:
    from exceptiongroup import BaseExceptionGroup

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Stopped(asyncio.CancelledError):
    """A library's own kind of cancellation."""


def asyncio_cancelled() -> NoReturn:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("enough")
        await asyncio.sleep(1000)

    asyncio.run(main())
    raise AssertionError("unreachable")


def a_trio_cancelled() -> BaseException:
    caught: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep(1000)
            except trio.Cancelled as error:
                caught.append(error)

    trio.run(main)
    return caught[0]


def trio_cancelled() -> NoReturn:
    raise a_trio_cancelled()


def future_cancelled() -> object:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.cancel()
    return future.result()


def own_kind() -> NoReturn:
    raise Stopped("by hand")


def nested_job_cancelled() -> object:
    with JobPool(1) as pool:
        job = pool.submit(abs, -1)
        job.cancel()
        blocked = pool.submit(__import__("time").sleep, 1000)
        blocked.cancel()
        return blocked.result()


CANCELLATIONS: dict[str, Callable[[], object]] = {
    "CancelledError": asyncio_cancelled,
    "Cancelled": trio_cancelled,
    "CancelledError ": future_cancelled,
    "Stopped: by hand": own_kind,
    "JobCancelledError: job sleep was cancelled": nested_job_cancelled,
}

every_kind = pytest.mark.parametrize(
    ("named", "function"), CANCELLATIONS.items(), ids=[f.__name__ for f in CANCELLATIONS.values()]
)


def call(function: Callable[[], object]) -> object:
    return function()


@every_kind
def test_it_arrives_as_a_job_error_that_names_it(
    pool: JobPool, named: str, function: Callable[[], object]
) -> None:
    job = pool.submit(function)
    error = job.exception(PATIENCE)
    assert type(error) is JobError
    assert f"the job raised {named.strip()}" in str(error)
    assert f"in {function.__name__}" in str(error.__cause__)
    assert job.status() is JobStatus.ERROR
    assert not job.cancelled()


@every_kind
def test_in_a_map_and_an_executor(
    pool: JobPool, named: str, function: Callable[[], object]
) -> None:
    def ways() -> Iterable[Callable[[], object]]:
        yield lambda: list(pool.map(call, [function]))
        yield lambda: list(pool.map(call, [function], chunksize=2))
        with JobExecutor(pool=pool) as executor:
            yield executor.submit(function).result
            yield lambda: list(executor.map(call, [function], chunksize=2))
        yield lambda: gather([pool.submit(function)])

    for way in ways():
        with pytest.raises(JobError) as caught:
            way()
        assert type(caught.value) is JobError
        assert f"raised {named.strip()}" in str(caught.value)


def test_in_joblib(pool: JobPool) -> None:
    backend.register()
    with (
        joblib.parallel_config(backend="primitive_jobs", pool=pool),
        pytest.raises(JobError, match="the job raised CancelledError: "),
    ):
        joblib.Parallel(n_jobs=2)(joblib.delayed(call)(asyncio_cancelled) for _ in range(2))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no task groups yet")
@pytest.mark.parametrize("future", [False, True], ids=["job", "future"])
def test_a_task_group_of_asyncio_fails(pool: JobPool, future: bool) -> None:
    reached = []

    async def wait_for_it() -> None:
        if future:
            with JobExecutor(pool=pool) as executor:
                await asyncio.get_running_loop().run_in_executor(executor, asyncio_cancelled)
        else:
            await pool.submit(asyncio_cancelled)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
            group.create_task(wait_for_it())
        reached.append("the end, as if all were well")

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    assert [type(error) for error in caught.value.exceptions] == [JobError]
    assert not reached


@pytest.mark.parametrize("in_group", [False, True])
def test_a_nursery_of_trio_fails(pool: JobPool, in_group: bool) -> None:
    reached = []

    def in_a_group() -> NoReturn:
        raise BaseExceptionGroup("several", [a_trio_cancelled()])

    async def wait_for_it() -> None:
        await pool.submit(in_a_group if in_group else trio_cancelled)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_it)
        reached.append("the end, as if all were well")

    with pytest.raises(BaseExceptionGroup):
        trio.run(main)
    assert not reached


# --- groups ---------------------------------------------------------------------------------------


def leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [f"{type(error).__name__}: {error}"]


class Several(BaseExceptionGroup[BaseException]):
    def derive(self, excs: Any) -> Any:
        return Several(self.message, excs)


def test_within_a_group_only_the_cancellation_is_replaced(pool: JobPool) -> None:
    def several() -> NoReturn:
        raise BaseExceptionGroup(
            "several",
            [
                ValueError("kept"),
                BaseExceptionGroup("inner", [asyncio.CancelledError("enough"), KeyError("kept")]),
                SystemExit(3),
            ],
        )

    error = pool.submit(several).exception(PATIENCE)
    assert isinstance(error, BaseExceptionGroup)
    assert isinstance(error, Exception)  # nothing else is left in it
    assert error.message == "several"
    assert leaves(error) == [
        "ValueError: kept",
        "JobError: the job raised CancelledError: enough",
        "KeyError: 'kept'",
        "JobError: the job raised SystemExit: 3",
    ]
    assert "in several" in str(error.__cause__)


def test_a_group_without_any_comes_as_it_was(pool: JobPool) -> None:
    group = Several("own", [ValueError(1), Several("inner", [KeyError(2)])])
    error = pool.submit(raise_it, group).exception(PATIENCE)
    assert type(error) is Several
    assert leaves(error) == leaves(group)


def test_a_group_of_a_kind_of_its_own_keeps_kind_and_notes(pool: JobPool) -> None:
    group = Several("own", [asyncio.CancelledError()])
    group.__dict__["__notes__"] = ["where it happened"]
    error = pool.submit(raise_it, group).exception(PATIENCE)
    assert type(error) is Several
    assert leaves(error) == ["JobError: the job raised CancelledError: "]
    assert error.__dict__["__notes__"] == ["where it happened"]


class Stubborn(BaseExceptionGroup[BaseException]):
    def derive(self, excs: Any) -> Any:
        raise RuntimeError("there is only one of me")


def test_a_group_that_cannot_be_made_anew(pool: JobPool) -> None:
    error = pool.submit(raise_it, Stubborn("own", [GeneratorExit()])).exception(PATIENCE)
    assert type(error) is JobError
    assert "the job raised Stubborn: own" in str(error)


# --- what turns into one on the way ---------------------------------------------------------------


class _Turns(Exception):
    """Pickled as something else."""

    def __init__(self, into: Callable[[], BaseException]) -> None:
        super().__init__("before")
        self.into = into

    def __reduce__(self) -> Any:
        return self.into, ()


@pytest.mark.parametrize("kind", [asyncio.CancelledError, concurrent.futures.CancelledError])
def test_it_is_noticed_on_the_callers_side_too(kind: type[BaseException]) -> None:
    error = load_exception(dump_exception(_Turns(kind)))
    assert type(error) is JobError
    assert "_Turns: before" in str(error)


class _Raises:
    """Cannot be unpickled."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return raise_it, (self.kind("from unpickling"),)


class _OfRaises(Exception):
    pass


@pytest.mark.parametrize("kind", [asyncio.CancelledError, JobCancelledError, GeneratorExit])
def test_one_that_the_unpickling_raises(pool: JobPool, kind: type[BaseException]) -> None:
    error = load_exception(dump_exception(_OfRaises(_Raises(kind))))
    assert type(error) is JobError
    assert "_OfRaises" in str(error)

    def give() -> object:
        return _Raises(kind)

    ways: list[Callable[[], object]] = [
        pool.submit(give).result,
        lambda: list(pool.map(lambda _: give(), range(2), chunksize=2)),
    ]
    for way in ways:
        with pytest.raises(SerializationError, match="cannot be unpickled here"):
            way()


def test_a_worker_imports_nothing_to_find_out(one: JobPool) -> None:
    one.submit(raise_it, ValueError("plain")).exception(PATIENCE)
    loaded = one.submit(eval, "sorted(__import__('sys').modules)").result(PATIENCE)
    assert not {"asyncio", "trio", "concurrent.futures", "primitive_jobs.errors"} & {*loaded}

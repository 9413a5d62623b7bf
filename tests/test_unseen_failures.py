"""A failure that nobody has looked at is told, once; one that somebody has looked at is not."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import pytest
from helpers import PATIENCE, double, fail, hold, until

from primitive_jobs import (
    JobError,
    JobExecutor,
    JobFailuresWarning,
    JobPool,
    JobStatus,
    PrimitiveJob,
    as_completed,
    gather,
    race,
    track,
    wait,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def diverge(temperature: float) -> NoReturn:
    raise ValueError(f"T={temperature} diverged")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The records of failures."""
    return [text for text in caplog.messages if "nobody looked at" in text]


@pytest.fixture
def shut() -> Callable[[JobPool | JobExecutor], list[warnings.WarningMessage]]:
    """Shuts down and returns the warnings that come."""

    def shut_down(pool: JobPool | JobExecutor) -> list[warnings.WarningMessage]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pool.shutdown()
        return caught

    return shut_down


Shut = Callable[[JobPool | JobExecutor], list[warnings.WarningMessage]]


# --- at the end of a block ------------------------------------------------------------------------


def test_failures_that_nobody_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(JobFailuresWarning) as caught:  # noqa: PT031, SIM117
        with JobPool(1) as pool:  # the line that is shown
            for number in range(5):
                pool.options(name=f"T={number}").submit(diverge if number % 2 else double, number)
    (warning,) = caught
    assert str(warning.message) == (
        "2 of 5 jobs failed, and nobody looked at them; "
        "the first was 'T=1': ValueError: T=1 diverged"
    )
    assert issubclass(JobFailuresWarning, RuntimeWarning)
    assert warning.filename == __file__
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[warning.lineno - 1]
    assert "the line that is shown" in line
    assert told(caplog) == [str(warning.message)]
    (record,) = [one for one in caplog.records if "nobody looked" in one.getMessage()]
    assert record.name == "primitive_jobs"
    assert record.levelno == logging.WARNING


def test_the_warning_comes_when_everything_is_gone() -> None:
    """As an error, so that whatever comes after it does not."""
    threads = set(threading.enumerate())
    with (  # noqa: PT012
        pytest.raises(JobFailuresWarning, match=r"1 of 2 jobs failed.*at it: 'diverge': Value"),
        JobPool(1) as pool,
    ):
        pool.submit(diverge, 2.0)
        pid = pool.submit(os.getpid).result(PATIENCE)
    assert set(threading.enumerate()) <= threads
    assert not Path(f"/proc/{pid}").exists()
    pool.shutdown()  # and is not told again


@pytest.mark.parametrize("kind", [JobPool, JobExecutor])
def test_a_block_that_raises_keeps_its_exception(
    kind: type[JobPool | JobExecutor], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError, match="the user's"), kind(1) as pool:  # noqa: PT012
        pool.submit(diverge, 2.0)
        until(lambda: _failed(pool) == 1, "the failure")
        raise KeyError("the user's")
    assert len(told(caplog)) == 1


def _failed(pool: JobPool | JobExecutor) -> int:
    own = pool if isinstance(pool, JobPool) else pool._own
    assert own is not None
    return own._engine.counts().failed


@pytest.mark.parametrize("kind", [JobPool, JobExecutor])
def test_shutdown_tells_once(
    kind: type[JobPool | JobExecutor], caplog: pytest.LogCaptureFixture, shut: Shut
) -> None:
    pool = kind(1)
    pool.submit(diverge, 2.0)
    (warning,) = shut(pool)
    assert warning.category is JobFailuresWarning
    assert warning.filename == __file__
    assert len(told(caplog)) == 1
    assert not shut(pool)
    with pool:
        pass
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("kind", [JobPool, JobExecutor])
def test_shutdown_where_an_exception_is_on_its_way(
    kind: type[JobPool | JobExecutor], caplog: pytest.LogCaptureFixture
) -> None:
    pool = kind(1)
    with pytest.raises(KeyError, match="the user's"):  # noqa: PT012
        try:
            pool.submit(diverge, 2.0)
            raise KeyError("the user's")
        finally:
            pool.shutdown()
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("kind", [JobPool, JobExecutor])
def test_shutdown_that_does_not_wait(
    kind: type[JobPool | JobExecutor], caplog: pytest.LogCaptureFixture, shut: Shut
) -> None:
    """Whoever waits later is warned, whether the pool has ended meanwhile or not."""
    pool = kind(1)
    pool.submit(diverge, 2.0)
    pool.shutdown(wait=False)
    until(lambda: told(caplog), "the record at the pool's end")
    (warning,) = shut(pool)
    assert warning.filename == __file__
    assert not shut(pool)
    assert len(told(caplog)) == 1


def test_a_pool_that_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    pool = JobPool(1)
    pool.submit(diverge, 2.0)
    del pool
    until(lambda: told(caplog), "the record at the pool's end")


@pytest.mark.parametrize("kind", [JobPool, JobExecutor])
def test_async_with(kind: type[JobPool | JobExecutor], caplog: pytest.LogCaptureFixture) -> None:
    async def main(*, raises: bool) -> None:
        async with kind(1) as pool:  # the line that is shown
            pool.submit(diverge, 2.0)
            until(lambda: _failed(pool) == 1, "the failure")
            if raises:
                raise KeyError("the user's")

    with pytest.warns(JobFailuresWarning) as caught:
        asyncio.run(main(raises=False))
    assert caught[0].filename == __file__
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[caught[0].lineno - 1]
    assert "the line that is shown" in line
    assert len(told(caplog)) == 1
    with pytest.raises(KeyError, match="the user's"):
        asyncio.run(main(raises=True))
    assert len(told(caplog)) == 2


def test_what_an_executor_leaves_open_tells_nothing(shut: Shut) -> None:
    pool = JobPool(1)
    with JobExecutor(pool=pool) as executor:
        executor.submit(diverge, 2.0)
    assert len(shut(pool)) == 1


# --- what is a look, and what is none -------------------------------------------------------------


def _await(job: PrimitiveJob[Any]) -> None:
    async def main() -> None:
        await job

    asyncio.run(main())


LOOKS: dict[str, Callable[[PrimitiveJob[Any]], object]] = {
    "result": PrimitiveJob.result,
    "exception": PrimitiveJob.exception,
    "await": _await,
    "gather": lambda job: gather([job]),
    "race": lambda job: race([job]),
    "status": PrimitiveJob.status,
    "done": PrimitiveJob.done,
    "history": PrimitiveJob.history,
    "repr": repr,
    "card": lambda job: job._repr_html_(),
    "pickle": pickle.dumps,
}
NO_LOOKS: dict[str, Callable[[PrimitiveJob[Any]], object]] = {
    "callback": lambda job: job.add_done_callback(lambda _: None),
    "as_completed": lambda job: list(as_completed([job])),
    "wait": lambda job: wait([job]),
    "wait FIRST_EXCEPTION": lambda job: wait([job], None, concurrent.futures.FIRST_EXCEPTION),
    "track": lambda job: list(track([job])),
    "job.wait": PrimitiveJob.wait,
    "wait_for_final_state": PrimitiveJob.wait_for_final_state,
    "in_final_state": PrimitiveJob.in_final_state,
    "running": PrimitiveJob.running,
    "cancelled": PrimitiveJob.cancelled,
    "cancel": PrimitiveJob.cancel,
    "pid": lambda job: job.pid,
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("sent", [True, False], ids=["raised", "unserializable"])
def test_a_look(look: str, sent: bool, shut: Shut, caplog: pytest.LogCaptureFixture) -> None:
    pool = JobPool(1)
    job = pool.submit(diverge, 2.0) if sent else pool.submit(double, sys._getframe())  # type: ignore[arg-type]
    assert job.wait(PATIENCE)
    try:
        LOOKS[look](job)
    except (ValueError, JobError):
        pass
    del job
    gc.collect()
    assert not shut(pool)
    assert not told(caplog)


@pytest.mark.parametrize("look", NO_LOOKS)
def test_what_only_hands_out_a_job(look: str, shut: Shut) -> None:
    pool = JobPool(1)
    job = pool.submit(diverge, 2.0)
    assert job.wait(PATIENCE)
    NO_LOOKS[look](job)
    repr(pool), pool._repr_html_(), pool.jobs()
    del job
    gc.collect()
    (warning,) = shut(pool)
    assert "1 of 1 jobs failed" in str(warning.message)


FUTURE_LOOKS: dict[str, Callable[[Any], object]] = {
    "result": lambda future: future.result(),
    "exception": lambda future: future.exception(),
    "repr": repr,
    "wrap_future": lambda future: asyncio.run(_wrapped(future)),
}
NO_FUTURE_LOOKS: dict[str, Callable[[Any], object]] = {
    "done": lambda future: future.done(),
    "cancelled": lambda future: future.cancelled(),
    "running": lambda future: future.running(),
    "callback": lambda future: future.add_done_callback(lambda _: None),
    "wait": lambda future: concurrent.futures.wait([future]),
    "as_completed": lambda future: list(concurrent.futures.as_completed([future])),
}


async def _wrapped(future: concurrent.futures.Future[Any]) -> object:
    return await asyncio.wrap_future(future)


@pytest.mark.parametrize("look", FUTURE_LOOKS)
def test_a_look_at_a_future(look: str, shut: Shut) -> None:
    executor = JobExecutor(1)
    future = executor.submit(diverge, 2.0)
    concurrent.futures.wait([future])
    try:
        FUTURE_LOOKS[look](future)
    except ValueError:
        pass
    del future
    gc.collect()
    assert not shut(executor)


@pytest.mark.parametrize("look", NO_FUTURE_LOOKS)
def test_what_only_hands_out_a_future(look: str, shut: Shut) -> None:
    executor = JobExecutor(1)
    future = executor.submit(diverge, 2.0)
    concurrent.futures.wait([future])
    NO_FUTURE_LOOKS[look](future)
    del future
    gc.collect()
    assert len(shut(executor)) == 1


def test_a_race_that_is_won_covers_those_that_failed(shut: Shut) -> None:
    pool = JobPool(1)
    jobs = [pool.submit(diverge, 1.0), pool.submit(double, 4), pool.submit(diverge, 2.0)]
    wait(jobs)
    assert race(jobs) == 8
    del jobs
    assert not shut(pool)


def test_a_gather_that_is_too_late_gives_nobody_the_failure(tmp_path: Path, shut: Shut) -> None:
    pool = JobPool(2)
    jobs: list[PrimitiveJob[Any]] = [pool.submit(diverge, 1.0), pool.submit(hold, tmp_path / "go")]
    assert jobs[0].wait(PATIENCE)
    with pytest.raises(TimeoutError):
        gather(jobs, fail_fast=False, timeout=0.1)
    (tmp_path / "go").touch()
    del jobs
    gc.collect()
    assert len(shut(pool)) == 1


def test_what_does_not_count(shut: Shut, tmp_path: Path) -> None:
    pool = JobPool(1)
    for chunksize in (1, 2, None):
        with pytest.raises(ValueError, match="diverged"):
            list(pool.map(diverge, range(4), chunksize=chunksize))
        pool.map(diverge, range(4), chunksize=chunksize)  # dropped: then it is cancelled
    with JobExecutor(pool=pool) as executor, pytest.raises(ValueError, match="diverged"):
        list(executor.map(diverge, range(4)))
    running = pool.submit(hold, tmp_path / "never")
    until(running.running, "its start")
    waiting = pool.submit(diverge, 2.0)
    assert waiting.cancel()
    assert running.cancel()
    del running, waiting
    gc.collect()
    assert not shut(pool)


def test_joblib_tells_its_failures_itself(shut: Shut) -> None:
    import joblib

    import primitive_jobs.joblib as backend

    backend.register()
    pool = JobPool(2)
    with (
        joblib.parallel_config(backend="primitive_jobs", pool=pool),
        pytest.raises(ValueError, match="diverged"),
    ):
        joblib.Parallel(n_jobs=2)(joblib.delayed(diverge)(x) for x in range(4))
    gc.collect()
    assert not shut(pool)


def test_a_map_of_an_executor_that_nobody_iterates_over(shut: Shut) -> None:
    """Its calls are made all the same, and nobody else would tell that they failed."""
    executor = JobExecutor(1)
    executor.map(diverge, range(3))
    (warning,) = shut(executor)
    assert "3 of 3 jobs failed" in str(warning.message)


def test_in_a_fork_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
        with JobPool(1) as pool:
            failed = [pool.submit(diverge, 1.0)]
            waiting = [pool.submit(hold, tmp_path / "go"), pool.submit(double, 1)]
            assert failed[0].wait(PATIENCE)
            pid = os.fork()
            if not pid:
                failed.clear()
                waiting.clear()
                os._exit(len(told(caplog)))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert failed[0].exception() is not None
            (tmp_path / "go").touch()


# --- jobs that outlive the pool; pools that do not end --------------------------------------------


def test_jobs_that_are_held_are_told_of_when_they_are_let_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with JobPool(1) as pool:  # and no warning, which would be an error here
        jobs = [pool.submit(diverge, number) for number in range(20)]
    assert not told(caplog)
    assert jobs.pop().exception() is not None
    jobs.pop(0)
    assert len(told(caplog)) == 1
    assert "1 of 20 jobs failed" in told(caplog)[0]
    assert "T=0 diverged" in told(caplog)[0]
    jobs.clear()
    assert len(told(caplog)) == 2
    assert "19 of 20 jobs failed" in told(caplog)[1]


def test_the_last_look_has_the_others_told(caplog: pytest.LogCaptureFixture) -> None:
    with JobPool(1) as pool:
        jobs = [pool.submit(diverge, number) for number in range(4)]
    del jobs[:2], jobs[0]
    assert "1 of 4" in told(caplog)[0]
    assert jobs.pop().status() is JobStatus.ERROR
    assert "3 of 4" in told(caplog)[1]


def test_a_pool_that_goes_on_tells_at_doubling_counts(caplog: pytest.LogCaptureFixture) -> None:
    pool = JobPool(1)
    for number in range(9):
        job: PrimitiveJob[Any] = pool.submit(diverge, number)
        assert job.wait(PATIENCE)
        job = pool.submit(double, 1)  # so that it lets go of the one before
        assert job.result(PATIENCE) == 2
        pool._engine.call_back((seen := threading.Event()).set)
        assert seen.wait(PATIENCE)
    found = [int(text.split()[0]) for text in told(caplog)]
    assert found == [1, 2, 4, 8]
    with pytest.warns(JobFailuresWarning, match="9 of 18"):
        pool.shutdown()


def test_what_is_kept_does_not_grow(one: JobPool) -> None:
    jobs = [one.submit(fail) for _ in range(2000)]
    wait(jobs)
    unseen = one._engine.unseen
    assert len(unseen.unread) == 2000
    for job in jobs[::2]:
        job.exception()
    assert len(unseen.unread) == 1000
    jobs.clear()
    del job
    until(lambda: not unseen.unread, "their end")
    until(lambda: len(unseen._dead) < 256, "their being counted")
    with pytest.warns(JobFailuresWarning, match="1000 of 2000"):
        one.shutdown()

"""Under trio, and under anyio on both its backends: results, and cancels that stop processes."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import cloudpickle
import pytest
import trio
import trio.testing
from event_loops import Family, kills_that_need, threads_of_pools
from helpers import double, fail, gone, hold, hold_with_child, pids_in

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobExecutor,
    JobPool,
    PrimitiveJob,
)

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

PATIENCE = 30.0  # s, after which what is waited for will not come

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Main = Callable[[], Coroutine[Any, Any, None]]
Play = Callable[[Main], None]


def play_trio(main: Main) -> None:
    async def patiently() -> None:
        with trio.fail_after(PATIENCE):
            await main()

    trio.run(patiently)


def play_anyio(backend: str) -> Play:
    def play(main: Main) -> None:
        async def patiently() -> None:
            with anyio.fail_after(PATIENCE):
                await main()

        anyio.run(patiently, backend=backend)

    return play


PLAYS = {"asyncio": play_anyio("asyncio"), "trio": play_anyio("trio")}


@pytest.fixture(params=PLAYS)
def play(request: pytest.FixtureRequest) -> Play:
    return PLAYS[request.param]


@pytest.fixture
def two() -> Iterator[JobPool]:
    with JobPool(2) as fresh:
        yield fresh
        fresh.shutdown(cancel=True)


@pytest.fixture(autouse=True)
def _threads_of_trio_leave_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each stays for 10 s, in case there is more to do; the gate waits for 5.
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.05)


async def consume(job: PrimitiveJob[Any]) -> None:
    await job


async def sees(condition: Callable[[], object]) -> None:
    """Wait, in a loop, for something that no event tells of."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await anyio.sleep(0.001)


# --- trio itself ----------------------------------------------------------------------------------


def test_trio(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        job = two.submit(double, 4)
        assert await job == 8
        with trio.testing.assert_checkpoints():
            assert await job == 8
        with pytest.raises(ValueError, match="mine"):
            await two.submit(fail, "mine")
        with pytest.raises(JobError, match="was not submitted"):
            await PrimitiveJob(double, 1)
        family = Family(two, tmp_path, "1")
        with trio.move_on_after(0.01) as scope:
            await family.job
        assert scope.cancelled_caught
        assert family.is_gone()
        family = Family(two, tmp_path, "2")
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
            await family.job
        assert family.job.cancelled()
        assert family.is_gone()
        queued = two.submit(double, 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await queued  # final or not, a cancelled task gets no result
            raise AssertionError("unreachable")
        assert queued.in_final_state()

    play_trio(main)


def test_a_nursery_that_fails(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        family = Family(two, tmp_path)
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consume, family.job)
                nursery.start_soon(consume, two.submit(fail, "stops its sibling"))
        assert family.is_gone()
        assert [str(error) for error in caught.value.exceptions] == ["stops its sibling"]

    play_trio(main)


def test_trios_threads(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        assert await trio.to_thread.run_sync(two.submit(double, 4).result) == 8
        family = Family(two, tmp_path)
        assert await trio.to_thread.run_sync(family.job.cancel)
        assert family.is_gone()

    play_trio(main)


def test_a_run_that_ends_meanwhile(two: JobPool, tmp_path: Path) -> None:
    job: PrimitiveJob[int] = two.submit(hold, tmp_path / "gate", 5)
    told: list[Callable[[], object]] = []

    async def main() -> None:
        async def look() -> None:
            await sees(lambda: job._tracker._waiters)
            told.extend(job._tracker._waiters)
            (tmp_path / "gate").touch()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            assert await job == 5
        assert not job._tracker._waiters

    play_trio(main)
    (waiter,) = told
    waiter()  # so late that there is no run any more


def test_a_result_of_a_job_in_trio_as_a_guest_of_asyncio(two: JobPool) -> None:
    async def main() -> None:
        async def trio_main() -> int:
            return await two.submit(double, 1) + await two.submit(double, 2)

        loop = asyncio.get_running_loop()
        end: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            trio_main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=end.set_result,
        )
        assert await two.submit(double, 5) == 10
        assert (await end).unwrap() == 6

    asyncio.run(main())


# --- anyio, on either -----------------------------------------------------------------------------


def test_anyio(two: JobPool, tmp_path: Path, play: Play) -> None:
    async def main() -> None:
        assert await two.submit(double, 4) == 8
        with pytest.raises(ValueError, match="mine"):
            await two.submit(fail, "mine")
        assert await anyio.to_thread.run_sync(two.submit(double, 5).result) == 10
        family = Family(two, tmp_path, "1")
        with anyio.move_on_after(0.01) as scope:
            await family.job
        assert scope.cancelled_caught
        assert family.is_gone()
        family = Family(two, tmp_path, "2")
        with pytest.raises(TimeoutError), anyio.fail_after(0.01):
            await family.job
        assert family.is_gone()
        with pytest.raises(JobCancelledError):
            await family.job

    play(main)


def test_a_task_group_that_fails(two: JobPool, tmp_path: Path, play: Play) -> None:
    async def main() -> None:
        family = Family(two, tmp_path)
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with anyio.create_task_group() as group:
                group.start_soon(consume, family.job)
                group.start_soon(consume, two.submit(fail, "stops its sibling"))
        assert family.is_gone()
        assert [str(error) for error in caught.value.exceptions] == ["stops its sibling"]

    play(main)


def test_a_cancelled_scope_waits_for_the_kill(
    two: JobPool, tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does so quietly, whatever anyio does again and again."""
    alive = threading.Event()

    async def main() -> None:
        async def beat() -> None:
            for _ in range(20):
                await anyio.sleep(0.001)
                assert not family.job.in_final_state()
            alive.set()

        family = Family(two, tmp_path)
        with kills_that_need(alive, monkeypatch):
            begin = time.thread_time()
            async with anyio.create_task_group() as group:
                group.start_soon(beat)
                with anyio.CancelScope() as inner:
                    inner.cancel()
                    await family.job
                assert inner.cancelled_caught
                assert family.is_gone()
            assert time.thread_time() - begin < 0.5

    play(main)


def test_the_loop_is_at_rest_in_a_grace(two: JobPool, tmp_path: Path, play: Play) -> None:
    def ignore_sigterm() -> None:
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / "begun").touch()
        hold(tmp_path / "never")

    async def main() -> None:
        job = two.options(grace=0.3).submit(ignore_sigterm)
        await sees((tmp_path / "begun").exists)
        begin = time.thread_time()
        with anyio.move_on_after(0.001):
            await job
        assert time.thread_time() - begin < 0.1, "a loop that turns for nothing takes all of it"
        assert job.cancelled()

    play(main)


MAKERS: dict[str, Callable[[], Any]] = {
    "pool": lambda: JobPool(2),
    "executor": lambda: JobExecutor(2),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_async_with(kind: str, tmp_path: Path, play: Play) -> None:
    async def main() -> None:
        async with MAKERS[kind]() as pool:
            handles = [pool.submit(double, n) for n in range(3)]
        assert [handle.result(0) for handle in handles] == [0, 2, 4]
        assert threads_of_pools() == []
        with anyio.CancelScope() as scope:
            async with MAKERS[kind]() as pool:
                handle = pool.submit(hold_with_child, tmp_path / "never", tmp_path / "pids")
                pids = pids_in(tmp_path / "pids")
                scope.cancel()
        assert scope.cancelled_caught
        assert all(gone(pid) for pid in pids)
        assert handle.cancelled()
        assert threads_of_pools() == []
        with anyio.CancelScope() as scope:
            async with MAKERS[kind]() as pool:
                handle = pool.submit(hold, tmp_path / "never")
                scope.cancel()
                await anyio.sleep(PATIENCE)
        assert handle.cancelled()
        assert threads_of_pools() == []

    play(main)


def test_a_future_cancelled_in_a_task_of_trio(
    two: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = threading.Event()

    async def main() -> None:
        with JobExecutor(pool=two) as executor, kills_that_need(alive, monkeypatch):
            future = executor.submit(hold, tmp_path / "never")
            await sees(future.running)
            assert not future.cancel(), "not yet: the loop was let go on"
            alive.set()
            await sees(future.cancelled)

    play_trio(main)

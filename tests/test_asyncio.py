"""In an event loop of asyncio: results, cancels that stop processes, and a loop that goes on.

What `asyncio.TaskGroup` and `asyncio.timeout` do is tested where Python has them (3.11).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import sys
import threading
import time
import weakref
from asyncio.events import Handle
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from event_loops import Family, kills_that_need, threads_of_pools
from helpers import Mine, double, fail, gone, hold, hold_with_child, pids_in, raise_mine

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobExecutor,
    JobPool,
    JobStatus,
    PoolClosedError,
    PrimitiveJob,
)

if TYPE_CHECKING:
    from makers import MakeExecutor, MakePool, Makers

PATIENCE = 30.0  # s, after which what is waited for will not come
LONGEST = 0.02  # s that anything of ours may hold a loop up

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Main = Callable[[], Coroutine[Any, Any, None]]
needs_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has it since 3.11")


def play(main: Main) -> None:
    asyncio.run(asyncio.wait_for(main(), PATIENCE))


async def sees(condition: Callable[[], object]) -> None:
    """Wait, in a loop, for something that no event tells of."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


# --- results --------------------------------------------------------------------------------------


def test_asyncios_own_functions_take_jobs(two: JobPool) -> None:
    async def main() -> None:
        assert await two.submit(double, 2) == 4
        jobs = [two.submit(double, n) for n in range(5)]
        assert await asyncio.gather(*jobs) == [0, 2, 4, 6, 8]
        assert await asyncio.gather(*jobs) == [0, 2, 4, 6, 8], "again, final as they are"
        ends = asyncio.as_completed([two.submit(double, n) for n in range(5)])
        assert sorted([await end for end in ends]) == [0, 2, 4, 6, 8]
        assert await asyncio.wait_for(two.submit(double, 3), PATIENCE) == 6
        assert await asyncio.shield(two.submit(double, 3)) == 6
        with pytest.raises(ValueError, match="mine") as caught:
            await two.submit(fail, "mine")
        assert "raise ValueError(message)" in str(caught.value.__cause__)
        ends_of_both = await asyncio.gather(two.submit(fail), jobs[1], return_exceptions=True)
        assert isinstance(ends_of_both[0], ValueError)
        assert ends_of_both[1] == 2
        with pytest.raises(JobError, match="was not submitted"):
            await PrimitiveJob(double, 1)

    play(main)


def test_in_the_loop_of_another_thread(two: JobPool, tmp_path: Path) -> None:
    ends: list[object] = []

    def body() -> None:
        async def main() -> None:
            ends.append(await asyncio.gather(*[two.submit(double, n) for n in range(3)]))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(two.submit(hold, tmp_path / "never"), 0.05)
            ends.append(two.jobs())

        play(main)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(PATIENCE)
    assert ends == [[0, 2, 4], []]


# --- cancels --------------------------------------------------------------------------------------


@pytest.mark.local
def test_wait_for_stops_the_processes(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        family = Family(two, tmp_path)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(family.job, 0.01)
        assert family.is_gone()
        assert family.job.cancelled()
        with pytest.raises(JobCancelledError):
            await family.job

    play(main)


@pytest.mark.local
def test_a_cancelled_gather_stops_all(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        families = [Family(two, tmp_path, f"{n}") for n in range(2)]
        queued = two.submit(double, 1)
        both = asyncio.gather(*[family.job for family in families], queued)
        await asyncio.sleep(0)
        both.cancel()
        with pytest.raises(asyncio.CancelledError):
            await both  # which does not wait for all
        await sees(lambda: all(family.job.cancelled() for family in families))
        assert all(family.is_gone() for family in families)
        assert queued.cancelled()

    play(main)


@pytest.mark.local
@needs_311
def test_task_group_and_timeout(two: JobPool, tmp_path: Path) -> None:
    asyncio_: Any = asyncio  # of the oldest Python the types are checked for, too

    async def wait_for(job: Awaitable[Any]) -> None:
        await job

    async def main() -> None:
        family = Family(two, tmp_path, "1")
        with pytest.raises(Exception, match="unhandled errors") as caught:  # noqa: PT012
            async with asyncio_.TaskGroup() as group:
                group.create_task(wait_for(family.job))
                group.create_task(wait_for(two.submit(fail, "stops its sibling")))
        assert family.is_gone()
        assert [str(error) for error in caught.value.exceptions] == ["stops its sibling"]  # type: ignore[attr-defined]
        before = asyncio_.current_task().cancelling()  # 1 until Python 3.12, by the group
        family = Family(two, tmp_path, "2")
        with pytest.raises(TimeoutError):
            async with asyncio_.timeout(0.01):
                await family.job
        assert family.is_gone()
        assert asyncio_.current_task().cancelling() == before
        family = Family(two, tmp_path, "3")
        with pytest.raises(TimeoutError):
            async with asyncio_.timeout(0.01), asyncio_.timeout(0.01):
                await family.job
        assert family.is_gone()
        assert asyncio_.current_task().cancelling() == before

    play(main)


@pytest.mark.local
def test_a_second_cancel_during_the_kill(
    two: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = threading.Event()

    async def main() -> None:
        async def consume() -> None:
            await family.job

        family = Family(two, tmp_path)
        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        with kills_that_need(alive, monkeypatch):
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.001)
                assert not task.done()
            alive.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert family.is_gone()

    play(main)


def test_several_tasks_await_one_job(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        async def consume() -> None:
            await job

        job = two.submit(hold, tmp_path / "never")
        one, other = asyncio.create_task(consume()), asyncio.create_task(consume())
        await asyncio.sleep(0)
        one.cancel()
        done, _ = await asyncio.wait([one, other])
        assert one.cancelled()
        assert isinstance(other.exception(), JobCancelledError)
        assert done == {one, other}

    play(main)


def test_shield_cancels_nothing(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        job: PrimitiveJob[int] = two.submit(hold, tmp_path / "gate", 3)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(job), 0.01)
        assert not job.in_final_state()
        (tmp_path / "gate").touch()
        assert await job == 3

    play(main)


def test_grace(two: JobPool, tmp_path: Path) -> None:
    def clean_up() -> None:
        try:
            (tmp_path / "begun").touch()
            hold(tmp_path / "never")
        finally:
            (tmp_path / "cleaned").touch()

    async def main() -> None:
        job = two.options(grace=PATIENCE).submit(clean_up)
        await sees((tmp_path / "begun").exists)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(job, 0.01)
        assert (tmp_path / "cleaned").exists()
        assert job.cancelled()

    play(main)


def test_a_job_that_ends_in_the_moment_of_the_cancel(two: JobPool) -> None:
    async def main() -> None:
        async def consume(job: PrimitiveJob[int]) -> int:
            return await job

        for turn in range(24):
            job = two.submit(double, turn)
            task = asyncio.create_task(consume(job))
            for _ in range(1 + turn % 5):  # a task that has not begun yet awaits nothing
                await asyncio.sleep(0)
            if turn % 2:
                job.wait(PATIENCE)  # its news is on its way to the loop
            task.cancel()
            try:
                assert await task == 2 * turn
            except asyncio.CancelledError:
                assert job.in_final_state()
            assert job.status() in (JobStatus.DONE, JobStatus.CANCELLED)
            assert not job._tracker._waiters

    play(main)


# --- loops and tasks that go away -----------------------------------------------------------------


def test_a_loop_that_is_closed_meanwhile(two: JobPool, tmp_path: Path) -> None:
    async def consume(job: PrimitiveJob[int]) -> int:
        return await job

    loop = asyncio.new_event_loop()
    jobs: list[PrimitiveJob[int]] = [two.submit(hold, tmp_path / "gate", n) for n in range(2)]
    tasks = [loop.create_task(consume(job)) for job in jobs]
    loop.run_until_complete(asyncio.sleep(0))
    assert all(job._tracker._waiters for job in jobs)
    loop.close()
    (tmp_path / "gate").touch()
    assert [job.result(PATIENCE) for job in jobs] == [0, 1]
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to be


def test_a_task_that_is_dropped_leaves_the_job_alone(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        job: PrimitiveJob[int] = two.submit(hold, tmp_path / "gate", 4)

        async def consume() -> None:
            await job

        step = consume()
        step.send(None)
        assert job._tracker._waiters
        step.close()
        assert not job._tracker._waiters
        (tmp_path / "gate").touch()
        assert await job == 4

    play(main)


def test_nothing_is_kept_alive(two: JobPool) -> None:
    async def error_of(job: PrimitiveJob[None]) -> Exception:
        try:
            await job
        except Mine as error:
            return error
        finally:
            del job
        raise AssertionError("nothing was raised")

    async def main() -> None:
        job = two.submit(raise_mine)
        seen = weakref.ref(job)
        error = await error_of(job)
        del job
        await sees(lambda: not seen())
        end = weakref.ref(error)
        del error
        await sees(lambda: not end())

    gc.collect()
    gc.disable()
    try:
        play(main)
    finally:
        gc.enable()


# --- executors ------------------------------------------------------------------------------------


@pytest.mark.local
def test_run_in_executor_and_wrap_future(make_executor: MakeExecutor, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with make_executor(2) as executor:
            calls = [loop.run_in_executor(executor, double, n) for n in range(5)]
            assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8]
            assert await asyncio.wrap_future(executor.submit(double, 4)) == 8
            future = executor.submit(hold_with_child, tmp_path / "never", tmp_path / "pids")
            pids = pids_in(tmp_path / "pids")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(future), 0.01)
            await sees(future.done)
            assert all(gone(pid) for pid in pids)
        with pytest.raises(PoolClosedError):
            executor.submit(double, 1)

    play(main)


# --- async with -----------------------------------------------------------------------------------


MAKERS: dict[str, Callable[[Makers], Any]] = {
    "pool": lambda makers: makers.pool(2),
    "executor": lambda _: JobExecutor(2),
}
# The executor's own pool, which ends with it, is always a `JobPool`.
KINDS = ["pool", pytest.param("executor", marks=pytest.mark.local)]


@pytest.fixture
def make(kind: str, makers: Makers) -> Callable[[], Any]:
    """Makes a pool or an executor of two workers."""
    return functools.partial(MAKERS[kind], makers)


def job_of(pool: Any, *call: Any) -> PrimitiveJob[Any]:
    handle = pool.submit(*call)
    return handle if isinstance(handle, PrimitiveJob) else handle.job


@pytest.mark.parametrize("kind", KINDS)
def test_async_with_waits(make: Callable[[], Any], tmp_path: Path) -> None:
    turns = 0

    async def main() -> None:
        nonlocal turns

        async def release() -> None:
            nonlocal turns
            while turns < 20:  # the loop goes on meanwhile
                turns += 1
                await asyncio.sleep(0)
            (tmp_path / "gate").touch()

        async with make() as pool:
            jobs = [job_of(pool, hold, tmp_path / "gate", n) for n in range(3)]
            task = asyncio.create_task(release())
        assert [job.result(0) for job in jobs] == [0, 1, 2]
        assert threads_of_pools() == []
        await task
        async with pool:  # it has ended: that is no wait
            pass

    play(main)
    assert turns == 20


@pytest.mark.local
@pytest.mark.parametrize("kind", KINDS)
def test_async_with_whose_task_is_cancelled_while_it_waits(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = threading.Event()

    async def main() -> None:
        async def work() -> None:
            async with make() as pool:
                jobs.append(job_of(pool, hold_with_child, tmp_path / "never", tmp_path / "pids"))
                jobs.extend(job_of(pool, double, n) for n in range(2))
                jobs.extend(job_of(pool, hold, tmp_path / "never") for n in range(2))
                await sees((tmp_path / "pids").exists)
                left.set()

        jobs: list[PrimitiveJob[Any]] = []
        left = asyncio.Event()
        task = asyncio.create_task(work())
        await left.wait()
        with kills_that_need(alive, monkeypatch):
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.001)
                assert not task.done()
            alive.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert all(gone(pid) for pid in pids_in(tmp_path / "pids"))
        assert jobs[0].cancelled()
        assert all(job.in_final_state() for job in jobs)
        assert threads_of_pools() == []

    play(main)


@pytest.mark.parametrize("kind", KINDS)
def test_async_with_that_ends_by_an_exception(
    make: Callable[[], Any], kind: str, tmp_path: Path
) -> None:
    async def main() -> None:
        jobs: list[PrimitiveJob[Any]] = []

        async def work(error: type[BaseException]) -> None:
            async with make() as pool:
                jobs.append(job_of(pool, hold, tmp_path / "gate", 1))
                await sees(jobs[-1].running)
                if kind == "executor" and error is LookupError:
                    (tmp_path / "gate").touch()  # as the standard library's, it waits
                raise error

        with pytest.raises(asyncio.CancelledError):
            await work(asyncio.CancelledError)
        assert jobs[0].cancelled()
        with pytest.raises(LookupError):
            await work(LookupError)
        assert jobs[1].cancelled() == (kind == "pool")
        assert jobs[1].in_final_state()
        assert threads_of_pools() == []

    play(main)


def test_async_with_an_executor_over_a_given_pool(two: JobPool, tmp_path: Path) -> None:
    async def main() -> None:
        mine: PrimitiveJob[int] = two.submit(hold, tmp_path / "gate", 1)

        async def work() -> None:
            async with JobExecutor(pool=two) as executor:
                jobs.append(executor.submit(hold, tmp_path / "never").job)

        jobs: list[PrimitiveJob[Any]] = []
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(work(), 0.05)
        assert jobs[0].cancelled()
        assert not mine.in_final_state()
        (tmp_path / "gate").touch()
        assert await mine == 1

    play(main)


def test_async_with_waits_for_callbacks(make_pool: MakePool, tmp_path: Path) -> None:
    called: list[object] = []
    release = threading.Event()

    def callback(job: PrimitiveJob[int]) -> None:
        assert release.wait(PATIENCE), "the loop was blocked"
        called.append(job.result())

        async def nested() -> None:
            async with pool:  # on the thread for callbacks itself
                called.append("ended")

        asyncio.run(nested())

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.02, release.set)
        async with pool:
            pool.submit(double, 1).add_done_callback(callback)
        assert called == [2, "ended"]
        assert threads_of_pools() == []

    pool = make_pool(1)
    play(main)


# --- the loop is never held up --------------------------------------------------------------------


@contextlib.contextmanager
def steps_measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The seconds of CPU time that each step of the loop in this thread takes.

    Not wall time, which is everybody's on a busy machine; and without the collector's, which has
    all that pytest holds to look through.
    """
    times: list[float] = []
    me = threading.get_ident()
    run = Handle._run

    def measured(handle: Handle) -> None:
        begin = time.thread_time()
        run(handle)
        if threading.get_ident() == me:
            times.append(time.thread_time() - begin)

    with monkeypatch.context() as patch:
        patch.setattr(Handle, "_run", measured)
        gc.disable()
        try:
            yield times
        finally:
            gc.enable()


async def stop_by_wait_for(pool: JobPool, executor: JobExecutor, job: PrimitiveJob[Any]) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(job, 0.01)


async def stop_by_group(pool: JobPool, executor: JobExecutor, job: PrimitiveJob[Any]) -> None:
    if sys.version_info < (3, 11):
        await stop_by_wait_for(pool, executor, job)
        return

    async def consume(job: PrimitiveJob[Any]) -> None:
        await job

    with pytest.raises(Exception, match="unhandled errors"):  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(consume(job))
            group.create_task(consume(pool.submit(fail)))


async def stop_by_future(pool: JobPool, executor: JobExecutor, job: PrimitiveJob[Any]) -> None:
    loop = asyncio.get_running_loop()
    call = loop.run_in_executor(executor, hold, Path("/nowhere"))
    call.cancel()
    await stop_by_wait_for(pool, executor, job)


async def stop_by_thread(pool: JobPool, executor: JobExecutor, job: PrimitiveJob[Any]) -> None:
    assert await asyncio.to_thread(job.cancel)


async def stop_by_exit(pool: JobPool, executor: JobExecutor, job: PrimitiveJob[Any]) -> None:
    with pytest.raises(LookupError):
        async with pool:
            raise LookupError


def ignore_sigterm() -> None:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hold(Path("/nowhere"))


STOPS = [stop_by_wait_for, stop_by_group, stop_by_future, stop_by_thread, stop_by_exit]


@pytest.mark.local
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("grace", [0.0, 0.1])
def test_nothing_of_ours_holds_the_loop_up(
    make_pool: MakePool,
    stop: Callable[..., Coroutine[Any, Any, None]],
    grace: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By CPU time for what is done on the loop's thread, and by construction for waits.

    No process dies before the loop has gone on for a while since its kill began.
    """
    alive = threading.Event()

    async def beat() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        await asyncio.sleep(LONGEST)
        alive.set()

    async def main() -> None:
        job = pool.options(grace=grace).submit(ignore_sigterm)
        await sees(job.running)
        with kills_that_need(alive, monkeypatch), steps_measured(monkeypatch) as times:
            heart = asyncio.create_task(beat())
            await stop(pool, executor, job)
            await heart
            jobs = []
            for number in range(200):
                jobs.append(pool_of.submit(abs, -number))
                await asyncio.sleep(0)  # whoever submits in a row does so at his own cost
            assert await asyncio.gather(*jobs) == [*range(200)]
        assert job.cancelled()
        assert max(times) < LONGEST

    with make_pool(2) as pool, make_pool(2) as pool_of, JobExecutor(pool=pool_of) as executor:
        pool.submit(double, 1).result(PATIENCE)
        pool_of.submit(double, 1).result(PATIENCE)
        play(main)


# Functions in C that may wait, by the module that they or their objects are of.
WAITING = {"acquire", "get", "join", "poll", "select", "sleep", "wait", "waitpid"}
THEIRS = {"_thread", "_queue", "posix", "select", "time"}


@contextlib.contextmanager
def waits_of_ours() -> Iterator[list[str]]:
    """Who in the package calls what might wait, on this thread."""
    found: list[str] = []

    def look(frame: FrameType | None, event: str, called: Any) -> None:
        if event != "c_call" or called.__name__ not in WAITING:
            return
        owner = called.__self__
        module = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__
        path = []
        while frame is not None:
            name = str(frame.f_globals.get("__name__"))
            if name.startswith("primitive_jobs"):
                path.append(f"{name}.{frame.f_code.co_name}")
            frame = frame.f_back
        if module not in THEIRS or not path:
            return
        # Threads are joined when they are at their last line.
        if not path[-1].endswith("__aexit__") or "join" not in path[0] + called.__name__:
            found.append(f"{path} {called}")

    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("stop", STOPS)
def test_nothing_of_ours_waits_on_the_loops_thread(
    make_pool: MakePool,
    stop: Callable[..., Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        job = pool.options(grace=0.01).submit(ignore_sigterm)
        await sees(job.running)
        with waits_of_ours() as found:
            await stop(pool, executor, job)
            assert await asyncio.gather(*[pool_of.submit(abs, n) for n in range(9)])
        assert job.cancelled()
        assert not found
        held = pool_of.submit(hold, Path("/nowhere"))
        with waits_of_ours() as found:
            held.wait(0.01)
        assert found, "what waits is noticed"
        assert held.cancel()

    with make_pool(2) as pool, make_pool(2) as pool_of, JobExecutor(pool=pool_of) as executor:
        pool.submit(double, 1).result(PATIENCE)
        pool_of.submit(double, 1).result(PATIENCE)
        play(main)

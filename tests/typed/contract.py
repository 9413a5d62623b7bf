"""What mypy and pyright have to say of calls of ours; read by them (`test_typing`), never run.

The right calls have the right type. The wrong ones are errors: each bears a comment that silences
it, and both checkers complain of a comment that nothing needs.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from primitive_jobs import (
    BasePrimitiveJob,
    JobExecutor,
    JobOptions,
    JobPool,
    JobStatus,
    PrimitiveJob,
    as_completed,
    default_pool,
    run,
    share,
    track,
    wait,
)
from primitive_jobs.multiprocessing import AsyncResult, Pool

if TYPE_CHECKING:
    from typing_extensions import assert_type

    from primitive_jobs.executor import JobFuture
    from primitive_jobs.map_results import MapResults
    from primitive_jobs.pool import PoolView
    from primitive_jobs.waiting import DoneAndNotDone


def simulate(size: int, *, seed: float = 0.0) -> str:
    return f"{size} {seed}"


def pair(number: int, text: str) -> tuple[int, str]:
    return number, text


def three(number: int, text: str, flag: bool) -> bytes:
    return repr((number, text, flag)).encode()


def five(a: int, b: int, c: int, d: int, e: int) -> int:
    return a + b + c + d + e


async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


class Model:
    def __init__(self, size: int) -> None:
        self.size = size

    def energy(self, temperature: float) -> complex:
        return self.size * temperature + 0j

    def __call__(self, step: int) -> list[int]:
        return [self.size, step]


# --- one job --------------------------------------------------------------------------------------


def right_jobs(pool: JobPool, model: Model) -> None:
    assert_type(run(simulate, 1), PrimitiveJob[str])
    assert_type(run(simulate, 1, seed=2).result(), str)
    assert_type(run(simulate, size=1, seed=2).result(timeout=3), str)
    assert_type(run(model.energy, 1.5).result(), complex)
    assert_type(run(model, 1).result(), list[int])
    assert_type(run(Model, 1).result(), Model)
    assert_type(run(lambda: 3).result(), int)
    assert_type(run(pow, 2, 10).exception(), BaseException | None)
    assert_type(pool.submit(simulate, 1, seed=2), PrimitiveJob[str])
    assert_type(pool.options(timeout=1.5, name="n").submit(simulate, 1), PrimitiveJob[str])
    job = PrimitiveJob(simulate, 1, seed=2)
    assert_type(job, PrimitiveJob[str])
    assert_type(job.submit(), PrimitiveJob[str])
    assert_type(job.submit(pool, priority=1), PrimitiveJob[str])
    assert_type(job.submit(pool.options(retries=1), memory_limit="2 GB"), PrimitiveJob[str])
    assert_type(job.status(), JobStatus)
    assert_type(job.cancel(grace=1), bool)
    assert_type(job.wait(1), bool)
    assert_type(job.pid, int | None)
    assert_type(job.name, str)
    assert_type(job.metadata, dict[str, Any])
    assert_type(job.history(), tuple[tuple[JobStatus, float], ...])
    base: BasePrimitiveJob[str, JobStatus] = job
    assert_type(base.result(), str)
    of_more: PrimitiveJob[object] = job  # what gives a str gives an object

    def note(job: PrimitiveJob[object]) -> int:
        return len(job.name)

    job.add_done_callback(note)
    of_more.add_done_callback(note)
    job.add_done_callback(lambda job: assert_type(job.result(), str))


def wrong_jobs(pool: JobPool) -> None:
    run(simulate)  # type: ignore[call-arg]
    run(simulate, "1")  # type: ignore[arg-type]
    run(simulate, 1, 2)  # type: ignore[call-arg]
    run(simulate, 1, sead=2)  # type: ignore[call-arg]
    run(simulate, 1, seed="2")  # type: ignore[arg-type]
    run(3)  # type: ignore[arg-type]
    run(simulate(1))  # type: ignore[arg-type]
    pool.submit(simulate)  # type: ignore[call-arg]
    pool.submit(simulate, 1, seed="2")  # type: ignore[arg-type]
    pool.options(timeout=1).submit(simulate, "1")  # type: ignore[arg-type]
    PrimitiveJob(simulate, "1")  # type: ignore[arg-type]
    job = PrimitiveJob(simulate, 1)
    job.submit(3)  # type: ignore[arg-type]
    job.submit(concurrent.futures.ThreadPoolExecutor())  # type: ignore[arg-type]
    job.submit(JobExecutor())  # type: ignore[arg-type]
    job.submit(timeot=1)  # type: ignore[call-arg]
    job.submit(pool, timeout="1")  # type: ignore[arg-type]
    job.result(timeout="1")  # type: ignore[arg-type]
    job.cancel(1.0)  # type: ignore[call-arg]
    job.cancel(grace="1")  # type: ignore[arg-type]
    number: int = job.result()  # type: ignore[assignment]
    of_ints: PrimitiveJob[int] = job  # type: ignore[assignment]
    job.pid = number  # type: ignore[misc]
    of_ints.resutl()  # type: ignore[attr-defined]

    def note(job: PrimitiveJob[int]) -> None:
        job.result()

    job.add_done_callback(note)  # type: ignore[arg-type]


async def awaited(job: PrimitiveJob[int]) -> None:
    assert_type(await job, int)
    assert_type(await run(simulate, 1), str)
    assert_type(await asyncio.wait_for(job, 3), int)
    assert_type(await asyncio.gather(job, run(simulate, 1)), tuple[int, str])
    text: str = await job  # type: ignore[assignment]
    await run(simulate, text)  # type: ignore[arg-type]


# --- several jobs ---------------------------------------------------------------------------------


def several(jobs: list[PrimitiveJob[int]], texts: list[PrimitiveJob[str]]) -> None:
    assert_type(as_completed(jobs, timeout=3), Iterator[PrimitiveJob[int]])
    assert_type([job.result() for job in as_completed(jobs)], list[int])
    assert_type(wait(jobs), DoneAndNotDone[int])
    done, not_done = wait(jobs, 3, "FIRST_COMPLETED")
    assert_type(done, set[PrimitiveJob[int]])
    assert_type(not_done, set[PrimitiveJob[int]])
    assert_type(wait({*texts}).done, set[PrimitiveJob[str]])
    assert_type(sum(job.result() for job in wait(jobs).done), int)
    mixed: list[PrimitiveJob[int | str]] = [*jobs, *texts]
    assert_type([job.result() for job in as_completed(mixed)], list[int | str])
    as_completed(3)  # type: ignore[arg-type]
    as_completed([3])  # type: ignore[arg-type]
    as_completed(jobs, timeout="3")  # type: ignore[arg-type]
    wait([simulate])  # type: ignore[arg-type]
    wait(jobs, return_when=1)  # type: ignore[arg-type]
    of_texts: set[PrimitiveJob[str]] = wait(jobs).done  # type: ignore[assignment]
    of_texts.clear()


# --- map ------------------------------------------------------------------------------------------


def right_maps(pool: JobPool, model: Model) -> None:
    assert_type(pool.map(simulate, [1, 2]), MapResults[str])
    assert_type(
        pool.map(simulate, range(3), timeout=3, chunksize=2, ordered=False), MapResults[str]
    )
    assert_type(pool.map(pair, range(3), ["a"]), MapResults[tuple[int, str]])
    assert_type(pool.map(three, range(3), "abc", [True]), MapResults[bytes])
    assert_type(pool.map(five, [1], [2], [3], [4], [5]), MapResults[int])
    assert_type(pool.map(lambda x: x + 0.5, range(3)), MapResults[float])
    assert_type(pool.map(str, range(3)), MapResults[str])
    assert_type(pool.map(Model, range(3)), MapResults[Model])
    assert_type(pool.map(model.energy, [1.5]), MapResults[complex])
    assert_type(pool.map(abs, [-1, 2]), MapResults[int])
    assert_type(list(pool.options(timeout=1).map(len, ["a"])), list[int])
    standard: Iterator[int] = pool.map(abs, [-1, 2])
    assert_type(list(standard), list[int])
    assert_type(track(pool.map(abs, [-1, 2])), Iterator[int])
    assert_type(track([pool.submit(abs, 1)]), Iterator[PrimitiveJob[int]])


def wrong_maps(pool: JobPool) -> None:
    pool.map(simulate)  # type: ignore[call-overload]
    pool.map(simulate, ["a"])  # type: ignore[arg-type]
    pool.map(simulate, 3)  # type: ignore[call-overload]
    pool.map(pair, range(3))  # type: ignore[arg-type]
    pool.map(pair, range(3), range(3))  # type: ignore[arg-type]
    pool.map(three, range(3), "abc", "abc")  # type: ignore[arg-type]
    pool.map(simulate, [1], chunksize="2")  # type: ignore[call-overload]
    pool.map(simulate, [1], chunk_size=2)  # type: ignore[call-overload]
    pool.map(3, [1])  # type: ignore[call-overload]
    pool.options(timeout=1).map(simulate, ["a"])  # type: ignore[arg-type]


# --- pools and options ----------------------------------------------------------------------------


def right_pools() -> None:
    with JobPool(2, initializer=simulate, initargs=(1,), env={"A": "b"}, on_exit="cancel") as pool:
        assert_type(pool, JobPool)
        view = pool.options(
            name="n", metadata={"a": 1}, timeout=1, memory_limit=2e9, priority=1, retries=2
        )
        assert_type(view.options(retry_on=(OSError, KeyError), retry_delay=0.5), PoolView)
        assert_type(view.options(cpus=2, memory="4 GB", resources={"gpu": 1}), PoolView)
        view.options(retry_on=OSError)
        view.options(retry_on=int)  # type: ignore[arg-type]
        assert_type(view, PoolView)
        assert_type(view.options(timeout=None), PoolView)
        assert_type(pool.jobs(), list[PrimitiveJob[Any]])
    assert_type(default_pool(), JobPool)
    JobOptions(timeout=1, memory_limit="1 GB")


def wrong_pools(pool: JobPool) -> None:
    JobPool("2")  # type: ignore[arg-type]
    JobPool(max_worker=2)  # type: ignore[call-arg]
    JobPool(on_exit="kill")  # type: ignore[arg-type]
    JobPool(initializer=3)  # type: ignore[arg-type]
    JobPool(1, simulate)  # type: ignore[call-arg]
    pool.options(timeot=1)  # type: ignore[call-arg]
    pool.options(timeout="1")  # type: ignore[arg-type]
    pool.options(priority=1.5)  # type: ignore[arg-type]
    pool.options(metadata=[1])  # type: ignore[arg-type]
    pool.options(timeout=1).options(retrys=1)  # type: ignore[call-arg]
    pool.resize(2.5)  # type: ignore[arg-type]
    pool.shutdown(cancel=1)  # type: ignore[arg-type]
    JobOptions(timeot=1)  # type: ignore[call-arg]


def shared(pool: JobPool, table: list[float]) -> None:
    def pick(table: list[float], row: int) -> float:
        return table[row]

    handle = share(table)  # typed as what it stands for: so it goes where that is wanted
    assert_type(handle, list[float])
    assert_type(pool.submit(pick, handle, 1), PrimitiveJob[float])
    pool.submit(pick, share("text"), 1)  # type: ignore[arg-type]


# --- executor -------------------------------------------------------------------------------------


async def right_executors(pool: JobPool) -> None:
    with JobExecutor(2, max_tasks_per_child=3, env={"A": "b"}, on_exit="cancel") as executor:
        assert_type(executor, JobExecutor)
        future = executor.submit(simulate, 1, seed=2)
        assert_type(future, JobFuture[str])
        assert_type(future.job, PrimitiveJob[str])
        assert_type(future.result(1), str)
        assert_type(executor.map(simulate, [1], chunksize=2), Iterator[str])
        standard: concurrent.futures.Executor = executor
        assert_type(standard.submit(simulate, 1).result(), str)
        done = concurrent.futures.wait([future]).done
        assert_type([one.result() for one in done], list[str])
        loop = asyncio.get_running_loop()
        assert_type(await loop.run_in_executor(executor, simulate, 1), str)
        assert_type(await asyncio.wrap_future(future), str)
    JobExecutor(pool=pool)
    JobExecutor(pool=pool.options(timeout=1))


def right_pools_of_multiprocessing(pool: JobPool) -> None:
    with Pool(2, max, (1,), 3, env={"A": "b"}) as made:
        assert_type(made, Pool)
        assert_type(made.size, int)
        assert_type(made.apply(simulate, (1,), {"seed": 2}), str)
        assert_type(made.apply_async(simulate, (1,), callback=len), AsyncResult[str])
        assert_type(made.apply_async(simulate, (1,)).get(3), str)
        assert_type(made.apply_async(simulate, (1,)).job.status(), JobStatus)
        assert_type(made.map(simulate, [1, 2], 3), list[str])
        assert_type(made.map_async(simulate, [1, 2], callback=len).get(), list[str])
        assert_type(made.starmap(pair, [(1, "a")]), list[tuple[int, str]])
        assert_type(made.starmap_async(pair, [(1, "a")]).get(), list[tuple[int, str]])
        assert_type(next(made.imap(simulate, [1])), str)
        assert_type(made.imap_unordered(simulate, [1], chunksize=2).next(timeout=3), str)
    Pool(pool=pool)
    Pool(pool=pool.options(timeout=1))


def wrong_pools_of_multiprocessing(made: Pool) -> None:
    Pool("2")  # type: ignore[arg-type]
    Pool(colour="blue")  # type: ignore[call-arg]
    Pool(pool=made)  # type: ignore[arg-type]
    made.apply(simulate(1))  # type: ignore[arg-type]
    made.apply_async(simulate, (1,), callback=3)  # type: ignore[arg-type]
    number: int = made.apply(simulate, (1,))  # type: ignore[assignment]
    made.map(simulate, number)  # type: ignore[arg-type]
    made.map(simulate, [1], chunksize="2")  # type: ignore[arg-type]
    made.size.resutl()  # type: ignore[attr-defined]


def wrong_executors(executor: JobExecutor) -> None:
    JobExecutor(colour="blue")  # type: ignore[call-arg]
    JobExecutor(on_exit="kill")  # type: ignore[arg-type]
    JobExecutor(pool=executor)  # type: ignore[arg-type]
    executor.submit(simulate, "1")  # type: ignore[arg-type]
    executor.submit(simulate, 1, sead=2)  # type: ignore[call-arg]
    executor.map(simulate, 3)  # type: ignore[arg-type]
    text: int = executor.submit(simulate, 1).result()  # type: ignore[assignment]
    executor.shutdown(cancel=bool(text))  # type: ignore[call-arg]

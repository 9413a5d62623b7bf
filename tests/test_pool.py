"""Jobs and pools end to end, as a user sees them."""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import os
import pickle
import re
import threading
import time
import uuid
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loky
import numpy as np
import psutil
import pytest
from helpers import (
    PATIENCE,
    check_well,
    descriptors,
    double,
    fail,
    hold,
    interrupt_everywhere,
    interrupted,
    meet,
    sampled,
    until,
)

from primitive_jobs import (
    InitializerError,
    JobCancelledError,
    JobError,
    JobPool,
    JobStatus,
    PoolClosedError,
    PrimitiveJob,
    ResultTimeoutError,
    SerializationError,
    as_completed,
    default_pool,
    run,
    wait,
)
from primitive_jobs._common.thread_variables import THREAD_VARIABLES
from primitive_jobs._wire.parcel import Parcel

if TYPE_CHECKING:
    from makers import MakePool

# --- the eight methods ---------------------------------------------------------------------------


def test_eight_methods(pool: JobPool) -> None:
    job = PrimitiveJob(double, 21)
    assert job.status() is JobStatus.INITIALIZING
    assert job.submit(pool) is job
    result: int = job.result(PATIENCE)
    assert result == 42
    assert job.status() is JobStatus.DONE
    assert str(uuid.UUID(job.job_id())) == job.job_id()
    assert uuid.UUID(job.job_id()).version == 4
    flags = (job.done(), job.running(), job.cancelled(), job.in_final_state(), job.cancel())
    assert flags == (True, False, False, True, False)
    assert job.exception() is None
    assert job.pid is None


def test_a_job_that_raises(pool: JobPool) -> None:
    job = pool.submit(fail, "oh")
    with pytest.raises(ValueError, match=r"^oh$") as caught:
        job.result(PATIENCE)
    assert "raise ValueError(message)" in str(caught.value.__cause__)
    assert job.exception() is caught.value
    assert job.status() is JobStatus.ERROR
    assert (job.done(), job.in_final_state(), job.cancel()) == (False, True, False)


def test_submit_once(pool: JobPool) -> None:
    job = PrimitiveJob(double, 1).submit(pool)
    with pytest.raises(JobError, match="submitted before"):
        job.submit(pool)
    assert job.result(PATIENCE) == 2
    with pytest.raises(JobError, match="submitted before"):
        job.submit(pool)
    assert job.result() == 2


def test_cancel_before_submit(pool: JobPool) -> None:
    job = PrimitiveJob(double, 1)
    assert job.cancel()
    assert job.cancel()
    assert job.status() is JobStatus.CANCELLED
    with pytest.raises(JobError):
        job.submit(pool)
    with pytest.raises(JobCancelledError):
        job.result()
    with pytest.raises(JobCancelledError):
        job.exception()


def test_none_is_a_result(pool: JobPool) -> None:
    job = pool.submit(lambda: None)
    assert job.result(PATIENCE) is None
    assert job.done()
    assert job.result() is None


def test_same_object_each_time(pool: JobPool) -> None:
    job = pool.submit(lambda: [1, 2])
    assert job.result(PATIENCE) is job.result()
    failed = pool.submit(fail)
    assert failed.exception(PATIENCE) is failed.exception()


def test_timeouts_end_only_the_waiting(pool: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = pool.submit(hold, gate, 5)
    for call in (job.result, job.exception, job.wait_for_final_state):
        for timeout in (0, 0.02, -1):
            with pytest.raises(ResultTimeoutError) as caught:
                call(timeout)
            assert isinstance(caught.value, TimeoutError)
    assert job.wait(0.01) is False
    assert not job.in_final_state()
    gate.touch()
    assert job.wait(PATIENCE) is True
    job.wait_for_final_state()
    assert job.result() == 5


def test_unsubmitted_raises_at_once() -> None:
    job = PrimitiveJob(double, 1)

    async def await_it() -> int:
        return await job

    for call in (
        job.result,
        job.exception,
        job.wait,
        job.wait_for_final_state,
        lambda: asyncio.run(await_it()),
        lambda: pickle.dumps(job),
        lambda: as_completed([job]),
        lambda: wait([job]),
    ):
        with pytest.raises(JobError, match="not submitted"):
            call()
    assert job.status() is JobStatus.INITIALIZING


def test_worker_is_reused(one: JobPool) -> None:
    assert len({one.submit(os.getpid).result(PATIENCE) for _ in range(5)}) == 1


@pytest.mark.local
def test_statuses_and_history(one: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    before = time.time()
    first = one.submit(hold, gate)
    until(first.running, "RUNNING")
    assert first.pid is not None
    assert psutil.pid_exists(first.pid)
    second = one.submit(double, 4)
    assert second.status() is JobStatus.QUEUED
    assert second.pid is None
    gate.touch()
    assert second.result(PATIENCE) == 8
    walk = second.history()
    assert [status for status, _ in walk] == [
        JobStatus.INITIALIZING,
        JobStatus.VALIDATING,
        JobStatus.QUEUED,
        JobStatus.RUNNING,
        JobStatus.DONE,
    ]
    times = [when for _, when in walk]
    assert times == sorted(times)
    assert before - 1 <= times[0] <= times[-1] <= time.time() + 1


def test_unpicklable_argument(pool: JobPool) -> None:
    job = pool.submit(double, threading.Lock())  # type: ignore[arg-type]
    assert job.status() is JobStatus.ERROR
    with pytest.raises(SerializationError, match=r"argument 1 of double\(\)"):
        job.result()
    assert [s for s, _ in job.history()][-2:] == [JobStatus.VALIDATING, JobStatus.ERROR]


def test_ids_are_unique() -> None:
    assert len({PrimitiveJob(double, 1).job_id() for _ in range(1000)}) == 1000


def test_name_metadata_repr(pool: JobPool) -> None:
    metadata = {"T": 3}
    job = pool.options(name="sim", metadata=metadata).submit(double, 1)
    metadata["T"] = 4
    assert (job.name, job.metadata) == ("sim", {"T": 3})
    assert pool.submit(double, 2).name == "double"
    job.wait(PATIENCE)
    assert re.fullmatch(rf"<PrimitiveJob {job.job_id()} 'sim' DONE \d+\.\d{{3}} s>", repr(job))
    assert "INITIALIZING" in repr(PrimitiveJob(double, 1))
    view = pool.options(priority=1).options(name="both")
    assert PrimitiveJob(double, 5).submit(view, metadata={"a": 1}).name == "both"


def test_priority_order(one: JobPool, tmp_path: Path) -> None:
    gate, order = tmp_path / "gate", tmp_path / "order"

    def note(label: str) -> None:
        with order.open("a") as file:
            file.write(label)

    one.submit(hold, gate)
    jobs = [
        one.options(priority=p).submit(note, label)
        for p, label in ((0, "d"), (-1, "f"), (5, "a"), (0, "e"), (5, "b"), (1, "c"))
    ]
    gate.touch()
    wait(jobs, PATIENCE)
    assert order.read_text() == "abcdef"


# --- callbacks -----------------------------------------------------------------------------------


def test_callbacks(pool: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    calls: list[tuple[object, int]] = []
    done = threading.Event()

    def note(job: PrimitiveJob[int]) -> None:
        again = pool.submit(double, 10).result(PATIENCE)
        calls.append((job, job.result() + again + job.cancel()))
        done.set()

    job: PrimitiveJob[int] = pool.submit(hold, gate, 1)
    job.add_done_callback(note)
    gate.touch()
    assert done.wait(PATIENCE)
    assert calls == [(job, 21)]
    threads: list[object] = []
    job.add_done_callback(lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_raising_callback_is_logged(pool: JobPool, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def bad(job: object) -> None:
        raise SystemExit("bad callback")

    with caplog.at_level(logging.ERROR, "primitive_jobs"):
        job = PrimitiveJob(double, 1)
        job.add_done_callback(bad)
        job.add_done_callback(lambda _: done.set())
        job.submit(pool)
        assert done.wait(PATIENCE)
    (record,) = [r for r in caplog.records if r.name == "primitive_jobs"]
    assert record.exc_info is not None
    assert record.exc_info[0] is SystemExit


# --- as_completed, wait --------------------------------------------------------------------------


def test_as_completed(pool: JobPool, tmp_path: Path) -> None:
    gates = [tmp_path / "0", tmp_path / "1"]
    jobs = [pool.submit(hold, gate, i) for i, gate in enumerate(gates)]
    seen = []
    iterator = as_completed([*jobs, jobs[0]], timeout=PATIENCE)
    gates[1].touch()
    seen.append(next(iterator))
    with pytest.raises(ResultTimeoutError, match="1 of 2"):
        list(as_completed([jobs[0], jobs[0], jobs[1]], timeout=0.02))
    gates[0].touch()
    seen += iterator
    assert seen == [jobs[1], jobs[0]]
    assert list(as_completed([])) == []


def test_wait(pool: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    slow = pool.submit(hold, gate)
    quick = pool.submit(double, 1)
    assert wait([slow, quick], PATIENCE, FIRST_COMPLETED) == ({quick}, {slow})
    assert wait([slow, quick], 0.02, FIRST_EXCEPTION) == ({quick}, {slow})
    assert wait([slow, quick], 0.02) == ({quick}, {slow})
    failed = pool.submit(fail)
    found = wait([slow, failed], PATIENCE, return_when=FIRST_EXCEPTION)
    assert found.done == {failed}
    assert found.not_done == {slow}
    assert failed.status() is JobStatus.ERROR
    gate.touch()
    assert wait([slow, quick, slow], PATIENCE, ALL_COMPLETED) == ({slow, quick}, set())
    with pytest.raises(ValueError, match="return_when"):
        wait([slow], return_when="SOME")


# --- the pool ------------------------------------------------------------------------------------


def test_jobs_and_cancel_all(one: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs = [one.submit(hold, gate, i) for i in range(4)]
    assert one.jobs() == jobs
    until(jobs[0].running, "RUNNING")
    one.cancel_all()
    assert [job.status() for job in jobs] == [JobStatus.CANCELLED] * 4
    assert one.jobs() == []
    assert one.submit(double, 2).result(PATIENCE) == 4


@pytest.mark.local
def test_resize(one: JobPool, tmp_path: Path) -> None:
    one.resize(3)
    (tmp_path / "meeting").mkdir()
    jobs = [one.submit(meet, tmp_path / "meeting", 3) for _ in range(3)]
    pids = {job.result(PATIENCE) for job in jobs}
    assert len(pids) == 3
    one.resize(1)
    until(lambda: sum(map(psutil.pid_exists, pids)) == 1, "two workers to leave")
    gate = tmp_path / "gate"
    first = one.submit(hold, gate)
    until(first.running, "RUNNING")
    second = one.submit(os.getpid)
    assert second.status() is JobStatus.QUEUED
    gate.touch()
    assert second.result(PATIENCE) in pids
    for bad in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            one.resize(bad)


_shared: dict[str, Any] = {}


def share(**values: Any) -> None:
    import test_pool  # the module that jobs see, whatever this function was pickled as

    test_pool._shared.update(values)


def initialize(lock: Any, event: Any, ballast: bytes) -> None:
    share(lock=lock, event=event, size=len(ballast))


def shared_size() -> int:
    import test_pool

    with test_pool._shared["lock"]:
        test_pool._shared["event"].set()
    return int(test_pool._shared["size"])


@pytest.mark.local
def test_initializer_with_lock_and_event(make_pool: MakePool) -> None:
    context = multiprocessing.get_context("spawn")
    lock, event = context.Lock(), context.Event()
    with make_pool(1, initializer=initialize, initargs=(lock, event, b"12")) as pool:
        with lock:
            job = pool.submit(shared_size)
            until(job.running, "RUNNING")
            assert not job.wait(0.05)
        assert job.result(PATIENCE) == 2
        assert event.wait(PATIENCE)


def test_large_initargs(make_pool: MakePool) -> None:
    with make_pool(
        1, initializer=lambda data: share(size=len(data)), initargs=(b"x" * 10**6,)
    ) as p:

        def size() -> int:
            import test_pool

            return int(test_pool._shared["size"])

        assert p.submit(size).result(PATIENCE) == 10**6


def test_raising_initializer_and_recovery(make_pool: MakePool, tmp_path: Path) -> None:
    flag = tmp_path / "works"

    def check() -> None:
        if not flag.exists():
            raise LookupError("no flag")

    with make_pool(1, initializer=check) as pool:
        jobs = [pool.submit(double, i) for i in range(2)]
        for job in jobs:
            with pytest.raises(InitializerError, match="no flag") as caught:
                job.result(PATIENCE)
            cause = caught.value.__cause__
            assert isinstance(cause, LookupError)
            assert 'raise LookupError("no flag")' in str(cause.__cause__)
        flag.touch()
        assert pool.submit(double, 4).result(PATIENCE) == 8


def test_dying_initializer(make_pool: MakePool) -> None:
    with make_pool(1, initializer=os._exit, initargs=(3,)) as pool:
        job = pool.submit(double, 1)
        with pytest.raises(InitializerError) as caught:
            job.result(PATIENCE)
    assert caught.value.exitcode == 3
    assert caught.value.signal is None


@pytest.mark.local
def test_env_and_threads(make_pool: MakePool) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    with make_pool(1, env={"MINE": "yes", "MKL_NUM_THREADS": "7"}, threads_per_worker=3) as pool:
        environ = pool.submit(lambda: dict(os.environ)).result(PATIENCE)
    assert environ["MINE"] == "yes"
    assert "MINE" not in os.environ
    assert [environ[name] for name in names] == ["3", "3", "7", "3"]


@pytest.mark.local
def test_threads_of_other_libraries(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars, TensorFlow, OpenCV and others have variables of their own."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POLARS_MAX_THREADS", "5")
    share = str(max(1, int(loky.cpu_count()) // 2))
    with make_pool(2) as by_default, make_pool(1, threads_per_worker=3) as told:
        theirs = by_default.submit(lambda: dict(os.environ)).result(PATIENCE)
        told_environ = told.submit(lambda: dict(os.environ)).result(PATIENCE)
    assert theirs["TF_NUM_INTRAOP_THREADS"] == theirs["OPENCV_FOR_THREADS_NUM"] == share
    assert theirs["POLARS_MAX_THREADS"] == "5"  # what its user has said counts
    assert {told_environ[name] for name in THREAD_VARIABLES} == {"3"}
    assert told_environ["POLARS_MAX_THREADS"] == "3"


@pytest.mark.local
def test_default_size(make_pool: MakePool) -> None:
    with make_pool() as pool:
        assert f"max_workers={loky.cpu_count()} open" in repr(pool)
    assert "shut down" in repr(pool)


@pytest.mark.local
def test_default_pool_and_run() -> None:
    pool = default_pool()
    assert default_pool() is pool
    assert run(double, 4).result(PATIENCE) == 8
    assert PrimitiveJob(double, 5).submit().result(PATIENCE) == 10
    job = PrimitiveJob(double, 6)
    job._submit()
    assert job.result(PATIENCE) == 12
    pool.shutdown()
    with pytest.raises(PoolClosedError):
        pool.submit(double, 1)
    assert default_pool() is not pool
    assert run(double, 7).result(PATIENCE) == 14


def test_context_manager(make_pool: MakePool, tmp_path: Path) -> None:
    gate = tmp_path / "never"
    with make_pool(1) as pool:
        jobs = [pool.submit(double, i) for i in range(5)]
    assert [job.status() for job in jobs] == [JobStatus.DONE] * 5
    held = []

    def interrupted_block() -> None:
        with make_pool(1) as pool:
            held.extend([pool.submit(hold, gate) for _ in range(3)])
            raise LookupError

    with pytest.raises(LookupError):
        interrupted_block()
    assert [job.status() for job in held] == [JobStatus.CANCELLED] * 3
    with pytest.raises(PoolClosedError):
        pool.submit(double, 1)


# --- asyncio -------------------------------------------------------------------------------------


def test_await(pool: JobPool) -> None:
    async def main() -> None:
        assert await pool.submit(double, 2) == 4
        assert await asyncio.gather(*(pool.submit(double, i) for i in range(10))) == [
            2 * i for i in range(10)
        ]
        with pytest.raises(ValueError, match="on purpose"):
            await pool.submit(fail)

    asyncio.run(main())


@pytest.mark.local
def test_cancelled_task_cancels_the_job(one: JobPool, tmp_path: Path) -> None:
    job = one.submit(hold, tmp_path / "never")
    until(job.running, "RUNNING")
    pid = job.pid
    assert pid is not None

    async def main() -> None:
        async def consume() -> None:
            await job

        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert job.cancelled()
        assert not psutil.pid_exists(pid)

    asyncio.run(main())


# --- what travels --------------------------------------------------------------------------------


def test_pickling_jobs(pool: JobPool) -> None:
    done = pool.options(name="n", metadata={"k": 1}).submit(double, 4)
    failed = pool.submit(fail, "x")
    cancelled = PrimitiveJob(double, 1)
    cancelled.cancel()
    for job in (done, failed, cancelled):
        copy = pickle.loads(pickle.dumps(job))
        there = pool.submit(
            lambda js: [(j.job_id(), j.status(), j.name, j.metadata) for j in js], {job}
        )
        expected = (job.job_id(), job.status(), job.name, job.metadata)
        assert (copy.job_id(), copy.status(), copy.name, copy.metadata) == expected
        assert there.result(PATIENCE) == [expected]
        assert copy.history() == job.history()
        assert copy.cancel() is (job is cancelled)
    assert pickle.loads(pickle.dumps(done)).result() == 8
    copy = pickle.loads(pickle.dumps(failed))
    with pytest.raises(ValueError, match=r"^x$") as caught:
        copy.result()
    assert "raise ValueError(message)" in str(caught.value.__cause__)
    with pytest.raises(JobCancelledError):
        pickle.loads(pickle.dumps(cancelled)).result()


@pytest.mark.parametrize("count", [10, 500_000], ids=["small", "4 MB"])
def test_arrays(one: JobPool, tmp_path: Path, count: int) -> None:
    gate = tmp_path / "gate"

    def add(array: Any) -> Any:
        hold(gate)
        array += 1  # writable and the job's own
        return array

    source = np.arange(count, dtype=float)
    job = one.submit(add, source)
    source[:] = -1
    gate.touch()
    result = job.result(PATIENCE)
    assert np.array_equal(result, np.arange(count) + 1)
    result[0] = 5
    assert job.result()[0] == 5
    assert (source == -1).all()


def test_callables_of_every_kind(pool: JobPool) -> None:
    offset = 5

    def closure(x: int) -> int:
        return x + offset

    class Local:
        def __init__(self, base: int) -> None:
            self.base = base

        def method(self, x: int) -> int:
            return self.base * x

        def __call__(self) -> int:
            return self.base

    jobs: list[PrimitiveJob[int]] = [
        pool.submit(closure, 1),
        pool.submit(lambda: offset),
        pool.submit(Local(3).method, 4),
        pool.submit(Local(9)),
        pool.submit(functools.partial(closure, x=2)),
    ]
    assert [job.result(PATIENCE) for job in jobs] == [6, 5, 12, 9, 7]
    assert pool.submit(Local, 8).result(PATIENCE).base == 8


def test_names_of_arguments_are_free(pool: JobPool) -> None:
    def names(**kwargs: int) -> dict[str, int]:
        return kwargs

    wanted = {"function": 1, "self": 2, "pool": 3, "timeout": 4}
    assert pool.submit(names, **wanted).result(PATIENCE) == wanted


# --- many ----------------------------------------------------------------------------------------


def test_many_jobs(pool: JobPool) -> None:
    jobs = [pool.submit(double, i) for i in range(500)]
    assert [job.result(PATIENCE) for job in jobs] == [2 * i for i in range(500)]


def test_many_threads(pool: JobPool) -> None:
    start = threading.Barrier(16)
    results: dict[int, list[int]] = {}

    def submit(number: int) -> None:
        start.wait(PATIENCE)
        jobs = [pool.submit(double, number * 100 + i) for i in range(20)]
        results[number] = [job.result(PATIENCE) for job in jobs]

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [2 * (n * 100 + i) for i in range(20)] for n in range(16)}


def test_a_very_long_patience(pool: JobPool) -> None:
    assert pool.submit(abs, -1).result(1e300) == 1
    for wait_for in (lambda job: wait([job], 1e300), lambda job: list(as_completed([job], 1e300))):
        job = pool.submit(time.sleep, 0.1)
        wait_for(job)
        assert job.done()
    assert list(pool.map(abs, [-1], timeout=1e300)) == [1]


# --- Ctrl-C --------------------------------------------------------------------------------------


# Python reports what is raised in a finalizer that way; it cannot be raised anywhere else.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@sampled(7)
def test_interrupt_in_submit(two: JobPool, stride: int) -> None:
    pool = two
    pool.submit(double, 0).result(PATIENCE)
    jobs = []

    def attempt(place: int) -> bool:
        job = PrimitiveJob(double, place)
        jobs.append(job)
        return interrupted(lambda: job.submit(pool), place)

    def submit(place: int) -> bool:
        return interrupted(lambda: pool.submit(double, 1), place)

    assert interrupt_everywhere(attempt, stride) * stride > 150
    assert interrupt_everywhere(submit, stride) * stride > 150
    check_well(pool, jobs)


@sampled(5)
def test_interrupt_in_result(pool: JobPool, tmp_path: Path, stride: int) -> None:
    jobs = []

    def attempt(place: int) -> bool:
        gate = tmp_path / str(place)
        job: PrimitiveJob[int] = pool.submit(hold, gate, 2 * place)
        jobs.append(job)

        def finish() -> None:
            until(lambda: job._tracker._waiters, "somebody waits")
            gate.touch()

        finisher = threading.Thread(target=finish)
        finisher.start()
        hit = interrupted(job.result, place)
        assert job.result(PATIENCE) == 2 * place
        finisher.join()
        return hit

    assert interrupt_everywhere(attempt, stride) * stride > 30
    check_well(pool, jobs)


@sampled(5)
def test_interrupt_in_cancel(pool: JobPool, tmp_path: Path, stride: int) -> None:
    gate = tmp_path / "gate"
    held: list[PrimitiveJob[int]] = [pool.submit(hold, gate, 1) for _ in range(2)]
    until(lambda: all(job.running() for job in held), "RUNNING")
    jobs = []

    def attempt(place: int) -> bool:
        job = pool.submit(double, place)
        jobs.append(job)
        hit = interrupted(job.cancel, place)
        assert job.cancel()
        return hit

    assert interrupt_everywhere(attempt, stride) * stride > 30
    gate.touch()
    check_well(pool, jobs + held)
    assert all(job.cancelled() for job in jobs)


@pytest.mark.local
@sampled(40)
def test_interrupt_in_cancel_of_a_running_job(two: JobPool, tmp_path: Path, stride: int) -> None:
    jobs: list[PrimitiveJob[int]] = []

    def attempt(place: int) -> bool:
        job: PrimitiveJob[int] = two.submit(hold, tmp_path / "never", 1)
        jobs.append(job)
        until(job.running, "RUNNING")
        pid = job.pid
        hit = interrupted(job.cancel, place)
        assert job.cancel()
        assert pid is not None
        assert not psutil.pid_exists(pid)
        return hit

    assert interrupt_everywhere(attempt, stride) * stride > 40
    check_well(two, jobs)


def test_interrupted_early_cancel_tells_its_waiters() -> None:
    def attempt(place: int) -> bool:
        calls: list[object] = []
        job = PrimitiveJob(double, place)
        job.add_done_callback(calls.append)
        hit = interrupted(job.cancel, place)
        assert job.cancel()
        assert calls == [job], f"opcode {place}"
        assert job.history()[-1][0] is JobStatus.CANCELLED
        return hit

    assert interrupt_everywhere(attempt, 1) > 20  # it takes no time


def test_interrupt_in_the_making_of_a_large_payload() -> None:
    content = bytes(300_000)
    before = descriptors()
    assert interrupt_everywhere(lambda n: interrupted(lambda: Parcel(content), n), 1) > 20
    assert descriptors() == before


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pool_among_the_arguments_is_explained(one: JobPool, wrapped: bool) -> None:
    error = one.submit(id, one.options(timeout=9) if wrapped else one).exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert "argument 1 of id()" in str(error)
    assert "or takes default_pool()" in str(error)

"""On whose thread an object of the user's loses its last reference, and its destructor runs.

Never on one of the pool's own: a destructor may take its time, wait for a job, or want a lock of
somebody who waits for one. The thread for callbacks is where foreign code may run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from helpers import PATIENCE, be_neighbour, double, expect, fail, hold, until

from primitive_jobs import (
    JobError,
    JobExecutor,
    JobFailuresWarning,
    JobPool,
    PrimitiveJob,
    gather,
    wait,
)
from primitive_jobs._engine.record import Callback

pytestmark = pytest.mark.filterwarnings("ignore::primitive_jobs.JobFailuresWarning")

DEAD: list[tuple[str, threading.Thread]] = []  # what has gone, and where


class Mark:
    """Says where it went. It travels: what arrives says nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.here = True

    def __del__(self, current: Callable[[], threading.Thread] = threading.current_thread) -> None:
        if getattr(self, "here", False):
            DEAD.append((self.kind, current()))

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()

    def __call__(self, *_: object, **__: object) -> None:
        """Be a callback."""


class Copied(Mark):
    """The same, of which every copy says where it goes, too."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Copied, (self.kind,)


class Noted(Exception):
    """An exception that holds one."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.mark = Copied(kind)

    def __reduce__(self) -> tuple[Any, ...]:
        return Noted, self.args


class Unpicklable:
    """What raises where it is pickled; again, when it is looked for who is to blame."""

    def __init__(self) -> None:
        self.reasons = ["reason"]

    def __reduce__(self) -> NoReturn:
        raise Noted(self.reasons.pop()) if self.reasons else ValueError


def raise_noted(kind: str) -> NoReturn:
    raise Noted(kind)


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """The collector runs anybody's finalizers anywhere: what is looked at here is in no cycle."""
    DEAD.clear()
    gc.collect()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # whoever is last is as good as drawn by lot
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        sys.setswitchinterval(before)
        DEAD.clear()


def ours(pool: JobPool) -> set[threading.Thread]:
    """The threads of a pool where no foreign code runs."""
    (callbacks,) = [one for one in pool._engine._threads if "callbacks" in one.name]
    return {*pool._engine._threads} - {callbacks}


def check(own: set[threading.Thread], **counts: int) -> None:
    """So many of these have gone, and none of them on an own thread."""
    total = sum(counts.values())
    with contextlib.suppress(AssertionError):  # what is missing is told below
        until(lambda: len(DEAD) >= total, "all to go", 10)
    dead, DEAD[:] = list(DEAD), []
    found = {kind: sum(one == kind for one, _ in dead) for kind, _ in dead}
    assert found == counts
    assert [(kind, thread.name) for kind, thread in dead if thread in own] == []


def submit(pool: JobPool, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A job with one of all that a handle may hold: five of them."""
    closed_over = Mark("closure")

    def call(mark: object, *args: object, keyword: object) -> object:
        return function(*args) if closed_over is not None else None

    view = pool.options(metadata={"mark": Mark("metadata")}, **options)
    job = view.submit(call, Mark("argument"), *args, keyword=Mark("keyword"))
    job.add_done_callback(Mark("callback"))
    return job


HANDLE = {"closure": 1, "argument": 1, "keyword": 1, "metadata": 1, "callback": 1}
ENDS = ["done", "failed", "died", "cancelled", "timed out", "out of memory", "never started"]


def end(kind: str, pool: JobPool, folder: Path) -> Any:
    """A job that ends in some way; it is returned before or after its end."""
    gate = folder / "never"
    if kind == "done":
        return submit(pool, double, 1)
    if kind == "failed":
        return submit(pool, fail)
    if kind == "died":
        return submit(pool, os._exit, 3)
    if kind == "timed out":
        return submit(pool, hold, gate, timeout=0.05)
    if kind == "out of memory":
        return submit(pool, hold, gate, memory_limit="1 MB")
    busy = pool.submit(hold, gate)
    if kind == "cancelled":
        busy.cancel()
        job = submit(pool, hold, gate)
        until(job.running, "RUNNING")
        job.cancel()
        return job
    job = submit(pool, double, 1)
    job.cancel()
    busy.cancel()
    return job


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("drop", ["at once", "after the end", "after the look"])
def test_what_a_job_was_made_with(one: JobPool, kind: str, drop: str, tmp_path: Path) -> None:
    own = ours(one)
    job = end(kind, one, tmp_path)
    if drop == "after the end":
        assert job.wait(PATIENCE)
    elif drop == "after the look":
        job.exception(PATIENCE) if not job.cancelled() else job.result
    del job
    check(own, **HANDLE)


@pytest.mark.parametrize("looked", [True, False])
def test_what_a_job_has_brought(one: JobPool, looked: bool) -> None:
    own = ours(one)
    calls: list[tuple[Callable[[str], Any], str]] = [(Copied, "result"), (raise_noted, "exception")]
    for function, kind in calls:
        job = one.submit(function, kind)
        assert job.wait(PATIENCE)
        if looked:
            with contextlib.suppress(Noted):
                job.result()
        del job
        check(own, **({kind: 1} if looked else {}))


def test_what_cannot_be_sent(one: JobPool) -> None:
    own = ours(one)
    for _ in range(2):
        job = submit(one, double, Unpicklable())
        assert job.wait(PATIENCE)
        del job
        # The job's exception has the reason as its cause.
        check(own, **HANDLE, reason=1)


def test_many_that_are_dropped_while_they_end(two: JobPool) -> None:
    own = ours(two)
    for _ in range(10):
        for _ in range(50):
            two.options(metadata={"mark": Mark("metadata")}).submit(double, 1)
        check(own, metadata=50)


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without the GIL the thread that made an object frees it: see lock_free",
)
def test_a_long_destructor_delays_no_job(one: JobPool) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def __del__(self) -> None:
            begun.set()
            go_on.wait(PATIENCE)

    try:
        one.options(metadata={"slow": Slow()}).submit(double, 1)
        assert begun.wait(PATIENCE)
        assert one.submit(double, 2).result(PATIENCE) == 4
    finally:
        go_on.set()


@pytest.mark.parametrize("cancel", [True, False])
def test_at_a_pools_end(cancel: bool, tmp_path: Path) -> None:
    pool = JobPool(1)
    own = ours(pool)
    submit(pool, hold, tmp_path / "gate")
    submit(pool, double, 1)
    until(pool.jobs()[0].running, "RUNNING")
    if not cancel:
        (tmp_path / "gate").touch()
    pool.shutdown(cancel=cancel)
    check(own, **{kind: 2 * count for kind, count in HANDLE.items()})


def test_with_a_pool_that_is_dropped() -> None:
    pool = JobPool(1)
    own = ours(pool)
    submit(pool, double, 1)
    engine = pool._engine
    del pool
    engine.join()
    check(own, **HANDLE)


def test_after_a_dispatcher_that_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pool = JobPool(1)
    own = ours(pool)
    job = submit(pool, hold, tmp_path / "never")
    until(job.running, "RUNNING")
    submit(pool, double, 1)
    assert len(pool.jobs()) == 2

    def fault(*_: object) -> NoReturn:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(pool._engine._scheduler, "handle", fault)
    assert not job.cancel()
    del job
    pool.shutdown()
    check(own, **{kind: 2 * count for kind, count in HANDLE.items()})


# --- who waits for jobs ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["wait", "gather", "await", "as a callback"])
def test_whoever_waits(two: JobPool, way: str) -> None:
    own = ours(two)
    for _ in range(20):
        view = two.options(metadata={"mark": Mark("metadata")})
        jobs = [view.submit(double, n) for n in range(3)]
        del view
        if way == "wait":
            wait(jobs)
        elif way == "gather":
            gather(jobs)
        elif way == "await":

            async def all_of_them(jobs: list[PrimitiveJob[int]]) -> None:
                for job in jobs:
                    await job

            asyncio.run(all_of_them(jobs))
        else:
            ended = [threading.Event() for _ in jobs]
            for job, event in zip(jobs, ended, strict=True):
                job.add_done_callback(lambda _, event=event: event.set())  # type: ignore[misc]
            del job
            jobs.clear()
            assert all(event.wait(PATIENCE) for event in ended)
        jobs.clear()
        check(own, metadata=1)


def test_waiting_that_is_given_up(one: JobPool, tmp_path: Path) -> None:
    own = ours(one)
    for n in range(20):
        gate = tmp_path / str(n)
        job = one.options(metadata={"mark": Mark("metadata")}).submit(hold, gate)
        assert not job.wait(0.001)
        assert wait([job], 0.001).not_done
        gate.touch()
        del job
        check(own, metadata=1)


@pytest.mark.parametrize("end", ["all", "some", "none"])
@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_a_mapping(two: JobPool, end: str, chunksize: int | None) -> None:
    own = ours(two)
    view = two.options(metadata={"mark": Mark("metadata")})

    def function(_: object, closed_over: object = Mark("default")) -> None:
        pass

    results = view.map(function, [Mark("argument")] * 30, chunksize=chunksize)
    del view, function
    if end == "all":
        assert len(list(results)) == 30
    elif end == "some":
        next(results)
    del results
    check(own, default=1, argument=1, metadata=1)


def marked(executor: JobExecutor, argument: int) -> Any:
    future: Any = executor.submit(double, argument)
    future.mark = Mark("future")
    return future


@pytest.mark.parametrize("way", ["dropped", "callback", "as_completed", "wait", "result"])
def test_futures(two: JobPool, way: str) -> None:
    with JobExecutor(pool=two) as executor:
        own = ours(two) | {executor._settler.thread}
        for _ in range(10):
            futures = [marked(executor, n) for n in range(20)]
            if way == "as_completed":
                for future in concurrent.futures.as_completed(futures, PATIENCE):
                    futures.remove(future)
                    del future
            elif way == "wait":
                assert not concurrent.futures.wait(futures, PATIENCE).not_done
            else:
                while futures:
                    if way == "callback":
                        futures.pop().add_done_callback(Mark("callback"))
                    elif way == "result":
                        futures.pop().result(PATIENCE)
                    else:
                        futures.pop()
            futures.clear()
            check(own, future=20, **({"callback": 20} if way == "callback" else {}))


def test_joblib_batches(two: JobPool) -> None:
    import joblib  # here: workers import this module for what is its own

    from primitive_jobs import joblib as joblib_backend

    joblib_backend.register()
    own = ours(two)
    for _ in range(5):
        view = two.options(metadata={"mark": Mark("metadata")})
        with joblib.parallel_config("primitive_jobs", pool=view):
            calls = (joblib.delayed(double)(n) for n in range(20))
            assert joblib.Parallel(n_jobs=2, batch_size=1)(calls) == [2 * n for n in range(20)]
        del calls, view
        gc.collect()  # joblib's own cycles, on this thread
        check(own, metadata=1)


@pytest.mark.parametrize("submitted", [1, 3])
def test_parts_of_a_job_of_qiskits(one: JobPool, submitted: int) -> None:
    pytest.importorskip("qiskit.primitives")
    from primitive_jobs.qiskit import PooledJob

    def refuse(_: object) -> Any:  # here, so that it travels by value: each has a worker die
        raise ValueError("on purpose")

    own = ours(one)
    for _ in range(10):
        parts: list[PrimitiveJob[Any]] = [PrimitiveJob(refuse, Mark("argument")) for _ in range(3)]
        for part in parts:
            part.metadata["mark"] = Mark("metadata")
        whole = PooledJob("n", parts)
        for part in parts[:submitted]:
            with contextlib.suppress(JobError):  # the first one's end has cancelled it
                part.submit(one)
        assert whole.wait(PATIENCE)
        del parts, part, whole
        check(own, argument=3, metadata=3)


# --- what workers are started with ----------------------------------------------------------------


class Marked(type(multiprocessing.get_context("spawn").Lock())):  # type: ignore[misc]
    """A lock, which each start of a worker pickles; here with something in it."""

    def __init__(self) -> None:
        super().__init__(ctx=multiprocessing.get_context("spawn"))
        self.mark = Mark("initarg")


@pytest.mark.parametrize("drop", ["shutdown", "the pool"])
@pytest.mark.parametrize("kind", [Mark, Marked])
def test_initargs(drop: str, kind: type[Any]) -> None:
    initargs = (kind(*(["initarg"] * (kind is Mark))),)
    pool = JobPool(1, initializer=lambda *_: None, initargs=initargs)
    del initargs
    own = ours(pool)
    engine = pool._engine
    assert pool.submit(double, 1).result(PATIENCE) == 2
    if drop == "shutdown":
        pool.shutdown()
    del pool
    engine.join()
    check(own, initarg=1)


# --- the handle of what nobody holds --------------------------------------------------------------


def test_jobs_lists_what_nobody_holds_as_it_was(one: JobPool, tmp_path: Path) -> None:
    metadata = {"a": [1]}
    first = weakref.ref(one.options(metadata=metadata, name="n").submit(hold, tmp_path / "gate"))
    (job,) = one.jobs()
    assert job is first()
    assert (job.name, job.metadata) == ("n", metadata)
    del job
    (job,) = one.jobs()  # and again
    assert job is first()
    (tmp_path / "gate").touch()
    assert job.wait(PATIENCE)
    del job
    until(lambda: first() is None, "the job to be let go")


def test_jobs_lists_what_the_collector_came_upon(one: JobPool, tmp_path: Path) -> None:
    job = one.submit(hold, tmp_path / "gate", 7)
    job.metadata["cycle"] = job
    del job
    gc.collect()
    (job,) = one.jobs()
    (tmp_path / "gate").touch()
    assert job.result(PATIENCE) == 7


def test_what_was_never_submitted_goes_at_once() -> None:
    job: PrimitiveJob[int] = PrimitiveJob(double, 1)
    job.metadata["mark"] = Mark("metadata")
    del job
    ((kind, thread),) = DEAD
    assert (kind, thread) == ("metadata", threading.current_thread())


def test_who_is_in_the_middle_of_a_call_holds_what_is_called() -> None:
    """Whoever else holds the waiter, which may be the dispatcher, holds an empty one."""
    job: PrimitiveJob[int] = PrimitiveJob(double, 1)
    job.add_done_callback(Mark("callback"))
    (waiter,) = job._tracker._waiters
    assert isinstance(waiter, Callback)
    assert job.cancel()
    assert [kind for kind, _ in DEAD] == ["callback"]
    del job
    waiter()  # and once
    assert len(DEAD) == 1


def test_a_failure_of_a_dropped_job_is_told(caplog: pytest.LogCaptureFixture) -> None:
    pool = JobPool(1)
    own = ours(pool)
    submit(pool, fail)
    with pytest.warns(JobFailuresWarning, match="1 of 1 jobs"):
        pool.shutdown()
    check(own, **HANDLE)
    assert "on purpose" in caplog.text


def test_a_killed_workers_job(one: JobPool, marks: Path) -> None:
    own = ours(one)
    job = submit(one, be_neighbour, marks, 1)
    until((marks / "neighbour1").exists, "it to begin")
    os.kill(int((marks / "neighbour1").read_text()), signal.SIGKILL)
    del job
    check(own, **HANDLE)


def test_a_dropped_job_in_a_circle_is_whole_while_it_runs(one: JobPool, tmp_path: Path) -> None:
    own = ours(one)
    job = one.submit(hold, tmp_path / "gate")
    job.metadata.update(me=job, mark=Mark("metadata"))
    known = weakref.ref(job)
    del job
    gc.collect()
    assert not DEAD
    (listed,) = one.jobs()
    assert known() is listed
    assert listed.metadata["mark"].here
    (tmp_path / "gate").touch()
    assert listed.wait(PATIENCE)
    del listed
    one.submit(double, 1).result(PATIENCE)
    until(lambda: gc.collect() or not known(), "its end")
    check(own, metadata=1)


def test_no_interrupt_is_lost_in_what_drops_jobs(tmp_path: Path) -> None:
    source = """
        import os, signal, threading, time
        from primitive_jobs import JobPool

        pool = JobPool(1)
        sent = seen = 0
        ready = threading.Event()

        def send():
            global sent
            for _ in range(40):
                ready.wait()
                ready.clear()
                time.sleep(0.003)
                sent += 1
                os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send)
        sender.start()
        while seen < 40:
            try:
                ready.set()
                while True:
                    pool.submit(int)
            except KeyboardInterrupt:
                seen += 1
        sender.join()
        print(sent, seen)
        pool.shutdown(cancel=True)
    """
    expect(tmp_path, source, "40 40\n")


def test_a_callback_that_blocks_keeps_no_thread_busy(one: JobPool) -> None:
    release = threading.Event()
    one.submit(double, 1).add_done_callback(lambda job: release.wait(PATIENCE))
    jobs = [one.submit(double, n) for n in range(20)]
    while not all(job.in_final_state() for job in jobs):
        time.sleep(0.002)
    jobs.clear()
    callbacks = one._engine._callbacks._queue
    until(callbacks.qsize, "their letting go being asked for")
    # Once, or once more for each time that nothing happened for a while before all had ended.
    asked = callbacks.qsize()
    time.sleep(0.3)  # what is measured: it is not asked for again and again
    assert callbacks.qsize() == asked < 5
    release.set()

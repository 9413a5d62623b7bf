"""`JobExecutor`: what the standard library's own tests ask of an executor, and what is more.

A running future can be cancelled, and a dead worker breaks one future and not the executor.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, expect, hold, interrupt_everywhere, interrupted, meet, sampled, until

from primitive_jobs import (
    BasePool,
    InitializerError,
    JobCancelledError,
    JobExecutor,
    JobStatus,
    JobTimeoutError,
    PoolClosedError,
    PrimitiveJob,
    ResultTimeoutError,
    SerializationError,
    WorkerDiedError,
    share,
)
from primitive_jobs._procs.process import WorkerProcess
from primitive_jobs.executor import JobFuture

if TYPE_CHECKING:
    from makers import MakeExecutor, MakePool, Makers

base: Any = concurrent.futures._base

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def spin() -> None:
    """Runs until it is killed."""
    while True:
        pass


def leave_mark(mark: Path) -> Path:
    mark.touch()
    return mark


def begin_and_spin(mark: Path) -> None:
    mark.touch()
    spin()


def invert(x: int) -> float:
    return 1 / x


def acquire(lock: Any) -> None:
    assert lock.acquire(timeout=PATIENCE)


class Plain:
    """An object with a weak reference."""

    def method(self) -> int:
        return 5


class Unloadable:
    """A result that cannot be unpickled by the caller."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def pool_of(executor: JobExecutor) -> BasePool:
    pool = executor._pool
    assert isinstance(pool, BasePool)
    return pool


async def sees(condition: Callable[[], object]) -> None:
    """`until`, in a task."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.001)


def running(future: JobFuture[Any]) -> JobFuture[Any]:
    until(future.running, "RUNNING")
    return future


@pytest.fixture(scope="module")
def executor(
    module_makers: Makers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JobExecutor]:
    """Two workers that both run already; for calls that do no harm to them."""
    with module_makers.executor(2, idle_timeout=None, spare_workers=0) as shared:
        folder = tmp_path_factory.mktemp("meeting")
        assert len({*shared.map(meet, [folder] * 2, [2] * 2, timeout=PATIENCE)}) == 2
        yield shared


def fresh(make_executor: MakeExecutor, max_workers: int) -> Iterator[JobExecutor]:
    """An executor whose unfinished futures are cancelled at its end."""
    executor = make_executor(max_workers)
    yield executor
    pool_of(executor).shutdown(cancel=True)
    executor.shutdown()


@pytest.fixture
def one(make_executor: MakeExecutor) -> Iterator[JobExecutor]:
    """One worker, for this test only."""
    yield from fresh(make_executor, 1)


@pytest.fixture
def two(make_executor: MakeExecutor) -> Iterator[JobExecutor]:
    """Two workers, for this test only."""
    yield from fresh(make_executor, 2)


# --- submit and the future ------------------------------------------------------------------------


def test_submit(executor: JobExecutor) -> None:
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(pow, 2, 8)
    assert isinstance(future, Future)
    assert type(future.job) is PrimitiveJob
    assert future.result(PATIENCE) == 256
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.exception() is None
    assert future._state == "FINISHED"
    assert future.job.done()
    assert not future.cancel()
    assert future.result() == 256


def test_submit_keywords(executor: JobExecutor) -> None:
    assert executor.submit(capture, 1, self=2, fn=3, function=4).result(PATIENCE) == (
        (1,),
        {"self": 2, "fn": 3, "function": 4},
    )
    with pytest.raises(TypeError):
        executor.submit(fn=capture, arg=1)  # type: ignore[call-arg]


def test_the_functions_exception(executor: JobExecutor) -> None:
    future = executor.submit(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        future.result(PATIENCE)
    assert "ZeroDivisionError" in str(caught.value.__cause__)
    assert future.exception() is caught.value
    assert future.done()
    assert not future.cancelled()


def test_running_means_running(one: JobExecutor, marks: Path) -> None:
    first = one.submit(hold, marks / "gate", 1)
    second = one.submit(hold, marks / "gate", 2)
    assert not first.running() or first.job.status() is JobStatus.RUNNING
    running(first)
    assert first.job.status() is JobStatus.RUNNING
    assert not second.running()
    assert not second.done()
    assert "state=running" in repr(first)
    assert "state=pending" in repr(second)
    (marks / "gate").touch()
    assert (first.result(PATIENCE), second.result(PATIENCE)) == (1, 2)
    assert not first.running()
    assert "state=finished" in repr(first)
    assert first.job.job_id() in repr(first)
    assert "open" in repr(one)


def test_timeouts_are_those_of_the_standard_library(one: JobExecutor) -> None:
    future = one.submit(spin)
    for call in (future.result, future.exception):
        for timeout in (0, 0.01, -1):
            with pytest.raises(concurrent.futures.TimeoutError) as caught:
                call(timeout)
            assert isinstance(caught.value, TimeoutError)
            assert type(caught.value) is ResultTimeoutError
    assert not future.done()


def test_what_cannot_be_pickled_is_on_the_future(executor: JobExecutor) -> None:
    future = executor.submit(capture, threading.Lock())
    assert isinstance(future.exception(PATIENCE), SerializationError)
    with pytest.raises(SerializationError):
        future.result()
    assert isinstance(executor.submit(threading.Lock).exception(PATIENCE), SerializationError)


def test_a_result_that_cannot_be_unpickled(executor: JobExecutor) -> None:
    future: JobFuture[Any] = executor.submit(Unloadable)
    assert isinstance(future.exception(PATIENCE), SerializationError)
    with pytest.raises(SerializationError):
        future.result()
    assert wait_futures([future], PATIENCE).done == {future}


def test_nobody_else_sets_its_state(executor: JobExecutor) -> None:
    future = executor.submit(abs, -1)
    for call in (
        lambda: future.set_result(5),
        lambda: future.set_exception(ValueError()),
        future.set_running_or_notify_cancel,
    ):
        with pytest.raises(concurrent.futures.InvalidStateError):
            call()
    assert future.result(PATIENCE) == 1
    assert executor.submit(abs, -2).result(PATIENCE) == 2


def test_snapshot(executor: JobExecutor, one: JobExecutor) -> None:
    """What asyncio of Python 3.14 asks."""
    spinning = running(one.submit(spin))
    assert spinning._get_snapshot() == (False, False, None, None)
    assert spinning.cancel()
    assert spinning._get_snapshot() == (True, True, None, None)
    good: JobFuture[Any] = executor.submit(abs, -1)
    bad: JobFuture[Any] = executor.submit(divmod, 1, 0)
    wait_futures([good, bad], PATIENCE)
    assert good._get_snapshot() == (True, False, 1, None)
    assert bad._get_snapshot() == (True, False, None, bad.exception())


# --- cancel ---------------------------------------------------------------------------------------


@pytest.mark.local
def test_cancel_of_a_running_future(one: JobExecutor) -> None:
    future = running(one.submit(spin))
    pid = future.job.pid
    assert pid is not None
    assert future.cancel()
    assert not psutil.pid_exists(pid)
    assert future.cancelled()
    assert future.done()
    assert not future.running()
    assert future.job.cancelled()
    assert future._state == "CANCELLED_AND_NOTIFIED"
    for call in (future.result, future.exception):
        with pytest.raises(concurrent.futures.CancelledError) as caught:
            call()
        assert type(caught.value) is JobCancelledError
    assert future.cancel()
    assert one.submit(abs, -3).result(PATIENCE) == 3


def test_everybody_who_waits_sees_the_cancel(one: JobExecutor) -> None:
    future = running(one.submit(spin))
    answers: dict[str, object] = {}
    called = threading.Event()

    def result() -> None:
        try:
            future.result(PATIENCE)
        except concurrent.futures.CancelledError as error:
            answers["result"] = type(error)

    def wait() -> None:
        answers["wait"] = wait_futures([future], PATIENCE).done

    def as_completed() -> None:
        answers["as_completed"] = [*concurrent.futures.as_completed([future], PATIENCE)]

    future.add_done_callback(lambda f: answers.update(callback=f.cancelled()))
    future.add_done_callback(lambda _: called.set())
    threads = [threading.Thread(target=target) for target in (result, wait, as_completed)]
    for thread in threads:
        thread.start()
    until(lambda: len(future._waiters) == 2 and len(future.job._tracker._waiters) == 5, "waiters")
    assert future.cancel()
    for thread in threads:
        thread.join()
    assert called.wait(PATIENCE)
    assert answers == {
        "result": JobCancelledError,
        "wait": {future},
        "as_completed": [future],
        "callback": True,
    }


def test_cancel_of_a_pending_future(one: JobExecutor, marks: Path) -> None:
    first = one.submit(hold, marks / "gate", 1)
    second = one.submit(leave_mark, marks / "ran")
    called = []
    second.add_done_callback(lambda future: called.append((future, threading.current_thread())))
    assert second.cancel()
    assert called == [(second, threading.current_thread())]  # as in the standard library
    assert second.cancelled()
    assert second.cancel()
    (marks / "gate").touch()
    assert first.result(PATIENCE) == 1
    assert not first.cancel()
    assert not first.cancelled()
    assert one.submit(abs, -1).result(PATIENCE) == 1
    assert not (marks / "ran").exists()
    assert len(called) == 1


@pytest.mark.parametrize("how", ["job.cancel", "pool.cancel_all"])
def test_a_cancel_by_another_way_shows(one: JobExecutor, how: str) -> None:
    futures = [running(one.submit(spin)), one.submit(spin)]
    if how == "job.cancel":
        assert [future.job.cancel() for future in reversed(futures)] == [True, True]
    else:
        pool_of(one).cancel_all()
    assert all(future.cancelled() for future in futures)
    assert wait_futures(futures, PATIENCE).done == {*futures}
    assert all(future.cancel() for future in futures)


def test_cancels_race_with_ends(two: JobExecutor) -> None:
    """True exactly when the job was cancelled, whoever comes first."""
    for _ in range(30):
        futures = [two.submit(abs, -number) for number in range(10)]
        cancelled = [future.cancel() for future in reversed(futures)][::-1]
        assert wait_futures(futures, PATIENCE).done == {*futures}
        assert cancelled == [future.cancelled() for future in futures]
        assert cancelled == [future.job.cancelled() for future in futures]
        for number, future in enumerate(futures):
            assert future.cancelled() or future.result() == number


# --- wait and as_completed ------------------------------------------------------------------------


def test_wait(executor: JobExecutor, marks: Path) -> None:
    held = executor.submit(hold, marks / "gate", 1)
    quick = executor.submit(abs, -1)
    done, not_done = wait_futures([held, quick], return_when=concurrent.futures.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {held})
    bad = executor.submit(divmod, 1, 0)
    done, not_done = wait_futures(
        [held, bad, quick], return_when=concurrent.futures.FIRST_EXCEPTION
    )
    assert held in not_done
    assert bad in done
    assert wait_futures([held, quick], 0.01) == ({quick}, {held})
    (marks / "gate").touch()
    assert wait_futures([held, quick, held, bad]) == ({held, quick, bad}, set())
    assert isinstance(bad.exception(), ZeroDivisionError)


def test_first_exception_comes_later(executor: JobExecutor, marks: Path) -> None:
    held = executor.submit(hold, marks / "gate")
    bad = executor.submit(lambda gate: hold(gate) or invert(0), marks / "other")

    def open_other() -> None:
        until(lambda: bad._waiters, "wait()")
        (marks / "other").touch()

    opener = threading.Thread(target=open_other)
    opener.start()
    done, not_done = wait_futures([held, bad], return_when=concurrent.futures.FIRST_EXCEPTION)
    opener.join()
    assert (done, not_done) == ({bad}, {held})
    assert bad.exception() is not None
    (marks / "gate").touch()


def test_as_completed(executor: JobExecutor, marks: Path) -> None:
    held = executor.submit(hold, marks / "gate", 1)
    quick = executor.submit(abs, -2)
    other = concurrent.futures.Future[int]()
    other.set_result(3)
    order = []
    for future in concurrent.futures.as_completed([held, quick, quick, other], PATIENCE):
        order.append(future)
        if quick in order:
            (marks / "gate").touch()
    assert order[-1] is held
    assert {*order} == {held, quick, other}
    assert len(order) == 3


def test_as_completed_in_time(one: JobExecutor) -> None:
    spinning = one.submit(spin)
    with pytest.raises(concurrent.futures.TimeoutError, match=r"1 \(of 1\) futures unfinished"):
        next(concurrent.futures.as_completed([spinning], 0.01))


def test_as_completed_lets_go(executor: JobExecutor) -> None:
    futures = [executor.submit(Plain) for _ in range(10)]
    for future in concurrent.futures.as_completed(futures, PATIENCE):
        futures.remove(future)  # type: ignore[arg-type]
        gone = weakref.ref(future)
        del future
        until(lambda gone=gone: gone() is None, "no reference")  # type: ignore[misc]


def test_the_dispatcher_waits_for_nobody(executor: JobExecutor, marks: Path) -> None:
    """Locks of the standard library's are held by code that waits for the pool."""
    gate = marks / "gate"
    locked, watched = executor.submit(hold, gate, 1), executor.submit(hold, gate, 2)
    waiter = base._create_and_install_waiters([watched], base._AS_COMPLETED)
    with locked._condition, waiter.lock:  # as a finalizer or signal handler may find them
        gate.touch()
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        assert (locked.job.result(PATIENCE), watched.job.result(PATIENCE)) == (1, 2)
        assert executor.submit(abs, -1).result(PATIENCE) == 1
    assert waiter.event.wait(PATIENCE)
    assert waiter.finished_futures == [watched]
    assert wait_futures([locked, watched], PATIENCE).done == {locked, watched}
    watched._waiters.remove(waiter)


def test_many_futures_are_waited_for_while_they_end(executor: JobExecutor) -> None:
    for _ in range(5):
        futures = [executor.submit(abs, -number) for number in range(200)]
        threads = [
            threading.Thread(target=wait_futures, args=(futures,)),
            threading.Thread(target=list, args=(concurrent.futures.as_completed(futures),)),
        ]
        for thread in threads:
            thread.start()
        assert [future.result(PATIENCE) for future in futures] == [*range(200)]
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert not any(future._waiters for future in futures)


# --- callbacks ------------------------------------------------------------------------------------


def test_callbacks(executor: JobExecutor, marks: Path) -> None:
    future = executor.submit(hold, marks / "gate", 1)
    calls: list[Any] = []
    over = threading.Event()
    future.add_done_callback(calls.append)
    future.add_done_callback(lambda f: calls.append((f.result(), threading.current_thread())))
    # It may block on any other future, whichever way.
    future.add_done_callback(lambda _: calls.append(executor.submit(abs, -2).result(PATIENCE)))
    future.add_done_callback(
        lambda _: calls.append(len(wait_futures([executor.submit(abs, -3)], PATIENCE).done))
    )
    future.add_done_callback(lambda _: over.set())
    (marks / "gate").touch()
    assert over.wait(PATIENCE)
    value, thread = calls[1]
    assert (calls[0], value, calls[2:]) == (future, 1, [2, 1])
    assert thread is not threading.current_thread()
    assert thread.name == "primitive_jobs-callbacks"
    future.add_done_callback(calls.append)  # at once
    assert calls[-1] is future


def test_callbacks_that_raise(
    executor: JobExecutor, marks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    future = executor.submit(hold, marks / "gate", 1)
    over = threading.Event()

    def raise_(error: BaseException) -> None:
        raise error

    future.add_done_callback(lambda _: raise_(ValueError("mine")))
    future.add_done_callback(lambda _: raise_(SystemExit("mine")))
    future.add_done_callback(lambda _: over.set())
    with caplog.at_level(logging.ERROR, "primitive_jobs"):
        (marks / "gate").touch()
        assert over.wait(PATIENCE)
    said = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert [r.getMessage() for r in said] == [f"a callback of {future!r} raised"] * 2
    assert {r.name for r in said} == {"primitive_jobs"}
    future.add_done_callback(lambda _: raise_(KeyError("at once")))
    assert caplog.records[-1].exc_info is not None
    assert (caplog.records[-1].name, caplog.records[-1].exc_info[0]) == ("primitive_jobs", KeyError)
    again = threading.Event()
    executor.submit(abs, -1).add_done_callback(lambda _: again.set())
    assert again.wait(PATIENCE)


def test_the_callbacks_of_a_dropped_future(executor: JobExecutor, marks: Path) -> None:
    over = threading.Event()
    executor.submit(hold, marks / "gate").add_done_callback(lambda _: over.set())
    gc.collect()
    (marks / "gate").touch()
    assert over.wait(PATIENCE)


# --- map ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3, 10, 50])
def test_map(executor: JobExecutor, chunksize: int) -> None:
    results = executor.map(pow, range(10), range(10), chunksize=chunksize)
    assert [*results] == [n**n for n in range(10)]
    assert [*executor.map(str, [], chunksize=chunksize)] == []
    assert [*executor.map(str, chunksize=chunksize)] == []
    objects = executor.map(lambda n: [n], range(5), chunksize=chunksize)  # not plain values
    assert [*objects] == [[n] for n in range(5)]


@pytest.mark.parametrize("chunksize", [1, 3, 10])
def test_map_raises_in_place(two: JobExecutor, chunksize: int) -> None:
    results = two.map(invert, [1, 2, 4, 0, 5], chunksize=chunksize)
    assert [next(results), next(results), next(results)] == [1, 0.5, 0.25]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "invert" in str(caught.value.__cause__)
    assert next(results, None) is None


def test_map_is_eager(one: JobExecutor, marks: Path) -> None:
    items = iter(range(100))
    results = one.map(abs, items)
    assert next(items, None) is None
    one.shutdown()
    assert [*results] == [*range(100)]


def test_map_without_a_consumer_makes_all_calls(make_executor: MakeExecutor, marks: Path) -> None:
    with make_executor(2) as executor:
        executor.map(leave_mark, [marks / str(n) for n in range(10)])
    assert len(list(marks.iterdir())) == 10


def test_map_in_time(one: JobExecutor) -> None:
    one.submit(abs, -1).result(PATIENCE)
    results = one.map(lambda n: spin() if n else n, [0, 1, 0], timeout=1)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(results)
    until(lambda: not pool_of(one).jobs(), "all cancelled")
    results = one.map(abs, [-1], timeout=-1)  # it counts from the call; what is there is given
    assert one.submit(abs, -1).result(PATIENCE) == 1
    assert next(results) == 1


@pytest.mark.parametrize("started", [True, False])
def test_a_closed_map_cancels_the_rest(one: JobExecutor, marks: Path, *, started: bool) -> None:
    results: Any = one.map(lambda n: spin() if n else n, range(5))
    if started:
        assert next(results) == 0
    results.close()
    until(lambda: not pool_of(one).jobs(), "all cancelled")
    assert next(results, None) is None
    assert one.submit(abs, -1).result(PATIENCE) == 1


def test_a_map_dropped_in_the_middle_cancels_the_rest(one: JobExecutor) -> None:
    results = one.map(lambda n: spin() if n else n, range(5))
    assert next(results) == 0
    del results
    until(lambda: not pool_of(one).jobs(), "all cancelled")


def test_map_with_a_failing_iterable(one: JobExecutor) -> None:
    def items(last: int) -> Iterator[int]:
        yield from range(last)
        raise LookupError("mine")

    with pytest.raises(LookupError):
        one.map(lambda n: spin(), items(3))
    until(lambda: not pool_of(one).jobs(), "all cancelled")
    results = one.map(abs, items(4), buffersize=2)  # there it comes in its place
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(LookupError):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_buffersize(two: JobExecutor, chunksize: int) -> None:
    for size in (1, 2, 4, 8):
        results = two.map(str, range(7), chunksize=chunksize, buffersize=size)
        assert [*results] == [*"0123456"]
    numbers = itertools.count()
    results = two.map(str, numbers, chunksize=chunksize, buffersize=2)
    assert next(numbers) == 2 * chunksize
    assert next(results) == "0"
    assert next(numbers) == 3 * chunksize + 1


def test_map_with_a_buffer_keeps_the_executor(make_executor: MakeExecutor) -> None:
    results = make_executor(1).map(abs, range(20), buffersize=2)
    gc.collect()
    assert [*results] == [*range(20)]


def test_map_with_a_buffer_over_a_shutdown(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    results = executor.map(abs, range(20), buffersize=2)
    executor.shutdown()
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(PoolClosedError):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 4])
def test_map_lets_its_results_go(executor: JobExecutor, chunksize: int) -> None:
    for result in executor.map(lambda _: Plain(), range(10), chunksize=chunksize):
        gone = weakref.ref(result)
        del result
        # The pool's thread, which has told of the job's end, may be about to let go of it.
        until(lambda gone=gone: gone() is None, "no reference")  # type: ignore[misc]


def test_map_over_shared_data(executor: JobExecutor) -> None:
    table = share([*range(100)])
    results = executor.map(lambda data, n: data[n], [table] * 10, range(10), chunksize=4)
    assert [*results] == [*range(10)]


def test_map_and_stop_iteration(two: JobExecutor) -> None:
    def stop(_: int) -> None:
        raise StopIteration

    for chunksize in (1, 2):
        with pytest.raises(RuntimeError):
            [*two.map(stop, range(4), chunksize=chunksize)]


# --- workers --------------------------------------------------------------------------------------


@pytest.mark.local
def test_a_dead_worker_breaks_one_future(make_executor: MakeExecutor, marks: Path) -> None:
    with make_executor(2) as executor:
        victim = executor.submit(begin_and_spin, marks / "began")
        until((marks / "began").exists, "the job")  # one that has not begun is given to another
        neighbour = executor.submit(hold, marks / "gate", 1)
        queued = executor.submit(abs, -2)
        pid = victim.job.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool) as caught:
            victim.result(PATIENCE)
        assert type(caught.value) is WorkerDiedError
        assert isinstance(victim.exception(), concurrent.futures.BrokenExecutor)
        (marks / "gate").touch()
        assert (neighbour.result(PATIENCE), queued.result(PATIENCE)) == (1, 2)
        assert executor.submit(abs, -3).result(PATIENCE) == 3


@pytest.mark.local
def test_initializer(marks: Path) -> None:
    event = multiprocessing.get_context("spawn").Event()
    with JobExecutor(
        1, None, lambda event, mark: (event.set(), mark.touch()), (event, marks / "a")
    ):
        pass  # no job, no worker
    assert not event.is_set()
    with JobExecutor(1, initializer=type(event).set, initargs=(event,)) as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        assert event.is_set()


def test_a_failing_initializer(make_executor: MakeExecutor, marks: Path) -> None:
    def fail_once(mark: Path) -> None:
        if not mark.exists():
            mark.touch()
            raise ValueError("mine")

    with make_executor(1, initializer=fail_once, initargs=(marks / "mark",)) as executor:
        future = executor.submit(abs, -1)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="mine") as caught:
            future.result(PATIENCE)
        assert type(caught.value) is InitializerError
        assert executor.submit(abs, -1).result(PATIENCE) == 1  # it is not broken for good


@pytest.mark.local
def test_max_tasks_per_child() -> None:
    with JobExecutor(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(PATIENCE) for _ in range(4)]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    with pytest.raises(TypeError, match="are the same"):
        JobExecutor(1, max_tasks_per_child=3, max_jobs_per_worker=3)


@pytest.mark.local
def test_contexts() -> None:
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with JobExecutor(1, context) as executor:
            lock = context.Lock()
            assert executor._max_workers == 1
        with JobExecutor(
            1, mp_context=context, initializer=acquire, initargs=(lock,), spare_workers=0
        ) as executor:
            executor.submit(abs, -1).result(PATIENCE)
            assert not lock.acquire(block=False)
    with pytest.raises(ValueError, match="mp_context must not be one of the start method 'fork'"):
        JobExecutor(1, multiprocessing.get_context("fork"))


@pytest.mark.local
def test_options_of_the_pool() -> None:
    with JobExecutor(1, env={"COLOUR": "blue"}) as executor:
        assert executor.submit(os.getenv, "COLOUR").result(PATIENCE) == "blue"
    with pytest.raises(TypeError, match="colour"):
        JobExecutor(1, colour="blue")  # type: ignore[call-arg]


# --- over a pool that was given -------------------------------------------------------------------


def test_over_a_pool(make_pool: MakePool, marks: Path) -> None:
    with make_pool(2) as pool:
        others = pool.submit(hold, marks / "others", 1)
        executor = JobExecutor(pool=pool.options(timeout=0.3, name="brief"))
        assert executor._max_workers == 2
        future = executor.submit(spin)
        assert future.job.name == "brief"
        assert isinstance(future.exception(PATIENCE), JobTimeoutError)
        executor.shutdown()  # does not wait for the pool's other jobs
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(abs, -1)
        (marks / "others").touch()
        assert others.result(PATIENCE) == 1
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        with JobExecutor(pool=pool) as executor:
            futures = [executor.submit(abs, -n) for n in range(20)]
        assert all(future.done() for future in futures)
        late = JobExecutor(pool=pool)
    with pytest.raises(RuntimeError, match="cannot schedule new futures"):
        late.submit(abs, -1)
    late.shutdown()


@pytest.mark.parametrize(
    "more",
    [{"max_workers": 2}, {"initializer": print}, {"initargs": (1,)}, {"env": {}}],
    ids=str,
)
def test_a_pool_and_more(executor: JobExecutor, more: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"pool is given.*{next(iter(more))}"):
        JobExecutor(pool=executor._pool, **more)


# --- shutdown, and going without one --------------------------------------------------------------


def test_shutdown(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    futures = [executor.submit(abs, -n) for n in range(50)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == [*range(50)]
    assert not executor._settler.thread.is_alive()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, -1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(abs, [-1])
    executor.shutdown()
    assert "shut down" in repr(executor)


def test_shutdown_cancels_what_is_pending(make_executor: MakeExecutor, marks: Path) -> None:
    executor = make_executor(1)
    held = running(executor.submit(hold, marks / "gate", 1))
    pending = [executor.submit(leave_mark, marks / f"ran{n}") for n in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in pending)
    assert wait_futures(pending, 0).done == {*pending}
    assert held.running()
    (marks / "gate").touch()
    assert held.result(PATIENCE) == 1
    executor.shutdown()
    assert [path.name for path in marks.iterdir()] == ["gate"]


def test_shutdown_of_a_given_pools_executor_cancels_only_its_own(
    make_pool: MakePool, marks: Path
) -> None:
    with make_pool(1) as pool, JobExecutor(pool=pool) as executor:
        held = running(executor.submit(hold, marks / "gate", 1))
        pending, others = executor.submit(abs, -2), pool.submit(abs, -3)
        executor.shutdown(wait=False, cancel_futures=True)
        assert pending.cancelled()
        (marks / "gate").touch()
        assert (held.result(PATIENCE), others.result(PATIENCE)) == (1, 3)


def test_a_pending_future_that_was_cancelled_does_not_hold_up_the_shutdown(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(1)
    executor.submit(int).result(PATIENCE)
    executor.submit(int).cancel()
    executor.shutdown(wait=True)


def test_an_exception_in_the_block_waits_all_the_same(make_executor: MakeExecutor) -> None:
    with (
        contextlib.suppress(LookupError),
        make_executor(1) as executor,
    ):  # as in the standard library
        future = executor.submit(abs, -1)
        raise LookupError
    assert future.result(0) == 1


def test_a_dropped_executor_finishes_its_work(make_executor: MakeExecutor, marks: Path) -> None:
    executor = make_executor(1)
    settler = executor._settler.thread
    futures = [executor.submit(hold, marks / "gate", n) for n in range(3)]
    running(futures[0])
    gone = weakref.ref(executor)
    del executor
    assert gone() is None  # no thread and no future holds it
    assert settler.is_alive()
    (marks / "gate").touch()
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]
    settler.join(PATIENCE)
    assert not settler.is_alive()


def test_a_dropped_executor_of_a_pool(make_pool: MakePool) -> None:
    with make_pool(1) as pool:
        settler = JobExecutor(pool=pool)._settler.thread
        settler.join(PATIENCE)
        assert not settler.is_alive()


def test_a_dropped_future_runs(executor: JobExecutor, marks: Path) -> None:
    executor.submit(leave_mark, marks / "ran")
    gc.collect()
    until((marks / "ran").exists, "the job")


def test_no_reference_to_what_a_call_was_made_with(executor: JobExecutor) -> None:
    thing = Plain()
    gone = weakref.ref(thing)
    executor.submit(thing.method)
    del thing
    until(lambda: gone() is None, "no reference")
    future = executor.submit(divmod, 1, 0)
    with contextlib.suppress(ZeroDivisionError):
        future.result(PATIENCE)
    gc.disable()
    try:
        left = weakref.ref(future.job)
        del future
        until(lambda: left() is None, "no cycle")
    finally:
        gc.enable()


def test_many_threads(two: JobExecutor) -> None:
    results: dict[int, list[int]] = {}

    def use(number: int) -> None:
        futures = [two.submit(abs, -number * 100 - n) for n in range(50)]
        futures[0].cancel()
        wait_futures(futures[:25], PATIENCE)
        results[number] = [f.result(PATIENCE) for f in futures[1:]]
        assert [*two.map(abs, [-1] * 10, timeout=PATIENCE)] == [1] * 10

    threads = [threading.Thread(target=use, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [n * 100 + i for i in range(1, 50)] for n in range(16)}
    until(lambda: not two._settler.pending, "nothing pending")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@sampled(5)
def test_interrupts_lose_nothing(one: JobExecutor, marks: Path, stride: int) -> None:
    one.submit(abs, -1).result(PATIENCE)
    futures: list[JobFuture[int]] = []

    def cancel(place: int) -> bool:
        futures.append(one.submit(abs, -1))
        hit = interrupted(futures[-1].cancel, place)
        assert futures[-1].cancel() == futures[-1].cancelled() == futures[-1].job.cancelled()
        return hit

    def result(place: int) -> bool:
        futures.append(one.submit(abs, -1))
        hit = interrupted(futures[-1].result, place)
        assert futures[-1].result(PATIENCE) == 1
        return hit

    def submit(place: int) -> bool:
        return interrupted(lambda: one.submit(abs, -1), place)

    assert interrupt_everywhere(submit, stride) * stride > 100
    interrupt_everywhere(cancel, stride)  # of jobs that run, or have ended
    assert interrupt_everywhere(result, stride) * stride > 5
    futures.append(running(one.submit(hold, marks / "gate", 1)))
    assert interrupt_everywhere(cancel, stride) * stride > 30
    (marks / "gate").touch()
    assert wait_futures(futures, PATIENCE).not_done == set()
    until(lambda: not one._settler.pending, "nothing pending")
    assert [*one.map(abs, range(100), timeout=PATIENCE)] == [*range(100)]


# --- asyncio --------------------------------------------------------------------------------------


def test_asyncio(executor: JobExecutor) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, abs, -n) for n in range(10)]
        assert await asyncio.gather(*calls) == [*range(10)]
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, divmod, 1, 0)
        with pytest.raises(SerializationError):
            await loop.run_in_executor(executor, Unloadable)
        with pytest.raises(SerializationError):
            await loop.run_in_executor(executor, capture, threading.Lock())
        assert await asyncio.wrap_future(executor.submit(abs, -5)) == 5

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.local
def test_a_cancelled_task_ends_the_job(one: JobExecutor) -> None:
    async def main() -> None:
        future = one.submit(spin)
        await sees(future.running)
        pid = future.job.pid
        assert pid is not None
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.01)
        await sees(future.done)
        assert future.cancelled()
        assert not psutil.pid_exists(pid)
        queued = [one.submit(spin), one.submit(spin)]
        for call in [asyncio.wrap_future(f) for f in queued]:
            call.cancel()
        await sees(lambda: all(f.cancelled() for f in queued))
        assert await asyncio.wrap_future(one.submit(abs, -1)) == 1

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.local
def test_a_kill_that_takes_long_does_not_hold_up_the_loop(
    one: JobExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = threading.Event()  # set by the loop, while the kill waits for it
    end = WorkerProcess.end

    def slow_end(process: WorkerProcess, **options: Any) -> Any:
        assert alive.wait(PATIENCE)
        return end(process, **options)

    monkeypatch.setattr(WorkerProcess, "end", slow_end)

    async def main(cancel: Callable[[JobFuture[None]], object]) -> None:
        alive.clear()
        future = one.submit(spin)
        await sees(future.running)
        cancel(future)
        await asyncio.sleep(0.005)
        assert not future.cancelled()  # never said before it is true
        alive.set()
        await sees(future.done)
        assert future.cancelled()

    def by_task(future: JobFuture[None]) -> None:
        assert future.cancel() is False

    def by_asyncio(future: JobFuture[None]) -> None:
        assert asyncio.wrap_future(future).cancel()

    for cancel in (by_task, by_asyncio):
        asyncio.run(asyncio.wait_for(main(cancel), PATIENCE))


def test_in_a_task_a_quick_cancel_says_true(one: JobExecutor) -> None:
    async def main() -> None:
        future = one.submit(spin)
        await sees(future.running)
        await sees(future.cancel)
        assert future.cancelled()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.local
@pytest.mark.parametrize("end", ["", "executor.shutdown(wait=False)", "del executor"])
def test_the_programs_end_waits(tmp_path: Path, end: str) -> None:
    source = f"""
        import time
        from primitive_jobs import JobExecutor
        executor = JobExecutor(2)
        def call():
            time.sleep(0.2)
            return "apple"
        executor.submit(call).add_done_callback(lambda f: print(f.result(), flush=True))
        {end}
    """
    expect(tmp_path, source, "apple\n")


@pytest.mark.local
def test_submit_after_the_programs_end(tmp_path: Path) -> None:
    source = """
        import atexit
        @atexit.register
        def last():
            try:
                executor.submit(id, None)
            except RuntimeError:
                print("runtime-error")
                raise
        from primitive_jobs import JobExecutor
        executor = JobExecutor(2)
        executor.submit(id, 42).result()
    """
    expect(tmp_path, source, "runtime-error\n", errors="cannot schedule new futures")


@pytest.mark.local
def test_a_fork_of_the_program(tmp_path: Path) -> None:
    source = f"""
        import concurrent.futures, os, pathlib, sys, time, warnings
        from primitive_jobs import JobError, JobExecutor, PoolClosedError

        # Python 3.12 and later warn of every fork of a program with threads.
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        executor = JobExecutor(1)
        done = executor.submit(abs, -1)
        assert done.result() == 1
        gate = pathlib.Path({str(tmp_path / "gate")!r})
        def hold():
            while not gate.exists():
                time.sleep(0.01)
            return "parent's"
        running = executor.submit(hold)
        queued = executor.submit(abs, -2)
        child = os.fork()
        if child == 0:
            assert done.result() == 1
            futures = {{done, running, queued}}
            assert concurrent.futures.wait(futures, 20).done == futures
            assert isinstance(running.exception(), JobError)
            assert not running.cancel()
            try:
                executor.submit(abs, -1)
            except PoolClosedError:
                executor.shutdown()
                with JobExecutor(1) as own:
                    assert [*own.map(abs, range(3), timeout=20)] == [0, 1, 2]
                sys.exit(7)
            sys.exit(8)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        gate.touch()
        print(running.result(20), queued.result(20))
    """
    expect(tmp_path, source, "7\nparent's 2\n")


# --- who waits when nothing is added any more -----------------------------------------------------


ENDS: dict[str, Callable[[JobExecutor], object]] = {
    "shutdown": lambda executor: executor.shutdown(wait=False),
    "cancel_futures": lambda executor: executor.shutdown(wait=False, cancel_futures=True),
    "terminate": lambda executor: executor.terminate_workers(),
    "kill": lambda executor: executor.kill_workers(),
}


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("how", ENDS)
def test_waiting_for_futures_of_an_executor_that_was_shut_down(
    make_executor: MakeExecutor, how: str, when: str, tmp_path: Path
) -> None:
    executor = make_executor(1)
    futures = [executor.submit(hold, tmp_path / "gate", n) for n in range(3)]
    until(futures[0].running, "RUNNING")
    found: list[int] = []

    def look() -> None:
        found.append(len(wait_futures(futures).done))
        found.append(len(list(concurrent.futures.as_completed(futures))))

    waiting = threading.Thread(target=look)
    if when == "meanwhile":
        waiting.start()
        until(lambda: futures[0]._told_of, "the waiting")
    ENDS[how](executor)
    if when == "before":
        waiting.start()
    (tmp_path / "gate").touch()
    waiting.join(PATIENCE)
    assert found == [3, 3]
    executor.shutdown()


def test_waiting_for_futures_that_outlive_their_executor(make_executor: MakeExecutor) -> None:
    def make() -> list[Future[int]]:
        executor = make_executor(1)
        return [executor.submit(abs, -n) for n in range(3)]

    done = concurrent.futures.as_completed(make(), PATIENCE)
    assert sorted(future.result() for future in done) == [0, 1, 2]


def test_an_end_that_is_told_after_the_settler_has_left(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    with make_executor(1) as executor:
        future = executor.submit(hold, tmp_path / "gate", 1)
        settler = executor._settler
        settler._left = True  # as if its thread were just going
        waiting = threading.Thread(target=wait_futures, args=[[future]])
        waiting.start()
        until(lambda: future._told_of, "the waiting")
        (tmp_path / "gate").touch()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()


def test_the_state_in_a_callback(make_executor: MakeExecutor) -> None:
    states: list[str] = []
    with make_executor(1) as executor:
        executor.submit(abs, -1).add_done_callback(lambda future: states.append(future._state))
    # A pool that is not the executor's own goes on, and so does its thread for callbacks.
    until(lambda: states, "the callback")
    assert states == ["FINISHED"]


@pytest.mark.local
def test_a_fork_before_a_future_is_settled(tmp_path: Path) -> None:
    source = """
        import concurrent.futures, os, time
        from primitive_jobs import JobExecutor, futures

        pool = JobExecutor(1)
        first, second = pool.submit(abs, -1), pool.submit(time.sleep, 0.2)
        done = concurrent.futures.as_completed([first, second])
        print(next(done).result(), flush=True)
        futures.Settler.put = lambda settler, future: None  # it has not come to it yet
        second.job.wait()
        child = os.fork()
        if child == 0:
            print(next(done) is second, second.done(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    expect(tmp_path, source, "1\nTrue True\n", flags="-W ignore::DeprecationWarning")

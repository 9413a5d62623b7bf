"""`primitive_jobs.multiprocessing.Pool`: what it promises besides CPython's own tests."""

from __future__ import annotations

import gc
import inspect
import itertools
import logging
import multiprocessing
import multiprocessing.pool
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    PATIENCE,
    double,
    expect,
    fail,
    gone,
    hold,
    hold_with_child,
    pids_in,
    until,
)

import primitive_jobs.multiprocessing as ours
from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobExecutor,
    JobFailuresWarning,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PoolClosedError,
    ResultTimeoutError,
    SerializationError,
    WorkerDiedError,
)
from primitive_jobs.multiprocessing import AsyncResult, Pool


def square(x: int) -> int:
    return x * x


def fail_at(bad: Any, x: int) -> int:
    if x in bad:
        raise ValueError(f"at {x}")
    return x


def fail_at_3(x: int) -> int:
    return fail_at((3,), x)


def crash() -> None:
    os._exit(3)


def crash_at_3(x: int) -> int:
    if x == 3:
        os._exit(3)
    return x


def mark(folder: Path, x: int) -> int:
    (folder / str(x)).touch()
    return x


def stop_iterating(x: int) -> int:
    raise StopIteration(x)


def numbers(stop: int, error: BaseException | None = None) -> Iterator[int]:
    yield from range(stop)
    if error is not None:
        raise error


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


@pytest.fixture
def pool(workers: JobPool) -> Iterator[Pool]:
    over = Pool(pool=workers)
    yield over
    over.close()
    over.join()  # `terminate` would kill a worker that is at something
    assert workers.submit(square, 3).result(PATIENCE) == 9  # it stays open


@pytest.fixture
def own() -> Iterator[Pool]:
    with Pool(2, spare_workers=0) as made:
        yield made


# --- the interface --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("apply", "apply_async", "map", "map_async", "starmap", "starmap_async"),
        *("imap", "imap_unordered", "close", "terminate", "join"),
    ],
)
def test_arguments_are_those_of_the_standard_library(name: str) -> None:
    def arguments(kind: Any) -> list[tuple[str, Any]]:
        parameters = inspect.signature(getattr(kind, name)).parameters.values()
        return [(parameter.name, parameter.default) for parameter in parameters]

    assert arguments(Pool) == arguments(multiprocessing.pool.Pool)


def test_the_constructor_takes_what_theirs_takes() -> None:
    theirs = [*inspect.signature(multiprocessing.pool.Pool).parameters]
    assert [*inspect.signature(Pool).parameters][: len(theirs)] == theirs


def test_results_have_the_methods_of_theirs() -> None:
    for name in ("get", "wait", "ready", "successful"):
        assert hasattr(AsyncResult, name)
        assert [*inspect.signature(getattr(AsyncResult, name)).parameters] == [
            *inspect.signature(getattr(multiprocessing.pool.AsyncResult, name)).parameters
        ]
    assert str(AsyncResult[int]).endswith("AsyncResult[int]")


def test_an_error_of_the_waiting_is_one_of_both_libraries() -> None:
    assert issubclass(ours.TimeoutError, multiprocessing.TimeoutError)
    assert issubclass(ours.TimeoutError, ResultTimeoutError)
    copy = pickle.loads(pickle.dumps(ours.TimeoutError("late")))
    assert type(copy) is ours.TimeoutError
    assert copy.args == ("late",)


# --- calls ----------------------------------------------------------------------------------------


def test_calls(pool: Pool) -> None:
    assert pool.apply(pow, (2, 3)) == 8
    assert pool.apply(int, ["ff"], {"base": 16}) == 255
    assert pool.apply_async(pow, args=(2,), kwds={"exp": 3}).get(PATIENCE) == 8
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    assert pool.map(square, numbers(10), 3) == [x * x for x in range(10)]
    assert pool.starmap(pow, [(2, 3), [3, 2]]) == [8, 9]
    assert pool.starmap(pow, iter([(2, 3), (3, 2, 5)]), chunksize=2) == [8, 4]
    assert list(pool.imap(square, numbers(10))) == [x * x for x in range(10)]
    assert list(pool.imap(square, range(10), 3)) == [x * x for x in range(10)]
    assert sorted(pool.imap_unordered(square, range(10))) == [x * x for x in range(10)]
    assert sorted(pool.imap_unordered(square, range(10), chunksize=3)) == [x * x for x in range(10)]


def test_what_the_standard_library_cannot_pickle(pool: Pool) -> None:
    here = 5
    assert pool.apply(lambda: here) == 5
    assert pool.map(lambda x: lambda: x + here, [1, 2])[1]() == 7
    assert list(pool.imap(lambda x: x + here, [1], 2)) == [6]


def test_nothing_to_do(pool: Pool) -> None:
    called: list[Any] = []
    result = pool.map_async(square, [], callback=called.append)
    assert result.get(PATIENCE) == []
    assert result.successful()
    assert called == [[]]
    assert result.jobs == ()
    assert pool.starmap(pow, [], 5) == []
    assert list(pool.imap(square, [])) == list(pool.imap_unordered(square, [], 4)) == []


def test_chunks_are_those_of_the_standard_library(pool: Pool) -> None:
    def jobs(count: int, size: int | None = None) -> list[str]:
        result = pool.map_async(square, range(count), size)
        assert result.get(PATIENCE) == [x * x for x in range(count)]
        return [job.name for job in result.jobs]

    assert jobs(17) == [f"square[{start}:{min(start + 3, 17)}]" for start in range(0, 17, 3)]
    assert jobs(8) == ["square"] * 8
    assert jobs(8, 8) == ["square[0:8]"]


def test_options_are_those_of_the_view() -> None:
    with JobPool(2) as workers, Pool(pool=workers.options(timeout=0.2, name="mine")) as pool:
        assert pool.map(time.sleep, [0.05] * 9) == [None] * 9  # each has its own time
        result = pool.map_async(time.sleep, [60], 1)
        with pytest.raises(JobTimeoutError):
            result.get(PATIENCE)
        assert result.job.name == "mine"


def test_a_call_that_is_tried_again_is_alone_in_its_job(tmp_path: Path) -> None:
    def fail_first(x: int) -> int:
        (tmp_path / f"{x}.{time.monotonic_ns()}").touch()
        if x == 2 and len(list(tmp_path.glob("2.*"))) == 1:
            raise OSError(x)
        return x

    with JobPool(2) as workers, Pool(pool=workers.options(retries=1, retry_on=OSError)) as pool:
        assert pool.map(fail_first, range(4), 4) == [0, 1, 2, 3]
        assert len(list(tmp_path.iterdir())) == 5
        assert list(pool.imap(fail_first, range(4), 4)) == [0, 1, 2, 3]


def test_calls_are_seeded_as_those_of_a_map() -> None:
    def draw(x: int) -> float:
        import random

        return random.random()

    def drawn(call: Callable[[Any], Any]) -> list[float]:
        with JobPool(1, seed=5, spare_workers=0) as workers:
            return list(call(workers))

    expected = drawn(lambda workers: workers.map(draw, range(6)))
    for size in (1, 4, None):
        assert drawn(lambda workers: Pool(pool=workers).map(draw, range(6), size)) == expected  # noqa: B023
    assert drawn(lambda workers: Pool(pool=workers).imap(draw, range(6), 2)) == expected


# --- results --------------------------------------------------------------------------------------


def test_a_result_that_is_not_ready(pool: Pool, tmp_path: Path) -> None:
    result = pool.apply_async(hold, (tmp_path / "gate", [1]))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(0)
    for late in (0, -1, 0.01):
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(late)
    (tmp_path / "gate").touch()
    assert result.get(PATIENCE) is result.get() == [1]
    assert result.ready()
    assert result.successful()
    assert result.job.status() is JobStatus.DONE
    assert result.jobs == (result.job,)


def test_the_results_of_a_map_are_one_list(pool: Pool) -> None:
    result = pool.map_async(square, range(100), 7)
    assert result.get(PATIENCE) is result.get()
    assert len(result.jobs) == 15
    with pytest.raises(AttributeError, match=r"15 jobs: they are in \.jobs"):
        result.job  # noqa: B018


def test_cancel_stops_a_running_call_for_real(own: Pool, tmp_path: Path) -> None:
    result = own.apply_async(hold_with_child, (tmp_path / "gate", tmp_path / "pids"))
    pids = pids_in(tmp_path / "pids")
    assert result.cancel()
    assert all(map(gone, pids))
    assert result.ready()
    assert not result.successful()
    with pytest.raises(JobCancelledError):
        result.get()
    done = own.apply_async(square, (3,))
    assert done.get(PATIENCE) == 9
    assert not done.cancel()


def test_cancel_of_a_map(own: Pool, tmp_path: Path) -> None:
    result = own.map_async(lambda x: hold(tmp_path / "gate") if x else x, range(20), 1)
    until(result.jobs[0].in_final_state, "the first call")
    assert result.cancel()
    assert {job.status() for job in result.jobs[1:]} == {JobStatus.CANCELLED}
    with pytest.raises(JobCancelledError):
        result.get()


# --- callbacks ------------------------------------------------------------------------------------


def test_callbacks_are_called_before_the_result_is_ready(pool: Pool) -> None:
    seen: list[Any] = []
    main = threading.current_thread()

    def note(value: Any) -> None:
        time.sleep(0.05)
        seen.append(value)
        assert threading.current_thread() is not main

    assert pool.apply_async(square, (3,), callback=note).get(PATIENCE) == 9
    assert seen == [9]
    with pytest.raises(ValueError, match="mine") as caught:
        pool.apply_async(fail, ("mine",), {}, note, note).get(PATIENCE)
    assert seen[1:] == [caught.value]
    pool.map_async(square, range(20), 3, note).wait(PATIENCE)
    assert seen[2:] == [[x * x for x in range(20)]]
    with pytest.raises(ValueError, match="at 3"):
        pool.starmap_async(fail_at, [((3,), 3), ((3,), 4)], error_callback=note).get(PATIENCE)
    assert len(seen) == 4
    assert str(seen[3]) == "at 3"


def test_callbacks_come_in_the_order_of_the_ends(pool: Pool, tmp_path: Path) -> None:
    seen: list[str] = []
    first = pool.apply_async(hold, (tmp_path / "gate", "first"), callback=seen.append)
    second = pool.apply_async(hold, (tmp_path, "second"), callback=seen.append)
    second.wait(PATIENCE)
    (tmp_path / "gate").touch()
    first.wait(PATIENCE)
    assert seen == ["second", "first"]


def test_a_callback_that_raises_is_logged_and_costs_nothing(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(value: Any) -> None:
        raise RuntimeError(f"callback of {value}")

    with caplog.at_level(logging.ERROR, "primitive_jobs"):
        assert pool.apply_async(square, (3,), callback=refuse).get(PATIENCE) == 9
        assert pool.map_async(square, [], callback=refuse).get(PATIENCE) == []
        assert pool.apply_async(square, (4,)).get(PATIENCE) == 16
        for value in ("9", "[]"):
            until(lambda: f"callback of {value}" in caplog.text, "what is logged")  # noqa: B023


def test_a_callback_may_wait_for_any_result_and_end_the_pool() -> None:
    pool = Pool(1)
    seen: list[Any] = []
    results: list[AsyncResult[int]] = []
    told = threading.Event()

    def look(value: int) -> None:
        told.wait(PATIENCE)
        seen.extend([results[0].get(PATIENCE), results[1].get(PATIENCE), pool.apply(square, (5,))])
        pool.terminate()
        pool.join()

    results.append(pool.apply_async(square, (3,), callback=look))
    results.append(pool.apply_async(square, (4,), callback=seen.append))
    told.set()
    results[0].wait(PATIENCE)
    assert seen[:3] == [9, 16, 25]
    pool.join()
    assert seen == [9, 16, 25, 16]


def test_join_is_behind_the_callbacks(workers: JobPool) -> None:
    for pool in (Pool(2), Pool(pool=workers)):
        seen: list[Any] = []
        for x in range(50):
            pool.apply_async(square, (x,), callback=seen.append)
        pool.map_async(square, range(30), 4, callback=seen.append)
        pool.close()
        pool.join()
        assert len(seen) == 51


# --- failures -------------------------------------------------------------------------------------


def test_a_dead_worker_fails_its_call_and_no_other(own: Pool) -> None:
    errors: list[Any] = []
    doomed = own.apply_async(crash, error_callback=errors.append)
    others = [own.apply_async(square, (x,)) for x in range(10)]
    with pytest.raises(WorkerDiedError, match="code 3"):
        doomed.get(PATIENCE)
    assert len(errors) == 1
    assert [other.get(PATIENCE) for other in others] == [x * x for x in range(10)]
    with pytest.raises(WorkerDiedError):
        own.map(crash_at_3, range(10), 1)
    results = own.imap(crash_at_3, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerDiedError):
        next(results)
    assert list(results) == [4]


def test_a_worker_that_is_killed_from_outside(own: Pool, tmp_path: Path) -> None:
    result = own.apply_async(hold_with_child, (tmp_path / "gate", tmp_path / "pids"))
    pids = pids_in(tmp_path / "pids")
    assert result.job.pid == pids[0]
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(WorkerDiedError):
        result.get(PATIENCE)
    until(lambda: all(map(gone, pids)), "the end of what it had started")
    assert own.apply(square, (3,)) == 9


def test_a_map_raises_its_first_failure_when_all_is_over(pool: Pool, tmp_path: Path) -> None:
    def fail_or_mark(x: int) -> int:
        time.sleep(0.1 if x == 1 else 0)
        return fail_at((1, 2), x) and mark(tmp_path, x)

    with pytest.raises(ValueError, match="at 1") as caught:
        pool.map(fail_or_mark, range(1, 10), 1)
    assert len(list(tmp_path.iterdir())) == 7
    assert "fail_at" in str(caught.value.__cause__)
    result = pool.map_async(fail_or_mark, range(1, 10), 3)
    with pytest.raises(ValueError, match="at 1") as first:
        result.get(PATIENCE)
    with pytest.raises(ValueError, match="at 1") as second:
        result.get()
    assert first.value is second.value
    assert not result.successful()


def test_what_cannot_be_pickled(pool: Pool) -> None:
    with pytest.raises(SerializationError, match="not me"):
        pool.apply(square, (Unpicklable(),))
    for size in (1, 2):
        with pytest.raises(SerializationError, match="not me"):
            pool.map(square, [1, Unpicklable(), 3], size)
        with pytest.raises(SerializationError):
            pool.map(lambda x: Unpicklable(), [1, 2], size)
        results = pool.imap(type, [1, Unpicklable(), "a"], size)
        assert next(results) is int
        with pytest.raises(SerializationError, match="not me"):
            next(results)
        assert list(results) == ([str] if size == 1 else [])
    with pytest.raises(SerializationError):
        pool.apply(threading.Lock)


@pytest.mark.parametrize("ended", [False, True])
def test_failures_that_nobody_looked_at_are_told(
    ended: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By the line that waits for the end, also where the pool has ended before."""
    pool = Pool(1)
    pool.apply_async(fail)
    pool.apply_async(fail, callback=print)
    seen = pool.apply_async(fail, error_callback=str)
    pool.close()
    seen.wait(PATIENCE)
    if ended:
        until(lambda: "2 of 3 jobs failed" in caplog.text, "the end")
    with pytest.warns(JobFailuresWarning, match="2 of 3 jobs failed") as caught:
        pool.join()
    assert caught[0].filename == __file__


def test_of_a_map_one_failure_is_enough() -> None:
    with Pool(1) as pool, pytest.raises(ValueError, match="at 0"):
        pool.starmap(fail_at, [(range(9), x) for x in range(9)], 1)


def test_a_stop_iteration_ends_no_loop(pool: Pool) -> None:
    for size in (1, 2):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(pool.imap(stop_iterating, [1, 2], size))
        with pytest.raises(StopIteration):
            pool.map(stop_iterating, [1, 2], size)


# --- iterables ------------------------------------------------------------------------------------


def test_an_iterable_that_raises(pool: Pool, tmp_path: Path) -> None:
    for map_call in (pool.map, pool.map_async):
        with pytest.raises(ZeroDivisionError):
            map_call(lambda x: mark(tmp_path, x), numbers(3, ZeroDivisionError()))
    assert not list(tmp_path.iterdir())
    for call in (pool.imap, pool.imap_unordered):
        results = call(square, numbers(3, ZeroDivisionError()))
        assert sorted(next(results) for _ in range(3)) == [0, 1, 4]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert list(results) == []
    assert pool.apply(square, (3,)) == 9


def test_imap_of_an_endless_iterable(own: Pool) -> None:
    taken = itertools.count()
    results = own.imap(square, taken)
    assert list(itertools.islice(results, 3000)) == [x * x for x in range(3000)]
    own.terminate()
    with pytest.raises((JobCancelledError, PoolClosedError)):
        list(results)
    own.join()
    before = next(taken)
    assert next(taken) == before + 1  # nobody takes any


def test_imap_takes_only_so_much_ahead(own: Pool, tmp_path: Path) -> None:
    taken: list[int] = []

    def items() -> Iterator[Path]:
        for number in itertools.count():
            taken.append(number)
            yield tmp_path / "gate"

    results = own.imap(hold, items())
    until(lambda: len(taken) == 1000, "what it takes ahead")
    time.sleep(0.05)
    assert len(taken) == 1000
    (tmp_path / "gate").touch()
    for _ in range(1500):
        next(results)


def test_of_an_imap_one_failure_is_enough() -> None:
    pool = Pool(2)
    for call in (pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="at "):
            next(call(lambda x: fail_at(range(9), x), range(9)))
    pool.close()
    pool.join()


def test_imap_goes_on_without_its_consumer(tmp_path: Path) -> None:
    """As there: what was asked for is done, also where nobody wants the results."""
    pool = Pool(2)
    pool.imap_unordered(lambda x: mark(tmp_path, x), range(1500))
    results = pool.imap(square, range(2500), 5)
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.imap(square, [1])
    pool.join()
    assert len(list(tmp_path.iterdir())) == 1500
    assert list(results) == [x * x for x in range(2500)]


def test_imap_goes_on_behind_a_failure(own: Pool) -> None:
    results = own.imap(fail_at_3, range(6))
    found: list[Any] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            break
        except ValueError as error:
            found.append(str(error))
    assert found == [0, 1, 2, "at 3", 4, 5]
    results = own.imap(fail_at_3, range(8), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="at 3"):
        next(results)
    assert list(results) == []  # as there: its chunk is not complete


def test_imap_waits_only_so_long(pool: Pool, tmp_path: Path) -> None:
    for call in (pool.imap, pool.imap_unordered):
        gate = tmp_path / call.__name__
        results = call(hold, [gate])
        for late in (0, 0.01):
            with pytest.raises(multiprocessing.TimeoutError):
                results.next(late)
        gate.touch()
        assert results.next(timeout=PATIENCE) is None
        with pytest.raises(StopIteration):
            results.next(0)


def test_imap_unordered_gives_what_there_is(own: Pool, tmp_path: Path) -> None:
    results = own.imap_unordered(lambda x: hold(tmp_path / "gate", x) if x == 0 else x, range(5))
    assert sorted(next(results) for _ in range(4)) == [1, 2, 3, 4]
    (tmp_path / "gate").touch()
    assert list(results) == [0]


def test_threads_may_share_an_imap(pool: Pool) -> None:
    results = pool.imap(square, range(500))
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(results)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(found) == [x * x for x in range(500)]


def test_an_iterable_may_wait_for_results_of_the_same_pool(pool: Pool) -> None:
    def items() -> Iterator[int]:
        for x in range(4):
            yield pool.apply(square, (x,))

    assert list(pool.imap(square, items())) == [0, 1, 16, 81]


def test_an_iterable_that_blocks_holds_up_no_terminate(own: Pool) -> None:
    gate = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        gate.wait(PATIENCE)
        yield 2

    results = own.imap(square, items())
    assert next(results) == 1
    own.terminate()
    with pytest.raises(PoolClosedError, match="before all items"):
        next(results)
    own.join()
    gate.set()


# --- the end --------------------------------------------------------------------------------------


def test_close_and_join_wait_for_what_is_outstanding(tmp_path: Path) -> None:
    pool = Pool(2)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    results = [pool.apply_async(hold, (tmp_path, x)) for x in range(20)]
    pool.close()
    pool.close()
    for call in (pool.apply, pool.apply_async):
        with pytest.raises(ValueError, match="Pool not running"):
            call(square, (1,))
    calls: list[Any] = [pool.map, pool.map_async, pool.starmap, pool.starmap_async, pool.imap]
    for call in [*calls, pool.imap_unordered]:
        with pytest.raises(ValueError, match="Pool not running"):
            call(square, [1])
    with pytest.raises(ValueError, match="Pool not running"):
        pool.__enter__()
    pool.join()
    pool.join()
    assert all(result.ready() for result in results)
    assert [result.get() for result in results] == [*range(20)]
    pool.terminate()


def test_terminate_while_a_map_runs(tmp_path: Path) -> None:
    pool = Pool(2)
    errors: list[BaseException] = []
    single = pool.apply_async(hold_with_child, (tmp_path / "gate", tmp_path / "pids"))
    mapped = pool.map_async(
        lambda x: hold(tmp_path / "gate"), range(1000), 1, error_callback=errors.append
    )
    results = pool.imap(hold, [tmp_path / "gate"] * 2000)
    pids = pids_in(tmp_path / "pids")
    until(mapped.jobs[0].running, "the first call of the map")
    pool.terminate()
    assert all(map(gone, pids))
    assert single.ready()
    mapped.wait(PATIENCE)
    for result in (mapped, single):
        assert not result.successful()
        with pytest.raises(JobCancelledError):
            result.get()
    assert [type(error) for error in errors] == [JobCancelledError]
    with pytest.raises((JobCancelledError, PoolClosedError)):
        next(results)
    pool.join()


def test_the_end_of_a_block_terminates(tmp_path: Path) -> None:
    with Pool(1) as pool:
        result = pool.apply_async(hold, (tmp_path / "gate",))
    with pytest.raises(JobCancelledError):
        result.get()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(square, (1,))


def test_a_pool_that_is_given_keeps_its_other_jobs(tmp_path: Path) -> None:
    with JobPool(2) as workers:
        other = workers.submit(hold, tmp_path / "gate", "mine")
        with Pool(pool=workers) as pool:
            pool.apply_async(hold, (tmp_path / "never",))
        (tmp_path / "gate").touch()
        assert other.result(PATIENCE) == "mine"
        second = Pool(pool=workers)
        result = second.apply_async(square, (3,))
        second.close()
        second.join()
        assert result.get(0) == 9


def test_a_dropped_pool_finishes_its_calls() -> None:
    pool = Pool(1)
    result = pool.apply_async(square, (3,))
    with pytest.warns(ResourceWarning, match="unclosed running multiproc"):  # noqa: PT031
        del pool
        gc.collect()
    assert result.get(PATIENCE) == 9


def test_a_dropped_view_of_a_pool_gives_no_warning(workers: JobPool) -> None:
    assert Pool(pool=workers).map(square, [3]) == [9]
    gc.collect()


def test_what_is_unfinished_at_the_end_of_the_program_is_stopped(tmp_path: Path) -> None:
    expect(
        tmp_path,
        """
        import time
        from primitive_jobs.multiprocessing import Pool

        if __name__ == "__main__":
            pool = Pool(2)
            pool.map_async(time.sleep, [1000] * 10)
            print(pool.apply_async(pow, (2, 3)).job.name)
        """,
        "pow\n",
    )


def test_an_interrupt_of_a_map_stops_its_calls(own: Pool, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            own.map(lambda x: hold(tmp_path / "gate"), range(10))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert own.apply(square, (3,)) == 9  # no worker is held any more


# --- surroundings ---------------------------------------------------------------------------------


def test_a_pool_cannot_be_pickled(pool: Pool) -> None:
    with pytest.raises(NotImplementedError, match="cannot be passed between processes"):
        pickle.dumps(pool)
    with pytest.raises(SerializationError):
        pool.apply(id, (pool,))


def test_a_pool_in_a_job(pool: Pool) -> None:
    def nested(count: int) -> list[int]:
        from primitive_jobs.multiprocessing import Pool

        with Pool(1) as inner:
            return inner.map(square, range(count))

    assert pool.apply(nested, (4,)) == [0, 1, 4, 9]


def in_fork(call: Callable[[], object]) -> str:
    """What a call comes to in a fork of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            told = repr(call())
        except BaseException as error:
            told = type(error).__name__
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_of_the_program(pool: Pool, tmp_path: Path) -> None:
    result = pool.apply_async(hold, (tmp_path / "gate", 5), callback=str)
    results = pool.imap(hold, [tmp_path / "gate"])
    assert in_fork(lambda: pool.apply(square, (3,))) == "PoolClosedError"
    assert in_fork(result.get) == "JobError"
    assert in_fork(lambda: next(results)) in ("JobError", "PoolClosedError")
    (tmp_path / "gate").touch()
    assert result.get(PATIENCE) == 5
    assert next(results) is None
    assert in_fork(result.get) == "5"


def test_sizes(workers: JobPool) -> None:
    with JobPool(1, spare_workers=0) as own, JobExecutor(pool=own) as executor:
        pool = Pool(pool=own)
        view = own.options(name="a")
        assert [own.size, view.size, executor.size, pool.size, pool._processes] == [1] * 5
        own.resize(3)
        assert [own.size, view.size, executor.size, pool.size, pool._processes] == [3] * 5
        pool.size = 7  # as classes do that are derived from the standard library's
        assert pool.size == 7
        assert pool._processes == 3
    with Pool(2) as made:
        assert made.size == 2
        assert repr(made) == "<primitive_jobs.multiprocessing.pool.Pool state=RUN pool_size=2>"


def test_maxtasksperchild() -> None:
    with Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(os.getpid) for _ in range(6)]
    assert len(set(pids)) == 3
    assert pids[::2] == pids[1::2]


def test_initializer() -> None:
    def prepare(*values: int) -> None:
        os.environ["PREPARED"] = str(values)

    def prepared() -> str:
        return os.environ["PREPARED"]

    with Pool(1, prepare, [1, 2]) as pool:
        assert pool.apply(prepared) == "(1, 2)"
    with Pool(1, fail, ("in vain",)) as pool:
        with pytest.raises(WorkerDiedError) as caught:
            pool.apply(square, (1,))
        assert "in vain" in str(caught.value.__cause__)


def test_what_is_given_to_the_pool_of_its_own() -> None:
    with Pool(1, context=multiprocessing.get_context("spawn"), env={"MINE": "5"}) as pool:
        assert pool.apply(os.getenv, ("MINE",)) == "5"


# --- wrong arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (ValueError, "processes", (0, -1)),
        (TypeError, "processes", ("2", 1.5, True)),
        (ValueError, "maxtasksperchild", (0, -1, "2", 1.5)),  # as there
        (TypeError, "initializer", (3, "print")),
        (TypeError, "initargs", (3, None, "abc")),
        (TypeError, "context", (3, "spawn")),
        (ValueError, "context", (multiprocessing.get_context("fork"),)),
        (TypeError, "pool", (3, "default", JobPool)),
    ],
)
def test_wrong_arguments_of_a_pool(kind: type[Exception], name: str, values: Any) -> None:
    for value in values:
        with pytest.raises(kind, match=name):
            Pool(**{name: value})


def test_wrong_arguments_of_calls(pool: Pool) -> None:
    calls: list[Any] = [pool.map, pool.map_async, pool.starmap, pool.starmap_async]
    calls += [pool.imap, pool.imap_unordered]
    for call in calls:
        for size in (0, -1):
            with pytest.raises(ValueError, match="chunksize must be greater than 0"):
                call(square, [(1,)], size)
        for bad in ("1", 1.5, True):
            with pytest.raises(TypeError, match="chunksize must be an int"):
                call(square, [(1,)], bad)
        with pytest.raises(TypeError, match="func must be callable"):
            call(3, [(1,)])
        with pytest.raises(TypeError, match="iterable"):
            call(square, 3)
    calls = [pool.apply, pool.apply_async]
    for call in calls:
        with pytest.raises(TypeError, match="must be callable"):
            call("print")
    result: Any = pool.apply_async(double, (1,))
    for wait in (result.get, result.wait):
        with pytest.raises(TypeError, match="timeout"):
            wait("1")
        with pytest.raises(ValueError, match="timeout"):
            wait(float("nan"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("processes", 2),
        ("initializer", print),
        ("initargs", (1,)),
        ("maxtasksperchild", 2),
        ("context", multiprocessing.get_context("spawn")),
        ("env", {"A": "b"}),
    ],
)
def test_a_pool_that_is_given_is_as_it_was_made(workers: JobPool, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        Pool(pool=workers, **{name: value})


def test_a_pool_that_was_shut_down() -> None:
    with JobPool(1) as own:
        pool = Pool(pool=own)
    with pytest.raises(PoolClosedError):
        pool.apply(square, (1,))
    with pytest.raises(JobError):
        next(pool.imap(square, [1]))

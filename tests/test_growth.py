"""What n jobs, waiters or pools cost grows as n does; what has ended leaves nothing behind."""

from __future__ import annotations

import concurrent.futures
import gc
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

import cloudpickle
import pytest
from helpers import PATIENCE, double

from primitive_jobs import (
    JobExecutor,
    JobPool,
    JobStatus,
    PrimitiveJob,
    as_completed,
    gather,
    race,
    share,
    track,
    wait,
)
from primitive_jobs._engine.tracker import Outcome, StatusTracker

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

FEW = 200
TIMES = 4
TURNS = 6  # in which what is kept for each would show
LINEAR = 5.5  # times as much for TIMES as many: a quadratic part of a third would be seen

# --- waiting for many -----------------------------------------------------------------------------


class _OneByOne:
    """In the place of a watch's queue: whenever it is waited for, one more job ends."""

    ending: ClassVar[deque[Callable[[], object]]] = deque()

    def __init__(self) -> None:
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)

    def get(self, timeout: float | None = None) -> Any:
        if not self._items:
            self.ending.popleft()()
        return self._items.popleft()


def _unfinished(count: int, status: JobStatus) -> list[PrimitiveJob[int]]:
    """Jobs that are queued nowhere, and end as `_OneByOne` says."""
    jobs = []
    for _ in range(count):
        job: PrimitiveJob[int] = PrimitiveJob(double, 1)
        job._submits = None
        job._tracker.submitted()
        job._tracker.serialized()
        assert job._tracker.take()
        job._tracker.assigned(None)
        error = ValueError("on purpose") if status is JobStatus.ERROR else None
        outcome = Outcome(status, None)
        job._loaded.append((2, error))

        def end(tracker: StatusTracker = job._tracker, outcome: Outcome = outcome) -> None:
            tracker.settle(outcome)
            tracker.tell_waiters()

        _OneByOne.ending.append(end)
        jobs.append(job)
    return jobs


def _calls_in_package(function: Callable[[], object]) -> int:
    """How many functions of the package are called on this thread meanwhile."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event == "call" and "primitive_jobs" in frame.f_code.co_filename:
            count += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def _fails(call: Callable[[], object]) -> None:
    with pytest.raises(BaseExceptionGroup):
        call()


if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

DONE, ERROR = JobStatus.DONE, JobStatus.ERROR
FIRST_EXCEPTION = concurrent.futures.FIRST_EXCEPTION
WAYS: dict[str, tuple[JobStatus, Callable[[list[PrimitiveJob[int]]], object]]] = {
    "wait": (DONE, wait),
    "wait for a failure": (DONE, lambda jobs: wait(jobs, return_when=FIRST_EXCEPTION)),
    "as_completed": (DONE, lambda jobs: list(as_completed(jobs))),
    "gather": (DONE, gather),
    "gather failures": (ERROR, lambda jobs: _fails(lambda: gather(jobs, fail_fast=False))),
    "race": (ERROR, lambda jobs: _fails(lambda: race(jobs))),
    "track": (DONE, lambda jobs: list(track(jobs))),
}


@pytest.mark.parametrize("way", WAYS)
def test_waiting_for_jobs_that_end_one_by_one(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("primitive_jobs.waiting.queue.SimpleQueue", _OneByOne)
    status, call = WAYS[way]
    counts = []
    for count in (FEW, TIMES * FEW):
        jobs = _unfinished(count, status)
        counts.append(_calls_in_package(lambda jobs=jobs: call(jobs)))  # type: ignore[misc]
        assert not _OneByOne.ending
        assert all(job.in_final_state() for job in jobs)
    assert counts[1] <= LINEAR * counts[0]


class _Counting:
    """A waiter that counts how often one is compared."""

    compared = 0

    def __call__(self) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        _Counting.compared += 1
        return self is other

    def __hash__(self) -> int:
        return id(self)


def test_many_who_wait_for_one_job_may_give_up() -> None:
    tracker = StatusTracker()
    waiters = [_Counting() for _ in range(1000)]
    for waiter in waiters:
        tracker.call_when_final(waiter)
    _Counting.compared = 0
    assert all(tracker.forget(waiter) for waiter in reversed(waiters))
    assert not any(tracker.forget(waiter) for waiter in waiters)
    assert _Counting.compared <= 10 * len(waiters)


def test_waiters_are_called_in_order_once_and_may_come_and_go_meanwhile() -> None:
    tracker = StatusTracker()
    called: list[object] = []

    def drop_the_next() -> None:
        called.append("first")
        assert tracker.forget(dropped)
        tracker.call_when_final(lambda: called.append("late"))

    def dropped() -> None:
        called.append("dropped")

    tracker.call_when_final(drop_the_next)
    tracker.call_when_final(dropped)
    tracker.call_when_final(lambda: called.append("last"))
    tracker.submitted()
    tracker.end_early(Outcome(JobStatus.CANCELLED, None))
    assert called == ["first", "late", "last"]
    tracker.tell_waiters()
    assert len(called) == 3


# --- what has ended is forgotten ------------------------------------------------------------------


def test_shared_data_forgets_the_pools_that_are_gone() -> None:
    table = share([1, 2, 3])
    for _ in range(5):
        with JobPool(1, spare_workers=0) as pool:
            assert pool.submit(sum, table).result(PATIENCE) == 6
    del pool
    gc.collect()
    assert len(table._source._users) <= 1  # type: ignore[attr-defined]


def test_a_pool_that_is_shut_down_again_and_again_keeps_nothing_of_it() -> None:
    pool = JobPool(1)
    for _ in range(20):
        pool.shutdown()
    engine = pool._engine
    assert len(engine._end_waiters) + len(engine._gone_waiters) <= 1


def _objects() -> Counter[str]:
    """Those of the package, and of what it starts processes and threads with."""
    gc.collect()
    kinds = Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.get_objects())
    ours = ("primitive_jobs", "loky", "multiprocessing", "threading", "_thread", "_queue", "queue")
    return Counter({kind: n for kind, n in kinds.items() if kind.startswith(ours)})


def _sizes() -> int:
    """The entries of all containers that the package's objects and modules hold."""
    gc.collect()
    total = 0
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "primitive_jobs":
            total += sum(len(v) for v in vars(module).values() if isinstance(v, (list, set, dict)))
    for thing in gc.get_objects():
        if str(type(thing).__module__).startswith("primitive_jobs"):
            for one in gc.get_referents(thing):
                if isinstance(one, (list, set, dict, deque)):
                    total += len(one)
    return total


def _grows(step: Callable[[], object], times: int) -> tuple[Counter[str], int]:
    """What is more after ``times`` more steps: objects by type, and entries of containers."""
    for _ in range(3):  # what is made at the first use stays
        step()
    objects, sizes = _objects(), _sizes()
    for _ in range(times):
        step()
    # On a busy machine the last workers may still be on their way out.
    end = time.monotonic() + PATIENCE / 3
    while (more := _sizes() - sizes) >= times and time.monotonic() < end:
        time.sleep(0.05)
    return _objects() - objects, more


@pytest.mark.usefixtures("all_objects")
def test_the_age_of_a_pool_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primitive_jobs._engine.attempts.KEPT", 3)  # so that these are all there
    table = share([1, 2, 3])
    with JobPool(1, max_jobs_per_worker=1, spare_workers=0) as pool, JobExecutor(pool=pool) as two:

        def step() -> None:
            """Each worker has one job and is replaced; a waiting job and a running one go."""
            assert pool.submit(sum, table).result(PATIENCE) == 6
            assert two.submit(double, 2).result(PATIENCE) == 4
            assert list(pool.map(double, [1, 2])) == [2, 4]
            one = pool.submit(wait_for_ever)
            other = pool.submit(double, 1)
            assert other.cancel()
            assert one.cancel()
            assert wait([one, other]).not_done == set()
            assert pool.jobs() == []
            dropped = share([1])
            assert pool.submit(sum, dropped).result(PATIENCE) == 1

        objects, sizes = _grows(step, TURNS)
    assert all(count < TURNS for count in objects.values()), objects
    assert sizes < TURNS


def wait_for_ever() -> None:
    import threading

    threading.Event().wait()


@pytest.mark.usefixtures("all_objects")
def test_the_pools_that_a_process_has_had_cost_nothing() -> None:
    table = share([1, 2, 3])

    def step() -> None:
        with JobPool(1, spare_workers=0) as pool:
            assert pool.submit(sum, table).result(PATIENCE) == 6
        with JobExecutor(1, spare_workers=0) as executor:
            assert executor.submit(double, 2).result(PATIENCE) == 4

    objects, sizes = _grows(step, TURNS)
    assert all(count < TURNS for count in objects.values()), objects
    assert sizes < TURNS

"""A job that is among its own arguments: it, or its submit, would wait for its own end."""

from __future__ import annotations

import functools
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, double, hold, until

from primitive_jobs import (
    JobError,
    JobExecutor,
    JobPool,
    JobStatus,
    PrimitiveJob,
    ResultTimeoutError,
    SerializationError,
)

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

OWN = "is among its own arguments"
NOT_YET = "is not submitted yet: submit it first"


def count(*args: Any, **kwargs: Any) -> int:
    return len(args) + len(kwargs)


def result_of(job: PrimitiveJob[Any]) -> Any:
    return job.result()


def _refused(job: PrimitiveJob[Any], why: str = NOT_YET) -> str:
    """Assert that the job has ended, since it could not be serialized; return why."""
    assert job.status() is JobStatus.ERROR
    error = job.exception(PATIENCE)
    assert isinstance(error, SerializationError), repr(error)
    assert why in str(error)
    return str(error)


class _Model:
    def __init__(self) -> None:
        self.job: Any = None

    def work(self, _: Any = None) -> int:
        return 1


def _in_a_list() -> PrimitiveJob[Any]:
    box: list[Any] = []
    job = PrimitiveJob(count, box)
    box.append(job)
    return job


def _by_keyword() -> PrimitiveJob[Any]:
    box: dict[str, Any] = {}
    job = PrimitiveJob(count, 1, option=box)
    box["job"] = job
    return job


def _in_a_partial() -> PrimitiveJob[Any]:
    box: list[Any] = []
    job: PrimitiveJob[Any] = PrimitiveJob(functools.partial(count, box))
    box.append(job)
    return job


def _in_a_closure() -> PrimitiveJob[Any]:
    def ask() -> Any:
        return job

    job: PrimitiveJob[Any] = PrimitiveJob(ask)
    return job


def _in_a_default() -> PrimitiveJob[Any]:
    box: list[Any] = []

    def ask(box: list[Any] = box) -> Any:
        return box

    job: PrimitiveJob[Any] = PrimitiveJob(ask)
    box.append(job)
    return job


def _in_a_model() -> PrimitiveJob[Any]:
    model = _Model()
    job: PrimitiveJob[Any] = PrimitiveJob(model.work)
    model.job = job
    return job


MADE: list[Callable[[], PrimitiveJob[Any]]] = [
    _in_a_list,
    _by_keyword,
    _in_a_partial,
    _in_a_closure,
    _in_a_default,
    _in_a_model,
]


@pytest.mark.parametrize("make", MADE)
def test_it_is_refused_wherever_it_is(pool: JobPool, make: Callable[[], PrimitiveJob[Any]]) -> None:
    job = make()
    job.submit(pool)
    _refused(job)
    assert not job.cancel()
    assert pool.submit(double, 2).result(PATIENCE) == 4


def test_the_message_names_the_argument(pool: JobPool) -> None:
    reason = _refused(_in_a_list().submit(pool))
    assert "argument 1 of count(), a list," in reason
    assert "job count" in reason


def test_the_default_pool_refuses_it_too() -> None:
    _refused(_in_a_list().submit())


class _Doing:
    """Does something when it is pickled."""

    def __init__(self, what: Callable[[], object]) -> None:
        self._what = what

    def __reduce__(self) -> Any:
        self._what()
        return int, ()


def _does(pool: JobPool, what: Callable[[PrimitiveJob[Any]], object]) -> PrimitiveJob[Any]:
    """A job that was submitted, in which ``what(job)`` was called meanwhile."""
    box: list[Any] = []
    job = PrimitiveJob(count, box)
    box.append(_Doing(lambda: what(job)))
    return job.submit(pool)


WAITS: dict[str, Callable[[PrimitiveJob[Any]], object]] = {
    "result": lambda job: job.result(),
    "exception": lambda job: job.exception(),
    "wait": lambda job: job.wait(),
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("way", WAITS)
def test_other_waits_for_itself_are_refused(pool: JobPool, way: str) -> None:
    _refused(_does(pool, WAITS[way]), NOT_YET if way == "pickle" else OWN)


def test_a_wait_that_ends_is_not_refused(pool: JobPool) -> None:
    def wait(job: PrimitiveJob[Any]) -> None:
        with pytest.raises(ResultTimeoutError):
            job.result(0.01)
        assert not job.wait(0.01)

    assert _does(pool, wait).result(PATIENCE) == 1


def test_a_second_submit_meanwhile_does_no_harm(pool: JobPool) -> None:
    def submit(job: PrimitiveJob[Any]) -> None:
        with pytest.raises(JobError, match="before"):
            job.submit(pool)

    assert _does(pool, submit).result(PATIENCE) == 1


def test_a_job_that_is_submitted_meanwhile_and_refers_to_it(pool: JobPool) -> None:
    inner: list[PrimitiveJob[Any]] = []
    outer = _does(pool, lambda job: inner.append(pool.submit(result_of, job)))
    _refused(inner[0])
    assert outer.result(PATIENCE) == 1


def test_a_map_over_it_meanwhile(pool: JobPool) -> None:
    def ask(job: PrimitiveJob[Any]) -> None:
        with pytest.raises(SerializationError, match=NOT_YET):
            list(pool.map(result_of, [job]))
        with pytest.raises(SerializationError, match=NOT_YET):
            list(pool.map(result_of, [job], chunksize=2))

    assert _does(pool, ask).result(PATIENCE) == 1


@pytest.mark.parametrize("length", [2, 3])
def test_jobs_that_wait_for_each_other_in_several_threads(pool: JobPool, length: int) -> None:
    met = threading.Event()
    barrier = threading.Barrier(length, action=met.set)
    # Not again when the others are put in their places, and when the culprit is looked for.
    meeting = _Doing(lambda: met.is_set() or barrier.wait(PATIENCE))
    boxes: list[list[Any]] = [[meeting] for _ in range(length)]
    jobs = [PrimitiveJob(count, box) for box in boxes]
    for place, box in enumerate(boxes):
        box.append(jobs[(place + 1) % length])
    threads = [threading.Thread(target=job.submit, args=(pool,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert all(job.wait(PATIENCE) for job in jobs)
    errors = [job.exception() for job in jobs]
    assert any(isinstance(error, SerializationError) and NOT_YET in str(error) for error in errors)


def test_what_ends_is_waited_for(one: JobPool, tmp_path: Path) -> None:
    """Jobs among the arguments that run or wait behind others; not such as are being submitted."""
    gate = tmp_path / "gate"
    running = one.submit(hold, gate, 1)
    until(running.running, "the first job")
    behind = one.submit(double, 2)
    reached, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        reached.set()
        go_on.wait(PATIENCE)

    slow = PrimitiveJob(count, _Doing(pause))
    thread = threading.Thread(target=slow.submit, args=(one,))
    thread.start()
    assert reached.wait(PATIENCE)
    others: list[Any] = [behind, running, slow]
    jobs = [one.submit(double, job) for job in others[:2]]
    assert slow.status() is JobStatus.VALIDATING
    _refused(one.submit(double, others[2]))
    assert [job.status() for job in jobs] == [JobStatus.QUEUED] * 2
    gate.touch()
    assert [job.result(PATIENCE) for job in jobs] == [8, 2]
    go_on.set()
    thread.join(PATIENCE)
    assert one.submit(double, others[2]).result(PATIENCE) == 2


def test_a_future_among_the_arguments(tmp_path: Path) -> None:
    with JobExecutor(1) as executor:
        gate = tmp_path / "gate"
        future = executor.submit(hold, gate, 3)
        waiting = executor.submit(count, [future])
        among = executor.submit(count, future.job, 1)
        elsewhere = executor.submit(count, {future})  # which no library can pickle
        error = elsewhere.exception(PATIENCE)
        assert isinstance(error, SerializationError)
        assert "job hold has not ended" in str(error)
        gate.touch()
        assert (waiting.result(PATIENCE), among.result(PATIENCE)) == (1, 2)
        error = executor.submit(count, {future}).exception(PATIENCE)
        assert "'JobFuture' object; its result, or its job, can travel" in str(error)

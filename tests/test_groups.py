"""`gather` and `race`: results in order, failures that stop the others, and who is to blame."""

from __future__ import annotations

import gc
import os
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from helpers import (
    check_well,
    double,
    fail,
    gone,
    hold,
    hold_with_child,
    interrupt_everywhere,
    interrupted,
    pids_in,
    raise_mine,
    sampled,
    until,
)

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobPool,
    JobStatus,
    PrimitiveJob,
    ResultTimeoutError,
    SerializationError,
    WorkerDiedError,
    gather,
    race,
)

if TYPE_CHECKING:
    from makers import MakePool

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

PATIENCE = 30.0  # s, after which what is waited for will not come

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def pools(make_pool: MakePool) -> Iterator[tuple[JobPool, JobPool]]:
    """Two pools, of three workers and of one."""
    with make_pool(3) as many, make_pool(1) as one:
        yield many, one
        many.shutdown(cancel=True)
        one.shutdown(cancel=True)


class Unloadable:
    """A result that cannot be unpickled by the caller."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class Fatal(BaseException):
    """No Exception."""


class Plain:
    """An object with a weak reference."""


def raise_fatal() -> None:
    raise Fatal


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """Make a call in a thread; its result or exception comes in the list."""
    ends: list[Any] = []

    def body() -> None:
        try:
            ends.append(call())
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, ends


def watched(job: PrimitiveJob[Any]) -> Callable[[], object]:
    return lambda: job._tracker._waiters


# --- gather ---------------------------------------------------------------------------------------


def test_results_are_in_order(pools: tuple[JobPool, JobPool], tmp_path: Path) -> None:
    many, _ = pools
    slow: PrimitiveJob[int] = many.submit(hold, tmp_path / "gate", 5)
    jobs = [slow, *(pool.submit(double, n) for n in range(5) for pool in pools), slow]
    thread, ends = in_thread(lambda: gather(iter(jobs)))
    for job in jobs[1:-1]:
        job.result(PATIENCE)
    assert thread.is_alive()
    (tmp_path / "gate").touch()
    thread.join(PATIENCE)
    assert ends == [[5, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 5]]
    assert gather(jobs, timeout=0) == ends[0], "all are final"
    assert gather([]) == gather(iter(()), fail_fast=False) == []


@pytest.mark.local
def test_the_first_failure_stops_the_others(pools: tuple[JobPool, JobPool], tmp_path: Path) -> None:
    many, one = pools
    never = tmp_path / "never"
    held = [pool.submit(hold_with_child, never, tmp_path / f"{n}") for n, pool in enumerate(pools)]
    waiting = [one.submit(double, n) for n in range(3)]
    bystander: PrimitiveJob[int] = many.submit(hold, tmp_path / "gate", 7)
    pids = [pid for n in range(2) for pid in pids_in(tmp_path / f"{n}")]
    failing = many.submit(fail, "the first")
    with pytest.raises(ValueError, match="the first") as caught:
        gather([*held, *waiting, failing])
    assert all(gone(pid) for pid in pids)
    assert all(job.cancelled() for job in held + waiting)
    assert all(JobStatus.RUNNING not in dict(job.history()) for job in waiting)
    assert "raise ValueError(message)" in str(caught.value.__cause__)
    assert not bystander.in_final_state()
    (tmp_path / "gate").touch()
    assert bystander.result(PATIENCE) == 7


def test_jobs_that_failed_already(pool: JobPool) -> None:
    jobs: list[PrimitiveJob[Any]]
    jobs = [pool.submit(fail, "a"), pool.submit(double, 1), pool.submit(fail, "b")]
    jobs += [PrimitiveJob(double, 2), pool.options(name="mine").submit(raise_fatal)]
    for job in jobs:
        if not job.in_final_state() and job.status() is not JobStatus.INITIALIZING:
            job.wait(PATIENCE)
    jobs[3].cancel()
    for fail_fast in (True, False):
        with pytest.raises(BaseExceptionGroup) as caught:
            gather(jobs, fail_fast=fail_fast)
        message = "4 of 5 jobs failed: fail, fail, double, mine"
        assert str(caught.value).startswith(message)
        errors = caught.value.exceptions
        assert [type(error) for error in errors] == [
            ValueError,
            ValueError,
            JobCancelledError,
            Fatal,
        ]
        assert errors[0] is jobs[0].exception()
        values, others = caught.value.split(ValueError)
        assert values is not None
        assert others is not None
        assert [str(error) for error in values.exceptions] == ["a", "b"]
        assert not isinstance(caught.value, Exception)
    with pytest.raises(ExceptionGroup):
        gather(jobs[:3])
    with pytest.raises(Fatal):
        gather([jobs[1], jobs[4], jobs[4]])


def test_without_fail_fast_all_are_waited_for(
    pools: tuple[JobPool, JobPool], tmp_path: Path
) -> None:
    many, one = pools
    gate = tmp_path / "gate"
    slow: PrimitiveJob[Any] = many.submit(hold, gate, 1)
    jobs: list[PrimitiveJob[Any]] = [many.submit(fail), slow, one.submit(double, 2)]
    thread, ends = in_thread(lambda: gather(jobs, fail_fast=False))
    jobs[0].wait(PATIENCE)
    jobs[2].wait(PATIENCE)
    gate.touch()
    thread.join(PATIENCE)
    assert [job.status().name for job in jobs] == ["ERROR", "DONE", "DONE"]
    assert isinstance(ends[0], ValueError)


def test_a_cancel_by_somebody_else_is_a_failure(two: JobPool, tmp_path: Path) -> None:
    jobs = [two.submit(hold, tmp_path / "never") for _ in range(4)]
    until(jobs[1].running, "RUNNING")
    thread, ends = in_thread(lambda: gather(jobs))
    until(watched(jobs[3]), "gather waits")
    assert jobs[1].cancel()
    thread.join(PATIENCE)
    assert isinstance(ends[0], JobCancelledError)
    assert all(job.cancelled() for job in jobs)


def test_an_unloadable_result_is_a_failure(two: JobPool, tmp_path: Path) -> None:
    held = two.submit(hold, tmp_path / "never")
    bad = two.submit(Unloadable)
    with pytest.raises(SerializationError, match="cannot be unpickled here"):
        gather([held, bad])
    assert held.cancelled()
    assert bad.done()
    dead = two.submit(os._exit, 3)
    unpicklable = two.submit(double, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(ExceptionGroup) as caught:
        gather([bad, dead, unpicklable], fail_fast=False)
    kinds = [type(error) for error in caught.value.exceptions]
    assert kinds == [SerializationError, WorkerDiedError, SerializationError]


def test_timeout(two: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs: list[PrimitiveJob[int]] = [two.submit(hold, gate, 1), two.submit(double, 4)]
    jobs[1].wait(PATIENCE)
    with pytest.raises(ResultTimeoutError, match=r"1 of 2 jobs are not final after 0.05 s"):
        gather(jobs, timeout=0.05)
    with pytest.raises(ResultTimeoutError, match=r"1 of 1 jobs"):
        race([jobs[0], jobs[0]], timeout=0)
    assert not jobs[0].in_final_state()
    assert not jobs[0]._tracker._waiters
    gate.touch()
    assert gather(jobs, timeout=PATIENCE) == [1, 8]


def test_unsubmitted(pool: JobPool) -> None:
    held = pool.submit(double, 1)
    for call in (gather, race):
        with pytest.raises(JobError, match="was not submitted"):
            call([held, PrimitiveJob(double, 1)])
    assert held.result(PATIENCE) == 2


# --- race -----------------------------------------------------------------------------------------


@pytest.mark.local
def test_the_first_result_wins(pools: tuple[JobPool, JobPool], tmp_path: Path) -> None:
    many, one = pools
    never = tmp_path / "never"
    losers = [
        pool.submit(hold_with_child, never, tmp_path / f"{n}") for n, pool in enumerate(pools)
    ]
    waiting = one.submit(double, 1)
    pids = [pid for n in range(2) for pid in pids_in(tmp_path / f"{n}")]
    failed = many.submit(fail)
    failed.wait(PATIENCE)
    winner: PrimitiveJob[Any] = many.submit(double, 5)
    entrants: list[PrimitiveJob[Any]] = [failed, *losers, waiting, winner, losers[0]]
    assert race(entrants) == 10
    assert all(gone(pid) for pid in pids)
    assert all(job.cancelled() for job in (*losers, waiting))
    assert winner.result() == 10


def test_of_several_that_are_done_the_first_wins(pool: JobPool) -> None:
    jobs = [pool.submit(double, n) for n in (1, 2, 3)]
    for job in jobs:
        job.wait(PATIENCE)
    ended = sorted(jobs, key=lambda job: job.history()[-1][1])
    assert race(reversed(ended)) == ended[0].result()
    assert race(reversed(ended), timeout=0) == ended[0].result()


def test_a_winner_that_cannot_be_unpickled_has_failed(two: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    slow: PrimitiveJob[Any] = two.submit(hold, gate, "slow")
    bad: PrimitiveJob[Any] = two.submit(Unloadable)
    thread, ends = in_thread(lambda: race([bad, slow]))
    bad.wait(PATIENCE)
    gate.touch()
    thread.join(PATIENCE)
    assert ends == ["slow"]
    with pytest.raises(SerializationError):
        race([bad])


def test_a_race_that_nobody_wins(pool: JobPool) -> None:
    jobs = [pool.options(name=f"n{n}").submit(fail, str(n)) for n in range(12)]
    with pytest.raises(ExceptionGroup, match=r"12 of 12 jobs failed: n0, .*, n9, 2 more") as caught:
        race(jobs)
    assert [str(error) for error in caught.value.exceptions] == [str(n) for n in range(12)]
    with pytest.raises(ValueError, match=r"^3$"):
        race([jobs[3]])
    with pytest.raises(ValueError, match=r"jobs must .*at least one"):
        race([])


# --- both -----------------------------------------------------------------------------------------


def test_the_others_have_their_grace(two: JobPool, tmp_path: Path) -> None:
    def clean_up(begun: Path, mark: Path) -> None:
        try:
            begun.touch()
            hold(tmp_path / "never")
        finally:
            mark.touch()

    careful = two.options(grace=PATIENCE)
    others = []
    for number in range(2):
        begun, mark = tmp_path / f"begun{number}", tmp_path / f"mark{number}"
        others.append((careful.submit(clean_up, begun, mark), mark))
        until(begun.exists, "it runs")
        if number == 0:
            with pytest.raises(ValueError, match="mine"):
                gather([others[0][0], two.submit(fail, "mine")])
        else:
            assert race([others[1][0], two.submit(double, 1)]) == 2
    assert all(job.cancelled() and mark.exists() for job, mark in others)


@pytest.mark.local
def test_on_the_pools_own_thread(
    make_pool: MakePool, pool: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = pool.submit(double, 1)
    job.wait(PATIENCE)
    with make_pool(1) as other:
        held = other.submit(hold, Path("/nowhere"))
        other._engine._own_threads.add(threading.get_ident())
        for call in (gather, race):
            with pytest.raises(JobError, match="own thread"):
                call([held])
        other._engine._own_threads.discard(threading.get_ident())
        held.cancel()


def test_nothing_is_kept_alive(pool: JobPool) -> None:
    gc.collect()
    gc.disable()
    try:
        jobs: list[PrimitiveJob[Any]] = [pool.submit(Plain), pool.submit(Plain)]
        seen = [weakref.ref(gather(jobs)[0]), weakref.ref(race(jobs)), *map(weakref.ref, jobs)]
        jobs = [pool.submit(Plain), pool.submit(raise_mine), pool.submit(raise_mine)]
        assert not gather([job for job in jobs if not job.wait(PATIENCE)])
        seen += [weakref.ref(jobs[0].result()), *map(weakref.ref, jobs)]
        errors = [error_of(gather, [*jobs]), error_of(gather, jobs[:2]), error_of(race, jobs[1:])]
        assert [isinstance(error, ExceptionGroup) for error in errors] == [True, False, True]
        jobs.clear()
        until(lambda: not any(ref() for ref in seen), "all are gone, errors or not")
        seen = [weakref.ref(error) for error in errors]
        errors.clear()
        # The pool's thread, which has told of the jobs' ends, may be about to let go of them.
        until(lambda: not any(ref() for ref in seen), "the errors are gone, too")
    finally:
        gc.enable()


def error_of(call: Callable[..., object], jobs: list[PrimitiveJob[Any]]) -> BaseException:
    """What a call raises. The caller's own frames, which it refers to, hold no job then."""
    try:
        call(jobs)
    except BaseException as error:
        return error
    finally:
        jobs.clear()
    raise AssertionError("nothing was raised")


# Python reports what is raised in a finalizer that way; it cannot be raised anywhere else.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", [gather, race])
@sampled(23)
def test_an_interrupt_while_it_waits_cancels_nothing(
    pool: JobPool, tmp_path: Path, call: Callable[..., Any], stride: int
) -> None:
    jobs: list[PrimitiveJob[int]] = []

    def attempt(place: int) -> bool:
        gate = tmp_path / str(place)
        job: PrimitiveJob[int] = pool.submit(hold, gate, 2 * place)
        jobs.append(job)

        def finish() -> None:
            until(watched(job), "somebody waits")
            gate.touch()

        finisher, _ = in_thread(finish)
        hit = interrupted(lambda: call([job]), place)
        assert job.result(PATIENCE) == 2 * place
        finisher.join()
        # The pool's thread takes a waiter off after it has told it.
        until(lambda: not job._tracker._waiters or hit, "nobody is left to be told")
        return hit

    assert interrupt_everywhere(attempt, stride) * stride > 230
    check_well(pool, jobs)


def test_a_failure_while_it_looks_for_the_others(
    two: JobPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_late(gate: Path) -> None:
        hold(gate)
        raise KeyError("late")

    gate = tmp_path / "gate"
    late = two.submit(fail_late, gate)
    until(late.running, "it runs")
    early = two.submit(fail, "early")
    early.wait(PATIENCE)
    look = PrimitiveJob.in_final_state

    def look_and_let_it_end(job: PrimitiveJob[Any]) -> bool:
        final = look(job)
        # From `stop_others`, and not only before it.
        if job is late and not final and sys._getframe(1).f_code.co_name == "stop_others":
            gate.touch()
            assert late.wait(PATIENCE)
        return final

    monkeypatch.setattr(PrimitiveJob, "in_final_state", look_and_let_it_end)
    with pytest.raises(Exception, match="2 of 2 jobs failed") as caught:
        gather([late, early])
    assert [type(error) for error in caught.value.exceptions] == [KeyError, ValueError]  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@sampled(41)
def test_an_interrupt_while_it_stops_the_others(two: JobPool, stride: int) -> None:
    jobs: list[PrimitiveJob[Any]] = []
    done = two.submit(double, 1)
    done.wait(PATIENCE)

    def attempt(place: int) -> bool:
        others: list[PrimitiveJob[Any]] = [two.submit(double, n) for n in range(3)]
        jobs.extend(others)
        return interrupted(lambda: race([*others, done]), place)

    assert interrupt_everywhere(attempt, stride) * stride > 410
    check_well(two, jobs)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no except* before Python 3.11")
def test_except_star(pool: JobPool) -> None:
    source = """
        try:
            gather([pool.submit(fail, "x"), pool.submit(divmod, 1, 0)], fail_fast=False)
        except* ValueError as group:
            found.append([str(error) for error in group.exceptions])
        except* ZeroDivisionError as group:
            found.append(len(group.exceptions))
    """
    found: list[object] = []
    exec(textwrap.dedent(source), {"gather": gather, "pool": pool, "fail": fail, "found": found})
    assert found == [["x"], 1]

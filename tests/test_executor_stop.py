"""`JobExecutor.terminate_workers` and `kill_workers`: those of Python 3.14, in every version."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from helpers import PATIENCE, expect, hold, until

from primitive_jobs import JobExecutor, JobStatus, PoolClosedError
from primitive_jobs.executor import JobFuture

if TYPE_CHECKING:
    from makers import MakeExecutor, MakePool

STOPS = {"terminate": JobExecutor.terminate_workers, "kill": JobExecutor.kill_workers}


def begin_and_clean_up(begun: Path, cleaned: Path) -> None:
    try:
        begun.touch()
        time.sleep(2 * PATIENCE)
    finally:
        cleaned.touch()


def begin_and_ignore_sigterm(begun: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begun.touch()
    time.sleep(2 * PATIENCE)


def pid_of(future: JobFuture[Any]) -> int:
    until(lambda: future.job.pid is not None, "its worker")
    pid = future.job.pid
    assert pid is not None
    return pid


@pytest.mark.local
@pytest.mark.parametrize("how", STOPS)
def test_all_ends_at_once(make_executor: MakeExecutor, how: str, tmp_path: Path) -> None:
    begun, cleaned = tmp_path / "begun", tmp_path / "cleaned"
    executor = make_executor(2)
    done = executor.submit(abs, -1)
    assert done.result(PATIENCE) == 1
    runs = executor.submit(begin_and_clean_up, begun, cleaned)
    until(begun.exists, "the call")
    worker = psutil.Process(pid_of(runs))
    queued = [executor.submit(hold, tmp_path / "never") for _ in range(3)]
    STOPS[how](executor)
    for future in (runs, *queued):
        until(future.done, "its end")
        assert future.cancelled()
        assert future.job.status() is JobStatus.CANCELLED
    assert done.result(0) == 1
    until(lambda: not worker.is_running(), "the worker's end")
    assert cleaned.exists() == (how == "terminate")
    with pytest.raises(PoolClosedError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, -1)
    STOPS[how](executor)  # again is allowed
    executor.shutdown()


def test_what_ignores_sigterm_is_killed_after_its_grace(
    make_pool: MakePool, tmp_path: Path
) -> None:
    with make_pool(1) as pool:
        executor = JobExecutor(pool=pool.options(grace=0.2))
        future = executor.submit(begin_and_ignore_sigterm, tmp_path / "begun")
        until((tmp_path / "begun").exists, "the call")
        executor.terminate_workers()
        until(future.done, "its end", PATIENCE)
        assert future.cancelled()


@pytest.mark.parametrize("how", STOPS)
def test_a_pool_that_was_given_goes_on(make_pool: MakePool, how: str, tmp_path: Path) -> None:
    with make_pool(2) as pool:
        other = pool.submit(hold, tmp_path / "gate", 5)
        until(other.running, "its start")
        executor = JobExecutor(pool=pool)
        future = executor.submit(hold, tmp_path / "never")
        STOPS[how](executor)
        until(future.done, "its end")
        assert future.cancelled()
        assert other.running()
        (tmp_path / "gate").touch()
        assert other.result(PATIENCE) == 5
        assert pool.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.local
def test_our_threads_begin_with_an_empty_context(tmp_path: Path) -> None:
    """Else they would hold, for a pool's life, what whoever made it has set."""
    source = """
import contextvars, gc, weakref
from primitive_jobs import JobExecutor, JobPool

class Big: pass

variable = contextvars.ContextVar("variable", default=None)
found = []

def look(_):
    found.append(variable.get())

def make():
    big = Big()
    variable.set(big)
    return JobPool(1), JobExecutor(1), weakref.ref(big)

pool, executor, big = contextvars.copy_context().run(make)
job = pool.submit(abs, -1)
job.add_done_callback(look)
executor.submit(abs, -1).add_done_callback(look)
executor.shutdown()
pool.shutdown()
print(found)

pool, executor, big = contextvars.copy_context().run(make)
gc.collect()
print(big())
pool.shutdown()
executor.shutdown()
"""
    expect(tmp_path, source, "[None, None]\nNone\n", flags="-X thread_inherit_context=1")

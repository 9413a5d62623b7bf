"""Where no worker can be reached any more: everything ends, and says why. A fleet of this machine
never says so; here it does all the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, double, hold, hold_and_tell, until

from primitive_jobs import (
    ClusterError,
    JobExecutor,
    JobFailuresWarning,
    JobPool,
    JobStatus,
    PoolClosedError,
    PrimitiveJob,
)
from primitive_jobs._engine.events import Broken
from primitive_jobs._engine.scheduler import Scheduler
from primitive_jobs._local.fleet import LocalFleet
from primitive_jobs._procs.process import WorkerConfig
from primitive_jobs.engine_pool import EnginePool, check_pool_options, engine_of

WHY = "the scheduler tcp://far:1 was lost: it is closed"


def lose(pool: EnginePool) -> None:
    engine_of(pool)._fleet._host.tell(Broken(ConnectionError(WHY)))  # type: ignore[attr-defined]


class NearPool(EnginePool):
    """Another kind of pool with an engine."""

    def __init__(self) -> None:
        self._options = check_pool_options(None)
        self._max_workers = 1
        self._shown = {}
        fleet = LocalFleet(WorkerConfig())
        self._start(Scheduler(1, None), fleet, on_exit="wait", seed=7)


def test_another_kind_has_all_of_it() -> None:
    with NearPool() as pool:
        assert pool.submit(double, 2).result(PATIENCE) == 4
        assert repr(pool) == "<NearPool max_workers=1 open: 0 queued, 0 running, 1 done>"
        assert "NearPool" in pool._repr_html_()
        pool.resize(2)
        assert pool._worker_count() == 2
        with pytest.raises(TypeError, match="a NearPool cannot be sent"):
            pool.__reduce__()
        assert [*pool.map(double, range(3))] == [0, 2, 4]
    with pytest.raises(PoolClosedError):
        pool.submit(double, 2)


def test_all_jobs_end_and_no_other_is_taken(tmp_path: Path) -> None:
    pool = JobPool(1)
    view = pool.options(retries=3)
    running: PrimitiveJob[Any] = view.submit(hold_and_tell, tmp_path / "never")
    waiting = view.submit(double, 1)
    until(running.running, "RUNNING")
    pid = running.pid
    assert pid is not None
    lose(pool)
    for job in (running, waiting):
        error = job.exception(PATIENCE)
        assert type(error) is ClusterError
        assert str(error) == f"job {job.name} ({job.job_id()}): {WHY}"
        assert [status for status, _ in job.history()][-1] is JobStatus.ERROR
    died = running.exception()
    assert isinstance(died, ClusterError)
    assert (died.pid, died.exitcode, died.node) == (pid, -9, None)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    for submit in (lambda: pool.submit(double, 1), lambda: pool.map(double, [1])):
        with pytest.raises(ClusterError) as caught:
            submit()
        assert str(caught.value) == WHY
    with JobExecutor(pool=pool) as executor, pytest.raises(ClusterError, match=WHY):
        executor.submit(double, 1)
    with pytest.raises(ClusterError):
        pool.resize(2)
    engine_of(pool).join()  # it ends by itself
    assert "shut down" in repr(pool)
    pool.shutdown()


def test_a_mapping_ends_by_it(tmp_path: Path) -> None:
    pool = JobPool(1)

    def items() -> Iterator[Path]:
        yield tmp_path / "never"
        lose(pool)
        until(lambda: not engine_of(pool).accepting, "the end")
        yield tmp_path / "never"

    results = pool.map(hold, items(), chunksize=1)
    with pytest.raises(ClusterError, match=WHY):
        next(results)
    pool.shutdown()


@pytest.mark.parametrize("ended", [False, True])
def test_what_nobody_looked_at_is_told_of(ended: bool, caplog: pytest.LogCaptureFixture) -> None:
    """As a warning and once on the logger, also where the pool had ended before its block did."""
    pool = JobPool(1)
    with pytest.warns(JobFailuresWarning, match=WHY), pool:  # noqa: PT031
        pool.submit(hold, Path("/never"))
        until(lambda: pool.snapshot().counts.running, "RUNNING")
        lose(pool)
        if ended:
            engine_of(pool).join()
    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if "nobody looked at it" in text and WHY in text]) == 1

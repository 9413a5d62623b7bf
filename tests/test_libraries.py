"""Real libraries, unchanged, over `JobExecutor` and `JobPool`: the serial run's numbers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import io
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import adaptive
import cloudpickle
import emcee
import numpy as np
import psutil
import pytest
from helpers import PATIENCE, hold, meet, traces, until
from scipy.integrate import quad_vec
from scipy.optimize import brute, differential_evolution, rosen
from tqdm import tqdm

from primitive_jobs import JobExecutor, JobPool, as_completed


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobPool]:
    """A pool of two that both run already."""
    with JobPool(2, idle_timeout=None, spare_workers=0) as shared:
        folder = tmp_path_factory.mktemp("meeting")
        jobs = [shared.submit(meet, folder, 2) for _ in range(2)]
        assert len({job.result(PATIENCE) for job in jobs}) == 2
        yield shared


@pytest.fixture
def executor(pool: JobPool) -> Iterator[JobExecutor]:
    with JobExecutor(pool=pool) as over_it:
        yield over_it


@pytest.fixture(params=["JobExecutor", "JobPool"])
def mapper(request: pytest.FixtureRequest, pool: JobPool, executor: JobExecutor) -> Any:
    """What has a `map`."""
    return executor if request.param == "JobExecutor" else pool


# A worker need not import this module, which takes all of these libraries.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
LOSS = 0.1  # of adaptive's learner, as it is after some 50 points


# --- SciPy ----------------------------------------------------------------------------------------


def test_differential_evolution(mapper: Any) -> None:
    def minimize(workers: Callable[..., Any]) -> Any:
        return differential_evolution(
            rosen, [(-2, 2)] * 3, seed=1, maxiter=8, updating="deferred", workers=workers
        )

    serial, ours = minimize(map), minimize(mapper.map)
    assert ours.nfev == serial.nfev > 300
    assert ours.fun == serial.fun
    assert (ours.x == serial.x).all()
    assert (ours.population == serial.population).all()


def test_differential_evolution_by_chunks(executor: JobExecutor) -> None:
    def minimize(workers: Callable[..., Any]) -> Any:
        return differential_evolution(
            rosen, [(-2, 2)] * 3, seed=1, maxiter=8, updating="deferred", workers=workers
        )

    ours = minimize(lambda function, rows: executor.map(function, rows, chunksize=20))
    assert (ours.x == minimize(map).x).all()


def test_an_error_in_the_objective_arrives_as_itself() -> None:
    def fail(x: Any) -> float:
        raise ZeroDivisionError("on purpose")

    with JobPool(1) as one, JobExecutor(pool=one) as executor:
        for mapper in (one, executor):
            with pytest.raises(ZeroDivisionError, match="on purpose"):
                differential_evolution(fail, [(-2, 2)], updating="deferred", workers=mapper.map)


def test_quad_vec(mapper: Any) -> None:
    def integrand(x: float) -> Any:
        return np.sin(np.arange(1, 4) * x) / math.sqrt(x + 0.01)

    serial, serial_error = quad_vec(integrand, 0, 10, workers=map)
    ours, error = quad_vec(integrand, 0, 10, workers=mapper.map)
    assert (ours == serial).all()
    assert error == serial_error


def test_brute(mapper: Any) -> None:
    grid = ((-2, 2, 0.5), (-2, 2, 0.5))
    serial = brute(rosen, grid, finish=None, full_output=True, workers=map)
    ours = brute(rosen, grid, finish=None, full_output=True, workers=mapper.map)
    assert ours[1] == serial[1]
    assert (ours[3] == serial[3]).all()


# --- emcee ----------------------------------------------------------------------------------------


def log_density(x: Any) -> tuple[float, float]:
    return -0.5 * float(np.sum(x**2)), float(np.sum(x))  # the second is a "blob"


def test_emcee(mapper: Any) -> None:
    start = np.random.default_rng(3).normal(size=(8, 2))

    def sample(pool: Any) -> Any:
        sampler = emcee.EnsembleSampler(8, 2, log_density, pool=pool)
        sampler.random_state = np.random.RandomState(4).get_state()
        sampler.run_mcmc(start, 20)
        return sampler

    serial, ours = sample(None), sample(mapper)
    assert (ours.get_chain() == serial.get_chain()).all()
    assert (ours.get_log_prob() == serial.get_log_prob()).all()
    assert (ours.get_blobs() == serial.get_blobs()).all()
    assert 0 < ours.acceptance_fraction.mean() < 1


# --- adaptive -------------------------------------------------------------------------------------


@pytest.fixture
def two() -> Iterator[JobExecutor]:
    """Workers for one test: a runner that has reached its goal stops those still at work."""
    with JobExecutor(2, spare_workers=0) as executor:
        yield executor


def peak(x: float) -> float:
    return x + 0.01 / (0.0001 + (x - 0.3) ** 2)


def check_points(learner: Any) -> None:
    """Whatever the order in which results came: each is right, and the steps are near the peak."""
    assert 10 <= learner.npoints < 1000
    assert all(value == peak(x) for x, value in learner.data.items())
    steps = np.diff(sorted(learner.data))
    assert steps.min() < 0.2 * steps.max()


def test_adaptive_with_one_task_at_a_time_is_the_serial_run(two: JobExecutor) -> None:
    learner = adaptive.Learner1D(peak, (-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=30, executor=two, ntasks=1)
    serial = adaptive.Learner1D(peak, (-1, 1))
    adaptive.runner.simple(serial, npoints_goal=30)
    assert dict(learner.data) == dict(serial.data)
    assert learner.loss() == serial.loss()


def test_adaptive_blocking(two: JobExecutor) -> None:
    learner = adaptive.Learner1D(peak, (-1, 1))
    adaptive.BlockingRunner(learner, loss_goal=LOSS, executor=two, ntasks=2)
    check_points(learner)


def test_adaptive_in_an_event_loop(two: JobExecutor) -> None:
    async def main() -> Any:
        learner = adaptive.Learner1D(peak, (-1, 1))
        runner = adaptive.AsyncRunner(learner, loss_goal=LOSS, executor=two, ntasks=2)
        await runner.task
        assert runner.status() == "finished"
        return learner

    check_points(asyncio.run(main()))


def mark_and_spin(marks: Path, x: float) -> float:
    (marks / str(os.getpid())).touch()
    while True:
        pass


def test_a_runner_of_adaptive_that_is_cancelled_stops_the_work(
    marks: Path, two: JobExecutor
) -> None:
    def both_run() -> bool:
        return len(traces(marks)) == 2

    async def main() -> None:
        learner = adaptive.Learner1D(functools.partial(mark_and_spin, marks), (-1, 1))
        runner = adaptive.AsyncRunner(learner, loss_goal=LOSS, executor=two, ntasks=2)
        await asyncio.to_thread(until, both_run, "both tasks")
        runner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await runner.task

    asyncio.run(main())
    pids = [int(mark.name) for mark in marks.iterdir()]
    until(lambda: not any(map(psutil.pid_exists, pids)), "the end of the work")


# --- tqdm -----------------------------------------------------------------------------------------


@pytest.fixture
def _no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tqdm's own thread, which lives as long as the process."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


@pytest.mark.usefixtures("_no_monitor")
def test_tqdm_over_jobs_and_futures(pool: JobPool, executor: JobExecutor) -> None:
    jobs = [pool.submit(pow, x, 2) for x in range(20)]
    futures = [executor.submit(pow, x, 2) for x in range(20)]
    for completed in (as_completed(jobs), concurrent.futures.as_completed(futures)):
        shown = io.StringIO()
        bar = tqdm(completed, total=20, file=shown)
        assert sorted(thing.result() for thing in bar) == [x * x for x in range(20)]
        assert "20/20" in shown.getvalue()


@pytest.mark.usefixtures("_no_monitor")
def test_tqdm_over_map(mapper: Any) -> None:
    shown = io.StringIO()
    assert list(tqdm(mapper.map(abs, range(-20, 0)), total=20, file=shown)) == [*range(20, 0, -1)]
    assert "20/20" in shown.getvalue()


# --- the standard library, where other tests do not look ------------------------------------------


def test_wait_over_futures_of_two_executors(
    pool: JobPool, executor: JobExecutor, tmp_path: Path
) -> None:
    with JobExecutor(pool=pool) as other:
        quick, slow = executor.submit(abs, -1), other.submit(hold, tmp_path / "gate")
        done, pending = concurrent.futures.wait(
            [quick, slow], PATIENCE, return_when=concurrent.futures.FIRST_COMPLETED
        )
        assert (done, pending) == ({quick}, {slow})
        (tmp_path / "gate").touch()

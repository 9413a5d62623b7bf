"""Any `BasePool` does where a pool is asked for, and its jobs know it by `PoolLink` alone."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import joblib
import pytest
from helpers import PATIENCE, double, fail, hold
from other_pool import Link, OtherPool

from primitive_jobs import (
    BasePool,
    JobExecutor,
    JobPool,
    JobStatus,
    PrimitiveJob,
    as_completed,
    gather,
    race,
    track,
    wait,
)
from primitive_jobs import joblib as joblib_backend
from primitive_jobs._engine.record import PoolLink
from primitive_jobs.base_pool import PoolView


@pytest.fixture
def other(two: JobPool) -> OtherPool:
    return OtherPool(two)


def test_a_pool_of_ours_is_one(pool: JobPool) -> None:
    assert isinstance(pool, BasePool)
    with pytest.raises(TypeError, match="abstract"):
        BasePool()  # type: ignore[abstract]


def test_the_link_here_has_what_the_protocol_says() -> None:
    names = {name for name in vars(PoolLink) if not name.startswith("_")}
    names |= {*PoolLink.__annotations__}
    has = {name for name in vars(Link) if not name.startswith("_")} | {"owner", "of_parent"}
    assert names == has | {"capacity", "seeds"}
    for name in names:
        method = inspect.getattr_static(Link, name, None)
        if inspect.isfunction(method):
            theirs = inspect.signature(getattr(PoolLink, name)).parameters
            assert [*inspect.signature(method).parameters] == [*theirs]


def test_jobs(other: OtherPool) -> None:
    assert other.submit(double, 1).result(PATIENCE) == 2
    view = other.options(name="n", metadata={"a": 1})
    assert isinstance(view, PoolView)
    job = PrimitiveJob(double, 2).submit(view)
    assert (job.name, job.metadata, job.result(PATIENCE)) == ("n", {"a": 1}, 4)
    assert [*other.map(double, range(5))] == [0, 2, 4, 6, 8]
    assert [*view.map(double, range(5), chunksize=2)] == [0, 2, 4, 6, 8]
    assert len(other.link.enlisted) >= 6


def test_a_cancel(other: OtherPool, tmp_path: Any) -> None:
    running = [other.submit(hold, tmp_path / "never") for _ in range(3)]
    assert {*other.jobs()} >= {*running}
    assert running[0].cancel()
    assert running[2].cancel()
    assert [job.status() for job in running[::2]] == [JobStatus.CANCELLED] * 2
    called: list[object] = []
    running[1].add_done_callback(called.append)
    other.cancel_all()
    assert running[1].cancelled()


def test_who_waits(other: OtherPool, tmp_path: Any) -> None:
    def jobs() -> list[PrimitiveJob[int]]:
        return [other.submit(double, n) for n in range(3)]

    assert gather(jobs()) == [0, 2, 4]
    assert sorted(job.result() for job in as_completed(jobs())) == [0, 2, 4]
    assert sorted(job.result() for job in track(jobs(), disable=True)) == [0, 2, 4]
    assert len(wait(jobs()).done) == 3
    never = other.submit(hold, tmp_path / "never")
    assert race([never, other.submit(double, 1)]) == 2
    assert never.cancelled()

    async def several() -> list[int]:
        return [await job for job in jobs()]

    assert asyncio.run(several()) == [0, 2, 4]
    with pytest.raises(ValueError, match="on purpose"):
        other.submit(fail).result(PATIENCE)


@pytest.mark.parametrize("with_options", [True, False])
def test_executors(other: OtherPool, with_options: bool) -> None:
    pool = other.options(timeout=PATIENCE) if with_options else other
    with JobExecutor(pool=pool) as executor:
        assert executor._max_workers == 2
        future = executor.submit(double, 1)
        assert future.result(PATIENCE) == 2
        assert [*executor.map(double, range(3))] == [0, 2, 4]
    assert other.submit(double, 2).result(PATIENCE) == 4
    assert len(other.link.enlisted) == 5


def test_joblib(other: OtherPool) -> None:
    joblib_backend.register()
    with joblib.parallel_config("primitive_jobs", pool=other):
        calls = (joblib.delayed(double)(n) for n in range(4))
        assert joblib.Parallel(n_jobs=2)(calls) == [0, 2, 4, 6]
    assert other.link.enlisted


def test_qiskit(other: OtherPool) -> None:
    pytest.importorskip("qiskit.primitives")
    from qiskit.circuit import QuantumCircuit
    from qiskit.primitives import StatevectorSampler

    from primitive_jobs.qiskit import PooledSampler

    circuit = QuantumCircuit(1)
    circuit.measure_all()
    (result,) = PooledSampler(StatevectorSampler(), other).run([circuit], shots=7).result()
    assert result.data.meas.get_counts() == {"0": 7}
    assert other.link.enlisted


def test_blocks() -> None:
    with OtherPool(JobPool(1)) as pool:
        job = pool.submit(double, 1)
    assert job.done()

    async def block() -> PrimitiveJob[int]:
        async with OtherPool(JobPool(1)) as pool:
            return pool.submit(double, 2)

    assert asyncio.run(block()).result(0) == 4

"""A cluster's parts are killed, frozen, taken away: what jobs end by, and what is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import PATIENCE, gone, until

pytest.importorskip("distributed")

from clusters import DaskCluster, Part, dask_cluster

from primitive_jobs import ClusterError, JobStatus, PrimitiveJob, WorkerDiedError
from primitive_jobs.cluster import ClusterPool


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """Two nodes of one thread."""
    with dask_cluster(tmp_path, 2) as made:
        yield made


def hold(folder: Path, name: str, *, session: bool = False) -> str:
    """A job that notes its start, and ends when it may; with a child, maybe in a session."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(1000)"],
        start_new_session=session,
    )
    with (folder / f"{name}.starts").open("a") as file:
        file.write(f"{os.getpid()} {child.pid}\n")
    while not (folder / "end").exists():
        time.sleep(0.005)
    child.kill()
    child.wait()
    return name


def starts(folder: Path, name: str) -> list[list[int]]:
    """The processes of each start of a job."""
    path = folder / f"{name}.starts"
    return (
        [[*map(int, line.split())] for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


def is_running(job: PrimitiveJob[Any], folder: Path) -> Callable[[], bool]:
    return lambda: job.running() and bool(starts(folder, job.name))


def submit(
    pool: ClusterPool, folder: Path, name: str, *, session: bool = False, **options: Any
) -> PrimitiveJob[str]:
    return pool.options(name=name, **options).submit(hold, folder, name, session=session)


def start_two(pool: ClusterPool, folder: Path, **options: Any) -> list[PrimitiveJob[str]]:
    """Two jobs, each running on a node of its own."""
    jobs = [submit(pool, folder, name, **options) for name in ("first", "second")]
    for job in jobs:
        until(is_running(job, folder), f"the start of {job.name}")
    assert jobs[0].node != jobs[1].node
    return jobs


def node_of(cluster: DaskCluster, job: PrimitiveJob[Any]) -> Part:
    (found,) = (node for node in cluster.nodes if node.address == job.node)
    return found


def all_gone(folder: Path, name: str, start: int = 0) -> bool:
    return all(map(gone, starts(folder, name)[start]))


def test_a_node_is_killed(cluster: DaskCluster, tmp_path: Path) -> None:
    """Its job ends, with all that it had started; the other node's goes on; the queue too."""
    with ClusterPool(cluster.address, 2) as pool:
        first, second = start_two(pool, tmp_path)
        waiting = [submit(pool, tmp_path, f"waiting{n}") for n in range(3)]
        node = node_of(cluster, first)
        began = time.monotonic()
        node.kill()
        error = first.exception(PATIENCE)
        assert time.monotonic() - began < 5
        assert type(error) is WorkerDiedError
        assert (error.node, error.pid) == (node.address, starts(tmp_path, "first")[0][0])
        assert "first" in str(error)
        assert f"its node {node.address} was lost" in str(error)
        until(lambda: all_gone(tmp_path, "first"), "the end of its processes")
        assert second.running()
        (tmp_path / "end").touch()
        assert second.result(PATIENCE) == "second"
        assert [job.result(PATIENCE) for job in waiting] == ["waiting0", "waiting1", "waiting2"]
    for name in ("second", "waiting0", "waiting1", "waiting2"):
        assert len(starts(tmp_path, name)) == 1
        assert all_gone(tmp_path, name)


def test_a_retry_runs_on_another_node(cluster: DaskCluster, tmp_path: Path) -> None:
    with ClusterPool(cluster.address, 2) as pool:
        first, second = start_two(pool, tmp_path, retries=1)
        lost = node_of(cluster, first)
        lost.kill()
        second.cancel()
        until(lambda: len(starts(tmp_path, "first")) == 2, "its second start")
        assert all_gone(tmp_path, "first")
        (tmp_path / "end").touch()
        assert first.result(PATIENCE) == "first"
        assert first.attempts == 2
        assert second.status() is JobStatus.CANCELLED


@pytest.mark.parametrize("nanny", [False, True])
def test_a_node_is_asked_to_end(tmp_path: Path, nanny: bool) -> None:
    """By SIGTERM, as batch systems do."""
    with dask_cluster(tmp_path, 0) as cluster:
        cluster.add({"nanny": nanny})
        with ClusterPool(cluster.address, 1) as pool:
            job = submit(pool, tmp_path, "job", session=True)
            until(is_running(job, tmp_path), "its start")
            cluster.nodes[0].kill(signal.SIGTERM)
            assert isinstance(job.exception(PATIENCE), WorkerDiedError)
            until(lambda: all_gone(tmp_path, "job"), "its end")
            late = submit(pool, tmp_path, "late")
            assert late.status() is JobStatus.QUEUED
            cluster.add({})
            (tmp_path / "end").touch()
            assert late.result(PATIENCE) == "late"


def test_the_worker_of_a_nanny_is_killed(tmp_path: Path) -> None:
    with dask_cluster(tmp_path, 0) as cluster:
        cluster.add({"nanny": True})
        with ClusterPool(cluster.address, 1) as pool:
            job = submit(pool, tmp_path, "job")
            until(is_running(job, tmp_path), "its start")
            parent = psutil.Process(starts(tmp_path, "job")[0][0]).parent()
            assert parent is not None
            assert parent.pid != cluster.nodes[0].pid
            parent.kill()
            assert isinstance(job.exception(PATIENCE), WorkerDiedError)
            until(lambda: all_gone(tmp_path, "job"), "its end")
            (tmp_path / "end").touch()
            assert submit(pool, tmp_path, "next").result(2 * PATIENCE) == "next"


@pytest.mark.parametrize("what", ["retire_workers", "restart"])
def test_dask_takes_nodes_away(cluster: DaskCluster, tmp_path: Path, what: str) -> None:
    from distributed import Client

    with ClusterPool(cluster.address, 2) as pool:
        first, second = start_two(pool, tmp_path, session=True)
        with Client(cluster.address, set_as_default=False) as client:
            if what == "restart":
                with contextlib.suppress(Exception):  # nodes without nannies do not come again
                    client.restart(timeout=5, wait_for_workers=False)
            else:
                client.retire_workers([node.address for node in cluster.nodes])
        for job in (first, second):
            assert isinstance(job.exception(PATIENCE), WorkerDiedError)
            until(lambda name=job.name: all_gone(tmp_path, name), "its end")  # type: ignore[misc]


def test_the_scheduler_is_killed(cluster: DaskCluster, tmp_path: Path) -> None:
    pool = ClusterPool(cluster.address, 2)
    with pool:
        running = start_two(pool, tmp_path, retries=3, session=True)
        waiting = submit(pool, tmp_path, "waiting")
        cluster.scheduler.kill()
        for job in (*running, waiting):
            error = job.exception(PATIENCE)
            assert type(error) is ClusterError
            assert job.name in str(error)
            assert "scheduler" in str(error)
        for job in running:
            until(lambda name=job.name: all_gone(tmp_path, name), "its end")  # type: ignore[misc]
        with pytest.raises(ClusterError, match="scheduler"):
            pool.submit(abs, 1)
    assert not starts(tmp_path, "waiting")


def test_there_is_no_scheduler() -> None:
    with ClusterPool("tcp://127.0.0.1:9", 1) as pool:
        job = pool.submit(abs, 1)
        error = job.exception(2 * PATIENCE)
        assert type(error) is ClusterError
        assert "tcp://127.0.0.1:9" in str(error)


def test_the_pool_ends_while_there_is_no_scheduler() -> None:
    """Nobody waits until it is given up."""
    began = time.monotonic()
    with ClusterPool("tcp://127.0.0.1:9", 1) as pool:
        job = pool.submit(abs, 1)
        pool.shutdown(cancel=True)
    assert job.status() is JobStatus.CANCELLED
    assert time.monotonic() - began < 5


CLIENT = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from test_cluster_failures import submit
from primitive_jobs.cluster import ClusterPool

if __name__ == "__main__":
    pool = ClusterPool({address!r}, 2)
    jobs = [submit(pool, Path({folder!r}), "of the client") for _ in range(3)]
    print(jobs[0].result())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_client_is_killed(cluster: DaskCluster, tmp_path: Path, number: int) -> None:
    """Its jobs end, and hold no place any more; another client's job is unharmed."""
    with ClusterPool(cluster.address, 1) as pool:
        mine = submit(pool, tmp_path, "mine")
        until(is_running(mine, tmp_path), "its start")
        (tmp_path / "client").mkdir()
        code = CLIENT.format(
            paths=[str(Path(__file__).parent)], address=cluster.address, folder=str(tmp_path)
        )
        script = tmp_path / "client" / "client.py"
        script.write_text(code)
        client = subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        until(lambda: starts(tmp_path, "of the client"), "the start of the client's job")
        client.send_signal(number)
        client.communicate(timeout=PATIENCE)
        until(lambda: all_gone(tmp_path, "of the client"), "its end")
        assert mine.running()
        (tmp_path / "end").touch()
        assert mine.result(PATIENCE) == "mine"
        # Both places are free.
        pool.resize(2)
        jobs = [submit(pool, tmp_path, f"later{n}") for n in range(2)]
        assert [job.result(PATIENCE) for job in jobs] == ["later0", "later1"]
    assert len(starts(tmp_path, "of the client")) == 1


def test_the_package_is_missing_on_a_node(tmp_path: Path) -> None:
    with dask_cluster(tmp_path, 0) as cluster:
        hide = "import sys; sys.modules['primitive_jobs'] = None"
        (tmp_path / "hidden").mkdir()
        (tmp_path / "hidden" / "sitecustomize.py").write_text(hide)
        cluster.env = {"PYTHONPATH": str(tmp_path / "hidden")}
        cluster.add({})
        with ClusterPool(cluster.address, 1) as pool:
            error = pool.submit(abs, 1).exception(PATIENCE)
            assert isinstance(error, WorkerDiedError)
            assert "primitive_jobs" in str(error)
            assert "ModuleNotFoundError" in str(error)


def test_a_node_that_is_killed_while_a_worker_gets_ready(
    cluster: DaskCluster, tmp_path: Path
) -> None:
    with ClusterPool(
        cluster.address, 1, initializer=hold, initargs=(tmp_path, "initializer")
    ) as pool:
        job = pool.submit(abs, -1)
        until(lambda: starts(tmp_path, "initializer"), "the initializer")
        parent = psutil.Process(starts(tmp_path, "initializer")[0][0]).parent()
        assert parent is not None
        parent.kill()
        until(lambda: len(starts(tmp_path, "initializer")) == 2, "another one")
        assert all_gone(tmp_path, "initializer")
        assert job.status() is JobStatus.QUEUED
        (tmp_path / "end").touch()
        assert job.result(PATIENCE) == 1

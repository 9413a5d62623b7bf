"""Nodes and clients that fall silent: nothing of a job runs any more when its end is told."""

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

import pytest
from beats import END, beat, of_one
from helpers import PATIENCE, gone, until

pytest.importorskip("distributed")

from clusters import DaskCluster, Part, dask_cluster, left_on, path_of
from networks import HUB, Network, NoNetwork, network

from primitive_jobs import PrimitiveJob, WorkerDiedError
from primitive_jobs.cluster import ClusterPool

TIMEOUT = 2.0  # s after which a node is lost
LATE = 1.0  # s that the guard may be late on a busy machine: the pool waits for so long

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """Two nodes of one thread."""
    with dask_cluster(tmp_path, 2) as made:
        yield made


def start(
    pool: ClusterPool, folder: Path, name: str, processes: int = 1, **options: Any
) -> PrimitiveJob[str]:
    """A job that runs until the file ``end`` is there."""
    job = pool.options(name=name, **options).submit(beat, folder, name, breed=processes > 1)
    until(lambda: job.running() and len(of_one(folder, name)) == processes, f"the start of {name}")
    return job


def part_of(cluster: DaskCluster, job: PrimitiveJob[Any]) -> Part:
    (found,) = (node for node in cluster.nodes if node.address == job.node)
    return found


def end_all(folder: Path) -> None:
    (folder / END).touch()


@contextlib.contextmanager
def frozen(process: Part | subprocess.Popen[str]) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


def check_usable(pool: ClusterPool, cluster: DaskCluster, folder: Path, name: str) -> None:
    """A pool gets a place on each node, and each job there runs once."""
    jobs = [start(pool, folder, f"{name}{n}") for n in range(2)]
    assert {job.node for job in jobs} == {node.address for node in cluster.nodes}
    end_all(folder)
    assert [job.result(PATIENCE) for job in jobs] == [f"{name}0", f"{name}1"]
    (folder / END).unlink()
    for n in range(2):
        assert len(of_one(folder, f"{name}{n}")) == 1


def check_nothing_left(cluster: DaskCluster) -> None:
    until(lambda: not any(map(left_on, cluster.nodes)), "the end of all processes of a node")


def test_a_node_is_frozen(cluster: DaskCluster, marks: Path) -> None:
    """Its guard kills the job; the client hears of the end only when that must have happened."""
    with ClusterPool(cluster.address, 2, node_timeout=TIMEOUT) as pool:
        job, other = (start(pool, marks, name, 2) for name in ("job", "other"))
        node = part_of(cluster, job)
        with frozen(node):
            stopped = time.monotonic()
            before = of_one(marks, "job")
            until(lambda: all(gone(span.pid) for span in before), "the end of its processes")
            killed = time.monotonic()
            assert job.running()
            # A lease of this length had at most a third of it behind it.
            assert stopped + TIMEOUT / 2 < killed < stopped + TIMEOUT + LATE
            error = job.exception(PATIENCE)
            assert time.monotonic() < stopped + 2 * TIMEOUT + LATE + 2
            assert type(error) is WorkerDiedError
            assert error.node == node.address
            assert "silent for 2 s" in str(error)
            assert max(span.seen for span in of_one(marks, "job")) < killed
            assert other.running()
        end_all(marks)
        assert other.result(PATIENCE) == "other"
        (marks / END).unlink()
        check_usable(pool, cluster, marks, "same pool")
    with ClusterPool(cluster.address, 2, node_timeout=TIMEOUT) as pool:
        check_usable(pool, cluster, marks, "other pool")
    assert len(of_one(marks, "job")) == 2
    check_nothing_left(cluster)


def test_a_retry_begins_when_nothing_runs_on_the_frozen_node(
    cluster: DaskCluster, marks: Path
) -> None:
    with ClusterPool(cluster.address, 2, node_timeout=TIMEOUT) as pool:
        job = start(pool, marks, "job", 2, retries=1)
        node = part_of(cluster, job)
        with frozen(node):
            until(lambda: job.running() and len(of_one(marks, "job")) == 4, "its second attempt")
            assert job.node != node.address
        time.sleep(0.5)  # what the node finds when it goes on does nothing
        assert job.running()
        end_all(marks)
        assert job.result(PATIENCE) == "job"
        assert job.attempts == 2
        first, second = of_one(marks, "job")[:2], of_one(marks, "job")[2:]
        assert len(second) == 2
        assert max(span.seen for span in first) < min(span.began for span in second)
        (marks / END).unlink()
        check_usable(pool, cluster, marks, "later")
    check_nothing_left(cluster)


def test_no_place_is_on_a_node_that_is_silent(tmp_path: Path, marks: Path) -> None:
    """Though it is the idlest of all, as Dask sees it; once it is there again it has places."""
    with dask_cluster(tmp_path, 1) as cluster:
        with ClusterPool(cluster.address, 5, node_timeout=TIMEOUT) as pool:
            first = start(pool, marks, "first", retries=1)
            (silent,) = cluster.nodes
            with frozen(silent):
                (other,) = cluster.add({"nthreads": 4})
                until(
                    lambda: first.running() and len(of_one(marks, "first")) == 2,
                    "its second attempt",
                )
                jobs = [start(pool, marks, f"job{n}") for n in range(3)]
                assert {job.node for job in (first, *jobs)} == {other.address}
            connection = pool._fleet._connection
            until(lambda: not connection._places._silent, "its return")
            assert start(pool, marks, "late").node == silent.address
            end_all(marks)
            assert first.result(PATIENCE) == "first"
        check_nothing_left(cluster)


def test_a_node_is_frozen_for_a_moment(cluster: DaskCluster, marks: Path) -> None:
    """For less than the timeout, again and again: nothing happens."""
    with ClusterPool(cluster.address, 2, node_timeout=4.0) as pool:
        job = start(pool, marks, "job")
        for _ in range(3):
            with frozen(part_of(cluster, job)):
                time.sleep(1.5)
            time.sleep(0.5)
        assert job.running()
        end_all(marks)
        assert job.result(PATIENCE) == "job"
        assert len(of_one(marks, "job")) == 1


CLIENT = """
import sys
from pathlib import Path
from beats import beat
from primitive_jobs.cluster import ClusterPool

if __name__ == "__main__":
    address, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    with ClusterPool(address, 1, node_timeout=seconds) as pool:
        jobs = [
            pool.options(name="first").submit(beat, folder, "first", breed=True),
            pool.options(name="waits").submit(beat, folder, "waits", 0.1),
        ]
        for job in jobs:
            error = job.exception(60)
            print(type(error).__name__, error, flush=True)
        print(pool.submit(beat, folder, "late", 0.1).result(60), flush=True)
"""


@contextlib.contextmanager
def client(cluster: DaskCluster, folder: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another program with a pool, whose first job runs already."""
    file = folder.parent / "client.py"
    file.write_text(CLIENT)
    with subprocess.Popen(
        [sys.executable, str(file), cluster.address, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path_of(Path(__file__).parent)},
    ) as process:
        try:
            until(lambda: len(of_one(folder, "first")) == 2, "the start of the client's job")
            yield process
        finally:
            process.kill()


def test_the_client_is_frozen(cluster: DaskCluster, marks: Path) -> None:
    """The node ends its jobs, nobody else's; when it goes on it is told, and works."""
    with (
        ClusterPool(cluster.address, 1, node_timeout=TIMEOUT) as pool,
        client(cluster, marks, TIMEOUT) as process,
    ):
        mine = start(pool, marks, "mine")
        with frozen(process):
            stopped = time.monotonic()
            pids = [span.pid for span in of_one(marks, "first")]
            until(lambda: all(map(gone, pids)), "the end of the client's job")
            assert stopped + TIMEOUT / 2 < time.monotonic() < stopped + TIMEOUT + LATE
            assert mine.running()
            # Its place is free.
            pool.resize(2)
            second = start(pool, marks, "second")
            assert mine.running()
            assert second.cancel()
            pool.resize(1)
        out, _ = process.communicate(timeout=PATIENCE)
        first, waits, late = out.splitlines()
        assert first.startswith("WorkerDiedError")
        assert "job first" in first
        assert waits == "NoneType None"
        assert late == "late"
        assert mine.running()
        end_all(marks)
        assert mine.result(PATIENCE) == "mine"
    assert [len(of_one(marks, name)) for name in ("first", "waits", "late")] == [2, 1, 1]
    check_nothing_left(cluster)


def test_the_client_is_frozen_for_a_moment(cluster: DaskCluster, marks: Path) -> None:
    with client(cluster, marks, 4.0) as process:
        for _ in range(3):
            with frozen(process):
                time.sleep(1.5)
            time.sleep(0.5)
        end_all(marks)
        out, _ = process.communicate(timeout=PATIENCE)
        assert out.splitlines() == ["NoneType None", "NoneType None", "late"]
    assert [len(of_one(marks, name)) for name in ("first", "waits", "late")] == [2, 1, 1]


# --- networks that break --------------------------------------------------------------------------


class Apart:
    """A cluster whose scheduler is at the hub of a network, each of its two nodes on a machine."""

    def __init__(self, net: Network, folder: Path, env: dict[str, str]) -> None:
        self.net = net
        self.cluster = net.at(0, lambda: DaskCluster(folder, 0, env, host=HUB))

    def add(self, machine: int) -> Part:
        options = {"host": f"10.77.{machine}.2"}
        (made,) = self.net.at(machine, lambda: self.cluster.add(options))
        return made

    def machine_of(self, job: PrimitiveJob[Any]) -> int:
        assert job.node is not None
        (found,) = (n for n in (1, 2) if f"//10.77.{n}.2:" in job.node)
        return found


MakeApart = Callable[..., Apart]


@pytest.fixture
def make_apart(tmp_path: Path) -> Iterator[MakeApart]:
    made: list[Apart] = []
    with contextlib.ExitStack() as stack:
        try:
            net = stack.enter_context(network(2))
        except NoNetwork as error:
            pytest.skip(str(error))

        def make(**env: str) -> Apart:
            apart = Apart(net, tmp_path, env)
            made.append(apart)
            for machine in (1, 2):
                apart.add(machine)
            return apart

        try:
            yield make
        finally:
            for each in made:
                each.cluster.close()


def check_cut(apart: Apart, pool: ClusterPool, folder: Path, name: str, how: str) -> None:
    """Cut off the node of a job: its processes are gone in time, and the job ends or goes later."""
    (job,) = (job for job in pool.jobs() if job.name == name)
    node, machine, before = job.node, apart.machine_of(job), of_one(folder, name)
    apart.net.cut(machine, how)
    cut = time.monotonic()
    until(lambda: all(gone(span.pid) for span in before), "the end of its processes")
    killed = time.monotonic()
    assert cut + TIMEOUT / 2 < killed < cut + TIMEOUT + LATE
    assert job.running()
    assert job.node == node
    assert max(span.seen for span in of_one(folder, name)[:2]) < killed


@pytest.mark.parametrize("how", ["down", "to", "from"])
def test_a_node_is_cut_off(make_apart: MakeApart, marks: Path, how: str) -> None:
    """Link down, or packets lost one way; later it is there again, and takes work again."""
    apart = make_apart()

    def run() -> None:
        with ClusterPool(apart.cluster.address, 2, node_timeout=TIMEOUT) as pool:
            one = start(pool, marks, "one", 2)
            two = start(pool, marks, "two", 2, retries=1)
            lost = apart.machine_of(one)
            check_cut(apart, pool, marks, "one", how)
            error = one.exception(PATIENCE)
            assert type(error) is WorkerDiedError
            assert "silent for 2 s" in str(error)
            assert two.running()
            apart.net.mend(lost, how)
            # Dask has not noticed anything. Only that node has a place; the worker stays, idle.
            assert pool.submit(beat, marks, "three", 0.1).result(PATIENCE) == "three"
            assert two.running()
            lost = apart.machine_of(two)
            check_cut(apart, pool, marks, "two", how)
            until(lambda: two.running() and len(of_one(marks, "two")) == 4, "its second attempt")
            assert apart.machine_of(two) != lost
            apart.net.mend(lost, how)
            time.sleep(1.0)  # what the node has missed arrives
            assert two.running()
            end_all(marks)
            assert two.result(PATIENCE) == "two"
            first, second = of_one(marks, "two")[:2], of_one(marks, "two")[2:]
            assert max(span.seen for span in first) < min(span.began for span in second)
            assert len(second) == 2
            assert len(of_one(marks, "one")) == 2
            (marks / END).unlink()
            check_usable(pool, apart.cluster, marks, "later")
        check_nothing_left(apart.cluster)

    apart.net.at(0, run)


def test_dask_gives_up_a_node_that_is_cut_off(make_apart: MakeApart, marks: Path) -> None:
    """That node ends when it is there again, as Dask has it; another one takes the work."""
    apart = make_apart(DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP="11s")

    def run() -> None:
        with ClusterPool(apart.cluster.address, 2, node_timeout=TIMEOUT) as pool:
            start(pool, marks, "job", 2, retries=1)
            other = start(pool, marks, "other")
            (job,) = (job for job in pool.jobs() if job.name == "job")
            lost, node = apart.machine_of(job), part_of(apart.cluster, job)
            check_cut(apart, pool, marks, "job", "down")
            assert node.process.wait(PATIENCE) is not None
            assert len(of_one(marks, "job")) == 2  # there was no place for it
            apart.net.mend(lost, "down")
            apart.cluster.nodes.remove(node)
            node.close()
            apart.add(lost)
            until(lambda: job.running() and len(of_one(marks, "job")) == 4, "its second attempt")
            assert other.running()
            end_all(marks)
            assert [each.result(PATIENCE) for each in (job, other)] == ["job", "other"]
            first, second = of_one(marks, "job")[:2], of_one(marks, "job")[2:]
            assert max(span.seen for span in first) < min(span.began for span in second)
        check_nothing_left(apart.cluster)

    apart.net.at(0, run)

"""`ClusterPool`: what holds for jobs on one machine holds on several."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, until

pytest.importorskip("distributed")

from clusters import DaskCluster, dask_cluster
from test_cluster_failures import all_gone, is_running, start_two, starts, submit

from primitive_jobs import (
    JobExecutor,
    JobPool,
    JobStatus,
    SerializationError,
    WorkerDiedError,
    checkpoint,
    current_job,
    gather,
    job_rng,
    resume,
    share,
)
from primitive_jobs.cluster import ClusterPool
from primitive_jobs.cluster.line import Frame, Line


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Two nodes of two threads."""
    with dask_cluster(tmp_path_factory.mktemp("cluster"), 0) as made:
        made.add(*[{"nthreads": 2, "resources": {"GPU": 1}}] * 2)
        yield made


@pytest.fixture
def pool(cluster: DaskCluster) -> Iterator[ClusterPool]:
    with ClusterPool(cluster.address, 2) as made:
        yield made
        made.shutdown(cancel=True)


def scheduler_state(cluster: DaskCluster) -> dict[str, Any]:
    """What the scheduler and the nodes have of ours."""
    from distributed import Client

    def look(dask_scheduler: Any) -> dict[str, Any]:
        return {
            "tasks": [str(key) for key in dask_scheduler.tasks],
            "plugins": [n for n in dask_scheduler.plugins if "primitive" in n],
            "handlers": [n for n in dask_scheduler.handlers if "primitive" in n],
            "clients": [n for n in dask_scheduler.clients if "primitive" in n],
        }

    def look_at_node() -> list[str]:
        return [t.name for t in threading.enumerate() if "primitive" in t.name]

    with Client(cluster.address, set_as_default=False) as client:
        state: dict[str, Any] = client.run_on_scheduler(look)
        state["threads"] = [n for names in client.run(look_at_node).values() for n in names]
    return state


def test_nothing_is_left_in_the_cluster(cluster: DaskCluster, tmp_path: Path) -> None:
    for _ in range(2):
        with ClusterPool(cluster.address, 3) as pool:
            jobs = [pool.submit(abs, -n) for n in range(20)]
            killed = submit(pool, tmp_path, "killed", session=True)
            until(is_running(killed, tmp_path), "its start")
            killed.cancel()
            assert [job.result(PATIENCE) for job in jobs] == list(range(20))
        until(lambda: not any(scheduler_state(cluster).values()), "an empty scheduler")
    assert all_gone(tmp_path, "killed")


def test_what_takes_the_places_of_whom(pool: ClusterPool, tmp_path: Path) -> None:
    first, second = start_two(pool, tmp_path)
    snapshot = pool.snapshot()
    assert {worker.node for worker in snapshot.workers} == {first.node, second.node}
    assert {(job.id, job.node) for job in snapshot.jobs} == {
        (job.job_id(), job.node) for job in (first, second)
    }
    assert "ClusterPool" in repr(pool)
    assert "scheduler" in pool._repr_html_()
    (tmp_path / "end").touch()
    assert first.result(PATIENCE) == "first"
    assert first.node is None


def test_as_many_workers_as_the_cluster_has_threads(cluster: DaskCluster, tmp_path: Path) -> None:
    with ClusterPool(cluster.address) as pool:
        names = [f"job{n}" for n in range(6)]
        jobs = [submit(pool, tmp_path, name) for name in names]
        until(lambda: sum(job.running() for job in jobs) == 4, "four that run")
        time.sleep(0.1)
        assert sum(job.running() for job in jobs) == 4
        (node,) = cluster.add({"nthreads": 2})
        until(lambda: all(job.running() for job in jobs), "six that run")
        (tmp_path / "end").touch()
        assert [job.result(PATIENCE) for job in jobs] == names
        pool.resize(1)
        cluster.nodes.remove(node)
        node.close()
        assert pool.options(retries=3).submit(abs, -1).result(PATIENCE) == 1
        assert "max_workers=1 " in repr(pool)


def test_a_job_is_tried_again_after_its_own_exception(pool: ClusterPool, tmp_path: Path) -> None:
    class Mine(Exception):
        pass

    def attempts() -> tuple[int, Any]:
        job = current_job()
        assert job is not None
        found = resume(default=None)
        checkpoint(job.attempt, force=True)
        if job.attempt < 3:
            raise Mine(f"no {job.attempt}")
        return job.attempt, found

    view = pool.options(retries=2, retry_on=Mine, retry_delay=0.05)
    job = view.submit(attempts)
    assert job.result(PATIENCE) == (3, 2)
    assert job.attempts == 3
    again = ["QUEUED", "RUNNING"]
    assert [status.name for status, _ in job.history()][2:] == [*again * 3, "DONE"]
    lost = view.options(retries=1).submit(attempts)
    error = lost.exception(PATIENCE)
    assert isinstance(error, Mine)
    (note,) = error.__notes__
    assert note.startswith("attempt 1 raised Mine: no 1 (test_cluster.py, line ")
    waits = view.options(retry_delay=60).submit(attempts)
    until(lambda: str(waits.waiting_for).startswith("retry in"), "its delay")
    assert waits.cancel()
    assert list(view.map(abs, [-1, -2])) == [1, 2]


def raise_it() -> None:
    raise ValueError("from afar")


@pytest.mark.parametrize("needs", [{"cpus": 2}, {"memory": "1 GB"}])
def test_what_a_job_cannot_need_there(pool: ClusterPool, needs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is for jobs on this machine"):
        pool.options(**needs).submit(abs, 1)
    assert pool.jobs() == []


def test_an_exception_comes_with_its_traceback(pool: ClusterPool) -> None:
    error = pool.submit(raise_it).exception(PATIENCE)
    assert isinstance(error, ValueError)
    assert "raise_it" in str(error.__cause__)


def test_values_of_any_size(pool: ClusterPool) -> None:
    np = pytest.importorskip("numpy")
    for size in (0, 10, 10_000, 3_000_000):
        data = os.urandom(size)
        assert pool.submit(bytes, data).result(PATIENCE) == data
        array = np.arange(size)
        result = pool.submit(np.negative, array).result(PATIENCE)
        assert (result == -array).all()
        result[:] = 1  # it can be written to, as a local one's


def length_of(value: bytes, other: dict[str, bytes]) -> int:
    assert other["inner"] == value
    return len(value)


def count_frames(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[Frame]:
    """The frames of one kind that are sent from now on."""
    said: list[Frame] = []
    send = Line.send

    def note(line: Line, frame: Frame, *more: Any) -> None:
        if frame["frame"] == kind:
            said.append(frame)
        send(line, frame, *more)

    monkeypatch.setattr(Line, "send", note)
    return said


def test_shared_data_goes_to_a_node_once(
    cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = share(bytes(1_000_000))
    holder = share({"inner": value})
    with ClusterPool(cluster.address, 4) as pool:
        said = count_frames(monkeypatch, "share")
        jobs = [pool.submit(length_of, value, holder) for _ in range(40)]
        assert {job.result(PATIENCE) for job in jobs} == {1_000_000}
        assert len(said) == 2 * len(pool._fleet._links)
        del value, holder, jobs
        pool.submit(abs, 1).result(PATIENCE)
        links = pool._fleet._links.values()
        until(lambda: not any(link.shared for link in links), "that it is forgotten")


def test_a_socket_cannot_go_there(pool: ClusterPool) -> None:
    import socket

    one, two = socket.socketpair()
    with one, two:
        error = pool.submit(repr, one).exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert "another machine" in str(error)


def remember(value: str) -> None:
    sys.remembered = value  # type: ignore[attr-defined]


def test_the_initializer_goes_there(cluster: DaskCluster, tmp_path: Path) -> None:
    with ClusterPool(
        cluster.address,
        2,
        initializer=remember,
        initargs=("x" * 2_000_000,),
        env={"FROM_ENV": "yes"},
        preload=["colorsys"],
        threads_per_worker=3,
    ) as pool:
        code = (
            "(lambda os, sys: (len(sys.remembered), os.environ['FROM_ENV'], "
            "os.environ['OMP_NUM_THREADS'], 'colorsys' in sys.modules))"
            "(__import__('os'), __import__('sys'))"
        )
        assert pool.submit(eval, code).result(PATIENCE) == (2_000_000, "yes", "3", True)


def test_an_initializer_with_a_lock_is_refused(cluster: DaskCluster) -> None:
    import multiprocessing

    lock = multiprocessing.get_context("spawn").Lock()
    with ClusterPool(cluster.address, 1, initializer=print, initargs=(lock,)) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert "another machine" in str(error)


def draw(_: object = None) -> float:
    return float(job_rng().random())


def test_seeds_are_those_of_one_machine(cluster: DaskCluster) -> None:
    pytest.importorskip("numpy")
    drawn = []
    for make in (lambda: JobPool(2, seed=7), lambda: ClusterPool(cluster.address, 3, seed=7)):
        with make() as pool:
            jobs = [pool.submit(draw) for _ in range(5)]
            drawn.append([job.result(PATIENCE) for job in jobs] + list(pool.map(draw, range(20))))
    assert drawn[0] == drawn[1]


def test_executor_groups_and_await(pool: ClusterPool) -> None:
    with JobExecutor(pool=pool) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    assert gather([pool.submit(abs, -n) for n in range(3)]) == [0, 1, 2]

    async def main() -> int:
        return await pool.submit(abs, -5)

    assert asyncio.run(main()) == 5


def test_the_memory_limit(pool: ClusterPool) -> None:
    from primitive_jobs import JobMemoryError

    code = "(bytearray(300_000_000), __import__('time').sleep(100))"
    job = pool.options(memory_limit="200M").submit(eval, code)
    error = job.exception(PATIENCE)
    assert isinstance(error, JobMemoryError)
    assert error.limit == 200_000_000
    # A worker that holds more than the next job may is not given it.
    assert (
        pool.submit(eval, "globals().update(kept=bytearray(300_000_000))").result(PATIENCE) is None
    )
    fits = [pool.options(memory_limit="150M").submit(abs, -n) for n in range(6)]
    assert [job.result(PATIENCE) for job in fits] == list(range(6))


def test_the_timeout_counts_from_the_start(pool: ClusterPool) -> None:
    from primitive_jobs import JobTimeoutError

    busy = [pool.submit(time.sleep, 0.5) for _ in range(2)]
    late = pool.options(timeout=0.3).submit(time.sleep, 0.05)
    assert late.result(PATIENCE) is None
    error = pool.options(timeout=0.3).submit(time.sleep, 100).exception(PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert error.stack is None or "sleep" in error.stack or "loop" in error.stack
    assert all(job.done() for job in busy)


@pytest.mark.parametrize("direct", [True, False])
def test_a_kill_overtakes_a_gigabyte(cluster: DaskCluster, tmp_path: Path, direct: bool) -> None:
    """Of a result that is on its way from the same node."""
    with ClusterPool(cluster.address, 4, direct=direct) as pool:
        jobs = [submit(pool, tmp_path, f"held{n}", session=True) for n in range(3)]
        for job in jobs:
            until(is_running(job, tmp_path), "its start")
        large = pool.submit(bytes, 1 << 30)
        until(lambda: any(fleet_filled(pool)), "some of the result")
        began = time.monotonic()
        for job in jobs:
            job.cancel()
        took = time.monotonic() - began
        print(took, large.status(), fleet_filled(pool), time.monotonic() - began)
        assert large.running()
        assert took < 2
        for job in jobs:
            assert all_gone(tmp_path, job.name)
        assert len(large.result(2 * PATIENCE)) == 1 << 30


def fleet_filled(pool: ClusterPool) -> list[int]:
    """How much has come of the long frames that are on their way."""
    lines = [link.line for link in pool._fleet._links.values()]
    return [n for line in lines if line is not None for n in [*line._filled.values()]]


def test_other_tasks_get_their_turn(cluster: DaskCluster, tmp_path: Path) -> None:
    """A Dask task that waits for a thread gets it after a job; the pool's queue goes on."""
    from distributed import Client

    with ClusterPool(cluster.address, 4) as pool:
        jobs = [pool.submit(time.sleep, 0.3) for _ in range(60)]
        until(lambda: sum(job.running() for job in jobs) == 4, "a busy cluster")
        with Client(cluster.address, set_as_default=False) as client:
            future = client.submit(os.getpid, pure=False)
            assert future.result(PATIENCE) in {node.pid for node in cluster.nodes}
            assert not all(job.done() for job in jobs)
            del future
        for job in jobs:
            job.result(PATIENCE)


def test_two_pools_take_turns(cluster: DaskCluster) -> None:
    with ClusterPool(cluster.address, 4) as one, ClusterPool(cluster.address, 4) as two:
        first = [one.submit(time.sleep, 0.2) for _ in range(60)]
        until(lambda: sum(job.running() for job in first) == 4, "a busy cluster")
        second = [two.submit(time.sleep, 0.2) for _ in range(8)]
        for job in second:
            job.result(PATIENCE)
        assert not all(job.done() for job in first)
        for job in first:
            job.result(PATIENCE)


def test_places_take_resources(cluster: DaskCluster, tmp_path: Path) -> None:
    with ClusterPool(cluster.address, 4, place_resources={"GPU": 1}) as pool:
        jobs = [submit(pool, tmp_path, f"gpu{n}") for n in range(3)]
        until(lambda: sum(job.running() for job in jobs) == 2, "two that run")
        time.sleep(0.2)
        assert sum(job.running() for job in jobs) == 2
        (tmp_path / "end").touch()
        for job in jobs:
            job.result(PATIENCE)


def test_a_thread_is_given_back_when_a_worker_is_idle(cluster: DaskCluster) -> None:
    from distributed import Client

    with ClusterPool(cluster.address, 4, idle_timeout=0.2) as pool:
        [job.result(PATIENCE) for job in [pool.submit(time.sleep, 0.1) for _ in range(8)]]
        with Client(cluster.address, set_as_default=False) as client:
            held = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
            assert held <= 4
            until(
                lambda: (
                    not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
                ),
                "that all places are given back",
            )
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_starts_that_nobody_needs_are_called_off(cluster: DaskCluster, tmp_path: Path) -> None:
    """Eight jobs are cancelled while they wait for places that do not come."""
    from distributed import Client

    with ClusterPool(cluster.address, 12) as pool:
        jobs = [submit(pool, tmp_path, f"job{n}") for n in range(12)]
        until(lambda: sum(job.running() for job in jobs) == 4, "four that run")
        for job in jobs:
            if not job.running():
                job.cancel()
        with Client(cluster.address, set_as_default=False) as client:
            until(
                lambda: (
                    client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 4
                ),
                "that nobody waits for a place",
            )
        (tmp_path / "end").touch()


def test_a_call_on_an_event_loop(cluster: DaskCluster) -> None:
    """It waits for no loop but its own."""

    async def main() -> int:
        with ClusterPool(cluster.address, 1) as pool:
            return pool.submit(abs, -3).result(PATIENCE)

    assert asyncio.run(main()) == 3


def test_a_fork_of_the_program(pool: ClusterPool) -> None:
    assert pool.submit(abs, -1).result(PATIENCE) == 1
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with contextlib.suppress(RuntimeError):
                pool.submit(abs, -1)
                os._exit(2)
            status = 0
        finally:
            os._exit(status)
    _, code = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(code) == 0
    assert pool.submit(abs, -2).result(PATIENCE) == 2


PROGRAM = """
import sys
sys.path[:0] = {paths!r}
import time
from primitive_jobs.cluster import ClusterPool
from primitive_jobs.cluster.line import Frame, Line

def triple(value):
    return 3 * value

if __name__ == "__main__":
    pool = ClusterPool({address!r}, 2, on_exit={on_exit!r})
    jobs = [pool.submit(triple, n) for n in range(5)]
    last = pool.submit(time.sleep, {seconds})
    print([job.result() for job in jobs])
"""


@pytest.mark.parametrize(("on_exit", "seconds"), [("wait", 0.5), ("cancel", 1000)])
def test_the_end_of_a_program(
    cluster: DaskCluster, tmp_path: Path, on_exit: str, seconds: float
) -> None:
    """Of a script, whose functions travel by value."""
    code = PROGRAM.format(paths=[], address=cluster.address, on_exit=on_exit, seconds=seconds)
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 3, 6, 9, 12]\n", "")
    until(lambda: not any(scheduler_state(cluster).values()), "an empty scheduler")


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (7, TypeError, "client_or_address"),
        ("", ValueError, "not running"),
        (types.SimpleNamespace(scheduler_address="<Not Connected>"), ValueError, "not running"),
        (None, TypeError, "client_or_address"),
    ],
)
def test_wrong_clusters(given: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        ClusterPool(given)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"node_timeout": 0.5}, ValueError),
        ({"node_timeout": None}, ValueError),
        ({"node_timeout": "x"}, TypeError),
        ({"direct": 1}, TypeError),
        ({"place_resources": "GPU"}, TypeError),
        ({"place_resources": {"GPU": "one"}}, TypeError),
        ({"place_resources": {"GPU": None}}, TypeError),
        ({"place_resources": {1: 1}}, TypeError),
        ({"place_resources": {"GPU": 0}}, ValueError),
        ({"place_resources": {"GPU": float("nan")}}, ValueError),
        ({"max_workers": 0}, ValueError),
        ({"max_workers": 1, "on_exit": "never"}, ValueError),
        ({"max_workers": 1, "workers": 1}, TypeError),
        ({"memory_limit": "x"}, ValueError),
        ({"initializer": 3}, TypeError),
    ],
)
def test_wrong_options(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        ClusterPool("tcp://127.0.0.1:9", **options)


def test_a_client_that_is_given(cluster: DaskCluster) -> None:
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client, ClusterPool(client, 1) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_many_cancels_at_random_moments(cluster: DaskCluster, tmp_path: Path) -> None:
    import random

    rng = random.Random(3)
    with ClusterPool(cluster.address, 4) as pool:
        jobs = []
        for number in range(200):
            job = submit(pool, tmp_path, f"job{number}", session=number % 2 == 0)
            jobs.append(job)
            time.sleep(rng.random() * 0.02)
            rng.choice(jobs[-6:]).cancel()
        pool.cancel_all()
        assert all(job.status() is JobStatus.CANCELLED for job in jobs)
        assert pool.snapshot().counts.cancelled == 200
    for job in jobs:
        runs = starts(tmp_path, job.name)
        assert len(runs) <= 1
        assert all(all_gone(tmp_path, job.name) for _ in runs)


def test_it_is_seen_from_another_terminal(pool: ClusterPool, tmp_path: Path) -> None:
    from visits import visiting

    job = submit(pool, tmp_path, "seen")
    until(is_running(job, tmp_path), "its start")
    with visiting(pool) as client:
        head, (row,) = client.ask("snapshot")
        assert (head["kind"], row["node"], row["pid"]) == ("ClusterPool", job.node, job.pid)
        told, _ = client.ask("ask stack", id=job.job_id())
        assert f"on another machine, {job.node}" in told["error"]
        answer, _ = client.ask("cancel", id=job.job_id())
        assert (answer["was"], answer["job"]["status"]) == ("RUNNING", "CANCELLED")
    assert job.status() is JobStatus.CANCELLED

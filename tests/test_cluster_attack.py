"""`ClusterPool`: moments that are rare, each brought about on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
import types
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import PATIENCE, until

pytest.importorskip("distributed")

from clusters import Part, dask_cluster
from distributed import Security
from test_cluster_failures import all_gone, is_running, starts, submit

from primitive_jobs import WorkerDiedError
from primitive_jobs._engine.events import Reclaimed, StartFailed
from primitive_jobs._engine.fleet import News
from primitive_jobs._procs.start_lock import start_lock
from primitive_jobs.cluster import ClusterPool
from primitive_jobs.cluster.connection import Link, Policy, Target
from primitive_jobs.cluster.fleet import ClusterFleet
from primitive_jobs.cluster.frames import SESSION_END
from primitive_jobs.cluster.line import Frame
from primitive_jobs.cluster.node import Agent, _Place, _Served
from primitive_jobs.cluster.session import Session
from primitive_jobs.logs import report_here

# --- one event after the other --------------------------------------------------------------------


class SaidLine:
    """A line that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int | None, int]] = []

    def send(self, frame: Frame, lane: int = 0, data: object = None) -> None:
        del data
        self.said.append((frame["frame"], frame.get("slot"), lane))


class Stage:
    """A fleet whose connection and engine are played; it is the connection."""

    def __init__(self) -> None:
        config: tuple[Frame, bytes] = ({"frame": "config"}, b"")
        target = Target("tcp://127.0.0.1:9", Security())
        policy = Policy({}, None, 30.0)
        self.fleet = ClusterFleet(target, "pool", policy, config, follow_threads=False)
        self.fleet._connection = self  # type: ignore[assignment]
        self.links: list[Link] = []
        self.released: list[int] = []
        self.events: list[Any] = []
        self.report = report_here
        self.fleet.open(self)  # type: ignore[arg-type]

    def open(self, link: Link) -> None:
        self.links.append(link)

    def place(self, slot: int) -> None:
        pass

    def release(self, slot: int) -> None:
        self.released.append(slot)

    def happened(self, event: Any, worker: object = None) -> None:
        del worker
        self.events.append(event)

    def tell(self, news: News) -> None:
        news.take_in()

    def connect(self) -> SaidLine:
        """As the event loop does, before it tells that the link is open."""
        line = SaidLine()
        self.links[-1].line = line  # type: ignore[assignment]
        return line


def test_each_worker_is_started_once() -> None:
    """A place is told of while the link opens: the loop knows that it has, we not yet."""
    stage = Stage()
    for slot in (1, 2):
        stage.fleet.start(slot)
    stage.fleet.placed(1, "tcp://node:1")
    line = stage.connect()
    stage.fleet.placed(2, "tcp://node:1")
    stage.fleet.opened(stage.links[0])
    assert sorted(line.said) == [("start", 1, 1), ("start", 2, 2)]


def test_a_start_that_is_called_off_as_its_link_opens() -> None:
    stage = Stage()
    stage.fleet.start(1)
    stage.fleet.placed(1, "tcp://node:1")
    line = stage.connect()
    stage.fleet.call_off(1)
    stage.fleet.opened(stage.links[0])
    assert [type(event) for event in stage.events] == [StartFailed]
    assert not line.said
    assert stage.released == [1]


def test_a_start_that_is_called_off_on_a_node_that_is_lost() -> None:
    """No other place is waited for."""
    stage = Stage()
    stage.fleet.start(1)
    stage.fleet.placed(1, "tcp://node:1")
    stage.connect()
    stage.fleet.opened(stage.links[0])
    stage.fleet.call_off(1)
    stage.fleet.cut_off(stage.links[0])
    stage.fleet.lost(stage.links[0], "it was closed")
    assert [type(event) for event in stage.events] == [StartFailed]
    assert not stage.fleet.coming


def test_a_place_may_be_wanted_before_its_process_is_there() -> None:
    """The node asks once."""
    stage = Stage()
    stage.fleet.start(1)
    stage.fleet.placed(1, "tcp://node:1")
    stage.connect()
    stage.fleet.opened(stage.links[0])
    stage.fleet.heard(stage.links[0], [{"frame": "reclaimed", "slot": 1}])
    assert stage.events == [Reclaimed(1)]


def test_a_node_that_closes_can_be_asked_until_all_is_killed() -> None:
    """Who does not know the question is taken for one on which nothing runs."""

    async def main() -> None:
        worker: Any = types.SimpleNamespace(handlers={})
        agent = Agent(worker)
        agent.setup(worker)
        served = agent._served["pool"] = _Served(1)
        teardown = asyncio.ensure_future(agent.teardown(worker))
        await asyncio.sleep(0)
        assert list(worker.handlers) == [SESSION_END]
        served.over.set()
        await teardown
        assert not worker.handlers

    asyncio.run(main())


def test_no_worker_is_started_without_a_place() -> None:
    """It may have been given back while the order to start was on its way."""

    async def main() -> None:
        worker: Any = types.SimpleNamespace(handlers={})
        agent = Agent(worker)
        served = _Served(1)
        session: Any = types.SimpleNamespace(refused=[], obeyed=[])
        session.refuse, session.obey = session.refused.append, session.obeyed.append
        served.session = session
        agent._places["its key"] = _Place("pool", 1)
        frames: list[Frame] = [{"frame": "start", "slot": 1}, {"frame": "start", "slot": 2}]
        agent._hear("pool", served, frames)
        assert (session.obeyed, session.refused) == (frames[:1], [2])

    asyncio.run(main())


# --- a session ------------------------------------------------------------------------------------


def test_a_worker_whose_place_ends_while_it_is_started_is_killed() -> None:
    said: list[tuple[str, int | None]] = []
    over, ended = threading.Event(), threading.Event()
    config = {
        "lease": 1000.0,
        "threads": 1,
        "env": {},
        "preload": [],
        "depth": 0,
        "initializer": None,
        "buffers": 0,
    }
    session = Session(
        config,
        cpus=1,
        places=1,
        send=lambda frame, *_: said.append((frame["frame"], frame.get("slot"))),
        over=lambda _: over.set(),
        ended=ended.set,
    )
    session.begin()
    try:
        with start_lock():  # it has to wait for that
            session.obey({"frame": "start", "slot": 1})
            spawner = session._fleet._spawner
            until(lambda: spawner.busy and spawner._queue.empty(), "the begin of its start")
            time.sleep(0.05)  # between the two it could be called off yet
            session.evict(1)
            until(lambda: not session._commands, "that it is taken in")
        assert over.wait(PATIENCE)
        assert ("gone", 1) in said
    finally:
        session.end()
        assert ended.wait(PATIENCE)


def test_a_session_without_workers_ends_with_its_lease() -> None:
    """Nobody else would ring the bell, if the pool's machine is gone without a word."""
    ended = threading.Event()
    config = {
        "lease": 1.0,
        "threads": 1,
        "env": {},
        "preload": [],
        "depth": 0,
        "initializer": None,
        "buffers": 0,
    }
    nothing: Any = lambda *_: None  # noqa: E731
    session = Session(config, cpus=1, places=1, send=nothing, over=nothing, ended=ended.set)
    session.begin()
    try:
        assert ended.wait(PATIENCE)
    finally:
        session.end()


# --- nodes ----------------------------------------------------------------------------------------


def test_a_pool_ends_whose_only_node_is_lost_while_a_start_is_called_off(tmp_path: Path) -> None:
    with dask_cluster(tmp_path, 1) as cluster:
        pool = ClusterPool(cluster.address, 1, node_timeout=2)
        (node,) = cluster.nodes
        assert pool.submit(abs, -1).result(PATIENCE) == 1  # the link is open
        pool.restart_workers()
        until(lambda: not pool.snapshot().workers, "its end")
        job = pool.submit(abs, -1)
        fleet = pool._fleet
        until(lambda: any(o.link for o in list(fleet._orders.values())), "a place")
        node.kill(signal.SIGSTOP)
        job.cancel()
        node.kill()
        pool.shutdown(wait=False)
        until(lambda: pool._engine.gone, "the end of the pool", 20)


def nap(folder: Path, count: int) -> None:
    """Be one of so many that run at a time."""
    from helpers import meet

    meet(folder, count)


def test_a_retry_is_not_given_to_idle_workers_of_the_lost_node(tmp_path: Path) -> None:
    """They are gone, too, but each is told of by itself."""
    with dask_cluster(tmp_path, 0) as cluster:
        cluster.add({"nthreads": 8})
        with ClusterPool(cluster.address, 8, idle_timeout=None) as pool:
            (tmp_path / "meeting").mkdir()
            jobs = [pool.submit(nap, tmp_path / "meeting", 8) for _ in range(8)]
            for nap_job in jobs:
                nap_job.result(PATIENCE)
            tries = []
            for n in range(8):
                tries.append(submit(pool, tmp_path, f"try{n}", retries=1))
                until(is_running(tries[-1], tmp_path), "its start")
            slots = {w.job: n for n, w in enumerate(pool.snapshot().workers)}
            first = min(tries, key=lambda job: slots[job.job_id()])
            for job in tries:
                if job is not first:
                    job.cancel()
            until(lambda: pool.snapshot().counts.running == 1, "one job")
            (tmp_path / "again").mkdir()
            jobs = [pool.submit(nap, tmp_path / "again", 7) for _ in range(7)]
            for nap_job in jobs:
                nap_job.result(PATIENCE)
            cluster.nodes[0].kill()
            cluster.add({"nthreads": 1})
            until(
                lambda: first.in_final_state() or len(starts(tmp_path, first.name)) == 2, "its end"
            )
            (tmp_path / "end").touch()
            assert first.result(PATIENCE) == first.name


def test_a_task_that_came_before_the_place_gets_its_turn(tmp_path: Path) -> None:
    from distributed import Client

    with (
        dask_cluster(tmp_path, 1) as cluster,
        Client(cluster.address, set_as_default=False) as client,
        ClusterPool(cluster.address, 1) as pool,
    ):
        long = client.submit(time.sleep, 1.5, pure=False)
        time.sleep(0.3)
        jobs = [pool.submit(time.sleep, 0.5) for _ in range(20)]
        time.sleep(0.3)
        other = client.submit(abs, -3, pure=False)
        long.result(PATIENCE)
        assert other.result(PATIENCE) == 3
        assert not all(job.done() for job in jobs)
        pool.shutdown(cancel=True)


def grow(size: int) -> None:
    """Leave memory behind."""
    kept.append(b"x" * size)


def length_of(data: bytes) -> int:
    return len(data)


kept: list[bytes] = []


def test_memory_left_behind_is_not_a_later_jobs(tmp_path: Path) -> None:
    """Not even while the later job is on its way."""
    with dask_cluster(tmp_path, 1) as cluster, ClusterPool(cluster.address, 1) as pool:
        pool.submit(grow, 800_000_000).result(PATIENCE)
        limited = pool.options(memory_limit=700_000_000)
        job = limited.submit(length_of, bytes(200_000_000))
        assert job.result(PATIENCE) == 200_000_000


def test_whoever_has_the_address_of_a_relayed_node_here_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another machine, which says that nobody listens, of the node's port on itself."""
    from primitive_jobs.cluster.reach import connect

    with dask_cluster(tmp_path, 1) as cluster:

        async def refuse(address: str, seconds: float, **options: Any) -> Any:
            if address != cluster.address:
                raise OSError("refused")
            return await connect(address, seconds, **options)

        async def listens(address: str) -> bool:
            del address
            return False

        monkeypatch.setattr("primitive_jobs.cluster.connection.connect", refuse)
        monkeypatch.setattr("primitive_jobs.cluster.connection.listens", listens)
        with ClusterPool(cluster.address, 1, node_timeout=3) as pool:
            job = submit(pool, tmp_path, "held")
            until(is_running(job, tmp_path), "its start")
            (node,) = cluster.nodes
            node.kill(signal.SIGSTOP)  # it does not see that the line ends
            try:
                (link,) = pool._fleet._links.values()
                pool._fleet._connection.cut(link)
                assert isinstance(job.exception(PATIENCE), WorkerDiedError)
                assert all_gone(tmp_path, "held")
            finally:
                node.kill(signal.SIGCONT)


def test_who_waits_for_a_resource_gets_its_turn(tmp_path: Path) -> None:
    from distributed import Client

    gpu = {"GPU": 1}
    with (
        dask_cluster(tmp_path, 0) as cluster,
        Client(cluster.address, set_as_default=False) as client,
        ClusterPool(cluster.address, 1, place_resources=gpu) as pool,
        ClusterPool(cluster.address, 1, place_resources=gpu) as second,
    ):
        cluster.add({"nthreads": 3, "resources": gpu})
        jobs = [pool.submit(time.sleep, 0.3) for _ in range(100)]
        until(jobs[0].running, "its start")
        job = second.submit(abs, -1)
        task = client.submit(abs, -2, resources=gpu, pure=False)
        assert (job.result(PATIENCE), task.result(PATIENCE)) == (1, 2)
        assert not all(job.done() for job in jobs)
        pool.shutdown(cancel=True)


def test_a_guard_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """Else nobody would end the lease of a node that is frozen."""
    with (
        dask_cluster(tmp_path, 1) as cluster,
        ClusterPool(cluster.address, 1, node_timeout=2) as pool,
    ):
        job = submit(pool, tmp_path, "frozen")
        until(is_running(job, tmp_path), "its start")
        (node,) = cluster.nodes
        (guard,) = guards(node)
        guard.kill()
        until(lambda: guards(node) not in ([], [guard]), "another one")
        node.kill(signal.SIGSTOP)
        try:
            assert isinstance(job.exception(PATIENCE), WorkerDiedError)
            assert all_gone(tmp_path, "frozen")
        finally:
            node.kill(signal.SIGCONT)


def guards(node: Part) -> list[psutil.Process]:
    found = []
    for process in node.below():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "primitive_guard" and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found

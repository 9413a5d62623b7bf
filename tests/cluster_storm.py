"""A storm over a cluster: nodes, workers and clients are killed, frozen and taken away at random.

Jobs note when they were alive (`beats`); at the end each has one end that fits what it noted.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from beats import Span, beat, overlaps, spans
from clusters import DaskCluster, Part, left_on, path_of
from distributed import Client
from helpers import until

from primitive_jobs import (
    FINAL_STATES,
    JobCancelledError,
    JobStatus,
    JobTimeoutError,
    PrimitiveJob,
    WorkerDiedError,
)
from primitive_jobs.cluster import ClusterPool

PATIENCE = 60.0  # s, after which what is waited for will not come
TIMEOUT = 2.0  # s after which a node is lost
NODES = 3
WORKERS = 4
OUTSTANDING = 40  # jobs at a time

CLIENT = """
import os, sys, time
from pathlib import Path
from beats import beat
from primitive_jobs.cluster import ClusterPool

if __name__ == "__main__":
    with ClusterPool(sys.argv[1], 1, node_timeout=2.0) as pool:
        for n in range(100_000):
            name = f"client{os.getpid()}-{n}"
            pool.options(name=name).submit(beat, Path(sys.argv[2]), name, 0.05).wait(60)
            time.sleep(0.02)
"""


class Submitted:
    """A job with all that is known of it."""

    def __init__(self, job: PrimitiveJob[str], retries: int, timeout: float | None) -> None:
        self.job = job
        self.retries = retries
        self.timeout = timeout
        self.answers: list[bool] = []  # of cancel()


class ClusterStorm:
    """One storm over a cluster; the first node is never ended.

    Args:
        cluster: One without nodes.
        folder: Where jobs leave their notes.
        seed: Of what happens.
    """

    def __init__(self, cluster: DaskCluster, folder: Path, seed: int) -> None:
        self.cluster = cluster
        self.folder = folder
        self.counts: collections.Counter[str] = collections.Counter()
        self.jobs: list[Submitted] = []
        self._rng = random.Random(seed)
        self._allowed = 0  # jobs by now
        self._stop = threading.Event()
        self._other: subprocess.Popen[bytes] | None = None
        self._faults: list[Callable[[ClusterPool], None]] = [
            self._kill_node,
            self._end_node,
            self._freeze_node,
            self._retire_node,
            self._kill_worker,
            self._kill_client,
            self._cancel,
            self._cancel,
            self._add_node,
        ]

    def blow(self, pool: ClusterPool, faults: int, jobs: int) -> None:
        """Have so many faults over so many jobs; returns when each of these has ended."""
        submitter = threading.Thread(target=self._submit, args=(pool, jobs))
        submitter.start()
        self._start_client()
        queue: list[Callable[[ClusterPool], None]] = []
        try:
            for n in range(1, faults + 1):
                self._allowed = jobs * n // faults
                until(lambda: self._ended() >= self._allowed - OUTSTANDING, "jobs", PATIENCE)
                if not queue:
                    queue = self._rng.sample(self._faults, len(self._faults))
                fault = queue.pop()
                fault(pool)
                self.counts[fault.__name__.strip("_").replace("_", " ")] += 1
        finally:
            self._stop.set()
            submitter.join(PATIENCE)
            self._end_client()
        assert not submitter.is_alive()
        for item in self.jobs:
            assert item.job.wait(PATIENCE), f"lost: {item.job}"

    def _ended(self) -> int:
        return sum(item.job.done() for item in self.jobs[-2 * OUTSTANDING :]) + max(
            0, len(self.jobs) - 2 * OUTSTANDING
        )

    def _submit(self, pool: ClusterPool, jobs: int) -> None:
        rng = random.Random(self._rng.random())
        for n in range(jobs):
            while n >= self._allowed or len(pool.jobs()) >= OUTSTANDING:
                if self._stop.wait(0.002) and n >= self._allowed:
                    return
            slow = rng.random() < 0.3
            timeout = 0.3 if slow and rng.random() < 0.2 else None
            seconds = 5.0 if timeout else rng.uniform(0.02, 1.0) if slow else 0.0
            retries = rng.randrange(2)
            options: dict[str, Any] = {"name": f"job{n}", "retries": retries, "timeout": timeout}
            job = pool.options(**options).submit(beat, self.folder, f"job{n}", seconds)
            self.jobs.append(Submitted(job, retries, timeout))

    # --- what happens ------------------------------------------------------------------------

    def add_nodes(self, count: int) -> None:
        self.cluster.add(*[{"nthreads": 2}] * count)

    def _lose(self, node: Part) -> None:
        """A node ends, or has to; another one comes for it."""
        if len(self.cluster.nodes) <= NODES:
            self.add_nodes(1)
        assert node.process.wait(PATIENCE) is not None
        self.cluster.nodes.remove(node)
        node.close()

    def _some_node(self) -> Part:
        return self._rng.choice(self.cluster.nodes[1:])

    def _kill_node(self, pool: ClusterPool) -> None:
        del pool
        node = self._some_node()
        node.kill()
        self._lose(node)

    def _end_node(self, pool: ClusterPool) -> None:
        del pool
        node = self._some_node()
        node.kill(signal.SIGTERM)
        self._lose(node)

    def _freeze_node(self, pool: ClusterPool) -> None:
        del pool
        node = self._rng.choice(self.cluster.nodes)
        node.kill(signal.SIGSTOP)
        self._stop.wait(self._rng.uniform(0.2, 2.5 * TIMEOUT))
        node.kill(signal.SIGCONT)

    def _retire_node(self, pool: ClusterPool) -> None:
        del pool
        node = self._some_node()
        with Client(self.cluster.address, set_as_default=False) as client:
            client.retire_workers([node.address])
        self._lose(node)

    def _kill_worker(self, pool: ClusterPool) -> None:
        nodes = {node.pid for node in self.cluster.nodes}
        for job in pool.jobs():
            pid = job.pid
            if pid is None:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.ppid() in nodes:
                    process.kill()
                    return

    def _kill_client(self, pool: ClusterPool) -> None:
        del pool
        self._end_client()
        self._start_client()

    def _start_client(self) -> None:
        self._other = subprocess.Popen(
            [sys.executable, "-c", CLIENT, self.cluster.address, str(self.folder)],
            cwd=self.folder.parent,
            env={**os.environ, "PYTHONPATH": path_of(Path(__file__).parent)},
        )

    def _end_client(self) -> None:
        if self._other is not None:
            self._other.kill()
            self._other.wait()

    def _cancel(self, pool: ClusterPool) -> None:
        del pool
        jobs = [item for item in self.jobs[-2 * OUTSTANDING :] if not item.job.done()]
        for item in self._rng.sample(jobs, min(3, len(jobs))):
            item.answers.append(item.job.cancel(grace=self._rng.choice((0.0, 0.0, 0.02))))

    def _add_node(self, pool: ClusterPool) -> None:
        del pool
        self.add_nodes(1)
        if len(self.cluster.nodes) > NODES + 2:
            node = self._some_node()
            node.kill()
            self._lose(node)

    # --- the verdict -------------------------------------------------------------------------

    def judge(self) -> None:
        """Raise AssertionError unless each job has one end, which fits what it noted."""
        begun = spans(self.folder)
        wrong = []
        for item in self.jobs:
            of_job = begun.get(item.job.name, [])
            problem = self._problem(item, of_job)
            if problem:
                walk = [status.name for status, _ in item.job.history()]
                wrong.append(f"{problem}: {item.job}, {walk}, {item.answers}, {of_job}")
            self.counts[item.job.status().name] += 1
            self.counts["attempts"] += len(of_job)
        for name, of_job in begun.items():
            if name.startswith("client"):
                self.counts["jobs of other clients"] += 1
                if len(of_job) > 1:
                    wrong.append(f"{name} began {len(of_job)} times")
        assert not wrong, "\n".join(wrong[:20])

    def _problem(self, item: Submitted, of_job: list[Span]) -> str | None:
        job = item.job
        if sum(status in FINAL_STATES for status, _ in job.history()) != 1:
            return "not one end"
        # Not `attempts`: it leaves out those that nobody has confirmed before their node was lost.
        if max(len(of_job), job.attempts) > 1 + item.retries:
            return f"began {len(of_job)} times"
        if overlaps(of_job):
            return "two attempts at a time"
        error = job.exception() if job.status() is not JobStatus.CANCELLED else None
        match job.status():
            case JobStatus.DONE:
                return None if job.result() == job.name and of_job else "a wrong result"
            case JobStatus.CANCELLED:
                with contextlib.suppress(JobCancelledError):
                    job.result()
                    return "CANCELLED with a result"
                return None if set(item.answers) == {True} else "cancel() told False"
        if True in item.answers:
            return "cancel() told True"
        self.counts[type(error).__name__] += 1
        expected = (JobTimeoutError,) if item.timeout else ()
        return None if isinstance(error, (WorkerDiedError, *expected)) else f"ended by {error!r}"


# --- what is left ---------------------------------------------------------------------------------


def ours_on_scheduler(dask_scheduler: Any = None) -> list[str]:
    """Everything of ours there; run there, by value."""
    found = [*dask_scheduler.tasks, *dask_scheduler.plugins, *dask_scheduler.handlers]
    found += [*dask_scheduler.stream_handlers, *dask_scheduler.clients]
    return [each for each in map(str, found) if "primitive_jobs" in each]


def ours_on_node(dask_worker: Any = None) -> list[str]:
    """The same of a node, but for the agent itself, which stays."""
    import threading

    found = [*dask_worker.state.tasks]
    found += [t.name for t in threading.enumerate() if "primitive_jobs" in t.name]
    for agent in [p for name, p in dask_worker.plugins.items() if "primitive_jobs" in name]:
        found += [*agent._places, *agent._served]
    return [str(each) for each in found]


def held_by(pid: int) -> collections.Counter[str]:
    """What a process has open, but for connections over a network, which Dask keeps."""
    found: collections.Counter[str] = collections.Counter()
    network = set()
    with contextlib.suppress(OSError):
        for protocol in ("tcp", "tcp6"):
            lines = Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]
            network |= {f"socket:[{line.split()[9]}]" for line in lines}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target not in network:
                found[target.partition("[")[0] if ":" in target else target] += 1
    return found


def check_nothing_left(cluster: DaskCluster, before: collections.Counter[str]) -> None:
    """Nothing of ours is on scheduler and nodes; on the first node nothing more is open."""
    with Client(cluster.address, set_as_default=False) as client:
        left: list[Any] = []

        def look() -> bool:
            on_nodes = client.run(ours_on_node)
            left[:] = [client.run_on_scheduler(ours_on_scheduler), on_nodes]
            return not left[0] and not any(on_nodes.values())

        with contextlib.suppress(AssertionError):
            until(look, "", 10)
        assert not left[0], left
        assert not any(left[1].values()), left

    until(lambda: not any(map(left_on, cluster.nodes)), "the end of all processes of nodes", 10)
    first = cluster.nodes[0]
    until(lambda: not held_by(first.pid) - before, "descriptors are closed", 10)


__all__ = ["ClusterStorm", "check_nothing_left", "held_by"]

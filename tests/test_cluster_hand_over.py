"""Nodes are killed while jobs are being sent to them: each job starts at most once, and ends."""

from __future__ import annotations

import collections
import threading
import time
from pathlib import Path

import pytest
from beats import beat, spans
from helpers import PATIENCE, until

pytest.importorskip("distributed")

from clusters import DaskCluster, dask_cluster

from primitive_jobs import JobStatus, PrimitiveJob, WorkerDiedError
from primitive_jobs.cluster import ClusterPool

KILLS = 5
WORKERS = 2


@pytest.mark.timeout(120)
def test_nodes_die_while_jobs_are_sent(tmp_path: Path, marks: Path) -> None:
    jobs: list[PrimitiveJob[str]] = []
    stop = threading.Event()
    with (
        dask_cluster(tmp_path, WORKERS) as cluster,
        ClusterPool(cluster.address, WORKERS, node_timeout=5.0) as pool,
    ):

        def submit() -> None:
            while not stop.is_set():
                name = f"job{len(jobs)}"
                seconds = 0.004 * (len(jobs) % 2)  # what is killed has begun, or has just been sent
                jobs.append(pool.options(name=name).submit(beat, marks, name, seconds))
                while len(pool.jobs()) > 20 and not stop.is_set():
                    time.sleep(0.001)

        submitter = threading.Thread(target=submit)
        submitter.start()
        try:
            for _ in range(KILLS):
                kill_a_node(cluster, jobs)
        finally:
            stop.set()
            submitter.join(PATIENCE)
        for job in jobs:
            assert job.wait(PATIENCE), f"lost: {job}"
    counts: collections.Counter[str] = collections.Counter()
    begun = spans(marks)
    for job in jobs:
        starts = len(begun.get(job.name, ()))
        assert starts <= 1, job
        if job.status() is JobStatus.DONE:
            assert job.result() == job.name
            assert starts == 1, job
        else:
            error = job.exception()
            assert type(error) is WorkerDiedError, error
            assert error.node is not None
        counts[job.status().name] += 1
    assert counts["DONE"] > 10 * KILLS, counts
    # A node has one worker, which has one job.
    assert counts["ERROR"] <= KILLS, counts


def kill_a_node(cluster: DaskCluster, jobs: list[PrimitiveJob[str]]) -> None:
    """Once jobs run on it; another one comes for it, first."""
    node = cluster.nodes[0]
    cluster.add({})
    until(lambda: any(job.node == node.address for job in jobs[-40:]), "a job on it")
    node.kill()
    node.close()
    cluster.nodes.remove(node)

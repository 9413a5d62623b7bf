"""Random faults over a cluster: nothing is lost, nothing runs twice, nothing is left."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from beats import END, beat, of_one
from helpers import until

pytest.importorskip("distributed")

from cluster_storm import (
    NODES,
    PATIENCE,
    TIMEOUT,
    WORKERS,
    ClusterStorm,
    check_nothing_left,
    held_by,
)
from clusters import DaskCluster, dask_cluster, left_on

from primitive_jobs import ClusterError
from primitive_jobs.cluster import ClusterPool


def warm_up(address: str, folder: Path) -> None:
    """Have a place on each thread, so that whatever a node keeps is there."""
    with ClusterPool(address, 2 * NODES, node_timeout=TIMEOUT) as pool:
        for n in range(2 * NODES):
            pool.options(name=f"warm{n}").submit(beat, folder, f"warm{n}")
        until(lambda: all(of_one(folder, f"warm{n}") for n in range(2 * NODES)), "all at once")
        (folder / END).touch()
    for path in folder.iterdir():
        path.unlink()


def blow(
    folder: Path, marks: Path, faults: int, jobs: int, seed: int, *, to_the_end: bool = False
) -> str:
    began = time.monotonic()
    with dask_cluster(folder, 0) as cluster:
        storm = ClusterStorm(cluster, marks, seed)
        storm.add_nodes(NODES)
        warm_up(cluster.address, marks)
        until(lambda: not left_on(cluster.nodes[0]), "the end of what was there first")
        before = held_by(cluster.nodes[0].pid)
        scheduler = psutil.Process(cluster.scheduler.pid)
        memory = [scheduler.memory_info().rss]
        with ClusterPool(cluster.address, WORKERS, node_timeout=TIMEOUT) as pool:
            storm.blow(pool, faults, jobs)
        storm.judge()
        check_nothing_left(cluster, before)
        memory.append(scheduler.memory_info().rss)
        if to_the_end:
            lose_the_scheduler(cluster, marks)
    report = [f"{faults} faults over {len(storm.jobs)} jobs, seed {seed}:"]
    report += [f"  {what:22} {count}" for what, count in sorted(storm.counts.items())]
    report += [f"  {'scheduler, MB':22} {memory[0] / 1e6:.0f} -> {memory[1] / 1e6:.0f}"]
    report += [f"  {'seconds':22} {time.monotonic() - began:.0f}"]
    assert len(storm.jobs) == jobs
    return "\n".join(report)


def lose_the_scheduler(cluster: DaskCluster, marks: Path) -> None:
    with ClusterPool(cluster.address, WORKERS, node_timeout=TIMEOUT) as pool:
        jobs = [
            pool.options(name=f"last{n}", retries=1).submit(beat, marks, f"last{n}")
            for n in range(20)
        ]
        until(lambda: all(of_one(marks, f"last{n}") for n in range(WORKERS)), "their start")
        cluster.scheduler.kill()
        for job in jobs:
            assert type(job.exception(PATIENCE)) is ClusterError
    assert sum(bool(of_one(marks, f"last{n}")) for n in range(20)) == WORKERS
    until(lambda: not any(map(left_on, cluster.nodes)), "the end of all processes of nodes")


@pytest.mark.timeout(120)
def test_storm(tmp_path: Path, marks: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("report", blow(tmp_path, marks, 10, 300, 1))


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_long_storm(
    tmp_path: Path, marks: Path, record_property: Callable[[str, object], None]
) -> None:
    faulthandler.cancel_dump_traceback_later()  # its limit is meant for tests of ordinary length
    seed = int(os.environ.get("SOAK_SEED", str(time.time_ns() % 1_000_000)))
    record_property("report", blow(tmp_path, marks, 200, 5000, seed, to_the_end=True))

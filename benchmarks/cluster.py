"""What does a job cost on a Dask cluster, beside a Dask task, and beside a task of Ray?

A scheduler and two nodes of one thread each, all on this machine, so that no network is in it: a
real one adds its own time to every contender alike. Ours is a `ClusterPool` of two workers there;
Dask's is `client.submit`, a task for each job, on the same kind of cluster; Ray has two CPUs. As an
aside a `JobPool` shows what the cluster costs.

The sweep is 64 jobs of the 2-D Ising model, in numpy. Once a quarter of the results are there,
every other job is unwanted: `stop` is the time from that decision until none of these runs,
`half_end` the time until nothing runs any more. A cancelled future of Dask is gone at once, but
its task, if it runs, goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.batches import WORKERS, decide
from benchmarks.harness import (
    OURS,
    ROOT,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    expect,
    repeat,
)
from benchmarks.jobs import greet, noop, numbers, pause, spin
from benchmarks.observe import Meeting, wait_until_gone
from benchmarks.simulations import ISING

SETTLE = 0.05  # s, from a job's sign of life to its cancel
POLL = 0.002  # s


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What runs jobs on two workers."""

    submit: Callable[..., Any]
    """`submit(function, *args)` returns a handle."""
    result: Callable[[Any], Any]
    """Wait for a handle's result and return it."""
    cancel: Callable[[list[Any]], object]
    """Cancel jobs, however far that goes; return once it has gone so far."""
    running: Callable[[list[Any]], bool]
    """Whether one of these cancelled jobs runs yet."""
    stops: bool = True
    """Whether a cancel ends a process that is at work."""


Start = Callable[[], AbstractContextManager[Cluster]]


@contextlib.contextmanager
def dask_cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=WORKERS,
        threads_per_worker=1,
        dashboard_address=":0",
        local_directory=tempfile.gettempdir(),
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


def _of_pool(pool: Any) -> Cluster:
    def cancel(jobs: list[Any]) -> None:
        for job in reversed(jobs):
            job.cancel()

    return Cluster(pool.submit, lambda job: job.result(), cancel, lambda _: False)


@contextlib.contextmanager
def ours() -> Iterator[Cluster]:
    from primitive_jobs.cluster import ClusterPool

    with dask_cluster() as cluster, ClusterPool(cluster, WORKERS) as pool:
        yield _of_pool(pool)


@contextlib.contextmanager
def one_machine() -> Iterator[Cluster]:
    from primitive_jobs import JobPool

    with JobPool(WORKERS) as pool:
        yield _of_pool(pool)


def _keys_at_work(dask_worker: Any) -> list[str]:
    return [str(key) for key in dask_worker.active_threads.values()]


@contextlib.contextmanager
def dask() -> Iterator[Cluster]:
    from distributed import Client

    with dask_cluster() as cluster, Client(cluster) as client:

        def running(futures: list[Any]) -> bool:
            keys = {str(future.key) for future in futures}
            at_work = client.run(_keys_at_work)
            return any(keys.intersection(each) for each in at_work.values())

        yield Cluster(
            partial(client.submit, pure=False),  # else equal calls are made once
            lambda future: future.result(),
            client.cancel,
            running,
            stops=False,
        )


@contextlib.contextmanager
def ray() -> Iterator[Cluster]:
    import ray

    os.environ["PYTHONPATH"] = str(ROOT)  # of its workers
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=400_000_000,
        _temp_dir=tempfile.mkdtemp(prefix="r"),
    )
    remotes: dict[Any, Any] = {}

    def submit(function: Any, *args: Any) -> Any:
        if function not in remotes:
            remotes[function] = ray.remote(function)  # which repeats what a crash has cost
        return remotes[function].remote(*args)

    def cancel(references: list[Any]) -> None:
        for reference in reversed(references):
            ray.cancel(reference, force=True)

    def running(references: list[Any]) -> bool:
        _, left = ray.wait(references, num_returns=len(references), timeout=0)
        return bool(left)

    try:
        yield Cluster(submit, ray.get, cancel, running)
    finally:
        ray.shutdown()


# --- what is measured -----------------------------------------------------------------------------


def measure(start: Start, counts: Counts) -> Figures:
    with start() as cluster, Meeting() as meeting:
        for handle in [cluster.submit(pause, 0.5) for _ in range(WORKERS)]:
            cluster.result(handle)  # both workers are there
        figures = {
            "call": _median(partial(_call, cluster), counts["calls"]),
            "rate": _rate(cluster, counts["jobs"]),
            "result": _median(partial(_large, cluster, counts["bytes"]), counts["results"]),
            **_beginnings(cluster, meeting, counts),
        }
        figures |= _sweep(cluster, counts)
    return figures


def _median(call: Callable[[], object], count: int) -> float:
    """Milliseconds that it takes, in the middle."""
    times = []
    call()
    for _ in repeat(count, budget=10):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def _call(cluster: Cluster) -> None:
    expect(cluster.result(cluster.submit(noop)), None)


def _large(cluster: Cluster, size: int) -> None:
    expect(cluster.result(cluster.submit(numbers, size)).nbytes, size, "size")


def _rate(cluster: Cluster, count: int) -> float:
    began = time.perf_counter()
    for handle in [cluster.submit(noop) for _ in range(count)]:
        cluster.result(handle)
    return count / (time.perf_counter() - began)


def _beginnings(cluster: Cluster, meeting: Meeting, counts: Counts) -> Figures:
    """How long until a job has begun, and until it is gone where it can be cancelled."""
    begun, gone = [], []
    for _ in repeat(counts["cancels"], budget=10):
        began = time.perf_counter()
        handle = cluster.submit(spin if cluster.stops else greet, meeting.address)
        pid = meeting.next()
        begun.append(time.perf_counter() - began)
        if cluster.stops:
            time.sleep(SETTLE)
            began = time.perf_counter()
            cluster.cancel([handle])
            wait_until_gone(pid)
            gone.append(time.perf_counter() - began)
        else:
            cluster.result(handle)
        meeting.release()
        for warm in [cluster.submit(pause, 0.3) for _ in range(WORKERS)]:
            cluster.result(warm)  # the next one finds two workers again
    figures = {"begun": statistics.median(begun) * 1e3}
    return figures | ({"cancel": statistics.median(gone) * 1e3} if gone else {})


def _sweep(cluster: Cluster, counts: Counts) -> Figures:
    inputs = ISING.inputs({"jobs": counts["sweep"], **counts})
    handles = [cluster.submit(ISING.function, one) for one in inputs[:WORKERS]]
    whole = [cluster.result(handle) for handle in handles]  # numpy is imported
    began = time.perf_counter()
    handles = [cluster.submit(ISING.function, one) for one in inputs]
    decide(lambda number: cluster.result(handles[number]), len(handles))
    unwanted = handles[1::2]
    decided = time.perf_counter()
    cluster.cancel(unwanted)
    while cluster.running(unwanted):
        time.sleep(POLL)
    stopped = time.perf_counter()
    results = [cluster.result(handle) for handle in handles[::2]]
    ended = time.perf_counter()
    expect(results[0], whole[0], "first result")
    return {"stop": (stopped - decided) * 1e3, "half_end": max(ended, stopped) - began}


QUESTION = Question(
    name="cluster",
    title="a cluster of two one-thread nodes on this machine",
    metrics=(
        Metric("call", "no-op round trip", "ms"),
        Metric("rate", "no-ops submitted, then collected", "jobs/s", "higher"),
        Metric("begun", "submit until the job has begun", "ms"),
        Metric("cancel", "cancel until its process is gone", "ms"),
        Metric("result", "result of 10 MB", "ms"),
        Metric("stop", "half of a sweep cancelled: until none of these runs", "ms"),
        Metric("half_end", "that sweep, until all is over", "s"),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, ours), ("distributed", "numpy")),
        Contender("Dask", "peer", partial(measure, dask), ("distributed", "numpy")),
        Contender("Ray", "peer", partial(measure, ray), ("ray", "numpy")),
        Contender("JobPool", "aside", partial(measure, one_machine), ("numpy",)),
    ),
    goals=(
        Goal("call", "Dask", at_most=0.2),
        Goal("rate", "Dask", at_least=2.0),
        Goal("begun", "Dask", at_most=1.0),
        Goal("cancel", at_most=20.0),
        Goal("result", "Dask", at_most=1.0),
        Goal("stop", "Dask", at_most=0.2),
        Goal("half_end", "Dask", at_most=1.0),
    ),
    full=Scale(
        rounds=3,
        limit=180,
        counts={
            "calls": 300,
            "jobs": 2000,
            "bytes": 10_000_000,
            "results": 15,
            "cancels": 10,
            "sweep": 64,
            "side": 64,
            "sweeps": 150,
        },
    ),
    quick=Scale(
        rounds=1,
        limit=90,
        counts={
            "calls": 50,
            "jobs": 300,
            "bytes": 10_000_000,
            "results": 5,
            "cancels": 3,
            "sweep": 32,
            "side": 64,
            "sweeps": 100,
        },
    ),
    smoke=Scale(
        rounds=1,
        limit=50,
        counts={
            "calls": 2,
            "jobs": 10,
            "bytes": 1_000_000,
            "results": 2,
            "cancels": 1,
            "sweep": 8,
            "side": 16,
            "sweeps": 100,
        },
    ),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

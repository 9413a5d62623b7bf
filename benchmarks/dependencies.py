"""What does it cost that a job gets the result of another one?

A job makes an array of float64, the next one gets it and returns its last number: `handed` is the
time of both, from the first submit; `echo` that in which the same array goes to a job and comes
back, which any job can do. `memory` is how much more the program itself needs at most while that
is done, measured first. `chain` is a row of jobs each of which needs the one before; `fan` are as
many that need one, and one that needs them all.

Dask's is `client.submit` with futures among the arguments, on a `LocalCluster` of two processes of
one thread, with its scheduler in the program. It has the second job run where the array is, so that
nothing is sent; where that worker is busy, it is sent to the other one: that is what "Dask" does
here, and "Dask, in one process" the former, as an aside.
"""

from __future__ import annotations

import contextlib
import operator
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.batches import WORKERS
from benchmarks.cluster import dask_cluster
from benchmarks.harness import (
    OURS,
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
from benchmarks.jobs import last, numbers, pause, same, total

Submit = Callable[..., Any]
Result = Callable[[Any], Any]
Ways = tuple[Submit, Submit, Submit, Result]
"""Submits whatever job, one that makes an array, the one that gets it; waits for a result."""
Start = Callable[[], AbstractContextManager[Ways]]


@contextlib.contextmanager
def ours() -> Iterator[Ways]:
    from primitive_jobs import JobPool

    with JobPool(WORKERS) as pool:
        yield pool.submit, pool.submit, pool.submit, lambda job: job.result()


@contextlib.contextmanager
def dask(*, apart: bool) -> Iterator[Ways]:
    from distributed import Client

    with dask_cluster() as cluster, Client(cluster) as client:
        submit = partial(client.submit, pure=False)  # else equal calls are made once
        one, other = list(client.scheduler_info()["workers"])[:2]
        make, get = (partial(submit, workers=[each]) for each in (one, other))
        ways = (make, get) if apart else (submit, submit)
        yield submit, *ways, lambda future: future.result()


def measure(start: Start, counts: Counts) -> Figures:
    size = counts["bytes"]
    with start() as (submit, make, get, result):
        for handle in [submit(pause, 0.5) for _ in range(WORKERS)]:
            result(handle)  # both workers are there
        for handle in [get(last, make(numbers, 8_000)) for _ in range(4 * WORKERS)]:
            result(handle)  # and have numpy

        def hand_on() -> None:
            expect(result(get(last, make(numbers, size))), size // 8 - 1)

        before = _peak()
        hand_on()
        figures = {"memory": _peak() - before, "handed": _median(hand_on, counts["trips"])}
        figures["echo"] = _echo(submit, result, counts)
        figures["ratio"] = figures["handed"] / figures["echo"]
        figures["chain"] = _rate(partial(_chain, submit, result), counts["jobs"])
        figures["fan"] = _rate(partial(_fan, submit, result), counts["jobs"])
    return figures


def _echo(submit: Submit, result: Result, counts: Counts) -> float:
    array = numbers(counts["bytes"])
    return _median(lambda: last(result(submit(same, array))), counts["trips"])


def _peak() -> float:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _median(call: Callable[[], object], count: int) -> float:
    """Milliseconds that it takes, in the middle."""
    times = []
    for _ in repeat(count, budget=10):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def _rate(call: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    call(count)
    return count / (time.perf_counter() - began)


def _chain(submit: Submit, result: Result, count: int) -> None:
    handle = submit(operator.add, 0, 1)
    for _ in range(count - 1):
        handle = submit(operator.add, handle, 1)
    expect(result(handle), count)


def _fan(submit: Submit, result: Result, count: int) -> None:
    first = submit(operator.add, 0, 1)
    handles = [submit(operator.add, first, number) for number in range(count)]
    expect(result(submit(total, handles)), count + count * (count - 1) // 2)


QUESTION = Question(
    name="dependencies",
    title="jobs that need the results of others",
    metrics=(
        Metric("handed", "100 MB to the next job", "ms"),
        Metric("echo", "100 MB to a job and back", "ms", headline=False),
        Metric("ratio", "the former by the latter", "", headline=False),
        Metric("memory", "what the program needs for it", "MB"),
        Metric("chain", "a chain of 10,000 jobs", "jobs/s", "higher"),
        Metric("fan", "10,000 that need one, and one that needs all", "jobs/s", "higher"),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, ours), ("numpy",)),
        Contender(
            "Dask", "peer", partial(measure, partial(dask, apart=True)), ("distributed", "numpy")
        ),
        Contender(
            "Dask, in one process",
            "aside",
            partial(measure, partial(dask, apart=False)),
            ("distributed", "numpy"),
            note="has the second job run where the array is",
        ),
    ),
    goals=(
        Goal("ratio", at_most=1.0),
        Goal("memory", at_most=10.0),
        Goal("handed", "Dask", at_most=1.0),
        Goal("chain", "Dask", at_least=2.0),
        Goal("fan", "Dask", at_least=2.0),
    ),
    full=Scale(rounds=3, limit=180, counts={"bytes": 100_000_000, "trips": 7, "jobs": 10_000}),
    quick=Scale(rounds=1, limit=90, counts={"bytes": 100_000_000, "trips": 3, "jobs": 2_000}),
    smoke=Scale(rounds=1, limit=50, counts={"bytes": 1_000_000, "trips": 1, "jobs": 20}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

"""How many no-op jobs go through two workers in a second?

`submitted` is the question: each call is a job of its own, with a handle; all are submitted, then
all results collected. Its first result does not count before its last submit.

`mapped` is the answer that each library has for such short calls, many of them in a message:
chunks of the same size where one can be set, and joblib's own choice, which adapts as it goes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pools
from benchmarks.harness import (
    EVERY_PEER,
    OURS,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    expect,
)
from benchmarks.jobs import noop, same

WORKERS = 2
CHUNK = 100  # calls in a message, for `mapped`
WARM_UP = 200  # calls before any is timed: both workers have started then, and imported the job


def measure_submitted(start: pools.Start, counts: Counts) -> Figures:
    jobs = counts["jobs"]
    with start(WORKERS) as pool:
        for handle in [pool.submit(noop) for _ in range(WARM_UP)]:
            pool.result(handle)
        started = time.perf_counter()
        handles = [pool.submit(noop) for _ in range(jobs)]
        results = [pool.result(handle) for handle in handles]
        seconds = time.perf_counter() - started
    expect(results, [None] * jobs)
    return {"submitted": jobs / seconds}


# --- many calls in a message: how each library does that ---------------------------------------

Map = Callable[[range], Iterable[Any]]


@contextlib.contextmanager
def our_map() -> Iterator[Map]:
    from primitive_jobs import JobPool

    with JobPool(WORKERS) as pool:
        yield lambda values: pool.map(same, values, chunksize=CHUNK)


@contextlib.contextmanager
def multiprocessing_map() -> Iterator[Map]:
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        yield lambda values: pool.map(same, values, chunksize=CHUNK)


@contextlib.contextmanager
def futures_map() -> Iterator[Map]:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
        yield lambda values: executor.map(same, values, chunksize=CHUNK)


@contextlib.contextmanager
def loky_map() -> Iterator[Map]:
    from loky import get_reusable_executor

    executor = get_reusable_executor(WORKERS)
    try:
        yield lambda values: executor.map(same, values, chunksize=CHUNK)
    finally:
        executor.shutdown()


@contextlib.contextmanager
def pebble_map() -> Iterator[Map]:
    import pebble

    with pebble.ProcessPool(WORKERS, context=multiprocessing.get_context("fork")) as pool:
        yield lambda values: pool.map(same, values, chunksize=CHUNK).result()


@contextlib.contextmanager
def mpire_map() -> Iterator[Map]:
    import mpire

    # Kept alive: its maps start their workers anew otherwise.
    with mpire.WorkerPool(WORKERS, start_method="fork", keep_alive=True) as pool:
        yield lambda values: pool.map(same, values, chunk_size=CHUNK)


@contextlib.contextmanager
def joblib_map() -> Iterator[Map]:
    import joblib

    with joblib.Parallel(n_jobs=WORKERS) as parallel:
        yield lambda values: parallel(joblib.delayed(same)(value) for value in values)


def time_map(start: Callable[[], AbstractContextManager[Map]], counts: Counts) -> Figures:
    jobs = counts["jobs"]
    with start() as run:
        expect(list(run(range(WARM_UP))), list(range(WARM_UP)))
        started = time.perf_counter()
        results = list(run(range(jobs)))
        seconds = time.perf_counter() - started
    expect(results, list(range(jobs)))
    return {"mapped": jobs / seconds}


MAPS: dict[str, Callable[[], AbstractContextManager[Map]]] = {
    OURS: our_map,
    pools.FORK_POOL: multiprocessing_map,
    "concurrent.futures fork": futures_map,
    "loky": loky_map,
    "pebble": pebble_map,
    "mpire": mpire_map,
}


def measure(name: str, submitted: Contender, counts: Counts) -> Figures:
    figures = dict(submitted.measure(counts))
    if name in MAPS:
        figures |= time_map(MAPS[name], counts)
    return figures


QUESTION = Question(
    name="throughput",
    title="no-op jobs, two workers",
    metrics=(
        Metric("submitted", "submitted, then collected", "jobs/s", "higher"),
        Metric("mapped", f"map in chunks of {CHUNK}", "calls/s", "higher"),
    ),
    contenders=(
        *(
            Contender(one.name, one.role, partial(measure, one.name, one), one.needs)
            for one in pools.everyone(measure_submitted)
        ),
        Contender(
            "joblib",
            "peer",
            partial(time_map, joblib_map),
            ("joblib",),
            note="only mapped: batches",
        ),
    ),
    goals=(
        Goal("submitted", pools.FORK_POOL, at_least=1.1),
        Goal("submitted", EVERY_PEER, at_least=1.0, but=(pools.FORK_POOL, pools.SPAWN_POOL)),
        Goal("submitted", "loky", at_least=4.0),
    ),
    full=Scale(rounds=5, limit=120, counts={"jobs": 20_000}),
    quick=Scale(rounds=2, limit=60, counts={"jobs": 4000}),
    smoke=Scale(rounds=1, limit=30, counts={"jobs": 20}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

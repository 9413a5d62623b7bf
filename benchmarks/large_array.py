"""How long does a large array take to a worker and back?

The job returns its argument, an array of float64. Workers are warm and have np. Every page of
what comes back is read once, since some ways only map it. The floor is what has to be written to
memory at least, once in each direction: two writes into fresh memfds.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    EVERY_PEER,
    FLOOR,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    repeat,
)
from benchmarks.jobs import same
from benchmarks.pools import Start, everyone

WORKERS = 2
PAGE = 4096 // 8  # elements
WARM_UP = 8  # small arrays before any is timed: both workers have imported numpy then


def make_array(megabytes: int) -> Any:
    return np.random.default_rng(1).random(megabytes * 1_000_000 // 8)


def time_trips(trip: Callable[[Any], Any], counts: Counts) -> Figures:
    array = make_array(counts["megabytes"])
    times = []
    for _ in repeat(counts["trips"], budget=counts["budget_s"]):
        started = time.perf_counter()
        back = trip(array)
        back[::PAGE].sum()
        times.append(time.perf_counter() - started)
        if back is array or not np.array_equal(back, array):
            raise ValueError("not the array that was sent")
        del back  # two of them need more memory than one
    return {"trip": statistics.median(times) * 1e3}


def measure(start: Start, counts: Counts) -> Figures:
    with start(WORKERS) as pool:
        for handle in [pool.submit(same, make_array(1)) for _ in range(WARM_UP)]:
            pool.result(handle)
        return time_trips(lambda array: pool.result(pool.submit(same, array)), counts)


def measure_joblib(counts: Counts) -> Figures:
    import joblib

    # Arrays of 1 MB and more go through files in /dev/shm, by default.
    with joblib.Parallel(n_jobs=WORKERS) as parallel:
        parallel(joblib.delayed(same)(make_array(1)) for _ in range(WARM_UP))
        return time_trips(lambda array: parallel([joblib.delayed(same)(array)])[0], counts)


def two_writes(counts: Counts) -> Figures:
    def trip(array: Any) -> Any:
        for _ in range(2):
            descriptor = os.memfd_create("floor")
            view = memoryview(array).cast("B")
            while view:
                view = view[os.write(descriptor, view) :]
            back = np.memmap(os.fdopen(descriptor, "r+b"), array.dtype, "r")
        return back

    return time_trips(trip, counts)


QUESTION = Question(
    name="large_array",
    title="100 MB float64 array there and back",
    metrics=(Metric("trip", "there and back", "ms"),),
    contenders=(
        *(
            Contender(one.name, one.role, one.measure, (*one.needs, "numpy"))
            for one in everyone(measure)
        ),
        Contender(
            "joblib",
            "peer",
            measure_joblib,
            ("joblib", "numpy"),
            note="sends the name of a file back, as the result is the array that lies there",
        ),
        Contender("two memfd writes", "floor", two_writes, ("numpy",)),
    ),
    goals=(Goal("trip", EVERY_PEER, at_most=0.3), Goal("trip", FLOOR, at_most=1.3)),
    full=Scale(rounds=3, limit=60, counts={"megabytes": 100, "trips": 5, "budget_s": 4}),
    quick=Scale(rounds=2, limit=40, counts={"megabytes": 100, "trips": 2, "budget_s": 1}),
    smoke=Scale(rounds=1, limit=30, counts={"megabytes": 1, "trips": 1, "budget_s": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

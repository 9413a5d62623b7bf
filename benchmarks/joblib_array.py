"""What does one large array cost that is an argument of every task of joblib's?

`one`: each task reads one element of it; `all`: each sums all of it. From the call of `Parallel` to
its results, with workers that are warm and have numpy; the array is a new one each time. By the
backend of joblib's own processes, tasks cannot write to it.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
from benchmarks.jobs import element_of, sum_of

WORKERS = 2
WARM_UP = 50  # tasks


def measure(backend: str, counts: Counts) -> Figures:
    import joblib

    times: dict[str, list[float]] = {"one": [], "all": []}
    with joblib.parallel_config(backend=backend, n_jobs=WORKERS):
        joblib.Parallel()(joblib.delayed(sum_of)(np.ones(10), place) for place in range(WARM_UP))
        for turn in repeat(counts["repeats"], budget=counts["budget_s"], least=1):
            values = np.random.default_rng(turn).random(counts["megabytes"] * 1_000_000 // 8)
            total = float(values.sum())
            for name, function in (("one", element_of), ("all", sum_of)):
                array: Any = values.copy()  # else joblib would know it again
                places = range(counts["tasks"])
                started = time.perf_counter()
                found = joblib.Parallel()(joblib.delayed(function)(array, i) for i in places)
                times[name].append(time.perf_counter() - started)
                wanted = values[: len(places)].tolist() if name == "one" else [total] * len(places)
                expect(found, wanted, "results")
    return {name: statistics.median(each) * 1e3 for name, each in times.items()}


def ours(counts: Counts) -> Figures:
    import primitive_jobs.joblib

    primitive_jobs.joblib.register()
    try:
        return measure("primitive_jobs", counts)
    finally:
        primitive_jobs.joblib.shutdown()


def with_each_batch(counts: Counts) -> Figures:
    from primitive_jobs._engine import repeated

    vars(repeated)["LEAST"] = sys.maxsize
    return ours(counts)


def loky(counts: Counts) -> Figures:
    from joblib.externals.loky import get_reusable_executor

    try:
        return measure("loky", counts)
    finally:
        get_reusable_executor().shutdown()


QUESTION = Question(
    name="joblib_array",
    title="one 40 MB array in 100 tasks of joblib's",
    metrics=(
        Metric("one", "each reads one element", "ms"),
        Metric("all", "each sums all of it", "ms"),
    ),
    contenders=(
        Contender(OURS, "ours", ours, ("numpy", "joblib")),
        Contender("joblib", "peer", loky, ("numpy", "joblib"), note="a file in /dev/shm"),
        Contender(
            "with each batch",
            "aside",
            with_each_batch,
            ("numpy", "joblib"),
            note="ours, where each batch brings the array and each task copies it",
        ),
    ),
    goals=(Goal("one", "joblib", at_most=1.2), Goal("all", "joblib", at_most=1.2)),
    full=Scale(
        rounds=5, limit=90, counts={"megabytes": 40, "tasks": 100, "repeats": 5, "budget_s": 10}
    ),
    quick=Scale(
        rounds=2, limit=60, counts={"megabytes": 40, "tasks": 100, "repeats": 2, "budget_s": 2}
    ),
    smoke=Scale(
        rounds=1, limit=40, counts={"megabytes": 2, "tasks": 10, "repeats": 1, "budget_s": 1}
    ),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

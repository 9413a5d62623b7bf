"""What is gained by sending short jobs ahead to busy workers, and what does it cost?

The peer is this library itself, with that turned off: each job goes to its worker when the one
before has been answered. Jobs of all lengths; a caller that computes in pure Python meanwhile, and
so keeps the pool's thread from its work; and what comes first although it came last: a job of a
higher priority, and the cancel of the job that is next.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OURS, Contender, Counts, Figures, Goal, Metric, Question, Scale
from benchmarks.jobs import noop

WORKERS = 2
ONE_BY_ONE = "primitive_jobs, one by one"
LENGTHS = (0.0,) * 12 + (0.0001,) * 6 + (0.001,) * 3 + (0.005,)  # s


def last(seconds: float) -> None:
    """Compute for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@contextmanager
def warm(*, ahead: bool) -> Iterator[Any]:
    """A pool whose workers are known for short jobs."""
    from primitive_jobs import JobPool

    with JobPool(WORKERS) as pool:
        if not ahead:
            pool._engine._scheduler.lines.most = 0
        for _ in range(3):
            for job in [pool.submit(noop) for _ in range(200)]:
                job.result()
        yield pool


def rate(pool: Any, lengths: list[float]) -> float:
    """Jobs per second, from the first submit to the last result."""
    started = time.perf_counter()
    for job in [pool.submit(last, length) if length else pool.submit(noop) for length in lengths]:
        job.result()
    return len(lengths) / (time.perf_counter() - started)


def rate_beside(pool: Any, lengths: list[float]) -> float:
    """The same, while the caller computes until all are over."""
    started = time.perf_counter()
    jobs = [pool.submit(last, length) if length else pool.submit(noop) for length in lengths]
    while not all(job.in_final_state() for job in jobs[-WORKERS:]):
        for number in range(1000):
            number * number
    for job in jobs:
        job.result()
    return len(lengths) / (time.perf_counter() - started)


def before_others(pool: Any, waiting: int, times: int) -> float:
    """Milliseconds from the submit of an urgent job to its result, while no-ops wait."""
    urgent = pool.options(priority=1)
    found = []
    for _ in range(times):
        jobs = [pool.submit(noop) for _ in range(waiting)]
        started = time.perf_counter()
        urgent.submit(noop).result()
        found.append(time.perf_counter() - started)
        for job in jobs:
            job.result()
    return 1000 * statistics.median(found)


def next_cancelled(pool: Any, waiting: int, times: int) -> float:
    """Milliseconds that the cancel of a job near the front of many no-ops takes."""
    found: list[float] = []
    for _ in range(100 * times):  # all may be over before the caller comes to look
        if len(found) == times:
            break
        jobs = [pool.submit(noop) for _ in range(waiting)]
        jobs[waiting // 4].result()
        near = next((job for job in jobs[waiting // 4 :] if not job.in_final_state()), None)
        if near is not None:
            started = time.perf_counter()
            near.cancel()
            found.append(time.perf_counter() - started)
        for job in jobs:
            job.wait()
    return 1000 * statistics.median(found)


def measure(counts: Counts, *, ahead: bool) -> Figures:
    jobs, times = counts["jobs"], counts["times"]
    mixed = random.Random(1).choices(LENGTHS, k=jobs // 10)
    tasks: dict[str, Callable[[Any], float]] = {
        "no_ops": lambda pool: rate(pool, [0.0] * jobs),
        "us_100": lambda pool: rate(pool, [0.0001] * (jobs // 5)),
        "ms_1": lambda pool: rate(pool, [0.001] * (jobs // 40)),
        "ms_5": lambda pool: rate(pool, [0.005] * (jobs // 100)),
        "mixed": lambda pool: rate(pool, mixed),
        "beside_no_ops": lambda pool: rate_beside(pool, [0.0] * (jobs // 5)),
        "beside_ms_1": lambda pool: rate_beside(pool, [0.001] * (jobs // 100)),
        "urgent": lambda pool: before_others(pool, jobs // 5, times),
        "cancel": lambda pool: next_cancelled(pool, jobs // 5, times),
    }
    with warm(ahead=ahead) as pool:
        return {name: task(pool) for name, task in tasks.items()}


QUESTION = Question(
    name="sent_ahead",
    title="short jobs, two workers: sent ahead, or one by one",
    metrics=(
        Metric("no_ops", "no-ops", "jobs/s", "higher"),
        Metric("us_100", "jobs of 0.1 ms", "jobs/s", "higher"),
        Metric("ms_1", "jobs of 1 ms", "jobs/s", "higher"),
        Metric("ms_5", "jobs of 5 ms", "jobs/s", "higher"),
        Metric("mixed", "a mix of 0 to 5 ms", "jobs/s", "higher"),
        Metric("beside_no_ops", "no-ops, the caller computes", "jobs/s", "higher"),
        Metric("beside_ms_1", "jobs of 1 ms, the caller computes", "jobs/s", "higher"),
        Metric("urgent", "a job of a higher priority, behind no-ops", "ms", "lower"),
        Metric("cancel", "cancel of the next one of many no-ops", "ms", "lower"),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, ahead=True)),
        Contender(ONE_BY_ONE, "peer", partial(measure, ahead=False)),
    ),
    goals=(
        Goal("no_ops", ONE_BY_ONE, at_least=1.5),
        Goal("us_100", ONE_BY_ONE, at_least=1.0),
        Goal("ms_5", ONE_BY_ONE, at_least=0.97),
    ),
    full=Scale(rounds=5, limit=180, counts={"jobs": 20_000, "times": 15}),
    quick=Scale(rounds=2, limit=60, counts={"jobs": 4000, "times": 5}),
    smoke=Scale(rounds=1, limit=30, counts={"jobs": 200, "times": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

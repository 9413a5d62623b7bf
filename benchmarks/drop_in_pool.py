"""What does our `Pool` cost a program that is written for `multiprocessing.Pool`?

The same lines with either, over two workers: `map` of short calls with the chunks that each chooses
by itself, `imap_unordered` with its default, which is one call at a time, and as many
`apply_async`, of which all results are asked for then.

`after_kill`: both workers are busy and one more call is queued; one worker gets a SIGKILL. From
that until the queued call's result. `killed`: until the call of the killed worker has failed;
with the standard library's pool it never does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

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
from benchmarks.jobs import hold, same
from benchmarks.observe import Meeting
from benchmarks.pools import SPAWN_POOL

WORKERS = 2
WARM_UP = 200  # calls
REPEATS = 5  # the median counts
PAUSE = 0.5  # s before anything is timed, so that whatever a pool keeps ready is ready

Start = Callable[[], AbstractContextManager[Any]]


@contextlib.contextmanager
def ours() -> Iterator[Any]:
    from primitive_jobs.multiprocessing import Pool

    with Pool(WORKERS) as pool:
        yield pool


@contextlib.contextmanager
def theirs() -> Iterator[Any]:
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        yield pool


def median_of(run: Callable[[], list[Any]], expected: list[Any]) -> float:
    """Return the milliseconds that it takes."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        results = run()
        found.append(time.perf_counter() - started)
        expect(results, expected)
    return statistics.median(found) * 1e3


def time_kill(pool: Any, meeting: Meeting, *, fails: bool) -> Figures:
    """Kill one of two busy workers."""
    calls = {}
    for _ in range(WORKERS):
        call = pool.apply_async(hold, (meeting.address,))
        calls[meeting.next()] = call
    queued = pool.apply_async(same, (5,))
    time.sleep(PAUSE)
    pid, call = calls.popitem()
    started = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    figures = {}
    if fails:
        try:
            call.get()
        except BrokenProcessPool:
            pass
        else:
            raise RuntimeError("a killed worker's call has returned")
        figures["killed"] = (time.perf_counter() - started) * 1e3
    expect(queued.get(), 5)
    figures["after_kill"] = (time.perf_counter() - started) * 1e3
    meeting.release()
    for other in calls.values():
        other.get()
    return figures


def measure(start: Start, counts: Counts, *, fails: bool = False) -> Figures:
    mapped, single = [*range(counts["mapped"])], [*range(counts["single"])]
    with start() as pool:
        expect(pool.map(same, range(WARM_UP)), list(range(WARM_UP)))
        time.sleep(PAUSE)
        figures = {
            "map": median_of(lambda: pool.map(same, mapped), mapped),
            "imap_unordered": median_of(lambda: sorted(pool.imap_unordered(same, single)), single),
            "apply_async": median_of(
                lambda: [handle.get() for handle in [pool.apply_async(same, (x,)) for x in single]],
                single,
            ),
        }
        kills: list[Figures] = []
        for _ in repeat(counts["kills"], budget=counts["budget_s"]):
            with Meeting() as meeting:
                kills.append(time_kill(pool, meeting, fails=fails))
    for key in kills[0]:
        figures[key] = statistics.median(kill[key] for kill in kills)
    return figures


QUESTION = Question(
    name="drop_in_pool",
    title="in the place of multiprocessing.Pool, two workers",
    metrics=(
        Metric("map", "map of 10,000 short calls", "ms"),
        Metric("imap_unordered", "imap_unordered of 2,000", "ms"),
        Metric("apply_async", "2,000 apply_async, then their results", "ms"),
        Metric("after_kill", "the next call done after a worker was killed", "ms"),
        Metric("killed", "the killed worker's call has failed", "ms"),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, ours, fails=True)),
        Contender(SPAWN_POOL, "peer", partial(measure, theirs)),
    ),
    goals=(
        Goal("map", SPAWN_POOL, at_most=1.5),
        Goal("imap_unordered", SPAWN_POOL, at_most=1.5),
        Goal("apply_async", SPAWN_POOL, at_most=1.5),
        Goal("after_kill", SPAWN_POOL, at_most=1.0),
        Goal("killed", at_most=20.0),
    ),
    full=Scale(
        rounds=5,
        limit=60,
        counts={"mapped": 10_000, "single": 2_000, "kills": 3, "budget_s": 6},
    ),
    quick=Scale(
        rounds=2,
        limit=40,
        counts={"mapped": 10_000, "single": 2_000, "kills": 2, "budget_s": 3},
    ),
    smoke=Scale(
        rounds=1,
        limit=30,
        counts={"mapped": 100, "single": 20, "kills": 1, "budget_s": 1},
    ),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

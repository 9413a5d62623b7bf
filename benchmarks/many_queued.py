"""What does a job cost that waits, among 100,000 that do?

All workers are busy, so that every job submitted is queued. `first` and `last` are the mean cost
of a submit over the first and the last tenth of them, `growth` is their ratio.

`memory` is what the caller's process grows by for each job, its handle included, less the payload
(the pickle of function and arguments). It is resident memory that grows, not what tracemalloc
counts: tracemalloc sees no memory of C code and no waste of the allocator, and takes more time for
each object than a submit does.

`cancel` is the time to cancel every second of them, one by one, scaled to 50,000 cancels.
"""

from __future__ import annotations

import gc
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Counts, Figures, Goal, Metric, Question, Scale, absent
from benchmarks.jobs import hold, noop
from benchmarks.observe import Meeting, resident
from benchmarks.pools import Pool, Start, everyone

WORKERS = 2
SETTLE = 0.5  # s, in which a pool's own threads come to rest before memory is read
CANCELS = 50_000
PREFETCHED = 5  # queued calls that a pool may have sent ahead, and cannot cancel any more


def measure(start: Start, counts: Counts) -> Figures:
    with start(WORKERS) as pool, Meeting() as meeting:
        holders = [pool.submit(hold, meeting.address) for _ in range(WORKERS)]
        for _ in holders:
            meeting.next()
        handles: list[Any] = [None] * counts["jobs"]
        figures = fill(pool, handles)
        if hasattr(handles[0], "cancel"):
            figures["cancel"] = time_cancels(handles[::2])
            for handle in handles[1::2]:  # untimed: the rest is of no use any more
                handle.cancel()
        meeting.release()
        for holder in holders:
            pool.result(holder)
    return figures


def fill(pool: Pool, handles: list[Any]) -> Figures:
    """Fill the list with handles of queued jobs."""
    jobs = len(handles)
    tenth = jobs // 10
    gc.collect()
    before = resident()
    moments = []
    for place in range(jobs):
        if place in (0, tenth, jobs - tenth):
            moments.append(time.perf_counter())
        handles[place] = pool.submit(noop)
    moments.append(time.perf_counter())
    time.sleep(SETTLE)
    gc.collect()
    payload = len(pickle.dumps((noop, (), {}), pickle.HIGHEST_PROTOCOL))
    first = (moments[1] - moments[0]) / tenth
    last = (moments[3] - moments[2]) / tenth
    return {
        "first": first * 1e6,
        "last": last * 1e6,
        "growth": last / first,
        "memory": (resident() - before) / jobs - payload,
    }


def time_cancels(handles: Sequence[Any]) -> float:
    """Cancel all; return the seconds that `CANCELS` of them take."""
    started = time.perf_counter()
    done = sum(bool(handle.cancel()) for handle in handles)
    seconds = time.perf_counter() - started
    if done < len(handles) - PREFETCHED:
        raise ValueError(f"{len(handles) - done} of {len(handles)} were not cancelled")
    return seconds / len(handles) * CANCELS


QUESTION = Question(
    name="many_queued",
    title="many queued jobs",
    metrics=(
        Metric("first", "submit, over the first tenth", "us", headline=False),
        Metric("last", "submit, over the last tenth", "us"),
        Metric("growth", "submit, last tenth by first", ""),
        Metric("memory", "memory of each beyond its payload", "bytes"),
        Metric("cancel", "50,000 cancels, one by one", "s"),
    ),
    contenders=(*everyone(measure), absent("joblib", "its calls are batches")),
    goals=(
        Goal("growth", at_most=1.3),
        Goal("memory", at_most=1000),
        Goal("cancel", at_most=1.0),
    ),
    full=Scale(rounds=3, limit=120, counts={"jobs": 100_000}),
    quick=Scale(rounds=1, limit=60, counts={"jobs": 30_000}),
    smoke=Scale(rounds=1, limit=30, counts={"jobs": 1000}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

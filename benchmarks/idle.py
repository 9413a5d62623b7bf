"""What does an idle pool cost?

Both workers have run jobs and wait for more. Counted are the wake-ups (voluntary context switches)
and the CPU time of all threads of all processes, but for the caller's main thread, which looks; and
scaled to ten seconds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    absent,
    expect,
)
from benchmarks.jobs import same
from benchmarks.observe import Usage, usage
from benchmarks.pools import Start, everyone

WORKERS = 2
JOBS = 100  # to begin with
UNIT = 10.0  # s


def measure(start: Start, counts: Counts) -> Figures:
    with start(WORKERS) as pool:
        handles = [pool.submit(same, number) for number in range(JOBS)]
        expect([pool.result(handle) for handle in handles], list(range(JOBS)))
        time.sleep(counts["settle_ms"] / 1e3)  # what it starts in the background has started
        started, before = time.monotonic(), look()
        time.sleep(counts["idle_ms"] / 1e3)
        ended, after = time.monotonic(), look()
    nothing = Usage(0, 0)
    spent = [
        (
            found.switches - before.get(thread, nothing).switches,
            found.cpu_ns - before.get(thread, nothing).cpu_ns,
        )
        for thread, found in after.items()
    ]
    scale = UNIT / (ended - started)
    return {
        "wake_ups": sum(switches for switches, _ in spent) * scale,
        "cpu": sum(cpu_ns for _, cpu_ns in spent) / 1e6 * scale,
        "threads": len(after),
    }


def look() -> dict[tuple[int, int], Usage]:
    """Return what each thread of this process and of all below it has used so far."""
    here = os.getpid()
    pids = [here, *(child.pid for child in psutil.Process().children(recursive=True))]
    found = usage(pids)
    found.pop((here, here), None)
    return found


QUESTION = Question(
    name="idle",
    title="idle pool of two workers, 10 s",
    metrics=(
        Metric("wake_ups", "wake-ups", ""),
        Metric("cpu", "CPU", "ms"),
        Metric("threads", "threads of all processes, less one", "", headline=False),
    ),
    contenders=(*everyone(measure), absent("joblib", "its pool is loky's")),
    goals=(
        Goal("wake_ups", at_most=5),
        Goal("cpu", at_most=5),
    ),
    full=Scale(rounds=2, limit=60, counts={"idle_ms": 10_000, "settle_ms": 1000}),
    quick=Scale(rounds=1, limit=40, counts={"idle_ms": 1500, "settle_ms": 700}),
    smoke=Scale(rounds=1, limit=30, counts={"idle_ms": 100, "settle_ms": 100}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

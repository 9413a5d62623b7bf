"""What does it cost a job to tell how far it is, and to keep what it has done?

Each figure is the time of one call inside of a job, the floor what is left of it without us: a look
at the clock for a report; pickling the same object and writing it into a file in memory for a
checkpoint.
"""

from __future__ import annotations

import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import FLOOR, OURS, Contender, Counts, Figures, Metric, Question, Scale

VALUES = {f"value{number}": float(number) for number in range(8)}
SIZES = {"kb_1": 1000, "mb_8": 8_000_000}


def each(call: Callable[[], object], times: int) -> float:
    """Return the us that a call takes, in the median of nine rounds."""
    found = []
    for _ in range(9):
        started = time.perf_counter()
        for _ in range(times):
            call()
        found.append((time.perf_counter() - started) / times)
    return 1e6 * statistics.median(found)


def inside(times: int, large: int) -> Figures:
    """In a job."""
    from primitive_jobs import checkpoint, report

    figures = {
        "fraction": each(lambda: report(0.5), times),
        "message": each(lambda: report(0.5, "at step 17 of 400"), times),
        "values": each(lambda: report(0.5, "at step 17 of 400", **VALUES), times),
    }
    checkpoint("first", force=True)
    figures["skipped"] = each(lambda: checkpoint("again", most=0.0), times)
    for name, size in SIZES.items():
        state = os.urandom(size)

        def keep(state: bytes = state) -> object:
            return checkpoint(state, force=True)

        figures[name] = each(keep, large if size > 10_000 else times // 10)
    return figures


def measure(counts: Counts) -> Figures:
    from primitive_jobs import JobPool

    with JobPool(1) as pool:
        return pool.submit(inside, counts["times"], counts["large"]).result()


def without(counts: Counts) -> Figures:
    times, large = counts["times"], counts["large"]
    file = os.memfd_create("floor")
    figures = dict.fromkeys(("fraction", "message", "values", "skipped"), 0.0)
    for name in figures:
        figures[name] = each(time.monotonic_ns, times)
    for name, size in SIZES.items():
        state = os.urandom(size)

        def keep(state: bytes = state) -> object:
            return os.pwrite(file, pickle.dumps(state, 5), 0)

        figures[name] = each(keep, large if size > 10_000 else times // 10)
    os.close(file)
    return figures


QUESTION = Question(
    name="insight",
    title="reports and checkpoints, inside of a job",
    metrics=(
        Metric("fraction", "report of a fraction", "us"),
        Metric("message", "report with a message", "us"),
        Metric("values", "report with eight values", "us"),
        Metric("skipped", "checkpoint that is not due", "us"),
        Metric("kb_1", "checkpoint of 1 KB", "us"),
        Metric("mb_8", "checkpoint of 8 MB", "us"),
    ),
    contenders=(
        Contender(OURS, "ours", measure),
        Contender(FLOOR, "floor", without),
    ),
    goals=(),
    full=Scale(rounds=5, limit=60, counts={"times": 20_000, "large": 5}),
    quick=Scale(rounds=2, limit=30, counts={"times": 5000, "large": 2}),
    smoke=Scale(rounds=1, limit=30, counts={"times": 100, "large": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

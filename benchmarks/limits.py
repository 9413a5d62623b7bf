"""What does a limit cost a job that does nothing?

One caller, one worker, one no-op at a time, as in `round_trip`, with a `memory_limit`; beside it
the same without, and with a `timeout`, whose jobs go by way of the dispatcher.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OURS, Contender, Counts, Figures, Goal, Metric, Question, Scale
from benchmarks.jobs import noop
from benchmarks.round_trip import time_calls

FREE = "without"


def measure(options: dict[str, Any], counts: Counts) -> Figures:
    from primitive_jobs import JobPool

    with JobPool(1) as pool:
        view = pool.options(**options)
        return time_calls(lambda: view.submit(noop).result(), None, counts)


QUESTION = Question(
    name="limits",
    title="no-op round trip with a memory_limit",
    metrics=(
        Metric("call", "median", "us"),
        Metric("p10", "10th percentile", "us", headline=False),
        Metric("p99", "99th percentile", "us", headline=False),
    ),
    contenders=(
        Contender(OURS, "ours", functools.partial(measure, {"memory_limit": "4 GB"})),
        Contender(FREE, "peer", functools.partial(measure, {})),
        Contender("timeout", "peer", functools.partial(measure, {"timeout": 60.0})),
    ),
    goals=(Goal("call", FREE, at_most=1.1),),
    full=Scale(rounds=7, limit=60, counts={"calls": 2000, "warm_up_ms": 500}),
    quick=Scale(rounds=2, limit=40, counts={"calls": 300, "warm_up_ms": 200}),
    smoke=Scale(rounds=1, limit=30, counts={"calls": 5, "warm_up_ms": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

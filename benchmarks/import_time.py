"""What does importing the package cost a program that may never run a job?

In a bare interpreter, between two readings of the clock: what a program writes to have all of the
interface at hand. `import primitive_jobs` alone, which loads next to nothing, is shown beside it.

`heavy` counts what is loaded by that of the packages that only the first job needs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    FLOOR,
    OURS,
    ROOT,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
)

HEAVY = ("asyncio", "cloudpickle", "loky", "numpy", "psutil")

CODE = """\
import sys, time
started = time.perf_counter_ns()
{statement}
ended = time.perf_counter_ns()
print(ended - started, sum(name in sys.modules for name in {heavy}))
"""


def measure(statement: str, counts: Counts) -> Figures:
    command = [sys.executable, "-c", CODE.format(statement=statement, heavy=HEAVY)]
    found = []
    for _ in range(1 + counts["runs"]):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        found.append([int(word) for word in done.stdout.split()])
    times_ns = [run[0] for run in found[1:]]  # the first one may have written byte code
    return {"time": statistics.median(times_ns) / 1e6, "heavy": found[0][1]}


def peer(name: str, statement: str, *needs: str) -> Contender:
    return Contender(name, "peer", partial(measure, statement), needs)


QUESTION = Question(
    name="import_time",
    title="import of the package",
    metrics=(
        Metric("time", "time", "ms"),
        Metric("heavy", f"of {', '.join(HEAVY)} loaded", "", headline=False),
    ),
    contenders=(
        Contender(
            OURS,
            "ours",
            partial(measure, "from primitive_jobs import JobPool, as_completed, run, share, wait"),
            note="all of the interface, not the bare package",
        ),
        Contender(
            "concurrent.futures.process",
            "floor",
            partial(measure, "import concurrent.futures.process"),
        ),
        Contender("import primitive_jobs", "aside", partial(measure, "import primitive_jobs")),
        peer("multiprocessing.Pool", "import multiprocessing.pool"),
        peer("loky", "import loky", "loky"),
        peer("pebble", "import pebble", "pebble"),
        peer("mpire", "import mpire", "mpire"),
        peer("deadpool", "import deadpool", "deadpool-executor"),
        peer("joblib", "import joblib", "joblib"),
    ),
    goals=(Goal("time", FLOOR, at_most=1.2), Goal("heavy", at_most=0.0)),
    full=Scale(rounds=5, limit=60, counts={"runs": 10}),
    quick=Scale(rounds=2, limit=40, counts={"runs": 3}),
    smoke=Scale(rounds=1, limit=30, counts={"runs": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

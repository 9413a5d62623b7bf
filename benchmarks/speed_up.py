"""Do two workers do twice the work, while nobody else is in their way?

CPU-bound jobs of half a second (less with --quick), eight for each worker; workers are warm. The
floor is two plain processes that do half of the same work each, at the same time. A pool that
spends CPU beside its workers, or lets one of them wait, falls behind it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    EVERY_PEER,
    FLOOR,
    ROOT,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    expect,
)
from benchmarks.jobs import compute, noop
from benchmarks.pools import Start, everyone

WORKERS = 2
WARM_UP = 50  # calls before any is timed: both workers have started then


def measure(start: Start, counts: Counts) -> Figures:
    jobs, steps = counts["jobs"], counts["steps"]
    with start(WORKERS) as pool:
        for handle in [pool.submit(noop) for _ in range(WARM_UP)]:
            pool.result(handle)
        started = time.perf_counter()
        handles = [pool.submit(compute, steps) for _ in range(jobs)]
        results = [pool.result(handle) for handle in handles]
        seconds = time.perf_counter() - started
    expect(results, [compute(steps)] * jobs)
    return {"rate": jobs / seconds}


def measure_joblib(counts: Counts) -> Figures:
    import joblib

    jobs, steps = counts["jobs"], counts["steps"]
    with joblib.Parallel(n_jobs=WORKERS) as parallel:
        parallel(joblib.delayed(noop)() for _ in range(WARM_UP))
        started = time.perf_counter()
        # No guess at the size of a batch is to be in the way of jobs this long.
        results = parallel([joblib.delayed(compute)(steps) for _ in range(jobs)])
        seconds = time.perf_counter() - started
    expect(results, [compute(steps)] * jobs)
    return {"rate": jobs / seconds}


CODE = """\
import sys
from benchmarks.jobs import compute
jobs, steps = map(int, sys.argv[1:])
print(flush=True)
sys.stdin.readline()
print(*[compute(steps) for _ in range(jobs)], flush=True)
"""


def two_processes(counts: Counts) -> Figures:
    jobs, steps = counts["jobs"], counts["steps"]
    command = [sys.executable, "-c", CODE, str(jobs // WORKERS), str(steps)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(WORKERS)
    ]
    pipes = [(one.stdin, one.stdout) for one in processes if one.stdin and one.stdout]
    for _, output in pipes:
        output.readline()
    started = time.perf_counter()
    for input_, _ in pipes:
        input_.write("\n")
        input_.flush()
    lines = [output.readline() for _, output in pipes]
    seconds = time.perf_counter() - started
    for process in processes:
        process.communicate()
    results = [int(word) for line in lines for word in line.split()]
    expect(results, [compute(steps)] * jobs)
    return {"rate": jobs / seconds}


QUESTION = Question(
    name="speed_up",
    title="16 CPU-bound jobs, two workers",
    metrics=(Metric("rate", "rate", "jobs/s", "higher"),),
    contenders=(
        *everyone(measure),
        Contender("joblib", "peer", measure_joblib, ("joblib",)),
        Contender("two plain processes", "floor", two_processes),
    ),
    goals=(Goal("rate", FLOOR, at_least=0.98), Goal("rate", EVERY_PEER, at_least=0.98)),
    # So many steps take 0.5 s on the machine where this was written.
    full=Scale(rounds=3, limit=60, counts={"jobs": 16, "steps": 4_000_000}),
    quick=Scale(rounds=2, limit=40, counts={"jobs": 16, "steps": 200_000}),
    smoke=Scale(rounds=1, limit=30, counts={"jobs": 2, "steps": 1000}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

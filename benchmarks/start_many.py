"""How long does a pool take to have all of its many workers at work?

Far more workers than cores: as many jobs as workers, each of which reports and then waits until all
have. From the making of the pool until the last one has reported. None may be lost.

The floor is as many processes of multiprocessing, by spawn, without a pool. What starts by fork
copies a running process instead of starting an interpreter.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    FLOOR,
    ROOT,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    absent,
    expect,
)
from benchmarks.jobs import hold
from benchmarks.observe import Meeting
from benchmarks.pools import Start, everyone


def time_arrivals(meeting: Meeting, begin: Callable[[], object], workers: int) -> Figures:
    started = time.perf_counter()
    begin()
    pids = {meeting.next() for _ in range(workers)}
    seconds = time.perf_counter() - started
    meeting.release()
    expect(len(pids), workers, "number of processes")
    return {"start": seconds}


def measure(start: Start, counts: Counts) -> Figures:
    workers = counts["workers"]
    started = time.perf_counter()
    with start(workers) as pool, Meeting() as meeting:
        handles = [pool.submit(hold, meeting.address) for _ in range(workers)]
        pids = {meeting.next() for _ in handles}
        seconds = time.perf_counter() - started
        meeting.release()
        expect({pool.result(handle) for handle in handles}, pids, "processes")
    expect(len(pids), workers, "number of processes")
    return {"start": seconds}


def spawned_processes(counts: Counts) -> Figures:
    context = multiprocessing.get_context("spawn")
    with Meeting() as meeting:
        processes = [
            context.Process(target=hold, args=(meeting.address,)) for _ in range(counts["workers"])
        ]

        def begin() -> None:
            for process in processes:
                process.start()

        figures = time_arrivals(meeting, begin, counts["workers"])
        for process in processes:
            process.join()
    return figures


def bare_interpreters(counts: Counts) -> Figures:
    code = "import sys; from benchmarks.jobs import hold; hold('\\0' + sys.argv[1])"
    processes: list[subprocess.Popen[bytes]] = []
    with Meeting() as meeting:
        command = [sys.executable, "-c", code, meeting.address[1:]]

        def begin() -> None:
            processes.extend(subprocess.Popen(command, cwd=ROOT) for _ in range(counts["workers"]))

        figures = time_arrivals(meeting, begin, counts["workers"])
    for process in processes:
        process.wait()
    return figures


QUESTION = Question(
    name="start_many",
    title="many more workers than cores, started at once",
    metrics=(Metric("start", "until the last one is at work", "s"),),
    contenders=(
        *everyone(measure),
        Contender("spawned Processes", "floor", spawned_processes),
        Contender(
            "bare interpreters", "aside", bare_interpreters, note="subprocess, no multiprocessing"
        ),
        absent("joblib", "its pool is loky's"),
    ),
    goals=(Goal("start", FLOOR, at_most=1.1),),
    full=Scale(rounds=5, limit=60, counts={"workers": 32}),
    quick=Scale(rounds=1, limit=60, counts={"workers": 16}),
    smoke=Scale(rounds=1, limit=40, counts={"workers": 3}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

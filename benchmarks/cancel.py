"""How long does it take to stop a running job?

From the call that stops it until its process is gone: until its pid is free again, as seen by the
caller. `python`: the job loops in Python. `c_call`: it is inside one C call that holds the GIL, so
that no signal handler written in Python runs there (nor does it end a call, as it ends a sleep).

The floor is SIGKILL and waitpid, to a process that does the same. Killing all workers of a pool, as
one has to where it cannot stop one call, is hardly more than that; so it is shown, but no peer of
a cancel that leaves all other calls alone. What it costs in the end, after_cancel.py tells.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    EVERY_PEER,
    ROOT,
    Contender,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    repeat,
)
from benchmarks.jobs import compute_in_c, spin
from benchmarks.observe import Meeting, wait_until_gone
from benchmarks.stopping import Open, everyone

JOBS: dict[str, Callable[[str], None]] = {"python": spin, "c_call": compute_in_c}
SETTLE = 0.05  # s, from the job's sign of life to the cancel: it is inside its call then


def measure(open_pool: Open, counts: Counts) -> Figures:
    with open_pool() as pool, Meeting() as meeting:
        keys = list(JOBS) if pool.stops_c_calls else ["python"]
        return time_stops(
            lambda job: pool.submit(job, meeting.address), pool.stop, meeting, counts, keys
        )


def kill_and_wait(counts: Counts) -> Figures:
    def start(job: Callable[[str], None]) -> subprocess.Popen[bytes]:
        code = (
            f"import sys; from benchmarks.jobs import {job.__name__} as job; job('\\0'+sys.argv[1])"
        )
        return subprocess.Popen([sys.executable, "-c", code, meeting.address[1:]], cwd=ROOT)

    def stop(process: subprocess.Popen[bytes]) -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    with Meeting() as meeting:
        return time_stops(start, stop, meeting, counts)


def time_stops(
    start: Callable[[Callable[[str], None]], Any],
    stop: Callable[[Any], object],
    meeting: Meeting,
    counts: Counts,
    keys: Iterable[str] = tuple(JOBS),
) -> Figures:
    figures = {}
    for key in keys:
        job = JOBS[key]
        times = []
        for _ in repeat(counts["cancels"], budget=counts["budget_s"]):
            handle = start(job)
            pid = meeting.next()
            time.sleep(SETTLE)
            started = time.perf_counter()
            stop(handle)
            wait_until_gone(pid)
            times.append(time.perf_counter() - started)
            meeting.release()
        figures[key] = statistics.median(times) * 1e3
    return figures


QUESTION = Question(
    name="cancel",
    title="cancel of a running job until its process is gone",
    metrics=(
        Metric("python", "a loop in Python", "ms"),
        Metric("c_call", "a C call that holds the GIL", "ms"),
    ),
    contenders=(
        *everyone(measure, killed_as="aside"),
        Contender("kill + waitpid", "floor", kill_and_wait),
    ),
    goals=tuple(
        goal
        for key in JOBS
        for goal in (Goal(key, at_most=5.0), Goal(key, EVERY_PEER, at_most=1.0))
    ),
    full=Scale(rounds=3, limit=90, counts={"cancels": 15, "budget_s": 6}),
    quick=Scale(rounds=2, limit=60, counts={"cancels": 3, "budget_s": 1}),
    smoke=Scale(rounds=1, limit=40, counts={"cancels": 1, "budget_s": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

"""What is lost of a sweep of which every other run is killed three quarters through?

Each run makes so many steps of so many ms of CPU; a killed one is made again until it ends. What is
counted is the CPU that all steps took beyond those that the results needed: from zero means that a
killed run begins anew; with checkpoints it goes on from the last one. In `concurrent.futures` a
killed worker fails every run that is pending, so all of these begin anew in another executor.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

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
)

WORKERS = 2
FROM_ZERO = "primitive_jobs, from zero"
FUTURES = "concurrent.futures"
STEP = 0.002  # s of CPU


def step() -> None:
    """Compute for so long."""
    end = time.process_time() + STEP
    while time.process_time() < end:
        pass


def run(number: int, steps: int, folder: str, *, keeps: bool) -> int:
    """One run of the sweep; an odd one is killed once, three quarters through."""
    from primitive_jobs import checkpoint, resume

    log = os.open(Path(folder, "steps"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    first = resume(default=0) if keeps else 0
    for done in range(first, steps):
        step()
        os.write(log, b".")
        if keeps:
            checkpoint(done + 1)
        killed = Path(folder, f"killed{number}")
        if number % 2 and done == 3 * steps // 4 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(log)
    return number


def lost(folder: str, runs: int, steps: int, began: float) -> Figures:
    """What the steps that were made took beyond those that were needed."""
    needed = runs * steps
    made = Path(folder, "steps").stat().st_size
    return {
        "lost": 100 * (made - needed) / needed,
        "wall": time.perf_counter() - began,
    }


def measure_ours(counts: Counts, *, keeps: bool) -> Figures:
    from primitive_jobs import JobPool

    runs, steps = counts["runs"], counts["steps"]
    with tempfile.TemporaryDirectory() as folder, JobPool(WORKERS) as pool:
        pool.submit(os.getpid).result()
        began = time.perf_counter()
        sweep = pool.options(retries=1)
        jobs = [sweep.submit(run, number, steps, folder, keeps=keeps) for number in range(runs)]
        expect([job.result() for job in jobs], list(range(runs)), "results")
        return lost(folder, runs, steps, began)


def measure_futures(counts: Counts) -> Figures:
    runs, steps = counts["runs"], counts["steps"]
    context = multiprocessing.get_context("spawn")
    left = set(range(runs))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        while left:
            with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
                futures = []
                with contextlib.suppress(BrokenProcessPool):
                    for number in sorted(left):
                        future = executor.submit(run, number, steps, folder, keeps=False)
                        futures.append(future)
                for future in futures:
                    with contextlib.suppress(BrokenProcessPool):
                        left.discard(future.result())
        return lost(folder, runs, steps, began)


QUESTION = Question(
    name="salvage",
    title="a sweep of which half is killed, two workers",
    metrics=(
        Metric("lost", "CPU that was used in vain", "% of what was needed"),
        Metric("wall", "until all results are there", "s"),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure_ours, keeps=True)),
        Contender(FROM_ZERO, "peer", partial(measure_ours, keeps=False)),
        Contender(FUTURES, "peer", measure_futures),
    ),
    goals=(
        Goal("lost", FROM_ZERO, at_most=0.25),
        Goal("lost", FUTURES, at_most=0.25),
    ),
    full=Scale(rounds=5, limit=120, counts={"runs": 16, "steps": 400}),
    quick=Scale(rounds=2, limit=60, counts={"runs": 8, "steps": 200}),
    smoke=Scale(rounds=1, limit=30, counts={"runs": 2, "steps": 20}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

"""A batch of heavy jobs in a loop, in threads, in the processes of others' pools, and of ours.

Twice, one after the other in the same process, each time with a pool of its own:

- the whole batch, with everything that a script pays, from the pool's import to its workers' end;
- with a change of mind: when a quarter of the results are there, and the next jobs half done,
  every second job of the batch is not wanted any more. What cannot be stopped is computed for
  nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import pools, stopping
from benchmarks.harness import OURS, ROOT, Contender, Counts, Figures, Goal, Metric, expect
from benchmarks.pools import Pool, Start
from benchmarks.simulations import Simulation

if TYPE_CHECKING:
    from typing_extensions import Self

WORKERS = 2

Function = Callable[[Any], Any]
Whole = Callable[[Function, list[Any]], list[Any]]
"""Compute all inputs; return all results when nothing runs any more."""
Half = Callable[[Function, list[Any]], "Kept"]
"""The same with a change of mind: of every second one, beginning with the second."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What came of the jobs that were wanted to the end."""

    results: list[Any]
    complete: float
    """When the last of them was there, by `time.perf_counter`."""


# --- one contender ------------------------------------------------------------------------------


def measure(whole: Whole, half: Half | None, simulation: Simulation, counts: Counts) -> Figures:
    inputs = simulation.inputs(counts)
    with watched_memory() as peak, _Clock() as clock:
        results = whole(simulation.function, inputs)
    simulation.check(inputs, results)
    expect(results[-1], simulation.function(inputs[-1]), "last result")
    figures = {"time": clock.seconds, "cpu": clock.cpu, "memory": peak() / 1e6}
    if half is not None:
        with _Clock() as clock:
            kept = half(simulation.function, inputs)
        expect(kept.results, results[::2], "results of the wanted jobs")
        figures["half_time"] = kept.complete - clock.started
        figures["half_end"], figures["half_cpu"] = clock.seconds, clock.cpu
    return figures


class _Clock:
    """Seconds on the wall, and of all cores: of this process and of those that it has reaped."""

    def __enter__(self) -> Self:
        self._cpu, self.started = self._used(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self.started, self._used() - self._cpu

    @staticmethod
    def _used() -> float:
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, who))


@contextlib.contextmanager
def watched_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that tells, afterwards, how much memory this process and its children had.

    It is the most at any one moment, in bytes; a page that several share counts once. Another
    process looks, some ten times a second; it is reaped last, so that its CPU time is not counted.
    """
    code = "from benchmarks.observe import print_peak_memory; print_peak_memory()"
    watcher = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    peaks: list[int] = []
    assert watcher.stdout is not None
    watcher.stdout.readline()  # it is there
    try:
        yield lambda: peaks[0]
    finally:
        peaks.append(int(watcher.communicate()[0]))


# --- the change of mind -------------------------------------------------------------------------


def decide(wait: Callable[[int], object], jobs: int) -> None:
    """Return in the middle of what runs once a quarter of the jobs are done."""
    started = time.perf_counter()
    quarter = max(1, jobs // 4)
    for number in range(quarter):
        wait(number)
    each = (time.perf_counter() - started) / quarter * WORKERS
    time.sleep(each / 2)


# --- the ways -----------------------------------------------------------------------------------


def loop(function: Function, inputs: list[Any]) -> list[Any]:
    return [function(one) for one in inputs]


@contextlib.contextmanager
def threads(workers: int) -> Iterator[Pool]:
    with ThreadPoolExecutor(workers) as executor:
        yield Pool(executor.submit, lambda future: future.result())


def pooled(start: Start, function: Function, inputs: list[Any]) -> list[Any]:
    with start(WORKERS) as pool:
        handles = [pool.submit(function, one) for one in inputs]
        return [pool.result(handle) for handle in handles]


def pooled_half(start: Start, function: Function, inputs: list[Any]) -> Kept:
    with start(WORKERS) as pool:
        handles = [pool.submit(function, one) for one in inputs]
        decide(lambda number: pool.result(handles[number]), len(inputs))
        # From the end, so that none begins in the place of one that was stopped.
        for handle in reversed(handles[1::2]):
            handle.cancel()
        results = [pool.result(handle) for handle in handles[::2]]
        return Kept(results, time.perf_counter())


def joblib_whole(function: Function, inputs: list[Any]) -> list[Any]:
    import joblib
    from joblib.externals.loky import get_reusable_executor

    with joblib.Parallel(n_jobs=WORKERS) as parallel:
        results: list[Any] = parallel(joblib.delayed(function)(one) for one in inputs)
    get_reusable_executor().shutdown()
    return results


def joblib_half(function: Function, inputs: list[Any]) -> Kept:
    """It has no handle on a call, but reads its input as it goes: there some can be left out."""
    import joblib
    from joblib.externals.loky import get_reusable_executor

    unwanted: set[int] = set()
    sent: list[int] = []

    def calls() -> Iterator[Any]:
        for number, one in enumerate(inputs):
            if number not in unwanted:
                sent.append(number)
                yield joblib.delayed(function)(one)

    results: list[Any] = []
    with joblib.Parallel(n_jobs=WORKERS, return_as="generator") as parallel:
        coming = parallel(calls())
        decide(lambda _: results.append(next(coming)), len(inputs))
        unwanted.update(range(1, len(inputs), 2))
        results += coming
        complete = time.perf_counter()
    get_reusable_executor().shutdown()
    kept = [one for number, one in zip(sent, results, strict=True) if number % 2 == 0]
    return Kept(kept, complete)


def anew_half(function: Function, inputs: list[Any]) -> Kept:
    """Kill all workers, and begin again with what is wanted and not there yet."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
        futures = [executor.submit(function, one) for one in inputs]
        decide(lambda number: futures[number].result(), len(inputs))
        there = [number for number in range(0, len(inputs), 2) if futures[number].done()]
        processes = list(executor._processes.values())
        stopping.kill_executor(executor)
        for process in processes:
            process.join()
    with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
        for number in range(0, len(inputs), 2):
            if number not in there:
                futures[number] = executor.submit(function, inputs[number])
        return Kept([future.result() for future in futures[::2]], time.perf_counter())


# --- who takes part -----------------------------------------------------------------------------

FORK = "concurrent.futures fork"
SPAWN = "concurrent.futures spawn"
JOBLIB = "joblib"
SOME_COMPUTED = "cannot stop a call that runs or is sent ahead: these are computed, too"
ALL_KILLED = f"{SPAWN}, all workers killed at the change of mind, what was lost begun again"

METRICS = (
    Metric("time", "whole batch", "s"),
    Metric("cpu", "whole batch, CPU time", "s"),
    Metric("memory", "whole batch, peak memory", "MB"),
    Metric("half_time", "half of it cancelled, until the others are there", "s"),
    Metric("half_end", "half of it cancelled, until nothing runs", "s", headline=False),
    Metric("half_cpu", "half of it cancelled, CPU time", "s"),
)
GOALS = (
    Goal("time", SPAWN, at_most=1.02),
    Goal("time", JOBLIB, at_most=1.02),
    Goal("half_cpu", SPAWN, at_most=0.95),
    Goal("half_cpu", JOBLIB, at_most=0.95),
)


def contenders(simulation: Simulation, *needs: str) -> tuple[Contender, ...]:
    """Return all ways as contenders; ``needs`` is what the simulation needs."""

    def pool(start: Start) -> Callable[[Counts], Figures]:
        return partial(measure, partial(pooled, start), partial(pooled_half, start), simulation)

    spawn = partial(pools.concurrent_futures, method="spawn")
    return (
        Contender(OURS, "ours", pool(pools.ours), needs),
        Contender("loop", "peer", partial(measure, loop, None, simulation), needs),
        Contender("threads", "peer", pool(threads), needs, note=SOME_COMPUTED),
        Contender(
            FORK,
            "peer",
            pool(partial(pools.concurrent_futures, method="fork")),
            needs,
            note=SOME_COMPUTED,
        ),
        Contender(SPAWN, "peer", pool(spawn), needs, note=SOME_COMPUTED),
        Contender(
            "concurrent.futures anew",
            "aside",
            partial(measure, partial(pooled, spawn), anew_half, simulation),
            needs,
            note=ALL_KILLED,
        ),
        Contender(
            JOBLIB,
            "peer",
            partial(measure, joblib_whole, joblib_half, simulation),
            (*needs, "joblib"),
            note=SOME_COMPUTED,
        ),
    )

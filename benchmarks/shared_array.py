"""What does one large array cost that many jobs use?

`time`: from the array in the caller's memory to the results of all jobs, each of which sums one of
as many blocks. `pickled`: how often the object that holds it was pickled. `private`: what the
workers hold for themselves, at a moment when each is in a job that has read all of it, less what
they hold with a tiny array; in copies of the array. `all`: the same for the memory of caller and
workers together, the pages that they share counted once.

Each pool does it the way it has for that. Where the data travel when a worker starts (initializer,
fork), that start is part of the time: it cannot be done before. The floor is one copy.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
    repeat,
)
from benchmarks.jobs import Table, keep_table, sum_and_hold, sum_block, with_table
from benchmarks.observe import Meeting, memory
from benchmarks.pools import FORK_POOL, SPAWN_POOL

WORKERS = 2

Use = Callable[[ExitStack, Any, Table, Sequence[tuple[Any, ...]]], list[Any]]
"""`use(stack, function, table, arguments)` returns the result of `function(table, *one)` for each;
what it starts is ended by the stack, later."""
Open = Callable[[], AbstractContextManager[Use]]


# --- the pool is there before the array --------------------------------------------------------


@contextlib.contextmanager
def ours() -> Iterator[Use]:
    from primitive_jobs import JobPool, share

    def use(_: ExitStack, function: Any, table: Table, arguments: Any) -> list[Any]:
        handle = share(table)
        jobs = [pool.submit(function, handle, *one) for one in arguments]
        return [job.result() for job in jobs]

    with JobPool(WORKERS) as pool:
        yield use


@contextlib.contextmanager
def joblib_memmap() -> Iterator[Use]:
    import joblib

    def use(_: ExitStack, function: Any, table: Table, arguments: Any) -> list[Any]:
        found = parallel(joblib.delayed(function)(table, *one) for one in arguments)
        return list(found)

    # Arrays of 1 MB and more go through files in /dev/shm, by default.
    with joblib.Parallel(n_jobs=WORKERS) as parallel:
        yield use


@contextlib.contextmanager
def argument() -> Iterator[Use]:
    """What happens without any such way: the array is an argument of each job."""

    def use(_: ExitStack, function: Any, table: Table, arguments: Any) -> list[Any]:
        handles = [pool.apply_async(function, (table, *one)) for one in arguments]
        return [handle.get() for handle in handles]

    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        yield use


# --- the pool is started with the array --------------------------------------------------------


def _collect(executor: Any, function: Any, arguments: Any) -> list[Any]:
    futures = [executor.submit(with_table, function, *one) for one in arguments]
    return [future.result() for future in futures]


@contextlib.contextmanager
def concurrent_futures(method: str) -> Iterator[Use]:
    context = multiprocessing.get_context(method)

    def use(stack: ExitStack, function: Any, table: Table, arguments: Any) -> list[Any]:
        executor = stack.enter_context(
            ProcessPoolExecutor(WORKERS, context, initializer=keep_table, initargs=(table,))
        )
        return _collect(executor, function, arguments)

    yield use


@contextlib.contextmanager
def multiprocessing_pool(method: str) -> Iterator[Use]:
    context = multiprocessing.get_context(method)

    def use(stack: ExitStack, function: Any, table: Table, arguments: Any) -> list[Any]:
        pool = stack.enter_context(context.Pool(WORKERS, keep_table, (table,)))
        handles = [pool.apply_async(with_table, (function, *one)) for one in arguments]
        return [handle.get() for handle in handles]

    yield use


@contextlib.contextmanager
def loky() -> Iterator[Use]:
    from loky import get_reusable_executor

    def use(stack: ExitStack, function: Any, table: Table, arguments: Any) -> list[Any]:
        executor = get_reusable_executor(WORKERS, initializer=keep_table, initargs=(table,))
        stack.callback(executor.shutdown)
        return _collect(executor, function, arguments)

    yield use


@contextlib.contextmanager
def mpire() -> Iterator[Use]:
    from mpire import WorkerPool

    def use(stack: ExitStack, function: Any, table: Table, arguments: Any) -> list[Any]:
        pool = WorkerPool(WORKERS, start_method="fork", shared_objects=table)
        stack.callback(pool.terminate)
        handles = [pool.apply_async(function, one) for one in arguments]
        return [handle.get() for handle in handles]

    yield use


# --- measuring ---------------------------------------------------------------------------------


class Census(threading.Thread):
    """Reads the memory of all workers at a moment when each holds the array, then lets them go."""

    def __init__(self, meeting: Meeting) -> None:
        super().__init__(daemon=True)
        self._meeting = meeting
        self.private = 0.0
        self.all = 0.0

    def run(self) -> None:
        """Wait for a job in each worker."""
        try:
            pids = {self._meeting.next() for _ in range(WORKERS)}
            if len(pids) == WORKERS:
                found = [memory(pid) for pid in pids]
                self.private = sum(one["private"] for one in found)
                self.all = sum(one["proportional"] for one in [*found, memory(os.getpid())])
        finally:  # they would hold it, and this process, for ever
            self._meeting.release()


def count_memory(use: Use, table: Table) -> Census:
    """Return what caller and workers hold while each worker is in a job that has read all of it."""
    with Meeting() as meeting, ExitStack() as stack:
        census = Census(meeting)
        census.start()
        use(stack, sum_and_hold, table, [(meeting.address,)] * WORKERS)
        census.join()
    if not census.private:
        raise RuntimeError("not each worker had a job of its own")
    return census


def make_values(megabytes: int) -> Any:
    return np.random.default_rng(1).random(megabytes * 1_000_000 // 8)


def measure(open_pool: Open, counts: Counts) -> Figures:
    jobs = counts["jobs"]
    values = make_values(counts["megabytes"])
    blocks = [(block, jobs) for block in range(jobs)]
    with open_pool() as use:
        without = count_memory(use, Table(np.ones(100)))
        times = []
        for _ in repeat(counts["repeats"], budget=counts["budget_s"], least=1):
            # A new one each time: joblib knows an array again that it has written to a file.
            table = Table(values.copy())
            wanted = [sum_block(table, *block) for block in blocks]
            Table.pickled = 0
            with ExitStack() as stack:
                started = time.perf_counter()
                results = use(stack, sum_block, table, blocks)
                times.append(time.perf_counter() - started)
            if results != wanted:
                raise ValueError("wrong sums")
        pickled = Table.pickled
        del table
        with_it = count_memory(use, Table(values))
    return {
        "time": statistics.median(times) * 1e3,
        "pickled": pickled,
        "private": max(0.0, with_it.private - without.private) / values.nbytes,
        "all": max(0.0, with_it.all - without.all) / values.nbytes,
    }


def one_copy(counts: Counts) -> Figures:
    values = make_values(counts["megabytes"])
    times = []
    for _ in repeat(counts["repeats"], budget=counts["budget_s"], least=1):
        descriptor = os.memfd_create("floor")
        view = memoryview(values).cast("B")
        started = time.perf_counter()
        while view:
            view = view[os.write(descriptor, view) :]
        times.append(time.perf_counter() - started)
        os.close(descriptor)
    return {"time": statistics.median(times) * 1e3}


def measure_argument(counts: Counts) -> Figures:
    # A tenth of the jobs, times ten: they take half a second each.
    jobs = max(1, counts["jobs"] // 10)
    figures = measure(argument, {**counts, "jobs": jobs})
    return {
        key: figure * counts["jobs"] / jobs if key in ("time", "pickled") else figure
        for key, figure in figures.items()
    }


BY_INITIALIZER = "the array goes to each worker by its initializer, whose start is part of the time"
BY_FORK = "the workers inherit the array by fork, and their start is part of the time"


def peer(name: str, open_pool: Open, note: str, *needs: str) -> Contender:
    return Contender(name, "peer", partial(measure, open_pool), (*needs, "numpy"), note=note)


QUESTION = Question(
    name="shared_array",
    title="one 100 MB array used by 50 jobs",
    metrics=(
        Metric("time", "all results there", "ms"),
        Metric("private", "workers' private memory", "copies"),
        Metric("pickled", "pickled", "times"),
        Metric("all", "memory of caller and workers", "more copies", headline=False),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, ours), ("numpy",), note="share()"),
        peer("joblib", joblib_memmap, "a file in /dev/shm that the workers map", "joblib"),
        peer(FORK_POOL, partial(multiprocessing_pool, "fork"), BY_FORK),
        peer(SPAWN_POOL, partial(multiprocessing_pool, "spawn"), BY_INITIALIZER),
        peer("concurrent.futures fork", partial(concurrent_futures, "fork"), BY_FORK),
        peer("concurrent.futures spawn", partial(concurrent_futures, "spawn"), BY_INITIALIZER),
        peer("loky", loky, BY_INITIALIZER, "loky"),
        peer("mpire", mpire, f"shared_objects: {BY_FORK}", "mpire"),
        Contender(
            "an argument of each job",
            "aside",
            measure_argument,
            ("numpy",),
            note=f"of {FORK_POOL}: what it costs not to share; a tenth of the jobs, times ten",
        ),
        Contender("one copy", "floor", one_copy, ("numpy",)),
    ),
    goals=(
        Goal("time", "joblib", at_most=1.0),
        Goal("private", at_most=1.2),
        Goal("pickled", at_most=1.0),
        Goal("all", at_most=1.2),
    ),
    full=Scale(
        rounds=3, limit=90, counts={"megabytes": 100, "jobs": 50, "repeats": 3, "budget_s": 4}
    ),
    quick=Scale(
        rounds=2, limit=60, counts={"megabytes": 100, "jobs": 50, "repeats": 1, "budget_s": 1}
    ),
    smoke=Scale(
        rounds=1, limit=40, counts={"megabytes": 1, "jobs": 4, "repeats": 1, "budget_s": 1}
    ),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

"""What does it cost to keep results in a file, and to find them there?

The contenders do not do the same. A store runs each point as a job, in one of two worker processes,
and keeps arguments, times, status and usage with its result, which is on the disk before the sweep
yields it, unlike with joblib.Memory and diskcache, which leave that to the system. The others call
the function in the caller's process, one call after the other, as their documentation shows, and
keep key and result. So two contenders say what to compare with: the same pool without a store, for
what the store adds; and a loop around sqlite3 with a commit for each result, for what it costs to
have each one on the disk. With a commit per 10 ms, some results are lost when the machine fails.

Large arrays are timed until they are on the disk, with all contenders (`sync`). The times of
small results have no such end: whoever does not wait for the disk gains by it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    FLOOR,
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
POOL = "the same pool, no store"
MEMORY = "joblib.Memory"
DISKCACHE = "diskcache"
EACH = "sqlite3, a commit each"
SOME = "sqlite3, a commit per 10 ms"
COLLECT = 0.01  # s

Call = Callable[[Any], Any]


def small(x: int, scale: float = 1.0) -> dict[str, float]:
    """What a point of a sweep may return."""
    return {"x": x * scale, "square": float(x * x)}


def large(x: int, megabytes: int) -> Any:
    """An array of this size."""
    import numpy as np

    return np.full(megabytes * 1_000_000 // 8, float(x))


def check_small(results: Iterable[Any], count: int) -> None:
    expect(sum(result["x"] for result in results), count * (count - 1) / 2, "sum of results")


def timed(work: Callable[[], object], *, sync: bool = False) -> float:
    """Return the seconds that it takes; with ``sync`` until what it has written is on the disk."""
    if sync:
        os.sync()  # what others have written is not ours to wait for
    started = time.perf_counter()
    work()
    if sync:
        os.sync()
    return time.perf_counter() - started


# --- ours, and the pool alone ---------------------------------------------------------------------


def measure_ours(counts: Counts) -> Figures:
    from primitive_jobs import JobPool, SweepStore

    number, arrays, megabytes = counts["results"], counts["arrays"], counts["megabytes"]
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.db")
        with JobPool(WORKERS) as pool:
            warm_up(pool)
            with SweepStore(path) as store:

                def sweep() -> None:
                    for _ in store.function(small).sweep(range(number), pool):
                        pass

                figures["small"] = 1e6 * timed(sweep) / number

                def sweep_large() -> None:
                    points = [(x, megabytes) for x in range(arrays)]
                    for _ in store.function(large).sweep(points, pool):
                        pass

                figures["arrays"] = timed(sweep_large, sync=True)
            with SweepStore(path) as store:

                def again() -> None:
                    rows = store.function(small).sweep(range(number), pool)
                    check_small((row.result for row in rows), number)

                figures["warm"] = 1e6 * timed(again) / number
        many = Path(folder, "many.db")
        with SweepStore(many) as store, JobPool(WORKERS) as pool:
            expect(len(store.function(small).sweep(range(10), pool).results()), 10, "count")
        multiply(many, counts["rows"])
        figures["list"] = list_with(counts, folder, ["-m", "primitive_jobs", "store", many, "list"])
    return figures


def warm_up(pool: Any) -> None:
    """Have both workers import what jobs need; what they run is known for short."""
    for job in [pool.submit(large, x, 1) for x in range(8)]:
        job.result()


def measure_pool(counts: Counts) -> Figures:
    """What the same jobs cost if nothing is kept; and a table of as many lines."""
    from primitive_jobs import JobPool, as_completed

    number, arrays, megabytes = counts["results"], counts["arrays"], counts["megabytes"]
    with JobPool(WORKERS) as pool:
        warm_up(pool)

        def run() -> None:
            jobs = [pool.submit(small, x) for x in range(number)]
            check_small((job.result() for job in as_completed(jobs)), number)

        def run_large() -> None:
            jobs = {pool.submit(large, x, megabytes) for x in range(arrays)}
            for job in as_completed(jobs):
                expect(job.result()[0] < arrays, True)
                jobs.remove(job)
                del job

        figures = {"small": 1e6 * timed(run) / number, "arrays": timed(run_large, sync=True)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "many.db")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE rows (key, arguments, result, ended)")
            rows = [(f"{n:032x}", f'{{"x": {n}}}', f"{n}", 1.7e9 + n) for n in range(10)]
            connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
            connection.commit()
        multiply(path, counts["rows"])
        figures["list"] = list_with(counts, folder, ["-c", PLAIN_LIST, path])
    return figures


PLAIN_LIST = """
import sqlite3, sys
for key, arguments, result, ended in sqlite3.connect(sys.argv[1]).execute("SELECT * FROM rows"):
    print(f"{key[:8]:8}  {arguments:40}  {result:30}  {ended:.0f}")
"""


def multiply(path: Path, count: int) -> None:
    """Give a table of ten rows so many, with keys of their own; to run as many jobs takes long."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        names = [column[1] for column in connection.execute("PRAGMA table_info(rows)")]
        rest = ", ".join(name for name in names if name not in ("id", "key"))
        connection.execute(
            f"WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE "
            f"n < {count // 10 - 1}) INSERT INTO rows (key, {rest}) "
            f"SELECT printf('%08x', n) || substr(key, 9), {rest} FROM numbers, rows"
        )
        connection.commit()


def list_with(counts: Counts, folder: str, arguments: list[str | Path]) -> float:
    """Return the seconds that a command takes, as a shell sees it; it prints into a file."""
    out = Path(folder, "out")
    with out.open("wb") as file:
        command = [sys.executable, *map(str, arguments)]
        took = timed(lambda: subprocess.run(command, stdout=file, check=True))
    with out.open(encoding="utf-8") as lines:
        expect(sum(1 for _ in lines) >= counts["rows"], True, "count of lines")
    return took


# --- the others: a loop in one process ------------------------------------------------------------


def measure_loop(start: Callable[[str, Any], Any], counts: Counts) -> Figures:
    """Measure one of those that call a function and keep what it returns.

    Args:
        start: Called with a folder and a function; it opens what is there, as a context manager,
            which is to be called in the function's place.
        counts: How much is done.
    """
    number, arrays = counts["results"], counts["arrays"]
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:

        def sweep() -> None:
            with start(folder, small) as call:
                check_small(map(call, range(number)), number)

        figures["small"] = 1e6 * timed(sweep) / number
        figures["warm"] = 1e6 * timed(sweep) / number
    large(0, 1)  # it imports numpy
    with tempfile.TemporaryDirectory() as folder:

        def sweep_large() -> None:
            with start(folder, partial_large(counts["megabytes"])) as call:
                for x in range(arrays):
                    call(x)

        figures["arrays"] = timed(sweep_large, sync=True)
    return figures


def partial_large(megabytes: int) -> Call:
    def make(x: int) -> Any:
        return large(x, megabytes)

    return make


@contextlib.contextmanager
def joblib_memory(folder: str, function: Call) -> Iterator[Call]:
    import joblib

    yield joblib.Memory(folder, verbose=0).cache(function)


@contextlib.contextmanager
def diskcache_of(folder: str, function: Call) -> Iterator[Call]:
    import diskcache

    # By default it throws away what is beyond 1 GB.
    with diskcache.Cache(folder, size_limit=1 << 40, eviction_policy="none") as cache:
        yield cache.memoize()(function)


@contextlib.contextmanager
def plain_sqlite(folder: str, function: Call, *, pause: float) -> Iterator[Call]:
    """A table of keys and pickles, on the disk at each commit; one at most each ``pause`` s."""
    path = Path(folder, "results.db")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, body BLOB)")
        last = 0.0

        def call(x: Any) -> Any:
            nonlocal last
            key = repr(x)
            question = "SELECT body FROM results WHERE key = ?"
            found = connection.execute(question, (key,)).fetchone()
            if found is not None:
                return pickle.loads(found[0])
            result = function(x)
            if not connection.in_transaction:
                connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO results VALUES (?, ?)", (key, pickle.dumps(result, 5)))
            if time.monotonic() - last >= pause:
                connection.execute("COMMIT")
                last = time.monotonic()
            return result

        yield call
        if connection.in_transaction:
            connection.execute("COMMIT")


def loop(start: Callable[[str, Any], Any]) -> Callable[[Counts], Figures]:
    return partial(measure_loop, start)


QUESTION = Question(
    name="store",
    title="results that are kept, two workers",
    metrics=(
        Metric("small", "a small result, until it is kept", "us"),
        Metric("arrays", "large arrays, until all are on the disk", "s"),
        Metric("warm", "a small result that is there", "us"),
        Metric("list", "the table of all rows, in the shell", "s"),
    ),
    contenders=(
        Contender(OURS, "ours", measure_ours, ("numpy",)),
        Contender(POOL, "floor", measure_pool, ("numpy",), note="it keeps nothing"),
        Contender(MEMORY, "peer", loop(joblib_memory), ("joblib", "numpy")),
        Contender(DISKCACHE, "peer", loop(diskcache_of), ("diskcache", "numpy")),
        Contender(EACH, "peer", loop(partial(plain_sqlite, pause=0.0)), ("numpy",)),
        Contender(SOME, "peer", loop(partial(plain_sqlite, pause=COLLECT)), ("numpy",)),
    ),
    goals=(
        Goal("small", FLOOR, at_most=1.5),
        Goal("small", EACH, at_most=1.0),
        Goal("small", MEMORY, at_most=1.0),
        Goal("arrays", EACH, at_most=0.5),
        Goal("arrays", MEMORY, at_most=1.0),
        Goal("warm", MEMORY, at_most=1.0),
        Goal("list", at_most=1.0),
    ),
    full=Scale(
        rounds=5,
        limit=300,
        counts={"results": 10_000, "arrays": 100, "megabytes": 16, "rows": 100_000},
    ),
    quick=Scale(
        rounds=2,
        limit=120,
        counts={"results": 2000, "arrays": 20, "megabytes": 16, "rows": 100_000},
    ),
    smoke=Scale(
        rounds=1,
        limit=60,
        counts={"results": 50, "arrays": 2, "megabytes": 1, "rows": 100},
    ),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

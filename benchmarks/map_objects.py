"""What does `map` cost where more than numbers travel with its calls?

`arguments`: each call gets an instance of a dataclass that workers cannot import, as in a script or
a notebook. `results`: each returns one. `table`: `itertools.repeat` gives one large table to all
calls, in chunks of `TABLE_CHUNK`. Each library chooses its chunks as it does by itself, or gets
`CHUNK`; joblib has no chunks for what is repeated, so that it takes no part in that.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
CHUNK = 100  # calls in a message
TABLE_CHUNK = 50
TABLE = 115_000  # floats: 1 MB as a pickle
WARM_UP = 200  # calls
REPEATS = 5  # the best counts

Map = Callable[..., Iterable[Any]]
"""`run(function, *iterables, chunksize)`; None: the library's own choice."""


@contextlib.contextmanager
def our_map() -> Iterator[Map]:
    from primitive_jobs import JobPool

    with JobPool(WORKERS) as pool:
        yield pool.map


@contextlib.contextmanager
def loky_map() -> Iterator[Map]:
    from loky import get_reusable_executor

    executor = get_reusable_executor(WORKERS)

    def run(function: Any, *iterables: Iterable[Any], chunksize: int | None = None) -> Any:
        return executor.map(function, *iterables, chunksize=chunksize or CHUNK)

    try:
        yield run
    finally:
        executor.shutdown()


@contextlib.contextmanager
def joblib_map() -> Iterator[Map]:
    import joblib

    def run(function: Any, *iterables: Iterable[Any], chunksize: int | None = None) -> Any:
        del chunksize
        return parallel(joblib.delayed(function)(*row) for row in zip(*iterables, strict=False))

    with joblib.Parallel(n_jobs=WORKERS) as parallel:
        yield run


def best(run: Callable[[], Iterable[Any]], expected: list[Any]) -> float:
    """Return the seconds of the fastest of several runs."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        results = list(run())
        found.append(time.perf_counter() - started)
        expect(results, expected)
    return min(found)


def measure(
    start: Callable[[], AbstractContextManager[Map]], counts: Counts, *, table: bool = True
) -> Figures:
    @dataclass
    class Params:  # of this function: no worker can import it
        x: int
        y: float
        name: str = "a"

    def take(params: Params) -> int:
        return params.x

    def make(x: int) -> Params:
        return Params(x, float(x))

    def look_up(values: list[float], place: int) -> float:
        return values[place]

    calls, looks = counts["calls"], counts["looks"]
    items = [Params(x, float(x)) for x in range(calls)]
    with start() as run:
        expect(list(run(abs, range(WARM_UP))), list(range(WARM_UP)))
        figures = {
            "arguments": best(lambda: run(take, items), list(range(calls))),
            "results": best(lambda: run(make, range(calls)), items),
        }
        if table:
            values = [float(i) for i in range(TABLE)]
            figures["table"] = best(
                lambda: run(look_up, itertools.repeat(values), range(looks), chunksize=TABLE_CHUNK),
                values[:looks],
            )
    return figures


QUESTION = Question(
    name="map_objects",
    title="map over objects, two workers",
    metrics=(
        Metric("arguments", "a dataclass of the script as argument", "s"),
        Metric("results", "a dataclass of the script as result", "s"),
        Metric("table", "a repeated table of 1 MB", "s"),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, our_map)),
        Contender("loky", "peer", partial(measure, loky_map), ("loky",)),
        Contender("joblib", "peer", partial(measure, joblib_map, table=False), ("joblib",)),
    ),
    goals=(
        Goal("arguments", "loky", at_most=1.5),
        Goal("results", "loky", at_most=1.5),
        Goal("table", "loky", at_most=1.5),
    ),
    full=Scale(rounds=5, limit=120, counts={"calls": 5000, "looks": 300}),
    quick=Scale(rounds=2, limit=60, counts={"calls": 5000, "looks": 300}),
    smoke=Scale(rounds=1, limit=30, counts={"calls": 100, "looks": 60}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

"""What does it cost to cancel what is left over, generation by generation?

As samplers do that need so many results, from whichever calls: both workers get more calls than
that, the first results to come count, the other calls are cancelled, and the next generation comes
at once. A call imports `scipy.optimize`, the first time in each process. An executor that stops
running calls replaces their workers, whose first calls wait for them and for the import; the others
let these calls go on.

`rested`: the same with half a second between generations, in which a pool may make ready what it
likes; that is not counted.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
from benchmarks.jobs import minimum
from benchmarks.pools import concurrent_futures

WORKERS = 2
REST = 0.5  # s

Start = Callable[[], AbstractContextManager[Any]]


@contextlib.contextmanager
def ours(**options: Any) -> Iterator[Any]:
    from primitive_jobs import JobExecutor

    with JobExecutor(WORKERS, **options) as executor:
        yield executor


@contextlib.contextmanager
def theirs(method: str) -> Iterator[Any]:
    with concurrent_futures(WORKERS, method=method) as pool:
        yield pool


def generation(submit: Callable[..., Any], counts: Counts) -> float:
    """Return the seconds until enough results are there, and the rest is cancelled."""
    started = time.perf_counter()
    futures = [submit(minimum, place, counts["steps"]) for place in range(counts["calls"])]
    places = {future: place for place, future in enumerate(futures)}
    completed = concurrent.futures.as_completed(futures)
    for future in itertools.islice(completed, counts["results"]):
        expect(round(future.result(), 3), places[future])
    for future in futures:
        future.cancel()
    return time.perf_counter() - started


def measure(start: Start, counts: Counts) -> Figures:
    with start() as pool:
        submit = pool.submit
        expect(sorted(f.result() for f in [submit(abs, x) for x in (1, 2)]), [1, 2])
        first = generation(submit, counts)
        at_once = [generation(submit, counts) for _ in range(counts["generations"])]
        rested = []
        for _ in range(counts["generations"]):
            time.sleep(REST)
            rested.append(generation(submit, counts))
    return {
        "first": first * 1e3,
        "at_once": statistics.mean(at_once) * 1e3,
        "rested": statistics.mean(rested) * 1e3,
    }


FORK, SPAWN = "concurrent.futures fork", "concurrent.futures spawn"
SCIPY = ("scipy",)
QUESTION = Question(
    name="generations",
    title="generations of calls, each with its leftovers cancelled, two workers",
    metrics=(
        Metric("first", "the first one", "ms"),
        Metric("at_once", "a later one, at once", "ms"),
        Metric("rested", "a later one, after half a second", "ms"),
    ),
    contenders=(
        Contender(OURS, "ours", partial(measure, ours), SCIPY),
        Contender(
            "cancel_running=False",
            "aside",
            partial(measure, partial(ours, cancel_running=False)),
            SCIPY,
            note="calls that run go on, as those of the peers do",
        ),
        Contender("preload=None", "aside", partial(measure, partial(ours, preload=None)), SCIPY),
        Contender(FORK, "peer", partial(measure, partial(theirs, "fork")), SCIPY),
        Contender(SPAWN, "peer", partial(measure, partial(theirs, "spawn")), SCIPY),
    ),
    goals=(
        Goal("at_once", FORK, at_most=1.3),
        Goal("rested", FORK, at_most=1.3),
        Goal("at_once", SPAWN, at_most=1.3),
    ),
    full=Scale(
        rounds=5,
        limit=120,
        counts={"calls": 60, "results": 30, "steps": 20, "generations": 5},
    ),
    quick=Scale(
        rounds=2,
        limit=80,
        counts={"calls": 60, "results": 30, "steps": 20, "generations": 3},
    ),
    smoke=Scale(
        rounds=1,
        limit=60,
        counts={"calls": 6, "results": 3, "steps": 1, "generations": 1},
    ),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

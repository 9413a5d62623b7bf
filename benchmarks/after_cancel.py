"""How long does the next queued job wait for a worker, when a running one is cancelled?

Both workers are busy and one more job is queued. One of the two is cancelled: from that call until
the result of the queued job. Where the whole pool has to be killed, the other running call and the
queued one are submitted again, to a new pool.

`first`: after half a second in which nothing was cancelled, so that whatever a pool keeps ready is
ready. `second`: the next cancel, right after the first one.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    EVERY_PEER,
    Counts,
    Figures,
    Goal,
    Metric,
    Question,
    Scale,
    expect,
    repeat,
)
from benchmarks.jobs import hold, same, spin
from benchmarks.observe import Meeting
from benchmarks.stopping import Open, Stoppable, everyone

PAUSE = 0.5  # s, between the second cancel and the next first one
SETTLE = 0.02  # s


class Scene:
    """Two running jobs, one of which is to be stopped; the other stays."""

    def __init__(self, pool: Stoppable, meeting: Meeting) -> None:
        self._pool = pool
        self._meeting = meeting
        self._staying = pool.submit(hold, meeting.address)
        meeting.next()
        self._numbers: Iterator[int] = iter(range(1_000_000))

    def time_next(self) -> float:
        """Stop a job and return the seconds until the queued one is done."""
        doomed = self._pool.submit(spin, self._meeting.address)
        self._meeting.next()
        number = next(self._numbers)
        queued = self._pool.submit(same, number)
        time.sleep(SETTLE)
        started = time.perf_counter()
        self._pool.stop(doomed)
        if self._pool.whole:
            self._staying = self._pool.submit(hold, self._meeting.address)
            queued = self._pool.submit(same, number)
        expect(self._pool.result(queued), number)
        seconds = time.perf_counter() - started
        if self._pool.whole:
            self._meeting.next()
        return seconds

    def end(self) -> Any:
        """Let the staying job go."""
        self._meeting.release()
        return self._pool.result(self._staying)


def measure(open_pool: Open, counts: Counts) -> Figures:
    first, second = [], []
    with open_pool() as pool, Meeting() as meeting:
        scene = Scene(pool, meeting)
        scene.time_next()  # whatever is made at the first time, is made now
        for _ in repeat(counts["cancels"], budget=counts["budget_s"]):
            time.sleep(PAUSE)
            first.append(scene.time_next())
            second.append(scene.time_next())
        scene.end()
    return {"first": statistics.median(first) * 1e3, "second": statistics.median(second) * 1e3}


QUESTION = Question(
    name="after_cancel",
    title="next queued job done after a cancel",
    metrics=(
        Metric("first", "after a pause", "ms"),
        Metric("second", "right after another one", "ms"),
    ),
    contenders=everyone(measure, killed_as="peer"),
    goals=(Goal("first", at_most=10.0), Goal("first", EVERY_PEER, at_most=1.0)),
    full=Scale(rounds=3, limit=60, counts={"cancels": 5, "budget_s": 5}),
    quick=Scale(rounds=2, limit=40, counts={"cancels": 2, "budget_s": 1}),
    smoke=Scale(rounds=1, limit=30, counts={"cancels": 1, "budget_s": 1}),
)

if __name__ == "__main__":
    from benchmarks.cli import main

    sys.exit(main(question=QUESTION.name))

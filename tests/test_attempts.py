"""What a pool keeps of the attempts of its jobs: pure, without a process."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from test_tracker import done, failed, in_state

from primitive_jobs._engine.attempts import KEPT, Attempts, Told, rows
from primitive_jobs._engine.events import (
    Cancelled,
    Fate,
    Lost,
    OutOfMemory,
    Requeue,
    TimedOut,
    Unkilled,
    Unreachable,
)
from primitive_jobs._engine.look import AttemptsLook, attempts_of
from primitive_jobs._engine.record import JobRecord
from primitive_jobs._engine.registry import ENDS, JobRegistry
from primitive_jobs._engine.tracker import NEVER, StatusTracker, cancelled
from primitive_jobs._engine.unseen import Unseen
from primitive_jobs._engine.verdicts import attempt_told
from primitive_jobs._wire.evidence import Evidence
from primitive_jobs._wire.messages import Kind, Message
from primitive_jobs.snapshots import Attempt, AttemptTotal


def all_of(attempts: Attempts) -> list[Attempt]:
    return [*rows(attempts.look()[0], 0.0)]


def test_a_row_is_what_was_put_there() -> None:
    attempts = Attempts()
    attempts.returned("f", (7, 1.0, 2.5))
    attempts.ended("g", ((8, "tcp://here", 2), 3.0, 4.0), Told("died", "why", 17))
    attempts.returned("h", ((8, None, 3), 5.0, 5.25))
    attempts.returned("i" * 200, (7, 6.0, 6.5), 10**9)
    first, second, third, fourth = all_of(attempts)
    assert first == Attempt("f", "returned", 1.0, 2.5, 7)
    assert second == Attempt("g", "died", 3.0, 4.0, 8, "tcp://here", 2, "why", 17)
    assert third == Attempt("h", "returned", 5.0, 5.25, 8, None, 3)
    assert fourth == Attempt("i" * 119 + "…", "returned", 6.0, 6.5, 7, memory=10**9)
    assert attempts.look()[1:] == (2.25, {"died": AttemptTotal(1, 1.0)})


def test_the_last_ones_are_kept_and_all_are_counted() -> None:
    attempts = Attempts()
    for n in range(KEPT + 10):
        attempts.ended("f", (7, float(n), n + 0.5), Told("raised"))
    found = all_of(attempts)
    assert [attempt.began for attempt in found] == [float(n) for n in range(10, KEPT + 10)]
    kept, seconds, others = attempts.look()
    assert others == {"raised": AttemptTotal(KEPT + 10, 0.5 * (KEPT + 10))}
    look = AttemptsLook(0.0, kept, [], AttemptTotal(0, seconds), others, [])
    assert attempts_of(look).left_out == 10


def test_what_one_of_them_takes() -> None:
    attempts = Attempts()
    pid = 123456
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(2000):
            attempts.returned("f", (pid, float(n), n + 0.5))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken / 2000 < 90
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(2000):
            attempts.returned("f", (pid, float(n), n + 0.5), 10**9 + n)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken / 2000 < 180
    attempts.returned("x" * 10_000_000, (pid, 1.0, 2.0))
    assert len(all_of(attempts)[-1].name) == 120


def test_what_is_there_in_part_is_left_out() -> None:
    attempts = Attempts()
    for n in range(3):
        attempts.returned(f"job {n}", (7, float(n), n + 0.5), None if n % 2 else 10**9)
    attempts.ended("ended", (7, 3.0, 4.0), Told("raised"))
    entries = attempts.look()[0]
    for first in range(1, 9):
        for last in range(first, len(entries) + 1):
            found = [*rows(entries[first:last], 0.0)]
            whole = range((first + 3) // 4, last // 4)
            assert [attempt.began for attempt in found] == [float(n) for n in whole]
    assert [*rows(["job", 7, 2.0, 1.0], 0.0)] == [], "two halves of two"


# --- what counts as an attempt -------------------------------------------------------------------


class Scene:
    """A registry with one job."""

    def __init__(self, tracker: StatusTracker) -> None:
        ended = [0] * len(ENDS)
        self.jobs = JobRegistry(Unseen(lambda call: call(), ended), ended)
        self.jobs.register(JobRecord("job", tracker))

    def told(self) -> list[tuple[Any, ...]]:
        return [(one.end, one.pid, one.attempt) for one in all_of(self.jobs.attempts)]


RETURNED, RAISED = Message(Kind.RETURNED, 1), Message(Kind.RAISED, 1)


@pytest.mark.parametrize(
    ("fate", "end"),
    [
        (RETURNED, "returned"),
        (RAISED, "raised"),
        (Cancelled(), "cancelled"),
        (TimedOut(1.0), "timeout"),
        (OutOfMemory(10**6, None), "memory"),
        (Lost(Evidence(7, -9)), "died"),
        (Unreachable(OSError("gone")), "died"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_how_one_ends(fate: Fate, end: str) -> None:
    scene = Scene(in_state("RUNNING"))
    scene.jobs.settle(1, fate)
    assert scene.told() == [(end, 42, 1)]


@pytest.mark.parametrize("state", ["QUEUED", "INITIALIZING"])
def test_what_no_worker_had_is_no_attempt(state: str) -> None:
    tracker = in_state(state)
    if state == "INITIALIZING":
        tracker.submitted()
        tracker.serialized()
    scene = Scene(tracker)
    scene.jobs.settle(1, Cancelled())
    assert scene.told() == []


def test_each_try_is_one_but_for_what_never_began() -> None:
    tracker = in_state("RUNNING")
    scene = Scene(tracker)
    died = Evidence(42, -11, noted=1)
    scene.jobs.requeued(Requeue(1, began=True, evidence=died))
    tracker.assigned(43)
    scene.jobs.requeued(Requeue(1))  # it never began
    tracker.assigned(44, "tcp://here")
    scene.jobs.requeued(Requeue(1, began=True))
    scene.jobs.requeued(Requeue(1, began=True))  # sent, and never confirmed
    tracker.assigned(45)
    scene.jobs.settle(1, RETURNED)
    assert scene.told() == [("died", 42, 1), ("died", 44, 2), ("returned", 45, 3)]
    first, second, _ = all_of(scene.jobs.attempts)
    assert first.reason == "killed by signal SIGSEGV"
    assert second.node == "tcp://here"


def test_an_end_that_cannot_be_told_is_one_all_the_same() -> None:
    scene = Scene(in_state("RUNNING"))
    scene.jobs.end_anyhow(1, ValueError("no"))
    assert scene.told() == [("died", 42, 1)]
    scene.jobs.end_anyhow(1, ValueError("no"))
    assert len(scene.told()) == 1


def test_a_job_that_has_ended_before_has_no_second_end() -> None:
    tracker = in_state("RUNNING")
    assert tracker.settle(done()) is not None
    assert tracker.settle(failed()) is None
    assert in_state("QUEUED").settle(cancelled()) is NEVER


def test_reasons() -> None:
    def told(fate: Fate) -> tuple[str, str, int | None]:
        return attempt_told(fate)

    assert told(TimedOut(2.5)) == ("timeout", "passed its timeout of 2.5 s", None)
    limit = OutOfMemory(300_000_000, 312_000_000)
    assert told(limit) == ("memory", "passed its memory_limit of 300.0 MB", 312_000_000)
    assert told(Lost(Evidence(7, 3))) == ("died", "it exited with code 3", None)
    left = Evidence(7, left="worker 7: it cannot be killed", peak_memory=5)
    assert told(Unkilled(left)) == (
        "cancelled",
        "could not be stopped: worker 7: it cannot be killed",
        5,
    )
    lost = Message(Kind.RETURNED, 1, lost="no descriptor")
    assert told(lost) == ("raised", "its outcome was not received: no descriptor", None)
    error = RuntimeError("a\nlong\x1b[31m story " + 1000 * "x")
    what = told(Lost(Evidence(7, error=error)))[1]
    assert what.isprintable()
    assert len(what) == 200

"""The tracker without a process: every state with every event, and who wins which race."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from primitive_jobs.errors import JobCancelledError, SerializationError
from primitive_jobs.messages import Kind, Message
from primitive_jobs.serialize import dump_exception, dumps
from primitive_jobs.status import FINAL_STATES, JobStatus
from primitive_jobs.tracker import Outcome, StatusTracker, cancelled

Step = Callable[[StatusTracker], object]


def done() -> Outcome:
    return Outcome(JobStatus.DONE, Message(Kind.RETURNED, 1, dumps([7])[0]))


def failed() -> Outcome:
    return Outcome(JobStatus.ERROR, ValueError("no"))


STEPS: dict[str, Step] = {
    "submitted": StatusTracker.submitted,
    "serialized": StatusTracker.serialized,
    "take_in": StatusTracker.take_in,
    "assigned": lambda tracker: tracker.assigned(42),
    "requeued": lambda tracker: tracker.requeued(began=False),
    "cancelled early": lambda tracker: tracker.end_early(cancelled()),
    "failed early": lambda tracker: tracker.end_early(failed()),
    "done": lambda tracker: tracker.settle(done()),
    "failed": lambda tracker: tracker.settle(failed()),
    "cancelled": lambda tracker: tracker.settle(cancelled()),
}
WALKS: dict[str, list[str]] = {
    "INITIALIZING": [],
    "VALIDATING": ["submitted"],
    "QUEUED": ["submitted", "serialized", "take_in"],
    "RUNNING": ["submitted", "serialized", "take_in", "assigned"],
    "DONE": ["submitted", "serialized", "take_in", "assigned", "done"],
    "ERROR": ["submitted", "serialized", "take_in", "assigned", "failed"],
    "CANCELLED": ["submitted", "serialized", "take_in", "assigned", "cancelled"],
}
# What each event makes of each state; "!" stands for an illegal move, which raises, "-" for False.
# The rest is as it was.
EXPECTED = """
                INITIALIZING VALIDATING QUEUED    RUNNING
submitted       VALIDATING   !          !         !
serialized      !            QUEUED     !         QUEUED
assigned        !            !          RUNNING   !
requeued        !            QUEUED     !         QUEUED
cancelled_early CANCELLED    CANCELLED  -         -
failed_early    !            ERROR      -         -
done            !            !          !         DONE
failed          !            ERROR      ERROR     ERROR
cancelled       CANCELLED    CANCELLED  CANCELLED CANCELLED
"""


def in_state(name: str) -> StatusTracker:
    tracker = StatusTracker()
    for step in WALKS[name]:
        STEPS[step](tracker)
    assert tracker.status is JobStatus[name]
    return tracker


def table() -> list[tuple[str, str, str]]:
    header, *rows = EXPECTED.strip("\n").splitlines()
    states = header.split()
    return [
        (state, row.split()[0].replace("_", " "), cell)
        for row in rows
        for state, cell in zip(states, row.split()[1:], strict=True)
    ]


@pytest.mark.parametrize(("state", "event", "expected"), table())
def test_every_state_with_every_event(state: str, event: str, expected: str) -> None:
    tracker = in_state(state)
    if expected == "!":
        with pytest.raises(RuntimeError, match="illegal"):
            STEPS[event](tracker)
        return
    answer = STEPS[event](tracker)
    if expected == "-":
        assert answer is False
        expected = state
    assert tracker.status is JobStatus[expected]
    assert tracker.history()[-1][0] is JobStatus[expected]


@pytest.mark.parametrize("event", STEPS)
@pytest.mark.parametrize("state", [status.name for status in FINAL_STATES])
def test_a_final_state_is_never_left(state: str, event: str) -> None:
    tracker = in_state(state)
    before, history = tracker.outcome, tracker.history()
    try:
        STEPS[event](tracker)
    except RuntimeError:
        pass
    assert tracker.outcome is before
    assert tracker.status is JobStatus[state]
    assert tracker.history() == history


def test_the_walk() -> None:
    tracker = StatusTracker()
    for step in ["submitted", "serialized", "take_in", "assigned", "requeued", "assigned", "done"]:
        STEPS[step](tracker)
    names = [status.name for status, _ in tracker.history()]
    assert names == ["INITIALIZING", "VALIDATING", "QUEUED", "RUNNING", "QUEUED", "RUNNING", "DONE"]
    times = [when for _, when in tracker.history()]
    assert times == sorted(times)


def test_whoever_is_first_has_the_job() -> None:
    tracker = in_state("VALIDATING")
    assert tracker.end_early(cancelled())
    assert not tracker.serialized()
    assert not tracker.take_in()
    assert tracker.status is JobStatus.CANCELLED
    tracker = in_state("VALIDATING")
    tracker.serialized()
    assert tracker.take_in()
    assert not tracker.end_early(cancelled())
    assert tracker.status is JobStatus.QUEUED


def test_pid_is_there_while_it_runs() -> None:
    tracker = in_state("RUNNING")
    assert tracker.pid == 42
    tracker.requeued(began=False)
    assert tracker.pid is None
    assert tracker.attempts == 0
    tracker.assigned(43)
    tracker.requeued(began=True)
    tracker.assigned(44)
    assert tracker.attempts == 2
    tracker.settle(done())
    assert tracker.pid is None


def test_waiters_are_called_once() -> None:
    calls: list[str] = []
    tracker = in_state("RUNNING")
    tracker.call_when_final(lambda: calls.append("before"))

    def taken_back() -> None:
        calls.append("taken back")

    tracker.call_when_final(taken_back)
    assert tracker.forget(taken_back)
    assert not tracker.forget(taken_back)
    assert calls == []
    tracker.settle(done())
    assert calls == ["before"]
    tracker.call_when_final(lambda: calls.append("after"))
    assert calls == ["before", "after"]
    assert not tracker.settle(failed())
    assert calls == ["before", "after"]


def test_wait() -> None:
    tracker = in_state("RUNNING")
    assert not tracker.wait(0)
    assert not tracker.wait(0.01)
    assert tracker._waiters == [], "who does not wait any more is forgotten"
    threads = [threading.Thread(target=tracker.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    tracker.settle(done())
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert tracker.wait()


def test_an_abandoned_job_tells_nobody() -> None:
    calls: list[int] = []
    tracker = in_state("RUNNING")
    tracker.call_when_final(lambda: calls.append(1))
    tracker.abandon(ValueError("elsewhere"))
    assert tracker.status is JobStatus.ERROR
    assert calls == []


def test_outcomes() -> None:
    outcome = done()
    value, error = outcome.load("f")
    assert value == [7]
    assert error is None
    assert outcome.load("f")[0] is value, "the same object each time"
    raised = Outcome(JobStatus.ERROR, Message(Kind.RAISED, 1, dump_exception(KeyError("k"))))
    _, error = raised.load("f")
    assert isinstance(error, KeyError)
    assert raised.load("f")[1] is error
    assert isinstance(cancelled().load("f")[1], JobCancelledError)
    broken = Outcome(JobStatus.DONE, Message(Kind.RETURNED, 1, b"no pickle"))
    for _ in range(2):
        with pytest.raises(SerializationError, match="job f"):
            broken.load("f")

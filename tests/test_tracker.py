"""The tracker without a process: every state with every event, and who wins which race."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from primitive_jobs._engine.gate import HandOver
from primitive_jobs._engine.tracker import Outcome, StatusTracker, cancelled
from primitive_jobs._wire.failures import dump_exception
from primitive_jobs._wire.messages import Kind, Message
from primitive_jobs._wire.pickling import dumps
from primitive_jobs.errors import JobCancelledError, SerializationError
from primitive_jobs.status import FINAL_STATES, JobStatus


class F:
    """Of a job, what an outcome needs."""

    name = "f"

    def __init__(self) -> None:
        self._loaded: list[tuple[Any, BaseException | None]] = []


Step = Callable[[StatusTracker], object]


def done() -> Outcome:
    return Outcome(JobStatus.DONE, Message(Kind.RETURNED, 1, dumps([7])[0]))


def failed() -> Outcome:
    return Outcome(JobStatus.ERROR, ValueError("no"))


def settle(tracker: StatusTracker, outcome: Outcome) -> bool:
    settled = tracker.settle(outcome) is not None
    tracker.tell_waiters()
    return settled


STEPS: dict[str, Step] = {
    "submitted": StatusTracker.submitted,
    "serialized": StatusTracker.serialized,
    "take": StatusTracker.take,
    "assigned": lambda tracker: tracker.assigned(42),
    "requeued": lambda tracker: tracker.requeued(began=False),
    "cancelled early": lambda tracker: tracker.end_early(cancelled()),
    "failed early": lambda tracker: tracker.end_early(failed()),
    "done": lambda tracker: settle(tracker, done()),
    "failed": lambda tracker: settle(tracker, failed()),
    "cancelled": lambda tracker: settle(tracker, cancelled()),
}
WALKS: dict[str, list[str]] = {
    "INITIALIZING": [],
    "VALIDATING": ["submitted"],
    "QUEUED": ["submitted", "serialized"],
    "REQUEUED": ["submitted", "serialized", "take", "assigned", "requeued"],
    "RUNNING": ["submitted", "serialized", "take", "assigned"],
    "DONE": ["submitted", "serialized", "take", "assigned", "done"],
    "ERROR": ["submitted", "serialized", "take", "assigned", "failed"],
    "CANCELLED": ["submitted", "serialized", "take", "assigned", "cancelled"],
}
# What each event makes of each state; "!" stands for an illegal move, which raises, "-" for False.
# The rest is as it was.
EXPECTED = """
                INITIALIZING VALIDATING QUEUED    REQUEUED  RUNNING
submitted       VALIDATING   !          !         -         -
serialized      !            QUEUED     !         !         QUEUED
take            INITIALIZING VALIDATING QUEUED    QUEUED    RUNNING
assigned        !            !          RUNNING   RUNNING   !
requeued        !            QUEUED     QUEUED    QUEUED    QUEUED
cancelled_early CANCELLED    CANCELLED  CANCELLED -         -
failed_early    !            ERROR      ERROR     -         -
done            !            !          !         !         DONE
failed          !            ERROR      ERROR     ERROR     ERROR
cancelled       CANCELLED    CANCELLED  CANCELLED CANCELLED CANCELLED
"""


def in_state(name: str) -> StatusTracker:
    tracker = StatusTracker()
    for step in WALKS[name]:
        STEPS[step](tracker)
    assert tracker.status is JobStatus[name.removeprefix("RE")]
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
        expected = state.removeprefix("RE")
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
    for step in ["submitted", "serialized", "take", "assigned", "requeued", "assigned", "done"]:
        STEPS[step](tracker)
    names = [status.name for status, _ in tracker.history()]
    assert names == ["INITIALIZING", "VALIDATING", "QUEUED", "RUNNING", "QUEUED", "RUNNING", "DONE"]
    times = [when for _, when in tracker.history()]
    assert times == sorted(times)


def test_whoever_is_first_has_the_job() -> None:
    tracker = in_state("VALIDATING")
    assert tracker.end_early(cancelled())
    assert not tracker.serialized()
    assert not tracker.take()
    assert tracker.status is JobStatus.CANCELLED
    tracker = in_state("VALIDATING")
    tracker.serialized()
    assert tracker.take()
    assert not tracker.end_early(cancelled())
    assert tracker.status is JobStatus.QUEUED
    tracker = in_state("QUEUED")
    assert tracker.end_early(cancelled())
    assert not tracker.take()
    assert not tracker.settle(failed()), "the dispatcher comes too late with another end"
    assert tracker.status is JobStatus.CANCELLED


def handed_over() -> tuple[StatusTracker, HandOver]:
    tracker, how = in_state("QUEUED"), HandOver(77)
    how.when = time.time()
    assert tracker.take(how)
    return tracker, how


def seen(tracker: StatusTracker) -> tuple[object, ...]:
    return tracker.status.name, tracker.pid, tracker.attempts, tracker.history()[-1][0].name


def test_what_was_handed_over_runs_before_it_is_written_down() -> None:
    tracker, how = handed_over()
    assert seen(tracker) == ("RUNNING", 77, 1, "RUNNING")
    history = tracker.history()
    assert not tracker.end_early(cancelled())
    tracker.note(how)
    assert seen(tracker) == ("RUNNING", 77, 1, "RUNNING")
    assert tracker.history() == history
    tracker.requeued(began=False)
    assert seen(tracker) == ("QUEUED", None, 0, "QUEUED")
    tracker.assigned(78)
    assert seen(tracker) == ("RUNNING", 78, 1, "RUNNING")


def test_what_was_handed_over_may_be_over_when_it_is_heard_of() -> None:
    tracker, how = handed_over()
    tracker.ran(how, done())
    assert seen(tracker) == ("DONE", None, 1, "DONE")
    names = [status.name for status, _ in tracker.history()]
    assert names == ["INITIALIZING", "VALIDATING", "QUEUED", "RUNNING", "DONE"]
    with pytest.raises(RuntimeError, match="illegal"):
        in_state("RUNNING").ran(how, done())


def test_who_looks_while_it_is_written_down_sees_what_is_true() -> None:
    noting, how = handed_over()
    ending, other = handed_over()

    def look(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_name in ("note", "ran"):
            sys.settrace(None)
            views.extend(seen(tracker)[:3] for tracker in (noting, ending))
            sys.settrace(look)
            return look
        return None

    views: list[tuple[object, ...]] = []
    before = sys.gettrace()
    sys.settrace(look)
    try:
        noting.note(how)
        ending.ran(other, done())
    finally:
        sys.settrace(before)
    assert len(views) > 20
    assert set(views) == {("RUNNING", 77, 1), ("DONE", None, 1)}


def test_a_hand_over_comes_too_late_for_what_has_ended() -> None:
    tracker = in_state("QUEUED")
    assert tracker.end_early(cancelled())
    assert not tracker.take(HandOver(77))
    assert seen(tracker) == ("CANCELLED", None, 0, "CANCELLED")


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
    settle(tracker, done())
    assert tracker.pid is None


def test_what_is_sent_is_queued_until_a_worker_has_it() -> None:
    tracker = in_state("QUEUED")
    assert tracker.take()
    before = tracker.history()
    assert not tracker.end_early(cancelled()), "it is the dispatcher's"
    tracker.requeued(began=False)
    tracker.requeued(began=True)
    assert seen(tracker) == ("QUEUED", None, 0, "QUEUED")
    assert tracker.history() == before
    assert tracker.take()
    tracker.assigned(42, "tcp://node:1")
    assert (*seen(tracker), tracker.node) == ("RUNNING", 42, 1, "RUNNING", "tcp://node:1")
    tracker.requeued(began=True)
    assert (tracker.pid, tracker.node, tracker.attempts) == (None, None, 1)
    tracker.assigned(43, "tcp://node:2")
    settle(tracker, done())
    assert (tracker.pid, tracker.node) == (None, None)


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_what_was_sent_may_end_before_a_worker_has_it(end: str) -> None:
    tracker = in_state("QUEUED")
    assert tracker.take()
    assert STEPS[end](tracker)
    assert tracker.attempts == 0
    assert [status.name for status, _ in tracker.history()][-2] == "QUEUED"


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
    settle(tracker, done())
    assert calls == ["before"]
    tracker.call_when_final(lambda: calls.append("after"))
    assert calls == ["before", "after"]
    assert not settle(tracker, failed())
    assert calls == ["before", "after"]


def test_wait() -> None:
    tracker = in_state("RUNNING")
    assert not tracker.wait(0)
    assert not tracker.wait(0.01)
    assert not tracker._waiters, "who does not wait any more is forgotten"
    threads = [threading.Thread(target=tracker.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    settle(tracker, done())
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert tracker.wait()


def test_an_abandoned_job_has_ended_before_anybody_is_told() -> None:
    calls: list[int] = []
    tracker = in_state("RUNNING")
    tracker.call_when_final(lambda: calls.append(1))
    tracker.abandon(1)
    assert tracker.status is JobStatus.ERROR
    assert calls == []
    tracker.tell_waiters()
    assert calls == [1]


def test_outcomes() -> None:
    outcome, job = done(), F()
    value, error = outcome.load(job)
    assert value == [7]
    assert error is None
    assert outcome.load(job)[0] is value, "the same object each time"
    raised = Outcome(JobStatus.ERROR, Message(Kind.RAISED, 1, dump_exception(KeyError("k"))))
    job = F()
    _, error = raised.load(job)
    assert isinstance(error, KeyError)
    assert raised.load(job)[1] is error
    assert isinstance(cancelled().load(F())[1], JobCancelledError)
    broken = Outcome(JobStatus.DONE, Message(Kind.RETURNED, 1, b"no pickle"))
    for _ in range(2):
        with pytest.raises(SerializationError, match="job f"):
            broken.load(F())

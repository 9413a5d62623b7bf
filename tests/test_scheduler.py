"""The scheduler without a process: rules one by one, then a random walk through all of it."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import pytest
from helpers import SOAK, case
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_events import Answered, Submitted, Told, tell

from primitive_jobs._engine.delays import Delays
from primitive_jobs._engine.events import (
    Action,
    Assign,
    Begin,
    Broken,
    CancelAllAsked,
    CancelAsked,
    Cancelled,
    Close,
    DependencyDone,
    Died,
    Faulted,
    Gone,
    HandedOver,
    HeldBack,
    InitFailed,
    Kill,
    Leave,
    Lesson,
    LookAtMemory,
    Lost,
    MemorySeen,
    NeverDone,
    NotInitialized,
    NotTaken,
    OutOfMemory,
    OverMemory,
    Postpone,
    Ready,
    Reclaimed,
    Refuse,
    Requeue,
    Resized,
    RestartAsked,
    Settle,
    ShutDown,
    Spawn,
    Started,
    StartFailed,
    Suspended,
    Taken,
    Teach,
    Terminate,
    Tick,
    TimedOut,
    TurnedAway,
    Unmet,
    Unreachable,
    Unspawn,
    Unwatch,
    Watch,
    Withdrawn,
)
from primitive_jobs._engine.pauses import FIRST_PAUSE
from primitive_jobs._engine.queue import Job
from primitive_jobs._engine.scheduler import (
    LEAVE_TIME,
    MAX_STARTS,
    Scheduler,
    SlotState,
)
from primitive_jobs._engine.slots import MOVES
from primitive_jobs._wire.evidence import Evidence
from primitive_jobs._wire.messages import Kind, Message
from primitive_jobs.options import Limits, Needs

RETURNED = Message(Kind.RETURNED)
RAISED = Message(Kind.RAISED)
RETRIABLE = Message(Kind.RETRIABLE)


class Script:
    """A scheduler, a clock, and shorthands."""

    def __init__(
        self,
        max_workers: int = 1,
        idle_timeout: float | None = None,
        max_jobs: int | None = None,
        spares: int = 0,
        **ways: Any,
    ) -> None:
        self.scheduler = Scheduler(max_workers, idle_timeout, max_jobs, spares, **ways)
        self.now = 0.0
        self.settled: list[int] = []  # jobs, in the order of their ends

    def __call__(self, *events: Told) -> list[Action]:
        actions: list[Action] = []
        for event in events:
            actions += tell(self.scheduler, event, self.now)
            self.scheduler.check()
        self.settled += [action.job for action in actions if isinstance(action, Settle)]
        return actions

    def warm(self, count: int = 1) -> None:
        """Have idle workers in slots 1 to ``count``; used up jobs 1001 and following."""
        jobs = range(1001, 1001 + count)
        self(*(Submitted(job) for job in jobs))
        for slot in range(1, count + 1):
            self(Started(slot), Ready(slot))
        for slot in range(1, count + 1):
            self(Answered(slot, slot, RETURNED))


def settled(actions: list[Action]) -> dict[int, Any]:
    return {action.job: action.fate for action in actions if isinstance(action, Settle)}


def test_a_job_from_start_to_end() -> None:
    play = Script()
    assert play(Submitted(1)) == [Spawn(1)]
    assert play(Started(1)) == []
    assert play(Ready(1)) == [Assign(1, 1, 1)]
    assert play(Answered(1, 1, RETURNED)) == [Settle(1, RETURNED)]
    assert play(Submitted(2)) == [Assign(1, 2, 2)]


def test_higher_priority_first_and_in_order_within() -> None:
    play = Script()
    play(*(Submitted(n, priority) for n, priority in [(1, 0), (2, 5), (3, 0), (4, 5)]))
    assert play(Started(1), Ready(1)) == [Assign(1, 2, 1)]
    order = []
    for attempt in (1, 2, 3):
        (_, assign) = play(Answered(1, attempt, RETURNED))
        assert isinstance(assign, Assign)
        order.append(assign.job)
    assert order == [4, 1, 3]


def test_the_order_of_the_waiting() -> None:
    play = Script()
    priorities = {1: 0, 2: 3, 3: 0, 4: -1, 5: 3, 6: 0}
    play(*(Submitted(number, priority) for number, priority in priorities.items()))
    play(CancelAsked(3), Started(1), Ready(1))
    for attempt in range(1, 6):
        play(Answered(1, attempt, RETURNED))
    assert not play.scheduler.jobs
    assert play.settled == [3, 2, 5, 1, 6, 4]


def test_what_returns_keeps_its_place_among_those_that_returned() -> None:
    play = Script(3)
    play.warm(3)
    play(*(Submitted(number) for number in range(1, 6)))
    busy = {slot.job.number: n for n, slot in play.scheduler.slots.items() if slot.job}
    for job in (2, 1, 3):
        play(Died(busy[job]), Gone(busy[job], Evidence(1, -9, noted=0)))
    waiting = [play.scheduler.queue.pop().number for _ in range(5)]
    assert waiting == [1, 2, 3, 4, 5]


def test_a_queue_forgets_what_was_removed() -> None:
    play = Script()
    play(*(Submitted(number, number % 3) for number in range(1, 501)))
    for number in range(2, 501):
        play(CancelAsked(number))
    assert sum(map(len, play.scheduler.queue._rows.values())) < 150
    assert play(Started(1), Ready(1)) == [Assign(1, 1, 1)]


# --- offers --------------------------------------------------------------------------------------


def test_an_idle_worker_is_on_offer_and_nobody_else() -> None:
    play = Script(2)
    scheduler = play.scheduler
    assert scheduler.offer() is None
    play.warm()
    assert scheduler.offer() == (1, 2)
    assert play(HandedOver(1, 1, 2)) == []
    assert scheduler.offer() is None
    assert play(Answered(1, 2, RETURNED)) == [Settle(1, RETURNED)]
    assert scheduler.offer() == (1, 3)
    play(ShutDown())
    assert scheduler.offer() is None


def test_what_was_handed_over_is_a_job_like_any_other() -> None:
    play = Script()
    play.warm()
    play(HandedOver(1, 1, 2, retries=1))
    assert play(Submitted(2)) == []
    assert play(Died(1)) == [Kill(1), Spawn(2)]
    died = Evidence(1, -11, noted=2)
    assert play(Gone(1, died)) == [Requeue(1, began=True, evidence=died)]
    play(Started(2))
    assert play(Ready(2)) == [Assign(2, 1, 3)]
    assert play(CancelAsked(1)) == [Kill(2), Spawn(3)]


def test_no_offer_where_a_spare_would_have_to_be_started() -> None:
    play = Script(1, spares=1)
    play(Submitted(1), Started(1), Ready(1), Answered(1, 1, RETURNED))
    assert play.scheduler.offer() is None
    assert play(Submitted(2)) == [Assign(1, 2, 2), Spawn(2)]
    play(Started(2), Ready(2), Answered(1, 2, RETURNED))
    assert play.scheduler.offer() == (1, 3)


def test_no_offer_where_the_end_of_the_first_job_makes_a_spare_due() -> None:
    play = Script(1, spares=1)
    play(Submitted(1), Started(1), Ready(1), Withdrawn(1, 1))
    assert play.scheduler.slots[1].state is SlotState.IDLE
    assert play.scheduler.offer() is None


def test_a_job_cancelled_on_its_way_leaves_the_worker_as_it_was() -> None:
    play = Script(1, idle_timeout=9.0)
    play.warm()
    assert play(Submitted(1, 0, 3.0, 100))[0] == Assign(1, 1, 2, room=100)
    assert play(Withdrawn(1, 2)) == [Unwatch(1)]
    assert play.scheduler.next_deadline() == 9.0
    assert play(Withdrawn(1, 2), CancelAsked(1)) == []
    assert play(Submitted(2)) == [Assign(1, 2, 3)]


def test_needs_wake() -> None:
    play = Script(2)
    scheduler = play.scheduler
    assert scheduler.needs_wake()
    play(Submitted(1))
    assert scheduler.needs_wake(), "a second worker would be started"
    play(Submitted(2))
    assert not scheduler.needs_wake()
    play(Started(1), Ready(1), Started(2), Ready(2))
    assert not scheduler.needs_wake()
    play(Answered(1, 1, RETURNED))
    assert scheduler.needs_wake()
    play(Submitted(3), ShutDown())
    assert scheduler.needs_wake(), "it would be turned away"


def test_a_job_needs_a_wake_as_long_as_there_are_fewer_workers_than_may_be() -> None:
    play = Script(3)
    play(Submitted(1), Submitted(2), CancelAsked(1), CancelAsked(2))
    # One more job would be served by those that start; but several may come before it is told.
    assert play.scheduler.needs_wake()
    play(Submitted(3), Submitted(4), Submitted(5))
    assert not play.scheduler.needs_wake()


def test_steady_is_where_a_worker_goes_on_with_the_next_job_and_nothing_else_changes() -> None:
    play = Script()
    play.warm()
    play(*(Submitted(number, timeout=9.0 if number == 3 else None) for number in range(1, 6)))
    steady = []
    for number in range(1, 6):
        assert settled(play(Answered(1, number + 1, RETURNED))) == {number: RETURNED}
        steady.append((play.scheduler.steady, play.scheduler.next_deadline()))
    # The third one's time limit begins, and ends; after the fifth the worker is idle.
    assert steady == [(True, None), (False, 9.0), (False, None), (True, None), (False, None)]


def test_a_steady_answer_that_is_the_first_one_has_spares_started_all_the_same() -> None:
    play = Script(1, spares=1)
    play(Submitted(1), Submitted(2), Started(1), Ready(1))
    assert play(Answered(1, 1, RETURNED)) == [Settle(1, RETURNED), Assign(1, 2, 2), Spawn(2)]
    assert not play.scheduler.steady


def test_an_answer_that_empties_the_queue_ends_a_pause() -> None:
    play = Script(2)
    play.warm()
    play(Submitted(1), Submitted(2))
    play(*(StartFailed(slot, Evidence(error=OSError("no"))) for slot in range(2, 2 + MAX_STARTS)))
    assert play.scheduler.next_deadline() == FIRST_PAUSE
    assert play(Answered(1, 2, RETURNED)) == [Settle(1, RETURNED), Assign(1, 2, 3)]
    assert play.scheduler.next_deadline() is None
    assert not play.scheduler.steady


def test_an_answer_that_empties_the_queue_of_a_pool_that_closes_calls_off_who_is_coming() -> None:
    play = Script(2)
    play.warm()
    play(Submitted(1), Submitted(2), ShutDown())
    assert play(Answered(1, 2, RETURNED)) == [Settle(1, RETURNED), Assign(1, 2, 3), Unspawn(2)]
    assert not play.scheduler.steady


def test_no_more_workers_than_jobs_or_the_limit() -> None:
    play = Script(2)
    assert play(Submitted(1)) == [Spawn(1)]
    assert play(Submitted(2)) == [Spawn(2)]
    assert play(Submitted(3)) == []


def test_the_last_used_worker_is_used_again() -> None:
    play = Script(2)
    play.warm(2)
    assert play(Submitted(1)) == [Assign(2, 1, 3)]


def test_cancel_of_a_waiting_job() -> None:
    play = Script()
    play(Submitted(1), Submitted(2))
    assert play(CancelAsked(2)) == [Settle(2, Cancelled())]
    assert play(CancelAsked(2)) == []


def test_cancel_of_a_running_job_ends_with_its_worker() -> None:
    play = Script()
    play.warm()
    play(Submitted(1))
    assert play(CancelAsked(1)) == [Kill(1)]
    assert play(CancelAsked(1)) == []
    assert play(Gone(1, Evidence(1, -9, noted=2))) == [Settle(1, Cancelled())]


@pytest.mark.parametrize("answer", [RETURNED, RAISED])
def test_a_job_faster_than_the_kill_has_finished(answer: Message) -> None:
    play = Script()
    play.warm()
    play(Submitted(1), CancelAsked(1))
    assert settled(play(Answered(1, 2, answer))) == {1: answer}
    assert play(Gone(1, Evidence(1, -9, noted=2))) == []


def test_a_grace() -> None:
    play = Script()
    play.warm()
    play(Submitted(1))
    assert play(CancelAsked(1, 5.0)) == [Terminate(1)]
    assert play(CancelAsked(1, 9.0)) == []
    assert play.scheduler.next_deadline() == 5.0
    assert play(CancelAsked(1, 2.0)) == []
    assert play.scheduler.next_deadline() == 2.0
    play.now = 2.0
    assert play(Tick()) == [Kill(1)]
    assert play(Gone(1, Evidence(1, -9, noted=2))) == [Settle(1, Cancelled())]


def test_a_jobs_own_grace_is_that_of_a_cancel_of_all() -> None:
    play = Script(2)
    play.warm(2)
    play(Submitted(1, grace=5.0), Submitted(2), Submitted(3, grace=5.0), Submitted(4))
    actions = play(CancelAllAsked())
    assert settled(actions) == {3: Cancelled(), 4: Cancelled()}
    ends = [action for action in actions if isinstance(action, (Terminate, Kill))]
    assert len(ends) == 2
    assert {type(end) for end in ends} == {Terminate, Kill}
    assert play.scheduler.next_deadline() == 5.0
    assert play(CancelAllAsked(3.0)) == []
    assert play.scheduler.next_deadline() == 3.0


@pytest.mark.parametrize("hurry", [ShutDown(cancel=True), ShutDown(cancel=True, at_once=True)])
def test_a_shutdown_leaves_each_its_grace_the_first_time(hurry: ShutDown) -> None:
    play = Script()
    play.warm()
    play(HandedOver(1, 1, 2, grace=5.0))
    assert play(ShutDown(cancel=True)) == [Terminate(1)]
    assert play(ShutDown()) == []
    assert play.scheduler.next_deadline() == 5.0
    assert play(hurry) == [Kill(1)]
    assert play(Gone(1, Evidence(1, -9, noted=2))) == [Settle(1, Cancelled()), Close()]


def test_a_time_limit_leaves_the_grace_and_stays_passed() -> None:
    for answer in (None, RETURNED, RAISED):
        play = Script()
        play.warm()
        play(Submitted(1, timeout=3.0, grace=5.0))
        play.now = 3.0
        assert play(Tick()) == [Terminate(1)]
        assert play.scheduler.next_deadline() == 8.0
        if answer is None:
            play.now = 8.0
            assert play(Tick()) == [Kill(1, ask_stack=True)]
        else:  # its stack would be that of nothing
            assert play(Answered(1, 2, answer)) == [Kill(1)]
        fate = settled(play(Gone(1, Evidence(1, -9, noted=2))))
        assert fate == {1: TimedOut(3.0)}


def test_limits_do_not_count_what_was_stopped_with_the_program() -> None:
    play = Script(3)
    play.warm(3)
    play(Submitted(1, timeout=3.0))
    play.now = 1.0
    play(Submitted(2, timeout=10.0, grace=5.0), CancelAsked(2, 5.0))
    play.now = 21.5
    play(Submitted(3, timeout=2.0))  # it goes on, its workers do not yet
    play.now = 22.0
    assert play(Suspended(1.0, 22.0)) == []
    deadlines = {s.job.number: s.deadline for s in play.scheduler.slots.values() if s.job}
    assert deadlines == {1: 3.0 + 21.0, 2: 1.0 + 5.0 + 21.0, 3: 21.5 + 2.0 + 0.5}
    assert play(Suspended(0.0, 0.5)) == []  # before 2 and 3
    assert play.scheduler.next_deadline() == 24.0
    play.now = 24.4
    assert play(Tick()) == [Kill(1, ask_stack=True)]  # of 3, which got the last idle one


def test_a_cancel_in_the_grace_of_a_time_limit_ends_it_and_changes_nothing() -> None:
    for late in (False, True):
        play = Script()
        play.warm()
        play(Submitted(1, timeout=3.0, grace=5.0))
        play.now = 3.0
        play(Tick())
        assert play(CancelAsked(1, 60.0)) == []
        assert play.scheduler.next_deadline() == 8.0
        assert play(CancelAsked(1, 0.0)) == [Kill(1, ask_stack=True)]
        assert not late or settled(play(Answered(1, 2, RETURNED))) == {}
        assert settled(play(Gone(1, Evidence(1, -9, noted=2)))) == {1: TimedOut(3.0)}


def test_too_much_memory_in_the_grace_of_a_time_limit() -> None:
    play = Script()
    play(Submitted(1, timeout=3.0, memory_limit=100, grace=5.0), Started(1), Ready(1))
    play.now = 3.0
    assert play(Tick()) == [Terminate(1)]
    assert Kill(1, ask_stack=True) in play(OverMemory(1, 1, 150))
    assert settled(play(Gone(1, Evidence(1, -9, noted=1)))) == {1: TimedOut(3.0)}


def test_a_return_within_the_grace_counts_an_exception_does_not() -> None:
    for answer, fate in [(RETURNED, RETURNED), (RAISED, Cancelled())]:
        play = Script()
        play.warm()
        play(Submitted(1), CancelAsked(1, 5.0))
        actions = play(Answered(1, 2, answer), Gone(1, Evidence(1, -9, noted=2)))
        assert settled(actions) == {1: fate}
        assert Kill(1) in actions, "what was sent SIGTERM is not used again"


def test_a_time_limit() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, 0, 3.0))
    assert play.scheduler.next_deadline() == 3.0
    play.now = 2.9
    assert play(Tick()) == []
    play.now = 3.0
    assert play(Tick()) == [Kill(1, ask_stack=True)]
    assert play(CancelAsked(1)) == [], "the first reason counts"
    ended = Evidence(1, -9, noted=2, stack="in f")
    assert play(Gone(1, ended)) == [Settle(1, TimedOut(3.0, "in f"))]


def test_a_death_costs_the_job_only_if_it_began() -> None:
    play = Script()
    play.warm()
    play(Submitted(1), Submitted(2))
    assert play(Died(1)) == [Kill(1), Spawn(2)]
    began = Evidence(1, -11, noted=2)
    assert play(Gone(1, began)) == [Settle(1, Lost(began))]
    play(Started(2), Ready(2))
    play(Submitted(3))
    play(Died(2))
    assert play(Gone(2, Evidence(1, -9, noted=2))) == [Requeue(2)]
    play(Started(3))
    assert play(Ready(3)) == [Assign(3, 2, 4)], "it is the first again"


def test_a_worker_that_a_fault_is_about_is_replaced() -> None:
    play = Script()
    error = OSError("no")
    play(Submitted(1), Started(1), Ready(1))
    assert play(Faulted(1, error)) == [Kill(1)]
    assert play(Faulted(1, ValueError("late")), Died(1)) == []
    assert play(Gone(1, Evidence(1, -9, noted=0))) == [Requeue(1), Spawn(2)]
    play(Started(2))
    assert play(Ready(2)) == [Assign(2, 1, 2)]
    play(Faulted(2, error))
    lost = Lost(Evidence(2, -9, noted=2, stack="in f", error=error))
    assert play(Gone(2, Evidence(2, -9, noted=2, stack="in f"))) == [Settle(1, lost)]


def test_a_fault_does_not_change_why_a_job_ends() -> None:
    play = Script()
    play(Submitted(1), Started(1), Ready(1), CancelAsked(1, 5.0), Faulted(1, OSError("no")))
    assert play(Gone(1, Evidence(1, -9, noted=1))) == [Settle(1, Cancelled())]


def test_workers_that_cannot_be_watched_are_given_up() -> None:
    play = Script()
    play(Submitted(1))
    fates = {}
    for slot in range(1, MAX_STARTS + 1):
        assert play(Started(slot), Faulted(slot, OSError("no"))) == [Kill(slot)]
        fates = settled(play(Gone(slot, Evidence(1, -9, initializing=True))))
    assert isinstance(fates[1], Lost), "not the initializer's affair"


def test_a_death_without_a_readable_note_counts_as_begun() -> None:
    play = Script()
    play(Submitted(1), Started(1), Ready(1), Died(1))
    unknown = Evidence(1, -9, noted=None)
    assert play(Gone(1, unknown)) == [Settle(1, Lost(unknown))]


@pytest.mark.parametrize("noted", [0, 1])
def test_what_may_have_been_sent_began_if_the_worker_has_noted_it(noted: int) -> None:
    play = Script()
    play(Submitted(1), Started(1), Ready(1))
    assert play(Died(1)) == [Kill(1)]
    evidence = Evidence(1, -6, noted=noted)
    if noted:
        assert play(Gone(1, evidence)) == [Settle(1, Lost(evidence))]
    else:
        assert Spawn(2) in play(Gone(1, evidence))
        assert play(Started(2), Ready(2)) == [Assign(2, 1, 2)]


def test_what_never_starts_is_given_up() -> None:
    play = Script()
    play(Submitted(1))
    fates = {}
    for slot in range(1, MAX_STARTS + 1):
        fates = settled(play(Started(slot), Ready(slot), NotTaken(slot, slot)))
        assert bool(fates) == (slot == MAX_STARTS)
        play(Gone(slot, Evidence(1, -9)))
    assert isinstance(fates[1], Lost)


def test_starts_that_fail_are_given_up() -> None:
    play = Script()
    play(Submitted(1))
    error = Evidence(error=OSError("no"))
    for slot in range(1, MAX_STARTS):
        assert play(StartFailed(slot, error)) == [Spawn(slot + 1)]
    assert settled(play(StartFailed(MAX_STARTS, error))) == {1: Lost(error)}
    assert play(Submitted(2)) == [Spawn(MAX_STARTS + 1)], "the next one tries again"


def test_starts_that_fail_beside_a_working_worker_are_paused() -> None:
    play = Script(2)
    play.warm()
    play(Submitted(1), Submitted(2))
    for slot in range(2, 2 + MAX_STARTS):
        actions = play(StartFailed(slot, Evidence(error=OSError("no"))))
    assert actions == [Postpone(FIRST_PAUSE, spare=False)]
    assert play.scheduler.next_deadline() == FIRST_PAUSE
    play.now = FIRST_PAUSE
    assert play(Tick()) == [Spawn(2 + MAX_STARTS)]


def test_an_initializer_that_raises_fails_those_who_wait() -> None:
    play = Script(2)
    play(Submitted(1), Submitted(2), Started(1), Started(2))
    first, last = Message(Kind.INIT_FAILED, 1), Message(Kind.INIT_FAILED, 2)
    assert play(InitFailed(1, first)) == [Kill(1), Postpone(FIRST_PAUSE, spare=False)]
    fate = NotInitialized(last, None)
    assert settled(play(InitFailed(2, last))) == {1: fate, 2: fate}
    assert play(Submitted(3)) == [Spawn(3)]
    assert play(InitFailed(2, first), Gone(1, Evidence()), Gone(2, Evidence())) == []


def test_an_initializer_that_dies_too() -> None:
    play = Script()
    play(Submitted(1), Started(1), Died(1))
    evidence = Evidence(5, 3, initializing=True)
    assert settled(play(Gone(1, evidence))) == {1: NotInitialized(None, evidence)}


def test_idle_workers_leave() -> None:
    play = Script(2, idle_timeout=60.0)
    play.warm(2)
    assert play.scheduler.next_deadline() == 60.0
    play.now = 60.0
    assert play(Tick()) == [Leave(1), Leave(2)]
    assert play.scheduler.next_deadline() == 60.0 + LEAVE_TIME
    play.now += LEAVE_TIME
    assert play(Tick()) == [Kill(1), Kill(2)]


def test_resize() -> None:
    play = Script(1)
    play(Submitted(1), Submitted(2), Submitted(3))
    assert play(Resized(2)) == [Spawn(2)]
    play(Started(1), Ready(1), Started(2), Ready(2), Resized(1))
    assert Leave(1) in play(Answered(1, 1, RETURNED))
    assert Assign(2, 3, 3) in play(Answered(2, 2, RETURNED))


def test_a_spare_of_those_that_are_busy_beyond_the_limit_stays() -> None:
    play = Script(2, spares=1)
    play.warm(2)
    play(Submitted(1), Submitted(2), Started(3), Ready(3))
    assert play(Resized(1)) == [Leave(3), Spawn(4)]
    assert play(Started(4), Ready(4)) == []
    assert play(Submitted(3), CancelAsked(3)) == [Settle(3, Cancelled())]
    attempts = {slot.number: slot.attempt for slot in play.scheduler.slots.values() if slot.job}
    one, other = attempts
    ended = play(Answered(one, attempts[one], RETURNED))
    assert [type(action) for action in ended] == [Settle, Leave], "there is one too many now"
    assert [type(action) for action in play(Answered(other, attempts[other], RETURNED))] == [Settle]


def test_a_shutdown_finishes_what_is_there() -> None:
    play = Script()
    play.warm()
    play(Submitted(1), Submitted(2), ShutDown())
    assert play(Submitted(3)) == [Settle(3, TurnedAway())]
    assert play(Answered(1, 2, RETURNED)) == [Settle(1, RETURNED), Assign(1, 2, 3)]
    assert play(Answered(1, 3, RETURNED)) == [Settle(2, RETURNED), Leave(1)]
    assert play(Died(1)) == [Kill(1)]
    assert play(Gone(1, Evidence(1, 0))) == [Close()]


def test_a_shutdown_that_cancels() -> None:
    play = Script(2)
    play.warm()
    play(Submitted(1), Submitted(2))
    actions = play(ShutDown(cancel=True))
    assert settled(actions) == {2: Cancelled()}
    assert Kill(1) in actions
    assert Unspawn(2) in actions
    assert play(Gone(1, Evidence(1, -9, noted=2))) == [Settle(1, Cancelled())]
    assert play(StartFailed(2, Evidence())) == [Close()]


def test_a_memory_limit() -> None:
    play = Script()
    play(Submitted(1, memory_limit=100), Started(1))
    assert play(Ready(1)) == [Assign(1, 1, 1), Watch(1, 1, 100)]
    assert play(OverMemory(1, 7, 150)) == [], "of an attempt that is over"
    assert play(OverMemory(1, 1, 150)) == [Unwatch(1), Kill(1, ask_stack=True)]
    assert play(OverMemory(1, 1, 160)) == []
    ended = Evidence(1, -9, noted=1, stack="in f")
    assert play(Gone(1, ended)) == [Settle(1, OutOfMemory(100, 150, "in f"))]


def test_memory_is_watched_until_the_answer() -> None:
    play = Script()
    play(Submitted(1, memory_limit=100), Started(1), Ready(1))
    assert Unwatch(1) in play(Answered(1, 1, RETURNED))
    assert play(Submitted(2)) == [Assign(1, 2, 2)]
    assert play(OverMemory(1, 1, 150)) == []


def test_too_much_memory_in_a_grace_ends_the_grace() -> None:
    play = Script()
    play(Submitted(1, memory_limit=100), Started(1), Ready(1), CancelAsked(1, 5.0))
    assert play(OverMemory(1, 1, 150)) == [Unwatch(1), Kill(1)]
    assert play(Gone(1, Evidence(1, -9, noted=1))) == [Settle(1, Cancelled())]


def test_a_worker_that_holds_too_much_is_replaced_first() -> None:
    play = Script()
    play.warm()
    assert play(Submitted(1, memory_limit=100)) == [Assign(1, 1, 2, room=100), Watch(1, 2, 100)]
    assert play(NotTaken(1, 2, unfit=True)) == [Unwatch(1), Leave(1), Spawn(2)]
    play(Started(2))
    assert play(Ready(2)) == [Assign(2, 1, 3), Watch(2, 3, 100)], "a fresh one has what it has"


def test_a_worker_that_holds_too_much_is_killed_where_the_job_shall_stop() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, memory_limit=100), CancelAsked(1, 5.0))
    assert play(NotTaken(1, 2, unfit=True)) == [Unwatch(1), Kill(1)]
    assert play(Gone(1, Evidence(1, -9, noted=0))) == [Settle(1, Cancelled())]


def test_retries_only_after_a_death() -> None:
    play = Script()
    play(Submitted(1, retries=1), Started(1), Ready(1), Died(1))
    died = Evidence(1, -11, noted=1)
    assert play(Gone(1, died)) == [Requeue(1, began=True, evidence=died), Spawn(2)]
    play(Started(2))
    assert play(Ready(2)) == [Assign(2, 1, 2)]
    play(Died(2))
    again = Evidence(1, -11, noted=2)
    assert play(Gone(2, again)) == [Settle(1, Lost(again))]


@pytest.mark.parametrize(
    ("submitted", "event", "fate"),
    [
        (Submitted(1, retries=9), CancelAsked(1), Cancelled()),
        (Submitted(1, 0, 5.0, None, 9), Tick(), TimedOut(5.0)),
        (Submitted(1, 0, None, 100, 9), OverMemory(1, 1, 150), OutOfMemory(100, 150)),
    ],
    ids=["cancel", "timeout", "memory"],
)
def test_no_retry_after_our_own_kill(submitted: Submitted, event: Told, fate: Any) -> None:
    play = Script()
    play(submitted, Started(1), Ready(1))
    play.now = 5.0
    play(event)
    assert play(Gone(1, Evidence(1, -9, noted=1))) == [Settle(1, fate)]


def test_no_retry_after_an_exception() -> None:
    play = Script()
    play(Submitted(1, retries=9), Started(1), Ready(1))
    assert settled(play(Answered(1, 1, RAISED))) == {1: RAISED}


# --- retries after an exception, and delays ------------------------------------------------------


def retried(job: int, delay: float = 0.0) -> Requeue:
    return Requeue(job, True, None, RETRIABLE, delay)


def test_a_job_is_tried_again_at_once_before_later_ones() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=1), Submitted(2), Submitted(3, 1))
    assert play(Answered(1, 2, RETRIABLE)) == [retried(1), Assign(1, 3, 3)]
    assert not play.scheduler.steady, "more has changed than that a job has ended"
    assert play(Answered(1, 3, RETURNED)) == [Settle(3, RETURNED), Assign(1, 1, 4)]
    assert play(Answered(1, 4, RETRIABLE))[0] == Settle(1, RETRIABLE), "none is left"
    assert play.scheduler.jobs.keys() == {2}


def test_what_may_not_be_tried_again_ends() -> None:
    play = Script()
    play.warm()
    play(Submitted(1))
    assert play(Answered(1, 2, RETRIABLE)) == [Settle(1, RETRIABLE)]


def test_a_delay_is_waited_for_and_doubled() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=7, retry_delay=4.0))
    for attempt, delay in enumerate((4.0, 8.0, 16.0, 32.0, 60.0, 60.0), 2):
        assert play(Answered(1, attempt, RETRIABLE)) == [retried(1, delay)]
        assert play.scheduler.next_deadline() == play.now + delay
        assert (play.scheduler.waiting, len(play.scheduler.delayed.jobs)) == (0, 1)
        play.now += delay - 0.01
        assert play(Tick()) == []
        play.now += 0.02
        assert play(Tick()) == [Assign(1, 1, attempt + 1)]
        assert play.scheduler.next_deadline() is None


def test_a_delay_that_is_longer_than_the_longest_stays() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=3, retry_delay=90.0))
    for attempt in (2, 3):
        assert play(Answered(1, attempt, RETRIABLE)) == [retried(1, 90.0)]
        play.now += 90.0
        play(Tick())


def test_a_delay_after_a_death() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=1, retry_delay=5.0), Died(1))
    evidence = Evidence(1, -9, 2)
    actions = play(Gone(1, evidence))
    assert actions == [Requeue(1, True, evidence, None, 5.0)], "and no worker is started for it"
    play.now = 5.0
    assert play(Tick()) == [Spawn(2)]


def test_what_is_due_again_comes_by_its_priority_and_number() -> None:
    play = Script(2)
    play.warm(2)
    play(Submitted(1, retries=1, retry_delay=1.0), Submitted(2, 5, retries=1, retry_delay=2.0))
    play(Answered(1, 4, RETRIABLE), Answered(2, 3, RETRIABLE))
    play(Submitted(3), Submitted(4), Submitted(5), Submitted(6, 9))
    assert play.scheduler.next_deadline() == 1.0
    play.now = 3.0
    assert play(Tick()) == [], "both workers have jobs"
    order = []
    for _ in range(4):
        slot = play.scheduler.slots[1]
        actions = play(Answered(1, slot.attempt, RETURNED))
        order += [action.job for action in actions if isinstance(action, Assign)]
    assert order == [6, 2, 1, 5]


@pytest.mark.parametrize("end", [CancelAsked(1), CancelAllAsked(), ShutDown(cancel=True)])
def test_a_delayed_job_is_cancelled_at_once(end: Told) -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=1, retry_delay=5.0), Answered(1, 2, RETRIABLE))
    assert Settle(1, Cancelled()) in play(end)
    assert play.scheduler.next_deadline() in (None, LEAVE_TIME)
    play.now = 6.0
    assert not [action for action in play(Tick()) if isinstance(action, Assign)]


def test_a_delayed_job_ends_with_its_cluster() -> None:
    play = Script(confirms=True)
    play(Submitted(1, retries=1, retry_delay=5.0), Started(1), Ready(1), Taken(1, 1))
    assert play(Answered(1, 1, RETRIABLE)) == [retried(1, 5.0)]
    error = OSError("lost")
    assert Settle(1, Unreachable(error)) in play(Broken(error))


def test_a_shutdown_waits_for_a_delayed_job_and_keeps_its_worker() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=1, retry_delay=5.0), Answered(1, 2, RETRIABLE))
    assert play(ShutDown()) == []
    play.now = 5.0
    assert play(Tick()) == [Assign(1, 1, 3)]
    assert play(Answered(1, 3, RETURNED)) == [Settle(1, RETURNED), Leave(1)]


def test_an_initializer_that_raises_fails_no_delayed_job() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=1, retry_delay=5.0), Answered(1, 2, RETRIABLE), RestartAsked())
    play(Submitted(2), Started(2))
    actions = play(InitFailed(2, Message(Kind.INIT_FAILED)))
    assert [action.job for action in actions if isinstance(action, Settle)] == [2]
    assert play.scheduler.jobs.keys() == {1}


def test_a_held_job_starts_after_the_last_one_it_waits_for_and_keeps_its_place() -> None:
    play = Script()
    play.warm()
    assert play(HeldBack(1, Limits(), 2), Submitted(2), Submitted(3)) == [Assign(1, 2, 2)]
    assert play(DependencyDone(1), DependencyDone(1), DependencyDone(1)) == []
    assert play(Answered(1, 2, RETURNED))[-1] == Assign(1, 1, 3)


@pytest.mark.parametrize("end", [CancelAsked(1), CancelAllAsked(), ShutDown(cancel=True)])
def test_a_held_job_is_cancelled_at_once(end: Told) -> None:
    play = Script()
    play.warm()
    play(HeldBack(1, Limits(), 1))
    assert Settle(1, Cancelled()) in play(end)
    assert not settled(play(DependencyDone(1), NeverDone(1, Unmet(0, None))))


def test_a_held_job_ends_with_its_cluster() -> None:
    play = Script(confirms=True)
    play(HeldBack(1, Limits(), 1))
    error = OSError("lost")
    assert Settle(1, Unreachable(error)) in play(Broken(error))


def test_a_shutdown_waits_for_a_held_job() -> None:
    play = Script()
    play.warm()
    play(HeldBack(1, Limits(), 1))
    assert play(ShutDown()) == []
    assert play(DependencyDone(1)) == [Assign(1, 1, 2)]
    assert play(Answered(1, 2, RETURNED)) == [Settle(1, RETURNED), Leave(1)]
    assert play(HeldBack(2, Limits(), 1)) == [Settle(2, TurnedAway())]


def test_a_shutdown_ends_when_a_held_job_is_unmet() -> None:
    play = Script()
    fate = Unmet(0, None)
    play(HeldBack(1, Limits(), 2), ShutDown())
    assert play(NeverDone(1, fate)) == [Settle(1, fate), Close()]


def test_an_initializer_that_raises_fails_no_held_job() -> None:
    play = Script()
    play(HeldBack(1, Limits(), 1), Submitted(2), Started(1))
    assert settled(play(InitFailed(1, Message(Kind.INIT_FAILED)))).keys() == {2}
    assert play.scheduler.jobs.keys() == {1}


def test_an_exception_faster_than_the_kill_is_not_tried_again_after_a_cancel() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=1), CancelAsked(1))
    assert play(Answered(1, 2, RETRIABLE)) == [], "it is CANCELLED when its worker is gone"
    assert play(Gone(1, Evidence(1, -9, 2))) == [Settle(1, Cancelled())]
    play = Script()
    play.warm()
    play(Submitted(1), CancelAsked(1))
    assert play(Answered(1, 2, RETRIABLE)) == [Settle(1, RETRIABLE)], "it has ended by itself"


def test_an_exception_in_a_grace_or_after_a_limit_is_not_tried_again() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, timeout=1.0, retries=3, grace=5.0))
    play.now = 1.0
    play(Tick())
    play(Answered(1, 2, RETRIABLE))
    evidence = Evidence(1, -9, 2)
    assert play(Gone(1, evidence)) == [Settle(1, TimedOut(1.0, None, None))]
    play = Script()
    play.warm()
    play(Submitted(1, timeout=1.0, retries=3))
    play.now = 1.0
    play(Tick())
    assert play(Answered(1, 2, RETRIABLE)) == [Settle(1, RETRIABLE)], "it was faster"


def test_an_exception_before_a_death_is_tried_again() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, retries=1), Died(1))
    actions = play(Answered(1, 2, RETRIABLE))
    assert actions[0] == retried(1)
    assert play(Gone(1, Evidence(1, -9, 2))) == [], "it is no job of this worker's any more"
    assert play.scheduler.waiting == 1


def test_each_attempt_has_its_time() -> None:
    play = Script()
    play.warm()
    play(Submitted(1, timeout=2.0, retries=1, retry_delay=3.0))
    play.now = 1.0
    play(Answered(1, 2, RETRIABLE))
    assert play.scheduler.next_deadline() == 4.0, "no limit counts while it waits"
    play.now = 4.0
    play(Tick())
    assert play.scheduler.next_deadline() == 6.0


def test_what_was_handed_over_is_delayed_like_any_other() -> None:
    play = Script()
    play.warm()
    play(HandedOver(1, 1, 2, retries=1, retry_delay=3.0))
    assert play(Answered(1, 2, RETRIABLE)) == [retried(1, 3.0)]


def test_cancelled_ones_leave_no_heap_behind() -> None:
    delays = Delays()
    jobs = [Job(number) for number in range(1000)]
    for job in jobs:
        delays.put(job, float(job.number))
    for job in jobs[:-1]:
        assert delays.remove(job)
        assert not delays.remove(job)
    assert len(delays._heap) < 130
    assert delays.first() == 999.0
    delays.put(jobs[3], 1000.5)
    assert delays.head(5) == [jobs[999], jobs[3]]
    assert delays.take_due(1000.0) == [jobs[999]]
    assert delays.take_due(2000.0) == [jobs[3]]
    assert not delays.jobs


def test_a_cancel_between_death_and_retry() -> None:
    play = Script()
    play(Submitted(1, retries=9), Started(1), Ready(1), Died(1), CancelAsked(1))
    assert play(Gone(1, Evidence(1, -11, noted=1))) == [Settle(1, Cancelled())]


def test_a_worker_is_replaced_after_so_many_jobs() -> None:
    play = Script(max_jobs=2)
    play(Submitted(1), Submitted(2), Submitted(3), Started(1), Ready(1))
    assert Assign(1, 2, 2) in play(Answered(1, 1, RETURNED))
    assert play(Answered(1, 2, RETURNED)) == [Settle(2, RETURNED), Leave(1), Spawn(2)]
    play(Died(1), Gone(1, Evidence(1, 0)), Started(2))
    assert play(Ready(2)) == [Assign(2, 3, 3)]


def test_restart() -> None:
    play = Script(4)
    play.warm(2)
    play(Submitted(1), Submitted(2), Submitted(3), Submitted(4), Started(3), Answered(1, 4, RAISED))
    states = {n: slot.state for n, slot in play.scheduler.slots.items()}
    assert states == {
        1: SlotState.BUSY,
        2: SlotState.BUSY,
        3: SlotState.WARMING,
        4: SlotState.STARTING,
    }
    actions = play(RestartAsked())
    assert {Kill(3), Unspawn(4)} <= set(actions)
    assert Leave(1) not in actions
    actions = play(Answered(2, 3, RETURNED))
    assert Leave(2) in actions


def test_restart_while_a_job_is_withdrawn_on_its_way() -> None:
    play = Script()
    play(Submitted(1), Started(1), Ready(1), RestartAsked())
    assert play(Withdrawn(1, 1)) == [Leave(1)]
    assert play.scheduler.offer() is None


def test_restart_of_idle_workers() -> None:
    play = Script(2)
    play.warm(2)
    assert play(RestartAsked()) == [Leave(1), Leave(2)]
    assert play(Submitted(1)) == [Spawn(3)]


def test_stale_events_are_dropped() -> None:
    play = Script()
    play.warm()
    play(Submitted(1))
    assert play(Answered(1, 1, RETURNED), NotTaken(1, 1), Answered(7, 2, RETURNED)) == []
    assert play(Ready(1), Died(7), Ready(7), InitFailed(1, RAISED)) == []


STATES: dict[SlotState, list[Told]] = {
    SlotState.STARTING: [],
    SlotState.WARMING: [Started(1)],
    SlotState.IDLE: [Started(1), Ready(1), Answered(1, 1, RETURNED)],
    SlotState.BUSY: [Started(1), Ready(1)],
    SlotState.GRACE: [Started(1), Ready(1), CancelAsked(1, 5.0)],
    SlotState.LEAVING: [Started(1), Ready(1), Answered(1, 1, RETURNED), ShutDown()],
    SlotState.DYING: [Started(1), Ready(1), Died(1)],
}
EVENTS: list[Told] = [
    Submitted(9),
    Withdrawn(1, 1),
    CancelAsked(1),
    CancelAsked(1, 2.0),
    CancelAllAsked(),
    HeldBack(9, Limits(), 1),
    DependencyDone(1),
    NeverDone(1, Unmet(0, None)),
    Ready(1),
    InitFailed(1, RAISED),
    Answered(1, 1, RETURNED),
    Answered(1, 1, RAISED),
    NotTaken(1, 1),
    Taken(1, 1),
    OverMemory(1, 1, 10),
    Died(1),
    Faulted(1, OSError("no")),
    Tick(),
    Resized(3),
    RestartAsked(),
    Reclaimed(1),
    Broken(OSError("lost")),
    ShutDown(),
    ShutDown(cancel=True),
]


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_every_event_in_every_state(state: SlotState, remote: bool) -> None:
    for event in EVENTS:
        with case(event):
            play = Script(confirms=remote, slow_starts=remote)
            play(Submitted(1), *STATES[state])
            assert play.scheduler.slots[1].state is state
            fates = settled(play(event))
            assert set(fates) <= {1, 9}
            for slot in list(play.scheduler.slots.values()):
                if slot.state is SlotState.DYING and slot.was is not SlotState.STARTING:
                    play(Gone(slot.number, Evidence(1, -9, noted=slot.attempt)))


# --- workers that confirm ------------------------------------------------------------------------


def test_a_job_that_was_sent_begins_when_its_worker_says_so() -> None:
    play = Script(confirms=True)
    assert Assign(1, 1, 1) in play(Submitted(1, timeout=5.0), Started(1), Ready(1))
    slot = play.scheduler.slots[1]
    assert not play.scheduler.runs(slot)
    play.now = 7.0
    assert play(Tick()) == [], "it is on its way, which takes none of its time"
    assert play.scheduler.next_deadline() is None
    assert play(Taken(1, 2), Taken(2, 1), Taken(7, 1)) == [], "none of them is its attempt"
    assert play(Taken(1, 1)) == [Begin(1, 1)]
    assert play.scheduler.runs(slot)
    assert play.scheduler.next_deadline() == 12.0
    play.now = 8.0
    assert play(Taken(1, 1)) == [], "a second time it is no news"
    assert play.scheduler.next_deadline() == 12.0
    play.now = 12.0
    assert play(Tick()) == [Kill(1, ask_stack=True)]
    assert play(Taken(1, 1)) == []
    assert play(Gone(1, Evidence(1, -9, 1))) == [Settle(1, TimedOut(5.0))]


def test_what_begins_in_the_grace_of_a_cancel_has_the_time_of_that() -> None:
    play = Script(confirms=True)
    play(Submitted(1, timeout=5.0), Started(1), Ready(1))
    assert play(CancelAsked(1, 3.0)) == [Terminate(1)]
    assert play(Taken(1, 1)) == [Begin(1, 1)]
    assert play.scheduler.next_deadline() == 3.0


@pytest.mark.parametrize("stop", [None, CancelAsked(1), CancelAsked(1, 3.0)], ids=repr)
def test_an_outcome_says_that_the_worker_had_the_job(stop: CancelAsked | None) -> None:
    play = Script(confirms=True)
    play(Submitted(1, timeout=5.0), Started(1), Ready(1), *([stop] if stop else []))
    actions = play(Answered(1, 1, RETURNED))
    assert actions[:2] == [Begin(1, 1), Settle(1, RETURNED)]
    assert play(Taken(1, 1)) == []


def test_a_job_that_no_worker_has_confirmed_is_killed_with_its_worker() -> None:
    play = Script(confirms=True)
    play(Submitted(1), Started(1), Ready(1))
    assert play(CancelAsked(1)) == [Kill(1)]
    assert play(Taken(1, 1)) == []
    assert play(Gone(1, Evidence(1, -9, 0))) == [Settle(1, Cancelled())]


def test_what_a_worker_is_too_large_for_goes_back_to_the_queue() -> None:
    play = Script(confirms=True)
    play.warm()
    assert play(Submitted(1, memory_limit=100))[0] == Assign(1, 1, 2, 100)
    assert play(NotTaken(1, 2, unfit=True)) == [Unwatch(1), Leave(1), Spawn(2)]
    play(Died(1), Gone(1, Evidence(1, 0)), Started(2))
    assert Assign(2, 1, 3) in play(Ready(2))
    assert play(Taken(2, 3)) == [Begin(2, 1)]


def test_where_workers_do_not_confirm_nothing_begins() -> None:
    play = Script()
    actions = play(Submitted(1, timeout=5.0), Started(1), Ready(1), Answered(1, 1, RETURNED))
    assert not [action for action in actions if isinstance(action, Begin)]


# --- places that others want, and their end ------------------------------------------------------


def test_a_place_that_others_want_is_left() -> None:
    play = Script(3)
    play.warm(3)
    play(Submitted(1), Submitted(2, timeout=5.0))
    assert play(Reclaimed(1)) == [Leave(1)], "it was idle"
    assert play(Reclaimed(1), Reclaimed(7)) == []
    assert play(Reclaimed(3)) == []
    assert play(Submitted(3)) == [Spawn(4)], "another place"
    assert play(Answered(3, 4, RETURNED)) == [Settle(1, RETURNED), Leave(3)]
    assert play(Died(3)) == [Kill(3)]
    assert play(Reclaimed(3), Gone(3, Evidence(3, 0))) == []


@pytest.mark.parametrize("ready", [False, True])
def test_who_comes_to_a_place_that_others_want_leaves_after_one_job(ready: bool) -> None:
    play = Script(2)
    play(Submitted(1), Submitted(2), Submitted(3), *([Started(1)] if ready else []))
    assert play(Reclaimed(1)) == []
    assert play(*([] if ready else [Started(1)]), Ready(1)) == [Assign(1, 1, 1)]
    assert play(Answered(1, 1, RETURNED)) == [Settle(1, RETURNED), Leave(1), Spawn(3)]


def test_who_comes_to_a_place_that_others_want_leaves_if_nobody_waits() -> None:
    play = Script(2)
    play(Submitted(1), Submitted(2), Started(1), Started(2), Reclaimed(1), Reclaimed(2))
    assert play(Ready(2)) == [Assign(2, 1, 1)]
    play(CancelAsked(2))
    assert play(Ready(1)) == [Leave(1)]
    assert not play.scheduler._roster.reclaimed


def test_starts_that_may_take_long_are_called_off_when_nobody_waits_for_them() -> None:
    play = Script(4, slow_starts=True)
    play(*(Submitted(job) for job in range(1, 6)))
    play(Started(2), Ready(2))
    assert play(CancelAsked(2)) == [Settle(2, Cancelled())], "three wait for three"
    assert play(CancelAsked(3)) == [Settle(3, Cancelled()), Unspawn(4)]
    assert play(Answered(2, 1, RETURNED))[2:] == [Unspawn(3)], "the next job has this worker"
    assert play(Started(3)) == [Kill(3)], "too late"
    assert play(StartFailed(4, Evidence())) == []
    assert play(Answered(2, 2, RETURNED)) == [Settle(4, RETURNED), Assign(2, 5, 3), Unspawn(1)]
    assert play(Submitted(6)) == [Spawn(5)]
    assert play(Resized(1)) == [Unspawn(5)]


def test_starts_that_take_no_time_are_not_called_off() -> None:
    play = Script(2)
    play(Submitted(1))
    assert play(CancelAsked(1)) == [Settle(1, Cancelled())]


def test_when_no_worker_can_be_reached_everything_ends() -> None:
    play = Script(6, spares=1)
    play.warm(4)
    play(*(Submitted(job, retries=3) for job in range(1, 4)), CancelAsked(1), Died(3))
    play(*(Submitted(job, grace=5.0) for job in (5, 6, 7)), CancelAsked(5, 5.0), Started(5))
    slots = {slot.number: slot.state.name for slot in play.scheduler.slots.values()}
    assert {*slots.values()} == {"STARTING", "WARMING", "BUSY", "GRACE", "DYING"}, slots
    error = OSError("lost")
    actions = play(Broken(error))
    assert actions[0] == Refuse(error)
    waiting = [action.job for action in actions if isinstance(action, Settle)]
    assert {action.slot for action in actions if isinstance(action, (Kill, Unspawn))} == {
        number for number, state in slots.items() if state != "DYING"
    }
    assert play(Broken(OSError("again")), Tick(), NotTaken(2, 6)) == []
    assert settled(play(Submitted(9))) == {9: Unreachable(error)}
    fates: dict[int, Any] = dict.fromkeys(waiting, Unreachable(error))
    for slot in list(play.scheduler.slots.values()):
        if slot.was is SlotState.STARTING:
            assert settled(play(StartFailed(slot.number, Evidence()))) == {}
            continue
        evidence = Evidence(slot.number, -9, slot.attempt)
        number = None if slot.job is None else slot.job.number
        ends = play(Gone(slot.number, evidence))
        if number is not None:
            fates |= settled(ends)
            cancelled = number in (1, 5)
            assert fates[number] == (Cancelled() if cancelled else Unreachable(error, evidence))
    assert fates.keys() == {1, 2, 3, 5, 6, 7}
    assert play.scheduler.closed


def test_an_outcome_that_was_faster_than_the_end_of_the_cluster_counts() -> None:
    play = Script()
    play(Submitted(1), Started(1), Ready(1))
    assert play(Broken(OSError("lost")))[1:] == [Kill(1)]
    assert play(Answered(1, 1, RETURNED)) == [Settle(1, RETURNED)]
    assert play(Gone(1, Evidence(1, -9, 1))) == [Close()]


# --- spares --------------------------------------------------------------------------------------


def with_spare(idle_timeout: float | None = None) -> Script:
    """One place, in which worker 1 has job 2 after job 1; worker 2 is the spare."""
    play = Script(1, idle_timeout, spares=1)
    assert play(Submitted(1), Started(1), Ready(1)) == [Spawn(1), Assign(1, 1, 1)]
    assert play(Answered(1, 1, RETURNED)) == [Settle(1, RETURNED)]
    assert play(Submitted(2)) == [Assign(1, 2, 2), Spawn(2)]  # all are busy now
    assert play(Started(2), Ready(2)) == []
    return play


def test_a_spare_runs_no_job_while_all_others_do() -> None:
    play = with_spare()
    assert play(Submitted(3)) == []
    assert play(Answered(1, 2, RETURNED))[1:] == [Assign(1, 3, 3)]


def test_a_spare_takes_the_place_of_a_killed_worker_as_soon_as_that_is_gone() -> None:
    play = with_spare()
    play(Submitted(3))
    assert play(CancelAsked(2)) == [Kill(1)]
    assert play.scheduler.offer() is None
    gone = Gone(1, Evidence(1, -9, noted=2))
    assert play(gone) == [Settle(2, Cancelled()), Assign(2, 3, 3), Spawn(3)]


def test_a_killed_worker_whose_job_has_ended_all_the_same_holds_no_place() -> None:
    play = with_spare()
    play(Submitted(3), CancelAsked(2))
    assert play(Answered(1, 2, RETURNED)) == [Settle(2, RETURNED), Assign(2, 3, 3), Spawn(3)]
    assert play(Gone(1, Evidence(1, -9, noted=2))) == []


def test_spares_that_waited_for_a_kill_do_not_leave_at_once() -> None:
    play = with_spare(idle_timeout=10.0)
    play.now = 100.0
    play(CancelAsked(2))
    assert play.scheduler.next_deadline() is None
    play(Gone(1, Evidence(1, -9, noted=2)))
    assert play.scheduler.next_deadline() == 110.0


def test_without_a_queue_the_worker_that_served_is_used_again() -> None:
    play = with_spare()
    play(Answered(1, 2, RETURNED))
    assert play(Submitted(3)) == [Assign(1, 3, 3)]


def test_a_worker_that_gets_ready_beside_an_idle_one_is_used_after_it() -> None:
    play = Script(1, spares=1)
    play(Submitted(1), Started(1), Ready(1), Answered(1, 1, RETURNED))
    play(Submitted(2), Answered(1, 2, RETURNED), Started(2), Ready(2))
    assert play(Submitted(3)) == [Assign(1, 3, 3)]


def test_spares_stay_while_they_are_of_use_and_leave_with_the_others() -> None:
    play = with_spare(idle_timeout=10.0)
    play.now = 100.0
    assert play.scheduler.next_deadline() is None
    assert play(Tick()) == []
    play(Answered(1, 2, RETURNED))
    assert play.scheduler.next_deadline() == 110.0
    play.now = 110.0
    assert play(Tick()) == [Leave(2), Leave(1)]


def test_a_spare_that_cannot_start_is_not_tried_for_ever() -> None:
    play = Script(1, spares=1)
    play(Submitted(1), Started(1), Ready(1), Answered(1, 1, RETURNED))
    assert play(Submitted(2))[-1] == Spawn(2)
    assert play(Started(2), InitFailed(2, RAISED)) == [Kill(2), Postpone(1.0, spare=True)]
    assert play(Gone(2, Evidence(1, 0))) == []
    assert play(Answered(1, 2, RETURNED))[1:] == []
    assert play(Submitted(3)) == [Assign(1, 3, 3)]
    play.now = 1.0
    assert play(Tick()) == [Spawn(3)]
    assert play(StartFailed(3, Evidence(error=OSError()))) == [Postpone(2.0, spare=True)]


def test_spares_and_the_number_of_workers() -> None:
    play = Script(2, spares=1)
    play.warm(2)
    assert play(Submitted(1), Submitted(2))[-1] == Spawn(3)
    play(Started(3), Ready(3))
    assert play(Submitted(3)) == []
    assert play(Resized(3)) == [Assign(3, 3, 5), Spawn(4)]
    play(Started(4), Ready(4))
    for slot, attempt in ((1, 4), (2, 3), (3, 5)):
        play(Answered(slot, attempt, RETURNED))
    assert len(play(Resized(1))) == 3  # of the four that are idle now, one stays
    assert play(ShutDown())[0].__class__ is Leave


def state_of(scheduler: Scheduler) -> object:
    """All that its future depends on."""
    roster = scheduler._roster
    slots = {
        number: {
            name: getattr(slot, name) for name in slot.__slots__ if name not in ("job", "moves")
        }
        for number, slot in scheduler.slots.items()
    }
    values = {**vars(scheduler), **vars(roster), **vars(scheduler._staffing)}
    rest = {k: v for k, v in values.items() if isinstance(v, (int, float, type(None)))}
    del rest["now"], rest["steady"]
    pauses = [
        (p.doubt, p.until, p._next)
        for p in (scheduler._staffing.pause, scheduler._staffing._spare_pause)
    ]
    places = {n: job.slot for n, job in scheduler.jobs.items()}
    return (
        slots,
        rest,
        pauses,
        places,
        [slot.number for slot in roster.idle],
        sorted(scheduler.queue.numbers()),
        sorted((number, due) for number, (due, _) in scheduler.delayed.jobs.items()),
        sorted(scheduler.held.missing.items()),
    )


def assert_nothing_is_left_to_do(scheduler: Scheduler) -> None:
    """The frequent events come to the same whether or not queue and slots are looked through."""
    before = state_of(scheduler)
    actions = scheduler._roster.begin("look", scheduler._roster.now)
    scheduler._fill()
    assert actions == []
    assert state_of(scheduler) == before


TOKENS = {"gpu": 2, "x": 1}
NEEDS = [
    Needs(2),
    Needs(4),
    Needs(1, 60),
    Needs(1, 100, [("x", 1)]),
    Needs(2, 30, [("gpu", 1)]),
    Needs(1, 0, [("gpu", 2)]),
    Needs(1, 0, [("gpu", 1), ("x", 1)]),
]


class World(RuleBasedStateMachine):
    """Processes, as the scheduler orders them, and a user who does anything at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(2, 30.0, 3)
        self.now = 0.0
        self.jobs = 0
        self.starting: set[int] = set()
        self.processes: dict[int, str] = {}  # slot: warming, ready, dead
        self.killed: set[int] = set()
        self.running: dict[int, tuple[int, int]] = {}  # slot: job, attempt
        self.shown: set[int] = set()  # jobs that are RUNNING, for whoever looks
        self.begun: Counter[int] = Counter()
        self.retries: dict[int, int] = {}
        self.due: dict[int, float] = {}  # delayed jobs
        self.missing: dict[int, int] = {}  # of held jobs: how many others are
        self.watched: set[int] = set()
        self.ends: Counter[int] = Counter()
        self.closes = 0
        self.broken = self.remote = self.looks = False
        self.tokens_at_kill: dict[int, dict[str, tuple[int, ...]]] = {}
        self.needs: dict[int, Needs | None] = {}
        self.actions: list[Action] = []  # of the last event

    @initialize(spares=st.integers(0, 2), remote=st.booleans(), memory=st.sampled_from([None, 100]))
    def have_spares(self, spares: int, remote: bool, memory: int | None) -> None:
        ways = {"confirms": remote, "slow_starts": remote}
        self.scheduler = Scheduler(2, 30.0, 3, spares, memory=memory, tokens=TOKENS, **ways)
        self.remote = remote

    def tell(self, event: Told) -> int:
        """Do what the scheduler says; return how many actions that were."""
        self.actions = actions = tell(self.scheduler, event, self.now)
        for action in actions:
            match action:
                case Spawn(slot=slot):
                    self.starting.add(slot)
                case Assign(slot=slot, job=job, attempt=attempt):
                    assert self.processes[slot] in ("ready", "dead")
                    assert slot not in self.killed
                    assert not self.broken
                    assert slot not in self.running
                    assert job not in [other for other, _ in self.running.values()]
                    assert not self.ends[job], "a job that ended starts again"
                    assert self.begun[job] <= self.retries[job], "a job starts too often"
                    assert self.due.pop(job, self.now) <= self.now, "a job starts too early"
                    assert not self.missing.get(job), "a job starts without what it waits for"
                    self.running[slot] = (job, attempt)
                    self.shown.add(job)
                    assert len(self.shown) <= self.scheduler.max_workers, "too many run"
                    needs = self.needs[job] or Needs()
                    given = self.scheduler.tokens_of(slot)
                    assert {name: len(which) for name, which in given.items()} == dict(needs.tokens)
                    assert self.scheduler.slots[slot].width == min(
                        needs.cpus, self.scheduler.max_workers
                    )
                case LookAtMemory():
                    assert not self.looks, "one look is enough"
                    self.looks = True
                case Requeue(job=job, delay=delay):
                    assert not self.broken
                    if delay:
                        self.due[job] = self.now + delay
                    self.shown.discard(job)
                    for slot, (other, _) in list(self.running.items()):
                        if other == job:
                            del self.running[slot]
                case Watch(slot=slot):
                    assert slot not in self.watched
                    self.watched.add(slot)
                case Unwatch(slot=slot):
                    self.watched.remove(slot)
                case Settle(job=job):
                    self.shown.discard(job)
                    self.due.pop(job, None)
                    self.missing.pop(job, None)
                    self.ends[job] += 1
                    assert self.ends[job] == 1, "a job ends twice"
                case Teach(slot=slot):
                    if self.processes[slot] != "dead":
                        self.processes[slot] = "warming"
                case Kill(slot=slot):
                    assert slot in self.processes
                    self.killed.add(slot)
                    self.tokens_at_kill[slot] = self.scheduler.tokens_of(slot)
                case Close():
                    self.closes += 1
                    assert not self.processes
                    assert not self.starting
                case _:
                    pass
        return len(actions)

    def pick(self, data: st.DataObject, options: Any) -> Any:
        return data.draw(st.sampled_from(sorted(options)))

    @rule(
        priority=st.integers(-1, 1),
        timeout=st.sampled_from([None, 5.0]),
        memory_limit=st.sampled_from([None, 100]),
        retries=st.integers(0, 2),
        grace=st.sampled_from([0.0, 0.0, 3.0]),
        retry_delay=st.sampled_from([0.0, 0.0, 4.0, 70.0]),
        needs=st.sampled_from([None] * 3 + NEEDS),
    )
    def submit(
        self,
        priority: int,
        timeout: float | None,
        memory_limit: int | None,
        retries: int,
        grace: float,
        retry_delay: float,
        needs: Needs | None,
    ) -> None:
        self.jobs += 1
        self.retries[self.jobs] = retries
        if self.remote and needs is not None:
            needs = Needs(1, 0, needs.tokens)  # others are refused at the submit
        self.needs[self.jobs] = needs
        needs_wake = self.scheduler.needs_wake()
        roster = self.scheduler._roster
        lines_up = roster.busy + roster.extra >= roster.max_workers and not needs_wake
        limits = priority, timeout, memory_limit, retries, grace, retry_delay, needs
        done = self.tell(Submitted(self.jobs, *limits))
        if needs is None:  # one with needs wakes the dispatcher always
            assert needs_wake or not done, "nobody would have woken the dispatcher for it"
            assert not lines_up or not self.scheduler.needs_wake(), "it changes nothing"
        assert_nothing_is_left_to_do(self.scheduler)

    @rule(
        priority=st.integers(-1, 1),
        missing=st.integers(1, 3),
        needs=st.sampled_from([None, None, *NEEDS]),
    )
    def hold_back(self, priority: int, missing: int, needs: Needs | None) -> None:
        self.jobs += 1
        if self.remote and needs is not None:
            needs = Needs(1, 0, needs.tokens)
        self.needs[self.jobs] = needs
        self.retries[self.jobs] = 0
        self.missing[self.jobs] = missing
        plan = self.plan()
        done = self.tell(HeldBack(self.jobs, Limits(priority, needs=needs), missing))
        assert self.ends[self.jobs] or not done, "it is nobody's turn because of it"
        assert self.ends[self.jobs] or self.plan() == plan

    @precondition(lambda self: self.missing)
    @rule(data=st.data(), well=st.sampled_from([True, True, True, False]))
    def end_dependency(self, data: st.DataObject, well: bool) -> None:
        job = self.pick(data, self.missing)
        if well:
            self.missing[job] -= 1
            if not self.missing[job]:
                del self.missing[job]
            self.tell(DependencyDone(job))
        else:
            fate = Unmet(0, None)
            self.tell(NeverDone(job, fate))
            assert Settle(job, fate) in self.actions

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), well=st.booleans())
    def end_dependency_late(self, data: st.DataObject, well: bool) -> None:
        """Of a job that has ended, or does not wait for others any more."""
        job = data.draw(st.integers(1, self.jobs))
        if job not in self.missing:
            state = state_of(self.scheduler)
            self.tell(DependencyDone(job) if well else NeverDone(job, Unmet(0, None)))
            assert self.actions == []
            assert state_of(self.scheduler) == state

    @precondition(lambda self: not self.remote and self.scheduler.offer())
    @rule(
        priority=st.integers(-1, 1),
        retries=st.integers(0, 2),
        retry_delay=st.sampled_from([0.0, 4.0]),
        limit=st.sampled_from([None, 100]),
    )
    def hand_over(self, priority: int, retries: int, retry_delay: float, limit: int | None) -> None:
        offer = self.scheduler.offer()
        assert offer is not None
        slot, attempt = offer
        assert self.processes[slot] in ("ready", "dead")
        assert slot not in self.killed
        self.jobs += 1
        self.retries[self.jobs] = retries
        self.needs[self.jobs] = None
        self.running[slot] = (self.jobs, attempt)
        self.shown.add(self.jobs)
        assert len(self.shown) <= self.scheduler.max_workers, "too many run"
        others = priority, limit, retries, 0.0, retry_delay
        done = self.tell(HandedOver(self.jobs, slot, attempt, *others))
        watched = 0 if limit is None else 1
        assert done == watched, "an offer is made only where nothing else is to be done"

    @precondition(lambda self: not self.remote and self.scheduler.offer())
    @rule(seconds=st.floats(0.0, 40.0))
    def serve(self, seconds: float) -> None:
        """The short way comes to the same as the long one, or is not taken."""
        offer = self.scheduler.offer()
        assert offer is not None
        slot, attempt = offer
        self.jobs += 1
        self.now += seconds
        long_way = copy.deepcopy(self.scheduler)
        assert long_way.handle(HandedOver(self.jobs, slot, attempt), self.now) == []
        actions = long_way.answered(slot, attempt, RETURNED, self.now)
        if self.scheduler.served(slot, attempt, self.now):
            assert actions == [Settle(self.jobs, RETURNED)]
            assert state_of(self.scheduler) == state_of(long_way)
            assert self.scheduler.offer() == (slot, attempt + 1)
            self.begun[self.jobs] += 1
            self.ends[self.jobs] += 1
        else:
            assert len(actions) > 1
            self.jobs -= 1

    def withdrawable(self) -> list[int]:
        slots = self.scheduler.slots
        return [slot for slot in self.running if slots[slot].state is SlotState.BUSY]

    @precondition(lambda self: self.withdrawable())
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.withdrawable())
        job, attempt = self.running.pop(slot)
        self.shown.discard(job)
        self.ends[job] += 1  # by its canceller
        self.tell(Withdrawn(slot, attempt))

    @rule(seconds=st.floats(0.0, 40.0))
    def suspend(self, seconds: float) -> None:
        since, self.now = self.now, self.now + seconds
        self.tell(Suspended(since, self.now))

    @precondition(lambda self: self.watched)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.watched)
        _, attempt = self.running[slot]
        self.tell(OverMemory(slot, attempt, 150))

    @precondition(lambda self: self.running and self.remote)
    @rule(data=st.data())
    def be_taken(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.running)
        self.tell(Taken(slot, self.running[slot][1]))
        begun = [action for action in self.actions if isinstance(action, Begin)]
        assert begun in ([], [Begin(slot, self.running[slot][0])])

    @precondition(lambda self: self.scheduler.slots)
    @rule(data=st.data())
    def reclaim(self, data: st.DataObject) -> None:
        self.tell(Reclaimed(self.pick(data, self.scheduler.slots)))

    @rule(really=st.sampled_from([False] * 9 + [True]))
    def break_down(self, really: bool) -> None:
        if really:
            self.broken = True
            self.tell(Broken(OSError("lost")))

    @rule()
    def restart(self) -> None:
        self.tell(RestartAsked())

    def unfit(self) -> list[int]:
        return sorted(self.running.keys() & self.watched)

    @precondition(lambda self: self.unfit())
    @rule(data=st.data())
    def be_unfit(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.unfit())
        job, attempt = self.running[slot]
        if self.scheduler.slots[slot].state is SlotState.BUSY:
            del self.running[slot]
            self.shown.discard(job)
        self.tell(NotTaken(slot, attempt, unfit=True))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), grace=st.sampled_from([0.0, 3.0]))
    def cancel(self, data: st.DataObject, grace: float) -> None:
        self.tell(CancelAsked(data.draw(st.integers(1, self.jobs)), grace))

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), well=st.booleans())
    def start(self, data: st.DataObject, well: bool) -> None:
        slot = self.pick(data, self.starting)
        self.starting.remove(slot)
        if well:
            self.processes[slot] = "warming"
            self.tell(Started(slot))
        else:
            self.tell(StartFailed(slot, Evidence(error=OSError())))

    def warming(self) -> list[int]:
        return [slot for slot, state in self.processes.items() if state == "warming"]

    @precondition(lambda self: self.warming())
    @rule(data=st.data(), well=st.sampled_from([True, True, True, False]))
    def get_ready(self, data: st.DataObject, well: bool) -> None:
        slot = self.pick(data, self.warming())
        if well:
            self.processes[slot] = "ready"
            self.tell(Ready(slot))
        else:
            self.processes[slot] = "dead"
            self.tell(InitFailed(slot, Message(Kind.INIT_FAILED)))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def learn(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.processes)
        self.tell(Lesson(slot))
        if self.processes[slot] == "warming":
            assert slot not in self.running

    @precondition(lambda self: self.running)
    @rule(data=st.data(), message=st.sampled_from([RETURNED, RAISED, RETRIABLE]))
    def answer(self, data: st.DataObject, message: Message) -> None:
        slot = self.pick(data, self.running)
        job, attempt = self.running.pop(slot)
        again = message is RETRIABLE and self.begun[job] < self.retries[job]
        again = again and self.scheduler.slots[slot].state is SlotState.BUSY
        self.begun[job] += 1
        plan = self.plan()
        self.tell(Answered(slot, attempt, message))
        assert not again or not self.ends[job], "it has a retry left"
        assert message is RETRIABLE or job not in self.due, "it is tried again"
        if self.scheduler.steady:
            (settle, assign) = self.actions
            assert settle == Settle(job, message)
            assert isinstance(assign, Assign)
            assert self.running[slot] == (assign.job, assign.attempt)
            assert self.plan() == plan
        assert_nothing_is_left_to_do(self.scheduler)

    def plan(self) -> object:
        scheduler = self.scheduler
        return scheduler.next_deadline(), scheduler.offer(), scheduler.needs_wake()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        slot = self.pick(data, self.running)
        _, attempt = self.running[slot]
        self.tell(NotTaken(slot, attempt))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), fault=st.sampled_from([False, False, True]))
    def die(self, data: st.DataObject, fault: bool) -> None:
        slot = self.pick(data, self.processes)
        self.processes[slot] = "dead"
        self.tell(Faulted(slot, OSError("no")) if fault else Died(slot))

    @precondition(lambda self: self.killed)
    @rule(data=st.data(), begun=st.booleans())
    def be_gone(self, data: st.DataObject, begun: bool) -> None:
        slot = self.pick(data, self.killed)
        self.killed.remove(slot)
        state = self.processes.pop(slot)
        job, attempt = self.running.pop(slot, (0, 0))
        if begun and job:
            self.begun[job] += 1
        initializing = state == "dead" and begun and not job
        held = self.tokens_at_kill.pop(slot)
        assert self.scheduler.tokens_of(slot) == held, "they are its process's till that is gone"
        self.tell(Gone(slot, Evidence(1, -9, attempt if begun else 0, initializing)))

    @rule(seconds=st.floats(0.0, 40.0))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick())
        waits = self.scheduler.delayed.jobs
        assert all(due > self.now for due, _ in waits.values()), "it is due, and not queued"

    @precondition(lambda self: self.looks)
    @rule(available=st.sampled_from([0, 64_000_050, 10**9]), used=st.integers(0, 100))
    def see_memory(self, available: int, used: int) -> None:
        self.looks = False
        found = {(slot, attempt): used for slot, (_, attempt) in self.running.items()}
        self.tell(MemorySeen(available, found))

    @rule(count=st.integers(1, 4))
    def resize(self, count: int) -> None:
        self.tell(Resized(count))

    @rule(cancel=st.booleans(), really=st.sampled_from([False] * 9 + [True]))
    def shut_down(self, cancel: bool, really: bool) -> None:
        if really:
            self.tell(ShutDown(cancel))

    @rule(grace=st.sampled_from([None, 3.0]), really=st.sampled_from([False] * 9 + [True]))
    def cancel_all(self, grace: float | None, really: bool) -> None:
        if really:
            self.tell(CancelAllAsked(grace))

    @invariant()
    def consistent(self) -> None:
        self.scheduler.check()
        known = set(self.scheduler.jobs)
        ended = {job for job, count in self.ends.items() if count}
        assert known | ended == set(range(1, self.jobs + 1)), "a job is lost"
        assert not known & ended
        assert self.closes <= 1
        assert not (self.closes and known)
        delayed = self.scheduler.delayed.jobs
        assert {number: due for number, (due, _) in delayed.items()} == {
            number: due for number, due in self.due.items() if number in delayed
        }
        if delayed:
            deadline = self.scheduler.next_deadline()
            assert deadline is not None
            assert deadline <= min(due for due, _ in delayed.values()), "nobody wakes up for it"
        assert self.scheduler.held.missing == self.missing
        assert set(self.scheduler.slots) == self.starting | set(self.processes)
        assert self.watched <= self.running.keys(), "memory is watched while a job runs"
        assert self.scheduler.running == len(self.shown)
        tokens = [
            (name, which)
            for slot in self.scheduler.slots
            for name, held in self.scheduler.tokens_of(slot).items()
            for which in held
        ]
        assert len({*tokens}) == len(tokens), "one is given twice"
        if self.remote:
            states = [slot.state for slot in self.scheduler.slots.values()]
            may_be = self.scheduler.max_workers + self.scheduler.spare_workers
            room = max(0, may_be - self.scheduler._roster.busy)
            needed = min(room, max(self.scheduler.waiting, self.scheduler.spare_workers))
            assert states.count(SlotState.STARTING) <= needed, "starts that nobody waits for"
        for slot in self.scheduler.slots.values():
            assert not (slot.reclaimed and slot.state is SlotState.IDLE)
            walk = [state for state, _ in slot.moves]
            assert all(after in MOVES[before] for before, after in itertools.pairwise(walk))

    def teardown(self) -> None:
        self.tell(ShutDown(cancel=True, at_once=True))
        while self.starting:
            self.tell(StartFailed(self.starting.pop(), Evidence()))
        while self.killed:
            slot = self.killed.pop()
            del self.processes[slot]
            self.running.pop(slot, None)
            self.tell(Gone(slot, Evidence(1, -9)))
        assert self.closes == 1
        assert sum(self.ends.values()) == self.jobs
        assert self.scheduler._roster.taken == 0
        assert self.scheduler._roster.reservations.free_tokens() == TOKENS, "one is lost"


World.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase


@pytest.mark.soak
@pytest.mark.timeout(SOAK)
class TestManyWorlds(World.TestCase):  # type: ignore[misc, valid-type]
    pass


TestManyWorlds.settings = settings(max_examples=1000, stateful_step_count=40, deadline=None)

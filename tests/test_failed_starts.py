"""Workers that do not get ready: who is told, and when the next one is tried."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, SOAK, hold, until, wait_for
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_events import Answered, Submitted, Told, tell

from primitive_jobs import InitializerError, JobPool, JobStatus, PrimitiveJob, WorkerDiedError
from primitive_jobs._engine.events import (
    Action,
    Assign,
    CancelAsked,
    Died,
    Gone,
    InitFailed,
    Kill,
    Lost,
    NotInitialized,
    Postpone,
    Ready,
    Requeue,
    Settle,
    ShutDown,
    Spawn,
    Started,
    StartFailed,
    Tick,
    Unspawn,
)
from primitive_jobs._engine.pauses import FIRST_PAUSE, LONGEST_PAUSE
from primitive_jobs._engine.scheduler import MAX_STARTS, Scheduler, SlotState
from primitive_jobs._wire.evidence import Evidence
from primitive_jobs._wire.messages import Kind, Message

# Or each worker would import pytest and hypothesis first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

RETURNED = Message(Kind.RETURNED)
FAILED = Message(Kind.INIT_FAILED)
NO_START = Evidence(error=OSError("no"))
LIVE = (
    SlotState.STARTING,
    SlotState.WARMING,
    SlotState.IDLE,
    SlotState.BUSY,
    SlotState.GRACE,
)


class Script:
    """A scheduler, a clock, and shorthands."""

    def __init__(self, max_workers: int, spares: int = 0) -> None:
        self.scheduler = Scheduler(max_workers, None, None, spares)
        self.now = 0.0

    def __call__(self, *events: Told) -> list[Action]:
        actions: list[Action] = []
        for event in events:
            actions += tell(self.scheduler, event, self.now)
            self.scheduler.check()
        return actions

    def wait(self) -> list[Action]:
        """Let time pass until something is due."""
        due = self.scheduler.next_deadline()
        assert due is not None
        assert due > self.now
        self.now = due
        return self(Tick())


def one_busy(waiting: int = 3, max_workers: int = 2, spares: int = 0) -> Script:
    """Worker 1 has job 1; others wait, and worker 2 is being started for them."""
    play = Script(max_workers, spares)
    play(Submitted(1), Started(1), Ready(1))
    actions = play(*(Submitted(number) for number in range(2, 2 + waiting)))
    assert Spawn(2) in actions
    return play


def settled(actions: list[Action]) -> dict[int, Any]:
    return {action.job: action.fate for action in actions if isinstance(action, Settle)}


# --- the rules, one by one ------------------------------------------------------------------------


def test_nobody_is_told_while_another_is_coming() -> None:
    play = Script(2)
    play(Submitted(1), Submitted(2), Submitted(3), Started(1), Started(2))
    assert play(InitFailed(1, FAILED)) == [Kill(1), Postpone(FIRST_PAUSE, spare=False)]
    play(Gone(1, Evidence(1, 0)))
    fate = NotInitialized(FAILED, None)
    assert settled(play(InitFailed(2, FAILED))) == {1: fate, 2: fate, 3: fate}
    assert play(Gone(2, Evidence(2, 0))) == []
    assert play(Submitted(4)) == [Spawn(3)], "the next submit tries again, at once"


@pytest.mark.parametrize("state", ["busy", "grace"])
def test_nobody_is_told_while_another_works(state: str) -> None:
    play = one_busy()
    if state == "grace":
        play(CancelAsked(1, 5.0))
    actions = play(Started(2), InitFailed(2, FAILED))
    assert settled(actions) == {}
    assert Postpone(FIRST_PAUSE, spare=False) in actions
    assert play.scheduler.next_deadline() == FIRST_PAUSE
    assert play.wait() == [Spawn(3)]


def test_an_initializer_that_dies_is_no_other_case() -> None:
    play = Script(2)
    play(Submitted(1), Submitted(2), Started(1), Started(2))
    # Nobody is started in its place before its end tells that the initializer was the cause.
    assert play(Died(1), Died(2)) == [Kill(1), Kill(2)]
    first, last = (Evidence(n, 3, initializing=True) for n in (1, 2))
    assert settled(play(Gone(1, first))) == {}
    fate = NotInitialized(None, last)
    assert settled(play(Gone(2, last))) == {1: fate, 2: fate}


def test_the_pause_doubles_and_ends_with_the_first_that_gets_ready() -> None:
    play = one_busy()
    lengths = []
    for slot in range(2, 11):
        actions = play(Started(slot), InitFailed(slot, FAILED), Gone(slot, Evidence(slot, 0)))
        lengths += [action.seconds for action in actions if isinstance(action, Postpone)]
        before = play.now
        assert play.wait() == [Spawn(slot + 1)]
        assert play.now - before == lengths[-1]
    assert lengths == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    play(Started(11), Ready(11))
    assert Spawn(12) in play(Died(11))
    assert Postpone(FIRST_PAUSE, spare=False) in play(Started(12), InitFailed(12, FAILED))


def test_many_that_fail_together_make_one_pause_and_one_trial() -> None:
    play = one_busy(waiting=9, max_workers=5)
    actions = play(*(Started(slot) for slot in range(2, 6)))
    actions += play(*(InitFailed(slot, FAILED) for slot in range(2, 6)))
    pauses = [action for action in actions if isinstance(action, Postpone)]
    assert pauses == [Postpone(FIRST_PAUSE, spare=False)]
    assert play.wait() == [Spawn(6)]
    assert play(Submitted(99), Tick()) == []
    assert play.scheduler.next_deadline() is None, "it is waited for"
    ready = play(Started(6), Ready(6))
    assert {Spawn(7), Spawn(8), Spawn(9)} <= {*ready}


def test_starts_that_fail_while_one_is_warming_up_fail_nobody() -> None:
    play = Script(2)
    play(Submitted(1), Submitted(2), Started(1))
    for slot in range(2, 2 + MAX_STARTS):
        assert settled(play(StartFailed(slot, NO_START))) == {}
    assert play.scheduler.next_deadline() == FIRST_PAUSE
    assert play.wait() == [Spawn(2 + MAX_STARTS)]
    assert settled(play(StartFailed(2 + MAX_STARTS, NO_START))) == {}
    # The last one that was coming fails, too.
    fate = NotInitialized(FAILED, None)
    assert settled(play(InitFailed(1, FAILED))) == {1: fate, 2: fate}


def test_what_works_may_go_while_a_pause_lasts() -> None:
    play = one_busy()
    play(Started(2), InitFailed(2, FAILED), Gone(2, Evidence(2, 0)))
    # Nobody is left: it is tried at once, and if that fails, they are told.
    assert play(Died(1)) == [Kill(1), Spawn(3)]
    lost = Evidence(1, -9, noted=1)
    assert play(Gone(1, lost)) == [Settle(1, Lost(lost))]
    fate = NotInitialized(FAILED, None)
    assert settled(play(Started(3), InitFailed(3, FAILED))) == {2: fate, 3: fate, 4: fate}


def test_nothing_is_due_where_nobody_wants_a_worker() -> None:
    play = one_busy(waiting=1)
    play(Started(2), InitFailed(2, FAILED), Gone(2, Evidence(2, 0)))
    assert play.scheduler.next_deadline() == FIRST_PAUSE
    play(CancelAsked(2))
    assert play.scheduler.next_deadline() is None
    play.now = 100.0
    assert play(Submitted(3)) == []
    assert play(Tick()) == [Spawn(3)]


# --- spares ---------------------------------------------------------------------------------------


def spare_failed(waiting: int = 0) -> Script:
    """Worker 1 is busy with job 2; its spare, worker 2, has failed."""
    play = Script(1, spares=1)
    play(Submitted(1), Started(1), Ready(1), Answered(1, 1, RETURNED))
    assert play(Submitted(2))[-1] == Spawn(2)
    play(*(Submitted(number) for number in range(3, 3 + waiting)))
    actions = play(Started(2), InitFailed(2, FAILED), Gone(2, Evidence(2, 0)))
    assert actions == [Kill(2), Postpone(FIRST_PAUSE, spare=True)]
    return play


def test_a_spare_is_tried_again_while_the_pool_is_busy() -> None:
    play = spare_failed()
    assert play.scheduler.next_deadline() == FIRST_PAUSE
    play(Answered(1, 2, RETURNED))
    assert play.scheduler.next_deadline() is None
    assert play.scheduler.offer() is not None, "it does not stand in the way"
    play(Submitted(9))
    assert play.wait() == [Spawn(3)]
    assert play(Started(3), InitFailed(3, FAILED)) == [Kill(3), Postpone(2.0, spare=True)]


def test_a_spare_that_fails_does_not_delay_a_worker_that_is_needed() -> None:
    play = spare_failed(waiting=1)
    assert play(Died(1)) == [Kill(1), Spawn(3)]


def test_a_spare_fails_nobody_even_as_the_last() -> None:
    play = Script(1, spares=1)
    play(Submitted(1), Started(1), Ready(1), Answered(1, 1, RETURNED))
    play(Submitted(2), Submitted(3), Started(2), Died(1), Gone(1, Evidence(1, -9, noted=2)))
    # The spare is the only one now, and job 3 waits for it.
    assert play(InitFailed(2, FAILED)) == [Kill(2), Postpone(FIRST_PAUSE, spare=True), Spawn(3)]
    assert play(Started(3), Ready(3))[0] == Assign(3, 3, 3)


# --- any order of things --------------------------------------------------------------------------


class Tokens(RuleBasedStateMachine):
    """Each worker needs one of a few tokens to get ready, and starts fail by chance, too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.scheduler = Scheduler(2, None, 3, 1)
        self.tokens = 2
        self.numbers = itertools.count(1)
        self.starting: list[int] = []
        self.warming: list[int] = []
        self.called_off: set[int] = set()
        self.holders: set[int] = set()
        self.running: dict[int, int] = {}  # attempt, by slot
        self.dying: list[int] = []
        self.ends: dict[int, Any] = {}
        self.spawned = 0

    @initialize(workers=st.integers(1, 3), spares=st.integers(0, 2), tokens=st.integers(0, 3))
    def begin(self, workers: int, spares: int, tokens: int) -> None:
        self.scheduler = Scheduler(workers, None, 3, spares)
        self.tokens = tokens

    def tell(self, event: Told) -> None:
        for action in tell(self.scheduler, event, self.now):
            match action:
                case Spawn(slot=slot):
                    self.spawned += 1
                    self.starting.append(slot)
                case Unspawn(slot=slot):
                    self.called_off.add(slot)
                case Assign(slot=slot, attempt=attempt):
                    self.running[slot] = attempt
                case Kill(slot=slot):
                    self.warming = [other for other in self.warming if other != slot]
                    self.dying.append(slot)
                case Requeue():
                    pass
                case Settle(job=job, fate=fate):
                    self.ends[job] = fate
                    if isinstance(fate, NotInitialized):
                        states = [slot.state for slot in self.scheduler.slots.values()]
                        assert not set(states) & set(LIVE[2:]), "one works"
                case _:
                    pass

    @rule(count=st.integers(1, 5))
    def submit(self, count: int) -> None:
        for _ in range(count):
            self.tell(Submitted(next(self.numbers)))

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), well=st.sampled_from([True, True, True, False]))
    def start(self, data: st.DataObject, well: bool) -> None:
        slot = data.draw(st.sampled_from(self.starting))
        self.starting.remove(slot)
        if slot in self.called_off:
            self.tell(StartFailed(slot, Evidence()))
        elif well:
            self.warming.append(slot)
            self.tell(Started(slot))
        else:
            self.tell(StartFailed(slot, NO_START))

    @precondition(lambda self: self.warming)
    @rule(data=st.data(), how=st.sampled_from(["well", "well", "raises", "dies"]))
    def get_ready(self, data: st.DataObject, how: str) -> None:
        slot = data.draw(st.sampled_from(self.warming))
        self.warming.remove(slot)
        if how == "well" and len(self.holders) < self.tokens:
            self.holders.add(slot)
            self.tell(Ready(slot))
        elif how == "dies":
            self.tell(Died(slot))
        else:
            self.tell(InitFailed(slot, FAILED))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), dies=st.sampled_from([False, False, False, True]))
    def end_job(self, data: st.DataObject, dies: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        if dies:
            self.tell(Died(slot))
        else:
            self.tell(Answered(slot, self.running.pop(slot), RETURNED))

    @precondition(lambda self: self.dying)
    @rule(data=st.data(), initializing=st.booleans())
    def be_gone(self, data: st.DataObject, initializing: bool) -> None:
        slot = data.draw(st.sampled_from(self.dying))
        self.dying.remove(slot)
        self.holders.discard(slot)
        attempt = self.running.pop(slot, 0)
        self.tell(Gone(slot, Evidence(1, -9, attempt, initializing)))

    @rule(seconds=st.floats(0.0, 90.0))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick())

    @invariant()
    def consistent(self) -> None:
        self.scheduler.check()

    def step(self) -> None:
        """Let whatever is under way come to its end, well if it can."""
        if self.dying or self.leaving():
            slot = (self.dying or self.leaving())[0]
            if slot not in self.dying:
                self.tell(Died(slot))
            self.dying.remove(slot)
            self.holders.discard(slot)
            attempt = self.running.pop(slot, 0)
            self.tell(Gone(slot, Evidence(1, -9, attempt)))
        elif self.starting:
            slot = self.starting.pop()
            if slot in self.called_off:
                self.tell(StartFailed(slot, Evidence()))
            else:
                self.warming.append(slot)
                self.tell(Started(slot))
        elif self.warming:
            slot = self.warming.pop()
            if len(self.holders) < self.tokens:
                self.holders.add(slot)
                self.tell(Ready(slot))
            else:
                self.tell(InitFailed(slot, FAILED))
        elif self.running:
            slot = min(self.running)
            self.tell(Answered(slot, self.running.pop(slot), RETURNED))
        else:
            due = self.scheduler.next_deadline()
            assert due is not None, "jobs wait, and nothing will ever happen"
            self.now = max(self.now, due)
            self.tell(Tick())
        self.scheduler.check()

    def leaving(self) -> list[int]:
        slots = self.scheduler.slots.values()
        return [slot.number for slot in slots if slot.state is SlotState.LEAVING]

    def teardown(self) -> None:
        """No job waits for ever, and none fails as long as a worker can be had."""
        jobs, ended = set(self.scheduler.jobs), set(self.ends)
        self.spawned = 0
        for _ in range(40 + 20 * len(jobs)):
            if not self.scheduler.jobs:
                break
            self.step()
        assert not self.scheduler.jobs
        assert self.spawned <= 10 + 4 * len(jobs), "it respawns for ever"
        if self.tokens:
            told = [self.ends[job] for job in set(self.ends) - ended]
            assert not any(isinstance(fate, NotInitialized) for fate in told)
        self.tell(ShutDown())


Tokens.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTokens = Tokens.TestCase


@pytest.mark.soak
@pytest.mark.timeout(SOAK)
class TestManyTokens(Tokens.TestCase):  # type: ignore[misc, valid-type]
    pass


TestManyTokens.settings = settings(max_examples=1000, stateful_step_count=40, deadline=None)


# --- end to end -----------------------------------------------------------------------------------


def claim(folder: Path, count: int) -> None:
    """An initializer that takes one of so many tokens; none left is an error."""
    for number in range(count):
        try:
            os.close(os.open(folder / f"token{number}", os.O_CREAT | os.O_EXCL))
            return
        except FileExistsError:
            continue
    (folder / "refused").touch()
    raise RuntimeError("no token is left")


def statuses(jobs: list[PrimitiveJob[Any]]) -> dict[str, int]:
    for job in jobs:
        assert job.wait(PATIENCE)
    names = [job.status().name for job in jobs]
    return {name: names.count(name) for name in sorted(set(names))}


def test_a_spare_without_a_token_fails_no_job(
    marks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "primitive_jobs")
    with JobPool(2, initializer=claim, initargs=(marks, 2)) as pool:
        jobs: list[PrimitiveJob[Any]] = [pool.submit(abs, -1), pool.submit(abs, -2)]
        jobs += [pool.submit(wait_for, marks / "refused") for _ in range(2)]
        jobs += [pool.submit(abs, -n) for n in range(36)]
        assert statuses(jobs) == {"DONE": 40}
        for text in (
            "RuntimeError: no token is left",
            "the next spare worker is started in 1 s",
        ):
            until(lambda text=text: text in caplog.text, text)  # type: ignore[misc]


def fail_once(folder: Path, well: int) -> None:
    """An initializer that raises once: after so many that went well."""
    for number in range(well + 1):
        try:
            os.close(os.open(folder / f"start{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        if number == well:
            (folder / "refused").touch()
            raise RuntimeError("on purpose")
        return


def test_a_replacement_that_fails_once_costs_no_job_but_the_killed_one(marks: Path) -> None:
    with JobPool(2, initializer=fail_once, initargs=(marks, 2), spare_workers=0) as pool:
        first = [pool.submit(hold, marks / "gate") for _ in range(2)]
        until(lambda: all(job.running() for job in first), "both to run")
        jobs: list[PrimitiveJob[Any]] = [pool.submit(os._exit, 3)]
        jobs.append(pool.submit(wait_for, marks / "refused"))
        jobs += [pool.submit(abs, -n) for n in range(46)]
        (marks / "gate").touch()
        assert statuses([*first, *jobs]) == {"DONE": 49, "ERROR": 1}
        assert jobs[0].status() is JobStatus.ERROR
        until(lambda: pool.submit(abs, -1).result(PATIENCE) == 1, "more")


def test_where_all_fail_all_who_wait_are_told_and_the_next_submit_tries_again(marks: Path) -> None:
    def initialize(folder: Path) -> None:
        if not (folder / "flag").exists():
            raise LookupError("no flag")

    with JobPool(2, initializer=initialize, initargs=(marks,)) as pool:
        for _ in range(2):
            jobs = [pool.submit(abs, -n) for n in range(10)]
            for job in jobs:
                with pytest.raises(InitializerError, match="no flag"):
                    job.result(PATIENCE)
        (marks / "flag").touch()
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_who_waited_is_not_told_that_the_job_had_begun() -> None:
    with JobPool(1, env={"PYTHONHOME": "/nowhere"}) as pool:  # no interpreter starts like that
        failure = pool.submit(abs, -1).exception(PATIENCE)
    assert isinstance(failure, WorkerDiedError)
    assert failure.pid is not None
    assert failure.exitcode == 1
    assert failure.ran is None
    assert "not ready for a job: it exited with code 1" in str(failure)

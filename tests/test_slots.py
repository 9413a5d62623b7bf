"""The table of a slot's legal moves: each can come about, and any other raises."""

from __future__ import annotations

import itertools

import pytest
from scheduler_events import Answered, Submitted, Told, tell

from primitive_jobs._engine.events import (
    CancelAsked,
    Died,
    Gone,
    Lesson,
    Ready,
    RestartAsked,
    ShutDown,
    Started,
    StartFailed,
)
from primitive_jobs._engine.scheduler import Scheduler
from primitive_jobs._engine.slots import (
    BUSY,
    DYING,
    GONE,
    GRACE,
    IDLE,
    LEAVING,
    MOVES,
    STARTING,
    WARMING,
    Slot,
    SlotState,
)
from primitive_jobs._wire.evidence import Evidence
from primitive_jobs._wire.messages import Kind, Message

ANSWER = Answered(1, 1, Message(Kind.RETURNED))
CANCEL_ALL = ShutDown(cancel=True, at_once=True)
# What brings slot 1 into a state, after a job was submitted; each ends with that very move.
WAYS: dict[SlotState, list[Told]] = {
    STARTING: [],
    WARMING: [Started(1)],
    IDLE: [Started(1), Ready(1), ANSWER],
    BUSY: [Started(1), Ready(1)],
    GRACE: [Started(1), Ready(1), CancelAsked(1, 5.0)],
    LEAVING: [Started(1), Ready(1), ANSWER, ShutDown()],
    DYING: [Started(1), Ready(1), Died(1)],
}
# From there, the event that makes a move; its name is told as the cause.
CAUSES: dict[tuple[SlotState, SlotState], Told] = {
    (STARTING, WARMING): Started(1),
    (STARTING, DYING): CANCEL_ALL,
    (STARTING, GONE): StartFailed(1, Evidence()),
    (WARMING, IDLE): Ready(1),
    (WARMING, DYING): RestartAsked(),
    (IDLE, WARMING): Lesson(1),
    (IDLE, BUSY): Submitted(2),
    (IDLE, LEAVING): ShutDown(),
    (IDLE, DYING): Died(1),
    (BUSY, IDLE): ANSWER,
    (BUSY, GRACE): CancelAsked(1, 5.0),
    (BUSY, LEAVING): ANSWER,
    (BUSY, DYING): CancelAsked(1),
    (GRACE, DYING): ANSWER,
    (LEAVING, DYING): Died(1),
    (DYING, GONE): Gone(1, Evidence(1, -9)),
}
LEGAL = [(before, after) for before, followers in MOVES.items() for after in followers]
ILLEGAL = sorted({*itertools.product(SlotState, repeat=2)} - {*LEGAL})


def name_of(move: tuple[SlotState, SlotState]) -> str:
    return "-".join(state.name for state in move)


def test_the_table_has_each_state() -> None:
    assert set(MOVES) == set(SlotState)
    assert set(CAUSES) == set(LEGAL)


@pytest.mark.parametrize("move", LEGAL, ids=name_of)
def test_a_legal_move_comes_about(move: tuple[SlotState, SlotState]) -> None:
    before, after = move
    scheduler = Scheduler(1, None, max_jobs_per_worker=1 if move == (BUSY, LEAVING) else None)
    tell(scheduler, Submitted(1), 0.0)
    slot = scheduler.slots[1]
    slot.spare = move == (IDLE, WARMING)
    if before is WARMING or slot.spare:
        tell(scheduler, CancelAsked(1), 0.0)  # or it would have the job at once
    for event in WAYS[before]:
        if not (slot.spare and event is ANSWER):  # it has had no job
            tell(scheduler, event, 0.0)
    assert slot.state is before
    event = CAUSES[move]
    tell(scheduler, event, 0.0)
    cause = type(event).__name__
    if isinstance(event, (Submitted, Answered)):
        cause = cause.lower()  # the scheduler's method
    assert list(slot.moves)[-2:] == [(before, slot.moves[-2][1]), (after, cause)]
    assert slot.state is after
    scheduler.check()


@pytest.mark.parametrize("move", ILLEGAL, ids=name_of)
def test_any_other_move_raises_with_the_history(move: tuple[SlotState, SlotState]) -> None:
    before, after = move
    slot = Slot(7, "submitted")
    for state in path_to(before):
        slot.move(state, f"to {state.name}")
    history = ", ".join(f"{state.name} ({cause})" for state, cause in slot.moves)
    assert history.startswith("STARTING (submitted)")
    with pytest.raises(RuntimeError) as caught:
        slot.move(after, "a bug")
    assert str(caught.value) == (
        f"illegal move of slot 7 from {before.name} to {after.name} (a bug); "
        f"its last moves were {history}"
    )
    assert slot.state is before
    assert slot.moves[-1][0] is before


def path_to(state: SlotState) -> list[SlotState]:
    """The shortest way from STARTING."""
    paths: dict[SlotState, list[SlotState]] = {STARTING: []}
    rest = [STARTING]
    for place in rest:
        for follower in sorted(MOVES[place] - paths.keys()):
            paths[follower] = [*paths[place], follower]
            rest.append(follower)
    return paths[state]


def test_the_scheduler_tells_of_an_illegal_move() -> None:
    scheduler = Scheduler(1, None)
    for event in (Submitted(1), Started(1), Ready(1)):
        tell(scheduler, event, 0.0)
    with pytest.raises(RuntimeError, match=r"from BUSY to GONE \(Gone\).*BUSY \(Ready\)$"):
        scheduler.handle(Gone(1, Evidence(1, -9)), 0.0)


def test_only_the_last_moves_are_remembered() -> None:
    slot = Slot(1, "submitted")
    slot.move(WARMING, "Started")
    for _ in range(1000):
        slot.move(IDLE, "answered")
        slot.move(BUSY, "submitted")
    assert 4 <= len(slot.moves) < 20
    assert list(slot.moves)[-2:] == [(IDLE, "answered"), (BUSY, "submitted")]

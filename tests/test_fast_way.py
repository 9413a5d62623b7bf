"""The fast ways against the plain one: the hand-over, answers that lead straight to the next job,
jobs that wake nobody.

The same script is played to two engines, over a fleet that is played, too: one is as it is, in the
other the dispatcher is told of everything at once, and the scheduler thinks all of it over each
time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from helpers import SOAK
from hypothesis import given, settings
from hypothesis import strategies as st
from played import LIMITS, Play, Script

from primitive_jobs import JobStatus
from primitive_jobs._engine.scheduler import Scheduler
from primitive_jobs._engine.slots import BUSY

KINDS = ["", "raises", "slow", "slow raises", "unsent", "unsure", "slow unsent", "slow unsure"]
KINDS += [f"{word} {limit}" for word in ("", "slow") for limit in LIMITS]
NUMBERS = st.integers(0, 20)
STEPS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(KINDS)),
    st.tuples(st.just("submit"), st.sampled_from(["", "slow"])),
    st.tuples(st.just("answer"), NUMBERS),
    st.tuples(st.just("cancel"), st.tuples(NUMBERS, st.sampled_from([0.0, 1e6]))),
    st.tuples(st.just("die"), NUMBERS),
    st.tuples(st.sampled_from(["restart", "cancel_all"]), st.none()),
)


PLAYS = given(
    st.lists(STEPS, min_size=5, max_size=60),
    st.integers(1, 3),
    st.integers(0, 1),
    st.sampled_from([None, 2]),
)


@settings(max_examples=150, deadline=None)
@PLAYS
def test_both_come_to_the_same(script: Script, workers: int, spares: int, most: int | None) -> None:
    compare(script, workers, spares, most)


@pytest.mark.soak
@pytest.mark.timeout(SOAK)
@settings(max_examples=4000, deadline=None)
@PLAYS
def test_both_come_to_the_same_often(
    script: Script, workers: int, spares: int, most: int | None
) -> None:
    compare(script, workers, spares, most)


def compare(script: Script, workers: int, spares: int, most: int | None) -> None:
    fast, plain = (Play(script, workers, spares, most).run(fast=way) for way in (True, False))
    for place, (one, other) in enumerate(zip(fast.states, plain.states, strict=True)):
        assert one == other, f"before step {place} of {script}"
    assert fast.end() == plain.end()


def test_the_fast_ways_are_taken() -> None:
    """Else the comparison would be one of the plain way with itself."""
    script: Script = [("submit", "slow"), ("answer", 0)]
    script += [("submit", ""), ("submit", "slow"), ("submit", "slow"), ("answer", 0)]
    steady: list[bool] = []
    answered: Callable[..., Any] = Scheduler.answered

    def noted(self: Scheduler, *told: Any) -> Any:
        actions = answered(self, *told)
        steady.append(self.steady)
        return actions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "answered", noted)
        fast = Play(script, 1, 0, None).run(fast=True)
    assert fast.handed == 2
    assert any(steady)
    assert Play(script, 1, 0, None).run(fast=False).handed == 0


@pytest.mark.parametrize("kind", ["unsent", "unsure", "slow unsure"])
def test_one_whose_caller_was_not_sure(kind: str) -> None:
    script: Script = [("submit", ""), ("submit", kind), *itertools.repeat(("answer", 0), 3)]
    play = Play(script, 1, 0, None).run(fast=True)
    assert [job.status() for job in play.jobs] == [JobStatus.DONE] * 2
    assert [worker.attempt for worker in play.fleet.played.values()] == [2]
    assert play.fleet.played[1].slot in play.engine._scheduler.slots
    assert play.engine._scheduler.slots[1].state is not BUSY

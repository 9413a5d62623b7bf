"""A fleet that confirms: a job runs from the moment in which a worker has it, and waits till then.

Random scripts are played to an engine over such a fleet (`played`): at every moment the status of
each job is what its worker has said.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played import LIMITS, NODE, Play, Script

from primitive_jobs import ClusterError, JobStatus, WorkerDiedError
from primitive_jobs._engine.look import look_at, look_from_outside, snapshot_of
from primitive_jobs._engine.slots import BUSY, GRACE
from primitive_jobs.job import record_of


class ConfirmedPlay(Play):
    """Each status is looked at before and after each step."""

    def check(self) -> None:
        super().check()
        engine, told = self.engine, self.fleet.told
        slots = {slot.job.number: slot for slot in engine._scheduler.slots.values() if slot.job}
        for number, record in engine._jobs.unfinished.items():
            tracker, slot = record.tracker, slots.get(number)
            if tracker.outcome is not None:
                continue  # cancelled by its caller; the dispatcher does not know yet
            taken = slot is not None and (slot.number, slot.attempt) in told
            runs = tracker.status is JobStatus.RUNNING
            assert taken or not runs, "it runs, and no worker has said that it has it"
            if taken and slot is not None and slot.state in (BUSY, GRACE):
                assert runs or engine._inbox.commands, "a worker has it, and it does not run"
            worker = None if slot is None else self.fleet.played[slot.number]
            seen = (worker.pid, worker.node) if runs and worker else (None, None)
            assert (tracker.pid, tracker.node) == seen
            assert tracker.attempts == [step for step, _ in tracker.history()].count(
                JobStatus.RUNNING
            )
        if not engine._inbox.commands:
            self.check_looks()

    def check_looks(self) -> None:
        """A snapshot says of each job what the job says."""
        engine = self.engine
        what = engine._scheduler, engine._jobs, self.fleet
        of_records = {record_of(job).number: job for job in self.jobs if record_of(job).number}
        for look in (look_at(*what), look_from_outside(*what, engine._inbox.commands)):
            shot = snapshot_of(look)
            for record, info in zip(look.records, shot.jobs, strict=True):
                job = of_records[record.number]
                known = job.status(), job.attempts, job.pid, job.node
                assert (info.status, info.attempts, info.pid, info.node) == known
            running = [info for info in shot.jobs if info.status is JobStatus.RUNNING]
            assert (shot.counts.running, shot.counts.queued) == (
                len(running),
                len(shot.jobs) - len(running),
            )
            assert {worker.node for worker in shot.workers} <= {NODE, None}


KINDS = ["", "raises", "slow", "slow raises"]
KINDS += [f"{word} {limit}" for word in ("", "slow") for limit in LIMITS]
NUMBERS = st.integers(0, 20)
STEPS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(KINDS)),
    st.tuples(st.sampled_from(["confirm", "confirm", "answer"]), NUMBERS),
    st.tuples(st.sampled_from(["confirm_again", "refuse", "die"]), NUMBERS),
    st.tuples(st.just("cancel"), st.tuples(NUMBERS, st.sampled_from([0.0, 1e6]))),
    st.tuples(st.sampled_from(["restart", "cancel_all", "break_down"]), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(STEPS, min_size=5, max_size=60),
    st.integers(1, 3),
    st.integers(0, 1),
    st.sampled_from([None, 2]),
)
def test_a_job_runs_from_its_confirmation_to_its_end(
    script: Script, workers: int, spares: int, most: int | None
) -> None:
    play = ConfirmedPlay(script, workers, spares, most, confirms=True).run(fast=True)
    assert not play.handed, "callers cannot send to workers that confirm"
    for job in play.jobs:
        walk = [status for status, _ in job.history()]
        if job.status() is JobStatus.DONE:
            assert walk[-2] is JobStatus.RUNNING
    assert play.engine._scheduler.closed == (play.engine.broken is not None)


def test_when_the_cluster_is_lost_each_job_says_so() -> None:
    script: Script = [
        ("submit", "slow retries"),
        ("confirm", 0),
        ("submit", "slow"),
        ("submit", ""),
    ]
    script += [("break_down", None)]
    play = ConfirmedPlay(script, 2, 0, None, confirms=True).run(fast=True)
    for job in play.jobs:
        error = job.exception()
        assert type(error) is ClusterError
        assert str(error) == f"job {job.name} ({job.job_id()}): the scheduler was lost: closed"
    assert [job.attempts for job in play.jobs] == [1, 0, 0]
    errors = [job.exception() for job in play.jobs]
    nodes = [error.node for error in errors if isinstance(error, ClusterError)]
    assert nodes == [NODE, NODE, None], "where it was, or was to be"
    assert not play.engine.accepting
    with pytest.raises(ClusterError, match=r"^the scheduler was lost: closed$"):
        play.engine.check_open()


@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize("way", ["die", "refuse", "cancel"])
def test_a_job_that_no_worker_has_confirmed(way: str, began: bool) -> None:
    """What its end is then; of a worker that dies, what that has noted decides."""
    # The attempt of the job is 1, or 2, which the played worker has begun unless that is even.
    script: Script = [] if began else [("submit", ""), ("confirm", 0)]
    script += [("submit", "slow"), (way, (len(script) // 2, 0.0) if way == "cancel" else 0)]
    play = ConfirmedPlay(script, 1, 0, None, confirms=True).run(fast=True)
    job = play.jobs[-1]
    walk = [status.name for status, _ in job.history()][2:]
    if way == "cancel":
        assert walk == ["QUEUED", "CANCELLED"]
        assert job.attempts == 0
    elif way == "die" and began:
        assert walk == ["QUEUED", "ERROR"]
        assert job.attempts == 0
        error = job.exception()
        assert isinstance(error, WorkerDiedError)
        assert error.node == NODE
        assert "not known whether it had begun" in str(error)
    else:
        assert walk == ["QUEUED", "RUNNING", "DONE"]
        assert job.attempts == 1


def test_a_job_that_a_worker_is_too_large_for_is_taken_by_the_next_one() -> None:
    script: Script = [("submit", ""), ("confirm", 0), ("submit", "memory"), ("refuse", 0)]
    play = ConfirmedPlay(script, 1, 0, None, confirms=True).run(fast=True)
    job = play.jobs[1]
    assert [status.name for status, _ in job.history()][2:] == ["QUEUED", "RUNNING", "DONE"]
    assert [slot.served for slot in play.engine._scheduler.slots.values()] == [1], "a fresh worker"

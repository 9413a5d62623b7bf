"""Never more RUNNING jobs than workers, at whatever moment somebody looks.

A look at several jobs takes time, in which one may end and the next begin. What holds all the
same: a job that begins is looked at, with all others, before it can end (`beginnings`); and who is
RUNNING in two scans, one after the other, was so between them (`RunningWatch`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, hold_and_tell, until
from storm import RunningWatch, most_at_once

from primitive_jobs import JobPool, JobStatus, PrimitiveJob
from primitive_jobs._engine.engine import Engine
from primitive_jobs._engine.gate import HandOver, SentAhead, Taken
from primitive_jobs._engine.recall import Recall
from primitive_jobs._engine.tracker import StatusTracker
from primitive_jobs._procs.process import WorkerProcess


class Beginnings:
    """Looks at all `jobs` whenever one begins to run, on the thread that makes it run."""

    def __init__(self) -> None:
        self.jobs: list[PrimitiveJob[Any]] = []
        self.count = 0
        self.most = 0

    def look(self, tracker: StatusTracker) -> None:
        self.count += 1
        trackers = [job._tracker for job in self.jobs if job._tracker is not tracker]
        others = sum(map(runs, trackers))
        if runs(tracker):  # still: so both ran at the moment of the look
            self.most = max(self.most, 1 + others)


def runs(tracker: StatusTracker) -> bool:
    """As `PrimitiveJob.running`, which must not be called on the dispatcher's thread."""
    return tracker.status is JobStatus.RUNNING and not tracker.is_over()


@pytest.fixture
def beginnings(monkeypatch: pytest.MonkeyPatch) -> Beginnings:
    watch = Beginnings()
    assigned, take, attempt_of = StatusTracker.assigned, StatusTracker.take, Recall.attempt_of

    def assigned_and_seen(self: StatusTracker, *where: Any) -> None:
        assigned(self, *where)
        watch.look(self)

    def shown_and_seen(self: Recall, number: int) -> int:
        attempt = attempt_of(self, number)
        slot = self._scheduler.slots.get(number)
        if attempt and slot is not None and slot.job is not None:
            tracker = self._jobs.unfinished[slot.job.number].tracker
            if isinstance(tracker._gate[0], SentAhead):  # else it was seen before
                watch.look(tracker)
        return attempt

    def taken_and_seen(self: StatusTracker, *how: Taken) -> bool:
        done = take(self, *how)
        if done and how and isinstance(how[0], HandOver):
            watch.look(self)
        return done

    monkeypatch.setattr(StatusTracker, "assigned", assigned_and_seen)
    monkeypatch.setattr(StatusTracker, "take", taken_and_seen)
    monkeypatch.setattr(Recall, "attempt_of", shown_and_seen)
    return watch


@pytest.fixture(params=["sent ahead", "one by one"])
def single(request: pytest.FixtureRequest) -> Iterator[JobPool]:
    """One worker that has run a job already, and its spare."""
    with JobPool(1) as fresh:
        if request.param == "one by one":
            fresh._engine._scheduler.lines.most = 0
        fresh.submit(abs, -1).result(PATIENCE)
        yield fresh
        fresh.shutdown(cancel=True)


def spare_is_ready(pool: JobPool) -> bool:
    counts = pool._engine.counts()
    return (counts.running, counts.idle) == (1, 1)


# --- one worker, exactly --------------------------------------------------------------------------


def test_one_answer_after_the_other(single: JobPool, beginnings: Beginnings) -> None:
    jobs = beginnings.jobs
    for n in range(300):
        jobs.append(single.submit(abs, -n))
    assert [job.result(PATIENCE) for job in jobs] == [*range(300)]
    ahead = single._engine._scheduler.lines.most > 0  # then some are seen twice
    assert beginnings.count == 300 or (ahead and beginnings.count > 300)
    assert beginnings.most == 1
    assert most_at_once(jobs) == 1


def test_one_round_trip_after_the_other(single: JobPool, beginnings: Beginnings) -> None:
    jobs = beginnings.jobs
    for n in range(50):
        jobs.append(single.submit(abs, -n))
        assert jobs[-1].result(PATIENCE) == n
    assert beginnings.count == 50
    assert beginnings.most == 1
    assert most_at_once(jobs) == 1


def cancel(job: PrimitiveJob[Any]) -> None:
    assert job.cancel()


def cancel_with_grace(job: PrimitiveJob[Any]) -> None:
    assert job.cancel(grace=PATIENCE)


def kill(job: PrimitiveJob[Any]) -> None:
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)


ENDS: dict[str, tuple[Callable[[PrimitiveJob[Any]], object], dict[str, Any]]] = {
    "cancel": (cancel, {}),
    "grace": (cancel_with_grace, {}),
    "death": (kill, {}),
    "retry": (kill, {"retries": 1}),
    "timeout": (lambda job: job.wait(PATIENCE), {"timeout": 0.05}),
    "memory": (lambda job: job.wait(PATIENCE), {"memory_limit": "1 MB"}),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_next_one_waits_until_nothing_is_left(
    single: JobPool, beginnings: Beginnings, end: str, tmp_path: Path
) -> None:
    how, options = ENDS[end]
    jobs, gate = beginnings.jobs, tmp_path / "gate"
    jobs.append(single.submit(hold_and_tell, gate))
    until(lambda: spare_is_ready(single), "the spare")
    gate.touch()
    gate = tmp_path / "second"
    jobs.append(single.options(**options).submit(hold_and_tell, gate))
    jobs += [single.submit(abs, -n) for n in range(10)]
    until(lambda: jobs[1].pid, "RUNNING")
    how(jobs[1])
    gate.touch()
    for job in jobs:
        assert job.wait(PATIENCE)
    assert beginnings.count >= 12
    assert beginnings.most == 1
    assert most_at_once(jobs) == 1


class SlowEnd:
    """The end of each worker takes until `go_on` is set, as where a process cannot be killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        end = WorkerProcess.end

        def late(process: WorkerProcess) -> Any:
            self.begun.set()
            assert self.go_on.wait(PATIENCE)
            return end(process)

        monkeypatch.setattr(WorkerProcess, "end", late)


@pytest.mark.parametrize("queued_before", [True, False])
def test_a_worker_that_is_hard_to_kill_keeps_its_place(
    single: JobPool, monkeypatch: pytest.MonkeyPatch, queued_before: bool, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = single.submit(hold_and_tell, gate)
    until(lambda: spare_is_ready(single), "the spare")
    slow = SlowEnd(monkeypatch)
    try:
        queued = [single.submit(abs, -2)] if queued_before else []
        single._engine.ask_cancel(job._record, 0.0)
        assert slow.begun.wait(PATIENCE)
        queued.append(single.submit(abs, -2))
        assert single.jobs() == [job, *queued]  # the dispatcher has taken them in
        assert job.status() is JobStatus.RUNNING
        assert {each.status() for each in queued} == {JobStatus.QUEUED}
        counts = single._engine.counts()
        assert (counts.running, counts.queued, counts.idle) == (1, len(queued), 1)
    finally:
        slow.go_on.set()
    assert [each.result(PATIENCE) for each in queued] == [2] * len(queued)
    assert job.cancelled()
    assert most_at_once([job, *queued]) == 1


def test_after_a_resize_more_may_run_until_they_end(two: JobPool, tmp_path: Path) -> None:
    jobs = [two.submit(hold_and_tell, tmp_path / str(n)) for n in range(2)]
    until(lambda: all(job.running() for job in jobs), "both to run")
    two.resize(1)
    waits = two.submit(abs, -1)
    (tmp_path / "0").touch()
    jobs[0].result(PATIENCE)
    assert two.jobs() == [jobs[1], waits]
    assert waits.status() is JobStatus.QUEUED
    (tmp_path / "1").touch()
    assert waits.result(PATIENCE) == 1


# --- several workers, as users see it -------------------------------------------------------------


def test_a_watcher_sees_no_more_than_there_are_workers() -> None:
    with JobPool(2) as pool:
        jobs: list[PrimitiveJob[Any]] = []
        watch = RunningWatch(lambda: jobs, 2)
        stop = threading.Event()
        thread = threading.Thread(target=watch.run, args=(stop,))
        thread.start()
        try:
            for round_ in range(5):
                jobs[:] = [pool.submit(abs, -n) for n in range(100)]
                victim = jobs[round_ * 10]
                victim.cancel()
                for job in jobs:
                    assert job.wait(PATIENCE)
        finally:
            stop.set()
            thread.join(PATIENCE)
        assert watch.looks > 0
        assert watch.most <= 2
        assert most_at_once(jobs) <= 2


def test_the_watch_itself_sees_two_that_run(two: JobPool, tmp_path: Path) -> None:
    jobs = [two.submit(hold_and_tell, tmp_path / "gate") for _ in range(2)]
    until(lambda: all(job.running() for job in jobs), "both to run")
    watch = RunningWatch(lambda: jobs, 1)
    watch.look()
    assert watch.most == 2
    (tmp_path / "gate").touch()
    for job in jobs:
        job.result(PATIENCE)
    assert most_at_once(jobs) == 2


def test_an_offer_is_not_made_beyond_the_number_of_workers(
    single: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The spare is idle, but no caller may give it a job while the killed one holds its place."""
    job = single.submit(hold_and_tell, tmp_path / "never")
    until(lambda: spare_is_ready(single), "the spare")
    slow = SlowEnd(monkeypatch)
    try:
        single._engine.ask_cancel(job._record, 0.0)
        assert slow.begun.wait(PATIENCE)
        engine: Engine = single._engine
        until(lambda: engine._inbox.asleep, "the dispatcher to sleep")
        assert engine._hand_off.offer is None
    finally:
        slow.go_on.set()
    assert job.wait(PATIENCE)

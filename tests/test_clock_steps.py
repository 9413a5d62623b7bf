"""The wall clock steps, as a time server may have it: no duration is wrong for that."""

from __future__ import annotations

import os
import pickle
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import PATIENCE, be_neighbour, hold, until

from primitive_jobs import JobPool, JobStatus, PrimitiveJob, WorkerDiedError, demo, race
from primitive_jobs._engine.tracker import StatusTracker

HOUR = 3600.0
LONGEST = 60.0  # s that no job here has taken

Step = Callable[[float], None]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Step:
    """Has the wall clock, of this process, step by so many seconds."""
    real = time.time
    by = 0.0

    def stepping() -> float:
        return real() + by

    def step(seconds: float) -> None:
        nonlocal by
        by += seconds

    monkeypatch.setattr(time, "time", stepping)
    return step


@pytest.fixture(params=[-HOUR, HOUR], ids=["back", "ahead"])
def hour(request: pytest.FixtureRequest) -> float:
    return float(request.param)


def test_how_long_a_status_lasts(step: Step, hour: float) -> None:
    tracker = StatusTracker()
    began = time.monotonic()
    step(hour)
    until(lambda: time.monotonic() > began + 0.01, "a moment")
    assert 0.01 <= tracker.seconds_in_status() < LONGEST


def test_how_long_a_job_ran_that_was_killed(
    one: JobPool, tmp_path: Path, step: Step, hour: float
) -> None:
    job = one.submit(be_neighbour, tmp_path, 0)
    until((tmp_path / "neighbour0").exists, "the job")  # one that has not begun is given to another
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 0.01, "a moment")
    step(hour)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    error = job.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.ran is not None
    assert 0.01 <= error.ran < LONGEST
    assert f"died after {error.ran:.3g} s" in str(error)


def _seconds(text: str) -> float:
    found = re.search(r"([\d.]+) s>", text)
    assert found, text
    return float(found[1])


def _durations(html: str) -> dict[str, str]:
    return dict(re.findall(r">(waited|ran|took)</td><td[^>]*>([^<]*)<", html))


@pytest.fixture
def stepped(one: JobPool, tmp_path: Path, step: Step, hour: float) -> PrimitiveJob[str]:
    """A job that is DONE, during which the clock has stepped."""
    gate = tmp_path / "gate"
    job: PrimitiveJob[str] = one.submit(hold, gate, "value")
    until(job.running, "the job")
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 0.01, "a moment")
    assert 0.01 <= _seconds(repr(job)) < LONGEST
    step(hour)
    assert 0.01 <= _seconds(repr(job)) < LONGEST
    gate.touch()
    assert job.result(PATIENCE) == "value"
    return job


def test_what_a_job_shows(stepped: PrimitiveJob[str]) -> None:
    for job in (stepped, pickle.loads(pickle.dumps(stepped))):
        assert 0.01 <= _seconds(repr(job)) < LONGEST
        shown = _durations(job._repr_html_())
        assert set(shown) == {"waited", "ran", "took"}
        assert not any("min" in text or " h" in text or ":" in text for text in shown.values())
        assert "-" not in "".join(shown.values())


def test_the_history_is_of_the_wall_clock(stepped: PrimitiveJob[str], hour: float) -> None:
    times = dict(stepped.history())
    passed = times[JobStatus.DONE] - times[JobStatus.RUNNING]
    assert abs(passed - hour) < LONGEST


def test_what_joblib_learns_of_a_batch(stepped: PrimitiveJob[str]) -> None:
    backend = pytest.importorskip("primitive_jobs.joblib")
    assert 0.01 <= backend._seconds_run(stepped) < LONGEST


def test_what_the_demo_shows(stepped: PrimitiveJob[str]) -> None:
    seconds = demo.Row(stepped, JobStatus.DONE).seconds()
    assert seconds is not None
    assert 0.01 <= seconds < LONGEST


def test_who_ended_first_wins(one: JobPool, step: Step) -> None:
    first = one.submit(str, "first")
    assert first.wait(PATIENCE)
    step(-HOUR)
    second = one.submit(str, "second")
    assert second.wait(PATIENCE)
    assert race([second, first]) == "first"


def test_who_ended_first_wins_of_jobs_that_have_travelled(one: JobPool) -> None:
    jobs = [one.submit(str, number) for number in range(3)]
    assert all(job.wait(PATIENCE) for job in jobs)
    travelled = pickle.loads(pickle.dumps(jobs[0]))
    assert race([jobs[2], jobs[1], travelled]) == "0"

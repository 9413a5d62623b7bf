"""Eight threads that do everything at once with the same jobs, whatever comes between what.

With the GIL little does; a build without it is what this is for. The long one is run by
``-m soak``, for as many seconds as SOAK_SECONDS says.
"""

# ruff: noqa: PT017 - what each exception means is part of what is done next

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from helpers import PATIENCE, double, fail, until

from primitive_jobs import (
    FINAL_STATES,
    JobCancelledError,
    JobError,
    JobExecutor,
    JobPool,
    JobStatus,
    PoolClosedError,
    PrimitiveJob,
    as_completed,
    gather,
    share,
    wait,
)

SHORT, LONG = 2.0, 300.0  # s
THREADS = 8
RECENT = 40  # jobs that all threads have to do with
LIFE = 1.3  # s of a pool
LARGE = 200_000  # bytes, of arguments and results

pytestmark = pytest.mark.filterwarnings("ignore::primitive_jobs.JobFailuresWarning")


class Pools:
    """A pool, and an executor over it, until some thread shuts them down."""

    def __init__(self) -> None:
        self.pool = JobPool(2, spare_workers=0)
        self.executor = JobExecutor(pool=self.pool)
        self.shared = share(bytes(LARGE))
        self.jobs: list[PrimitiveJob[Any] | None] = [None] * RECENT  # some that were submitted
        self.due = time.monotonic() + LIFE
        self.enders: list[object] = []  # the first of them ends it

    def end(self, *, cancel: bool) -> None:
        """After this all jobs have ended, whatever others still try."""
        jobs = [job for job in self.jobs if job is not None]
        self.pool.shutdown(cancel=cancel)
        self.executor.shutdown()
        for job in jobs:
            assert job.status() in FINAL_STATES, job
            walk = [status for status, _ in job.history()]
            assert [status for status in walk if status in FINAL_STATES] == [job.status()]


class Called:
    """A callback that may be called once, and with one argument only."""

    def __init__(self, argument: object) -> None:
        self._argument = argument
        self.calls: list[object] = []

    def __call__(self, argument: object) -> None:
        self.calls.append(argument)

    def check(self, *, by_now: bool) -> None:
        """``by_now``: what it is for has ended, so that it is called soon."""
        if by_now:
            until(lambda: self.calls, "a callback")
        assert self.calls in ([], [self._argument])


class Threads:
    """What the threads share, and what each of them may do next."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._until = 0.0
        self._pools = Pools()
        self._recent: list[PrimitiveJob[Any] | None] = [None] * RECENT
        self._callbacks: list[Called | None] = [None] * RECENT
        self._failures: list[BaseException] = []

    def run(self, seconds: float) -> Counter[str]:
        """Have them do it; return how often they did what."""
        self._until = time.monotonic() + seconds
        counts: list[Counter[str]] = [Counter() for _ in range(THREADS)]
        threads = [
            threading.Thread(target=self._live, args=(random.Random(self._seed + n), counts[n]))
            for n in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._pools.end(cancel=True)
        if self._failures:
            raise self._failures[0]
        return sum(counts, Counter())

    def _live(self, chance: random.Random, counts: Counter[str]) -> None:
        try:
            while time.monotonic() < self._until and not self._failures:
                (deed,) = chance.choices(DEEDS, WEIGHTS)
                try:
                    came_of_it = deed(self, self._pools, chance)
                except PoolClosedError:
                    came_of_it = "closed"
                counts[f"{deed.__name__} {came_of_it or ''}"] += 1
        except BaseException as error:
            self._failures.append(error)

    def _some(self, chance: random.Random) -> PrimitiveJob[Any]:
        job = chance.choice(self._recent)
        return self._ended_early(chance) if job is None else job

    def _ended_early(self, chance: random.Random) -> PrimitiveJob[Any]:
        job: PrimitiveJob[Any] = PrimitiveJob(double, 1)
        self._recent[chance.randrange(RECENT)] = job
        assert job.cancel()
        assert job.cancelled()
        return job

    # --- deeds -------------------------------------------------------------------------------

    def submit(self, now: Pools, chance: random.Random) -> str | None:
        calls: list[tuple[Callable[..., Any], Any]] = [
            (double, 21),
            (time.sleep, 0.002),
            (fail, "on purpose"),
            (len, bytes(LARGE)),
            (len, now.shared),
            (bytes, LARGE),
        ]
        function, argument = chance.choice(calls)
        job: PrimitiveJob[Any] = PrimitiveJob(function, argument)
        self._recent[chance.randrange(RECENT)] = job  # now: others may cancel it on its way
        view = now.pool if chance.random() < 0.7 else now.pool.options(timeout=60, priority=1)
        try:
            job.submit(view)
        except PoolClosedError:
            raise
        except JobError as error:
            assert "was cancelled before it was submitted" in str(error)
            return "too late"
        now.jobs[chance.randrange(RECENT)] = job
        return None

    def look(self, now: Pools, chance: random.Random) -> None:
        job = self._some(chance)
        before = job.status()
        assert repr(job)
        assert job._repr_html_()
        assert job.pid is None or job.pid > 0
        assert job.attempts in (0, 1)
        assert job.history()[0][0] is JobStatus.INITIALIZING
        assert job.job_id() == job.job_id()
        if before in FINAL_STATES:
            assert job.status() is before
            assert job.in_final_state()
            assert job.history()[-1][0] is before or before is JobStatus.CANCELLED

    def show(self, now: Pools, chance: random.Random) -> None:
        assert repr(now.executor)
        assert now.pool._repr_html_()
        counts = now.pool._engine.counts()
        assert min(counts) >= 0
        assert counts.running <= 2
        if chance.random() < 0.2:
            assert all(job.status() for job in now.pool.jobs())

    def cancel(self, now: Pools, chance: random.Random) -> str:
        job = self._some(chance)
        stopped = job.cancel()
        assert stopped == (job.status() is JobStatus.CANCELLED)
        assert job.in_final_state()
        return str(stopped)

    def result(self, now: Pools, chance: random.Random) -> str | None:
        job = self._some(chance)
        try:
            value = job.result(PATIENCE)
        except ValueError as error:
            assert str(error) == "on purpose"
            assert job.exception() is error
            return "failed"
        except JobCancelledError:
            assert job.cancelled()
            return "cancelled"
        except PoolClosedError:
            assert job.status() is JobStatus.ERROR
            return "turned away"
        except JobError as error:  # it is on its way, or was refused
            assert "was not submitted" in str(error)
            return "not there"
        assert job.result() is value
        assert value in (42, None, LARGE) or value == bytes(LARGE)
        return None

    def call_back(self, now: Pools, chance: random.Random) -> None:
        job = self._some(chance)
        called = Called(job)
        job.add_done_callback(called)
        called.check(by_now=job.in_final_state())
        place = chance.randrange(RECENT)
        earlier, self._callbacks[place] = self._callbacks[place], called
        if earlier is not None:
            earlier.check(by_now=False)

    def executor(self, now: Pools, chance: random.Random) -> None:
        futures = [now.executor.submit(double, n) for n in range(3)]
        callbacks = [Called(future) for future in futures]
        for future, called in zip(futures, callbacks, strict=True):
            future.add_done_callback(called)
        if chance.random() < 0.3:
            futures[2].cancel()
        for n, future in enumerate(futures):
            with contextlib.suppress(CancelledError, PoolClosedError):
                assert future.result(PATIENCE) == 2 * n
            assert future.done()
            callbacks[n].check(by_now=True)

    def map(self, now: Pools, chance: random.Random) -> str | None:
        results = now.pool.map(double, range(30), chunksize=chance.choice([None, 1, 7]))
        try:
            if chance.random() < 0.3:
                assert next(results) == 0
                return "dropped"
            assert list(results) == [*range(0, 60, 2)]
        except JobCancelledError:
            return "cancelled"
        return None

    def wait(self, now: Pools, chance: random.Random) -> str:
        jobs = {self._some(chance) for _ in range(4)}
        try:
            match chance.randrange(3):
                case 0:
                    assert {*as_completed(jobs, PATIENCE)} == jobs
                    return "as_completed"
                case 1:
                    done, not_done = wait(jobs, 0.01)
                    assert done | not_done == jobs
                    return "wait"
            gather(jobs, fail_fast=chance.random() < 0.2, timeout=0.05)
            return "gather"
        except Exception as error:
            for one in getattr(error, "exceptions", [error]):
                assert isinstance(one, JobError) or str(one) == "on purpose"
            return "failed"

    def shut_down(self, now: Pools, chance: random.Random) -> str | None:
        if time.monotonic() < now.due:
            return "not yet"
        me = object()
        now.enders.append(me)
        if now.enders[0] is not me:
            return "too late"
        self._pools = Pools()
        now.end(cancel=chance.random() < 0.5)
        return None


DEEDS = [
    Threads.submit,
    Threads.look,
    Threads.show,
    Threads.cancel,
    Threads.result,
    Threads.call_back,
    Threads.executor,
    Threads.map,
    Threads.wait,
    Threads.shut_down,
]
WEIGHTS = [6, 6, 3, 1, 6, 3, 1, 1, 1, 1]


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the library has to say of faults of its own; user code has none here."""
    texts: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: texts.append(handler.format(record))  # type: ignore[method-assign]
    logger = logging.getLogger("primitive_jobs")
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def stress(seconds: float, seed: int, tell: Callable[[str, object], None]) -> Counter[str]:
    counts = Threads(seed).run(seconds)
    lines = [f"{THREADS} threads for {seconds:.0f} s, seed {seed}:"]
    lines += [f"  {what:24} {count}" for what, count in sorted(counts.items())]
    tell("report", "\n".join(lines))
    gc.collect()  # exceptions that were raised here hold frames, which hold what they are of
    return counts


def test_threads(complaints: list[str], record_property: Callable[[str, object], None]) -> None:
    counts = stress(SHORT, 1, record_property)
    assert counts["submit "]
    assert complaints == []


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_threads_for_long(
    complaints: list[str], record_property: Callable[[str, object], None]
) -> None:
    faulthandler.cancel_dump_traceback_later()  # its limit is meant for tests of ordinary length
    seed = int(os.environ.get("SOAK_SEED", str(time.time_ns() % 1_000_000)))
    counts = stress(float(os.environ.get("SOAK_SECONDS", LONG)), seed, record_property)
    for deed in DEEDS:
        assert any(what.startswith(f"{deed.__name__} ") for what in counts), "it was never done"
    assert complaints == []

"""`BasePool.snapshot`, and what shows a pool: right at any moment, and plain data."""

from __future__ import annotations

import os
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, hold, hold_and_tell, until

from primitive_jobs import JobPool, JobStatus, PrimitiveJob
from primitive_jobs._engine.dispatcher import Dispatcher
from primitive_jobs._engine.events import Ask
from primitive_jobs.snapshots import Counts, PoolSnapshot, WorkerInfo


@pytest.fixture
def single() -> Iterator[JobPool]:
    """One worker that has served, and no spare."""
    with JobPool(1, spare_workers=0) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        yield pool
        pool.shutdown(cancel=True)


def jobs_of(counts: Counts) -> int:
    return sum(counts[:5])


def test_what_was_cancelled_is_counted(single: JobPool, tmp_path: Path) -> None:
    busy = single.submit(hold, tmp_path / "never")
    waiting = [single.submit(abs, -n) for n in range(200)]
    assert all(job.cancel() for job in waiting)
    assert "0 queued, 1 running, 1 done, 200 cancelled" in repr(single)
    assert "0 queued, 1 running, 1 done, 200 cancelled" in single._repr_html_()
    assert busy.cancel()
    shot = single.snapshot()
    assert shot.counts[:5] == (0, 0, 1, 0, 201)
    assert shot.jobs == ()


def test_each_job_is_counted_once_whatever_happens_to_it() -> None:
    chance = random.Random(7)
    given = [0]
    jobs: list[PrimitiveJob[Any]] = []
    seen: list[tuple[int, PoolSnapshot, int]] = []
    stop = threading.Event()
    with JobPool(2) as pool:

        def look() -> None:
            while not stop.is_set():
                least = given[0]
                shot = pool.snapshot()
                seen.append((least, shot, given[0] + 1))

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for n in range(600):
                job = pool.submit(abs, -n) if n % 7 else pool.submit(int, "x")
                given[0] += 1
                jobs.append(job)
                if chance.random() < 0.3:
                    job.cancel()
                elif chance.random() < 0.1:
                    job.wait(PATIENCE)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        ends = [job.wait(PATIENCE) and job.status() for job in jobs]
        counts = pool.snapshot().counts
        assert counts.failed == ends.count(JobStatus.ERROR) > 0
        assert counts.cancelled == ends.count(JobStatus.CANCELLED) > 0
        assert jobs_of(pool.snapshot().counts) == 600
    assert len(seen) > 20
    for least, shot, most in seen:
        counts = shot.counts
        assert least <= jobs_of(counts) <= most
        assert len(shot.jobs) == counts.queued + counts.running
        states = [job.status for job in shot.jobs]
        assert states.count(JobStatus.RUNNING) == counts.running <= 2
        assert len({job.id for job in shot.jobs}) == len(shot.jobs)


def test_what_is_in_it(single: JobPool, tmp_path: Path) -> None:
    (idle,) = single.snapshot().workers
    pid = single.submit(os.getpid).result(PATIENCE)
    assert (idle.pid, idle.state, idle.job) == (pid, "idle", None)
    running = single.options(name="first").submit(hold_and_tell, tmp_path / "gate")
    queued = [single.submit(abs, -n) for n in range(3)]
    until(running.running, "RUNNING")
    time.sleep(0.05)
    shot = single.snapshot()
    first, *others = shot.jobs
    assert first[:3] == (running.job_id(), "first", JobStatus.RUNNING)
    assert 0.04 < first.seconds < PATIENCE
    assert (first.attempts, first.pid) == (1, pid)
    assert [job.id for job in others] == [job.job_id() for job in queued]
    for job in others:
        assert (job.name, job.status, job.attempts, job.pid) == ("abs", JobStatus.QUEUED, 0, None)
    assert shot.workers == (WorkerInfo(pid, "busy", running.job_id(), None),)
    assert shot.counts == Counts(3, 1, 2, 0, 0, 0, 0)
    assert pickle.loads(pickle.dumps(shot)) == shot
    assert repr(single) == "<JobPool max_workers=1 open: 3 queued, 1 running, 2 done>"


def test_workers_that_come_and_go(single: JobPool, tmp_path: Path) -> None:
    job = single.options(grace=PATIENCE).submit(_ignore_sigterm, tmp_path / "begun")
    until((tmp_path / "begun").exists, "its begin")
    thread = threading.Thread(target=job.cancel)
    thread.start()
    until(lambda: single.snapshot().workers[0].state == "ending", "the grace")
    ending = single.snapshot()
    assert ending.counts.running == 1
    assert ending.workers[0].job == job.job_id()
    single.shutdown(wait=False, cancel=True)  # a second one, in a hurry
    single.shutdown(cancel=True)
    thread.join(PATIENCE)
    assert single.snapshot() == PoolSnapshot(Counts(0, 0, 1, 0, 1, 0, 0), (), ())


def _ignore_sigterm(mark: Path) -> None:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark.touch()
    time.sleep(1000)


def test_a_worker_that_is_not_ready() -> None:
    with JobPool(1, spare_workers=0, initializer=time.sleep, initargs=(0.5,)) as pool:
        job = pool.submit(abs, -1)
        until(lambda: pool.snapshot().workers, "a worker")
        shot = pool.snapshot()
        assert shot.counts == Counts(1, 0, 0, 0, 0, 0, 1)
        assert shot.workers[0].state == "starting"
        assert job.result(PATIENCE) == 1


def test_it_can_be_seen_while_the_dispatcher_stands_still(
    single: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a debugger leaves it."""
    running = single.submit(hold_and_tell, tmp_path / "gate")
    waiting = [single.submit(abs, -n) for n in range(3)]
    assert len(single.jobs()) == 4
    go_on = threading.Event()
    take = Dispatcher._take

    def still(self: Dispatcher, command: Any) -> None:
        if isinstance(command, Ask):
            assert go_on.wait(PATIENCE)
        take(self, command)

    monkeypatch.setattr(Dispatcher, "_take", still)
    try:
        began = time.monotonic()
        assert "3 queued, 1 running, 1 done" in repr(single)
        assert time.monotonic() - began < 0.5 * PATIENCE
        assert [job.id for job in single.snapshot().jobs] == [
            job.job_id() for job in (running, *waiting)
        ]
    finally:
        go_on.set()
        (tmp_path / "gate").touch()
    assert [job.result(PATIENCE) for job in waiting] == [0, 1, 2]


def test_one_of_its_own_threads_may_show_it(single: JobPool) -> None:
    """A finalizer that the collector runs there, say."""
    own = single._engine._own_threads
    own.add(threading.get_ident())
    try:
        assert "0 queued, 0 running, 1 done" in repr(single)
    finally:
        own.discard(threading.get_ident())
    seen: list[PoolSnapshot] = []
    job = single.submit(abs, -1)
    job.add_done_callback(lambda _: seen.append(single.snapshot()))
    until(lambda: seen, "the callback")
    assert seen[0].counts.done == 2


@pytest.mark.parametrize("look", [repr, JobPool.snapshot], ids=["repr", "snapshot"])
def test_a_fork_shows_what_was_there(single: JobPool, look: Callable[[JobPool], Any]) -> None:
    look(single)
    pid = os.fork()
    if not pid:
        try:
            found = look(single)
            os._exit(0 if "1 done" in str(found) or found.counts.done == 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert single.submit(abs, -3).result(PATIENCE) == 3


def test_a_large_queue_is_shown_fast(single: JobPool, tmp_path: Path) -> None:
    held: PrimitiveJob[Any] = single.submit(hold, tmp_path / "never")
    jobs = [single.submit(abs, -n) for n in range(5000)]
    began = time.monotonic()
    assert "5000 queued, 1 running" in repr(single)
    assert time.monotonic() - began < 0.5 * PATIENCE
    assert len(single.snapshot().jobs) == 5001
    single.cancel_all()
    assert {job.status() for job in (held, *jobs)} == {JobStatus.CANCELLED}
    assert single.snapshot().counts[:5] == (0, 0, 1, 0, 5001)

"""Jobs that are sent ahead to busy workers, with processes: nothing waits behind a job, nothing is
lost, nothing runs twice, and each status is true. `test_lines` has the same without processes.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, SOAK, hold_and_tell, until, write_mark
from storm import RunningWatch, most_at_once

from primitive_jobs import (
    JobExecutor,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PrimitiveJob,
    WorkerDiedError,
)
from primitive_jobs._engine import lines
from primitive_jobs._engine.lines import Lines
from primitive_jobs._engine.recall import Recall
from primitive_jobs._wire.parcel import HAVE_PACKETS
from primitive_jobs.job import record_of

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.skipif(not HAVE_PACKETS, reason="messages are no datagrams here")


class Ahead:
    """What the pools have sent ahead, and what came back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent = self.back = 0
        send, came_back = Recall.send, Lines.came_back

        def sent(recall: Recall, action: Any) -> Any:
            self.sent += len(action.jobs)
            return send(recall, action)

        def back(of: Lines, *told: Any) -> Any:
            numbers = came_back(of, *told)
            self.back += len(numbers)
            return numbers

        monkeypatch.setattr(Recall, "send", sent)
        monkeypatch.setattr(Lines, "came_back", back)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Ahead:
    """Whether jobs are short is measured, as it is: on a busy machine hardly any may be."""
    return Ahead(monkeypatch)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Ahead:
    """All jobs count as short, however long a busy machine takes for them."""
    monkeypatch.setattr(lines, "_SHORT", 1 << 40)
    monkeypatch.setattr(lines, "_LEAD", 1 << 40)
    return Ahead(monkeypatch)


@pytest.fixture(params=[1, 2])
def pool(request: pytest.FixtureRequest) -> Iterator[JobPool]:
    """One whose workers are known to have short jobs."""
    with JobPool(request.param) as fresh:
        for _ in range(3):
            assert [job.result(PATIENCE) for job in no_ops(fresh, 50)] == [*range(50)]
        yield fresh
        fresh.shutdown(cancel=True)


def workers_of(pool: JobPool) -> int:
    return pool._engine._scheduler.max_workers


def no_ops(pool: JobPool, count: int) -> list[PrimitiveJob[int]]:
    return [pool.submit(abs, -n) for n in range(count)]


def test_short_jobs_are_sent_ahead(pool: JobPool, measured: Ahead) -> None:
    for _ in range(20):
        jobs = no_ops(pool, 2000)
        assert [job.result(PATIENCE) for job in jobs] == [*range(2000)]
        if measured.sent > 200:
            break
    assert measured.sent > 200
    walks = {tuple(status for status, _ in job.history()[-3:]) for job in jobs}
    assert walks == {(JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.DONE)}
    assert all(sorted(when for _, when in job.history()) for job in jobs)
    assert most_at_once(jobs) <= workers_of(pool)
    assert {job._tracker.attempts for job in jobs} == {1}


def test_long_jobs_are_not(pool: JobPool, measured: Ahead) -> None:
    sent = []
    for _ in range(2):
        measured.sent = 0
        for job in [pool.submit(time.sleep, 0.002) for _ in range(30)]:
            job.result(PATIENCE)
        sent.append(measured.sent)  # the first ones come after short ones
    assert sent[1] == 0


def test_nothing_waits_behind_a_job(ahead: Ahead, tmp_path: Path) -> None:
    with JobPool(2) as pool:
        for job in no_ops(pool, 200):
            job.result(PATIENCE)
        for n in range(5):
            gate = tmp_path / str(n)
            jobs = [*no_ops(pool, 100)]
            long = pool.submit(hold_and_tell, gate)
            jobs += no_ops(pool, 300)
            for job in jobs:
                job.result(PATIENCE)
            assert long.status() is JobStatus.RUNNING
            gate.touch()
            long.result(PATIENCE)
    assert ahead.sent


def test_a_watcher_sees_one_job_in_each_worker(pool: JobPool) -> None:
    jobs: list[PrimitiveJob[Any]] = []
    watch = RunningWatch(lambda: jobs, workers_of(pool))
    stop = threading.Event()
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    seen: list[tuple[JobStatus, JobStatus]] = []
    try:
        for _ in range(5):
            jobs[:] = no_ops(pool, 300)
            before = [JobStatus.QUEUED] * len(jobs)
            while not all(job.in_final_state() for job in jobs):
                now = [job.status() for job in jobs]
                seen += zip(before, now, strict=True)
                before = now
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert watch.most <= workers_of(pool)
    assert (JobStatus.RUNNING, JobStatus.QUEUED) not in seen
    assert most_at_once(jobs) <= workers_of(pool)


def test_what_comes_first_does(ahead: Ahead) -> None:
    with JobPool(1) as pool:
        for job in no_ops(pool, 200):
            job.result(PATIENCE)
        jobs = no_ops(pool, 20_000)
        first = pool.options(priority=1).submit(abs, -1)
        first.result(PATIENCE)
        left = sum(not job.in_final_state() for job in jobs)
        pool.cancel_all()
    assert ahead.sent
    assert left > 100, "it has waited for nearly all of them"


def test_the_limit_of_one_that_was_sent_ahead(pool: JobPool, tmp_path: Path) -> None:
    limited = pool.options(timeout=0.3)
    jobs = [limited.submit(abs, -n) for n in range(200)]
    late = limited.submit(hold_and_tell, tmp_path / "never")
    jobs += [limited.submit(abs, -n) for n in range(200)]
    with pytest.raises(JobTimeoutError):
        late.result(PATIENCE)
    assert [job.result(PATIENCE) for job in jobs] == [*range(200)] * 2
    (began,) = [when for status, when in late.history() if status is JobStatus.RUNNING]
    assert late.history()[-1][1] - began >= 0.3 - 0.005


def test_a_death_costs_one_job(pool: JobPool, ahead: Ahead) -> None:
    jobs = []
    for _ in range(10):
        jobs += no_ops(pool, 100)
        jobs.append(pool.submit(os._exit, 3))
    for n, job in enumerate(jobs):
        if n % 101 == 100:
            error = job.exception(PATIENCE)
            assert isinstance(error, WorkerDiedError)
            assert error.exitcode == 3
            assert error.ran is not None
        else:
            assert job.result(PATIENCE) == n % 101
    assert {job._tracker.attempts for job in jobs} == {1}
    assert ahead.sent


def test_the_number_of_jobs_of_a_worker(ahead: Ahead) -> None:
    with JobPool(2, max_jobs_per_worker=25) as pool:
        jobs = [pool.submit(os.getpid) for _ in range(400)]
        pids = Counter(job.result(PATIENCE) for job in jobs)
    assert max(pids.values()) <= 25
    assert ahead.sent


def test_a_default_timeout_of_the_programs_sockets(ahead: Ahead) -> None:
    socket.setdefaulttimeout(PATIENCE)
    try:
        with JobPool(2) as pool:
            for job in no_ops(pool, 2000):
                job.result(PATIENCE / 2)
            long = [pool.submit(time.sleep, 0.01) for _ in range(40)]  # lines behind the first
            for each in long:
                each.result(PATIENCE / 2)
    finally:
        socket.setdefaulttimeout(None)
    assert ahead.sent


def test_what_is_over_is_not_late(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The dispatcher is held up for longer than jobs may take, which have long ended by then."""
    look = Recall.attempt_of

    def held_up(recall: Recall, number: int) -> int:
        if next(turns) % 70 == 69:
            time.sleep(0.75)
        return look(recall, number)

    turns = iter(range(10**9))
    monkeypatch.setattr(Recall, "attempt_of", held_up)
    for grace in (0.0, 0.5):
        limited = pool.options(timeout=0.5, grace=grace)
        jobs = [limited.submit(abs, -n) for n in range(200)]
        assert [job.result(PATIENCE) for job in jobs] == [*range(200)]
    pids = {pool.submit(os.getpid).result(PATIENCE) for _ in range(20)}
    assert len(pids) <= workers_of(pool), "one was killed"


def tell_and_wait(mark: Path, seconds: float) -> None:
    mark.touch()
    time.sleep(seconds)


def test_a_job_that_says_that_it_runs_is_running(pool: JobPool, tmp_path: Path) -> None:
    """The caller computes all the while, and so keeps the dispatcher from its work."""
    for n in range(8):
        no_ops(pool, 60)
        mark = tmp_path / str(n)
        job = pool.submit(tell_and_wait, mark, 0.5)
        path = str(mark)
        exists = os.path.exists
        end = time.perf_counter() + PATIENCE
        while not exists(path) and time.perf_counter() < end:
            pass
        assert job.status() is JobStatus.RUNNING
        assert job.pid is not None
        job.cancel()


def test_the_times_of_one_that_took_long(pool: JobPool) -> None:
    jobs = no_ops(pool, 40)
    jobs.append(pool.submit(pow, 3, 10**6 + 700_000))
    jobs += no_ops(pool, 40)
    sum(range(10**7))  # in C, so that the dispatcher hears of all that much later
    for job in jobs:
        assert job.wait(PATIENCE)
    assert most_at_once(jobs) <= workers_of(pool)


@pytest.mark.parametrize("taken_back", [True, False])
def test_shutdown_cancels_futures_that_were_sent_ahead(
    monkeypatch: pytest.MonkeyPatch, marks: Path, tmp_path: Path, taken_back: bool
) -> None:
    """Whether they wait in the queue again, or still in the line."""
    if not taken_back:
        monkeypatch.setattr(Lines, "late", lambda *_: [])
    executor = JobExecutor(1, spare_workers=0)  # one that gets ready has the line taken back
    for future in [executor.submit(abs, -1) for _ in range(100)]:
        future.result(PATIENCE)
    monkeypatch.setattr(Lines, "depth", lambda self, _: 0 if self.held else 8)
    first = executor.submit(hold_and_tell, tmp_path / "first")
    held = executor.submit(hold_and_tell, tmp_path / "gate")
    behind = [executor.submit(write_mark, marks, str(n)) for n in range(20)]
    until(first.running, "RUNNING")
    (tmp_path / "first").touch()  # its answer starts the line
    until(held.running, "RUNNING")
    engine: Any = record_of(held.job).link
    until(lambda: bool(engine._scheduler.lines.slots) is not taken_back, "the line")
    executor.shutdown(wait=False, cancel_futures=True)
    until(lambda: all(future.cancelled() for future in behind), "the cancels")
    (tmp_path / "gate").touch()
    held.result(PATIENCE)
    executor.shutdown()
    assert not [*marks.iterdir()]


def test_after_a_fork(pool: JobPool) -> None:
    jobs = no_ops(pool, 3000)
    child = os.fork()
    if child == 0:
        finals = sum(job.in_final_state() for job in jobs)
        os._exit(0 if finals == len(jobs) else 1)
    assert [job.result(PATIENCE) for job in jobs] == [*range(3000)]
    assert os.waitpid(child, 0)[1] == 0


# --- whoever loses the link ----------------------------------------------------------------------


def descriptors_here() -> list[int]:
    return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]


def replace_link() -> None:
    ours = [fd for fd in descriptors_here() if is_seqpacket(fd)]
    assert len(ours) == 1
    one, other = socket.socketpair()
    os.dup2(one.fileno(), ours[0])
    other.detach()


def is_seqpacket(fd: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.type == socket.SOCK_SEQPACKET
    except OSError:
        return False


def close_all() -> None:
    os.closerange(3, 4096)
    time.sleep(PATIENCE)


def shut_link(how: int) -> None:
    (ours,) = [fd for fd in descriptors_here() if is_seqpacket(fd)]
    with socket.socket(fileno=os.dup(ours)) as sock:
        sock.shutdown(how)
    time.sleep(PATIENCE if how != socket.SHUT_RD else 0.1)


CUTS: dict[str, Callable[[], None]] = {
    "replaced": replace_link,
    "closed": close_all,
    "not read": partial(shut_link, socket.SHUT_RD),
    "shut": partial(shut_link, socket.SHUT_RDWR),
}


@pytest.mark.parametrize("how", CUTS)
def test_a_link_that_is_lost(pool: JobPool, how: str) -> None:
    jobs = no_ops(pool, 300)
    lost = pool.submit(CUTS[how])
    jobs += no_ops(pool, 300)
    if how != "not read":  # that one can still answer
        error = lost.exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        assert "closed or broke its link to the pool" in str(error)
    assert [job.result(PATIENCE) for job in jobs] == [*range(300)] * 2


def cut_page_short() -> list[str]:
    said = []
    for fd in descriptors_here():
        try:
            if "primitive_jobs-page" in str(Path(f"/proc/self/fd/{fd}").readlink()):
                os.ftruncate(fd, 0)
        except OSError as error:
            said.append(type(error).__name__)
    return said


def test_the_page_cannot_be_cut_short(pool: JobPool) -> None:
    """The pool reads it as memory: it would die of SIGBUS."""
    assert set(pool.submit(cut_page_short).result(PATIENCE)) >= {"PermissionError"}


# --- all at once ---------------------------------------------------------------------------------


def act(log: Path, number: int, seconds: float) -> int:
    """Tell that it began; then last so long."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{number} {time.monotonic_ns()}\n".encode())
    os.close(fd)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return number


def stress(seed: int, count: int, log: Path) -> Counter[str]:
    """Jobs of all lengths, cancels and kills; return how they ended."""
    chance = random.Random(seed)
    log.touch()
    jobs: list[PrimitiveJob[int]] = []
    gone: dict[int, int] = {}  # when a cancel returned True
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set() or len(jobs) < 10:
            time.sleep(chance.choice((0.0, 0.0002, 0.002)))
            place = max(0, len(jobs) - chance.choice((1, 20, 200, 2000)))
            if not jobs:
                continue
            job = jobs[place]
            if chance.random() < 0.9:
                if job.cancel():
                    gone[place] = time.monotonic_ns()
            elif (pid := job.pid) is not None:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    thread = threading.Thread(target=disturb)
    with JobPool(chance.randint(1, 3)) as pool:
        thread.start()
        try:
            lengths = (0.0,) * 40 + (0.00005,) * 20 + (0.0004,) * 4 + (0.003,) * 2 + (0.02,)
            for number in range(count):
                jobs.append(pool.submit(act, log, number, chance.choice(lengths)))
                if number % 500 == 499:
                    jobs[-chance.choice((1, 400))].wait(PATIENCE)
            for job in jobs:
                assert job.wait(PATIENCE)
        finally:
            stop.set()
            thread.join()
    told = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    begun = Counter(number for number, _ in told)
    assert not [number for number, times in begun.items() if times > 1], "begun twice"
    for number, job in enumerate(jobs):
        if job.done():
            assert job.result() == number
            assert begun[number] == 1
        elif not job.cancelled():
            assert isinstance(job.exception(), WorkerDiedError)
    late = [number for number, when in told if number in gone and when > gone[number]]
    assert not late, "begun after its cancel had returned"
    assert most_at_once(jobs) <= 3
    return Counter(job.status().name for job in jobs)


def test_stress(ahead: Ahead, tmp_path: Path) -> None:
    ends = stress(1, 3000, tmp_path / "log")
    assert ends["DONE"] > 300
    assert ahead.sent > 300
    assert ahead.back


@pytest.mark.soak
@pytest.mark.timeout(SOAK)
@pytest.mark.parametrize("seed", range(2, 12))
def test_long_stress(ahead: Ahead, tmp_path: Path, seed: int) -> None:
    ends = stress(seed, 25_000, tmp_path / "log")
    print(f"seed {seed}: {dict(ends)}; {ahead.sent} sent ahead, {ahead.back} taken back")

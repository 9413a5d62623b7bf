"""Leases: the guard kills by itself what the program no longer speaks for."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import PATIENCE, fleet_of, gone, hold, pids_in, script, until

from primitive_jobs import JobPool, WorkerDiedError
from primitive_jobs._engine.fleet import News
from primitive_jobs._procs import guard as guard_script
from primitive_jobs._procs.guard import lease_clock
from primitive_jobs._procs.guardian import Guard, the_guard

LATE = 0.2  # s that a death may come after the deadline
TRIES = 5  # of which one is in time on a machine that others use, too
LONG = 1000.0  # s
SETTLED = 4  # looks, each as long as the guard sleeps at most while there is a lease

# A job with processes in sessions of their own that SIGTERM does not end: a child, one that is
# stopped, and one below another.
BREED = """
import os, signal, subprocess, threading, time
from pathlib import Path

def breed(folder):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child, halted = (subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(2))
    halted.send_signal(signal.SIGSTOP)
    shell = subprocess.Popen(
        ["sh", "-c", "setsid sleep 1000 > /dev/null & echo $!; exec sleep 1000"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    below = int(shell.stdout.readline())
    pids = [os.getpid(), child.pid, halted.pid, shell.pid, below]
    (folder / ".pids").write_text(" ".join(map(str, pids)))
    (folder / ".pids").rename(folder / "pids")
    while True:
        pass
"""

PROGRAM = """
import sys
from primitive_jobs import JobPool
from primitive_jobs._engine.fleet import News
from primitive_jobs._procs.guard import lease_clock

def lease(pool, seconds):
    fleet, given, deadline = pool._engine._fleet, threading.Event(), lease_clock() + seconds
    fleet._host.tell(News(lambda: (fleet.lease(deadline), given.set())))
    assert given.wait(20)
    return deadline

folder = Path(sys.argv[1])
with JobPool(1, spare_workers=0) as pool:
    job = pool.submit(breed, folder)
    while not (folder / "pids").exists():
        time.sleep(0.001)
    print(lease(pool, 0.5), flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    error = job.exception(20)
    print(type(error).__name__, error.exitcode, flush=True)
    lease(pool, 1000)
    print(pool.submit(abs, -1).result(20), flush=True)
"""


def lease(pool: JobPool, seconds: float) -> float:
    """Give all workers of a pool a lease, on its dispatcher's thread; return the deadline."""
    deadline = lease_clock() + seconds
    fleet, given = fleet_of(pool), threading.Event()

    def give() -> None:
        fleet.lease(deadline)
        given.set()

    fleet._host.tell(News(give))
    assert given.wait(PATIENCE)
    return deadline


def hold_apart(gate: Path, pids: Path) -> None:
    """A job with a child in a session of its own."""
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        draft = pids.with_suffix(".draft")
        draft.write_text(f"{os.getpid()} {child.pid}")
        draft.rename(pids)
        hold(gate)
    finally:
        child.kill()
        child.wait()


def guard_process() -> psutil.Process:
    assert the_guard._process is not None
    process = psutil.Process(the_guard._process.pid)
    until(lambda: process.name() == guard_script.NAME, "its name")
    return process


@contextlib.contextmanager
def echo() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group, as a worker does."""
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether it answers: one that SIGKILL was sent to does not, even if it is not dead yet."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"?")
    except BrokenPipeError:
        return False
    return process.stdout.read(1) == b"?"


def rests(process: psutil.Process) -> bool:
    """Whether it does nothing, for longer than a guard does that has a lease to look at."""
    before = process.num_ctx_switches()
    time.sleep(SETTLED * guard_script._LEASE_LOOK)
    return process.num_ctx_switches() == before


@contextlib.contextmanager
def guarding(*processes: subprocess.Popen[bytes]) -> Iterator[Guard]:
    guard = Guard()
    guard.open("test")
    try:
        for process in processes:
            guard.add(process.pid)
        yield guard
    finally:
        for process in processes:
            guard.remove(process.pid)
        guard.release("test")


def let_it_look(guard: Guard, process: subprocess.Popen[bytes]) -> None:
    """Return when it has looked at its leases again: it answers one round before it does."""
    for _ in range(2):
        guard.signal(process.pid, 0)


# --- the program ----------------------------------------------------------------------------------


def lateness_under_a_frozen_program(folder: Path) -> float:
    """Seconds from the deadline until everything of the job was seen dead."""
    folder.mkdir()
    with script("-c", BREED + PROGRAM, str(folder)) as started:
        assert started.process.stdout is not None
        deadline = float(started.process.stdout.readline())
        program = psutil.Process(started.process.pid)
        until(lambda: program.status() == psutil.STATUS_STOPPED, "its stop")
        pids = pids_in(folder / "pids")
        until(lambda: all(map(gone, pids)), "the end of the worker and all below it")
        late = lease_clock() - deadline
        assert program.status() == psutil.STATUS_STOPPED
        program.resume()
        status, out, err = started.finish()
        assert (status, out, err) == (0, f"WorkerDiedError {-signal.SIGKILL}\n1\n", "")
        started.assert_nothing_left()
    return late


def test_a_lease_ends_while_the_program_is_frozen(tmp_path: Path) -> None:
    late: list[float] = []
    while not late or (min(late) > LATE and len(late) < TRIES):
        late.append(lateness_under_a_frozen_program(tmp_path / str(len(late))))
        assert late[-1] >= 0
    assert min(late) <= LATE, late


# --- a pool ---------------------------------------------------------------------------------------


def test_a_lease_that_is_renewed_keeps_a_worker_alive(tmp_path: Path) -> None:
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, tmp_path / "gate", 7)
        until(job.running, "the job")
        first = lease(pool, 2.0)
        while lease_clock() < first + 0.3:
            last = lease(pool, 2.0)
            time.sleep(0.05)
        assert job.running()
        error = job.exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        assert error.exitcode == -signal.SIGKILL
        assert lease_clock() >= last


def test_a_deadline_takes_the_place_of_a_later_one(tmp_path: Path) -> None:
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, tmp_path / "gate")
        until(job.running, "the job")
        lease(pool, LONG)
        lease(pool, 0.1)
        assert isinstance(job.exception(PATIENCE), WorkerDiedError)


def test_a_deadline_in_the_past_kills_one_pools_workers_alone(tmp_path: Path) -> None:
    with JobPool(2, spare_workers=0) as ours, JobPool(1, spare_workers=0) as others:
        files = [tmp_path / name for name in ("first", "second", "other")]
        first, second = (ours.submit(hold_apart, tmp_path / "gate", file) for file in files[:2])
        other = others.submit(hold_apart, tmp_path / "gate", files[2])
        *doomed, theirs = [pids_in(file) for file in files]
        lease(ours, -LONG)
        for job in (first, second):
            assert isinstance(job.exception(PATIENCE), WorkerDiedError)
        until(lambda: all(map(gone, [*doomed[0], *doomed[1]])), "the end of all that is below")
        assert not any(map(gone, theirs))
        (tmp_path / "gate").touch()
        assert other.exception(PATIENCE) is None
        lease(ours, LONG)
        assert ours.submit(abs, -1).result(PATIENCE) == 1


def test_a_worker_that_starts_later_has_the_lease(tmp_path: Path) -> None:
    with JobPool(1, spare_workers=0) as pool:
        deadline = lease(pool, 3.0)
        job = pool.submit(hold, tmp_path / "gate")
        error = job.exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        assert error.exitcode == -signal.SIGKILL
        assert lease_clock() >= deadline


def test_a_guard_that_is_made_anew_has_the_leases(tmp_path: Path) -> None:
    with JobPool(2, spare_workers=0) as pool, JobPool(1) as other:
        job = pool.submit(hold, tmp_path / "gate")
        until(job.running, "the job")
        lease(pool, LONG)
        first = guard_process()
        first.kill()
        assert the_guard._process is not None
        the_guard._process.wait(PATIENCE)
        deadline = lease(pool, 3.0)  # nobody hears that
        assert other.submit(abs, -1).result(PATIENCE) == 1  # by a new worker
        assert guard_process() != first
        assert isinstance(job.exception(PATIENCE), WorkerDiedError)
        assert lease_clock() >= deadline


def test_without_a_lease_the_guard_is_idle(tmp_path: Path) -> None:
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, tmp_path / "gate")
        until(job.running, "the job")
        process = guard_process()
        until(lambda: rests(process), "that it does nothing")
        lease(pool, LONG)
        assert not rests(process)  # the machine may sleep in between
        lease(pool, 0.0)
        assert isinstance(job.exception(PATIENCE), WorkerDiedError)
        until(lambda: rests(process), "that it does nothing after the end of the lease")


# --- the guard ------------------------------------------------------------------------------------


def test_a_lease_is_gone_when_the_guard_has_killed() -> None:
    with echo() as ours, guarding(ours) as guard:
        guard.lease([ours.pid], 0.0)
        until(lambda: gone(ours.pid), "its end")
        assert guard._process is not None
        process = psutil.Process(guard._process.pid)
        until(lambda: rests(process), "that it does nothing")
        guard.signal(-ours.pid, 0)  # it knows the group: its leader is not reaped


def test_a_lease_that_has_ended_does_not_come_back() -> None:
    with echo() as ours, guarding(ours) as guard:
        guard.signal(ours.pid, 0)  # it is there
        assert guard._process is not None
        guard._process.send_signal(signal.SIGSTOP)
        guard.lease([ours.pid], lease_clock())
        guard.lease([ours.pid], lease_clock() + LONG)
        guard._process.send_signal(signal.SIGCONT)
        assert ours.wait(PATIENCE) == -signal.SIGKILL


def test_a_group_that_is_not_known_has_no_lease() -> None:
    with (
        echo() as ours,
        echo() as removed,
        echo() as strange,
        guarding(ours, removed) as guard,
    ):
        guard.lease([removed.pid], lease_clock() + LONG)
        guard.remove(removed.pid)
        guard.lease([removed.pid, strange.pid], 0.0)
        assert guard._link is not None
        guard._link.sendall(b"=%d 0\n=%d 0\n" % (removed.pid, strange.pid))
        let_it_look(guard, ours)
        assert all(map(lives, (ours, removed, strange)))
        guard.lease([ours.pid], 0.0)
        assert ours.wait(PATIENCE) == -signal.SIGKILL


def test_removing_a_group_removes_its_lease() -> None:
    with echo() as ours, echo() as removed, guarding(ours) as guard:
        guard.add(removed.pid)
        end = lease_clock() + 0.3
        guard.lease([removed.pid], end)
        guard.remove(removed.pid)
        guard.add(removed.pid)  # it would be killed as one that is known
        until(lambda: lease_clock() > end, "the deadline")
        let_it_look(guard, ours)
        assert lives(removed)
        guard.remove(removed.pid)


@pytest.mark.parametrize("deadline", [float("inf"), float("nan")])
def test_a_deadline_is_finite(deadline: float) -> None:
    with pytest.raises((OverflowError, ValueError)):
        Guard().lease([1], deadline)


def test_the_clock_counts_sleep_where_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = time.clock_gettime(time.CLOCK_BOOTTIME), lease_clock()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)

    def clock_of(script: str) -> float:
        seconds: float = runpy.run_path(script)["lease_clock"]()
        return seconds

    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 999)  # the system has none
    before, now = time.monotonic(), clock_of(guard_script.__file__)
    assert before <= now <= time.monotonic()
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    before, now = time.monotonic(), clock_of(guard_script.__file__)
    assert before <= now <= time.monotonic()

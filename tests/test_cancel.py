"""`cancel()`: exact, whatever the job is doing, and no neighbour notices."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, be_neighbour, expect, fleet_of, gone, until, write_mark
from sandbox import can_adopt

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PrimitiveJob,
    wait,
)
from primitive_jobs._procs import probe, process
from primitive_jobs._wire.parcel import HAVE_PACKETS

if TYPE_CHECKING:
    from makers import MakePool

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def read_pids(folder: Path, names: tuple[str, ...]) -> list[int]:
    until(lambda: all((folder / name).exists() for name in names), f"marks {names}")
    return [int((folder / name).read_text()) for name in names]


@contextmanager
def neighbours(pool: JobPool, folder: Path) -> Iterator[None]:
    """Three jobs that run meanwhile in the same pool and must not notice anything."""
    jobs = [pool.submit(be_neighbour, folder, number) for number in range(3)]
    pids = read_pids(folder, tuple(f"neighbour{number}" for number in range(3)))
    assert [job.pid for job in jobs] == pids
    yield
    assert [job.status() for job in jobs] == [JobStatus.RUNNING] * 3
    assert [job.pid for job in jobs] == pids
    write_mark(folder, "release")
    assert [job.result(PATIENCE) for job in jobs] == [(pid, n * n) for n, pid in enumerate(pids)]


# --- what a job may be doing ----------------------------------------------------------------------


def spin(folder: Path) -> None:
    write_mark(folder, "worker", os.getpid())
    while True:
        pass


def stay(folder: Path) -> None:
    """The same, and leave the machine to the other tests."""
    write_mark(folder, "worker", os.getpid())
    while True:  # a signal right before a long sleep would be noticed after it
        time.sleep(0.005)


def hold_the_gil(folder: Path) -> None:
    write_mark(folder, "worker", os.getpid())
    ctypes.PyDLL(None).sleep(1000)  # which a signal ends
    write_mark(folder, "went on", os.getpid())


def ignore_sigterm(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay(folder)


def with_forked_child(folder: Path) -> None:
    if os.fork() == 0:
        write_mark(folder, "child", os.getpid())
        while True:
            time.sleep(1)
    stay(folder)


def start_sleeper(folder: Path, *, own_session: bool) -> None:
    code = "import time\nwhile True: time.sleep(1)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=own_session)
    write_mark(folder, "child", child.pid)


def with_subprocess(folder: Path) -> None:
    start_sleeper(folder, own_session=False)
    stay(folder)


def with_child_in_own_session(folder: Path) -> None:
    start_sleeper(folder, own_session=True)
    stay(folder)


def with_orphaned_grandchild(folder: Path) -> None:
    """The process between the two has ended: only the worker's being a subreaper finds it."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            write_mark(folder, "child", os.getpid())
            while True:
                time.sleep(1)
        os._exit(0)
    os.waitpid(pid, 0)
    stay(folder)


CASES: tuple[tuple[Callable[[Path], None], tuple[str, ...], float], ...] = (
    (spin, ("worker",), 0.0),
    (spin, ("worker",), 5.0),
    (hold_the_gil, ("worker",), 0.0),
    (hold_the_gil, ("worker",), 0.2),
    (ignore_sigterm, ("worker",), 0.0),
    (ignore_sigterm, ("worker",), 0.2),
    (with_forked_child, ("worker", "child"), 0.0),
    (with_subprocess, ("worker", "child"), 0.0),
    (with_child_in_own_session, ("worker", "child"), 0.0),
    (with_child_in_own_session, ("worker", "child"), 0.2),
    (with_orphaned_grandchild, ("worker", "child"), 0.0),
)


@pytest.mark.local
def test_a_running_job_and_all_below_it_are_gone_when_cancel_returns(
    make_pool: MakePool, marks: Path
) -> None:
    with make_pool(max_workers=4) as pool, neighbours(pool, marks):
        for number, (function, names, grace) in enumerate(CASES):
            if function is with_orphaned_grandchild and not can_adopt():
                continue  # nobody can find it
            case = f"{function.__name__}, grace {grace}"
            folder = marks / str(number)
            folder.mkdir()
            job = pool.submit(function, folder)
            pids = read_pids(folder, names)
            assert job.pid == pids[0], case
            assert not any(map(gone, pids)), case

            assert job.cancel(grace=grace) is True, case
            assert [pid for pid in pids if not gone(pid)] == [], case

            assert job.status() is JobStatus.CANCELLED, case
            assert job.pid is None, case
            with pytest.raises(JobCancelledError):
                job.result()
            # Its place is taken by a new worker.
            assert pool.submit(os.getpid).result(PATIENCE) not in pids, case


def test_a_queued_job_never_starts(make_pool: MakePool, marks: Path) -> None:
    with make_pool(max_workers=1) as pool:
        first = pool.submit(be_neighbour, marks, 0)
        read_pids(marks, ("neighbour0",))
        queued = pool.submit(write_mark, marks, "started")
        until(lambda: queued.status() is JobStatus.QUEUED, "QUEUED")
        assert queued.cancel() is True
        assert queued.status() is JobStatus.CANCELLED
        write_mark(marks, "release")
        assert first.result(PATIENCE)[1] == 0
        assert pool.submit(abs, -3).result(PATIENCE) == 3  # later than the other would have been
    assert not (marks / "started").exists()
    assert JobStatus.RUNNING not in [status for status, _ in queued.history()]


# --- grace ----------------------------------------------------------------------------------------


def clean_up(folder: Path) -> None:
    try:
        stay(folder)
    finally:
        write_mark(folder, "cleaned")


def note_sigterm(folder: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: write_mark(folder, "told"))
    stay(folder)


def survive(folder: Path) -> str:
    try:
        stay(folder)
    except SystemExit:
        return "returned in time"
    return "never"


@pytest.mark.local
def test_in_the_grace_finally_blocks_run(make_pool: MakePool, marks: Path) -> None:
    with make_pool(max_workers=1) as pool:
        job = pool.submit(clean_up, marks)
        (pid,) = read_pids(marks, ("worker",))
        assert job.cancel(grace=PATIENCE) is True
        assert gone(pid)
    assert (marks / "cleaned").exists()
    assert job.status() is JobStatus.CANCELLED


def test_without_grace_nothing_of_the_job_runs_any_more(make_pool: MakePool, marks: Path) -> None:
    with make_pool(max_workers=1) as pool:
        job = pool.submit(clean_up, marks)
        read_pids(marks, ("worker",))
        assert job.cancel() is True
    assert not (marks / "cleaned").exists()


def test_a_job_that_returns_within_the_grace_is_done(make_pool: MakePool, marks: Path) -> None:
    with make_pool(max_workers=1) as pool:
        job = pool.submit(survive, marks)
        read_pids(marks, ("worker",))
        assert job.cancel(grace=PATIENCE) is False
        assert job.status() is JobStatus.DONE
        assert job.result() == "returned in time"


@pytest.mark.local
@pytest.mark.parametrize("graces", [(600.0, 0.2), (0.5, 600.0)])
def test_of_two_cancels_the_earlier_deadline_counts(
    make_pool: MakePool, marks: Path, graces: tuple[float, float]
) -> None:
    answers: list[bool] = []
    with make_pool(max_workers=1) as pool:
        job = pool.submit(ignore_sigterm, marks)
        (pid,) = read_pids(marks, ("worker",))
        threads = [
            threading.Thread(target=lambda g: answers.append(job.cancel(grace=g)), args=(grace,))
            for grace in graces
        ]
        for thread in threads:
            thread.start()
        assert job.wait(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
        assert gone(pid)
    assert answers == [True, True]


def end_by_exception(pool: JobPool, job: PrimitiveJob[Any]) -> None:
    with pytest.raises(LookupError), pool:
        raise LookupError


WAYS: dict[str, Callable[[JobPool, PrimitiveJob[Any]], object]] = {
    "job.cancel": lambda pool, job: job.cancel(),
    "cancel_all": lambda pool, job: pool.cancel_all(),
    "shutdown": lambda pool, job: pool.shutdown(cancel=True),
    "with": end_by_exception,
    "job.cancel without": lambda pool, job: job.cancel(grace=0),
    "cancel_all without": lambda pool, job: pool.cancel_all(grace=0),
    "timeout": lambda pool, job: job.wait(PATIENCE),
}


@pytest.mark.local
@pytest.mark.parametrize("way", WAYS)
def test_the_grace_of_a_job(make_pool: MakePool, marks: Path, way: str) -> None:
    with make_pool(max_workers=1) as pool:
        # So that the next one is handed over, to a worker that has loaded what it needs.
        pool.submit(write_mark, marks, "warm").result(PATIENCE)
        options: dict[str, Any] = {"timeout": 1.0} if way == "timeout" else {}
        job = pool.options(grace=PATIENCE, **options).submit(clean_up, marks)
        (pid,) = read_pids(marks, ("worker",))
        WAYS[way](pool, job)
        assert job.status().name == ("ERROR" if options else "CANCELLED")
        assert gone(pid)
    assert (marks / "cleaned").exists() == ("without" not in way)


@pytest.mark.local
def test_a_job_that_returns_in_the_grace_of_its_timeout_has_passed_it(
    make_pool: MakePool, marks: Path
) -> None:
    with make_pool(max_workers=1) as pool:
        job = pool.options(timeout=1.0, grace=PATIENCE).submit(survive, marks)
        (pid,) = read_pids(marks, ("worker",))
        error = job.exception(PATIENCE)
        assert isinstance(error, JobTimeoutError)
        assert "timeout of 1 s" in str(error)
        assert error.stack is None  # where it was, nobody asked before it ended
        assert gone(pid)
        assert pool.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.local
def test_a_job_that_does_not_end_in_the_grace_of_its_timeout_is_killed(
    make_pool: MakePool, marks: Path
) -> None:
    with make_pool(max_workers=1) as pool:
        job = pool.options(timeout=0.5, grace=0.2).submit(ignore_sigterm, marks)
        (pid,) = read_pids(marks, ("worker",))
        error = job.exception(PATIENCE)
        assert isinstance(error, JobTimeoutError)
        assert "ignore_sigterm" in str(error.stack)
        assert gone(pid)


def test_a_cancel_in_the_grace_of_a_timeout(make_pool: MakePool, marks: Path) -> None:
    with make_pool(max_workers=1) as pool:
        job = pool.options(timeout=0.5, grace=600).submit(note_sigterm, marks)
        read_pids(marks, ("worker",))
        until((marks / "told").exists, "its SIGTERM")
        assert job.running()
        assert job.cancel(grace=0) is False
        assert isinstance(job.exception(), JobTimeoutError)


ENDS = {
    "the end of the script": "",
    "a SIGTERM that it handles": """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.kill(os.getpid(), signal.SIGTERM)
""",
}


@pytest.mark.local
@pytest.mark.parametrize("end", ENDS)
def test_at_exit_each_job_has_its_grace(tmp_path: Path, end: str) -> None:
    source = f"""
import os, sys, time
from pathlib import Path
from primitive_jobs import JobPool

folder = Path(__file__).parent

def work():
    try:
        (folder / "begun").touch()
        while True:  # a signal right before a long sleep would be noticed after it
            time.sleep(0.01)
    finally:
        print("cleaned", flush=True)

pool = JobPool(1, on_exit="cancel")
pool.options(grace=60).submit(work)
while not (folder / "begun").exists():
    time.sleep(0.005)
{ENDS[end]}
"""
    expect(tmp_path, source, "cleaned\n", status=143 if ENDS[end] else 0)


def test_a_second_shutdown_leaves_no_grace(make_pool: MakePool, marks: Path) -> None:
    with make_pool(max_workers=1) as pool:
        job = pool.options(grace=600).submit(ignore_sigterm, marks)
        read_pids(marks, ("worker",))
        pool.shutdown(wait=False, cancel=True)
        pool.shutdown(wait=False)
        assert not job.wait(0.05)
        pool.shutdown(cancel=True)
        assert job.cancelled()


# --- jobs that are final, or not submitted --------------------------------------------------------


def test_cancel_of_a_final_job_tells_what_it_is(make_pool: MakePool) -> None:
    def fail() -> None:
        raise ValueError

    with make_pool(max_workers=1) as pool:
        done, failed = pool.submit(abs, -1), pool.submit(fail)
        assert done.result(PATIENCE) == 1
        assert failed.wait(PATIENCE)
        assert (done.cancel(), failed.cancel()) == (False, False)
        assert (done.status(), failed.status()) == (JobStatus.DONE, JobStatus.ERROR)
        cancelled = pool.submit(time.sleep, 1000)
        assert cancelled.cancel() is True
        assert cancelled.cancel() is True
        assert cancelled.cancel(grace=1) is True
        assert done.result() == 1


def test_a_job_cancelled_before_submit_never_runs(make_pool: MakePool, marks: Path) -> None:
    job = PrimitiveJob(write_mark, marks, "started")
    assert job.cancel() is True
    assert job.status() is JobStatus.CANCELLED
    with make_pool(max_workers=1) as pool:
        with pytest.raises(JobError):
            job.submit(pool)
        with pytest.raises(JobCancelledError):
            job.result()
        assert pool.submit(abs, -1).result(PATIENCE) == 1
    assert not (marks / "started").exists()
    assert job.status() is JobStatus.CANCELLED


class SlowToPickle:
    """Blocks its serialization until it is told to go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        self.reached.set()
        assert self.go_on.wait(PATIENCE)
        return int, (7,)


@pytest.mark.parametrize("cancelled", [True, False])
def test_cancel_while_validating(make_pool: MakePool, marks: Path, cancelled: bool) -> None:
    slow = SlowToPickle()
    with make_pool(max_workers=1) as pool:
        job: PrimitiveJob[None] = PrimitiveJob(write_mark, marks, "started", slow)
        thread = threading.Thread(target=job.submit, args=(pool,))
        thread.start()
        try:
            assert slow.reached.wait(PATIENCE)
            assert job.status() is JobStatus.VALIDATING
            if cancelled:
                assert job.cancel() is True
                assert job.status() is JobStatus.CANCELLED
        finally:
            slow.go_on.set()
            thread.join(PATIENCE)
        assert not thread.is_alive()
        assert job.wait(PATIENCE)
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        assert pool.jobs() == []
    assert (marks / "started").exists() is not cancelled
    assert job.cancelled() is cancelled


# --- many at once ---------------------------------------------------------------------------------


def test_cancel_from_many_threads_at_once(make_pool: MakePool, marks: Path) -> None:
    count = 16
    barrier = threading.Barrier(count)
    with make_pool(max_workers=1) as pool:
        for _ in range(3):
            job = pool.submit(spin, marks)
            answers: list[bool] = []

            def cancel(job: PrimitiveJob[None] = job, answers: list[bool] = answers) -> None:
                barrier.wait(PATIENCE)
                answers.append(job.cancel())

            read_pids(marks, ("worker",))
            (marks / "worker").unlink()
            threads = [threading.Thread(target=cancel) for _ in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert answers == [True] * count
            assert job.status() is JobStatus.CANCELLED


def test_in_a_storm_of_cancels_every_answer_is_true(make_pool: MakePool, marks: Path) -> None:
    go = marks / "go"

    def work(number: int, seconds: float) -> int:
        while number < 4 and not go.exists():  # till the last one is cancelled, on all workers
            time.sleep(0.002)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return number * number

    rng = random.Random(20)
    answers: dict[int, bool] = {}
    with make_pool(max_workers=4) as pool:
        jobs = [pool.submit(work, n, rng.uniform(0, 0.003)) for n in range(150)]
        moments = {n: rng.uniform(0, 0.6) for n in range(150)}
        order = sorted(moments, key=moments.__getitem__)
        began = time.monotonic()

        def cancel(numbers: list[int]) -> None:
            for number in numbers:
                time.sleep(max(0.0, began + moments[number] - time.monotonic()))
                answers[number] = jobs[number].cancel()

        order.remove(149)
        cancel([149])
        go.touch()
        assert answers[149]
        threads = [threading.Thread(target=cancel, args=(order[k::3],)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not wait(jobs, PATIENCE).not_done

        assert len(answers) == len(jobs)
        for number, job in enumerate(jobs):
            assert job.status() in (JobStatus.DONE, JobStatus.CANCELLED)
            assert answers[number] is (job.status() is JobStatus.CANCELLED)
            if job.done():
                assert job.result() == number * number
        assert pool.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.local
@pytest.mark.parametrize("grace", [0.0, 0.2])
def test_cancel_all(make_pool: MakePool, marks: Path, grace: float) -> None:
    with make_pool(max_workers=2) as pool:
        finished = pool.submit(abs, -1)
        assert finished.result(PATIENCE) == 1
        jobs: list[PrimitiveJob[Any]]
        jobs = [pool.submit(be_neighbour, marks, number) for number in range(2)]
        pids = read_pids(marks, ("neighbour0", "neighbour1"))
        jobs += [pool.submit(write_mark, marks, "started") for _ in range(20)]
        pool.cancel_all(grace=grace)
        assert {job.status() for job in jobs} == {JobStatus.CANCELLED}
        assert all(map(gone, pids))
        assert pool.jobs() == []
        assert finished.status() is JobStatus.DONE
        assert pool.submit(abs, -2).result(PATIENCE) == 2
    assert not (marks / "started").exists()


@pytest.mark.local
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_those_that_wait_for_their_end_hold_still(
    make_pool: MakePool, marks: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Else many that compute would hold up each other's death."""
    really_hold, really_kill = process.WorkerProcess.hold_still, process.WorkerProcess.kill
    held: list[int] = []
    ended: list[int] = []
    states: list[str] = []

    def hold_still(self: process.WorkerProcess, **given: Any) -> None:
        held.append(self.pid)
        really_hold(self, **given)

    def kill(self: process.WorkerProcess) -> bool:
        if self.pid in ended:
            return really_kill(self)
        if ended and len(held) < 3:
            return False  # the last order came while the first one was held up: it is taken first
        ended.append(self.pid)
        if len(ended) == 1:
            orders = fleet_of(pool)._reaper._orders
            until(lambda: len(held) + orders.qsize() == 3, "the other orders")
        if len(ended) == 2:
            (last,) = {*pids} - {*ended}
            still = {psutil.STATUS_STOPPED, psutil.STATUS_SLEEPING}
            seen = [""]  # each once: a moment later it may be another one

            def holds_still() -> bool:
                seen.append(psutil.Process(last).status())
                return seen[-1] in still

            with suppress(AssertionError):  # it is to be killed all the same
                until(holds_still, "the last one to hold still")
            states.append(seen[-1])
        return really_kill(self)

    with make_pool(3, spare_workers=0) as pool:
        warm = [pool.submit(be_neighbour, marks, number) for number in range(3)]
        pids = read_pids(marks, ("neighbour0", "neighbour1", "neighbour2"))
        write_mark(marks, "release")
        wait(warm, PATIENCE)
        monkeypatch.setattr(process.WorkerProcess, "hold_still", hold_still)
        monkeypatch.setattr(process.WorkerProcess, "kill", kill)
        limit = 0.5 if how == "timeout" else None
        jobs = [pool.options(timeout=limit).submit(spin, marks) for _ in range(3)]
        if how == "cancel":
            until(lambda: all(job.running() for job in jobs), "RUNNING")
            pool.cancel_all()
        expected = JobStatus.CANCELLED if how == "cancel" else JobStatus.ERROR
        assert wait(jobs, PATIENCE).not_done == set()
        assert {job.status() for job in jobs} == {expected}
        monkeypatch.undo()
    assert states == [psutil.STATUS_STOPPED if how == "cancel" else psutil.STATUS_SLEEPING]


# --- the timeout option ---------------------------------------------------------------------------


@pytest.mark.local
def test_a_job_that_passes_its_timeout_is_killed(make_pool: MakePool, marks: Path) -> None:
    with make_pool(max_workers=4) as pool, neighbours(pool, marks):
        for function in (spin, hold_the_gil, ignore_sigterm):
            folder = marks / function.__name__
            folder.mkdir()
            # A worker that has loaded what the job needs: that may take longer than 0.5 s.
            pool.submit(load_this_module).result(PATIENCE)
            job = pool.options(timeout=0.5).submit(function, folder)
            (pid,) = read_pids(folder, ("worker",))
            with pytest.raises(JobTimeoutError, match=r"timeout of 0\.5 s") as caught:
                job.result(PATIENCE)
            error = caught.value
            assert error.stack is not None
            assert f" in {function.__name__}\n" in error.stack
            assert str(error).endswith(error.stack)
            assert pickle.loads(pickle.dumps(error)).stack == error.stack
            assert gone(pid)
            assert not (folder / "went on").exists()
            assert job.status() is JobStatus.ERROR
            assert job.cancel() is False
            assert isinstance(job.exception(), TimeoutError)


def load_this_module() -> None:
    """Have a worker import all that the jobs below need."""


def stop_itself(folder: Path) -> None:
    write_mark(folder, "worker", os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)


def block_all_signals(folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    stay(folder)


def ignore_all_signals(folder: Path) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    stay(folder)


def be_woken_for_ever(folder: Path) -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    stay(folder)


@pytest.mark.local
def test_a_job_that_signals_wake_up_tells_its_stack(
    one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_STACK_TIME", 1000.0)
    error = one.options(timeout=0.3).submit(be_woken_for_ever, marks).exception(PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert error.stack


def return_when_asked(folder: Path) -> int:
    class Asked(Exception):
        pass

    def raise_it(*_: object) -> NoReturn:
        raise Asked

    signal.signal(signal.SIGRTMAX, raise_it)
    try:
        stay(folder)
    except Asked:
        pass
    return 7


def test_what_the_asking_for_a_stack_brings_about_does_not_count(one: JobPool, marks: Path) -> None:
    one.submit(load_this_module).result(PATIENCE)
    job = one.options(timeout=0.5).submit(return_when_asked, marks)
    error = job.exception(PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert job.status() is JobStatus.ERROR


def block_until_asked(folder: Path) -> None:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMAX])
    write_mark(folder, "worker", os.getpid())
    while signal.SIGRTMAX not in signal.sigpending():
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGRTMAX])


@pytest.mark.local
def test_the_stack_is_that_of_the_main_thread(
    one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another one could take the signal, as while a thread is being started."""
    really_look = probe.signal_status

    def look(pid: int, number: int) -> Any:
        seen = really_look(pid, number)
        return seen and seen._replace(blocked=False)  # as it was a moment before

    monkeypatch.setattr(process, "signal_status", look)
    one.submit(load_this_module).result(PATIENCE)
    error = one.options(timeout=0.5).submit(block_until_asked, marks).exception(PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert error.stack is not None
    assert " in block_until_asked\n" in error.stack


def find_page() -> int:
    for found in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself
            if "primitive_jobs-page" in str(found.readlink()):
                return int(found.name)
    raise AssertionError("it has no page")


def write_in_two_parts(folder: Path) -> None:
    page = find_page()

    def answer(*_: object) -> None:
        os.write(page, b"first\n")
        end = time.monotonic() + 0.02
        while time.monotonic() < end:  # as if it had to wait for a processor
            pass
        os.write(page, b"last\n")
        time.sleep(1000)

    signal.signal(signal.SIGRTMAX, answer)
    stay(folder)


@pytest.mark.local
@pytest.mark.skipif(not HAVE_PACKETS, reason="its page has no name here")
def test_a_stack_is_waited_for_until_it_is_whole(
    one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_STACK_REST", 1000.0)
    monkeypatch.setattr(process, "_STACK_TIME", 1000.0)
    one.submit(load_this_module).result(PATIENCE)
    error = one.options(timeout=0.5).submit(write_in_two_parts, marks).exception(PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert error.stack == "first\nlast"


def crash_when_asked(folder: Path, tell: bool) -> None:
    if not tell:
        faulthandler.disable()
    os.chdir(folder)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGRTMAX, ctypes.cast(libc.abort, ctypes.c_void_p))
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    write_mark(folder, "escapee", child.pid)
    stay(folder)


@pytest.mark.local
@pytest.mark.parametrize("tell", [True, False])
def test_a_crash_over_the_stack_leaves_nothing(one: JobPool, marks: Path, tell: bool) -> None:
    """CPython may crash while it tells one."""
    one.submit(load_this_module).result(PATIENCE)
    error = one.options(timeout=1).submit(crash_when_asked, marks, tell).exception(PATIENCE)
    (pid,) = read_pids(marks, ("escapee",))
    escaped = not gone(pid)
    if escaped:
        os.kill(pid, signal.SIGKILL)
    assert not escaped
    assert isinstance(error, JobTimeoutError)
    assert error.stack is None, "the job has not crashed"
    assert not list(marks.glob("core*"))


def answer_late(folder: Path) -> None:
    signal.signal(signal.SIGRTMAX, lambda *_: write_mark(folder, "asked"))
    while not (folder / "answer").exists():
        pass
    time.sleep(1000)


@pytest.mark.local
def test_a_stack_that_does_not_come_holds_up_no_other_kill(
    two: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_STACK_TIME", 20.0)
    two.submit(load_this_module).result(PATIENCE)
    late = two.options(timeout=1).submit(answer_late, marks)
    other = two.submit(spin, marks)
    until((marks / "asked").exists, "the asking")
    assert other.cancel()
    assert late.running()
    write_mark(marks, "answer")
    assert isinstance(late.exception(PATIENCE), JobTimeoutError)


@pytest.mark.local
@pytest.mark.parametrize("function", [stop_itself, block_all_signals, ignore_all_signals])
def test_a_job_that_tells_no_stack_is_not_waited_for(
    function: Callable[[Path], None], one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_STACK_TIME", 1000.0)
    # A stack there would be while the worker still loads what the job needs, that is, this module.
    one.submit(load_this_module).result(PATIENCE)
    job = one.options(timeout=0.5).submit(function, marks)
    error = job.exception(PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert error.stack is None
    assert str(error).endswith("and was killed")


def test_the_timeout_counts_from_running(make_pool: MakePool, marks: Path) -> None:
    with make_pool(max_workers=1) as pool:
        first: PrimitiveJob[Any] = pool.submit(be_neighbour, marks, 0)
        read_pids(marks, ("neighbour0",))
        second = pool.options(timeout=0.5).submit(abs, -5)
        assert not second.wait(0.7)  # its time has not begun
        write_mark(marks, "release")
        assert second.result(PATIENCE) == 5
        assert first.done()

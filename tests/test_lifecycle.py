"""Programs as a whole: how they start, how they end, and that nothing is left of them."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import loky
import psutil
import pytest
from helpers import PATIENCE, Script, expect, marked, script, until, wait_for

from primitive_jobs import (
    JobPool,
    JobStatus,
    PoolClosedError,
    PrimitiveJob,
    checkpoint,
    default_pool,
    report,
)
from primitive_jobs._engine import lifetime
from primitive_jobs._engine.engine import Engine
from primitive_jobs._procs.guardian import the_guard

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


# --- running scripts ------------------------------------------------------------------------------


@pytest.fixture(params=["file", "-c", "stdin"])
def how(request: pytest.FixtureRequest) -> str:
    """How a script is given to Python."""
    return str(request.param)


# --- plain scripts --------------------------------------------------------------------------------


def test_a_script_needs_no_guard(tmp_path: Path, how: str) -> None:
    source = """
        from primitive_jobs import JobPool, run

        class Point:
            def __init__(self, x):
                self.x = x
            def double(self):
                return Point(2 * self.x)

        class Oops(Exception):
            pass

        def fail():
            raise Oops("on purpose")

        offset = 5
        def add(n):
            return n + offset

        def make(k):
            return lambda n: n * k

        print(run(lambda: 6 * 7).result())
        print(run(add, 1).result())
        print(run(make(3), 4).result())
        point = run(Point(4).double).result()
        print(type(point) is Point, point.x)
        try:
            run(fail).result()
        except Oops as error:
            print(error)
        with JobPool(max_workers=2) as pool:
            print(list(pool.map(add, range(4))))
    """
    output = "42\n6\n12\nTrue 8\non purpose\n[5, 6, 7, 8]\n"
    expect(tmp_path, source, output, how=how)


def test_a_script_that_ends_waits_for_its_jobs(tmp_path: Path) -> None:
    source = f"""
        import pathlib, time
        from primitive_jobs import JobPool, run

        folder = pathlib.Path({str(tmp_path)!r})
        def work(n):
            time.sleep(0.2)
            (folder / f"done{{n}}").touch()

        jobs = [run(work, n) for n in range(4)]
        pool = JobPool(1)
        pool.submit(work, 4)
        pool.submit(work, 5)
        print("end")
    """
    expect(tmp_path, source, "end\n")
    assert sorted(path.name for path in tmp_path.glob("done*")) == [f"done{n}" for n in range(6)]


def test_sys_exit_waits_and_keeps_its_status(tmp_path: Path) -> None:
    source = f"""
        import pathlib, sys, time
        from primitive_jobs import run

        def work():
            time.sleep(0.2)
            pathlib.Path({str(tmp_path / "done")!r}).touch()

        run(work)
        sys.exit(3)
    """
    expect(tmp_path, source, "", status=3)
    assert (tmp_path / "done").exists()


def test_a_strict_interpreter_has_nothing_to_say(tmp_path: Path) -> None:
    source = """
        import time
        from primitive_jobs import JobPool, as_completed, run, wait

        with JobPool(max_workers=2) as pool:
            print(sorted(job.result() for job in as_completed([pool.submit(abs, -1)])))
            print(sum(pool.map(abs, range(-10, 0), chunksize=3)))
            job = pool.submit(time.sleep, 1000)
            while not job.running():
                time.sleep(0.001)
            print(job.cancel())
        job = run(bytes, 1_000_000)
        print(len(job.result()))
        JobPool(1).submit(abs, -1)
    """
    expect(tmp_path, source, "[1]\n55\nTrue\n1000000\n", flags="-X dev -W error")


@pytest.mark.parametrize("stream", ["None", "closed"])
def test_without_standard_output(tmp_path: Path, stream: str) -> None:
    source = f"""
        import os, sys
        from primitive_jobs import run

        if {stream == "None"}:
            sys.stdout = None  # as Python itself has it where there is none
        else:
            sys.stdout = open(os.devnull, "w")
            sys.stdout.close()
        os.write(1, b"%d\\n" % run(abs, -1).result(20))
        sys.stdout = sys.__stdout__
    """
    expect(tmp_path, source, "1\n")


def test_a_fork_of_the_program_has_a_pool_of_its_own(tmp_path: Path) -> None:
    source = """
        import os, sys, time, warnings
        from pathlib import Path
        from primitive_jobs import JobError, run

        # Python 3.12 and later warn of every fork of a program with threads.
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        warm = run(os.getpid).result()
        go = Path(__file__).with_name("go")
        def hold():
            while not go.exists():
                time.sleep(0.001)
            return "parent's"
        mine = run(hold)
        child = os.fork()
        if child == 0:
            assert run(lambda: "child's").result(20) == "child's"
            assert run(os.getpid).result(20) != warm
            try:
                mine.result(20)
            except JobError:
                sys.exit(7)
            sys.exit(8)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        go.touch()
        print(mine.result(20), run(abs, -3).result(20))
    """
    expect(tmp_path, source, "7\nparent's 3\n")


# --- programs that are interrupted or killed ------------------------------------------------------

BLOCKED = """
import os, pathlib, sys, time
if len(sys.argv) > 2:  # a terminal: a session's leader that opens it has it as its own
    os.open(sys.argv[2], os.O_RDWR)
from primitive_jobs import run

def forever(folder, n):
    import os, subprocess
    if os.fork() == 0:
        while True:
            time.sleep(1)
    pathlib.Path(folder, f"busy{n}").touch()
    while True:
        time.sleep(0.01)

jobs = [run(forever, sys.argv[1], n) for n in range(2)]
run(abs, 1)
jobs[0].result()
"""


@contextlib.contextmanager
def blocked(folder: Path, *terminal: str, new_session: bool = False) -> Iterator[Script]:
    """A script that waits for jobs that never end and have children."""
    # Two CPUs at most, whatever the machine has.
    busy = min(2, loky.cpu_count())
    with script(
        "-c",
        BLOCKED,
        str(folder),
        *terminal,
        env={"LOKY_MAX_CPU_COUNT": "2"},
        new_session=new_session,
    ) as started:
        until(lambda: len(list(folder.glob("busy*"))) >= busy, "busy jobs")
        assert len(marked(started.marker)) > busy
        yield started


def assert_one_interrupt(started: Script, began: float) -> None:
    status, out, err = started.finish()
    assert time.monotonic() - began < 3
    assert status == -signal.SIGINT
    assert out == ""
    assert err.count("Traceback (most") == 1
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    started.assert_nothing_left()


def test_ctrl_c_to_the_program(marks: Path) -> None:
    with blocked(marks) as started:
        began = time.monotonic()
        started.process.send_signal(signal.SIGINT)
        assert_one_interrupt(started, began)


def test_ctrl_c_to_the_whole_group(marks: Path) -> None:
    with blocked(marks, new_session=True) as started:
        began = time.monotonic()
        os.killpg(started.process.pid, signal.SIGINT)
        assert_one_interrupt(started, began)


def test_ctrl_c_on_a_terminal(marks: Path) -> None:
    ours, theirs = os.openpty()
    try:
        with blocked(marks, os.ttyname(theirs), new_session=True) as started:
            began = time.monotonic()
            os.write(ours, b"\x03")
            assert_one_interrupt(started, began)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_program_leaves_nothing(marks: Path, number: signal.Signals) -> None:
    with blocked(marks) as started:
        started.process.send_signal(number)
        assert started.process.wait(PATIENCE) == -number
        started.assert_nothing_left()
        assert started.finish() == (-number, "", "")


def interrupt_after(real: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    return function


@pytest.mark.parametrize("where", ["the end of the program knows of it", "its threads run"])
def test_ctrl_c_while_a_pool_is_made(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    before, users = set(threading.enumerate()), the_guard._users.copy()
    with monkeypatch.context() as patch:
        if where == "its threads run":
            real = Engine._start_threads
            patch.setattr(Engine, "_start_threads", interrupt_after(real))
        else:
            patch.setattr(lifetime.pools, "add", interrupt_after(lifetime.pools.add))
        with pytest.raises(KeyboardInterrupt):
            JobPool(1)
    gc.collect()
    try:
        until(lambda: set(threading.enumerate()) <= before, "the end of its threads")
        assert the_guard._users == users
    finally:  # or every later test fails
        for engine in list(lifetime.pools):
            engine.shut_down(cancel=True)
            engine.join()
        the_guard._users = users


def test_a_thread_that_begins_after_its_pool_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes when it has been started, but does not run yet: nobody joins it."""
    users, late = the_guard._users.copy(), []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if "spawner" in thread.name:
            late.append(thread)
            raise KeyboardInterrupt
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            JobPool(1)
    (thread,) = late
    start(thread)
    thread.join(PATIENCE)
    try:
        assert the_guard._users == users, "or the guard would never go"
    finally:
        the_guard._users = users


# --- the life of a pool ---------------------------------------------------------------------------


def test_a_dropped_pool_finishes_its_jobs(marks: Path) -> None:
    before = set(threading.enumerate())
    pool = JobPool(max_workers=1)
    jobs = [pool.submit(wait_for, marks / "release"), pool.submit(wait_for, marks / "release")]
    threads = set(threading.enumerate()) - before
    assert threads
    del pool
    (marks / "release").touch()
    assert [job.result(PATIENCE) for job in jobs] == ["release"] * 2
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_shutdown_without_waiting(marks: Path) -> None:
    before = set(threading.enumerate())
    pool = JobPool(max_workers=1)
    first, second = pool.submit(wait_for, marks / "release"), pool.submit(abs, -2)
    threads = set(threading.enumerate()) - before
    pool.shutdown(wait=False)
    assert not first.in_final_state()
    assert not second.in_final_state()
    with pytest.raises(PoolClosedError):
        pool.submit(abs, -1)
    (marks / "release").touch()
    assert (first.result(PATIENCE), second.result(PATIENCE)) == ("release", 2)
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_a_second_shutdown_may_escalate(marks: Path) -> None:
    pool = JobPool(max_workers=1)
    job = pool.submit(wait_for, marks / "never")
    queued = pool.submit(abs, -1)
    until(job.running, "RUNNING")
    pool.shutdown(wait=False)
    pool.shutdown(cancel=True)
    assert (job.status(), queued.status()) == (JobStatus.CANCELLED, JobStatus.CANCELLED)


def test_shutdown_waits(marks: Path) -> None:
    before = set(threading.enumerate())
    pool = JobPool(max_workers=1)
    jobs = [pool.submit(time.sleep, 0.1) for _ in range(3)]
    pool.shutdown()
    assert [job.status() for job in jobs] == [JobStatus.DONE] * 3
    assert set(threading.enumerate()) == before
    with pytest.raises(PoolClosedError):
        pool.submit(abs, -1)
    job = PrimitiveJob(abs, -1)
    with pytest.raises(PoolClosedError):
        job.submit(pool)


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_from_a_callback(marks: Path, cancel: bool) -> None:
    returned = threading.Event()
    pool = JobPool(max_workers=2)
    other = pool.submit(wait_for, marks / "release")
    until(other.running, "RUNNING")

    def shut_down(job: PrimitiveJob[int]) -> None:
        if not cancel:
            (marks / "release").touch()
        pool.shutdown(cancel=cancel)
        returned.set()

    job = pool.submit(abs, -1)
    job.add_done_callback(shut_down)
    assert job.result(PATIENCE) == 1
    assert returned.wait(PATIENCE)
    assert other.status() is (JobStatus.CANCELLED if cancel else JobStatus.DONE)
    with pytest.raises(PoolClosedError):
        pool.submit(abs, -1)


def test_the_default_pool_is_fresh_after_its_shutdown() -> None:
    first = default_pool()
    assert default_pool() is first
    first.shutdown()
    assert default_pool() is not first
    assert default_pool().submit(abs, -1).result(PATIENCE) == 1


def test_an_idle_worker_leaves() -> None:
    with JobPool(max_workers=2, idle_timeout=0.2) as pool:
        jobs = [pool.submit(os.getpid) for _ in range(4)]
        pids = {job.result(PATIENCE) for job in jobs}
        workers = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                workers.append(psutil.Process(pid))
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
        assert not alive
        assert pool.submit(os.getpid).result(PATIENCE) not in pids


class Counted(logging.Handler):
    """A handler that counts."""

    records = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.records += 1


def switches(threads: list[Path]) -> int:
    """How often these threads went to sleep so far."""
    total = 0
    for thread in threads:
        text = (thread / "status").read_text()
        (line,) = (x for x in text.splitlines() if x.startswith("voluntary_ctxt_switches"))
        total += int(line.split()[1])
    return total


def print_and_report(number: int) -> int:
    print("printed", number)
    report(0.5, "half")
    checkpoint(number, force=True)
    logging.getLogger("tests.idle").warning("logged %d", number)
    return number


@pytest.mark.parametrize("insight", [False, True], ids=["plain", "all of insight"])
def test_an_idle_pool_does_not_wake_up(insight: bool, in_sight: None) -> None:
    before = set(threading.enumerate())
    handled = Counted()
    logging.getLogger("tests.idle").addHandler(handled)
    options: dict[str, Any] = {"output": "capture", "forward_logs": True} if insight else {}
    with JobPool(max_workers=2, **options) as pool:
        jobs = [pool.submit(print_and_report if insight else abs, n) for n in range(4)]
        assert [job.result(PATIENCE) for job in jobs] == [0, 1, 2, 3]
        if insight:
            assert [job.output() for job in jobs] == [f"printed {n}\n" for n in range(4)]
            assert len(pool.timeline().attempts) == 4
            until(lambda: handled.records == 4, "what they logged")
            assert pool._engine._dispatcher.poller.closers, "viewers find it"
        ours = [thread.native_id for thread in set(threading.enumerate()) - before]
        threads = [Path(f"/proc/self/task/{number}") for number in ours if number is not None]
        assert threads
        until(lambda: all(worker.pid for worker in pool.snapshot().workers), "its spare")
        for worker in pool.snapshot().workers:
            threads += Path(f"/proc/{worker.pid}/task").iterdir()
        previous = -1
        while previous != (previous := switches(threads)):
            time.sleep(0.2)  # what was under way comes to rest
        time.sleep(1.0)
        assert switches(threads) - previous <= 2
    logging.getLogger("tests.idle").removeHandler(handled)


def test_ctrl_c_does_not_reach_a_worker_that_starts(tmp_path: Path) -> None:
    # A process of its own: multiprocessing's resource tracker must not be running before.
    source = """
        import signal, threading
        from pathlib import Path
        from primitive_jobs import run

        def blocked():
            (spawner,) = [t for t in threading.enumerate() if t.name.endswith("-spawner")]
            status = Path(f"/proc/self/task/{spawner.native_id}/status").read_text()
            mask = int(status.split("SigBlk:")[1].split()[0], 16)
            return [name for name in ("SIGINT", "SIGQUIT", "SIGTSTP")
                    if mask >> (getattr(signal, name) - 1) & 1]

        run(abs, -1).result(20)
        print(*blocked())
    """
    expect(tmp_path, source, "SIGINT SIGQUIT SIGTSTP\n")

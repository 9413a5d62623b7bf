"""The life and the end of the program around a pool: forks, signals, kills in every state."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import PATIENCE, Script, expect, script, until

SEED = 20240607
MOMENTS, MORE = 5, 60  # at which Ctrl-C is pressed; and in a soak
MAIN_WORK = 0.6  # s, about, of the program in which it is pressed
END = 3.0  # s that the program has after it
GONE = 2.0  # s in which a killed program's processes must be gone

# --- forks of the program -------------------------------------------------------------------------

INHERITED = """
import os, sys, time, warnings
from pathlib import Path
from primitive_jobs import (
    JobError, JobExecutor, JobPool, JobStatus, PoolClosedError, as_completed, run
)

warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of forks, from 3.12 on

def hold(path):
    while not path.exists():
        time.sleep(0.005)
    return os.getpid()

process_of_owner = f"of process {os.getpid()}"
owner = f"belongs to process {os.getpid()}, "

def raises(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as error:
        assert owner in str(error), error
        return
    raise AssertionError(f"{call} did not raise {kind}")

release = Path(__file__).with_name("release")
pool = JobPool(1)
executor = JobExecutor(pool=pool)
lost = pool.submit(bytes, 10**6)  # its result is not asked for before the fork
assert lost.wait(20)
busy = pool.submit(hold, release)
while not busy.running():
    time.sleep(0.001)
pid = busy.pid
queued = [pool.submit(pow, n, 2) for n in range(3)] + [pool.submit(len, bytes(10**6))]

def attack():
    unfinished = [busy, *queued]
    for job in unfinished:
        for ask in (job.result, job.exception, job.wait, job.cancel, job.status):
            ask() if ask != job.result else raises(JobError, ask)
        assert "ERROR" in repr(job)
        assert owner in str(job.exception())
        assert job.cancel() is False
        called = []
        job.add_done_callback(called.append)
        assert called == [job]
    assert set(as_completed(unfinished, 20)) == set(unfinished)
    assert lost.result(20) == bytes(10**6)
    assert pool.jobs() == []
    assert f" {process_of_owner}: " in repr(pool), pool
    pool.cancel_all()
    for call in (pool.submit, pool.map, pool.options(retries=1).submit, executor.submit):
        raises(PoolClosedError, call, abs, [-1])
    raises(PoolClosedError, pool.resize, 3)
    raises(PoolClosedError, pool.restart_workers)
    try:
        pool.submit(len)
    except PoolClosedError as error:
        assert "use default_pool() here" in str(error), error
    pool.shutdown(wait=False)
    pool.shutdown(cancel=True)
    assert run(abs, -2).result(20) == 2
    with JobPool(1) as own:
        assert own.submit(len, bytes(10**6)).result(20) == 10**6
        assert own.submit(os.getpid).result(20) != pid

def check_parent():
    assert (busy.pid, busy.status()) == (pid, JobStatus.RUNNING)
    assert pool.jobs() == [busy, *queued]
    release.touch()
    assert [job.result(20) for job in (busy, *queued)] == [pid, 0, 1, 4, 10**6]
    assert pool.submit(os.getpid).result(20) == pid
    print("unharmed")
"""

FORKS = {
    "at once": ["os._exit(7)", "sys.exit(7)", "with pool: sys.exit(7)"],
    "after the use of pools": [
        "attack(); os._exit(7)",
        "attack(); sys.exit(7)",
        "run(time.sleep, 0.2); sys.exit(7)",
    ],
}


@pytest.mark.parametrize("when", FORKS)
def test_a_fork_does_not_harm_the_pool(tmp_path: Path, when: str) -> None:
    """One after the other: none of them may find the pool otherwise than the first one did."""
    source = f"""
for what in {FORKS[when]}:
    child = os.fork()
    if child == 0:
        exec(what)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, what
    assert (busy.pid, busy.status()) == (pid, JobStatus.RUNNING), what
    assert pool.jobs() == [busy, *queued], what
check_parent()
"""
    expect(tmp_path, INHERITED + source, "unharmed\n")


def test_a_multiprocessing_fork_does_not_harm_the_pool(tmp_path: Path) -> None:
    source = """
import multiprocessing
context = multiprocessing.get_context("fork")

def own_pool_of_a_daemon():
    error = run(abs, -1).exception(20)  # multiprocessing forbids it
    assert "daemonic processes are not allowed to have children" in str(error), error

for target, daemon in [(attack, False), (os.getpid, True), (own_pool_of_a_daemon, True)]:
    process = context.Process(target=target, daemon=daemon)
    process.start()
    process.join(20)
    assert process.exitcode == 0, (target, process.exitcode)
check_parent()
"""
    expect(tmp_path, INHERITED + source, "unharmed\n")


def test_forks_in_a_storm_of_jobs(tmp_path: Path) -> None:
    source = """
        import os, sys, threading, warnings
        from primitive_jobs import JobPool

        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        results = []
        with JobPool(2) as pool:
            def storm():
                for number in range(150):
                    job = pool.submit(len, bytes(number * 2000))
                    if number % 30 == 7:
                        job.cancel()
                    results.append(number if job.cancelled() else job.result(20) // 2000)
            thread = threading.Thread(target=storm)
            thread.start()
            for number in range(10):
                child = os.fork()
                if child == 0:
                    if number % 2:
                        os._exit(7)
                    sys.exit(7)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            thread.join()
        print(results == list(range(150)))
    """
    expect(tmp_path, source, "True\n")


def test_what_a_fork_lets_go_of_may_use_a_pool(tmp_path: Path) -> None:
    """The last reference to it was that of a job whose pool is abandoned."""
    source = """
import os, signal, sys, time, warnings
from primitive_jobs import JobPool, run

warnings.filterwarnings("ignore", "This process", DeprecationWarning)
parent = os.getpid()

class Owned:
    def __del__(self):
        if os.getpid() != parent:
            with JobPool(1) as pool:
                print(pool.submit(abs, -3).result(20), run(abs, -4).result(20), flush=True)

with JobPool(1) as pool:
    pool.submit(abs, -1).result(20)
    job = pool.options(metadata={"owned": Owned()}).submit(time.sleep, 60)
    while not job.running():
        time.sleep(0.001)
    del job
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # hanging is status -14
        print(run(abs, -5).result(20), flush=True)
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    pool.cancel_all()
"""
    expect(tmp_path, source, "3 4\n5\n7\n")


# At a bad moment.
BAD_MOMENT = """
import os, threading, time, warnings
from primitive_jobs import JobError, JobPool, run
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of forks, from 3.12 on

def in_child(call):
    child = os.fork()
    if child == 0:
        try:
            call()
        except BaseException as error:
            print(type(error).__name__, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def test_fork_while_a_worker_starts(tmp_path: Path) -> None:
    source = """
from loky.backend import fork_exec
real, inside, forked = fork_exec.fork_exec, threading.Event(), threading.Event()
def slow(*args, **kwargs):  # called for a worker and for the resource trackers
    inside.set()
    forked.wait(1)
    return real(*args, **kwargs)
fork_exec.fork_exec = slow
job = run(abs, -1)
inside.wait()
def use():
    forked.set()
    assert run(abs, -2).result(20) == 2
print(in_child(use), job.result(20))
"""
    expect(tmp_path, BAD_MOMENT + source, "0 1\n")


def test_fork_when_a_worker_has_just_started(tmp_path: Path) -> None:
    source = """
from primitive_jobs._engine.fleet import News
from primitive_jobs._engine.inbox import Inbox
real, lying, forked = Inbox.tell, threading.Event(), threading.Event()
pids = []
def tell(self, command):
    if isinstance(command, News) and command.refuse and not pids:
        pids.append(command.refuse.args[0].pid)
        self.commands.append(command)  # and before the dispatcher is awake:
        lying.set()
        forked.wait(20)
        self.wake()
    else:
        real(self, command)
Inbox.tell = tell
pool = JobPool(1)
job = pool.submit(os.getpid)
lying.wait()
def use():
    pool.shutdown()
code = in_child(use)
forked.set()
print(code, [job.result(20)] == pids)
"""
    expect(tmp_path, BAD_MOMENT + source, "0 True\n")


def test_fork_while_a_job_is_submitted(tmp_path: Path) -> None:
    source = """
from primitive_jobs import PrimitiveJob
inside, forked = threading.Event(), threading.Event()
class Slow:
    def __reduce__(self):
        inside.set()
        forked.wait(20)
        return int, (7,)
job = PrimitiveJob(abs, Slow())
thread = threading.Thread(target=job.submit)
thread.start()
inside.wait()
code = in_child(lambda: job.result(2))  # it can never come: a clear error, no waiting
forked.set()
thread.join()
print(code, job.result(20))
"""
    expect(tmp_path, BAD_MOMENT + source, "JobError\n1 7\n")


# --- signals --------------------------------------------------------------------------------------

INTERRUPTED = f"""
import os, sys, time
os.open(sys.argv[1], os.O_RDWR)  # a session's leader has it as its terminal from now on
print("begin", flush=True)
from primitive_jobs import JobPool, as_completed, run

def work(n):
    import os, time
    if os.fork() == 0:
        time.sleep(1000)
    time.sleep(n)
    return n

end = time.monotonic() + {MAIN_WORK}
while time.monotonic() < end:
    with JobPool(2) as pool:
        long = pool.submit(work, 1000)
        jobs = [run(work, 0.02) for _ in range(3)] + [pool.submit(abs, -n) for n in range(10)]
        for job in as_completed(jobs):
            job.result()
        long.cancel()
run(work, 0.1)
"""


# What a traceback shows of one: frames of importlib, where Python left them in, or the line.
IMPORTING = re.compile(r"<frozen importlib|^ +(from \S+ )?import ", re.MULTILINE)


@pytest.mark.parametrize(
    "moment",
    [*range(MOMENTS), *(pytest.param(n, marks=pytest.mark.soak) for n in range(MOMENTS, MORE))],
)
def test_ctrl_c_at_a_random_moment(moment: int) -> None:
    ours, theirs = os.openpty()
    pause = random.Random(SEED + moment).uniform(0, MAIN_WORK + 0.5)
    try:
        with script("-c", INTERRUPTED, os.ttyname(theirs), new_session=True) as started:
            assert started.process.stdout is not None
            assert started.process.stdout.readline() == "begin\n"
            time.sleep(pause)  # the moment, not a hope
            os.write(ours, b"\x03")
            began = time.monotonic()
            status, out, err = started.finish()
            assert time.monotonic() - began < END
            started.assert_nothing_left(GONE)
    finally:
        os.close(ours)
        os.close(theirs)
    assert out == ""
    if status == -signal.SIGINT and IMPORTING.search(err):
        # In the middle of an import, where the module imported may have more to say about it, and
        # have been at the handling of an exception of its own.
        assert "\nKeyboardInterrupt" in err
        assert "the pool's" not in err, err
    elif status == -signal.SIGINT and err:  # in the main work: the traceback belongs there
        assert err.count("Traceback (most") == 1, err
        ends = [line for line in err.splitlines() if not line.startswith((" ", "Traceback"))]
        assert ends[0] == "KeyboardInterrupt", err  # Python may add a note to it
    elif status == 0 and err:  # in the exit, which goes on
        assert err.count("Traceback (most") == 1, err
        assert "KeyboardInterrupt" in err
    else:  # too late to matter, or too late for Python
        assert (status, err) in [(0, ""), (-signal.SIGINT, "")]


STATE = """
import os, pathlib, sys, time
from primitive_jobs import JobPool

def busy(name, fork=False):
    import os, pathlib, time
    if fork and os.fork() == 0:
        time.sleep(1000)
    pathlib.Path(name).touch()
    time.sleep(1000)

def ready():
    print("ready", flush=True)

mark = pathlib.Path(sys.argv[1], "busy")
def until_busy():
    while not mark.exists():
        time.sleep(0.002)
def busy_pool():
    pool = JobPool(1)
    pool.submit(busy, mark, True)
    until_busy()
    return pool
"""

STATES = {
    "no worker yet": "pool = JobPool(2); ready()",
    "worker starting": """
from primitive_jobs._procs.guardian import the_guard
the_guard.add = lambda group: ready()  # called when the process has what it needs to begin
pool = JobPool(1); pool.submit(abs, -1)
""",
    "worker initializing": """
pool = JobPool(1, initializer=busy, initargs=(mark,)); pool.submit(abs, -1)
until_busy(); ready()
""",
    "idle": "pool = JobPool(2); pool.submit(abs, -1).result(); ready()",
    "busy": "pool = JobPool(1); pool.submit(busy, mark); until_busy(); ready()",
    "busy, with a child": "pool = busy_pool(); ready()",
    "in shutdown": "pool = busy_pool(); ready(); pool.shutdown()",
    "at exit": "pool = busy_pool(); ready(); sys.exit()",
    "after shutdown": "pool = JobPool(1); pool.submit(abs, -1); pool.shutdown(); ready()",
}
KILLS = [(state, signal.SIGKILL) for state in STATES] + [
    (state, number)
    for state in ("no worker yet", "worker starting", "busy, with a child", "in shutdown")
    for number in (signal.SIGTERM, signal.SIGHUP)
]


@contextlib.contextmanager
def in_state(folder: Path, source: str) -> Iterator[Script]:
    """A script that has said that it is ready; without a word of its own it lives on."""
    with script("-c", STATE + source + "\ntime.sleep(1000)", str(folder)) as started:
        assert started.process.stdout is not None
        assert started.process.stdout.readline() == "ready\n"
        yield started


@pytest.mark.parametrize(("state", "number"), KILLS, ids=lambda x: getattr(x, "name", x))
def test_a_program_killed_in_any_state(marks: Path, state: str, number: signal.Signals) -> None:
    with in_state(marks, STATES[state]) as started:
        started.process.send_signal(number)
        assert started.process.wait(PATIENCE) == -number
        started.assert_nothing_left(GONE)
        assert started.finish() == (-number, "", "")


# The worker has not yet got its data.
def test_killed_in_the_middle_of_a_start(marks: Path) -> None:
    source = """
from multiprocessing import resource_tracker
from loky.backend import fork_exec, popen_loky_posix, resource_tracker as loky_tracker
resource_tracker.ensure_running(), loky_tracker.ensure_running()
real = fork_exec.fork_exec
def start(*args, **kwargs):
    real(*args, **kwargs)
    ready()  # its data is not sent yet
    time.sleep(1000)
fork_exec.fork_exec = start
pool = JobPool(1)
pool.submit(abs, -1)
"""
    with in_state(marks, source) as started:
        started.process.kill()
        assert started.finish() == (-9, "", "")
        started.assert_nothing_left()


HANDLED = """
import signal
def stop(number, frame):
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
release = mark.with_name("release")
def hold():
    while not release.exists():
        time.sleep(0.005)
    mark.with_name("finished").touch()
pool = JobPool(1)
job = pool.submit(hold)
while not job.running():
    time.sleep(0.001)
try:
    ready()
    job.result()
finally:
    print("leaving", flush=True)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_that_raises_system_exit(marks: Path, signals: int) -> None:
    with in_state(marks, HANDLED) as started:
        assert started.process.stdout is not None
        stat = Path(f"/proc/{started.process.pid}/wchan")
        # CPython loses a signal that comes right before a lock's wait.
        until(lambda: "futex" in stat.read_text(), "the waiting for the job")
        started.process.send_signal(signal.SIGTERM)
        assert started.process.stdout.readline() == "leaving\n"
        if signals == 2:  # the exit waits for the job, until somebody insists
            # It must have come to wait, or the second interrupts Python's own last steps.
            until(lambda: "futex" in stat.read_text(), "the exit's waiting")
            started.process.send_signal(signal.SIGTERM)
        else:
            (marks / "release").touch()
        status, out, err = started.finish()
        started.assert_nothing_left(GONE)
    assert (status, out) == (5, "")
    assert (marks / "finished").exists() is (signals == 1)
    assert err.count("Traceback (most") == signals - 1, err
    assert ("SystemExit: 5" in err) is (signals == 2)


@pytest.mark.parametrize("how", ["ignored", "reaped by a handler"])
def test_children_that_somebody_else_reaps(tmp_path: Path, how: str) -> None:
    source = f"""
        import os, signal, time
        from primitive_jobs import JobPool, WorkerDiedError

        def reap(number, frame):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

        signal.signal(signal.SIGCHLD, signal.SIG_IGN if {how == "ignored"} else reap)
        with JobPool(2) as pool:
            for _ in range(2):
                job = pool.submit(time.sleep, 1000)
                while not job.running():
                    time.sleep(0.001)
                assert job.cancel()
                error = pool.submit(os._exit, 3).exception(20)
                assert type(error) is WorkerDiedError, error
                assert error.exitcode in (None, 3), error
                assert pool.submit(abs, -2).result(20) == 2
        print("well")
    """
    expect(tmp_path, source, "well\n")


def test_submits_in_a_signal_handler(tmp_path: Path) -> None:
    source = """
        import signal, time
        from primitive_jobs import JobPool

        with JobPool(2) as pool:
            pool.submit(abs, -1).result()
            within, cancelled = [], []
            def handler(number, frame):
                if (n := len(within)) < 100:
                    within.append((n, pool.submit(pow, n, 2)))
                    cancelled.append(pool.submit(time.sleep, 1000))
                    assert cancelled[-1].cancel()
                    pool.jobs()
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            jobs = []
            while len(within) < 50 or len(jobs) < 300:
                jobs.append(pool.submit(pow, len(jobs), 2))
                assert jobs[len(jobs) // 2].result(20) == (len(jobs) // 2) ** 2
                pool.jobs()
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert [job.result(20) for job in jobs] == [n * n for n in range(len(jobs))]
            assert all(job.result(20) == n * n for n, job in within)
        print("well")
    """
    expect(tmp_path, source, "well\n")

"""Ctrl-Z: the program stops and its jobs too; they continue with it."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import Script, gone, script, until

from primitive_jobs._procs import guard
from primitive_jobs._wire import notes

# What a shell does for one program: it leads the session and has the terminal, and the program is
# the group in the foreground. A line of its input stands for the command `fg`.
SHELL = """
import os, signal, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.dup2(terminal, 0)
    os.execv(sys.executable, [sys.executable, sys.argv[2]])
while True:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(terminal, os.getpgrp())
    sys.stdin.readline()
    os.tcsetpgrp(terminal, pid)
    os.killpg(pid, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(status))
"""

BEGIN = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from primitive_jobs import JobPool, run

folder = Path(__file__).parent

def note(name, pid=None):
    (folder / f".{name}").write_text(str(pid or os.getpid()))
    (folder / f".{name}").rename(folder / name)

def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.005)

def hold(name):
    note(name)
    wait_for("end")
    return name

note("program")
"""


class Program:
    """A script in the foreground of a terminal."""

    def __init__(self, folder: Path, started: Script, keyboard: int) -> None:
        self._folder = folder
        self._started = started
        self._keyboard = keyboard

    def pid(self, name: str) -> int:
        path = self._folder / name
        until(path.exists, f"the process {name}")
        return int(path.read_text())

    def press(self, key: bytes) -> None:
        os.write(self._keyboard, key)

    def suspend(self, *pids: int) -> None:
        self.press(b"\x1a")
        until(lambda: stopped(self.pid("program")), "the stop of the program")
        for pid in pids:
            until(lambda pid=pid: stopped(pid), f"the stop of {pid}")  # type: ignore[misc]

    def resume(self, *pids: int) -> None:
        stdin = self._started.process.stdin
        assert stdin is not None
        stdin.write("\n")
        stdin.flush()
        for pid in (self.pid("program"), *pids):
            until(lambda pid=pid: not stopped(pid), f"that {pid} goes on")  # type: ignore[misc]

    def finish(self) -> tuple[int, str]:
        (self._folder / "end").touch()
        status, out, err = self._started.finish()
        assert err == ""
        return status, out

    def guard(self) -> psutil.Process:
        this = psutil.Process(self.pid("program"))
        found: list[psutil.Process] = []

        def look() -> bool:  # a worker may be faster than the guard
            found[:] = [child for child in this.children() if child.name() == guard.NAME]
            return bool(found)

        until(look, "the guard")
        return found[0]

    def listener(self) -> int:
        (found,) = self.guard().children()
        until(lambda: found.name() == guard.LISTENER_NAME, "its name")
        return found.pid


def until_idle(process: psutil.Process) -> None:
    """It uses no CPU for as long as it would look again a few times."""

    def is_idle() -> bool:
        before = process.num_ctx_switches()
        time.sleep(3 * guard._LATE_STOP_PAUSE)
        return process.num_ctx_switches() == before

    until(is_idle, "that it does nothing")


def stopped(pid: int) -> bool:
    process = guard.process_of(pid)
    return process is not None and process.state == "T"


@contextlib.contextmanager
def program(folder: Path, source: str) -> Iterator[Program]:
    file = folder / "script.py"
    file.write_text(BEGIN + textwrap.dedent(source))
    ours, theirs = os.openpty()
    try:
        arguments = "-c", SHELL, os.ttyname(theirs), str(file)
        with script(*arguments, new_session=True) as started:
            yield Program(folder, started, ours)
            started.assert_nothing_left()
    finally:
        os.close(ours)
        os.close(theirs)


def test_jobs_stop_and_go_on_with_the_program(tmp_path: Path) -> None:
    source = """
    def have_others():
        # One in the worker's group, one in a session of its own, and a pool of the job's own.
        sleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
        children = [subprocess.Popen(sleep, start_new_session=own) for own in (False, True)]
        note("in the group", children[0].pid)
        note("in a session", children[1].pid)
        with JobPool(1, spare_workers=0) as pool:
            job = pool.submit(hold, "nested")
            value = hold("second") and job.result()
        for child in children:
            child.kill()
            child.wait()
        return value

    with JobPool(2) as pool:
        jobs = [pool.submit(hold, "first"), pool.submit(have_others)]
        print([job.result() for job in jobs], [job.attempts for job in jobs])
        print(pool.submit(abs, -1).result())
    print(signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL)
    """
    names = ("first", "second", "in the group", "in a session", "nested")
    with program(tmp_path, source) as started:
        pids = [started.pid(name) for name in names]
        for _ in range(2):
            started.suspend(*pids)
            started.resume(*pids)
        assert started.finish() == (0, "['first', 'nested'] [1, 1]\n1\nTrue\n")


def test_a_worker_that_is_not_ready_yet_stops_too(tmp_path: Path) -> None:
    source = """
    with JobPool(1, initializer=hold, initargs=("initializer",)) as pool:
        print(pool.submit(abs, -1).result())
    """
    with program(tmp_path, source) as started:
        pid = started.pid("initializer")
        started.suspend(pid)
        started.resume(pid)
        assert started.finish() == (0, "1\n")


def test_the_time_does_not_count_for_pools_of_jobs(tmp_path: Path) -> None:
    source = """
    def limited():
        with JobPool(1, spare_workers=0) as pool:
            job = pool.options(timeout=2.5).submit(hold, "nested")
            job.wait()
            late = pool.options(timeout=0.1).submit(time.sleep, 1000)
            return job.status().name, type(late.exception()).__name__

    with JobPool(1) as pool:
        print(*pool.submit(limited).result())
    """
    with program(tmp_path, source) as started:
        pid = started.pid("nested")
        for _ in range(2):
            started.suspend(pid)
            time.sleep(1.5)  # what is measured
            started.resume(pid)
        assert started.finish() == (0, "DONE JobTimeoutError\n")


def test_the_time_does_not_count(tmp_path: Path) -> None:
    source = """
    with JobPool(2) as pool:
        list(pool.map(abs, range(2)))
        jobs = [pool.options(timeout=2.5).submit(hold, name) for name in ("first", "second")]
        for job in jobs:
            job.wait()
            print(job.status().name)
        print(type(pool.options(timeout=0.1).submit(time.sleep, 1000).exception()).__name__)
    """
    with program(tmp_path, source) as started:
        pids = [started.pid(name) for name in ("first", "second")]
        for _ in range(2):
            started.suspend(*pids)
            time.sleep(1.5)  # what is measured
            started.resume(*pids)
        assert started.finish() == (0, "DONE\nDONE\nJobTimeoutError\n")


def test_a_lease_ends_meanwhile(tmp_path: Path) -> None:
    source = """
    from primitive_jobs._engine.fleet import News
    from primitive_jobs._procs.guard import lease_clock

    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, "job")
        wait_for("go on")
        fleet = pool._engine._fleet
        fleet._host.tell(News(lambda: (fleet.lease(lease_clock() + 2), note("leased"))))
        error = job.exception()
        print(type(error).__name__, error.exitcode)
    """
    with program(tmp_path, source) as started:
        pid = started.pid("job")
        (tmp_path / "go on").touch()
        started.pid("leased")
        started.suspend(pid)
        until(lambda: gone(pid), "the end of the lease")
        started.resume()
        assert started.finish() == (0, "WorkerDiedError -9\n")


def test_who_was_stopped_before_stays_so(tmp_path: Path) -> None:
    source = """
    with JobPool(2) as pool:
        jobs = [pool.submit(hold, name) for name in ("first", "second")]
        print([job.result() for job in jobs])
    """
    with program(tmp_path, source) as started:
        first, second = started.pid("first"), started.pid("second")
        os.kill(first, signal.SIGSTOP)
        until(lambda: stopped(first), "its stop")
        started.suspend(first, second)
        started.resume(second)
        assert stopped(first)
        os.kill(first, signal.SIGCONT)
        assert started.finish() == (0, "['first', 'second']\n")


def test_an_interrupt_comes_in_between(tmp_path: Path) -> None:
    source = """
    pool = JobPool(1)
    job = pool.submit(hold, "job")
    try:
        job.result()
    except KeyboardInterrupt:
        print("interrupted")
    note("caught")
    print(job.result())
    pool.shutdown()
    """
    with program(tmp_path, source) as started:
        pid = started.pid("job")
        started.suspend(pid)
        started.resume(pid)
        started.press(b"\x03")
        started.pid("caught")
        started.suspend(pid)
        started.resume(pid)
        assert started.finish() == (0, "interrupted\njob\n")


def test_the_main_thread_waits_for_a_child_that_is_stopped(tmp_path: Path) -> None:
    """As an editor in the foreground is: a handler in the program would never be called."""
    source = r"""
    with JobPool(1) as pool:
        job = pool.submit(hold, "job")
        wait_for("job")
        os.chdir(folder)
        code = "import os, time\nwhile not os.path.exists('end'): time.sleep(0.01)"
        os.system(f'echo $$ > .child; mv .child child; exec {sys.executable} -c "{code}"')
        print(job.result())
    """
    with program(tmp_path, source) as started:
        pids = [started.pid(name) for name in ("job", "child")]
        started.suspend(*pids)
        started.resume(*pids)
        assert started.finish() == (0, "job\n")


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "lambda *_: note('handled')"])
def test_a_program_that_does_not_stop(tmp_path: Path, handler: str) -> None:
    """Nor do its jobs, then and later; and it may stop in the end."""
    source = f"""
    signal.signal(signal.SIGTSTP, {handler})
    with JobPool(1) as pool:
        job = pool.submit(hold, "job")
        if "handled" in {handler!r}:
            wait_for("handled")
        wait_for("default")
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        note("is default")
        print(job.result())
    """
    with program(tmp_path, source) as started:
        pid = started.pid("job")
        watcher = started.guard()
        began = time.monotonic()
        started.press(b"\x1a")
        while time.monotonic() < began + 0.5:
            assert not stopped(pid)
            time.sleep(0.01)
        until_idle(watcher)
        assert not stopped(pid)
        (tmp_path / "default").touch()
        started.pid("is default")
        started.suspend(pid)
        started.resume(pid)
        assert started.finish() == (0, "job\n")


def test_the_group_is_killed(tmp_path: Path) -> None:
    """The listener dies with the program, the guard does not: it kills the jobs."""
    source = """
    def have_a_child():
        note("child", subprocess.Popen(["sleep", "1000"]).pid)
        hold("job")

    run(have_a_child)
    wait_for("end")
    """
    with program(tmp_path, source) as started:
        pids = [started.pid("child"), started.pid("job"), started.listener()]
        started.suspend(pids[1])
        os.killpg(started.pid("program"), signal.SIGKILL)
        for pid in pids:
            until(lambda pid=pid: gone(pid), f"the end of {pid}")  # type: ignore[misc]
        assert started.finish() == (256 - signal.SIGKILL, "")


def test_the_listener_is_killed(tmp_path: Path) -> None:
    source = """
    with JobPool(1) as pool:
        print(pool.submit(hold, "job").result())
    """
    with program(tmp_path, source) as started:
        started.pid("job")
        watcher = started.guard()
        os.kill(started.listener(), signal.SIGKILL)
        until(lambda: not watcher.children(), "its being reaped")
        until_idle(watcher)
        assert started.finish() == (0, "job\n")


def test_the_guard_is_killed_while_all_is_stopped(tmp_path: Path) -> None:
    source = """
    with JobPool(1) as pool:
        jobs = [pool.options(timeout=1.5).submit(hold, name) for name in ("job", "later")]
        print([job.wait() and job.status().name for job in jobs])
    """
    with program(tmp_path, source) as started:
        pid = started.pid("job")
        started.suspend(pid)
        started.guard().kill()
        time.sleep(1.5)  # what is measured: it does not count
        started.resume(pid)
        assert started.finish() == (0, "['DONE', 'DONE']\n")


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_while_the_pool_starts(tmp_path: Path, seconds: float) -> None:
    source = """
    note("begin")
    with JobPool(1, initializer=hold, initargs=("initializer",)) as pool:
        print(pool.submit(abs, -1).result())
    """
    with program(tmp_path, source) as started:
        started.pid("begin")
        time.sleep(seconds)  # what is tried
        started.suspend()
        time.sleep(2 * guard._ARRIVAL)
        if (tmp_path / "initializer").exists():
            assert stopped(started.pid("initializer"))
        started.resume()
        started.pid("initializer")
        assert started.finish() == (0, "1\n")


def test_what_others_send_to_the_group(tmp_path: Path) -> None:
    source = """
    signal.signal(signal.SIGUSR1, lambda *_: note("handled"))
    with JobPool(1) as pool:
        job = pool.submit(hold, "job")
        print(job.result())
    """
    with program(tmp_path, source) as started:
        pid = started.pid("job")
        started.listener()
        os.killpg(started.pid("program"), signal.SIGUSR1)
        started.pid("handled")
        started.suspend(pid)
        started.resume(pid)
        assert started.finish() == (0, "job\n")


def test_the_guard_knows_workers_by_their_name() -> None:
    """It is run as a script, and imports nothing of the package."""
    assert guard.WORKER_NAME == notes.NAME


def test_without_a_terminal_nobody_listens(tmp_path: Path) -> None:
    source = """
import psutil
from primitive_jobs import JobPool
from primitive_jobs._procs.guardian import the_guard
with JobPool(1) as pool:
    pool.submit(abs, -1).result()
    print(psutil.Process(the_guard._process.pid).children())
"""
    with script("-c", source, new_session=True) as started:
        assert started.finish() == (0, "[]\n", "")

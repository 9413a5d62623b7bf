"""Ctrl-Z: the program stops and its jobs too; they continue with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import PATIENCE, ROOT, expect, hold_and_tell, interrupted, until

from primitive_jobs import JobPool, suspension
from primitive_jobs.memory import process_state

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

"""


class Program:
    """A script in a group of its own of this session, as a shell starts one."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.folder = folder

    def pid(self, name: str) -> int:
        path = self.folder / name
        until(path.exists, f"the process {name}")
        return int(path.read_text())

    def send(self, number: int) -> None:
        """As a terminal does: to the group."""
        os.killpg(self.process.pid, number)

    def suspend(self, *pids: int) -> None:
        self.send(signal.SIGTSTP)
        until(lambda: stopped(self.process.pid), "the stop of the program")
        for pid in pids:
            until(lambda pid=pid: stopped(pid), f"the stop of {pid}")  # type: ignore[misc]

    def resume(self, *pids: int) -> None:
        self.send(signal.SIGCONT)
        for pid in (self.process.pid, *pids):
            until(lambda pid=pid: not stopped(pid), f"that {pid} goes on")  # type: ignore[misc]

    def finish(self) -> tuple[int, str]:
        (self.folder / "end").touch()
        output, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output


def stopped(pid: int) -> bool:
    return process_state(pid) == "T"


@contextlib.contextmanager
def program(folder: Path, source: str) -> Iterator[Program]:
    file = folder / "script.py"
    file.write_text(BEGIN + textwrap.dedent(source))
    process = subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        preexec_fn=os.setpgrp,  # noqa: PLW1509 - no other thread of this process is in a lock
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    started = Program(folder, process)
    with process:
        try:
            yield started
        finally:
            if process.poll() is None:
                process.kill()


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


def test_the_time_does_not_count(tmp_path: Path) -> None:
    source = """
    with JobPool(1) as pool:
        pool.submit(abs, -1).result()
        job = pool.options(timeout=2.5).submit(hold, "job")
        job.wait()
        print(job.status().name)
        print(type(pool.options(timeout=0.1).submit(time.sleep, 1000).exception()).__name__)
    """
    with program(tmp_path, source) as started:
        pid = started.pid("job")
        started.suspend(pid)
        time.sleep(2.6)  # what is measured
        (tmp_path / "end").touch()
        started.resume()
        assert started.finish() == (0, "DONE\nJobTimeoutError\n")


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


def test_an_interrupt_comes_while_all_is_stopped(tmp_path: Path) -> None:
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
        started.send(signal.SIGINT)
        started.resume(pid)
        started.pid("caught")
        started.suspend(pid)  # the handler stands again
        started.resume(pid)
        assert started.finish() == (0, "interrupted\njob\n")


def test_a_handler_that_comes_later_may_call_ours(tmp_path: Path) -> None:
    source = """
    pool = JobPool(1)
    job = pool.submit(hold, "job")
    ours = signal.getsignal(signal.SIGTSTP)
    def handler(number, frame):
        print("before")
        ours(number, frame)
        print("after")
    signal.signal(signal.SIGTSTP, handler)
    print(job.result())
    pool.shutdown()
    print(signal.getsignal(signal.SIGTSTP) is handler)
    """
    with program(tmp_path, source) as started:
        pid = started.pid("job")
        started.suspend(pid)
        started.resume(pid)
        assert started.finish() == (0, "before\nafter\njob\nTrue\n")


OTHERS = {
    "ignored": "signal.SIG_IGN",
    "the user's": "print",
}


@pytest.mark.parametrize("which", OTHERS)
def test_what_stands_stays(tmp_path: Path, which: str) -> None:
    source = f"""
        import signal
        from primitive_jobs import JobPool
        signal.signal(signal.SIGTSTP, {OTHERS[which]})
        with JobPool(1) as pool:
            pool.submit(abs, -1).result()
            print(signal.getsignal(signal.SIGTSTP) == {OTHERS[which]})
        print(signal.getsignal(signal.SIGTSTP) == {OTHERS[which]})
    """
    expect(tmp_path, source, "True\nTrue\n")


def test_who_has_a_handler_of_ours(tmp_path: Path) -> None:
    source = """
        import os, signal, threading, warnings
        from primitive_jobs import JobPool, run

        os.setsid()
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)

        def stands():
            return signal.getsignal(signal.SIGTSTP) != signal.SIG_DFL

        def in_thread(pools):
            with JobPool(1) as pool:
                pools.append(pool.submit(stands).result())

        found = []
        thread = threading.Thread(target=in_thread, args=[found])
        thread.start()
        thread.join()
        print("in a thread", found, stands())
        first, second = JobPool(1), JobPool(1)
        print("two", first.submit(stands).result(), stands())
        print("nested", first.submit(lambda: (run(abs, -1).result(), stands())).result())
        first.shutdown()
        print("one", stands())
        second.shutdown()
        print("none", stands())
        run(abs, -1).result()
        print("the default", stands(), flush=True)
        if os.fork() == 0:
            # This group has nobody in the session outside of it: the signal does nothing.
            os.kill(os.getpid(), signal.SIGTSTP)
            print("a fork", run(abs, -1).result(), flush=True)
            os._exit(0)
        os.wait()
    """
    output = """\
in a thread [False] False
two False True
nested (1, False)
one True
none False
the default True
a fork 1
"""
    expect(tmp_path, source, output)


def test_an_interrupt_anywhere_leaves_nobody_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "raise_signal", lambda number: None)  # this program goes on
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold_and_tell, tmp_path / "gate")
        until(lambda: job.pid, "its worker")
        pid = job.pid
        assert pid is not None
        handler = signal.getsignal(signal.SIGTSTP)
        assert callable(handler)
        hits = 0
        for place in range(1, 3000, 41):
            hits += interrupted(lambda: handler(signal.SIGTSTP, None), place)
            until(lambda: not stopped(pid), f"its going on after {place}")
            assert signal.getsignal(signal.SIGTSTP) is handler
            now = suspension.clock()
            until(lambda now=now: suspension.clock() > now, "time")  # type: ignore[misc]
        assert hits > 5
        (tmp_path / "gate").touch()
        assert job.result(PATIENCE) == pid

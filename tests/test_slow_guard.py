"""A guard that is slow: it knows the workers' groups before it does anything about them, and sees
the program's death in whatever order the system makes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from helpers import gone, until

from primitive_jobs._procs import guard

WORKER = """
import subprocess, sys, time
open("/proc/self/comm", "w").write("primitive_jobs")
print(subprocess.Popen(["sleep", "100"]).pid, flush=True)
time.sleep(100)
"""

SLOW_GUARD = """
import sys, time
sys.path.insert(0, sys.argv.pop())
import guard
step = guard.Suspension.step
def slow(*given, **how):
    step(*given, **how)
    time.sleep(1)
guard.Suspension.step = slow
guard.main(int(sys.argv[1]))
"""

# A process that dies closes its files some microseconds before its children are taken from it. Here
# the guard, at the end of its input, sees the death of the program between two looks at that.
DEATH_IN_BETWEEN = """
import os, sys
sys.path.insert(0, sys.argv.pop())
import guard
parent = int(sys.argv[1])
parent_of, now = guard._parent_of, os.getppid
def later(pid):
    os.getppid = now
    return parent_of(pid)
def kill_groups(self, kill_groups=guard.Guard.kill_groups):
    guard._parent_of, os.getppid = later, lambda: parent
    kill_groups(self)
guard.Guard.kill_groups = kill_groups
guard.main(parent)
"""

PROGRAM = """
import os, signal, socket, subprocess, sys
worker_code, guard_code, folder = sys.argv[1:]
ours, theirs = socket.socketpair()
worker = subprocess.Popen(
    [sys.executable, "-c", worker_code], stdout=subprocess.PIPE, start_new_session=True
)
child = int(worker.stdout.readline())
ours.send(b"+%d\\n" % worker.pid)
subprocess.Popen([sys.executable, "-c", guard_code, str(os.getpid()), folder], stdin=theirs)
print(worker.pid, child, flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def state_of(pid: int) -> str | None:
    found = guard.process_of(pid)
    return None if found is None else found.state


@contextlib.contextmanager
def program(guard_code: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program that has stopped itself; it, its worker and that one's child."""
    folder = str(Path(guard.__file__).parent)
    command = [sys.executable, "-c", PROGRAM, WORKER, guard_code, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        pids = [int(word) for word in started.stdout.readline().split()]
        try:
            yield started, pids
        finally:
            for pid in (started.pid, *pids):
                if not gone(pid):
                    os.kill(pid, signal.SIGKILL)


def test_a_program_that_is_killed_while_it_is_stopped() -> None:
    """Stopped before its guard came, and killed when that has stopped the workers."""
    with program(SLOW_GUARD) as (started, pids):
        until(lambda: state_of(pids[0]) == "T", "the worker's stop")
        time.sleep(0.1)  # the guard sleeps meanwhile
        started.kill()
        started.wait()
        until(lambda: all(map(gone, pids)), "the end of the worker and its child")


def test_a_program_dies_between_two_looks_at_it() -> None:
    with program(DEATH_IN_BETWEEN) as (started, pids):
        until(lambda: state_of(pids[0]) == "T", "the worker's stop")  # the guard is there
        started.kill()
        started.wait()
        until(lambda: all(map(gone, pids)), "the end of the worker and its child")


def test_who_is_dying_is_told_from_who_lives() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        before = guard.process_of(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        after = guard.process_of(process.pid)
    assert before is not None
    assert not before.exits
    assert after is not None
    assert after.exits

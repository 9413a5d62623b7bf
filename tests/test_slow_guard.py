"""A guard that is slow to come: it knows the workers' groups before it does anything about them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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


def test_a_program_that_is_killed_while_it_is_stopped() -> None:
    """Stopped before its guard came, and killed when that has stopped the workers."""
    folder = str(Path(guard.__file__).parent)
    command = [sys.executable, "-c", PROGRAM, WORKER, SLOW_GUARD, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        worker, child = map(int, program.stdout.readline().split())
        try:
            until(lambda: state_of(worker) == "T", "the worker's stop")
            time.sleep(0.1)  # the guard sleeps meanwhile
            program.kill()
            program.wait()
            until(lambda: gone(worker) and gone(child), "the end of the worker and its child")
        finally:
            for pid in (worker, child):
                if not gone(pid):
                    os.kill(pid, signal.SIGKILL)

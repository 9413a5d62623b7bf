"""A program that calls exec(3): what it leaves dies, and is reaped by what it becomes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers import PATIENCE, gone, script, until

from primitive_jobs import JobPool
from primitive_jobs._procs.guardian import Guard

GENERATIONS = """
import os, psutil, signal, subprocess, sys, time
from pathlib import Path
from primitive_jobs import JobPool

marks, number = Path(sys.argv[1]), int(sys.argv[2])

def breed(name):
    import os, signal, subprocess
    from pathlib import Path
    child = subprocess.Popen(["sleep", "1000"])
    Path(name + ".draft").write_text(f"{os.getpid()} {child.pid}")
    Path(name + ".draft").rename(name)
    signal.pause()

def ours():
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.name().startswith("primitive") or child.name() == "sleep":
                found.append(child.pid)
        except psutil.Error:
            pass
    return found

if number == 0:
    own = subprocess.Popen(["sh", "-c", "exit 7"])
else:  # its parent's, under the same pid
    own = None
pool = JobPool(2, spare_workers=0)
for name in ("a", "b"):
    pool.submit(breed, str(marks / f"{number}{name}"))
while not all((marks / f"{number}{name}").exists() for name in ("a", "b")):
    time.sleep(0.001)
if own is not None:
    assert own.wait() == 7
former = [int(pid) for path in marks.glob(f"{number - 1}?") for pid in path.read_text().split()]
end = time.monotonic() + 20
while any(map(psutil.pid_exists, former)):
    assert time.monotonic() < end, [psutil.Process(pid) for pid in former if psutil.pid_exists(pid)]
    time.sleep(0.01)
print(len(ours()), flush=True)
if number < 2:
    os.execv(sys.executable, [sys.executable, __file__, sys.argv[1], str(number + 1)])
pool.shutdown(cancel=True)
print(len(ours()), flush=True)
"""


def test_generations_of_a_program(tmp_path: Path, marks: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(GENERATIONS)
    with script(str(file), str(marks), "0") as started:
        status, out, err = started.finish()
        started.assert_nothing_left()
    # In each: two workers, a child of each of them, and a guard.
    assert (status, out) == (0, "5\n" * 3 + "0\n"), err
    assert not err


def test_what_a_job_left_dies_though_nobody_makes_a_pool_again(tmp_path: Path, marks: Path) -> None:
    file = tmp_path / "script.py"
    last = GENERATIONS.replace("number < 2", "True").replace("__file__", "'-c', 'input()'")
    file.write_text(last)
    with script(str(file), str(marks), "0") as started:
        assert started.process.stdout is not None
        assert started.process.stdout.readline() == "5\n"
        pids = [int(pid) for path in marks.glob("0?") for pid in path.read_text().split()]
        until(lambda: all(map(gone, pids)), "the end of the workers and of their children", 5.0)
        assert started.process.poll() is None
        assert started.finish("\n")[0] == 0


def test_the_guard_kills_no_group_of_another() -> None:
    """What is left in its list may have been reaped, and its number given to somebody else."""
    guard = Guard()
    guard.open("test")
    code = "import os, time; os.setsid(); print(flush=True); time.sleep(1000)"
    ours = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    other = subprocess.Popen(
        ["sh", "-c", "setsid sleep 1000 > /dev/null & echo $!"], stdout=subprocess.PIPE, text=True
    )
    try:
        stranger = int(other.communicate(timeout=PATIENCE)[0])
        assert ours.stdout is not None
        ours.stdout.readline()
        guard.add(ours.pid)
        guard.add(stranger)
        assert guard._link is not None
        guard._link.close()  # as by an exec
        assert ours.wait(PATIENCE) == -9
        assert guard._process is not None
        assert guard._process.wait(PATIENCE) == 0
        assert not gone(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)
        ours.communicate()
        guard._process = guard._link = None


def test_a_fork_of_a_job_is_nothing_that_a_former_program_left() -> None:
    """It has the worker's name; its end is the job's to ask for."""

    def fork_and_make_a_pool() -> int:
        child = os.fork()
        if child == 0:
            time.sleep(0.2)  # the first pool looks for what was left, and waits for its end
            os._exit(7)
        with JobPool(1) as pool:
            pool.submit(abs, -1).result(PATIENCE)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with JobPool(1) as pool:
        assert pool.submit(fork_and_make_a_pool).result(PATIENCE) == 7

"""The end of workers: no job runs twice for it, none waits for another's, and no zombie is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, ROOT, expect, gone, hold, traces, until, write_mark

from primitive_jobs import JobError, JobPool, JobStatus, PrimitiveJob, WorkerDiedError
from primitive_jobs._procs import killing
from primitive_jobs._procs.process import WorkerProcess

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def mark_and_hold(folder: Path, name: str) -> None:
    """A job that counts its starts, and ends no more."""
    write_mark(folder, f"{name}-{len(list(folder.glob(f'{name}-*')))}", os.getpid())
    signal.pause()


# --- an ending that fails ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("how", ["died", "cancelled", "timed out"])
def test_a_failed_ending_starts_no_job_twice(
    one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch, place: str, how: str
) -> None:
    really, failures = WorkerProcess.end, [0]

    def end(self: WorkerProcess) -> Any:
        failures[0] += 1
        if failures[0] > 1:
            return really(self)
        if place == "after":
            really(self)
        raise RuntimeError("on purpose")

    monkeypatch.setattr(WorkerProcess, "end", end)
    one.submit(write_mark, marks, "warm").result(PATIENCE)  # it has imported what it needs
    (marks / "warm").unlink()
    options: dict[str, Any] = {"timeout": 2.0} if how == "timed out" else {}
    job = one.options(**options).submit(mark_and_hold, marks, "job")
    until((marks / "job-0").exists, "its start")
    pid = int((marks / "job-0").read_text())
    if how == "cancelled":
        assert job.cancel()
    elif how == "died":
        os.kill(pid, signal.SIGKILL)
    error = None if how == "cancelled" else job.exception(PATIENCE)
    if how == "died":
        assert isinstance(error, WorkerDiedError)
        assert str(error.__cause__) == "on purpose"
    assert gone(pid)
    assert one.submit(abs, -1).result(PATIENCE) == 1
    assert [mark.name for mark in marks.iterdir()] == ["job-0"]
    assert failures[0] >= 1


def test_a_worker_that_cannot_be_examined_is_killed(
    one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it said of it that nothing of its job is left, which nobody knows."""
    job = one.submit(mark_and_hold, marks, "job")
    until((marks / "job-0").exists, "its start")
    with monkeypatch.context() as patch:

        def kill(self: WorkerProcess) -> bool:
            raise RuntimeError("on purpose")

        patch.setattr(WorkerProcess, "kill", kill)
        with pytest.raises(JobError, match=r"job mark_and_hold .* could not be stopped.* is ERROR"):
            job.cancel()
    assert job.status() is JobStatus.ERROR
    assert gone(int((marks / "job-0").read_text()))
    assert one.submit(abs, -1).result(PATIENCE) == 1


# --- a worker that does not die ------------------------------------------------------------------


class Immortal:
    """Keeps processes from being killed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.pids: set[int] = set()
        self.kill, self._killpg = os.kill, os.killpg
        patch.setattr(os, "kill", lambda pid, number: self._send(self.kill, pid, number))
        patch.setattr(os, "killpg", lambda pid, number: self._send(self._killpg, pid, number))

    def _send(self, really: Any, pid: int, number: int) -> None:
        if pid not in self.pids or number != signal.SIGKILL:
            really(pid, number)


def test_one_that_does_not_die_delays_no_other(
    two: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (two.submit(mark_and_hold, marks, name) for name in ("a", "b"))
    until(lambda: len(traces(marks)) == 2, "both")
    immortal = Immortal(monkeypatch)
    pid = int((marks / "a-0").read_text())
    immortal.pids.add(pid)
    told: list[bool] = []
    canceller = threading.Thread(target=lambda: told.append(first.cancel()))
    canceller.start()
    try:
        state = Path(f"/proc/{pid}/stat")
        until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "it to be stopped")
        assert second.cancel()
        assert first.status() is JobStatus.RUNNING
        assert not told
        assert two.submit(abs, -1).result(PATIENCE) == 1
        assert first.status() is JobStatus.RUNNING
    finally:
        immortal.kill(pid, signal.SIGKILL)
        canceller.join(PATIENCE)
    assert told == [True]


@pytest.mark.parametrize("who", ["worker", "child"])
def test_one_that_is_given_up(
    two: JobPool,
    marks: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    who: str,
) -> None:
    def job() -> None:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        write_mark(marks, "worker", os.getpid())
        write_mark(marks, "child", child.pid)
        signal.pause()

    monkeypatch.setattr("primitive_jobs._procs.killing.GIVE_UP", 0.3)
    hopeless, other = two.submit(job), two.submit(hold, marks / "release", 5)
    until((marks / "child").exists, "the job")
    immortal = Immortal(monkeypatch)
    pid = int((marks / who).read_text())
    immortal.pids.add(pid)
    try:
        with pytest.raises(JobError, match=rf"could not be stopped: process {pid}: .* is ERROR"):
            hopeless.cancel()
        assert hopeless.status() is JobStatus.ERROR
        assert hopeless.cancel() is False  # it is final
        (marks / "release").touch()
        assert other.result(PATIENCE) == 5
        assert two.submit(abs, -1).result(PATIENCE) == 1
        two.shutdown()
        assert f"could not be killed: process {pid}" in caplog.text
    finally:
        immortal.kill(pid, signal.SIGKILL)
        if who == "worker":
            os.waitpid(pid, 0)


# --- a program that orphans come to --------------------------------------------------------------

CANCELS = """
import ctypes, os, psutil, signal, subprocess, sys, time
from pathlib import Path
from primitive_jobs import JobPool, WorkerDiedError

SUBREAPER
marks = Path(sys.argv[-1])

def breed(name, crash):
    import os, signal, subprocess
    from pathlib import Path
    for own in (False, True):
        subprocess.Popen(["sleep", "1000"], start_new_session=own)
    subprocess.run("true & sleep 1000 &", shell=True)
    Path(name).touch()
    if crash:
        os.kill(os.getpid(), signal.SIGSEGV)
    signal.pause()

def zombies():
    found = [child for child in psutil.Process().children() if child.status() == "zombie"]
    return [child.pid for child in found]

own = subprocess.Popen(["sh", "-c", "exit 7"])
os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
assert zombies() == [own.pid]
with JobPool(1, spare_workers=0) as pool:
    for number in range(4):
        name = str(marks / str(number))
        job = pool.submit(breed, name, False)
        while not os.path.exists(name):
            time.sleep(0.001)
        assert job.cancel()
        assert zombies() == [own.pid], zombies()
assert own.wait() == 7
with JobPool(1, spare_workers=0) as pool:
    assert isinstance(pool.submit(breed, str(marks / "last"), True).exception(), WorkerDiedError)
    sleeping = [child for child in psutil.Process().children() if child.name() == "sleep"]
    assert zombies() == [], zombies()
    assert len(sleeping) == 1, sleeping  # in a session of its own: nobody knows whose it is
    sleeping[0].kill()
    sleeping[0].wait()
print("well", os.getpid() == 1)
"""


def test_a_program_that_orphans_come_to(tmp_path: Path) -> None:
    become = "assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0"
    source = CANCELS.replace("SUBREAPER", become).replace("sys.argv[-1]", repr(str(tmp_path)))
    expect(tmp_path, source, "well False\n")


def test_the_first_process_of_a_container(tmp_path: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no new namespace of processes can be made here")
    source = textwrap.dedent(CANCELS.replace("SUBREAPER", ""))
    done = subprocess.run(
        [*unshare, sys.executable, "-c", source, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "well True\n"), done.stderr


# --- a fork of the program -----------------------------------------------------------------------

FORKED = """
import os, sys, threading, time, warnings
from multiprocessing import resource_tracker
from loky.backend import resource_tracker as loky_tracker
from primitive_jobs import JobPool
from primitive_jobs._procs.process import WorkerProcess

warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of forks, from 3.12 on
resource_tracker.ensure_running()
loky_tracker.ensure_running()

def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that lists the folder
            pass
    return found

def fork_and_look():
    child = os.fork()
    if child == 0:
        more = {n: what for n, what in descriptors().items() if n not in before}
        print(more or "nothing", flush=True)
        os._exit(0)
    os.waitpid(child, 0)

before = descriptors()
"""


def test_a_fork_has_no_descriptor_of_a_pool(tmp_path: Path) -> None:
    source = """
with JobPool(2) as pool:
    jobs = [pool.submit(time.sleep, 0.5) for _ in range(2)]
    jobs += [pool.submit(len, bytes(10**6)) for _ in range(2)]
    while not jobs[1].running():
        time.sleep(0.001)
    fork_and_look()
    jobs[0].cancel()
    fork_and_look()
"""
    expect(tmp_path, FORKED + source, "nothing\nnothing\n")


def test_nor_one_of_a_worker_that_is_just_being_started(tmp_path: Path) -> None:
    source = """
made, go_on = threading.Event(), threading.Event()
from primitive_jobs._local.fleet import LocalFleet

really = LocalFleet._spawned
def spawned(self, process):  # the spawner's report to the dispatcher
    made.set()
    go_on.wait()
    really(self, process)

LocalFleet._spawned = spawned
pool = JobPool(1, spare_workers=0)
job = pool.submit(abs, -1)
made.wait()
fork_and_look()
go_on.set()
job.result()
pool.shutdown()
"""
    expect(tmp_path, FORKED + source, "nothing\n")


# --- a tree that grows while it is killed --------------------------------------------------------


def flee(folder: Path) -> None:
    """A chain of processes, each in a session of its own and gone at once."""
    if os.fork():
        time.sleep(1000)
    end = time.monotonic() + 2 * PATIENCE
    number = 0
    while time.monotonic() < end and not (folder / "stop").exists():
        if os.fork():
            os._exit(0)
        os.setsid()
        number += 1
        if number == 20:
            (folder / "flees").touch()


def test_a_chain_of_processes_that_flee(marks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look for new processes never ends, and so no other worker is reaped either."""
    monkeypatch.setattr(killing, "GIVE_UP", 1.0)
    pool = JobPool(max_workers=2)
    ended = []

    def cancel(job: PrimitiveJob[None]) -> None:
        with contextlib.suppress(JobError):  # it is told where some may be left
            assert job.cancel()

    try:
        for number in range(5):  # the kill may win a race
            folder = marks / str(number)
            folder.mkdir()
            job = pool.submit(flee, folder)
            while not (folder / "flees").exists():
                time.sleep(0.001)
            thread = threading.Thread(target=cancel, args=(job,))
            thread.start()
            ended.append(job.wait(PATIENCE))
            (folder / "stop").touch()
            thread.join()
    finally:
        pool.shutdown(cancel=True)
    assert ended == [True] * 5

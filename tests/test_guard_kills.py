"""The guard kills for a program that may not any more, and itself harms nobody."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import psutil
import pytest
from helpers import PATIENCE, ROOT, expect, gone, script, until

from primitive_jobs._procs import guard as guard_script

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give up its rights")

# --- a program that gives up its rights -----------------------------------------------------------

DEMOTED = f"""
import ctypes, logging, os, signal, subprocess, sys, threading, time
from pathlib import Path
from primitive_jobs import JobError, JobPool, JobStatus, JobTimeoutError

marks = Path(__file__).parent

def breed(name):
    import os, signal, subprocess
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    children = [subprocess.Popen(["sleep", "1000"], start_new_session=own) for own in (False, True)]
    if os.getuid() == 0:
        children.append(subprocess.Popen(["sleep", "1000"], user={NOBODY}))
    draft = Path(f"{{name}}.draft")
    draft.write_text(" ".join(str(pid) for pid in [os.getpid(), *(c.pid for c in children)]))
    draft.rename(name)
    while True:
        signal.pause()

def grown(name):
    while not name.exists():
        time.sleep(0.001)
    return [int(pid) for pid in name.read_text().split()]

def gone(pid):
    try:
        return Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True

def demote():
    os.chmod(marks, 0o777)
    os.setgroups([])
    os.setuid({NOBODY})
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return
    raise AssertionError("it has its rights still")

def may_start_more():
    try:
        done = subprocess.run([sys.executable, "-c", "import psutil"], stderr=subprocess.DEVNULL)
    except OSError:
        return False  # the interpreter is out of reach by now
    return done.returncode == 0
"""


@pytest.fixture
def reachable(tmp_path: Path) -> Path:
    """A folder that others may enter."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("test_", "popen-", "pytest-")):
            folder.chmod(0o755)
    return tmp_path


@needs_root
@pytest.mark.parametrize("how", ["cancel", "grace", "timeout", "shutdown"])
def test_a_program_that_gave_up_its_rights(reachable: Path, how: str) -> None:
    ends = {
        "cancel": "assert job.cancel()",
        "grace": "assert job.cancel(grace=0.1)",
        "timeout": "assert isinstance(job.exception(20), JobTimeoutError), job",
        "shutdown": "pool.shutdown(cancel=True)",
    }
    source = f"""
with JobPool(2, spare_workers=0) as pool:
    name = marks / "job"
    job = pool.options(timeout={2.0 if how == "timeout" else None}).submit(breed, name)
    pids = grown(name)
    demote()
    {ends[how]}
    assert all(map(gone, pids)), [pid for pid in pids if not gone(pid)]
    if {how != "shutdown"} and may_start_more():
        assert pool.submit(os.getuid).result(20) in (0, {NOBODY})
        later = pool.submit(breed, marks / "later")
        pids = grown(marks / "later")
        assert later.cancel()
        assert all(map(gone, pids))
print("well")
"""
    expect(reachable, DEMOTED + source, "well\n")


@needs_root
def test_a_grace_is_given_by_the_guard(reachable: Path) -> None:
    source = """
def clean_up(name):
    try:
        Path(name).touch()
        time.sleep(1000)
    finally:
        Path(name).with_suffix(".clean").touch()

with JobPool(1) as pool:
    job = pool.submit(clean_up, str(marks / "job"))
    while not (marks / "job").exists():
        time.sleep(0.001)
    demote()
    assert job.cancel(grace=20)
    assert (marks / "job.clean").exists()
print("well")
"""
    expect(reachable, DEMOTED + source, "well\n")


@needs_root
def test_where_not_even_the_guard_can(reachable: Path) -> None:
    source = """
from primitive_jobs._procs.guardian import the_guard

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout, level="WARNING")
pool = JobPool(2, spare_workers=0)
hopeless = pool.options(name="hopeless").submit(breed, marks / "job")
other = pool.submit(time.sleep, 0.5)
pids = grown(marks / "job")
the_guard._process.kill()
the_guard._process.wait()
demote()
try:
    hopeless.cancel()
except JobError as error:
    assert "job hopeless" in str(error) and "its status is ERROR" in str(error), error
    assert f"process {pids[0]}: Operation not permitted" in str(error), error
else:
    raise AssertionError("it said that it is gone")
assert hopeless.status() is JobStatus.ERROR
assert not gone(pids[0]) and not gone(pids[2])
assert other.exception(20) is None
assert pool.submit(abs, -1).result(20) == 1  # by the other's worker
pool.shutdown()
print("ended", flush=True)
os._exit(0)
"""
    file = reachable / "script.py"
    file.write_text(DEMOTED + source)
    with script(str(file)) as started:  # which ends what is left
        assert started.process.stdout is not None
        lines: list[str] = []
        while lines[-1:] != ["ended\n"]:
            lines.append(started.process.stdout.readline())
            assert lines[-1], lines
        assert started.process.wait(PATIENCE) == 0
    assert any("is left alone, it could not be killed" in line for line in lines), lines


def test_the_guard_signals_nobody_else() -> None:
    """It may have rights that the program has given up: these are not given back that way."""
    from primitive_jobs._procs.guardian import Guard

    guard = Guard()
    guard.open("test")
    ours = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    stranger = subprocess.Popen(
        ["sh", "-c", "sleep 1000 > /dev/null & echo $!"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    out, _ = stranger.communicate(timeout=PATIENCE)
    orphan = int(out)
    try:
        guard.add(ours.pid)
        guard.add(orphan)  # it is no child of this process: it is not taken in
        for pid in (os.getpid(), -os.getpgid(0), 1, -1, 0, orphan, -os.getpgid(orphan)):
            with pytest.raises(PermissionError):
                guard.signal(pid, 0)
        for pid in (ours.pid, -ours.pid):
            guard.signal(pid, 0)
        guard.signal(ours.pid, signal.SIGKILL)
        ours.wait(PATIENCE)
        with pytest.raises(ProcessLookupError):
            guard.signal(-ours.pid, 0)
        guard.remove(ours.pid)
        with pytest.raises(PermissionError):
            guard.signal(ours.pid, 0)
        guard.release("test")
        with pytest.raises(PermissionError):
            guard.signal(ours.pid, 0)
        assert not gone(orphan)
    finally:
        os.kill(orphan, signal.SIGKILL)


# --- SIGPIPE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["guard", "worker", "worker, portable"])
def test_a_broken_link_ends_no_program(tmp_path: Path, who: str) -> None:
    source = f"""
        import functools, os, signal, time
        from primitive_jobs import JobPool, pool as pools
        from primitive_jobs._procs import process

        the_guard = getattr(process, "the_guard", None)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if {who == "worker, portable"}:
            pools.WorkerConfig = functools.partial(process.WorkerConfig, packets=False)
        with JobPool(2, spare_workers=0) as pool:
            pid = pool.submit(os.getpid).result()
            if {who == "guard"}:
                the_guard._process.kill()
                the_guard._process.wait()
                busy = [pool.submit(time.sleep, 0.2) for _ in range(2)]  # a second worker starts
                assert [job.result() for job in busy] == [None, None]
            else:
                # In the instant after its death the next job may still be given to it.
                for _ in range(20):
                    os.kill(pid, signal.SIGKILL)
                    pool.submit(abs, -1).exception()
                    pid = pool.submit(os.getpid).result()
            for _ in range(3):
                assert pool.submit(os._exit, 3).exception().exitcode == 3
            assert pool.submit(abs, -1).result() == 1
        print("well")
    """
    expect(tmp_path, source, "well\n")


@pytest.mark.parametrize("packets", [True, False])
def test_a_message_to_nobody_raises_no_signal(tmp_path: Path, packets: bool) -> None:
    source = f"""
        import signal
        from primitive_jobs._wire.channel import ChannelClosed, pair
        from primitive_jobs._wire.parcel import Parcel

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        ours, theirs = pair(packets={packets})
        theirs.close()
        for content in (None, bytes(9), bytes(9000), Parcel(bytes(10**6), to_file={packets})):
            try:
                ours.send(1, 1, content)
            except ChannelClosed:
                print("closed")
    """
    expect(tmp_path, source, "closed\n" * 4)


def test_a_guard_that_is_killed_while_a_signal_is_asked_for(tmp_path: Path) -> None:
    source = """
        import os, signal, subprocess
        from primitive_jobs._procs.guardian import Guard

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        guard = Guard()
        guard.open("test")
        child = subprocess.Popen(["sleep", "1000"])
        guard.add(child.pid)
        guard._process.kill()
        guard._process.wait()
        for wait in (False, True):
            try:
                guard.signal(child.pid, signal.SIGKILL, wait=wait)
            except PermissionError:
                print("denied")
        child.kill()
        child.wait()
        guard.release("test")
    """
    expect(tmp_path, source, "denied\ndenied\n")


# --- a package in an archive ----------------------------------------------------------------------


def test_the_guard_of_a_package_in_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "app.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((ROOT / "primitive_jobs").rglob("*.py")):
            file.write(path, path.relative_to(ROOT))
    source = f"""
import sys
sys.path.insert(0, {str(archive)!r})
import os, subprocess, time
import primitive_jobs
from primitive_jobs import JobPool
assert primitive_jobs.__file__.startswith({str(archive)!r})

def breed():
    import subprocess, time
    print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
    time.sleep(1000)

pool = JobPool(1)
pool.submit(breed)
time.sleep(1000)
"""
    with script("-c", source, env={"PYTHONPATH": ""}) as started:
        assert started.process.stdout is not None
        pid = int(started.process.stdout.readline())
        started.process.kill()
        started.process.wait(PATIENCE)
        until(lambda: gone(pid), "the end of what the job has started", 5.0)
        started.assert_nothing_left()


def test_the_guard_has_a_name() -> None:
    from primitive_jobs import JobPool
    from primitive_jobs._procs.guardian import the_guard

    with JobPool(1) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        assert the_guard._process is not None
        process = psutil.Process(the_guard._process.pid)
        until(lambda: process.name() == guard_script.NAME, "its name")
    assert shutil.which("sleep")


def test_whoever_starts_the_guard_it_hears_signals() -> None:
    """A thread of a pool, which blocks them all, may be the one that fulfils the wish."""
    from primitive_jobs._procs.guardian import Guard

    guard = Guard()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        guard.open("test")
        guard.be_there()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        assert guard._process is not None
        status = Path(f"/proc/{guard._process.pid}/status")

        def blocked() -> list[signal.Signals]:
            mask = int(status.read_text().split("SigBlk:")[1].split()[0], 16)
            signals = signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM
            return [number for number in signals if mask >> (number - 1) & 1]

        until(lambda: not blocked(), "that it hears them")
    finally:
        guard.release("test")


# --- its lock, and a finalizer or a signal handler that makes a pool -----------------------------


def test_the_guard_may_be_entered_again(tmp_path: Path) -> None:
    source = """
        import os, subprocess
        from primitive_jobs import JobPool, run
        from primitive_jobs._procs.guardian import the_guard

        real = subprocess.Popen
        def popen(*args, **kwargs):  # as a finalizer would that the collector runs in here
            subprocess.Popen = real
            JobPool(1).shutdown()
            return real(*args, **kwargs)
        subprocess.Popen = popen
        pool = JobPool(1)
        try:
            print(pool.submit(abs, -1).result(20))
        except TimeoutError as error:
            print(error, flush=True)
            os._exit(1)
    """
    expect(tmp_path, source, "1\n")

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

from primitive_jobs import guard as guard_script


def test_the_guard_signals_nobody_else() -> None:
    """It may have rights that the program has given up: these are not given back that way."""
    from primitive_jobs.guardian import Guard

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
        from primitive_jobs import process

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


def test_a_guard_that_is_killed_while_a_signal_is_asked_for(tmp_path: Path) -> None:
    source = """
        import os, signal, subprocess
        from primitive_jobs.guardian import Guard

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
        for path in sorted((ROOT / "primitive_jobs").glob("*.py")):
            file.write(path, f"primitive_jobs/{path.name}")
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
    from primitive_jobs.guardian import the_guard

    with JobPool(1) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        assert the_guard._process is not None
        process = psutil.Process(the_guard._process.pid)
        until(lambda: process.name() == guard_script.NAME, "its name")
    assert shutil.which("sleep")

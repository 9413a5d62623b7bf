"""Where /proc is missing, or hides processes: what cannot be done is told, and not passed over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, ROOT, hold, traces, until, write_mark

from primitive_jobs import JobError, JobMemoryError, JobPool, JobStatus
from primitive_jobs._procs import killing, probe

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "_told", [])


def lose_proc(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(probe, "PROC", Path("/nowhere"))
    patch.setattr(psutil, "PROCFS_PATH", "/nowhere")


@pytest.mark.usefixtures("nothing_told")
def test_a_memory_limit_without_proc(
    one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        lose_proc(patch)
        job = one.options(memory_limit="1 GB", name="limited").submit(write_mark, marks, "ran")
        with pytest.raises(JobError, match=r"job limited .* cannot be measured: /proc is missing"):
            job.result(PATIENCE)
        assert job.status() is JobStatus.ERROR
        assert not isinstance(job.exception(), JobMemoryError)
        assert not (marks / "ran").exists()  # it was never begun
        assert [status for status, _ in job.history()][-2:] == [JobStatus.QUEUED, JobStatus.ERROR]
        assert one.submit(abs, -1).result(PATIENCE) == 1
    assert one.options(memory_limit="1 GB").submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.usefixtures("nothing_told")
def test_a_job_that_runs_when_proc_goes(
    one: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = one.options(memory_limit="1 GB", name="limited")
    assert limited.submit(abs, -1).result(PATIENCE) == 1  # the worker has served
    job = limited.submit(hold, marks / "release")
    until(job.running, "RUNNING")
    with monkeypatch.context() as patch:
        lose_proc(patch)
        with pytest.raises(JobError, match=r"job limited .* cannot be measured"):
            job.result(PATIENCE)
    assert one.submit(abs, -1).result(PATIENCE) == 1


def test_a_process_that_is_gone_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["true"])
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "its end")
    assert not probe.hidden(child.pid)
    assert probe.resident(child.pid) == 0
    child.wait()
    for _ in range(2):
        assert not probe.hidden(child.pid)
        assert probe.resident(child.pid) == 0
        lose_proc(monkeypatch)
    assert probe.hidden(os.getpid())
    assert probe.hidden(1)  # which may be somebody else's
    with pytest.raises(probe.Unmeasurable):
        probe.resident(os.getpid())
    with pytest.raises(probe.Unmeasurable):
        probe.tree_memory(os.getpid(), 10**12)


@pytest.mark.usefixtures("nothing_told")
def test_a_cancel_without_proc(
    two: JobPool, marks: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breed(name: str) -> None:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        write_mark(marks, name, child.pid)
        signal.pause()

    jobs = [two.submit(breed, name) for name in ("a", "b")]
    until(lambda: len(traces(marks)) == 2, "both")
    assert "/proc" not in caplog.text
    with monkeypatch.context() as patch:
        lose_proc(patch)
        assert [job.cancel() for job in jobs] == [True, True]
    warning = "/proc is missing, or does not show worker"
    until(lambda: warning in caplog.text, "the record")
    assert caplog.text.count(warning) == 1
    assert "survives a cancel" in caplog.text
    for name in ("a", "b"):
        os.kill(int((marks / name).read_text()), signal.SIGKILL)


REALLY = """
import logging, os, sys
assert not os.path.exists("/proc/self")
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout, level="WARNING")
from primitive_jobs import JobError, JobPool

with JobPool(2) as pool:
    assert pool.submit(abs, -1).result() == 1
    error = pool.options(memory_limit="1 GB").submit(abs, -1).exception()
    assert type(error) is JobError and "cannot be measured" in str(error), error
    jobs = [pool.submit(__import__("time").sleep, 1000) for _ in range(2)]
    assert [job.cancel() for job in jobs] == [True, True]
print("well")
"""


def test_a_system_without_proc() -> None:
    enter = ["unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"]
    try:
        subprocess.run([*enter, "true"], check=True, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("/proc cannot be taken away here")
    done = subprocess.run(
        [*enter, sys.executable, "-c", textwrap.dedent(REALLY)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    warning, last = done.stdout.splitlines()
    assert last == "well"
    assert warning.startswith("WARNING /proc is missing, or does not show worker")

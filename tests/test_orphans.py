"""What jobs leave behind in a worker that goes on: its zombies are reaped, its children are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, ROOT, until

from primitive_jobs import JobPool
from primitive_jobs._worker import orphans

cloudpickle.register_pickle_by_value(sys.modules[__name__])

STARTS = 20

# In a module of its own: what is kept in its globals stays from one job to the next.
MODULE = """
import ctypes, multiprocessing, os, subprocess, sys, threading, time
kept = []

def leave(how):
    if how == "subprocess":
        subprocess.run("true &", shell=True)
    elif how == "system":
        os.system("true &")
    elif how == "spawn":
        os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", "true &"], os.environ), 0)
    elif how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=os.system, args=("true &",))
        process.start()
        process.join()
    elif how == "fork":
        pid = os.fork()
        if pid == 0:
            subprocess.Popen(["true"])
            os._exit(0)
        os.waitpid(pid, 0)
    return os.getpid()

def keep(how):
    if how == "Popen":
        kept.append(subprocess.Popen(["sh", "-c", "exit 5"]))
    elif how == "fork":
        pid = os.fork()
        if pid == 0:
            os._exit(5)
        kept.append(pid)
    elif how == "forkpty":
        pid, fd = os.forkpty()
        if pid == 0:
            os._exit(5)
        kept.append(pid)  # and the terminal stays open
    elif how == "spawn":
        kept.append(os.posix_spawnp("sh", ["sh", "-c", "exit 5"], os.environ))
    elif how == "multiprocessing":
        kept.append(multiprocessing.get_context("spawn").Process(target=os._exit, args=(5,)))
        kept[0].start()
    elif how == "in a thread":
        thread = threading.Thread(target=keep, args=("Popen",))
        thread.start()
        thread.join()
    return os.getpid()

def code_of_kept():
    (child,) = kept
    kept.clear()
    if isinstance(child, int):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if isinstance(child, subprocess.Popen):
        return child.wait(20)
    child.join(20)
    return child.exitcode

def start_in_threads(seconds):
    codes = []
    def start():
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            codes.append(subprocess.Popen(["sh", "-c", "exit 5"]).wait())
            codes.append(os.waitstatus_to_exitcode(os.system("exit 5")))
    kept.append((codes, [threading.Thread(target=start) for _ in range(2)]))
    for thread in kept[0][1]:
        thread.start()

def codes_of_threads():
    ((codes, threads),) = kept
    for thread in threads:
        thread.join()
    return set(codes)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "orphan_jobs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "orphan_jobs", raising=False)
    import importlib

    return importlib.import_module("orphan_jobs")


def states_below(pid: int) -> list[str]:
    found: list[str] = []
    for child in psutil.Process(pid).children():
        try:
            found.append(child.status())
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("how", ["subprocess", "system", "spawn", "multiprocessing", "fork"])
def test_orphans_leave_no_zombie(jobs: Any, how: str) -> None:
    with JobPool(1, spare_workers=0) as pool:
        before = pool.submit(os.getpid).result(PATIENCE)
        pids = {pool.submit(jobs.leave, how).result(PATIENCE) for _ in range(STARTS)}
        assert pids == {before}
        # The last ones may die when the worker is idle again: it sees to them all the same.
        until(lambda: not states_below(before), "the end of all orphans")
        assert pool.submit(os.getpid).result(PATIENCE) == before


def test_an_orphan_that_ends_when_the_worker_is_idle(jobs: Any, one: JobPool) -> None:
    pid = one.submit(os.getpid).result(PATIENCE)
    one.submit(subprocess.run, "sleep 0.3 &", shell=True).result(PATIENCE)
    assert states_below(pid)
    until(lambda: not states_below(pid), "its end")
    assert one.submit(__import__("signal").getsignal, 17).result(PATIENCE) == 0  # SIG_DFL


@pytest.mark.parametrize(
    "how", ["Popen", "fork", "forkpty", "spawn", "multiprocessing", "in a thread"]
)
def test_a_child_that_is_kept_has_its_exit_code(jobs: Any, how: str, one: JobPool) -> None:
    pid = one.submit(jobs.keep, how).result(PATIENCE)
    until(lambda: psutil.STATUS_ZOMBIE in states_below(pid), "its end")
    for _ in range(5):  # orphans behind it in the list of children
        assert one.submit(jobs.leave, "subprocess").result(PATIENCE) == pid
    time.sleep(0.05)  # nothing is to happen: the worker looks, and leaves it alone
    assert one.submit(jobs.leave, "system").result(PATIENCE) == pid
    until(lambda: states_below(pid).count(psutil.STATUS_ZOMBIE) == 1, "the end of the others")
    assert one.submit(jobs.code_of_kept).result(PATIENCE) == 5


def test_a_job_that_reaps_by_a_handler_of_its_own(jobs: Any, one: JobPool) -> None:
    def handle() -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        return os.getpid()

    pid = one.submit(handle).result(PATIENCE)
    assert one.submit(jobs.leave, "system").result(PATIENCE) == pid
    until(lambda: not states_below(pid), "the end of all orphans")
    # The handler is taken back like others; what was left meanwhile is reaped all the same.
    assert one.submit(signal.getsignal, signal.SIGCHLD).result(PATIENCE) == signal.SIG_DFL


def test_threads_that_start_processes_while_the_worker_looks(jobs: Any, one: JobPool) -> None:
    one.submit(jobs.start_in_threads, 1.5).result(PATIENCE)
    end = time.monotonic() + 1.5
    count = 0
    while time.monotonic() < end:
        one.submit(abs, -1).result(PATIENCE)
        count += 1
    assert count
    assert one.submit(jobs.codes_of_threads).result(PATIENCE) == {5}


def test_a_worker_in_which_nothing_was_started_does_not_look(one: JobPool) -> None:
    def look() -> tuple[bool, bool]:
        from primitive_jobs._worker import orphans

        before = orphans.may_be()
        subprocess.run(["true"], check=True)
        return before, orphans.may_be()

    assert one.submit(look).result(PATIENCE) == (False, True)
    assert one.submit(look).result(PATIENCE) == (False, True)


def test_subprocess_that_was_imported_before(tmp_path: Path, jobs: Any) -> None:
    """As by a sitecustomize: the function that it has taken from elsewhere is replaced, too."""
    (tmp_path / "sitecustomize.py").write_text("import subprocess, sys; sys.seen = 1\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with JobPool(1, spare_workers=0, env={"PYTHONPATH": path}) as pool:
        assert pool.submit(eval, "__import__('sys').seen").result(PATIENCE) == 1
        pid = pool.submit(jobs.keep, "Popen").result(PATIENCE)
        until(lambda: psutil.STATUS_ZOMBIE in states_below(pid), "its end")
        pool.submit(abs, -1).result(PATIENCE)
        assert pool.submit(jobs.code_of_kept).result(PATIENCE) == 5


def test_a_child_that_ends_as_the_next_job_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would print that the signal was ignored, by chance: what it calls is called here."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    orphans._hush.__wrapped__()
    hook: Any = sys.unraisablehook
    late = OSError(f"Signal {signal.SIGCHLD:d} ignored due to race condition")
    others = [
        SimpleNamespace(exc_value=OSError("no space"), object=None),
        SimpleNamespace(exc_value=None, object=None),
        SimpleNamespace(exc_value=late, object=print),
    ]
    for one in [SimpleNamespace(exc_value=late, object=None), *others]:
        hook(one)
    assert told == others


def test_a_thread_that_starts_children_all_the_time(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, whenever they end."""

    def leave() -> None:
        def go_on() -> None:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                subprocess.run(["true"], check=True)

        for _ in range(2):
            threading.Thread(target=go_on, daemon=True).start()

    with JobPool(1) as pool:
        pool.submit(leave).result(PATIENCE)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pool.submit(abs, -1).result(PATIENCE)
    assert capfd.readouterr().err == ""

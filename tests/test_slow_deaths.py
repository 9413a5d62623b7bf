"""What takes a moment to die is not told as what could not be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from helpers import PATIENCE, until

from primitive_jobs import JobError, JobPool, JobStatus
from primitive_jobs._procs import killing
from primitive_jobs._procs.killing import TreeKill
from primitive_jobs.logs import report_here

FAMILY = "import subprocess, sys, time; subprocess.Popen(['sleep', '1000']); time.sleep(1000)"


@pytest.fixture
def family() -> Iterator[tuple[int, psutil.Process]]:
    """A process that leads a session, as a worker does, and a child of it."""
    root = subprocess.Popen([sys.executable, "-c", FAMILY], start_new_session=True)
    try:
        until(lambda: psutil.Process(root.pid).children(), "the child")
        yield root.pid, psutil.Process(root.pid).children()[0]
    finally:
        os.killpg(root.pid, signal.SIGKILL)
        root.wait(PATIENCE)


def test_each_is_killed_while_the_guard_may(
    family: tuple[int, psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is while it is below a worker that lives; none of them dies at once here."""
    root, child = family
    sent: list[int] = []

    def send(pid: int, number: int) -> None:
        if number == signal.SIGKILL:
            if pid == child.pid and {root, -root} & {*sent}:
                raise PermissionError
            sent.append(pid)

    monkeypatch.setattr(killing, "send", send)
    tree = TreeKill(root, report_here)
    until(tree.strike, "the last of them")
    assert {*sent} == {root, -root, child.pid}
    assert not tree.denied


def test_one_that_dies_with_its_group(family: tuple[int, psutil.Process]) -> None:
    root, child = family
    tree = TreeKill(root, report_here)
    tree.give_up = float("inf")
    tree.below = {child}
    tree.denied = {child.pid: PermissionError(1, "Operation not permitted")}
    assert not tree.is_over(reaped=False)
    child.kill()
    until(lambda: tree.is_over(reaped=False), "its end")
    assert tree.left(root=False) is None


def test_who_is_told_by_cancel_has_looked_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: TreeKill, *, root: bool) -> str:
        del self, root
        return "process 1: it does not end"

    monkeypatch.setattr(TreeKill, "left", refuse)
    with JobPool(1, spare_workers=0) as pool:  # at its end a warning is an error
        job = pool.submit(time.sleep, 1000)
        until(job.running, "the start")
        with pytest.raises(JobError, match="could not be stopped"):
            job.cancel()
        assert job._tracker.status is JobStatus.ERROR
        del job

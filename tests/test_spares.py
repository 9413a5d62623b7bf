"""Spare workers stand ready for a killed one's place; `preload` has modules ready for the job."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
from helpers import PATIENCE, hold_and_tell, until

from primitive_jobs import InitializerError, JobPool, PrimitiveJob
from primitive_jobs._wire.notes import NAME


def workers() -> set[int]:
    """Pids of the workers of this process that are ready: they lead a session of their own."""
    found = set()
    for child in psutil.Process().children():
        try:
            if child.name().startswith(NAME) and os.getsid(child.pid) == child.pid:
                found.add(child.pid)
        except (psutil.Error, OSError):  # it ended while we looked
            continue
    return found


def test_a_spare_takes_a_killed_workers_place(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with JobPool(1) as pool:
        first = pool.submit(os.getpid).result(PATIENCE)
        assert workers() == {first}  # none before it is of use
        for _ in range(3):
            endless = pool.submit(hold_and_tell, tmp_path / "never")
            until(endless.running, "RUNNING")
            until(lambda: len(workers()) == 2, "a spare")
            queued: PrimitiveJob[int] = pool.submit(hold_and_tell, gate)
            assert queued.pid is None
            assert endless.pid is not None
            (spare,) = workers() - {endless.pid}
            assert endless.cancel()
            until(queued.running, "RUNNING")
            assert queued.pid == spare  # no new process had to start
            assert queued.cancel()


def test_spares_run_no_job_and_leave_when_idle(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with JobPool(1, idle_timeout=0.5, spare_workers=2) as pool:
        pool.submit(abs, 1).result(PATIENCE)
        jobs = [pool.submit(hold_and_tell, gate) for _ in range(5)]
        until(lambda: len(workers()) == 3, "two spares")
        assert len([job for job in pool.jobs() if job.running()]) == 1
        gate.touch()
        assert len({job.result(PATIENCE) for job in jobs}) == 1
        until(lambda: not workers(), "all to leave")
        assert pool.submit(abs, -3).result(PATIENCE) == 3


def test_no_spares(tmp_path: Path) -> None:
    with JobPool(1, spare_workers=0) as pool:
        pool.submit(abs, 1).result(PATIENCE)
        job = pool.submit(hold_and_tell, tmp_path / "never")
        until(job.running, "RUNNING")
        assert job.cancel()
        assert pool.submit(os.getpid).result(PATIENCE)
        assert len(workers()) == 1


def test_preloaded_modules_are_there() -> None:
    def loaded() -> list[str]:
        return [name for name in ("colorsys", "xml.dom.minidom") if name in sys.modules]

    with JobPool(1) as plain, JobPool(1, preload=("colorsys", "xml.dom.minidom")) as pool:
        assert plain.submit(loaded).result(PATIENCE) == []
        assert pool.submit(loaded).result(PATIENCE) == ["colorsys", "xml.dom.minidom"]


def test_the_initializer_comes_after_the_preload() -> None:
    def check() -> None:
        if "colorsys" not in sys.modules:
            raise LookupError("not there yet")

    with JobPool(1, preload=["colorsys"], initializer=check) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_what_cannot_be_preloaded() -> None:
    with JobPool(1, preload=("no_such_module",)) as pool:
        for _ in range(2):
            with pytest.raises(InitializerError, match="preload or initializer raised") as caught:
                pool.submit(abs, 1).result(PATIENCE)
            assert "No module named 'no_such_module'" in str(caught.value)

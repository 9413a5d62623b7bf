"""A pool that is attacked by tests, with somebody else's job in it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import cloudpickle
from helpers import PATIENCE, fail, until

from primitive_jobs import JobPool, JobStatus

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def hold(folder: Path, name: str) -> int:
    """Run until released."""
    (folder / name).touch()
    end = time.monotonic() + 20 * PATIENCE
    while not (folder / f"release {name}").exists() and time.monotonic() < end:
        time.sleep(0.005)
    return os.getpid()


class Arena:
    """A pool of two with a neighbour in it, shared by the tests: its start costs the most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = JobPool(max_workers=2, spare_workers=0)
        self.neighbour = self.pool.submit(hold, folder, "neighbour")
        until((folder / "neighbour").exists, "the neighbour")
        self.pid = self.neighbour.pid

    def check(self) -> None:
        """Nothing may have happened to the neighbour, nor to what comes next."""
        assert self.pool.submit(abs, -4).result(PATIENCE) == 4
        assert type(self.pool.submit(fail).exception(PATIENCE)) is ValueError
        assert (self.neighbour.status(), self.neighbour.pid) == (JobStatus.RUNNING, self.pid)
        job = self.pool.submit(time.sleep, 1000)
        until(job.running, "RUNNING")
        assert job.cancel() is True  # and with it goes the worker that was attacked
        assert [job.status() for job in self.pool.jobs()] == [JobStatus.RUNNING]

    def close(self) -> None:
        try:
            (self.folder / "release neighbour").touch()
            assert self.neighbour.result(PATIENCE) == self.pid
        finally:
            self.pool.shutdown(cancel=True)

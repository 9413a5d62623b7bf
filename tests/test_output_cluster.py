"""What a job prints on a node, with the option `output`: as it is told, and as it is kept."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, case, hold, until

pytest.importorskip("distributed")

from clusters import dask_cluster

from primitive_jobs import WorkerDiedError
from primitive_jobs.cluster import ClusterPool
from primitive_jobs.insight.printed import HEAD, TAIL

cloudpickle.register_pickle_by_value(sys.modules[__name__])

BOTH = "out\nerr\n"


def talk(gate: Path | None = None, number: int = 0) -> int:
    print("out")
    print("err", file=sys.stderr)
    if gate is not None:
        hold(gate)
    if number:
        os.kill(os.getpid(), number)
    return 3


def print_lines(count: int) -> str:
    whole = "".join(f"line {n:>6}\n" for n in range(count))
    sys.stdout.write(whole)
    return whole


def check_each_end(pool: ClusterPool, tmp_path: Path) -> None:
    view = pool.options(output="capture")
    plain, job = pool.submit(talk), view.submit(talk)
    assert plain.result(PATIENCE) == job.result(PATIENCE) == 3
    assert (plain.output(), job.output()) == (None, BOTH)
    killed = view.submit(talk, None, signal.SIGKILL)
    error = killed.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.output == killed.output() == BOTH
    again = view.options(retries=1).submit(talk, None, signal.SIGKILL)
    assert isinstance(again.exception(PATIENCE), WorkerDiedError)
    assert again.output() == BOTH * 2
    running = view.submit(talk, tmp_path / "never")
    until(lambda: running.output() == BOTH, "what it prints")
    assert running.running()
    assert running.cancel()
    assert running.output() == BOTH


def check_much(pool: ClusterPool, folder: Path) -> None:
    del folder
    job = pool.options(output="capture").submit(print_lines, 400_000)
    whole = job.result(PATIENCE)
    left_out = len(whole) - HEAD - TAIL
    marker = f"\n[... {left_out:,} bytes left out ...]\n"
    assert job.output() == whole[:HEAD] + marker + whole[-TAIL:]


def check_tee(pool: ClusterPool, tmp_path: Path) -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        job = pool.options(output="tee", name="far").submit(talk, tmp_path / "gate")
        until(lambda: stream.getvalue() == "far | out\nfar | err\n", "its lines")
        assert job.running()
        (tmp_path / "gate").touch()
        job.result(PATIENCE)
    assert stream.getvalue() == "far | out\nfar | err\n"
    assert job.output() == BOTH


def check_a_file(pool: ClusterPool, tmp_path: Path) -> None:
    job: Any = pool.options(output=tmp_path / "{id}").submit(talk)
    assert job.result(PATIENCE) == 3
    assert (tmp_path / job.job_id()).read_text() == job.output() == BOTH


@pytest.mark.timeout(90)
def test_on_a_node(tmp_path: Path) -> None:
    checks = check_each_end, check_much, check_tee, check_a_file
    with dask_cluster(tmp_path, 1) as cluster, ClusterPool(cluster.address, 1) as pool:
        for check in checks:
            with case(check.__name__):
                check(pool, tmp_path)

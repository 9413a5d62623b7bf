"""The first job of a second client: its status says RUNNING as long as it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from beats import END, beat, of_one
from helpers import PATIENCE, until

pytest.importorskip("distributed")

from clusters import dask_cluster, path_of

from primitive_jobs.cluster import ClusterPool

CLIENT = """
import sys, time
from pathlib import Path
from beats import beat
from primitive_jobs import FINAL_STATES
from primitive_jobs.cluster import ClusterPool

if __name__ == "__main__":
    with ClusterPool(sys.argv[1], 1) as pool:
        job = pool.submit(beat, Path(sys.argv[2]), sys.argv[3], 0.2)
        seen = [job.status()]
        end = time.monotonic() + 30
        while seen[-1] not in FINAL_STATES and time.monotonic() < end:
            status = job.status()
            if status is not seen[-1]:
                seen.append(status)
        print(*(status.name for status in seen))
"""


def check(folder: Path, marks: Path, runs: int) -> str:
    (folder / "client.py").write_text(CLIENT)
    seen: list[str] = []
    with dask_cluster(folder, 2) as cluster, ClusterPool(cluster.address, 1) as pool:
        busy = pool.submit(beat, marks, "busy")
        until(lambda: of_one(marks, "busy"), "its start")
        for n in range(runs):
            done = subprocess.run(
                [sys.executable, "client.py", cluster.address, str(marks), f"first{n}"],
                stdout=subprocess.PIPE,
                text=True,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path_of(Path(__file__).parent)},
                timeout=PATIENCE,
                check=True,
            )
            seen.append(done.stdout.strip())
            assert len(of_one(marks, f"first{n}")) == 1
        assert busy.running()
        (marks / END).touch()
        assert busy.result(PATIENCE) == "busy"
    told = [line for line in seen if line.endswith("QUEUED RUNNING DONE")]
    report = f"{len(told)} of {runs} first jobs showed RUNNING"
    assert len(told) == runs, f"{report}: {[line for line in seen if line not in told]}"
    return report


@pytest.mark.timeout(90)
def test_the_first_job_of_a_second_client(tmp_path: Path, marks: Path) -> None:
    check(tmp_path, marks, 3)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_many_first_jobs(tmp_path: Path, marks: Path, record_property: object) -> None:
    assert callable(record_property)
    record_property("report", check(tmp_path, marks, 100))

"""Clusters of other kinds: `LocalCluster` with nannies, in this process, adaptive, with TLS; nodes
that are reached through the scheduler alone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, until

pytest.importorskip("distributed")

from clusters import dask_cluster
from test_cluster_failures import all_gone, is_running, node_of, start_two, starts, submit

from primitive_jobs import ClusterError, JobError, WorkerDiedError
from primitive_jobs.cluster import ClusterPool

LOCAL: dict[str, Any] = {
    "n_workers": 2,
    "threads_per_worker": 1,
    "dashboard_address": None,
    "worker_dashboard_address": None,
}


def check(pool: ClusterPool, folder: Path) -> None:
    """A pool on at least two threads does what pools do."""
    jobs = [submit(pool, folder, name, session=True) for name in ("one", "two")]
    for job in jobs:
        until(is_running(job, folder), "its start")
    assert jobs[0].cancel()
    assert all_gone(folder, "one")
    (folder / "end").touch()
    assert jobs[1].result(PATIENCE) == "two"
    assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))
    data = os.urandom(3_000_000)
    assert pool.submit(bytes, data).result(PATIENCE) == data


def in_a_process(code: str, folder: Path) -> None:
    """Run a script that makes a cluster; Dask leaves threads behind, and they are not ours."""
    script = folder / "script.py"
    script.write_text(code)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["well"]), done.stderr


WITH_LOCAL_CLUSTER = """
import sys
from pathlib import Path
from distributed import LocalCluster
from test_cluster_kinds import LOCAL, check
from primitive_jobs.cluster import ClusterPool

if __name__ == "__main__":
    options = {{**LOCAL, "local_directory": sys.argv[1], {options}}}
    with LocalCluster(**options) as cluster:
        with ClusterPool(cluster, 2) as pool:
            check(pool, Path(sys.argv[1]))
    print("well")
"""


@pytest.mark.parametrize("options", ["", '"processes": False'], ids=["nannies", "one process"])
def test_a_local_cluster(tmp_path: Path, options: str) -> None:
    in_a_process(WITH_LOCAL_CLUSTER.format(options=options), tmp_path)


ASYNCHRONOUS = """
import asyncio, sys
from pathlib import Path
from distributed import Client, LocalCluster
from test_cluster_kinds import LOCAL, check
from primitive_jobs.cluster import ClusterPool

async def main(folder):
    options = {**LOCAL, "local_directory": str(folder), "asynchronous": True}
    async with LocalCluster(**options) as cluster, Client(cluster, asynchronous=True) as client:
        for given in (cluster, client):
            async with ClusterPool(given, 2) as pool:
                # The scheduler is on this loop: nothing here may block it.
                await asyncio.to_thread(check, pool, folder)
                assert await pool.submit(abs, -2) == 2
            (folder / "end").unlink()
            for path in folder.glob("*.starts"):
                path.unlink()

if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
    print("well")
"""


def test_an_asynchronous_local_cluster(tmp_path: Path) -> None:
    in_a_process(ASYNCHRONOUS, tmp_path)


ADAPTIVE = """
import sys, time
from pathlib import Path
from distributed import LocalCluster
from test_cluster_kinds import LOCAL
from test_cluster_failures import starts, submit
from helpers import PATIENCE, until
from primitive_jobs.cluster import ClusterPool

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    options = {**LOCAL, "local_directory": sys.argv[1], "n_workers": 0}
    with LocalCluster(**options) as cluster:
        cluster.adapt(minimum=0, maximum=3, interval="100ms", wait_count=2)
        with ClusterPool(cluster, 3, idle_timeout=0.5) as pool:
            jobs = [submit(pool, folder, f"job{n}") for n in range(6)]
            until(lambda: sum(job.running() for job in jobs) == 3, "that it grows", 2 * PATIENCE)
            for job in jobs[:2]:  # two places get free, the third is not taken away
                job.cancel()
            for job in jobs[3:]:
                job.cancel()
            until(lambda: len(cluster.workers) < 3, "that it shrinks", PATIENCE)
            left = [job for job in jobs if job.running()]
            assert len(left) == 1, left
            time.sleep(1)  # what is tried: nobody takes the last one
            assert left[0].running()
            (folder / "end").touch()
            assert left[0].result(PATIENCE)
            until(lambda: not cluster.workers, "that it is empty", PATIENCE)
            assert pool.submit(abs, -1).result(PATIENCE) == 1
    for job in jobs:
        assert len(starts(folder, job.name)) <= 1
    print("well")
"""


def test_an_adaptive_cluster(tmp_path: Path) -> None:
    """It grows with what waits, takes away no node that works, and shrinks to nothing."""
    in_a_process(ADAPTIVE, tmp_path)


# --- TLS ------------------------------------------------------------------------------------------


def certificate(folder: Path) -> dict[str, Any]:
    """Settings of a `Security` with a certificate of its own."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here to make a certificate with")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    settings: dict[str, Any] = {"tls_ca_file": str(cert), "require_encryption": True}
    for part in ("scheduler", "worker", "client"):
        settings |= {f"tls_{part}_key": str(key), f"tls_{part}_cert": str(cert)}
    return settings


@pytest.mark.parametrize("direct", [True, False])
def test_tls(tmp_path: Path, direct: bool) -> None:
    from distributed import Client, Security

    settings = certificate(tmp_path)
    with dask_cluster(tmp_path, 2, security=settings) as cluster:
        assert cluster.address.startswith("tls://")
        with (
            Client(cluster.address, security=Security(**settings), set_as_default=False) as client,
            ClusterPool(client, 2, direct=direct) as pool,
        ):
            first, second = start_two(pool, tmp_path)
            node_of(cluster, first).kill()
            assert isinstance(first.exception(PATIENCE), WorkerDiedError)
            second.cancel()
            (tmp_path / "end").touch()
            assert pool.submit(abs, -1).result(PATIENCE) == 1
        plain = ClusterPool(cluster.address, 1)  # without the certificate
        with plain, pytest.raises(ClusterError, match="TLS"):
            plain.submit(abs, -1).result(2 * PATIENCE)


# --- through the scheduler ------------------------------------------------------------------------


def test_all_by_relay(tmp_path: Path) -> None:
    with dask_cluster(tmp_path, 2) as cluster:
        with ClusterPool(cluster.address, 2, direct=False) as pool:
            check(pool, tmp_path)
        (tmp_path / "end").unlink()
        for path in tmp_path.glob("*.starts"):
            path.unlink()
        with ClusterPool(cluster.address, 2, direct=False) as pool:
            first, second = start_two(pool, tmp_path, retries=1)
            lost = node_of(cluster, first)
            began = time.monotonic()
            lost.kill()
            until(lambda: first.status().name == "QUEUED", "that it waits for another node")
            assert time.monotonic() - began < 10
            assert all_gone(tmp_path, "first")
            second.cancel()
            (tmp_path / "end").touch()
            assert first.result(PATIENCE) == "first"
        assert len(starts(tmp_path, "first")) == 2


def test_relay_where_a_node_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client alone cannot reach any node."""
    from primitive_jobs.cluster.reach import connect

    with dask_cluster(tmp_path, 2) as cluster:
        nodes = [node.address for node in cluster.nodes]

        async def refuse(address: str, seconds: float, **options: Any) -> Any:
            if address in nodes:
                raise OSError("no route to host")
            return await connect(address, seconds, **options)

        monkeypatch.setattr("primitive_jobs.cluster.connection.connect", refuse)
        with ClusterPool(cluster.address, 2) as pool:
            check(pool, tmp_path)
        with ClusterPool(cluster.address, 1, direct=True) as pool:
            error = pool.submit(abs, 1).exception(PATIENCE)
            assert isinstance(error, WorkerDiedError)
            assert "no route to host" in str(error)


# --- what is sent ---------------------------------------------------------------------------------


def test_the_scheduler_needs_no_package(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys; sys.modules['primitive_jobs'] = None")
    with dask_cluster(tmp_path, 0, env={"PYTHONPATH": str(hidden)}) as cluster:
        cluster.env = None
        cluster.add({"nthreads": 2})
        with ClusterPool(cluster.address, 2) as pool:
            check(pool, tmp_path)


def test_another_version_on_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"Python": "3.9", "primitive_jobs": "0.0.1"}
    monkeypatch.setattr("primitive_jobs.cluster.places.versions", lambda: told)
    with dask_cluster(tmp_path, 1) as cluster, ClusterPool(cluster.address, 1) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert "this node has Python 3.1" in str(error)
    assert "the pool's program has Python 3.9, primitive_jobs 0.0.1" in str(error)


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    """Of a job: its node says so at once."""
    (tmp_path / "only_here_xyz.py").write_text("def f(): pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        from only_here_xyz import f  # type: ignore[import-not-found]

        (tmp_path / "work").mkdir()
        with dask_cluster(tmp_path / "work", 1) as made, ClusterPool(made.address, 1) as pool:
            error = pool.submit(f).exception(PATIENCE)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("only_here_xyz", None)
    assert isinstance(error, JobError)
    assert "only_here_xyz" in str(error)


def test_nothing_of_it_is_imported_by_the_core() -> None:
    code = (
        "import primitive_jobs, sys; pool = primitive_jobs.JobPool(1);"
        "pool.submit(abs, 1).result(); pool.shutdown();"
        "print({'dask', 'distributed', 'tornado'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_pools_on_many_threads(tmp_path: Path) -> None:
    """A pool on each of several threads, at a time, on an event loop or not."""
    with dask_cluster(tmp_path, 0) as cluster:
        cluster.add({"nthreads": 4})
        failures: list[BaseException] = []

        def use(number: int) -> None:
            try:
                with ClusterPool(cluster.address, 1) as pool:
                    assert pool.submit(abs, -number).result(PATIENCE) == number
            except BaseException as error:
                failures.append(error)

        async def use_async(number: int) -> None:
            async with ClusterPool(cluster.address, 1) as pool:
                assert await pool.submit(abs, -number) == number

        threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
        threads.append(threading.Thread(target=lambda: asyncio.run(use_async(9))))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
        assert not failures

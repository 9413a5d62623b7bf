"""Jobs that need CPUs, memory or tokens: on processes; `test_admission` has the rules."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from helpers import PATIENCE, until

from primitive_jobs import (
    DependencyError,
    JobExecutor,
    JobMemoryError,
    JobPool,
    JobStatus,
    checkpoint,
    current_job,
    job_resources,
)
from primitive_jobs._engine.look import glance_at

if TYPE_CHECKING:
    from makers import MakePool

cloudpickle.register_pickle_by_value(sys.modules[__name__])

MB = 1_000_000
GPU = {"gpu": 1}


def resources_after(seconds: float = 0.0) -> tuple[dict[str, tuple[int, ...]], float, float]:
    begin = time.monotonic()
    time.sleep(seconds)
    return job_resources(), begin, time.monotonic()


def overlaps(spans: list[tuple[float, float]]) -> int:
    """At most how many of them are there at a time."""
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


# --- tokens ---------------------------------------------------------------------------------------


def test_no_two_running_jobs_have_the_same_token(make_pool: MakePool) -> None:
    with make_pool(4, resources={"gpu": 2, "licence": 1}) as pool:
        pair = pool.options(resources={"gpu": 2})
        both = pool.options(resources={"gpu": 1, "licence": 1})
        jobs = [pool.options(resources=GPU).submit(resources_after, 0.05) for _ in range(6)]
        jobs += [pair.submit(resources_after, 0.05), both.submit(resources_after, 0.05)]
        found = [job.result(PATIENCE) for job in jobs]
        for number in (0, 1):
            mine = [(begin, end) for given, begin, end in found if number in given["gpu"]]
            assert overlaps(mine) == 1
        assert found[6][0] == {"gpu": (0, 1)}
        assert found[7][0].keys() == {"gpu", "licence"}
        assert {given["gpu"] for given, _, _ in found[:6]} == {(0,), (1,)}
        assert pool.submit(resources_after).result(PATIENCE)[0] == {}
    assert job_resources() == {}


def in_others() -> tuple[object, object]:
    """In a fork of the job, and in a job of its own pool."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, repr(job_resources()).encode())
        os._exit(0)
    os.wait()
    with JobPool(1) as pool:
        return os.read(read, 100).decode(), pool.submit(job_resources).result(PATIENCE)


@pytest.mark.local
def test_what_a_job_starts_has_no_tokens(make_pool: MakePool) -> None:
    with make_pool(1, resources=GPU) as pool:
        assert pool.options(resources=GPU).submit(in_others).result(PATIENCE) == ("{}", {})


def test_while_it_is_unpickled_a_job_has_its_tokens(make_pool: MakePool) -> None:
    class Looks:
        def __reduce__(self) -> Any:
            return job_resources, ()

    with make_pool(1, resources=GPU) as pool:
        looks: Any = Looks()
        job = pool.options(resources=GPU).submit(lambda found: found, looks)
        assert job.result(PATIENCE) == {"gpu": (0,)}


def test_each_attempt_has_its_own(make_pool: MakePool, tmp_path: Path) -> None:
    def dies_first() -> tuple[int, dict[str, tuple[int, ...]]]:
        job = current_job()
        assert job is not None
        if job.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return job.attempt, job_resources()

    with make_pool(2, resources=GPU) as pool:
        job = pool.options(resources=GPU, retries=1).submit(dies_first)
        assert job.result(PATIENCE) == (2, {"gpu": (0,)})
        assert pool.options(resources=GPU).submit(job_resources).result(PATIENCE) == {"gpu": (0,)}


@pytest.mark.parametrize("end", ["cancelled", "timed out", "killed", "raised"])
def test_they_come_back_however_a_job_ends(make_pool: MakePool, end: str) -> None:
    with make_pool(2, resources=GPU) as pool:
        view = pool.options(resources=GPU, timeout=0.2 if end == "timed out" else None)
        if end in ("cancelled", "timed out"):
            job = view.submit(time.sleep, 1000)
        elif end == "killed":
            job = view.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
        else:
            job = view.submit(lambda: print(1 // 0))
        after = view.options(timeout=None).submit(job_resources)
        if end == "cancelled":
            until(job.running, "it runs")
            assert after.waiting_for == "gpu"
            assert job.cancel()
        assert after.result(PATIENCE) == {"gpu": (0,)}
        assert job.in_final_state()
        job.exception() if end != "cancelled" else None


def test_map_executor_and_snapshot(make_pool: MakePool) -> None:
    with make_pool(2, resources=GPU) as pool:
        view = pool.options(resources=GPU, name="mine")
        assert (
            list(view.map(lambda _: job_resources(), range(4), chunksize=2)) == [{"gpu": (0,)}] * 4
        )
        first = view.submit(time.sleep, 1000)
        until(first.running, "it runs")
        second = view.submit(abs, -1)
        infos = {info.id: info for info in pool.snapshot().jobs}
        assert infos[second.job_id()].waiting_for == "gpu"
        assert pool.snapshot().counts.queued == 1
        with JobExecutor(pool=view) as executor:
            future = executor.submit(job_resources)
            first.cancel()
            assert future.result(PATIENCE) == {"gpu": (0,)}
        assert second.result(PATIENCE) == 1


def test_what_is_submitted_again_has_tokens_of_its_own(make_pool: MakePool) -> None:
    with make_pool(1, resources=GPU) as pool:
        view = pool.options(resources=GPU, keep_call=True)
        job = view.submit(job_resources)
        assert job.result(PATIENCE) == {"gpu": (0,)}
        assert job.resubmit().result(PATIENCE) == {"gpu": (0,)}
        assert job.resubmit(resources=None).result(PATIENCE) == {}


def test_a_job_waits_for_another_and_then_for_a_token(make_pool: MakePool) -> None:
    with make_pool(2, resources=GPU) as pool:
        view = pool.options(resources=GPU)
        first = pool.options(name="first").submit(time.sleep, 1000)
        cancelled = view.submit(lambda _: None, first)
        holds = view.submit(resources_after, 0.3)
        slow: Any = pool.options(name="slow").submit(resources_after, 0.1)
        both = view.submit(lambda found: (found[0], job_resources()), slow)
        assert both.waiting_for == "job 'slow'"
        until(lambda: both.waiting_for in ("gpu", None), "the token")
        assert both.result(PATIENCE) == ({}, {"gpu": (0,)})
        holds.result(PATIENCE)
        assert cancelled.waiting_for == "job 'first'", "it has kept no token"
        first.cancel()
        assert isinstance(cancelled.exception(PATIENCE), DependencyError)


@pytest.mark.local
def test_those_that_wait_are_shown_in_order(make_pool: MakePool) -> None:
    with make_pool(1, resources=GPU) as pool:
        first = pool.submit(time.sleep, 1000)
        until(first.running, "it runs")
        names = "abcdef"
        jobs = []
        for name in names:
            view = pool.options(resources=GPU if name in "bde" else None)
            named = view.options(name=name, priority=int(name in "fe"))
            jobs.append(named.submit(abs, 1))
        order = sorted(names, key=lambda name: (name not in "fe", name))
        engine = pool._engine
        what = engine._scheduler, engine._jobs, engine._fleet
        look = engine._ask(lambda: glance_at(*what, 4))
        assert [record.name for record in look.records][1:] == order[:4]
        first.cancel()
        assert [job.result(PATIENCE) for job in jobs] == [1] * 6


def test_many_jobs_with_a_token_each(make_pool: MakePool) -> None:
    with make_pool(2, resources={"gpu": 2}) as pool:
        jobs = [pool.options(resources=GPU).submit(job_resources) for _ in range(500)]
        plain = [pool.submit(abs, -n) for n in range(500)]
        assert all(len(job.result(PATIENCE)["gpu"]) == 1 for job in jobs)
        assert [job.result(PATIENCE) for job in plain] == list(range(500))


# --- CPUs -----------------------------------------------------------------------------------------


def threads() -> tuple[str | None, int]:
    return os.environ.get("OMP_NUM_THREADS"), os.getpid()


@pytest.mark.local
def test_a_wide_job_may_use_its_threads(make_pool: MakePool) -> None:
    with make_pool(2, threads_per_worker=1) as pool:
        assert pool.submit(threads).result(PATIENCE)[0] == "1"
        wide = [pool.options(cpus=2).submit(threads).result(PATIENCE) for _ in range(2)]
        assert wide[0][0] == "2"
        assert wide[0] == wide[1], "its worker serves again"
        assert pool.submit(threads).result(PATIENCE)[0] == "1"
    with make_pool(2, threads_per_worker=3, env={"OMP_NUM_THREADS": "7"}) as pool:
        assert pool.options(cpus=2).submit(threads).result(PATIENCE)[0] == "7", "as it was told"
        wider = pool.options(cpus=2).submit(os.getenv, "MKL_NUM_THREADS")
        assert wider.result(PATIENCE) == "6"


@pytest.mark.local
def test_libraries_take_as_many(make_pool: MakePool) -> None:
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("numba")

    def counts() -> tuple[set[int], int]:
        import importlib

        import numpy as np

        numba: Any = importlib.import_module("numba")
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
        np.ones((8, 8)) @ np.ones((8, 8))
        found = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        return found, numba.get_num_threads()

    with make_pool(2, threads_per_worker=1) as pool:
        wide, narrow = pool.options(cpus=2).submit(counts), pool.submit(counts)
        assert wide.result(PATIENCE) == ({2}, 2)
        assert narrow.result(PATIENCE) == ({1}, 1)


@pytest.mark.local
def test_never_more_cpus_than_there_are(make_pool: MakePool) -> None:
    def span() -> tuple[float, float]:
        begin = time.monotonic()
        time.sleep(0.05)
        return begin, time.monotonic()

    with make_pool(4) as pool:
        jobs = [(cpus, pool.options(cpus=cpus).submit(span)) for cpus in (1, 3, 1, 2, 4, 1, 2) * 2]
        spans = [(cpus, *job.result(PATIENCE)) for cpus, job in jobs]
        for _, at, _ in spans:
            assert sum(cpus for cpus, begin, end in spans if begin <= at < end) <= 4


@pytest.mark.local
def test_a_wide_job_is_cancelled_killed_and_timed_out(make_pool: MakePool) -> None:
    with make_pool(2) as pool:
        view = pool.options(cpus=2)
        job = view.submit(time.sleep, 1000)
        behind = pool.submit(abs, -1)
        until(job.running, "it runs")
        assert behind.waiting_for == "a worker"
        assert job.cancel()
        assert behind.result(PATIENCE) == 1
        killed = view.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert view.submit(abs, -2).result(PATIENCE) == 2
        assert killed.status() is JobStatus.ERROR
        killed.exception()
        gate = pool.submit(time.sleep, 0.2)
        wide = view.submit(threads)
        pool.resize(1)
        assert wide.result(PATIENCE), "it takes what there is"
        gate.result(PATIENCE)


@pytest.mark.local
def test_an_initializer_runs_in_wide_workers_too(make_pool: MakePool) -> None:
    with make_pool(2, initializer=os.putenv, initargs=("MINE", "x")) as pool:
        told = pool.options(cpus=2).submit(subprocess.getoutput, "echo $MINE")
        assert told.result(PATIENCE) == "x"


# --- memory ---------------------------------------------------------------------------------------


def hold(size: int, seconds: float) -> tuple[float, float]:
    begin = time.monotonic()
    block = bytearray(size)
    for place in range(0, size, 4096):
        block[place] = 1
    time.sleep(seconds)
    return begin, time.monotonic()


@pytest.mark.local
def test_three_at_a_time_where_there_is_room_for_three(make_pool: MakePool) -> None:
    with make_pool(8, memory="640 MB") as pool:
        jobs = [pool.options(memory="200 MB").submit(hold, 100 * MB, 0.2) for _ in range(8)]
        assert overlaps([job.result(PATIENCE) for job in jobs]) == 3


@pytest.mark.local
def test_what_a_job_needs_is_its_limit(make_pool: MakePool) -> None:
    with make_pool(1) as pool:
        job = pool.options(memory="100 MB").submit(hold, 300 * MB, 10)
        with pytest.raises(JobMemoryError, match=r"100\.0 MB"):
            job.result(PATIENCE)
        more = pool.options(memory="100 MB", memory_limit="900 MB").submit(hold, 300 * MB, 0)
        assert more.result(PATIENCE)


def checkpoint_of(size: int) -> str:
    try:
        checkpoint(bytes(size), force=True)
    except MemoryError as error:
        return str(error)
    return "kept"


@pytest.mark.local
def test_a_checkpoint_counts(make_pool: MakePool) -> None:
    with make_pool(1) as pool:
        told = pool.options(memory="100 MB").submit(checkpoint_of, 45 * MB).result(PATIENCE)
        assert "would pass the job's memory_limit of 100,000,000 bytes" in told


@pytest.mark.local
def test_a_pool_that_a_job_makes_has_the_jobs_memory(make_pool: MakePool) -> None:
    def nested() -> str:
        with JobPool(1) as pool:
            try:
                pool.options(memory="500 MB").submit(abs, -1)
            except ValueError as error:
                return str(error)
        return "it went in"

    with make_pool(1, memory="2 GB") as pool:
        told = pool.options(memory="400 MB").submit(nested).result(PATIENCE)
        assert told.startswith("memory of 500 MB is more than the pool's memory, 400 MB")


@pytest.mark.local
def test_where_memory_is_short_one_starts_anyway_and_that_is_logged(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import primitive_jobs._local.memory_watch as watch

    monkeypatch.setattr(watch, "available_memory", lambda: 100 * MB)
    with make_pool(2) as pool:
        jobs = [pool.options(memory="300 MB").submit(hold, MB, 0.3) for _ in range(3)]
        until(lambda: any(job.waiting_for == "300 MB of memory (36 MB free)" for job in jobs), "")
        assert overlaps([job.result(PATIENCE) for job in jobs]) == 1
    texts = [record.getMessage() for record in caplog.records if "starts though" in record.message]
    assert len(texts) == 3
    assert "264 MB of its memory are missing" in texts[0]


@pytest.mark.local
def test_short_jobs_are_not_held_up_by_looks(make_pool: MakePool) -> None:
    with make_pool(2) as pool:
        view = pool.options(memory="50 MB")
        view.submit(abs, 1).result(PATIENCE)
        start = time.monotonic()
        jobs = [view.submit(abs, -1) for _ in range(200)]
        assert all(job.result(PATIENCE) == 1 for job in jobs)
        assert time.monotonic() - start < 100 * 0.1, "a tenth of a second for each pair"


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    """A cgroup with so much memory; skips where none can be made."""
    root = Path("/sys/fs/cgroup")
    v1 = (root / "memory").is_dir()
    folder = (root / "memory" if v1 else root) / f"primitive_jobs-{os.getpid()}"
    name = "memory.limit_in_bytes" if v1 else "memory.max"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        try:
            (folder / name).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no limit can be set here: {error}")
        yield folder
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text(), "nothing is in there")
        folder.rmdir()


PROGRAM = """
import time
from primitive_jobs import JobPool

def hold(size, seconds):
    begin = time.monotonic()
    block = bytearray(size)
    for place in range(0, size, 4096):
        block[place] = 1
    time.sleep(seconds)
    return begin, time.monotonic()

with JobPool(8, spare_workers=0) as pool:
    view = pool.options(memory="200 MB", memory_limit="1 GB")
    jobs = [view.submit(hold, 170_000_000, 0.5) for _ in range(8)]
    spans = [job.result(60) for job in jobs]
    print(max(sum(begin <= at < end for begin, end in spans) for at, _ in spans))
"""


@pytest.mark.local
def test_in_a_cgroup_none_is_killed_and_three_run_at_a_time(tmp_path: Path) -> None:
    """Which has been charged for a file of 150 MB, too: that counts as free."""
    with cgroup(800 * MB) as folder:
        file = tmp_path / "file"
        program = textwrap.dedent(f"""
            import os, sys
            open({str(folder / "cgroup.procs")!r}, "w").write(str(os.getpid()))
            open({str(file)!r}, "wb").write(bytes(150_000_000))
            exec(sys.stdin.read())
        """)
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=PROGRAM,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("2", "3"), "room for three, beside the processes themselves"


# --- what can never start -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpus": 3}, "cpus=3 is more than the pool's max_workers=2"),
        ({"memory": "3 GB"}, "memory of 3.0 GB is more than the pool's memory, 2.0 GB"),
        ({"resources": {"gpu": 2}}, "resources={'gpu': 2} is more than the pool has, {gpu: 1}"),
        ({"resources": {"cpu": 1}}, "resources={'cpu': 1} is more than the pool has"),
    ],
)
@pytest.mark.local
def test_what_can_never_start_is_refused(
    make_pool: MakePool, options: dict[str, Any], words: str
) -> None:
    with make_pool(2, memory="2 GB", resources=GPU) as pool:
        view = pool.options(**options)
        with JobExecutor(pool=view) as executor:
            for submit in (
                lambda: view.submit(abs, 1),
                lambda: list(view.map(abs, [1, 2])),
                lambda: executor.submit(abs, 1),
            ):
                with pytest.raises(ValueError, match="the job could never start") as caught:
                    submit()
                assert words in str(caught.value)
        assert pool.jobs() == []
        assert pool.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.local
def test_more_memory_than_the_machine_has() -> None:
    with JobPool(1) as pool, pytest.raises(ValueError, match="this machine, or cgroup, has"):
        pool.options(memory="900 TB").submit(abs, 1)


@pytest.mark.local
def test_it_is_shown_in_a_notebook() -> None:
    with JobPool(1, memory="2 GB", resources=GPU) as pool:
        assert "memory=2000000000, " in pool._repr_html_().replace("<wbr>", "")
        assert "gpu" in pool._repr_html_()

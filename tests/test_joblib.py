"""The backend of joblib: the serial run's numbers, and nothing that goes on after an early end."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import psutil
import pytest
from helpers import PATIENCE, hold, meet, traces, until
from joblib import Parallel, delayed

import primitive_jobs.joblib
from primitive_jobs import (
    JobCancelledError,
    JobMemoryError,
    JobPool,
    JobTimeoutError,
    PoolClosedError,
    SerializationError,
    WorkerDiedError,
    job_rng,
    share,
)
from primitive_jobs.joblib import PrimitiveJobsBackend

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NAME = "primitive_jobs"
TWO: dict[str, Any] = {"n_jobs": 2, "backend": NAME}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    primitive_jobs.joblib.register()


@pytest.fixture(autouse=True)
def _no_workers_kept() -> Iterator[None]:
    yield
    primitive_jobs.joblib.shutdown()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobPool]:
    """A pool of two that both run already; for calls that do no harm to a worker."""
    with JobPool(2, idle_timeout=None, spare_workers=0) as shared:
        folder = tmp_path_factory.mktemp("meeting")
        jobs = [shared.submit(meet, folder, 2) for _ in range(2)]
        assert len({job.result(PATIENCE) for job in jobs}) == 2
        yield shared


@pytest.fixture
def two() -> Iterator[JobPool]:
    """A pool of two for one test: a call that ends early costs the workers that are at it."""
    with JobPool(2, spare_workers=0) as fresh:
        yield fresh
        fresh.shutdown(cancel=True)


def spin(marks: Path) -> None:
    """Says that it runs, and does until it is killed."""
    (marks / str(os.getpid())).touch()
    while True:
        pass


def spin_or(marks: Path, place: int, value: Any = None) -> Any:
    """At place 0: ends when another one spins. Elsewhere: spins."""
    if place:
        spin(marks)
    until(lambda: any(marks.iterdir()), "somebody to spin")
    if isinstance(value, Exception):
        raise value
    return value


def all_gone(marks: Path) -> bool:
    pids = [int(mark.name) for mark in marks.iterdir()]
    assert pids, "nobody ran"
    return not any(psutil.pid_exists(pid) for pid in pids)


def draw() -> float:
    return float(job_rng().random())


def test_batches_of_one_over_a_seeded_pool_are_its_jobs() -> None:
    with JobPool(3, seed=5) as seeded:
        parallel = Parallel(batch_size=1, backend=PrimitiveJobsBackend(pool=seeded))
        found = list(parallel(delayed(draw)() for _ in range(12)))
        del parallel
    children = np.random.SeedSequence(5).spawn(12)
    assert found == [float(np.random.default_rng(child).random()) for child in children]


def simulate(seed: int) -> float:
    return float(np.random.default_rng(seed).normal(size=100).sum())


# --- the same as the serial run -------------------------------------------------------------------


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("batch_size", ["auto", 7])
def test_the_serial_numbers(pool: JobPool, return_as: str, batch_size: Any) -> None:
    expected = [simulate(seed) for seed in range(50)]
    with joblib.parallel_config(backend=NAME, pool=pool):
        parallel = Parallel(return_as=return_as, batch_size=batch_size)
        found = list(parallel(delayed(simulate)(seed) for seed in range(50)))
    if return_as == "generator_unordered":
        expected.sort()
        found.sort()
    assert found == expected


def test_lambdas_closures_and_arguments_by_name(pool: JobPool) -> None:
    with joblib.parallel_config(backend=NAME, pool=pool):
        factor = 3
        assert Parallel()(delayed(lambda x: x * factor)(x) for x in range(5)) == [0, 3, 6, 9, 12]
        assert Parallel()([delayed(int)("ff", base=16), delayed(math.sqrt)(4)]) == [255, 2]
        assert Parallel()([]) == []


def test_workers_stay_warm_and_their_number_is_that_of_n_jobs(tmp_path: Path) -> None:
    def pids(n_jobs: int) -> set[int]:
        folder = tmp_path / str(time.monotonic_ns())
        folder.mkdir()
        calls = [delayed(meet)(folder, n_jobs) for _ in range(n_jobs)]
        return set(Parallel(n_jobs, backend=NAME, batch_size=1)(calls))

    first = pids(2)
    assert len(first) == 2
    assert os.getpid() not in first
    assert pids(2) == first
    with Parallel(**TWO) as parallel:
        for _ in range(2):
            assert set(parallel(delayed(os.getpid)() for _ in range(4))) <= first
    if os.cpu_count() == 2:  # else they would have other numbers of threads
        assert pids(3) > first
    primitive_jobs.joblib.shutdown()
    assert not any(psutil.pid_exists(pid) for pid in first)
    assert not pids(2) & first


def test_short_calls_share_jobs(pool: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine, too, a call is short then.
    monkeypatch.setattr(PrimitiveJobsBackend, "MIN_IDEAL_BATCH_DURATION", 100.0)
    with joblib.parallel_config(backend=NAME, pool=pool):
        parallel = Parallel()
        assert parallel(delayed(abs)(-x) for x in range(400)) == list(range(400))
        assert parallel.n_dispatched_batches < 200


def test_batches_are_made_by_how_long_they_ran_not_by_how_long_they_waited(pool: JobPool) -> None:
    backend = PrimitiveJobsBackend(pool=pool)
    job = pool.submit(time.sleep, 0.01)
    job.wait()
    assert backend.retrieve_result_callback(job) is None
    backend.batch_completed(1, 100.0)
    assert 0.009 < backend._smoothed_batch_duration < 10


def test_cached_functions(pool: JobPool, tmp_path: Path, marks: Path) -> None:
    def cube(x: int) -> int:
        (marks / str(x)).touch()
        return int(x**3)

    cached = joblib.Memory(tmp_path / "cache", verbose=0).cache(cube)
    with joblib.parallel_config(backend=NAME, pool=pool):
        for _ in range(2):
            assert Parallel()(delayed(cached)(x) for x in range(4)) == [0, 1, 8, 27]
            for mark in marks.iterdir():
                mark.unlink()
        assert not list(marks.iterdir())
        Parallel()(delayed(cached)(x) for x in range(4))
        assert not list(marks.iterdir())


def test_a_script_whose_functions_are_in_main(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os
            import joblib
            import primitive_jobs.joblib

            def square(x):
                return x * x, os.getpid()

            primitive_jobs.joblib.register(make_default=True)
            found = joblib.Parallel(n_jobs=2)(joblib.delayed(square)(x) for x in range(4))
            print([value for value, _ in found], any(pid == os.getpid() for _, pid in found))
            backend, _ = joblib.parallel.get_active_backend()
            print(joblib.effective_n_jobs(2), type(backend).__name__)
            results = joblib.Parallel(n_jobs=2, return_as="generator")(
                joblib.delayed(square)(x) for x in range(4)
            )
            print(*[value for value, _ in results])
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[0, 1, 4, 9] False", "2 PrimitiveJobsBackend", "0 1 4 9"]
    assert done.returncode == 0


# --- how many -------------------------------------------------------------------------------------


def test_effective_n_jobs(pool: JobPool) -> None:
    cpus = joblib.cpu_count()
    with joblib.parallel_config(backend=NAME):
        assert joblib.effective_n_jobs(3) == 3
        assert joblib.effective_n_jobs(-1) == cpus
        assert joblib.effective_n_jobs(-cpus - 5) == 1
        assert joblib.effective_n_jobs(None) == 1
        with pytest.raises(ValueError, match="n_jobs == 0"):
            joblib.effective_n_jobs(0)
        with pytest.raises(ValueError, match="n_jobs == 0"):
            Parallel(n_jobs=0)([delayed(abs)(1)])
        assert Parallel()([delayed(os.getpid)()]) == [os.getpid()]
        assert Parallel(n_jobs=1)([delayed(os.getpid)()]) == [os.getpid()]
    with joblib.parallel_config(backend=NAME, pool=pool):
        assert [joblib.effective_n_jobs(n) for n in (1, 2, 3, -1, -2)] == [1, 2, 2, 2, 1]


def test_not_below_a_daemonic_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    backend = PrimitiveJobsBackend()
    assert backend.effective_n_jobs(1) == 1
    with pytest.warns(UserWarning, match="daemonic"):
        assert backend.effective_n_jobs(2) == 1


def span(seconds: float) -> tuple[float, float]:
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


def test_n_jobs_holds_in_a_pool_that_is_larger(marks: Path) -> None:
    with JobPool(3, spare_workers=0) as three, joblib.parallel_config(backend=NAME, pool=three):
        # All workers are there, or the first one might do all before the second is.
        for job in [three.submit(meet, marks, 3) for _ in range(3)]:
            job.result(PATIENCE)
        spans = Parallel(n_jobs=2, pre_dispatch="all", batch_size=1)(
            delayed(span)(0.03) for _ in range(12)
        )
        edges = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
        assert max(itertools.accumulate(step for _, step in edges)) == 2


def test_n_jobs_holds_in_a_pool_that_grows_meanwhile() -> None:
    with JobPool(2, spare_workers=0) as two, joblib.parallel_config(backend=NAME, pool=two):

        def tasks() -> Iterator[Any]:
            for number in range(12):
                if number == 4:
                    two.resize(4)
                yield delayed(span)(0.15)

        spans = Parallel(n_jobs=2, pre_dispatch="all", batch_size=1)(tasks())
        edges = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
        assert max(itertools.accumulate(step for _, step in edges)) == 2


def test_what_joblib_lets_through_is_logged_with_its_job(
    pool: JobPool, caplog: pytest.LogCaptureFixture
) -> None:
    def tasks() -> Iterator[Any]:
        for number in range(20):
            if number == 10:
                raise GeneratorExit
            yield delayed(abs)(-number)

    with joblib.parallel_config(backend=NAME, pool=pool), caplog.at_level("ERROR"):
        assert Parallel(n_jobs=2, batch_size=1)(tasks()) == list(range(10))
        # joblib has all results a moment before its callback, which raises, is out.
        until(lambda: caplog.records, "the record")
    (record,) = caplog.records
    assert (record.name, record.__dict__["job_name"]) == ("primitive_jobs", "abs")
    assert record.__dict__["job_id"] in record.getMessage()


def test_threads_of_a_worker(pool: JobPool) -> None:
    def threads() -> Any:
        return Parallel(n_jobs=2)(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2))

    with joblib.parallel_config(backend=NAME, inner_max_num_threads=3):
        assert threads() == ["3", "3"]
    with joblib.parallel_config(backend=NAME):
        own = str(max(1, joblib.cpu_count() // 2))
        assert threads() == [os.environ.get("OMP_NUM_THREADS", own)] * 2
    with (
        joblib.parallel_config(backend=NAME, pool=pool, inner_max_num_threads=3),
        pytest.raises(ValueError, match="inner_max_num_threads"),
    ):
        threads()


# --- an early end stops the work ------------------------------------------------------------------


@pytest.mark.parametrize("return_as", ["list", "generator_unordered"])
def test_a_timeout_of_joblib_stops_what_runs(marks: Path, return_as: str) -> None:
    def calls() -> Iterator[Any]:
        for place in range(6):
            if place == 2:  # joblib takes four before it looks at the time
                until(lambda: len(traces(marks)) == 2, "both")
            yield delayed(spin)(marks)

    with pytest.raises(joblib.parallel.TimeoutError):
        list(Parallel(**TWO, timeout=0.1, return_as=return_as, batch_size=1)(calls()))
    assert all_gone(marks)
    assert Parallel(**TWO)(delayed(abs)(x) for x in range(4)) == [0, 1, 2, 3]


def test_an_error_of_a_task_stops_the_others_and_arrives_as_itself(marks: Path) -> None:
    with Parallel(**TWO) as parallel:
        calls = [delayed(spin_or)(marks, place, KeyError("on purpose")) for place in range(6)]
        with pytest.raises(KeyError, match="on purpose") as caught:
            parallel(calls)
        assert "in spin_or" in str(caught.value.__cause__)
        assert all_gone(marks)
        assert parallel(delayed(abs)(x) for x in range(4)) == [0, 1, 2, 3]


def test_a_generator_that_is_closed_or_dropped_stops_what_runs(marks: Path) -> None:
    for close in (True, False):
        results = [
            Parallel(**TWO, return_as="generator", batch_size=1)(
                delayed(spin_or)(marks, place, "first") for place in range(6)
            )
        ]
        assert next(results[0]) == "first"
        with pytest.warns(UserWarning, match="cancelled"):
            results[0].close() if close else results.clear()
        assert all_gone(marks)


def test_ctrl_c_stops_what_runs(marks: Path) -> None:
    def interrupt() -> None:
        until(lambda: len(traces(marks)) == 2, "both")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Parallel(**TWO)(delayed(spin)(marks) for _ in range(5))
    assert all_gone(marks)
    thread.join()


def test_a_call_that_ends_early_leaves_its_neighbour_alone(two: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with joblib.parallel_config(backend=NAME, pool=two):
        lasting = Parallel(return_as="generator")(delayed(hold)(gate, x) for x in range(4))
        with pytest.raises(ZeroDivisionError):  # before it began: the iterable's own
            Parallel()(delayed(abs)(1 // (3 - x)) for x in range(9))
        gate.touch()
        assert list(lasting) == [0, 1, 2, 3]


def test_a_worker_that_dies_costs_its_call_and_not_the_pool(two: JobPool) -> None:
    with joblib.parallel_config(backend=NAME, pool=two):
        with pytest.raises(WorkerDiedError) as caught:
            Parallel()(delayed(os._exit)(3) for _ in range(4))
        assert caught.value.exitcode == 3
        assert Parallel()(delayed(abs)(x) for x in range(4)) == [0, 1, 2, 3]


# --- a pool that is given, and options ------------------------------------------------------------


def test_a_pool_that_is_given_is_used_and_stays_open(pool: JobPool) -> None:
    pids = {pool.submit(os.getpid).result(PATIENCE) for _ in range(20)}
    with joblib.parallel_config(backend=NAME, pool=pool.options(priority=1)):
        found = set(Parallel()(delayed(os.getpid)() for _ in range(20)))
    found |= set(Parallel(backend=PrimitiveJobsBackend(pool=pool))([delayed(os.getpid)()]))
    assert len(found | pids) <= 2
    assert os.getpid() not in found
    assert pool.submit(abs, -1).result(PATIENCE) == 1
    assert not primitive_jobs.joblib._kept


def die_once(mark: Path) -> str:
    if mark.exists():
        return "alive"
    mark.touch()
    os._exit(1)


def take_memory() -> int:
    data = bytearray(1 << 29)
    data[:: 1 << 12] = b"x" * (1 << 17)
    time.sleep(PATIENCE)
    return len(data)


def test_options_of_jobs(two: JobPool, marks: Path) -> None:
    with joblib.parallel_config(backend=NAME, pool=two, retries=1):
        assert Parallel()(delayed(die_once)(marks / name) for name in "ab") == ["alive"] * 2
    with (
        joblib.parallel_config(backend=NAME, pool=two, timeout=0.1),
        pytest.raises(JobTimeoutError, match="hold"),
    ):
        Parallel()(delayed(hold)(marks / "never") for _ in range(2))


def test_options_given_to_parallel() -> None:
    """Which is possible since joblib 1.5."""
    with pytest.raises(JobMemoryError):
        Parallel(**TWO, memory_limit="400 MB")(delayed(take_memory)() for _ in range(2))
    with pytest.raises(TypeError, match="unknown option 'memry'"):
        Parallel(**TWO, memry="400 MB")(delayed(abs)(x) for x in range(2))
    assert Parallel(**TWO, memory="400 MB")(delayed(abs)(-x) for x in range(2)) == [0, 1]


def test_wrong_ones_are_named() -> None:
    with pytest.raises(TypeError, match="unknown option 'tiemout'"):
        joblib.parallel_config(backend=NAME, tiemout=3)
    with pytest.raises(ValueError, match="retries"):
        joblib.parallel_config(backend=NAME, retries=-1)
    with pytest.raises(TypeError, match="pool must be a JobPool"):
        joblib.parallel_config(backend=NAME, pool=4)


def test_a_pool_that_is_shut_down_meanwhile_never_hangs_a_call() -> None:
    pool = JobPool(2)
    with joblib.parallel_config(backend=NAME, pool=pool):

        def calls() -> Iterator[Any]:
            for x in range(9):
                if x == 6:  # where a thread of the backend's asks for it
                    pool.shutdown(wait=False)
                yield delayed(abs)(x)

        with pytest.raises(PoolClosedError):
            Parallel()(calls())
        with pytest.raises(PoolClosedError):
            Parallel()(delayed(abs)(x) for x in range(9))
    pool.shutdown()


def test_a_cancel_by_somebody_else_is_told(two: JobPool, tmp_path: Path) -> None:
    def cancel() -> None:
        until(lambda: len(two.jobs()) == 2, "the jobs")  # no more than may run
        assert two.jobs()[1].cancel()
        (tmp_path / "gate").touch()

    thread = threading.Thread(target=cancel)
    thread.start()
    with joblib.parallel_config(backend=NAME, pool=two), pytest.raises(JobCancelledError):
        Parallel()(delayed(hold)(tmp_path / "gate") for _ in range(4))
    thread.join()


# --- what is within a call ------------------------------------------------------------------------


def test_nested_calls() -> None:
    def threads(n: int) -> Any:
        return Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(n))

    def processes(n: int) -> tuple[int, Any]:
        with joblib.parallel_config(backend=NAME):
            share_of_cpus = joblib.effective_n_jobs(-1)
        return share_of_cpus, Parallel(**TWO)(delayed(abs)(-x) for x in range(n))

    with joblib.parallel_config(backend=NAME, n_jobs=2):
        for pids in Parallel()(delayed(threads)(3) for _ in range(3)):
            assert len(set(pids)) == 1
            assert os.getpid() not in pids
        for cpus, values in Parallel()(delayed(processes)(3) for _ in range(2)):
            assert cpus == max(1, joblib.cpu_count() // 2)
            assert values == [0, 1, 2]


def test_calls_at_the_same_time(pool: JobPool) -> None:
    with joblib.parallel_config(backend=NAME, pool=pool):
        one = Parallel(return_as="generator")(delayed(abs)(x) for x in range(30))
        other = Parallel(return_as="generator")(delayed(abs)(-x) for x in range(30))
        assert list(zip(one, other, strict=True)) == [(x, x) for x in range(30)]


def test_an_iterable_may_wait_for_another_call_over_the_same_pool(pool: JobPool) -> None:
    with joblib.parallel_config(backend=NAME, pool=pool):
        squares = Parallel(return_as="generator")(delayed(pow)(x, 2) for x in range(30))
        assert Parallel()(delayed(math.isqrt)(x) for x in squares) == list(range(30))


class CannotBeUnpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_what_cannot_be_pickled_is_told(two: JobPool) -> None:
    with joblib.parallel_config(backend=NAME, pool=two):
        with pytest.raises(SerializationError, match="lock"):
            Parallel()(delayed(id)(threading.Lock() if x == 7 else x) for x in range(9))
        with pytest.raises(SerializationError, match="lock"):
            Parallel()(delayed(threading.Lock)() for _ in range(9))
        with pytest.raises(SerializationError, match="no number"):
            Parallel()(delayed(CannotBeUnpickled)() for _ in range(9))
        with pytest.raises(SerializationError, match="no number"):
            Parallel()(delayed(id)(CannotBeUnpickled()) for _ in range(9))
        assert Parallel()(delayed(abs)(x) for x in range(4)) == [0, 1, 2, 3]


def test_large_arrays_arrive_writable_and_private(pool: JobPool) -> None:
    def change(array: Any) -> tuple[float, type]:
        array += 1
        return float(array.sum()), type(array)

    data = np.zeros(1 << 18)  # twice what joblib's own processes would get as a file
    with joblib.parallel_config(backend=NAME, pool=pool):
        assert Parallel()(delayed(change)(data) for _ in range(4)) == [(1 << 18, np.ndarray)] * 4
        handle = share(data)
        sums = Parallel()(delayed(lambda array: array.sum())(handle) for _ in range(4))
        assert sums == [0.0] * 4
    assert not data.any()


def test_a_file_that_the_caller_mapped_is_mapped_by_the_worker(
    pool: JobPool, tmp_path: Path
) -> None:
    def write(row: Any, held: dict[str, Any], place: int) -> str:
        row[:] = place
        held["column"][place] = 2 * place
        return type(row).__name__

    table = np.memmap(tmp_path / "table", dtype=float, shape=(8, 10), mode="w+")
    column = np.asarray(np.memmap(tmp_path / "column", dtype=int, shape=8, mode="w+"))
    with joblib.parallel_config(backend=NAME, pool=pool):
        kinds = Parallel()(delayed(write)(table[i], {"column": column}, i) for i in range(8))
    assert kinds == ["memmap"] * 8
    assert (table == np.arange(8.0)[:, None]).all()
    assert list(column) == list(range(0, 16, 2))

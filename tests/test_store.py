"""`SweepStore`: each point runs once, whatever its end; its row tells what became of it.

`local` are those, too, that are about the file alone, and would be the same over any pool.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from helpers import PATIENCE, expect, hold, traces, until, write_mark

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobPool,
    JobStatus,
    JobTimeoutError,
    SerializationError,
    StaleResultsError,
    StoreBusyError,
    StoredFunction,
    StoredRow,
    StoreError,
    Sweep,
    SweepStore,
    WorkerDiedError,
    as_completed,
    checkpoint,
    job_rng,
    report,
    resume,
    track,
)
from primitive_jobs.store import writer
from primitive_jobs.store.jobs import StoredJob

if TYPE_CHECKING:
    from makers import MakePool

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def square(x: float, shift: float = 0.0) -> float:
    return x * x + shift


def marked_square(x: int, folder: Path) -> int:
    """It counts its calls."""
    write_mark(folder, f"{x}-{time.monotonic_ns()}")
    return x * x


def counted(store: SweepStore) -> StoredFunction[..., int]:
    return store.function(marked_square, ignore="folder")


# --- each point once -----------------------------------------------------------------------------


def test_a_second_program_runs_what_is_left(pool: JobPool, path: Path, marks: Path) -> None:
    with SweepStore(path) as store:
        first = counted(store).sweep([(x, marks) for x in range(6)], pool)
        assert sorted(row.result for row in first) == [x * x for x in range(6)]
    with SweepStore(path) as store:
        second = counted(store).sweep([{"x": x, "folder": marks} for x in range(10)], pool)
        assert second.counts().stored == 6
        assert second.results() == [x * x for x in range(10)]
        assert [row.status for row in second] == [JobStatus.DONE] * 10
    assert len(traces(marks)) == 10


def test_arguments_are_one_point_however_they_are_given(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        function = store.function(square)
        points = [2.0, (2.0,), {"x": 2.0}, (2.0, 0.0), {"x": 2.0, "shift": 0.0}, (2.0, 1.0)]
        sweep = function.sweep(points, pool)
        assert sweep.results() == [4.0] * 5 + [5.0]
        assert sweep.counts().points == 2
        assert len(list(sweep)) == 2
        assert len({job.job_id() for job in sweep.jobs()}) == 2
        assert function.submit(pool, 2.0, shift=0.0).result(PATIENCE) == 4.0
        assert len(list(store.rows())) == 2


def test_a_job_of_a_stored_point_is_done_at_once(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        function = store.function(square)
        ran = function.submit(pool, 3)
        assert ran.result(PATIENCE) == 9
        assert ran.usage is not None
    with SweepStore(path) as store:
        job = store.function(square).submit(pool, 3)
        assert job.done()
        assert job.name == ran.name == "square"
        assert job.result() == 9
        assert job.usage == ran.usage
        assert job.started == pytest.approx(ran.started, abs=0.01)
        assert job.duration == pytest.approx(ran.duration, abs=0.01)
        assert job.metadata["key"] == next(store.rows()).key
        assert not job.cancel()
        with pytest.raises(JobError, match="submitted before"):
            job.submit(pool)
        travelled = pickle.loads(pickle.dumps(job))
        assert travelled.result() == 9
        assert travelled.job_id() == job.job_id()


def test_a_point_that_runs_has_one_job(two: JobPool, path: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with SweepStore(path) as store:
        function = store.function(hold)
        job = function.submit(two, gate, 1)
        assert function.submit(two, gate, 1) is job
        sweep = function.sweep([(gate, 1), (gate, 2)], two)
        assert sweep.jobs()[0] is job
        until(lambda: sweep.counts().running == 2, "both")
        gate.touch()
        assert sweep.results() == [1, 2]
        assert len(list(store.rows())) == 2


@pytest.mark.local
def test_threads_that_ask_for_the_same_points(two: JobPool, path: Path, marks: Path) -> None:
    results: list[list[int]] = []
    with SweepStore(path) as store:
        function = counted(store)

        def ask() -> None:
            results.append(function.sweep([(x, marks) for x in range(30)], two).results())

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert results == [[x * x for x in range(30)]] * 4
    assert len(traces(marks)) == 30


def test_a_job_that_nobody_holds_is_stored(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        store.function(square).submit(pool, 5)
    assert [row.result for row in SweepStore(path).rows()] == [25]


@pytest.mark.local
def test_a_store_that_is_dropped_writes_what_runs(pool: JobPool, path: Path) -> None:
    job = SweepStore(path).function(square).submit(pool, 5)
    job.wait(PATIENCE)
    until(lambda: len(list(SweepStore(path).rows())) == 1, "its row")
    until(lambda: not Path(f"{path}.lock").read_text(), "the end of its lock")


# --- ends ----------------------------------------------------------------------------------------


def end_as(how: str, folder: Path) -> str:
    write_mark(folder, f"{how}-{time.monotonic_ns()}")
    print(f"about to be {how}", flush=True)
    report(0.5, "half of it", energy=1.5)
    if how == "raised":
        raise ValueError("on purpose")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "slept":
        time.sleep(1000)
    if how == "not pickled":
        return threading.Lock()  # type: ignore[return-value]
    return how


ENDS: dict[str, type[BaseException] | None] = {
    "returned": None,
    "raised": ValueError,
    "killed": WorkerDiedError,
    "slept": JobTimeoutError,
    "not pickled": SerializationError,
}


@pytest.mark.parametrize("how", ENDS)
def test_each_end_has_its_row(make_pool: MakePool, path: Path, marks: Path, how: str) -> None:
    kind = ENDS[how]
    with make_pool(1, output="capture") as pool, SweepStore(path) as store:
        function = store.function(end_as, ignore="folder")
        limited = pool.options(timeout=1.0 if how == "slept" else None)
        job = function.submit(limited, how, marks)
        job.wait(PATIENCE)
        (row,) = function.sweep([(how, marks)], limited) if kind is None else self_rows(store)
        assert row.arguments["how"] == how
        assert row.output == f"about to be {how}\n"
        assert row.progress is not None
        assert (row.progress["fraction"], row.progress["values"]) == (0.5, {"energy": 1.5})
        assert row.attempts == 1
        assert row.started is not None
        assert row.started <= row.ended
        if kind is None:
            assert (row.status, row.result, row.plain) == (JobStatus.DONE, how, json.dumps(how))
            return
        assert row.status is JobStatus.ERROR
        assert row.error_type == kind.__name__
        assert row.traceback is not None
        with pytest.raises(kind):
            _ = row.result
        with pytest.raises(kind):
            job.result()
    # Failed points run again, unless that is not wanted.
    with make_pool(1) as pool, SweepStore(path) as store:
        function = store.function(end_as, ignore="folder", retry_errors=False)
        with pytest.raises(kind):
            function.submit(pool, how, marks).result(PATIENCE)
        assert len(traces(marks)) == 1
        again = store.function(end_as, ignore="folder").submit(pool.options(timeout=1), how, marks)
        again.wait(PATIENCE)
    assert len(traces(marks)) == 2


def self_rows(store: SweepStore) -> list[StoredRow]:
    until(lambda: bool(list(store.rows())), "the row")
    return list(store.rows())


def test_a_cancelled_point_runs_again(two: JobPool, path: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with SweepStore(path) as store:
        function = store.function(hold)
        sweep = function.sweep([(gate, n) for n in range(4)], two)
        until(lambda: sweep.counts().running == 2, "two of them")
        sweep.cancel()
        assert {row.status for row in sweep} == {JobStatus.CANCELLED}
        with pytest.raises(JobCancelledError):
            sweep.results()
        gate.touch()
        again = function.sweep([(gate, n) for n in range(4)], two)
        assert again.counts().stored == 0
        assert again.results() == [0, 1, 2, 3]
        assert len(list(store.rows())) == 4


def test_an_end_by_an_exception_cancels(two: JobPool, path: Path, tmp_path: Path) -> None:
    def leave() -> Sweep[Any]:
        with contextlib.suppress(ZeroDivisionError), SweepStore(path) as store:
            sweep = store.function(hold).sweep([(tmp_path / "gate", n) for n in range(3)], two)
            until(lambda: sweep.counts().running == 2, "two of them")
            raise ZeroDivisionError
        return sweep

    sweep = leave()
    assert [row.status for row in SweepStore(path).rows()] == [JobStatus.CANCELLED] * 3
    assert [job.status() for job in sweep.jobs()] == [JobStatus.CANCELLED] * 3


@pytest.mark.local
def test_a_call_that_cannot_be_pickled(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        function = store.function(square, key=lambda x: "lock")
        sweep = function.sweep([threading.Lock(), threading.Lock()], pool)
        (row,) = sweep
        assert row.error_type == "SerializationError"
        with pytest.raises(SerializationError):
            sweep.results()


def test_a_pool_that_is_closed_costs_nothing(make_pool: MakePool, path: Path) -> None:
    with SweepStore(path) as store:
        pool = make_pool(1)
        pool.shutdown()
        with pytest.raises(RuntimeError, match="shut down"):
            store.function(square).sweep([1, 2], pool)
        assert not list(store.rows())


@pytest.mark.parametrize("how", ["returned", "raised", "cancelled"])
def test_a_job_of_an_earlier_program_answers_as_any(
    make_pool: MakePool, path: Path, marks: Path, how: str
) -> None:
    with make_pool(1) as pool, SweepStore(path) as store:
        function = store.function(end_as, ignore="folder", retry_errors=False)
        sweep = function.sweep([("slept" if how == "cancelled" else how, marks)], pool)
        if how == "cancelled":
            until(lambda: sweep.counts().running == 1, "its begin")
            sweep.cancel()
        (row,) = sweep
    job: StoredJob[str] = StoredJob.of_row(row)
    done: list[object] = []
    job.add_done_callback(done.append)
    assert done == [job]
    assert job.wait(0)
    assert job.in_final_state()
    assert not job.running()
    assert (job.pid, job.node, job.output(), job.progress) == (None, None, None, None)
    assert job.attempts == row.attempts
    assert job.status() is row.status
    assert [status for status, _ in job.history()][-1] is row.status
    assert row.status.name in repr(job)
    assert row.status.name in job._repr_html_()
    assert job.partial_result(default=None) is None
    assert job.cancel() is (how == "cancelled")
    assert list(as_completed([job])) == [job]
    if how == "returned":
        assert (job.result(), job.exception()) == ("returned", None)
        assert job.result() is job.result()
    elif how == "raised":
        assert isinstance(job.exception(), ValueError)
        assert "on purpose" in repr(job)
    else:
        with pytest.raises(JobCancelledError):
            job.result()


# --- what is stored ------------------------------------------------------------------------------


def large(size: int) -> array.array[int]:
    return array.array("B", bytes(range(256)) * (size // 256))


@pytest.mark.local
@pytest.mark.parametrize("size", [1024, 200_000, 3_000_000])
def test_results_of_any_size(pool: JobPool, path: Path, size: int) -> None:
    numpy = pytest.importorskip("numpy")

    def arrays(size: int) -> Any:
        return {"a": numpy.arange(size // 8, dtype=float), "b": numpy.zeros((2, 0))}

    with SweepStore(path) as store:
        function = store.function(arrays, version=1)
        (row,) = function.sweep([size], pool)
        assert row.plain is None
        assert (row.result["a"] == numpy.arange(size // 8)).all()
        row.result["a"][:] = 0  # it is made anew each time
        assert row.result["a"].sum() > 0
    files = list(Path(f"{path}.d").glob("*")) if size > 128 * 1024 else []
    assert len(files) == (size > 128 * 1024)
    with SweepStore(path) as store:
        value = store.result(row.key)
        assert (value["a"] == numpy.arange(size // 8)).all()
        assert value["b"].shape == (2, 0)
        value["a"] += 1  # it may be written to


def test_who_changes_a_result_changes_nothing_stored(pool: JobPool, path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with SweepStore(path) as store:
        function = store.function(numpy.ones, version=1)
        for size in range(1_000_000, 1_000_005):
            job = function.submit(pool, size)
            job.result(PATIENCE)[:] = 0
            (row,) = function.sweep([size], pool)
            assert row.result.sum() == size


@pytest.mark.local
def test_plain_results_are_shown_without_unpickling(pool: JobPool, path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    values = [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ("ü", '"\\u00fc"'),
        ({"m": 0.5, "n": [1, (2, None)]}, '{"m":0.5,"n":[1,[2,null]]}'),
        (numpy.float64(0.1), "0.1"),
        (numpy.float32(0.5), "0.5"),
        (numpy.int64(-3), "-3"),
        (numpy.bool_(True), "true"),
        (numpy.dtype(">f8").type(2.0), "2.0"),
        (1j, None),
        (b"x", None),
        ({1: 2}, None),
        ({1, 2}, None),
        (numpy.zeros(2), None),
        (ValueError("x"), None),
    ]

    def value(place: int) -> Any:
        return values[place][0]

    with SweepStore(path) as store:
        sweep = store.function(value, version=1).sweep(range(len(values)), pool)
        sweep.results()
        by_place = {row.arguments["place"]: row.plain for row in sweep}
    assert by_place == {place: plain for place, (_, plain) in enumerate(values)}


def evil() -> Any:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("false",)

    return [Evil()]


def test_a_pickle_that_runs_code_is_not_plain() -> None:
    from primitive_jobs.store.contents import plain_of

    assert plain_of(pickle.dumps(evil())) is None
    loop: list[Any] = []
    loop.append(loop)
    assert plain_of(pickle.dumps(loop)) is None
    assert plain_of(b"\x80\x05garbage") is None
    assert plain_of(pickle.dumps([1])) == "[1]"


@pytest.mark.local
def test_rows_of_one_name_and_status(pool: JobPool, path: Path) -> None:
    def fail(x: int) -> float:
        return 1 / x

    with SweepStore(path) as store:
        for row in store.function(fail, version="a").sweep([0, 1], pool):
            assert row.version == "a"
        store.function(square).sweep([1], pool).results()
        assert {row.name for row in store.rows()} == {"square", fail.__qualname__}
        assert [row.arguments for row in store.rows("square")] == [{"x": 1, "shift": 0.0}]
        assert len(list(store.rows(status="ERROR"))) == 1
        assert len(list(store.rows(status=JobStatus.DONE))) == 2
        with pytest.raises(ValueError, match="status must be"):
            store.rows(status="done")
        with pytest.raises(ValueError, match="status must be"):
            store.rows(status=JobStatus.RUNNING)
        with pytest.raises(LookupError, match="no row"):
            store.result("f" * 32)


@pytest.mark.local
def test_forget(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        big = store.function(large, version=1)
        big.sweep([300_000, 400_000], pool).results()
        square_rows = list(store.function(square).sweep([1, 2, 3], pool))
        with pytest.raises(TypeError, match="never both"):
            store.forget()
        with pytest.raises(TypeError, match="never both"):
            store.forget("square", keys=[])
        assert store.forget(keys=[square_rows[0].key, square_rows[0].key, "0" * 32]) == 1
        assert len(list(store.rows("square"))) == 2
        with pytest.raises(LookupError):
            store.result(square_rows[0].key)
        assert len(list(Path(f"{path}.d").glob("*"))) == 2
        assert store.forget("large") == 2
        assert not list(Path(f"{path}.d").glob("*"))
        assert store.forget("large") == 0
        assert big.sweep([300_000], pool).counts().stored == 0


@pytest.mark.local
def test_track_shows_a_sweep(pool: JobPool, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SweepStore(path) as store:
        function = store.function(square)
        function.sweep([1, 2], pool).results()
        rows = list(track(function.sweep([1, 2, 3, 4], pool), "squares"))
        assert sorted(row.result for row in rows) == [1, 4, 9, 16]
    assert "squares: 4/4" in capsys.readouterr().err


@pytest.mark.local
def test_a_loop_that_is_left_does_not_end_the_sweep(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        sweep = store.function(square).sweep(range(20), pool)
        for _ in track(sweep, disable=True):
            break
    assert len(list(sweep)) == 20


# --- seeds ---------------------------------------------------------------------------------------


def draw(x: int) -> float:
    return float(job_rng().random())


def test_randomness_follows_from_seed_and_point(make_pool: MakePool, tmp_path: Path) -> None:
    drawn: dict[str, list[float]] = {}
    for name, seed, points in (
        ("all", 7, [1, 2, 3, 4]),
        ("in another order", 7, [4, 3, 2, 1]),
        ("another seed", 8, [1, 2, 3, 4]),
    ):
        with make_pool(2, seed=seed) as pool, SweepStore(tmp_path / f"{name}.db") as store:
            pool.submit(abs, 1).result(PATIENCE)
            drawn[name] = store.function(draw).sweep(points, pool).results()
            assert pool.submit(draw, 0).result(PATIENCE) == numbered(seed)
    assert drawn["in another order"] == drawn["all"][::-1]
    assert not set(drawn["another seed"]) & set(drawn["all"])
    assert len(set(drawn["all"])) == 4


def numbered(seed: int) -> float:
    """What the second job of a pool draws: points take no number."""
    numpy = pytest.importorskip("numpy")
    return float(numpy.random.default_rng(numpy.random.SeedSequence(seed).spawn(2)[1]).random())


@pytest.mark.local
def test_another_seed_is_another_point(make_pool: MakePool, path: Path) -> None:
    with SweepStore(path) as store:
        function = store.function(draw)
        values = []
        for seed in (1, 2, 1, None):
            with make_pool(1, seed=seed) as pool:
                values.append(function.submit(pool, 1).result(PATIENCE))
        assert values[0] == values[2] != values[1]
        assert len(list(store.rows())) == 3
        assert [row.seed is None for row in store.rows()] == [False, False, True]


# --- checkpoints ---------------------------------------------------------------------------------


def walk(steps: int, folder: Path) -> list[float]:
    """Draw some numbers; the first time it stays at half of them."""
    drawn: list[float]
    start, drawn = resume(default=(0, []))
    write_mark(folder, f"from-{start}")
    for step in range(start, steps):
        drawn.append(float(job_rng().random()))
        checkpoint((step + 1, drawn), force=True)
        if step + 1 == steps // 2 and not (folder / "go").exists():
            write_mark(folder, "half")
            time.sleep(1000)
    return drawn


@pytest.mark.parametrize("end", ["cancelled", "killed", "timed out"])
def test_a_point_goes_on_in_the_next_program(
    make_pool: MakePool, path: Path, marks: Path, tmp_path: Path, end: str
) -> None:
    with make_pool(1, seed=3) as pool, SweepStore(path) as store:
        function = store.function(walk, ignore="folder")
        limited = pool.options(timeout=3.0 if end == "timed out" else None)
        job = function.submit(limited, 10, marks)
        until((marks / "half").exists, "half of it")
        if end == "cancelled":
            job.cancel()
        elif end == "killed":
            pid = job.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)  # on a node of these tests, too: it is on this machine
        job.wait(PATIENCE)
    (kept,) = Path(f"{path}.d").glob("*.checkpoint")
    (marks / "go").touch()
    with make_pool(1, seed=3) as pool, SweepStore(path) as store:
        function = store.function(walk, ignore="folder")
        job = function.submit(pool, 10, marks)
        drawn = job.result(PATIENCE)
        (row,) = function.sweep([(10, marks)], pool)
        assert row.status is JobStatus.DONE
    assert (marks / "from-5").exists()
    assert not kept.exists()
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "go").touch()
    with make_pool(1, seed=3) as pool, SweepStore(tmp_path / "other.db") as store:
        assert (
            store.function(walk, ignore="folder").submit(pool, 10, whole).result(PATIENCE) == drawn
        )


def test_checkpoints_are_copied_while_a_job_runs(one: JobPool, path: Path, marks: Path) -> None:
    with SweepStore(path) as store:
        job = store.function(walk, ignore="folder").submit(one, 10, marks)
        until(lambda: list(Path(f"{path}.d").glob("*.checkpoint")) != [], "a copy")
        assert job.running()
        job.cancel()


@pytest.mark.local
def test_a_damaged_checkpoint_is_none(one: JobPool, path: Path, marks: Path) -> None:
    with SweepStore(path) as store:
        job = store.function(walk, ignore="folder").submit(one, 10, marks)
        until((marks / "half").exists, "half of it")
        job.cancel()
    (kept,) = Path(f"{path}.d").glob("*.checkpoint")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    (marks / "go").touch()
    (marks / "from-0").unlink()
    with SweepStore(path) as store:
        store.function(walk, ignore="folder").submit(one, 10, marks).result(PATIENCE)
    assert (marks / "from-0").exists()
    assert not kept.exists()


@pytest.mark.local
def test_a_stored_job_is_not_resubmitted(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        job = store.function(square).submit(pool, 2)
        job.wait(PATIENCE)
        with pytest.raises(JobError, match="submit its point again"):
            job.resubmit()


# --- one who writes ------------------------------------------------------------------------------


@pytest.mark.local
def test_a_second_store_of_the_process_may_read(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store, SweepStore(path) as other:
        store.function(square).sweep([1], pool).results()
        assert [row.result for row in other.rows()] == [1]
        with pytest.raises(StoreBusyError, match="another SweepStore of this process"):
            other.function(square).sweep([2], pool)
        with pytest.raises(StoreBusyError, match="another SweepStore of this process"):
            other.forget("square")
    with SweepStore(path) as other:
        assert other.function(square).sweep([1, 2], pool).counts().stored == 1


@pytest.mark.local
def test_a_store_that_is_closed(pool: JobPool, path: Path) -> None:
    store = SweepStore(path)
    function = store.function(square)
    function.sweep([1], pool).results()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        function.submit(pool, 2)
    with pytest.raises(StoreError, match="is closed"), store:
        pass
    assert len(list(store.rows())) == 1


@pytest.mark.local
def test_a_fork_does_not_write(tmp_path: Path) -> None:
    source = """
        import os
        from primitive_jobs import JobPool, StoreError, SweepStore

        def square(x):
            return x * x

        with JobPool(1) as pool, SweepStore("{path}") as store:
            function = store.function(square)
            print(function.sweep([1], pool).results(), flush=True)
            child = os.fork()
            if child == 0:
                try:
                    function.submit(None, 2)
                except StoreError as error:
                    print("which this one is a fork of" in str(error), flush=True)
                store.close()
                os._exit(0)
            os.waitpid(child, 0)
            print(function.sweep([1, 2], pool).results())
    """.replace("{path}", str(tmp_path / "results.db"))
    expect(tmp_path, source, "[1]\nTrue\n[1, 4]\n", flags="-W ignore::DeprecationWarning")


# --- no room -------------------------------------------------------------------------------------


@pytest.mark.local
def test_jobs_wait_while_there_is_no_room(
    two: JobPool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "MOST", 50_000)
    monkeypatch.setattr(writer, "RETRY", 0.01)
    real, full = writer.Writer._commit, [True]

    def commit(self: Any, connection: Any, batch: Any) -> Any:
        if full[0]:
            raise OSError(28, "No space left on device")
        return real(self, connection, batch)

    monkeypatch.setattr(writer.Writer, "_commit", commit)
    with SweepStore(path) as store:
        function = store.function(large, version=1)
        first = function.sweep([25_600 + 256 * n for n in range(4)], two)
        until(lambda: store._work.begin().is_full, "too many results")
        second = function.sweep([51_200 + 256 * n for n in range(4)], two)
        time.sleep(0.1)
        assert second.counts().queued == 4
        assert not list(store.rows())
        stopped = second.jobs()[0]
        assert stopped.cancel()
        full[0] = False
        assert len(first.results()) == 4
        statuses = sorted(row.status.name for row in second)
        assert statuses == ["CANCELLED", "DONE", "DONE", "DONE"]
    assert "cannot be written to now" in caplog.text
    assert "is written to again" in caplog.text


@pytest.mark.local
def test_a_disk_that_breaks_is_told(
    two: JobPool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def commit(self: Any, connection: Any, batch: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(writer.Writer, "_commit", commit)
    store = SweepStore(path)
    sweep = store.function(square).sweep([1, 2], two)
    jobs = [one for one in two.jobs() if one.name == "square"]
    with pytest.raises(StoreError, match=r"results\.db: .*Read-only"):
        list(sweep)
    for job in jobs:  # what was not written is not lost for whoever has its job
        assert job.result(PATIENCE) in (1, 4)
    with pytest.raises(StoreError, match=r"results\.db: .*Read-only"):
        store.close()
    assert "cannot be written" in caplog.text


# --- code ----------------------------------------------------------------------------------------


@pytest.mark.local
def test_two_functions_of_one_name(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        store.function(square).sweep([1], pool).results()
        other = store.function(hold, name="square")
        assert other.name == "square"
    first: Any = {}
    exec("def square(x): return x", first)
    first["square"].__module__ = "elsewhere"
    with SweepStore(path) as store:
        function = store.function(first["square"], version=2)
        with pytest.raises(ValueError, match=r"module 'test_store'.*in 'elsewhere'.*name="):
            function.sweep([1], pool)


@pytest.mark.local
def test_what_the_hash_says_is_in_the_rows(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        store.function(square).sweep([1], pool).results()
        store.function(square, version="2").sweep([1], pool).results()
        one, two_ = store.rows("square")
        assert one.code == two_.code != ""
        assert (one.version, two_.version) == (None, "2")
        assert one.key != two_.key


@pytest.mark.local
def test_a_lambda_takes_a_version(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        with pytest.raises(TypeError, match="version="):
            store.function(lambda x: x)
        assert store.function(lambda x: x, version=1).sweep([1], pool).results() == [1]


@pytest.mark.local
@pytest.mark.parametrize("how", ["refuse", "keep", "rerun"])
def test_rows_of_other_code(pool: JobPool, path: Path, tmp_path: Path, how: Any) -> None:
    def made(factor: int) -> Any:
        file = tmp_path / f"module_{factor}.py"
        file.write_text(
            f"F = {factor}\ndef simulate(x):\n    return helper(x)\n"
            "def helper(x):\n    return F * x\n"
        )
        module = type(sys)("simulations")
        module.__file__ = str(file)
        exec(compile(file.read_text(), str(file), "exec"), vars(module))
        sys.modules["simulations"] = module
        cloudpickle.register_pickle_by_value(module)
        return module.simulate

    try:
        with SweepStore(path) as store:
            assert store.function(made(2)).sweep([1, 2], pool).results() == [2, 4]
            function = store.function(made(3), on_change=how)
            if how == "refuse":
                with pytest.raises(
                    StaleResultsError, match=r"2 rows are stored of simulate\(\)"
                ) as told:
                    function.sweep([1], pool)
                assert told.value.changed == ("F",)
                assert "on_change='keep'" in str(told.value)
                assert len(list(store.rows())) == 2
                assert store.function(made(3), version=2).sweep([1], pool).results() == [3]
            elif how == "keep":
                assert function.sweep([1, 2, 3], pool).results() == [2, 4, 9]
            else:
                assert function.sweep([1], pool).results() == [3]
                assert len(list(store.rows())) == 2
                assert function.sweep([1, 2], pool).counts().stored == 1
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules.pop("simulations"))


@pytest.mark.local
def test_wrong_arguments(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        for options, kind in (
            ({"name": 1}, TypeError),
            ({"version": 1.5}, TypeError),
            ({"key": 1}, TypeError),
            ({"on_change": "ask"}, ValueError),
            ({"retry_errors": 1}, TypeError),
            ({"ignore": "verbose"}, ValueError),
        ):
            with pytest.raises(kind, match=next(iter(options))):
                store.function(square, **options)
        function = store.function(square)
        with pytest.raises(TypeError, match="does not take this point"):
            function.sweep([(1, 2, 3)], pool)
        with pytest.raises(TypeError, match="key="):
            function.sweep([object()], pool)
        with pytest.raises(ValueError, match="2 points, but 1 keys"):
            function.sweep([1, 2], pool, keys=["a"])
        for single in ("abc", {"x": 1}, b"x"):
            with pytest.raises(TypeError, match="goes into a list"):
                function.sweep(single, pool)
        with pytest.raises(TypeError, match="pool must be"):
            function.sweep([1], 3)  # type: ignore[arg-type]
        assert function.sweep([], pool).results() == []
        assert not list(store.rows())
    with pytest.raises(TypeError, match="path"):
        SweepStore(3)  # type: ignore[arg-type]


@pytest.mark.local
def test_keys_of_ones_own(pool: JobPool, path: Path) -> None:
    with SweepStore(path) as store:
        function = store.function(square, key=lambda x, **_: round(x))
        assert function.sweep([2.0, 2.1, 3.0], pool).results() == [4.0, 4.0, 9.0]
        assert store.function(square).sweep([5.0, 6.0], pool, keys=["a", "b"]).results() == [25, 36]
        assert store.function(square).sweep([7.0], pool, keys=["a"]).results() == [25]


@pytest.mark.local
def test_the_default_pool(path: Path) -> None:
    with SweepStore(path) as store:
        assert store.function(square).submit(None, 3).result(PATIENCE) == 9
        assert store.function(square).sweep([3, 4]).results() == [9, 16]

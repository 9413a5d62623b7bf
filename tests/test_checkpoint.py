"""`checkpoint` and `resume` in a job; `partial_result` and `resubmit` outside."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, end_by, fleet_of, until

from primitive_jobs import (
    JobError,
    JobMemoryError,
    JobPool,
    JobStatus,
    PoolClosedError,
    PrimitiveJob,
    WorkerDiedError,
    checkpoint,
    current_job,
    job_rng,
    report,
    resume,
    share,
)
from primitive_jobs._wire import notes
from primitive_jobs._wire.parcel import INLINE_LIMIT
from primitive_jobs.inside import checkpoints
from primitive_jobs.insight.salvage import header_of

if TYPE_CHECKING:
    from makers import MakePool

np = pytest.importorskip("numpy")

cloudpickle.register_pickle_by_value(sys.modules[__name__])

BIG = 2 * INLINE_LIMIT


def keep_and(end: str, size: int = 0) -> str:
    """Keep two states, then come to an end of this kind."""
    checkpoint(("first", bytes(size)), force=True)
    checkpoint(("second", b"2" * size), force=True)
    report(0.5)
    return end_by(end)


@pytest.mark.parametrize("size", [0, BIG])
@pytest.mark.parametrize("end", ["returned", "raised", "crashed", "exited", "killed"])
def test_the_last_one_stays_after_each_end(one: JobPool, end: str, size: int) -> None:
    job = one.submit(keep_and, end, size)
    assert job.wait(PATIENCE)
    assert job.status() is (JobStatus.DONE if end == "returned" else JobStatus.ERROR)
    job.exception()
    for _ in range(2):
        assert job.partial_result() == ("second", b"2" * size)


@pytest.mark.parametrize("how", ["slept", "in C"])
def test_it_is_seen_while_the_job_runs_and_after_its_cancel(one: JobPool, how: str) -> None:
    job = one.submit(keep_and, how, BIG)
    until(lambda: job.partial_result(default=(None,))[0] == "second", "its checkpoint")
    assert job.cancel()
    assert job.partial_result() == ("second", b"2" * BIG)


def clean_up() -> None:
    try:
        checkpoint("at work", force=True)
        report(0.1)
        while True:  # CPython sees a signal that comes right before a sleep when that is over
            time.sleep(0.01)
    finally:
        checkpoint("cleaned up", force=True)


def test_one_that_is_cancelled_with_a_grace_keeps_what_it_keeps_then(one: JobPool) -> None:
    job = one.options(grace=PATIENCE).submit(clean_up)
    until(lambda: job.progress is not None, "it works")
    assert job.cancel()
    assert job.partial_result() == "cleaned up"


def test_limits(one: JobPool) -> None:
    job = one.options(timeout=0.5).submit(keep_and, "slept")
    assert job.exception(PATIENCE) is not None
    assert job.partial_result()[0] == "second"


def test_without_one(pool: JobPool) -> None:
    job = pool.options(name="bare").submit(abs, 1)
    assert job.result(PATIENCE) == 1
    with pytest.raises(LookupError, match="job bare has no checkpoint"):
        job.partial_result()
    assert job.partial_result(default=None) is None
    assert PrimitiveJob(abs, 1).partial_result(default=3) == 3


def test_outside_of_a_job() -> None:
    assert not checkpoint("nothing", force=True)
    assert resume() is None
    assert resume(default=(0, "start")) == (0, "start")


def in_a_fork() -> tuple[int, Any]:
    checkpoint("the job's", force=True)
    pid = os.fork()
    if pid == 0:
        written = True
        try:
            written = checkpoint("the child's", force=True)
        finally:
            os._exit(written)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), resume("nothing")


def test_a_child_that_a_job_forks_writes_none(pool: JobPool) -> None:
    job = pool.submit(in_a_fork)
    assert job.result(PATIENCE) == (0, "nothing")
    assert job.partial_result() == "the job's"


# --- what is called, and how often ---------------------------------------------------------------


class Model:
    def __init__(self) -> None:
        self.called = False

    def state(self) -> str:
        return "of a method"

    def __call__(self) -> str:
        raise AssertionError("an object is the checkpoint itself")


def one_kind(number: int) -> None:
    states: list[Any] = [
        lambda: "of a function",
        Model().state,
        functools.partial(str, "of a partial"),
        Model(),
        {"a": 1},
    ]
    assert checkpoint(states[number], force=True)


def test_functions_methods_and_partials_are_called(pool: JobPool) -> None:
    found = []
    for number in range(5):
        job = pool.submit(one_kind, number)
        job.result(PATIENCE)
        found.append(job.partial_result())
    assert found[:3] == ["of a function", "of a method", "of a partial"]
    assert type(found[3]).__name__ == "Model"
    assert found[4] == {"a": 1}


def throttled(seconds: float, most: float) -> tuple[int, list[tuple[int, int]]]:
    """Return how often it was called for; and when others were written, and what all had taken."""
    from primitive_jobs._wire.present import now

    calls = 0

    def state() -> bytes:
        nonlocal calls
        calls += 1
        return bytes(2_000_000)

    checkpoint(state, most=most)
    written = []
    took = 0
    while took < seconds * 1e9:
        files = checkpoints._files
        spent = files.spent + files.last
        if checkpoint(state, most=most):
            written.append((time.monotonic_ns() - now.began, spent))
        took = time.monotonic_ns() - now.began
    return calls, written


def test_it_takes_no_more_than_its_part_of_the_time(pool: JobPool) -> None:
    calls, written = pool.submit(throttled, 0.5, 5.0).result(PATIENCE)
    assert calls == len(written) + 1, "one that is skipped is not called for"
    for took, spent in written:
        assert spent <= 0.05 * took


def test_what_the_call_or_the_pickling_raises_raises_in_the_job(pool: JobPool) -> None:
    def body() -> list[str]:
        checkpoint("good", force=True)
        raised = []
        for state in (lambda: 1 / 0, threading.Lock()):
            try:
                checkpoint(state, force=True)
            except Exception as error:
                raised.append(type(error).__name__)
        return raised

    job = pool.submit(body)
    assert job.result(PATIENCE) == ["ZeroDivisionError", "TypeError"]
    assert job.partial_result() == "good"


def file_too_large() -> str:
    checkpoint("small", force=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpoint(bytes(1_000_000), force=True)
    except OSError as error:
        return type(error).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return "nothing"


def test_a_file_that_gets_too_large_raises_and_harms_nothing(pool: JobPool) -> None:
    job = pool.submit(file_too_large)
    assert job.result(PATIENCE) == "OSError"
    assert job.partial_result() == "small"


def interrupted(places: int) -> int:
    """Raise at each of so many places of `checkpoint`, one after the other."""
    raised = left = 0

    class Interrupt(BaseException):
        pass

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal left
        del arg
        code = frame.f_code
        # A signal's handler, which this stands for, does not come between the end of a `with` and
        # the release of its lock, where a tracer does.
        if "checkpoints.py" not in code.co_filename or code.co_name == "checkpoint":
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    for place in range(1, places):
        left = place
        last = ("state", place)
        checkpoint(("state", place - 1), force=True)
        sys.settrace(trace)
        try:
            checkpoint(last, force=True)
        except Interrupt:
            raised += 1
        finally:
            sys.settrace(None)
        checkpoint(last, force=True)
    return raised


def test_an_interrupt_at_any_line_leaves_the_one_before_or_the_new_one(one: JobPool) -> None:
    job = one.submit(interrupted, 60)
    seen = set()
    while not job.in_final_state():
        state = job.partial_result(default=None)
        if state is not None:
            assert state[0] == "state"
            seen.add(state[1])
    assert job.result(PATIENCE) > 20
    assert job.partial_result() == ("state", 59)


# --- killed while it writes ----------------------------------------------------------------------


def tells(job: PrimitiveJob[Any]) -> bool:
    return job.progress is not None and job.pid is not None


def write_for_ever(size: int) -> None:
    number = 0
    while True:
        number += 1
        checkpoint((number, np.full(size, number)), force=True)
        report(message=str(number))


def writes(page: memoryview, attempt: int) -> bool:
    """Whether the page says that a checkpoint has been begun which is not published."""
    published = notes.newest_checkpoint(page, attempt)
    begun: int = notes.NUMBER.unpack_from(page, notes.WRITING_AT)[0]
    return published is not None and begun > header_of(published).number


@pytest.mark.local
@pytest.mark.parametrize(
    "moments",
    [12, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
)
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_kill_in_the_middle_leaves_the_last_or_the_one_before(
    one: JobPool, size: int, moments: int
) -> None:
    """24 random moments, of both sizes; 200 of them under soak."""
    chance = random.Random(size)
    in_the_middle = 0
    for _ in range(moments):
        job = one.submit(write_for_ever, size)
        until(functools.partial(tells, job), "it writes")
        (worker,) = (w for w in fleet_of(one).workers.values() if w.pid == job.pid)
        seat = job._record.seated()
        assert seat is not None
        time.sleep(chance.uniform(0, 0.01))
        os.kill(worker.pid, signal.SIGKILL)
        assert isinstance(job.exception(PATIENCE), WorkerDiedError)
        in_the_middle += writes(worker.page, seat.attempt)
        number, array = job.partial_result()
        assert (array == number).all()
        assert job.progress is not None
        assert number - int(job.progress.message) in (0, 1)
    assert in_the_middle or moments * size < 1_000_000


def test_what_is_read_while_it_is_written_again_and_again_is_whole(one: JobPool) -> None:
    job = one.submit(write_for_ever, 20_000)
    until(lambda: tells(job), "it writes")
    end = time.monotonic() + 1.0
    seen = set()
    while time.monotonic() < end:
        found = job.partial_result(default=None)
        if found is not None:
            number, array = found
            assert (array == number).all()
            seen.add(number)
    job.cancel()
    assert seen


def test_headers_of_two_attempts_never_mix() -> None:
    page = memoryview(bytearray(notes.PAGE_SIZE))
    for number, attempt in ((2, 7), (3, 7), (4, 8)):
        place = notes.checkpoint_at(number & 1)
        header = notes.CHECKPOINT.pack(number, attempt, 0, 10, 0, 20, number)
        page[place : place + len(header)] = header
    newest = notes.newest_checkpoint(page, 7)
    assert newest is not None
    assert notes.NUMBER.unpack_from(newest)[0] == 3
    cut = notes.CHECKPOINT.pack(5, 8, 0, 10, 0, 20, 5)[:24]
    place = notes.checkpoint_at(1)
    page[place : place + len(cut)] = cut
    newest = notes.newest_checkpoint(page, 8)
    assert newest is not None
    assert notes.NUMBER.unpack_from(newest)[0] == 4
    assert notes.newest_checkpoint(page, 7) is None


# --- resume --------------------------------------------------------------------------------------


def monte_carlo(steps: int, die_at: int | None = None) -> tuple[list[float], int]:
    rng = job_rng()
    first, drawn = resume(default=(0, []))
    for step in range(first, steps):
        drawn = [
            *drawn,
            random.random(),
            float(np.random.random()),
            float(rng.normal()),
            float(job_rng().spawn(1)[0].random()),
        ]
        checkpoint((step + 1, drawn), force=True)
        if step == die_at and first == 0:
            random.random()  # what comes after the checkpoint is drawn again
            rng.normal()
            os.kill(os.getpid(), signal.SIGKILL)
    return drawn, first


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(make_pool: MakePool) -> None:
    with make_pool(1, seed=5) as pool:
        whole, first = pool.submit(monte_carlo, 8).result(PATIENCE)
    assert first == 0
    for die_at in (0, 4):
        with make_pool(1, seed=5) as pool:
            job = pool.options(retries=1).submit(monte_carlo, 8, die_at)
            assert job.result(PATIENCE) == (whole, die_at + 1)
        with make_pool(1, seed=5) as pool:
            lost = pool.submit(monte_carlo, 8, die_at)
            assert isinstance(lost.exception(PATIENCE), WorkerDiedError)
            again = lost.resubmit()
            assert again.result(PATIENCE) == (whole, die_at + 1)
            assert again.job_id() != lost.job_id()
            # With the same seed, from the beginning: so it dies there again.
            anew = lost.resubmit(resume=False)
            assert isinstance(anew.exception(PATIENCE), WorkerDiedError)
            assert anew.partial_result() == lost.partial_result()


def attempts_of(times: int) -> tuple[int, Any]:
    job = current_job()
    assert job is not None
    found = resume(default="none")
    if job.attempt <= times:
        if job.attempt != 2:  # the second leaves none of its own
            checkpoint(("attempt", job.attempt, bytes(BIG)), force=True)
        os.kill(os.getpid(), signal.SIGKILL)
    assert resume() is found or resume() == found, "the same each time"
    return job.attempt, found[:2]


def test_each_attempt_goes_on_from_the_last_checkpoint_of_any(one: JobPool) -> None:
    job = one.options(retries=3).submit(attempts_of, 2)
    assert job.result(PATIENCE) == (3, ("attempt", 1))
    assert one.options(retries=3).submit(attempts_of, 1).result(PATIENCE) == (2, ("attempt", 1))
    assert one.submit(resume, "nothing").result(PATIENCE) == "nothing", "it was another job's"


def changes_what_came() -> tuple[float, float]:
    array = resume(default=None)
    if array is None:
        checkpoint(np.zeros(100_000), force=True)
        os.kill(os.getpid(), signal.SIGKILL)
    array[0] = 1.0  # it is the job's own
    return float(array[0]), float(resume()[1])


def test_what_comes_can_be_changed(one: JobPool) -> None:
    job = one.options(retries=1).submit(changes_what_came)
    assert job.result(PATIENCE) == (1.0, 0.0)
    assert job.partial_result()[0] == 0.0


def in_a_chunk(number: int, path: str) -> Any:
    found = resume(default=None)
    if found is not None:
        return number, found
    marker = Path(path, str(number))
    if not marker.exists():
        marker.touch()
        checkpoint(f"of {number}", force=True)
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return number, None


def test_a_call_of_a_chunk_never_goes_on_from_another_ones(one: JobPool, tmp_path: Path) -> None:
    calls = one.options(retries=1).map(in_a_chunk, range(4), [str(tmp_path)] * 4, chunksize=4)
    assert list(calls) == [(0, None), (1, None), (2, "of 2"), (3, None)]


def test_a_job_that_is_pickled_keeps_what_it_had_done(pool: JobPool) -> None:
    for size in (0, BIG):
        job = pool.submit(keep_and, "returned", size)
        job.result(PATIENCE)
        assert job.progress is not None
        copy = pickle.loads(pickle.dumps(job))
        assert copy.partial_result() == job.partial_result()
        assert copy.progress.fraction == 0.5
        assert copy.progress.age == pytest.approx(job.progress.age, abs=0.1)
        assert copy.usage == job.usage
        assert copy.duration == pytest.approx(job.duration)
        with pytest.raises(JobError, match="not there any more"):
            copy.resubmit()


# --- resubmit ------------------------------------------------------------------------------------


def tells_options(keep: bool) -> Any:
    current = current_job()
    assert current is not None
    if keep:
        checkpoint("kept", force=True)
    found = current.name, current.id, current.attempt, current.options.timeout, resume("none")
    return *found, str(Path.cwd()), os.environ.get("FLAVOUR")


def test_a_job_is_submitted_again_with_options(pool: JobPool, tmp_path: Path) -> None:
    one_folder, other = tmp_path / "one", tmp_path / "other"
    one_folder.mkdir()
    other.mkdir()
    given: Any = {"cwd": one_folder, "env": {"FLAVOUR": "up"}, "timeout": 50.0, "keep_call": True}
    job = pool.options(name="n", **given).submit(tells_options, True)
    first = job.result(PATIENCE)
    assert first == ("n", job.job_id(), 1, 50.0, "none", str(one_folder), "up")
    again = job.resubmit(timeout=60.0, cwd=other, metadata={"is": "new"})
    found = again.result(PATIENCE)
    assert found == ("n", again.job_id(), 1, 60.0, "kept", str(other), "up")
    assert again.metadata == {"is": "new"}
    assert type(again) is type(job)
    third = again.resubmit(resume=False, name="third").result(PATIENCE)
    assert third[0] == "third"
    assert third[4] == "none"
    plain = pool.options(keep_call=True).submit(tells_options, False)
    plain.result(PATIENCE)
    assert plain.resubmit(cwd=other).result(PATIENCE)[5] == str(other)


def dies_twice(path: str) -> tuple[Any, ...]:
    current = current_job()
    assert current is not None
    found = resume(default="none")
    told = current.name, current.id, current.attempt, found, os.environ.get("FLAVOUR")
    with Path(path).open("a") as file:
        file.write(".")
    if found == "none":
        checkpoint("of the first", force=True)
    if Path(path).stat().st_size < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return told


def test_a_retry_of_one_that_was_submitted_again_is_that_one(one: JobPool, tmp_path: Path) -> None:
    job = one.options(env={"FLAVOUR": "up"}).submit(dies_twice, str(tmp_path / "tries"))
    assert isinstance(job.exception(PATIENCE), WorkerDiedError)
    again = job.resubmit(name="again", env={"FLAVOUR": "down"}, retries=1)
    found = again.result(PATIENCE)
    assert found == ("again", again.job_id(), 2, "of the first", "down")
    assert again.partial_result() == "of the first"


def test_a_retry_among_short_jobs_goes_on(one: JobPool, tmp_path: Path) -> None:
    """Those are sent ahead to a busy worker; what comes with a call is not."""
    for _ in range(3):
        for short in [one.submit(abs, -1) for _ in range(200)]:
            short.result(PATIENCE)
    path = tmp_path / "tries"
    jobs = [one.submit(abs, -1) for _ in range(50)]
    job = one.options(retries=2).submit(dies_twice, str(path))
    jobs += [one.submit(abs, -1) for _ in range(300)]
    found = job.result(PATIENCE)
    assert found[2:4] == (3, "of the first")
    assert [each.result(PATIENCE) for each in jobs] == [1] * len(jobs)


def in_a_handler() -> list[bool]:
    told: list[bool] = []

    def handle(*_: object) -> None:
        told.append(checkpoint("of a handler", force=True))

    signal.signal(signal.SIGALRM, handle)
    for number in range(200):
        signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + number % 20))
        checkpoint(bytes(300_000), force=True)
    until(lambda: told, "one of them")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return told


def test_a_handler_of_a_signal_that_keeps_something_stops_nothing(one: JobPool) -> None:
    job = one.submit(in_a_handler)
    assert job.result(PATIENCE)
    assert job.partial_result() in ("of a handler", bytes(300_000))


def test_what_cannot_be_submitted_again(make_pool: MakePool, tmp_path: Path) -> None:
    with make_pool(1) as pool:
        job = pool.submit(abs, -1)
        job.result(PATIENCE)
        with pytest.raises(JobError, match="keep_call=True"):
            job.resubmit()
        kept = pool.options(keep_call=True).submit(abs, -1)
        kept.result(PATIENCE)
        with pytest.raises(TypeError, match="unknown option 'tries'"):
            kept.resubmit(tries=2)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="resume must be"):
            kept.resubmit(resume=1)  # type: ignore[arg-type]
        running = pool.submit(time.sleep, 1000)
        with pytest.raises(JobError, match="is not over"):
            running.resubmit()
        running.cancel()
    with pytest.raises(PoolClosedError):
        kept.resubmit()
    with make_pool(1) as other:
        assert kept.resubmit(other).result(PATIENCE) == 1
    assert kept.status() is JobStatus.DONE


def total(data: Any, factor: int) -> float:
    return float(data.sum()) * factor


def test_its_arguments_are_there_again_shared_data_and_large_ones(make_pool: MakePool) -> None:
    data = np.arange(100_000.0)
    with make_pool(1) as pool:
        handle = share(data)
        jobs = [
            pool.options(keep_call=True).submit(total, handle, 2),
            pool.options(keep_call=True).submit(total, data, 2),
        ]
        expected = [job.result(PATIENCE) for job in jobs]
        del handle
        assert [job.resubmit().result(PATIENCE) for job in jobs] == expected
        assert [job.resubmit().result(PATIENCE) for job in jobs] == expected


def files() -> int:
    """How many files of checkpoints this process has."""
    found = 0
    for path in [*Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            found += "primitive_jobs-checkpoint" in str(path.readlink())
    return found


@pytest.mark.local
def test_a_job_that_goes_takes_everything_along(make_pool: MakePool) -> None:
    with make_pool(1) as pool:
        pool.submit(keep_and, "returned", BIG).result(PATIENCE)
        pool.submit(abs, 1).result(PATIENCE)
        until(lambda: not files(), "that of the first one")
        jobs = [pool.submit(keep_and, "returned", BIG) for _ in range(5)]
        for job in jobs:
            job.result(PATIENCE)
        del job
        assert files() == len(jobs), "each holds its last one"
        del jobs
        pool.submit(abs, 1).result(PATIENCE)
        until(lambda: not files(), "their files are closed")


# --- memory --------------------------------------------------------------------------------------


def grow(size: int) -> str:
    block = bytes(size)
    kept = []
    try:
        for number in range(100):
            checkpoint((number, block), force=True)
            kept.append(number)
    except MemoryError as error:
        return str(error)
    return "no limit"


@pytest.mark.local
def test_a_checkpoint_counts_towards_the_memory_limit_before_it_is_written(one: JobPool) -> None:
    job = one.options(memory_limit="300 MB").submit(grow, 130_000_000)
    text = job.result(PATIENCE)
    assert "would pass the job's memory_limit of 300,000,000 bytes" in text


def hoard(limit: int) -> None:
    """Pass a limit, but for what its files hold; a worker may hold any amount before."""
    checkpoint(bytes(30_000_000), force=True)
    checkpoint(bytes(30_000_000), force=True)
    checkpoint("small", force=True)
    hoarded = bytearray(limit - 30_000_000 - psutil.Process().memory_info().rss)
    for place in range(0, len(hoarded), 4096):
        hoarded[place] = 1
    time.sleep(1000)


@pytest.mark.local
def test_what_its_files_hold_counts_for_the_pool_too(one: JobPool) -> None:
    job = one.options(memory_limit="500 MB").submit(hoard, 500_000_000)
    assert isinstance(job.exception(PATIENCE), JobMemoryError)
    assert job.partial_result() == "small"


def large_then_small() -> None:
    checkpoint(bytes(70_000_000), force=True)
    checkpoint(bytes(70_000_000), force=True)
    checkpoint("small", force=True)
    checkpoint("smaller", force=True)
    report(0.5)
    time.sleep(1000)


@pytest.mark.local
def test_large_files_are_cut_off_once_they_are_not_the_newest(one: JobPool) -> None:
    job = one.submit(large_then_small)
    until(lambda: job.progress is not None, "they are written")
    seat = job._record.seated()
    assert seat is not None
    assert seat.traces.held(seat.attempt) < 1_000_000  # type: ignore[attr-defined]
    assert job.partial_result() == "smaller"
    job.cancel()


def test_skipped_and_short_ones_are_quick(pool: JobPool) -> None:
    """Not a figure: those are a benchmark's. But nothing as slow as a message."""

    def body() -> float:
        checkpoint("first", force=True)
        start = time.perf_counter()
        for _ in range(10_000):
            checkpoint("again", most=0)
        return time.perf_counter() - start

    assert pool.submit(body).result(PATIENCE) < PATIENCE / 10
    assert checkpoints.checkpoint is checkpoint

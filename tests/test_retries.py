"""`retry_on` and `retry_delay`: jobs that are tried again after exceptions of their own."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle
import pytest
from helpers import PATIENCE, end_by, hold, raise_it, until, wait_for

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobExecutor,
    JobFailuresWarning,
    JobOptions,
    JobPool,
    JobTimeoutError,
    PrimitiveJob,
    SerializationError,
    WorkerDiedError,
    as_completed,
    checkpoint,
    current_job,
    gather,
    resume,
    track,
)
from primitive_jobs._engine.events import SendAhead
from primitive_jobs._engine.look import glance_at
from primitive_jobs._engine.recall import Recall
from primitive_jobs.insight.traces import Kept
from primitive_jobs.insight.usage import Usage

if TYPE_CHECKING:
    from makers import MakePool

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

LONG = 60.0  # s of a delay that no test waits for


class Mine(Exception):
    """One of a script's own."""


class MineToo(Mine):
    pass


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    number: int


def attempt() -> int:
    job = current_job()
    assert job is not None
    return job.attempt


def fail_at_first(times: int, kind: Callable[[str], BaseException] = Mine) -> int:
    """Raise in so many attempts, then tell which one it is."""
    number = attempt()
    if number <= times:
        raise kind(f"no {number}")
    return number


def note_and_fail(folder: Path, name: str, times: int = 99) -> str:
    """Leave a mark in each run; raise in the first ``times`` of them."""
    run = len(list(folder.glob(f"{name}-*")))
    (folder / f"{name}-{run}").touch()
    if run < times:
        raise Mine(f"{name} {run}")
    return name


def runs(folder: Path, name: str = "") -> int:
    return len(list(folder.glob(f"{name}*")))


def walk(job: PrimitiveJob[Any]) -> list[str]:
    return [status.name for status, _ in job.history()]


def notes(error: BaseException | None) -> list[str]:
    found: list[str] = getattr(error, "__notes__", [])
    return found


def delayed(job: PrimitiveJob[Any]) -> None:
    """Wait until a job waits for its next attempt."""
    until(lambda: str(job.waiting_for).startswith("retry in"), "its delay")


# --- it is tried again ---------------------------------------------------------------------------


def test_a_job_is_tried_again_until_it_returns(one: JobPool) -> None:
    job = one.options(retries=3, retry_on=Mine).submit(fail_at_first, 2)
    assert job.result(PATIENCE) == 3
    assert job.attempts == 3
    again = ["RUNNING", "QUEUED"]
    expected = ["INITIALIZING", "VALIDATING", "QUEUED", *again, *again, "RUNNING", "DONE"]
    assert walk(job) == expected
    assert pickle.loads(pickle.dumps(job)).attempts == 3


def test_the_last_exception_is_raised_with_the_three_before_as_notes(one: JobPool) -> None:
    job = one.options(retries=4, retry_on=(KeyError, Mine)).submit(fail_at_first, 99)
    error = job.exception(PATIENCE)
    assert isinstance(error, Mine)
    assert error.args == ("no 5",)
    assert job.attempts == 5
    found = notes(error)
    assert len(found) == 3
    for number, note in enumerate(found, 2):
        assert note.startswith(f"attempt {number} raised Mine: no {number} (test_retries.py, line ")
        assert note.endswith(", in fail_at_first)")
    assert "in fail_at_first" in str(error.__cause__)
    assert "loop.py" not in str(error.__cause__), "frames of ours are left out"
    assert job.exception() is error
    assert notes(pickle.loads(pickle.dumps(job)).exception()) == found
    with pytest.raises(Mine):
        job.result()
    assert notes(error) == found, "they are added once"


def test_notes_on_an_exception_that_forbids_attributes(one: JobPool) -> None:
    def fail() -> NoReturn:
        raise Frozen(7)

    job = one.options(retries=1, retry_on=Frozen).submit(fail)
    error = job.exception(PATIENCE)
    assert isinstance(error, Frozen)
    assert error.number == 7
    assert [note.partition(" (")[0] for note in notes(error)] == ["attempt 1 raised Frozen: 7"]


def test_a_note_is_a_line_of_some_length(one: JobPool) -> None:
    job = one.options(retries=1, retry_on=Mine).submit(raise_it, Mine("a\nb \udc80" + "c" * 10_000))
    (note,) = notes(job.exception(PATIENCE))
    assert note.startswith("attempt 1 raised Mine: a b \\udc80ccc")
    assert "\n" not in note
    assert len(note) < 700


def test_deaths_and_exceptions_count_together(one: JobPool) -> None:
    def trouble() -> NoReturn:
        if attempt() == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Mine(str(attempt()))

    job = one.options(retries=2, retry_on=Mine).submit(trouble)
    error = job.exception(PATIENCE)
    assert isinstance(error, Mine)
    assert job.attempts == 3
    first, second = notes(error)
    assert first.startswith("attempt 1 raised Mine: 1 (")
    assert second == "attempt 2 lost its worker: killed by signal SIGKILL"

    def crash() -> NoReturn:
        if attempt() == 1:
            raise Mine("once")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    error = one.options(retries=1, retry_on=Mine).submit(crash).exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    (note,) = notes(error)
    assert note.startswith("attempt 1 raised Mine: once (")


@pytest.mark.local
def test_many_that_are_handed_over_and_sent_ahead(
    one: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = one.options(retries=2, retry_on=Mine)
    one.submit(int).result(PATIENCE)
    for _ in range(20):  # each by its caller, to an idle worker
        job = view.submit(fail_at_first, 1)
        assert job.result(PATIENCE) == 2
        assert walk(job)[-4:] == ["RUNNING", "QUEUED", "RUNNING", "DONE"]
    sent: list[int] = []
    send = Recall.send

    def counted(self: Recall, action: SendAhead) -> Any:
        sent.append(len(action.jobs))
        return send(self, action)

    monkeypatch.setattr(Recall, "send", counted)

    def fail(times: int) -> int:  # a small one: others are not sent ahead
        from primitive_jobs import current_job

        number: int = current_job().attempt  # type: ignore[union-attr]
        if number <= times:
            raise ValueError(number)
        return number

    view = one.options(retries=2, retry_on=ValueError)
    jobs = [view.submit(fail, n % 3) for n in range(2000)]
    assert [job.result(PATIENCE) for job in jobs] == [n % 3 + 1 for n in range(2000)]
    assert sent, "some were sent ahead"
    for n, job in enumerate(jobs):
        assert job.attempts == n % 3 + 1
        assert walk(job)[3:] == [*["RUNNING", "QUEUED"] * (n % 3), "RUNNING", "DONE"]
        times = [when for _, when in job.history()]
        assert times == sorted(times)


# --- what counts ---------------------------------------------------------------------------------


def test_the_classes_of_a_function_and_of_a_script(one: JobPool) -> None:
    class Inner(Exception):
        pass

    def fail() -> int:
        if attempt() == 1:
            raise Inner
        return attempt()

    assert one.options(retries=1, retry_on=Inner).submit(fail).result(PATIENCE) == 2
    view = one.options(retries=1, retry_on=(ValueError, Mine))
    assert view.submit(fail_at_first, 1, MineToo).result(PATIENCE) == 2, "a subclass"
    assert view.submit(fail_at_first, 1, UnicodeError).result(PATIENCE) == 2
    assert isinstance(view.submit(fail_at_first, 1, KeyError).exception(PATIENCE), KeyError)


def test_what_only_looks_like_one_of_them(one: JobPool) -> None:
    shadow = type("OSError", (Exception,), {})

    class Claims(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return True

        def __subclasscheck__(cls, subclass: type) -> bool:
            return True

    class Anything(Exception, metaclass=Claims):
        pass

    job = one.options(retries=3, retry_on=(OSError, Anything)).submit(fail_at_first, 9, shadow)
    assert type(job.exception(PATIENCE)).__name__ == "OSError"
    assert job.attempts == 1, "`except` would not have caught it"


def test_what_arrives_as_a_job_error_counts_as_what_was_raised(one: JobPool) -> None:
    job = one.options(retries=1, retry_on=SystemExit).submit(fail_at_first, 9, SystemExit)
    error = job.exception(PATIENCE)
    assert type(error) is JobError
    assert job.attempts == 2
    assert notes(error)[0].startswith("attempt 1 raised SystemExit: no 1 (")
    job = one.options(retries=1, retry_on=JobError).submit(fail_at_first, 9, SystemExit)
    assert type(job.exception(PATIENCE)) is JobError
    assert job.attempts == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="it has no exception groups")
def test_a_group_counts_as_itself(one: JobPool) -> None:
    group = ExceptionGroup("several", [Mine("inner")])  # type: ignore[name-defined, unused-ignore]  # noqa: F821
    job = one.options(retries=2, retry_on=Mine).submit(raise_it, group)
    assert job.exception(PATIENCE) is not None
    assert job.attempts == 1
    job = one.options(retries=2, retry_on=type(group)).submit(raise_it, group)
    assert job.exception(PATIENCE) is not None
    assert job.attempts == 3


def test_what_is_no_exception_of_the_function(one: JobPool, marks: Path) -> None:
    def answer() -> Any:
        (marks / f"answer-{time.monotonic_ns()}").touch()
        return sys._getframe()  # cannot be pickled

    class Unloadable:
        def __reduce__(self) -> Any:
            return raise_it, (Mine("while it is unpickled"),)

    view = one.options(retries=3, retry_on=Exception)
    cases = [
        (view.submit(answer), SerializationError),
        (view.submit(id, Unloadable()), SerializationError),
        (view.options(cwd=marks / "nowhere").submit(answer), FileNotFoundError),
    ]
    for job, kind in cases:
        assert type(job.exception(PATIENCE)) is kind
        assert (job.attempts, notes(job.exception())) == (1, [])
    assert runs(marks, "answer") == 1


def test_limits_do_not_count_and_are_each_attempts(one: JobPool) -> None:
    def sleep(seconds: float) -> int:
        time.sleep(seconds)
        return fail_at_first(2, ValueError)

    view = one.options(retries=3, retry_on=Exception)
    assert view.options(timeout=2.0).submit(sleep, 0.8).result(PATIENCE) == 3
    job = view.options(timeout=0.2).submit(sleep, LONG)
    assert isinstance(job.exception(PATIENCE), JobTimeoutError)
    assert job.attempts == 1


def test_the_exception_in_a_grace_does_not_count(one: JobPool, marks: Path) -> None:
    def held() -> None:
        (marks / "begun").touch()
        try:
            wait_for(marks / "never")
        finally:
            raise Mine

    job = one.options(retries=3, retry_on=BaseException, grace=PATIENCE).submit(held)
    until((marks / "begun").exists, "its start")
    assert job.cancel()
    assert job.attempts == 1


def test_classes_that_do_not_exist_in_the_worker(one: JobPool) -> None:
    here = types.ModuleType("only_here_in_this_program")
    kind = here.Kind = type("Kind", (Exception,), {"__module__": here.__name__})  # type: ignore[attr-defined]
    sys.modules[here.__name__] = here
    try:
        job = one.options(retries=2, retry_on=kind).submit(abs, -1)
        error = job.exception(PATIENCE)
    finally:
        del sys.modules[here.__name__]
    assert isinstance(error, SerializationError)
    assert "cannot be unpickled in the worker: ModuleNotFoundError" in str(error)
    assert job.attempts == 1
    assert one.submit(abs, -1).result(PATIENCE) == 1


def test_classes_that_cannot_be_pickled(one: JobPool) -> None:
    class Locked(Exception):
        lock = threading.Lock()

    job = one.options(retries=1, retry_on=Locked).submit(abs, -1)
    error = job.exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert "the exception classes of retry_on cannot be serialized" in str(error)


def test_the_job_knows_its_options(one: JobPool) -> None:
    def options() -> Any:
        job = current_job()
        assert job is not None
        return job.options.retry_on, job.options.retry_delay

    class Looks:
        def __reduce__(self) -> Any:
            return options, ()

    view = one.options(retries=1, retry_on=OSError, retry_delay=2)
    assert view.submit(options).result(PATIENCE) == ((OSError,), 2.0)
    looks: Any = Looks()
    looked = view.submit(list[Any], looks).result(PATIENCE)
    assert looked == [(OSError,), 2.0], "also while its call is unpickled"


# --- the delay -----------------------------------------------------------------------------------


def test_the_delay_is_doubled_and_the_job_is_queued_meanwhile(one: JobPool) -> None:
    job = one.options(retries=2, retry_on=Mine, retry_delay=0.3).submit(fail_at_first, 2)
    delayed(job)
    assert job.status().name == "QUEUED"
    assert job.pid is None
    assert one.submit(abs, -1).result(PATIENCE) == 1, "it takes no worker"
    assert job.result(PATIENCE) == 3
    waited = [
        later - when
        for (status, when), (_, later) in zip(job.history(), job.history()[1:], strict=False)
        if status.name == "QUEUED"
    ]
    # Clocks of two kinds: the one that it is shown by may be set meanwhile.
    assert waited[1] > 0.29
    assert waited[2] > 0.59


def test_the_delay_after_a_death(one: JobPool, marks: Path) -> None:
    def die() -> int:
        if attempt() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return attempt()

    job = one.options(retries=1, retry_delay=LONG).submit(die)
    delayed(job)
    assert job.cancel()
    assert job.attempts == 1
    assert one.options(retries=1, retry_delay=0.01).submit(die).result(PATIENCE) == 2


def test_what_a_job_waits_for(one: JobPool, marks: Path) -> None:
    fresh = PrimitiveJob(int)
    assert fresh.waiting_for is None
    first = one.submit(hold, marks / "gate")
    until(first.running, "its start")
    assert first.waiting_for is None
    second = one.options(retries=1, retry_on=Mine, retry_delay=3.5).submit(fail_at_first, 1)
    assert second.waiting_for == "a worker"
    assert one.snapshot().jobs[1].waiting_for == "a worker"
    (marks / "gate").touch()
    first.result(PATIENCE)
    until(lambda: second.attempts, "its first attempt")
    delayed(second)
    assert second.waiting_for in ("retry in 4 s", "retry in 3 s")
    (info,) = one.snapshot().jobs
    assert str(info.waiting_for).startswith("retry in ")
    assert (info.status.name, info.attempts) == ("QUEUED", 1)
    assert one.snapshot().counts.queued == 1
    assert second.cancel()
    assert second.waiting_for is None


@pytest.mark.local
def test_viewers_see_it_after_those_that_wait_for_a_worker(one: JobPool, marks: Path) -> None:
    late = one.options(retries=1, retry_on=Mine, retry_delay=LONG).submit(fail_at_first, 1)
    delayed(late)
    first, second = (one.submit(hold, marks / "gate") for _ in range(2))
    until(first.running, "its start")
    assert one.snapshot().counts.queued == 2, "the pool has taken both in"
    engine = one._engine
    look = glance_at(engine._scheduler, engine._jobs, engine._fleet, 5)
    assert [record.job_id() for record in look.records] == [
        job.job_id() for job in (first, second, late)
    ]
    assert look.counts.queued == 2
    assert len(glance_at(engine._scheduler, engine._jobs, engine._fleet, 1).records) == 2
    (marks / "gate").touch()


@pytest.mark.local
def test_the_pool_sleeps_until_it_is_time(one: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    polls: list[float] = []
    poller = one._engine._dispatcher.poller
    poll = poller.poll

    def counted(timeout: float) -> Any:
        polls.append(time.monotonic())
        return poll(timeout)

    monkeypatch.setattr(poller, "poll", counted)
    job = one.options(retries=1, retry_on=Mine, retry_delay=1.5).submit(fail_at_first, 1)
    delayed(job)
    assert job.result(PATIENCE) == 2
    due = [at for status, _, at in job._tracker.steps() if status.name == "RUNNING"][1]
    assert not [at for at in polls if due - 1.2 < at < due - 0.1], "it woke up in between"
    assert len([at for at in polls if due - 0.1 < at < due]) < 5, "and then once or so"


# --- how the waiting ends ------------------------------------------------------------------------


def waiting(pool: JobPool) -> PrimitiveJob[int]:
    job = pool.options(retries=1, retry_on=Mine, retry_delay=LONG).submit(fail_at_first, 1)
    delayed(job)
    return job


def test_a_cancel_ends_it_at_once(one: JobPool) -> None:
    job = waiting(one)
    assert job.cancel()
    assert walk(job)[-2:] == ["QUEUED", "CANCELLED"]
    with pytest.raises(JobCancelledError):
        job.result()
    job = waiting(one)
    one.cancel_all()
    assert job.wait(PATIENCE)
    assert job.cancelled()


def test_a_pool_that_is_shut_down(make_pool: MakePool) -> None:
    with make_pool(1) as pool:
        job = waiting(pool)
        pool.shutdown(cancel=True)
        assert job.cancelled()
    with make_pool(1) as pool:
        soon = pool.options(retries=1, retry_on=Mine, retry_delay=0.3).submit(fail_at_first, 1)
        delayed(soon)
    assert soon.done(), "the end of a with block waits for it"

    def interrupt(pool: JobPool) -> NoReturn:
        jobs.append(waiting(pool))
        raise KeyboardInterrupt

    jobs: list[PrimitiveJob[int]] = []
    with pytest.raises(KeyboardInterrupt), make_pool(1) as pool:
        interrupt(pool)
    assert jobs[0].cancelled()


@pytest.mark.local
def test_a_program_that_is_interrupted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\n"
        "from primitive_jobs import run, default_pool\n"
        "class Mine(Exception): pass\n"
        "def fail(): raise Mine\n"
        "job = default_pool().options(retries=1, retry_on=Mine, retry_delay=600).submit(fail)\n"
        "while not str(job.waiting_for).startswith('retry'): time.sleep(0.01)\n"
        "print('waits', flush=True)\n"
        "job.result()\n"
    )
    program = subprocess.Popen([sys.executable, script], stdout=-1, stderr=-1, text=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "waits\n"
        program.send_signal(signal.SIGINT)
        errors = program.communicate(timeout=PATIENCE)[1]
    finally:
        program.kill()
        program.communicate()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert program.returncode == -signal.SIGINT


def executor_over(view: Any) -> JobExecutor:
    return JobExecutor(pool=view)


def test_futures(make_pool: MakePool) -> None:
    with make_pool(1) as pool:
        view = pool.options(retries=2, retry_on=Mine)
        with executor_over(view) as executor:
            future = executor.submit(fail_at_first, 2)
            assert future.result(PATIENCE) == 3
            error = executor.submit(fail_at_first, 9).exception(PATIENCE)
            assert len(notes(error)) == 2
        with executor_over(view.options(retry_delay=LONG)) as executor:
            future = executor.submit(fail_at_first, 1)
            delayed(future.job)
            assert future.cancel()
            future = executor.submit(fail_at_first, 1)
            delayed(future.job)
            executor.shutdown(cancel_futures=True)
            assert future.cancelled()


def test_gather_await_and_track(two: JobPool) -> None:
    view = two.options(retries=2, retry_on=Mine, retry_delay=0.01)
    jobs = [view.submit(fail_at_first, n) for n in range(3)]
    assert gather(jobs) == [1, 2, 3]
    jobs = [view.submit(fail_at_first, n) for n in range(3)]
    assert sorted(job.result() for job in as_completed(jobs, PATIENCE)) == [1, 2, 3]
    jobs = [view.submit(fail_at_first, n) for n in range(3)]
    assert sorted(job.result() for job in track(jobs)) == [1, 2, 3]

    async def both() -> Any:
        good = await view.submit(fail_at_first, 1)
        slow = view.options(retry_delay=LONG).submit(fail_at_first, 1)

        async def wait() -> int:
            return await slow

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)  # it waits: from Python 3.14 on the thread may be faster
        await asyncio.to_thread(delayed, slow)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return good, slow.cancelled()

    assert asyncio.run(both()) == (2, True)


# --- what attempts leave -------------------------------------------------------------------------


def test_the_next_attempt_goes_on_from_the_checkpoint(one: JobPool) -> None:
    def steps() -> Any:
        found = resume(default=None)
        if attempt() < 3:
            checkpoint(("attempt", attempt()), force=True)
            raise Mine
        return found

    job = one.options(retries=2, retry_on=Mine).submit(steps)
    assert job.result(PATIENCE) == ("attempt", 2)


@pytest.mark.local
def test_the_same_random_numbers_again(make_pool: MakePool) -> None:
    def draw() -> float:
        number = random.random()
        if attempt() == 1:
            raise Mine(str(number))
        return number

    with make_pool(1, seed=3) as pool:
        job = pool.options(retries=1, retry_on=Mine).submit(draw)
        plain = job.result(PATIENCE)
    with make_pool(1, seed=3) as pool:
        error = pool.submit(draw).exception(PATIENCE)
    assert str(error) == str(plain)


def test_output_and_usage(one: JobPool) -> None:
    def talk() -> int:
        print("attempt", attempt(), flush=True)
        end = time.process_time() + (0.3 if attempt() == 1 else 0.01)
        while time.process_time() < end:
            pass
        return fail_at_first(1)

    job = one.options(retries=1, retry_on=Mine, retry_delay=0.2, output="capture").submit(talk)
    delayed(job)
    assert job.output() == "attempt 1\n"
    assert job.usage is None
    assert job.result(PATIENCE) == 2
    assert job.output() == "attempt 1\nattempt 2\n"
    usage = job.usage
    assert usage is not None
    assert usage.user is not None
    assert usage.user < 0.25, "that of the last attempt"

    def first_long() -> None:
        if attempt() == 1:
            end = time.process_time() + 0.3
            while time.process_time() < end:
                pass
            raise ValueError

    job = one.options(retries=1, retry_on=ValueError).submit(first_long)
    job.result(PATIENCE)
    usage = job.usage
    assert usage is not None
    assert usage.user is None or usage.user < 0.25


@pytest.mark.local
def test_what_is_kept_of_attempts() -> None:
    kept = Kept()
    kept.usage = Usage(1.0, 1.0, 0.0, None, exact=True)
    for number in range(5):
        kept.go_on(f"attempt {number}", 10.0)
    assert kept.usage is None, "a short attempt may leave none of its own"
    assert kept.earlier == ("attempt 2", "attempt 3", "attempt 4")
    assert 9.0 < kept.retry_at - time.monotonic() <= 10.0


def test_the_timeline_shows_each_attempt(one: JobPool) -> None:
    job = one.options(retries=2, retry_on=Mine, name="again").submit(fail_at_first, 2)
    job.result(PATIENCE)
    found = one.timeline().attempts
    assert [(each.name, each.end, each.attempt) for each in found] == [
        ("again", "raised", 1),
        ("again", "raised", 2),
        ("again", "returned", 3),
    ]
    assert found[0].reason.startswith("tried again after Mine: no 1 (test_retries.py, ")
    assert found[2].reason == ""


@pytest.mark.local
def test_the_log_tells_of_each_attempt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "primitive_jobs"), JobPool(1) as pool:
        job = pool.options(retries=2, retry_on=Mine, retry_delay=0.01).submit(fail_at_first, 2)
        job.result(PATIENCE)
    told = [record.getMessage() for record in caplog.records]
    label = f"job fail_at_first ({job.job_id()})"
    first, second = (text for text in told if "is tried again" in text)
    assert first.startswith(f"{label} is tried again in 0.01 s: attempt 1 raised Mine: no 1 (")
    assert first.endswith("); retries left: 1")
    assert second.startswith(f"{label} is tried again in 0.02 s: attempt 2 raised Mine: no 2 (")


@pytest.mark.local
def test_only_the_last_failure_is_one_that_nobody_looked_at() -> None:
    with JobPool(1) as pool:  # warnings are errors
        pool.options(retries=2, retry_on=Mine).submit(fail_at_first, 2)
    with pytest.warns(JobFailuresWarning, match=r"1 of 1 job.*no 3"), JobPool(1) as pool:
        pool.options(retries=2, retry_on=Mine).submit(fail_at_first, 9)


# --- several calls in a job ----------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 4])
def test_map_makes_each_call_a_job(one: JobPool, marks: Path, chunksize: int | None) -> None:
    names, times = ["a", "b", "c", "d"], [0, 0, 2, 0]
    view = one.options(retries=2, retry_on=Mine)
    args = [marks] * 4, names, times
    assert list(view.map(note_and_fail, *args, chunksize=chunksize)) == names
    assert [runs(marks, name) for name in names] == [1, 1, 3, 1]


def test_map_raises_as_submit_does(one: JobPool) -> None:
    view = one.options(retries=2, retry_on=Mine)
    results = view.map(fail_at_first, [0, 9])
    assert next(results) == 1
    with pytest.raises(Mine, match="no 3") as caught:
        next(results)
    assert [note.partition(" (")[0] for note in notes(caught.value)] == [
        "attempt 1 raised Mine: no 1",
        "attempt 2 raised Mine: no 2",
    ]
    single = view.submit(fail_at_first, 9).exception(PATIENCE)
    assert single is not None
    assert str(caught.value.__cause__) == str(single.__cause__)
    with pytest.raises(KeyError):
        list(view.map(fail_at_first, [1], [KeyError]))


def test_a_result_of_map_that_cannot_be_pickled(one: JobPool, marks: Path) -> None:
    def answer(name: str) -> Any:
        (marks / f"{name}-{time.monotonic_ns()}").touch()
        return sys._getframe()

    with pytest.raises(SerializationError):
        list(one.options(retries=2, retry_on=Exception).map(answer, ["a"]))
    assert runs(marks) == 1


def test_the_map_of_an_executor(make_pool: MakePool, marks: Path) -> None:
    with make_pool(1) as pool, executor_over(pool.options(retries=1, retry_on=Mine)) as executor:
        args = [marks] * 3, ["a", "b", "c"], [0, 1, 0]
        assert list(executor.map(note_and_fail, *args, chunksize=3)) == ["a", "b", "c"]
    assert [runs(marks, name) for name in "abc"] == [1, 2, 1]


@pytest.mark.local
def test_the_batches_of_joblib(marks: Path) -> None:
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("primitive_jobs.joblib").register()
    options: dict[str, Any] = {"retries": 1, "retry_on": Mine}
    with JobPool(2) as pool, joblib.parallel_config("primitive_jobs", pool=pool, **options):
        names = [f"task{n:03}" for n in range(60)]
        calls = (joblib.delayed(note_and_fail)(marks, name, n % 2) for n, name in enumerate(names))
        assert joblib.Parallel()(calls) == names
    assert [runs(marks, name) for name in names] == [1 + n % 2 for n in range(60)]


def test_a_resubmit(one: JobPool) -> None:
    lost = one.options(keep_call=True).submit(fail_at_first, 1)
    assert isinstance(lost.exception(PATIENCE), Mine)
    assert lost.resubmit(retries=1, retry_on=Mine).result(PATIENCE) == 2
    lost = one.options(keep_call=True, retries=1, retry_on=Mine).submit(fail_at_first, 2)
    assert isinstance(lost.exception(PATIENCE), Mine)
    again = lost.resubmit()
    assert isinstance(again.exception(PATIENCE), Mine)
    assert again.attempts == 2
    assert lost.resubmit(retries=2).result(PATIENCE) == 3
    other = lost.resubmit(retry_on=KeyError)
    assert isinstance(other.exception(PATIENCE), Mine)
    assert other.attempts == 1


# --- options -------------------------------------------------------------------------------------


@pytest.mark.local
def test_retry_on_needs_retries() -> None:
    for kinds in (OSError, (OSError, KeyError)):
        with pytest.raises(ValueError, match="retry_on counts against retries"):
            PrimitiveJob(int).submit(retry_on=kinds)
    assert JobOptions(retry_on=()).retry_on is None
    assert JobOptions(retries=1, retry_on=OSError).retry_on == (OSError,)
    options = JobOptions(retries=1, retry_on=(OSError, Mine), retry_delay=3)
    assert options.retry_on == (OSError, Mine)
    assert options.limits.retry_delay == 3.0
    with pytest.raises(ValueError, match="retry_on counts"):
        options.replace({"retries": 0})
    assert options.replace({"retries": 0, "retry_on": None}).retry_delay == 3.0


@pytest.mark.parametrize("end", ["crashed", "exited"])
def test_without_retries_nothing_is_tried_again(one: JobPool, end: str) -> None:
    job = one.options(retry_delay=LONG).submit(end_by, end)
    assert isinstance(job.exception(PATIENCE), WorkerDiedError)
    assert job.attempts == 1

"""A caller that gives its job to an idle worker itself: what is told, and who may come between."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, descriptors, fleet_of, hold_and_tell, until

from primitive_jobs import (
    JobError,
    JobMemoryError,
    JobPool,
    JobStatus,
    PrimitiveJob,
    WorkerDiedError,
)
from primitive_jobs._engine.engine import Engine
from primitive_jobs._engine.hand_over import give
from primitive_jobs._engine.inbox import Inbox
from primitive_jobs._engine.record import JobRecord
from primitive_jobs._local.memory_watch import MemoryWatch
from primitive_jobs._procs.probe import open_statm, resident_by
from primitive_jobs._wire.channel import PacketChannel
from primitive_jobs._wire.parcel import HAVE_PACKETS
from primitive_jobs.options import Limits


def leave_mark(folder: str) -> None:
    """Be counted."""
    os.close(os.open(f"{folder}/{time.monotonic_ns()}", os.O_CREAT | os.O_EXCL))


def offered(pool: JobPool) -> None:
    """Wait until the dispatcher sleeps, and the worker is on offer."""
    if not HAVE_PACKETS:
        pytest.skip("nothing is handed over here")
    engine = pool._engine
    until(lambda: engine._inbox.asleep and engine._hand_off.offer, "an offer")


@pytest.fixture
def pool() -> Iterator[JobPool]:
    """One worker that is there already, and no spare."""
    with JobPool(1, spare_workers=0) as fresh:
        fresh.submit(abs, -1).result(PATIENCE)
        yield fresh
        fresh.shutdown(cancel=True)


def test_nobody_wakes_the_dispatcher(pool: JobPool, monkeypatch: pytest.MonkeyPatch) -> None:
    wakes: list[int] = []
    ring = Inbox.wake

    def counted(self: Inbox) -> None:
        wakes.append(1)
        ring(self)

    monkeypatch.setattr(Inbox, "wake", counted)
    for n in range(50):
        offered(pool)
        assert pool.submit(divmod, n, 7).result(PATIENCE) == divmod(n, 7)
    assert wakes == []
    assert pool.jobs() == []
    assert len(fleet_of(pool)._unclosed._late_senders) <= 1


def test_the_job_runs_before_the_dispatcher_knows(pool: JobPool, tmp_path: Path) -> None:
    offered(pool)
    before = time.time()
    job = pool.submit(hold_and_tell, tmp_path / "gate")
    assert pool._engine._inbox.asleep, "it was not told"
    assert job.status() is JobStatus.RUNNING
    assert job.attempts == 1
    pid = job.pid
    names = [status.name for status, _ in job.history()]
    assert names == ["INITIALIZING", "VALIDATING", "QUEUED", "RUNNING"]
    when = job.history()[-1][1]
    assert before <= when <= time.time()
    assert pool.jobs() == [job]  # the question wakes it
    assert (job.status(), job.pid, job.attempts) == (JobStatus.RUNNING, pid, 1)
    assert job.history()[-1] == (JobStatus.RUNNING, when)
    (tmp_path / "gate").touch()
    assert job.result(PATIENCE) == pid
    assert [s.name for s, _ in job.history()] == [*names, "DONE"]
    assert job.pid is None
    assert job.attempts == 1


def test_it_is_let_go(pool: JobPool) -> None:
    gc.disable()  # no cycle: it goes with its last handle
    try:
        for _ in range(3):
            offered(pool)
            job: PrimitiveJob[int] = pool.submit(abs, -1)
            job.result(PATIENCE)
            known = weakref.ref(job)
            del job
            until(lambda: known() is None, "the job to be let go")  # noqa: B023 - called here
    finally:
        gc.enable()


def test_an_exception_comes_back(pool: JobPool) -> None:
    offered(pool)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(PATIENCE)


def test_it_is_cancelled_as_any_other(pool: JobPool, tmp_path: Path) -> None:
    offered(pool)
    job = pool.submit(hold_and_tell, tmp_path / "never")
    assert job.running()
    assert job.cancel()
    assert [s.name for s, _ in job.history()][-2:] == ["RUNNING", "CANCELLED"]
    assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_its_worker_may_die(pool: JobPool) -> None:
    offered(pool)
    job = pool.submit(os._exit, 3)
    with pytest.raises(WorkerDiedError, match="exited with code 3"):
        job.result(PATIENCE)
    assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_who_has_a_timeout_is_watched(pool: JobPool, tmp_path: Path) -> None:
    offered(pool)
    job = pool.options(timeout=9.0).submit(hold_and_tell, tmp_path / "gate")
    until(job.running, "RUNNING")
    assert pool._engine._jobs.unfinished, "the dispatcher has it"
    (tmp_path / "gate").touch()
    job.result(PATIENCE)


# --- one with a limit of memory -------------------------------------------------------------------


def memory_of(pool: JobPool) -> MemoryWatch:
    memory = fleet_of(pool).memory
    assert isinstance(memory, MemoryWatch)
    return memory


def watched(pool: JobPool) -> list[Any]:
    """Those that the thread would look at now."""
    memory = memory_of(pool)
    offered = [item for offer, item in list(memory._offered.values()) if offer.claims[0]]
    return [*memory._watched.values(), *offered]


def test_one_with_a_limit_of_memory_is_watched_without_the_dispatcher(
    pool: JobPool, tmp_path: Path
) -> None:
    view = pool.options(memory_limit="1 GB")
    for _ in range(2):
        offered(pool)
        assert view.submit(abs, -1).result(PATIENCE) == 1
    offered(pool)
    assert watched(pool) == [], "it has ended"
    job = view.submit(hold_and_tell, tmp_path / "gate")
    assert pool._engine._inbox.asleep, "it was not told"
    (item,) = watched(pool)
    assert (item.pid, item.attempt) == (job.pid, pool._engine._scheduler._roster.attempts + 1)
    assert pool.jobs() == [job]  # the question wakes it
    (item,) = watched(pool)
    assert item.attempt == pool._engine._scheduler._roster.attempts
    (tmp_path / "gate").touch()
    job.result(PATIENCE)
    assert pool.submit(abs, -1).result(PATIENCE) == 1
    assert watched(pool) == []


@pytest.mark.parametrize("asked", [True, False])
def test_one_that_passes_its_limit_is_killed(pool: JobPool, *, asked: bool) -> None:
    def take(size: int) -> None:
        held = b"x" * size
        time.sleep(PATIENCE)
        del held

    limited(pool)
    job = pool.options(memory_limit="400 MB").submit(take, 500_000_000)
    if asked:
        assert pool.jobs() == [job], "the dispatcher knows it"
    with pytest.raises(JobMemoryError):
        job.result(PATIENCE)
    assert watched(pool) == []
    assert pool.submit(abs, -1).result(PATIENCE) == 1


def limited(pool: JobPool) -> None:
    """Have it been known of the worker on offer what it holds."""
    pool.options(memory_limit="1 GB").submit(abs, -1).result(PATIENCE)
    offered(pool)


@pytest.mark.parametrize("killed", [True, False])
def test_a_caller_that_stands_still_disturbs_nobody(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    here, go_on = threading.Event(), threading.Event()
    real = MemoryWatch.watch_offered

    def watch_offered(self: MemoryWatch, offer: Any, limit: int) -> None:
        if not here.is_set():
            here.set()
            assert go_on.wait(PATIENCE)
        real(self, offer, limit)

    monkeypatch.setattr(MemoryWatch, "watch_offered", watch_offered)
    view = pool.options(memory_limit="300 MB")
    limited(pool)
    jobs: list[PrimitiveJob[Any]] = []
    caller = threading.Thread(
        target=lambda: jobs.append(view.submit(time.sleep, PATIENCE if killed else 0.01))
    )
    caller.start()
    assert here.wait(PATIENCE)
    (first,) = pool.jobs()  # which has the dispatcher take it over
    if killed:
        assert first.cancel()
    else:
        first.result(PATIENCE)
    second = view.submit(hold_much)
    until(second.running, "RUNNING")
    assert pool.jobs() == [second]
    go_on.set()
    caller.join()
    assert jobs == [first]
    with pytest.raises(JobMemoryError):
        second.result(PATIENCE)
    memory = memory_of(pool)
    until(lambda: not memory._offered and not memory._watched, "nobody is watched")
    until(lambda: memory._asleep, "it sleeps")


def hold_much() -> None:
    time.sleep(0.3)  # so that the one that stood still goes on
    held = b"x" * 400_000_000
    time.sleep(PATIENCE)
    del held


def serves(pool: JobPool, limits: Limits) -> bool:
    offer = pool._engine._hand_off.offer
    assert offer is not None
    return offer.serves(limits)


@pytest.mark.parametrize("held", [10**9 + 1, None])
def test_one_for_which_its_worker_may_hold_too_much_is_not_handed_over(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, held: Any
) -> None:
    offered(pool)
    assert not serves(pool, Limits(memory_limit=10**9)), "nobody has looked yet"
    limited(pool)
    with monkeypatch.context() as patch:
        patch.setattr(memory_of(pool), "held_by", lambda _: held)
        assert not serves(pool, Limits(memory_limit=10**9))
    assert serves(pool, Limits(memory_limit=10**9))
    assert not serves(pool, Limits(memory_limit=10**9, timeout=1.0))


def test_what_an_earlier_one_left_behind_does_not_count(pool: JobPool) -> None:
    def leave() -> int:
        import builtins

        builtins.left_behind = b"x" * 400_000_000  # type: ignore[attr-defined]
        return os.getpid()

    limited(pool)
    pid = pool.submit(leave).result(PATIENCE)
    offered(pool)
    job = pool.options(memory_limit="300 MB").submit(os.getpid)
    assert job.result(PATIENCE) != pid


def test_the_thread_that_watches_falls_asleep(pool: JobPool) -> None:
    memory = memory_of(pool)
    assert memory._asleep
    view = pool.options(memory_limit="1 GB")
    for _ in range(2):
        offered(pool)
        view.submit(abs, -1).result(PATIENCE)
        until(lambda: not memory._asleep, "it wakes")
        until(lambda: memory._asleep, "it sleeps")
    assert not memory._watched
    assert not memory._offered


def test_what_is_read_of_a_descriptor_that_is_something_else() -> None:
    ends = os.pipe()
    with Path(__file__).open("rb") as file:
        assert resident_by(file.fileno()) is None
    with Path(os.devnull).open("rb") as file:
        assert resident_by(file.fileno()) is None
    assert resident_by(ends[0]) is None
    for end in ends:
        os.close(end)
    assert resident_by(ends[0]) is None
    with subprocess.Popen(["sleep", "60"]) as child:
        fd = open_statm(child.pid)
        assert resident_by(fd)
        child.kill()
    assert not resident_by(fd)
    os.close(fd)


# --- and the others -------------------------------------------------------------------------------


def test_who_comes_second_waits(pool: JobPool, tmp_path: Path) -> None:
    offered(pool)
    first = pool.submit(hold_and_tell, tmp_path / "gate")
    second, third = pool.submit(abs, -2), pool.options(priority=1).submit(abs, -3)
    assert first.running()
    assert second.status() is third.status() is JobStatus.QUEUED
    (tmp_path / "gate").touch()
    assert (first.done, second.result(PATIENCE), third.result(PATIENCE))[1:] == (2, 3)
    started = [next(t for s, t in job.history() if s.name == "RUNNING") for job in (third, second)]
    assert started == sorted(started), "the higher priority first, though nobody was woken for it"


# --- callers that do not get to the end ----------------------------------------------------------


class Interrupted:
    """A `try_to_send` that goes wrong in one of several ways, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, sends: bool, then: object) -> None:
        real = PacketChannel.try_to_send
        done: list[int] = []

        def try_to_send(channel: PacketChannel, *message: Any) -> bool:
            if done:
                return real(channel, *message)
            done.append(1)
            if sends:
                assert real(channel, *message)
            if isinstance(then, BaseException):
                raise then
            assert isinstance(then, bool)
            return then

        monkeypatch.setattr(PacketChannel, "try_to_send", try_to_send)


def test_what_was_not_sent_is_sent_by_the_dispatcher(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offered(pool)
    Interrupted(monkeypatch, sends=False, then=False)
    pool.submit(leave_mark, str(tmp_path)).result(PATIENCE)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_sent_twice_runs_once(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offered(pool)
    Interrupted(monkeypatch, sends=True, then=False)
    job = pool.submit(leave_mark, str(tmp_path))
    job.result(PATIENCE)
    for n in range(5):  # what came twice is no answer to one of these
        assert pool.submit(abs, -n).result(PATIENCE) == n
    assert len(list(tmp_path.iterdir())) == 1
    assert job.attempts == 1


def leave_mark_and_abort(folder: str) -> None:
    leave_mark(folder)
    os.abort()


def test_one_that_ends_its_worker_at_once_begins_once(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The caller has sent it, but not said so yet, when the dispatcher hears of the death."""
    real = PacketChannel.try_to_send

    def try_to_send(channel: PacketChannel, *message: Any) -> bool:
        sent = real(channel, *message)
        until(lambda: pool._engine._hand_off.offer is None, "the dispatcher's taking over")
        return sent

    offered(pool)
    monkeypatch.setattr(PacketChannel, "try_to_send", try_to_send)
    job = pool.submit(leave_mark_and_abort, str(tmp_path))
    monkeypatch.undo()
    error = job.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.exitcode == -signal.SIGABRT
    assert len(list(tmp_path.iterdir())) == 1
    assert job.attempts == 1


def test_a_fleet_that_cannot_keep_the_channel_costs_the_worker_and_loses_no_job(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is still sending when the dispatcher takes its job over."""
    fleet, real = fleet_of(pool), PacketChannel.try_to_send
    tried = threading.Event()

    def sends_late(_: object) -> None:
        tried.set()
        raise MemoryError

    def try_to_send(channel: PacketChannel, *message: Any) -> bool:
        sent = real(channel, *message)
        assert tried.wait(PATIENCE)
        return sent

    offered(pool)
    monkeypatch.setattr(fleet, "sends_late", sends_late)
    monkeypatch.setattr(PacketChannel, "try_to_send", try_to_send)
    job = pool.submit(abs, -1)
    monkeypatch.undo()
    error = job.exception(PATIENCE)
    assert isinstance(error, JobError)
    assert isinstance(error.__cause__, MemoryError)
    assert pool.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.parametrize("sends", [True, False])
def test_an_interrupt_at_the_sending_cancels(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, sends: bool, tmp_path: Path
) -> None:
    offered(pool)
    Interrupted(monkeypatch, sends=sends, then=KeyboardInterrupt())
    job = PrimitiveJob(hold_and_tell, tmp_path / "never")
    with pytest.raises(KeyboardInterrupt):
        job.submit(pool)
    assert job.wait(PATIENCE)
    assert job.cancelled()
    assert pool.jobs() == []
    assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_a_caller_stuck_before_the_sending_holds_nobody_up(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its thread gets no further for a while: the dispatcher does what it would have done."""
    real = PacketChannel.try_to_send
    at_it, go_on = threading.Event(), threading.Event()

    def try_to_send(channel: PacketChannel, *message: Any) -> bool:
        if threading.current_thread() is thread:
            at_it.set()
            assert go_on.wait(PATIENCE)
        return real(channel, *message)

    monkeypatch.setattr(PacketChannel, "try_to_send", try_to_send)
    jobs: list[PrimitiveJob[None]] = []
    thread = threading.Thread(target=lambda: jobs.append(pool.submit(leave_mark, str(tmp_path))))
    offered(pool)
    thread.start()
    assert at_it.wait(PATIENCE)
    assert pool.submit(abs, -1).result(PATIENCE) == 1  # it waits behind the other
    assert len(list(tmp_path.iterdir())) == 1
    os.kill(pool.submit(os.getpid).result(PATIENCE), 9)
    until(lambda: not fleet_of(pool).workers, "the worker's end")
    assert fleet_of(pool)._unclosed._late_senders, "its descriptor is not given to anybody else"
    go_on.set()
    thread.join(PATIENCE)
    assert jobs[0].done()
    assert pool.submit(abs, -1).result(PATIENCE) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cancel_before_the_sending(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another thread cancels while the caller is about to claim the worker."""
    job = PrimitiveJob(leave_mark, str(tmp_path))

    def cancelled_first(offer: Any, mine: JobRecord, commands: Any) -> bool:
        if mine is job._record:
            assert job.cancel()
        return give(offer, mine, commands)

    monkeypatch.setattr("primitive_jobs._engine.engine.give", cancelled_first)
    offered(pool)
    job.submit(pool)
    assert job.cancelled()
    assert pool.submit(abs, -1).result(PATIENCE) == 1
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def untold_cancels() -> Iterator[None]:
    """Have no dispatcher told of the cancel of what waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "ask_cancel", lambda self, job, grace: None)
        yield


# --- a cancel of what waits ----------------------------------------------------------------------


def test_a_waiting_job_is_cancelled_without_the_dispatcher(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    busy = pool.submit(hold_and_tell, tmp_path / "gate")
    waiting = [pool.submit(abs, -n) for n in range(10)]
    monkeypatch.setattr(Inbox, "wake", lambda self: None)
    assert all(job.cancel() for job in waiting[:5])
    assert all(job.cancelled() for job in waiting[:5])
    monkeypatch.undo()
    assert pool.jobs() == [busy, *waiting[5:]]
    (tmp_path / "gate").touch()
    assert [job.result(PATIENCE) for job in waiting[5:]] == [5, 6, 7, 8, 9]


def test_a_cancelled_job_is_let_go_while_others_run(pool: JobPool, tmp_path: Path) -> None:
    pool.submit(hold_and_tell, tmp_path / "gate")
    job = pool.submit(abs, -1)
    pool.jobs()  # the dispatcher has it
    known = weakref.ref(job)
    assert job.cancel()
    del job
    until(lambda: known() is None, "the job to be let go")
    (tmp_path / "gate").touch()


@pytest.mark.skipif(not HAVE_PACKETS, reason="nothing is held in files here")
def test_a_cancelled_jobs_payload_goes_at_once(pool: JobPool, tmp_path: Path) -> None:
    pool.submit(hold_and_tell, tmp_path / "gate")
    before = descriptors()
    jobs = [pool.submit(len, bytes(1_000_000)) for _ in range(5)]
    assert descriptors() == before + 5
    assert all(job.cancel() for job in jobs)
    gc.collect()
    assert descriptors() == before
    (tmp_path / "gate").touch()


def test_a_long_row_of_cancelled_jobs_is_passed_over(pool: JobPool, tmp_path: Path) -> None:
    busy = pool.submit(hold_and_tell, tmp_path / "gate")
    waiting = [pool.submit(abs, -n) for n in range(3000)]
    assert len(pool.jobs()) == 3001  # the dispatcher has them
    with untold_cancels():  # and does not hear of the cancels before it comes to them
        assert all(job.cancel() for job in waiting)
        (tmp_path / "gate").touch()
        busy.result(PATIENCE)
        assert pool.submit(abs, -7).result(PATIENCE) == 7
    assert pool.jobs() == []


def test_what_is_not_urgent_does_not_pile_up(pool: JobPool, tmp_path: Path) -> None:
    pool.submit(hold_and_tell, tmp_path / "gate")
    for n in range(3000):
        assert pool.submit(abs, n).cancel()
    until(lambda: len(pool._engine._inbox.commands) < 1100, "the inbox to be emptied")
    assert len(pool._engine._jobs.unfinished) < 1100
    (tmp_path / "gate").touch()

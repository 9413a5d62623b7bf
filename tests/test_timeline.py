"""`BasePool.timeline`: what ran when, whatever became of it and whoever asks.

What may happen to an attempt, and where that is tested: it is handed over by its caller, or sent
ahead, and over before the pool hears of it; it returns, raises, is cancelled, passes a limit, dies;
its job is tried again; its worker is replaced; it runs at the moment of the look; or it never
began. And to a look: the pool is busy, stands still, has ended, or is a fork's parent's.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from helpers import PATIENCE, double, fail, hold, hold_and_tell, until

from primitive_jobs import JobPool, JobStatus, PrimitiveJob, Timeline, wait
from primitive_jobs._engine.dispatcher import Dispatcher
from primitive_jobs._engine.events import Ask
from primitive_jobs.snapshots import Attempt

if TYPE_CHECKING:
    from makers import MakePool

cloudpickle.register_pickle_by_value(sys.modules[__name__])

CLOSE = 0.05  # s between two ways to tell of one moment: the machine may be busy


def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1000)


def die_once(mark: Path) -> int:
    if not mark.exists():
        mark.touch()
        die(signal.SIGKILL)
    return os.getpid()


def fill(size: int, gate: Path) -> int:
    held = bytearray(size)
    hold(gate)
    return len(held)


def named(timeline: Timeline, name: str) -> list[Attempt]:
    return [attempt for attempt in timeline.attempts if attempt.name == name]


def only(timeline: Timeline, name: str) -> Attempt:
    (attempt,) = named(timeline, name)
    return attempt


def check(timeline: Timeline) -> None:
    """What holds for every timeline: order, lanes, sums."""
    attempts = timeline.attempts
    assert [*attempts] == sorted(attempts, key=lambda attempt: attempt.began)
    for lane in timeline.lanes:
        for earlier, later in pairwise(lane.attempts):
            assert later.began >= earlier.ended - 1e-3, "a worker does one thing at a time"
    assert sum(len(lane.attempts) for lane in timeline.lanes) == len(attempts)
    for attempt in attempts:
        assert timeline.since <= attempt.began <= attempt.ended <= timeline.until
        assert attempt.pid > 0
    if not timeline.left_out:
        counts = Counter(attempt.end for attempt in attempts)
        assert counts == {end: total.attempts for end, total in timeline.totals.items()}
        for end, total in timeline.totals.items():
            spent = sum(attempt.seconds for attempt in attempts if attempt.end == end)
            assert total.seconds == pytest.approx(spent, abs=1e-3)


def assert_is_of(attempt: Attempt, job: PrimitiveJob[Any]) -> None:
    """It has the times that the job has, to the clocks' difference."""
    walk = dict(job.history())
    assert attempt.name == job.name
    assert attempt.began == pytest.approx(walk[JobStatus.RUNNING], abs=CLOSE)
    assert attempt.ended == pytest.approx(job.history()[-1][1], abs=CLOSE)


# --- how attempts end ----------------------------------------------------------------------------


def test_an_empty_one(one: JobPool) -> None:
    timeline = one.timeline()
    assert (timeline.attempts, timeline.lanes, timeline.left_out) == ((), (), 0)
    assert timeline.since == timeline.until == timeline.taken
    assert timeline.seconds == 0
    assert "0 attempts" in repr(timeline)
    check(timeline)


def test_every_end(two: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "never"
    ends: dict[str, PrimitiveJob[Any]] = {
        "returned": two.options(name="returned").submit(double, 2),
        "raised": two.options(name="raised").submit(fail),
        "timeout": two.options(name="timeout", timeout=0.05).submit(hold, gate),
        "died": two.options(name="died").submit(die, signal.SIGSEGV),
    }
    wait([*ends.values()], PATIENCE)
    exits = two.options(name="exits").submit(os._exit, 3)
    assert exits.exception(PATIENCE) is not None
    job = ends["cancelled"] = two.options(name="cancelled").submit(hold, gate)
    until(job.running, "RUNNING")
    pid = job.pid
    assert job.cancel()
    timeline = two.timeline()
    check(timeline)
    assert len(timeline.attempts) == 6
    for end, job in ends.items():
        attempt = only(timeline, end)
        assert (attempt.end, attempt.attempt) == (end, 1)
        assert_is_of(attempt, job)
    assert only(timeline, "cancelled").pid == pid
    assert only(timeline, "timeout").reason == "passed its timeout of 0.05 s"
    assert only(timeline, "timeout").seconds >= 0.05
    assert "SIGSEGV" in only(timeline, "died").reason
    assert "exited with code 3" in only(timeline, "exits").reason
    assert only(timeline, "returned").reason == ""
    lost = sum(only(timeline, name).seconds for name in ("cancelled", "timeout", "died", "exits"))
    assert timeline.lost == pytest.approx(lost, abs=1e-3)
    assert timeline.results == pytest.approx(only(timeline, "returned").seconds, abs=1e-3)
    assert "lost to kills and deaths" in repr(timeline)


def test_a_memory_limit_that_was_passed(one: JobPool, tmp_path: Path) -> None:
    job = one.options(memory_limit="60 MB").submit(fill, 200_000_000, tmp_path / "never")
    assert job.exception(PATIENCE) is not None
    attempt = only(one.timeline(), "fill")
    assert (attempt.end, attempt.reason) == ("memory", "passed its memory_limit of 60.0 MB")
    assert attempt.memory is not None
    assert attempt.memory > 60_000_000


@pytest.mark.local
def test_memory_that_was_measured(tmp_path: Path) -> None:
    """Of jobs with a limit it is; the picture has a track of it."""
    gate = tmp_path / "gate"
    with JobPool(2) as pool:
        limited = pool.options(memory_limit="1 GB", name="limited").submit(fill, 50_000_000, gate)
        other = pool.options(name="other").submit(fill, 50_000_000, gate)
        until(lambda: any(s.memory > 50_000_000 for s in pool.timeline().memory), "a look")
        assert "of the 1 attempts of which it is known" in pool.timeline()._repr_svg_()
        gate.touch()
        wait([limited, other], PATIENCE)
        timeline = pool.timeline()
    known = only(timeline, "limited")
    assert known.memory is not None
    assert 50_000_000 < known.memory < 1_000_000_000
    assert {sample.pid for sample in timeline.memory} == {known.pid}
    assert all(known.began <= sample.at <= known.ended for sample in timeline.memory)
    told = only(timeline, "other").memory
    assert told is not None, "its worker has told at its end"
    assert 50_000_000 < told < 1_000_000_000


def test_the_peak_that_is_known_at_the_end(one: JobPool, tmp_path: Path) -> None:
    def take(size: int, then: Any = None) -> None:
        held = b"x" * size
        time.sleep(0.002)
        del held
        if then is not None:
            then()

    def once(mark: Path) -> None:
        first = not mark.exists()
        mark.touch()
        take(size if first else 1_000_000, (lambda: os._exit(3)) if first else None)

    def take_and_hold(folder: Path) -> None:
        (folder / "taken").touch()
        hold(folder / "never")

    # A worker has the peak of its program for a floor: below that nothing is known of a death.
    size = 150_000_000 + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    for _ in range(20):
        one.submit(int).result(PATIENCE)
    jobs = {
        "large": one.options(name="large").submit(take, size),
        "small": one.options(name="small").submit(take, 1_000_000),
        "raised": one.options(name="raised").submit(take, size, fail),
        "died": one.options(name="died").submit(
            take, size, lambda: os.kill(os.getpid(), signal.SIGSEGV)
        ),
        "cancelled": one.options(name="cancelled").submit(
            take, size, lambda: take_and_hold(tmp_path)
        ),
        "again": one.options(name="again", retries=1).submit(once, tmp_path / "mark"),
    }
    until((tmp_path / "taken").exists, "what it takes")
    assert jobs["cancelled"].cancel()
    wait([*jobs.values()], PATIENCE)
    assert jobs["raised"].exception() is not None
    assert jobs["died"].exception() is not None
    timeline = one.timeline()
    check(timeline)
    for name in ("large", "raised", "died", "cancelled"):
        memory, usage = only(timeline, name).memory, jobs[name].usage
        assert memory is not None, name
        assert size < memory < size + 150_000_000, name
        assert usage is not None
        assert usage.peak_memory in (None, memory), name
    small = only(timeline, "small").memory
    assert small is not None
    assert small < size
    first, second = named(timeline, "again")
    assert first.memory is not None
    assert second.memory is not None
    assert second.memory < size < first.memory
    short = [attempt.memory for attempt in named(timeline, "int")]
    assert None in short, "nobody measures what is so short"
    known = 7 + len(short) - short.count(None)  # one that was held up may have taken 1 ms
    assert f"of the {known} attempts of which it is known" in timeline._repr_svg_()


def test_each_try_is_an_attempt(one: JobPool, tmp_path: Path) -> None:
    job = one.options(retries=1).submit(die_once, tmp_path / "mark")
    pid = job.result(PATIENCE)
    timeline = one.timeline()
    check(timeline)
    first, second = named(timeline, "die_once")
    assert (first.end, first.attempt, first.reason) == ("died", 1, "killed by signal SIGKILL")
    assert (second.end, second.attempt, second.pid) == ("returned", 2, pid)
    assert first.pid != pid
    assert first.ended <= second.began
    if first.node == second.node:
        (lane,) = timeline.lanes
        assert lane.pids == (first.pid, pid), "who takes another's place goes on in its lane"


def test_what_no_worker_began_is_not_there(one: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    busy = one.submit(hold, gate)
    until(busy.running, "RUNNING")
    waiting = [one.submit(abs, -n) for n in range(5)]
    assert all(job.cancel() for job in waiting)
    unsent = one.submit(lambda lock: lock, threading.Lock())
    assert unsent.exception(PATIENCE) is not None
    gate.touch()
    busy.result(PATIENCE)
    assert [attempt.name for attempt in one.timeline().attempts] == ["hold"]


def test_a_grace_that_is_used(one: JobPool, tmp_path: Path) -> None:
    job = one.options(grace=PATIENCE).submit(_return_at_sigterm, tmp_path / "begun")
    until((tmp_path / "begun").exists, "its begin")
    assert not job.cancel()
    assert only(one.timeline(), "_return_at_sigterm").end == "returned"


def _return_at_sigterm(mark: Path) -> int:
    try:
        mark.touch()
        time.sleep(1000)
    except SystemExit:
        return 1
    return 0


@pytest.mark.local
def test_replaced_workers(tmp_path: Path) -> None:
    with JobPool(1, max_jobs_per_worker=2, spare_workers=0) as pool:
        pids = [pool.submit(os.getpid).result(PATIENCE) for _ in range(6)]
    timeline = pool.timeline()
    check(timeline)
    (lane,) = timeline.lanes
    assert [attempt.pid for attempt in lane.attempts] == pids
    assert len(lane.pids) == 3


def test_chunks_of_a_map_have_their_names(pool: JobPool) -> None:
    before = len(pool.timeline().attempts)
    assert list(pool.map(double, range(10), chunksize=5)) == [*range(0, 20, 2)]
    names = {attempt.name for attempt in pool.timeline().attempts[before:]}
    assert names == {"double[0:5]", "double[5:10]"}


# --- how attempts come about ---------------------------------------------------------------------


def test_those_that_their_callers_hand_over(one: JobPool) -> None:
    jobs = []
    for n in range(50):
        jobs.append(one.options(name=f"job {n}").submit(abs, -n))
        assert jobs[-1].result(PATIENCE) == n
    failing = one.options(name="failing").submit(fail)
    assert failing.exception(PATIENCE) is not None
    timeline = one.timeline()
    check(timeline)
    assert len(timeline.attempts) == 51
    for job in jobs:
        assert_is_of(only(timeline, job.name), job)
    assert only(timeline, "failing").end == "raised"


def test_those_that_are_sent_ahead(two: JobPool) -> None:
    jobs = [two.options(name=f"job {n}").submit(abs, -n) for n in range(2000)]
    wait(jobs, PATIENCE)
    timeline = two.timeline()
    check(timeline)
    assert {attempt.name for attempt in timeline.attempts} == {job.name for job in jobs}
    assert len(timeline.attempts) == 2000
    for job in jobs[::100]:
        assert_is_of(only(timeline, job.name), job)


@pytest.mark.local
def test_a_worker_that_dies_with_jobs_ahead(two: JobPool) -> None:
    """Each job that a worker began is one attempt, and none is lost or there twice."""
    jobs: list[PrimitiveJob[Any]] = [two.submit(abs, -n) for n in range(200)]
    jobs += [two.options(name="dies").submit(die, signal.SIGKILL)]
    jobs += [two.submit(abs, -n) for n in range(2000)]
    wait(jobs, PATIENCE)
    assert jobs[200].exception() is not None
    timeline = two.timeline()
    check(timeline)
    assert only(timeline, "dies").end == "died"
    begun = [job for job in jobs if any(s is JobStatus.RUNNING for s, _ in job.history())]
    assert len(timeline.attempts) == len(begun)


def test_those_that_run_now(two: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs = [two.options(name=f"job {n}").submit(hold_and_tell, gate) for n in range(2)]
    until(lambda: all(job.running() for job in jobs), "RUNNING")
    queued = two.options(name="queued").submit(abs, -1)
    first = two.timeline()
    check(first)
    assert {attempt.end for attempt in first.attempts} == {"running"}
    assert len(first.attempts) == 2
    for job in jobs:
        attempt = only(first, job.name)
        assert (attempt.pid, attempt.node) == (job.pid, job.node)
        assert attempt.ended == pytest.approx(first.taken, abs=CLOSE)
    assert first.until == pytest.approx(time.time(), abs=PATIENCE)
    second = two.timeline()
    assert only(second, "job 0").began == pytest.approx(only(first, "job 0").began, abs=CLOSE)
    assert only(second, "job 0").ended > only(first, "job 0").ended
    gate.touch()
    pids = [job.result(PATIENCE) for job in jobs]
    queued.result(PATIENCE)
    last = two.timeline()
    check(last)
    assert "running" not in last.totals
    assert [only(last, job.name).pid for job in jobs] == pids
    assert [only(last, job.name).end for job in jobs] == ["returned"] * 2


@pytest.mark.local
def test_what_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("attempts", "look"):
        monkeypatch.setattr(f"primitive_jobs._engine.{module}.KEPT", 300)
    with JobPool(1) as pool:
        wait([pool.submit(abs, -1) for _ in range(800)], PATIENCE)
        timeline = pool.timeline()
        assert len(timeline.attempts) == 300
        assert timeline.left_out == 500
        assert timeline.totals["returned"].attempts == 800
        assert timeline.seconds > sum(attempt.seconds for attempt in timeline.attempts)
        check(timeline)
        assert "500 earlier ones are left out" in repr(timeline)
        assert "500 earlier attempts are left out" in timeline._repr_svg_()


# --- who looks, and when -------------------------------------------------------------------------


def test_while_jobs_end(two: JobPool) -> None:
    """Each look finds all that ended before it, each once."""
    seen: list[tuple[int, Timeline]] = []
    done = [0]
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            least = done[0]
            seen.append((least, two.timeline()))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for n in range(300):
            jobs = [two.submit(abs, -n) for _ in range(n % 5)]
            wait(jobs, PATIENCE)
            done[0] += len(jobs)
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert len(seen) > 10
    for least, timeline in seen[:: max(1, len(seen) // 50)]:
        check(timeline)
        assert least <= len(timeline.attempts) <= 600


def test_after_the_end_of_the_pool(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(1)
    pool.submit(abs, -1).result(PATIENCE)
    running = pool.submit(hold, tmp_path / "never")
    until(running.running, "RUNNING")
    pool.shutdown(cancel=True)
    timeline = pool.timeline()
    check(timeline)
    assert [attempt.end for attempt in timeline.attempts] == ["returned", "cancelled"]
    again = pool.timeline()
    assert [attempt[:2] for attempt in again.attempts] == [a[:2] for a in timeline.attempts]
    assert vars(pickle.loads(pickle.dumps(timeline))) == vars(timeline)


@pytest.mark.local
def test_while_the_dispatcher_stands_still(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a debugger leaves it: what it knows is shown, and what a caller has handed over."""
    go_on = threading.Event()
    take = Dispatcher._take

    def still(self: Dispatcher, command: Any) -> None:
        if isinstance(command, Ask):
            assert go_on.wait(PATIENCE)
        take(self, command)

    with JobPool(1, spare_workers=0) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        running = pool.submit(hold_and_tell, tmp_path / "gate")
        until(running.running, "RUNNING")
        monkeypatch.setattr(Dispatcher, "_take", still)
        try:
            began = time.monotonic()
            timeline = pool.timeline()
            assert time.monotonic() - began < 0.5 * PATIENCE
            assert [a.end for a in timeline.attempts] == ["returned", "running"]
            check(timeline)
        finally:
            go_on.set()
            (tmp_path / "gate").touch()
        running.result(PATIENCE)


@pytest.mark.local
def test_from_a_callback_and_on_one_of_its_own_threads(one: JobPool) -> None:
    seen: list[Timeline] = []
    job = one.submit(abs, -1)
    job.add_done_callback(lambda _: seen.append(one.timeline()))
    until(lambda: seen, "the callback")
    assert [attempt.end for attempt in seen[0].attempts] == ["returned"]
    own = one._engine._own_threads
    own.add(threading.get_ident())
    try:
        assert len(one.timeline().attempts) == 1
    finally:
        own.discard(threading.get_ident())


@pytest.mark.local
def test_a_fork_shows_what_had_ended(one: JobPool, tmp_path: Path) -> None:
    """What was running is the parent's affair."""
    one.submit(abs, -1).result(PATIENCE)
    running = one.submit(hold, tmp_path / "gate", 7)
    until(running.running, "RUNNING")
    pid = os.fork()
    if not pid:
        try:
            timeline = one.timeline()
            ends = [attempt.end for attempt in timeline.attempts]
            timeline.save(tmp_path / "fork.svg")
            os._exit(0 if ends == ["returned"] else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (tmp_path / "gate").touch()
    assert running.result(PATIENCE) == 7
    assert [attempt.end for attempt in one.timeline().attempts] == ["returned"] * 2


class _Mine:
    """One with a weak reference."""


@pytest.mark.local
def test_no_job_is_kept_for_it(one: JobPool) -> None:
    value = _Mine()
    job = one.submit(_is_there, value)
    assert job.result(PATIENCE)
    gone = weakref.ref(job), weakref.ref(value), weakref.ref(job._record.tracker)
    timeline = one.timeline()
    del job, value
    assert one.submit(abs, -1).result(PATIENCE) == 1  # whoever comes lets go of handles
    gc.collect()
    assert [there() for there in gone] == [None] * 3
    assert only(timeline, "_is_there").end == "returned"


def _is_there(value: object) -> bool:
    return value is not None


# --- files ---------------------------------------------------------------------------------------


def test_saving(one: JobPool, tmp_path: Path) -> None:
    one.submit(abs, -1).result(PATIENCE)
    timeline = one.timeline()
    for name, begin in {
        "run.svg": "<svg ",
        "run.html": "<!doctype html>",
        "run.json": "{",
        "RUN.SVG": "<svg ",
    }.items():
        timeline.save(str(tmp_path / name))
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(begin)
    timeline.save(tmp_path / "run.json")
    found = {path.name for path in tmp_path.iterdir()}
    for name in ("run.png", "run", "svg"):
        with pytest.raises(ValueError, match=rf"\.svg, \.html or \.json, not '{name}'"):
            timeline.save(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        timeline.save(tmp_path / "nowhere" / "run.svg")
    assert {path.name for path in tmp_path.iterdir()} == found

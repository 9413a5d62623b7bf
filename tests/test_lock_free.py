"""What becomes of two steps that another thread comes in between.

It comes in by a method of an object that stands in for a list, a dict or a deque: so this needs
neither luck nor a build without the GIL. `test_many_threads` is the same with luck.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, SupportsIndex

import pytest
from helpers import PATIENCE, descriptors, expect, fail, hold, until

from primitive_jobs import JobFailuresWarning, JobPool, JobStatus, JobTimeoutError, PrimitiveJob
from primitive_jobs._common.lock_free import members, snapshot
from primitive_jobs._engine import hand_over, unseen
from primitive_jobs._engine.events import FailedEarly
from primitive_jobs._engine.gate import HandOver
from primitive_jobs._engine.tracker import Outcome, StatusTracker
from primitive_jobs._engine.unseen import Token, Unseen
from primitive_jobs._wire import pickling
from primitive_jobs._wire.parcel import HAVE_PACKETS, INLINE_LIMIT, Parcel
from primitive_jobs.errors import JobError, WorkerDiedError


class StepIn:
    """Another thread, which does one thing, once, when it is let in."""

    def __init__(self) -> None:
        self.does: Callable[[], object] | None = None

    def __call__(self) -> None:
        does, self.does = self.does, None
        if does is not None:
            thread = threading.Thread(target=does)
            thread.start()
            thread.join()


# --- a job's status -------------------------------------------------------------------------------


class Gate(list[Any]):
    """Lets somebody in after so many looks."""

    def __init__(self, content: list[Any], looks: int) -> None:
        super().__init__(content)
        self._looks = looks
        self.step_in = StepIn()

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self._looks -= 1
        if not self._looks:
            self.step_in()
        return found


@pytest.mark.parametrize("looks", [1, 2])
@pytest.mark.parametrize("look", ["status", "pid", "attempts", "history"])
def test_a_look_while_a_hand_over_is_written_down(look: str, looks: int) -> None:
    tracker, handed = StatusTracker(), HandOver(77)
    tracker.submitted()
    tracker.serialized()
    handed.at, handed.when = time.monotonic(), time.time()
    assert tracker.take(handed)
    tracker._gate = gate = Gate(tracker._gate, looks)
    gate.step_in.does = lambda: tracker.note(handed)
    expected = {"status": JobStatus.RUNNING, "pid": 77, "attempts": 1}
    if look == "history":
        assert tracker.history()[-1] == (JobStatus.RUNNING, handed.when)
    else:
        assert getattr(tracker, look) == expected[look]
    assert gate.step_in.does is None or looks > 1, "it was not let in"


@pytest.mark.skipif(not HAVE_PACKETS, reason="nothing is handed over here")
def test_the_time_of_a_hand_over_is_complete_once_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, float]] = []

    class Offer(hand_over.Offer):
        __slots__ = ()

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name in ("when", "at") and value:  # what the dispatcher sees if it looks now
                seen.append((self.when, getattr(self, "at", 0.0)))

    monkeypatch.setattr(hand_over, "Offer", Offer)
    with JobPool(1, spare_workers=0) as pool:
        for _ in range(5):
            pool.submit(abs, -1).result(PATIENCE)
            until(lambda: pool._engine._inbox.asleep and pool._engine._hand_off.offer, "an offer")
    assert seen
    assert all(at for when, at in seen if when), "the one clock's time was there without the other"


# --- what a pool has ------------------------------------------------------------------------------


class Inbox(deque[Any]):
    """Somebody puts something in at each step of its iterator."""

    busy = True

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            if self.busy:
                self.append(FailedEarly())
            yield item


def test_a_pool_is_shown_while_others_submit(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, gate)
        until(lambda: job.running() and pool._engine._inbox.asleep, "the job to run")
        others = [pool.submit(abs, -1) for _ in range(3)]
        until(lambda: pool._engine._inbox.asleep, "rest")
        pool._engine._inbox.commands = inbox = Inbox(pool._engine._inbox.commands)
        try:
            assert "3 queued, 1 running, 0 done" in repr(pool)
            assert "3 queued, 1 running, 0 done" in pool._repr_html_()
        finally:
            inbox.busy = False
            gate.touch()
        assert [other.result(PATIENCE) for other in others] == [1, 1, 1]


def test_a_snapshot_of_what_becomes_shorter() -> None:
    class Shrinking(deque[int]):
        def __iter__(self) -> Iterator[int]:
            raise RuntimeError("deque mutated during iteration")

        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            self.pop()
            return found

    assert snapshot(deque([1, 2, 3])) == [1, 2, 3]
    assert snapshot(Shrinking([1, 2, 3, 4])) == [1, 2]


class Weak(weakref.WeakSet[Any]):
    """One that somebody adds to while it is looked through for the first time."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        self.looks += 1
        for item in super().__iter__():
            if self.looks == 1:
                raise RuntimeError("Set changed size during iteration")
            yield item


def test_all_pools_are_found_while_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Unseen] = []
    one = Unseen(lambda call: call(), [0, 0, 0])
    monkeypatch.setattr(Unseen, "tell_at_exit", lambda one: told.extend([one]))
    monkeypatch.setattr(unseen, "_all", Weak([one]))
    unseen.tell_all_at_exit()
    assert told == [one]
    assert members(Weak([one])) == [one]


def test_shared_data_is_looked_for_while_a_module_adds_a_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Kinds(dict[type, Any]):
        def items(self) -> Any:
            for item in super().items():
                self.setdefault(Kinds, item[1])
                yield item

    monkeypatch.setattr(pickling, "handle_types", Kinds(pickling.handle_types))
    assert pickling.dumps_referring([1])[2] == ()


# --- what a job is sent with ----------------------------------------------------------------------


class Descriptors(list[int]):
    """Lets somebody in before something is taken out, or after it was counted."""

    def __init__(self, content: list[int]) -> None:
        super().__init__(content)
        self.step_in = StepIn()

    def pop(self, place: SupportsIndex = -1) -> int:
        self.step_in()
        return super().pop(place)

    def __len__(self) -> int:
        count = super().__len__()
        self.step_in()
        return count


@pytest.mark.skipif(not HAVE_PACKETS, reason="nothing is held in files here")
@pytest.mark.parametrize("use", [Parcel.close, lambda parcel: parcel.fd], ids=["close", "fd"])
def test_a_parcel_is_closed_by_two(use: Callable[[Parcel], object]) -> None:
    before = descriptors()
    parcel = Parcel(bytes(INLINE_LIMIT + 1))
    assert descriptors() == before + 1
    parcel._fds = fds = Descriptors(parcel._fds)
    fds.step_in.does = parcel.close
    use(parcel)
    parcel.close()
    assert descriptors() == before


def test_a_cancel_while_the_dispatcher_takes_a_job_in(
    one: JobPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = threading.get_ident()
    step_in = StepIn()

    class Content(Parcel):
        """Lets somebody in when the dispatcher asks what it is, by another type than its own."""

    class Disguised:
        fd = -1

        @property  # type: ignore[misc]
        def __class__(self) -> type:
            if threading.get_ident() != own:
                step_in()
            return Content

        def close(self) -> None:
            pass

    one.submit(abs, -1).result(PATIENCE)
    monkeypatch.setattr(one._engine, "pack", lambda *_: Disguised())
    job: PrimitiveJob[int] = PrimitiveJob(len, bytes(INLINE_LIMIT + 1))
    step_in.does = job.cancel
    monkeypatch.setattr(one._engine._hand_off, "offer", None)
    job.submit(one)
    assert job.wait(PATIENCE)
    until(lambda: step_in.does is None, "somebody let in")
    assert job.cancelled()
    monkeypatch.undo()
    assert one.submit(abs, -1).result(PATIENCE) == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# --- callbacks ------------------------------------------------------------------------------------


def test_a_callback_that_many_threads_are_to_call_is_called_once() -> None:
    # With the GIL nothing comes between; this is for builds without it.
    for _ in range(100):
        job: PrimitiveJob[int] = PrimitiveJob(abs, -1)
        calls: list[object] = []
        job.add_done_callback(calls.append)
        (hand_over,) = job._tracker._waiters
        start = threading.Barrier(4)

        def call(hand_over: Any = hand_over, start: threading.Barrier = start) -> None:
            start.wait()
            hand_over()

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert calls == [job]


# --- failures that nobody looks at ----------------------------------------------------------------


def failures(count: int, told: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Unseen, Any]:
    """A pool's, and what they go with; what is told goes to ``told``."""
    mine = Unseen(lambda call: call(), [0, count, 0])
    monkeypatch.setattr(mine, "_tell", lambda news, **_: told.append(mine._text(news)))
    held = [StatusTracker() for _ in range(count)]
    for n in range(count):
        Token.of(mine, f"job{n}", JobError(f"no {n}"), held[n])
    return mine, held


def test_a_failure_that_dies_while_another_is_counted_has_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    mine, held = failures(2, told, monkeypatch)
    later = held.pop()

    class Dead(deque[Any]):
        def append(self, item: Any) -> None:
            nonlocal later
            if later is not None:
                later = None  # dies here, and is told before the earlier one is there
            super().append(item)

    mine._dead = Dead()
    held.clear()
    assert told[0] == "1 of 2 jobs failed, and nobody looked at it: 'job1': JobError: no 1"


def test_a_failure_after_the_end_is_told_whoever_asks_for_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    mine, held = failures(1, told, monkeypatch)
    step_in = StepIn()

    class Slow(Unseen):
        """Lets somebody in after it was asked whether the pool has ended."""

        _ended = False

        @property
        def ended(self) -> bool:
            found = self._ended
            step_in()
            return found

        @ended.setter
        def ended(self, value: bool) -> None:
            self._ended = value

    del mine.__dict__["ended"]
    mine.__class__ = Slow
    step_in.does = mine.pool_ended
    mine.keep_quiet()
    step_in()  # where nobody has asked
    held.clear()
    assert told == ["1 of 1 jobs failed, and nobody looked at it: 'job0': JobError: no 0"]


def test_a_failure_that_is_looked_at_while_the_interpreter_ends_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    mine, _held = failures(2, told, monkeypatch)

    class Dead(deque[Any]):
        def append(self, item: Any) -> None:
            next(iter(mine.unread)).looked_at()
            super().append(item)

    mine._dead = Dead()
    mine.tell_at_exit()
    assert told == ["1 of 2 jobs failed, and nobody looked at it: 'job1': JobError: no 1"]


def told_of_one(caplog: pytest.LogCaptureFixture) -> bool:
    return any("1 of 1 jobs failed, and nobody looked" in text for text in caplog.messages)


def test_an_unread_failure_is_told_when_its_job_goes_whoever_has_its_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = JobPool(1)
    job = pool.submit(fail)
    assert job.wait(PATIENCE)
    outcome = job._tracker.outcome
    del job
    until(lambda: told_of_one(caplog), "its being told")
    assert outcome is not None
    with pytest.warns(JobFailuresWarning, match="1 of 1 jobs"):
        pool.shutdown()


def test_an_unread_failure_is_told_that_goes_with_all_of_its_pool(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = JobPool(1)
    job = pool.submit(fail)
    assert job.wait(PATIENCE)
    pool.shutdown()
    job.metadata["cycle"] = job, pool
    del job, pool
    assert not told_of_one(caplog)
    gc.collect()
    until(lambda: told_of_one(caplog), "its being told")


# --- the last reference ---------------------------------------------------------------------------


class Thing:
    """Something that a weak reference can refer to."""


def collected(known: weakref.ref[Any]) -> bool:
    return known() is None


def test_a_result_goes_with_its_job_whoever_has_its_outcome(one: JobPool) -> None:
    # Without the GIL the outcome lives until the thread that made it, the dispatcher, wakes up.
    gc.disable()  # no cycle: it goes with its last handle
    try:
        job = one.submit(Thing)
        value = job.result(PATIENCE)
        outcome, known = job._tracker.outcome, weakref.ref(value)
        assert outcome is not None
        assert job.result() is value
        del value
        assert not collected(known)
        del job
        assert collected(known)
    finally:
        gc.enable()


def ask(jobs: list[PrimitiveJob[None]], local: Thing) -> None:
    """Meet an exception whose traceback holds this frame, and let go of it."""
    with contextlib.suppress(JobTimeoutError):
        jobs.pop().result(PATIENCE)


def test_an_exception_of_the_pools_goes_with_its_job_whoever_has_its_outcome(one: JobPool) -> None:
    gc.disable()
    try:
        job = one.options(timeout=0.05).submit(time.sleep, PATIENCE)
        assert isinstance(job.exception(PATIENCE), JobTimeoutError)
        assert job.exception() is job.exception()
        outcome, local = job._tracker.outcome, Thing()
        assert outcome is not None
        jobs = [job]
        del job
        ask(jobs, local)
        known = weakref.ref(local)
        del local
        assert collected(known)
    finally:
        gc.enable()


def test_an_exception_of_the_pools_is_the_same_in_the_callers_hands() -> None:
    class Job:
        name = "f"

        def __init__(self) -> None:
            self._loaded: list[tuple[Any, BaseException | None]] = []

    cause = OSError("no room")
    made = WorkerDiedError("died", pid=7, exitcode=-9, stack="Stack", ran=1.5, peak_memory=100)
    made.__cause__ = cause
    job = Job()
    error = Outcome(JobStatus.ERROR, made).load(job)[1]
    assert type(error) is WorkerDiedError
    assert error is not made
    assert (error.args, vars(error), error.__cause__) == (made.args, vars(made), cause)


def test_the_end_of_the_interpreter_prints_nothing(tmp_path: Path) -> None:
    # What an early module holds goes last: when ours, which are held too, are empty already.
    # Without the GIL that may happen to any global of a script.
    source = """
        import os, sys
        from primitive_jobs import JobExecutor, JobPool, as_completed, share, track
        from primitive_jobs._wire.parcel import Parcel

        def fail():
            raise ValueError

        if __name__ == "__main__":
            pool, executor = JobPool(1), JobExecutor(1)
            handle = share(bytes(200_000))
            assert pool.submit(len, handle).result() == 200_000
            items = pool.map(abs, range(-3, 0), chunksize=1)
            assert next(items) == 3
            others = executor.map(abs, range(-3, 0))
            assert next(others) == 3
            leaving = JobExecutor(pool=pool, cancel_running=False)
            left = leaving.map(abs, range(-3, 0))
            assert next(left) == 3
            failed = pool.submit(fail)
            failed.exception()
            parcel = Parcel(bytes(200_000))
            loops = as_completed([failed, failed]), track([failed], disable=True)
            assert [*map(next, loops)] == [failed, failed]
            modules = [m for name, m in sys.modules.items() if name.startswith("primitive_jobs")]
            sys.kept = os
            os.kept = (pool, executor, modules, handle, items, others, left, failed, parcel, loops)
    """
    expect(tmp_path, source, "")

"""One exception in something that a pool does costs one worker at most (G11).

Each fault is an exception raised once, on the pool's own thread, by what an action or an event of
the dispatcher calls: by its own functions, or deep in psutil, select and os. Then a neighbour's job
ends in its own process, the pool works, and nothing is left (the gate of conftest.py).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from helpers import PATIENCE, expect, fleet_of, hold_and_tell, until

from primitive_jobs import (
    JobError,
    JobPool,
    JobStatus,
    PrimitiveJob,
    WorkerDiedError,
    logs,
    share,
    shared,
)
from primitive_jobs._engine import registry, worker_log
from primitive_jobs._engine.dispatcher import Dispatcher
from primitive_jobs._engine.engine import Engine
from primitive_jobs._engine.tracker import StatusTracker
from primitive_jobs._engine.worker_log import WorkerLog
from primitive_jobs._local import fleet, memory_watch
from primitive_jobs._local.fleet import LocalFleet
from primitive_jobs._local.memory_watch import MemoryWatch
from primitive_jobs._procs.process import WorkerProcess
from primitive_jobs._wire.channel import PacketChannel, StreamChannel
from primitive_jobs._wire.parcel import HAVE_PACKETS

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")


def begin_and_hold(begun: Path, gate: Path) -> int:
    """Tell that it has begun, and run until ``gate`` is there."""
    begun.touch()
    return hold_and_tell(gate)


class Fault:
    """What to call in the place of ``original``: on a pool's thread it raises, so many times.

    Args:
        when: Says, given the arguments, whether this call is meant.
    """

    def __init__(
        self,
        original: Callable[..., Any],
        error: BaseException,
        times: int = 1,
        when: Callable[..., bool] = lambda *_, **__: True,
    ) -> None:
        self._original = original
        self._error = error
        self._left = times
        self._when = when
        self.hits = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ours = threading.current_thread().name.startswith("primitive_jobs")
        if ours and self.hits < self._left and self._when(*args, **kwargs):
            self.hits += 1
            raise type(self._error)(*self._error.args)
        return self._original(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any) -> Any:  # in a class it becomes a method
        return self if instance is None else lambda *args, **kw: self(instance, *args, **kw)


class Scene:
    """A pool of two whose workers have both run a job; one of them has a neighbour's job now."""

    def __init__(self, pool: JobPool, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.pool = pool
        self.engine: Engine = pool._engine
        self.patch = patch
        self.folder = folder
        gates = [folder / "warm", folder / "neighbour"]
        warm = [pool.submit(hold_and_tell, gates[0]) for _ in range(2)]
        until(lambda: all(job.running() for job in warm), "two workers")
        self.neighbour = pool.submit(hold_and_tell, gates[1])
        gates[0].touch()
        for job in warm:
            job.result(PATIENCE)
        until(lambda: self.neighbour.pid, "the neighbour")
        self.pid = self.neighbour.pid
        self.faults: list[Fault] = []
        self.jobs: list[PrimitiveJob[Any]] = []  # those that the faults may cost

    def fault(self, owner: Any, name: str, error: BaseException, **how: Any) -> None:
        """Have something fail from now on."""
        fault = Fault(getattr(owner, name), error, **how)
        self.patch.setattr(owner, name, fault)
        self.faults.append(fault)

    def queue_fault(self, owner: Any, name: str, error: BaseException, **how: Any) -> None:
        """The same for the putting into a queue of one of the dispatcher's helpers."""
        queue = getattr(owner, name)
        fault = Fault(queue.put, error, **how)
        self.faults.append(fault)

        class Queue:
            get = queue.get
            put = fault

        self.patch.setattr(owner, name, Queue)

    def submit(self, function: Callable[..., Any], *args: Any, **options: Any) -> PrimitiveJob[Any]:
        job = self.pool.options(**options).submit(function, *args)
        self.jobs.append(job)
        return job

    def hold(self, gate: str = "never", **options: Any) -> PrimitiveJob[Any]:
        """A job that has begun, and runs until it is ended or ``gate`` is there."""
        begun = self.folder / f"begun{len(self.jobs)}"
        job = self.submit(begin_and_hold, begun, self.folder / gate, **options)
        until(lambda: begun.exists() or job.in_final_state(), "its begin")
        return job

    def end(self) -> None:
        """The jobs of the fault end truthfully; everything else goes on as if nothing was."""
        for job in self.jobs:
            assert job.wait(PATIENCE), job
        assert all(fault.hits for fault in self.faults), "the fault did not happen"
        jobs = [self.pool.submit(abs, -n) for n in range(20)]
        assert [job.result(PATIENCE) for job in jobs] == [*range(20)]
        assert self.neighbour.pid == self.pid, "the neighbour goes on in its process"
        (self.folder / "neighbour").touch()
        assert self.neighbour.result(PATIENCE) == self.pid
        assert self.pool.jobs() == []
        counts = self.engine.counts()
        assert (counts.queued, counts.running) == (0, 0)


def end_outside(job: PrimitiveJob[Any]) -> None:
    pid = job.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


# --- actions: each says what it makes fail, makes it happen, and which ends are right -------------


def assign_measuring(scene: Scene) -> None:
    # With a timeout it is the dispatcher that gives it to a worker.
    scene.fault(memory_watch, "resident", NO_DESCRIPTOR)
    job = scene.submit(abs, -5, memory_limit="2 GB", timeout=PATIENCE)
    assert job.result(PATIENCE) == 5


def assign_status(scene: Scene) -> None:
    scene.fault(StatusTracker, "assigned", RuntimeError("no status"))
    assert scene.submit(abs, -5, timeout=PATIENCE).result(PATIENCE) == 5


def assign_sending(scene: Scene) -> None:
    scene.fault(CHANNEL, "send", RuntimeError("no sending"))
    assert scene.submit(abs, -5, timeout=PATIENCE).result(PATIENCE) == 5


def assign_sharing(scene: Scene) -> None:
    data = share(b"x" * 10**6)
    scene.fault(shared.SharedData, "parcel_for", NO_DESCRIPTOR)
    assert scene.submit(len, data, timeout=PATIENCE).result(PATIENCE) == 10**6


def assign_waiting_for_room(scene: Scene) -> None:
    send: Callable[..., Any] = CHANNEL.send

    def send_and_wait(self: Any, *message: Any) -> None:
        send(self, *message)
        self.wants_write = not scene.faults[0].hits

    scene.patch.setattr(CHANNEL, "send", send_and_wait)
    scene.fault(scene.engine._dispatcher.poller, "modify", OSError(errno.ENOMEM, "no memory"))
    job = scene.submit(abs, -5, timeout=PATIENCE)
    error = job.exception(PATIENCE)  # it was sent: perhaps it began
    assert error is None or isinstance(error.__cause__, OSError), error


def assign_after_an_answer(scene: Scene) -> None:
    scene.engine._scheduler.lines.most = 0
    gate = scene.folder / "first"
    first = scene.submit(hold_and_tell, gate)
    second = scene.submit(abs, -5)
    assert scene.pool.jobs() == [scene.neighbour, first, second]
    scene.fault(StatusTracker, "assigned", RuntimeError("no status"))
    gate.touch()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) == 5


def sending_ahead(scene: Scene) -> None:
    for _ in range(20):  # until that worker is known for its short jobs
        scene.pool.submit(abs, -1).result(PATIENCE)
    scene.fault(StatusTracker, "send_ahead", RuntimeError("no status"))
    for n in range(200):
        scene.submit(abs, -n)
    assert [job.result(PATIENCE) for job in scene.jobs] == [*range(200)]


def taking_back(scene: Scene) -> None:
    for _ in range(20):
        scene.pool.submit(abs, -1).result(PATIENCE)
    scene.fault(PacketChannel, "take_back", OSError("no queue"))
    for _ in range(3):
        for n in range(100):
            scene.submit(abs, -n)
        scene.submit(time.sleep, 0.05)  # what is behind it is taken back
    for n in range(100):
        scene.submit(abs, -n)
    for job in scene.jobs:
        assert job.wait(PATIENCE)
        error = job.exception()
        assert error is None or isinstance(error, WorkerDiedError)


def settle_an_answer(scene: Scene) -> None:
    gate = scene.folder / "first"
    first = scene.submit(hold_and_tell, gate)
    second = scene.submit(abs, -5)
    assert scene.pool.jobs() == [scene.neighbour, first, second]
    scene.fault(registry, "finished", ValueError("no outcome"))
    gate.touch()
    with pytest.raises(JobError, match="how it ended could not be told: ValueError: no outcome"):
        first.result(PATIENCE)
    assert second.result(PATIENCE) == 5


def settle_a_cancel(scene: Scene) -> None:
    job = scene.hold()
    scene.fault(registry, "outcome_of", ValueError("no outcome"))
    assert job.cancel() is False
    assert job.status() is JobStatus.ERROR


def watch(scene: Scene) -> None:
    scene.fault(MemoryWatch, "watch", MemoryError())
    job = scene.submit(hold_and_tell, scene.folder / "never", memory_limit="1 GB", timeout=PATIENCE)
    # It was sent, and would run without its limit; whether it began is a matter of luck.
    until(lambda: scene.faults[0].hits, "the fault")
    if job.wait(1.0):
        error = job.exception()
        assert isinstance(error, WorkerDiedError)
        assert isinstance(error.__cause__, MemoryError)
    else:
        assert job.cancel()


def unwatch(scene: Scene) -> None:
    job = scene.hold("soon", memory_limit="1 GB")
    scene.fault(MemoryWatch, "unwatch", MemoryError())
    (scene.folder / "soon").touch()
    assert job.result(PATIENCE)


def terminate(scene: Scene) -> None:
    job = scene.hold()
    scene.fault(WorkerProcess, "terminate", PermissionError(errno.EPERM, "not allowed"))
    assert job.cancel(grace=PATIENCE)


def kill(scene: Scene) -> None:
    job = scene.hold()
    scene.fault(LocalFleet, "kill", MemoryError())
    assert job.cancel()


def kill_looking_for_an_answer(scene: Scene) -> None:
    job = scene.submit(hold_and_tell, scene.folder / "never", timeout=0.05)
    scene.fault(WorkerProcess, "has_sent", MemoryError())
    assert job.wait(PATIENCE)
    assert "ran longer than its timeout" in str(job.exception())


def kill_that_never_works(scene: Scene) -> None:
    job = scene.hold()
    pid = job.pid
    scene.fault(LocalFleet, "kill", MemoryError(), times=2)
    with pytest.raises(JobError, match="could not be stopped"):
        job.cancel()
    assert {process.pid for process in fleet_of(scene.pool)._unclosed._given_up} == {pid}


def spawn(scene: Scene) -> None:
    victim = scene.hold()
    scene.queue_fault(fleet_of(scene.pool)._spawner, "_queue", MemoryError())
    queued = scene.submit(abs, -5)
    assert victim.cancel()
    assert queued.result(PATIENCE) == 5


def leave(scene: Scene) -> None:
    scene.fault(CHANNEL, "send", RuntimeError("no sending"))
    scene.pool.restart_workers()
    until(lambda: scene.faults[0].hits, "the fault")


def requeue(scene: Scene) -> None:
    scene.fault(WorkerLog, "requeued", KeyError(1))
    job = scene.hold("soon", retries=1)
    end_outside(job)
    until(lambda: job.attempts == 2, "the second attempt")
    (scene.folder / "soon").touch()
    assert job.result(PATIENCE)


def unwatch_descriptors(scene: Scene) -> None:
    job = scene.hold()
    scene.fault(scene.engine._dispatcher.poller, "unregister", OSError(errno.ENOENT, "not there"))
    assert job.cancel()


# --- events ---------------------------------------------------------------------------------------


def replace_one(scene: Scene) -> None:
    """Have a worker end and its successor come."""
    assert scene.hold().cancel()
    for n in range(3):
        assert scene.submit(abs, -n, timeout=PATIENCE).result(PATIENCE) == n


def registering(scene: Scene) -> None:
    scene.fault(scene.engine._dispatcher.poller, "register", OSError(errno.ENOSPC, "no room"))
    replace_one(scene)


def registering_a_death(scene: Scene) -> None:
    deaths = iter([False, True])
    scene.fault(
        scene.engine._dispatcher.poller,
        "register",
        NO_DESCRIPTOR,
        when=lambda *_: next(deaths, False),
    )
    replace_one(scene)


def hearing(scene: Scene) -> None:
    scene.fault(fleet, "receive", MemoryError())
    job = scene.hold("soon", timeout=PATIENCE)
    (scene.folder / "soon").touch()
    assert job.result(PATIENCE), "what it has sent counts"


def taking_in(scene: Scene) -> None:
    scene.fault(Dispatcher, "_take_in", ValueError("no"))
    with pytest.raises(JobError, match="ValueError: no"):
        scene.submit(abs, -5, timeout=PATIENCE).result(PATIENCE)


def taking_over(scene: Scene) -> None:
    until(lambda: scene.engine._inbox.asleep and scene.engine._hand_off.offer, "an offer")
    scene.fault(StatusTracker, "note", RuntimeError("no status"))
    job = scene.submit(hold_and_tell, scene.folder / "never")
    scene.pool.jobs()
    assert job.wait(PATIENCE)
    assert job.status() is JobStatus.ERROR


def taking_over_what_is_done(scene: Scene) -> None:
    until(lambda: scene.engine._inbox.asleep and scene.engine._hand_off.offer, "an offer")
    scene.fault(StatusTracker, "ran", RuntimeError("no status"))
    for n in range(100):
        scene.submit(abs, -n).wait(PATIENCE)
        if scene.faults[0].hits:
            break
    scene.jobs[-1].wait(PATIENCE)


def forgetting(scene: Scene) -> None:
    data = share(b"x" * 10**6)
    assert scene.submit(len, data).result(PATIENCE) == 10**6
    sent = {number for p in fleet_of(scene.pool).workers.values() for number in p.shared}
    scene.fault(CHANNEL, "send", RuntimeError("no sending"))
    fleet_of(scene.pool).forget(*sent)
    until(lambda: scene.faults[0].hits, "the fault")


def gone(scene: Scene) -> None:
    scene.fault(LocalFleet, "_on_gone", MemoryError())
    replace_one(scene)


def closing(scene: Scene) -> None:
    close = WorkerProcess.close

    def close_and_fail(self: WorkerProcess) -> None:
        close(self)
        raise OSError(errno.EBADF, "bad")

    scene.patch.setattr(WorkerProcess, "close", close_and_fail)
    replace_one(scene)


def draining(scene: Scene) -> None:
    scene.fault(LocalFleet, "_on_news", MemoryError())
    replace_one(scene)


def polling(scene: Scene) -> None:
    scene.fault(scene.engine._dispatcher.poller, "poll", OSError(errno.ENOMEM, "no memory"))
    replace_one(scene)


def planning(scene: Scene) -> None:
    scene.fault(Dispatcher, "_plan", MemoryError())
    replace_one(scene)


def telling(scene: Scene) -> None:
    job = scene.hold()
    fault = Fault(lambda: None, RuntimeError("no"))
    scene.faults.append(fault)
    job._tracker.call_when_final(fault)
    assert job.cancel()


# --- logging, and the other threads ---------------------------------------------------------------


def logging_at_all(scene: Scene) -> None:
    scene.fault(logs, "listened_to", RuntimeError("no level"), times=1000)
    replace_one(scene)


def a_cause_in_words(scene: Scene) -> None:
    scene.fault(worker_log, "cause_of_death", RuntimeError("no words"))
    job = scene.hold()
    end_outside(job)
    assert isinstance(job.exception(PATIENCE), WorkerDiedError)


def measuring(scene: Scene) -> None:
    scene.fault(memory_watch, "tree_memory", psutil.AccessDenied(1), times=3)
    job = scene.submit(hold_and_tell, scene.folder / "soon", memory_limit="1 GB")
    until(lambda: scene.faults[0].hits == 3, "three looks")
    (scene.folder / "soon").touch()
    assert job.result(PATIENCE)


def calling_back(scene: Scene) -> None:
    fault = Fault(lambda: None, RuntimeError("no"))
    scene.faults.append(fault)
    scene.engine.call_back(fault)
    called = threading.Event()
    scene.engine.call_back(called.set)  # on the same thread, afterwards
    assert called.wait(PATIENCE)


def starting(scene: Scene) -> None:
    scene.fault(WorkerProcess, "__init__", SystemExit("no"))
    replace_one(scene)


def starting_and_telling_of_it(scene: Scene) -> None:
    scene.fault(WorkerLog, "not_started", KeyError(1))
    starting(scene)


ACTIONS: list[Callable[[Scene], None]] = [
    assign_measuring,
    assign_status,
    assign_sending,
    assign_sharing,
    assign_waiting_for_room,
    assign_after_an_answer,
    sending_ahead,
    taking_back,
    settle_an_answer,
    settle_a_cancel,
    watch,
    unwatch,
    terminate,
    kill,
    kill_looking_for_an_answer,
    kill_that_never_works,
    spawn,
    leave,
    requeue,
    unwatch_descriptors,
]
EVENTS: list[Callable[[Scene], None]] = [
    registering,
    registering_a_death,
    hearing,
    taking_in,
    taking_over,
    taking_over_what_is_done,
    forgetting,
    gone,
    closing,
    draining,
    polling,
    planning,
    telling,
]
OTHERS: list[Callable[[Scene], None]] = [
    logging_at_all,
    a_cause_in_words,
    measuring,
    calling_back,
    starting,
    starting_and_telling_of_it,
]


DATAGRAMS = (taking_over, taking_over_what_is_done, sending_ahead, taking_back)
CHANNEL = PacketChannel if HAVE_PACKETS else StreamChannel


@pytest.mark.parametrize("happen", ACTIONS + EVENTS + OTHERS, ids=lambda f: f.__name__)
def test_one_fault_costs_one_worker(
    happen: Callable[[Scene], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if happen in DATAGRAMS and not HAVE_PACKETS:
        pytest.skip("nothing is handed over, or sent ahead, here")
    caplog.set_level(logging.INFO, "primitive_jobs")
    with JobPool(2, spare_workers=0) as pool:
        try:
            scene = Scene(pool, monkeypatch, tmp_path)
            happen(scene)
            scene.end()
        finally:
            (tmp_path / "neighbour").touch()
            (tmp_path / "never").touch()
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert records or happen in (closing, requeue), "nothing was said of it"
    if happen is measuring:
        assert len([r for r in records if "cannot be measured" in r.getMessage()]) == 1
    assert not any("the pool's dispatcher failed" in r.getMessage() for r in records)
    caplog.clear()  # their tracebacks hold jobs


LOG_METHODS = [name for name in vars(WorkerLog) if not name.startswith("_")]


def test_what_logs_workers_may_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JobPool(2, spare_workers=0) as pool:
        try:
            scene = Scene(pool, monkeypatch, tmp_path)
            for name in LOG_METHODS:
                scene.fault(WorkerLog, name, KeyError(name))
            scene.faults.clear()  # not everything happens here
            assert scene.hold().cancel(grace=0.1)
            assert scene.hold(timeout=0.1).wait(PATIENCE)
            replace_one(scene)
            pool.restart_workers()
            scene.end()
        finally:
            (tmp_path / "neighbour").touch()
            (tmp_path / "never").touch()


def test_a_thread_that_dies_hangs_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with JobPool(1) as pool:
        job = pool.submit(hold_and_tell, tmp_path / "gate")
        until(lambda: job.pid, "RUNNING")
        fleet_of(pool).memory._orders.put(object())  # type: ignore[arg-type]
        with pytest.raises(JobError, match="the pool's dispatcher failed"):
            job.result(PATIENCE)
    failed = [r for r in caplog.records if "dispatcher failed" in r.getMessage()]
    assert failed[0].levelno == logging.CRITICAL


def test_poll_where_there_is_no_epoll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    with JobPool(2, spare_workers=0) as pool:
        scene = Scene(pool, monkeypatch, tmp_path)
        unwatch_descriptors(scene)
        scene.end()


WITHOUT_DESCRIPTORS = """
import os, resource, time
from pathlib import Path
from primitive_jobs import JobPool

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return os.getpid()

release = str(Path(__file__).with_name("release"))
pool = JobPool(2, spare_workers=0)
neighbour = pool.submit(wait_for, release)
assert pool.submit(abs, -1).result(20) == 1
while neighbour.pid is None:
    time.sleep(0.001)
pid = neighbour.pid
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
loose = []
try:
    while True:
        loose.append(os.dup(0))
except OSError:
    pass
limited = pool.options(memory_limit="2 GB").submit(abs, -2)
others = [pool.submit(abs, -n) for n in range(5)]
time.sleep(0.3)
for fd in loose:
    os.close(fd)
assert limited.result(20) == 2
assert [job.result(20) for job in others] == [0, 1, 2, 3, 4]
os.mkdir(release)
assert neighbour.result(20) == pid
pool.shutdown()
print("well")
"""


def test_a_memory_limit_without_a_descriptor(tmp_path: Path) -> None:
    expect(tmp_path, WITHOUT_DESCRIPTORS, "well\n")

"""One worker process from the pool's side, the guard, and a pool over the portable channel."""

from __future__ import annotations

import functools
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import PATIENCE, descriptors, fleet_of, gone, until

from primitive_jobs import (
    InitializerError,
    JobOptions,
    JobPool,
    JobStatus,
    PrimitiveJob,
    WorkerDiedError,
)
from primitive_jobs import pool as pool_module
from primitive_jobs._engine.engine import Engine
from primitive_jobs._engine.scheduler import Scheduler
from primitive_jobs._local.fleet import LocalFleet
from primitive_jobs._procs.guardian import the_guard
from primitive_jobs._procs.process import WorkerConfig, WorkerProcess
from primitive_jobs._wire.calls import dump_call
from primitive_jobs._wire.channel import ChannelClosed, StreamChannel
from primitive_jobs._wire.failures import load_exception
from primitive_jobs._wire.initializer import Initializer
from primitive_jobs._wire.messages import Kind, Message
from primitive_jobs._wire.parcel import Parcel
from primitive_jobs._wire.pickling import loads


@pytest.fixture
def own_mask() -> Iterator[None]:
    """A start blocks signals in the thread that makes it, in a pool the spawner's."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@pytest.fixture
def guarded(own_mask: None) -> Iterator[None]:
    """The guard, as an open pool has it from its first start of a worker on."""
    the_guard.open("test")
    the_guard.be_there()
    yield
    the_guard.release("test")


@pytest.fixture
def start(guarded: None) -> Iterator[Callable[[WorkerConfig], WorkerProcess]]:
    """Starts workers, and ends those that the test leaves."""
    started: list[WorkerProcess] = []
    configs: list[WorkerConfig] = []

    def make(config: WorkerConfig) -> WorkerProcess:
        configs.append(config)
        started.append(WorkerProcess(len(started), config))
        return started[-1]

    yield make
    for process in started:
        if process.channel.fileno() >= 0:
            process.end()
            process.close()
    for config in configs:
        config.close()


def take(process: WorkerProcess) -> Message:
    poller = select.poll()
    poller.register(process.channel.fileno(), select.POLLIN)
    while (message := process.channel.receive()) is None:
        assert poller.poll(PATIENCE * 1000), "no message came"
    return message


def call(process: WorkerProcess, function: Callable[..., Any], *args: Any) -> None:
    body, buffers, _ = dump_call(function, args, {}, "function", about=("function", bytes(16)))
    process.channel.send(Kind.RUN, 1, Parcel(body, buffers))


Start = Callable[[WorkerConfig], WorkerProcess]


# --- one worker ----------------------------------------------------------------------------------


def test_life_of_a_worker(start: Start, packets: bool) -> None:
    before = descriptors()
    process = start(WorkerConfig(env={"MINE": "1"}, packets=packets))
    assert take(process) == Message(Kind.READY)
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    assert isinstance(process.channel, StreamChannel) is not packets
    call(process, lambda: (os.getpid(), os.environ["MINE"]))
    answer = take(process)
    assert (answer.kind, answer.attempt) == (Kind.RETURNED, 1)
    assert loads(answer.body, answer.buffers) == (process.pid, "1")
    assert process._process not in multiprocessing.active_children()
    evidence = process.end()
    assert (evidence.pid, evidence.exitcode) == (process.pid, -signal.SIGKILL)
    assert (evidence.noted, evidence.initializing, evidence.stack) == (1, False, None)
    assert gone(process.pid)
    if packets:  # the pool holds the other end, too
        assert process.channel.receive() is None
    else:
        with pytest.raises(ChannelClosed):
            process.channel.receive()
    process.close()
    until(lambda: descriptors() <= before, "no descriptor left")


def test_worker_leaves_when_told(start: Start, packets: bool) -> None:
    process = start(WorkerConfig(packets=packets))
    take(process)
    process.channel.send(Kind.STOP)
    assert select.select([process.death], [], [], PATIENCE)[0]
    assert process.end().exitcode == 0


def test_terminate_ends_an_idle_worker(start: Start) -> None:
    process = start(WorkerConfig())
    take(process)
    call(process, os.getpid)
    take(process)
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING, "idleness")
    process.terminate()
    assert select.select([process.death], [], [], PATIENCE)[0]
    evidence = process.end()
    assert evidence.exitcode == 0
    assert evidence.noted == 1


def test_worker_goes_with_its_channel(start: Start) -> None:
    process = start(WorkerConfig())
    take(process)
    process.channel.close()
    assert select.select([process.death], [], [], PATIENCE)[0]
    assert process.end().exitcode == 0
    process.close()


def test_whole_tree_is_killed(start: Start, marks: Path) -> None:
    def breed() -> None:
        script = "import signal; signal.pause()"
        for name, new_session in (("same", False), ("own", True)):
            child = subprocess.Popen(
                [sys.executable, "-S", "-c", script], start_new_session=new_session
            )
            (marks / f".{name}").write_text(str(child.pid))
            (marks / f".{name}").rename(marks / name)
        signal.pause()

    process = start(WorkerConfig())
    take(process)
    call(process, breed)
    until(lambda: len(list(marks.glob("[so]*"))) == 2, "two children")
    children = [int((marks / name).read_text()) for name in ("same", "own")]
    assert os.getsid(children[1]) == children[1]
    assert not any(map(gone, children))
    evidence = process.end()
    assert evidence.noted == 1
    assert all(map(gone, children))
    assert gone(process.pid)


def test_stack_of_a_crash(start: Start) -> None:
    def crash_here() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    process = start(WorkerConfig())
    take(process)
    call(process, crash_here)
    assert select.select([process.death], [], [], PATIENCE)[0]
    evidence = process.end()
    assert evidence.exitcode == -signal.SIGSEGV
    assert evidence.stack is not None
    assert "in crash_here" in evidence.stack


# --- initializers --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["small", "large"])
def test_initializer(start: Start, packets: bool, size: int) -> None:
    def initialize(data: bytes) -> None:
        os.environ["SIZE"] = str(len(data))

    process = start(
        WorkerConfig(initializer=Initializer(initialize, (b"x" * size,)), packets=packets)
    )
    while process.channel.wants_write:
        select.select([], [process.channel], [], PATIENCE)
        process.channel.flush()
    assert take(process).kind == Kind.READY
    call(process, lambda: os.environ["SIZE"])
    assert loads(take(process).body) == str(size)


def test_raising_initializer(start: Start, packets: bool) -> None:
    def initialize() -> None:
        raise LookupError("nothing there")

    process = start(WorkerConfig(initializer=Initializer(initialize, ()), packets=packets))
    message = take(process)
    assert message.kind == Kind.INIT_FAILED
    error = load_exception(message.body)
    assert type(error) is LookupError
    assert 'raise LookupError("nothing there")' in str(error.__cause__)


def test_dying_initializer(start: Start) -> None:
    process = start(WorkerConfig(initializer=Initializer(os._exit, (4,))))
    assert select.select([process.death], [], [], PATIENCE)[0]
    evidence = process.end()
    assert (evidence.exitcode, evidence.initializing, evidence.noted) == (4, True, 0)


def test_initializer_that_cannot_be_pickled(guarded: None) -> None:
    before = descriptors()
    with pytest.raises(InitializerError, match="cannot be serialized"):
        WorkerProcess(0, WorkerConfig(initializer=Initializer(print, (threading.Lock(),))))
    assert descriptors() == before


# --- failures to start ---------------------------------------------------------------------------


def refuse(self: object) -> None:
    raise OSError(11, "no process free")


def test_failed_start_leaves_no_descriptor(
    guarded: None, packets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loky.backend.process import LokyProcess  # get_context("loky") may be joblib's copy

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(LokyProcess, "start", refuse)
        for _ in range(3):
            with pytest.raises(OSError, match="no process free"):
                WorkerProcess(0, WorkerConfig(packets=packets))
    assert descriptors() == before


def test_failed_start_costs_the_waiting_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    from loky.backend.process import LokyProcess  # get_context("loky") may be joblib's copy

    with JobPool(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(LokyProcess, "start", refuse)
            with pytest.raises(WorkerDiedError, match="no process free") as caught:
                pool.submit(os.getpid).result(PATIENCE)
        assert caught.value.pid is None
        assert isinstance(caught.value.__cause__, OSError)
        assert pool.submit(abs, -1).result(PATIENCE) == 1


# --- the guard -----------------------------------------------------------------------------------


def test_guard_lives_with_the_pools() -> None:
    # Not the module-wide one: another test's pool may still be open.
    from primitive_jobs._procs.guardian import Guard

    guard = Guard()
    guard.open("one")
    guard.open("two")
    assert guard._process is None  # no worker yet
    guard.be_there()
    assert guard._process is not None  # before there is one
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    guard.add(child.pid)
    process = guard._process
    assert process is not None
    assert process.poll() is None
    assert isinstance(process.args, list)
    assert "-B" in process.args  # it ignores the environment, which may say so
    process.kill()
    process.wait()
    guard.add(child.pid)  # the pipe is broken: this one notices
    guard.add(child.pid)
    second = guard._process
    assert second is not None
    assert second is not process
    assert second.poll() is None
    guard.remove(child.pid)
    guard.release("one")
    assert second.poll() is None
    guard.release("two")
    assert second.returncode is not None
    assert child.poll() is None
    child.communicate(b"\n", timeout=PATIENCE)
    assert child.returncode == 0  # it was not touched


def test_killed_guard_costs_no_job() -> None:
    with JobPool(1) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        first = the_guard._process
        assert first is not None
        first.kill()
        first.wait()
        for number in range(3):  # each costs a worker, and so a word to the guard
            job = pool.submit(os._exit, 1)
            assert isinstance(job.exception(PATIENCE), WorkerDiedError)
            assert pool.submit(abs, -number).result(PATIENCE) == number
        second = the_guard._process
        assert second is not None
        assert second is not first
        assert second.poll() is None


# --- a pool over the portable channel ------------------------------------------------------------


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobPool]:
    config = functools.partial(WorkerConfig, packets=False)
    monkeypatch.setattr(pool_module, "WorkerConfig", config)
    with JobPool(2) as pool:
        yield pool
        workers = list(fleet_of(pool).workers.values())
        assert all(isinstance(process.channel, StreamChannel) for process in workers)
        assert workers
        pool.shutdown(cancel=True)


@pytest.mark.parametrize("size", [0, 1, 2**17, 2**17 + 1, 5 * 10**6])
def test_portable_results(portable: JobPool, size: int) -> None:
    data = os.urandom(size)
    assert portable.submit(lambda value: value[::-1], data).result(PATIENCE) == data[::-1]


def test_portable_arrays(portable: JobPool) -> None:
    import numpy as np

    def add(array: Any) -> Any:
        array += 1
        return array

    jobs = [portable.submit(add, np.full(300_000, i)) for i in range(6)]
    for i, job in enumerate(jobs):
        result = job.result(PATIENCE)
        assert (result == i + 1).all()
        assert result.flags.writeable


def test_portable_many(portable: JobPool) -> None:
    jobs = [portable.submit(divmod, i, 7) for i in range(200)]
    assert [job.result(PATIENCE) for job in jobs] == [divmod(i, 7) for i in range(200)]


def test_portable_cancel_and_crash(portable: JobPool) -> None:
    held = portable.submit(signal.pause)
    crash = portable.submit(os._exit, 5)
    error = crash.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.exitcode == 5
    until(held.running, "RUNNING")
    pid = held.pid
    assert pid is not None
    assert held.cancel()
    assert gone(pid)
    assert portable.submit(abs, -1).result(PATIENCE) == 1


def test_portable_large_call_to_a_dying_worker(portable: JobPool) -> None:
    data = bytes(5 * 10**6)
    jobs = [portable.submit(lambda value: os._exit(1), data) for _ in range(3)]
    assert all(isinstance(job.exception(PATIENCE), WorkerDiedError) for job in jobs)
    job = portable.submit(len, data)
    assert job.result(PATIENCE) == len(data)


def test_engine_alone() -> None:
    engine = Engine(Scheduler(2, 60.0), LocalFleet(WorkerConfig(packets=False)))
    job = PrimitiveJob(pow, 2, 10)
    job._submit_to(engine, JobOptions(name="alone"))
    assert job.result(PATIENCE) == 1024
    assert (job.name, job.status()) == ("alone", JobStatus.DONE)
    engine.shut_down()
    engine.join()


def test_multiprocessing_in_a_job_knows_of_the_parent(tmp_path: Path) -> None:
    """Whether the job is the first to import it, or something at the interpreter's start was."""

    def facts() -> tuple[object, ...]:
        import multiprocessing

        me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
        assert parent is not None
        return bytes(me.authkey), me.name, me.daemon, parent.pid, parent.name

    (tmp_path / "sitecustomize.py").write_text("import multiprocessing.util, sys; sys.seen = 1\n")
    here = multiprocessing.current_process()
    for env in ({}, {"PYTHONPATH": str(tmp_path)}):
        with JobPool(1, env=env) as pool:
            seen = pool.submit(eval, "hasattr(__import__('sys'), 'seen')").result(30)
            assert seen == bool(env)
            authkey, name, daemon, pid, parent = pool.submit(facts).result(30)
        assert authkey == bytes(here.authkey)
        assert str(name).startswith("job-worker-")
        assert (daemon, pid, parent) == (False, os.getpid(), here.name)

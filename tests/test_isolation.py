"""A hostile or broken job costs exactly itself."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import pytest
from helpers import PATIENCE, be_neighbour, until

from primitive_jobs import (
    JobError,
    JobPool,
    JobStatus,
    PrimitiveJob,
    SerializationError,
    WorkerDiedError,
    run,
)

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@contextmanager
def pool_with_neighbours(folder: Path) -> Iterator[JobPool]:
    """A pool in which another job runs; nothing may happen to it, nor to the pool."""
    with JobPool(max_workers=2) as pool:
        jobs = [pool.submit(be_neighbour, folder, number) for number in range(1)]
        for number in range(1):
            until((folder / f"neighbour{number}").exists, f"neighbour {number}")
        pids = [job.pid for job in jobs]
        yield pool
        assert pool.submit(abs, -4).result(PATIENCE) == 4
        assert [(job.status(), job.pid) for job in jobs] == [(JobStatus.RUNNING, p) for p in pids]
        (folder / "release").touch()
        assert [job.result(PATIENCE) for job in jobs] == [(p, n * n) for n, p in enumerate(pids)]


# --- a worker that dies ---------------------------------------------------------------------------


def without_core_file() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def read_address_0() -> None:
    without_core_file()
    ctypes.string_at(0)


def abort() -> None:
    without_core_file()
    os.abort()


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("function", "exitcode", "number"),
    [
        (read_address_0, -signal.SIGSEGV, signal.SIGSEGV),
        (abort, -signal.SIGABRT, signal.SIGABRT),
        (kill_myself, -signal.SIGKILL, signal.SIGKILL),
        (exit_at_once, 3, None),
    ],
)
def test_a_death_costs_one_job(
    marks: Path, function: Callable[[], None], exitcode: int, number: signal.Signals | None
) -> None:
    with pool_with_neighbours(marks) as pool:
        job = pool.submit(function)
        with pytest.raises(WorkerDiedError) as caught:
            job.result(PATIENCE)
        error = caught.value
        assert job.status() is JobStatus.ERROR
        assert isinstance(error, BrokenProcessPool)
        assert (error.exitcode, error.signal) == (exitcode, number)
        assert error.pid is not None
        assert str(error.pid) in str(error)
        assert function.__name__ in str(error)
        if number is not None:
            assert number.name in str(error)
        assert "C stack" not in str(error)  # which CPython 3.14 writes, too
        if number in (signal.SIGSEGV, signal.SIGABRT):
            assert f"in {function.__name__}" in str(error)  # the stack of the crash

        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is WorkerDiedError
        assert str(copy) == str(error)
        assert (copy.pid, copy.exitcode, copy.signal) == (error.pid, error.exitcode, error.signal)


def write_to_every_socket(message: bytes) -> None:
    for fd in range(3, 2000):
        with contextlib.suppress(OSError):
            if Path(f"/proc/self/fd/{fd}").readlink().name.startswith("socket:"):
                os.write(fd, message)
    time.sleep(1000)


@pytest.mark.parametrize("kind", [3, 4, 200])
def test_garbage_in_the_channel(attacked: JobPool, kind: int) -> None:
    garbage = struct.pack("<BBHIQQ", kind, 0, 0, 100_000, 1, 10) + bytes(10)
    job = attacked.submit(write_to_every_socket, garbage)
    assert isinstance(job.exception(PATIENCE), WorkerDiedError)


def quiet_close() -> None:
    os.closerange(3, 2000)


def test_a_worker_that_the_pool_gave_up_was_not_killed_by_a_signal(attacked: JobPool) -> None:
    """The pool's own SIGKILL is shown as the cause of the death."""
    error = attacked.submit(quiet_close).exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.signal is not signal.SIGKILL


def sleep_long(mark: Path) -> None:
    mark.touch()
    time.sleep(1000)


def test_sigkill_from_outside(marks: Path) -> None:
    with pool_with_neighbours(marks) as pool:
        job = pool.submit(sleep_long, marks / "started")
        until((marks / "started").exists, "the start")  # RUNNING may be a moment earlier
        pid = job.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError) as caught:
            job.result(PATIENCE)
        assert (caught.value.pid, caught.value.signal) == (pid, signal.SIGKILL)


def test_a_job_error_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(JobError("what happened")))
    assert type(copy) is JobError
    assert copy.args == ("what happened",)


# --- what cannot be pickled -----------------------------------------------------------------------


class NotThere:
    """Can be pickled, but be unpickled in no other process than the one that made it."""

    def __init__(self, broken_in_worker: bool) -> None:
        self.broken_in_worker = broken_in_worker

    def __reduce__(self) -> tuple[Any, ...]:
        return _build, (os.getpid(), self.broken_in_worker)


def _build(maker: int, broken_in_worker: bool) -> NotThere:
    if maker != os.getpid():
        raise RuntimeError("not in this process")
    return NotThere(broken_in_worker)


def make_lock() -> Any:
    return threading.Lock()


def make_generator() -> Any:
    return (n for n in range(3))


def make_not_there() -> NotThere:
    return NotThere(False)


def take(*args: object, **kwargs: object) -> None:
    """Return nothing, whatever is given."""


def test_an_argument_that_cannot_be_pickled(marks: Path) -> None:
    with pool_with_neighbours(marks) as pool:
        jobs = [pool.submit(take, 1, threading.Lock()), pool.submit(take, key=threading.Lock())]
        for job, argument in zip(jobs, ("argument 2", "'key'"), strict=True):
            assert job.status() is JobStatus.ERROR
            with pytest.raises(SerializationError, match=argument) as caught:
                job.result(PATIENCE)
            assert isinstance(caught.value, pickle.PicklingError)
            walk = [status for status, _ in job.history()]
            assert walk == [JobStatus.INITIALIZING, JobStatus.VALIDATING, JobStatus.ERROR]


def test_a_result_that_cannot_be_pickled(marks: Path) -> None:
    with pool_with_neighbours(marks) as pool:
        for function in (make_lock, make_generator):
            job = pool.submit(function)
            with pytest.raises(SerializationError, match=function.__name__):
                job.result(PATIENCE)
            assert job.status() is JobStatus.ERROR


def test_an_argument_that_cannot_be_unpickled_in_the_worker(marks: Path) -> None:
    with pool_with_neighbours(marks) as pool:
        job = pool.submit(take, NotThere(True))
        with pytest.raises(SerializationError, match="not in this process"):
            job.result(PATIENCE)
        assert job.status() is JobStatus.ERROR


def test_a_result_that_cannot_be_unpickled_here(marks: Path) -> None:
    with pool_with_neighbours(marks) as pool:
        job = pool.submit(make_not_there)
        assert job.wait(PATIENCE)
        for _ in range(2):
            with pytest.raises(SerializationError, match="not in this process"):
                job.result(PATIENCE)
            with pytest.raises(SerializationError, match="not in this process"):
                job.exception(PATIENCE)
            assert job.status() is JobStatus.DONE
        assert job.cancel() is False


# --- exceptions -----------------------------------------------------------------------------------


class HasLock(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class NeedsTwo(Exception):
    """Its arguments are not its initializer's: unpickling it fails."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class CannotBeShown(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no message")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Forbids setting attributes, `__cause__` too."""

    code: int


def raise_has_lock() -> None:
    raise HasLock("it broke")


def raise_needs_two() -> None:
    raise NeedsTwo("it", "broke")


def raise_cannot_be_shown() -> None:
    raise CannotBeShown("it broke")


def raise_frozen() -> None:
    raise Frozen(7)


def raise_key_error() -> None:
    raise KeyError("it broke")  # this very line


@pytest.mark.parametrize(
    ("function", "name"), [(raise_has_lock, "HasLock"), (raise_needs_two, "NeedsTwo")]
)
def test_an_exception_that_cannot_travel(
    marks: Path, function: Callable[[], None], name: str
) -> None:
    with pool_with_neighbours(marks) as pool:
        job = pool.submit(function)
        with pytest.raises(JobError, match=f"{name}: it .*broke") as caught:
            job.result(PATIENCE)
        assert type(caught.value) is JobError
        assert f"in {function.__name__}" in str(caught.value.__cause__)
        assert job.status() is JobStatus.ERROR


def test_an_exception_that_cannot_be_shown(marks: Path) -> None:
    with pool_with_neighbours(marks) as pool:
        error = pool.submit(raise_cannot_be_shown).exception(PATIENCE)
        assert type(error) is CannotBeShown
        assert error.args == ("it broke",)
        assert "in raise_cannot_be_shown" in str(error.__cause__)


def test_the_remote_traceback_is_the_cause() -> None:
    with JobPool(max_workers=1) as pool:
        error = pool.submit(raise_key_error).exception(PATIENCE)
        assert type(error) is KeyError
        assert error.args == ("it broke",)
        text = str(error.__cause__)
        assert "in raise_key_error" in text
        assert 'raise KeyError("it broke")  # this very line' in text
        assert __file__ in text

        frozen = pool.submit(raise_frozen).exception(PATIENCE)
        assert frozen == Frozen(7)
        assert frozen is not None
        assert "raise Frozen(7)" in str(frozen.__cause__)


def test_a_job_cannot_end_its_callers_program(marks: Path) -> None:
    def end(kind: type[BaseException]) -> None:
        raise kind(5)

    with pool_with_neighbours(marks) as pool:
        for kind in (SystemExit, KeyboardInterrupt, GeneratorExit):
            job = pool.submit(end, kind)
            with pytest.raises(JobError, match=kind.__name__) as caught:
                job.result(PATIENCE)
            assert type(caught.value) is JobError
            assert job.status() is JobStatus.ERROR


# --- jobs that tamper with their worker -----------------------------------------------------------


def close_streams() -> str:
    sys.stdout.close()
    sys.stderr.close()
    return "closed"


def close_descriptors_1_and_2() -> str:
    os.close(1)
    os.close(2)
    return "closed"


def change_directory() -> str:
    os.chdir("/")
    return "changed"


def change_signals() -> str:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    return "changed"


def leave_a_thread() -> str:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return "running"


@pytest.mark.parametrize(
    "function",
    [
        close_streams,
        close_descriptors_1_and_2,
        change_directory,
        change_signals,
        leave_a_thread,
    ],
)
def test_tampering_harms_neither_the_job_nor_the_next(
    marks: Path, function: Callable[[], str]
) -> None:
    with pool_with_neighbours(marks) as pool:
        assert pool.submit(function).result(PATIENCE) in ("closed", "changed", "running")
        assert [pool.submit(abs, -n).result(PATIENCE) for n in range(5)] == list(range(5))
        with pytest.raises(KeyError):
            pool.submit(raise_key_error).result(PATIENCE)
        job = pool.submit(time.sleep, 1000)
        until(job.running, "RUNNING")
        assert job.cancel() is True


def test_a_worker_without_descriptors_is_replaced(marks: Path) -> None:
    with pool_with_neighbours(marks) as pool:
        job = pool.submit(os.closerange, 3, 2000)
        with pytest.raises(WorkerDiedError):
            job.result(PATIENCE)
        assert pool.submit(raise_key_error).exception(PATIENCE) is not None


def test_a_forked_child_that_returns_answers_for_nobody(marks: Path) -> None:
    with pool_with_neighbours(marks) as pool:
        for _ in range(3):
            job = pool.submit(os.fork)
            assert job.result(PATIENCE) > 0  # the parent's answer, not the child's
            assert pool.submit(abs, -2).result(PATIENCE) == 2
        job_of_child = pool.submit(raise_in_forked_child)
        assert job_of_child.result(PATIENCE) == "parent"


def raise_in_forked_child() -> str:
    pid = os.fork()
    if pid == 0:
        raise ValueError("in the child")
    os.waitpid(pid, 0)
    return "parent"


def test_threads_left_running_do_not_keep_the_pool(marks: Path) -> None:
    with JobPool(max_workers=1) as pool:
        pids = {pool.submit(thread_and_pid).result(PATIENCE) for _ in range(3)}
        assert len(pids) == 1  # the worker goes on


def thread_and_pid() -> int:
    threading.Thread(target=time.sleep, args=(0.2,)).start()  # no daemon: it is waited for
    return os.getpid()


# --- processes inside a job -----------------------------------------------------------------------


def pool_inside(method: str) -> list[int]:
    with multiprocessing.get_context(method).Pool(1) as inner:
        return inner.map(abs, [-1, -2])


def process_inside(method: str) -> int | None:
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=os.getpid)
    process.start()
    process.join(PATIENCE)
    code: int | None = process.exitcode
    return code


def plain_process_inside() -> int | None:
    process = multiprocessing.Process(target=os.getpid)
    process.start()
    process.join(PATIENCE)
    return process.exitcode


def test_multiprocessing_works_inside_a_job() -> None:
    with JobPool(max_workers=1) as pool:
        for method in ("fork", "spawn", "forkserver"):
            assert pool.submit(pool_inside, method).result(PATIENCE) == [1, 2], method
            assert pool.submit(process_inside, method).result(PATIENCE) == 0, method
        assert pool.submit(plain_process_inside).result(PATIENCE) == 0


def test_a_pool_inside_a_job(marks: Path) -> None:
    def outer(n: int) -> tuple[int, int, list[int]]:
        jobs = [run(pow, n, k) for k in range(4)]
        inner = run(os.getpid).result()
        return os.getpid(), inner, [job.result() for job in jobs]

    with pool_with_neighbours(marks) as pool:
        job: PrimitiveJob[tuple[int, int, list[int]]] = pool.submit(outer, 3)
        worker, inner, values = job.result(PATIENCE)
        assert values == [1, 3, 9, 27]
        assert len({worker, inner, os.getpid()}) == 3
        with pytest.raises(KeyError):
            pool.submit(lambda: run(raise_key_error).result()).result(PATIENCE)

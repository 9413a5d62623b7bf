"""Attacks by jobs and data that once got through."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import pytest
from helpers import raise_it

from primitive_jobs import (
    JobError,
    JobPool,
    JobStatus,
    PrimitiveJob,
    SerializationError,
    WorkerDiedError,
    as_completed,
    killing,
    wait,
)

PATIENCE = 30.0  # s, after which what is waited for will not come

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def pool(capfd: pytest.CaptureFixture[str]) -> Iterator[JobPool]:
    """Nothing may happen to the neighbour, nor to the next jobs; nothing is printed."""
    pool = JobPool(max_workers=2)
    try:
        neighbour = pool.submit(time.sleep, 1000)
        pool.submit(abs, -1).result(PATIENCE)
        yield pool
        assert neighbour.status() is JobStatus.RUNNING
        assert pool.submit(abs, -4).result(PATIENCE) == 4
    finally:
        pool.shutdown(cancel=True)
    assert capfd.readouterr() == ("", "")


# --- the whole pool is lost --------------------------------------------------------------------


def write_to_every_socket(message: bytes) -> None:
    for fd in range(3, 2000):
        with contextlib.suppress(OSError):
            if Path(f"/proc/self/fd/{fd}").readlink().name.startswith("socket:"):
                os.write(fd, message)
    time.sleep(1000)


@pytest.mark.parametrize("kind", [3, 4, 200])
def test_garbage_in_the_channel(pool: JobPool, kind: int) -> None:
    garbage = struct.pack("<BBHIQQ", kind, 0, 0, 100_000, 1, 10) + bytes(10)
    job = pool.submit(write_to_every_socket, garbage)
    assert isinstance(job.exception(PATIENCE), WorkerDiedError)


class Text(str):
    __slots__ = ()

    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    def __format__(self, spec: str) -> NoReturn:
        raise RuntimeError("no format")

    __repr__ = __str__


class NamedBadly:
    def __getattribute__(self, name: str) -> Any:
        return Text("bad") if name == "__qualname__" else object.__getattribute__(self, name)

    def __call__(self) -> None:
        os._exit(3)


def test_a_name_with_methods_of_its_own(pool: JobPool) -> None:
    for job in (
        pool.options(name=Text("bad")).submit(os._exit, 3),
        pool.submit(NamedBadly()),
    ):
        assert job.wait(PATIENCE)
        assert isinstance(job.exception(), WorkerDiedError)
        assert repr(job)


class Unprintable(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")


class Interrupting(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return _interrupt, (os.getpid(),)


def _interrupt(maker: int) -> Exception:
    if os.getpid() != maker:
        raise KeyboardInterrupt
    return Interrupting()


class EvilBase(BaseException):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")


class EvilReduce:
    def __reduce__(self) -> NoReturn:
        raise EvilBase


class Late(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return _when_released, (os.getpid(), os.environ["RELEASE"])


def _when_released(maker: int, mark: str) -> Exception:
    end = time.monotonic() + 2 * PATIENCE
    while os.getpid() != maker and not Path(mark).exists() and time.monotonic() < end:
        time.sleep(0.01)
    return Late()


@pytest.mark.parametrize(
    ("initializer", "args"),
    [
        (raise_it, (Unprintable("x"),)),
        (lambda: raise_it(Interrupting()), ()),
        (print, (EvilReduce(),)),
    ],
    ids=["its exception cannot be printed", "unpickling it interrupts", "evil initarg"],
)
def test_an_initializer_that_raises(
    initializer: Callable[..., object], args: tuple[object, ...], caplog: pytest.LogCaptureFixture
) -> None:
    pool = JobPool(max_workers=1, initializer=initializer, initargs=args)
    try:
        for _ in range(2):  # the pool is not broken: the next submit tries again
            job = pool.submit(abs, -1)
            assert job.wait(PATIENCE)
            assert job.status() is JobStatus.ERROR
            with contextlib.suppress(KeyboardInterrupt):  # where it is asked for, it may come
                error = job.exception()
                assert isinstance(error, WorkerDiedError)
                assert "dispatcher failed" not in str(error)
    finally:
        pool.shutdown(cancel=True)
    assert [r for r in caplog.records if r.levelno >= logging.CRITICAL] == []


def test_an_initializers_exception_is_slow_to_unpickle(marks: Path) -> None:
    """It is unpickled on the dispatcher's thread, which meanwhile does nothing else (G6)."""
    env = {"RELEASE": str(marks / "release")}
    pool = JobPool(max_workers=1, initializer=lambda: raise_it(Late()), env=env)
    try:
        job = pool.submit(abs, -1)
        assert job.wait(PATIENCE)
        assert job.status() is JobStatus.ERROR
    finally:
        (marks / "release").touch()
        pool.shutdown(cancel=True)


# --- a job hangs for ever ----------------------------------------------------------------------


def test_an_initializer_that_forks() -> None:
    """Its child enters the worker's loop too, takes a call from the socket and leaves with it."""
    pool = JobPool(max_workers=1, initializer=os.fork)
    try:
        pids = {pool.submit(os.getpid).result(PATIENCE) for _ in range(10)}
        assert len(pids) == 1
    finally:
        pool.shutdown(cancel=True)


def flee(folder: Path) -> None:
    """A chain of processes, each in a session of its own and gone at once."""
    if os.fork():
        time.sleep(1000)
    end = time.monotonic() + 2 * PATIENCE
    number = 0
    while time.monotonic() < end and not (folder / "stop").exists():
        if os.fork():
            os._exit(0)
        os.setsid()
        number += 1
        if number == 20:
            (folder / "flees").touch()


def test_a_chain_of_processes_that_flee(marks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look for new processes never ends, and so no other worker is reaped either."""
    monkeypatch.setattr(killing, "GIVE_UP", 1.0)
    pool = JobPool(max_workers=2)
    ended = []

    def cancel(job: PrimitiveJob[None]) -> None:
        with contextlib.suppress(JobError):  # it is told where some may be left
            assert job.cancel()

    try:
        for number in range(5):  # the kill may win a race
            folder = marks / str(number)
            folder.mkdir()
            job = pool.submit(flee, folder)
            while not (folder / "flees").exists():
                time.sleep(0.001)
            thread = threading.Thread(target=cancel, args=(job,))
            thread.start()
            ended.append(job.wait(PATIENCE))
            (folder / "stop").touch()
            thread.join()
    finally:
        pool.shutdown(cancel=True)
    assert ended == [True] * 5


# --- a result or exception that could have been told is a WorkerDiedError ----------------------


class UnpicklableText(Exception):
    def __str__(self) -> str:
        return Text("text")


class Unreadable(Exception):
    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError(f"no {name}")


class NamelessMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__name__") and "JOB" in os.environ:
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class Nameless(metaclass=NamelessMeta):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickling")


class NamelessError(Exception, metaclass=NamelessMeta):
    pass


def return_nameless() -> Nameless:
    os.environ["JOB"] = "1"
    return Nameless()


def raise_nameless() -> NoReturn:
    os.environ["JOB"] = "1"
    raise NamelessError("x")


class NamelessCallable:
    def __getattr__(self, name: str) -> NoReturn:
        if "JOB" in os.environ:
            raise ValueError(name)
        raise AttributeError(name)

    def __call__(self) -> Any:
        os.environ["JOB"] = "1"
        return threading.Lock()


def raise_unpicklable_text() -> NoReturn:
    raise UnpicklableText


def raise_unreadable() -> NoReturn:
    raise Unreadable


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        (raise_unpicklable_text, UnpicklableText),
        (raise_unreadable, JobError),
        (raise_nameless, JobError),
        (return_nameless, SerializationError),
        (NamelessCallable(), SerializationError),
    ],
)
def test_what_cannot_be_described(
    pool: JobPool, attack: Callable[[], object], kind: type[Exception]
) -> None:
    error = pool.submit(attack).exception(PATIENCE)
    assert not isinstance(error, WorkerDiedError)
    assert isinstance(error, JobError) or type(error) is kind


class Stream(io.StringIO):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> NoReturn:
        raise self.error


def no_stdout() -> int:
    del sys.stdout
    return 5


def exiting_stdout() -> int:
    sys.stdout = Stream(SystemExit(1))
    return 5


def interrupting_stderr() -> int:
    sys.stderr = Stream(KeyboardInterrupt())
    return 5


def low_recursion_limit() -> list[int]:
    frame: Any = sys._getframe()
    depth = 0
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    for limit in range(depth, depth + 50):
        with contextlib.suppress(RecursionError):
            sys.setrecursionlimit(limit)
            break
    return [5]


@pytest.mark.parametrize(
    "attack", [no_stdout, exiting_stdout, interrupting_stderr, low_recursion_limit]
)
def test_a_result_is_not_lost(pool: JobPool, attack: Callable[[], object]) -> None:
    assert pool.submit(attack).result(PATIENCE) in (5, [5])


def quiet_close() -> None:
    os.closerange(3, 2000)


def test_a_worker_that_the_pool_gave_up_was_not_killed_by_a_signal(pool: JobPool) -> None:
    """The pool's own SIGKILL is shown as the cause of the death."""
    error = pool.submit(quiet_close).exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert error.signal is not signal.SIGKILL


# --- the next job on the worker pays -----------------------------------------------------------


def leave_an_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.1)


def leave_a_raising_alarm() -> None:
    signal.signal(signal.SIGALRM, lambda *_: raise_it(ValueError("the alarm of another job")))
    signal.setitimer(signal.ITIMER_REAL, 0.1)


@pytest.mark.parametrize("attack", [leave_an_alarm, leave_a_raising_alarm])
def test_an_alarm_left_ticking(pool: JobPool, attack: Callable[[], None]) -> None:
    pool.submit(attack).result(PATIENCE)
    assert pool.submit(time.sleep, 0.3).result(PATIENCE) is None


def test_an_alarm_in_an_idle_worker(pool: JobPool, capfd: pytest.CaptureFixture[str]) -> None:
    pid = pool.submit(os.getpid).result(PATIENCE)
    pool.submit(leave_a_raising_alarm).result(PATIENCE)
    end = time.monotonic() + 1.0  # nothing tells that the alarm was nobody's
    while time.monotonic() < end:
        time.sleep(0.01)
    assert pool.submit(os.getpid).result(PATIENCE) == pid


def block_all_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def clean_up(folder: Path) -> None:
    try:
        (folder / "started").touch()
        time.sleep(1000)
    finally:
        (folder / "cleaned").touch()


def test_blocked_signals_cost_the_next_job_its_grace(pool: JobPool, marks: Path) -> None:
    pool.submit(block_all_signals).result(PATIENCE)
    job = pool.submit(clean_up, marks)
    while not (marks / "started").exists():
        time.sleep(0.002)
    assert job.cancel(grace=PATIENCE) is True
    assert (marks / "cleaned").exists()


# --- smaller things ----------------------------------------------------------------------------


class WithoutTraceback(Exception):
    def with_traceback(self, tb: object) -> Any:
        return None


def raise_without_traceback() -> NoReturn:
    raise WithoutTraceback("x")


def test_an_exception_with_a_with_traceback_of_its_own(pool: JobPool) -> None:
    with pytest.raises(WithoutTraceback):
        pool.submit(raise_without_traceback).result(PATIENCE)


class Hostile:
    def __getattr__(self, name: str) -> NoReturn:
        raise ValueError(f"no {name}") if name == "func" else AttributeError(name)

    def __call__(self) -> int:
        return 5


def test_a_callable_with_a_hostile_getattr(pool: JobPool) -> None:
    assert pool.submit(Hostile()).result(PATIENCE) == 5


class NotCallable:
    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    "call",
    [
        lambda pool, odd: pool.submit(odd),
        lambda pool, odd: pool.options(timeout=odd),
        lambda pool, odd: pool.options(priority=odd),
    ],
)
def test_a_wrong_argument_that_cannot_be_shown(
    pool: JobPool, call: Callable[[JobPool, object], object]
) -> None:
    with pytest.raises(TypeError):
        call(pool, NotCallable())


def test_a_very_long_patience(pool: JobPool) -> None:
    assert pool.submit(abs, -1).result(1e300) == 1
    for wait_for in (lambda job: wait([job], 1e300), lambda job: list(as_completed([job], 1e300))):
        job = pool.submit(time.sleep, 0.1)
        wait_for(job)
        assert job.done()
    assert list(pool.map(abs, [-1], timeout=1e300)) == [1]


class Refusing:
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickling")


def test_a_call_that_cannot_be_serialized_is_let_go(pool: JobPool) -> None:
    """Its arguments, perhaps large, live as long as the job: the error's traceback has them."""
    value = Refusing()
    gone = weakref.ref(value)
    job = pool.submit(print, value)
    del value
    gc.collect()
    assert job.status() is JobStatus.ERROR
    assert gone() is None

"""Initializers that raise what misbehaves, or fork: the pool goes on, and no thread of it waits."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import pytest
from helpers import PATIENCE, raise_it

from primitive_jobs import InitializerError, JobPool, JobStatus, WorkerDiedError

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


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


class Telling(Exception):
    """Knows where it was unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return told, ()


def told() -> Telling:
    error = Telling()
    error.args = (threading.current_thread().name,)
    return error


def raise_telling() -> None:
    raise Telling


def test_an_initializers_exception_is_unpickled_by_who_asks() -> None:
    with JobPool(1, initializer=raise_telling) as pool:
        error = pool.submit(abs, -1).exception(PATIENCE)
        assert isinstance(error, InitializerError)
        assert isinstance(error.__cause__, Telling)
        assert error.__cause__.args == (threading.current_thread().name,)


def test_an_initializer_that_forks() -> None:
    """Its child enters the worker's loop too, takes a call from the socket and leaves with it."""
    pool = JobPool(max_workers=1, initializer=os.fork)
    try:
        pids = {pool.submit(os.getpid).result(PATIENCE) for _ in range(10)}
        assert len(pids) == 1
    finally:
        pool.shutdown(cancel=True)

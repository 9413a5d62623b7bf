"""Each call to the operating system fails once: the first, the fourth, and so on to the last.

Under soak the others do, too.

A failed call may cost a job, with a clear error; it may not cost a second job, a process, a
descriptor, a thread (the gate of conftest.py) or an answer.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import functools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, sampled

from primitive_jobs import JobCancelledError, JobError, JobPool, JobStatus, PoolClosedError
from primitive_jobs._wire.parcel import HAVE_PACKETS

LARGE = 300_000  # bytes: travels in a file

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Fault:
    """Makes one call of a function fail: the ``place``-th that comes from the package."""

    def __init__(self, original: Callable[..., Any], error: Exception, place: int) -> None:
        self._original = original
        self._error = error
        self._left = place
        self.hit = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        module = frame.f_globals.get("__name__", "")
        if module.startswith("primitive_jobs"):
            self._left -= 1
            if self._left == 0:
                self.hit = f"{module}:{frame.f_lineno} in {frame.f_code.co_name}"
                raise type(self._error)(*self._error.args)  # its traceback shall hold nothing
        return self._original(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any) -> Any:  # in a class it becomes a method
        return functools.partial(self, instance)


def echo(data: bytes) -> bytes:
    return data


def never_end(mark: Path) -> None:
    mark.touch()
    while True:
        time.sleep(1000)


def use_a_pool(marks: Path) -> list[str]:
    """Start, large data both ways, a cancel, an end; return what went wrong, and for whom."""
    wrong = []
    with JobPool(2) as pool:
        jobs = [
            pool.options(name=f"echo {len(data)}").submit(echo, data)
            for data in (b"a", b"b" * LARGE, b"c")
        ]
        endless = pool.options(name="endless").submit(never_end, marks / "began")
        for job, data in zip(jobs, (b"a", b"b" * LARGE, b"c"), strict=True):
            try:
                assert job.result(PATIENCE) == data
            except JobError as error:
                assert job.status() in (JobStatus.ERROR, JobStatus.DONE)
                wrong.append(f"{job.name}: {error!r}")
        end = time.monotonic() + PATIENCE
        while not (marks / "began").exists() and not endless.in_final_state():
            assert time.monotonic() < end
            time.sleep(0.002)
        told = endless.cancel()
        assert told is (endless.status() is JobStatus.CANCELLED)
        if not told:
            wrong.append(f"endless: {endless.exception()!r}")
        else:
            with pytest.raises(JobCancelledError):
                endless.result()
        assert pool.submit(echo, b"again").result(PATIENCE) == b"again", "the pool goes on"
    return wrong


PLACES: dict[str, tuple[Any, str, Exception]] = {
    "page or parcel": (os, "memfd_create", OSError(errno.EMFILE, "no descriptor")),
    "content": (os, "write", OSError(errno.ENOSPC, "no memory")),
    "size": (os, "ftruncate", OSError(errno.ENOMEM, "no memory")),
    "sockets": (_socket, "socketpair", OSError(errno.EMFILE, "no descriptor")),
    "pidfd": (os, "pidfd_open", OSError(errno.EMFILE, "no descriptor")),
    "sending": (socket.socket, "sendmsg", OSError(errno.ENOBUFS, "no buffer")),
    "sending without content": (socket.socket, "send", OSError(errno.ENOBUFS, "no buffer")),
    "waking": (os, "eventfd", OSError(errno.EMFILE, "no descriptor")),
    "receiving": (socket.socket, "recv_into", OSError(errno.ENOMEM, "no memory")),
    "receiving a descriptor": (socket.socket, "recvmsg_into", OSError(errno.ENOMEM, "no memory")),
    "guard": (subprocess, "Popen", OSError(errno.EAGAIN, "no process")),
    "reaping": (os, "wait4", ChildProcessError(errno.ECHILD, "no child")),
    "signalling": (os, "killpg", PermissionError(errno.EPERM, "not allowed")),
    "reading": (os, "pread", OSError(errno.EIO, "no page")),
}


@pytest.mark.parametrize("what", PLACES)
@sampled(3)
def test_a_call_that_fails_once(
    what: str,
    stride: int,
    marks: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if what in ("sending", "receiving a descriptor") and not HAVE_PACKETS:
        pytest.skip("no such call is made here")
    owner, name, error = PLACES[what]
    # The sockets that are in use have no methods that can be replaced; their subclass's can.
    bare = _socket.socketpair
    monkeypatch.setattr(
        _socket, "socketpair", lambda *a: [socket.socket(fileno=s.detach()) for s in bare(*a)]
    )
    for place in range(1, 40, stride):
        fault = Fault(getattr(owner, name), error, place)
        folder = marks / str(place)
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fault)
            wrong = []
            with contextlib.suppress(type(error)):  # told as it is by the making of the pool
                wrong = use_a_pool(folder)
        if not fault.hit:
            assert not wrong
            break
        assert len(wrong) <= 1, f"{fault.hit} cost more than one job: {wrong}"
        assert "dispatcher failed" not in caplog.text, fault.hit
    assert place > 1, "no call was made to fail"
    assert not fault.hit, "there are more places"


@pytest.mark.parametrize("place", range(1, 6))
def test_a_thread_that_cannot_be_started(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fault = Fault(threading.Thread.start, RuntimeError("can't start new thread"), place)
        patch.setattr(threading.Thread, "start", fault)
        with pytest.raises(PoolClosedError, match="no thread is left"):
            JobPool(1)
    assert fault.hit

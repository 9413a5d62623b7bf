"""System calls that Python has, and the kernel or a sandbox refuses: all works without them."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sandbox
from helpers import PATIENCE, by_turns, script

from primitive_jobs._engine.poller import Bell, Poller
from primitive_jobs._procs import former
from primitive_jobs._wire.parcel import INLINE_LIMIT, Parcel

pytestmark = pytest.mark.skipif(not sandbox.can_refuse(), reason="unknown system calls")

SEVERAL = ("pidfd_send_signal", "prlimit", "tgkill", "close_range")
SANDBOXES = [(name,) for name in sandbox.CALLS if name not in SEVERAL] + [SEVERAL]
ERRORS = ("ENOSYS", "EPERM")

USE_A_POOL = """
    import os, sys, time
    from primitive_jobs import JobPool, JobCancelledError, JobTimeoutError, WorkerDiedError, share

    LARGE = bytes(range(256)) * 4000

    def keep(content):
        os.environ["KEPT"] = str(len(content))

    def die_with_a_child_that_goes_on():
        if os.fork() == 0:
            time.sleep(100)
        os._exit(4)

    def turn(content):
        return content[::-1], os.environ["KEPT"]

    if __name__ == "__main__":
        with JobPool(1, initializer=keep, initargs=(LARGE,)) as pool:
            for content in (LARGE, share(LARGE)):
                assert pool.submit(turn, content).result(30) == (LARGE[::-1], str(len(LARGE)))
            endless = pool.submit(time.sleep, 100)
            while not endless.running():
                time.sleep(0.002)
            assert endless.cancel()
            try:
                raise AssertionError(endless.result())
            except JobCancelledError:
                pass
            error = pool.submit(os._exit, 3).exception(30)
            assert isinstance(error, WorkerDiedError) and error.exitcode == 3, error
            error = pool.submit(die_with_a_child_that_goes_on).exception(30)
            assert isinstance(error, WorkerDiedError) and error.exitcode == 4, error
            late = pool.options(timeout=0.3).submit(time.sleep, 100).exception(30)
            assert isinstance(late, JobTimeoutError) and late.stack, late
            assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))
        print(open("/proc/self/status").read().partition("Seccomp:")[2].split()[0])
"""

BE_KILLED = """
    import os, pathlib, signal, subprocess, sys, time
    from primitive_jobs import JobPool

    def start(mark):
        subprocess.Popen(["sleep", "100"])
        pathlib.Path(mark).touch()
        time.sleep(100)

    if __name__ == "__main__":
        pool = JobPool(1)
        pool.submit(start, sys.argv[1])
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run(folder: Path, source: str, calls: tuple[str, ...], error: str) -> tuple[int, str, str]:
    """Run a program without these calls; nothing of it is left."""
    file = folder / "script.py"
    file.write_text(textwrap.dedent(source))
    refused = [f"{name}:{error}" for name in calls]
    command = [sys.executable, str(file), str(folder / "mark")]
    with script(sandbox.__file__, *refused, "--", *command) as started:
        ended = started.finish()
        started.assert_nothing_left()
    return ended


def name_of(what: tuple[str, ...] | str) -> str:
    return what if isinstance(what, str) else ",".join(what)


@pytest.mark.parametrize(("calls", "error"), by_turns(SANDBOXES, ERRORS), ids=name_of)
def test_a_pool_works_without(calls: tuple[str, ...], error: str, tmp_path: Path) -> None:
    assert run(tmp_path, USE_A_POOL, calls, error) == (0, "2\n", "")


@pytest.mark.parametrize("error", ERRORS)
def test_the_guard_works_without(error: str, tmp_path: Path) -> None:
    calls = ("pidfd_open", "prctl", "memfd_create")
    assert run(tmp_path, BE_KILLED, calls, error) == (-signal.SIGKILL, "", "")


def refuse(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Have a call refused that worked when the package was imported."""

    def refused(*_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(owner, name, refused, raising=False)


def test_a_file_where_memfd_is_refused_later(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "memfd_create")
    content = bytes(INLINE_LIMIT + 1)
    parcel = Parcel(content, to_file=True)
    assert os.pread(parcel.fd, len(content) + 1, 0) == content
    assert os.fstat(parcel.fd).st_nlink == 0
    parcel.close()


def test_a_bell_and_a_poller_of_the_plain_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "eventfd")
    refuse(monkeypatch, select, "epoll")
    bell, poller = Bell(), Poller()
    poller.register(bell, select.POLLIN)
    assert poller.poll(0) == []
    bell.ring()
    assert poller.poll(PATIENCE) == [(bell.fileno(), select.POLLIN)]
    bell.hush(0)
    assert poller.poll(0) == []
    poller.close()
    bell.close()


def test_a_former_child_is_reaped_without_a_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "pidfd_open")
    child = subprocess.Popen(["sleep", "0.02"])
    former._reap(child.pid, PATIENCE)
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)
    child.returncode = 0

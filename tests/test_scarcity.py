"""When the machine has too little: no descriptor, process, thread, memory or time is to be had."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, expect, script, until, wait_for

from primitive_jobs import (
    JobError,
    JobPool,
    JobStatus,
    PoolClosedError,
    PrimitiveJob,
    SerializationError,
    WorkerDiedError,
)
from primitive_jobs._procs.guardian import the_guard
from primitive_jobs._procs.process import WorkerConfig, WorkerProcess
from primitive_jobs._wire.parcel import HAVE_PACKETS
from primitive_jobs.logs import Report

in_files = pytest.mark.skipif(not HAVE_PACKETS, reason="nothing is held in files here")

LARGE = 10**6  # bytes: more than travels inline

# --- no descriptor --------------------------------------------------------------------------------

HOARD = """
import errno, os, resource
from pathlib import Path
from primitive_jobs import JobPool, JobStatus, SerializationError, WorkerDiedError

def limit(soft):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

def why(job):
    error = job.exception(20)
    return type(error).__name__, str(error)

def wait_for(path):
    import time
    while not path.exists():
        time.sleep(0.005)
    return "released"

pool, late = JobPool(1), JobPool(1)
assert pool.submit(len, bytes(10**6)).result(20) == 10**6  # a worker, and every import
limit(60)
pools, loose = [], []
try:
    while True:
        pools.append(JobPool(1))
except OSError as error:
    assert error.errno == errno.EMFILE, error
try:
    while True:
        loose.append(os.dup(0))
except OSError:
    pass
assert len(pools) > 5, len(pools)
"""

WITHOUT_DESCRIPTOR = """
assert pool.submit(abs, -1).result(20) == 1

kind, text = why(pool.submit(len, bytes(10**6)))
assert kind == "SerializationError" and "Too many open files" in text, text

job = pool.submit(bytes, 10**6)
kind, text = why(job)
assert kind == "SerializationError" and "RLIMIT_NOFILE" in text, text
assert job.status() is JobStatus.ERROR

release = Path(__file__).with_name("release")
first, second = pool.submit(wait_for, release), pool.submit(abs, -1)
assert second.cancel()
release.mkdir()  # needs no descriptor
assert first.result(20) == "released"

for _ in range(3):
    kind, text = why(late.submit(abs, -1))
    assert kind == "WorkerDiedError" and "Too many open files" in text, text
assert pool.submit(abs, -2).result(20) == 2
pools.pop().shutdown()
"""

RECOVERY = """
for fd in loose:
    os.close(fd)
for other in pools:
    other.shutdown()
extra = JobPool(1)
for each in (pool, late, extra):
    assert each.submit(lambda data: data[::-1], bytes(10**6)).result(20) == bytes(10**6)
print("well")
"""


@in_files
def test_without_a_descriptor(tmp_path: Path) -> None:
    expect(tmp_path, HOARD + WITHOUT_DESCRIPTOR + RECOVERY, "well\n")


# --- no process -----------------------------------------------------------------------------------


# cancel() says True only where the worker is gone, and not merely stopped.
def test_cancel_of_a_running_job_without_a_descriptor(tmp_path: Path) -> None:
    attack = """
import logging, time
logging.basicConfig()
job = late.submit(time.sleep, 1000)
"""
    # Its worker is started before the descriptors are gone.
    source = HOARD.replace("limit(60)\n", f"{attack}while not job.running(): pass\nlimit(60)\n")
    source += """
pid = job.pid
assert job.cancel()
print(os.path.exists(f"/proc/{pid}"))
"""
    with script("-c", source) as started:
        status, out, err = started.finish()
        assert (status, out) == (0, "False\n")
        assert "outside of its process group" in err
        started.assert_nothing_left()


def test_without_a_process_or_a_thread(tmp_path: Path) -> None:
    source = """
        import os, resource
        from primitive_jobs import JobPool, PoolClosedError, WorkerDiedError

        warm, cold = JobPool(2), JobPool(2)
        pid = warm.submit(os.getpid).result(20)
        user, limits = os.getuid(), resource.getrlimit(resource.RLIMIT_NPROC)
        if user == 0:  # root is exempt
            nobody = 10_000 + os.getpid() % 50_000  # whose processes are these alone
            os.setresuid(nobody, nobody, 0)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, limits[1]))
        for _ in range(3):
            jobs = [cold.submit(abs, -n) for n in range(4)]
            for job in jobs:
                error = job.exception(20)
                assert type(error) is WorkerDiedError, error
                assert "no worker process could be started" in str(error), error
                assert isinstance(error.__cause__, BlockingIOError), error.__cause__
        try:
            JobPool(1)
        except PoolClosedError as error:
            print(error)
        # One that has a worker does not need the second that it would like.
        assert {warm.submit(os.getpid).result(20) for _ in range(20)} == {pid}
        queued = [warm.submit(pow, n, 2) for n in range(20)]
        assert [job.result(20) for job in queued] == [n * n for n in range(20)]
        if user == 0:
            os.setresuid(0, 0, 0)
        resource.setrlimit(resource.RLIMIT_NPROC, limits)
        assert [cold.submit(abs, -n).result(20) for n in range(4)] == [0, 1, 2, 3]
        with JobPool(1) as pool:
            print(pool.submit(abs, -4).result(20))
    """
    message = "no pool can be started: the interpreter is going down, or no thread is left\n"
    expect(tmp_path, source, message + "4\n")


@pytest.mark.parametrize("started", range(4))
def test_without_a_thread(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    real, calls, users = threading.Thread.start, [0], the_guard._users

    def start(thread: threading.Thread) -> None:
        calls[0] += 1
        if calls[0] > started:
            raise RuntimeError("can't start new thread")
        real(thread)

    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(3):
            calls[0] = 0
            with pytest.raises(PoolClosedError, match="no thread is left") as caught:
                JobPool(1)
            assert "can't start new thread" in str(caught.value.__cause__)
    assert the_guard._users == users
    until(lambda: set(threading.enumerate()) <= before, "the end of its threads")
    with JobPool(1) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_without_a_guard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, marks: Path
) -> None:
    real = subprocess.Popen

    def popen(*args: Any, **kwargs: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "no process free")

    with JobPool(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("primitive_jobs._procs.guardian.subprocess.Popen", popen)
            assert pool.submit(abs, -1).result(PATIENCE) == 1
        assert the_guard._process is None
        failure = "guard process cannot be started: [Errno 11] no process free"
        until(lambda: failure in caplog.text, "the record")  # it comes on a thread of its own
        assert subprocess.Popen is real
        # The next start of a worker makes it, and it knows of the first worker too.
        jobs = [pool.submit(wait_for, marks / "release") for _ in range(2)]
        until(lambda: the_guard._process is not None, "the guard")
        assert {job.pid for job in jobs if job.pid is not None} <= the_guard._groups
        (marks / "release").touch()
        assert [job.result(PATIENCE) for job in jobs] == ["release"] * 2


# --- no memory ------------------------------------------------------------------------------------


def refusing(name: str, code: int) -> Callable[..., Any]:
    """A function of `os` that fails for our files."""
    real = getattr(os, name)

    def function(first: Any, *rest: Any) -> Any:
        label = first if isinstance(first, str) else str(Path(f"/proc/self/fd/{first}").readlink())
        if "primitive_jobs" in label:
            raise OSError(code, os.strerror(code))
        return real(first, *rest)

    return function


@in_files
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC, errno.ENFILE])
@pytest.mark.parametrize("name", ["memfd_create", "write"])
def test_without_memory_for_an_argument(
    monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    with JobPool(1) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refusing(name, code))
            for _ in range(3):
                job = pool.submit(len, bytes(LARGE))
                assert job.status() is JobStatus.ERROR
                with pytest.raises(SerializationError, match="bytes of the call of len") as caught:
                    job.result(PATIENCE)
                assert os.strerror(code) in str(caught.value)
                assert isinstance(caught.value.__cause__, OSError)
            assert pool.submit(len, bytes(10)).result(PATIENCE) == 10
        assert pool.submit(len, bytes(LARGE)).result(PATIENCE) == LARGE
        assert pool.submit(os.getpid).result(PATIENCE) == pid


def test_without_memory_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with JobPool(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(os, "memfd_create", refusing("memfd_create", errno.ENOMEM))
            jobs = [pool.submit(abs, -n) for n in range(5)]
            for job in jobs:
                with pytest.raises(WorkerDiedError, match=os.strerror(errno.ENOMEM)):
                    job.result(PATIENCE)
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def refuse(code: int) -> Callable[..., Any]:
    def function(*args: object, **kwargs: object) -> Any:
        raise OSError(code, os.strerror(code))

    return function


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("loky.backend.fork_exec.fork_exec", errno.EAGAIN),
        ("os.ftruncate", errno.EFBIG),
        ("loky.backend.popen_loky_posix.os.pipe", errno.EMFILE),
    ],
    ids=["fork", "page", "pipe"],
)
def test_a_failed_start(monkeypatch: pytest.MonkeyPatch, where: str, code: int) -> None:
    import loky.backend.fork_exec
    import loky.backend.popen_loky_posix  # noqa: F401

    with JobPool(1) as pool:
        the_guard.be_there()  # as from the first start on
        pool.snapshot()  # by then its dispatcher has made the socket for viewers
        before = descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(where, refuse(code))
            error = pool.submit(abs, -1).exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        assert os.strerror(code) in str(error)
        gc.collect()
        assert descriptors() == before


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_a_pool_without_a_descriptor_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(select, "epoll", refuse(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            JobPool(1)
    gc.collect()  # pytest makes an error of what a finalizer warns of


@in_files
def test_without_memory_for_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with JobPool(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("primitive_jobs._wire.channel.map_file", refuse(errno.ENOMEM))
            error = pool.submit(bytes, 10**6).exception(PATIENCE)
        assert isinstance(error, JobError)
        assert "memory" in str(error)
        assert "descriptor" not in str(error)


@in_files
def test_without_room_in_files(tmp_path: Path) -> None:
    source = """
        import resource
        from primitive_jobs import JobPool, SerializationError

        size, limits = 10**6, resource.getrlimit(resource.RLIMIT_FSIZE)
        with JobPool(1) as early, JobPool(1) as late:
            assert early.submit(abs, -1).result(20) == 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
            for pool, job in [
                (early, early.submit(len, bytes(size))),  # no room here
                (late, late.submit(bytes, size)),  # no room in the worker, which has the limit too
            ]:
                error = job.exception(20)
                assert type(error) is SerializationError, error
                assert "File too large" in str(error), error
                assert pool.submit(len, bytes(size // 4)).result(20) == size // 4
            assert len(early.submit(bytes, size).result(20)) == size
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert early.submit(len, bytes(size)).result(20) == size
            print("well")
    """
    expect(tmp_path, source, "well\n")


# --- no time --------------------------------------------------------------------------------------


class SlowStart:
    """Holds each start of a process back until it is released."""

    def __init__(self) -> None:
        self.begun = 0
        self.blocked = threading.Event()
        self.release = threading.Event()

    def holds(self) -> bool:
        return self.blocked.is_set() and not self.release.is_set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStart]:
    state, real = SlowStart(), WorkerProcess.__init__

    def init(self: WorkerProcess, slot: int, config: WorkerConfig, report: Report) -> None:
        state.begun += 1
        state.blocked.set()
        state.release.wait(PATIENCE)
        real(self, slot, config, report)

    monkeypatch.setattr(WorkerProcess, "__init__", init)
    yield state
    state.release.set()


def cancel_each(pool: JobPool, jobs: list[PrimitiveJob[int]]) -> None:
    assert all(job.cancel() for job in jobs)


def cancel_with_grace(pool: JobPool, jobs: list[PrimitiveJob[int]]) -> None:
    assert all(job.cancel(grace=5) for job in jobs)


def cancel_all(pool: JobPool, jobs: list[PrimitiveJob[int]]) -> None:
    pool.cancel_all()


def shut_down(pool: JobPool, jobs: list[PrimitiveJob[int]]) -> None:
    pool.shutdown(wait=False, cancel=True)
    assert all(job.wait(PATIENCE) for job in jobs)


@pytest.mark.parametrize("end", [cancel_each, cancel_with_grace, cancel_all, shut_down])
def test_a_slow_start_holds_up_no_caller(
    slow: SlowStart, end: Callable[[JobPool, list[PrimitiveJob[int]]], None]
) -> None:
    with JobPool(3) as pool:
        jobs = [pool.submit(abs, -n) for n in range(6)]
        assert slow.blocked.wait(PATIENCE)
        assert pool.jobs() == jobs
        assert {job.status() for job in jobs} == {JobStatus.QUEUED}
        end(pool, jobs)
        assert {job.status() for job in jobs} == {JobStatus.CANCELLED}
        assert pool.jobs() == []
        assert slow.holds()
        slow.release.set()
        if end is not shut_down:
            assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_a_shutdown_waits_for_no_more_than_the_start_that_is_under_way(slow: SlowStart) -> None:
    pool = JobPool(3)
    jobs = [pool.submit(abs, -n) for n in range(6)]
    assert slow.blocked.wait(PATIENCE)
    ending = threading.Thread(target=pool.shutdown, kwargs={"cancel": True})
    ending.start()
    assert all(job.wait(PATIENCE) for job in jobs)
    assert slow.holds()
    slow.release.set()
    ending.join(PATIENCE)
    assert not ending.is_alive()
    assert slow.begun == 1
    assert {job.status() for job in jobs} == {JobStatus.CANCELLED}


def test_a_slow_start_holds_up_no_other_worker(slow: SlowStart, marks: Path) -> None:
    slow.release.set()
    with JobPool(2) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        slow.release.clear()
        slow.blocked.clear()
        held, more = pool.submit(wait_for, marks / "release"), pool.submit(signal.pause)
        assert slow.blocked.wait(PATIENCE)
        assert (held.pid, more.status()) == (pid, JobStatus.QUEUED)
        (marks / "release").touch()
        assert held.result(PATIENCE) == "release"
        until(more.running, "RUNNING on the first worker")
        assert more.pid == pid
        assert more.cancel()
        assert slow.holds()
        waiting = pool.submit(abs, -1)
        slow.release.set()
        assert waiting.result(PATIENCE) == 1


@pytest.fixture
def _busy_machine() -> Iterator[None]:
    """Every core has something else to do."""
    code = "import time; end = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    count = len(os.sched_getaffinity(0)) + 1
    loops = [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(count)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.usefixtures("_busy_machine")
def test_on_a_busy_machine(marks: Path) -> None:
    with JobPool(3) as pool:
        numbers = [pool.submit(pow, n, 2) for n in range(100)]
        assert [job.result(PATIENCE) for job in numbers] == [n * n for n in range(100)]
        held, stopped, crash = (
            pool.submit(wait_for, marks / "release"),
            pool.submit(time.sleep, 1000),
            pool.submit(os._exit, 3),
        )
        assert isinstance(crash.exception(PATIENCE), WorkerDiedError)
        until(lambda: held.running() and stopped.running(), "RUNNING")
        pid = stopped.pid
        assert pid is not None
        assert stopped.cancel()
        assert not Path(f"/proc/{pid}").exists()
        assert held.running()
        limited = pool.options(timeout=0.2).submit(time.sleep, 1000)
        assert limited.wait(PATIENCE)
        (marks / "release").touch()
        assert held.result(PATIENCE) == "release"
        assert len(pool.submit(bytes, LARGE).result(PATIENCE)) == LARGE

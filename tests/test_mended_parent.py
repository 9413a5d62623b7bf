"""Attacks on the pool's own process that once got through."""

from __future__ import annotations

import errno
import gc
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, expect, script, until
from test_parent import in_state
from test_scarcity import HOARD

from primitive_jobs import InitializerError, JobError, JobPool, WorkerDiedError
from primitive_jobs.channel import HAVE_PACKETS
from primitive_jobs.dispatcher import Dispatcher
from primitive_jobs.guardian import the_guard

FORK = """
import os, threading, time, warnings
from primitive_jobs import JobError, JobPool, run
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of forks, from 3.12 on

def in_child(call):
    child = os.fork()
    if child == 0:
        try:
            call()
        except BaseException as error:
            print(type(error).__name__, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


# --- cancel() without a descriptor: True, and the worker is stopped, neither killed nor reaped -


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


# --- failed starts leave descriptors, and may not say why they failed --------------------------


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
        before = descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(where, refuse(code))
            error = pool.submit(abs, -1).exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        assert os.strerror(code) in str(error)
        gc.collect()
        assert descriptors() == before


# --- a program whose standard streams are closed or broken cannot start a worker ---------------


@pytest.mark.parametrize("stream", ["None", "closed"])
def test_without_standard_output(tmp_path: Path, stream: str) -> None:
    source = f"""
        import os, sys
        from primitive_jobs import run

        if {stream == "None"}:
            sys.stdout = None  # as Python itself has it where there is none
        else:
            sys.stdout = open(os.devnull, "w")
            sys.stdout.close()
        os.write(1, b"%d\\n" % run(abs, -1).result(20))
        sys.stdout = sys.__stdout__
    """
    expect(tmp_path, source, "1\n")


# --- the parent killed between the start of a worker and the data that it gets -----------------


def test_killed_in_the_middle_of_a_start(marks: Path) -> None:
    source = """
from multiprocessing import resource_tracker
from loky.backend import fork_exec, popen_loky_posix, resource_tracker as loky_tracker
resource_tracker.ensure_running(), loky_tracker.ensure_running()
real = fork_exec.fork_exec
def start(*args, **kwargs):
    real(*args, **kwargs)
    ready()  # its data is not sent yet
    time.sleep(1000)
fork_exec.fork_exec = start
pool = JobPool(1)
pool.submit(abs, -1)
"""
    with in_state(marks, source) as started:
        started.process.kill()
        assert started.finish() == (-9, "", "")
        started.assert_nothing_left()


# --- forks at a bad moment ---------------------------------------------------------------------


def test_fork_while_a_worker_starts(tmp_path: Path) -> None:
    source = """
from multiprocessing import util
real, inside, forked = util.spawnv_passfds, threading.Event(), threading.Event()
def slow(*args):  # called for the resource trackers, with their lock held
    inside.set()
    forked.wait(1)
    return real(*args)
util.spawnv_passfds = slow
job = run(abs, -1)
inside.wait()
def use():
    forked.set()
    assert run(abs, -2).result(20) == 2
print(in_child(use), job.result(20))
"""
    expect(tmp_path, FORK + source, "0 1\n")


def test_fork_when_a_worker_has_just_started(tmp_path: Path) -> None:
    source = """
from primitive_jobs.dispatcher import Dispatcher
from primitive_jobs.spawner import HasProcess
real, lying, forked = Dispatcher._tell, threading.Event(), threading.Event()
pids = []
def tell(self, command):
    if isinstance(command, HasProcess) and not pids:
        pids.append(command.process.pid)
        self._inbox.append(command)  # and before the dispatcher is awake:
        lying.set()
        forked.wait(20)
        self._wake()
    else:
        real(self, command)
Dispatcher._tell = tell
pool = JobPool(1)
job = pool.submit(os.getpid)
lying.wait()
def use():
    pool.shutdown()
code = in_child(use)
forked.set()
print(code, [job.result(20)] == pids)
"""
    expect(tmp_path, FORK + source, "0 True\n")


def test_fork_while_a_job_is_submitted(tmp_path: Path) -> None:
    source = """
from primitive_jobs import PrimitiveJob
inside, forked = threading.Event(), threading.Event()
class Slow:
    def __reduce__(self):
        inside.set()
        forked.wait(20)
        return int, (7,)
job = PrimitiveJob(abs, Slow())
thread = threading.Thread(target=job.submit)
thread.start()
inside.wait()
code = in_child(lambda: job.result(2))  # it can never come: a clear error, no waiting
forked.set()
thread.join()
print(code, job.result(20))
"""
    expect(tmp_path, FORK + source, "JobError\n1 7\n")


# --- a pool that could not be made -------------------------------------------------------------


def test_a_pool_refused_at_exit_leaves_no_socket(tmp_path: Path) -> None:
    source = """
        import atexit
        from primitive_jobs import PoolClosedError, run

        @atexit.register
        def late():
            try:
                run(abs, -1)
            except PoolClosedError:
                print("closed")
    """
    expect(tmp_path, source, "closed\n", flags="-X dev")


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_a_pool_without_a_descriptor_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(select, "epoll", refuse(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            JobPool(1)
    gc.collect()  # pytest makes an error of what a finalizer warns of


@pytest.mark.parametrize("warm", [True, False])
def test_run_in_a_finalizer_at_exit(tmp_path: Path, warm: bool) -> None:
    source = f"""
        import os
        from primitive_jobs import PoolClosedError, run

        class Late:
            def __del__(self, run=run, abs=abs, write=os.write, Closed=PoolClosedError):
                try:
                    run(abs, -1)
                except Closed:
                    write(1, b"closed\\n")
        if {warm}:
            run(abs, -1).result()
        late = Late()
    """
    expect(tmp_path, source, "closed\n")


def interrupt_after(real: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    return function


@pytest.mark.parametrize("where", ["the guard knows of it", "its threads run"])
def test_ctrl_c_while_a_pool_is_made(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    before, users = set(threading.enumerate()), the_guard._users
    with monkeypatch.context() as patch:
        if where == "its threads run":
            real = Dispatcher._start_threads
            patch.setattr(Dispatcher, "_start_threads", interrupt_after(real))
        else:
            patch.setattr(the_guard, "open", interrupt_after(the_guard.open))
        with pytest.raises(KeyboardInterrupt):
            JobPool(1)
    gc.collect()
    try:
        until(lambda: set(threading.enumerate()) <= before, "the end of its threads")
        assert the_guard._users == users
    finally:  # or every later test fails
        from primitive_jobs.lifetime import pools

        for dispatcher in list(pools):
            dispatcher.shut_down(cancel=True)
            dispatcher.join()
        the_guard._users = users


# --- the guard's lock, and a finalizer or a signal handler that makes a pool -------------------


def test_the_guard_may_be_entered_again(tmp_path: Path) -> None:
    source = """
        import os, subprocess
        from primitive_jobs import JobPool, run
        from primitive_jobs.guardian import the_guard

        real = subprocess.Popen
        def popen(*args, **kwargs):  # as a finalizer would that the collector runs in here
            subprocess.Popen = real
            JobPool(1).shutdown()
            return real(*args, **kwargs)
        subprocess.Popen = popen
        pool = JobPool(1)
        try:
            print(pool.submit(abs, -1).result(20))
        except TimeoutError as error:
            print(error, flush=True)
            os._exit(1)
    """
    expect(tmp_path, source, "1\n")


# --- an address space too small for a result is told as a lack of descriptors ------------------


@pytest.mark.skipif(not HAVE_PACKETS, reason="nothing is held in files here")
def test_without_memory_for_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with JobPool(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("primitive_jobs.channel.map_file", refuse(errno.ENOMEM))
            error = pool.submit(bytes, 10**6).exception(PATIENCE)
        assert isinstance(error, JobError)
        assert "memory" in str(error)
        assert "descriptor" not in str(error)


# --- an initializer's exception is unpickled on the dispatcher's thread ------------------------


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


# --- map() ends early, in silence, when its first jobs end before anybody waits for them ------


def test_map_loses_nothing() -> None:
    with JobPool(2) as pool:
        results = pool.map(abs, range(-100, 0))
        until(lambda: not pool.jobs(), "the end of the jobs that map submits ahead")
        assert list(results) == list(range(100, 0, -1))

"""What the library says, on the logger `primitive_jobs` and nowhere else; and who may listen."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import pytest

from primitive_jobs import (
    InitializerError,
    JobError,
    JobExecutor,
    JobMemoryError,
    JobPool,
    JobTimeoutError,
    PrimitiveJob,
    WorkerDiedError,
)
from primitive_jobs._common import identity
from primitive_jobs._engine.scheduler import Scheduler

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENCE = 30.0  # s, after which what is waited for will not come
LOGGER = logging.getLogger("primitive_jobs")


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.002)


def hold(gate: Path) -> int:
    until(gate.exists, "the gate")
    return os.getpid()


def begin_and_hold(folder: Path) -> int:
    (folder / "begun").touch()
    return hold(folder / "never")


def running(job: PrimitiveJob[int]) -> int:
    until(job.running, "the job's start")
    assert job.pid is not None
    return job.pid


def fail(*_: object) -> None:
    raise ValueError("on purpose")


class Listener(logging.Handler):
    """Keeps the records, with the name of the thread that each was logged by."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.threads: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.threads.append(threading.current_thread().name)
        self.records.append(record)

    def find(self, *parts: str) -> list[logging.LogRecord]:
        return [r for r in self.records if all(part in r.getMessage() for part in parts)]

    def wait_for(self, *parts: str) -> logging.LogRecord:
        until(lambda: self.find(*parts), f"a record with {parts}")
        return self.find(*parts)[0]


@pytest.fixture
def attach() -> Iterator[Callable[[logging.Handler], None]]:
    """Listens to everything, for the time of a test."""
    level, handlers = LOGGER.level, LOGGER.handlers.copy()
    LOGGER.setLevel(logging.DEBUG)
    yield LOGGER.addHandler
    LOGGER.setLevel(level)
    LOGGER.handlers[:] = handlers


@pytest.fixture
def said(attach: Callable[[logging.Handler], None]) -> Listener:
    listener = Listener()
    attach(listener)
    return listener


def about(record: logging.LogRecord) -> tuple[object, ...]:
    """Level, worker, job's id and name."""
    names = ("levelno", "worker_pid", "job_id", "job_name")
    return tuple(getattr(record, name) for name in names)


def of(job: PrimitiveJob[int]) -> tuple[str, str]:
    return (job.job_id(), job.name)


NO_JOB = (None, None)

# --- what is told ---------------------------------------------------------------------------------


def test_the_life_of_a_worker(said: Listener) -> None:
    began = time.time()
    with JobPool(1, idle_timeout=0.02) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        left = said.wait_for(f"worker {pid} has left")
    ended = time.time()
    assert [r.getMessage() for r in said.records] == [
        "a pool of at most 1 workers is open",
        f"worker {pid} is started, in slot 1",
        f"worker {pid} is ready",
        f"worker {pid} is asked to leave: it is idle",
        f"worker {pid} has left",
        "a pool is shut down: its unfinished jobs are waited for",
        "a pool has ended",
    ]
    assert {r.levelno for r in said.records} == {logging.DEBUG}
    assert about(left) == (logging.DEBUG, pid, *NO_JOB)
    assert (left.slot, said.records[0].slot) == (1, None)  # type: ignore[attr-defined]
    # Each tells of time, thread and place of what happened, not of the logging of it.
    assert {r.threadName for r in said.records} == {"primitive_jobs-dispatcher"}
    assert set(said.threads) == {"primitive_jobs-callbacks"}
    times = [r.created for r in said.records]
    assert began <= times[0] <= times[-1] <= ended
    assert times == sorted(times)
    for record in said.records:
        assert record.msecs == pytest.approx(record.created % 1 * 1000)
        assert record.filename in ("worker_log.py", "dispatcher.py", "engine.py")


@pytest.mark.parametrize("how", ["cancel", "timeout", "memory"])
def test_a_worker_is_killed_and_replaced(said: Listener, marks: Path, how: str) -> None:
    with JobPool(1, spare_workers=0) as pool:
        view = pool.options(name="victim")
        if how == "cancel":
            job = view.submit(hold, marks / "never")
            pid = running(job)
            assert job.cancel()
            why = "was cancelled"
        elif how == "timeout":
            job = view.options(timeout=0.01).submit(hold, marks / "never")
            assert isinstance(job.exception(PATIENCE), JobTimeoutError)
            why = "passed its timeout"
        else:
            job = view.options(memory_limit=1_000_000).submit(hold, marks / "never")
            assert isinstance(job.exception(PATIENCE), JobMemoryError)
            why = "passed its memory_limit"
        new = pool.submit(os.getpid).result(PATIENCE)
        killed = said.wait_for("is killed")
        replaced = said.wait_for("replaces")
    if how == "cancel":
        assert killed.worker_pid == pid  # type: ignore[attr-defined]
    pid = killed.worker_pid  # type: ignore[attr-defined]
    label = f"victim ({job.job_id()})"
    assert killed.getMessage() == f"worker {pid} is killed: job {label} {why}"
    assert about(killed) == (logging.INFO, pid, *of(job))
    assert replaced.getMessage() == f"worker {new} replaces worker {pid}, which was killed"
    assert about(replaced) == (logging.INFO, new, *NO_JOB)
    assert said.find(f"worker {pid} is gone")
    assert not [r for r in said.records if r.levelno > logging.INFO]


def test_a_cancel_with_grace(said: Listener, marks: Path) -> None:
    with JobPool(1) as pool:
        job = pool.options(name="victim").submit(begin_and_hold, marks)
        pid = running(job)
        until((marks / "begun").exists, "its beginning")  # before it, SIGTERM alone ends it
        assert job.cancel(grace=PATIENCE)
    label = f"job victim ({job.job_id()}) was cancelled"
    assert about(said.wait_for(f"worker {pid} is sent SIGTERM: {label}"))[2:] == of(job)
    assert about(said.wait_for(f"worker {pid} is killed: {label}"))[2:] == of(job)


def test_a_timeout_with_grace(said: Listener, marks: Path) -> None:
    with JobPool(1) as pool:
        job = pool.options(name="victim", timeout=0.5, grace=PATIENCE).submit(begin_and_hold, marks)
        assert isinstance(job.exception(PATIENCE), JobTimeoutError)
    label = f"job victim ({job.job_id()}) passed its timeout"
    for what in ("is sent SIGTERM", "is killed"):
        assert about(said.wait_for(f" {what}: {label}"))[2:] == of(job)


@pytest.mark.parametrize("how", ["exits", "crashes"])
def test_a_worker_dies(said: Listener, how: str) -> None:
    function: Callable[..., object] = ctypes.string_at
    if how == "exits":
        function = os._exit
    cause = "it exited with code 3" if how == "exits" else "killed by signal SIGSEGV"
    with JobPool(1, spare_workers=0) as pool:
        job = pool.options(name="victim", retries=1).submit(function, 3)
        error = job.exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        second = error.pid
        new = pool.submit(os.getpid).result(PATIENCE)
    died = said.find("died:")
    first = died[0].worker_pid  # type: ignore[attr-defined]
    label = f"victim ({job.job_id()})"
    for record, pid in zip(died, (first, second), strict=True):
        message = record.getMessage()
        assert message.startswith(f"worker {pid} died: {cause}")
        assert message.endswith(f"; it had job {label}")
        assert about(record) == (logging.WARNING, pid, job.job_id(), "victim")
    (again,) = said.find("is tried again")
    assert again.getMessage() == (
        f"job {label} is tried again: its worker died in attempt 1; retries left: 0"
    )
    assert about(again) == (logging.WARNING, None, job.job_id(), "victim")
    assert [r.getMessage() for r in said.find("replaces")] == [
        f"worker {second} replaces worker {first}, which died",
        f"worker {new} replaces worker {second}, which died",
    ]


def test_an_idle_worker_dies(said: Listener) -> None:
    with JobPool(1, spare_workers=0) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        os.kill(pid, signal.SIGKILL)
        died = said.wait_for(f"worker {pid} died while it was idle: killed by signal SIGKILL")
    assert about(died) == (logging.WARNING, pid, *NO_JOB)


def test_a_worker_has_done_its_jobs(said: Listener) -> None:
    with JobPool(1, spare_workers=0, max_jobs_per_worker=2) as pool:
        old, _, new = [pool.submit(os.getpid).result(PATIENCE) for _ in range(3)]
    why = "had done 2 jobs (max_jobs_per_worker)"
    replaced = said.wait_for(f"worker {new} replaces worker {old}, which {why}")
    assert about(replaced) == (logging.INFO, new, *NO_JOB)
    said.wait_for(f"worker {old} is asked to leave: it {why}")


@pytest.mark.parametrize("busy", [True, False])
def test_workers_are_restarted(said: Listener, marks: Path, busy: bool) -> None:
    with JobPool(1, spare_workers=0) as pool:
        job = pool.submit(hold, marks / "gate")
        old = running(job)
        if busy:
            pool.restart_workers()
        (marks / "gate").touch()
        job.result(PATIENCE)
        if not busy:
            pool.restart_workers()
        new = pool.submit(os.getpid).result(PATIENCE)
    why = "was to be replaced (restart_workers)"
    said.wait_for(f"worker {new} replaces worker {old}, which {why}")


def test_a_spare_is_started_for_the_one_that_took_a_place(said: Listener, marks: Path) -> None:
    with JobPool(1, spare_workers=1) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        job = pool.submit(hold, marks / "never")
        pid = running(job)
        until(lambda: len(said.find("is ready")) == 2, "a spare")
        next_job = pool.submit(hold, marks / "never")
        assert job.cancel()
        spare = running(next_job)
        replaced = said.wait_for("a spare, replaces worker", str(pid))
        pool.cancel_all()
    assert replaced.worker_pid not in (pid, spare)  # type: ignore[attr-defined]


def test_no_worker_can_be_started(said: Listener) -> None:
    with JobPool(1, initializer=print, initargs=(threading.Lock(),)) as pool:
        assert isinstance(pool.submit(abs, -1).exception(PATIENCE), InitializerError)
        failed = said.wait_for("no worker could be started for slot 1: InitializerError: ")
    assert about(failed) == (logging.WARNING, None, *NO_JOB)
    assert failed.slot == 1  # type: ignore[attr-defined]
    assert failed.threadName == "primitive_jobs-dispatcher"


@pytest.mark.parametrize("how", ["raises", "dies"])
def test_the_initializer_fails(said: Listener, how: str) -> None:
    function: Callable[..., object] = fail
    if how == "dies":
        function = os._exit
    with JobPool(1, initializer=function, initargs=(4,)) as pool:
        assert isinstance(pool.submit(abs, -1).exception(PATIENCE), InitializerError)
        record = said.wait_for("the pool's preload or initializer")
    pid = record.worker_pid  # type: ignore[attr-defined]
    assert about(record) == (logging.WARNING, pid, *NO_JOB)
    assert record.getMessage() == (
        f"the pool's preload or initializer raised in worker {pid}: ValueError: on purpose"
        if how == "raises"
        else f"worker {pid} died in the pool's preload or initializer: "
        "it exited with code 4 by itself"
    )


def test_a_callback_raises(said: Listener) -> None:
    with JobExecutor(1) as executor:
        future = executor.submit(abs, -1)
        job = future.job
        until(job.done, "the job's end")
        for add in (job.add_done_callback, future.add_done_callback):
            add(fail)  # at once, on this thread
            (record,) = (r for r in said.records if r.levelno == logging.ERROR)
            said.records.remove(record)  # others, of the worker, may come meanwhile
            assert about(record) == (logging.ERROR, None, *of(job))
            assert record.threadName == threading.current_thread().name
            assert record.exc_info is not None
            assert record.exc_info[0] is ValueError


def test_a_name_that_no_file_can_take(said: Listener) -> None:
    with JobPool(1) as pool:
        job = pool.options(name="a\n\ud800").submit(os._exit, 1)
        assert isinstance(job.exception(PATIENCE), WorkerDiedError)
    (died,) = said.find("died:")
    assert died.getMessage().endswith(f"it had job 'a\\n\\ud800' ({job.job_id()})")
    assert died.job_name == job.name  # type: ignore[attr-defined]


def test_where_nobody_listens_no_id_is_made_a_text(
    marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    monkeypatch.setattr(identity, "text_of", made.append)
    level = LOGGER.level
    LOGGER.setLevel(logging.CRITICAL)
    try:
        with JobPool(1) as pool:
            job = pool.submit(hold, marks / "never")
            running(job)
            assert job.cancel()
    finally:
        LOGGER.setLevel(level)
    assert not made, "that takes a while"


def test_the_dispatcher_fails(said: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    with JobPool(1) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        monkeypatch.setattr(Scheduler, "submitted", fail)
        job = pool.options(timeout=PATIENCE).submit(abs, -1)
        with pytest.raises(JobError, match="the pool's dispatcher failed"):
            job.result(PATIENCE)
    failed = said.wait_for("the pool's dispatcher failed")
    assert failed.levelno == logging.CRITICAL
    assert failed.exc_info is not None
    assert failed.exc_info[0] is ValueError
    assert said.records[-1].getMessage() == "a pool has ended"
    assert set(said.threads) == {"primitive_jobs-callbacks"}


# --- who listens (G6) -----------------------------------------------------------------------------


class Doing(Listener):
    """Does something foreign with the first record of a worker's death."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__()
        self.do: list[Callable[[], object]] = [do]
        self.did = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if self.do and "died:" in record.getMessage():
            try:
                self.do.pop()()
            finally:
                self.did.set()


def test_a_handler_blocks(attach: Callable[[logging.Handler], None]) -> None:
    release = threading.Event()
    handler = Doing(lambda: release.wait(PATIENCE))
    attach(handler)
    with JobPool(1) as pool:
        assert isinstance(pool.submit(os._exit, 1).exception(PATIENCE), WorkerDiedError)
        until(lambda: handler.find("died:"), "the handler")
        for _ in range(3):  # it is still in there
            assert isinstance(pool.submit(os._exit, 1).exception(PATIENCE), WorkerDiedError)
            assert pool.submit(abs, -1).result(PATIENCE) == 1
        assert not handler.did.is_set()
        release.set()
    assert len(handler.find("died:")) == 4


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("shown", [True, False])
def test_a_handler_raises(
    attach: Callable[[logging.Handler], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException],
    shown: bool,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", shown)

    def raise_it() -> None:
        raise error("the handler's")

    handler = Doing(raise_it)
    attach(handler)
    called: list[str] = []
    with JobPool(1) as pool:
        job = PrimitiveJob(os._exit, 1)
        job.add_done_callback(lambda _: called.append(threading.current_thread().name))
        job.submit(pool)
        assert isinstance(job.exception(PATIENCE), WorkerDiedError)
        assert pool.submit(abs, -1).result(PATIENCE) == 1
    assert handler.did.is_set()
    assert handler.records[-1].getMessage() == "a pool has ended"
    assert called == ["primitive_jobs-callbacks"]
    output = capsys.readouterr().err  # as logging itself shows it
    assert ("the handler's" in output and "--- Logging error ---" in output) is shown
    assert bool(output) is shown


def test_a_handler_submits_and_waits(attach: Callable[[logging.Handler], None]) -> None:
    results: list[int] = []
    with JobPool(1) as pool:
        handler = Doing(lambda: results.append(pool.submit(abs, -5).result(PATIENCE)))
        attach(handler)
        assert isinstance(pool.submit(os._exit, 1).exception(PATIENCE), WorkerDiedError)
        assert handler.did.wait(PATIENCE)
    assert results == [5]


def test_a_handler_shuts_the_pool_down(attach: Callable[[logging.Handler], None]) -> None:
    pool = JobPool(1)
    handler = Doing(pool.shutdown)
    attach(handler)
    assert isinstance(pool.submit(os._exit, 1).exception(PATIENCE), WorkerDiedError)
    assert handler.did.wait(PATIENCE)
    pool.shutdown()


def test_who_waits_holds_the_handlers_lock(said: Listener) -> None:
    with JobPool(1) as pool:
        said.acquire()
        try:
            for _ in range(2):
                assert isinstance(pool.submit(os._exit, 1).exception(PATIENCE), WorkerDiedError)
                assert pool.submit(abs, -1).result(PATIENCE) == 1
            assert not said.find("died:")
        finally:
            said.release()
    assert len(said.find("died:")) == 2


def test_who_waits_holds_the_lock_of_logging(said: Listener) -> None:
    """As `logging.config` does while it makes handlers, which may be slow."""
    lock = logging._lock  # type: ignore[attr-defined]
    with JobPool(1) as pool, lock:
        LOGGER._cache.clear()  # type: ignore[attr-defined]  # as configuring does
        assert isinstance(pool.submit(os._exit, 1).exception(PATIENCE), WorkerDiedError)
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        assert not said.find("died:")
    assert said.find("died:")


def test_a_record_factory_is_foreign_code(said: Listener) -> None:
    before = logging.getLogRecordFactory()
    where: set[str] = set()

    def factory(*args: object, **kwargs: object) -> logging.LogRecord:
        where.add(threading.current_thread().name)
        return before(*args, **kwargs)

    logging.setLogRecordFactory(factory)
    try:
        with JobPool(1) as pool:
            pool.submit(abs, -1).result(PATIENCE)
    finally:
        logging.setLogRecordFactory(before)
    assert where == {"primitive_jobs-callbacks"}
    logging.setLogRecordFactory(fail)  # type: ignore[arg-type]
    raise_exceptions, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        with JobPool(1) as pool:
            assert pool.submit(abs, -1).result(PATIENCE) == 1
    finally:
        logging.setLogRecordFactory(before)
        logging.raiseExceptions = raise_exceptions


# --- whole programs -------------------------------------------------------------------------------


def program(source: str, folder: Path, *flags: str) -> tuple[str, str]:
    path = folder / "program.py"
    path.write_text(source)
    done = subprocess.run(
        [sys.executable, *flags, str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


UNCONFIGURED = """
import ctypes, os
from primitive_jobs import InitializerError, JobExecutor, JobPool, WorkerDiedError, run

def fail(*_):
    raise ValueError("on purpose")

if __name__ == "__main__":
    assert isinstance(run(ctypes.string_at, 0).exception(), WorkerDiedError)
    job = run(abs, -1)
    job.add_done_callback(fail)
    job.result()
    job.add_done_callback(fail)
    with JobPool(1, initializer=fail) as pool:
        assert isinstance(pool.submit(abs, -1).exception(), InitializerError)
    with JobExecutor(1) as executor:
        future = executor.submit(abs, -1)
        future.add_done_callback(fail)
        future.result()
        future.add_done_callback(fail)
    print("done")
"""


def test_nothing_is_printed_where_logging_is_not_configured(tmp_path: Path) -> None:
    assert program(UNCONFIGURED, tmp_path) == ("done\n", "")


AT_EXIT = """
import logging, sys, time
from primitive_jobs import run

if __name__ == "__main__":
    form = "%(levelname)s %(worker_pid)s %(slot)s %(job_id)s %(job_name)s %(message)s"
    logging.basicConfig(level=logging.DEBUG, format=form, stream=sys.stdout)
    logging.getLogger("concurrent").setLevel(logging.WARNING)
    run(time.sleep, 0.01)
"""


def test_all_is_told_at_the_interpreters_exit(tmp_path: Path) -> None:
    out, err = program(AT_EXIT, tmp_path)
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("DEBUG None None None None a pool of at most ")
    assert lines[-1] == "DEBUG None None None None a pool has ended"
    assert any(line.endswith("has left") for line in lines)


FORK = """
import logging, os, sys, threading, warnings
from primitive_jobs import JobPool, WorkerDiedError

warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of forks, from 3.12 on

class Handler(logging.StreamHandler):
    def emit(self, record):
        if "died:" in record.getMessage() and os.getpid() == parent:
            inside.set()  # on the pool's thread for callbacks, which has the handler's lock
            release.wait()
        super().emit(record)

if __name__ == "__main__":
    parent, inside, release = os.getpid(), threading.Event(), threading.Event()
    logging.basicConfig(
        level=logging.WARNING, handlers=[Handler(sys.stdout)], format="%(message)s"
    )
    with JobPool(1) as pool:
        error = pool.options(name="first").submit(os._exit, 3).exception()
        assert isinstance(error, WorkerDiedError)
        inside.wait()
        child = os.fork()
        if child == 0:
            with JobPool(1) as own:
                own.options(name="second").submit(os._exit, 3).exception()
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        release.set()
"""


def test_a_fork_while_a_handlers_lock_is_held(tmp_path: Path) -> None:
    out, err = program(FORK, tmp_path)
    assert err == ""
    child, parent = out.splitlines()  # each told its own, once
    assert "it had job second (" in child
    assert "it had job first (" in parent


EVERYTHING = """
import asyncio, concurrent.futures, ctypes, os, pickle, time
import primitive_jobs
from primitive_jobs import *

def fail(*_):
    raise ValueError("on purpose")

def endless():
    while True:
        pass

def running(job):
    while not job.running():
        time.sleep(0.002)
    return job

async def use_asyncio():
    # The end of the executor's block waits on this thread, which is slow to the loop of -X dev.
    asyncio.get_running_loop().slow_callback_duration = 60
    assert await asyncio.gather(run(pow, 2, 3), run(pow, 3, 2)) == [8, 9]
    try:
        await asyncio.wait_for(run(endless), timeout=0.05)
    except asyncio.TimeoutError:
        pass
    loop = asyncio.get_running_loop()
    with JobExecutor(1) as executor:
        assert await loop.run_in_executor(executor, abs, -4) == 4
        await asyncio.wrap_future(executor.submit(abs, -4))

def flags():
    import sys, warnings
    assert sys.flags.dev_mode and sys.warnoptions[-1] == "error", (sys.flags, sys.warnoptions)

if __name__ == "__main__":
    run(flags).result()
    run(fail).exception()
    job = run(abs, -1)
    job.add_done_callback(fail)
    assert pickle.loads(pickle.dumps(job)).result() == 1
    with JobPool(2, preload=("json",), env={"A": "b"}, initializer=abs, initargs=(1,)) as pool:
        assert [*pool.map(abs, range(-1000, 0))] == [*range(1000, 0, -1)]
        data = share(b"x" * 1_000_000)
        jobs = [pool.submit(len, data) for _ in range(4)]
        assert [job.result() for job in as_completed(jobs)] == [1_000_000] * 4
        wait(jobs)
        assert len(pool.submit(bytes, 1_000_000).result()) == 1_000_000
        assert running(pool.submit(endless)).cancel()
        assert running(pool.submit(time.sleep, 100)).cancel(grace=5)
        pool.options(timeout=0.05).submit(endless).exception()
        pool.options(memory_limit="1 MB").submit(endless).exception()
        pool.options(retries=1).submit(ctypes.string_at, 0).exception()
        pool.restart_workers()
        pool.resize(1)
        assert pool.submit(lambda: run(abs, -3).result()).result() == 3
        pool.submit(endless)
        pool.cancel_all()
    with JobPool(1, initializer=fail) as pool:
        pool.submit(abs, -1).exception()
    with JobExecutor(2) as executor:
        futures = [executor.submit(abs, -n) for n in range(5)]
        futures[0].add_done_callback(fail)
        concurrent.futures.wait(futures)
        assert [*executor.map(abs, range(5), chunksize=2)] == [*range(5)]
        assert executor.submit(endless).cancel()
    asyncio.run(use_asyncio())
    dropped = JobPool(1)
    dropped.submit(abs, -1)
    del dropped
    default_pool().shutdown(cancel=True)
    unfinished = run(time.sleep, 0.05)  # the interpreter's end waits for it
    print("done")
"""


def test_no_warning_from_anything(tmp_path: Path) -> None:
    assert program(EVERYTHING, tmp_path, "-X", "dev", "-W", "error") == ("done\n", "")

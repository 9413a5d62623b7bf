"""Log records of workers that the program's loggers handle: `JobPool(forward_logs=True)`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, fleet_of, hold, until

from primitive_jobs import JobExecutor, JobPool, WorkerDiedError
from primitive_jobs import pool as pool_module
from primitive_jobs._procs.process import WorkerConfig
from primitive_jobs._wire.messages import LOGGED, Lent, Message
from primitive_jobs.insight import logged as logged_module
from primitive_jobs.insight.logged import Logged
from primitive_jobs.logs import Report

cloudpickle.register_pickle_by_value(sys.modules[__name__])

NAME = "tests.forwarded"


class Listener(logging.Handler):
    """Keeps records as plain texts and values, with the thread that handled each."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.threads: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.threads.add(threading.current_thread().name)
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def heard() -> Iterator[Listener]:
    """What a logger of the program handles, from INFO on."""
    logger, listener = logging.getLogger(NAME), Listener()
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # pytest would keep all of them, too
    yield listener
    logger.propagate = True
    logger.removeHandler(listener)
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def one(heard: Listener) -> Iterator[JobPool]:
    with JobPool(1, forward_logs=True, spare_workers=0) as pool:
        yield pool


def log(*texts: str, then: Callable[[], Any] = int) -> Any:
    logger = logging.getLogger("tests.forwarded")
    for text in texts:
        logger.info(text)
    return then()


def log_for_ever() -> None:
    logger = logging.getLogger("tests.forwarded")
    number = 0
    while True:
        logger.info("%d %s", number, "x" * (number % 1000))
        number += 1


def numbers(listener: Listener) -> list[int]:
    return [int(text.split(" ")[0]) for text in listener.texts]


def of(record: logging.LogRecord) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in ("job_id", "job_name", "worker_pid"))


# --- what a record says ---------------------------------------------------------------------------


def test_a_record_tells_of_its_job(one: JobPool, heard: Listener) -> None:
    def work() -> int:
        logger = logging.getLogger(f"{NAME}.child")
        logger.info("%s and %d", "one", 2, extra={"point": {"T": [2, 3.5]}})
        logger.debug("not seen")
        return logger.isEnabledFor(logging.DEBUG)

    before = time.time()
    job = one.options(name="named").submit(work)
    pid = one.submit(os.getpid).result(PATIENCE)
    assert job.result(PATIENCE) is False, "the level decides in the worker"
    until(lambda: heard.records, "the record")
    (record,) = heard.records
    assert of(record) == (job.job_id(), "named", pid)
    assert (record.name, record.levelname) == (f"{NAME}.child", "INFO")
    assert (record.msg, record.args, record.getMessage()) == ("one and 2", None, "one and 2")
    assert (record.funcName, record.filename) == ("work", Path(__file__).name)
    assert record.point == {"T": [2, 3.5]}  # type: ignore[attr-defined]
    assert (record.process, record.processName) == (pid, f"worker {pid}")
    assert record.threadName == "MainThread"
    assert before < record.created < time.time()
    now = logging.makeLogRecord({})
    aged = now.created - record.created
    assert now.relativeCreated - record.relativeCreated == pytest.approx(1000 * aged, abs=2)
    assert {name.split("-")[-1] for name in heard.threads} == {"callbacks"}


def test_what_cannot_travel_is_a_text(one: JobPool, heard: Listener) -> None:
    def work() -> None:
        class Bad:
            def __repr__(self) -> str:
                raise ValueError("on purpose")

        logger = logging.getLogger(NAME)
        logger.info("%r", threading.Lock(), extra={"lock": threading.Lock(), "t": (1, 2)})
        around: list[Any] = []
        around.append(around)
        logger.info("odd", extra={"around": around, "bad": Bad()})
        try:
            raise KeyError("the cause")
        except KeyError:
            logger.exception("failed", stack_info=True)
        logger.info("\0 and \u20ac")

    one.submit(work).result(PATIENCE)
    until(lambda: len(heard.records) == 4, "the records")
    first, odd, failed, strange = heard.records
    assert first.getMessage().startswith("<unlocked _thread.lock")
    assert first.lock.startswith("<unlocked")  # type: ignore[attr-defined]
    assert first.t == [1, 2]  # type: ignore[attr-defined]
    assert odd.around == "<list that cannot be shown>"  # type: ignore[attr-defined]
    assert odd.bad == "<Bad that cannot be shown>"  # type: ignore[attr-defined]
    assert failed.exc_info is None
    shown = logging.Formatter("%(message)s").format(failed)
    assert shown.startswith("failed\nTraceback (most recent call last):\n")
    assert "KeyError: 'the cause'\nStack (most recent call last):" in shown
    assert strange.getMessage() == "\0 and \u20ac"


def test_one_that_is_larger_than_a_datagram(one: JobPool, heard: Listener) -> None:
    def work() -> None:
        logger = logging.getLogger(NAME)
        logger.info("begin %s end", "x" * 1_000_000, extra={"more": "y" * 1_000_000, "n": 3})
        logger.info("begin %s end", "\u20ac" * 1_000_000)
        logger.info("begin %s end", "z" * 80_000)

    one.submit(work).result(PATIENCE)
    until(lambda: len(heard.records) == 3, "the records")
    large, wide, whole = heard.records
    for record in (large, wide):
        text = record.getMessage()
        assert text.startswith("begin ")
        assert text.endswith(" end")
        assert " characters left out ...]" in text
    assert large.more == "<str too large to be forwarded>"  # type: ignore[attr-defined]
    assert large.n == 3  # type: ignore[attr-defined]
    assert whole.getMessage() == f"begin {'z' * 80_000} end"


def test_levels(heard: Listener) -> None:
    def work() -> list[bool]:
        root, logger = logging.getLogger(), logging.getLogger(NAME)
        quiet = logging.getLogger(f"{NAME}.quiet")
        logger.log(25, "between")
        quiet.warning("not seen")
        return [root.isEnabledFor(10), logger.isEnabledFor(20), quiet.isEnabledFor(30)]

    quiet = logging.getLogger(f"{NAME}.quiet")
    quiet.setLevel(logging.ERROR)
    logging.addLevelName(25, "NOTICE")
    root = logging.getLogger().level
    try:
        with JobPool(1, forward_logs=True) as pool:
            logging.getLogger().setLevel(logging.DEBUG)
            assert pool.submit(work).result(PATIENCE) == [True, True, False]
            until(lambda: heard.records, "the record")
            logging.getLogger(NAME).setLevel(logging.ERROR)  # later than the worker's start
            pool.submit(log, "too late").result(PATIENCE)
            pool.restart_workers()
            assert pool.submit(work).result(PATIENCE) == [True, False, False]
            logging.disable(logging.CRITICAL)
            pool.restart_workers()
            assert pool.submit(work).result(PATIENCE) == [False, False, False]
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger().setLevel(root)
        quiet.setLevel(logging.NOTSET)
        logging.addLevelName(25, "Level 25")
    assert [(r.levelname, r.getMessage()) for r in heard.records] == [("NOTICE", "between")]


def test_no_logger_is_made_for_each_name(one: JobPool, heard: Listener) -> None:
    one.submit(lambda: logging.getLogger(f"{NAME}.a.b.c").info("here")).result(PATIENCE)
    until(lambda: heard.records, "the record")
    assert heard.records[0].name == f"{NAME}.a.b.c"
    assert f"{NAME}.a.b.c" not in logging.Logger.manager.loggerDict


# --- when -----------------------------------------------------------------------------------------


def test_they_are_handled_before_what_the_end_calls_back(
    one: JobPool, heard: Listener, tmp_path: Path
) -> None:
    found: list[str] = []
    one.submit(hold, tmp_path / "gate")  # else one may have ended before it gets its callback
    jobs = [one.submit(log, f"a {number}", f"b {number}") for number in range(20)]
    for job in jobs:
        job.add_done_callback(lambda _: found.append(heard.texts[2 * len(found) + 1]))
    (tmp_path / "gate").touch()
    until(lambda: len(found) == len(jobs), "all callbacks")
    assert found == [f"b {number}" for number in range(20)]
    assert heard.texts == [f"{letter} {n}" for n in range(20) for letter in "ab"]


def test_all_are_handled_when_the_pool_has_ended(heard: Listener) -> None:
    def linger() -> None:
        def end() -> None:
            time.sleep(0.1)
            logging.getLogger(NAME).info("from a thread that is left")

        threading.Thread(target=end).start()

    with JobPool(2, forward_logs=True) as pool:
        jobs = [pool.submit(log, *map(str, range(50))) for _ in range(20)]
        jobs.append(pool.submit(linger))
    assert all(job.done() for job in jobs)
    assert len(heard.records) == 1001
    for job in jobs[:-1]:
        of_job = [r.getMessage() for r in heard.records if of(r)[0] == job.job_id()]
        assert of_job == list(map(str, range(50)))


@pytest.mark.parametrize("end", ["cancel", "kill"])
def test_one_that_is_killed_in_the_middle(one: JobPool, heard: Listener, end: str) -> None:
    job = one.submit(log_for_ever)
    until(lambda: len(heard.records) > 2000, "many records")
    assert job.pid is not None
    if end == "cancel":
        assert job.cancel()
    else:
        os.kill(job.pid, signal.SIGKILL)
        assert isinstance(job.exception(PATIENCE), WorkerDiedError)
    one.submit(log, "-1").result(PATIENCE)
    until(lambda: heard.texts[-1] == "-1", "the next job's")
    assert numbers(heard) == [*range(len(heard.records) - 1), -1]


def test_what_comes_before_jobs_and_beside_them(heard: Listener) -> None:
    def initialize() -> None:
        logging.getLogger(NAME).info("initializer")

    def fork() -> None:
        child = os.fork()
        logging.getLogger(NAME).info("parent" if child else "child")
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

    def many() -> None:
        def each(number: int) -> None:
            for _ in range(100):
                logging.getLogger(NAME).info("thread %d", number)

        threads = [threading.Thread(target=each, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with JobPool(1, forward_logs=True, initializer=initialize, spare_workers=0) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        forks, threads = pool.submit(fork), pool.submit(many)
        forks.result(PATIENCE)
        threads.result(PATIENCE)
    assert heard.texts[0] == "initializer"
    assert of(heard.records[0]) == (None, None, pid)
    assert sorted(heard.texts[1:3]) == ["child", "parent"]
    assert {of(r) for r in heard.records[1:3]} == {(forks.job_id(), forks.name, pid)}
    assert {of(r) for r in heard.records[3:]} == {(threads.job_id(), threads.name, pid)}
    assert sorted(heard.texts[3:]) == sorted(f"thread {n}" for n in range(8) for _ in range(100))


# --- handlers -------------------------------------------------------------------------------------


def test_a_handler_that_logs_waits_and_raises(
    one: JobPool, heard: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "log":
                logging.getLogger(NAME).info("itself")
            if record.getMessage() == "wait":
                one.submit(log, "below").result(PATIENCE)
            if record.getMessage() == "raise":
                raise ValueError("on purpose")

    odd = Odd()
    logging.getLogger(NAME).addHandler(odd)
    try:
        one.submit(log, "log", "wait", "raise", "after").result(PATIENCE)
        until(lambda: len(heard.records) == 6, "all of them")
    finally:
        logging.getLogger(NAME).removeHandler(odd)
    assert sorted(heard.texts) == sorted(["log", "itself", "wait", "below", "raise", "after"])
    assert "ValueError: on purpose" in capsys.readouterr().err


def test_a_callback_may_wait_for_a_job_that_logs_much(one: JobPool, heard: Listener) -> None:
    found: list[int] = []
    done = threading.Event()

    def log_much() -> int:
        for number in range(400):
            logging.getLogger(NAME).info("%d %s", number, "x" * 10_000)
        return 3

    def wait(_: object) -> None:
        found.append(one.submit(log_much).result(PATIENCE))
        done.set()

    one.submit(abs, -1).add_done_callback(wait)
    assert done.wait(PATIENCE)
    assert found == [3]
    until(lambda: len(heard.records) == 400, "the records")
    assert numbers(heard) == list(range(400))


def test_a_slow_handler_holds_up_the_job(one: JobPool, heard: Listener, tmp_path: Path) -> None:
    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(0.005)

    slow = Slow()
    logging.getLogger(NAME).addHandler(slow)
    try:
        job = one.submit(log_for_ever)
        until(lambda: heard.records, "the first record")
        (logs,) = [worker.traces.logs for worker in fleet_of(one).workers.values()]
        assert logs is not None
        most = 0
        for _ in range(100):
            most = max(most, logs._given - logs._handled)
            time.sleep(0.01)
        assert job.cancel()
    finally:
        logging.getLogger(NAME).removeHandler(slow)
    assert most < logged_module._MANY + (2 << 20), "and what was read at once"


class Unhandled:
    """A socket of which nothing is handled before somebody says so."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.calls: list[Callable[[], object]] = []
        report = Report(self.calls.append)
        self.logged = Logged(Lent(0, ours.detach(), LOGGED), report)

    def handle(self) -> None:
        while self.calls:
            self.calls.pop(0)()

    def fill(self) -> int:
        self.theirs.setblocking(False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.theirs.send(packed(f"{count} {'x' * 50_000}"))
                count += 1
        return count


def packed(text: str, **more: Any) -> bytes:
    fields = {"name": NAME, "levelno": 20, "created": time.time(), "msg": text}
    return json.dumps({**fields, **more}).encode()


def test_what_nobody_handles_is_left_out_in_the_end(
    heard: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged_module, "_PATIENCE", 0.0)
    monkeypatch.setattr(logged_module, "_MOST", 4 << 20)
    library = logging.getLogger("primitive_jobs")
    library.addHandler(heard)
    try:
        unhandled = Unhandled()
        logged, sent = unhandled.logged, 0
        while sent * 50_000 < 8 << 20:
            assert not logged.may_wait, "nothing is handled, so it is not waited for"
            sent += unhandled.fill()
            assert logged.read()
        assert not logged.read()
        unhandled.handle()
        kept = len(heard.records)
        assert (4 << 20) - 400_000 < kept * 50_000 <= 4 << 20
        unhandled.fill()
        logged.read()
        unhandled.handle()
        (told,) = [r for r in heard.records if r.name == "primitive_jobs"]
        assert told.getMessage().startswith(f"{sent - kept} log records of a worker are left out")
        logged.close()
        unhandled.theirs.close()
    finally:
        library.removeHandler(heard)


def test_a_job_waits_as_long_as_something_is_handled(heard: Listener) -> None:
    unhandled = Unhandled()
    logged = unhandled.logged
    while logged._given <= logged_module._MANY:
        assert not logged.may_wait
        unhandled.fill()
        logged.read()
    assert logged.may_wait
    unhandled.handle()
    assert not logged.may_wait
    logged.close()
    unhandled.theirs.close()
    assert not logged.read()


def test_nonsense(heard: Listener) -> None:
    unhandled = Unhandled()
    deep = b"[" * 50_000
    bad: list[bytes] = [
        b"",
        b"\xff",
        b"3",
        b"{}",
        deep,
        packed("x", name=3),
        packed("x", levelno="y"),
    ]
    for data in [*bad, packed("x", created=None), packed("good")]:
        unhandled.theirs.send(data)
    unhandled.logged.read()
    unhandled.handle()
    assert heard.texts == ["good"]
    unhandled.logged.close()
    unhandled.theirs.close()


# --- where ----------------------------------------------------------------------------------------


def test_the_portable_channel(heard: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "WorkerConfig", functools.partial(WorkerConfig, packets=False))
    with JobPool(1, forward_logs=True) as pool:
        pool.submit(log, "one", "two").result(PATIENCE)
    assert heard.texts == ["one", "two"]


def test_an_executor_and_retries(heard: Listener, tmp_path: Path) -> None:
    def once(mark: Path) -> None:
        log("first" if not mark.exists() else "second")
        if not mark.exists():
            mark.touch()
            os._exit(3)

    with JobExecutor(1, forward_logs=True) as executor:
        executor.submit(log, "here").result(PATIENCE)
    with JobPool(1, forward_logs=True) as pool:
        pool.options(retries=1).submit(once, tmp_path / "mark").result(PATIENCE)
    assert heard.texts == ["here", "first", "second"]


def test_a_pool_in_a_job(one: JobPool, heard: Listener) -> None:
    def outer() -> tuple[str, str]:
        with JobPool(1, forward_logs=True, spare_workers=0) as pool:
            job = pool.options(name="inner").submit(log, "from below")
            job.result(PATIENCE)
            return job.job_id(), job.name

    inner = one.submit(outer).result(PATIENCE)
    until(lambda: heard.records, "the record")
    assert heard.texts == ["from below"]
    assert of(heard.records[0])[:2] == inner


def test_by_default_nothing_changes(heard: Listener) -> None:
    def work() -> int:
        log("not seen")
        return len(logging.getLogger().handlers)

    with JobPool(1) as pool:
        assert pool.submit(work).result(PATIENCE) == 0
    assert not heard.records


def test_a_worker_imports_logging_when_a_job_does(one: JobPool) -> None:
    loaded = one.submit(eval, "sorted(__import__('sys').modules)").result(PATIENCE)
    assert not {"logging", "json", "primitive_jobs._worker.log_handler"} & {*loaded}


def test_a_job_that_closes_what_it_finds(
    one: JobPool, heard: Listener, capfd: pytest.CaptureFixture[str]
) -> None:
    def close(keep: int) -> None:
        for fd in range(3, 1100):
            with contextlib.suppress(OSError):
                if fd != keep and socket.socket(fileno=os.dup(fd)).type == socket.SOCK_DGRAM:
                    os.close(fd)
        logging.getLogger(NAME).warning("to stderr")
        log("to nowhere")

    one.submit(close, -1).exception(PATIENCE)
    assert capfd.readouterr().err.endswith("to stderr\n")
    assert not heard.records


def test_no_descriptor_is_free(heard: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    # Or pytest keeps the record of the failure, and so what here only seems not to have come.
    monkeypatch.setattr(logging.getLogger("primitive_jobs"), "propagate", False)
    with JobPool(1, forward_logs=True, spare_workers=0) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        pipes = fleet_of(pool)._pipes
        take_in = pipes.take
        failed: list[str] = []

        def take(process: Any, message: Message) -> None:
            pipes.take = take_in  # type: ignore[method-assign]
            try:
                take_in(process, Message(message.kind, extra=message.extra, lost="none is free"))
            except OSError as error:
                failed.append(str(error))
                raise

        pipes.take = take  # type: ignore[method-assign]
        pool.restart_workers()
        pool.submit(log, "by another worker").result(PATIENCE)
    (why,) = failed
    assert "no file descriptor is free here for its log records" in why
    assert heard.texts == ["by another worker"]


def test_a_pool_is_idle_again(one: JobPool, heard: Listener) -> None:
    one.submit(log, "here").result(PATIENCE)
    fleet = fleet_of(one)
    until(lambda: fleet.pause is None, "the socket's rest")
    until(lambda: heard.texts == ["here"], "the record, which another thread handles")


def test_a_fork_of_the_program_has_none_of_it(one: JobPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = one.submit(lambda: log("before", then=lambda: hold(gate)))
    until(job.running, "the job")
    (worker,) = fleet_of(one).workers.values()
    until(lambda: worker.traces.logs, "its socket")
    assert worker.traces.logs is not None
    fd = worker.traces.logs.fileno()
    child = os.fork()
    if not child:
        try:
            os.fstat(fd)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    gate.touch()
    job.result(PATIENCE)


def test_the_option() -> None:
    with pytest.raises(TypeError, match="forward_logs must be True or False"):
        JobPool(1, forward_logs=1)  # type: ignore[arg-type]
    with JobPool(1, forward_logs=True) as pool:
        assert "forward_logs" in pool._repr_html_()
    with JobPool(1) as pool:
        assert "forward_logs" not in pool._repr_html_()


def test_a_cluster_has_no_such_option() -> None:
    pytest.importorskip("distributed")
    from primitive_jobs.cluster import ClusterPool

    assert "forward_logs" not in inspect.signature(ClusterPool).parameters

"""The program's exit in every state of a job; threads, callbacks, finalizers that call anything."""

from __future__ import annotations

import contextlib
import gc
import textwrap
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE, expect, script, until, wait_for

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobPool,
    JobStatus,
    PoolClosedError,
    PrimitiveJob,
)

# --- the interpreter's exit -----------------------------------------------------------------------

PREAMBLE = """
import atexit, gc, os, pathlib, sys, threading, time
from primitive_jobs import JobCancelledError, JobPool, PoolClosedError, PrimitiveJob, run

pool = JobPool(1)
def slow(value=None, seconds=0.1):
    time.sleep(seconds)
    return value
go = pathlib.Path(__file__).with_name("go")
def slow_from_go():
    while not go.exists():
        time.sleep(0.001)
    slow()
def fail():
    raise LookupError("never asked for")
def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")
"""

EXITS = {
    "made, never submitted": ("job = PrimitiveJob(abs, -1)", ""),
    "queued": ("pool.submit(slow); pool.submit(say, 1); pool.submit(say, 2)", "1\n2\n"),
    "running": (
        "job = pool.submit(slow_from_go)\nwhile not job.running(): pass\ngo.touch()",
        "",
    ),
    "done, never asked": ("job = pool.submit(bytes, 10**6); job.wait()", ""),
    "cancelled": ("job = pool.submit(slow, 1, 1000); assert job.cancel()", ""),
    "cancelled while it ran": (
        "job = pool.submit(slow, 1, 1000)\nwhile not job.running(): pass\nassert job.cancel()",
        "",
    ),
    "error, never asked": ("job = pool.submit(fail); job.wait()", ""),
    "error to come": ("pool.submit(slow); pool.submit(fail)", ""),
    "never to be serialized": ("job = pool.submit(abs, threading.Lock())", ""),
    "callback pending": (
        "pool.submit(slow, 3).add_done_callback(lambda job: say(job.result()))",
        "3\n",
    ),
    "callback that submits": (
        """
def late(job):
    try:
        while True:  # until the exit has begun
            pool.submit(abs, -1)
            time.sleep(0.01)
    except PoolClosedError as error:
        say("closed")
pool.submit(slow).add_done_callback(late)
""",
        "closed\n",
    ),
    "result awaited in a daemon thread": (
        "job = pool.submit(slow)\nthreading.Thread(target=job.result, daemon=True).start()",
        "",
    ),
    "daemon threads with jobs that nobody ends": (
        """
def use(event):
    jobs = [pool.submit(slow, n, 0.01) for n in range(5)]
    event.set()
    while True:
        for job in jobs:
            job.result()
for _ in range(4):
    event = threading.Event()
    threading.Thread(target=use, args=(event,), daemon=True).start()
    event.wait()
""",
        "",
    ),
    "result awaited in a thread": (
        "job = pool.submit(slow, 4)\nthreading.Thread(target=lambda: say(job.result())).start()",
        "4\n",
    ),
    "sys.exit in a thread with jobs": (
        """
def use():
    with JobPool(1) as own:
        job = pool.submit(slow_from_go)
        own.submit(slow, 1, 1000)
        sys.exit(3)  # ends the thread only, and cancels its pool's jobs
thread = threading.Thread(target=use); thread.start(); thread.join()
say(len(pool.jobs())); go.touch()
""",
        "1\n",
    ),
    "map half consumed": ("results = pool.map(slow, range(5)); say(next(results))", "0\n"),
    "a pool in a cycle": (
        """
pool.me = pool; pool.submit(slow).add_done_callback(lambda job, pool=pool: say(5))
del pool; gc.collect()
""",
        "5\n",
    ),
    "submit in an atexit function": (
        """
@atexit.register
def late():
    job = PrimitiveJob(abs, -1)
    for submit in (lambda: pool.submit(abs, -1), lambda: run(abs, -1), job.submit):
        try:
            submit()
        except PoolClosedError as error:
            say("closed")
""",
        "closed\n" * 3,
    ),
    "submit in __del__": (
        """
class Late:
    def __del__(self, pool=pool, abs=abs, write=os.write, Closed=PoolClosedError):
        try:
            pool.submit(abs, -1)
        except Closed:
            write(1, b"closed\\n")
late = Late()
pool.submit(abs, -1).result()
""",
        "closed\n",
    ),
    "cancel and result in __del__": (
        """
class Late:
    def __init__(self, *jobs):
        self.jobs = jobs
    def __del__(self, write=os.write, Cancelled=JobCancelledError):
        done, never = self.jobs
        never.cancel()
        try:
            never.result()
        except Cancelled:
            write(1, b"%d cancelled\\n" % done.result())
late = Late(pool.submit(abs, -1), PrimitiveJob(abs, -1))
""",
        "1 cancelled\n",
    ),
    "imported in a thread": (
        """
for name in [name for name in sys.modules if name.startswith("primitive_jobs")]:
    del sys.modules[name]
def use():
    import primitive_jobs
    say(primitive_jobs.run(abs, -6).result())
thread = threading.Thread(target=use); thread.start(); thread.join()
""",
        "6\n",
    ),
}
UNSEEN = {"error, never asked", "error to come", "never to be serialized"}


@pytest.mark.parametrize("state", EXITS)
def test_exit_in_every_state(tmp_path: Path, state: str) -> None:
    source, output = EXITS[state]
    errors = "jobs failed, and nobody looked at it" if state in UNSEEN else ""
    expect(tmp_path, PREAMBLE + source, output, errors=errors, flags="-W error")


@pytest.mark.parametrize("where", ["while the main thread ends", "after its end"])
@pytest.mark.parametrize("attempt", range(2))
def test_first_pool_in_a_thread(tmp_path: Path, where: str, attempt: int) -> None:
    source = f"""
        import threading
        from primitive_jobs import JobPool, PoolClosedError
        import primitive_jobs.pool

        begun = threading.Event()
        def use():
            begun.set()
            if {where == "after its end"}:
                threading.main_thread().join()
            try:
                with JobPool(1) as pool:
                    print(pool.submit(abs, -1).result(20))
            except PoolClosedError:
                print("closed")
        threading.Thread(target=use).start()
        begun.wait()
    """
    with script("-c", textwrap.dedent(source)) as started:
        status, out, err = started.finish()
        assert (status, err) == (0, "")
        assert out in (["closed\n"] if where == "after its end" else ["closed\n", "1\n"])
        started.assert_nothing_left()


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


# --- threads, callbacks, finalizers ---------------------------------------------------------------


def in_threads(count: int, target: Callable[[int], object]) -> None:
    """Call ``target(n)`` in threads that begin together; none of them may raise."""
    start, errors = threading.Barrier(count), list[BaseException]()

    def call(number: int) -> None:
        try:
            start.wait(PATIENCE)
            target(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


def test_32_threads_submit_and_cancel() -> None:
    with JobPool(2) as pool:

        def use(number: int) -> None:
            jobs = [pool.submit(pow, number * 100 + n, 2) for n in range(12)]
            answers = [job.cancel() for job in jobs[::2]]
            assert answers == [job.cancelled() for job in jobs[::2]]
            for n, job in enumerate(jobs):
                if job.cancelled():
                    assert n % 2 == 0
                    with pytest.raises(JobCancelledError):
                        job.result()
                else:
                    assert job.result(PATIENCE) == (number * 100 + n) ** 2

        in_threads(32, use)
        assert pool.jobs() == []


@pytest.mark.parametrize("cancel", [False, True])
def test_32_threads_submit_while_one_shuts_down(cancel: bool) -> None:
    pool = JobPool(2)
    jobs: list[PrimitiveJob[int]] = []
    some = threading.Event()

    def use(number: int) -> None:
        if number == 0:
            assert some.wait(PATIENCE)
            pool.shutdown(cancel=cancel)
            return
        with contextlib.suppress(PoolClosedError):
            while True:
                jobs.append(pool.submit(abs, -number))
                if len(jobs) > 200:
                    some.set()

    in_threads(32, use)
    assert len(jobs) > 200
    for job in jobs:
        assert job.wait(PATIENCE)
        if job.status() is JobStatus.ERROR:  # came while the door was closing
            assert isinstance(job.exception(), PoolClosedError)
        else:
            assert cancel or job.done()


Call = Callable[[JobPool, PrimitiveJob[int], PrimitiveJob[str]], object]


def cancel_all(pool: JobPool, mine: PrimitiveJob[int], other: PrimitiveJob[str]) -> bool:
    pool.cancel_all()
    return other.cancelled()


def shut_down(pool: JobPool, mine: PrimitiveJob[int], other: PrimitiveJob[str]) -> bool:
    pool.shutdown(cancel=True)
    return other.cancelled()


def resize(pool: JobPool, mine: PrimitiveJob[int], other: PrimitiveJob[str]) -> bool:
    for count in (3, 1, 2):
        pool.resize(count)
    return pool.submit(abs, -1).result(PATIENCE) == 1


def add_done_callback(pool: JobPool, mine: PrimitiveJob[int], other: PrimitiveJob[str]) -> bool:
    called: list[PrimitiveJob[int]] = []
    mine.add_done_callback(called.append)
    return called == [mine]


def own_pool(pool: JobPool, mine: PrimitiveJob[int], other: PrimitiveJob[str]) -> bool:
    with JobPool(1) as own:
        return own.submit(abs, -3).result(PATIENCE) == 3


def leave(pool: JobPool, mine: PrimitiveJob[int], other: PrimitiveJob[str]) -> None:
    raise SystemExit(4)


CALLBACKS: dict[str, Call] = {
    "cancel": lambda pool, mine, other: other.cancel() and not mine.cancel(),
    "cancel_all": cancel_all,
    "result": lambda pool, mine, other: mine.result(0) == 1,
    "result of a new one": lambda pool, mine, other: pool.submit(abs, -2).result(PATIENCE) == 2,
    "map": lambda pool, mine, other: list(pool.map(abs, [-1, -2])) == [1, 2],
    "jobs": lambda pool, mine, other: pool.jobs() == [other],
    "resize": resize,
    "add_done_callback": add_done_callback,
    "shutdown": shut_down,
    "a pool of its own": own_pool,
    "SystemExit": leave,
}


def test_a_callback_may_call_anything(marks: Path) -> None:
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(JobPool(2))
        for what, call in CALLBACKS.items():
            if not pool._engine.accepting:
                pool = stack.enter_context(JobPool(2))
            check_callback(pool, call, [] if what == "SystemExit" else [True], marks / what)


def check_callback(pool: JobPool, call: Call, expected: list[bool], folder: Path) -> None:
    folder.mkdir()
    answers: list[object] = []
    finished = threading.Event()
    other = pool.submit(wait_for, folder / "release")
    until(other.running, "RUNNING")

    def callback(job: PrimitiveJob[int]) -> None:
        try:
            answers.append(call(pool, job, other))
        finally:
            finished.set()

    mine = pool.submit(wait_for_number, folder / "go")
    mine.add_done_callback(callback)
    (folder / "go").touch()
    assert mine.result(PATIENCE) == 1
    assert finished.wait(PATIENCE), folder.name
    assert answers == expected, folder.name
    (folder / "release").touch()
    assert other.wait(PATIENCE)
    if pool._engine.accepting:  # the thread for callbacks is still there
        after = threading.Event()
        pool.submit(abs, -1).add_done_callback(lambda job: after.set())
        assert after.wait(PATIENCE), folder.name


def wait_for_number(path: Path) -> int:
    return len(wait_for(path)) - 1


class Restless:
    """Calls everything when it is collected, on whatever thread that happens."""

    def __init__(self, pool: JobPool, number: int, counts: list[str]) -> None:
        self.me = self
        self.pool, self.number, self.counts = pool, number, counts
        self.job = pool.submit(abs, -number)

    def __del__(self) -> None:
        call: Any = (
            self.job.cancel,
            self.pool.jobs,
            lambda: self.pool.submit(abs, -1),
            lambda: self.job.result(PATIENCE),
            lambda: repr(self.pool) + repr(self.job),
        )[self.number % 5]
        try:
            call()
        except JobError:  # on a thread of the pool: it cannot wait for itself
            self.counts.append("refused")
        else:
            self.counts.append("done")


def test_finalizers_that_call_everything() -> None:
    counts: list[str] = []
    before = gc.get_threshold()
    with JobPool(2) as pool:
        try:
            gc.set_threshold(40, 1, 1)
            for number in range(200):
                Restless(pool, number, counts)
        finally:
            gc.set_threshold(*before)
        # Again and again: one that comes while another thread's is under way does nothing.
        until(lambda: gc.collect() >= 0 and len(counts) == 200, "every finalizer")
        assert counts.count("done") > 20
        assert pool.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.parametrize(
    "holder", ["itself", "a job's callback", "a job", "a view", "an exception"]
)
def test_a_pool_in_a_cycle_goes(holder: str, marks: Path) -> None:
    before = set(threading.enumerate())
    pool: Any = JobPool(1)
    job = pool.submit(wait_for, marks / "release")
    until(job.running, "RUNNING")
    box: Any = {"pool": pool}
    match holder:
        case "itself":
            pool.me = pool
        case "a job's callback":
            job.add_done_callback(lambda _, pool=pool: None)
        case "a job":
            job.metadata["pool"] = pool
        case "a view":
            pool.view = pool.options(name="x")
        case _:
            box["error"] = LookupError(pool)
            box["error"].__context__ = LookupError(box)
    box["me"] = box
    gone = weakref.ref(pool)
    del pool, box
    (marks / "release").touch()
    assert job.result(PATIENCE) == "release"
    del job

    def collected() -> bool:
        gc.collect()
        return gone() is None

    until(collected, "the end of the pool")
    until(lambda: set(threading.enumerate()) <= before, "the end of its threads")

"""What a job leaves in its worker's process does not strike the next job."""

from __future__ import annotations

import faulthandler
import gc
import inspect
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from helpers import PATIENCE, raise_it

from primitive_jobs import JobPool, WorkerDiedError

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

WATCH = 0.2  # s, of a watchdog


@pytest.fixture(scope="module")
def pool() -> Iterator[JobPool]:
    """One worker, which nothing of this may harm."""
    with JobPool(1, env={"GIVEN": "by the pool"}, idle_timeout=None, spare_workers=0) as shared:
        pid = shared.submit(os.getpid).result(PATIENCE)
        yield shared
        assert shared.submit(os.getpid).result(PATIENCE) == pid


def same_after(pool: JobPool, look: Callable[[], object], leave: Callable[[], object]) -> None:
    """Both ways of a job to end: what the next one finds is as before."""

    def leave_and_raise() -> None:
        leave()
        raise LookupError

    before = pool.submit(look).result(PATIENCE)
    pool.submit(leave).result(PATIENCE)
    assert pool.submit(look).result(PATIENCE) == before
    assert type(pool.submit(leave_and_raise).exception(PATIENCE)) is LookupError
    assert pool.submit(look).result(PATIENCE) == before


def test_calls_of_one_job(pool: JobPool, tmp_path: Path) -> None:
    """Those of a chunk are to each other what jobs are."""

    def look_and_leave(_: int) -> tuple[object, ...]:
        mask = os.umask(0o111)
        os.umask(mask)
        found = Path.cwd(), dict(os.environ), mask, signal.getsignal(signal.SIGALRM)
        os.chdir(tmp_path)
        os.environ["GIVEN"] = os.environ["LEFT"] = "by a call"
        os.umask(0o123)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        return found

    for size in (1, 10, None):
        found = [repr(one) for one in pool.map(look_and_leave, range(20), chunksize=size)]
        assert len({*found}) == 1, size


def test_a_watchdog_of_an_earlier_call(pool: JobPool) -> None:
    def watch_or_sleep(watch: bool) -> int:
        if watch:
            faulthandler.dump_traceback_later(WATCH, exit=True)
        else:
            time.sleep(2 * WATCH)
        return os.getpid()

    pids = list(pool.map(watch_or_sleep, [True, False], chunksize=2))
    assert pids == [pool.submit(os.getpid).result(PATIENCE)] * 2


@pytest.mark.parametrize("ring", [signal.alarm, signal.setitimer])
def test_an_alarm_of_an_earlier_call(pool: JobPool, ring: Callable[..., object]) -> None:
    def ring_or_wait(late: bool) -> tuple[int, bool]:
        blocked = signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        if late:
            time.sleep(1.3)
        elif ring is signal.alarm:
            signal.alarm(1)
        else:
            signal.setitimer(signal.ITIMER_REAL, WATCH)
        return os.getpid(), blocked

    found = list(pool.map(ring_or_wait, [False, True], chunksize=2))
    assert found == [(pool.submit(os.getpid).result(PATIENCE), False)] * 2


# --- what is taken back --------------------------------------------------------------------------


def test_a_watchdog(pool: JobPool) -> None:
    pid = pool.submit(os.getpid).result(PATIENCE)
    pool.submit(faulthandler.dump_traceback_later, WATCH, exit=True).result(PATIENCE)
    pool.submit(time.sleep, 2 * WATCH).result(PATIENCE)  # it would have come meanwhile
    assert pool.submit(os.getpid).result(PATIENCE) == pid


def test_a_watchdog_that_is_awaited() -> None:
    def hang() -> None:
        faulthandler.dump_traceback_later(WATCH, exit=True, file=os.open(os.devnull, os.O_WRONLY))
        time.sleep(PATIENCE)

    with JobPool(1) as pool:
        assert isinstance(pool.submit(hang).exception(PATIENCE), WorkerDiedError)


def test_the_working_directory(pool: JobPool, tmp_path: Path) -> None:
    same_after(pool, os.getcwd, lambda: os.chdir(tmp_path))


def test_a_working_directory_by_its_descriptor(pool: JobPool, tmp_path: Path) -> None:
    def leave() -> None:
        folder = os.open(tmp_path, os.O_RDONLY)
        (os.chdir if os.chdir in os.supports_fd else os.fchdir)(folder)
        os.close(folder)

    same_after(pool, os.getcwd, leave)


def test_watched_functions_are_what_they_were(pool: JobPool) -> None:
    for name in ("chdir", "fchdir", "umask", "putenv", "unsetenv"):
        assert pool.submit(getattr, os, name).result(PATIENCE) is getattr(os, name)
    shown = pool.submit(lambda: str(inspect.signature(os.chdir))).result(PATIENCE)
    assert shown == str(inspect.signature(os.chdir))
    error = pool.submit(os.chdir, "/nowhere/at all").exception(PATIENCE)
    assert isinstance(error, FileNotFoundError)


def test_a_working_directory_that_is_gone(pool: JobPool, tmp_path: Path) -> None:
    def leave() -> None:
        folder = tmp_path / "passing"
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()

    same_after(pool, os.getcwd, leave)


def test_a_worker_whose_directory_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    monkeypatch.chdir(home)
    with JobPool(1) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        home.rmdir()
        assert isinstance(pool.submit(os.getcwd).exception(PATIENCE), FileNotFoundError)
        pool.submit(os.chdir, other).result(PATIENCE)
        assert pool.submit(os.getpid).result(PATIENCE) == pid
        home.mkdir()
        pool.submit(abs, -1).result(PATIENCE)
        assert pool.submit(os.getcwd).result(PATIENCE) == str(home)


def change_variables() -> None:
    os.environ["GIVEN"] = "by a job"
    os.environ["MADE"] = "by a job"
    os.environb[b"BYTES\xff"] = b"\xfe"
    os.environ.pop("PATH", None)


def put_another_environment() -> None:
    os.environ = {"GIVEN": "elsewhere"}  # type: ignore[assignment]  # noqa: B003


def remove_variables() -> None:
    os.environ.clear()


@pytest.mark.parametrize("leave", [change_variables, put_another_environment, remove_variables])
def test_environment_variables(pool: JobPool, leave: Callable[[], object]) -> None:
    def look() -> tuple[object, object]:
        """As Python sees them, and as a child process does."""
        code = "import os; print(sorted(os.environb.items()))"
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=True)
        return sorted(os.environ.items()), done.stdout

    same_after(pool, look, leave)


def test_the_umask(pool: JobPool) -> None:
    def look() -> int:
        mask = os.umask(0)
        os.umask(mask)
        return mask

    same_after(pool, look, lambda: os.umask(0o753))


def test_what_traces_and_profiles(pool: JobPool) -> None:
    def look() -> tuple[object, object]:
        return sys.gettrace(), sys.getprofile()

    def leave() -> None:
        sys.settrace(lambda *_: None)
        sys.setprofile(lambda *_: None)

    assert pool.submit(look).result(PATIENCE) == (None, None)
    same_after(pool, look, leave)


def test_a_trace_that_raises(pool: JobPool) -> None:
    def leave() -> None:
        def trace(*_: object) -> None:
            raise LookupError("traced")

        sys.settrace(trace)

    assert type(pool.submit(leave).exception(PATIENCE)) is LookupError
    assert pool.submit(sys.gettrace).result(PATIENCE) is None


def test_the_collector(pool: JobPool) -> None:
    same_after(pool, gc.isenabled, gc.disable)


def test_standard_streams(pool: JobPool) -> None:
    def look() -> list[str]:
        return [getattr(sys, name).name for name in ("stdin", "stdout", "stderr")]

    def replace() -> None:
        sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()

    def delete() -> None:
        del sys.stdin, sys.stdout, sys.stderr

    same_after(pool, look, replace)
    same_after(pool, look, delete)


def wrap_output() -> None:
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", line_buffering=True)


def detach_output() -> None:
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8")


def open_output_again() -> None:
    sys.stdout = os.fdopen(1, "w", 1)


@pytest.mark.parametrize("leave", [wrap_output, detach_output, open_output_again])
def test_a_stream_over_the_same_descriptor(leave: Callable[[], object]) -> None:
    """Its end would close the descriptor, and the next file that is opened would get its number."""

    def show() -> bool:
        gc.collect()
        print(end="", flush=True)
        return os.fstat(1) is not None

    with JobPool(1) as pool:
        pool.submit(leave).result(PATIENCE)
        assert [pool.submit(show).result(PATIENCE) for _ in range(2)] == [True, True]


def test_ignored_children(pool: JobPool) -> None:
    def look() -> int:
        return subprocess.run([sys.executable, "-S", "-c", "raise SystemExit(3)"]).returncode  # noqa: PLW1510

    assert pool.submit(look).result(PATIENCE) == 3
    same_after(pool, look, lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN) and None)


def test_a_broken_pipe(pool: JobPool) -> None:
    def look() -> str:
        read, write = os.pipe()
        os.close(read)
        try:
            os.write(write, b"x")
        except BrokenPipeError:
            return "told"
        finally:
            os.close(write)
        return "written"

    same_after(pool, look, lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL) and None)


def test_a_handler_of_alarms(pool: JobPool) -> None:
    def leave() -> None:
        signal.signal(signal.SIGALRM, lambda *_: None)

    same_after(pool, lambda: signal.getsignal(signal.SIGALRM) is signal.SIG_DFL, leave)


def leave_an_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.1)


def leave_a_raising_alarm() -> None:
    signal.signal(signal.SIGALRM, lambda *_: raise_it(ValueError("the alarm of another job")))
    signal.setitimer(signal.ITIMER_REAL, 0.1)


@pytest.mark.parametrize("attack", [leave_an_alarm, leave_a_raising_alarm])
def test_an_alarm_left_ticking(attacked: JobPool, attack: Callable[[], None]) -> None:
    attacked.submit(attack).result(PATIENCE)
    assert attacked.submit(time.sleep, 0.3).result(PATIENCE) is None


def test_an_alarm_in_an_idle_worker(attacked: JobPool) -> None:
    pid = attacked.submit(os.getpid).result(PATIENCE)
    attacked.submit(leave_a_raising_alarm).result(PATIENCE)
    end = time.monotonic() + 0.3  # nothing tells that the alarm was nobody's
    while time.monotonic() < end:
        time.sleep(0.01)
    assert attacked.submit(os.getpid).result(PATIENCE) == pid


def block_all_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def clean_up(folder: Path) -> None:
    try:
        (folder / "started").touch()
        while True:  # CPython sees a signal that comes right before a sleep when that is over
            time.sleep(0.01)
    finally:
        (folder / "cleaned").touch()


def test_blocked_signals_cost_the_next_job_its_grace(attacked: JobPool, marks: Path) -> None:
    attacked.submit(block_all_signals).result(PATIENCE)
    job = attacked.submit(clean_up, marks)
    while not (marks / "started").exists():
        time.sleep(0.002)
    assert job.cancel(grace=PATIENCE) is True
    assert (marks / "cleaned").exists()


def disable_stacks() -> None:
    faulthandler.disable()


def send_stacks_elsewhere() -> None:
    faulthandler.enable(os.open(os.devnull, os.O_WRONLY))


@pytest.mark.parametrize("leave", [disable_stacks, send_stacks_elsewhere])
def test_where_stacks_go(leave: Callable[[], object]) -> None:
    def crash_here() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    with JobPool(1, spare_workers=0) as pool:
        pool.submit(leave).result(PATIENCE)
        error = pool.submit(crash_here).exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
        assert error.stack is not None
        assert "in crash_here" in error.stack


# --- what an import sets --------------------------------------------------------------------------


def test_what_an_import_sets_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module stays, too, and sets nothing again."""
    (tmp_path / "setting.py").write_text(
        f"""
import os, signal
os.environ["GIVEN"] = "by a module"
del os.environ["OTHER"]
os.chdir({str(tmp_path)!r})
os.umask(0o70)
def ring(*args): pass
signal.signal(signal.SIGALRM, ring)

def look(*args):
    mask = os.umask(0o70)
    alarm = signal.getsignal(signal.SIGALRM) is ring
    return os.environ["GIVEN"], "OTHER" in os.environ, os.getcwd(), mask, alarm
"""
    )

    def look(_: int = 0) -> tuple[Any, ...]:
        import setting  # type: ignore[import-not-found]

        return setting.look()  # type: ignore[no-any-return]

    monkeypatch.syspath_prepend(tmp_path)  # of the workers, too
    expected = "by a module", False, str(tmp_path), 0o70, True
    with JobPool(1, env={"OTHER": "there"}) as pool:
        assert [pool.submit(look).result(PATIENCE) for _ in range(3)] == [expected] * 3
        pool.submit(change_variables).result(PATIENCE)
        pool.submit(os.chdir, "/").result(PATIENCE)
        pool.submit(os.umask, 0).result(PATIENCE)
        pool.submit(lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN) and None).result(PATIENCE)
        assert pool.submit(look).result(PATIENCE) == expected
    with JobPool(1, env={"OTHER": "there"}) as pool:
        assert [*pool.map(look, range(10), chunksize=5)] == [expected] * 10


# --- what an initializer sets ---------------------------------------------------------------------


def test_what_an_initializer_sets_stays(tmp_path: Path) -> None:
    def initialize(folder: Path) -> None:
        os.chdir(folder)
        os.environ["MADE"] = "by the initializer"
        os.umask(0o70)
        sys.setrecursionlimit(4321)
        gc.disable()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def look() -> tuple[Any, ...]:
        mask = os.umask(0o70)
        pipe = signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL
        limit = sys.getrecursionlimit()
        return str(Path.cwd()), os.environ["MADE"], mask, limit, gc.isenabled(), pipe

    expected = str(tmp_path), "by the initializer", 0o70, 4321, False, True
    with JobPool(1, initializer=initialize, initargs=(tmp_path,)) as pool:
        assert [pool.submit(look).result(PATIENCE) for _ in range(3)] == [expected] * 3
        pool.submit(change_variables).result(PATIENCE)
        pool.submit(os.chdir, "/").result(PATIENCE)
        pool.submit(os.umask, 0).result(PATIENCE)
        pool.submit(sys.setrecursionlimit, 999).result(PATIENCE)
        assert pool.submit(look).result(PATIENCE) == expected


# --- what goes on ---------------------------------------------------------------------------------


def test_a_thread_that_goes_on() -> None:
    """It changes what is being taken back: the worker lives."""

    def leave() -> int:
        def go_on() -> None:
            for number in range(10**9):
                os.environ[f"LEFT{number % 50}"] = str(number)
                os.environ.pop(f"LEFT{(number + 25) % 50}", None)

        threading.Thread(target=go_on, daemon=True).start()
        return os.getpid()

    with JobPool(1) as pool:
        pid = pool.submit(leave).result(PATIENCE)
        assert {pool.submit(os.getpid).result(PATIENCE) for _ in range(100)} == {pid}
        pool.shutdown(cancel=True)

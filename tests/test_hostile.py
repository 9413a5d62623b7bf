"""Jobs and data that attack their worker, their pool or their caller: each costs itself only."""

from __future__ import annotations

import builtins
import contextlib
import faulthandler
import functools
import gc
import io
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import numpy as np
import psutil
import pytest
from arena import hold
from helpers import PATIENCE, raise_it, until

from primitive_jobs import (
    JobCancelledError,
    JobError,
    JobPool,
    JobStatus,
    JobTimeoutError,
    PrimitiveJob,
    SerializationError,
    WorkerDiedError,
    default_pool,
    run,
)
from primitive_jobs._engine import roster
from primitive_jobs._wire.parcel import HAVE_PACKETS

Attack = Callable[[], object]

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def raise_key_error() -> NoReturn:
    raise KeyError("it broke")


@pytest.fixture
def pool(attacked: JobPool) -> JobPool:
    return attacked


def ids(value: object) -> str | None:
    if isinstance(value, functools.partial):
        return "-".join(map(str, value.args))
    return value if isinstance(value, str) else getattr(value, "__name__", None)


# --- jobs that wreck their process, and return ----------------------------------------------------


WRECKS = {
    "close descriptors 0 to 2": "for fd in range(3): os.close(fd)",
    "null over descriptors 0 to 2": """
null = os.open(os.devnull, os.O_RDWR)
for fd in range(3): os.dup2(null, fd)""",
    "no streams": "sys.stdin = sys.stdout = sys.stderr = None",
    "streams that refuse": """
class Refusing(io.StringIO):
    def flush(self): raise OSError("no flush")
sys.stdout, sys.stderr = Refusing(), Refusing()""",
    "go to a folder that is gone": """
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)""",
    "lead another group": """
for lead in os.setsid, os.setpgrp, lambda: os.setpgid(0, os.getppid()):
    with contextlib.suppress(PermissionError): lead()""",
    "ignore all signals": """
for number in signal.valid_signals():
    with contextlib.suppress(OSError): signal.signal(number, signal.SIG_IGN)""",
    "block all signals": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "no collector": "gc.disable(); gc.freeze(); gc.set_debug(gc.DEBUG_SAVEALL)",
    "no recursion limit": "sys.setrecursionlimit(2**31 - 1)",
    "trace everything": """
def trace(*event): return trace
sys.settrace(trace); sys.setprofile(trace); threading.settrace(trace)""",
    "change the interpreter": """
faulthandler.disable(); warnings.simplefilter("error"); os.umask(0o777); os.kill(os.getppid(), 0)
sys.setswitchinterval(1000); socket.setdefaulttimeout(1e-9)
sys.excepthook = sys.unraisablehook = threading.excepthook = sys.exit""",
    "no environment": "os.environ.clear(); os.environ['PYTHONHOME'] = os.environ['PATH'] = 'x'",
    "no path": "sys.path[:] = ['x']; sys.path_hooks.clear(); sys.path_importer_cache.clear()",
    "forget modules": """
for name in [n for n in sys.modules if n.startswith(("primitive_jobs", "loky"))]:
    del sys.modules[name]""",
    "few descriptors": "resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))",
    "leave threads": """
def spin(end):
    while time.monotonic() < end: sum(range(1000))
for daemon in True, False:
    threading.Thread(target=spin, args=(time.monotonic() + 0.3,), daemon=daemon).start()""",
    "leave a process": """
context = multiprocessing.get_context("fork")
context.Process(target=time.sleep, args=(1000,), daemon=True).start()""",
}
MODULES = """
import contextlib, faulthandler, gc, io, multiprocessing, os, resource, signal, socket, sys
import tempfile, threading, time, warnings
"""


def wreck(what: str) -> None:
    exec(MODULES + WRECKS[what], {})


def fork_and_go_on(how: str) -> object:
    """The child returns into the worker's loop, in some way, before the parent and after it."""
    for waited_for in (True, False):
        pid = os.fork()
        if pid == 0:
            if how == "raise":
                raise ValueError("in the child")
            if how == "exit":
                sys.exit(3)
            if how == "interrupt":
                raise KeyboardInterrupt
            if how == "hang":
                time.sleep(1000)
            return bytes(1_000_000) if how == "large" else threading.Lock()
        if waited_for and how != "hang":
            os.waitpid(pid, 0)
    return None


def ruin_my_own_pools() -> None:
    with JobPool(max_workers=1) as inner:
        jobs = [inner.submit(time.sleep, 1000) for _ in range(2)]
        inner.cancel_all()
        assert all(job.cancelled() for job in jobs)
        assert isinstance(inner.submit(os._exit, 1).exception(PATIENCE), WorkerDiedError)
    default_pool().submit(time.sleep, 1000)
    default_pool().shutdown(wait=False, cancel=True)
    default_pool().shutdown(cancel=True)
    assert run(abs, -1).result(PATIENCE) == 1
    inner = JobPool(max_workers=1)  # left open
    assert inner.submit(abs, -1).result(PATIENCE) == 1
    sys.modules["left.open"] = inner  # type: ignore[assignment]


def attacked(attack: Attack) -> int:
    attack()
    return os.getpid()


WRECKERS: tuple[Attack, ...] = (
    *(functools.partial(wreck, what) for what in WRECKS),
    *(functools.partial(fork_and_go_on, how) for how in ("raise", "exit", "interrupt")),
    *(functools.partial(fork_and_go_on, how) for how in ("hang", "large", "lock")),
    ruin_my_own_pools,
)


@pytest.mark.parametrize("attack", WRECKERS, ids=ids)
def test_the_same_worker_serves_on(pool: JobPool, attack: Attack) -> None:
    pid = pool.submit(attacked, attack).result(PATIENCE)
    assert pool.submit(os.getpid).result(PATIENCE) == pid
    assert pool.submit(sorted, {3, 1, 2}).result(PATIENCE) == [1, 2, 3]
    # Comes in a file, and so does the answer; where no descriptor is left, to another worker.
    assert pool.submit(bytes.upper, b"x" * 500_000).result(PATIENCE) == b"X" * 500_000


# --- jobs that die, or raise ----------------------------------------------------------------------


def recurse() -> None:
    recurse()


def recurse_in_c() -> None:
    """More C frames than the stack has room for."""
    no_core()
    sys.setrecursionlimit(10**6)
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (64 * 1024, hard))

    def deeper(n: int) -> int:
        return functools.reduce(lambda a, _: deeper(a + 1), [n, 0])

    deeper(0)


def no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def crash_in_silence() -> None:
    no_core()
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def alarm_without_handler() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(1000)


def use_up_the_cpu_limit() -> None:
    no_core()
    used = sum(os.times()[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1, int(used) + 60))
    while True:
        pass


def unhandled_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def null_over_the_channel() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3, 2000):
        with contextlib.suppress(OSError):
            os.dup2(null, fd)


def other_socket_over_the_channel() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for fd in set(range(3, 2000)) - {ours.fileno(), theirs.fileno()}:
        with contextlib.suppress(OSError):
            os.dup2(theirs.fileno(), fd)
    ours.detach()
    theirs.detach()


def die_with_a_child_that_goes_on() -> None:
    """The child holds every descriptor of the worker, the channel too."""
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(9)


@pytest.mark.parametrize(
    ("attack", "number"),
    [
        (recurse_in_c, signal.SIGSEGV),
        (crash_in_silence, signal.SIGSEGV),
        (alarm_without_handler, signal.SIGALRM),
        (use_up_the_cpu_limit, signal.SIGXCPU),
        (unhandled_sigterm, signal.SIGTERM),
        (null_over_the_channel, None),
        (other_socket_over_the_channel, None),
        (die_with_a_child_that_goes_on, None),
    ],
    ids=ids,
)
def test_a_death_has_its_signal(
    pool: JobPool, attack: Attack, number: signal.Signals | None
) -> None:
    job = pool.submit(attack)
    error = job.exception(PATIENCE)
    assert type(error) is WorkerDiedError
    assert job.status() is JobStatus.ERROR
    assert attack.__name__ in str(error)
    if number is not None:
        assert error.signal is number
    if attack is recurse_in_c:
        assert "in deeper" in str(error)
    if attack is die_with_a_child_that_goes_on:
        assert error.exitcode == 9


def no_memory() -> bytes:
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))
    return bytes(2**28)


def no_room_for_the_result() -> bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    return bytes(2**20)


def exit_with_an_object() -> NoReturn:
    sys.exit({"not": threading.Lock()})  # type: ignore[arg-type]


def interrupt_myself() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(PATIENCE)


def endless_generator() -> Any:
    return (zero for zero in iter(int, 1))


def local_class() -> Any:
    class Local:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    return Local()


def nest(depth: int = 100_000) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def open_file() -> Any:
    return Path(os.devnull).open("w")


def take(*args: object, **kwargs: object) -> None:
    """Return nothing, whatever is given."""


@pytest.mark.parametrize(
    ("attack", "kind", "text"),
    [
        (recurse, RecursionError, "maximum recursion depth"),
        (no_memory, MemoryError, ""),
        pytest.param(
            no_room_for_the_result,
            SerializationError,
            "File too large",
            marks=pytest.mark.skipif(not HAVE_PACKETS, reason="it is no file here"),
        ),
        (exit_with_an_object, JobError, "SystemExit"),
        (interrupt_myself, JobError, "KeyboardInterrupt"),
    ],
    ids=ids,
)
def test_an_error_is_clear(pool: JobPool, attack: Attack, kind: type[Exception], text: str) -> None:
    job = pool.submit(attack)
    error = job.exception(PATIENCE)
    assert type(error) is kind
    assert text in str(error)
    assert job.status() is JobStatus.ERROR
    assert "Traceback" in str(error.__cause__)


UNPICKLABLE: tuple[tuple[Callable[[], object], str], ...] = (
    (endless_generator, "a generator"),
    (local_class, "a Local"),
    (nest, "a list"),
    (open_file, "a TextIOWrapper"),
    (threading.current_thread, "a _MainThread"),
    (sys._getframe, "a frame"),
)


def test_what_cannot_be_pickled_is_named(pool: JobPool) -> None:
    pid = pool.submit(os.getpid).result(PATIENCE)
    for make, kind in UNPICKLABLE:
        value: Any = make()
        for job, what in (
            (pool.submit(make), f"the result of {make.__name__}(), {kind}"),
            (pool.submit(take, 1, key=value), f"argument 'key' of take(), {kind}"),
        ):
            error = job.exception(PATIENCE)
            assert type(error) is SerializationError
            assert what in str(error)
            assert job.status() is JobStatus.ERROR
        getattr(value, "close", int)()
    assert pool.submit(os.getpid).result(PATIENCE) == pid


# --- jobs that do not end -------------------------------------------------------------------------


def stop_myself(folder: Path) -> None:
    (folder / "started").touch()
    os.kill(os.getpid(), signal.SIGSTOP)


def stopped_child(folder: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.kill(os.getpid(), signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    (folder / "started").touch()
    time.sleep(1000)


def print_for_ever(folder: Path) -> None:
    print("x" * 80, flush=True)
    (folder / "started").touch()
    while True:
        print("x" * 80)
        print("y" * 80, file=sys.stderr)


def blocked(folder: Path) -> None:
    wreck("ignore all signals")
    wreck("block all signals")
    (folder / "started").touch()
    while True:
        pass


def swallow_every_exception(folder: Path) -> None:
    while True:
        try:
            (folder / "started").touch()
            time.sleep(1000)
        except BaseException:
            continue


class HangingStream(io.StringIO):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def flush(self) -> None:
        (self.folder / "started").touch()
        time.sleep(1000)


def flush_for_ever(folder: Path) -> None:
    sys.stdout = HangingStream(folder)


class Slow:
    """Takes for ever to be pickled, to be unpickled, or to be dropped; once, in the worker."""

    def __init__(self, folder: Path, moment: str) -> None:
        self.folder = folder
        self.moment = moment
        self.maker = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        self.reach("pickle")
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reach("unpickle")

    def __del__(self) -> None:
        self.reach("drop")

    def reach(self, moment: str) -> None:
        if moment == self.moment and (moment == "pickle") is (os.getpid() == self.maker):
            (self.folder / "started").touch()
            time.sleep(1000)


def pickle_for_ever(folder: Path) -> Slow:
    return Slow(folder, "pickle")


@pytest.mark.parametrize(
    ("attack", "how"),
    [
        *((attack, how) for attack in ("unpickle", "drop") for how in ("cancel", "timeout")),
        *((attack, how) for attack in (stop_myself, blocked) for how in ("grace", "timeout")),
        (swallow_every_exception, "grace"),
        (stopped_child, "cancel"),
        (flush_for_ever, "cancel"),
        (pickle_for_ever, "cancel"),
        (print_for_ever, "cancel"),
    ],
    ids=ids,
)
def test_it_can_be_ended(
    pool: JobPool,
    marks: Path,
    capfd: pytest.CaptureFixture[str],
    attack: Callable[[Path], object] | str,
    how: str,
) -> None:
    view = pool.options(timeout=0.2 if how == "timeout" else None)
    if isinstance(attack, str):
        job: PrimitiveJob[Any] = view.submit(take, Slow(marks, attack))
    else:
        job = view.submit(attack, marks)
    if how == "timeout":
        with pytest.raises(JobTimeoutError):
            job.result(PATIENCE)
        assert job.status() is JobStatus.ERROR
    else:
        until((marks / "started").exists, "the attack")
        pid = job.pid
        assert job.status() is JobStatus.RUNNING
        assert job.cancel(grace=0.05 if how == "grace" else 0.0) is True
        with pytest.raises(JobCancelledError):
            job.result()
        assert pid is not None
        assert not psutil.pid_exists(pid)
    if attack is print_for_ever:
        assert "x" * 80 in capfd.readouterr().out


# --- the end of a worker --------------------------------------------------------------------------


def at_exit(folder: Path) -> None:
    import atexit

    atexit.register((folder / "works").touch)
    atexit.register(time.sleep, 1000)
    atexit.register((folder / "too").touch)


def thread_for_ever(folder: Path) -> None:
    (folder / "too").touch()
    threading.Thread(target=time.sleep, args=(1000,)).start()


def process_for_ever(folder: Path) -> None:
    (folder / "too").touch()
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()


@pytest.mark.parametrize(
    ("attack", "leave_time"),
    [
        (at_exit, 0.7),  # in which the first of its handlers has to be called
        (thread_for_ever, 0.1),
        (process_for_ever, 0.1),
    ],
    ids=ids,
)
def test_a_worker_that_does_not_leave_is_made_to(
    marks: Path,
    attack: Callable[[Path], None],
    leave_time: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roster, "LEAVE_TIME", leave_time)
    with JobPool(max_workers=2) as pool:
        job = pool.submit(attack, marks)
        job.result(PATIENCE)
    assert (marks / "too").exists()
    assert not (marks / "works").exists()
    assert job.status() is JobStatus.DONE


def test_exit_handlers_run(marks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def attack() -> None:
        import atexit

        atexit.register((marks / "works").touch)
        atexit.register(raise_key_error)

    with JobPool(max_workers=1) as pool:
        assert pool.submit(attack).result(PATIENCE) is None
    assert (marks / "works").exists()
    assert "KeyError: 'it broke'" in capfd.readouterr().err  # as in any Python program


# --- data -----------------------------------------------------------------------------------------


class Unpickles:
    """Does something when it is unpickled, anywhere but where it was made."""

    def __init__(self, action: Callable[..., object], *args: object) -> None:
        self.call = (os.getpid(), action, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unless_at_home, self.call


def _unless_at_home(maker: int, action: Callable[..., object], args: tuple[object, ...]) -> object:
    return action(*args) if os.getpid() != maker else None


@pytest.mark.parametrize(
    ("argument", "kind", "text"),
    [
        (Unpickles(os._exit, 5), WorkerDiedError, "exited with code 5"),
        (Unpickles(os.abort), WorkerDiedError, "SIGABRT"),
        (Unpickles(sys.exit, 5), SerializationError, "in the worker: SystemExit: 5"),
        (Unpickles(raise_it, KeyboardInterrupt()), SerializationError, "KeyboardInterrupt"),
        (Unpickles(raise_it, GeneratorExit()), SerializationError, "GeneratorExit"),
        (Unpickles(recurse), SerializationError, "in the worker: RecursionError"),
        (Unpickles(os.closerange, 3, 2000), WorkerDiedError, ""),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str | type | None) else "",
)
def test_an_argument_that_does_harm(
    pool: JobPool, argument: object, kind: type[Exception], text: str
) -> None:
    pool.submit(no_core).result(PATIENCE)
    job = pool.submit(take, argument)
    error = job.exception(PATIENCE)
    assert type(error) is kind
    assert text in str(error)
    assert job.status() is JobStatus.ERROR


class DeadlyError(Exception):
    def __init__(self, harm: Unpickles) -> None:
        super().__init__("deadly")
        self.harm = harm


def return_harm(mark: Path) -> Unpickles:
    return Unpickles(mark.touch)


def raise_harm(mark: Path) -> NoReturn:
    raise DeadlyError(Unpickles(mark.touch))


@pytest.mark.parametrize("attack", [return_harm, raise_harm], ids=ids)
def test_what_nobody_asks_for_is_not_unpickled(
    pool: JobPool, marks: Path, attack: Callable[[Path], object]
) -> None:
    called = threading.Event()
    job = pool.submit(attack, marks / "loaded")
    job.add_done_callback(lambda _: called.set())
    assert job.wait(PATIENCE)
    assert called.wait(PATIENCE)
    assert job.in_final_state()
    assert job.status().name in repr(job)
    assert job.cancel() is False
    assert not (marks / "loaded").exists()
    job.exception()
    assert (marks / "loaded").exists()


def return_slow(folder: Path) -> Unpickles:
    return Unpickles(hold, folder, "unpickled")


def raise_slow(folder: Path) -> NoReturn:
    raise DeadlyError(Unpickles(hold, folder, "unpickled"))


@pytest.mark.parametrize("attack", [return_slow, raise_slow], ids=ids)
def test_a_slow_unpickling_holds_up_only_who_asks(
    pool: JobPool, marks: Path, attack: Callable[[Path], object]
) -> None:
    job = pool.submit(attack, marks)
    thread = threading.Thread(target=job.exception, args=(PATIENCE,))
    thread.start()
    until((marks / "unpickled").exists, "the unpickling")
    assert job.in_final_state()
    assert [pool.submit(abs, -n).result(PATIENCE) for n in range(3)] == [0, 1, 2]
    assert thread.is_alive()
    (marks / "release unpickled").touch()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def same(value: Any) -> Any:
    return value


def bytes_to_array(value: bytes) -> Any:
    return np.frombuffer(value, np.int64) + 1


def test_300_megabytes_there_and_back(pool: JobPool) -> None:
    value = bytes(300_000_000)  # inside of the pickle; the array that comes back is not
    assert (pool.submit(bytes_to_array, value).result(PATIENCE) == 1).all()


@pytest.mark.parametrize(("count", "size"), [(100_000, 16), (2_000, 20_000)])
def test_many_buffers(pool: JobPool, count: int, size: int) -> None:
    value = [np.full(size, n % 256, np.uint8) for n in range(count)]
    got = pool.submit(same, value).result(PATIENCE)
    assert len(got) == count
    assert np.array_equal(np.concatenate(got), np.concatenate(value))


class Text(str):
    """Every method that could be called to show it raises."""

    __slots__ = ()

    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    def __format__(self, spec: str) -> NoReturn:
        raise RuntimeError("no format")

    __repr__ = __str__


class NoComparison:
    def __eq__(self, other: object) -> NoReturn:
        raise RuntimeError("no equality")

    def __bool__(self) -> NoReturn:
        raise RuntimeError("no truth")

    def __len__(self) -> NoReturn:
        raise RuntimeError("no length")

    __hash__ = None  # type: ignore[assignment]


def cyclic() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


def test_odd_values_travel(pool: JobPool) -> None:
    class Local:
        pass

    got = pool.submit(same, cyclic()).result(PATIENCE)
    assert got[1] is got
    assert type(pool.submit(same, Text("text")).result(PATIENCE)) is Text
    assert type(pool.submit(same, NoComparison()).result(PATIENCE)) is NoComparison
    assert pool.submit(same, Local).result(PATIENCE) is Local
    assert type(pool.submit(same, Local()).result(PATIENCE)) is Local
    assert type(pool.submit(same, KeyError("returned")).result(PATIENCE)) is KeyError


# --- exceptions -----------------------------------------------------------------------------------


class NoComparisonError(Exception, NoComparison):
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise RuntimeError("no attribute is set")


class Unprintable(Exception):
    def __reduce__(self) -> NoReturn:
        raise SystemExit("no pickling")

    def __repr__(self) -> NoReturn:
        raise SystemExit("no repr")

    __str__ = __repr__


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (NoComparisonError, NoComparisonError, "argument"),
        (Unprintable, JobError, "Unprintable: (its message cannot be shown)"),
        (lambda text: raise_it(local_class().lock), TypeError, "must derive from BaseException"),
    ],
    ids=["NoComparisonError", "Unprintable", "no exception"],
)
def test_an_odd_exception_arrives(
    pool: JobPool, error: Callable[[str], BaseException], kind: type[Exception], text: str
) -> None:
    def attack() -> NoReturn:
        raise error("argument")

    got = pool.submit(attack).exception(PATIENCE)
    assert type(got) is kind
    assert text in str(got)
    assert "in attack" in str(got.__cause__)


def raise_group() -> NoReturn:
    try:
        raise KeyError("context")
    except KeyError:
        inner = ValueError("inner")
        inner.__cause__ = OSError("cause of the inner")
        make: Any = getattr(builtins, "ExceptionGroup")  # noqa: B009 - 3.10 has none
        group = make("several", [inner, TypeError("other")])
        group.add_note("a note")
        raise group  # noqa: B904 - it is to have a context


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no exception groups")
def test_an_exception_group_arrives_as_it_is(pool: JobPool) -> None:
    error: Any = pool.submit(raise_group).exception(PATIENCE)
    assert type(error).__name__ == "ExceptionGroup"
    assert error.message == "several"
    assert [type(part) for part in error.exceptions] == [ValueError, TypeError]
    assert error.__notes__ == ["a note"]
    text = str(error.__cause__)
    assert all(part in text for part in ("KeyError: 'context'", "cause of the inner", "a note"))


# --- code of the user's that the library comes across ---------------------------------------------


class CallsTheLibrary:
    """Its destructor does all that can be done with a pool, on whatever thread it runs."""

    def __init__(self, pool: JobPool, job: PrimitiveJob[Any], calls: list[str]) -> None:
        self.pool, self.job, self.calls = pool, job, calls
        self.me = self

    def __del__(self) -> None:
        for call in (self.job.cancel, self.pool.jobs, self.pool.cancel_all, self.job.exception):
            with contextlib.suppress(JobError):
                call()
        with contextlib.suppress(JobError):
            self.pool.submit(abs, -1)
        self.calls.append(threading.current_thread().name)


def test_destructors_may_call_the_library() -> None:
    """The collector is made to run on the pool's threads as well."""
    calls: list[str] = []
    threshold = gc.get_threshold()
    with JobPool(max_workers=2) as pool:
        try:
            gc.set_threshold(5)
            for _ in range(100):
                job = pool.submit(time.sleep, 0)
                CallsTheLibrary(pool, job, calls)
                job.wait(PATIENCE)
        finally:
            gc.set_threshold(*threshold)

        def all_called() -> bool:
            gc.collect()  # which does nothing while another thread is at it
            return len(calls) == 100

        until(all_called, "the last one, on another thread")
        assert pool.submit(abs, -3).result(PATIENCE) == 3


class RaisesWhenDropped:
    def __del__(self) -> None:
        raise RuntimeError("dropped")


def test_a_destructor_that_raises(marks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with JobPool(max_workers=1) as pool:
        job = pool.submit(lambda: [RaisesWhenDropped()] and os.getpid())
        pid = job.result(PATIENCE)
        assert pool.submit(os.getpid).result(PATIENCE) == pid
    assert "RuntimeError: dropped" in capfd.readouterr().err  # as in any Python program


class Misnamed:
    """A callable whose names are no text."""

    __slots__ = ()
    func = 7

    def __getattribute__(self, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__doc__", "__module__"):
            return 7
        return object.__getattribute__(self, name)

    def __call__(self, value: int) -> int:
        return -value

    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")


def test_a_callable_with_odd_names(pool: JobPool) -> None:
    job = pool.submit(Misnamed(), 4)
    assert job.result(PATIENCE) == -4
    assert "Misnamed" in job.name
    assert "Misnamed" in repr(job)


class OddMapping(dict[str, Any]):
    def __bool__(self) -> NoReturn:
        raise RuntimeError("no truth")

    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")


class NoMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> NoReturn:
        raise RuntimeError("no item")

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


def test_odd_options(pool: JobPool) -> None:
    value = OddMapping(text=Text("t"), lock=threading.Lock())
    job = pool.options(metadata=value, name="\0\n%s{}\ud800").submit(os._exit, 6)
    error = job.exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    assert "\0\n%s{}\ud800" in str(error)
    assert job.metadata.keys() == {"text", "lock"}
    assert job.metadata["lock"] is value["lock"]
    assert repr(job).startswith("<PrimitiveJob")
    with pytest.raises(RuntimeError, match="no item"):  # here and now, in the caller's thread
        pool.options(metadata=NoMapping())

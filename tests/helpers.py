"""What several test modules use: waiting, jobs that wait, programs, interrupts at every opcode.

The functions travel to workers by value, so that a worker imports neither this nor pytest.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle
import psutil

from primitive_jobs import FINAL_STATES, JobPool, JobStatus, PrimitiveJob
from primitive_jobs._local.fleet import LocalFleet

if TYPE_CHECKING:
    import pytest

PATIENCE = 30.0  # s, after which what is waited for will not come
MARKER = "PRIMITIVE_JOBS_TEST"
ROOT = Path(__file__).parent.parent

cloudpickle.register_pickle_by_value(sys.modules[__name__])

# --- waiting -------------------------------------------------------------------------------------


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait for something that no event tells of."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() >= end:
            raise AssertionError(f"waited in vain for: {what}")
        time.sleep(0.002)


def gone(pid: int) -> bool:
    """Whether a process exists no more, or only as a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def case(name: object) -> Iterator[None]:
    """One of several that a test goes through: its name is the last line of a failure."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # what pytest raises is no Exception
        raise AssertionError(f"in the case {name}") from error


# --- jobs ----------------------------------------------------------------------------------------


def end_by(end: str) -> str:
    """Come to an end of this kind, as a job."""
    if end == "raised":
        raise ValueError(end)
    if end == "crashed":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif end == "exited":
        os._exit(3)
    elif end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif end == "slept":
        time.sleep(1000)
    elif end == "in C":
        sum(range(10**15))
    return end


def hold(gate: Path, value: Any = None) -> Any:
    """A job that ends when somebody makes the file ``gate``."""
    until(gate.exists, f"gate {gate.name}")
    return value


def hold_and_tell(gate: Path) -> int:
    """The same, with the pid of its process as the result."""
    until(gate.exists, f"gate {gate.name}")
    return os.getpid()


def meet(folder: Path, count: int) -> int:
    """A job that ends when ``count`` processes are in it."""
    (folder / str(os.getpid())).touch()
    until(lambda: len(list(folder.iterdir())) >= count, "the others")
    return os.getpid()


def write_mark(folder: Path, name: str, content: object = "") -> None:
    """Leave a trace; it appears complete or not at all."""
    draft = folder / f".{name}.{os.getpid()}"
    draft.write_text(str(content))
    draft.rename(folder / name)


def traces(folder: Path) -> list[Path]:
    """The traces that are there. A draft is none, nor does it stay."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def be_neighbour(folder: Path, number: int) -> tuple[int, int]:
    """Run until released by the file ``release``, then tell the pid and a value."""
    write_mark(folder, f"neighbour{number}", os.getpid())
    end = time.monotonic() + 2 * PATIENCE
    while not (folder / "release").exists() and time.monotonic() < end:
        time.sleep(0.005)
    return os.getpid(), number * number


def wait_for(path: Path) -> str:
    """A job that ends when ``path`` is there, or nobody will make it any more."""
    end = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.005)
    return path.name


def double(x: int) -> int:
    return 2 * x


def fail(message: str = "on purpose") -> None:
    raise ValueError(message)


def raise_it(error: BaseException) -> NoReturn:
    raise error


def hold_with_child(gate: Path, pids: Path) -> None:
    child = os.fork()
    if not child:
        hold(gate)
        os._exit(0)
    draft = pids.with_suffix(".draft")
    draft.write_text(f"{os.getpid()} {child}")
    draft.rename(pids)
    hold(gate)


def pids_in(file: Path) -> list[int]:
    until(file.exists, "the job's pids")
    return [int(pid) for pid in file.read_text().split()]


class Mine(Exception):
    """One with a weak reference."""


def raise_mine() -> None:
    raise Mine


# --- running scripts -----------------------------------------------------------------------------


def marked(marker: str) -> list[int]:
    """The living processes whose environment carries the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() not in (entry / "environ").read_bytes():
                    continue
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it ended while we looked, or is somebody else's
                continue
            if state not in "ZX":
                found.append(int(entry.name))
    return found


@dataclass
class Script:
    """A program that was started, and what it is to be known by."""

    process: subprocess.Popen[str]
    marker: str

    def finish(self, stdin: str | None = None) -> tuple[int, str, str]:
        """Wait for its end; return exit status, stdout and stderr."""
        out, err = self.process.communicate(stdin, timeout=PATIENCE)
        return self.process.returncode, out, err

    def assert_nothing_left(self, patience: float = 5.0) -> None:
        """Everything that it started is gone, at the latest soon."""
        until(lambda: not marked(self.marker), "the end of all its processes", patience)


@contextlib.contextmanager
def script(
    *arguments: str,
    env: dict[str, str] | None = None,
    new_session: bool = False,
    stdin: int = subprocess.PIPE,
) -> Iterator[Script]:
    """Start Python; in the end nothing of it is left, whatever happened."""
    value = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), MARKER: value, **(env or {})},
    )
    started = Script(process, f"{MARKER}={value}")
    try:
        with process:
            try:
                yield started
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        left = marked(started.marker)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def expect(
    folder: Path,
    source: str,
    output: str,
    *,
    errors: str = "",
    status: int = 0,
    how: str = "file",
    flags: str = "",
) -> None:
    """Run a script to its end: exactly this output, ``errors`` in stderr, nothing left."""
    source = textwrap.dedent(source)
    file = folder / "script.py"
    file.write_text(source)
    arguments = {"file": [str(file)], "-c": ["-c", source], "stdin": ["-"]}[how]
    with script(*flags.split(), *arguments) as started:
        ended = started.finish(source if how == "stdin" else None)
        # pytest tells what differs in the modules of tests only, not in this one.
        assert ended[:2] == (status, output), ended
        assert errors in ended[2] if errors else not ended[2], ended
        started.assert_nothing_left()


# --- Ctrl-C --------------------------------------------------------------------------------------

SOAK = 900.0  # s that a test may take which tries each place
MISSES = 5  # places in a row that a call did not come to, before it is taken to have no more


def interrupted(call: Callable[[], object], place: int) -> bool:
    """Make a call with a KeyboardInterrupt at its ``place``-th opcode in the package."""
    count = 0
    raised = False

    def step(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count, raised
        if event == "opcode":
            count += 1
            if count == place:
                raised = True
                raise KeyboardInterrupt
        return step

    def enter(frame: FrameType, event: str, arg: object) -> Any:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("primitive_jobs") or frame.f_code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = True
        return step

    call_traced(call, enter)
    return raised


def call_traced(call: Callable[[], object], trace: Callable[[FrameType, str, Any], Any]) -> None:
    """Make a call under a trace function, which may raise a KeyboardInterrupt in it."""
    # One that comes just before an ``except`` clause ends leaves that clause's exception behind as
    # the one that is being handled (CPython 3.11 to 3.13); a generator keeps that to itself.
    next(_traced(call, trace))


def _traced(
    call: Callable[[], object], trace: Callable[[FrameType, str, Any], Any]
) -> Iterator[None]:
    before = sys.gettrace()
    # Python 3.13.0 looks for opcode tracing only when tracing begins.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    yield


def sampled(stride: int) -> pytest.MarkDecorator:
    """Give a test its ``stride``: how far it is from a place that is tried to the next one.

    With ``-m soak`` each place is tried.
    """
    import pytest  # no worker's business

    everywhere = pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(SOAK)], id="all")
    return pytest.mark.parametrize("stride", [pytest.param(stride, id="some"), everywhere])


def by_turns(ones: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Parameters of a test of two: each of the ones with one of the others, by turns.

    With ``-m soak`` each is tried with the rest of them, too.
    """
    import pytest  # no worker's business

    return [
        pytest.param(one, other, marks=[pytest.mark.soak] if (m - n) % len(others) else [])
        for n, one in enumerate(ones)
        for m, other in enumerate(others)
    ]


def interrupt_everywhere(attempt: Callable[[int], bool], stride: int) -> int:
    """Call ``attempt(place)`` for one place after the other; return how many were hit.

    How far a call goes depends on what the other threads have done by then, so that the end is
    reached only when several places in a row were not.
    """
    hits = misses = 0
    for place in itertools.count(1, stride):
        if attempt(place):
            hits += 1
            misses = 0
        else:
            misses += 1
        if misses == MISSES:
            return hits
    raise AssertionError("unreachable")


def check_well(pool: JobPool, jobs: list[PrimitiveJob[int]]) -> None:
    """Every submitted job is final in bounded time, and the pool works."""
    submitted = [job for job in jobs if job.status() is not JobStatus.INITIALIZING]
    assert submitted
    for job in submitted:
        assert job.wait(PATIENCE), job
        assert job.status() in FINAL_STATES
    until(lambda: not pool.jobs(), "no job left")
    after = [pool.submit(double, i) for i in range(100)]
    assert [job.result(PATIENCE) for job in after] == [2 * i for i in range(100)]


def fleet_of(pool: JobPool) -> LocalFleet:
    """The workers of a pool, as its engine has them."""
    fleet = pool._engine._fleet
    assert isinstance(fleet, LocalFleet)
    return fleet

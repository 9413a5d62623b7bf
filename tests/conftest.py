"""The gate on every test: no thread, child process or descriptor more than before it.

Nor a signal that stays blocked: what a later test starts would inherit that.
"""

from __future__ import annotations

import gc
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from arena import Arena
from helpers import PATIENCE, meet
from makers import DEFAULT_KIND, MakeExecutor, MakePool, Makers

from primitive_jobs import JobPool
from primitive_jobs._engine.lines import MOST, Lines
from primitive_jobs._engine.slots import Slot
from primitive_jobs.monitor import protocol, server

# A shell's background job ignores Ctrl-C, one of nohup a hang-up; all that tests start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SETTLE = 5.0  # s in which what a test has ended must be gone

# Not every kernel tells of them.
_HAVE_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children").exists()
_TRACKERS = (b"resource_tracker", b"forkserver")  # loky's and multiprocessing's own


@pytest.fixture(scope="session", autouse=True)
def _pool_kind(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Have what the pools of the option ``--pool`` need for as long as all tests run."""
    running = getattr(pkgutil.resolve_name(pytestconfig.getoption("--pool")), "running", None)
    if running is None:
        yield
    else:
        with running(tmp_path_factory.mktemp("kind")):
            yield


@pytest.fixture(scope="session", autouse=True)
def _out_of_sight() -> Iterator[None]:
    """No `top` that is tested in another process looks at the pools of this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "new_name", lambda: f"{protocol.new_name()[:-1]}x")
        yield


@pytest.fixture
def in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Viewers find the pools of this test, and may look at them at any time."""
    monkeypatch.setattr(server, "new_name", protocol.new_name)


@pytest.fixture(scope="session", autouse=True)
def _trackers_run(_pool_kind: None) -> None:
    """Start loky's and multiprocessing's resource trackers: they live as long as this process.

    So does the file that multiprocessing keeps for the first of its shared values.
    """
    from multiprocessing import heap, resource_tracker

    from loky.backend import resource_tracker as loky_tracker

    resource_tracker.ensure_running()
    loky_tracker.ensure_running()
    heap.BufferWrapper(8)


# Each test asks four times, which is dear beside most tests: so no Path is made here, and psutil,
# which looks through all of the machine, is not asked.


def _names(folder: str) -> list[str]:
    return os.listdir(folder)  # noqa: PTH208


def _read(file: str) -> bytes:
    with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
        return opened.readall()


def _below(pid: int) -> Iterator[int]:
    """The processes below one."""
    try:
        for thread in _names(f"/proc/{pid}/task"):
            for child in map(int, _read(f"/proc/{pid}/task/{thread}/children").split()):
                yield child
                yield from _below(child)
    except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
        return


def _children() -> set[int]:
    if not _HAVE_CHILDREN:
        below = [child.pid for child in psutil.Process().children(recursive=True)]
    else:
        # Those after one that is reaped meanwhile may be left out, so that we look twice.
        below = [*_below(os.getpid()), *_below(os.getpid())]
    found = set()
    for pid in {*below}:
        try:
            command = _read(f"/proc/{pid}/cmdline")
            if not command and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                continue
        except (FileNotFoundError, ProcessLookupError, psutil.Error):  # it ended while we looked
            continue
        if not any(name in command for name in _TRACKERS):
            found.add(pid)
    return found


def _descriptors() -> dict[str, str]:
    found = {}
    for name in _names("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except OSError:  # the one that lists the folder
            continue
        # That of a worker, of a pool that several tests share, is open until the worker is gone.
        if not (target.endswith("/statm") and Path(target).exists()):
            found[name] = target
    return found


def _leftovers(
    threads: set[threading.Thread], children: set[int], descriptors: dict[str, str]
) -> dict[str, object]:
    more = {n: t for n, t in _descriptors().items() if n not in descriptors}
    found = {
        "threads": set(threading.enumerate()) - threads,
        "children": _children() - children,
        "descriptors": more,
    }
    return {kind: what for kind, what in found.items() if what}


@pytest.fixture(autouse=True)
def _nothing_left(_trackers_run: None) -> Iterator[None]:
    threads, children = set(threading.enumerate()), _children()
    descriptors = _descriptors()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    # A generator sees the exception that is handled where it is called from.
    assert (sys.gettrace(), sys.getprofile(), sys.exc_info()) == (None, None, (None, None, None))
    assert signal.pthread_sigmask(signal.SIG_SETMASK, blocked) == blocked
    from primitive_jobs import pool

    if pool._default is not None:
        pool._default.shutdown(cancel=True)
        pool._default = None
    end = time.monotonic() + SETTLE
    while (left := _leftovers(threads, children, descriptors)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left, f"left behind: {left}"


def pytest_collection_finish() -> None:
    """Take what is there before the first test out of the collector's sight.

    Modules and items live as long as the process, and looking through them is most of what each
    collection costs that tests ask for.
    """
    import hypothesis  # noqa: F401  # it asks the collector who holds what it is given

    gc.collect()
    gc.freeze()


@pytest.fixture
def all_objects() -> Iterator[None]:
    """`gc.get_objects` lists all that the collector knows, also from before the first test."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what a test recorded as its report, whether it passed or not."""
    for kind in ("passed", "failed"):
        for test in terminalreporter.getreports(kind):
            for name, text in test.user_properties:
                if name == "report" and test.when == "call":
                    terminalreporter.write_line(str(text))


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A folder in which jobs leave traces of having run."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "what makes the pools of tests that are not `local`, as module:name"
    parser.addoption("--pool", default=DEFAULT_KIND, help=text)
    text = "send jobs ahead to every busy worker, however long its jobs are, or to none"
    parser.addoption("--ahead", choices=("always", "never"), help=text)


def _always(lines: Lines, slot: Slot) -> int:
    if not lines.most or lines.held or slot.retiring:
        return 0
    most = lines._max_jobs_per_worker
    return MOST if most is None else min(MOST, most - slot.served - 1)


@pytest.fixture(scope="session", autouse=True)
def _sending_ahead(pytestconfig: pytest.Config) -> Iterator[None]:
    how = pytestconfig.getoption("--ahead")
    with pytest.MonkeyPatch.context() as patch:
        if how is not None:
            patch.setattr(Lines, "depth", _always if how == "always" else lambda *_: 0)
        yield


def _makers(pytestconfig: pytest.Config) -> Iterator[Makers]:
    """The one place that says which kind of pool it is."""
    makers = Makers(pytestconfig.getoption("--pool"))
    yield makers
    makers.close()


module_makers = pytest.fixture(_makers, scope="module")
makers = pytest.fixture(_makers)


@pytest.fixture
def make_pool(makers: Makers) -> MakePool:
    """Makes a pool; takes what `JobPool` takes."""
    return makers.pool


@pytest.fixture
def make_executor(makers: Makers) -> MakeExecutor:
    """Makes an executor with a pool of its own; takes a number of workers, and options."""
    return makers.executor


@pytest.fixture(scope="module")
def workers(module_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobPool]:
    """A pool of two that both run already; for jobs that do no harm to a worker."""
    with module_makers.pool(2, idle_timeout=None, spare_workers=0) as shared:
        folder = tmp_path_factory.mktemp("meeting")
        jobs = [shared.submit(meet, folder, 2) for _ in range(2)]
        assert len({job.result(PATIENCE) for job in jobs}) == 2
        yield shared


@pytest.fixture(scope="module")
def pool(workers: JobPool) -> JobPool:
    """The same, by the name that most tests know; some have a pool of another kind over it."""
    return workers


@pytest.fixture
def one(make_pool: MakePool) -> Iterator[JobPool]:
    """A pool of one worker, for this test only."""
    with make_pool(1) as fresh:
        yield fresh
        fresh.shutdown(cancel=True)


@pytest.fixture
def two(make_pool: MakePool) -> Iterator[JobPool]:
    """A pool of two workers, for this test only: one that may lose them."""
    with make_pool(2) as fresh:
        yield fresh
        fresh.shutdown(cancel=True)


@pytest.fixture(params=[True, False], ids=["packets", "stream"])
def packets(request: pytest.FixtureRequest) -> bool:
    """Whether the channel is of the fast kind, or the portable one."""
    return bool(request.param)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("arena"))
    yield arena
    arena.close()


@pytest.fixture
def attacked(arena: Arena, capfd: pytest.CaptureFixture[str]) -> Iterator[JobPool]:
    """The arena's pool; after the attack all is well in it, and nothing was printed."""
    yield arena.pool
    arena.check()
    assert capfd.readouterr() == ("", "")

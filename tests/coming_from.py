"""Run by test_coming_from: what the pages say of one peer, tried with that peer and with us.

A process of its own, as a user's: peers fork, break and leave things behind. The argument is the
peer's name, stdin has its rows, stdout gets what was seen, as JSON.
"""

from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import work
from helpers import gone

import primitive_jobs
from docs.coming_from_rows import ALL_FAIL, GOES_ON, LAMBDAS, NOTHING_MORE, TAKES_ALL
from primitive_jobs import JobExecutor, JobPool

PATIENCE = 20.0  # s, after which what is waited for will not come
IN_VAIN = 0.5  # s, after which a peer's result is taken to come never
MANY = 100_000  # items: more than is taken ahead by a pool that leaves any
CHUNK = 500  # of these in one call of a peer
NEEDED = ("cloudpickle", "pathlib", "work")  # by calls: loaded before, it takes none of their time
stack = contextlib.ExitStack()  # closed at the end
FOLDER = Path(tempfile.gettempdir()) / f"coming-from-{os.getpid()}"

TIMEOUTS = (TimeoutError, concurrent.futures.TimeoutError, multiprocessing.TimeoutError)

# --- calls ---------------------------------------------------------------------------------------


def new_mark() -> Path:
    return FOLDER / uuid.uuid4().hex


def tell(mark: Path, content: object) -> None:
    draft = mark.with_suffix(".draft")
    draft.write_text(str(content))
    draft.rename(mark)


def until(condition: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Wait for something that no event tells of; whether it came."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def begin(mark: Path) -> None:
    """Tell that it runs, and run until killed."""
    tell(mark, os.getpid())
    work.endless()


def begin_without_sigterm(mark: Path) -> None:
    """For the sake of a peer, which kills it 3 s later then: else it may be gone at once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin(mark)


def begin_with_child(mark: Path) -> None:
    tell(mark, subprocess.Popen(["sleep", "1000"]).pid)
    work.endless()


def hold(mark: Path, gate: Path) -> str:
    """Tell that it runs, and run until released."""
    tell(mark, os.getpid())
    until(gate.exists)
    return "done"


def hold_and_tell(mark: Path, gate: Path) -> None:
    hold(mark, gate)
    gate.with_suffix(".ended").touch()


def hold_through_interrupts(mark: Path, gate: Path) -> None:
    tell(mark, os.getpid())
    while not gate.exists():
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(0.002)
    gate.with_suffix(".ended").touch()


def crash_and_count(file: Path) -> None:
    with file.open("a") as opened:
        opened.write("x")
    work.crash()


def crash_after(gate: Path) -> None:
    until(gate.exists)
    work.crash()


def nap(mark: Path) -> str:
    tell(mark, os.getpid())
    time.sleep(0.3)
    return "done"


def fail() -> None:
    raise ValueError("on purpose")


def fail_at_two(x: int) -> int:
    if x == 2:
        fail()
    return x


def fail_once(mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        fail()


def fail_and_count(file: Path) -> None:
    with file.open("a") as opened:
        opened.write("x")
    fail()


def go(how: str) -> str:
    if how == "crash":
        work.crash()
    if how == "late":
        work.endless()
    return how


# --- a pool of a peer, or ours, behind one interface ---------------------------------------------


class Side(NamedTuple):
    pool: Any
    submit: Callable[..., Any]
    result: Callable[[Any, float], Any] = lambda handle, timeout: handle.result(timeout)
    map: Callable[..., Iterator[Any]] = map
    patience: float = IN_VAIN

    def runs(self, function: Callable[..., Any], *args: Any) -> bool:
        try:
            self.result(self.submit(function, *args), PATIENCE)
        except Exception:
            return False
        return True

    def error(self, handle: Any, *, in_vain: bool = False) -> Exception | None:
        """What it raises; ``in_vain``: where a peer's outcome never comes."""
        try:
            self.result(handle, self.patience if in_vain else PATIENCE)
        except Exception as error:
            return error
        return None

    def is_ours(self) -> bool:
        return isinstance(self.pool, JobPool)

    def cancel(self, handle: Any) -> bool:
        """Cancel a call; whether it is said to be. Ray has a function, which says nothing."""
        if hasattr(handle, "cancel"):
            return bool(handle.cancel())
        return self.pool.cancel(handle) is None

    def vain_or_not(self) -> float:
        """Seconds to wait for what a peer does, and we do not."""
        return IN_VAIN if self.is_ours() else PATIENCE

    def begun(self, function: Callable[..., Any] = begin, *args: Any) -> tuple[Any, int]:
        """A call that runs, and the pid that it told."""
        mark = new_mark()
        handle = self.submit(function, mark, *args)
        assert until(mark.exists), "the call did not begin"
        return handle, int(mark.read_text())


Open = Callable[[], contextlib.AbstractContextManager[Side]]


@contextlib.contextmanager
def kill_the_rest() -> Iterator[None]:
    """Kill what a peer's pool leaves running."""
    this = psutil.Process()
    before = set(this.children(recursive=True))
    try:
        yield
    finally:
        for child in set(this.children(recursive=True)) - before:
            with contextlib.suppress(psutil.Error):
                command = " ".join(child.cmdline())
                # multiprocessing goes on with the one it has, and each of its forks looks like it.
                is_server = "forkserver" in command and child.ppid() == this.pid
                if "tracker" not in command and not is_server:
                    child.kill()


@contextlib.contextmanager
def ours(workers: int = 2, timeout: float | None = None, **options: Any) -> Iterator[Side]:
    pool = JobPool(workers, **options)
    view = pool.options(timeout=timeout)
    try:
        yield Side(pool, view.submit, map=partial(view.map, chunksize=None), patience=PATIENCE)
    finally:
        pool.shutdown(cancel=True)


@functools.cache
def kept() -> Side:
    """Our pool for all that does not shut it down."""
    return stack.enter_context(ours())


@contextlib.contextmanager
def kept_pool() -> Iterator[Side]:
    yield kept()


@contextlib.contextmanager
def our_executor() -> Iterator[Side]:
    executor = JobExecutor(pool=kept().pool)
    yield Side(executor, executor.submit, patience=PATIENCE)
    executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def of_futures(workers: int = 2, **options: Any) -> Iterator[Side]:
    with kill_the_rest():
        pool = concurrent.futures.ProcessPoolExecutor(workers, **options)
        yield Side(pool, pool.submit, map=partial(pool.map, chunksize=CHUNK))
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def of_loky(workers: int = 2) -> Iterator[Side]:
    from loky import ProcessPoolExecutor

    with kill_the_rest():
        pool = ProcessPoolExecutor(workers)
        yield Side(pool, pool.submit)
        pool.shutdown(kill_workers=True)


@contextlib.contextmanager
def of_pebble(workers: int = 2, chunksize: int = CHUNK) -> Iterator[Side]:
    from pebble import ProcessPool

    with kill_the_rest():
        pool = ProcessPool(workers)
        yield Side(
            pool,
            lambda function, *args: pool.schedule(function, args),
            map=lambda *args: iter(pool.map(*args, chunksize=chunksize).result()),
        )
        pool.stop()


@contextlib.contextmanager
def of_pebble_without_pool() -> Iterator[Side]:
    from pebble import concurrent

    yield Side(concurrent, lambda function, *args: concurrent.process(function)(*args))


@contextlib.contextmanager
def of_multiprocessing(workers: int = 2, **options: Any) -> Iterator[Side]:
    with kill_the_rest():
        pool = multiprocessing.Pool(workers, **options)
        yield Side(
            pool,
            lambda function, *args: pool.apply_async(function, args),
            lambda handle, timeout: handle.get(timeout),
            lambda function, items: pool.imap(function, items, CHUNK),
        )
        pool.terminate()


@contextlib.contextmanager
def of_joblib(**options: Any) -> Iterator[Side]:
    from joblib import Parallel, delayed

    def parallel(function: Callable[..., Any], items: Iterable[Any]) -> Iterator[Any]:
        return iter(Parallel(n_jobs=2, **options)(delayed(function)(item) for item in items))

    yield Side(None, fail, map=parallel)


@functools.cache
def cluster() -> Side:
    """A Dask client with workers on this machine, for everything: it takes seconds to start."""
    import dask

    # Workers are forks of a server that has imported it: many start here, each after a harm.
    forks = {"distributed.worker.multiprocessing-method": "forkserver"}
    dask.config.set({"temporary-directory": str(FOLDER), **forks})
    from dask.distributed import Client

    client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50)
    # Else the same call is made once only.
    return Side(client, partial(client.submit, pure=False))


@contextlib.contextmanager
def of_dask() -> Iterator[Side]:
    yield cluster()
    cluster().pool.restart()  # what was cancelled goes on, and would keep its worker


@functools.cache
def ray_of_its_own() -> Side:
    """Ray on this machine, for everything; what was cancelled goes on, so that it has many CPUs."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # no file at home
    import ray

    ray.init(
        num_cpus=16, include_dashboard=False, log_to_driver=False, _temp_dir=str(FOLDER / "ray")
    )
    stack.callback(ray.shutdown)

    def submit(function: Callable[..., Any], *args: Any) -> Any:
        return ray.remote(lambda: function(*args)).remote()

    return Side(ray, submit, lambda handle, timeout: ray.get(handle, timeout=timeout))


@contextlib.contextmanager
def of_ray() -> Iterator[Side]:
    yield ray_of_its_own()


@contextlib.contextmanager
def of_jobs(module: str) -> Iterator[Side]:
    """Qiskit's class or ours, on the default pool."""
    kind = getattr(__import__(module, fromlist=["PrimitiveJob"]), "PrimitiveJob")  # noqa: B009

    def submit(function: Callable[..., Any], *args: Any) -> Any:
        job = kind(function, *args)
        job._submit()
        return job

    yield Side(kind, submit, lambda job, timeout: job.result())


# --- statements, each shown by a peer and not by us ----------------------------------------------


def lambdas_fail(side: Side) -> bool:
    return not side.runs(lambda: 1) and side.runs(abs, -1)


def late_functions_break_it(side: Side) -> bool:
    assert side.runs(abs, -1)
    name = f"late_{uuid.uuid4().hex}"
    exec(f"def {name}(): return 1", globals())
    return not side.runs(globals()[name]) and not side.runs(abs, -1)


def late_function_is_not_told(side: Side) -> bool:
    assert side.runs(abs, -1)
    name = f"late_{uuid.uuid4().hex}"
    exec(f"def {name}(): return 1", globals())
    return isinstance(side.error(side.submit(globals()[name]), in_vain=True), TIMEOUTS)


def counted(taken: list[int]) -> Iterator[int]:
    """Many numbers, noted when they are taken."""
    for number in range(MANY):
        taken.append(number)
        yield number


def takes_all_first(side: Side) -> bool:
    taken: list[int] = []
    assert next(side.map(abs, counted(taken))) == 0
    return len(taken) == MANY


def takes_all_unasked(side: Side) -> bool:
    taken: list[int] = []
    results = side.map(abs, counted(taken))
    assert next(results) == 0
    return until(lambda: len(taken) == MANY, side.vain_or_not())


def running_goes_on(side: Side) -> bool:
    gate = new_mark()
    handle, _ = side.begun(hold, gate)
    cancelled = handle.cancel()
    gate.touch()
    return not cancelled and side.error(handle) is None


def call_outlives_timeout(side: Side, timeout: float) -> bool:
    handle, pid = side.begun()
    with contextlib.suppress(*TIMEOUTS):
        # With us it is the job's own timeout that counts.
        side.result(handle, PATIENCE if side.is_ours() else timeout)
    return not gone(pid)


def death_fails_all(side: Side) -> bool:
    gate = new_mark()
    running, _ = side.begun(hold, gate)
    go_on = new_mark()
    crashing = side.submit(crash_after, go_on)
    waiting = side.submit(hold, new_mark(), gate)
    go_on.touch()
    assert side.error(crashing) is not None
    gate.touch()
    errors = [side.error(running), side.error(waiting)]
    assert all(errors) == any(errors)
    return all(isinstance(error, BrokenProcessPool) for error in errors)


def death_is_the_end(side: Side) -> bool:
    assert side.error(side.submit(work.crash)) is not None
    return not side.runs(abs, -1)


def death_is_not_told(side: Side) -> bool:
    return isinstance(side.error(side.submit(work.crash), in_vain=True), TIMEOUTS)


def bad_initializer_breaks_it(side: Side) -> bool:
    assert not side.runs(abs, -1)
    return not side.runs(abs, -1)


def initializer_is_repeated(side: Side, file: Path) -> bool:
    assert side.error(side.submit(abs, -1), in_vain=True) is not None
    assert until(file.exists)
    repeated = until(lambda: len(file.read_text()) > 5, side.vain_or_not())
    file.unlink()
    return repeated


def shutdown_waits(side: Side) -> bool:
    # Ours shall not have ended by itself, whenever the shutdown comes.
    handle, _ = side.begun(hold, new_mark()) if side.is_ours() else side.begun(nap)
    option = "cancel" if side.is_ours() else "cancel_futures"
    side.pool.shutdown(**{option: True})
    return side.error(handle) is None


def killing_is_the_end(side: Side) -> bool:
    if side.is_ours():
        side.pool.cancel_all()
    else:
        side.pool.shutdown(kill_workers=True)
    return not side.runs(abs, -1)


def cancel_returns_early(side: Side) -> bool:
    handle, pid = side.begun(begin_without_sigterm)
    assert handle.cancel()
    return not gone(pid)


def children_live_on(side: Side) -> bool:
    handle, child = side.begun(begin_with_child)
    assert side.cancel(handle)
    alive = not until(lambda: gone(child), IN_VAIN)
    if alive:
        psutil.Process(child).kill()
    return alive


def results_go_on(side: Side) -> bool:
    results = side.map(fail_at_two, range(4))
    assert [next(results), next(results)] == [0, 1]
    with contextlib.suppress(ValueError):
        next(results)
    return list(results) == [3]


def processes_are_new(side: Side) -> bool:
    pids = [side.result(side.submit(os.getpid), PATIENCE) for _ in range(2)]
    return len(set(pids)) == 2


def has_no_cancel(side: Side) -> bool:
    return not hasattr(side.begun()[0], "cancel")


def inherits(side: Side) -> bool:
    return bool(side.result(side.submit(sys.getrecursionlimit), PATIENCE) == 1234)


def after_recursion_limit(open_side: Open) -> Open:
    def open_later() -> contextlib.AbstractContextManager[Side]:
        sys.setrecursionlimit(1234)
        return open_side()

    return open_later


def end_of_block_kills(side: Side) -> bool:
    # The peer's shall not have ended by itself, whenever the block's end comes.
    handle, _ = side.begun(nap) if side.is_ours() else side.begun(hold, new_mark())
    with side.pool:
        pass
    return side.error(handle, in_vain=True) is not None


def terminated_is_not_told(side: Side) -> bool:
    handle, _ = side.begun()
    if side.is_ours():
        side.pool.shutdown(cancel=True)
    else:
        side.pool.terminate()
    return isinstance(side.error(handle, in_vain=True), TIMEOUTS)


def all_results_lost(side: Side, how: str) -> bool:
    results = []
    with contextlib.suppress(BrokenProcessPool, *TIMEOUTS):
        for result in side.map(go, ["well", how]):
            results.append(result)  # noqa: PERF402
    return not results


def same_process(side: Side) -> bool:
    return bool(side.result(side.submit(os.getpid), PATIENCE) == os.getpid())


def crash_ends_program(side: Side) -> bool:
    code = (
        f"import os; from {side.pool.__module__} import PrimitiveJob\n"
        "job = PrimitiveJob(os._exit, 3); job._submit()\n"
        "while not job.in_final_state(): pass"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 3


def status_raises(side: Side) -> bool:
    try:
        side.pool(work.simulate, 3).status()
    except Exception as error:
        return type(error).__name__ == "JobError"
    return False


def failed_is_not_pickled(side: Side) -> bool:
    try:
        pickle.dumps(side.submit(fail))
    except ValueError:
        return True
    return False


def none_is_lost(side: Side) -> bool:
    try:
        return pickle.loads(pickle.dumps(side.submit(time.sleep, 0))).result() is not None
    except Exception as error:
        return type(error).__name__ == "JobError"


def death_starts_again(side: Side) -> bool:
    file = new_mark()
    handle = side.submit(crash_and_count, file)
    assert not side.is_ours() or side.error(handle) is not None
    return until(lambda: file.exists() and len(file.read_text()) > 1, side.vain_or_not())


def cancelled_goes_on(side: Side) -> bool:
    gate = new_mark()
    handle, pid = side.begun(hold_and_tell, gate)
    handle.cancel()
    assert handle.cancelled()
    if gone(pid):
        return False
    gate.touch()
    return until(gate.with_suffix(".ended").exists)


def interrupted_goes_on(side: Side) -> bool:
    gate = new_mark()
    handle, pid = side.begun(hold_through_interrupts, gate)
    assert side.cancel(handle)
    if gone(pid):
        return False
    gate.touch()
    return until(gate.with_suffix(".ended").exists)


class Claim(NamedTuple):
    """A statement of the documentation: what shows it, of the peer and not of us."""

    shows: Callable[..., bool]
    peer: Open
    us: Open = kept_pool
    args: tuple[Any, ...] = ()

    def seen(self, side_name: str) -> bool:
        open_side: Open = getattr(self, side_name)
        with open_side() as side:
            return self.shows(side, *self.args)


one_of_ours = partial(ours, 1)
our_jobs = partial(of_jobs, "primitive_jobs")


def claims_of_futures() -> dict[str, Claim]:
    mark = new_mark()
    once: dict[str, Any] = {"initializer": fail_once}
    return {
        LAMBDAS: Claim(lambdas_fail, of_futures),
        "a function defined after the workers' start breaks the executor": Claim(
            late_functions_break_it, partial(of_futures, 1), one_of_ours
        ),
        TAKES_ALL: Claim(takes_all_first, of_futures),
        GOES_ON: Claim(running_goes_on, of_futures, our_executor),
        "only the waiting ends, the call goes on": Claim(
            call_outlives_timeout, of_futures, partial(ours, timeout=0.2, preload=NEEDED), (0.2,)
        ),
        ALL_FAIL: Claim(death_fails_all, of_futures),
        NOTHING_MORE: Claim(death_is_the_end, of_futures),
        "an initializer that raises breaks the executor": Claim(
            bad_initializer_breaks_it,
            partial(of_futures, 1, **once, initargs=(mark,)),
            partial(ours, 1, **once, initargs=(mark.with_suffix(".ours"),)),
        ),
        "running calls are waited for": Claim(shutdown_waits, of_futures, ours),
    }


def claims_of_loky() -> dict[str, Claim]:
    return {
        ALL_FAIL: Claim(death_fails_all, of_loky),
        GOES_ON: Claim(running_goes_on, of_loky),
        NOTHING_MORE: Claim(killing_is_the_end, of_loky, ours),
    }


def claims_of_pebble() -> dict[str, Claim]:
    return {
        LAMBDAS: Claim(lambdas_fail, of_pebble),
        "a function defined after the workers' start breaks the pool": Claim(
            late_functions_break_it, partial(of_pebble, 1), one_of_ours
        ),
        "it returns before the process is gone": Claim(cancel_returns_early, of_pebble),
        "what the call has started goes on": Claim(children_live_on, of_pebble),
        TAKES_ALL: Claim(takes_all_first, of_pebble),
        "results go on after an exception": Claim(results_go_on, partial(of_pebble, chunksize=1)),
        "each call has a new process": Claim(
            processes_are_new, of_pebble_without_pool, one_of_ours
        ),
    }


def claims_of_multiprocessing() -> dict[str, Claim]:
    file = new_mark()
    bad: dict[str, Any] = {"initializer": fail_and_count}
    return {
        LAMBDAS: Claim(lambdas_fail, of_multiprocessing),
        "there is no cancel": Claim(has_no_cancel, of_multiprocessing),
        "`get()` waits in vain after the worker's death": Claim(
            death_is_not_told, of_multiprocessing
        ),
        "the whole input is taken, whether results are or not": Claim(
            takes_all_unasked, of_multiprocessing
        ),
        "an initializer that raises is tried again and again": Claim(
            initializer_is_repeated,
            partial(of_multiprocessing, **bad, initargs=(file,)),
            partial(ours, **bad, initargs=(file,)),
            (file,),
        ),
        "workers are forks, which see what the program has set": Claim(
            inherits, after_recursion_limit(of_multiprocessing), after_recursion_limit(ours)
        ),
        "the block's end kills what is unfinished": Claim(
            end_of_block_kills, of_multiprocessing, ours
        ),
        "`get()` waits in vain for what was unfinished": Claim(
            terminated_is_not_told, of_multiprocessing, ours
        ),
    }


def claims_of_joblib() -> dict[str, Claim]:
    return {
        "a dead worker costs the results of all calls": Claim(
            all_results_lost, of_joblib, ours, ("crash",)
        ),
        "a late call costs the results of all calls": Claim(
            all_results_lost,
            partial(of_joblib, timeout=1),
            partial(ours, timeout=1, preload=NEEDED),
            ("late",),
        ),
    }


def claims_of_qiskit() -> dict[str, Claim]:
    jobs = partial(of_jobs, "qiskit.primitives")
    return {
        "a job is a thread of your program": Claim(same_process, jobs, our_jobs),
        "a crash ends the program": Claim(crash_ends_program, jobs, our_jobs),
        GOES_ON: Claim(running_goes_on, jobs, our_jobs),
        "a `JobError` before `_submit()`": Claim(status_raises, jobs, our_jobs),
        "a job that failed cannot be pickled": Claim(failed_is_not_pickled, jobs, our_jobs),
        "a result of None is lost": Claim(none_is_lost, jobs, our_jobs),
    }


def claims_of_dask() -> dict[str, Claim]:
    return {
        "a call whose worker died is started again": Claim(death_starts_again, of_dask),
        "the future is cancelled, and a running call goes on": Claim(cancelled_goes_on, of_dask),
    }


def claims_of_ray() -> dict[str, Claim]:
    return {
        "a call whose worker died is started again": Claim(death_starts_again, of_ray),
        "only the waiting ends, the call goes on": Claim(
            call_outlives_timeout, of_ray, partial(ours, timeout=0.2, preload=NEEDED), (0.2,)
        ),
        "a call that catches the KeyboardInterrupt goes on": Claim(interrupted_goes_on, of_ray),
        "what the call has started goes on": Claim(children_live_on, of_ray),
    }


# The table of all peers: what each column's shortcoming is shown by.
SHOWN_BY = {
    "stops a running call": running_goes_on,
    "a crash costs": death_fails_all,
    "lambdas": lambdas_fail,
    "functions defined after the workers' start": late_functions_break_it,
}
SHOWN_BY_MULTIPROCESSING = {
    "stops a running call": has_no_cancel,
    "a crash costs": death_is_not_told,
    "lambdas": lambdas_fail,
    "functions defined after the workers' start": late_function_is_not_told,
}


def try_all(claims: dict[str, Claim], side_name: str, errors: list[str]) -> dict[str, bool]:
    seen: dict[str, bool] = {}
    known: dict[Any, bool] = {}  # a column and a statement may be the same
    for text, claim in claims.items():
        key = claim.shows, claim.args
        try:
            if key not in known:
                known[key] = claim.seen(side_name)
            seen[text] = known[key]
        except Exception:
            errors.append(f"{text}:\n{traceback.format_exc()}")
    return seen


def columns(open_side: Any, shown_by: Mapping[str, Callable[..., bool]]) -> dict[str, Claim]:
    return {
        f"column: {name}": Claim(shows, partial(open_side, workers), partial(ours, workers))
        for name, shows in shown_by.items()
        for workers in [1 if name.endswith("start") else 2]
    }


# --- the code of the table -----------------------------------------------------------------------


class Peer(NamedTuple):
    claims: Callable[[], dict[str, Claim]]
    open: Open
    module: str
    """Where the names of the left column come from."""
    columns: Mapping[str, Callable[..., bool]] | None = None


PEERS = {
    "concurrent.futures": Peer(
        claims_of_futures, of_futures, "concurrent.futures", columns=SHOWN_BY
    ),
    "loky": Peer(claims_of_loky, of_loky, "loky", columns=SHOWN_BY),
    "pebble": Peer(claims_of_pebble, of_pebble, "pebble", columns=SHOWN_BY),
    "multiprocessing.Pool": Peer(
        claims_of_multiprocessing,
        of_multiprocessing,
        "multiprocessing",
        columns=SHOWN_BY_MULTIPROCESSING,
    ),
    "joblib": Peer(claims_of_joblib, of_joblib, "joblib"),
    "Qiskit": Peer(claims_of_qiskit, partial(of_jobs, "qiskit.primitives"), "qiskit.primitives"),
    "Dask": Peer(claims_of_dask, of_dask, "dask.distributed"),
    "Ray": Peer(claims_of_ray, of_ray, "work"),  # `from ray import *` wants pandas
}

HARMFUL = ("cancel", "crash", "shutdown", "terminate", "endless", "slow")  # to a pool


def value_of(code: str, module: str, names: Mapping[str, Callable[[], Any]]) -> str:
    """What the code of a cell comes to: its `result`, or its last expression, as text."""
    tree = ast.parse(code)
    made = {"pickle": pickle}
    exec(f"from {module} import *\nfrom work import *", made)
    used = {node.id: node.ctx for node in reversed([*ast.walk(tree)]) if isinstance(node, ast.Name)}
    made |= {name: make() for name, make in names.items() if isinstance(used.get(name), ast.Load)}
    if isinstance(last := tree.body[-1], ast.Expr):
        target = ast.Name("result", ast.Store())
        tree.body[-1] = ast.Assign([target], last.value, lineno=last.lineno)
    try:
        exec(compile(ast.fix_missing_locations(tree), code, "exec"), made)
    except TIMEOUTS:
        return "TimeoutError"
    except BrokenProcessPool:
        return "BrokenProcessPool"
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    result: Any = made["result"]
    return repr(list(result) if isinstance(result, Iterator) else result)


def values(cells: Sequence[str], module: str, opens: Mapping[str, Open]) -> list[str]:
    """What each cell of a column comes to; they share a pool until one of them does it harm."""
    found, sides = [], contextlib.ExitStack()
    opened: dict[Open, Side] = {}

    def side(name: str) -> Side:
        open_side = opens[name]
        if open_side not in opened:
            opened[open_side] = sides.enter_context(open_side())
        return opened[open_side]

    def pool(name: str) -> Any:
        return side(name).pool

    def call(name: str) -> Any:
        return side(name).begun()[0]

    names = {name: partial(pool, name) for name in ("pool", "executor", "client", "ray")}
    names |= {name: partial(call, name) for name in ("future", "ref", "job")}
    for code in cells:
        found.append(value_of(code, module, names))
        if any(word in code for word in HARMFUL):
            opened.clear()
            sides.close()
    sides.close()
    return found


def main(name: str) -> None:
    peer = PEERS[name]
    kinds = ["pool", "executor", "client", "ray", "future", "ref", "job"]
    of_peer = dict.fromkeys(kinds, peer.open)
    of_us: dict[str, Open] = {
        "pool": ours,
        "job": our_jobs if name == "Qiskit" else ours,
        "executor": our_executor,
        "future": our_executor,
    }
    lefts, rights = zip(*json.load(sys.stdin), strict=True)
    claims = peer.claims()
    if peer.columns:
        claims |= columns(peer.open, peer.columns)
    errors: list[str] = []
    # The peer first: a fork of a program in which threads of ours run may be stuck in a lock.
    there = values(lefts, peer.module, of_peer), try_all(claims, "peer", errors)
    here = values(rights, "primitive_jobs", of_us), try_all(claims, "us", errors)
    print(json.dumps({"there": there, "here": here, "errors": errors}), flush=True)


if __name__ == "__main__":
    FOLDER.mkdir()
    status = 0
    try:
        with kill_the_rest():
            main(sys.argv[1])
        stack.close()
        primitive_jobs.default_pool().shutdown(cancel=True)
    except BaseException:
        traceback.print_exc()
        status = 1
    shutil.rmtree(FOLDER, ignore_errors=True)
    sys.stderr.flush()
    os._exit(status)  # a job of Qiskit's that cannot be stopped would hold up the exit

"""`share`: one copy for many jobs, the same to all of them, gone with its last handle."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
from helpers import PATIENCE, until

from primitive_jobs import (
    InitializerError,
    JobPool,
    PrimitiveJob,
    SerializationError,
    as_completed,
    share,
)
from primitive_jobs._engine.dispatcher import Dispatcher
from primitive_jobs._procs import process as process_module
from primitive_jobs._wire.parcel import HAVE_PACKETS

if TYPE_CHECKING:
    from makers import MakePool

# Or each worker would import pytest first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

in_a_file = pytest.mark.skipif(not HAVE_PACKETS, reason="it is held as bytes here")
SIZE = 1 << 20  # bytes: to be told from everything else by its size


def maps(least: int = SIZE) -> list[dict[str, int]]:
    """What this process has mapped of shared data: the sizes in kB that the kernel tells."""
    found = []
    for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if "memfd:primitive_jobs" not in part:
            continue
        sizes = {n: int(kb) for n, kb in re.findall(r"(?m)^(\w+): +(\d+) kB$", part)}
        if sizes["Size"] * 1024 >= least:
            found.append(sizes)
    return found


def files() -> int:
    """How many descriptors of shared data this process holds."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder
            found += str(entry.readlink()).startswith("/memfd:primitive_jobs (")
    return found


def data() -> Any:
    return np.arange(SIZE // 8, dtype=float)


@pytest.fixture(params=[True, False], ids=["packets", "stream"])
def pool(
    make_pool: MakePool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[JobPool]:
    if not request.param:
        settings = process_module.WorkerConfig
        monkeypatch.setattr("primitive_jobs.pool.WorkerConfig", partial(settings, packets=False))
    with make_pool(1) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_cycles() -> Iterator[None]:
    """An exception that was raised and what its frames hold are a cycle, as everywhere."""
    yield
    gc.collect()


def same(pool: JobPool, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return pool.submit(function, *args, **kwargs).result(PATIENCE)


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value

    def total(self) -> float:
        return float(self.value.sum())


def test_it_arrives_as_the_object_at_any_depth(pool: JobPool) -> None:
    array = data()
    total = float(array.sum())
    shared = share(array)
    assert same(pool, lambda a: (type(a).__name__, float(a.sum())), shared) == ("ndarray", total)
    assert same(pool, lambda *, deep: float(deep["a"][0].sum()), deep={"a": [shared]}) == total
    assert same(pool, lambda: float(shared.sum())) == total  # in a closure
    assert same(pool, Holder(shared).total) == total
    assert same(pool, partial(np.sum, shared)) == total
    assert same(pool, lambda a, b: a is b, shared, [shared][0]) is True
    assert same(pool, share(lambda x: x + 1), 1) == 2  # a function is data too
    assert same(pool, lambda m: m["x"], share({"x": "y"})) == "y"


def test_each_job_has_containers_of_its_own_and_arrays_that_are_read_only(pool: JobPool) -> None:
    def spoil(value: dict[str, Any]) -> str:
        value["list"].append(1)
        for array in (value["large"], value["small"]):
            try:
                array[0] = 1
            except ValueError as error:
                text = str(error)
            else:
                return "written"
        return f"{value['list']} {text}"

    shared = share({"list": [], "large": data(), "small": np.zeros(3)})
    for _ in range(2):
        assert same(pool, spoil, shared) == "[1] assignment destination is read-only"


def test_it_is_a_snapshot(pool: JobPool) -> None:
    value = [1]
    shared = share(value)
    value.append(2)
    assert same(pool, list, shared) == [1]


@pytest.mark.local
@in_a_file
def test_a_worker_maps_it_once_and_all_share_the_pages(make_pool: MakePool) -> None:
    shared = share(data())

    def look(a: Any) -> tuple[int, list[dict[str, int]]]:
        assert a.sum() > 0  # every page is touched
        time.sleep(0.01)
        return os.getpid(), maps()

    with make_pool(2) as pool:
        jobs = [pool.submit(look, shared) for _ in range(50)]
        seen = [job.result(PATIENCE) for job in jobs]
    for _, mapped in seen:
        assert len(mapped) == 1
        assert mapped[0]["Anonymous"] == 0  # no page was copied
        assert mapped[0]["Rss"] * 1024 >= SIZE


@pytest.mark.local
@in_a_file
def test_it_goes_with_the_last_handle(pool: JobPool) -> None:
    shared = share(data())
    assert files() == 1
    assert len(same(pool, lambda a: maps(), shared)) <= 1
    del shared
    gc.collect()
    until(lambda: not same(pool, maps), "the worker let it go")
    assert files() == 0


@pytest.mark.local
def test_jobs_that_wait_hold_it(pool: JobPool, tmp_path: Path) -> None:
    def hold(a: Any, gate: Path) -> float:
        while not gate.exists():
            time.sleep(0.002)
        return float(a.sum())

    shared = share(data())
    total = float(data().sum())
    jobs = [pool.submit(hold, shared, tmp_path / "gate") for _ in range(3)]
    del shared
    gc.collect()
    (tmp_path / "gate").touch()
    assert [job.result(PATIENCE) for job in jobs] == [total] * 3
    del jobs
    until(lambda: not same(pool, maps), "the worker let it go")


@pytest.mark.local
def test_many_handles_dropped_while_a_worker_is_busy(pool: JobPool, tmp_path: Path) -> None:
    """More than its socket holds: what cannot be said at once is said later."""
    gate = tmp_path / "gate"

    def received() -> int:
        from primitive_jobs._wire import pickling

        return len(pickling.received)

    handles = [share(i) for i in range(700)]
    assert same(pool, sum, handles) == sum(range(700))
    assert same(pool, received) == 700

    def hold() -> None:
        while not gate.exists():
            time.sleep(0.002)

    job = pool.submit(hold)
    until(job.running, "RUNNING")
    del handles
    gc.collect()
    pool.jobs()  # the dispatcher has heard of it
    gate.touch()
    job.result(PATIENCE)
    last = share(0)
    assert same(pool, lambda one: one, last) == 0
    until(lambda: same(pool, received) == 1, "all the others let go")
    turns = 0
    turn = Dispatcher._turn

    def counted(self: Dispatcher) -> None:
        nonlocal turns
        turns += 1
        turn(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dispatcher, "_turn", counted)
        pool.jobs()
        time.sleep(0.1)  # for it to do nothing in
    assert turns < 5, "it goes on looking at a socket that has room again"


def test_a_new_worker_gets_it_again(pool: JobPool, tmp_path: Path) -> None:
    shared = share(data())
    mark = tmp_path / "mark"

    def die_once(a: Any) -> float:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(a.sum())

    job = pool.options(retries=1).submit(die_once, shared)
    assert job.result(PATIENCE) == float(data().sum())
    assert job.attempts == 2
    endless = pool.submit(lambda a: time.sleep(600), shared)
    until(endless.running, "RUNNING")
    assert endless.cancel()
    assert same(pool, lambda a: float(a.sum()), shared) == float(data().sum())


def test_pools_share_a_handle(make_pool: MakePool, two: JobPool) -> None:
    shared = share(data())
    with make_pool(1) as other:
        jobs = [p.submit(lambda a: float(a.sum()), shared) for p in (two, other) for _ in range(5)]
        assert {job.result(PATIENCE) for job in as_completed(jobs)} == {float(data().sum())}
    assert same(two, lambda a: float(a.sum()), shared) == float(data().sum())


@pytest.mark.local
def test_handles_inside_shared_data(pool: JobPool) -> None:
    inner = share(data())
    outer = share({"inner": inner, "x": 1})
    del inner
    gc.collect()
    assert same(pool, lambda o: float(o["inner"].sum()) * o["x"], outer) == float(data().sum())
    del outer
    gc.collect()
    until(lambda: not same(pool, maps), "both let go")


@pytest.mark.local
@in_a_file
def test_a_worker_without_descriptors_is_replaced(two: JobPool) -> None:
    def eat() -> int:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        while True:
            try:
                os.dup(0)
            except OSError:
                return os.getpid()

    two.resize(1)
    eater = same(two, eat)
    job = two.submit(lambda a: (float(a.sum()), os.getpid()), share(data()))
    total, pid = job.result(PATIENCE)
    assert total == float(data().sum())
    assert pid != eater
    assert job.attempts == 1


@pytest.mark.local
def test_in_a_fork_of_the_process(make_pool: MakePool, two: JobPool) -> None:
    shared = share(data())
    same(two, lambda a: None, shared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            with make_pool(1) as own:
                code = int(same(own, lambda a: float(a.sum()), shared) != float(data().sum()))
            del shared
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert same(two, lambda a: float(a.sum()), shared) == float(data().sum())


# --- what is wrong -------------------------------------------------------------------------------


def test_what_cannot_be_pickled() -> None:
    with pytest.raises(SerializationError, match=r"a generator cannot be shared: .*pickle"):
        share(i for i in range(3))


@pytest.mark.local
@in_a_file
def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(SerializationError, match="no memory to share a bytes"):
        share(b"x")
    assert files() == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s[0],
        lambda s: s(),
        len,
        list,
        bool,
        np.sum,
        lambda s: s.shape,
    ],
)
def test_use_outside_of_a_job(use: Callable[[Any], Any]) -> None:
    with pytest.raises((TypeError, AttributeError), match="stands for its object only in a job"):
        use(share(np.zeros(3)))


def test_it_travels_only_with_a_call(make_pool: MakePool) -> None:
    shared = share([1])
    with pytest.raises(SerializationError, match=r"share\(\) returns travels only among"):
        pickle.dumps(shared)
    assert copy.copy(shared) is shared
    assert copy.deepcopy([shared])[0] is shared
    assert re.fullmatch(r"<shared list, \d+ bytes>", repr(shared))
    with make_pool(1, initializer=print, initargs=(shared,)) as pool:
        job: PrimitiveJob[int] = pool.submit(abs, 1)
        with pytest.raises(InitializerError, match="only among"):
            job.result(PATIENCE)


def test_a_failed_pickling_leaves_nothing_noted(two: JobPool) -> None:
    shared = share([1])
    job = two.submit(lambda *a: None, shared, (i for i in range(3)))
    with pytest.raises(SerializationError, match="argument 2"):
        job.result(PATIENCE)
    with pytest.raises(SerializationError, match="travels only"):
        pickle.dumps(shared)
    assert same(two, lambda a: a, shared) == [1]

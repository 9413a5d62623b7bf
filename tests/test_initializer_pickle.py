"""An initializer is pickled once, when its pool is made; locks and the like, at each start."""

from __future__ import annotations

import ctypes
import marshal
import multiprocessing
import multiprocessing.synchronize
import os
import socket
import sys
import threading
from collections.abc import Callable
from ctypes.wintypes import POINT
from functools import partial
from multiprocessing.sharedctypes import RawArray, RawValue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
from helpers import PATIENCE, descriptors, expect, meet

from primitive_jobs import InitializerError, JobExecutor, JobPool
from primitive_jobs._procs.process import WorkerConfig
from primitive_jobs._wire.initializer import Initializer
from primitive_jobs._wire.parcel import HAVE_PACKETS

# Or each worker would import pytest and NumPy first.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

in_a_file = pytest.mark.skipif(not HAVE_PACKETS, reason="they are held as bytes here")
CONTEXT = multiprocessing.get_context("spawn")
_arena = RawArray("i", 3)  # multiprocessing keeps the file that others are in, too


class Reduced:
    """Keeps in ``threads`` on which thread it was pickled."""

    def __init__(self, threads: list[int]) -> None:
        self.threads = threads

    def __reduce__(self) -> tuple[Any, ...]:
        self.threads.append(threading.get_ident())
        return int, (7,)


def keep_in_env(*values: object) -> None:
    os.environ["GIVEN"] = repr(values)


def given(folder: Path) -> tuple[int, str]:
    return meet(folder, 2), os.environ["GIVEN"]


def given_to_two(pool: JobPool, folder: Path) -> list[str]:
    """What two workers got."""
    jobs = [pool.submit(given, folder) for _ in range(2)]
    results = dict(job.result(PATIENCE) for job in jobs)
    assert len(results) == 2
    return list(results.values())


def test_pickled_once_and_by_who_makes_the_pool(marks: Path) -> None:
    threads: list[int] = []
    with JobPool(2, initializer=keep_in_env, initargs=(Reduced(threads),)) as pool:
        assert threads == [threading.get_ident()]
        assert given_to_two(pool, marks) == ["(7,)"] * 2
        pool.restart_workers()
        pool.submit(abs, -1).result(PATIENCE)
    assert len(threads) == 1


def test_all_workers_get_the_same(marks: Path) -> None:
    table = ["before"]
    with JobPool(2, initializer=keep_in_env, initargs=(table,)) as pool:
        table[0] = "after"
        first = pool.submit(os.getenv, "GIVEN").result(PATIENCE)
        table[0] = "later"
        assert [first, *given_to_two(pool, marks)] == ["(['before'],)"] * 3


def test_the_pool_does_not_keep_the_arguments() -> None:
    gone: list[bool] = []

    class Large:
        def __del__(self) -> None:
            gone.append(True)

        def __reduce__(self) -> tuple[Any, ...]:
            return int, (1,)

    with JobPool(1, initializer=abs, initargs=(Large(),)) as pool:
        assert gone == [True]
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_an_interrupt_while_it_is_pickled() -> None:
    class Interrupted:
        def __reduce__(self) -> tuple[Any, ...]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        JobPool(1, initializer=print, initargs=(Interrupted(),))


def test_one_that_cannot_be_pickled() -> None:
    count: list[int] = []

    class Unfit:
        def __reduce__(self) -> tuple[Any, ...]:
            count.append(1)
            raise LookupError("not this one")

    with JobPool(1, initializer=print, initargs=(Unfit(),)) as pool:
        made = [*count]
        for _ in range(2):  # each start tells, none tries
            with pytest.raises(InitializerError, match="LookupError: not this one") as caught:
                pool.submit(abs, -1).result(PATIENCE)
            assert 'raise LookupError("not this one")' in str(_cause_of(caught.value))
    assert count == made


def _cause_of(error: BaseException) -> BaseException:
    """The innermost one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


# --- what multiprocessing shares -----------------------------------------------------------------


def write_value(value: Any) -> None:
    value.value = 5


def write_field(point: Any) -> None:
    point.x = 5


def write_item(array: Any) -> None:
    array[1] = 5


def take_part(barrier: Any) -> None:
    barrier.wait(PATIENCE)


SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], object]]] = {
    "Lock": (CONTEXT.Lock, lambda lock: lock.acquire(), lambda lock: not lock.acquire(block=False)),
    "Event": (CONTEXT.Event, lambda event: event.set(), lambda event: event.is_set()),
    "Semaphore": (CONTEXT.Semaphore, lambda s: s.acquire(), lambda s: not s.acquire(block=False)),
    "Value": (lambda: CONTEXT.Value("i", 1), write_value, lambda value: value.value == 5),
    "Array": (lambda: CONTEXT.Array("i", 3), write_item, lambda array: array[:] == [0, 5, 0]),
    "RawArray": (lambda: RawArray("i", 3), write_item, lambda array: array[:] == [0, 5, 0]),
    "RawValue": (lambda: RawValue("d"), write_value, lambda value: value.value == 5),
    "Structure": (lambda: CONTEXT.Value(POINT), write_field, lambda point: point.x == 5),
    "Condition": (CONTEXT.Condition, lambda c: c.acquire(), lambda c: not c.acquire(block=False)),
    "RLock": (CONTEXT.RLock, lambda lock: lock.acquire(), lambda lock: not lock.acquire(False)),
    "of forkserver": (
        multiprocessing.get_context("forkserver").Lock,
        lambda lock: lock.acquire(),
        lambda lock: not lock.acquire(block=False),
    ),
    "JoinableQueue": (CONTEXT.JoinableQueue, lambda q: q.put(7), lambda q: q.get() == 7),
    "Queue": (CONTEXT.Queue, lambda queue: queue.put(7), lambda queue: queue.get() == 7),
    "SimpleQueue": (CONTEXT.SimpleQueue, lambda q: q.put(7), lambda q: q.get() == 7),
}


@pytest.mark.parametrize("kind", SHARED)
def test_what_multiprocessing_shares(kind: str) -> None:
    make, use, was_used = SHARED[kind]
    thing = make()
    # Once by itself, once within something of the user's.
    with JobPool(1, initializer=lambda t, _: use(t), initargs=(thing, {"same": [thing]})) as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        assert was_used(thing)
    if kind in ("Queue", "JoinableQueue"):
        thing.close()
        thing.join_thread()
    for end in ("_reader", "_writer"):  # what it holds until it is collected
        if hasattr(thing, end):
            getattr(thing, end).close()


def test_a_barrier() -> None:
    barrier = CONTEXT.Barrier(2)
    with JobPool(1, initializer=take_part, initargs=(barrier,), spare_workers=0) as pool:
        job = pool.submit(abs, -1)
        barrier.wait(PATIENCE)
        assert job.result(PATIENCE) == 1


@pytest.mark.parametrize("kind", ["connection", "socket"])
def test_a_descriptor(kind: str) -> None:
    if kind == "socket":
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with JobPool(1, initializer=lambda s: s.send(b"7"), initargs=(theirs,)) as pool:
                pool.submit(abs, -1).result(PATIENCE)
            assert ours.recv(10) == b"7"
        return
    receive, send = CONTEXT.Pipe(duplex=False)
    with receive, send:
        with JobPool(1, initializer=lambda c: c.send(7), initargs=(send,)) as pool:
            pool.submit(abs, -1).result(PATIENCE)
        assert receive.recv() == 7


class Holder:
    def __init__(self, lock: Any) -> None:
        self.lock = lock


def compare(lock: object, holder: Holder, bound: Callable[[], object]) -> None:
    keep_in_env(lock is holder.lock, bound.__self__ is holder)  # type: ignore[attr-defined]


def test_what_is_the_same_stays_the_same() -> None:
    lock = CONTEXT.Lock()
    holder = Holder(lock)
    arguments = lock, holder, holder.__repr__
    with JobPool(1, initializer=partial(compare, lock), initargs=arguments[1:]) as pool:
        assert pool.submit(os.getenv, "GIVEN").result(PATIENCE) == "(True, True)"


def test_it_lives_as_long_as_the_pool(marks: Path) -> None:
    """Nobody but the pool holds the lock, whose name goes with it."""
    with JobPool(
        2, initializer=lambda lock: keep_in_env(lock.acquire(False)), initargs=(CONTEXT.Lock(),)
    ) as pool:
        assert sorted(given_to_two(pool, marks)) == ["(False,)", "(True,)"]


def test_a_ctypes_object_of_its_own() -> None:
    CONTEXT.RawValue("i", 1)  # multiprocessing pickles all of this type from now on
    with JobPool(1, initializer=lambda v: keep_in_env(v.value), initargs=(ctypes.c_int(3),)) as p:
        assert p.submit(os.getenv, "GIVEN").result(PATIENCE) == "(3,)"


# --- large ones ----------------------------------------------------------------------------------


def change_and_sum(table: np.ndarray[Any, Any]) -> None:
    table[0] += 1  # its own
    keep_in_env(int(table.sum()))


@pytest.mark.parametrize("packets", [True, False], ids=["packets", "stream"])
def test_large_arguments(packets: bool, marks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primitive_jobs.pool.WorkerConfig", partial(WorkerConfig, packets=packets))
    table = np.zeros(1_000_000)
    with JobPool(2, initializer=change_and_sum, initargs=(table,)) as pool:
        table[1] = 5
        assert given_to_two(pool, marks) == ["(1,)"] * 2


class LockOfATable(multiprocessing.synchronize.Lock):
    """Both are pickled when a worker is started."""

    def __init__(self, table: bytes) -> None:
        super().__init__(ctx=CONTEXT)
        self.table = table

    def __getstate__(self) -> Any:
        return super().__getstate__(), self.table

    def __setstate__(self, state: Any) -> None:
        lock, self.table = state
        super().__setstate__(lock)  # type: ignore[misc]


LARGE: dict[str, Callable[[int], Any]] = {
    "bytes": bytes,
    "array": lambda size: np.zeros(size, np.uint8),
    "with a lock": lambda size: SimpleNamespace(kept=LockOfATable(bytes(size)), size=size),
}


def keep_size(thing: Any) -> None:
    keep_in_env(thing.size if hasattr(thing, "size") else len(thing))


@pytest.mark.parametrize("kind", LARGE)
def test_arguments_that_marshal_would_not_take(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 2 GiB; here it takes little."""
    dumps = marshal.dumps

    def dumps_little(value: Any) -> bytes:
        content = dumps(value)
        if len(content) > 100_000:
            raise ValueError("unmarshallable object")
        return content

    monkeypatch.setattr(marshal, "dumps", dumps_little)
    given = LARGE[kind](1_000_000)
    with JobPool(1, initializer=keep_size, initargs=(given,), spare_workers=0) as pool:
        assert pool.submit(os.getenv, "GIVEN").result(PATIENCE) == "(1000000,)"


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", LARGE)
def test_arguments_of_more_than_2_gib(kind: str) -> None:
    size = 2_200_000_000
    with JobPool(1, initializer=keep_size, initargs=(LARGE[kind](size),), spare_workers=0) as pool:
        assert pool.submit(os.getenv, "GIVEN").result(300) == f"({size},)"


@in_a_file
def test_large_arguments_are_held_once() -> None:
    before = descriptors()
    initializer = Initializer(print, (np.zeros(1_000_000),))
    assert descriptors() == before + 1
    initializer.close()
    assert descriptors() == before


def test_no_descriptor_is_free_when_the_pool_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", refuse, raising=False)
        executor = JobExecutor(1, initializer=change_and_sum, initargs=(np.ones(100_000),))
    with executor:
        assert executor.submit(os.getenv, "GIVEN").result(PATIENCE) == "(100001,)"


@in_a_file
def test_a_fork_of_the_program_does_not_hold_them(tmp_path: Path) -> None:
    source = """
    import os
    from pathlib import Path
    from primitive_jobs import JobPool

    def held():
        links = []
        for number in range(1000):
            try:
                links.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass
        return sum(link.startswith("/memfd:primitive_jobs ") for link in links)

    if __name__ == "__main__":
        with JobPool(1, initializer=len, initargs=(b"x" * 1_000_000,)) as pool:
            print(held(), flush=True)
            pid = os.fork()
            if pid == 0:
                print(held(), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            pool.submit(abs, -1).result()
        print(held())
    """
    expect(tmp_path, source, "1\n0\n0\n", flags="-W ignore::DeprecationWarning")


@pytest.mark.parametrize("kind", ["Lock", "Event", "Barrier"])
def test_a_lock_of_a_fork_context_is_told_as_that(kind: str) -> None:
    given = (2,) if kind == "Barrier" else ()
    thing = getattr(multiprocessing.get_context("fork"), kind)(*given)
    with JobPool(1, initializer=id, initargs=(thing,)) as pool:
        error = pool.submit(abs, -1).exception(PATIENCE)
    assert isinstance(error, InitializerError)
    assert "multiprocessing.get_context('spawn')" in str(error)

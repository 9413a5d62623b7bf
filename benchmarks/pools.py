"""The pools that are compared, behind one pair of functions: submit a call, get its result.

Each is used the way its documentation shows for single calls. Where a setting differs from the
default, a comment says why. What starts its workers by fork is allowed to gain from it. Chunks
(`map`) are another question: see throughput.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from benchmarks.harness import OURS, Contender, Counts, Figures


@dataclasses.dataclass(frozen=True)
class Pool:
    """A started pool. All go through one more Python call each, so that none has it for free."""

    submit: Callable[..., Any]
    """`submit(function, *args)` returns a handle."""
    result: Callable[[Any], Any]
    """Wait for a handle's result and return it."""


Start = Callable[[int], AbstractContextManager[Pool]]
"""Start a pool with so many workers, for the time of a `with` block."""


def _futures(executor: Any) -> Pool:
    return Pool(
        lambda function, *args: executor.submit(function, *args),  # noqa: PLW0108 - see `Pool`
        lambda future: future.result(),
    )


@contextlib.contextmanager
def ours(workers: int) -> Iterator[Pool]:
    from primitive_jobs import JobPool

    with JobPool(workers) as pool:
        yield _futures(pool)


@contextlib.contextmanager
def multiprocessing_pool(workers: int, *, method: str) -> Iterator[Pool]:
    with multiprocessing.get_context(method).Pool(workers) as pool:
        yield Pool(
            lambda function, *args: pool.apply_async(function, args), lambda handle: handle.get()
        )
        pool.close()
        pool.join()


@contextlib.contextmanager
def concurrent_futures(workers: int, *, method: str) -> Iterator[Pool]:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        yield _futures(executor)


@contextlib.contextmanager
def loky(workers: int) -> Iterator[Pool]:
    from loky import get_reusable_executor

    # By default its workers leave after 10 s without a job. Ours do after 60.
    executor = get_reusable_executor(workers, timeout=60)
    try:
        yield _futures(executor)
    finally:
        executor.shutdown()


@contextlib.contextmanager
def pebble(workers: int) -> Iterator[Pool]:
    import pebble

    context = multiprocessing.get_context("fork")  # the platform's default up to Python 3.13
    with pebble.ProcessPool(workers, context=context) as pool:
        yield Pool(
            lambda function, *args: pool.schedule(function, args), lambda future: future.result()
        )


@contextlib.contextmanager
def mpire(workers: int) -> Iterator[Pool]:
    import mpire

    with mpire.WorkerPool(workers, start_method="fork") as pool:  # its default on Linux
        yield Pool(
            lambda function, *args: pool.apply_async(function, args), lambda handle: handle.get()
        )
        pool.stop_and_join()


@contextlib.contextmanager
def deadpool(workers: int) -> Iterator[Pool]:
    import deadpool

    # Without a bound on its backlog: by default `submit` blocks while 1000 calls are queued.
    with deadpool.Deadpool(workers, max_backlog=0) as executor:
        yield _futures(executor)


@dataclasses.dataclass(frozen=True)
class Peer:
    """A pool of somebody else's."""

    name: str
    start: Start
    needs: tuple[str, ...] = ()


FORK_POOL = "multiprocessing.Pool fork"
SPAWN_POOL = "multiprocessing.Pool spawn"
PEERS = (
    Peer(FORK_POOL, partial(multiprocessing_pool, method="fork")),
    Peer(SPAWN_POOL, partial(multiprocessing_pool, method="spawn")),
    Peer("concurrent.futures fork", partial(concurrent_futures, method="fork")),
    Peer("concurrent.futures spawn", partial(concurrent_futures, method="spawn")),
    Peer("loky", loky, ("loky",)),
    Peer("pebble", pebble, ("pebble",)),
    Peer("mpire", mpire, ("mpire",)),
    Peer("deadpool", deadpool, ("deadpool-executor",)),
)


def everyone(measure: Callable[[Start, Counts], Figures]) -> tuple[Contender, ...]:
    """Return ours and every peer as contenders, all measured by the same function."""
    return (
        Contender(OURS, "ours", partial(measure, ours)),
        *(Contender(p.name, "peer", partial(measure, p.start), p.needs) for p in PEERS),
    )

"""The ways to stop one running call, pool by pool.

Some pools can stop a call. With the others a user kills all workers and makes a new pool: the
calls beside it are lost, too, and have to be submitted again.
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

from benchmarks.harness import OURS, Contender, Counts, Figures, Role, absent
from benchmarks.jobs import noop
from benchmarks.pools import FORK_POOL

WORKERS = 2
WHOLE = "all workers are killed and a new pool is made, as it cannot stop one call"
WHOLE_MPIRE = f"{WHOLE}; not in a C call that holds the GIL: terminate() would wait for its end"


@dataclasses.dataclass(frozen=True)
class Stoppable:
    """A pool whose calls can be stopped, one way or another."""

    submit: Callable[..., Any]
    """`submit(function, *args)` returns a handle."""
    result: Callable[[Any], Any]
    """Wait for a handle's result and return it."""
    stop: Callable[[Any], object]
    """Stop the call of a handle; may return before its process is gone."""
    whole: bool = False
    """Whether stopping one call costs all others."""
    stops_c_calls: bool = True
    """Whether it ever returns from stopping a C call that holds the GIL."""


Open = Callable[[], AbstractContextManager[Stoppable]]


# --- those that can ----------------------------------------------------------------------------


@contextlib.contextmanager
def ours() -> Iterator[Stoppable]:
    from primitive_jobs import JobPool

    def stop(job: Any) -> None:
        if not job.cancel():
            raise RuntimeError("the job was not cancelled")

    # What makes fresh workers of any kind import the module of the calls before they have one.
    with JobPool(WORKERS, preload=(noop.__module__,)) as pool:
        yield Stoppable(pool.submit, lambda job: job.result(), stop)


@contextlib.contextmanager
def pebble() -> Iterator[Stoppable]:
    import pebble

    # Not by fork, its default: the replacements of stopped workers, which a thread forks, each take
    # 3 s to stop, until SIGKILL follows SIGTERM.
    context = multiprocessing.get_context("spawn")
    with pebble.ProcessPool(WORKERS, context=context, initializer=noop) as pool:
        yield Stoppable(
            lambda function, *args: pool.schedule(function, args),
            lambda future: future.result(),
            lambda future: future.cancel(),
        )


@contextlib.contextmanager
def deadpool() -> Iterator[Stoppable]:
    import deadpool

    # By fork, queued calls are lost after a kill.
    with deadpool.Deadpool(WORKERS, initializer=noop) as executor:
        yield Stoppable(
            executor.submit,
            lambda future: future.result(),
            lambda future: future.cancel_and_kill_if_running(),
        )


# --- those that cannot -------------------------------------------------------------------------


def _submit(executor: Any, function: Callable[..., Any], *args: Any) -> Any:
    return executor.submit(function, *args)


def _apply_async(pool: Any, function: Callable[..., Any], *args: Any) -> Any:
    return pool.apply_async(function, args)


@contextlib.contextmanager
def remade(
    make: Callable[[], Any],
    kill: Callable[[Any], object],
    submit_to: Callable[..., Any],
    result: Callable[[Any], Any],
    *,
    stops_c_calls: bool = True,
) -> Iterator[Stoppable]:
    """Yield a pool that is made by the first submit after each kill."""
    pools: list[Any] = []

    def submit(function: Callable[..., Any], *args: Any) -> Any:
        if not pools:
            pools.append(make())
        return submit_to(pools[0], function, *args)

    try:
        yield Stoppable(submit, result, lambda _: kill(pools.pop()), True, stops_c_calls)
    finally:
        while pools:
            kill(pools.pop())


def kill_executor(executor: Any) -> None:
    if hasattr(executor, "kill_workers"):  # Python 3.14
        executor.kill_workers()
        return
    for process in list(executor._processes.values()):
        process.kill()
    executor.shutdown(wait=False, cancel_futures=True)


def concurrent_futures(method: str) -> Open:
    context = multiprocessing.get_context(method)
    return partial(
        remade,
        lambda: ProcessPoolExecutor(WORKERS, mp_context=context),
        kill_executor,
        _submit,
        lambda future: future.result(),
    )


def multiprocessing_pool() -> AbstractContextManager[Stoppable]:
    context = multiprocessing.get_context("fork")
    return remade(
        lambda: context.Pool(WORKERS),
        lambda pool: pool.terminate(),
        _apply_async,
        lambda handle: handle.get(),
    )


def loky() -> AbstractContextManager[Stoppable]:
    from loky import get_reusable_executor

    return remade(
        lambda: get_reusable_executor(WORKERS),
        lambda executor: executor.shutdown(kill_workers=True),
        _submit,
        lambda future: future.result(),
    )


def mpire() -> AbstractContextManager[Stoppable]:
    from mpire import WorkerPool

    return remade(
        lambda: WorkerPool(WORKERS, start_method="fork"),
        lambda pool: pool.terminate(),
        _apply_async,
        lambda handle: handle.get(),
        stops_c_calls=False,  # it sends SIGTERM, with a handler in Python, and joins for ever
    )


def everyone(measure: Callable[[Open, Counts], Figures], killed_as: Role) -> tuple[Contender, ...]:
    """Return ours and all others as contenders, all measured by the same function.

    ``killed_as`` is the role of those that cannot stop one call.
    """

    def killed(name: str, open_pool: Open, *needs: str, note: str = WHOLE) -> Contender:
        return Contender(name, killed_as, partial(measure, open_pool), needs, note=note)

    return (
        Contender(OURS, "ours", partial(measure, ours)),
        Contender("pebble", "peer", partial(measure, pebble), ("pebble",)),
        Contender("deadpool", "peer", partial(measure, deadpool), ("deadpool-executor",)),
        killed(FORK_POOL, multiprocessing_pool),
        killed("concurrent.futures fork", concurrent_futures("fork")),
        killed("concurrent.futures spawn", concurrent_futures("spawn")),
        killed("loky", loky, "loky"),
        killed("mpire", mpire, "mpire", note=WHOLE_MPIRE),
        absent("joblib", "no handle on a single call"),
    )

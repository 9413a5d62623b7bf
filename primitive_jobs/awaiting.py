"""Waiting in a task, of asyncio or trio (so under anyio as well), without blocking its event loop.

A task that is cancelled while it waits first has stopped what it waits for, and still waits until
that is over: a cancelled task leaves nothing running.

The library is the one whose task is running. None is imported that is not there already.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ._common.imported import imported

Waiter = Callable[[], object]
End = tuple[Callable[[Waiter], object], Callable[[Waiter], object]]
"""Something that ends: have a waiter called then (at once if it is over, and on any thread; perhaps
twice), and take a waiter back."""


async def until_over(cancel: Callable[[], object], *ends: End) -> None:
    """Wait until all ``ends`` have come.

    Args:
        cancel: Called once if the task is cancelled meanwhile; it must not block. The waiting goes
            on, whatever comes, and the cancellation with it when all is over.
        ends: What to wait for.
    """
    if in_trio_task():
        await _in_trio(sys.modules["trio"].lowlevel, cancel, ends)
    else:
        await _in_asyncio(cancel, ends)


def in_trio_task() -> bool:
    """Whether a task of trio's is running on this thread."""
    trio = imported("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except (AttributeError, RuntimeError):  # another module of that name; no task of trio's
        return False
    return True


def _watch(ends: tuple[End, ...], tell: Waiter) -> Callable[[], None]:
    """Have ``tell`` called when all ends have come; return what takes that back."""
    left = {*range(len(ends))}

    def waiter(number: int) -> Waiter:
        def come() -> None:
            left.discard(number)
            if not left:
                tell()

        return come

    waiters = [waiter(number) for number in range(len(ends))]
    for (call_when_over, _), come in zip(ends, waiters, strict=True):
        call_when_over(come)

    def take_back() -> None:
        for (_, forget), come in zip(ends, waiters, strict=True):
            forget(come)

    return take_back


def _from_here() -> Callable[[], bool | None]:
    """Return what tells, in a fork of this process, whether it is asked on this thread.

    If not, this thread stayed behind, and its event loop with it. None: it is no fork.
    """
    pid, thread = os.getpid(), threading.get_ident()

    def here() -> bool | None:
        return None if os.getpid() == pid else threading.get_ident() == thread

    return here


async def _in_asyncio(cancel: Callable[[], object], ends: tuple[End, ...]) -> None:
    import asyncio

    # None in a fork that a task has made: fine, if all is over there.
    loop: Any = asyncio._get_running_loop()
    future: Any = None if loop is None else loop.create_future()
    on_this_thread = _from_here()
    told = over = False

    def wake() -> None:
        nonlocal over
        over = True
        if not future.done():
            future.set_result(None)

    def tell() -> None:
        nonlocal told
        told = True
        if loop is not None and on_this_thread() is not False:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(wake)

    take_back = _watch(ends, tell)
    try:
        if not told:
            if future is None:
                asyncio.get_running_loop()  # raises what says so
            assert future is not None
            await future
    except asyncio.CancelledError:
        cancel()
        assert loop is not None
        with _shield():
            while not over:
                future = loop.create_future()
                with contextlib.suppress(asyncio.CancelledError):  # the first one goes on
                    await future
        raise
    finally:
        take_back()


def _shield() -> AbstractContextManager[object]:
    """Keep anyio from cancelling in each turn of the loop what is about to end anyway."""
    anyio = imported("anyio")
    if anyio is None or not hasattr(anyio, "CancelScope"):
        return contextlib.nullcontext()
    scope: AbstractContextManager[object] = anyio.CancelScope(shield=True)
    return scope


async def _in_trio(lowlevel: Any, cancel: Callable[[], object], ends: tuple[End, ...]) -> None:
    task, token = lowlevel.current_task(), lowlevel.current_trio_token()
    on_this_thread = _from_here()
    over = False
    cancellations: list[Callable[[], object]] = []

    def wake() -> None:
        nonlocal over
        if not over:
            over = True
            lowlevel.reschedule(task)

    def tell() -> None:
        here = on_this_thread()
        if here is None:
            with contextlib.suppress(RuntimeError):  # the run has ended: nobody waits any more
                token.run_sync_soon(wake)
        elif here:  # the lock that run_sync_soon() takes may be one of the threads left behind
            wake()

    def abort(raise_cancel: Callable[[], object]) -> Any:
        cancellations.append(raise_cancel)
        cancel()
        return lowlevel.Abort.FAILED

    take_back = _watch(ends, tell)
    try:
        await lowlevel.wait_task_rescheduled(abort)
    finally:
        take_back()
    while cancellations:
        cancellations.pop()()

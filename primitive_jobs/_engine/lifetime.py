"""The end of the program, which waits for its pools, and its forks, in which nothing is theirs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from typing import Protocol

from .._common.forks import Turn, in_forks
from .._common.lock_free import members
from ..errors import PoolClosedError
from .unseen import Unseen, tell_all_at_exit


class Pool(Protocol):
    """What is asked of a pool."""

    cancel_at_exit: bool
    unseen: Unseen

    def shut_down(self, *, cancel: bool = False, at_once: bool = False) -> None:
        """Take no job any more, end when all are final; returns at once."""

    def join(self) -> None:
        """Wait until everything is gone."""

    def abandon(self) -> None:
        """In a fork of the process: let go of what is not its own."""


pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_hook_for: list[int] = []  # the pid that has its exit hook
_exiting = False


def check_not_exiting() -> None:
    """Raise `PoolClosedError` when the interpreter is going down."""
    if _exiting or sys.is_finalizing():
        raise PoolClosedError("the interpreter is going down: no job can be submitted")


def register_exit_hook() -> None:
    """Have the interpreter's end wait for all pools; raise `PoolClosedError` if it has begun."""
    if _hook_for[:1] == [os.getpid()]:
        return
    try:
        # Runs before threads are joined and before multiprocessing's own atexit function.
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise PoolClosedError("the interpreter is going down: no pool can be started") from error
    _hook_for[:] = [os.getpid()]


def _at_exit() -> None:
    """Wait for every job, as concurrent.futures does; a Ctrl-C ends them at once."""
    global _exiting
    _exiting = True
    interrupted = _ended_by_interrupt()
    ending = members(pools)
    with contextlib.ExitStack() as awaited:
        for pool in ending:
            awaited.enter_context(pool.unseen.awaited())
        try:
            _end_all(ending, interrupted=interrupted)
        finally:
            tell_all_at_exit()


def _end_all(pools: list[Pool], *, interrupted: bool) -> None:
    try:
        for pool in pools:
            pool.shut_down(cancel=interrupted or pool.cancel_at_exit, at_once=interrupted)
        for pool in pools:
            pool.join()
    except KeyboardInterrupt:
        for pool in pools:
            pool.shut_down(cancel=True, at_once=True)
        for pool in pools:
            pool.join()
        raise


def _ended_by_interrupt() -> bool:
    # In a REPL an interrupt that was shown long ago says nothing about the end of the session.
    interactive = hasattr(sys, "ps1") or sys.flags.interactive
    return getattr(sys, "last_type", None) is KeyboardInterrupt and not interactive


def _after_fork_in_child() -> None:
    for pool in members(pools):
        pools.discard(pool)  # not all at the end: what goes with its jobs may make one
        with contextlib.suppress(Exception):
            pool.abandon()


in_forks(Turn.POOLS, _after_fork_in_child)

"""Ctrl-Z: workers stop, and go on, with the program.

A worker leads a session of its own, where no terminal reaches it. So a handler of SIGTSTP, set only
where there is none, stops the workers with SIGSTOP, then the program in the default way; and when
that goes on, they do. It runs in the main thread, between any two steps of what that does: so it
takes no lock, and it is as late as Ctrl-C is while the main thread is in a long call in C.

What is stopped: each worker's group, and what is below it elsewhere, as the workers of a job's own
pool. Whoever is stopped already, by somebody else, or is being killed, is left alone. Signals are
sent to numbers that a spawner or reaper thread may be about to give up; the system gives a number
to another process only after all others that are free.

The limits of jobs do not count the time in which they were stopped: see `clock`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from types import FrameType
from typing import Any

from . import worker
from .killing import send
from .memory import process_state, tree
from .process import WorkerProcess, open_workers

_PATIENCE = 0.2  # s for workers that are being started to be known
_PAUSE = 0.001  # s between two looks
_PASSES = 5  # looks for what was started meanwhile

# Seconds for which the program was stopped, and since when it is now. Written by the handler, thus
# by the main thread, alone.
_times: tuple[float, float | None] = (0.0, None)


def clock() -> float:
    """Return monotonic seconds without those for which the program and its jobs were stopped."""
    stopped, since = _times
    return (time.monotonic() if since is None else since) - stopped


def take_part() -> None:
    """Handle SIGTSTP from now on, if this is the main thread and nobody does yet."""
    # In a worker nobody can be stopped by a terminal, and jobs shall find the signal as it was.
    if worker.depth == 0 and _may_set() and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # a sub-interpreter
            signal.signal(signal.SIGTSTP, _stop)


def leave() -> None:
    """Undo `take_part`, unless somebody else has set a handler since."""
    if _may_set() and signal.getsignal(signal.SIGTSTP) is _stop:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


def _may_set() -> bool:
    return threading.current_thread() is threading.main_thread()


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop workers and program; return when the program goes on, and they with it."""
    global _times
    del number, frame
    before, under_way = _times
    if under_way is not None:
        return  # one more came in here
    handler = signal.getsignal(signal.SIGTSTP)  # this, or who calls this
    stopped: list[tuple[WorkerProcess, list[int]]] = []
    since = time.monotonic()
    try:
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # what comes now asks for the same
        _times = before, since
        _stop_all(stopped)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTSTP])
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        try:
            _go_on(stopped, before, since, handler)
        except BaseException:  # a Ctrl-C, most likely
            _go_on(stopped, before, since, handler)
            raise


def _stop_all(stopped: list[tuple[WorkerProcess, list[int]]]) -> None:
    """Stop all workers, and append each with what was stopped elsewhere below it."""
    known: set[WorkerProcess] = set()
    end = time.monotonic() + _PATIENCE
    while True:
        workers, more = open_workers()
        for process in workers:
            if process not in known:
                known.add(process)
                if not process.is_held and _runs(process.pid):
                    stopped.append((process, []))  # before: an interrupt may come at any place
                    _send(process, signal.SIGSTOP)
        for process, below in stopped:
            _stop_below(process.pid, below)
        if not more or time.monotonic() > end:
            return
        time.sleep(_PAUSE)


def _stop_below(root: int, stopped: list[int]) -> None:
    """Stop what is below a worker, but not in its group."""
    for _ in range(_PASSES):
        new = [pid for pid in tree(root)[1:] if pid not in stopped and _runs(pid)]
        if not new:
            return
        for pid in new:
            stopped.append(pid)
            with contextlib.suppress(OSError):
                send(pid, signal.SIGSTOP)


def _go_on(
    stopped: list[tuple[WorkerProcess, list[int]]], before: float, since: float, handler: Any
) -> None:
    """Undo what `_stop` has done; may be interrupted, and called again."""
    global _times
    while stopped:
        process, below = stopped[-1]
        while below:
            with contextlib.suppress(OSError):
                send(below[-1], signal.SIGCONT)
            below.pop()
        _send(process, signal.SIGCONT)
        if process.is_held:  # its killing has begun, and has to find it still
            _send(process, signal.SIGSTOP)
        stopped.pop()
    _times = before + time.monotonic() - since, None
    if handler is not None:  # else it was set by somebody in C
        signal.signal(signal.SIGTSTP, handler)


def _send(process: WorkerProcess, number: int) -> None:
    """Send a signal to a worker's group, and to itself where it does not lead one yet."""
    for pid in (-process.pid, process.pid):
        with contextlib.suppress(OSError):
            send(pid, number)


def _runs(pid: int) -> bool:
    """Whether it is neither dead, nor stopped (by a debugger: t); True where it is not told."""
    return process_state(pid) not in ("T", "t", "Z", "X")


__all__ = ["clock", "leave", "take_part"]

"""In a worker: reaping the orphans of its jobs, and never a child whose end a job may ask for.

A worker is the reaper of orphans below it (see `loop`), so that what ``cmd &`` in a shell leaves
behind becomes its child, and once dead a zombie. The children that Python code starts here are
noted, by functions in the place of those of `os` and of `_posixsubprocess`; all others are orphans,
unless a library in C has forked them. So a worker in which Python has started nothing reaps
nothing. It looks between two jobs and while it is idle: what one job leaves is there until it ends.

Why none of a job's own is taken, whatever its threads are doing: who starts one appends to
`_starting` before, and takes that back when the pid is in `_own`. Who has found a dead child looks
into `_starting` first, and into `_own` then.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import contextlib
import functools
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType
    from typing import Any

_DEAD = os.WEXITED | os.WNOHANG
_LATE = f"Signal {int(signal.SIGCHLD)} ignored due to race condition"
_MANY = 32  # pids that are kept, before those are sorted out that are no children any more

_starting: list[None] = []  # one for each start that is under way; any thread's
_own: set[int] = set()  # what was started; any thread adds, the loop's takes out
_NEVER = object()
_last: object = _NEVER  # a new one after each start
_quiet: object = _NEVER  # the last one of those after which no child was left; the loop's


def note_starts() -> None:
    """Have children noted from now on; `note_subprocess` goes with it."""
    import posix

    for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system"):
        for module in (os, posix):
            _replace(module, name)


def note_subprocess(module: ModuleType) -> None:
    """The same for `_posixsubprocess`, which is not there at a worker's start, as a rule."""
    _replace(module, "fork_exec")
    _replace(sys.modules.get("subprocess"), "_fork_exec")


def _replace(module: ModuleType | None, name: str) -> None:
    function = getattr(module, name, None)
    if function is not None:
        setattr(module, name, _noting(function, gives_pid=name != "system"))


def _noting(function: Callable[..., Any], *, gives_pid: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def start(*args: Any, **kwargs: Any) -> Any:
        global _last
        _starting.append(None)
        try:
            made = function(*args, **kwargs)
            if gives_pid:
                _own.add(made[0] if isinstance(made, tuple) else made)
            return made
        finally:
            _last = object()
            _starting.pop()

    return start


def last_started() -> object:
    """Return what is another one after each start of a child."""
    return _last


def may_be() -> bool:
    """Whether there may be any child at all."""
    return _last is not _quiet


@functools.cache  # once: somebody's own hook may call this one
def _hush() -> None:
    """Have Python not report a signal that has come right before it was left alone.

    Another thread may be in the handler, in C, while `unwatch` is called, so that Python finds out
    at any time after it.
    """
    report = sys.unraisablehook

    def hush(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.object is not None or _LATE not in str(unraisable.exc_value):
            report(unraisable)

    sys.unraisablehook = hush


def watch() -> bool:
    """Reap the dead, from now on as soon as they die; return whether `unwatch` has to be called."""
    watched: bool = signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    if watched:
        _hush()
        signal.signal(signal.SIGCHLD, _reap)
    if _reap() or not watched:
        return watched
    unwatch()
    return False


def unwatch() -> None:
    """Leave the signal alone again."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _reap(*_: object) -> bool:
    """Reap dead orphans; return whether any child is left."""
    global _quiet
    last = _last
    try:
        while (found := os.waitid(os.P_ALL, 0, _DEAD | os.WNOWAIT)) is not None:
            if _starting:
                return True
            if found.si_pid in _own:  # others may be behind it
                _reap_these(_children())
                return True
            os.waitpid(found.si_pid, os.WNOHANG)
    except ChildProcessError:
        _quiet = last
        _sort_out()
        return False
    if len(_own) > _MANY:
        _sort_out()
    return True


def _children() -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir("/proc/self/task")  # noqa: PTH208 - pathlib is dear
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
        except OSError:  # it has ended
            continue
    return found


def _reap_these(pids: Iterable[int]) -> None:
    if _starting:
        return
    for pid in pids:
        if pid not in _own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _sort_out() -> None:
    """Forget those that a job has reaped."""
    last = _last
    stale = [pid for pid in _own.copy() if not _is_child(pid)]
    _own.difference_update(stale)
    if _starting or _last is not last:
        _own.update(stale)  # one of the numbers may have been given again meanwhile


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, _DEAD | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True

"""Killing a worker with all that is below it, in steps of which none waits."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from ..logs import Report
from .guardian import GIVE_UP, the_guard
from .probe import has_children, hidden

if TYPE_CHECKING:
    import psutil

_VANISH = 0.1  # s, for the system's init process to take dead grandchildren off the table
_PAUSE = 0.0005  # s, between two looks at what was killed, to begin with
_LONGEST_PAUSE = 0.01  # s


def send(pid: int, number: int) -> None:
    """Send a signal, by the guard where this process may not; one that is gone is no error.

    Args:
        pid: A worker's, or of a process below one; negative: a worker's group.
        number: Of the signal.

    Raises:
        PermissionError: The guard cannot either.
    """
    with contextlib.suppress(ProcessLookupError):
        try:
            if pid < 0:
                os.killpg(-pid, number)
            else:
                os.kill(pid, number)
        except PermissionError:
            the_guard.signal(pid, number)


class TreeKill:
    """The end of a worker and of what is below it.

    Until the worker is reaped its pid is not given to anybody else, and neither is its group.

    Attributes:
        below: What else was known to be below it, or has been found there.
        denied: By pid, why the signal could not be sent.
        struck: Whether all that was found has been sent SIGKILL.
        over: Whether nothing is waited for any more.
        give_up: When what lives then is left alone (`time.monotonic`).
        due: When something below is to be looked at again.
    """

    def __init__(self, pid: int, report: Report) -> None:
        self.below: set[psutil.Process] = set()
        self.denied: dict[int, OSError] = {}
        self.struck = False
        self.over = False
        self.give_up = 0.0
        self.due = 0.0
        self._pid = pid
        self._report = report
        self._passes = 0
        self._fled = False  # new processes came for as long as they were looked for
        self._vanish = 0.0  # until when a zombie may go, or one that could not be killed may die
        self._alive: list[int] = []  # those that were waited for in vain

    def stop(self) -> None:
        """Have its group compute no more."""
        for pid in (-self._pid, self._pid):  # some of the group may be killed, others not
            with contextlib.suppress(PermissionError):
                send(pid, signal.SIGSTOP)

    def strike(self) -> bool:
        """Send SIGKILL to all that is found; False: there may be more, so strike again."""
        if self.struck:
            return True
        if not self._passes:
            # Stopped, the group starts no process any more; and an orphan of what is killed below
            # becomes the worker's child, so that the next look finds it.
            self.stop()
            self.give_up = time.monotonic() + GIVE_UP
        if self._strike_below():
            return False
        # Each by itself, too: killpg(2) succeeds if it has killed one of them. And first: the guard
        # signals none that is not below a worker any more.
        for pid in (*(process.pid for process in self.below if _lives(process)), -self._pid):
            self._kill(pid)
        self._kill(self._pid)
        self.struck = True
        self.give_up = time.monotonic() + GIVE_UP
        return True

    def strike_plainly(self) -> None:
        """Send SIGKILL to the group, whatever there is elsewhere."""
        for pid in (-self._pid, self._pid):
            with contextlib.suppress(OSError):
                send(pid, signal.SIGKILL)

    def _strike_below(self) -> bool:
        """Kill what is not in the group; return whether there was anything new."""
        known = {*self.below} if self._passes else set()
        self._passes += 1
        if self.below or has_children(self._pid) is not False:
            self.below |= self._children()
        new = self.below - known
        for process in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(process.pid) != self._pid and _lives(process):
                    self._kill(process.pid)
        if new and time.monotonic() > self.give_up:
            self._fled = True
            self._report(
                logging.WARNING,
                "worker %d: its job starts processes faster than they can be killed; some may be "
                "left",
                self._pid,
            )
            return False
        return bool(new)

    def _children(self) -> set[psutil.Process]:
        import psutil

        try:
            return {*psutil.Process(self._pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            tell_if_hidden(self._pid, self._report)
            return set()
        except (psutil.Error, OSError) as error:  # no descriptor free, most likely
            self._report(
                logging.WARNING,
                "worker %d: what its job started outside of its process group is not killed, as "
                "it cannot be found: %s",
                self._pid,
                error,
            )
            return set()

    def _kill(self, pid: int) -> None:
        try:
            send(pid, signal.SIGKILL)
        except PermissionError as error:
            self.denied[pid] = error

    def is_over(self, *, reaped: bool) -> bool:
        """Whether what was below is dead and, if anybody does it, taken off the table; or given up.

        They are nobody's that we know, so there is nothing to wait on but their state. To be called
        once the worker is dead and `reaped`, or given up.
        """
        if self.over:
            return True
        now = time.monotonic()
        self._vanish = self._vanish or now + _VANISH
        adopted = reaped and _reap_group(self._pid)
        living = [process for process in self.below if _reap(process)]
        states = {process.pid: _state(process) for process in living}
        self._alive = [pid for pid, state in states.items() if state not in (None, "zombie")]
        waits = adopted or any(pid not in self.denied for pid in self._alive)
        # One that could not be killed by itself may have been killed with its group.
        lies = bool(self._alive) or any(state == "zombie" for state in states.values())
        self.over = now > self.give_up or not (waits or (lies and now < self._vanish))
        if self.over and adopted:
            self._alive.append(-self._pid)
        since = now - (self._vanish - _VANISH)
        self.due = now + min(_LONGEST_PAUSE, max(_PAUSE, since / 8))
        return self.over

    def left(self, *, root: bool) -> str | None:
        """What of it may live on, the ``root`` or what was below it, and why; None: nothing."""
        alive = [self._pid, *self._alive] if root else self._alive
        why = f"it does not end after SIGKILL ({GIVE_UP:g} s)"
        texts = []
        for pid in alive:
            error = self.denied.get(pid)
            what = f"process {pid}" if pid > 0 else f"process group {-pid}"
            texts.append(f"{what}: {why if error is None else error.strerror}")
        if self._fled:
            texts.append("its job starts processes faster than they can be killed")
        return "; ".join(texts) or None


_told: list[str] = []  # that processes are hidden; any thread appends to it


def tell_if_hidden(pid: int, report: Report) -> None:
    """Once, if the system does not show a worker of ours: nothing below it can be found then."""
    if not _told and hidden(pid):
        _told.append("")
        report(
            logging.WARNING,
            "/proc is missing, or does not show worker %d: a process that a job puts into a "
            "session or group of its own survives a cancel, and no memory_limit can be kept",
            pid,
        )


def _lives(process: psutil.Process) -> bool:
    """Whether the pid is still that process's."""
    return _state(process) not in (None, "zombie")


def _state(process: psutil.Process) -> str | None:
    import psutil

    try:
        return str(process.status()) if process.is_running() else None
    except psutil.Error:
        return None


def _reap(process: psutil.Process) -> bool:
    """Reap it if it is ours by now, since orphans come to this process; return whether it is left.

    A zombie of ours keeps its pid until we reap it, so that nobody else's is.
    """
    import psutil

    try:
        if _state(process) == psutil.STATUS_ZOMBIE and process.ppid() == os.getpid():
            os.waitpid(process.pid, os.WNOHANG)
            return False
    except (psutil.Error, ChildProcessError):  # somebody else was faster
        return False
    return True


def _reap_group(group: int) -> bool:
    """Reap the dead of a worker's group who have become our children; return whether any lives.

    The number is that group's while one of them is there: a process that got it meanwhile, after
    all others there are, would lead a group of its own.
    """
    while True:
        try:
            found = os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return True
            if found.si_pid == group:
                return False
            os.waitpid(found.si_pid, os.WNOHANG)
        except ChildProcessError:
            return False

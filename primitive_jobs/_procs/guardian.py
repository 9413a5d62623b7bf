"""`the_guard`: this program's side of the guard, a process that does the killing where this one
cannot any more: because it is dead, or has given up the right to.
"""

from __future__ import annotations

import _socket as socket
import collections
import contextlib
import errno
import logging
import os
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from .._common.forks import Turn, in_forks
from ..logs import Report, report_here
from .interpreter import executable, isolation, script, unstartable

_GUARD = "primitive_jobs._procs.guard"
GIVE_UP = 10.0  # s, after which a process that SIGKILL does not end is left alone
_ANSWER = 2.0  # s that the guard has to send a signal: it takes 0.1 ms
_DESCRIPTOR = struct.Struct("i")


class Guard:
    """The process that ends what jobs forked, if this process is killed.

    It runs while any pool is open that has had a worker, and is there before the first one is. Thus
    it has at least the rights that workers have, whatever this process makes of its own later.

    Whatever a thread wants of it is put into `_wishes`; whoever has `_lock` then, nobody ever
    waiting for it, fulfils all of them. So a finalizer or signal handler that comes in between may
    use pools too. Signals are asked for without the lock: what is sent goes whole or not at all,
    and each answer has a socket of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wishes: collections.deque[Callable[[], None]] = collections.deque()
        self._users: dict[object, Report] = {}  # each with what it logs by
        self._groups: set[int] = set()
        self._leases: dict[int, int] = {}  # by group, until when: ns of `guard.lease_clock`
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None  # to it; with `_process`
        self._unstartable: OSError | None = None  # why the system does not execute it
        self._hearing = threading.Lock()  # of dispatchers alone; has what follows
        self._heard: socket.socket | None = None  # the link that the next two are of
        self._told = b""  # the begin of a line
        self._stopped_at: float | None = None  # monotonic s, while the workers are stopped
        self._stops: list[tuple[float, float]] = []

    def open(self, user: object, report: Report = report_here) -> None:
        """A pool has begun."""
        self._wish(lambda: self._users.update({user: report}))

    def release(self, user: object) -> None:
        """A pool has ended, if it had begun at all; with the last one the guard goes."""
        self._wish(lambda: self._release(user))

    def be_there(self) -> None:
        """A worker is to be started; raises OSError if the interpreter cannot be executed."""
        self._wish(lambda: self._tell(""))
        if self._unstartable is not None:
            raise self._unstartable

    def add(self, group: int) -> None:
        """Watch over a worker's process group."""
        self._wish(lambda: self._add(group))

    def remove(self, group: int) -> None:
        """A worker is gone."""
        self._wish(lambda: self._remove(group))

    def lease(self, groups: Iterable[int], deadline: float) -> None:
        """Have it kill workers' groups, with all below them, when the deadline has passed.

        It does so by itself, even if this process is stopped. A later deadline, or an earlier one,
        takes the place of one that has not passed yet. A guard that somebody has killed keeps no
        lease; the next one, which the next worker's start makes, has them all again.

        Args:
            groups: Those of workers; others, and those of workers that are gone, are left out.
            deadline: In seconds of `guard.lease_clock`; one in the past has them killed at once.

        Raises:
            OverflowError, ValueError: The deadline is not finite.
        """
        end = int(deadline * 1e9)
        leases = dict.fromkeys(groups, end)
        self._wish(lambda: self._lease(leases))

    def signal(self, pid: int, number: int, *, wait: bool = True) -> None:
        """Have it send a signal to a worker, one of their groups (a negative ``pid``), or to what
        is below one; without ``wait`` nobody hears whether it could.

        Raises:
            ProcessLookupError: There is no such process.
            PermissionError: It has not the right to, or there is no guard.
        """
        line = b"!%d %d\n" % (pid, number)
        try:
            link = self._link
            if link is None:
                raise BrokenPipeError
            if not wait:
                link.send(line, socket.MSG_DONTWAIT | _QUIET)
                return
            ours, theirs = socket.socketpair()
            with contextlib.closing(ours):
                with contextlib.closing(theirs):
                    rights = _DESCRIPTOR.pack(theirs.fileno())
                    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                    link.sendmsg([line], ancillary, socket.MSG_DONTWAIT | _QUIET)
                poller = select.poll()
                poller.register(ours, select.POLLIN)
                answer = ours.recv(64) if poller.poll(_ANSWER * 1000) else b""
            code = int(answer or errno.EPERM)
        except OSError:
            code = errno.EPERM
        if code:
            raise OSError(code, os.strerror(code))  # the subclass that belongs to the code

    def stops(self, first: int) -> tuple[list[tuple[float, float]], bool]:
        """Return when Ctrl-Z had the workers stopped, and whether they still are.

        From when to when, in seconds of `time.monotonic`, without the ``first`` ones. A worker that
        runs has been continued after that was told.
        """
        with self._hearing:
            link = self._link
            if link is not self._heard:
                self._gone()
                self._heard, self._told = link, b""
            while link is not None:
                try:
                    told = link.recv(4096, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError:  # it was killed
                    told = b""
                if not told:
                    self._gone()
                    break
                *lines, self._told = (self._told + told).split(b"\n")
                for line in lines:
                    self._take_in(line[:1], float(line[1:]))
            return self._stops[first:], self._stopped_at is not None

    def _gone(self) -> None:
        """Somebody killed the guard: what it had stopped is continued here."""
        if self._stopped_at is not None:
            self._take_in(b">", time.monotonic())
            for group in list(self._groups):
                with contextlib.suppress(OSError):
                    os.killpg(group, signal.SIGCONT)

    def _take_in(self, word: bytes, when: float) -> None:
        if word == b"<":
            self._stopped_at = when
        elif self._stopped_at is not None:
            self._stops.append((self._stopped_at, when))
            self._stopped_at = None

    def _wish(self, wish: Callable[[], None]) -> None:
        self._wishes.append(wish)
        while self._wishes and self._lock.acquire(blocking=False):
            try:
                while self._wishes:
                    self._wishes.popleft()()
            finally:
                self._lock.release()

    def _release(self, user: object) -> None:
        self._users.pop(user, None)
        if not self._users:
            self._stop()

    def _add(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def _remove(self, group: int) -> None:
        self._groups.discard(group)
        self._leases.pop(group, None)
        if self._process is not None:
            self._tell(f"-{group}\n")

    def _lease(self, leases: dict[int, int]) -> None:
        leases = {group: end for group, end in leases.items() if group in self._groups}
        self._leases.update(leases)
        if self._process is not None:
            self._tell(_lease_lines(leases))

    def _tell(self, line: str) -> None:
        try:
            if self._process is None:
                self._start()
                line = "".join(f"+{group}\n" for group in self._groups)
                line += _lease_lines(self._leases)
            assert self._link is not None
            self._link.sendall(line.encode(), _QUIET)
        except (BrokenPipeError, ConnectionResetError):
            self._stop()  # somebody killed it: the next worker's start makes another
        except OSError as error:
            if error.filename is not None:  # it did not come to be executed
                self._unstartable = unstartable(error.filename, error.errno or 0)
                return
            report = next(iter(self._users.values()), report_here)
            report(logging.WARNING, "the guard process cannot be started: %s", error)

    def _start(self) -> None:
        # No pipe: a word to a guard that was killed would raise SIGPIPE, which may end a program.
        ours, theirs = socket.socketpair()
        try:
            with contextlib.closing(theirs), _holding_back(_SIGNALS):
                self._process = subprocess.Popen(
                    [executable(), *isolation(), *script(_GUARD), str(os.getpid())],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # Else it leaves this process' group once it has left its listener there.
                    start_new_session=not _has_terminal(),
                    cwd="/",
                )
        except BaseException:
            ours.close()
            raise
        self._link, self._unstartable = ours, None

    def _stop(self) -> None:
        link, self._link = self._link, None
        process, self._process = self._process, None
        if link is not None:
            link.close()
        if process is None:
            return
        try:
            process.wait(GIVE_UP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def forget(self) -> None:
        """In a fork of this process: the guard is the parent's."""
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
        self.__init__()  # type: ignore[misc]


def _lease_lines(leases: dict[int, int]) -> str:
    return "".join(f"={group} {end}\n" for group, end in leases.items())


# What a terminal, or its end, sends to the group that the guard is in at first.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


def _has_terminal() -> bool:
    """Whether there is one that could stop this process."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _holding_back(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Have the process that is started meanwhile inherit them blocked.

    Not on the main thread, where an interrupt could leave them so.
    """
    if threading.current_thread() is threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_QUIET: int = getattr(socket, "MSG_NOSIGNAL", 0)  # no SIGPIPE: it may be at its default


the_guard = Guard()
in_forks(Turn.PARTS, the_guard.forget)

__all__ = ["GIVE_UP", "Guard", "the_guard"]

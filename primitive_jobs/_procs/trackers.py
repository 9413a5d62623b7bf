"""The resource trackers of multiprocessing and of loky, which remove what killed processes leave.

They take longer to start than a worker, and most programs never need one. So where none runs yet, a
worker gets a pipe that nobody reads, and the tracker is started when something is first written
there, by a job or by this program: its libraries know of the pipe from the first moment on, so that
there is one tracker of each. What was written meanwhile waits in the pipe.

A pipe that was never written to, and that no process is left with, goes with the last pool. The
thread that watches is the only one that starts trackers and closes what they read. What is shared
with it is under a lock of its own, for which the end of a pool does not wait at any price: the
finalizer of something may wait for that end that is collected where the lock is held.
"""

from __future__ import annotations

import collections
import fcntl
import os
import select
import signal
import termios
import threading
import time
from typing import Any

from .._common.forks import Turn, in_forks
from .._common.threads import make_thread
from .interpreter import executable, flags, isolation, script
from .start_lock import start_lock

_PATIENCE = 1.0  # s
_AGAIN = 0.1  # s after a start that failed
_SCRIPT = "primitive_jobs._procs.tracker"
# From a tracker until it ignores them, and from what starts it: see `process`.
_HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP)
_EMPTY = bytes(4)  # 0, an int of C
_NOTHING = b"PROBE:0:noop\n"  # what trackers pass over


class _Pipe:
    """To a tracker that is not started yet."""

    def __init__(self, module: Any, reader: int, writer: int) -> None:
        self.module = module
        self.tracker = module._resource_tracker
        self.reader = reader
        self.writer = writer
        self.needed = False  # whether the tracker is being started
        self.dropped = False  # whether this program has let go of it

    def is_known(self) -> bool:
        """Whether this program's library writes to it: if not, the number may be another file's."""
        return not self.dropped and self.tracker._fd == self.writer

    def start(self) -> None:
        """Start the tracker."""
        import loky.backend
        from loky.backend import fork_exec

        # A category of warnings that is in a module is not found there, which would be told.
        options = [each for each in flags() if not (each[:2] == "-W" and "." in each)]
        command = [executable(), *options, *isolation(), *script(_SCRIPT)]
        command += [self.module.__name__, str(self.reader), *loky.backend.__path__]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        try:
            pid = fork_exec.fork_exec(command, [self.reader])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.is_known():
            self.tracker._pid = pid

    def is_unread(self) -> bool:
        """Whether something was written to it; makes nothing that sets off the collector."""
        return fcntl.ioctl(self.reader, termios.FIONREAD, _EMPTY) != _EMPTY

    def look(self) -> int:
        """Whether something is to be read (POLLIN), and whether nobody can write (POLLHUP)."""
        poller = select.poll()
        poller.register(self.reader, select.POLLIN)
        return dict(poller.poll(0)).get(self.reader, 0)

    def wake(self) -> None:
        """Have the tracker started."""
        if self.is_known() and not self.is_unread():
            os.write(self.writer, _NOTHING)

    def leave(self) -> None:
        """Drop it, if nobody uses it and no process has it; else have the tracker started."""
        # Whoever uses it writes something first, under this lock.
        if not self.tracker._lock.acquire(blocking=False):
            return
        try:
            if self.is_known() and not self.is_unread():
                self.dropped = self._is_dropped()
                if self.dropped:
                    self.tracker._fd = None
        finally:
            self.tracker._lock.release()
        if self.dropped:
            os.close(self.writer)
        else:
            self.wake()

    def _is_dropped(self) -> bool:
        """Whether this program has no end of it any more, since nobody else can write to it.

        The other end sees that, without this one, which is made anew if somebody else can.
        """
        again = f"/proc/self/fd/{self.reader}"
        if not os.access(again, os.W_OK):
            return False
        os.dup2(self.reader, self.writer, inheritable=False)  # so the number stays taken
        if self.look() == select.POLLHUP:
            return True
        try:
            writer = os.open(again, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:  # no descriptor is to be had: it, and a tracker, are for those others
            return True
        os.dup2(writer, self.writer, inheritable=False)
        os.close(writer)
        return False


_lock = threading.RLock()
_pipes: list[_Pipe] = []  # those that are watched
_watchers: list[threading.Thread] = []
_users = 0  # pools that start workers, and those in the next one
_left: collections.deque[None] = collections.deque()  # who has left and is not counted out yet


def enter() -> None:
    """Count a pool that is going to start workers."""
    global _users
    with _lock:
        _users += 1
        _count_out()


def _count_out() -> None:
    global _users
    while _left:
        _left.pop()
        _users -= 1


def prepare() -> tuple[int, int]:
    """Return the descriptors by which a worker that is started now reaches them.

    The first is that of multiprocessing. It is called under the start lock.
    """
    from multiprocessing import resource_tracker

    from loky.backend import resource_tracker as loky_tracker

    with _lock:
        known = [pipe.module for pipe in _pipes if pipe.is_known()]
    made: list[_Pipe] = []
    try:
        for module in (resource_tracker, loky_tracker):
            if module not in known:
                _prepare(module, made)
    finally:
        if made:
            _begin(made)
    return resource_tracker._resource_tracker._fd, loky_tracker._resource_tracker._fd  # type: ignore[attr-defined]


def _prepare(module: Any, made: list[_Pipe]) -> None:
    tracker = module._resource_tracker
    if tracker._fd is None:
        pipe = _Pipe(module, *os.pipe())
        with tracker._lock:
            ours = tracker._fd is None
            if ours:
                tracker._fd = pipe.writer
        if ours:
            made.append(pipe)
            return
        os.close(pipe.reader)  # the program has just started one
        os.close(pipe.writer)
    # Somebody may have killed it: then the library starts another, and unblocks SIGINT.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        module.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(pipes: list[_Pipe]) -> None:
    watcher = make_thread("trackers", _watch, [*pipes])
    with _lock:
        _pipes.extend(pipes)
        _watchers.append(watcher)
    try:
        watcher.start()
    except RuntimeError:  # no thread is to be had
        with _lock:
            _watchers.remove(watcher)
        _start_now(pipes)


def _start_now(pipes: list[_Pipe]) -> None:
    try:
        for pipe in pipes:
            pipe.needed = True
            pipe.start()
    except BaseException:  # nothing is to be had: none of them was there
        for pipe in pipes:
            with pipe.tracker._lock:
                pipe.tracker._fd = pipe.tracker._pid = None
            os.close(pipe.writer)
        raise
    finally:
        for pipe in pipes:
            _close(pipe)


def leave() -> None:
    """Count a pool out, whose workers are gone."""
    watchers = []
    _left.append(None)
    if _lock.acquire(timeout=_PATIENCE):  # else they stay as they are until the next one leaves
        try:
            _count_out()
            if not _users:
                for pipe in _pipes:
                    if pipe.is_known() and not pipe.needed:
                        pipe.leave()
                watchers = [*_watchers]
        finally:
            _lock.release()
    end = time.monotonic() + _PATIENCE
    for watcher in watchers:
        watcher.join(max(0.0, end - time.monotonic()))


def _watch(pipes: list[_Pipe]) -> None:
    poller = select.poll()
    by_reader = {pipe.reader: pipe for pipe in pipes}
    for reader in by_reader:
        poller.register(reader, select.POLLIN)
    while by_reader:
        for reader, _ in poller.poll():
            pipe = by_reader[reader]
            with _lock:  # while one is being dropped, it looks as if nobody had it
                event = pipe.look()
                pipe.needed = bool(event & select.POLLIN)
            if not event:
                continue
            try:
                if pipe.needed:  # else nobody is left who could write
                    pipe.start()
            except Exception:  # noqa: BLE001 - no process, or no descriptor, is to be had
                time.sleep(_AGAIN)
                continue
            poller.unregister(reader)
            del by_reader[reader]
            _close(pipe)
    with _lock:
        _watchers[:] = [each for each in _watchers if each is not threading.current_thread()]


def _close(pipe: _Pipe) -> None:
    with _lock:
        _pipes.remove(pipe)
        os.close(pipe.reader)


def _before_fork() -> None:
    start_lock().acquire()  # who holds that one takes this one
    _lock.acquire()


def _after_fork_in_parent() -> None:
    try:
        for pipe in _pipes:
            if not pipe.needed:  # the fork is to have it, whatever ends first
                pipe.wake()
    finally:
        _lock.release()
        start_lock().release()


def _after_fork_in_child() -> None:
    global _lock, _users
    for pipe in _pipes:
        os.close(pipe.reader)
    for each in (_pipes, _watchers, _left):
        each.clear()
    _lock, _users = threading.RLock(), 0


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
in_forks(Turn.PARTS, _after_fork_in_child)

__all__ = ["enter", "leave", "prepare"]

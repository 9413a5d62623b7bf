"""The pool's side of a worker process: start it, kill it with all below it, say how it died.

Starting happens on a pool's spawner thread, ending on its reaper thread; no other thread calls into
here, except for `WorkerProcess.terminate` and for reading its constant attributes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import mmap
import multiprocessing
import multiprocessing.process
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .._common.forks import Turn, in_forks
from .._wire import nesting, notes
from .._wire.channel import PacketChannel, StreamChannel, pair
from .._wire.evidence import Evidence
from .._wire.initializer import Initializer
from .._wire.messages import Kind
from .._wire.parcel import HAVE_PACKETS, map_file, nameless_file, seal
from ..insight.traces import LocalTraces
from ..logs import Report, levels, report_here
from . import interpreter
from .former import reap_former
from .guardian import the_guard
from .killing import TreeKill, tell_if_hidden
from .learned import Learned
from .probe import oom_kills, open_statm, peak_memory, processes_below, signal_status

_DYING = 0.1  # s that a process without its link has to be found dead, before it is killed
_PLAIN_END = 0.5  # s to die, for one that could not be ended properly
_DEATH_PAUSE = 0.005  # s, between two looks if one is dead of whom there is no pidfd
_STACK_LIMIT = 64 * 1024  # bytes of a stack that are read
_STACK_TIME = 0.5  # s, for a stack to be written: 1 ms is enough, unless the machine is very busy
_STACK_PAUSE = 0.0005  # s, between two looks whether it is
_STACK_REST = 0.05  # s, in which one that is still being written grows
_BEGINNING = 30.0  # s that a program which may be no Python has for its first line of ours
_LOOK_PAUSE = 0.002  # s, between two looks whether it has
_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes: getrusage(2)
_CRASHES = (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)


@dataclass(frozen=True)
class WorkerConfig:
    """What all workers of a pool have in common."""

    cpu_share: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    initializer: Initializer | None = None
    preload: tuple[str, ...] = ()
    packets: bool = HAVE_PACKETS
    depth: int | None = None  # of the program's pool, where this process only starts its workers
    forward_logs: bool = False  # whether log records of its jobs are handled here
    learned: Learned | None = None  # what its workers have imported; None: nobody asks
    knows: tuple[str, ...] = ()  # what a spare imports of that before it is ready
    by_cpus: frozenset[str] = frozenset()  # names in env: their numbers are those for one CPU

    @property
    def learn(self) -> Callable[[bytes], object] | None:
        """What takes in what a worker has imported; None: nothing does."""
        return None if self.learned is None else self.learned.take

    def for_spare(self) -> WorkerConfig:
        """Return how a worker is started that no job waits for."""
        names = () if self.learned is None else self.learned.names
        return replace(self, knows=names) if names else self

    def for_cpus(self, cpus: int) -> WorkerConfig:
        """Return how a worker is started whose jobs take so many CPUs."""
        if cpus == 1:
            return self
        times = {name: str(cpus * int(self.env[name])) for name in self.by_cpus}
        return replace(self, cpu_share=cpus * self.cpu_share, env={**self.env, **times})

    def close(self) -> None:
        """Give back what it holds, when no worker is started any more."""
        if self.initializer is not None:
            self.initializer.close()

    def let_go(self) -> None:
        """Hold nothing of the user's any more; to be called where foreign code may run."""
        if self.initializer is not None:
            self.initializer.let_go()


class WorkerProcess:
    """One started worker.

    Attributes:
        slot: The number of its slot.
        pid: Its process id, which is also its session's and its group's.
        node: None: it is on this machine.
        channel: The pool's end of the link.
        page: The memory that both share: see `notes`.
        death: A descriptor that is readable once the process is dead.
        lifeline: One that is readable once the process has closed what it should not; or None.
        shows_death: Whether it is so at once; else only when what it has forked is dead, too.
        report: Logs what happens to it.
        link_lost: Set by the dispatcher where the channel ended before the death was seen.
        heard_out: Set by the dispatcher where what it may still send does not count any more.
        traces: What it shows there of its attempts.
        shared: The dispatcher's: numbers of the shared data that was sent to it.
        statm: For `resident_by`; None: it is not open.
        knows: How many names it was told of what its siblings have imported.
    """

    node: str | None = None
    statm: int | None = None
    _peak: int | None = None  # bytes, right before it was killed; None: it died by itself

    def __init__(self, slot: int, config: WorkerConfig, report: Report = report_here) -> None:
        """Start it; whatever goes wrong raises, and then nothing is left."""
        self.slot, self.knows = slot, len(config.knows)
        self.link_lost = self.heard_out = False
        self.shared: set[int] = set()
        self._stack_due: float | None = None  # how long one is waited for; None: not asked for
        self._stack_size, self._stack_grew = 0, 0.0  # as it was last seen, and since when
        self._dies_by: float | None = None  # without its link, by itself; later it is killed
        self._cut_off: bool | None = None  # whether it did not; None: it is not being killed yet
        self._exit: tuple[int | None, Any] | None = None  # code and rusage, once it is reaped
        self.shows_death = False
        self.lifeline: int | None = None
        self._oom_kills = oom_kills()
        reap_former()
        interpreter.check_startable()
        the_guard.be_there()  # first: a worker has no rights that the guard has not
        self._page = _make_page()
        self.channel: PacketChannel | StreamChannel
        try:
            self.page = map_file(self._page, notes.PAGE_SIZE, mmap.MAP_SHARED)
            self.traces = LocalTraces(self.page, config.learn)
            self.channel, theirs = pair(packets=config.packets)
            with contextlib.ExitStack() as undo:
                undo.callback(self.channel.close)
                undo.callback(theirs.close)
                self._process = self._start(theirs.fileno(), config)
                undo.pop_all()
            if isinstance(self.channel, PacketChannel):
                self.channel.keep(theirs)
            else:
                theirs.close()
        except BaseException:
            os.close(self._page)
            raise
        self.pid: int = self._process.pid
        self.death: int = self._process.sentinel
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # no descriptor free, or a sandbox refuses it
                self.death = os.pidfd_open(self.pid)
                self.shows_death = True
        # Where the channel does not show that the worker has lost it: see `PacketChannel.keep`.
        if self.shows_death and config.packets:
            self.lifeline = self._process.sentinel
        self._fds = [self._page, self.death] if self.shows_death else [self._page]
        _open.add(self)
        self.report = report.about(self.pid, slot)
        self._tree = TreeKill(self.pid, self.report)
        tell_if_hidden(self.pid, self.report)
        the_guard.add(self.pid)
        if interpreter.is_doubtful():
            self._see_it_begin()

    def _start(self, fd: int, config: WorkerConfig) -> Any:
        from .launch import Process

        if config.initializer is not None:
            config.initializer.check()
            config.initializer.send(self.channel, Kind.INITIALIZE)
        _hold_terminal_signals()
        told = {
            "channel_fd": fd,
            "page_fd": self._page,
            "parent_pid": os.getpid(),
            "cpu_share": config.cpu_share,
            "depth": (nesting.depth if config.depth is None else config.depth) + 1,
            "preload": config.preload,
            "initializer": config.initializer,
            "title_from": _title_extension(),
            "log_levels": levels() if config.forward_logs else None,
            "learned": config.knows,
        }
        name = f"job-worker-{self.slot}"
        process = Process(name, dict(config.env), told, [fd, self._page])
        try:
            with contextlib.nullcontext() if config.depth is None else _not_daemonic():
                process.start()
        finally:
            # Else any Process.start() of the user's program reaps it, and its exit joins it.
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        return process

    def _see_it_begin(self) -> None:
        """Wait for its first note; a program that neither begins nor ends is ended, and raised."""
        end = time.monotonic() + _BEGINNING
        while not notes.NOTES.unpack(os.pread(self._page, notes.NOTES.size, 0))[2]:
            if _readable(self.death, _LOOK_PAUSE):
                return  # that is seen anyway
            if time.monotonic() > end:
                self.end()
                self.close()
                raise RuntimeError(f"after {_BEGINNING:g} s: {interpreter.hint()}")

    def has_sent(self) -> bool:
        """Whether there is something of it to be received."""
        return _readable(self.channel.fileno(), 0)

    def terminate(self) -> None:
        """Send SIGTERM. Only while nobody ends it, so that the pid is certainly its own.

        Where the sending fails the kill that follows fails, too, and says so.
        """
        try:
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        except PermissionError:
            with contextlib.suppress(PermissionError):
                the_guard.signal(self.pid, signal.SIGTERM, wait=False)

    def hold_still(self, *, ask_stack: bool = False) -> None:
        """Have it compute no more until `end` is called.

        With ``ask_stack`` it is made to write its Python stack first: see `is_still`.
        """
        if ask_stack:
            # No descriptor free, most likely: then it is ended without.
            with contextlib.suppress(Exception):
                self._ask_stack()
        if not self.is_dead():
            self._peak = peak_memory(self.pid)
        # How one without its link ends by itself is still to be seen.
        if self._stack_due is None and not self.link_lost:
            self._tree.stop()

    def is_still(self) -> bool:
        """Whether it can be killed now.

        That is when it has written the stack that it was asked for, or will not any more. One
        without its link is given a moment to be found dead: how it ends is still to be seen.
        """
        now = time.monotonic()
        if self.link_lost and self._dies_by is None:
            self._dies_by = now + _DYING
        if self.is_dead():
            return True
        if self._dies_by is not None and now < self._dies_by:
            return False
        if self._stack_due is None or now > self._stack_due:
            return True
        assert notes.STACK_SIGNAL is not None
        status = signal_status(self.pid, notes.STACK_SIGNAL)
        size = os.fstat(self._page).st_size
        if size != self._stack_size:
            self._stack_size, self._stack_grew = size, now
        if status is None or status.pending:
            return status is None
        # Afterwards it sleeps for good, which it has no other way to tell; unless signals of the
        # job's own wake it up again and again: then the stack does not grow any more.
        return status.state == "S" or (
            size > notes.PAGE_SIZE and now - self._stack_grew > _STACK_REST
        )

    def kill(self) -> bool:
        """Send SIGKILL to it and to what is below it; False: there may be more, so call again."""
        if self._cut_off is None:
            # A dying process closes its link a moment before it is dead.
            self._cut_off = self.link_lost and not self.is_dead()
        return self._tree.strike()

    def is_gone(self) -> bool:
        """Whether it, once killed, is reaped, and all below it is dead; or was given up."""
        if self._exit is None and self.is_dead():
            self._exit = self._reap()
        if (
            self._exit is None
            and self.pid not in self._tree.denied
            and time.monotonic() < self._tree.give_up
        ):
            return False
        return self._tree.is_over(reaped=self._exit is not None)

    def pause(self) -> tuple[bool, float]:
        """Whether its death, which `death` shows, is waited for; and s until the next look."""
        now = time.monotonic()
        if self._cut_off is None and self._stack_due is not None:
            return False, _STACK_PAUSE
        if self._cut_off is None and self._dies_by is not None:
            until = self._dies_by
        elif not self._tree.struck:
            until = now
        elif self._exit is None and not self._tree.due:
            until = self._tree.give_up
        else:
            return False, max(0.0, self._tree.due - now)
        if self.shows_death:
            return True, max(0.0, until - now)
        return False, min(max(0.0, until - now), _DEATH_PAUSE)

    def end(self) -> Evidence:
        """Do what is left to do of all this, and return what is known of its death."""
        while not (self.is_still() and self.kill() and self.is_gone()):
            death, pause = self.pause()
            if death:
                _readable(self.death, pause)
            else:
                time.sleep(pause)
        # So that nobody waits for this pid, which may soon be another process's.
        code, used = self._exit or (None, None)
        self._process._popen.returncode = 0 if code is None else code
        if self._exit is not None:
            the_guard.remove(self.pid)
        evidence = self._evidence(code, used)
        if evidence.left is not None:
            text = "worker %d is left alone, it could not be killed: %s"
            self.report(logging.WARNING, text, self.pid, evidence.left)
        return evidence

    def left(self) -> str | None:
        """What of it may live on, and why; None: it is all dead."""
        return self._tree.left(root=self._exit is None and not self.is_dead())

    def put_down(self) -> str | None:
        """End it as plainly as can be, after something in here has raised; return what is left."""
        with contextlib.suppress(Exception):
            self._tree.strike_plainly()
            _readable(self.death, _PLAIN_END)
            if self._exit is None and self.is_dead():
                self._exit = self._reap()
            self._process._popen.returncode = 0
        if self._exit is not None:
            the_guard.remove(self.pid)
        left = self.left()
        return "what it has started" if left is None and not self._tree.over else left

    def is_dead(self) -> bool:
        """Whether it has ended, reaped or not."""
        if self.shows_death:
            return _readable(self.death, 0)
        try:
            return os.waitid(os.P_PID, self.pid, _LOOK) is not None
        except ChildProcessError:  # somebody else has reaped it
            return True

    def _evidence(self, exitcode: int | None, used: Any) -> Evidence:
        peak = 0 if used is None else used.ru_maxrss
        cut_off = bool(self._cut_off)
        noted: int | None = None
        matter, inherited, stack = 0, 1, None
        try:
            noted, matter, inherited = notes.NOTES.unpack(os.pread(self._page, notes.NOTES.size, 0))
            cut_off = cut_off or matter == notes.LINK_LOST
            crashed = exitcode is not None and -exitcode in _CRASHES
            asked = self._stack_due is not None
            if crashed != asked:  # both: the asking has crashed it, and the stack is not the job's
                text = os.pread(self._page, _STACK_LIMIT, notes.PAGE_SIZE)
                stack = text.decode(errors="replace").strip() or None
        except (OSError, struct.error):  # a job may have cut it short
            self.report(logging.WARNING, "what worker %d has noted cannot be read", self.pid)
        return Evidence(
            self.pid,
            None if cut_off else exitcode,  # not by a death of its own
            noted,
            matter == notes.INITIALIZING,
            stack,
            peak_memory=peak * _MAXRSS_UNIT if peak > inherited else self._peak or None,
            usage=self._usage(noted, used, peak * _MAXRSS_UNIT if peak > inherited else 0),
            cut_off=cut_off,
            out_of_memory=None if cut_off else self._oom_signs(exitcode),
            left=self.left(),
            hint=None if inherited or cut_off else interpreter.hint(),
        )

    def _usage(self, attempt: int | None, used: Any, peak: int) -> bytes | None:
        """What the attempt used in which it died."""
        if used is None or not attempt:
            return None
        exact = self._peak is not None and not self._tree.below
        peak = max(peak, self._peak or 0)
        return notes.used_at_death(self.page, attempt, used.ru_utime, used.ru_stime, peak, exact)

    def _ask_stack(self) -> None:
        """Have it write its Python stack and do nothing more, if it can."""
        number = notes.STACK_SIGNAL
        if number is None:
            return
        # All that takes time comes before the look: after it the job may still block the signal.
        below, tgkill = processes_below(self.pid), _tgkill()
        now = signal_status(self.pid, number)
        if now is None or not now.caught or now.blocked or now.state in "TtXZ":
            return
        if hasattr(resource, "prlimit"):
            with contextlib.suppress(OSError, ValueError):
                # CPython 3.11 to 3.13 may crash over it: not even a pipe gets a dump (core(5)).
                resource.prlimit(self.pid, resource.RLIMIT_CORE, (1, 1))
        # To its main thread: another may take what is sent to a process. A sandbox may refuse it.
        if tgkill is None or tgkill(self.pid, self.pid, number):
            os.kill(self.pid, number)
        self._tree.below.update(below)
        # From now on: many that do not answer are waited for together.
        self._stack_due = time.monotonic() + _STACK_TIME

    def _oom_signs(self, exitcode: int | None) -> str | None:
        """What says that a SIGKILL came from the kernel, short of memory."""
        if exitcode != -signal.SIGKILL:
            return None
        more = [
            f"by {after - before} ({place})"
            for place, after in oom_kills().items()
            if (before := self._oom_kills.get(place, after)) < after
        ]
        rise = " and ".join(more)
        return f"its count rose {rise} since this worker was started" if more else None

    def _reap(self) -> tuple[int | None, Any]:
        """Take it, dead, off the system's table; return exit code and rusage, None if unknown."""
        try:
            _, status, usage = os.wait4(self.pid, 0)
            return os.waitstatus_to_exitcode(status), usage
        except (ChildProcessError, ValueError):  # somebody else reaped it
            return None, None

    def open_statm(self) -> None:
        """Have `statm` until it is closed; on the dispatcher's thread. Raises OSError."""
        if self.statm is None:
            self._fds.append(open_statm(self.pid))
            self.statm = self._fds[-1]

    def close(self) -> None:
        """Give the descriptors back; again is harmless."""
        self.channel.close()
        self.traces.close()
        while self._fds:
            os.close(self._fds.pop())
        self._process._popen.close()  # its sentinel
        _open.discard(self)


_open: set[WorkerProcess] = set()
"""Those with descriptors: spawners add to it while no fork can be, dispatchers take out of it."""


def _close_all() -> None:
    """In a fork of the process, whoever had them in hand: they are the parent's."""
    for process in list(_open):
        with contextlib.suppress(OSError):
            process.close()


in_forks(Turn.PARTS, _close_all)


@functools.cache
def _title_extension() -> str | None:
    """The file of setproctitle's extension, by which a worker bears the name of its job.

    A worker is told, since looking takes a while, and what setproctitle imports even longer.
    """
    try:
        spec = importlib.util.find_spec("setproctitle._setproctitle")
    except ImportError:
        return None
    return None if spec is None else spec.origin


@functools.cache
def _tgkill() -> Callable[[int, int, int], int] | None:
    """The system call that sends a signal to one thread; glibc before 2.30 and musl have none."""
    import ctypes

    return getattr(ctypes.CDLL(None), "tgkill", None)


def _readable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _hold_terminal_signals() -> None:
    """Keep Ctrl-C from the process started next: it inherits this thread's signal mask.

    The worker clears the mask once it leads a session of its own, where no terminal reaches it.
    """
    from loky.backend import spawn as loky_spawn

    loky_spawn._python_exe = interpreter.executable()  # it would be sys.executable, come what may
    # From the trackers, too: one that Ctrl-Z stops before its execve(2) has this thread wait in
    # vfork(2), so that the program never counts as stopped, and the terminal waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)


@contextlib.contextmanager
def _not_daemonic() -> Iterator[None]:
    """Have multiprocessing start a process, though this one is what it calls daemonic.

    That means that its parent ends it without waiting for its children; ours, the guard ends.
    """
    config: dict[str, Any] = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    daemon = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            config["daemon"] = daemon


def _make_page() -> int:
    """A nameless file of one page, to be shared with a worker."""
    fd = nameless_file("primitive_jobs-page", sealable=True)
    try:
        os.ftruncate(fd, notes.PAGE_SIZE)
        if HAVE_PACKETS:
            seal(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


__all__ = ["WorkerConfig", "WorkerProcess"]

"""In a worker: takes back what a job leaves in its process and what would strike the next one.

It is done when the answer has been sent, so that nobody waits for it, and it has to cost next to
nothing: asking the system after each job would take as long as a tenth of a short one. So the few
functions by which the state of the process is changed note that they were called. `JobPool` tells
what is not taken back; besides, what an extension changes without Python is not seen. Every worker
imports this: so it imports nothing that is not there anyway.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import faulthandler
import functools
import gc
import io
import os
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# With SIGCHLD ignored no exit code of a child arrives; SIGPIPE as in C ends the process.
_SIGNALS = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGALRM)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_PLACE = ("chdir", "fchdir")
_CLEAR = "_clearenv"  # from CPython 3.15 on
_VARIABLES = ("putenv", "unsetenv", _CLEAR)  # which os.environ calls, too
_MASK = "pthread_sigmask"
_ALARMS = ("setitimer", "alarm")
_STACKS = ("enable", "disable", "register", "unregister")
_WATCHDOG = "dump_traceback_later"
_OVER = "dup2"  # puts a descriptor in the place of another

# The functions themselves, which are not noted.
_set_timer, _set_mask = signal.setitimer, signal.pthread_sigmask

_called: set[str] = set()
"""Names of watched functions that were called since the last job, by any thread."""
_present: list[Leftovers] = []
"""What the worker's loop comes back to."""


def watch() -> None:
    """Have the functions that `Leftovers` goes by note when they are called."""
    for name in (*_PLACE, "umask", _OVER, *_VARIABLES):
        if hasattr(posix, name):
            _watch(name, posix, os)
    for name in ("signal", _MASK):
        _watch(name, signal)
    known = sys.modules.get("signal")  # it has copied these two
    for name in _ALARMS:
        _watch(name, *(signal, known) if known else (signal,))
    for name in (*_STACKS, _WATCHDOG):
        _watch(name, faulthandler)


def _watch(name: str, *modules: Any) -> None:
    call = getattr(modules[0], name)

    @functools.wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            made = call(*args, **kwargs)
            if _present and _is_in_import():
                _present[0].accept(name, args)
            return made
        finally:  # afterwards: a thread that is interrupted in between is noted for the next job
            _called.add(name)

    for module in modules:
        setattr(module, name, watched)
    if call in os.supports_fd:
        os.supports_fd.add(watched)


def _is_in_import() -> bool:
    """Whether a module that is being imported has called, in this thread."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def after_call() -> None:
    """Between two calls of one job: take back what the first has set by a watched function."""
    if _called and _present:
        _present[0].take_back()


def may_have_replaced_descriptors() -> bool:
    """Whether the present job has put a descriptor in the place of another one."""
    return _OVER in _called


def stop_timers() -> None:
    """Have none of the process's timers go off."""
    for timer in _TIMERS:
        _set_timer(timer, 0)


def unblock_signals() -> None:
    """Have all of them come to this thread."""
    _set_mask(signal.SIG_SETMASK, ())


class Leftovers:
    """The state to come back to: that of a worker which is ready for its first job.

    Args:
        write_stacks: Has the stack of a crash written to where the pool finds it; None: it is
            left as it is.
    """

    def __init__(self, write_stacks: Callable[[], object] | None) -> None:
        self._write_stacks = write_stacks
        self._folder = _folder()
        self._mask = os.umask(0o077)
        os.umask(self._mask)
        environ: Any = os.environ
        self._environ = environ
        self._variables: dict[bytes, bytes] = dict(environ._data)
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._handlers = [(number, signal.getsignal(number)) for number in _SIGNALS]
        self._collects = gc.isenabled()
        _called.clear()
        _present[:] = [self]

    def accept(self, name: str, args: tuple[Any, ...]) -> None:
        """Come back to what a watched function has just set: the module that it was set by stays.

        It is not imported again, so no later job would set what its functions rely on.
        """
        if name == "putenv":
            self._variables[args[0]] = args[1]
        elif name == "unsetenv":
            self._variables.pop(args[0], None)
        elif name == _CLEAR:
            self._variables.clear()
        elif name in _PLACE:
            self._folder = _folder()
        elif name == "umask":
            self._mask = args[0]
        elif name == "signal":
            number, handler = args
            self._handlers = [(n, handler if n == number else h) for n, h in self._handlers]

    def take_back(self) -> None:
        """Come back to it, as far as that is possible; never raises."""
        try:
            if _called:
                self._take_back_what_was_set()
            if os.environ is not self._environ:
                os.environ = self._environ  # noqa: B003 - it is the one that the system knows
            if gc.isenabled() is not self._collects:
                (gc.enable if self._collects else gc.disable)()
            given, out, err = self._streams
            if sys.stdout is not out or sys.stderr is not err or sys.stdin is not given:
                sys.stdin = _given_back(sys.stdin, given)
                sys.stdout = _given_back(sys.stdout, out)
                sys.stderr = _given_back(sys.stderr, err)
        except AttributeError:  # a stream was deleted
            sys.stdin, sys.stdout, sys.stderr = self._streams
        except Exception:  # noqa: BLE001 - a thread that goes on may change things meanwhile
            pass

    def _take_back_what_was_set(self) -> None:
        called = {*_called}
        if not called.isdisjoint(_PLACE) and not self._goes_back():
            called.difference_update(_PLACE)  # it is tried again after the next job
        if "umask" in called:
            os.umask(self._mask)
        if not called.isdisjoint(_VARIABLES):
            self._take_back_variables()
        if not called.isdisjoint(_ALARMS):  # before the handlers: none is to meet the default one
            stop_timers()
        if _MASK in called:
            unblock_signals()
        if "signal" in called:
            for number, handler in self._handlers:
                if signal.getsignal(number) is not handler and handler is not None:
                    signal.signal(number, handler)
        if _WATCHDOG in called:
            faulthandler.cancel_dump_traceback_later()
        if self._write_stacks is not None and not called.isdisjoint(_STACKS):
            self._write_stacks()
        _called.difference_update(called)  # our own calls among them

    def _goes_back(self) -> bool:
        if self._folder is not None and _folder() != self._folder:
            try:
                os.chdir(self._folder)
            except OSError:  # somebody has removed it
                return False
        return True

    def _take_back_variables(self) -> None:
        before, now = self._variables, dict(self._environ._data)
        for name in now.keys() - before.keys():
            del os.environb[name]
        for name, value in [*before.items()]:
            if now.get(name) != value:
                os.environb[name] = value


def _given_back(stream: Any, ours: Any) -> Any:
    """Return what is to be in the place of a stream.

    What a job has made over the same descriptor stays: the end of that would close it for ours too.
    So does what has taken the place of one that can be used no more.
    """
    try:
        if ours.closed:
            return stream
    except ValueError:  # its buffer was taken out, by `detach`
        return stream
    except AttributeError:  # no real stream
        return ours
    try:
        if isinstance(stream, io.IOBase) and stream.fileno() == ours.fileno():
            return stream
    except (OSError, ValueError, AttributeError):  # it has no descriptor, or is closed
        pass
    return ours


def _folder() -> str | None:
    """The working directory; None if it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109 - a path object takes longer
    except OSError:
        return None

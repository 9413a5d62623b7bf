"""In a worker: has what a job prints go to a pipe of the pool's, or to a file.

Descriptors 1 and 2 are redirected, so that what C code and child processes print goes there too. At
the end of the job they are what they were before it, whatever it has made of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import sys
from functools import partial

from . import facts
from .messages import PRINTED
from .present import now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

STANDARD = (1, 2)  # descriptors: stdout, stderr
KEPT = ("capture", "tee")
"""Where a job's output goes through the pipe; else that is the path of a file, as `str.format`
takes it."""
_SIZE = 1 << 20  # bytes of the pipe, if the user may have that
_HIGH = 960  # descriptors from here on are seldom taken by their number

_dup2: Callable[[int, int], int] = getattr(os.dup2, "__wrapped__", os.dup2)  # not noted as a job's

_pipe: list[tuple[int, tuple[int, int]]] = []
"""The end to write to, and its inode and device."""
_flush_c: list[Callable[[], object]] = []


class _Redirected:
    """What to come back to at the end of the present job."""

    def __init__(self) -> None:
        self._saved: list[tuple[int, int]] = []  # standard descriptor, duplicate; -1: closed
        self._stream: Any = None  # whose settings were changed
        self._settings: dict[str, Any] = {}
        self._made: TextIO | None = None  # where there was none

    def begin(self, where: str) -> None:
        """Redirect; raises OSError."""
        _flush()
        for fd in STANDARD:
            try:
                self._saved.append((fd, _high(fd)))
            except OSError as error:
                if _is_open(fd):
                    what = f"what the job prints cannot go elsewhere: {error.strerror}"
                    raise OSError(error.errno, what) from error
                self._saved.append((fd, -1))
        target = _writable() if where in KEPT else _file(where.format())
        try:
            for fd in STANDARD:
                _dup2(target, fd)
        finally:
            if where not in KEPT:
                os.close(target)
        self._set_streams()

    def _set_streams(self) -> None:
        stream: Any = sys.stdout
        if stream is None:
            # As for a program that was started without one: now there is one.
            self._made = sys.stdout = open(  # noqa: SIM115 - it is put back by `end`
                1, "w", buffering=1, encoding="utf-8", closefd=False
            )
        elif isinstance(stream, io.TextIOWrapper):
            self._stream = stream
            with contextlib.suppress(ValueError):  # it is closed, or its buffer was taken out
                if not stream.line_buffering:
                    self._settings["line_buffering"] = False
                    stream.reconfigure(line_buffering=True)
                if stream.encoding.lower().replace("_", "-") != "utf-8":
                    self._settings.update(encoding=stream.encoding, errors=stream.errors)
                    stream.reconfigure(encoding="utf-8", errors=stream.errors)

    def end(self, told: dict[int, bytes]) -> None:
        """Come back, once all is written."""
        told[facts.OUTPUT] = b""
        if self._stream is not None:
            with contextlib.suppress(Exception):  # the job has closed it
                self._stream.flush()
        _flush()
        for fd, saved in self._saved:
            if saved < 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
                continue
            try:
                _dup2(saved, fd)
                os.close(saved)
            except OSError:  # the job has closed it: at least it does not print here any more
                null = os.open(os.devnull, os.O_WRONLY)
                _dup2(null, fd)
                os.close(null)
        if self._settings and self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.reconfigure(**self._settings)
        if self._made is not None and sys.stdout is self._made:
            sys.stdout = None


def enter(where: str) -> None:
    """Have the present job print elsewhere; raises OSError."""
    if not now.attempt or now.page is None:
        return
    redirected = _Redirected()
    now.ending.append(redirected.end)  # first: an interrupt may come at any moment
    redirected.begin(where)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if not _flush_c:
        _flush_c.append(_flush_of_c())
    _flush_c[0]()


def _flush_of_c() -> Callable[[], object]:
    try:
        from . import libc

        return libc.stdout_by_lines()
    except (ImportError, OSError):  # no such symbols: it is buffered as it is
        return partial(int)


def _writable() -> int:
    """Return the end of the pipe to write to; a job may have closed the one that there was."""
    if _pipe:
        fd, identity = _pipe[0]
        with contextlib.suppress(OSError):
            if _identity(fd) == identity:
                os.set_blocking(fd, True)  # a job, or a child of one, may have had it otherwise
                return fd
        _pipe.clear()
    assert now.lend is not None, "that of a worker is set"
    out, into = os.pipe2(os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # the user has too many pipes of that size
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _SIZE)
        now.lend(out, PRINTED)
        fd = _high(into)
    finally:
        os.close(out)
        os.close(into)
    _pipe.append((fd, _identity(fd)))
    return fd


def _file(path: str) -> int:
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - `Path` is not needed
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _high(fd: int) -> int:
    """Duplicate a descriptor, to a number that no job takes for its own, if that can be had."""
    for least in (_HIGH, 3):
        try:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EMFILE):
                raise
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _identity(fd: int) -> tuple[int, int]:
    state = os.fstat(fd)
    return state.st_ino, state.st_dev


__all__ = ["KEPT", "STANDARD", "enter"]

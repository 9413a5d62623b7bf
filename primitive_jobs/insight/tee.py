"""`Tee`: shows what a job prints while it runs, line by line, each with the job's name."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from _thread import allocate_lock  # of threads, whoever patches `threading` later
from collections.abc import Callable

_MOST = 256 << 10  # bytes that may wait to be shown
_PATIENCE = 0.5  # s that whoever has waited for a job waits for its last lines
_LONGEST = 64 << 10  # bytes of a line; what is longer is shown in parts


class Tee:
    """Cuts into lines what it is fed, and has them printed on another thread.

    Args:
        name: The job's.
        call: Calls what it is given soon, on a thread where users' code may run: ``sys.stdout`` is
            the user's.
    """

    def __init__(self, name: str, call: Callable[[Callable[[], object]], object]) -> None:
        self._label = " ".join(name.split())
        self._call = call
        self._at = 0  # up to where it has come
        self._rest = b""  # of a line
        # Bytes that were handed on, and those that were printed; each has one thread that writes.
        self._given = self._shown = 0
        self._thread = 0  # which prints

    def feed(self, start: int, data: bytes) -> None:
        """Take in what comes at a place of the job's output; what it had before is passed over."""
        end = start + len(data)
        missing = start - self._at
        if missing > 0:
            self.end_line()
            self._give(b"[... %d bytes left out ...]" % missing)
        elif missing:
            data = data[-missing:]
        if end <= self._at:
            return
        self._at = end
        lines, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self._give(lines)
        if len(self._rest) > _LONGEST:
            self.end_line()

    def end_line(self) -> None:
        """Show what is there of a line."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._give(rest)

    def _give(self, lines: bytes) -> None:
        self._given += len(lines)
        self._call(functools.partial(self._print, lines))

    def wait_shown(self) -> None:
        """Wait until what has come is printed; a moment at most, and not where it is printed."""
        if self._shown < self._given and self._thread != threading.get_ident():
            lock = allocate_lock()
            lock.acquire()
            self._call(lock.release)
            lock.acquire(timeout=_PATIENCE)

    @property
    def is_behind(self) -> bool:
        """Whether much waits to be printed."""
        return self._given - self._shown > _MOST

    def _print(self, lines: bytes) -> None:
        self._thread = threading.get_ident()
        try:
            stream = sys.stdout
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):  # it is closed, or nobody reads it
                    stream.write(self._labelled(lines.decode("utf-8", "replace")))
                    stream.flush()
        finally:
            self._shown += len(lines)

    def _labelled(self, text: str) -> str:
        """Put the name before each line; of one with CRs, before what a terminal would show."""
        shown = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
        return "".join(f"{self._label} | {line}\n" for line in shown)


__all__ = ["Tee"]

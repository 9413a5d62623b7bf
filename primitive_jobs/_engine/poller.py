"""`Poller`: waits on descriptors; `Bell`: wakes the thread that does.

What is missing, in Python, in the kernel or since a sandbox refuses it, has something else in its
place: it is found out by trying.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any, TypeVar

from .._wire.messages import REFUSED

T = TypeVar("T")


class Bell:
    """Wakes the dispatcher; any thread, signal handler or finalizer may ring it.

    File objects rather than numbers: once closed they raise, where a number might be somebody
    else's by then. An eventfd takes a third of a socket pair's time, and cannot fail for want of
    a buffer.
    """

    _RING = struct.pack("=Q", 1)

    def __init__(self) -> None:
        event = _unless_refused(lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        if event is not None:
            self._out = self._in = io.FileIO(event, "r+")
        else:
            out, into = os.pipe()
            os.set_blocking(out, False)
            os.set_blocking(into, False)
            self._out, self._in = io.FileIO(out, "r"), io.FileIO(into, "w")

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._out.fileno()

    def ring(self) -> None:
        """Wake it; harmless if it is awake or has ended."""
        with contextlib.suppress(OSError, ValueError):  # full: it is awake; closed: it has ended
            self._in.write(self._RING)

    def hush(self, mask: int) -> None:
        """Be ready for the next ring."""
        del mask
        with contextlib.suppress(OSError):
            self._out.read(4096)

    def close(self) -> None:
        """Give the descriptors back."""
        self._in.close()  # first: nobody shall ring into a pipe that nobody reads (SIGPIPE)
        self._out.close()


def _unless_refused(make: Callable[[], T]) -> T | None:
    """Make what only some systems have; None where Python or the system has it not, or refuses."""
    try:
        return make()
    except AttributeError:
        return None
    except OSError as error:
        if error.errno in REFUSED:
            return None
        raise


class Poller:
    """epoll where there is one, else poll.

    Attributes:
        poll: Waits at most so many seconds (-1: without an end), rounded up to milliseconds;
            returns (descriptor, mask) pairs. To be looked up for each call: see `call_in`.
        handlers: What is called with the mask, by descriptor.
        closers: What is called first by `close`: each gives back descriptors that are waited on
            here and are nobody's who would do it. In a fork of the process it is called, too.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.closers: list[Callable[[], None]] = []
        self._due: list[tuple[float, Callable[[], None]]] = []  # when, by the monotonic clock
        self._poll: Any = _unless_refused(lambda: select.epoll()) or select.poll()  # noqa: PLW0108
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister
        self._wait: Callable[[float], list[tuple[int, int]]] = (
            self._poll.poll if hasattr(self._poll, "close") else self._poll_in_milliseconds
        )
        self.poll = self._wait

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """Have ``handler`` called when a descriptor is readable; raises OSError."""
        self.register(fd, select.POLLIN)
        self.handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Wait for a descriptor no more; raises OSError.

        Where it raises, what is closed soon goes by itself, and what comes has no handler.
        """
        if self.handlers.pop(fd, None) is not None:
            self.unregister(fd)

    def handle(self, events: list[tuple[int, int]]) -> None:
        """Call the handlers of what `poll` has returned."""
        for fd, mask in events:
            handler = self.handlers.get(fd)
            if handler is not None:
                handler(mask)

    def _poll_in_milliseconds(self, timeout: float) -> list[tuple[int, int]]:
        # Rounded up, or the last millisecond would be spent waiting for nothing many times.
        return self._poll.poll(math.ceil(timeout * 1000))  # type: ignore[no-any-return]

    def call_in(self, seconds: float, call: Callable[[], None]) -> None:
        """Have something called after so many seconds, by `poll`, in the thread that waits.

        Nothing of it costs a wait that comes when all such calls have been made.
        """
        self._due.append((time.monotonic() + seconds, call))
        self.poll = self._wait_for_calls

    def _wait_for_calls(self, timeout: float) -> list[tuple[int, int]]:
        left = max(0.0, min(when for when, _ in self._due) - time.monotonic())
        events = self._wait(left if timeout < 0 else min(left, timeout))
        now = time.monotonic()
        calls = [call for when, call in self._due if when <= now]
        self._due = [each for each in self._due if each[0] > now]
        if not self._due:
            self.poll = self._wait
        for call in calls:
            call()
        return events

    def close(self) -> None:
        """Give its descriptor back, and what the closers have."""
        while self.closers:
            with contextlib.suppress(OSError):
                self.closers.pop()()
        if hasattr(self._poll, "close"):
            self._poll.close()

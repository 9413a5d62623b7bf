"""`Visitor`: one viewer's connection to a pool.

It asks one thing at a time: whoever asks again before the answer is out is closed, so that a pool
never keeps more than one answer for a viewer that does not read. Nothing here blocks.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from .protocol import LARGEST_REQUEST, pages, parsed
from .requests import REQUESTS, Pending, Pool

_READ, _WRITE = select.POLLIN, select.POLLOUT


class ReportingPool(Pool, Protocol):
    """A pool that is shown, and has a log."""

    @property
    def report(self) -> Callable[..., None]:
        """Log ``(level, message, *args, error=None)``."""
        ...


class Poller(Protocol):
    """Waits on descriptors; `handlers` are called on the same thread."""

    closers: list[Callable[[], None]]
    modify: Callable[[int, int], Any]

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """Have ``handler`` called when a descriptor is readable; raises OSError."""

    def unwatch(self, fd: int) -> None:
        """Wait for it no more; raises OSError."""

    def call_in(self, seconds: float, call: Callable[[], None]) -> None:
        """Have something called after so many seconds."""


class Host(Protocol):
    """Who has accepted a viewer."""

    poller: Poller
    pool: ReportingPool

    def snapshot(self) -> list[bytes]:
        """Return the datagrams of what the pool has now, or had a moment ago."""
        ...

    def left(self, visitor: Visitor) -> None:
        """Forget a viewer, whose connection is closed."""


class Visitor:
    """A viewer that is connected; an `Exchange` as long as it waits for an answer.

    Args:
        connection: To it; not blocking.
        host: Who has accepted it.
    """

    def __init__(self, connection: socket.socket, host: Host) -> None:
        self._socket = connection
        self._host = host
        self._out: deque[bytes] = deque()  # pages of an answer that the kernel had no room for
        self._asked = False  # something that is not answered
        self._pending: Pending | None = None  # who will answer that
        host.poller.watch(connection.fileno(), self._on_event)

    def _on_event(self, mask: int) -> None:
        try:
            if mask & _WRITE:
                self._flush()
            if mask & ~_WRITE:
                self._receive()
        except (OSError, ValueError):  # it is gone, or says what nobody understands
            self.close()
        except Exception as error:  # noqa: BLE001 - it is logged, and costs the pool nothing
            self._host.pool.report(logging.ERROR, "a viewer could not be answered", error=error)
            self.close()

    def _receive(self) -> None:
        try:
            datagram = self._socket.recv(LARGEST_REQUEST + 1)
        except BlockingIOError:
            return
        if not 0 < len(datagram) <= LARGEST_REQUEST or self._asked or self._out:
            self.close()
            return
        asked = parsed(datagram)
        call = REQUESTS.get(str(asked.get("ask")))
        self._asked = True
        if call is None:
            self.answer({"error": "this version of primitive_jobs does not know the request"})
        else:
            call(self, asked)

    # --- an exchange -------------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """Who is asked."""
        return self._host.pool

    def answer(
        self, answer: Mapping[str, object], rows: Iterable[Mapping[str, object]] = ()
    ) -> None:
        """Answer what it has asked."""
        self._send(pages(answer, rows))

    def answer_with_snapshot(self) -> None:
        """Answer with the snapshot that all viewers get."""
        self._send(self._host.snapshot())

    def answer_later(self, pending: Pending) -> None:
        """Wait for the answer, unless it has come already."""
        if self._asked:
            self._pending = pending

    # --- sending -----------------------------------------------------------------------------

    def _send(self, datagrams: list[bytes]) -> None:
        self._asked, self._pending = False, None
        self._out.extend(datagrams)
        try:
            self._flush()
        except OSError:
            self.close()

    def _flush(self) -> None:
        waited = False
        while self._out:
            try:
                self._socket.send(self._out[0])
            except BlockingIOError:
                waited = True
                break
            self._out.popleft()
        self._host.poller.modify(self._socket.fileno(), _READ | _WRITE if waited else _READ)

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection; again is harmless."""
        if self._socket.fileno() < 0:
            return
        if self._pending is not None:
            self._pending.drop()
            self._pending = None
        with contextlib.suppress(OSError):
            self._host.poller.unwatch(self._socket.fileno())
        self._socket.close()
        self._host.left(self)

    def finish(self) -> None:
        """End it, since the pool ends; what can be answered is."""
        if self._pending is not None:
            with contextlib.suppress(OSError):
                self._pending.finish()
        self.close()

    def abandon(self) -> None:
        """In a fork of the process: the connection is the parent's, and so is the poller."""
        self._socket.close()


__all__ = ["Visitor"]

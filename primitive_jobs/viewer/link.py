"""`Link`: a connection to one pool, which asks one thing at a time and never blocks."""

from __future__ import annotations

import socket
import time
from typing import Any, NamedTuple

from ..monitor.protocol import LARGEST_PAGE, address, parsed, peer_of, request, trusted
from .sockets import Found


class LinkLost(Exception):
    """There is no such pool any more, or who answers is not who it should be."""


class Stranger(LinkLost):
    """Somebody else listens there."""


class Answer(NamedTuple):
    """What a pool has answered.

    Attributes:
        head: What there is once.
        rows: What there may be many of.
    """

    head: dict[str, Any]
    rows: list[dict[str, Any]]


class Link:
    """A connection; making it raises `LinkLost`.

    Args:
        found: Whom to connect to.

    Attributes:
        found: As the argument.
        asked_at: When something was asked that is not answered yet, on the monotonic clock; None:
            nothing is.
    """

    def __init__(self, found: Found) -> None:
        self.found = found
        self.asked_at: float | None = None
        self._head: dict[str, Any] | None = None
        self._rows: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            self._socket.connect(address(found.name))
            peer = peer_of(self._socket)
        except OSError as error:
            self._socket.close()
            raise LinkLost(f"process {found.pid} cannot be connected to: {error}") from error
        if not trusted(peer) or peer.pid != found.pid:
            self._socket.close()
            raise Stranger(f"process {found.pid} is not who listens there")

    def fileno(self) -> int:
        """The descriptor to wait on, while something is asked."""
        return self._socket.fileno()

    def ask(self, what: str, **fields: object) -> None:
        """Ask something; everything before must have been answered."""
        assert self.asked_at is None, "one thing at a time"
        try:
            self._socket.send(request(what, **fields))
        except OSError as error:
            raise LinkLost(f"process {self.found.pid} is gone") from error
        self.asked_at = time.monotonic()

    def receive(self) -> Answer | None:
        """Return the answer, if all of it is there."""
        while True:
            try:
                datagram = self._socket.recv(LARGEST_PAGE + 1)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                # It has closed without having read what was asked; perhaps it said why.
                datagram = self._last_word()
            except OSError as error:
                raise LinkLost(f"process {self.found.pid} is gone") from error
            if not datagram:
                raise LinkLost(f"process {self.found.pid} has closed the connection")
            answer = self._take_in(datagram)
            if answer is not None:
                return answer

    def _last_word(self) -> bytes:
        try:
            return self._socket.recv(LARGEST_PAGE + 1)
        except OSError:
            return b""

    def _take_in(self, datagram: bytes) -> Answer | None:
        try:
            page = parsed(datagram)
            if self._head is None:
                self._head = dict(page.get("answer") or {})
            self._rows += [dict(row) for row in page.get("rows") or ()]
        except (ValueError, TypeError) as error:
            raise LinkLost(f"process {self.found.pid} answers what is not understood") from error
        if page.get("more"):
            return None
        answer = Answer(self._head, self._rows)
        self._head, self._rows, self.asked_at = None, [], None
        return answer

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


__all__ = ["Answer", "Link", "LinkLost", "Stranger"]

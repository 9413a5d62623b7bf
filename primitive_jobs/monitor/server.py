"""`Monitor`: the listening socket of one pool, and the viewers that are connected.

The socket stands in the poller of the pool's dispatcher, on whose thread all of this runs. It makes
no thread and no file; with no viewer, nothing ever wakes the dispatcher because of it.

What could hold the dispatcher up, and what is done about it:

- Strangers connect again and again: after 100 the socket is left alone for a second.
- No descriptor is free for a viewer, so the socket stays ready: it is left alone for a second, too.
- Many viewers: no more than 8, and all get one snapshot, which is made anew only when that takes no
  more than a twentieth of the time.
- A viewer asks too much, or does not read: see `Visitor`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from pathlib import Path

from .._common.forks import Turn, in_forks
from .protocol import MOST_VISITORS, address, new_name, pages, peer_of, trusted
from .requests import snapshot_pages
from .visitor import Poller, ReportingPool, Visitor

_FRESH = 0.2  # s for which a snapshot is given to every viewer
_SHARE = 20  # of the time that making a snapshot takes, until another one is made
_MOST_STRANGERS = 100
_REST = 1.0  # s
_BACKLOG = 16
_VARIABLE = "PRIMITIVE_JOBS_TOP"
_SOCKETS = Path("/proc/net/unix")


def wanted() -> bool:
    """Whether pools of this process are to be seen, as the environment says."""
    return sys.platform == "linux" and os.environ.get(_VARIABLE) != "0"


def show(kind: str, poller: Poller, pool: ReportingPool) -> None:
    """Open the socket of a pool, if that is possible; it is closed with the poller.

    Args:
        kind: The name of the pool's class.
        poller: That of its dispatcher.
        pool: The pool.
    """
    monitor = Monitor(kind, poller, pool)
    _open.add(monitor)  # first: see `_abandon_all`
    try:
        monitor.open()
        poller.closers.append(monitor.close)
    except OSError as error:
        monitor.close()
        pool.report(logging.DEBUG, "the pool is not shown to other processes", error=error)


class Monitor:
    """What other processes reach of one pool.

    Args:
        kind: The name of the pool's class.
        poller: That of its dispatcher.
        pool: The pool.

    Attributes:
        name: That of its socket.
        poller: As the argument.
        pool: As the argument.
    """

    def __init__(self, kind: str, poller: Poller, pool: ReportingPool) -> None:
        self.name = new_name()
        self.poller = poller
        self.pool = pool
        self._kind = kind
        self._socket: socket.socket | None = None
        self._visitors: set[Visitor] = set()
        self._strangers = 0
        self._snapshot: list[bytes] = []
        self._fresh_until = 0.0

    def open(self) -> None:
        """Begin to listen; raises OSError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._socket.bind(address(self.name))
        self._socket.listen(_BACKLOG)
        self._listen()

    def _listen(self) -> None:
        self._strangers = 0
        if self._socket is not None:
            self.poller.watch(self._socket.fileno(), self._on_visitor)

    def _rest(self) -> None:
        """Leave the socket alone for a moment."""
        if self._socket is not None:
            self.poller.unwatch(self._socket.fileno())
            self.poller.call_in(_REST, self._listen_again)

    def _listen_again(self) -> None:
        try:
            self._listen()
        except OSError as error:
            self.pool.report(logging.DEBUG, "the pool is not shown any more", error=error)
            self.close()

    def _on_visitor(self, mask: int) -> None:
        del mask
        try:
            self._accept()
        except Exception as error:  # noqa: BLE001 - it is logged, and costs the pool nothing
            self.pool.report(logging.ERROR, "the pool is not shown any more", error=error)
            self.close()

    def _accept(self) -> None:
        assert self._socket is not None, "it is watched"
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor is free
            self._rest()
            return
        connection.setblocking(False)
        try:
            self._receive(connection)
        except OSError:
            connection.close()

    def _receive(self, connection: socket.socket) -> None:
        if not trusted(peer_of(connection)):
            connection.close()
            self._strangers += 1
            if self._strangers >= _MOST_STRANGERS:
                self._rest()
        elif len(self._visitors) >= MOST_VISITORS:
            (page,) = pages({"error": f"{MOST_VISITORS} viewers are connected already"})
            connection.send(page)
            connection.close()
        else:
            self._visitors.add(Visitor(connection, self))

    def snapshot(self) -> list[bytes]:
        """Return the datagrams of what the pool has now, or had a moment ago."""
        began = time.monotonic()
        if began >= self._fresh_until:
            self._snapshot = snapshot_pages(self._kind, self.pool)
            ended = time.monotonic()
            self._fresh_until = ended + max(_FRESH, _SHARE * (ended - began))
        return self._snapshot

    def left(self, visitor: Visitor) -> None:
        """Forget a viewer; without any, nothing is kept for them."""
        self._visitors.discard(visitor)
        if not self._visitors:
            self._snapshot, self._fresh_until = [], 0.0

    def close(self) -> None:
        """Close everything; again is harmless."""
        for visitor in list(self._visitors):
            visitor.finish()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self.poller.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
        _open.discard(self)

    def abandon(self) -> None:
        """In a fork of the process: everything is the parent's, and the poller, too."""
        for visitor in list(self._visitors):
            visitor.abandon()
        self._visitors.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_open: set[Monitor] = set()
"""Those of this process; each pool's dispatcher adds and takes out its own."""


def _abandon_all() -> None:
    """In a fork of the process: close what would keep the parent's sockets open."""
    names = {monitor.name for monitor in list(_open)}
    for monitor in list(_open):
        monitor.abandon()
    _open.clear()
    if names:
        with contextlib.suppress(OSError):
            _close_strays(names)


def _close_strays(names: set[str]) -> None:
    """Close what the kernel was giving to a dispatcher at that moment: no object has it here."""
    lines = (line.split() for line in _SOCKETS.read_text(errors="replace").splitlines())
    # What was accepted bears the name of the socket that has accepted it.
    ours = {f"socket:[{fields[6]}]" for fields in lines if fields[-1][1:] in names}
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # that of the folder itself
            if str(entry.readlink()) in ours:
                os.close(int(entry.name))


in_forks(Turn.PARTS, _abandon_all)

__all__ = ["Monitor", "show", "wanted"]

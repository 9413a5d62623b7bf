"""What tests of the monitor and its viewers have in common: connections by hand, pools by name."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import PATIENCE, until

from primitive_jobs.engine_pool import EnginePool
from primitive_jobs.monitor import protocol, server


def monitor_of(pool: EnginePool) -> server.Monitor:
    """What shows a pool, once its dispatcher has opened that."""

    def mine() -> list[server.Monitor]:
        scheduler = pool._engine._scheduler
        return [each for each in list(server._open) if vars(each.pool)["_scheduler"] is scheduler]

    until(lambda: mine() and mine()[0]._socket is not None, "its socket")
    return mine()[0]


def listed(name: str) -> bool:
    """Whether the kernel knows a socket of this name."""
    return f"@{name}\n" in Path("/proc/net/unix").read_text()


class Client:
    """A viewer made by hand, which can say anything."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(protocol.address(name))

    def send(self, datagram: bytes) -> None:
        self.socket.send(datagram)

    def page(self) -> bytes:
        """One datagram; b"": it is closed."""
        try:
            return self.socket.recv(1 << 20)
        except ConnectionResetError:
            return self.page()

    def ask(self, what: str, **fields: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Ask, and return the whole answer."""
        self.send(protocol.request(what, **fields))
        return self.answer()

    def answer(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        head: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        while True:
            page = json.loads(self.page())
            head.update(page.get("answer", {}))
            rows += page["rows"]
            if not page.get("more"):
                return head, rows

    def silent(self, seconds: float = 0.0) -> bool:
        """Whether nothing has come."""
        return not select.select([self.socket], [], [], seconds)[0]

    def closed(self) -> bool:
        """Wait until it is closed by the other side, whatever comes before."""
        with contextlib.suppress(BrokenPipeError):
            while self.page():
                pass
        return True


@contextlib.contextmanager
def visiting(pool: EnginePool) -> Iterator[Client]:
    """A connection to a pool."""
    client = Client(monitor_of(pool).name)
    try:
        yield client
    finally:
        client.socket.close()

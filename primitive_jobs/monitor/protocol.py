"""What a pool and its viewers have in common: names of sockets, who is trusted, datagrams of JSON.

A pool listens on an abstract socket of Linux, which is no file and goes with the process. Its name
is ``primitive_jobs-<uid>-<pid>-<random>``; viewers find it in ``/proc/net/unix``. Anybody may bind
any name before, or connect to one: so both sides ask the kernel who the other one is.

A request is one datagram, an object with the name of what is asked under "ask". An answer is one or
more: "answer" in the first one, "rows" in each, and "more" in all but the last.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1  # of what is said
LARGEST_PAGE = 60 * 1024  # bytes of a datagram of an answer
LARGEST_REQUEST = 4 * 1024
MOST_VISITORS = 8  # of one pool
MOST_QUEUED = 100  # jobs of a snapshot that wait

_PREFIX = "primitive_jobs"
_NAME = re.compile(rf"{_PREFIX}-(\d{{1,10}})-(\d{{1,10}})-[0-9a-f]{{16}}")
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: unix(7)
_OVERFLOW = Path("/proc/sys/kernel/overflowuid")
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_ROOM = 64  # bytes of a page beside answer and rows
_TOGETHER = 8  # rows that are encoded in one go


def new_name() -> str:
    """Return a name for a socket of this process, which nobody can foresee."""
    return f"{_PREFIX}-{os.geteuid()}-{os.getpid()}-{os.urandom(8).hex()}"


def address(name: str) -> str:
    """Return a name as what sockets are bound and connected to."""
    return f"\0{name}"


class Owner(NamedTuple):
    """Who says, by its name, to have a socket."""

    uid: int
    pid: int


def owner_of(name: str) -> Owner | None:
    """Return whose a socket of this name should be; None: the name is of another kind."""
    match = _NAME.fullmatch(name)
    return None if match is None else Owner(int(match[1]), int(match[2]))


class Peer(NamedTuple):
    """The process at the other end of a connection, as the kernel knows it."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Return who made the other end: who connected, or who listens; raises OSError."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return Peer(pid, uid)


def trusted(peer: Peer) -> bool:
    """Whether a process is of this process's user, in the same namespaces.

    A user that has no number here is shown as the overflow one, and a process as 0.
    """
    return peer.pid > 0 and peer.uid == os.geteuid() and peer.uid != _overflow_uid()


def _overflow_uid() -> int:
    try:
        return int(_OVERFLOW.read_text())
    except (OSError, ValueError):
        return 65534


def request(ask: str, **fields: object) -> bytes:
    """Return a request as its datagram."""
    return _ENCODE({"ask": ask, **fields}).encode()


def parsed(datagram: bytes) -> dict[str, Any]:
    """Return what a datagram says; raises ValueError where that is no object."""
    try:
        found = json.loads(datagram)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found


def pages(answer: Mapping[str, object], rows: Iterable[Mapping[str, object]] = ()) -> list[bytes]:
    """Return an answer as datagrams; the answer, and 8 rows, are smaller than a page."""
    first = f'"answer":{_ENCODE(answer)},'
    room = LARGEST_PAGE - _ROOM
    bodies = [[first, '"rows":[']]
    size, comma = len(first), ""
    rest = list(rows)
    while rest:
        # Several together take half the time. In ASCII: one byte a character.
        text = _ENCODE(rest[:_TOGETHER])[1:-1]
        del rest[:_TOGETHER]
        if size + len(text) + 1 > room:
            bodies.append(['"rows":['])
            size, comma = 0, ""
        bodies[-1] += (comma, text)
        size += len(text) + 1
        comma = ","
    last = len(bodies) - 1
    ends = ("]}" if place == last else '],"more":true}' for place in range(len(bodies)))
    return ["".join(("{", *body, end)).encode() for body, end in zip(bodies, ends, strict=True)]


__all__ = [
    "LARGEST_PAGE",
    "LARGEST_REQUEST",
    "MOST_QUEUED",
    "MOST_VISITORS",
    "VERSION",
    "Owner",
    "Peer",
    "address",
    "new_name",
    "owner_of",
    "pages",
    "parsed",
    "peer_of",
    "request",
    "trusted",
]

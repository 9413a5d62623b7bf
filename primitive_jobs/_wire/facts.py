"""What is to be known of an attempt once it is over, as bytes that travel with its outcome.

Each fact is a number, a length and so many bytes. Nothing is unpickled to read them: whoever reads
trusts no worker, in which foreign code runs.
"""

from __future__ import annotations

import struct

PROGRESS = 1  # as `notes.PROGRESS` says
CHECKPOINT = 2  # as `notes.CHECKPOINT` says
USAGE = 3  # as `USAGE_FORM` says
OUTPUT = 4  # b"": that it has printed to where its pool or its owner finds it
LOGGED = 5  # b"": that records of it are in the socket for these
IMPORTED = 7  # names: of modules that its worker has imported since the last one that told some
RAISED = 6  # text, as UTF-8: what it has raised, where that is of its `retry_on`

USAGE_FORM = struct.Struct("<dddQ?")
"""Seconds of wall time, in user mode and in the system; bytes at the peak, 0: not known; whether
that is all of it."""

_HEAD = struct.Struct("<BH")


def packed(facts: dict[int, bytes]) -> bytes:
    """Return facts as bytes."""
    return b"".join(_HEAD.pack(kind, len(fact)) + fact for kind, fact in facts.items())


def unpacked(data: bytes) -> dict[int, bytes]:
    """The opposite; what is no whole fact ends it."""
    found = {}
    place = 0
    while place + _HEAD.size <= len(data):
        kind, length = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        if place + length > len(data):
            break
        found[kind] = data[place : place + length]
        place += length
    return found


__all__ = [
    "CHECKPOINT",
    "IMPORTED",
    "LOGGED",
    "OUTPUT",
    "PROGRESS",
    "RAISED",
    "USAGE",
    "USAGE_FORM",
    "packed",
    "unpacked",
]

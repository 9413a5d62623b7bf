"""What a job's id is made of: random bytes, drawn for each job; as a text only where one is asked.

The text takes some us to be made, in which a short job could be sent and answered. The bytes travel
with the call, so that the job itself knows its id, too. They are got from the system for many jobs
at a time: each such call gives the interpreter's lock to another thread, as it seems for good.
"""

from __future__ import annotations

import collections
import os

from .forks import Turn, in_forks

SIZE = 16  # bytes
_MANY = 256  # ids that are got at a time

_stock: collections.deque[bytes] = collections.deque()  # each is taken out once
in_forks(Turn.PARTS, _stock.clear)


def draw() -> bytes:
    """Return what identifies one more job, unique for ever."""
    try:
        return _stock.pop()
    except IndexError:
        pass
    process = os.getpid()
    data = os.urandom(_MANY * SIZE)
    first, *others = (data[place : place + SIZE] for place in range(0, len(data), SIZE))
    if os.getpid() != process:  # a handler of a signal has forked meanwhile: these are the parent's
        return draw()
    _stock.extend(others)
    return first


def text_of(drawn: bytes) -> str:
    """Return the id: a uuid4."""
    import uuid

    return str(uuid.UUID(bytes=drawn, version=4))


def drawn_of(text: str) -> bytes:
    """The opposite."""
    import uuid

    return uuid.UUID(text).bytes


__all__ = ["SIZE", "draw", "drawn_of", "text_of"]

"""What a worker and its pool say to each other. Imported by every worker: so it imports nothing
that is not there anyway, and does without dataclasses.
"""

from __future__ import annotations

import enum
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


REFUSED = (errno.ENOSYS, errno.EPERM, errno.EACCES)
"""What a system call ends in that the kernel does not have, or a sandbox refuses."""


class Kind(enum.IntEnum):
    """What a message on the channel says."""

    RUN = 1  # pool -> worker: a call to make
    STOP = 2  # pool -> worker: leave
    READY = 3  # worker -> pool: a job may come
    RETURNED = 4  # worker -> pool: the job's result
    RAISED = 5  # worker -> pool: the job's exception, or why it has no result
    REFUSED = 6  # worker -> pool: the call could not be received, it was not started
    INIT_FAILED = 7  # worker -> pool: the initializer's exception
    SHARE = 8  # pool -> worker: data that calls may refer to; its number stands for the attempt's
    FORGET = 9  # pool -> worker: no call refers to it any more
    INITIALIZE = 10  # pool -> worker: the initializer, before anything else
    LEND = 11  # either way: a descriptor, which comes with it; `extra` says of what
    AGAIN = 12  # pool -> worker: what comes with the next call, which is not the first attempt
    GIVEN = 14  # pool -> worker: the tokens of the next call, as notes
    RETRIABLE = 13  # worker -> pool: the job's exception, after which it may be tried again
    LEARN = 16  # pool -> worker: names of modules to import; READY answers it
    RESULT = 15  # pool -> worker: another job's, for the next call; its number is the attempt's


DATA, CHECKPOINTS, PRINTED, LOGGED = range(4)
"""What a descriptor may be of: data that calls may refer to, as SHARE brings it; a file for
checkpoints of the attempt; a pipe through which comes what the worker's jobs print; a socket
through which come its log records."""

KEEP = b"keep"
"""The notes of shared data that each call has a copy of: a worker keeps its file."""


AGAIN = struct.Struct("<QQ?")
"""How the notes of such a message begin: how many attempts it is now; which call of a chunk has
left the content, and whether there is one. A pickle of what the job is told of itself may follow,
in the place of what its call says."""


_IN_MS = 0x8000  # in `Message.extra`: it is in ms, not in us
_UNTOLD = 0xFFFF


def told_duration(microseconds: int) -> int:
    """How long a call took, in 16 bits, rounded down; what takes longer has a larger number."""
    if microseconds < _IN_MS:
        return microseconds
    return _IN_MS | min(microseconds // 1000, _UNTOLD - _IN_MS)


def duration(told: int) -> float | None:
    """The same in s; None: it took more than half a minute."""
    if told < _IN_MS:
        return told * 1e-6
    return None if told == _UNTOLD else (told - _IN_MS) * 1e-3


ENDS = (int(Kind.RETURNED), int(Kind.RAISED))
"""The kinds that end a job, whatever it has left of retries; ints, which are compared faster."""
OUTCOMES = (*ENDS, int(Kind.RETRIABLE))
"""The kinds that end an attempt."""


class Message:
    """One message as received.

    Attributes:
        kind: A `Kind`, or an int that is none.
        attempt: Which one it is about, 0 for none.
        body: A pickle; b"" where the kind says all.
        buffers: Its out-of-band data.
        lost: Why the receiver could not take the content in, None where it did.
        extra: Of a call, the place in which the worker notes it; of an outcome, how long the call
            took: see `told_duration`; of a descriptor, what it is of.
        notes: Of an outcome, what else is to be known of the call: see `facts`; b"" where nothing.
    """

    __slots__ = ("attempt", "body", "buffers", "extra", "kind", "lost", "notes")

    def __init__(
        self,
        kind: int,
        attempt: int = 0,
        body: bytes | bytearray | memoryview = b"",
        buffers: Sequence[memoryview] = (),
        lost: str | None = None,
        extra: int = 0,
        notes: bytes = b"",
    ) -> None:
        self.kind = kind
        self.attempt = attempt
        self.body = body
        self.buffers = buffers
        self.lost = lost
        self.extra = extra
        self.notes = notes

    def _parts(self) -> tuple[object, ...]:
        return self.kind, self.attempt, self.body, self.buffers, self.lost, self.notes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._parts() == other._parts()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Message{self._parts()!r}"


class Filed(Message):
    """One that came in a file, which others may be sent as it is.

    Attributes:
        file: A `Parcel` of it, which nobody changes; None: it was let go, and the content stays
            mapped. One thread writes it, any may read it, once: whoever has it, it is open for.
    """

    __slots__ = ("__weakref__", "file")

    def __init__(
        self,
        kind: int,
        attempt: int,
        body: memoryview,
        buffers: Sequence[memoryview],
        extra: int,
        notes: bytes,
    ) -> None:
        self.file: Any = None  # whoever has received it writes it next
        super().__init__(kind, attempt, body, buffers, None, extra, notes)


class Lent(Message):
    """A descriptor as received; open for as long as this lives."""

    __slots__ = ("fd",)

    def __init__(self, number: int, fd: int, extra: int = DATA) -> None:
        self.fd = fd
        super().__init__(Kind.LEND, number, extra=extra)

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        except OSError:  # a job has closed it
            pass

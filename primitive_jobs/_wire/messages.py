"""What a worker and its pool say to each other. Imported by every worker: so it imports nothing
that is not there anyway, and does without dataclasses.
"""

from __future__ import annotations

import enum
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


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
    LEND = 11  # pool -> worker: as SHARE, but a descriptor, which comes with it


OUTCOMES = (int(Kind.RETURNED), int(Kind.RAISED))
"""The kinds that end a job; ints, which are compared faster."""


class Message:
    """One message as received.

    Attributes:
        kind: A `Kind`, or an int that is none.
        attempt: Which one it is about, 0 for none.
        body: A pickle; b"" where the kind says all.
        buffers: Its out-of-band data.
        lost: Why the receiver could not take the content in, None where it did.
    """

    __slots__ = ("attempt", "body", "buffers", "kind", "lost")

    def __init__(
        self,
        kind: int,
        attempt: int = 0,
        body: bytes | bytearray | memoryview = b"",
        buffers: Sequence[memoryview] = (),
        lost: str | None = None,
    ) -> None:
        self.kind = kind
        self.attempt = attempt
        self.body = body
        self.buffers = buffers
        self.lost = lost

    def _parts(self) -> tuple[object, ...]:
        return self.kind, self.attempt, self.body, self.buffers, self.lost

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._parts() == other._parts()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Message{self._parts()!r}"


class Lent(Message):
    """A descriptor as received; open for as long as this lives."""

    __slots__ = ("fd",)

    def __init__(self, number: int, fd: int) -> None:
        self.fd = fd
        super().__init__(Kind.LEND, number)

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        except OSError:  # a job has closed it
            pass

"""`Pipe`: what brings a worker's output here.

The worker makes it, for the first job whose output is captured, and sends the end to read from; its
later jobs write into the same one. While such a job runs its worker has no other one, so all that
is there when its outcome comes is its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios

from .._wire.messages import Lent
from .printed import Printed

_SLICE = 256 << 10  # bytes that are read at once
_INT = struct.Struct("i")


class Pipe:
    """The end to read from; used on the thread that has its worker.

    Args:
        lent: What came.

    Attributes:
        over: Whether nobody can write to it any more.
        printed: Where what comes goes; None: nowhere.
        rest: Seconds that it rests after each reading.
    """

    rest = 0.04

    def __init__(self, lent: Lent) -> None:
        self._lent: Lent | None = lent
        self.over = False
        self.printed: Printed | None = None
        os.set_blocking(lent.fd, False)

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once it is closed."""
        return -1 if self._lent is None else self._lent.fd

    @property
    def may_wait(self) -> bool:
        """Whether what is there is better read later."""
        return self.printed is not None and self.printed.is_behind

    def read(self) -> bool:
        """Read what is there now, and nothing that comes meanwhile; return whether there was any.

        So it ends, whoever writes on.
        """
        lent = self._lent
        if lent is None or self.over:
            return False
        found = False
        with contextlib.suppress(BlockingIOError):
            (count,) = _INT.unpack(fcntl.ioctl(lent.fd, termios.FIONREAD, bytes(_INT.size)))
            while count > 0 or not found:
                data = os.read(lent.fd, min(count, _SLICE) or 1)
                if not data:
                    self.over = True
                    break
                found = True
                count -= len(data)
                if self.printed is not None:
                    self.printed.append(data)
        return found

    def close(self) -> None:
        """Close it; again is harmless."""
        self._lent = None


__all__ = ["Pipe"]

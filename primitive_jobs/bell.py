"""`Bell`: wakes a thread that waits on descriptors."""

from __future__ import annotations

import contextlib
import io
import os
import struct


class Bell:
    """Wakes the dispatcher; any thread, signal handler or finalizer may ring it.

    File objects rather than numbers: once closed they raise, where a number might be somebody
    else's by then. An eventfd takes a third of a socket pair's time, and cannot fail for want of
    a buffer.
    """

    _RING = struct.pack("=Q", 1)

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._out = self._in = io.FileIO(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), "r+")
        else:
            out, into = os.pipe()
            os.set_blocking(out, False)
            os.set_blocking(into, False)
            self._out, self._in = io.FileIO(out, "r"), io.FileIO(into, "w")

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._out.fileno()

    def ring(self) -> None:
        """Wake it; harmless if it is awake or has ended."""
        with contextlib.suppress(OSError, ValueError):  # full: it is awake; closed: it has ended
            self._in.write(self._RING)

    def hush(self, mask: int) -> None:
        """Be ready for the next ring."""
        del mask
        with contextlib.suppress(OSError):
            self._out.read(4096)

    def close(self) -> None:
        """Give the descriptors back."""
        self._in.close()  # first: nobody shall ring into a pipe that nobody reads (SIGPIPE)
        self._out.close()
